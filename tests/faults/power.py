"""Power loss: from the recorded effects of each scenario, what the disk may hold at each moment; then it is checked.

    python tests/faults/power.py                  a sample of about 2,000 images, with few of the dice
    python tests/faults/power.py --all            all of them

A disk keeps for sure what was synced: a file's bytes by its own fsync, a name by its directory's. Of the rest it may
have kept nothing, all, the names without the bytes, the bytes without the names, half of the last write, the later
bytes of a file and NULs before them, or any of the writes and names (by dice). What a person or script was told is
done must be there (fsync `normal`); a worker's own progress may be lost, but never half. A command that comes next is
kept too, though it reads no more than the journal's end.
After a failed fsync the pages that were to be synced are lost to the disk, though every process still reads them: a
later fsync of that file does not bring them back.
An array that was written anew has another inode in an image than the real disk would show; so it is known by size and
checksum there.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults import points  # noqa: E402
from tests.faults.effects import HANG_S, Fault, FaultyOs, all_faults, standing_in  # noqa: E402
from tests.faults.scenarios import SCENARIOS, close_store, copy_home, open_store  # noqa: E402

SAMPLE = 2_100  # images in all, and some scenarios have fewer
DIR = -1  # stands for a directory among the files
FIFO = -2
KINDS = (
    "nothing unsynced",
    "everything",
    "names without bytes",
    "bytes without names",
    "last write cut",
    "NULs before later bytes",
    "NULs in the first write",
    "half of the names",
)
DICE = (*(f"dice {number}" for number in range(80)),)
FEW_DICE = DICE[:8]  # enough to draw a sample from

Event = tuple[Any, ...]
Chosen = tuple[str, dict[str, bytes | int], int, int]  # what it is, image, fewest changes that must be there, and most


class Recorder(FaultyOs):
    """Lets every effect happen and writes down what it did to files and names."""

    def __init__(self, real_lock: Callable[..., bool], fault: Fault | None = None) -> None:
        super().__init__(real_lock, fault)
        self.events: list[Event] = []

    def _effect(self, name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
        new = name == "open" and not os.path.lexists(args[0])
        try:
            done = super()._effect(name, real, *args, **more)
        except OSError:
            if name == "fsync":
                self.events.append(("fsync failed", *args))
            raise
        if name == "open":
            self.events.append(("open", done, args[0], new, bool(args[1] & os.O_APPEND)))
        elif name in ("write", "pwrite"):
            self.events.append((name, args[0], bytes(args[1])[:done], *args[2:]))
        elif name in ("fsync", "rename", "unlink", "mkdir", "mkfifo", "ftruncate"):
            self.events.append((name, *args))
        return done

    def dup(self, fd: int) -> int:
        new = os.dup(fd)
        self.events.append(("dup", fd, new))
        return new


@dataclass
class File:
    """A file's bytes as synced, and what was written since: (offset, bytes), or (new size, None) for a cut.

    `size` is that of the file as processes see it: what a failed fsync lost is no longer in `since`.
    """

    synced: bytes = b""
    since: list[tuple[int, bytes | None]] = field(default_factory=list)
    size: int = 0

    def write(self, at: int, data: bytes) -> int:
        """Where the write ends; `at` -1 appends."""
        at = self.size if at < 0 else at
        self.since.append((at, data))
        self.size = max(self.size, at + len(data))
        return at + len(data)

    def content(self, kept: str = "everything", dice: random.Random | None = None) -> bytes:
        data = bytearray(self.synced)
        for number, (at, piece) in enumerate(self.since):
            last = number == len(self.since) - 1
            if dice is not None:
                if dice.random() < 0.4:
                    continue
                if piece is not None and last and dice.random() < 0.5:
                    piece = piece[: dice.randrange(len(piece))]
            if piece is None:
                del data[at:]
                continue
            if kept == "last write cut" and last:
                piece = piece[: len(piece) // 2]
            if not last and (kept == "NULs before later bytes" or (kept == "NULs in the first write" and not number)):
                piece = bytes(len(piece))
            data[at : at + len(piece)] = piece if at <= len(data) else bytes(at - len(data)) + piece
        return bytes(data)


class Disk:
    """What was done to a home, as a disk sees it: files, synced names, and changes of names not yet synced."""

    def __init__(self, home: Path) -> None:
        self.home = str(home)
        self.files: list[File] = []
        self.synced: dict[str, int] = {}  # path to the file's number, DIR or FIFO
        self.since: list[tuple[str, str | None, str | None, int]] = []  # directory, name gone, name come, file
        self._now: dict[str, int] = {}
        self._open: dict[int, tuple[int, str, bool]] = {}  # descriptor: file, path, whether it appends
        self._place: dict[int, int] = {}
        if home.exists():
            for folder, _, names in os.walk(home):
                self.synced[folder] = DIR
                for name in names:
                    path = os.path.join(folder, name)
                    self.synced[path] = FIFO if name.endswith(".wake") else self._new(Path(path))
        else:
            self.synced[self.home] = DIR  # its own name is in a directory that is not the queue's
        self._now = dict(self.synced)

    def _new(self, path: Path | None = None) -> int:
        data = path.read_bytes() if path else b""
        self.files.append(File(data, size=len(data)))
        return len(self.files) - 1

    def apply(self, event: Event) -> bool:
        """Do what the event says. Whether it changed what the disk may hold."""
        match event:
            case ("open", fd, path, new, appends):
                if new:
                    self._name(path, None, path, self._new())
                self._open[fd] = (self._now.get(path, DIR), path, appends)
                self._place[fd] = 0
                return bool(new)
            case ("dup", fd, new):
                self._open[new], self._place[new] = self._open[fd], self._place[fd]
                return False
            case ("write", fd, data):
                number, _, appends = self._open[fd]
                if number < 0:
                    return False
                self._place[fd] = self.files[number].write(-1 if appends else self._place[fd], data)
            case ("pwrite", fd, data, at):
                self.files[self._open[fd][0]].write(at, data)
            case ("ftruncate", fd, size):
                file = self.files[self._open[fd][0]]
                file.since.append((size, None))
                file.size = size
            case ("fsync failed", fd):
                number, path, _ = self._open[fd]
                if number >= 0:
                    self.files[number].since.clear()
            case ("fsync", fd):
                number, path, _ = self._open[fd]
                if number >= 0:
                    file = self.files[number]
                    self.files[number] = File(file.content(), size=file.size)
                else:
                    for change in [change for change in self.since if change[0] == path]:
                        _change(self.synced, change)
                        self.since.remove(change)
            case ("rename", old, new):
                self._name(new, old, new, self._now[old])
            case ("unlink", path):
                self._name(path, path, None, 0)
            case ("mkdir", path, *_):
                self._name(path, None, path, DIR)
            case ("mkfifo", path, *_):
                self._name(path, None, path, FIFO)
        return True

    def _name(self, path: str, gone: str | None, come: str | None, number: int) -> None:
        if path != self.home:
            change = (os.path.dirname(path), gone, come, number)
            self.since.append(change)
            _change(self._now, change)

    def image(self, kind: str) -> dict[str, bytes | int]:
        """What the disk may hold after a power loss now: path to bytes, or DIR or FIFO."""
        names = dict(self.synced)
        dice = random.Random(f"{kind} {len(self.since)} {len(self.files)}") if kind.startswith("dice") else None
        if dice is not None:
            for change in self.since:
                if dice.random() < 0.6 and (change[1] is None or change[1] in names):
                    _change(names, change)
        elif kind not in ("nothing unsynced", "bytes without names"):
            for change in self.since[: len(self.since) // 2 if kind == "half of the names" else None]:
                _change(names, change)
        out: dict[str, bytes | int] = {}
        for path, number in sorted(names.items()):
            if path == self.home or os.path.dirname(path) in out:
                bare = kind in ("nothing unsynced", "names without bytes")
                file = self.files[number] if number >= 0 else None
                out[path] = number if file is None else file.synced if bare else file.content(kind, dice)
        return out


def _change(names: dict[str, int], change: tuple[str, str | None, str | None, int]) -> None:
    _, gone, come, number = change
    if gone is not None:
        names.pop(gone, None)
    if come is not None:
        names[come] = number


def restore(image: dict[str, bytes | int], home: Path, template: Path) -> None:
    """Put the image in the home's place; an array that still holds what it held at the start is that very file."""
    shutil.rmtree(home, ignore_errors=True)
    for path, what in image.items():
        if isinstance(what, bytes):
            old = template / os.path.relpath(path, home)
            same = old.exists() and old.read_bytes() == what
            if same and old.name in ("jobs.json", "dlq.json"):
                os.link(old, path)  # an edit that was taken already is known by its inode and time
                continue
            Path(path).write_bytes(what)
            if same:
                shutil.copystat(old, path)
        elif what == DIR:
            os.mkdir(path, 0o700)
        else:
            os.mkfifo(path, 0o600)


class PowerWalk(points.Walk):
    """One scenario, recorded."""

    def record(self, fault: Fault | None = None) -> list[Event]:
        """What a run does to files and names; with a fault that ends it early, nothing."""
        copy_home(self.template, self.home)

        def work(say: Callable[[bytes], None]) -> None:
            with self._limits(), standing_in(self.q, recorder := Recorder(lock_descriptor, fault)):
                for _ in self._steps():
                    recorder.events.append(("accepted",))
            recorder.events.append(("returned",))
            say(pickle.dumps(recorder.events))

        said = self._child(work).said
        return list(pickle.loads(said)) if said.startswith(b"\x80") else []

    def images(self, fault: Fault | None = None, dice: Sequence[str] = ()) -> Iterator[Chosen]:
        """Every image of a run, some of them drawn by `dice`. `fault`: one that the run survives."""
        events = self.record(fault)
        also = f", and {fault}" if fault else ""
        copy_home(self.template, self.home)
        disk = Disk(self.home)
        accepted = told = 0
        always = self.states[0]["settings"]["fsync"] == "always"
        for number, event in enumerate(events, 1):
            if event == ("accepted",):
                # A caller that comes back for more was told of what it asked for before: it synced that.
                told, accepted = accepted, accepted + 1
                told = accepted if always else told
                changed = always
            elif event == ("returned",):
                told, changed = accepted, True
            else:
                changed = disk.apply(event)
            must = 0 if self.scenario.is_worker else told
            for kind in (*KINDS, *dice) if changed else ():
                yield f"{kind} after effect {number} ({event[0]}){also}", disk.image(kind), must, accepted + 1

    def after_errors(self, faults: Iterable[Fault]) -> Iterator[Chosen]:
        """Like `images`: an error at one effect, the command succeeds all the same, then the power goes."""
        for fault in faults:
            if events := self.record(fault):
                copy_home(self.template, self.home)
                disk = Disk(self.home)
                for event in events:
                    disk.apply(event)
                told = events.count(("accepted",))
                yield f"nothing unsynced after {fault}", disk.image("nothing unsynced"), told, told

    def check_after_boot(self, allowed: list[points.State]) -> list[str]:
        """The home as the machine finds it that has started again."""
        boot_id = self.q.boot_id
        try:
            self.q.boot_id = lambda: "another boot"  # type: ignore[attr-defined]
            return self.check(allowed)
        finally:
            self.q.boot_id = boot_id  # type: ignore[attr-defined]

    def check_next(self, allowed: list[points.State]) -> list[str]:
        """What is accepted next, by a command that does not load the queue, is there after the next load too."""
        q, boot_id = self.q, self.q.boot_id
        signal.alarm(HANG_S)
        try:
            q.boot_id = lambda: "another boot"  # type: ignore[attr-defined]
            with standing_in(q, FaultyOs(lock_descriptor)):
                store = open_store(q, self.home)
                q.enqueue_job(store, dict(command="true", id="next", cwd="/"))
                store.fold_or_sync()
                close_store(store)
                seen = self.look()
                if seen["jobs"].pop("next", None) is None:
                    return ["the next job that was accepted is lost"]
                seen["n"] = next((state["n"] for state in allowed if state["jobs"] == seen["jobs"]), None)
                return [] if seen in allowed else ["with the next job the others are neither before nor after"]
        except Exception as error:  # a home that takes no job is the finding
            return [f"takes no job: {type(error).__name__}: {error}"]
        finally:
            signal.alarm(0)
            q.boot_id = boot_id  # type: ignore[attr-defined]

    def power_loss(self, quota: int | None, dice: random.Random, first: bool = False) -> points.Report:
        """Check a sample of the images, or all; and of the errors that a command survives."""
        seen: set[bytes] = set()
        chosen = []
        drawn = DICE if quota is None else FEW_DICE
        syncs = [Fault(number, "EIO") for number, effect in enumerate(self.trace, 1) if effect == "fsync"]
        for what, image, low, high in itertools.chain(self.images(dice=drawn), *map(self.images, syncs)):
            mark = hashlib.sha256(repr((sorted(image.items()), low, high)).encode()).digest()
            if mark not in seen:
                seen.add(mark)
                chosen.append((what, image, low, high))
        faults = [fault for fault in all_faults(self.trace) if fault.what in ("ENOSPC", "EIO", "short")]
        if quota is not None and len(chosen) > quota:
            all_told = [one for one in chosen if "(returned)" in one[0]][:2]
            chosen = dice.sample(chosen, quota - 2) + all_told
        if quota is not None:
            faults = dice.sample(faults, min(len(faults), quota // 8))
        if not self.scenario.is_worker:
            chosen += self.after_errors(faults)
        problems = []
        for what, image, low, high in chosen:
            restore(image, self.home, self.template)
            problems += [f"{what}: {text}" for text in self.check_after_boot(self.states[low : high + 1])]
            if "NULs" in what or "dice" in what:
                restore(image, self.home, self.template)
                problems += [f"{what}: {text}" for text in self.check_next(self.states[low : high + 1])]
            if first and problems:
                break
        return points.Report(self.scenario.name, 0, len(self.trace), len(chosen), 0, problems)


def walk(given: points.Given) -> points.Report:
    """One scenario's images, all or a sample."""
    quota = None if given.words.all else SAMPLE // len(SCENARIOS)
    return PowerWalk(given.q, given.scenario, given.folder).power_loss(quota, given.dice, given.words.first)


if __name__ == "__main__":
    sys.exit(points.run("Check what a power loss may leave of queuectl's files.", walk))
