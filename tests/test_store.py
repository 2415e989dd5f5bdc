"""The store: appending, reading, folding, hand edits, damage, locks; several stores and processes at once."""

from __future__ import annotations

import contextlib
import errno
import itertools
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
    HANDED_BACK,
    IO_ERROR,
    NO_SPACE,
    OK,
    Clock,
    Died,
    Effects,
    Watched,
    bulk,
    check_times,
    claim,
    dies,
    edit,
    enqueue,
    fails,
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


@pytest.fixture
def opened(home: Path) -> Iterator[Opener]:
    """`opened()`: one more store of this test's home, closed at the end."""
    begun: list[Watched] = []

    def call(clock: Clock | None = None, at: Path | None = None) -> Watched:
        begun.append(Watched(at or home, clock))
        return begun[-1]

    yield call
    for store in begun:
        store.close()


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
    light.read_counts()
    assert (store.counts, light.counts, light.n) == (counts, counts, store.n)
    light.close()
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


def nth(effect: str, number: int) -> Callable[[str, tuple[Any, ...]], bool]:
    """The `number`-th effect of that kind."""
    count = itertools.count(1)
    return lambda name, args: name == effect and next(count) == number


# -- The journal, as the design describes it


def test_the_journal_has_a_header_the_running_jobs_and_one_line_a_transaction(home: Path, store: Watched) -> None:
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


def half_then(error: int) -> Any:
    """A short write, and the error that follows it."""
    begun: list[int] = []

    def act(name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if begun:
            raise OSError(error, os.strerror(error))
        begun.append(1)
        return real(args[0], bytes(args[1])[: len(args[1]) // 2])

    return act


CHANGES: dict[str, Callable[[Watched], object]] = {
    "enqueue": lambda store: enqueue(store, "new"),
    "bulk": lambda store: bulk(store, "one", '{"command": "two", "after": ["a"]}', "three"),
    "claim": lambda store: claim(store),
    "cancel": lambda store: q.cancel_jobs(store, ["a", "b"]),
    "purge": lambda store: q.purge_jobs(store, lambda job, now: True),
}
WRITE_FAULTS: dict[str, Callable[[], Any]] = {
    "short write, then EIO": lambda: half_then(errno.EIO),
    "no space": lambda: NO_SPACE,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("fault", WRITE_FAULTS)
@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "light"])
def test_a_write_that_fails_changes_nothing(
    home: Path, opened: Opener, faulty: Any, change: str, fault: str, loaded: bool
) -> None:
    store = opened()
    for id in ("done", "a", "b"):
        enqueue(store, id)
    run_next(store)
    if loaded:
        index(store)
    else:
        store = opened()
        enqueue(store, "c")
    before = journal(home).read_bytes()
    memory = list(store.counts), store.n, dict(store.records)
    jobs = seen(opened())
    inode = journal(home).stat().st_ino
    act = WRITE_FAULTS[fault]()
    effects = faulty(lambda name, args: name == "write" and os.fstat(args[0]).st_ino == inode, act)
    with pytest.raises(q.StoreError, match="No space|Input/output"):
        CHANGES[change](store)
    effects.undo()
    assert journal(home).read_bytes() == before, "the file is cut back to the last whole transaction"
    if loaded or change in ("enqueue", "bulk"):
        assert (store.counts, store.n, dict(store.records)) == memory
    assert seen(opened()) == jobs
    CHANGES[change](store)
    assert seen(opened()) != jobs
    assert q.examine(opened()) == []
    assert listing(store) == seen(opened())


def test_a_short_write_that_goes_on_is_whole(home: Path, opened: Opener, faulty: Any) -> None:
    store = opened()
    enqueue(store, "a")
    effects = faulty(
        lambda name, args: name == "write",
        lambda name, real, args: real(args[0], bytes(args[1])[: 1 + len(args[1]) // 3]),
    )
    enqueue(store, "b")
    effects.undo()
    assert list(seen(opened())) == ["a", "b"] and q.examine(opened()) == []


@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "light"])
def test_what_could_not_be_cut_back_is_cut_off_by_the_next_writer(
    home: Path, opened: Opener, faulty: Any, loaded: bool
) -> None:
    store = opened()
    enqueue(store, "a")
    if loaded:
        store.follow()
    write = half_then(errno.EIO)
    effects = faulty(
        lambda name, args: name in ("write", "ftruncate"),
        lambda name, real, args: write(name, real, args) if name == "write" else IO_ERROR(name, real, args),
    )
    with pytest.raises(q.StoreError):
        enqueue(store, "lost")
    effects.undo()
    assert list(seen(opened())) == ["a"]
    enqueue(store, "b")
    assert list(seen(opened())) == ["a", "b"] and q.examine(opened()) == []
    assert "unfinished line" in store.warned[0]


def test_a_claim_that_could_not_be_written_leaves_its_job_first(opened: Opener, faulty: Any) -> None:
    store = opened()
    for id in ("a", "b", "c"):
        enqueue(store, id)
    store.fold()
    index(store)
    q.cancel_jobs(store, ["b"])
    for _ in range(3):
        effects = faulty(lambda name, args: name == "write", NO_SPACE)
        with pytest.raises(q.StoreError):
            claim(store)
        effects.undo()
    assert list(claimed(store)) == ["a", "c"]


def test_a_store_that_has_read_can_change_the_queue(opened: Opener) -> None:
    enqueue(opened(), "a")
    for look in (Watched.read, Watched.read_counts):
        store = opened()
        look(store)
        enqueue(store)
    assert len(seen(opened())) == 3


def test_a_refused_operation_changes_nothing(home: Path, store: Watched) -> None:
    for id in ("a", "b"):
        enqueue(store, id)
    run_next(store)
    enqueue(store, "running", priority=1)
    claim(store)
    before = journal(home).read_bytes()
    for refused in (
        lambda: q.cancel_jobs(store, ["b", "nobody"]),
        lambda: q.cancel_jobs(store, ["b", "a"]),
        lambda: q.retry_jobs(store, ["b"]),
        lambda: q.revive_jobs(store, ["a"]),
        lambda: q.edit_jobs(store, ["b", "running"], {"command": "false"}),
        lambda: q.purge_dead(store, ["a"]),
        lambda: enqueue(store, "a"),
        lambda: enqueue(store, "new", after=["nobody"]),
    ):
        with pytest.raises(q.Refused):
            refused()
    assert journal(home).read_bytes() == before and store.counts == [1, 1, 1, 0, 0]


def test_an_exception_in_a_transaction_releases_the_lock_and_changes_nothing(home: Path, opened: Opener) -> None:
    store = opened()
    enqueue(store, "a")
    before = journal(home).read_bytes()
    with pytest.raises(KeyError), store.transaction() as change:
        job = change.job("a")
        assert job is not None
        change.put(job, q.cancel_job(job, change.now))
        raise KeyError
    assert journal(home).read_bytes() == before and store.get("a") == job
    enqueue(opened(), "b")


# -- Damage and torn tails (S5, F8)


def test_a_changed_byte_in_the_journal_is_noticed_and_its_line_named(home: Path, opened: Opener) -> None:
    store = opened()
    for id in ("a", "b", "c", "d"):
        enqueue(store, id)
    whole = lines_of(journal(home))
    assert len(whole) == 6  # header, repeat, four changes
    for number in range(1, 6):
        for at in (0, 8, 9, len(whole[number - 1]) // 2, len(whole[number - 1]) - 2):
            lines = list(whole)
            line = bytearray(lines[number - 1])
            line[at] ^= 1
            if b"\n" in line[:-1]:
                continue
            lines[number - 1] = bytes(line)
            journal(home).write_bytes(b"".join(lines))
            for look in (lambda: opened().read(), lambda: opened().follow(), lambda: claim(opened())):
                with pytest.raises(q.StoreError, match=f"line {number}"):
                    look()
            assert journal(home).read_bytes() == b"".join(lines), "nothing was overwritten"
    assert q.examine(opened())


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_missing_line_in_the_middle_is_found_by_its_counts(home: Path, opened: Opener, lost: int) -> None:
    store = opened()
    for id in ("a", "b", "c", "d"):
        enqueue(store, id)
    lines = lines_of(journal(home))
    journal(home).write_bytes(b"".join(lines[: 1 + lost] + lines[2 + lost :]))
    assert q.examine(opened())


def test_a_single_nul_in_the_journal_is_damage_and_not_a_hole(home: Path, opened: Opener) -> None:
    store = opened()
    for id in ("a", "b", "c"):
        enqueue(store, id)
    lines = lines_of(journal(home))
    lines[3] = lines[3].replace(b'"command"', b'"comm\0nd"')
    journal(home).write_bytes(b"".join(lines))
    for look in (lambda: opened().read(), lambda: opened().follow()):
        with pytest.raises(q.StoreError, match="line 4"):
            look()


@pytest.mark.parametrize("size", [64, 300])
def test_a_hole_that_never_reached_the_disk_is_an_unfinished_tail(home: Path, opened: Opener, size: int) -> None:
    store = opened()
    enqueue(store, "a")
    before = journal(home).read_bytes()
    hole = make_hole(home, store, size)
    store = opened()
    store.read()
    assert [job.id for job in store.jobs()] == ["a"]
    store = opened()
    store.follow()
    assert journal(home).read_bytes().startswith(before) and list(seen(opened())) == ["a"]
    assert Path(store.warned[0].split("'")[1]).read_bytes() == hole


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
    b"x",
    b"\0" * 50,
    b"1234abcd {",
    b'00000000 {"put": [\t\t], "counts": [9,9,9,9,9], "n": 9}\n',
    b"\n",
    b"\xff\xfe\n",
]


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "light"])
def test_a_torn_tail_is_passed_over_by_readers_and_set_aside_by_the_next_writer(
    home: Path, opened: Opener, tail: bytes, loaded: bool
) -> None:
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
    "add", [lambda store: enqueue(store, "b"), lambda store: bulk(store, *['{"command": "x", "after": ["a"]}'] * 3)]
)
def test_a_journal_cut_anywhere_is_the_state_before_or_after(home: Path, opened: Opener, add: Any) -> None:
    store = opened()
    enqueue(store, "a")
    start = journal(home).stat().st_size
    add(store)
    whole, after = journal(home).read_bytes(), list(seen(opened()))
    for size in range(start, len(whole) + 1):
        journal(home).write_bytes(whole[:size])
        assert list(seen(opened())) == (after if size == len(whole) else ["a"])


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"put": [\t{"id": 5}\t], "counts": [1, 0, 0, 0, 0], "n": 1}',
        b'{"put": [\t\t], "n": 1}',
        b"[]",
    ],
)
def test_a_line_that_is_whole_but_makes_no_sense_is_refused(home: Path, opened: Opener, body: bytes) -> None:
    enqueue(opened(), "a")
    with journal(home).open("ab") as file:
        file.write(q.journal_line(body))
    before = journal(home).read_bytes()
    for look in (lambda: opened().read(), lambda: claim(opened())):
        with pytest.raises(q.StoreError, match="cannot be understood"):
            look()
    assert journal(home).read_bytes() == before


@pytest.mark.parametrize("name", ["jobs", "dlq", "config"])
def test_a_store_missing_beside_a_journal_is_never_taken_for_empty(home: Path, opened: Opener, name: str) -> None:
    enqueue(opened(), "a")
    saved = {path: path.read_bytes() for path in (journal(home), home / "jobs.json", home / "dlq.json")}
    (home / f"{name}.json").unlink()
    looks: list[Callable[[], object]] = [lambda: enqueue(opened(), "b"), lambda: opened().follow()]
    if name == "config":
        looks.append(lambda: opened().home.config())
    else:
        looks += [lambda: opened().read(), lambda: opened().read_counts()]
    for look in looks:
        with pytest.raises(q.StoreError, match=f"{name}.json' is missing"):
            look()
    assert not (home / f"{name}.json").exists()
    assert all(path.read_bytes() == data for path, data in saved.items() if path.name != f"{name}.json")


# -- A journal that another program deleted or cut, and first starts


def lose_journal(home: Path) -> None:
    journal(home).unlink()


def cut_journal(home: Path) -> None:
    os.truncate(journal(home), journal(home).stat().st_size - 30)


@pytest.mark.parametrize(("lose", "said"), [(lose_journal, "was deleted"), (cut_journal, "was cut")])
def test_a_journal_that_was_deleted_or_cut_ends_the_changes_of_a_process(
    home: Path, opened: Opener, lose: Any, said: str
) -> None:
    store = opened()
    enqueue(store, "a")
    running = claim(store)
    assert running is not None
    lose(home)
    left = journal(home).read_bytes() if journal(home).exists() else None
    for change in (lambda: enqueue(store, "b"), lambda: report(store, running, OK), store.fold, store.sync):
        with pytest.raises(q.StoreError, match=said):
            change()
        assert store.state == "broken"
    assert left == (journal(home).read_bytes() if journal(home).exists() else None)
    with contextlib.suppress(q.StoreError):
        opened().follow()  # another process makes the home anew, or not
    with pytest.raises(q.StoreError, match=said):
        enqueue(store, "c")


def test_there_is_no_first_start_while_a_workers_file_is_locked(home: Path, opened: Opener) -> None:
    store = opened()
    enqueue(store, "a")
    assert claim(store) is not None
    header = {"pid": 1, "started_at": store.home.now(), "lock": "x", "threads": 1, "trouble": None}
    file = store.home.create_worker("1-abc", header, 1)
    lose_journal(home)
    before = (home / "jobs.json").read_bytes()
    for change in (lambda: enqueue(opened(), "b"), lambda: claim(opened()), lambda: opened().fold()):
        with pytest.raises(q.StoreError, match="is missing while a worker lives"):
            change()
    assert not journal(home).exists() and (home / "jobs.json").read_bytes() == before
    file.close()
    enqueue(opened(), "b")
    assert list(seen(opened())) == ["b"], "a was only in the journal"


def test_an_append_to_a_deleted_queue_is_refused(home: Path, opened: Opener) -> None:
    store = opened()
    enqueue(store, "a")
    shutil.rmtree(home / ".queuectl")
    for change in (lambda: enqueue(store, "b"), lambda: claim(store), lambda: store.fold()):
        with pytest.raises(q.StoreError, match="was deleted"):
            change()
    assert not (home / ".queuectl").exists()


# -- The light look (counts; an enqueue)


def test_a_light_look_reads_no_array_and_replays_nothing(
    home: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    bulk(opened(), *["x" * 100] * 500)
    for id in ("a", "b", "c"):
        enqueue(opened(), id)
    read: list[str] = []

    def opens(name: str, real: Any, args: tuple[Any, ...]) -> Any:
        read.append(args[0])
        return real(*args)

    monkeypatch.setattr(q, "os", Effects(lambda name, args: name == "open", opens))
    store = opened()
    store.read_counts()
    assert (store.state, store.counts[0], store.n) == ("light", 503, 503)
    enqueue(opened())
    assert [path for path in read if path.endswith(("jobs.json", "dlq.json"))] == []


def test_a_light_enqueue_and_a_full_one_write_the_same(tmp_path: Path, opened: Opener) -> None:
    bodies = []
    for state in ("full", "light"):
        home = tmp_path / state
        home.mkdir(mode=0o700)
        store = opened(at=home)
        enqueue(store, "first")
        store.fold()
        for number in range(4):
            store = opened(at=home)
            if state == "full":
                index(store)
            assert enqueue(store, delay=number % 2 * 60, priority=number).seq == number + 2
            assert store.state == state
        bodies.append(lines_of(journal(home))[2:])
        assert q.examine(opened(at=home)) == []
    assert bodies[0] == bodies[1]


LOOKS: dict[str, Callable[[Watched], object]] = {"counts": lambda store: store.read_counts(), "enqueue": enqueue}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", q.ARRAYS)
def test_a_light_look_sees_an_edit_of_either_array(home: Path, opened: Opener, look: str, name: str) -> None:
    store = opened()
    for id in ("a", "b"):
        enqueue(store, id)
    q.cancel_jobs(store, ["b"])
    store.settle()
    warm = opened()
    warm.read_counts()
    edit(home, lambda jobs: [*jobs, {"command": "x"}, {"command": "y"}], name)
    cold = opened()
    for store in (warm, cold):
        LOOKS[look](store)
        assert sum(store.counts) == store.n and store.n >= 4
    assert len(seen(opened())) == 4 + 2 * (look == "enqueue")


@pytest.mark.parametrize("look", LOOKS)
def test_a_light_look_after_a_reboot_sees_a_hole_before_the_last_line(
    home: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    store = opened()
    enqueue(store, "a")
    make_hole(home, store)
    store = opened()
    store.read_counts()
    assert store.counts[0] == 4, "its last line is whole: in the same boot there is no such hole"
    monkeypatch.setattr(q, "boot_id", lambda: "another boot")
    store = opened()
    LOOKS[look](store)
    assert store.counts[0] == 1 + (look == "enqueue")
    store.settle()
    assert len(seen(opened())) == 1 + (look == "enqueue")


def test_a_light_look_after_a_reboot_is_light_again_once_the_journal_was_folded(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    bulk(opened(), *["x" * 1000] * 1500)  # no small arrays
    monkeypatch.setattr(q, "boot_id", lambda: "another boot")
    store = opened()
    enqueue(store, "a")
    assert store.state == "full"
    store.settle()
    store = opened()
    enqueue(store, "b")
    assert store.state == "light"


# -- Bulks


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.one_of(
            st.sampled_from(["true", "{ ..3", "", " \t", "# said", "\u00a0# said", "é", "\x1c", "x\0y", "x" * 70_000]),
            st.sampled_from(['{"command": "json"}', '\u00a0 {"command": "j", "tags": ["t"]}', '{"delay": 5}', "\r"]),
            st.text(max_size=6).filter(lambda line: "\n" not in line),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_a_bulk_adds_the_jobs_that_its_lines_would_add_one_by_one(store: Watched, lines: list[str]) -> None:
    wanted: list[str] = []
    wrong = 0
    encoded = [line.encode("utf-8", "surrogatepass") for line in lines]
    for number, line in enumerate(encoded, 1):
        try:
            if (said := q.parse_job_line(line, store.home.now())) is not None:
                wanted.append(said["command"])
        except q.BadValue:
            wrong = wrong or number
    before = store.n
    if wrong:
        with pytest.raises(q.BadValue, match=rf"^In line {wrong}: "):
            q.enqueue_bulk(store, encoded, {"cwd": "/"}, keep_records=True)
    else:
        added = q.enqueue_bulk(store, encoded, {"cwd": "/"}, keep_records=True)
        assert [json.loads(raw)["command"] for raw in added.records] == wanted
        assert [json.loads(raw)["id"] for raw in added.records] == added.ids
        store.follow()
        jobs = store.find_jobs(added.ids)
        assert [jobs[id].command for id in added.ids] == wanted
    store.follow()
    assert store.n == before + (0 if wrong else len(wanted))


AS_LINE = '{"command": "x", "after": ["a"]}'  # its parent keeps it out of jobs.json


@pytest.mark.parametrize("first", ["x", AS_LINE], ids=["into jobs.json", "as a line"])
@pytest.mark.parametrize("act", [dies, IO_ERROR], ids=["killed", "EIO"])
def test_a_bulk_that_stops_at_any_effect_is_stored_whole_or_not_at_all(
    tmp_path: Path, opened: Opener, faulty: Any, first: str, act: Any
) -> None:
    for number in itertools.count(1):
        home = tmp_path / f"n{number}"
        home.mkdir(mode=0o700)
        enqueue(opened(at=home), "a")
        q.cancel_jobs(opened(at=home), ["a"])
        before = seen(opened(at=home))
        effects, store = faulty(lambda name, args: False, act), opened(at=home)
        effects.when = lambda name, args, effects=effects, at=number: effects.count == at
        error = None
        try:
            bulk(store, first, "y", "z")
        except (q.StoreError, Died) as failed:
            error = failed
        effects.undo()
        jobs = seen(opened(at=home))
        assert jobs == before or len(jobs) == 4
        if isinstance(error, q.StoreError) and "may have been stored" not in str(error):
            assert jobs == before, f"failed with '{error}', but its jobs are there"
        assert error is not None or len(jobs) == 4
        enqueue(opened(at=home), "next")
        opened(at=home).fold()
        assert list(seen(opened(at=home))) == [*jobs, "next"] and q.examine(opened(at=home)) == []
        if effects.count < number:
            break
    assert number > 10


@pytest.mark.parametrize("first", ["x", AS_LINE], ids=["into jobs.json", "as a line"])
def test_a_bulk_that_is_refused_half_way_stores_nothing(home: Path, opened: Opener, first: str) -> None:
    store = opened()
    enqueue(store, "a")
    store.fold()
    before = journal(home).read_bytes(), (home / "jobs.json").read_bytes()
    many = [first] * 2000
    for lines, why in (
        ([*many, '{"id": "a", "command": "x"}'], "line 2001: Job 'a' is there already"),
        ([*many, '{"id": "n", "command": "x"}', '{"id": "n", "command": "x"}'], "line 2002: .* line 2001 too"),
        ([*many, '{"command": "x", "after": ["nobody"]}'], "line 2001: There is no job 'nobody'"),
        ([*many, '{"command": 5}'], "line 2001"),
    ):
        with pytest.raises((q.Refused, q.BadValue), match=why):
            bulk(store, *lines)
    assert (journal(home).read_bytes(), (home / "jobs.json").read_bytes()) == before
    assert list(seen(opened())) == ["a"] and enqueue(store).seq == 2


def test_a_large_bulk_goes_into_the_array_and_a_small_one_into_the_journal(home: Path, opened: Opener) -> None:
    store = opened()
    bulk(store, *["x"] * 100)
    assert len(ids_in(home)) == 100 and store.state == "unread"
    bulk(store, "y", "z")
    assert len(ids_in(home)) == 100 and len(seen(opened())) == 102
    q.cancel_jobs(store, [added.id for added in list(store.jobs())[:1]])
    bulk(store, *[json.dumps({"command": "x", "after": [next(iter(listing(store)))]})] * 100)
    assert len(ids_in(home)) == 100, "a job that may be dead at once does not belong into jobs.json"
    assert store.counts == [101, 0, 0, 0, 101]


def test_a_bulk_takes_each_unique_key_once(opened: Opener) -> None:
    store = opened()
    enqueue(store, "a", unique="k")
    line = '{"id": "%s", "command": "x", "unique": "%s"}'
    answer = bulk(store, line % ("b", "k"), line % ("c", "new"), line % ("d", "new"), "plain")
    assert answer.added == 2 and answer.ids[:3] == ["a", "c", "c"]
    assert sorted(seen(opened()))[:2] == ["a", "c"]


def test_a_bulk_tells_the_id_of_each_line_made_given_or_there_before(opened: Opener) -> None:
    store = opened()
    enqueue(store, "there", unique="k")
    named = '{"id": "%s", "command": "x"}'
    same, new = '{"command": "x", "unique": "k"}', '{"command": "x", "unique": "n"}'
    told = bulk(store, *["x"] * 140, named % "a", "x", same, same, "x", new, new, named % "b").ids
    _, *jobs = seen(opened())
    assert told == [*jobs[:142], "there", "there", *jobs[142:144], jobs[143], "b"]
    assert (jobs[140], jobs[144], len(jobs)) == ("a", "b", 145)


# -- Folding (S1, S3)


def test_a_fold_writes_one_job_a_line_in_order_of_arrival(home: Path, store: Watched) -> None:
    for number in range(30):
        enqueue(store, f"j{number}", priority=number % 3)
    for number in range(0, 30, 4):
        q.cancel_jobs(store, [f"j{number}"])
    store.fold()
    for name, ids in {
        "jobs": [f"j{n}" for n in range(30) if n % 4],
        "dlq": [f"j{n}" for n in range(0, 30, 4)],
    }.items():
        text = (home / f"{name}.json").read_text()
        first, *lines, last, end = text.split("\n")
        assert (first, last, end) == ("[", "]", "")
        assert [json.loads(line.rstrip(","))["id"] for line in lines] == ids == ids_in(home, name)
    assert not [path for path in (home / ".queuectl").iterdir() if path.name.endswith(".new")]


@pytest.mark.parametrize("folded", [True, False], ids=["folded between", "in one journal"])
def test_dead_and_revived_jobs_keep_their_place(home: Path, opened: Opener, folded: bool) -> None:
    store = opened()
    for id in "abcdefghijkl":
        enqueue(store, id)
    store.fold()
    for ids in (["a"], ["f", "g"], ["l"], list("abcdefghijkl")):
        q.cancel_jobs(store, [id for id in ids if listing(store)[id].state != "dead"])
        if folded:
            store.fold()
        q.revive_jobs(store, ids)
        store.fold()
        assert [job["id"] for job in json.loads((home / "jobs.json").read_text())] == list("abcdefghijkl")
        assert list(seen(opened())) == list("abcdefghijkl") == list(listing(store))
    assert claim(store).id == "a"  # type: ignore[union-attr]


@settings(deadline=None, database=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["add", "kill", "revive", "purge", "fold"]), st.integers(0, 14)), max_size=25
    )
)
def test_arrays_after_a_fold_are_what_was_listed_before_it(tmp_path_factory: Any, steps: list[tuple[str, int]]) -> None:
    home = tmp_path_factory.mktemp("home")
    store = Watched(home)
    for event, number in steps:
        jobs = listing(store)
        id = f"j{number}"
        if event == "add" and id not in jobs:
            enqueue(store, id, command="x" * (1 + number))
        elif event == "kill" and id in jobs and jobs[id].state == "pending":
            q.cancel_jobs(store, [id])
        elif event == "revive" and id in jobs and jobs[id].state == "dead":
            q.revive_jobs(store, [id])
        elif event == "purge" and id in jobs and jobs[id].state == "dead":
            q.purge_dead(store, [id])
        elif event == "fold":
            store.fold()
            store.follow()
            for name in q.ARRAYS:
                want = [q.job_to_dict(job) for job in jobs.values() if q.array_of(job.state) == name]
                assert json.loads((home / f"{name}.json").read_text()) == want
            assert listing(store) == jobs and q.examine(store) == []
            assert list(store.jobs(reverse=True)) == list(jobs.values())[::-1]
    store.close()


def test_unknown_fields_survive_every_rewrite(home: Path, opened: Opener) -> None:
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


def test_reading_backwards_is_reading_forwards_reversed_in_a_large_array(home: Path, opened: Opener) -> None:
    store = opened()
    long = "x" * 700
    bulk(store, *(f"echo {number} {long}" for number in range(3000)))
    store.fold()
    assert (home / "jobs.json").stat().st_size > 2 * q.CHUNK_BYTES
    store = opened()
    store.read()
    ids = [job.id for job in store.jobs()]
    assert len(ids) == 3000 and [job.id for job in store.jobs(reverse=True)] == ids[::-1]
    for id in (ids[0], ids[1499], ids[2999]):
        found = store.get(id)
        assert found is not None and found.id == id
        with pytest.raises(q.Refused):
            enqueue(opened(), id)
    q.cancel_jobs(store, [ids[0], ids[1500], ids[2999]])
    store.fold()
    assert len(json.loads((home / "jobs.json").read_text())) == 2997
    q.revive_jobs(store, [ids[1500], ids[2999]])
    store.fold()
    assert [job["id"] for job in json.loads((home / "jobs.json").read_text())] == ids[1:]


def test_any_mix_of_old_and_new_arrays_is_the_same_state(home: Path, opened: Opener, faulty: Any) -> None:
    store = opened()
    for id in ("done", "a", "b", "dead", "c"):
        enqueue(store, id)
    run_next(store)
    q.cancel_jobs(store, ["dead"])
    store.fold()
    # A change in each direction: one dies, one is revived, one is deleted, one is new, one runs.
    q.cancel_jobs(store, ["b"])
    q.revive_jobs(store, ["dead"])
    q.purge_jobs(store, lambda job, now: job.state == "completed")
    enqueue(store, "new")
    claim(store)
    jobs = seen(opened())
    paths = {name: home / f"{name}.json" for name in q.ARRAYS}

    def no_edit(edited: list[str], locked: bool) -> None:
        raise AssertionError(f"{edited}: a fold that was broken off was taken for a hand edit")

    for name, path in paths.items():
        os.link(path, home / f"{name}.old")
    effects = faulty(lambda name, args: name == "rename" and str(args[1]).endswith("journal.jsonl"), dies)
    with pytest.raises(Died):
        store.fold()
    effects.undo()
    for name, path in paths.items():
        os.link(path, home / f"{name}.fresh")
    for choice in (("old", "old"), ("old", "fresh"), ("fresh", "old"), ("fresh", "fresh")):
        for name, which in zip(q.ARRAYS, choice, strict=True):
            paths[name].unlink()
            os.link(home / f"{name}.{which}", paths[name])
        before = journal(home).read_bytes()
        reader = opened()
        reader._take_edits = no_edit  # type: ignore[method-assign]
        assert seen(reader) == jobs and reader.warned == []
        assert journal(home).read_bytes() == before
    writer = opened()
    writer.fold()
    assert writer.warned == [], "a fold that was broken off is no hand edit"
    assert seen(opened()) == jobs and q.examine(opened()) == []


def test_a_fold_renames_dlq_before_jobs_and_then_the_journal(home: Path, opened: Opener, faulty: Any) -> None:
    store = opened()
    for id in ("a", "b"):
        enqueue(store, id)
    q.cancel_jobs(store, ["b"])
    renamed: list[str] = []

    def rename(name: str, real: Any, args: tuple[Any, ...]) -> Any:
        renamed.append(Path(args[1]).name)
        return real(*args)

    effects = faulty(lambda name, args: name == "rename", rename)
    store.fold()
    effects.undo()
    assert renamed == ["dlq.json", "jobs.json", "journal.jsonl"]


def test_a_fold_without_a_change_of_a_dead_job_leaves_dlq_alone(home: Path, store: Watched) -> None:
    enqueue(store, "a")
    q.cancel_jobs(store, ["a"])
    store.fold()
    inode = (home / "dlq.json").stat().st_ino
    enqueue(store, "b")
    store.fold()
    assert (home / "dlq.json").stat().st_ino == inode
    q.revive_jobs(store, ["a"])
    store.fold()
    assert (ids_in(home), ids_in(home, "dlq")) == (["a", "b"], [])


def begin_purge(store: Watched) -> object:
    return store.fold(completed_before="9999")


def begin_bulk(store: Watched) -> object:
    return bulk(store, "x", "y")


@pytest.mark.parametrize(
    ("begin", "counts", "n"), [(begin_purge, [1, 0, 0, 0, 0], 3), (begin_bulk, [3, 0, 1, 0, 0], 5)]
)
def test_counts_and_n_are_true_after_a_crash_between_the_renames_and_the_new_journal(
    home: Path, opened: Opener, faulty: Any, begin: Any, counts: list[int], n: int
) -> None:
    """What a fold adds to the array or leaves out of it stands in no line but its intent."""
    store = opened()
    for id in ("done", "gone", "a"):
        enqueue(store, id)
    run_next(store)
    q.cancel_jobs(store, ["gone"])
    q.purge_dead(store, ["gone"])
    store.fold()
    effects = faulty(is_of("journal.jsonl", "rename"), dies)
    with pytest.raises(Died):
        begin(opened())
    effects.undo()
    assert len(seen(opened())) == sum(counts)
    store = opened()
    store.read_counts()
    assert (store.counts, store.n) == (counts, n)
    assert enqueue(opened()).seq == n + 1
    assert q.examine(opened()) == []


def test_a_fold_leaves_out_old_completed_jobs_that_nothing_waits_for(home: Path, opened: Opener) -> None:
    clock = Clock()
    store = opened(clock)
    for id in ("old", "needed", "late", "journalled"):
        enqueue(store, id)
    for id in ("old", "needed"):
        assert run_next(store).id == id
    clock.at += 100
    at = store.home.now()
    clock.at += 1
    run_next(store)
    store.fold()
    enqueue(store, "waits", after=["needed"])
    run_next(store)
    assert store.fold(completed_before=at) == [("old", 1)]
    assert ids_in(home) == ["needed", "late", "journalled", "waits"] == list(seen(opened()))
    assert store.counts == [1, 0, 3, 0, 0] and q.examine(opened()) == []
    clock.at += 100
    assert sorted(store.fold(completed_before=store.home.now())) == [("journalled", 1), ("late", 1)]


FOLD_SCENES = ["fold", "first start", "settle"]


@pytest.mark.parametrize("act", [dies, IO_ERROR], ids=["killed", "EIO"])
@pytest.mark.parametrize("scene", FOLD_SCENES)
def test_a_fold_that_stops_at_any_effect_loses_nothing(
    tmp_path: Path, opened: Opener, faulty: Any, scene: str, act: Any
) -> None:
    for number in itertools.count():
        home = tmp_path / f"n{number}"
        home.mkdir(mode=0o700)
        store = opened(at=home)
        if scene != "first start":
            for id in ("a", "b", "c"):
                enqueue(store, id)
            store.fold()
            q.cancel_jobs(store, ["b"])
            claim(store)
        jobs = seen(opened(at=home))
        effects = faulty(lambda name, args: False, act)
        effects.when = lambda name, args, effects=effects, at=number + 1: effects.count == at
        with contextlib.suppress(q.StoreError, Died):
            store.settle() if scene == "settle" else store.fold()
        effects.undo()
        assert seen(opened(at=home)) == jobs
        store = opened(at=home)
        enqueue(store, "next")
        store.fold()
        assert store.warned == []
        assert list(seen(opened(at=home))) == [*jobs, "next"] and q.examine(opened(at=home)) == []
        if effects.count <= number:
            break
    assert number > 10


@pytest.mark.parametrize("name", q.ARRAYS)
def test_an_array_that_could_not_be_opened_once_is_not_forgotten(
    home: Path, opened: Opener, faulty: Any, name: str
) -> None:
    writer = opened()
    for id in ("a", "b"):
        enqueue(writer, id)
    q.cancel_jobs(writer, ["b"])
    writer.fold()
    store = opened()
    effects = faulty(is_of(f"/{name}.json", "open"), fails(errno.EMFILE))
    with pytest.raises(q.StoreError):
        store.follow()
    effects.undo()
    store.follow()
    store.fold()
    assert list(seen(opened())) == ["a", "b"]


def test_a_failed_fold_does_not_fail_the_command(home: Path, opened: Opener, faulty: Any) -> None:
    store = opened()
    enqueue(store, "a")
    store.settle()
    enqueue(store, "b")
    effects = faulty(lambda name, args: name == "rename", NO_SPACE)
    store.settle()
    effects.undo()
    (warning,) = store.warned
    assert warning.startswith("The change is stored")
    assert list(seen(opened())) == ["a", "b"] and ids_in(home) == ["a"]
    store = opened()
    added = bulk(store, "echo 1", "echo 2").ids
    store.settle()
    assert list(seen(opened())) == ["a", "b", *added] == ids_in(home)


def test_arrays_of_another_program_are_not_overwritten_by_a_fold(home: Path, opened: Opener, faulty: Any) -> None:
    """Step 3: an edit that was saved while the fold wrote its own files."""
    store = opened()
    enqueue(store, "a")
    store.settle()
    enqueue(store, "b")

    def edited(name: str, real: Any, args: tuple[Any, ...]) -> Any:
        edit(home, lambda jobs: [*jobs, {"id": "hand", "command": "x"}])
        return real(*args)

    effects = faulty(is_of("jobs.json.new", "open"), edited)
    store.settle()
    effects.undo()
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


def test_a_journal_whose_sync_failed_is_copied_to_a_fresh_file_and_never_synced_again(
    home: Path, opened: Opener, faulty: Any
) -> None:
    store = opened()
    enqueue(store, "a")
    store.settle()
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


@pytest.mark.parametrize("at", ["sync", "fold", "settle"])
def test_a_journal_that_can_be_neither_synced_nor_copied_ends_the_changes_of_a_process(
    home: Path, opened: Opener, faulty: Any, at: str
) -> None:
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

    effects = faulty(
        lambda name, args: name == "fsync" or is_of("journal.json.new", "open")(name, args),
        fail,
    )
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
def test_a_change_is_synced_whatever_becomes_of_the_fold(home: Path, opened: Opener, faulty: Any, name: str) -> None:
    store = opened()
    enqueue(store, "a")
    q.cancel_jobs(store, ["a"])
    store.settle()
    q.revive_jobs(store, ["a"])
    inode, synced = journal(home).stat().st_ino, []

    def act(effect: str, real: Any, args: tuple[Any, ...]) -> Any:
        if effect != "fsync":
            raise OSError(errno.EMFILE, "Too many open files")
        synced.append(inode_of(args))

    store = opened()
    enqueue(store, "b")
    effects = faulty(lambda effect, args: effect == "fsync" or is_of(f"/{name}", "open")(effect, args), act)
    store.settle()
    effects.undo()
    assert len(store.warned) == 1 and inode in synced


def test_with_fsync_always_each_change_is_synced_before_it_is_told(home: Path, opened: Opener, faulty: Any) -> None:
    store = opened()
    enqueue(store, "a")
    for word, times in (("always", 1), ("normal", 0), ("never", 0)):
        q.set_setting(store, "fsync", word)
        store.home.config()
        for change in (lambda: enqueue(store), lambda: run_next(store), lambda: bulk(store, AS_LINE, AS_LINE)):
            synced = synced_by(change, faulty)
            assert (journal(home).stat().st_ino in synced) == bool(times), word
        assert (synced_by(store.settle, faulty) == []) is False, "the fold is synced in any case"


# -- Hand edits


def test_a_pretty_printed_edit_with_missing_fields_is_taken_and_made_canonical(home: Path, opened: Opener) -> None:
    store = opened()
    enqueue(store, "a")
    store.settle()
    mine = {"id": "mine", "command": "x", "max_retries": 9}
    edit(home, lambda jobs: [{**jobs[0], "priority": 7}, {"command": "echo hi"}, mine], indent=4)
    text = (home / "jobs.json").read_text()
    reader = opened()
    jobs = seen(reader)
    assert (home / "jobs.json").read_text() == text, "a reader changes nothing"
    made = next(id for id in jobs if id not in ("a", "mine"))
    assert jobs["a"].priority == 7 and jobs["mine"].max_retries == 9
    assert (jobs[made].state, jobs[made].attempts, jobs[made].max_retries, jobs[made].cwd) == (
        "pending",
        0,
        3,
        str(home),
    )
    assert [job.seq for job in jobs.values()] == [1, 2, 3]
    store = opened()
    store.follow()
    assert seen(opened()) == jobs == listing(store), "the writer gives them the same ids as the reader did"
    lines = (home / "jobs.json").read_text().splitlines()
    assert len(lines) == 5 and store.warned == [] and q.examine(opened()) == []
    assert [json.loads(line.rstrip(","))["id"] for line in lines[1:-1]] == list(jobs)
    enqueue(store, "next")
    assert listing(store)["next"].seq == 4


def test_an_edit_under_a_running_store_is_taken_at_its_next_look(home: Path, opened: Opener) -> None:
    store = opened()
    for id in ("a", "b", "c"):
        enqueue(store, id)
    store.fold()
    index(store)
    edit(home, lambda jobs: [{**job, "priority": 5} if job["id"] == "c" else job for job in jobs if job["id"] != "a"])
    assert claim(store).id == "c"  # type: ignore[union-attr]
    assert list(listing(store)) == ["b", "c"] == list(seen(opened()))


@pytest.mark.parametrize("how", ["touched", "copied", "restored"])
def test_the_same_bytes_under_another_fingerprint_are_no_edit(home: Path, opened: Opener, how: str) -> None:
    store = opened()
    enqueue(store, "a")
    store.settle()
    jobs, path = seen(opened()), home / "jobs.json"
    if how == "touched":
        os.utime(path, (1, 1))
    else:
        shutil.copyfile(path, home / "copy")
        if how == "restored":
            os.utime(home / "copy", (1, 1))
        os.rename(home / "copy", path)
    assert seen(opened()) == jobs
    store = opened()
    store.follow()
    assert seen(opened()) == jobs and store.warned == [] and q.examine(opened()) == []


def test_an_id_that_is_made_for_an_edit_depends_on_the_place_in_its_own_array_alone(
    home: Path, opened: Opener, faulty: Any
) -> None:
    store = opened()
    for id in ("a", "b"):
        enqueue(store, id)
    q.cancel_jobs(store, ["b"])
    store.settle()
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


@pytest.mark.parametrize("fault", ["open", "rename"])
def test_an_edit_is_appended_once_although_the_fold_cannot_be_done(
    home: Path, opened: Opener, faulty: Any, fault: str
) -> None:
    store = opened()
    enqueue(store, "a")
    store.settle()
    edit(home, lambda jobs: [{**jobs[0], "state": "dead"}, {"command": "made"}])
    ending = "jobs.json.new" if fault == "open" else "jobs.json"
    effects = faulty(is_of(ending, fault), NO_SPACE)
    sizes = []
    warned = 0
    for _ in range(4):
        store = opened()
        store.follow()
        store.follow()
        sizes.append(len([line for line in lines_of(journal(home)) if b'"intent"' not in line[:20]]))
        assert {job.command: job.state for job in listing(store).values()} == {"true": "dead", "made": "pending"}
        warned += len(store.warned)
    effects.undo()
    assert sizes == [3] * 4, "the journal does not grow"
    assert warned == 4 and not (home / ".queuectl" / "aside").exists()
    store = opened()
    store.follow()
    assert store.warned == [] and ids_in(home, "dlq") == ["a"] and len(ids_in(home)) == 1
    assert q.examine(opened()) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda jobs: [*jobs, jobs[0]], "twice|also stands"),
        (lambda jobs: [*jobs, {"id": "dead", "command": "x"}], "also stands in dlq.json"),
        (lambda jobs: [*jobs, {"id": "new"}], "element 3"),
        (lambda jobs: [*jobs, {"command": "x", "id": []}], "element 3"),
        (lambda jobs: [*jobs, {"command": "x", "priority": "high"}], "priority"),
        (lambda jobs: [*jobs, {"command": "x", "state": "done"}], "state"),
        (lambda jobs: [*jobs, {"command": "x", "state": "processing"}], "processing"),
        (lambda jobs: [*jobs, {"command": "x", "attempts": 9}], "attempts"),
        (lambda jobs: [*jobs, {"command": "x", "seq": 10**12 + 1}], "seq"),
        (lambda jobs: [*jobs, {"command": "x", "runs": 10**6 + 1}], "runs"),
        (lambda jobs: [*jobs, {"command": "x", "history": 5}], "history"),
        (lambda jobs: [*jobs, {"command": "x", "state": "failed", "attempts": 2, "max_retries": 2}], "a failed job with"),
        (lambda jobs: [*jobs, "echo hi"], "element 3"),
        (lambda jobs: {"jobs": jobs}, "array"),
        (lambda jobs: None, "array"),
    ],
)  # fmt: skip
def test_an_edit_that_cannot_be_used_is_refused_and_left_alone(
    home: Path, opened: Opener, change: Any, word: str
) -> None:
    store = opened()
    for id in ("dead", "a", "b"):
        enqueue(store, id)
    q.cancel_jobs(store, ["dead"])
    store.fold()
    edit(home, change)
    text, before = (home / "jobs.json").read_text(), journal(home).read_bytes()
    for look in (
        lambda: opened().read(),
        lambda: enqueue(opened(), "n"),
        lambda: claim(opened()),
        lambda: claim(store),
    ):
        with pytest.raises(q.StoreError, match=word):
            look()
    assert (home / "jobs.json").read_text() == text and journal(home).read_bytes() == before
    assert q.examine(opened()) != []


@pytest.mark.parametrize(
    "text",
    ["", "[", '[{"id": "a"', "[NaN]", '[{"command": "x", "command": "y"}]', "\udcff", '[{"command": "x", "x": 1e400}]'],
)
def test_an_array_that_is_no_json_is_refused_and_left_alone(home: Path, opened: Opener, text: str) -> None:
    store = opened()
    enqueue(store, "a")
    store.settle()
    data = text.encode("utf-8", "surrogateescape")
    (home / "jobs.json").write_bytes(data)
    for look in (lambda: opened().read(), lambda: enqueue(opened(), "n"), lambda: claim(opened())):
        with pytest.raises(q.StoreError, match="jobs.json"):
            look()
    assert (home / "jobs.json").read_bytes() == data


def test_an_edit_never_unclaims_a_running_job(home: Path, opened: Opener) -> None:
    store = opened()
    for id in ("a", "b"):
        enqueue(store, id)
    running = claim(store)
    store.fold()
    assert running is not None and json.loads((home / "jobs.json").read_text())[0]["state"] == "processing"
    edit(home, lambda jobs: [{"id": "a", "command": "other", "priority": 9}, *jobs[1:]])
    text = (home / "jobs.json").read_text()
    store.follow()
    assert listing(store)["a"] == running and list(seen(opened())) == ["a", "b"]
    (warning,) = store.warned
    assert Path(warning.split("'")[1]).read_text() == text, "the edited file is kept aside"
    assert report(store, running, OK) is not None


def test_a_job_of_the_journal_stays_as_the_journal_has_it(home: Path, opened: Opener) -> None:
    store = opened()
    for id in ("a", "b", "c", "gone"):
        enqueue(store, id)
    q.cancel_jobs(store, ["gone"])
    store.fold()
    q.cancel_jobs(store, ["a"])
    q.purge_dead(store, ["gone"])
    enqueue(store, "d")
    jobs = seen(opened())
    edit(home, lambda jobs: [{**job, "priority": 5} for job in jobs if job["id"] != "c"])
    assert set(seen(opened())) == {"a", "b", "d"}
    store.follow()
    after = listing(store)
    assert after["a"] == jobs["a"] and after["d"] == jobs["d"] and after["b"].priority == 5 and "c" not in after
    assert len(store.warned) == 1 and "kept as" in store.warned[0]
    assert seen(opened()) == after and q.examine(opened()) == []


def test_an_id_in_both_arrays_is_no_error_where_the_journal_holds_it(home: Path, opened: Opener, faulty: Any) -> None:
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


def test_a_job_moved_by_hand_between_the_arrays_is_in_one_of_them(home: Path, opened: Opener) -> None:
    store = opened()
    for id in ("a", "b"):
        enqueue(store, id)
    q.cancel_jobs(store, ["b"])
    store.fold()
    edit(home, lambda jobs: [{**jobs[0], "state": "dead"}])
    edit(home, lambda jobs: [{**jobs[0], "state": "pending", "finished_at": None, "cancelled_at": None}], "dlq")
    store.follow()
    assert {id: job.state for id, job in seen(opened()).items()} == {"a": "dead", "b": "pending"}
    assert [job["id"] for job in json.loads((home / "jobs.json").read_text())] == ["b"]
    assert [job["id"] for job in json.loads((home / "dlq.json").read_text())] == ["a"]


@pytest.mark.parametrize("name", q.ARRAYS)
def test_a_crash_while_an_edit_is_taken_loses_no_job(home: Path, opened: Opener, faulty: Any, name: str) -> None:
    store = opened()
    for id in ("a", "b"):
        enqueue(store, id)
    q.cancel_jobs(store, ["b"])
    store.fold()
    if name == "jobs":
        edit(home, lambda jobs: [{**job, "state": "dead"} for job in jobs])
    else:
        edit(home, lambda jobs: [{"id": job["id"], "command": "x", "state": "pending"} for job in jobs], "dlq")
    effects = faulty(lambda name, args: name == "rename" and str(args[1]).endswith("dlq.json"), dies)
    with pytest.raises(Died):
        opened().follow()
    effects.undo()
    assert sorted(seen(opened())) == ["a", "b"]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_crash_while_an_edit_is_taken_does_not_take_it_twice(
    home: Path, opened: Opener, faulty: Any, stop: int
) -> None:
    store = opened()
    enqueue(store, "a")
    store.fold()
    edit(home, lambda jobs: [*jobs, {"command": "no id"}, {"id": "dead", "command": "x", "state": "dead"}])
    effects = faulty(nth("rename", stop), dies)
    with pytest.raises(Died):
        opened().follow()
    effects.undo()
    jobs = seen(opened())
    assert len(jobs) == 3
    enqueue(opened(), "next")
    opened().fold()
    assert list(seen(opened())) == [*jobs, "next"] and q.examine(opened()) == []


def test_a_first_start_on_files_of_a_backup_loses_nothing_at_any_rename(
    tmp_path: Path, opened: Opener, faulty: Any
) -> None:
    for stop in itertools.count(1):
        home = tmp_path / f"n{stop}"
        home.mkdir(mode=0o700)
        (home / "jobs.json").write_text(
            '[{"id": "a", "command": "x"}, {"id": "late", "command": "x", "state": "dead", "seq": 700}]'
        )
        (home / "dlq.json").write_text('[{"id": "back", "command": "x", "state": "pending"}]')
        effects, over = faulty(nth("rename", stop), dies), True
        try:
            opened(at=home).follow()
        except Died:
            over = False
        effects.undo()
        assert sorted(seen(opened(at=home))) == ["a", "back", "late"]
        assert enqueue(opened(at=home)).seq > 700, "n is the highest seq"
        if over:
            break
    assert stop > 3


def test_a_second_edit_while_the_first_is_taken_is_not_overwritten(home: Path, opened: Opener, faulty: Any) -> None:
    store = opened()
    enqueue(store, "a")
    store.settle()
    edit(home, lambda jobs: [{**job, "priority": 1} for job in jobs])

    def again(name: str, real: Any, args: tuple[Any, ...]) -> Any:
        effects.undo()
        edit(home, lambda jobs: [*jobs, {"id": "second", "command": "x"}])
        return real(*args)

    effects = faulty(is_of("jobs.json.new", "open"), again)
    opened().follow()
    assert "second" in seen(opened()) and "second" in ids_in(home)


def test_a_reader_finds_its_way_where_a_torn_tail_and_an_edit_meet(home: Path, opened: Opener) -> None:
    store = opened()
    enqueue(store, "a")
    store.settle()
    with journal(home).open("ab") as file:
        file.write(b"12345678 torn")
    edit(home, lambda jobs: [{**job, "priority": 1} for job in jobs])
    assert seen(opened())["a"].priority == 1
    opened().follow()
    assert seen(opened())["a"].priority == 1 and q.examine(opened()) == []


# -- Readers, and stores that follow each other


def test_a_store_sees_what_others_append_and_survives_their_folds(opened: Opener) -> None:
    one, other = opened(), opened()
    enqueue(one, "a")
    other.follow()
    assert list(listing(other)) == ["a"] and not other.refresh()
    enqueue(one, "b")
    assert other.refresh() and list(listing(other)) == ["a", "b"]
    enqueue(one, "c")
    one.fold()
    q.cancel_jobs(one, ["a"])
    one.fold()
    enqueue(one, "d")
    other.follow()
    assert listing(other) == listing(one) and (other.counts, other.n) == (one.counts, one.n)
    running = claim(other)
    assert running is not None and running.id == "b"
    one.fold()
    assert report(one, running, OK) is not None
    one.follow()
    other.follow()
    assert listing(other) == listing(one) and list(other.processing) == []
    assert q.take_turn(other, "w", 0, (running, OK), False, q.TagFilter()).reported is None


def test_a_follower_writes_after_what_others_wrote(opened: Opener) -> None:
    stores = [opened() for _ in range(3)]
    for number in range(30):
        enqueue(stores[number % 3], f"j{number}")
        if number % 7 == 6:
            stores[(number + 1) % 3].fold()
        if number % 5 == 4:
            claim(stores[(number + 2) % 3])
    for store in stores:
        store.follow()
        assert list(listing(store)) == [f"j{number}" for number in range(30)]
        assert store.n == 30 and store.counts[:2] == [24, 6]
    assert [job.seq for job in listing(stores[0]).values()] == list(range(1, 31))


def test_a_follower_notices_a_new_journal_beside_the_same_arrays(opened: Opener) -> None:
    """S7: what came and went between two folds changes no array, and the new journal is as long as the old one."""
    follower, other = opened(), opened()
    enqueue(other, "a")
    other.fold()
    enqueue(other, "b")
    other.fold()
    follower.follow()
    enqueue(other, "gone")
    q.cancel_jobs(other, ["gone"])
    q.purge_dead(other, ["gone"])
    other.fold()
    enqueue(other, "c")
    q.cancel_jobs(follower, ["a"])
    assert set(listing(follower)) == {"a", "b", "c"}
    assert seen(opened())["a"].state == "dead"


def test_readers_create_nothing(home: Path, opened: Opener) -> None:
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
            change.put(old, q.new_job(q.Spec("true", priority=round), id, seq, store.home.config(), change.now))
    if round % 3 == 0:
        q.enqueue_job(store, q.Spec("true", id=f"j{round}"))
    if round % 4 == 0:
        q.cancel_jobs(store, ["left", "right"])
        store.fold()
        q.revive_jobs(store, ["left", "right"])
    if round % 2 == 0:
        store.fold()
"""


def test_every_lock_free_read_during_folds_is_one_consistent_state(home: Path, opened: Opener) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(home), str(PROGRAM.parent), "120"]) as child:
        reads, last = 0, -1
        while child.poll() is None:
            reader, counter = opened(), opened()
            reader.read()
            jobs = {job.id: job for job in reader.jobs()}
            assert reader.counts == [sum(job.state == state for job in jobs.values()) for state in q.STATES]
            counter.read_counts()
            assert counter.n >= reader.n
            if jobs:
                left, right = jobs["left"], jobs["right"]
                assert (left.priority, left.state) == (right.priority, right.state), "half a transaction was seen"
                assert left.priority >= last, "a later read shows an earlier state"
                last = left.priority
            reads += 1
            reader.close()
            counter.close()
    assert child.returncode == 0 and reads > 3
    assert q.examine(opened()) == [] and len(seen(opened())) == 42


APPENDER = """
import sys
sys.path.insert(0, sys.argv[2])
import queuectl as q
store = q.open_store(sys.argv[1], print)
for number in range(40):
    q.enqueue_job(store, q.Spec("true", id=f"{sys.argv[3]}-{number}"))
    if number % 3 == 0:
        job = q.take_turn(store, sys.argv[3], 0, None, True, q.TagFilter()).claimed
        assert q.take_turn(store, sys.argv[3], 0, (job, q.Outcome("exited", 0)), False, q.TagFilter()).reported
    if number % 4 == 0:
        store.settle()
"""


def test_several_processes_that_append_at_once_lose_nothing(home: Path, opened: Opener) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", APPENDER, str(home), str(PROGRAM.parent), name]) for name in "abc"
    ]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    jobs = seen(opened())
    assert sorted(jobs) == sorted(f"{name}-{number}" for name in "abc" for number in range(40))
    assert sorted(job.seq for job in jobs.values()) == list(range(1, 121))
    ended = [job for job in jobs.values() if job.state == "completed"]
    assert len(ended) == 42 and all(job.runs == 1 for job in ended)
    assert q.examine(opened()) == []


def test_threads_of_one_store_exclude_each_other(opened: Opener) -> None:
    store = opened()
    for number in range(40):
        enqueue(store, f"j{number}")
    taken: list[list[str]] = [[], [], [], []]

    def work(slot: int) -> None:
        done = None
        while True:
            turn = q.take_turn(store, "w", slot, done, True, q.TagFilter())
            if turn.claimed is None:
                return
            taken[slot].append(turn.claimed.id)
            done = (turn.claimed, OK)

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(sum(taken, [])) == sorted(f"j{number}" for number in range(40))
    assert store.counts == [0, 0, 40, 0, 0] and q.examine(opened()) == []


def test_a_thread_waits_for_another_of_its_own_store(opened: Opener) -> None:
    store = opened()
    q.set_setting(store, "lock-timeout", "0.05")
    store.home.config()  # the lock goes by the settings as last read
    refused: list[str] = []

    def look() -> None:
        try:
            store.follow()
        except q.StoreError as error:
            refused.append(str(error))

    with store.transaction():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(60)
    assert len(refused) == 1 and "is locked" in refused[0]


def test_a_lock_held_too_long_is_a_store_error(home: Path, opened: Opener) -> None:
    holder, waiter = opened(), opened()
    enqueue(holder, "a")
    q.set_setting(holder, "lock_timeout", "0.01")
    before = journal(home).read_bytes()
    with holder.transaction():
        for change in (lambda: enqueue(waiter, "b"), lambda: claim(waiter), lambda: waiter.fold()):
            with pytest.raises(q.Busy, match="locked by another process"):
                change()
        assert list(seen(opened())) == ["a"], "readers never wait"
        assert journal(home).read_bytes() == before
    enqueue(waiter, "b")
    assert list(seen(opened())) == ["a", "b"]


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
def test_an_id_is_taken_only_by_a_job_that_has_it(home: Path, opened: Opener, folded: bool) -> None:
    store = opened()
    bait = '{"id": "bait", "state": "pending", "seq": 1'
    enqueue(
        store,
        "a",
        command=f"echo '{bait}'",
        tags=["tagbait"],
        unique="keybait",
        env={"E": '\t{"id": "envbait", "state": "'},
    )
    enqueue(store, "prefix-long")
    for id in ("gone", "again", "killed"):
        enqueue(store, id)
    store.fold()
    nested = {"id": "nested", "state": "pending", "seq": 3}
    edit(home, lambda jobs: [{**job, "more": [nested], "twin": {"id": "a", "state": "dead"}} for job in jobs])
    store.follow()
    if not folded:
        for id in ("a", "prefix-long"):
            q.cancel_jobs(store, [id])
            q.revive_jobs(store, [id])
    q.cancel_jobs(store, ["gone", "again", "killed"])
    q.purge_dead(store, ["gone", "again"])
    enqueue(store, "again")
    if folded:
        store.fold()
    for id in ("a", "prefix-long", "again", "killed"):
        assert is_taken(opened, id), id
    for id in ("bait", "nested", "tagbait", "keybait", "envbait", "gone", "prefix", "long", "A", "a1"):
        assert not is_taken(opened, id), id
    assert q.examine(opened()) == []


def test_a_search_in_the_middle_of_anothers_fold_finds_what_it_looks_for(opened: Opener) -> None:
    """A store that is killed between its renames leaves arrays and journal of two ages."""
    other = opened()
    for id in ("a", "b"):
        enqueue(other, id, unique=f"key of {id}")
    other.settle()
    q.cancel_jobs(other, ["b"])
    for stop in (1, 2, 3):
        effects = Effects(nth("rename", stop), dies)
        q.os, real = effects, q.os  # type: ignore[attr-defined, assignment]
        with pytest.raises(Died):
            opened().fold()
        q.os = real  # type: ignore[attr-defined]
        assert q.enqueue_job(opened(), q.Spec("x", unique="key of a")).job.id == "a"
        assert all(is_taken(opened, id) for id in "ab")
        assert not q.enqueue_job(opened(), q.Spec("x", id=f"n{stop}", unique=f"key {stop}")).duplicate


@pytest.mark.parametrize("folded", [True, False], ids=["in the arrays", "in the journal"])
@pytest.mark.parametrize("key", ["k", 'q"uote\\', "ü\t\n", '", "command": "x'])
def test_a_unique_key_is_held_by_an_active_job_alone(home: Path, opened: Opener, folded: bool, key: str) -> None:
    store = opened()
    enqueue(store, "bait", command=f'"unique": {json.dumps(key)}, "command": ', unique="other")
    store.fold()
    edit(home, lambda jobs: [{**job, "note": {"unique": key, "command": "x"}} for job in jobs])
    store.follow()

    def holder() -> str | None:
        if folded:
            store.fold()
        one = opened()
        answer = q.enqueue_job(one, q.Spec("probe", id="probe", unique=key))
        if answer.duplicate:
            return answer.job.id
        q.cancel_jobs(one, ["probe"])
        q.purge_dead(one, ["probe"])
        return None

    assert holder() is None
    enqueue(store, "a", unique=key)
    assert holder() == "a"
    store.follow()
    q.cancel_jobs(store, ["bait"])
    running = claim(store)
    assert running is not None and running.id == "a" and holder() == "a"
    assert report(store, running, BAD).state == "failed"  # type: ignore[union-attr]
    assert holder() == "a", "a job that waits for its retry holds its key"
    q.cancel_jobs(store, ["a"])
    assert holder() is None, "a dead one does not"
    q.revive_jobs(store, ["a"])
    assert holder() == "a"
    running = claim(store)
    assert running is not None
    report(store, running, OK)
    assert holder() is None, "nor a completed one"
    enqueue(store, "b", unique=key)
    assert holder() == "b"
    q.cancel_jobs(store, ["b"])
    q.purge_jobs(store, lambda job, now: True)
    assert holder() is None and q.examine(opened()) == []


def test_a_lookup_in_a_light_store_loads_nothing_and_finds_the_last_word(home: Path, opened: Opener) -> None:
    store = opened()
    bulk(store, *[f'{{"id": "j{n}", "command": "x", "unique": "k{n}"}}' for n in range(40)])
    store.fold()
    q.cancel_jobs(store, ["j1", "j2"])
    q.revive_jobs(store, ["j1"], {"priority": 7})
    q.purge_dead(store, ["j2"])
    light = opened()
    enqueue(light, "probe", after=["j1"])
    assert light.state == "light"
    found = light.find_jobs(["j0", "j1", "j2", "probe", "none"])
    assert {id: job.priority for id, job in found.items()} == {"j0": 0, "j1": 7, "probe": 0}
    assert set(light.find_jobs([f"j{n}" for n in range(50)])) == {f"j{n}" for n in range(40)} - {"j2"}
    assert {key: job.id for key, job in light.holders(["k1", "k2", "k39"]).items()} == {"k1": "j1", "k39": "j39"}
    assert len(light.holders([f"k{n}" for n in range(40)])) == 39 and light.state == "light"


def test_made_ids_differ_even_at_one_moment_in_several_stores(opened: Opener) -> None:
    clock = Clock()
    stores = [opened(clock) for _ in range(3)]
    ids = {enqueue(stores[number % 3]).id for number in range(30)}
    assert len(ids) == 30 and all(len(id) == 12 for id in ids)


# -- Claim order


def claimed(store: q.Store) -> Iterator[str]:
    while (job := claim(store)) is not None:
        yield job.id


@pytest.mark.parametrize("folded", [True, False], ids=["from the arrays", "from the journal"])
def test_claims_go_by_priority_then_by_arrival(opened: Opener, folded: bool) -> None:
    store = opened()
    for number, priority in enumerate((0, 5, -1, 5, 0, -1_000_000, 1_000_000)):
        enqueue(store, f"j{number}", priority=priority)
    if folded:
        store.fold()
    assert list(claimed(store)) == ["j6", "j1", "j3", "j0", "j4", "j2", "j5"]


@pytest.mark.parametrize("folded", [True, False], ids=["from the arrays", "from the journal"])
def test_a_revived_job_is_claimed_in_its_old_place(opened: Opener, folded: bool) -> None:
    store = opened()
    for id in "abcd":
        enqueue(store, id)
    q.cancel_jobs(store, ["b", "d"])
    if folded:
        store.fold()
        store.follow()
    index(store)
    q.revive_jobs(store, ["d", "b"])
    if folded:
        store.fold()
    assert list(claimed(store)) == ["a", "b", "c", "d"]


def test_a_due_retry_is_claimed_in_its_place_and_not_before(opened: Opener) -> None:
    clock = Clock()
    store = opened(clock)
    for id in ("a", "b", "c"):
        enqueue(store, id)
    run_next(store, BAD)
    enqueue(store, "later", delay=1, priority=9)
    clock.at += 0.9
    assert claim(store).id == "b"  # type: ignore[union-attr]
    clock.at += 1.1
    assert [claim(store).id for _ in range(3)] == ["later", "a", "c"]  # type: ignore[union-attr]
    assert claim(store) is None


def test_filters_take_only_what_fits(opened: Opener) -> None:
    store, slots = opened(), itertools.count()
    for id, tags in (("plain", []), ("gpu", ["gpu"]), ("both", ["gpu", "net"]), ("net", ["net"])):
        enqueue(store, id, tags=tags)
    for only, ids in (
        (q.TagFilter(("gpu",), ("net",)), ["gpu"]),
        (q.TagFilter((), ("gpu", "net")), ["plain"]),
        (q.TagFilter(("net", "gpu")), ["both", "net"]),
    ):
        got: list[str] = []
        while job := q.take_turn(store, "w", next(slots), None, True, only).claimed:
            got.append(job.id)
        assert got == ids


def test_what_was_added_together_is_decoded_once_for_the_index(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first claim among a million jobs with a delay, a priority or a tag holds the lock for a second, not ten."""
    clock = Clock()
    store = opened(clock)
    later = q.format_instant(clock.at + 86_400)
    bulk(store, *["x"] * 300, run_at=later)
    bulk(store, *["x"] * 300, priority=-1, tags=["a"])
    bulk(store, *["x"] * 300, tags=["b"])
    bulk(store, *["x"] * 300, run_at=later, tags=["b"])
    store.fold()
    jobs = seen(opened())
    decoded = [0]
    trust = q.trust_job

    def counted(raw: bytes) -> q.Job:
        decoded[0] += 1
        return trust(raw)

    monkeypatch.setattr(q, "trust_job", counted)
    slots = itertools.count()
    for only, tags in ((q.TagFilter(), ["b"]), (q.TagFilter(("a",)), ["a"]), (q.TagFilter((), ("b",)), ["a"])):
        store = opened(clock)
        decoded[0] = 0
        job = q.take_turn(store, "w", next(slots), None, True, only).claimed
        assert job is not None and jobs[job.id].tags == tags and decoded[0] < 15
    clock.at += 86_401
    assert sum(1 for _ in claimed(store)) == 1197, "each of the others is claimed in its time"


def test_plain_jobs_cost_eight_bytes_in_the_index(opened: Opener) -> None:
    store = opened()
    bulk(store, *["true"] * 3000)
    index(store)
    lanes = [listener for listener in store.listeners if isinstance(listener, q.ClaimOrder)][0]._lanes.values()
    assert [(len(lane.offsets), lane.offsets.itemsize, lane.heap) for lane in lanes] == [(3000, 8, [])]
    assert store.records == {}


@pytest.mark.parametrize("folded", [True, False], ids=["from the arrays", "from the journal"])
def test_a_retry_beyond_any_backoff_is_due_after_the_clock_was_set_back(opened: Opener, folded: bool) -> None:
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


def test_a_job_that_is_not_ready_yet_goes_back_to_the_timed_ones_when_the_clock_steps_back(opened: Opener) -> None:
    clock = Clock()
    store = opened(clock)
    enqueue(store, "runs")
    enqueue(store, "later", delay=60)
    running = claim(store)
    order = index(store)
    clock.at += 61
    late = store.home.now()
    assert order.first(late).id == "later"  # type: ignore[union-attr]
    clock.at -= 30  # the same index: no look came between that saw the clock being set
    early = store.home.now()
    assert order.first(early) is None and order.oldest(early) is None
    assert order.next_run_at() == q.format_instant(clock.at + 29), "and the main thread sleeps until then"
    assert order.first(late).id == "later"  # type: ignore[union-attr]
    clock.at += 30
    assert running is not None and claim(store).id == "later"  # type: ignore[union-attr]


def test_a_clock_that_is_slewed_builds_no_new_index(opened: Opener) -> None:
    clock = Clock()
    store = opened(clock)
    enqueue(store, "a")
    order = index(store)
    for _ in range(5):
        clock.at += 0.9  # the other clock stands still meanwhile, or nearly
        assert index(store) is order
    clock.at += 1.5
    assert index(store) is not order


STEPS = [
    "add", "add later", "add after", "claim", "succeed", "fail", "hand back", "cancel", "retry", "revive", "purge",
    "time", "clock back", "fold", "limits",
]  # fmt: skip


@settings(deadline=None, database=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5), st.booleans()), min_size=5, max_size=30))
def test_the_oldest_and_the_next_time_equal_a_count_from_scratch_after_every_change(
    tmp_path_factory: Any, steps: list[tuple[str, int, bool]]
) -> None:
    clock = Clock()
    home = tmp_path_factory.mktemp("home")
    stores = [Watched(home, clock), Watched(home, clock)]
    for event, number, second in steps:
        store = stores[second]
        store.follow()
        jobs = list(store.jobs())
        pick = [job for job in jobs if job.state in {
            "succeed": ("processing",), "fail": ("processing",), "hand back": ("processing",), "retry": ("failed",),
            "cancel": q.WAITING, "revive": ("dead",), "purge": ("dead",), "add after": q.STATES,
        }.get(event, ())]  # fmt: skip
        one = pick[number % len(pick)] if pick else None
        with contextlib.suppress(q.Refused):
            match event:
                case "add":
                    enqueue(store, priority=number - 2)
                case "add later":
                    enqueue(store, delay=number)
                case "add after" if one:
                    enqueue(store, after=[one.id])
                case "claim":
                    claim(store)
                case "time":
                    clock.at += number / 2
                case "clock back":
                    clock.at -= 10 * number
                case "fold":
                    store.fold()
                case "limits":
                    q.set_setting(store, "limits", f"gpu={number}")
                case "succeed" | "fail" | "hand back" if one:
                    report(store, one, {"succeed": OK, "fail": BAD}.get(event, HANDED_BACK))
                case "cancel" if one:
                    q.cancel_jobs(store, [one.id])
                case "retry" if one:
                    q.retry_jobs(store, [one.id])
                case "revive" if one:
                    q.revive_jobs(store, [one.id])
                case "purge" if one:
                    q.purge_dead(store, [one.id])
        for reader in (store, Watched(home, clock)):
            reader.read()
            check_times(reader, reader.home.now())
            if reader is not store:
                reader.close()
    for store in stores:
        store.close()


def test_the_next_time_is_the_earliest_that_still_holds(opened: Opener) -> None:
    clock = Clock()
    store = opened(clock)
    for id, wait_s in (("a", 300), ("b", 60), ("c", 400)):
        enqueue(store, id, delay=wait_s)
    times = []
    for change in (
        lambda: None,
        lambda: q.revive_jobs(store, [q.cancel_jobs(store, ["b"])[0].id], {"run_at": q.format_instant(clock.at + 350)}),
        lambda: q.cancel_jobs(store, ["a"]),
    ):
        change()
        times.append(q.waiting_times(store)[1])
    assert times == [q.format_instant(clock.at + wait_s) for wait_s in (60, 300, 350)]


def test_nothing_is_claimed_while_the_queue_is_paused(opened: Opener) -> None:
    store = opened()
    enqueue(store, "a")
    q.set_setting(store, "paused", "true")
    assert claim(store) is None
    q.set_setting(opened(), "paused", "false")
    assert claim(store) is not None


def test_a_job_that_another_worker_failed_waits_for_its_backoff(opened: Opener) -> None:
    one, other = opened(), opened()
    enqueue(one, "a")
    index(one)
    running = claim(other, "other")
    assert running is not None and report(other, running, BAD).state == "failed"  # type: ignore[union-attr]
    assert claim(one, "one") is None


def test_a_job_revived_for_later_is_not_claimed_before(opened: Opener) -> None:
    store = opened()
    for id in ("b", "a"):
        enqueue(store, id)
    index(store)
    q.cancel_jobs(store, ["a"])
    q.revive_jobs(store, ["a"], {"run_at": "2099-01-01T00:00:00.000Z"})
    assert list(claimed(store)) == ["b"]


def test_a_job_revived_with_another_priority_is_claimed_at_that(opened: Opener) -> None:
    store = opened()
    for id, priority in (("x", 5), ("a", 5), ("b", 1)):
        enqueue(store, id, priority=priority)
    index(store)
    q.cancel_jobs(store, ["a"])
    q.revive_jobs(store, ["a"], {"priority": 0})
    assert list(claimed(store)) == ["x", "b", "a"]


def test_a_priority_inside_an_unknown_field_is_not_the_jobs(home: Path, opened: Opener) -> None:
    store = opened()
    enqueue(store, "a")
    enqueue(store, "b", priority=5)
    store.fold()
    edit(home, lambda jobs: [{**job, "meta": {"priority": 0, "by": "me"}} for job in jobs])
    assert list(claimed(opened())) == ["b", "a"]


def test_an_unknown_field_that_holds_a_plain_job_makes_none_of_its_own(home: Path, opened: Opener) -> None:
    """Records of the array are known for plain by their ends."""
    store = opened()
    for id in "abc":
        enqueue(store, id, priority=5 if id == "b" else 0)
    store.fold()
    edit(home, lambda jobs: [{**job, **({"meta": {"x": 0, **jobs[0]}} if job["id"] == "b" else {})} for job in jobs])
    opened().fold()  # in the canonical form again
    assert list(claimed(opened())) == ["b", "a", "c"]


# -- Followers


def test_jobs_added_together_that_come_after_one_are_all_freed_by_it(opened: Opener) -> None:
    store = opened()
    enqueue(store, "a")
    bulk(store, *['{"command": "x", "after": ["a"]}'] * 3)
    store.fold()
    store = opened()
    run_next(store)
    assert len(list(claimed(store))) == 3


def test_an_enqueue_after_a_job_of_the_array_puts_that_job_again_and_loads_nothing(home: Path, opened: Opener) -> None:
    bulk(opened(), '{"id": "a", "command": "x"}', *["true"] * 40)
    light = opened()
    for id, put in (("b", ["a", "b"]), ("c", ["c"])):  # a running index need not search the array for a
        enqueue(light, id, after=["a"])
        assert [json.loads(raw)["id"] for raw in q.records_of(lines_of(journal(home))[-1][9:-1])] == put
    assert light.state == "light" and light.counts == [43, 0, 0, 0, 0]
    assert len(seen(opened())) == 43 and q.examine(opened()) == []


@pytest.mark.parametrize("folded", [True, False], ids=["from the arrays", "from the journal"])
def test_a_name_that_was_given_again_holds_up_nobody_and_is_ended_by_nobody(opened: Opener, folded: bool) -> None:
    """The parent of a follower is deleted by hand, and a new job gets its name."""
    store = opened()
    for id, after in (("a", None), ("b", ["a"]), ("c", ["b"])):
        enqueue(store, id, after=after)
    store.fold()
    index(store)
    edit(Path(store.home.path), lambda jobs: [job for job in jobs if job["id"] != "a"])
    store.follow()
    assert index(store).first(store.home.now()).id == "b"  # type: ignore[union-attr]
    enqueue(store, "a", priority=9)
    if folded:
        store.fold()
    q.cancel_jobs(store, ["a"])
    assert {id: job.state for id, job in seen(opened()).items()} == {"a": "dead", "b": "pending", "c": "pending"}
    assert run_next(store).id == "b" and run_next(store).id == "c"


def test_a_purged_id_leaves_the_follower_map(opened: Opener) -> None:
    store = opened()
    for id, after in (("a", None), ("b", ["a"])):
        enqueue(store, id, after=after)
    index(store)
    q.cancel_jobs(store, ["a"])
    q.purge_dead(store, ["b"])
    q.purge_dead(store, ["a"])
    enqueue(store, "a")
    enqueue(store, "b")  # the same names, and none after the other
    assert not q.followers_of(store).parents() and not q.is_needed(store, "a", 1)
    q.cancel_jobs(store, ["a"])
    assert seen(opened())["b"].state == "pending" and list(claimed(store)) == ["b"]


def test_a_chain_longer_than_the_stack_dies_in_one_line_after_an_edit_too(home: Path, opened: Opener) -> None:
    store = opened()
    bulk(store, *[json.dumps({"id": f"c{n}", "command": "x", "after": [f"c{n - 1}"] * (n > 0)}) for n in range(1500)])
    store.fold()
    edit(home, lambda jobs: [{**jobs[0], "state": "dead"}, *jobs[1:]])
    opened().follow()
    assert {job.state for job in seen(opened()).values()} == {"dead"} and len(ids_in(home, "dlq")) == 1500


# -- Reports


def test_a_report_of_a_job_whose_id_was_given_again_is_not_believed(opened: Opener) -> None:
    store = opened()
    enqueue(store, "a")
    run = claim(store)
    assert run is not None
    report(store, run, OK)
    q.purge_jobs(store, lambda job, now: True)
    enqueue(store, "a")
    again = claim(store)
    assert again is not None and report(store, run, OK) is None
    assert report(store, again, OK) is not None


def test_a_slot_that_takes_its_turn_gives_back_what_it_still_holds(opened: Opener) -> None:
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


def test_a_turn_that_reports_its_own_run_does_not_give_it_back(opened: Opener) -> None:
    store = opened()
    enqueue(store, "a")
    running = claim(store, "w", slot=0)
    assert running is not None
    assert q.take_turn(store, "w", 0, (running, OK), True, q.TagFilter()).reported.state == "completed"  # type: ignore[union-attr]


def test_recovery_knows_what_a_dead_worker_wrote_last(opened: Opener) -> None:
    """It claimed after the finder's last look: its file, which tells the run's session, must still be there."""
    finder, dead = opened(), opened()
    for id in ("a", "b"):
        enqueue(dead, id)
    finder.follow()
    header = {
        "pid": 1,
        "started_at": dead.home.now(),
        "boot_id": q.boot_id(),
        "lock": dead.home.lock_id(),
        "threads": 1,
        "trouble": None,
    }
    file = dead.home.create_worker("9-dead", header, 1)
    claim(dead, "9-dead", slot=0)
    file.write_row(0, {"job": "a", "run": 1, "session": 12345, "start": 1})
    q.close_fd(file.fd)  # as the kernel does for a dead process
    q.close_fd(file.wake_fd)
    recovery = q.Recovery(finder, "me", print)
    recovery.step()
    ((mark, fence),) = recovery.fences["9-dead"].items()
    assert mark.endswith("/9-dead/a/1") and fence.trace.session == 12345 and finder.home.worker_names() == ["9-dead"]


@pytest.mark.parametrize("outcome", [OK, BAD, HANDED_BACK])
@pytest.mark.parametrize("worker", ["w", "w2"])
def test_a_report_of_a_run_that_was_taken_back_is_not_believed(
    home: Path, opened: Opener, outcome: q.Outcome, worker: str
) -> None:
    store = opened()
    enqueue(store, "a")
    first = claim(store, "w")
    assert first is not None and q.recover(opened(), first, excused=False) is not None
    assert report(store, first, outcome) is None
    second = claim(store, worker)
    assert second is not None and second.runs == 2
    before = journal(home).read_bytes()
    assert report(store, first, outcome) is None and q.recover(store, first, excused=False) is None
    assert journal(home).read_bytes() == before
    assert report(store, second, OK).state == "completed"  # type: ignore[union-attr]
    assert report(store, second, BAD) is None and seen(opened())["a"].state == "completed"


# -- Settings


def test_settings_are_replaced_whole_or_not_at_all(home: Path, opened: Opener, faulty: Any) -> None:
    store = opened()
    enqueue(store, "a")
    q.set_setting(store, "max-retries", "5")
    path = home / "config.json"
    before = path.read_bytes()
    assert json.loads(before) == {**q.default_settings(), "max_retries": 5}
    for fault in ("open", "write", "fsync", "rename"):
        effects = faulty(
            lambda name, args, fault=fault: (
                name == fault and (fault in ("write", "fsync") or "config.json" in str(args[0]))
            ),
            NO_SPACE,
        )
        with pytest.raises(q.StoreError):
            q.set_setting(store, "max-retries", "6")
        effects.undo()
        assert path.read_bytes() == before
    for bad in ("-1", "x", "1001"):
        with pytest.raises(q.BadValue):
            q.set_setting(store, "max-retries", bad)
    assert path.read_bytes() == before and store.home.config().max_retries == 5
    assert q.set_setting(store, "max-retries", None) == 3 and opened().home.config().max_retries == 3


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"max_retries": "x"}', '{"nonsense": 1}', '{"a": NaN}', "\udcff"]
)
def test_damaged_settings_are_refused_and_left_alone(home: Path, opened: Opener, text: str) -> None:
    enqueue(opened(), "a")
    data = text.encode("utf-8", "surrogateescape")
    (home / "config.json").write_bytes(data)
    for look in (
        lambda: opened().home.config(),
        lambda: q.set_setting(opened(), "max_retries", "5"),
        lambda: enqueue(opened(), "b"),
    ):
        with pytest.raises(q.StoreError, match="config.json"):
            look()
    assert (home / "config.json").read_bytes() == data and q.examine(opened()) != []


def test_a_worker_goes_on_with_the_last_good_settings_and_warns_once(home: Path, opened: Opener) -> None:
    store = opened()
    q.set_setting(store, "max_retries", "7")
    enqueue(store, "a")
    store.home.keeps_settings = True
    (home / "config.json").write_text("{")
    assert [store.home.config().max_retries for _ in range(3)] == [7, 7, 7]
    assert claim(store) is not None and len(store.warned) == 1
    (home / "config.json").write_text('{"max_retries": 2}')
    assert store.home.config().max_retries == 2


def test_settings_that_leave_keys_out_have_their_defaults(home: Path, opened: Opener) -> None:
    (home / "config.json").write_text('{"backoff_base": 3}')
    store = opened()
    assert store.home.config() == q.parse_settings({"backoff_base": 3}) and store.home.settings() == {
        "backoff_base": 3
    }
    enqueue(store, "a")
    assert json.loads((home / "config.json").read_text()) == {"backoff_base": 3}, "an existing file is not filled up"


# -- Modes and owners


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
def test_what_is_created_is_ours_alone_whatever_the_umask(tmp_path: Path, opened: Opener, mask: int) -> None:
    old = os.umask(mask)
    try:
        store = opened(at=tmp_path / "deep" / "home")
        enqueue(store, "a")
        q.set_setting(store, "max_retries", "5")
        store.fold()
        with journal(tmp_path / "deep" / "home").open("ab") as file:
            file.write(b"torn")
        enqueue(store, "b")
    finally:
        os.umask(old)
    paths = [tmp_path / "deep", *(tmp_path / "deep").rglob("*")]
    assert len(paths) > 8
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_group_write_is_taken_off_with_one_warning(home: Path, opened: Opener) -> None:
    enqueue(opened(), "a")
    opened().fold()
    for path in (home, home / "jobs.json", home / "config.json"):
        os.chmod(path, stat.S_IMODE(path.stat().st_mode) | 0o020)
    store = opened()
    enqueue(store, "b")
    assert len(store.warned) == 1 and "jobs.json" in store.warned[0]
    assert not any(path.stat().st_mode & 0o022 for path in (home, *home.rglob("*")))
    assert list(seen(opened())) == ["a", "b"]


def test_a_home_that_everyone_may_write_is_refused(home: Path, opened: Opener) -> None:
    os.chmod(home, 0o707)
    for look in (lambda: opened().read(), lambda: enqueue(opened(), "a"), lambda: opened().read_counts()):
        with pytest.raises(q.StoreError, match="written by everyone"):
            look()
    assert list(home.iterdir()) == []


def test_a_home_that_is_a_file_is_refused(tmp_path: Path, opened: Opener) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(q.StoreError, match="not a directory"):
        enqueue(opened(at=tmp_path / "file"), "a")


def test_a_symbolic_link_in_the_place_of_the_journal_is_not_followed(home: Path, opened: Opener) -> None:
    enqueue(opened(), "a")
    os.rename(journal(home), home / "elsewhere")
    journal(home).symlink_to(home / "elsewhere")
    before = (home / "elsewhere").read_bytes()
    with pytest.raises(q.StoreError):
        enqueue(opened(), "b")
    assert (home / "elsewhere").read_bytes() == before
