"""`--after`, `--after-any` and `limits` as a black box: who waits, who dies with whom, who comes back, who stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["worker_fixtures"]

Call = Callable[..., Any]
Jobs = Callable[[], dict[str, dict[str, Any]]]

ANY_A: dict[str, Any] = {"id": "a", "any": True}


def states(jobs: Jobs) -> dict[str, str]:
    return {id: job["state"] for id, job in jobs().items()}


@pytest.fixture
def family(enqueue: Call) -> None:
    """a; b after a; c after b; d after any end of a; e after b and c."""
    enqueue("a", "exit 7", "--max-retries", "1")
    enqueue("b", "true", "--after", "a")
    enqueue("c", "true", "--after", "b")
    enqueue("d", "true", "--after-any", "a")
    enqueue("e", "true", "--after", "b", "--after", "c")


# ---- what is stored


@pytest.mark.parametrize(
    "options, stored",
    [
        (["--after", "a"], ["a"]), (["--after", "b", "--after", "a"], ["b", "a"]), (["--after-any", "a"], [ANY_A]),
        (["--after", "b", "--after-any", "a"], ["b", ANY_A]), (["--after", "a", "--after", "a"], ["a"]),
        (["--after-any", "a", "--after", "a"], ["a"]), (["--after_any", "a"], [ANY_A]),
    ],
)  # fmt: skip
def test_the_options_are_stored_as_the_field_after(run, enqueue, jobs, options, stored):
    for name in "abc":
        enqueue(name, "true")
    enqueue("x", "true", *options)
    run("enqueue", *options, '{"id": "y", "command": "true", "after": ["c"]}')  # an option beats the field
    assert jobs()["x"]["after"] == jobs()["y"]["after"] == stored


# ---- --file and --stream


def test_a_line_of_a_file_can_name_earlier_lines_and_jobs_that_are_there(run, enqueue, jobs, tmp_path):
    enqueue("a", "true")
    lines = [{"id": "b", "command": "true", "after": ["a"]}, {"id": "c", "command": "true", "after": ["b", ANY_A]}]
    path = tmp_path / "jobs.txt"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert run("enqueue", "--file", str(path)).lines == ["b", "c"]
    assert {id: job.get("after") for id, job in jobs().items()} == {"a": None, "b": ["a"], "c": ["b", ANY_A]}
    assert run("show", "c").lines[-1].endswith("waiting for jobs b, a")


def test_with_a_file_the_option_holds_for_every_line_that_says_nothing_else(run, enqueue, jobs):
    enqueue("a", "true")
    enqueue("b", "true")
    lines = 'echo 1\n{"id": "x", "command": "echo 2", "after": ["b"]}\n{"id": "y", "command": "echo 3"}\n'
    made = run("enqueue", "--file", "-", "--after-any", "a", input=lines).lines
    assert [jobs()[id]["after"] for id in made] == [[ANY_A], ["b"], [ANY_A]]


def test_a_file_after_a_dead_job_is_dead_as_a_whole(run, enqueue, jobs, home):
    enqueue("a", "true")
    run("cancel", "a")
    lines = '{"id": "b", "command": "x", "after": ["a"]}\n{"id": "c", "command": "x", "after": ["b"]}\ntrue\n'
    made = run("enqueue", "--file", "-", input=lines).lines
    assert made[:2] == ["b", "c"]
    assert states(jobs) == {"a": "dead", "b": "dead", "c": "dead", made[2]: "pending"}
    assert [job["id"] for job in json.loads((home / "dlq.json").read_text())] == ["a", "b", "c"]
    assert run("status", "--json").json["jobs"] == {
        "pending": 1, "processing": 0, "completed": 0, "failed": 0, "dead": 3,
    }  # fmt: skip
    run("doctor")


def test_a_job_that_is_dead_from_the_start_does_not_hold_its_unique_key(run, enqueue, jobs):
    enqueue("a", "true")
    run("cancel", "a")
    lines = '{"id": "x", "command": "x", "unique": "k", "after": ["a"]}\n{"id": "y", "command": "x", "unique": "k"}\n'
    assert run("enqueue", "--file", "-", input=lines).lines == ["x", "y"]
    assert states(jobs) == {"a": "dead", "x": "dead", "y": "pending"}


def test_stream_takes_lines_after_earlier_ones_and_refuses_an_unknown_id(run, jobs):
    lines = (
        '{"id": "a", "command": "x"}\n{"command": "x", "after": ["z"]}\n{"id": "b", "command": "x", "after": ["a"]}\n'
    )
    answer = run("enqueue", "--stream", input=lines, code=1)
    assert answer.lines == ["a", "b"]
    assert "line 2" in answer.err and "'z'" in answer.err
    assert jobs()["b"]["after"] == ["a"]


def test_a_unique_job_that_is_there_is_found_before_its_parents_are_asked_for(run, enqueue):
    enqueue("x", "true", "--unique", "k")
    assert run("enqueue", "--unique", "k", "--after", "nobody", "true").lines == ["x"]


# ---- death


def test_who_needs_a_cancelled_job_dies_with_it(run, jobs, family):
    answer = run("cancel", "a")
    assert states(jobs) == {"a": "dead", "b": "dead", "c": "dead", "d": "pending", "e": "dead"}
    assert [jobs()[id]["reason"] for id in "abce"] == [
        "cancelled",
        "job a, which it comes after, is dead",
        "job b, which it comes after, is dead",
        "job b, which it comes after, is dead",
    ]
    assert answer.lines[0] == "Job a is cancelled." and answer.lines[1].startswith("Job b is dead")
    assert "cancelled_at" not in jobs()["b"]
    assert [line.split()[0] for line in run("dlq", "list").lines] == ["a", "b", "c", "e"]
    run("doctor")


def test_who_needs_a_job_that_dies_dies_in_the_report(run, jobs, family, drain):
    drain(code=1)
    assert states(jobs) == {"a": "dead", "b": "dead", "c": "dead", "d": "completed", "e": "dead"}
    assert jobs()["b"]["runs"] == 0


def test_a_job_after_a_dead_one_is_dead_at_once_and_no_error(run, jobs, family):
    run("cancel", "a")
    answer = run("enqueue", "--id", "x", "--after", "b", "true")
    assert answer.lines == ["x"] and "job b, which it comes after, is dead" in answer.err
    assert run("enqueue", "--id", "y", "--after-any", "b", "true").lines == ["y"]
    shown = run("enqueue", "--id", "z", "--after-any", "a", "--after", "x", "--json", "true").json
    assert (shown["state"], shown["reason"]) == ("dead", "job x, which it comes after, is dead")
    assert [states(jobs)[id] for id in "xyz"] == ["dead", "pending", "dead"]


# ---- revival


@pytest.mark.parametrize("command", [("dlq", "retry"), ("retry",)])
def test_who_died_for_that_reason_comes_back(run, jobs, family, command):
    run("cancel", "a")
    answer = run(*command, "a")
    assert set(states(jobs).values()) == {"pending"}
    assert "reason" not in jobs()["e"]
    assert [line.split()[1] for line in answer.lines] == ["a", "b", "c", "e"]


def test_who_died_for_another_reason_keeps_it_and_stays(run, jobs, family):
    run("cancel", "c", "a")
    reasons = ["cancelled", "job a, which it comes after, is dead", "cancelled", "job c, which it comes after, is dead"]
    assert [jobs()[id]["reason"] for id in "abce"] == reasons
    run("dlq", "retry", "a")
    assert states(jobs) == {"a": "pending", "b": "pending", "c": "dead", "d": "pending", "e": "dead"}
    run("dlq", "retry", "c")
    assert states(jobs)["e"] == "pending"


def test_a_job_that_needs_a_dead_one_is_not_revived_alone(run, jobs, family):
    run("cancel", "a")
    for command in (("dlq", "retry"), ("retry",)):
        answer = run(*command, "c", code=1)
        assert "queuectl dlq retry b" in answer.err
        assert states(jobs)["c"] == "dead"
    run("dlq", "retry", "b", "a")
    assert set(states(jobs).values()) == {"pending"}


def test_dlq_retry_all_leaves_those_who_need_a_cancelled_job(run, jobs, family):
    run("enqueue", "--id", "f", "--after-any", "c", "true")
    run("cancel", "a")
    run("dlq", "retry", "--all")
    assert states(jobs) == {"a": "dead", "b": "dead", "c": "dead", "d": "pending", "e": "dead", "f": "pending"}
    run("dlq", "retry", "--all", "--cancelled")
    assert set(states(jobs).values()) == {"pending"}


def test_a_job_whose_parent_was_purged_can_be_revived(run, jobs, family, drain):
    run("cancel", "a")
    run("dlq", "purge", "a", "--yes", code=1)  # d names it
    drain()
    run("dlq", "purge", "a", "--yes")
    run("dlq", "retry", "b")
    assert [states(jobs)[id] for id in "bce"] == ["pending"] * 3
    drain()
    assert set(states(jobs).values()) == {"completed"}


# ---- purge


def test_a_job_that_a_waiting_one_names_is_not_purged(run, jobs, family):
    run("enqueue", "--id", "other", "true")
    run("cancel", "a", "other")
    both = ("--state", "completed", "--state", "dead")
    said = run("purge", "--dry-run", *both)
    assert said.lines == ["4 jobs would be purged."] and "1 job kept" in said.err and ": a" in said.err
    answer = run("purge", "--yes", *both)
    assert answer.lines == ["4 jobs purged."]
    assert "1 job kept" in answer.err and answer.err.rstrip().endswith(": a")
    assert states(jobs) == {"a": "dead", "d": "pending"}
    refused = run("dlq", "purge", "a", "--yes", code=1)
    assert "'d'" in refused.err and "queuectl show d" in refused.err
    assert run("dlq", "purge", "--all", "--yes").lines == ["0 jobs purged."]
    run("cancel", "d")
    assert run("dlq", "purge", "--all", "--yes").lines == ["2 jobs purged."]


def test_a_completed_job_that_a_waiting_one_names_stays(run, jobs, enqueue, drain):
    enqueue("a", "true")
    drain()
    enqueue("b", "true", "--after", "a", "--delay", "1h")
    assert run("purge", "--yes").lines == ["0 jobs purged."]
    run("cancel", "b")
    assert run("purge", "--yes").lines == ["1 job purged."]
    run("enqueue", "--after", "a", "true", code=1)  # a purged id is unknown


# ---- why it waits


def test_show_names_the_jobs_that_are_waited_for(run, enqueue):
    for name in "abcde":
        enqueue(name, "true")
    enqueue("one", "true", "--after", "a")
    enqueue("five", "true", *[word for name in "abcde" for word in ("--after", name)])
    assert run("show", "one").lines[-1] == "now:           waiting for job a"
    assert run("show", "five").lines[-1].endswith("waiting for jobs a, b, c and 2 more")


def test_a_job_that_waits_for_another_is_not_due(run, enqueue):
    enqueue("a", "true", "--delay", "1h")
    enqueue("b", "true", "--after", "a")
    run("enqueue", "--file", "-", "--after", "b", input="true\ntrue\n")
    status = run("status", "--json", "--check").json
    assert status["oldest_pending_s"] is None and status["next_run_at"] is not None
    enqueue("c", "true", "--after", "a", "--at", "2020-01-01")
    run("status", "--check")
    run("cancel", "a")
    status = run("status", "--json").json
    assert (status["oldest_pending_s"], status["next_run_at"]) == (None, None)
    run("dlq", "retry", "a")
    run("status", "--check", code=1)


def test_a_parent_that_ends_makes_the_other_due(run, enqueue):
    enqueue("a", "true", "--delay", "1h")
    enqueue("b", "true", "--after-any", "a")
    run("status", "--check")
    run("cancel", "a")
    run("status", "--check", code=1)
    run("dlq", "retry", "a", "--at", "+1h")
    run("status", "--check")


# ---- hand edits


def edit(home: Path, *more: dict[str, Any], name: str = "jobs") -> None:
    path = home / f"{name}.json"
    path.write_text(json.dumps([*json.loads(path.read_text()), *more], indent=1))


def test_a_hand_written_after_is_taken_over(run, enqueue, jobs, home, drain):
    enqueue("a", "true")
    edit(home, {"id": "b", "command": "true", "after": [{"id": "a", "any": False}]})
    assert run("show", "b").lines[-1].endswith("waiting for job a")
    drain()
    assert states(jobs) == {"a": "completed", "b": "completed"}


def test_a_hand_written_job_after_a_dead_one_is_dead(run, enqueue, jobs, home):
    enqueue("a", "true")
    enqueue("z", "true", "--delay", "1h")
    run("cancel", "a")
    more = [{"id": "b", "command": "x", "after": ["a"]}, {"id": "c", "command": "x", "after": ["b", "z"]}]
    edit(home, *more, {"id": "d", "command": "x", "after": [ANY_A]})
    want = {"a": "dead", "z": "pending", "b": "dead", "c": "dead", "d": "pending"}
    assert states(jobs) == want  # read without the lock
    enqueue("e", "true")
    assert states(jobs) == {**want, "e": "pending"}
    run("dlq", "retry", "a")
    assert set(states(jobs).values()) == {"pending"}
    run("doctor")


def test_a_job_that_is_made_dead_by_hand_ends_who_needs_it(run, jobs, home, family):
    records = json.loads((home / "jobs.json").read_text())
    over = {"state": "dead", "finished_at": "2026-11-24T08:15:30.123Z"}
    (home / "jobs.json").write_text(json.dumps([{**record, **over} if record["id"] == "a" else record
                                                for record in records]))  # fmt: skip
    run("enqueue", "--id", "x", "true")
    assert states(jobs) == {"a": "dead", "b": "dead", "c": "dead", "d": "pending", "e": "dead", "x": "pending"}


def test_a_job_that_vanished_holds_up_nothing(run, jobs, home, family, drain):
    records = json.loads((home / "jobs.json").read_text())
    (home / "jobs.json").write_text(json.dumps([record for record in records if record["id"] != "a"]))
    assert run("show", "b").lines[-1].endswith("no worker is running; start one with: queuectl worker start")
    drain()
    assert states(jobs) == dict.fromkeys("bcde", "completed")


@pytest.mark.parametrize(
    "more",
    [
        [{"id": "x", "command": "x", "after": ["x"]}],
        [{"id": "x", "command": "x", "after": ["y"]}, {"id": "y", "command": "x"}],
        [{"id": "x", "command": "x", "after": ["y"]}, {"id": "y", "command": "x", "after": ["x"]}],
        [{"id": "x", "command": "x", "after": "a"}],
    ],
)
def test_a_hand_written_circle_is_refused(run, enqueue, home, more):
    enqueue("a", "true")
    edit(home, *more)
    before = (home / "jobs.json").read_bytes()
    answer = run("enqueue", "true", code=3)
    assert "'x'" in answer.err or "'after'" in answer.err
    assert (home / "jobs.json").read_bytes() == before


# ---- limits


def test_a_limit_of_none_at_all_is_said_by_show(run, enqueue, jobs, start, eventually):
    run("config", "set", "limits", "gpu=0, net=4")
    enqueue("a", "true", "--tag", "gpu", "--tag", "net")
    enqueue("b", "true", "--tag", "net")
    child = start("worker", "start", "--drain")
    eventually(lambda: states(jobs) == {"a": "pending", "b": "completed"})
    assert run("show", "a").lines[-1].endswith("the limit of tag gpu is used up")
    run("config", "unset", "limits")
    assert child.wait(30) == 0
    assert states(jobs)["a"] == "completed"
