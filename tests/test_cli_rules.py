"""The rules that hold for every command: help, where the home is, output that cannot be written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PROGRAM

# ---- help ----


@pytest.mark.parametrize("group", [[], ["dlq"], ["config"], ["worker"]], ids=" ".join)
def test_a_group_without_a_command_shows_its_help_on_stderr(run, group):
    answer = run(*group, code=2)
    assert (answer.out, answer.err) == ("", run(*group, "--help").out)


def test_logs_help_warns_of_a_job_that_opens_dev_stderr(run):
    assert "/dev/stderr" in run("logs", "--help").out


# ---- the home ----


def test_the_home_option_beats_the_environment(run, home, tmp_path):
    run("--home", str(tmp_path / "other"), "enqueue", "--id", "a", "true")
    assert run("list", "--ids").out == "" and run("--home", str(tmp_path / "other"), "list", "--ids").out == "a\n"


def test_the_current_directory_is_never_the_home(process, tmp_path):
    for name in ("jobs.json", "dlq.json"):
        (tmp_path / name).write_text("[\n]\n")
    process("enqueue", "true", cwd=tmp_path)
    assert (tmp_path / "jobs.json").read_text() == "[\n]\n"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`installed("enqueue", "true")`: a copy of the program in `tmp_path/"place"`, with no home named."""
    # `process` runs the program where it lies, beside the committed stores, so this is its own call.
    place = tmp_path / "place"
    place.mkdir(mode=0o700)
    shutil.copy(PROGRAM, place)
    (tmp_path / "user").mkdir(mode=0o700)
    env = {key: value for key, value in os.environ.items() if key not in ("QUEUECTL_HOME", "XDG_CONFIG_HOME")}
    env["HOME"] = str(tmp_path / "user")

    def call(*args: str) -> str:
        program = [sys.executable, str(place / PROGRAM.name), *args]
        return subprocess.run(program, capture_output=True, text=True, env=env, check=True, timeout=60).stdout

    return call


@pytest.mark.parametrize("mark", ["config.json", "jobs.json", "dlq.json", ".queuectl"])
def test_a_checkout_is_its_own_home(installed, tmp_path, mark):
    if mark == ".queuectl":
        (tmp_path / "place" / mark).mkdir(mode=0o700)
    else:
        (tmp_path / "place" / mark).write_text("{}\n" if mark == "config.json" else "[\n]\n")
    installed("enqueue", "--id", "a", "true")
    assert '"a"' in (tmp_path / "place" / "jobs.json").read_text()


def test_a_program_that_lies_alone_uses_the_users_own_directory(installed, tmp_path):
    installed("enqueue", "--id", "a", "true")
    (found,) = [path for path in (tmp_path / "user").rglob("jobs.json")]
    assert found.parent.name == "queuectl" and not (tmp_path / "place" / "jobs.json").exists()


# ---- output that cannot be written ----


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


@FULL
def test_an_id_that_could_not_be_printed_is_told_in_the_error(run, home):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, str(PROGRAM), "enqueue", "--id", "job-7", "true"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 3 and "Error:" in done.stderr and "job-7" in done.stderr
    assert run("list", "--ids").out == "job-7\n"


@FULL
@pytest.mark.parametrize("arguments, code", [(["enqueue"], 2), (["show", "nosuch"], 1), (["--home", "/", "x"], 2)])
def test_an_error_that_cannot_be_printed_keeps_its_exit_code(arguments, code, home):
    with open("/dev/full", "wb") as full:
        program = [sys.executable, str(PROGRAM), *arguments]
        assert subprocess.run(program, stdout=subprocess.DEVNULL, stderr=full, timeout=60).returncode == code


@FULL
def test_a_stop_that_could_not_be_told_is_told_in_the_error(process, home):
    process("worker", "start", "--detach")
    with open("/dev/full", "wb") as full:
        program = [sys.executable, str(PROGRAM), "worker", "stop"]
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 3 and "1 worker process (1 thread) stopped" in done.stderr
