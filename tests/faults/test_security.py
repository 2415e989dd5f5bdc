"""What is protected against whom: terminals, paths, planted links, other users. README's table names these tests.

python -m pytest tests/faults/test_security.py -rPs
"""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import queuectl
from tests.faults.ordinary import ordinary

pytest_plugins = ["worker_fixtures"]

NASTY = "\033]0;owned\007\033[2J\x9b31m\r\x08\u202edrow\u2066 end"


def raw_controls(text: str) -> list[str]:
    return [line for line in text.split("\n") if not line.isprintable()]


# -- Terminals


@pytest.fixture
def nasty_home(run, home, tmp_path):
    """A home in which everything that a user may choose would drive a terminal."""
    folder = tmp_path / NASTY
    folder.mkdir()
    job = {"command": f"printf {shlex.quote(NASTY)}; echo; exit 1", "tags": ["red"], "unique": NASTY}
    run("enqueue", json.dumps({**job, "id": "fails", "max_retries": 1, "env": {"PATH": NASTY}, "cwd": str(folder)}))
    run("enqueue", json.dumps({**job, "id": "nowhere", "unique": "x", "cwd": f"/{NASTY}", "max_retries": 1}))
    run("enqueue", json.dumps({**job, "id": "waits", "unique": "y", "max_retries": 1}))
    run("config", "set", "on_dead", f"true # {NASTY}")
    return home


def test_nothing_of_a_job_reaches_the_terminal_raw(nasty_home, process, run):
    assert raw_controls(process("worker", "start", "--drain", code=1).err) == []
    for words in (
        ["list"], ["show", "fails"], ["show", "nowhere", "waits"], ["status"], ["stats"], ["stats", "--by", "tag"],
        ["stats", "--by", "command"], ["dlq", "list"], ["dlq", "show", "fails"], ["config", "show"], ["worker", "list"],
        ["doctor"], ["cancel", NASTY], ["show", NASTY], ["logs", NASTY], ["wait", "fails"], ["list", "--state", NASTY],
        ["enqueue", "--id", NASTY, "true"], ["enqueue", "{" + NASTY], ["enqueue", json.dumps({NASTY: 1})],
        ["enqueue", "--timeout", NASTY, "true"], ["config", "set", NASTY, "1"], ["config", "set", "log_max", NASTY],
        ["--home", f"/nowhere/{NASTY}", "enqueue", "true"], ["enqueue", f"--{NASTY}", "true"], [NASTY],
    ):  # fmt: skip
        answer = run(*words, code=None)
        assert raw_controls(answer.out + answer.err) == [], words


def test_a_hand_edited_or_damaged_store_cannot_drive_the_terminal_either(run, home):
    run("enqueue", "--id", "a", "true")
    for text in (f'[{{"id": {json.dumps(NASTY)}, "command": "true"}}]', f"[{NASTY}]", json.dumps([{NASTY: 1}])):
        (home / "jobs.json").write_text(text)
        answer = run("list", code=3)
        assert raw_controls(answer.err) == []


# -- Paths

OUTSIDE = ["../../outside", "/outside", "a/b", "..", ".", ".hidden", "-dash", "a\0b", "a\nb", ""]


@pytest.mark.parametrize("id", OUTSIDE)
def test_an_id_is_never_a_path(id, run, home, tmp_path):
    for words in (["enqueue", "--id", id, "true"], ["enqueue", json.dumps({"id": id, "command": "true"})]):
        if "\0" not in "".join(words):
            assert run(*words, code=None).code in (1, 2)
    run("enqueue", "--id", "a", "true")
    (home / "jobs.json").write_text(json.dumps([{"id": id, "command": "echo x", "state": "pending"}]))
    run("list", code=3)
    run("worker", "start", "--drain", code=3)
    assert {path.name for path in tmp_path.iterdir()} == {"home"}


# -- Links that somebody planted


@pytest.fixture(params=["to a file", "to nothing"])
def victim(request, tmp_path):
    """Where a planted link leads: a file that must stay as it is, or a name that must not come to be."""
    path = tmp_path / "victim"
    if request.param == "to a file":
        path.write_text("mine\n")
        path.chmod(0o644)
    yield path
    if request.param == "to a file":
        assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("mine\n", 0o644)
    else:
        assert not path.exists()


def plant(path: Path, victim: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(victim)


@pytest.mark.parametrize("name", ["lock", "journal.jsonl", "worker.log"])
def test_a_link_at_a_file_of_the_queue_is_refused_and_not_followed(name, victim, run, process, home):
    run("enqueue", "--id", "a", "true")
    plant(home / ".queuectl" / name, victim)
    if name == "worker.log":
        assert "Error: " in process("worker", "start", "--detach", code=3).err
    else:
        assert "Error: " in process("enqueue", "true", code=3).err
        assert "Error: " in process("worker", "start", "--drain", code=3).err


@pytest.mark.parametrize("name", ["config.json", "jobs.json", "dlq.json"])
def test_a_link_at_a_file_of_a_person_is_refused_and_stays(name, victim, run, process, home):
    run("enqueue", "--id", "a", "true")
    if victim.exists():
        os.rename(home / name, victim)
        was = victim.read_bytes()
    plant(home / name, victim)
    for arguments in (["enqueue", "true"], ["config", "set", "paused", "true"], ["doctor", "--fix"]):
        assert "symbolic link" in process(*arguments, code=3).err
        assert (home / name).is_symlink()
    if victim.exists():
        assert victim.read_bytes() == was
        victim.write_text("mine\n")
        victim.chmod(0o644)


def test_links_at_the_temporary_names_are_removed_and_not_followed(victim, run, process, home):
    store = queuectl.open_store(str(home), print)
    run("enqueue", "--id", "a", "echo x")
    for path in [*(store.temporary(name) for name in ("jobs", "dlq")), store.home.config_path + ".new"]:
        plant(Path(path), victim)
    for name in ("config.json.new", "journal.jsonl.new"):
        plant(home / ".queuectl" / name, victim)
    run("config", "set", "max_retries", "7")
    process("worker", "start", "--drain")
    run("enqueue", "true")
    run("doctor")


def test_links_at_the_names_of_a_worker_are_refused_or_removed_and_not_followed(victim, run, home):
    run("enqueue", "--id", "a", "true")
    store = queuectl.open_store(str(home), print)
    store.home.prepare()
    folder = home / ".queuectl" / "workers"
    header = {"pid": os.getpid(), "threads": 1, "trouble": None}
    plant(folder / "1-aaaaaa.wake", victim)
    with pytest.raises(queuectl.StoreError):
        store.home.create_worker("1-aaaaaa", header)
    plant(folder / "new", victim)
    plant(folder / "1-bbbbbb", victim)
    file = store.home.create_worker("1-bbbbbb", header)
    plant(folder / "1-bbbbbb.stop", victim)
    plant(folder / "1-bbbbbb.stop.new", victim)
    assert store.home.stop_requested("1-bbbbbb") is None
    store.home.request_stop("1-bbbbbb", "stop")
    assert store.home.stop_requested("1-bbbbbb") == "stop"
    file.close()


def test_a_pipe_in_the_place_of_the_workers_log_is_refused_and_never_waited_for(home, process):
    process("enqueue", "true")
    os.mkfifo(home / ".queuectl" / "worker.log")
    refused = process("worker", "start", "--detach", code=3, timeout=60)
    assert "not an ordinary file" in refused.err


def test_a_link_at_a_slots_log_is_set_aside_and_not_followed(victim, run, home):
    run("enqueue", "--id", "a", "true")
    logs = str(home / ".queuectl" / "logs")
    log = queuectl.SlotLog(queuectl.slot_log_path(logs, "1-aaaaaa", 0))
    plant(Path(log.path), victim)
    os.write(log.open(), b"output\n")
    assert Path(log.path).read_bytes() == b"output\n" and not Path(log.path).is_symlink()
    log.release()
    plant(Path(log.path), victim)
    log.finish(queuectl.log_path(logs, "a", 1), 1 << 20)


def test_a_link_at_a_dead_workers_file_does_not_stop_the_recovery_of_others(
    run, home, start, enqueue, written, reaches, worker, tmp_path
):
    note = tmp_path / "note"
    enqueue("a", f"echo x >> {note}; test $(wc -l < {note}) = 2 || sleep 60", "--timeout", "0")
    child = worker()
    written(note)
    for number in range(8):
        plant(home / ".queuectl" / "workers" / f"{number}-aaaaaa", tmp_path / "victim")
    child.kill()
    child.wait()
    worker()
    assert reaches("a", "completed")["recoveries"] == 1
    run("worker", "list")
    run("status")


@pytest.mark.parametrize("name", [".queuectl/lock", ".queuectl/journal.jsonl", "jobs.json", "dlq.json", "config.json"])
def test_a_pipe_in_the_place_of_a_file_does_not_hang_a_command(name, process, run, home):
    run("enqueue", "--id", "a", "true")
    (home / name).unlink(missing_ok=True)
    os.mkfifo(home / name, 0o600)
    for words in (["list"], ["enqueue", "true"]):
        assert process(*words, code=None, timeout=60).code in (0, 3)


# -- Other users


@pytest.mark.root
def test_a_second_user_can_neither_read_nor_enqueue_nor_work():
    with ordinary() as person:
        if person is None:
            pytest.skip("needs setpriv, and a Python that others may start")
        home = person.folder / "home"  # its directory is the other user's: what protects is the home itself
        words = [sys.executable, str(person.folder / "queuectl.py"), "--home", str(home)]
        subprocess.run([*words, "enqueue", "--id", "a", "echo a secret"], check=True, capture_output=True)
        subprocess.run([*words, "worker", "start", "--drain"], check=True, capture_output=True)
        for mode in (0o700, 0o755):  # also where its owner opened the directory
            home.chmod(mode)
            before = sorted(str(path) for path in home.rglob("*"))
            for command in (
                ["list"], ["list", "--json"], ["status"], ["show", "a"], ["logs", "a"], ["dlq", "list"], ["doctor"],
                ["enqueue", "true"], ["cancel", "a"], ["purge", "--yes"], ["config", "set", "runner", "x"],
                ["worker", "start", "--drain"], ["worker", "stop"],
            ):  # fmt: skip
                done = person.run("-m", "queuectl", "--home", str(home), *command)
                assert done.returncode == 3 and "Error: " in done.stderr, (command, done)
                assert "secret" not in done.stdout + done.stderr and "Traceback" not in done.stderr
            for path in ("jobs.json", ".queuectl/journal.jsonl", ".queuectl/lock"):
                assert person.run("-c", f"open({str(home / path)!r})").returncode == 1
            assert sorted(str(path) for path in home.rglob("*")) == before
