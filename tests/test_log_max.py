"""`log_max`: of a long output the newest part is kept, and whoever reads it is told what is missing."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_processes import Call, Gate, kill, said

import queuectl as q
from tests.storekit import Died, Effects, dies, dies_half_way, fails

pytest_plugins = ["worker_fixtures"]

MOST = 8192
WHOLE = b"".join(b"line %d\n" % number for number in range(20_000))


class Running:
    """A slot's log and the process that writes to it, whose output is WHOLE."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.log = q.SlotLog(self.folder, "w", 0)
        self.fd = os.dup(self.log.open())
        self.log.release()
        self.written = 0

    def ends(self) -> None:
        """Its output is closed, so that nothing holds the log's lock."""
        os.close(self.fd)
        self.fd = os.open(os.devnull, os.O_WRONLY)

    def writes(self, size: int) -> None:
        self.written += os.write(self.fd, WHOLE[self.written : self.written + size])


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    os.close(running.fd)


def read(path: str, start: int = 0) -> list[tuple[int, bytes]]:
    """What a reader gets: each piece true, none twice."""
    pieces = list(q.read_log(path, start))
    for offset, piece in pieces:
        assert piece == WHOLE[offset : offset + len(piece)] and offset >= start
        start = offset + len(piece)
    return pieces


def kept(path: str) -> bytes:
    """The output that is there: one piece of WHOLE, without a hole."""
    pieces = read(path)
    first = pieces[0][0] if pieces else 0
    data = b"".join(piece for _, piece in pieces)
    assert data == WHOLE[first : first + len(data)]
    return data


def on_disk(folder: str) -> int:
    return sum(entry.stat().st_size for entry in Path(folder).rglob("*") if entry.is_file())


def test_the_newest_half_is_kept_and_then_what_comes(running: Running) -> None:
    running.writes(MOST + 1)
    running.log.cut(MOST)
    assert kept(running.log.path) == WHOLE[MOST + 1 - MOST // 2 : MOST + 1]
    running.writes(100)
    assert kept(running.log.path) == WHOLE[MOST + 1 - MOST // 2 : MOST + 101]


def test_a_log_within_its_bounds_is_left_alone(running: Running) -> None:
    running.writes(MOST)
    running.log.cut(MOST)
    assert os.listdir(running.folder) == ["w.0.log"] and kept(running.log.path) == WHOLE[:MOST]


def test_an_endless_output_stays_within_the_bounds(running: Running) -> None:
    for _ in range(80):
        running.writes(1500)
        running.log.cut(MOST)
        assert on_disk(running.folder) <= MOST + 200
    running.log.finish("a", 1)
    data = kept(q.log_path(running.folder, "a", 1))
    assert WHOLE[: running.written].endswith(data) and len(data) >= MOST // 2


@pytest.mark.parametrize("step", [300, 1500, 9000, 30_000])
def test_a_follower_reads_everything_that_was_not_left_out(running: Running, step: int) -> None:
    got, at = b"", 0
    while running.written < len(WHOLE) // 2:
        running.writes(step)
        if step < MOST:
            for offset, piece in read(running.log.path, at):
                assert offset == at
                got, at = got + piece, offset + len(piece)
        running.log.cut(MOST)
    assert step > MOST or got == WHOLE[: running.written]
    running.log.finish("a", 1)
    rest = read(q.log_path(running.folder, "a", 1), at)
    assert step < MOST or rest[0][0] > at


def test_a_log_that_was_cut_and_then_printed_nothing_is_kept(running: Running) -> None:
    running.writes(MOST + 1)
    running.log.cut(MOST)
    running.ends()
    running.log.finish("a", 1)
    assert kept(q.log_path(running.folder, "a", 1)) == WHOLE[MOST + 1 - MOST // 2 : MOST + 1]
    running.log.open()
    running.log.finish("a", 2)
    assert not list(q.read_log(q.log_path(running.folder, "a", 2)))


@pytest.mark.parametrize("lines", [0, 1, 3, 50, 500, 1000, 100_000])
def test_a_tail_reaches_over_both_parts(running: Running, lines: int) -> None:
    running.writes(WHOLE.index(b"line 1200\n"))
    running.log.cut(MOST)
    running.writes(WHOLE.index(b"line 1300\n") - running.written)
    data = kept(running.log.path)
    start = q.tail_start(running.log.path, lines)
    expected = b"".join(data.splitlines(keepends=True)[-lines or len(data) :])
    assert b"".join(piece for _, piece in q.read_log(running.log.path, start)) == expected
    assert q.last_line(running.log.path) == "line 1299"


def test_removing_the_logs_removes_both_parts(running: Running) -> None:
    running.writes(MOST * 2)
    running.log.cut(MOST)
    running.log.finish("a", 1)
    assert on_disk(running.folder) > 0
    q.remove_logs(running.folder, "a", 1)
    assert on_disk(running.folder) == 0


def test_a_reader_never_takes_new_bytes_for_old_ones(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each step of a cut somebody reads, from several places."""
    seen: list[str] = []

    def reads(name: str, real: Any, args: Any) -> Any:
        answer = real(*args)
        monkeypatch.setattr(q, "os", os)
        for start in (0, running.written // 2, running.written - 10, running.written):
            read(running.log.path, start)
        monkeypatch.setattr(q, "os", stand_in)
        seen.append(name)
        return answer

    stand_in = Effects(lambda name, args: True, reads)
    for _ in range(3):
        running.writes(MOST + 1)
        monkeypatch.setattr(q, "os", stand_in)
        running.log.cut(MOST)
        monkeypatch.setattr(q, "os", os)
    assert "rename" in seen and len(seen) > 10


def test_a_log_is_read_on_while_it_is_cut(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(q, "CHUNK_BYTES", 1000)
    running.writes(MOST + 1)
    at, gaps = 0, 0
    for offset, piece in q.read_log(running.log.path):
        assert piece == WHOLE[offset : offset + len(piece)]
        gaps += offset > at
        at = offset + len(piece)
        if at == 1000:
            running.log.cut(MOST)
            running.writes(5000)  # beyond where the reader stands in the file
    assert (at, gaps) == (running.written, 1)


@pytest.mark.parametrize("act", [dies, dies_half_way])
@pytest.mark.parametrize("again", [False, True])
def test_recovery_keeps_what_a_cut_left_wherever_its_worker_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Any, again: bool
) -> None:
    number, done = 0, False
    while not done:
        (tmp_path / str(number)).mkdir()
        running = Running(tmp_path / str(number))
        running.writes(MOST + 1)
        if again:
            running.log.cut(MOST)
            running.writes(MOST)
        effects = CountingTruncate(lambda name, args: False, act)
        effects.when = functools.partial(is_number, effects, number + 1)
        with monkeypatch.context() as patch, contextlib.suppress(Died):
            patch.setattr(q, "os", effects)
            running.log.cut(MOST)
        done = effects.count <= number
        running.writes(50)
        q.keep_orphan_log(running.folder, "w", 0, "a", 1)
        data = kept(q.log_path(running.folder, "a", 1))
        assert WHOLE[: running.written].endswith(data) and len(data) >= MOST // 2, number
        assert not [name for name in os.listdir(running.folder) if name.startswith("w.")]
        os.close(running.fd)
        number += 1
    assert number > 5


def is_number(effects: Effects, number: int, name: str, args: Any) -> bool:
    return effects.count == number


class CountingTruncate(Effects):
    """`os` whose truncate counts as an effect too."""

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self._effect, name, os.truncate) if name == "truncate" else super().__getattr__(name)


def test_on_a_full_disk_the_newest_output_is_kept_and_the_room_is_given_back(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = iter([True, False, False, False])
    running.writes(MOST + 1)
    with monkeypatch.context() as patch:
        patch.setattr(q, "CHUNK_BYTES", 1000)
        patch.setattr(q, "os", Effects(lambda name, args: name == "write" and next(full), fails(errno.ENOSPC)))
        running.log.cut(MOST)
    assert kept(running.log.path) == WHOLE[MOST + 1 - 1000 : MOST + 1]
    assert on_disk(running.folder) < 1200


# -- By real workers


@pytest.fixture
def talker(run: Call, enqueue: Call, worker: Call, gate: Gate, eventually: Call, home: Path, nothing_left: None) -> Any:
    """A worker with a running job `a` that has printed 3 MB, of which 64 KB may be kept; and its worker."""
    run("config", "set", "log_max", "64k")
    child = worker()
    enqueue("a", f"seq 400000; echo end of first; {gate.wait}; echo last words", "--timeout", "0")
    eventually(lambda: list((home / ".queuectl" / "logs").glob("*.cut")))
    return child


def logs_size(home: Path) -> int:
    return on_disk(str(home / ".queuectl" / "logs"))


def test_logs_show_both_parts_and_say_what_is_missing(
    talker: Any, process: Call, gate: Gate, reaches: Call, home: Path
) -> None:
    running = process("logs", "a")
    gate.open()
    reaches("a", "completed")
    over = process("logs", "a")
    for result, last in ((running, "end of first"), (over, "last words")):
        lines = result.out.splitlines()
        assert lines[-1] == last and "399999" in lines
        missing = re.fullmatch(r"\((\d+) bytes of output were left out here: log_max\)\n", result.err)
        assert missing and int(missing[1]) + len(result.out) in (len_of_all("end of first"), len_of_all("last words"))
    assert process("logs", "a", "--tail", "2").out == "end of first\nlast words\n"
    assert logs_size(home) < 70_000


def len_of_all(last: str) -> int:
    text = "".join(f"{number}\n" for number in range(1, 400_001)) + "end of first\n"
    return len(text + ("last words\n" if last == "last words" else ""))


def test_following_goes_on_over_a_cut(talker: Any, start: Call, gate: Gate, eventually: Call) -> None:
    follower = start("logs", "a", "--follow")
    eventually(lambda: "end of first" in said(follower))
    gate.open()
    assert follower.wait(20) == 0
    assert said(follower).endswith("end of first\nlast words\n") and "were left out here" in said(follower)


def test_the_paths_of_both_parts_are_printed_and_purged(
    talker: Any, run: Call, gate: Gate, reaches: Call, home: Path
) -> None:
    gate.open()
    reaches("a", "completed")
    paths = run("logs", "a", "--path").lines
    assert [Path(path).exists() for path in paths] == [True, True]
    assert Path(paths[0]).stat().st_size > 30_000 and Path(paths[1]).read_text() == "last words\n"
    run("purge", "--yes")
    assert logs_size(home) == 0


def test_the_parts_of_a_killed_workers_job_are_both_kept(talker: Any, drain: Call, gate: Gate, home: Path) -> None:
    kill(talker)
    gate.open()
    drain()
    assert {path.name for path in (home / ".queuectl" / "logs").rglob("a.1.log*")} == {"a.1.log.cut"} or {
        path.name for path in (home / ".queuectl" / "logs").rglob("a.1.log*")
    } == {"a.1.log", "a.1.log.cut"}
