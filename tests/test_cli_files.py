"""The three JSON files: true after each command, open to hand edits, never overwritten when damaged."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]


def in_file(path: Path) -> list[dict[str, Any]]:
    """The jobs of an array that is in its canonical form: `[`, one job a line, `]`."""
    lines = path.read_text().split("\n")
    assert lines[0] == "[" and lines[-2:] == ["]", ""], lines
    parsed = [json.loads(line.rstrip(",")) for line in lines[1:-2]]
    assert all(isinstance(job, dict) for job in parsed) and parsed == json.loads(path.read_bytes())
    return parsed


def ids(path: Path) -> list[str]:
    return [job["id"] for job in in_file(path)]


def edit(path: Path, text: str | bytes) -> None:
    """Save a file as an editor does: a new one in the place of the old one."""
    new = path.with_name("edited.tmp")
    new.write_bytes(text.encode() if isinstance(text, str) else text)
    new.chmod(0o600)
    new.replace(path)


@pytest.fixture
def two(run: Call, home: Path) -> Path:
    """A home with the pending jobs a and b and the dead job c."""
    for name in ["a", "b", "c"]:
        run("enqueue", "--id", name, "--priority", "1", f"echo {name}")
    run("cancel", "c")
    return home


# ---- true after each command ----


@pytest.mark.parametrize(
    "commands, in_jobs, in_dlq",
    [
        ([], ["a", "b"], ["c"]), ([["enqueue", "--id", "d", "true"]], ["a", "b", "d"], ["c"]),
        ([["enqueue", '{"id":"d","command":"echo [ ] { } , \\n"}']], ["a", "b", "d"], ["c"]),
        ([["cancel", "a"]], ["b"], ["a", "c"]), ([["cancel", "b", "a"]], [], ["a", "b", "c"]),
        ([["retry", "c"]], ["a", "b", "c"], []), ([["dlq", "retry", "c"]], ["a", "b", "c"], []),
        ([["cancel", "a"], ["dlq", "retry", "a"]], ["a", "b"], ["c"]),
        ([["purge", "--state", "dead", "--yes"]], ["a", "b"], []),
        ([["dlq", "purge", "c", "--yes"]], ["a", "b"], []),
        ([["cancel", "a"], ["dlq", "purge", "--all", "--yes"]], ["b"], []),
        ([["pause"], ["resume"]], ["a", "b"], ["c"]),
    ],
    ids=lambda value: (
        " ".join(" ".join(command) for command in value)
        if isinstance(value, list) and value and isinstance(value[0], list)
        else None
    ),
)  # fmt: skip
def test_the_arrays_are_true_after_a_command(run, two, commands, in_jobs, in_dlq):
    for command in commands:
        run(*command)
    assert (ids(two / "jobs.json"), ids(two / "dlq.json")) == (in_jobs, in_dlq)


@pytest.mark.parametrize("source, count", [(["--file", "-"], 200), (["--stream"], 3)])
def test_the_arrays_are_true_after_many_jobs(run, home, source, count):
    run("enqueue", *source, input="".join(f'{{"id":"j{n}","command":"true"}}\n' for n in range(count)))
    assert ids(home / "jobs.json") == [f"j{n}" for n in range(count)]


def test_the_files_hold_what_list_shows(run, two):
    stored = in_file(two / "jobs.json") + in_file(two / "dlq.json")
    assert sorted(stored, key=lambda job: int(job["seq"])) == run("list", "--json").json


def test_seq_rises_in_the_order_of_arrival_and_is_never_given_twice(run, two):
    seqs = [job["seq"] for job in run("list", "--json").json]
    assert seqs == sorted(set(seqs)) and len(seqs) == 3
    run("purge", "--state", "dead", "--yes")
    run("enqueue", "--id", "d", "true")
    assert in_file(two / "jobs.json")[-1]["seq"] > seqs[-1]


def test_a_plain_job_has_exactly_the_fields_that_have_a_value(run, home):
    # reading: the default time limit of 30 s is a value; the cwd is always remembered.
    run("enqueue", "true")
    named = "id state seq command attempts runs max_retries priority timeout created_at updated_at cwd"
    assert list(in_file(home / "jobs.json")[0]) == named.split()


# ---- hand edits ----


def test_an_edit_in_place_is_taken_over(run, two):
    with (two / "jobs.json").open("r+") as file:
        file.write(json.dumps(in_file(two / "jobs.json")[1:], indent=1))
        file.truncate()
    assert run("list", "--ids").out == "b\nc\n"


def test_a_removed_job_is_gone_and_its_id_free(run, two):
    edit(two / "jobs.json", json.dumps(in_file(two / "jobs.json")[:1]))
    edit(two / "dlq.json", "[]")
    assert run("enqueue", "--id", "b", "true").out == "b\n"
    assert run("list", "--ids").out == "a\nb\n"


def test_a_job_added_by_hand_is_a_job_like_any_other(run, two):
    edit(two / "jobs.json", json.dumps([*in_file(two / "jobs.json"), {"id": "new", "command": "echo new"}]))
    assert "new" in run("list", "--ids").lines
    run("enqueue", "--id", "new", "true", code=1)
    run("cancel", "new")
    assert "new" in ids(two / "dlq.json")


def test_a_job_added_to_an_untouched_home_runs(run, process, jobs, home):
    edit(home / "jobs.json", '[{"id": "a", "command": "true"}]')
    edit(home / "dlq.json", "[]")
    process("worker", "start", "--drain")
    assert jobs()["a"]["state"] == "completed"


# ---- doctor ----


def test_doctor_finds_nothing_wrong_after_ordinary_commands_and_a_drain(run, process, home):
    assert run("doctor").out == f"All is well with '{home}'.\n"
    run("enqueue", "--id", "a", "true")
    run("cancel", "a")
    run("dlq", "retry", "a")
    run("config", "set", "max-retries", "5")
    run("doctor")
    process("worker", "start", "--drain")
    run("doctor")


# ---- a home that does not exist, or may only be read ----


@pytest.mark.parametrize(
    "arguments, code",
    [
        (["list"], 0), (["list", "--json"], 0), (["status"], 0), (["status", "--json"], 0), (["show", "a"], 1),
        (["logs", "a"], 1), (["config", "show"], 0), (["config", "get", "max-retries"], 0), (["dlq", "list"], 0),
        (["dlq", "show", "a"], 1), (["worker", "list"], 0), (["purge", "--dry-run"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_reading_a_home_that_does_not_exist_creates_nothing(run, tmp_path, arguments, code):
    # reading: `worker list` and `purge --dry-run` only read as well.
    run("--home", str(tmp_path / "absent"), *arguments, code=code)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("arguments", [["list"], ["status"], ["show", "a"], ["dlq", "list"]], ids=" ".join)
def test_a_home_that_may_only_be_read_is_read(run, two, arguments):
    expected = run(*arguments).out.split()[:3]
    two.chmod(0o500)
    try:
        assert run(*arguments).out.split()[:3] == expected
    finally:
        two.chmod(0o700)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_change_to_a_home_that_may_only_be_read_is_refused(run, home):
    home.chmod(0o500)
    try:
        assert "Error:" in run("enqueue", "true", code=3).err
    finally:
        home.chmod(0o700)


def test_a_home_that_is_a_file_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("mine\n")
    run("--home", str(tmp_path / "file"), "enqueue", "true", code=3)
    assert (tmp_path / "file").read_text() == "mine\n"


# ---- modes ----


@pytest.fixture(params=[0o000, 0o777], ids=lambda mask: f"umask {mask:03o}")
def umask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """A umask for this process and all it starts (the temporary directory exists already)."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(home: Path) -> dict[str, str]:
    found = {}
    for path in [home, *home.rglob("*")]:
        found[str(path.relative_to(home.parent))] = f"{stat.S_IMODE(path.lstat().st_mode):04o}"
    return found


def as_promised(home: Path) -> dict[str, str]:
    return {
        str(path.relative_to(home.parent)): "0700" if path.is_dir() else "0600" for path in [home, *home.rglob("*")]
    }


def test_what_a_command_creates_is_for_the_owner_only(run, tmp_path, umask):
    new = tmp_path / "new"
    for words in ("enqueue --id a true", "enqueue --id b true", "cancel a", "config set max-retries 5", "pause"):
        run("--home", str(new), *words.split())
    assert modes(new) == as_promised(new)


def test_what_a_worker_creates_is_for_the_owner_only(run, process, home, umask):
    run("enqueue", "--id", "a", "echo secret")
    process("worker", "start", "--drain")
    assert modes(home) == as_promised(home)


def test_parents_of_a_new_home_are_made(run, tmp_path):
    # reading: the default home may lie in a directory that does not exist yet.
    run("--home", str(tmp_path / "one" / "two"), "enqueue", "true")
    assert stat.S_IMODE((tmp_path / "one" / "two").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o702, 0o1777], ids=oct)
@pytest.mark.parametrize(
    "words", ["enqueue true", "list", "status", "config set max-retries 5", "worker start --drain"]
)
def test_a_home_that_anyone_can_write_is_refused(run, home, mode, words):
    # reading: reading it is refused too, for what it holds cannot be believed.
    home.chmod(mode)
    assert "Error:" in run(*words.split(), code=3).err
    assert list(home.iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize("arguments", [["enqueue", "true"], ["list"], ["status"]], ids=" ".join)
def test_a_home_of_another_user_is_refused_for_root_too(run, home, arguments):
    os.chown(home, 12_345, -1)
    assert "Error:" in run(*arguments, code=3).err
    assert list(home.iterdir()) == []


def test_group_write_is_taken_off_the_queues_files_which_is_said_once(run, two):
    ordinary = run("enqueue", "true").err.splitlines()
    for name in ("jobs.json", "dlq.json"):
        (two / name).chmod(0o664)
    assert len(run("enqueue", "true").err.splitlines()) == len(ordinary) + 1
    assert [(two / name).stat().st_mode & 0o022 for name in ("jobs.json", "dlq.json")] == [0, 0]


def test_a_home_that_its_group_can_write_works(run, home):
    # reading: a checkout made under umask 002 is such a home, and the quick start must work there.
    home.chmod(0o775)
    assert run("enqueue", "--id", "a", "true").out == "a\n"


def change_on_disk(path: Path, at: int, new: bytes) -> None:
    """Write these bytes there. Inode, size and time stay: the disk changed them, not a person."""
    times = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(new)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("field", ["priority", "attempts"])
def test_a_field_that_the_disk_changed_in_a_waiting_job_is_an_error(two, run, field):
    at = (two / "jobs.json").read_bytes().index(b'"%s": ' % field.encode()) + len(field) + 5
    change_on_disk(two / "jobs.json", at, b"-")
    assert run("status", "--check", code=3).err.startswith("Error: ")


@pytest.mark.parametrize("words", ["list", "stats", "purge --yes", "show abcd", "enqueue --unique=k true"])
def test_an_id_that_the_disk_changed_is_an_error(two, run, words):
    run("enqueue", "--id", "d", "--unique=k", "true")
    path = two / "jobs.json"
    for name in ("a", "d"):
        change_on_disk(path, path.read_bytes().index(b'{"id": "%s"' % name.encode()) + 8, b"\xff")
    assert run(*words.split(), code=3).err.startswith("Error: ")
