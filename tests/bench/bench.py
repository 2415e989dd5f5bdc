"""What QueueCTL costs, each figure beside something run at the same moment.

    python tests/bench/bench.py [--full] [--list] [--dir DIR] [NAME...]

Prints a table and asserts nothing: figures depend on the machine, and a test that depends on the machine is
red for no reason. The short form takes about two minutes on a quiet machine of two cores; --full takes queues of
up to a million jobs and more rounds, and says how long that may be.

How a row is made: in every round ours and its reference run one after the other, in an order that turns from
round to round. A round in which the reference itself was slow (more than 1.5 times its best) says that the
machine was busy, and is left out; the last column counts. The rest is medians, of the ratio per round too.
'xargs' and 'C' keep two commands going at once, as a worker with two threads does, without any records of
them; 'import' is the start of Python with click and filelock, which no command can go below.

CPU time is that of the whole tree, the jobs' own included, and steadier than a rate on a machine that others use.
"Disk written" is what the kernel counts as sent to the disk for these processes, in pages: nothing on a tmpfs.

Every run has a fresh home in a temporary directory, and the program is installed from this checkout into an
environment of its own, so that it is compiled once, as for a user. It needs cc, xargs and pip's sources.
The peers come by themselves too: requirements.txt beside this file into another environment, and programs that are
missing from Debian's packages, unpacked in the temporary directory: nothing is installed. What cannot be had is
left out with a word.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
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
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of what getrusage answers

# The least that a bulk enqueue must do: quote every command into a record, write them with a checksum, sync.
ENCODE = """
import os, sys, zlib
from json.encoder import encode_basestring_ascii as quoted
RECORD = (
    '{"id":"mtq0a1b2%04x","state":"pending","seq":%d,"command":%s,"attempts":0,"runs":0,"max_retries":3,'
    '"priority":0,"timeout":30,"created_at":"2030-01-01T00:00:00.000Z","updated_at":"2030-01-01T00:00:00.000Z",'
    '"cwd":"/"}'
)
with open(sys.argv[1], "wb") as out:
    def write(records):
        data = ", ".join(records).encode()
        out.write(b"%08x " % zlib.crc32(data) + data + b"\\n")
    records = []
    for number, line in enumerate(sys.stdin):
        records.append(RECORD % (number, number, quoted(line.rstrip())))
        if len(records) == 20000:
            write(records)
            records = []
    write(records)
    out.flush()
    os.fsync(out.fileno())
"""


# What many write instead of a queue: jobs in a table, claimed in a transaction, run by two threads.
SQLITE_LOOP = """
import sqlite3, subprocess, sys, threading
path, count = sys.argv[1], int(sys.argv[2])
db = sqlite3.connect(path)
db.executescript("pragma journal_mode=wal; create table jobs (id integer primary key, command, state, code)")
with db:
    db.executemany("insert into jobs (command, state) values (?, 'pending')", [("true",)] * count)
def work():
    db = sqlite3.connect(path, isolation_level=None, timeout=30)
    db.execute("pragma synchronous=normal")
    while True:
        row = db.execute(
            "update jobs set state = 'processing' where id = (select id from jobs where state = 'pending' limit 1)"
            " returning id, command"
        ).fetchone()
        if row is None:
            return
        code = subprocess.run(["sh", "-c", row[1]], stdin=subprocess.DEVNULL).returncode
        db.execute("update jobs set state = 'completed', code = ? where id = ?", (code, row[0]))
db.execute("create index waiting on jobs (id) where state = 'pending'")
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""

# The peers in Python: `enqueue` puts in so many jobs, `drain` runs them in two threads and ends after the last.
HUEY = """
import subprocess, sys, threading
from huey import SqliteHuey
what, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
huey = SqliteHuey(filename=path)
@huey.task()
def run(command):
    subprocess.call(["sh", "-c", command], stdin=subprocess.DEVNULL)
if what == "enqueue":
    for _ in range(count):
        run("true")
else:
    last, done = iter(range(count - 1)), threading.Event()
    @huey.signal("complete")
    def ended(signal, task):
        if next(last, None) is None:
            done.set()
    consumer = huey.create_consumer(workers=2, periodic=False)
    consumer.start()
    done.wait()
    consumer.stop(graceful=True)
"""

RQ_ENQUEUE = """
import sys
from redis import Redis
from rq import Queue
queue = Queue(connection=Redis(unix_socket_path=sys.argv[1]))
for _ in range(int(sys.argv[2])):
    queue.enqueue("subprocess.call", ["sh", "-c", "true"])
"""

# Programs that rows use where they can be had, and Debian's packages of them.
TOOLS = {
    "parallel": "parallel",
    "tsp": "task-spooler",
    "nq": "nq",
    "redis-server": "redis-server",
}

# A process counts as its own the peak of the one it was forked from. So a small one stands between.
PEAK = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


class NotMeasured(Exception):
    """A row could not be made; the reason is the message."""


class Taken(float):
    """The seconds that a run took, and what its processes used, those that they waited for included."""

    cpu: float  # seconds
    written: float  # bytes to the disk
    peak: float  # bytes of the largest process; never less than this one's own peak, since it is forked from here

    def lasting(self, seconds: float) -> Taken:
        """The same, but of other seconds."""
        other = Taken(seconds)
        other.__dict__.update(self.__dict__)
        return other


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


def megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


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
    index: int = 1,
    show: Callable[[float], str] = milliseconds,
    speed: bool = False,
    goal: Goal = NO_GOAL,
) -> Row:
    """One row: column 0 of the samples is ours, column `index` the reference.

    The ratio is ours to the reference, in time taken, or in `speed` (so more is better).
    """
    best = min(sample[index] for sample in samples)
    kept = [(sample[0], sample[index]) for sample in samples if sample[index] <= SLOW_ROUND * best]
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


def cpu_row(samples: Sequence[tuple[Taken, ...]], counts: tuple[int, ...], reference: str, index: int = 1) -> Row:
    """The CPU time a job: ours ran counts[0] of them, the reference counts[index]."""
    each = [tuple(run.cpu / count for run, count in zip(sample, counts, strict=True)) for sample in samples]
    return compared("  its CPU time a job", each, reference, index=index, show=microseconds)


def disk_row(samples: Sequence[tuple[Taken, ...]], count: int, reference: str = "") -> Row:
    each = [tuple(run.written / count for run in sample) for sample in samples]
    if reference and all(sample[1] for sample in each):
        return compared("  disk written a job", each, reference, show=bytes_each)
    return alone("  disk written a job", [sample[0] for sample in each], bytes_each)


def left_out(what: str, reason: str) -> Row:
    return Row(f"{what}: left out, {reason}", "-")


# ---- the machinery: one queue program, many homes


def timed(
    command: list[str], env: dict[str, str], stdin: Path | None = None, *, copies: int = 1, quiet: bool = False
) -> Taken:
    """What a command takes, or several copies of it at once; it must succeed.

    What it prints is of interest only if it fails, and not kept at all if it is `quiet`.
    """
    with open(stdin or os.devnull, "rb") as given, tempfile.TemporaryFile() as said:
        err = subprocess.DEVNULL if quiet else said
        began = time.perf_counter()
        children = [
            subprocess.Popen(command, stdin=given, stdout=subprocess.DEVNULL, stderr=err, env=env)
            for _ in range(copies)
        ]
        taken = ended(children, began)
        if any(child.returncode for child in children):
            said.seek(0)
            codes = ", ".join(str(child.returncode) for child in children)
            raise NotMeasured(f"{' '.join(command)[:150]}: exit {codes}: {said.read().decode()[-400:].strip()}")
    return taken


def ended(children: list[subprocess.Popen[bytes]], began: float) -> Taken:
    """Waits for children; their exit codes are for the caller to look at."""
    used = []
    for child in children:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        used.append(usage)
    taken = Taken(time.perf_counter() - began)
    taken.cpu = sum(usage.ru_utime + usage.ru_stime for usage in used)
    taken.written = sum(usage.ru_oublock * 512 for usage in used)
    taken.peak = max(usage.ru_maxrss for usage in used) * RSS_UNIT
    return taken


def peak_bytes(command: list[str], env: dict[str, str], stdin: Path) -> float:
    """The most memory that a command held."""
    with open(stdin, "rb") as given:
        done = subprocess.run([sys.executable, "-c", PEAK, *command], stdin=given, capture_output=True, env=env)
    if done.returncode:
        raise NotMeasured(f"{' '.join(command)[:150]}: exit {done.returncode}: {done.stderr.decode()[-400:]}")
    return int(done.stdout) * RSS_UNIT


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise NotMeasured(f"{what} did not happen within {DEADLINE_S:.0f} s")
        time.sleep(0.0005)


class Bench:
    """The installed program, the compiled helpers, and the homes made so far. All of it below `scratch`."""

    def __init__(self, scratch: Path, full: bool) -> None:
        self.scratch = scratch
        self.full = full
        self.env = dict(os.environ)
        # With it set, an installed module would be compiled anew at every start.
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)
        self.count = 0
        self.running: list[subprocess.Popen[bytes]] = []
        self.spawn = self.compile("spawn")
        self.stamp = self.compile("stamp")
        self.python, self.queuectl = self.install()
        self.filled = cache(self._filled)
        self.with_tools = cache(self._with_tools)

    def compile(self, name: str, *options: str) -> str:
        compiler = shutil.which("cc")
        if not compiler:
            raise NotMeasured("no C compiler (cc) for the reference")
        target = self.scratch / name
        subprocess.run([compiler, "-O2", *options, "-o", target, BENCH / f"{name}.c"], check=True)
        return str(target)

    def install(self) -> tuple[str, str]:
        """The interpreter and the command of a new environment that has this checkout's program."""
        source = self.fresh("source")
        for name in ("queuectl.py", "pyproject.toml", "requirements.txt", "README.md"):
            shutil.copy(ROOT / name, source)
        programs = self.environment(str(source))
        return str(programs / "python"), str(programs / "queuectl")

    def environment(self, *wanted: str) -> Path:
        """The programs of a new environment with what pip is asked for."""
        programs = self.fresh("environment") / "bin"
        for command in (
            [sys.executable, "-m", "venv", str(programs.parent)],
            [str(programs / "python"), "-m", "pip", "install", "-q", *wanted],
        ):
            done = subprocess.run(command, env=self.env, capture_output=True, text=True)
            if done.returncode:
                raise NotMeasured(f"{' '.join(command)}: {done.stderr[-800:]}")
        return programs

    def _with_tools(self) -> dict[str, str]:
        """An environment whose PATH has the TOOLS: those that are missing are unpacked into the scratch."""
        got = self.fresh("debian")
        words = ["apt-get", "install", "-q", "-y", "--no-install-recommends", "--download-only"]
        words += ["-o", "Debug::NoLocking=1", "-o", f"Dir::Cache::archives={got}"]
        for name, package in TOOLS.items():
            if shutil.which("apt-get") and not shutil.which(name):
                subprocess.run([*words, package], capture_output=True)
        for archive in got.glob("*.deb"):
            subprocess.run(["dpkg", "-x", archive, got], check=True)
        libraries = ":".join(str(path) for path in got.glob("usr/lib/*"))
        path = f"{self.env['PATH']}:{got}/usr/bin"
        return {**self.env, "PATH": path, "LD_LIBRARY_PATH": libraries}

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

    def answer(self, home: Path, *arguments: str) -> Any:
        """The JSON value that a queuectl command prints."""
        done = subprocess.run([self.queuectl, *arguments], env=self.at(home), capture_output=True, text=True)
        if done.returncode:
            raise NotMeasured(f"queuectl {' '.join(arguments)}: exit {done.returncode}: {done.stderr.strip()}")
        return json.loads(done.stdout)

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
        return timed(self.drainer(threads), self.at(home), copies=workers, quiet=True)

    def drainer(self, threads: int = 2) -> list[str]:
        return [self.queuectl, "worker", "start", "--drain", "--count", str(threads)]

    def xargs(self, count: int, command: str, parallel: int = 2) -> Taken:
        words = ["xargs", f"-P{parallel}", "-I{}", "sh", "-c", command]
        return timed(words, self.env, self.numbers(count))

    def xargs_into_files(self, count: int) -> Taken:
        where = self.fresh("files")
        return self.xargs(count, f"echo x > {where}/{{}}.log")

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


def tree_cpu_seconds(pid: int) -> float:
    """CPU time of a process and of those that it has waited for, in the clock's ticks."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError as error:
        raise NotMeasured(f"needs /proc ({error})") from None
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int) -> tuple[float, float]:
    """What a process holds now, and the most that it held."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError as error:
        raise NotMeasured(f"needs /proc ({error})") from None
    now, most = (int(text.split(f"{name}:")[1].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


# ---- the rows, by the name they are asked for


def drain_true(bench: Bench) -> Iterator[Row]:
    """drain of `true`, 2 threads, against xargs and against the C program"""
    count = bench.pick(2_000, 20_000)
    samples = rounds(
        bench.pick(4, 9),
        lambda: bench.drain("true", count),
        lambda: bench.xargs(count, "true"),
        lambda: timed([bench.spawn, str(count), "2", "true"], bench.env),
    )
    show = per_second(count)
    work = f"drain of {count:,} `true`, 2 threads, start included"
    for index, reference, least in ((1, "xargs", 1.1), (2, "C", 0.9)):
        yield compared(work, samples, reference, index=index, show=show, speed=True, goal=at_least(least))
        yield cpu_row(samples, (count, count, count), reference, index)
    yield disk_row(samples, count)
    nothing = rounds(bench.pick(5, 15), lambda: bench.drained(bench.fresh()), bench.imports)
    yield compared("  the start alone: a drain of an empty queue", nothing, "import")


def drain_flat(bench: Bench) -> Iterator[Row]:
    """whole drains of small and large queues: what a job takes must not depend on how many there are"""
    sizes = bench.pick([(500, 2), (4_000, 1)], [(2_000, 9), (20_000, 3), (200_000, 1), (1_000_000, 1)])
    smallest, first = sizes[0][0], 0.0
    started = statistics.median(bench.drained(bench.fresh()).cpu for _ in range(5))
    for size, count in sizes:
        beside = min(size, 20_000)

        def ours(size: int = size) -> Taken:
            """A job's share of the time since the first began."""
            home, where = bench.fresh(), bench.fresh("stamps") / "stamp"
            bench.queue(home, "enqueue", "--file", "-", stdin=bench.lines(size))
            bench.queue(home, "enqueue", "--priority", "9", f"exec {bench.stamp} {where}")
            taken = bench.drained(home)
            return taken.lasting((time.time() - stamps(where)[0][0]) / size)

        def theirs(beside: int = beside) -> Taken:
            taken = bench.xargs(beside, "true")
            return taken.lasting(taken / beside)

        samples = rounds(count, ours, theirs)
        work = f"drain of {size:,} `true`, 2 threads, start not included"
        yield compared(work, samples, "xargs", show=per_second(1), speed=True, goal=at_least(1.1))
        each = statistics.median(sample[0].cpu - started for sample in samples) / size
        first = first or each
        yield compared(
            "  its CPU time a job", [(each, first)], f"of {smallest:,}", show=microseconds, goal=at_most(1.1)
        )
        yield disk_row(samples, size)
        yield alone("  its peak memory", [sample[0].peak for sample in samples], megabytes)


def drain_large(bench: Bench) -> Iterator[Row]:
    """the rate while very many jobs wait, also with output and with 3 worker processes, against xargs"""
    waiting, count, seconds = bench.pick(200_000, 1_000_000), bench.pick(1_500, 5_000), bench.pick(2, 20)
    variants = (("true", 1, 2), ("true", 3, 1), ("echo x", 1, 2))
    for command, workers, threads in variants if bench.full else variants[:1]:
        home = bench.fresh()
        bench.queue(home, "enqueue", "--file", "-", stdin=bench.lines(waiting, command))

        def ours(home: Path = home, workers: int = workers, threads: int = threads) -> Taken:
            """For `count` jobs, by what ended between two instants, without the workers' start and stop."""
            running = [bench.start_worker(home, "--count", str(threads)) for _ in range(workers)]
            time.sleep(1)
            used, began = [tree_cpu_seconds(worker.pid) for worker in running], time.time()
            time.sleep(seconds)
            used, over = [tree_cpu_seconds(w.pid) - u for w, u in zip(running, used, strict=True)], time.time()
            for worker in running:
                bench.stop_worker(worker)
            jobs = bench.answer(home, "list", "--state", "completed", "--json")
            instants = (datetime.datetime.fromisoformat(job["finished_at"]).timestamp() for job in jobs)
            share = count / sum(began <= instant < over for instant in instants)
            taken = Taken((over - began) * share)
            taken.cpu = sum(used) * share
            return taken

        ours()  # the first worker folds what the enqueue wrote

        def theirs(command: str = command, parallel: int = workers * threads) -> Taken:
            into = f" > {bench.fresh('files')}/{{}}.log" if command != "true" else ""
            return bench.xargs(count, command + into, parallel)

        samples = rounds(bench.pick(2, 5), ours, theirs)
        who = f"{workers} processes" if workers > 1 else f"{threads} threads"
        work = f"`{command}`, {who}, {waiting:,} waiting, start not included"
        goal = at_least(1.1 if command == "true" else 0.9)
        beside = "xargs" if command == "true" else "xargs, files"
        yield compared(work, samples, beside, show=per_second(count), speed=True, goal=goal)
        yield cpu_row(samples, (count, count), beside)


def drain_echo(bench: Bench) -> Iterator[Row]:
    """drain of `echo x` with its output kept, against xargs writing one file per job"""
    count = bench.pick(1_500, 20_000)
    show, beside, goal = per_second(count), "xargs, files", at_least(0.9)
    samples = rounds(bench.pick(4, 9), lambda: bench.drain("echo x", count), lambda: bench.xargs_into_files(count))
    work = f"drain of {count:,} `echo x`, output kept"
    yield compared(work, samples, beside, show=show, speed=True, goal=goal)
    yield cpu_row(samples, (count, count), beside)
    yield disk_row(samples, count, beside)
    if bench.full:
        # On some file systems a directory gets slow once it has seen many deletions.
        home, files, old = bench.fresh(), bench.fresh("files"), 50_000
        bench.queue(home, "enqueue", "--file", "-", stdin=bench.lines(old, "echo x"))
        bench.drained(home)
        bench.queue(home, "purge", "--state", "completed", "--yes")
        for number in range(old):
            (files / f"{number}.log").touch()
        for number in range(old):
            (files / f"{number}.log").unlink()

        def ours() -> Taken:
            bench.queue(home, "enqueue", "--file", "-", stdin=bench.lines(count, "echo x"))
            return bench.drained(home)

        samples = rounds(5, ours, lambda: bench.xargs(count, f"echo x > {files}/{{}}.log"))
        work = f"  the same after {old:,} deletions"
        yield compared(work, samples, beside, show=show, speed=True, goal=goal)
        yield cpu_row(samples, (count, count), beside)


def two_workers(bench: Bench) -> Iterator[Row]:
    """two worker processes of one thread against one process of two threads"""
    count = bench.pick(1_500, 20_000)
    samples = rounds(
        bench.pick(3, 9),
        lambda: bench.drain("true", count, workers=2, threads=1),
        lambda: bench.drain("true", count, workers=1, threads=2),
    )
    work = f"drain of {count:,} `true`, 2 worker processes of 1 thread"
    yield compared(work, samples, "1 of 2", show=per_second(count), speed=True, goal=at_least(0.9))
    yield cpu_row(samples, (count, count), "1 of 2")


def syncs(bench: Bench) -> Iterator[Row]:
    """how often a busy worker asks the disk to sync"""
    if sys.platform != "linux":
        yield left_out("syncs of a busy worker", "counted on Linux only")
        return
    counter = bench.compile("syncs", "-shared", "-fPIC")
    for command in ("true", "echo x"):
        home, log = bench.fresh(), bench.fresh("syncs") / "log"
        bench.queue(home, "enqueue", "--file", "-", stdin=bench.lines(bench.pick(2_500, 20_000), command))
        took = timed(bench.drainer(), {**bench.at(home), "LD_PRELOAD": counter, "SYNCS": str(log)}, quiet=True)
        yield alone(f"syncs of a busy worker, `{command}`", [log.stat().st_size / took], "{:.1f}/s".format)


def enqueue(bench: Bench) -> Iterator[Row]:
    """one enqueue, installed and as `python queuectl.py`"""
    home, count = bench.fresh(), bench.pick(15, 60)
    script = [bench.python, str(ROOT / "queuectl.py"), "enqueue", "true"]
    samples = rounds(
        count,
        lambda: bench.queue(home, "enqueue", "true"),
        bench.imports,
        lambda: timed(script, bench.at(home)),
    )
    yield compared("one enqueue, installed", samples, "import", goal=at_most(1.15))
    turned = [(script_s, import_s) for _, import_s, script_s in samples]
    yield compared("one enqueue, python queuectl.py", turned, "import", goal=at_most(1.35))


def enqueue_large(bench: Bench) -> Iterator[Row]:
    """one enqueue into a large queue: plain, with a given id, with a unique key"""
    numbers = iter(range(1_000_000))
    for size in (200_000, 1_000_000) if bench.full else (200_000,):
        home = bench.filled(size)

        def plain(home: Path = home) -> float:
            return bench.queue(home, "enqueue", "true")

        def with_id(home: Path = home) -> float:
            return bench.queue(home, "enqueue", "--id", f"bench-{next(numbers)}", "true")

        def unique(home: Path = home) -> float:
            return bench.queue(home, "enqueue", f"--unique=bench-{next(numbers)}", "true")

        for work, run, limit in (
            (f"one enqueue, {size:,} waiting", plain, 1.15),
            (f"one enqueue with a given id, {size:,} waiting", with_id, 1.6),
            (f"one enqueue with a unique key, {size:,} waiting", unique, 1.6),
        ):
            goal = at_most(limit) if run is plain or size == 200_000 else NO_GOAL
            yield compared(work, rounds(bench.pick(9, 31), run, bench.imports), "import", goal=goal)


@contextlib.contextmanager
def stream(bench: Bench, home: Path) -> Iterator[Callable[[str], str]]:
    """`enqueue --stream`: a function that hands it a line and returns the id once the job is accepted."""
    child = subprocess.Popen(
        [bench.queuectl, "enqueue", "--stream"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=bench.at(home),
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
    """bulk enqueue --file -, jobs a second against the bare encoding, and its memory"""
    count = bench.pick(200_000, 1_000_000)
    encoded = bench.fresh("encoded") / "lines"
    bulk = [bench.queuectl, "enqueue", "--file", "-"]
    samples = rounds(
        bench.pick(3, 7),
        lambda: timed(bulk, bench.at(bench.fresh()), bench.lines(count)),
        lambda: timed([bench.python, "-c", ENCODE, str(encoded)], bench.env, bench.lines(count)),
    )
    goal = Goal(">= 300k/s", lambda ours, ratio: count / ours >= 300_000)
    work = f"enqueue --file -, {count:,} lines"
    yield compared(work, samples, "encoding", show=per_second(count), speed=True, goal=goal)
    memory = rounds(
        2,
        lambda: peak_bytes(bulk, bench.at(bench.fresh()), bench.lines(count)),
        lambda: peak_bytes(bulk, bench.at(bench.fresh()), bench.lines(count // 10)),
    )
    goal = Goal("bounded", lambda ours, ratio: ratio < 1.5)
    yield compared("  its memory", memory, "a tenth of it", show=megabytes, goal=goal)


def status(bench: Bench) -> Iterator[Row]:
    """status, in a small queue, a large one, and one with a long journal"""
    count = bench.pick(9, 31)
    sizes = [(10_000, 1.2), (200_000, 1.5), *([(1_000_000, 1.5)] if bench.full else [])]
    for size, limit in sizes:
        home = bench.filled(size)
        samples = rounds(count, partial(bench.queue, home, "status"), bench.imports)
        yield compared(f"status, {size:,} jobs", samples, "import", goal=at_most(limit))
    # A tenth more in one command stays below the quarter at which the journal is folded.
    size = sizes[-1][0]
    home = bench.fresh()
    for part in (size, size // 10):
        bench.queue(home, "enqueue", "--file", "-", stdin=bench.lines(part))
    samples = rounds(count, partial(bench.queue, home, "status"), bench.imports)
    work = f"status, {size:,} jobs and {size // 10:,} in the journal"
    yield compared(work, samples, "import", goal=at_most(1.5))


def list_limit(bench: Bench) -> Iterator[Row]:
    """list --limit 20 in a large queue"""
    size = bench.pick(200_000, 1_000_000)
    home = bench.filled(size)
    samples = rounds(bench.pick(7, 15), lambda: bench.queue(home, "list", "--limit", "20"), bench.imports)
    yield compared(f"list --limit 20, {size:,} jobs", samples, "import", goal=below(0.5, "500 ms"))


def dispatch(bench: Bench) -> Iterator[Row]:
    """from the return of an enqueue to the start of its job in an idle worker, by the job's own clock"""
    size = bench.pick(200_000, 1_000_000)
    for what, workers, waiting, before in (
        ("idle worker", 1, 0, ""),
        ("3 idle workers", 3, 0, ""),
        ("with output", 1, 0, "echo x; "),
        (f"{size:,} wait", 1, size, ""),
    ):
        home = bench.fresh()
        if waiting:
            bench.queue(home, "enqueue", "--file", "-", "--delay", "1d", stdin=bench.lines(waiting))
        running = [bench.start_worker(home, "--count", "1") for _ in range(workers)]
        taken = dispatched(bench, home, before, bench.pick(60, 1_000))
        for worker in running:
            bench.stop_worker(worker)
        for work, percent, goal in (
            ("median", 50, below(0.002, "2 ms")),
            ("99th percentile", 99, below(0.010, "10 ms")),
        ):
            ours, other = (percentile([pair[k] for pair in taken], percent) for k in (0, 1))
            yield Row(
                f"start of a job after its enqueue, {what}, {work}",
                milliseconds(ours),
                f"{milliseconds(other)} posix_spawn",
                f"{ours / other:.2f}",
                goal.text + ("" if goal.is_met(ours, 0) else " !"),
                f"{len(taken)}",
            )


def dispatched(bench: Bench, home: Path, before: str, count: int) -> list[tuple[float, float]]:
    """So many times the seconds until a job starts, and until a plain process does."""
    where = bench.fresh("stamps")
    children: list[int] = []

    def one(name: str, begin: Callable[[str], object]) -> float:
        path = where / name
        time.sleep(0.01)  # idle again
        begin(f"{before}exec {bench.stamp} {path}")
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
    """CPU and growth of an idle worker"""
    home, seconds = bench.fresh(), bench.pick(5, 60)
    bench.queue(home, "enqueue", "true")
    worker = bench.start_worker(home, "--count", "2")
    time.sleep(1.5)
    memory, before, began = memory_bytes(worker.pid)[0], cpu_seconds(worker.pid), time.monotonic()
    time.sleep(seconds)
    share = (cpu_seconds(worker.pid) - before) / (time.monotonic() - began)
    growth = memory_bytes(worker.pid)[0] - memory
    bench.stop_worker(worker)
    percent: Callable[[float], str] = "{:.3%}".format
    yield alone(f"idle worker, part of a core over {seconds} s", [share], percent, below(0.001, "0.1%"))
    yield alone("  its growth meanwhile", [growth], lambda size: f"{size / 1024:,.0f} KiB")


def load(bench: Bench) -> Iterator[Row]:
    """how long a worker in a large queue takes until its first job runs, and its memory a job"""
    for size in (200_000, 1_000_000) if bench.full else (200_000,):
        where = bench.fresh("stamps") / "stamp"
        homes = {}
        # The first job of each queue occupies the only thread, so that the rest stays waiting.
        for waiting in (size, 0):
            homes[waiting] = bench.fresh()
            if waiting:
                bench.queue(homes[waiting], "enqueue", "--file", "-", stdin=bench.lines(waiting))
            bench.queue(homes[waiting], "enqueue", "--priority", "9", f"exec {bench.stamp} {where} 25")
        memory: dict[int, list[tuple[float, float]]] = {waiting: [] for waiting in homes}

        def ready(
            waiting: int,
            homes: dict[int, Path] = homes,
            memory: dict[int, list[tuple[float, float]]] = memory,
            where: Path = where,
        ) -> float:
            where.unlink(missing_ok=True)
            began = time.time()
            worker = bench.start_worker(homes[waiting], "--count", "1")
            until(lambda: stamps(where), "the first job")
            took = stamps(where)[0][0] - began
            time.sleep(1)
            memory[waiting].append(memory_bytes(worker.pid))
            bench.stop_worker(worker)
            return took

        samples = rounds(bench.pick(3, 5), partial(ready, size), partial(ready, 0))
        goal = below(1.0, "1 s")
        yield compared(
            f"worker until its first job runs, {size:,} waiting",
            samples,
            "empty",
            show=whole_seconds,
            goal=goal,
        )
        pairs = list(zip(memory[size], memory[0], strict=True))
        for which, work in enumerate(("memory", "peak memory")):
            yield compared(f"  its {work}", [(a[which], b[which]) for a, b in pairs], "empty", show=megabytes)
            each = [(large[which] - empty[which]) / size for large, empty in pairs]
            yield alone(f"  its {work} a waiting job", each, bytes_each, below(150, "150 B"))


def recovery(bench: Bench) -> Iterator[Row]:
    """from kill -9 of a worker to the new start of its jobs in another"""

    def once(with_jobs: bool) -> float:
        home, where = bench.fresh(), bench.fresh("stamps") / "stamps"
        doomed = bench.start_worker(home, "--count", "2")
        for _ in range(2):
            bench.queue(home, "enqueue", f"exec {bench.stamp} {where} 25")
        until(lambda: len(stamps(where)) == 2, "the start of two jobs")
        other = bench.start_worker(home, "--count", "2")
        time.sleep(0.7)
        killed = time.time()
        doomed.kill()
        if with_jobs:
            for _, pid in stamps(where):
                os.kill(pid, signal.SIGKILL)
        doomed.wait()
        until(lambda: len(stamps(where)) == 4, "the recovery of two jobs")
        took = max(when for when, _ in stamps(where)) - killed
        bench.stop_worker(other)
        return took

    count = bench.pick(2, 7)
    goal = below(5, "5 s")
    dead = [once(with_jobs=True) for _ in range(count)]
    yield alone("kill -9 of a worker and its jobs, until they run again", dead, whole_seconds, goal)
    alive = [once(with_jobs=False) for _ in range(count)]
    yield alone("kill -9 of a worker alone, its jobs live on", alive, whole_seconds, below(10, "10 s"))


def peers(bench: Bench) -> Iterator[Row]:
    """other queues at the same work: a loop over SQLite, GNU parallel, task-spooler, nq, huey, rq"""
    count = bench.pick(1_000, 5_000)

    def beside(name: str, count: int, theirs: Callable[[], Taken], threads: int = 2) -> Iterator[Row]:
        samples = rounds(bench.pick(2, 5), lambda: bench.drain("true", count, threads=threads), theirs)
        work = f"drain of {count:,} `true`, {threads} at a time, start included"
        yield compared(work, samples, name, show=per_second(count), speed=True)
        # What is done by a server that runs already is not in a command's CPU time, and the row would be unfair.
        if name in ("SQLite loop", "parallel", "huey, SQLite"):
            yield cpu_row(samples, (count, count), name)
            yield disk_row(samples, count, name)

    def one_enqueue(name: str, words: list[str], env: dict[str, str]) -> Row:
        home = bench.fresh()
        samples = rounds(bench.pick(7, 25), partial(bench.queue, home, "enqueue", "true"), partial(timed, words, env))
        return compared("one enqueue", samples, name)

    loop = [bench.python, "-c", SQLITE_LOOP]
    yield from beside("SQLite loop", count, lambda: timed([*loop, str(bench.fresh() / "db"), str(count)], bench.env))
    env = bench.with_tools()
    here = {name for name in TOOLS if shutil.which(name, path=env["PATH"])}
    for name in ("parallel", "tsp", "nq", "redis-server"):
        if name not in here:
            yield left_out(name, "neither here nor to be had from Debian")
    if "parallel" in here:
        few = bench.pick(300, 2_000)
        words = ["parallel", "--will-cite", "-j2", "-a", str(bench.lines(few))]
        yield from beside("parallel", few, lambda: timed(words, env))
    if "tsp" in here:
        # Each job that waits there is a process and a descriptor, so there cannot be many more.
        yield from beside("tsp", 500, lambda: held(bench, ["tsp"], ["tsp", "-w"], ["tsp", "-K"], slots=2, count=500))
        own = bench.fresh("tsp")
        tsp = {**env, "TS_SOCKET": str(own / "socket"), "TMPDIR": str(own)}
        timed(["tsp", "true"], tsp)  # its daemon starts with the first
        yield one_enqueue("tsp", ["tsp", "true"], tsp)
        timed(["tsp", "-K"], tsp)
    if "nq" in here:
        yield from beside("nq", 200, lambda: held(bench, ["nq"], ["nq", "-w"], ["true"], slots=1, count=200), threads=1)
        yield one_enqueue("nq", ["nq", "true"], {**env, "NQDIR": str(bench.fresh("nq"))})
    try:
        programs = bench.environment("-r", str(BENCH / "requirements.txt"))
    except NotMeasured:
        yield left_out("huey, rq", "they cannot be installed here")
        return
    huey = [str(programs / "python"), "-c", HUEY]

    def huey_drain() -> Taken:
        jobs = str(bench.fresh("huey") / "db")
        timed([*huey, "enqueue", jobs, str(count)], bench.env)
        return timed([*huey, "drain", jobs, str(count)], bench.env)

    yield from beside("huey, SQLite", count, huey_drain)
    yield one_enqueue("huey, SQLite", [*huey, "enqueue", str(bench.fresh("huey") / "db"), "1"], bench.env)
    if "redis-server" not in here:
        return
    with redis(bench, env) as socket:
        put = [str(programs / "python"), "-c", RQ_ENQUEUE, socket]
        pool = [str(programs / "rq"), "worker-pool", "--burst", "-n", "2", "--quiet", "--url", f"unix://{socket}"]

        def rq_drain() -> Taken:
            timed([*put, "200"], bench.env)
            return timed(pool, bench.env)

        yield from beside("rq, Redis", 200, rq_drain)
        yield one_enqueue("rq, Redis", [*put, "1"], bench.env)


def held(bench: Bench, put: list[str], wait: list[str], end: list[str], *, slots: int, count: int) -> Taken:
    """What task-spooler or nq, which start a job at once, take for jobs that waited behind a gate."""
    where = bench.fresh("held")
    gate = where / "gate"
    env = {**bench.with_tools(), "TS_SOCKET": str(where / "socket"), "TS_SLOTS": str(slots), "NQDIR": str(where)}
    env["TMPDIR"] = str(where)
    os.mkfifo(gate)
    key = os.open(gate, os.O_RDWR)
    try:
        for _ in range(slots):
            timed([*put, "sh", "-c", f"read line < {gate}"], env)
        timed(["sh", "-c", f"for i in $(seq {count}); do {' '.join(put)} sh -c true; done"], env)
        began = time.perf_counter()
        os.write(key, b"\n" * slots)
        return timed(wait, env).lasting(time.perf_counter() - began)
    finally:
        os.close(key)
        timed(end, env)


@contextlib.contextmanager
def redis(bench: Bench, env: dict[str, str]) -> Iterator[str]:
    """The socket of a Redis of its own, which keeps what it accepted as our `fsync` normal does."""
    where = bench.fresh("redis")
    words = ["redis-server", "--port", "0", "--unixsocket", f"{where}/socket", "--dir", str(where)]
    words += ["--appendonly", "yes", "--appendfsync", "everysec"]
    server = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: (where / "socket").exists() or server.poll() is not None, "the start of redis-server")
        yield f"{where}/socket"
    finally:
        server.terminate()
        server.wait()


ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    make.__name__.replace("_", "-"): make
    for make in (
        drain_true,
        drain_flat,  # before those that make this process large, which a worker's peak memory would show
        drain_large,
        drain_echo,
        two_workers,
        syncs,
        enqueue,
        enqueue_large,
        enqueue_stream,
        enqueue_bulk,
        status,
        list_limit,
        dispatch,
        idle,
        load,
        recovery,
        peers,
    )
}

# Of the full form on two quiet cores; a row that is not named here takes about one.
MINUTES = {"drain-true": 5, "drain-flat": 14, "drain-large": 9, "drain-echo": 6, "two-workers": 4, "peers": 4}


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
    parser.add_argument("--full", action="store_true", help="larger queues and more rounds (about an hour)")
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
        if options.full:
            minutes = sum(MINUTES.get(name, 1) for name in chosen)
            print(f"This takes about {minutes} min on two quiet cores, several times that on busy ones.", flush=True)
        try:
            bench = Bench(Path(scratch), options.full)
        except NotMeasured as reason:
            print(f"Error: {reason}", file=sys.stderr)
            return 1
        print("\n" + line(HEAD) + "\n" + "-" * 126, flush=True)
        for name in chosen:
            try:
                for row in ROWS[name](bench):
                    print(line(row), flush=True)
            except NotMeasured as reason:
                problems += 1
                print(f"{name}: not measured: {reason}", flush=True)
            finally:
                bench.close()
    print(f"\n! goal missed. {time.monotonic() - began:.0f} s, {'full' if options.full else 'short'} form.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
