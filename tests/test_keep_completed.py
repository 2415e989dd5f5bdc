"""`keep_completed`: workers purge what was completed long ago, in small steps, and never when the clock is in doubt."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from real_processes import Call

import queuectl as q
from tests.storekit import BAD, Clock, Watched, claim, enqueue, listing, run_next

pytest_plugins = ["worker_fixtures"]
DAY_S = 86_400


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(home: Path, clock: Clock) -> Watched:
    return Watched(home, clock)


@pytest.fixture(autouse=True)
def boot(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock since boot: the machine has been up for a day."""
    boot = Clock(DAY_S)
    monkeypatch.setattr(q, "boot_clock_s", boot)
    return boot


def house(store: q.Store) -> q.Worker:
    """A worker of which only the housekeeping is called."""
    store.follow()
    worker = q.Worker(store, 1, q.TagFilter(), False, lambda text: None)
    worker._header = {
        "pid": 1,
        "started_at": store.home.now(),
        "boot_id": "b",
        "lock": "1.1",
        "threads": 1,
        "trouble": None,
    }
    worker._executor = q.Executor(os.environb)
    worker.file = store.home.create_worker(worker.name, worker._header, 1)
    return worker


@pytest.fixture
def old(store: Watched, clock: Clock) -> None:
    """`done` was completed, and `lost` died, 40 days ago; `new` yesterday; `last` waits since then."""
    for id, outcome, days in (
        ("done", q.Outcome("exited", 0), 0),
        ("lost", BAD, 39),
        ("new", q.Outcome("exited", 0), 1),
    ):
        enqueue(store, id, max_retries=1)
        run_next(store, outcome)
        clock.at += days * DAY_S
    enqueue(store, "last", delay=50 * DAY_S)
    store.fold()


def passes(clock: Clock, boot: Clock, seconds: float) -> None:
    clock.at += seconds
    boot.at += seconds


def purged(store: q.Store, seconds: float) -> list[str]:
    return [job.id for job in q.purge_completed(store, q.add_seconds(store.home.now(), -seconds), 10)]


@pytest.mark.usefixtures("old")
def test_a_worker_purges_what_was_completed_long_ago(store: Watched) -> None:
    house(store)._keep_house(0)
    assert list(listing(store)) == ["lost", "new", "last"]


@pytest.mark.usefixtures("old")
def test_zero_keeps_everything(store: Watched) -> None:
    q.set_setting(store, "keep_completed", "0")
    house(store)._keep_house(0)
    assert "done" in listing(store)


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("step_s", [2, DAY_S, 20 * 365 * DAY_S, -2, -DAY_S])
def test_nothing_is_purged_within_the_hour_after_the_clock_was_set(
    store: Watched, clock: Clock, boot: Clock, step_s: float
) -> None:
    q.set_setting(store, "keep_completed", "100d")
    worker = house(store)
    worker._keep_house(0)
    q.set_setting(store, "keep_completed", "30d")
    clock.at += step_s
    for _ in range(6):
        worker._keep_house(0)
        passes(clock, boot, 599)
    assert "done" in listing(store)
    passes(clock, boot, 600)
    worker._keep_house(0)
    assert "done" not in listing(store)


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("how", ["stepped", "restarted"])
def test_a_worker_knows_from_the_one_before_that_the_clock_may_be_wrong(
    store: Watched, clock: Clock, boot: Clock, how: str
) -> None:
    q.set_setting(store, "keep_completed", "0")
    house(store)._keep_house(0)
    if how == "stepped":
        clock.at += 20
    worker = house(store)
    worker._header["boot_id"] = "b" if how == "stepped" else "another"
    q.set_setting(store, "keep_completed", "30d")
    passes(clock, boot, 3)
    worker._keep_house(0)
    assert "done" in listing(store)
    passes(clock, boot, 3700)
    worker._keep_house(0)
    assert "done" not in listing(store)


def test_housekeeping_goes_on_where_the_mark_cannot_be_written(
    store: Watched, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = house(store)
    q.set_setting(store, "keep_completed", "0")
    enqueue(store, "a")

    def fails(mark: object, most_s: float) -> None:
        raise q.StoreError("No space left on device.")

    monkeypatch.setattr(store.home, "write_clock_mark", fails)
    clock.at += 100
    worker._keep_house(0)
    assert not store._unsynced and not store.fold_due(0)


def test_one_pass_an_hour_is_enough_for_all_workers(store: Watched, clock: Clock, boot: Clock) -> None:
    one, two = house(store), house(store)
    q.set_setting(store, "keep_completed", "1d")
    enqueue(store, "a")
    run_next(store)
    store.fold()
    for worker in (one, two):
        worker._keep_house(0)
    clock.at += 2 * DAY_S  # on both clocks: no step
    boot.at += 2 * DAY_S
    one._clock_mark = {**one._clock_mark, "purged_s": boot.at - 1}
    store.home.write_clock_mark(one._clock_mark)
    two._keep_house(0)
    assert "a" in listing(store)
    passes(clock, boot, 3700)
    two._keep_house(0)
    assert "a" not in listing(store)


def test_what_changed_since_the_last_fold_is_not_taken_for_what_the_array_says(store: Watched, clock: Clock) -> None:
    enqueue(store, "a")
    job = claim(store)
    assert job is not None
    q.take_turn(store, "w", job.slot or 0, (job, q.Outcome("exited", 0)), False, q.TagFilter())
    store.fold()
    with store.transaction() as change:  # as after a hand edit
        there = change.job("a")
        assert there is not None
        change.put(there, there._replace(state="pending", finished_at=None, attempts=0))
    clock.at += 50
    assert purged(store, 1) == []


def test_a_job_is_as_old_as_its_end(store: Watched, clock: Clock) -> None:
    enqueue(store, "a")
    clock.at += 50
    run_next(store)
    store.fold()
    assert purged(store, 40) == []
    clock.at += 40
    assert purged(store, 40) == ["a"]


def test_a_job_that_was_made_while_the_clock_was_years_ahead_is_as_old_as_its_end(store: Watched, clock: Clock) -> None:
    clock.at += 3650 * DAY_S
    enqueue(store, "ahead")
    clock.at -= 3650 * DAY_S
    run_next(store, q.Outcome("exited", 0))
    store.fold()
    clock.at += 2 * DAY_S
    assert purged(store, DAY_S) == ["ahead"]


@pytest.mark.usefixtures("nothing_left")
def test_a_real_worker_purges_job_and_log(
    run: Call, drain: Call, worker: Call, enqueue: Call, eventually: Call, jobs: Call
) -> None:
    run("config", "set", "keep_completed", "0")  # nothing is purged yet, so the next worker begins with that
    enqueue("a", "echo hello")
    enqueue("b", "exit 1", "--max-retries", "1")
    drain(code=1)
    log = Path(run("logs", "a", "--path").out.strip())
    assert log.exists()
    run("config", "set", "keep_completed", "0.001")
    worker()
    eventually(lambda: list(jobs()) == ["b"] and not log.exists())
