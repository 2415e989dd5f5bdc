"""What QueueCTL costs: the rows of design.md, section 7, each beside something run at the same moment.

    python tests/bench/bench.py [--full] [--list] [--dir DIR] [NAME...]

Prints a table and asserts nothing: figures depend on the machine. The short form takes some minutes on a quiet machine
of two cores; --full takes queues of a million jobs and more rounds, about half an hour.

In every round ours and its reference run one after the other, in an order that turns from round to round. A round in
which the reference was slow (more than 1.5 times its best) says that the machine was busy, and is left out; the last
column counts. The rest is medians, of the ratio per round too. `xargs` keeps two commands going at once, as a worker
with two threads does, without any records of them; `import` is the start of Python with click and filelock, which no
command can go below. CPU time is that of the whole tree, the jobs' own included.

Every run has a fresh home in a temporary directory, and the program is installed from this checkout into an
environment of its own, so that it is compiled once, as for a user. It needs cc, xargs and pip's sources.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, TypeVar

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent.parent
SLOW_ROUND = 1.5
DEADLINE_S = 60.0

# So many turns of a slot (report and claim), without the commands; prints the seconds that one took.
TURNS = """
import sys, time
import queuectl as q
store, count = q.open_store(sys.argv[1], print), int(sys.argv[2])
q.enqueue_bulk(store, [b"true"] * count, {"cwd": "/"}, keep_records=False)
store.fold()
done, began = None, time.perf_counter()
for _ in range(count):
    turn = q.take_turn(store, "1-a", 0, done, True, q.ALL_JOBS)
    done = turn.claimed, q.Outcome("exited", 0)
print((time.perf_counter() - began) / count)
"""

# Asks for the store lock all the time until stdin ends; prints the longest that it was held by others.
LOCK_HELD = """
import os, select, sys, time
from filelock import lock_descriptor, unlock_descriptor
fd, longest, since = os.open(sys.argv[1], os.O_RDWR), 0.0, time.monotonic()
while not select.select([0], [], [], 0.0005)[0]:
    if lock_descriptor(fd, blocking=False):
        unlock_descriptor(fd)
        longest, since = max(longest, time.monotonic() - since), time.monotonic()
print(longest)
"""


class NotMeasured(Exception):
    """A row could not be made; the reason is the message."""


class Taken(float):
    """The seconds that a run took; `cpu` is what its processes used, those that they waited for included."""

    cpu: float


Figure = TypeVar("Figure", bound=float)
Picked = TypeVar("Picked")


# ---- the table


@dataclass(frozen=True)
class Goal:
    """What a row should reach, for the reader; nothing fails when it is missed."""

    text: str
    is_met: Callable[[float, float], bool]  # (ours in seconds or another unit, ratio)


NO_GOAL = Goal("", lambda ours, ratio: True)


def at_least(limit: float) -> Goal:
    return Goal(f">= {limit:.2f}", lambda ours, ratio: ratio >= limit)


def at_most(limit: float) -> Goal:
    return Goal(f"<= {limit:.2f}", lambda ours, ratio: ratio <= limit)


def below(limit: float, text: str) -> Goal:
    return Goal(f"< {text}", lambda ours, ratio: ours < limit)


@dataclass(frozen=True)
class Row:
    work: str
    ours: str
    reference: str = "-"
    ratio: str = "-"
    goal: str = ""
    kept: str = ""


HEAD = Row("work", "ours", "reference", "ratio", "goal", "kept")


def line(row: Row) -> str:
    cells = f"{row.work:<62} {row.ours:>11}  {row.reference:<22} {row.ratio:>6}  {row.goal:<12} {row.kept:>6}"
    return cells.rstrip()


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms" if seconds >= 0.01 else f"{seconds * 1000:.2f} ms"


def whole_seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"


def per_second(count: int) -> Callable[[float], str]:
    return lambda seconds: f"{count / seconds:,.0f}/s"


def bytes_each(size: float) -> str:
    return f"{size:,.0f} B"


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} us"


# ---- rounds


def rounds(count: int, *runs: Callable[[], Figure]) -> list[tuple[Figure, ...]]:
    """`count` times the figure of each run, one tuple a round, each round beginning with another one."""
    samples = []
    for number in range(count):
        taken = {}
        for step in range(len(runs)):
            which = (number + step) % len(runs)
            taken[which] = runs[which]()
        samples.append(tuple(taken[which] for which in range(len(runs))))
    return samples


def compared(
    work: str,
    samples: Sequence[tuple[float, ...]],
    reference: str,
    *,
    show: Callable[[float], str] = milliseconds,
    speed: bool = False,
    goal: Goal = NO_GOAL,
) -> Row:
    """One row: column 0 of the samples is ours, column 1 the reference.

    The ratio is ours to the reference, in time taken, or in `speed` (so more is better).
    """
    best = min(sample[1] for sample in samples)
    kept = [(sample[0], sample[1]) for sample in samples if sample[1] <= SLOW_ROUND * best]
    ours = statistics.median(pair[0] for pair in kept)
    other = statistics.median(pair[1] for pair in kept)
    ratio = statistics.median(theirs / mine if speed else mine / theirs for mine, theirs in kept)
    return Row(
        work,
        show(ours),
        f"{show(other)} {reference}",
        f"{ratio:.2f}",
        goal.text + ("" if goal.is_met(ours, ratio) else " !"),
        f"{len(kept)}/{len(samples)}",
    )


def alone(work: str, figures: list[float], show: Callable[[float], str], goal: Goal = NO_GOAL) -> Row:
    """A row for what has nothing to be compared with."""
    ours = statistics.median(figures)
    return Row(work, show(ours), goal=goal.text + ("" if goal.is_met(ours, 0) else " !"), kept=f"{len(figures)}")


def cpu_row(samples: Sequence[tuple[Taken, ...]], count: int, reference: str) -> Row:
    each = [tuple(run.cpu / count for run in sample) for sample in samples]
    return compared("  its CPU time a job", each, reference, show=microseconds)


# ---- the machinery: one queue program, many homes


def timed(command: list[str], env: dict[str, str], stdin: Path | None = None, *, copies: int = 1) -> Taken:
    """What a command takes, or several copies of it at once; it must succeed."""
    with open(stdin or os.devnull, "rb") as given, tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        children = [
            subprocess.Popen(command, stdin=given, stdout=subprocess.DEVNULL, stderr=said, env=env)
            for _ in range(copies)
        ]
        cpu = 0.0
        for child in children:
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            cpu += usage.ru_utime + usage.ru_stime
        taken = Taken(time.perf_counter() - began)
        taken.cpu = cpu
        if any(child.returncode for child in children):
            said.seek(0)
            codes = ", ".join(str(child.returncode) for child in children)
            raise NotMeasured(f"{' '.join(command)[:150]}: exit {codes}: {said.read().decode()[-400:].strip()}")
    return taken


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise NotMeasured(f"{what} did not happen within {DEADLINE_S:.0f} s")
        time.sleep(0.0005)


class Bench:
    """The installed program, and the homes made so far. All of it below `scratch`."""

    def __init__(self, scratch: Path, full: bool) -> None:
        self.scratch = scratch
        self.full = full
        self.env = dict(os.environ)
        # With it set, an installed module would be compiled anew at every start.
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)
        self.count = 0
        self.running: list[subprocess.Popen[bytes]] = []
        self.stamp = str(scratch / "stamp")
        subprocess.run(["cc", "-O2", "-o", self.stamp, BENCH / "stamp.c"], check=True)
        self.python, self.queuectl = self.install()
        self.filled = cache(self._filled)

    def install(self) -> tuple[str, str]:
        """The interpreter and the command of a new environment that has this checkout's program."""
        source, programs = self.fresh("source"), self.fresh("environment") / "bin"
        for name in ("queuectl.py", "pyproject.toml", "requirements.txt", "README.md"):
            shutil.copy(ROOT / name, source)
        timed([sys.executable, "-m", "venv", str(programs.parent)], self.env)
        timed([str(programs / "python"), "-m", "pip", "install", "-q", str(source)], self.env)
        return str(programs / "python"), str(programs / "queuectl")

    def pick(self, short: Picked, full: Picked) -> Picked:
        return full if self.full else short

    def fresh(self, name: str = "home") -> Path:
        """A new, empty directory."""
        self.count += 1
        path = self.scratch / f"{name}-{self.count}"
        path.mkdir(mode=0o700)
        return path

    def lines(self, count: int, text: str = "true") -> Path:
        """A file of `count` lines."""
        path = self.scratch / f"{count}-{text.replace('/', '_')[:40]}.txt"
        if not path.exists():
            path.write_text(f"{text}\n" * count)
        return path

    def numbers(self, count: int) -> Path:
        path = self.scratch / f"numbers-{count}.txt"
        if not path.exists():
            path.write_text("".join(f"{number}\n" for number in range(count)))
        return path

    def at(self, home: Path) -> dict[str, str]:
        return {**self.env, "QUEUECTL_HOME": str(home)}

    def queue(self, home: Path, *arguments: str, stdin: Path | None = None) -> float:
        """Seconds that one queuectl command takes."""
        return timed([self.queuectl, *arguments], self.at(home), stdin)

    def _filled(self, count: int) -> Path:
        """A home with so many waiting jobs; made once, so nothing may be run or removed in it."""
        home = self.fresh(f"filled-{count}")
        self.queue(home, "enqueue", "--file", "-", stdin=self.lines(count))
        return home

    def imports(self) -> float:
        return timed([self.python, "-c", "import click, filelock"], self.env)

    def drain(self, command: str, count: int, workers: int = 1, threads: int = 2) -> Taken:
        """From the start of the workers until the last has drained a fresh queue and ended."""
        home = self.fresh()
        self.queue(home, "enqueue", "--file", "-", stdin=self.lines(count, command))
        return self.drained(home, workers, threads)

    def drained(self, home: Path, workers: int = 1, threads: int = 2) -> Taken:
        words = [self.queuectl, "worker", "start", "--drain", "--count", str(threads)]
        return timed(words, self.at(home), copies=workers)

    def xargs(self, count: int, command: str) -> Taken:
        return timed(["xargs", "-P2", "-I{}", "sh", "-c", command], self.env, self.numbers(count))

    def start_worker(self, home: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """A worker that has said that it started, by the line on stderr."""
        said = self.scratch / f"worker-{len(self.running)}.log"
        with said.open("wb") as out:
            worker = subprocess.Popen(
                [self.queuectl, "worker", "start", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self.at(home),
            )
        self.running.append(worker)
        until(lambda: said.stat().st_size or worker.poll() is not None, "the start of a worker")
        if worker.poll() is not None:
            raise NotMeasured(f"a worker ended at once: {said.read_text()[-400:].strip()}")
        return worker

    def stop_worker(self, worker: subprocess.Popen[bytes]) -> None:
        """Twice TERM: the running jobs are handed back. KILL where that is not enough."""
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            worker.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            worker.send_signal(signal.SIGTERM)
            worker.wait(15)
        worker.kill()
        worker.wait()

    def close(self) -> None:
        for worker in self.running:
            if worker.poll() is None:
                self.stop_worker(worker)


def stamps(path: Path) -> list[tuple[float, int]]:
    """(when, pid) of each job that has stamped the file, in seconds of the wall clock."""
    if not path.exists():
        return []
    # Only whole lines: the last may be on its way.
    whole = path.read_text().split("\n")[:-1]
    return [(int(when) / 1e9, int(pid)) for when, pid in (text.split() for text in whole)]


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, in nanoseconds' resolution where the kernel gives it."""
    try:
        times = [path.read_text().split()[0] for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
        if times:
            return sum(int(text) for text in times) / 1e9
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except OSError as error:
        raise NotMeasured(f"needs /proc ({error})") from None


def memory_bytes(pid: int) -> float:
    """What a process holds now."""
    try:
        return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) * 1024
    except OSError as error:
        raise NotMeasured(f"needs /proc ({error})") from None


# ---- the rows, by the name they are asked for


def drain_true(bench: Bench) -> Iterator[Row]:
    """drain of `true`, 2 threads, against xargs"""
    count = bench.pick(2_000, 8_000)
    samples = rounds(bench.pick(4, 9), lambda: bench.drain("true", count), lambda: bench.xargs(count, "true"))
    work = f"drain of {count:,} `true`, 2 threads, start included"
    yield compared(work, samples, "xargs", show=per_second(count), speed=True, goal=at_least(1.0))
    yield cpu_row(samples, count, "xargs")


def turn(bench: Bench) -> Iterator[Row]:
    """report and claim in a loop, without the commands"""
    count = bench.pick(5_000, 20_000)

    def once() -> float:
        words = [bench.python, "-c", TURNS, str(bench.fresh()), str(count)]
        return float(subprocess.run(words, env=bench.env, capture_output=True, check=True).stdout)

    yield alone(f"a turn (report and claim), of {count:,}", [once() for _ in range(bench.pick(2, 7))], microseconds)


def drain_echo(bench: Bench) -> Iterator[Row]:
    """drain of `echo x` with its output kept, against xargs writing one file per job"""
    count = bench.pick(1_500, 8_000)

    def into_files() -> Taken:
        return bench.xargs(count, f"echo x > {bench.fresh('files')}/{{}}.log")

    samples = rounds(bench.pick(4, 9), lambda: bench.drain("echo x", count), into_files)
    work = f"drain of {count:,} `echo x`, output kept"
    yield compared(work, samples, "xargs, files", show=per_second(count), speed=True, goal=at_least(0.85))
    yield cpu_row(samples, count, "xargs, files")


def two_workers(bench: Bench) -> Iterator[Row]:
    """two worker processes of one thread against one process of two threads"""
    count = bench.pick(1_500, 8_000)
    samples = rounds(
        bench.pick(3, 9),
        lambda: bench.drain("true", count, workers=2, threads=1),
        lambda: bench.drain("true", count, workers=1, threads=2),
    )
    work = f"drain of {count:,} `true`, 2 worker processes of 1 thread"
    yield compared(work, samples, "1 of 2", show=per_second(count), speed=True, goal=at_least(0.9))


def enqueue(bench: Bench) -> Iterator[Row]:
    """one enqueue: installed, as `python queuectl.py`, into a large queue, with a given id"""
    home, large, count = bench.fresh(), bench.filled(200_000), bench.pick(9, 31)
    numbers = iter(range(1_000_000))
    script = [bench.python, str(ROOT / "queuectl.py"), "enqueue", "true"]
    runs: list[tuple[str, Callable[[], float], float]] = [
        ("one enqueue", lambda: bench.queue(home, "enqueue", "true"), 1.1),
        ("one enqueue, python queuectl.py", lambda: timed(script, bench.at(home)), 2.0),
        ("one enqueue, 200,000 waiting", lambda: bench.queue(large, "enqueue", "true"), 1.1),
        ("  with a given id", lambda: bench.queue(large, "enqueue", "--id", f"b-{next(numbers)}", "true"), 1.6),
    ]
    for work, run, limit in runs:
        yield compared(work, rounds(count, run, bench.imports), "import", goal=at_most(limit))
    bench.queue(large, "enqueue", "--file", "-", stdin=bench.lines(45_000))  # short of a quarter: no fold
    yield compared("  beside a long journal", rounds(count, runs[-1][1], bench.imports), "import", goal=at_most(1.6))


@contextlib.contextmanager
def stream(bench: Bench, home: Path) -> Iterator[Callable[[str], str]]:
    """`enqueue --stream`: a function that hands it a line and returns the id once the job is accepted."""
    child = subprocess.Popen(
        [bench.queuectl, "enqueue", "--stream"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=bench.at(home)
    )
    given, taken = pipe(child.stdin), pipe(child.stdout)

    def accept(text: str) -> str:
        given.write(f"{text}\n".encode())
        given.flush()
        answer = taken.readline()
        if not answer:
            raise NotMeasured(f"enqueue --stream ended with {child.wait()}")
        return answer.decode().strip()

    try:
        yield accept
    finally:
        given.close()
        child.wait(DEADLINE_S)
        taken.close()


def pipe(end: IO[bytes] | None) -> IO[bytes]:
    assert end is not None
    return end


def enqueue_stream(bench: Bench) -> Iterator[Row]:
    """enqueue --stream, a line at a time, each waited for, against a line written and synced"""
    count, home = bench.pick(200, 1_000), bench.fresh()
    with stream(bench, home) as accept, open(bench.fresh("sync") / "lines", "wb", buffering=0) as plain:
        accept("true")  # the start of the process is not part of it

        def ours() -> float:
            began = time.perf_counter()
            for _ in range(count):
                accept("true")
            return (time.perf_counter() - began) / count

        def synced() -> float:
            began = time.perf_counter()
            for _ in range(count):
                plain.write(b"x" * 399 + b"\n")
                os.fsync(plain.fileno())
            return (time.perf_counter() - began) / count

        samples = rounds(bench.pick(5, 15), ours, synced)
    goal = below(0.001, "1 ms")
    yield compared("enqueue --stream, per job", samples, "write+fsync", goal=goal)


def enqueue_bulk(bench: Bench) -> Iterator[Row]:
    """bulk enqueue --file -, jobs a second, and how long it holds the lock"""
    count = bench.pick(200_000, 1_000_000)
    rates, held = [], []
    for _ in range(bench.pick(2, 5)):
        home = bench.fresh()
        bench.queue(home, "enqueue", "true")
        words = [bench.python, "-c", LOCK_HELD, str(home / ".queuectl" / "lock")]
        watch = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=bench.env)
        rates.append(bench.queue(home, "enqueue", "--file", "-", stdin=bench.lines(count)))
        held.append(float(watch.communicate()[0]))
    goal = Goal(">= 100k/s", lambda ours, ratio: count / ours >= 100_000)
    yield alone(f"enqueue --file -, {count:,} lines", rates, per_second(count), goal)
    yield alone("  the longest that the lock was held", held, whole_seconds, below(3.0, "3 s"))


def chain(bench: Bench) -> Iterator[Row]:
    """100 jobs, each after the one before, against as many independent ones"""
    before = [""] + [f', "after": ["j{number}"]' for number in range(99)]
    lines = bench.scratch / "chain.txt"
    lines.write_text("".join(f'{{"command": "true", "id": "j{n}"{after}}}\n' for n, after in enumerate(before)))

    def drained(jobs: Path) -> Taken:
        home = bench.fresh()
        bench.queue(home, "enqueue", "--file", "-", stdin=jobs)
        return bench.drained(home, threads=1)

    samples = rounds(bench.pick(3, 9), partial(drained, lines), partial(drained, bench.lines(100)))
    yield compared("a chain of 100 `--after` jobs", samples, "independent", goal=at_most(1.5))


def status(bench: Bench) -> Iterator[Row]:
    """status, in a small queue and a large one, without and with a worker"""
    size, count = bench.pick(200_000, 1_000_000), bench.pick(9, 31)
    samples = rounds(count, partial(bench.queue, bench.filled(10_000), "status"), bench.imports)
    yield compared("status, 10,000 jobs", samples, "import", goal=at_most(1.2))
    home = bench.filled(size)
    samples = rounds(bench.pick(3, 9), partial(bench.queue, home, "status"), bench.imports)
    yield compared(f"status, {size:,} jobs", samples, "import", goal=below(1.0, "1 s"))
    bench.queue(home, "pause")
    worker = bench.start_worker(home)
    time.sleep(3)
    samples = rounds(count, partial(bench.queue, home, "status"), bench.imports)
    bench.stop_worker(worker)
    bench.queue(home, "resume")
    yield compared("  beside a worker", samples, "import", goal=at_most(1.5))


def list_limit(bench: Bench) -> Iterator[Row]:
    """list --limit 20 in a large queue"""
    size = bench.pick(200_000, 1_000_000)
    home = bench.filled(size)
    samples = rounds(bench.pick(7, 15), lambda: bench.queue(home, "list", "--limit", "20"), bench.imports)
    yield compared(f"list --limit 20, {size:,} jobs", samples, "import", goal=below(0.5, "500 ms"))


def dispatch(bench: Bench) -> Iterator[Row]:
    """from the return of an enqueue to the start of its job in an idle worker, by the job's own clock"""
    home = bench.fresh()
    worker = bench.start_worker(home, "--count", "1")
    taken = dispatched(bench, home, bench.pick(60, 1_000))
    bench.stop_worker(worker)
    for percent, goal in ((50, below(0.002, "2 ms")), (99, below(0.010, "10 ms"))):
        ours, other = (percentile([pair[k] for pair in taken], percent) for k in (0, 1))
        work, beside = f"start of a job after its enqueue, {percent} percent", f"{milliseconds(other)} posix_spawn"
        mark = "" if goal.is_met(ours, 0) else " !"
        yield Row(work, milliseconds(ours), beside, f"{ours / other:.2f}", goal.text + mark, f"{len(taken)}")


def dispatched(bench: Bench, home: Path, count: int) -> list[tuple[float, float]]:
    """So many times the seconds until a job starts, and until a plain process does."""
    where = bench.fresh("stamps")
    children: list[int] = []

    def one(name: str, begin: Callable[[str], object]) -> float:
        path = where / name
        time.sleep(0.01)  # idle again
        begin(f"exec {bench.stamp} {path}")
        accepted = time.time()
        until(lambda: stamps(path), "the start of a job")
        return stamps(path)[0][0] - accepted

    def spawned(command: str) -> None:
        # Its return is the spawn's, so what is left is the start of the shell and of the stamp.
        quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        children.append(os.posix_spawnp("sh", ["sh", "-c", command], bench.env, file_actions=quiet))

    taken = []
    with stream(bench, home) as accept:
        time.sleep(0.5)
        one("first", accept)
        for number in range(count):
            taken.append((one(f"job-{number}", accept), one(f"plain-{number}", spawned)))
            os.waitpid(children.pop(), 0)
    return taken


def percentile(figures: list[float], percent: float) -> float:
    ordered = sorted(figures)
    return ordered[min(len(ordered) - 1, round(len(ordered) * percent / 100))]


def idle(bench: Bench) -> Iterator[Row]:
    """CPU of an idle worker"""
    home, seconds = bench.fresh(), bench.pick(5, 60)
    bench.queue(home, "enqueue", "true")
    worker = bench.start_worker(home, "--count", "2")
    time.sleep(1.5)
    before, began = cpu_seconds(worker.pid), time.monotonic()
    time.sleep(seconds)
    share = (cpu_seconds(worker.pid) - before) / (time.monotonic() - began)
    bench.stop_worker(worker)
    yield alone(f"idle worker, part of a core over {seconds} s", [share], "{:.3%}".format, below(0.001, "0.1%"))


def load(bench: Bench) -> Iterator[Row]:
    """how long a worker in a large queue takes until its first job runs, and its memory a job"""
    size, where = bench.pick(200_000, 1_000_000), bench.fresh("stamps") / "stamp"
    homes = {size: bench.fresh(), 0: bench.fresh()}
    bench.queue(homes[size], "enqueue", "--file", "-", stdin=bench.lines(size))
    for home in homes.values():  # its only thread is kept busy, so that the rest stays waiting
        bench.queue(home, "enqueue", "--priority", "9", f"exec {bench.stamp} {where} 25")
    memory: dict[int, list[float]] = {size: [], 0: []}

    def ready(waiting: int) -> float:
        where.unlink(missing_ok=True)
        began = time.time()
        worker = bench.start_worker(homes[waiting], "--count", "1")
        until(lambda: stamps(where), "the first job")
        took = stamps(where)[0][0] - began
        time.sleep(1)
        memory[waiting].append(memory_bytes(worker.pid))
        bench.stop_worker(worker)
        return took

    samples = rounds(bench.pick(2, 5), partial(ready, size), partial(ready, 0))
    work = f"worker until its first job runs, {size:,} waiting"
    yield compared(work, samples, "empty", show=whole_seconds, goal=below(1.5, "1.5 s"))
    each = [(large - empty) / size for large, empty in zip(memory[size], memory[0], strict=True)]
    yield alone("  its memory a waiting job", each, bytes_each, below(150, "150 B"))


def recovery(bench: Bench) -> Iterator[Row]:
    """from kill -9 of a worker and its jobs to the new start of these in another"""

    def once() -> float:
        home, where = bench.fresh(), bench.fresh("stamps") / "stamps"
        doomed = bench.start_worker(home, "--count", "2")
        for _ in range(2):
            bench.queue(home, "enqueue", f"exec {bench.stamp} {where} 25")
        until(lambda: len(stamps(where)) == 2, "the start of two jobs")
        other = bench.start_worker(home, "--count", "2")
        time.sleep(0.7)
        killed = time.time()
        doomed.kill()
        for _, pid in stamps(where):
            os.kill(pid, signal.SIGKILL)
        doomed.wait()
        until(lambda: len(stamps(where)) == 4, "the recovery of two jobs")
        took = max(when for when, _ in stamps(where)) - killed
        bench.stop_worker(other)
        return took

    taken = [once() for _ in range(bench.pick(2, 7))]
    yield alone("kill -9 of a worker and its jobs, until they run again", taken, whole_seconds, below(5, "5 s"))


ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    make.__name__.replace("_", "-"): make
    for make in (
        *(drain_true, turn, drain_echo, two_workers, enqueue, enqueue_stream, enqueue_bulk, chain),
        *(status, list_limit, dispatch, idle, load, recovery),
    )
}


# ---- main


def machine(where: Path) -> str:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        model = Path("/proc/cpuinfo").read_text().split("model name")[1].split("\n")[0].split(":", 1)[1].strip()
    system = "unknown"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(["stat", "-f", "-c", "%T", where], capture_output=True, text=True, check=True)
        system = told.stdout.strip()
    return (
        f"{os.cpu_count()} cores of {model}, {platform.system()} {platform.release()}, file system {system}, "
        f"Python {platform.python_version()}, {datetime.date.today()}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows to make: names or their beginnings")
    parser.add_argument("--full", action="store_true", help="larger queues and more rounds (about half an hour)")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--dir", type=Path, help="where the homes are made (default: the temporary directory)")
    options = parser.parse_args()
    if options.list:
        for name, make in ROWS.items():
            print(f"{name:<15} {make.__doc__}")
        return 0
    asked = options.names or [""]
    beginnings = tuple(part for part in asked if part not in ROWS)
    chosen = [name for name in ROWS if name in asked or name.startswith(beginnings)]
    if not chosen:
        parser.error(f"no row has such a name; there are: {', '.join(ROWS)}")

    began, problems = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.dir, ignore_cleanup_errors=True) as scratch:
        print(machine(Path(scratch)), flush=True)
        try:
            bench = Bench(Path(scratch), options.full)
        except (NotMeasured, OSError, subprocess.CalledProcessError) as reason:
            print(f"Error: {reason}", file=sys.stderr)
            return 1
        print("\n" + line(HEAD) + "\n" + "-" * 126, flush=True)
        for name in chosen:
            try:
                for row in ROWS[name](bench):
                    print(line(row), flush=True)
            except (NotMeasured, subprocess.CalledProcessError) as reason:
                problems += 1
                print(f"{name}: not measured: {reason}", flush=True)
            finally:
                bench.close()
    print(f"\n! goal missed. {time.monotonic() - began:.0f} s, {'full' if options.full else 'short'} form.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
