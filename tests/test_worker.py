"""Worker processes as a user sees them: starting, stopping, draining, and what they give to a job."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from real_processes import Call, Gate, is_alive, meeting, python_job, said, seconds_between, started_with, stored

pytest_plugins = ["worker_fixtures"]
pytestmark = pytest.mark.usefixtures("nothing_left", "quick")


def append(path: Path, text: str) -> str:
    """Shell text that adds one line to a file (O_APPEND)."""
    return f'echo "{text}" >> {shlex.quote(str(path))}'


@pytest.fixture
def held(enqueue: Call, gate: Gate, written: Call, tmp_path: Path) -> Call:
    """`held("a")`: a job that notes its pid in a file and then waits for the gate.

    The answer, called once a worker is there, waits for the job's start and returns that pid.
    """

    def call(name: str, *options: str, after: str = "true") -> Any:
        pid = tmp_path / f"{name}.pid"
        enqueue(name, f"{append(pid, '$$')}; {gate.wait}; {after}", *options)
        return lambda: int(written(pid).split()[-1])

    return call


# -- in the foreground


def test_a_worker_says_one_line_at_its_start(worker, eventually):
    child = worker()
    eventually(lambda: said(child).count("\n") == 1)


def test_a_worker_says_one_line_for_every_finished_attempt(enqueue, drain):
    enqueue("alpha", "echo printed by the job")
    enqueue("bravo", 'test "$QUEUECTL_ATTEMPT" = 2')
    result = drain()
    lines = result.err.splitlines()
    assert [sum(name in line for line in lines) for name in ("alpha", "bravo")] == [1, 2]
    assert "alpha" not in lines[0] and "bravo" not in lines[0]
    assert result.out == ""


def test_a_worker_runs_as_many_jobs_at_once_as_count_says_and_never_more(enqueue, drain, tmp_path):
    log = tmp_path / "log"
    for number in range(12):
        middle = meeting(tmp_path / "meeting", 3) if number < 3 else "true"
        enqueue(f"j{number}", f"{append(log, '+1')}; {middle}; {append(log, '-1')}")
    drain("--count", "3")
    at_once = list(accumulate(int(line) for line in log.read_text().split()))
    assert (len(at_once), max(at_once)) == (24, 3)


def test_without_count_a_worker_has_as_many_threads_as_the_settings_say(run, worker):
    run("config", "set", "worker_count", "3")
    worker()
    # reading: an object of `worker list --json` gives the threads under `threads`.
    assert [one["threads"] for one in run("worker", "list", "--json").json] == [3]


@pytest.mark.parametrize(("option", "ran", "left"), [("--tag", "with", "without"), ("--not-tag", "without", "with")])
def test_a_worker_takes_jobs_by_their_tags(option, ran, left, enqueue, drain, jobs):
    enqueue("with", "true", "--tag", "gpu")
    enqueue("without", "true")
    drain(option, "gpu")
    assert {name: one["state"] for name, one in jobs().items()} == {ran: "completed", left: "pending"}


# -- drain


def test_drain_ends_with_1_only_when_a_job_died_meanwhile(enqueue, drain):
    enqueue("bad", "exit 1", "--max-retries", "1")
    enqueue("fine", "true")
    drain(code=1)
    enqueue("good", "true")
    drain(code=0)


def test_drain_does_not_count_cancelled_jobs(run, held, worker):
    is_running = held("a")
    child = worker("--drain")
    is_running()
    run("cancel", "a")
    assert child.wait(30) == 0


def test_drain_waits_for_retries_and_for_delayed_jobs(enqueue, drain, jobs):
    enqueue("retried", 'test "$QUEUECTL_ATTEMPT" = 3')
    enqueue("delayed", "true", "--delay", "0.5")
    drain(code=0)
    assert {one["state"] for one in jobs().values()} == {"completed"}


def test_a_drain_that_waits_for_a_retry_says_so_also_while_other_jobs_wait(enqueue, worker):
    enqueue("other", "true")
    enqueue("retried", 'test "$QUEUECTL_ATTEMPT" = 2', "--tag", "x")
    child = worker("--drain", "--tag", "x")
    assert child.wait(30) == 0
    assert "The drain waits for a retry or a delayed job, due at" in said(child) and "units" not in said(child)


def test_drain_waits_for_a_job_that_another_worker_runs(held, gate, worker, enqueue, reaches):
    is_running = held("a")
    worker()
    is_running()
    second = worker("--drain")
    enqueue("b", "true")
    reaches("b", "completed")  # the draining one has run what it could
    assert second.poll() is None
    gate.open()
    assert second.wait(30) == 0


def test_drain_of_a_paused_queue_says_so_once_and_waits(run, enqueue, worker, eventually, job):
    run("pause")
    enqueue("a", "true")
    child = worker("--drain")
    eventually(lambda: "is paused" in said(child))
    assert (child.poll(), job("a")["state"]) == (None, "pending")
    run("resume")
    assert child.wait(30) == 0
    assert said(child).count("is paused") == 1
    assert job("a")["state"] == "completed"


# -- detach


@pytest.mark.parametrize("word", ["--detach", "--detached"])
def test_a_detached_worker_is_ready_when_the_command_returns_and_can_be_stopped(
    word, process, worker_pids, enqueue, reaches, home, eventually
):
    process("worker", "start", word, timeout=30)  # and holds neither its stdout nor its stderr
    (pid,) = worker_pids()
    assert is_alive(pid) and os.getsid(pid) != os.getsid(0)
    enqueue("silent", "true")
    reaches("silent", "completed")
    log = home / ".queuectl" / "worker.log"
    eventually(lambda: "silent" in log.read_text())
    assert "Stop it with: queuectl worker stop.\n" in log.read_text()
    process("worker", "stop", code=0)
    assert worker_pids() == set() and not is_alive(pid)


def test_a_worker_in_the_foreground_is_stopped_with_ctrl_c(worker, eventually):
    child = worker()
    eventually(lambda: "Stop it with Ctrl+C.\n" in said(child))


# -- stopping


@pytest.fixture
def ask_to_stop(start: Call) -> Call:
    """`ask_to_stop(child, "SIGTERM")`: by a signal, or by `worker stop` from another terminal."""

    def call(child: Any, how: str) -> Any:
        if how != "worker stop":
            return child.send_signal(signal.Signals[how])
        return start("worker", "stop")

    return call


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGHUP", "worker stop"])
def test_the_first_request_to_stop_lets_the_running_job_finish_and_claims_nothing_more(
    how, held, enqueue, gate, worker, ask_to_stop, eventually, job
):
    is_running = held("a")
    enqueue("b", "true")
    child = worker()
    pid = is_running()
    stop = ask_to_stop(child, how)
    eventually(lambda: "Stopping" in said(child))  # it says so
    assert is_alive(pid) and (stop is None or stop.poll() is None)
    gate.open()
    assert stop is None or stop.wait(30) == 0
    assert child.wait(30) == 0
    assert (job("a")["state"], job("a")["attempts"], job("a")["runs"]) == ("completed", 1, 1)
    assert (job("b")["state"], job("b")["runs"]) == ("pending", 0)


def test_worker_stop_stops_all_workers_of_the_home(process, worker):
    children = [worker(), worker()]
    process("worker", "stop")
    assert [child.wait(30) for child in children] == [0, 0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_hands_the_job_back_without_using_an_attempt(number, held, worker, eventually, job):
    is_running = held("a")
    child = worker()
    pid = is_running()
    child.send_signal(number)
    eventually(lambda: "Stopping" in said(child))
    child.send_signal(number)
    assert child.wait(30) == 128 + number
    assert not is_alive(pid)
    back = job("a")
    assert (back["state"], back["attempts"], back["runs"]) == ("pending", 0, 1)
    assert [past["outcome"] for past in back["history"]] == ["handed_back"]


def test_worker_stop_now_hastens_a_stop_and_what_is_handed_back_runs_again(held, gate, worker, process, drain, job):
    is_running = held("a")
    child = worker()
    is_running()
    process("worker", "stop", "--timeout", "0.1", code=1)
    assert child.poll() is None and job("a")["state"] == "processing"
    process("worker", "stop", "--now", code=0)
    child.wait(30)
    assert (job("a")["state"], job("a")["attempts"]) == ("pending", 0)
    gate.open()
    drain()
    assert (job("a")["state"], job("a")["attempts"], job("a")["runs"]) == ("completed", 1, 2)


def test_a_job_that_ignores_sigterm_is_handed_back_too(enqueue, worker, process, job, tmp_path, written):
    pid = tmp_path / "pid"
    enqueue("a", f"trap '' TERM; {append(pid, '$$')}; sleep 60")
    worker()
    written(pid)
    process("worker", "stop", "--now", code=0)
    assert not is_alive(int(pid.read_text()))
    assert (job("a")["state"], job("a")["attempts"]) == ("pending", 0)


# -- while it runs


def test_a_new_backoff_takes_effect_in_a_running_worker(run, worker, enqueue, reaches):
    run("config", "set", "backoff_base", "500")
    worker()
    enqueue("slow", "exit 1")
    reaches("slow", "failed")
    run("config", "set", "backoff_base", "0.1")
    enqueue("fast", "exit 1")
    assert reaches("fast", "dead")["attempts"] == 3


def test_a_worker_goes_on_with_the_last_good_settings_and_warns_once(
    run, worker, enqueue, home, tmp_path, written, eventually
):
    run("config", "set", "max_retries", "7")
    child = worker()
    good = (home / "config.json").read_text()
    enqueue("a", f"echo ran > {tmp_path}/note", "--delay", "2")
    for text in ("{", good):  # whole at once: an empty file would be a second trouble
        (home / "new.json").write_text(text)
        (home / "new.json").rename(home / "config.json")
        written(tmp_path / "note")
    eventually(lambda: "The trouble is over" in said(child))
    assert said(child).count("the last good settings stay in force") == 1


def test_a_paused_queue_starts_nothing_and_lets_the_running_job_finish(run, held, enqueue, gate, worker, reaches, job):
    is_running = held("a")
    enqueue("b", "true")
    worker()
    is_running()
    run("pause")
    gate.open()
    reaches("a", "completed")  # the same transaction would have claimed the next
    assert (job("b")["state"], job("b")["runs"]) == ("pending", 0)


def test_a_delayed_job_starts_when_its_time_has_come_and_not_before(enqueue, start, reaches):
    """What it waits for is its time, not the look that a worker takes once a second in any case."""
    enqueue("first", "true")
    start("worker", "start", patch="queuectl.TICK_S = 600.0")
    reaches("first", "completed")
    enqueue("a", "true", "--delay", "0.7")
    ended = reaches("a", "completed")
    assert seconds_between(ended["created_at"], ended["started_at"]) >= 0.7


def test_one_thread_runs_higher_priority_first_and_then_in_order_of_arrival(run, enqueue, drain, tmp_path):
    """Whatever their tags: those with a limit are kept apart, but they take no precedence."""
    order = tmp_path / "order"
    run("config", "set", "limits", "gpu=9,net=9")
    for name, priority, tag in (("c", 0, "net"), ("a", 5, "x"), ("d", 0, "gpu"), ("e", -1, "x"), ("b", 5, "net")):
        enqueue(name, append(order, name), "--priority", str(priority), "--tag", tag)
    drain("--count", "1")
    assert order.read_text().split() == ["a", "b", "c", "d", "e"]


def test_status_counts_the_threads_of_all_workers(run, worker):
    first, second = worker("--count", "1"), worker("--count", "2")
    assert any(line.split()[:2] == ["workers:", "3"] for line in run("status").lines)
    # reading: a worker in `status --json` has `pid` and `threads`.
    listed = {one["pid"]: one["threads"] for one in run("status", "--json").json["workers"]}
    assert listed == {first.pid: 1, second.pid: 2}


# Slow: a fold and the look at the arrays are a second apart each.
def test_a_job_written_into_jobs_json_by_hand_is_taken_over_by_a_running_worker(
    home, worker, enqueue, reaches, eventually, run
):
    worker()
    enqueue("first", "true")
    reaches("first", "completed")
    eventually(lambda: [one["state"] for one in stored(home, "jobs.json") or []] == ["completed"])
    array = [*stored(home, "jobs.json"), {"id": "byhand", "command": "echo by hand"}]
    (home / "edited").write_text(json.dumps(array, indent=4))
    (home / "edited").rename(home / "jobs.json")
    done = reaches("byhand", "completed")
    assert (run("logs", "byhand").out, done["attempts"], done["max_retries"]) == ("by hand\n", 1, 3)


# -- what a job is given


@pytest.fixture
def probe(enqueue: Call, drain: Call, tmp_path: Path) -> Call:
    """`probe("import os; print(os.getcwd())")`: what that Python program prints, run as a job."""

    def call(text: str, *options: str, run_worker: Call = drain) -> str:
        out = tmp_path / "probed"
        command = python_job(tmp_path / "probe.py", text) + " > " + shlex.quote(str(out))
        enqueue("probe", command, *options)
        run_worker()
        return out.read_text()

    return call


ENVIRONMENT = "import json, os; print(json.dumps(dict(os.environ)))"


def test_a_job_knows_its_id_attempt_worker_slot_and_home_from_its_environment(home, probe):
    given = json.loads(probe(ENVIRONMENT))
    names = ("QUEUECTL_JOB_ID", "QUEUECTL_ATTEMPT", "QUEUECTL_SLOT", "QUEUECTL_HOME")
    assert [given[name] for name in names] == ["probe", "1", "0", str(home)]
    lock = os.stat(home / ".queuectl" / "lock")
    assert given["QUEUECTL_RUN"] == f"{lock.st_dev}.{lock.st_ino}/{given['QUEUECTL_WORKER']}/probe/1"


def test_the_slots_of_a_worker_are_numbered_from_0(enqueue, drain, tmp_path):
    seen = tmp_path / "seen"
    for number in range(3):
        enqueue(f"j{number}", f"{meeting(tmp_path / 'meeting', 3)}; {append(seen, '$QUEUECTL_SLOT')}")
    drain("--count", "3")
    assert sorted(seen.read_text().split()) == ["0", "1", "2"]


def test_env_keeps_the_callers_value_or_the_given_one_over_the_workers(probe, drain, monkeypatch):
    monkeypatch.setenv("KEPT", "of the caller")
    worker = {"KEPT": "of the worker", "GIVEN": "of the worker", "OTHER": "of the worker"}
    options = ("--env", "KEPT", "--env", "GIVEN=a = b")
    given = json.loads(probe(ENVIRONMENT, *options, run_worker=lambda: drain(env=worker)))
    assert (given["KEPT"], given["GIVEN"], given["OTHER"]) == ("of the caller", "a = b", "of the worker")


def test_a_job_runs_in_the_directory_that_cwd_names(enqueue, drain, run, tmp_path):
    (tmp_path / "other").mkdir()
    enqueue("a", "pwd -P", "--cwd", str(tmp_path / "other"))
    enqueue("b", "pwd -P", "--cwd", "/")
    drain()
    assert (run("logs", "a").out, run("logs", "b").out) == (f"{(tmp_path / 'other').resolve()}\n", "/\n")


def test_the_standard_input_of_a_job_is_the_null_device(probe):
    assert probe("import os; print(os.fstat(0).st_rdev == os.stat(os.devnull).st_rdev)") == "True\n"


def test_a_job_inherits_no_descriptors(probe, worker, process, tmp_path):
    text = """
import os
def is_open(number):
    try:
        return bool(os.fstat(number))
    except OSError:
        return False
print([number for number in range(3, 1024) if is_open(number)])
"""

    def run_worker() -> None:
        with (tmp_path / "open").open("w") as file:
            worker(pass_fds=(file.fileno(),))  # one that the worker itself was given
        process("wait", "probe")

    # The program itself was read and closed before it runs.
    assert probe(text, run_worker=run_worker) == "[]\n"


def test_a_job_leads_a_session_of_its_own(probe):
    assert probe("import os; print(os.getsid(0) == os.getpgrp() == os.getpid())") == "True\n"


def masks(text: str, *names: str) -> Sequence[int]:
    fields = dict(line.split(":", 1) for line in text.splitlines())
    # glibc's posix_spawn leaves the two signals that it keeps for itself (32 and 33) ignored; nobody can send them.
    return [int(fields[name], 16) & ~(0b11 << 31) for name in names]


SIGNALS = "cat /proc/self/status"
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@needs_proc
def test_a_job_starts_with_default_signals_when_its_worker_was_started_with_some_ignored(enqueue, worker, reaches, run):
    with started_with(signal.SIG_IGN, signal.SIGCHLD, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1):
        worker(default_signals=())
    enqueue("a", SIGNALS)
    reaches("a", "completed")
    assert masks(run("logs", "a").out, "SigIgn", "SigBlk") == [0, 0]


def test_exit_codes_are_really_read_when_the_worker_was_started_with_sigchld_ignored(enqueue, worker, reaches):
    with started_with(signal.SIG_IGN, signal.SIGCHLD, signal.SIGINT):
        worker(default_signals=())
    enqueue("bad", "exit 7", "--max-retries", "1")
    enqueue("good", "true")
    assert (reaches("bad", "dead")["exit_code"], reaches("good", "completed")["exit_code"]) == (7, 0)


def test_a_job_is_started_through_the_shell_and_words_are_kept_word_for_word(process, drain, run):
    words = [sys.executable, "-c", "import sys; print(sys.argv[1:])", "my dir", "$HOME", "*", "'"]
    process("enqueue", "--id", "a", "--", *words)
    process("enqueue", "--id", "b", "echo one | tr a-z A-Z && echo two")
    drain()
    assert run("logs", "a").out == "['my dir', '$HOME', '*', \"'\"]\n"
    assert run("logs", "b").out == "ONE\ntwo\n"
