"""`enqueue --file` in all its forms and `enqueue --stream`, as a black box."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PROGRAM

pytest_plugins = ["worker_fixtures"]

Jobs = Callable[[], dict[str, dict[str, Any]]]


@pytest.fixture
def listed(tmp_path: Path) -> Callable[[str | bytes], str]:
    """`listed("true\\nfalse\\n")`: the path of a file that holds this."""

    def write(content: str | bytes) -> str:
        path = tmp_path / "jobs.txt"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def commands(jobs: Jobs) -> list[str]:
    return [job["command"] for job in jobs().values()]


# ---- lines ----


@pytest.mark.parametrize(
    "text, expected",
    [
        ("echo one\necho two | wc\n", ["echo one", "echo two | wc"]),
        ("echo one\necho two", ["echo one", "echo two"]),
        # reading: a list that was written on Windows means the same jobs; `echo one\r` never does.
        ("echo one\r\necho two\r\n", ["echo one", "echo two"]),
        ("# first\n\necho one # two\n\n#echo two\n# last", ["echo one # two"]),
        ("echo a\u2028b\u0085c\x0bd\x0ce\n", ["echo a\u2028b\u0085c\x0bd\x0ce"]),
        ("[ -d / ] && echo yes\n[ 1 ]\n", ["[ -d / ] && echo yes", "[ 1 ]"]),
        ("\ufeffecho one\n", ["echo one"]),
        ('echo one\n{"command":"echo two","priority":4}\n', ["echo one", "echo two"]),
        # reading: a script whose list happens to be empty has nothing to do, which is not a failure.
        *[(text, []) for text in ("", "\n\n", "# nothing today\n", "[\n]\n")],
    ],
)
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_a_file_holds_one_job_a_line_and_its_ids_are_printed_in_order(run, jobs, listed, text, expected, source):
    words = ["enqueue", "--file", listed(text) if source == "file" else "-"]
    printed = run(*words, input=text.encode() if source == "stdin" else None)
    assert commands(jobs) == expected and printed.lines == list(jobs())


def test_typed_jobs_end_with_one_ctrl_d(run, terminal, eventually):
    shell = terminal("enqueue", "--file", "-")
    shell.type(b"echo one\n")
    eventually(lambda: "echo one\r\n" in shell.screen())
    shell.type(b"\x04")
    eventually(shell.ended)
    assert run("list", "--ids").out.strip() in shell.screen() and shell.child.returncode == 0


def test_a_large_file_is_accepted_whole(run, listed):
    run("enqueue", "--file", listed("true\n" * 20_001))
    assert run("status", "--json").json["jobs"]["pending"] == 20_001


# ---- a whole JSON value ----


ARRAY = json.dumps([{"id": "a", "command": "true"}, {"id": "b", "command": "false"}], indent=2)


@pytest.mark.parametrize(
    "text, out",
    [
        (ARRAY, "a\nb\n"),
        ('[\n{"id":"a","command":"true"},\n{"id":"b","command":"false"}\n]\n', "a\nb\n"),
        (json.dumps({"id": "a", "command": "true"}, indent=2), "a\n"),
        # reading: `[` alone and `[{...` are no commands, so taking them for jobs would only make dead ones.
        ('[{"id":"a","command":"true"}]', "a\n"),
        ('[ {"id":"a","command":"true"} ]', "a\n"),
        (f"# nightly\n\n{ARRAY}", "a\nb\n"),
        (f"\ufeff{ARRAY}", "a\nb\n"),
    ],
)
def test_a_file_may_be_one_json_value(run, listed, text, out):
    assert run("enqueue", "--file", listed(text)).out == out


def test_an_error_in_an_array_names_the_element(run, listed):
    text = json.dumps([{"command": "true"}, {"comand": "true"}], indent=2)
    assert "In element 2: There is no field 'comand'" in run("enqueue", "--file", listed(text), code=2).err


# ---- --json ----


@pytest.mark.parametrize("text, count", [("echo one\necho two\n", 2), ('{"command":"true"}\n', 1), ("# nothing\n", 0)])
def test_json_prints_one_array_of_the_jobs(run, listed, text, count):
    printed = run("enqueue", "--json", "--file", listed(text)).json
    assert printed == run("list", "--json").json and len(printed) == count


# ---- options are defaults ----


@pytest.mark.parametrize(
    "arguments, field, value",
    [
        (["--priority", "5"], "priority", 5), (["--max-retries", "1"], "max_retries", 1),
        (["--timeout", "2m"], "timeout", 120), (["--tag", "night"], "tags", ["night"]), (["--cwd", "/"], "cwd", "/"),
        (["--env", "A=1"], "env", {"A": "1"}),
        (["--at", "2099-01-01T00:00:00Z"], "run_at", "2099-01-01T00:00:00.000Z"),
    ],
)  # fmt: skip
def test_an_option_holds_for_every_line(run, jobs, listed, arguments, field, value):
    run("enqueue", *arguments, "--file", listed('echo one\n{"command":"echo two"}\n'))
    assert [job.get(field) for job in jobs().values()] == [value, value]


@pytest.mark.parametrize(
    "arguments, field, value",
    [
        (["--priority", "5"], "priority", 1), (["--priority", "5"], "priority", 0),
        (["--max-retries", "9"], "max_retries", 2), (["--timeout", "2m"], "timeout", 7),
        (["--cwd", "/"], "cwd", "/tmp"), (["--at", "2098-01-01T00:00:00Z"], "run_at", "2099-01-01T00:00:00.000Z"),
        (["--unique"], "unique", "mine"),
    ],
)  # fmt: skip
def test_a_field_of_a_line_beats_the_option(run, jobs, listed, arguments, field, value):
    run("enqueue", *arguments, "--file", listed(json.dumps({"command": "true", field: value}) + "\n"))
    assert [job[field] for job in jobs().values()] == [value]


# ---- unique keys ----


def test_a_line_whose_unique_key_waits_prints_that_jobs_id(run, listed):
    run("enqueue", "--id", "a", "--unique=k", "true")
    text = '{"id":"b","command":"true","unique":"k"}\n{"id":"c","command":"true"}\n'
    assert run("enqueue", "--file", listed(text)).out == "a\nc\n"


def test_two_lines_with_one_unique_key_are_one_job(run, listed):
    text = '{"id":"a","command":"true","unique":"k"}\n{"id":"b","command":"true","unique":"k"}\n'
    assert run("enqueue", "--file", listed(text)).out == "a\na\n"


# ---- all or nothing ----


def test_the_error_for_a_bad_line_names_its_number(run, listed):
    # reading: lines are counted as an editor counts them, comments and empty ones included.
    error = run("enqueue", "--file", listed('# head\n\necho one\n{"command":5}\n'), code=2).err
    assert "line 4" in error


# ---- --stream ----


def test_a_stream_takes_the_same_lines_as_a_file(run, jobs):
    run("enqueue", "--stream", input='# head\necho one\n\n{"command":"echo two"}\necho three')
    assert commands(jobs) == ["echo one", "echo two", "echo three"]


@pytest.mark.parametrize(
    "bad, word", [('{"id":', "JSON"), ('{"command":"x","colour":1}', "colour"), ('{"id":"a","command":"x"}', "'a'")]
)
def test_a_bad_line_in_a_stream_is_an_error_and_leaves_the_others_accepted(run, bad, word):
    text = f'{{"id":"a","command":"true"}}\n{bad}\n{{"id":"b","command":"true"}}\n'
    answer = run("enqueue", "--stream", input=text, code=1)
    assert answer.out == "a\nb\n" and "Error: In line 2" in answer.err and word in answer.err
    assert run("enqueue", "--stream", input="").out == ""


def test_options_hold_for_every_line_of_a_stream(run, jobs):
    # reading: "the same from stdin" includes that options are defaults.
    run("enqueue", "--priority", "5", "--stream", input='echo one\n{"command":"true","priority":1}\n')
    assert [job["priority"] for job in jobs().values()] == [5, 1]


def test_a_line_of_a_stream_is_accepted_before_the_next_one_comes(home, jobs):
    # `process` gives its whole input at once, so this one talks to the program itself. Where the caller's
    # Python is told not to buffer, an answer that the program forgot to flush would come all the same.
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), "enqueue", "--stream"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
    ) as stream:
        assert stream.stdin and stream.stdout
        try:
            for number, name in enumerate(["a", "b", "c"], start=1):
                stream.stdin.write(b'{"id":"%s","command":"true"}\n' % name.encode())
                stream.stdin.flush()
                assert select.select([stream.stdout], [], [], 20)[0], "no answer to a line"
                assert stream.stdout.readline() == f"{name}\n".encode()
                assert len(jobs()) == number
            stream.stdin.close()
            assert stream.wait(30) == 0
        finally:
            stream.kill()


def test_a_duplicate_of_an_earlier_line_is_shown_as_that_line_s_job(run):
    lines = '{"id":"x1","command":"a","unique":"k"}\n{"id":"x2","command":"b","unique":"k"}\n'
    first, second = run("enqueue", "--json", "--file", "-", input=lines).json
    assert second == {**first, "duplicate": True} and first["id"] == "x1"
