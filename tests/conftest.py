"""What every test stands on: a fresh home, the CLI as a user calls it, and real processes.

This file alone knows how QueueCTL is called. When the program's API moves, it changes and no test does.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click.testing
import pytest

SOURCE = Path(__file__).resolve().parent.parent / "queuectl.py"
sys.path.insert(0, str(SOURCE.parent))


from tests.faults.real import compiled  # noqa: E402

_folder = Path(tempfile.mkdtemp(prefix="queuectl-"))
atexit.register(shutil.rmtree, _folder, ignore_errors=True)
PROGRAM = compiled(SOURCE, _folder)  # a program to run, in a folder to import it from


def program_with(text: str | None) -> list[str]:
    """Words that start the program; where there is a text, after that has run, in which `queuectl` is imported."""
    if text is None:
        return [sys.executable, str(PROGRAM)]
    script = f"import sys\nsys.path.insert(0, sys.argv.pop(1))\nimport queuectl\n{text}\nqueuectl.main()"
    return [sys.executable, "-c", script, str(PROGRAM.parent)]


HANG_S = 60.0  # no command takes that long in any test, except a worker

# What mostly waits, the longest first: with -n these begin at once, and nobody waits for them at the end.
LONGEST = (
    "test_storm", "test_soak", "test_load", "test_limits", "test_adversaries", "test_state_machine", "test_outside",
    "test_scenarios", "test_recovery",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "maxschedchunk"):  # pytest-xdist: one test at a time, in the order below
        config.option.maxschedchunk = 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {f"{name}.py": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))
    for item in items:
        if os.geteuid() != 0 and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root: run it with -m root"))


@dataclass(frozen=True)
class Result:
    """What a command answered: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout as one JSON value (fails where it is anything else)."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def _checked(result: Result, code: int | None, args: tuple[str, ...]) -> Result:
    for text in (result.out, result.err):
        assert "Traceback (most recent call last)" not in text, f"{args} printed a traceback:\n{text}"
    if code is not None:
        assert result.code == code, f"{args}: exit {result.code}, not {code}\n{result.out}\n{result.err}"
    if result.code not in (0, 124) and result.code in (1, 2, 3) and code in (1, 2, 3):
        assert result.err.strip(), f"{args}: exit {result.code} without a word on stderr"
    return result


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """An error where the block takes longer, instead of a test run that never ends."""

    def too_long(*_: Any) -> None:
        pytest.fail(f"not done within {seconds:g} s")  # no Exception, which the program would answer

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def back_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that starts within this process leaves it in the job's directory."""
    monkeypatch.chdir(".")


@pytest.fixture(autouse=True)
def stores_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Closes each store that a test made: when the test drops it, else at its end.

    A user's process closes its descriptors by ending; this one would keep those of thousands of tests.
    """
    import queuectl
    from tests.storekit import close_store

    made: weakref.WeakSet[queuectl.Store] = weakref.WeakSet()
    init = queuectl.Store.__init__

    def remember(store: queuectl.Store, *args: Any, **more: Any) -> None:
        init(store, *args, **more)
        made.add(store)

    monkeypatch.setattr(queuectl.Store, "__init__", remember)
    monkeypatch.setattr(queuectl.Store, "__del__", close_store, raising=False)
    yield
    for store in list(made):
        close_store(store)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh queue directory, in QUEUECTL_HOME for everything this test starts."""
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("QUEUECTL_HOME", str(path))
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return path


@pytest.fixture
def run(home: Path) -> Callable[..., Result]:
    """`run("enqueue", "true")`: one command inside this process, through Click's runner.

    `code` is the exit code it must have (None: any); `input` is stdin (str or bytes).
    """
    import queuectl

    def call(*args: str, code: int | None = 0, input: str | bytes | None = None) -> Result:  # noqa: A002
        with _at_most(HANG_S):
            answer = click.testing.CliRunner().invoke(queuectl.cli, list(args), input=input)
        if answer.exception and not isinstance(answer.exception, SystemExit):
            raise answer.exception
        return _checked(Result(answer.exit_code, answer.stdout, answer.stderr), code, args)

    return call


@pytest.fixture
def process(home: Path) -> Callable[..., Result]:
    """`process("wait", "a")`: the same as a real process, waited for (`timeout` seconds at most).

    `patch` is text that runs in the process first, `queuectl` imported; it may take the first words from `sys.argv`.
    """

    def call(
        *args: str,
        code: int | None = 0,
        input: str | bytes | None = None,  # noqa: A002
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = HANG_S,
        patch: str | None = None,
    ) -> Result:
        stdin = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            [*program_with(patch), *args],
            input=stdin if stdin is not None else b"",
            capture_output=True,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            timeout=timeout,
        )
        result = Result(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))
        return _checked(result, code, args)

    return call


@pytest.fixture
def start(home: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """`start("worker", "start")`: a real process left running; killed at the test's end.

    Its stdout and stderr go to the file named by its attribute `log` (a Path). `patch` is as for `process`.
    """
    begun: list[subprocess.Popen[bytes]] = []

    def call(
        *args: str, env: dict[str, str] | None = None, patch: str | None = None, **more: Any
    ) -> subprocess.Popen[bytes]:
        log = tmp_path / f"process-{len(begun)}.log"
        with log.open("wb") as out:
            child = subprocess.Popen(
                [*program_with(patch), *args],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                **more,
            )
        child.log = log  # type: ignore[attr-defined]
        begun.append(child)
        return child

    yield call
    for child in begun:
        if child.poll() is None:
            child.kill()
        child.wait(30)


@pytest.fixture
def jobs(run: Callable[..., Result]) -> Callable[[], dict[str, dict[str, Any]]]:
    """`jobs()["a"]["state"]`: every job of the home by id, as `list --json` gives it."""
    return lambda: {job["id"]: job for job in run("list", "--json").json}


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """`eventually(lambda: ...)`: polls until it is truthy and returns that; fails after `seconds`."""

    def poll(condition: Callable[[], Any], seconds: float = 30) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            answer = condition()
            if answer:
                return answer
            assert time.monotonic() < deadline, f"did not come true within {seconds} s"
            time.sleep(0.02)

    return poll
