"""`dlq list`, `dlq show`, `dlq retry` and `dlq purge` as a black box."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drained_jobs import DEAD, FAILED, IN_ORDER, PENDING

pytest_plugins = ["drained_home"]

Call = Callable[..., Any]
Jobs = Callable[[], dict[str, dict[str, Any]]]

ENDED_BY_THEMSELVES = [name for name in DEAD if name != "gone"]


def dead(run: Call) -> list[str]:
    return list(run("list", "--state", "dead", "--ids").lines)


def in_file(home: Path, name: str) -> list[str]:
    return [job["id"] for job in json.loads((home / name).read_bytes())]


# ---- dlq list ----


def test_dlq_list_json_of_an_empty_dlq_is_an_empty_array(run: Call) -> None:
    run("enqueue", "true")
    assert run("dlq", "list", "--json").json == []


def test_dlq_list_of_an_empty_dlq_is_no_error(run: Call) -> None:
    run("dlq", "list", code=0)


def test_dlq_list_json_holds_the_dead_jobs_only(run: Call, drained: Path) -> None:
    assert sorted(job["id"] for job in run("dlq", "list", "--json").json) == sorted(DEAD)


def test_dlq_list_json_holds_whole_jobs(run: Call, jobs: Jobs, drained: Path) -> None:
    # reading: as with `show --json`, more keys may stand beside those of the record.
    records = jobs()
    for job in run("dlq", "list", "--json").json:
        record = records[job["id"]]
        assert {key: job.get(key) for key in record} == record


@pytest.mark.parametrize("name", DEAD)
def test_dlq_list_has_a_line_for_each_dead_job_with_its_id_first(run: Call, drained: Path, name: str) -> None:
    assert [line.split()[0] for line in run("dlq", "list").lines if line.split()[:1] == [name]] == [name]


@pytest.mark.parametrize("name", [*FAILED, *PENDING, "ok"])
def test_dlq_list_has_no_line_for_another_job(run: Call, drained: Path, name: str) -> None:
    assert name not in [line.split()[0] for line in run("dlq", "list").lines if line.strip()]


def test_dlq_list_shows_the_last_line_of_output(run: Call, drained: Path) -> None:
    (line,) = [line for line in run("dlq", "list").lines if line.startswith("boom")]
    assert "boom went off" in line and "first words" not in line


def test_dlq_list_shows_attempts_and_exit_code(run: Call, drained: Path) -> None:
    (line,) = [line for line in run("dlq", "list").lines if line.startswith("stubborn")]
    assert "1" in line.split() and "65" in line


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_dlq_list_stops_at_its_limit(run: Call, drained: Path, limit: int) -> None:
    assert len(run("dlq", "list", "--json", "--limit", str(limit)).json) == min(limit, len(DEAD))


@pytest.mark.parametrize("text, names", [("exit 6", ["stubborn"]), ("never", ["gone"]), ("no such text", [])])
def test_dlq_list_chooses_by_text(run: Call, drained: Path, text: str, names: list[str]) -> None:
    assert [job["id"] for job in run("dlq", "list", "--json", "--match", text).json] == names


# ---- dlq show ----


def test_dlq_show_names_the_job_and_its_end(run: Call, drained: Path) -> None:
    out = run("dlq", "show", "boom").out
    assert "boom" in out and "exit 3" in out


def test_dlq_show_says_that_a_job_was_cancelled(run: Call, drained: Path) -> None:
    assert "cancelled" in run("dlq", "show", "gone").out


@pytest.mark.parametrize("name", ["ok", "flaky", "waiting", "nosuch"])
def test_dlq_show_refuses_a_job_that_is_not_dead(run: Call, drained: Path, name: str) -> None:
    assert name in run("dlq", "show", name, code=1).err


# ---- dlq retry ----


@pytest.mark.parametrize("name", DEAD)
def test_dlq_retry_brings_a_job_back_with_attempts_at_zero(
    run: Call, jobs: Jobs, drained_copy: Path, name: str
) -> None:
    run("dlq", "retry", name)
    assert (jobs()[name]["state"], jobs()[name]["attempts"]) == ("pending", 0)


def test_dlq_retry_moves_the_job_from_one_file_to_the_other(run: Call, drained_copy: Path) -> None:
    run("dlq", "retry", "boom")
    assert "boom" in in_file(drained_copy, "jobs.json") and "boom" not in in_file(drained_copy, "dlq.json")


def test_dlq_retry_keeps_the_place_of_the_job(run: Call, drained_copy: Path) -> None:
    run("dlq", "retry", "boom")
    assert run("list", "--ids").lines == IN_ORDER


def test_dlq_retry_of_several_ids_brings_them_all_back(run: Call, drained_copy: Path) -> None:
    run("dlq", "retry", "boom", "gone")
    assert dead(run) == ["twice", "killed", "stubborn", "picky"]


@pytest.mark.parametrize("other", ["nosuch", "ok", "flaky", "waiting"])
def test_dlq_retry_of_several_ids_is_all_or_none(run: Call, drained_copy: Path, other: str) -> None:
    run("dlq", "retry", "boom", other, code=1)
    assert dead(run) == DEAD


@pytest.mark.parametrize("name", ["ok", "flaky", "waiting", "nosuch"])
def test_dlq_retry_refuses_a_job_that_is_not_dead(run: Call, drained: Path, name: str) -> None:
    assert name in run("dlq", "retry", name, code=1).err


def test_dlq_retry_of_all_leaves_cancelled_jobs_out(run: Call, drained_copy: Path) -> None:
    run("dlq", "retry", "--all")
    assert dead(run) == ["gone"]


def test_dlq_retry_of_all_that_match_leaves_the_others(run: Call, drained_copy: Path) -> None:
    run("dlq", "retry", "--all", "--match", "exit 6")
    assert dead(run) == [name for name in DEAD if name != "stubborn"]


def test_dlq_retry_of_all_leaves_cancelled_jobs_out_that_match(run: Call, drained_copy: Path) -> None:
    run("dlq", "retry", "--all", "--match", "echo")
    assert dead(run) == ["killed", "stubborn", "picky", "gone"]


def test_dlq_retry_of_all_takes_cancelled_jobs_too_where_it_is_told_so(run: Call, drained_copy: Path) -> None:
    run("dlq", "retry", "--all", "--cancelled")
    assert dead(run) == []


def test_dlq_retry_spreads_the_starts_over_a_time(run: Call, jobs: Jobs, drained_copy: Path) -> None:
    run("dlq", "retry", "--all", "--spread", "10h")
    starts = [jobs()[name].get("run_at", "") for name in ENDED_BY_THEMSELVES]
    assert len(set(starts)) == len(starts) and starts == sorted(starts)


def test_dlq_retry_changes_the_job_on_its_way_back(run: Call, jobs: Jobs, drained_copy: Path) -> None:
    changes = ["--command", "echo mended", "--timeout", "10m", "--max-retries", "7", "--priority", "2", "--env", "A=1"]
    run("dlq", "retry", "boom", *changes, "--at", "2099-01-01T00:00:00Z")
    named = ("command", "timeout", "max_retries", "priority", "env", "run_at")
    expected = ["echo mended", 600, 7, 2, {"A": "1"}, "2099-01-01T00:00:00.000Z"]
    assert [jobs()["boom"][name] for name in named] == expected


def test_dlq_retry_of_all_with_an_empty_dlq_is_no_error(run: Call) -> None:
    # reading: as with `purge`, nothing to do is not a failure.
    run("dlq", "retry", "--all", code=0)


@pytest.mark.parametrize("arguments", [[], ["--match", "exit"], ["boom", "--all"]])
def test_dlq_retry_wants_either_ids_or_all(run: Call, drained_copy: Path, arguments: list[str]) -> None:
    # reading: `ID... | --all [--match TEXT]` offers no fourth way.
    run("dlq", "retry", *arguments, code=2)
    assert dead(run) == DEAD


def test_a_revived_job_runs_again(run: Call, process: Call, jobs: Jobs, tmp_path: Path) -> None:
    run("enqueue", "--id", "a", "--max-retries", "1", f"test -e '{tmp_path}/mended'")
    process("worker", "start", "--drain", code=1)
    (tmp_path / "mended").touch()
    run("dlq", "retry", "a")
    process("worker", "start", "--drain", code=0)
    assert (jobs()["a"]["state"], jobs()["a"]["attempts"], jobs()["a"]["runs"]) == ("completed", 1, 2)


# ---- dlq purge ----


@pytest.mark.parametrize("command", ["purge", "clear", "delete"])
def test_dlq_purge_of_all_empties_the_dlq_only(run: Call, drained_copy: Path, command: str) -> None:
    run("dlq", command, "--all", "--yes")
    assert run("list", "--ids").lines == [name for name in IN_ORDER if name not in DEAD]


@pytest.mark.parametrize("command", ["purge", "clear", "delete"])
def test_dlq_purge_of_ids_removes_these_only(run: Call, drained_copy: Path, command: str) -> None:
    run("dlq", command, "boom", "gone", "--yes")
    assert run("list", "--ids").lines == [name for name in IN_ORDER if name not in ("boom", "gone")]


@pytest.mark.parametrize("age, left", [("1h", DEAD), ("0", [])])
def test_dlq_purge_of_all_that_are_older_keeps_the_younger(
    run: Call, drained_copy: Path, age: str, left: list[str]
) -> None:
    run("dlq", "purge", "--all", "--older-than", age, "--yes")
    assert dead(run) == left


def test_dlq_purge_removes_the_log(run: Call, drained_copy: Path) -> None:
    log = Path(run("logs", "boom", "--path").out.rstrip("\n"))
    assert log.exists()
    run("dlq", "purge", "boom", "--yes")
    assert not log.exists()


@pytest.mark.parametrize("other", ["nosuch", "ok", "flaky", "waiting"])
def test_dlq_purge_of_several_ids_is_all_or_none(run: Call, drained_copy: Path, other: str) -> None:
    run("dlq", "purge", "boom", other, "--yes", code=1)
    assert run("list", "--ids").lines == IN_ORDER


@pytest.mark.parametrize("arguments", [["--all"], ["boom"], ["--all", "--older-than", "0"]])
def test_dlq_purge_without_a_terminal_needs_yes(run: Call, drained_copy: Path, arguments: list[str]) -> None:
    # reading: as with `purge`, on every way to remove something.
    run("dlq", "purge", *arguments, code=2, input="y\n")
    assert dead(run) == DEAD


def test_dlq_purge_of_nothing_named_removes_nothing(run: Call, drained_copy: Path) -> None:
    # reading: what empties the DLQ must be asked for by --all.
    run("dlq", "purge", "--yes", code=2)
    assert dead(run) == DEAD


def test_dlq_purge_of_all_with_an_empty_dlq_is_no_error(run: Call) -> None:
    run("dlq", "purge", "--all", "--yes", code=0)
