"""What storms and critical reads found, each in its smallest form, with real processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import PROGRAM
from real_processes import Call, is_alive, kill, said, seconds_between

import queuectl

pytest_plugins = ["worker_fixtures"]
pytestmark = pytest.mark.usefixtures("nothing_left", "quick")


def test_a_stderr_that_nobody_reads_does_not_stop_the_worker(home, run, reaches):
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, True)
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        run("enqueue", "--file", "-", input="\n".join(f'{{"id": "j{n}", "command": "true"}}' for n in range(120)))
        words = [sys.executable, str(PROGRAM), "worker", "start", "--count", "2"]
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=writer)
        reaches("j119", "completed", seconds=60)
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0
    finally:
        os.close(reader)
        os.close(writer)


def test_jobs_that_print_nothing_leave_no_log_with_several_threads(home, run, drain):
    run("enqueue", "--file", "-", input="true\n" * 600)
    drain("--count", "4")
    assert list((home / ".queuectl" / "logs").rglob("*.log")) == []


# Slow: a queue that is not folded within a second must be large.
def test_a_worker_whose_journal_was_cut_short_ends_its_jobs_and_leaves(
    home, enqueue, worker, gate, reaches, written, run, tmp_path
):
    note = tmp_path / "note"
    run("enqueue", "--file", "-", "--delay", "1h", input="true\n" * 6000)  # a large queue is not folded at once
    child = worker("--count", "2")
    enqueue("a", f"echo run >> {note}; {gate.wait}", "--timeout", "0")
    written(note)
    journal = home / ".queuectl" / "journal.jsonl"
    data = journal.read_bytes()
    os.truncate(journal, data.rindex(b"\n", 0, -1) + 1)
    enqueue("b", "true")  # wakes the worker, which sees that its journal is shorter
    assert child.wait(30) == 3
    assert "was cut while in use" in said(child)
    assert note.read_text() == "run\n"
    run("doctor")


def alone(folder: Path) -> str:
    """Shell text that notes in `folder`/note whether another run holds the job's lock; true from the second run on."""
    lock, note = (shlex.quote(str(folder / name)) for name in ("lock", "note"))
    told = f"exec 9>{lock}; flock -n 9 && echo alone >> {note} || echo overlap >> {note}"
    return f"{told}; [ $(wc -l < {note}) -gt 1 ]"


@pytest.mark.parametrize(
    ("words", "closed"),
    [
        *((words, ">&- 2>&- <&-") for words in ("list", "enqueue true", "logs a", "purge", "enqueue --stream")),
        *((words, ">&-") for words in ("list", "enqueue true", "logs a")),
        *((words, "<&-") for words in ("purge", "enqueue --stream")),
        ("purge", "2>&-"),
    ],
)
def test_a_closed_standard_stream_ends_in_no_traceback(words, closed, home, enqueue):
    enqueue("a", "true")
    line = f"{shlex.quote(sys.executable)} {shlex.quote(str(PROGRAM))} {words} {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert done.returncode in (0, 2)
    assert "Traceback" not in done.stderr


BROKEN_CHORES = """
queuectl.TICK_S = 0.05  # no need to wait a second for the next fault
look, times = queuectl.Worker._look, iter(range(3))
def broken(worker):
    if next(times, None) is not None:
        raise LookupError("broken")
    look(worker)
queuectl.Worker._look = broken
"""


def test_a_fault_in_the_main_threads_chores_ends_no_worker(enqueue, job, process):
    enqueue("a", "true")
    assert "LookupError('broken')" in process("worker", "start", "--drain", patch=BROKEN_CHORES).err
    assert job("a")["state"] == "completed"


@pytest.mark.parametrize("error", ["queuectl.StoreError('broken')", "OSError(5, 'broken')"])
def test_what_fails_at_a_workers_end_is_said_once_after_the_last_words(error, enqueue, process, run):
    enqueue("a", "true")
    patch = f"def broken(*args): raise {error}\nqueuectl.has_died_since = broken"
    done = process("worker", "start", "--drain", code=3, patch=patch)
    assert done.err.count("Error: ") == 1
    assert "a completed" in done.err.partition("Error: broken")[0]
    assert run("worker", "list").out == ""


def test_slots_whose_runner_fails_at_the_same_moment_are_all_told_that_the_host_is_at_fault(monkeypatch):
    """Each had looked the runner up before the first of them failed and dropped it."""
    executor = queuectl.Executor(os.environb)

    def refused(*args: object) -> int:
        executor._runners.clear()  # as another slot does that failed a moment before
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(executor, "_spawn", refused)
    with pytest.raises(queuectl.HostFault, match="could not be started"):
        executor.start(0, ("sh", "-c"), "true", b"/", {}, 1, (), 0)


def test_an_attempt_that_begins_while_others_are_ended_does_not_disturb_the_main_thread():
    executor = queuectl.Executor({})

    class Begins:
        @property
        def ending(self) -> None:
            executor.running[1] = executor.running[0]

    executor.running[0] = Begins()  # type: ignore[assignment]
    executor.kill_late(1.0)


def test_an_attempt_that_was_reaped_is_signalled_no_more(monkeypatch):
    """Its pid may be that of another process by then."""
    executor, signals = queuectl.Executor({}), []
    script = "trap 'exit 3' TERM; echo; while :; do sleep 0.1; done"
    child = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None and child.stdout.readline() == b"\n"
    attempt = executor.running[0] = queuectl.Attempt(child.pid, queuectl.Trace("lock/w/reaped/1", ()), 0.0)
    executor.end(attempt, queuectl.Outcome("timed_out"), 60.0)
    assert executor.wait(0) == queuectl.Outcome("timed_out", 3)
    monkeypatch.setattr(os, "killpg", lambda *signal: signals.append(signal))
    executor.running[0] = attempt  # as while its fence is not over
    executor.kill_late(attempt.kill_at + 1)
    executor.end(attempt, queuectl.Outcome("handed_back"), 0.0)
    assert signals == []
    child.returncode = 3  # it was reaped above
    child.stdout.close()


@pytest.fixture
def orphans(home: Path, enqueue: Call, worker: Call, written: Call, tmp_path: Path) -> queuectl.Store:
    """A store with two jobs, a and b, whose worker was killed; none of their processes lives."""
    for name in "ab":
        enqueue(name, f"echo $$ > {tmp_path}/{name}; echo output; exec sleep 60", "--timeout", "0")
    child = worker("--count", "2")
    pids = [int(written(tmp_path / name)) for name in "ab"]
    kill(child)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    store = queuectl.open_store(str(home), print)
    store.follow()
    return store


def all_back(recovery: queuectl.Recovery, eventually: Call) -> None:
    def step() -> bool:
        with contextlib.suppress(queuectl.StoreError, OSError):
            recovery.step()
        return not recovery.store.processing and recovery.store.home.worker_names() == []

    eventually(step)
    assert recovery.fences == {}


@pytest.mark.parametrize("name", ["recover", "keep_orphan_log", "boot_id", "sweep_slot_logs"])
def test_what_fails_once_for_one_orphan_holds_up_no_other_and_is_tried_again(orphans, monkeypatch, eventually, name):
    real = getattr(queuectl, name)
    failed: list[str] = []

    def fails_once(*args: object) -> object:
        if not failed:
            failed.append(name)
            raise OSError(errno.EIO, "injected")
        return real(*args)

    monkeypatch.setattr(queuectl, name, fails_once)
    all_back(queuectl.Recovery(orphans, "", print), eventually)
    assert failed


@pytest.mark.parametrize("stuck", ["a", "b"])  # whichever is looked at first
def test_an_orphan_that_cannot_be_given_back_holds_up_no_other(orphans, monkeypatch, eventually, stuck):
    recovery, recover = queuectl.Recovery(orphans, "", print), queuectl.recover

    def cannot(store: queuectl.Store, orphan: queuectl.Job, excused: bool) -> queuectl.Job | None:
        if orphan.id == stuck:
            raise queuectl.StoreError("not this one")
        return recover(store, orphan, excused)

    def step() -> bool:
        with contextlib.suppress(queuectl.StoreError):
            recovery.step()
        return set(orphans.processing) == {stuck}

    with monkeypatch.context() as patch:
        patch.setattr(queuectl, "recover", cannot)
        patch.setattr(queuectl.Fence, "step", lambda fence: True)  # both are gone at the same look
        eventually(step)
    all_back(recovery, eventually)


def test_a_dead_workers_file_that_was_cut_keeps_no_job(orphans, eventually):
    (name,) = orphans.home.worker_names()
    path = Path(orphans.home.workers_dir) / name
    path.write_bytes(path.read_bytes().partition(b"\n")[0])
    all_back(queuectl.Recovery(orphans, "", print), eventually)


def test_a_log_that_cannot_be_kept_does_not_keep_the_job(orphans, eventually):
    for name in "ab":
        folder = Path(queuectl.log_path(orphans.home.logs_dir, name, 1)).parent
        folder.touch()  # a file where the folder should be
    all_back(queuectl.Recovery(orphans, "", print), eventually)


def test_a_finder_that_cannot_finish_lets_another_one_and_says_that_the_worker_is_dead(
    orphans, monkeypatch, eventually
):
    (name,) = orphans.home.worker_names()
    stuck = queuectl.Recovery(orphans, "", print)
    with monkeypatch.context() as patch:
        patch.setattr(queuectl, "_is_log_held", lambda path: True)  # as where a process may not be ended
        stuck.step()
        assert stuck.is_ending and len(stuck.fences) == 2
    fd = orphans.home.lock_dead_worker(name)
    assert fd is not None and fd >= 0
    info = orphans.home.read_worker(name)
    os.close(fd)
    assert info.header["dead"] is True
    assert len(info.rows) == 2
    other = queuectl.open_store(orphans.home.path, print)
    other.follow()
    all_back(queuectl.Recovery(other, "", print), eventually)
    orphans.follow()
    stuck.step()
    assert not stuck.is_ending


def test_a_run_that_this_process_descends_from_is_not_over_and_is_not_ended(monkeypatch):
    child = subprocess.Popen(["sleep", "60"], env={"QUEUECTL_RUN": "lock/w/spared/1"})
    try:
        fence = queuectl.Fence(queuectl.Trace("lock/w/spared/1", ()), 0.0)
        monkeypatch.setattr(queuectl, "_ancestors", lambda: {os.getpid(), child.pid})
        assert not any([fence.step() for _ in range(3)]) and fence.living == [child.pid]
        assert child.poll() is None
    finally:
        kill(child)


def test_a_fence_that_cannot_find_the_ancestors_looks_again(monkeypatch):
    fence = queuectl.Fence(queuectl.Trace("lock/w/unseen/1", ()), 0.0)
    with monkeypatch.context() as patch:

        def no_descriptors() -> set[int]:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        patch.setattr(queuectl, "_ancestors", no_descriptors)
        assert not any([fence.step() for _ in range(3)])
    assert [fence.step() for _ in range(2)] == [False, True]


@pytest.mark.parametrize("is_empty", [False, True])
def test_without_proc_the_group_is_ended_and_the_job_comes_back(orphans, monkeypatch, eventually, tmp_path, is_empty):
    """Also where /proc is there but empty, as a sandbox may leave it."""
    proc = tmp_path / "proc"
    if is_empty:
        proc.mkdir()
    monkeypatch.setattr(queuectl, "_PROC", str(proc))
    job = orphans.processing["a"]
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    (name,) = orphans.home.worker_names()
    fd = orphans.home.lock_dead_worker(name)
    assert fd is not None
    lines = (orphans_file := Path(orphans.home.workers_dir) / name).read_bytes().split(b"\n")
    row = queuectl.encode_json({"job": job.id, "run": 1, "session": child.pid, "start": 0})
    lines[1 + (job.slot or 0)] = row.ljust(255)
    orphans_file.write_bytes(b"\n".join(lines))
    os.close(fd)
    threading.Thread(target=child.wait, daemon=True).start()  # as init reaps it
    all_back(queuectl.Recovery(orphans, "", print), eventually)
    assert child.returncode == -signal.SIGTERM


def test_without_proc_a_job_over_its_limit_ends(enqueue, process, job):
    enqueue("a", "sleep 60", "--timeout", "0.2", "--max-retries", "1")
    process("worker", "start", "--drain", code=1, patch="queuectl._PROC = '/nonexistent'")
    assert (job("a")["state"], job("a")["outcome"]) == ("dead", "timed_out")


def test_a_process_of_the_session_that_outlives_its_leader_is_ended_with_it(
    enqueue, worker, written, run, reaches, tmp_path
):
    """Nothing but its session tells that it belongs to the job."""
    note = tmp_path / "pid"
    stays = f'trap "" TERM; echo $$ > {note}; while :; do sleep 0.1; done'
    enqueue("a", f"env -i sh -c {shlex.quote(stays)} > /dev/null 2>&1 & wait", "--timeout", "0")
    worker()
    pid = int(written(note))
    run("cancel", "a")
    reaches("a", "dead")
    assert not is_alive(pid)


def test_a_session_whose_number_is_anothers_by_now_is_left_alone():
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        trace = queuectl.Trace("mark", (), child.pid, queuectl.boot_clock_s())
        fence = queuectl.Fence(trace, 0.0)
        fence.look()
        assert fence.living == [child.pid]
        fence.trace = queuectl.Trace("mark", (), child.pid, queuectl.boot_clock_s() - 100)  # ours had begun long before
        fence.look()
        assert fence.living == []
    finally:
        kill(child)


WAIT_FAILS = """
import os, time
note = sys.argv.pop(1)
queuectl.TICK_S = 0.05  # so that what begins too early does so long before the grace period is over
wait, times = queuectl.Executor.wait, iter(range(2))
def fails(executor, slot):
    if next(times, None) is not None:
        while not os.path.exists(note):
            time.sleep(0.01)
        raise LookupError("broken")
    return wait(executor, slot)
queuectl.Executor.wait = fails
"""


# Slow: the grace period must outlast a busy machine, or a run that begins too early would find itself alone.
def test_what_a_fault_of_ours_left_running_is_ended_before_its_job_runs_again(run, enqueue, job, process, tmp_path):
    run("config", "set", "grace_period", "3")
    note = tmp_path / "note"
    enqueue("a", f"trap '' TERM; {alone(tmp_path)} || while :; do sleep 0.1; done")
    done = process(str(note), "worker", "start", "--drain", patch=WAIT_FAILS)
    assert (job("a")["state"], set(note.read_text().split())) == ("completed", {"alone"}), done.err


THREADS_REFUSED = """
import threading
start, allowed = threading.Thread.start, iter(range(int(sys.argv.pop(1))))
def refuse(thread):
    if next(allowed, None) is None:
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = refuse
"""


@pytest.mark.parametrize("allowed", range(4))
def test_a_worker_that_gets_too_few_threads_says_so_and_leaves_no_job_behind(allowed, enqueue, jobs, run, process):
    for name in "abc":
        enqueue(name, "sleep 0.2")
    done = process(str(allowed), "worker", "start", "--count", "3", code=1, patch=THREADS_REFUSED)
    assert "Error: The system starts no more threads" in done.err, done.err
    assert {job["state"] for job in jobs().values()} <= {"pending", "completed"}
    assert run("worker", "list").out == ""


FIRST_STARTS_FAIL = """
import errno, os
name, error = sys.argv.pop(1), eval(sys.argv.pop(1))
class Executor(queuectl.Executor):
    def __init__(self, *args):
        super().__init__(*args)
        real, refused = getattr(self, name), iter(range(2))
        def refuse(*args):
            if next(refused, None) is None:
                return real(*args)
            raise error
        setattr(self, name, refuse)
queuectl.Executor = Executor
"""


# Slow: two pauses of a second are what it is about.
@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("_spawn", "OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))", "could not be started"),
        ("start", "LookupError('broken')", "a fault in the worker"),
    ],
)
def test_what_is_not_the_jobs_fault_stops_the_claims_for_a_while_and_costs_no_attempt(
    name, error, reason, enqueue, job, process
):
    enqueue("a", "true")
    done = process(name, error, "worker", "start", "--drain", patch=FIRST_STARTS_FAIL)
    assert (job("a")["state"], job("a")["attempts"], job("a")["runs"]) == ("completed", 1, 3)
    lines = [line for line in done.err.splitlines() if "handed back" in line or "Trouble" in line]
    assert len([line for line in lines if line.startswith("Trouble: not claiming") and reason in line]) == 1, lines
    first, second = (entry["started_at"] for entry in job("a")["history"][:2])
    assert seconds_between(first, second) > 0.5, lines  # no busy loop of claims: it looks again a second later
