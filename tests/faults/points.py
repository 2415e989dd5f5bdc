"""Every point: at each effect of each scenario each fault, in a process that truly dies; then the home is checked.

    python tests/faults/points.py                 a sample of about 1,300 points
    python tests/faults/points.py --all           all of them
    python tests/faults/points.py --scenario fold --all --seed 7

Prints one JSON object per scenario: how many points, the sample's seed, and what was wrong. Runs in a process of its
own without threads, because it forks.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from filelock import lock_descriptor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults.effects import HANG_S, SCRATCH, Ended, Fault, FaultyOs, all_faults, in_child, standing_in  # noqa: E402
from tests.faults.scenarios import NOW_S, SCENARIOS, Scenario, close_store, copy_home, open_store  # noqa: E402

PROGRAM = Path(__file__).resolve().parents[2] / "queuectl.py"
SAMPLE = 1_300  # points in all
DOUBLE = 6  # second crashes per scenario in the sample; with --all one for every third kill
SEED = 20261124
HAS_SAID_SO = ("may have been stored", "The change was made")  # F2: how an error says that the change may be there

State = dict[str, Any]


def load_program(path: Path) -> ModuleType:
    """queuectl from that file."""
    spec = importlib.util.spec_from_file_location("queuectl", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["queuectl"] = module
    spec.loader.exec_module(module)
    return module


class Report(NamedTuple):
    """What a walk through one scenario gave."""

    scenario: str
    seed: int
    effects: int
    points: int
    doubles: int
    problems: list[str]


def _hangs(number: int, frame: object) -> None:
    raise TimeoutError("it hangs")


signal.signal(signal.SIGALRM, _hangs)  # a forked child lets it end the process instead


class Walk:
    """One scenario: its starting home, its states from step to step, and the points at which it is disturbed."""

    def __init__(self, q: ModuleType, scenario: Scenario, folder: Path) -> None:
        self.q, self.scenario = q, scenario
        self.home, self.template = folder / "home", folder / "template"
        self.home.parent.mkdir(exist_ok=True)
        scenario.build(q, str(self.home))
        if self.home.exists():
            self.home.rename(self.template)
        self.marks = {name: _mark(self.template / name) for name in ("jobs.json", "dlq.json")}
        self.states: list[State] = []
        self.trace: list[str] = []
        self._dry_run()

    def _dry_run(self) -> None:
        """Count the effects, and see what the home holds before and after each change."""
        copy_home(self.template, self.home)
        self.states = [self.look()]

        def work(say: Callable[[bytes], None]) -> None:
            with self._limits(), standing_in(self.q, FaultyOs(lock_descriptor)) as effects:
                for _ in self._steps():
                    with standing_in(self.q, FaultyOs(lock_descriptor)):
                        say(json.dumps(self.look()).encode() + b"\n")
            say(json.dumps(effects.trace).encode() + b"\n")

        said = self._child(work).said.splitlines()
        assert len(said) >= 2, f"'{self.scenario.name}' does not work undisturbed: {said!r}"
        self.states += [json.loads(line) for line in said[:-1]]
        self.trace = json.loads(said[-1])
        assert self.look() == self.states[-1], "something after the last change changes the queue"
        assert not (problems := self.check(self.states)), problems

    def _child(
        self, work: Callable[[Callable[[bytes], None]], None], meanwhile: Callable[[int], None] = lambda pid: None
    ) -> Ended:
        def guarded(say: Callable[[bytes], None]) -> None:
            try:
                work(say)
            except self.q.StoreError as error:
                say(b"StoreError " + str(error).encode())
            except OSError as error:  # the command line makes exit 3 of it, and knows what it had been told before
                say(b"OSError " + str(error).encode())
            except BaseException as error:  # every other one is a finding
                say(f"FAULT {type(error).__name__}: {error}".encode())

        return in_child(guarded, meanwhile)

    @contextmanager
    def _limits(self) -> Iterator[None]:
        old = {name: getattr(self.q, name) for name, _ in self.scenario.limits}
        for name, value in self.scenario.limits:
            setattr(self.q, name, value)
        yield
        for name, value in old.items():
            setattr(self.q, name, value)

    def _steps(self) -> Iterator[None]:
        self.q.open_store = functools.partial(self.q.open_store, clock=lambda: NOW_S)  # type: ignore[attr-defined]
        store = open_store(self.q, self.home)
        if self.scenario.before:
            self._begin(store, self.scenario.before)
        yield from self.scenario.steps(self.q, store)

    def _begin(self, store: Any, before: Callable[[ModuleType, Any], Any]) -> None:
        with standing_in(self.q, FaultyOs(lock_descriptor)):
            self._kept = before(self.q, store)  # its lock lasts as long as this process
            close_store(store)

    def run(self, fault: Fault) -> Ended:
        """The scenario on a fresh copy, with that fault."""
        copy_home(self.template, self.home)

        def work(say: Callable[[bytes], None]) -> None:
            with self._limits(), standing_in(self.q, FaultyOs(lock_descriptor, fault)):
                for _ in self._steps():
                    say(b"accepted\n")

        return self._child(work)

    def reopen(self, fault: Fault) -> None:
        """Open the home again for a change, and die again."""

        def work(_: Callable[[bytes], None]) -> None:
            with standing_in(self.q, FaultyOs(lock_descriptor, fault)):
                store = open_store(self.q, self.home)
                store.follow()
                store.fold()

        self._child(work)

    def look(self) -> State:
        """What a reader without the lock sees: every record, how many were ever accepted, the settings."""
        store = open_store(self.q, self.home)
        try:
            store.read()
            jobs = {job.id: self.q.job_to_dict(job) for job in store.jobs()}
            running = {id for id, job in jobs.items() if job["state"] == "processing"}
            assert set(store.processing) == running, f"processing is {set(store.processing)}, not {running}"
            held = [
                (name, unit) for job in jobs.values() for name in job.get("units", ()) for unit in job["units"][name]
            ]
            assert len(held) == len(set(held)), f"a unit is held twice: {held}"
            settings = {**self.q.DEFAULTS, **store.home.settings()}
            return {"jobs": jobs, "n": store.n, "settings": settings}
        finally:
            close_store(store)

    def check(self, allowed: list[State]) -> list[str]:
        """What is wrong with the home (F1): one of the allowed states, the same for a reader, a repair and a fold."""
        q, problems = self.q, []
        signal.alarm(HANG_S)
        take_edits, taken = q.take_edits, []
        if not (self.scenario.is_edited or self._is_first_start()):

            def noted(store: Any, edited: list[str], locked: bool) -> None:
                taken.append(edited)
                take_edits(store, edited, locked)

            setattr(q, "take_edits", noted)  # noqa: B010 (a module's attribute that the type checker cannot see)
        try:
            with standing_in(q, FaultyOs(lock_descriptor)):
                first = self.look()
                if first not in allowed:
                    problems.append(f"a state that is neither before nor after: {_difference(first, allowed[0])}")
                store = open_store(q, self.home)
                store.follow()
                if (seen := self.look()) != first:
                    problems.append(f"a repair changes the state: {_difference(seen, first)}")
                problems += [f"after a repair: {text}" for text in self._examine()]
                store.fold()
                close_store(store)
                if (seen := self.look()) != first:
                    problems.append(f"a fold changes the state: {_difference(seen, first)}")
                problems += [f"after a fold: {text}" for text in self._examine()]
        except Exception as error:  # a home that cannot be opened is the finding
            problems.append(f"cannot be opened: {type(error).__name__}: {error}")
        finally:
            signal.alarm(0)
            setattr(q, "take_edits", take_edits)  # noqa: B010
        if taken:
            problems.append(f"a crash is taken for a hand edit of {taken[0]}")
        return problems

    def _is_first_start(self) -> bool:
        """Whether the home's first start has not come to its end: no journal, or one that knows no arrays."""
        journal = self.home / ".queuectl" / "journal.jsonl"
        return not journal.exists() or b'"jobs": [0, 0, 0, -1]' in journal.read_bytes().partition(b"\n")[0]

    def _examine(self) -> list[str]:
        store = open_store(self.q, self.home)
        try:
            return list(self.q.examine(store))
        finally:
            close_store(store)

    def judge(self, fault: Fault, ended: Ended) -> list[str]:
        """What is wrong after that fault: F1, F2, F8."""
        lines = ended.said.splitlines()
        accepted = sum(line == b"accepted" for line in lines)
        error = next((line.decode("utf-8", "replace") for line in lines if line != b"accepted"), None)
        now, after = self.states[accepted], self.states[min(accepted + 1, len(self.states) - 1)]
        problems = []
        if ended.signal not in (None, 9):
            problems.append(f"ended by signal {ended.signal}: it hung")
        if error is not None and not error.startswith(("StoreError", "OSError")):
            problems.append(error)
        over = accepted == len(self.states) - 1
        said_so = error is not None and any(words in error for words in HAS_SAID_SO)
        said_so = said_so or (over and error is not None and error.startswith("OSError"))
        if error is not None and over and not said_so and not self.scenario.is_worker:
            problems.append(f"failed after its change was stored, and does not say so: {error}")
        may_differ = ended.signal is not None or said_so
        if not may_differ and error is None and not over:
            problems.append("ended early without an error")
        return problems + self.check([now, after] if may_differ else [now])

    def points(self, chosen: list[Fault], doubles: set[int], dice: random.Random, first: bool = False) -> Report:
        """Walk through the chosen points; those with a number in `doubles` crash once more while reopening.

        With `first` it ends at the first problem.
        """
        problems, seconds = [], 0
        for number, fault in enumerate(chosen):
            ended = self.run(fault)
            allowed = self.states
            again = None
            if number in doubles:
                again = Fault(dice.randint(1, 60), dice.choice(("killed before", "killed after")))
                self.reopen(again)
                seconds += 1
            found = self.judge(fault, ended) if again is None else self.check(allowed)
            effect = self.trace[fault.at - 1]
            then = f", then {again}" if again else ""
            problems += [f"{fault} ({effect}){then}: {text}" for text in found]
            if first and problems:
                break
        for name, mark in self.marks.items():
            if _mark(self.template / name) != mark:
                problems.append(f"{name} was written in place (S3)")
        return Report(self.scenario.name, 0, len(self.trace), len(chosen), seconds, problems)


def _mark(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _difference(seen: State, wanted: State) -> str:
    """Where two states differ, in short."""
    out = [f"{key}: {seen[key]!r} for {wanted[key]!r}" for key in ("n", "settings") if seen[key] != wanted[key]]
    ids = {**seen["jobs"], **wanted["jobs"]}
    for id in ids:
        one, other = seen["jobs"].get(id), wanted["jobs"].get(id)
        if one != other:
            out.append(f"job {id}: {one and one['state']} for {other and other['state']}")
    return "; ".join(out)[:400] or "nothing"


class Given(NamedTuple):
    """One scenario to walk through: the program, where to do it, the dice and the command line."""

    q: ModuleType
    scenario: Scenario
    folder: Path
    dice: random.Random
    words: argparse.Namespace


def walk(given: Given) -> Report:
    """One scenario at all of its points, or at a sample."""
    this, dice, whole = Walk(given.q, given.scenario, given.folder), given.dice, given.words.all
    chosen = [fault for fault in all_faults(this.trace) if given.words.only in fault.what]
    if not whole and len(chosen) > SAMPLE // len(SCENARIOS):
        chosen = sorted(dice.sample(chosen, SAMPLE // len(SCENARIOS)))
    kills = [number for number, fault in enumerate(chosen) if "killed" in fault.what]
    doubles = set(kills[::3] if whole else dice.sample(kills, min(DOUBLE, len(kills))))
    return this.points(chosen, doubles, dice, given.words.first)


def run(description: str, walk: Callable[[Given], Report], **options: Any) -> int:
    """The command line of a suite that walks through the scenarios; `options` are those of its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--all", action="store_true", help="all of it, not a sample")
    parser.add_argument("--scenario", action="append", help="only this one (repeatable)")
    parser.add_argument("--first", action="store_true", help="end at the first problem")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the sample ({SEED})")
    parser.add_argument("--program", type=Path, default=PROGRAM, help="another queuectl.py")
    for name, more in options.items():
        parser.add_argument(f"--{name}", **more)
    words = parser.parse_args()
    os.umask(0o077)
    q, bad = load_program(words.program), 0
    for scenario in SCENARIOS:
        if not words.scenario or scenario.name in words.scenario:
            dice = random.Random(f"{words.seed} {scenario.name}")
            with tempfile.TemporaryDirectory("", "queuectl-faults-", SCRATCH, ignore_cleanup_errors=True) as folder:
                report = walk(Given(q, scenario, Path(folder), dice, words))
            print(json.dumps(report._replace(seed=words.seed)._asdict()), flush=True)
            bad += len(report.problems)
    return 1 if bad else 0


if __name__ == "__main__":
    only = {"default": "", "help": "only faults with this word: killed, short, ENOSPC ..."}
    sys.exit(run("Disturb queuectl at each of its file effects.", walk, only=only))
