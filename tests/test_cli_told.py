"""What a person is told: at a terminal, about waiting, about what a command leaves as it is."""

from __future__ import annotations

import re
import signal
import time
from datetime import datetime

import pytest
from real_processes import said

pytest_plugins = ["worker_fixtures"]
pytestmark = pytest.mark.usefixtures("nothing_left")

COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def seen(on_a_terminal):
    """`seen("list")`: all that a command shows on a terminal, without colour."""
    return lambda *args: COLOUR.sub("", on_a_terminal(*args))


# ---- where there is nothing ----


@pytest.mark.parametrize("words", ["list", "status", "dlq list", "worker list", "config show"])
def test_a_person_is_told_that_there_is_no_queue_yet(seen, run, home, words):
    home.rmdir()
    assert f"There is no queue at {home} yet." in seen(*words.split())
    assert "no queue" not in run(*words.split()).err and not home.exists()


@pytest.mark.parametrize("words", ["completion bash", "list --help", "enqueue true"])
def test_what_needs_no_queue_does_not_speak_of_it(seen, home, words):
    home.rmdir()
    assert "There is no queue" not in seen(*words.split())


def test_enqueue_says_at_a_terminal_that_no_worker_lives(seen, run, worker):
    assert "worker start" in seen("enqueue", "true")
    assert run("enqueue", "true").err == ""
    worker()
    assert "worker start" not in seen("enqueue", "true")


def test_an_empty_list_says_so_at_a_terminal(seen, run):
    run("enqueue", "--id", "a", "true")
    run("cancel", "a")
    assert "No job" in seen("list", "--state", "completed")
    assert run("list", "--state", "completed").err == ""
    run("dlq", "purge", "--all", "--yes")
    assert "No" in seen("dlq", "list")


# ---- tables ----


@pytest.mark.parametrize("words", ["list", "dlq list"])
def test_a_table_on_a_terminal_has_a_header(seen, run, words):
    run("enqueue", "--id", "a", "--max-retries", "1", "true")
    run("cancel", "a")
    head, row = seen(*words.split()).splitlines()
    assert head.split()[0].lower() == "id" and row.split()[0] == "a"
    assert [line.split()[0] for line in run(*words.split()).lines] == ["a"]


def test_a_list_on_a_terminal_says_why_a_job_waits(seen, run):
    run("config", "set", "limits", "gpu=0")
    run("enqueue", "--id", "a", "--tag", "gpu", "echo one")
    run("enqueue", "--id", "b", "--after", "a", "echo two")
    run("enqueue", "--id", "c", "echo three")
    first, second, third = seen("list").splitlines()[1:]
    assert re.search(r"tag gpu\s+echo one", first) and re.search(r"after a\s+echo two", second)
    assert "after" not in third and "tag" not in third
    assert "after a" not in run("list").out


def test_the_columns_of_the_dead_letters_stay_aligned(run, drain):
    run("enqueue", "--id", "a", "--max-retries", "1", "exit 3")
    run("enqueue", "--id", "b", "--max-retries", "1", "echo last words; kill -9 $$")
    run("enqueue", "--id", "c", "--after", "a", "true")
    drain(code=1)
    run("enqueue", "--id", "d", "true")
    run("cancel", "d")
    lines = run("dlq", "list").lines
    ends = {line.index(" ago") for line in lines}
    assert len(lines) == 4 and len(ends) == 1
    assert sum(line.endswith("(no output)") for line in lines) == 3 and any("last words" in line for line in lines)


def test_why_a_job_died_is_whole_in_a_pipe(run, drain):
    run("config", "set", "grace-period", "0.1")
    run("enqueue", "--id", "a", "--max-retries", "1", "--timeout", "0.1", "sleep 9")
    run("enqueue", "--id", "b", "--max-retries", "1", "--cwd", "/none", "true")
    run("enqueue", "--id", "c", "--after", "a", "true")
    drain(code=1)
    whys = [re.split(r"  +", line)[2] for line in run("dlq", "list").lines]
    assert whys == ["time limit", "not started", "after a dead job"]


@pytest.mark.parametrize("columns", [40, 80])
def test_a_long_id_hides_no_state(seen, run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    run("enqueue", "--id", "x" * 128, "true")
    run("enqueue", "--id", "a", "true")
    head, long, short = seen("list").splitlines()
    assert "…  pending" in long and head.index("state") == long.index("pending") == short.index("pending")
    assert run("list").lines[0].startswith("x" * 128)


# ---- times ----


def test_a_person_sees_local_times_and_durations(run, drain, monkeypatch):
    run("enqueue", "--id", "a", "sleep 0.3")
    drain()
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        page = run("show", "a").out
        job = run("show", "a", "--json").json
        local = datetime.fromisoformat(job["created_at"]).astimezone()
        assert f"{local:%H:%M:%S}" in page and job["created_at"][11:19] not in page
        assert re.search(r"attempt 1 .*0\.[3-9]\d* s", page)
        assert job["created_at"].endswith("Z")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_an_attempt_says_how_it_ended(run, drain):
    run("enqueue", "--id", "a", "--max-retries", "1", "exit 3")
    run("enqueue", "--id", "b", "--max-retries", "1", "kill -9 $$")
    drain(code=1)
    assert "attempt 1 (run 1): exit code 3, " in run("show", "a").out
    assert "attempt 1 (run 1): ended by signal 9, " in run("show", "b").out


def test_an_attempt_that_a_hand_edit_spoilt_is_shown_as_far_as_it_can_be(run, drain, home):
    run("enqueue", "--id", "a", "true")
    drain()
    path = home / "jobs.json"
    path.write_text(path.read_text().replace('"outcome": "exited", "exit_code": 0}]', '"outcome": [5]}]'))
    assert "attempt 1 (run 1): [5], 20" in run("show", "a").out


# ---- status ----


def test_status_counts_processes_where_there_are_several(run, worker):
    worker("--count", "2")
    out = run("status").out
    assert "workers: 2\n" in out and "processes:" not in out
    worker("--count", "3")
    out = run("status").out
    assert "workers: 5\n" in out and "processes: 2\n" in out


def test_status_says_that_a_worker_is_stopping(run, worker, gate, reaches, eventually):
    run("enqueue", "--id", "a", gate.wait)
    child = worker()
    reaches("a", "processing")
    assert "stopping" not in run("status").out
    child.send_signal(signal.SIGINT)
    eventually(lambda: "stopping" in run("status").out)
    assert [one["stopping"] for one in run("worker", "list", "--json").json] == [True]


def test_status_shows_the_settings_that_differ(run):
    assert "job_timeout" not in run("status").out
    run("config", "set", "job-timeout", "10m")
    run("config", "set", "limits", "gpu=1")
    (line,) = [line for line in run("status").lines if line.startswith("settings:")]
    assert line == "settings: job_timeout=10m, limits=gpu=1"
    assert len(run("status", "--json").json["config"]) > 10


# ---- waiting ----


def test_logs_says_once_that_no_worker_lives(terminal, run, eventually):
    run("enqueue", "--id", "a", "true")
    shell = terminal("logs", "-f", "a")
    eventually(lambda: "worker start" in shell.screen())
    time.sleep(0.2)
    assert shell.screen().count("worker start") == 1
    shell.type(b"\x03")
    eventually(shell.ended)


def test_wait_shows_the_state_of_a_single_job(terminal, run, eventually, worker, gate):
    held = gate
    run("config", "set", "backoff-base", "20")
    run("enqueue", "--id", "a", f"{held.wait}; exit 1")
    shell = terminal("wait", "a")
    eventually(lambda: "pending" in shell.screen())
    worker()
    eventually(lambda: "processing, attempt 1 of 3" in shell.screen())
    held.open()
    eventually(lambda: re.search(r"failed, attempt 1 of 3 in 1\d s", shell.screen()))
    run("cancel", "a")
    eventually(shell.ended)
    assert shell.child.returncode == 1
    assert "%" not in shell.screen()  # a bar of one job would only say 0%, and wrap on a narrow terminal


def test_worker_stop_says_what_it_waits_for(seen, run, worker, gate, reaches, terminal, eventually):
    held = gate
    run("enqueue", "--id", "long-one", held.wait)
    worker("--count", "2")
    worker("--count", "3")
    reaches("long-one", "processing")
    shell = terminal("worker", "stop")
    eventually(lambda: "long-one" in shell.screen())
    held.open()
    eventually(shell.ended)
    assert "2 worker processes (5 threads) stopped" in shell.screen()
    assert run("worker", "stop").out == "No worker was running.\n"


# ---- changing ----


def test_a_delayed_job_is_due_at_a_retry(run, jobs):
    run("enqueue", "--id", "a", "--delay", "1h", "true")
    run("enqueue", "--id", "b", "true")
    assert "due now" in run("retry", "a").out
    assert (datetime.now().timestamp() - datetime.fromisoformat(jobs()["a"]["run_at"]).timestamp()) < 60
    run("retry", "b", code=1)


def test_edit_and_dlq_retry_take_delay_directory_and_tags(run, jobs, tmp_path):
    run("enqueue", "--id", "a", "--tag", "old", "true")
    run("edit", "a", "--delay", "1h", "--cwd", str(tmp_path), "--tag", "x", "--tag", "y")
    job = jobs()["a"]
    assert (job["cwd"], job["tags"], job["run_at"] > job["updated_at"]) == (str(tmp_path), ["x", "y"], True)
    run("edit", "a", "--tag", "")
    assert "tags" not in jobs()["a"]
    run("edit", "a", "--delay", "1h", "--at", "now", code=2)
    run("cancel", "a")
    run("dlq", "retry", "a", "--delay", "2h", "--tag", "z", "--cwd", "/")
    job = jobs()["a"]
    assert (job["cwd"], job["tags"], job["run_at"] > job["updated_at"]) == ("/", ["z"], True)


def test_purge_leaves_dead_letters_and_says_so(run, drain):
    for name, command in (("a", "true"), ("b", "exit 1"), ("c", "exit 2")):
        run("enqueue", "--id", name, "--max-retries", "1", command)
    drain(code=1)
    answer = run("purge", "--yes")
    assert "1 job purged" in answer.out and "2 dead letters" in answer.err and "--state dead" in answer.err
    assert run("list", "--ids").lines == ["b", "c"]
    run("dlq", "purge", "b", "--yes")
    assert run("purge", "--yes").err.startswith("1 dead letter left in place.")
    answer = run("purge", "--state", "dead", "--yes")
    assert "1 job purged" in answer.out and answer.err == "" and run("list", "--ids").lines == []


# ---- settings ----


@pytest.mark.parametrize("bad", ['"max_retries": "many"', '"max_retires": 3'])
def test_config_show_shows_what_can_be_read_and_names_the_mistakes(run, home, bad):
    run("config", "set", "backoff-base", "7")
    path = home / "config.json"
    path.write_text(path.read_text().replace('"max_retries": 3', bad))
    answer = run("config", "show", code=3)
    assert "backoff_base = 7" in answer.out and bad.split('"')[1] in answer.err
    assert run("config", "show", "--json", code=3).json["backoff_base"] == 7


def test_a_runner_that_is_not_found_gets_a_warning(run):
    answer = run("config", "set", "runner", "no-such-program -c")
    assert "Warning" in answer.err and "no-such-program" in answer.err
    assert run("config", "set", "on-dead", "true").err == ""
    assert run("config", "set", "runner", "sh -c").err == ""


# ---- workers ----


def test_the_first_line_of_a_worker_names_the_time_limit(drain, run):
    assert "30 s" in drain().err.splitlines()[0]
    run("config", "set", "job-timeout", "0")
    assert "no time limit" in drain().err.splitlines()[0]


def test_the_lines_of_a_worker_have_colour_on_a_terminal(terminal, eventually, run):
    run("enqueue", "--id", "a", "true")
    shell = terminal("worker", "start", "--drain")
    eventually(shell.ended)
    assert re.search(r"a \x1b\[32mcompleted", shell.screen())


def test_the_lines_of_a_worker_in_a_log_have_time_and_name(run, process, eventually, home):
    run("enqueue", "--id", "a", "true")
    process("worker", "start", "--detach")
    log = home / ".queuectl" / "worker.log"
    line = eventually(lambda: next((line for line in log.read_text().splitlines() if "a completed" in line), None))
    assert re.match(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\S* \d+-[0-9a-f]+:? a completed", line)
    process("worker", "stop")


@pytest.mark.parametrize("why", ["paused", "delay", "retry"])
def test_a_drain_says_once_for_what_it_waits(run, start, eventually, why):
    if why == "paused":
        run("pause")
    run("config", "set", "backoff-base", "1000")
    run("enqueue", "--id", "a", *(["--delay", "1h"] if why == "delay" else []), "exit 1")
    child = start("worker", "start", "--drain", patch="queuectl.TICK_S = 0.05")  # it looks again and again
    text = "paused" if why == "paused" else r"waits.*\d\d:\d\d"
    eventually(lambda: re.search(text, said(child)))
    time.sleep(0.5)
    assert said(child).count("drain waits") == 1


def test_a_worker_names_the_jobs_that_die_with_one(run, drain):
    run("enqueue", "--id", "first", "--max-retries", "1", "exit 1")
    for number in range(12):
        run("enqueue", "--id", f"next{number}", "--after", "first", "true")
    err = drain(code=1).err
    (line,) = [line for line in err.splitlines() if "next0" in line]
    assert "12 jobs" in line and "next9" in line and "next10" not in line


# ---- doctor ----


def test_doctor_ends_with_what_was_lost(run, home):
    for name in "abc":
        run("enqueue", "--id", name, "true")
    path = home / "jobs.json"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1][:40] + "\n", *lines[2:]]))
    answer = run("doctor", "--fix", code=None)
    assert re.search(r"Lost: .*\ba\b", answer.out.splitlines()[-1]), answer
