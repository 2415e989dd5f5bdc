"""Kind 1 of the fault tests: a fault at every file effect of every scenario, and the home is right after it.

    python -m pytest tests/faults/test_points.py -rP             a sample of about 1,500 points, counts printed
    python -m pytest tests/faults/test_points.py -rP -m slow     every point (tens of thousands)

The points run in a process of their own, which has no threads, because each is a forked child that dies by SIGKILL.
A bug that is known has a test of its own in test_found.py, and is let pass here by `KNOWN` until it is mended.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.scenarios import SCENARIOS

HERE = Path(__file__).resolve().parent
NOTHING = "$^"
KNOWN: dict[str, str] = {}  # scenario: the words of its known bug; test_found.py has each by itself


def walk(script: str, scenario: str, *more: str, known: str) -> None:
    """Run that scenario's points there; print what was done, and fail with what is wrong and not known."""
    words = [sys.executable, str(HERE / script), "--scenario", scenario, *more]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    new = [text for text in report["problems"] if not re.search(known, text)]
    print(
        f"{scenario}: {report['effects']} effects, {report['points']} points, {report['doubles']} second crashes, "
        f"seed {report['seed']}, {len(report['problems']) - len(new)} of a known bug"
    )
    assert not new, "\n".join([f"{len(new)} problems, seed {report['seed']}:", *new[:20]])


NAMES = [scenario.name for scenario in SCENARIOS]


@pytest.mark.parametrize("scenario", NAMES)
def test_a_fault_leaves_the_state_before_or_after(scenario):
    walk("points.py", scenario, known=KNOWN.get(scenario, NOTHING))


@pytest.mark.slow
@pytest.mark.parametrize("scenario", NAMES)
def test_every_fault_leaves_the_state_before_or_after(scenario):
    walk("points.py", scenario, "--all", known=KNOWN.get(scenario, NOTHING))
