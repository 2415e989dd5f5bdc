"""Records `status --watch` on a terminal while a queue drains, and writes it as the README's picture.

    python tests/picture.py [FILE]      default: status-watch.svg beside this script

What is in the picture is what the terminal was sent: its lines, colours and seconds; only the font is ours.
"""

from __future__ import annotations

import fcntl
import html
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

PROGRAM = Path(__file__).resolve().parent.parent / "queuectl.py"
COLUMNS, ROWS = 84, 24
CELL, LINE, MARGIN = 8.4, 18, 14  # a character's width, a line's height, the frame around them, in pixels
COLOURS = {"31": "#f47067", "32": "#6bc46d", "33": "#daaa3f", "34": "#6cb6ff", "36": "#76e3ea"}
INK, PAPER = "#cdd9e5", "#1c2128"

# Some pictures take longer than others, two cannot be read the first time, and one never.
RESIZE = """#!/bin/sh
n=${1%.jpg}
case $n in
017) echo "$1: truncated file" >&2; sleep 0.3; exit 1 ;;
008 | 023) [ -e tried.$n ] || { : > tried.$n; echo "$1: the disk is busy" >&2; exit 75; } ;;
esac
sleep 0.$(expr "$n" % 6 + 3)
"""


def record(folder: Path) -> list[tuple[float, str]]:
    """(seconds, screen) of every frame that the terminal was sent, from before the drain until after its end."""
    home, script = folder / "queue", folder / "resize"
    script.write_text(RESIZE)
    script.chmod(0o755)
    env = {**os.environ, "TERM": "xterm-256color", "QUEUECTL_HOME": str(home), "PYTHONUTF8": "1"}
    env.pop("NO_COLOR", None)
    queuectl = [sys.executable, str(PROGRAM)]
    jobs = "".join(f'{{"id": "p{n:03}", "command": "./resize {n:03}.jpg"}}\n' for n in range(1, 61))
    words = [*queuectl, "enqueue", "--max-retries", "2", "--file", "-"]
    subprocess.run(words, input=jobs, text=True, cwd=folder, env=env, stdout=subprocess.DEVNULL, check=True)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    watch = subprocess.Popen([*queuectl, "status", "--watch", "1"], stdin=slave, stdout=slave, env=env)
    os.close(slave)
    shown, began, seen = [], time.monotonic(), b""
    drain: subprocess.Popen[bytes] | None = None
    deadline = began + 120
    ended_at = deadline
    while (now := time.monotonic()) < ended_at + 2.5:
        if select.select([master], [], [], 0.1)[0]:
            seen += os.read(master, 65536)
        while b"\033[J" in seen:
            frame, _, seen = seen.partition(b"\033[J")
            shown.append((now - began, frame.rpartition(b"\033[H")[2].decode()))
        if drain is None and shown and now - began > 1.5:
            words = [*queuectl, "worker", "start", "--drain", "--count", "4"]
            drain = subprocess.Popen(words, cwd=folder, env=env, stderr=subprocess.DEVNULL)
        if drain and drain.poll() is not None:
            ended_at = min(ended_at, now)
    os.write(master, b"q")
    watch.wait(10)
    os.close(master)
    return [(at, screen.replace(str(home), "~/queue")) for at, screen in shown]


def runs(line: str) -> list[tuple[str, str]]:
    """(text, its colour as a class: c0, c1 for bold, c31 for red ...) for each piece of a line."""
    out, kind = [], "c0"
    for text, code in re.findall(r"([^\033]*)(?:\033\[([\d;]*)[mK])?", line.rstrip("\r")):
        if text:
            out.append((text, kind))
        if code:
            kind = f"c{code}"
    return out


def drawing(screen: str) -> str:
    """One screen as SVG text; each piece stretched to its cells, so that columns stay columns in any font."""
    out = []
    for row, line in enumerate(screen.split("\n")):
        at = 0
        for text, kind in runs(line):
            left = len(text) - len(text.lstrip())
            if word := text.strip():
                x, y = MARGIN + (at + left) * CELL, MARGIN + 26 + row * LINE
                out.append(
                    f'<text x="{x:.1f}" y="{y}" textLength="{len(word) * CELL:.1f}" class="{kind}">'
                    f"{html.escape(word)}</text>"
                )
            at += len(text)
    return "\n".join(out)


def as_svg(frames: list[tuple[float, str]]) -> str:
    """The frames one after the other, each for as long as it was seen; one of the middle where nothing moves."""
    width, height = round(2 * MARGIN + COLUMNS * CELL), 2 * MARGIN + 14 + ROWS * LINE
    starts = [at - frames[0][0] for at, _ in frames]
    whole = starts[-1] + 3
    style = [
        f"text {{ font: 14px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: {INK}; "
        "white-space: pre } .c1 { font-weight: bold }",
        *(f".c{code} {{ fill: {colour} }}" for code, colour in COLOURS.items()),
        f".f {{ visibility: hidden; animation: {whole:.1f}s step-end infinite }} .still {{ visibility: visible }}",
    ]
    groups = []
    for number, ((_, screen), start) in enumerate(zip(frames, starts, strict=True)):
        end = [*starts, whole][number + 1]
        first, last = 100 * start / whole, 100 * end / whole
        hidden = "visibility: hidden"
        before = f"0% {{ {hidden} }} " if number else ""
        style.append(
            f"@keyframes k{number} {{ {before}{first:.2f}% {{ visibility: visible }} {last:.2f}% {{ {hidden} }} }} "
            f"#f{number} {{ animation-name: k{number} }}"
        )
        still = " still" if number == len(frames) * 3 // 5 else ""
        groups.append(f'<g class="f{still}" id="f{number}">\n{drawing(screen)}\n</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" xml:space="preserve">\n<title>queuectl status --watch while a queue drains</title>\n'
        f"<style>\n{chr(10).join(style)}\n</style>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>\n' + "\n".join(groups) + "\n</svg>\n"
    )


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("status-watch.svg"))
    with tempfile.TemporaryDirectory() as folder:
        frames = record(Path(folder))
    target.write_text(as_svg(frames), encoding="utf-8")
    print(f"{len(frames)} frames, {target.stat().st_size:,} bytes: {target}")


if __name__ == "__main__":
    main()
