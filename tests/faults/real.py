"""What the suites with real processes share: a home, the commands given to it, and the job that tells on itself.

The oracle of these suites stands outside: each run of a job appends `start` and `end` to the job's file and holds the
job's lock, which all processes of the run share. Whoever finds the lock taken has seen two runs at the same time. So
does a job that finds the lock of a card taken, where the queue says that it holds that card.
"""

from __future__ import annotations

import fcntl
import json
import os
import py_compile
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

PROGRAM = Path(__file__).resolve().parents[2] / "queuectl.py"
HANG_S = 90.0


def compiled(program: Path, folder: Path) -> Path:
    """A compiled copy in that folder: a command starts in half the time, as it does where the program is installed."""
    return Path(py_compile.compile(str(program), str(folder / "queuectl.pyc"), doraise=True) or "")


JOB = """
import fcntl, os, signal, sys, time
folder, id, kind, seconds, run, worker = sys.argv[1:7]
name = os.path.join(folder, id)

def note(word):
    file = os.open(name + ".notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, f"{word} {run} {worker}\\n".encode())
    os.close(file)

def bare():
    words = [sys.executable, "-S", "-E", "-I", sys.argv[0], folder, id, "goes on", seconds, run, worker]
    os.execve(sys.executable, words, {})

def take(path, word):  # for as long as a process of this run lives
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(lock, True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note(word)

if kind != "goes on":
    take(name + ".lock", "overlap")
    note("start")
    cards = os.environ.get("QUEUECTL_UNITS_card", "").replace(",", " ").split()
    for card in cards:
        take(os.path.join(folder, f"card{card}.lock"), "shared")
    for word in sys.argv[7:]:
        if word == "alone":  # its tag has a limit of one
            take(os.path.join(folder, "alone.lock"), "overlap")
        elif word.startswith("cards="):  # so many it needs
            if len(cards) != int(word[6:]):
                note("miscounted")
        else:  # the job that it comes after
            try:
                fcntl.flock(os.open(os.path.join(folder, word + ".lock"), os.O_RDWR), fcntl.LOCK_SH | fcntl.LOCK_NB)
                assert "end" in open(os.path.join(folder, word + ".notes")).read()
            except (OSError, AssertionError):
                note("early")
if kind in ("deaf", "leaves"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if kind == "bare":
    bare()
if kind == "prints":
    os.write(1, b"some output\\n" * 500)
if kind in ("forks", "leaves", "leaves bare", "late"):
    if os.fork() == 0:
        if kind != "forks":
            os.setsid()
        if kind in ("leaves bare", "late"):
            bare()
        time.sleep(float(seconds))
        note("end")
        os._exit(0)
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
time.sleep(float(seconds))
note("end")
sys.exit(kind == "fails")
"""


class Note(NamedTuple):
    word: str  # start, end; overlap, shared, miscounted, early
    run: int
    worker: int  # the pid in its name


class Queue:
    """A home in `folder`, the commands given to it, and the notes of its jobs."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.program, self.folder, self.home = compiled(program, folder), folder, folder / "home"
        self.env = {**os.environ, "QUEUECTL_HOME": str(self.home)}
        self.script, self.said = folder / "job.py", folder / "said"
        self.script.write_text(JOB)
        self.said.touch()
        self.home.mkdir(mode=0o700)

    def start(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        more = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        return subprocess.Popen([sys.executable, str(self.program), *words], env=self.env, text=True, **more)

    def call(self, *words: str, text: str = "", codes: tuple[int, ...] = (0,)) -> str:
        child = self.start(*words, stdin=subprocess.PIPE)
        out, err = child.communicate(text, timeout=HANG_S)
        assert "Traceback" not in err, err
        assert child.returncode in codes, f"{words}: exit {child.returncode}: {out}{err}"
        return out

    def worker(self, count: int, *more: str) -> subprocess.Popen[str]:
        with self.said.open("ab") as out:
            return self.start("worker", "start", "--count", str(count), *more, stdout=out, stderr=out)

    def jobs(self) -> dict[str, dict[str, Any]]:
        return {job["id"]: job for job in json.loads(self.call("list", "--json"))}

    def counts(self) -> dict[str, int]:
        return dict(json.loads(self.call("status", "--json"))["jobs"])

    def command(self, kind: str, seconds: float, *more: str) -> str:
        """The shell line of a job that tells on itself; `more` is "alone", "cards=2", or the job that it
        comes after."""
        words = [sys.executable, "-S", "-E", "-I", str(self.script), str(self.folder)]
        return (
            f'exec {shlex.join(words)} "$QUEUECTL_JOB_ID" {shlex.quote(kind)} {seconds:.2f} '
            f'"${{QUEUECTL_RUN##*/}}" "${{QUEUECTL_WORKER%%-*}}" {shlex.join(more)}'
        )

    def notes(self, id: str) -> list[Note]:
        path = self.folder / f"{id}.notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [Note(word, int(run), int(worker)) for word, run, worker in map(str.split, lines)]

    def lives(self, id: str) -> bool:
        """Whether some process of the job holds its lock."""
        try:
            file = os.open(self.folder / f"{id}.lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(file)

    def faults_said(self) -> list[str]:
        """The lines of the workers that no worker should ever say."""
        said = self.said.read_text(errors="replace")
        return [line for line in said.splitlines() if "Traceback" in line or "please report" in line]
