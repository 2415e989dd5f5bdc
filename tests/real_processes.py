"""What the tests with real workers share beside fixtures: gates that hold a job, terminals, processes.

No state is waited for by sleeping: a job is held by a gate file until the test opens it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

Call = Callable[..., Any]


def readme_block(name: str) -> str:
    """What stands between `<!-- name -->` and `<!-- /name -->` in the README, without the fence."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name} -->\n```\w*\n(.*?)```\n<!-- /{name} -->", readme, re.DOTALL)
    assert found, f"README.md has no block <!-- {name} -->"
    return found[1]


# -- nothing left behind


def _traces(entry: Path) -> bytes:
    """Where a process of `/proc` says that it belongs: environment, directory, input and output."""
    traces = b""
    with contextlib.suppress(OSError):
        traces += (entry / "environ").read_bytes()
    for link in ("cwd", "fd/0", "fd/1", "fd/2"):
        with contextlib.suppress(OSError):
            traces += b"\0" + os.fsencode(os.readlink(entry / link)) + b"/"
    return traces


def processes_below(folder: Path) -> set[int]:
    """The processes whose QUEUECTL_HOME, directory or output lies below `folder` (none without /proc)."""
    mark = os.fsencode(folder) + b"/"
    ours = {os.getpid(), os.getppid()}
    entries = (entry for entry in Path("/proc").glob("[0-9]*") if int(entry.name) not in ours)
    return {int(entry.name) for entry in entries if mark in _traces(entry)}


def is_alive(pid: int) -> bool:
    """Whether the process exists and is more than a zombie that nobody has reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    return not Path("/proc/self").exists()


@contextlib.contextmanager
def started_with(action: signal.Handlers, *numbers: signal.Signals) -> Iterator[None]:
    """What is started inside this block finds these signals ignored (or default)."""
    before = {number: signal.signal(number, action) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- jobs


@dataclass(frozen=True)
class Gate:
    """A file that a job waits for: `gate.wait` is shell text, `gate.open()` lets it go on."""

    path: Path

    @property
    def wait(self) -> str:
        return f"while [ ! -e {shlex.quote(str(self.path))} ]; do sleep 0.02; done"

    def open(self) -> None:
        self.path.touch()


def meeting(folder: Path, size: int) -> str:
    """Shell text of a job that goes on only when `size` such jobs run at the same time."""
    place = shlex.quote(str(folder))
    return (
        f"mkdir -p {place}; : > {place}/$QUEUECTL_JOB_ID; "
        f"while [ $(ls {place} | wc -l) -lt {size} ]; do sleep 0.02; done"
    )


def python_job(script: Path, text: str, *words: object) -> str:
    """Shell text of a job that *is* a Python process (no shell above it) running `text`."""
    script.write_text(text)
    return "exec " + shlex.join([sys.executable, "-S", "-E", str(script), *map(str, words)])


def seconds_between(earlier: str, later: str) -> float:
    """Between two stored instants (ISO 8601 with Z)."""
    first, second = (datetime.fromisoformat(text.replace("Z", "+00:00")) for text in (earlier, later))
    return (second - first).total_seconds()


def stored(home: Path, name: str) -> Any:
    """What one of the three files of a home holds, read as anybody would (None where it is not there)."""
    try:
        return json.loads((home / name).read_text())
    except FileNotFoundError:
        return None


def stored_ids(home: Path, name: str) -> list[str]:
    return [job["id"] for job in stored(home, name) or []]


# -- workers


def said(child: subprocess.Popen[bytes]) -> str:
    """What a process of the fixture `start` has printed so far."""
    return Path(child.log).read_bytes().decode("utf-8", "replace")  # type: ignore[attr-defined]


def kill(child: subprocess.Popen[bytes]) -> None:
    """The end that nothing can prepare for."""
    child.kill()
    child.wait(30)


# -- terminals

# A new session needs a controlling terminal of its own: then the kernel turns a typed ^C into SIGINT.
ON_A_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
    signal.signal(number, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


@dataclass
class Terminal:
    """A command on a terminal of its own: what it shows, what is typed, and hanging up."""

    child: subprocess.Popen[bytes]
    master: int
    shown: bytes = field(default=b"")

    def screen(self) -> str:
        """All that was shown so far."""
        while self.master >= 0 and select.select([self.master], [], [], 0)[0]:
            try:
                piece = os.read(self.master, 65536)
            except OSError:  # Linux: EIO when the last process has closed the terminal
                break
            if not piece:
                break
            self.shown += piece
        return self.shown.decode("utf-8", "replace")

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def hang_up(self) -> None:
        os.close(self.master)
        self.master = -1

    def ended(self) -> bool:
        self.screen()  # a full terminal would hold the process up
        return self.child.poll() is not None
