"""Kind 4 of the fault tests: the storm. What it does and how it judges is told in storm.py.

python -m pytest tests/faults/test_storm.py -rP             30 s, 40 kills, counts printed
python -m pytest tests/faults/test_storm.py -rP -m slow     15 minutes, 1,000 kills, 3,000 jobs
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults.real import PROGRAM, Note
from tests.faults.storm import Storm

SCRIPT = Path(__file__).resolve().parent / "storm.py"


def storm(*more: str) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), *more], capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_lost_stuck_doubled_or_overlapping_in_a_storm():
    storm("--seconds", "30", "--kills", "40")


@pytest.mark.slow
def test_nothing_is_lost_stuck_doubled_or_overlapping_in_a_long_storm():
    storm("--seconds", "900", "--kills", "1000", "--jobs", "3000")


@pytest.mark.parametrize("stops, complained", [(1, True), (2, False)], ids=["once", "twice"])
def test_a_job_that_ended_may_run_again_only_where_its_worker_was_told_twice_to_stop(stops, complained, tmp_path):
    this = Storm(PROGRAM, tmp_path, "any")
    sent: list[int] = []
    worker: Any = SimpleNamespace(pid=11, poll=lambda: None, send_signal=sent.append)
    this.rng = SimpleNamespace(choice=lambda them: them[0], random=lambda: 1.0)  # type: ignore[assignment]
    this.workers, this.kinds = [worker], {"a": "leaves"}
    for _ in range(stops):  # each act tells it once
        this.end()
    notes = [Note("start", 1, 11), Note("end", 1, 11), Note("start", 2, 12), Note("end", 2, 12)]
    this.judge_job("a", {"state": "completed", "runs": 2}, notes, parent_is_dead=False)
    assert sent == [signal.SIGTERM] * stops
    assert [problem.partition(":")[0] for problem in this.problems] == ["doubled"] * complained
