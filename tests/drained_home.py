"""A home that real workers have been through, for tests that need jobs in every resting state.

Built once per test process, by two workers, and shared: `drained` is for reading only, `drained_copy` is a
copy in the test's own home that may be changed. A test module asks for both with
`pytest_plugins = ["drained_home"]`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


def _fill(run, process, start, jobs, eventually) -> None:
    run("config", "set", "backoff-base", "0.01")
    run("enqueue", "--id", "ok", "--tag", "report", "echo one; echo two >&2; echo three")
    run("enqueue", "--id", "quiet", "true")
    run("enqueue", "--id", "raw", r"printf '\377\033[31mred\033[0m\n'")
    run("enqueue", "--id", "boom", "--max-retries", "1", "echo first words; echo boom went off; exit 3")
    run("enqueue", "--id", "twice", "--max-retries", "2", "echo attempt $QUEUECTL_ATTEMPT; exit 4")
    run("enqueue", "--id", "killed", "--max-retries", "1", "kill -9 $$")
    run("enqueue", "--id", "stubborn", "--no-retry-on", "2,64-78", "exit 65")
    run("enqueue", json.dumps({"id": "picky", "command": "exit 7", "no_retry_on": [6, 7]}))
    run("enqueue", "--id", "gone", "--delay", "1h", "echo never")
    run("cancel", "gone")
    run("enqueue", "--id", "once", "--unique=nightly", "true")
    run("enqueue", "--id", "chatty", "for i in 1 2 3 4 5; do echo line $i; done")
    process("worker", "start", "--drain", "--count", "2", code=1)
    run("config", "set", "backoff-base", "1000")  # longer than any run of the tests
    run("enqueue", "--id", "flaky", "--unique=hourly", "echo almost; exit 5")
    worker = start("worker", "start")
    eventually(lambda: jobs()["flaky"]["state"] == "failed")
    process("worker", "stop")
    worker.wait(30)
    run("enqueue", "--id", "waiting", "echo waiting")
    run("enqueue", "--id", "later", "--at", "2099-01-01T00:00:00Z", "echo later")


@pytest.fixture
def drained(home, run, process, start, jobs, eventually, tmp_path_factory, monkeypatch) -> Path:
    """The shared home, in QUEUECTL_HOME. Never change it: other tests read it too."""
    shared = tmp_path_factory.getbasetemp() / "drained-home"
    ready = shared.with_suffix(".ready")
    monkeypatch.setenv("QUEUECTL_HOME", str(shared))
    if not ready.exists():
        assert not shared.exists(), "the drained home could not be built: see the first test that asked for it"
        shared.mkdir(mode=0o700)
        _fill(run, process, start, jobs, eventually)
        ready.touch()
    return shared


@pytest.fixture
def drained_copy(drained: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same jobs in this test's own home, free to be changed."""
    shutil.copytree(drained, home, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.wake"))
    monkeypatch.setenv("QUEUECTL_HOME", str(home))
    return home
