"""Kind 5 of the fault tests: real limits, as an ordinary user. What is done is told in limits.py.

python -m pytest tests/faults/test_limits.py -rPs             a round of each, counts printed, and what was left out
python -m pytest tests/faults/test_limits.py -rPs -m slow     15 rounds of each
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.limits import NAMES

SCRIPT = Path(__file__).resolve().parent / "limits.py"


def meet(name: str, rounds: int) -> None:
    words = [sys.executable, str(SCRIPT), name, "--rounds", str(rounds)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    if "skipped" in report:
        pytest.skip(report["skipped"])
    print(done.stdout)
    assert report["problems"] == [] and done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_costs_no_attempt_and_loses_nothing(name):
    meet(name, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_limit_met_again_and_again_costs_no_attempt_and_loses_nothing(name):
    meet(name, 15)
