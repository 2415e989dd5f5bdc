"""The soak: what a worker holds does not grow. What it does is told in soak.py.

python -m pytest tests/faults/test_soak.py -rP              some rounds, figures printed
python tests/faults/soak.py                                 two minutes
python -m pytest tests/faults/test_soak.py -rP -m slow      an hour
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent / "soak.py"


def soak(seconds: int) -> None:
    words = [sys.executable, str(SCRIPT), "--seconds", str(seconds)]
    done = subprocess.run(words, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_a_worker_holds_does_not_grow():
    soak(15)


@pytest.mark.slow
def test_what_a_worker_holds_does_not_grow_in_an_hour():
    soak(3600)
