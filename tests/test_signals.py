"""Signals and terminals: Ctrl+C, hang-ups, closed pipes, full disks, service managers and cron."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PROGRAM
from real_processes import Call, Gate, Terminal, is_alive, kill, said, started_with

pytest_plugins = ["worker_fixtures"]
pytestmark = pytest.mark.usefixtures("nothing_left", "quick")

CTRL_C, CTRL_Z = b"\x03", b"\x1a"


@pytest.fixture
def held(enqueue: Call, gate: Gate, written: Call, tmp_path: Path) -> Call:
    """`held("a")`: a job that waits for the gate and notes a SIGINT; called again: waits for its start."""

    def call(name: str) -> Any:
        pid, hit = tmp_path / f"{name}.pid", tmp_path / f"{name}.hit"
        trap = shlex.quote(f"echo hit >> {shlex.quote(str(hit))}")
        enqueue(name, f"trap {trap} INT; echo $$ >> {shlex.quote(str(pid))}; {gate.wait}")
        return lambda: int(written(pid))

    return call


def quiet(text: str) -> str:
    """The text, once it is sure that Python itself did not complain in it."""
    for word in ("Traceback", "Exception ignored", "BrokenPipeError", "KeyboardInterrupt"):
        assert word not in text, text
    return text


# -- a worker on a terminal


@pytest.fixture
def busy_terminal(terminal: Call, held: Call, worker_pids: Call, eventually: Call) -> tuple[Terminal, int]:
    """A worker on a terminal, and the pid of the job that it runs."""
    is_running = held("a")
    shell = terminal("worker", "start")
    pid = is_running()
    eventually(lambda: shell.child.pid in worker_pids() and shell.screen())
    return shell, pid


def told_to_stop(shell: Terminal, eventually: Call) -> None:
    """Ctrl+C, typed; the worker has said something about it (the echoed ^C is not an answer)."""
    before = shell.screen()
    shell.type(CTRL_C)
    eventually(lambda: re.search(r"\w{4}", shell.screen()[len(before) :]))


def test_ctrl_c_once_lets_the_running_job_finish_and_says_so(busy_terminal, gate, eventually, job, tmp_path):
    shell, pid = busy_terminal
    told_to_stop(shell, eventually)
    assert is_alive(pid) and not shell.ended()
    gate.open()
    eventually(shell.ended)
    assert shell.child.returncode == 0, quiet(shell.screen())
    assert (job("a")["state"], job("a")["attempts"]) == ("completed", 1)
    assert not (tmp_path / "a.hit").exists(), "the job heard nothing of it"


def test_ctrl_c_ten_times_at_once_is_a_second_stop_and_no_more(busy_terminal, eventually, job, process):
    shell, pid = busy_terminal
    shell.type(CTRL_C * 10)
    eventually(lambda: "Stopping" in shell.screen())
    with contextlib.suppress(OSError):
        shell.type(CTRL_C * 10)  # a signal that is already pending counts once: ten may have been one
    eventually(shell.ended)
    assert shell.child.returncode == 130, quiet(shell.screen())
    assert not is_alive(pid)
    assert (job("a")["state"], job("a")["attempts"], job("a")["runs"]) == ("pending", 0, 1)
    process("doctor", code=0)


def test_ctrl_z_halts_the_worker_and_leaves_its_job_running_and_its_own(
    held, terminal, gate, eventually, job, enqueue, worker, reaches, process
):
    is_running = held("a")
    shell = terminal("worker", "start", within=("/bin/sh", "-mc", '"$0" "$@"; echo has-halted; read line; fg'))
    pid = is_running()
    eventually(lambda: "started" in shell.screen())
    shell.type(CTRL_Z)
    eventually(lambda: "has-halted" in shell.screen())
    enqueue("b", "true")
    other = worker()  # it looks for orphans at once, and finds none
    reaches("b", "completed")
    assert is_alive(pid) and (job("a")["state"], job("a")["runs"]) == ("processing", 1)
    other.terminate()
    assert other.wait(30) == 0
    shell.type(b"\n")
    gate.open()
    assert reaches("a", "completed")["runs"] == 1
    enqueue("c", "true")
    reaches("c", "completed")
    shell.type(CTRL_C)
    eventually(shell.ended)
    quiet(shell.screen())


def test_ctrl_z_never_halts_a_worker_while_it_holds_the_lock(worker, run, eventually):
    """The lock is taken in another thread of the worker while the signal comes: it halts once that lets go."""
    run("config", "set", "lock_timeout", "0.5")
    run("enqueue", "--file", "-", input="true\n" * 3_000)
    child = worker("--count", "2", process_group=0)  # the kernel halts no group that nobody could continue
    for _ in range(40):
        child.send_signal(signal.SIGTSTP)
        eventually(lambda: state_of(child.pid) == "T")
        run("enqueue", "true")
        child.send_signal(signal.SIGCONT)
        eventually(lambda: state_of(child.pid) != "T")
    child.terminate()
    assert child.wait(30) == 0


def state_of(pid: int) -> str:
    """A process's state as the kernel names it: T is halted."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_hanging_up_stops_the_worker_and_lets_the_running_job_finish(busy_terminal, gate, eventually, job):
    shell, pid = busy_terminal
    shell.hang_up()
    gate.open()
    eventually(shell.ended)  # though nothing can be said any more
    assert shell.child.returncode == 0
    assert (job("a")["state"], job("a")["attempts"]) == ("completed", 1)


# -- a worker without one


def test_a_sighup_that_was_ignored_at_the_start_stays_ignored(worker, enqueue, reaches):
    with started_with(signal.SIG_IGN, signal.SIGHUP):
        child = worker(default_signals=(signal.SIGINT,))
    child.send_signal(signal.SIGHUP)
    enqueue("a", "true")
    reaches("a", "completed")
    enqueue("b", "true")
    reaches("b", "completed")
    assert child.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL])
def test_a_signal_that_ends_a_job_together_with_its_workers_stop_is_not_a_failed_attempt(
    number, enqueue, worker, written, tmp_path, job
):
    note = tmp_path / "pid"
    enqueue("a", f"echo $$ >> {shlex.quote(str(note))}; sleep 300")
    child = worker(start_new_session=True)
    pid = int(written(note))
    # A service manager signals every process that it finds: the worker's group and the job's.
    os.killpg(child.pid, signal.SIGTERM)
    os.killpg(pid, number)
    assert child.wait(30) == 0
    back = job("a")
    assert (back["state"], back["attempts"], back["runs"]) == ("pending", 0, 1)


def test_a_job_that_fails_by_itself_while_its_worker_stops_is_a_failed_attempt(
    enqueue, worker, gate, written, tmp_path, job, eventually
):
    note = tmp_path / "pid"
    enqueue("a", f"echo $$ >> {shlex.quote(str(note))}; {gate.wait}; exit 3", "--max-retries", "1")
    child = worker()
    written(note)
    child.terminate()
    eventually(lambda: "Stopping" in said(child))
    gate.open()
    assert child.wait(30) == 0
    assert (job("a")["state"], job("a")["attempts"], job("a")["exit_code"]) == ("dead", 1, 3)


@pytest.fixture
def deaf_worker(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker whose stderr is a pipe that nobody reads any more."""
    words = [sys.executable, str(PROGRAM), "worker", "start"]
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr
    child.stderr.readline()
    child.stderr.close()
    yield child
    kill(child)


def test_a_worker_goes_on_when_nobody_reads_its_stderr(deaf_worker, enqueue, reaches):
    for name in ("a", "b", "c"):
        enqueue(name, "true")
        reaches(name, "completed")
    assert deaf_worker.poll() is None
    deaf_worker.terminate()
    assert deaf_worker.wait(30) == 0


# -- commands whose output nobody takes


@pytest.fixture
def many(process: Call) -> None:
    """More jobs than a pipe holds in one `list`."""
    process("enqueue", "--file", "-", input="".join(f"echo {'x' * 100} {number}\n" for number in range(2000)))


def test_list_into_head_ends_without_a_complaint(many):
    line = shlex.join([sys.executable, str(PROGRAM), "list"]) + " | head -n 1"
    done = subprocess.run(["sh", "-c", line], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert len(done.stdout.splitlines()) == 1
    # reading: whoever asked for one line got it; there is nothing to tell.
    assert quiet(done.stderr.decode()) == ""


@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["status"]])
def test_a_closed_pipe_ends_a_reading_command_with_a_documented_exit(command, many):
    child = subprocess.Popen([sys.executable, str(PROGRAM), *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout and child.stderr
    child.stdout.close()
    errors = child.stderr.read().decode()
    child.stderr.close()
    # reading: 0 (what was wanted was delivered) or 1 (failed); a pipe that is closed is no damaged storage.
    assert child.wait(30) in (0, 1), errors
    quiet(errors)


# -- wait


def test_wait_ends_with_130_on_ctrl_c_and_leaves_the_job_alone(enqueue, terminal, eventually, job):
    enqueue("a", "true")
    shell = terminal("wait", "a")
    eventually(shell.screen)  # on a terminal it shows that it waits
    shell.type(CTRL_C)
    eventually(shell.ended)
    assert shell.child.returncode == 130, quiet(shell.screen())
    quiet(shell.screen())
    assert job("a")["state"] == "pending"


def test_ctrl_c_during_worker_stop_ends_only_the_waiting(held, worker, terminal, gate, eventually, job):
    is_running = held("a")
    child = worker()
    is_running()
    shell = terminal("worker", "stop")
    eventually(lambda: "Stopping" in said(child))
    shell.type(CTRL_C)
    eventually(shell.ended)
    assert shell.child.returncode == 130, quiet(shell.screen())
    gate.open()
    assert child.wait(30) == 0  # what was asked stays asked
    assert job("a")["state"] == "completed"
