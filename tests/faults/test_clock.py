"""Kind 9 of the fault tests: the clock jumps after each scenario and once more after a further operation.

    python -m pytest tests/faults/test_clock.py -rP             a sample of the pairs, counts printed
    python -m pytest tests/faults/test_clock.py -rP -m slow     every pair of jumps, between every two operations

An hour, a day, to 1970, to 2099, and back. Afterwards the home is whole, no job is lost, and a worker that works for
as long as the longest backoff leaves none behind, but those that somebody delayed until a date.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import tempfile
from pathlib import Path

import pytest
from filelock import lock_descriptor

import queuectl as q
from tests.faults.effects import SCRATCH, FaultyOs, standing_in
from tests.faults.points import SEED
from tests.faults.scenarios import NOW_S, SCENARIOS, WORKER, close_store, copy_home
from tests.storekit import BAD, OK, Clock

DAY_S = 86_400
JUMPS = {
    "an hour on": 3_600, "an hour back": -3_600, "a day on": DAY_S, "a day back": -DAY_S,
    "to 1970": DAY_S - NOW_S, "to 2099": 72 * 365 * DAY_S,
}  # fmt: skip
SAMPLE = 10  # per scenario


def enqueues(store):
    q.enqueue_job(store, dict(command="true", cwd="/"))


def fails_once(store):
    claimed = q.take_turn(store, WORKER, 7, None, True, q.TagFilter()).claimed
    if claimed is not None:
        q.take_turn(store, WORKER, 7, (claimed, BAD), False, q.TagFilter())


def recovers(store):
    store.follow()
    for job in list(store.processing.values()):
        q.recover(store, job, False)


def retries(store):
    store.follow()
    q.retry_jobs(store, [job.id for job in store.jobs(states=("failed", "dead"))])


def folds(store):
    store.fold()


NEXT = (enqueues, fails_once, recovers, retries, folds)


def jobs_of(home, clock):
    store = q.open_store(str(home), lambda text: None, clock)
    store.read()
    found = {job.id: job for job in store.jobs()}
    problems = q.examine(store)
    close_store(store)
    assert problems == []
    return found


def work_off(store, clock):
    """As a worker: take back what is processing, run everything that is due, for as long as the longest backoff."""
    recovers(store)
    for wait_s in (0, store.home.config().backoff_max):
        clock.at += wait_s
        while claimed := q.take_turn(store, WORKER, 0, None, True, q.TagFilter()).claimed:
            assert claimed.runs < 20, "it runs without end"
            q.take_turn(store, WORKER, 0, (claimed, OK), False, q.TagFilter())


def jump(scenario, home, step, first, second, same):
    """Scenario, jump, another operation, jump, then work; `same`: by a worker that has been there from the start."""
    clock = Clock(NOW_S)
    store = q.open_store(str(home), lambda text: None, clock)
    worker = q.open_store(str(home), lambda text: None, clock)
    kept = scenario.before(q, store) if scenario.before else None
    q.what_waits(worker)
    for _ in scenario.steps(q, store):
        q.what_waits(worker)
    before = jobs_of(home, clock)
    clock.at += JUMPS[first]
    step(store)
    q.what_waits(worker)
    there = jobs_of(home, clock)
    assert before.keys() <= there.keys(), f"lost {before.keys() - there.keys()}"
    clock.at += JUMPS[second]
    if not same:
        close_store(worker)
    work_off(worker if same else store, clock)
    after = jobs_of(home, clock)
    close_store(worker)
    close_store(store)
    if kept is not None:
        os.close(kept.fd)
        os.close(kept.wake_fd)
    assert there.keys() == after.keys(), f"lost {there.keys() ^ after.keys()}"
    config = q.Home(str(home), lambda text: None).config()
    units = q.Units(config.limits, ())
    waiting = [job for job in after.values() if job.state not in q.OVER and not job.held]
    left = [job for job in waiting if not units.lacking(job)]
    stuck = [job.id for job in left if job.state != "pending" or job.run_at is None]
    assert config.paused or not stuck, f"stuck: {stuck}"


def jump_all(scenario, chosen, monkeypatch):
    dice = random.Random(f"{SEED} {scenario.name}")
    problems = []
    for name, value in scenario.limits:
        monkeypatch.setattr(q, name, value)
    with (
        standing_in(q, FaultyOs(lock_descriptor)),
        tempfile.TemporaryDirectory(prefix="queuectl-clock-", dir=SCRATCH) as folder,
    ):
        template, home = Path(folder, "template"), Path(folder, "home")
        with monkeypatch.context() as at:
            at.setattr(q, "open_store", functools.partial(q.open_store, clock=lambda: NOW_S))
            scenario.build(q, str(home))
        if home.exists():
            home.rename(template)
        for step, first, second in chosen(dice):
            copy_home(template, home)
            try:
                jump(scenario, home, step, first, second, dice.random() < 0.5)
            except (AssertionError, q.QueueError) as error:
                problems.append(f"{first}, {step.__name__}, {second}: {error}")
    assert not problems, "\n".join([f"{len(problems)} problems, seed {SEED}:", *problems[:10]])


EVERY = list(itertools.product(NEXT, JUMPS, JUMPS))
LEFT_OUT = ("worker that goes on after an error", "doctor --fix")  # the one needs faults, the others a damaged home
WALKED = [scenario for scenario in SCENARIOS if not scenario.name.startswith(LEFT_OUT)]


@pytest.mark.parametrize("scenario", WALKED, ids=lambda scenario: scenario.name)
def test_the_clock_jumps_and_nothing_is_lost_or_stuck(scenario, monkeypatch):
    jump_all(scenario, lambda dice: dice.sample(EVERY, SAMPLE), monkeypatch)
    print(f"{scenario.name}: {SAMPLE} of {len(EVERY)} pairs of jumps, seed {SEED}")


@pytest.mark.slow
@pytest.mark.parametrize("scenario", WALKED, ids=lambda scenario: scenario.name)
def test_the_clock_jumps_in_every_way_and_nothing_is_lost_or_stuck(scenario, monkeypatch):
    jump_all(scenario, lambda dice: EVERY, monkeypatch)
    print(f"{scenario.name}: {len(EVERY)} pairs of jumps, seed {SEED}")
