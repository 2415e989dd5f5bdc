"""Kind 5 of the fault tests: limits that really exist, met by an ordinary user (root passes over most of them).

    python tests/faults/limits.py NAME [--rounds N] [--program FILE]      one of them; NAMES below

Each is a worker at work while something runs out: the disk (in a name space of its own), the size of a file, its
descriptors, its processes, the permission to write. What must hold: a command answers 0, or 3 and `Error:`; no job
loses an attempt by it (F6); what was accepted runs once there is room again, and the home is sound. Prints one JSON
object. Run by root it becomes somebody else first (ordinary.py), for whom `--here` stands.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults.real import PROGRAM, Queue  # noqa: E402

HERE = Path(__file__).resolve().parent

SEED = os.environ.get("FAULTS_SEED", "limits")
TMPFS_BYTES = 256 << 10
ROOM_BYTES = 8192  # free, and yet too little for the output of a job
PATIENCE_S = 120.0


FIRST = ("completed", 1)  # state and attempts: nobody lost one


class Limits:
    """A queue with a worker, and what was seen of it."""

    def __init__(self, program: Path, folder: Path, rounds: int) -> None:
        self.folder, self.rounds, self.rng = folder, rounds, random.Random(SEED)
        self.queue = Queue(program, folder)
        self.figures: Counter[str] = Counter()
        self.problems: list[str] = []
        self.ids: list[str] = []

    def enqueue(self, *words: str) -> None:
        """A command that may be refused; if so, it must say why and have changed nothing."""
        id = f"j{self.figures['enqueues']}"
        self.figures["enqueues"] += 1
        child = self.queue.start("enqueue", "--id", id, *words)
        out, err = child.communicate()
        if child.returncode == 0:
            self.ids.append(id)
            return
        self.figures["refused"] += 1
        if child.returncode != 3 or "Error: " not in err or "Traceback" in err or out:
            self.problems.append(f"enqueue: exit {child.returncode}: {out}{err}")
        if "may have been stored" not in err and id in self.queue.jobs():
            self.problems.append(f"{id} was refused and is there")

    @contextlib.contextmanager
    def worker(self, **more: int) -> Iterator[subprocess.Popen[str]]:
        child = self.queue.worker(2)
        try:
            self.until("the worker is ready", lambda: json.loads(self.queue.call("worker", "list", "--json")))
            yield child
            self.queue.call("worker", "stop", "--timeout", "30")
        finally:
            child.kill()
            child.wait()

    def until(self, what: str, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                said = self.queue.said.read_text()[-1500:]
                raise AssertionError(f"within {PATIENCE_S:g} s it did not come true that {what}: {said}")
            time.sleep(0.05)

    def trouble(self) -> str:
        """Why a worker claims nothing, as `status` says it."""
        workers = json.loads(self.queue.call("status", "--json"))["workers"]
        return " ".join(worker["trouble"] for worker in workers if worker.get("trouble"))

    def all_complete(self) -> None:
        """Every accepted job completes in its first attempt."""

        def over() -> bool:
            counts = self.queue.counts()
            return not (counts["pending"] or counts["processing"] or counts["failed"])

        self.until("all is over", over)
        jobs = self.queue.jobs()
        self.problems += [f"lost: {id}" for id in self.ids if id not in jobs]
        self.problems += [f"{id}: {job}" for id, job in jobs.items() if (job["state"], job["attempts"]) != FIRST]
        self.figures["handed back"] += sum(job["runs"] - 1 for job in jobs.values())
        self.figures["completed"] += len(jobs)
        self.queue.call("purge", "--yes", codes=(0, 1))
        self.ids.clear()

    def cancels_greedy(self) -> bool:
        """Room is made, and used to cancel the job that fills it again."""
        for log in self.queue.home.glob(".queuectl/logs/*/greedy.*"):
            log.unlink()
        child = self.queue.start("cancel", "greedy")
        _, err = child.communicate()
        if child.returncode not in (0, 3) or "Traceback" in err:
            self.problems.append(f"cancel: exit {child.returncode}: {err}")
        return child.returncode == 0

    def finish(self) -> None:
        self.queue.call("doctor")
        self.problems += self.queue.faults_said()


def full_disk(this: Limits) -> None:
    """A tmpfs of 256 KiB, filled to its last byte and freed, again and again."""
    filler = this.queue.home / "filler"
    with this.worker():
        for number in range(this.rounds):
            for _ in range(2):
                this.enqueue("--delay", "0.4", "echo some output")
            with open(filler, "wb", buffering=0) as file:
                for size in (this.rng.randrange(1, 4096), 4096, 512, 64, 1):
                    with contextlib.suppress(OSError):
                        while file.write(b"x" * size):
                            pass
            for _ in range(5):
                this.enqueue("--command", f"echo more; : {'x' * 1500}")
            this.queue.call("list")
            this.queue.call("config", "set", "max_retries", str(number % 5 + 1), codes=(0, 3))
            os.truncate(filler, filler.stat().st_size - ROOM_BYTES)
            this.until("the worker says that there is no room", lambda: "left for output" in this.trouble())
            filler.unlink()
            this.until("the trouble is over", lambda: not this.trouble())
            this.enqueue("echo again")
            this.all_complete()


def greedy_job(this: Limits) -> None:
    """A job that fills the disk itself: no other one loses an attempt."""
    with this.worker():
        for _ in range(this.rounds):
            this.queue.call("enqueue", "--id", "greedy", "--timeout", "0", "cat /dev/zero")
            for _ in range(4):
                this.enqueue("echo beside it; sleep 0.1; echo still")
            this.until("the disk is full", this.trouble)
            this.until("it is cancelled", this.cancels_greedy)
            this.until("it is gone", lambda: this.queue.jobs()["greedy"]["state"] == "dead")
            for attempt in this.queue.jobs()["greedy"]["history"]:
                if attempt["outcome"] == "exited":
                    this.problems.append(f"the full disk was the greedy job's fault: {attempt}")
            this.queue.call("purge", "--state", "dead", "--yes")
            this.all_complete()


def file_size(this: Limits) -> None:
    """RLIMIT_FSIZE: appends and folds that end half-way, in commands and in a worker."""
    this.enqueue("true")
    journal = this.queue.home / ".queuectl" / "journal.jsonl"
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with this.worker() as child:
        for _ in range(this.rounds):
            for _ in range(3):
                limit = journal.stat().st_size + this.rng.randrange(0, 400)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
                this.enqueue("echo x")
                this.queue.call("config", "set", "max_retries", "3", codes=(0, 3))
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            this.queue.call("pause")
            for _ in range(3):
                this.enqueue("--command", f": {'x' * 3000}")
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (8000, hard))
            this.queue.call("resume")
            this.until("the worker says why it claims nothing", this.trouble)
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (hard, hard))
            this.until("the trouble is over", lambda: not this.trouble())
            this.all_complete()


def descriptors(this: Limits) -> None:
    """RLIMIT_NOFILE: a worker and commands that can open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with this.worker() as child:
        for number in range(this.rounds):
            resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (3 + number % 8, hard))
            for _ in range(4):
                this.enqueue("echo x")
            this.until("the worker says why it claims nothing", this.trouble)
            resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (soft, hard))
            this.all_complete()


def processes(this: Limits) -> None:
    """RLIMIT_NPROC: the fork is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    with this.worker() as child:
        for _ in range(this.rounds):
            resource.prlimit(child.pid, resource.RLIMIT_NPROC, (1, hard))
            for _ in range(4):
                this.enqueue("echo x")
            this.until("the worker says why it claims nothing", this.trouble)
            resource.prlimit(child.pid, resource.RLIMIT_NPROC, (soft, hard))
            this.all_complete()


def read_only(this: Limits) -> None:
    """A home of mode 0500, all the way down, under a worker and for each command."""
    for _ in range(this.rounds):
        with this.worker():
            this.queue.call("enqueue", "--id", "told", "echo before")
            this.queue.call("wait", "told")
            folders = [this.queue.home, *(path for path in this.queue.home.rglob("*") if path.is_dir())]
            for path in folders:
                path.chmod(0o500)
            try:
                this.enqueue("echo during")
                for words in (["list"], ["status"], ["show", "told"], ["logs", "told"], ["worker", "list"]):
                    this.queue.call(*words)
                for words in (["config", "set", "max_retries", "2"], ["pause"]):
                    this.queue.call(*words, codes=(3,))
            finally:
                for path in folders:
                    path.chmod(0o700)
            this.enqueue("echo after")
            this.all_complete()


def no_mode(this: Limits) -> None:
    """umask 0777: what is created has no rights at all, until it is given them."""
    os.umask(0o777)
    this.queue.home.rmdir()
    with this.worker():
        for _ in range(4 * this.rounds):
            this.enqueue("echo x")
        this.all_complete()
        this.queue.call("config", "set", "max_retries", "4")
    os.umask(0o077)
    for path in [this.queue.home, *this.queue.home.rglob("*")]:
        if (mode := path.lstat().st_mode & 0o777) != (0o700 if path.is_dir() else 0o600):
            this.problems.append(f"{path} has mode {mode:o}")


NAMES = {
    "full disk": full_disk,
    "greedy job": greedy_job,
    "file size": file_size,
    "descriptors": descriptors,
    "processes": processes,
    "read only": read_only,
    "umask": no_mode,
}
ON_A_TMPFS = ("full disk", "greedy job")


def as_somebody(name: str, rounds: int, program: Path) -> int:
    """The same as an ordinary user, in a copy of all this; prints why not where there is no way."""
    from tests.faults.ordinary import ordinary

    mounts = name in ON_A_TMPFS
    with ordinary(program, HERE) as person:
        if person is None:
            print(json.dumps({"skipped": "needs setpriv, or a Python that others may start", "problems": []}))
            return 0
        if mounts and person.run("-c", "", own_mounts=True).returncode != 0:
            print(json.dumps({"skipped": "needs `unshare -rUm`: nobody may mount here", "problems": []}))
            return 0
        words = [str(person.folder / "tests" / "faults" / "limits.py"), name, "--rounds", str(rounds), "--here"]
        done = person.run(*words, own_mounts=mounts, timeout=100 + 60 * rounds)
    print(done.stdout, end="")
    print(done.stderr, end="", file=sys.stderr)
    return done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--program", type=Path, default=PROGRAM)
    parser.add_argument("--here", action="store_true", help="as whoever this is")
    given = parser.parse_args()
    if not given.here:
        return as_somebody(given.name, given.rounds, given.program)
    with tempfile.TemporaryDirectory(prefix="limits-") as folder:
        this = Limits(given.program, Path(folder), given.rounds)
        if given.name in ON_A_TMPFS:
            words = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES},mode=700", "tmpfs", str(this.queue.home)]
            subprocess.run(words, check=True)
        try:
            NAMES[given.name](this)
            this.finish()
        except AssertionError as error:
            this.problems.append(str(error))
        if given.name in ON_A_TMPFS:
            subprocess.run(["umount", "-l", str(this.queue.home)], check=True)
    print(json.dumps({"name": given.name, "seed": SEED, **this.figures, "problems": this.problems}))
    return bool(this.problems)


if __name__ == "__main__":
    sys.exit(main())
