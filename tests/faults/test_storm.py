"""Kind 4 of the fault tests: the storm. What it does and how it judges is told in storm.py.

python -m pytest tests/faults/test_storm.py -rP             30 s, 40 kills, counts printed
python -m pytest tests/faults/test_storm.py -rP -m slow     15 minutes, 1,000 kills, 3,000 jobs
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
