"""Kind 4 of the fault tests, the storm: workers, enqueues and cancels, killed, stopped and continued at random.

    python tests/faults/storm.py                                           the short form: 30 s, 40 kills
    python tests/faults/storm.py --seconds 900 --kills 1000 --jobs 3000    the full form; --seed TEXT, --program FILE

Three workers of three threads; jobs that fork, leave their session, clear their environment, ignore SIGTERM, fail, run
out of time, come after others, need cards, are held, or must be alone. It goes on until all three figures are reached.
Then everything is let go on, and what is over is compared with what the jobs themselves wrote down. Prints one JSON
object; exit 1 with any problem.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults.real import HANG_S, PROGRAM, Note, Queue  # noqa: E402
from tests.real_processes import processes_below  # noqa: E402

SEED = os.environ.get("FAULTS_SEED", "storm")
WORKERS, THREADS = 3, 3
BEAT_S = 0.12  # between two acts
WATCH_S = 2.0  # between two looks whether what is over lives
HOOK_S = 30.0  # as in queuectl.py
STUCK_S = 120.0  # so long without a change, once there are no more faults
RECOVERIES_MAX = 5  # a job whose workers died more often is rightly dead
KINDS = ("plain", "plain", "forks", "leaves", "leaves bare", "bare", "deaf", "prints", "fails", "late")
DIES = ("fails", "late")
CARDS = 4


class Storm:
    """The queue, what was done to it, and what was seen."""

    def __init__(self, program: Path, folder: Path, seed: str) -> None:
        self.queue, self.rng = Queue(program, folder), random.Random(seed)
        self.workers: list[subprocess.Popen[str]] = []
        self.told_to_stop: set[int] = set()  # workers that were sent SIGTERM
        self.hard: set[int] = set()  # workers that we killed, or told twice to stop: these hand their jobs back
        self.commands: list[tuple[float, str, subprocess.Popen[str]]] = []
        self.later: list[tuple[float, subprocess.Popen[str], int]] = []  # signals to be sent, and when
        self.kinds: dict[str, str] = {}
        self.parents: dict[str, str] = {}  # of jobs that come after another
        self.ids: list[str] = []  # printed
        self.cancels: set[str] = set()  # asked for, whatever came of it
        self.held: dict[str, int] = {}  # how often each job that is surely held has started
        self.born_held: set[str] = set()
        self.released: set[str] = set()  # asked for, whatever came of it
        self.figures: Counter[str] = Counter()
        self.problems: list[str] = []
        self.number = 0
        self.told = folder / "told"

    # -- acts

    def signal(self, child: subprocess.Popen[str], number: int) -> None:
        if child.poll() is None:
            child.send_signal(number)
            if number == signal.SIGTERM and child.pid in self.told_to_stop:
                self.hard.add(child.pid)
            elif number == signal.SIGTERM:
                self.told_to_stop.add(child.pid)
            self.figures["kills" if number == signal.SIGKILL else signal.Signals(number).name] += 1

    def begin(self, what: str, *words: str, text: str = "") -> None:
        """A command, left to itself; with some luck it is killed or stopped on its way."""
        child = self.queue.start(*words, stdin=subprocess.PIPE)
        assert child.stdin
        child.stdin.write(text)
        child.stdin.close()
        child.stdin = None
        now = time.monotonic()
        self.commands.append((now, what, child))
        luck = self.rng.random()
        if luck < 0.3:
            self.later.append((now + self.rng.uniform(0.02, 0.4), child, signal.SIGKILL))
        elif luck < 0.4:
            self.later.append((now + self.rng.uniform(0.05, 0.3), child, signal.SIGSTOP))
            self.later.append((now + self.rng.uniform(0.4, 1), child, signal.SIGCONT))

    def job(self) -> dict[str, Any]:
        self.number += 1
        id, kind = f"s{self.number}", self.rng.choice(KINDS)
        self.kinds[id] = kind
        seconds = 30.0 if kind == "late" else self.rng.choice([0, 0, 0.1, 0.3, 0.8])
        if kind in ("leaves", "leaves bare") and self.rng.random() < 0.3:
            seconds = 4.0  # it outlives the look for orphans, and must be found and ended
        more: dict[str, Any] = {"timeout": 0.6, "max_retries": 1} if kind == "late" else {"timeout": 0}
        if kind == "fails":
            more["max_retries"] = 2
        words = []
        if self.rng.random() < 0.15:
            more["tags"] = words = ["alone"]
        if self.rng.random() < 0.35:
            count = self.rng.choice([1, 1, 2])
            more["needs"] = {"card": count}
            words = [*words, f"cards={count}"]
        if self.rng.random() < 0.1:
            more["held"] = True
            self.born_held.add(id)
        if self.ids and self.rng.random() < 0.15:
            self.parents[id] = self.rng.choice(self.ids[-20:])
            more["after"] = [self.parents[id]]
            words = [*words, self.parents[id]]
        return {"id": id, "command": self.queue.command(kind, seconds, *words), **more}

    def enqueue(self) -> None:
        self.begin("enqueue", "enqueue", json.dumps(self.job()))

    def enqueue_many(self) -> None:
        lines = [json.dumps(self.job()) for _ in range(self.rng.randrange(4, 16))]
        self.begin("enqueue", "enqueue", "--file", "-", text="\n".join(lines))

    def cancel(self) -> None:
        if self.ids:
            id = self.rng.choice(self.ids[-30:])
            self.cancels.add(id)
            self.begin("cancel", "cancel", id)

    def edit(self) -> None:
        if self.ids:
            id, priority = self.rng.choice(self.ids[-30:]), self.rng.randrange(-2, 3)
            self.begin("edit", "edit", id, "--priority", str(priority), "--env", f"EDITED={priority}")

    def hold(self) -> None:
        if self.ids:
            self.begin("hold", "hold", self.rng.choice(self.ids[-8:]))

    def release(self) -> None:
        if self.held:
            id = self.rng.choice(list(self.held))
            self.judge_held(id, self.held.pop(id))
            self.released.add(id)
            self.begin("release", "release", id)

    def kill(self) -> None:
        child = self.rng.choice(self.workers)
        self.hard.add(child.pid)
        self.signal(child, signal.SIGKILL)
        if self.rng.random() < 0.15:
            child.wait()
            for path in (self.queue.home / ".queuectl" / "workers").glob(f"{child.pid}-*"):
                path.unlink(missing_ok=True)  # F5: also if the worker's file is missing

    def stop(self) -> None:
        """Stopped for a while; then it goes on, or is killed as it stands."""
        child, now = self.rng.choice(self.workers), time.monotonic()
        self.signal(child, signal.SIGSTOP)
        if self.rng.random() < 0.5:
            self.later.append((now + self.rng.uniform(0.1, 2.5), child, signal.SIGCONT))
        else:
            self.hard.add(child.pid)
            self.later.append((now + self.rng.uniform(0.1, 1), child, signal.SIGKILL))

    def end(self) -> None:
        child, now = self.rng.choice(self.workers), time.monotonic()
        self.signal(child, signal.SIGTERM)
        if self.rng.random() < 0.5:
            self.later.append((now + self.rng.uniform(0, 0.5), child, signal.SIGTERM))

    # -- what goes on meanwhile

    def keep_up(self) -> None:
        """Signals that are due, workers that are gone, commands that are done."""
        now = time.monotonic()
        due = [one for one in self.later if one[0] <= now]
        self.later = [one for one in self.later if one[0] > now]
        for _, child, number in due:
            self.signal(child, number)
        self.workers = [child for child in self.workers if child.poll() is None]
        while len(self.workers) < WORKERS:
            self.workers.append(self.queue.worker(THREADS))
            self.figures["workers started"] += 1
        self.commands = [one for one in self.commands if not self.is_done(*one)]

    def is_done(self, began: float, what: str, child: subprocess.Popen[str]) -> bool:
        if child.poll() is None:
            if time.monotonic() - began < HANG_S:
                return False
            self.problems.append(f"hang: {what} took more than {HANG_S:g} s")
            child.kill()
        out, err = child.communicate()
        if what == "enqueue":
            printed = [line.rstrip("\n") for line in out.splitlines(keepends=True) if line.endswith("\n")]
            self.ids += printed
            self.note_held([id for id in printed if id in self.born_held])
        if "Traceback" in err:
            self.problems.append(f"traceback: {what}: {err}")
        if what == "hold" and child.returncode == 0:
            self.note_held(list(child.args)[-1:])  # type: ignore[arg-type]
        allowed = (0, -9) if what == "enqueue" else (0, 1, -9)
        if child.returncode not in allowed:
            self.problems.append(f"{what}: exit {child.returncode}: {err}")
        self.figures[f"{what} commands"] += 1
        return True

    def note_held(self, ids: list[str]) -> None:
        for id in ids:
            if id not in self.released:
                self.held.setdefault(id, self.starts(id))

    def watch(self) -> None:
        """No job is over while something of it lives."""
        for id, job in self.queue.jobs().items():
            if job["state"] in ("completed", "dead") and self.queue.lives(id):
                self.problems.append(f"over though it lives: {id} ({self.kinds[id]}) is {job['state']}")
        self.figures["looks"] += 1

    def rage(self, seconds: float, kills: int, jobs: int, first: bool) -> None:
        acts = [self.enqueue] * 3 + [self.enqueue_many] * 2 + [self.cancel] * 2 + [self.edit]
        acts += [self.hold] * 2 + [self.release]
        acts += [self.kill] * 4 + [self.stop] * 2 + [self.end]
        began = watched = time.monotonic()
        while time.monotonic() < began + seconds or self.figures["kills"] < kills or len(self.ids) < jobs:
            self.keep_up()
            if len(self.commands) < 4:
                self.rng.choice(acts)()
            if time.monotonic() > watched + WATCH_S:
                self.watch()
                watched = time.monotonic()
            if (first and self.problems) or time.monotonic() > began + 3 * seconds + 60:
                return
            time.sleep(BEAT_S)

    def settle(self) -> None:
        """No more faults: all of it comes to its end."""
        for _, child, number in self.later:
            self.signal(child, signal.SIGKILL if number == signal.SIGKILL else signal.SIGCONT)
        self.later = []
        moved, before = time.monotonic(), Counter[str]()
        while True:
            self.keep_up()
            counts = Counter(self.queue.counts())
            if counts != before:
                moved, before = time.monotonic(), counts
            if not self.commands:
                self.release_all()
            if not self.commands and not any(counts[state] for state in ("pending", "processing", "failed")):
                break
            if time.monotonic() > moved + STUCK_S:
                self.problems.append(f"stuck: {counts} for {STUCK_S:g} s without a fault")
                break
            time.sleep(0.3)
        self.watch()
        self.queue.call("worker", "stop", "--timeout", "60")

    def release_all(self) -> None:
        for id, starts in self.held.items():
            self.judge_held(id, starts)
        self.held = {}
        for id in [id for id, job in self.queue.jobs().items() if job.get("held")]:
            self.queue.call("release", id, codes=(0, 1))  # 1: it has just died with a job that it comes after

    # -- the verdict

    def starts(self, id: str) -> int:
        return sum(note.word == "start" for note in self.queue.notes(id))

    def judge_held(self, id: str, starts: int) -> None:
        self.figures["held jobs"] += 1
        if self.starts(id) != starts:
            self.problems.append(f"started while held: {id} ({self.kinds[id]}): {self.queue.notes(id)}")

    def judge(self) -> None:
        jobs = self.queue.jobs()
        self.figures.update(f"{job['state']} jobs" for job in jobs.values())
        self.figures["recoveries"] = sum(job.get("recoveries", 0) for job in jobs.values())
        self.figures["jobs"] = len(jobs)
        self.figures["printed ids"] = len(self.ids)
        self.problems += [f"lost: {id} was printed and is not there" for id in set(self.ids) - jobs.keys()]
        for id, job in jobs.items():
            parent = jobs.get(self.parents.get(id, ""))
            self.judge_job(id, job, self.queue.notes(id), parent is not None and parent["state"] == "dead")
        self.judge_hooks(jobs)
        self.problems += [f"traceback: {line}" for line in self.queue.faults_said()]
        self.problems += [f"left: something of {id}" for id in jobs if self.queue.lives(id)]
        deadline = time.monotonic() + HOOK_S + 60  # what watches over a hook outlives its killed worker by that
        while (left := processes_below(self.queue.folder)) and time.monotonic() < deadline:
            time.sleep(0.2)
        self.problems += [f"left: process {pid}" for pid in left]
        self.queue.call("doctor")

    def judge_job(self, id: str, job: dict[str, Any], notes: list[Note], parent_is_dead: bool) -> None:
        kind, tell = self.kinds[id], self.problems.append
        self.figures["runs"] += sum(note.word == "start" for note in notes)
        if any(note.word == "overlap" for note in notes):
            tell(f"overlapping: {id} ({kind}): {notes}")
        if any(note.word == "early" for note in notes):
            tell(f"early: {id} ({kind}) began before {self.parents[id]} was over: {notes}")
        if any(note.word in ("shared", "miscounted") for note in notes):
            tell(f"wrong cards: {id} ({kind}): {notes}")
        times = Counter(note[:2] for note in notes)
        if any(count > 1 for count in times.values()):
            tell(f"doubled: a run of {id} ({kind}) twice: {notes}")
        ends = {note.run: note.worker for note in notes if note.word == "end"}
        last = max((note.run for note in notes if note.word == "start"), default=0)
        for run, worker in ends.items():
            if run < last and worker not in self.hard and kind not in DIES:
                tell(f"doubled: run {run} of {id} ({kind}) ended under worker {worker}, unharmed, and it ran again")
        if job["state"] == "completed" and (job["runs"] not in ends or kind in DIES or parent_is_dead):
            tell(f"completed without its end: {id} ({kind}): {job}, {notes}")
        if job["state"] == "dead":
            rightly = (
                kind in DIES
                or parent_is_dead
                or (job["reason"] == "cancelled" and id in self.cancels)
                or job.get("recoveries", 0) > RECOVERIES_MAX
            )
            if not rightly:
                tell(f"dead wrongly: {id} ({kind}): {job}")
        if job["state"] not in ("completed", "dead"):
            tell(f"stuck: {id} ({kind}) is {job['state']}")

    def judge_hooks(self, jobs: dict[str, Any]) -> None:
        """`on_finish` was run at most once for a job, and only for one that is over, by its last run."""
        marks = self.told.read_text().splitlines() if self.told.exists() else []
        self.figures["hooks"] = len(marks)
        runs = [tuple(mark.split("/")[2:4]) for mark in marks]  # lock, worker, job, run, hook
        self.problems += [f"told twice: {run}" for run, count in Counter(runs).items() if count > 1]
        for id, run in runs:
            if jobs[id]["state"] not in ("completed", "dead") or jobs[id]["runs"] != int(run):
                self.problems.append(f"told too soon: run {run} of {jobs[id]}")

    def clear_away(self) -> None:
        for child in [*self.workers, *(child for _, _, child in self.commands)]:
            child.kill()
            child.communicate()
        for pid in processes_below(self.queue.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def storm(
    program: Path, folder: Path, seconds: float, kills: int, jobs: int, seed: str, first: bool = False
) -> dict[str, Any]:
    """Run it: the figures, and what was wrong."""
    this = Storm(program, folder, seed)
    this.queue.call("config", "set", "backoff_base", "0.2")
    this.queue.call("config", "set", "grace_period", "0.5")
    this.queue.call("config", "set", "lock_timeout", "30")
    this.queue.call("config", "set", "limits", f"alone=1,card={CARDS}")
    this.queue.call("config", "set", "on_finish", f'echo "$QUEUECTL_RUN" >> {this.told}')
    try:
        this.rage(seconds, kills, jobs, first)
        if not (first and this.problems):
            this.settle()
            this.judge()
    except AssertionError as error:
        this.problems.append(str(error))
    except subprocess.TimeoutExpired as error:
        this.problems.append(f"hang: {error}")
    finally:
        this.clear_away()
    return {"seed": seed, **this.figures, "problems": this.problems}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--program", type=Path, default=PROGRAM)
    parser.add_argument("--seed", default=SEED)
    parser.add_argument("--first", action="store_true", help="end at the first problem")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        report = storm(given.program, Path(folder), given.seconds, given.kills, given.jobs, given.seed, given.first)
    print(json.dumps(report, indent=1))
    return bool(report["problems"])


if __name__ == "__main__":
    sys.exit(main())
