"""Everything that can happen to a queue, in any order, beside a model a few lines long (faults.md, section 3.3).

    python -m pytest tests/test_state_machine.py -rP               200 runs of 40 steps; which rare turns were reached
    python -m pytest tests/test_state_machine.py -rP -m slow       5,000 runs of 80 steps, twenty seeds
    STATE_MACHINE_SEED=7 python -m pytest tests/test_state_machine.py        others than the usual 200

The model knows each job's state, attempts and runs, and counts for itself; it asks nothing of the store. Time is a
clock turned by hand, and effects are not synced: what a power loss takes is the fault tests' matter.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, event, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import queuectl as q
from tests.faults.effects import SCRATCH
from tests.storekit import (
    BAD,
    HANDED_BACK,
    OK,
    Clock,
    Died,
    Effects,
    Watched,
    bulk,
    check_times,
    claim,
    claim_turn,
    close_store,
    dies,
    dies_half_way,
    edit,
    enqueue,
    fails,
    journal,
)

NUMBERS = st.integers(0, 9)
KEYS = ("k0", "k1")
NEEDS = st.dictionaries(st.sampled_from(["gpu", "card"]), st.integers(1, 3), min_size=1)
LIMITS = st.fixed_dictionaries(
    {"card": st.integers(2, 4)}, optional={"gpu": st.integers(0, 3), "net": st.integers(0, 2)}
)
UNITS_WAIT_S = 600
SEED = int(os.environ.get("STATE_MACHINE_SEED", "20261124"))
PHASES = tuple(Phase) if os.environ.get("STATE_MACHINE_SHRINK") != "0" else (Phase.generate,)  # "0": only find it
COMMANDS = ("enqueue", "cancel", "claim", "report", "revive", "bulk", "purge", "hold")
RARE = {
    "a unique key is held", "a unique key is held by more than one", "an id is taken", "a cancelled job was reported",
    "out of attempts", "recovered too often", "nothing is claimed while paused", "a report while paused",
    "late report while gone", "late report while completed", "late report while processing",
    "late report of another run, by the same worker", "late report of another run, by the other worker",
    "a running job was edited away, and stays", "a dead job was revived by hand", "a dead job was edited away",
    "cancel of a processing job", "cancel of a dead job", "retry of a failed job", "retry of a dead job",
    "claimed what was due before the clock was set back", "a limit holds jobs up while none is claimed",
    "a limit holds jobs up while another is claimed",
    "a need is refused", "a rerun is refused", "hold of a failed job", "hold of a pending job",
    "a released job is claimed", "claimed with units", "claimed with units while others hold some",
    "a limit is below what is held", "a job that waited for units is overtaken", "nothing overtakes a job that waited",
    "a claim frees what was kept for its job", "a running job's units were edited away, and stay",
    *(f"{end} for {what}" for end in ("died", "did not come to pass", "failed") for what in COMMANDS),
}  # fmt: skip
REACHED: Counter[str] = Counter()


def reached(what: str) -> None:
    """For `--hypothesis-show-statistics`, and for the check that the rare turns were really taken."""
    event(what)
    REACHED[what] += 1


@dataclass(frozen=True)
class Row:
    """What the model knows of a job."""

    seq: int
    state: str = "pending"
    attempts: int = 0
    runs: int = 0
    max_retries: int = 3
    priority: int = 0
    unique: str | None = None
    due: float = 0  # seconds since 1970
    cancelled: bool = False
    worker: str | None = None
    recoveries: int = 0
    after: tuple[tuple[str, bool], ...] = ()  # ids, each with whether any end will do
    tag: str | None = None
    died_after: bool = False  # for no reason but that one of these is dead
    created: float = 0  # seconds since 1970
    needs: tuple[tuple[str, int], ...] = ()
    units: tuple[tuple[str, tuple[int, ...]], ...] = ()  # while it runs
    held: bool = False
    over_at: float = field(default=0, compare=False)


class Queue(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="queue-", dir=SCRATCH))
        self.clock = Clock()
        self.boot_s = 1000.0  # on the clock that nobody sets
        self.real_boot_clock_s, q.boot_clock_s = q.boot_clock_s, lambda: self.boot_s
        self.store = Watched(self.home, self.clock)  # a worker's: loaded, with its index
        self.other = Watched(self.home, self.clock)  # another process's, that follows
        self.rows: dict[str, Row] = {}
        self.n = 0
        self.late: list[q.Job] = []  # runs that are no longer: their reports come late
        self.completed: dict[str, bytes] = {}  # J3
        self.stepped_back = False
        self.limits: dict[str, int] = {}
        self.paused = False
        self.released: set[str] = set()
        self.real_os, q.os = os, Effects(lambda name, args: False, dies)  # type: ignore[attr-defined, assignment]
        self.store.follow()
        self.other.follow()

    def teardown(self) -> None:
        q.os = os  # type: ignore[attr-defined]
        q.boot_clock_s = self.real_boot_clock_s
        for store in (self.store, self.other):
            close_store(store)
        shutil.rmtree(self.home)

    # -- Helpers

    def pick(self, number: int, *states: str) -> str:
        ids = [id for id, row in self.rows.items() if row.state in states]
        assume(ids)
        return ids[number % len(ids)]

    def change(self, id: str, **values: object) -> None:
        self.rows[id] = replace(self.rows[id], **values)  # type: ignore[arg-type]

    def claimed(self, id: str, worker: str) -> None:
        row = self.rows[id]
        units = tuple(sorted((name, self.lowest_free(name, count)) for name, count in self.demand(id).items()))
        if units:
            reached(f"claimed with units{' while others hold some' * any(map(self.used, dict(units)))}")
        self.change(id, state="processing", attempts=row.attempts + 1, runs=row.runs + 1, worker=worker, units=units)

    def added(self, id: str, **values: object) -> None:
        self.n += 1
        self.rows[id] = Row(self.n, **{"created": self.clock.at, **values})  # type: ignore[arg-type]

    def demand(self, id: str) -> dict[str, int]:
        """The units that a job needs: a tag with a limit is one."""
        row = self.rows[id]
        return {**{tag: 1 for tag in self.limits if tag == row.tag}, **dict(row.needs)}

    def running_units(self, name: str) -> list[tuple[int, ...]]:
        """The units that each running job holds or, where a limit came later, just counts for."""
        ids = [id for id, row in self.rows.items() if row.state == "processing"]
        return [dict(self.rows[id].units).get(name) or (-1,) * self.demand(id).get(name, 0) for id in ids]

    def used(self, name: str) -> int:
        return sum(map(len, self.running_units(name)))

    def lowest_free(self, name: str, count: int) -> tuple[int, ...]:
        taken = {unit for units in self.running_units(name) for unit in units}
        return tuple(itertools.islice((unit for unit in range(self.limits[name]) if unit not in taken), count))

    def fits(self, id: str, used: Callable[[str], int]) -> bool:
        return all(used(name) + count <= self.limits.get(name, 0) for name, count in self.demand(id).items())

    def has_waited(self, id: str) -> bool:
        """Whether it has waited so long for units that it is not overtaken any more."""
        row = self.rows[id]
        return max(row.created, row.due) + UNITS_WAIT_S <= self.clock.at

    def parents(self, id: str) -> list[str]:
        """Those that are there: a later job of the same name is another."""
        names = [parent for parent, _ in self.rows[id].after if parent in self.rows]
        return [parent for parent in names if self.rows[parent].seq < self.rows[id].seq]

    def needed(self, id: str) -> list[str]:
        return [parent for parent in self.parents(id) if (parent, False) in self.rows[id].after]

    def is_dead(self, id: str) -> bool:
        return id in self.rows and self.rows[id].state == "dead"

    def spread_deaths(self) -> None:
        """J5: what needs a dead job, and waits, is dead too. Parents have the lower `seq`, so one pass will do."""
        for id in sorted(self.rows, key=lambda id: self.rows[id].seq):
            if self.rows[id].state in q.WAITING and any(map(self.is_dead, self.needed(id))):
                reached("died with a job that it came after")
                self.change(id, state="dead", died_after=True, held=False)

    def acting(self, second: bool) -> Watched:
        """The store that does the next thing: the worker's own, or the other process's."""
        return self.other if second else self.store

    def running(self, id: str) -> q.Job:
        self.store.follow()
        return self.store.processing[id]

    def holders(self, key: str | None) -> list[str]:
        """The active jobs with that key: one, and more where a person revived another."""
        return [id for id, row in self.rows.items() if key and row.unique == key and row.state not in q.OVER]

    def due(self) -> list[str]:
        """Ids that wait for a slot or for units, in the order of claims."""
        now = self.clock.at
        ids = [
            id
            for id, row in self.rows.items()
            if row.state in q.WAITING
            and not row.held
            and (row.due <= now or (row.state == "failed" and row.due > now + 3601))
            and all(self.rows[parent].state in q.OVER for parent in self.parents(id))
        ]
        return sorted(ids, key=lambda id: (-self.rows[id].priority, self.rows[id].seq))

    def ready(self, unseen: Collection[str] = (), is_fine: bool = True) -> list[str]:
        """Ids that a claim may take, in its order. It does not see the job that the same turn reports, nor what comes
        after that or after a job that died with it (`unseen`). Of jobs that are alike the first counts for how long
        they have waited; a store that knew other limits once may tell more of them apart (`is_fine`)."""
        if self.paused:
            return []
        ids: list[str] = []
        kept: set[str] = set()  # resources, for jobs that waited too long to be overtaken
        firsts: set[object] = set()
        for id in self.due():
            if not {id, *self.parents(id)}.isdisjoint(unseen):
                continue
            row, needs = self.rows[id], self.demand(id)
            alike = (row.priority, row.tag if is_fine or row.tag in self.limits else None, row.needs)
            is_first = alike not in firsts
            firsts.add(alike)
            if kept.isdisjoint(needs) and self.fits(id, self.used):
                ids.append(id)
            elif is_first and self.has_waited(id) and self.fits(id, lambda name: 0):
                kept |= needs.keys()
        return ids

    def choices(self, unseen: Collection[str] = ()) -> set[str | None]:
        """What a claim may take: nearly always one job, or none."""
        ready = [self.ready(unseen, is_fine) for is_fine in (True, False)]
        return {ids[0] if ids else None for ids in ready}

    def held_back(self) -> set[str]:
        """The held jobs and what waits for them."""
        left: set[str] = set()
        for id in sorted(self.rows, key=lambda id: self.rows[id].seq):
            row = self.rows[id]
            if row.state in q.WAITING and (row.held or left & set(self.parents(id))):
                left.add(id)
        return left

    # -- Enqueue

    @rule(second=st.booleans(), priority=st.sampled_from([0, 0, 0, 5, -5]), wait_s=st.sampled_from([None, None, 1, 60]),
          max_retries=st.integers(0, 3), tag=st.sampled_from([None, None, "gpu", "net"]))  # fmt: skip
    def enqueues(self, second: bool, priority: int, wait_s: int | None, max_retries: int, tag: str | None) -> None:
        tags = [tag] if tag else None
        job = enqueue(self.acting(second), priority=priority, delay=wait_s, max_retries=max_retries, tags=tags)
        assert job.id not in self.rows
        self.added(
            job.id, priority=priority, due=self.clock.at + wait_s if wait_s else 0, max_retries=max_retries, tag=tag
        )

    @rule(second=st.booleans(), priority=st.sampled_from([0, 0, 5]), wait_s=st.sampled_from([None, None, 60]),
          tag=st.sampled_from([None, None, "gpu", "net"]), needs=NEEDS, held=st.sampled_from([None, None, None, True]),
          in_bulk=st.booleans())  # fmt: skip
    def enqueues_with_needs(self, second: bool, priority: int, wait_s: int | None, tag: str | None,
                            needs: dict[str, int], held: bool | None, in_bulk: bool) -> None:  # fmt: skip
        store = self.acting(second)
        fields: dict[str, Any] = {
            "priority": priority,
            "delay": wait_s,
            "needs": needs,
            "held": held,
            "tags": [tag] if tag else None,
        }

        def add() -> list[str]:
            return bulk(store, "true", "true", **fields).ids if in_bulk else [enqueue(store, **fields).id]

        if any(count > self.limits.get(name, 0) for name, count in needs.items()):
            reached("a need is refused")
            with pytest.raises(q.Refused):
                add()
            return
        for id in add():
            self.added(
                id,
                priority=priority,
                due=self.clock.at + wait_s if wait_s else 0,
                tag=tag,
                needs=tuple(sorted(needs.items())),
                held=bool(held),
            )

    @rule(number=NUMBERS, key=st.sampled_from([None, *KEYS]), second=st.booleans())
    def enqueues_with_id_or_key(self, number: int, key: str | None, second: bool) -> None:
        id = f"given{number}"
        store = self.acting(second)
        there = self.holders(key)
        if there:
            reached(f"a unique key is held{' by more than one' * (len(there) > 1)}")
            job, is_duplicate = q.enqueue_job(store, dict(command="true", id=id or "", unique=key, cwd="/"))
            assert is_duplicate and job.id in there and job.state == self.rows[job.id].state
        elif id in self.rows:
            reached("an id is taken")
            with pytest.raises(q.Refused):
                enqueue(store, id, unique=key)
        else:
            enqueue(store, id, unique=key)
            self.added(id, unique=key)

    @precondition(lambda self: self.rows)
    @rule(numbers=st.lists(NUMBERS, min_size=1, max_size=3), any_end=st.booleans(), second=st.booleans(),
          wait_s=st.sampled_from([None, None, 1]), in_bulk=st.booleans(), priority=st.sampled_from([0, 5]))  # fmt: skip
    def enqueues_after(self, numbers: list[int], any_end: bool, second: bool, wait_s: int | None, in_bulk: bool,
                       priority: int) -> None:  # fmt: skip
        parents = list(dict.fromkeys(self.pick(number, *q.STATES) for number in numbers))
        last = {"id": parents[-1], "any": True} if any_end else parents[-1]
        after = [*parents[:-1], last]
        reached(f"after a {self.rows[parents[0]].state} job")
        id = next(id for id in (f"given{numbers[0]}", f"after{self.n}") if id not in self.rows)
        if in_bulk:
            line = {"id": id, "command": "true", "after": after, "priority": priority, "delay": wait_s}
            bulk(self.acting(second), "true", json.dumps(line))
            first = next(job for job in self.listed(second) if job.seq == self.n + 1)
            self.added(first.id)
        else:
            enqueue(self.acting(second), id, after=after, priority=priority, delay=wait_s)
        self.added(
            id,
            priority=priority,
            due=self.clock.at + wait_s if wait_s else 0,
            after=tuple((parent, any_end and parent == parents[-1]) for parent in parents),
        )
        self.spread_deaths()

    def listed(self, second: bool) -> list[q.Job]:
        store = self.acting(second)
        store.follow()
        return list(store.jobs())

    @rule(number=NUMBERS, second=st.booleans())
    def enqueues_after_an_unknown_one(self, number: int, second: bool) -> None:
        with pytest.raises(q.Refused):
            enqueue(self.acting(second), after=[f"nobody{number}"])

    @rule(count=st.integers(1, 8), second=st.booleans(), bad=st.booleans())
    def enqueues_a_bulk(self, count: int, second: bool, bad: bool) -> None:
        store = self.acting(second)
        lines = [f"echo {number}" for number in range(count)]
        if bad:
            with pytest.raises(q.BadValue):
                bulk(store, *lines, '{"command": 5}')
        else:
            for id in bulk(store, *lines).ids:
                self.added(id)

    # -- Claim and report

    @initialize(jobs=st.integers(0, 5), running=st.integers(0, 3))
    def begins(self, jobs: int, running: int) -> None:
        self.limits_change({"card": 4, "gpu": 2, "net": 2}, False)
        for number in range(jobs):
            self.enqueues(bool(number % 2), 0, None, number, "gpu" if number % 2 else None)
        for number in range(running):
            self.claims(bool(number % 2), "w1")

    @precondition(lambda self: self.ready())
    @rule(second=st.booleans(), worker=st.sampled_from(["w1", "w2"]))
    def claims_again(self, second: bool, worker: str) -> None:
        self.claims(second, worker)

    @precondition(lambda self: self.rows)
    @rule(second=st.booleans(), worker=st.sampled_from(["w1", "w2"]))
    def claims(self, second: bool, worker: str) -> None:
        turn = claim_turn(self.acting(second), worker)
        job, ready, choices = turn.claimed, self.ready(), self.choices()
        if self.paused and self.rows:
            reached("nothing is claimed while paused")
        if self.stepped_back and job is not None and job.id not in ready:
            reached("claimed what was due before the clock was set back")
            row = self.rows[job.id]
            assert row.state in q.WAITING and not row.held and self.fits(job.id, self.used)
        else:
            assert (job.id if job else None) in choices
            self.tell_what_waits(job)
        if job is not None:
            row = self.rows[job.id]
            self.claimed(job.id, worker)
            assert (job.attempts, job.runs, job.worker) == (row.attempts + 1, row.runs + 1, worker)
            self.wakes_others(turn, ready, "a claim frees what was kept for its job")

    def tell_what_waits(self, job: q.Job | None) -> None:
        """What a claim passed over."""
        due = self.due()
        passed = due[: due.index(job.id)] if job else due
        lacking = [id for id in passed if not self.fits(id, self.used)]
        if lacking and not self.paused:
            reached(f"a limit holds jobs up while {'another' if job else 'none'} is claimed")
        if job is not None and any(self.demand(job.id).keys() & self.demand(id).keys() for id in lacking):
            reached("a job that waited for units is overtaken")
        if any(self.fits(id, self.used) for id in passed) and not self.paused:
            reached("nothing overtakes a job that waited")
        if job is not None and job.id in self.released:
            reached("a released job is claimed")

    def wakes_others(self, turn: q.Turn, ready: list[str], what: str) -> None:
        """Another slot looks again where it finds something that it could not have claimed before the turn."""
        if set(self.ready()) - {*ready} and not self.stepped_back:
            reached(what)
            assert turn.frees

    @precondition(lambda self: any(row.state == "processing" for row in self.rows.values()))
    @rule(number=NUMBERS, outcome=st.sampled_from([OK, BAD, BAD, BAD, HANDED_BACK]), second=st.booleans(),
          claims=st.booleans())  # fmt: skip
    def reports(self, number: int, outcome: q.Outcome, second: bool, claims: bool) -> None:
        id = self.pick(number, "processing")
        row, running, ready = self.rows[id], self.running(id), [id, *self.ready()]
        claims = claims and not self.stepped_back
        going = [one for one, row in self.rows.items() if row.state not in q.OVER]
        done = (running, outcome)
        turn = q.take_turn(self.acting(second), row.worker or "", running.slot or 0, done, claims, q.TagFilter())
        assert turn.reported is not None
        self.late.append(running)
        row = replace(row, worker=None, units=())
        if row.cancelled:
            reached("a cancelled job was reported")
            self.rows[id] = replace(row, state="dead")
        elif outcome == OK:
            self.rows[id] = replace(row, state="completed", over_at=self.clock.at)
        elif outcome == HANDED_BACK:
            self.rows[id] = replace(row, state="pending", attempts=row.attempts - 1, due=0)
        elif row.attempts >= max(1, row.max_retries):
            reached("out of attempts")
            self.rows[id] = replace(row, state="dead")
        else:
            self.rows[id] = replace(row, state="failed", due=self.clock.at + 2**row.attempts)
        self.spread_deaths()
        assert turn.reported.state == self.rows[id].state
        if claims:
            # What comes after the job that is reported is claimed in the next turn.
            ended = [one for one in going if self.rows[one].state in q.OVER]
            assert (turn.claimed.id if turn.claimed else None) in self.choices(unseen=[id, *ended])
        if turn.claimed is not None:
            reached(f"claimed what the report {'allowed' if turn.claimed.id not in ready else 'did not change'}")
            self.claimed(turn.claimed.id, running.worker or "")
        self.wakes_others(turn, ready, "a report leaves something for others")

    @precondition(lambda self: any(row.state == "processing" for row in self.rows.values()))
    @rule(number=NUMBERS, worker=st.sampled_from(["w1", "w2"]), second=st.booleans())
    def is_handed_back_and_claimed_again(self, number: int, worker: str, second: bool) -> None:
        self.reports(number, HANDED_BACK, second, False)
        self.claims(not second, worker)
        if self.run_again():
            self.reports_late_while_it_runs_again(number, OK, second)

    def run_again(self) -> list[q.Job]:
        """Runs that are over, of jobs that run once more."""
        return [run for run in self.late if run.id in self.rows and self.rows[run.id].state == "processing"]

    @precondition(lambda self: self.late)
    @rule(number=NUMBERS, outcome=st.sampled_from([OK, BAD, HANDED_BACK]), second=st.booleans())
    def reports_late(self, number: int, outcome: q.Outcome, second: bool) -> None:
        """O3: of a run that ended, was recovered, or whose job is gone. It is not believed."""
        run = self.late[number % len(self.late)]
        reached(f"late report while {self.rows[run.id].state if run.id in self.rows else 'gone'}")
        self.is_not_believed(run, outcome, second)

    @precondition(lambda self: self.run_again())
    @rule(number=NUMBERS, outcome=st.sampled_from([OK, BAD, HANDED_BACK]), second=st.booleans())
    def reports_late_while_it_runs_again(self, number: int, outcome: q.Outcome, second: bool) -> None:
        runs = self.run_again()
        run = runs[number % len(runs)]
        reached(
            f"late report of another run, by the {'same' if self.rows[run.id].worker == run.worker else 'other'} worker"
        )
        self.is_not_believed(run, outcome, second)

    def is_not_believed(self, run: q.Job, outcome: q.Outcome, second: bool) -> None:
        store = self.acting(second)
        before = journal(self.home).read_bytes()
        slot = 1 << 40  # its own may hold another by now, which a turn there would give back (W1); none counts this far
        turn = q.take_turn(store, run.worker or "", slot, (run, outcome), False, q.TagFilter())
        assert turn.reported is None and journal(self.home).read_bytes() == before
        assert q.recover(store, run, False) is None

    @precondition(lambda self: any(row.state == "processing" for row in self.rows.values()))
    @rule(worker=st.sampled_from(["w1", "w2"]), second=st.booleans(), excused=st.booleans())
    def worker_dies(self, worker: str, second: bool, excused: bool) -> None:
        """All that it ran is recovered (once: a second finder finds nothing)."""
        ids = [id for id, row in self.rows.items() if row.worker == worker]
        assume(ids)
        for id in ids:
            row, orphan = self.rows[id], self.running(id)
            back = q.recover(self.acting(second), orphan, excused)
            assert back is not None and q.recover(self.acting(not second), orphan, excused) is None
            self.late.append(orphan)
            row = replace(row, worker=None, units=(), recoveries=row.recoveries + (not excused))
            if row.cancelled:
                self.rows[id] = replace(row, state="dead")
            elif row.recoveries > q.RECOVERIES_MAX:
                reached("recovered too often")
                self.rows[id] = replace(row, state="dead", attempts=row.attempts - 1)
            else:
                self.rows[id] = replace(row, state="pending", attempts=row.attempts - 1, due=0)
            self.spread_deaths()

    # -- What people do

    @precondition(lambda self: self.rows)
    @rule(number=NUMBERS, second=st.booleans())
    def cancels(self, number: int, second: bool) -> None:
        id = self.pick(number, *q.STATES)
        state = self.rows[id].state
        reached(f"cancel of a {state} job")
        if state in q.OVER:
            with pytest.raises(q.Refused):
                q.cancel_jobs(self.acting(second), [id])
            return
        q.cancel_jobs(self.acting(second), [id])
        self.change(id, cancelled=True, **({} if state == "processing" else {"state": "dead", "held": False}))
        self.spread_deaths()

    @precondition(lambda self: self.rows)
    @rule(number=NUMBERS, second=st.booleans())
    def retries(self, number: int, second: bool) -> None:
        id = self.pick(number, *q.STATES)
        reached(f"retry of a {self.rows[id].state} job")
        row = self.rows[id]
        is_delayed = row.state == "pending" and row.due
        if row.state not in ("failed", "dead") and not is_delayed:
            with pytest.raises(q.Refused):
                q.retry_jobs(self.acting(second), [id])
            return
        if self.refuses_to_revive(id, second):
            return
        q.retry_jobs(self.acting(second), [id])
        if self.rows[id].state == "dead":
            self.revived(id)
        else:
            self.change(id, due=self.clock.at)

    @precondition(lambda self: any(row.state == "failed" for row in self.rows.values()))
    @rule(second=st.booleans())
    def retries_a_failed_one(self, second: bool) -> None:
        failed = [number for number, row in enumerate(self.rows.values()) if row.state == "failed"]
        self.retries(failed[0], second)

    @precondition(lambda self: any(row.state == "dead" for row in self.rows.values()))
    @rule(number=NUMBERS, second=st.booleans(), later=st.booleans(), priority=st.sampled_from([None, None, 0, 7]))
    def revives(self, number: int, second: bool, later: bool, priority: int | None) -> None:
        id = self.pick(number, "dead")
        changes: dict[str, object] = {}
        if self.refuses_to_revive(id, second):
            return
        if later:
            changes["run_at"] = q.format_instant(self.clock.at + 30)
        if priority is not None:
            changes["priority"] = priority
        q.revive_jobs(self.acting(second), [id], changes)
        self.revived(id)
        self.change(id, due=self.clock.at + 30 if later else 0)
        if priority is not None:
            self.change(id, priority=priority)

    @precondition(lambda self: self.rows)
    @rule(number=NUMBERS, second=st.booleans(), wait_s=st.sampled_from([None, -5, 30, 4000]),
          priority=st.sampled_from([None, 5, -5]), max_retries=st.sampled_from([None, 1, 3, 9]))  # fmt: skip
    def edits(
        self, number: int, second: bool, wait_s: int | None, priority: int | None, max_retries: int | None
    ) -> None:
        id = self.pick(number, *q.STATES)
        row = self.rows[id]
        at = self.clock.at + (wait_s or 0)
        changes: dict[str, object] = {
            "priority": priority,
            "max_retries": max_retries,
            "run_at": wait_s and q.format_instant(at),
        }
        changes = {key: value for key, value in changes.items() if value is not None}
        reached(f"edit of a {row.state} job")
        if row.state not in q.WAITING or (max_retries is not None and max_retries <= row.attempts):
            with pytest.raises(q.Refused):
                q.edit_jobs(self.acting(second), [id], changes)
            return
        q.edit_jobs(self.acting(second), [id], changes)
        if wait_s is not None:
            row = replace(row, due=at, state="pending")
        row = row if priority is None else replace(row, priority=priority)
        self.rows[id] = row if max_retries is None else replace(row, max_retries=max_retries)

    @precondition(lambda self: self.rows)
    @rule(number=NUMBERS, second=st.booleans())
    def reruns(self, number: int, second: bool) -> None:
        id = self.pick(number, *q.STATES)
        row = self.rows[id]
        if any(count > self.limits.get(name, 0) for name, count in row.needs):
            reached("a rerun is refused")
            with pytest.raises(q.Refused):
                q.rerun_jobs(self.acting(second), [id])
            return
        (new,) = q.rerun_jobs(self.acting(second), [id])
        assert new.id not in self.rows
        open_parents = [parent for parent in self.parents(id) if self.rows[parent].state not in q.OVER]
        after = tuple(item for item in row.after if item[0] in open_parents)
        event(f"rerun of a job that comes after {'some' if after else 'none'}")
        self.added(
            new.id, priority=row.priority, max_retries=row.max_retries, unique=row.unique, tag=row.tag, after=after,
            needs=row.needs,
        )  # fmt: skip

    @precondition(lambda self: self.rows)
    @rule(number=NUMBERS, second=st.booleans(), held=st.booleans())
    def holds_or_releases(self, number: int, second: bool, held: bool) -> None:
        id = self.pick(number, *q.STATES)
        row = self.rows[id]
        reached(f"{'hold' if held else 'release'} of a {row.state} job")
        if row.state not in q.WAITING:
            with pytest.raises(q.Refused):
                q.edit_jobs(self.acting(second), [id], {"held": held or None})
            return
        q.edit_jobs(self.acting(second), [id], {"held": held or None})
        if row.held and not held:
            self.released.add(id)
        self.change(id, held=held)

    @precondition(lambda self: any(row.held for row in self.rows.values()))
    @rule(number=NUMBERS, second=st.booleans(), claims=st.booleans())
    def releases(self, number: int, second: bool, claims: bool) -> None:
        held = [number for number, row in enumerate(self.rows.values()) if row.held]
        self.holds_or_releases(held[number % len(held)], second, False)
        if claims:
            self.claims(second, "w1")

    def refuses_to_revive(self, id: str, second: bool) -> bool:
        if self.rows[id].state != "dead" or not any(map(self.is_dead, self.needed(id))):
            return False
        reached("revival of a job that needs a dead one")
        with pytest.raises(q.Refused):
            q.revive_jobs(self.acting(second), [id])
        return True

    def revived(self, id: str) -> None:
        """And those that died for it only, unless something else that they need is dead."""
        back = [id]
        for other in sorted(self.rows, key=lambda id: self.rows[id].seq):
            needed = self.needed(other)
            if self.is_dead(other) and self.rows[other].died_after and set(back) & set(needed):
                if not any(self.is_dead(parent) for parent in needed if parent not in back):
                    reached("revived with a job that it came after")
                    back.append(other)
        for id in back:
            self.change(id, state="pending", attempts=0, due=0, cancelled=False, recoveries=0, died_after=False)

    def named(self) -> set[str]:
        return {parent for id, row in self.rows.items() if row.state in q.WAITING for parent in self.parents(id)}

    @precondition(lambda self: any(row.state in q.OVER for row in self.rows.values()))
    @rule(second=st.booleans(), state=st.sampled_from(q.OVER))
    def purges(self, second: bool, state: str) -> None:
        gone = q.purge_jobs(self.acting(second), (state,)).gone
        over = {id for id, row in self.rows.items() if row.state == state}
        if named := self.named() & over:
            reached("a job that is named stays")
            if state == "dead":
                with pytest.raises(q.Refused):
                    q.purge_dead(self.acting(second), list(over))
        assert {job.id for job in gone} == over - named
        for job in gone:
            del self.rows[job.id]

    @rule(second=st.booleans(), keep_s=st.sampled_from([0, 5, 100]))
    def purges_as_workers_do(self, second: bool, keep_s: float) -> None:
        """What the arrays hold of old completed jobs goes, and nothing else."""
        store = self.acting(second)
        store.fold()
        born = {job.id: q.instant_s(job.created_at) for job in store.jobs()}
        gone = q.purge_completed(store, q.format_instant(self.clock.at - keep_s), 10)
        now, old_at = self.clock.at, self.clock.at - keep_s
        old = {id for id, row in self.rows.items() if row.state == "completed" and row.over_at <= old_at}
        # One that was made before the clock was set back, and ended after, goes once the clock has caught up.
        old -= {id for id in old if old_at < born[id] <= now}
        assert {id: self.rows[id].runs for id in old - self.named()} == {job.id: job.runs for job in gone}
        reached(f"{'some' if gone else 'none'} purged by a worker")
        for job in gone:
            del self.rows[job.id]

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), indent=st.sampled_from([None, 2]))
    def hand_edits(self, data: st.DataObject, indent: int | None) -> None:
        """A person edits jobs.json right after a fold: one new job, one changed, one taken out."""
        self.store.fold()
        mine = [id for id, row in self.rows.items() if row.state != "dead"]
        waiting = [id for id in mine if self.rows[id].state in q.WAITING]
        changed = data.draw(st.sampled_from(waiting)) if waiting else None
        gone = data.draw(st.sampled_from([None, *mine]))
        running = gone is not None and self.rows[gone].state == "processing"
        new = f"hand{self.n}"
        held = data.draw(st.booleans())
        parent = data.draw(st.sampled_from([None, *self.rows]))
        after = {} if parent is None else {"after": [parent]}

        edited = {"priority": 3, "held": True} if held else {"priority": 3}

        def without_units(job: dict[str, object]) -> dict[str, object]:
            if held and job.pop("units", None):
                reached("a running job's units were edited away, and stay")
            return job

        def change(jobs: list[dict[str, object]]) -> list[dict[str, object]]:
            kept = [job for job in jobs if job["id"] != gone]
            return [
                *({**job, **edited} if job["id"] == changed else without_units(job) for job in kept),
                {"id": new, "command": "x", **after},
            ]

        edit(self.home, change, indent=indent, at=self.clock.at)
        self.added(new, after=() if parent is None else ((parent, False),))
        if changed is not None and changed != gone:
            self.change(changed, priority=3, held=held or self.rows[changed].held)
        if running:
            reached("a running job was edited away, and stays")
        elif gone is not None:
            del self.rows[gone]
        self.spread_deaths()

    @precondition(lambda self: any(row.state == "dead" for row in self.rows.values()))
    @rule(number=NUMBERS, back=st.booleans())
    def edits_the_dead_by_hand(self, number: int, back: bool) -> None:
        """A person edits dlq.json: a job is taken out, or written anew as one that waits."""
        self.store.fold()
        id = self.pick(number, "dead")
        assume(all(id != parent for row in self.rows.values() for parent, _ in row.after))
        new = [{"id": id, "command": "x", "state": "pending"}] if back else []
        edit(self.home, lambda jobs: [*new, *(job for job in jobs if job["id"] != id)], name="dlq", at=self.clock.at)
        del self.rows[id]
        if back:
            self.added(id)
        reached(f"a dead job was {'revived by hand' if back else 'edited away'}")

    @rule(number=NUMBERS, second=st.booleans())
    def a_parent_is_edited_away_and_its_id_given_again(self, number: int, second: bool) -> None:
        """The new job of that id is not the one that the other comes after."""
        id, child = f"given{number}", f"child{self.n}"
        assume(id not in self.rows)
        enqueue(self.acting(second), id)
        self.added(id)
        enqueue(self.acting(not second), child, after=[id])
        self.added(child, after=((id, False),))
        self.store.fold()
        edit(self.home, lambda jobs: [job for job in jobs if job["id"] != id], at=self.clock.at)
        del self.rows[id]
        enqueue(self.acting(second), id)
        self.added(id)

    @rule(number=NUMBERS, second=st.booleans())
    def is_paused_for_a_while(self, number: int, second: bool) -> None:
        q.set_setting(self.acting(second), "paused", "true")
        self.paused = True
        self.claims(not second, "w1")
        if any(row.state == "processing" for row in self.rows.values()):
            reached("a report while paused")
            self.reports(number, OK, second, False)
        self.paused = False
        q.set_setting(self.acting(not second), "paused", "false")

    @rule(times=st.integers(1, 6), second=st.booleans())
    def dies_whenever_it_runs_something(self, times: int, second: bool) -> None:
        for _ in range(times):
            self.claims(second, "w2")
            if not any(row.worker == "w2" for row in self.rows.values()):
                return
            self.worker_dies("w2", not second, False)

    # -- Units

    @precondition(lambda self: not self.paused)
    @rule(name=st.sampled_from(["card", "gpu"]), wait_s=st.sampled_from([300, 700]), second=st.booleans(),
          tag=st.sampled_from([None, "gpu", "net"]), priority=st.sampled_from([0, 5]))  # fmt: skip
    def a_job_waits_for_all_units(self, name: str, wait_s: int, second: bool, tag: str | None, priority: int) -> None:
        """While another holds one of them; smaller jobs come later."""
        self.limits_change({"card": 3, "gpu": 2, "net": 1}, second)
        self.enqueues_with_needs(second, priority, None, None, {name: 1}, None, False)
        self.claims(second, "w1")
        self.enqueues_with_needs(not second, 0, None, tag, {name: self.limits[name]}, None, False)
        self.enqueues_with_needs(not second, 0, None, None, {name: 1}, None, True)
        self.time_passes(wait_s)
        self.claims(second, "w2")
        if any(row.state == "processing" for row in self.rows.values()):
            self.reports(0, OK, second, True)

    # -- Time, folds, restarts, crashes

    @rule(seconds=st.sampled_from([0.5, 2, 10, 100, 100, 600, 70 * 365 * 86_400]))
    def time_passes(self, seconds: float) -> None:
        self.clock.at += seconds
        self.boot_s += seconds

    @rule(second=st.booleans())
    def clock_is_slewed_back_behind_a_job_that_was_due(self, second: bool) -> None:
        """By too little to be noticed: the job is not claimed now, and not forgotten."""
        self.enqueues(second, 0, 1, 3, None)
        self.time_passes(1)
        self.a_follower_agrees()
        self.clock.at -= 0.625
        self.claims(second, "w1")
        self.clock.at += 0.625

    @precondition(lambda self: len(self.late) > 2)  # after it the order of claims is less certain: not too early
    @rule(seconds=st.sampled_from([5, 86_400, None]))
    def clock_is_set_back(self, seconds: float | None) -> None:
        self.clock.at = 86_400 if seconds is None else max(86_400, self.clock.at - seconds)  # None: to 1970
        self.stepped_back = True

    @rule(limits=st.one_of(LIMITS, LIMITS, st.just({})), second=st.booleans())
    def limits_change(self, limits: dict[str, int], second: bool) -> None:
        q.set_setting(self.acting(second), "limits", ",".join(f"{tag}={most}" for tag, most in limits.items()))
        self.limits = limits
        if any(self.used(name) > most for name, most in limits.items()):
            reached("a limit is below what is held")

    @rule(second=st.booleans())
    def folds(self, second: bool) -> None:
        self.acting(second).fold()

    @rule(second=st.booleans())
    def settles(self, second: bool) -> None:
        (self.other if second else self.store).fold_or_sync()

    @rule()
    def restarts(self) -> None:
        self.reopen()

    def reopen(self) -> None:
        for store in (self.store, self.other):
            close_store(store)
        self.store, self.other = Watched(self.home, self.clock), Watched(self.home, self.clock)
        self.store.follow()
        self.other.follow()

    @rule(at=st.one_of(st.integers(1, 3), st.integers(1, 14)), half=st.booleans(), number=st.integers(0, 20))
    def dies_at_an_effect(self, at: int, half: bool, number: int) -> None:
        """F1: a command and its fold stop at their n-th effect; all is opened anew; before or after, never between."""
        what = self.possible(number)
        before = dict(self.rows), self.n
        store = Watched(self.home, self.clock)
        effects = Effects(lambda name, args: effects.count == at, dies_half_way if half else dies)
        q.os = effects  # type: ignore[attr-defined, assignment]
        try:
            self.one_command(store, what)
            store.fold_or_sync()
        except Died:
            reached(f"died for {what}")
        finally:
            q.os = Effects(lambda name, args: False, dies)  # type: ignore[attr-defined, assignment]
            close_store(store)
        self.reopen()
        if not self.is_shown():
            reached(f"did not come to pass for {what}")
            self.rows, self.n = before

    @rule(
        at=st.one_of(st.just(1), st.integers(1, 3), st.integers(1, 14)),
        error=st.sampled_from([28, 5]),
        number=st.integers(0, 20),
    )
    def an_effect_fails(self, at: int, error: int, number: int) -> None:
        """F2: what failed changed nothing, or says that it may have; a fold that fails does not fail the command."""
        what, failed = self.possible(number), ""
        before = dict(self.rows), self.n
        store = self.acting(False)
        effects = Effects(lambda name, args: effects.count == at, fails(error))
        q.os = effects  # type: ignore[attr-defined, assignment]
        try:
            self.one_command(store, what)
        except q.StoreError as error:
            reached(f"failed for {what}")
            failed = str(error)
        else:
            store.fold_or_sync()
        finally:
            q.os = Effects(lambda name, args: False, dies)  # type: ignore[attr-defined, assignment]
        if failed and not ("may have been stored" in failed and self.is_shown()):
            self.rows, self.n = before

    def is_shown(self) -> bool:
        return self.shown() == {id: (row.state, row.attempts, row.runs, row.held) for id, row in self.rows.items()}

    def possible(self, number: int) -> str:
        """One of the commands that would change something now."""
        there = {row.state for row in self.rows.values()}
        needs = {"cancel": there & {*q.WAITING}, "hold": there & {*q.WAITING}, "revive": "dead" in there,
                 "report": "processing" in there, "purge": "completed" in there,
                 "claim": self.ready() and not self.stepped_back}  # fmt: skip
        able = [what for what, given in needs.items() if given] * 2 + ["enqueue", "bulk"]
        return able[number % len(able)]

    def one_command(self, store: Watched, what: str) -> None:
        """A command, entered in the model before it is known whether it comes to pass."""
        ids = [id for id, row in self.rows.items() if row.state in q.WAITING]
        dead = [id for id, row in self.rows.items() if row.state == "dead"]
        if what == "enqueue":
            self.added(f"crash{self.n}")
            enqueue(store, f"crash{self.n - 1}")
        elif what == "bulk":
            first = self.n
            for number in range(3):
                self.added(f"crash{first + number}")
            bulk(store, *(f'{{"id": "crash{first + number}", "command": "x"}}' for number in range(3)))
        elif what == "cancel" and ids:
            self.change(ids[0], state="dead", cancelled=True, held=False)
            self.spread_deaths()
            q.cancel_jobs(store, [ids[0]])
        elif what == "hold" and ids:
            is_held = self.rows[ids[-1]].held
            self.change(ids[-1], held=not is_held)
            q.edit_jobs(store, [ids[-1]], {"held": None if is_held else True})
        elif what == "revive" and dead and not any(map(self.is_dead, self.needed(dead[0]))):
            self.revived(dead[0])
            q.revive_jobs(store, [dead[0]])
        elif what == "report" and (held := [id for id, row in self.rows.items() if row.state == "processing"]):
            job, row = self.running(held[0]), self.rows[held[0]]
            state = "dead" if row.cancelled else "completed"
            self.change(held[0], state=state, worker=None, units=(), over_at=self.clock.at)
            self.spread_deaths()
            q.take_turn(store, row.worker or "", job.slot or 0, (job, OK), False, q.TagFilter())
        elif what == "purge":
            named = self.named()
            self.rows = {id: row for id, row in self.rows.items() if row.state != "completed" or id in named}
            q.purge_jobs(store, ("completed",))
        elif what == "claim" and not self.stepped_back and (ready := self.ready()):
            self.claimed(ready[0], "w1")
            claim(store, "w1")

    # -- What holds after each step

    def shown(self) -> dict[str, tuple[str, int, int, bool]]:
        reader = Watched(self.home, self.clock)
        reader.read()
        shown = {job.id: (str(job.state), job.attempts, job.runs, bool(job.held)) for job in reader.jobs()}
        close_store(reader)
        return shown

    @invariant()
    def the_stores_hold_what_the_model_says(self) -> None:
        reader = Watched(self.home, self.clock)
        reader.read()
        jobs = list(reader.jobs())
        assert len(jobs) == len({job.id for job in jobs}), "S1"
        assert [job.seq for job in jobs] == sorted(job.seq for job in jobs)
        seen = {
            job.id: Row(
                job.seq, job.state, job.attempts, job.runs, job.max_retries, job.priority, job.unique,
                self.rows[job.id].due if job.id in self.rows else 0, job.cancelled_at is not None, job.worker,
                job.recoveries or 0, tuple(q.parents_of(job).items()),
                job.tags[0] if job.tags else None, q.has_died_after(job), q.instant_s(job.created_at),
                tuple(sorted((job.needs or {}).items())),
                tuple(sorted((name, tuple(units)) for name, units in (job.units or {}).items())), bool(job.held),
            )
            for job in jobs
        }  # fmt: skip
        assert seen == self.rows
        held = Counter((name, unit) for row in seen.values() for name, units in row.units for unit in units)
        assert not held or max(held.values()) == 1, "no unit is held twice"
        self.completed = {id: raw for id, raw in self.completed.items() if id in seen and seen[id].state == "completed"}
        for job in jobs:
            assert q.check_job(job) is None, "J1, J2"
            raw = q.encode_job(job)
            if job.state == "completed":
                assert self.completed.setdefault(job.id, raw) == raw, "J3"
            if job.state == "failed" or (job.run_at and job.state == "pending"):
                assert abs(q.instant_s(job.run_at or "") - self.rows[job.id].due) < 0.01, (
                    "it waits as long as it should"
                )
        counts = tuple(sum(row.state == state for row in self.rows.values()) for state in q.STATES)
        totals = Watched(self.home, self.clock)
        totals.read(light=True)
        for answer in (reader, totals):
            assert (tuple(answer.counts), answer.n) == (counts, self.n), "counts are true"
        for file in self.home.joinpath(".queuectl").glob("aside/jobs.json*"):
            assert file.read_bytes()
        assert q.examine(totals) == []
        close_store(totals)
        close_store(reader)

    @invariant()
    def a_follower_agrees(self) -> None:
        want = {id: (row.state, row.attempts, row.runs) for id, row in self.rows.items()}
        for store in (self.store, self.other):
            store.follow()
            assert {job.id: (job.state, job.attempts, job.runs) for job in store.jobs()} == want
            assert set(store.processing) == {id for id, row in self.rows.items() if row.state == "processing"}
            assert (store.n, sum(store.counts)) == (self.n, len(self.rows))
            left = self.held_back()
            assert q.held_back(store).keys() == left
            assert q.what_waits(store).held == sum(row.held for row in self.rows.values())
            going = [id for id, row in self.rows.items() if row.state not in q.OVER and id not in left]
            assert (q.drain_state(store, q.ALL_JOBS) == "over") == (not going)
            if not self.stepped_back:
                check_times(store, store.home.now())
                limits, now = store.home.config().limits, store.home.now()
                first = q.claim_order(store, now).first(q.Units(limits, store.processing.values()))
                assert self.paused or (first.id if first else None) in self.choices()


def run_machine(number: int, runs: int, steps: int) -> None:
    print(f"{runs} runs of {steps} steps, seed {number}")
    run_state_machine_as_test(
        seed(number)(Queue),
        settings=settings(
            max_examples=runs,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            print_blob=True,
            phases=PHASES,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(*(f"{count:7} {what}" for what, count in sorted(REACHED.items())), sep="\n")
    missing = RARE - REACHED.keys()
    print(f"never reached: {sorted(missing)}")
    assert len(missing) < len(RARE) / 3, missing


# Slow: 8,000 steps, each checked against the model by three stores.
def test_whatever_happens_in_whatever_order_the_queue_is_as_the_model_says():
    run_machine(SEED, 200, 40)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_whatever_happens_for_long_the_queue_is_as_the_model_says(number):
    run_machine(SEED + 1 + number, 250, 80)
