"""Kind 6 of the fault tests: what the wrapper counts is all that happens, and real errors do what injected ones do.

    python -m pytest tests/faults/test_outside.py -rP             six scenarios, counts printed
    python -m pytest tests/faults/test_outside.py -rP -m slow     all of them, and more than 100 points with real errors

Needs `strace` and the right to trace one's own processes; where these are missing it is skipped.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import queuectl
from tests.faults.test_points import NAMES, walk


def can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            words = ["strace", "-e", "trace=none", "-p", str(other.pid)]
            with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as tracer:
                assert tracer.stderr is not None
                first = tracer.stderr.readline()
                tracer.terminate()
                return "attached" in first
        finally:
            other.kill()


pytestmark = pytest.mark.skipif(not can_trace(), reason="no strace here, or it may not attach")
FEW = ("first start", "enqueue by the command line", "worker start, claim and report", "recovery", "fold", "hand edit")


def test_strace_sees_the_effects_that_were_counted_and_real_errors_are_met():
    walk("outside.py", FEW)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", NAMES)
def test_strace_sees_the_effects_that_were_counted_in_every_scenario(scenario):
    walk("outside.py", [scenario], "--points", "4", "--seed", "1")


def test_a_worker_killed_between_fork_and_exec_of_a_job_does_not_let_it_run_twice_at_a_time(home, run, eventually):
    job = "exec 9>>held; flock -n 9 || echo overlap >>seen; echo begin >>seen; sleep 1; echo end >>seen"
    run("enqueue", "--id", "a", "--cwd", str(home), "--command", job)
    program = [sys.executable, queuectl.__file__, "worker", "start"]
    late = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=execve", "-e", "inject=execve:delay_enter=3000000"]
    with subprocess.Popen([*late, *program], stderr=subprocess.DEVNULL) as tracer:
        eventually(lambda: run("show", "a", "--json").json["state"] == "processing", 60)
        os.kill(run("status", "--json").json["workers"][0]["pid"], signal.SIGKILL)
        early = not Path(home, "seen").exists()
        subprocess.run([*program, "--drain"], check=True, stderr=subprocess.DEVNULL, timeout=60)
        tracer.wait(60)
    assert early, "the worker was killed too late to show anything"
    assert run("show", "a", "--json").json["state"] == "completed"
    assert "overlap" not in (seen := Path(home, "seen").read_text().split()) and seen[-1] == "end"
