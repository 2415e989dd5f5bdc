"""What attackers from outside found, as their users meet it: through real processes, whole results compared."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import program_with
from real_processes import kill, started_with

from tests.faults.ordinary import NOBODY, ordinary

pytest_plugins = ["worker_fixtures"]
pytestmark = [
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked at through /proc"),
]

STORAGE = 3
Started = subprocess.Popen[bytes]


@pytest.fixture
def begin() -> Iterator[Callable[..., Started]]:
    """`begin(words, stdin=...)`: a process with its stderr in a pipe; killed at the test's end."""
    begun: list[Started] = []

    def call(words: list[str], **more: Any) -> Started:
        begun.append(subprocess.Popen(words, **{"stderr": subprocess.PIPE, **more}))
        return begun[-1]

    yield call
    for child in begun:
        child.kill()
        child.communicate(timeout=30)


def end_of(child: Started, seconds: float = 30) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a process that must end by itself."""
    out, err = child.communicate(timeout=seconds)
    assert b"Traceback" not in err, err.decode()
    return child.returncode, (out or b"").decode(), err.decode()


def program(*words: str) -> list[str]:
    return [*program_with(None), *words]


# The program with its `os` replaced: `before(name, args)` and `after(name, args)` are called around each effect.
STAND_IN = """
import os, signal, subprocess
signal.signal(signal.SIGINT, signal.default_int_handler)
before = after = lambda name, args: None
exec(sys.argv.pop(1))
class Os:
    def __getattr__(self, name):
        def call(*args, **more):
            before(name, args)
            answer = getattr(os, name)(*args, **more)
            after(name, args)
            return answer
        return call if name in ("write", "pwrite", "truncate", "unlink", "rename", "fsync") else getattr(os, name)
queuectl.os = Os()
"""


def stand_in(part: str, *words: str) -> list[str]:
    return [*program_with(STAND_IN), part, *words]


# -- Non-blocking standard streams, as Node, ssh and some terminals leave them


def rests(child: Started) -> bool:
    """Whether the process has ended, or sleeps and uses no processor time for a while."""
    seen = set()
    for _ in range(10):
        if child.poll() is not None:
            return True
        words = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        seen.add((words[0], *words[11:13]))
        time.sleep(0.02)
    return len(seen) == 1 and seen.pop()[0] == "S"


def unread(pipe: int) -> int:
    """How many bytes a pipe holds."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4), sys.byteorder)


@pytest.mark.parametrize("first", [b"", b"true\necho tw"], ids=["nothing at first", "half a line at first"])
@pytest.mark.parametrize("option", ["--file=-", "--stream"])
def test_what_comes_late_through_a_non_blocking_stdin_is_accepted_whole(option, first, begin, jobs, eventually):
    there, here = os.pipe()
    os.set_blocking(there, False)
    child = begin(program("enqueue", option), stdin=there, stdout=subprocess.DEVNULL)
    os.write(here, first)
    eventually(lambda: unread(there) == 0 and rests(child))
    os.write(here, b"true\necho two\n# a comment\necho three"[len(first) :])
    os.close(here)
    os.close(there)
    code, _, err = end_of(child)
    assert (code, err) == (0, "")
    assert [job["command"] for job in jobs().values()] == ["true", "echo two", "echo three"]


MANY = 8000


@pytest.mark.parametrize("words", [("list", "--json"), ("logs", "a"), ("enqueue", "--file", "jobs.txt")], ids=" ".join)
def test_a_result_larger_than_a_non_blocking_pipe_is_printed_whole(words, tmp_path, begin, run, process, eventually):
    lines = tmp_path / "jobs.txt"
    lines.write_text("true\n" * MANY)
    if words[0] == "list":
        run("enqueue", "--file", str(lines))
    elif words[0] == "logs":
        run("enqueue", "--id", "a", f"seq 1 {MANY * 4}")
        process("worker", "start", "--drain")
    there, here = os.pipe()
    os.set_blocking(here, False)
    child = begin(program(*words), stdin=subprocess.DEVNULL, stdout=here, cwd=tmp_path)
    os.close(here)
    eventually(lambda: rests(child))
    with open(there, "rb") as pipe:
        printed = pipe.read().decode()
    code, _, err = end_of(child)
    assert (code, err) == (0, "")
    whole = run("list", "--ids") if words[0] == "enqueue" else run(*words)
    assert len(printed) > 65536 and printed == whole.out


# -- Interrupted


INTERRUPTED_AT_THE_JOURNAL = """
def after(name, args):
    if "write" in name and os.readlink(f"/proc/self/fd/{args[0]}").endswith("/journal.jsonl"):
        globals()["after"] = lambda name, args: None
        signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize(
    "words, printed",
    [
        (("enqueue", "--id", "new", "true"), "new\n"),
        (("rerun", "waiting"), "[a-z0-9]{12}\n"),
        (("cancel", "waiting"), "Job waiting is cancelled.\n"),
        (("dlq", "retry", "dead"), "Job dead is pending.*\n"),
        (("dlq", "purge", "dead", "--yes"), "1 job purged.\n"),
    ],
    ids=["enqueue", "rerun", "cancel", "dlq retry", "dlq purge"],
)
def test_ctrl_c_at_the_journals_write_tells_what_was_stored(words, printed, begin, run, jobs):
    run("enqueue", "--id", "waiting", "true")
    run("enqueue", "--id", "dead", "true")
    run("cancel", "dead")
    before = jobs()
    code, out, err = end_of(begin(stand_in(INTERRUPTED_AT_THE_JOURNAL, *words), stdout=subprocess.PIPE))
    assert jobs() != before
    assert code == 130 and re.fullmatch(printed, out) and "nterrupted" in err


INTERRUPTED_AT_EFFECT = """
left = {number}
def after(name, args):
    global left
    left -= 1
    if left == 0:
        signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize(
    "words", [("enqueue", "--command", "true", "--id"), ("config", "set", "on-finish")], ids=" ".join
)
def test_ctrl_c_at_any_effect_of_a_change_tells_whether_it_is_stored(words, begin, run):
    """Also where it comes while the result is printed, or the arrays are written anew."""
    for number in itertools.count(1):
        part = INTERRUPTED_AT_EFFECT.format(number=number)
        code, out, err = end_of(begin(stand_in(part, *words, f"a{number}"), stdout=subprocess.PIPE))
        if code == 0:
            break  # it has fewer effects
        stored = run("list", "--ids").out + run("config", "get", "on-finish").out
        is_stored = f"a{number}" in stored.split()
        assert (code, bool(out), "nterrupted" in err) == (130, is_stored, is_stored), err
    assert number > 5


def test_ctrl_c_ends_a_stream_that_waits_for_its_next_line_also_after_a_refused_one(begin, jobs):
    with started_with(signal.SIG_DFL, signal.SIGINT):
        child = begin(program("enqueue", "--stream"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdin.write(b'{"id": "a", "command": "true"}\n' * 2)
    child.stdin.flush()
    assert b"In line 2" in child.stderr.readline()
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 130 and list(jobs()) == ["a"]


@pytest.mark.parametrize("module", ["json", "click", "filelock"])
def test_ctrl_c_during_the_imports_prints_no_traceback(module, home, tmp_path, begin):
    stand_ins = tmp_path / "modules"
    stand_ins.mkdir()
    (stand_ins / f"{module}.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    with started_with(signal.SIG_DFL, signal.SIGINT):
        child = begin(program("list"), env={**os.environ, "PYTHONPATH": str(stand_ins)}, stdin=subprocess.DEVNULL)
    code, _, err = end_of(child)
    assert code in (130, -signal.SIGINT) and len(err.splitlines()) <= 1


# -- Locales


@pytest.fixture(params=["C", "Latin-1"])
def locale(request, tmp_path) -> dict[str, str]:
    """The environment of a program whose locale cannot write UTF-8."""
    env = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    if request.param == "Latin-1":
        words = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(tmp_path / "latin1")]
        with contextlib.suppress(OSError):
            subprocess.run(words, capture_output=True)
        if not (tmp_path / "latin1").exists():
            pytest.skip("no Latin-1 locale can be made here")
        env |= {"LC_ALL": "latin1", "LOCPATH": str(tmp_path)}
    return env


def test_arguments_are_utf_8_whatever_the_locale(locale, process, jobs):
    process("enqueue", "--id", "a", "--tag", "größe", "touch grüße", env=locale)
    assert (jobs()["a"]["command"], jobs()["a"]["tags"]) == ("touch grüße", ["größe"])


def test_a_job_gets_the_bytes_that_were_enqueued_whatever_the_locale_of_its_worker(locale, process, run, home, begin):
    run("enqueue", "--id", "a", "--cwd", str(home), "--env", "WORD=größe", "touch grüße $WORD")
    code, _, err = end_of(begin(program("worker", "start", "--drain"), env={**os.environ, **locale}))
    assert code == 0 and "fault" not in err
    assert {"grüße", "größe"} <= set(os.listdir(home)) and run("show", "a", "--json").json["runs"] == 1


def test_an_argument_that_is_not_utf_8_is_refused_whatever_the_locale(locale, begin, jobs):
    for words in (["touch gr\udcfc"], ["--command", "touch gr\udcfc"], ["--tag", "\udcfc", "true"]):
        code, _, err = end_of(begin(program("enqueue", *words), env={**os.environ, **locale}))
        assert code == 2 and "Error: " in err
    assert not jobs()


def test_a_job_in_json_is_utf_8_whatever_the_locale(locale, process, run):
    run("enqueue", "--id", "a", "touch grüße → €")
    for words in (["list", "--json"], ["show", "a", "--json"]):
        assert process(*words, env=locale).out == run(*words).out


# -- A worker in the background

WAITS_FOR_CHILDREN = """
class Popen(subprocess.Popen):
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.wait(30)
subprocess.Popen = Popen
"""


@pytest.mark.parametrize("command, code", [(None, 0), ("true", 0), ("exit 1", 1)])
def test_a_detached_drain_that_is_over_at_once_answers_with_its_exit_code(command, code, home, begin, run):
    if command:
        run("enqueue", "--max-retries", "1", command)
    child = begin(stand_in(WAITS_FOR_CHILDREN, "worker", "start", "--detach", "--drain"))
    answer, _, err = end_of(child)
    assert (answer, "did not start" in err) == (code, False)


# -- The folder of the logs


def test_the_folder_of_the_logs_may_be_a_link_to_a_directory_of_the_same_owner(home, tmp_path, run, process):
    (home / ".queuectl").mkdir(0o700)
    (tmp_path / "large disk").mkdir()
    (home / ".queuectl" / "logs").symlink_to(tmp_path / "large disk")
    run("enqueue", "--id", "a", "echo here")
    process("worker", "start", "--drain")
    assert run("logs", "a").out == "here\n" and len(list((tmp_path / "large disk").rglob("*.log"))) == 1


@pytest.mark.parametrize("target", ["nothing", pytest.param("a directory of another user", marks=pytest.mark.root)])
def test_the_folder_of_the_logs_as_a_link_to_anything_else_is_refused(target, home, tmp_path, run, begin):
    run("enqueue", "--id", "a", "echo here")
    there = tmp_path / "there"
    if target != "nothing":
        there.mkdir()
        os.chown(there, NOBODY, NOBODY)
    (home / ".queuectl" / "logs").rmdir()
    (home / ".queuectl" / "logs").symlink_to(there)
    code, _, err = end_of(begin(program("worker", "start", "--drain")))
    assert code == STORAGE and "logs" in err
    assert not there.exists() if target == "nothing" else os.listdir(there) == []


def test_the_folder_of_the_workers_is_no_link(home, tmp_path, run):
    (tmp_path / "there").mkdir()
    run("enqueue", "--id", "a", "true")
    (home / ".queuectl" / "workers").rmdir()
    (home / ".queuectl" / "workers").symlink_to(tmp_path / "there")
    assert "workers" in run("enqueue", "true", code=STORAGE).err and not os.listdir(tmp_path / "there")


# -- What a killed worker leaves


@pytest.mark.root
@pytest.mark.parametrize("end", ["completed", "dead"])
def test_a_process_of_another_user_in_a_killed_workers_run_is_named_until_it_ends(end, begin, eventually):
    other = NOBODY - 1
    with ordinary() as person:
        if person is None or not (setpriv := shutil.which("setpriv")):
            pytest.skip("nobody can be an ordinary user here")
        copy = shutil.copy(setpriv, person.folder / "other")
        os.chown(copy, other, other)
        os.chmod(copy, 0o4755)
        env = {**person.env, "QUEUECTL_HOME": str(person.folder / "home")}
        here: dict[str, Any] = {"env": env, "cwd": person.folder}
        if subprocess.check_output([*person.words, copy, "id", "-u"], **here) != b"%d\n" % other:
            pytest.skip("programs of another user do not run as that user here")

        def call(*words: str) -> Started:
            words = (*person.words, person.python, "-m", "queuectl", *words)
            return begin([*words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **here)

        def answer(*words: str) -> Any:
            return json.loads(end_of(call(*words, "--json"))[1])

        end_of(call("config", "set", "grace_period", "0.3"))
        os.mkdir(person.folder / "theirs")
        os.chown(person.folder / "theirs", other, other)
        run_it = f"exec ./other --ruid {other} -- sh -c 'echo $$ > theirs/pid; exec sleep 300'"
        end_of(call("enqueue", "--id", "a", "--timeout", "0", "--command", f"[ -e ran ] || {{ : > ran; {run_it}; }}"))
        first = call("worker", "start")
        pid_file = person.folder / "theirs" / "pid"
        pid = int(eventually(lambda: pid_file.exists() and pid_file.read_text()))
        try:
            eventually(lambda: answer("status")["workers"])
            kill(first)
            second = call("worker", "start")
            eventually(lambda: second.pid in [worker["pid"] for worker in answer("status")["workers"]])
            listed = {worker["pid"]: bool(worker.get("dead")) for worker in answer("status")["workers"]}
            alive = re.findall(r"^workers: .*", end_of(call("status"))[1], re.MULTILINE)
            why = re.findall(rf"dead; waiting for process {pid} of ", end_of(call("show", "a"))[1])
            assert answer("show", "a")["state"] == "processing"
            assert (listed, alive, len(why)) == ({first.pid: True, second.pid: False}, ["workers: 1"], 1)
            assert f"pid {first.pid}, dead, ran a\n" in end_of(call("status"))[1]
            if end == "dead":  # which waits for no process that nobody here may end
                assert end_of(call("cancel", "a"))[:2] == (0, "Job a is running: stopping it.\n")
        finally:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: answer("show", "a")["state"] == end)


def test_a_worker_inside_a_killed_workers_job_is_ended_by_another_worker(home, gate, worker, run, eventually, reaches):
    run("config", "set", "grace_period", "0.2")
    inner = shlex.join(program("worker", "start", "--tag", "inner"))
    command = f"[ -e ran ] || {{ : > ran; {gate.wait}; exec {inner}; }}"
    run("enqueue", "--id", "a", "--timeout", "0", "--cwd", str(home), "--command", command)
    outer = worker("--not-tag", "inner")
    name = eventually(lambda: [one["name"] for one in run("worker", "list", "--json").json if one["running"]])[0]
    kill(outer)
    gate.open()

    def is_locked() -> bool:
        with open(home / ".queuectl" / "workers" / name) as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        return True

    eventually(lambda: {one["pid"] for one in run("worker", "list", "--json").json} - {outer.pid})
    with contextlib.suppress(AssertionError):  # the worker inside has found it first
        eventually(is_locked, 2)
    worker("--not-tag", "inner")
    assert reaches("a", "completed")["recoveries"] == 1
