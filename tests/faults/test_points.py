"""Kind 1 of the fault tests: a fault at every file effect of every scenario, and the home is right after it.

    python -m pytest tests/faults/test_points.py -rP             a sample of about 1,500 points, counts printed
    python -m pytest tests/faults/test_points.py -rP -m slow     every point (tens of thousands)

The points run in a process of their own, which has no threads, because each is a forked child that dies by SIGKILL.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.scenarios import SCENARIOS

HERE = Path(__file__).resolve().parent


def walk(script: str, scenario: str, *more: str) -> None:
    """Run that scenario's points there; print what was done, and fail with what is wrong."""
    words = [sys.executable, str(HERE / script), "--scenario", scenario, *more]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    found = report["problems"]
    print(
        f"{scenario}: {report['effects']} effects, {report['points']} points, {report['doubles']} second crashes, "
        f"seed {report['seed']}"
    )
    assert not found, "\n".join([f"{len(found)} problems, seed {report['seed']}:", *found[:20]])


NAMES = [scenario.name for scenario in SCENARIOS]


@pytest.mark.parametrize("scenario", NAMES)
def test_a_fault_leaves_the_state_before_or_after(scenario):
    walk("points.py", scenario)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", NAMES)
def test_every_fault_leaves_the_state_before_or_after(scenario):
    walk("points.py", scenario, "--all")
