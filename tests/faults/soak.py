"""A soak: one worker under mixed work for an hour; what it holds must not grow.

    python tests/faults/soak.py                     the short form, two minutes
    python tests/faults/soak.py --seconds 3600      the full form; --program FILE, --seed TEXT

Rounds of work (jobs that print, fail, run out of time, are cancelled or leave a daemon; retries, settings, hand edits,
a second worker that is killed), each until all of it is over and purged. Then, idle: the worker's memory, descriptors,
threads and processor time, and the disk under `.queuectl/`. The first fifth warms up; of the rest the medians of the
first and the last third are compared. Prints one JSON object; exit 1 with any problem.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults.real import PROGRAM, Queue  # noqa: E402

SEED = os.environ.get("FAULTS_SEED", "soak")
STOCK = 300  # jobs that wait all the time, so that there is something to hold
IDLE_S = 3.0
LEAST_ROUNDS = 4
SETTLED_S = 2.5  # after this the worker has folded and synced what the work left
PATIENCE_S = 120.0


class Figures(NamedTuple):
    """What is held between two rounds of work."""

    memory_kib: float
    descriptors: float
    threads: float
    disk_kib: float
    files: float
    idle_percent: float  # of one core


# How much more the last third may hold than the first: a factor, and so much on top.
MAY_GROW = ((1.03, 512), (1, 0), (1, 0), (1, 32), (1, 8), (1.5, 1.0))


def until_over(queue: Queue) -> None:
    """Until nothing but the stock waits."""
    deadline = time.monotonic() + PATIENCE_S
    while (counts := queue.counts())["pending"] != STOCK or counts["processing"] or counts["failed"]:
        assert time.monotonic() < deadline, f"stuck: {counts}"
        time.sleep(0.2)


def work(queue: Queue, number: int, rng: random.Random) -> None:
    """One round of mixed work; returns when all of it is over and purged."""
    kinds = [
        {"command": "true"},
        {"command": "echo some output; echo and some more >&2"},
        {"command": "head -c 200000 /dev/zero"},
        {"command": "exit 3", "max_retries": 2},
        {"command": "sleep 20", "timeout": 0.2, "max_retries": 1},
        {"command": "setsid sleep 0.3 & exit 0"},
        {"command": "true", "delay": 0.5},
        {"command": "sleep 0.1", "tags": ["net"], "env": {"NUMBER": str(number)}},
    ]
    many = [json.dumps(rng.choice(kinds)) for _ in range(rng.randrange(20, 80))]
    queue.call("enqueue", "--file", "-", text="\n".join(many))
    queue.call("enqueue", "--unique=one", "true")
    queue.call("config", "set", "grace_period", rng.choice(["0.2", "0.3"]))
    slow = queue.call("enqueue", "--timeout", "0", rng.choice(["sleep 60", "trap '' TERM; sleep 60; sleep 60"])).strip()
    if number % 5 == 1:
        second = queue.worker(2)
        time.sleep(rng.uniform(0.3, 1))
        second.kill()
        second.wait()
    if number % 3 == 1:
        queue.call("pause")
        queue.call("resume")
    queue.call("list", "--limit", "5")
    queue.call("cancel", slow)
    until_over(queue)
    if number % 4 == 1:
        queue.call("dlq", "retry", "--all", codes=(0, 1))
        until_over(queue)
    queue.call("purge", "--state", "completed", "--state", "dead", "--yes")
    if number % 6 == 1:
        time.sleep(SETTLED_S)
        jobs = queue.home / "jobs.json"
        stock = json.loads(jobs.read_text())
        stock[0]["note"] = f"edited in round {number}"
        jobs.write_text(json.dumps(stock, indent=2))


def busy_s(pid: int) -> float:
    """The processor time of a process so far, to the nanosecond."""
    spent = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1e9


def figures(queue: Queue, pid: int) -> Figures:
    time.sleep(SETTLED_S)
    before, began = busy_s(pid), time.monotonic()
    time.sleep(IDLE_S)
    idle = (busy_s(pid) - before) / (time.monotonic() - began)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    files = [path.lstat() for path in (queue.home / ".queuectl").rglob("*") if not path.is_dir()]  # of 256 folders
    return Figures(
        memory_kib=int(status["VmRSS"].split()[0]),
        descriptors=len(os.listdir(f"/proc/{pid}/fd")),
        threads=int(status["Threads"]),
        disk_kib=sum(file.st_blocks for file in files) / 2,
        files=len(files),
        idle_percent=100 * idle,
    )


def grown(samples: list[Figures], report: dict[str, Any]) -> list[str]:
    """What has grown; each figure's course goes into the report."""
    kept = samples[len(samples) // 5 :]
    third = max(1, len(kept) // 3)
    problems = []
    for name, values, (factor, more) in zip(Figures._fields, zip(*kept, strict=True), MAY_GROW, strict=True):
        first, last = statistics.median(values[:third]), statistics.median(values[-third:])
        course = {"first": first, "last": last, "least": min(values), "most": max(values)}
        report[name] = {key: round(value, 4) for key, value in course.items()}
        if last > first * factor + more:
            problems.append(f"{name} has grown from {first:.6g} to {last:.6g}")
    return problems


def soak(program: Path, seconds: float, folder: Path, seed: str) -> dict[str, Any]:
    """Run it: the figures, and what has grown or went wrong."""
    queue, rng = Queue(program, folder), random.Random(seed)
    queue.call("config", "set", "backoff_base", "0.1")
    queue.call("enqueue", "--file", "-", "--delay", "30d", text="true\n" * STOCK)
    child = queue.worker(2)
    samples: list[Figures] = []
    ends = time.monotonic() + seconds
    try:
        while time.monotonic() < ends or len(samples) < LEAST_ROUNDS:
            work(queue, len(samples), rng)
            samples.append(figures(queue, child.pid))
            print(f"round {len(samples)}: {samples[-1]}", file=sys.stderr, flush=True)
            assert child.poll() is None, f"the worker ended: {queue.said.read_text()[-2000:]}"
        queue.call("worker", "stop")
        queue.call("doctor")
    finally:
        child.kill()
        child.wait()
    report: dict[str, Any] = {"seed": seed, "seconds": seconds, "rounds": len(samples)}
    report["lines said"] = queue.said.read_text(errors="replace").count("\n")
    report["problems"] = queue.faults_said() + grown(samples, report)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--program", type=Path, default=PROGRAM)
    parser.add_argument("--seed", default=SEED)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        report = soak(chosen.program, chosen.seconds, Path(folder), chosen.seed)
    print(json.dumps(report, indent=1))
    return bool(report["problems"])


if __name__ == "__main__":
    sys.exit(main())
