"""Bad input of every kind, as one table: a clear `Error:` with what, where and what next, the documented exit code,
nothing on stdout, and not one byte of the home changed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import PROGRAM

pytest_plugins = ["drained_home"]


USAGE, REFUSED, STORAGE = 2, 1, 3

# Where a call may be made, besides an ordinary place: (variables set, None for those taken away; what stdout is).
PLACES: dict[str, tuple[dict[str, str | None], str | None]] = {
    "no HOME": ({"HOME": None}, None), "no TERM": ({"TERM": None}, None),
    "a dumb terminal": ({"TERM": "dumb", "COLUMNS": "1"}, None),
    "the locale C": ({"LC_ALL": "C", "LANG": None}, None),
    "the locale C without UTF-8": ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, None),
    "an ASCII stdout": ({"PYTHONIOENCODING": "ascii"}, None), "colours forced": ({"FORCE_COLOR": "1"}, None),
    "closed stdout": ({}, "closed"), "/dev/full": ({}, "/dev/full"),
}  # fmt: skip

# What to do next, in our own words or in Click's.
NEXT = re.compile(
    r"\b(Give|See|Try|Leave|Keep|Put|Save|Use|Change it|Say what|Did you mean|Its name is|The fields are|A shell line"
    r"|For a shell line|is not one of|is not in the range|does not take a value|requires an argument)\b"
)


@dataclass(frozen=True)
class Bad:
    """One bad call: what is wrong with it, the arguments, and what the message must contain (a pattern)."""

    what: str
    args: list[str]
    word: str
    code: int = USAGE
    stdin: str | bytes | None = None
    place: str | None = None  # a key of PLACES


def job(text: str) -> list[str]:
    """`enqueue` of a JSON object that has a good command and this bad part."""
    return ["enqueue", '{"command":"true",' + text + "}"]


def line(text: str | bytes) -> bytes:
    """A list of jobs whose second line is this one."""
    return b"echo first\n" + (text.encode() if isinstance(text, str) else text) + b"\n"


BAD_JSON = [
    Bad("an object cut short", ["enqueue", '{"command":"true"'], "JSON"),
    Bad("words after the object", ["enqueue", '{"command":"true"} x'], "JSON"),
    Bad("a shell group", ["enqueue", "{ echo a; }"], "JSON"),
    Bad("a raw newline in a string", ["enqueue", '{"command":"echo a\necho b"}'], "JSON"),
    # reading: a word that starts with `{` is JSON or refused, wherever it stands without `--`.
    Bad("two objects", ["enqueue", '{"command":"true"}', '{"command":"true"}'], "JSON|one|--"),
    Bad("very deep nesting", ["enqueue", '{"command":' + "[" * 100_000], "JSON|command"),
    Bad("a number of 5000 digits", job('"priority":' + "9" * 5000), "JSON|priority"),
]

BAD_COMMANDS = [
    Bad("no job at all", ["enqueue"], "command"),
    Bad("an empty word", ["enqueue", ""], "command|empty"),
    Bad("an empty --command", ["enqueue", "--command", ""], "command|empty"),
    Bad("an empty object", ["enqueue", "{}"], "command"),
    Bad("an object without a command", ["enqueue", '{"id":"a"}'], "command"),
    Bad("a command of 131,072 bytes", ["enqueue", "x" * 131_072], "131.?071"),
    Bad("two commands in one object", ["enqueue", '{"command":"a","command":"b"}'], "command"),
]

# Of each field what JSON can hold; test_jobs.py has the other bad values. The last fields belong to the queue.
BAD_FIELDS = [
    Bad(f"the field {part}"[:60], job(part), name)
    for name, parts in {
        "colour": ['"colour":"red"'],
        "prioritty": ['"prioritty":1'],
        r"\bid\b": ['"id":"a","id":"a"', '"id":5', '"id":"../a"', '"id":"a\\n"'],
        "max_retries": ['"max_retries":-1', '"max_retries":"3"'],
        "priority": ['"priority":NaN', '"priority":"high"', '"priority":1' + "0" * 30, '"priority":1e400'],
        "timeout": ['"timeout":-1', '"timeout":"soon"', '"timeout":Infinity', '"timeout":1' + "0" * 400],
        "delay": ['"delay":"later"', '"delay":-Infinity', '"delay":1e15'],
        "run_at": ['"run_at":"some day"', '"run_at":"2099-13-01T00:00:00Z"', '"run_at":"25:61"'],
        # reading: two start times contradict each other.
        "delay|run_at": ['"run_at":"+10m","delay":5'],
        "cwd": ['"cwd":5'],
        "env": ['"env":"A=1"', '"env":{"A=B":"x"}'],
        "tags": ['"tags":5'],
        "unique": ['"unique":["k"]'],
        "after": ['"after":"waiting"', '"after":[{"id":"waiting","some":true}]'],
        "no_retry_on": ['"no_retry_on":"some"', '"no_retry_on":"78-64"'],
        "state": ['"state":"processing"', '"state":"completed"'],
        "attempts": ['"attempts":1'],
        "worker": ['"worker":"w1"'],
        "finished_at": ['"finished_at":"2025-01-01T00:00:00.000Z"'],
        "tags|deeply": ['"tags":' + "[" * 5000 + "]" * 5000],
        "field": ['"\\ud800":1'],
    }.items()
    for part in parts
]

BAD_OPTIONS = [
    Bad("an unknown option of enqueue", ["enqueue", "--colour", "red", "true"], "--colour"),
    *[
        Bad(f"--{name}={value}"[:60], ["enqueue", f"--{name}={value}", "true"], name.replace("-", "[-_]"))
        for name, values in {
            "id": ["a/b", ""], "max-retries": ["many", "-1", "1001"], "priority": ["high", "1" + "0" * 30, "1e3"],
            "timeout": ["soon", "-1", "9" * 400, "73000d"], "delay": ["later", "-5s"], "env": ["=x", ""],
            "at": ["some day", "12:60", "10000-01-01", "2099-01-01T00:00+99:99"], "no-retry-on": ["some", "2,64-"],
        }.items()
        for value in values
    ],
    Bad("an option without its value", ["enqueue", "--id"], "--id"),
    # reading: two start times contradict each other.
    Bad("--at and --delay together", ["enqueue", "--at", "+10m", "--delay", "5", "true"], "delay"),
    Bad("an own option after the words", ["enqueue", "echo", "--tag", "x"], "--tag"),
    Bad("an own option with _ after the words", ["enqueue", "echo", "--max_retries", "3"], "--max[-_]retries"),
    Bad("--help after the words", ["enqueue", "ls", "--help"], "--help"),
    Bad("an own option after the words, mended by --", ["enqueue", "grep", "--json", "file"], r"--(?![a-z])"),
    # reading: --command is one way to give the command, words are another; both at once is a mistake.
    Bad("--command and a word", ["enqueue", "--command", "true", "false"], "command"),
    # reading: `--unique=KEY` is never the command, so here the command is missing.
    Bad("--unique=KEY without a command", ["enqueue", "--unique=k"], "command"),
    Bad("a file that does not exist", ["enqueue", "--file", "/nonexistent/jobs.txt"], "/nonexistent/jobs.txt"),
    Bad("a file that is a directory", ["enqueue", "--file", "/"], "/"),
    # reading: one source of jobs at a time.
    Bad("--file and a word", ["enqueue", "--file", "/dev/null", "true"], "--file"),
    Bad("--file and --command", ["enqueue", "--file", "/dev/null", "--command", "true"], "--file|--command"),
    Bad("--file and --stream", ["enqueue", "--file", "/dev/null", "--stream"], "--file|--stream"),
    Bad("--stream and a word", ["enqueue", "--stream", "true"], "--stream", stdin=""),
    # reading: one id cannot be the default of many lines.
]  # fmt: skip

BAD_LISTS = [
    Bad("a bad line", ["enqueue", "--file", "-"], r"\b2\b", stdin=line('{"command":')),
    Bad("a line with a bad id", ["enqueue", "--file", "-"], r"\bid\b", stdin=line('{"id":"/","command":"a"}')),
    Bad("a line with a NUL", ["enqueue", "--file", "-"], r"\b2\b", stdin=line("echo \0")),
    Bad("a line that is not UTF-8", ["enqueue", "--file", "-"], r"UTF-?8|\b2\b", stdin=line(b"echo \xff")),
    Bad("an array cut short", ["enqueue", "--file", "-"], "JSON", stdin='[\n{"command":"true"},\n'),
    Bad("an array with words after it", ["enqueue", "--file", "-"], "JSON", stdin="[\n]\necho\n"),
    Bad("a file whose object is cut short", ["enqueue", "--file", "-"], "JSON", stdin='{\n"command": "true"\n'),
    Bad("a taken id in a line", ["enqueue", "--file", "-"], "waiting", REFUSED, line('{"id":"waiting","command":"a"}')),
    Bad("an id given by two lines", ["enqueue", "--file", "-"], "twin", REFUSED, '{"id":"twin","command":"a"}\n' * 2),
    Bad("a bad line in a stream", ["enqueue", "--stream"], "JSON", REFUSED, '{"command":\n'),
]  # fmt: skip

REFUSALS = [
    Bad("an id that is taken", ["enqueue", "--id", "waiting", "true"], "waiting", REFUSED),
    Bad("a JSON id that is taken", ["enqueue", '{"id":"waiting","command":"a"}'], "waiting", REFUSED),
    *[
        Bad(f"{command} of an unknown id", [*command.split(), "nosuch"], "nosuch", REFUSED)
        for command in ("show", "logs", "wait", "cancel", "retry", "dlq show", "dlq retry", "dlq purge --yes")
    ],
    *[
        Bad(f"{command} of a known and an unknown id", [*command.split(), "nosuch"], "nosuch", REFUSED)
        for command in ("show gone", "wait gone", "cancel waiting", "retry gone", "dlq purge --yes gone", "rerun ok")
    ],
    *[
        Bad(f"{command}, a pending job", command.split(), "waiting", REFUSED)
        for command in ("retry waiting", "dlq show waiting", "dlq retry gone waiting", "dlq purge waiting --yes")
    ],
    *[  # all or none: the first of two would do
        Bad(f"{command} of a job in another state", command.split(), command.split()[-1], REFUSED)
        for command in (
            "cancel waiting ok", "cancel flaky boom", "retry boom ok", "dlq retry boom flaky", "dlq retry boom ok",
            "dlq purge --yes boom flaky", "dlq purge --yes boom ok", "edit --priority 1 waiting ok",
            "edit --priority 1 gone", "dlq show ok", "dlq show flaky", "edit --priority 9 --max-retries 1 flaky",
        )
    ],
    # reading: an id that no job can have is unknown (1), not wrong usage (2).
    Bad("show of an impossible id", ["show", "../jobs"], "jobs", REFUSED),
    Bad("logs of an attempt that was never made", ["logs", "waiting", "--attempt", "7"], "7", REFUSED),
]  # fmt: skip

BAD_USAGE = [
    Bad("an unknown command", ["nonsense"], "nonsense"),
    Bad("an unknown option", ["--nonsense"], "--nonsense"),
    *[
        Bad(f"an unknown {group} command", [group, "nonsense"], "nonsense")
        for group in ("dlq", "config", "worker")
    ],
    *[
        Bad(f"{args}, a word for a number", [*args.split(), "few", *more], "few")
        for args, *more in [
            ("list --limit",), ("logs waiting --attempt",), ("logs waiting --tail",), ("wait gone --timeout",),
            ("purge --older-than", "--yes"), ("dlq list --limit",), ("dlq purge --all --older-than", "--yes"),
            ("worker start --count",), ("worker stop --timeout",), ("stats --since",), ("stats --by",),
            ("status --watch",), ("dlq retry --all --spread",), ("dlq retry gone --at",), ("edit waiting --priority",),
        ]
    ],
    *[
        Bad(f"{args}, a word too many", [*args.split(), "more"], "more")
        for args in ("list", "pause", "worker start", "config show", "config set runner sh")
    ],
    *[
        Bad(f"edit {' '.join(options)}", ["edit", "waiting", *options], word)
        for word, *options in [
            ("what",), ("command", "--command", ""), ("at", "--at", "soon"), ("timeout", "--timeout", "-1"),
            ("NOSUCHVARIABLE", "--env", "NOSUCHVARIABLE"),
        ]
    ],
    *[
        Bad(f"{args} without an id", args.split(), "ID")
        for args in ("show", "logs", "cancel", "retry", "rerun", "dlq show")
    ],
    Bad("list of an unknown state", ["list", "--state", "sleeping"], "sleeping"),
    Bad("list with an unknown option", ["list", "--colour"], "--colour"),
    # reading: `[--json | --ids]` are two forms of one output.
    Bad("list in two forms", ["list", "--json", "--ids"], "--ids|--json"),
    # reading: with nothing named there is nothing to wait for, which a script did not mean.
    Bad("wait for nothing", ["wait"], "--all|ID"),
    Bad("wait for an id and for all", ["wait", "waiting", "--all"], "--all"),
    Bad("purge without --yes", ["purge"], "--yes"),
    Bad("purge without --yes, answered by a pipe", ["purge"], "--yes", stdin="y\n"),
    Bad("purge of waiting jobs", ["purge", "--state", "pending", "--yes"], "pending"),
    Bad("purge of an unknown state", ["purge", "--state", "sleeping", "--yes"], "sleeping"),
    Bad("dlq retry of nothing named", ["dlq", "retry"], "--all"),
    Bad("dlq purge of nothing named", ["dlq", "purge", "--yes"], "--all"),
    Bad("dlq purge of all without --yes", ["dlq", "purge", "--all"], "--yes"),
    Bad("dlq purge of an id without --yes", ["dlq", "purge", "gone"], "--yes"),
    Bad("worker start with no thread", ["worker", "start", "--count", "0"], "count"),
    Bad("completion for no shell", ["completion"], "bash"),
    Bad("completion for another shell", ["completion", "tcsh"], "tcsh"),
    Bad("stats in two forms", ["stats", "--json", "--prometheus"], "--json|--prometheus"),
    Bad("a watch in JSON", ["status", "--watch", "1", "--json"], "--watch"),
    Bad("--wait with --json", ["enqueue", "--wait", "--json", "true"], "--wait"),
    Bad("--wait with --file", ["enqueue", "--wait", "--file", "-"], "--wait", stdin="true\n"),
    Bad("--wait with --stream", ["enqueue", "--wait", "--stream"], "--wait", stdin="true\n"),
    Bad("--stream with --json", ["enqueue", "--json", "--stream"], "--stream", stdin="true\n"),
    Bad("dlq retry --cancelled without --all", ["dlq", "retry", "gone", "--cancelled"], "--all"),
    Bad("dlq retry of what matches", ["dlq", "retry", "--match", "exit"], "--all"),
    Bad("dlq retry of ids and of all", ["dlq", "retry", "gone", "--all"], "--all"),
    Bad("dlq retry with an empty command", ["dlq", "retry", "gone", "--command", ""], "command"),
    Bad("dlq purge of ids and of all", ["dlq", "purge", "gone", "--all", "--yes"], "--all"),
]  # fmt: skip


BAD_SETTINGS = [
    Bad("get of an unknown key", ["config", "get", "colour"], "colour"),
    Bad("set of an unknown key", ["config", "set", "colour", "red"], "colour"),
    Bad("unset of an unknown key", ["config", "unset", "colour"], "colour"),
    Bad("set without a value", ["config", "set", "max-retries"], "VALUE"),
    *[
        Bad(f"the setting {key} {value}"[:60], ["config", "set", key, value], key.replace("_", "[-_]"))
        for key, value in [
            ("max_retries", "many"), ("max_retries", "1" + "0" * 30), ("backoff_base", "fast"), ("backoff_max", "long"),
            ("backoff_jitter", "2"), ("job_timeout", "soon"), ("no_retry_on", "78-64"), ("grace_period", "short"),
            ("worker_count", "0"), ("limits", "gpu"), ("limits", "gpu=1,gpu=2"), ("fsync", "sometimes"),
            ("lock_timeout", "long"), ("keep_completed", "a while"), ("log_max", "big"), ("keep_env", "QUEUECTL_X"),
            ("paused", "perhaps"),
        ]
    ],
    Bad("max-retries below zero", ["config", "set", "--", "max-retries", "-1"], "max[-_]retries"),
]  # fmt: skip

NOT_UTF8 = "\udcff"  # as Python gives an argument's byte 0xff
BAD_BYTES = [
    *[
        Bad(f"{' '.join(args)!a} is not UTF-8", args, word)
        for word, *args in [
            ("UTF-8", "enqueue", "echo " + NOT_UTF8), ("UTF-8", "enqueue", "--", "echo", NOT_UTF8),
            ("UTF-8", "enqueue", '{"command":"' + NOT_UTF8 + '"}'), ("id", "enqueue", "--id", NOT_UTF8, "true"),
            ("tags", "enqueue", "--tag", NOT_UTF8, "true"), ("cwd", "enqueue", "--cwd", "/" + NOT_UTF8, "true"),
            ("env", "enqueue", "--env", f"A={NOT_UTF8}", "true"), ("env", "enqueue", "--env", f"{NOT_UTF8}=a", "true"),
            ("unique", "enqueue", f"--unique={NOT_UTF8}", "true"), ("--at", "enqueue", "--at", NOT_UTF8, "true"),
            ("timeout", "enqueue", "--timeout", NOT_UTF8, "true"), ("on", "enqueue", "--no-retry-on", NOT_UTF8, "true"),
            ("nonexistent", "enqueue", "--file", "/nonexistent/" + NOT_UTF8),
            ("runner", "config", "set", "runner", NOT_UTF8),
            ("on_dead", "config", "set", "on-dead", NOT_UTF8), ("limits", "config", "set", "limits", NOT_UTF8 + "=1"),
            ("setting", "config", "get", NOT_UTF8), ("--state", "list", "--state", NOT_UTF8),
            ("tags", "worker", "start", "--drain", "--tag", NOT_UTF8), ("option", "list", "--" + NOT_UTF8),
            ("command", NOT_UTF8),
        ]
    ],
    Bad("show of an id that is not UTF-8", ["show", NOT_UTF8], "no job", REFUSED),
    Bad("an array that is not UTF-8", ["enqueue", "--file", "-"], "UTF-8", stdin=b'[\n{"command":"\xff"}]'),
    Bad("a stream that is not UTF-8", ["enqueue", "--stream"], "UTF-8", REFUSED, b"echo \xff\n"),
    Bad("UTF-16", ["enqueue", "--file", "-"], "UTF-8", stdin="echo é\n".encode("utf-16")),
    Bad("an id with an escape", ["enqueue", "--id", "a\x1b[31m", "true"], "id"),
    Bad("an id with a bell", job('"id":"a\\u0007"'), "id"),
    Bad("a tag with a newline", ["enqueue", "--tag", "a\nb", "true"], "tags"),
    Bad("a state with an escape", ["list", "--state", "\x1b]0;x\x07"], "--state"),
    Bad("a limit with an escape", ["list", "--limit", "\x1b[2J"], "--limit"),
    Bad("a command with an escape", ["\x1b[31m"], "command"),
    Bad("an option with an escape", ["list", "--\x1b[31m"], "option"),
    Bad("a word too many with an escape", ["list", "\x1b[31m"], "argument"),
    Bad("a duration with an escape", ["enqueue", "--delay", "\x1b[31m", "true"], "--delay"),
    Bad("a file with an escape", ["enqueue", "--file", "/nonexistent/\x1b[31m\u202e"], "nonexistent"),
    Bad("a setting with an escape", ["config", "set", "\x9b31m", "1"], "setting"),
    Bad("a field with an escape", job('"\\u001b[31m":1'), "field"),
    Bad("show of an id that sets the title", ["show", "a\x1b]0;title\x07\x9b2J\rb"], "no job", REFUSED),
    Bad("logs of an id with a newline", ["logs", "a\nb"], "no job", REFUSED),
]  # fmt: skip

LONG = "x" * 200
BAD_IDS = [
    *[
        Bad(f"an id that is the path {path}", ["enqueue", "--id", path, "true"], r"\bid\b")
        for path in ("~/a", "C:\\a", "*")
    ],
    Bad("an id of 200 characters", ["enqueue", "--id", LONG, "true"], "128"),
    Bad("show of 200 characters", ["show", LONG], LONG[:20], REFUSED),
    *[
        Bad(f"{command} of a path", [command, "../../etc/passwd"], "passwd", REFUSED)
        for command in ("logs", "wait", "cancel", "retry", "rerun")
    ],
    Bad("logs of an empty id", ["logs", ""], "no job", REFUSED),
    Bad("dlq purge of a path", ["dlq", "purge", "../../jobs.json", "--yes"], "jobs.json", REFUSED),
    Bad("edit of an unknown id", ["edit", "nosuch", "--priority", "1"], "nosuch", REFUSED),
]

BAD_NUMBERS = [
    Bad("a limit beyond all bounds", ["list", "--limit", "9" * 30], "--limit"),
    Bad("a limit of 5000 digits", ["list", "--limit", "9" * 5000], "--limit"),
    Bad("a limit with a fraction", ["list", "--limit", "1.5"], "--limit"),
    Bad("an attempt of nought", ["logs", "ok", "--attempt", "0"], "--attempt"),
    Bad("an attempt beyond all bounds", ["logs", "ok", "--attempt", "9" * 30], "attempt", REFUSED),
    Bad("a top level NaN in a line", ["enqueue", "--file", "-"], "NaN|object|JSON", stdin="[\nNaN\n]"),
    Bad("deep nesting in an array", ["enqueue", "--file", "-"], "deeply|JSON", stdin="[\n" + "[" * 100_000),
    Bad("after an unknown job", ["enqueue", "--after", "nosuch", "true"], "nosuch", REFUSED),
    Bad("after any end of an unknown job", ["enqueue", "--after-any", "nosuch", "true"], "nosuch", REFUSED),
    Bad("after itself", ["enqueue", "--id", "own", "--after", "own", "true"], "own", REFUSED),
    Bad("a line after a later one", ["enqueue", "--file", "-"], "later-on", REFUSED,
        '{"command":"a","after":["later-on"]}\n{"id":"later-on","command":"b"}\n'),
    Bad("1001 threads", ["worker", "start", "--count", "1001"], "count"),
]  # fmt: skip

BAD_NAMES = [
    Bad(f"{wrong} for {right}", [*command, wrong, "1"], re.escape(right))
    for command, wrong, right in [
        (["enqueue"], "--priorty", "--priority"), (["enqueue"], "--no-retry", "--no-retry-on"),
        (["enqueue"], "--tags", "--tag"), (["list"], "--stat", "--state"), (["logs", "ok"], "--folow", "--follow"),
        (["wait", "ok"], "--time-out", "--timeout"), (["dlq", "retry"], "--spred", "--spread"),
        (["worker", "start"], "--drian", "--drain"), (["edit", "ok"], "--prio", "--priority"),
    ]
]  # fmt: skip
BAD_NAMES += [
    Bad(f"the field {wrong} for {right}", job(f'"{wrong}":1'), f"Its name is '{right}'")
    for wrong, right in [
        ("maxRetries", "max_retries"), ("max-retries", "max_retries"), ("MaxRetries", "max_retries"),
        ("maxAttempts", "max_retries"), ("retries", "max_retries"), ("runAt", "run_at"), ("startAt", "run_at"),
        ("timeoutSeconds", "timeout"), ("timeout_ms", "timeout"), ("timeLimit", "timeout"), ("delayMs", "delay"),
        ("cmd", "command"), ("Command", "command"), ("workingDir", "cwd"), ("workdir", "cwd"), ("envVars", "env"),
        ("jobId", "id"), ("ID", "id"), ("labels", "tags"), ("noRetryOn", "no_retry_on"),
    ]
]  # fmt: skip
BAD_NAMES += [
    Bad(f"the setting {wrong} for {right}", ["config", "set", wrong, "1"], f"Did you mean '{right}'")
    for wrong, right in [
        ("maxRetries", "max_retries"), ("retries", "max_retries"), ("base", "backoff_base"),
        ("timeout", "job_timeout"), ("grace", "grace_period"), ("workers", "worker_count"), ("limit", "limits"),
        ("lock", "lock_timeout"), ("keep", "keep_completed"), ("log-maxx", "log_max"), ("keepenv", "keep_env"),
        ("env", "keep_env"), ("on-death", "on_dead"),
    ]
]  # fmt: skip
BAD_NAMES += [
    Bad("enqeue", ["enqeue", "true"], "enqueue"),
    Bad("worker strat", ["worker", "strat"], "start"),
    Bad("config gett", ["config", "gett"], "get"),
    Bad("a command in capitals", ["LIST"], "LIST"),
    Bad("an option in capitals", ["list", "--STATE", "dead"], "--STATE"),
    Bad("an option of the wrong command", ["list", "--unique"], "--unique"),
    Bad("a flag with a value", ["list", "--json=yes"], "--json"),
    Bad("--state without a value", ["list", "--state"], "--state"),
    Bad("a home that is empty", ["--home", "", "list"], "--home"),
    Bad("a home that is a file", ["--home", "/dev/null", "list"], "/dev/null", STORAGE),
]

IN_PLACES = [Bad(f"a bad field, {place}", job('"priority":"é\\u001b"'), "priority", place=place) for place in PLACES]
IN_PLACES += [
    Bad("nobody to be asked, no HOME", ["purge"], "--yes", place="no HOME"),
    Bad("a result that cannot be printed", ["list", "--json"], "printed", STORAGE, place="/dev/full"),
    Bad("a status that cannot be printed", ["status"], "printed", STORAGE, place="/dev/full"),
    Bad("a log that cannot be printed", ["logs", "chatty"], "printed", STORAGE, place="/dev/full"),
    Bad("a help that cannot be printed", ["--help"], "printed", STORAGE, place="/dev/full"),
    Bad("a version that cannot be printed", ["--version"], "printed", STORAGE, place="/dev/full"),
]

TABLE = [
    *BAD_JSON, *BAD_COMMANDS, *BAD_FIELDS, *BAD_OPTIONS, *BAD_LISTS, *REFUSALS, *BAD_USAGE, *BAD_SETTINGS, *BAD_BYTES,
    *BAD_IDS, *BAD_NUMBERS, *BAD_NAMES, *IN_PLACES,
]  # fmt: skip


def tree(home: Path) -> dict[str, bytes]:
    """Every file of the home, byte for byte."""
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def in_place(bad: Bad) -> Any:
    """The same call by a shell, which can close descriptors, with the place's variables."""
    changes, stdout = PLACES[bad.place or ""]
    env = {name: value for name, value in {**os.environ, **changes}.items() if value is not None}
    redirect = {None: "", "closed": " >&-", "/dev/full": " >/dev/full"}[stdout]
    return subprocess.run(
        ["sh", "-c", f'exec "$@"{redirect}', "sh", sys.executable, str(PROGRAM), *bad.args],
        input=bad.stdin.encode() if isinstance(bad.stdin, str) else bad.stdin or b"",
        capture_output=True,
        env=env,
        timeout=60,
    )


@pytest.mark.parametrize("bad", TABLE, ids=[bad.what for bad in TABLE])
def test_bad_input_is_refused_and_changes_nothing(run, process, drained, bad):
    before = tree(drained)
    if bad.place is not None:
        if bad.place == "/dev/full" and not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full")
        done = in_place(bad)
        code, out, err = done.returncode, done.stdout.decode(), done.stderr.decode()
    else:
        call = process if any(NOT_UTF8 in word for word in bad.args) else run
        result = call(*bad.args, code=None, input=bad.stdin)
        code, out, err = result.code, result.out, result.err
    assert (code, out) == (bad.code, ""), err
    assert "Traceback" not in err
    message = err[err.index("Error:") :]
    assert re.search(bad.word, message, re.IGNORECASE), message
    assert NEXT.search(err) or "printed" in message, f"not a word about what to do next: {message}"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", err), "an error can drive the terminal"
    assert tree(drained) == before


def test_no_case_of_the_table_has_the_name_of_another():
    assert len({bad.what for bad in TABLE}) == len(TABLE)


BEYOND = [
    ("seq", 10**12 + 1), ("runs", 10**6 + 1), ("recoveries", 10**6 + 1), ("history", [{"run": "one"}]),
    ("history", "none"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BEYOND, ids=lambda value: str(value)[:20])
def test_a_hand_edit_beyond_its_bounds_is_refused(run, home, field, value):
    record = {"id": "a", "command": "true", "attempts": 0, field: value}
    (home / "jobs.json").write_text(json.dumps([record]))
    before = (home / "jobs.json").read_bytes()
    for command in (["list"], ["enqueue", "true"]):
        assert field in run(*command, code=STORAGE).err
    assert (home / "jobs.json").read_bytes() == before


def test_a_backup_of_a_queue_that_accepted_very_many_jobs_is_restored(run, home):
    record = {"id": "a", "command": "true", "seq": 10**12 - 1, "runs": 10**6}
    (home / "jobs.json").write_text(json.dumps([record]))
    run("enqueue", "--id", "next", "true")
    assert [job["seq"] for job in run("list", "--json").json] == [10**12 - 1, 10**12]
