"""Kind 7 of the fault tests: ten jobs in all states, then one byte of one store wrong, or the file cut.

    python -m pytest tests/faults/test_damage.py -rP             a sample, counts printed
    python -m pytest tests/faults/test_damage.py -rP -m slow     every byte and every length

Whatever is wrong, a command answers 0, or 3 and `Error:`; nothing that it does not understand is overwritten, and no
job is lost whose line is whole. An array that is still a valid array is a hand edit, so there the queue may go on.
"""

from __future__ import annotations

import os
import random
import shutil

import pytest
from filelock import lock_descriptor

import queuectl
from tests.faults.effects import FaultyOs, standing_in
from tests.faults.points import SEED
from tests.faults.scenarios import close_store, copy_home, open_store, unfolded

FILES = ("jobs.json", "dlq.json", "config.json", ".queuectl/journal.jsonl")
COMMANDS = (("list",), ("status",), ("doctor",), ("enqueue", "true"))
WAYS = ("flipped", "deleted", "doubled", "NUL", "cut")
SAMPLE = 80  # damaged files per store, each met by every command


def damaged(data: bytes, at: int, way: str) -> bytes:
    byte, rest = data[at : at + 1], data[at + 1 :]
    new = {"flipped": bytes([byte[0] ^ 0x10]), "deleted": b"", "doubled": byte * 2, "NUL": b"\0"}
    return data[:at] if way == "cut" else data[:at] + new[way] + rest


def whole_lines(data: bytes) -> set[bytes]:
    return {line.rstrip(b",") for line in data.split(b"\n") if line.startswith(b'{"id": ')}


class Damaged:
    """A home that is built once; one file of it is damaged, and each command meets that afresh."""

    def __init__(self, folder, home, run):
        self.template, self.home, self.run = folder / "template", home, run
        unfolded(queuectl, str(self.template))
        store = open_store(queuectl, self.template)
        store.read()
        self.raws = {job.id: queuectl.encode_job(job) for job in store.jobs()}
        close_store(store)

    def meet(self, name, data, command, keep_times=False):
        """What is wrong when that command meets the file with these bytes."""
        copy_home(self.template, self.home)
        path = self.home / name
        before = path.stat()
        path.unlink()  # it may be a hard link of the template's: the bytes there stay as they are
        path.write_bytes(data)
        if keep_times:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with standing_in(queuectl, FaultyOs(lock_descriptor)):
            try:
                answer = self.run(*command, code=None)
            except Exception as error:  # a traceback for the user
                return f"traceback: {type(error).__name__}: {error}"
        if answer.code not in (0, 3):
            return f"exit {answer.code}: {answer.err}"
        if answer.code == 3 and "Error:" not in answer.err:
            return f"exit 3 without a word: {answer.err}"
        now = path.read_bytes()
        if answer.code == 3 and now != data and name != "config.json" and "torn" not in answer.err:
            kept = [file.read_bytes() for file in self.home.glob(".queuectl/aside/*")]
            if not any(data.endswith(piece) and piece for piece in kept):
                return f"refused and yet overwritten: {answer.err}"
        if answer.code == 0 and command[0] == "enqueue":
            return self.lost(name, data)
        return None

    def lost(self, name, data):
        """A job whose line was whole in the damaged file, and is gone after a change that was accepted."""
        there = self.run("list", "--json", code=None)
        if there.code != 0 and name.endswith("journal.jsonl") and (self.home / name).read_bytes().startswith(data):
            return None  # an enqueue reads no more than the last line; its own stands whole behind the damage
        if there.code != 0:
            return f"accepted a change and is unreadable then: {there.err}"
        ids = {job["id"] for job in there.json}
        if name in ("jobs.json", "dlq.json"):
            whole = {queuectl._head(raw)[0] for raw in whole_lines(data) if raw in self.raws.values()}
            return f"lost {whole - ids}" if whole - ids else None
        return f"lost {self.raws.keys() - ids}" if name == "config.json" and self.raws.keys() - ids else None


@pytest.fixture
def target(tmp_path, home, run):
    shutil.rmtree(home)
    return Damaged(tmp_path, home, run)


def try_all(target, name, chosen, commands=COMMANDS, keep_times=False):
    data = (target.template / name).read_bytes()
    problems = []
    for at, way in chosen:
        for command in commands:
            if text := target.meet(name, damaged(data, at, way), command, keep_times):
                problems.append(f"{name} {way} at {at}, {command[0]}: {text}")
    print(f"{name}: {len(chosen)} damaged files, {len(commands)} commands, seed {SEED}")
    assert not problems, "\n".join([f"{len(problems)} problems:", *problems[:15]])


def every(target, name):
    size = (target.template / name).stat().st_size
    return [(at, way) for at in range(size) for way in WAYS]


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_store_is_answered_and_kept(target, name):
    chosen = every(target, name)
    try_all(target, name, random.Random(f"{SEED} {name}").sample(chosen, SAMPLE))


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_damaged_store_is_answered_and_kept(target, name):
    try_all(target, name, every(target, name))


@pytest.mark.parametrize("name", ("jobs.json", "dlq.json"))
def test_a_byte_that_the_disk_changed_in_an_array_makes_no_traceback(target, name):
    size = (target.template / name).stat().st_size
    ways = [(at, way) for at in range(size) for way in ("flipped", "NUL")]
    try_all(target, name, random.Random(f"{SEED} {name}").sample(ways, SAMPLE), COMMANDS[:3], keep_times=True)
