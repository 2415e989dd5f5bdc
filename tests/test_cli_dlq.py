"""`dlq list`, `dlq show`, `dlq retry` and `dlq purge` as a black box."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drained_jobs import DEAD, IN_ORDER

pytest_plugins = ["drained_home"]

Call = Callable[..., Any]

ENDED_BY_THEMSELVES = [name for name in DEAD if name != "gone"]


def dead(run: Call) -> list[str]:
    return list(run("list", "--state", "dead", "--ids").lines)


def in_file(home: Path, name: str) -> list[str]:
    return [job["id"] for job in json.loads((home / name).read_bytes())]


# ---- dlq list ----


def test_an_empty_dlq_is_no_error(run):
    run("enqueue", "true")
    assert run("dlq", "list", "--json").json == []
    assert run("dlq", "list").out == ""
    assert run("dlq", "purge", "--all", "--yes").out == "0 jobs purged.\n"
    # reading: as with `purge`, nothing to do is not a failure.
    assert "No dead letter matches" in run("dlq", "retry", "--all").err


def test_dlq_list_holds_the_dead_jobs_only(run, jobs, drained):
    assert run("dlq", "list", "--json").json == [jobs()[name] for name in DEAD]
    assert [line.split()[0] for line in run("dlq", "list").lines] == DEAD


def test_a_line_of_dlq_list_has_attempts_outcome_and_the_last_line_of_output(run, drained):
    lines = {line.split()[0]: line for line in run("dlq", "list").lines}
    assert re.fullmatch(r"boom +1  exit code 3 +\S+ \w+ ago  boom went off", lines["boom"])
    assert re.search("  1  exit code 65 ", lines["stubborn"]) and "cancelled" in lines["gone"]


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_dlq_list_stops_at_its_limit(run, drained, limit):
    assert len(run("dlq", "list", "--json", "--limit", str(limit)).json) == min(limit, len(DEAD))


@pytest.mark.parametrize("text, names", [("exit 6", ["stubborn"]), ("never", ["gone"]), ("no such text", [])])
def test_dlq_list_chooses_by_text(run, drained, text, names):
    assert [job["id"] for job in run("dlq", "list", "--json", "--match", text).json] == names


# ---- dlq show ----


def test_dlq_show_names_the_job_and_its_end(run, drained):
    out = run("dlq", "show", "boom").out
    assert "boom" in out and "exit 3" in out
    assert "cancelled" in run("dlq", "show", "gone").out


# ---- dlq retry ----


def test_dlq_retry_brings_jobs_back_with_attempts_at_zero(run, jobs, drained_copy):
    run("dlq", "retry", "boom")
    assert "boom" in in_file(drained_copy, "jobs.json") and "boom" not in in_file(drained_copy, "dlq.json")
    run("dlq", "retry", *DEAD[1:])
    assert {(jobs()[name]["state"], jobs()[name]["attempts"]) for name in DEAD} == {("pending", 0)}
    assert run("list", "--ids").lines == IN_ORDER


@pytest.mark.parametrize(
    "options, left",
    [
        ([], ["gone"]),
        (["--match", "exit 6"], [name for name in DEAD if name != "stubborn"]),
        (["--match", "echo"], ["killed", "stubborn", "picky", "gone"]),
        (["--cancelled"], []),
    ],
)
def test_dlq_retry_of_all_leaves_cancelled_jobs_out_unless_it_is_told_otherwise(run, drained_copy, options, left):
    run("dlq", "retry", "--all", *options)
    assert dead(run) == left


def test_dlq_retry_spreads_the_starts_over_a_time(run, jobs, drained_copy):
    run("dlq", "retry", "--all", "--spread", "10h")
    starts = [jobs()[name].get("run_at", "") for name in ENDED_BY_THEMSELVES]
    assert len(set(starts)) == len(starts) and starts == sorted(starts)


def test_dlq_retry_changes_the_job_on_its_way_back(run, jobs, drained_copy):
    changes = ["--command", "echo mended", "--timeout", "10m", "--max-retries", "7", "--priority", "2", "--env", "A=1"]
    run("dlq", "retry", "boom", *changes, "--at", "2099-01-01T00:00:00Z")
    named = ("command", "timeout", "max_retries", "priority", "env", "run_at")
    expected = ["echo mended", 600, 7, 2, {"A": "1"}, "2099-01-01T00:00:00.000Z"]
    assert [jobs()["boom"][name] for name in named] == expected


# ---- dlq purge ----


@pytest.mark.parametrize("command", ["purge", "clear", "delete"])
def test_dlq_purge_of_all_empties_the_dlq_only(run, drained_copy, command):
    run("dlq", command, "--all", "--yes")
    assert run("list", "--ids").lines == [name for name in IN_ORDER if name not in DEAD]


def test_dlq_purge_of_ids_removes_these_only_and_their_logs(run, drained_copy):
    log = Path(run("logs", "boom", "--path").out.rstrip("\n"))
    assert log.exists()
    run("dlq", "purge", "boom", "gone", "--yes")
    assert not log.exists()
    assert run("list", "--ids").lines == [name for name in IN_ORDER if name not in ("boom", "gone")]


@pytest.mark.parametrize("age, left", [("1h", DEAD), ("0", [])])
def test_dlq_purge_of_all_that_are_older_keeps_the_younger(run, drained_copy, age, left):
    run("dlq", "purge", "--all", "--older-than", age, "--yes")
    assert dead(run) == left
