"""`logs -f` of several jobs, and of all: whole lines as they come, each begun by the id of its job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PROGRAM

import queuectl as q
from tests.storekit import BAD, Watched, claim, enqueue, report, run_next

Call = Any
pytest_plugins = ["worker_fixtures"]
ONCE = ("--max-retries", "1")


@pytest.fixture
def follow(home: Path, tmp_path: Path) -> Iterator[Call]:
    """`follow("a", "b")`: the command, left running, and a function that reads the lines on its stdout."""
    begun: list[subprocess.Popen[bytes]] = []

    def call(*args: str, stdout: int | None = None) -> tuple[subprocess.Popen[bytes], Callable[[], list[str]]]:
        out, err = tmp_path / "followed", tmp_path / "warned"
        words = [sys.executable, str(PROGRAM), "logs", "--follow", *args]
        with out.open("wb") as file, err.open("wb") as errors:
            begun.append(subprocess.Popen(words, stdout=file if stdout is None else stdout, stderr=errors))
        return begun[-1], lambda: out.read_text().splitlines()

    yield call
    for child in begun:
        child.kill()
        child.wait(30)


def test_several_jobs_are_followed_in_whole_lines_that_begin_with_their_id(enqueue, follow, worker, gate, eventually):
    enqueue("a", f"printf 'one\ntw'; {gate.wait}; printf 'o\nlast'")
    enqueue("b", f"echo first; {gate.wait}; echo; echo second >&2")
    child, lines = follow("a", "b")
    worker("--count", "2")
    eventually(lambda: sorted(lines()) == ["a one", "b first"])  # "tw" has no end yet
    gate.open()
    assert child.wait(30) == 0
    assert [line for line in lines() if line[0] == "a"] == ["a one", "a two", "a last"]
    assert [line for line in lines() if line[0] == "b"] == ["b first", "b ", "b second"]


def test_what_has_ended_already_is_printed_and_the_command_ends(enqueue, drain, process):
    enqueue("a", "printf 'x\ny'")
    enqueue("b", "true")
    enqueue("c", "echo z; exit 1", *ONCE)
    drain(code=1)
    result = process("logs", "-f", "a", "b", "c")
    assert (result.out, result.err) == ("a x\na y\nc z\n", "")
    assert process("logs", "-f", "-n", "1", "a", "c").out == "a y\nc z\n"


def test_a_retried_job_is_followed_through_its_runs(quick, enqueue, follow, worker):
    enqueue("a", 'printf "run $QUEUECTL_ATTEMPT"; test $QUEUECTL_ATTEMPT = 3')
    enqueue("b", "echo b")
    child, lines = follow("a", "b")
    worker()
    assert child.wait(30) == 0
    assert sorted(lines()) == ["a run 1", "a run 2", "a run 3", "b b"]


def test_all_that_runs_and_starts_is_followed_until_ctrl_c(enqueue, follow, worker, gate, eventually, reaches, run):
    enqueue("old", "echo of old")
    enqueue("runs", f"echo of runs; {gate.wait}; echo later")
    worker("--count", "2")
    reaches("old", "completed")
    reaches("runs", "processing")
    child, lines = follow("--all")
    eventually(lambda: lines() == ["runs of runs"])
    ids = [f"new{number}" for number in range(40)]  # most of them start and end between two looks
    for id in ids:
        enqueue(id, f"echo of {id}")
    gate.open()
    eventually(lambda: sorted(lines()) == sorted([*(f"{id} of {id}" for id in ids), "runs of runs", "runs later"]))
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 130


def test_each_run_of_a_job_that_is_retried_is_followed(quick, enqueue, follow, worker, eventually, tmp_path):
    child, lines = follow("--all", "--tail", "0")
    eventually(lambda: "no worker is running" in (tmp_path / "warned").read_text())  # it has looked by now
    enqueue("a", 'echo "run $QUEUECTL_ATTEMPT"; exit 1', "--max-retries", "2")
    worker()
    eventually(lambda: lines() == ["a run 1", "a run 2"])
    assert child.poll() is None


@pytest.fixture
def store(home) -> Watched:
    return Watched(home)


def test_a_run_that_began_and_ended_before_a_fold_is_not_missed_and_none_is_given_twice(store, home):
    enqueue(store, "before")
    run_next(store)
    enqueue(store, "running")
    held = claim(store)
    assert held is not None
    reader = q.open_store(str(home), lambda text: None)
    starts = q.watch_starts(reader)
    assert [job.id for job in next(starts)] == ["running"]
    for id in ("a", "b"):
        enqueue(store, id, max_retries=2)
        run_next(store, BAD)
        store.fold()
    assert [(job.id, job.runs) for job in next(starts)] == [("a", 1), ("b", 1)]
    store.fold()
    assert next(starts) == []
    report(store, held, q.Outcome("exited", 0))
    q.retry_jobs(store, ["a"])
    run_next(store)
    assert [(job.id, job.runs) for job in next(starts)] == [("a", 2)]
    store.fold()
    assert next(starts) == []


def test_a_job_that_is_purged_meanwhile_is_told_and_the_others_go_on(run, enqueue, drain, home, monkeypatch):
    for id in ("a", "b"):
        enqueue(id, f"echo of {id}")
    drain()
    find = q._jobs_named

    def find_and_purge(store: q.Store, ids: Any) -> Any:
        jobs = find(store, ids)
        enqueue("c", "true", "--after", "b")  # which keeps b from the purge
        run("purge", "--yes")
        return jobs

    monkeypatch.setattr(q, "_jobs_named", find_and_purge)
    result = run("logs", "-f", "a", "b")
    assert (result.out, result.err) == ("b of b\n", "Job a was purged.\n")


def test_a_long_line_is_cut_rather_than_kept(home, enqueue, drain, process):
    enqueue("a", "head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end")
    enqueue("b", "true")
    drain()
    lines = process("logs", "-f", "a", "b").out.splitlines()
    assert all(line.startswith("a ") for line in lines) and lines[-1] == "a end" and len(lines) > 2
    assert "".join(line[2:] for line in lines[:-1]) == "x" * 3_000_000


def test_output_that_was_left_out_is_told_with_the_id(run, enqueue, drain, process):
    run("config", "set", "log_max", "64k")
    enqueue("a", "seq 100000")
    enqueue("b", "echo b")
    drain()
    result = process("logs", "-f", "a", "b")
    assert result.out.startswith("a ") and result.out.endswith("a 100000\nb b\n")
    numbers = [int(line[2:]) for line in result.out.splitlines()[:-1]]
    assert numbers == list(range(numbers[0], 100_001))
    assert result.err.startswith("a (") and result.err.endswith("bytes of output were left out here: log_max)\n")


def test_following_ends_when_nobody_reads_any_more(enqueue, worker, gate, follow, reaches):
    enqueue("a", f"echo one; {gate.wait}")
    worker()
    reaches("a", "processing")
    reader, writer = os.pipe()
    child, _ = follow("--all", stdout=writer)
    os.close(writer)
    assert os.read(reader, 100) == b"a one\n"
    os.close(reader)
    assert child.wait(30) == 1


def test_several_without_a_worker_are_told_so_once(terminal, enqueue, eventually):
    enqueue("a", "true")
    enqueue("b", "true")
    shell = terminal("logs", "-f", "a", "b")
    eventually(lambda: "worker start" in shell.screen())
    eventually(lambda: not shell.ended())
    assert shell.screen().count("worker start") == 1
    shell.type(b"\x03")
    eventually(shell.ended)
    assert shell.child.returncode == 130


@pytest.mark.parametrize(
    "words", ["a b", "--all", "-f --all a", "", "-f a b --attempt 1", "-f a b --path", "-f --all --path"]
)
def test_what_does_not_go_with_several_jobs_is_refused(words, enqueue, run):
    enqueue("a", "true")
    enqueue("b", "true")
    assert run("logs", *words.split(), code=2).err
