"""Kind 1 of the fault tests: a fault at every file effect of every scenario, and the home is right after it.

    python -m pytest tests/faults/test_points.py -rP             about 1,500 points, counts printed
    python -m pytest tests/faults/test_points.py -rP -m slow     every point (tens of thousands)

The points run in a process of their own, which has no threads, because each is a forked child that dies by SIGKILL.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import PROGRAM

from tests.faults.scenarios import SCENARIOS

HERE = Path(__file__).resolve().parent


def walk(script: str, scenarios: Sequence[str], *more: str) -> None:
    """Run these scenarios' points there; print what was done, and fail with what is wrong."""
    chosen = [f"--scenario={name}" for name in scenarios]
    words = [sys.executable, str(HERE / script), f"--program={PROGRAM}", *chosen, *more]
    done = subprocess.run(words, capture_output=True, text=True)
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = []
    for report in reports:
        name, seed = report["scenario"], report["seed"]
        wrong += [f"{name}, seed {seed}: {text}" for text in report["problems"]]
        counts = ", ".join(f"{report[key]} {key}" for key in ("effects", "points", "doubles"))
        print(f"{name}: {counts}, seed {seed}")
    assert not wrong, "\n".join([f"{len(wrong)} problems:", *wrong[:20]])
    assert {report["scenario"] for report in reports} == set(scenarios), done.stderr


NAMES = [scenario.name for scenario in SCENARIOS]
# Several to a process: in the short form, starting the process took a third of the time.
GROUPS = [tuple(NAMES[at : at + 12]) for at in range(0, len(NAMES), 12)]
FOLDS = ("enqueue in a small queue", "bulk, large", "fold", "hand edit that moves jobs between the arrays")


@pytest.mark.parametrize("scenarios", GROUPS, ids=", ".join)
def test_a_fault_leaves_the_state_before_or_after(scenarios):
    walk("points.py", scenarios)


def test_a_fold_that_stops_at_any_effect_is_done_whole_or_not_at_all():
    walk("points.py", FOLDS, "--all", "--only", "killed before")


@pytest.mark.slow
@pytest.mark.parametrize("scenario", NAMES)
def test_every_fault_leaves_the_state_before_or_after(scenario):
    walk("points.py", [scenario], "--all")
