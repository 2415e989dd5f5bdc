"""`cancel`, `retry`, `pause`, `resume` and `purge` as a black box."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from drained_jobs import COMPLETED, DEAD, FAILED, IN_ORDER, PENDING

pytest_plugins = ["drained_home", "worker_fixtures"]

Call = Callable[..., Any]
Jobs = Callable[[], dict[str, dict[str, Any]]]


def enqueue(run: Call, *names: str) -> None:
    for name in names:
        run("enqueue", "--id", name, "true")


def states(jobs: Jobs, *names: str) -> list[str]:
    found = jobs()
    return [found[name]["state"] for name in names]


# ---- cancel ----


def test_cancel_makes_waiting_jobs_dead_for_the_reason_cancelled(run, jobs):
    enqueue(run, "a", "b")
    run("enqueue", "--id", "c", "--delay", "1h", "true")
    before = jobs()["b"]
    assert run("cancel", "a", "c").lines == ["Job a is cancelled.", "Job c is cancelled."]
    assert states(jobs, "a", "c") == ["dead", "dead"] and jobs()["b"] == before
    assert [jobs()[name]["reason"] for name in "ac"] == ["cancelled", "cancelled"]


def test_cancel_of_a_job_that_waits_for_its_retry_makes_it_dead(run, jobs, drained_copy):
    run("cancel", "flaky")
    assert (jobs()["flaky"]["state"], jobs()["flaky"]["reason"]) == ("dead", "cancelled")


# ---- retry ----


def test_retry_makes_a_failed_job_due_now_and_keeps_its_attempts(run, jobs, drained_copy):
    assert run("retry", "flaky").lines == ["Job flaky is due now."]
    due = jobs()["flaky"].get("run_at")
    assert due is None or datetime.fromisoformat(due) <= datetime.now(UTC)
    assert jobs()["flaky"]["attempts"] == 1


def test_retry_revives_dead_jobs_in_their_old_places(run, jobs, drained_copy):
    names = ["boom", "twice", "gone"]
    assert run("retry", *names).lines == [f"Job {name} is pending again." for name in names]
    revived = [jobs()[name] for name in names]
    assert [(job["state"], job["attempts"], job["runs"]) for job in revived] == [
        ("pending", 0, 1), ("pending", 0, 2), ("pending", 0, 0),
    ]  # fmt: skip
    # reading: whoever revives a job wants it to run, also if it was cancelled during its delay.
    assert not {"finished_at", "cancelled_at", "reason", "run_at"} & {name for job in revived for name in job}
    assert run("list", "--ids").lines == IN_ORDER and states(jobs, "killed") == ["dead"]


# ---- rerun ----


@pytest.mark.parametrize("name", IN_ORDER)
def test_rerun_adds_a_job_like_that_one_whatever_its_state(run, jobs, drained_copy, name):
    before = jobs()
    (new,) = run("rerun", name).lines
    added = jobs().pop(new)
    kept = ("command", "max_retries", "priority", "timeout", "cwd", "env", "tags", "unique", "no_retry_on")
    assert {key: added.get(key) for key in kept} == {key: before[name].get(key) for key in kept}
    assert (added["state"], added["attempts"], added["runs"], added.get("run_at")) == ("pending", 0, 0, None)


def test_reruns_come_last_in_the_order_they_were_named(run, jobs, drained_copy):
    before = jobs()
    new = run("rerun", "twice", "ok").lines
    after = jobs()
    assert list(after) == [*IN_ORDER, *new] and {**after, **before} == after
    assert [after[id]["command"] for id in new] == [before[id]["command"] for id in ("twice", "ok")]


def test_a_rerun_holds_the_unique_key_of_its_job(run, drained_copy):
    # reading: "a new job like that one"; so what cron enqueues does not run beside it.
    (new,) = run("rerun", "once").lines
    assert run("enqueue", "--unique=nightly", "true").lines == [new]


def test_a_rerun_waits_for_what_is_not_over_of_that_which_its_job_comes_after(run, jobs, drained_copy):
    run("enqueue", "--id", "child", "--after-any", "boom", "--after", "ok", "--after", "waiting", "true")
    run("enqueue", "--id", "free", "--after", "ok", "--after-any", "boom", "true")
    child, free = run("rerun", "child", "free").lines
    assert jobs()[child]["after"] == ["waiting"] and "after" not in jobs()[free]


def test_a_rerun_does_not_wait_for_a_later_job_that_has_the_id_of_a_purged_parent(run, jobs):
    run("enqueue", "--id", "parent", "true")
    run("enqueue", "--id", "child", "--after", "parent", "true")
    run("cancel", "child")
    run("worker", "start", "--drain")
    run("purge", "--yes")
    run("enqueue", "--id", "parent", "true")
    (new,) = run("rerun", "child").lines
    assert "after" not in jobs()[new]


def test_a_rerun_keeps_the_fields_of_a_users_own(run, home, jobs):
    (home / "jobs.json").write_text('[{"id": "a", "command": "true", "owner": "me"}]')
    (new,) = run("rerun", "a").lines
    assert jobs()[new]["owner"] == "me"


# ---- edit ----


@pytest.mark.parametrize("name", [*PENDING, *FAILED])
def test_edit_changes_what_it_is_told(run, jobs, drained_copy, name, monkeypatch):
    monkeypatch.setenv("MINE", "from here")
    before = jobs()[name]
    run("edit", name, "--command", "echo new", "--timeout", "10m", "--max-retries", "7", "--priority", "4",
        "--at", "2098-01-01T00:00:00Z", "--env", "A=1", "--env", "MINE")  # fmt: skip
    after = jobs()[name]
    new = {"command": "echo new", "timeout": 600, "max_retries": 7, "priority": 4, "run_at": "2098-01-01T00:00:00.000Z"}
    assert after == {**before, **new, "env": {"A": "1", "MINE": "from here"}, "state": "pending",
                     "updated_at": after["updated_at"]}  # fmt: skip


def test_edit_adds_to_the_variables_that_a_job_has(run, jobs):
    run("enqueue", "--id", "a", "--env", "A=1", "--env", "B=2", "true")
    run("edit", "a", "--env", "B=3", "--env", "C=4")
    assert jobs()["a"]["env"] == {"A": "1", "B": "3", "C": "4"}


def test_edit_of_a_failed_job_puts_off_its_retry(run, jobs, drained_copy):
    before = jobs()["flaky"]
    assert run("edit", "flaky", "--at", "+30m").lines == ["Job flaky is changed: run_at."]
    after = jobs()["flaky"]
    assert (after["state"], after["attempts"]) == ("pending", before["attempts"]), "it waits for no retry any more"
    assert after["run_at"] > before["run_at"]


# ---- pause and resume ----


@pytest.mark.parametrize(
    "commands", ["pause", "pause pause", "resume pause", "resume", "pause resume", "resume resume"]
)
def test_pause_and_resume_are_remembered_and_leave_the_jobs_alone(run, jobs, commands):
    enqueue(run, "a")
    before = jobs()
    for command in commands.split():
        run(command)
    assert run("config", "get", "paused").out == ("true\n" if commands.endswith("pause") else "false\n")
    assert jobs() == before


# ---- purge ----


@pytest.mark.parametrize(
    "arguments, left",
    [
        (["--yes"], [*DEAD, *FAILED, *PENDING]),
        (["--state", "completed", "--yes"], [*DEAD, *FAILED, *PENDING]),
        (["--state", "dead", "--yes"], [*COMPLETED, *FAILED, *PENDING]),
        (["--state", "COMPLETED", "--yes"], [*DEAD, *FAILED, *PENDING]),
        (["--state", "completed", "--state", "dead", "--yes"], [*FAILED, *PENDING]),
        (["--older-than", "1h", "--yes"], IN_ORDER),
        (["--older_than", "1d", "--yes"], IN_ORDER),
        # reading: a dry run changes nothing, so it needs no --yes.
        (["--dry-run"], IN_ORDER),
    ],
)
def test_purge_removes_finished_jobs(run, drained_copy, arguments, left):
    run("purge", *arguments)
    assert sorted(run("list", "--ids").lines) == sorted(left)


def test_purge_removes_the_logs_of_its_jobs_and_no_others(run, drained_copy):
    log = Path(run("logs", "ok", "--path").out.rstrip("\n"))
    assert run("purge", "--dry-run", "--state", "completed").out == f"{len(COMPLETED)} jobs would be purged.\n"
    assert log.exists()
    assert run("purge", "--state", "completed", "--yes").out == f"{len(COMPLETED)} jobs purged.\n"
    assert not log.exists() and run("logs", "boom").out == "first words\nboom went off\n"


@pytest.mark.parametrize(
    "command, number, typed, code",
    [
        ("purge --state dead", len(DEAD), b"y\n", 0), ("purge", len(COMPLETED), b"\n", 1),
        ("purge", len(COMPLETED), b"\x04", 130), ("purge", len(COMPLETED), b"\x03", 130),
        ("dlq purge --all", len(DEAD), b"y\n", 0), ("dlq purge boom", 1, b"n\n", 1),
    ],
)  # fmt: skip
def test_on_a_terminal_purge_names_how_many_and_does_nothing_without_a_yes(
    run, terminal, eventually, drained_copy, command, number, typed, code
):
    shell = terminal(*command.split())
    eventually(lambda: shell.screen().endswith("[y/N]: "))
    assert re.search(rf"\b{number} ", shell.screen())
    shell.type(typed)
    with contextlib.suppress(AssertionError):
        eventually(shell.ended, 5)
    if not shell.ended():  # a ^C just between Python's prompt and its read ends only the next read
        shell.type(typed)
        eventually(shell.ended)
    assert shell.child.returncode == code, shell.screen()
    assert shell.screen().endswith("\n") and ("Nothing was changed." in shell.screen()) == (code == 1)
    left = set(run("list", "--ids").lines)
    assert ("boom" in left) == (code != 0) and (left == set(IN_ORDER)) == (code != 0)


def test_a_purged_job_is_unknown_and_its_id_free(run, drained_copy):
    run("purge", "--yes")
    run("show", "ok", code=1)
    assert run("enqueue", "--id", "ok", "true").out == "ok\n"
    assert run("purge", "--yes").out == "0 jobs purged.\n"
