"""What the owner will try first: his demo, word for word, and the five scenarios, through the CLI alone."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SOURCE
from real_processes import Call, kill, meeting, seconds_between, started_with, stored, stored_ids

pytest_plugins = ["worker_fixtures"]
pytestmark = pytest.mark.usefixtures("nothing_left")


# -- the owner's demo


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The project as a fresh clone has it: the program beside its empty stores."""
    path = tmp_path / "checkout"
    path.mkdir(mode=0o700)
    shutil.copy(SOURCE, path)
    for name in ("jobs.json", "dlq.json"):
        (path / name).write_text("[]\n")
    return path


@pytest.fixture
def demo(checkout: Path) -> Iterator[Call]:
    """`demo("status")`: `python queuectl.py status` in the checkout; `background=True`: left running."""
    environment = {key: value for key, value in os.environ.items() if key != "QUEUECTL_HOME"}
    begun: list[subprocess.Popen[bytes]] = []

    def call(*args: str, background: bool = False) -> Any:
        words = [sys.executable, "queuectl.py", *args]
        if not background:
            done = subprocess.run(
                words, cwd=checkout, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
            )
            assert done.returncode == 0, f"{args}: exit {done.returncode}\n{done.stderr.decode()}"
            return done.stdout.decode()
        with started_with(signal.SIG_DFL, signal.SIGINT), (checkout.parent / "worker.log").open("wb") as log:
            begun.append(
                subprocess.Popen(words, cwd=checkout, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )
        return begun[-1]

    yield call
    for child in begun:
        kill(child)


def first_words(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line.strip()]


# Slow: two and four seconds of real backoff, and each command compiles the program, as it does for the owner.
def test_the_owners_demo_works_word_for_word(checkout, demo, eventually):
    commands = {"job1": "echo test", "job2": "echo two", "job3": "no-such-command-anywhere"}
    for number, (name, command) in enumerate(commands.items(), 1):
        assert demo("enqueue", f'{{"id":"{name}","command":"{command}"}}') == f"{name}\n"
        assert stored_ids(checkout, "jobs.json") == list(commands)[:number]

    worker = demo("worker", "start", "--count", "1", background=True)
    eventually(lambda: stored_ids(checkout, "dlq.json") == ["job3"], 40)
    worker.send_signal(signal.SIGINT)
    # reading: a worker that was asked once to stop, and did, has done its work: exit 0.
    assert worker.wait(30) == 0

    completed = first_words(demo("list", "--state", "completed"))
    assert "job1" in completed and "job2" in completed and "job3" not in completed
    assert re.search(r"^workers: 0\b", demo("status"), re.M)
    counts = {"pending": 0, "processing": 0, "completed": 2, "failed": 0, "dead": 1}
    assert json.loads(demo("status", "--json"))["jobs"] == counts

    demo("config", "set", "max-retries", "5")
    assert stored(checkout, "config.json")["max_retries"] == 5
    demo("config", "set", "backoff-base", "3")
    assert re.search(r"max[-_]retries\W+5\b", demo("config", "show"))

    assert "job3" in first_words(demo("dlq", "list"))
    (dead,) = stored(checkout, "dlq.json")
    assert (dead["state"], dead["attempts"], dead["exit_code"]) == ("dead", 3, 127)
    waits = [
        seconds_between(before["finished_at"], after["started_at"])
        for before, after in zip(dead["history"], dead["history"][1:], strict=False)
    ]
    # Instants are stored in milliseconds, each cut or rounded for itself.
    assert len(waits) == 2 and waits[0] > 1.99 and waits[1] > 3.99

    demo("dlq", "retry", "job3")
    assert stored(checkout, "dlq.json") == []
    back = next(job for job in stored(checkout, "jobs.json") if job["id"] == "job3")
    assert (back["state"], back["attempts"]) == ("pending", 0)


def test_the_three_files_are_true_within_a_second_under_a_worker(home, run, enqueue, worker, eventually, quick):
    worker()
    enqueue("good", "echo test")
    enqueue("bad", "exit 1", "--max-retries", "1")
    run("config", "set", "max_retries", "7")
    assert stored(home, "config.json")["max_retries"] == 7

    def files_are_true() -> bool:
        alive = {job["id"]: job["state"] for job in stored(home, "jobs.json") or []}
        dead = {job["id"]: job["state"] for job in stored(home, "dlq.json") or []}
        return (alive, dead) == ({"good": "completed"}, {"bad": "dead"})

    eventually(files_are_true)  # a second, on a machine that has time for it


# -- the five scenarios


def test_a_basic_job_completes(enqueue, drain, job, run):
    enqueue("a", "echo test")
    drain()
    assert (job("a")["state"], job("a")["attempts"], run("logs", "a").out) == ("completed", 1, "test\n")


def test_a_failing_job_retries_with_backoff_and_lands_in_the_dead_letter_queue(run, enqueue, drain, home):
    run("config", "set", "backoff_base", "0.3")
    enqueue("a", "echo trying; exit 3")
    drain(code=1)
    (dead,) = run("dlq", "list", "--json").json
    assert [past["attempt"] for past in dead["history"]] == [1, 2, 3]
    first, second, third = dead["history"]
    assert seconds_between(first["finished_at"], second["started_at"]) > 0.29
    assert seconds_between(second["finished_at"], third["started_at"]) > 0.08
    assert (stored_ids(home, "jobs.json"), stored_ids(home, "dlq.json")) == ([], ["a"])


def test_three_hundred_jobs_over_three_worker_processes_run_exactly_once_each(process, run, worker, tmp_path, jobs):
    ran = tmp_path / "ran"
    note = f'echo "$QUEUECTL_JOB_ID $QUEUECTL_WORKER" >> {shlex.quote(str(ran))}'
    # The first three jobs wait for each other: so all three processes certainly take part.
    commands = [f"{meeting(tmp_path / 'meeting', 3)}; {note}"] * 3 + [note] * 297
    lines = [json.dumps({"id": f"j{number}", "command": text}) for number, text in enumerate(commands)]
    run("pause")
    process("enqueue", "--file", "-", input="\n".join(lines) + "\n")
    for _ in range(3):
        worker("--count", "1")
    run("resume")
    process("wait", "--all", timeout=60)
    names, workers = zip(*(line.split() for line in ran.read_text().splitlines()), strict=True)
    assert Counter(names) == Counter(f"j{number}" for number in range(300))
    assert len(set(workers)) == 3
    assert {(job["state"], job["attempts"], job["runs"]) for job in jobs().values()} == {("completed", 1, 1)}


def test_after_all_workers_were_killed_mid_job_a_restart_completes_everything(
    enqueue, worker, drain, gate, tmp_path, jobs, eventually, quick
):
    folder = shlex.quote(str(tmp_path))
    for number in range(8):
        enqueue(f"j{number}", f"echo x >> {folder}/start.j{number}; {gate.wait}; echo x >> {folder}/end.j{number}")
    workers = [worker("--count", "2") for _ in range(2)]
    eventually(lambda: len(list(tmp_path.glob("start.*"))) == 4)
    for child in workers:
        kill(child)
    gate.open()
    drain("--count", "2")
    ended = jobs()
    assert {job["state"] for job in ended.values()} == {"completed"}
    assert {job["attempts"] for job in ended.values()} == {1}
    assert sorted(job["runs"] for job in ended.values()) == [1, 1, 1, 1, 2, 2, 2, 2]
    assert len(list(tmp_path.glob("end.*"))) == 8


def test_jobs_survive_a_full_restart(run, process, enqueue, worker, jobs, reaches):
    run("config", "set", "backoff_base", "600")
    run("config", "set", "backoff_max", "600")
    enqueue("done", "echo done")
    enqueue("dead", "exit 1", "--max-retries", "1")
    enqueue("failed", 'test "$QUEUECTL_ATTEMPT" = 2')
    enqueue("later", "true", "--delay", "10m")
    first = worker()
    for name, state in (("done", "completed"), ("dead", "dead"), ("failed", "failed")):
        reaches(name, state)
    run("pause")
    enqueue("waiting", "true", "--priority", "3", "--tag", "t")
    process("worker", "stop")
    assert first.wait(30) == 0
    before = jobs()
    assert {name: one["state"] for name, one in before.items()} == {
        "done": "completed",
        "dead": "dead",
        "failed": "failed",
        "later": "pending",
        "waiting": "pending",
    }

    second = worker()
    process("worker", "stop")
    assert second.wait(30) == 0
    assert {job["id"]: job for job in process("list", "--json").json} == before

    run("resume")
    run("retry", "failed")
    third = worker()
    reaches("waiting", "completed")
    assert reaches("failed", "completed")["attempts"] == 2
    third.terminate()
    assert third.wait(30) == 0
