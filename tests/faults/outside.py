"""From outside: `strace` sees the effects that the wrapper counted, in that order, and gives them real errors.

    python tests/faults/outside.py --scenario fold            its effects compared, and three points with real errors
    python tests/faults/outside.py --points 5 --seed 7        five points in each scenario

Prints one JSON object per scenario, as points.py does. Needs the right to trace an own child.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from filelock import lock_descriptor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults import points  # noqa: E402
from tests.faults.effects import ERRORS, Ended, Fault, FaultyOs, standing_in  # noqa: E402
from tests.faults.scenarios import copy_home  # noqa: E402

CALLS = {
    "open": "open", "openat": "open", "creat": "open", "read": "read", "readv": "read", "pread64": "pread",
    "preadv": "pread", "preadv2": "pread", "write": "write", "writev": "write", "pwrite64": "pwrite",
    "pwritev": "pwrite", "pwritev2": "pwrite", "sendfile": "write", "copy_file_range": "write", "fallocate": "write",
    "fsync": "fsync", "fdatasync": "fsync", "sync_file_range": "fsync", "rename": "rename", "renameat": "rename",
    "renameat2": "rename", "unlink": "unlink", "unlinkat": "unlink", "ftruncate": "ftruncate", "truncate": "truncate",
    "mkdir": "mkdir", "mkdirat": "mkdir", "mknod": "mkfifo", "mknodat": "mkfifo", "utimensat": "utime",
    "fchmod": "fchmod", "chmod": "chmod", "fchmodat": "chmod", "link": "link", "linkat": "link", "symlink": "symlink",
    "symlinkat": "symlink", "rmdir": "rmdir", "flock": "lock",
}  # fmt: skip
ATTACH_S = 60
BEGIN = "/the scenario begins here"
BOOT_ID = "/proc/sys/kernel/random/boot_id"


class RealOs(FaultyOs):
    """Counts the effects, and lets each happen, the syncs too."""

    def __init__(self, real_lock: Callable[..., bool]) -> None:
        super().__init__(real_lock)
        self.fsync: Any = partial(self._effect, "fsync", os.fsync)


class Call(NamedTuple):
    """A system call that touched the home: its name, and the how-manieth of that name it was in the process."""

    name: str
    number: int


def calls_in(log: str, folder: str) -> list[Call]:
    """The effects on files under that folder, from the outside."""
    counts: Counter[str] = Counter()
    found: list[Call] = []
    for line in log.splitlines():
        match = re.match(r"(?:\d+ +)?([a-z0-9_]+)\((.*)", line)
        if match is None or match[1] not in CALLS:
            continue
        name, rest = match.groups()
        counts[name] += 1
        if BEGIN in rest:
            found = []
        listing = name == "openat" and "O_DIRECTORY" in rest and "O_NONBLOCK" in rest  # os.listdir: no effect
        if (folder in rest or BOOT_ID in rest) and not listing and "LOCK_UN" not in rest:
            found.append(Call(name, counts[name]))
    return found


class OutsideWalk(points.Walk):
    """One scenario, watched by strace."""

    def _begin(self, store: Any, before: Callable[[ModuleType, Any], Any]) -> None:
        super()._begin(store, before)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(BEGIN)

    def traced(self, *more: str) -> tuple[Ended, str]:
        """The scenario on a fresh copy under strace with these further options; how it ended, and what strace saw."""
        copy_home(self.template, self.home)
        log = self.home.parent / "strace"
        log.unlink(missing_ok=True)
        tracer: list[subprocess.Popen[bytes]] = []

        def work(say: Callable[[bytes], None]) -> None:
            signal.sigwait([signal.SIGUSR1])
            accepted = 0
            try:
                with self._limits(), standing_in(self.q, RealOs(lock_descriptor)) as effects:
                    for _ in self._steps():
                        accepted += 1
            finally:
                say(b"accepted\n" * accepted)
            if not more:
                say(json.dumps(effects.trace).encode() + b"\n")

        def attach(pid: int) -> None:
            words = ["strace", "-f", "-y", "-s", "0", "-o", str(log), "-e", f"trace={','.join(CALLS)}", *more]
            tracer.append(subprocess.Popen([*words, "-p", str(pid)], stderr=subprocess.DEVNULL))
            deadline = time.monotonic() + ATTACH_S
            while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
                if tracer[0].poll() is not None or time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    raise SystemExit("strace cannot attach here")
                time.sleep(0.001)
            os.kill(pid, signal.SIGUSR1)

        ended = self._child(work, attach)
        tracer[0].wait()
        return ended, log.read_text()

    def compare(self) -> tuple[list[str], list[Call]]:
        """What the wrapper and strace do not agree on, and the calls."""
        ended, log = self.traced()
        counted = json.loads(ended.said.splitlines()[-1])
        calls = calls_in(log, str(self.home.parent))
        seen = [CALLS[call.name] for call in calls]
        if (counted := ["rename" if name == "replace" else name for name in counted]) == seen:
            return [], calls
        at = next((n for n, pair in enumerate(zip(counted, seen, strict=False)) if pair[0] != pair[1]), len(counted))
        return [
            f"wrapper: {len(counted)}, strace: {len(seen)}; from {at}: {counted[at : at + 4]}, {seen[at : at + 4]}"
        ], []

    def watch(self, number: int, dice: random.Random) -> points.Report:
        """Compare, then give real errors at so many points."""
        problems, calls = self.compare()
        chosen = dice.sample(range(len(calls)), min(number, len(calls)))
        for at in chosen:
            call, error = calls[at], dice.choice(ERRORS)
            ended, _ = self.traced("-e", f"inject={call.name}:error={error}:when={call.number}")
            fault = Fault(at + 1, error)
            problems += [f"{fault} ({call.name}): {text}" for text in self.judge(fault, ended)]
        return points.Report(self.scenario.name, 0, len(calls), len(chosen), 0, problems)


def walk(given: points.Given) -> points.Report:
    return OutsideWalk(given.q, given.scenario, given.folder).watch(given.words.points, given.dice)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])  # a child waits for it until strace is there
    number = {"type": int, "default": 3, "help": "real errors per scenario (3)"}
    sys.exit(points.run("Watch queuectl's file effects from outside, with strace.", walk, points=number))
