"""How many slots a worker has (`worker_count`, changed while it runs), and when they start nothing (`--max-load`)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from real_processes import Gate, is_alive, kill

import queuectl as q

Call = Any
pytest_plugins = ["worker_fixtures"]


@pytest.fixture(autouse=True)
def clean(nothing_left: None) -> None:
    """No process of a test outlives it."""


@pytest.fixture
def count(run: Call) -> Callable[[int], None]:
    return lambda number: run("config", "set", "worker-count", str(number)) and None


@pytest.fixture
def threads(run: Call) -> Callable[[], list[int]]:
    return lambda: [one["threads"] for one in run("worker", "list", "--json").json]


@pytest.fixture
def running(run: Call) -> Callable[[], dict[str, int]]:
    """`running()`: the slot of each running job, as `worker list` shows it."""

    def call() -> dict[str, int]:
        return {row["job"]: row["slot"] for one in run("worker", "list", "--json").json for row in one["running"]}

    return call


@pytest.fixture
def held(enqueue: Call, gate: Gate) -> Call:
    """`held("a", "b")`: jobs that run until the gate opens."""
    return lambda *ids: [enqueue(id, f"echo $QUEUECTL_SLOT; {gate.wait}") for id in ids]


# -- worker_count


def test_a_worker_grows_at_once_when_worker_count_is_raised(
    worker, held, running, count, threads, eventually, gate, run
):
    child = worker()
    held("a", "b", "c", "d")
    eventually(lambda: len(running()) == 1)
    count(3)
    eventually(lambda: sorted(running().values()) == [0, 1, 2])
    assert threads() == [3] and "workers: 3" in run("status").out
    gate.open()
    run("wait", "--all")
    assert "worker_count is 3 now." in Path(child.log).read_text()
    assert run("stats", "--json").json["failed_attempts"] == 0


def test_it_shrinks_as_its_jobs_end_and_grows_again(
    worker, held, running, count, threads, eventually, gate, run, job, enqueue
):
    count(3)
    worker()
    held("a", "b", "c")
    eventually(lambda: len(running()) == 3)
    count(1)
    enqueue("next", "true")
    eventually(lambda: run("config", "get", "worker-count").out == "1\n")
    assert threads() == [3] and len(running()) == 3 and job("next")["state"] == "pending"
    gate.open()
    run("wait", "--all")
    eventually(lambda: threads() == [1])
    assert [job(id)["attempts"] for id in ("a", "b", "c", "next")] == [1, 1, 1, 1]
    gate.path.unlink()
    held("d", "e", "f")
    eventually(lambda: len(running()) == 1)
    count(2)
    eventually(lambda: sorted(running().values()) == [0, 1])
    assert threads() == [2]


def test_idle_slots_end_and_start_again_and_again(worker, count, threads, eventually, enqueue, run):
    child = worker()
    for number in (5, 1, 3, 2, 4, 1):
        count(number)
        eventually(lambda number=number: threads() == [number])
    enqueue("a", "true")
    assert run("wait", "a").code == 0
    run("worker", "stop")
    assert child.wait(30) == 0


def test_the_slot_that_is_shown_is_the_jobs_own_also_among_added_ones(
    worker, held, running, count, threads, eventually, run
):
    worker()
    count(8)
    eventually(lambda: threads() == [8])
    held("a")
    eventually(lambda: run("logs", "a", code=None).out == f"{running().get('a')}\n")


def test_a_worker_with_a_count_keeps_it(worker, held, running, count, threads, eventually):
    worker("--count", "2")
    count(4)
    held("a", "b", "c")
    eventually(lambda: len(running()) == 2)
    assert threads() == [2]


def test_a_detached_worker_follows_worker_count(process, count, threads, eventually, run):
    process("worker", "start", "--detach")
    count(2)
    eventually(lambda: threads() == [2])
    assert "(2 threads) stopped" in run("worker", "stop").out


def test_a_drain_may_grow_and_shrink(start, held, running, count, eventually, gate):
    held("a", "b", "c", "d")
    child = start("worker", "start", "--drain")
    eventually(lambda: len(running()) == 1)
    count(4)
    eventually(lambda: len(running()) == 4)
    count(1)
    gate.open()
    assert child.wait(30) == 0


def test_a_stop_ends_a_worker_that_is_shrinking(worker, held, running, count, eventually, gate, start):
    count(3)
    child = worker()
    held("a", "b", "c")
    eventually(lambda: len(running()) == 3)
    count(1)
    stopper = start("worker", "stop")
    gate.open()
    assert (stopper.wait(30), child.wait(30)) == (0, 0)


@pytest.mark.parametrize("change", ["grown", "shrunk"])
def test_a_killed_workers_job_in_a_slot_that_was_added_or_is_to_end_is_found_by_its_row(
    change, quick, worker, running, count, threads, eventually, enqueue, home, job, run
):
    count(1 if change == "grown" else 3)
    child = worker()
    for id in ("a", "b", "c"):  # from the second attempt on they end at once
        enqueue(id, "test $QUEUECTL_ATTEMPT -gt 1 || exec env -i sleep 77 >/dev/null 2>&1", "--timeout", "0")
    eventually(lambda: len(running()) == (1 if change == "grown" else 3))
    count(3 if change == "grown" else 1)
    eventually(lambda: sorted(running().values()) == [0, 1, 2])
    if change == "shrunk":
        (second,) = (id for id, slot in running().items() if slot == 1)
        run("cancel", second)
        eventually(lambda: threads() == [2])
    (third,) = (id for id, slot in running().items() if slot == 2)
    (info,) = q.open_store(str(home), lambda text: None).home.live_workers()
    session = info.rows[2]["session"]  # nothing else tells that process from others
    kill(child)
    worker()
    eventually(lambda: not is_alive(session))
    eventually(lambda: job(third).get("recoveries") == 1)


@pytest.fixture
def patched(home: Path, tmp_path: Path) -> Iterator[Call]:
    """`patched("q.machine_load = lambda: 9.0", "--drain")`: a worker whose program begins with those lines."""
    begun = []

    def call(lines: str, *options: str) -> subprocess.Popen[bytes]:
        script = f"import queuectl as q\n{lines}\nq.main()"
        with (tmp_path / "said").open("wb") as said:
            words = [sys.executable, "-c", script, "worker", "start", *options]
            child = subprocess.Popen(words, stderr=said, cwd=Path(q.__file__).parent)
        begun.append(child)
        return child

    yield call
    for child in begun:
        child.kill()
        child.wait(30)


def test_a_slot_that_ends_gives_back_what_its_last_turn_claimed_in_vain(
    patched, count, enqueue, threads, eventually, reaches
):
    """The claim was stored, then a fault struck, and by the time of the next turn the slot is one too many."""
    count(2)
    fault = """
real = q.take_turn
def take_turn(store, worker, slot, *rest):
    turn = real(store, worker, slot, *rest)
    if slot == 1 and turn.claimed:
        q.set_setting(q.open_store(store.home.path, print), "worker_count", "1")
        raise OSError("a fault after the claim")
    return turn
q.take_turn = take_turn
"""
    patched(fault)
    eventually(lambda: threads() == [2])
    for number in range(40):
        enqueue(f"job{number}", "true")
    eventually(lambda: threads() == [1])
    for number in range(40):
        reaches(f"job{number}", "completed")


def test_a_worker_that_gets_too_few_threads_shows_those_it_has(patched, count, threads, eventually, run):
    refuse = """
import threading
real, allowed = threading.Thread.start, iter(range(4))
def start(thread):
    if next(allowed, None) is None:
        raise RuntimeError("can't start new thread")
    real(thread)
threading.Thread.start = start
"""
    patched(refuse)  # two threads beside the slots
    eventually(lambda: threads() == [1])
    count(3)
    eventually(lambda: "The system starts no more threads" in run("worker", "list").out)
    eventually(lambda: threads() == [2])
    count(2)
    eventually(lambda: "TROUBLE" not in run("worker", "list").out)


# -- --max-load


@pytest.fixture
def load(tmp_path: Path, patched: Call) -> Any:
    """A worker that takes the load from a file: `load.start("--max-load", "4")`, `load.set(5)`."""

    class Load:
        path = tmp_path / "load"
        looks = tmp_path / "looks"
        turns = tmp_path / "turns"

        def set(self, number: float) -> None:
            new = self.path.with_suffix(".new")
            new.write_text(str(number))
            new.rename(self.path)

        def start(self, *options: str) -> subprocess.Popen[bytes]:
            return patched(
                f"""
real = q.take_turn
def machine_load():
    open({str(self.looks)!r}, "a").write("x")
    return float(open({str(self.path)!r}).read())
def take_turn(*args):
    open({str(self.turns)!r}, "a").write("x")
    return real(*args)
q.machine_load, q.take_turn = machine_load, take_turn
""",
                *options,
            )

        def said(self) -> str:
            return (tmp_path / "said").read_text()

    return Load()


def test_nothing_starts_above_the_load_and_running_jobs_go_on(load, held, gate, run, eventually, reaches, enqueue, job):
    load.set(1)
    load.start("--count", "2", "--max-load", "4")
    held("a")
    reaches("a", "processing")
    load.set(4.5)
    eventually(lambda: "the load is above 4" in run("worker", "list").out)
    enqueue("b", "true")
    eventually(lambda: "the load is above 4 (--max-load)" in run("show", "b").out)
    gate.open()
    reaches("a", "completed")
    assert job("b")["state"] == "pending"
    load.set(4)  # which is not above 4
    reaches("b", "completed")
    assert load.said().count("the load is above 4") == 1
    assert run("worker", "list", "--json").json[0]["overload"] is None


def test_a_slot_that_waits_for_the_load_takes_no_turns(load, eventually, enqueue):
    enqueue("a", "true")
    load.set(9)
    load.start("--count", "3", "--max-load", "0.5")
    eventually(lambda: load.looks.exists() and len(load.looks.read_text()) > 4)
    assert len(load.turns.read_text()) <= 3


def test_a_drain_says_once_that_it_waits_for_the_load(load, eventually, enqueue):
    enqueue("a", "true")
    enqueue("b", "true")
    load.set(2.25)
    child = load.start("--drain", "--max-load", "2")
    eventually(lambda: "the load is above 2" in load.said())
    eventually(lambda: len(load.looks.read_text()) > 3)
    assert child.poll() is None and load.said().count("above") == 1
    load.set(0)
    assert child.wait(30) == 0


def test_an_empty_drain_does_not_wait_for_the_load(load):
    load.set(9)
    assert load.start("--drain", "--max-load", "1").wait(30) == 0
    assert "above" not in load.said()


def test_a_worker_without_the_option_goes_on(load, worker, held, enqueue, run, eventually, reaches, gate):
    load.set(9)
    load.start("--max-load", "1")
    eventually(lambda: "the load is above 1" in run("worker", "list").out)
    worker()
    held("a")
    reaches("a", "processing")
    enqueue("b", "true")
    assert "waiting for a free slot" in run("show", "b").out
    gate.open()
    reaches("b", "completed")


def test_a_detached_worker_gets_the_option(process, enqueue, run, eventually):
    process("worker", "start", "--detach", "--max-load", "0.000001", "--count", "2")
    eventually(lambda: run("worker", "list", "--json").json[0]["threads"] == 2)
    run("worker", "stop")


@pytest.mark.parametrize("value", ["0", "-1", "nan", "high", ""])
def test_only_a_number_above_0_is_a_load(value, process):
    assert "--max-load" in process("worker", "start", "--max-load", value, code=2).err
