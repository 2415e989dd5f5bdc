"""A worker that is killed: what it left is ended, its jobs run again, and nothing ever runs twice at once."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from filelock import lock_descriptor
from real_processes import Call, is_alive, kill, python_job

pytest_plugins = ["worker_fixtures"]
pytestmark = pytest.mark.usefixtures("nothing_left", "quick")

# The first run stays until something ends it; a later one ends at once. Every run takes the lock of its job,
# and all processes of a run share it: whoever finds it taken has seen two runs at the same time.
VICTIM = """
import fcntl, os, signal, sys, time

folder, kind = sys.argv[1:]
name = os.path.join(folder, os.environ["QUEUECTL_JOB_ID"])

def note(what):
    file = os.open(name + "." + what, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, b"%d\\n" % os.getpid())
    os.close(file)

def leave_output():
    for fd in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), fd)

lock = os.open(name + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
os.set_inheritable(lock, True)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    note("overlap")
if os.path.exists(name + ".started"):
    note("again")
    sys.exit(0)

if kind == "ignores SIGTERM":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
elif kind == "has a child":
    os.fork()
elif kind == "has a child that its environment alone betrays" and os.fork() == 0:
    os.setsid()
    leave_output()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
elif kind == "its session alone betrays" or kind == "its output alone betrays" and os.fork() == 0:
    if kind == "its session alone betrays":
        leave_output()
    else:
        os.setsid()
    note("started")
    os.execve(sys.executable, [sys.executable, "-S", "-E", "-c", "import time; time.sleep(300)"], {})
if kind == "its output alone betrays":
    os.wait()
note("started")
time.sleep(300)
"""


@pytest.fixture
def victim(enqueue: Call, tmp_path: Path) -> Call:
    """`victim("a", "ignores SIGTERM")`: a job that must be ended from outside the first time it runs."""

    def call(name: str, kind: str = "is an ordinary process") -> None:
        enqueue(name, python_job(tmp_path / "victim.py", VICTIM, tmp_path, kind), "--timeout", "0")

    return call


@pytest.fixture
def pids_of(tmp_path: Path, written: Call) -> Call:
    """`pids_of("a", 2)`: waits for that many processes of the job's first run."""
    return lambda name, count=1: [int(line) for line in written(tmp_path / f"{name}.started", count).split()]


@pytest.fixture
def overlapped(tmp_path: Path) -> Call:
    """The jobs of which two runs were seen at the same time."""
    return lambda: [path.name for path in tmp_path.glob("*.overlap")]


# -- after a restart


@pytest.mark.parametrize(
    ("kind", "processes"),
    [
        ("is an ordinary process", 1), ("has a child", 2), ("ignores SIGTERM", 1), ("its session alone betrays", 1),
        ("has a child that its environment alone betrays", 2),
    ],
)  # fmt: skip
def test_the_processes_of_a_killed_workers_job_are_ended_before_it_runs_again(
    kind, processes, victim, worker, pids_of, drain, run, job, overlapped
):
    victim("a", kind)
    first = worker()
    left = pids_of("a", processes)
    kill(first)
    assert all(is_alive(pid) for pid in left)
    drain()
    assert not any(is_alive(pid) for pid in left)
    assert overlapped() == []
    done = job("a")
    assert (done["state"], done["attempts"], done["runs"], done["recoveries"]) == ("completed", 1, 2, 1)
    run("doctor")


def test_a_process_that_its_output_alone_betrays_holds_its_job_up_while_it_lives(
    victim, worker, pids_of, eventually, job, run, overlapped, reaches
):
    victim("a", "its output alone betrays")
    first = worker()
    (pid,) = pids_of("a")
    kill(first)
    worker()
    # reading: what only its output betrays is ended, or it delays the job and `show` names it (F4, F5).
    eventually(lambda: not is_alive(pid) or re.search(rf"\b{pid}\b", run("show", "a").out))
    if is_alive(pid):
        assert job("a")["state"] == "processing"
        os.kill(pid, signal.SIGKILL)
    reaches("a", "completed")
    assert overlapped() == []


def test_what_the_interrupted_run_printed_is_kept_for_the_logs(enqueue, gate, worker, run, eventually, start, job):
    enqueue("a", f"echo run of attempt $QUEUECTL_ATTEMPT; {gate.wait}")
    first = worker()
    eventually(lambda: run("logs", "a", code=None).out == "run of attempt 1\n")
    run("pause")
    kill(first)
    worker()
    eventually(lambda: job("a")["state"] == "pending")
    assert run("logs", "a").out == "run of attempt 1\n"


def test_a_killed_worker_is_listed_no_more_and_stop_does_not_wait_for_it(victim, worker, pids_of, run):
    victim("a")
    first = worker()
    pids_of("a")
    kill(first)
    assert run("worker", "list", "--json").json == []
    assert run("status", "--json").json["workers"] == []
    run("worker", "stop", code=0)


def test_jobs_are_recovered_also_when_the_dead_workers_file_is_missing(
    victim, worker, pids_of, drain, home, job, overlapped
):
    victim("a")
    first = worker()
    (pid,) = pids_of("a")
    kill(first)
    for path in (home / ".queuectl" / "workers").iterdir():
        path.unlink()
    drain()
    assert not is_alive(pid)
    assert (job("a")["state"], overlapped()) == ("completed", [])


def test_daemons_of_finished_jobs_live_on_when_their_worker_is_killed_and_recovered(
    enqueue, victim, worker, reaches, pids_of, drain, written, tmp_path
):
    note = tmp_path / "daemon"
    enqueue("before", f"sleep 300 & echo $! >> {shlex.quote(str(note))}")
    first = worker("--count", "1")
    reaches("before", "completed")
    victim("a")
    pids_of("a")
    kill(first)
    drain()
    assert is_alive(int(written(note)))


# -- while another worker lives


# Slow: others look for a dead worker every two seconds.
def test_a_killed_workers_job_is_back_soon_while_another_worker_lives(victim, worker, pids_of, reaches, overlapped):
    victim("a")
    first = worker()
    pids_of("a")
    worker()
    kill(first)
    # 5 seconds are promised where nothing of it lives, else grace_period + 5; the rest is for a busy machine.
    done = reaches("a", "completed")
    assert (done["runs"], done["recoveries"], overlapped()) == (2, 1, [])


# Slow: three workers one after the other, each killed at work.
def stop_outside_the_lock(child: subprocess.Popen[bytes], home: Path) -> None:
    """SIGSTOP a worker while it does not hold the store lock (else all others would wait for it)."""
    while True:
        child.send_signal(signal.SIGSTOP)
        with (home / ".queuectl" / "lock").open("rb") as file:
            if lock_descriptor(file.fileno(), blocking=False):
                return
        child.send_signal(signal.SIGCONT)


def test_a_worker_that_is_only_stopped_is_not_recovered(
    home, enqueue, gate, worker, drain, reaches, job, written, tmp_path
):
    note = tmp_path / "pid"
    enqueue("a", f"echo $$ >> {shlex.quote(str(note))}; {gate.wait}")
    first = worker()
    pid = int(written(note))
    stop_outside_the_lock(first, home)
    try:
        enqueue("b", "true", "--tag", "other")
        drain("--tag", "other")  # every worker looks for orphans at its start
        assert is_alive(pid)
        assert (job("a")["state"], job("a")["runs"]) == ("processing", 1)
    finally:
        first.send_signal(signal.SIGCONT)
    gate.open()
    done = reaches("a", "completed")
    assert (done["runs"], done.get("recoveries", 0)) == (1, 0)


# -- without a worker


@pytest.mark.parametrize("kind", ["is an ordinary process", "ignores SIGTERM"])
def test_cancel_ends_and_finishes_the_job_of_a_dead_worker_without_a_live_one(
    kind, victim, worker, pids_of, process, job
):
    victim("a", kind)
    first = worker()
    (pid,) = pids_of("a")
    kill(first)
    process("cancel", "a", code=0)
    assert not is_alive(pid)
    assert (job("a")["state"], job("a")["reason"]) == ("dead", "cancelled")


def test_a_job_that_was_being_cancelled_when_its_worker_was_killed_dies_and_does_not_run_again(
    run, enqueue, worker, written, tmp_path, drain, job, gate
):
    run("config", "set", "grace_period", "60")
    note, told = tmp_path / "pid", tmp_path / "told"
    tidy = shlex.quote(f"echo told > {shlex.quote(str(told))}; {gate.wait}; exit 0")
    enqueue("a", f"trap {tidy} TERM; echo $$ >> {shlex.quote(str(note))}; while :; do sleep 0.05; done")
    first = worker()
    written(note)
    run("cancel", "a")
    written(told)
    kill(first)
    run("config", "set", "grace_period", "0.3")
    drain(code=None)
    assert (job("a")["state"], job("a")["reason"], job("a")["runs"]) == ("dead", "cancelled", 1)
    assert not is_alive(int(note.read_text().split()[0]))


def test_wait_for_an_orphan_warns_once_and_goes_on_waiting(victim, worker, pids_of, process):
    victim("a")
    first = worker()
    pids_of("a")
    kill(first)
    result = process("wait", "a", "--timeout", "1", code=124)
    assert len([line for line in result.err.splitlines() if "worker" in line]) == 1


# -- copies


@pytest.fixture
def copied(enqueue, gate, worker, written, home, tmp_path) -> tuple[Any, int, dict[str, str]]:
    """A home copied while its job runs: the worker, the job's pid, and the environment of the copy."""
    note = tmp_path / "original.pid"
    copy = tmp_path / "copy"
    here = shlex.quote(str(home))
    in_the_copy = f'echo run >> {shlex.quote(str(tmp_path / "in-the-copy"))}; test "$QUEUECTL_HOME" != {here}'
    command = f'if [ "$QUEUECTL_HOME" = {here} ]; then echo $$ >> {shlex.quote(str(note))}; {gate.wait}; exit 0; fi'
    enqueue("a", f"{command}; {in_the_copy}")
    child = worker()
    pid = int(written(note))
    # The copy must not be torn by a fold between two of its files: it is taken while the worker stands still.
    child.send_signal(signal.SIGSTOP)
    subprocess.run(["cp", "-a", str(home), str(copy)], check=True)
    child.send_signal(signal.SIGCONT)
    return child, pid, {"QUEUECTL_HOME": str(copy)}


def test_a_copied_home_recovers_its_own_copy_of_a_running_job(copied, process, tmp_path):
    _, _, environment = copied
    process("worker", "start", "--drain", env=environment, code=0)
    (job,) = process("list", "--json", env=environment).json
    assert (job["state"], job["runs"]) == ("completed", 2)
    assert (tmp_path / "in-the-copy").read_text() == "run\n"


@pytest.mark.parametrize("command", ["worker start --drain", "cancel a"])
def test_a_copied_home_leaves_the_processes_of_the_original_alone(copied, process, gate, reaches, command):
    child, pid, environment = copied
    process(*command.split(), env=environment, code=0)
    assert is_alive(pid) and child.poll() is None
    gate.open()
    done = reaches("a", "completed")
    assert (done["runs"], done.get("recoveries", 0)) == (1, 0)


# -- too often
