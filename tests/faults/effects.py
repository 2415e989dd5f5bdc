"""What stands in for the name `os` inside queuectl: counts each file effect and makes the chosen one fail.

STORE makes every file effect through `os.` and takes its locks by `lock_descriptor`. A test replaces those two names
in the module, so the program needs no hooks. A killed process is a forked child that truly dies by SIGKILL.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

EFFECTS = (
    "open", "read", "pread", "write", "pwrite", "fsync", "rename", "unlink", "ftruncate", "mkdir", "mkfifo", "utime",
    "fchmod", "chmod", "replace", "link", "rmdir", "truncate",
)  # fmt: skip
WRITES = ("write", "pwrite")
ERRORS = ("ENOSPC", "EIO", "EACCES", "EMFILE")
HANG_S = 60  # whatever takes longer hangs
MEMORY = "/dev/shm"  # where homes are made by the thousand, in a fifth of the time; nothing here is really synced
SCRATCH = MEMORY if os.access(MEMORY, os.W_OK) else None


class Fault(NamedTuple):
    """What happens at effect number `at`, counted from 1; `lasting`: at each later effect of that kind too."""

    at: int
    what: str  # "killed before", "half then killed", "half then ENOSPC", "short", or the name of an error
    lasting: bool = False

    def __str__(self) -> str:
        return f"{self.what}{' from' if self.lasting else ' at'} effect {self.at}"


def faults_at(number: int, effect: str) -> Iterator[Fault]:
    """Every fault that effect number `number`, of that kind, can meet."""
    yield Fault(number, "killed before")
    yield Fault(number, "killed after")
    if effect in WRITES:
        yield Fault(number, "half then killed")
        yield Fault(number, "half then ENOSPC")
        yield Fault(number, "short")
        yield Fault(number, "short", lasting=True)
    for error in ERRORS:
        yield Fault(number, error)
        yield Fault(number, error, lasting=True)


def all_faults(trace: Iterable[str]) -> list[Fault]:
    """Each fault at each effect of a dry run."""
    return [fault for number, effect in enumerate(trace, 1) for fault in faults_at(number, effect)]


class FaultyOs:
    """`os`, but for the effects: they are counted in `trace`, and the one that `fault` names goes wrong.

    Nothing is really synced: a killed process loses no page of the system's cache, and these tests make many.
    """

    def __init__(self, real_lock: Callable[..., bool], fault: Fault | None = None) -> None:
        self.trace: list[str] = []
        self.refuses_sync = False  # the next one; for scenarios that begin with it
        self._fault = fault
        self._struck: str | None = None  # the kind of effect that the fault met
        for name in EFFECTS:
            setattr(self, name, partial(self._effect, name, _no_sync if name == "fsync" else getattr(os, name)))
        self.lock = partial(self._effect, "lock", real_lock)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _effect(self, name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
        if name == "fsync" and self.refuses_sync:
            self.refuses_sync = False
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.trace.append(name)
        fault, number = self._fault, len(self.trace)
        if fault is None or number < fault.at:
            return real(*args, **more)
        if number == fault.at:
            self._struck = name
        elif not (fault.lasting and name == self._struck):
            return real(*args, **more)
        return self._fail(fault.what, name, real, *args, **more)

    def _fail(self, what: str, name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
        if what == "killed after":
            real(*args, **more)
        if what.startswith(("half", "short")):
            fd, data, *rest = args
            half = bytes(data)[: max(what == "short", len(data) // 2)]
            done = real(fd, half, *rest)
            if what == "short":
                return done
        if what.endswith(("killed", "killed before", "killed after")):
            die()
        number = getattr(errno, what.split()[-1])
        path = args[0] if args and isinstance(args[0], str) else None
        raise OSError(number, os.strerror(number), path)


def _no_sync(fd: int) -> None:
    os.fstat(fd)


def die() -> None:
    """End this process as a crash would: no handler, no `finally`, no buffer is run or written."""
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def standing_in(module: ModuleType, effects: FaultyOs) -> Iterator[FaultyOs]:
    """Inside, `os` and `lock_descriptor` of that module are these."""
    real_os, real_lock = module.os, module.lock_descriptor
    module.os, module.lock_descriptor = effects, effects.lock  # type: ignore[attr-defined]
    try:
        yield effects
    finally:
        module.os, module.lock_descriptor = real_os, real_lock  # type: ignore[attr-defined]


class Ended(NamedTuple):
    """How a forked child ended: what it said, and the signal that killed it, if one did."""

    said: bytes
    signal: int | None


def in_child(
    work: Callable[[Callable[[bytes], None]], None], meanwhile: Callable[[int], None] = lambda pid: None
) -> Ended:
    """Call `work(say)` in a forked child; what it said before its end, and how it ended. `meanwhile(pid)` is called
    here before the child's end is waited for.

    The child has its own copy of everything and ends without running this process's exit handlers.
    """
    assert threading.active_count() == 1, "fork copies only the calling thread: other threads' locks would stay held"
    source, target = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(source)
            nowhere = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(nowhere, fd)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(HANG_S)
            work(lambda text: _write(target, text))
            code = 0
        finally:
            os._exit(code)
    os.close(target)
    meanwhile(pid)
    said = b""
    while piece := os.read(source, 1 << 16):
        said += piece
    os.close(source)
    status = os.waitpid(pid, 0)[1]
    return Ended(said, os.WTERMSIG(status) if os.WIFSIGNALED(status) else None)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
