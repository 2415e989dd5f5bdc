"""The load test: 64 enqueuers at once beside four worker processes; none is refused, none lost.

python -m pytest tests/faults/test_load.py -rP             256 enqueues by 64 processes; longest wait printed
python -m pytest tests/faults/test_load.py -rP -m slow     2,000 commands, 64 at a time
"""

from __future__ import annotations

import concurrent.futures
import json
import subprocess
import sys
import time

import pytest

from tests.faults.real import PROGRAM, Queue

ENQUEUERS, EACH, LONG, WORKERS = 64, 4, 2000, 4

# Processes that enqueue again and again through the command line, their start-up paid once for all: a harder rush than
# commands. They begin together, when the last of them is there.
RUSH = r"""
import os, sys
folder, processes, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sys.path.insert(0, folder)
import time, queuectl

def enqueue(name):
    for number in range(count):
        sys.argv[1:] = ["enqueue", "--id", f"e{name}.{number}", "true"]
        began = time.monotonic()
        try:
            queuectl.cli()
        except SystemExit as end:
            if end.code:
                return end.code
        os.write(1, b"waited %.3f\n" % (time.monotonic() - began))  # whole, as all share the pipe
    return 0

start, gate = os.pipe()
for name in range(processes):
    if os.fork() == 0:
        os.close(gate)
        os.read(start, 1)
        os._exit(enqueue(name))
os.close(gate)
sys.exit(max(os.waitstatus_to_exitcode(os.wait()[1]) & 255 for _ in range(processes)))
"""


@pytest.fixture
def queue(tmp_path):
    made = Queue(PROGRAM, tmp_path)
    made.call("config", "set", "lock_timeout", "60")  # a slow machine refuses nobody either
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
    words = [sys.executable, "-c", RUSH, str(queue.program.parent), str(ENQUEUERS), str(EACH)]
    done = subprocess.run(words, env=queue.env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    waits = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("waited")]
    ids = [line for line in done.stdout.splitlines() if not line.startswith("waited")]
    assert len(ids) == EACH * ENQUEUERS
    all_ran_once(queue, ids, waits)


@pytest.mark.slow
def test_a_rush_of_enqueue_commands_is_refused_nothing_and_loses_nothing(queue):
    def enqueue(number):
        began = time.monotonic()
        return queue.call("enqueue", "true").strip(), time.monotonic() - began

    with concurrent.futures.ThreadPoolExecutor(ENQUEUERS) as pool:
        done = list(pool.map(enqueue, range(LONG)))
    all_ran_once(queue, [id for id, _ in done], [waited for _, waited in done])
