"""`enqueue --wait`: the job's output as it comes and its exit code, as if the command ran here."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import PROGRAM, Result

pytest_plugins = ["worker_fixtures"]
pytestmark = pytest.mark.usefixtures("nothing_left", "quick")


def test_the_id_goes_to_stderr_and_the_output_to_stdout(worker, process):
    worker()
    assert process("enqueue", "--wait", "--id", "a", "echo one; echo two >&2") == Result(0, "one\ntwo\n", "a\n")


@pytest.mark.parametrize("command, code", [("exit 7", 7), ("kill -9 $$", 137), ("nosuchcommand", 127)])
def test_the_exit_code_is_the_jobs_own(worker, process, command, code):
    worker()
    assert process("enqueue", "--wait", "--id", "a", "--max-retries", "1", command, code=code).err.startswith("a\n")


def test_the_output_of_every_attempt_is_shown(worker, process):
    worker()
    command = "echo attempt $QUEUECTL_ATTEMPT; [ $QUEUECTL_ATTEMPT = 3 ]"
    assert process("enqueue", "--wait", command).out == "attempt 1\nattempt 2\nattempt 3\n"


def test_output_comes_while_the_job_runs(worker, start, eventually, gate):
    worker()
    waiting = start("enqueue", "--wait", "--id", "a", f"echo early; {gate.wait}; echo late")
    eventually(lambda: "early\n" in waiting.log.read_text())
    assert waiting.poll() is None
    gate.open()
    eventually(lambda: waiting.poll() is not None)
    assert (waiting.returncode, waiting.log.read_text()) == (0, "a\nearly\nlate\n")


def test_a_duplicate_follows_the_job_that_is_there(worker, run, start, reaches, eventually, gate):
    worker()
    run("enqueue", "--id", "a", "--unique=k", "--max-retries=1", f"{gate.wait}; echo done; exit 4")
    reaches("a", "processing")
    waiting = start("enqueue", "--wait", "--unique=k", "true")
    eventually(lambda: waiting.log.read_text() == "a\n")
    gate.open()
    eventually(lambda: waiting.poll() is not None)
    assert waiting.returncode == 4 and waiting.log.read_text().startswith("a\ndone\n")


def test_a_job_that_dies_without_running_is_exit_1(start, run, eventually, jobs):
    waiting = start("enqueue", "--wait", "--id", "a", "true")
    eventually(lambda: "a" in jobs())
    run("cancel", "a")
    eventually(lambda: waiting.poll() is not None)
    assert waiting.returncode == 1 and "cancelled" in waiting.log.read_text()


def test_ctrl_c_leaves_the_job_in_the_queue_and_says_so(terminal, worker, reaches, eventually, gate):
    worker()
    waiting = terminal("enqueue", "--wait", "--id", "a", f"echo early; {gate.wait}")
    eventually(lambda: "early" in waiting.screen())
    waiting.type(b"\x03")
    eventually(waiting.ended)
    assert waiting.child.returncode == 130 and "job a stays in the queue" in waiting.screen()
    gate.open()
    reaches("a", "completed")


def test_on_a_terminal_it_says_that_no_worker_is_there(terminal, eventually):
    waiting = terminal("enqueue", "--wait", "--id", "a", "true")
    eventually(lambda: "queuectl worker start" in waiting.screen())


def test_a_reader_that_goes_away_is_told_that_the_job_is_there(worker, home):
    worker()
    words = [sys.executable, str(PROGRAM), "enqueue", "--wait", "--id", "a", "echo x"]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.close()
    child.stdout = None
    _, err = child.communicate(timeout=30)
    assert child.returncode == 1 and b"job a stays in the queue" in err
