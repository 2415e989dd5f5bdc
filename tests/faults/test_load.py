"""The load test: 64 enqueuers at once beside four worker processes; none is refused, none lost.

python -m pytest tests/faults/test_load.py -rP             2,000 enqueues by 64 processes; longest wait printed
python -m pytest tests/faults/test_load.py -rP -m slow     2,000 commands, 64 at a time
"""

from __future__ import annotations

import concurrent.futures
import json
import subprocess
import sys
import time

import pytest
from conftest import PROGRAM

from tests.faults.real import Queue

ENQUEUERS, ENQUEUES, WORKERS = 64, 2000, 4

# A process that enqueues again and again through the command line, its start-up paid once: a harder rush than commands.
ENQUEUER = """
import sys, time
folder, name, count = sys.argv[1:]
sys.path.insert(0, folder)
import queuectl
sys.stdin.read()
for number in range(int(count)):
    sys.argv[1:] = ["enqueue", "--id", f"{name}.{number}", "true"]
    began = time.monotonic()
    try:
        queuectl.cli()
    except SystemExit as end:
        if end.code:
            sys.exit(end.code)
    print("waited", time.monotonic() - began, flush=True)
"""


@pytest.fixture
def queue(tmp_path):
    made = Queue(PROGRAM, tmp_path)
    workers = [made.worker(2) for _ in range(WORKERS)]
    try:
        while len(json.loads(made.call("worker", "list", "--json"))) < WORKERS:
            time.sleep(0.05)
        yield made
        made.call("worker", "stop")
    finally:
        for child in workers:
            child.kill()
            child.wait()


def all_ran_once(queue, ids, waits):
    queue.call("wait", *ids)
    jobs = queue.jobs()
    assert set(jobs) == set(ids)
    assert {(job["state"], job["runs"]) for job in jobs.values()} == {("completed", 1)}
    queue.call("doctor")
    assert queue.faults_said() == []
    print(f"{len(ids)} enqueues by {ENQUEUERS} at once, none refused, none lost; longest wait {max(waits):.2f} s")


def test_a_rush_of_enqueues_is_refused_nothing_and_loses_nothing(queue):
    each = ENQUEUES // ENQUEUERS + 1
    children = [
        subprocess.Popen(
            [sys.executable, "-c", ENQUEUER, str(PROGRAM.parent), f"e{number}", str(each)],
            env=queue.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(ENQUEUERS)
    ]  # fmt: skip
    ids, waits = [], []
    with concurrent.futures.ThreadPoolExecutor(ENQUEUERS) as pool:
        for child, (out, err) in zip(children, pool.map(lambda one: one.communicate("", 120), children), strict=True):
            assert child.returncode == 0, err
            waits += [float(line.split()[1]) for line in out.splitlines() if line.startswith("waited")]
            ids += [line for line in out.splitlines() if not line.startswith("waited")]
    assert len(ids) == each * ENQUEUERS
    all_ran_once(queue, ids, waits)


@pytest.mark.slow
def test_a_rush_of_enqueue_commands_is_refused_nothing_and_loses_nothing(queue):
    def enqueue(number):
        began = time.monotonic()
        return queue.call("enqueue", "true").strip(), time.monotonic() - began

    with concurrent.futures.ThreadPoolExecutor(ENQUEUERS) as pool:
        done = list(pool.map(enqueue, range(ENQUEUES)))
    all_ran_once(queue, [id for id, _ in done], [waited for _, waited in done])
