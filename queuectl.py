#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["click>=8.2,<9", "filelock>=4.2,<5"]
# ///
"""QueueCTL: a persistent background job queue for shell commands, on one machine, in one file.

People enqueue commands; worker processes run them in threads, retry what fails with exponential
backoff, and keep what stays broken in a dead letter queue. A queue is a directory, its *home*:

    config.json             the settings
    jobs.json               every job that is not dead, one a line, in order of arrival
    dlq.json                the dead ones
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

Sections, each using only those above it; in one, lines that begin with `# --` head its parts:
    1 VOCABULARY & ERRORS   words, limits, exit codes, the kinds of error
    2 CONFIGURATION         Config, the table of settings; the checks of values
    3 JOBS                  Job, its states, transitions, backoff; an id, a time: values in, values out
    4 STORE                 Store: lock, journal, fold, hand edits, keys, worker files; Waiting: the claim order
    5 OPERATIONS            enqueue, report and claim, revive ...: one transaction each; what status and show say
    6 EXECUTION             Executor runs a command, SlotLog keeps its output, Fence ends what it left
    7 WORKER                Worker: threads, time limits, housekeeping, stop, drain; recovery
    8 PRESENTATION          records to text
    9 COMMANDS              the Click command group; Root: errors to exits

The way of a job, each function with its section:
    accepted    enqueue 9, parse_spec 3, enqueue_job 5, make_id 3, _commit 4: a line in the journal; wake_workers 4
    claimed     Worker._look 7, take_turn 5, Waiting.first 4, claim_job 3
    run         _run_command 7, Executor.start 6; its output: SlotLog.open 6; its time limit: _end_late 7
    reported    Executor.wait 6, take_turn 5, report_job 3; its retry: backoff_s 3, _next_due 7; the disk: sync 4
    recovered   find_orphans 7, Fence.step 6, recover 5
    filed       _fold 4, after _take_edits 4 of hand edits; _set_tail_aside 4: a torn line; mend 4: damage
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import errno
import functools
import gc
import hashlib
import itertools
import json
import math
import os
import re
import stat
import sys
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, dataclass_transform

gc.set_threshold(
    50_000
)  # before these imports: a command ends before the collector pays, and it took a tenth

try:
    from datetime import UTC, datetime, timedelta  # UTC: Python 3.11

    import click
    from filelock import lock_descriptor, unlock_descriptor  # filelock 4.2

    _ = click.Choice[str]  # Click 8.2
except (
    ImportError,
    TypeError,
) as error:  # a checkout without its set-up, or with a system's older packages
    sys.exit(
        f"Error: QueueCTL cannot start on {sys.executable}: {error}. It needs Python 3.11 and the packages of "
        "requirements.txt. Set up: python3 -m venv .venv && .venv/bin/pip install -r requirements.txt, then use "
        ".venv/bin/python; or: uv run queuectl.py"
    )

__version__ = "0.1.0"

# ======== 1. VOCABULARY & ERRORS ========
# The words that everything below is written in. No logic.

State = Literal["pending", "processing", "completed", "failed", "dead"]
STATES: Final[tuple[State, ...]] = ("pending", "processing", "completed", "failed", "dead")
WAITING: Final = ("pending", "failed")  # may be claimed once their time has come
OVER: Final = ("completed", "dead")  # will not run again by themselves

OutcomeKind = Literal["exited", "signalled", "timed_out", "not_started", "handed_back"]

EXIT_REFUSED: Final = 1
EXIT_USAGE: Final = 2
EXIT_STORAGE: Final = 3
EXIT_TIMEOUT: Final = 124
EXIT_NOT_FOUND: Final = 127  # the shell's word for an unknown command

FORMAT: Final = 1  # of journal, header, worker file and logs
COMMAND_BYTES_MAX: Final = 131_071  # the kernel's limit for one argument (MAX_ARG_STRLEN - 1)
TEXT_CHARS_MAX: Final = 4_096  # cwd, unique key
ID_CHARS_MAX: Final = 128
TAGS_MAX: Final = 32
TAG_CHARS_MAX: Final = 64
TAG: Final = rf"[^\s,=\x00-\x1f\x7f]{{1,{TAG_CHARS_MAX}}}"
ENV_MAX: Final = 1_000
AFTER_MAX: Final = 10_000  # jobs that one job may come after
PRIORITY_MAX: Final = 1_000_000
RETRIES_MAX: Final = 1_000
DURATION_MAX_S: Final = 100 * 365 * 86_400
HISTORY_MAX: Final = 5  # attempts kept in a job's record
RECOVERIES_MAX: Final = 5  # a job that took its worker down more often than this is dead
IDS_BLOCKS: Final = 64  # of ids printed at once, each of at most 1,296
LINE_JOBS_MAX: Final = 1_000  # jobs in one journal line: `status` has to read the last one whole
PURGE_JOBS: Final = 500  # deleted by a worker in one transaction
SMALL_BYTES: Final = 1 << 20  # arrays below this are folded after every command
CHUNK_BYTES: Final = 1 << 20  # files are read and copied in pieces of this size


@dataclass_transform(frozen_default=True)
class Record:
    """A value of named parts. A NamedTuple or dataclass costs each start of the program 0.1 to 1.2 ms: these are for
    what needs their speed or order."""

    def __init__(self, *values: Any, **named: Any) -> None:
        self.__dict__.update(zip(type(self).__annotations__, values, strict=False), **named)


class QueueError(Exception):
    """What went wrong, where, and what to do next: one text for a person, one exit code for a script."""

    exit_code = EXIT_REFUSED


class Refused(QueueError):
    """The request does not fit the present state. Nothing changed."""


class BadValue(QueueError):
    """A value that cannot be meant: wrong type, out of bounds, unknown field. Nothing changed."""

    exit_code = EXIT_USAGE


class StoreError(QueueError):
    """A file that cannot be locked, read, written or trusted. It was not overwritten."""

    exit_code = EXIT_STORAGE


class Busy(StoreError):
    """The lock was held, or an array edited, for the moment: the same may work a little later."""


# ======== 2. CONFIGURATION ========
# One table of settings: default, check, meaning. Values in, values out: reading the file is STORE's.
# A value in config.json is kept as the user wrote it ("30d"); `Config` holds it parsed (2592000.0).


def parse_duration(value: object, what: str = "duration") -> float:
    """Seconds from `90`, `"90"`, `"90s"`, `"10m"`, `"2h"`, `"1d"`, fractions allowed."""
    if isinstance(value, str):
        number, factor = _split_unit(value, {"s": 1, "m": 60, "h": 3600, "d": 86400})
        seconds = number * factor
    else:
        seconds = value if isinstance(value, int | float) and not isinstance(value, bool) else -1
    if not 0 <= seconds <= DURATION_MAX_S:
        raise BadValue(
            f"{_shown(value)} is not a {what}. Give seconds, or a number with s, m, h or d, up to 100 years: 90, 1.5h."
        )
    return int(seconds) if seconds == int(seconds) else seconds


def _split_unit(text: str, units: Mapping[str, float]) -> tuple[float, float]:
    """The number (-1 for what is none) and the factor of `1.5h`. No regular expression: one more to compile at each
    start costs more than all else that is done with the settings."""
    text = text.strip().lower()
    unit = units.get(text[-1:])
    digits = text[:-1].rstrip() if unit else text
    is_number = digits.isascii() and digits.replace(".", "", 1).isdigit()
    return float(digits) if is_number else -1, unit or 1


def parse_exit_codes(value: object, what: str = "no_retry_on") -> str:
    """`"2,64-78"` or a list of integers, as the canonical text of that form; "" for none."""
    if not isinstance(value, str | list):
        raise BadValue(
            f"'{what}' must be a text like 2,64-78 or a list of integers, not {_shown(value)}."
        )
    kind: type = int if isinstance(value, list) else str
    out = []
    for part in value if isinstance(value, list) else value.split(",") if value.strip() else ():
        match = re.fullmatch(r"\s*(\d{1,3})(?:\s*-\s*(\d{1,3}))?\s*", str(part), re.ASCII)
        if (
            type(part) is not kind
            or not match
            or not int(match[1]) <= int(match[2] or match[1]) <= 255
        ):
            raise BadValue(
                f"'{what}' has {_shown(part)}, which is no exit code. Give codes from 0 to 255: 2,64-78."
            )
        out.append(match[1] if match[2] is None else f"{int(match[1])}-{int(match[2])}")
    return ",".join(out)


def has_exit_code(codes: str, code: int) -> bool:
    """Whether `code` is in `"2,64-78"`."""
    ranges = [part.partition("-") for part in codes.split(",") if part]
    return any(int(low) <= code <= int(high or low) for low, _, high in ranges)


def _shown(value: object) -> str:
    """A value as an error message shows it: JSON, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


# -- Checks, of a setting or of a job's field: (value, name) to the value as it is kept; each raises BadValue.

Check = Callable[[Any, str], Any]


def _rule(fits: Callable[[Any], bool], wanted: str) -> Check:
    """The check that lets a value pass as it is, where it fits."""

    def check(value: Any, name: str) -> Any:
        if not fits(value):
            raise BadValue(f"'{name}' is {_shown(value)}. Give {wanted}.")
        return value

    return check


def _whole(low: int, high: int) -> Check:
    return _rule(
        lambda value: type(value) is int and low <= value <= high,
        f"a whole number from {low} to {high}",
    )


def _number(low: float, high: float) -> Check:  # NaN is between no two numbers
    return _rule(
        lambda value: type(value) in (int, float) and low <= value <= high,
        f"a number from {low} to {high}",
    )


def _choice(*words: str) -> Check:
    return _rule(lambda value: value in words, f"one of: {', '.join(words)}")


_flag = _rule(lambda value: isinstance(value, bool), "true or false")
_text = _rule(
    lambda value: (
        isinstance(value, str) and "\0" not in value and _utf8_bytes(value) <= COMMAND_BYTES_MAX
    ),
    f"UTF-8 without NUL, at most {COMMAND_BYTES_MAX} bytes",
)


def _utf8_bytes(text: str) -> float:
    """The text's size in UTF-8; infinite where it cannot be written so (lone surrogates)."""
    try:
        return len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        return math.inf


def _words(value: object, name: str) -> tuple[str, ...]:
    """A runner's words, split as a shell would."""
    text = _text(value, name)
    try:
        if set(text) & set("'\"\\#"):
            import shlex  # costs start-up time, and the usual runner needs no quotes

            words = tuple(shlex.split(text))
        else:
            words = tuple(text.split())
    except ValueError as error:
        raise BadValue(f"'{name}' cannot be split into words ({error}): {_shown(value)}.") from None
    if not words or ("/" in words[0] and not words[0].startswith("/")):
        raise BadValue(
            f"'{name}' must name a program by name or absolute path, for example: sh -c."
        )
    return words


def _bytes(value: object, name: str) -> int:
    """Bytes from 1048576, "100M" or "1.5G"."""
    text = (
        str(value).strip().lower()
        if isinstance(value, int | str) and not isinstance(value, bool)
        else ""
    )
    number, factor = _split_unit(
        text[:-1].removesuffix("i") if text.endswith("b") else text,
        {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40},
    )
    size = number * factor
    if not 4096 <= size <= 1 << 50:
        raise BadValue(
            f"'{name}' is {_shown(value)}. Give bytes from 4096 to 1024T, such as 1048576, 100M or 1G."
        )
    return int(size)


def _limits(value: object, name: str) -> dict[str, int]:
    """`gpu=1,net=4`: tag to how many of its jobs may run at once."""
    out: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in _text(value, name).split(","))):
        tag, _, count = (piece.strip() for piece in part.partition("="))
        if (
            not re.fullmatch(TAG, tag)
            or tag in out
            or not re.fullmatch(r"\d{1,6}", count, re.ASCII)
        ):
            raise BadValue(
                f"'{name}' has {_shown(part)}. Give each tag once with a number: gpu=1,net=4."
            )
        out[tag] = int(count)
    return out


def _setting(default: object, check: Check, meaning: str) -> Any:
    """One row of the table: the default as config.json spells it, its check, its meaning."""
    return {"default": default, "check": check, "meaning": meaning}


class Config(Record):
    """The settings in force, parsed. To add one: a row here, the place that reads it, its row in the README."""

    max_retries: int = _setting(3, _whole(0, RETRIES_MAX), "attempts of a job before it is dead")
    backoff_base: float = _setting(
        2, _number(0, 1000), "seconds to wait after failed attempt n: base ** n"
    )
    backoff_max: float = _setting(3600, parse_duration, "longest such wait, in seconds")
    backoff_jitter: float = _setting(
        0, _number(0, 1), "spread that wait by up to this fraction either way"
    )
    job_timeout: float = _setting(30, parse_duration, "seconds an attempt may run; 0 = no limit")
    no_retry_on: str = _setting(
        "", parse_exit_codes, "exit codes that go to the dead letter queue at once"
    )
    grace_period: float = _setting(5, parse_duration, "seconds between SIGTERM and SIGKILL")
    worker_count: int = _setting(1, _whole(1, 1000), "threads of 'worker start' without --count")
    limits: dict[str, int] = _setting(
        "", _limits, "gpu=1,net=4: at most so many jobs with that tag at once"
    )
    runner: tuple[str, ...] = _setting("sh -c", _words, "words put before the command")
    fsync: str = _setting(
        "normal", _choice("always", "normal", "never"), "when changes reach the disk"
    )
    lock_timeout: float = _setting(10, parse_duration, "seconds to wait for the file lock")
    keep_completed: float = _setting(
        "30d", parse_duration, "completed jobs older than this are purged; 0 = never"
    )
    log_max: int = _setting("100M", _bytes, "bytes kept of one attempt's output")
    on_dead: str = _setting("", _text, "shell command run when a job dies")
    on_finish: str = _setting("", _text, "shell command run when a job ends in any way")
    paused: bool = _setting(False, _flag, "no new starts; set by pause and resume")


SETTINGS: Final[dict[str, Any]] = {name: vars(Config)[name] for name in Config.__annotations__}


def default_settings() -> dict[str, object]:
    """Every key with its default, as config.json spells it."""
    return {name: row["default"] for name, row in SETTINGS.items()}


def parse_settings(values: Mapping[str, object]) -> Config:
    """A Config from settings by name; keys that are not there have their default. Raises BadValue."""
    return Config(
        **{
            name: SETTINGS[name]["check"](value, name)
            for name, value in {**default_settings(), **values}.items()
        }
    )


def spell_settings(values: Mapping[str, object]) -> dict[str, object]:
    """The same with every key as the table spells it; an unknown key, or one in two spellings, is refused."""
    out: dict[str, object] = {}
    for name, value in values.items():
        if (key := known_setting(name)) in out:
            raise BadValue(f"The setting '{key}' is there in two spellings. Keep one of them.")
        out[key] = value
    return out


def salvage_settings(text: str) -> dict[str, object]:
    """The settings that can still be read in a damaged config.json, each by itself."""
    kept: dict[str, object] = {}
    for name, value in re.findall(r'"([\w-]+)"\s*:\s*("(?:[^"\\\n]|\\.)*"|[^\s,}]+)', text):
        with contextlib.suppress(ValueError, BadValue):
            key, parsed = known_setting(name), json.loads(value)
            SETTINGS[key]["check"](parsed, key)
            kept[key] = parsed
    return kept


def known_setting(name: str) -> str:
    """The key that `max-retries` or `MAX_RETRIES` means; an unknown one is refused with the nearest name."""
    key = name.lower().replace("-", "_")
    if key not in SETTINGS:
        raise BadValue(
            f"There is no setting '{name}'.{_nearest(key, SETTINGS)} See them all: queuectl config show."
        )
    return key


def _nearest(word: str, known: Iterable[str]) -> str:
    import difflib

    inside = [name for name in known if len(word) > 2 and word in name]
    near = inside or difflib.get_close_matches(word, list(known), 1)
    return f" Did you mean '{near[0]}'?" if near else ""


def setting_from_text(name: str, text: str) -> object:
    """What `config set NAME TEXT` stores: a number or true/false where the default is one, else the text."""
    default = SETTINGS[name]["default"]
    if isinstance(default, bool):
        yes, no = (
            text.strip().lower() in ("true", "on", "yes", "1"),
            text.strip().lower() in ("false", "off", "no", "0"),
        )
        return yes if yes or no else text
    if not isinstance(default, str):
        if re.fullmatch(r"\s*[+-]?\d+\s*", text, re.ASCII):
            return int(text)
        if re.fullmatch(
            r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?\s*", text, re.ASCII | re.IGNORECASE
        ):
            return float(text)
    return text


# ======== 3. JOBS ========
# The job record, JSON to record and back, the state machine and backoff (the claim order is STORE's `Waiting`).
# Values in, values out: no clock, no files, no random numbers, no locks. A transition takes a job and `now`, and
# returns a new job.
#
# J1  The state decides which fields are set: `check_job` says how.
# J2  `attempts` rises only in a claim and falls only when an attempt is given back (hand-back, recovery);
#     it never exceeds max(1, max_retries). `runs` counts claims and never falls.
# J3  A completed job never changes; it can only be purged.
# J4  `seq`, the order of arrival, never changes: a retried or revived job keeps its place.
# J5  A job comes `after` earlier ones only (lower seq), so there are no cycles; a later one of that name is another.
#     None waits that needs a dead one: it dies in the transaction that ends the other. Who is gone holds up nothing.
# If you add a state, also change: STATES, WAITING or OVER, the drawing on top, check_job, its colour in PRESENTATION,
# the state machine's test; FORMAT, for the journal counts each; what `Waiting` searches an array for.
# If you add a field, also change: FIELD_CHECKS and, where a user may give it, Spec, `new_job` and its option.


class Job(NamedTuple):
    """One job. Field order is the order in the files, and part of the format (STORE searches for it).

    A named tuple and not a dataclass: a transition costs a fifth, and so does the class itself at each start.

    Instants are UTC texts like `2026-11-24T08:15:30.123Z` (they compare as texts); durations are seconds.
    `max_retries` counts attempts in all: 3 means at most three; 0 and 1 both mean one.
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
    history: list[dict[str, Any]] | None = None
    extra: dict[str, Any] | None = None  # fields we do not know, that a user put there


class Outcome(NamedTuple):
    """How one attempt ended. `reason` is for a person; the three in the middle are for rules."""

    kind: OutcomeKind
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None


JOB_FIELDS: Final = Job._fields[:-1]
_read_json = json.JSONDecoder().raw_decode
_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def encode_json(value: object) -> bytes:
    """Compact canonical JSON in UTF-8; a lone surrogate (from a hand edit) is kept as its escape."""
    try:
        return _to_json(value).encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False).encode()


def job_to_dict(job: Job) -> dict[str, Any]:
    """The job as it stands in the files: field order fixed, fields without a value left out."""
    out = {name: value for name, value in zip(JOB_FIELDS, job, strict=False) if value is not None}
    return {**out, **job.extra} if job.extra else out


def encode_job(job: Job) -> bytes:
    """One line of an array, without its comma: `{"id": "job1", "state": "pending", "seq": 1, ...}`."""
    return encode_json(job_to_dict(job))


def parse_json(text: str, what: str, hint: str = "") -> Any:
    """One JSON value, refusing what JSON libraries let pass: NaN, Infinity, duplicate keys, endless nesting."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(items)
        if len(out) < len(items):
            twice = next(
                key for number, (key, _) in enumerate(items) if key in dict(items[:number])
            )
            raise BadValue(f"has the key '{twice}' twice. Keep one of them.")
        for key, value in items:
            if not _is_finite(value):
                raise BadValue(f"has NaN or Infinity in '{key}', which JSON cannot hold.")
        return out

    try:
        value = json.loads(text, object_pairs_hook=pairs)
        if _is_finite(value):
            return value
        problem = "holds NaN or Infinity, which JSON cannot hold. Give a finite number."
    except BadValue as error:
        problem = str(error)
    except json.JSONDecodeError as error:
        problem = f"is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})."
    except RecursionError:
        problem = "is not usable JSON: it is nested too deeply."
    except ValueError:
        problem = "is not usable JSON: it holds a number of thousands of digits."
    raise BadValue(f"{what} {problem}{hint}")


def _is_finite(value: object) -> bool:
    """Whether a parsed value, or an element of a list, is no NaN or Infinity (objects have been looked at)."""
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def format_instant(seconds: float) -> str:
    """Seconds since 1970 as the text that is stored: UTC, milliseconds, `Z`."""
    whole_s, ms = divmod(round(seconds * 1000), 1000)
    return f"{_second(whole_s)}.{ms:03d}Z"


@functools.lru_cache(1)  # a worker asks a thousand times a second
def _second(whole_s: int) -> str:
    return datetime.fromtimestamp(whole_s, UTC).isoformat()[:19]


def instant_s(instant: str) -> float:
    """Seconds since 1970 of a stored instant."""
    return datetime.fromisoformat(instant).timestamp()


def add_seconds(instant: str, seconds: float) -> str:
    """The instant that much later, never beyond the year 9999."""
    return format_instant(min(instant_s(instant) + seconds, 253_402_300_799.0))


def parse_instant(value: object, now: str, what: str = "time") -> str:
    """A stored instant from ISO 8601, `HH:MM` (the next one) or `+10m`; the local zone unless one is given."""
    text = value.strip() if isinstance(value, str) else ""
    try:
        if text.startswith("+"):
            return add_seconds(now, parse_duration(text[1:], f"duration in a {what}"))
        if match := re.fullmatch(r"(\d{1,2}):(\d{2})", text, re.ASCII):
            here = datetime.fromisoformat(now).astimezone()
            then = here.replace(
                tzinfo=None, hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0
            )
            for when in (
                then,
                then.replace(fold=1),
                then + timedelta(days=1),
            ):  # an hour may come twice a day
                if (at := format_instant(when.timestamp())) > now:
                    break
            return at
        if not re.match(r"\d{4}-?\d\d-?\d\d", text, re.ASCII):
            raise ValueError(text)
        return format_instant(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError, OSError):
        raise BadValue(
            f"{_shown(value)} is not a {what}. Give ISO 8601 (2026-12-24T18:00), HH:MM or +10m."
        ) from None


# -- Values of the record's fields. One function per kind; each raises BadValue naming the field.


def parse_id(value: object, name: str = "id") -> str:
    if not isinstance(value, str) or not re.fullmatch(_ID, value):
        wanted = f"Give 1 to {ID_CHARS_MAX} letters, digits, '.', '_', '-' or ':', not starting with '.' or '-'."
        raise BadValue(f"'{name}' {_shown(value)} is not a usable id. {wanted}")
    return value


_ID: Final = rf"[A-Za-z0-9_:][A-Za-z0-9._:-]{{0,{ID_CHARS_MAX - 1}}}"


def parse_command(value: object, name: str = "command") -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadValue(
            f"'{name}' is {_shown(value)}. Give a text that is not empty, such as: echo hi."
        )
    return _plain(value, name, COMMAND_BYTES_MAX, "bytes, the kernel's limit for one argument")


def _plain(value: str, name: str, limit: int, unit: str) -> str:
    """UTF-8 without NUL, of at most `limit` bytes."""
    size = _utf8_bytes(value)
    if size == math.inf:
        raise BadValue(f"'{name}' is not valid UTF-8: {_shown(value)}. Give it in UTF-8.")
    if "\0" in value:
        raise BadValue(f"'{name}' holds a NUL character, which no command can. Leave it out.")
    if size > limit:
        raise BadValue(
            f"'{name}' has {size} bytes; the limit is {limit} {unit}. Give the name of a script or file."
        )
    return value


def _string(limit: int) -> Check:
    def check(value: object, name: str) -> str:
        if not isinstance(value, str) or not value:
            raise BadValue(f"'{name}' is {_shown(value)}. Give a text that is not empty.")
        return _plain(value, name, limit, "bytes")

    return check


def parse_cwd(value: object, name: str = "cwd") -> str:
    path: str = _string(TEXT_CHARS_MAX)(value, name)
    if not path.startswith("/"):
        raise BadValue(f"'{name}' is {_shown(value)}. Give an absolute path.")
    return path


def parse_env(value: object, name: str = "env") -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > ENV_MAX:
        raise BadValue(f"'{name}' is {_shown(value)}. Give an object of at most {ENV_MAX} texts.")
    for key, text in value.items():
        if not key or "=" in key or not isinstance(text, str):
            raise BadValue(
                f"'{name}' has {_shown({key: text})}. Give names without '=' and a text for each."
            )
        _plain(key, name, TEXT_CHARS_MAX, "bytes")
        _plain(text, name, COMMAND_BYTES_MAX, "bytes")
    return value


def parse_tags(value: object, name: str = "tags") -> list[str]:
    if not isinstance(value, list) or len(value) > TAGS_MAX:
        raise BadValue(f"'{name}' is {_shown(value)}. Give a list of at most {TAGS_MAX} tags.")
    for tag in value:
        if not isinstance(tag, str) or not re.fullmatch(TAG, tag):
            wanted = f"Give tags of 1 to {TAG_CHARS_MAX} characters without space, ',' or '='."
            raise BadValue(f"'{name}' has {_shown(tag)}. {wanted}")
        _plain(tag, name, TEXT_CHARS_MAX, "bytes")
    return list(dict.fromkeys(value))


def parse_after(value: object, name: str = "after") -> list[Any]:
    """`["a7", {"id": "b2", "any": true}]`, each job once; the stricter where one is named both ways."""
    if not isinstance(value, list) or len(value) > AFTER_MAX:
        raise BadValue(f"'{name}' is {_shown(value)}. Give a list of at most {AFTER_MAX} ids.")
    parents: dict[str, bool] = {}
    for item in value:
        said = item if isinstance(item, dict) else {"id": item}
        if said.keys() - {"id", "any"} or not isinstance(said.get("any", False), bool):
            raise BadValue(
                f'\'{name}\' has {_shown(item)}. Give an id, or {{"id": ID, "any": true}}.'
            )
        id = parse_id(said.get("id"), name)
        parents[id] = said.get("any", False) and parents.get(id, True)
    return [{"id": id, "any": True} if any_end else id for id, any_end in parents.items()]


_INSTANT: Final = "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{3}Z"


def _instant_field(value: object, name: str) -> str:
    """An instant as it stands in a file: any ISO 8601 with a zone, made canonical."""
    if isinstance(value, str) and re.fullmatch(_INSTANT, value):
        with contextlib.suppress(ValueError):
            datetime.fromisoformat(value)
            return value
    return parse_instant(value, "1970-01-01T00:00:00.000Z", f"time in '{name}'")


_reason = _rule(
    lambda text: isinstance(text, str) and "\0" not in text, "a text without NUL"
)  # any bytes of a PATH
_runs = _rule(
    lambda value: isinstance(value, list) and all(isinstance(run, dict) for run in value),
    "a list of runs",
)
FIELD_CHECKS: Final[dict[str, Check]] = {
    "id": parse_id,
    "state": _choice(*STATES),
    "seq": _whole(0, 1 << 52),  # leaves room for the jobs that come after it
    "unique": _string(TEXT_CHARS_MAX),
    "command": parse_command,
    **dict.fromkeys(("attempts", "runs", "slot", "recoveries"), _whole(0, 1 << 53)),
    "max_retries": _whole(0, RETRIES_MAX),
    "priority": _whole(-PRIORITY_MAX, PRIORITY_MAX),
    "timeout": parse_duration,
    **dict.fromkeys([name for name in JOB_FIELDS if name.endswith("_at")], _instant_field),
    "cwd": parse_cwd,
    "env": parse_env,
    "tags": parse_tags,
    "after": parse_after,
    "no_retry_on": parse_exit_codes,
    "worker": _string(ID_CHARS_MAX),
    "outcome": _choice("exited", "signalled", "timed_out", "not_started", "handed_back"),
    "exit_code": _whole(0, 255),
    "signal": _whole(1, 64),
    "reason": _reason,
    "history": _runs,
}


def job_from_dict(record: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Job:
    """The one way from JSON to a Job: every field checked, unknown ones kept. Raises BadValue.

    `defaults` fills what a hand-written record left out.
    """
    values: dict[str, Any] = dict(defaults or ())
    extra = None
    for name, value in record.items():
        check = FIELD_CHECKS.get(name)
        if check is None:
            extra = extra or {}
            extra[name] = value
        elif value is not None:
            values[name] = check(value, name)
    if defaults is None and not values.keys() >= _ALWAYS:
        raise BadValue(f"The field '{min(_ALWAYS - values.keys())}' is missing.")
    values.setdefault("unique", None)
    job = Job(**values, extra=extra)
    if problem := check_job(job):
        raise BadValue(f"Job '{job.id}': {problem}.")
    return job


_ALWAYS: Final = frozenset(JOB_FIELDS[:12]) - {"unique"}


def decode_job(raw: bytes) -> Job:
    """A Job from a line that we wrote ourselves. Raises BadValue where it is not one."""
    try:
        record, _ = _read_json(raw.decode())
    except ValueError as error:
        raise BadValue(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise BadValue(f"not a job: {_shown(record)}")
    return job_from_dict(record)


def trust_job(raw: bytes) -> Job:
    """A Job from a line of ours that a checksum or fingerprint vouches for: its values were checked when they were
    written. At half of what `decode_job` costs: a claim looks at one such line, an index at many."""
    try:
        record, _ = _read_json(raw.decode())
        if record.keys() <= _FIELDS:
            return Job(unique=record.pop("unique", None), **record)
        return decode_job(raw)
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        BadValue,
    ) as error:  # the disk changed these bytes
        raise StoreError(f"A record cannot be used ({error}): {_shown(raw.decode('utf-8', 'replace'))}. Nothing was "
                         "changed. See: queuectl doctor.") from error  # fmt: skip


_FIELDS: Final = frozenset(JOB_FIELDS)


def check_job(job: Job) -> str | None:
    """The first way in which the job's fields do not fit its state (J1, J2), in words; None where all is well."""
    if job.attempts > max(1, job.max_retries) or job.attempts > job.runs:
        return f"'attempts' is {job.attempts}, with 'max_retries' {job.max_retries} and 'runs' {job.runs}"
    match job.state:
        case "processing":
            if job.worker is None or job.slot is None or job.started_at is None or job.attempts < 1:
                return (
                    "a processing job needs 'worker', 'slot', 'started_at' and at least one attempt"
                )
        case "failed":
            if job.run_at is None or job.attempts < 1:
                return (
                    "a failed job needs 'run_at', when it is tried again, and at least one attempt"
                )
            if job.attempts >= max(1, job.max_retries):
                return (
                    f"a failed job has attempts left, not {job.attempts} of {job.max_retries} made"
                )
        case "completed" | "dead":
            if job.finished_at is None:
                return f"a {job.state} job needs 'finished_at'"
        case "pending":
            if job.attempts >= max(1, job.max_retries):
                return (
                    f"a pending job has attempts left, not {job.attempts} of {job.max_retries} made"
                )
    if job.worker is not None and job.state != "processing":
        return f"a {job.state} job has no 'worker'"
    if job.finished_at is not None and job.state not in OVER:
        return f"a {job.state} job has no 'finished_at'"
    if job.cancelled_at is not None and job.state not in ("processing", "dead"):
        return f"a {job.state} job has no 'cancelled_at'"
    return None


def make_id(ms: int, number: int) -> str:
    """A made id: 8 base-36 digits of milliseconds and 4 of n, both given under the lock, so it is unique."""
    return _time_digits(ms) + _four_digits(number)


def made_ids(ms: int, first: int, last: int) -> Iterator[bytes]:
    """What `make_id` gives for all these numbers, one a line: up to 1,296 in a row differ in two digits only."""
    while first <= last:
        head, low = make_id(ms, first)[:-2], first % 1296
        digits = _PAIRS[low : low + last - first + 1]
        yield "".join([f"{head}{pair}\n" for pair in digits]).encode()
        first += len(digits)


@functools.lru_cache(1)  # of a bulk all ids begin alike
def _time_digits(ms: int) -> str:
    return _four_digits(ms // 1296**2) + _four_digits(ms)


def _four_digits(number: int) -> str:
    return _PAIRS[number // 1296 % 1296] + _PAIRS[number % 1296]


_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_PAIRS: Final = [high + low for high in _DIGITS for low in _DIGITS]


# -- What a user may say of a new job.


class Spec(NamedTuple):
    """A new job as asked for, checked; None where nothing was said. Of `run_at` and `delay` (seconds) at most one."""

    command: str
    id: str | None = None
    unique: str | None = None
    max_retries: int | None = None
    priority: int | None = None
    timeout: float | None = None
    run_at: str | None = None
    cwd: str | None = None
    env: dict[str, str] | None = None
    tags: list[str] | None = None
    after: list[Any] | None = None
    no_retry_on: str | None = None
    delay: float | None = None


_WRONG_NAMES: Final = {
    "cmd": "command", "script": "command", "shell": "command", "name": "id", "job_id": "id", "key": "unique",
    "retry": "max_retries", "retries": "max_retries", "retry_count": "max_retries", "max_attempts": "max_retries",
    "at": "run_at", "start_at": "run_at", "scheduled_at": "run_at", "not_before": "run_at",
    "time_limit": "timeout", "dir": "cwd", "workdir": "cwd", "working_dir": "cwd", "working_directory": "cwd",
    "environment": "env", "env_vars": "env", "label": "tags", "labels": "tags", "depends_on": "after",
}  # fmt: skip
_IGNORED: Final = ("created_at", "updated_at")
_NEW_JOB: Final = {"state": "pending", "attempts": 0, "runs": 0}  # what a new job has anyway


def parse_spec(record: object, now: str) -> dict[str, Any]:
    """The fields of a Spec from a user's JSON object, checked. Raises BadValue naming the field."""
    if not isinstance(record, dict):
        raise BadValue(
            f'A job must be a JSON object, not {_shown(record)}. For example: {{"command": "echo hi"}}.'
        )
    out: dict[str, Any] = {}
    for name, value in record.items():
        if name in _NEW_JOB and _shown(value) == _shown(_NEW_JOB[name]) or name in _IGNORED:
            continue
        if name not in Spec._fields and (
            value is not None or name not in JOB_FIELDS or name in _NEW_JOB
        ):
            raise BadValue(_unknown_field(name))
        if value is None:
            continue
        if name in ("run_at", "delay") and out.keys() & {"run_at", "delay"}:
            raise BadValue("Give 'run_at' or 'delay', not both.")
        if name == "delay":
            out["delay"] = parse_duration(value, "duration in 'delay'")
        elif name == "run_at":
            out["run_at"] = parse_instant(value, now, "time in 'run_at'")
        else:
            out[name] = FIELD_CHECKS[name](value, name)
    if "command" not in out:
        raise BadValue('The job has no \'command\'. Give one: {"command": "echo hi"}.')
    return out


def _unknown_field(name: str) -> str:
    if name in JOB_FIELDS:
        return f"The field '{name}' belongs to the queue and cannot be given. Leave it out."
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])|-", "_", name).lower()
    plain = re.sub(r"_(s|secs?|seconds|ms)$", "", plain)
    right = plain if plain in Spec._fields else _WRONG_NAMES.get(plain)
    hint = f" Its name is '{right}'." if right else _nearest(plain, Spec._fields)
    return f"There is no field '{name}'.{hint} The fields are: {', '.join(Spec._fields)}."


def new_job(spec: Spec, id: str, seq: int, config: Config, now: str) -> Job:
    """The record of an accepted job: settings copied in, the delay turned into an instant."""
    run_at = spec.run_at if spec.delay is None else add_seconds(now, spec.delay)
    return Job(
        id=id, state="pending", seq=seq, unique=spec.unique, command=spec.command, attempts=0, runs=0,
        max_retries=config.max_retries if spec.max_retries is None else spec.max_retries,
        priority=spec.priority or 0,
        timeout=config.job_timeout if spec.timeout is None else spec.timeout,
        created_at=now, updated_at=now, run_at=run_at if run_at is None or run_at > now else None,
        cwd=spec.cwd, env=spec.env or None, tags=spec.tags or None, after=spec.after or None,
        no_retry_on=spec.no_retry_on,
    )  # fmt: skip


# -- What a job comes after.


def parents_of(job: Job | Spec) -> dict[str, bool]:
    """The jobs that this one comes after, each with whether any end of it will do."""
    return {
        item["id"] if isinstance(item, dict) else item: isinstance(item, dict)
        for item in job.after or ()
    }


def needed_by(job: Job) -> list[str]:
    """The jobs without whose completion this one dies."""
    return [id for id, any_end in parents_of(job).items() if not any_end]


def die_after(job: Job, parent: str, now: str) -> Job:
    """The waiting job, dead because one that it comes after is."""
    return _let_die(job, _after_reason(parent), now)


def _let_die(job: Job, reason: str, now: str) -> Job:
    """A job that does not run, dead for that reason."""
    return job._replace(state="dead", updated_at=now, run_at=None, finished_at=now, reason=reason)


def has_died_after(job: Job) -> bool:
    """Whether it is dead for no other reason than that: it comes back together with the other."""
    return job.state == "dead" and any(
        job.reason == _after_reason(parent) for parent in needed_by(job)
    )


def _after_reason(parent: str) -> str:
    return f"job {parent}, which it comes after, is dead"


# -- Transitions.


def claim_job(job: Job, worker: str, slot: int, now: str) -> Job:
    """The job as it runs in that slot: one attempt and one run more."""
    return job._replace(
        state="processing", attempts=job.attempts + 1, runs=job.runs + 1, updated_at=now, run_at=None,
        worker=worker, slot=slot, started_at=now, outcome=None, exit_code=None, signal=None, reason=None,
    )  # fmt: skip


def report_job(job: Job, outcome: Outcome, config: Config, spread: float, now: str) -> Job:
    """The job after its attempt ended so. `spread`, from -1 to 1, is what backoff_jitter is multiplied by."""
    if job.cancelled_at is not None or outcome.kind == "handed_back":
        return give_back(job, outcome, now)
    if outcome.kind == "exited" and outcome.exit_code == 0:
        return _end_run(job, outcome, now, "completed", None)
    codes = config.no_retry_on if job.no_retry_on is None else job.no_retry_on
    if outcome.kind == "exited" and has_exit_code(codes, outcome.exit_code or 0):
        return _end_run(
            job, outcome, now, "dead", f"exit code {outcome.exit_code} is not retried (no_retry_on)"
        )
    said = outcome.reason or describe_outcome(outcome)
    if job.attempts >= max(1, job.max_retries):
        return _end_run(
            job,
            outcome,
            now,
            "dead",
            f"attempt {job.attempts} of {max(1, job.max_retries)}: {said}",
        )
    run_at = add_seconds(now, backoff_s(config, job.attempts, spread))
    return _end_run(job, outcome, now, "failed", said, run_at)


def hooks_of(job: Job, config: Config) -> dict[str, str]:
    """The hooks that a reported job calls for, by name: none while it is not over, `on_finish` alone if cancelled."""
    died = job.state == "dead" and job.cancelled_at is None
    hooks = {
        "on_dead": config.on_dead if died else "",
        "on_finish": config.on_finish if job.state in OVER else "",
    }
    return {name: command for name, command in hooks.items() if command}


def give_back(job: Job, outcome: Outcome, now: str) -> Job:
    """The job back as pending, its attempt not counted; dead where it was to be cancelled."""
    if job.cancelled_at is not None:
        return _end_run(job, outcome, now, "dead", "cancelled")
    return _end_run(job, outcome, now, "pending", outcome.reason)._replace(
        attempts=job.attempts - 1
    )


def _end_run(
    job: Job,
    outcome: Outcome,
    now: str,
    state: State,
    reason: str | None,
    run_at: str | None = None,
) -> Job:
    entry: dict[str, Any] = {
        "run": job.runs, "attempt": job.attempts, "started_at": job.started_at, "finished_at": now,
        "outcome": outcome.kind,
    }  # fmt: skip
    if outcome.exit_code is not None:
        entry["exit_code"] = outcome.exit_code
    if outcome.signal is not None:
        entry["signal"] = outcome.signal
    return job._replace(
        state=state, updated_at=now, run_at=run_at, worker=None, slot=None,
        finished_at=now if state in OVER else None,
        cancelled_at=job.cancelled_at if state == "dead" else None,
        outcome=outcome.kind, exit_code=outcome.exit_code, signal=outcome.signal, reason=reason,
        history=[*(job.history or ()), entry][-HISTORY_MAX:],
    )  # fmt: skip


def describe_outcome(outcome: Outcome) -> str:
    """`exit code 3`, `ended by signal 9` ..."""
    said: dict[OutcomeKind, str] = {
        "exited": f"exit code {outcome.exit_code}",
        "signalled": f"ended by signal {outcome.signal}",
        "timed_out": "its time limit struck",
        "not_started": "it could not be started",
        "handed_back": "handed back",
    }
    return said[outcome.kind]


def backoff_s(config: Config, attempt: int, spread: float) -> float:
    """Seconds to wait after failed attempt number `attempt`: base ** n, spread, never above backoff_max."""
    try:
        wait = float(config.backoff_base) ** attempt
    except OverflowError:
        wait = math.inf
    return max(
        0.0,
        min(
            min(wait, config.backoff_max) * (1 + config.backoff_jitter * spread), config.backoff_max
        ),
    )


def recover_job(job: Job, excused: bool, now: str) -> Job:
    """The job of a dead worker, back in the queue with its attempt given back; dead when that happened too often.

    Excused is what a job cannot be the cause of: the machine was restarted, or the worker had been told to stop and
    was killed when a service manager's patience ended.
    """
    why = (
        "the machine was restarted, or its worker killed while it stopped"
        if excused
        else "its worker died"
    )
    outcome = Outcome("handed_back", reason=why)
    recoveries = (job.recoveries or 0) + (0 if excused else 1)
    if job.cancelled_at is None and recoveries > RECOVERIES_MAX:
        why = f"its worker died {recoveries} times while it ran: it may be what ends them"
        return _end_run(job, outcome, now, "dead", why)._replace(
            attempts=job.attempts - 1, recoveries=recoveries
        )
    return give_back(job, outcome, now)._replace(recoveries=recoveries or None)


def cancel_job(job: Job, now: str) -> Job:
    """A waiting job dies; a running one is marked, and whoever ends its processing makes it dead."""
    if job.state == "processing":
        return job._replace(cancelled_at=now, updated_at=now)
    return _let_die(job, "cancelled", now)._replace(cancelled_at=now)


def retry_now(job: Job, now: str) -> Job:
    """A failed job, due at once."""
    return job._replace(run_at=now, updated_at=now)


def revive_job(job: Job, now: str) -> Job:
    """A dead letter, back as pending: attempts at zero, `seq` and history kept."""
    return job._replace(
        state="pending", attempts=0, updated_at=now, run_at=None, started_at=None, finished_at=None,
        cancelled_at=None, outcome=None, exit_code=None, signal=None, reason=None, recoveries=None,
    )  # fmt: skip


def rerun_job(job: Job, id: str, seq: int, not_over: Collection[str], now: str) -> Job:
    """A new job like that one, with its command, limits, directory, variables, tags, key and unknown fields: due now,
    or once those jobs that it comes after are over that are not."""
    after = [
        item
        for item in job.after or ()
        if (item["id"] if isinstance(item, dict) else item) in not_over
    ]
    return revive_job(job, now)._replace(
        id=id, seq=seq, runs=0, created_at=now, after=after or None, worker=None, slot=None, history=None
    )  # fmt: skip


def edit_job(job: Job, changes: Mapping[str, Any], backoff_max_s: float, now: str) -> Job:
    """The job with these fields changed (`command`, `timeout`, `max_retries`, `priority`, `run_at`, `env`).

    `env` is added to the job's own. A retry put off for longer than any backoff is pending, with its attempts: as a
    failed job it would be due (`is_ready`).
    """
    if changes.get("max_retries") is not None and max(1, changes["max_retries"]) <= job.attempts:
        raise Refused(
            f"Job '{job.id}' has made {job.attempts} attempts already, so max_retries cannot be "
            f"{changes['max_retries']}. Nothing was changed. Give {job.attempts + 1} or more."
        )
    values: dict[str, Any] = {**changes, "updated_at": now}
    if "env" in changes:
        values["env"] = parse_env({**(job.env or {}), **changes["env"]})
    if "run_at" in changes and changes["run_at"] <= now:
        values["run_at"] = now if job.state == "failed" else None
    elif job.state == "failed" and changes.get("run_at", "") > add_seconds(now, backoff_max_s):
        values["state"] = "pending"
    return job._replace(**values)


def doubt_job(job: Job, known: Job | None, now: str) -> Job:
    """What becomes of a job that a damaged line of the journal holds; `known` is what whole ones say of it.

    Its command may not be the one that was given, so it never runs by itself: an end is believed, a claim too (its
    processes may live: recovery looks), and what only this line knows to be waiting is a dead letter for a person.
    """
    if job.state in OVER:
        return job
    if job.state == "processing" and (known is None or known.state not in OVER):
        claim = {
            name: getattr(job, name)
            for name in ("attempts", "runs", "worker", "slot", "started_at")
        }
        cancelled_at = None if known else now
        return (known or job)._replace(
            **claim, state="processing", run_at=None, cancelled_at=cancelled_at
        )
    hint = f"see that it is right, then: queuectl dlq retry {job.id}"
    return known or _let_die(job, f"it stood in a damaged line of the journal; {hint}", now)


def end_without(job: Job, parent: str, now: str) -> Job:
    """A waiting job that comes after one that was lost, whose end nobody knows: a dead letter for a person."""
    hint = f"let it run with: queuectl dlq retry {job.id}"
    return _let_die(job, f"it comes after job '{parent}', which damage took; {hint}", now)


def is_ready(job: Job, now: str, backoff_max_s: float) -> bool:
    """Whether a waiting job's time has come.

    No retry waits beyond backoff_max: a failed job that seems to must have been written before the clock
    was set back, so it is due.
    """
    if job.run_at is None or job.run_at <= now:
        return True
    return job.state == "failed" and job.run_at > add_seconds(now, backoff_max_s + 1)


def full_tags(limits: Mapping[str, int], running: Iterable[Job]) -> frozenset[str]:
    """The tags of which as many jobs run as their limit allows."""
    if not limits:
        return frozenset()
    counts = dict.fromkeys(limits, 0)
    for job in running:
        for tag in counts.keys() & set(job.tags or ()):
            counts[tag] += 1
    return frozenset(tag for tag, count in counts.items() if count >= limits[tag])


def array_of(state: str) -> str:
    """Which of the two arrays a job in that state belongs to."""
    return "dlq" if state == "dead" else "jobs"


# ======== 4. STORE ========
# Owns every byte of a home but the jobs' output: paths, the lock, the journal, the two arrays, config.json,
# worker files, wake FIFOs, stop requests, and the wall clock. Each file effect goes through `os.`, so that a
# test can make any of them fail. Knows what a job looks like, not what should become of it.
#
# Layout
#   jobs.json, dlq.json   `[`, one record a line in `seq` order, `]`: the snapshot
#   .queuectl/journal.jsonl, each line `CRC32HEX JSON`, in this order:
#     header   {"format": 1, "boot": id of the machine's boot, "nonce": ..., "prev": ..., "jobs": {"inode", "size",
#               "mtime_ns", "crc"}, "dlq": ..., "counts": [pending, processing, completed, failed, dead],
#               "n": accepted ever, "oldest": ..., "next_run_at": ...}
#     repeat   a put of every processing job, so that these are known without reading an array
#     changes  {"put": [<TAB>{job},<TAB>{job}<TAB>], "del": ["id"], "counts": [...], "n": 7, ...} or, for all but
#              the last line of a large transaction, {..., "more": true}. A raw tab stands nowhere else in our
#              JSON, so records are split without parsing them.
#              A change that took over a hand edit also says {"taken": {"jobs": fingerprint}}: whatever that file
#              holds, the journal has it all.
#     intent   {"intent": {"jobs": ..., "dlq": ...}}: a fold is about to rename these arrays into place
#   .queuectl/workers/NAME  a WorkerFile, locked while its worker lives; NAME.wake its FIFO, NAME.stop a request to stop
#   .queuectl/lock, clock (what workers know of it), aside/ (what was cut off or replaced), logs/ (EXECUTION's)
#   "oldest" is when the oldest job that could start was created, "next_run_at" the earliest time that others
#   wait for: with the counts they make `status` cheap however long the queue is.
#
# Committed is a transaction whose last line is whole, checksum and newline included, and has no "more".
# A fold: (1) write the arrays that change to temporary files, fsync; (2) append the intent, fsync; (3) look once
# more that the arrays on disk are known ones; (4) rename them, fsync the home; (5) write the new journal, fsync,
# rename, fsync its directory. A crash before 4 leaves the old pair; within 4 any mix of old and new, all of them
# named by header or intent, and replaying the old journal over any mix gives the same state, since a put carries
# the whole record and a del is final; after 5 the new pair. So no step needs undoing.
# A reader without the lock reads the journal, then opens the arrays: where header or intent names them, that is
# one consistent state; else a fold came between (read again) or a person edited them (take the edit in memory).
# Opening for a change repairs: a torn or unfinished tail (and what stands behind a hole of NULs, which never reached
# the disk) is set aside and cut off; an edited array goes into the journal and is then folded. On a first start the
# journal comes last, and holds what the arrays held.
# Not promised: network file systems; power loss with fsync `never`, folds apart.
#
# S1  Arrays plus journal show each id exactly once.
# S2  No byte of a store changes without the lock (logs and a worker's own rows are not stores).
# S3  An array is replaced whole or not at all; the journal only grows until a fold replaces it.
# S4  The lock is never held while a command runs, a worker sleeps, or a person or a pipe is waited for.
# S5  A file that cannot be understood is never overwritten.
# S6  Memory changes only after the line is whole in the journal.
# S7  Nothing is appended to a journal that is no longer the one at its path.

ARRAYS: Final = ("jobs", "dlq")
_OPEN: Final = (
    os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
)  # a pipe in a file's place is an error, never a wait
_READ: Final = _OPEN | os.O_NOFOLLOW
_APPEND: Final = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
NO_FILE: Final = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ELOOP,
)  # a link that was planted is none of our files
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
LOCK_POLL_S: Final = 0.001
FOLD_BYTES_S: Final = 2 << 20  # so much of an array is written in a second, at least
PIECE_BYTES: Final = 1 << 14  # of an array, read at once for the claims that follow
SEEN_MAX: Final = 64  # records of the array that the index remembers
LOOKS_MAX: Final = 20_000  # records that a completion looks at before it gives up
HOLE: Final = bytes(64)  # so many NULs in a journal are a block that never reached the disk
_BODY: Final = 9  # a journal line's JSON starts here, after checksum and space


class Fingerprint(NamedTuple):
    """What tells one state of an array from another; `crc` is of the content, -1 where that was not read."""

    inode: int
    size: int
    mtime_ns: int
    crc: int

    def fits(self, known: Fingerprint) -> bool:
        """Whether it is that file as it was then, or another one with the same bytes."""
        return self[:3] == known[:3] or (self.size, self.crc) == (known.size, known.crc)


class Base(Record):
    """An array in canonical form, open for reading."""

    fd: int
    known: Fingerprint


class Totals(NamedTuple):
    """What each transaction's last line says of the whole queue."""

    counts: tuple[int, ...] = (0,) * len(STATES)
    n: int = 0
    oldest: str | None = None
    next_run_at: str | None = None

    def left(self) -> int:
        """How many jobs are not over."""
        return sum(
            count for state, count in zip(STATES, self.counts, strict=True) if state not in OVER
        )

    def as_json(self) -> dict[str, Any]:
        rest = {"oldest": self.oldest, "next_run_at": self.next_run_at}
        return {
            "counts": list(self.counts),
            "n": self.n,
            **{key: at for key, at in rest.items() if at},
        }

    @staticmethod
    def from_json(tail: Mapping[str, Any]) -> Totals:
        return Totals(tuple(tail["counts"]), tail["n"], tail.get("oldest"), tail.get("next_run_at"))


def _with_new(totals: Totals, jobs: Sequence[tuple[bytes, str | None]], now: str) -> Totals:
    """The totals with new jobs, each a raw record and from when it can start: "" is now, None when others are over, or
    never."""
    oldest, next_run_at, dead = totals.oldest, totals.next_run_at, 0
    for start_at in {start_at for _, start_at in jobs}:
        if start_at:
            next_run_at = min(next_run_at or start_at, start_at)
        elif start_at is not None:
            oldest = oldest or now
        else:
            dead = sum(_head(raw)[1] == "dead" for raw, start_at in jobs if start_at is None)
    counts = list(totals.counts)
    counts[STATES.index("pending")] += len(jobs) - dead
    counts[STATES.index("dead")] += dead
    return Totals(tuple(counts), totals.n + len(jobs), oldest, next_run_at)


class Place(Record):
    """Where to read on in jobs.json: an offset, good for as long as it is the same array."""

    known: Fingerprint | None = None
    offset: int = 2


class WorkerInfo(Record):
    """A worker as its file shows it. `header` has pid, started_at, boot_id, lock, threads, tags, trouble ..."""

    name: str
    header: dict[str, Any]
    rows: list[
        dict[str, Any]
    ]  # one a slot: {"job", "run", "session", "start"}, empty where the slot is idle
    seen_s: float  # seconds since 1970 of its last sign of life


class Found(Record):
    """What a search before an enqueue found: the records of those ids (b"" where one was deleted), which of them the
    journal does not name, and unique keys with the active job that holds each."""

    journal: tuple[int, int] | None
    end: int
    jobs: dict[str, bytes]
    folded: set[str]
    keys: dict[str, str]


Judge = Callable[
    [Job, Job | None], Job | None
]  # (a damaged line's job, what whole lines say of it): what to keep


class Store:
    """One home: its lock, its journal as far as read, and what the journal changed since the arrays were written.

    `overlay` maps the id of each job that the journal names to its raw record, or to None where it was deleted;
    everything else stands in the arrays (`base`) and is read from there when asked for. A store is *light* until
    something needs the overlay: an enqueue only learns the totals from the journal's last line.
    """

    def __init__(
        self, home: str, warn: Callable[[str], None], clock: Callable[[], float] = time.time
    ) -> None:
        self.home = os.path.abspath(home)
        self.dir = os.path.join(self.home, ".queuectl")
        self.workers_dir = os.path.join(self.dir, "workers")
        self.logs_dir = os.path.join(self.dir, "logs")
        self.warn = warn
        self.clock = clock
        self.journal_path = os.path.join(self.dir, "journal.jsonl")
        self._paths = {
            name: os.path.join(self.home, f"{name}.json") for name in (*ARRAYS, "config")
        }
        self._mutex = (
            threading.Lock()
        )  # a descriptor's lock does not keep threads of one process apart
        self._syncing = (
            threading.Lock()
        )  # nobody is told that a change is on the disk while its sync still runs
        self._lock_path = os.path.join(self.dir, "lock")
        self._lock_fd: int | None = None
        self._lock_identity: tuple[int, int] | None = None
        self._config: tuple[object, dict[str, object], Config] | None = (
            None  # (which file, as written, parsed)
        )
        self._nonce: object = None  # of the journal that these two speak of; they outlast a load
        self._dirty = False  # written, not yet synced
        self.is_suspect = (
            False  # a sync of this journal failed: it is never synced again, but written anew
        )
        self.steady = (
            False  # a worker goes on with the last good settings where config.json is damaged
        )
        self._config_warned: object = None  # the last warning of it: each is said once
        self._reset()

    def _reset(self) -> None:
        """Forget what was read: the next look starts afresh."""
        close_fd(getattr(self, "_fd", None))
        for base in getattr(self, "_base", {}).values():
            close_fd(base.fd)
        self._fd: int | None = None  # the journal
        self._journal_id: tuple[int, int] | None = None
        self._header: dict[str, Any] = {}
        self._repeat: list[bytes] = []  # the processing jobs as the last fold left them
        self._start = 0  # where the changes since the last fold begin
        self._offset = 0  # end of the last transaction read
        self._writable = False
        self._loaded = False  # else light: the totals alone are true
        self._must_fold = False  # an array is not as the journal's header names it
        self._known: dict[str, list[Fingerprint]] = {
            name: [] for name in ARRAYS
        }  # named by header or intent
        self._taken: dict[str, list[Fingerprint]] = {
            name: [] for name in ARRAYS
        }  # edits that the journal holds
        self._base: dict[str, Base] = {}  # the arrays, open
        self.overlay: dict[str, bytes | None] = {}
        self.processing: dict[str, Job] = {}
        self.totals = Totals()
        self._waiting: dict[object, Waiting] = {}  # by whom it is for; None: all

    def close(self) -> None:
        """Let go of every descriptor."""
        self._reset()
        close_fd(self._lock_fd)
        self._lock_fd = None

    # -- Home and lock

    def check_home(self) -> bool:
        """Whether the home exists; one that is not ours alone to write is refused (exit 3)."""
        try:
            info = os.stat(self.home)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._failed(error, self.home) from error
        if not stat.S_ISDIR(info.st_mode):
            raise StoreError(
                f"The home '{self.home}' is not a directory. Give another with --home."
            )
        if info.st_uid != os.geteuid():
            raise StoreError(
                f"The home '{self.home}' belongs to user {info.st_uid}, not to you ({os.geteuid()}). "
                "Nothing was changed. Use a home of your own: --home DIR."
            )
        if info.st_mode & stat.S_IWOTH:
            raise StoreError(
                f"The home '{self.home}' can be written by everyone, who could then run commands as you. "
                f"Nothing was changed. Close it with: chmod o-w '{self.home}'."
            )
        return True

    def prepare(self) -> None:
        """Make the home ready for changes: directories, lock file, default settings. Raises StoreError."""
        if self._lock_fd is not None:
            return
        existed = self.check_home()
        try:
            make_dir(self.home)
            make_dir(self.dir)
            if os.lstat(self.dir).st_uid != os.geteuid() or not stat.S_ISDIR(
                os.lstat(self.dir).st_mode
            ):
                raise StoreError(f"'{self.dir}' is not a directory of yours. Nothing was changed.")
            make_dir(self.workers_dir)
            make_dir(self.logs_dir)
            if existed:
                self._take_group_write()
            fd = os.open(
                self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            os.fchmod(fd, 0o600)
            self._lock_fd, self._lock_identity = fd, identity_of(fd)
        except OSError as error:
            raise self._failed(error, self.dir) from error

    def _take_group_write(self) -> None:
        """Take group-write off the queue's own files: umask 002 is a common default, and no reason to refuse."""
        taken = []
        for path in (self.home, self.dir, *self._paths.values()):
            with contextlib.suppress(FileNotFoundError):
                mode = os.lstat(path).st_mode
                if mode & (stat.S_IWGRP | stat.S_IWOTH) and not stat.S_ISLNK(mode):
                    os.chmod(path, stat.S_IMODE(mode) & ~(stat.S_IWGRP | stat.S_IWOTH))
                    taken.append(os.path.basename(path))
        if taken:
            self.warn(
                f"Took write permission for others off {', '.join(taken)}: who writes there can run commands."
            )

    def _failed(self, error: OSError, path: str | None = None) -> StoreError:
        """An OSError as a person should read it."""
        where = error.filename or path or self.dir
        hint = {
            errno.ENOSPC: "Free some space and try again.",
            errno.EDQUOT: "Free some space and try again.",
            errno.EROFS: "The file system is read-only.",
            errno.EACCES: "Check the permissions.",
            errno.ELOOP: "A symbolic link stands there; remove it.",
        }.get(error.errno or 0, "Check the disk and the permissions, then try again.")
        return StoreError(f"{error.strerror or error}: '{os.fsdecode(where)}'. {hint}")

    @contextlib.contextmanager
    def _locked(self, most_s: float = math.inf) -> Iterator[None]:
        """The store lock: one kept descriptor behind a mutex. Polled, so that the wait has an end: after
        `lock_timeout` (as last read), or after `most_s` where that is shorter."""
        self.prepare()
        fd = self._lock_fd
        assert fd is not None
        config = self.last_config()
        deadline = time.monotonic() + (limit_s := min(config.lock_timeout, most_s))
        if not self._mutex.acquire(timeout=limit_s):
            raise Busy(self._locked_too_long(limit_s))
        try:
            pause_s = LOCK_POLL_S / 16  # a turn is over sooner than a poll
            while not lock_descriptor(fd, blocking=False):
                if time.monotonic() > deadline:
                    raise Busy(self._locked_too_long(limit_s))
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LOCK_POLL_S)
            try:
                if (
                    identity_of(self._lock_path) != self._lock_identity
                ):  # others may hold another lock by now
                    raise StoreError(
                        f"'{self.dir}' was deleted or replaced while in use. Nothing was changed. Start again."
                    )
                yield
            finally:
                unlock_descriptor(fd)
        except OSError as error:
            raise self._failed(error) from error
        finally:
            self._mutex.release()

    def _locked_too_long(self, limit_s: float) -> str:
        return (
            f"The queue '{self.home}' is locked by another process for more than {limit_s} s. Nothing was changed. "
            "Try again, or wait longer with: queuectl config set lock-timeout 60."
        )

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """Inside, no thread of this process holds the lock: halted with it, it would hold up everybody."""
        with self._mutex:
            yield

    def lock_id(self) -> str:
        """Device and inode of the lock file: what tells this home from a copy of it."""
        info = os.stat(self._lock_path)
        return f"{info.st_dev}.{info.st_ino}"

    def now(self) -> str:
        """The wall clock as an instant."""
        return format_instant(self.clock())

    # -- Settings

    def settings(self) -> dict[str, object]:
        """What config.json holds, checked; {} where the home has none yet. Raises StoreError."""
        self.config()
        return dict(self._config[1]) if self._config else {}

    def config(self) -> Config:
        """The settings in force; read again only when the file has changed. Raises StoreError."""
        try:
            return self._read_config()
        except StoreError as error:
            if not self.steady or self._config is None:
                raise
            if str(error) != self._config_warned:
                self._config_warned = str(error)
                self.warn(f"The last good settings stay in force: {error}")
            return self._config[2]

    def last_config(self) -> Config:
        """The settings as this process read them last, for what asks many times a turn."""
        return self._config[2] if self._config else self.config()

    def _read_config(self) -> Config:
        path = self._paths["config"]
        try:
            info = os.stat(path)
            mark = (info.st_ino, info.st_size, info.st_mtime_ns)
            if self._config and self._config[0] == mark:
                return self._config[2]
            data = _bytes_of(path)
        except FileNotFoundError:
            if os.path.exists(self.journal_path):
                raise StoreError(
                    f"'{path}' is missing beside a journal. Nothing was changed. Put it back, or write {{}} into it "
                    "for the default settings."
                ) from None
            return parse_settings({})
        except OSError as error:
            raise self._failed(error, path) from error
        try:
            values = parse_json(data.decode(), "The file")
            if not isinstance(values, dict):
                raise BadValue("The file must hold one JSON object.")
            values = spell_settings(values)
            config = parse_settings(values)
        except (UnicodeDecodeError, BadValue) as error:
            raise StoreError(
                f"'{path}' cannot be used: {error} Nothing was changed. Copy it first, then mend it with an editor, "
                "or: queuectl doctor --fix."
            ) from error
        self._config = (mark, values, config)
        return config

    def settings_problem(self) -> str | None:
        """What is wrong with config.json; where something is, this store goes on with the defaults."""
        try:
            self._read_config()
        except StoreError as error:
            self._config, self.steady, self._config_warned = (
                (None, {}, parse_settings({})),
                True,
                str(error),
            )
            return str(error)
        return None

    def save_settings(
        self, change: Callable[[dict[str, object]], dict[str, object]]
    ) -> dict[str, object]:
        """Replace config.json, whole and atomically, by what `change` makes of it. Checked before it is written."""
        with self._locked():
            self._catch_up(light=True)
            values = change(self.settings())
            parse_settings(values)
            self._write_settings(values)
        return values

    def _write_settings(self, values: Mapping[str, object]) -> None:
        temporary = self._temporary("config")
        with _new_file(temporary) as fd:
            write_whole(
                fd,
                json.dumps(values, indent=2, ensure_ascii=False).encode("utf-8", "replace") + b"\n",
            )
            os.fsync(fd)
        os.rename(temporary, self._paths["config"])
        try:
            _sync_dir(self.home)
        except OSError as error:
            raise StoreError(
                f"The settings may have been stored, but the disk did not confirm it ({error.strerror}). "
                "Look with: queuectl config show."
            ) from error

    # -- Reading

    def read(self) -> None:
        """Read the queue as it is now, without the lock and without changing anything (works read-only)."""
        if self.check_home():
            try:
                self._load(locked=False)
            except OSError as error:
                raise self._failed(error) from error

    def read_totals(self) -> Totals:
        """The totals alone, from the journal's two ends; whatever does not fit falls back to a whole read."""
        if not self.check_home():
            return Totals()
        try:
            self._reset()
            if (
                not self._attach(writable=False)
                or not self._read_tail()
                or not self._arrays_known()
            ):
                self._load(locked=False)
        except OSError as error:
            raise self._failed(error) from error
        return self.totals

    def changed(self) -> bool:
        """Whether journal or arrays differ from what was last read. A look without the lock, for housekeeping."""
        try:
            info = os.stat(self.journal_path)
        except OSError:
            return True
        same = (info.st_dev, info.st_ino) == self._journal_id
        return not same or info.st_size != self._offset or not self._arrays_known()

    def follow(self, most_s: float = math.inf) -> None:
        """Take in what others appended, folded or edited. Takes the lock: others may be cutting a tail back."""
        with self._locked(most_s):
            self._catch_up()

    def refresh(self) -> bool:
        """Read what has changed since, without the lock: for commands that wait. False where nothing has."""
        if self._loaded and not self.changed():
            return False
        try:
            info = os.stat(self.journal_path)
            if (
                (info.st_dev, info.st_ino) == self._journal_id
                and info.st_size >= self._offset
                and self._arrays_known()
            ):
                self._replay(locked=False)
                return True
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._failed(error) from error
        self.read()
        return True

    def news(self) -> Iterator[bytes | None]:
        """The records that changed since the last call (at first: since the last fold), and the totals up to date.

        None comes before the processing jobs that a new journal repeats: what ran before is over or among them.
        Nothing is kept, so following costs what happens, however long the queue is.
        """
        while True:
            # Asked first: a journal that is no longer there grows no more.
            latest = self._journal_id is not None and self._journal_id == identity_of(
                self.journal_path
            )
            for end, line, whole in (
                _read_lines(self._fd, self._offset) if self._fd is not None else ()
            ):
                body = _check_line(line) if whole else None
                if body is None:
                    break  # still being written, or about to be cut off
                self._offset = end
                if body.startswith(b'{"put"'):
                    raws, rest = _split_change(body)
                    self.totals = Totals.from_json(rest) if "counts" in rest else self.totals
                    yield from raws
            if latest:
                return
            self._reset()
            if not (self.check_home() and self._attach(writable=False)):
                self.read()
                self._journal_id = None
                return
            yield None
            yield from self._repeat

    def last_dead(self, count: int) -> list[bytes]:
        """The dead letters of the array that arrived last, the newest first; after `news`."""
        if self._fd is not None and not self._base:
            self._open_arrays(there=True)
        lines = _array_lines_reversed(self._base["dlq"]) if "dlq" in self._base else iter(())
        return [raw for raw, _ in zip(lines, range(count), strict=False)]

    def examine(self) -> list[str]:
        """What the journal's end and the arrays' bytes show, after a read; a sentence each."""
        problems = []
        if self._fd is None and self.overlay and os.path.exists(os.path.join(self.dir, "lock")):
            problems.append(
                f"'{self.journal_path}' is missing: what changed since the arrays were written is lost."
            )
        if self._fd is not None and os.fstat(self._fd).st_size > self._offset:
            problems.append(
                f"'{self.journal_path}' ends in an unfinished line; the next change sets it aside."
            )
        for name, base in self._base.items():
            if _crc_of(base.fd) != base.known.crc:
                problems.append(
                    f"'{self._paths[name]}' does not hold the bytes that were written (bad disk?)."
                )
            for raw in _array_lines(base):
                if array_of(_head(raw)[1]) != name:
                    problems.append(
                        f"'{self._paths[name]}' holds job '{_head(raw)[0]}', which is {_head(raw)[1]}."
                    )
        return problems

    # -- Loading: journal and arrays as one state, repaired where the lock is held

    def _attach(self, writable: bool) -> bool:
        """Open the journal at its path and read its header. False where there is none."""
        try:
            self._fd = os.open(self.journal_path, _APPEND if writable else _READ)
        except FileNotFoundError:
            return False
        info = os.fstat(self._fd)
        self._journal_id = (info.st_dev, info.st_ino)
        lines = _read_lines(self._fd, 0)
        bodies = []
        for number in (1, 2):
            self._start, line, whole = next(lines, (0, b"", False))
            body = _check_line(line) if whole else None
            if body is None:
                raise self._damaged(number)
            bodies.append(body)
        self._header = header = json.loads(bodies[0])
        self._check_format(header)
        if header.get("nonce") != self._nonce:
            self._nonce, self._dirty, self.is_suspect = header.get("nonce"), False, False
        for name in ARRAYS:
            self._known[name] = [Fingerprint(**header[name])]
        self.totals = Totals.from_json(header)
        self._repeat = _split_change(bodies[1])[0]
        self._offset = self._start
        self._writable = writable
        return True

    def _check_format(self, header: Mapping[str, Any]) -> None:
        if header.get("format") != FORMAT:
            raise StoreError(
                f"'{self.journal_path}' has format {_shown(header.get('format'))}; this queuectl knows {FORMAT}. "
                "Nothing was changed. Use the queuectl that wrote it."
            )

    def _damaged(self, line: int) -> StoreError:
        return StoreError(
            f"'{self.journal_path}' is damaged at line {line}: its checksum does not fit. Nothing was changed. "
            f"Repair it with: queuectl doctor --fix."
        )

    def _arrays_known(self) -> bool:
        """Whether both arrays on disk are ones that header or intent name."""
        for name in ARRAYS:
            try:
                info = os.stat(self._paths[name])
            except FileNotFoundError:
                return False
            mark = (info.st_ino, info.st_size, info.st_mtime_ns)
            if all(known[:3] != mark for known in self._known[name]):
                return False
        return True

    def _read_tail(self) -> bool:
        """The totals from the last line alone. False where that is not enough to know them.

        Nor is it after a reboot: a power loss may have left a hole before lines that are whole (`_replay`).
        """
        assert self._fd is not None
        size = os.fstat(self._fd).st_size
        if size == self._offset:
            return True
        if self._header.get("boot") != boot_id():
            return False
        reach = 1 << 14
        while True:
            start = max(self._offset, size - reach)
            data = b"".join(_pieces(self._fd, start))
            if not data.endswith(b"\n"):
                return False
            cut = data.rfind(b"\n", 0, -1)
            if cut >= 0 or start == self._offset:
                break
            reach *= 16
        body = _check_line(data[cut + 1 : -1])
        if body is None or not body.startswith(b'{"put"') or b'"more": true' in body[-20:]:
            return False
        self.totals = Totals.from_json(_rest_of(body))
        self._offset = start + len(data)
        return True

    def _load(self, locked: bool) -> None:
        """Read journal and arrays whole. Under the lock it also repairs: torn tail, hand edit, first start."""
        try:
            edited = self._read_files(locked)
            if edited:
                self._take_edits(edited, locked)
            if locked and self._fd is None:
                self._write_first_journal(edited)
                self._load(locked=True)
            elif locked and (self._must_fold or edited):
                self._fold()
        except BaseException:
            self._reset()  # half a state must never be taken for the whole
            raise

    def _read_files(self, locked: bool) -> list[str]:
        """Journal and arrays, as one consistent state; the names of the arrays that a person edited."""
        while True:
            self._reset()
            self._loaded = True
            there = self._attach(writable=locked)
            size = 0
            if there and self._fd is not None:
                size = os.fstat(self._fd).st_size
                for raw in self._repeat:
                    self._put(raw)
                self._replay(locked)
            edited = self._open_arrays(there)
            if not edited or locked or not there:
                return edited
            info = os.stat(self.journal_path)
            if (info.st_dev, info.st_ino) == self._journal_id and info.st_size == size:
                return edited  # no fold came between: a person's edit

    def _replay(self, locked: bool) -> None:
        """Apply the journal from `_offset` to its end. A bad line is a torn tail where nothing good follows it."""
        assert self._fd is not None
        batch: list[tuple[list[bytes], dict[str, Any]]] = []
        start, bad = self._offset, -1  # of this line, of the first one that is not whole
        for end, line, whole in _read_lines(self._fd, start):
            body = _check_line(line) if whole else None
            if body is None and bad < 0:
                bad = start
            start = end
            if body is None:
                if HOLE in line:
                    break  # never written before the power went: nothing after it was synced either
                continue
            if bad >= 0:
                raise self._damaged(
                    1 + sum(1 for at, _, _ in _read_lines(self._fd, 0) if at <= bad)
                )
            try:
                if body.startswith(b'{"intent"'):
                    for name, mark in json.loads(body)["intent"].items():
                        self._known[name].append(Fingerprint(**mark))
                else:
                    batch.append(_split_change(body))
                    if batch[-1][1].get("more"):
                        continue
                    self._apply(batch)
                    for name, mark in batch[-1][1].get("taken", {}).items():
                        self._taken[name].append(Fingerprint(**mark))
                    batch = []
            except (ValueError, LookupError, TypeError, QueueError) as error:
                raise StoreError(
                    f"'{self.journal_path}' holds a line that is whole and cannot be understood ({error}). "
                    "Nothing was changed. Repair it with: queuectl doctor --fix."
                ) from error
            self._offset = end
        if locked and os.fstat(self._fd).st_size > self._offset:
            self._set_tail_aside()

    def _apply(self, batch: Sequence[tuple[list[bytes], dict[str, Any]]]) -> None:
        """A transaction's lines, split, into the overlay."""
        for raws, rest in batch:
            for raw in raws:
                self._put(raw)
            for id in rest.get("del", ()):
                self._delete(id)
        self.totals = Totals.from_json(batch[-1][1])

    def _set_tail_aside(self) -> None:
        """Under the lock: keep what follows the last whole transaction in a file of its own, then cut it off."""
        assert self._fd is not None
        path = self._aside("journal-tail", self.journal_path, self._offset)
        os.ftruncate(self._fd, self._offset)
        self.warn(
            f"The journal ended in an unfinished line (a crash?); it was cut off and kept as '{path}'."
        )

    def _aside(self, stem: str, source: str, start: int) -> str:
        """Copy a file's bytes from `start` on, which are not to be lost, to a new file under .queuectl/aside."""
        folder = os.path.join(self.dir, "aside")
        make_dir(folder)
        path = os.path.join(folder, f"{stem}.{self.now().replace(':', '')}-{os.urandom(2).hex()}")
        read_fd = os.open(source, _OPEN)
        try:
            with _new_file(path) as fd:
                _copy(read_fd, start, os.fstat(read_fd).st_size, fd)
                os.fsync(fd)
        finally:
            os.close(read_fd)
        return path

    def _put(self, raw: bytes, job: Job | None = None) -> None:
        """A record as it is now, into overlay and indexes; the totals are another's matter."""
        id, state, seq = job[:3] if job else _head(raw)
        self.overlay[id] = raw
        if state == "processing":
            self.processing[id] = job or trust_job(raw)
        else:
            self.processing.pop(id, None)
        for index in self._waiting.values():
            if state in WAITING:
                index.add(raw, id, seq)
            if index.parents:
                index.note(id, None if state in OVER else seq)

    def _delete(self, id: str) -> None:
        self.overlay[id] = None
        self.processing.pop(id, None)
        for index in self._waiting.values():
            index.note(id, None)

    def _open_arrays(self, there: bool) -> list[str]:
        """Open the arrays that header or intent name; the names of the others, which a person changed."""
        edited = []
        for name in ARRAYS:
            try:
                fd = os.open(self._paths[name], _OPEN)
            except FileNotFoundError:
                if there:
                    raise StoreError(
                        f"'{self._paths[name]}' is missing beside a journal. Nothing was changed. Put it back "
                        "(an empty one holds: [ ]), or make do without: queuectl doctor --fix."
                    ) from None
                continue
            mark, known = _fingerprint(fd, -1), self._known[name]
            named = [*self._taken[name], *known]
            if all(one[:3] != mark[:3] for one in named) and any(
                one.size == mark.size for one in named
            ):
                mark = mark._replace(
                    crc=_crc_of(fd)
                )  # touched, copied or restored: perhaps the same bytes
            if any(map(mark.fits, self._taken[name])):
                os.close(fd)  # whatever it holds, the journal has it all
                known.append(mark)
                self._must_fold = True
            elif any(map(mark.fits, known)):
                same = next((one for one in known if one[:3] == mark[:3]), None)
                if same is None:
                    known.append(mark)
                    self._must_fold = True
                self._base[name] = Base(fd, same or mark)
            else:
                os.close(fd)
                edited.append(name)
        return edited

    # -- Hand edits

    def _take_edits(self, edited: list[str], locked: bool) -> None:
        """Take what a person made of the arrays into the overlay; the journal's own jobs stay as it has them.

        Under the lock what was taken also goes into the journal, in one transaction that names the edited files:
        a crash within the fold that follows can then lose nothing of it.
        """
        journal = dict(self.overlay)
        conflicts: list[str] = []
        seen: dict[str, str] = {}
        marks: dict[str, Fingerprint] = {}
        written: list[Job] = []
        for name in edited:
            records, marks[name] = self._parse_array(name)
            for number, record in enumerate(records, 1):
                try:
                    job = self._edited_job(name, record, marks[name].mtime_ns / 1e9)
                except BadValue as error:
                    raise self._edit_refused(
                        name, f"element {number}: {str(error).rstrip('.')}"
                    ) from None
                if job.id in seen:
                    raise self._edit_refused(
                        name, f"job '{job.id}' also stands in {seen[job.id]}.json"
                    )
                seen[job.id] = name
                if job.after and "seq" not in record:
                    written.append(job)
                raw = encode_job(job)
                if job.id not in journal:
                    self._put(raw)
                    self.totals = self.totals._replace(n=max(self.totals.n, job.seq))
                elif journal[job.id] != raw and name not in conflicts:
                    conflicts.append(name)
        for name, base in self._base.items():
            for raw in _array_lines(base):
                if (id := _head(raw)[0]) in seen and id not in journal:
                    raise self._edit_refused(seen[id], f"job '{id}' also stands in {name}.json")
        for name in conflicts if locked else ():
            path = self._aside(f"{name}.json.edited", self._paths[name], 0)
            self.warn(
                f"{name}.json was edited while jobs in it were changing; those stay as the queue has them, "
                f"and the edited file is kept as '{path}'."
            )
        self._check_order(written)
        self._end_by_edit(format_instant(max(mark.mtime_ns for mark in marks.values()) / 1e9))
        for name, mark in marks.items():
            self._known[name].append(mark)
        self._recount()
        if locked and self._fd is not None:
            self._append(b"".join(map(_line, self._taken_bodies(marks))))

    def _check_order(self, written: Sequence[Job]) -> None:
        """Refuse a new job by hand that comes after one which does not stand before it: it would wait for nobody."""
        parents = self._find_raws({id for job in written for id in parents_of(job)})
        for job in written:
            for id in parents_of(job).keys() & parents.keys():
                if _seq(parents[id]) >= job.seq:
                    why = f"job '{job.id}' comes after '{id}', which does not stand before it"
                    raise self._edit_refused(array_of(job.state), why)

    def _end_by_edit(self, at: str) -> None:
        """End the waiting jobs that need one which is dead (J5), as an edit or a backup may have it."""
        change = Transaction(self, at)
        for id, state, seq in map(_head, self._find_raws(self.waiting().parents).values()):
            if state == "dead":
                change.end_children(id, seq)
        for _, new in change.changes.values():
            if new is not None:
                self._put(encode_job(new))

    def _taken_bodies(self, marks: Mapping[str, Fingerprint]) -> list[bytes]:
        """The journal lines of a transaction that puts the whole overlay and names the edited files it came from."""
        raws = [raw for raw in self.overlay.values() if raw is not None]
        taken = {"taken": {name: mark._asdict() for name, mark in marks.items()}}
        return _change_bodies(raws, [], {**self.totals.as_json(), **taken})

    def _write_first_journal(self, edited: list[str]) -> None:
        """First start: settings and missing arrays, then a journal that holds all that the arrays hold."""
        if not os.path.exists(self._paths["config"]):
            self._write_settings(default_settings())
        for name in ARRAYS:
            if name not in edited:
                self._known[name] = [self._write_array(name, ())]
                os.rename(self._temporary(name), self._paths[name])
        _sync_dir(self.home)
        with contextlib.suppress(
            PermissionError
        ):  # the home's own name: its parent may be another's
            _sync_dir(os.path.dirname(self.home))
        marks = {name: self._known[name][-1] for name in ARRAYS}
        taken = {name: marks[name] for name in edited}
        self._write_journal(marks, [], self._taken_bodies(taken) if edited else [])

    def _parse_array(self, name: str) -> tuple[list[Any], Fingerprint]:
        mark, data = _marked_bytes_of(self._paths[name])
        try:
            records = parse_json(data.decode("utf-8-sig"), "The file")
        except (UnicodeDecodeError, BadValue) as error:
            raise self._edit_refused(name, str(error).rstrip(".")) from None
        if not isinstance(records, list):
            raise self._edit_refused(name, "it must hold one JSON array")
        return records, mark

    def _edit_refused(self, name: str, why: str) -> StoreError:
        return StoreError(
            f"'{self._paths[name]}' cannot be used: {why}. Nothing was changed. Copy it first, then mend it with an "
            "editor, or repair it with: queuectl doctor --fix."
        )

    def _edited_job(self, name: str, record: Any, when: float) -> Job:
        """A job from a hand-written record: what is missing gets enqueue's defaults. Raises BadValue.

        Its made id depends on the file's time and the order in it alone, so that readers who may not write
        and the writer who takes the edit over give it the same one.
        """
        config = self.config()
        at = format_instant(when)
        seq = self.totals.n + 1
        defaults: dict[str, Any] = {
            "id": make_id(int(when * 1000), seq), "state": "dead" if name == "dlq" else "pending", "seq": seq,
            "attempts": 0, "runs": 0, "max_retries": config.max_retries, "priority": 0,
            "timeout": config.job_timeout, "created_at": at, "updated_at": at, "cwd": self.home,
        }  # fmt: skip
        if not isinstance(record, dict):
            raise BadValue(f"it is not a job but {_shown(record)}")
        if record.get("state", defaults["state"]) in OVER:
            defaults["finished_at"] = at
        if record.get("state") == "failed":
            defaults["run_at"] = at
        if isinstance(record.get("attempts"), int):
            defaults["runs"] = record["attempts"]
        try:
            return job_from_dict(record, defaults)
        except TypeError:
            raise BadValue("it has no 'command'") from None

    def _recount(self) -> None:
        """The totals, counted anew from every record."""
        counts = dict.fromkeys(STATES, 0)
        n = self.totals.n
        for raw in self.raws():
            _, state, seq = _head(raw)
            counts[state] += 1  # type: ignore[index]  # a head is text; its state is one of STATES
            n = max(n, seq)
        oldest, next_run_at = self.waiting().hints(self.now(), ())
        self.totals = Totals(tuple(counts.values()), n, oldest, next_run_at)

    # -- Damage: what `doctor` finds and mends

    def survey(self) -> list[str]:
        """What of the files is not whole, a sentence each. The store is unread after it."""
        try:
            return self._salvage(lambda job, known: None)
        except OSError as error:
            raise self._failed(error) from error
        finally:
            self._reset()

    def mend(self, judge: Judge) -> list[str]:
        """Write the stores anew from what is whole in them; the paths of copies of the files as they were.

        All that is there goes into a new journal, which says so of the arrays as they stand: so the change is one
        rename, and the fold after it is any fold. Refused while a worker lives: it has the queue in its memory.
        """
        has_settings = self.settings_problem() is None
        with self._locked():
            if self.live_workers(first=True):
                raise StoreError(
                    "A worker lives. Nothing was changed. Stop it first: queuectl worker stop."
                )
            self._salvage(judge)
            there = [
                path for path in (*self._paths.values(), self.journal_path) if os.path.exists(path)
            ]
            copies = [self._aside(os.path.basename(path), path, 0) for path in there]
            _sync_dir(os.path.join(self.dir, "aside"))
            if not has_settings:
                text = (
                    _bytes_of(path).decode("utf-8", "replace")
                    if (path := self._paths["config"]) in there
                    else ""
                )
                kept = salvage_settings(text)
                self._write_settings({**default_settings(), **kept})
                lost = [name for name in SETTINGS if name not in kept]
                self.warn(
                    f"These settings could not be read and have their defaults now: {', '.join(lost)}."
                )
            self._write_first_journal([name for name in ARRAYS if self._known[name]])
            with self._fold_may_fail():
                self._load(locked=True)
        return copies

    def _salvage(self, judge: Judge) -> list[str]:
        """Load what is whole into the overlay, however damaged the files are; a sentence for all that is not.

        `judge(job, known)` makes of a record in a damaged journal line what is to be kept (None: nothing).
        """
        self._reset()
        self._loaded = True
        problems = [problem for name in ARRAYS for problem in self._salvage_array(name)]
        problems += self._salvage_journal(judge)
        expected = self.totals
        problems += self._end_lost()
        self._end_by_edit(self.now())
        self._recount()
        if any(expected.counts) and expected.counts != self.totals.counts:
            problems.append(miscounted(expected.counts, self.totals.counts))
        return problems

    def _end_lost(self) -> Iterator[str]:
        """End the waiting jobs that come after one which is not there any more."""
        for raw in filter(None, list(self.overlay.values())):
            job = decode_job(raw) if b'"after": ' in raw and _head(raw)[1] in WAITING else None
            if job is not None and (
                lost := [id for id in parents_of(job) if not self.overlay.get(id)]
            ):
                self._put(encode_job(end_without(job, lost[0], self.now())))
                yield f"Job '{job.id}' comes after '{lost[0]}', which is not there: it becomes a dead letter."

    def _salvage_array(self, name: str) -> Iterator[str]:
        path = self._paths[name]
        try:
            mark, data = _marked_bytes_of(path)
        except FileNotFoundError:
            yield f"'{path}' is missing: what only it held is lost, unless you put it back."
            return
        self._known[name] = [mark]
        text, line, last = data.decode("utf-8", "surrogateescape"), 1, 0
        if not re.fullmatch(r"\ufeff?\s*\[.*\]\s*", text, re.DOTALL):
            yield f"'{path}' is not a whole JSON array."
        for start, end in _scan_objects(text):
            line, last = line + text.count("\n", last, start), start
            try:
                job = self._edited_job(name, parse_json(text[start:end], "it"), mark.mtime_ns / 1e9)
            except BadValue as error:
                yield f"'{path}', line {line}, holds no job ({str(error).rstrip('.')}): {_shown(text[start:end])}"
                continue
            if known := self.overlay.get(job.id):
                yield f"Job '{job.id}' stands in the stores twice; of the two the one that changed last counts."
            if not known or decode_job(known).updated_at <= job.updated_at:
                self._put(encode_job(job))
            self.totals = self.totals._replace(n=max(self.totals.n, job.seq))

    def _salvage_journal(self, judge: Judge) -> Iterator[str]:
        arrays = [raw for raw in self.overlay.values() if raw]
        try:
            fd = os.open(self.journal_path, _READ)
        except FileNotFoundError:
            yield f"'{self.journal_path}' is missing: what changed since the arrays were written is lost."
            return
        batch: list[tuple[list[bytes], dict[str, Any]]] = []
        try:
            for number, (_, line, whole) in enumerate(_read_lines(fd, 0), 1):
                try:
                    body = _check_line(
                        line
                    )  # whole without its newline too: then nothing but that is missing
                    if body is None:
                        raise BadValue("its checksum does not fit" if whole else "it is unfinished")
                    if body.startswith(b'{"format"'):
                        self._check_format(json.loads(body))
                    elif body.startswith(b'{"intent"'):
                        if all(
                            Fingerprint(**mark) in self._known[name]
                            for name, mark in json.loads(body)["intent"].items()
                        ):
                            self.overlay, self.processing = (
                                {},
                                {},
                            )  # these arrays hold all that stands above
                            for raw in arrays:
                                self._put(raw)
                    else:
                        batch.append(_split_change(body))
                        if not batch[-1][1].get("more"):
                            self._apply(batch)
                            batch = []
                except (ValueError, LookupError, TypeError, BadValue) as error:
                    read = [
                        id
                        for raw in line.split(b"\t")[1:-1]
                        if whole and (id := self._doubt(raw, judge))
                    ]
                    said = f"; of its jobs {', '.join(read)} can be read" if read else ""
                    yield f"'{self.journal_path}', line {number}, is damaged: {error}{said}."
        finally:
            os.close(fd)
        if batch:
            yield f"'{self.journal_path}' ends in a bulk that was never finished; it does not count."

    def _doubt(self, raw: bytes, judge: Judge) -> str | None:
        """Take in what `judge` makes of a record in a damaged line; its id, where it is one at all."""
        try:
            job = decode_job(raw.rstrip(b","))
        except (BadValue, ValueError, TypeError):
            return None
        known = self.overlay.get(job.id)
        new = judge(job, decode_job(known) if known else None)
        if new is not None and check_job(new) is None:
            self._put(encode_job(new))
            self.totals = self.totals._replace(n=max(self.totals.n, new.seq))
        return job.id

    # -- Looking jobs up

    def job(self, id: str) -> Job | None:
        """The job with that id, or None. The store must have been read."""
        if id in self.processing:
            return self.processing[id]
        if id in self.overlay:
            raw = self.overlay[id]
            return None if raw is None else _decode(raw)
        for base in self._base.values():
            if raw := _find(base, id):
                return _decode(raw)
        return None

    def find_jobs(self, ids: Collection[str]) -> dict[str, Job]:
        """Those of these jobs that are there."""
        return {id: _decode(raw) for id, raw in self._find_raws(ids).items()}

    def find_ended(self, ids: Collection[str]) -> dict[str, Job | None]:
        """Those of these jobs that are over, or (None) that are not there any more."""
        raws = self._find_raws(ids)
        ended: dict[str, Job | None] = {id: None for id in ids if id not in raws}
        return ended | {id: _decode(raw) for id, raw in raws.items() if _head(raw)[1] in OVER}

    def _find_raws(self, ids: Collection[str]) -> dict[str, bytes]:
        """The records of those that are there; one pass over an array where there are more than a few."""
        raws = {id: self.overlay[id] for id in ids if id in self.overlay}
        rest = [id for id in ids if id not in raws]
        for base in self._base.values() if rest else ():
            raws |= dict(_among(base, rest))
        return {id: raw for id, raw in raws.items() if raw is not None}

    def peek(self, id: str) -> Job:
        """A job that is known to be there, whether or not the queue was loaded. Under the lock or not."""
        if not self._loaded and self._fd is not None:
            if raw := _last_record(self._journal_bytes(0), id):
                return _decode(raw)
            if not self._base:
                self._open_arrays(there=True)
        job = self.job(id)
        assert job is not None
        return job

    def ids_like(self, prefix: str, states: Collection[str], most: int) -> list[str]:
        """At most so many ids that begin so, of jobs in those states, for completion: a search for bytes, and never
        more than LOOKS_MAX records are looked at. After a read."""
        heads: Iterator[tuple[str, str, int]] = map(_head, self.raws(reverse=True))
        if prefix:
            mine = (_head(raw) for raw in self.overlay.values() if raw)
            bases = [
                self._base[name]
                for name in {array_of(state) for state in states}
                if name in self._base
            ]
            arrays = (_head(raw) for base in bases for raw in _records_like(base, prefix))
            heads = itertools.chain(mine, (head for head in arrays if head[0] not in self.overlay))
        near = (
            id
            for id, state, _ in itertools.islice(heads, LOOKS_MAX)
            if id.startswith(prefix) and state in states
        )
        return list(itertools.islice(near, most))

    def raws(self, reverse: bool = False, arrays: Collection[str] = ARRAYS) -> Iterator[bytes]:
        """Every record (of these arrays), in order of arrival or the reverse, as raw lines."""
        import heapq

        mine = (raw for raw in self.overlay.values() if raw and array_of(_head(raw)[1]) in arrays)
        streams: list[Iterable[bytes]] = [sorted(mine, key=_seq, reverse=reverse)]
        for name, base in self._base.items():
            if name not in arrays:
                continue
            lines = _array_lines_reversed(base) if reverse else _array_lines(base)
            streams.append(raw for raw in lines if _head(raw)[0] not in self.overlay)
        return heapq.merge(*streams, key=_seq, reverse=reverse)

    def jobs(self, reverse: bool = False, states: Collection[str] = STATES) -> Iterator[Job]:
        """Every job in those states, in order of arrival (or the reverse)."""
        for raw in self.raws(reverse, {array_of(state) for state in states}):
            if _head(raw)[1] in states:
                yield _decode(raw)

    def completed_before(
        self, instant: str, place: Place, most: int
    ) -> tuple[list[Job], Place | None]:
        """Up to `most` jobs that were completed by then, of the next piece of jobs.json, and where to read on. Within
        a transaction, so the piece is small.

        None: only younger jobs follow (records stand in order of arrival), or none. What changed since the last fold
        is left for another time; what a clock since set back says of a job's making is no word on its age.
        """
        now = self.now()
        if (base := self._base.get("jobs")) is None:
            return [], None
        found: list[Job] = []
        any_old = False
        for offset, lines in _array_chunks(base, place.offset if place.known == base.known else 2):
            for line in lines:
                if not instant < _created_at(line) <= now:
                    any_old = True
                    id, state, _ = _head(line)
                    if state == "completed" and id not in self.overlay:
                        job = _decode(line.rstrip(b","))
                        found += [job] if (job.finished_at or "") <= instant else []
                offset += len(line) + 1
                if len(found) >= most:
                    break
            if lines:
                return found, Place(base.known, offset) if any_old and offset < _array_end(
                    base
                ) else None
        return found, None

    def waiting(self, key: object = None, accept: Callable[[Job], bool] | None = None) -> Waiting:
        """The index of what waits (of the jobs that `accept` takes by their tags, under that key), built when first
        asked for, and anew when other tags have a limit."""
        limited = self.last_config().limits
        index = self._waiting.get(key)
        if index is None or index.limited != limited.keys():
            cap_s = self.config().backoff_max
            index = Waiting(
                self.overlay, self._base.get("jobs"), self.now(), cap_s, limited, accept
            )
            self._waiting[key] = index
        return index

    def has_after(self) -> bool:
        """Whether any job that is not over may come after others: by the index where there is one, else the bytes."""
        if None in self._waiting:
            return bool(self._waiting[None].parents)
        needle, base = b'"after": ', self._base.get("jobs")
        in_journal = any(needle in raw for raw in self.overlay.values() if raw is not None)
        return in_journal or (base is not None and next(_search(base.fd, needle), None) is not None)

    def meet_new_clock(self, most_s: float = math.inf) -> None:
        """After the clock was set back: what seems to wait beyond any backoff is due (`is_ready`)."""
        with self._locked(most_s):
            self._catch_up()
            self._waiting = {}
            oldest, next_run_at = self.waiting().hints(self.now(), ())
            self.totals = self.totals._replace(oldest=oldest, next_run_at=next_run_at)

    # -- Ids and unique keys, by a search for bytes: an enqueue does not load the queue

    def look_up(self, ids: Collection[str], keys: Collection[str]) -> Found:
        """What is taken, found without the lock; `transaction(light=True)` makes it exact with `look_again`."""
        self._reset()
        try:
            if (
                self.check_home()
                and self._attach(writable=False)
                and self._read_tail()
                and self._arrays_known()
            ):
                return self._look(ids, keys)
        except OSError as error:
            raise self._failed(error) from error
        return Found(None, 0, {}, set(), {})

    def look_again(self, found: Found, ids: Collection[str], keys: Collection[str]) -> Found:
        """Under the lock: the same, true now. Where the journal only grew, only the new part is searched."""
        if found.journal != self._journal_id:
            return self._look(ids, keys)
        tail = self._journal_bytes(found.end)
        for id in ids:
            if (raw := _last_record(tail, id)) is not None:
                found.jobs[id] = raw
                found.folded.discard(id)
        for key in keys:
            holders = _holders(tail, key)
            if found.keys.get(key) in holders or _last_record(tail, found.keys.get(key, "")) == b"":
                found.keys.pop(key, None)
            found.keys.update((key, id) for id, active in holders.items() if active)
        return found

    def _look(self, ids: Collection[str], keys: Collection[str]) -> Found:
        if not self._base and self._open_arrays(there=True):
            return Found(
                None, 0, {}, set(), {}
            )  # a fold or an edit came between: `look_again` does it under the lock
        journal = self._journal_bytes(0)
        jobs = {id: raw for id in ids if (raw := _last_record(journal, id)) is not None}
        rest = [id for id in ids if id not in jobs]
        folded = {id: raw for base in self._base.values() for id, raw in _among(base, rest)}
        holding: dict[str, str] = {}
        fd = self._base["jobs"].fd
        for key in keys:
            holders = _holders(journal, key)
            for offset in _search(fd, _key_needle(key)):
                raw = _line_at(fd, _start_of_line(fd, offset))
                id = _head(raw)[0]
                if id not in holders and _last_record(journal, id) is None:
                    holders[id] = _is_active(raw, key)
            holding.update((key, id) for id, active in holders.items() if active)
        return Found(self._journal_id, self._offset, {**folded, **jobs}, set(folded), holding)

    def _journal_bytes(self, start: int) -> bytes:
        """What the journal holds from there to the end of the last transaction read."""
        assert self._fd is not None
        return b"".join(_pieces(self._fd, start, self._offset))

    # -- Changing

    @contextlib.contextmanager
    def transaction(self, light: bool = False, most_s: float = math.inf) -> Iterator[Transaction]:
        """One change of the queue, whole or not at all: the lock, the latest state, then one journal line.

        What the block raises leaves everything as it was. `light` is for changes that only add jobs. With fsync
        `always` it returns when the change is on the disk.
        """
        with self._locked(most_s):
            self._catch_up(light)
            change = Transaction(self, self.now())
            yield change
            if change.changes:
                self._commit(change)
        if change.changes and self.last_config().fsync == "always":
            self.sync()

    def _catch_up(self, light: bool = False) -> None:
        """Under the lock: the state as the files have it now, repaired where a crash or an edit left work."""
        try:
            info = os.stat(self.journal_path)
            same = (info.st_dev, info.st_ino) == self._journal_id and self._writable
        except FileNotFoundError:
            if self._loaded and len(self._base) == len(ARRAYS):
                self._rebuild_journal("deleted")
            else:
                self._load(locked=True)
            return
        if same and self._loaded and info.st_size < self._offset:
            self._rebuild_journal("cut")
            return
        if not same or info.st_size < self._offset:
            self._reset()
            if not (
                light and self._attach(writable=True) and self._read_tail() and self._arrays_known()
            ):
                self._load(locked=True)
        elif not self._arrays_known():
            self._load(locked=True)
        elif info.st_size > self._offset and self._loaded:
            self._replay(locked=True)
        elif info.st_size > self._offset and not self._read_tail():
            self._load(locked=True)
        if not light and not self._loaded:
            self._load(locked=True)

    def _rebuild_journal(self, how: str) -> None:
        """Somebody cut or deleted the journal: all that was accepted is still in memory, and goes into a new one."""
        assert self._fd is not None
        if how == "cut":
            self._aside("journal.jsonl.cut", self.journal_path, 0)
            for _, line, whole in _read_lines(
                self._fd, self._start
            ):  # what others appended behind the cut
                body = _check_line(line) if whole else None
                for put in (
                    _split_change(body)[0]
                    if body is not None and body.startswith(b'{"put"')
                    else ()
                ):
                    id = _head(put)[0]
                    if id not in self.overlay and self.job(id) is None:
                        self._put(put)
                        self._recount()
        else:
            self._replay(locked=False)
        puts = [raw for raw in self.overlay.values() if raw is not None]
        gone = [id for id, raw in self.overlay.items() if raw is None]
        repeat = [raw for id in self.processing if (raw := self.overlay[id])]
        marks = {name: base.known for name, base in self._base.items()}
        self._write_journal(marks, repeat, _change_bodies(puts, gone, self.totals.as_json()))
        self.warn(
            f"'{self.journal_path}' was {how} by another program; it was written anew from memory."
        )
        self._reset()
        self._catch_up()

    def _commit(self, change: Transaction) -> None:
        """Under the lock: append the transaction's lines; only then let memory know (S6)."""
        counts = list(self.totals.counts)
        puts: list[tuple[Job, bytes]] = []
        deleted: list[str] = []
        n = self.totals.n
        for id, (old, new) in change.changes.items():
            if old is not None:
                counts[STATES.index(old.state)] -= 1
            if new is None:
                deleted.append(id)
                continue
            counts[STATES.index(new.state)] += 1
            n = max(n, new.seq)
            assert check_job(new) is None, check_job(new)
            puts.append((new, encode_job(new)))
        oldest, next_run_at = self._hints_after(change)
        totals = Totals(tuple(counts), n, oldest, next_run_at)
        bodies = _change_bodies([raw for _, raw in puts], deleted, totals.as_json())
        self._append(b"".join(map(_line, bodies)))
        self.totals = totals
        if self._loaded:
            for job, raw in puts:
                self._put(raw, job)
            for id in deleted:
                self._delete(id)

    def _hints_after(self, change: Transaction) -> tuple[str | None, str | None]:
        """`oldest` and `next_run_at` after this change; the index is asked only where they may have gone."""
        oldest, next_run_at = self.totals.oldest, self.totals.next_run_at
        gone, ended, again = False, [], set[str]()
        for id, (old, new) in change.changes.items():
            if old is None or old is new:
                continue
            if old.state in WAITING:
                gone = gone or old.created_at == oldest or (old.run_at or "-") == next_run_at
            is_over = new is None or new.state in OVER
            if is_over and old.state not in OVER:
                ended.append(id)
            elif (
                old.state in OVER and not is_over and change.has_after()
            ):  # who waits for it, waits once more
                again |= {job.id for job in self.waiting().children(id, old.seq)}
        if gone or again:
            oldest, next_run_at = self.waiting().hints(change.now, change.changes.keys() | again)
        if ended and change.has_after() and not self.waiting().parents.keys().isdisjoint(ended):
            hints = self.waiting().freed_hints(change.now, ended, change.changes.keys())
            oldest = min(filter(None, (oldest, hints[0])), default=None)
            next_run_at = min(filter(None, (next_run_at, hints[1])), default=None)
        for old, new in change.changes.values():
            if new is None or old is new or new.state not in WAITING:
                continue
            if not (new.after and self._is_held(new, change)):
                if new.run_at is None:
                    oldest = min(oldest or new.created_at, new.created_at)
                else:
                    next_run_at = min(next_run_at or new.run_at, new.run_at)
        return oldest, next_run_at

    def _is_held(self, job: Job, change: Transaction) -> bool:
        """Whether one that the job comes after is not over after this change."""
        if job.id in change.held or not self._loaded:
            return job.id in change.held
        others = []
        for id in parents_of(job):
            _, new = change.changes.get(id, (None, None))
            if new is None:
                others.append(id)
            elif new.seq < job.seq and new.state not in OVER:
                return True
        return bool(others) and self.waiting().is_any_going(others, job.seq)

    def _append(self, data: bytes) -> None:
        """Under the lock: whole lines to the journal's end, by one write; cuts back what only half arrived (S6)."""
        assert self._fd is not None
        try:
            if (done := os.write(self._fd, data)) < len(data):
                write_whole(self._fd, data[done:])
        except OSError:
            with contextlib.suppress(OSError):  # then the next writer cuts it
                os.ftruncate(self._fd, self._offset)
            raise
        self._offset += len(data)
        self._dirty = True

    def accept_bulk(
        self, make: Callable[[str, int], Iterator[tuple[bytes, str | None]]], large: bool
    ) -> int:
        """Append the new jobs that `make(now, n)` yields, in bounded memory; how many there were. It yields the raw
        record of each, and from when it can start: "" is now, None when others are over, or never.

        All or nothing: every line but the last says `more`, and what `make` raises cuts back to where it began.
        A `large` bulk is folded under the same lock, so that no follower has to hold it in its overlay.
        """
        with self._locked():
            self._reset()
            self._catch_up(light=True)
            if self._loaded or (large and self._pure_adds() is None):
                self._catch_up()
                self._fold()
                self._reset()
                self._catch_up(light=True)
            if self._loaded or self._fd is None:
                raise StoreError(
                    f"'{self.home}' was edited just now. Nothing was added. Try again."
                )
            before, totals, now = self._offset, self.totals, self.now()
            try:
                jobs = make(now, totals.n)
                if not (batch := list(itertools.islice(jobs, LINE_JOBS_MAX))):
                    return 0
                while batch:
                    raws = [raw for raw, _ in batch]
                    self.totals = _with_new(self.totals, batch, now)
                    batch = list(itertools.islice(jobs, LINE_JOBS_MAX))
                    tail = {"more": True} if batch else self.totals.as_json()
                    self._append(_line(_change_body(raws, (), tail)))
            except BaseException:
                self._offset, self.totals = before, totals
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, before)
                raise
            added = self.totals.n - totals.n
            if large:
                with self._fold_may_fail():
                    self._fold()
        return added

    # -- Folding and syncing

    @contextlib.contextmanager
    def _fold_may_fail(self) -> Iterator[None]:
        """A failed fold never fails the command whose line is accepted: the journal still holds everything."""
        try:
            yield
        except (OSError, StoreError) as error:
            text = str(error) if isinstance(error, StoreError) else str(self._failed(error))
            self.warn(f"The change is stored; writing the arrays anew did not work: {text}")

    def fold_due(self, quiet_s: float) -> bool:
        """Whether the journal should be folded now: while the arrays are small always, else at about a quarter of
        their size, so that the cost per change stays bounded; or when nothing was to do for as long as the writing
        would take at FOLD_BYTES_S (an idle worker of a large queue does not rewrite it for each new job)."""
        if self._fd is None or not (self._offset > self._start or self._must_fold):
            return False
        arrays = sum(known[-1].size for known in self._known.values() if known)
        return arrays <= max(SMALL_BYTES, self._offset * 4, quiet_s * FOLD_BYTES_S)

    def fold(self, most_s: float = math.inf) -> None:
        """Write the journal's changes into the arrays. Raises StoreError; then nothing is lost."""
        with self._locked(most_s):
            self._catch_up(light=not self._loaded)
            self._fold()

    def settle(self) -> None:
        """At the end of a one-shot command that changed something: fold where that is due, else sync."""
        if self._fd is not None and self.fold_due(quiet_s=0) and not self.live_workers(first=True):
            with self._fold_may_fail():
                self.fold()
        if self._dirty and self.config().fsync != "never":
            self.sync()

    def sync(self) -> None:
        """See that what was appended is on the disk. Raises StoreError: it may have been stored.

        After a failed fsync the kernel may call the lost pages clean, so the same file is never tried again:
        fresh ones are written, and until that has worked nothing is claimed.
        """
        with self._syncing:
            self._sync()

    def _sync(self) -> None:  # without the store's lock: others go on meanwhile
        with self._mutex:
            if self._dirty and self._fd is None:  # a load failed since
                self._attach(writable=True)
            fd = os.dup(self._fd) if self._fd is not None and self._dirty else None
            self._dirty = False
        if fd is None:
            return
        why = "an earlier sync failed"
        try:
            if not self.is_suspect:
                os.fsync(fd)
                return
        except OSError as error:
            why = str(error.strerror)
            self.is_suspect = True
        finally:
            os.close(fd)
        try:
            self.fold()
        except QueueError as error:
            self._dirty = True
            raise StoreError(
                f"The change may have been stored, but the disk did not confirm it ({why}; {error}). "
                "Look with: queuectl list."
            ) from error

    def _pure_adds(self) -> list[tuple[int, int]] | None:
        """Where the journal's lines stand, if since the last fold jobs were only added; else None.

        Then a fold is a copy with lines behind it, and nothing has to be loaded.
        """
        assert self._fd is not None
        spans = []
        before, batched = Totals.from_json(self._header), 0
        start = self._start
        for end, line, whole in _read_lines(self._fd, start):
            body = _check_line(line) if whole else None
            if body is None or not body.startswith(b'{"put"'):
                return None
            rest = _rest_of(body)
            batched += body.count(b"\t{")
            if "del" in rest or "taken" in rest:
                return None
            if not rest.get("more"):
                totals = Totals.from_json(rest)
                if not totals.n - before.n == totals.counts[0] - before.counts[0] == batched:
                    return None
                before, batched = totals, 0
            spans.append((start, end))
            start = end
        return None if batched else spans

    def _fold(self) -> None:
        """The five steps of the section's head. Under the lock, after catching up."""
        spans = None if self._loaded else self._pure_adds()
        if not self._loaded and (spans is None or self._open_arrays(there=True)):
            self._load(locked=True)
        loaded = self._loaded
        repeat = (
            [raw for id in self.processing if (raw := self.overlay[id])] if loaded else self._repeat
        )
        written: dict[str, Fingerprint] = {}
        mine: dict[str, list[tuple[int, bytes]]] = {name: [] for name in ARRAYS}
        for raw in filter(None, self.overlay.values()):
            _, state, seq = _head(raw)
            mine[array_of(state)].append((seq, raw))
        for name in ARRAYS:  # 1
            base, added = (
                self._base.get(name),
                self._added_in(spans) if spans and name == "jobs" else (),
            )
            if base is None or mine[name] or added or _holds_any(base, self.overlay):
                kept = _folded(base, self.overlay, sorted(mine[name]))
                written[name] = self._write_array(
                    name, (piece for part in (kept, added) for piece in part)
                )
        marks = {
            name: written[name] if name in written else self._base[name].known for name in ARRAYS
        }
        if written:  # 2
            as_json = {name: mark._asdict() for name, mark in marks.items()}
            self._append(_line(encode_json({"intent": as_json})))
            if not self.is_suspect:
                self.is_suspect = True
                os.fsync(self._fd or 0)
                self.is_suspect = False
        if not self._arrays_known():  # 3
            raise Busy(
                f"The arrays of '{self.home}' were edited just now; they are taken in at the next look."
            )
        for name in written:  # 4
            os.rename(self._temporary(name), self._paths[name])
        _sync_dir(self.home)  # always: an earlier fold may have renamed them and stopped there
        self._write_journal(marks, repeat, [])  # 5
        self._reset()
        self._catch_up(light=not loaded)

    def _write_journal(
        self, marks: Mapping[str, Fingerprint], repeat: list[bytes], bodies: list[bytes]
    ) -> None:
        """A new journal in the old one's place, synced: header, the processing jobs, and these further lines."""
        totals = self.totals.as_json()
        header = {
            "format": FORMAT, "boot": boot_id(), "nonce": os.urandom(8).hex(), "prev": self._header.get("nonce"),
            **{name: mark._asdict() for name, mark in marks.items()}, **totals,
        }  # fmt: skip
        with _new_file(self._temporary("journal")) as fd:
            for body in (encode_json(header), _change_body(repeat, (), totals), *bodies):
                write_whole(fd, _line(body))
            os.fsync(fd)
        os.rename(self._temporary("journal"), self.journal_path)
        _sync_dir(self.dir)

    def _temporary(self, name: str) -> str:
        return os.path.join(self.dir, f"{name}.json.new")

    def _write_array(self, name: str, pieces: Iterable[bytes]) -> Fingerprint:
        """Write an array, given in pieces of whole records, to its temporary file, synced."""
        with _new_file(self._temporary(name)) as fd:
            crc, buffer, between = 0, bytearray(b"[\n"), b""
            for piece in pieces:
                buffer += between
                buffer += piece
                between = b",\n"
                if len(buffer) >= CHUNK_BYTES:
                    crc = zlib.crc32(buffer, crc)
                    write_whole(fd, buffer)
                    buffer.clear()
            buffer += b"\n]\n" if between else b"]\n"
            write_whole(fd, buffer)
            os.fsync(fd)
            return _fingerprint(fd, zlib.crc32(buffer, crc))

    def _added_in(self, spans: list[tuple[int, int]]) -> Iterator[bytes]:
        """The records that these lines of the journal add, as an array has them; a piece for each line."""
        for start, end in spans:
            body = os.pread(self._fd or 0, end - start - 1, start)[_BODY:]
            if piece := body[body.index(b"\t") + 1 : body.rindex(b"\t")]:
                yield piece.replace(b"\t", b"\n")  # tabs stand between records only

    # -- Worker files, wake FIFOs, stop requests, what workers know of the clock

    def clock_mark(self) -> dict[str, Any]:
        """What workers last wrote of the clock and of their purging; {} where nothing usable."""
        try:
            mark = json.loads(_bytes_of(os.path.join(self.dir, "clock"), _READ))
            numbers = all(
                isinstance(mark[key], int | float) for key in ("offset_s", "stepped_s", "purged_s")
            )
            return dict(mark) if numbers else {}
        except (OSError, ValueError, LookupError, TypeError):
            return {}

    def write_clock_mark(self, mark: Mapping[str, Any], most_s: float = math.inf) -> None:
        """`{"boot_id": ..., "offset_s": wall clock less clock since boot, "stepped_s": ..., "purged_s": ...}`."""
        with self._locked(most_s):
            _put_file(os.path.join(self.dir, "clock"), encode_json(mark))

    def worker_names(self) -> list[str]:
        """Every worker that left a file, alive or not."""
        try:
            return sorted(
                name
                for name in os.listdir(self.workers_dir)
                if re.fullmatch(r"\d+-[0-9a-f]+", name)
            )
        except OSError:
            return []

    def create_worker(self, name: str, header: Mapping[str, Any], threads: int) -> WorkerFile:
        """The file that says this worker lives: locked before it has its name, held until the process ends."""
        self.prepare()
        try:
            path = os.path.join(self.workers_dir, name)
            fifo = path + ".wake"
            os.mkfifo(fifo, 0o600)
            os.chmod(fifo, 0o600)
            wake_fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
            fd = _create(path + ".new")
            if not lock_descriptor(fd, blocking=False):
                raise StoreError(
                    f"'{path}.new' is locked by another process. Nothing was changed. Start again."
                )
            file = WorkerFile(path, fd, wake_fd, header, threads)
            os.rename(path + ".new", path)
            return file
        except OSError as error:
            raise self._failed(error, self.workers_dir) from error

    def lock_dead_worker(self, name: str) -> int | None:
        """A locked descriptor of a dead worker's file, -1 where the file is missing, None where the worker lives."""
        try:
            fd = os.open(
                os.path.join(self.workers_dir, name), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
            )
        except OSError as error:
            if error.errno in NO_FILE:
                return -1
            raise
        if lock_descriptor(fd, blocking=False):
            return fd
        os.close(fd)
        return None

    def live_workers(self, first: bool = False) -> list[WorkerInfo]:
        """The workers whose file is locked: the kernel tells the truth about who lives. `first`: one is enough."""
        out = []
        for name in self.worker_names():
            try:
                fd = os.open(
                    os.path.join(self.workers_dir, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
                )
            except OSError:
                continue
            try:
                if lock_descriptor(fd, blocking=False):
                    unlock_descriptor(fd)
                else:
                    blank = {
                        "pid": int(name.partition("-")[0]),
                        "threads": 0,
                        "started_at": self.now(),
                    }
                    out.append(self.read_worker(name, fd) or WorkerInfo(name, blank, [], 0.0))
                    if first:
                        break
            finally:
                os.close(fd)
        return out

    def read_worker(self, name: str, fd: int) -> WorkerInfo | None:
        """What a worker's file says; None where it says nothing usable."""
        lines = os.pread(fd, CHUNK_BYTES, 0).split(b"\n")
        try:
            header = json.loads(lines[0])
            rows = [
                json.loads(line) if line.strip() else {}
                for line in lines[1 : header["threads"] + 1]
            ]
            return WorkerInfo(name, header, rows, os.fstat(fd).st_mtime)
        except (ValueError, LookupError, TypeError):
            return None

    def sweep_workers(self) -> None:
        """Remove what a worker killed in its first moments left: files beside a name that never came to be."""
        names = set(self.worker_names())
        for entry in os.listdir(self.workers_dir):
            path = os.path.join(self.workers_dir, entry)
            with contextlib.suppress(FileNotFoundError):
                if (
                    entry.partition(".")[0] not in names
                    and os.stat(path).st_mtime < self.clock() - 60
                ):
                    os.unlink(path)

    def forget_worker(self, name: str) -> None:
        """Remove what a dead worker left beside the queue."""
        for ending in ("", ".wake", ".stop", ".new"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.workers_dir, name + ending))

    def wake_workers(self, but: str = "") -> None:
        """A byte to each worker's FIFO, after what may make work or concerns workers. A dead one has no reader."""
        try:
            names = [
                name
                for name in os.listdir(self.workers_dir)
                if name.endswith(".wake") and name != but + ".wake"
            ]
        except OSError:
            return
        for name in names:
            with contextlib.suppress(OSError):
                path = os.path.join(self.workers_dir, name)
                fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    if stat.S_ISFIFO(os.fstat(fd).st_mode):
                        os.write(fd, b"\n")
                finally:
                    os.close(fd)

    def request_stop(self, name: str, how: Literal["stop", "now"]) -> None:
        """Ask a worker to stop, by a file beside its own: no signal to a remembered pid, which may be another's."""
        self.prepare()
        try:
            _put_file(os.path.join(self.workers_dir, name + ".stop"), how.encode())
        except OSError as error:
            raise self._failed(error) from error
        self.wake_workers()

    def stop_requested(self, name: str) -> str | None:
        """What `worker stop` asked of this worker: `stop`, `now` or None."""
        try:
            return _bytes_of(os.path.join(self.workers_dir, name + ".stop"), _READ).decode(
                "ascii", "replace"
            )
        except OSError:
            return None


class Transaction:
    """One change in the making. `now` was read once, under the lock; `changes` maps id to (job before, job after)."""

    def __init__(self, store: Store, now: str) -> None:
        self.store = store
        self.now = now
        self.changes: dict[str, tuple[Job | None, Job | None]] = {}
        self.held: set[str] = set()  # new jobs that come after others which are not over
        self._has_after: bool | None = None

    def job(self, id: str) -> Job | None:
        """The job as this transaction sees it."""
        return self.changes[id][1] if id in self.changes else self.store.job(id)

    def put(self, old: Job | None, new: Job) -> None:
        """Add a job (`old` is None) or put its next state in its place; whoever waits for one that dies dies too."""
        before = self.changes[new.id][0] if new.id in self.changes else old
        self.changes[new.id] = (before, new)
        if new.state == "dead" and old is not None and old.state != "dead" and self.has_after():
            self.end_children(new.id, new.seq)

    def has_after(self) -> bool:
        """Whether any job comes after others: a queue in which none does needs no index for that."""
        if self._has_after is None:
            self._has_after = self.store.has_after()
        return self._has_after

    def end_children(self, id: str, seq: int) -> None:
        """The waiting jobs that needed that one, which is dead, die, and those that needed them (J5)."""
        dead = [(id, seq)]
        for parent, seq in dead:  # grows on the way
            for child in self.store.waiting().children(parent, seq):
                before, there = self.changes.get(child.id, (child, child))
                if there is not None and there.state in WAITING and parent in needed_by(there):
                    self.changes[child.id] = (before, die_after(there, parent, self.now))
                    dead.append((child.id, child.seq))

    def is_over(self, id: str) -> bool:
        """Whether a job that was changed is over now, or gone."""
        new = self.changes[id][1]
        return new is None or new.state in OVER

    def running(self) -> Iterator[Job]:
        """The jobs that are processing after this change."""
        jobs = {**self.store.processing, **{id: new for id, (_, new) in self.changes.items()}}
        return (job for job in jobs.values() if job is not None and job.state == "processing")

    def delete(self, old: Job) -> None:
        self.changes[old.id] = (old, None)


Rank = tuple[int, tuple[str, ...]]  # (-priority, those of the job's tags that have a limit)
_PLAIN: Final[Rank] = (0, ())


class _Held:
    """A job that comes after others: where it waits once those of them that are not over (`left`) are."""

    __slots__ = ("left", "offset", "rank", "run_at", "seq")

    def __init__(self) -> None:
        self.left: set[str] = set()
        self.rank: Rank = _PLAIN
        self.run_at: str | None = None
        self.seq = 0
        self.offset = -1


class Waiting:
    """Which jobs wait, in claim order: a list of places to look, never the truth itself.

    For a job in the array that can start any time it keeps 8 bytes, its line's offset; for others an entry in a heap.
    An entry whose job has changed since is passed over when it comes up, so nothing has to be removed, and a claim
    that could not be written has done no harm. Both are kept by priority and by tags with a limit: what waits for a
    limit that is used up is passed over as one. A job that comes after others enters when the last of them is over.
    """

    def __init__(
        self, overlay: Mapping[str, bytes | None], base: Base | None, now: str, backoff_max_s: float,
        limited: Collection[str], accept: Callable[[Job], bool] | None = None,
    ) -> None:  # fmt: skip
        from array import array

        self._overlay = overlay
        self._base = base
        self._accept = accept
        self._now = now
        self._backoff_max_s = backoff_max_s
        self.limited = frozenset(limited)
        self._fd = -1 if base is None else base.fd
        self._piece, self._piece_at = (
            b"",
            0,
        )  # of the array, read along with a line: claims go in that order
        self._seen: dict[int, tuple[bytes, str, str, int]] = {}  # what `_record` gave of late
        self._fixed: dict[Rank, array[int]] = {}
        self._next: dict[Rank, int] = {}  # the first entry of _fixed that may still wait
        self._heaps: dict[Rank, list[tuple[int, str, int]]] = {}  # (seq, id, offset or -1)
        self._timed: list[tuple[str, int, str, int]] = []  # (run_at, seq, id, offset or -1)
        self._held: dict[str, _Held] = {}  # by id: the jobs not over that come after others
        self.parents: dict[
            str, list[str]
        ] = {}  # these others, each with those whom it holds or held
        self._going: dict[str, int] = {}  # those of these others that are not over, with their seq
        self._unknown: set[str] = set()  # taken for such until somebody asks, as if they came first
        far = add_seconds(now, backoff_max_s + 1)
        late = set() if base is None else self._read_array(base, far)
        self._ranks = sorted(self._fixed)
        for id, raw in overlay.items():
            if raw is not None:
                _, state, seq = _head(raw)
                if state in WAITING:
                    self.add(raw, id, seq)
                    if state == "failed":
                        late.add(id)
                elif (
                    state == "processing"
                    and b'"after": ' in raw
                    and (accept is None or accept(trust_job(raw)))
                ):
                    self._hold(trust_job(raw), -1)  # it may wait again
        self._release_late(late, far)

    def _read_array(self, base: Base, far: str) -> set[str]:
        """Enter the jobs of the array that wait; gives the failed ones among them that wait beyond `far`."""
        from array import array

        late = set()
        is_plain = self._is_plain if self.limited else _is_plain
        # How the last record ends, and where it belongs: what was added together ends alike, from before the first
        # field that decides. The end closes the record, so that what stands in it are the job's own fields.
        end, run_at = b"\0", None
        here: array[int] | None = None
        plain = self._fixed.setdefault(_PLAIN, array("Q"))
        for offset, lines in _array_chunks(base):
            for line in lines:
                if (
                    line.find(b'"state": "pending"', 8, 170) > 0
                    or line.find(b'"state": "failed"', 8, 170) > 0
                ):
                    if not line.endswith(end):
                        end = b"".join(line.partition(b', "attempts": ')[1:]) or b"\0"
                        if self._accept is None and is_plain(line):
                            here, run_at = plain, None
                        else:
                            job = trust_job(line.rstrip(b","))
                            here, run_at = (
                                self._fixed.setdefault(self._rank(job), array("Q")),
                                job.run_at,
                            )
                            if self._accept is not None and not self._accept(job):
                                here = None  # not for this worker
                            elif job.after:
                                self._hold(job, offset)
                                here, end = None, b"\0"
                                if job.state == "failed" and (run_at or "") > far:
                                    late.add(job.id)
                    if here is not None and run_at is None:
                        here.append(offset)
                    elif here is not None and run_at is not None:
                        id, state, seq = _head(line)
                        self._timed.append((run_at, seq, id, offset))
                        if state == "failed" and run_at > far:
                            late.add(id)
                offset += len(line) + 1
        return late

    def add(self, raw: bytes, id: str, seq: int) -> None:
        """A job that waits now."""
        job = None if self._accept is None and self._is_plain(raw) else trust_job(raw)
        if job is None:
            self._push(_PLAIN, (seq, id, -1))
        elif self._accept is None or self._accept(job):
            if not (job.after and self._hold(job, -1).left):
                self._enter(self._rank(job), job.run_at, (seq, id, -1))

    def _is_plain(self, raw: bytes) -> bool:
        return _is_plain(raw) and not (self.limited and b'"tags": ' in raw)

    def _rank(self, job: Job) -> Rank:
        return -job.priority, tuple(sorted(self.limited.intersection(job.tags or ())))

    def _enter(self, rank: Rank, run_at: str | None, entry: tuple[int, str, int]) -> None:
        import heapq

        if run_at is None:
            self._push(rank, entry)
        else:
            heapq.heappush(self._timed, (run_at, *entry))

    def _push(self, rank: Rank, entry: tuple[int, str, int]) -> None:
        import heapq

        if rank not in self._heaps:
            self._heaps[rank] = []
            self._ranks = sorted({*self._fixed, *self._heaps})
        heapq.heappush(self._heaps[rank], entry)

    # -- Jobs that come after others

    def _hold(self, job: Job, offset: int) -> _Held:
        held = self._held.get(job.id)
        if held is None:
            held = self._held[job.id] = _Held()
            for parent in parents_of(job):
                if parent not in self.parents:
                    self.parents[parent] = []
                    self._unknown.add(parent)
                    self._going[parent] = -1
                self.parents[parent].append(job.id)
                if self._going.get(parent, job.seq) < job.seq:
                    held.left.add(parent)
        held.rank, held.run_at, held.seq, held.offset = self._rank(job), job.run_at, job.seq, offset
        return held

    def note(self, id: str, seq: int | None) -> None:
        """A job is there and not over, with that seq; or (None) it is over, or gone."""
        if id not in self.parents or self._going.get(id) == seq:
            return
        self._unknown.discard(id)
        if seq is None:
            del self._going[id]
        else:
            self._going[id] = seq
        for child in self.parents[id]:
            held = self._held[child]
            if seq is not None and seq < held.seq:
                held.left.add(id)
            elif id in held.left:
                held.left.remove(id)
                if not held.left:
                    self._enter(held.rank, held.run_at, (held.seq, child, held.offset))

    def _look_up_unknown(self) -> None:
        """Look up what others are held for, all at once: it may stand anywhere in a long array."""
        if self._unknown:
            unknown, self._unknown = self._unknown, set()
            going = self._going_among(unknown)
            for id in unknown:
                self.note(id, going.get(id))

    def _going_among(self, ids: Collection[str]) -> dict[str, int]:
        """The seq of those of these jobs that are not over. Who is not there any more, is; so is who is in dlq.json."""
        raws = [raw for id in ids if (raw := self._overlay.get(id))]
        rest = [id for id in ids if id not in self._overlay]
        if rest and self._base is not None:
            raws += [raw for _, raw in _among(self._base, rest)]
        return {id: seq for id, state, seq in map(_head, raws) if state not in OVER}

    def is_any_going(self, ids: Sequence[str], seq: int) -> bool:
        """Whether one of these jobs, earlier than `seq`, is there and not over; looked up all at once."""
        self._look_up_unknown()
        rest = self._going_among([id for id in ids if id not in self.parents])
        return any((self._going if id in self.parents else rest).get(id, seq) < seq for id in ids)

    def _is_held(self, id: str) -> bool:
        return id in self._held and bool(self._held[id].left)

    def children(self, id: str, seq: int) -> Iterator[Job]:
        """The waiting jobs that come after that one."""
        for child in self.parents.get(id, ()):
            held = self._held[child]
            if held.seq > seq and (raw := self._raw(child, held.offset)):
                yield trust_job(raw)

    def held(self) -> Iterator[tuple[Job, set[str]]]:
        """The waiting jobs that come after some that are not over, with these."""
        self._look_up_unknown()
        for id, held in self._held.items():
            if held.left and (raw := self._raw(id, held.offset)):
                yield trust_job(raw), held.left

    def is_named(self, job: Job) -> bool:
        """Whether a waiting job comes after that one, which may be over."""
        return any(self.children(job.id, job.seq))

    def _freed(self, ended: Collection[str], skip: Collection[str]) -> dict[str, _Held]:
        """Whom nothing holds any more once these jobs are over."""
        ids = {id for parent in ended for id in self.parents.get(parent, ()) if id not in skip}
        return {
            id: held for id in ids if (held := self._held[id]).left and held.left.issubset(ended)
        }

    def freed_hints(
        self, now: str, ended: Collection[str], skip: Collection[str]
    ) -> tuple[str | None, str | None]:
        """What `hints` would say of these alone."""
        self._look_up_unknown()
        oldest = next_run_at = None
        for id, held in sorted(self._freed(ended, skip).items(), key=lambda item: item[1].seq):
            if held.run_at is None and oldest is None and (raw := self._raw(id, held.offset)):
                oldest = _created_at(raw)
            elif held.run_at is not None and self._raw(id, held.offset):
                next_run_at = min(next_run_at or held.run_at, held.run_at)
        return oldest, next_run_at

    # -- What comes next

    def _raw(self, id: str, offset: int) -> bytes | None:
        """The record of an entry as it is now, where it still waits."""
        raw = self._overlay.get(id) if id in self._overlay or offset < 0 else self._line(offset)
        if raw is None:
            return None
        there, state, _ = _head(raw)
        return raw if there == id and state in WAITING else None

    def _line(self, offset: int) -> bytes:
        """The record that begins at `offset` of the array."""
        at = offset - self._piece_at
        if at < 0 or (end := self._piece.find(b"\n", at)) < 0:
            self._piece, self._piece_at, at = os.pread(self._fd, PIECE_BYTES, offset), offset, 0
            if (end := self._piece.find(b"\n")) < 0:
                return _line_at(self._fd, offset)
        return _record_in(self._piece[at:end])

    def _record(self, offset: int) -> tuple[bytes, str, str, int]:
        """That record with its head. A turn asks for the one that it claims and the next, several times."""
        if offset not in self._seen:
            if len(self._seen) >= SEEN_MAX:
                self._seen.clear()
            raw = self._line(offset)
            self._seen[offset] = raw, *_head(raw)
        return self._seen[offset]

    def _release(self, now: str) -> None:
        """Move the entries whose time has come to where claims look."""
        import heapq

        self._look_up_unknown()
        self._now = now
        while self._timed and self._timed[0][0] <= now:
            run_at, seq, id, offset = heapq.heappop(self._timed)
            raw = self._raw(id, offset)
            if (
                raw is not None
                and (job := trust_job(raw)).run_at == run_at
                and not self._is_held(id)
            ):
                self._push(self._rank(job), (seq, id, offset))

    def _release_late(self, late: Collection[str], far: str) -> None:
        """After the clock was set back: failed jobs whose wait would be longer than any backoff are due."""
        import heapq

        self._look_up_unknown()  # whom nothing holds, that is among these
        kept = []
        for entry in self._timed:
            found = self._raw(*entry[2:]) if entry[0] > far and entry[2] in late else None
            job = trust_job(found) if found is not None else None
            if job is not None and is_ready(job, self._now, self._backoff_max_s):
                self._push(self._rank(job), entry[1:])
            else:
                kept.append(entry)
        heapq.heapify(kept)
        self._timed = kept

    def _top(self, rank: Rank, skip: Collection[str]) -> tuple[int, bytes] | None:
        """(seq, raw) of the first job of that rank that waits, in the array or in the heap."""
        import heapq

        tops = []
        fixed, at = self._fixed.get(rank, ()), self._next.get(rank, 0)
        passed = True  # whether every entry up to here has surely left: a skipped one may come back
        while at < len(fixed):
            raw, id, _, seq = self._record(fixed[at])
            if id not in self._overlay and id not in skip:
                tops.append((seq, raw))
                break
            at += 1
            passed = passed and id in self._overlay
            if passed:
                self._next[rank] = at
        heap, skipped = self._heaps.get(rank, []), []
        while heap:
            seq, id, offset = heap[0]
            found = self._raw(id, offset)
            if found is not None and not self._is_ready_at(found, rank):
                found = None  # it was changed since; another entry stands for it
            if found is not None and id not in skip:
                tops.append((seq, found))
                break
            entry = heapq.heappop(heap)
            if found is not None:
                skipped.append(entry)
        for entry in skipped:
            heapq.heappush(heap, entry)
        return min(tops, default=None)

    def _is_ready_at(self, raw: bytes, rank: Rank) -> bool:
        if rank == _PLAIN and self._is_plain(raw):
            return True
        job = trust_job(raw)
        return (
            self._rank(job) == rank
            and is_ready(job, self._now, self._backoff_max_s)
            and not self._is_held(job.id)
        )

    def first(
        self, now: str, full: frozenset[str] = frozenset(), change: Transaction | None = None
    ) -> Job | None:
        """The job to claim next, after that change: higher priority first, then order of arrival; none with a tag
        that is full."""
        self._release(now)
        skip: Collection[str] = change.changes.keys() if change else ()
        best: tuple[int, int, bytes] | None = None
        for rank in self._ranks:
            if best is not None and rank[0] > best[0]:
                break
            if full.isdisjoint(rank[1]) and (top := self._top(rank, skip)):
                best = min(best or (rank[0], *top), (rank[0], *top))
        if change is not None and self.parents:
            ended = [
                id
                for id, (old, _) in change.changes.items()
                if old is not None and change.is_over(id)
            ]
            freed = [(held.rank[0], held.seq, id) for id, held in self._freed(ended, skip).items()
                     if (held.run_at or "") <= now and full.isdisjoint(held.rank[1])]  # fmt: skip
            for least, seq, id in sorted(freed):
                if best is not None and (least, seq) > best[:2]:
                    break
                if found := self._raw(id, self._held[id].offset):
                    best = least, seq, found
                    break
        return trust_job(best[2]) if best else None

    def is_empty(self) -> bool:
        """Whether no job waits but for others to be over."""
        return self.hints(self._now, ()) == (None, None)

    def hints(self, now: str, skip: Collection[str]) -> tuple[str | None, str | None]:
        """`oldest` and `next_run_at` of the totals, as if the jobs in `skip` did not wait."""
        import heapq

        self._release(now)
        oldest = min(filter(None, [self._top(rank, skip) for rank in self._ranks]), default=None)
        skipped = []
        next_run_at = None
        while self._timed:
            run_at, _, id, offset = self._timed[0]
            raw = self._raw(id, offset)
            if raw is not None and (self._is_held(id) or trust_job(raw).run_at != run_at):
                raw = None
            if raw is not None and id not in skip:
                next_run_at = run_at
                break
            entry = heapq.heappop(self._timed)
            if raw is not None:
                skipped.append(entry)
        for entry in skipped:
            heapq.heappush(self._timed, entry)
        return _created_at(oldest[1]) if oldest else None, next_run_at


class WorkerFile:
    """A live worker's own file: one padded header line, one padded row per slot, written in place without a lock."""

    ROW_BYTES: Final = 256
    TROUBLE_CHARS: Final = 200

    def __init__(
        self, path: str, fd: int, wake_fd: int, header: Mapping[str, Any], threads: int
    ) -> None:
        self.path, self.fd, self.wake_fd = path, fd, wake_fd
        self._header_bytes = len(encode_json(header)) + 8 * self.TROUBLE_CHARS
        write_whole(fd, b" " * (self._header_bytes - 1) + b"\n")
        write_whole(fd, (b" " * (self.ROW_BYTES - 1) + b"\n") * threads)
        self.write_header(header)

    def write_header(self, header: Mapping[str, Any]) -> None:
        """The header again, with another `trouble` (the first TROUBLE_CHARS of it)."""
        trouble = header["trouble"] and header["trouble"][: self.TROUBLE_CHARS]
        self._write(0, self._header_bytes, {**header, "trouble": trouble})

    def write_row(self, slot: int, row: Mapping[str, Any] | None = None) -> None:
        """`{"job": "job1", "run": 1, "session": 4711, "start": 123.45}`, or an empty row: the slot is idle."""
        self._write(self._header_bytes + slot * self.ROW_BYTES, self.ROW_BYTES, row)

    def _write(self, offset: int, width: int, value: Mapping[str, Any] | None) -> None:
        text = encode_json(value) if value else b""
        with contextlib.suppress(
            OSError
        ):  # it only informs: recovery finds a run by its mark and its log too
            os.pwrite(self.fd, text[: width - 1].ljust(width - 1) + b"\n", offset)

    def show_life(self) -> None:
        """Set the file's time: a worker that is stopped or hangs is seen by its silence."""
        os.utime(self.fd)

    def is_linked(self) -> bool:
        """Whether the file is still the one at its path: else others take this worker for dead."""
        return identity_of(self.path) == identity_of(self.fd)

    def wake(self) -> None:
        """Wake this worker's own main thread."""
        with contextlib.suppress(OSError):
            os.write(self.wake_fd, b"\n")

    def drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self.wake_fd, 4096):
                pass

    def close(self) -> None:
        """Remove the files, then let the lock go: nobody ever finds them unlocked while this process lives."""
        for path in (self.path + ".stop", self.path + ".wake", self.path):
            with contextlib.suppress(OSError):
                os.unlink(path)
        os.close(self.wake_fd)
        os.close(self.fd)


class Spool:
    """Lines that can be read more than once: a pipe's bytes are kept in an unnamed file, out of memory."""

    def __init__(self, store: Store, chunks: Iterable[bytes], unit: str = "line") -> None:
        self.unit = unit  # what an error calls a line
        self.seen: Callable[[int], None] | None = (
            None  # is told how many bytes were read, for a progress bar
        )
        store.prepare()
        path = os.path.join(store.dir, f"spool.{os.getpid()}.{threading.get_ident()}")
        try:
            self.fd = _create(path)
            os.unlink(path)
            self.size = 0
            for chunk in chunks:
                write_whole(self.fd, chunk)
                self.size += len(chunk)
        except OSError as error:
            raise store._failed(error, path) from error

    def blocks(self) -> Iterator[bytes]:
        """Some whole lines at a time, without the last one's newline."""
        rest = b""
        for chunk in _pieces(self.fd):
            block, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline:
                yield block
            if self.seen is not None:
                self.seen(len(chunk))
        if rest:
            yield rest

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """(number from 1, line without its newline)."""
        return enumerate(
            itertools.chain.from_iterable(block.split(b"\n") for block in self.blocks()), 1
        )

    def close(self) -> None:
        os.close(self.fd)


# -- A journal's lines


def _line(body: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _change_body(raws: Sequence[bytes], deleted: Sequence[str], tail: Mapping[str, Any]) -> bytes:
    rest = {**({"del": deleted} if deleted else {}), **tail}
    return b'{"put": [\t' + b",\t".join(raws) + b"\t], " + encode_json(rest)[1:]


def _change_bodies(
    raws: Sequence[bytes], deleted: Sequence[str], tail: Mapping[str, Any]
) -> list[bytes]:
    """A transaction's lines: of at most LINE_JOBS_MAX jobs each, all but the last with `more`."""
    puts, count = len(raws), len(raws) + len(deleted)
    return [
        _change_body(
            raws[start:end],
            deleted[max(0, start - puts) : max(0, end - puts)],
            {"more": True} if end < count else tail,
        )
        for start in range(0, max(1, count), LINE_JOBS_MAX)
        for end in [start + LINE_JOBS_MAX]
    ]


def _split_change(body: bytes) -> tuple[list[bytes], dict[str, Any]]:
    """A change line's raw records and its rest."""
    raws = body.split(b"\t")[1:-1]
    return [raw[:-1] if raw.endswith(b",") else raw for raw in raws if raw], _rest_of(body)


def _rest_of(body: bytes) -> dict[str, Any]:
    """What a change line says beside its records: `del`, `counts` ..., or `more`."""
    rest: dict[str, Any] = json.loads(b'{"put": [' + body[body.rindex(b"\t") + 1 :])
    return rest


def _check_line(line: bytes) -> bytes | None:
    """The body of a whole, undamaged journal line (without its newline), else None."""
    try:
        return (
            line[_BODY:]
            if line[8:9] == b" " and int(line[:8], 16) == zlib.crc32(line[_BODY:])
            else None
        )
    except ValueError:
        return None


def _read_lines(fd: int, start: int) -> Iterator[tuple[int, bytes, bool]]:
    """(offset of its end, line without newline, whether it has one) from `start` to the end of the file."""
    rest = b""
    offset = start
    while chunk := os.pread(fd, CHUNK_BYTES, offset + len(rest)):
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        for line in lines:
            offset += len(line) + 1
            yield offset, line, True
    if rest:
        yield offset + len(rest), rest, False


def _last_record(journal: bytes, id: str) -> bytes | None:
    """The journal's last word on that id: its record, b"" where it was deleted; None where it says nothing."""
    put = journal.rfind(b'\t{"id": "%s", "state": "' % id.encode())
    at, quoted = journal.find(_DELETED, put + 1), b'"%s"' % id.encode()
    while at >= 0:
        end = journal.index(b"]", at + len(_DELETED))
        if quoted in journal[at:end]:
            return b""
        at = journal.find(_DELETED, end)
    return journal[put + 1 : journal.index(b"\t", put + 1)].rstrip(b",") if put >= 0 else None


_DELETED: Final = b'\t], "del": ['


def _key_needle(key: str) -> bytes:
    return b'"unique": %s, "command": ' % encode_json(key)


def _holders(journal: bytes, key: str) -> dict[str, bool]:
    """The jobs that the journal names with that unique key, and whether each is active after its last line."""
    needle = _key_needle(key)
    out = {}
    at = journal.find(needle)
    while at >= 0:
        start = journal.rfind(b"\t", 0, at) + 1
        raw = journal[start : journal.index(b"\t", at)].rstrip(b",")
        id = _head(raw)[0]
        out[id] = _is_active(raw, key) and bool(_last_record(journal, id))
        at = journal.find(needle, at + 1)
    return out


def _is_active(raw: bytes, key: str) -> bool:
    """Whether a record that the search hit really is an active job with that unique key."""
    return _head(raw)[1] in (*WAITING, "processing") and _decode(raw).unique == key


# -- A record and an array as bytes


def _head(raw: bytes) -> tuple[str, str, int]:
    """Id, state and seq of a canonical record, without parsing the rest."""
    try:
        parts = raw.split(b'"', 8)
        rest = parts[8]
        return parts[3].decode(), parts[7].decode(), int(rest[9 : rest.index(b",", 9)])
    except (LookupError, ValueError):
        raise StoreError(_EDITED_IN_PLACE) from None


_EDITED_IN_PLACE: Final = (
    "An array changed while it was read (edited in place?). Nothing was changed. Try again."
)


def _raw_ids(lines: Iterable[bytes]) -> list[bytes]:
    """The ids of canonical records."""
    try:
        return [line[8 : line.index(b'"', 8)] for line in lines]
    except ValueError:
        raise StoreError(_EDITED_IN_PLACE) from None


def _seq(raw: bytes) -> int:
    return _head(raw)[2]


def _is_plain(raw: bytes) -> bool:
    """Whether a waiting job surely has priority 0, and no time and no job to wait for. The first `"priority"` is its
    own: what stands before it is no object, and quotes inside a text are escaped."""
    at = raw.find(b'"priority": ')
    return raw[at + 12 : at + 14] == b"0," and b'"run_at": ' not in raw and b'"after": ' not in raw


def _created_at(raw: bytes) -> str:
    """A record's `created_at`: as with `_is_plain`, the first such key is the job's own."""
    at = raw.find(b'"created_at": "') + 15
    return raw[at : at + 24].decode()


def _decode(raw: bytes) -> Job:
    """As `decode_job`; raises StoreError."""
    try:
        return decode_job(raw)
    except BadValue as error:
        raise StoreError(
            f"A record of the queue cannot be used: {error} See: queuectl doctor."
        ) from error


def _record_in(line: bytes) -> bytes:
    """The record of an array's line; refuses what cannot be one."""
    raw = line.rstrip(b",")
    if not (raw.startswith(b'{"id": "') and raw.endswith(b"}")):
        raise StoreError(_EDITED_IN_PLACE)
    return raw


def _line_at(fd: int, offset: int) -> bytes:
    """The record that begins at `offset` of an array."""
    size = 1024
    while True:
        data = os.pread(fd, size, offset)
        end = data.find(b"\n")
        if end >= 0 or len(data) < size:
            break
        size *= 16
    return _record_in(data[: end if end >= 0 else len(data)])


def _start_of_line(fd: int, offset: int) -> int:
    """Where the line that holds the byte at `offset` begins."""
    reach = 1024
    while True:
        start = max(0, offset - reach)
        at = os.pread(fd, offset - start, start).rfind(b"\n")
        if at >= 0 or start == 0:
            return start + at + 1
        reach *= 16


def _array_end(base: Base) -> int:
    """Where the last record of a canonical array ends (2 where it is empty)."""
    return max(2, base.known.size - 3)


def _array_chunks(base: Base, start: int = 2) -> Iterator[tuple[int, list[bytes]]]:
    """(offset of the first, whole lines with their commas) of a canonical array, from a line on, in pieces."""
    offset, end, rest = start, _array_end(base), b""
    at = offset
    while at < end:
        chunk = os.pread(base.fd, min(CHUNK_BYTES, end - at), at)
        if not chunk:
            raise StoreError(
                "An array became shorter while it was read. Nothing was changed. Try again."
            )
        at += len(chunk)
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop() if at < end else b""
        yield offset, lines
        offset = at - len(rest)


def _array_lines(base: Base) -> Iterator[bytes]:
    """The records of a canonical array, from the first."""
    return (line.rstrip(b",") for _, lines in _array_chunks(base) for line in lines)


def _array_lines_reversed(base: Base) -> Iterator[bytes]:
    """The records of a canonical array, from the last."""
    end = _array_end(base)
    while end > 2:
        start = _start_of_line(base.fd, max(2, end - CHUNK_BYTES))
        piece = os.pread(base.fd, end - start, start)
        yield from (line.rstrip(b",") for line in reversed(piece.split(b"\n")))
        end = start - 1


def _folded(
    base: Base | None, changed: Collection[str], mine: Sequence[tuple[int, bytes]]
) -> Iterator[bytes]:
    """An array's records after a fold, in pieces: the old ones but those of `changed`, and `mine` (seq, record), which
    are sorted, in their places. A piece in which nothing changes is passed on as it is."""
    done, gone = 0, {id.encode() for id in changed}
    for _, lines in _array_chunks(base) if base is not None else ():
        end = bisect.bisect(mine, (_seq(lines[-1]) + 1,))
        if end > done or not gone.isdisjoint(_raw_ids(lines)):
            pairs = zip(_raw_ids(lines), lines, strict=True)
            kept = [(_seq(line), line.rstrip(b",")) for id, line in pairs if id not in gone]
            lines = [raw for _, raw in sorted([*kept, *mine[done:end]])]
            done = end
            if lines:
                yield b",\n".join(lines)
        else:
            yield b"\n".join(lines).rstrip(b",")
    yield from (raw for _, raw in mine[done:])


def _holds_any(base: Base, ids: Collection[str]) -> bool:
    """Whether one of these jobs stands in the array."""
    wanted = {id.encode() for id in ids}
    return bool(ids) and any(
        not wanted.isdisjoint(_raw_ids(lines)) for _, lines in _array_chunks(base)
    )


def _among(base: Base, ids: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """(id, record) of those of `ids` that stand in a canonical array: by one pass where they are many."""
    if len(ids) <= 8:
        yield from ((id, raw) for id in ids if (raw := _find(base, id)))
        return
    wanted = set(ids)
    yield from ((id, raw) for raw in _array_lines(base) if (id := _head(raw)[0]) in wanted)


def _find(base: Base, id: str) -> bytes | None:
    """The record of that id in a canonical array."""
    return next(_records_like(base, f'{id}", "state": "'), None)


def _records_like(base: Base, prefix: str) -> Iterator[bytes]:
    """The records of a canonical array whose id begins so, by a search for the bytes that they must start with."""
    for offset in _search(base.fd, b'{"id": "%s' % prefix.encode("utf-8", "replace")):
        if (
            _start_of_line(base.fd, offset) == offset
        ):  # else it stands inside a record, in a field of the user's
            yield _line_at(base.fd, offset)


def _search(fd: int, needle: bytes) -> Iterator[int]:
    """Offsets at which `needle` stands in a file."""
    rest, offset = b"", 0
    for piece in _pieces(fd):
        data = rest + piece
        at = data.find(needle)
        while at >= 0:
            yield offset - len(rest) + at
            at = data.find(needle, at + 1)
        offset += len(piece)
        rest = data[1 - len(needle) :]


def _scan_objects(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each JSON object in a damaged array, and of each stretch that is none."""
    between, following = (
        re.compile(r"[\s,\[\]\ufeff]*"),
        re.compile(r'\n[ \t]*(?=\{)|(?=\{"id": ")'),
    )
    at = 0
    while (at := between.match(text, at).end()) < len(text):  # type: ignore[union-attr]  # it always matches
        try:
            end = _read_json(text, at)[1] if text[at] == "{" else at
        except (ValueError, RecursionError):
            end = at
        if end == at:
            next_one = following.search(text, at + 1)
            end = next_one.end() if next_one else len(text)
        yield at, end
        at = end


def miscounted(said: Sequence[int], found: Sequence[int]) -> str:
    return f"The journal counts {list(said)} jobs ({', '.join(STATES)}), the stores hold {list(found)}."


# -- Files


def _pieces(fd: int, start: int = 0, end: int = sys.maxsize) -> Iterator[bytes]:
    """A file's bytes between these offsets, as far as there are any, CHUNK_BYTES at a time."""
    while start < end and (piece := os.pread(fd, min(CHUNK_BYTES, end - start), start)):
        yield piece
        start += len(piece)


def _read_all(fd: int) -> bytes:
    return b"".join(_pieces(fd))


def _bytes_of(path: str, flags: int = _OPEN) -> bytes:
    fd = os.open(path, flags)
    try:
        return _read_all(fd)
    finally:
        os.close(fd)


def _sync_dir(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_whole(fd: int, data: bytes | bytearray) -> None:
    """Write all of it or raise: a short write is a full disk or a file-size limit that has not spoken yet."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _create(path: str) -> int:
    """A new file of ours at `path`, 0600 whatever the umask; what a crash or a stranger left there goes first."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    fd = os.open(path, _NEW, 0o600)
    os.fchmod(fd, 0o600)
    return fd


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[int]:
    """As `_create`, open within the block; what an error leaves goes: it may hold the last free bytes of the disk."""
    fd = _create(path)
    try:
        yield fd
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(fd)


def _put_file(path: str, data: bytes) -> None:
    """A small file of ours, replaced whole; not synced."""
    with _new_file(path + ".new") as fd:
        write_whole(fd, data)
    os.rename(path + ".new", path)


def make_dir(path: str) -> None:
    """A directory of ours, 0700 whatever the umask, with its parents."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        make_dir(os.path.dirname(path))
        os.mkdir(path, 0o700)
    os.chmod(path, 0o700)


def boot_id() -> str:
    """What this boot of the machine is called; "" where the system does not say."""
    try:
        return _bytes_of("/proc/sys/kernel/random/boot_id").decode().strip()
    except FileNotFoundError:
        return ""


def _fingerprint(fd: int, crc: int) -> Fingerprint:
    info = os.fstat(fd)
    return Fingerprint(info.st_ino, info.st_size, info.st_mtime_ns, crc)


def _marked_bytes_of(path: str) -> tuple[Fingerprint, bytes]:
    """A file's fingerprint and bytes."""
    fd = os.open(path, _OPEN)
    try:
        mark = _fingerprint(fd, -1)  # before it is read: what is saved after this is a further edit
        data = _read_all(fd)
        return mark._replace(crc=zlib.crc32(data)), data
    finally:
        os.close(fd)


def _crc_of(fd: int) -> int:
    crc = 0
    for piece in _pieces(fd):
        crc = zlib.crc32(piece, crc)
    return crc


def _copy(source: int, start: int, end: int, target: int) -> None:
    for piece in _pieces(source, start, end):
        write_whole(target, piece)


def identity_of(file: str | int) -> tuple[int, int] | None:
    """Device and inode of a path or descriptor: what tells one file from another; None where there is none."""
    try:
        info = os.stat(file)
        return info.st_dev, info.st_ino
    except OSError:
        return None


def close_fd(fd: int | None) -> None:
    """Close what may be None, or -1 for none, or closed already."""
    if fd is not None:
        with contextlib.suppress(OSError):
            os.close(fd)


# ======== 5. OPERATIONS ========
# What can be done to a queue: one function, one transaction each. Decides with JOBS, writes with STORE; knows
# neither Click nor processes, and never sleeps.
#
# O1  One operation, one transaction.
# O2  A refused operation changes nothing: every id is looked at before the first job is changed.
# O3  A report is believed only from the worker, and for the run, that the record names.


class Accepted(Record):
    """What became of an enqueue: the job, and whether it was there before (its unique key is in use)."""

    job: Job
    duplicate: bool = False


MADE_KEY: Final = (
    "\0"  # as a unique key: make one from command and directory (a key that is given holds no NUL)
)


def make_spec(fields: Mapping[str, Any]) -> Spec:
    """The Spec of checked fields. A key that is to be made is the same for the same command in the same directory."""
    if fields.get("unique") != MADE_KEY:
        return Spec(**fields)
    key = hashlib.sha256(f"{fields['cwd']}\0{fields['command']}".encode()).hexdigest()[:24]
    return Spec(**{**fields, "unique": key})


def enqueue_job(store: Store, spec: Spec) -> Accepted:
    """Add one job, or find the active one that holds its unique key. Refuses a taken id, and to come after a job
    that is not there; where one that it needs is dead, it is dead from the start."""
    parents = parents_of(spec)
    ids, keys = [*parents, *([spec.id] if spec.id else [])], [spec.unique] if spec.unique else []
    found = store.look_up(ids, keys) if ids or keys else None
    with store.transaction(light=True) as change:
        if found is not None:
            found = store.look_again(found, ids, keys)
            if spec.unique in found.keys:
                there = store.peek(found.keys[spec.unique])
                return Accepted(there, duplicate=True)
            if spec.id and found.jobs.get(spec.id):
                raise _taken(spec.id)
            for parent in parents.keys() & found.folded:
                there = decode_job(found.jobs[parent])
                change.put(there, there)  # so that no follower has to search the arrays for it
        seq = store.totals.n + 1
        id = spec.id or make_id(int(instant_s(change.now) * 1000), seq)
        states = {
            parent: _head(raw)[1] for parent in parents if found and (raw := found.jobs.get(parent))
        }
        job, is_held = _accept(spec, id, seq, store.config(), change.now, states)
        change.put(None, job)
        if is_held:
            change.held.add(id)
    store.wake_workers()
    return Accepted(job)


def _accept(
    spec: Spec, id: str, seq: int, config: Config, now: str, states: Mapping[str, str]
) -> tuple[Job, bool]:
    """The new job, dead where one that it needs is, and whether it is held by others. `states`: of the jobs there."""
    job = new_job(spec, id, seq, config, now)
    for parent in parents_of(job):
        if parent not in states:
            raise Refused(
                f"There is no job '{parent}' to come after; only a job that is there, or stands in an earlier line, "
                "can be named. Nothing was added. See them all with: queuectl list."
            )
    for parent in needed_by(job):
        if states[parent] == "dead":
            return die_after(job, parent, now), False
    return job, any(states[parent] not in OVER for parent in parents_of(job))


def _taken(id: str) -> Refused:
    return Refused(
        f"Job '{id}' is there already. Nothing was added. See it with: queuectl show {id}; "
        "or leave the id out and one is made."
    )


class Bulk(Record):
    """What became of a bulk: how many jobs were added, and per line its job's id, or its record."""

    added: int
    ids: Iterator[bytes]  # some lines at a time, one an id
    records: list[bytes]  # only where they were asked for


def enqueue_bulk(
    store: Store, lines: Spool, options: Mapping[str, Any], keep_records: bool
) -> Bulk:
    """Add one job per line of `lines`, all or nothing: every line is checked before the lock is taken.

    `options` are a Spec's fields that hold for every line that does not say otherwise, `cwd` always among them.
    """
    ids, keys, named, is_plain = _names_in(lines, options, store.now())
    wanted = ids.keys() | named
    found = store.look_up(wanted, keys) if wanted or keys else None
    said_ids: Iterator[bytes] = iter(())
    kept: list[bytes] = []

    def records(now: str, n: int) -> Iterator[tuple[bytes, str | None]]:
        nonlocal said_ids
        first, others = n, list[tuple[int, str, int]]()
        config = store.config()
        there = store.look_again(found, wanted, keys) if found else Found(None, 0, {}, set(), {})
        states = {id: _head(raw)[1] for id, raw in there.jobs.items() if raw}
        if taken := min(states.keys() & ids.keys(), key=ids.__getitem__, default=None):
            raise Refused(f"In {lines.unit} {ids[taken]}: {_taken(taken)}")
        stands_for: dict[str, str] = {}
        made: dict[str, bytes] = {}  # by unique key, where the records are kept anyway
        ms = int(instant_s(now) * 1000)
        plain = _PlainRecords(options, config, now)
        given = (
            _plain_lines(lines)
            if is_plain
            else _parse_lines(lines.numbered(), lines.unit, options, now)
        )
        for number, said in given:
            if isinstance(said, str):
                n += 1
                raw, start_at = plain.encode(ms, n, said), plain.start_at
            elif said.unique is not None and (holder := there.keys.get(said.unique)):
                others.append((n, holder, n))
                if keep_records:
                    raw = made.get(said.unique) or encode_job(store.peek(holder))
                    kept.append(encode_json({**_read_json(raw.decode())[0], "duplicate": True}))
                if said.id in named:  # later lines that name this one mean the job it stands for
                    stands_for[said.id], states[holder] = holder, "pending"
                continue
            else:
                n += 1
                id = said.id or make_id(ms, n)
                others += [(n - 1, id, n)] if said.id else []
                try:
                    job, is_held = _accept(
                        _after_whom(said, stands_for), id, n, config, now, states
                    )
                except Refused as error:
                    raise Refused(f"In {lines.unit} {number}: {error}") from None
                if id in named:
                    states[id] = job.state
                raw, start_at = (
                    encode_job(job),
                    None if is_held or job.state == "dead" else job.run_at or "",
                )
                if said.unique is not None and job.state != "dead":
                    there.keys[said.unique] = id
                    if keep_records:
                        made[said.unique] = raw
            if keep_records:
                kept.append(raw)
            yield raw, start_at
        said_ids = _ids_between(ms, first, n, others)

    added = store.accept_bulk(records, large=lines.size > SMALL_BYTES)
    if added:
        store.wake_workers()
    return Bulk(added, said_ids, kept)


def _after_whom(spec: Spec, stands_for: Mapping[str, str]) -> Spec:
    """The Spec, coming after the jobs that those which it names stand for."""
    if not (spec.after and stands_for):
        return spec
    after = [{"id": stands_for.get(id, id), "any": end} for id, end in parents_of(spec).items()]
    return spec._replace(after=parse_after(after))


def _ids_between(
    ms: int, first: int, last: int, others: Sequence[tuple[int, str, int]]
) -> Iterator[bytes]:
    """The ids of the jobs after `first`, up to `last`, and of those that were there before. Only `others`, which are
    not made, are kept, each between the seq of the job before it and from which to go on: the rest follow from that."""
    for before, id, after in others:
        yield from made_ids(ms, first + 1, before)
        yield b"%s\n" % id.encode()
        first = after
    yield from made_ids(ms, first + 1, last)


def _names_in(
    lines: Spool, options: Mapping[str, Any], now: str
) -> tuple[dict[str, int], set[str], set[str], bool]:
    """What the lines of a bulk name: given ids, each with its line's number, unique keys, jobs that they come after;
    and whether all are plain commands. Checks every line; refuses an id that stands in two."""
    ids: dict[str, int] = {}
    keys: set[str] = set()
    parents: set[str] = set()
    is_plain = may_be_plain = _may_be_plain(options)
    count = 0
    for block in lines.blocks():
        first, count = count + 1, count + 1 + block.count(b"\n")
        if may_be_plain and _are_plain(block):
            continue
        is_plain = False
        for number, said in _parse_lines(
            enumerate(block.split(b"\n"), first), lines.unit, options, now
        ):
            if isinstance(said, str):
                continue
            if said.id is not None and ids.setdefault(said.id, number) != number:
                raise Refused(
                    f"In {lines.unit} {number}: job '{said.id}' stands in {lines.unit} {ids[said.id]} too. Nothing was "
                    "added. Give each an id of its own, or leave it out."
                )
            if said.unique is not None:
                keys.add(said.unique)
            parents.update(parents_of(said))
    return ids, keys, parents, is_plain


def _may_be_plain(options: Mapping[str, Any]) -> bool:
    """Whether a line that is a command alone needs no Spec: it has no key, and comes after nothing."""
    return options.keys().isdisjoint(("unique", "after"))


def _are_plain(block: bytes) -> bool:
    """Whether each of these lines is blank, a comment, or a command that `parse_command` takes: by a few looks at all
    of them at once. What is in doubt is not, and then looked at by itself."""
    try:
        text = block.decode()
    except UnicodeDecodeError:
        return False
    lines = text.split("\n")
    return (
        "\0" not in text
        and len(max(lines, key=len))
        <= COMMAND_BYTES_MAX // 4  # a character has four bytes at the most
        and not ("{" in text and any(line.lstrip().startswith("{") for line in lines))
    )


def _plain_lines(lines: Spool) -> Iterator[tuple[int, str]]:
    """As `_parse_lines`, of lines that were all found to be plain commands."""
    texts = itertools.chain.from_iterable(block.decode().split("\n") for block in lines.blocks())
    for number, line in enumerate(texts, 1):
        if (text := line.strip()) and text[0] != "#":
            yield number, text


class _PlainRecords:
    """Encodes the jobs of a bulk that differ in nothing but id, seq and command, from one made beforehand."""

    def __init__(self, options: Mapping[str, Any], config: Config, now: str) -> None:
        job = new_job(Spec(**{**options, "command": "x"}), "x", 1, config, now)
        self.start_at: str | None = job.run_at or ""
        self._rest = encode_job(job).split(b'"command": "x"', 1)[1]

    def encode(self, ms: int, seq: int, command: str) -> bytes:
        id, quoted = make_id(ms, seq), json.encoder.encode_basestring(command)
        return (
            f'{{"id": "{id}", "state": "pending", "seq": {seq}, "command": {quoted}'.encode()
            + self._rest
        )


def _parse_lines(
    numbered: Iterable[tuple[int, bytes]], unit: str, options: Mapping[str, Any], now: str
) -> Iterator[tuple[int, str | Spec]]:
    """(number, job) of each line that holds one; what is wrong with one names its number.

    The command alone where it says nothing else and needs no key: such jobs are encoded without making a Spec.
    """
    may_be_plain = _may_be_plain(options)
    for number, line in numbered:
        try:
            said = parse_job_line(line, now)
        except BadValue as error:
            raise BadValue(f"In {unit} {number}: {error}") from None
        if said is not None:
            is_plain = may_be_plain and len(said) == 1
            yield number, said["command"] if is_plain else make_spec(merge_fields(options, said))


def parse_job_line(line: bytes, now: str) -> dict[str, Any] | None:
    """A Spec's fields from one line: a JSON object, else a command; None for a blank line or a `#` comment."""
    try:
        text = line.decode().strip()
    except UnicodeDecodeError:
        raise BadValue(
            f"Not valid UTF-8: {_shown(line.decode('utf-8', 'replace'))}. Give it in UTF-8."
        ) from None
    if not text or text[0] == "#":
        return None
    if text[0] == "{":
        hint = ' A shell line that begins with { is written {"command": "{ ..."}.'
        return parse_spec(parse_json(text, "The job", hint), now)
    return {"command": parse_command(text)}


def merge_fields(options: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The job's own fields over those given for all; a job's `run_at` takes the place of a common delay too."""
    if fields.keys() & {"run_at", "delay"}:
        options = {
            name: value for name, value in options.items() if name not in ("run_at", "delay")
        }
    return {**options, **fields}


# -- Claim, report, recover: what workers do


class Turn(NamedTuple):
    """What a slot's turn at the queue gave: the job it reported as it is now with the hooks to run, the one it claimed
    (none where there are hooks, which take the slot's time first), and whether the report left others one to claim."""

    reported: Job | None
    claimed: Job | None
    hooks: Mapping[str, str] = {}
    frees: bool = False


class TagFilter(NamedTuple):
    """`--tag`, `--not-tag`: which jobs a worker takes."""

    tags: tuple[str, ...] = ()
    not_tags: tuple[str, ...] = ()

    def takes(self, job: Job) -> bool:
        own = set(job.tags or ())
        return (not self.tags or not own.isdisjoint(self.tags)) and own.isdisjoint(self.not_tags)


def take_turn(
    store: Store,
    worker: str,
    slot: int,
    done: tuple[Job, Outcome] | None,
    claim: bool,
    only: TagFilter,
) -> Turn:
    """Report the attempt that ended and claim the next job, in one transaction.

    A report that the record does not expect (O3) is dropped: the job was recovered, or its queue replaced.
    """
    import random

    reported = claimed = None
    hooks: Mapping[str, str] = {}
    with store.transaction() as change:
        config = store.config()
        for held in list(store.processing.values()):
            if (
                held.worker == worker
                and held.slot == slot
                and (done is None or held.id != done[0].id)
            ):
                # A claim whose line was written while its sync failed: nothing runs in a slot that takes its turn.
                change.put(
                    held,
                    give_back(held, Outcome("handed_back", reason="its claim failed"), change.now),
                )
        if done is not None:
            job = change.job(done[0].id)
            if job is not None and _is_run(job, done[0]):
                reported = report_job(job, done[1], config, random.uniform(-1, 1), change.now)
                change.put(job, reported)
                hooks = hooks_of(reported, config) if config.on_dead or config.on_finish else hooks
        may_claim = claim and not hooks and not config.paused and not store.is_suspect
        if may_claim and (ready := _first(change, only, config)):
            claimed = claim_job(ready, worker, slot, change.now)
            change.put(ready, claimed)
        frees = reported is not None and _frees(change, reported, config)
    return Turn(reported, claimed, hooks, frees)


def _frees(change: Transaction, job: Job, config: Config) -> bool:
    """Whether this job's report left something for others to claim: it was waited for, or counted for a limit."""
    is_waited_for = job.state in OVER and job.id in change.store.waiting().parents
    if is_waited_for or (config.limits and not config.limits.keys().isdisjoint(job.tags or ())):
        return _first(change, TagFilter(), config) is not None
    return False


def _first(change: Transaction, only: TagFilter, config: Config) -> Job | None:
    """The job that such a worker claims next, as things are after this change."""
    full = full_tags(config.limits, change.running()) if config.limits else frozenset()
    return _waiting_for(change.store, only).first(change.now, full, change)


def _waiting_for(store: Store, only: TagFilter) -> Waiting:
    """The index of the jobs that such a worker takes."""
    return store.waiting(only, only.takes) if any(only) else store.waiting()


def is_drained(store: Store, only: TagFilter, most_s: float = math.inf) -> bool:
    """Whether nothing that fits is pending, processing (in any worker), or waits for a retry or a delay."""
    with store.transaction(most_s=most_s):
        if not (left := store.totals.left()) or not any(only):
            return not left
        running = any(only.takes(job) for job in store.processing.values())
        return not (
            running or not _waiting_for(store, only).is_empty() or _is_any_freed_later(store, only)
        )


def _is_any_freed_later(store: Store, only: TagFilter) -> bool:
    """Whether a job that fits, and comes after others, may still start: only if a live worker takes each of these."""
    headers = [info.header for info in store.live_workers()]
    takers = [
        only,
        *(
            TagFilter(tuple(head.get("tags") or ()), tuple(head.get("not_tags") or ()))
            for head in headers
        ),
    ]
    ends: dict[str, bool] = {}
    for job, left in sorted(
        store.waiting().held(), key=lambda item: item[0].seq
    ):  # parents first (J5)
        for id, parent in store.find_jobs(left - ends.keys()).items():
            ends[id] = parent.state == "processing" or any(taker.takes(parent) for taker in takers)
        ends[job.id] = any(taker.takes(job) for taker in takers) and all(
            ends.get(id, True) for id in left
        )
        if ends[job.id] and only.takes(job):
            return True
    return False


def why_drain_waits(store: Store, only: TagFilter) -> str | None:
    """What a person must do before a drain can end; None where the jobs do it."""
    config, now = store.config(), store.now()
    if config.paused:
        return "The queue is paused: the drain waits. Go on with: queuectl resume"
    shut = frozenset(tag for tag, most in config.limits.items() if most == 0)
    index = _waiting_for(store, only) if shut and not store.processing else None
    if index is None or index.first(now, shut) is not None or index.hints(now, ())[0] is None:
        return None
    return f"The limit of {', '.join(sorted(shut))} is 0: the drain waits. Change it with: queuectl config set limits"


def has_died_since(store: Store, instant: str, only: TagFilter) -> bool:
    """Whether a job that fits died since then, other than by being cancelled."""
    dead = store.jobs(states=("dead",))
    return any(
        job.cancelled_at is None and (job.finished_at or "") >= instant and only.takes(job)
        for job in dead
    )


def _is_run(job: Job, run: Job) -> bool:
    """Whether the job is still in that run of it (O3); another that was given its id since has a `seq` of its own."""
    return job.state == "processing" and (job.worker, job.runs, job.seq) == (
        run.worker,
        run.runs,
        run.seq,
    )


def recover(store: Store, orphan: Job, excused: bool) -> Job | None:
    """Take back the job of a dead worker, of whose run nothing lives any more. None where it was not its own."""
    with _change(store) as change:
        job = change.job(orphan.id)
        if job is None or not _is_run(job, orphan):
            return None
        back = recover_job(job, excused, change.now)
        change.put(job, back)
    return back


@contextlib.contextmanager
def _change(store: Store) -> Iterator[Transaction]:
    """A transaction of which the workers are told."""
    with store.transaction() as change:
        yield change
    store.wake_workers()


# -- What people do to jobs


def find_all(store: Store, ids: Sequence[str]) -> list[Job]:
    """These jobs, each once; refuses the whole request where one is not there."""
    found = store.find_jobs(
        [id for id in ids if re.fullmatch(r"[A-Za-z0-9._:-]+", id)]
    )  # else it is no job's id
    for id in ids:
        if id not in found:
            raise Refused(
                f"There is no job {_shown(id)[1:-1]!r}. Nothing was changed. See them all with: queuectl list."
            )
    return [found[id] for id in dict.fromkeys(ids)]


def _refusal(job: Job, why: str, hint: str = "") -> Refused:
    return Refused(
        f"Job '{job.id}' {why}. Nothing was changed. {hint or f'See it with: queuectl show {job.id}.'}"
    )


def cancel_jobs(store: Store, ids: Sequence[str]) -> list[Job]:
    """Waiting jobs die, and with them who needs them; running ones are marked and stopped by whoever runs them.
    Refuses jobs that are over."""
    out = []
    with _change(store) as change:
        for job in find_all(store, ids):
            if job.state in OVER:
                raise _refusal(job, f"is {job.state} already and cannot be cancelled")
            new = job if job.cancelled_at else cancel_job(job, change.now)
            if new is not job:
                change.put(job, new)
            out.append(new)
        out += [new for _, new in change.changes.values() if new is not None and new.id not in ids]
    return out


def retry_jobs(store: Store, ids: Sequence[str]) -> list[Job]:
    """Failed jobs are due now; dead ones are revived, with those that died for it. Refuses all others."""
    out = []
    with _change(store) as change:
        jobs = find_all(store, ids)
        for job in jobs:
            if job.state not in ("failed", "dead"):
                raise _refusal(job, f"is {job.state}; only a failed or dead job can be retried")
            if job.state == "failed":
                out.append(retry_now(job, change.now))
                change.put(job, out[-1])
        out += _revive(change, [job for job in jobs if job.state == "dead"], {})
    return out


def edit_jobs(store: Store, ids: Sequence[str], changes: Mapping[str, Any]) -> list[Job]:
    """Waiting jobs with these fields changed (`edit_job`). Refuses all others."""
    out = []
    with _change(store) as change:
        for job in find_all(store, ids):
            if job.state not in WAITING:
                hint = (
                    f"Change it on its way back: queuectl dlq retry {job.id}."
                    if job.state == "dead"
                    else ""
                )
                raise _refusal(
                    job, f"is {job.state}; only a pending or failed job can be edited", hint
                )
            out.append(edit_job(job, changes, store.config().backoff_max, change.now))
            change.put(job, out[-1])
    return out


def rerun_jobs(store: Store, ids: Sequence[str]) -> list[Job]:
    """A new job like each of these, whatever its state; gives the new ones. The key is theirs too, as a revived job's
    is: whoever enqueues with it while one of them is active finds that one."""
    out = []
    with _change(store) as change:
        ms, jobs = int(instant_s(change.now) * 1000), find_all(store, ids)
        parents = store.find_jobs({id for job in jobs for id in parents_of(job)})
        not_over = {id for id, parent in parents.items() if parent.state not in OVER}
        for seq, job in enumerate(jobs, store.totals.n + 1):
            out.append(rerun_job(job, make_id(ms, seq), seq, not_over, change.now))
            change.put(None, out[-1])
    return out


def revive_jobs(
    store: Store,
    ids: Sequence[str],
    changes: Mapping[str, Any] | None = None,
    spread_s: float | None = None,
) -> list[Job]:
    """Dead letters, back as pending with attempts at zero and with these fields changed; with them those that died
    for this reason only. Refuses a job that is not dead, or needs one that stays dead.

    `spread_s` lets them start evenly over that time.
    """
    with _change(store) as change:
        return _revive(
            change, [check_dead(job) for job in find_all(store, ids)], changes or {}, spread_s
        )


def revive_all(
    store: Store,
    text: str | None,
    cancelled: bool,
    changes: Mapping[str, Any],
    spread_s: float | None,
) -> list[Job]:
    """Every dead letter that matches, unless it needs one that stays dead; the cancelled ones only where asked for:
    somebody did not want them."""
    with _change(store) as change:
        dead = store.jobs(states=("dead",))
        jobs = [
            job for job in dead if (cancelled or job.cancelled_at is None) and matches(job, text)
        ]
        back = _coming_back(store, jobs)
        return _revive(change, [job for job in jobs if job.id in back], changes, spread_s)


def check_dead(job: Job) -> Job:
    """The job, where it is dead; refuses it otherwise."""
    if job.state != "dead":
        raise _refusal(job, f"is not in the dead letter queue (its state is '{job.state}')")
    return job


def _coming_back(store: Store, jobs: Sequence[Job]) -> dict[str, Job]:
    """Those of these dead jobs that can be revived, and the others that died only for them, by id."""
    chosen = {job.id: job for job in jobs}
    stays: set[str] = set()
    back: dict[str, Job] = {}
    for raw in store.raws(arrays=("dlq",)) if jobs else ():  # who is needed comes first (J5)
        id, _, _ = _head(raw)
        job = chosen.get(id) or (decode_job(raw) if b'"after": ' in raw else None)
        needed = needed_by(job) if job is not None else []
        is_meant = id in chosen or (
            job and has_died_after(job) and not back.keys().isdisjoint(needed)
        )
        if job is not None and is_meant and stays.isdisjoint(needed):
            back[id] = job
        else:
            stays.add(id)
    return back


def _revive(
    change: Transaction,
    jobs: Sequence[Job],
    changes: Mapping[str, Any],
    spread_s: float | None = None,
) -> list[Job]:
    """These dead letters with these changes, then those that died for them only; refuses one that cannot come back."""
    back = _coming_back(change.store, jobs)
    begin = changes.get("run_at", change.now)
    out = []
    for number, job in enumerate(jobs):
        if job.id not in back:
            dead = [
                parent.id
                for parent in change.store.find_jobs(needed_by(job)).values()
                if parent.state == "dead"
            ]
            parent = next(id for id in needed_by(job) if id in dead and id not in back)
            hint = "Bring that one back, and this one comes with it if it died for nothing else: queuectl dlq retry"
            raise _refusal(job, f"comes after '{parent}', which is dead", f"{hint} {parent}.")
        if spread_s:
            changes = {**changes, "run_at": add_seconds(begin, spread_s * number / len(jobs))}
        out.append(edit_job(revive_job(job, change.now), changes, 0, change.now))
    chosen = {job.id for job in jobs}
    out += [revive_job(job, change.now) for id, job in back.items() if id not in chosen]
    for new in out:
        change.put(back[new.id], new)
    return out


class Purged(Record):
    """What became of a purge: the jobs that are gone, and those that stay because a job that waits names them."""

    gone: list[Job]
    kept: list[Job]


def choose_purged(store: Store, chosen: Callable[[Job, str], bool], now: str) -> Purged:
    """Which of the jobs that are over and that `chosen(job, now)` picks a purge would take."""
    waiting = store.waiting()
    out = Purged([], [])
    for job in store.jobs(states=OVER):
        if chosen(job, now):
            (out.kept if waiting.is_named(job) else out.gone).append(job)
    return out


def purge_jobs(store: Store, chosen: Callable[[Job, str], bool]) -> Purged:
    """Delete for good the jobs that are over and that `chosen(job, now)` picks, unless a waiting one names them."""
    with store.transaction() as change:
        out = choose_purged(store, chosen, change.now)
        for job in out.gone:
            change.delete(job)
    return out


def purge_completed(
    store: Store, seconds: float, place: Place, most_s: float
) -> tuple[list[Job], Place | None]:
    """Delete those jobs of the next piece of the array that were completed that long ago and that no waiting one
    names; gives them, and the place to go on from. A queue of any length is gone through in short transactions."""
    with store.transaction(most_s=most_s) as change:
        out, place_after = store.completed_before(
            add_seconds(change.now, -seconds), place, PURGE_JOBS
        )
        out = [job for job in out if not store.waiting().is_named(job)]
        for job in out:
            change.delete(job)
    return out, place_after


def purge_dead(store: Store, ids: Sequence[str]) -> Purged:
    """Delete these dead letters for good. Refuses a job that is not dead, or that a waiting one names."""
    with store.transaction() as change:
        out = [check_dead(job) for job in find_all(store, ids)]
        for job in out:
            if child := next(store.waiting().children(job.id, job.seq), None):
                why = f"cannot be purged: job '{child.id}', which waits, comes after it"
                raise _refusal(job, why, f"See it with: queuectl show {child.id}.")
            change.delete(job)
    return Purged(out, [])


def matches(job: Job, text: str | None, tags: Collection[str] = ()) -> bool:
    """Whether id or command holds the text (in any case), and the job has one of the tags."""
    has_text = text is None or text.lower() in job.id.lower() or text.lower() in job.command.lower()
    return has_text and (not tags or not set(tags).isdisjoint(job.tags or ()))


def over_for(states: Collection[str], seconds: float | None) -> Callable[[Job, str], bool]:
    """Picks, for a purge, the jobs in these states that have been over for so long."""
    return lambda job, now: (
        job.state in states
        and (seconds is None or add_seconds(job.finished_at or now, seconds) <= now)
    )


# -- Settings


def set_setting(store: Store, name: str, text: str | None) -> object:
    """Change one setting (None: back to its default); gives its new value as stored. Raises BadValue before anything
    is written."""
    key = known_setting(name)
    value: object = SETTINGS[key]["default"] if text is None else setting_from_text(key, text)
    SETTINGS[key]["check"](value, key)
    store.save_settings(lambda values: {**default_settings(), **values, key: value})
    store.wake_workers()
    return value


def settings_in_force(store: Store) -> dict[str, object]:
    """Every setting as config.json spells it, the default where it does not name one."""
    return {**default_settings(), **store.settings()}


# -- Looking

RECENT_MAX: Final = 10_000  # a shell is offered ids of the jobs that arrived last
COMPLETED_MAX: Final = 100  # and so many of them


def status(store: Store) -> dict[str, Any]:
    """Counts, workers, what waits longest, the next retry, settings, without reading the queue."""
    return _overview(store, store.read_totals())


def _overview(store: Store, totals: Totals) -> dict[str, Any]:
    now_s = store.clock()
    return {
        "jobs": dict(zip(STATES, totals.counts, strict=True)),
        "workers": [worker_view(info, now_s) for info in store.live_workers()],
        "paused": store.config().paused,
        "oldest_pending_s": _oldest_pending_s(totals, now_s),
        "next_run_at": _next_run_at(totals),
        "config": settings_in_force(store),
        "home": store.home,
    }


def _oldest_pending_s(totals: Totals, now_s: float) -> float | None:
    """For how long the oldest job that is due has waited."""
    if totals.oldest is None:
        return None
    return round(max(0.0, now_s - instant_s(totals.oldest)), 3)


def _next_run_at(totals: Totals) -> str | None:
    """When the next retry or delayed job becomes due."""
    return totals.next_run_at


class Watch:
    """What the live screen shows. The store is read once; a later look reads what has changed."""

    LOOKS_MAX: Final = 500
    DEAD_MAX: Final = 200  # the last failures are those among so many dead letters, the newest

    def __init__(self, store: Store) -> None:
        self._store = store
        self._failed: list[Job] = []
        self._looks: list[tuple[float, int]] = []  # when, and how many jobs were completed by then

    def look(self) -> dict[str, Any]:
        """`status` as it is now, with what runs, what died last (newest first), and how many jobs
        a second completed between two looks."""
        if self._store.refresh():
            dead = self._store.jobs(reverse=True, states=("dead",))
            newest = itertools.islice(dead, self.DEAD_MAX)
            failed = [job for job in newest if job.cancelled_at is None]
            self._failed = sorted(failed, key=lambda job: job.finished_at or "", reverse=True)
        view = _overview(self._store, self._store.totals)
        look = time.monotonic(), view["jobs"]["completed"]
        self._looks = [*self._looks, look][-self.LOOKS_MAX :]
        rates = [
            max(0, after - before) / max(end_s - start_s, 0.001)  # a purge lowers the count
            for (start_s, before), (end_s, after) in itertools.pairwise(self._looks)
        ]
        running = sorted(self._store.processing.values(), key=lambda job: job.started_at or "")
        return {**view, "running": running, "failed": self._failed, "rates": rates}


def worker_view(info: WorkerInfo, now_s: float) -> dict[str, Any]:
    """A live worker as `status` and `worker list` show it."""
    head = info.header
    return {
        "name": info.name,
        **{key: head[key] for key in ("pid", "threads", "started_at")},
        **{key: head.get(key) or [] for key in ("tags", "not_tags")},
        "running": [
            {"slot": slot, "job": row["job"], "run": row["run"]}
            for slot, row in enumerate(info.rows)
            if row
        ],
        "trouble": head.get("trouble"),
        "silent_s": round(max(0.0, now_s - info.seen_s), 1),
    }


def is_work_left_alone(view: Mapping[str, Any], now: str) -> bool:
    """`status --check`: no worker lives, and jobs are due or were left processing."""
    if view["workers"]:
        return False
    next_run_at = view["next_run_at"]
    is_retry_due = next_run_at is not None and next_run_at <= now
    return is_retry_due or view["oldest_pending_s"] is not None or view["jobs"]["processing"] > 0


def why_waiting(store: Store, job: Job) -> str | None:
    """Why a job that is not over does not run, or who runs it; None where it is over."""
    if job.state in OVER:
        return None
    workers = store.live_workers()
    if job.state == "processing":
        held = f"held by worker {job.worker}, slot {job.slot}"
        if job.worker not in [info.name for info in workers]:
            return f"{held}, which is dead; the next live worker takes the job back"
        return f"{held}, being cancelled" if job.cancelled_at else held
    parents = store.find_jobs(parents_of(job)).values()
    earlier = [parent for parent in parents if parent.seq < job.seq]  # else it holds up nothing
    if going := [parent.id for parent in earlier if parent.state not in OVER]:
        more = f" and {len(going) - 3} more" if len(going) > 3 else ""
        noun = "job" if len(going) == 1 else "jobs"
        return f"waiting for {noun} {', '.join(going[:3])}{more}"
    now, config = store.now(), store.config()
    if not is_ready(job, now, config.backoff_max):
        wait_s = math.ceil(instant_s(job.run_at or now) - instant_s(now))
        return f"waiting {wait_s} s for its {'retry' if job.state == 'failed' else 'time'}"
    if config.paused:
        return "the queue is paused; go on with: queuectl resume"
    if not workers:
        return "no worker is running; start one with: queuectl worker start"
    if trouble := next((info.header.get("trouble") for info in workers), None):
        return f"a worker has trouble: {trouble}"
    used_up = full_tags(config.limits, store.processing.values()).intersection(job.tags or ())
    return f"the limit of tag {min(used_up)} is used up" if used_up else "waiting for a free slot"


def newest_ids(store: Store, prefix: str, states: Collection[str]) -> list[str]:
    """The ids that a shell is offered: of the newest jobs in those states, those that begin so."""
    arrays = {array_of(state) for state in states}
    recent = itertools.islice(store.raws(reverse=True, arrays=arrays), RECENT_MAX)
    found = (id for id, state, _ in map(_head, recent) if state in states and id.startswith(prefix))
    return list(itertools.islice(found, COMPLETED_MAX))


def run_of_attempt(job: Job, attempt: int) -> int:
    """The newest run with that attempt number. Refuses a number that is not on record."""
    runs = [entry.get("run", 0) for entry in job.history or () if entry.get("attempt") == attempt]
    if job.state == "processing" and job.attempts == attempt:
        runs.append(job.runs)
    if not runs:
        raise Refused(
            f"Job '{job.id}' has no attempt {attempt} on record. "
            f"See its attempts: queuectl show {job.id}."
        )
    return int(max(runs))


def orphan_among(store: Store, ids: Collection[str]) -> str | None:
    """One of these jobs that is processing although no worker lives; None where there is none."""
    held = [id for id in ids if id in store.processing]
    return held[0] if held and not store.live_workers(first=True) else None


def exit_code_of(jobs: Sequence[Job | None], single: bool) -> int:
    """What `wait` exits with: the code of the single job, or whether all completed (a purged job,
    None, did not)."""
    if all(job is not None and job.state == "completed" for job in jobs):
        return 0
    if not single or (job := jobs[0]) is None:
        return EXIT_REFUSED
    return 128 + job.signal if job.signal is not None else job.exit_code or EXIT_REFUSED


def ended_view(id: str, job: Job | None, is_over: bool) -> dict[str, Any]:
    """How `wait --json` shows one job; None is one that was purged, or that is not over."""
    if job is None:
        return {"id": id, "state": "purged" if is_over else None}
    names = ("id", "state", "attempts", "outcome", "exit_code", "signal", "reason", "finished_at")
    return {name: getattr(job, name) for name in names}


def mend(store: Store) -> list[str]:
    """Repair what `examine` finds: keep what is whole, and copies of the files as they were; the copies' paths."""
    now = store.now()
    return store.mend(lambda job, known: doubt_job(job, known, now))


def examine(store: Store) -> list[str]:
    """What is wrong with the home's stores and journal, a sentence each; [] where nothing is."""
    problems: list[str] = []
    try:
        if not store.check_home():
            return []
        problems = list(filter(None, [store.settings_problem()]))
        try:
            store.read()
            return [*problems, *store.examine(), *_examine_jobs(store)]
        except (
            StoreError,
            ValueError,
            LookupError,
        ) as error:  # what the disk changed cannot be walked through
            return [*problems, *(store.survey() or [str(error)])]
    except StoreError as error:
        return [*problems, str(error)]


def _examine_jobs(store: Store) -> Iterator[str]:
    """Each job in one place and in order, its fields fit, and the counts true."""
    seen: dict[str, int] = {}
    counts = dict.fromkeys(STATES, 0)
    dead: set[str] = set()
    last = -1
    for raw in store.raws():
        try:
            job = decode_job(raw)
        except BadValue as error:
            yield f"A record cannot be used: {error}"
            continue
        if job.state == "dead":
            dead.add(job.id)
        elif job.state in WAITING and (
            needed := dead.intersection(needed_by(job))
        ):  # earlier ones (J5)
            yield f"Job '{job.id}' waits although '{min(needed)}', which it comes after, is dead."
        counts[job.state] += 1
        seen[job.id] = seen.get(job.id, 0) + 1
        if job.seq < last:
            yield f"Job '{job.id}' stands out of order (seq {job.seq} after {last})."
        last = job.seq
    yield from (
        f"Job '{id}' stands in the stores {count} times." for id, count in seen.items() if count > 1
    )
    if tuple(counts.values()) != store.totals.counts:
        yield miscounted(store.totals.counts, tuple(counts.values()))
    if last > store.totals.n:
        yield f"The journal says that {store.totals.n} jobs were ever accepted, but there is seq {last}."


# -- Counting what ended: `stats`

QUANTILES: Final = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
TIME_BOUNDS_S: Final = (0.01, 0.1, 1, 10, 60, 600, 3600)  # of the histograms
GROUPS_MAX: Final = 1_000  # of `--by`; later ones are counted together


class Tally:
    """What came of some jobs: of those that ended since an instant, and of their attempts.

    Times are kept to three digits, which bounds the memory.
    """

    COUNTS: Final = ("completed", "failed_attempts", "dead", "cancelled")

    def __init__(self, since: str) -> None:
        self._since = since
        self._counts = collections.Counter[str]()
        self._waits, self._runs = collections.Counter[float](), collections.Counter[float]()
        self._first_s, self._last_s = math.inf, -math.inf

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a record. Of a job's attempts the last HISTORY_MAX are known one by one."""
        state, failed = record["state"], 0
        for entry in record.get("history", ()):
            # A hand edit may have put anything there.
            with contextlib.suppress(LookupError, TypeError, ValueError, OverflowError):
                if entry["finished_at"] >= self._since:
                    failed += self._add_attempt(entry, record["created_at"])
        if not self._since:
            failed = max(failed, record["attempts"] - (state in ("completed", "processing")))
        self._counts["failed_attempts"] += failed
        if state in OVER and record["finished_at"] >= self._since:
            self._counts[state] += 1
            self._counts["cancelled"] += state == "dead" and "cancelled_at" in record

    def _add_attempt(self, entry: Mapping[str, Any], created_at: str) -> bool:
        """Count an attempt; whether it failed."""
        start_s, end_s = instant_s(entry["started_at"]), instant_s(entry["finished_at"])
        self._first_s, self._last_s = min(self._first_s, start_s), max(self._last_s, end_s)
        if entry.get("run") == 1:
            self._waits[_three_digits(start_s - instant_s(created_at))] += 1
        if entry.get("outcome") == "handed_back":
            return False
        self._runs[_three_digits(end_s - start_s)] += 1
        return (entry.get("outcome"), entry.get("exit_code")) != ("exited", 0)

    def view(self) -> dict[str, Any]:
        """The figures; None where there is nothing to tell. Cancelled jobs are no failures."""
        counts = {name: self._counts[name] for name in self.COUNTS}
        ran = counts["completed"] + counts["dead"] - counts["cancelled"]
        span_s = self._last_s - self._first_s
        return {
            **counts,
            "success_rate": round(counts["completed"] / ran, 4) if ran else None,
            "jobs_per_s": float(f"{ran / span_s:.3g}") if ran and span_s > 0 else None,
            "wait_s": _times_view(self._waits),
            "run_s": _times_view(self._runs),
        }


def _three_digits(seconds: float) -> float:
    return float(f"{max(0.0, seconds):.2e}")  # the clock may have been set back


def _times_view(counts: collections.Counter[float]) -> dict[str, Any]:
    """`{"count": 3, "sum": 4.5, "p50": 1.2, ..., "histogram": [{"le": 0.01, "count": 1}, ...,
    {"le": null, ...}]}`; a bar counts what is at most `le` and above the bar before."""
    times = sorted(counts.elements())
    total = len(times)
    ends = [*(bisect.bisect_right(times, bound) for bound in TIME_BOUNDS_S), total]
    bars = zip((*TIME_BOUNDS_S, None), (0, *ends), ends, strict=False)
    quantiles = {
        name: times[math.ceil(share * total) - 1] if times else None
        for name, share in QUANTILES.items()
    }
    histogram = [{"le": bound, "count": end - start} for bound, start, end in bars]
    return {"count": total, "sum": round(sum(times), 3), **quantiles, "histogram": histogram}


def stats(store: Store, since_s: float | None, by: str | None) -> dict[str, Any]:
    """What ended (in the last `since_s` seconds), counted record by record; where asked for, by
    `tag` or `command` too."""
    store.read()
    now = store.now()
    since = "" if since_s is None else add_seconds(now, -since_s)
    whole = Tally(since)
    groups: dict[str, Tally] = {}
    for record in map(json.loads, store.raws()):
        if record["state"] not in OVER and "history" not in record:
            continue
        whole.add(record)
        names = {"tag": record.get("tags", [""]), "command": [record["command"]]}
        for name in names[by] if by else ():
            if name not in groups and len(groups) >= GROUPS_MAX:
                name = "(others)"
            groups.setdefault(name, Tally(since)).add(record)
    out = {
        "since": since or None,
        "until": now,
        "jobs": dict(zip(STATES, store.totals.counts, strict=True)),
        "workers": sum(info.header["threads"] for info in store.live_workers()),
        **whole.view(),
    }
    if by:
        views = [{by: name, **tally.view()} for name, tally in groups.items()]
        out |= {"by": by, "groups": sorted(filter(_size, views), key=_size, reverse=True)}
    return out


def _size(view: Mapping[str, Any]) -> int:
    return int(view["completed"] + view["failed_attempts"] + view["dead"])


# ======== 6. EXECUTION ========
# Owns processes and the attempts' output: starts one command, waits for it, ends it, ends what a dead worker left,
# keeps and reads its log. Returns an outcome; knows neither stores nor job states.
#
# A run is found again by its mark, `QUEUECTL_RUN` in the environment of its processes (device and inode of the
# store lock, worker, job, run: never the same in a copied home), by its session, and by its log: the log is locked
# before the spawn and the worker closes its own descriptor, so that exactly the descendants that hold the output
# keep the lock, whatever they did to their session or environment.
#
# X1  A pid is signalled only while its process cannot have been reaped (under `_table`), or through a pidfd.
# X2  The working directory changes only under `_spawn`; nothing else in the process uses a relative path.
# X3  An attempt that we ended is over when nothing of its run lives; one that ended by itself is over with its
#     leader, and what it leaves behind is a daemon that lives on.
# X4  Fencing never waits for a lock, and never ends this process or one that it descends from.
# F4 to F7, here and in WORKER, are among what is true after any fault: tests/faults/test_survived.py has them all.

FENCE_POLL_S: Final = 0.03
LAST_LINE_CHARS: Final = 200
CUT: Final = ".cut"  # ending of what was kept of a log when it was cut
HOOK_S: Final = 30  # a hook may run that long
HOOK_LINES: Final = 20  # of the job's output are given to a hook
HOOK_BYTES: Final = 16_384  # at most
ROOM_BYTES: Final = 16_384  # on the logs' disk; with less nothing is started
_PROC: Final = "/proc"


class HostFault(Exception):
    """An attempt could not begin for a reason that is not the job's: no runner, no memory, no descriptors, no disk."""


class Trace(NamedTuple):
    """What the processes of one run are known by. `session` and `start_s` only where its worker wrote them down."""

    mark: str
    home: str
    logs: tuple[str, ...]
    session: int | None = None
    start_s: float | None = None  # of the session's leader, on the clock that counts from boot


class Attempt:
    """One command while it runs. Times are of the monotonic clock."""

    def __init__(self, pid: int, trace: Trace, deadline: float) -> None:
        self.pid = pid
        self.trace = trace
        self.deadline = deadline  # when its time limit strikes; inf where it has none
        self.ending: OutcomeKind | None = (
            None  # what its outcome will be, once we have begun to end it
        )
        self.reason: str | None = None  # of that
        self.kill_at = math.inf  # when SIGTERM has had its grace
        self.killed = False
        self.job_id = ""

    def next_event(self) -> float:
        """When the main thread has to look at this attempt again."""
        if self.ending is None:
            return self.deadline
        return math.inf if self.killed else self.kill_at


def run_mark(lock_id: str, worker: str, job: Job) -> str:
    """What tells the processes of a job's run from all others: QUEUECTL_RUN in their environment."""
    return f"{lock_id}/{worker}/{job.id}/{job.runs}"


def boot_clock_s() -> float:
    """Seconds on the clock that processes' start times are given in."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


class Executor:
    """Starts commands and ends them: this process's running attempts, its working directory, its environment."""

    def __init__(self, base_env: Mapping[str, str]) -> None:
        import signal

        self._spawn = threading.Lock()  # X2
        self._table = threading.Lock()  # X1
        with contextlib.suppress(OSError):  # what this process was started with is not for the jobs
            for name in os.listdir("/dev/fd"):
                with contextlib.suppress(OSError):
                    if int(name) > 2:
                        os.set_inheritable(int(name), False)
        self._env = dict(base_env)
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._runners: dict[tuple[str, ...], str] = {}  # to the paths of their programs
        self._defaults = [
            number
            for number in signal.valid_signals()
            if number not in (signal.SIGKILL, signal.SIGSTOP)
        ]
        self.running: dict[int, Attempt] = {}  # by slot

    def start(
        self, slot: int, runner: tuple[str, ...], command: str, cwd: str | None, env: Mapping[str, str], log_fd: int,
        logs: tuple[str, ...], limit_s: float, more_fds: Mapping[int, int] | None = None,
    ) -> Attempt | Outcome:  # fmt: skip
        """Start `runner` + command in a session of its own, its output going to `log_fd`; `limit_s` 0 is no limit.

        `env` says by QUEUECTL_HOME and QUEUECTL_RUN how the run is found again, `logs` by which files. Its stdin is
        empty; `more_fds` gives it descriptors by number: {0: ours, ...}.
        An Outcome (not_started) where the job itself cannot be started; raises HostFault where it is not its fault.
        """
        path = self.find_runner(runner)
        whole_env = {**self._env, **env}
        with self._spawn:
            try:
                os.chdir(cwd or "/")  # each time anew: the path may lead elsewhere by now
            except OSError as error:
                return Outcome(
                    "not_started",
                    reason=f"its directory '{cwd}' cannot be entered: {error.strerror}",
                )
            try:
                pid = self._spawn_process(
                    path,
                    [*runner, command],
                    whole_env,
                    {0: self._null, 1: log_fd, 2: log_fd, **(more_fds or {})},
                )
            except OSError as error:
                if error.errno == errno.E2BIG:
                    return Outcome(
                        "not_started",
                        reason="its command and environment are too long for the system",
                    )
                self._runners.pop(
                    runner, None
                )  # looked for anew before the next claim, also by other slots
                raise HostFault(f"'{runner[0]}' could not be started: {error.strerror}") from error
            now_s = time.monotonic()
            trace = Trace(env["QUEUECTL_RUN"], env["QUEUECTL_HOME"], logs, pid, boot_clock_s())
            attempt = self.running[slot] = Attempt(
                pid, trace, now_s + limit_s if limit_s else math.inf
            )
        return attempt

    def _spawn_process(
        self, path: str, words: list[str], env: dict[str, str], fds: Mapping[int, int]
    ) -> int:
        actions = [(os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in sorted(fds.items())]
        try:
            return os.posix_spawn(
                path,
                words,
                env,
                file_actions=actions,
                setsid=True,
                setsigmask=(),
                setsigdef=self._defaults,
            )
        except NotImplementedError:  # no setsid in this system's posix_spawn
            import subprocess

            child = subprocess.Popen(
                words, executable=path, env=env, stdin=fds[0], stdout=fds[1], stderr=fds[2],
                start_new_session=True, restore_signals=True,
            )  # fmt: skip
            child.returncode = 0  # it is waited for below, not by its object
            return child.pid

    def find_runner(self, runner: tuple[str, ...]) -> str:
        """The path of a runner's program. Raises HostFault where there is none."""
        path = self._runners.get(runner)
        if path is None:
            import shutil

            path = shutil.which(runner[0])
            if path is None:
                raise HostFault(f"the runner '{runner[0]}' was not found")
            self._runners[runner] = path = os.path.abspath(path)
        return path

    def run_hook(
        self, slot: int, command: str, cwd: str, env: Mapping[str, str], input_fd: int,
        begun: Callable[[Attempt], None],
    ) -> Outcome:  # fmt: skip
        """Run a hook of at most HOOK_S, its output going to our stderr; how it ended. Raises HostFault.

        If this process dies first, a shell beside the hook learns so from a pipe, and ends it HOOK_S later.
        """
        watch = f'(read -r _ <&3 || {{ sleep {HOOK_S:g}; kill -s KILL -- -$$; }}) >/dev/null 2>&1 & exec sh -c "$1" 3<&-'
        here, there = os.pipe()
        try:
            fds = {0: input_fd, 3: here}
            attempt = self.start(
                slot, ("sh", "-c", watch, "sh"), command, cwd, env, 2, (), HOOK_S, fds
            )
            if isinstance(attempt, Outcome):
                return attempt
            begun(attempt)
            outcome = self.wait(slot)
            with contextlib.suppress(BrokenPipeError):
                os.write(there, b"over\n")
            return outcome
        finally:
            os.close(here)
            os.close(there)

    def wait(self, slot: int) -> Outcome:
        """Wait until the slot's attempt is over (X3) and say how it ended."""
        attempt = self.running[slot]
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, attempt.pid, os.WEXITED | os.WNOWAIT)
            if attempt.ending is not None:
                Fence(attempt.trace, attempt.kill_at).wait()
            status = self._reap(slot, attempt, 0)
        else:  # macOS before Python 3.13: the only way not to signal a reaped pid is to reap under the lock
            while (status := self._reap(slot, attempt, os.WNOHANG)) is None:
                time.sleep(FENCE_POLL_S)
            if attempt.ending is not None:
                Fence(attempt.trace, attempt.kill_at).wait()
        assert status is not None
        code, number = (
            (os.WEXITSTATUS(status), None) if os.WIFEXITED(status) else (None, os.WTERMSIG(status))
        )
        kind: OutcomeKind = "exited" if number is None else "signalled"
        if (
            attempt.ending is not None and attempt.ending != "signalled"
        ):  # a cancelled job may have exited all the same
            kind = attempt.ending
        return Outcome(kind, code, number, attempt.reason)

    def _reap(self, slot: int, attempt: Attempt, flags: int) -> int | None:
        """The exit status of an attempt that has ended, which is dropped first: its pid may soon be another's (X1)."""
        with self._table:
            pid, status = os.waitpid(attempt.pid, flags)
            if pid == 0:
                return None
            del self.running[slot]
            return status

    def end(
        self, slot: int, attempt: Attempt, why: OutcomeKind, reason: str | None, grace_s: float
    ) -> bool:
        """Begin to end a running attempt: SIGTERM to its group, SIGKILL `grace_s` later by `kill_late`.

        False where it has ended by itself or is being ended already.
        """
        import signal

        with self._table:
            if (
                self.running.get(slot) is not attempt
                or attempt.ending is not None
                or _has_exited(attempt.pid)
            ):
                return False
            attempt.ending, attempt.reason = why, reason
            attempt.kill_at = time.monotonic() + grace_s
            _signal_group(attempt.pid, signal.SIGTERM)
            _signal_group(
                attempt.pid, signal.SIGCONT
            )  # a stopped process takes its SIGTERM only when it goes on
        return True

    def kill_late(self, now_s: float) -> None:
        """SIGKILL to the groups whose grace is over."""
        import signal

        with self._table:
            for attempt in list(self.running.values()):  # a slot may start one meanwhile
                if attempt.kill_at <= now_s and not attempt.killed:
                    attempt.killed = True
                    _signal_group(attempt.pid, signal.SIGKILL)


def _has_exited(pid: int) -> bool:
    return (
        hasattr(os, "waitid")
        and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    )


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


# -- Fencing: ending what still lives of a run


class Fence:
    """Ends the processes of one run: SIGTERM, after its grace SIGKILL, until two looks in a row find nothing.

    `living` names those that the last look found, for a person.
    """

    def __init__(self, trace: Trace, kill_at: float) -> None:
        self.trace = trace
        self.living: list[int] = []
        self._kill_at = kill_at
        self._told: set[int] = set()  # SIGTERM
        self._session_known = False  # and surely still the run's
        self._empty = 0  # looks in a row that found nothing

    def step(self) -> bool:
        """One look, one signal to each process found. True once the run is surely gone."""
        import signal

        try:
            held = self.look()
        except OSError:  # no descriptors or no memory to look with: nothing is known, least of all that it is gone
            self._empty = 0
            return False
        killing = time.monotonic() >= self._kill_at
        for pid in self.living:
            if killing:
                self._send(pid, held, signal.SIGKILL)
            elif pid not in self._told:
                self._send(pid, held, signal.SIGTERM)
                self._send(pid, held, signal.SIGCONT)
                self._told.add(pid)
        self._empty = 0 if self.living or held else self._empty + 1
        return self._empty >= 2

    def look(self) -> bool:
        """Find what lives of the run, without a signal; whether some process holds its output."""
        held = any(_is_log_held(path) for path in self.trace.logs)
        self.living = self._find(held)
        return held

    def wait(self) -> None:
        """Until the run is surely gone, however long that takes (F4)."""
        while not self.step():
            time.sleep(FENCE_POLL_S)

    def _find(self, held: bool) -> list[int]:
        spared = _ancestors()
        try:
            pids = [int(name) for name in os.listdir(_PROC) if name.isdigit()]
        except FileNotFoundError:  # no /proc: the group is all that can be told apart
            return self._find_group()
        return [pid for pid in pids if pid not in spared and self._belongs(pid, held)]

    def _find_group(self) -> list[int]:
        """[-group], as `os.kill` takes it, while it has a process."""
        with contextlib.suppress(OSError):
            if self.trace.session is not None:
                os.killpg(self.trace.session, 0)
                return [-self.trace.session]
        return []

    def _belongs(self, pid: int, held: bool) -> bool:
        """Whether a process is of this run: by its mark, its session, or (where the log is held) its output."""
        status = _process_status(pid)
        if status is None:
            return False
        if self.trace.session is not None and status.session == self.trace.session:
            if (
                pid == self.trace.session
            ):  # its leader is the one we started: then the whole session is ours
                self._session_known = abs(status.start_s - (self.trace.start_s or 0)) < 2
        if status.state in "ZX":
            return False
        if self._session_known and status.session == self.trace.session:
            return True
        variables = _read_proc(pid, "environ").split(b"\0")
        if b"QUEUECTL_RUN=" + self.trace.mark.encode() in variables:
            return True
        if b"QUEUECTL_HOME=" + os.fsencode(self.trace.home) in variables:
            # The lock's inode is another where .queuectl was deleted; a copied home has another path.
            rest = self.trace.mark[self.trace.mark.index("/") :].encode()
            if any(word.startswith(b"QUEUECTL_RUN=") and word.endswith(rest) for word in variables):
                return True
        return held and any(_writes_to(pid, path) for path in self.trace.logs)

    def _send(self, pid: int, held: bool, number: int) -> None:
        """Signal a process through a pidfd, after making sure that the pid still is the one that was found (X1)."""
        import signal

        with contextlib.suppress(OSError):
            if pid < 0 or not hasattr(os, "pidfd_open"):
                os.kill(pid, number)
                return
            fd = os.pidfd_open(pid)
            try:
                if self._belongs(pid, held):
                    signal.pidfd_send_signal(fd, number)
            finally:
                os.close(fd)


class _Status(Record):
    state: str
    parent: int
    session: int
    start_s: float


def _read_proc(pid: int, name: str) -> bytes:
    """A file of /proc/PID; b"" where the process is gone or another user's. Raises OSError where we cannot look."""
    try:
        fd = os.open(f"{_PROC}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            out = []
            while chunk := os.read(fd, 1 << 16):
                out.append(chunk)
            return b"".join(out)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _process_status(pid: int) -> _Status | None:
    """State, parent, session and start time of a process, from /proc/PID/stat."""
    words = (
        _read_proc(pid, "stat").rpartition(b")")[2].split()
    )  # the name before it may hold anything
    if len(words) < 20:
        return None
    return _Status(
        words[0].decode(), int(words[1]), int(words[3]), int(words[19]) / os.sysconf("SC_CLK_TCK")
    )


def _ancestors() -> set[int]:
    """This process and all that it descends from: a job may run queuectl itself."""
    out, pid = set(), os.getpid()
    while pid > 0 and pid not in out:
        out.add(pid)
        status = _process_status(pid)
        pid = status.parent if status else 0
    return out


def _is_log_held(path: str) -> bool:
    """Whether some process holds that log open as its output: it then shares the lock taken before the spawn."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in NO_FILE:
            return False
        raise
    try:
        if not lock_descriptor(fd, blocking=False):
            return True
        unlock_descriptor(fd)
        return False
    finally:
        os.close(fd)


def _writes_to(pid: int, path: str) -> bool:
    """Whether a process has that file open for writing; one that only reads it (a pager, `logs`) is nobody's job."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        want = os.stat(path)
        for name in os.listdir(f"{_PROC}/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                info = os.stat(f"{_PROC}/{pid}/fd/{name}")
                if (info.st_dev, info.st_ino) == (want.st_dev, want.st_ino):
                    flags = re.search(rb"flags:\s*([0-7]+)", _read_proc(pid, f"fdinfo/{name}"))
                    if flags and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY:
                        return True
    return False


# -- Logs: NAME.SLOT.log while an attempt runs, then HH/ID.RUN.log
#
# One that grows beyond log_max is cut: what it holds newest is copied to PATH.cut, then it is truncated, where O_APPEND
# goes on. PATH.cut begins with a line of two numbers for whoever reads it: the bytes left out before it, and the size
# the log had then, by which recovery knows on which side of the truncation a worker was killed. Offsets below are of
# the whole output, so they hold over cuts and renames.


def has_room(logs_dir: str) -> bool:
    """Whether output can be kept: without room a job that prints fails, and that is not its fault (F6)."""
    disk = os.statvfs(logs_dir)
    return (disk.f_bfree if os.geteuid() == 0 else disk.f_bavail) * disk.f_frsize >= ROOM_BYTES


def slot_log_path(logs_dir: str, worker: str, slot: int) -> str:
    return os.path.join(logs_dir, f"{worker}.{slot}.log")


def log_path(logs_dir: str, id: str, run: int) -> str:
    """Where the output of a run that is over is kept: spread over directories by two digits of a hash of the id."""
    return os.path.join(logs_dir, f"{zlib.crc32(id.encode()) & 0xFF:02x}", f"{id}.{run}.log")


class SlotLog:
    """The file that a slot's attempts write to, one after the other; renamed to its run where it has any output."""

    def __init__(self, logs_dir: str, worker: str, slot: int) -> None:
        self._logs_dir = logs_dir
        self.path = slot_log_path(logs_dir, worker, slot)
        self._fd: int | None = None
        self._cutting = threading.Lock()  # a log is not renamed while it is cut
        self._was_cut = False

    def open(self) -> int:
        """The log's descriptor: open, empty, locked. Raises HostFault."""
        if self._fd is not None:
            return self._fd
        try:
            fd = os.open(
                self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            os.fchmod(fd, 0o600)
            if not lock_descriptor(fd, blocking=False):
                os.close(fd)
                raise HostFault(f"the log '{self.path}' is locked by another process")
        except FileExistsError:  # left by a fault between two steps; its bytes are kept
            self._keep(self.path, self.path + f".{os.urandom(3).hex()}")
            return self.open()
        except OSError as error:
            raise HostFault(f"the log '{self.path}' cannot be created: {error.strerror}") from error
        self._fd = fd
        return fd

    def release(self) -> None:
        """Close our descriptor, once the command has its own: the lock is now the descendants' alone."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def finish(self, id: str, run: int) -> None:
        """Give the output the run's name; where there is none and nobody holds the file, keep it for the next run."""
        self.release()
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return  # deleted under us: the next run gets a new one
        if os.fstat(fd).st_size == 0 and not self._was_cut:
            for power in range(
                9
            ):  # another slot's child holds a copy until its exec is done: 128 ms at the most
                if lock_descriptor(fd, blocking=False):
                    self._fd = fd
                    return
                time.sleep(0.00025 * 2**power)
        os.close(fd)
        path = log_path(self._logs_dir, id, run)
        with self._cutting:
            if self._was_cut:
                self._was_cut = False
                self._keep(self.path + CUT, path + CUT)
            self._keep(self.path, path)

    def cut(self, most: int) -> bool:
        """Where the running log, with what was copied aside before, takes more than `most` bytes: copy its newest half
        of that aside, and truncate it. What is written in the moment between is lost too. May raise OSError."""
        try:
            if os.stat(self.path).st_size <= most // 2:
                return False
        except FileNotFoundError:
            return False
        with self._cutting, _log_parts(self.path) as parts:
            if not parts or parts[-1].first or sum(part.size for part in parts) <= most:
                return False
            log, new = parts[-1], self.path + CUT + ".new"
            try:
                _copy_aside(log, most // 2, new)
                os.truncate(self.path, 0)
            except OSError:  # a full disk: the newest megabyte goes through memory
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(new)
                kept = os.pread(log.fd, CHUNK_BYTES, max(0, log.size - CHUNK_BYTES))
                os.truncate(self.path, 0)
                _write_aside(new, log.base + log.size - len(kept), log.size, [kept])
            os.rename(new, self.path + CUT)
            self._was_cut = True
            return True

    def _keep(self, source: str, path: str) -> None:
        try:
            try:
                os.rename(source, path)
            except FileNotFoundError:
                make_dir(os.path.dirname(path))
                os.rename(source, path)
        except OSError as error:
            raise HostFault(f"the log '{path}' cannot be kept: {error.strerror}") from error

    def close(self) -> None:
        """At the worker's end: an empty log goes."""
        with contextlib.suppress(OSError):
            if self._fd is not None and os.fstat(self._fd).st_size == 0:
                os.unlink(self.path)
        self.release()


class _LogPart(Record):
    """One of a log's two files: what was copied aside (`first` is where its output begins), or the log itself."""

    fd: int
    first: int
    size: int  # of its output
    base: int  # where that stands in the whole output


@contextlib.contextmanager
def _log_parts(path: str) -> Iterator[list[_LogPart]]:
    """The files of a log that are there, open."""
    parts: list[_LogPart] = []
    try:
        base = 0
        for name in (path + CUT, path):
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                parts.append(_LogPart(fd, 0, 0, 0))
                first = 0
                if name != path:
                    base, _, first = _cut_head(fd)
                parts[-1] = _LogPart(fd, first, size := os.fstat(fd).st_size - first, base)
                base += size
        yield parts
    finally:
        for part in parts:
            os.close(part.fd)


def _cut_head(fd: int) -> tuple[int, int, int]:
    """The two numbers at the beginning of what was copied aside, and where its output begins; zeros where they are
    not (written half)."""
    found = re.match(rb"(\d+) (\d+)[^\n]*\n", os.pread(fd, 200, 0))
    return (int(found[1]), int(found[2]), found.end()) if found else (0, 0, 0)


def _write_aside(new: str, left_out: int, size: int, pieces: Iterable[bytes]) -> None:
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(fd, 0o600)
        write_whole(
            fd,
            b"%d %d (bytes left out before this, size of the log when it was cut)\n"
            % (left_out, size),
        )
        for piece in pieces:
            write_whole(fd, piece)
    finally:
        os.close(fd)


def _copy_aside(log: _LogPart, keep: int, new: str) -> None:
    """The log's last `keep` bytes, and what comes while they are copied (as much again at most), to a new file."""
    start = max(0, log.size - keep)
    _write_aside(new, log.base + start, log.size, _pieces(log.fd, start, start + 2 * keep))


def keep_orphan_log(logs_dir: str, worker: str, slot: int, id: str, run: int) -> None:
    """Give the log of a dead worker's slot the name of the run that wrote it; an empty one goes."""
    source, target = slot_log_path(logs_dir, worker, slot), log_path(logs_dir, id, run)
    with contextlib.suppress(
        OSError
    ):  # a log that cannot be kept is no reason to keep the job (F5)
        _end_cut(source)
        if os.path.exists(source + CUT):
            make_dir(os.path.dirname(target))
            os.rename(source + CUT, target + CUT)
        if os.path.exists(target) or (
            os.stat(source).st_size == 0 and not os.path.exists(target + CUT)
        ):
            os.unlink(source)
        else:
            make_dir(os.path.dirname(target))
            os.rename(source, target)


def _end_cut(source: str) -> None:
    """End a cut that a dead worker began: where it had truncated the log already, the copy is whole."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(source + CUT + ".new", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            truncated = os.stat(source).st_size < _cut_head(fd)[1]
        finally:
            os.close(fd)
        if truncated:
            os.rename(source + CUT + ".new", source + CUT)
        else:
            os.unlink(source + CUT + ".new")


def sweep_slot_logs(logs_dir: str, worker: str) -> None:
    """Remove the empty logs that a dead worker's idle slots left."""
    for name in os.listdir(logs_dir):
        path = os.path.join(logs_dir, name)
        with contextlib.suppress(FileNotFoundError):
            if name.startswith(f"{worker}.") and os.stat(path).st_size == 0:
                os.unlink(path)


def remove_logs(logs_dir: str, id: str, runs: int) -> None:
    """Delete the output of every run of a purged job."""
    for run in range(1, runs + 1):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(path := log_path(logs_dir, id, run))
            os.unlink(path + CUT)


def read_log(path: str, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of a log's output from `start` on; nothing where there is none. An offset beyond what was asked
    for, or read before, says that what stood between was left out."""
    while True:
        cut = identity_of(path + CUT)
        with _log_parts(path) as parts:
            for part in parts:
                start = max(start, part.base)
                while chunk := os.pread(part.fd, CHUNK_BYTES, part.first + start - part.base):
                    if identity_of(path + CUT) != cut:
                        break
                    yield start, chunk
                    start += len(chunk)
        if identity_of(path + CUT) == cut:
            return


def tail_start(path: str, lines: int) -> int:
    """The offset at which the last `lines` lines of a log's output begin."""
    with _log_parts(path) as parts:
        end = parts[-1].base + parts[-1].size if parts else 0
        if lines == 0 or not parts:
            return end
        wanted = lines
        for part in reversed(parts):
            at = part.first + part.size
            if (
                at > part.first
                and part.base + part.size == end
                and os.pread(part.fd, 1, at - 1) == b"\n"
            ):
                wanted += 1  # a newline at the very end begins no line
            while at > part.first:
                start = max(part.first, at - CHUNK_BYTES)
                chunk = os.pread(part.fd, at - start, start)
                if chunk.count(b"\n") >= wanted:
                    cut = len(chunk)
                    for _ in range(wanted):
                        cut = chunk.rindex(b"\n", 0, cut)
                    return part.base + start - part.first + cut + 1
                wanted -= chunk.count(b"\n")
                at = start
        return parts[0].base


def last_lines(path: str, lines: int, bytes_max: int) -> str:
    """The last lines of output, at most so many bytes of them."""
    data = b""
    for _, piece in read_log(path, tail_start(path, lines)):
        data = (data + piece)[-bytes_max:]
    return data.decode("utf-8", "replace")


def last_line(path: str) -> str:
    """The last line of output that is not blank; "" where there is none."""
    lines = [line for line in last_lines(path, 5, 4096).splitlines() if line.strip()]
    return lines[-1].strip()[:LAST_LINE_CHARS] if lines else ""


# -- This process, and a worker in the background


def halt() -> None:
    """Halt this process as Ctrl+Z asks, until it is continued; called where that does no harm."""
    import signal

    handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, handler)


def open_standard_descriptors() -> None:
    """Give a closed descriptor 0, 1 or 2 to /dev/null, so that no store or log ever becomes one of them."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def start_detached(words: Sequence[str], log: str) -> Any:
    """Start queuectl itself in a session of its own, its output appended to `log`; a subprocess.Popen."""
    import subprocess

    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(fd, 0o600)
        return subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), *words], stdin=subprocess.DEVNULL, stdout=fd, stderr=fd,
            start_new_session=True, cwd="/",
        )  # fmt: skip
    finally:
        os.close(fd)


# ======== 7. WORKER ========
# One worker process: N threads that each report, claim and run, and a main thread that handles signals, time limits,
# wake-ups, folding and syncing. Effects: threads, signals, the monotonic clock; all else through the sections above.
#
# W1  Every claim ends in one report or in one recovery: a slot keeps an outcome until its report is on disk.
# W2  Signal handlers only set a flag.
# W3  One worker process never runs more commands at once than its `--count`.
# W4  A worker whose file is no longer at its path claims nothing more: others take it for dead.

UNSURE_S: Final = 3600.0  # after the clock was set nothing is purged for that long
PURGE_MOST_S: Final = 3600.0  # a worker looks for old jobs that often, or
PURGE_SHARE: Final = 0.1  # after that part of keep_completed, but not more often than
PURGE_LEAST_S: Final = 5.0
TICK_S: Final = 1.0  # folding, syncing and, as a safety net, looking for what no wake-up announced
RECOVERY_S: Final = 2.0  # between two looks for jobs of dead workers
PATIENCE_S: Final = (
    0.1  # the main thread waits no longer for the store's lock: time limits and signals are its own
)
UNSAID_MAX: Final = 10_000  # lines kept for a stderr that is not read
SPEAK_S: Final = 0.05
LAST_WORDS_S: Final = 2.0
STOPPED: Final = "the worker was stopped"  # why an attempt was handed back
NO_THREADS: Final = (
    "The system starts no more threads. Start fewer: queuectl worker start --count 1."
)
MAIN, CUTTING = (
    -1,
    -2,
)  # where a slot's number is asked for and the main thread, or the one that cuts logs, is meant
GROUP_STOP_S: Final = (
    0.25  # how long a job's death by signal may come before our own stop signal is seen
)


class Worker:
    """A worker process. `say(text)` tells a person what it does; it may fail and ends nothing."""

    def __init__(
        self, store: Store, threads: int, only: TagFilter, drain: bool, say: Callable[[str], None]
    ) -> None:
        import queue
        import secrets

        self.store = store
        self.threads = threads
        self.only = only
        self.drain = drain
        self._say = say
        self._unsaid: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.name = f"{os.getpid()}-{secrets.token_hex(3)}"
        self.signals: list[int] = []  # the stop signals received, in order
        self._halts: list[int] = []  # Ctrl+Z, not yet obeyed
        self.stopping = False  # claim nothing more
        self.fatal: QueueError | None = None  # why it stops by itself; its exit code
        self._hard = False  # the running jobs are being handed back
        self._stopped_at = -math.inf
        self._troubles: dict[int, str | None] = {}  # by slot
        self._quit = threading.Event()  # ends the threads beside the slots
        self._ended: set[int] = set()  # slots whose thread is done
        self._stop_seen = threading.Event()
        self._last_words = threading.Event()  # nothing more will be said
        self._work = threading.Condition()  # of `_round` and `stopping`
        self._round = 0  # rises whenever there may be something to claim
        self._told_why = False  # a drain has to wait
        self._signals_told = 0  # so many were obeyed
        self._logs: dict[int, SlotLog] = {}  # by slot
        self._clock_mark: dict[str, Any] = {}  # as in `write_clock_mark`
        self._purge_place: Place | None = None  # where a pass over the finished jobs goes on
        self._look_for_room_at = 0.0
        self._quiet_since = 0.0  # nothing runs and the totals are
        self._quiet_totals: object = None  # these

    def say(self, text: str) -> None:
        """Tell a person, without ever waiting for a terminal or a pipe that nobody reads; too much is dropped."""
        if self._unsaid.qsize() < UNSAID_MAX:
            self._unsaid.put(text.replace("\n", "\\n"))

    def _speak(self) -> None:
        """Print what was said, some lines at a time: to wake for each costs the slots a third of their rate."""
        while True:
            lines = [self._unsaid.get()]
            while not self._unsaid.empty():
                lines.append(self._unsaid.get())
            if texts := [line for line in lines if line is not None]:
                self._say("\n".join(texts))
            if None in lines:
                return
            self._last_words.wait(SPEAK_S)

    def run(self) -> int:
        """Work until stopped or drained; the exit code."""
        speaker = threading.Thread(target=self._speak, daemon=True)
        if not _started([speaker]):
            raise Refused(NO_THREADS)
        try:
            return self._run()
        finally:
            self._unsaid.put(None)
            self._last_words.set()
            speaker.join(LAST_WORDS_S)

    def _run(self) -> int:
        import select

        self._prepare()
        poll = select.poll()
        poll.register(self.file.wake_fd, select.POLLIN)
        slots = [
            threading.Thread(target=self._slot_thread, args=(slot,), daemon=True)
            for slot in range(self.threads)
        ]
        others = [
            threading.Thread(target=loop, daemon=True)
            for loop in (self._recover_loop, self._cut_loop)
        ]
        started = _started([*others, *slots])
        if len(started) < len(others) + self.threads:
            self.fatal = Refused(NO_THREADS)
            self._stop(f"Error: {self.fatal}")
        tick_at, woken = 0.0, True
        while len(self._ended) < len(started) - len(others):
            now_s = time.monotonic()
            try:
                self._obey_signals()
                self._end_late(now_s)
                ticks = now_s >= tick_at
                if ticks:
                    tick_at = now_s + TICK_S
                    self._check_file()
                if woken or ticks:
                    self._look()
                if ticks:
                    self._keep_house(now_s)
                    self._set_trouble(MAIN, None)
            except Busy:
                tick_at = (
                    now_s + PATIENCE_S
                )  # others are at work; nothing is lost by trying a little later
            except (
                Exception
            ) as error:  # also a fault of ours: without this thread no time limit and no stop (W1)
                why = str(error) if isinstance(error, QueueError | OSError) else repr(error)
                self._set_trouble(MAIN, f"housekeeping fails: {why}")
            self._call_when_due()
            timeout_s = min(tick_at, self._next_event(), self._next_due()) - time.monotonic()
            woken = bool(poll.poll(max(0.0, timeout_s) * 1000))
            if woken:
                self.file.drain_wakes()
        self._quit.set()
        for thread in started:
            thread.join()
        return self._leave()

    def _prepare(self) -> None:
        """Signals, environment and the worker's file; then others can see that it lives."""
        import signal

        signal.signal(
            signal.SIGCHLD, signal.SIG_DFL
        )  # an ignored SIGCHLD would lose every exit status (F7)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if (
                number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
            ):  # nohup stays nohup
                signal.signal(number, lambda number, _frame: self.signals.append(number))
        if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:
            signal.signal(signal.SIGTSTP, lambda number, _frame: self._halts.append(number))
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._executor = Executor(os.environ)
        self.store.prepare()
        self.store.sweep_workers()
        self.store.follow()
        self.store.steady = True
        self._header: dict[str, Any] = {
            "pid": os.getpid(), "started_at": self.store.now(), "boot_id": boot_id(),
            "lock": self.store.lock_id(), "threads": self.threads, "tags": self.only.tags,
            "not_tags": self.only.not_tags, "trouble": None, "stopping": False,
        }  # fmt: skip
        self.file = self.store.create_worker(self.name, self._header, self.threads)
        signal.set_wakeup_fd(self.file.wake_fd, warn_on_full_buffer=False)
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        self.say(
            f"Worker {self.name} started: {threads}, home {self.store.home}. Stop it with Ctrl+C."
        )

    # -- The main thread's chores

    def _obey_signals(self) -> None:
        """Ctrl+Z: halt. First stop signal: claim nothing more. Second: hand the running jobs back."""
        if self._halts:
            self._halts.clear()
            with self.store.at_rest():
                halt()
        if len(self.signals) > self._signals_told:
            self._signals_told = len(self.signals)
            if not self.stopping:
                self._stop(
                    "Stopping: running jobs finish first; once more ends them and hands them back."
                )
        if len(self.signals) > 1 and not self._hard:
            self._hand_back()

    def _stop(self, text: str) -> None:
        self.stopping = True
        self._stopped_at = time.monotonic()
        self._stop_seen.set()
        self._header["stopping"] = True  # if it is killed now, that is not its jobs' fault
        self.file.write_header(self._header)
        self.say(text)
        self._call_slots()

    def _hand_back(self) -> None:
        self._hard = True
        self.say("Ending the running jobs; they go back into the queue.")
        for slot, attempt in list(self._executor.running.items()):
            self._end(slot, attempt, "handed_back", STOPPED)

    def _end(self, slot: int, attempt: Attempt, why: OutcomeKind, reason: str | None) -> None:
        self._executor.end(slot, attempt, why, reason, self.store.config().grace_period)

    def _end_late(self, now_s: float) -> None:
        """Enforce time limits and grace periods: SIGTERM where one has struck, SIGKILL where the other is over."""
        for slot, attempt in list(self._executor.running.items()):
            if attempt.ending is None and attempt.deadline <= now_s:
                self._end(slot, attempt, "timed_out", None)
        self._executor.kill_late(now_s)

    def _next_event(self) -> float:
        """When the next time limit or grace period ends, on the monotonic clock; inf where none runs."""
        return min(
            (attempt.next_event() for attempt in list(self._executor.running.values())),
            default=math.inf,
        )

    def _next_due(self) -> float:
        """When the next retry or delayed job is due, on the monotonic clock; inf where that was called out already."""
        at = self.store.totals.next_run_at
        wait_s = instant_s(at) - self.store.clock() if at else 0.0
        return time.monotonic() + wait_s if wait_s > 0 else math.inf

    def _call_when_due(self) -> None:
        """Call the slots where a job is ready, or its time has come, as far as this process knows."""
        totals = self.store.totals
        if totals.oldest or (totals.next_run_at or "9") <= self.store.now():
            self._call_slots()

    def _call_slots(self) -> None:
        with self._work:
            self._round += 1
            self._work.notify_all()

    def _look(self) -> None:
        """Take in what others did: new jobs, cancelled ones, a stop request."""
        request = self.store.stop_requested(self.name)
        if request and not self.stopping:
            self._stop("Stopping on request: running jobs finish first.")
        if request == "now" and not self._hard:
            self._hand_back()
        if self.store.changed():
            self.store.follow(PATIENCE_S)
        self.store.config()  # a changed setting is known to `last_config` from here on
        for slot, attempt in list(self._executor.running.items()):
            job = self.store.processing.get(attempt.job_id)
            if job is not None and job.cancelled_at is not None and attempt.ending is None:
                self._end(slot, attempt, "signalled", "cancelled")
        self._end_drain()

    def _end_drain(self) -> None:
        """`--drain`: stop once nothing is pending, processing anywhere, or waiting for a retry or a delay."""
        if not self.drain or self.stopping:
            return
        if not self._executor.running and is_drained(self.store, self.only, PATIENCE_S):
            self.stopping = True
            self._call_slots()
        elif not self._told_why and (why := why_drain_waits(self.store, self.only)):
            self._told_why = True
            self.say(why)

    def _keep_house(self, now_s: float) -> None:
        """Once a second: show life, meet a clock that was set, fold, sync, purge."""
        self.file.show_life()
        self._meet_clock()
        if self._executor.running or self.store.totals != self._quiet_totals:
            self._quiet_since, self._quiet_totals = now_s, self.store.totals
        try:
            if self.store.fold_due(now_s - self._quiet_since):
                self.store.fold(PATIENCE_S)
        finally:
            if self.store.config().fsync != "never":
                self.store.sync()
        self._purge_old()

    def _meet_clock(self) -> None:
        """Where the clock was set since a worker last looked, also one before this: due is what seems to wait beyond
        any backoff, and for the next hour no job is old."""
        mark, offset_s = self._clock_mark, self.store.clock() - boot_clock_s()
        if (
            mark.get("boot_id") == self._header["boot_id"]
            and abs(mark["offset_s"] - offset_s) <= TICK_S
        ):
            return
        if mark:
            self.store.meet_new_clock(PATIENCE_S)
        mark = self.store.clock_mark()
        if (
            mark.get("boot_id") != self._header["boot_id"]
            or abs(mark["offset_s"] - offset_s) > TICK_S
        ):
            stepped_s = boot_clock_s() - (0 if mark else UNSURE_S)
            mark = {
                "boot_id": self._header["boot_id"],
                "offset_s": offset_s,
                "stepped_s": stepped_s,
                "purged_s": 0,
            }
            with contextlib.suppress(StoreError):  # others learn it at the next pass
                self.store.write_clock_mark(mark, PATIENCE_S)
        self._clock_mark = mark

    def _purge_old(self) -> None:
        """`keep_completed`: now and then, by one worker, a pass over the array, a piece at each tick."""
        keep_s, boot_s, mark = self.store.config().keep_completed, boot_clock_s(), self._clock_mark
        if not keep_s or boot_s < mark["stepped_s"] + UNSURE_S:
            return
        if self._purge_place is None:
            pause_s = max(PURGE_LEAST_S, min(PURGE_MOST_S, keep_s * PURGE_SHARE))
            if boot_s >= mark["purged_s"] + pause_s:
                mark = self.store.clock_mark() or mark  # another worker may have made the pass
            if boot_s < mark["purged_s"] + pause_s:
                return
            mark = {**mark, "purged_s": boot_s}
            self.store.write_clock_mark(mark, PATIENCE_S)
            self._clock_mark, self._purge_place = mark, Place()
        gone, self._purge_place = purge_completed(self.store, keep_s, self._purge_place, PATIENCE_S)
        for job in gone:
            with contextlib.suppress(OSError):
                remove_logs(self.store.logs_dir, job.id, job.runs)
        if gone:
            self.say(f"Purged {len(gone)} jobs that completed longer ago than keep_completed.")

    def _check_file(self) -> None:
        if self.fatal is None and not self.file.is_linked():
            self.fatal = StoreError(
                f"'{self.file.path}' was deleted while this worker ran. It claims nothing more."
            )
            self._stop(f"Error: {self.fatal}")

    def _set_trouble(self, slot: int, text: str | None) -> None:
        """Say once why this slot claims nothing, and show it in `status`; None ends it."""
        if text == self._troubles.get(slot):
            return
        before = self._trouble()
        self._troubles[slot] = text
        if (now := self._trouble()) != before:
            self.say(f"Trouble: {now}" if now else "The trouble is over.")
            self._header["trouble"] = now
            self.file.write_header(self._header)

    def _trouble(self) -> str | None:
        return next((text for text in list(self._troubles.values()) if text), None)

    def _leave(self) -> int:
        """The last chores; the exit code: 1 where a drained job died, 128 + n after a second stop signal."""
        import signal

        died = False
        try:
            if self.fatal is None:
                self.store.follow()
                if self.store.fold_due(quiet_s=math.inf):
                    self.store.fold()
                if self.store.config().fsync != "never":
                    self.store.sync()
                died = self.drain and has_died_since(
                    self.store, self._header["started_at"], self.only
                )
        except QueueError as error:
            self.fatal = self.fatal or error
            self.say(f"Error: {error}")
        finally:
            signal.set_wakeup_fd(
                -1
            )  # the FIFO is closed next, and its number may become another file's
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # there is nothing left to stop
            self.file.close()
        self.say(f"Worker {self.name} stopped.")
        if self.fatal is not None:
            return self.fatal.exit_code
        if len(self.signals) > 1:
            return 128 + self.signals[1]
        return EXIT_REFUSED if died else 0

    # -- A slot's thread

    def _slot_thread(self, slot: int) -> None:
        """A slot for the worker's whole life: after a fault of ours it begins anew, and what it held is given back."""
        while True:
            try:
                self._slot(slot)
                break
            except Exception as error:
                self._set_trouble(slot, f"a fault in the worker, please report it: {error!r}")
                self._rest(self._round, TICK_S)
        self._ended.add(slot)
        self.file.wake()

    def _slot(self, slot: int) -> None:
        """Report, claim, run, again; until told to stop with nothing left to report."""
        self._abandon(
            slot, "a fault in the worker"
        )  # what runs here still, though `_slot` ended by a fault (F4)
        log = self._logs[slot] = SlotLog(self.store.logs_dir, self.name, slot)
        done: tuple[Job, Outcome] | None = None
        while not (self.stopping and done is None):
            seen = self._round
            try:
                could_not_start = (
                    done is not None and self._troubles.get(slot) is not None
                )  # no new claim yet
                claim = not (self.stopping or could_not_start) and self._can_claim(slot, log)
                turn = take_turn(self.store, self.name, slot, done, claim, self.only)
            except (
                Exception
            ) as error:  # also a fault of ours: an outcome is kept until it is reported (W1)
                why = str(error) if isinstance(error, QueueError) else repr(error)
                self._set_trouble(slot, f"not claiming: {why}")
                if self.fatal is not None or self._hard:
                    if (
                        done is not None
                    ):  # whoever finds this worker's file unlocked takes the job back
                        self.say(
                            f"{done[0].id}: its end could not be stored ({why}); it will run again"
                        )
                    break
                self._rest(seen, TICK_S)
                continue
            self._tell(turn, done)
            worked, done = done is not None, None
            if turn.hooks and turn.reported is not None:
                self._run_hooks(slot, turn.reported, turn.hooks)
            elif turn.claimed is not None:
                done = turn.claimed, self._attempt(slot, log, turn.claimed)
            else:
                if worked:
                    self.file.write_row(slot)
                    self.file.wake()  # the main thread may be waiting for the last slot to be done
                if claim:
                    self._set_trouble(slot, None)
                self._rest(seen, None if claim or self.stopping else TICK_S)
        log.close()

    def _can_claim(self, slot: int, log: SlotLog) -> bool:
        """Whether an attempt could begin here: a log can be made and the runner is there (F6). Says why not."""
        try:
            if time.monotonic() >= self._look_for_room_at:
                if not has_room(self.store.logs_dir):
                    raise HostFault(f"no space is left for output under '{self.store.logs_dir}'")
                self._look_for_room_at = time.monotonic() + TICK_S
            log.open()
            self._executor.find_runner(self.store.last_config().runner)
        except HostFault as fault:
            self._set_trouble(slot, f"not claiming: {fault}")
            return False
        return True

    def _rest(self, seen: int, seconds: float | None) -> None:
        """Wait until there may be work (a new round); with `seconds`, until then, whatever is called out."""
        with self._work:
            if seconds is not None:
                self._work.wait_for(lambda: self._hard or self.fatal is not None, seconds)
            else:
                self._work.wait_for(lambda: self._round != seen or self.stopping)

    def _attempt(self, slot: int, log: SlotLog, job: Job) -> Outcome:
        """Run the job once and keep its output; how it ended. Never raises: a fault is a hand-back (F5, F6)."""
        try:
            outcome = self._run_command(slot, log, job)
            self._set_trouble(slot, None)
        except HostFault as fault:
            self._set_trouble(slot, f"not claiming: {fault}")
            outcome = Outcome("handed_back", reason=str(fault))
        except Exception as error:
            self.say(f"Error: a fault in the worker, please report it: {error!r}")
            outcome = self._abandon(slot, f"a fault in the worker: {error!r}")
        try:
            log.finish(job.id, job.runs)
        except HostFault as fault:
            self._set_trouble(slot, str(fault))
        return outcome

    def _variables(self, slot: int, job: Job, ending: str = "") -> dict[str, str]:
        """What a job or, with an ending, its hook finds in its environment; QUEUECTL_RUN is the run's mark."""
        mark = run_mark(self._header["lock"], self.name, job) + ending
        return {
            "QUEUECTL_HOME": self.store.home, "QUEUECTL_JOB_ID": job.id, "QUEUECTL_ATTEMPT": str(job.attempts),
            "QUEUECTL_WORKER": self.name, "QUEUECTL_SLOT": str(slot), "QUEUECTL_RUN": mark,
        }  # fmt: skip

    def _run_hooks(self, slot: int, job: Job, hooks: Mapping[str, str]) -> None:
        """Tell the hooks of a job's end, its report being on disk (so none runs twice); a failure is a warning."""
        for name, command in hooks.items():
            try:
                if self.store.config().fsync != "never":
                    self.store.sync()
                outcome = Outcome("handed_back", reason=STOPPED)
                if not self._hard:
                    outcome = self._run_hook(slot, job, name, command)
            except Exception as error:
                outcome = self._abandon(slot, str(error))
            if outcome[:2] != ("exited", 0):
                why = outcome.reason or describe_outcome(outcome)
                self.say(f"Warning: {name} of job {job.id} failed: {why}")
        self.file.write_row(slot)
        self.file.wake()  # the main thread may be waiting for the last slot to be done

    def _run_hook(self, slot: int, job: Job, name: str, command: str) -> Outcome:
        """Run one hook, with the job and its last output as JSON on stdin."""
        output = last_lines(log_path(self.store.logs_dir, job.id, job.runs), HOOK_LINES, HOOK_BYTES)
        spool = Spool(self.store, [encode_json({**job_to_dict(job), "output": output}), b"\n"])
        try:
            os.lseek(spool.fd, 0, os.SEEK_SET)
            env = {**self._variables(slot, job, f"/{name}"), "QUEUECTL_STATE": job.state}
            return self._executor.run_hook(
                slot,
                command,
                self.store.home,
                env,
                spool.fd,
                lambda attempt: self._wake_main_for(slot, attempt),
            )
        finally:
            spool.close()

    def _run_command(self, slot: int, log: SlotLog, job: Job) -> Outcome:
        env = {**(job.env or {}), **self._variables(slot, job)}
        runner = self.store.last_config().runner
        attempt = self._executor.start(
            slot, runner, job.command, job.cwd, env, log.open(), (log.path,), job.timeout
        )
        if isinstance(attempt, Outcome):
            return attempt
        attempt.job_id = job.id
        log.release()
        self.file.write_row(
            slot,
            {
                "job": job.id,
                "run": job.runs,
                "session": attempt.pid,
                "start": attempt.trace.start_s,
            },
        )
        if self._hard or attempt.deadline < math.inf:
            self._wake_main_for(slot, attempt)
        return self._explain(job, self._executor.wait(slot))

    def _abandon(self, slot: int, reason: str) -> Outcome:
        """End what runs in a slot after a fault of ours; over only when nothing of it lives."""
        attempt = self._executor.running.get(slot)
        if attempt is not None:
            self._end(slot, attempt, "handed_back", reason)
            self._executor.wait(slot)
        return Outcome("handed_back", reason=reason)

    def _wake_main_for(self, slot: int, attempt: Attempt) -> None:
        """See that the main thread knows of this attempt's time limit, or of a hard stop that came before it."""
        if self._hard:
            self._end(slot, attempt, "handed_back", STOPPED)
        if attempt.next_event() < time.monotonic() + TICK_S:
            self.file.wake()

    def _explain(self, job: Job, outcome: Outcome) -> Outcome:
        """The outcome with its reason in words, where a person needs more than a number."""
        if outcome.kind == "signalled" and outcome.signal in (1, 2, 15) and outcome.reason is None:
            # A service manager signals the whole group: our own stop signal may be a moment behind.
            if self._stop_seen.wait(GROUP_STOP_S) and time.monotonic() - self._stopped_at < TICK_S:
                return outcome._replace(
                    kind="handed_back", reason="it was stopped together with its worker"
                )
        if (
            outcome.kind in ("exited", "signalled")
            and outcome.exit_code != 0
            and not has_room(self.store.logs_dir)
        ):
            self._look_for_room_at = 0.0
            return outcome._replace(kind="handed_back", reason="the disk of its output is full")
        if outcome.kind == "timed_out":
            return outcome._replace(
                reason=f"stopped by its time limit of {job.timeout:g} s; give it more, once it is dead, with: "
                f"queuectl dlq retry {job.id} --timeout 10m; or all new jobs: queuectl config set job-timeout 10m"
            )
        if outcome.exit_code == EXIT_NOT_FOUND:
            path = (job.env or {}).get("PATH") or os.environ.get("PATH", "")
            return outcome._replace(
                reason=f"exit code 127; a command was not found with PATH {path}; "
                "keep the caller's with: enqueue --env PATH"
            )
        return outcome

    def _tell(self, turn: Turn, done: tuple[Job, Outcome] | None) -> None:
        """One line per finished attempt; and the main thread is woken where there is a new time to wait for."""
        job = turn.reported
        if job is None:
            if done is not None:
                self.say(
                    f"{done[0].id}: its report was dropped, the queue no longer knows this run"
                )
            return
        if job.state in WAITING:
            self.file.wake()
        if turn.frees:
            self._call_slots()
            self.store.wake_workers(but=self.name)
        text = f"{job.id} {job.state}"
        if job.state == "completed":
            took_s = instant_s(job.updated_at) - instant_s(job.started_at or job.updated_at)
            self.say(f"{text} in {took_s:.2f} s")
        elif job.state == "failed":
            wait_s = instant_s(job.run_at or job.updated_at) - instant_s(job.updated_at)
            why = (job.reason or "").partition(";")[0]  # `show` has the rest
            self.say(
                f"{text} (attempt {job.attempts} of {job.max_retries}: {why}), again in {round(wait_s, 2):g} s"
            )
        elif job.state == "pending":
            self.say(f"{job.id} handed back: {job.reason}")
        else:
            self.say(f"{text}: {job.reason}")

    # -- Cutting logs, and recovery, each in a thread of its own: both may take long

    def _cut_loop(self) -> None:
        busy = False  # what was cut just now soon has to be again
        while not self._quit.wait(TICK_S / 5 if busy else TICK_S):
            try:
                most = self.store.config().log_max
                busy = any([self._logs[slot].cut(most) for slot in list(self._executor.running)])
                self._set_trouble(CUTTING, None)
            except Exception as error:  # also a fault of ours
                self._set_trouble(CUTTING, f"a log cannot be cut: {error}")

    def _recover_loop(self) -> None:
        fences: Fences = {}
        while not self._quit.is_set():
            try:
                if self.fatal is None:
                    find_orphans(self.store, self.name, fences)
                    recover_fenced(self.store, fences, self.say)
                pause_s = FENCE_POLL_S if fences else RECOVERY_S
            except Exception as error:  # also a fault of ours: recovery goes on (F5)
                self.say(f"Recovery, tried again in {RECOVERY_S:g} s: {error!r}")
                pause_s = RECOVERY_S
            self._quit.wait(pause_s)


def _started(threads: list[threading.Thread]) -> list[threading.Thread]:
    """Those of them that the system was willing to start."""
    for number, thread in enumerate(threads):
        try:
            thread.start()
        except RuntimeError:
            return threads[:number]
    return threads


class Orphan(Record):
    """A processing job of a dead worker, being fenced. `lock_fd`, shared by that worker's jobs, keeps other
    finders away; -1: there is no file."""

    job: Job
    fence: Fence
    lock_fd: int
    excused: bool


Fences = dict[tuple[str, int], Orphan]  # by job and run


def find_orphans(store: Store, own: str, fences: Fences) -> None:
    """Add to `fences` the processing jobs whose worker is dead; clear away dead workers that left none."""
    held = {orphan.job.worker for orphan in fences.values()}
    named = {job.worker or "" for job in list(store.processing.values())}
    _each(
        {*named, *store.worker_names()} - held - {own},
        lambda name: _find_orphans_of(store, name, fences),
    )


def _each(things: Iterable[Any], do: Callable[[Any], None]) -> None:
    """Do it with each of them, so that one which fails holds up no other (F5); then raise what failed last."""
    failed: Exception | None = None
    for thing in things:
        try:
            do(thing)
        except (QueueError, OSError) as error:
            failed = error
    if failed is not None:
        raise failed


def _find_orphans_of(store: Store, name: str, fences: Fences) -> None:
    lock_fd = store.lock_dead_worker(name)
    if lock_fd is None:
        return
    try:
        with store.transaction():  # the worker is dead now: what it still wrote is its last word
            jobs = [job for job in store.processing.values() if job.worker == name]
        info = store.read_worker(name, lock_fd) if lock_fd >= 0 else None
        orphans = {(job.id, job.runs): _orphan(store, job, info, lock_fd) for job in jobs}
        if not jobs:
            _forget_worker(store, name, lock_fd)
    except BaseException:
        close_fd(lock_fd)
        raise
    fences.update(orphans)


def _forget_worker(store: Store, name: str, lock_fd: int) -> None:
    sweep_slot_logs(store.logs_dir, name)
    store.forget_worker(name)
    close_fd(lock_fd)


def _orphan(store: Store, job: Job, info: WorkerInfo | None, lock_fd: int) -> Orphan:
    """What is known of a dead worker's run: its mark, its logs and, from the worker's row, its session."""
    header = info.header if info else {}
    same_home = header.get("lock") == store.lock_id()
    rebooted = bool(header) and header.get("boot_id") != boot_id()
    slot = job.slot or 0
    row = info.rows[slot] if info and slot < len(info.rows) else {}
    ours = same_home and not rebooted and row.get("job") == job.id and row.get("run") == job.runs
    logs = (
        slot_log_path(store.logs_dir, job.worker or "", slot),
        log_path(store.logs_dir, job.id, job.runs),
    )
    mark = run_mark(store.lock_id(), job.worker or "", job)
    trace = Trace(
        mark,
        store.home,
        logs,
        row.get("session") if ours else None,
        row.get("start") if ours else None,
    )
    fence = Fence(trace, time.monotonic() + store.config().grace_period)
    return Orphan(job, fence, lock_fd, rebooted or bool(header.get("stopping")))


def recover_fenced(store: Store, fences: Fences, say: Callable[[str], None]) -> None:
    """One step of each fence; the jobs of whose run nothing lives any more go back."""
    gone = [key for key, orphan in list(fences.items()) if orphan.fence.step()]
    _each(gone, lambda key: _give_back_orphan(store, fences, key, say))


def _give_back_orphan(
    store: Store, fences: Fences, key: tuple[str, int], say: Callable[[str], None]
) -> None:
    """Its orphan goes back; it leaves `fences` last, so that what fails on the way is tried again, lock and all."""
    job, lock_fd = fences[key].job, fences[key].lock_fd
    name = job.worker or ""
    keep_orphan_log(store.logs_dir, name, job.slot or 0, job.id, job.runs)
    back = recover(store, job, fences[key].excused)
    if back is not None:
        say(f"{job.id} recovered: {back.reason}; it is {back.state} now")
    if all(other.job.worker != name for other_key, other in fences.items() if other_key != key):
        with store.transaction():
            left = any(other.worker == name for other in store.processing.values())
        if left:
            close_fd(lock_fd)  # others of its jobs are not ours to recover: its file tells of them
        else:
            _forget_worker(store, name, lock_fd)
    del fences[key]


def processes_of(store: Store, job: Job) -> list[int]:
    """The live processes of a job's run, for a person; [] where it is not processing."""
    if job.state != "processing":
        return []
    info = next((info for info in store.live_workers() if info.name == job.worker), None)
    fence = _orphan(store, job, info, -1).fence
    fence.look()
    return fence.living


def recover_now(store: Store, ids: Collection[str], say: Callable[[str], None]) -> None:
    """Recover those of these jobs whose worker is dead, without being a worker; returns when they are back."""
    fences: Fences = {}
    store.follow()
    find_orphans(store, "", fences)
    others = {key: orphan for key, orphan in fences.items() if key[0] not in ids}
    for key in others:
        del fences[key]
    kept = {orphan.lock_fd for orphan in fences.values()}
    for lock_fd in {orphan.lock_fd for orphan in others.values()} - kept:
        close_fd(lock_fd)
    while fences:
        recover_fenced(store, fences, say)
        time.sleep(FENCE_POLL_S if fences else 0)


# ======== 8. PRESENTATION ========
# Turns records into text: strings in, strings out. This section prints nothing and reads nothing.
# A person sees relative times; exact ones are in `--json`. Text for a person is cleaned, so that
# neither a command nor an id can drive the terminal.

PAUSED: Final = "THE QUEUE IS PAUSED: no job starts. Go on with: queuectl resume"
SILENT_S: Final = 10  # a worker that has shown no sign of life for so long is reported
_BOLD, _YELLOW = 1, 33
_COLOURS: Final = {"pending": 36, "processing": 34, "completed": 32, "failed": 33, "dead": 31}


def clean(text: str) -> str:
    """The text with every control character (also the bidirectional ones) as a visible escape."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def paint(text: str, colour: int) -> str:
    """Coloured text; Click removes the colour where stdout is no terminal."""
    return f"\033[{colour}m{text}\033[0m"


def paint_state(state: str, width: int = 10) -> str:
    """A state in its colour, padded to that width."""
    return paint(f"{state:<{width}}", _COLOURS[state])


def say_count(number: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def say_duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min`, `2 h`, `5 d`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def say_when(instant: str, now: str) -> str:
    """`3 min ago`, `in 12 s`."""
    seconds = instant_s(instant) - instant_s(now)
    said = say_duration(abs(seconds))
    return f"in {said}" if seconds > 0 else f"{said} ago"


_PARTS: Final = re.compile(r"\033\[\d+m|.")  # a change of colour, or a character


def cut(line: str, width: float) -> str:
    """The line, cut to that many columns of a terminal. A pipe is infinitely wide."""
    if width == math.inf:
        return line
    parts = _PARTS.findall(line)
    ends = list(itertools.accumulate(map(_columns, parts)))
    if not ends or ends[-1] <= width:
        return line
    text = "".join(parts[: bisect.bisect_right(ends, width - 1)])
    return text + ("\033[0m…" if "\033" in text else "…")


def _columns(part: str) -> int:
    """How many columns of a terminal a character takes; a change of colour takes none."""
    if part.isascii():
        return 1 if len(part) == 1 else 0
    import unicodedata

    if unicodedata.combining(part):
        return 0
    return 2 if unicodedata.east_asian_width(part) in "WF" else 1


Row = tuple[str, str]  # an id, and what stands behind it
TABLE_ROWS: Final = 200  # the width of the ids is that of the widest one in so many rows


def table(rows: Iterable[Row], width: float) -> Iterator[str]:
    """One line a row, with the columns aligned. The ids get a third of a terminal at most."""
    rest = iter(rows)
    first = list(itertools.islice(rest, TABLE_ROWS))
    widest = max((len(id) for id, _ in first), default=0)
    id_width = int(max(12, min(widest, width / 3)))
    for id, text in itertools.chain(first, rest):
        yield cut(f"{id:<{id_width}}  {text}", width)


def job_row(job: Job, now: str) -> Row:
    """One job of a list: id, state, attempts, when, command."""
    when = job.run_at if job.state in WAITING and job.run_at else job.updated_at
    made = f"{job.attempts}/{max(1, job.max_retries)}"
    state = paint_state(job.state)
    return clean(job.id), f"{state}  {made:>5}  {say_when(when, now):>11}  {clean(job.command)}"


def dead_row(job: Job, last_output: str, now: str) -> Row:
    """One dead letter: id, attempts, last outcome, when, last line of output."""
    has_failed = job.outcome is not None and job.cancelled_at is None and not has_died_after(job)
    why = clean(outcome_words(job) if has_failed else job.reason or "")
    output = clean(last_output or job.command)
    text = f"{job.attempts:>3}  {why:<21}  {say_when(job.finished_at or now, now):>11}  {output}"
    return clean(job.id), text


def outcome_words(job: Job) -> str:
    """How the job's last run ended, in a few words."""
    return describe_outcome(Outcome(job.outcome or "handed_back", job.exit_code, job.signal))


def job_page(job: Job, why: str | None, processes: Sequence[int], now: str) -> str:
    """One job whole, for a person: its fields, its attempts, and why it is not running."""
    rows = []
    for name, value in job_to_dict(job._replace(history=None)).items():
        text = clean(say_value(value))
        if name in JOB_FIELDS and name.endswith("_at"):
            text += f"  ({say_when(value, now)})"
        rows.append(f"{clean(name) + ':':<14} {text}")
    for entry in job.history or ():
        part = collections.defaultdict(str, entry)  # one of a hand edit may lack some
        code = part["exit_code"] if "exit_code" in part else part["signal"]
        what = f"attempt {part['attempt']} (run {part['run']}): {part['outcome']} {code}"
        rows.append(clean(f"{what}, {part['started_at']} to {part['finished_at']}"))
    if why:
        rows.append(f"{'now:':<14} {clean(why)}")
    if processes:
        rows.append(f"{'processes:':<14} {', '.join(map(str, processes))}")
    return "\n".join(rows)


def status_page(view: Mapping[str, Any], now: str) -> str:
    """Counts, workers and what waits, for a person."""
    rows = [paint(PAUSED, _YELLOW)] if view["paused"] else []
    rows += [f"{paint_state(state, 0)}: {count}" for state, count in view["jobs"].items()]
    rows += [say_threads(view), *map(worker_line, view["workers"])]
    if is_work_left_alone(view, now):
        advice = "JOBS ARE DUE and no worker is running. Start one with: queuectl worker start"
        rows.append(paint(advice, _YELLOW))
    rows += say_waiting(view, now)
    settings = [f"{key}={clean(say_value(value))}" for key, value in view["config"].items()]
    rows += [f"home: {clean(view['home'])}", f"settings: {', '.join(settings)}"]
    return "\n".join(rows)


def say_threads(view: Mapping[str, Any]) -> str:
    """`workers: 4`, the threads of all live workers."""
    return f"workers: {sum(worker['threads'] for worker in view['workers'])}"


def say_waiting(view: Mapping[str, Any], now: str) -> Iterator[str]:
    """How long the oldest job has waited, and when the next one becomes due."""
    if view["oldest_pending_s"] is not None:
        yield f"oldest waiting job: {say_duration(view['oldest_pending_s'])}"
    if view["next_run_at"] is not None:
        yield f"next retry or delayed job: {say_when(view['next_run_at'], now)}"


def worker_line(worker: Mapping[str, Any]) -> str:
    """One live worker: name, pid, threads, what it runs, and what is wrong with it."""
    runs = ", ".join(row["job"] for row in worker["running"]) or "nothing"
    threads = say_count(worker["threads"], "thread")
    line = f"  {worker['name']}  pid {worker['pid']}, {threads}, runs {runs}"
    if takes := [*worker["tags"], *(f"not {tag}" for tag in worker["not_tags"])]:
        line += f", takes {' '.join(takes)}"
    if worker["trouble"]:
        line += f"; TROUBLE: {worker['trouble']}"
    if worker["silent_s"] > SILENT_S:
        line += f"; silent for {say_duration(worker['silent_s'])} (stopped, or the machine slept)"
    return clean(line)


def say_value(value: object) -> str:
    """A field or a setting as a person writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def say_ids(word: str, jobs: Sequence[Job]) -> str:
    """`Cancelled job1, job2.`"""
    return f"{word} {', '.join(job.id for job in jobs)}."


def as_json(value: object) -> str:
    """One JSON value for stdout, on lines that a person can read too."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


# -- The figures of `stats`


def stats_page(view: Mapping[str, Any], now: str) -> str:
    """The figures for a person: totals, quantiles and small histograms; one line a group."""
    since = say_when(view["since"], now) if view["since"] else "the beginning"
    cancelled = f" ({view['cancelled']} of them cancelled)" if view["cancelled"] else ""
    rate, speed = view["success_rate"], view["jobs_per_s"]
    rows = [
        f"since:           {since}",
        f"completed:       {view['completed']}",
        f"failed attempts: {view['failed_attempts']}",
        f"dead:            {view['dead']}{cancelled}",
        f"success rate:    {'-' if rate is None else f'{100 * rate:.1f}%'}",
        f"jobs a second:   {'-' if speed is None else f'{speed:g}'}",
        "",
        _columns_of("", *QUANTILES),
        f"wait time {_say_quantiles(view['wait_s'])}",
        f"run time  {_say_quantiles(view['run_s'])}",
    ]
    if view["run_s"]["count"]:
        rows += ["", "wait time", *_bars(view["wait_s"]["histogram"])]
        rows += ["", "run time", *_bars(view["run_s"]["histogram"])]
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


def _say_quantiles(times: Mapping[str, Any]) -> str:
    return _columns_of(*(_say_time(times[name]) for name in QUANTILES))


def _say_time(seconds: float | None) -> str:
    """`5 ms`, `1 s`, `12 s`, or `-` for None."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else say_duration(seconds).replace(".0 ", " ")


def _bars(histogram: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A histogram's lines: `   up to 1 s  ########## 12`."""
    most = max(bar["count"] for bar in histogram) or 1
    for bar in histogram:
        bound = "longer" if bar["le"] is None else f"up to {_say_time(bar['le'])}"
        yield f"{bound:>14}  {'#' * math.ceil(40 * bar['count'] / most)} {bar['count']}"


_GAUGES: Final = (  # name, key of the figure, meaning
    ("completed", "completed", "Jobs that completed."),
    ("failed_attempts", "failed_attempts", "Attempts that failed."),
    ("dead", "dead", "Jobs that died, cancelled ones included."),
    ("cancelled", "cancelled", "Jobs that were cancelled."),
    ("success_rate", "success_rate", "Share of completed jobs among those that ended uncancelled."),
    ("jobs_per_second", "jobs_per_s", "Jobs that ended, from the first start to the last end."),
)
_TIMES: Final = {"wait": "From enqueue to first start.", "run": "Run time of an attempt."}


def stats_as_prometheus(view: Mapping[str, Any]) -> str:
    """The figures for Prometheus' textfile collector; gauges, since a purge lowers them."""
    by = view.get("by")
    parts = {_label(by, group[by]): group for group in view["groups"]} if by else {"": view}
    states = [f'{{state="{state}"}} {count}' for state, count in view["jobs"].items()]
    rows = [
        *_family("jobs", "gauge", "Jobs in each state.", states),
        *_family("workers", "gauge", "Threads of all live workers.", [f" {view['workers']}"]),
    ]
    for name, key, meaning in _GAUGES:
        samples = [f"{{{label}}} {part[key]}" for label, part in parts.items()]
        rows += _family(name, "gauge", meaning, samples)
    for name, meaning in _TIMES.items():
        buckets, quantiles = [], []
        for label, part in parts.items():
            times, below = part[f"{name}_s"], 0
            for bar in times["histogram"]:
                below += bar["count"]
                bound = "+Inf" if bar["le"] is None else bar["le"]
                buckets.append(f'_bucket{{le="{bound}",{label}}} {below}')
            buckets += [f"_sum{{{label}}} {times['sum']}", f"_count{{{label}}} {times['count']}"]
            for key, share in QUANTILES.items():
                quantiles.append(f'{{quantile="{share}",{label}}} {times[key]}')
        rows += _family(f"{name}_seconds", "histogram", meaning, buckets)
        rows += _family(f"{name}_quantile_seconds", "gauge", meaning, quantiles)
    return "\n".join(rows)


def _label(key: str, text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{key}="{escaped}"'


def _family(name: str, kind: str, meaning: str, samples: Iterable[str]) -> Iterator[str]:
    """The lines of one metric; figures that are None are left out."""
    yield f"# HELP queuectl_{name} {meaning}"
    yield f"# TYPE queuectl_{name} {kind}"
    yield from (f"queuectl_{name}{sample}" for sample in samples if not sample.endswith(" None"))


# -- The live screen of `status --watch`


def watch_frame(
    view: Mapping[str, Any], outputs: Mapping[str, str], columns: int, rows: int, now: str
) -> list[str]:
    """The live screen: at most `rows` lines of at most `columns` characters, the most important
    first. `outputs` maps the ids of failed jobs to their last line of output.
    """
    lines = [cut(line, columns) for line in _watch_head(view, columns, now)]
    running = [_running_row(job, now) for job in view["running"]]
    failed = [dead_row(job, outputs.get(job.id, ""), now) for job in view["failed"]]
    room = rows - len(lines) - 4  # two lists, each with an empty line and a title
    shown = max(room // 2, room - len(failed))  # each list gets half of it, and what the other left
    room -= min(shown, len(running))
    for title, part, size in (("running", running, shown), ("last failures", failed, room)):
        if part and size > 0:
            more = f" ({size} of {len(part)})" if size < len(part) else ""
            lines += ["", cut(paint(title + more, _BOLD), columns), *table(part[:size], columns)]
    return lines[:rows]


def _watch_head(view: Mapping[str, Any], columns: int, now: str) -> Iterator[str]:
    """What stands above the lists: counts with bars, throughput, what waits, workers in trouble."""
    yield f"{paint('queuectl', _BOLD)} {clean(view['home'])}  {now[11:19]}Z  q ends"
    if view["paused"]:
        yield paint(PAUSED, _YELLOW)
    most = max(*view["jobs"].values(), 1)
    wide = len(f"{most:,}")
    for state, count in view["jobs"].items():
        bar = "█" * math.ceil(max(columns - wide - 14, 0) * count / most)
        yield f"{paint_state(state)}  {count:>{wide},}  {paint(bar, _COLOURS[state])}"
    recent = view["rates"][-10:] or [0]
    speed = f"{sum(recent) / len(recent):.1f} jobs/s"
    spark = _spark(view["rates"], columns - len(speed) - 14)
    yield f"throughput  {paint(speed, _BOLD)}  {paint(spark, _COLOURS['completed'])}"
    yield "   ".join([say_threads(view), *say_waiting(view, now)])
    for worker in view["workers"]:
        if worker["trouble"] or worker["silent_s"] > SILENT_S:
            yield paint(worker_line(worker).strip(), _COLOURS["dead"])


def _running_row(job: Job, now: str) -> Row:
    seconds = max(0.0, instant_s(now) - instant_s(job.started_at or now))
    return clean(job.id), f"{say_duration(seconds):>7}  {clean(job.command)}"


def _spark(rates: Sequence[float], room: int) -> str:
    """The newest rates, as many as there is room for; the newest on the right."""
    shown = rates[-room:] if room > 0 else []
    most = max(shown, default=0) or 1
    # 7 * rate / most may be above 7.
    return "".join("▁▂▃▄▅▆▇█"[math.ceil(7 * (rate / most))] for rate in shown)


PLAIN_BLOCKS: Final = str.maketrans("█▇▆▅▄▃▂▁…", "##====-_~")  # for a terminal without UTF-8


def watch_line(view: Mapping[str, Any], now: str) -> str:
    """The same in one line, for a pipe: time, the five counts, jobs a second."""
    counts = ", ".join(f"{count} {state}" for state, count in view["jobs"].items())
    speed = f", {view['rates'][-1]:.1f} jobs/s" if view["rates"] else ""
    return f"{now}  {counts}{speed}{', PAUSED' if view['paused'] else ''}"


# ======== 9. COMMANDS ========
# The command line: take arguments, call one operation, present, exit. The only section that knows
# Click, prints, and waits for a person's sake; it decides nothing about jobs. What a command
# returns is its exit code (None: 0).

POLL_S: Final = 0.03  # between two looks of a command that waits
WATCH_LEAST_S: Final = 0.1

Words = tuple[str, ...]  # what stands for several ids, states or tags


class App:
    """What the commands of one call share: the store, and what has been changed so far, which an
    error names."""

    def __init__(self, home: str) -> None:
        self.store = Store(home, lambda text: _say(f"Warning: {text}"))
        self.made = ""

    def done(self, made: str, lines: Iterable[str] | None = None) -> None:
        """The change is stored: put it on the disk, then print what is now true, or these lines."""
        self.made = made
        self.store.settle()
        _echo_all([made] if lines is None else lines)


def _say(text: str) -> None:
    """A message to the person, on stderr."""
    click.echo(clean(text), err=True)


def _echo_all(lines: Iterable[str]) -> None:
    """Print lines, many at a time, for Click flushes every call."""
    rest = iter(lines)
    while piece := list(itertools.islice(rest, 200)):
        click.echo("\n".join(piece))


class Group(click.Group):
    """A group of commands, some of which have second names. It turns every error into an exit."""

    group_class = type
    aliases: Final = {
        "cli metrics": "stats",
        "dlq clear": "purge",
        "dlq delete": "purge",
        "config list": "show",
    }

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, self.aliases.get(f"{self.name} {cmd_name}", cmd_name))

    def main(self, *args: Any, **more: Any) -> Any:
        """As Click's own, but what cannot be printed (help, an error where stderr is full) keeps
        its exit code."""
        code: Any = EXIT_STORAGE
        try:
            code = super().main(*args, **{**more, "standalone_mode": False}) or 0
        except click.Abort:
            code = 130
        except click.ClickException as error:
            code = error.exit_code
            if not isinstance(error, click.exceptions.NoArgsIsHelpError):  # whose text is a page
                error.message = clean(error.message)  # type: ignore[misc]  # it repeats what was typed
            with contextlib.suppress(OSError):
                error.show()
        except OSError as error:
            _say_error(f"The result could not be printed: {error.strerror}. Nothing was changed.")
        sys.exit(code)

    def invoke(self, ctx: click.Context) -> Any:
        """As Click's own, but what ends a command is told together with what it had changed."""
        try:
            return super().invoke(ctx)
        except (QueueError, OSError, KeyboardInterrupt, click.Abort) as error:
            made = ctx.obj.made if isinstance(ctx.obj, App) else ""
            return _fail(error, f"The change was made before that: {made}" if made else "")


def _fail(error: BaseException, made: str) -> int:
    """Say what ended a command, and what it had changed by then; the exit code."""
    match error:
        case QueueError(exit_code=code):
            text = str(error)
            _say_error(f"{text.replace(' Nothing was changed.', '')} {made}" if made else text)
            return code
        case OSError(filename=str() | bytes() as name):
            _say_error(f"{error.strerror}: '{os.fsdecode(name)}'. {made or 'Try again.'}")
            return EXIT_STORAGE
        case BrokenPipeError() if not made:
            return EXIT_REFUSED
        case OSError():
            what = f"The result could not be printed: {error.strerror}."
            _say_error(f"{what} {made or 'Nothing was changed.'}")
            return EXIT_REFUSED if isinstance(error, BrokenPipeError) else EXIT_STORAGE
    if sys.stderr.isatty():
        click.echo(err=True)  # the cursor stands behind "^C"
    if made:
        _say(f"Interrupted. {made}")
    return 130


def _say_error(text: str) -> None:
    with contextlib.suppress(OSError):  # the exit code still tells
        _say(f"Error: {text}")


def find_home(option: str | None) -> str:
    """`--home`, else QUEUECTL_HOME, else the directory of this file where it is a checkout, else
    the user's own."""
    if home := option or os.environ.get("QUEUECTL_HOME"):
        return home
    here = os.path.dirname(os.path.abspath(__file__))
    for name in ("config.json", "jobs.json", "dlq.json", ".queuectl"):
        if os.path.exists(os.path.join(here, name)):
            return here
    return click.get_app_dir("queuectl")


class DurationType(click.ParamType):  # type: ignore[type-arg]  # generic since Click 8.4 only
    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            return parse_duration(value)
        except BadValue as error:
            self.fail(str(error), param, ctx)


_COMPLETES: Final = {  # the states of the jobs that a command takes
    "cancel": (*WAITING, "processing"),
    "retry": ("failed", "dead"),
    "edit": WAITING,
    "dlq": ("dead",),
}


def _complete_ids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The ids that a command takes and that begin so; nothing where the queue cannot be read."""
    is_dlq = ctx.parent is not None and ctx.parent.info_name == "dlq"
    states = _COMPLETES.get("dlq" if is_dlq else ctx.info_name or "", STATES)
    store = Store(find_home(ctx.find_root().params.get("home")), lambda text: None)
    try:
        store.read()
        return newest_ids(store, incomplete, states)
    except (QueueError, OSError):
        return []
    finally:
        store.close()


def _switch(*names: str, help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(*names, is_flag=True, help=help)


# What several commands take.
DURATION: Final = DurationType()
PATH: Final = click.Path(readable=False)  # a shell completes it; what is there is not asked here
_app = click.make_pass_decorator(App)
_ids = click.argument("ids", nargs=-1, required=True, metavar="ID...", shell_complete=_complete_ids)
_some_ids = click.argument("ids", nargs=-1, metavar="[ID]...", shell_complete=_complete_ids)
_json = _switch("--json", "in_json", help="Print one JSON value.")
_match = click.option("--match", metavar="TEXT", help="Only jobs whose id or command holds TEXT.")
_limit = click.option(
    "--limit", type=click.IntRange(0, 1 << 53), metavar="N", help="At most N jobs."
)
_tags = click.option(
    "--tag", "tags", multiple=True, metavar="T", help="Only jobs with that tag (repeatable)."
)
_yes = _switch("--yes", help="Do not ask.")
_older_than = click.option(
    "--older-than", type=DURATION, help="Only jobs that have been over for that long."
)


def _check_ids_or_all(ids: Words, every: bool) -> None:
    if bool(ids) == every:
        raise click.UsageError("Give job ids, or --all.")


def _deadline(timeout: float | None) -> float:
    return time.monotonic() + (math.inf if timeout is None else timeout)


def _width() -> float:
    """The width of the terminal; a pipe is infinitely wide."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf


@contextlib.contextmanager
def _progress(length: int, label: str) -> Iterator[Callable[[int], None]]:
    """A progress bar where stderr is a terminal, else nothing; gives the function that moves it."""
    if not sys.stderr.isatty():
        yield lambda steps: None
        return
    with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
        bar.render_progress()
        yield bar.update


@click.group(
    cls=Group,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda word: word.replace("_", "-"),
    },
)
@click.option(
    "--home",
    metavar="DIR",
    type=PATH,
    help="The queue's directory (else QUEUECTL_HOME).",
)
@click.version_option(__version__, prog_name="queuectl")
@click.pass_context
def cli(ctx: click.Context, home: str | None) -> None:
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
        raise click.UsageError("--home is empty. Give a directory.")
    ctx.obj = App(find_home(home))
    ctx.call_on_close(ctx.obj.store.close)


# -- enqueue


class EnqueueCommand(click.Command):
    """Remembers what Click's parser forgets: whether `--` stood before the words, and
    `--unique=KEY`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)
        words = ctx.params.get("words", ())
        before = given[: len(given) - len(words)]
        separated = before[-1:] == ["--"]
        options = {name for param in self.get_params(ctx) for name in param.opts}
        for word in () if separated else words[1:]:
            option = word.partition("=")[0].replace("_", "-")
            if option.startswith("--") and option in options:
                raise click.UsageError(
                    f"'{word}' stands after the command's first word, where it is the command's "
                    "own. Options of enqueue come before it; for a command that has such an "
                    "option write -- before it.",
                    ctx,
                )
        ctx.params["separated"] = separated
        ctx.params["has_key"] = any(word.startswith("--unique=") for word in before)
        return rest


def _change_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what a job is, shared by enqueue, edit and `dlq retry`."""
    priority, retries = click.IntRange(-PRIORITY_MAX, PRIORITY_MAX), click.IntRange(0, RETRIES_MAX)
    for option in (
        click.option("--env", multiple=True, metavar="KEY[=VALUE]",
                     help="A variable for the job; KEY alone copies yours."),
        click.option("--at", "--run-at", metavar="WHEN", help="Start at: ISO 8601, HH:MM or +10m."),
        click.option("--priority", type=priority, help="Higher starts first. [new: 0]"),
        click.option("--max-retries", type=retries, help="Attempts in all. [new: max_retries]"),
        click.option("--timeout", type=DURATION,
                     help="An attempt's limit, 0 = none. [new: job_timeout]"),
        click.option("--command", metavar="TEXT", help="The shell line, whatever it starts with."),
    ):  # fmt: skip
        function = option(function)
    return function


def _given_fields(now: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a job that options gave, checked as those of JSON are."""
    fields = {name: value for name, value in given.items() if value not in (None, ())}
    if "at" in fields:
        fields["run_at"] = parse_instant(fields.pop("at"), now, "time for --at")
    if "env" in fields:
        fields["env"] = dict(map(_env_pair, fields["env"]))
    if "tags" in fields:
        fields["tags"] = list(fields["tags"])
    if (cwd := fields.get("cwd")) and not cwd.startswith("/"):
        fields["cwd"] = os.path.join(_here(), cwd)
    after_any = [{"id": id, "any": True} for id in fields.pop("after_any", ())]
    if after := [*fields.pop("after", ()), *after_any]:
        fields["after"] = after
    for name, value in fields.items():
        if name in FIELD_CHECKS and value != MADE_KEY:  # Click has checked the delay
            fields[name] = FIELD_CHECKS[name](value, name)
    return fields


def _env_pair(text: str) -> tuple[str, str]:
    key, has_value, value = text.partition("=")
    if has_value or not key:  # without a name it is refused with the rest
        return key, value
    if key not in os.environ:
        raise BadValue(
            f"The variable '{key}' of --env is not in your environment. Give --env {key}=VALUE."
        )
    return key, os.environ[key]


def _here() -> str:
    """The directory of the call, as a job can remember it."""
    try:
        return parse_cwd(os.getcwd(), "current directory")
    except OSError as error:
        why = f"The current directory cannot be told ({error.strerror})."
        raise Refused(f"{why} Give one: --cwd DIR.") from error
    except BadValue as error:
        raise Refused(f"{error} Or give another: --cwd DIR.") from error


@cli.command(cls=EnqueueCommand, context_settings={"allow_interspersed_args": False})
@click.argument("words", nargs=-1, metavar="JOB...")
@_change_options
@click.option("--id", metavar="ID", help="Its id. [made]")
@click.option("--delay", type=DURATION, help="Start that much later.")
@click.option("--cwd", metavar="DIR", type=PATH, help="Where it runs. [here]")
@click.option("--tag", "tags", multiple=True, metavar="T", help="A tag (repeatable).")
@click.option(
    "--after", multiple=True, metavar="ID", help="Start when that job is completed (repeatable)."
)
@click.option(
    "--after-any",
    multiple=True,
    metavar="ID",
    help="Start when it is over, completed or dead (repeatable).",
)
@click.option("--no-retry-on", metavar="CODES", help="Exit codes that are not retried: 2,64-78.")
@click.option(
    "--unique",
    is_flag=False,
    flag_value=MADE_KEY,
    metavar="[KEY]",
    help="Not while a job with KEY is active.",
)
@click.option(
    "--file",
    "path",
    metavar="FILE",
    type=PATH,
    help="One job a line, - for stdin; all or nothing.",
)
@_switch("--stream", help="Jobs from stdin, each accepted as its line comes.")
@_switch("--wait", "wait_", help="Print its output as it comes; exit with its code.")
@_json
@_app
def enqueue(
    app: App,
    /,
    words: Words,
    path: str | None,
    stream: bool,
    wait_: bool,
    in_json: bool,
    separated: bool,
    has_key: bool,
    **given: Any,
) -> int:
    """Add a job and print its id.

    The job is on disk by then. JOB is one word (a shell line, or JSON where it starts with
    '{'), or several words, kept word for word.

    \b
    Examples:
      queuectl enqueue 'tar c /srv | gzip > /backup/srv.tgz'
      queuectl enqueue '{"id":"job1","command":"echo test"}'
      queuectl enqueue --priority 5 -- rsync -a "my dir" host:
    """
    sources = sum(map(bool, (words, given["command"], path, stream)))
    for is_wrong, message in (
        (sources > 1, "Give the job once: as words, with --command, --file or --stream."),
        (wait_ and (in_json or stream or path is not None),
         "--wait is for one job's output: leave --file, --stream and --json out."),
        (stream and in_json,
         "--stream prints ids as they come, not one JSON value: leave --json out."),
        (path is not None and given["id"] is not None,
         "--id is for one job: with --file give an id in each line."),
        (given["at"] is not None and given["delay"] is not None,
         "Give --at or --delay, not both."),
    ):  # fmt: skip
        if is_wrong:
            raise click.UsageError(message)
    if not sources and not has_key and given["unique"] not in (None, MADE_KEY):
        words, given["unique"] = (given["unique"],), MADE_KEY
    now = app.store.now()
    options = _given_fields(now, given)
    defaults = options if "cwd" in options else {"cwd": _here(), **options}
    if stream:
        return _enqueue_stream(app, defaults)
    if path is not None:
        return _enqueue_file(app, path, defaults, in_json)
    fields = {} if "command" in options else _parse_words(words, separated, now)
    fields = {"cwd": defaults["cwd"], **merge_fields(fields, options)}
    return _enqueue_one(app, make_spec(fields), wait_, in_json)


def _enqueue_one(app: App, spec: Spec, wait_: bool, in_json: bool) -> int:
    accepted = enqueue_job(app.store, spec)
    job = accepted.job
    if wait_:
        app.done(
            f"job {job.id} stays in the queue. See it with: queuectl logs {job.id} --follow", ()
        )
        return _follow_to_end(app.store, job)
    if has_died_after(job):
        _say(f"Job {job.id} is dead from the start: {job.reason}.")
    duplicate = {"duplicate": True} if accepted.duplicate else {}
    result = as_json({**job_to_dict(job), **duplicate}) if in_json else job.id
    app.done(f"job {job.id} is in the queue.", [result])
    return 0


def _follow_to_end(store: Store, job: Job) -> int:
    """`enqueue --wait`: the id to stderr, the output of each attempt to stdout, then the job's own
    exit code."""
    click.echo(job.id, err=True)
    store.read()
    if sys.stderr.isatty() and not store.live_workers(first=True):
        _say("No worker is running, so this waits for one: queuectl worker start")
    job = _print_output(store, find_all(store, [job.id])[0], max(1, job.runs), math.inf)
    return _exit_as({job.id: job}, single=True)


def _parse_words(words: Words, separated: bool, now: str) -> dict[str, Any]:
    """The fields of a job from the words of the command line."""
    if not words:
        raise click.UsageError(
            "Give a command: a shell line, a JSON object, or words. See: queuectl enqueue -h"
        )
    if len(words) == 1 and words[0].startswith("{"):
        hint = " For a shell line that begins with '{' use: --command TEXT."
        return parse_spec(parse_json(words[0], "The job", hint), now)
    if len(words) == 1:
        return {"command": parse_command(words[0])}
    if words[0].startswith("{") and not separated:
        raise BadValue(
            'A job in JSON must be one word. Put it in single quotes: \'{"command": "echo hi"}\'.'
        )
    import shlex

    return {"command": parse_command(shlex.join(words))}


def _enqueue_file(app: App, path: str, options: dict[str, Any], in_json: bool) -> int:
    """All jobs of a file or of stdin, or none."""
    spool = Spool(app.store, _chunks(path))
    try:
        if (whole := _read_whole(spool)) is not None:
            spool.close()
            spool = Spool(app.store, (encode_json(record) + b"\n" for record in whole), "element")
        with _progress(2 * spool.size, "Adding") as advance:  # each line is looked at twice
            spool.seen = advance if sys.stderr.isatty() else None
            bulk = enqueue_bulk(app.store, spool, options, in_json)
    finally:
        spool.close()
    if bulk.added:
        app.done(f"{bulk.added} jobs are in the queue.", ())
    if in_json:
        click.echo(as_json([json.loads(raw) for raw in bulk.records]))
    else:
        while block := b"".join(itertools.islice(bulk.ids, IDS_BLOCKS)):
            click.echo(block, nl=False)
    return 0


def _chunks(path: str) -> Iterator[bytes]:
    try:
        with contextlib.ExitStack() as stack:
            stream = sys.stdin.buffer if path == "-" else stack.enter_context(open(path, "rb"))
            chunk = stream.read(CHUNK_BYTES)
            yield chunk.removeprefix(b"\xef\xbb\xbf")  # a byte order mark is no part of a command
            while (
                len(chunk) == CHUNK_BYTES
            ):  # a shorter one was the end; a terminal would go on to ask for more
                yield (chunk := stream.read(CHUNK_BYTES))
    except OSError as error:
        raise BadValue(
            f"'{path}' cannot be read: {error.strerror}. Give a file, or - for stdin."
        ) from error


def _read_whole(spool: Spool) -> list[Any] | None:
    """The records of a file that is one JSON array or object; None for another file. Such a file is
    known by its first line, comments apart: it is `[` or `{` alone, or begins with `[{`, which no
    command does."""
    lines = itertools.dropwhile(lambda line: line[1].strip()[:1] in (b"", b"#"), spool.numbered())
    number, first = next(lines, (1, b""))
    if first.strip() not in (b"[", b"{") and not first.strip().startswith(b"[{"):
        return None
    try:
        text = b"\n".join([*[b""] * (number - 1), first, *(line for _, line in lines)]).decode()
    except UnicodeDecodeError:
        raise BadValue("The file is not valid UTF-8. Save it as UTF-8.") from None
    value = parse_json(text, "The file", " Give one array of objects, or one job a line.")
    records = value if isinstance(value, list) else [value]
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise BadValue(
                f"Element {number} of the array is {_shown(record)}. Give JSON objects only."
            )
    return records


def _enqueue_stream(app: App, options: dict[str, Any]) -> int:
    """Accept each line of stdin at once and print its id. A bad line is an error, and exit 1 at the
    end."""
    code = 0
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            fields = parse_job_line(line, app.store.now())
            if fields is None:
                continue
            accepted = enqueue_job(app.store, make_spec(merge_fields(options, fields)))
            app.made = f"job {accepted.job.id} is in the queue."
            if app.store.config().fsync == "normal":
                app.store.sync()
            click.echo(accepted.job.id)
        except (BadValue, Refused) as error:
            code = EXIT_REFUSED
            click.echo(f"Error: In line {number}: {clean(str(error))}", err=True)
    app.store.settle()
    return code


# -- list, show, status, logs, wait


@cli.command("list")
@click.option(
    "--state",
    "states",
    type=click.Choice(STATES, case_sensitive=False),
    multiple=True,
    help="Only jobs in that state (repeatable).",
)
@_tags
@_match
@_limit
@_switch("--reverse", help="The newest first.")
@_json
@_switch("--ids", "only_ids", help="Print the ids alone.")
@_app
def list_(
    app: App,
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
        raise click.UsageError("Give --json or --ids, not both.")
    app.store.read()
    found = (job for job in app.store.jobs(reverse, states or STATES) if matches(job, match, tags))
    jobs, now = itertools.islice(found, limit), app.store.now()
    if only_ids:
        _echo_all(job.id for job in jobs)
    elif in_json:
        _echo_all(_json_array(jobs))
    else:
        _echo_all(table((job_row(job, now) for job in jobs), _width()))


def _json_array(jobs: Iterable[Job]) -> Iterator[str]:
    """One JSON array, one job a line, without holding them all."""
    begin = "["
    for job in jobs:
        yield begin + encode_job(job).decode()
        begin = ","
    yield "[]" if begin == "[" else "]"


@cli.command()
@_ids
@_json
@_app
def show(app: App, ids: Words, in_json: bool) -> None:
    """Show jobs whole, their attempts, and why they are not running.

    \b
    Example:
      queuectl show job1
    """
    app.store.read()
    _show_jobs(app.store, find_all(app.store, ids), in_json)


def _show_jobs(store: Store, jobs: Sequence[Job], in_json: bool) -> None:
    """One job's object or page; of several an array, or their pages with a blank line between."""
    if in_json:
        views = [job_to_dict(job) for job in jobs]
        click.echo(as_json(views[0] if len(views) == 1 else views))
        return
    pages = [
        job_page(job, why_waiting(store, job), processes_of(store, job), store.now())
        for job in jobs
    ]
    click.echo("\n\n".join(pages))


@cli.command("status")
@_switch("--check", help="Exit 1 when jobs are due and no worker is alive.")
@click.option(
    "--watch",
    type=DURATION,
    is_flag=False,
    flag_value="1",
    metavar="[SECONDS]",
    help="A live screen, drawn again every so often. [1]",
)
@_json
@_app
def status_(app: App, check: bool, watch: float | None, in_json: bool) -> int:
    """Show the counts, the workers and the settings.

    --watch shows bars per state, throughput, what runs and for how long, and the last failures,
    until q or Ctrl+C; in a pipe one line each time.

    \b
    Example:
      queuectl status --watch
    """
    if watch is not None:
        if check or in_json:
            raise click.UsageError("--watch goes with neither --json nor --check.")
        return _watch(app.store, max(watch, WATCH_LEAST_S))
    view, now = status(app.store), app.store.now()
    click.echo(as_json(view) if in_json else status_page(view, now))
    if check and is_work_left_alone(view, now):
        app.store.warn("jobs are due and no worker is alive. Start one: queuectl worker start")
        return EXIT_REFUSED
    return 0


def _watch(store: Store, seconds: float) -> int:
    """Draw the live screen until it is ended; the exit code."""
    import shutil

    watch = Watch(store)
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if not is_terminal or os.environ.get("TERM", "dumb") == "dumb":
        while True:
            click.echo(watch_line(watch.look(), store.now()))
            time.sleep(seconds)
    screen = Screen()
    screen.enter()
    try:
        while True:
            began, view = time.monotonic(), watch.look()
            columns, rows = shutil.get_terminal_size()  # 80 and 24 where the terminal cannot tell
            outputs = {job.id: _last_output(store, job) for job in view["failed"][:rows]}
            text = "\033[K\n".join(watch_frame(view, outputs, columns, rows, store.now()))
            screen.draw(click.unstyle(text) if os.environ.get("NO_COLOR") else text)
            if (code := screen.wait(began + seconds)) is not None:
                return code
    finally:
        screen.leave()


def _last_output(store: Store, job: Job) -> str:
    """The last line of output of a job's last run."""
    return last_line(log_path(store.logs_dir, job.id, job.runs))


class Screen:
    """The terminal's other screen, and what ends it: a key, or a signal."""

    ENTER, LEAVE = (  # no cursor, no wrapping
        "\033[?1049h\033[?25l\033[?7l",
        "\033[?7h\033[?25h\033[?1049l",
    )

    def __init__(self) -> None:
        import signal
        import termios

        self._mode = termios.tcgetattr(0)
        self._signals: list[int] = []
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGWINCH", "SIGTSTP"):
            signal.signal(signal.Signals[name], lambda number, _: self._signals.append(number))

    def enter(self) -> None:
        """Show the other screen; keys are not echoed, and come at once."""
        import tty

        tty.setcbreak(0)
        self._write(self.ENTER)

    def leave(self) -> None:
        """Make the terminal what it was."""
        import termios

        self._write(self.LEAVE)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(0, termios.TCSADRAIN, self._mode)

    def draw(self, text: str) -> None:
        """Put these lines over what is there, without clearing it first."""
        self._write(f"\033[H{text}\033[K\033[J")

    def _write(self, text: str) -> None:
        """One write, so that a frame is never seen half drawn."""
        if "utf" not in sys.stdout.encoding.lower():
            text = text.translate(PLAIN_BLOCKS)
        try:
            sys.stdout.buffer.write(text.encode(sys.stdout.encoding, "replace"))
            sys.stdout.buffer.flush()
        except OSError:
            import signal

            self._signals.append(signal.SIGHUP)  # nobody can see the screen any more

    def wait(self, until: float) -> int | None:
        """Wait for that time, a key or a signal; the exit code where it ends the screen."""
        import select
        import signal

        while not self._signals:
            left = max(0.0, until - time.monotonic())
            ready, _, _ = select.select([0], [], [], min(left, POLL_S))
            # An arrow key is more than one byte. No byte at all: the terminal is gone.
            if ready and os.read(0, 64) in (b"", b"q", b"Q", b"\x1b"):
                return 0
            if not left:
                return None
        number = self._signals.pop(0)
        if number == signal.SIGTSTP:
            self.leave()
            halt()
            self.enter()
        return None if number in (signal.SIGTSTP, signal.SIGWINCH) else 128 + number


@cli.command("stats")
@click.option("--since", type=DURATION, help="Only what ended in that time.")
@click.option(
    "--by", type=click.Choice(["tag", "command"], case_sensitive=False), help="Each of these too."
)
@_json
@_switch("--prometheus", help="In the format of Prometheus' textfile collector.")
@_app
def stats_(app: App, since: float | None, by: str | None, in_json: bool, prometheus: bool) -> None:
    """Count what completed and failed, and how long it took.

    Wait is the time from enqueue to the first start. Of a job's attempts the last five are known
    one by one.

    \b
    Example:
      queuectl stats --since 24h --by tag
    """
    if in_json and prometheus:
        raise click.UsageError("Give --json or --prometheus, not both.")
    view = stats(app.store, since, by)
    if in_json:
        click.echo(as_json(view))
    else:
        now = app.store.now()
        click.echo(stats_as_prometheus(view) if prometheus else stats_page(view, now))


@cli.command()
@click.argument("id", metavar="ID", shell_complete=_complete_ids)
@click.option(
    "--attempt", type=click.IntRange(1), metavar="N", help="That attempt. [the newest run]"
)
@_switch("--follow", help="Go on as output comes, until the job is over.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Begin with the last N lines.")
@_switch("--path", "show_path", help="Print the file's path instead.")
@_app
def logs(
    app: App, id: str, attempt: int | None, follow: bool, tail: int | None, show_path: bool
) -> None:
    """Print a job's output, bytes as it wrote them.

    A job that writes `> /dev/stderr` opens its log anew and so truncates it; `>&2` and `>>` do not.

    \b
    Example:
      queuectl logs job1 --follow
    """
    store = app.store
    store.read()
    job = find_all(store, [id])[0]
    run = job.runs if attempt is None else run_of_attempt(job, attempt)
    if run == 0 and not follow:
        click.echo(f"Job '{id}' has not run yet.", err=True)
    elif show_path:
        path, _ = _log_of(store, job, run)
        _echo_all(name for name in (path + CUT, path) if name == path or os.path.exists(name))
    else:
        last = (run if attempt is not None else math.inf) if follow else 0
        _print_output(store, job, max(1, run), last, tail)


def _print_output(store: Store, job: Job, run: int, last: float, tail: int | None = None) -> Job:
    """Print what a run wrote (of a tail, its last lines), and go on as more comes and with the runs
    after it, until the run `last` or the job is over; 0: only what is there now. Gives the job as
    it is then."""
    out, at = sys.stdout.buffer, None
    warned = False
    while True:
        path, running = _log_of(store, job, run)
        moved = False
        if at is None:
            at = tail_start(path, tail) if tail is not None else 0
        for offset, piece in read_log(path, at):
            if running:
                # A slot's file is believed only if the record, read afterwards, still names slot
                # and run.
                store.refresh()
                job = find_all(store, [job.id])[0]
                if moved := _log_of(store, job, run) != (path, True):
                    break
            if offset > at:
                click.echo(f"({offset - at} bytes of output were left out here: log_max)", err=True)
            out.write(piece)
            at = offset + len(piece)
        out.flush()
        if moved or (running and not last and _log_of(store, job, run) != (path, True)):
            continue
        if not running and job.runs > run and run < last:
            run, at, tail = run + 1, None, None  # the next attempt
            continue
        if not last or (not running and (run >= last or job.state in OVER)):
            return job
        warned = warned or _warn_of_orphan(store, [job.id])
        time.sleep(POLL_S)
        store.refresh()
        job = find_all(store, [job.id])[0]


def _log_of(store: Store, job: Job, run: int) -> tuple[str, bool]:
    """(path of that run's output, whether the run still goes on). A log that bears the run's name
    is of a run that is over."""
    path = log_path(store.logs_dir, job.id, run)
    if job.state != "processing" or job.runs != run or os.path.exists(path):
        return path, False
    return slot_log_path(store.logs_dir, job.worker or "", job.slot or 0), True


@cli.command()
@_some_ids
@_switch("--all", "every", help="All jobs that are not over now.")
@click.option("--timeout", type=DURATION, help="Give up after that time, with exit code 124.")
@_json
@_app
def wait(app: App, ids: Words, every: bool, timeout: float | None, in_json: bool) -> int:
    """Wait until jobs are completed or dead.

    With one ID the exit code is the job's own (128 + n after signal n); with several it is 0 where
    all completed.

    \b
    Example:
      queuectl wait job1 --timeout 10m
    """
    _check_ids_or_all(ids, every)
    store = app.store
    store.read()
    deadline = _deadline(timeout)
    jobs = store.jobs(states=(*WAITING, "processing")) if every else find_all(store, ids)
    wanted = [job.id for job in jobs]
    ended: dict[str, Job | None] = {}
    left, changed, warned = wanted, True, False
    with _progress(len(wanted), "Waiting") as advance:
        while True:
            if changed:
                ended |= store.find_ended(left)
                advance(len(left) - (len(wanted) - len(ended)))
                left = [id for id in wanted if id not in ended]
            if not left or time.monotonic() >= deadline:
                break
            warned = warned or _warn_of_orphan(store, left)
            time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))
            changed = store.refresh()
    if in_json:
        click.echo(as_json([ended_view(id, ended.get(id), id in ended) for id in wanted]))
    if left:
        what = f"Not over yet: {len(left)} of {len(wanted)}."
        _say(f"Error: {what} Wait longer, or see: queuectl list.")
        return EXIT_TIMEOUT
    return _exit_as(ended, single=len(wanted) == 1 and not every)


def _exit_as(ended: Mapping[str, Job | None], single: bool) -> int:
    """The exit code for how these jobs ended; says which did not complete."""
    for id, job in ended.items():
        if job is None:
            _say(f"Job {id} was purged")
        elif job.state != "completed":
            _say(f"Job {id} is dead: {job.reason or ''}")
    return exit_code_of(list(ended.values()), single)


def _warn_of_orphan(store: Store, ids: Collection[str]) -> bool:
    """Whether one of these jobs was left by a dead worker and no worker lives; says so."""
    if (orphan := orphan_among(store, ids)) is None:
        return False
    store.warn(
        f"Job '{orphan}' was left by a dead worker and no worker lives to take it back. "
        "Start one: queuectl worker start"
    )
    return True


# -- cancel, retry, rerun, edit, pause, resume, purge


@cli.command()
@_ids
@_app
def cancel(app: App, ids: Words) -> None:
    """Cancel waiting jobs, and stop running ones.

    They end in the dead letter queue, with the reason "cancelled"; a running one once it is gone.

    \b
    Example:
      queuectl cancel job1 job2
    """
    jobs = cancel_jobs(app.store, ids)
    app.made = say_ids("Cancelled", jobs)
    if running := {job.id for job in jobs if job.state == "processing"}:
        recover_now(app.store, running, _say)
    lines = []
    for job in [app.store.job(job.id) or job for job in jobs]:
        if job.state == "processing":
            what = "running: stopping it"
        else:
            what = "cancelled" if job.id in ids else f"dead: {job.reason}"
        lines.append(f"Job {job.id} is {what}.")
    app.done(app.made, lines)


@cli.command()
@_ids
@_app
def retry(app: App, ids: Words) -> None:
    """Make failed jobs due now, bring dead ones back.

    \b
    Example:
      queuectl retry job3
    """
    jobs = retry_jobs(app.store, ids)
    lines = [
        f"Job {job.id} is {'due now' if job.state == 'failed' else 'pending again'}."
        for job in jobs
    ]
    app.done(say_ids("Retrying", jobs), lines)


@cli.command()
@_ids
@_app
def rerun(app: App, ids: Words) -> None:
    """Add a new job like that one and print its id.

    It starts as soon as a worker is free, with attempts at zero. The old job, whatever its state,
    stays as it is.

    \b
    Example:
      queuectl rerun job1
    """
    jobs = rerun_jobs(app.store, ids)
    app.done(say_ids("Added", jobs), [job.id for job in jobs])


@cli.command()
@_ids
@_change_options
@_app
def edit(app: App, /, ids: Words, **given: Any) -> None:
    """Change jobs that are pending or failed.

    A dead one is changed on its way back: 'dlq retry' takes the same options.

    \b
    Example:
      queuectl edit job1 --timeout 10m --priority 5
    """
    changes = _given_fields(app.store.now(), given)
    if not changes:
        raise click.UsageError(
            "Say what to change: --command, --timeout, --max-retries, --priority, --at, --env."
        )
    jobs = edit_jobs(app.store, ids, changes)
    what = ", ".join(changes)
    app.done(say_ids("Changed", jobs), [f"Job {job.id} is changed: {what}." for job in jobs])


@cli.command()
@_app
def pause(app: App) -> None:
    """Start no more jobs until 'resume'; running ones go on.

    \b
    Example:
      queuectl pause
    """
    set_setting(app.store, "paused", "true")
    text = "The queue is paused: running jobs go on, no other starts. Go on with: queuectl resume"
    app.done(text)


@cli.command()
@_app
def resume(app: App) -> None:
    """Start jobs again after 'pause'.

    \b
    Example:
      queuectl resume
    """
    set_setting(app.store, "paused", "false")
    app.done("The queue is no longer paused.")


@cli.command()
@click.option(
    "--state",
    "states",
    type=click.Choice(OVER, case_sensitive=False),
    multiple=True,
    help="Only these. [completed and dead]",
)
@_older_than
@_switch("--dry-run", help="Say what would go, change nothing.")
@_yes
@_app
def purge(app: App, states: Words, older_than: float | None, dry_run: bool, yes: bool) -> None:
    """Delete finished jobs and their output for good.

    \b
    Example:
      queuectl purge --older-than 7d --yes
    """
    states = states or OVER
    chosen = over_for(states, older_than)
    if dry_run:
        app.store.read()
        purged = choose_purged(app.store, chosen, app.store.now())
        click.echo(f"{say_count(len(purged.gone), 'job')} would be purged.")
        _say_kept(purged.kept)
        return
    _confirm(yes, f"Delete {' and '.join(states)} jobs for good?")
    _finish_purge(app, purge_jobs(app.store, chosen))


def _confirm(yes: bool, question: str) -> None:
    """Ask on a terminal; elsewhere `--yes` must have been given."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("Nobody is there to be asked. Give --yes to do it.")
    if not click.confirm(question, err=True):
        raise Refused("The answer was no. Nothing was changed.")


def _finish_purge(app: App, purged: Purged) -> None:
    """Remove the output of the jobs that are gone, and say how many there were."""
    text = app.made = f"{say_count(len(purged.gone), 'job')} purged."
    app.store.settle()
    logs_dir = app.store.logs_dir
    try:
        with _progress(len(purged.gone), "Deleting output") as advance:
            for job in purged.gone:
                remove_logs(logs_dir, job.id, job.runs)
                advance(1)
    except OSError as error:
        app.store.warn(f"Some output of purged jobs is left in '{logs_dir}': {error.strerror}.")
    click.echo(text)
    _say_kept(purged.kept)


def _say_kept(kept: Sequence[Job]) -> None:
    if kept:
        ids = f"{', '.join(job.id for job in kept[:3])}{' ...' if len(kept) > 3 else ''}"
        _say(f"{say_count(len(kept), 'job')} kept, as jobs that wait come after: {ids}")


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
@_app
def dlq_list(app: App, in_json: bool, limit: int | None, match: str | None) -> None:
    """List the dead letters.

    A line has the id, attempts made, last outcome, when that was, and the last line of output.

    \b
    Example:
      queuectl dlq list --match backup
    """
    store = app.store
    store.read()
    found = (job for job in store.jobs(states=("dead",)) if matches(job, match))
    jobs, now = itertools.islice(found, limit), store.now()
    rows = (dead_row(job, _last_output(store, job), now) for job in jobs)
    _echo_all(_json_array(jobs) if in_json else table(rows, _width()))


@dlq.command("show")
@_ids
@_json
@_app
def dlq_show(app: App, ids: Words, in_json: bool) -> None:
    """Show dead letters whole.

    \b
    Example:
      queuectl dlq show job3
    """
    app.store.read()
    _show_jobs(app.store, [check_dead(job) for job in find_all(app.store, ids)], in_json)


@dlq.command("retry")
@_some_ids
@_switch("--all", "every", help="All dead letters but the cancelled ones.")
@_match
@_switch("--cancelled", help="With --all: the cancelled ones too.")
@click.option("--spread", type=DURATION, help="Let them start spread over that time.")
@_change_options
@_app
def dlq_retry(
    app: App,
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
    if (match is not None or cancelled) and not every:
        raise click.UsageError("--match and --cancelled go with --all.")
    changes = _given_fields(app.store.now(), given)
    if every:
        jobs = revive_all(app.store, match, cancelled, changes, spread)
    else:
        jobs = revive_jobs(app.store, ids, changes, spread)
    if jobs:
        app.done(say_ids("Revived", jobs), [f"Job {job.id} is pending again." for job in jobs])
    else:
        _say("No dead letter fits; cancelled ones come back with --cancelled only.")


@dlq.command("purge")
@_some_ids
@_switch("--all", "every", help="All dead letters.")
@_older_than
@_yes
@_app
def dlq_purge(app: App, ids: Words, every: bool, older_than: float | None, yes: bool) -> None:
    """Delete dead letters and their output for good.

    \b
    Example:
      queuectl dlq purge --older-than 30d --yes
    """
    if bool(ids) == (every or older_than is not None):
        raise click.UsageError("Give job ids, or --all, or --older-than.")
    _confirm(yes, f"Delete {len(ids) or 'these'} dead letters for good?")
    if ids:
        purged = purge_dead(app.store, ids)
    else:
        purged = purge_jobs(app.store, over_for(("dead",), older_than))
    _finish_purge(app, purged)


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
@_app
def config_show(app: App, in_json: bool) -> None:
    """Show every setting in force.

    \b
    Example:
      queuectl config show
    """
    app.store.check_home()
    values = settings_in_force(app.store)
    lines = (_say_setting(name, value) for name, value in values.items())
    _echo_all([as_json(values)] if in_json else lines)


@config.command("get")
@click.argument("key", required=False)
@_json
@click.pass_context
def config_get(ctx: click.Context, key: str | None, in_json: bool) -> None:
    """Print the value of one setting, alone.

    \b
    Example:
      queuectl config get max-retries
    """
    if key is None:
        ctx.invoke(config_show, in_json=in_json)
        return
    store = ctx.obj.store
    store.check_home()
    value = settings_in_force(store)[known_setting(key)]
    click.echo(as_json(value) if in_json else clean(say_value(value)))


@config.command("set", context_settings={"ignore_unknown_options": True})
@click.argument("key")
@click.argument("value")
@_app
def config_set(app: App, key: str, value: str) -> None:
    """Change one setting; running workers follow at once.

    \b
    Example:
      queuectl config set backoff-base 3
    """
    _change_setting(app, key, value)


@config.command("unset")
@click.argument("key")
@_app
def config_unset(app: App, key: str) -> None:
    """Set one setting back to its default.

    \b
    Example:
      queuectl config unset backoff-base
    """
    _change_setting(app, key, None)


def _say_setting(name: str, value: object) -> str:
    return f"{name} = {clean(say_value(value))}"


def _change_setting(app: App, key: str, text: str | None) -> None:
    value = set_setting(app.store, key, text)
    app.done(_say_setting(known_setting(key), value))


# -- worker


@cli.group()
def worker() -> None:
    """Start, stop and see the workers of this queue.

    \b
    Example:
      queuectl worker start --count 2
    """


@worker.command("start")
@click.option("--count", type=click.IntRange(1, 1000), help="Threads: jobs at once. [worker_count]")
@_tags
@click.option(
    "--not-tag", "not_tags", multiple=True, metavar="T", help="No jobs with that tag (repeatable)."
)
@_switch("--drain", help="End when nothing is left to run; exit 1 if a job died.")
@_switch("--detach", "--detached", help="In the background, log under .queuectl/.")
@_app
def worker_start(
    app: App,
    count: int | None,
    tags: Words,
    not_tags: Words,
    drain: bool,
    detach: bool,
) -> int:
    """Run jobs, in the foreground until stopped.

    The first Ctrl+C lets running jobs finish; the second ends them and hands them back.

    \b
    Example:
      queuectl worker start --count 4
    """
    store = app.store
    store.prepare()
    threads = count or store.config().worker_count
    only = TagFilter(tuple(parse_tags(list(tags))), tuple(parse_tags(list(not_tags))))
    if detach:
        filters = [f"--tag={tag}" for tag in only.tags]
        filters += [f"--not-tag={tag}" for tag in only.not_tags]
        _detach(store, [f"--count={threads}", *filters, *["--drain"] * drain])
        return 0
    has_bar = drain and not any(only) and sys.stderr.isatty()
    with _drain_bar(store) if has_bar else contextlib.nullcontext(_tell) as say:
        return Worker(store, threads, only, drain, say).run()


def _tell(text: str, before: str = "", after: str = "") -> None:
    """Print what a worker says; a closed or full stderr ends nothing."""
    lines = "\n".join(map(clean, text.split("\n")))
    with contextlib.suppress(OSError, ValueError):
        click.echo(f"{before}{lines}\n{after}", err=True, nl=False)


@contextlib.contextmanager
def _drain_bar(store: Store) -> Iterator[Callable[[str], None]]:
    """Prints what a drain says above a progress bar of what the queue still holds."""
    import shutil

    bar = click.progressbar(length=1, label="Draining")
    width = shutil.get_terminal_size().columns - 1  # a line that is wrapped cannot be erased
    erase = f"\r{' ' * width}\r"

    def say(text: str) -> None:
        left = store.totals.left()
        bar.length = max(bar.length or 1, left)
        bar.make_step(max(0, bar.length - left - bar.pos))
        _tell(text, erase, cut(bar.format_progress_line(), width))

    yield say
    with contextlib.suppress(OSError, ValueError):
        click.echo(erase, err=True, nl=False)


def _detach(store: Store, options: list[str]) -> None:
    """Start a worker in the background; return when it is ready."""
    log = os.path.join(store.dir, "worker.log")
    child = start_detached(["--home", store.home, "worker", "start", *options], log)
    deadline = time.monotonic() + 30
    while child.pid not in (
        names := {info.header["pid"]: info.name for info in store.live_workers()}
    ):
        if child.poll() is not None or time.monotonic() > deadline:
            raise Refused(f"The worker did not start. See why in '{log}'.")
        time.sleep(POLL_S)
    child.returncode = 0  # it outlives us: no warning that it still runs
    _say(f"Worker {names[child.pid]} started in the background, log in {log}.")


@worker.command("stop")
@_switch("--now", help="End the running jobs and hand them back.")
@click.option("--timeout", type=DURATION, help="Do not wait longer than that; exit 1.")
@_app
def worker_stop(app: App, now: bool, timeout: float | None) -> None:
    """Stop all workers of this queue and wait until they are gone.

    \b
    Example:
      queuectl worker stop --timeout 1m
    """
    store = app.store
    store.check_home()
    names = {info.name for info in store.live_workers()}
    for name in names:
        store.request_stop(name, "now" if now else "stop")
    deadline = _deadline(timeout)
    while left := names & {info.name for info in store.live_workers()}:
        if time.monotonic() >= deadline:
            raise Refused(
                f"{len(left)} of {len(names)} workers still run their jobs: "
                f"{', '.join(sorted(left))}. They stop when these end; end them with: "
                "queuectl worker stop --now."
            )
        time.sleep(POLL_S)
    if names:
        app.done(f"{say_count(len(names), 'worker')} stopped.")
    else:
        click.echo("No worker was running.")


@worker.command("list")
@_json
@_app
def worker_list(app: App, in_json: bool) -> None:
    """List the live workers and what they run.

    \b
    Example:
      queuectl worker list
    """
    app.store.check_home()
    views = [worker_view(info, app.store.clock()) for info in app.store.live_workers()]
    _echo_all([as_json(views)] if in_json else (worker_line(view).strip() for view in views))


# -- doctor, completion


@cli.command()
@_switch("--fix", help="Repair what can be repaired; the files as they were are kept.")
@_app
def doctor(app: App, fix: bool) -> None:
    """Check every store and the journal for damage.

    Changes nothing without --fix, which keeps every job whose line is whole, and copies of the
    files as they were in .queuectl/aside. A job that only a damaged line of the journal knows
    becomes a dead letter: its command may not be what was given. Exit code 0 where all is well (by
    now), 3 where something is not.

    \b
    Example:
      queuectl doctor --fix
    """
    problems = examine(app.store)
    _echo_all(map(clean, problems))
    if problems and fix:
        copies = mend(app.store)
        click.echo(clean(f"Repaired. The files as they were: {', '.join(copies)}."))
        problems = examine(app.store)
        _echo_all(map(clean, problems))
    home = app.store.home
    if problems:
        found = say_count(len(problems), "problem")
        raise StoreError(f"{found} in '{home}'. Repair it with: queuectl doctor --fix.")
    click.echo(f"All is well with '{clean(home)}'.")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"], case_sensitive=False))
def completion(shell: str) -> None:
    """Print the script by which a shell completes words.

    It completes commands, options, states and the ids of jobs. For bash and zsh put
    eval "$(queuectl completion bash)" (or zsh) into ~/.bashrc or ~/.zshrc; for fish keep what is
    printed as ~/.config/fish/completions/queuectl.fish.

    \b
    Example:
      queuectl completion bash
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "queuectl", "_QUEUECTL_COMPLETE").source(), nl=False)


def main() -> None:
    """The console script."""
    open_standard_descriptors()
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        # None stands for a descriptor that was closed.
        stream = getattr(sys, name) or open(fd, "w" if fd else "r", encoding="utf-8")
        with contextlib.suppress(AttributeError, ValueError):  # a test puts other things there
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream)
    try:
        cli(prog_name="queuectl")
    except SystemExit as end:
        # All output was flushed where it was made. The interpreter's own end would free every
        # object one by one: a sixth of what an enqueue takes. (A profiler must look from outside.)
        os._exit(end.code)  # type: ignore[arg-type]  # Group.main ends with a number only


if __name__ == "__main__":
    main()
