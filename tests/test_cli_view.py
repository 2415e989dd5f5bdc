"""`list`, `show`, `status`, `logs`, `wait`, `worker list` as a black box: what a person and a script see."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PROGRAM
from drained_jobs import COMPLETED, DEAD, FAILED, IN_ORDER, PENDING

pytest_plugins = ["drained_home", "worker_fixtures"]

Call = Callable[..., Any]
Jobs = Callable[[], dict[str, dict[str, Any]]]

STATES = ["pending", "processing", "completed", "failed", "dead"]
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def three(run: Call) -> None:
    """Jobs a, b, c in this order; b is dead (cancelled)."""
    run("enqueue", "--id", "a", "--tag", "gpu", "backup /srv")
    run("enqueue", "--id", "b", "--tag", "net", "fetch news")
    run("enqueue", "--id", "c", "--tag", "gpu", "--tag", "net", "backup /home")
    run("cancel", "b")


def line_of(out: str, name: str) -> str:
    """The one line of a table that begins with this id."""
    (line,) = [line for line in out.split("\n") if line.split()[:1] == [name]]
    return line


def on_a_terminal(*args: str, **env: str) -> str:
    """All that a command shows on a terminal."""
    ours, theirs = pty.openpty()
    shown = b""
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), *args],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", **env},
    ) as child:
        os.close(theirs)
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:
            pass  # Linux answers the end of a terminal with EIO.
        os.close(ours)
        assert child.wait(20) == 0, shown
    return shown.decode()


# ---- list ----


def test_list_json_of_an_empty_queue_is_an_empty_array(run: Call) -> None:
    assert run("list", "--json").out.strip() == "[]"


def test_list_ids_of_an_empty_queue_prints_nothing(run: Call) -> None:
    assert run("list", "--ids").out == ""


def test_list_of_an_empty_queue_is_no_error(run: Call) -> None:
    run("list", code=0)


def test_list_holds_dead_jobs_too_in_order_of_arrival(run: Call, three: None) -> None:
    assert run("list", "--ids").out == "a\nb\nc\n"


def test_list_json_prints_whole_jobs(run: Call, three: None) -> None:
    required = {
        "id",
        "state",
        "seq",
        "command",
        "attempts",
        "runs",
        "max_retries",
        "priority",
        "created_at",
        "updated_at",
    }
    assert all(required <= set(job) for job in run("list", "--json").json)


def test_list_has_one_line_a_job_with_its_id_first(run: Call, three: None) -> None:
    out = run("list").out
    assert [line_of(out, name).split()[0] for name in ["a", "b", "c"]] == ["a", "b", "c"]


@pytest.mark.parametrize("name, state", [("a", "pending"), ("b", "dead")])
def test_list_shows_the_state_on_the_jobs_line(run: Call, three: None, name: str, state: str) -> None:
    assert state in line_of(run("list").out, name)


@pytest.mark.parametrize(
    "arguments, names",
    [
        (["--state", "pending"], ["a", "c"]),
        (["--state", "dead"], ["b"]),
        (["--state", "DEAD"], ["b"]),
        (["--state", "Pending"], ["a", "c"]),
        (["--state", "processing"], []),
        (["--state", "pending", "--state", "dead"], ["a", "b", "c"]),
        (["--tag", "gpu"], ["a", "c"]),
        (["--tag", "net"], ["b", "c"]),
        (["--tag", "ne"], []),
        (["--match", "backup"], ["a", "c"]),
        (["--match", "/home"], ["c"]),
        (["--match", "nothing like it"], []),
        (["--match", "backup", "--tag", "net"], ["c"]),
        (["--state", "pending", "--tag", "net"], ["c"]),
        (["--limit", "2"], ["a", "b"]),
        (["--limit", "100"], ["a", "b", "c"]),
        (["--reverse"], ["c", "b", "a"]),
        # reading: --reverse turns the order round, then --limit takes the first of it: the newest job.
        (["--reverse", "--limit", "1"], ["c"]),
        # reading: --limit counts the jobs that are shown, not those that are looked at.
        (["--state", "dead", "--limit", "1"], ["b"]),
    ],
)
@pytest.mark.parametrize("form", ["--ids", "--json"])
def test_list_chooses_jobs(run: Call, three: None, arguments: list[str], names: list[str], form: str) -> None:
    result = run("list", *arguments, form)
    assert (result.lines if form == "--ids" else [job["id"] for job in result.json]) == names


def test_list_json_of_no_match_is_an_empty_array(run: Call, three: None) -> None:
    assert run("list", "--state", "completed", "--json").json == []


@pytest.mark.parametrize(
    "state, names",
    [("completed", COMPLETED), ("dead", DEAD), ("failed", FAILED), ("pending", PENDING), ("processing", [])],
)
def test_list_by_state_after_a_worker(run: Call, drained: Path, state: str, names: list[str]) -> None:
    assert run("list", "--state", state, "--ids").lines == names


def test_list_keeps_the_order_of_arrival_after_a_worker(run: Call, drained: Path) -> None:
    assert run("list", "--ids").lines == IN_ORDER


def test_a_line_in_a_pipe_is_never_cut(run: Call) -> None:
    # reading: the table of `list` shows the command, and in a pipe all of it.
    command = "echo " + "x" * 5000
    run("enqueue", "--id", "a", command)
    assert command in line_of(run("list").out, "a")


@pytest.mark.parametrize("command", ["list", "status", "show"])
def test_control_characters_never_reach_a_person(run: Call, command: str) -> None:
    run("enqueue", "--id", "a", "--command=echo \x1b[2J\x1b]0;title\x07 \x9b31m \r \x08 end")
    out = run(*([command, "a"] if command == "show" else [command])).out
    assert not CONTROL.search(out)


def test_a_command_of_several_lines_is_one_line_of_the_table(run: Call) -> None:
    run("enqueue", "--id", "a", "--command=echo one\necho two\u2028echo three\u0085end")
    run("enqueue", "--id", "b", "true")
    out = run("list").out
    assert [line.split()[0] for line in out.splitlines() if "echo" in line] == ["a"]


def test_list_json_keeps_control_characters_of_the_command(run: Call) -> None:
    run("enqueue", "--id", "a", "--command=echo \x1b[2J\r")
    assert run("list", "--json").json[0]["command"] == "echo \x1b[2J\r"


# ---- colour ----


@pytest.mark.parametrize("command", ["list", "status"])
def test_there_is_no_colour_in_a_pipe(process: Call, three: None, command: str) -> None:
    assert "\x1b" not in process(command).out


def test_force_color_gives_colour_in_a_pipe(process: Call, three: None) -> None:
    # reading: states are coloured in `list`.
    assert COLOUR.search(process("list", env={"FORCE_COLOR": "1"}).out)


def test_force_color_does_not_touch_json(process: Call, three: None) -> None:
    assert "\x1b" not in process("list", "--json", env={"FORCE_COLOR": "1"}).out


def test_force_color_does_not_touch_ids(process: Call, three: None) -> None:
    assert process("list", "--ids", env={"FORCE_COLOR": "1"}).out == "a\nb\nc\n"


def test_there_is_colour_on_a_terminal(three: None) -> None:
    # reading: states are coloured in `list`.
    assert COLOUR.search(on_a_terminal("list"))


@pytest.mark.parametrize("command", ["list", "status"])
def test_no_color_means_no_colour_on_a_terminal(three: None, command: str) -> None:
    assert not COLOUR.search(on_a_terminal(command, NO_COLOR="1"))


def test_the_state_is_coloured_and_not_an_id_that_sounds_like_one(process: Call, run: Call) -> None:
    run("enqueue", "--id", "pending-1", "true")
    assert re.match(r"pending-1 +\x1b\[36mpending +\x1b\[0m", process("list", env={"FORCE_COLOR": "1"}).out)


# ---- tables, bars ----


@pytest.mark.parametrize("arguments", [["list"], ["dlq", "list"]])
def test_columns_are_aligned_whatever_the_ids(run: Call, arguments: list[str]) -> None:
    for name in ("a", "an-id-of-thirty-characters-here"):
        run("enqueue", "--id", name, "command")
        run("cancel", name)
    first, second = run(*arguments).lines
    assert first.index("cancelled" if "dlq" in arguments else "dead") == second.index(
        "cancelled" if "dlq" in arguments else "dead"
    )


def test_on_a_terminal_no_line_is_wider_than_it_is_wide_characters_too(run: Call) -> None:
    run("enqueue", "--id", "a" * 128, "x" * 200)
    run("enqueue", "--id", "b", "\u65e5\u672c\u8a9e" * 60)
    lines = COLOUR.sub("", on_a_terminal("list", COLUMNS="80")).splitlines()
    wide = [sum(2 if ord(char) > 0x3000 else 1 for char in line) for line in lines]
    assert len(lines) == 2 and all(70 < width <= 80 for width in wide), wide


BAR = re.compile(r"\[[#-]{10,}\] +\d+%")


@pytest.mark.parametrize(
    "arguments", [["enqueue", "--file", "FILE"], ["wait", "--all"], ["worker", "start", "--drain"], ["purge", "--yes"]]
)
def test_a_progress_bar_on_a_terminal_and_none_in_a_pipe(
    run: Call, process: Call, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "jobs.txt").write_text("true\n" * 5)
    words = [str(tmp_path / "jobs.txt") if word == "FILE" else word for word in arguments]
    for where in ("terminal", "pipe"):
        if arguments[0] == "purge":
            run("enqueue", "--id", "a", "true")
            run("cancel", "a")
        elif arguments[0] == "worker":
            run("enqueue", "true")
        if where == "terminal":
            assert BAR.search(on_a_terminal(*words))
        else:
            found = process(*words)
            assert not re.search(r"[\x1b\r%]|Adding|Waiting|Draining|Deleting", found.out + found.err)


def test_the_bar_of_a_drain_is_no_wider_than_the_terminal(run: Call) -> None:
    run("enqueue", "true")
    run("enqueue", "true")
    lines = re.split(r"[\r\n]+", on_a_terminal("worker", "start", "--drain", COLUMNS="40"))
    bars = [line for line in lines if line.startswith("Draining")]
    assert bars and all(len(line) < 40 for line in bars), bars


# ---- show ----


def test_show_names_id_state_and_command(run: Call, three: None) -> None:
    out = run("show", "a").out
    assert all(word in out for word in ["a", "pending", "backup /srv"])


@pytest.mark.parametrize("name", ["ok", "boom", "flaky", "waiting", "gone"])
def test_show_json_holds_the_whole_job(run: Call, jobs: Jobs, drained: Path, name: str) -> None:
    # reading: "one job whole" is the record as `list --json` has it; more keys may stand beside.
    shown, record = run("show", name, "--json").json, jobs()[name]
    assert {key: shown.get(key) for key in record} == record


def test_show_of_several_ids_shows_all(run: Call, three: None) -> None:
    out = run("show", "a", "c").out
    assert "backup /srv" in out and "backup /home" in out


def test_show_of_several_ids_of_which_one_is_unknown_shows_none(run: Call, three: None) -> None:
    assert run("show", "a", "nosuch", code=1).out == ""


def test_show_json_of_several_ids_is_one_array(run: Call, three: None) -> None:
    # reading: exactly one JSON value, so several jobs are an array.
    assert [job["id"] for job in run("show", "a", "c", "--json").json] == ["a", "c"]


def test_show_says_that_the_queue_is_paused(run: Call, three: None) -> None:
    run("pause")
    assert "the queue is paused" in run("show", "a").out.lower()


def test_show_says_that_no_worker_is_running(run: Call, three: None) -> None:
    assert "no worker is running" in run("show", "a").out.lower()


def test_show_says_that_a_failed_job_waits_for_its_retry(run: Call, drained: Path) -> None:
    assert re.search(r"waiting .* for its retry", run("show", "flaky").out.lower())


def test_show_says_why_a_job_was_cancelled(run: Call, three: None) -> None:
    assert "cancelled" in run("show", "b").out


# ---- what a worker left, seen through list and show ----


@pytest.mark.parametrize(
    "name, expected",
    [
        ("ok", {"state": "completed", "attempts": 1, "runs": 1, "outcome": "exited", "exit_code": 0}),
        ("quiet", {"state": "completed", "attempts": 1, "runs": 1, "outcome": "exited", "exit_code": 0}),
        ("boom", {"state": "dead", "attempts": 1, "runs": 1, "outcome": "exited", "exit_code": 3}),
        ("twice", {"state": "dead", "attempts": 2, "runs": 2, "outcome": "exited", "exit_code": 4}),
        ("killed", {"state": "dead", "attempts": 1, "runs": 1, "outcome": "signalled", "signal": 9}),
        ("flaky", {"state": "failed", "attempts": 1, "runs": 1, "outcome": "exited", "exit_code": 5}),
        ("gone", {"state": "dead", "attempts": 0, "runs": 0, "reason": "cancelled"}),
    ],
)
def test_the_record_says_how_a_job_ended(jobs: Jobs, drained: Path, name: str, expected: dict[str, Any]) -> None:
    job = jobs()[name]
    assert {key: job.get(key) for key in expected} == expected


@pytest.mark.parametrize("name", [*COMPLETED, *DEAD, *FAILED, *PENDING])
def test_a_job_that_does_not_run_names_no_worker(jobs: Jobs, drained: Path, name: str) -> None:
    assert not {"worker", "slot"} & set(jobs()[name])


def test_the_times_of_a_completed_job_are_in_order(jobs: Jobs, drained: Path) -> None:
    job = jobs()["ok"]
    times = [job["created_at"], job["started_at"], job["finished_at"], job["updated_at"]]
    assert times == sorted(times)


def test_history_holds_each_attempt(jobs: Jobs, drained: Path) -> None:
    history = jobs()["twice"]["history"]
    assert [(past["run"], past["attempt"], past["outcome"], past["exit_code"]) for past in history] == [
        (1, 1, "exited", 4),
        (2, 2, "exited", 4),
    ]


def test_history_names_the_signal_of_an_attempt(jobs: Jobs, drained: Path) -> None:
    (past,) = jobs()["killed"]["history"]
    assert (past["outcome"], past["signal"], "exit_code" in past) == ("signalled", 9, False)


# ---- status ----


def test_status_json_of_an_empty_queue_counts_zero_in_all_five_states(run: Call) -> None:
    assert run("status", "--json").json["jobs"] == dict.fromkeys(STATES, 0)


def test_status_json_has_all_its_keys(run: Call) -> None:
    keys = {"jobs", "workers", "paused", "oldest_pending_s", "next_run_at", "config", "home"}
    assert keys <= set(run("status", "--json").json)


def test_status_json_counts_each_state(run: Call, drained: Path) -> None:
    assert run("status", "--json").json["jobs"] == {
        "pending": len(PENDING),
        "processing": 0,
        "completed": len(COMPLETED),
        "failed": len(FAILED),
        "dead": len(DEAD),
    }


def test_status_counts_each_state_for_a_person(run: Call, drained: Path) -> None:
    out = run("status").out.lower()
    counts = {"pending": 2, "processing": 0, "completed": 5, "failed": 1, "dead": 6}
    found = {
        state: re.search(rf"\b{state}\b[^\w\n]*{count}\b|\b{count} {state}\b", out) is not None
        for state, count in counts.items()
    }
    assert found == dict.fromkeys(counts, True)


def test_status_without_a_worker_has_the_line_workers_0(run: Call) -> None:
    assert "workers: 0" in [line.strip() for line in run("status").lines]


def test_status_json_without_a_worker_has_an_empty_list(run: Call) -> None:
    assert run("status", "--json").json["workers"] == []


@pytest.mark.parametrize("command, paused", [("pause", True), ("resume", False)])
def test_status_json_says_whether_the_queue_is_paused(run: Call, command: str, paused: bool) -> None:
    run(command)
    assert run("status", "--json").json["paused"] is paused


def test_status_says_that_the_queue_is_paused(run: Call) -> None:
    run("pause")
    assert "paused" in run("status").out.lower()


def test_status_json_has_no_oldest_job_and_no_next_retry_in_an_empty_queue(run: Call) -> None:
    # reading: the keys are always there; null is "none".
    status = run("status", "--json").json
    assert (status["oldest_pending_s"], status["next_run_at"]) == (None, None)


def test_status_json_gives_the_age_of_the_oldest_pending_job_in_seconds(run: Call) -> None:
    run("enqueue", "true")
    assert 0 <= run("status", "--json").json["oldest_pending_s"] < 60


def test_status_json_gives_the_next_start_time(run: Call) -> None:
    run("enqueue", "--at", "2099-01-02T00:00:00Z", "true")
    run("enqueue", "--at", "2099-01-01T00:00:00Z", "true")
    assert run("status", "--json").json["next_run_at"] == "2099-01-01T00:00:00.000Z"


def test_status_json_gives_the_time_of_the_next_retry(run: Call, jobs: Jobs, drained: Path) -> None:
    assert run("status", "--json").json["next_run_at"] == jobs()["flaky"]["run_at"]


def test_status_json_holds_the_settings_in_force(run: Call) -> None:
    run("config", "set", "max-retries", "5")
    assert run("status", "--json").json["config"] == run("config", "show", "--json").json


def test_status_json_names_the_home(run: Call, home: Path) -> None:
    assert Path(run("status", "--json").json["home"]).resolve() == home.resolve()


def test_status_check_of_an_empty_queue_is_0(run: Call) -> None:
    run("status", "--check", code=0)


def test_status_check_is_1_when_a_job_is_due_and_no_worker_lives(run: Call) -> None:
    run("enqueue", "true")
    run("status", "--check", code=1)


def test_status_check_is_0_when_no_job_is_due_yet(run: Call) -> None:
    run("enqueue", "--delay", "1h", "true")
    run("status", "--check", code=0)


def test_status_says_that_jobs_are_due_and_nobody_runs_them(run: Call) -> None:
    assert "no worker is running" not in run("status").out
    run("enqueue", "true")
    assert "no worker is running" in run("status").out


def test_status_check_still_prints_the_status(run: Call) -> None:
    run("enqueue", "true")
    assert run("status", "--check", "--json", code=1).json["jobs"]["pending"] == 1


# ---- logs ----


def test_logs_prints_what_the_job_wrote_to_stdout_and_stderr(run: Call, drained: Path) -> None:
    assert run("logs", "ok").out == "one\ntwo\nthree\n"


def test_logs_prints_bytes_as_they_were_written(process: Call, drained: Path) -> None:
    assert process("logs", "raw").out == "\ufffd\x1b[31mred\x1b[0m\n"


def test_logs_of_a_job_that_wrote_nothing_is_empty(run: Call, drained: Path) -> None:
    assert run("logs", "quiet").out == ""


def test_logs_prints_the_last_attempt(run: Call, drained: Path) -> None:
    # reading: without --attempt the newest run is what a person asks for.
    assert run("logs", "twice").out == "attempt 2\n"


@pytest.mark.parametrize("attempt", ["1", "2"])
def test_logs_prints_the_attempt_asked_for(run: Call, drained: Path, attempt: str) -> None:
    assert run("logs", "twice", "--attempt", attempt).out == f"attempt {attempt}\n"


@pytest.mark.parametrize(
    "count, out",
    [("1", "line 5\n"), ("2", "line 4\nline 5\n"), ("99", "".join(f"line {n}\n" for n in range(1, 6)))],
)
def test_logs_tail_prints_the_last_lines(run: Call, drained: Path, count: str, out: str) -> None:
    assert run("logs", "chatty", "--tail", count).out == out


def test_logs_follow_ends_at_once_where_the_job_is_over(run: Call, drained: Path) -> None:
    assert run("logs", "ok", "--follow").out == "one\ntwo\nthree\n"


def test_logs_path_prints_the_file_that_holds_the_output(run: Call, drained: Path) -> None:
    assert Path(run("logs", "raw", "--path").out.rstrip("\n")).read_bytes() == b"\xff\x1b[31mred\x1b[0m\n"


def test_logs_path_lies_in_the_home(run: Call, drained: Path) -> None:
    path = Path(run("logs", "ok", "--path").out.rstrip("\n"))
    assert path.resolve().is_relative_to((drained / ".queuectl" / "logs").resolve())


# ---- wait ----


@pytest.mark.parametrize(
    "name, code",
    [("ok", 0), ("quiet", 0), ("boom", 3), ("twice", 4), ("stubborn", 65), ("killed", 137), ("gone", 1)],
)
def test_wait_for_one_job_ends_with_its_exit_code(run: Call, drained: Path, name: str, code: int) -> None:
    assert run("wait", name, code=None).code == code


@pytest.mark.parametrize(
    "names, code",
    [(["ok", "quiet"], 0), (["ok", "boom"], 1), (["boom", "twice"], 1), (["gone", "ok"], 1)],
)
def test_wait_for_several_jobs_is_0_only_if_all_completed(
    run: Call, drained: Path, names: list[str], code: int
) -> None:
    assert run("wait", *names, code=None).code == code


@pytest.mark.parametrize("arguments", [["waiting"], ["flaky"], ["ok", "waiting"], ["--all"]])
def test_wait_that_runs_out_of_time_is_124(run: Call, drained: Path, arguments: list[str]) -> None:
    run("wait", *arguments, "--timeout", "0.1", code=124)


def test_wait_for_a_job_that_is_purged_meanwhile_is_1(run: Call, terminal: Call, eventually: Call) -> None:
    run("enqueue", "--id", "a", "true")
    shell = terminal("wait", "a")
    eventually(lambda: "Waiting" in shell.screen())
    shell.child.send_signal(signal.SIGSTOP)  # so that it never sees the job dead, only gone
    run("cancel", "a")
    run("dlq", "purge", "a", "--yes")
    shell.child.send_signal(signal.SIGCONT)
    eventually(shell.ended)
    assert shell.child.returncode == 1 and "Job a was purged" in shell.screen()


def test_wait_for_all_of_an_empty_queue_is_0(run: Call) -> None:
    run("wait", "--all", code=0)


def test_wait_for_all_leaves_out_what_was_over_before(run: Call) -> None:
    run("enqueue", "--id", "a", "true")
    run("cancel", "a")
    run("wait", "--all", code=0)


def test_wait_json_prints_one_value_that_names_each_job(run: Call, drained: Path) -> None:
    text = json.dumps(run("wait", "ok", "boom", "--json", code=1).json)
    assert '"ok"' in text and '"boom"' in text


def test_wait_ends_when_the_job_is_cancelled_meanwhile(run: Call, start: Call) -> None:
    run("enqueue", "--id", "a", "true")
    waiting = start("wait", "a")
    run("cancel", "a")
    assert waiting.wait(20) == 1


# ---- worker list and worker stop without a worker ----


def test_worker_list_without_a_worker_is_0(run: Call) -> None:
    run("worker", "list", code=0)


def test_worker_list_json_without_a_worker_is_an_empty_array(run: Call) -> None:
    assert run("worker", "list", "--json").json == []


@pytest.mark.parametrize("arguments", [[], ["--now"], ["--timeout", "5"]])
def test_worker_stop_without_a_worker_is_0(run: Call, arguments: list[str]) -> None:
    run("worker", "stop", *arguments, code=0)
