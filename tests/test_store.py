"""The store: appending, reading, folding, hand edits, damage, locks; several stores and processes at once."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PROGRAM
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import queuectl as q
from tests.storekit import (
    BAD,
    FREE,
    HANDED_BACK,
    IO_ERROR,
    NO_SPACE,
    OK,
    Clock,
    Died,
    Effects,
    Watched,
    bulk,
    claim,
    close_store,
    dies,
    edit,
    enqueue,
    journal,
    listing,
    report,
    run_next,
)

Opener = Callable[..., Watched]


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is lost here, so nothing need wait for a disk."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@contextlib.contextmanager
def opener(home: Path) -> Iterator[Opener]:
    """`opened()`: one more store of that home, closed at the end."""
    begun: list[Watched] = []

    def call(clock: Clock | None = None, at: Path | None = None) -> Watched:
        begun.append(Watched(at or home, clock))
        return begun[-1]

    yield call
    for store in begun:
        close_store(store)


@pytest.fixture
def opened(home: Path) -> Iterator[Opener]:
    """As `opener`, of this test's home."""
    with opener(home) as call:
        yield call


@pytest.fixture
def store(opened: Opener) -> Watched:
    return opened()


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Effects]:
    """`faulty(when, act)`: from here on queuectl's effects fail so; `.undo` puts the real `os` back."""

    def call(when: Callable[[str, tuple[Any, ...]], bool], act: Any) -> Effects:
        effects = Effects(when, act)
        monkeypatch.setattr(q, "os", effects)
        effects.undo = lambda: monkeypatch.setattr(q, "os", os)
        return effects

    return call


def seen(store: Watched) -> dict[str, q.Job]:
    """What a reader without the lock sees. The counts must fit, and those of a light look must be the same."""
    store.read()
    jobs = {job.id: job for job in store.jobs()}
    counts = [sum(job.state == state for job in jobs.values()) for state in q.STATES]
    light = Watched(Path(store.home.path))
    light.read(light=True)
    assert (store.counts, light.counts, light.n) == (counts, counts, store.n)
    close_store(light)
    return jobs


def index(store: Watched) -> q.ClaimOrder:
    """What waits, as a worker keeps it."""
    store.follow()
    return q.claim_order(store, store.home.now())


def ids_in(home: Path, name: str = "jobs") -> list[str]:
    """The ids in an array, as a person reads it."""
    return [job["id"] for job in json.loads((home / f"{name}.json").read_text())]


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def is_of(end: str, *effects: str) -> Callable[[str, tuple[Any, ...]], bool]:
    """These effects on a file whose name ends so; of a rename, the new name counts."""
    return lambda name, args: name in effects and str(args[name == "rename"]).endswith(end)


# -- The journal, as the design describes it


def test_the_journal_has_a_header_the_running_jobs_and_one_line_a_transaction(home, store):
    for id in ("a", "b", "c"):
        enqueue(store, id)
    running = claim(store)
    store.fold()
    q.cancel_jobs(store, ["b", "c"])
    bulk(store, *['{"command": "x", "after": ["a"]}'] * 3)
    q.purge_dead(store, ["b"])
    lines = lines_of(journal(home))
    assert all(line == b"%08x %s" % (zlib.crc32(line[9:-1]), line[9:]) for line in lines), "each has its checksum"
    header, repeat, cancel, added, purge = (json.loads(line[9:].replace(b"\t", b"")) for line in lines)

    def mark(name: str) -> list[int]:
        info = (home / f"{name}.json").stat()
        return [info.st_ino, info.st_size, info.st_mtime_ns, zlib.crc32((home / f"{name}.json").read_bytes())]

    assert header == {"format": 2, "boot": q.boot_id(), "jobs": mark("jobs"), "dlq": mark("dlq")}
    assert repeat == {"put": [q.job_to_dict(running)], "counts": [2, 1, 0, 0, 0], "n": 3}  # type: ignore[arg-type]
    assert [job["id"] for job in cancel.pop("put")] == ["b", "c"] and cancel == {"counts": [0, 1, 0, 0, 2], "n": 3}
    assert [job["seq"] for job in added["put"]] == [4, 5, 6] and added["counts"] == [3, 1, 0, 0, 2]
    assert purge == {"put": [], "del": ["b"], "counts": [3, 1, 0, 0, 1], "n": 6}
    assert lines[3].count(b"\t") == 4 and b"\\t" not in lines[3], "records are split at raw tabs"


# -- Appending (S6, F2, F3)


CHANGES: dict[str, Callable[[Watched], object]] = {
    "enqueue": lambda store: enqueue(store, "new"),
    "bulk": lambda store: bulk(store, "one", AS_LINE, "three"),
    "claim": lambda store: claim(store),
    "cancel": lambda store: q.cancel_jobs(store, ["a", "b"]),
    "purge": lambda store: q.purge_jobs(store, q.OVER),
}
AS_LINE = '{"command": "x", "after": ["a"]}'  # its parent keeps a bulk out of jobs.json


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("is_cut_back", [True, False], ids=["cut back", "left there"])
@pytest.mark.parametrize("state", ["full", "light"])
def test_a_write_that_fails_half_way_changes_nothing(home, opened, faulty, change, is_cut_back, state):
    store = opened()
    for id in ("done", "a", "b"):
        enqueue(store, id)
    run_next(store)
    if state == "full":
        index(store)
    before, jobs, inode = journal(home).read_bytes(), seen(opened()), journal(home).stat().st_ino
    begun: list[int] = []

    def half(name: str, real: Any, args: tuple[Any, ...]) -> Any:
        if name == "write" and inode_of(args) != inode or name == "ftruncate" and is_cut_back:
            return real(*args)
        if name == "write" and not begun:
            begun.append(1)
            return real(args[0], bytes(args[1])[: len(args[1]) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    effects = faulty(lambda name, args: name in ("write", "ftruncate"), half)
    with pytest.raises(q.StoreError, match="No space"):
        CHANGES[change](store)
    effects.undo()
    assert (journal(home).read_bytes() == before) == is_cut_back
    assert seen(opened()) == jobs
    CHANGES[change](store)
    assert seen(opened()) == listing(store) != jobs and q.examine(opened()) == []
    assert len(store.warned) == (not is_cut_back), "the next writer sets aside what could not be cut back"


def test_a_store_that_has_read_can_change_the_queue(opened):
    enqueue(opened(), "a")
    for look in (Watched.read, lambda store: store.read(light=True)):
        store = opened()
        look(store)
        enqueue(store)
    assert len(seen(opened())) == 3


# -- Damage and torn tails (S5, F8)


def test_a_changed_byte_in_the_journal_is_noticed(home, opened):
    store = opened()
    for id in ("a", "b", "c", "d"):
        enqueue(store, id)
    whole = lines_of(journal(home))
    for number in range(1, len(whole)):
        line = whole[number - 1]
        changed = b"".join([*whole[: number - 1], line[:-9] + b"?" + line[-8:], *whole[number:]])
        journal(home).write_bytes(changed)
        for look in (lambda: opened().read(), lambda: claim(opened())):
            with pytest.raises(q.StoreError, match="is damaged"):
                look()
        assert journal(home).read_bytes() == changed, "nothing was overwritten"


def make_hole(home: Path, store: Watched, size: int = 100) -> bytes:
    """Add jobs, then let the first bytes of them be NULs; all that stands there now."""
    before = journal(home).read_bytes()
    for id in ("b", "c", "d"):
        enqueue(store, id)
    hole = bytes(size) + journal(home).read_bytes()[len(before) + size :]
    assert hole.count(b"\n") > 1, "whole lines follow"
    journal(home).write_bytes(before + hole)
    return hole


TAILS = [
    b"x", b"\0" * 50, b"1234abcd {", b"\n", b"\xff\xfe\n",
    b'00000000 {"put": [\t\t], "counts": [9,9,9,9,9], "n": 9}\n',
]  # fmt: skip


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "light"])
def test_a_torn_tail_is_passed_over_by_readers_and_set_aside_by_the_next_writer(home, opened, tail, loaded):
    store = opened()
    enqueue(store, "a")
    before = journal(home).read_bytes()
    with journal(home).open("ab") as file:
        file.write(tail)
    assert list(seen(opened())) == ["a"], "full or light"
    assert journal(home).read_bytes() == before + tail, "a reader changes nothing"
    store = opened()
    if loaded:
        store.follow()
    enqueue(store, "b")
    assert list(seen(opened())) == ["a", "b"] and q.examine(opened()) == []
    (warning,) = store.warned
    aside = Path(warning.split("'")[1])
    assert aside.read_bytes() == tail, "what was cut off is kept, named in the warning"
    assert journal(home).read_bytes().startswith(before) and stat.S_IMODE(aside.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "body", ["{}", '{"put": [\t{"id": 5}\t], "counts": [1], "n": 1}', '{"put": [\t\t], "n": 1}', "[]"]
)
def test_a_line_that_is_whole_but_makes_no_sense_is_refused(home, opened, body):
    enqueue(opened(), "a")
    before = journal(home).read_bytes() + q.journal_line(body.encode())
    journal(home).write_bytes(before)
    for look in (opened().read, lambda: claim(opened())):
        with pytest.raises(q.StoreError, match="cannot be understood"):
            look()
    assert journal(home).read_bytes() == before


@pytest.mark.parametrize("name", ["jobs", "dlq", "config"])
def test_a_store_missing_beside_a_journal_is_never_taken_for_empty(home, opened, name):
    enqueue(opened(), "a")
    saved = {path: path.read_bytes() for path in (journal(home), home / "jobs.json", home / "dlq.json")}
    (home / f"{name}.json").unlink()
    looks: list[Callable[[], object]] = [lambda: enqueue(opened(), "b"), lambda: opened().follow()]
    if name == "config":
        looks.append(lambda: opened().home.config())
    else:
        looks += [lambda: opened().read(), lambda: opened().read(light=True)]
    for look in looks:
        with pytest.raises(q.StoreError, match=f"{name}.json' is missing"):
            look()
    assert not (home / f"{name}.json").exists()
    assert all(path.read_bytes() == data for path, data in saved.items() if path.name != f"{name}.json")


# -- A journal that another program deleted or cut, and first starts


def worker_file(store: Watched, name: str) -> q.WorkerFile:
    header = {
        "pid": 1,
        "started_at": store.home.now(),
        "boot_id": q.boot_id(),
        "lock": store.home.lock_id(),
        "threads": 1,
    }
    return store.home.create_worker(name, {**header, "trouble": None})


@pytest.mark.parametrize("said", ["was deleted", "was cut"])
def test_a_journal_that_was_deleted_or_cut_ends_the_changes_of_a_process(home, opened, said):
    store = opened()
    enqueue(store, "a")
    running = claim(store)
    assert running is not None
    if said == "was cut":
        os.truncate(journal(home), journal(home).stat().st_size - 30)
    else:
        journal(home).unlink()
    for change in (lambda: enqueue(store, "b"), lambda: report(store, running, OK), store.fold, store.sync):
        with pytest.raises(q.StoreError, match=said):
            change()
    assert store.why_broken and journal(home).exists() == (said == "was cut")
    opened().follow()  # another process makes what it can of the home
    with pytest.raises(q.StoreError, match=said):
        enqueue(store, "c")


def test_there_is_no_first_start_while_a_workers_file_is_locked(home, opened):
    store = opened()
    enqueue(store, "a")
    assert claim(store) is not None
    file = worker_file(store, "1-abc")
    journal(home).unlink()
    before = (home / "jobs.json").read_bytes()
    for change in (lambda: enqueue(opened(), "b"), lambda: claim(opened()), lambda: opened().fold()):
        with pytest.raises(q.StoreError, match="is missing while a worker lives"):
            change()
    assert not journal(home).exists() and (home / "jobs.json").read_bytes() == before
    file.close()
    enqueue(opened(), "b")
    assert list(seen(opened())) == ["b"], "a was only in the journal"


def test_an_append_to_a_deleted_queue_is_refused(home, opened):
    store = opened()
    enqueue(store, "a")
    shutil.rmtree(home / ".queuectl")
    for change in (lambda: enqueue(store, "b"), lambda: claim(store), lambda: store.fold()):
        with pytest.raises(q.StoreError, match="was deleted"):
            change()
    assert not (home / ".queuectl").exists()


# -- The light look (counts; an enqueue)


def test_a_light_look_reads_no_array_and_replays_nothing(home, opened, monkeypatch):
    bulk(opened(), *["x" * 100] * 500)
    for id in ("a", "b", "c"):
        enqueue(opened(), id)
    effects = Effects(is_of(".json", "open"), NO_SPACE)  # opening an array is an error
    monkeypatch.setattr(q, "os", effects)
    store = opened()
    store.home.config = lambda: q.parse_settings({})
    store.read(light=True)
    assert (store.is_light, store.counts[0], store.n) == (True, 503, 503)
    enqueue(store)


@pytest.mark.parametrize("field", ["id", "unique"])
def test_a_bulk_of_many_names_does_not_search_the_journal_for_each(opened, monkeypatch, field):
    bulk(opened(), *["x" * 100] * 500)
    enqueue(opened(), "a", unique="key")
    searched: list[str] = []
    monkeypatch.setattr(q.Journal, "last_record", lambda journal, id: searched.append(id))
    store = opened()
    lines = [json.dumps({"command": "true", field: f"name{number}"}) for number in range(20)]
    assert len(bulk(store, *lines).ids) == 20 and store.counts[0] == 521
    assert not searched


LOOKS: dict[str, Callable[[Watched], object]] = {"counts": lambda store: store.read(light=True), "enqueue": enqueue}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", q.ARRAYS)
def test_a_light_look_sees_an_edit_of_either_array(home, opened, look, name):
    store = opened()
    for id in ("a", "b"):
        enqueue(store, id)
    q.cancel_jobs(store, ["b"])
    store.fold_or_sync()
    warm = opened()
    warm.read(light=True)
    edit(home, lambda jobs: [*jobs, {"command": "x"}, {"command": "y"}], name)
    cold = opened()
    for store in (warm, cold):
        LOOKS[look](store)
        assert sum(store.counts) == store.n and store.n >= 4
    assert len(seen(opened())) == 4 + 2 * (look == "enqueue")


@pytest.mark.parametrize("look", LOOKS)
def test_a_light_look_after_a_reboot_sees_a_hole_before_the_last_line(home, opened, monkeypatch, look):
    store = opened()
    enqueue(store, "a")
    make_hole(home, store)
    store = opened()
    store.read(light=True)
    assert store.counts[0] == 4, "its last line is whole: in the same boot there is no such hole"
    monkeypatch.setattr(q, "boot_id", lambda: "another boot")
    store = opened()
    LOOKS[look](store)
    assert store.counts[0] == 1 + (look == "enqueue")
    store.fold_or_sync()
    assert len(seen(opened())) == 1 + (look == "enqueue")


# -- Bulks


@pytest.mark.parametrize("first", ["x", AS_LINE], ids=["into jobs.json", "as a line"])
def test_a_bulk_that_is_refused_half_way_stores_nothing(home, opened, first):
    store = opened()
    enqueue(store, "a")
    store.fold()
    before = journal(home).read_bytes(), (home / "jobs.json").read_bytes()
    many = [first] * 2000
    for lines, why in (
        ([*many, '{"id": "a", "command": "x"}'], "line 2001: Job 'a' already exists"),
        ([*many, '{"id": "n", "command": "x"}', '{"id": "n", "command": "x"}'], "line 2002: Job 'n' already exists"),
        ([*many, '{"command": "x", "after": ["nobody"]}'], "line 2001: There is no job 'nobody'"),
        ([*many, '{"command": 5}'], "line 2001"),
    ):
        with pytest.raises((q.Refused, q.BadValue), match=why):
            bulk(store, *lines)
    assert (journal(home).read_bytes(), (home / "jobs.json").read_bytes()) == before
    assert list(seen(opened())) == ["a"] and enqueue(store).seq == 2


def test_a_large_bulk_goes_into_the_array_and_a_small_one_into_the_journal(home, opened):
    store = opened()
    bulk(store, *["x"] * 100)
    assert len(ids_in(home)) == 100 and store.journal is None
    bulk(store, "y", "z")
    assert len(ids_in(home)) == 100 and len(seen(opened())) == 102
    q.cancel_jobs(store, list(listing(store))[:1])
    bulk(store, *[json.dumps({"command": "x", "after": [next(iter(listing(store)))]})] * 100)
    assert len(ids_in(home)) == 100, "a job that may be dead at once does not belong into jobs.json"
    assert store.counts == [101, 0, 0, 0, 101]


# -- Folding (S1, S3)


FOLD_STEPS = st.tuples(st.sampled_from(["add", "kill", "revive", "purge", "fold"]), st.integers(0, 14))


@settings(deadline=None, database=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(FOLD_STEPS, max_size=25), piece=st.sampled_from([200, 1000, 1 << 20]))
def test_arrays_after_a_fold_are_what_was_listed_before_it(tmp_path_factory, steps, piece):
    home = tmp_path_factory.mktemp("home")
    store = Watched(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(q, "BLOB_BYTES", piece)
        for event, number in [*steps, ("fold", 0)]:
            jobs = listing(store)
            id = f"j{number}"
            state = jobs[id].state if id in jobs else None
            match event, state:
                case "add", None:
                    enqueue(store, id, command="x" * (1 + 50 * number))
                case "kill", "pending":
                    q.cancel_jobs(store, [id])
                case "revive", "dead":
                    q.revive_jobs(store, [id])
                case "purge", "dead":
                    q.purge_dead(store, [id])
                case "fold", _:
                    store.fold()
                    for name in q.ARRAYS:
                        want = [q.job_to_dict(job) for job in jobs.values() if q.array_of(job.state) == name]
                        text = (home / f"{name}.json").read_text()
                        assert json.loads(text) == want and len(text.splitlines()) == len(want) + 2, "one job a line"
                    assert listing(store) == jobs and q.examine(store) == []
                    assert list(store.jobs(reverse=True)) == list(jobs.values())[::-1]
                    assert store.find_jobs(list(jobs)) == jobs
        close_store(store)


def test_unknown_fields_survive_every_rewrite(home, opened):
    store = opened()
    for id in ("a", "b"):
        enqueue(store, id)
    store.fold()
    note = {"x": [1, {"state": "dead"}], "ü": None, "lone": "\ud800"}
    edit(home, lambda jobs: [{**job, "note": note, "ticket": job["id"]} for job in jobs])
    store = opened()
    run_next(store)
    q.cancel_jobs(store, ["b"])
    store.fold()
    for name in q.ARRAYS:
        for job in json.loads((home / f"{name}.json").read_text()):
            assert (job["note"], job["ticket"]) == (note, job["id"])


def test_a_failed_fold_does_not_fail_the_command(home, opened, faulty):
    store = opened()
    enqueue(store, "a")
    store.fold_or_sync()
    enqueue(store, "b")
    effects = faulty(lambda name, args: name == "rename", NO_SPACE)
    store.fold_or_sync()
    effects.undo()
    (warning,) = store.warned
    assert warning.startswith("The change is stored")
    assert list(seen(opened())) == ["a", "b"] and ids_in(home) == ["a"]
    store = opened()
    added = bulk(store, "echo 1", "echo 2").ids
    store.fold_or_sync()
    assert list(seen(opened())) == ["a", "b", *added] == ids_in(home)


@pytest.mark.parametrize("is_first", [True, False], ids=["under a change", "under another edit"])
def test_an_edit_that_is_saved_while_a_fold_writes_is_not_overwritten(home, opened, faulty, is_first):
    store = opened()
    enqueue(store, "a")
    store.fold_or_sync()
    enqueue(store, "b")
    if not is_first:
        edit(home, lambda jobs: [{**job, "priority": 1} for job in jobs])

    def edited(name: str, real: Any, args: tuple[Any, ...]) -> Any:
        effects.undo()
        edit(home, lambda jobs: [*jobs, {"id": "hand", "command": "x"}])
        return real(*args)

    effects = faulty(is_of("jobs.json.new", "open"), edited)
    store.fold_or_sync()
    assert "edited just now" in store.warned[0]
    assert set(seen(opened())) == {"a", "b", "hand"}
    opened().fold()
    assert set(ids_in(home)) == {"a", "b", "hand"}


# -- Syncs


def inode_of(args: tuple[Any, ...]) -> int:
    return os.fstat(args[0]).st_ino


def synced_by(call: Callable[[], object], faulty: Any) -> list[int]:
    """The inodes that this call syncs; everything it syncs can be."""
    synced: list[int] = []
    effects = faulty(lambda name, args: name == "fsync", lambda name, real, args: synced.append(inode_of(args)))
    call()
    effects.undo()
    return synced


def test_a_journal_whose_sync_failed_is_copied_to_a_fresh_file_and_never_synced_again(home, opened, faulty):
    store = opened()
    enqueue(store, "a")
    store.fold_or_sync()
    enqueue(store, "b")
    old = journal(home).stat().st_ino
    keep = os.open(journal(home), os.O_RDONLY)  # so that no other file gets its inode
    synced: list[int] = []

    def once(name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        synced.append(inode_of(args))
        if synced == [old]:
            raise OSError(errno.EIO, "Input/output error")

    effects = faulty(lambda name, args: name == "fsync", once)
    store.sync()
    effects.undo()
    assert synced.count(old) == 1 and len(synced) > 2 and journal(home).stat().st_ino != old
    enqueue(store, "c")
    assert old not in synced_by(store.sync, faulty) and journal(home).stat().st_ino != old
    assert list(seen(opened())) == ["a", "b", "c"]
    os.close(keep)


@pytest.mark.parametrize("at", ["sync", "fold", "fold_or_sync"])
def test_a_journal_that_can_be_neither_synced_nor_copied_ends_the_changes_of_a_process(home, opened, faulty, at):
    store = opened()
    enqueue(store, "a")
    store.fold()
    enqueue(store, "b")
    old, synced = journal(home).stat().st_ino, []

    def fail(name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if name == "fsync":
            synced.append(inode_of(args))
            if synced[-1] != old or synced.count(old) > 1:
                return  # what is synced again after an error succeeds, although the pages are lost
        raise OSError(errno.EIO, "Input/output error")

    effects = faulty(lambda name, args: name == "fsync" or is_of("journal.jsonl.new", "open")(name, args), fail)
    with pytest.raises(q.StoreError, match="may have been stored|may be lost"):
        getattr(store, at)()
    effects.undo()
    assert synced.count(old) == 1, "never retried on that file"
    for change in (lambda: enqueue(store, "c"), lambda: claim(store), store.fold, store.sync):
        with pytest.raises(q.StoreError, match="may be lost.* Nothing more is changed"):
            change()
    assert list(seen(store)) == ["a", "b"], "it can still be read"
    enqueue(opened(), "d")
    assert list(seen(opened())) == ["a", "b", "d"]


@pytest.mark.parametrize("name", ["dlq.json", "jobs.json", "dlq.json.new", "jobs.json.new"])
def test_a_change_is_synced_whatever_becomes_of_the_fold(home, opened, faulty, name):
    store = opened()
    enqueue(store, "a")
    q.cancel_jobs(store, ["a"])
    store.fold_or_sync()
    q.revive_jobs(store, ["a"])
    inode, synced = journal(home).stat().st_ino, []

    def act(effect: str, real: Any, args: tuple[Any, ...]) -> Any:
        if effect != "fsync":
            raise OSError(errno.EMFILE, "Too many open files")
        synced.append(inode_of(args))

    store = opened()
    enqueue(store, "b")
    effects = faulty(lambda effect, args: effect == "fsync" or is_of(f"/{name}", "open")(effect, args), act)
    store.fold_or_sync()
    effects.undo()
    assert len(store.warned) == 1 and inode in synced


def test_with_fsync_always_each_change_is_synced_before_it_is_told(home, opened, faulty):
    store = opened()
    enqueue(store, "a")
    for word, times in (("always", 1), ("normal", 0), ("never", 0)):
        q.set_setting(store, "fsync", word)
        store.home.config()
        for change in (lambda: enqueue(store), lambda: run_next(store), lambda: bulk(store, AS_LINE, AS_LINE)):
            synced = synced_by(change, faulty)
            assert (journal(home).stat().st_ino in synced) == bool(times), word
        assert (synced_by(store.fold_or_sync, faulty) == []) is False, "the fold is synced in any case"


# -- Hand edits


def test_a_pretty_printed_edit_with_missing_fields_is_taken_and_made_canonical(home, opened):
    store = opened()
    enqueue(store, "a")
    store.fold_or_sync()
    mine = {"id": "mine", "command": "x", "max_retries": 9}
    edit(home, lambda jobs: [{**jobs[0], "priority": 7}, {"command": "echo hi"}, mine], indent=4)
    text = (home / "jobs.json").read_text()
    jobs = seen(opened())
    assert (home / "jobs.json").read_text() == text, "a reader changes nothing"
    a, made, other = jobs.values()
    assert (a.priority, other.max_retries, [job.seq for job in jobs.values()]) == (7, 9, [1, 2, 3])
    assert (made.state, made.attempts, made.max_retries, made.cwd) == ("pending", 0, 3, str(home))
    store = opened()
    store.follow()
    assert seen(opened()) == jobs == listing(store), "the writer gives them the same ids as the reader did"
    assert len((home / "jobs.json").read_text().splitlines()) == 5 and ids_in(home) == list(jobs)
    assert store.warned == [] and q.examine(opened()) == [] and enqueue(store).seq == 4


def test_an_edit_under_a_running_store_is_taken_at_its_next_look(home, opened):
    store = opened()
    for id in ("a", "b", "c"):
        enqueue(store, id)
    store.fold()
    index(store)
    edit(home, lambda jobs: [{**job, "priority": 5} if job["id"] == "c" else job for job in jobs if job["id"] != "a"])
    assert claim(store).id == "c"  # type: ignore[union-attr]
    assert list(listing(store)) == ["b", "c"] == list(seen(opened()))


def test_an_id_that_is_made_for_an_edit_depends_on_the_place_in_its_own_array_alone(home, opened, faulty):
    store = opened()
    for id in ("a", "b"):
        enqueue(store, id)
    q.cancel_jobs(store, ["b"])
    store.fold_or_sync()
    edit(home, lambda jobs: [*jobs, {"command": "x"}, {"command": "y"}], at=1_800_000_000)
    alone = list(seen(opened()))
    edit(home, lambda jobs: [*[{"command": "first"}] * 5, *jobs, {"command": "z"}], "dlq", at=1_800_000_000)
    both = seen(opened())
    assert set(alone) < set(both) and len(both) == 10, "and the two arrays make no id twice"
    effects = faulty(is_of("dlq.json", "rename"), IO_ERROR)
    opened().follow()
    effects.undo()
    edit(home, lambda jobs: [], "dlq", at=1_800_000_000)
    assert set(seen(opened())) == set(both), "the journal holds them now"
    opened().follow()
    assert set(seen(opened())) == set(both) and q.examine(opened()) == []


BAD_EDITS = [
    ('[%s, %s]', "twice|is also in"), ('[{"id": "dead", "command": "x"}]', "is also in dlq.json"),
    ('[%s, {"id": "new"}]', "element 2"), ('[%s, {"command": "x", "id": []}]', "element 2"), ('["echo"]', "element 1"),
    ('[{"command": "x", "priority": "high"}]', "priority"), ('[{"command": "x", "state": "done"}]', "state"),
    ('[{"command": "x", "state": "processing"}]', "processing"), ('[{"command": "x", "attempts": 9}]', "attempts"),
    ('[{"command": "x", "state": "failed", "attempts": 2, "max_retries": 2}]', "a failed job cannot have 2 'attempts'"),
    ('[{"command": "x", "seq": 1000000000001}]', "seq"), ('[{"command": "x", "runs": 1000001}]', "runs"),
    ('[{"command": "x", "history": 5}]', "history"), ('{"jobs": []}', "array"), ("null", "array"),
    ("", "jobs.json"), ("[", "jobs.json"), ('[{"id": "a"', "jobs.json"), ("[NaN]", "jobs.json"), ("\udcff", "jobs"),
    ('[{"command": "x", "command": "y"}]', "twice"), ('[{"command": "x", "x": 1e400}]', "jobs.json"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), BAD_EDITS)
def test_an_edit_that_cannot_be_used_is_refused_and_left_alone(home, opened, text, said):
    store = opened()
    for id in ("dead", "a"):
        enqueue(store, id)
    q.cancel_jobs(store, ["dead"])
    store.fold()
    line = (home / "jobs.json").read_text().splitlines()[1]
    data = text.replace("%s", line).encode("utf-8", "surrogateescape")
    (home / "jobs.json").write_bytes(data)
    before = journal(home).read_bytes()
    for look in (opened().read, lambda: enqueue(opened(), "n"), lambda: claim(opened()), lambda: claim(store)):
        with pytest.raises(q.StoreError, match=said):
            look()
    assert (home / "jobs.json").read_bytes() == data and journal(home).read_bytes() == before
    assert q.examine(opened()) != []


def test_doctor_does_not_take_a_line_that_another_process_writes_for_an_unfinished_one(opened, monkeypatch):
    store, reader = opened(), opened()
    enqueue(store, "a")

    def read(light=False):
        monkeypatch.undo()
        reader.read(light)
        enqueue(store, "b")

    monkeypatch.setattr(reader, "read", read)
    assert q.examine(reader) == []
    assert set(reader.records) == {"a", "b"}


def test_a_job_of_the_journal_stays_as_the_journal_has_it_and_a_running_job_always_is(home, opened):
    store = opened()
    for id in ("runs", "a", "b", "c", "gone"):
        enqueue(store, id)
    running = claim(store)
    q.cancel_jobs(store, ["gone"])
    store.fold()
    q.cancel_jobs(store, ["a"])
    q.purge_dead(store, ["gone"])
    enqueue(store, "d")
    jobs = seen(opened())
    edit(home, lambda jobs: [{"id": "runs", "command": "x"}, *({**job, "priority": 5} for job in jobs[1:-1])])
    text = (home / "jobs.json").read_text()
    assert set(seen(opened())) == {"runs", "a", "b", "d"}
    store.follow()
    after = listing(store)
    assert {id: after[id] for id in ("runs", "a", "d")} == {id: jobs[id] for id in ("runs", "a", "d")}
    assert after["b"].priority == 5 and "c" not in after and seen(opened()) == after
    (warning,) = store.warned
    assert Path(warning.split("'")[1]).read_text() == text, "the edited file is kept aside"
    assert running is not None and report(store, running, OK) is not None and q.examine(opened()) == []


def test_an_id_in_both_arrays_is_no_error_where_the_journal_holds_it(home, opened, faulty):
    """A crash between the renames leaves a job in both; an edit after it must not lock the queue."""
    store = opened()
    for id in ("a", "b", "c"):
        enqueue(store, id)
    store.fold()
    q.cancel_jobs(store, ["b"])
    effects = faulty(is_of("/jobs.json", "rename"), dies)
    with pytest.raises(Died):
        store.fold()
    effects.undo()
    assert "b" in ids_in(home) and "b" in ids_in(home, "dlq")
    for name in q.ARRAYS:
        edit(home, lambda jobs: [{**job, "note": "edited"} for job in jobs], name)
    assert {id: job.state for id, job in seen(opened()).items()} == {"a": "pending", "b": "dead", "c": "pending"}
    opened().fold()
    assert (ids_in(home), ids_in(home, "dlq")) == (["a", "c"], ["b"]) and q.examine(opened()) == []


def test_an_enqueue_after_a_large_bulk_that_died_before_its_rename_does_not_count_its_jobs(opened, faulty):
    """The intent of that fold counts them, and the last line of the journal is that intent."""
    store = opened()
    enqueue(store, "a")
    store.fold()
    effects = faulty(is_of("/jobs.json", "rename"), dies)
    with pytest.raises(Died):
        bulk(store, *["true"] * 10)
    effects.undo()
    assert enqueue(opened(), "b").seq == 2
    counter = opened()
    counter.read(light=True)
    assert counter.counts[0] == 2 and set(seen(counter)) == {"a", "b"}


def test_a_bulk_of_many_ids_does_not_overrule_an_edit_that_is_saved_while_it_is_numbered(home, opened, monkeypatch):
    store = opened()
    enqueue(store, "a")
    store.fold()
    number = q.Bulk.number

    def edited_meanwhile(*arguments):
        edit(home, lambda jobs: [*jobs, {"id": "mine", "command": "x"}])
        yield from number(*arguments)

    monkeypatch.setattr(q.Bulk, "number", edited_meanwhile)
    with pytest.raises(q.Busy):
        bulk(store, *(f'{{"id": "b{number}", "command": "true"}}' for number in range(20)))
    assert set(seen(opened())) == {"a", "mine"} and q.examine(opened()) == []


# -- Readers, and stores that follow each other


def test_a_store_sees_what_others_append_and_survives_their_folds(opened):
    one, other = opened(), opened()
    enqueue(one, "a")
    other.follow()
    assert not other.read()
    enqueue(one, "b")
    assert other.read() and list(listing(other)) == ["a", "b"]
    for id in "ab":
        q.cancel_jobs(one, [id])
        one.fold()
    enqueue(one, "c")
    other.follow()
    assert listing(other) == listing(one) and (other.counts, other.n) == (one.counts, one.n) == ([1, 0, 0, 0, 2], 3)
    running = claim(other)
    assert running is not None and running.id == "c"
    one.fold()
    assert report(one, running, OK) is not None
    assert q.take_turn(other, "w", 0, (running, OK), False, q.TagFilter()).reported is None
    assert listing(other) == listing(one) and list(other.processing) == []


def test_a_store_goes_over_to_the_copy_of_a_journal_whose_sync_failed(home, opened):
    """S7. Who made it died before the fold, so the arrays are the same."""
    store = opened()
    enqueue(store, "a")
    shutil.copy(journal(home), home / "copy")
    os.rename(home / "copy", journal(home))
    enqueue(store, "b")
    assert list(seen(opened())) == ["a", "b"]


def test_readers_create_nothing(home, opened):
    assert seen(opened()) == {} and list(home.iterdir()) == []
    enqueue(opened(), "a")
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    seen(opened())
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
import queuectl as q
store = q.open_store(sys.argv[1], print)
for round in range(int(sys.argv[3])):
    with store.transaction() as change:
        for id in ("left", "right"):
            old = change.job(id)
            seq = old.seq if old else store.n + 1 + len(change.changes)
            fields = dict(command="true", priority=round, id=id, seq=seq)
            change.put(old, q.new_job(fields, store.home.config(), change.now))
    if round % 3 == 0:
        q.enqueue_job(store, dict(command="true", id=f"j{round}"))
    if round % 4 == 0:
        q.cancel_jobs(store, ["left", "right"])
        store.fold()
        q.revive_jobs(store, ["left", "right"])
    if round % 2 == 0:
        store.fold()
"""


def test_every_lock_free_read_during_folds_is_one_consistent_state(home, opened):
    with subprocess.Popen([sys.executable, "-c", WRITER, str(home), str(PROGRAM.parent), "120"]) as child:
        reads, last = 0, -1
        while child.poll() is None:
            reader, counter = opened(), opened()
            reader.read()
            jobs = {job.id: job for job in reader.jobs()}
            assert reader.counts == [sum(job.state == state for job in jobs.values()) for state in q.STATES]
            counter.read(light=True)
            assert counter.n >= reader.n
            if jobs:
                left, right = jobs["left"], jobs["right"]
                assert (left.priority, left.state) == (right.priority, right.state), "half a transaction was seen"
                assert left.priority >= last, "a later read shows an earlier state"
                last = left.priority
            reads += 1
            close_store(reader)
            close_store(counter)
    assert child.returncode == 0 and reads > 3
    assert q.examine(opened()) == [] and len(seen(opened())) == 42


def test_a_read_while_another_process_makes_the_home_shows_what_that_process_made(home, opened, monkeypatch):
    snapshot = q.Snapshot

    def missing_until_now(path: str) -> q.Snapshot:
        monkeypatch.setattr(q, "Snapshot", snapshot)
        with pytest.raises(FileNotFoundError):
            snapshot(path)
        enqueue(opened(), "a")
        raise FileNotFoundError

    monkeypatch.setattr(q, "Snapshot", missing_until_now)
    reader = opened()
    reader.read()
    assert [job.id for job in reader.jobs()] == ["a"]


def test_settings_that_another_process_makes_meanwhile_are_not_missing(home, opened, monkeypatch):
    lstat, made = os.lstat, list[Any]()

    def missing_until_now(path: Any, **more: Any) -> os.stat_result:
        if str(path).endswith("config.json") and not made:
            made.append(path)
            enqueue(opened(), "a")
            raise FileNotFoundError
        return lstat(path, **more)

    monkeypatch.setattr(os, "lstat", missing_until_now)
    assert opened().home.config().max_retries == 3 and made


def test_a_lock_held_too_long_is_a_store_error_for_processes_and_threads(home, opened):
    holder, waiter = opened(), opened()
    enqueue(holder, "a")
    q.set_setting(holder, "lock_timeout", "0.01")
    holder.home.config()  # the lock goes by the settings as last read
    before = journal(home).read_bytes()
    changes = (lambda: enqueue(waiter, "b"), lambda: claim(waiter), waiter.fold, holder.follow)
    refused: list[str] = []

    def change_all() -> None:
        for change in changes:
            with pytest.raises(q.Busy, match="has been locked by another process") as error:
                change()
            refused.append(str(error.value))

    with holder.transaction():
        thread = threading.Thread(target=change_all)
        thread.start()
        thread.join(60)
        assert len(refused) == 4
        assert list(seen(opened())) == ["a"], "readers never wait"
    assert journal(home).read_bytes() == before
    enqueue(waiter, "b")


# -- Ids and unique keys, by a search for bytes


def is_taken(opened: Opener, id: str) -> bool:
    """Whether an enqueue with that id is refused; what it added is taken away again."""
    store = opened()
    try:
        enqueue(store, id)
    except q.Refused:
        return True
    q.cancel_jobs(store, [id])
    q.purge_dead(store, [id])
    return False


@pytest.mark.parametrize("folded", [True, False], ids=["in the arrays", "in the journal"])
def test_an_id_is_taken_only_by_a_job_that_has_it(home, opened, folded):
    store = opened()
    bait, env = """echo '{"id": "bait", "state": "pending", "seq": 1'""", {"E": '\t{"id": "envbait", "state": "'}
    enqueue(store, "a", command=bait, tags=["tagbait"], unique="keybait", env=env)
    for id in ("prefix-long", "gone", "again", "killed"):
        enqueue(store, id)
    store.fold()
    nested = {"id": "nested", "state": "pending", "seq": 3}
    edit(home, lambda jobs: [{**job, "more": [nested], "twin": {"id": "a", "state": "dead"}} for job in jobs])
    q.cancel_jobs(store, ["a", "prefix-long", "gone", "again", "killed"])
    q.revive_jobs(store, ["a", "prefix-long"])
    q.purge_dead(store, ["again"])
    enqueue(store, "again")
    q.purge_dead(store, ["gone"])
    if folded:
        store.fold()
    for id in ("a", "prefix-long", "again", "killed"):
        assert is_taken(opened, id), id
    for id in ("bait", "nested", "tagbait", "keybait", "envbait", "gone", "prefix", "long", "A", "a1"):
        assert not is_taken(opened, id), id
    assert q.examine(opened()) == []


@pytest.mark.parametrize("folded", [True, False], ids=["in the arrays", "in the journal"])
@pytest.mark.parametrize("key", ["k", 'q"uote\\', "ü\t\n", '", "command": "x'])
def test_a_unique_key_is_held_by_an_active_job_alone(home, opened, folded, key):
    store = opened()
    enqueue(store, "bait", command=f'"unique": {json.dumps(key)}, "command": ', unique="other", priority=-1)
    store.fold()
    edit(home, lambda jobs: [{**job, "note": {"unique": key, "command": "x"}} for job in jobs])

    def holder() -> str | None:
        if folded:
            store.fold()
        one = opened()
        job, is_duplicate = q.enqueue_job(one, dict(command="probe", id="probe", unique=key))
        if is_duplicate:
            return job.id
        q.cancel_jobs(one, ["probe"])
        q.purge_dead(one, ["probe"])
        return None

    def end(outcome: q.Outcome) -> object:
        return report(store, store.processing["a"], outcome)

    steps: list[tuple[Callable[[], object], str | None]] = [
        (lambda: None, None), (lambda: enqueue(store, "a", unique=key), "a"),
        (lambda: claim(store), "a"), (lambda: end(BAD), "a"),
        (lambda: q.cancel_jobs(store, ["a"]), None), (lambda: q.revive_jobs(store, ["a"]), "a"),
        (lambda: claim(store), "a"), (lambda: end(OK), None), (lambda: enqueue(store, "b", unique=key), "b"),
        (lambda: q.cancel_jobs(store, ["b"]), None), (lambda: q.purge_dead(store, ["b"]), None),
    ]  # fmt: skip
    for number, (step, held_by) in enumerate(steps):
        store.follow()
        step()
        assert holder() == held_by, f"after step {number}"
    assert q.examine(opened()) == []


def test_a_lookup_in_a_light_store_loads_nothing_and_finds_the_last_word(home, opened):
    store = opened()
    bulk(store, *[f'{{"id": "j{n}", "command": "x", "unique": "k{n}"}}' for n in range(40)])
    store.fold()
    q.cancel_jobs(store, ["j1", "j2"])
    q.revive_jobs(store, ["j1"], {"priority": 7})
    q.purge_dead(store, ["j2"])
    light = opened()
    enqueue(light, "probe", after=["j1"])
    assert light.is_light
    found = light.find_jobs(["j0", "j1", "j2", "probe", "none"])
    assert {id: job.priority for id, job in found.items()} == {"j0": 0, "j1": 7, "probe": 0}
    assert set(light.find_jobs([f"j{n}" for n in range(50)])) == {f"j{n}" for n in range(40)} - {"j2"}
    assert {key: job.id for key, job in light.holders(["k1", "k2", "k39"]).items()} == {"k1": "j1", "k39": "j39"}
    assert len(light.holders([f"k{n}" for n in range(40)])) == 39 and light.is_light


# -- Claim order


def claimed(store: q.Store) -> Iterator[str]:
    while (job := claim(store)) is not None:
        yield job.id


def test_what_was_added_together_is_decoded_once_for_the_index(opened, monkeypatch):
    """The first claim among a million jobs with a delay, a priority or a tag holds the lock for a second, not ten."""
    clock = Clock()
    store = opened(clock)
    later = q.format_instant(clock.at + 86_400)
    timed = {"run_at": later}
    for options in (timed, {"priority": -1, "tags": ["a"]}, {"tags": ["b"]}, {**timed, "tags": ["b"]}):
        bulk(store, *["x"] * 300, **options)
    store.fold()
    jobs, decoded, trust = seen(opened()), [0], q.trust_job

    def counted(raw: bytes) -> q.Job:
        decoded[0] += 1
        return trust(raw)

    monkeypatch.setattr(q, "trust_job", counted)
    for slot, (only, tags) in enumerate(((q.TagFilter(), ["b"]), (q.TagFilter(("a",)), ["a"]))):
        store, decoded[0] = opened(clock), 0
        job = q.take_turn(store, "w", slot, None, True, only).claimed
        assert job is not None and jobs[job.id].tags == tags and decoded[0] < 15
    clock.at += 86_401
    assert sum(1 for _ in claimed(store)) == 1198, "each of the others is claimed in its time"


@pytest.mark.parametrize("folded", [True, False], ids=["from the arrays", "from the journal"])
def test_a_retry_beyond_any_backoff_is_due_after_the_clock_was_set_back(opened, folded):
    clock = Clock()
    store = opened(clock)
    enqueue(store, "first")
    enqueue(store, "second", after=["first"])
    enqueue(store, "wish", run_at="2099-01-01T00:00:00.000Z")
    run_next(store)
    run_next(store, BAD)
    if folded:
        store.fold()
        store = opened(clock)
        store.follow()
    clock.at -= 86_400
    assert list(claimed(store)) == ["second"], "a person's own time is kept"


def test_a_journal_whose_name_could_not_be_synced_is_written_again(opened, monkeypatch):
    """After a power loss that name may stand for the old journal, unless a new file in its directory is synced."""
    store = opened()
    enqueue(store, "a")
    failed: list[str] = []
    put: list[str] = []
    real_sync, real_put = q.sync_dir, store.home.put_file

    def sync(path: str) -> None:
        if path == store.home.dir and not failed:
            failed.append(path)
            raise OSError(errno.EIO, "no")
        real_sync(path)

    def put_file(path: str, lines: list[bytes]) -> None:
        put.append(path)
        real_put(path, lines)

    monkeypatch.setattr(q, "sync_dir", sync)
    monkeypatch.setattr(store.home, "put_file", put_file)
    store.fold()
    assert failed and put.count(store.journal_path) == 2


def test_a_retry_is_due_at_once_when_the_clock_is_set_back_beyond_backoff_max(opened):
    clock = Clock()
    store = opened(clock)
    enqueue(store, "a")
    job = claim(store)
    assert job is not None
    report(store, job, BAD)
    assert claim(store) is None, "its order knows when the retry is due"
    clock.at -= 10_000
    retry = claim(store)
    assert retry is not None and retry.id == "a"


def test_a_job_that_is_not_ready_yet_goes_back_to_the_timed_ones_when_the_clock_steps_back(opened):
    clock = Clock()
    store = opened(clock)
    enqueue(store, "runs")
    enqueue(store, "later", delay=60)
    running = claim(store)
    order = index(store)
    clock.at += 61
    order.advance(store.home.now())
    assert order.first(FREE).id == "later"  # type: ignore[union-attr]
    clock.at -= 30  # the same index: no look came between that saw the clock being set
    order.advance(store.home.now())
    assert order.first(FREE) is None and order.oldest() is None
    assert order.next_run_at() == q.format_instant(clock.at + 29), "and the main thread sleeps until then"
    clock.at += 30
    order.advance(store.home.now())
    assert order.first(FREE).id == "later"  # type: ignore[union-attr]
    assert running is not None and claim(store).id == "later"  # type: ignore[union-attr]


def test_a_clock_that_is_slewed_builds_no_new_index(opened):
    clock = Clock()
    store = opened(clock)
    enqueue(store, "a")
    order = index(store)
    for _ in range(5):
        clock.at += 0.9  # the other clock stands still meanwhile, or nearly
        assert index(store) is order
    clock.at += 1.5
    assert index(store) is not order


def test_fields_inside_an_unknown_field_are_not_the_jobs(home, opened):
    """Records of the array are known for plain by their bytes, and for alike by their ends."""
    store = opened()
    for id in "abc":
        enqueue(store, id, priority=5 if id == "b" else 0)
    store.fold()
    plain = json.loads((home / "jobs.json").read_text())[0]
    meta = {"meta": {"x": 0, "priority": 0, "by": "me"}, "twin": {"x": 0, **plain}}
    edit(home, lambda jobs: [{**job, **(meta if job["id"] == "b" else {})} for job in jobs])
    opened().fold()  # in the canonical form again
    assert list(claimed(opened())) == ["b", "a", "c"]


# -- Reports


def test_a_slot_that_takes_its_turn_gives_back_what_it_still_holds(opened):
    """A claim whose line was written while its sync failed: the slot ran nothing, and comes again."""
    store = opened()
    for id in ("a", "b", "c"):
        enqueue(store, id)
    other = claim(store, "w", slot=1)
    held = claim(store, "w", slot=0)
    assert other is not None and held is not None and (other.id, held.id) == ("a", "b")
    claimed = claim(store, "w", slot=0)
    back = seen(opened())["b"]
    assert (back.state, back.attempts, back.runs, back.reason) == ("pending", 0, 1, "its claim failed")
    assert claimed is not None and claimed.id == "c"
    assert set(seen(opened())) == {"a", "b", "c"} and seen(opened())["a"].state == "processing"
    assert report(store, claimed, OK).state == "completed"  # type: ignore[union-attr]
    assert claim(store, "w2", slot=0).runs == 2  # type: ignore[union-attr]
    assert seen(opened())["a"] == other


def test_recovery_knows_what_a_dead_worker_wrote_last(opened):
    """It claimed after the finder's last look: its file, which tells the run's session, must still be there."""
    finder, dead = opened(), opened()
    for id in ("a", "b"):
        enqueue(dead, id)
    finder.follow()
    file = worker_file(dead, "9-dead")
    claim(dead, "9-dead", slot=0)
    file.write_row(0, {"job": "a", "run": 1, "session": 12345, "start": 1})
    q.close_fd(file.fd)  # as the kernel does for a dead process
    q.close_fd(file.wake_fd)
    recovery = q.Recovery(finder, "me", print)
    recovery.step()
    ((mark, fence),) = recovery.fences.items()
    assert mark.endswith("/9-dead/a/1") and fence.trace.session == 12345 and finder.home.worker_names() == ["9-dead"]


@pytest.mark.parametrize("worker", ["w", "w2"])
@pytest.mark.parametrize("is_new_job", [False, True], ids=["recovered", "another job of that id"])
def test_a_report_of_an_earlier_run_is_not_believed(home, opened, is_new_job, worker):
    store = opened()
    enqueue(store, "a")
    first = claim(store, "w")
    assert first is not None and (is_new_job or q.recover(opened(), first, excused=False) is not None)
    if is_new_job:
        report(store, first, OK)
        q.purge_jobs(store, q.OVER)
        enqueue(store, "a")
    assert report(store, first, OK) is None, "nothing runs"
    second = claim(store, worker)
    assert second is not None and second.runs == 2 - is_new_job
    before = journal(home).read_bytes()
    for outcome in (OK, BAD, HANDED_BACK):
        assert report(store, first, outcome) is None and q.recover(store, first, excused=False) is None
    assert journal(home).read_bytes() == before
    assert report(store, second, OK) is not None and report(store, second, BAD) is None
