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

Call = Callable[..., Any]
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


def test_enqueue_of_a_json_object_prints_the_given_id_alone(run: Call) -> None:
    assert run("enqueue", '{"id":"job1","command":"echo test"}').out == "job1\n"


def test_enqueue_of_one_word_prints_a_made_id_alone(run: Call) -> None:
    assert re.fullmatch(r"[a-z0-9]{12}\n", run("enqueue", "tar c /srv | gzip > /backup/srv.tgz").out)


def test_made_ids_are_all_different(run: Call) -> None:
    assert len({run("enqueue", "true").out for _ in range(20)}) == 20


def test_one_word_is_a_shell_line_and_kept_as_it_is(run: Call, jobs: Jobs) -> None:
    run("enqueue", "tar c /srv | gzip > /backup/srv.tgz")
    assert only(jobs)["command"] == "tar c /srv | gzip > /backup/srv.tgz"


def test_one_word_after_two_dashes_is_a_shell_line_too(run: Call, jobs: Jobs) -> None:
    run("enqueue", "--", "echo a | wc -c")
    assert only(jobs)["command"] == "echo a | wc -c"


@pytest.mark.parametrize(
    "words",
    [
        ["plain", "words"],
        ["my dir", "host:"],
        ["it's", '"quoted"', "`id`", "$HOME", "$(id)"],
        ["*", "?", "~", "#x", ";", "&", "|", "<", ">"],
        ["", "after an empty word"],
        ["two\nlines", "tab\there", "back\\slash"],
        ["-a", "--long", "--tag", "--", "--json"],
        ["ünï", "日本", "🎉"],
    ],
)
def test_several_words_reach_the_program_word_for_word(run: Call, jobs: Jobs, words: list[str]) -> None:
    run("enqueue", "--", "printf", "<%s>", *words)
    ran = subprocess.run(["sh", "-c", only(jobs)["command"]], capture_output=True, check=True)
    assert ran.stdout.decode() == "".join(f"<{word}>" for word in words)


def test_several_words_need_no_dashes_before_them(run: Call, jobs: Jobs) -> None:
    run("enqueue", "echo", "hello  there")
    assert shlex.split(only(jobs)["command"]) == ["echo", "hello  there"]


def test_a_later_word_that_is_no_option_of_enqueue_belongs_to_the_command(run: Call, jobs: Jobs) -> None:
    run("enqueue", "--priority", "2", "ls", "-l", "--all-of-it")
    assert shlex.split(only(jobs)["command"]) == ["ls", "-l", "--all-of-it"]


@pytest.mark.parametrize(
    "command",
    [
        "{ echo a; }",
        "# only a comment",
        "[ -d / ]",
        "-n",
        "  spaces at both ends  ",
        "echo 'a' \"b\" \\c",
        "echo a\necho b",
        "a\tb\rc",
        "\x1b[31mred\x07\x7f",
        "line\u2028separator\u0085here",
        "echo ünïcödé 日本 🎉",
    ],
)
def test_the_command_option_takes_any_text_as_it_is(run: Call, jobs: Jobs, command: str) -> None:
    run("enqueue", f"--command={command}")
    assert only(jobs)["command"] == command


def test_a_json_command_keeps_every_character(run: Call, jobs: Jobs) -> None:
    run("enqueue", '{"command":"echo \\"a\\"\\n\\techo \\u00fc \\ud83c\\udf89"}')
    assert only(jobs)["command"] == 'echo "a"\n\techo ü 🎉'


def test_a_word_in_square_brackets_is_a_shell_line(run: Call, jobs: Jobs) -> None:
    run("enqueue", "[ -e /etc/passwd ]")
    assert only(jobs)["command"] == "[ -e /etc/passwd ]"


def test_white_space_around_a_json_object_is_no_obstacle(run: Call, jobs: Jobs) -> None:
    # reading: a shell script often quotes a JSON object over several lines.
    run("enqueue", '{\n  "id": "a",\n  "command": "true"\n}\n')
    assert only(jobs)["command"] == "true"


# ---- the record ----


def test_a_plain_job_gets_the_defaults(run: Call, jobs: Jobs) -> None:
    run("enqueue", "--id", "a", "true")
    job = only(jobs)
    expected = {
        "id": "a",
        "state": "pending",
        "command": "true",
        "attempts": 0,
        "runs": 0,
        "max_retries": 3,
        "priority": 0,
        "timeout": 30,
    }
    assert {key: job.get(key) for key in expected} == expected


def test_a_new_job_is_created_and_updated_now(run: Call, jobs: Jobs) -> None:
    run("enqueue", "true")
    job = only(jobs)
    assert job["created_at"] == job["updated_at"] and near(instant(job["created_at"]), datetime.now(UTC))


def test_the_owners_whole_example_is_accepted(run: Call, jobs: Jobs) -> None:
    example = {
        "id": "unique-job-id",
        "command": "echo 'Hello World'",
        "state": "pending",
        "attempts": 0,
        "max_retries": 3,
        "created_at": "2025-11-04T10:30:00Z",
        "updated_at": "2025-11-04T10:30:00Z",
    }
    assert run("enqueue", json.dumps(example)).out == "unique-job-id\n"


@pytest.mark.parametrize("field", ["created_at", "updated_at"])
def test_times_given_in_json_are_ignored(run: Call, jobs: Jobs, field: str) -> None:
    run("enqueue", json.dumps({"command": "true", field: "2001-01-01T00:00:00Z"}))
    assert near(instant(only(jobs)[field]), datetime.now(UTC))


@pytest.mark.parametrize("field, value", [("state", "pending"), ("attempts", 0), ("runs", 0)])
def test_a_queue_field_that_holds_what_a_new_job_has_anyway_is_accepted(
    run: Call, jobs: Jobs, field: str, value: Any
) -> None:
    run("enqueue", json.dumps({"command": "true", field: value}))
    assert only(jobs)[field] == value


@pytest.mark.parametrize(
    "field, given, stored",
    [
        ("id", "a.b_c-d:e", "a.b_c-d:e"),
        ("max_retries", 0, 0),
        ("max_retries", 7, 7),
        ("priority", -5, -5),
        ("priority", 100, 100),
        ("timeout", 90, 90),
        ("timeout", 1.5, 1.5),
        ("timeout", "90", 90),
        ("timeout", "90s", 90),
        ("timeout", "10m", 600),
        ("timeout", "2h", 7200),
        ("timeout", "1d", 86400),
        ("timeout", "0.5h", 1800),
        ("cwd", "/", "/"),
        ("env", {"A": "1", "B": "x=y"}, {"A": "1", "B": "x=y"}),
        ("tags", ["gpu", "net"], ["gpu", "net"]),
        ("unique", "nightly", "nightly"),
        ("run_at", "2099-01-01T00:00:00Z", "2099-01-01T00:00:00.000Z"),
        ("run_at", "2099-01-01T00:00:00.5Z", "2099-01-01T00:00:00.500Z"),
        ("run_at", "2099-01-01T02:00:00+02:00", "2099-01-01T00:00:00.000Z"),
    ],
)
def test_a_json_field_is_stored(run: Call, jobs: Jobs, field: str, given: Any, stored: Any) -> None:
    run("enqueue", json.dumps({"command": "true", field: given}))
    assert only(jobs)[field] == stored


@pytest.mark.parametrize(
    "arguments, field, stored",
    [
        (["--id", "a.b_c-d:e"], "id", "a.b_c-d:e"),
        (["--id=_x"], "id", "_x"),
        (["--max-retries", "0"], "max_retries", 0),
        (["--max_retries", "7"], "max_retries", 7),
        (["--max-retries=7"], "max_retries", 7),
        (["--priority", "-5"], "priority", -5),
        (["--priority=100"], "priority", 100),
        (["--timeout", "90"], "timeout", 90),
        (["--timeout", "90s"], "timeout", 90),
        (["--timeout", "10m"], "timeout", 600),
        (["--timeout", "2h"], "timeout", 7200),
        (["--timeout", "1d"], "timeout", 86400),
        (["--timeout", "1.5m"], "timeout", 90),
        (["--timeout", "0.25"], "timeout", 0.25),
        (["--cwd", "/"], "cwd", "/"),
        (["--env", "A=1"], "env", {"A": "1"}),
        (["--env", "A=b=c", "--env", "B="], "env", {"A": "b=c", "B": ""}),
        (["--tag", "gpu"], "tags", ["gpu"]),
        (["--tag", "gpu", "--tag", "net"], "tags", ["gpu", "net"]),
        (["--unique=nightly"], "unique", "nightly"),
        (["--at", "2099-01-01T00:00:00Z"], "run_at", "2099-01-01T00:00:00.000Z"),
        (["--at", "2099-01-01T02:00:00+02:00"], "run_at", "2099-01-01T00:00:00.000Z"),
        (["--run-at", "2099-01-01T00:00:00Z"], "run_at", "2099-01-01T00:00:00.000Z"),
        (["--run_at", "2099-01-01T00:00:00Z"], "run_at", "2099-01-01T00:00:00.000Z"),
    ],
)
def test_an_option_is_stored(run: Call, jobs: Jobs, arguments: list[str], field: str, stored: Any) -> None:
    run("enqueue", *arguments, "true")
    assert only(jobs)[field] == stored


@pytest.mark.parametrize("arguments", [["--timeout", "0", "true"], ['{"command":"true","timeout":0}']])
def test_timeout_zero_means_no_limit(run: Call, jobs: Jobs, arguments: list[str]) -> None:
    # reading: "0 = none" may be stored as 0 or, as a field without a value, left out.
    run("enqueue", *arguments)
    assert not only(jobs).get("timeout")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--delay", "10m", "true"],
        ["--delay", "600", "true"],
        ["--at", "+10m", "true"],
        ["--run-at", "+600s", "true"],
        ['{"command":"true","delay":600}'],
        ['{"command":"true","delay":"10m"}'],
        ['{"command":"true","run_at":"+10m"}'],
    ],
)
def test_a_delay_counts_from_now(run: Call, jobs: Jobs, arguments: list[str]) -> None:
    run("enqueue", *arguments)
    assert near(instant(only(jobs)["run_at"]), datetime.now(UTC) + timedelta(minutes=10))


def test_an_instant_that_has_passed_is_accepted(run: Call, jobs: Jobs) -> None:
    # reading: it was due before, so it is due now; a script that computes the time late must not fail.
    run("enqueue", "--at", "2001-01-01T00:00:00Z", "true")
    assert only(jobs)["state"] == "pending"


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
def test_an_instant_is_local_unless_it_names_a_zone(process: Call, jobs: Jobs, written: str, stored: str) -> None:
    process("enqueue", "--at", written, "true", env={"TZ": "XST-2"})
    assert only(jobs)["run_at"] == stored


@pytest.mark.parametrize("clock, utc", [("00:00", "22:00"), ("01:30", "23:30"), ("12:00", "10:00")])
def test_a_time_of_day_is_the_next_one_of_the_local_zone(process: Call, jobs: Jobs, clock: str, utc: str) -> None:
    before = datetime.now(UTC)
    process("enqueue", "--at", clock, "true", env={"TZ": "XST-2"})
    run_at = instant(only(jobs)["run_at"])
    assert f"{run_at:%H:%M:%S}" == f"{utc}:00"
    assert before < run_at <= datetime.now(UTC) + timedelta(days=1)


# ---- ids ----


@pytest.mark.parametrize("name", ["a", "0", "A.b_c-d:e", "_x", ":x", "Z9", "a..b", "x" * 128])
def test_a_given_id_of_the_allowed_characters_is_kept(run: Call, name: str) -> None:
    assert run("enqueue", "--id", name, "true").out == f"{name}\n"


def test_ids_that_differ_in_case_are_two_jobs(run: Call) -> None:
    # reading: ids are plain text.
    run("enqueue", "--id", "a", "true")
    run("enqueue", "--id", "A", "true")
    assert run("list", "--ids").out == "a\nA\n"


def test_an_id_that_begins_like_a_taken_one_is_free(run: Call) -> None:
    run("enqueue", "--id", "job10", "true")
    assert run("enqueue", "--id", "job1", "true").out == "job1\n"


def test_an_id_that_stands_in_another_jobs_command_is_free(run: Call) -> None:
    run("enqueue", "--id", "a", '--command={"id":"b","state":"pending"}')
    assert run("enqueue", "--id", "b", "true").out == "b\n"


@pytest.mark.parametrize("taken", ["ok", "boom", "flaky", "waiting", "gone"])
def test_a_taken_id_is_refused_whatever_became_of_its_job(run: Call, drained: Path, taken: str) -> None:
    assert taken in run("enqueue", "--id", taken, "true", code=1).err


# ---- limits of the command ----


@pytest.mark.parametrize("command", ["x" * COMMAND_BYTES_MAX, "é" * 65_535 + "x"], ids=["ascii", "utf-8"])
def test_a_command_of_the_longest_allowed_length_is_kept(run: Call, jobs: Jobs, command: str) -> None:
    run("enqueue", command)
    assert only(jobs)["command"] == command


# ---- several sources for one value ----


@pytest.mark.parametrize(
    "arguments, field, stored",
    [
        (["--priority", "5"], "priority", 5),
        (["--max-retries", "9"], "max_retries", 9),
        (["--timeout", "7"], "timeout", 7),
        (["--id", "z"], "id", "z"),
        (["--cwd", "/"], "cwd", "/"),
        (["--at", "2098-01-01T00:00:00Z"], "run_at", "2098-01-01T00:00:00.000Z"),
        (["--unique=mine"], "unique", "mine"),
    ],
)
def test_an_option_beats_the_json_field(run: Call, jobs: Jobs, arguments: list[str], field: str, stored: Any) -> None:
    given = {
        "id": "a",
        "command": "true",
        "priority": 1,
        "max_retries": 2,
        "timeout": 3,
        "cwd": "/tmp",
        "run_at": "2099-01-01T00:00:00Z",
        "unique": "theirs",
    }
    run("enqueue", *arguments, json.dumps(given))
    assert only(jobs)[field] == stored


@pytest.mark.parametrize(
    "setting, field, value",
    [("max-retries", "max_retries", 7), ("job-timeout", "timeout", 99)],
)
def test_a_setting_is_copied_into_a_new_job(run: Call, jobs: Jobs, setting: str, field: str, value: int) -> None:
    run("config", "set", setting, str(value))
    run("enqueue", "true")
    assert only(jobs)[field] == value


def test_a_changed_setting_does_not_reach_a_job_that_is_queued(run: Call, jobs: Jobs) -> None:
    run("enqueue", "true")
    run("config", "set", "max-retries", "7")
    assert only(jobs)["max_retries"] == 3


# ---- cwd and env ----


def test_the_directory_of_the_call_is_remembered(process: Call, jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    process("enqueue", "true", cwd=tmp_path / "work")
    assert Path(only(jobs)["cwd"]).resolve() == (tmp_path / "work").resolve()


def test_a_relative_cwd_is_taken_from_the_directory_of_the_call(process: Call, jobs: Jobs, tmp_path: Path) -> None:
    # reading: a worker starts elsewhere, so only an absolute path keeps its meaning.
    (tmp_path / "work").mkdir()
    process("enqueue", "--cwd", "work", "true", cwd=tmp_path)
    stored = Path(only(jobs)["cwd"])
    assert stored.is_absolute() and stored.resolve() == (tmp_path / "work").resolve()


def test_a_directory_whose_name_is_no_utf8_is_refused_and_does_not_spoil_the_queue(
    run: Call, process: Call, tmp_path: Path
) -> None:
    here = tmp_path / "work\udcff"
    here.mkdir()
    assert "--cwd DIR" in process("enqueue", "true", cwd=here, code=1).err
    assert process("enqueue", "--id", "a", "--cwd", "/", "true", cwd=here).out == "a\n" == run("list", "--ids").out


def test_a_cwd_that_does_not_exist_yet_is_accepted(run: Call, jobs: Jobs) -> None:
    # reading: a missing cwd is a failed attempt (design, section 5), so it may appear until then.
    run("enqueue", "--cwd", "/does/not/exist/yet", "true")
    assert only(jobs)["cwd"] == "/does/not/exist/yet"


def test_a_variable_named_without_a_value_is_the_callers(
    run: Call, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREETING", "hello = there")
    run("enqueue", "--env", "GREETING", "true")
    assert only(jobs)["env"] == {"GREETING": "hello = there"}


def test_nothing_of_the_environment_is_kept_unasked(run: Call, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREETING", "a-secret-word")
    run("enqueue", "true")
    assert b"a-secret-word" not in (home / "jobs.json").read_bytes()


# ---- --json ----


def test_json_prints_the_job_as_list_shows_it(run: Call) -> None:
    printed = run("enqueue", "--json", "--id", "a", "--tag", "t", "true").json
    assert [printed] == run("list", "--json").json


def test_json_of_a_job_given_as_json_prints_that_job(run: Call) -> None:
    assert run("enqueue", "--json", '{"id":"a","command":"true"}').json["id"] == "a"


# ---- unique keys ----


def test_a_second_job_with_a_waiting_unique_key_is_not_added(run: Call) -> None:
    run("enqueue", "--id", "a", "--unique=k", "true")
    run("enqueue", "--unique=k", "true")
    assert run("list", "--ids").out == "a\n"


def test_a_unique_duplicate_prints_the_id_of_the_job_that_waits(run: Call) -> None:
    run("enqueue", "--id", "a", "--unique=k", "true")
    assert run("enqueue", "--unique=k", "false").out == "a\n"


def test_a_unique_duplicate_says_so_in_json(run: Call) -> None:
    run("enqueue", "--id", "a", "--unique=k", "true")
    answer = run("enqueue", "--json", "--unique=k", "true").json
    assert (answer["id"], answer["duplicate"]) == ("a", True)


def test_the_first_job_with_a_unique_key_is_no_duplicate(run: Call) -> None:
    assert not run("enqueue", "--json", "--unique=k", "true").json.get("duplicate")


def test_the_json_field_unique_works_like_the_option(run: Call) -> None:
    run("enqueue", '{"id":"a","command":"true","unique":"k"}')
    assert run("enqueue", '{"id":"b","command":"true","unique":"k"}').out == "a\n"


def test_different_unique_keys_do_not_meet(run: Call) -> None:
    run("enqueue", "--id", "a", "--unique=k", "true")
    run("enqueue", "--id", "b", "--unique=kk", "true")
    assert run("list", "--ids").out == "a\nb\n"


def test_a_unique_key_in_another_jobs_command_is_not_met(run: Call) -> None:
    run("enqueue", "--id", "a", '--command="unique":"k"')
    assert run("enqueue", "--id", "b", "--unique=k", "true").out == "b\n"


def test_a_cancelled_job_frees_its_unique_key(run: Call) -> None:
    run("enqueue", "--id", "a", "--unique=k", "true")
    run("cancel", "a")
    assert run("enqueue", "--id", "b", "--unique=k", "true").out == "b\n"


def test_a_completed_job_frees_its_unique_key(run: Call, drained_copy: Path) -> None:
    assert run("enqueue", "--id", "b", "--unique=nightly", "true").out == "b\n"


def test_a_failed_job_that_waits_for_its_retry_keeps_its_unique_key(run: Call, drained_copy: Path) -> None:
    assert run("enqueue", "--id", "b", "--unique=hourly", "true").out == "flaky\n"


def test_a_word_after_unique_is_its_key_where_a_command_is_left(run: Call, jobs: Jobs) -> None:
    run("enqueue", "--unique", "k", "echo hello")
    assert (only(jobs)["unique"], only(jobs)["command"]) == ("k", "echo hello")


def test_a_word_after_unique_is_its_key_beside_the_command_option(run: Call, jobs: Jobs) -> None:
    run("enqueue", "--unique", "k", "--command", "echo hello")
    assert (only(jobs)["unique"], only(jobs)["command"]) == ("k", "echo hello")


def test_the_only_word_after_unique_is_the_command(run: Call, jobs: Jobs) -> None:
    run("enqueue", "--unique", "echo hello")
    assert only(jobs)["command"] == "echo hello"


@pytest.mark.parametrize("given", [["--unique="], ["--unique", ""]], ids=" ".join)
def test_an_empty_unique_key_is_refused(run: Call, given: list[str]) -> None:
    # reading: a script's variable that is not set must not become a key made from the command.
    assert "'unique'" in run("enqueue", *given, "true", code=2).err


def test_unique_before_two_dashes_takes_the_words_as_the_command(run: Call, jobs: Jobs) -> None:
    run("enqueue", "--unique", "--", "echo", "hello there")
    assert shlex.split(only(jobs)["command"]) == ["echo", "hello there"]


@pytest.mark.parametrize(
    "arguments", [["--unique", "echo hello"], ["--unique", "--", "echo", "hello"]], ids=["line", "words"]
)
def test_a_made_unique_key_meets_the_same_command(run: Call, arguments: list[str]) -> None:
    assert run("enqueue", *arguments).out == run("enqueue", *arguments).out


def test_a_made_unique_key_does_not_meet_another_command(run: Call) -> None:
    run("enqueue", "--unique", "echo hello")
    run("enqueue", "--unique", "echo goodbye")
    assert len(run("list", "--ids").lines) == 2


def test_a_made_unique_key_does_not_meet_the_same_command_elsewhere(run: Call) -> None:
    run("enqueue", "--cwd", "/", "--unique", "echo hello")
    run("enqueue", "--cwd", "/tmp", "--unique", "echo hello")
    assert len(run("list", "--ids").lines) == 2


def test_a_made_unique_key_remembers_the_directory_of_the_call(process: Call, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = process("enqueue", "--unique", "echo hello", cwd=tmp_path / "one").out
    assert process("enqueue", "--unique", "echo hello", cwd=tmp_path / "two").out != first


# ---- exit codes that are not retried ----


@pytest.mark.parametrize("name", ["stubborn", "picky"])
def test_an_exit_code_in_no_retry_on_goes_to_the_dlq_at_once(drained: Path, jobs: Jobs, name: str) -> None:
    assert (jobs()[name]["state"], jobs()[name]["attempts"]) == ("dead", 1)


# ---- order and pause ----


def test_jobs_are_listed_in_the_order_they_came(run: Call) -> None:
    for name in ["c", "a", "b"]:
        run("enqueue", "--id", name, "true")
    assert run("list", "--ids").out == "c\na\nb\n"


def test_a_paused_queue_takes_jobs(run: Call) -> None:
    run("pause")
    assert run("enqueue", "--id", "a", "true").out == "a\n"
