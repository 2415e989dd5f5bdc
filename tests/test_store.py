"""The store: appending, reading, folding, hand edits, damage, locks; several stores and processes at once."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
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
    check_hints,
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
def opened(home: Path) -> Opener:
    """`opened()`: one more store of this test's home."""
    return lambda clock=None, at=None: Watched(at or home, clock)


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
    """What a reader without the lock sees; its totals must fit, and `examine` find nothing else."""
    store.read()
    jobs = listing(store)
    counts = tuple(sum(job.state == state for job in jobs.values()) for state in q.STATES)
    assert store.totals.counts == counts
    return jobs


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


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


def nth(effect: str, number: int) -> Callable[[str, tuple[Any, ...]], bool]:
    """The `number`-th effect of that kind."""
    count = itertools.count(1)
    return lambda name, args: name == effect and next(count) == number


CHANGES: dict[str, Callable[[Watched], object]] = {
    "enqueue": lambda store: enqueue(store, "new"),
    "bulk": lambda store: bulk(store, "one", "two", "three"),
    "claim": lambda store: claim(store),
    "cancel": lambda store: q.cancel_jobs(store, ["a", "b"]),
    "purge": lambda store: q.purge_jobs(store, lambda job, now: True),
}
WRITE_FAULTS: dict[str, Callable[[], Any]] = {
    "short write, then no space": lambda: half_then(errno.ENOSPC),
    "short write, then EIO": lambda: half_then(errno.EIO),
    "no space": lambda: NO_SPACE,
    "EIO": lambda: IO_ERROR,
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
        store.follow()
        store.waiting()
    else:
        store = opened()
        enqueue(store, "c")
    before = journal(home).read_bytes()
    memory = store.totals, dict(store.overlay), dict(store.processing)
    jobs = seen(opened())
    effects = faulty(lambda name, args: name == "write", WRITE_FAULTS[fault]())
    with pytest.raises(q.StoreError, match="No space|Input/output"):
        CHANGES[change](store)
    effects.undo()
    assert journal(home).read_bytes() == before, "the file is cut back to the last whole transaction"
    if store._loaded == loaded and change != "bulk":
        assert (store.totals, dict(store.overlay), dict(store.processing)) == memory
    assert seen(opened()) == jobs
    CHANGES[change](store)
    assert seen(opened()) != jobs
    assert q.examine(opened()) == []
    if store._loaded:
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
def test_what_could_not_be_cut_back_is_cut_by_the_next_writer(
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


def test_a_claim_that_could_not_be_written_has_done_no_harm(opened: Opener, faulty: Any) -> None:
    store = opened()
    for id in ("a", "b"):
        enqueue(store, id)
    store.fold()
    store.follow()
    store.waiting()
    for _ in range(3):
        effects = faulty(lambda name, args: name == "write", NO_SPACE)
        with pytest.raises(q.StoreError):
            claim(store)
        effects.undo()
    assert [getattr(claim(store), "id", None) for _ in range(3)] == ["a", "b", None]


def test_a_claim_that_could_not_be_written_leaves_its_job_first_beside_changed_ones(
    opened: Opener, faulty: Any
) -> None:
    store = opened()
    for id in ("a", "b", "c"):
        enqueue(store, id)
    store.fold()
    store.follow()
    store.waiting()
    q.cancel_jobs(store, ["b"])
    effects = faulty(lambda name, args: name == "write", NO_SPACE)
    with pytest.raises(q.StoreError):
        claim(store)
    effects.undo()
    assert claim(store).id == "a"  # type: ignore[union-attr]


def test_a_refused_operation_changes_nothing(home: Path, store: Watched) -> None:
    for id in ("a", "b"):
        enqueue(store, id)
    run_next(store)
    before = journal(home).read_bytes()
    for refused in (
        lambda: q.cancel_jobs(store, ["b", "nobody"]),
        lambda: q.cancel_jobs(store, ["b", "a"]),
        lambda: q.retry_jobs(store, ["b"]),
        lambda: q.revive_jobs(store, ["a"]),
        lambda: q.purge_dead(store, ["a"]),
        lambda: enqueue(store, "a"),
        lambda: bulk(store, "x", '{"id": "b", "command": "x"}'),
        lambda: bulk(store, '{"id": "n", "command": "x"}', '{"id": "n", "command": "y"}'),
    ):
        with pytest.raises(q.Refused):
            refused()
    with pytest.raises(q.BadValue, match="line 2"):
        bulk(store, "x", '{"command": 5}')
    assert journal(home).read_bytes() == before and store.totals.counts == (1, 0, 1, 0, 0)


def test_a_running_job_is_not_edited(home: Path, store: Watched) -> None:
    enqueue(store, "a")
    assert claim(store) is not None
    before = journal(home).read_bytes()
    with pytest.raises(q.Refused, match="'a' is processing; only a pending or failed job can be edited"):
        q.edit_jobs(store, ["a"], {"command": "false"})
    assert journal(home).read_bytes() == before


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
def test_a_line_that_is_missing_from_the_middle_is_not_passed_over_in_the_counts(
    home: Path, opened: Opener, lost: int
) -> None:
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


@pytest.mark.parametrize("size", [64, 100, 300])
def test_a_hole_that_never_reached_the_disk_is_an_unfinished_tail(home: Path, opened: Opener, size: int) -> None:
    store = opened()
    enqueue(store, "a")
    before = journal(home).read_bytes()
    for id in ("b", "c", "d"):
        enqueue(store, id)
    hole = bytes(size) + journal(home).read_bytes()[len(before) + size :]
    assert hole.count(b"\n") > 1, "whole lines follow"
    journal(home).write_bytes(before + hole)
    assert list(seen(opened())) == ["a"]
    store = opened()
    store.follow()
    assert journal(home).read_bytes().startswith(before) and list(seen(opened())) == ["a"]
    assert Path(store.warned[0].split("'")[1]).read_bytes() == hole


TAILS = [
    b"x",
    b"0",
    b"\0" * 50,
    b"1234abcd {",
    b'00000000 {"put": [\t\t], "counts": [9,9,9,9,9], "n": 9}\n',
    b"\n",
    b"\xff\xfe\n",
]


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "light"])
def test_a_torn_tail_is_not_read_and_set_aside_by_the_next_writer(
    home: Path, opened: Opener, tail: bytes, loaded: bool
) -> None:
    store = opened()
    enqueue(store, "a")
    before = journal(home).read_bytes()
    with journal(home).open("ab") as file:
        file.write(tail)
    assert list(seen(opened())) == ["a"], "a reader leaves it out"
    assert opened().read_totals().counts == (1, 0, 0, 0, 0)
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


def test_a_journal_cut_anywhere_is_the_state_before_or_after(home: Path, opened: Opener) -> None:
    store = opened()
    enqueue(store, "a")
    start = journal(home).stat().st_size
    enqueue(store, "b")
    whole = journal(home).read_bytes()
    for size in range(start, len(whole) + 1):
        journal(home).write_bytes(whole[:size])
        assert list(seen(opened())) == (["a", "b"] if size == len(whole) else ["a"])


def test_the_lines_of_a_bulk_are_nothing_without_their_last(
    home: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(q, "LINE_JOBS_MAX", 3)
    store = opened()
    enqueue(store, "a")
    begin = len(lines_of(journal(home)))
    bulk(store, *(f"echo {number}" for number in range(10)))
    lines = lines_of(journal(home))
    assert len(lines) == begin + 4 and [b'"more": true' in line for line in lines[begin:]] == [True] * 3 + [False]
    assert len(seen(opened())) == 11
    for kept in range(begin, len(lines)):
        journal(home).write_bytes(b"".join(lines[:kept]))
        assert list(seen(opened())) == ["a"], "readers do not see them"
        assert opened().read_totals().counts == (1, 0, 0, 0, 0)
        writer = opened()
        enqueue(writer, f"b{kept}")
        assert list(seen(opened())) == ["a", f"b{kept}"] and q.examine(opened()) == []
        assert bool(writer.warned) == (kept > begin), "the next writer cut them off"


COMMANDS = st.sampled_from(
    ["true", "echo {1..3}", "", " \t", "# said", "\u00a0# said", "é", "\x1c", "x\0y", "x" * 40_000]
)
LINES = st.one_of(
    COMMANDS.map(str.encode),
    st.sampled_from(
        [b"\xff", b"x" * 140_000, b'{"command": "json"}', b'\xc2\xa0 {"command": "json"}', b"{ echo; }", b"\r"]
    ),
    st.binary(max_size=6).filter(lambda line: b"\n" not in line),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, min_size=1, max_size=12), ended=st.booleans())
def test_a_bulk_takes_the_jobs_that_its_lines_would_make_one_by_one(
    store: Watched, monkeypatch: pytest.MonkeyPatch, lines: list[bytes], ended: bool
) -> None:
    """Lines are looked at together, and each alone where that is not enough: both must mean the same."""
    monkeypatch.setattr(q, "CHUNK_BYTES", 30)
    wanted: list[str] = []
    wrong = 0
    for number, line in enumerate(lines, 1):
        try:
            if (said := q.parse_job_line(line, store.now())) is not None:
                wanted.append(said["command"])
        except q.BadValue:
            wrong = wrong or number
    spool = q.Spool(store, [b"\n".join(lines), b"\n" * ended])
    before = store.totals.n
    try:
        if wrong:
            with pytest.raises(q.BadValue, match=rf"^In line {wrong}: "):
                q.enqueue_bulk(store, spool, {"cwd": "/"}, keep_records=True)
        else:
            records = q.enqueue_bulk(store, spool, {"cwd": "/"}, keep_records=True).records
            assert [json.loads(raw)["command"] for raw in records] == wanted
    finally:
        spool.close()
    assert store.totals.n == before + (0 if wrong else len(wanted))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 7])
def test_a_transaction_of_several_lines_is_one_change(
    home: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(q, "LINE_JOBS_MAX", 3)
    store = opened()
    bulk(store, *(f"echo {number}" for number in range(count)))
    ids = list(seen(opened()))
    q.cancel_jobs(store, ids)
    assert [job.state for job in seen(opened()).values()] == ["dead"] * count
    with store.transaction() as change:  # puts and dels in one, across lines
        for id in ids[: count // 2]:
            change.delete(change.job(id))  # type: ignore[arg-type]
        for id in ids[count // 2 :]:
            dead = change.job(id)
            assert dead is not None
            change.put(dead, q.revive_job(dead, change.now))
    assert list(seen(opened())) == ids[count // 2 :]
    q.cancel_jobs(store, list(listing(store)))
    assert len(q.purge_jobs(store, lambda job, now: True).gone) == count - count // 2
    assert seen(opened()) == {} == listing(store) and q.examine(opened()) == []


def test_what_makes_a_bulk_stop_half_way_leaves_no_trace(
    home: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(q, "LINE_JOBS_MAX", 3)
    store = opened()
    enqueue(store, "a")
    before, totals = journal(home).read_bytes(), store.totals

    def make(now: str, n: int) -> Iterator[tuple[bytes, str]]:
        for number in range(8):
            yield q.encode_job(q.new_job(q.Spec("x"), f"x{number}", n + 1 + number, q.parse_settings({}), now)), ""
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.accept_bulk(make, large=False)
    assert journal(home).read_bytes() == before and store.totals == totals


def test_a_bulk_that_cannot_be_written_leaves_the_totals_as_they_were(
    opened: Opener, faulty: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(q, "LINE_JOBS_MAX", 3)
    store = opened()
    enqueue(store, "a")
    totals = store.totals
    for lines in (2, 3, 7):
        for at in range(1, 1 + (lines + 2) // 3):
            effects = faulty(lambda name, args: False, NO_SPACE)
            writes: list[int] = []

            def full(name: str, args: tuple[Any, ...], writes: list[int] = writes, at: int = at) -> bool:
                # The spool of what was read is written too, into a file of its own.
                if name == "write" and bytes(args[1]).endswith(b"}\n"):
                    writes.append(1)
                return name == "write" and len(writes) == at

            effects.when = full
            with pytest.raises(q.StoreError):
                bulk(store, *["echo"] * lines)
            effects.undo()
            assert len(writes) == at and store.totals == totals
            assert opened().read_totals() == totals
    assert enqueue(store).seq == 2


def test_the_checksum_stands_before_each_line(home: Path, store: Watched) -> None:
    import zlib

    enqueue(store, "a")
    for line in lines_of(journal(home)):
        assert line == b"%08x %s" % (zlib.crc32(line[9:-1]), line[9:])


def test_each_journal_names_the_one_before_it(home: Path, store: Watched) -> None:
    nonces: list[str | None] = [None]
    for id in ("a", "b", "c"):
        enqueue(store, id)
        store.fold()
        header = json.loads(lines_of(journal(home))[0][9:])
        nonces.append(header["nonce"])
        if id != "a":
            assert header["prev"] == nonces[-2]
    assert len(set(nonces)) == len(nonces)


def test_a_journal_of_another_format_is_refused_and_left_alone(home: Path, opened: Opener) -> None:
    enqueue(opened(), "a")
    first, *rest = lines_of(journal(home))
    body = first[9:-1].replace(b'"format": 1', b'"format": 2')
    changed = b"".join([q._line(body), *rest])
    journal(home).write_bytes(changed)
    for look in (lambda: opened().read(), lambda: enqueue(opened(), "b"), lambda: opened().read_totals()):
        with pytest.raises(q.StoreError, match="format 2"):
            look()
    assert journal(home).read_bytes() == changed


def test_a_line_that_is_whole_but_makes_no_sense_is_refused(home: Path, opened: Opener) -> None:
    enqueue(opened(), "a")
    for body in (
        b"{}",
        b'{"put": [\t{"id": 5}\t], "counts": [1, 0, 0, 0, 0], "n": 1}',
        b'{"put": [\t\t], "n": 1}',
        b"[]",
    ):
        saved = journal(home).read_bytes()
        with journal(home).open("ab") as file:
            file.write(q._line(body))
        with pytest.raises(q.StoreError, match="cannot be understood"):
            opened().read()
        with pytest.raises(q.StoreError):
            claim(opened())
        journal(home).write_bytes(saved)


@pytest.mark.parametrize("name", ["jobs", "dlq", "config"])
def test_a_store_missing_beside_a_journal_is_never_taken_for_empty(home: Path, opened: Opener, name: str) -> None:
    enqueue(opened(), "a")
    saved = {path: path.read_bytes() for path in (journal(home), home / "jobs.json", home / "dlq.json")}
    (home / f"{name}.json").unlink()
    looks: list[Callable[[], object]] = [lambda: enqueue(opened(), "b"), lambda: opened().follow()]
    if name == "config":
        looks.append(lambda: opened().config())
    else:
        looks += [lambda: opened().read(), lambda: opened().read_totals()]
    for look in looks:
        with pytest.raises(q.StoreError, match=f"{name}.json' is missing"):
            look()
    assert not (home / f"{name}.json").exists()
    assert all(path.read_bytes() == data for path, data in saved.items() if path.name != f"{name}.json")


def test_an_append_to_a_deleted_queue_is_refused(home: Path, opened: Opener) -> None:
    store = opened()
    enqueue(store, "a")
    shutil.rmtree(home / ".queuectl")
    for change in (lambda: enqueue(store, "b"), lambda: claim(store), lambda: store.fold()):
        with pytest.raises(q.StoreError, match="was deleted"):
            change()
    assert not (home / ".queuectl").exists()


# -- Folding (S1, S3)


def test_a_fold_writes_one_job_a_line_in_order_of_arrival(home: Path, opened: Opener) -> None:
    store = opened()
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
        assert [json.loads(line.rstrip(","))["id"] for line in lines] == ids
        assert [job["id"] for job in json.loads(text)] == ids
    assert not [path for path in (home / ".queuectl").iterdir() if path.name.endswith(".new")]


def test_an_empty_array_is_an_empty_array(home: Path, store: Watched) -> None:
    enqueue(store, "a")
    q.cancel_jobs(store, ["a"])
    store.fold()
    assert json.loads((home / "jobs.json").read_text()) == []
    q.purge_dead(store, ["a"])
    store.fold()
    assert json.loads((home / "dlq.json").read_text()) == [] and seen(store) == {}


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
    store.put_away()


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


def test_a_fold_of_mere_additions_needs_no_loading_and_gives_the_same(home: Path, opened: Opener) -> None:
    for id in ("a", "b"):
        enqueue(opened(), id)
    opened().fold()
    store = opened()
    enqueue(store, "c", command='tab\t"quote" ü', tags=["x"])
    enqueue(store, "d", unique="k")
    assert not store._loaded
    jobs = seen(opened())
    store.fold()
    assert not store._loaded
    assert seen(opened()) == jobs and q.examine(opened()) == []
    assert [job["id"] for job in json.loads((home / "jobs.json").read_text())] == ["a", "b", "c", "d"]


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
        found = store.job(id)
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


FOLD_SCENES = ["fold", "first start", "settle"]


@pytest.mark.parametrize("act", [dies, IO_ERROR], ids=["killed", "EIO"])
@pytest.mark.parametrize("scene", FOLD_SCENES)
def test_a_fold_that_stops_at_any_effect_loses_nothing(
    tmp_path: Path, opened: Opener, faulty: Any, scene: str, act: Any
) -> None:
    for number in range(200):
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
        stopped = True
        try:
            if scene == "settle":
                store.settle()
                stopped = bool(store.warned)
            else:
                store.fold()
                stopped = False
        except (q.StoreError, Died):
            pass
        effects.undo()
        assert seen(opened(at=home)) == jobs
        store = opened(at=home)
        enqueue(store, "next")
        store.fold()
        assert store.warned == []
        assert list(seen(opened(at=home))) == [*jobs, "next"] and q.examine(opened(at=home)) == []
        if not stopped and effects.count <= number:
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
    effects = faulty(
        lambda fault, args: fault == "open" and str(args[0]).endswith(f"/{name}.json"), fails(errno.EMFILE)
    )
    with pytest.raises(q.StoreError):
        store.follow()
    effects.undo()
    store.follow()
    store.fold()
    assert list(seen(opened())) == ["a", "b"]


def test_a_bulk_after_a_fold_that_failed_half_way_is_kept(home: Path, opened: Opener, faulty: Any) -> None:
    store = opened()
    enqueue(store, "a")
    store.settle()
    enqueue(store, "b")
    effects = faulty(lambda name, args: name == "rename", IO_ERROR)
    store.settle()
    effects.undo()
    assert "did not work" in store.warned[0]
    store = opened()
    added = b"".join(bulk(store, "echo 1", "echo 2").ids).split()
    store.settle()
    assert [id.encode() for id in seen(opened())] == [b"a", b"b", *added]


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
    assert list(seen(opened())) == ["a", "b"]
    assert [job["id"] for job in json.loads((home / "jobs.json").read_text())] == ["a"]


def test_a_sync_that_fails_is_answered_with_fresh_files_or_said(home: Path, opened: Opener, faulty: Any) -> None:
    store = opened()
    enqueue(store, "a")
    store.settle()
    enqueue(store, "b")
    old = journal(home).stat().st_ino
    failed: list[int] = []

    def once(name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        failed.append(os.fstat(args[0]).st_ino)
        raise OSError(errno.EIO, "Input/output error")

    effects = faulty(lambda name, args: name == "fsync" and not failed, once)
    store.sync()
    effects.undo()
    assert failed == [old] and journal(home).stat().st_ino != old, "a journal of its own"
    enqueue(store, "c")
    effects = faulty(lambda name, args: name == "fsync", IO_ERROR)
    with pytest.raises(q.StoreError, match="may have been stored"):
        store.sync()
    effects.undo()
    assert list(seen(opened())) == ["a", "b", "c"]


def unsynced_and_unfolded(home: Path, store: Watched, faulty: Any) -> int:
    """Let a loaded store's sync fail, and the fold that should answer it too. The journal's inode."""
    store.follow()
    for command in ("one", "two"):
        enqueue(store, command=command)
    inode = journal(home).stat().st_ino
    effects = faulty(
        lambda name, args: name == "fsync" or (name == "open" and str(args[0]).endswith("jobs.json.new")), IO_ERROR
    )
    with pytest.raises(q.StoreError, match="may have been stored"):
        store.sync()
    effects.undo()
    return inode


def synced_by(call: Callable[[], object], faulty: Any) -> list[int]:
    """The inodes that this call syncs; everything it syncs can be."""
    synced: list[int] = []
    effects = faulty(
        lambda name, args: name == "fsync", lambda name, real, args: synced.append(os.fstat(args[0]).st_ino)
    )
    call()
    effects.undo()
    return synced


def test_what_neither_sync_nor_fold_could_keep_is_not_forgotten(home: Path, opened: Opener, faulty: Any) -> None:
    store = opened()
    old = unsynced_and_unfolded(home, store, faulty)
    synced = synced_by(store.sync, faulty)
    assert journal(home).stat().st_ino != old and journal(home).stat().st_ino in synced
    assert [job.command for job in seen(opened()).values()] == ["one", "two"] and not store.is_suspect


def test_a_journal_whose_sync_failed_is_never_synced_again(home: Path, opened: Opener, faulty: Any) -> None:
    store = opened()
    old = unsynced_and_unfolded(home, store, faulty)
    assert store.is_suspect
    assert old not in synced_by(store.sync, faulty)


def test_a_failed_sync_of_the_intent_is_remembered(home: Path, opened: Opener, faulty: Any) -> None:
    store = opened()
    store.follow()
    enqueue(store)
    old = journal(home).stat().st_ino
    effects = faulty(lambda name, args: name == "fsync" and os.fstat(args[0]).st_ino == old, IO_ERROR)
    with pytest.raises(q.StoreError):
        store.fold()
    effects.undo()
    assert old not in synced_by(store.sync, faulty) and journal(home).stat().st_ino != old


def test_nothing_is_claimed_until_what_could_not_be_synced_is_written_anew(
    home: Path, opened: Opener, faulty: Any
) -> None:
    store = opened()
    unsynced_and_unfolded(home, store, faulty)
    assert claim(store) is None
    store.sync()
    assert claim(store).command == "one"  # type: ignore[union-attr]


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
    store.follow()
    store.waiting()
    edit(home, lambda jobs: [{**job, "priority": 5} if job["id"] == "c" else job for job in jobs if job["id"] != "a"])
    assert store.changed()
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


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda jobs: [*jobs, jobs[0]], "twice|also stands"),
        (lambda jobs: [*jobs, {"id": "dead", "command": "x"}], "also stands in dlq.json"),
        (lambda jobs: [*jobs, {"id": "new"}], "element 3"),
        (lambda jobs: [*jobs, {"command": "x", "priority": "high"}], "priority"),
        (lambda jobs: [*jobs, {"command": "x", "state": "done"}], "state"),
        (lambda jobs: [*jobs, {"command": "x", "state": "processing"}], "processing"),
        (lambda jobs: [*jobs, {"command": "x", "attempts": 9}], "attempts"),
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
    "text", ["", "[", '[{"id": "a"', "nonsense", "[NaN]", '[{"command": "x", "command": "y"}]', "\udcff"]
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
    for stop in range(1, 8):
        home = tmp_path / f"n{stop}"
        home.mkdir(mode=0o700)
        (home / "jobs.json").write_text(
            '[{"id": "a", "command": "x"}, {"id": "late", "command": "x", "state": "dead"}]'
        )
        (home / "dlq.json").write_text('[{"id": "back", "command": "x", "state": "pending"}]')
        effects, over = faulty(nth("rename", stop), dies), True
        try:
            opened(at=home).follow()
        except Died:
            over = False
        effects.undo()
        assert sorted(seen(opened(at=home))) == ["a", "back", "late"]
        if over:
            break
    assert stop > 3


def test_an_id_in_an_edited_array_and_in_the_other_is_refused(home: Path, opened: Opener) -> None:
    store = opened()
    for id in ("a", "b"):
        enqueue(store, id)
    q.cancel_jobs(store, ["b"])
    store.fold()
    edit(home, lambda jobs: [*jobs, {"id": "b", "command": "x"}])
    with pytest.raises(q.StoreError, match="'b' also stands in dlq.json"):
        store.follow()


def test_a_second_edit_while_the_first_is_taken_is_not_overwritten(home: Path, opened: Opener) -> None:
    store = opened()
    enqueue(store, "a")
    store.settle()
    edit(home, lambda jobs: [{**job, "priority": 1} for job in jobs])
    store = opened()
    parse = store._parse_array

    def slow(name: str) -> Any:
        answer = parse(name)
        edit(home, lambda jobs: [*jobs, {"id": "second", "command": "x"}])
        return answer

    store._parse_array = slow  # type: ignore[method-assign]
    try:
        store.follow()
    except q.StoreError:
        pass
    assert "second" in seen(opened())


def test_a_reader_finds_its_way_where_a_torn_tail_and_an_edit_meet(home: Path, opened: Opener) -> None:
    store = opened()
    enqueue(store, "a")
    store.settle()
    with journal(home).open("ab") as file:
        file.write(b"12345678 torn")
    edit(home, lambda jobs: [{**job, "priority": 1} for job in jobs])
    reader = opened()
    attach, looks = reader._attach, []

    def counted(writable: bool) -> bool:
        looks.append(1)
        assert len(looks) < 20, "it goes round for ever"
        return attach(writable)

    reader._attach = counted  # type: ignore[method-assign]
    reader.read()
    assert listing(reader)["a"].priority == 1


def test_an_edit_that_lowers_max_retries_does_not_block_the_queue(home: Path, opened: Opener) -> None:
    clock = Clock()
    store = opened(clock)
    enqueue(store, "a")
    run_next(store, BAD)
    store.fold()
    edit(home, lambda jobs: [{**job, "max_retries": 1} for job in jobs])
    clock.at += 60
    try:
        store = opened(clock)
        enqueue(store, "b")
        claim(store)
    except q.QueueError:
        pass  # refused in words would do as well


def test_an_edit_with_a_number_beyond_every_float_is_refused(home: Path, opened: Opener) -> None:
    store = opened()
    enqueue(store, "a")
    store.settle()
    path = home / "jobs.json"
    path.write_text(path.read_text().replace('{"id"', '{"size": 1e400, "id"'))
    with pytest.raises(q.StoreError):
        opened().read()


def test_an_edited_seq_leaves_room_for_the_jobs_to_come(home: Path, opened: Opener) -> None:
    store = opened()
    enqueue(store, "a")
    store.settle()
    edit(home, lambda jobs: [{**job, "seq": 1 << 53} for job in jobs])
    try:
        enqueue(opened(), "b")
    except q.QueueError:
        return
    assert list(seen(opened())) == ["a", "b"]


# -- Followers and readers


def test_a_follower_sees_what_others_append_and_survives_their_folds(opened: Opener) -> None:
    one, other = opened(), opened()
    enqueue(one, "a")
    other.follow()
    assert list(listing(other)) == ["a"]
    enqueue(one, "b")
    assert other.changed()
    other.follow()
    assert list(listing(other)) == ["a", "b"] and not other.changed()
    enqueue(one, "c")
    one.fold()
    q.cancel_jobs(one, ["a"])
    one.fold()
    enqueue(one, "d")
    other.follow()
    assert listing(other) == listing(one) and other.totals == one.totals
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
        assert store.totals.n == 30 and store.totals.counts[:2] == (24, 6)
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


def test_a_reader_that_waits_refreshes_without_the_lock(opened: Opener) -> None:
    writer, reader = opened(), opened()
    enqueue(writer, "a")
    reader.read()
    enqueue(writer, "b")
    reader.refresh()
    assert list(listing(reader)) == ["a", "b"] and reader._lock_fd is None
    q.cancel_jobs(writer, ["a"])
    writer.fold()
    reader.refresh()
    assert listing(reader) == listing(writer) and reader._lock_fd is None


def test_totals_alone_are_those_of_a_whole_read(home: Path, opened: Opener) -> None:
    store = opened()
    assert opened().read_totals() == q.Totals()
    for step in (
        lambda: enqueue(store, "a"),
        lambda: enqueue(store, "b", delay=60),
        lambda: claim(store),
        lambda: store.fold(),
        lambda: bulk(store, *["x" * 100] * 500),
        lambda: q.cancel_jobs(store, ["b"]),
        lambda: edit(home, lambda jobs: [*jobs, {"command": "x"}]),
    ):
        step()
        whole = opened()
        whole.read()
        assert opened().read_totals() == whole.totals
        assert sum(whole.totals.counts) == len(listing(whole))


def test_readers_create_nothing(home: Path, opened: Opener) -> None:
    opened().read()
    assert opened().read_totals() == q.Totals() and list(home.iterdir()) == []
    enqueue(opened(), "a")
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    seen(opened())
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
import queuectl as q
store = q.Store(sys.argv[1], print)
for round in range(int(sys.argv[3])):
    with store.transaction() as change:
        for id in ("left", "right"):
            old = change.job(id)
            seq = old.seq if old else store.totals.n + 1 + len(change.changes)
            change.put(old, q.new_job(q.Spec("true", priority=round), id, seq, store.config(), change.now))
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
            reader = opened()
            jobs = seen(reader)
            totals = opened().read_totals()
            assert totals.n >= reader.totals.n
            if jobs:
                left, right = jobs["left"], jobs["right"]
                assert (left.priority, left.state) == (right.priority, right.state), "half a transaction was seen"
                assert left.priority >= last, "a later read shows an earlier state"
                last = left.priority
            reads += 1
            reader.put_away()
    assert child.returncode == 0 and reads > 3
    assert q.examine(opened()) == [] and opened().read_totals().n == 42


APPENDER = """
import sys
sys.path.insert(0, sys.argv[2])
import queuectl as q
store = q.Store(sys.argv[1], print)
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
    assert store.totals.counts == (0, 0, 40, 0, 0) and q.examine(opened()) == []


def test_a_thread_waits_for_another_of_its_own_store(opened: Opener) -> None:
    store = opened()
    q.set_setting(store, "lock-timeout", "0.05")
    store.config()  # the lock goes by the settings as last read
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
            with pytest.raises(q.StoreError, match="locked by another process"):
                change()
        assert list(seen(opened())) == ["a"], "readers never wait"
        assert journal(home).read_bytes() == before
    enqueue(waiter, "b")
    assert list(seen(opened())) == ["a", "b"]


def test_an_exception_in_a_transaction_releases_the_lock_and_changes_nothing(home: Path, opened: Opener) -> None:
    store = opened()
    enqueue(store, "a")
    before = journal(home).read_bytes()
    with pytest.raises(KeyError), store.transaction() as change:
        job = change.job("a")
        assert job is not None
        change.put(job, q.cancel_job(job, change.now))
        raise KeyError
    assert journal(home).read_bytes() == before and store.job("a") == job
    enqueue(opened(), "b")


# -- Ids and unique keys without loading the queue


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


def test_an_id_taken_between_the_search_and_the_lock_is_refused(opened: Opener) -> None:
    for fold in (False, True):
        one, other = opened(), opened()
        enqueue(one, f"first{fold}")
        found = one.look_up(["x", "first"], ["k"])
        enqueue(other, f"x{fold}", unique=f"k{fold}")
        if fold:
            other.fold()
        del found
        look = one.look_up

        def late(ids: Any, keys: Any, fold: bool = fold, look: Any = look, other: Watched = other) -> Any:
            answer = look(ids, keys)
            enqueue(other, f"late{fold}", unique=f"late key{fold}")
            if fold:
                other.fold()
            return answer

        one.look_up = late  # type: ignore[method-assign]
        with pytest.raises(q.Refused):
            enqueue(one, f"late{fold}")
        q.cancel_jobs(other, [f"late{fold}"])
        q.purge_dead(other, [f"late{fold}"])
        answer = q.enqueue_job(one, q.Spec("x", unique=f"late key{fold}"))
        assert answer.duplicate and answer.job.id == f"late{fold}"


def test_a_fold_in_the_middle_of_the_search_for_a_key_is_survived(opened: Opener) -> None:
    other, store = opened(), opened()
    enqueue(other, "a", unique="k")
    other.settle()
    enqueue(other, "b")
    known = store._arrays_known

    def folded_after() -> bool:
        answer = known()
        store._arrays_known = known  # type: ignore[method-assign]
        other.fold()
        return answer

    store._arrays_known = folded_after  # type: ignore[method-assign]
    assert q.enqueue_job(store, q.Spec("x", unique="k")).job.id == "a"


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


def test_a_bulk_takes_each_unique_key_once(opened: Opener) -> None:
    store = opened()
    enqueue(store, "a", unique="k")
    line = '{"id": "%s", "command": "x", "unique": "%s"}'
    answer = bulk(store, line % ("b", "k"), line % ("c", "new"), line % ("d", "new"), "plain")
    assert answer.added == 2 and b"".join(answer.ids).split()[:3] == [b"a", b"c", b"c"]
    assert sorted(seen(opened()))[:2] == ["a", "c"]


def test_a_bulk_tells_the_id_of_each_line_made_given_or_there_before(opened: Opener) -> None:
    store = opened()
    enqueue(store, "there", unique="k")
    named, same, new = (
        '{"id": "%s", "command": "x"}',
        '{"command": "x", "unique": "k"}',
        '{"command": "x", "unique": "n"}',
    )
    lines = [*["x"] * 1400, named % "a", "x", same, same, "x", new, new, named % "b"]
    told = b"".join(bulk(store, *lines).ids).decode().split()
    _, *jobs = seen(opened())
    assert told == [*jobs[:1402], "there", "there", *jobs[1402:1404], jobs[1403], "b"]
    assert (jobs[1400], jobs[1404], len(jobs)) == ("a", "b", 1405)


def test_a_light_enqueue_and_a_loaded_one_write_the_same(tmp_path: Path, opened: Opener) -> None:
    bodies = []
    for loaded in (True, False):
        home = tmp_path / str(loaded)
        home.mkdir(mode=0o700)
        store = opened(at=home)
        enqueue(store, "first")
        store.fold()
        for number in range(4):
            store = opened(at=home)
            if loaded:
                store.follow()
                store.waiting()
            assert enqueue(store, delay=number % 2 * 60, priority=number).seq == number + 2
            assert store._loaded == loaded
        bodies.append(lines_of(journal(home))[2:])
        assert q.examine(opened(at=home)) == []
    assert bodies[0] == bodies[1]


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
    store.waiting()
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


def test_jobs_added_together_that_come_after_one_are_all_freed_by_it(opened: Opener) -> None:
    store = opened()
    enqueue(store, "a")
    bulk(store, *['{"command": "x", "after": ["a"]}'] * 3)
    store.fold()
    store = opened()
    run_next(store)
    assert len(list(claimed(store))) == 3


def test_nothing_is_claimed_while_the_queue_is_paused(opened: Opener) -> None:
    store = opened()
    enqueue(store, "a")
    q.set_setting(store, "paused", "true")
    assert claim(store) is None
    q.set_setting(opened(), "paused", "false")
    assert claim(store) is not None


@pytest.mark.parametrize("folded", [True, False], ids=["from the arrays", "from the journal"])
def test_a_retry_beyond_any_backoff_is_due_after_the_clock_was_set_back(opened: Opener, folded: bool) -> None:
    clock = Clock()
    store = opened(clock)
    enqueue(store, "a")
    enqueue(store, "wish", run_at="2099-01-01T00:00:00.000Z")
    run_next(store, BAD)
    if folded:
        store.fold()
        store = opened(clock)
        store.follow()
    clock.at -= 86_400
    store.meet_new_clock()
    assert list(claimed(store)) == ["a"], "a person's own time is kept"


@pytest.mark.parametrize("folded", [True, False], ids=["from the arrays", "from the journal"])
def test_a_retry_that_came_after_another_is_due_after_the_clock_was_set_back(opened: Opener, folded: bool) -> None:
    clock = Clock()
    store = opened(clock)
    enqueue(store, "first")
    enqueue(store, "second", after=["first"])
    run_next(store)
    run_next(store, BAD)
    if folded:
        store.fold()
        store = opened(clock)
        store.follow()
    clock.at -= 86_400
    store.meet_new_clock()
    assert list(claimed(store)) == ["second"]


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


def test_a_job_is_dead_after_its_last_attempt(opened: Opener) -> None:
    clock = Clock()
    store = opened(clock)
    enqueue(store, "a", max_retries=2)
    assert run_next(store, BAD).state == "failed"
    clock.at += 60
    assert run_next(store, BAD).state == "dead"


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
        "started_at": dead.now(),
        "boot_id": q.boot_id(),
        "lock": dead.lock_id(),
        "threads": 1,
        "trouble": None,
    }
    file = dead.create_worker("9-dead", header, 1)
    claim(dead, "9-dead", slot=0)
    file.write_row(0, {"job": "a", "run": 1, "session": 12345, "start": 1})
    q.close_fd(file.fd)  # as the kernel does for a dead process
    q.close_fd(file.wake_fd)
    fences: q.Fences = {}
    q.find_orphans(finder, "me", fences)
    ((key, orphan),) = fences.items()
    assert key == ("a", 1) and orphan.fence.trace.session == 12345 and finder.worker_names() == ["9-dead"]
    q.close_fd(orphan.lock_fd)


def test_a_job_that_another_worker_failed_waits_for_its_backoff(opened: Opener) -> None:
    one, other = opened(), opened()
    enqueue(one, "a")
    one.waiting()
    running = claim(other, "other")
    assert running is not None and report(other, running, BAD).state == "failed"  # type: ignore[union-attr]
    assert claim(one, "one") is None


def test_a_job_revived_for_later_is_not_claimed_before(opened: Opener) -> None:
    store = opened()
    for id in ("b", "a"):
        enqueue(store, id)
    store.waiting()
    q.cancel_jobs(store, ["a"])
    q.revive_jobs(store, ["a"], {"run_at": "2099-01-01T00:00:00.000Z"})
    assert list(claimed(store)) == ["b"]


def test_a_job_revived_with_another_priority_is_claimed_at_that(opened: Opener) -> None:
    store = opened()
    for id, priority in (("x", 5), ("a", 5), ("b", 1)):
        enqueue(store, id, priority=priority)
    store.waiting()
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


# -- Hints


STEPS = [
    "add",
    "add later",
    "claim",
    "succeed",
    "fail",
    "hand back",
    "cancel",
    "retry",
    "revive",
    "purge",
    "time",
    "fold",
]


@settings(deadline=None, database=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5), st.booleans()), min_size=5, max_size=30))
def test_the_hints_equal_a_count_from_scratch_after_every_change(
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
            "cancel": q.WAITING, "revive": ("dead",), "purge": ("dead",),
        }.get(event, ())]  # fmt: skip
        one = pick[number % len(pick)] if pick else None
        match event:
            case "add":
                enqueue(store, priority=number - 2)
            case "add later":
                enqueue(store, delay=number)
            case "claim":
                claim(store)
            case "time":
                clock.at += number / 2
            case "fold":
                store.fold()
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
            check_hints(reader, reader.now())
            reader.put_away()
    for store in stores:
        store.put_away()


def test_a_due_retry_that_is_cancelled_leaves_the_hints(opened: Opener) -> None:
    clock = Clock()
    store = opened(clock)
    enqueue(store, "a")
    run_next(store, BAD)
    clock.at += 60
    store.meet_new_clock()
    store.waiting()
    enqueue(store, "b")
    q.cancel_jobs(store, ["b"])
    q.cancel_jobs(opened(clock), ["a"])
    totals = opened(clock).read_totals()
    assert totals.counts[4] == 2 and (totals.oldest, totals.next_run_at) == (None, None)


def test_the_next_time_is_the_earliest_that_still_holds(opened: Opener) -> None:
    clock = Clock()
    store = opened(clock)
    store.follow()
    for id, wait_s in (("a", 300), ("b", 60), ("c", 400)):
        enqueue(store, id, delay=wait_s)
    store.waiting()
    assert store.totals.next_run_at == q.format_instant(clock.at + 60)
    q.cancel_jobs(store, ["b"])
    q.revive_jobs(store, ["b"], {"run_at": q.format_instant(clock.at + 350)})
    assert store.totals.next_run_at == q.format_instant(clock.at + 300)
    q.cancel_jobs(store, ["a"])
    assert store.totals.next_run_at == q.format_instant(clock.at + 350)


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
    assert path.read_bytes() == before and store.config().max_retries == 5
    assert q.set_setting(store, "max-retries", None) == 3 and opened().config().max_retries == 3


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"max_retries": "x"}', '{"nonsense": 1}', '{"a": NaN}', "\udcff"]
)
def test_damaged_settings_are_refused_and_left_alone(home: Path, opened: Opener, text: str) -> None:
    enqueue(opened(), "a")
    data = text.encode("utf-8", "surrogateescape")
    (home / "config.json").write_bytes(data)
    for look in (
        lambda: opened().config(),
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
    store.steady = True
    (home / "config.json").write_text("{")
    assert [store.config().max_retries for _ in range(3)] == [7, 7, 7]
    assert claim(store) is not None and len(store.warned) == 1
    (home / "config.json").write_text('{"max_retries": 2}')
    assert store.config().max_retries == 2


def test_settings_that_leave_keys_out_have_their_defaults(home: Path, opened: Opener) -> None:
    (home / "config.json").write_text('{"backoff_base": 3}')
    store = opened()
    assert vars(store.config()) == vars(q.parse_settings({"backoff_base": 3})) and store.settings() == {
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
    for look in (lambda: opened().read(), lambda: enqueue(opened(), "a"), lambda: opened().read_totals()):
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
