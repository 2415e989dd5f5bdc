"""`list`, `show`, `status`, `logs`, `wait`, `worker list` as a black box: what a person and a script see."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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


# ---- list ----


@pytest.mark.parametrize(
    "options, out", [(["--json"], "[]\n"), (["--ids"], ""), ([], ""), (["--match", "x", "--json"], "[]\n")]
)
def test_an_empty_list_is_no_error(run, options, out):
    assert run("list", *options).out == out


def test_list_holds_dead_jobs_too_in_order_of_arrival(run, three):
    assert run("list", "--ids").out == "a\nb\nc\n"
    assert [line.split()[:2] for line in run("list").lines] == [["a", "pending"], ["b", "dead"], ["c", "pending"]]


@pytest.mark.parametrize(
    "options, ids",
    [
        ("--state pending", "ac"), ("--state dead", "b"), ("--state DEAD", "b"), ("--state Pending", "ac"),
        ("--state processing", ""), ("--state pending --state dead", "abc"), ("--tag gpu", "ac"), ("--tag net", "bc"),
        ("--tag ne", ""), ("--match backup", "ac"), ("--match /home", "c"), ("--match nothing-like-it", ""),
        ("--match backup --tag net", "c"), ("--state pending --tag net", "c"), ("--limit 2", "ab"),
        ("--limit 100", "abc"), ("--reverse", "cba"),
        # reading: --reverse turns the order round, then --limit takes the first of it: the newest job.
        ("--reverse --limit 1", "c"),
        # reading: --limit counts the jobs that are shown, not those that are looked at.
        ("--state dead --limit 1", "b"),
    ],
)  # fmt: skip
def test_list_chooses_jobs(run, three, options, ids):
    assert run("list", *options.split(), "--ids").lines == list(ids)
    assert [job["id"] for job in run("list", *options.split(), "--json").json] == list(ids)


def test_list_after_a_worker(run, drained):
    assert run("list", "--ids").lines == IN_ORDER
    by_state = {"completed": COMPLETED, "dead": DEAD, "failed": FAILED, "pending": PENDING, "processing": []}
    assert {state: run("list", "--state", state, "--ids").lines for state in by_state} == by_state


def test_a_line_in_a_pipe_is_never_cut(run):
    # reading: the table of `list` shows the command, and in a pipe all of it.
    command = "echo " + "x" * 5000
    run("enqueue", "--id", "a", command)
    assert command in line_of(run("list").out, "a")


@pytest.mark.parametrize("command", ["list", "status", "show"])
def test_control_characters_never_reach_a_person(run, jobs, command):
    text = "echo \x1b[2J\x1b]0;title\x07 \x9b31m \r \x08 end"
    run("enqueue", "--id", "a", f"--command={text}")
    out = run(*([command, "a"] if command == "show" else [command])).out
    assert not CONTROL.search(out) and jobs()["a"]["command"] == text


def test_a_command_of_several_lines_is_one_line_of_the_table(run):
    run("enqueue", "--id", "a", "--command=echo one\necho two\u2028echo three\u0085end")
    run("enqueue", "--id", "b", "true")
    out = run("list").out
    assert [line.split()[0] for line in out.splitlines() if "echo" in line] == ["a"]


# ---- colour ----


@pytest.mark.parametrize("command", ["list", "status"])
def test_there_is_no_colour_in_a_pipe(process, three, command):
    assert "\x1b" not in process(command).out


def test_force_color_gives_colour_in_a_pipe_to_the_state_alone(process, run):
    run("enqueue", "--id", "pending-1", "true")
    forced = {"FORCE_COLOR": "1"}
    assert re.match(r"pending-1 +\x1b\[36mpending +\x1b\[0m", process("list", env=forced).out)
    assert "\x1b" not in process("list", "--json", env=forced).out + process("list", "--ids", env=forced).out


def test_there_is_colour_on_a_terminal(three, on_a_terminal):
    # reading: states are coloured in `list`.
    assert COLOUR.search(on_a_terminal("list"))


@pytest.mark.parametrize("command", ["list", "status"])
def test_no_color_means_no_colour_on_a_terminal(three, command, on_a_terminal):
    assert not COLOUR.search(on_a_terminal(command, NO_COLOR="1"))


# ---- tables, bars ----


@pytest.mark.parametrize("arguments", [["list"], ["dlq", "list"]])
def test_columns_are_aligned_whatever_the_ids(run, arguments):
    for name in ("a", "an-id-of-thirty-characters-here"):
        run("enqueue", "--id", name, "command")
        run("cancel", name)
    first, second = run(*arguments).lines
    assert first.index("cancelled" if "dlq" in arguments else "dead") == second.index(
        "cancelled" if "dlq" in arguments else "dead"
    )


def test_on_a_terminal_no_line_is_wider_than_it_is_wide_characters_too(run, on_a_terminal):
    run("enqueue", "--id", "a" * 128, "x" * 200)
    run("enqueue", "--id", "b", "\u65e5\u672c\u8a9e" * 60)
    _, *lines = COLOUR.sub("", on_a_terminal("list", COLUMNS="80")).splitlines()
    wide = [sum(2 if ord(char) > 0x3000 else 1 for char in line) for line in lines]
    assert len(lines) == 2 and all(70 < width <= 80 for width in wide), wide


BAR = re.compile(r"\[[#-]{10,}\] +\d+%")


def test_a_progress_bar_on_a_terminal_and_none_in_a_pipe(run, process, on_a_terminal):
    for name in ("a", "b"):
        run("enqueue", "--id", name, "true")
    process("worker", "start", "--drain")
    assert BAR.search(on_a_terminal("wait", "a", "b"))
    found = process("wait", "a", "b")
    assert not re.search(r"[\x1b\r%]|Waiting", found.out + found.err)


# ---- show ----


def test_show_of_several_ids_shows_all_or_none(run, three):
    first, second = run("show", "a", "c").out.split("\n\n")
    assert all(word in first for word in ["id: ", "pending", "backup /srv"]) and "backup /home" in second
    assert [job["id"] for job in run("show", "a", "c", "--json").json] == ["a", "c"]
    assert run("show", "a", "nosuch", code=1).out == ""


def test_show_says_why_a_job_does_not_run(run, drained):
    assert re.search(r"now: +waiting \d+ s for its retry", run("show", "flaky").out)
    assert "no worker is running" in run("show", "waiting").out
    assert "cancelled" in run("show", "gone").out


def test_show_prints_a_field_of_the_users_own_whatever_it_holds(run, home):
    (home / "jobs.json").write_text('[{"id": "a", "command": "true", "seen_at": "noon", "left_at": 5}]')
    assert re.search(r"^seen_at: +noon\nleft_at: +5$", run("show", "a").out, re.MULTILINE)


@pytest.mark.parametrize("name", ["ok", "boom", "flaky", "waiting", "gone"])
def test_show_json_holds_the_whole_job(run, jobs, drained, name):
    # reading: "one job whole" is the record as `list --json` has it; more keys may stand beside.
    shown, record = run("show", name, "--json").json, jobs()[name]
    assert {key: shown.get(key) for key in record} == record


def test_show_says_that_the_queue_is_paused(run, three):
    run("pause")
    assert "the queue is paused" in run("show", "a").out.lower()


# ---- what a worker left, seen through list and show ----


def test_a_job_that_does_not_run_names_no_worker_and_its_times_are_in_order(jobs, drained):
    assert not [name for name, job in jobs().items() if {"worker", "slot"} & set(job)]
    times = [jobs()["ok"][name] for name in ("created_at", "started_at", "finished_at", "updated_at")]
    assert times == sorted(times)


# ---- status ----


def test_status_json_of_an_empty_queue_has_all_its_keys(run, home):
    # reading: the keys are always there; null is "none".
    assert run("status", "--json").json == {
        "jobs": dict.fromkeys(STATES, 0), "workers": [], "paused": False, "oldest_pending_s": None,
        "next_run_at": None, "held": 0, "config": run("config", "show", "--json").json, "home": str(home),
    }  # fmt: skip


def test_status_counts_each_state(run, drained):
    counts = {"pending": 2, "processing": 0, "completed": 5, "failed": 1, "dead": 6}
    assert run("status", "--json").json["jobs"] == counts
    assert run("status").lines[:6] == [*(f"{state}: {count}" for state, count in counts.items()), "workers: 0"]


def test_status_gives_the_age_of_the_oldest_pending_job(run):
    run("enqueue", "true")
    assert 0 <= run("status", "--json").json["oldest_pending_s"] < 60
    assert re.search(r"^oldest waiting job: [\d.]+ s$", run("status").out, re.MULTILINE)


def test_status_says_that_the_queue_is_paused(run):
    run("pause")
    assert "paused" in run("status").out.lower()


def test_status_json_gives_the_next_start_time(run):
    run("enqueue", "--at", "2099-01-02T00:00:00Z", "true")
    run("enqueue", "--at", "2099-01-01T00:00:00Z", "true")
    assert run("status", "--json").json["next_run_at"] == "2099-01-01T00:00:00.000Z"


def test_status_json_gives_the_time_of_the_next_retry(run, jobs, drained):
    assert run("status", "--json").json["next_run_at"] == jobs()["flaky"]["run_at"]


# ---- logs ----


def test_logs_prints_bytes_as_they_were_written(process, drained):
    assert process("logs", "raw").out == "\ufffd\x1b[31mred\x1b[0m\n"


def test_logs_path_prints_the_file_that_holds_the_output(run, drained):
    assert Path(run("logs", "raw", "--path").out.rstrip("\n")).read_bytes() == b"\xff\x1b[31mred\x1b[0m\n"


# ---- wait ----


@pytest.mark.parametrize(
    "names, code",
    [
        ("ok", 0), ("quiet", 0), ("boom", 3), ("twice", 4), ("stubborn", 65), ("killed", 137), ("gone", 1),
        ("ok quiet", 0), ("ok boom", 1), ("boom twice", 1), ("gone ok", 1),
    ],
)  # fmt: skip
def test_wait_for_one_job_ends_with_its_exit_code_and_for_several_with_0_or_1(run, drained, names, code):
    assert run("wait", *names.split(), code=None).code == code


@pytest.mark.parametrize("arguments", [["waiting"], ["flaky"], ["ok", "waiting"], ["--all"]])
def test_wait_that_runs_out_of_time_is_124(run, drained, arguments):
    run("wait", *arguments, "--timeout", "0.1", code=124)


def test_wait_for_a_job_that_is_purged_meanwhile_is_1(run, terminal, eventually):
    run("enqueue", "--id", "a", "true")
    shell = terminal("wait", "a")
    eventually(lambda: "pending" in shell.screen())
    shell.child.send_signal(signal.SIGSTOP)  # so that it never sees the job dead, only gone
    run("cancel", "a")
    run("dlq", "purge", "a", "--yes")
    shell.child.send_signal(signal.SIGCONT)
    eventually(shell.ended)
    assert shell.child.returncode == 1 and "Job a was purged" in shell.screen()


def test_wait_for_all_leaves_out_what_was_over_before(run):
    run("wait", "--all", code=0)
    run("enqueue", "--id", "a", "true")
    run("cancel", "a")
    run("wait", "--all", code=0)


def test_wait_json_prints_one_value_that_says_how_each_job_ended(run, drained):
    ended = run("wait", "ok", "boom", "--json", code=1).json
    assert [(job["id"], job["state"], job["exit_code"]) for job in ended] == [
        ("ok", "completed", 0),
        ("boom", "dead", 3),
    ]
    assert run("wait", "waiting", "--json", "--timeout", "0", code=124).json == [{"id": "waiting", "state": None}]


def test_wait_ends_when_the_job_is_cancelled_meanwhile(run, start):
    run("enqueue", "--id", "a", "true")
    waiting = start("wait", "a")
    run("cancel", "a")
    assert waiting.wait(30) == 1


# ---- worker list and worker stop ----


def test_without_a_worker_the_list_is_empty_and_there_is_nothing_to_stop(run):
    assert run("worker", "list").out == "" and run("worker", "list", "--json").json == []
    for options in ([], ["--now"], ["--timeout", "5"]):
        assert run("worker", "stop", *options).out == "No worker was running.\n"
