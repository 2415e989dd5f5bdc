"""`keep_completed`: workers purge what was completed long ago, in small steps, and never when the clock is in doubt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import queuectl as q
from tests.storekit import BAD, Clock, Watched, claim, enqueue, idle_worker, listing, run_next

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
def test_a_worker_purges_what_was_completed_long_ago_and_not_before_it_has_known_the_clock_for_an_hour(
    store, clock, boot
):
    worker = idle_worker(store)
    worker._keep_house(q.boot_clock_s())
    passes(clock, boot, 3539)
    worker._keep_house(q.boot_clock_s())
    assert "done" in listing(store)
    passes(clock, boot, 61)
    worker._keep_house(q.boot_clock_s())
    assert list(listing(store)) == ["lost", "new", "last"]


def test_a_purge_that_was_full_goes_on_in_the_next_minute(store, clock, boot, monkeypatch):
    """Else a queue that completes more in an hour than one purge deletes would grow for ever."""
    monkeypatch.setattr(q, "PURGE_JOBS", 2)
    for number in range(5):
        enqueue(store, f"a{number}")
        run_next(store, q.Outcome("exited", 0))
    store.fold()
    passes(clock, boot, 40 * DAY_S)
    worker, left = idle_worker(store), []
    for seconds in (0, 3600, 60, 60, 60):
        passes(clock, boot, seconds)
        worker._keep_house(q.boot_clock_s())
        left.append(len(listing(store)))
    assert left == [5, 3, 1, 0, 0]


@pytest.mark.usefixtures("old")
def test_zero_keeps_everything(store, clock, boot):
    q.set_setting(store, "keep_completed", "0")
    for _ in range(2):
        idle_worker(store)._keep_house(q.boot_clock_s())
        passes(clock, boot, 3600)
    assert "done" in listing(store)


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("step_s", [2, DAY_S, 20 * 365 * DAY_S, -2, -DAY_S])
def test_nothing_is_purged_within_the_hour_after_the_clock_was_set(store, clock, boot, step_s):
    worker = idle_worker(store)
    worker._keep_house(q.boot_clock_s())
    passes(clock, boot, 3440)
    worker._keep_house(q.boot_clock_s())
    passes(clock, boot, 60)
    clock.at += step_s
    for _ in range(6):
        worker._keep_house(q.boot_clock_s())
        passes(clock, boot, 599)
    assert "done" in listing(store)
    passes(clock, boot, 6)
    worker._keep_house(q.boot_clock_s())
    assert "done" not in listing(store)


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("how", ["stepped", "restarted"])
def test_a_worker_knows_from_the_one_before_that_the_clock_may_be_wrong(store, clock, boot, how):
    idle_worker(store)._keep_house(q.boot_clock_s())
    passes(clock, boot, 3700)
    if how == "stepped":
        clock.at += 20
    worker = idle_worker(store, "b" if how == "stepped" else "another")
    worker._keep_house(q.boot_clock_s())
    assert "done" in listing(store)
    passes(clock, boot, 3700)
    worker._keep_house(q.boot_clock_s())
    assert "done" not in listing(store)


def test_housekeeping_goes_on_where_the_mark_cannot_be_written(store, clock, monkeypatch):
    worker = idle_worker(store)
    enqueue(store, "a")

    def fails(mark: object, most_s: float) -> None:
        raise q.StoreError("No space left on device.")

    monkeypatch.setattr(store.home, "write_clock_mark", fails)
    clock.at += 100
    with pytest.raises(q.StoreError):  # said as a trouble
        worker._keep_house(q.boot_clock_s())
    assert not store._unsynced and not store.fold_due(0)


@pytest.mark.usefixtures("old")
def test_one_pass_an_hour_is_enough_for_all_workers(store, clock, boot, monkeypatch):
    one, two = idle_worker(store), idle_worker(store)
    one._keep_house(q.boot_clock_s())
    looks: list[str] = []

    def looked(store: q.Store, before: str, most_s: float) -> list[q.Job]:
        looks.append(before)
        return []

    monkeypatch.setattr(q, "purge_completed", looked)
    for hours in (1, 2):
        passes(clock, boot, 3600)
        for worker in (one, two, one):
            worker._keep_house(q.boot_clock_s())
        assert len(looks) == hours


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b'{"boot_id": "b", "offset_s": "x", "purge_at_s": null}'])
@pytest.mark.usefixtures("old")
def test_a_damaged_mark_is_made_anew(store, home, damage):
    path = home / ".queuectl" / "clock"
    path.write_bytes(damage)
    idle_worker(store)._keep_house(q.boot_clock_s())
    assert "done" in listing(store) and path.read_bytes() != damage


# -- The output of jobs that are gone


@pytest.mark.usefixtures("old")
def test_an_idle_worker_removes_the_output_of_jobs_that_are_gone(store, home, clock, boot, monkeypatch):
    """Under the lock: else a job that gets such an id meanwhile would lose its own."""
    other, sweep = Watched(home, clock), q.sweep_logs

    def checked(*args: Any) -> None:
        with pytest.raises(q.Busy), other.transaction(most_s=0):
            pass
        sweep(*args)

    monkeypatch.setattr(q, "sweep_logs", checked)
    logs = {}
    for id in ("done", "lost", "new", "last"):
        logs[id] = Path(q.log_path(store.home.logs_dir, id, 1))
        logs[id].parent.mkdir(exist_ok=True)
        logs[id].write_text("output")
    with store.transaction() as change:  # a purge that was killed before it removed the output
        job = change.job("done")
        assert job is not None
        change.delete(job)
    store.fold()
    (home / "dlq.json").write_text("[]\n")  # a hand edit
    worker = idle_worker(store)
    for minute in range(257):
        worker._keep_house(60.0 * minute)
        passes(clock, boot, 60)
    assert [id for id, path in logs.items() if path.exists()] == ["new", "last"]


def test_what_changed_since_the_last_fold_is_not_taken_for_what_the_array_says(store, clock):
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


def test_a_job_is_as_old_as_its_end(store, clock):
    enqueue(store, "a")
    clock.at += 50
    run_next(store)
    store.fold()
    assert purged(store, 40) == []
    clock.at += 40
    assert purged(store, 40) == ["a"]


def test_a_job_that_was_made_while_the_clock_was_years_ahead_is_as_old_as_its_end(store, clock):
    clock.at += 3650 * DAY_S
    enqueue(store, "ahead")
    clock.at -= 3650 * DAY_S
    run_next(store, q.Outcome("exited", 0))
    store.fold()
    clock.at += 2 * DAY_S
    assert purged(store, DAY_S) == ["ahead"]


@pytest.mark.usefixtures("nothing_left")
def test_a_real_worker_purges_job_and_log(run, drain, worker, enqueue, eventually, jobs, home):
    enqueue("a", "echo hello")
    enqueue("b", "exit 1", "--max-retries", "1")
    drain(code=1)
    log = Path(run("logs", "a", "--path").out.strip())
    assert log.exists()
    run("config", "set", "keep_completed", "0.001")
    mark = json.loads((home / ".queuectl" / "clock").read_text())
    (home / ".queuectl" / "clock").write_text(json.dumps(mark | {"purge_at_s": 0}))  # an hour later
    worker()
    eventually(lambda: list(jobs()) == ["b"] and not log.exists())


@pytest.mark.usefixtures("old")
def test_a_job_that_was_given_an_old_ones_id_is_not_purged_for_it(store):
    """jobs.json still has the old one, and only the journal what became of it."""
    purge = q.purge_jobs(store, ["completed"], 30 * DAY_S)
    assert [job.id for job in purge.gone] == ["done"]
    enqueue(store, "done")
    run_next(store, q.Outcome("exited", 0))
    assert purged(store, 30 * DAY_S) == []
