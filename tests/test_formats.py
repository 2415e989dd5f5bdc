"""Each released format of the files: today's program opens a home that was saved then, and goes on with it.

`tests/data/FORMAT/` holds the three stores and the journal as they were on disk, with changes that the arrays do not
hold yet, and in expected.json what the queue is. It comes with the release that changes the format; it is never edited.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import queuectl

Call = Callable[..., Any]
SAVED = sorted((Path(__file__).parent / "data").iterdir())


@pytest.fixture(params=SAVED, ids=lambda path: path.name)
def expected(request: pytest.FixtureRequest, home: Path) -> list[dict[str, Any]]:
    """The saved home in the place of this test's; the jobs that it holds."""
    (home / ".queuectl").mkdir(mode=0o700)
    for name in ("config.json", "jobs.json", "dlq.json"):
        shutil.copy(request.param / name, home)
    shutil.copy(request.param / "journal.jsonl", home / ".queuectl")
    jobs: list[dict[str, Any]] = json.loads((request.param / "expected.json").read_text())
    return jobs


def test_a_saved_home_holds_what_it_held(run: Call, expected: list[dict[str, Any]]) -> None:
    assert json.loads(run("list", "--json").out) == expected
    assert {job["state"] for job in expected} == set(queuectl.STATES), "one in each state is saved"
    assert run("config", "get", "backoff-base").out == "7\n"


def test_a_saved_home_is_whole(run: Call, expected: list[dict[str, Any]]) -> None:
    assert run("doctor").out.startswith("All is well")


def test_a_saved_home_goes_on_where_it_stopped(run: Call, home: Path, expected: list[dict[str, Any]]) -> None:
    run("enqueue", "--id", "next", "true")
    jobs = json.loads((home / "jobs.json").read_text())
    dead = json.loads((home / "dlq.json").read_text())
    assert jobs[:-1] == [job for job in expected if job["state"] != "dead"]
    assert dead == [job for job in expected if job["state"] == "dead"]
    assert (jobs[-1]["id"], jobs[-1]["seq"]) == ("next", 1 + max(job["seq"] for job in expected))


def test_there_is_a_saved_home_of_the_present_format() -> None:
    assert f"format-{queuectl.FORMAT}" in [path.name for path in SAVED]
