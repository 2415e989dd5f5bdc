"""Kind 7 of the fault tests: jobs in all states, then one byte of one file wrong, or the file cut or spliced.

    python -m pytest tests/faults/test_damage.py -rP             about 3,000 damaged files, counts printed
    python -m pytest tests/faults/test_damage.py -rP -m slow     every byte in every way, and every length

Whatever is wrong, a command answers with its documented code, and with `Error:` where that is 3; nothing that it does
not understand is overwritten, and no job is lost whose line is whole. An array that is still a valid array is a hand
edit, so there the queue may go on.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import tempfile
import zlib
from pathlib import Path

import pytest
from filelock import lock_descriptor

import queuectl
from tests.faults.effects import SCRATCH, FaultyOs, standing_in
from tests.faults.points import SEED
from tests.faults.scenarios import WORKER, cards, close_store, copy_home, live_worker, open_store, unfolded

JOURNAL, WORKER_FILE = ".queuectl/journal.jsonl", f".queuectl/workers/{WORKER}"
SAMPLES = {"jobs.json": 900, "dlq.json": 500, "config.json": 250, JOURNAL: 900, WORKER_FILE: 100}  # files in CI
FILES = ("jobs.json", "dlq.json", "config.json", JOURNAL)
WAYS = ("flipped", "deleted", "doubled", "NUL", "cut", "spliced")
LOOKS = (
    ("list",), ("status",), ("doctor",), ("list", "--json", "--reverse"), ("show", "a"), ("show", "run", "--json"),
    ("status", "--json"), ("dlq", "list"), ("dlq", "show", "dead"), ("logs", "fail"), ("config", "show"),
    ("worker", "list"), ("list", "--state", "failed", "--limit", "1"), ("status", "--check"),
)  # fmt: skip
CHANGES = (
    ("enqueue", "true"), ("enqueue", "--id", "given", "true"), ("enqueue", "--unique=key-a", "true"),
    ("cancel", "c"), ("cancel", "run"), ("retry", "fail"), ("dlq", "retry", "dead"), ("purge", "--yes"),
    ("pause",), ("config", "set", "max-retries", "4"), ("dlq", "purge", "--all", "--yes"),
    ("enqueue", "--file", "-"),
)  # fmt: skip
EVERY = tuple(filter(None, itertools.chain(*itertools.zip_longest(CHANGES, LOOKS))))


def damaged(data: bytes, at: int, way: str) -> bytes:
    dice = random.Random(f"{SEED} {at} {way}")
    byte, rest = data[at : at + 1], data[at + 1 :]
    if way == "spliced":  # a piece from elsewhere in its place, as when a block is written to the wrong sector
        start, size = dice.randrange(len(data)), dice.randint(1, 200)
        return data[:at] + data[start : start + size] + data[at + size :]
    new = {"flipped": bytes([byte[0] ^ 1 << dice.randrange(8)]), "deleted": b"", "doubled": byte * 2, "NUL": b"\0"}
    return data[:at] if way == "cut" else data[:at] + new[way] + rest


def whole_in_array(data: bytes) -> set[bytes]:
    return {line.rstrip(b",") for line in data.split(b"\n") if line.startswith(b'{"id": ')}


def is_whole(line: bytes) -> bool:
    return line[:9].lower() == b"%08x " % zlib.crc32(line[9:])  # a digit in upper case says the same


def is_broken_inside(data: bytes) -> bool:
    """Whether a whole line stands behind one of the journal's that is not: damage, and no unfinished tail."""
    wholes = [is_whole(line) for line in data.split(b"\n")[:-1]]
    return wholes != sorted(wholes, reverse=True)


def put_by_journal(data: bytes) -> set[str]:
    """The jobs that the journal's lines put, up to the first that is not whole: counted without the program."""
    ids: set[str] = set()
    for line in data.split(b"\n")[:-1]:
        if not is_whole(line):
            break
        said = json.loads(line[9:])
        ids |= {job["id"] for job in said.get("put", ())}
        ids -= set(said.get("del", ()))
    return ids


def put_in_place(path, data):
    """These bytes in the same file, its times as they were: nothing but a look at every byte can tell."""
    times = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


class Damaged:
    """A home that is built once; one file of it is damaged, and each command meets that afresh."""

    def __init__(self, folder, run, build=unfolded):
        self.template, self.home, self.run = folder / "template", folder / "home", run
        build(queuectl, str(self.template))
        store = open_store(queuectl, self.template)
        store.read()
        self.raws = {job.id: queuectl.encode_job(job) for job in store.jobs()}
        file = live_worker(queuectl, store)
        file.write_row(0, {"job": "run", "run": 1, "session": 1, "start": 1.0})
        os.close(file.fd)
        os.close(file.wake_fd)
        close_store(store)

    def meet(self, name, data, command, by_disk=False):
        """What is wrong when that command meets the file with these bytes; `by_disk`: its inode and times stay."""
        copy_home(self.template, self.home)
        path, whole = self.home / name, (self.template / name).read_bytes()
        if not by_disk:
            path.unlink()  # it may be a hard link of the template's: the bytes there stay as they are
            path.write_bytes(data)
            return self.answer(name, data, command)
        try:
            put_in_place(path, data)
            return self.answer(name, data, command, may_lose=True)
        finally:
            put_in_place(self.template / name, whole)

    def answer(self, name, data, command, may_lose=False):
        path = self.home / name
        with standing_in(queuectl, FaultyOs(lock_descriptor)):
            try:
                answer = self.run(*command, code=None, input="echo one\necho two\n")
            except Exception as error:  # a traceback for the user
                return f"traceback: {type(error).__name__}: {error}"
            if answer.code not in (0, 1, 3):
                return f"exit {answer.code}: {answer.err}"
            if answer.code and "Error:" not in answer.err and command not in (("doctor",), ("status", "--check")):
                return f"exit {answer.code} without a word: {answer.err}"
            now = path.read_bytes() if name != WORKER_FILE else data  # a recovery may take that away
            if answer.code == 3 and now != data and name != "config.json" and "unfinished line" not in answer.err:
                kept = [file.read_bytes() for file in self.home.glob(".queuectl/aside/*")]
                if not any(data.endswith(piece) and piece for piece in kept):
                    return f"refused and yet overwritten: {answer.err}"
            if answer.code == 0 and command in CHANGES and "purge" not in command and not may_lose:
                return self.lost(name, data)
        return None

    def lost(self, name, data):
        """A job whose line was whole in the damaged file, and is gone after a change that was accepted."""
        there = self.run("list", "--json", code=None)
        if there.code != 0 and name == JOURNAL and (self.home / name).read_bytes().startswith(data):
            return None  # an enqueue reads no more than the last line; its own stands whole behind the damage
        if there.code != 0:
            return f"accepted a change and is unreadable then: {there.err}"
        if name == JOURNAL and is_broken_inside(data):
            return "a line that is not whole was passed over"
        ids = {job["id"] for job in there.json}
        if name in ("jobs.json", "dlq.json"):
            whole = {queuectl.head_of(raw)[0] for raw in whole_in_array(data) if raw in self.raws.values()}
        else:
            whole = put_by_journal(data) if name == JOURNAL else set(self.raws)
        return f"lost {whole - ids}" if whole - ids else None


@pytest.fixture(params=[unfolded], ids=[""])
def target(run, monkeypatch, request):
    with tempfile.TemporaryDirectory(prefix="queuectl-damage-", dir=SCRATCH) as folder:
        monkeypatch.setenv("QUEUECTL_HOME", str(Path(folder, "home")))
        yield Damaged(Path(folder), run, request.param)


def try_all(target, name, chosen, each, by_disk=False):
    """Each damaged file meets `each` of the commands, which take turns."""
    data = (target.template / name).read_bytes()
    commands = itertools.cycle(EVERY)
    problems = []
    for at, way in chosen:
        bad = damaged(data, at, way)
        for command in itertools.islice(commands, each):
            if text := target.meet(name, bad, command, by_disk):
                problems.append(f"{name} {way} at {at}, {' '.join(command)}: {text}")
    print(f"{name}: {len(chosen)} damaged files, {each} of {len(EVERY)} commands each, seed {SEED}")
    assert not problems, "\n".join([f"{len(problems)} problems:", *problems[:15]])


def every(target, name, ways=WAYS):
    size = (target.template / name).stat().st_size
    return [(at, way) for at in range(size) for way in ways]


def sample(chosen, number):
    return random.Random(SEED).sample(chosen, min(number, len(chosen)))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_damaged_file_is_answered_and_kept(target, name):
    try_all(target, name, sample(every(target, name), SAMPLES[name]), each=1)


@pytest.mark.parametrize("target", [cards], indirect=True)
@pytest.mark.parametrize("name", ("jobs.json", JOURNAL))
def test_a_damaged_file_of_a_queue_with_cards_is_answered_and_kept(target, name):
    try_all(target, name, sample(every(target, name), 200), each=1)


@pytest.mark.slow
@pytest.mark.parametrize("target", [unfolded, cards], indirect=True)
@pytest.mark.parametrize("name", SAMPLES)
def test_every_damaged_file_is_answered_and_kept(target, name):
    try_all(target, name, every(target, name), each=3)


@pytest.mark.parametrize("name", ("jobs.json", "dlq.json"))
def test_a_byte_that_the_disk_changed_in_an_array_makes_no_traceback(target, name):
    try_all(target, name, sample(every(target, name, ("flipped", "NUL")), 200), each=1, by_disk=True)


@pytest.mark.parametrize(("name", "whole", "changed"), [
    ("jobs.json", b'_at": "2', b'_at": ":'), ("dlq.json", b'_at": "2', b'_at": ":'),
    ("jobs.json", b'"state": "p', b'"state": "x'), ("dlq.json", b'"state": "d', b'"state": "x'),
])  # fmt: skip
def test_a_field_that_the_disk_changed_makes_no_traceback_in_any_command(target, name, whole, changed):
    data = (target.template / name).read_bytes()
    assert whole in data
    bad = data.replace(whole, changed)
    problems = {" ".join(command): target.meet(name, bad, command, by_disk=True) for command in EVERY}
    assert not any(problems.values()), problems


@pytest.mark.slow
@pytest.mark.parametrize("name", ("jobs.json", "dlq.json"))
def test_every_byte_that_the_disk_changed_in_an_array_makes_no_traceback(target, name):
    try_all(target, name, every(target, name, ("flipped", "NUL")), each=3, by_disk=True)


@pytest.mark.parametrize("name", ("jobs.json", "dlq.json"))
def test_doctor_sees_a_byte_that_the_disk_changed_in_an_array(target, name):
    data = (target.template / name).read_bytes()
    for at, way in sample(every(target, name, ("flipped",)), 40):
        bad = damaged(data, at, way)
        copy_home(target.template, target.home)
        put_in_place(target.home / name, bad)
        assert target.run("doctor", code=3).out, f"at {at}"
        put_in_place(target.home / name, data)
