"""How one attempt runs and ends: its exit, its time limit, its output, and what it leaves behind."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from real_processes import Call, Gate, is_alive, python_job, said

import queuectl as q

pytest_plugins = ["worker_fixtures"]
pytestmark = pytest.mark.usefixtures("nothing_left", "quick")

ONCE = ("--max-retries", "1")


def note_pid(path: Path, pid: str = "$$") -> str:
    """Shell text that writes a pid as one line into a file."""
    return f'echo "{pid}" >> {shlex.quote(str(path))}'


@pytest.fixture
def logs(start: Call) -> Call:
    """`logs("a", "--tail", "2")`: the bytes that `queuectl logs` prints."""

    def call(*args: str, code: int = 0) -> bytes:
        child = start("logs", *args)
        assert child.wait(30) == code, said(child)
        return Path(child.log).read_bytes()

    return call


# -- how an attempt ends


def test_with_an_old_c_library_a_shell_enters_the_directory(tmp_path, monkeypatch):
    class OldLibrary(ctypes.CDLL):
        def __getattr__(self, name: str) -> Any:
            if name.endswith("addchdir_np"):
                raise AttributeError(name)
            return super().__getattr__(name)

    monkeypatch.setattr(ctypes, "CDLL", OldLibrary)
    with open(tmp_path / "out", "wb+") as out:
        words = [b"sh", b"-c", b'pwd; echo "$0 $A"']
        pid = q._find_spawn()(b"/bin/sh", words, {b"A": b"b c"}, os.fsencode(tmp_path), [0, out.fileno(), 2])
        assert os.waitpid(pid, 0)[1] == 0
        out.seek(0)
        assert out.read().decode() == f"{tmp_path}\n/bin/sh b c\n"


def test_an_attempt_ends_as_its_command_does(enqueue, drain, run, jobs, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    enqueue("0", "exit 0")
    for code in (1, 126, 255):
        enqueue(str(code), f"exit {code}", *ONCE)
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM):
        enqueue(number.name, f"kill -{number.value} $$; sleep 5", *ONCE)
    enqueue("no-place", "true", "--cwd", str(place), "--max-retries", "2")
    enqueue("seven", "exit $QUEUECTL_ATTEMPT", "--max-retries", "7")
    enqueue("second", 'test "$QUEUECTL_ATTEMPT" = 2')
    place.rmdir()
    drain(code=1)
    ends = {
        name: (one["state"], one["attempts"], one["outcome"], one.get("exit_code"), one.get("signal"))
        for name, one in jobs().items()
    }
    assert ends == {
        "0": ("completed", 1, "exited", 0, None),
        **{str(code): ("dead", 1, "exited", code, None) for code in (1, 126, 255)},
        **{f"SIG{name}": ("dead", 1, "signalled", None, n) for name, n in (("KILL", 9), ("SEGV", 11), ("TERM", 15))},
        "no-place": ("dead", 2, "not_started", None, None),
        "seven": ("dead", 7, "exited", 7, None),
        "second": ("completed", 2, "exited", 0, None),
    }
    assert [past["exit_code"] for past in jobs()["seven"]["history"]] == [3, 4, 5, 6, 7]
    assert re.search("(?i)no such", run("show", "no-place").out)


def test_a_job_that_ends_with_127_is_told_how_to_keep_the_callers_path(enqueue, drain, run):
    enqueue("a", "no-such-command-anywhere", *ONCE)
    said_by_worker = drain(code=1).err
    # reading: the words "told" leave open where; `show`, `logs` or the worker's line.
    everything = run("show", "a").out + run("logs", "a").out + said_by_worker
    assert "--env PATH" in everything


def test_a_runner_that_does_not_exist_costs_no_attempt_and_status_says_why(
    run, worker, enqueue, reaches, eventually, job
):
    run("config", "set", "runner", "/no/such/runner -c")
    worker()
    enqueue("a", "true")
    # reading: a line of `status` says in the system's words that the runner is not there.
    eventually(lambda: re.search("(?i)no such file|not found|does not exist", run("status").out))
    assert job("a")["attempts"] == 0
    run("config", "set", "runner", "sh -c")
    assert reaches("a", "completed")["attempts"] == 1


NO_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_job_gets_the_bytes_that_were_enqueued_whatever_the_workers_locale(run, process, tmp_path):
    place = tmp_path / "größe"
    place.mkdir()
    (place / "läufer").symlink_to("/bin/sh")
    run("config", "set", "runner", f"{place}/läufer -c")
    run("config", "set", "on_finish", "touch häkchen")
    run("enqueue", "--cwd", str(place), "--env", "WORT=übung", "--command", 'touch grüße "$WORT"')
    process("worker", "start", "--drain", env={**NO_LOCALE, "NOT_UTF8": os.fsdecode(b"\xff")}, code=0)
    assert {name for name in os.listdir(os.fsencode(place))} == {name.encode() for name in ("grüße", "übung", "läufer")}
    assert (tmp_path / "home" / "häkchen").exists()


# -- the time limit


def test_a_job_without_a_limit_of_its_own_has_that_of_the_settings_and_is_told_how_to_get_more(
    run, enqueue, drain, job
):
    run("config", "set", "job_timeout", "0.3")
    enqueue("a", "sleep 60", *ONCE)
    said_by_worker = drain(code=1).err
    assert job("a")["outcome"] == "timed_out"
    # reading: "says so, with the command that gives it more time": in `show` or in the worker's line.
    assert "--timeout" in run("show", "a").out + said_by_worker


def test_a_job_over_its_time_limit_gets_sigterm_first(enqueue, drain, run, job):
    run("config", "set", "grace_period", "20")
    enqueue("a", "trap 'echo tidied up; exit 0' TERM; sleep 60 & wait", "--timeout", "2", *ONCE)
    drain(code=1)
    assert run("logs", "a").out == "tidied up\n"
    assert job("a")["outcome"] == "timed_out"  # though it ended with 0


def test_a_job_that_ignores_sigterm_is_killed_after_the_grace_period(enqueue, drain, job, tmp_path):
    command = f"trap '' TERM; {note_pid(tmp_path / 'pid')}; while :; do sleep 0.1; done"
    enqueue("a", command, "--timeout", "2", *ONCE)
    drain(code=1)
    assert job("a")["outcome"] == "timed_out"
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_a_stopped_job_is_ended_by_its_time_limit(enqueue, drain, job):
    enqueue("a", "kill -STOP $$", "--timeout", "0.3", *ONCE)
    drain(code=1)
    assert job("a")["outcome"] == "timed_out"


# Out of the session *and* the environment; only the output that it holds says whose it is.
KEEPS_ONLY_ITS_OUTPUT = """
import os, sys
if os.fork() == 0:
    os.setsid()
    child = "import os, sys, time; print(os.getpid(), file=open(sys.argv[1], 'w')); time.sleep(300)"
    os.execve(sys.executable, [sys.executable, "-S", "-E", "-c", child, sys.argv[1]], {})
os.wait()
"""


def test_a_job_is_not_over_before_the_last_process_that_holds_its_output_is_gone(
    enqueue, worker, job, tmp_path, written, reaches, run, eventually
):
    note = tmp_path / "pid"
    enqueue("a", python_job(tmp_path / "job.py", KEEPS_ONLY_ITS_OUTPUT, note), "--timeout", "4", *ONCE)
    worker()
    pid = int(written(note))
    assert re.search(rf"\b{pid}\b", run("show", "a").out)  # a person is told what delays the end (F5)
    assert reaches("a", "dead")["outcome"] == "timed_out"
    assert not is_alive(pid)


# -- cancel


@pytest.fixture
def cancelled(enqueue: Call, worker: Call, written: Call, run: Call, tmp_path: Path) -> Call:
    """`cancelled("a", "sleep 60")`: such a job, running, and what `cancel` answered."""

    def call(name: str, command: str) -> tuple[int, Any]:
        pid = tmp_path / f"{name}.pid"
        enqueue(name, f"{note_pid(pid)}; {command}")
        worker()
        return int(written(pid)), run("cancel", name)

    return call


def test_a_running_job_that_was_cancelled_is_in_the_dead_letter_queue_once_it_is_gone(cancelled, reaches, run):
    pid, answer = cancelled("a", "sleep 60 & wait")
    assert "stopping" in (answer.out + answer.err).lower()
    dead = reaches("a", "dead")
    assert not is_alive(pid)
    assert (dead["reason"], dead["attempts"], dead["runs"]) == ("cancelled", 1, 1)
    assert [one["id"] for one in run("dlq", "list", "--json").json] == ["a"]


def test_a_cancelled_job_stays_processing_while_it_tidies_up_and_is_dead_even_if_it_exits_with_0(
    run, cancelled, gate, written, job, reaches, tmp_path
):
    run("config", "set", "grace_period", "60")
    told = tmp_path / "told"
    tidy = f"echo told > {shlex.quote(str(told))}; {gate.wait}; exit 0"
    cancelled("a", f"trap {shlex.quote(tidy)} TERM; while :; do sleep 0.05; done")
    written(told)
    assert job("a")["state"] == "processing" and job("a")["cancelled_at"]
    run("cancel", "a", code=0)  # already being cancelled
    gate.open()
    ended = reaches("a", "dead")
    assert (ended["reason"], ended["outcome"], ended["exit_code"]) == ("cancelled", "exited", 0)


# -- the output


def test_output_is_kept_byte_for_byte_in_the_order_it_was_written(enqueue, drain, logs, tmp_path):
    every_byte = bytes(range(256)) * 3 + b"no newline at the end"
    (tmp_path / "bytes").write_bytes(every_byte)
    enqueue("a", f"echo first; echo second >&2; cat {shlex.quote(str(tmp_path / 'bytes'))}")
    drain()
    assert logs("a") == b"first\nsecond\n" + every_byte


def test_ten_megabytes_of_output_are_kept(enqueue, drain, logs, job):
    enqueue("a", "yes 0123456789012345678901234567890123456789012345678 | head -n 200000")
    drain()
    assert job("a")["state"] == "completed"
    are_the_same = logs("a") == b"0123456789012345678901234567890123456789012345678\n" * 200_000
    assert are_the_same  # a comparison in the assertion would print both


def test_of_several_runs_with_one_attempt_number_the_newest_is_shown(enqueue, drain, run, tmp_path):
    mark = shlex.quote(str(tmp_path / "mark"))
    enqueue("a", f"test -e {mark} && echo after || echo before; exit 1", *ONCE)
    drain(code=1)
    (tmp_path / "mark").touch()
    run("dlq", "retry", "a")
    drain(code=1)
    assert run("logs", "a", "--attempt", "1").out == "after\n"


def test_following_the_logs_of_a_running_job_ends_with_the_job(enqueue, gate, worker, start, job, eventually):
    enqueue("a", f"echo before; {gate.wait}; echo after")
    worker()
    eventually(lambda: job("a")["state"] == "processing")
    follower = start("logs", "a", "--follow")
    eventually(lambda: said(follower) == "before\n")
    assert follower.poll() is None
    gate.open()
    assert follower.wait(30) == 0
    assert said(follower) == "before\nafter\n"


def test_the_folder_of_the_output_is_made_again_by_the_worker_itself(enqueue, worker, reaches, run, home):
    worker()
    enqueue("a", "echo out", "--delay", "0.5")
    enqueue("b", "echo out", "--delay", "1.5")
    shutil.rmtree(home / ".queuectl" / "logs")  # any command that changes the queue would make it again
    for name in ("a", "b"):
        reaches(name, "completed")
    assert run("logs", "b").out == "out\n"


def left_by_a_purge(home: Path, id: str, run: int) -> Path:
    """The output of another job of that id, whose purge died before it removed it."""
    path = Path(q.log_path(str(home / ".queuectl" / "logs"), id, run))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("secret of another job\n")
    return path


def test_a_job_never_shows_what_another_job_of_its_id_wrote(
    run, enqueue, process, start, drain, eventually, home, tmp_path
):
    for id in ("silent", "silent-dead", "talks"):
        for number in (1, 2):
            left_by_a_purge(home, id, number)
    run("config", "set", "on_finish", f"cat >> {tmp_path}/told")
    enqueue("silent", "true")
    enqueue("silent-dead", "exit 3", *ONCE)
    enqueue("talks", "echo mine")
    follower = start("logs", "talks", "--follow")
    printed = [process("logs", "silent", "--follow", "--attempt", "1", code=None)]
    drain(code=1)
    assert follower.wait(30) == 0 and said(follower).endswith("mine\n")
    printed += [process("logs", id) for id in ("silent", "silent-dead", "talks")]
    printed += [run("dlq", "list"), run("dlq", "show", "silent-dead")]
    everything = [said(follower), (tmp_path / "told").read_text(), *(one.out for one in printed)]
    assert not any("secret" in text for text in everything)


@pytest.mark.parametrize(
    ("slot_log", "has_begun", "expected"),
    [("mine", True, "mine"), ("mine", False, "mine"), ("", False, None), ("", True, "named"), (None, False, "named")],
)
def test_recovery_gives_a_run_its_own_output_alone(tmp_path, slot_log, has_begun, expected):
    """Where the slot's log is gone, or the run had begun, the dead worker gave the log its name itself."""
    folder = str(tmp_path)
    named = Path(q.log_path(folder, "a", 1))
    named.parent.mkdir()
    named.write_text("named")
    if slot_log is not None:
        Path(q.slot_log_path(folder, "w", 0)).write_text(slot_log)
    q.keep_orphan_log((q.slot_log_path(folder, "w", 0), str(named)), 1 << 20, has_begun)
    assert (named.read_text() if named.exists() else None) == expected
    assert not Path(q.slot_log_path(folder, "w", 0)).exists()


def test_a_sweep_removes_the_logs_of_jobs_that_are_gone_from_one_folder(tmp_path):
    ids = [f"job{number}" for number in range(100)] + ["dots.3.log"]
    paths = [Path(q.log_path(str(tmp_path), id, run)) for id in ids for run in (1, 12)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    other = paths[0].parent / "not-ours"
    other.touch()
    folder = int(paths[0].parent.name, 16)
    q.sweep_logs(str(tmp_path), folder, lambda ids: set(ids) - {"job0"})
    assert {path for path in paths if not path.exists()} == set(paths[:2]) and other.exists()
    for folder in range(256):
        q.sweep_logs(str(tmp_path), folder, lambda ids: {"dots.3.log"})
    assert {path for path in paths if path.exists()} == set(paths[-2:])


# -- daemons

DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if sys.argv[1] == "silent":
        for number in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    with open(sys.argv[2] + ".tmp", "w") as file:
        print(os.getpid(), file=file)
    os.rename(sys.argv[2] + ".tmp", sys.argv[2])
    while not os.path.exists(sys.argv[3]):
        time.sleep(0.02)
    print("late", flush=True)
    time.sleep(300)
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
print("started", flush=True)
"""


@pytest.fixture
def daemon_job(tmp_path: Path, gate: Gate) -> Call:
    """`daemon_job("silent" or "talking")`: a job that leaves a daemon, which says `late` after the gate.

    `nothing_left` ends the daemon after the test.
    """
    return lambda kind: python_job(tmp_path / "daemon.py", DAEMON, kind, tmp_path / "daemon.pid", gate.path)


@pytest.mark.parametrize("kind", ["silent", "talking"])
def test_a_job_that_leaves_a_daemon_is_completed_and_the_daemon_lives_on(
    kind, enqueue, daemon_job, drain, job, tmp_path
):
    enqueue("a", daemon_job(kind))
    drain(timeout=30)
    assert job("a")["state"] == "completed"
    assert is_alive(int((tmp_path / "daemon.pid").read_text()))


def test_what_a_daemon_prints_later_is_not_in_the_output_of_the_next_job(
    enqueue, daemon_job, worker, gate, reaches, run, eventually
):
    worker("--count", "1")
    enqueue("a", daemon_job("talking"))
    reaches("a", "completed")
    enqueue("b", f"echo begun; {gate.wait}; echo ended")
    eventually(lambda: run("logs", "b", code=None).out == "begun\n")
    gate.open()
    eventually(lambda: run("logs", "a").out == "started\nlate\n")
    reaches("b", "completed")
    assert run("logs", "b").out == "begun\nended\n"


def test_a_daemon_that_holds_its_output_does_not_hold_up_a_stop(
    enqueue, daemon_job, worker, reaches, process, tmp_path
):
    child = worker()
    enqueue("a", daemon_job("talking"))
    reaches("a", "completed")
    process("worker", "stop", timeout=30)
    assert child.wait(30) == 0
    assert is_alive(int((tmp_path / "daemon.pid").read_text()))


def test_the_attempt_after_a_failure_leaves_the_daemon_of_the_first_alone(enqueue, worker, written, reaches, tmp_path):
    pid = tmp_path / "pid"
    command = f'if [ "$QUEUECTL_ATTEMPT" = 1 ]; then sleep 300 & {note_pid(pid, "$!")}; exit 1; fi; sleep 60'
    enqueue("a", command, "--timeout", "2", "--max-retries", "2")
    worker()
    reaches("a", "dead")
    # reading: what ended by itself is over with its leader; ending a later attempt does not reach its daemon.
    assert is_alive(int(written(pid)))


# -- systems without Linux's own calls

ELSEWHERE = """
import os
for name in ("waitid", "pidfd_open"):
    delattr(os, name)
queuectl._PROC = "/nonexistent"
"""


def test_jobs_run_and_time_limits_strike_where_linux_has_calls_of_its_own(enqueue, run, job, process):
    enqueue("good", "echo out")
    enqueue("bad", "exit 3", *ONCE)
    enqueue("slow", "trap '' TERM; sleep 60", "--timeout", "0.3", *ONCE)
    process("worker", "start", "--drain", "--count", "3", code=1, patch=ELSEWHERE)
    assert [job(name)["state"] for name in ("good", "bad", "slow")] == ["completed", "dead", "dead"]
    assert (job("bad")["exit_code"], job("slow")["outcome"]) == (3, "timed_out")
    assert run("logs", "good").out == "out\n"
