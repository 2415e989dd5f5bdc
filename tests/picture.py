"""Records the README's two pictures on a real terminal of 80 columns and writes them as SVG.

    python tests/picture.py [FOLDER]      default: the folder of this script

`session.svg` shows a few jobs, from `enqueue` to the dead letter queue and back. `status-watch.svg` shows
`status --watch` while sixty jobs drain. Lines, colours and times are those that the terminal received; this script adds
the font, the prompts, the comments, the space between commands, and `~/q` for the queue's directory.
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
COLUMNS, ROWS = 80, 24

# Pixels: the width of a character, the height of a line, the baseline below the top of its line, the frame.
CELL, LINE, BASELINE, MARGIN = 8.4, 20, 15, 20
INK, PAPER = "#cdd9e5", "#1c2128"
COLOURS = {"31": "#f47067", "32": "#6bc46d", "33": "#daaa3f", "34": "#6cb6ff", "36": "#76e3ea"}
BOLD, GREY, PLAIN = "\033[1m", "\033[2m", "\033[0m"

# A frame is (seconds, screen). The screen is text with the escape sequences of its colours.
Frame = tuple[float, str]

# An empty line stands for the time until all jobs are completed or dead.
SESSION = """\
queuectl worker start --detach
queuectl enqueue --id count 'wc -l access.log'
queuectl enqueue --id pack --max-retries 2 'gzip acces.log'  # a typo
queuectl enqueue --id video './encode trip.mov'
queuectl list  # pack failed and will be retried

queuectl dlq list  # both attempts failed: pack is dead
queuectl logs pack
queuectl dlq retry pack --command 'gzip access.log'  # corrected

queuectl list  # all completed
"""
ENCODE = """#!/bin/sh
sleep 3
echo "$1: 4,230 frames"
"""

# Some pictures take longer than others, two cannot be read the first time, and one never.
RESIZE = """#!/bin/sh
n=${1%.jpg}
case $n in
017) echo "$1: no image data" >&2; sleep 0.3; exit 1 ;;
008 | 023) [ -e tried.$n ] || { : > tried.$n; echo "$1: the disk is busy" >&2; exit 75; } ;;
esac
sleep 0.$(expr "$n" % 6 + 3)
"""


# -- Recording


def write_script(path: Path, text: str) -> None:
    """Write a file that can be run."""
    path.write_text(text)
    path.chmod(0o755)


def prepare(folder: Path) -> None:
    """Put the program and the scripts of the jobs into the folder, and go there."""
    write_script(folder / "queuectl", f'#!/bin/sh\nexec {sys.executable} {PROGRAM} "$@"\n')
    write_script(folder / "resize", RESIZE)
    write_script(folder / "encode", ENCODE)
    (folder / "access.log").write_text("GET /\n" * 1204)
    os.chdir(folder)
    os.environ.update(TERM="xterm-256color", PYTHONUTF8="1", PATH=f"{folder}:{os.environ['PATH']}")
    os.environ.pop("NO_COLOR", None)


def start_on_terminal(line: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a shell line on a new terminal: its process, and the descriptor to read from and type into."""
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(["sh", "-c", line], stdin=inside, stdout=inside, stderr=inside)
    os.close(inside)
    return process, terminal


def read_ready(terminal: int) -> bytes:
    """What the terminal receives within a tenth of a second, which may be nothing."""
    if not select.select([terminal], [], [], 0.1)[0]:
        return b""
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so when nothing has the terminal open any more
        return b""


def run_on_terminal(line: str) -> str:
    """Run a shell line, which must succeed: what the terminal received."""
    process, terminal = start_on_terminal(line)
    process.wait(60)
    output = b""
    while more := read_ready(terminal):
        output += more
    os.close(terminal)
    if process.returncode:
        sys.exit(f"{line}: exit code {process.returncode}\n{output.decode()}")
    return output.decode()


def clean(screen: str) -> str:
    """The screen without what is not drawn, and with a short name for the queue's directory."""
    screen = screen.replace("\r", "").replace("\033[K", "").strip("\n")
    return screen.replace(os.environ["QUEUECTL_HOME"], "~/q")


def record_session() -> list[Frame]:
    """The one frame of the session: each command in bold, below it what it printed, and an empty line."""
    screen = ""
    try:
        for line in SESSION.splitlines():
            if line:
                command, _, comment = line.partition("  # ")
                remark = f"   {GREY}# {comment}{PLAIN}" if comment else ""
                time.sleep(0.4)  # the time to type it
                screen += f"{GREY}$ {PLAIN}{BOLD}{command}{PLAIN}{remark}\n{run_on_terminal(command)}\n"
            else:
                run_on_terminal("queuectl wait --all || true")  # it fails when a job dies
                screen += "\n"
    finally:
        run_on_terminal("queuectl worker stop || true")
    return [(0.0, screen)]


def record_watch() -> list[Frame]:
    """Every frame of `status --watch`, from before the drain until after its end."""
    jobs = "".join(f'{{"id": "p{n:03}", "command": "./resize {n:03}.jpg"}}\n' for n in range(1, 61))
    words = ["queuectl", "enqueue", "--max-retries", "2", "--file", "-"]
    subprocess.run(words, input=jobs, text=True, stdout=subprocess.DEVNULL, check=True)
    watch, terminal = start_on_terminal("queuectl status --watch 1")
    frames: list[Frame] = []
    drain: subprocess.Popen[bytes] | None = None
    began, seen = time.monotonic(), b""
    ended_at = began + 120
    while (now := time.monotonic()) < ended_at + 2.5:
        seen += read_ready(terminal)
        while b"\033[J" in seen:
            frame, _, seen = seen.partition(b"\033[J")
            frames.append((now - began, frame.rpartition(b"\033[H")[2].decode()))
        if drain is None and frames and now - began > 1.5:
            words = ["queuectl", "worker", "start", "--drain", "--count", "4"]
            drain = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        if drain and drain.poll() is not None:
            ended_at = min(ended_at, now)
    os.write(terminal, b"q")
    watch.wait(10)
    os.close(terminal)
    return frames


# -- Drawing


def split_colours(line: str) -> list[tuple[str, str]]:
    """(text, its class: c0, c1 for bold, c31 for red ...) for each piece of a line."""
    pieces, kind = [], "c0"
    for text, code in re.findall(r"([^\033]*)(?:\033\[([\d;]*)m)?", line):
        if text:
            pieces.append((text, kind))
        if code:
            kind = f"c{code}"
    return pieces


def height_of(line: str) -> int:
    """An empty line is half as high as the others: groups of lines then look like groups."""
    return LINE if line else LINE // 2


def draw_screen(screen: str) -> str:
    """One screen as SVG text; each piece is stretched to its cells, so that columns stay columns in any font."""
    out = []
    y = MARGIN + BASELINE
    for line in screen.split("\n"):
        at = 0
        for text, kind in split_colours(line):
            left = len(text) - len(text.lstrip())
            if word := text.strip():
                x = MARGIN + (at + left) * CELL
                out.append(
                    f'<text x="{x:.1f}" y="{y}" textLength="{len(word) * CELL:.1f}" class="{kind}">'
                    f"{html.escape(word)}</text>"
                )
            at += len(text)
        y += height_of(line)
    return "\n".join(out)


def draw_film(frames: list[Frame]) -> tuple[list[str], list[str]]:
    """The frames one after the other, each for as long as it was seen; one of the middle where nothing moves."""
    starts = [at - frames[0][0] for at, _ in frames]
    whole = starts[-1] + 3
    style = [f".f {{ visibility: hidden; animation: {whole:.1f}s step-end infinite }} .still {{ visibility: visible }}"]
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
        groups.append(f'<g class="f{still}" id="f{number}">\n{draw_screen(screen)}\n</g>')
    return style, groups


def draw_picture(title: str, frames: list[Frame]) -> str:
    """The SVG: as high as its longest screen, and a film if there is more than one."""
    width = round(2 * MARGIN + COLUMNS * CELL)
    height = 2 * MARGIN + max(sum(map(height_of, screen.split("\n"))) for _, screen in frames)
    style = [
        f"text {{ font: 14px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: {INK}; "
        "white-space: pre } .c1 { font-weight: bold } .c2 { fill: #909dab }",
        *(f".c{code} {{ fill: {colour} }}" for code, colour in COLOURS.items()),
    ]
    if len(frames) == 1:
        drawn = [draw_screen(frames[0][1])]
    else:
        film_style, drawn = draw_film(frames)
        style += film_style
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" xml:space="preserve">\n<title>{title}</title>\n'
        f"<style>\n{chr(10).join(style)}\n</style>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )


STORIES = [
    ("session.svg", "queuectl: jobs from enqueue to the dead letter queue and back", record_session),
    ("status-watch.svg", "queuectl status --watch while a queue drains", record_watch),
]


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent).resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        prepare(folder)
        for file, title, record in STORIES:
            os.environ["QUEUECTL_HOME"] = str(folder / "q" / file.partition(".")[0])
            frames = [(at, clean(screen)) for at, screen in record()]
            (target / file).write_text(draw_picture(title, frames), encoding="utf-8")
            print(f"{len(frames)} frames, {(target / file).stat().st_size:,} bytes: {target / file}")


if __name__ == "__main__":
    main()
