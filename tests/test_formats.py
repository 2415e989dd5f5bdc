"""The format of the files: a home that was saved in it is opened and goes on; a home of another format is refused.

`tests/data/FORMAT/` holds the three stores and the journal as they were on disk, with changes that the arrays do not
hold yet, and in expected.json the jobs of the queue. It comes with the release that changes the format and is never
edited.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import queuectl

SAVED = sorted((Path(__file__).parent / "data").iterdir())


def open_saved(saved: Path, home: Path) -> list[dict[str, Any]]:
    """Put the saved home in the place of this test's; the jobs that it holds."""
    (home / ".queuectl").mkdir(mode=0o700)
    for name in ("config.json", "jobs.json", "dlq.json"):
        shutil.copy(saved / name, home)
    shutil.copy(saved / "journal.jsonl", home / ".queuectl")
    jobs: list[dict[str, Any]] = json.loads((saved / "expected.json").read_text())
    return jobs


@pytest.fixture(params=SAVED, ids=lambda path: path.name)
def expected(request: pytest.FixtureRequest, home: Path) -> list[dict[str, Any]]:
    return open_saved(request.param, home)


def test_a_saved_home_holds_what_it_held(run, expected):
    assert json.loads(run("list", "--json").out) == expected
    assert {job["state"] for job in expected} == set(queuectl.STATES), "one in each state is saved"
    assert run("config", "get", "backoff-base").out == "7\n"
    assert run("doctor").out.startswith("All is well")


def test_a_saved_home_goes_on_where_it_stopped(run, home, expected):
    run("enqueue", "--id", "next", "true")
    jobs = json.loads((home / "jobs.json").read_text())
    dead = json.loads((home / "dlq.json").read_text())
    assert jobs[:-1] == [job for job in expected if job["state"] != "dead"]
    assert dead == [job for job in expected if job["state"] == "dead"]
    assert (jobs[-1]["id"], jobs[-1]["seq"]) == ("next", 1 + max(job["seq"] for job in expected))


def test_there_is_a_saved_home_of_the_present_format():
    assert f"format-{queuectl.FORMAT}" in [path.name for path in SAVED]


@pytest.mark.parametrize(
    ("number", "said"),
    [(1, "has format 1; this .* remove that file"), (3, "has format 3; this queuectl knows 2")],
)
def test_a_home_of_another_format_is_refused_and_left_alone(run, home, number, said):
    open_saved(SAVED[-1], home)
    journal = home / ".queuectl" / "journal.jsonl"
    header, rest = journal.read_bytes().split(b"\n", 1)
    body = header[9:].replace(b'"format": 2', b'"format": %d' % number)
    journal.write_bytes(queuectl.journal_line(body) + rest)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    for command in (["list"], ["status"], ["enqueue", "x"], ["purge", "--yes"], ["worker", "start", "--drain"]):
        error = run(*command, code=3).err.replace("\n", " ")
        assert re.search(said, error), error
    run("doctor", "--fix", code=3)
    after = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert {path: data for path, data in after.items() if path.name != "lock"} == before
