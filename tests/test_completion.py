"""`completion`: the script of each shell, tried in that shell. A shell that is not installed is named in the skip."""

from __future__ import annotations

import os
import pty
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PROGRAM
from real_processes import Call, Terminal, kill

import queuectl as q

SHELLS = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"], "fish": ["fish"]}
CASES = [
    ("queuectl show nightly-b", "queuectl show nightly-backup"),
    ("queuectl list --state proc", "queuectl list --state processing"),
    ("queuectl list --rev", "queuectl list --reverse"),
    ("queuectl dlq pur", "queuectl dlq purge"),
    ("queuectl enqueue --ea", "queuectl enqueue --each"),
    ("queuectl config get keep_e", "queuectl config get keep_env"),
    ("queuectl dlq retry nightly-d", "queuectl dlq retry nightly-dead"),
    ("queuectl cancel nightly-", "queuectl cancel nightly-backup"),
]


@pytest.fixture
def queue(run: Call, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jobs, one of them dead, and `queuectl` on the PATH."""
    run("enqueue", "--id", "nightly-backup", "true")
    run("enqueue", "--id", "nightly-dead", "true")
    run("cancel", "nightly-dead")
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "queuectl"
    program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, str(PROGRAM)])} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(params=["bash", "zsh"])
def shell(request: pytest.FixtureRequest, queue: None, eventually: Call) -> Iterator[Terminal]:
    """That shell, with the script loaded as the README says."""
    name = request.param
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    master, slave = pty.openpty()
    child = subprocess.Popen(SHELLS[name], stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    shell = Terminal(child, master)
    ready = "autoload -Uz compinit && compinit -D" if name == "zsh" else "bind 'set bell-style none'"
    shell.type(f'PS1="> "; {ready}; eval "$(queuectl completion {name})"; echo rea""dy\n'.encode())
    eventually(lambda: "ready" in shell.screen())
    yield shell
    kill(child)
    shell.hang_up()


def test_a_tab_completes_ids_states_options_and_commands(shell, eventually):
    for typed, whole in CASES:
        shell.shown = b""
        # What the shell has made of the line is seen by running it as the words of an echo.
        shell.type(f"{typed}\t\x01echo \x05 = end\n".encode())
        eventually(lambda whole=whole: f"{whole} = end\r\n" in shell.screen())


@pytest.mark.parametrize("typed, whole", CASES)
def test_fish_completes_ids_states_options_and_commands(queue, typed, whole):
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    script = f"queuectl completion fish | source; complete -C {shlex.quote(typed)}"
    done = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True, timeout=60)
    offered = [line.partition("\t")[0] for line in done.stdout.splitlines()]
    assert offered == [whole.split()[-1]], done


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "BASH"])
def test_the_script_names_the_program(run, shell):
    assert "_QUEUECTL_COMPLETE" in run("completion", shell).out


def complete(process: Call, line: str, kind: str = "plain") -> list[str]:
    """What a shell is offered at the end of that line; all of it is of that kind."""
    env = {"_QUEUECTL_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    offered = [word.split(",", 1) for word in process(env=env).lines if word]
    assert {one[0] for one in offered} <= {kind}
    return [one[1] for one in offered]


@pytest.mark.parametrize(
    "line, offered",
    [
        ("queuectl show ", ["nightly-dead", "nightly-backup"]), ("queuectl cancel ", ["nightly-backup"]),
        ("queuectl retry ", ["nightly-dead"]), ("queuectl dlq show night", ["nightly-dead"]),
        ("queuectl logs nothing-like-it", []), ("queuectl wait ü", []),
        ("queuectl config get max", ["max_retries"]), ("queuectl config set job-t", ["job_timeout"]),
    ],
)  # fmt: skip
def test_ids_and_settings_are_those_that_the_command_takes(process, queue, line, offered):
    assert complete(process, line) == offered


def test_files_complete_after_two_dashes(process):
    assert complete(process, "queuectl enqueue -- ls /et", kind="file") == ["/et"]


def test_a_queue_that_cannot_be_read_completes_nothing_and_says_nothing(process, queue, home):
    (home / "jobs.json").write_text("damaged")
    assert complete(process, "queuectl show ") == []


def test_the_home_on_the_line_is_the_one_that_is_looked_at(process, queue, tmp_path):
    assert complete(process, f"queuectl --home {tmp_path / 'none'} show ") == []


def test_a_completion_looks_at_a_bounded_number_of_records(run, home, monkeypatch):
    run("enqueue", "--file", "-", input="".join(f'{{"id": "job{n}", "command": "true"}}\n' for n in range(30)))
    monkeypatch.setattr(q, "RECENT_MAX", 10)
    store = q.open_store(str(home), print)
    store.read()
    assert q.newest_ids(store, "", ("pending",)) == [f"job{n}" for n in range(29, 19, -1)]
    assert q.newest_ids(store, "job20", ("pending",)) == ["job20"]
    assert q.newest_ids(store, "job1", ("pending",)) == q.newest_ids(store, "", ("dead",)) == []
