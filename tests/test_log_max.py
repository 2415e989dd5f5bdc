"""`log_max`: of a long output the newest part is kept, and whoever reads it is told what is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_processes import Call, Gate, kill, said

import queuectl as q

pytest_plugins = ["worker_fixtures"]

MOST = 8192
BLOCK = 4096
WHOLE = b"".join(b"line %d\n" % number for number in range(20_000))


class Running:
    """A slot's log and the process that writes to it, whose output is WHOLE."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.log = q.SlotLog(q.slot_log_path(self.folder, "w", 0))
        self.fd = os.dup(self.log.open())
        self.log.release()
        self.written = 0

    def writes(self, size: int) -> None:
        self.written += os.write(self.fd, WHOLE[self.written : self.written + size])


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    if not q.trim_log(running.fd, 0):
        pytest.skip("this file system punches no holes")
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
    """The output that is there: one piece of WHOLE that ends where the log ends, without a hole."""
    pieces = read(path)
    data = b"".join(piece for _, piece in pieces)
    assert not pieces or pieces[0][0] + len(data) == os.stat(path).st_size
    return data


def on_disk(folder: str) -> int:
    return sum(entry.stat().st_blocks * 512 for entry in Path(folder).rglob("*") if entry.is_file())


def test_the_newest_bytes_are_kept_from_a_line_on_and_the_rest_is_given_back(running):
    running.writes(10 * MOST)
    running.log.trim(MOST)
    data = kept(running.log.path)
    assert MOST - 20 < len(data) <= MOST + BLOCK and data.startswith(b"line ")
    assert on_disk(running.folder) <= MOST + 2 * BLOCK
    running.writes(100)
    assert kept(running.log.path) == data + WHOLE[10 * MOST : 10 * MOST + 100]


def test_a_log_within_its_bounds_is_left_alone(running):
    running.writes(MOST)
    running.log.trim(MOST)
    running.log.finish(q.log_path(running.folder, "a", 1), MOST)
    assert kept(q.log_path(running.folder, "a", 1)) == WHOLE[:MOST]


def test_an_output_that_was_never_trimmed_while_it_ran_is_trimmed_at_its_end(running):
    running.writes(10 * MOST)
    running.log.finish(q.log_path(running.folder, "a", 1), MOST)
    data = kept(q.log_path(running.folder, "a", 1))
    assert WHOLE[: running.written].endswith(data) and len(data) <= MOST + BLOCK


@pytest.mark.parametrize("step", [300, 1500, 9000, 30_000])
def test_a_follower_reads_everything_that_was_not_left_out(running, step):
    got, at = b"", 0
    while running.written < len(WHOLE) // 2:
        running.writes(step)
        if step < MOST:
            for offset, piece in read(running.log.path, at):
                assert offset == at
                got, at = got + piece, offset + len(piece)
        running.log.trim(MOST)
        assert on_disk(running.folder) <= MOST + 2 * BLOCK
    assert step > MOST or got == WHOLE[: running.written]
    running.log.finish(q.log_path(running.folder, "a", 1), MOST)
    rest = read(q.log_path(running.folder, "a", 1), at)
    assert step < MOST or rest[0][0] > at


@pytest.mark.parametrize("lines", [0, 1, 3, 50, 500, 1000, 100_000])
@pytest.mark.parametrize("is_trimmed", [False, True])
def test_a_tail_is_the_last_lines_of_what_is_there(running, lines, is_trimmed, monkeypatch):
    monkeypatch.setattr(q, "CHUNK_BYTES", 1000)
    running.writes(WHOLE.index(b"line 1300\n"))
    if is_trimmed:
        running.log.trim(MOST)
    data = kept(running.log.path)
    start = q.tail_start(running.log.path, lines)
    expected = b"".join(data.splitlines(keepends=True)[-lines:]) if lines else b""
    assert b"".join(piece for _, piece in q.read_log(running.log.path, start)) == expected
    assert q.last_line(running.log.path) == "line 1299"


def test_a_log_is_read_on_while_it_is_trimmed(running, monkeypatch):
    monkeypatch.setattr(q, "CHUNK_BYTES", 1000)
    running.writes(5 * MOST)
    at, gaps = 0, 0
    for offset, piece in q.read_log(running.log.path):
        assert piece == WHOLE[offset : offset + len(piece)]
        gaps += offset > at
        at = offset + len(piece)
        if at == 1000:
            running.log.trim(MOST)
            running.writes(5000)
    assert (at, gaps) == (5 * MOST, 1)


def test_what_is_given_up_while_it_is_being_read_is_never_shown_as_zeros(running, monkeypatch):
    class TrimsAfterOpening:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def pread(self, *args: int) -> bytes:
            running.log.trim(MOST)
            return os.pread(*args)

    running.writes(5 * MOST)
    monkeypatch.setattr(q, "os", TrimsAfterOpening())
    assert kept(running.log.path)


# Numbered lines as fast as a process can write them: 0, 1, 2 ...
FAST = """
import os, sys
number = 0
while not os.path.exists(sys.argv[1]):
    os.write(1, b"".join(b"%015d\\n" % n for n in range(number, number + 1000)))
    number += 1000
"""


def test_no_byte_is_lost_of_what_is_kept_under_a_writer_at_full_speed(running, tmp_path):
    child = subprocess.Popen([sys.executable, "-c", FAST, str(tmp_path / "over")], stdout=running.fd)
    try:
        for _ in range(100_000):
            running.log.trim(100_000)
            for offset, piece in q.read_log(running.log.path):
                for at, line in enumerate(piece.split(b"\n")[:-1]):
                    assert int(line) * 16 == offset + at * 16
            if os.stat(running.log.path).st_size > 5_000_000:
                break
    finally:
        (tmp_path / "over").touch()
        child.wait()
    running.log.finish(q.log_path(running.folder, "a", 1), 100_000)
    ((offset, piece),) = q.read_log(q.log_path(running.folder, "a", 1))
    lines = piece.splitlines()
    assert [int(line) for line in lines] == list(range(offset // 16, offset // 16 + len(lines)))
    assert len(piece) > 99_900


def test_zeros_of_a_hole_that_a_job_made_are_read_but_for_those_before_the_first_data(running):
    os.truncate(running.log.path, 10 * BLOCK)
    assert list(q.read_log(running.log.path)) == []
    os.write(running.fd, b"the first line after a hole may be cut\none\n")
    os.truncate(running.log.path, 20 * BLOCK)
    os.write(running.fd, b"two\n")
    data = b"".join(piece for _, piece in q.read_log(running.log.path))
    assert data.replace(b"\0", b"") == b"one\ntwo\n" and len(data) == 10 * BLOCK - 39 + 4


def test_one_long_line_is_shown_from_where_it_is_kept(running):
    os.write(running.fd, b"x" * 50_000 + b"\n")
    running.log.trim(MOST)
    ((_, piece),) = q.read_log(running.log.path)
    assert piece.strip(b"x") == b"\n" and len(piece) >= MOST


def test_a_log_that_its_job_truncates_is_read_from_its_beginning_again(running):
    running.writes(1000)
    os.truncate(running.log.path, 0)
    os.write(running.fd, b"anew\n")
    assert list(q.read_log(running.log.path, 1000)) == [(0, b"anew\n")]


# -- By real workers


@pytest.fixture
def talker(run: Call, enqueue: Call, worker: Call, gate: Gate, eventually: Call, home: Path, nothing_left: None) -> Any:
    """A worker with a running job `a` that has printed 2.7 MB, of which 64 KB may be kept."""
    run("config", "set", "log_max", "64k")
    child = worker()
    enqueue("a", f"seq 400000; echo end of first; {gate.wait}; echo last words", "--timeout", "0")
    folder = str(home / ".queuectl" / "logs")
    eventually(lambda: on_disk(folder) < 80_000 and "end of first" in run("logs", "a", code=None).out)
    return child


def bytes_printed(last: str) -> int:
    text = "".join(f"{number}\n" for number in range(1, 400_001)) + "end of first\n"
    return len(text + ("last words\n" if last == "last words" else ""))


def test_logs_begin_at_a_line_and_say_what_is_missing(talker, process, gate, reaches, home):
    running = process("logs", "a")
    gate.open()
    reaches("a", "completed")
    over = process("logs", "a")
    for result, last in ((running, "end of first"), (over, "last words")):
        lines = result.out.splitlines()
        assert lines[-1] == last and lines[:-2] == [*map(str, range(int(lines[0]), int(lines[0]) + len(lines) - 2))]
        missing = re.fullmatch(r"\((\d+) bytes of output were left out here: log_max\)\n", result.err)
        assert missing and int(missing[1]) + len(result.out) == bytes_printed(last)
    assert process("logs", "a", "--tail", "2").out == "end of first\nlast words\n"


def test_following_goes_on_after_what_was_left_out(talker, start, gate, eventually):
    follower = start("logs", "a", "--follow")
    eventually(lambda: "end of first" in said(follower))
    gate.open()
    assert follower.wait(30) == 0
    assert said(follower).endswith("end of first\nlast words\n") and "were left out here" in said(follower)


def test_the_newest_output_of_a_killed_workers_job_is_kept(talker, run, drain, gate):
    run("config", "set", "grace_period", "0.3")
    kill(talker)
    gate.open()
    drain()
    path = run("logs", "a", "--attempt", "1", "--path").lines[0].replace("a.2.log", "a.1.log")
    assert kept_lines(path)[-1].decode() in ("end of first", "last words")


def kept_lines(path: str) -> list[bytes]:
    return b"".join(piece for _, piece in q.read_log(path)).splitlines()


WITHOUT_HOLES = """
import ctypes
class CDLL(ctypes.CDLL):
    fallocate = fallocate64 = None
ctypes.CDLL = CDLL
queuectl.RECOVERY_S = 0.05
"""


def test_where_the_system_punches_no_holes_a_log_is_truncated_and_the_worker_says_so_once(
    run, enqueue, process, home, nothing_left
):
    run("config", "set", "log_max", "64k")
    logs = home / ".queuectl" / "logs"
    wait = f"while [ $(cat {logs}/*.0.log | wc -c) -gt 65536 ]; do sleep 0.02; done"
    enqueue("a", f"seq 40000; {wait}; echo between; seq 40000; {wait}; echo last words")
    done = process("worker", "start", "--drain", patch=WITHOUT_HOLES)
    assert done.err.count("log_max is truncated") == 1, done.err
    assert run("logs", "a").out == "last words\n"


def test_threads_do_not_disturb_each_other_at_the_end_of_a_run(running):
    """The thread that trims may look at a slot's file at the moment when it gets its run's name."""
    running.writes(10 * MOST)
    over = threading.Event()

    def trims() -> None:
        while not over.is_set():
            running.log.trim(MOST)

    thread = threading.Thread(target=trims)
    thread.start()
    try:
        for run in range(50):
            running.log.finish(q.log_path(running.folder, "a", run), MOST)
            assert kept(q.log_path(running.folder, "a", run)).endswith(WHOLE[: running.written][-1000:])
            os.close(running.fd)
            running.fd, running.written = os.dup(running.log.open()), 0
            running.log.release()
            running.writes(2 * MOST)
    finally:
        over.set()
        thread.join()
