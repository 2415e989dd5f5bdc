"""Jobs after others and limits with real workers, and what they cost: over processes, in chains, fans and diamonds."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from real_processes import kill, said

import queuectl as q
from tests.storekit import BAD, FREE, OK, Watched, bulk, claim, close_store, enqueue, journal, report, run_next

pytest_plugins = ["worker_fixtures"]

Opener = Callable[[], Watched]


@pytest.fixture
def opened(home: Path) -> Any:
    stores: list[Watched] = []

    def call() -> Watched:
        stores.append(Watched(home))
        return stores[-1]

    yield call
    for store in stores:
        close_store(store)


def lines(jobs: list[dict[str, Any]]) -> str:
    return "\n".join(json.dumps({"command": "true", **job}) for job in jobs)


def order_of(path: Path) -> list[str]:
    return path.read_text().split()


# ---- real workers

workers = pytest.mark.usefixtures("nothing_left", "quick")


@workers
def test_limits_are_exact_over_three_worker_processes(run, start, jobs, tmp_path, eventually):
    """Each job notes its start and its end; so many as the limit allows must run at once, and never more."""
    run("config", "set", "limits", "gpu=2,net=1")
    notes = tmp_path / "notes"
    note = f"echo {{}} $QUEUECTL_JOB_ID >> {shlex.quote(str(notes))}"
    command = f"{note.format('+')}; sleep 0.05; {note.format('-')}"
    kinds = [["gpu"], ["net"], ["gpu", "net"], []]
    names = [f"{'-'.join(kinds[n % 4]) or 'plain'}-{n}" for n in range(48)]
    many = [{"id": name, "command": command, "tags": kinds[n % 4]} for n, name in enumerate(names)]
    run("enqueue", "--file", "-", input=lines(many))
    children = [start("worker", "start", "--drain", "--count", "3") for _ in range(3)]
    assert [child.wait(120) for child in children] == [0, 0, 0], [said(child) for child in children]
    assert {job["state"] for job in jobs().values()} == {"completed"}
    running: set[str] = set()
    most = {"gpu": 0, "net": 0, "plain": 0}
    for mark, id in map(str.split, notes.read_text().splitlines()):
        (running.add if mark == "+" else running.discard)(id)
        for tag in most:
            most[tag] = max(most[tag], sum(tag in id for id in running))
    assert (most["gpu"], most["net"]) == (2, 1) and most["plain"] > 1


@workers
def test_a_full_tag_holds_up_no_other_job_and_a_change_of_the_limit_is_followed_at_once(
    run, worker, enqueue, gate, reaches, eventually, job
):
    run("config", "set", "limits", "gpu=1")
    worker("--count", "3")
    enqueue("first", gate.wait, "--tag", "gpu")
    reaches("first", "processing")
    enqueue("second", gate.wait, "--tag", "gpu", "--priority", "9")
    enqueue("other", "true")
    reaches("other", "completed")
    assert job("second")["state"] == "pending"
    assert run("show", "second").lines[-1].endswith("the limit of tag gpu is used up")
    run("config", "set", "limits", "gpu=2")
    reaches("second", "processing")
    gate.open()
    reaches("second", "completed")


@workers
def test_a_report_wakes_another_process_for_what_it_frees(run, worker, enqueue, gate, reaches, eventually):
    """What the first worker's report frees fits the second one only."""
    run("config", "set", "limits", "gpu=1")
    worker("--not-tag", "second")
    enqueue("a", gate.wait, "--tag", "gpu")
    reaches("a", "processing")
    other = worker("--tag", "second")
    enqueue("b", "true", "--tag", "gpu", "--tag", "second")
    enqueue("c", "true", "--tag", "second", "--after", "a")
    gate.open()
    reaches("b", "completed")
    reaches("c", "completed")
    eventually(lambda: "b completed" in said(other) and "c completed" in said(other))


@workers
def test_a_long_chain_runs_in_order(run, drain, jobs, tmp_path):
    path = tmp_path / "order"
    note = f"echo $QUEUECTL_JOB_ID >> {path}"
    chain = [{"id": f"c{n}", "command": note, **({"after": [f"c{n - 1}"]} if n else {})} for n in range(300)]
    run("enqueue", "--file", "-", input=lines(chain))
    drain("--count", "4", timeout=240)
    assert order_of(path) == [job["id"] for job in chain]


@workers
def test_a_diamond_waits_for_both_sides(run, drain, tmp_path, enqueue):
    path = tmp_path / "order"
    note = f"sleep 0.05; echo $QUEUECTL_JOB_ID >> {path}"
    enqueue("top", note)
    enqueue("left", note, "--after", "top")
    enqueue("right", f"sleep 0.3; {note}", "--after", "top")
    enqueue("bottom", note, "--after", "left", "--after", "right", "--priority", "9")
    drain("--count", "4")
    assert order_of(path) == ["top", "left", "right", "bottom"]


@workers
def test_a_parent_that_dies_under_its_worker_takes_the_others_with_it(run, worker, enqueue, gate, reaches, job):
    """A cancelled job whose worker was killed: recovery makes it dead, and in the same line who needs it."""
    first = worker()
    enqueue("a", gate.wait)
    reaches("a", "processing")
    enqueue("b", "true", "--after", "a")
    enqueue("c", "true", "--after-any", "a")
    run("pause")
    kill(first)
    run("cancel", "a")
    assert [job(id)["state"] for id in "abc"] == ["dead", "dead", "pending"]
    run("resume")
    worker()
    reaches("c", "completed")


@workers
def test_a_drain_of_all_waits_for_what_is_held_and_delayed(run, enqueue, drain, job):
    enqueue("a", "exit 3", "--max-retries", "2")
    enqueue("b", "true", "--after-any", "a", "--delay", "1s")
    enqueue("c", "true", "--after", "b")
    drain(code=1)
    assert [job(id)["state"] for id in "abc"] == ["dead", "completed", "completed"]


# ---- one transaction, one line


def last_line(home: Path) -> dict[str, Any]:
    line = journal(home).read_bytes().splitlines()[-1]
    return dict(json.loads(line[9:].replace(b"\t", b"")))


def family(store: Watched) -> None:
    enqueue(store, "a", max_retries=1)
    enqueue(store, "b", after=["a"])
    enqueue(store, "c", after=["b"])
    enqueue(store, "d", after=[{"id": "a", "any": True}])


def dead_ids(home: Path) -> list[str]:
    return [job["id"] for job in last_line(home)["put"] if job["state"] == "dead"]


def test_the_line_that_ends_a_job_ends_who_needs_it(home, opened):
    store = opened()
    family(store)
    assert run_next(store, BAD).state == "dead"
    assert dead_ids(home) == ["a", "b", "c"]
    assert last_line(home)["counts"] == [1, 0, 0, 0, 3]
    q.revive_jobs(store, ["a"])
    assert [job["id"] for job in last_line(home)["put"]] == ["a", "b", "c"]
    q.cancel_jobs(store, ["a"])
    assert dead_ids(home) == ["a", "b", "c"]
    q.revive_jobs(store, ["a"])
    running = claim(store)
    assert running is not None
    q.cancel_jobs(store, ["a"])  # still processing: nobody dies yet
    assert dead_ids(home) == []
    assert q.recover(store, store.processing["a"], False) is not None
    assert dead_ids(home) == ["a", "b", "c"]


def test_a_chain_longer_than_the_stack_dies_in_one_line_and_comes_back_in_one(home, opened):
    store = opened()
    bulk(store, *lines([{"id": f"c{n}", **({"after": [f"c{n - 1}"]} if n else {})} for n in range(2000)]).split("\n"))
    q.cancel_jobs(store, ["c0"])
    assert last_line(home)["counts"] == [0, 0, 0, 0, 2000]
    q.revive_jobs(store, ["c0"])
    assert last_line(home)["counts"] == [2000, 0, 0, 0, 0]


def test_a_job_that_a_report_frees_is_claimed_in_the_next_turn(home, opened):
    store = opened()
    enqueue(store, "a")
    enqueue(store, "plain")
    enqueue(store, "b", after=["a"], priority=5)
    one = claim(store, slot=1)
    assert one is not None
    turn = q.take_turn(store, "w", 1, (one, OK), True, q.TagFilter())
    assert turn.claimed is not None and turn.claimed.id == "plain" and turn.frees
    turn = q.take_turn(store, "w", 1, (turn.claimed, OK), True, q.TagFilter())
    assert turn.claimed is not None and turn.claimed.id == "b"


def test_a_report_says_that_it_left_something_for_others(opened):
    store = opened()
    q.set_setting(store, "limits", "gpu=1")
    enqueue(store, "a")
    enqueue(store, "b", after=["a"])
    enqueue(store, "c", tags=["gpu"])
    enqueue(store, "d", tags=["gpu"], after=["c"])
    frees = []
    for _ in "abcd":
        job = claim(store, slot=1)
        assert job is not None
        turn = q.take_turn(store, "w", 1, (job, OK), False, q.TagFilter())
        frees.append((job.id, turn.frees))
    assert frees == [("a", True), ("b", False), ("c", True), ("d", True)]


def test_doctor_names_a_job_that_waits_although_it_needs_a_dead_one(opened):
    store = opened()
    family(store)
    with store.transaction() as change:
        job = change.job("a")
        assert job is not None
        change.changes["a"] = job, q.cancel_job(job, change.now)
    (problem,) = q.examine(opened())
    assert "'b'" in problem and "'a'" in problem


def test_a_limit_counts_the_report_of_the_same_turn(opened):
    store = opened()
    q.set_setting(store, "limits", "gpu=1")
    for id in "ab":
        enqueue(store, id, tags=["gpu"])
    one = claim(store, slot=1)
    assert one is not None and claim(store, slot=2) is None
    turn = q.take_turn(store, "w", 1, (one, OK), True, q.TagFilter())
    assert turn.claimed is not None and turn.claimed.id == "b"


def test_a_limit_that_is_set_or_raised_later_holds_from_then_on(opened):
    store = opened()
    for id in "abc":
        enqueue(store, id, tags=["gpu"])
    assert claim(store) is not None
    q.set_setting(store, "limits", "gpu=1")
    assert claim(store) is None
    q.set_setting(store, "limits", "gpu=2")
    assert claim(store) is not None and claim(store) is None


def test_an_enqueue_after_a_job_of_the_arrays_puts_that_job_too_and_loads_nothing(home, opened):
    store, other = opened(), opened()
    bulk(store, "true", '{"id": "a", "command": "x"}', "true")
    store.fold()
    other.follow()
    light = opened()
    enqueue(light, "b", after=["a"])
    assert light.is_light
    assert [job["id"] for job in last_line(home)["put"]] == ["a", "b"]
    enqueue(light, "c", after=["a"])  # the journal names it now
    assert [job["id"] for job in last_line(home)["put"]] == ["c"]
    other.follow()
    assert other.counts == [5, 0, 0, 0, 0]
    assert q.examine(opened()) == []


def test_a_later_job_of_that_name_is_another(opened):
    store = opened()
    family(store)
    q.cancel_jobs(store, ["a"])
    q.cancel_jobs(store, ["d"])
    q.purge_dead(store, ["a"])
    enqueue(store, "a", after=["b"])  # dead from the start, and b does not wait for it
    assert listing_state(store, "a") == "dead"
    q.revive_jobs(store, ["b"])
    assert [listing_state(store, id) for id in "abc"] == ["pending"] * 3
    assert [run_next(store).id for _ in range(3)] == ["b", "c", "a"]


def test_an_id_that_is_given_again_waits_for_none_of_the_old_jobs_parents(opened):
    store = opened()
    enqueue(store, "a", priority=-1)
    enqueue(store, "b", after=["a"])
    q.claim_order(store, store.home.now())
    q.cancel_jobs(store, ["b"])
    q.purge_dead(store, ["b"])
    enqueue(store, "b")
    assert run_next(store).id == "b"


def test_an_edit_gives_a_job_another_place_at_once(opened):
    store = opened()
    for id in "ab":
        enqueue(store, id)
    q.claim_order(store, store.home.now())
    q.edit_jobs(store, ["a"], {"priority": -1})
    assert [run_next(store).id for _ in range(2)] == ["b", "a"]


def test_a_longer_backoff_max_holds_for_a_worker_that_is_running(opened):
    """Its claim order was made under the shorter one, beyond which no retry can be meant."""
    store = opened()
    enqueue(store, "a")
    q.set_setting(store, "backoff-base", "1000")
    q.set_setting(store, "backoff-max", "10")
    store.follow()
    q.claim_order(store, store.home.now())
    q.set_setting(store, "backoff-max", "1h")
    assert run_next(store, BAD).run_at == "2027-01-15T08:16:40.000Z"
    assert claim(store) is None


def test_what_a_dead_job_let_go_waits_again_when_it_is_revived(opened):
    """In the index an entry of each stays where claims and hints look: it must not be believed."""
    store = opened()
    enqueue(store, "a")
    enqueue(store, "b", after=[{"id": "a", "any": True}])
    enqueue(store, "c", after=[{"id": "a", "any": True}], delay=60)
    q.cancel_jobs(store, ["a"])
    assert q.claim_order(store, store.home.now()).first(FREE).id == "b"  # type: ignore[union-attr]
    q.revive_jobs(store, ["a"])
    assert (job := claim(store)) is not None and job.id == "a"
    assert claim(store) is None and q.what_waits(store) == (None, None, 0)
    report(store, job, OK)
    assert run_next(store).id == "b" and q.what_waits(store).next_run_at is not None


def listing_state(store: Watched, id: str) -> str:
    store.follow()
    job = store.get(id)
    assert job is not None
    return job.state


# ---- what it costs


class Counted:
    """Stands in for `os` in queuectl and counts the reads."""

    def __init__(self) -> None:
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        if name == "pread":
            self.reads += 1
        return getattr(os, name)


@pytest.mark.parametrize("priority", [0, 9])
@pytest.mark.parametrize("record", [{"tags": ["gpu"]}, {"after": ["root"]}])
def test_a_claim_looks_at_none_of_the_jobs_that_cannot_start(home, opened, monkeypatch, record, priority):
    store = opened()
    q.set_setting(store, "limits", "gpu=1")
    enqueue(store, "root", tags=["gpu"], priority=10)
    held = json.dumps({"command": "true", "priority": priority, **record})
    bulk(store, *[held] * 2000, *["true"] * 20)
    store.fold()
    assert (first := claim(store)) is not None and first.id == "root"
    monkeypatch.setattr(q, "os", counted := Counted())
    for _ in range(10):
        assert (job := run_next(store)).tags is None and job.after is None
    assert counted.reads < 200


def test_plain_jobs_cost_eight_bytes_in_the_index(opened):
    store = opened()
    bulk(store, *["true"] * 3000)
    store.fold()
    store.follow()
    (lane,) = q.claim_order(store, store.home.now())._lanes.values()
    assert (len(lane.offsets), lane.offsets.itemsize, len(lane.heap)) == (2999, 8, 1)


def test_a_job_that_comes_back_is_held_no_more_by_what_was_over(opened):
    """Attempts of a held job that fails and is tried again: its parents are known without a search."""
    store = opened()
    enqueue(store, "a")
    run_next(store)
    store.fold()
    enqueue(store, "b", after=["a"])
    assert (job := claim(store)) is not None
    store.fold()
    report(store, job, q.Outcome("handed_back"))
    assert (job := claim(store)) is not None and job.id == "b"


def test_what_is_due_is_claimed_beside_a_delayed_job_that_was_noted_something_by_hand(opened, home):
    store = opened()
    for id, delay in (("later", 3600), ("now", None)):
        enqueue(store, id, delay=delay)
    store.fold()
    array = json.loads((home / "jobs.json").read_text())
    array[0]["note"] = "keep"
    (home / "jobs.json").write_text(json.dumps(array))
    assert (job := claim(opened())) is not None and job.id == "now"
