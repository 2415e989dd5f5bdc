"""Bad input of every kind: a clear `Error:`, the documented exit code, nothing on stdout, nothing changed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]

USAGE, REFUSED = 2, 1
ASIDE = {"wait", "worker"}  # Commands that could hang this process if they took what they must refuse.


@dataclass(frozen=True)
class Bad:
    """One bad call: what is wrong with it, the arguments, and what the message must contain (a pattern)."""

    what: str
    args: list[str]
    word: str
    code: int = USAGE
    stdin: str | bytes | None = None


def job(text: str) -> list[str]:
    """`enqueue` of a JSON object that has a good command and this bad part."""
    return ["enqueue", '{"command":"true",' + text + "}"]


def line(text: str | bytes) -> bytes:
    """A list of jobs whose second line is this one."""
    return b"echo first\n" + (text.encode() if isinstance(text, str) else text) + b"\n"


BAD_JSON = [
    Bad("half a brace", ["enqueue", "{"], "JSON"),
    Bad("an object cut short", ["enqueue", '{"command":"true"'], "JSON"),
    Bad("words after the object", ["enqueue", '{"command":"true"} x'], "JSON"),
    Bad("a shell group", ["enqueue", "{ echo a; }"], "JSON"),
    Bad("a shell group is shown the way out", ["enqueue", "{ echo a; }"], "--command"),
    Bad("single quotes", ["enqueue", "{'command': 'true'}"], "JSON"),
    Bad("a comma too many", ["enqueue", '{"command":"true",}'], "JSON"),
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
    Bad("an empty command", ["enqueue", '{"command":""}'], "command"),
    Bad("a command that is a number", ["enqueue", '{"command":5}'], "command"),
    Bad("a command that is null", ["enqueue", '{"command":null}'], "command"),
    Bad("a command that is a list", ["enqueue", '{"command":["echo","a"]}'], "command"),
    Bad("a command with a NUL", ["enqueue", '{"command":"echo \\u0000"}'], "command"),
    Bad("a command with half a surrogate pair", ["enqueue", '{"command":"echo \\ud800"}'], "command"),
    Bad("a command of 131,072 bytes", ["enqueue", "x" * 131_072], "131.?071"),
    Bad("a command of 131,072 bytes in UTF-8", ["enqueue", "é" * 65_536], "131.?071"),
    Bad("words of 131,072 bytes", ["enqueue", "--", "echo", "x" * 131_067], "131.?071"),
    Bad("a JSON command of 131,072 bytes", ["enqueue", json.dumps({"command": "x" * 131_072})], "131.?071"),
    Bad("two commands in one object", ["enqueue", '{"command":"a","command":"b"}'], "command"),
]

BAD_FIELDS = [
    Bad("an unknown field", job('"colour":"red"'), "colour"),
    Bad("a misspelt field", job('"prioritty":1'), "prioritty"),
    Bad("a field in capitals", job('"PRIORITY":1'), "PRIORITY"),
    Bad("maxRetries", job('"maxRetries":1'), "max_retries"),
    Bad("runAt", job('"runAt":"+10m"'), "run_at"),
    Bad("timeout_seconds", job('"timeout_seconds":1'), r"\btimeout\b"),
    Bad("an id given twice", job('"id":"a","id":"a"'), r"\bid\b"),
    Bad("a priority given twice", job('"priority":1,"priority":2'), "priority"),
    Bad("an empty id", job('"id":""'), r"\bid\b"),
    Bad("an id that is a number", job('"id":5'), r"\bid\b"),
    Bad("an id with a space", job('"id":"a b"'), r"\bid\b"),
    Bad("an id with a slash", job('"id":"../a"'), r"\bid\b"),
    Bad("an id with a letter beyond ASCII", job('"id":"jób"'), r"\bid\b"),
    Bad("an id with digits beyond ASCII", job('"id":"job١"'), r"\bid\b"),
    Bad("an id that begins with a dot", job('"id":".a"'), r"\bid\b"),
    Bad("an id that begins with a dash", job('"id":"-a"'), r"\bid\b"),
    Bad("an id that ends with a newline", job('"id":"a\\n"'), r"\bid\b"),
    Bad("an id of 129 characters", job('"id":"' + "x" * 129 + '"'), r"\bid\b"),
    Bad("max_retries below zero", job('"max_retries":-1'), "max_retries"),
    Bad("max_retries with a fraction", job('"max_retries":1.5'), "max_retries"),
    Bad("max_retries as a text", job('"max_retries":"3"'), "max_retries"),
    Bad("max_retries as a boolean", job('"max_retries":true'), "max_retries"),
    Bad("max_retries beyond all bounds", job('"max_retries":1' + "0" * 30), "max_retries"),
    Bad("a priority that is NaN", job('"priority":NaN'), "priority"),
    Bad("a priority with a fraction", job('"priority":1.5'), "priority"),
    Bad("a priority as a text", job('"priority":"high"'), "priority"),
    Bad("a priority as a boolean", job('"priority":false'), "priority"),
    Bad("a priority beyond all bounds", job('"priority":1' + "0" * 30), "priority"),
    Bad("a priority below all bounds", job('"priority":-1' + "0" * 30), "priority"),
    Bad("a timeout below zero", job('"timeout":-1'), "timeout"),
    Bad("a timeout as a word", job('"timeout":"soon"'), "timeout"),
    Bad("a timeout with an unknown unit", job('"timeout":"10x"'), "timeout"),
    Bad("an empty timeout", job('"timeout":""'), "timeout"),
    Bad("a timeout as a boolean", job('"timeout":true'), "timeout"),
    Bad("a timeout as a list", job('"timeout":[10]'), "timeout"),
    Bad("an infinite timeout", job('"timeout":Infinity'), "timeout"),
    Bad("a timeout too large for a float", job('"timeout":1e999'), "timeout"),
    Bad("a timeout of nan seconds", job('"timeout":"nan"'), "timeout"),
    Bad("a timeout beyond all bounds", job('"timeout":1e300'), "timeout"),
    Bad("a delay below zero", job('"delay":-1'), "delay"),
    Bad("a delay as a word", job('"delay":"later"'), "delay"),
    Bad("a delay that is -Infinity", job('"delay":-Infinity'), "delay"),
    Bad("a delay beyond the calendar", job('"delay":1e15'), "delay"),
    Bad("a run_at as a word", job('"run_at":"some day"'), "run_at"),
    Bad("a run_at as a boolean", job('"run_at":true'), "run_at"),
    Bad("a run_at in a thirteenth month", job('"run_at":"2099-13-01T00:00:00Z"'), "run_at"),
    Bad("a run_at on the 30th of February", job('"run_at":"2099-02-30T00:00:00Z"'), "run_at"),
    Bad("a run_at at 25:61", job('"run_at":"25:61"'), "run_at"),
    # reading: two start times contradict each other.
    Bad("run_at and delay together", job('"run_at":"+10m","delay":5'), "delay|run_at"),
    Bad("a cwd as a number", job('"cwd":5'), "cwd"),
    Bad("a cwd with a NUL", job('"cwd":"/tmp\\u0000"'), "cwd"),
    Bad("an env as a text", job('"env":"A=1"'), "env"),
    Bad("an env with a number", job('"env":{"A":1}'), "env"),
    Bad("an env name with =", job('"env":{"A=B":"x"}'), "env"),
    Bad("an empty env name", job('"env":{"":"x"}'), "env"),
    Bad("an env value with a NUL", job('"env":{"A":"\\u0000"}'), "env"),
    Bad("tags as a number", job('"tags":5'), "tags"),
    Bad("a tag as a number", job('"tags":["a",5]'), "tags"),
    Bad("a unique key as a list", job('"unique":["k"]'), "unique"),
    Bad("a unique key as a number", job('"unique":5'), "unique"),
    Bad("no_retry_on as a word", job('"no_retry_on":"some"'), "no_retry_on"),
    Bad("no_retry_on with a fraction", job('"no_retry_on":[1.5]'), "no_retry_on"),
    Bad("no_retry_on the wrong way round", job('"no_retry_on":"78-64"'), "no_retry_on"),
    Bad("no_retry_on of a code beyond 255", job('"no_retry_on":[300]'), "no_retry_on"),
]

BAD_QUEUE_FIELDS = [
    Bad("a state", job('"state":"processing"'), "state"),
    Bad("a state of the end", job('"state":"completed"'), "state"),
    Bad("a state that is none", job('"state":5'), "state"),
    Bad("attempts", job('"attempts":1'), "attempts"),
    Bad("attempts below zero", job('"attempts":-1'), "attempts"),
    Bad("runs", job('"runs":2'), "runs"),
    Bad("a worker", job('"worker":"w1"'), "worker"),
    Bad("a slot", job('"slot":1'), "slot"),
    Bad("a start time", job('"started_at":"2025-01-01T00:00:00.000Z"'), "started_at"),
    Bad("a finish time", job('"finished_at":"2025-01-01T00:00:00.000Z"'), "finished_at"),
    Bad("a time of cancelling", job('"cancelled_at":"2025-01-01T00:00:00.000Z"'), "cancelled_at"),
    Bad("an outcome", job('"outcome":"exited"'), "outcome"),
    Bad("an exit code", job('"exit_code":0'), "exit_code"),
    Bad("a reason", job('"reason":"cancelled"'), "reason"),
]

BAD_OPTIONS = [
    Bad("an unknown option of enqueue", ["enqueue", "--colour", "red", "true"], "--colour"),
    Bad("an option without its value", ["enqueue", "--id"], "--id"),
    Bad("a bad --id", ["enqueue", "--id", "a/b", "true"], r"\bid\b"),
    Bad("an empty --id", ["enqueue", "--id", "", "true"], r"\bid\b"),
    Bad("--max-retries as a word", ["enqueue", "--max-retries", "many", "true"], "max[-_]retries"),
    Bad("--max-retries below zero", ["enqueue", "--max-retries=-1", "true"], "max[-_]retries"),
    Bad("--max-retries with a fraction", ["enqueue", "--max-retries", "1.5", "true"], "max[-_]retries"),
    Bad("--priority as a word", ["enqueue", "--priority", "high", "true"], "priority"),
    Bad("--priority beyond all bounds", ["enqueue", "--priority", "1" + "0" * 30, "true"], "priority"),
    Bad("--timeout as a word", ["enqueue", "--timeout", "soon", "true"], "timeout"),
    Bad("--timeout below zero", ["enqueue", "--timeout=-1", "true"], "timeout"),
    Bad("--timeout nan", ["enqueue", "--timeout", "nan", "true"], "timeout"),
    Bad("--timeout inf", ["enqueue", "--timeout", "inf", "true"], "timeout"),
    Bad("--delay as a word", ["enqueue", "--delay", "later", "true"], "delay"),
    Bad("--delay below zero", ["enqueue", "--delay=-5s", "true"], "delay"),
    Bad("--at as a word", ["enqueue", "--at", "some day", "true"], r"\bat\b|run_at"),
    Bad("--at 12:60", ["enqueue", "--at", "12:60", "true"], r"\bat\b|run_at"),
    Bad("--at +soon", ["enqueue", "--at", "+soon", "true"], r"\bat\b|run_at"),
    # reading: two start times contradict each other.
    Bad("--at and --delay together", ["enqueue", "--at", "+10m", "--delay", "5", "true"], "delay"),
    Bad("--env without a name", ["enqueue", "--env", "=x", "true"], "env"),
    Bad("an empty --env", ["enqueue", "--env", "", "true"], "env"),
    Bad("--no-retry-on as a word", ["enqueue", "--no-retry-on", "some", "true"], "no[-_]retry[-_]on"),
    Bad("--no-retry-on half a range", ["enqueue", "--no-retry-on", "2,64-", "true"], "no[-_]retry[-_]on"),
    Bad("--no-retry-on beyond 255", ["enqueue", "--no-retry-on", "300", "true"], "no[-_]retry[-_]on"),
    Bad("an own option after the words", ["enqueue", "echo", "--tag", "x"], "--tag"),
    Bad("an own option with = after the words", ["enqueue", "echo", "--priority=3"], "--priority"),
    Bad("an own option with _ after the words", ["enqueue", "echo", "--max_retries", "3"], "--max[-_]retries"),
    Bad("an own option after a JSON object", ["enqueue", '{"command":"true"}', "--json"], "--json"),
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
    Bad("--file and --id", ["enqueue", "--id", "a", "--file", "/dev/null"], "--id"),
]

BAD_LISTS = [
    Bad("a bad line", ["enqueue", "--file", "-"], r"\b2\b", stdin=line('{"command":')),
    Bad("a line with an unknown field", ["enqueue", "--file", "-"], "colour", stdin=line('{"colour":1}')),
    Bad("a line with a bad id", ["enqueue", "--file", "-"], r"\bid\b", stdin=line('{"id":"/","command":"a"}')),
    Bad("a line without a command", ["enqueue", "--file", "-"], "command", stdin=line('{"id":"a"}')),
    Bad("a line that is too long", ["enqueue", "--file", "-"], "131.?071", stdin=line("x" * 131_072)),
    Bad("a line with a NUL", ["enqueue", "--file", "-"], r"\b2\b", stdin=line("echo \0")),
    Bad("a line that is not UTF-8", ["enqueue", "--file", "-"], r"UTF-?8|\b2\b", stdin=line(b"echo \xff")),
    Bad(
        "a line with a state",
        ["enqueue", "--file", "-"],
        "state",
        stdin=line('{"command":"a","state":"dead"}'),
    ),
    Bad("an array cut short", ["enqueue", "--file", "-"], "JSON", stdin='[\n{"command":"true"},\n'),
    Bad("an array with words after it", ["enqueue", "--file", "-"], "JSON", stdin="[\n]\necho\n"),
    Bad("an array with a number", ["enqueue", "--file", "-"], "object|JSON", stdin="[\n5\n]\n"),
    Bad("an array with a bad job", ["enqueue", "--file", "-"], "command", stdin='[\n{"id":"a"}\n]\n'),
    Bad("an object cut short", ["enqueue", "--file", "-"], "JSON", stdin='{\n"command": "true"\n'),
    Bad(
        "a taken id in a line",
        ["enqueue", "--file", "-"],
        "waiting",
        REFUSED,
        line('{"id":"waiting","command":"a"}'),
    ),
    Bad(
        "an id given by two lines",
        ["enqueue", "--file", "-"],
        "twin",
        REFUSED,
        '{"id":"twin","command":"a"}\n{"id":"twin","command":"b"}\n',
    ),
    Bad("a bad line in a stream", ["enqueue", "--stream"], "JSON", REFUSED, '{"command":\n'),
    Bad(
        "a taken id in a stream",
        ["enqueue", "--stream"],
        "waiting",
        REFUSED,
        '{"id":"waiting","command":"a"}\n',
    ),
]

REFUSALS = [
    Bad("an id that is taken", ["enqueue", "--id", "waiting", "true"], "waiting", REFUSED),
    Bad("an id that is taken by a dead job", ["enqueue", "--id", "stopped", "true"], "stopped", REFUSED),
    Bad("a JSON id that is taken", ["enqueue", '{"id":"waiting","command":"a"}'], "waiting", REFUSED),
    Bad("show of an unknown id", ["show", "nosuch"], "nosuch", REFUSED),
    # reading: an id that no job can have is unknown (1), not wrong usage (2).
    Bad("show of an impossible id", ["show", "../jobs"], "jobs", REFUSED),
    Bad("show of one known and one unknown id", ["show", "waiting", "nosuch"], "nosuch", REFUSED),
    Bad("show --json of an unknown id", ["show", "nosuch", "--json"], "nosuch", REFUSED),
    Bad("logs of an unknown id", ["logs", "nosuch"], "nosuch", REFUSED),
    Bad("logs of an attempt that was never made", ["logs", "waiting", "--attempt", "7"], "7", REFUSED),
    Bad("wait for an unknown id", ["wait", "nosuch"], "nosuch", REFUSED),
    Bad("wait for one known and one unknown id", ["wait", "waiting", "nosuch"], "nosuch", REFUSED),
    Bad("cancel of an unknown id", ["cancel", "nosuch"], "nosuch", REFUSED),
    Bad("cancel of a dead job", ["cancel", "stopped"], "stopped", REFUSED),
    Bad("cancel of one known and one unknown id", ["cancel", "waiting", "nosuch"], "nosuch", REFUSED),
    Bad("cancel of a waiting and a dead job", ["cancel", "waiting", "stopped"], "stopped", REFUSED),
    Bad("retry of an unknown id", ["retry", "nosuch"], "nosuch", REFUSED),
    Bad("retry of a pending job", ["retry", "waiting"], "waiting", REFUSED),
    Bad("retry of a dead and an unknown job", ["retry", "stopped", "nosuch"], "nosuch", REFUSED),
    Bad("dlq show of an unknown id", ["dlq", "show", "nosuch"], "nosuch", REFUSED),
    Bad("dlq show of a pending job", ["dlq", "show", "waiting"], "waiting", REFUSED),
    Bad("dlq retry of an unknown id", ["dlq", "retry", "nosuch"], "nosuch", REFUSED),
    Bad("dlq retry of a pending job", ["dlq", "retry", "waiting"], "waiting", REFUSED),
    Bad("dlq retry names the state it found", ["dlq", "retry", "waiting"], "pending", REFUSED),
    Bad("dlq retry of a dead and a pending job", ["dlq", "retry", "stopped", "waiting"], "waiting", REFUSED),
    Bad("dlq purge of an unknown id", ["dlq", "purge", "nosuch", "--yes"], "nosuch", REFUSED),
    Bad("dlq purge of a pending job", ["dlq", "purge", "waiting", "--yes"], "waiting", REFUSED),
    Bad("dlq purge of a dead and an unknown id", ["dlq", "purge", "stopped", "b7", "--yes"], "b7", REFUSED),
]

BAD_USAGE = [
    Bad("an unknown command", ["nonsense"], "nonsense"),
    Bad("an unknown option", ["--nonsense"], "--nonsense"),
    Bad("an unknown dlq command", ["dlq", "nonsense"], "nonsense"),
    Bad("an unknown config command", ["config", "nonsense"], "nonsense"),
    Bad("an unknown worker command", ["worker", "nonsense"], "nonsense"),
    Bad("list of an unknown state", ["list", "--state", "sleeping"], "sleeping"),
    Bad("list with a word too many", ["list", "waiting"], "waiting"),
    Bad("list with a limit as a word", ["list", "--limit", "few"], "few"),
    Bad("list with a limit below zero", ["list", "--limit", "-1"], "-1|limit"),
    Bad("list with an unknown option", ["list", "--colour"], "--colour"),
    # reading: `[--json | --ids]` are two forms of one output.
    Bad("list in two forms", ["list", "--json", "--ids"], "--ids|--json"),
    Bad("show without an id", ["show"], "ID"),
    Bad("status with a word too many", ["status", "waiting"], "waiting"),
    Bad("logs without an id", ["logs"], "ID"),
    Bad("logs of an attempt as a word", ["logs", "waiting", "--attempt", "last"], "last"),
    Bad("logs with a tail as a word", ["logs", "waiting", "--tail", "few"], "few"),
    Bad("logs with a tail below zero", ["logs", "waiting", "--tail", "-1"], "-1|tail"),
    # reading: with nothing named there is nothing to wait for, which a script did not mean.
    Bad("wait for nothing", ["wait"], "--all|ID"),
    Bad("wait for an id and for all", ["wait", "waiting", "--all"], "--all"),
    Bad("wait with a timeout as a word", ["wait", "stopped", "--timeout", "soon"], "soon"),
    Bad("wait with a timeout below zero", ["wait", "stopped", "--timeout=-1"], "timeout"),
    Bad("cancel without an id", ["cancel"], "ID"),
    Bad("retry without an id", ["retry"], "ID"),
    Bad("pause with a word too many", ["pause", "now"], "now"),
    Bad("resume with a word too many", ["resume", "now"], "now"),
    Bad("purge without --yes", ["purge"], "--yes"),
    Bad("purge without --yes, answered by a pipe", ["purge"], "--yes", stdin="y\n"),
    Bad("purge of waiting jobs", ["purge", "--state", "pending", "--yes"], "pending"),
    Bad("purge of an unknown state", ["purge", "--state", "sleeping", "--yes"], "sleeping"),
    Bad("purge with an age as a word", ["purge", "--older-than", "old", "--yes"], "old"),
    Bad("purge with an age below zero", ["purge", "--older-than=-1", "--yes"], "older[-_]than"),
    Bad("purge with a word too many", ["purge", "waiting", "--yes"], "waiting"),
    Bad("dlq list with a limit as a word", ["dlq", "list", "--limit", "few"], "few"),
    Bad("dlq show without an id", ["dlq", "show"], "ID"),
    Bad("dlq retry of nothing named", ["dlq", "retry"], "--all"),
    Bad("dlq purge of nothing named", ["dlq", "purge", "--yes"], "--all"),
    Bad("dlq purge of all without --yes", ["dlq", "purge", "--all"], "--yes"),
    Bad("dlq purge of an id without --yes", ["dlq", "purge", "stopped"], "--yes"),
    Bad("dlq purge with an age as a word", ["dlq", "purge", "--all", "--older-than", "old", "--yes"], "old"),
    Bad("worker start with no thread", ["worker", "start", "--count", "0"], "count"),
    Bad("worker start with a count as a word", ["worker", "start", "--count", "few"], "few"),
    Bad("worker start with a word too many", ["worker", "start", "now"], "now"),
    Bad("worker stop with a timeout as a word", ["worker", "stop", "--timeout", "soon"], "soon"),
    Bad("worker list with a word too many", ["worker", "list", "all"], "all"),
    Bad("doctor with a word too many", ["doctor", "please"], "please"),
]


def setting(key: str, value: str, what: str) -> Bad:
    return Bad(f"{key} {what}", ["config", "set", key, value], key.replace("_", "[-_]"))


BAD_SETTINGS = [
    Bad("get of an unknown key", ["config", "get", "colour"], "colour"),
    Bad("set of an unknown key", ["config", "set", "colour", "red"], "colour"),
    Bad("unset of an unknown key", ["config", "unset", "colour"], "colour"),
    Bad("set of a key that is nearly right", ["config", "set", "max-retry", "5"], "max[-_]retries"),
    Bad("set without a value", ["config", "set", "max-retries"], "VALUE"),
    Bad("set without a key", ["config", "set"], "KEY"),
    Bad("set with a word too many", ["config", "set", "runner", "sh", "-c"], "-c|argument"),
    Bad("unset without a key", ["config", "unset"], "KEY"),
    Bad("show with a word too many", ["config", "show", "max-retries"], "max-retries"),
    setting("max_retries", "many", "as a word"),
    setting("max_retries", "1.5", "with a fraction"),
    setting("max_retries", "", "empty"),
    setting("max_retries", "1" + "0" * 30, "beyond all bounds"),
    setting("backoff_base", "fast", "as a word"),
    setting("backoff_base", "nan", "nan"),
    setting("backoff_base", "inf", "infinite"),
    setting("backoff_max", "long", "as a word"),
    setting("backoff_jitter", "2", "above one"),
    setting("backoff_jitter", "much", "as a word"),
    setting("job_timeout", "soon", "as a word"),
    setting("no_retry_on", "some", "as a word"),
    setting("no_retry_on", "78-64", "the wrong way round"),
    setting("grace_period", "short", "as a word"),
    setting("worker_count", "0", "of none"),
    setting("worker_count", "few", "as a word"),
    setting("limits", "gpu", "without a number"),
    setting("limits", "gpu=many", "with a word for a number"),
    setting("limits", "gpu=-1", "below zero"),
    setting("limits", "=1", "without a tag"),
    setting("fsync", "sometimes", "of an unknown kind"),
    setting("lock_timeout", "long", "as a word"),
    setting("keep_completed", "a while", "as words"),
    setting("log_max", "big", "as a word"),
    setting("paused", "perhaps", "neither true nor false"),
    Bad("max-retries below zero", ["config", "set", "--", "max-retries", "-1"], "max[-_]retries"),
    Bad("backoff-base below zero", ["config", "set", "--", "backoff-base", "-1"], "backoff[-_]base"),
    Bad("job-timeout below zero", ["config", "set", "--", "job-timeout", "-1"], "job[-_]timeout"),
    Bad("lock-timeout below zero", ["config", "set", "--", "lock-timeout", "-1"], "lock[-_]timeout"),
    Bad("grace-period below zero", ["config", "set", "--", "grace-period", "-1"], "grace[-_]period"),
    Bad("log-max below zero", ["config", "set", "--", "log-max", "-1"], "log[-_]max"),
]

TABLE = [
    *BAD_JSON,
    *BAD_COMMANDS,
    *BAD_FIELDS,
    *BAD_QUEUE_FIELDS,
    *BAD_OPTIONS,
    *BAD_LISTS,
    *REFUSALS,
    *BAD_USAGE,
    *BAD_SETTINGS,
]


def files(home: Path) -> dict[str, bytes | None]:
    paths = [home / name for name in ("jobs.json", "dlq.json", "config.json")]
    return {path.name: path.read_bytes() if path.exists() else None for path in paths}


@pytest.mark.parametrize("bad", TABLE, ids=[bad.what for bad in TABLE])
def test_bad_input_is_refused_and_changes_nothing(run: Call, process: Call, home: Path, bad: Bad) -> None:
    run("config", "set", "max-retries", "4")
    run("enqueue", "--id", "stopped", "true")
    run("cancel", "stopped")
    run("enqueue", "--id", "waiting", "true")
    before = files(home)
    if bad.stdin is None and bad.args[0] not in ASIDE:
        result = run(*bad.args, code=bad.code)
    else:
        result = process(*bad.args, code=bad.code, input=bad.stdin, timeout=20)
    assert "Error:" in result.err, result.err
    message = result.err[result.err.index("Error:") :]
    assert re.search(bad.word, message, re.IGNORECASE), message
    assert result.out == ""
    assert files(home) == before


def test_the_command_line_bytes_must_be_utf8(process: Call, jobs: Callable[[], dict[str, Any]]) -> None:
    assert "Error:" in process("enqueue", "echo \udcff", code=2).err and jobs() == {}


def test_an_error_is_cleaned_of_control_characters(run: Call) -> None:
    # reading: a message is output to a person too, and names what was given.
    error = run("show", "a\x1b]0;title\x07\x9b2J\rb", code=1).err
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", error)
