"""Kind 5 of the fault tests: real limits, as an ordinary user. What is done is told in limits.py.

python -m pytest tests/faults/test_limits.py -rPs             a round of each, counts printed, and what was left out
python -m pytest tests/faults/test_limits.py -rPs -m slow     15 rounds of each
"""

from __future__ import annotations

import json

import pytest

from tests.faults.limits import NAMES, ON_A_TMPFS
from tests.faults.ordinary import ordinary


@pytest.fixture(scope="module")
def person():
    with ordinary() as somebody:
        if somebody is None:
            pytest.skip("no way to be an ordinary user here: needs setpriv, or a Python that others may start")
        yield somebody


def meet(person, name: str, rounds: int) -> None:
    mounts = name in ON_A_TMPFS
    if mounts and person.run("-c", "", own_mounts=True).returncode != 0:
        pytest.skip("needs `unshare -rUm`: this system lets nobody mount")
    script = person.folder / "tests" / "faults" / "limits.py"
    done = person.run(str(script), name, "--rounds", str(rounds), own_mounts=mounts, timeout=100 + 60 * rounds)
    print(done.stdout)
    assert done.stdout, done.stderr
    assert json.loads(done.stdout)["problems"] == [], done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_costs_no_attempt_and_loses_nothing(name, person):
    meet(person, name, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_limit_met_again_and_again_costs_no_attempt_and_loses_nothing(name, person):
    meet(person, name, 15)
