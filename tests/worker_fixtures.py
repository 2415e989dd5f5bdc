"""The fixtures of the tests with real workers: jobs, workers that are ready, nothing left behind.

A pytest plugin (`pytest_plugins = ["worker_fixtures"]`), so that they need no import.
"""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PROGRAM
from real_processes import ON_A_TERMINAL, Call, Gate, Terminal, processes_below, said, started_with


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """Ends, after the test, every process that belongs to its directory: workers, jobs, daemons of jobs."""
    yield
    deadline = time.monotonic() + 30
    while left := processes_below(tmp_path):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < deadline, f"processes of the test do not end: {left}"
        time.sleep(0.01)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


@pytest.fixture
def enqueue(run: Call) -> Call:
    """`enqueue("a", "exit 1", "--priority", "2")`: a job with that id and that shell line."""
    return lambda name, command, *options: run("enqueue", "--id", name, *options, "--command", command)


@pytest.fixture
def quick(run: Call) -> None:
    """Short waits, for tests whose subject is not the wait."""
    run("config", "set", "backoff_base", "0.1")
    run("config", "set", "grace_period", "0.3")


@pytest.fixture
def job(jobs: Call) -> Call:
    """`job("a")`: that job, whole, as `list --json` gives it."""
    return lambda name: jobs()[name]


@pytest.fixture
def reaches(job: Call, eventually: Call) -> Call:
    """`reaches("a", "completed")`: waits for that state and returns the job."""

    def wait(name: str, state: str, seconds: float = 30) -> Any:
        eventually(lambda: job(name)["state"] == state, seconds)
        return job(name)

    return wait


@pytest.fixture
def written(eventually: Call) -> Call:
    """`written(path)`: waits until a job has written a whole line there and returns the text."""
    return lambda path, lines=1: eventually(
        lambda: path.exists() and path.read_text().count("\n") >= lines and path.read_text()
    )


@pytest.fixture
def worker_pids(run: Call) -> Call:
    # reading: `worker list --json` is an array of objects with `pid`, as `status` shows it.
    return lambda: {worker["pid"] for worker in run("worker", "list", "--json").json}


@pytest.fixture
def worker(start: Call, worker_pids: Call, eventually: Call, nothing_left: None) -> Call:
    """`worker("--count", "2")`: a worker process that `worker list` shows already. Its jobs end with the test."""

    def call(*options: str, **more: Any) -> subprocess.Popen[bytes]:
        with started_with(signal.SIG_DFL, *more.pop("default_signals", (signal.SIGINT, signal.SIGHUP))):
            child: subprocess.Popen[bytes] = start("worker", "start", *options, **more)

        def ready() -> bool:
            assert child.poll() is None, f"the worker ended:\n{said(child)}"
            return child.pid in worker_pids()

        eventually(ready)
        return child

    return call


@pytest.fixture
def drain(process: Call) -> Call:
    """`drain()`: one worker process that runs what is there, waited for."""
    return lambda *options, code=0, **more: process("worker", "start", "--drain", *options, code=code, **more)


@pytest.fixture
def terminal(home: Path) -> Iterator[Callable[..., Terminal]]:
    """`terminal("worker", "start")`: the command as a person runs it, on a pseudo-terminal.

    `within` are words before it, such as a shell that runs it.
    """
    opened: list[Terminal] = []

    def call(*args: str, within: tuple[str, ...] = ()) -> Terminal:
        master, slave = pty.openpty()
        words = [sys.executable, "-c", ON_A_TERMINAL, *within, sys.executable, str(PROGRAM), *args]
        child = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        opened.append(Terminal(child, master))
        return opened[-1]

    yield call
    for one in opened:
        if one.child.poll() is None:
            one.child.kill()
        one.child.wait(30)
        if one.master >= 0:
            one.hang_up()


@pytest.fixture
def on_a_terminal(terminal: Call, eventually: Call, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`on_a_terminal("list")`: all that a command shows on a terminal."""

    def call(*args: str, **env: str) -> str:
        for name, value in {"TERM": "xterm-256color", **env}.items():
            monkeypatch.setenv(name, value)
        shell = terminal(*args)
        eventually(shell.ended)
        assert shell.child.returncode == 0, shell.screen()
        return str(shell.screen())

    return call
