#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["click>=8.2,<9", "filelock>=4.2,<5"]
# ///
"""QueueCTL: a persistent background job queue for shell commands, on one machine, in one file.

People enqueue commands; worker processes run them in threads, retry what fails with exponential
backoff, and keep what stays broken in a dead letter queue. A queue is a directory, its *home*:

    config.json             the settings
    jobs.json               every job that is not dead, one per line, in order of arrival
    dlq.json                the dead jobs, in the same form
    .queuectl/              lock, journal, one file per live worker, the jobs' output

                claim                  exit 0
      pending --------> processing ------------> completed
         ^                |  ^   |
         |     attempts   |  |   | failed, attempts left
         |     used up    |  |   v
         +--- dead <------+  +- failed (waits out its backoff)
       revive

Promised after any crash: a job that was accepted is on disk; it runs at least once, and exactly
once unless its worker or the machine dies while it runs; on this machine it never runs twice at
the same time; it is never lost and never stuck. Not promised: network file systems, one home on
several machines, disks that lie about fsync.

The file has twelve sections. Each uses only those above it. Inside a section, a line that begins
with `# --` heads a part.
    1 VOCABULARY & ERRORS   states, limits, exit codes, the kinds of error
    2 CONFIGURATION         Config, the table of settings; the checks of values
    3 JOBS                  Job: its fields, JSON, transitions and backoff; values in, values out
    4 HOME                  Home: permissions, the lock, settings, worker files, the clock
    5 STORE                 Store: snapshot and journal; look, transaction, fold; hand edits
    6 CLAIM ORDER           ClaimOrder: which jobs wait, in which order; Followers of other jobs
    7 OPERATIONS            enqueue, claim and report, revive ...: one function, one transaction
    8 DAMAGE                what `doctor` finds in a home and repairs
    9 EXECUTION             Executor runs a command, SlotLog keeps its output, Fence ends the rest
    10 WORKER               Worker: threads, time limits, housekeeping, stop, drain; recovery
    11 PRESENTATION         records to text
    12 COMMANDS             the Click command group; errors to exits

The way of a job, with the section of each function:
    accepted    enqueue 12, parse_spec 3, enqueue_job 7, make_id 3; Store.transaction 5 appends a
                line to the journal; wake_workers 4
    claimed     Worker.run 10, take_turn 7, ClaimOrder.first 6 chooses the job, Units 3 its units,
                claim_job 3
    run         Executor.start 9; its output: SlotLog.open 9; its time limit: Executor.kill_late 9
    reported    Executor.wait 9, take_turn 7, report_job 3; its retry: backoff_s 3 sets the time,
                what_waits 7 says when the next one is due; the disk: Store.sync 5
    recovered   Recovery.step 10, Fence.step 9, recover 7, recover_job 3
    filed       Store.fold 5 writes the journal's changes into the arrays
    repaired    a torn line: Home.keep_aside 4; a hand edit: take_edits 5; damage: mend 8
"""

import sys


def _report(kind: type[BaseException], error: BaseException, trace: "Any") -> None:
    """Print an uncaught exception as Python does. For Ctrl+C, which may come during the imports
    below, print nothing."""
    if kind is not KeyboardInterrupt:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _report

try:
    import bisect
    import collections
    import errno
    import gc
    import hashlib
    import heapq
    import io
    import json
    import os
    import random
    import re
    import select
    import signal
    import stat
    import threading
    import time
    import zlib
    from array import array
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
    from datetime import UTC, datetime, timedelta  # UTC: Python 3.11
    from functools import lru_cache, partial
    from itertools import accumulate, chain, groupby, islice, starmap
    from math import ceil, inf, isfinite
    from typing import IO, Any, Literal, NamedTuple, Protocol, get_args

    # Set before the other imports. A command ends before the garbage collector is of use, and at
    # its default threshold the collector took a tenth of the command's time.
    gc.set_threshold(50_000)

    import click
    from click import Context, Option, UsageError, argument, echo, option
    from click.exceptions import NoArgsIsHelpError  # Click 8.2
    from filelock import lock_descriptor, unlock_descriptor  # filelock 4.2
except ImportError as error:
    # The checkout was not set up, or the system's packages are older.
    sys.exit(
        f"Error: QueueCTL cannot start on {sys.executable}: {error}. It needs Python 3.11 and the "
        "packages of requirements.txt. Set up: python3 -m venv .venv && "
        ".venv/bin/pip install -r requirements.txt, then use .venv/bin/python; or: "
        "uv run queuectl.py"
    )

__version__ = "0.2.0"

# ======== 1. VOCABULARY & ERRORS ========
# The words that the rest of the file uses: states, exit codes, limits and errors. No logic.

State = Literal["pending", "processing", "completed", "failed", "dead"]
STATES: tuple[State, ...] = get_args(State)
WAITING: tuple[State, ...] = ("pending", "failed")  # claimed once their time has come
OVER = ("completed", "dead")  # runs again only when a person asks for it

OutcomeKind = Literal["exited", "signalled", "timed_out", "not_started", "handed_back"]

# What values are, in annotations.
Fields = dict[str, Any]  # by name: a JSON object, the fields of a job, the figures of a view
Names = Collection[str]  # ids, states, tags
Words = tuple[str, ...]
Amounts = dict[str, int]  # units of each resource
Assigned = dict[str, list[int]]  # which units of each resource
Say = Callable[[str], None]  # tells a person something

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_STORAGE = 3
EXIT_TIMEOUT = 124  # as timeout(1) ends when the time is up
EXIT_NOT_FOUND = 127  # a shell ends with this code when it does not find a command

COMMAND_BYTES_MAX = 131_071  # the kernel's limit for one argument (MAX_ARG_STRLEN - 1)
TEXT_BYTES_MAX = 4_096  # cwd, unique key, name of a variable
ID_CHARS_MAX = 128
TAGS_MAX = 32
UNITS_MAX = 999  # of one resource, for one job
TAG_CHARS_MAX = 64
TAG = rf"[^\s,=\x00-\x1f\x7f]{{1,{TAG_CHARS_MAX}}}"
ENV_MAX = 1_000
AFTER_MAX = 10_000  # jobs that one job may come after
PRIORITY_MAX = 1_000_000
RETRIES_MAX = 1_000
SEQ_MAX = 10**12
COUNT_MAX = 1_000_000  # attempts, runs, recoveries, slots
DURATION_MAX_S = 100 * 365 * 86_400
HISTORY_MAX = 5  # attempts kept in a job's record
RECOVERIES_MAX = 5  # a job is dead when its worker died more often than this while it ran


class QueueError(Exception):
    """A request that failed. Its text says what happened, where, and what to do next."""

    exit_code = EXIT_REFUSED


class Refused(QueueError):
    """The request does not fit the present state. Nothing changed."""


class BadValue(QueueError):
    """A value has the wrong type, is out of bounds, or names no known field. Nothing changed."""

    exit_code = EXIT_USAGE


class StoreError(QueueError):
    """A file cannot be locked, read, written or trusted. It was not overwritten."""

    exit_code = EXIT_STORAGE


class Busy(StoreError):
    """The lock is held, or an array is being edited. The request may succeed a little later."""


# ======== 2. CONFIGURATION ========
# The checks of single values, and the settings: one table of names, defaults and checks.
# Values in, values out: HOME reads and writes config.json. The file keeps a value as the user wrote
# it ("30d"); `Config` holds it parsed (2592000).
#
# A check takes a value and the name of its setting or field. It returns the parsed value, or raises
# BadValue.

Check = Callable[[Any, str], Any]


def unfit(value: object, name: str, wanted: str) -> BadValue:
    """The error for a value that the setting or field `name` cannot hold."""
    return BadValue(f"'{name}' cannot be {_shown(value)}. Give {wanted}.")


def _shown(value: object) -> str:
    """A value as an error message shows it: JSON, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _rule(fits: Callable[[Any], object], wanted: str) -> Check:
    """A check that returns a value unchanged if it fits."""

    def check(value: Any, name: str) -> Any:
        if not fits(value):
            raise unfit(value, name, wanted)
        return value

    return check


def _number(low: float, high: float, kind: type = float) -> Check:
    return _rule(
        lambda value: type(value) in (int, kind) and low <= value <= high,
        f"a {'whole ' if kind is int else ''}number from {low} to {high}",
    )


def _whole(low: int, high: int) -> Check:
    return _number(low, high, int)


def _choice(words: Names) -> Check:
    return _rule(lambda value: value in words, f"one of: {', '.join(words)}")


def is_text(value: Any, bytes_max: int = COMMAND_BYTES_MAX) -> bool:
    """Whether the value is a text that the system can take: UTF-8, no NUL, not too long."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        return len(value.encode()) <= bytes_max
    except UnicodeEncodeError:  # a lone surrogate
        return False


def parse_duration(value: object, name: str = "duration") -> float:
    """Seconds from `90`, `"90"`, `"90s"`, `"10m"`, `"1.5d"` or `"1h30m"`."""
    text = str(value).strip().lower()
    has_several = re.fullmatch(r"(\d+[dhms]){2,}", text)
    parts = re.findall(r"\d+[dhms]", text) if has_several else [text]
    seconds = sum(_amount(part, {"s": 1, "m": 60, "h": 3600, "d": 86400}) for part in parts)
    if not 0 <= seconds <= DURATION_MAX_S:
        wanted = "seconds or a number with s, m, h or d, up to 100 years: 90, 1.5h, 1h30m"
        raise unfit(value, name, wanted)
    return int(seconds) if seconds == int(seconds) else seconds


def parse_bytes(value: object, name: str) -> int:
    """Bytes from `1048576`, `"100M"`, `"100 MiB"` or `"1.5G"`. All units are powers of 1024."""
    text = str(value).strip().lower().removesuffix("b").removesuffix("i")
    size = _amount(text, {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40})
    if not 4096 <= size <= 1 << 50:
        raise unfit(value, name, "bytes from 4096 to 1024T, such as 1048576, 100M or 1G")
    return int(size)


def _amount(text: str, units: Mapping[str, int]) -> float:
    """The number that `90` or `1.5h` stands for; -1 for anything else."""
    unit = text[-1:] if text[-1:] in units else ""
    try:
        return float(text.removesuffix(unit)) * units.get(unit, 1)
    except ValueError:
        return -1


def parse_exit_codes(value: Any, name: str = "no_retry_on") -> str:
    """`"2,64-78"` or a list of integers, as a text without spaces; "" for none."""
    # `repr` puts a text in quotes and gives True for a truth value, and both are refused below.
    codes = ",".join(map(repr, value)) if isinstance(value, list) else value
    try:
        exit_codes(codes)
    except (ValueError, AttributeError):  # AttributeError: the value is not a text
        wanted = "exit codes from 0 to 255, as 2,64-78 or as a list of integers"
        raise unfit(value, name, wanted) from None
    return "".join(codes.split())


def exit_codes(codes: str) -> set[int]:
    """The exit codes in `"2,64-78"`. Raises ValueError for a text of another form."""
    out: set[int] = set()
    for part in codes.split(",") if codes.strip() else ():
        low, dash, high = part.partition("-")
        first, last = int(low), int(high if dash else low)
        if not first <= last <= 255:
            raise ValueError(part)
        out.update(range(first, last + 1))
    return out


def parse_runner(value: Any, name: str) -> Words:
    """The words of a command line like `ssh "my host"`, split as a shell splits them."""
    import shlex

    try:
        words = shlex.split(value if is_text(value) else "")
    except ValueError:  # a quotation has no end
        words = []
    is_program = words and ("/" not in words[0] or words[0].startswith("/"))
    if not is_program:
        raise unfit(value, name, "a program by name or absolute path, and its options, like: sh -c")
    return tuple(words)


def parse_limits(value: Any, name: str) -> Amounts:
    """How many units of each resource there are, from `gpu=1,net=4`. A tag of that name is a need
    of one unit."""
    parts = value.split(",") if is_text(value) else ["no limit"]  # refused below
    pattern = rf"\s*({TAG})\s*=\s*([0-9]{{1,6}})\s*"
    matches = [re.fullmatch(pattern, part) for part in parts if part.strip()]
    limits = {match[1]: int(match[2]) for match in matches if match}
    if len(limits) < len(matches):
        raise unfit(value, name, "each tag once with a number: gpu=1,net=4")
    return limits


def parse_variables(value: Any, name: str) -> Words:
    """The names of variables, from `PATH,LANG`. Those that the queue itself sets are refused."""
    variable = r"\s*((?!QUEUECTL_)[A-Za-z_][A-Za-z0-9_]*\s*)?"
    if not is_text(value) or not re.fullmatch(f"{variable}(,{variable})*", value):
        raise unfit(value, name, "names of variables, but not QUEUECTL_*: PATH,VIRTUAL_ENV")
    return tuple(re.findall(r"\w+", value))


# -- The settings


_hook = _rule(is_text, f"a text in UTF-8 without NUL, of at most {COMMAND_BYTES_MAX} bytes")


def _setting(default: object, check: Check) -> Any:
    """A row of the table below: the default as config.json spells it, and the check."""
    return default, check


class Config(NamedTuple):
    """The settings in force, parsed; made by `parse_settings`.

    This is also the table of settings: the default of each field is a row of it (`_setting`).
    To add a setting, add a row here, the place that reads it, and a row in the README.
    """

    max_retries: int = _setting(3, _whole(0, RETRIES_MAX))  # attempts of a job before it is dead
    backoff_base: float = _setting(2, _number(0, 1000))  # seconds after failed attempt n: base ** n
    backoff_max: float = _setting(3600, parse_duration)  # the longest such wait, in seconds
    backoff_jitter: float = _setting(0, _number(0, 1))  # vary the wait by up to this fraction
    job_timeout: float = _setting(30, parse_duration)  # seconds an attempt may run; 0 = no limit
    no_retry_on: str = _setting("", parse_exit_codes)  # exit codes that make a job dead at once
    grace_period: float = _setting(5, parse_duration)  # seconds between SIGTERM and SIGKILL
    worker_count: int = _setting(1, _whole(1, 1000))  # threads of 'worker start' without --count
    limits: Amounts = _setting("", parse_limits)  # units of each resource or tag
    runner: Words = _setting("sh -c", parse_runner)  # words put before the command
    fsync: str = _setting("normal", _choice(("always", "normal", "never")))  # when to sync files
    lock_timeout: float = _setting(10, parse_duration)  # seconds to wait for the file lock
    keep_completed: float = _setting("30d", parse_duration)  # age to purge at; 0 = never
    log_max: int = _setting("100M", parse_bytes)  # bytes kept of one attempt's output
    keep_env: Words = _setting("", parse_variables)  # copied from the caller of enqueue
    on_dead: str = _setting("", _hook)  # shell command run when a job dies
    on_finish: str = _setting("", _hook)  # shell command run when a job completes or dies
    paused: bool = _setting(False, _rule(lambda value: isinstance(value, bool), "true or false"))


SETTINGS: dict[str, tuple[Any, Check]] = Config._field_defaults
DEFAULTS = {name: default for name, (default, _) in SETTINGS.items()}  # as config.json has them


def parse_settings(values: Fields) -> Config:
    """A Config from settings as config.json holds them. Raises BadValue.

    A setting that is missing gets its default.
    """
    return Config(
        **{
            name: check(values.get(name, default), name)
            for name, (default, check) in SETTINGS.items()
        }
    )


def known_setting(name: str) -> str:
    """The setting that `max-retries` or `MAX_RETRIES` names. Raises BadValue if there is none."""
    key = name.lower().replace("-", "_")
    if key not in SETTINGS:
        hint = _nearest(key, SETTINGS)
        raise BadValue(f"There is no setting '{name}'.{hint} See them all: queuectl config show.")
    return key


def _nearest(word: str, known: Iterable[str]) -> str:
    """A hint with the known name that is most like the word; "" if none is like it."""
    import difflib

    names = list(known) if len(word) > 2 else []
    inside = [name for name in names if word in name]
    near = inside or difflib.get_close_matches(word, names, 1)
    return f" Did you mean '{near[0]}'?" if near else ""


def setting_from_text(name: str, text: str) -> object:
    """The value that `config set NAME TEXT` stores. For a setting whose default is a number or a
    truth value, the text is read as JSON if it is JSON; else it is stored as it is."""
    default, _ = SETTINGS[name]
    if not isinstance(default, str):
        with suppress(ValueError, RecursionError):
            return json.loads(text.lower())
    return text


# ======== 3. JOBS ========
# The job record, JSON to record and back, the state machine and the backoff.
# Values in, values out: no clock, no files, no random numbers, no locks. A transition takes a job
# and `now`, and returns a new job.
#
# J1  The state decides which fields are set (`check_job`): a job has a `worker` while it is
#     processing, and a `finished_at` when it is over.
# J2  `attempts` rises only in a claim. It falls only when an attempt is given back (the worker
#     handed it back or died). It never exceeds max(1, max_retries). `runs` counts the claims and
#     never falls.
# J3  A completed job never changes. It can only be purged.
# J4  `seq`, the order of arrival, never changes: a retried or revived job keeps its place.
# J5  A job comes `after` earlier jobs only (their `seq` is lower), so there are no cycles. A later
#     job with the id of a purged one is another job. When a job dies, the jobs that need it die in
#     the same transaction. A job that is no longer stored does not hold back any other.
#
# If you add a state, also change: State, WAITING or OVER, the drawing at the top of this file,
# check_job, the colour in PRESENTATION, the state machine's test, and FORMAT (the journal counts
# the jobs of each state). If jobs wait in it, also change is_waiting.
# If you add a field, also change: FIELD_CHECKS and, if a user may give the field, NEW_JOB_FIELDS
# and the option.


class Job(NamedTuple):
    """One job. The order of the fields is their order in the files; STORE relies on it.

    Instants are UTC texts like `2026-11-24T08:15:30.123Z`, which sort as texts. Durations are in
    seconds. `max_retries` counts all attempts: 3 means at most three, 0 and 1 both mean one.
    """

    id: str
    state: State
    seq: int
    unique: str | None
    command: str
    attempts: int
    runs: int
    max_retries: int
    priority: int
    timeout: float
    created_at: str
    updated_at: str
    run_at: str | None = None
    cwd: str | None = None
    env: dict[str, str] | None = None
    tags: list[str] | None = None
    needs: Amounts | None = None  # how many units of each resource it holds while it runs
    units: Assigned | None = None  # the units that it holds, by number
    held: bool | None = None  # true: it does not start before it is released
    after: list[Any] | None = None
    no_retry_on: str | None = None
    worker: str | None = None
    slot: int | None = None
    started_at: str | None = None
    finished_at: str | None = None
    cancelled_at: str | None = None
    outcome: OutcomeKind | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    recoveries: int | None = None
    history: list[Fields] | None = None
    extra: Fields | None = None  # fields that only the user knows; kept in every rewrite


JobsById = dict[str, Job]


class Outcome(NamedTuple):
    """How one attempt ended. `reason` is for a person; the rules read the other fields."""

    kind: OutcomeKind
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None


# -- Records as JSON


JOB_FIELDS = Job._fields[:-1]
_read_json = json.JSONDecoder().raw_decode
_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def encode_json(value: object) -> bytes:
    """JSON on one line, in UTF-8. A lone surrogate (from a hand edit) is kept as its escape."""
    return _to_json(value).encode("utf-8", "backslashreplace")


def job_to_dict(job: Job) -> Fields:
    """The job as the files hold it: fields in order, without those that have no value."""
    out = {name: value for name, value in zip(JOB_FIELDS, job, strict=False) if value is not None}
    return {**out, **job.extra} if job.extra else out


def encode_job(job: Job) -> bytes:
    """The job's record: `{"id": "job1", "state": "pending", "seq": 1, ...}`, in one line."""
    return encode_json(job_to_dict(job))


def parse_json(text: str, what: str, hint: str = "") -> Any:
    """One JSON value. Raises BadValue, with `what` in front of the problem and `hint` behind it.

    Python's reader accepts NaN, Infinity and an object that has a key twice. This one refuses them
    and names the key.
    """

    def to_dict(pairs: list[tuple[str, Any]]) -> Fields:
        out: Fields = {}
        for name, value in pairs:
            if name in out:
                raise BadValue(f"has the key '{name}' twice. Keep one of them.")
            if not _is_finite(value):
                raise BadValue(f"has NaN or Infinity in '{name}'. Give a number.")
            out[name] = value
        return out

    try:
        return json.loads(text, object_pairs_hook=to_dict)
    except BadValue as error:
        problem, hint = str(error), ""
    except json.JSONDecodeError as error:
        problem = f"is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})."
    except (RecursionError, ValueError):
        problem = "is not usable JSON: nested too deeply, or with a number of thousands of digits."
    raise BadValue(f"{what} {problem}{hint}")


def _is_finite(value: object) -> bool:
    """Whether neither the value nor an element of a list is NaN or Infinity."""
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or isfinite(value)


# -- Instants


def format_instant(seconds: float) -> str:
    """Seconds since 1970 as the text that is stored: UTC, milliseconds, `Z`."""
    # Rounded to milliseconds: a float so far from 1970 is not exact in the microseconds.
    whole_s, ms = divmod(round(seconds * 1000), 1000)
    return f"{_format_second(whole_s)}.{ms:03d}Z"


@lru_cache(1)  # a busy worker asks for the same second a thousand times
def _format_second(whole_s: int) -> str:
    return datetime.fromtimestamp(whole_s, UTC).isoformat()[:19]


def instant_s(instant: str) -> float:
    """Seconds since 1970 of a stored instant. Raises StoreError for any other text."""
    return _moment(instant).timestamp()


def _moment(instant: str) -> datetime:
    try:
        return datetime.fromisoformat(instant)
    except ValueError:
        raise StoreError(
            f"A record has '{instant}' where a time was written (bad disk?). See: queuectl doctor."
        ) from None


def say_count(number: int, noun: str) -> str:
    """`1 job`, `2 jobs`, `2 processes`."""
    if number != 1:
        noun += "es" if noun.endswith("s") else "s"
    return f"{number} {noun}"


def say_instant(instant: str) -> str:
    """A stored instant for a person: the local zone, whole seconds."""
    try:
        return _moment(instant).astimezone().isoformat(" ", "seconds")
    except OverflowError:  # in a zone east of UTC it is in the year 10000
        return instant


def add_seconds(instant: str, seconds: float) -> str:
    """The instant so many seconds later, but not after the year 9999."""
    return format_instant(min(instant_s(instant) + seconds, 253_402_300_799.0))


def parse_instant(value: object, name: str, now: str = "1970-01-01T00:00:00.000Z") -> str:
    """A stored instant from ISO 8601, `HH:MM` (the next one), `+10m` or `now`.

    A time without a zone is in the local zone. ISO 8601, as records have it, needs no `now`.
    """
    text = value.strip() if isinstance(value, str) else ""
    if text == "now":
        return now
    with suppress(ValueError, OverflowError, OSError):
        if text.startswith("+"):
            return add_seconds(now, parse_duration(text[1:], name))
        if ":" in text[:3]:
            return _next_time_of_day(text, now)
        return format_instant(datetime.fromisoformat(text).timestamp())
    raise unfit(value, name, "ISO 8601 (2026-12-24T18:00), HH:MM, +10m or now")


def _next_time_of_day(text: str, now: str) -> str:
    hour, minute = map(int, text.split(":"))
    here = datetime.fromtimestamp(instant_s(now))
    today = here.replace(hour=hour, minute=minute, second=0, microsecond=0)
    # On the day when the clocks are set back, a time comes twice: `fold=1` is the second.
    times = (today, today.replace(fold=1), today + timedelta(days=1))
    return min(at for when in times if (at := format_instant(when.timestamp())) > now)


# -- The fields of a record


parse_command = _rule(
    lambda value: is_text(value) and value.strip(),
    f"a text that is not empty, in UTF-8 without NUL, of at most {COMMAND_BYTES_MAX} bytes (the "
    "kernel's limit); a longer one as a script",
)
_ID = rf"[A-Za-z0-9_:][A-Za-z0-9._:-]{{0,{ID_CHARS_MAX - 1}}}"
parse_id = _rule(
    lambda value: isinstance(value, str) and re.fullmatch(_ID, value),
    f"a text (in JSON a number needs quotes too) of 1 to {ID_CHARS_MAX} letters, digits, '.', '_', "
    "'-' or ':', not starting with '.' or '-'",
)
parse_cwd = _rule(
    lambda value: is_text(value, TEXT_BYTES_MAX) and value.startswith("/"),
    f"an absolute path in UTF-8 without NUL, of at most {TEXT_BYTES_MAX} bytes",
)


def parse_env(value: Any, name: str = "env") -> dict[str, str] | None:
    """Names and values of variables; None for none."""
    wanted = f"an object of at most {ENV_MAX} texts in UTF-8 without NUL, and no '=' in a name"
    if not isinstance(value, dict) or len(value) > ENV_MAX:
        raise unfit(value, name, wanted)
    for variable, text in value.items():
        is_name = is_text(variable, TEXT_BYTES_MAX) and variable and "=" not in variable
        if not is_name or not is_text(text):
            raise unfit({variable: text}, name, wanted)
    return dict(value) or None


def parse_tags(value: Any, name: str = "tags") -> list[str] | None:
    """A list of tags, each once; None for no tags."""
    if not isinstance(value, (list, tuple)) or len(value) > TAGS_MAX:
        raise unfit(value, name, f"a list of at most {TAGS_MAX} tags")
    return list(dict.fromkeys(_tag(tag, name) for tag in value)) or None


_tag = _rule(
    lambda value: is_text(value) and re.fullmatch(TAG, value),
    f"tags of 1 to {TAG_CHARS_MAX} characters without space, ',' or '='",
)


def parse_needs(value: Any, name: str = "needs") -> Amounts | None:
    """An object like `{"gpu": 2}`: how many units of each resource. None for no resource."""
    if not isinstance(value, dict) or len(value) > TAGS_MAX:
        raise unfit(value, name, f'an object of at most {TAGS_MAX} resources, like {{"gpu": 2}}')
    for resource, count in value.items():
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", resource):
            wanted = "names of letters, digits and '_', not starting with a digit"
            raise unfit(resource, name, wanted)
        _whole(1, UNITS_MAX)(count, f"{name}.{resource}")
    return value or None


def parse_held(value: Any, name: str) -> bool | None:
    """True, or None for false: only a held job has this field."""
    if not isinstance(value, bool):
        raise unfit(value, name, "true or false")
    return value or None


def parse_after(value: Any, name: str = "after") -> list[Any] | None:
    """A list like `["a7", {"id": "b2", "any": true}]`, each job once; None for no job.

    The job waits until a7 is completed and b2 is over. An id in both forms must be completed.
    """
    if not isinstance(value, list) or len(value) > AFTER_MAX:
        raise unfit(value, name, f"a list of at most {AFTER_MAX} ids")
    parents: dict[str, bool] = {}
    for item in value:
        given = item if isinstance(item, dict) else {"id": item}
        any_end = given.get("any", False)
        if given.keys() - {"id", "any"} or not isinstance(any_end, bool):
            raise unfit(item, name, 'an id or {"id": ID, "any": true}')
        id = parse_id(given.get("id"), name)
        parents[id] = any_end and parents.get(id, True)
    items = [{"id": id, "any": True} if any_end else id for id, any_end in parents.items()]
    return items or None


def parse_history(value: Any, name: str) -> Any:
    """The attempts of a record: `[{"run": 1, "attempt": 1, "outcome": "exited", ...}]`.

    Only `run` is checked. A hand edit may have removed or spoiled the rest.
    """
    is_list = isinstance(value, list) and all(isinstance(entry, dict) for entry in value)
    if not is_list:
        raise unfit(value, name, "a list of objects")
    for entry in value:
        _count(entry.get("run"), f"{name}.run")
    return value


_count = _whole(0, COUNT_MAX)
_text = _rule(lambda value: isinstance(value, str) and "\0" not in value, "a text without NUL")


def parse_units(value: Any, name: str) -> Any:
    """The units that a running job holds: `{"gpu": [0, 3]}`."""
    has_lists = isinstance(value, dict) and all(isinstance(one, list) for one in value.values())
    if not has_lists:
        raise unfit(value, name, 'an object of lists, like {"gpu": [0, 3]}')
    for unit in chain(*value.values()):
        _count(unit, name)
    return value


parse_unique = _rule(
    lambda value: value != "" and is_text(value, TEXT_BYTES_MAX),
    f"a text in UTF-8 without NUL, of 1 to {TEXT_BYTES_MAX} bytes",
)


FIELD_CHECKS: dict[str, Check] = {
    "id": parse_id,
    "state": _choice(STATES),
    "seq": _whole(0, SEQ_MAX),
    "unique": parse_unique,
    "command": parse_command,
    **dict.fromkeys(("attempts", "runs", "slot", "recoveries"), _count),
    "max_retries": _whole(0, RETRIES_MAX),
    "priority": _whole(-PRIORITY_MAX, PRIORITY_MAX),
    "timeout": parse_duration,
    **dict.fromkeys([name for name in JOB_FIELDS if name.endswith("_at")], parse_instant),
    "cwd": parse_cwd,
    "env": parse_env,
    "tags": parse_tags,
    "needs": parse_needs,
    "units": parse_units,
    "held": parse_held,
    "after": parse_after,
    "no_retry_on": parse_exit_codes,
    "worker": parse_id,  # part of a path
    "outcome": _choice(get_args(OutcomeKind)),
    "exit_code": _whole(0, 255),
    "signal": _whole(1, 64),
    "reason": _text,  # may be no UTF-8, since it may quote a PATH
    "history": parse_history,
}


def job_from_dict(record: Fields, defaults: Fields | None = None) -> Job:
    """A Job from a JSON object. Checks every field, and keeps unknown ones. Raises BadValue.

    `defaults` has the fields that a hand-written record may leave out.
    """
    values: Fields = {"unique": None, **(defaults or {})}
    extra = {}
    for name, value in record.items():
        if name not in FIELD_CHECKS:
            extra[name] = value
        elif value is not None:
            values[name] = FIELD_CHECKS[name](value, name)
    if missing := FIELD_CHECKS.keys() - values.keys() - Job._field_defaults.keys():
        raise BadValue(f"A field is missing: '{min(missing)}'.")
    job = Job(**values, extra=extra or None)
    if problem := check_job(job):
        raise BadValue(f"Job '{job.id}': {problem}.")
    return job


def decode_job(raw: bytes) -> Job:
    """A Job from bytes that may be damaged, or not ours. Raises BadValue if they are no record."""
    try:
        record, _ = _read_json(raw.decode())
    except ValueError as error:
        raise BadValue(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise BadValue(f"not a job: {_shown(record)}")
    return job_from_dict(record)


def trust_job(raw: bytes) -> Job:
    """A Job from a record that we wrote: a checksum or a mark has shown that it is unchanged.

    Its values were checked before they were written, so they are not checked again: 4 us instead of
    14, in a turn of 47. Raises StoreError if the bytes are no record all the same.
    """
    try:
        record, _ = _read_json(raw.decode())
        if record.keys() <= FIELD_CHECKS.keys() and record.get("state") in STATES:
            return Job(unique=record.pop("unique", None), **record)
        return decode_job(raw)
    except (ValueError, TypeError, AttributeError, BadValue) as error:
        text = _shown(raw.decode("utf-8", "replace"))
        raise StoreError(
            f"A record cannot be used ({error}): {text}. Nothing was changed. See: queuectl doctor."
        ) from error


def check_job(job: Job) -> str | None:
    """The first way in which the job's fields do not fit its state (J1, J2); None if all fit."""
    for name, states in _FIELD_STATES.items():
        has_field = getattr(job, name) is not None
        if has_field != (job.state in states):
            return f"a {job.state} job {'has no' if has_field else 'needs'} '{name}'"
    for name, states in _FIELD_ONLY_IN.items():
        if getattr(job, name) is not None and job.state not in states:
            return f"a {job.state} job has no '{name}'"
    least = int(job.state in ("processing", "failed"))
    most = max(1, job.max_retries) - (job.state in WAITING)  # one that waits has an attempt left
    if not least <= job.attempts <= min(most, job.runs):
        return (
            f"a {job.state} job cannot have {job.attempts} 'attempts' with {job.runs} 'runs' and a "
            f"'max_retries' of {job.max_retries}"
        )
    return None


# The states in which the field is set. In all others it is not.
_FIELD_STATES = {"worker": ("processing",), "finished_at": OVER}
# The states in which the field may be set.
_FIELD_ONLY_IN = {"cancelled_at": ("processing", "dead"), "units": ("processing",), "held": WAITING}


def make_id(ms: int, number: int) -> str:
    """An id for a job that was given none: `ms * 36**4 + number`, as 12 digits of base 36.

    Of a new job, `ms` is the time and `number` its seq, both read under the lock: no two ids are
    equal.
    """
    rest, id = ms * 36**4 + number, ""
    for _ in range(6):
        rest, pair = divmod(rest, 36**2)
        id = _PAIRS[pair] + id
    return id


_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_PAIRS = [high + low for high in _DIGITS for low in _DIGITS]


# -- A new job


NEW_JOB_FIELDS = (
    "command", "id", "unique", "max_retries", "priority", "timeout", "run_at", "cwd", "env", "tags",
    "needs", "held", "after", "no_retry_on", "delay",
)  # fmt: skip
MADE_KEY = "\0"  # asks for a made key in the place of a unique key; no other key has a NUL
_WRONG_NAMES = {  # what other programs call the field
    "command": "cmd script shell",
    "id": "name job_id",
    "unique": "key",
    "max_retries": "retry retries retry_count max_attempts",
    "run_at": "at start_at scheduled_at not_before",
    "timeout": "time_limit",
    "cwd": "dir workdir working_dir working_directory",
    "env": "environment env_vars",
    "tags": "label labels",
    "needs": "need resources units gpus",
    "held": "hold on_hold stashed",
    "after": "depends_on",
}
NEW_JOB_CHECKS = {**FIELD_CHECKS, "delay": parse_duration}
_NEW_JOB = {"state": "pending", "attempts": 0, "runs": 0}  # true of every new job


# Matches a text that begins like a job in JSON, where it may also be a command. No command begins
# like that.
is_json = re.compile(r"\{|\[\s*[{\]]").match


def parse_spec(record: object, now: str) -> Fields:
    """The fields of a new job from a user's JSON object. Raises BadValue with the field's name.

    A field that belongs to the queue is refused, unless it says what is true of every new job.
    """
    if not isinstance(record, dict):
        example = 'Give one: {"command": "echo hi"}; an array only as a whole --file.'
        raise BadValue(f"A job must be a JSON object, not {_shown(record)}. {example}")
    out: Fields = {}
    for name, value in record.items():
        if name not in NEW_JOB_CHECKS:
            raise BadValue(_unknown_field(name))
        if name in ("created_at", "updated_at") or value in (None, _NEW_JOB.get(name)):
            continue
        if name not in NEW_JOB_FIELDS:
            raise BadValue(
                f"The field '{name}' belongs to the queue and cannot be given. Leave it out."
            )
        if name == "run_at":
            out[name] = parse_instant(value, name, now)
        else:
            out[name] = NEW_JOB_CHECKS[name](value, name)
    if out.keys() >= {"run_at", "delay"}:
        raise BadValue("Give 'run_at' or 'delay', not both.")
    if "command" not in out:
        raise BadValue('The job has no \'command\'. Give one: {"command": "echo hi"}.')
    return out


def _unknown_field(name: str) -> str:
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])|-", "_", name).lower()
    plain = re.sub(r"_(s|secs?|seconds|ms)$", "", plain)
    hint = _nearest(plain, NEW_JOB_FIELDS)
    for right in NEW_JOB_FIELDS:
        if plain in (right, *_WRONG_NAMES.get(right, "").split()):
            hint = f" Its name is '{right}'."
    return f"There is no field '{name}'.{hint} The fields are: {', '.join(NEW_JOB_FIELDS)}."


def default_fields(config: Config, now: str) -> Fields:
    """The fields of a new job that was given none."""
    return {
        **_NEW_JOB, "id": "", "seq": 0, "unique": None, "max_retries": config.max_retries,
        "priority": 0, "timeout": config.job_timeout, "created_at": now, "updated_at": now,
    }  # fmt: skip


def new_job(fields: Fields, config: Config, now: str) -> Job:
    """A new job from checked fields (NEW_JOB_FIELDS). Its `seq` is 0, and its id "" if none is
    given. A made key is a hash of directory and command. Of the caller's variables, `caller_env`,
    the job gets those that `keep_env` names and its own `env` does not have."""
    values = {**default_fields(config, now), **fields}
    caller_env = values.pop("caller_env", {})
    kept = {name: caller_env[name] for name in config.keep_env if name in caller_env}
    if kept:
        values["env"] = parse_env({**kept, **(values.get("env") or {})}, "env with keep_env")
    delay_s = values.pop("delay", None)
    if delay_s is not None:
        values["run_at"] = add_seconds(now, delay_s)
    if values["unique"] == MADE_KEY:
        text = f"{values['cwd']}\0{values['command']}"
        values["unique"] = hashlib.sha256(text.encode()).hexdigest()[:24]
    return Job(**values)


# -- What a job comes after


def parents_of(job: Job) -> dict[str, bool]:
    """The ids of the jobs that this job comes after. True: any end will do, even death."""
    return {
        item["id"] if isinstance(item, dict) else item: isinstance(item, dict)
        for item in job.after or ()
    }


def needed_by(job: Job) -> list[str]:
    """The ids of the parents that must be completed: if one of them dies, this job dies too."""
    return [id for id, any_end in parents_of(job).items() if not any_end]


def die_after(job: Job, parent: str, now: str) -> Job:
    """The waiting job, dead because that parent is dead."""
    return let_die(job, _after_reason(parent), now)


def let_die(job: Job, reason: str, now: str) -> Job:
    """The job, which is not running, dead for that reason."""
    return job._replace(
        state="dead", updated_at=now, run_at=None, finished_at=now, reason=reason, held=None
    )


def has_died_after(job: Job) -> bool:
    """Whether the job died only because a parent did. Then it is revived with the parent."""
    return job.state == "dead" and job.reason in [_after_reason(id) for id in needed_by(job)]


def _after_reason(parent: str) -> str:
    return f"job {parent}, which it comes after, is dead"


# -- Transitions


def claim_job(job: Job, worker: str, slot: int, now: str, units: Assigned | None = None) -> Job:
    """The ready job, running in that slot with these units, with one more attempt and one more
    run."""
    return job._replace(
        state="processing", attempts=job.attempts + 1, runs=job.runs + 1, updated_at=now,
        run_at=None, units=units, worker=worker, slot=slot, started_at=now,
        outcome=None, exit_code=None, signal=None, reason=None,
    )  # fmt: skip


def report_job(job: Job, outcome: Outcome, config: Config, spread: float, now: str) -> Job:
    """The running job after its attempt ended. `spread`, from -1 to 1, scales backoff_jitter."""
    if job.cancelled_at is not None or outcome.kind == "handed_back":
        return give_back(job, outcome, now)
    code = outcome.exit_code if outcome.kind == "exited" else None
    if code == 0:
        return _end_run(job, outcome, now, "completed", None)
    state: State = "failed"
    reason = outcome.reason or describe_outcome(outcome)
    final_codes = config.no_retry_on if job.no_retry_on is None else job.no_retry_on
    most = max(1, job.max_retries)
    if code in exit_codes(final_codes):
        state, reason = "dead", f"exit code {code} is not retried (no_retry_on)"
    elif job.attempts >= most:
        state, reason = "dead", f"attempt {job.attempts} of {most}: {reason}"
    ended = _end_run(job, outcome, now, state, reason)
    if state == "dead":
        return ended
    return ended._replace(run_at=add_seconds(now, backoff_s(config, job.attempts, spread)))


def give_back(job: Job, outcome: Outcome, now: str) -> Job:
    """The running job, pending again, as if the attempt was not made; dead if it was cancelled."""
    if job.cancelled_at is not None:
        return _end_run(job, outcome, now, "dead", "cancelled")
    waiting = _end_run(job, outcome, now, "pending", outcome.reason)
    return waiting._replace(attempts=job.attempts - 1)


def _end_run(job: Job, outcome: Outcome, now: str, state: State, reason: str | None) -> Job:
    """The running job in its next state, with the attempt in its history."""
    entry = {
        "run": job.runs, "attempt": job.attempts, "started_at": job.started_at, "finished_at": now,
        "outcome": outcome.kind,
    }  # fmt: skip
    if outcome.exit_code is not None:
        entry["exit_code"] = outcome.exit_code
    if outcome.signal is not None:
        entry["signal"] = outcome.signal
    return job._replace(
        state=state, updated_at=now, run_at=None, units=None, worker=None, slot=None,
        outcome=outcome.kind, exit_code=outcome.exit_code, signal=outcome.signal, reason=reason,
        finished_at=now if state in OVER else None,
        cancelled_at=job.cancelled_at if state == "dead" else None,
        history=[*(job.history or ()), entry][-HISTORY_MAX:],
    )  # fmt: skip


def describe_outcome(outcome: Outcome) -> str:
    """`exit code 3`, `ended by signal 9` ..."""
    words: dict[OutcomeKind, str] = {
        "exited": f"exit code {outcome.exit_code}",
        "signalled": f"ended by signal {outcome.signal}",
        "timed_out": "time limit",
        "not_started": "not started",
        "handed_back": "handed back",
    }
    return words.get(outcome.kind, outcome.kind)


def backoff_s(config: Config, attempt: int, spread: float) -> float:
    """Seconds to wait after failed attempt number `attempt`: `backoff_base ** attempt`, spread by
    the jitter, and never above backoff_max."""
    try:
        wait = float(config.backoff_base) ** attempt
    except OverflowError:
        wait = inf
    wait = min(wait, config.backoff_max) * (1 + config.backoff_jitter * spread)
    return min(wait, config.backoff_max)


def recover_job(job: Job, excused: bool, now: str) -> Job:
    """The job of a dead worker, pending again; dead if too many workers died while it ran.

    A worker's death is excused, and not counted, if the job cannot have caused it: the machine was
    restarted, or the worker was killed after it had been told to stop.
    """
    recoveries = job.recoveries or 0
    why = "the machine was restarted, or its worker killed while it stopped"
    if not excused:
        recoveries += 1
        why = "its worker died"
    counted = job._replace(recoveries=recoveries or None)
    back = give_back(counted, Outcome("handed_back", reason=why), now)
    if back.state == "pending" and recoveries > RECOVERIES_MAX:
        why = f"its worker died {recoveries} times while it ran: it may be what ends them"
        return let_die(back, why, now)
    return back


def cancel_job(job: Job, now: str) -> Job:
    """The job, dead if it waits. If it runs, it is only marked: it dies when its processes end."""
    if job.state == "processing":
        return job._replace(cancelled_at=now, updated_at=now)
    return let_die(job, "cancelled", now)._replace(cancelled_at=now)


def retry_now(job: Job, now: str) -> Job:
    """A failed or delayed job, due at once."""
    return job._replace(run_at=now, updated_at=now)


def revive_job(job: Job, now: str) -> Job:
    """The dead letter, pending again: attempts at zero, `seq` and history kept."""
    return job._replace(
        state="pending", attempts=0, updated_at=now, run_at=None, started_at=None, finished_at=None,
        cancelled_at=None, outcome=None, exit_code=None, signal=None, reason=None, recoveries=None,
    )  # fmt: skip


def rerun_job(job: Job, id: str, seq: int, not_over: Names, now: str) -> Job:
    """A new job with all that the user gave the old one, except for its time. Of the old job's
    parents it comes only after those that are not over."""
    parents = parents_of(job).items()
    left = [{"id": id, "any": any_end} for id, any_end in parents if id in not_over]
    return revive_job(job, now)._replace(
        id=id, seq=seq, runs=0, created_at=now, after=parse_after(left), units=None, held=None,
        worker=None, slot=None, history=None,
    )  # fmt: skip


def edit_job(job: Job, changes: Fields, now: str) -> Job:
    """The job with these fields changed: `command`, `timeout`, `max_retries`, `priority`, `run_at`,
    `cwd`, `tags`, `env`, `held`. `env` adds to the job's own variables. A failed job that is given
    a `run_at` becomes pending, since it no longer waits for its retry. Raises Refused."""
    values: Fields = {**changes, "updated_at": now}
    if "env" in changes:
        values["env"] = parse_env({**(job.env or {}), **changes["env"]})
    if "run_at" in changes:
        values["state"] = "pending"
    edited = job._replace(**values)
    if problem := check_job(edited):
        raise Refused(
            f"Job '{job.id}' cannot be changed like that: {problem}. Nothing was changed. See its "
            f"attempts with: queuectl show {job.id}."
        )
    return edited


# -- Questions about a job


def hooks_of(job: Job, config: Config) -> dict[str, str]:
    """The commands of the hooks to run for a job that was just reported, by name of the hook.

    For a cancelled job only `on_finish` runs; for a job that is not over, none.
    """
    hooks = {}
    if job.state == "dead" and job.cancelled_at is None:
        hooks["on_dead"] = config.on_dead
    if job.state in OVER:
        hooks["on_finish"] = config.on_finish
    return {name: command for name, command in hooks.items() if command}


def is_ready(job: Job, now: str, backoff_max_s: float) -> bool:
    """Whether a waiting job's time has come.

    A failed job that seems to wait longer than backoff_max is ready too: the clock must have been
    set back after its `run_at` was written.
    """
    if job.run_at is None or job.run_at <= now:
        return True
    return job.state == "failed" and job.run_at > add_seconds(now, backoff_max_s + 1)


def demand_of(job: Job, limits: Amounts) -> Amounts:
    """How many units of each resource the job needs. A tag that has a limit counts as one unit."""
    needs = job.needs or {}
    if not job.tags:
        return needs
    return {**{tag: 1 for tag in job.tags if tag in limits}, **needs}


class Units:
    """The units of the limited resources, numbered from 0, and which of them running jobs hold.

    used       how many units of each resource running jobs hold. A job that was claimed before its
               tag got a limit counts as one, though it holds no numbered unit.
    """

    def __init__(self, limits: Amounts, running: Iterable[Job]) -> None:
        self.limits = limits
        self.used: collections.Counter[str] = collections.Counter()
        self._held: dict[str, set[int]] = collections.defaultdict(set)
        for job in running:
            used = collections.Counter(demand_of(job, limits))
            for name, units in (job.units or {}).items():
                self._held[name].update(units)
                used[name] = max(used[name], len(units))
            self.used += used

    def lacking(self, job: Job) -> str | None:
        """A resource of which the job needs more units than are free; None if there is none."""
        for name, count in demand_of(job, self.limits).items():
            if self.used[name] + count > self.limits.get(name, 0):
                return name
        return None

    def lowest_free(self, job: Job) -> Assigned | None:
        """The units for a job that lacks none: `{"gpu": [0, 3]}`; None if it needs none."""
        units = {}
        for name, count in demand_of(job, self.limits).items():
            free = (unit for unit in range(self.limits[name]) if unit not in self._held[name])
            units[name] = list(islice(free, count))
        return units or None


NO_UNITS = Units({}, ())


def array_of(state: str) -> str:
    """The name of the array that holds the jobs in that state: `dlq` or `jobs`."""
    return "dlq" if state == "dead" else "jobs"


# ======== 4. HOME ========
# The directory of a queue and its files, except for the stores and the jobs' output: permissions,
# the lock, config.json, the workers' files and FIFOs, stop requests, the clock's file, copies kept
# aside. It may use `os`, filelock and the clocks, and knows nothing about jobs.
#
# Every file effect of HOME and STORE goes through `os.`, so that a test can make any of them fail.
# What is created is 0700 or 0600, whatever the umask. A link, FIFO or directory in the place of one
# of our files is an error: nothing follows it, waits for it or removes it.
#
#   .queuectl/lock          the store lock, never deleted: deleting it would split the waiters
#   .queuectl/workers/NAME  a header line and a row for each slot, locked while the worker lives;
#                           NAME.wake is its FIFO, NAME.stop a request to stop
#   .queuectl/clock         how the wall clock is set, and when the next purge of old jobs is due
#   .queuectl/aside/        copies of what was cut off or replaced

CHUNK_BYTES = 1 << 20  # files are read and copied in pieces of this size
TROUBLE_CHARS = 250  # a worker's file shows no more of its trouble
LOCK_POLL_S = 0.001
_DEAD = b'{"dead": true '  # written over `{"dead": false`, with which a worker's header begins
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # ELOOP: a link, which is no file of ours
# Python adds O_CLOEXEC to each.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
_WRITE = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_ADVICE = {
    errno.ENOSPC: "Free some space and try again.",
    errno.EDQUOT: "Free some space and try again.",
    errno.EROFS: "The file system is read-only.",
    errno.EACCES: "Check the permissions.",
    errno.ELOOP: "A symbolic link stands there; remove it.",
}


class WorkerInfo(NamedTuple):
    """What a worker's file says."""

    name: str
    header: Fields  # dead, pid, started_at, boot_id, lock, threads, tags, trouble ...
    rows: list[Fields]  # one per slot: job, run, session, start; empty if it is idle
    seen_s: float  # seconds since 1970 of its last sign of life


class ClockMark(NamedTuple):
    """What `.queuectl/clock` says, for all workers."""

    boot_id: str
    offset_s: float  # wall clock less boot clock
    purge_at_s: float  # when the next purge of old jobs is due, on the boot clock


class Home:
    """The directory of one queue.

    check, prepare            whether it exists and is safe; make it ready for changes
    locked, mutex, lock_id    the store lock
    config, settings ...      config.json, parsed and as it was written; read_settings reads it
    workers, live_workers ... the workers' files
    now, clock_mark ...       the wall clock, and what .queuectl/clock says of it
    put_file, keep_aside ...  replace a file of ours; copy bytes that are about to go
    """

    def __init__(self, path: str, warn: Say, clock: Callable[[], float] = time.time) -> None:
        self.path = os.path.abspath(path)
        self.dir = f"{self.path}/.queuectl"
        self.workers_dir = f"{self.dir}/workers"
        self.logs_dir = f"{self.dir}/logs"
        self.config_path = f"{self.path}/config.json"
        self.lock_path = f"{self.dir}/lock"
        self._clock_path = f"{self.dir}/clock"
        self.warn = warn
        self.clock = clock
        # True: the lock was taken, so a change may be stored that no message has reported yet.
        self.is_changing = False
        self.is_interrupted = False  # Ctrl+C came while `is_changing` was true
        # True: while config.json is damaged, the last good settings stay in force.
        self.keeps_settings = False
        self.last_config = parse_settings({})  # as this process read it last
        self._settings: Fields = {}  # the same settings as config.json spells them
        self._config_mark: object = None  # inode, size and time of the file that was read last
        # Each holder of the store lock holds the mutex too, since a descriptor's lock does not keep
        # threads apart. A thread that holds the mutex alone knows that no thread of its process has
        # the store lock. A worker is halted (Ctrl+Z) only then; else it would block all others.
        self.mutex = threading.Lock()
        self._lock_fd = -1
        self._lock_identity: tuple[int, int] | None = None

    def check(self) -> bool:
        """Whether the home exists. Raises StoreError if it is not ours or open to everyone."""
        try:
            info = os.stat(self.path)
        except FileNotFoundError:
            return False
        _check_own_dir(self.path, info)
        if info.st_mode & stat.S_IWOTH:
            raise StoreError(
                f"The home '{self.path}' can be written by everyone, who could then run commands "
                f"as you. Nothing was changed. Close it with: chmod o-w '{self.path}'."
            )
        return True

    def prepare(self) -> None:
        """Make the home ready for changes: its directories and the lock file."""
        if self._lock_fd >= 0:
            return
        existed = self.check()
        make_dir(self.path)
        for path in (self.dir, self.workers_dir, self.logs_dir):
            make_dir(path)
            # The output may be on another disk: logs/ alone may be a link.
            look = os.stat if path == self.logs_dir else os.lstat
            _check_own_dir(path, look(path))
        if existed:
            self._take_group_write()
        fd = os.open(self.lock_path, _WRITE | os.O_CREAT, 0o600)
        os.fchmod(fd, 0o600)
        self._lock_fd, self._lock_identity = fd, identity_of(fd)
        self.config()  # `last_config` says how long to wait for the lock

    def _take_group_write(self) -> None:
        """Take group-write off our files: a umask of 002 is common, and no reason to refuse."""
        taken = []
        for name in ("", ".queuectl", "jobs.json", "dlq.json", "config.json"):
            with suppress(FileNotFoundError):
                path = os.path.join(self.path, name)
                mode = os.lstat(path).st_mode
                if mode & 0o022 and not stat.S_ISLNK(mode):
                    os.chmod(path, stat.S_IMODE(mode) & ~0o022)
                    taken.append(name or "the home")
        if taken:
            self.warn(
                f"Removed write permission for others from {', '.join(taken)}: whoever can write "
                "there can run commands."
            )

    # -- The lock

    @contextmanager
    def locked(self, most_s: float = inf) -> Iterator[None]:
        """Hold the store lock within the block. Raises Busy after `lock_timeout` (as it was last
        read), or after `most_s` if that is shorter. The lock is polled, because a wait for a file
        lock has no time limit."""
        self.prepare()
        limit_s = min(self.last_config.lock_timeout, most_s)
        deadline = time.monotonic() + limit_s
        if not self.mutex.acquire(timeout=limit_s):
            raise self._locked_too_long(limit_s)
        try:
            pause_s = LOCK_POLL_S / 16  # short at first: most holders need less than LOCK_POLL_S
            while not lock_descriptor(self._lock_fd, blocking=False):
                if time.monotonic() > deadline:
                    raise self._locked_too_long(limit_s)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LOCK_POLL_S)
            try:
                self.is_changing = True
                if identity_of(self.lock_path) != self._lock_identity:
                    raise StoreError(  # others may hold the lock of a new file by now
                        f"'{self.dir}' was deleted or replaced while in use. Nothing was changed. "
                        "Start again."
                    )
                yield
            except BaseException:
                self.is_changing = False
                raise
            finally:
                unlock_descriptor(self._lock_fd)
        except OSError as error:
            raise storage_error(error, self.dir) from error
        finally:
            self.mutex.release()

    def _locked_too_long(self, limit_s: float) -> Busy:
        return Busy(
            f"The queue '{self.path}' has been locked by another process for {limit_s} s. "
            "Nothing was changed. Try again, or wait longer with: "
            "queuectl config set lock-timeout 60."
        )

    def lock_id(self) -> str:
        """Device and inode of the lock file, which tell this home from a copy of it; 0.0 before the
        first start."""
        device, inode = identity_of(self.lock_path) or (0, 0)
        return f"{device}.{inode}"

    # -- Settings

    def settings(self) -> Fields:
        """Every setting as config.json spells it; the default if it is not there. Raises
        StoreError."""
        self.config()
        return {**DEFAULTS, **self._settings}

    def config(self) -> Config:
        """The settings in force. If config.json is damaged, raises StoreError or, with
        `keeps_settings`, gives the last good ones."""
        problem = self.read_settings()
        if problem and not self.keeps_settings:
            raise StoreError(problem)
        return self.last_config

    def read_settings(self) -> str | None:
        """Read config.json if it has changed. Gives what is wrong with it, or None. While something
        is wrong, `last_config` stays as it is."""
        path = self.config_path
        try:
            info = os.lstat(path)
            mark = (info.st_ino, info.st_size, info.st_mtime_ns)
            if mark != self._config_mark:
                values = parse_json(bytes_of(path).decode(), "The file")
                if not isinstance(values, dict):
                    raise BadValue("The file must hold one JSON object.")
                values = {known_setting(name): value for name, value in values.items()}
                self.last_config, self._settings = parse_settings(values), values
                self._config_mark = mark
        except FileNotFoundError:
            is_begun = os.path.exists(f"{self.dir}/journal.jsonl")
            if is_begun and not os.path.exists(path):  # again: a first start may have just made it
                return (
                    f"'{path}' is missing beside a journal. Nothing was changed. Put it back, or "
                    "write {} into it for the default settings."
                )
        except OSError as error:
            return str(storage_error(error, path))
        except (UnicodeDecodeError, BadValue) as error:
            return (
                f"'{path}' cannot be used: {error} Nothing was changed. Copy it first, then mend "
                "it with an editor, or: queuectl doctor --fix."
            )
        return None

    def write_settings(self, values: Fields) -> None:
        """Replace config.json, whole and atomically. Under the lock."""
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        self.put_file(self.config_path, [text.encode("utf-8", "replace")])
        try:
            sync_dir(self.path)
        except OSError as error:
            raise unconfirmed(error, "queuectl config show") from error

    # -- Workers

    def _worker_path(self, name: str, ending: str = "") -> str:
        return f"{self.workers_dir}/{name}{ending}"

    def worker_names(self) -> list[str]:
        """The name of every worker that has a file, alive or not."""
        try:
            names = os.listdir(self.workers_dir)
        except OSError:
            return []
        return sorted(name for name in names if re.fullmatch(r"\d+-[0-9a-f]+", name))

    def create_worker(self, name: str, header: Fields) -> "WorkerFile":
        """Make the file that says this worker lives. It is locked before it gets its name, and
        stays locked until the end.

        Under the store lock, one temporary name is enough for all. A file that a killed worker left
        there is replaced by the next worker.
        """
        path, new = self._worker_path(name), self._worker_path("new")
        with self.locked(), new_file(new) as fd:
            lock_descriptor(fd)
            file = WorkerFile(path, os.dup(fd), header)
            os.rename(new, path)
            wake = self._worker_path(name, ".wake")
            os.mkfifo(wake)
            os.chmod(wake, 0o600)
            file.wake_fd = os.open(wake, _WRITE)
        return file

    def lock_dead_worker(self, name: str) -> int | None:
        """Lock a dead worker's file, which says "dead" from then on. Gives its descriptor, -1 if
        there is no file, or None if the worker lives."""
        try:
            fd = os.open(self._worker_path(name), _WRITE)
        except OSError as error:
            if error.errno in NO_FILE:
                return -1
            raise
        if lock_descriptor(fd, blocking=False):
            with suppress(OSError):
                os.pwrite(fd, _DEAD, 0)
            return fd
        os.close(fd)
        return None

    def live_workers(self) -> list[WorkerInfo]:
        """Those of `workers` that live."""
        return [info for info in self.workers() if not info.header["dead"]]

    def workers(self) -> list[WorkerInfo]:
        """The live workers, whose file is locked (the kernel unlocks it when its worker dies), and
        the dead ones whose jobs another process has begun to take back."""
        found = []
        for name in self.worker_names():
            info = self.read_worker(name)
            with suppress(OSError), opened(self._worker_path(name), _READ) as fd:
                is_free = lock_descriptor(fd, blocking=False)  # closing it unlocks it again
                if info.header["dead"] or not is_free:
                    found.append(info)
        return found

    def read_worker(self, name: str) -> WorkerInfo:
        """What the file of a live or dead worker says. What is unusable in it is left out."""
        path, rows, seen_s = self._worker_path(name), [], 0.0
        header: Fields = {
            "dead": False, "pid": 0, "threads": 0,
            "started_at": self.now(), "tags": [], "not_tags": [],
        }  # fmt: skip
        with suppress(OSError, ValueError, TypeError):
            header["pid"] = int(name.partition("-")[0])  # a hand edit may name any worker
            first, *lines = bytes_of(path).split(b"\n")
            seen_s = os.stat(path).st_mtime
            header |= json.loads(first)
            # Added slots write their rows in any order: a row not written yet may be NULs.
            rows = [json.loads(line.strip(b"\0 ") or b"{}") for line in lines[:-1]]
        return WorkerInfo(name, header, rows, seen_s)

    def forget_worker(self, name: str) -> None:
        """Remove the files of a worker that is dead or leaves. The file NAME goes last: nobody
        would look for the others without it."""
        for ending in (".stop", ".wake", ""):
            with suppress(OSError):
                os.unlink(self._worker_path(name, ending))

    def wake_workers(self, but: str = "") -> None:
        """Write a byte to each worker's FIFO, except to that of `but`."""
        for name in self.worker_names():
            if name == but:
                continue
            with (
                suppress(OSError),
                opened(self._worker_path(name, ".wake"), _WRITE) as fd,
            ):
                if stat.S_ISFIFO(os.fstat(fd).st_mode):
                    os.write(fd, b"\n")

    def request_stop(self, name: str, how: Literal["stop", "now"]) -> None:
        """Ask a worker to stop, by a file. Its pid may belong to another process by now."""
        path = self._worker_path(name, ".stop")
        try:
            self.put_file(path, [how.encode()])
        except OSError as error:
            pid = name.partition("-")[0]
            raise StoreError(
                f"{storage_error(error, path)} Or stop the worker with Ctrl+C in its terminal, or: "
                f"kill {pid}."
            ) from error
        self.wake_workers()

    def stop_requested(self, name: str) -> str | None:
        """What `worker stop` has asked of this worker: `stop`, `now` or None."""
        with suppress(OSError):
            return bytes_of(self._worker_path(name, ".stop")).decode("ascii", "replace")
        return None

    # -- The clock

    def now(self) -> str:
        """The wall clock as an instant."""
        return format_instant(self.clock())

    def clock_mark(self) -> ClockMark:
        """What a worker wrote last into .queuectl/clock; of no boot if there is nothing usable."""
        with suppress(OSError, ValueError, LookupError, TypeError):
            mark = json.loads(bytes_of(self._clock_path))
            return ClockMark(mark["boot_id"], float(mark["offset_s"]), float(mark["purge_at_s"]))
        return ClockMark("", 0.0, 0.0)

    def write_clock_mark(self, mark: ClockMark, most_s: float) -> None:
        """Replace .queuectl/clock. Takes the store lock."""
        with self.locked(most_s):
            self.put_file(self._clock_path, [encode_json(mark._asdict())])

    # -- Files

    @contextmanager
    def unnamed_file(self, data: bytes) -> Iterator[int]:
        """A file that has these bytes and no name, open at its start within the block."""
        path = f"{self.dir}/unnamed.{os.getpid()}.{threading.get_ident()}"
        with new_file(path) as fd:
            os.unlink(path)
            write_whole(fd, data)
            os.lseek(fd, 0, os.SEEK_SET)
            yield fd

    def put_file(self, path: str, parts: Iterable[bytes]) -> None:
        """Replace a file of ours atomically. Its content is synced; the rename is not."""
        new = f"{self.dir}/{os.path.basename(path)}.new"
        with new_file(new) as fd:
            for part in parts:
                write_whole(fd, part)
            os.fsync(fd)
        os.rename(new, path)

    def keep_aside(self, stem: str, fd: int, start: int = 0) -> str:
        """Copy a file's bytes from `start` on to a new file in .queuectl/aside. Gives its path."""
        folder = f"{self.dir}/aside"
        make_dir(folder)
        stamp = self.now().replace(":", "")
        path = f"{folder}/{stem}.{stamp}-{os.urandom(2).hex()}"
        self.put_file(path, pieces(fd, start))
        sync_dir(folder)
        return path


class WorkerFile:
    """A live worker's own file: a padded header line, then a padded row for each slot. A slot that
    is added later gets its row after the others.

    Both are written in place, without the store lock. The file only informs, so a write that fails
    is no error: recovery also finds a run by its environment and by its log.
    """

    ROW_BYTES = 256
    SPARE_BYTES = 8 * TROUBLE_CHARS  # room for the times and the trouble that the header gets later

    def __init__(self, path: str, fd: int, header: Fields) -> None:
        self.path, self.fd, self.wake_fd = path, fd, -1
        self.header = {"dead": False, **header}  # "dead" comes first: see _DEAD
        self._header_bytes = len(encode_json(self.header)) + self.SPARE_BYTES
        write_whole(fd, b"\n".rjust(self._header_bytes))
        write_whole(fd, b"\n".rjust(self.ROW_BYTES) * self.header["threads"])
        self._write(0, self._header_bytes, self.header)

    def write_header(self, **changes: Any) -> None:
        """Write the header with these changes. Call it also without changes: the time of the file
        is the worker's last sign of life, and an old one means that it is halted or hangs."""
        self.header |= changes
        self._write(0, self._header_bytes, self.header)

    def write_row(self, slot: int, row: Fields | None = None) -> None:
        """Write a slot's row: `{"job": "job1", "run": 1, "session": 4711, "start": 123.45}`, or an
        empty one while the slot is idle."""
        self._write(self._header_bytes + slot * self.ROW_BYTES, self.ROW_BYTES, row)

    def _write(self, offset: int, width: int, value: Fields | None) -> None:
        text = encode_json(value) if value else b""
        with suppress(OSError):
            os.pwrite(self.fd, text[: width - 1].ljust(width - 1) + b"\n", offset)

    def is_linked(self) -> bool:
        """Whether the file is still at its path. If not, others take this worker for dead."""
        return identity_of(self.path) == identity_of(self.fd)

    def wake(self) -> None:
        """Wake this worker's own main thread."""
        with suppress(OSError):
            os.write(self.wake_fd, b"\n")

    def close(self) -> None:
        """Close the FIFO and the file, which unlocks it: the worker no longer counts as alive."""
        os.close(self.wake_fd)
        os.close(self.fd)


# -- Errors


def _check_own_dir(path: str, info: os.stat_result) -> None:
    if info.st_uid != os.geteuid() or not stat.S_ISDIR(info.st_mode):
        raise StoreError(
            f"'{path}' is not a directory of yours. Nothing was changed. Use a home of your own: "
            "--home DIR."
        )


def storage_error(error: OSError, path: str) -> StoreError:
    """The StoreError for an OSError, in a person's words."""
    where = os.fsdecode(error.filename or path)
    advice = _ADVICE.get(error.errno or 0, "Check the disk and the permissions, then try again.")
    return StoreError(f"{error.strerror or error}: '{where}'. {advice}")


def unconfirmed(error: OSError, command: str = "queuectl list") -> StoreError:
    """The error for a change that was written but whose sync failed. `command` shows what is
    stored."""
    return StoreError(
        f"The change may have been stored, but the disk did not confirm it ({error.strerror}). "
        f"Look with: {command}."
    )


# -- Small files


def pieces(
    fd: int, start: int = 0, end: int = sys.maxsize, size: int = CHUNK_BYTES
) -> Iterator[bytes]:
    """The bytes of a file between two offsets, in pieces; fewer if the file ends before."""
    while start < end and (piece := os.pread(fd, min(size, end - start), start)):
        yield piece
        start += len(piece)


@contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    """A descriptor of that file, open within the block."""
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def bytes_of(path: str) -> bytes:
    """The content of a file, which may not be a link."""
    with opened(path, _READ) as fd:
        return b"".join(pieces(fd))


def write_whole(fd: int, data: bytes | bytearray) -> None:
    """Write all the data, or raise: on a full disk one write is short, and the next one raises. If
    another program made the stream non-blocking, wait until it can be written."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            wait_for(fd, select.POLLOUT)


def wait_for(fd: int, event: int) -> None:
    """Wait until a non-blocking stream can be read or written."""
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()


@contextmanager
def new_file(path: str) -> Iterator[int]:
    """A new file of ours, open within the block. Replaces one that a crash left. An error removes
    the new file, since it may hold the last free bytes of the disk."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    fd = os.open(path, _NEW, 0o600)
    try:
        os.fchmod(fd, 0o600)
        yield fd
    except OSError:
        with suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(fd)


def make_dir(path: str) -> None:
    """Make a directory of ours and its parents, 0700 whatever the umask."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        make_dir(os.path.dirname(path))
        os.mkdir(path, 0o700)
    os.chmod(path, 0o700)


def sync_dir(path: str) -> None:
    """Sync a directory: the names in it, and which files they name."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)


def close_fd(fd: int) -> None:
    """Close a descriptor that may be -1 (none) or closed already."""
    with suppress(OSError):
        os.close(fd)


def identity_of(file: str | int) -> tuple[int, int] | None:
    """Device and inode of a path or descriptor; None if there is no such file."""
    try:
        info = os.stat(file)
        return info.st_dev, info.st_ino
    except OSError:
        return None


# -- The machine


def boot_id() -> str:
    """The name of this boot of the machine; "" if the system does not give one."""
    try:
        return bytes_of("/proc/sys/kernel/random/boot_id").decode().strip()
    except OSError:
        return ""


def machine_load() -> float:
    """The machine's load over the last minute; 0 if the system does not give one."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return 0.0


def boot_clock_s() -> float:
    """Seconds since boot, on a clock that nobody sets. The start times of processes are on it."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


# ======== 5. STORE ========
# Every job of a queue, in two arrays and a journal, changed under the store lock. It may use `os`,
# `json` and HOME. It knows what a record looks like, but not what should become of a job. It needs
# one rule of that kind and is given it as a function: `end_followers`.
#
#   jobs.json, dlq.json   the *snapshot*: `[`, one record per line in `seq` order, `]`
#   .queuectl/journal.jsonl, the changes since the snapshot was written; a line is `CRC32HEX JSON`:
#     header   {"format": 2, "boot": BOOT ID, "jobs": MARK, "dlq": MARK}: the arrays it belongs to
#     change   {"put": [<TAB>{job},<TAB>{job}<TAB>], "del": ["id"], "counts": [3, 1, 4, 0, 2],
#              "n": 10}
#     intent   {"intent": {"jobs": MARK, "dlq": MARK}, "counts": [...], "n": 10}: a fold is about to
#              rename these arrays into place
#
# The first line is the header. The second is a change that repeats every processing job. `counts`
# has the number of jobs in each of STATES. `n` is the last `seq` given. A MARK is [inode, size,
# mtime_ns, crc] of an array. A raw tab stands nowhere else in our JSON, so records are split
# without being parsed.
#
# The last change that names a job decides: it puts the job's record, or deletes the job. If no
# change names it, its line in the snapshot holds.
#
# A transaction is one change. It is committed as soon as its line is whole in the journal, with
# checksum and newline. `fsync` says when the journal is synced. A line that is not whole is a torn
# tail, and is cut off, if no whole line follows or if it holds NULs (a block that a power loss kept
# from the disk). Any other is damage.
#
# A fold writes the changes into the arrays and begins a new journal:
#
#   1  Write jobs.json, and dlq.json if it changes, to temporary files. Sync them.
#   2  Append the intent. Sync the journal.
#   3  Check that the arrays on the disk are still the known ones.
#   4  Rename dlq.json, then jobs.json. Sync the home. The rename of jobs.json is the commit point,
#      so it is the last: after it, no rename can fail and make a stored bulk look like an error.
#   5  Write the new journal to a temporary file. Sync it, rename it, sync its directory.
#
# A crash between any two steps needs no undoing. Before step 4, nobody reads the temporary files,
# and an intent for arrays that are not there changes nothing. From then on, header and intent name
# every array that may stand there, old or new. Replaying the journal over either gives the same
# jobs, since a put is the whole record. A bulk that went straight into the new jobs.json is in no
# change, so only the intent counts its jobs: from the rename of jobs.json on, `counts` and `n` are
# those of the intent.
#
# What a process knows of the queue:
#
#   unread   Nothing: no journal is open. The next look reads what it needs. The store is unread at
#            first, after a fold, and after a look that failed.
#   light    `counts` and `n`, from the journal's first and last lines.
#   full     The records, too. A look that needs them reads everything.
#
# `why_broken` is set when a change may be lost. From then on the process makes no more changes.
#
# A look without the lock sees every transaction that was committed when it began and perhaps later
# ones, synced or not, but never a part of one. It opens the arrays before the journal. If it has
# opened a new array, the journal names that one in its intent or header. If a fold replaced an
# array after it was opened, the journal may not name it: then another array stands at its path, and
# the look begins again.
#
# A look with the lock also repairs: it keeps a torn tail aside and cuts it off, appends and folds a
# hand edit (an array that neither header nor intent names), and gives a home its first journal.
#
# Not promised: network file systems; power loss with `fsync` at `never`. Folds are synced even so.
#
# S1  Snapshot and journal show each id exactly once.
# S2  No byte of a store changes without the lock.
# S3  An array is replaced whole or not at all; the journal only grows until a fold replaces it.
# S4  Nobody holds the lock while a command runs, a worker sleeps, or a program waits for a person
#     or a pipe.
# S5  A file that cannot be understood is never overwritten. What is cut off or overruled is kept.
# S6  Memory changes only after the line is whole in the journal.
# S7  Nothing is appended to a journal that is no longer at its path, or on which a sync failed.

FORMAT = 2
ARRAYS = ("jobs", "dlq")
SMALL_BYTES = 1 << 20  # arrays up to this size are folded after every command
LINE_BYTES_MAX = 32 << 20  # a longer bulk goes straight into jobs.json
LONG_BYTES = 2 << 20  # a journal up to this length is read in 30 ms
FOLD_BYTES_S = 2 << 20  # a fold writes at least this much in a second
RECORD_BYTES = 1 << 10  # most records are shorter
TAIL_BYTES = 1 << 16  # read for the journal's last line; if the line is longer, all is replayed
BLOB_BYTES = 1 << 16  # an array is searched in pieces of this size, which fit into the cache
SEARCH_MAX = 8  # up to so many ids are searched for one by one; more of them, in one pass
LOOKS_MAX = 20  # reads of files that others fold or save meanwhile, before a look gives up
HOLE = bytes(64)  # so many NULs in the journal are a block that never reached the disk
BETWEEN = b",\n"  # stands between two records of an array; no newline stands inside one
NUMBER_OF = {state: number for number, state in enumerate(STATES)}


class Mark(NamedTuple):
    """What tells one state of an array from another. `crc` is -1 until the bytes are read."""

    inode: int
    size: int
    mtime_ns: int
    crc: int = -1


def mark_of(file: int | str, crc: int = -1) -> Mark:
    """The mark of a descriptor or path."""
    info = os.stat(file)
    return Mark(info.st_ino, info.st_size, info.st_mtime_ns, crc)


# -- Records and lines as bytes


def head_of(raw: bytes) -> tuple[str, State, int]:
    """Id, state and seq of a record: it begins `{"id": "a", "state": "pending", "seq": 7,`."""
    try:
        parts = raw.split(b'"', 8)
        rest = parts[8]
        state: Any = parts[7].decode()  # one of STATES
        return parts[3].decode(), state, int(rest[9 : rest.index(b",", 9)])
    except (LookupError, ValueError):
        raise StoreError(_CHANGED) from None


_CHANGED = "An array changed while it was read. Nothing was changed. Try again."


def id_of(raw: bytes) -> str:
    """The id of a record."""
    try:
        return raw[8 : raw.index(b'"', 8)].decode()
    except ValueError:
        raise StoreError(_CHANGED) from None


def seq_of(raw: bytes) -> int:
    """The `seq` of a record."""
    return head_of(raw)[2]


def is_waiting(raw: bytes) -> bool:
    """Whether the job of that record waits. An id has at most 128 characters, all ASCII, so the
    state ends before byte 170."""
    is_pending = raw.find(b'"state": "pending"', 8, 170) > 0
    return is_pending or raw.find(b'"state": "failed"', 8, 170) > 0


def is_completed_before(raw: bytes, instant: str) -> bool:
    """Whether the job of that record was completed before that instant, or at it.

    A completed job never changes (J3), so `updated_at` says when. Its first occurrence is the job's
    own: no object stands before it, and quotes inside a text are escaped.
    """
    at = raw.find(b'"updated_at": "') + 15
    is_old = raw[at : at + 24] <= instant.encode()
    return is_old and raw.find(b'"state": "completed"', 8, 170) > 0


def journal_line(body: bytes) -> bytes:
    """A line of the journal from its JSON."""
    return b"%08x %s\n" % (zlib.crc32(body), body)


def body_of(line: bytes) -> bytes | None:
    """The JSON of a journal line; None if the line is cut off or damaged."""
    try:
        is_whole = line.endswith(b"\n") and int(line[:9], 16) == zlib.crc32(line[9:-1])
    except ValueError:
        return None
    return line[9:-1] if is_whole and line[8:9] == b" " else None


def change_body(raws: Sequence[bytes], deleted: Names, counts: Sequence[int], n: int) -> bytes:
    """A change in the journal's JSON."""
    gone = f'"del": {json.dumps(deleted)}, ' if deleted else ""
    rest = f'{gone}"counts": {list(counts)}, "n": {n}}}'.encode()
    return b'{"put": [\t' + b",\t".join(raws) + b"\t], " + rest


def read_body(body: bytes) -> tuple[list[bytes], Fields]:
    """The records that a line of the journal puts, and what else it says: `del`, `counts` and `n`
    of a change; all of a header or an intent."""
    _, *parts = body.split(b"\t")  # a header or an intent has no tab
    if not parts:
        return [], dict(json.loads(body))  # dict: a list may be whole, and says nothing
    *raws, rest = parts
    return [raw.removesuffix(b",") for raw in raws if raw], json.loads(b"{" + rest[3:])


# -- The files


class Snapshot:
    """One array on the disk, open. An array that we wrote is read without a JSON parser.

    blobs, records, raws   its records: in pieces; one by one, with their offsets; or without
    record_at, find        the record at an offset; the records of some ids
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = os.open(path, _READ)
        self.mark = mark_of(self.fd)
        # `[` and a newline stand before the records; a newline, `]` and a newline, behind them.
        self.end = max(2, self.mark.size - 3)
        self.is_edited = False
        self.is_overruled = False  # the journal, which wins, has another record of an edited job

    def is_same(self, known: Mark) -> bool:
        """Whether this is the array of that mark. If only inode or time differ (it was touched,
        copied or restored), the checksum decides."""
        if self.mark[:3] == known[:3]:
            self.mark = known
        elif self.mark.size == known.size and self.mark.crc < 0:
            self.mark = self.mark._replace(crc=self.crc())
        return (self.mark.size, self.mark.crc) == (known.size, known.crc)

    def close(self) -> None:
        """Close the file."""
        close_fd(self.fd)

    def crc(self) -> int:
        """The checksum of its bytes."""
        crc = 0
        for piece in pieces(self.fd, 0, self.mark.size):
            crc = zlib.crc32(piece, crc)
        return crc

    def give_up(self) -> None:
        """Hold no records any more: a person edited it, and all its jobs were taken into memory."""
        self.end = 2
        self.is_edited = True

    def blobs(self) -> Iterator[tuple[int, bytes]]:
        """The array in pieces of whole records with BETWEEN between them, each with its offset."""
        at, rest = 2, b""
        for piece in pieces(self.fd, at, self.end, BLOB_BYTES):
            blob, cut, rest = (rest + piece).rpartition(BETWEEN)
            if cut:
                yield at, blob
                at += len(blob) + len(BETWEEN)
        if at + len(rest) != self.end:
            raise StoreError(_CHANGED)
        if rest:
            yield at, rest

    def records(self, needle: bytes = b"") -> Iterator[tuple[int, bytes]]:
        """The records that hold these bytes, each with its offset."""
        for at, blob in self.blobs():
            for raw in blob.split(BETWEEN) if needle in blob else ():
                if needle in raw:
                    yield at, raw
                at += len(raw) + len(BETWEEN)

    def raws(self, reverse: bool = False) -> Iterator[bytes]:
        """The records, in order or in reverse."""
        if not reverse:
            return (raw for _, raw in self.records())
        spans = [(at, len(blob)) for at, blob in self.blobs()]
        blobs = (os.pread(self.fd, size, at) for at, size in reversed(spans))
        return (raw for blob in blobs for raw in reversed(blob.split(BETWEEN)))

    def record_at(self, offset: int) -> bytes:
        """The record that begins there."""
        line, size = b"", RECORD_BYTES
        while not line and size < self.mark.size + 2 * RECORD_BYTES:
            data = os.pread(self.fd, size, offset)
            line = data[: data.find(b"\n") + 1]
            size *= 2
        raw = line.removesuffix(b"\n").removesuffix(b",")
        if not (raw.startswith(b'{"id": "') and raw.endswith(b"}")):
            raise StoreError(_CHANGED)
        return raw

    def find(self, ids: Names) -> Iterator[bytes]:
        """The records of the jobs with these ids, as far as they are in this array."""
        needles = [b'{"id": "%s", "state": "' % id.encode() for id in ids]
        for needle in needles if len(ids) <= SEARCH_MAX else [b""]:
            # The bytes of a needle may also stand in a field that a user made.
            yield from (raw for _, raw in self.records(needle) if id_of(raw) in ids)


class Journal:
    """The journal, open. `end` is the offset behind the last line that was read. `start` is the
    offset behind the first two lines, where the changes since the fold begin. `marks` has the marks
    in the header, by array; `named` has them and those in the intents that were read.

    lines, last_change       its lines from an offset on; what the last one says of the whole queue
    last_record, ids_with    search its bytes, without a replay
    append                   write a line at its end
    """

    def __init__(self, path: str, writable: bool) -> None:
        self.path = path
        self.is_writable = writable
        self.fd = os.open(path, (_WRITE if writable else _READ) | os.O_APPEND)
        try:
            lines = self.lines(0)
            first, repeat = next(lines, b""), next(lines, b"")
            body = body_of(first)
            if body is None or body_of(repeat) is None:
                raise self.damaged()
            header: Fields = json.loads(body)
            check_format(header, path)
            self.marks = {name: Mark(*header[name]) for name in ARRAYS}
            self.named = {name: [mark] for name, mark in self.marks.items()}
            # A journal of an earlier boot may have a hole before whole lines, after a power loss.
            self.is_of_this_boot = header["boot"] == boot_id()
            self.inode = os.fstat(self.fd).st_ino  # no other file has it while this one is open
        except BaseException:
            os.close(self.fd)
            raise
        self.start, self.end = len(first) + len(repeat), len(first)
        self._text: bytes | None = None  # all of it up to `end`, for searches

    def lines(self, start: int) -> Iterator[bytes]:
        """Its lines from that offset on, with their newlines. The last one may have none."""
        rest = b""
        for piece in pieces(self.fd, start, os.fstat(self.fd).st_size):
            *lines, rest = (rest + piece).split(b"\n")
            yield from (line + b"\n" for line in lines)
        if rest:
            yield rest

    def last_change(self) -> Fields | None:
        """What the last line says after its records. None if that line is not a whole change, or
        too long. Else `end` is behind it."""
        size = os.fstat(self.fd).st_size
        tail = b"".join(pieces(self.fd, max(self.end, size - TAIL_BYTES), size))
        body = body_of(tail[tail.rfind(b"\n", 0, -1) + 1 :])
        if body is None or not body.startswith(b'{"put"'):
            return None
        self.end = size
        return read_body(body)[1]

    def last_record(self, id: str) -> bytes | None:
        """What it says of a job: the latest record, b"" if the job was deleted since, None if it
        does not have the id."""
        quoted = b'"%s"' % re.escape(id.encode())
        put = rb'\t({"id": %s, "state": "[^\t]*)' % quoted
        deletion = rb'\t\], "del": \[[^]]*%s' % quoted  # for this one, findall gives b""
        found = re.findall(put + b"|" + deletion, self._read_text())
        return found[-1].removesuffix(b",") if found else None

    def ids_with(self, needle: bytes) -> set[str]:
        """The ids of the jobs of which some record, perhaps an old one, holds these bytes."""
        return {id_of(part) for part in self._read_text().split(b"\t") if needle in part}

    def _read_text(self) -> bytes:
        if self._text is None or len(self._text) != self.end:
            # In one piece: to join the pieces of a journal of 20 MB would take 50 ms.
            self._text = b"".join(pieces(self.fd, 0, self.end, self.end))
        return self._text

    def append(self, body: bytes) -> None:
        """Append a line. If the write fails half-way, cut off what was written."""
        line = journal_line(body)
        try:
            write_whole(self.fd, line)
        except OSError:
            with suppress(OSError):  # then the next look cuts it off
                os.ftruncate(self.fd, self.end)
            raise
        self.end += len(line)

    def damaged(self) -> StoreError:
        return StoreError(
            f"'{self.path}' is damaged: the checksum of a line does not fit. Nothing was changed. "
            "Repair it with: queuectl doctor --fix."
        )


def check_format(header: Fields, path: str) -> None:
    """Refuse a journal of another format."""
    if header.get("format") != FORMAT:
        raise StoreError(
            f"'{path}' has format {_shown(header.get('format'))}; this queuectl knows {FORMAT}. "
            "Nothing was changed. Use the queuectl that wrote it. To change over, stop its "
            "workers, pause the queue with it, let a worker of it write the arrays (start one and "
            "stop it with Ctrl+C), remove that file, and resume the queue with this one."
        )


# -- The store


class Listener(Protocol):
    """What stands in `Store.listeners`: it is told each record that is put, not the deletions."""

    def put(self, raw: bytes, id: str, state: str, seq: int) -> None: ...


class Store:
    """The jobs of a queue, as journal and snapshot have them.

    read, follow             look: without the lock; with it
    transaction, add_bulk    make one change; add many jobs at once
    get, find_jobs           jobs by id; find_raws and change_of give records
    holders                  the active jobs that have some unique keys
    search                   the records that hold some bytes
    raws, jobs               every record, or job, in order of arrival
    fold, fold_due           write the journal's changes into the arrays; whether that is due
    sync, fold_or_sync       sync the journal; end a command that changed something
    counts, n                true after a look
    records, processing      true after a full look (not `is_light`)

    `records` has each job that the journal has: its latest record, or b"" if it was deleted. All
    other jobs are read from the snapshot when they are asked for.
    """

    def __init__(
        self,
        home: Home,
        end_followers: "Callable[[Transaction, Job | None], None]",
    ) -> None:
        self.home = home
        self.journal_path = f"{home.dir}/journal.jsonl"
        self.paths = {name: f"{home.path}/{name}.json" for name in ARRAYS}
        self.end_followers = end_followers
        self._syncing = threading.Lock()  # no sync is reported done while another one still runs
        self._unsynced = False  # this process appended something that was not synced since
        self.why_broken = ""  # why a change may be lost
        self.journal: Journal | None = None
        self.snapshots: dict[str, Snapshot] = {}
        self.forget()

    def forget(self) -> None:
        """Forget what was read. The next look reads everything anew."""
        for file in (self.journal, *self.snapshots.values()):
            if file is not None:
                close_fd(file.fd)
        self.journal = None
        self.is_light = False
        self._marks: dict[str, Mark] = {}  # of the arrays: as opened, or as the header has them
        self.snapshots = {}
        self.counts = [0] * len(STATES)
        self.n = 0
        self.records: dict[str, bytes] = {}
        self.processing: JobsById = {}
        self.listeners: list[Listener] = []

    # -- Looking

    def read(self, light: bool = False) -> bool:
        """Read the queue as it is now, without the lock and without changing anything. Gives
        whether it changed since the last look."""
        before = self.journal, self.journal and self.journal.end
        if self.home.check():
            self.look(light)
        else:
            self.forget()
        return before != (self.journal, self.journal and self.journal.end)

    def follow(self) -> None:
        """Read the queue as it is now, with the lock. Repairs what a crash or an edit left."""
        with self.home.locked():
            self.look(locked=True)

    def look(self, light: bool = False, locked: bool = False) -> None:
        """Bring memory up to date. A light look is enough for `counts` and `n`. `locked` says that
        the caller holds the lock: then the look also repairs."""
        if locked and self.why_broken:
            raise StoreError(self.why_broken)
        try:
            if self.journal is None or not self._read_on(self.journal, light, locked):
                if not (light and self._read_light(locked)):
                    self._read_all(locked)
        except OSError as error:
            self.forget()
            raise storage_error(error, self.home.dir) from error
        except BaseException:
            self.forget()  # what was read so far is not the whole state
            raise

    def _read_on(self, journal: Journal, light: bool, locked: bool) -> bool:
        """Read on from where the last look ended. False if everything must be read anew."""
        try:
            info = os.stat(journal.path)
        except FileNotFoundError:
            raise self._break(f"'{journal.path}' was deleted while in use.") from None
        is_enough = (light or not self.is_light) and (journal.is_writable or not locked)
        if info.st_ino != journal.inode or not is_enough:
            return False
        if info.st_size < journal.end:
            raise self._break(f"'{journal.path}' was cut while in use.")
        if not self._are_arrays_known():
            return False
        if info.st_size > journal.end:
            if self.is_light:
                return self._read_last_change(journal)
            self._replay(journal, locked)
        return True

    def _break(self, why: str) -> StoreError:
        """Make no more changes in this process, since earlier ones may be lost. Gives the error."""
        self.why_broken = f"{why} Nothing more is changed. See: queuectl doctor."
        return StoreError(self.why_broken)

    def _read_light(self, locked: bool) -> bool:
        """Read the journal's first and last lines. False if they do not tell `counts` and `n`."""
        self.forget()
        journal = self._open_journal(locked)
        if journal is None or not journal.is_of_this_boot:
            return False
        self._marks = journal.marks
        self.is_light = self._are_arrays_known() and self._read_last_change(journal)
        return self.is_light

    def _read_last_change(self, journal: Journal) -> bool:
        rest = journal.last_change()
        if rest is None:
            return False
        self.counts, self.n = rest["counts"], rest["n"]
        return True

    def _read_all(self, locked: bool) -> None:
        """Read the whole journal and both arrays."""
        may_fold = locked
        if locked and not os.path.lexists(self.journal_path):
            self.forget()
            self._begin()
        for _ in range(LOOKS_MAX):
            self.forget()
            self._open_arrays()
            journal = self._open_journal(locked)
            if journal is not None and len(self.snapshots) < len(ARRAYS):
                continue  # a first start made them after this look began
            # Without a journal, the arrays are what a person wrote.
            edited = self._replay_all(journal, locked) if journal else list(self.snapshots)
            if edited and not (locked or self._are_arrays_known()):
                continue  # not edited: a fold replaced them after they were opened
            if edited:
                take_edits(self, edited, locked)
            if not (edited and may_fold):
                return
            may_fold = False  # only once: others may edit the arrays again and again
            with self._fold_may_fail():
                self._fold_locked()
            if self.journal is not None:
                return  # the fold failed, so memory is still true; the journal holds the edit
        raise Busy(f"'{self.home.path}' changes all the time. Nothing was changed. Try again.")

    def _open_journal(self, locked: bool) -> Journal | None:
        with suppress(FileNotFoundError):
            self.journal = Journal(self.journal_path, locked)
        return self.journal

    def _begin(self) -> None:
        """First start: make the settings and arrays that are missing, then a journal. Its marks fit
        no array, so that the next look takes the arrays in as a hand edit."""
        if self.home.live_workers():  # they run jobs that only the lost journal says they claimed
            raise StoreError(
                f"'{self.journal_path}' is missing while a worker lives. Nothing was changed. "
                "Stop the worker first: queuectl worker stop."
            )
        if not os.path.lexists(self.home.config_path):
            self.home.write_settings(DEFAULTS)
        for name, path in self.paths.items():
            if not os.path.lexists(path):
                write_array(self.temporary(name), ())
                os.rename(self.temporary(name), path)
        sync_dir(self.home.path)
        # The name of the home stands in its parent, which may be another user's.
        with suppress(PermissionError):
            sync_dir(os.path.dirname(self.home.path))
        self._write_journal(dict.fromkeys(ARRAYS, Mark(0, 0, 0)))

    def _open_arrays(self) -> None:
        for name, path in self.paths.items():
            try:
                self.snapshots[name] = Snapshot(path)
                self._marks[name] = self.snapshots[name].mark
            except FileNotFoundError:
                # Look again: a first start may have made the array, and then the journal, by now.
                if os.path.exists(self.journal_path) and not os.path.exists(path):
                    raise StoreError(
                        f"'{path}' is missing beside a journal. Nothing was changed. Put it back "
                        "(an empty one holds: [ ]), or make do without: queuectl doctor --fix."
                    ) from None

    def _are_arrays_known(self) -> bool:
        """Whether the arrays on the disk are those of `_marks`."""
        for name, mark in self._marks.items():
            try:
                info = os.lstat(self.paths[name])
            except FileNotFoundError:
                return False
            if (info.st_ino, info.st_size, info.st_mtime_ns) != mark[:3]:
                return False
        return True

    def _replay_all(self, journal: Journal, locked: bool) -> list[str]:
        """Replay the whole journal. Gives the names of the arrays that a person edited: neither
        header nor intent names them."""
        self._replay(journal, locked)
        return [
            name
            for name, snapshot in self.snapshots.items()
            if not any(map(snapshot.is_same, journal.named[name]))
        ]

    def _replay(self, journal: Journal, locked: bool) -> None:
        """Apply the journal's lines from its `end` on. With the lock, cut off a torn tail."""
        is_torn = False
        for line in journal.lines(journal.end):
            body = body_of(line)
            if body is None:
                is_torn = True
                if HOLE in line:
                    break  # a power loss: what follows was not synced either, though it is whole
            elif is_torn:
                raise journal.damaged()
            else:
                self._apply(journal, body)
                journal.end += len(line)
        if locked and os.fstat(journal.fd).st_size > journal.end:
            path = self.home.keep_aside("journal-tail", journal.fd, journal.end)
            os.ftruncate(journal.fd, journal.end)
            self.home.warn(
                "The journal ended in an unfinished line (a crash?); it was cut off and kept as "
                f"'{path}'."
            )

    def _apply(self, journal: Journal, body: bytes) -> None:
        try:
            raws, rest = read_body(body)
            for raw in raws:
                self.put_record(raw)
            self.records |= dict.fromkeys(rest.get("del", ()), b"")
            if "intent" in rest:
                for name in ARRAYS:
                    journal.named[name].append(Mark(*rest["intent"][name]))
                if not self.snapshots["jobs"].is_same(journal.named["jobs"][-1]):
                    return  # the fold was not committed
            self.counts, self.n = rest["counts"], rest["n"]
        except (ValueError, LookupError, TypeError, StoreError) as error:
            raise StoreError(
                f"'{self.journal_path}' holds a line that is whole and cannot be understood. "
                "Nothing was changed. Repair it with: queuectl doctor --fix."
            ) from error

    def put_record(self, raw: bytes, job: Job | None = None) -> None:
        """Take a job's new record into memory, and tell the listeners."""
        id, state, seq = job[:3] if job is not None else head_of(raw)
        self.records[id] = raw
        if state == "processing":
            self.processing[id] = job or trust_job(raw)
        else:
            self.processing.pop(id, None)
        for listener in self.listeners:
            listener.put(raw, id, state, seq)

    # -- Changing

    @contextmanager
    def transaction(self, light: bool = False, most_s: float = inf) -> "Iterator[Transaction]":
        """Change the queue, whole or not at all: take the lock, look, run the block, append a line.

        If the block raises, nothing changes. A light look is enough for a block that changes no
        job that is there; it may look jobs up. With `fsync` at `always`, the change is on the disk
        when this returns.
        """
        with self.home.locked(most_s):
            self.look(light, locked=True)
            change = Transaction(self, self.home.now())
            yield change
            if change.changes:
                self._commit(change)
        if self.home.last_config.fsync == "always":
            self.sync()

    def _commit(self, change: "Transaction") -> None:
        counts, n = list(self.counts), self.n
        puts: list[tuple[bytes, Job | None]] = []
        deleted: list[str] = []
        for id, (old, new) in change.changes.items():
            if old is not None:
                counts[NUMBER_OF[old.state]] -= 1
            if new is None:
                deleted.append(id)
                continue
            assert check_job(new) is None, check_job(new)
            counts[NUMBER_OF[new.state]] += 1
            n = max(n, new.seq)
            puts.append((encode_job(new), new))
        self._write_change(puts, deleted, counts, n)

    def _write_change(
        self,
        puts: Sequence[tuple[bytes, Job | None]],
        deleted: Names,
        counts: list[int],
        n: int,
    ) -> None:
        """Append a change, and only then take it into memory (S6)."""
        self.append(change_body([raw for raw, _ in puts], deleted, counts, n))
        self.counts, self.n = counts, n
        if not self.is_light:
            for raw, job in puts:
                self.put_record(raw, job)
            self.records |= dict.fromkeys(deleted, b"")

    def append(self, body: bytes) -> None:
        """Append a line to the journal. The caller brings memory up to date."""
        assert self.journal is not None
        self.journal.append(body)
        self._unsynced = True

    def add_bulk(
        self,
        raws: Sequence[bytes],
        number: Callable[[Sequence[bytes], str, int], Iterable[bytes]],
        may_fold: bool,
        light: bool,
    ) -> None:
        """Add new jobs, all or nothing. `number(raws, now, n)` gives their records under the lock,
        after a look that may be light.

        They become one line of the journal, written here, since the records are encoded already. If
        they are at least a quarter of the arrays, or too long for a line, they go straight into a
        new jobs.json. `may_fold` allows that: all of them are new and pending.
        """
        size = sum(map(len, raws))
        with self.transaction(light) as change:
            arrays = sum(mark.size for mark in self._marks.values())
            if may_fold and (4 * size >= arrays or size > LINE_BYTES_MAX):
                self.look(locked=True)
                self._fold_locked(number(raws, change.now, self.n))
            elif numbered := list(number(raws, change.now, self.n)):
                counts, n = list(self.counts), self.n
                for _, state, seq in map(head_of, numbered):
                    # A record with a lower seq is a parent's, which was there and is put again.
                    counts[NUMBER_OF[state]] += seq > self.n
                    n = max(n, seq)
                self._write_change([(raw, None) for raw in numbered], (), counts, n)

    # -- Folding and syncing

    def fold_due(self, quiet_s: float) -> bool:
        """Whether to fold now. Small arrays are folded after any change, large ones when the
        journal is long and has a quarter of their size: so folds add little to a change's cost.

        `quiet_s` is how long nothing has changed. Arrays count as small, too, if they can be
        written in that time. So an idle worker folds a large queue in the end, but does not rewrite
        it for each new job.
        """
        journal = self.journal
        if journal is None:
            return False
        is_stale = any(self._marks[name][:3] != mark[:3] for name, mark in journal.marks.items())
        if is_stale or not journal.is_of_this_boot:
            return True  # with such a header no light look is enough
        arrays = sum(mark.size for mark in self._marks.values())
        is_small = arrays <= max(SMALL_BYTES, quiet_s * FOLD_BYTES_S)
        return journal.end > (journal.start if is_small else max(LONG_BYTES, arrays // 4))

    def fold(self, most_s: float = inf) -> None:
        """Write the journal's changes into the arrays. If it raises StoreError, nothing is lost."""
        with self.home.locked(most_s):
            self.look(locked=True)
            self._fold_locked()
            with suppress(StoreError):  # the fold is done; the next look raises it again
                self.look(locked=True)

    @contextmanager
    def _fold_may_fail(self) -> Iterator[None]:
        """Turn an error of a fold into a warning: the journal still holds everything."""
        try:
            yield
        except (OSError, StoreError) as error:
            self.home.warn(f"The change is stored; writing the arrays anew did not work: {error}")

    def fold_or_sync(self) -> None:
        """End a command that changed something: fold if that is due and no worker lives to do it;
        then sync what is not synced yet."""
        if self.fold_due(quiet_s=0) and not self.home.live_workers():
            with self._fold_may_fail():
                self.fold()
        self.sync()

    def _fold_locked(self, added: Iterable[bytes] = ()) -> None:
        """The five steps at the top of this section. Under the lock, after a full look. The store
        is unread afterwards. `added` are records of new pending jobs."""
        assert self.journal is not None
        counts, n = list(self.counts), self.n
        dead = self._changed(["dlq"])

        def new_jobs() -> Iterator[bytes]:
            nonlocal n
            for raw in added:
                n += 1
                yield raw

        marks = {name: snapshot.mark for name, snapshot in self.snapshots.items()}
        dlq, jobs = self.snapshots["dlq"], self.snapshots["jobs"]
        if dead or dlq.is_edited or any(id_of(raw) in self.records for raw in dlq.raws()):
            merged = merge_records(dlq, dead, self.records)
            marks["dlq"] = write_array(self.temporary("dlq"), merged)
        merged = merge_records(jobs, self._changed(["jobs"]), self.records)
        marks["jobs"] = write_array(self.temporary("jobs"), chain(merged, new_jobs()))
        counts[NUMBER_OF["pending"]] += n - self.n
        self.append(encode_json({"intent": marks, "counts": counts, "n": n}))
        try:
            os.fsync(self.journal.fd)
        except OSError as error:
            self._renew_journal(self.journal.fd, error, nullcontext())
        self._replace_arrays(marks)
        self.counts, self.n, self._unsynced = counts, n, False
        try:
            self._write_journal(marks, [encode_job(job) for job in self.processing.values()])
        except OSError as error:
            self.home.warn(
                "The arrays are written; the journal could not be begun anew: "
                f"{storage_error(error, self.journal_path)}"
            )
        self.forget()

    def _replace_arrays(self, marks: Mapping[str, Mark]) -> None:
        """Steps 3 and 4. Before them, an edited array that the journal overrules is kept aside."""
        for name, snapshot in self.snapshots.items():
            if snapshot.is_overruled:
                path = self.home.keep_aside(f"{name}.json.edited", snapshot.fd)
                self.home.warn(
                    f"{name}.json was edited while jobs in it were changing; those stay as the "
                    f"queue has them, and the edited file is kept as '{path}'."
                )
        if not self._are_arrays_known():
            raise Busy(f"The arrays of '{self.home.path}' were edited just now. Try again.")
        committed = False
        try:
            for name in ("dlq", "jobs"):
                if marks[name] != self.snapshots[name].mark:
                    os.rename(self.temporary(name), self.paths[name])
            committed = True
            sync_dir(self.home.path)
        except OSError as error:
            self.forget()  # the next look finds out which renames were done
            if committed:
                raise unconfirmed(error) from error
            raise

    def _write_journal(self, marks: Mapping[str, Mark], running: Sequence[bytes] = ()) -> None:
        """Replace the journal by one that has only a header and the processing jobs. Synced."""
        header = {"format": FORMAT, "boot": boot_id(), **marks}
        repeat = change_body(running, (), self.counts, self.n)
        lines = [journal_line(encode_json(header)), journal_line(repeat)]
        self.home.put_file(self.journal_path, lines)
        try:
            sync_dir(self.home.dir)
        except OSError:
            # After a power loss the name may stand for the old journal, which does not know the
            # arrays of the next fold. That directory is synced once more, with a new file in it.
            self.home.put_file(self.journal_path, lines)
            sync_dir(self.home.dir)

    def temporary(self, name: str) -> str:
        """Where a new array is written before it is renamed."""
        return f"{self.home.dir}/{name}.json.new"

    def sync(self) -> None:
        """Sync what was appended, unless `fsync` is `never`. Raises StoreError if a change may not
        be on the disk.

        After a failed fsync the system may take the lost pages for written, in the next process
        too. So that journal is never synced again: while its pages are still in memory, it is
        copied to a fresh file.
        """
        if self.home.last_config.fsync == "never":
            return
        with self._syncing:  # and without the store lock, so that others go on meanwhile
            with self.home.mutex:
                if self.why_broken:
                    doubt = "The change may have been stored. " if self._unsynced else ""
                    raise StoreError(doubt + self.why_broken)
                if not self._unsynced:
                    return
                try:
                    # A look that failed has closed the journal. The file is still at its path.
                    fd = (
                        os.open(self.journal_path, _READ)
                        if self.journal is None
                        else os.dup(self.journal.fd)
                    )
                except OSError as error:
                    raise unconfirmed(error) from error
                self._unsynced = False
            try:
                os.fsync(fd)
            except OSError as error:
                self._renew_journal(fd, error, self.home.locked())
                with self._fold_may_fail():
                    self.fold()
            finally:
                os.close(fd)

    def _renew_journal(self, fd: int, error: OSError, lock: AbstractContextManager[None]) -> None:
        """Replace a journal whose sync failed by a synced copy. If that fails too, this process
        makes no more changes."""
        try:
            with lock:
                if identity_of(self.journal_path) == identity_of(fd):  # not if a fold replaced it
                    self.home.put_file(self.journal_path, pieces(fd))
                    sync_dir(self.home.dir)
                self._unsynced = False
        except (OSError, StoreError):
            self._break("An earlier change may be lost: the disk did not confirm it.")
            raise unconfirmed(error) from error

    # -- Looking jobs up

    def get(self, id: str) -> Job | None:
        """The job with that id, or None."""
        if id in self.processing:
            return self.processing[id]
        return self.find_jobs([id]).get(id)

    def find_jobs(self, ids: Names) -> JobsById:
        """The jobs with these ids, as far as there are any, by id."""
        return {id: trust_job(raw) for id, raw in self.find_raws(ids).items()}

    def find_raws(self, ids: Names) -> dict[str, bytes]:
        """The records of the jobs with these ids, as far as there are any, by id."""
        found = {id: raw for id in ids if (raw := self.change_of(id)) is not None}
        rest = set(ids).difference(found)
        for snapshot in self.snapshots.values():
            found |= {id_of(raw): raw for raw in snapshot.find(rest)}
        return {id: raw for id in ids if (raw := found.get(id))}

    def change_of(self, id: str) -> bytes | None:
        """What the journal says of a job: its record, b"" if it was deleted, None if nothing."""
        if self.is_light:
            return self._searchable().last_record(id)
        return self.records.get(id)

    def holders(self, keys: Names) -> JobsById:
        """The jobs that have these unique keys and are not over, by key."""
        needles = [b'"unique": %s, "command": ' % encode_json(key) for key in keys]
        if len(keys) > SEARCH_MAX:
            needles = [b'"unique": ']
        jobs = [trust_job(raw) for needle in needles for raw in self.search(needle)]
        return {
            job.unique or "": job for job in jobs if job.unique in keys and job.state not in OVER
        }

    def search(self, needle: bytes) -> Iterator[bytes]:
        """The records that hold these bytes, of the jobs in the journal and in jobs.json."""
        changed: Iterable[bytes] = self.records.values()
        if self.is_light:
            changed = self.find_raws(self._searchable().ids_with(needle)).values()
        yield from (raw for raw in changed if needle in raw)
        if "jobs" in self.snapshots:
            hits = self.snapshots["jobs"].records(needle)
            yield from (raw for _, raw in hits if self.change_of(id_of(raw)) is None)

    def _searchable(self) -> Journal:
        """The journal of a light store, for a search. Opens the arrays, too."""
        assert self.journal is not None
        if not self.snapshots:
            self._open_arrays()
            marks = self.journal.marks
            if not all(self.snapshots[name].is_same(marks[name]) for name in ARRAYS):
                raise Busy(f"The arrays of '{self.home.path}' were edited just now. Try again.")
        return self.journal

    def raws(self, reverse: bool = False, arrays: Names = ARRAYS) -> Iterator[bytes]:
        """The record of every job in these arrays, in order of arrival or in reverse."""
        changed = self._changed(arrays)
        streams: list[Iterable[bytes]] = [changed[::-1] if reverse else changed]
        for name in arrays:
            if name in self.snapshots:
                raws = self.snapshots[name].raws(reverse)
                streams.append(raw for raw in raws if id_of(raw) not in self.records)
        return heapq.merge(*streams, key=seq_of, reverse=reverse)

    def _changed(self, arrays: Names) -> list[bytes]:
        """The journal's records of the jobs that belong in these arrays, in order of arrival."""
        raws = filter(None, self.records.values())
        return sorted((raw for raw in raws if array_of(head_of(raw)[1]) in arrays), key=seq_of)

    def jobs(self, reverse: bool = False, states: Names = STATES) -> Iterator[Job]:
        """Every job in those states, in order of arrival or in reverse."""
        for raw in self.raws(reverse, {array_of(state) for state in states}):
            if head_of(raw)[1] in states:
                yield trust_job(raw)


class Transaction:
    """A change that is being made. `now` was read once, under the lock. `changes` has the job
    before and after the change, by id."""

    def __init__(self, store: Store, now: str) -> None:
        self.store = store
        self.now = now
        self.changes: dict[str, tuple[Job | None, Job | None]] = {}

    def job(self, id: str) -> Job | None:
        """The job as this transaction sees it."""
        return self.changes[id][1] if id in self.changes else self.store.get(id)

    def put(self, old: Job | None, new: Job) -> Job:
        """Replace a job by its next state, or add one (`old` is None). Gives the new job. If the
        job dies, its followers that need it die too."""
        before, _ = self.changes.get(new.id, (old, new))
        self.changes[new.id] = (before, new)
        if new.state == "dead":
            self.store.end_followers(self, new)
        return new

    def delete(self, old: Job) -> None:
        """Remove a job for good."""
        self.changes[old.id] = (old, None)

    def results(self) -> list[Job]:
        """The jobs that were put, as they are now."""
        return [new for _, new in self.changes.values() if new is not None]

    def running(self) -> Iterator[Job]:
        """The jobs that are processing after this change."""
        jobs = map(self.job, {*self.store.processing, *self.changes})
        return (job for job in jobs if job is not None and job.state == "processing")


# -- Hand edits


def take_edits(store: Store, edited: list[str], locked: bool) -> None:
    """Take the jobs of arrays that a person edited into memory. The journal wins: a job that it
    has stays as it has it.

    With the lock, the other jobs are also appended to the journal. Otherwise a crash in the fold
    that follows could lose a job that the edit moved from one array to the other. The jobs that the
    journal has are not appended again: on a full disk, where folds fail, it would grow at each
    look.
    """
    journal = dict(store.records)
    taken: JobsById = {}
    for name in edited:
        for job in _edited_jobs(store, name):
            if job.id in journal:
                if journal[job.id] != encode_job(job):
                    store.snapshots[name].is_overruled = True
            elif job.id in taken:
                raise _unusable(store, name, f"job '{job.id}' is in the arrays twice")
            else:
                taken[job.id] = job
                store.n = max(store.n, job.seq)
    for name in store.snapshots.keys() - set(edited):
        for raw in store.snapshots[name].find(taken):
            raise _unusable(store, edited[0], f"job '{id_of(raw)}' is also in {name}.json")
    for job in taken.values():
        store.put_record(encode_job(job), job)
    for name in edited:
        store.snapshots[name].give_up()
    saved_s = max(store.snapshots[name].mark.mtime_ns for name in edited) / 1e9
    change = Transaction(store, format_instant(saved_s))
    store.end_followers(change, None)
    for job in change.results():
        store.put_record(encode_job(job), job)
    store.counts = [0] * len(STATES)
    for _, state, _ in map(head_of, store.raws()):
        store.counts[NUMBER_OF[state]] += 1
    raws = [raw for id, raw in store.records.items() if raw and journal.get(id) != raw]
    if locked and raws:
        store.append(change_body(raws, (), store.counts, store.n))


def _edited_jobs(store: Store, name: str) -> Iterator[Job]:
    """The jobs of an edited array, read as any JSON array of objects."""
    snapshot = store.snapshots[name]
    if mark_of(snapshot.fd)[:3] != snapshot.mark[:3]:
        raise Busy(f"'{snapshot.path}' is just being saved. Nothing was changed. Try again.")
    try:
        text = b"".join(pieces(snapshot.fd, 0, snapshot.mark.size)).decode("utf-8-sig")
        records = parse_json(text, "The file")
    except (UnicodeDecodeError, BadValue) as error:
        raise _unusable(store, name, str(error).rstrip(".")) from None
    if not isinstance(records, list):
        raise _unusable(store, name, "it must hold one JSON array")
    ids_below = {str(record.get("id", "")) for record in records if isinstance(record, dict)}
    for number, record in enumerate(records, 1):
        try:
            job = edited_job(store, name, number, record, snapshot.mark)
        except BadValue as error:
            raise _unusable(store, name, f"element {number}: {str(error).rstrip('.')}") from None
        parents_below = ids_below.intersection(parents_of(job))
        if parents_below and "seq" not in record:
            parent = min(parents_below)
            why = f"job '{job.id}' comes after '{parent}', which is not an earlier job"
            raise _unusable(store, name, why)
        ids_below.discard(job.id)
        yield job


def edited_job(store: Store, name: str, number: int, record: Any, mark: Mark) -> Job:
    """A job from a hand-written record. A field that is missing gets the default of an enqueue.
    Raises BadValue.

    A made id depends only on the file's time and the record's place in its array, so that every
    look makes the same one.
    """
    if not isinstance(record, dict) or "command" not in record:
        raise BadValue("it is no job: an object with a 'command'")
    config, saved_s = store.home.config(), mark.mtime_ns / 1e9
    at = format_instant(saved_s)
    state = record.get("state", "dead" if name == "dlq" else "pending")
    made_id = make_id(int(saved_s * 1000), number if name == "jobs" else -number)
    known = store.records.get(str(record.get("id", made_id)))  # maybe of this edit
    defaults = {
        **default_fields(config, at),
        "id": made_id, "state": state, "seq": head_of(known)[2] if known else store.n + 1,
        "runs": record.get("attempts", 0), "cwd": store.home.path,
    }  # fmt: skip
    if state in OVER:
        defaults["finished_at"] = at
    return job_from_dict(record, defaults)


def _unusable(store: Store, name: str, why: str) -> StoreError:
    return StoreError(
        f"'{store.paths[name]}' cannot be used: {why}. Nothing was changed. Copy it first, then "
        "mend it with an editor, or repair it with: queuectl doctor --fix."
    )


# -- Writing arrays


def merge_records(snapshot: Snapshot, new: Sequence[bytes], changed: Names) -> Iterator[bytes]:
    """The records of an array after a fold, in pieces. The array loses the ids in `changed` and
    gets the records `new`. Both are in `seq` order, and so is the result."""
    done = 0
    for _, blob in snapshot.blobs():
        raws = blob.split(BETWEEN)
        kept = [raw for raw in raws if id_of(raw) not in changed]
        upto = bisect.bisect(new, seq_of(raws[-1]), key=seq_of)
        if upto > done:
            kept = sorted([*kept, *new[done:upto]], key=seq_of)
            done = upto
        yield BETWEEN.join(kept)
    yield BETWEEN.join(new[done:])


def write_array(path: str, parts: Iterable[bytes]) -> Mark:
    """Write an array, given in pieces of records, to a new file, and sync it. Gives its mark."""
    with new_file(path) as fd:
        crc, buffer, between = 0, bytearray(b"[\n"), b""
        for part in filter(None, parts):
            buffer += between
            buffer += part
            between = BETWEEN
            if len(buffer) >= CHUNK_BYTES:
                crc = zlib.crc32(buffer, crc)
                write_whole(fd, buffer)
                buffer.clear()
        buffer += b"\n]\n" if between else b"]\n"
        write_whole(fd, buffer)
        os.fsync(fd)
        return mark_of(fd, zlib.crc32(buffer, crc))


# ======== 6. CLAIM ORDER ========
# Which jobs wait, and in which order they are claimed: higher priority first, then order of
# arrival. It uses the store's records and writes no file. It is given the time, and reads clocks
# only to find out whether one was set.
#
# C1  The order is a list of places to look, never the truth. An entry whose job has changed since
#     is dropped when it comes up. So no change has to remove an entry, and a claim that failed does
#     no harm.
# C2  A lane's entry whose job is not ready (the clock was set back) becomes an entry by time again.
#     If it were dropped, nothing would ever claim the job.
# C3  A job that comes after others has no entry before the last of them is over. A held job has no
#     entry before it is released.
# C4  Only the records of the running jobs say which units are taken. A claim assigns units in its
#     own transaction, and they are free when the job is no longer processing.

# A job that waits for units may be overtaken by jobs that need fewer. After this time, no job that
# needs the same resource overtakes it.
UNITS_WAIT_S = 600.0
CLOCK_STEP_S = 1.0  # a wall clock that moves more than this against the boot clock was set
# A record that has the field holds these bytes. So may a record without it, since a user's object
# (`env`, an unknown field) may have such a key. `_PRIORITY` is in each record, before such objects.
_AFTER = b'"after": '
_RUN_AT = b'"run_at": '
_HELD = b'"held": true'
_NEEDS = b'"needs": '
_TAGS = b'"tags": '
_PRIORITY = b'"priority": '
_ATTEMPTS = b', "attempts": '  # from here on, records of jobs that were added together are alike


class TagFilter(NamedTuple):
    """Which jobs a worker takes, by `--tag` and `--not-tag`."""

    tags: Names = ()
    not_tags: Names = ()

    def takes(self, tags: Names | None) -> bool:
        """Whether jobs with these tags are taken."""
        own = set(tags or ())
        if self.tags and own.isdisjoint(self.tags):
            return False
        return own.isdisjoint(self.not_tags)


ALL_JOBS = TagFilter()


def waiting_record(store: Store, raw: bytes) -> bytes | None:
    """The latest record of the job that `raw` is a record of, if the job waits."""
    latest = store.records.get(id_of(raw), raw)
    return latest if latest and is_waiting(latest) else None


# -- Jobs that come after others


class Follower(NamedTuple):
    """A job that comes after others."""

    seq: int
    raw: bytes  # its record when it was registered
    parents: Names
    left: set[str]  # the parents that are not over


class Followers:
    """The jobs that come after others and are not over. A listener of the store.

    followers, children   the followers by id; the ids of each parent's followers
    waiting               the followers of a job that wait
    is_blocked            whether a job has a parent that is not over
    freed                 records of jobs whose last parent is over; the claim order takes them
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.children: dict[str, dict[str, None]] = {}  # a dict of ids, since a set has no order
        self.followers: dict[str, Follower] = {}
        self.freed: list[bytes] = []
        for raw in store.search(_AFTER):
            self._add(raw)
        for parent, raw in store.find_raws(self.children).items():
            for child in self.children[parent]:
                self._update(child, *head_of(raw))

    def _add(self, raw: bytes) -> Names:
        """Register a job that comes after others, as if those were over. Gives their ids."""
        job = trust_job(raw)
        parents = () if job.state in OVER else parents_of(job).keys()
        if parents:
            self.followers[job.id] = Follower(job.seq, raw, parents, set())
        for parent in parents:
            self.children.setdefault(parent, {})[job.id] = None
        return parents

    def _update(self, child: str, id: str, state: str, seq: int) -> None:
        """Note the state of a parent of `child`. A job with the parent's id that arrived later than
        the child is another job (J5)."""
        follower = self.followers[child]
        if state not in OVER and seq < follower.seq:
            follower.left.add(id)
        elif id in follower.left:
            follower.left.remove(id)
            if not follower.left:
                self.freed.append(follower.raw)

    def put(self, raw: bytes, id: str, state: str, seq: int) -> None:
        """Note a job's new record: the job may be a follower, a parent, or both."""
        if state in OVER:
            self._remove(id)
        elif _AFTER in raw and id not in self.followers:
            for parent in self._store.find_raws(self._add(raw)).values():
                self._update(id, *head_of(parent))
        for child in self.children.get(id, ()):
            self._update(child, id, state, seq)

    def _remove(self, id: str) -> None:
        follower = self.followers.pop(id, None)
        for parent in follower.parents if follower is not None else ():
            del self.children[parent][id]
            if not self.children[parent]:
                del self.children[parent]

    def waiting(self, job: Job) -> Iterator[Job]:
        """The followers of the job that wait. A follower with a lower seq came after an earlier
        job with that id, which is gone."""
        for child in self.children.get(job.id, ()):
            follower = self.followers[child]
            raw = waiting_record(self._store, follower.raw)
            if raw is not None and follower.seq > job.seq:
                yield trust_job(raw)

    def is_blocked(self, id: str) -> bool:
        """Whether the job has a parent that is not over."""
        return id in self.followers and bool(self.followers[id].left)


def followers_of(store: Store) -> Followers:
    """The store's Followers. They are read when they are first asked for."""
    for listener in store.listeners:
        if isinstance(listener, Followers):
            return listener
    followers = Followers(store)
    store.listeners.append(followers)
    return followers


def end_followers(change: Transaction, dead: Job | None) -> None:
    """Let the waiting jobs die that need the dead job, then those that need them, and so on (J5).
    None stands for all dead jobs."""
    followers = followers_of(change.store)
    parents = [dead] if dead else change.store.find_jobs(followers.children).values()
    to_do = [parent for parent in parents if parent.state == "dead"]
    while to_do:
        parent = to_do.pop()
        for job in followers.waiting(parent):
            old, new = change.changes.get(job.id, (job, job))
            assert new is not None
            if new.state in WAITING and parent.id in needed_by(new):
                change.changes[job.id] = (old, die_after(new, parent.id, change.now))
                to_do.append(job)


def is_needed(store: Store, job: Job) -> bool:
    """Whether a job waits that comes after this one."""
    return any(followers_of(store).waiting(job))


# -- What waits, in claim order


def _job_like(raw: bytes) -> Job:
    """A job with the fields of that record from `attempts` on; its id and command are made up.

    Records of jobs that were added together are alike from the field `attempts` on. That part is
    decoded only once.
    """
    return _decode_end(head_of(raw)[1], raw[raw.index(_ATTEMPTS) :])


@lru_cache(maxsize=1)
def _decode_end(state: str, end: bytes) -> Job:
    start = b'{"id": "x", "state": "%s", "seq": 0, "command": "x"'
    return trust_job(start % state.encode() + end)


class LaneKey(NamedTuple):
    """What the jobs of a lane have in common. Lanes are sorted by it."""

    priority: int  # negative: the highest comes first
    tags: Words = ()  # of those in `ClaimOrder.named`
    needs: tuple[tuple[str, int], ...] = ()


class Lane:
    """The jobs of one LaneKey whose time has come.

    `offsets` has the places in the snapshot of most of them, the last job first, at 8 bytes a job.
    `heap` has (seq, record) of the others: of the next job from `offsets`, of jobs that were put
    after the snapshot was written, and of jobs that had to wait for their time.
    """

    def __init__(self) -> None:
        self.offsets = array("Q")
        self.heap: list[tuple[int, bytes]] = []


class ClaimOrder:
    """What waits, in claim order, as of the last call of `advance`. A listener of the store.

    advance              let the time go on; `claim_order` does
    first                the job to claim next
    oldest               when the oldest job that could start was created, in the whole queue
    next_run_at          the earliest time that a job waits for, in the whole queue
    has_waiting          whether a job waits that a worker takes and that is not held back
    held, held_back      the ids of the held jobs; these jobs and those that come after them
    """

    def __init__(self, store: Store, named: frozenset[str], now: str) -> None:
        self.named = named  # tags that have a limit or that a worker filters by
        self._store = store
        self._now = now
        self._lanes: dict[LaneKey, Lane] = {}
        self._keys: list[LaneKey] = []  # in claim order
        self._timed: list[tuple[str, int, bytes]] = []  # (run_at, seq, record)
        self.held: set[str] = set()
        self.clock_offset_s = 0.0  # wall clock less boot clock
        self._followers = followers_of(store)
        self._followers.freed.clear()
        if "jobs" in store.snapshots:
            try:
                self._enter_all(store.snapshots["jobs"])
            except ValueError as error:  # a field is not where it was written: the disk's fault
                raise StoreError(_CHANGED) from error
        for raw in filter(None, store.records.values()):
            self.put(raw, *head_of(raw))

    def _enter_all(self, snapshot: Snapshot) -> None:
        """Enter the waiting jobs of the snapshot. Most are not decoded: to decode a million takes
        9 s. Jobs that were added together have records that end alike; their lane is found once."""
        end, is_special, lane = b"\0", False, Lane()
        for at, blob in snapshot.blobs():
            for raw in blob.split(BETWEEN):
                if is_waiting(raw):
                    if not raw.endswith(end):
                        end = raw[raw.index(_ATTEMPTS) :]
                        is_special = _RUN_AT in end or _AFTER in end or _HELD in end
                        lane = self._lane_of(raw)
                    if not is_special:
                        lane.offsets.append(at)
                    elif id_of(raw) not in self._store.records:
                        self._enter(raw)
                at += len(raw) + len(BETWEEN)
        for lane in self._lanes.values():
            lane.offsets.reverse()
            self._enter_next(lane)

    def _key_of(self, raw: bytes) -> LaneKey:
        """The lane of a job. The first `priority` is the job's own: see _PRIORITY."""
        at = raw.index(_PRIORITY) + len(_PRIORITY)
        priority = int(raw[at : raw.index(b",", at)])
        has_tags = bool(self.named) and _TAGS in raw
        if not has_tags and _NEEDS not in raw:
            return LaneKey(-priority)
        job = _job_like(raw)
        tags = sorted(self.named.intersection(job.tags or ()))
        return LaneKey(-priority, tuple(tags), tuple(sorted((job.needs or {}).items())))

    def _lane_of(self, raw: bytes) -> Lane:
        key = self._key_of(raw)
        if key not in self._lanes:
            self._lanes[key] = Lane()
            bisect.insort(self._keys, key)
        return self._lanes[key]

    def put(self, raw: bytes, id: str, state: str, seq: int) -> None:
        """Enter a job that has a new record, if it waits."""
        self.held.discard(id)
        if state in WAITING:
            self._enter(raw)

    def _enter(self, raw: bytes) -> None:
        """Enter a waiting job in its lane, or by its time, unless it is held or blocked (C3)."""
        id, _, seq = head_of(raw)
        job = _job_like(raw) if _RUN_AT in raw or _HELD in raw else None
        if job is not None and job.held:
            self.held.add(id)
        elif self._followers.is_blocked(id):
            return
        elif job is None or self._is_ready(job):
            heapq.heappush(self._lane_of(raw).heap, (seq, raw))
        else:
            heapq.heappush(self._timed, (job.run_at or "", seq, raw))

    def _is_ready(self, job: Job) -> bool:
        # The setting is read each time: it may have changed since this order was made.
        return is_ready(job, self._now, self._store.home.last_config.backoff_max)

    def _enter_next(self, lane: Lane) -> None:
        """Move the next job of `offsets` to the lane's heap."""
        while lane.offsets:
            raw = self._store.snapshots["jobs"].record_at(lane.offsets[-1])
            lane.offsets.pop()  # only now, since the read may fail
            id, _, seq = head_of(raw)
            if id not in self._store.records:
                heapq.heappush(lane.heap, (seq, raw))
                return

    def _record(self, raw: bytes) -> bytes | None:
        """The latest record of an entry's job, if it waits and is neither held nor blocked."""
        id = id_of(raw)
        if id in self.held or self._followers.is_blocked(id):
            return None
        return waiting_record(self._store, raw)

    def advance(self, now: str) -> None:
        """Move the jobs that were freed, or whose time has come by now, to their lanes."""
        self._now = now
        entries, self._followers.freed = self._followers.freed, []
        while self._timed and self._timed[0][0] <= now:
            entries.append(heapq.heappop(self._timed)[2])
        for entered in entries:
            raw = waiting_record(self._store, entered)
            if raw is not None:
                self._enter(raw)

    def first(self, units: Units, only: TagFilter = ALL_JOBS) -> Job | None:
        """The job to claim next, of those that `only` takes and that lack no units (see
        UNITS_WAIT_S)."""
        reserved: set[str] = set()
        for _, keys in groupby(list(self._keys), lambda key: key.priority):
            tops = filter(None, [self._top(key) for key in keys if only.takes(key.tags)])
            for job in sorted(tops, key=lambda job: job.seq):
                needs = demand_of(job, units.limits).keys()
                if reserved.isdisjoint(needs) and not units.lacking(job):
                    return job
                since = max(job.created_at, job.run_at or "")
                is_late = add_seconds(since, UNITS_WAIT_S) <= self._now
                # The limit may have been lowered below the job's need. Then it holds up no other.
                if is_late and not Units(units.limits, ()).lacking(job):
                    reserved |= needs
        return None

    def _top(self, key: LaneKey) -> Job | None:
        """The first job of a lane that is ready. Entries of jobs that have changed are dropped
        (C1), and so is an empty lane."""
        lane = self._lanes[key]
        while lane.heap:
            raw = self._record(lane.heap[0][1])
            if raw is not None and self._key_of(raw) == key:
                job = trust_job(raw)
                if self._is_ready(job):
                    return job
                self._enter(raw)
            self._enter_next(lane)  # a later job, so the entry to drop is still the first
            heapq.heappop(lane.heap)
        del self._lanes[key]
        self._keys.remove(key)
        return None

    def oldest(self) -> str | None:
        """When the oldest of the jobs that could start was created."""
        tops = filter(None, map(self._top, list(self._keys)))
        oldest = min(tops, key=lambda job: job.seq, default=None)
        return None if oldest is None else oldest.created_at

    def next_run_at(self) -> str | None:
        """The earliest time that a job waits for."""
        while self._timed:
            run_at, _, entered = self._timed[0]
            raw = self._record(entered)
            if raw is not None and trust_job(raw).run_at == run_at:
                return run_at
            heapq.heappop(self._timed)
        return None

    def has_waiting(self, only: TagFilter) -> bool:
        """Whether a job that `only` takes waits and is not held back."""
        keys = [key for key in self._keys if only.takes(key.tags)]
        if any(map(self._top, keys)):
            return True
        timed = [raw for _, _, raw in self._timed]
        followers = [follower.raw for follower in self._followers.followers.values()]
        raws = (waiting_record(self._store, raw) for raw in timed + followers)
        jobs = map(trust_job, filter(None, raws))
        held_back = self.held_back()
        return any(only.takes(job.tags) and job.id not in held_back for job in jobs)

    def held_back(self) -> JobsById:
        """The held jobs, and the waiting jobs that come after them, directly or not, by id."""
        left = self._store.find_jobs(self.held)
        to_do = list(left.values())
        while to_do:
            job = to_do.pop()
            new = [one for one in self._followers.waiting(job) if one.id not in left]
            left |= {one.id: one for one in new}
            to_do += new
        return left


def claim_order(store: Store, now: str, only: TagFilter = ALL_JOBS) -> ClaimOrder:
    """The store's ClaimOrder, as of now. It is made when it is first asked for, and anew when tags
    matter that it does not know, or the clock was set."""
    offset_s = store.home.clock() - boot_clock_s()
    named = {*store.home.last_config.limits, *only.tags, *only.not_tags}
    known = [one for one in store.listeners if isinstance(one, ClaimOrder)]  # one at most
    for order in known:
        # Compared with the last look: a clock that is only slewed moves little in between.
        was_set = abs(offset_s - order.clock_offset_s) > CLOCK_STEP_S
        order.clock_offset_s = offset_s
        if named <= order.named and not was_set:
            order.advance(now)
            return order
        store.listeners.remove(order)
    order = ClaimOrder(store, frozenset(named), now)
    order.clock_offset_s = offset_s
    store.listeners.append(order)
    return order


def open_store(path: str, warn: Say, clock: Callable[[], float] = time.time) -> Store:
    """The store of the home at that path. It is made here, where `end_followers` is known."""
    return Store(Home(path, warn, clock), end_followers)


# ======== 7. OPERATIONS ========
# What can be done to a queue: each change is one function and one transaction, and a look changes
# nothing. It decides with JOBS and CLAIM ORDER, writes with STORE, and may use `random` for the
# jitter. It knows neither Click nor processes, and it never sleeps.
#
# O1  One operation, one transaction.
# O2  A refused operation changes nothing: what it refuses, it refuses inside the transaction, which
#     then stores nothing.
# O3  A report is believed only from the worker, and for the run, that the record names.


def enqueue_job(store: Store, fields: Fields) -> tuple[Job, bool]:
    """Add one job, unless an active job holds its unique key. Gives the job, and whether it was
    there before. Refuses a taken id, and a parent that is not there. A job that needs a dead one is
    dead from the start."""
    bulk = Bulk(store, keep_records=True)
    raw = bulk.encode_fields(fields)
    store.add_bulk([raw], bulk.number, False, bulk.is_light())
    store.home.wake_workers()
    raw, is_duplicate = bulk.records[0]
    return trust_job(raw), is_duplicate


def enqueue_bulk(
    store: Store,
    lines: Iterable[Any],
    options: Fields,
    keep_records: bool,
    unit: str = "line",
) -> "Bulk":
    """Add one job per line (a line's bytes, or a JSON object), all or nothing. An error says which
    line is wrong, as `unit` and number.

    Every line is checked and encoded before the lock is taken. `options` has the fields that a line
    may leave out, and always `cwd`.
    """
    bulk = Bulk(store, keep_records)
    raws = list(bulk.encode(lines, options, unit))
    may_fold = not bulk.parents  # a job with parents may be dead at once, and belong in dlq.json
    try:
        store.add_bulk(raws, bulk.number, may_fold, bulk.is_light())
    except Refused as error:
        raise Refused(f"In {unit} {bulk.line}: {error}") from None
    store.home.wake_workers()
    return bulk


# How the record of a new job without a unique key begins, and the same before it has id and seq.
_HEAD = b'{"id": "%s", "state": "pending", "seq": %d, "command": '
_BLANK_HEAD = _HEAD % (b"", 0)


class Bulk:
    """New jobs on their way into the queue: encoded without the lock, numbered under it.

    line     which line `number` is at, for an error
    ids      the id of each line's job; a job that was there before if it holds the unique key
    records  if they are kept: the record of each line's job, and whether it was there before
    parents  the ids of the jobs that some line comes after
    """

    def __init__(self, store: Store, keep_records: bool) -> None:
        self.line = 0
        self.ids: list[str] = []
        self.records: list[tuple[bytes, bool]] = []
        self.parents: set[str] = set()
        self._store = store
        self._keep_records = keep_records
        self._config = store.home.config()
        self._now = store.home.now()
        self._given: set[str] = set()  # the ids of the lines, "" for a line without one
        self._keys: set[str] = set()  # their unique keys, "" likewise

    def encode(self, lines: Iterable[Any], options: Fields, unit: str) -> Iterator[bytes]:
        """The record of each line's job; b"" for a blank line or a comment."""
        # Lines that are a command alone differ in nothing else: one of their records is encoded.
        example = self.encode_fields({**options, "command": ""})
        are_alike = example.startswith(_BLANK_HEAD) and _AFTER not in example
        end = example[example.index(_ATTEMPTS) :]
        for number, line in enumerate(lines, 1):
            try:
                parse = parse_job_line if isinstance(line, bytes) else parse_spec
                fields = parse(line, self._now)
                if not fields:
                    raw = b""
                elif are_alike and fields.keys() == {"command"}:
                    raw = _BLANK_HEAD + encode_json(fields["command"]) + end
                else:
                    raw = self.encode_fields(merge_fields(options, fields))
            except (BadValue, Refused) as error:
                raise type(error)(f"In {unit} {number}: {error}") from None
            yield raw

    def encode_fields(self, fields: Fields) -> bytes:
        """The record of a new job. Its `seq` is 0, and its id is empty unless one is given. Refuses
        a job that needs more units than there are."""
        job = new_job(fields, self._config, self._now)
        check_needs(job, self._config.limits)
        self._given.add(job.id)
        self._keys.add(job.unique or "")
        self.parents.update(parents_of(job))
        return encode_job(job)

    def is_light(self) -> bool:
        """Whether a light look is enough: it searches the whole journal for each name."""
        return len(self._given | self.parents | self._keys) <= SEARCH_MAX

    def number(self, lines: Sequence[bytes], now: str, n: int) -> Iterator[bytes]:
        """The new records, with id and seq. Before them it gives the records of parents that the
        journal does not hold: once they are in it, no worker searches the arrays for them. Under
        the lock."""
        ms = int(instant_s(now) * 1000)
        yield from self._look_up()
        for self.line, raw in enumerate(lines, 1):
            if not raw:
                continue
            is_new = True
            if raw.startswith(_BLANK_HEAD) and _AFTER not in raw:
                id = make_id(ms, n + 1)
                raw = _HEAD % (id.encode(), n + 1) + raw.removeprefix(_BLANK_HEAD)
            else:
                job = trust_job(raw)
                holder = self._holders.get(job.unique or "")
                is_new = holder is None
                new = job._replace(id=job.id or make_id(ms, n + 1), seq=n + 1)
                job = holder or self._admit(new)
                id, raw = job.id, encode_job(job)
            if is_new:
                n += 1
                yield raw
            self.ids.append(id)
            if self._keep_records:
                self.records.append((raw, not is_new))

    def _look_up(self) -> Iterator[bytes]:
        """Find the jobs that the lines name, for `_admit`; gives the records of the parents that
        the journal does not hold."""
        store = self._store
        store.home.config()  # a first start has just written it; a bad one must stop us here
        self._holders = store.holders(self._keys - {""})
        named = store.find_jobs((self._given | self.parents) - {""})
        self._states = {id: job.state for id, job in named.items()}
        for id in self.parents & named.keys():
            if store.change_of(id) is None:
                yield encode_job(named[id])

    def _admit(self, job: Job) -> Job:
        """Register a new job that has an id, a key or parents, for the lines after it. The job is
        dead if one that it needs is dead. Refuses a taken id, and a parent that is not there."""
        if job.id in self._states:
            raise Refused(
                f"Job '{job.id}' already exists. Nothing was added. Give another id, or leave "
                "the id out and one is made."
            )
        for parent in parents_of(job):
            if parent not in self._states:
                raise Refused(
                    f"There is no job '{parent}' to come after. Name a job that is in the queue, "
                    "or one of an earlier line. Nothing was added. See them all with: "
                    "queuectl list."
                )
        dead = [parent for parent in needed_by(job) if self._states[parent] == "dead"]
        if dead:
            job = die_after(job, dead[0], self._now)
        elif job.unique is not None:
            self._holders[job.unique] = job
        self._states[job.id] = job.state
        return job


def check_needs(job: Job, limits: Amounts) -> None:
    """Refuse a job that needs more units of a resource than its limit."""
    for name, count in (job.needs or {}).items():
        limit = limits.get(name, 0)
        if count > limit:
            enough = ",".join(f"{key}={most}" for key, most in {**limits, name: count}.items())
            raise Refused(
                f"The job needs {count} of '{name}', but the limit is {limit}. Nothing was added. "
                f"Say how many there are: queuectl config set limits {enough}."
            )


def parse_job_line(line: bytes, now: str) -> Fields | None:
    """The fields of a new job from one line, which is a JSON object or a command. None for a blank
    line or a `#` comment."""
    # The check of a field refuses bytes that are not UTF-8, and names the field.
    text = line.decode("utf-8", "surrogateescape").strip()
    if not text or text[0] == "#":
        return None
    if is_json(text):
        hint = ' A shell line that begins with { is written {"command": "{ ..."}.'
        return parse_spec(parse_json(text, "The job", hint), now)
    return {"command": parse_command(text, "command")}


def merge_fields(defaults: Fields, own: Fields) -> Fields:
    """A job's fields: its own, and the defaults for the rest. A job with a `run_at` or a `delay` of
    its own gets neither from the defaults."""
    if own.keys() & {"run_at", "delay"}:
        defaults = {name: defaults[name] for name in defaults if name not in ("run_at", "delay")}
    return {**defaults, **own}


# -- One job per argument

_PLACE = r"(\{(?:\#|/?\.?)\})"  # {} {/} {.} {/.} {#}

# The parts of a template in which a quoted argument would not be one word or a part of one. A part
# without a certain end, like a here-document, goes on to the end of the template.
_QUOTED = rf"""(?xs)
      \\ (?: {_PLACE} | . )
    | '[^']*'
    | " (?: [^"\\`$] | \\. | \$(?![({{]) | \$\{{\w+\}} | \$\([^()'"`\\]*\) )* "
    | ` [^`\\]* `
    | \$\(\( [^'"`\\]*? \)\)
    | \$ \w* {_PLACE}            # an argument after $name would change the name
    | (?<![^\s;&|()]) \# [^\n]*  # a comment: a line end in the argument would end it
    | (?: ['"`] | \$' | \$\(\( | (?<!<)<<(?!<) ) .*
"""


def check_template(template: str) -> None:
    """Refuse a template without a place, or with a place where an argument cannot be quoted."""
    places = re.findall(_PLACE, template)
    if not places:
        raise BadValue(
            f"The template {_shown(template)} has no place for the argument. Write {{}} where it "
            "belongs (or {/}, {.}, {/.}, {#}): --each 'echo {}'."
        )
    if re.findall(_PLACE, re.sub(_QUOTED, "''", template)) != places:
        raise BadValue(
            f"The template {_shown(template)} has a place inside quotes (a backslash or $ before "
            "it, backquotes, $((...)), a comment or a here-document count as quotes too). Write "
            "it outside of them: {} is quoted for you."
        )


def commands_of_each(template: str, arguments: Iterable[str]) -> Iterator[Fields]:
    """For each argument the fields of a job: the template with its places filled."""
    import shlex

    check_template(template)
    # Without the space, the shell would take the number in `{#}>log` as a file descriptor.
    parts = re.split(_PLACE, re.sub(f"{_PLACE}(?=[<>])", r"\1 ", template))
    for number, argument in enumerate(arguments, 1):
        name = os.path.basename(argument.rstrip("/"))
        texts = {
            "{}": argument,
            "{/}": name,
            "{.}": os.path.splitext(argument)[0],
            "{/.}": os.path.splitext(name)[0],
            "{#}": str(number),
        }
        command = "".join(shlex.quote(texts[part]) if part in texts else part for part in parts)
        if not is_text(command):
            raise BadValue(
                f"Argument {number}, {_shown(argument)}, cannot be part of a command: it has "
                f"a NUL, is not UTF-8, or makes it longer than {COMMAND_BYTES_MAX} bytes. Leave "
                "it out, or write it into a file and give the name of the file."
            )
        yield {"command": command}


# -- Claim, report, recover: what workers do


class Turn(NamedTuple):
    """What a slot's turn at the queue gave."""

    reported: Job | None  # as its report left it
    claimed: Job | None  # none while there are hooks, which run first
    hooks: Mapping[str, str]  # their commands, by name
    frees: bool  # whether other slots may have a job to claim now
    died: list[str]  # the jobs that died because of the reported one


def take_turn(
    store: Store,
    worker: str,
    slot: int,
    done: tuple[Job, Outcome] | None,
    claim: bool,
    only: TagFilter,
) -> Turn:
    """Report the attempt that ended and claim the next job, in one transaction.

    A report is dropped if the record names another run (O3): the job was recovered, or the queue
    was replaced. A job that the report frees can be claimed from the next turn on.
    """
    reported = claimed = None
    hooks: Mapping[str, str] = {}
    with store.transaction() as change:
        config = store.home.config()
        done_id = done[0].id if done is not None else ""
        for held in list(store.processing.values()):
            if (held.worker, held.slot) == (worker, slot) and held.id != done_id:
                # This slot runs nothing now. Its claim of that job was stored, but then the sync
                # failed, or the worker did.
                outcome = Outcome("handed_back", reason="its claim failed")
                change.put(held, give_back(held, outcome, change.now))
        if done is not None:
            job = change.job(done[0].id)
            if job is not None and _is_run(job, done[0]):
                spread = random.uniform(-1, 1) if config.backoff_jitter else 0.0
                reported = report_job(job, done[1], config, spread, change.now)
                change.put(job, reported)
                hooks = hooks_of(reported, config)
        may_claim = claim and not config.paused
        if may_claim and not hooks:
            units = Units(config.limits, change.running()) if config.limits else NO_UNITS
            ready = claim_order(store, change.now, only).first(units, only)
            if ready is not None:
                claimed = claim_job(ready, worker, slot, change.now, units.lowest_free(ready))
                change.put(ready, claimed)
        jobs = filter(None, (reported, claimed))
        frees = any(_may_free(store, job, config) for job in jobs)
    died = [job.id for job in change.results() if has_died_after(job)]
    return Turn(reported, claimed, hooks, frees, died)


def _is_run(job: Job, run: Job) -> bool:
    """Whether the job is still in that run (O3). If another job has its id by now, that one has
    another `seq`."""
    same = (job.worker, job.runs, job.seq) == (run.worker, run.runs, run.seq)
    return same and job.state == "processing"


def _may_free(store: Store, job: Job, config: Config) -> bool:
    """Whether other slots may have a job to claim now: a follower of this one, or a job that needs
    a resource of this one (after a claim too, since its units may have been reserved)."""
    if demand_of(job, config.limits):
        return True
    return job.state in OVER and is_needed(store, job)


class Waiting(NamedTuple):
    """What waits in the whole queue."""

    oldest: str | None  # when the oldest job that could start was created
    next_run_at: str | None  # the next time that a job waits for
    held: int  # how many jobs are held


def what_waits(store: Store) -> Waiting:
    """What waits now. Call it after a look, and in a worker, whose threads share the store, under
    the lock."""
    order = claim_order(store, store.home.now())
    return Waiting(order.oldest(), order.next_run_at(), len(order.held))


def drain_state(store: Store, only: TagFilter) -> Literal["over", "stuck", "going on"]:
    """How far the jobs that the filter takes have been drained. Under the lock.

    over    none is pending, failed or processing (in any worker), except for those held back
    stuck   nothing is processing, and no job could start now
    """
    order = claim_order(store, store.home.now(), only)
    running = store.processing.values()
    is_running = any(only.takes(job.tags) for job in running)
    if not is_running and not order.has_waiting(only):
        return "over"
    units = Units(store.home.last_config.limits, running)
    return "going on" if running or order.first(units, only) else "stuck"


def held_back(store: Store) -> JobsById:
    """The held jobs and those that come after them. Call it after a look."""
    return claim_order(store, store.home.now()).held_back()


def has_died_since(store: Store, instant: str, only: TagFilter) -> bool:
    """Whether a job that the filter takes died since then, other than by being cancelled."""
    dead = (job for job in store.jobs(states=("dead",)) if only.takes(job.tags))
    ends = [job.finished_at for job in dead if job.cancelled_at is None]
    return max(filter(None, ends), default="") >= instant


def recover(store: Store, run: Job, excused: bool) -> Job | None:
    """Take back a job of a dead worker, once nothing of its run lives any more. `run` is the job
    as that worker held it. None if the job is in another run, or over."""
    with _waking_transaction(store) as change:
        job = change.job(run.id)
        if job is None or not _is_run(job, run):
            return None
        return change.put(job, recover_job(job, excused, change.now))


@contextmanager
def _waking_transaction(store: Store) -> Iterator[Transaction]:
    """A transaction that wakes every worker once it is stored."""
    with store.transaction() as change:
        yield change
    store.home.wake_workers()


PURGE_JOBS = 10_000  # a worker deletes at most so many in one transaction


def purge_completed(store: Store, instant: str, most_s: float) -> list[Job]:
    """Delete jobs that were completed by then and that no waiting one comes after, at most
    PURGE_JOBS. They are looked for in jobs.json without the lock."""
    with closing(Snapshot(store.paths["jobs"])) as snapshot:
        old = (id_of(raw) for raw in snapshot.raws() if is_completed_before(raw, instant))
        ids = list(islice(old, PURGE_JOBS))
    with store.transaction(most_s=most_s) as change:
        gone = []
        for job in store.find_jobs(ids).values():
            # An id may be another job's by now.
            is_old = job.state == "completed" and job.updated_at <= instant
            if is_old and not is_needed(store, job):
                gone.append(job)
                change.delete(job)
    return gone


# -- What people do to jobs


def whole_id(store: Store, word: str, say: Say) -> str:
    """The id that a person means by a word: the word itself, or the only id made by the queue that
    begins or ends with it. Says which id that is. Refuses a word that fits several."""
    if not re.fullmatch(r"[0-9a-z]{4,11}", word) or store.find_jobs([word]):
        return word
    fits = re.compile(rf"(?=.{{12}}$)({word}[0-9a-z]+|[0-9a-z]+{word})").fullmatch
    found = list(filter(fits, map(id_of, store.raws())))
    if len(found) > 1:
        raise Refused(
            f"{len(found)} ids begin or end with '{word}': {', '.join(found[:5])}. Give one whole."
        )
    if not found:
        return word
    say(f"'{word}' is job {found[0]}.")
    return found[0]


def find_all(store: Store, ids: Names) -> list[Job]:
    """These jobs, each once. Refuses the whole request if one is not there."""
    found = store.find_jobs([id for id in ids if id.isascii()])  # no other text is an id
    for id in ids:
        if id not in found:
            raise Refused(
                f"There is no job {_shown(id)[1:-1]!r}. Nothing was changed. "
                "See them all with: queuectl list."
            )
    return [found[id] for id in dict.fromkeys(ids)]


def matches(job: Job, text: str | None, tags: Names = ()) -> bool:
    """Whether id or command holds the text (in any case), and the job has one of the tags."""
    has_tag = TagFilter(tags).takes(job.tags)
    return has_tag and (text or "").lower() in f"{job.id}\0{job.command}".lower()


def _refusal(id: str, why: str, hint: str = "") -> Refused:
    hint = hint or f"See it with: queuectl show {id}."
    return Refused(f"Job '{id}' {why}. Nothing was changed. {hint}")


def cancel_jobs(store: Store, ids: Names) -> list[Job]:
    """Cancel jobs: a waiting one dies, and with it the jobs that need it; a running one is marked,
    and its worker ends it. Refuses jobs that are over. Gives these jobs, and after each one the
    others that died."""
    with _waking_transaction(store) as change:
        for job in find_all(store, ids):
            if job.state in OVER:
                raise _refusal(job.id, f"is {job.state} already and cannot be cancelled")
            change.put(job, cancel_job(job, change.now))
    return change.results()


def retry_jobs(store: Store, ids: Names) -> list[Job]:
    """Make failed and delayed jobs due now, and revive dead ones with those that died because of
    them. Refuses all others."""
    dead = []
    with _waking_transaction(store) as change:
        for job in find_all(store, ids):
            if job.state in WAITING and job.run_at:
                change.put(job, retry_now(job, change.now))
            elif job.state == "dead":
                dead.append(job)
            else:
                raise _refusal(
                    job.id, f"is {job.state}; only a failed, delayed or dead job can be retried"
                )
        _revive(change, dead, {}, None, refuses=True)
    return change.results()


def edit_jobs(store: Store, ids: Names, changes: Fields) -> list[Job]:
    """Change these fields of waiting jobs (`edit_job`). Refuses all others."""
    with _waking_transaction(store) as change:
        for job in find_all(store, ids):
            if job.state not in WAITING:
                why = f"is {job.state}; only a pending or failed job can be changed or held"
                hint = f"Change it as you bring it back: queuectl dlq retry {job.id}."
                raise _refusal(job.id, why, hint if job.state == "dead" else "")
            change.put(job, edit_job(job, changes, change.now))
    return change.results()


def rerun_jobs(store: Store, ids: Names) -> list[Job]:
    """Add a new job like each of these, whatever its state; gives the new ones. A new job keeps the
    unique key, so two active jobs may have it; an enqueue with that key finds one of them."""
    with _waking_transaction(store) as change:
        ms = int(instant_s(change.now) * 1000)
        for seq, job in enumerate(find_all(store, ids), store.n + 1):
            new = rerun_job(job, make_id(ms, seq), seq, open_parents(store, job), change.now)
            check_needs(new, store.home.config().limits)
            change.put(None, new)
    return change.results()


def open_parents(store: Store, job: Job) -> list[str]:
    """The ids of the jobs that this job comes after and that are not over. A later job with such an
    id is another one (J5)."""
    parents = store.find_jobs(parents_of(job)).values()
    earlier = [parent for parent in parents if parent.seq < job.seq]
    return [parent.id for parent in earlier if parent.state not in OVER]


def check_dead(job: Job) -> Job:
    """The job, if it is dead; refuses it otherwise."""
    if job.state != "dead":
        raise _refusal(job.id, f"is not in the dead letter queue (its state is '{job.state}')")
    return job


def revive_jobs(
    store: Store,
    ids: Names,
    changes: Fields | None = None,
    spread_s: float | None = None,
) -> list[Job]:
    """Bring dead letters back: pending, attempts at zero, with these fields changed. The jobs that
    died only because of them come back too. Refuses a job that is not dead, or that needs one that
    stays dead. `spread_s` spreads their starts evenly over that time."""
    with _waking_transaction(store) as change:
        jobs = [check_dead(job) for job in find_all(store, ids)]
        _revive(change, jobs, changes or {}, spread_s, refuses=True)
    return change.results()


def revive_all(
    store: Store,
    text: str | None,
    cancelled: bool,
    changes: Fields,
    spread_s: float | None,
) -> list[Job]:
    """As `revive_jobs`, for every dead letter that matches and needs none that stays dead. Somebody
    did not want the cancelled ones: they stay unless `cancelled` asks for them."""
    with _waking_transaction(store) as change:
        chosen = [job for job in store.jobs(states=("dead",)) if matches(job, text)]
        if not cancelled:
            chosen = [job for job in chosen if job.cancelled_at is None]
        _revive(change, chosen, changes, spread_s, refuses=False)
    return change.results()


def _revive(
    change: Transaction,
    jobs: Sequence[Job],
    changes: Fields,
    spread_s: float | None,
    refuses: bool,
) -> None:
    """Revive these dead letters with these changes, and unchanged those that died only because of
    them. A job that needs one that stays dead is refused, or stays dead too."""
    chosen = {job.id: number for number, job in enumerate(jobs)}
    begin = changes.get("run_at", change.now)
    revived: set[str] = set()
    left_dead: set[str] = set()
    for job in change.store.jobs(states=("dead",)):  # parents come first (J5)
        is_chosen, needed = job.id in chosen, needed_by(job)
        dead = left_dead.intersection(needed)
        if dead and refuses and is_chosen:
            parent = min(dead)
            why = f"comes after '{parent}', which is dead"
            hint = "Bring that one back; this one comes back too if it died for no other reason"
            raise _refusal(job.id, why, f"{hint}: queuectl dlq retry {parent}.")
        died_of_one = has_died_after(job) and not revived.isdisjoint(needed)
        if dead or not (is_chosen or died_of_one):
            left_dead.add(job.id)
            continue
        new = revive_job(job, change.now)
        if is_chosen:
            if spread_s:
                run_at = add_seconds(begin, spread_s * chosen[job.id] / len(chosen))
                changes = {**changes, "run_at": run_at}
            new = edit_job(new, changes, change.now)
        change.put(job, new)
        revived.add(job.id)


class Purged(NamedTuple):
    """What a purge does: the jobs that it deletes, and those that it keeps because a waiting job
    comes after them."""

    gone: list[Job]
    kept: list[Job]


def choose_purged(store: Store, states: Names, over_for_s: float | None, now: str) -> Purged:
    """What a purge would do now with the jobs in those states that have been over for so long."""
    purged = Purged([], [])
    latest = "9999" if over_for_s is None else add_seconds(now, -over_for_s)
    for job in store.jobs(states=states):
        if (job.finished_at or "") <= latest:
            is_kept = is_needed(store, job)
            (purged.kept if is_kept else purged.gone).append(job)
    return purged


def purge_jobs(store: Store, states: Names, over_for_s: float | None = None) -> Purged:
    """Delete for good the jobs that `choose_purged` finds."""
    with store.transaction() as change:
        purged = choose_purged(store, states, over_for_s, change.now)
        for job in purged.gone:
            change.delete(job)
    return purged


def purge_dead(store: Store, ids: Names) -> list[Job]:
    """Delete these dead letters for good. Refuses a job that is not dead, or that a waiting job
    comes after."""
    with store.transaction() as change:
        gone = find_all(store, ids)
        for job in gone:
            change.delete(check_dead(job))
            for child in followers_of(store).waiting(job):
                why = f"cannot be purged: job '{child.id}' waits for it"
                raise _refusal(job.id, why, f"See it with: queuectl show {child.id}.")
    return gone


# -- Settings


def set_setting(store: Store, name: str, text: str | None) -> tuple[str, object]:
    """Change one setting (None: back to its default). Gives its key, and its new value as stored.
    Raises BadValue before anything is written."""
    key = known_setting(name)
    default, check = SETTINGS[key]
    value = default if text is None else setting_from_text(key, text)
    check(value, key)
    with store.transaction(light=True):
        store.home.write_settings({**store.home.settings(), key: value})
    store.home.wake_workers()
    return key, value


# -- Looking


def status(store: Store) -> Fields:
    """Counts, workers, what waits longest, the next retry, settings. If a worker lives, no record
    is read: the worker's file says what waits."""
    store.read(light=True)
    now_s, workers = store.home.clock(), store.home.workers()
    waiting = _known_waiting(store, workers)
    waited_s = None
    if waiting.oldest is not None:
        waited_s = round(max(0.0, now_s - instant_s(waiting.oldest)), 3)
    return {
        "jobs": dict(zip(STATES, store.counts, strict=True)),
        "workers": [worker_view(info, now_s) for info in workers],
        "paused": store.home.config().paused,
        "oldest_pending_s": waited_s,
        "next_run_at": waiting.next_run_at,
        "held": waiting.held,
        "config": store.home.settings(),
        "home": store.home.path,
    }


def _known_waiting(store: Store, workers: Sequence[WorkerInfo]) -> Waiting:
    """As `what_waits`, but from the file of a live worker that has written it there."""
    if not any(store.counts[NUMBER_OF[state]] for state in WAITING):
        return Waiting(None, None, 0)
    for info in workers:
        if "held" in info.header and not info.header["dead"]:
            return Waiting(*(info.header[name] for name in Waiting._fields))
    store.read()
    return what_waits(store)


RATES_MAX = 50  # so many columns fit beside the throughput
FAILURES_SHOWN = 5  # by the live screen, which looks for them among FAILURES_MAX dead letters
FAILURES_MAX = 200


def watch_queue(store: Store) -> Iterator[Fields]:
    """What the live screen shows, look after look: `status` as it is now, with what runs, what died
    last (newest first), and how many jobs a second completed between two looks. The first look
    reads the whole queue, a later one only what has changed."""
    failed: list[Job] = []
    rates = collections.deque[float](maxlen=RATES_MAX)
    last_s, before = 0.0, inf
    while True:
        if store.read():
            dead = store.jobs(reverse=True, states=("dead",))
            newest = islice(dead, FAILURES_MAX)
            failed = [job for job in newest if job.cancelled_at is None]
            failed.sort(key=lambda job: job.finished_at or "", reverse=True)
        view = status(store)
        now_s, completed = time.monotonic(), view["jobs"]["completed"]
        rates.append(max(0, completed - before) / max(now_s - last_s, 0.001))
        last_s, before = now_s, completed
        running = sorted(store.processing.values(), key=lambda job: job.started_at or "")
        yield {**view, "running": running, "failed": failed[:FAILURES_SHOWN], "rates": list(rates)}


_RUNS = b'"runs": '  # in each record, before any object


class Starts:
    """Notes the runs that begin. A listener of the store. `new` has the record of each such job."""

    def __init__(self) -> None:
        self.new: list[bytes] = []
        self._runs: dict[str, tuple[int, int]] = {}  # seq and newest run of each job that has run

    def put(self, raw: bytes, id: str, state: str, seq: int) -> None:
        """Note a job's new record."""
        at = raw.index(_RUNS) + len(_RUNS)
        run = seq, int(raw[at : raw.index(b",", at)])
        if run[1] and self._runs.get(id) != run:
            self._runs[id] = run
            self.new.append(raw)


def watch_starts(store: Store) -> Iterator[list[Job]]:
    """Give the jobs that run; then, look after look, those that began a run since the last look."""
    starts, is_first = Starts(), True
    while True:
        store.read()
        if starts not in store.listeners:  # at first, and when a fold has replaced the journal
            for raw in store.raws():
                starts.put(raw, *head_of(raw))
            store.listeners.append(starts)
        new, starts.new = starts.new, []  # the caller's looks may add to it meanwhile
        yield list(store.processing.values() if is_first else map(trust_job, new))
        is_first = False


_SHOWN = (
    "dead", "pid", "threads", "started_at", "tags", "not_tags", "trouble", "overload", "stopping",
)  # fmt: skip


def worker_view(info: WorkerInfo, now_s: float) -> Fields:
    """A worker as `status` and `worker list` show it."""
    head = info.header
    return {
        "name": info.name,
        **{key: head.get(key) for key in _SHOWN},
        "running": [
            {"slot": slot, "job": row["job"], "run": row["run"]}
            for slot, row in enumerate(info.rows)
            if row
        ],
        "silent_s": round(max(0.0, now_s - info.seen_s), 1),
    }


def is_work_left_alone(view: Fields, now: str) -> bool:
    """`status --check`: no worker lives, and jobs are due or were left processing."""
    if not all(worker["dead"] for worker in view["workers"]):
        return False
    next_run_at = view["next_run_at"]
    is_retry_due = next_run_at is not None and next_run_at <= now
    return is_retry_due or view["oldest_pending_s"] is not None or view["jobs"]["processing"] > 0


def why_waiting(store: Store, job: Job, processes: Names) -> str | None:
    """Why a job does not run, or who runs it; None for a job that is over. `processes` are those
    of its run."""
    if job.state in OVER:
        return None
    workers = store.home.live_workers()
    if job.state == "processing":
        if job.worker not in [info.name for info in workers]:
            then = "the next live worker takes the job back"
            if processes:
                noun = "process" if len(processes) == 1 else "processes"
                then = f"waiting for {noun} {', '.join(processes)} to end"
            return f"its worker {job.worker} is dead; {then}"
        held = f"held by worker {job.worker}, slot {job.slot}"
        return f"{held}, being cancelled" if job.cancelled_at else held
    kind, what = hindrance(store, job)
    if kind == "held":
        return f"held; release it with: queuectl release {job.id}"
    if kind == "after":
        return f"waiting for {'jobs' if ',' in what else 'job'} {what}"
    now, config = store.home.now(), store.home.config()
    if not is_ready(job, now, config.backoff_max):
        wait_s = ceil(instant_s(job.run_at or now) - instant_s(now))
        return f"waiting {wait_s} s for its {'retry' if job.state == 'failed' else 'time'}"
    if config.paused:
        return "the queue is paused; go on with: queuectl resume"
    if not workers:
        return "no worker is running; start one with: queuectl worker start"
    if trouble := next((info.header.get("trouble") for info in workers), None):
        return f"a worker has trouble: {trouble}"
    overloads = [info.header.get("overload") for info in workers]
    if all(overloads):
        return f"waiting while {overloads[0]} (--max-load)"
    if kind == "needs" and job.needs:
        limit = config.limits.get(what, 0)
        used = Units(config.limits, store.processing.values()).used[what]
        return f"waiting for {job.needs[what]} of {what}: the limit is {limit}, {used} in use"
    return f"the limit of tag {what} is used up" if what else "waiting for a free slot"


def hindrance(store: Store, job: Job) -> tuple[str, str]:
    """What keeps a waiting job from starting, besides its time and the lack of a slot:
    `("held", "")`, `("after", "a7, a8")`, `("tag", "gpu")`, `("needs", "gpu")`; `("", "")` if
    nothing does."""
    if job.state not in WAITING:
        return "", ""
    if job.held:
        return "held", ""
    if going := open_parents(store, job):
        more = f" and {len(going) - 3} more" if len(going) > 3 else ""
        return "after", f"{', '.join(going[:3])}{more}"
    lacking = Units(store.home.config().limits, store.processing.values()).lacking(job)
    if lacking is None:
        return "", ""
    return "needs" if lacking in (job.needs or ()) else "tag", lacking


RECENT_MAX = 1_000  # a shell completes ids of so many jobs, those that arrived last


def newest_ids(store: Store, prefix: str, states: Names) -> list[str]:
    """The ids that a shell is offered for a word that begins with `prefix`: those of the newest
    jobs in those states."""
    newest = islice(store.jobs(reverse=True, states=states), RECENT_MAX)
    return [job.id for job in newest if job.id.startswith(prefix)]


def run_of_attempt(job: Job, attempt: int) -> int:
    """The newest run with that attempt number. Refuses a number that is not on record."""
    history = job.history or []
    runs = [entry["run"] for entry in history if entry.get("attempt") == attempt]
    if job.state == "processing" and job.attempts == attempt:
        runs.append(job.runs)
    if not runs:
        raise Refused(
            f"Job '{job.id}' has no attempt {attempt} on record. "
            f"See its attempts: queuectl show {job.id}."
        )
    return int(max(runs))


def find_ended(store: Store, ids: Names) -> dict[str, Job | None]:
    """Those of these jobs that are over; None for one that was purged."""
    jobs = store.find_jobs(ids)
    found = {id: jobs.get(id) for id in ids}
    return {id: job for id, job in found.items() if job is None or job.state in OVER}


def exit_code_of(jobs: Sequence[Job | None], single: bool) -> int:
    """The exit code of `wait`: the job's own if a single one was named, else 0 if all completed and
    1 if not. A purged job (None) did not complete."""
    if {job and job.state for job in jobs} <= {"completed"}:
        return 0
    job = jobs[0] if single else None
    if job is None:
        return EXIT_REFUSED
    return 128 + job.signal if job.signal is not None else job.exit_code or EXIT_REFUSED


def ended_view(id: str, job: Job | None, is_over: bool) -> Fields:
    """How `wait --json` shows one job; None for one that was purged, or that is not over."""
    if job is None:
        return {"id": id, "state": "purged" if is_over else None}
    names = ("id", "state", "attempts", "outcome", "exit_code", "signal", "reason", "finished_at")
    return {name: getattr(job, name) for name in names}


# -- Counting what ended: `stats`

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
TIME_BOUNDS_S = (0.01, 0.1, 1, 10, 60, 600, 3600)  # of the histograms
GROUPS_MAX = 1_000  # of `--by`; later ones are counted together


class Tally:
    """The figures of some jobs since an instant: how many ended in which way, and how long their
    attempts waited and ran."""

    COUNTS = ("completed", "failed_attempts", "dead", "cancelled")

    def __init__(self, since: str) -> None:
        self._since = since
        self._counts = collections.Counter[str]()
        self._waits, self._runs = array("d"), array("d")  # in seconds
        self._first_s, self._last_s = inf, -inf

    def add(self, job: Job) -> None:
        """Count a job. Only its last HISTORY_MAX attempts are known one by one."""
        failed = 0
        for entry in job.history or ():
            # A hand edit may have left fields out, or put texts there that are no instants.
            with suppress(LookupError, StoreError, TypeError):
                if entry["finished_at"] >= self._since:
                    failed += self._add_attempt(entry, job.created_at)
        if not self._since:  # the attempts that the history has forgotten count too
            failed = max(failed, job.attempts - (job.state in ("completed", "processing")))
        self._counts["failed_attempts"] += failed
        if job.finished_at is not None and job.finished_at >= self._since:
            self._counts[job.state] += 1
            self._counts["cancelled"] += job.cancelled_at is not None

    def _add_attempt(self, entry: Fields, created_at: str) -> bool:
        """Count an attempt; whether it failed. A clock that was set back makes no time negative."""
        start_s, end_s = instant_s(entry["started_at"]), instant_s(entry["finished_at"])
        self._first_s, self._last_s = min(self._first_s, start_s), max(self._last_s, end_s)
        if entry.get("run") == 1:
            self._waits.append(max(0.0, start_s - instant_s(created_at)))
        if entry.get("outcome") == "handed_back":
            return False
        self._runs.append(max(0.0, end_s - start_s))
        return (entry.get("outcome"), entry.get("exit_code")) != ("exited", 0)

    def view(self) -> Fields:
        """The figures; None where there is nothing to tell. Cancelled jobs are no failures."""
        counts = {name: self._counts[name] for name in self.COUNTS}
        ran = counts["completed"] + counts["dead"] - counts["cancelled"]
        span_s = self._last_s - self._first_s
        return {
            **counts,
            "success_rate": round(counts["completed"] / ran, 4) if ran else None,
            "jobs_per_s": float(f"{ran / span_s:.3g}") if ran and span_s > 0 else None,
            "wait_s": _times_view(sorted(self._waits)),
            "run_s": _times_view(sorted(self._runs)),
        }


def _times_view(times: Sequence[float]) -> Fields:
    """`{"count": 3, "sum": 4.5, "p50": 1.2, ..., "histogram": [{"le": 0.01, "count": 1}, ...,
    {"le": null, ...}]}`; a bar counts the times up to its `le` and above that of the bar before."""
    view: Fields = {"count": len(times), "sum": round(sum(times), 3)}
    for name, share in QUANTILES.items():
        view[name] = round(times[ceil(share * len(times)) - 1], 3) if times else None
    bars, start = [], 0
    for bound in (*TIME_BOUNDS_S, None):
        end = len(times) if bound is None else bisect.bisect_right(times, bound)
        bars.append({"le": bound, "count": end - start})
        start = end
    return {**view, "histogram": bars}


def stats(store: Store, since_s: float | None, by: str | None) -> Fields:
    """The figures of what ended (in the last `since_s` seconds), and if asked for also those of
    each tag or command."""
    store.read()
    now = store.home.now()
    since = "" if since_s is None else add_seconds(now, -since_s)
    whole = Tally(since)
    groups: dict[str, Tally] = {}
    held = 0
    for job in store.jobs():
        whole.add(job)
        held += bool(job.held)
        names = {None: [], "tag": job.tags or [""], "command": [job.command]}
        for name in names[by]:
            if name not in groups and len(groups) >= GROUPS_MAX:
                name = "(others)"
            groups.setdefault(name, Tally(since)).add(job)
    out = {
        "since": since or None,
        "until": now,
        "jobs": dict(zip(STATES, store.counts, strict=True)),
        "held": held,
        "workers": sum(info.header["threads"] for info in store.home.live_workers()),
        **whole.view(),
    }
    if by:
        views = [{by: name, **tally.view()} for name, tally in groups.items()]
        out |= {"by": by, "groups": sorted(filter(_ended_in, views), key=_ended_in, reverse=True)}
    return out


def _ended_in(view: Fields) -> int:
    """How much ended in a group; one in which nothing did is left out."""
    return int(view["completed"] + view["failed_attempts"] + view["dead"])


# ======== 8. DAMAGE ========
# What `doctor` finds and repairs: it examines a home, and writes it anew from what is whole. It
# reads STORE's files itself, since a store refuses to open what is damaged. It changes nothing in a
# home that is not damaged.
#
# D1  Every file is copied aside before it is replaced.
# D2  A job that stands in a damaged line goes through `doubt_job`: its command may not be the one
#     that was given.
# D3  A job that comes after a lost one does not run by itself.

NAMED_MAX = 20  # ids that a sentence names
_JOURNAL_HELD = "what changed since the arrays were written"


def examine(store: Store) -> list[str]:
    """What is wrong with the home's settings, stores and journal, a sentence each."""
    problems: list[str] = []
    try:
        if store.home.check():
            store.home.keeps_settings = True  # a bad config.json must not hide the rest
            problems += filter(None, [store.home.read_settings()])
            try:
                store.read()
                problems += [*_examine_files(store), *_examine_jobs(store)]
            except (StoreError, ValueError, LookupError) as error:
                problems += Salvage(store).problems or [str(error)]
    except (StoreError, OSError) as error:
        problems.append(str(error))
    return problems


def _examine_files(store: Store) -> Iterator[str]:
    """What is wrong with the journal's end and the bytes of the arrays. After a look."""
    if _has_tail(store):
        with store.home.locked():  # or another process may be writing that line
            store.read()
            has_tail = _has_tail(store)
        if has_tail:
            yield (
                f"'{store.journal_path}' ends in an unfinished line; the next change sets it aside."
            )
    journal = store.journal
    was_used = store.records and os.path.exists(store.home.lock_path)  # the arrays hold jobs
    if journal is None and was_used:
        yield f"'{store.journal_path}' is missing: {_JOURNAL_HELD} is lost."
    for name, snapshot in store.snapshots.items():
        if not snapshot.is_edited and snapshot.crc() != snapshot.mark.crc:
            yield f"'{snapshot.path}' does not hold the bytes that were written (bad disk?)."
        for id, state, _ in map(head_of, snapshot.raws()):
            if array_of(state) != name:
                yield f"'{snapshot.path}' holds job '{id}', which is {state}."


def _has_tail(store: Store) -> bool:
    """Whether more stands in the journal than the last look took in."""
    journal = store.journal
    return journal is not None and os.fstat(journal.fd).st_size > journal.end


def _examine_jobs(store: Store) -> Iterator[str]:
    """What is wrong with the jobs: each must stand in one place and in order, its fields must fit
    its state, and the counts must be true."""
    counts = [0] * len(STATES)
    seen: set[str] = set()
    dead: set[str] = set()
    last = -1
    for raw in store.raws():
        try:
            job = decode_job(raw)
        except BadValue as error:
            yield f"A record cannot be used: {error}"
            continue
        if job.id in seen:
            yield f"Job '{job.id}' is stored twice."
        if job.seq < last:
            yield f"Job '{job.id}' is out of order (seq {job.seq} after {last})."
        if job.state in WAITING and (needed := dead.intersection(needed_by(job))):
            yield f"Job '{job.id}' waits although '{min(needed)}', which it comes after, is dead."
        if job.state == "dead":
            dead.add(job.id)
        seen.add(job.id)
        counts[NUMBER_OF[job.state]] += 1
        last = job.seq
    if counts != store.counts:
        yield _miscounted(store.counts, counts)
    if last > store.n:
        yield f"The journal counts {store.n} jobs accepted so far, but a job has seq {last}."


def _miscounted(said: Sequence[int], found: Sequence[int]) -> str:
    states = ", ".join(STATES)
    return f"The journal counts {list(said)} jobs ({states}), the stores hold {list(found)}."


class Salvage:
    """What is whole in the files of a home, however damaged they are.

    jobs      those that can be kept, by id
    problems  a sentence for everything that is not whole
    lost      what is lost, in words; empty if nothing is
    """

    def __init__(self, store: Store) -> None:
        self.jobs: JobsById = {}
        self.problems: list[str] = []
        self._store = store
        self._named: dict[str, None] = {}  # the ids that damaged pieces name, in order
        marks = {name: self._read_array(name, path) for name, path in store.paths.items()}
        counts = self._read_journal(marks)
        self._end_followers_of_lost_jobs(store.home.now())
        states = [job.state for job in self.jobs.values()]
        found = [states.count(state) for state in STATES]
        if counts and counts != found:
            self.problems.append(_miscounted(counts, found))
        self.lost = _JOURNAL_HELD if counts is None else ""
        ids = [id for id in self._named if id not in self.jobs]
        if number := max(len(ids), sum(counts or ()) - sum(found)):
            names = f" ({', '.join(ids[:NAMED_MAX])})" if ids else ""
            self.lost = say_count(number, "job") + names

    def _read_array(self, name: str, path: str) -> Mark | None:
        """Take the jobs that are whole in an array; its mark, or None where it is missing."""
        try:
            data = bytes_of(path)
        except FileNotFoundError:
            self.problems.append(
                f"'{path}' is missing: what only it held is lost, unless you put it back."
            )
            return None
        store, mark = self._store, mark_of(path, zlib.crc32(data))
        text, line, last = data.decode("utf-8", "surrogateescape"), 1, 0
        if not re.fullmatch(r"\ufeff?\s*\[.*\]\s*", text, re.DOTALL):
            self.problems.append(f"'{path}' is not a whole JSON array.")
        for number, (start, end) in enumerate(_scan_objects(text), 1):
            line, last = line + text.count("\n", last, start), start
            piece = text[start:end]
            try:
                job = edited_job(store, name, number, parse_json(piece, "it"), mark)
            except BadValue as error:
                why = f"holds no job ({str(error).rstrip('.')}): {_shown(piece)}"
                self._add_damaged(f"'{path}', line {line}, {why}", piece)
                continue
            store.n = max(store.n, job.seq)
            known = self.jobs.get(job.id)
            if known is not None:
                self.problems.append(
                    f"Job '{job.id}' is stored twice; the record that changed last counts."
                )
            if known is None or known.updated_at <= job.updated_at:
                self.jobs[job.id] = job
        return mark

    def _add_damaged(self, problem: str, piece: str) -> None:
        """Note a problem, and the ids of the jobs that the damaged piece holds. An `id` in the
        field `after` is another job's."""
        self.problems.append(problem)
        found = re.findall(r'"id": "([A-Za-z0-9._:-]+)"(?!, "any")', piece)
        self._named |= dict.fromkeys(found)

    def _read_journal(self, marks: Mapping[str, Mark | None]) -> list[int] | None:
        """Apply the journal's whole lines to what the arrays hold, and judge the others. Gives the
        counts of the last whole line; None where there is none."""
        path, counts = self._store.journal_path, None
        arrays, named = dict(self.jobs), dict(self._named)
        try:
            data = bytes_of(path)
        except FileNotFoundError:
            self.problems.append(f"'{path}' is missing: {_JOURNAL_HELD} is lost.")
            return None
        for number, line in enumerate(data.split(b"\n"), 1):
            try:
                if (body := body_of(line + b"\n")) is None:
                    raise BadValue("its checksum does not fit")
                raws, rest = read_body(body)
                if "format" in rest:
                    check_format(rest, path)
                    continue
                if "intent" in rest:
                    if Mark(*rest["intent"]["jobs"]) != marks["jobs"]:
                        continue  # the fold was not committed
                    # It was committed: the arrays hold all that the lines above say.
                    self.jobs, self._named = dict(arrays), dict(named)
                for job in map(decode_job, raws):
                    self.jobs[job.id] = job
                for id in rest.get("del", ()):
                    self.jobs.pop(id, None)
                    self._named.pop(id, None)
                counts = list(rest["counts"])
            except (ValueError, LookupError, TypeError, BadValue) as error:
                if line:
                    self._judge_line(f"'{path}', line {number}, is damaged: {error}.", line)
        return counts

    def _judge_line(self, problem: str, line: bytes) -> None:
        """Take in what may be believed of a damaged line (D2)."""
        for raw in line.split(b"\t")[1:-1]:
            with suppress(BadValue, ValueError, TypeError):
                job = decode_job(raw.removesuffix(b","))
                new = doubt_job(job, self.jobs.get(job.id), self._store.home.now())
                if check_job(new) is None:
                    self.jobs[job.id] = new
        self._add_damaged(problem, line.decode("utf-8", "replace"))

    def _end_followers_of_lost_jobs(self, now: str) -> None:
        """End the waiting jobs that come after a lost one (D3). The jobs that need these end later:
        the store takes in the arrays that `mend` writes as it takes in a hand edit."""
        for job in list(self.jobs.values()):
            lost = [id for id in parents_of(job) if id not in self.jobs]
            if job.state in WAITING and lost:
                hint = f"let it run with: queuectl dlq retry {job.id}"
                reason = f"it comes after job '{lost[0]}', which was lost to damage; {hint}"
                self.jobs[job.id] = let_die(job, reason, now)
                self.problems.append(
                    f"Job '{job.id}' comes after '{lost[0]}', which is missing: it becomes a "
                    "dead letter."
                )


def _scan_objects(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each JSON object in a damaged array, and of each stretch that is none."""
    between = re.compile(r"[\s,\[\]\ufeff]*")
    next_object = re.compile(r'\n[ \t]*(?=\{)|(?=\{"id": ")|\Z')
    at = 0
    while (at := between.match(text, at).end()) < len(text):  # type: ignore[union-attr]  # matches
        end = at
        with suppress(ValueError, RecursionError):
            end = _read_json(text, at)[1] if text[at] == "{" else at
        if end == at:
            end = next_object.search(text, at + 1).end()  # type: ignore[union-attr]  # \Z matches
        yield at, end
        at = end


def doubt_job(job: Job, known: Job | None, now: str) -> Job:
    """What becomes of a job in a damaged journal line. `known` is the job as whole lines have it.

    The line may hold another command than the one that was given, so no job starts because of it. A
    job that it calls over is over. One that it calls running is running: its processes may live,
    and recovery looks for them; if only this line holds the job, it is cancelled then. A run that
    whole lines know is as they have it. A waiting job that only this line holds becomes a dead
    letter, for a person to look at.
    """
    if job.state in OVER:
        return job
    if known is not None and known.state in OVER:
        return known
    if known is not None and _is_run(known, job):
        return known
    if job.state == "processing":
        return (known or job)._replace(
            state="processing", attempts=job.attempts, runs=job.runs, run_at=None,
            held=None, units=job.units, worker=job.worker, slot=job.slot,
            started_at=job.started_at,
            cancelled_at=known.cancelled_at if known else now,
        )  # fmt: skip
    hint = f"check that it is right, then: queuectl dlq retry {job.id}"
    return known or let_die(job, f"it stood in a damaged line of the journal; {hint}", now)


def mend(store: Store) -> tuple[list[str], str]:
    """Write the home anew from what is whole in it. Gives the paths of the copies of its files as
    they were, and what is lost, in words. Refused while a worker lives: it has the queue in
    memory."""
    home = store.home
    home.keeps_settings = True
    with home.locked():
        if home.live_workers():
            raise StoreError(
                "A worker is running. Nothing was changed. Stop it first: queuectl worker stop."
            )
        found = Salvage(store)
        copies = []
        for path in (home.config_path, *store.paths.values(), store.journal_path):
            with suppress(FileNotFoundError), opened(path, _READ) as fd:
                copies.append(home.keep_aside(os.path.basename(path), fd))
        if home.read_settings():
            _mend_settings(home)
        store.forget()
        ordered = sorted(found.jobs.values(), key=lambda job: job.seq)
        for name, path in store.paths.items():
            raws = (encode_job(job) for job in ordered if array_of(job.state) == name)
            write_array(store.temporary(name), raws)
            os.rename(store.temporary(name), path)
        sync_dir(home.path)
        with suppress(FileNotFoundError):
            os.unlink(store.journal_path)
        store.look(locked=True)  # begins a journal, as on a first start
    return copies, found.lost


def readable_settings(home: Home) -> Fields:
    """The settings that can be read in a damaged config.json, each by itself."""
    text = ""
    with suppress(FileNotFoundError):
        text = bytes_of(home.config_path).decode("utf-8", "replace")
    kept: Fields = {}
    for name, value in re.findall(r'"([\w-]+)"\s*:\s*("(?:[^"\\\n]|\\.)*"|[^\s,}]+)', text):
        with suppress(ValueError, BadValue):
            setting = {known_setting(name): json.loads(value)}
            parse_settings(setting)
            kept |= setting
    return kept


def _mend_settings(home: Home) -> None:
    """Write config.json anew, with what can be read of the damaged one."""
    kept = readable_settings(home)
    home.write_settings({**DEFAULTS, **kept})
    lost = ", ".join(name for name in SETTINGS if name not in kept)
    home.warn(f"These settings could not be read and have their defaults now: {lost}.")


# ======== 9. EXECUTION ========
# Owns the processes of jobs and hooks, and their output. It starts one command, waits for it, ends
# it, ends what a dead worker left running, and keeps and reads logs. It returns an outcome, and
# knows neither stores nor job states.
#
# The processes of a run are found by three things.
#
#   mark     QUEUECTL_RUN in their environment: device and inode of the store lock, worker, job and
#            run (`run_mark`). In a copied home it is another one.
#   session  the one that the command began. The row in the worker's file names it.
#   log      the lock on the run's log. The worker takes it before the spawn, and closes its own
#            descriptor after it: so exactly the processes that hold the output keep the lock,
#            whatever they did to their session and environment.
#
# X1  A pid is signalled only while its process cannot have been reaped: under `_table`, or through
#     a pidfd where the system has them.
# X2  The working directory never changes: a command enters its own between spawn and exec.
# X3  An attempt that we ended is over when nothing of its run lives. One that ended by itself is
#     over with its leader; what it leaves behind is a daemon, which lives on.
# X4  Fencing never waits for a lock, and never ends this process or its ancestors. A run is not
#     over while one of these belongs to it.
#
# F1 to F9, which comments here and in WORKER cite, are what holds after any fault: see
# tests/faults/test_survived.py.

FENCE_POLL_S = 0.03
KILLS_MAX = 60  # what lives after so many looks with SIGKILL, in 2 s or more, may live for long
LAST_LINE_CHARS = 200  # of a job's output, as `dlq list` shows it
HOOK_S = 30  # a hook may run that long
HOOK_LINES = 20  # a hook is given so many lines of the job's output
HOOK_BYTES = 16_384  # at most so many bytes of them
ROOM_BYTES = 16_384  # free on the logs' disk; with less, nothing is started
_PROC = "/proc"
SPAWN_BYTES = 1024  # the C library's records of a spawn take 336 bytes at most
_SETSID = 0x400 if sys.platform == "darwin" else 0x80
SPAWN_FLAGS = 0x0C | _SETSID  # POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID


class HostFault(Exception):
    """An attempt could not begin, and not by the job's fault: no runner, no memory, a full disk."""


class Trace(NamedTuple):
    """What the processes of one run are known by."""

    mark: str
    logs: Words  # the paths that its output may be at; none for a hook
    session: int | None = None  # None where its worker did not write it down
    start_s: float | None = None  # when its leader was started, on the clock that counts from boot


class Attempt:
    """One command while it runs. Times are of the monotonic clock."""

    def __init__(self, pid: int, trace: Trace, deadline: float) -> None:
        self.pid = pid
        self.trace = trace
        # When the main thread has to act: at first when the time limit strikes, then, once it is
        # being ended, when its group gets SIGKILL. inf: never again.
        self.deadline = deadline
        self.ending: Outcome | None = None  # how it will have ended, once we begin to end it
        self.kill_at = inf  # when its fence begins to send SIGKILL
        self.exit_code: int | None = None  # once its leader was reaped; -n after signal n
        self.job_id = ""  # stays empty for a hook


def run_mark(lock_id: str, worker: str, id: str, run: int, hook: str = "") -> str:
    """QUEUECTL_RUN: what tells the processes of a run, or of its hook, from all others."""
    return f"{lock_id}/{worker}/{id}/{run}" + (hook and f"/{hook}")


def as_utf8(texts: Mapping[str, str]) -> dict[bytes, bytes]:
    """Variables for a command's environment, in UTF-8 whatever the locale of this process."""
    return {name.encode(): text.encode() for name, text in texts.items()}


def _find_spawn() -> Callable[..., int]:
    """The function that starts a program in a session of its own, with default signals, and gives
    its pid.

    It calls posix_spawn of the C library. Python's own cannot enter a directory, and it stops all
    other threads until the new program is loaded, which costs a fifth of a drain's rate.
    """
    try:
        import ctypes
    except ImportError as error:
        raise Refused(f"This Python has no ctypes, which starts the jobs: {error}.") from None
    library = ctypes.CDLL(None)
    add_dup, start = library.posix_spawn_file_actions_adddup2, library.posix_spawn
    # glibc before 2.29, musl before 1.1.24 and macOS before 10.15 do not have it.
    add_chdir = getattr(library, "posix_spawn_file_actions_addchdir_np", None)

    def check(error: int) -> None:
        if error:
            raise OSError(error, os.strerror(error))

    for function in filter(None, (add_chdir, add_dup, start)):
        function.restype = check
    attributes, signals = (ctypes.create_string_buffer(SPAWN_BYTES) for _ in range(2))
    library.posix_spawnattr_init(attributes)  # its signal mask is empty
    library.sigfillset(signals)
    library.posix_spawnattr_setsigdefault(attributes, signals)
    library.posix_spawnattr_setflags(attributes, ctypes.c_short(SPAWN_FLAGS))

    def texts(words: Sequence[bytes]) -> Any:
        return (ctypes.c_char_p * (len(words) + 1))(*words)

    def spawn(
        path: bytes, words: list[bytes], env: dict[bytes, bytes], cwd: bytes, fds: Sequence[int]
    ) -> int:
        pid, actions = ctypes.c_int(), ctypes.create_string_buffer(SPAWN_BYTES)
        variables = texts([b"%s=%s" % pair for pair in env.items()])
        library.posix_spawn_file_actions_init(actions)
        try:
            if add_chdir is not None:
                add_chdir(actions, cwd)
            else:  # a shell enters the directory
                words = [b"sh", b"-c", b'cd "$0" && exec "$@"', cwd, path, *words[1:]]
                path = b"/bin/sh"
            for theirs, ours in enumerate(fds):
                add_dup(actions, ours, theirs)
            start(ctypes.byref(pid), path, actions, attributes, texts(words), variables)
        finally:
            library.posix_spawn_file_actions_destroy(actions)
        return pid.value

    return spawn


class Executor:
    """Starts commands and ends them. It owns this process's running attempts.

    find_runner        is the runner's program there
    start, wait        a slot's command: begin it; wait until it is over
    end, kill_late     SIGTERM; SIGKILL to those whose grace is over
    starting, running  the slots whose command has not begun yet; the attempts, by slot
    """

    def __init__(self, base_env: Mapping[bytes, bytes]) -> None:
        self._table = threading.RLock()  # held to reap and to signal (X1)
        # The descriptors that this process was started with are not for the jobs.
        with suppress(OSError):
            for name in os.listdir("/dev/fd"):
                with suppress(OSError):
                    os.set_inheritable(int(name), int(name) <= 2)
        self._env = dict(base_env)
        self._null = os.open(os.devnull, os.O_RDONLY)
        self._runners: dict[Words, bytes] = {}  # the path of each one's program
        self._spawn = _find_spawn()
        self.starting: set[int] = set()
        self.running: dict[int, Attempt] = {}

    def start(
        self, slot: int, runner: Words, command: str, cwd: bytes,
        env: Mapping[bytes, bytes], log_fd: int, logs: Words, limit_s: float,
        stdin: int | None = None,
    ) -> Attempt | Outcome:  # fmt: skip
        """Start `runner` + command in a session of its own; a `limit_s` of 0 is no limit.

        Its output goes to `log_fd`; its stdin is empty unless one is given. The run is found again
        by QUEUECTL_RUN in `env` and by the files `logs`.
        Gives an Outcome (not_started) if the command does not start and that is the job's own
        fault. Raises HostFault if it is not.
        """
        path = self.find_runner(runner)
        words = [word.encode() for word in (*runner, command)]
        fds = (self._null if stdin is None else stdin, log_fd, log_fd)
        self.starting.add(slot)
        try:
            pid = self._spawn(path, words, {**self._env, **env}, cwd, fds)
        except OSError as error:
            return self._not_started(error, runner, cwd)
        finally:
            self.starting.discard(slot)
        deadline = time.monotonic() + (limit_s or inf)
        trace = Trace(env[b"QUEUECTL_RUN"].decode(), logs, pid, boot_clock_s())
        attempt = self.running[slot] = Attempt(pid, trace, deadline)
        return attempt

    def _not_started(self, error: OSError, runner: Words, cwd: bytes) -> Outcome:
        """The outcome if that error is the job's own fault; else raises HostFault."""
        if error.errno == errno.E2BIG:
            reason = "its command and environment are too long for the system"
            return Outcome("not_started", reason=reason)
        try:
            os.stat(cwd + b"/.")
        except OSError as why:
            reason = f"its directory '{cwd.decode()}' cannot be entered: {why.strerror}"
            return Outcome("not_started", reason=reason)
        self._runners.pop(runner, None)  # the next claim looks for it again
        raise HostFault(f"'{runner[0]}' could not be started: {error.strerror}") from error

    def find_runner(self, runner: Words) -> bytes:
        """The path of a runner's program. Raises HostFault where there is none."""
        path = self._runners.get(runner)
        if path is None:
            import shutil

            path = shutil.which(runner[0].encode())
            if path is None:
                raise HostFault(f"the runner '{runner[0]}' was not found")
            self._runners[runner] = path = os.path.abspath(path)
        return path

    def wait(self, slot: int) -> Outcome:
        """Wait until the slot's attempt is over (X3) and say how it ended."""
        attempt = self.running[slot]
        if hasattr(os, "waitid"):  # macOS has it from Python 3.13 on
            with suppress(ChildProcessError):  # `end` has reaped it meanwhile
                os.waitid(os.P_PID, attempt.pid, os.WEXITED | os.WNOWAIT)
        while (code := self._reap(attempt)) is None:
            time.sleep(FENCE_POLL_S)
        if attempt.ending is not None:
            Fence(attempt.trace, attempt.kill_at, session_known=True).wait()
        del self.running[slot]
        kind, _, _, reason = attempt.ending or Outcome("exited")
        if kind in ("exited", "signalled"):  # a job that we cancelled may have exited by itself
            kind = "exited" if code >= 0 else "signalled"
        exit_code, number = (code, None) if code >= 0 else (None, -code)
        return Outcome(kind, exit_code, number, reason)

    def _reap(self, attempt: Attempt) -> int | None:
        """The exit code of an attempt whose leader has ended; None while it runs."""
        with self._table:
            if attempt.exit_code is None:
                pid, status = os.waitpid(attempt.pid, os.WNOHANG)
                if pid != 0:
                    attempt.exit_code = os.waitstatus_to_exitcode(status)
                    attempt.deadline = inf  # its pid may be another's by now (X1)
            return attempt.exit_code

    def end(self, attempt: Attempt, outcome: Outcome, grace_s: float) -> None:
        """Begin to end a running attempt, whose outcome that is then: SIGTERM to its group now,
        SIGKILL later by `kill_late`.

        Nothing happens if it has ended by itself or is being ended already.
        """
        with self._table:
            if attempt.ending is not None or self._reap(attempt) is not None:
                return
            attempt.ending = outcome
            attempt.deadline = attempt.kill_at = time.monotonic() + grace_s
            _signal_group(attempt.pid, signal.SIGTERM)
            _signal_group(attempt.pid, signal.SIGCONT)  # a stopped process takes SIGTERM only then

    def kill_late(self, now_s: float) -> None:
        """SIGKILL to the groups whose grace is over."""
        with self._table:
            for attempt in list(self.running.values()):  # a slot may start one meanwhile
                if attempt.ending is not None and attempt.deadline <= now_s:
                    attempt.deadline = inf
                    _signal_group(attempt.pid, signal.SIGKILL)


def _signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


# -- Fencing: ending what still lives of a run


class Fence:
    """Ends the processes of one run: SIGTERM, from `kill_at` on SIGKILL, until two looks in a row
    find nothing.

    step, wait       one look and its signals; steps until the run is gone
    look             a look without a signal
    living, is_held  the processes that the last look found; whether one held the run's output
    """

    def __init__(self, trace: Trace, kill_at: float, session_known: bool = False) -> None:
        self.trace = trace
        self.kill_at = kill_at
        self.living: list[int] = []
        self.is_held = False
        self._told: set[int] = set()  # these have got SIGTERM
        self._session_known = session_known  # that the session of that number is the run's
        self._empty = 0  # looks in a row that found nothing
        self.kills = 0  # looks after which SIGKILL was sent

    def step(self) -> bool:
        """One look, one signal to each process found. True once the run is surely gone."""
        try:
            self.look()
            spared = {*_ancestors(), -os.getpgrp()}  # X4
        except OSError:  # no descriptors or no memory to look with: nothing is known
            self._empty = 0
            return False
        killing = time.monotonic() >= self.kill_at
        self.kills += killing
        for pid in self.living:
            if pid in spared:
                continue
            if killing:
                self._send(pid, signal.SIGKILL)
            elif pid not in self._told:
                self._send(pid, signal.SIGTERM)
                self._send(pid, signal.SIGCONT)
                self._told.add(pid)
        self._empty = 0 if self.living or self.is_held else self._empty + 1
        return self._empty >= 2

    def look(self) -> None:
        """Find what lives of the run, without a signal."""
        self.is_held = any(_is_log_held(path) for path in self.trace.logs)
        if os.path.exists(f"{_PROC}/{os.getpid()}"):
            pids = [int(name) for name in os.listdir(_PROC) if name.isdigit()]
            self.living = [pid for pid in pids if self._belongs(pid)]
        else:  # no /proc, or an empty one: the group and the log are all there is to go by
            self.living = self._find_group()

    def wait(self) -> None:
        """Until the run is surely gone, however long that takes (F4)."""
        while not self.step():
            time.sleep(FENCE_POLL_S)

    def _find_group(self) -> list[int]:
        """The run's process group as a negative pid, as `os.kill` takes it, while it has a
        process."""
        with suppress(OSError):
            if self.trace.session is not None:
                os.killpg(self.trace.session, 0)
                return [-self.trace.session]
        return []

    def _belongs(self, pid: int) -> bool:
        """Whether a process is of this run: by its session, its mark, or the held output."""
        status = _process_status(pid)
        if status is None:
            return False
        is_in_session = status.session == self.trace.session
        if is_in_session and pid == status.session:
            # If its leader is the process that the worker started, the whole session is the run's.
            self._session_known = abs(status.start_s - (self.trace.start_s or 0)) < 2
        if status.state in "ZX":  # a zombie runs no more
            return False
        if is_in_session and self._session_known:
            return True
        mark = f"QUEUECTL_RUN={self.trace.mark}".encode()
        if mark in _read_proc(pid, "environ").split(b"\0"):
            return True
        return self.is_held and any(_writes_to(pid, path) for path in self.trace.logs)

    def _send(self, pid: int, number: int) -> None:
        """Signal a process of the run by a pidfd, once it is sure that the pid is still its own
        (X1). A negative pid is a group."""
        with suppress(OSError):
            if pid < 0 or not hasattr(os, "pidfd_open"):
                os.kill(pid, number)
                return
            fd = os.pidfd_open(pid)
            try:
                if self._belongs(pid):
                    signal.pidfd_send_signal(fd, number)
            finally:
                os.close(fd)


class _Status(NamedTuple):
    state: str
    parent: int
    session: int
    start_s: float


def _read_proc(pid: int, name: str) -> bytes:
    """A file of /proc/PID; b"" where the process is gone or another user's. Raises OSError."""
    try:
        return bytes_of(f"{_PROC}/{pid}/{name}")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _process_status(pid: int) -> _Status | None:
    """State, parent, session and start time of a process, from /proc/PID/stat."""
    # The program's name, in parentheses before these, may hold anything.
    words = _read_proc(pid, "stat").rpartition(b")")[2].split()
    if len(words) < 20:
        return None
    start_s = int(words[19]) / os.sysconf("SC_CLK_TCK")
    return _Status(words[0].decode(), int(words[1]), int(words[3]), start_s)


def user_of(pid: int) -> str:
    """The name of the user whose process that is; "?" if the system does not tell."""
    import pwd

    uid = re.search(rb"\nUid:\s*(\d+)", _read_proc(pid, "status"))
    if uid is None:
        return "?"
    with suppress(KeyError):
        return pwd.getpwuid(int(uid[1])).pw_name
    return uid[1].decode()


def _ancestors() -> set[int]:
    """This process and all that it descends from: a job may run queuectl itself."""
    out, pid = set(), os.getpid()
    while pid > 0 and pid not in out:
        out.add(pid)
        status = _process_status(pid)
        pid = status.parent if status else 0
    return out


def _is_log_held(path: str) -> bool:
    """Whether some process holds that log open as its output: it then shares the log's lock."""
    try:
        with opened(path, _READ) as fd:
            return not lock_descriptor(fd, blocking=False)  # closing it unlocks it again
    except OSError as error:
        if error.errno in NO_FILE:
            return False
        raise


def _writes_to(pid: int, path: str) -> bool:
    """Whether a process has that file open for writing. One that only reads it (a pager, `logs`) is
    not the job's."""
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for name in os.listdir(f"{_PROC}/{pid}/fd"):
            link = f"{_PROC}/{pid}/fd/{name}"
            # The mode of the link itself is that with which the file was opened.
            if identity_of(link) == identity_of(path) and os.lstat(link).st_mode & stat.S_IWUSR:
                return True
    return False


# -- Logs: NAME.SLOT.log while an attempt runs, then HH/ID.RUN.log
#
# A log above log_max gives its oldest blocks back to the disk. They become a hole, what follows
# keeps its offset, and the command, which appends, notices nothing. After each read a reader asks
# where the data begins, and drops what it read before that place. A job may make a hole itself
# (`truncate -s 1G /dev/stdout`). It reads as zeros, except at the beginning, where it counts as
# left out.

_APPEND_LOG = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW
LOG_FOLDERS = 256
_PUNCH_HOLE = 3  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


def has_room(logs_dir: str) -> bool:
    """Whether output can be kept. Without room a job that prints would fail by no fault of its own
    (F6).

    The folder is made again where somebody deleted it.
    """
    if not os.path.exists(logs_dir):
        os.mkdir(logs_dir, 0o700)  # not its parents: without those the queue is gone
        os.chmod(logs_dir, 0o700)
    disk = os.statvfs(logs_dir)
    return disk.f_bavail * disk.f_frsize >= ROOM_BYTES


def slot_log_path(logs_dir: str, worker: str, slot: int) -> str:
    return f"{logs_dir}/{worker}.{slot}.log"


def log_path(logs_dir: str, id: str, run: int) -> str:
    """Where the output of a run that is over is kept, in one of 256 folders by a hash of the id."""
    return f"{logs_dir}/{zlib.crc32(id.encode()) % LOG_FOLDERS:02x}/{id}.{run}.log"


class SlotLog:
    """The file that a slot's attempts write to, one after the other.

    A file with output gets the name of its run. An empty one serves the next run.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd: int | None = None

    def open(self) -> int:
        """The log's descriptor: open, empty, locked. Raises HostFault."""
        if self._fd is not None:
            return self._fd
        try:
            fd = os.open(self.path, _APPEND_LOG | os.O_CREAT | os.O_EXCL, 0o600)
            os.fchmod(fd, 0o600)
            if not lock_descriptor(fd, blocking=False):
                os.close(fd)
                raise HostFault(f"the log '{self.path}' is locked by another process")
        except FileExistsError:  # a fault between two steps left it; its bytes are kept
            self._keep(f"{self.path}.{os.urandom(3).hex()}")
            return self.open()
        except OSError as error:
            raise HostFault(f"the log '{self.path}' cannot be created: {error.strerror}") from error
        self._fd = fd
        return fd

    def release(self) -> None:
        """Close our descriptor once the command has its own: then it alone keeps the lock."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def finish(self, path: str, most: int, starting: Collection[int] = ()) -> None:
        """Give the output the path of its run, and keep its newest `most` bytes.

        An empty file serves the next run, unless a process of this one still holds it.
        """
        self.release()
        try:
            fd = os.open(self.path, _APPEND_LOG)
        except OSError:
            return  # deleted under us: the next run gets a new one
        if os.fstat(fd).st_size == 0:
            # A command that another slot is `starting` has a copy of the descriptor until its exec.
            # Wait until none is starting, and then for 100 ms more: a daemon may hold the lock.
            pause_s = 0.0001
            while pause_s < 0.1:
                if lock_descriptor(fd, blocking=False):
                    self._fd = fd
                    return
                time.sleep(pause_s)
                if not starting:
                    pause_s *= 2
        trim_log(fd, most)
        os.close(fd)
        self._keep(path)

    def trim(self, most: int) -> bool:
        """Keep the newest `most` bytes of a log that is being written. False where all of it had to
        go.

        Raises OSError.
        """
        with suppress(FileNotFoundError), opened(self.path, _APPEND_LOG) as fd:
            if not trim_log(fd, most):
                os.ftruncate(fd, 0)  # the command appends, so it goes on at the new end
                return False
        return True

    def _keep(self, path: str) -> None:
        try:
            make_dir(os.path.dirname(path))
            os.rename(self.path, path)
        except OSError as error:
            raise HostFault(f"the log '{path}' cannot be kept: {error.strerror}") from error


def trim_log(fd: int, most: int) -> bool:
    """Give the oldest blocks of a log back to the disk, so that little more than its newest `most`
    bytes stay.

    False where the system does not punch holes.
    """
    info = os.fstat(fd)
    end = (info.st_size - most) // info.st_blksize * info.st_blksize
    if end <= _first_data(fd):
        return True
    import ctypes

    libc = ctypes.CDLL(None)
    # The offsets here have 64 bits. In the GNU library only `fallocate64` always takes so many;
    # other libraries have `fallocate` alone, which does.
    fallocate = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if fallocate is None:
        return False
    return bool(fallocate(fd, _PUNCH_HOLE, ctypes.c_int64(0), ctypes.c_int64(end)) == 0)


def _first_data(fd: int) -> int:
    """Where a log's output begins: after the hole that was given up."""
    try:
        return os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        return os.fstat(fd).st_size if error.errno == errno.ENXIO else 0  # all is hole


def keep_orphan_log(logs: Words, most: int, has_begun: bool) -> None:
    """Keep the output of a run that a dead worker left: `logs` are the slot's log, and the path of
    the run, which the output gets.

    A file at that path is replaced: a purge that died may have left the output of another job of
    that id (F9). If the slot's log is empty, that file is removed, unless the run is known to have
    begun: then it is the run's own output, which the worker had moved there before it died.
    """
    slot_log, log = logs
    # A log that cannot be kept must not keep the job from being recovered (F5).
    with suppress(OSError, HostFault):
        if os.stat(slot_log).st_size > 0:
            SlotLog(slot_log).finish(log, most)
            return
        os.unlink(slot_log)
        if not has_begun:
            remove_log(log)


def sweep_slot_logs(logs_dir: str, worker: str) -> None:
    """Remove the empty logs of the idle slots of a worker that is dead or leaves."""
    with os.scandir(logs_dir) as entries:
        for entry in entries:
            if entry.name.startswith(f"{worker}.") and entry.stat().st_size == 0:
                os.unlink(entry.path)


def remove_logs(logs_dir: str, id: str, runs: int) -> None:
    """Delete the output of every run of a purged job."""
    for run in range(1, runs + 1):
        remove_log(log_path(logs_dir, id, run))


def remove_log(path: str) -> None:
    with suppress(OSError):  # what stays goes at the next sweep
        os.unlink(path)


def sweep_logs(logs_dir: str, folder: int, find: Callable[[Names], Names]) -> None:
    """Remove, from one of the folders of logs, the output of jobs that are gone. `find(ids)` gives
    those of these jobs that are in the queue.

    Call it under the store lock: else a job of that id may be added, and run, before the unlink.
    """
    path = f"{logs_dir}/{folder:02x}"
    with suppress(FileNotFoundError):
        logs = re.findall(r"^((.+)\.\d+\.log)$", "\n".join(os.listdir(path)), re.MULTILINE)
        there = find({id for _, id in logs})
        for name, id in logs:
            if id not in there:
                os.unlink(f"{path}/{name}")


def read_log(path: str, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of a log's output from `start` on, as far as there is any now.

    An offset above `start`, or above the end of the piece before, says that the output between was
    left out; that piece begins with a line. A log that was truncated is read from its beginning.
    """
    with suppress(FileNotFoundError), opened(path, _READ) as fd:
        end = os.fstat(fd).st_size  # a command may print faster than anybody reads
        if start > end:
            start = 0
        was_left_out = False
        while chunk := os.pread(fd, min(CHUNK_BYTES, max(0, end - start)), start):
            data_at = _first_data(fd)
            if data_at > start:
                start, was_left_out = data_at, True
                continue
            if was_left_out:
                line_at = chunk.find(b"\n", 0, -1) + 1  # 0 where it is all one line
                start, chunk, was_left_out = start + line_at, chunk[line_at:], False
            yield start, chunk
            start += len(chunk)


def tail_start(path: str, lines: int) -> int:
    """The offset at which the last `lines` lines of a log begin; 0 where it holds no more."""
    with suppress(FileNotFoundError), opened(path, _READ) as fd:
        size, first = os.fstat(fd).st_size, _first_data(fd)
        if lines == 0:
            return size
        end = size - 1  # a newline at the very end begins no line
        while end > first:
            start = max(first, end - CHUNK_BYTES)
            before, *found = os.pread(fd, end - start, start).rsplit(b"\n", lines)
            lines -= len(found)
            if lines == 0:
                return start + len(before) + 1
            end = start
    return 0


def last_lines(path: str, lines: int, bytes_max: int) -> str:
    """The last lines of output, cut to their last `bytes_max` bytes."""
    data = b""
    for _, piece in read_log(path, tail_start(path, lines)):
        data = (data + piece)[-bytes_max:]
    return data.decode("utf-8", "replace")


def last_line(path: str) -> str:
    """The last line of output that is not blank; "" where there is none."""
    lines = [line for line in last_lines(path, 5, 4096).splitlines() if line.strip()]
    return lines[-1].strip()[:LAST_LINE_CHARS] if lines else ""


# -- This process, and a worker in the background


def start_again_if_needed() -> None:
    """Open descriptors 0, 1 and 2 on /dev/null where they are closed: else a file of ours could
    become one of them. Take arguments, names of files and variables as UTF-8, whatever the locale.

    Python decides both before it starts a program, so we start it again.
    """
    fd = os.open(os.devnull, os.O_RDWR)
    was_closed = fd <= 2
    if was_closed:
        os.set_inheritable(fd, True)
    else:
        os.close(fd)
    if was_closed or sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def start_detached(words: list[str], log: str) -> Any:
    """Start queuectl itself in a session of its own, its output appended to `log`. Gives a
    subprocess.Popen. Raises StoreError.
    """
    import subprocess

    fd = os.open(log, _APPEND_LOG | os.O_CREAT, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StoreError(f"'{log}' is not an ordinary file. Remove it.")
        os.fchmod(fd, 0o600)
        return subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), *words], start_new_session=True, cwd="/",
            stdin=subprocess.DEVNULL, stdout=fd, stderr=fd,
        )  # fmt: skip
    finally:
        os.close(fd)


# ======== 10. WORKER ========
# One worker process. Each of its slots is a thread that reports the attempt that ended and claims
# the next job in one transaction, runs it, and begins again. The main thread handles signals, stop
# requests, time limits, wake-ups, folding, syncing and purging. Two more threads do what may take
# long: one recovers jobs and trims logs, the other prints messages. This section uses threads,
# signals and the monotonic clock, and all else through the sections above.
#
# W1  Every claim ends in one report or in one recovery: a slot keeps an outcome until its report is
#     on disk.
# W2  Signal handlers only set a flag.
# W3  One worker process never runs more commands at once than its `--count`, or `worker_count`.
#     When that is lowered, running commands finish first.
# W4  A worker whose file is no longer at its path claims nothing more: others take it for dead.
#
# A worker is `running`, then `stopping`: it claims nothing more, and its jobs finish. It is
# `handing back` if they are not to finish: it ends them, and they go back into the queue. It leaves
# when the last slot is done.
#
# Who wakes whom: a byte in NAME.wake wakes the main thread of that worker, which looks at the queue
# and calls its slots if a job is ready.
#
#   every worker        an enqueue, retry, rerun, edit, hold, release, cancel, recovery, changed
#                       setting or stop
#   every other worker  a report that ends a job which others come after, or frees units; a claim of
#                       units, since some may have been reserved for its job
#   the worker itself   a signal, an attempt with a near time limit, a job that waits again, a slot
#                       that is done or idle, a hand-back

PURGE_S = 3600.0  # between two purges, and after the clock was set or the machine started
SWEEP_S = 60.0  # between two looks for what is old, in the queue and in a folder of logs
TICK_S = 1.0  # folding, syncing, and a look for what no wake-up announced
RECOVERY_S = 2.0  # between two looks for jobs of dead workers and for logs above log_max
PATIENCE_S = 0.1  # the main thread waits no longer for the lock: time limits and signals need it
UNSAID_MAX = 10_000  # lines kept for a stderr that is not read
SPEAK_S = 0.05  # lines are gathered for so long, then printed at once
FOLLOWERS_SAID = 10  # of the jobs that died with another, so many are named
LAST_WORDS_S = 2.0  # a leaving worker waits so long for a stderr that is not read
STOPPED = "the worker was stopped"  # why an attempt was handed back
NO_THREADS = "The system starts no more threads. Start fewer: queuectl worker start --count 1."
# A job's death by a signal may be seen so long before the signal that stops its worker.
GROUP_STOP_S = 0.25
WAKE_BYTES = 65_536  # a FIFO holds no more


class Worker:
    """A worker process: `run` works until it is stopped or has drained the queue.

    `say(text)` tells a person what it does, and never raises. `describe(job)` is the line about an
    attempt that ended.
    """

    def __init__(
        self, store: Store, count: int | None, only: TagFilter, drain: bool,
        say: Say, describe: Callable[[Job], str], max_load: float = inf,
    ) -> None:  # fmt: skip
        import queue

        self.store, self.home = store, store.home
        self._count = count  # None: `worker_count`, also when it changes
        # Slots from this number on finish their jobs, and claim no others.
        self.threads = count or store.home.config().worker_count
        self.only = only
        self.drain = drain
        self._max_load = max_load
        self._overload: str | None = None  # in words
        self._say = say
        self._describe = describe
        self._unsaid = queue.SimpleQueue[str]()  # lines to print; "" ends the thread that prints
        self.name = f"{os.getpid()}-{os.urandom(3).hex()}"
        self.state: Literal["running", "stopping", "handing back"] = "running"
        self._stopped_at = -inf
        self._error: QueueError | None = None  # why it stops by itself
        self._prepared = threading.Event()  # the threads may begin
        self._leaving = threading.Event()  # the threads beside the slots may end
        self._signals: list[int] = []  # in order: each stop signal, and each Ctrl+Z until obeyed
        self._work = threading.Condition()  # of `state` and `_round`
        self._round = 0  # rises whenever there may be something to claim
        self._due_at = inf  # when the next job will be due, on the monotonic clock
        self._threads: list[threading.Thread] = []
        self._slots: dict[int, SlotLog] = {}  # each slot whose thread has not ended, and its log
        self._troubles: dict[int | str, str | None] = {}  # by slot, or by chore
        self._said: set[str] = set()  # what is said once only
        self._sweep_at = 0.0  # on the monotonic clock

    def say(self, text: str) -> None:
        """Tell a person. It never waits for a terminal or a pipe that nobody reads: beyond
        UNSAID_MAX lines it drops the text."""
        if self._unsaid.qsize() < UNSAID_MAX:
            self._unsaid.put(text.replace("\n", "\\n"))

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    def _speak(self) -> None:
        """A thread: print what `say` was given, many lines at a time. A wake-up for each line would
        cost the slots a third of their rate."""
        lines: list[str] = []
        while "" not in lines:
            self._leaving.wait(SPEAK_S)
            lines = [self._unsaid.get()]
            lines += [self._unsaid.get() for _ in range(self._unsaid.qsize())]
            if any(lines):
                self._say("\n".join(filter(None, lines)))

    def run(self) -> int:
        """Work until stopped or drained; the exit code."""
        # The threads come first: if the system refuses one, no file has named this worker.
        self._start(self._speak)
        self._start(self._recover_and_trim)
        self._start_slots()
        self._prepare()
        self._prepared.set()
        self._do_chores()
        self._leaving.set()
        speaker, *others = self._threads
        for thread in others:
            thread.join()
        try:
            return self._leave()
        finally:
            self._unsaid.put("")
            speaker.join(LAST_WORDS_S)

    def _start(self, loop: Callable[..., None], *args: int) -> None:
        """Start a thread. Raises Refused."""
        thread = threading.Thread(target=loop, args=args, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            raise Refused(NO_THREADS) from None
        self._threads.append(thread)

    def _start_slots(self) -> None:
        """Start the slots that are missing. A slot ends with its worker only. Raises Refused."""
        for slot in range(len(self._slots), self.threads):
            self._slots[slot] = SlotLog(slot_log_path(self.home.logs_dir, self.name, slot))
            try:
                self._start(self._slot_thread, slot)
            except Refused:
                del self._slots[slot]
                raise

    def _do_chores(self) -> None:
        """What the main thread does until the last slot is done."""
        poll = select.poll()
        poll.register(self.file.wake_fd, select.POLLIN)
        tick_at = 0.0
        while self._slots:
            now_s, self._due_at = time.monotonic(), inf
            try:
                self._obey_signals()
                self._end_attempts(now_s)  # before the look, which may have to wait or fail
                self._look()
                self._end_attempts(now_s)  # those that the look found to be cancelled
                if now_s >= tick_at:
                    self._keep_house(now_s)
                    self._set_trouble("housekeeping fails", None)
                    tick_at = now_s + TICK_S
            except Busy:
                tick_at = now_s + PATIENCE_S  # others are at work
            except Exception as error:
                tick_at = now_s + TICK_S
                # Go on also after a fault of ours: without this thread no time limit strikes, and
                # nothing stops the worker.
                self._set_trouble("housekeeping fails", error)
                if isinstance(error, StoreError) and self.store.why_broken:
                    self._give_up(error)
            deadlines = [one.deadline for one in list(self._executor.running.values())]
            timeout_s = min(tick_at, self._due_at, *deadlines) - time.monotonic()
            if poll.poll(max(0.0, timeout_s) * 1000):
                os.read(self.file.wake_fd, WAKE_BYTES)

    def _prepare(self) -> None:
        """Take over the signals, read the queue and create the worker's file, by which others see
        that it lives."""
        # An ignored SIGCHLD would lose every exit status (F7).
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        may_be_ignored = (signal.SIGHUP, signal.SIGTSTP)  # under nohup, or without job control
        for number in (signal.SIGINT, signal.SIGTERM, *may_be_ignored):
            if number not in may_be_ignored or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, _frame: self._signals.append(number))
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._executor = Executor(os.environb)
        self.store.follow()
        self.home.keeps_settings = True
        header: Fields = {
            "pid": os.getpid(), "started_at": self.home.now(), "boot_id": boot_id(),
            "lock": self.home.lock_id(), "threads": self.threads, "tags": self.only.tags,
            "not_tags": self.only.not_tags, "trouble": None, "stopping": False,
        }  # fmt: skip
        self.file = self.home.create_worker(self.name, header)
        self._look_at_load()
        signal.set_wakeup_fd(self.file.wake_fd, warn_on_full_buffer=False)
        threads = say_count(self.threads, "thread")
        limit_s = self.home.last_config.job_timeout
        limit = f"a time limit of {limit_s:g} s for a new job" if limit_s else "no time limit"
        # No Ctrl+C reaches a worker that leads a session: it is detached, or a service.
        leads = os.getsid(0) == os.getpid()
        how = "with: queuectl worker stop." if leads else "with Ctrl+C."
        self.say(
            f"Worker {self.name} started: {threads}, home {self.home.path}, {limit}. Stop it {how}"
        )

    # -- The main thread's chores

    def _obey_signals(self) -> None:
        """Ctrl+Z halts the process. The first stop signal stops the worker, and the second makes it
        hand the running jobs back."""
        while signal.SIGTSTP in self._signals:
            self._signals.remove(signal.SIGTSTP)
            with self.home.mutex:  # no thread of ours holds the store lock meanwhile
                handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
                signal.raise_signal(signal.SIGTSTP)  # returns once this process is continued
                signal.signal(signal.SIGTSTP, handler)
        if self._signals:
            self._stop(
                "Stopping: running jobs finish first; once more ends them and hands them back."
            )
        if len(self._signals) > 1:
            self._hand_back()

    def _stop(self, text: str) -> None:
        """Claim nothing more, and let the running jobs finish."""
        if self.state != "running":
            return
        self.state, self._stopped_at = "stopping", time.monotonic()
        # If the worker is killed after this, that does not count against its jobs.
        self.file.write_header(stopping=True)
        self.say(text)
        self._call_slots()

    def _hand_back(self) -> None:
        """End the running jobs, which go back into the queue."""
        if self.state == "handing back":
            return
        self.state = "handing back"
        self.say("Ending the running jobs; they go back into the queue.")
        self._call_slots()
        self.file.wake()

    def _give_up(self, error: QueueError) -> None:
        """End the running jobs and leave. How they end can no longer be stored: another worker
        recovers them."""
        if self._error is None:
            self._error = error
            self.say(f"Error: {error}")
            self._stop("It claims nothing more.")
            self._hand_back()

    def _end_attempts(self, now_s: float) -> None:
        """End the attempts that are late, cancelled or to be handed back."""
        for attempt in list(self._executor.running.values()):
            job = self.store.processing.get(attempt.job_id)
            if self.state == "handing back":
                outcome = Outcome("handed_back", reason=STOPPED)
            elif attempt.deadline <= now_s:
                outcome = Outcome("timed_out")
            elif job is not None and job.cancelled_at is not None:
                outcome = Outcome("signalled", reason="cancelled")
            else:
                continue
            self._executor.end(attempt, outcome, self.home.last_config.grace_period)
        self._executor.kill_late(now_s)

    def _call_slots(self) -> None:
        """Wake the slots that wait for work, or for a new state of the worker."""
        with self._work:
            self._round += 1
            self._work.notify_all()

    def _look(self) -> None:
        """Take in what others did: a stop request, changed settings, new and cancelled jobs. End a
        drain that is over (`drain_state`)."""
        if not self.file.is_linked():
            self._give_up(StoreError(f"'{self.file.path}' was deleted while this worker ran."))
            return
        request = self.home.stop_requested(self.name)
        if request:
            self._stop("Stopping on request: running jobs finish first.")
        if request == "now":
            self._hand_back()
        # This reads config.json if it has changed: from here on `last_config` has the changes.
        self._set_trouble("the last good settings stay in force", self.home.read_settings())
        if self.state == "running":
            self._attend("cannot start worker_count threads", self._resize)
        self._look_at_load()
        with self.store.transaction(most_s=PATIENCE_S):
            waiting = what_waits(self.store)
            drain = drain_state(self.store, self.only) if self.drain else ""
            left = len(held_back(self.store)) if drain == "over" else 0
        may_claim = min(self.threads, len(self._slots))
        threads = max(may_claim, len(self._executor.running))
        self.file.write_header(threads=threads, overload=self._overload, **waiting._asdict())
        oldest, next_run_at = waiting.oldest, waiting.next_run_at
        if oldest and self._overload:
            self._say_once(f"Nothing starts while {self._overload} (--max-load).")
        elif oldest:
            self._call_slots()
        elif next_run_at:
            # A millisecond later, since the wall clock may be a little slower than the other one.
            wait_s = instant_s(next_run_at) - self.home.clock() + 0.001
            self._due_at = time.monotonic() + wait_s
        if not drain or self.state != "running":
            return
        if drain == "over" and not self._executor.running:
            self.state = "stopping"
            if left:
                self.say(f"The drain leaves {say_count(left, 'job')}: held, or after a held one.")
            self._call_slots()
        elif self.home.last_config.paused:
            self._say_once("The queue is paused: the drain waits. Go on with: queuectl resume")
        elif drain == "stuck" and next_run_at:
            at = say_instant(next_run_at)
            self._say_once(f"The drain waits for a retry or a delayed job, due at {at}.")
        elif drain == "stuck" and oldest:
            self._say_once("The drain waits for jobs that wait for units. See: queuectl list")

    def _look_at_load(self) -> None:
        """Note whether the load is above `--max-load`."""
        is_high = machine_load() > self._max_load
        self._overload = f"the load is above {self._max_load:g}" if is_high else None

    def _resize(self) -> None:
        """Follow `worker_count`, where there is no `--count`: start the slots that are missing.
        Slots above it claim nothing more."""
        threads = self._count or self.home.last_config.worker_count
        if threads != self.threads:
            self.threads = threads
            self.say(f"worker_count is {threads} now.")
            self._call_slots()
        self._start_slots()

    def _keep_house(self, now_s: float) -> None:
        """Once a second: fold, sync; once a minute: purge, sweep."""
        quiet_s = self.home.clock() - os.stat(self.store.journal_path).st_mtime
        self.store.sync()  # also where it cannot be folded
        if self.store.fold_due(quiet_s):
            self.store.fold(PATIENCE_S)
        if now_s < self._sweep_at:
            return
        self._purge_old()
        if quiet_s >= SWEEP_S:
            # A killed purge leaves output behind, and so does a job that is deleted by hand.
            with self.store.transaction(most_s=PATIENCE_S):
                folder = int(self.home.clock() / SWEEP_S) % LOG_FOLDERS
                sweep_logs(self.home.logs_dir, folder, self.store.find_raws)
        self._sweep_at = now_s + SWEEP_S

    def _purge_old(self) -> None:
        """`keep_completed`: about once an hour one worker removes the completed jobs that are old.

        `.queuectl/clock` says when that is due. If the wall clock was set, or the machine was
        started, since a worker looked last, it is put off for an hour: by a wrong clock new jobs
        look old.
        """
        boot, now_s = self.file.header["boot_id"], boot_clock_s()
        offset_s = self.home.clock() - now_s
        mark = self.home.clock_mark()
        is_trusted = mark.boot_id == boot and abs(mark.offset_s - offset_s) <= TICK_S
        if is_trusted and now_s < mark.purge_at_s:
            return
        mark = ClockMark(boot, offset_s, now_s + PURGE_S)
        self.home.write_clock_mark(mark, PATIENCE_S)
        keep_s = self.home.config().keep_completed
        if not (is_trusted and keep_s):
            return
        before = add_seconds(self.home.now(), -keep_s)
        gone = purge_completed(self.store, before, PATIENCE_S)
        if len(gone) == PURGE_JOBS:  # there may be more, for the next minute
            self.home.write_clock_mark(mark._replace(purge_at_s=now_s), PATIENCE_S)
        if gone:
            self.say(f"Purged {len(gone)} jobs that completed longer ago than keep_completed.")
        for job in gone:
            remove_logs(self.home.logs_dir, job.id, job.runs)

    def _set_trouble(self, who: int | str, error: Exception | str | None) -> None:
        """Say once why a slot claims nothing, or why a chore fails, and show it in `status`. None
        ends that trouble."""
        what = "not claiming" if isinstance(who, int) else who
        text = f"{what}: {_say_why(error)}" if error else None
        if text == self._troubles.get(who):
            return
        self._troubles[who] = text
        trouble = next(filter(None, list(self._troubles.values())), "")[:TROUBLE_CHARS] or None
        if trouble != self.file.header["trouble"]:
            self.file.write_header(trouble=trouble)
            self.say(f"Trouble: {trouble}" if trouble else "The trouble is over.")

    def _leave(self) -> int:
        """The last chores. Gives the exit code: 1 if a job died in a drain, 128 + n after a second
        stop signal n."""
        died = False
        try:
            if self._error is None:
                self.store.follow()
                self.store.sync()
                if self.store.fold_due(inf):
                    self.store.fold()
                began_at = self.file.header["started_at"]
                died = self.drain and has_died_since(self.store, began_at, self.only)
        finally:
            # The FIFO is closed next, and another file may get its descriptor. The handlers stay:
            # there is nothing left to stop.
            signal.set_wakeup_fd(-1)
            with suppress(OSError):
                sweep_slot_logs(self.home.logs_dir, self.name)
            self.home.forget_worker(self.name)
            self.file.close()
        self.say(f"Worker {self.name} stopped.")
        if self._error is not None:
            return self._error.exit_code
        if len(self._signals) > 1:
            return 128 + self._signals[1]
        return EXIT_REFUSED if died else 0

    # -- A slot's thread

    def _slot_thread(self, slot: int) -> None:
        """A thread: one slot, until the worker leaves. After a fault of ours the slot begins anew,
        and its next turn gives back the job that it held."""
        self._prepared.wait()
        while True:
            try:
                self._run_slot(slot)
                break
            except Exception as error:
                self._set_trouble(slot, error)
                self._pause()
        del self._slots[slot]
        self.file.wake()

    def _run_slot(self, slot: int) -> None:
        """Report, claim, run, and again, until the worker stops and nothing is left to report."""
        # After a fault a command may still run here (F4), and the log may hold its output (F9).
        self._abandon(slot, "a fault in the worker")
        self._slots[slot].release()
        self.file.write_row(slot)  # a slot that was added later has no row yet
        done: tuple[Job, Outcome] | None = None
        while done is not None or self.state == "running":
            seen = self._round
            try:
                may_claim = self._may_claim(slot, done is not None)
                claims = may_claim and not self._overload
                turn = take_turn(self.store, self.name, slot, done, claims, self.only)
            except Exception as error:  # an outcome is kept until it is reported (W1)
                self._set_trouble(slot, error)
                if self.state == "handing back":
                    if done is not None:  # its job is recovered, once this worker is gone
                        self.say(f"{done[0].id}: its end could not be stored; it will run again")
                    break
                self._pause()
                continue
            self._tell(turn, done)
            has_reported = done is not None
            done = None
            if turn.hooks and turn.reported is not None:
                self._run_hooks(slot, turn.reported, turn.hooks)
            elif turn.claimed is not None:
                done = turn.claimed, self._attempt(slot, turn.claimed)
            else:
                if has_reported:
                    self._clear_row(slot)
                if may_claim or self._is_surplus(slot):
                    self._set_trouble(slot, None)
                    with self._work:  # wait, unless there may be work for this slot by now
                        while self._round == seen or self._is_surplus(slot):
                            self._work.wait()
                elif self.state == "running":
                    self._pause()

    def _is_surplus(self, slot: int) -> bool:
        """Whether the slot is one too many: `worker_count` was lowered."""
        return slot >= self.threads and self.state == "running"

    def _may_claim(self, slot: int, has_ended: bool) -> bool:
        """Whether an attempt could begin here: a log can be made and the runner is there (F6). If
        not, it says why. A slot whose attempt has just failed to begin rests before it claims."""
        if slot >= self.threads or self.state != "running":
            return False
        if has_ended and self._troubles.get(slot):
            return False
        try:
            if not has_room(self.home.logs_dir):
                raise HostFault(f"no space is left for output under '{self.home.logs_dir}'")
            self._slots[slot].open()
            self._executor.find_runner(self.home.last_config.runner)
        except HostFault as fault:
            self._set_trouble(slot, fault)
            return False
        return True

    def _pause(self, seconds: float = TICK_S) -> None:
        """Wait for so long, or until the state changes."""
        state = self.state
        with self._work:
            self._work.wait_for(lambda: self.state != state, seconds)

    def _clear_row(self, slot: int) -> None:
        """Show that the slot is idle, and wake the main thread: a drain may be over now."""
        self.file.write_row(slot)
        self.file.wake()

    def _attempt(self, slot: int, job: Job) -> Outcome:
        """Run the job once and keep its output. Gives how it ended: a fault of ours or of the
        machine hands the job back (F5, F6). If that fails too, the slot begins anew."""
        try:
            outcome = self._run_command(slot, job)
            self._set_trouble(slot, None)
        except Exception as error:
            self._set_trouble(slot, error)  # then this slot rests
            outcome = self._abandon(slot, _say_why(error))
        try:
            log = log_path(self.home.logs_dir, job.id, job.runs)
            most, starting = self.home.last_config.log_max, self._executor.starting
            self._slots[slot].finish(log, most, starting)
        except (HostFault, OSError) as error:
            self._set_trouble(slot, error)
        return outcome

    def _run_command(self, slot: int, job: Job) -> Outcome:
        """Start the job's command and wait for its end."""
        log = self._slots[slot]
        # A purge that died may have left the output of another job of that id (F9).
        remove_log(log_path(self.home.logs_dir, job.id, job.runs))
        env = {**as_utf8(job.env or {}), **self._variables(slot, job)}
        attempt = self._executor.start(
            slot, self.home.last_config.runner, job.command, (job.cwd or "/").encode(),
            env, log.open(), (log.path,), job.timeout,
        )  # fmt: skip
        log.release()
        return self._explain(job, self._wait_for_end(slot, job, attempt))

    def _run_hooks(self, slot: int, job: Job, hooks: Mapping[str, str]) -> None:
        """Run the hooks of a job's end, once its report is on disk: so none runs twice. A hook that
        fails is a warning."""
        for name, command in hooks.items():
            try:
                self.store.sync()
                outcome = self._run_hook(slot, job, name, command)
            except Exception as error:
                outcome = self._abandon(slot, str(error))
            if outcome[:2] != ("exited", 0):
                why = outcome.reason or describe_outcome(outcome)
                self.say(f"Warning: {name} of job {job.id} failed: {why}")
        self._clear_row(slot)

    def _run_hook(self, slot: int, job: Job, name: str, command: str) -> Outcome:
        """Run one hook, with the job and its last output as JSON on stdin."""
        path = log_path(self.home.logs_dir, job.id, job.runs)
        about = {**job_to_dict(job), "output": last_lines(path, HOOK_LINES, HOOK_BYTES)}
        # The job is over: if this worker is killed, recovery finds the hook by this row alone.
        self.file.write_row(slot, {"job": job.id, "run": job.runs, "hook": name})
        with self.home.unnamed_file(encode_json(about) + b"\n") as fd:
            env = {**self._variables(slot, job, name), b"QUEUECTL_STATE": job.state.encode()}
            attempt = self._executor.start(
                slot, ("sh", "-c"), command, env[b"QUEUECTL_HOME"], env, 2, (), HOOK_S, fd
            )
            return self._wait_for_end(slot, job, attempt, name)

    def _variables(self, slot: int, job: Job, hook: str = "") -> dict[bytes, bytes]:
        """What a job, or its hook, finds in its environment."""
        mark = run_mark(self.file.header["lock"], self.name, job.id, job.runs, hook)
        texts = {
            "QUEUECTL_JOB_ID": job.id, "QUEUECTL_ATTEMPT": str(job.attempts),
            "QUEUECTL_WORKER": self.name, "QUEUECTL_SLOT": str(slot), "QUEUECTL_RUN": mark,
        }  # fmt: skip
        for name, units in (job.units or {}).items():
            texts[f"QUEUECTL_UNITS_{name}"] = ",".join(map(str, units))
        return {b"QUEUECTL_HOME": os.fsencode(self.home.path), **as_utf8(texts)}

    def _wait_for_end(
        self, slot: int, job: Job, attempt: Attempt | Outcome, hook: str = ""
    ) -> Outcome:
        """Write down what runs in the slot, and wait for its end. The main thread is woken for a
        near time limit, and to end an attempt that began during a hand-back. What did not start has
        its outcome already."""
        if isinstance(attempt, Outcome):
            return attempt
        row = {
            "job": job.id, "run": job.runs, "hook": hook,
            "session": attempt.pid, "start": attempt.trace.start_s,
        }  # fmt: skip
        self.file.write_row(slot, row)
        attempt.job_id = "" if hook else job.id
        if self.state == "handing back" or attempt.deadline < time.monotonic() + TICK_S:
            self.file.wake()
        return self._executor.wait(slot)

    def _abandon(self, slot: int, reason: str) -> Outcome:
        """End what still runs in a slot after a fault of ours. It returns when nothing of it
        lives."""
        outcome = Outcome("handed_back", reason=reason)
        attempt = self._executor.running.get(slot)
        if attempt is not None:
            self._executor.end(attempt, outcome, self.home.last_config.grace_period)
            self._executor.wait(slot)
        return outcome

    def _explain(self, job: Job, outcome: Outcome) -> Outcome:
        """The outcome with its reason in words, where a person needs more than a number."""
        if outcome.kind == "signalled" and outcome.reason is None:
            # A service manager signals the whole group; our own signal may come a moment later.
            self._pause(GROUP_STOP_S)
            if time.monotonic() - self._stopped_at < TICK_S:
                reason = "it was stopped together with its worker"
                return outcome._replace(kind="handed_back", reason=reason)
        if outcome.kind == "timed_out":
            return outcome._replace(
                reason=f"stopped by its time limit of {job.timeout:g} s; give it more, once it is "
                f"dead, with: queuectl dlq retry {job.id} --timeout 10m; or all new jobs: "
                "queuectl config set job-timeout 10m"
            )
        if outcome.exit_code != 0 and not has_room(self.home.logs_dir):
            return outcome._replace(kind="handed_back", reason="the disk of its output is full")
        if outcome.exit_code == EXIT_NOT_FOUND:
            own = os.environb.get(b"PATH", b"").decode("utf-8", "replace")
            path = (job.env or {}).get("PATH") or own
            return outcome._replace(
                reason=f"exit code 127; a command was not found with PATH {path}; "
                "keep the caller's with: enqueue --env PATH"
            )
        return outcome

    def _tell(self, turn: Turn, done: tuple[Job, Outcome] | None) -> None:
        """Say how an attempt ended, and wake whoever may now have something to do."""
        job = turn.reported
        if job is not None:
            self.say(self._describe(job))
            if died := turn.died:
                some = ", ".join(died[:FOLLOWERS_SAID])
                self.say(f"{say_count(len(died), 'job')} waiting for it died with it: {some}")
            if job.state in WAITING:
                self.file.wake()  # the main thread has a new time to wait for
        elif done is not None:
            self.say(f"{done[0].id}: its report was dropped, the queue no longer knows this run")
        if turn.frees:
            self._call_slots()
            self.home.wake_workers(but=self.name)

    # -- Recovery and the trimming of logs: a thread of their own, since either may take long

    def _recover_and_trim(self) -> None:
        """A thread: recover the jobs of dead workers and trim the logs, every RECOVERY_S."""
        self._prepared.wait()
        recovery = Recovery(self.store, self.name, self.say)
        while not self._leaving.is_set():
            self._attend("recovery fails", recovery.step)
            self._attend("a log cannot be trimmed", self._trim_logs)
            self._leaving.wait(FENCE_POLL_S if recovery.is_ending else RECOVERY_S)

    def _attend(self, chore: str, do: Callable[[], None]) -> None:
        """Do a chore. If it fails, also by a fault of ours, that is shown as trouble, and it is
        tried again next time."""
        try:
            do()
            self._set_trouble(chore, None)
        except Exception as error:
            self._set_trouble(chore, error)

    def _trim_logs(self) -> None:
        most = self.home.last_config.log_max
        whole = [log.trim(most) for log in list(self._slots.values())]
        if not all(whole):
            self._say_once(
                "Warning: this system cannot free the beginning of a file: "
                "a log above log_max is truncated, and what it held is lost."
            )


def _say_why(error: Exception | str) -> str:
    """What went wrong, in words."""
    if isinstance(error, QueueError | HostFault | OSError | str):
        return str(error)
    return f"a fault in the worker, please report it: {error!r}"


class Orphan(NamedTuple):
    """A run that a dead worker left."""

    trace: Trace
    job: Job | None  # None for a hook: once its run is gone, nothing is left to do
    excused: bool  # the worker was stopping, or the machine was restarted: not the job's fault
    has_begun: bool  # its worker wrote down that it did


class Recovery:
    """Ends the runs that dead workers left, and gives their jobs back; with `ids`, only those jobs.

    A dead worker's file is locked for one step only, so that another process can take over: this
    one cannot end a run that is another user's, or that one of its own ancestors belongs to.

    step          one look for dead workers, and one step of the fence of each run that they left
    is_ending     whether the next step may soon find a run gone
    """

    def __init__(self, store: Store, own: str, say: Say, ids: Names | None = None) -> None:
        self.store, self.own, self.say, self.ids = store, own, say, ids
        self.fences: dict[str, Fence] = {}  # by the run's mark
        self.is_ending = False

    def step(self) -> None:
        """One look for dead workers, and one step of the fence of each run that they left."""
        self.is_ending = False
        named = {job.worker or "" for job in list(self.store.processing.values())}
        names = {*named, *self.store.home.worker_names()} - {self.own}
        _each(names, self._step_worker)

    def _step_worker(self, name: str) -> None:
        """Step the fences of a worker if it is dead; its files go once it has no run left."""
        lock_fd = self.store.home.lock_dead_worker(name)
        if lock_fd is None:
            return
        try:
            orphans = _orphans_of(self.store, name)
            ids = self.ids
            chosen = [one for one in orphans if ids is None or (one.job and one.job.id in ids)]
            _each(chosen, self._step_run)
            is_over = self.fences.keys().isdisjoint(one.trace.mark for one in chosen)
            if is_over and chosen == orphans:
                sweep_slot_logs(self.store.home.logs_dir, name)
                self.store.home.forget_worker(name)
        finally:
            close_fd(lock_fd)

    def _step_run(self, orphan: Orphan) -> None:
        trace, job, config = orphan.trace, orphan.job, self.store.home.config()
        new = Fence(trace, time.monotonic() + config.grace_period)
        fence = self.fences.setdefault(trace.mark, new)
        # What SIGKILL did not end may live for long, or only another user may end it.
        self.is_ending |= fence.kills < KILLS_MAX
        if not fence.step():
            return
        if job is not None:
            keep_orphan_log(trace.logs, config.log_max, orphan.has_begun)
            back = recover(self.store, job, orphan.excused)
            if back is not None:
                self.say(f"{job.id} recovered: {back.reason}; it is {back.state} now")
        del self.fences[trace.mark]  # at the end, so that what failed before is tried again


def _each(things: Iterable[Any], do: Callable[[Any], None]) -> None:
    """Do it with each. One that fails holds up no other (F5); the last failure is raised."""
    failed: Exception | None = None
    for thing in things:
        try:
            do(thing)
        except (QueueError, OSError) as error:
            failed = error
    if failed is not None:
        raise failed


def _orphans_of(store: Store, name: str) -> list[Orphan]:
    """The runs that a dead worker left: of its processing jobs, and of the hooks in its rows."""
    info = store.home.read_worker(name)
    with store.transaction():  # a look under the lock; the worker is dead and writes no more
        jobs = [job for job in store.processing.values() if job.worker == name]
    hooks = [_orphan_in(store, info, row, (), None) for row in info.rows if row.get("hook")]
    return [_orphan_of(store, info, job) for job in jobs] + hooks


def _orphan_of(store: Store, info: WorkerInfo, job: Job) -> Orphan:
    """The orphan of a job. Its worker may have died before it wrote the row."""
    run = {"job": job.id, "run": job.runs}
    row = next((row for row in info.rows if run.items() <= row.items()), run)
    slot_log = slot_log_path(store.home.logs_dir, info.name, job.slot or 0)
    logs = (slot_log, log_path(store.home.logs_dir, job.id, job.runs))
    return _orphan_in(store, info, row, logs, job)


def _orphan_in(store: Store, info: WorkerInfo, row: Fields, logs: Words, job: Job | None) -> Orphan:
    """The orphan in a row. After a reboot, and in a copied home, the row's session says nothing."""
    lock_id, header = store.home.lock_id(), info.header
    mark = run_mark(lock_id, info.name, row["job"], row["run"], row.get("hook", ""))
    trace = Trace(mark, logs)
    rebooted = header.get("boot_id", boot_id()) != boot_id()
    if header.get("lock") == lock_id and not rebooted:
        trace = trace._replace(session=row.get("session"), start_s=row.get("start"))
    excused = rebooted or bool(header.get("stopping"))
    return Orphan(trace, job, excused, "session" in row)


def processes_of(store: Store, job: Job) -> list[str]:
    """The live processes of a job's run and their users, for `show`: `4711 of root`; [] if the job
    is not processing."""
    if job.state != "processing":
        return []
    info = store.home.read_worker(job.worker or "")
    fence = Fence(_orphan_of(store, info, job).trace, inf)
    fence.look()
    return [f"{pid} of {user_of(pid)}" for pid in fence.living]


def recover_now(store: Store, ids: Names, say: Say) -> None:
    """Recover those of these jobs whose worker is dead, if that does not take long. For a process
    that is no worker."""
    recovery = Recovery(store, "", say, ids)
    recovery.step()
    while recovery.is_ending:
        time.sleep(FENCE_POLL_S)
        recovery.step()


# ======== 11. PRESENTATION ========
# Turns records into text: values in, strings out. This section prints nothing and reads nothing.
# Lists show relative times; `show` and `--json` have exact ones. Text for a person is cleaned, so
# that neither a command nor an id can drive the terminal.

PAUSED = "THE QUEUE IS PAUSED: no job starts. Go on with: queuectl resume"
SILENT_S = 10  # a worker that shows no sign of life for longer is reported
_STYLES = {  # of the states and of other text: the terminal's codes
    "pending": 36, "processing": 34, "completed": 32, "failed": 33, "dead": 31,
    "bold": 1, "warning": 33,
}  # fmt: skip


def clean(text: str) -> str:
    """The text with every control character (also the bidirectional ones) as a visible escape."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def paint(text: str, style: str) -> str:
    """The text in a style. Click removes the style where it prints to no terminal."""
    return f"\033[{_STYLES[style]}m{text}\033[0m"


def paint_state(state: str) -> str:
    """A state in its colour, as a column."""
    return paint(f"{state:<10}", state)


def say_duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min`, `2 h`, `5 d`."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{round(seconds, 1 if seconds < 10 else 0):g} s"


def say_when(instant: str, now: str) -> str:
    """`3 min ago`, `in 12 s`."""
    seconds = instant_s(instant) - instant_s(now)
    said = say_duration(abs(seconds))
    return f"in {said}" if seconds > 0 else f"{said} ago"


_PARTS = r"\033\[\d+m|."  # a change of colour, or a character


def cut(line: str, width: float) -> str:
    """The line, cut where it would reach a terminal's last column. A pipe is infinitely wide."""
    if width == inf:
        return line
    parts = re.findall(_PARTS, line)
    for count, end in enumerate(accumulate(map(_width_of, parts))):
        if end >= width:
            return "".join(parts[:count]) + "\033[0m…"
    return line


def _width_of(part: str) -> int:
    """How many columns of a terminal a character takes; a change of colour takes none."""
    if part.isascii():
        return 1 if len(part) == 1 else 0
    import unicodedata

    return 2 if unicodedata.east_asian_width(part) in "WF" else 1


Row = tuple[str, str]  # an id, and the rest of its line
TABLE_ROWS = 200  # the widest id in the first 200 rows sets the width of the first column


def table(rows: Iterable[Row], width: float) -> Iterator[str]:
    """At least one row, as lines with aligned columns. The ids get at most a third of a terminal's
    width; a longer id is cut."""
    rest = iter(rows)
    first = list(islice(rest, TABLE_ROWS))
    widest = max(len(id) for id, _ in first)
    id_width = int(max(12, min(widest, width / 3)))
    for id, text in chain(first, rest):
        if len(id) > id_width and width < inf:
            id = id[: id_width - 1] + "…"
        yield cut(f"{id:<{id_width}}  {text}", width)


JOB_HEAD: Row = ("id", "state       attempts         when  command")
DEAD_HEAD: Row = ("id", "attempts  outcome                       when  last output")


def job_row(job: Job, now: str, waits_for: Names = ()) -> Row:
    """One job of a list: id, state, attempts, when, what it waits for, command."""
    when = job.run_at if job.state in WAITING and job.run_at else job.updated_at
    made = f"{job.attempts}/{max(1, job.max_retries)}"
    row = f"{paint_state(job.state)}  {made:>8}  {say_when(when, now):>11}"
    why = " ".join(waits_for).strip() or ("held" if job.held else "")
    what = "  ".join(filter(None, (why, job.command)))
    return clean(job.id), f"{row}  {clean(what)}"


def say_state(job: Job, now: str) -> str:
    """`pending for 2 h`, `failed, attempt 2 of 3 in 4 s`, `processing, attempt 1 of 3 for 12 s`."""
    made = f", attempt {job.attempts} of {max(1, job.max_retries)}" if job.attempts else ""
    since_s = instant_s(now) - instant_s(job.updated_at)
    when = say_when(job.run_at, now) if job.run_at else f"for {say_duration(since_s)}"
    return f"{job.state}{made} {when}"


def dead_row(job: Job, last_output: str, now: str) -> Row:
    """One dead letter: id, attempts, last outcome, when, last line of output."""
    why = clean(job.reason or "")
    if job.outcome and not job.cancelled_at:
        why = describe_outcome(Outcome(job.outcome, job.exit_code, job.signal))
    elif has_died_after(job):
        why = "after a dead job"
    row = f"{job.attempts:>8}  {why:<21.21}  {say_when(job.finished_at or now, now):>11}"
    return clean(job.id), f"{row}  {clean(last_output) or '(no output)'}"


def paint_line(line: str) -> str:
    """A line of a worker. If it says how an attempt ended, the state is in its colour."""
    end = "(?<= )(completed|failed|dead)(?=[ :])"
    return re.sub(end, lambda state: paint(state[0], state[0]), line, count=1)


def attempt_line(job: Job) -> str:
    """The line in which a worker says how an attempt ended."""
    if job.state == "completed":
        took_s = instant_s(job.updated_at) - instant_s(job.started_at or job.updated_at)
        return f"{job.id} completed in {took_s:.2f} s"
    if job.state == "failed":
        why = (job.reason or "").partition(";")[0]  # `show` has the rest
        wait_s = instant_s(job.run_at or job.updated_at) - instant_s(job.updated_at)
        made = f"attempt {job.attempts} of {job.max_retries}"
        return f"{job.id} failed ({made}: {why}), again in {round(wait_s, 2):g} s"
    state = "handed back" if job.state == "pending" else job.state
    return f"{job.id} {state}: {job.reason}"


def job_page(job: Job, why: str | None, processes: Names, now: str) -> str:
    """One job whole, for a person: its fields, its attempts, and why it is not running."""
    fields = job_to_dict(job._replace(history=None))
    fields |= {"now": why, "processes": processes or None}
    rows = []
    for name, value in fields.items():
        text = say_value(value)
        if name in JOB_FIELDS and name.endswith("_at"):
            text = f"{say_instant(value)}  ({say_when(value, now)})"
        if value is not None:
            rows.append(f"{clean(name) + ':':<14} {text}")
    rows += [clean(_attempt_row(entry)) for entry in job.history or ()]
    return "\n".join(rows)


def _attempt_row(entry: Fields) -> str:
    known = collections.defaultdict(str, entry)  # after a hand edit it may lack some
    kind: Any = str(known["outcome"])
    outcome = Outcome(kind, entry.get("exit_code"), entry.get("signal"))
    known["how"] = describe_outcome(outcome)
    with suppress(StoreError, TypeError):
        took_s = instant_s(known["finished_at"]) - instant_s(known["started_at"])
        known["when"] = f"{say_instant(known['started_at'])}, took {say_duration(took_s)}"
    return "attempt {attempt} (run {run}): {how}, {when}".format_map(known)


def status_page(view: Fields, now: str) -> str:
    """Counts, workers and what waits, for a person."""
    rows = [paint(PAUSED, "warning")] if view["paused"] else []
    for state, count in view["jobs"].items():
        rows.append(f"{paint(state, state)}: {count}")
    rows += [*say_workers(view), *(f"  {worker_line(worker)}" for worker in view["workers"])]
    if is_work_left_alone(view, now):
        advice = "JOBS ARE DUE and no worker is running. Start one with: queuectl worker start"
        rows.append(paint(advice, "warning"))
    rows += say_waiting(view, now)
    settings = [
        f"{key}={say_value(value)}"
        for key, value in view["config"].items()
        if value != DEFAULTS[key]
    ]
    rows += [f"home: {clean(view['home'])}", f"settings: {', '.join(settings) or 'the defaults'}"]
    return "\n".join(rows)


def say_workers(view: Fields) -> Iterator[str]:
    """`workers: 4`, the threads of all live workers; `processes: 2` if several workers live."""
    live = [worker["threads"] for worker in view["workers"] if not worker["dead"]]
    yield f"workers: {sum(live)}"
    if len(live) > 1:
        yield f"processes: {len(live)}"


def say_waiting(view: Fields, now: str) -> Iterator[str]:
    """How long the oldest job has waited, and when the next one becomes due."""
    if view["oldest_pending_s"] is not None:
        yield f"oldest waiting job: {say_duration(view['oldest_pending_s'])}"
    if view["held"]:
        yield f"held: {view['held']}"
    if view["next_run_at"] is not None:
        yield f"next retry or delayed job: {say_when(view['next_run_at'], now)}"


def worker_line(worker: Fields) -> str:
    """One worker: name, pid, threads, what it runs, and what is wrong with it."""
    runs = ", ".join(row["job"] for row in worker["running"]) or "nothing"
    if worker["dead"]:
        return clean(f"{worker['name']}  pid {worker['pid']}, dead, ran {runs}")
    threads = say_count(worker["threads"], "thread")
    line = f"{worker['name']}  pid {worker['pid']}, {threads}, runs {runs}"
    if takes := [*worker["tags"], *(f"not {tag}" for tag in worker["not_tags"])]:
        line += f", takes {' '.join(takes)}"
    if worker["stopping"]:
        line += "; stopping"
    if worker["overload"]:
        line += f"; starts nothing, since {worker['overload']}"
    if worker["trouble"]:
        line += f"; TROUBLE: {worker['trouble']}"
    if worker["silent_s"] > SILENT_S:
        line += f"; silent for {say_duration(worker['silent_s'])} (stopped, or the machine slept)"
    return clean(line)


def say_value(value: object) -> str:
    """A field or a setting as a person writes it, cleaned."""
    return clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def as_json(value: object) -> str:
    """One JSON value for stdout, on lines that a person can read too."""
    return json.dumps(value, indent=2, ensure_ascii=False)


# -- The figures of `stats`


def stats_page(view: Fields, now: str) -> str:
    """The figures for a person: totals, quantiles and small histograms; one line a group."""
    since = say_when(view["since"], now) if view["since"] else "the beginning"
    rate, speed = view["success_rate"], view["jobs_per_s"]
    rows = [
        f"since:           {since}",
        f"completed:       {view['completed']}",
        f"failed attempts: {view['failed_attempts']}",
        f"dead:            {view['dead']} ({view['cancelled']} of them cancelled)",
        f"held:            {view['held']}",
        f"success rate:    {'-' if rate is None else f'{100 * rate:.1f}%'}",
        f"jobs a second:   {'-' if speed is None else f'{speed:g}'}",
        "",
        _columns_of("", *QUANTILES),
    ]
    for name in ("wait", "run"):
        times = view[f"{name}_s"]
        rows += [f"{name + ' time':<9} {_say_quantiles(times)}", *_bars(times["histogram"])]
    if by := view.get("by"):
        names = ("completed", "failed", "dead", "run p50", "p95", "p99")
        rows += ["", f"{_columns_of(*names)}  {by}"]
        for group in view["groups"]:
            counts = _columns_of(group["completed"], group["failed_attempts"], group["dead"])
            times = _say_quantiles(group["run_s"])
            rows.append(f"{counts}{times}  {clean(group[by]) or '(none)'}")
    return "\n".join(rows)


def _columns_of(*values: object) -> str:
    return "".join(f"{value:>10}" for value in values)


def _say_quantiles(times: Fields) -> str:
    values = [times[name] for name in QUANTILES]
    return _columns_of(*("-" if value is None else f"{value:g} s" for value in values))


def _bars(histogram: Sequence[Fields]) -> Iterator[str]:
    """A histogram's lines: `   up to 1 s  ########## 12`."""
    most = max(bar["count"] for bar in histogram) or 1
    for bar in histogram:
        bound = "longer" if bar["le"] is None else f"up to {bar['le']:g} s"
        yield f"{bound:>14}  {'#' * ceil(40 * bar['count'] / most)} {bar['count']}"


_GAUGES = ("completed", "failed_attempts", "dead", "cancelled", "success_rate", "jobs_per_s")


def stats_as_prometheus(view: Fields) -> str:
    """The figures for Prometheus' textfile collector; gauges, since a purge lowers them."""
    by = view.get("by")
    parts = {_label(by, group[by]): group for group in view["groups"]} if by else {"": view}
    states = [f'{{state="{state}"}} {count}' for state, count in view["jobs"].items()]
    rows = [*_family("jobs", states), *_family("workers", [f" {view['workers']}"])]
    rows += _family("held", [f" {view['held']}"])
    for name in _GAUGES:
        rows += _family(name, [f"{{{label}}} {part[name]}" for label, part in parts.items()])
    for name in ("wait", "run"):
        samples = []
        for label, part in parts.items():
            times = part[f"{name}_s"]
            samples += [f"_sum{{{label}}} {times['sum']}", f"_count{{{label}}} {times['count']}"]
            for key, share in QUANTILES.items():
                samples.append(f'{{quantile="{share}",{label}}} {times[key]}')
        rows += _family(f"{name}_seconds", samples, "summary")
    return "\n".join(rows)


def _label(key: str, text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{key}="{escaped}"'


def _family(name: str, samples: Iterable[str], kind: str = "gauge") -> Iterator[str]:
    """The lines of one metric; figures that are None are left out."""
    yield f"# HELP queuectl_{name} The {name.replace('_', ' ')}: see queuectl stats --help."
    yield f"# TYPE queuectl_{name} {kind}"
    yield from (f"queuectl_{name}{sample}" for sample in samples if not sample.endswith(" None"))


# -- The live screen of `status --watch`


def watch_frame(
    view: Fields, failed: Sequence[Row], columns: int, rows: int, now: str
) -> list[str]:
    """The live screen: at most `rows` lines of at most `columns` columns, the most important first.
    `failed` has the rows of the last failures."""
    lines = list(_watch_head(view, columns, now))
    running = [job_row(job, now) for job in view["running"]]
    for title, part in (("last failures", failed), ("running", running)):
        if part:
            lines += ["", paint(title, "bold"), *table(part, columns)]
    return [cut(line, columns) for line in lines[:rows]]


def _watch_head(view: Fields, columns: int, now: str) -> Iterator[str]:
    """The part above the lists: counts with bars, throughput, what waits, workers in trouble."""
    yield f"{paint('queuectl', 'bold')} {clean(view['home'])}  {say_instant(now)[11:19]}  q ends"
    if view["paused"]:
        yield paint(PAUSED, "warning")
    most = max(*view["jobs"].values(), 1)
    for state, count in view["jobs"].items():
        bar = "█" * ceil((columns - 24) * count / most)
        yield f"{paint_state(state)}  {count:>9,}  {paint(bar, state)}"
    recent = view["rates"][-10:]
    speed = f"{sum(recent) / len(recent):.1f} jobs/s"
    spark = paint(_spark(view["rates"]), "completed")
    yield f"throughput  {paint(speed, 'bold')}  {spark}"
    yield "   ".join([*say_workers(view), *say_waiting(view, now)])
    for worker in view["workers"]:
        if worker["trouble"] or worker["silent_s"] > SILENT_S:
            yield paint(worker_line(worker), "dead")


def _spark(rates: Sequence[float]) -> str:
    """A column for each rate, the newest on the right."""
    most = max(rates) or 1
    # The inner parentheses matter: 7 * rate / most may be above 7.
    return "".join("▁▂▃▄▅▆▇█"[ceil(7 * (rate / most))] for rate in rates)


def watch_line(view: Fields, now: str) -> str:
    """The live screen in one line, for a pipe: time, the five counts, jobs a second."""
    counts = ", ".join(f"{count} {state}" for state, count in view["jobs"].items())
    paused = ", PAUSED" if view["paused"] else ""
    return f"{now}  {counts}, {view['rates'][-1]:.1f} jobs/s{paused}"


# ======== 12. COMMANDS ========
# The command line: take arguments, call one operation, present, exit. This is the only section that
# knows Click, prints, and waits for a person's sake. It decides nothing about jobs. A command
# returns its exit code (None: 0).

POLL_S = 0.03  # between two looks of a command that waits


def _say(text: str) -> None:
    """Print a message to the person on stderr."""
    _print_message("\n".join(map(clean, text.split("\n"))))


def _print_message(text: str, color: bool | None = None) -> None:
    """Print a text on stderr. If stderr is closed or full, nothing happens."""
    with suppress(OSError, ValueError):
        echo(text, err=True, color=color)


def _echo_all(lines: Iterable[str]) -> None:
    """Print lines, many at a time, since Click flushes after every call."""
    rest = iter(lines)
    while piece := list(islice(rest, 200)):
        echo("\n".join(piece))


MADE = "queuectl.made"  # in Click's context: what this command has changed so far


def _keep_made(made: str) -> None:
    """From here on, the message about an error or Ctrl+C says that this change was made."""
    click.get_current_context().meta[MADE] = made


def _done(store: Store, lines: list[str], made: str = "") -> None:
    """Put a stored change on the disk, then print what is now true. If that fails, the error
    message describes the change as `made` does (default: as the first three lines do)."""
    _keep_made(made or " ".join(lines[:3]))
    store.fold_or_sync()
    _tell(store, lines)


def _tell(store: Store, lines: Iterable[str]) -> None:
    """Print what a change has made true, and then end if Ctrl+C came during the change."""
    store.home.is_changing = False
    _echo_all(lines)
    if store.home.is_interrupted:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: Any) -> None:
    """Ctrl+C ends a command at once. If the command is making a change, it first prints what it
    has changed."""
    ctx = click.get_current_context(silent=True)
    store = ctx.find_object(Store) if ctx else None
    if store is None or not store.home.is_changing:
        raise KeyboardInterrupt
    store.home.is_interrupted = True


class Group(click.Group):
    """The command group. It turns every error into an exit."""

    def main(self, *args: Any, **more: Any) -> Any:
        """Like Click's own, but the exit code is right even if help or an error cannot be
        printed."""
        try:
            code = super().main(*args, **{**more, "standalone_mode": False}) or 0
        except click.ClickException as error:
            code = error.exit_code
            if isinstance(error, click.NoSuchOption):
                import difflib

                # Some of Click's hints have little in common with the option but its dashes.
                hints = error.possibilities or ()
                likely = difflib.get_close_matches(error.option_name, hints, cutoff=0.7)
                error.possibilities = likely  # type: ignore[misc]
            if not isinstance(error, NoArgsIsHelpError):  # its text is a page of help
                error.message = clean(error.message)  # type: ignore[misc]  # it repeats what was typed
            with suppress(OSError):
                error.show()
        except (OSError, click.Abort) as error:
            code = _fail(error, "")
        sys.exit(code)

    def invoke(self, ctx: Context) -> Any:
        """Like Click's own, but an error also says what the command had changed before, and a
        person at a terminal is told if there is no queue yet."""
        try:
            code = super().invoke(ctx)
            is_told = sys.stderr.isatty() and ctx.invoked_subcommand != "completion"
            if is_told and not os.path.exists(ctx.obj.home.path):
                _say(f"There is no queue at {ctx.obj.home.path} yet.")
            return code
        except (QueueError, OSError, KeyboardInterrupt, click.Abort) as error:
            return _fail(error, ctx.meta.get(MADE, ""))


def _fail(error: BaseException, made: str) -> int:
    """Say what ended a command, and what it had changed by then. Gives the exit code."""
    change = f"The change was made before that: {made}" if made else ""
    match error:
        case QueueError(exit_code=code):
            text = str(error).replace(" Nothing was changed.", "") if made else error
            _say(f"Error: {text} {change}".rstrip())
            return code
        case OSError(filename=str() | bytes() as name):
            _say(f"Error: {storage_error(error, os.fsdecode(name))} {change}".rstrip())
            return EXIT_STORAGE
        case BrokenPipeError():
            if made:
                _say(f"Error: Nobody read the result. {change}")
            return EXIT_REFUSED
        case OSError(strerror=why):
            _say(
                f"Error: The result could not be printed: {why}. {change or 'Nothing was changed.'}"
            )
            return EXIT_STORAGE
    _say(f"\nInterrupted. {change}" if made else "")  # the cursor stands behind "^C"
    return 130


def find_home(given: str | None) -> str:
    """`--home`, else QUEUECTL_HOME, else the directory of this file where it is a checkout, else
    the user's own."""
    if given:
        return given
    home = os.path.expanduser(os.environ.get("QUEUECTL_HOME", ""))
    if os.path.isabs(home):
        return home
    if home:
        raise BadValue(
            f"QUEUECTL_HOME is '{home}', a relative path. Give an absolute one, or --home DIR."
        )
    here = os.path.dirname(__file__)
    marks = {"config.json", "jobs.json", "dlq.json", ".queuectl"}
    return here if marks.intersection(os.listdir(here)) else click.get_app_dir("queuectl")


def duration(text: str) -> float:
    """A duration in seconds, as the type of an option."""
    try:
        return parse_duration(text)
    except BadValue as error:
        raise click.BadParameter(str(error)) from error


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """The type of an option. An error names its bounds, help does not."""

    def integer(text: str) -> int:
        kind = click.IntRange(low, high)
        kind.name = "whole number"  # so that the error calls it
        return int(kind(text))

    return integer


def _positive(text: str) -> float:
    """A type of Click's: a number above 0."""
    number = float(click.FLOAT(text))
    if not number > 0:  # also NaN
        raise click.BadParameter("Give a number above 0.")
    return number


_COMPLETES = {  # states of the jobs that a command takes; a command not listed takes all
    "cancel": (*WAITING, "processing"),
    "retry": ("failed", "dead"),
    "edit": WAITING,
    "hold": WAITING,
    "release": WAITING,
    "dlq": ("dead",),
}


def _complete_ids(ctx: Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The ids that begin with the word, of jobs that the command takes. If the queue cannot be
    read, there are none."""
    states = _COMPLETES.get(ctx.command_path.split()[1], STATES)
    try:
        store = open_store(find_home(ctx.find_root().params.get("home")), lambda text: None)
        store.read()
        return newest_ids(store, incomplete, states)
    except (QueueError, OSError):
        return []


_switch = partial(option, is_flag=True)
_one_of = partial(click.Choice, case_sensitive=False)

# What several commands take.
PATH = click.Path(readable=False)  # for completion in the shell; Click does not check the path
_store = click.make_pass_decorator(Store)
_ids = argument("ids", nargs=-1, required=True, metavar="ID...", shell_complete=_complete_ids)
_some_ids = argument("ids", nargs=-1, metavar="[ID]...", shell_complete=_complete_ids)
_json = _switch("--json", "in_json", help="Print one JSON value.")
_match = option("--match", help="Only jobs whose id or command contains TEXT.")
_limit = option("-n", "--limit", type=whole_number(0, SEQ_MAX), metavar="N", help="At most N jobs.")
_tags = option("--tag", "tags", multiple=True, help="Only jobs with that tag (repeatable).")
_yes = _switch("--yes", help="Do not ask.")
_timeout = option(
    "--timeout", type=duration, default=DURATION_MAX_S, help="Give up after that time. [never]"
)
_older_than = option(
    "--older-than", type=duration, help="Only jobs that have been over for that long."
)


def _check_ids_or_all(ids: Words, every: bool) -> None:
    if bool(ids) == every:
        raise UsageError("Give job ids, or --all.")


# If no command or option has the name that was typed, Click looks for one of these.
SYNONYMS = {
    "metrics": "stats", "list": "show", "clear": "purge", "delete": "purge",
    "detached": "detach", "daemon": "detach", "background": "detach",
}  # fmt: skip


@click.group(
    cls=Group,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda word: SYNONYMS.get(word, word.replace("_", "-")),
    },
)
@option("--home", type=PATH, help="The queue's directory (else QUEUECTL_HOME).")
@click.version_option(__version__, prog_name="queuectl")
@click.pass_context
def cli(ctx: Context, home: str | None) -> None:
    """Run shell commands in the background, with retries and a dead letter queue.

    \b
    Example:
      queuectl enqueue 'tar c /srv | gzip > /backup/srv.tgz'
      queuectl worker start
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False
    elif os.environ.get("FORCE_COLOR"):
        ctx.color = True
    if home == "":
        raise UsageError("--home is empty. Give a directory.")
    ctx.obj = open_store(find_home(home), lambda text: _say(f"Warning: {text}"))


# -- enqueue


class EnqueueCommand(click.Command):
    """Lets options follow a job in JSON, and finds out what Click's parser does not tell: whether
    `--` stood before the words, and whether a key was given as `--unique=KEY`."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        given = self.make_parser(ctx).parse_args(list(args))[0]
        words = "" if "each" in given else given.get("words")
        ctx.allow_interspersed_args = isinstance(words, tuple) and bool(is_json(words[0]))
        rest = super().parse_args(ctx, list(args))
        words = ctx.params.get("words", ())
        before = args if ctx.allow_interspersed_args else args[: len(args) - len(words)]
        ctx.params["has_key"] = any(word.startswith("--unique=") for word in before)
        options = {name for param in self.get_params(ctx) for name in param.opts}
        if before[-1:] == ["--"]:
            return rest
        for word in words[1:]:
            name = word.partition("=")[0].replace("_", "-")
            if name.startswith("--") and name in options:
                raise UsageError(
                    f"'{word}' stands after the first word of the job, and would belong to it. Put "
                    "options of enqueue before all words. If a word of the job looks like such an "
                    "option, put -- before all words."
                )
        return rest


# The options that enqueue, edit and `dlq retry` share: they say what a job is.
_CHANGES = [
    Option(["--command"], help="The shell line, whatever it starts with."),
    Option(["--timeout"], type=duration, help="Time limit of each attempt; 0: none."),
    Option(["--max-retries"], type=int, help="Attempts in all, not only retries."),
    Option(["-p", "--priority"], type=int, help="Higher starts first."),
    Option(["--at"], metavar="WHEN", help="Start at: ISO 8601, HH:MM, +10m or now."),
    Option(["--run-at"], metavar="WHEN", help="The same as --at."),
    Option(["--delay"], type=duration, help="Wait that long before the first start."),
    Option(["--cwd"], type=PATH, help="The directory to run in."),
    Option(["--tag", "tags"], multiple=True, help="A tag (repeatable)."),
    Option(
        ["--env"],
        multiple=True,
        metavar="KEY[=VALUE]",
        help="A variable of the job; KEY alone copies yours.",
    ),
]


def _given_fields(now: str, given: Fields) -> Fields:
    """The fields of a job that options give, checked like those of JSON."""
    fields = {name: value for name, value in given.items() if value not in (None, ())}
    for name in ("run_at", "at"):
        if name in fields:
            fields["run_at"] = parse_instant(fields.pop(name), _option_of(name), now)
    if fields.keys() >= {"run_at", "delay"}:
        raise UsageError("Give --at or --delay, not both.")
    for name, parse_pair in (("env", _env_pair), ("needs", _need_pair)):
        if name in fields:
            fields[name] = dict(map(parse_pair, fields[name]))
    if (cwd := fields.get("cwd")) and not cwd.startswith("/"):
        fields["cwd"] = os.path.join(_here(), cwd)
    after_any = [{"id": id, "any": True} for id in fields.pop("after_any", ())]
    if after := [*fields.pop("after", ()), *after_any]:
        fields["after"] = after
    for name, value in fields.items():
        if value != MADE_KEY:
            fields[name] = NEW_JOB_CHECKS[name](value, _option_of(name))
    _warn_of(fields, now)
    return fields


def _option_of(field: str) -> str:
    """The option that gives a field, as an error names it."""
    one_of_many = {"tags": "--tag", "needs": "--need"}
    return one_of_many.get(field, f"--{field.replace('_', '-')}")


def _given_changes(store: Store, given: Fields) -> Fields:
    """The fields of an existing job that options change. `--tag ''` takes all tags away."""
    now = store.home.now()
    tags = list(filter(None, given["tags"])) if given["tags"] else None
    fields = _given_fields(now, {**given, "tags": tags})
    if "delay" in fields:
        fields["run_at"] = add_seconds(now, fields.pop("delay"))
    return fields


def _warn_of(fields: Fields, now: str) -> None:
    """Warn of a time or a directory that is accepted but may be a mistake."""
    if fields.get("run_at", now) < now:
        _say("That time is in the past: the job is due now.")
    if not os.path.isdir(cwd := fields.get("cwd", "/")):
        _say(f"Warning: '{cwd}' is not a directory. The job cannot start before there is one.")


def _need_pair(text: str) -> tuple[str, int]:
    name, has_count, count = text.partition("=")
    try:
        return name, int(count) if has_count else 1
    except ValueError:
        raise BadValue(f"'--need {text}' has no whole number behind '='. Give NAME=N.") from None


def _env_pair(text: str) -> tuple[str, str]:
    key, has_value, value = text.partition("=")
    if has_value:
        return key, value
    if key not in os.environ:
        raise BadValue(
            f"The variable '{key}' of --env is not in your environment. Give --env {key}=VALUE."
        )
    return key, os.environ[key]


def _here() -> str:
    """The current directory, checked as a job's `cwd`."""
    try:
        return str(parse_cwd(os.getcwd(), "current directory"))
    except (OSError, BadValue) as error:
        raise Refused(
            f"The current directory cannot be used ({error}). Give another: --cwd DIR."
        ) from error


@cli.command(
    cls=EnqueueCommand, params=[*_CHANGES], context_settings={"allow_interspersed_args": False}
)
@argument("words", nargs=-1, metavar="JOB...", shell_complete=PATH.shell_complete)
@option("--id", help="Its id. [one is made]")
@option(
    "--after", multiple=True, metavar="ID", help="Start when that job is completed (repeatable)."
)
@option(
    "--after-any", multiple=True, metavar="ID", help="Start when that job is over (repeatable)."
)
@option(
    "--need",
    "needs",
    multiple=True,
    metavar="NAME[=N]",
    help="Hold N units of NAME while it runs (repeatable). [1]",
)
@_switch("--hold", "held", default=None, help="Start it only after 'release'.")
@option("--no-retry-on", metavar="CODES", help="Exit codes that are not retried: 2,64-78.")
@option(
    "--unique",
    is_flag=False,
    flag_value=MADE_KEY,
    metavar="[KEY]",
    help="Add nothing while a job with KEY is active.",
)
@option("--file", type=click.File("rb"), help="One job a line, - for stdin; all or nothing.")
@_switch("--stream", help="Jobs from stdin, each accepted as its line comes.")
@option("--each", metavar="TEMPLATE", help="A job per argument, or per line of --file.")
@_switch("--wait", "wait_", help="Print its output as it comes; exit with its code.")
@_json
@_store
def enqueue(
    store: Store,
    /,
    words: Words,
    file: IO[bytes] | None,
    stream: bool,
    wait_: bool,
    in_json: bool,
    each: str | None,
    has_key: bool,
    **given: Any,
) -> int:
    """Add a job and print its id.

    The job is on disk by then. JOB is one word (a shell line, or JSON where it starts with '{'),
    or several words, kept word for word. With --each, every argument (or line of --file) makes a
    job: in TEMPLATE, {} is the argument, {/} its base name, {.} the argument without its extension,
    {/.} both, {#} its number from 1. Each is quoted for sh, and refused inside quotes. Defaults are
    the settings max_retries, job_timeout and keep_env, and the current directory.

    \b
    Examples:
      queuectl enqueue 'tar c /srv | gzip > /backup/srv.tgz'
      queuectl enqueue '{"id":"job1","command":"echo test"}'
      queuectl enqueue --priority 5 -- rsync -a "my dir" host:
      queuectl enqueue --each 'convert {} {/.}.png' -- photos/*.jpg
    """
    has_given_key = given["unique"] not in (None, MADE_KEY)
    if each is not None and any((given["id"], given["command"], has_given_key, wait_, stream)):
        raise UsageError(
            "--each adds several jobs. Leave out --id, --unique=KEY, --wait, --stream, --command."
        )
    sources = sum(map(bool, (words, given["command"], file, stream)))
    if sources > 1:
        raise UsageError("Give the job once: as words, with --command, --file or --stream.")
    if wait_ and any((in_json, stream, file)):
        raise UsageError("Give --wait without --file, --stream and --json: it prints output.")
    if stream and in_json:
        raise UsageError("Give --stream or --json, not both.")
    if has_given_key and not any((sources, has_key)):
        words, given["unique"] = (given["unique"],), MADE_KEY
    now = store.home.now()
    options = _given_fields(now, given)
    defaults = {"cwd": options.get("cwd") or _here(), "caller_env": os.environ, **options}
    if stream:
        return _enqueue_stream(store, defaults)
    if each is not None and sources:
        jobs = commands_of_each(each, _read_arguments(file) if file else words)
        _enqueue_all(store, jobs, defaults, in_json, "argument")
    elif file is not None:
        _enqueue_file(store, file, defaults, in_json)
    else:
        own = {} if "command" in options else _parse_words(words, now)
        fields = merge_fields(merge_fields(defaults, own), options)
        if wait_:
            return _enqueue_and_wait(store, fields)
        _enqueue_one(store, fields, in_json)
    if sys.stderr.isatty():
        _warn_without_worker(store)
    return 0


def _enqueue_one(store: Store, fields: Fields, in_json: bool) -> None:
    job, is_duplicate = enqueue_job(store, fields)
    if has_died_after(job):
        _say(f"Job {job.id} is dead from the start: {job.reason}.")
    record = job_to_dict(job)
    if is_duplicate:
        record["duplicate"] = True
    _done(store, [as_json(record) if in_json else job.id], f"job {job.id} is in the queue.")


def _enqueue_and_wait(store: Store, fields: Fields) -> int:
    """Add a job and print its output as it comes. Gives the exit code of the job."""
    job, _ = enqueue_job(store, fields)
    _done(store, [], f"job {job.id} stays in the queue. See it: queuectl logs {job.id} --follow")
    _say(job.id)
    job = _print_output(store, job, max(1, job.runs), inf)
    return _exit_as({job.id: job}, single=True)


def _parse_words(words: Words, now: str) -> Fields:
    """The fields of a job from the words of the command line."""
    import shlex

    if not words:
        raise UsageError(
            "Give a command: a shell line, a JSON object, or words (with --each, its arguments, as "
            "words or in a --file). See: queuectl enqueue -h"
        )
    if is_json(words[0]):
        hint = (
            " Put it in single quotes. An array needs --file. A shell line that begins like JSON "
            "needs --command."
        )
        fields = parse_spec(parse_json(" ".join(words), "The job", hint), now)
        _warn_of(fields, now)
        return fields
    return {"command": parse_command(shlex.join(words) if len(words) > 1 else words[0], "command")}


BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # Windows programs begin UTF-8 with it


def _enqueue_file(store: Store, file: IO[bytes], options: Fields, in_json: bool) -> None:
    """Add all jobs of a file or of stdin, or none."""
    data = file.read().removeprefix(BYTE_ORDER_MARK)
    lines: Sequence[Any] = data.split(b"\n")
    unit = "line"
    # A file that begins like this after its comments is one JSON value. No command begins so.
    if begin := re.match(rb"(?m)(?:\s|#.*\n)*(\[\s*[{\]]|[\[{]\s*$)", data):
        # The check of a field refuses bytes that are not UTF-8, and names the field.
        text = data[begin.start(1) :].decode("utf-8", "surrogateescape")
        value = parse_json(text, "The file", " Give one array of objects, or one job a line.")
        lines, unit = value if isinstance(value, list) else [value], "element"
    _enqueue_all(store, lines, options, in_json, unit)


def _read_arguments(file: IO[bytes]) -> list[str]:
    """All lines of a file as they are, even blank ones."""
    *lines, last = file.read().removeprefix(BYTE_ORDER_MARK).split(b"\n")
    lines += [last] if last else []  # the last line may lack its end
    return [line.decode("utf-8", "surrogateescape") for line in lines]


def _enqueue_all(
    store: Store, lines: Iterable[Any], options: Fields, in_json: bool, unit: str
) -> None:
    """Add all jobs or none, and print their ids."""
    bulk = enqueue_bulk(store, lines, options, in_json, unit)
    jobs = [
        {**json.loads(raw), **({"duplicate": True} if is_duplicate else {})}
        for raw, is_duplicate in bulk.records
    ]
    made = f"{len(bulk.ids)} jobs are in the queue."
    _done(store, [as_json(jobs)] if in_json else bulk.ids, made)


def _enqueue_stream(store: Store, options: Fields) -> int:
    """Accept each line of stdin as it comes and print its job's id. A line that is refused is
    reported, and makes the exit code 1 at the end."""
    code = 0
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            if fields := parse_job_line(line, store.home.now()):
                job, _ = enqueue_job(store, merge_fields(options, fields))
                _keep_made(f"job {job.id} is in the queue.")
                store.sync()  # a fold for each line would take ten times as long
                _tell(store, [job.id])
        except (BadValue, Refused) as error:
            code = EXIT_REFUSED
            _say(f"Error: In line {number}: {error}")
    store.fold_or_sync()
    return code


# -- list, show, status, logs, wait


def _jobs_named(store: Store, words: Names) -> list[Job]:
    """The jobs that a person names by id, or by a unique beginning or end of a made id."""
    store.read()
    return find_all(store, [whole_id(store, word, _say) for word in words])


@cli.command("list")
@option(
    "-s",
    "--state",
    "states",
    type=_one_of(STATES),
    multiple=True,
    help="Only jobs in that state (repeatable).",
)
@_tags
@_match
@_limit
@_switch("--reverse", help="The newest first.")
@_json
@_switch("--ids", "only_ids", help="Print the ids alone.")
@_store
def list_(
    store: Store,
    states: Words,
    tags: Words,
    match: str | None,
    limit: int | None,
    reverse: bool,
    in_json: bool,
    only_ids: bool,
) -> None:
    """List jobs, dead ones included, in order of arrival.

    \b
    Example:
      queuectl list --state failed --state dead
    """
    if in_json and only_ids:
        raise UsageError("Give --json or --ids, not both.")
    store.read()
    arrived = store.jobs(reverse, states or STATES)
    found = (job for job in arrived if matches(job, match, tags))
    jobs, now = islice(found, limit), store.home.now()
    if only_ids:
        _echo_all(job.id for job in jobs)
    else:
        is_terminal = sys.stdout.isatty()
        rows = (job_row(job, now, hindrance(store, job) if is_terminal else ()) for job in jobs)
        _print_jobs(jobs, JOB_HEAD, rows, in_json)


def _print_jobs(jobs: Iterable[Job], head: Row, rows: Iterator[Row], in_json: bool) -> None:
    """Print jobs as a JSON array, one a line, or their rows as a table. On a terminal the table has
    a head."""
    if in_json:
        echo(b"[" + b",\n".join(map(encode_job, jobs)) + b"]")
    elif first := next(rows, None):
        import shutil

        is_terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if is_terminal else inf
        _echo_all(table(chain([head] * is_terminal, [first], rows), width))
    elif sys.stderr.isatty():
        _say("No job matches.")


@cli.command()
@_ids
@_json
@_store
def show(store: Store, ids: Words, in_json: bool) -> None:
    """Show jobs whole, their attempts, and why they are not running.

    \b
    Example:
      queuectl show job1
    """
    _show_jobs(store, _jobs_named(store, ids), in_json)


def _show_jobs(store: Store, jobs: Sequence[Job], in_json: bool) -> None:
    """Print jobs whole: one as a JSON object, several as an array; or as pages."""
    if in_json:
        views = [job_to_dict(job) for job in jobs]
        echo(as_json(views[0] if len(views) == 1 else views))
        return
    pages = []
    for job in jobs:
        processes = processes_of(store, job)
        why = why_waiting(store, job, processes)
        pages.append(job_page(job, why, processes, store.home.now()))
    echo("\n\n".join(pages))


@cli.command("status")
@_switch("--check", help="Exit 1 when jobs are due and no worker is alive.")
@option(
    "--watch",
    type=duration,
    is_flag=False,
    flag_value="1",
    metavar="[SECONDS]",
    help="A live screen, redrawn every SECONDS. [1]",
)
@_json
@_store
def status_(store: Store, check: bool, watch: float | None, in_json: bool) -> None:
    """Show the counts, the workers and the settings.

    --watch shows bars per state, throughput, what runs and for how long, and the last failures,
    until q or Ctrl+C; in a pipe it prints one line each time.

    \b
    Example:
      queuectl status --watch
    """
    if watch is not None:
        if check or in_json:
            raise UsageError("--watch goes with neither --json nor --check.")
        _watch(store, max(watch, POLL_S))
        return
    view, now = status(store), store.home.now()
    echo(as_json(view) if in_json else status_page(view, now))
    if check and view["held"]:
        _say(f"{say_count(view['held'], 'held job')} left out, with all that comes after them.")
    if check and is_work_left_alone(view, now):
        raise Refused("Jobs are due and no worker is running. Start one: queuectl worker start.")


def _watch(store: Store, seconds: float) -> None:
    """Draw the live screen until a person ends it; in a pipe, print a line each time."""
    import shutil

    views = watch_queue(store)
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if not is_terminal or os.environ.get("TERM", "dumb") == "dumb":
        for view in views:  # without end
            echo(watch_line(view, store.home.now()))
            time.sleep(seconds)
    with _other_screen():
        for view in views:
            now = store.home.now()
            columns, rows = shutil.get_terminal_size()  # 80 and 24 if the terminal does not say
            failed = [dead_row(job, _last_output(store, job), now) for job in view["failed"]]
            text = "\033[K\n".join(watch_frame(view, failed, columns, rows, now))
            text = click.unstyle(text) if os.environ.get("NO_COLOR") else text
            # One write, so that a frame is never seen half drawn.
            frame = f"\033[H{text}\033[K\033[J"
            write_whole(1, frame.encode())
            ready, _, _ = select.select([0], [], [], seconds)
            keys = os.read(0, 64).lower() if ready else b" "
            # An arrow key sends more bytes than Escape. No byte at all: the terminal is gone.
            if b"q" in keys or keys in (b"", b"\x1b"):
                return


def _last_output(store: Store, job: Job) -> str:
    """The last line of output of a job's last run."""
    return last_line(log_path(store.home.logs_dir, job.id, job.runs))


@contextmanager
def _other_screen() -> Iterator[None]:
    """Show the terminal's other screen within the block, and restore the terminal at its end.
    Ctrl+Z does nothing meanwhile."""
    import termios
    import tty

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    mode = termios.tcgetattr(0)
    try:
        tty.setcbreak(0)  # keys are not echoed, and come at once
        write_whole(1, b"\033[?1049h\033[?25l\033[?7l")  # no cursor, no wrapping
        yield
    finally:
        with suppress(OSError, termios.error):  # the terminal may be gone
            write_whole(1, b"\033[?7h\033[?25h\033[?1049l")
            termios.tcsetattr(0, termios.TCSADRAIN, mode)


@cli.command("stats")
@option("--since", type=duration, help="Only what ended in that time.")
@option("--by", type=_one_of(["tag", "command"]), help="Count each tag or command too.")
@_json
@_switch("--prometheus", help="Print it for Prometheus' textfile collector.")
@_store
def stats_(
    store: Store, since: float | None, by: str | None, in_json: bool, prometheus: bool
) -> None:
    """Count what completed and failed, and how long it took.

    The wait time is that from enqueue to the first start. The success rate leaves out cancelled
    jobs; the number of dead jobs includes them. Jobs a second are counted from the first start to
    the last end. The times are those of a job's last five attempts.

    \b
    Example:
      queuectl stats --since 24h --by tag
    """
    if in_json and prometheus:
        raise UsageError("Give --json or --prometheus, not both.")
    view = stats(store, since, by)
    text = as_json(view) if in_json else stats_page(view, store.home.now())
    echo(stats_as_prometheus(view) if prometheus else text)


@cli.command()
@_some_ids
@option("--attempt", type=whole_number(1), metavar="N", help="Attempt N. [the newest run]")
@_switch("-f", "--follow", help="Print more as it comes, until the job is over.")
@_switch("--all", "every", help="With --follow: what runs and what starts, until Ctrl+C.")
@option("-n", "--tail", type=whole_number(0), metavar="N", help="Begin with the last N lines.")
@_switch("--path", "show_path", help="Print the file's path instead.")
@_store
def logs(
    store: Store,
    ids: Words,
    attempt: int | None,
    follow: bool,
    every: bool,
    tail: int | None,
    show_path: bool,
) -> None:
    """Print a job's output, byte for byte.

    With --follow, several jobs may be given. Their output comes in whole lines, each with
    the job's id and a space before it.

    A job that writes `> /dev/stderr` opens its log anew and so truncates it; `>&2` and `>>` do not.

    An output above `log_max` loses its oldest part. This command then begins at the next line and
    says on stderr how much is missing; `cat` of the file shows NUL bytes in its place.

    \b
    Examples:
      queuectl logs job1 --follow
      queuectl logs --follow --all
    """
    _check_ids_or_all(ids, every)
    if every or len(ids) > 1:
        if not follow or any((attempt, show_path)):
            raise UsageError("Follow several jobs with -f, without --attempt and --path.")
        _print_outputs(store, _jobs_named(store, ids), every, tail)
        return
    job = _jobs_named(store, ids)[0]
    run, last = job.runs, inf
    if attempt is not None:
        run = last = run_of_attempt(job, attempt)
    if run == 0 and not follow:
        _say(f"Job '{job.id}' has not run yet.")
    elif show_path:
        echo(_log_of(store, job, run)[0])
    else:
        _print_output(store, job, max(1, run), last if follow else 0, tail)


class Output:
    """Prints a job's output, from its run `run` on until its run `last` or the job is over. With a
    `tail` it begins with the last `tail` lines of `run`. With a `prefix` it prints whole lines,
    each after that text.

    print_new    print what has come
    job          the job as the last look found it
    """

    def __init__(
        self, store: Store, job: Job, run: int, last: float, tail: int | None, prefix: str = ""
    ) -> None:
        self.job = job
        self._store, self._run, self._last, self._prefix = store, run, last, prefix
        self._at = 0 if tail is None else tail_start(_log_of(store, job, run)[0], tail)
        self._rest = b""  # a line whose end has not come

    def _look(self) -> tuple[str, bool]:
        self._store.read()
        self.job = find_all(self._store, [self.job.id])[0]
        return _log_of(self._store, self.job, self._run)

    def print_new(self) -> bool:
        """Print what has come since the last call. Gives whether more may come."""
        while True:
            path, running = log = self._look()
            for offset, piece in read_log(path, self._at):
                # A slot's file serves run after run. What was read belongs to this run only if the
                # job's record, read after it, still names this slot and run.
                if running and self._look() != log:
                    break
                if offset > self._at:
                    left_out = offset - self._at
                    _say(f"{self._prefix}({left_out} bytes of output were left out here: log_max)")
                if offset != self._at:
                    self._end_line()
                self._at = offset + len(piece)
                self._write(piece)
            if running and self._look() != log:
                continue
            if running:
                return True
            self._end_line()
            if self._run >= min(self.job.runs, self._last):
                return self._run < self._last and self.job.state not in OVER
            self._run, self._at = self._run + 1, 0

    def _write(self, piece: bytes) -> None:
        out = sys.stdout.buffer
        if not self._prefix:
            out.write(piece)
        else:
            *lines, self._rest = (self._rest + piece).split(b"\n")
            for line in lines:
                out.write(b"%s%s\n" % (self._prefix.encode(), line))
            if len(self._rest) > CHUNK_BYTES:
                self._end_line()
        out.flush()

    def _end_line(self) -> None:
        """End an unfinished line: its run is over, or output was left out."""
        if self._rest:
            self._write(b"\n")


def _print_output(store: Store, job: Job, run: int, last: float, tail: int | None = None) -> Job:
    """Print what a run wrote and, unless `last` is 0, what follows (see Output). Gives the job as
    it is then."""
    output, warned = Output(store, job, run, last, tail), False
    while output.print_new() and last:
        warned = warned or _warn_without_worker(store)
        time.sleep(POLL_S)
    return output.job


def _print_outputs(store: Store, jobs: Sequence[Job], every: bool, tail: int | None) -> None:
    """Follow these jobs until they are over. With `every`, follow each run that goes on or begins,
    without end."""
    starts, warned = watch_starts(store), False
    outputs: dict[tuple[str, int], Output] = {}
    poll = select.poll()
    poll.register(1, 0)  # it is ready once nobody reads stdout any more
    while True:
        for job in next(starts) if every else jobs:
            last = job.runs if every else inf
            output = Output(store, job, max(1, job.runs), last, tail, f"{job.id} ")
            outputs.setdefault((job.id, job.runs), output)
        jobs, tail = [], None
        for run, output in list(outputs.items()):
            try:
                goes_on = output.print_new()
            except Refused:
                _say(f"Job {output.job.id} was purged.")
                goes_on = False
            if not goes_on:
                del outputs[run]
        if not (outputs or every):
            return
        warned = warned or _warn_without_worker(store)
        if poll.poll(POLL_S * 1000):
            raise BrokenPipeError


def _log_of(store: Store, job: Job, run: int) -> tuple[str, bool]:
    """The path of that run's output, and whether the run still goes on. A log gets the name of its
    run when the run is over."""
    if run > job.runs:
        return os.devnull, False  # not begun: a log of that name would be another job's
    path = log_path(store.home.logs_dir, job.id, run)
    has_worker = job.state == "processing" and job.runs == run
    if os.path.exists(path) or not has_worker:
        return path, False
    return slot_log_path(store.home.logs_dir, job.worker or "", job.slot or 0), True


@cli.command()
@_some_ids
@_switch("--all", "every", help="Wait for all jobs that are not over now.")
@_timeout
@_json
@_store
def wait(store: Store, ids: Words, every: bool, timeout: float, in_json: bool) -> int:
    """Wait until jobs are completed or dead.

    With one ID the exit code is the job's own (128 + n after signal n); with several it is 0 if all
    completed. It is 124 if --timeout ends first.

    \b
    Example:
      queuectl wait job1 --timeout 10m
    """
    _check_ids_or_all(ids, every)
    store.read()
    deadline = time.monotonic() + timeout
    if every:
        skipped = held_back(store)
        jobs = store.jobs(states=(*WAITING, "processing"))
        wanted = [job.id for job in jobs if job.id not in skipped]
        if skipped:
            _say(f"Not waiting for {say_count(len(skipped), 'job')}: held, or after a held one.")
    else:
        wanted = [job.id for job in _jobs_named(store, ids)]
    ended, warned = find_ended(store, wanted), False
    single = len(wanted) == 1

    def show_state(_: object) -> str | None:
        job = store.get(wanted[0]) if single else None
        return job and say_state(job, store.home.now())

    with click.progressbar(
        length=len(wanted),
        bar_template="%(info)s" if single else "Waiting  [%(bar)s]  %(info)s",
        show_percent=not single,
        show_eta=not single,
        file=sys.stderr,
        hidden=not sys.stderr.isatty(),
        width=0,  # the bar fills what the text leaves of the line
        item_show_func=show_state,
        update_min_steps=0,  # draw again although no job has ended: its state may be another
    ) as bar:
        bar.update(len(ended))
        while len(ended) < len(wanted) and time.monotonic() < deadline:
            warned = warned or _warn_without_worker(store)
            time.sleep(POLL_S)
            if store.read():
                ended |= find_ended(store, [id for id in wanted if id not in ended])
            bar.update(len(ended) - bar.pos)
    if in_json:
        echo(as_json([ended_view(id, ended.get(id), id in ended) for id in wanted]))
    if left := len(wanted) - len(ended):
        _say(f"Error: {left} of {len(wanted)} not over yet. See them with: queuectl list.")
        return EXIT_TIMEOUT
    return _exit_as(ended, single=single and not every)


def _exit_as(ended: Mapping[str, Job | None], single: bool) -> int:
    """Say which of these jobs did not complete. Gives the exit code of `wait`."""
    for id, job in ended.items():
        if job is None:
            _say(f"Job {id} was purged")
        elif job.state != "completed":
            _say(f"Job {id} is dead: {job.reason or ''}")
    return exit_code_of(list(ended.values()), single)


def _warn_without_worker(store: Store) -> bool:
    """Warn if no worker lives. Gives whether it warned."""
    if store.home.live_workers():
        return False
    store.home.warn("no worker is running. Start one: queuectl worker start")
    return True


# -- cancel, retry, rerun, edit, pause, resume, purge


@cli.command()
@_ids
@_store
def cancel(store: Store, ids: Words) -> None:
    """Cancel waiting jobs, and stop running ones.

    They go to the dead letter queue with the reason "cancelled"; a running one once it has ended.

    \b
    Example:
      queuectl cancel job1 job2
    """
    jobs = cancel_jobs(store, ids)
    _keep_made(f"{say_count(len(jobs), 'job')} cancelled.")
    running = {job.id for job in jobs if job.state == "processing"}
    if running:
        recover_now(store, running, _say)
    lines = []
    for cancelled in jobs:
        job = store.get(cancelled.id) or cancelled
        what = "cancelled" if job.id in ids else f"dead: {job.reason}"
        if job.state == "processing":
            what = "running: stopping it"
        lines.append(f"Job {job.id} is {what}.")
    _done(store, lines)


@cli.command()
@_ids
@_store
def retry(store: Store, ids: Words) -> None:
    """Make failed and delayed jobs due now, bring dead ones back.

    \b
    Example:
      queuectl retry job3
    """
    jobs = retry_jobs(store, ids)
    _done(
        store, [f"Job {job.id} is {'due now' if job.run_at else 'pending again'}." for job in jobs]
    )


@cli.command()
@_ids
@_store
def rerun(store: Store, ids: Words) -> None:
    """Add a copy of a job and print its new id.

    It starts as soon as a worker is free, with attempts at zero. The old job, whatever its state,
    stays as it is.

    \b
    Example:
      queuectl rerun job1
    """
    jobs = rerun_jobs(store, ids)
    _done(store, [job.id for job in jobs], "the new jobs are in the queue.")


@cli.command(params=[*_CHANGES])
@_ids
@_store
def edit(store: Store, /, ids: Words, **given: Any) -> None:
    """Change jobs that are pending or failed.

    To change a dead one, bring it back with 'dlq retry', which takes the same options.

    \b
    Example:
      queuectl edit job1 --timeout 10m --priority 5
    """
    changes = _given_changes(store, given)
    if not changes:
        raise UsageError("Say what to change. See the options: queuectl edit -h")
    jobs = edit_jobs(store, ids, changes)
    _done(store, [f"Job {job.id} is changed: {', '.join(changes)}." for job in jobs])


@cli.command()
@_ids
@_store
def hold(store: Store, ids: Words) -> None:
    """Keep waiting jobs from starting until 'release'.

    They keep their place in the order of arrival.

    \b
    Example:
      queuectl hold job1
    """
    jobs = edit_jobs(store, ids, {"held": True})
    _done(
        store,
        [f"Job {job.id} is held. Release it with: queuectl release {job.id}" for job in jobs],
    )


@cli.command()
@_ids
@_store
def release(store: Store, ids: Words) -> None:
    """Let held jobs start.

    \b
    Example:
      queuectl release job1
    """
    jobs = edit_jobs(store, ids, {"held": None})
    _done(store, [f"Job {job.id} is not held." for job in jobs])


@cli.command()
@_store
def pause(store: Store) -> None:
    """Start no more jobs until 'resume'; running ones go on.

    \b
    Example:
      queuectl pause
    """
    set_setting(store, "paused", "true")
    text = "The queue is paused: running jobs go on, no other starts. Go on with: queuectl resume"
    _done(store, [text])


@cli.command()
@_store
def resume(store: Store) -> None:
    """Start jobs again after 'pause'.

    \b
    Example:
      queuectl resume
    """
    set_setting(store, "paused", "false")
    _done(store, ["The queue is no longer paused."])


@cli.command()
@option(
    "--state",
    "states",
    type=_one_of(OVER),
    multiple=True,
    help="Only jobs in that state (repeatable). [completed]",
)
@_older_than
@_switch("--dry-run", help="Say how many would be deleted, and delete nothing.")
@_yes
@_store
def purge(store: Store, states: Words, older_than: float | None, dry_run: bool, yes: bool) -> None:
    """Delete completed jobs and their output for good.

    Dead letters stay, unless --state dead asks for them.

    \b
    Example:
      queuectl purge --older-than 7d --yes
    """
    states = states or ("completed",)
    store.read()
    purged = choose_purged(store, states, older_than, store.home.now())
    if dry_run:
        echo(f"{say_count(len(purged.gone), 'job')} would be purged.")
    else:
        number = say_count(len(purged.gone), f"{' or '.join(states)} job")
        _confirm(yes, f"Delete {number} for good?")
        purged = purge_jobs(store, states, older_than)
        _finish_purge(store, purged.gone)
    if kept := purged.kept:
        some = ", ".join(job.id for job in kept[:3])
        _say(f"{say_count(len(kept), 'job')} kept, because waiting jobs come after: {some}")
    dead = store.counts[NUMBER_OF["dead"]]
    if dead and "dead" not in states:
        _say(f"{say_count(dead, 'dead letter')} left in place. Delete them with: --state dead.")


def _confirm(yes: bool, question: str) -> None:
    """Ask the person, unless `--yes` was given. Without a terminal to ask on, refuse."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask on. Give --yes to do it.")
    if not click.confirm(question, err=True):
        raise Refused("The answer was no. Nothing was changed.")


def _finish_purge(store: Store, gone: Sequence[Job]) -> None:
    """After a purge: say how many jobs are gone, and remove their output."""
    _done(store, [f"{say_count(len(gone), 'job')} purged."])
    for job in gone:
        remove_logs(store.home.logs_dir, job.id, job.runs)


# -- dlq


@cli.group()
def dlq() -> None:
    """See the dead letters, bring them back, or delete them.

    \b
    Example:
      queuectl dlq list
    """


@dlq.command("list")
@_json
@_limit
@_match
@_store
def dlq_list(store: Store, in_json: bool, limit: int | None, match: str | None) -> None:
    """List the dead letters.

    A line has the id, the attempts made, how and when the last one ended, and its last line of
    output.

    \b
    Example:
      queuectl dlq list --match backup
    """
    store.read()
    found = (job for job in store.jobs(states=("dead",)) if matches(job, match))
    jobs, now = islice(found, limit), store.home.now()
    rows = (dead_row(job, _last_output(store, job), now) for job in jobs)
    _print_jobs(jobs, DEAD_HEAD, rows, in_json)


@dlq.command("show")
@_ids
@_json
@_store
def dlq_show(store: Store, ids: Words, in_json: bool) -> None:
    """Show dead letters whole.

    \b
    Example:
      queuectl dlq show job3
    """
    _show_jobs(store, list(map(check_dead, _jobs_named(store, ids))), in_json)


@dlq.command("retry", params=[*_CHANGES])
@_some_ids
@_switch("--all", "every", help="All dead letters but the cancelled ones.")
@_match
@_switch("--cancelled", help="With --all: the cancelled ones too.")
@option("--spread", type=duration, help="Spread their starts over that time.")
@_store
def dlq_retry(
    store: Store,
    /,
    ids: Words,
    every: bool,
    match: str | None,
    cancelled: bool,
    spread: float | None,
    **given: Any,
) -> None:
    """Bring dead letters back, changed where you say so.

    \b
    Example:
      queuectl dlq retry job3 --timeout 10m
    """
    _check_ids_or_all(ids, every)
    is_choice = match is not None or cancelled
    if is_choice and not every:
        raise UsageError("--match and --cancelled go with --all.")
    changes = _given_changes(store, given)
    if every:
        jobs = revive_all(store, match, cancelled, changes, spread)
    else:
        jobs = revive_jobs(store, ids, changes, spread)
    _done(store, [f"Job {job.id} is pending again." for job in jobs])
    if not jobs:
        _say("No dead letter matches. Cancelled ones come back only with --cancelled.")


@dlq.command("purge")
@_some_ids
@_switch("--all", "every", help="All dead letters.")
@_older_than
@_yes
@_store
def dlq_purge(store: Store, ids: Words, every: bool, older_than: float | None, yes: bool) -> None:
    """Delete dead letters and their output for good.

    \b
    Example:
      queuectl dlq purge --older-than 30d --yes
    """
    _check_ids_or_all(ids, every or older_than is not None)
    if ids:
        _confirm(yes, f"Delete {say_count(len(ids), 'dead letter')} for good?")
        _finish_purge(store, purge_dead(store, ids))
    else:
        click.get_current_context().invoke(purge, states=("dead",), older_than=older_than, yes=yes)


# -- config


@cli.group()
def config() -> None:
    """See and change the settings.

    \b
    Example:
      queuectl config set max-retries 5
    """


@config.command("show")
@_json
@click.pass_context
def config_show(ctx: Context, in_json: bool) -> None:
    """Show every setting in force.

    \b
    Example:
      queuectl config show
    """
    ctx.invoke(config_get, key=None, in_json=in_json)


def _complete_settings(_: Context, __: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in SETTINGS if name.startswith(incomplete.replace("-", "_"))]


_key = partial(argument, "key", shell_complete=_complete_settings)


@config.command("get")
@_key(required=False)
@_json
@_store
def config_get(store: Store, key: str | None, in_json: bool) -> None:
    """Print the value of one setting, alone.

    \b
    Example:
      queuectl config get max-retries
    """
    store.home.check()
    problem = store.home.read_settings()
    values = {**DEFAULTS, **readable_settings(store.home)}
    shown = values if key is None else values[known_setting(key)]
    if in_json:
        echo(as_json(shown))
    elif key is None:
        _echo_all(starmap(_say_setting, values.items()))
    else:
        echo(say_value(shown))
    if problem:
        raise StoreError(problem)


@config.command("set", context_settings={"ignore_unknown_options": True})  # -1 is a value
@_key()
@argument("value")
@_store
def config_set(store: Store, key: str, value: str) -> None:
    """Change one setting; running workers follow at once.

    \b
    Example:
      queuectl config set backoff-base 3
    """
    name, stored = set_setting(store, key, value)
    _done(store, [_say_setting(name, stored)])
    import shutil

    program = store.home.config().runner[0]
    if name == "runner" and not shutil.which(program):
        store.home.warn(f"the runner '{program}' was not found. No job starts without it.")


@config.command("unset")
@_key()
@_store
def config_unset(store: Store, key: str) -> None:
    """Set one setting back to its default.

    \b
    Example:
      queuectl config unset backoff-base
    """
    _done(store, [_say_setting(*set_setting(store, key, None))])


def _say_setting(name: str, value: object) -> str:
    return f"{name} = {say_value(value)}"


# -- worker


@cli.group()
def worker() -> None:
    """Start, stop and see the workers of this queue.

    \b
    Example:
      queuectl worker start --count 2
    """


@worker.command("start")
@option(
    "-c", "--count", type=whole_number(1, 1000), help="How many jobs run at once. [worker_count]"
)
@_tags
@option("--not-tag", "not_tags", multiple=True, help="No jobs with that tag (repeatable).")
@_switch("--drain", help="End when nothing is left to run; exit 1 if a job died.")
@option(
    "--max-load",
    type=_positive,
    default=inf,
    metavar="N",
    help="Start nothing while the one-minute load is above N.",
)
@_switch("--detach", help="Run in the background, log under .queuectl/.")
@_store
def worker_start(
    store: Store,
    count: int | None,
    tags: Words,
    not_tags: Words,
    drain: bool,
    max_load: float,
    detach: bool,
) -> int:
    """Run jobs, in the foreground until stopped.

    The first Ctrl+C lets running jobs finish; the second ends them and hands them back.

    \b
    Example:
      queuectl worker start --count 4
    """
    store.home.prepare()
    only = TagFilter(parse_tags(tags) or (), parse_tags(not_tags) or ())
    if detach:
        options = [f"--tag={tag}" for tag in tags] + [f"--not-tag={tag}" for tag in not_tags]
        options += [f"--count={count}"] if count else []
        return _detach(store, [f"--max-load={max_load}", *options, *["--drain"] * drain])
    is_log = stat.S_ISREG(os.fstat(2).st_mode)
    color = click.get_current_context().color  # the threads have no context

    def say(text: str) -> None:
        prefix = f"{say_instant(store.home.now())} {worker.name}: " if is_log else ""
        lines = [prefix + paint_line(clean(line)) for line in text.split("\n")]
        _print_message("\n".join(lines), color)

    worker = Worker(store, count, only, drain, say, attempt_line, max_load)
    return worker.run()


def _detach(store: Store, options: list[str]) -> int:
    """Start a worker in the background, and return when it is ready. Gives its exit code if it is
    over by then, as a drain may be."""
    log = f"{store.home.dir}/worker.log"
    child = start_detached(["--home", store.home.path, "worker", "start", *options], log)
    while child.pid not in [info.header["pid"] for info in store.home.live_workers()]:
        code: int | None = child.poll()
        if code is not None:
            if code:
                _say(f"Error: The worker ended with exit code {code}. See why in '{log}'.")
            return code
        time.sleep(POLL_S)
    _say(f"Worker process {child.pid} started in the background, log in {log}.")
    return 0


@worker.command("stop")
@_switch("--now", help="End the running jobs and hand them back.")
@_timeout
@_store
def worker_stop(store: Store, now: bool, timeout: float) -> None:
    """Stop all workers of this queue and wait until they are gone.

    The exit code is 1 if some are not gone in time.

    \b
    Example:
      queuectl worker stop --timeout 1m
    """
    store.home.check()
    workers = store.home.live_workers()
    names = {info.name for info in workers}
    for name in names:
        store.home.request_stop(name, "now" if now else "stop")
    rows = chain.from_iterable(info.rows for info in workers)
    jobs = [row["job"] for row in rows if row]
    if jobs and sys.stderr.isatty():
        _say(f"Waiting for the end of {say_count(len(jobs), 'job')}: {', '.join(jobs[:5])}")
    deadline = time.monotonic() + timeout
    while left := names & {info.name for info in store.home.live_workers()}:
        if time.monotonic() >= deadline:
            raise Refused(
                f"{len(left)} of {say_count(len(names), 'worker process')} still run jobs, and "
                "stop when these end. End them now with: queuectl worker stop --now."
            )
        time.sleep(POLL_S)
    threads = say_count(sum(info.header["threads"] for info in workers), "thread")
    stopped = f"{say_count(len(names), 'worker process')} ({threads}) stopped."
    _done(store, [stopped if names else "No worker was running."])


@worker.command("list")
@_json
@_store
def worker_list(store: Store, in_json: bool) -> None:
    """List the workers and what they run.

    \b
    Example:
      queuectl worker list
    """
    views = status(store)["workers"]
    _echo_all([as_json(views)] if in_json else map(worker_line, views))


# -- doctor, completion


@cli.command()
@_switch("--fix", help="Repair what can be repaired; the files as they were are kept.")
@_store
def doctor(store: Store, fix: bool) -> None:
    """Check every store and the journal for damage.

    It changes nothing without --fix. With it, every job whose line is whole is kept, and the files
    as they were are copied to .queuectl/aside. A job that stands only in a damaged line of the
    journal becomes a dead letter, since its command may not be the one that was given. The exit
    code is 0 if all is well or everything was repaired, and 3 if not.

    \b
    Example:
      queuectl doctor --fix
    """
    problems, lost = examine(store), ""
    _echo_all(map(clean, problems))
    if problems and fix:
        copies, lost = mend(store)
        _done(store, [clean(f"Repaired. The files as they were: {', '.join(copies)}.")])
        problems = examine(store)
        _echo_all(map(clean, problems))
    if problems:
        raise StoreError(
            f"{say_count(len(problems), 'problem')} in '{store.home.path}'. Repair it with: "
            "queuectl doctor --fix."
        )
    echo(f"Lost: {lost}." if lost else clean(f"All is well with '{store.home.path}'."))


@cli.command()
@argument("shell", type=_one_of(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that lets a shell complete words.

    It completes commands, options, states, settings, the ids of jobs, and files after --. For bash
    put eval "$(queuectl completion bash)" into ~/.bashrc; for zsh the same with zsh into ~/.zshrc.
    For fish save it as ~/.config/fish/completions/queuectl.fish.

    \b
    Example:
      queuectl completion bash
    """
    from click.shell_completion import shell_complete

    shell_complete(cli, {}, "queuectl", "_QUEUECTL_COMPLETE", f"{shell}_source")


class Stream(io.FileIO):
    """A standard stream. Even if another program made it non-blocking, a read waits for data and a
    write is finished. The flag stays as it is, since other processes share it."""

    def readinto(self, buffer: Any) -> int:
        while (count := super().readinto(buffer)) is None:
            wait_for(self.fileno(), select.POLLIN)
        return count

    # FileIO's own would bypass `readinto`.
    read, readall = io.RawIOBase.read, io.RawIOBase.readall  # type: ignore[assignment]

    def write(self, data: Any) -> int:
        write_whole(self.fileno(), data)
        return len(data)


def _as_text(buffer: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(buffer, "utf-8", "backslashreplace", line_buffering=True)


def main() -> None:
    """The console script."""
    start_again_if_needed()
    sys.stdin = _as_text(io.BufferedReader(Stream(0, closefd=False)))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, _interrupt)
    writers = (io.BufferedWriter(Stream(fd, "w", closefd=False)) for fd in (1, 2))
    sys.stdout, sys.stderr = map(_as_text, writers)
    try:
        cli(prog_name="queuectl")
    except SystemExit as end:
        # All output is flushed by now. The interpreter's own end would free every object one by
        # one, which takes a sixth of an enqueue's time. (A profiler must look from outside.)
        os._exit(end.code)  # type: ignore[arg-type]  # Group.main ends with a number only


if __name__ == "__main__":
    main()
