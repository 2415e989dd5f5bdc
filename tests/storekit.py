"""What the tests of store and state machine share: a clock to turn, an `os` that fails on request, hand edits."""

from __future__ import annotations

import errno
import functools
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import queuectl as q


class Clock:
    """The wall clock, turned by hand."""

    def __init__(self, at: float = 1_800_000_000.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


class Watched(q.Store):
    """A store whose warnings can be read."""

    def __init__(self, home: Path, clock: Clock | None = None) -> None:
        self.warned: list[str] = []
        super().__init__(q.Home(str(home), self.warned.append, clock or Clock()), q.end_followers)


class Died(BaseException):
    """The process was killed: nothing catches this, and no effect follows it."""


EFFECTS = ("open", "write", "pwrite", "fsync", "rename", "unlink", "ftruncate", "mkdir", "chmod", "fchmod", "mkfifo")
Act = Callable[[str, Callable[..., Any], tuple[Any, ...]], Any]


class Effects:
    """Stands in for `os` in queuectl: counts the effects, and lets `act` do what happens at those it is asked about.

    `when(name, args)` says which; `act(name, real, args)` does the call, half of it, or raises.
    """

    def __init__(self, when: Callable[[str, tuple[Any, ...]], bool], act: Act, sync: bool = False) -> None:
        self.when, self.act, self.sync = when, act, sync
        self.count = 0
        self.dead = False
        self.undo: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return functools.partial(self._effect, name, real) if name in EFFECTS else real

    def _effect(self, name: str, real: Callable[..., Any], *args: Any) -> Any:
        if self.dead:
            raise Died
        self.count += 1
        if self.when(name, args):
            try:
                return self.act(name, real, args)
            except Died:
                self.dead = True
                raise
        if name == "fsync" and not self.sync:
            return None
        return real(*args)


def dies(name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    raise Died


def dies_half_way(name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Killed in the middle of a write, or just after whatever else it was."""
    if name in ("write", "pwrite"):
        fd, data, *rest = args
        real(fd, bytes(data)[: len(data) // 2], *rest)
    else:
        real(*args)
    raise Died


def fails(number: int) -> Act:
    def act(name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        raise OSError(number, os.strerror(number))

    return act


NO_SPACE = fails(errno.ENOSPC)
IO_ERROR = fails(errno.EIO)


def close_store(store: q.Store) -> None:
    """Close every file of a store. The program leaves that to its end."""
    store.forget()
    q.close_fd(store.home._lock_fd)
    store.home._lock_fd = -1


def enqueue(store: q.Store, id: str | None = None, command: str = "true", **said: Any) -> q.Job:
    return q.enqueue_job(store, {"command": command, "id": id or "", "cwd": "/", **said})[0]


def bulk(store: q.Store, *lines: str, **options: Any) -> q.Bulk:
    return q.enqueue_bulk(store, [line.encode() for line in lines], {"cwd": "/", **options}, keep_records=False)


OK = q.Outcome("exited", 0)
FREE = q.Units({}, ())  # no resource has a limit
BAD = q.Outcome("exited", 1)
HANDED_BACK = q.Outcome("handed_back")


def claim_turn(store: q.Store, worker: str = "w", slot: int | None = None) -> q.Turn:
    """A turn in a slot of its own: what a slot still holds when it takes its turn is given back (W1)."""
    return q.take_turn(store, worker, next(_slots) if slot is None else slot, None, True, q.TagFilter())


def claim(store: q.Store, worker: str = "w", slot: int | None = None) -> q.Job | None:
    """The next job, in a slot of its own."""
    return claim_turn(store, worker, slot).claimed


_slots = itertools.count(100)


def report(store: q.Store, job: q.Job, outcome: q.Outcome) -> q.Job | None:
    return q.take_turn(store, job.worker or "w", job.slot or 0, (job, outcome), False, q.TagFilter()).reported


def run_next(store: q.Store, outcome: q.Outcome = OK) -> q.Job:
    job = claim(store)
    assert job is not None
    ended = report(store, job, outcome)
    assert ended is not None
    return ended


def idle_worker(store: q.Store, boot_id: str = "b") -> q.Worker:
    """A worker whose threads do not run: its chores are called one by one."""
    store.follow()
    worker = q.Worker(store, 1, q.TagFilter(), False, lambda text: None, q.attempt_line)
    header = {
        "pid": 1, "started_at": store.home.now(), "boot_id": boot_id, "lock": "1.1", "threads": 1, "trouble": None,
    }  # fmt: skip
    worker._executor = q.Executor(os.environb)
    worker.file = store.home.create_worker(worker.name, header)
    return worker


def listing(store: q.Store) -> dict[str, q.Job]:
    """Every job, as this store knows it; a light one (it only added) has to look first."""
    if store.journal is None or store.is_light:
        store.follow()
    return {job.id: job for job in store.jobs()}


def edit(
    home: Path, change: Callable[[list[Any]], Any], name: str = "jobs", indent: int | None = 2, at: float | None = None
) -> None:
    """What a person does with an editor: a new file in the place of the old one, saved at that time."""
    path = home / f"{name}.json"
    new = home / f"{name}.json~"
    new.write_text(json.dumps(change(json.loads(path.read_text())), indent=indent))
    os.chmod(new, 0o600)
    if at is not None:
        os.utime(new, (at, at))
    os.rename(new, path)


def journal(home: Path) -> Path:
    return home / ".queuectl" / "journal.jsonl"


def check_times(store: q.Store, now: str) -> None:
    """The oldest job that waits and the next time that one waits for, from every record anew."""
    store.home.config()  # as a claim does: read before the order is asked for
    order = q.claim_order(store, now)
    going = {job.id: job.seq for job in store.jobs() if job.state not in q.OVER}
    free = [job for job in store.jobs() if all(going.get(id, job.seq) >= job.seq for id in q.parents_of(job))]
    waiting = [job for job in free if job.state in q.WAITING and not job.held]
    ready = [job for job in waiting if q.is_ready(job, now, store.home.config().backoff_max)]
    first = min(ready, key=lambda job: job.seq, default=None)
    assert order.oldest() == (first.created_at if first else None)
    assert order.next_run_at() == min((job.run_at for job in waiting if job not in ready and job.run_at), default=None)
