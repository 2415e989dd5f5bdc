"""Kind 2 of the fault tests: what the disk may hold after a power loss, built from the recorded effects.

python -m pytest tests/faults/test_power_loss.py -rP             a sample of about 2,000 images, counts printed
python -m pytest tests/faults/test_power_loss.py -rP -m slow     every image, and every error before a power loss
"""

from __future__ import annotations

import pytest

from tests.faults.test_points import GROUPS, NAMES, walk


@pytest.mark.parametrize("scenarios", GROUPS, ids=", ".join)
def test_a_power_loss_leaves_what_was_told(scenarios):
    walk("power.py", scenarios)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", NAMES)
def test_every_power_loss_leaves_what_was_told(scenario):
    walk("power.py", [scenario], "--all")
