"""Kind 2 of the fault tests: what the disk may hold after a power loss, built from the recorded effects.

python -m pytest tests/faults/test_power_loss.py -rP             a sample of about 2,000 images, counts printed
python -m pytest tests/faults/test_power_loss.py -rP -m slow     every image, and every error before a power loss
"""

from __future__ import annotations

import pytest

from tests.faults.test_points import GROUPS, NAMES, walk

# test_what_is_accepted_is_synced_although_the_fold_loaded_and_failed and its neighbours
UNSYNCED = r"nothing unsynced after (ENOSPC|EIO) (at|from) effect"
KNOWN: dict[str, str] = {}  # scenario: the words of its known bug; test_found.py has each by itself


@pytest.mark.parametrize("scenarios", GROUPS, ids=", ".join)
def test_a_power_loss_leaves_what_was_told(scenarios):
    walk("power.py", scenarios, known=KNOWN)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", NAMES)
def test_every_power_loss_leaves_what_was_told(scenario):
    walk("power.py", [scenario], "--all", known=KNOWN)
