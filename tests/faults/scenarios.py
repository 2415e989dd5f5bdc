"""The scenarios that the fault suites walk through: a starting home and an operation on it.

A starting home is built once and copied for every point. An operation is a generator over a fresh store: each `yield`
says "this change is accepted", as a command does that exits 0; what comes after the last one changes nothing more.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.faults.effects import Fault, FaultyOs, in_child, standing_in

NOW_S = 1_800_000_000.0  # every clock here stands still: so two runs of one operation give the same records
WORKER = "4711-abcdef"

Build = Callable[[ModuleType, str], None]
Steps = Callable[[ModuleType, Any], Iterator[None]]


@dataclass(frozen=True)
class Scenario:
    """An operation on a starting home."""

    name: str
    build: Build
    steps: Steps
    before: Callable[[ModuleType, Any], Any] | None = None  # in the child, before the faults begin
    limits: tuple[tuple[str, int], ...] = ()  # fixed limits of the module, made small
    is_edited: bool = False  # by hand, before it starts; or a crash may leave new arrays beside the old journal
    is_worker: bool = False  # may fail after the change is accepted: a worker tries again


def open_store(q: ModuleType, home: str | Path, warn: Callable[[str], None] = lambda text: None) -> Any:
    return q.open_store(str(home), warn, clock=lambda: NOW_S)


def close_store(store: Any) -> None:
    store.forget()
    if store.home._lock_fd >= 0:
        os.close(store.home._lock_fd)
        store.home._lock_fd = -1


def copy_home(source: Path, target: Path) -> None:
    """A home as it stands, arrays and settings with their fingerprints: those are never changed in place (S3)."""
    shutil.rmtree(target, ignore_errors=True)
    if not source.exists():
        return
    for folder, _, names in os.walk(source):
        there = target / os.path.relpath(folder, source)
        there.mkdir(mode=0o700)
        for name in names:
            path = os.path.join(folder, name)
            if name in ("jobs.json", "dlq.json"):
                os.link(path, there / name)
            elif name.endswith(".wake"):
                os.mkfifo(there / name, 0o600)
            else:
                shutil.copy2(path, there / name)


def kill_at(q: ModuleType, home: str, effect: str, number: int, steps: Steps, what: str = "killed before") -> None:
    """Let `steps` die at the `number`-th effect of that kind; for homes that a crash left."""
    trial = home + ".trial"
    copy_home(Path(home), Path(trial))
    real = q.lock_descriptor
    with standing_in(q, FaultyOs(real)) as dry:
        list(steps(q, store := open_store(q, trial)))
    close_store(store)
    shutil.rmtree(trial)
    at = [place for place, kind in enumerate(dry.trace, 1) if kind == effect][number - 1]

    def work(_: Callable[[bytes], None]) -> None:
        with standing_in(q, FaultyOs(real, Fault(at, what))):
            list(steps(q, open_store(q, home)))

    assert in_child(work).signal == 9


# -- Starting homes


def nothing(q: ModuleType, home: str) -> None:
    """No home yet."""


def empty_dir(q: ModuleType, home: str) -> None:
    os.mkdir(home, 0o700)


def _turn(q: ModuleType, store: Any, done: Any = None, claim: bool = True, slot: int = 0) -> Any:
    return q.take_turn(store, WORKER, slot, done, claim, q.TagFilter())


def exit_code(q: ModuleType, code: int) -> Any:
    return q.Outcome("exited", exit_code=code)


def fill(q: ModuleType, store: Any) -> None:
    """One or two jobs in each state; `run` is processing for a worker that is dead."""
    for id, retries, code in (("done", 3, 0), ("gone", 3, 0), ("fail", 3, 1), ("dead", 1, 7), ("rip", 1, 9)):
        q.enqueue_job(store, dict(command="true", id=id, max_retries=retries, unique=f"key-{id}", cwd="/"))
        _turn(q, store, (_turn(q, store).claimed, exit_code(q, code)), claim=False)
    q.enqueue_job(store, dict(command="sleep 1", id="run", unique="key-run", cwd="/"))
    _turn(q, store)
    q.enqueue_job(store, dict(command="true", id="a", unique="key-a", tags=["t"], env={"A": "ä"}, cwd="/"))
    q.enqueue_job(store, dict(command="true", id="b", priority=0, delay=60, cwd="/"))
    q.enqueue_job(store, dict(command='echo "x\ty"', id="c", cwd="/"))


def small(q: ModuleType, home: str) -> None:
    """All states, folded."""
    store = open_store(q, home)
    fill(q, store)
    store.fold()
    close_store(store)


def family(q: ModuleType, home: str) -> None:
    """`run` is processing; others come after it and after each other, some in the arrays and some in the journal."""
    small(q, home)
    store = open_store(q, home)
    q.enqueue_job(store, dict(command="true", id="child", after=["run"], tags=["gpu"], cwd="/"))
    q.enqueue_job(store, dict(command="true", id="any", after=[{"id": "run", "any": True}], tags=["gpu"], cwd="/"))
    store.fold()
    q.enqueue_job(store, dict(command="true", id="grandchild", after=["child"], cwd="/"))
    q.enqueue_job(store, dict(command="true", id="stillborn", after=["dead"], cwd="/"))
    close_store(store)


def limited(q: ModuleType, home: str) -> None:
    family(q, home)
    store = open_store(q, home)
    q.set_setting(store, "limits", "gpu=1,t=0")
    close_store(store)


def unfolded(q: ModuleType, home: str) -> None:
    """All states in the arrays, and in the journal changes to both."""
    small(q, home)
    store = open_store(q, home)
    q.enqueue_job(store, dict(command="true", id="new", cwd="/"))
    q.cancel_jobs(store, ["a"])
    q.revive_jobs(store, ["dead"])
    q.purge_dead(store, ["rip"])
    with store.transaction() as change:
        change.delete(change.job("gone"))
    close_store(store)


def cards(q: ModuleType, home: str) -> None:
    """There are three cards. `run` holds two of them for a worker that is dead; `two`, `one` and `tagged` wait for
    cards, `kept` is held, and in the journal `plain` is."""
    store = open_store(q, home)
    q.set_setting(store, "limits", "card=3,t=1")
    q.enqueue_job(store, dict(command="true", id="run", needs={"card": 2}, cwd="/"))
    assert _turn(q, store).claimed.units == {"card": [0, 1]}
    q.enqueue_job(store, dict(command="true", id="two", needs={"card": 2}, cwd="/"))
    q.enqueue_job(store, dict(command="true", id="one", needs={"card": 1}, tags=["t"], cwd="/"))
    q.enqueue_job(store, dict(command="true", id="kept", needs={"card": 1}, held=True, cwd="/"))
    q.enqueue_job(store, dict(command="true", id="plain", cwd="/"))
    store.fold()
    q.enqueue_job(store, dict(command="true", id="tagged", tags=["t"], cwd="/"))
    q.edit_jobs(store, ["plain"], {"held": True})
    close_store(store)


def edited_cards(q: ModuleType, home: str) -> None:
    """By hand: the cards of the running job are taken away, and a waiting job is held."""
    cards(q, home)
    jobs = [{name: job[name] for name in job if name != "units"} for job in _records(home, "jobs.json")]
    _edit(home, "jobs.json", [{**job, "held": True} if job["id"] == "two" else job for job in jobs])


def torn_cards(q: ModuleType, home: str) -> None:
    """Half a line at the journal's end, behind that of the claim."""
    cards(q, home)
    kill_at(q, home, "write", 1, enqueue, "half then killed")


def _with(setting: str, value: str, begin: Build = small) -> Build:
    def build(q: ModuleType, home: str) -> None:
        begin(q, home)
        store = open_store(q, home)
        q.set_setting(store, setting, value)
        close_store(store)

    return build


def crashed_in_fold(number: int, what: str = "killed before") -> Build:
    """A fold that died at its `number`-th rename: of dlq.json, jobs.json, the journal."""

    def build(q: ModuleType, home: str) -> None:
        unfolded(q, home)
        kill_at(q, home, "rename", number, fold, what)

    return build


def _records(home: str, name: str) -> list[dict[str, Any]]:
    return list(json.loads(Path(home, name).read_text()))


def _edit(home: str, name: str, records: Sequence[Any]) -> None:
    Path(home, name).write_text(json.dumps(records, indent=2))


def edited(q: ModuleType, home: str) -> None:
    """By hand: a job added, one changed, one deleted."""
    small(q, home)
    jobs = _records(home, "jobs.json")
    jobs = [{**job, "priority": 7} if job["id"] == "a" else job for job in jobs if job["id"] != "c"]
    _edit(home, "jobs.json", [*jobs, {"command": "echo by hand"}, {"id": "hand", "command": "true"}])


def edited_journal(q: ModuleType, home: str) -> None:
    """By hand, while the journal held changes of the same jobs."""
    unfolded(q, home)
    jobs = _records(home, "jobs.json")
    _edit(home, "jobs.json", [{**job, "command": "false"} for job in jobs])


def enqueue_overruled(q: ModuleType, store: Any) -> Iterator[None]:
    """After `edited_journal`: the journal's jobs stay as it has them, the others are as the edit has them."""
    store.follow()
    jobs = store.find_jobs(["a", "gone", "c"])
    assert [(job.id, job.state, job.command) for job in jobs.values()] == [
        ("a", "dead", "true"),
        ("c", "pending", "false"),
    ]
    yield from enqueue(q, store)


def edited_dead(q: ModuleType, home: str) -> None:
    """By hand: the state of a waiting job set to dead, in jobs.json."""
    small(q, home)
    jobs = _records(home, "jobs.json")
    over = {"state": "dead", "finished_at": "2026-11-24T08:15:30.123Z"}
    _edit(home, "jobs.json", [{**job, **over} if job["id"] == "a" else job for job in jobs])


def edited_revived(q: ModuleType, home: str) -> None:
    """By hand: a dead letter's state set to pending, in dlq.json."""
    small(q, home)
    new = {"id": "dead", "command": "true", "state": "pending"}
    _edit(home, "dlq.json", [new if job["id"] == "dead" else job for job in _records(home, "dlq.json")])


def backup(q: ModuleType, home: str) -> None:
    """The three files restored without their journal, and a dead job put into jobs.json by hand."""
    small(q, home)
    shutil.rmtree(os.path.join(home, ".queuectl"))
    extra = {"id": "late", "command": "true", "state": "dead"}
    _edit(home, "jobs.json", [*_records(home, "jobs.json"), extra])


def edited_parent(q: ModuleType, home: str) -> None:
    """By hand: a dead job that waiting ones need, and a new one that comes after it."""
    family(q, home)
    store = open_store(q, home)
    store.fold()
    close_store(store)
    jobs = _records(home, "jobs.json")
    over = {"state": "dead", "finished_at": "2026-11-24T08:15:30.123Z"}
    jobs = [{**job, **over} if job["id"] == "child" else job for job in jobs]
    _edit(home, "jobs.json", [*jobs, {"id": "hand", "command": "true", "after": ["child"]}])


def edited_moved(q: ModuleType, home: str) -> None:
    """By hand: a waiting job moved to dlq.json, a dead letter to jobs.json, and in each a new job without an id, at the
    same place and time."""
    small(q, home)
    jobs, dead = _records(home, "jobs.json"), _records(home, "dlq.json")
    over = {"state": "dead", "finished_at": "2026-11-24T08:15:30.123Z"}
    moved = [{**job, **over} for job in jobs if job["id"] == "a"]
    _edit(home, "dlq.json", [{"command": "false"}, *(job for job in dead if job["id"] != "dead"), *moved])
    new = {"id": "dead", "command": "true", "state": "pending"}
    _edit(home, "jobs.json", [{"command": "true"}, *(job for job in jobs if job["id"] != "a"), new])
    for name in ("jobs.json", "dlq.json"):
        os.utime(os.path.join(home, name), (NOW_S, NOW_S))


def restored(q: ModuleType, home: str) -> None:
    """The arrays of a backup in the place of newer ones, beside a journal that holds changes of some of their jobs."""
    small(q, home)
    old = {name: Path(home, name).read_bytes() for name in ("jobs.json", "dlq.json")}
    store = open_store(q, home)
    q.cancel_jobs(store, ["b"])
    q.revive_jobs(store, ["rip"])
    store.fold()
    q.enqueue_job(store, dict(command="true", id="new", cwd="/"))
    q.cancel_jobs(store, ["c"])
    close_store(store)
    for name, data in old.items():
        os.unlink(os.path.join(home, name))
        Path(home, name).write_bytes(data)


def touched(q: ModuleType, home: str) -> None:
    """The same bytes under other fingerprints, as after `cp -r`."""
    unfolded(q, home)
    for name in ("jobs.json", "dlq.json"):
        data = Path(home, name).read_bytes()
        os.unlink(os.path.join(home, name))
        Path(home, name).write_bytes(data)


def torn(q: ModuleType, home: str) -> None:
    """Half a line at the journal's end."""
    unfolded(q, home)
    kill_at(q, home, "write", 1, enqueue, "half then killed")


def torn_bulk(q: ModuleType, home: str) -> None:
    """Half of a bulk's line at the journal's end."""
    unfolded(q, home)
    kill_at(q, home, "write", 1, bulk_of_two, "half then killed")


def crashed_in_bulk(number: int) -> Build:
    """A bulk that went straight into jobs.json and died at its `number`-th rename."""

    def build(q: ModuleType, home: str) -> None:
        unfolded(q, home)
        kill_at(q, home, "rename", number, bulk)

    return build


def crashed_worker(begin: Build) -> Build:
    """The dead worker left its file."""

    def build(q: ModuleType, home: str) -> None:
        begin(q, home)
        store = open_store(q, home)
        file = live_worker(q, store)
        os.close(file.fd)
        os.close(file.wake_fd)
        close_store(store)

    return build


# -- Operations


def live_worker(q: ModuleType, store: Any) -> Any:
    header = {"pid": 1, "started_at": store.home.now(), "boot_id": "x", "lock": "x", "threads": 1, "trouble": None}
    return store.home.create_worker(WORKER, header)


def enqueue(q: ModuleType, store: Any) -> Iterator[None]:
    q.enqueue_job(store, dict(command="echo one", cwd="/"))
    yield
    store.fold_or_sync()


def enqueue_twice(q: ModuleType, store: Any) -> Iterator[None]:
    """As `--stream` does: after a failure the same store goes on."""
    for command in ("echo one", "echo two"):
        q.enqueue_job(store, dict(command=command, cwd="/"))
        yield
        store.sync()
    store.fold_or_sync()


def enqueue_id(q: ModuleType, store: Any) -> Iterator[None]:
    q.enqueue_job(store, dict(command="echo one", id="given", unique="key-given", cwd="/"))
    yield
    store.fold_or_sync()


def enqueue_duplicate(q: ModuleType, store: Any) -> Iterator[None]:
    assert q.enqueue_job(store, dict(command="echo one", unique="key-a", cwd="/"))[1]
    yield
    store.fold_or_sync()


def enqueue_freed(q: ModuleType, store: Any) -> Iterator[None]:
    """The key's holder is over: a new job gets it."""
    assert not q.enqueue_job(store, dict(command="echo one", unique="key-done", cwd="/"))[1]
    yield
    store.fold_or_sync()


def enqueue_cli(q: ModuleType, store: Any) -> Iterator[None]:
    cli(q, store.home.path, "enqueue", '{"id":"job1","command":"echo test"}')
    yield


def enqueue_after(q: ModuleType, store: Any) -> Iterator[None]:
    """After a job of the arrays, which goes into the line too, and one of the journal; dead from the start."""
    q.enqueue_job(store, dict(command="echo one", after=["done", "grandchild"], cwd="/"))
    yield
    store.sync()
    q.enqueue_job(store, dict(command="echo two", after=["stillborn"], cwd="/"))
    yield
    store.fold_or_sync()


def _add(q: ModuleType, store: Any, lines: Sequence[bytes], straight: bool) -> None:
    """Add a bulk: straight into a new jobs.json, or as one line of the journal."""
    array = Path(store.home.path, "jobs.json")
    before = array.stat().st_ino
    assert len(q.enqueue_bulk(store, lines, {"cwd": "/"}, False).ids) == len(lines)
    assert (array.stat().st_ino != before) == straight


def bulk_after(q: ModuleType, store: Any) -> Iterator[None]:
    """Some of them dead from the start."""
    jobs = [{"id": f"n{number}", "after": ["dead" if number == 2 else f"n{number - 1}"]} for number in range(1, 6)]
    jobs[0]["after"] = ["run"]
    _add(q, store, [json.dumps({"command": "true", **job}).encode() for job in jobs], straight=False)
    yield
    store.fold_or_sync()


def bulk(q: ModuleType, store: Any) -> Iterator[None]:
    lines = [b"echo %d" % number for number in range(9)]
    _add(q, store, [*lines, b'{"id": "last", "command": "x", "delay": 5}'], straight=True)
    yield
    store.fold_or_sync()


def bulk_of_two(q: ModuleType, store: Any) -> Iterator[None]:
    """So small that it is no quarter of the arrays."""
    _add(q, store, [b"echo 1", b"echo 2"], straight=False)
    yield
    store.fold_or_sync()


def enqueue_renewed(q: ModuleType, store: Any) -> Iterator[None]:
    """The disk refuses the first sync: the journal is copied to a fresh file."""
    q.enqueue_job(store, dict(command="echo one", cwd="/"))
    q.os.refuses_sync = True
    store.sync()
    yield
    store.fold_or_sync()


def revive_renewed(q: ModuleType, store: Any) -> Iterator[None]:
    """As `enqueue_renewed`; but for the journal's line the job would be in neither array while they are renamed."""
    q.revive_jobs(store, ["dead"])
    q.os.refuses_sync = True
    store.sync()
    yield
    store.fold_or_sync()


def enqueue_unfolded(q: ModuleType, store: Any) -> Iterator[None]:
    """No array can be written. What was taken from the edit is not appended again at each look."""
    real = q.os.open

    def refused(path: str, *args: Any, **more: Any) -> int:
        if path.endswith(("jobs.json.new", "dlq.json.new")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return int(real(path, *args, **more))

    q.os.open = refused
    store.follow()
    size = os.stat(store.journal_path).st_size
    for _ in range(2):
        other = open_store(q, store.home.path)
        other.follow()
        close_store(other)
    assert os.stat(store.journal_path).st_size == size, "the journal grows at each look"
    yield
    q.enqueue_job(store, dict(command="echo one", cwd="/"))
    yield
    q.os.open = real
    store.fold_or_sync()


def claim(q: ModuleType, store: Any) -> Iterator[None]:
    assert _turn(q, store).claimed.id == "a"
    yield
    store.fold()


def report(code: int, more: bool) -> Steps:
    """The end of the attempt that runs; with `more` the next claim in the same transaction."""

    def steps(q: ModuleType, store: Any) -> Iterator[None]:
        store.follow()
        turn = _turn(q, store, (store.get("run"), exit_code(q, code)), claim=more)
        assert turn.reported is not None and (turn.claimed is not None) == more
        yield
        store.sync()
        store.fold()

    return steps


def report_parent(code: int) -> Steps:
    """The end of a job that others come after, and the claim of what it allows."""

    def steps(q: ModuleType, store: Any) -> Iterator[None]:
        store.follow()
        turn = _turn(q, store, (store.get("run"), exit_code(q, code)))
        assert turn.claimed is not None
        yield
        if turn.claimed.tags:
            assert turn.claimed.id in ("child", "any")
        _turn(q, store, (turn.claimed, exit_code(q, 0)))
        yield
        store.sync()
        store.fold()

    return steps


def cancel_family(q: ModuleType, store: Any) -> Iterator[None]:
    """A waiting parent and who needs it, back again, and the purge that keeps who is named."""
    cli(q, store.home.path, "cancel", "child")
    yield
    cli(q, store.home.path, "dlq", "retry", "child")
    yield
    cli(q, store.home.path, "purge", "--yes")
    yield


def work(q: ModuleType, store: Any) -> Iterator[None]:
    """A worker's start, a claim and a report."""
    file = live_worker(q, store)
    claimed = _turn(q, store).claimed
    yield
    file.write_row(0, {"job": claimed.id, "run": claimed.runs})
    file.write_header(stopping=True)
    second = _turn(q, store, (claimed, exit_code(q, 0))).claimed
    yield
    _turn(q, store, (second, exit_code(q, 1)))
    yield
    store.sync()
    file.wake()
    q.os.read(file.wake_fd, q.WAKE_BYTES)
    store.fold()
    store.home.forget_worker(WORKER)
    file.close()


def work_on(q: ModuleType, store: Any) -> Iterator[None]:
    """A worker tries each turn again, with the same store, after an error."""
    done = None
    for _ in range(3):
        try:
            claimed = _turn(q, store, done).claimed
        except q.StoreError:
            claimed = _turn(q, store, done).claimed
        done = claimed and (claimed, exit_code(q, 0))
        yield
    store.fold()


def recovery(q: ModuleType, store: Any) -> Iterator[None]:
    store.follow()
    fd = store.home.lock_dead_worker(WORKER)
    assert fd is not None
    assert q.recover(store, store.processing["run"], False) is not None
    yield
    store.home.forget_worker(WORKER)
    if fd >= 0:
        os.close(fd)
    store.fold()


def claim_cards(q: ModuleType, store: Any) -> Iterator[None]:
    """One card is free, and the first that waits needs two."""
    claimed = _turn(q, store, slot=1).claimed
    assert (claimed.id, claimed.units) == ("one", {"card": [2], "t": [0]})
    yield
    assert _turn(q, store, slot=2).claimed is None
    store.fold()


def report_cards(q: ModuleType, store: Any) -> Iterator[None]:
    """The end of the job that holds two cards lets the next one have them, in the same transaction."""
    store.follow()
    turn = _turn(q, store, (store.get("run"), exit_code(q, 1)))
    assert turn.frees and (turn.claimed.id, turn.claimed.units) == ("two", {"card": [0, 1]})
    yield
    assert _turn(q, store, slot=1).claimed.units == {"card": [2], "t": [0]}
    yield
    store.sync()
    store.fold()


def recover_cards(q: ModuleType, store: Any) -> Iterator[None]:
    """Its cards are free only with the recovery; a limit that was lowered meanwhile takes none away."""
    store.follow()
    fd = store.home.lock_dead_worker(WORKER)
    assert fd is not None
    assert _turn(q, store, slot=1).claimed.units == {"card": [2], "t": [0]}
    yield
    store.sync()  # else a power loss could take the claim and leave the setting
    q.set_setting(store, "limits", "card=2,t=1")
    yield
    assert q.recover(store, store.processing["run"], False).units is None
    yield
    assert _turn(q, store, slot=2).claimed is None, "it needs two, and one of two is in use"
    store.home.forget_worker(WORKER)
    if fd >= 0:
        os.close(fd)
    store.fold()


def hold_and_release(q: ModuleType, store: Any) -> Iterator[None]:
    cli(q, store.home.path, "hold", "two", "one")
    yield
    cli(q, store.home.path, "release", "kept", "plain", "two")
    yield


def claim_after_edit(q: ModuleType, store: Any) -> Iterator[None]:
    """The cards are as the journal has them."""
    store.follow()
    assert store.get("run").units == {"card": [0, 1]} and store.get("two").held
    yield from claim_cards(q, store)


def mend_cards(q: ModuleType, store: Any) -> Iterator[None]:
    yield from mend(q, store)
    assert store.get("run").units == {"card": [0, 1]}
    assert _turn(q, store, slot=1).claimed.units == {"card": [2], "t": [0]}
    yield


def cancel(q: ModuleType, store: Any) -> Iterator[None]:
    cli(q, store.home.path, "cancel", "a", "fail")
    yield


def cancel_running(q: ModuleType, store: Any) -> Iterator[None]:
    q.cancel_jobs(store, ["run"])
    yield
    store.fold_or_sync()


def cancel_recovered(q: ModuleType, store: Any) -> Iterator[None]:
    """A running job of a dead worker: marked, then recovered, which makes it dead."""
    q.cancel_jobs(store, ["run"])
    yield
    store.sync()
    assert q.recover(store, store.processing["run"], False).state == "dead"
    yield
    store.fold_or_sync()


def revive(q: ModuleType, store: Any) -> Iterator[None]:
    cli(q, store.home.path, "dlq", "retry", "dead", "rip")
    yield


def edit_two(q: ModuleType, store: Any) -> Iterator[None]:
    cli(q, store.home.path, "edit", "new", "fail", "--priority", "3", "--at", "+2h", "--env", "B=2")
    yield


def rerun(q: ModuleType, store: Any) -> Iterator[None]:
    cli(q, store.home.path, "rerun", "dead", "run", "a")
    yield


def purge(q: ModuleType, store: Any) -> Iterator[None]:
    assert len(q.purge_jobs(store, q.OVER).gone) > 1
    yield
    store.fold_or_sync()


def purge_everything(q: ModuleType, store: Any) -> Iterator[None]:
    cli(q, store.home.path, "purge", "--yes")
    yield


def mend(q: ModuleType, store: Any) -> Iterator[None]:
    assert q.examine(store)
    q.mend(store)
    yield


def purge_old(q: ModuleType, store: Any) -> Iterator[None]:
    """As a worker does."""
    gone = q.purge_completed(store, store.home.now(), 10)
    assert sorted(job.id for job in gone) == ["done", "gone"]
    yield
    store.home.write_clock_mark(q.ClockMark("x", 1, 0), 10)
    store.sync()
    store.fold()


def config_set(q: ModuleType, store: Any) -> Iterator[None]:
    cli(q, store.home.path, "config", "set", "max-retries", "5")
    yield


def pause(q: ModuleType, store: Any) -> Iterator[None]:
    cli(q, store.home.path, "pause")
    yield
    cli(q, store.home.path, "resume")
    yield


def fold(q: ModuleType, store: Any) -> Iterator[None]:
    store.fold()
    yield


def cli(q: ModuleType, home: str, *args: str) -> None:
    """A command in this process. Raises what it said: StoreError for exit 3."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = super(q.Group, q.cli).main(["--home", home, *args], standalone_mode=False)  # ours would exit
    if code == q.EXIT_STORAGE:
        raise q.StoreError(" ".join(said.getvalue().splitlines()))
    assert not code, (code, said.getvalue())


TINY = (("SMALL_BYTES", 64), ("LINE_BYTES_MAX", 64))

SCENARIOS = (
    Scenario("first start", nothing, enqueue),
    Scenario("first start in a directory that is there, by the command line", empty_dir, enqueue_cli),
    Scenario("first start on restored files", backup, enqueue, is_edited=True),
    Scenario("enqueue in a small queue", small, enqueue),
    Scenario("enqueue onto a journal", unfolded, enqueue),
    Scenario("enqueue by the command line", small, enqueue_cli),
    Scenario("enqueue beside a live worker", small, enqueue, before=live_worker),
    Scenario("enqueue twice beside a live worker", small, enqueue_twice, before=live_worker),
    Scenario("enqueue with a given id", unfolded, enqueue_id),
    Scenario("enqueue a duplicate", small, enqueue_duplicate),
    Scenario("enqueue with a key that is free again", unfolded, enqueue_freed),
    Scenario("enqueue, synced always", _with("fsync", "always"), enqueue),
    Scenario("bulk, small", small, bulk_of_two),
    Scenario("bulk, small, beside a live worker", unfolded, bulk_of_two, before=live_worker),
    Scenario("bulk, large", unfolded, bulk, limits=TINY),
    Scenario("bulk, large, beside a live worker", small, bulk, before=live_worker),
    Scenario("claim", small, claim, is_worker=True),
    Scenario("report and claim", small, report(0, True), is_worker=True),
    Scenario("failing report", small, report(1, False), is_worker=True),
    Scenario("report that dies", _with("no_retry_on", "3"), report(3, True), is_worker=True),
    Scenario("worker start, claim and report", small, work, is_worker=True),
    Scenario("worker that goes on after an error", small, work_on, is_worker=True),
    Scenario("recovery", crashed_worker(small), recovery, is_worker=True),
    Scenario("cancel waiting", small, cancel),
    Scenario("cancel running", small, cancel_running),
    Scenario("cancel running of a dead worker", small, cancel_recovered),
    Scenario("dlq retry", small, revive),
    Scenario("enqueue after others", family, enqueue_after),
    Scenario("enqueue after others beside a live worker", family, enqueue_after, before=live_worker),
    Scenario("bulk after others", family, bulk_after),
    Scenario("bulk after others, large", family, bulk_after, limits=TINY),
    Scenario("report of a job that others come after", limited, report_parent(0), is_worker=True),
    Scenario(
        "death of a job that others come after", _with("no_retry_on", "7", limited), report_parent(7), is_worker=True
    ),
    Scenario("cancel, retry and purge among jobs after others", family, cancel_family),
    Scenario("hand edit that ends who needs a job", edited_parent, enqueue, is_edited=True),
    Scenario("edit", unfolded, edit_two),
    Scenario("rerun", small, rerun),
    Scenario("purge", small, purge),
    Scenario("purge everything that is over", small, purge_everything),
    Scenario("doctor --fix", torn, mend, is_edited=True),
    Scenario("claim of a job that needs cards", cards, claim_cards, is_worker=True),
    Scenario("report of a job that holds cards", cards, report_cards, is_worker=True),
    Scenario("recovery of a job that holds cards", crashed_worker(cards), recover_cards, is_worker=True),
    Scenario("hold and release", cards, hold_and_release),
    Scenario("fold of held jobs and cards", cards, fold, is_worker=True),
    Scenario("hand edit of cards", edited_cards, claim_after_edit, is_edited=True, is_worker=True),
    Scenario("doctor --fix while a job holds cards", torn_cards, mend_cards, is_edited=True, is_worker=True),
    Scenario("purge by a worker", small, purge_old, is_worker=True),
    Scenario("config set", small, config_set),
    Scenario("pause and resume", small, pause),
    Scenario("fold", unfolded, fold, is_worker=True),
    Scenario("enqueue after a fold died before its renames", crashed_in_fold(1), enqueue),
    Scenario("enqueue after a fold died between its renames", crashed_in_fold(2), enqueue),
    Scenario("fold after a fold died before the journal's rename", crashed_in_fold(3), fold, is_worker=True),
    Scenario("enqueue after a large bulk died between its renames", crashed_in_bulk(2), enqueue),
    Scenario("enqueue after a large bulk died before the journal's rename", crashed_in_bulk(3), enqueue),
    Scenario("enqueue whose sync fails", unfolded, enqueue_renewed),
    Scenario("enqueue beside a live worker whose sync fails", unfolded, enqueue_renewed, before=live_worker),
    Scenario("revival whose sync fails", small, revive_renewed),
    Scenario("hand edit", edited, enqueue, is_edited=True),
    Scenario("hand edit of jobs in the journal", edited_journal, enqueue_overruled, is_edited=True),
    Scenario("hand edit that makes a job dead", edited_dead, enqueue, is_edited=True),
    Scenario("hand edit that revives a job", edited_revived, enqueue, is_edited=True),
    Scenario("hand edit that moves jobs between the arrays", edited_moved, enqueue, is_edited=True),
    Scenario("hand edit while no array can be written", edited, enqueue_unfolded, is_edited=True),
    Scenario("hand edit that moves jobs while no array can be written", edited_moved, enqueue_unfolded, is_edited=True),
    Scenario("restored backup", restored, enqueue, is_edited=True),
    Scenario("copied home", touched, enqueue),
    Scenario("torn tail", torn, enqueue),
    Scenario("torn tail of a bulk", torn_bulk, enqueue),
)
