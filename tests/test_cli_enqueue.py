"""`enqueue` as a black box: every way to name a job, every field and option, unique keys, times."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["drained_home"]

Jobs = Callable[[], dict[str, dict[str, Any]]]

COMMAND_BYTES_MAX = 131_071


def instant(text: str) -> datetime:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text), text
    return datetime.fromisoformat(text)


def only(jobs: Jobs) -> dict[str, Any]:
    """The one job of the home."""
    (job,) = jobs().values()
    return job


def near(moment: datetime, expected: datetime) -> bool:
    return abs(moment - expected) < timedelta(minutes=1)


# ---- the forms ----


def test_enqueue_of_one_word_prints_a_made_id_alone(run):
    made = {run("enqueue", "true").out for _ in range(20)}
    assert len(made) == 20 and all(re.fullmatch(r"[a-z0-9]{12}\n", id) for id in made)


@pytest.mark.parametrize(
    "words",
    [
        ["plain", "words"], ["my dir", "host:"], ["it's", '"quoted"', "`id`", "$HOME", "$(id)"],
        ["*", "?", "~", "#x", ";", "&", "|", "<", ">"], ["", "after an empty word"], ["ünï", "日本", "🎉"],
        ["two\nlines", "tab\there", "back\\slash"], ["-a", "--long", "--tag", "--", "--json"],
    ],
)  # fmt: skip
def test_several_words_reach_the_program_word_for_word(run, jobs, words):
    run("enqueue", "--", "printf", "<%s>", *words)
    ran = subprocess.run(["sh", "-c", only(jobs)["command"]], capture_output=True, check=True)
    assert ran.stdout.decode() == "".join(f"<{word}>" for word in words)


def test_a_later_word_that_is_no_option_of_enqueue_belongs_to_the_command(run, jobs):
    run("enqueue", "--priority", "2", "ls", "-l", "-h", "--all-of-it")
    assert shlex.split(only(jobs)["command"]) == ["ls", "-l", "-h", "--all-of-it"]


@pytest.mark.parametrize(
    "command",
    [
        "{ echo a; }", "# only a comment", "[ -d / ]", "-n", "  spaces at both ends  ", "echo 'a' \"b\" \\c",
        "echo a\necho b", "a\tb\rc", "\x1b[31mred\x07\x7f", "line\u2028separator\u0085here", "echo ünïcödé 日本 🎉",
    ],
)  # fmt: skip
def test_the_command_option_takes_any_text_as_it_is(run, jobs, command):
    run("enqueue", f"--command={command}")
    assert only(jobs)["command"] == command


def test_a_json_command_keeps_every_character(run, jobs):
    # reading: a shell script often quotes a JSON object over several lines.
    run("enqueue", '{\n"command":"echo \\"a\\"\\n\\techo \\u00fc \\ud83c\\udf89"}\n')
    assert only(jobs)["command"] == 'echo "a"\n\techo ü 🎉'


# ---- the record ----


def test_a_plain_job_gets_the_defaults(run, jobs):
    run("enqueue", "--id", "a", "true")
    job = only(jobs)
    expected = {
        "id": "a", "state": "pending", "command": "true", "attempts": 0, "runs": 0, "max_retries": 3,
        "priority": 0, "timeout": 30,
    }  # fmt: skip
    assert {key: job.get(key) for key in expected} == expected
    assert job["created_at"] == job["updated_at"] and near(instant(job["created_at"]), datetime.now(UTC))


def test_the_owners_whole_example_is_accepted_and_its_times_ignored(run, jobs):
    example = {
        "id": "unique-job-id", "command": "echo 'Hello World'", "state": "pending", "attempts": 0, "runs": 0,
        "max_retries": 3, "created_at": "2025-11-04T10:30:00Z", "updated_at": "2025-11-04T10:30:00Z",
    }  # fmt: skip
    assert run("enqueue", json.dumps(example)).out == "unique-job-id\n"
    assert all(near(instant(only(jobs)[field]), datetime.now(UTC)) for field in ("created_at", "updated_at"))


STORED = [
    ("id", "a.b_c-d:e", "a.b_c-d:e"), ("max_retries", 0, 0), ("max_retries", 7, 7), ("priority", -5, -5),
    ("priority", 100, 100), ("timeout", 90, 90), ("timeout", 0.25, 0.25), ("timeout", "90s", 90),
    ("timeout", "10m", 600), ("timeout", "2h", 7200), ("timeout", "1d", 86400), ("timeout", "0.5h", 1800),
    ("cwd", "/", "/"), ("unique", "nightly", "nightly"),
    ("run_at", "2099-01-01T00:00:00Z", "2099-01-01T00:00:00.000Z"),
    ("run_at", "2099-01-01T00:00:00.5Z", "2099-01-01T00:00:00.500Z"),
    ("run_at", "2099-01-01T02:00:00+02:00", "2099-01-01T00:00:00.000Z"),
]  # fmt: skip


@pytest.mark.parametrize(
    "field, given, stored",
    [*STORED, ("env", {"A": "1", "B": "x=y"}, {"A": "1", "B": "x=y"}), ("tags", ["gpu", "net"], ["gpu", "net"])],
)
def test_a_json_field_is_stored(run, jobs, field, given, stored):
    run("enqueue", json.dumps({"command": "true", field: given}))
    assert only(jobs)[field] == stored


@pytest.mark.parametrize(
    "arguments, field, stored",
    [
        (["--id", "a.b_c-d:e"], "id", "a.b_c-d:e"), (["--id=_x"], "id", "_x"),
        (["--max-retries", "0"], "max_retries", 0), (["--max_retries", "7"], "max_retries", 7),
        (["--max-retries=7"], "max_retries", 7), (["--priority", "-5"], "priority", -5),
        (["--priority=100"], "priority", 100), (["--timeout", "90"], "timeout", 90),
        (["--timeout", "90s"], "timeout", 90), (["--timeout", "10m"], "timeout", 600),
        (["--timeout", "2h"], "timeout", 7200), (["--timeout", "1d"], "timeout", 86400),
        (["--timeout", "1.5m"], "timeout", 90), (["--timeout", "0.25"], "timeout", 0.25),
        (["--cwd", "/"], "cwd", "/"), (["--env", "A=1"], "env", {"A": "1"}),
        (["--env", "A=b=c", "--env", "B="], "env", {"A": "b=c", "B": ""}), (["--tag", "gpu"], "tags", ["gpu"]),
        (["--tag", "gpu", "--tag", "net"], "tags", ["gpu", "net"]), (["--unique=nightly"], "unique", "nightly"),
        (["--at", "2099-01-01T00:00:00Z"], "run_at", "2099-01-01T00:00:00.000Z"),
        (["--at", "2099-01-01T02:00:00+02:00"], "run_at", "2099-01-01T00:00:00.000Z"),
        (["--run-at", "2099-01-01T00:00:00Z"], "run_at", "2099-01-01T00:00:00.000Z"),
        (["--run_at", "2099-01-01T00:00:00Z"], "run_at", "2099-01-01T00:00:00.000Z"),
    ],
)  # fmt: skip
def test_an_option_is_stored(run, jobs, arguments, field, stored):
    run("enqueue", *arguments, "true")
    assert only(jobs)[field] == stored


@pytest.mark.parametrize(
    "arguments",
    [
        ["--delay", "10m", "true"], ["--delay", "600", "true"], ["--at", "+10m", "true"],
        ["--run-at", "+600s", "true"], ['{"command":"true","delay":600}'], ['{"command":"true","delay":"10m"}'],
        ['{"command":"true","run_at":"+10m"}'],
    ],
)  # fmt: skip
def test_a_delay_counts_from_now(run, jobs, arguments):
    run("enqueue", *arguments)
    assert near(instant(only(jobs)["run_at"]), datetime.now(UTC) + timedelta(minutes=10))


@pytest.mark.parametrize(
    "written, stored",
    [
        ("2099-07-01T12:00:00", "2099-07-01T10:00:00.000Z"),
        ("2099-07-01T12:00", "2099-07-01T10:00:00.000Z"),
        ("2099-07-01", "2099-06-30T22:00:00.000Z"),
        ("2099-07-01T12:00:00-03:00", "2099-07-01T15:00:00.000Z"),
        ("2099-07-01T12:00:00Z", "2099-07-01T12:00:00.000Z"),
    ],
)
def test_an_instant_is_local_unless_it_names_a_zone(process, jobs, written, stored):
    process("enqueue", "--at", written, "true", env={"TZ": "XST-2"})
    assert only(jobs)["run_at"] == stored


# ---- ids ----


@pytest.mark.parametrize("other", ["A", "a1", '--command={"id":"a","state":"pending"}'])
def test_an_id_that_is_only_like_a_taken_one_is_free(run, other):
    # reading: ids are plain text.
    run("enqueue", *([other] if other.startswith("--") else ["--id", other, "true"]))
    assert run("enqueue", "--id", "a", "true").out == "a\n"


@pytest.mark.parametrize("taken", ["ok", "boom", "flaky", "waiting", "gone"])
def test_a_taken_id_is_refused_whatever_became_of_its_job(run, drained, taken):
    assert taken in run("enqueue", "--id", taken, "true", code=1).err


# ---- limits of the command ----


@pytest.mark.parametrize("command", ["x" * COMMAND_BYTES_MAX, "é" * 65_535 + "x"], ids=["ascii", "utf-8"])
def test_a_command_of_the_longest_allowed_length_is_kept(run, jobs, command):
    run("enqueue", command)
    assert only(jobs)["command"] == command


# ---- several sources for one value ----


@pytest.mark.parametrize(
    "option, field, stored",
    [
        ("--priority=5", "priority", 5), ("--max-retries=9", "max_retries", 9), ("--timeout=7", "timeout", 7),
        ("--id=z", "id", "z"), ("--cwd=/", "cwd", "/"),
        ("--at=2098-01-01T00:00:00Z", "run_at", "2098-01-01T00:00:00.000Z"), ("--unique=mine", "unique", "mine"),
    ],
)  # fmt: skip
def test_an_option_beats_the_json_field(run, jobs, option, field, stored):
    given = {
        "id": "a", "command": "true", "priority": 1, "max_retries": 2, "timeout": 3, "cwd": "/tmp",
        "run_at": "2099-01-01T00:00:00Z", "unique": "theirs",
    }  # fmt: skip
    run("enqueue", option, json.dumps(given))
    assert only(jobs)[field] == stored


@pytest.mark.parametrize(
    "setting, field, value, before", [("max-retries", "max_retries", 7, 3), ("job-timeout", "timeout", 99, 30)]
)
def test_a_setting_is_copied_into_a_new_job(run, jobs, setting, field, value, before):
    run("enqueue", "true")
    run("config", "set", setting, str(value))
    run("enqueue", "true")
    assert [job[field] for job in jobs().values()] == [before, value]


# ---- cwd and env ----


def test_the_directory_of_the_call_is_remembered(process, jobs, tmp_path):
    (tmp_path / "work").mkdir()
    process("enqueue", "true", cwd=tmp_path / "work")
    assert Path(only(jobs)["cwd"]).resolve() == (tmp_path / "work").resolve()


def test_a_relative_cwd_is_taken_from_the_directory_of_the_call(process, jobs, tmp_path):
    # reading: a worker starts elsewhere, so only an absolute path keeps its meaning.
    (tmp_path / "work").mkdir()
    process("enqueue", "--cwd", "work", "true", cwd=tmp_path)
    stored = Path(only(jobs)["cwd"])
    assert stored.is_absolute() and stored.resolve() == (tmp_path / "work").resolve()
    # reading: a missing cwd is a failed attempt (design, section 5), so it may appear until then.
    process("enqueue", "--id", "a", "--cwd", "/does/not/exist/yet", "true")
    assert jobs()["a"]["cwd"] == "/does/not/exist/yet"


def test_a_directory_whose_name_is_no_utf8_is_refused_and_does_not_spoil_the_queue(run, process, tmp_path):
    here = tmp_path / "work\udcff"
    here.mkdir()
    assert "--cwd DIR" in process("enqueue", "true", cwd=here, code=1).err
    assert process("enqueue", "--id", "a", "--cwd", "/", "true", cwd=here).out == "a\n" == run("list", "--ids").out


def test_a_variable_named_without_a_value_is_the_callers(run, jobs, monkeypatch):
    monkeypatch.setenv("GREETING", "hello = there")
    run("enqueue", "--env", "GREETING", "true")
    assert only(jobs)["env"] == {"GREETING": "hello = there"}


def test_nothing_of_the_environment_is_kept_unasked(run, home, monkeypatch):
    monkeypatch.setenv("GREETING", "a-secret-word")
    run("enqueue", "true")
    assert b"a-secret-word" not in (home / "jobs.json").read_bytes()


KEPT = {"KEPT_A": "a = ü", "KEPT_B": "b"}


@pytest.fixture
def keeps(run, monkeypatch, tmp_path):
    """keep_env names two variables that are set and one that is not."""
    run("config", "set", "keep-env", "KEPT_A, KEPT_UNSET, KEPT_B")
    for name, value in KEPT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OTHER", "is not kept")
    monkeypatch.delenv("KEPT_UNSET", raising=False)


@pytest.mark.parametrize(
    "words, lines",
    [
        (["true"], None), (["--", "true", "it"], None), (["--command", "true"], None), (['{"command":"true"}'], None),
        (["--unique", "true"], None), (["--file", "-"], 'one\n{"command":"two"}\n{"command":"three","env":{}}\n'),
        (["--file", "-"], '[{"command":"one"}]'), (["--stream"], 'one\n{"command":"two"}\n'),
    ],
)  # fmt: skip
def test_the_variables_of_keep_env_are_copied_into_every_job(process, jobs, keeps, words, lines):
    process("enqueue", *words, input=lines)
    assert jobs() and [job.get("env") for job in jobs().values()] == [KEPT] * len(jobs())


@pytest.mark.parametrize(
    "words, lines",
    [
        (["--env", "KEPT_A=mine", "--env", "C=c", "true"], None),
        (['{"command":"true","env":{"KEPT_A":"mine","C":"c"}}'], None),
        (["--env", "KEPT_A=mine", "--env", "C=c", "--file", "-"], 'one\n{"command":"two"}\n'),
        (["--env", "KEPT_B=not this", "--file", "-"], '{"command":"two","env":{"KEPT_A":"mine","C":"c"}}'),
        (["--stream"], '{"command":"two","env":{"KEPT_A":"mine","C":"c"}}'),
    ],
)
def test_a_variable_of_an_option_or_in_json_wins_over_keep_env(process, jobs, keeps, words, lines):
    process("enqueue", *words, input=lines)
    assert [job["env"] for job in jobs().values()] == [{**KEPT, "KEPT_A": "mine", "C": "c"}] * len(jobs())


def test_a_copy_and_an_edit_of_a_job_keep_its_variables(run, jobs, keeps, monkeypatch):
    run("enqueue", "--id", "a", "true")
    monkeypatch.setenv("KEPT_A", "later")
    run("edit", "a", "--priority", "1")
    run("rerun", "a")
    assert [job["env"] for job in jobs().values()] == [KEPT, KEPT]


def test_a_job_runs_with_the_variables_of_keep_env(run, process, keeps, monkeypatch):
    id = run("enqueue", 'echo "$KEPT_A/$OTHER"').out.strip()
    monkeypatch.setenv("KEPT_A", "the worker's")
    monkeypatch.delenv("OTHER")
    process("worker", "start", "--drain")
    assert run("logs", id).out == "a = ü/\n"


def test_a_kept_variable_that_a_job_cannot_have_is_refused(run, process, keeps):
    answer = process("enqueue", "true", env={"KEPT_B": "\udcff"}, code=2)
    assert "keep_env" in answer.err and "KEPT_B" in answer.err
    names = {f"N{number}": "" for number in range(999)}
    answer = run("enqueue", json.dumps({"command": "true", "env": names}), code=2)
    assert "keep_env" in answer.err and run("list", "--ids").out == ""


def test_doctor_names_a_bad_keep_env(run, home):
    run("enqueue", "true")
    values = json.loads((home / "config.json").read_text())
    (home / "config.json").write_text(json.dumps({**values, "keep_env": "PATH,QUEUECTL_HOME"}))
    assert "keep_env" in run("doctor", code=3).out
    assert "keep_env" in run("enqueue", "true", code=3).err


# ---- --json ----


def test_json_prints_the_job_as_list_shows_it(run):
    printed = run("enqueue", "--json", "--id", "a", "--tag", "t", "true").json
    assert [printed] == run("list", "--json").json


# ---- unique keys ----


def test_a_second_job_with_a_waiting_unique_key_is_not_added(run):
    assert "duplicate" not in run("enqueue", "--json", "--id", "a", "--unique=k", "true").json
    assert run("enqueue", "--unique=k", "false").out == "a\n"
    answer = run("enqueue", "--json", "--unique=k", "true").json
    assert (answer["id"], answer["duplicate"]) == ("a", True)
    assert run("enqueue", '{"id":"b","command":"true","unique":"k"}').out == "a\n"
    assert run("list", "--ids").out == "a\n"


def test_a_job_keeps_its_unique_key_until_it_is_over(run, drained_copy):
    assert run("enqueue", "--id", "b", "--unique=hourly", "true").out == "flaky\n"
    run("cancel", "flaky")
    assert run("enqueue", "--id", "b", "--unique=hourly", "true").out == "b\n"
    assert run("enqueue", "--id", "c", "--unique=nightly", "true").out == "c\n"


@pytest.mark.parametrize(
    "arguments, key, command",
    [
        (["--unique", "k", "echo hello"], "k", "echo hello"),
        (["--unique", "k", "--command", "echo hello"], "k", "echo hello"),
        (["--unique", "echo hello"], None, "echo hello"),
        (["--unique", "--", "echo", "hello there"], None, "echo 'hello there'"),
    ],
)
def test_a_word_after_unique_is_its_key_unless_nothing_else_gives_a_command(run, jobs, arguments, key, command):
    run("enqueue", *arguments)
    assert only(jobs)["command"] == command and only(jobs)["unique"] == (key or only(jobs)["unique"])


@pytest.mark.parametrize("given", [["--unique="], ["--unique", ""]], ids=" ".join)
def test_an_empty_unique_key_is_refused(run, given):
    # reading: a script's variable that is not set must not become a key made from the command.
    assert "'--unique'" in run("enqueue", *given, "true", code=2).err


@pytest.mark.parametrize(
    "arguments", [["--unique", "echo hello"], ["--unique", "--", "echo", "hello"]], ids=["line", "words"]
)
def test_a_made_unique_key_meets_the_same_command(run, arguments):
    assert run("enqueue", *arguments).out == run("enqueue", *arguments).out


def test_a_made_unique_key_meets_neither_another_command_nor_the_same_one_elsewhere(run, process, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    made = [process("enqueue", "--unique", "echo hello", cwd=tmp_path / name).out for name in ("one", "two")]
    made += [run("enqueue", "--cwd", cwd, "--unique", "echo hello").out for cwd in ("/", "/tmp")]
    made.append(run("enqueue", "--cwd", "/", "--unique", "echo goodbye").out)
    assert len(set(made)) == 5


# ---- exit codes that are not retried ----


def test_an_exit_code_in_no_retry_on_goes_to_the_dlq_at_once(drained, jobs):
    assert [(jobs()[name]["state"], jobs()[name]["attempts"]) for name in ("stubborn", "picky")] == [("dead", 1)] * 2
