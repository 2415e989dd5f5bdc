"""Bad input of every kind, as one table: a clear `Error:` with what, where and what next, the documented exit code,
nothing on stdout, and not one byte of the home changed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import PROGRAM

pytest_plugins = ["drained_home"]

Call = Callable[..., Any]

USAGE, REFUSED, STORAGE = 2, 1, 3

# Where a call may be made, besides an ordinary place: (variables set, None for those taken away; what stdout is).
PLACES: dict[str, tuple[dict[str, str | None], str | None]] = {
    "no HOME": ({"HOME": None}, None),
    "no TERM": ({"TERM": None}, None),
    "a dumb terminal": ({"TERM": "dumb", "COLUMNS": "1"}, None),
    "the locale C": ({"LC_ALL": "C", "LANG": None}, None),
    "the locale C without UTF-8": ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, None),
    "an ASCII stdout": ({"PYTHONIOENCODING": "ascii"}, None),
    "colours forced": ({"FORCE_COLOR": "1"}, None),
    "closed stdout": ({}, "closed"),
    "/dev/full": ({}, "/dev/full"),
}

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
    Bad("a file whose object is cut short", ["enqueue", "--file", "-"], "JSON", stdin='{\n"command": "true"\n'),
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
    Bad("an id that is taken by a dead job", ["enqueue", "--id", "gone", "true"], "gone", REFUSED),
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
    Bad("cancel of a dead job", ["cancel", "gone"], "gone", REFUSED),
    Bad("cancel of one known and one unknown id", ["cancel", "waiting", "nosuch"], "nosuch", REFUSED),
    Bad("cancel of a waiting and a dead job", ["cancel", "waiting", "gone"], "gone", REFUSED),
    Bad("retry of an unknown id", ["retry", "nosuch"], "nosuch", REFUSED),
    Bad("retry of a pending job", ["retry", "waiting"], "waiting", REFUSED),
    Bad("retry of a dead and an unknown job", ["retry", "gone", "nosuch"], "nosuch", REFUSED),
    Bad("dlq show of an unknown id", ["dlq", "show", "nosuch"], "nosuch", REFUSED),
    Bad("dlq show of a pending job", ["dlq", "show", "waiting"], "waiting", REFUSED),
    Bad("dlq retry of an unknown id", ["dlq", "retry", "nosuch"], "nosuch", REFUSED),
    Bad("dlq retry of a pending job", ["dlq", "retry", "waiting"], "waiting", REFUSED),
    Bad("dlq retry names the state it found", ["dlq", "retry", "waiting"], "pending", REFUSED),
    Bad("dlq retry of a dead and a pending job", ["dlq", "retry", "gone", "waiting"], "waiting", REFUSED),
    Bad("dlq purge of an unknown id", ["dlq", "purge", "nosuch", "--yes"], "nosuch", REFUSED),
    Bad("dlq purge of a pending job", ["dlq", "purge", "waiting", "--yes"], "waiting", REFUSED),
    Bad("dlq purge of a dead and an unknown id", ["dlq", "purge", "gone", "b7", "--yes"], "b7", REFUSED),
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
    Bad("wait with a timeout as a word", ["wait", "gone", "--timeout", "soon"], "soon"),
    Bad("wait with a timeout below zero", ["wait", "gone", "--timeout=-1"], "timeout"),
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
    Bad("dlq purge of an id without --yes", ["dlq", "purge", "gone"], "--yes"),
    Bad("dlq purge with an age as a word", ["dlq", "purge", "--all", "--older-than", "old", "--yes"], "old"),
    Bad("worker start with no thread", ["worker", "start", "--count", "0"], "count"),
    Bad("worker start with a count as a word", ["worker", "start", "--count", "few"], "few"),
    Bad("worker start with a word too many", ["worker", "start", "now"], "now"),
    Bad("worker stop with a timeout as a word", ["worker", "stop", "--timeout", "soon"], "soon"),
    Bad("worker list with a word too many", ["worker", "list", "all"], "all"),
    Bad("doctor with a word too many", ["doctor", "please"], "please"),
    Bad("completion for no shell", ["completion"], "bash"),
    Bad("completion for another shell", ["completion", "tcsh"], "tcsh"),
    Bad("stats in two forms", ["stats", "--json", "--prometheus"], "--json|--prometheus"),
    Bad("stats by something else", ["stats", "--by", "user"], "user"),
    Bad("stats since a word", ["stats", "--since", "yesterday"], "yesterday"),
    Bad("a watch every word", ["status", "--watch", "often"], "often"),
    Bad("a watch in JSON", ["status", "--watch", "1", "--json"], "--watch"),
    Bad("--wait with --json", ["enqueue", "--wait", "--json", "true"], "--wait"),
    Bad("--wait with --file", ["enqueue", "--wait", "--file", "-"], "--wait", stdin="true\n"),
    Bad("--wait with --stream", ["enqueue", "--wait", "--stream"], "--wait", stdin="true\n"),
    Bad("--stream with --json", ["enqueue", "--json", "--stream"], "--stream", stdin="true\n"),
    Bad("dlq retry --cancelled without --all", ["dlq", "retry", "gone", "--cancelled"], "--all"),
    Bad("dlq retry of ids and of all", ["dlq", "retry", "gone", "--all"], "--all"),
    Bad("dlq retry with a bad time", ["dlq", "retry", "gone", "--at", "soon"], "--at"),
    Bad("dlq retry with an empty command", ["dlq", "retry", "gone", "--command", ""], "command"),
    Bad("dlq retry spread over a word", ["dlq", "retry", "--all", "--spread", "wide"], "wide"),
    Bad("dlq purge of ids and of all", ["dlq", "purge", "gone", "--all", "--yes"], "--all"),
]


def setting(key: str, value: str, what: str) -> Bad:
    return Bad(f"the setting {key} {what}", ["config", "set", key, value], key.replace("_", "[-_]"))


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
    setting("limits", "gpu=1,gpu=2", "with a tag twice"),
    setting("limits", "a b=1", "with a tag that no job can have"),
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

NOT_UTF8 = "\udcff"  # as Python gives an argument's byte 0xff
BAD_BYTES = [
    Bad("a shell line that is not UTF-8", ["enqueue", "echo " + NOT_UTF8], "UTF-8"),
    Bad("words that are not UTF-8", ["enqueue", "--", "echo", NOT_UTF8], "UTF-8"),
    Bad("a --command that is not UTF-8", ["enqueue", "--command", NOT_UTF8], "UTF-8"),
    Bad("a JSON command that is not UTF-8", ["enqueue", '{"command":"' + NOT_UTF8 + '"}'], "UTF-8"),
    Bad("an id that is not UTF-8", ["enqueue", "--id", NOT_UTF8, "true"], "id"),
    Bad("a tag that is not UTF-8", ["enqueue", "--tag", NOT_UTF8, "true"], "tags"),
    Bad("a cwd that is not UTF-8", ["enqueue", "--cwd", "/" + NOT_UTF8, "true"], "cwd"),
    Bad("a variable that is not UTF-8", ["enqueue", "--env", f"A={NOT_UTF8}", "true"], "env"),
    Bad("a variable's name that is not UTF-8", ["enqueue", "--env", f"{NOT_UTF8}=a", "true"], "env"),
    Bad("a unique key that is not UTF-8", ["enqueue", f"--unique={NOT_UTF8}", "true"], "unique"),
    Bad("a timeout that is not UTF-8", ["enqueue", "--timeout", NOT_UTF8, "true"], "timeout"),
    Bad("a time that is not UTF-8", ["enqueue", "--at", NOT_UTF8, "true"], "--at"),
    Bad("exit codes that are not UTF-8", ["enqueue", "--no-retry-on", NOT_UTF8, "true"], "no_retry_on"),
    Bad("a file whose name is not UTF-8", ["enqueue", "--file", "/nonexistent/" + NOT_UTF8], "nonexistent"),
    Bad("a setting's value that is not UTF-8", ["config", "set", "runner", NOT_UTF8], "runner"),
    Bad("a hook that is not UTF-8", ["config", "set", "on-dead", NOT_UTF8], "on_dead"),
    Bad("limits that are not UTF-8", ["config", "set", "limits", NOT_UTF8 + "=1"], "limits"),
    Bad("a setting's name that is not UTF-8", ["config", "get", NOT_UTF8], "setting"),
    Bad("show of an id that is not UTF-8", ["show", NOT_UTF8], "no job", REFUSED),
    Bad("wait for an id that is not UTF-8", ["wait", NOT_UTF8], "no job", REFUSED),
    Bad("a state that is not UTF-8", ["list", "--state", NOT_UTF8], "--state"),
    Bad("a worker's tag that is not UTF-8", ["worker", "start", "--drain", "--tag", NOT_UTF8], "tags"),
    Bad("a command that is not UTF-8", [NOT_UTF8], "command"),
    Bad("an option that is not UTF-8", ["list", "--" + NOT_UTF8], "option"),
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
]

LONG = "x" * 200
BAD_IDS = [
    *[
        Bad(f"an id that is the path {path}", ["enqueue", "--id", path, "true"], r"\bid\b")
        for path in ("..", "/", "a/b", "../../etc/passwd", "~", "~/a", "a\\b", "C:\\a", "./a", "-", "a b", "*", "")
    ],
    Bad("an id of 200 characters", ["enqueue", "--id", LONG, "true"], "128"),
    Bad("a JSON id of 200 characters", job(f'"id":"{LONG}"'), "128"),
    Bad(
        "an id of 200 characters in a line",
        ["enqueue", "--file", "-"],
        "line 2",
        stdin=line(f'{{"id":"{LONG}","command":"a"}}'),
    ),
    *[
        Bad(f"{command} of 200 characters", [command, LONG], LONG[:20], REFUSED)
        for command in ("show", "logs", "wait", "cancel", "retry", "rerun")
    ],
    *[
        Bad(f"{command} of a path", [command, "../../etc/passwd"], "passwd", REFUSED)
        for command in ("logs", "wait", "cancel", "retry", "rerun")
    ],
    *[Bad(f"{command} of an empty id", [command, ""], "no job", REFUSED) for command in ("show", "logs", "cancel")],
    Bad("dlq purge of a path", ["dlq", "purge", "../../jobs.json", "--yes"], "jobs.json", REFUSED),
    Bad("edit of an unknown id", ["edit", "nosuch", "--priority", "1"], "nosuch", REFUSED),
    Bad("edit of a dead job", ["edit", "boom", "--priority", "1"], "boom", REFUSED),
    Bad("edit of a completed job", ["edit", "ok", "--priority", "1"], "ok", REFUSED),
    Bad("edit below the attempts made", ["edit", "flaky", "--max-retries", "1"], "flaky", REFUSED),
    Bad("edit of a pending and a dead job", ["edit", "waiting", "boom", "--priority", "1"], "boom", REFUSED),
    Bad("edit of nothing", ["edit", "waiting"], "--priority"),
    Bad("edit of a priority as a word", ["edit", "waiting", "--priority", "high"], "--priority"),
    Bad("edit to an empty command", ["edit", "waiting", "--command", ""], "command"),
    Bad("rerun without an id", ["rerun"], "ID"),
    Bad("rerun of one known and one unknown id", ["rerun", "ok", "nosuch"], "nosuch", REFUSED),
    Bad("retry of a completed job", ["retry", "ok"], "completed", REFUSED),
    Bad("cancel of a completed job", ["cancel", "ok"], "completed", REFUSED),
]

BAD_NUMBERS = [
    Bad("a limit beyond all bounds", ["list", "--limit", "9" * 30], "--limit"),
    Bad("a dlq limit beyond all bounds", ["dlq", "list", "--limit", "9" * 30], "--limit"),
    Bad("a limit of 5000 digits", ["list", "--limit", "9" * 5000], "--limit"),
    Bad("a limit with a fraction", ["list", "--limit", "1.5"], "--limit"),
    Bad("a limit in another script", ["list", "--limit", "٣x"], "--limit"),
    Bad("an attempt of nought", ["logs", "ok", "--attempt", "0"], "--attempt"),
    Bad("an attempt beyond all bounds", ["logs", "ok", "--attempt", "9" * 30], "attempt", REFUSED),
    Bad("--max-retries of 5000 digits", ["enqueue", "--max-retries", "9" * 5000, "true"], "max-retries"),
    Bad("--max-retries above its bound", ["enqueue", "--max-retries", "1001", "true"], "max-retries"),
    Bad("--priority 1e3", ["enqueue", "--priority", "1e3", "true"], "priority"),
    Bad("--timeout of 400 digits", ["enqueue", "--timeout", "9" * 400, "true"], "timeout"),
    Bad("--timeout 1e9", ["enqueue", "--timeout", "1e9", "true"], "timeout"),
    Bad("--timeout 200 years", ["enqueue", "--timeout", "73000d", "true"], "timeout"),
    Bad("--timeout with two units", ["enqueue", "--timeout", "1h30m", "true"], "timeout"),
    Bad("--delay in another script", ["enqueue", "--delay", "١٢", "true"], "delay"),
    Bad("--at beyond the calendar", ["enqueue", "--at", "10000-01-01", "true"], "--at"),
    Bad("--at with a wrong zone", ["enqueue", "--at", "2099-01-01T00:00+99:99", "true"], "--at"),
    Bad("a JSON timeout of 5000 digits", job('"timeout":' + "9" * 5000), "digits"),
    Bad("a JSON timeout of 400 digits", job('"timeout":' + "9" * 400), "timeout"),
    Bad("a JSON priority of 1e400", job('"priority":1e400'), "priority"),
    Bad("a JSON max_retries above its bound", job('"max_retries":1001'), "max_retries"),
    Bad("NaN deep in a field", job('"tags":[[NaN]]'), "NaN|tags"),
    Bad("a top level NaN in a line", ["enqueue", "--file", "-"], "NaN|object|JSON", stdin="[\nNaN\n]"),
    Bad("deep nesting in a field", job('"tags":' + "[" * 5000 + "]" * 5000), "tags|deeply"),
    Bad("deep nesting in a line", ["enqueue", "--file", "-"], "deeply", stdin=line('{"a":' * 100_000)),
    Bad("deep nesting in an array", ["enqueue", "--file", "-"], "deeply|JSON", stdin="[\n" + "[" * 100_000),
    Bad("an after that is no list", job('"after":"waiting"'), "after"),
    Bad("an after of a number", job('"after":[5]'), "after"),
    Bad("an after with another key", job('"after":[{"id":"waiting","some":true}]'), "after"),
    Bad("an after whose any is a word", job('"after":[{"id":"waiting","any":"yes"}]'), "after"),
    Bad("after an unknown job", ["enqueue", "--after", "nosuch", "true"], "nosuch", REFUSED),
    Bad("after any end of an unknown job", ["enqueue", "--after-any", "nosuch", "true"], "nosuch", REFUSED),
    Bad("after itself", ["enqueue", "--id", "own", "--after", "own", "true"], "own", REFUSED),
    Bad(
        "a line after a later one",
        ["enqueue", "--file", "-"],
        "later-on",
        REFUSED,
        '{"command":"a","after":["later-on"]}\n{"id":"later-on","command":"b"}\n',
    ),
    Bad("33 tags", job('"tags":' + json.dumps([str(n) for n in range(33)])), "32"),
    Bad("a tag of 65 characters", ["enqueue", "--tag", "x" * 65, "true"], "64"),
    Bad("a cwd of 5000 characters", ["enqueue", "--cwd", "/" + "x" * 5000, "true"], "4096"),
    Bad("a unique key of 5000 characters", ["enqueue", "--unique=" + "x" * 5000, "true"], "4096"),
    Bad("1001 variables", job('"env":' + json.dumps({f"A{n}": "" for n in range(1001)})), "1000"),
    Bad("wait for 200 years", ["wait", "waiting", "--timeout", "73000d"], "timeout"),
    Bad("1001 threads", ["worker", "start", "--count", "1001"], "count"),
    Bad("no_retry_on with texts in its list", job('"no_retry_on":["2"]'), "no_retry_on"),
    Bad("no_retry_on with a boolean in its list", job('"no_retry_on":[true]'), "no_retry_on"),
    Bad("half a surrogate pair in an id", job('"id":"\\ud800"'), "id"),
    Bad("half a surrogate pair in a tag", job('"tags":["\\udfff"]'), "tags"),
    Bad("half a surrogate pair in a variable", job('"env":{"A":"\\ud800"}'), "env"),
    Bad("half a surrogate pair in a unique key", job('"unique":"\\ud800"'), "unique"),
    Bad("half a surrogate pair in a cwd", job('"cwd":"/\\ud800"'), "cwd"),
    Bad("half a surrogate pair in a field's name", job('"\\ud800":1'), "field"),
]

BAD_NAMES = [
    Bad(f"{wrong} for {right}", [*command, wrong, "1"], re.escape(right))
    for command, wrong, right in [
        (["enqueue"], "--priorty", "--priority"), (["enqueue"], "--max-retrys", "--max-retries"),
        (["enqueue"], "--timout", "--timeout"), (["enqueue"], "--uniqe", "--unique"),
        (["enqueue"], "--dealy", "--delay"), (["enqueue"], "--tags", "--tag"), (["enqueue"], "--envs", "--env"),
        (["enqueue"], "--comand", "--command"),
        (["enqueue"], "--no-retry", "--no-retry-on"), (["enqueue"], "--streams", "--stream"),
        (["list"], "--stat", "--state"), (["list"], "--revers", "--reverse"), (["list"], "--matches", "--match"),
        (["logs", "ok"], "--folow", "--follow"), (["logs", "ok"], "--attempts", "--attempt"),
        (["wait", "ok"], "--time-out", "--timeout"), (["purge"], "--older", "--older-than"),
        (["purge"], "--dryrun", "--dry-run"), (["dlq", "retry"], "--spred", "--spread"),
        (["worker", "start"], "--counts", "--count"), (["worker", "start"], "--drian", "--drain"),
        (["worker", "stop"], "--noww", "--now"), (["status"], "--chek", "--check"),
        (["edit", "ok"], "--prio", "--priority"),
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
        ("lock", "lock_timeout"), ("keep", "keep_completed"), ("log-maxx", "log_max"), ("on-death", "on_dead"),
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

IN_PLACES = [
    Bad(f"{bad.what}, {place}", bad.args, bad.word, bad.code, bad.stdin, place)
    for place in PLACES
    for bad in [
        Bad("an unknown id", ["show", "nosuch"], "nosuch", REFUSED),
        Bad("a bad field", job('"priority":"é\\u001b"'), "priority"),
        Bad("no job", ["enqueue"], "command"),
        Bad("an unknown setting", ["config", "set", "colour", "rouge"], "colour"),
        Bad("a bad list", ["enqueue", "--file", "-"], "line 2", stdin=line(b"echo \xff")),
    ]
]
IN_PLACES += [
    Bad("nobody to be asked, no HOME", ["purge"], "--yes", place="no HOME"),
    Bad("a result that cannot be printed", ["list", "--json"], "printed", STORAGE, place="/dev/full"),
    Bad("a status that cannot be printed", ["status"], "printed", STORAGE, place="/dev/full"),
    Bad("a page that cannot be printed", ["show", "boom"], "printed", STORAGE, place="/dev/full"),
    Bad("a log that cannot be printed", ["logs", "chatty"], "printed", STORAGE, place="/dev/full"),
    Bad("a table that cannot be printed", ["list"], "printed", STORAGE, place="/dev/full"),
    Bad("a help that cannot be printed", ["--help"], "printed", STORAGE, place="/dev/full"),
    Bad("a help of a command that cannot be printed", ["list", "--help"], "printed", STORAGE, place="/dev/full"),
    Bad("a version that cannot be printed", ["--version"], "printed", STORAGE, place="/dev/full"),
    Bad("settings that cannot be printed", ["config", "show"], "printed", STORAGE, place="/dev/full"),
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
    *BAD_BYTES,
    *BAD_IDS,
    *BAD_NUMBERS,
    *BAD_NAMES,
    *IN_PLACES,
]


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
def test_bad_input_is_refused_and_changes_nothing(run: Call, process: Call, drained: Path, bad: Bad) -> None:
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


def test_the_table_is_large_and_no_case_stands_there_twice() -> None:
    assert len({bad.what for bad in TABLE}) == len(TABLE) > 400
