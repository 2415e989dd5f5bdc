"""What people and scripts type, and what is understood: durations and times, short options, other names, JSON, ids."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

pytest_plugins = ["worker_fixtures"]

# ---- durations and times ----


def test_a_duration_may_have_several_units(run, jobs):
    run("enqueue", "--id", "a", "--timeout", "1h30m", "true")
    run("enqueue", '{"id": "b", "command": "true", "timeout": "1h30m"}')
    assert [jobs()[id]["timeout"] for id in "ab"] == [5400, 5400]


def test_now_is_a_time(run, jobs):
    run("enqueue", "--id", "a", "--at", "now", "true")
    run("enqueue", '{"id": "b", "command": "true", "run_at": "now"}')
    for job in jobs().values():
        age = datetime.now(UTC) - datetime.fromisoformat(job["run_at"])
        assert timedelta(seconds=-1) < age < timedelta(minutes=1)


def test_a_time_in_the_past_is_accepted_and_said_to_be_due_now(run, jobs):
    by_option = run("enqueue", "--id", "a", "--at", "2020-01-01T00:00", "true")
    by_json = run("enqueue", '{"id": "b", "command": "true", "run_at": "2020-01-01T00:00:00Z"}')
    changed = run("edit", "a", "--at", "2021-01-01T00:00")
    for answer in (by_option, by_json, changed):
        assert "due now" in answer.err
    assert list(jobs()) == ["a", "b"]
    assert run("enqueue", "--at", "now", "true").err == run("enqueue", "--at", "+1h", "true").err == ""


# ---- short options and other names ----


def test_short_options(run, jobs, drain):
    run("enqueue", "--id", "a", "-p", "7", "mkdir", "-p", "x")
    run("enqueue", "--id", "b", "-p", "-7", "printf '1\\n2\\n3\\n'")
    assert [jobs()[id]["priority"] for id in "ab"] == [7, -7] and jobs()["a"]["command"] == "mkdir -p x"
    run("cancel", "a")
    assert run("list", "--ids", "-s", "dead", "-s", "pending", "-n", "1").out == "a\n"
    drain("-c", "2")
    assert run("logs", "-f", "-n", "2", "b").out == "2\n3\n"


@pytest.mark.parametrize("option", ["--detach", "--detached", "--daemon", "--background"])
def test_a_worker_goes_into_the_background_by_any_name(process, worker_pids, option):
    process("worker", "start", option)
    assert len(worker_pids()) == 1
    process("worker", "stop")


@pytest.mark.parametrize("option", ["--at", "--run-at", "--run_at"])
def test_an_error_names_the_option_that_was_typed(run, option):
    err = run("enqueue", option, "tomorrow-ish", "true", code=2).err
    typed = option.replace("_", "-")
    assert f"'{typed}'" in err and ("--at" in err.replace(typed, "")) is False


@pytest.mark.parametrize(
    "option, value",
    [
        ("--id", "a b"),
        ("--max-retries", "-1"),
        ("--no-retry-on", "x"),
        ("--env", "=x"),
        ("--tag", "a b"),
        ("--cwd", ""),
    ],
)
def test_an_error_names_the_option_and_not_the_field(run, option, value):
    assert run("enqueue", f"{option}={value}", "true", code=2).err.startswith(f"Error: '{option}' cannot be")


@pytest.mark.parametrize("typed", ["edit --id", "enqueue --tags", "status --chek", "dlq list --stat"])
def test_a_hint_names_no_option_that_is_like_the_typed_one_in_its_dashes_only(run, typed):
    err = run(*typed.split(), "a", code=2).err
    hint = err.partition("mean")[2]
    assert typed.split()[-1] in err and not re.search("--(cwd|at|help|watch|all|match)", hint)


def test_a_number_that_is_none_is_told_in_plain_words(run):
    assert "'x' is not a valid whole number" in run("list", "--limit", "x", code=2).err


def test_a_setting_below_zero_is_refused_as_a_value(run):
    assert "'max_retries' cannot be -1" in run("config", "set", "max-retries", "-1", code=2).err


# ---- JSON on the command line ----


@pytest.mark.parametrize("word", ['[{"command": "true"}]', "[]", "[ ]", '[ {"command": "true"}]', "[{"])
def test_an_array_is_json_or_refused(run, jobs, word):
    assert "--file" in run("enqueue", word, code=2).err
    run("enqueue", "--file", "-", input=f"true\n{word}\n", code=2)
    assert not jobs()


def test_a_test_of_the_shell_is_a_command(run, jobs):
    run("enqueue", "--id", "a", "[ -d / ] && true")
    run("enqueue", "--id", "b", "[[ 1 ]]")
    assert [job["command"] for job in jobs().values()] == ["[ -d / ] && true", "[[ 1 ]]"]


def test_options_may_follow_a_job_in_json(run, jobs):
    text = '{"id": "a", "command": "true", "priority": 1}'
    run("enqueue", text, "--priority", "5", "--tag", "gpu", "--tag=net", "--max-retries", "2")
    job = jobs()["a"]
    assert (job["priority"], job["tags"], job["max_retries"]) == (5, ["gpu", "net"], 2)
    assert run("enqueue", '{"id": "b", "command": "true"}', "--json").json["id"] == "b"
    run("enqueue", '{"id": "c", "command": "true"}', "-p", "3", "--unique=key")
    assert (jobs()["c"]["priority"], jobs()["c"]["unique"]) == (3, "key")


def test_options_after_the_words_of_a_command_are_still_refused(run, jobs):
    assert "--priority" in run("enqueue", "true", "--priority", "5", code=2).err
    run("enqueue", '{"command": "true"}', "--no-such-option", code=2)
    run("enqueue", "--", '{"command": "true"}', "--priority", "5", code=2)
    assert not jobs()


@pytest.mark.parametrize("job", ['{"command": "a", "command": "b"}', '{"command": "a", "priority": NaN}'])
def test_a_mistake_in_sound_json_does_not_advise_quotes(run, job):
    assert "quotes" not in run("enqueue", job, code=2).err
    assert "single quotes" in run("enqueue", '{"command": a}', code=2).err


@pytest.mark.parametrize("number", ["5", "1.5"])
def test_a_number_as_an_id_is_told_what_it_is(run, number):
    err = run("enqueue", f'{{"id": {number}, "command": "true"}}', code=2).err
    assert "'id'" in err and "number" in err and "text" in err


def test_a_directory_that_is_not_there_is_accepted_with_a_warning(run, jobs, tmp_path):
    by_option = run("enqueue", "--id", "a", "--cwd", str(tmp_path / "none"), "true")
    by_json = run("enqueue", f'{{"id": "b", "command": "true", "cwd": "{tmp_path}/none"}}')
    for answer in (by_option, by_json):
        assert "Warning" in answer.err and f"{tmp_path}/none" in answer.err
    assert list(jobs()) == ["a", "b"]
    assert run("enqueue", "--cwd", str(tmp_path), "true").err == ""


# ---- ids by their beginning or end ----


@pytest.fixture
def made(run):
    """The ids of two jobs that the queue made; they differ in their last characters alone."""
    return run("enqueue", "--file", "-", input="true\nfalse\n").lines


@pytest.mark.parametrize("command", [["show"], ["logs"], ["wait", "--timeout", "0"]], ids=" ".join)
def test_a_unique_end_of_a_made_id_names_the_job(run, made, command):
    code = 124 if command[0] == "wait" else 0
    answer = run(*command, made[1][-5:], code=code)
    assert f"is job {made[1]}" in answer.err
    assert f"is job {made[1]}" not in run(*command, made[1], code=code).err


def test_dlq_show_takes_an_end_of_an_id_too(run, made):
    run("cancel", made[0])
    answer = run("dlq", "show", made[0][-4:], "--json")
    assert answer.json["id"] == made[0] and made[0] in answer.err


def test_several_matches_are_named_and_refused(run, made):
    ids = [*made, *run("enqueue", "--file", "-", input="true\n" * 6).lines]
    err = run("show", ids[0][:6], code=1).err
    assert sum(id in err for id in ids) == 5
    assert run("show", made[0][-3:], code=1).out == ""  # too short
    assert "zzzzzz" in run("show", "zzzzzz", code=1).err


def test_an_exact_id_wins_and_given_ids_are_typed_whole(run, made):
    end = made[1][-4:]
    run("enqueue", "--id", end, "echo exact")
    assert run("show", end, "--json").json["command"] == "echo exact"
    run("enqueue", "--id", "nightly-backup", "true")
    run("show", "nightly", code=1)


@pytest.mark.parametrize(
    "words", ["cancel", "retry", "rerun", "edit --priority 1", "dlq retry", "enqueue true --after"]
)
def test_what_changes_something_takes_whole_ids_only(run, made, words):
    verb, *options = words.split()
    args = ["enqueue", "--after", made[1][-5:], "true"] if verb == "enqueue" else [*words.split(), made[1][-5:]]
    run(*args, code=1)


# ---- the home ----


def test_a_relative_home_in_the_environment_is_refused(process, tmp_path):
    answer = process("list", env={"QUEUECTL_HOME": "queue"}, cwd=tmp_path, code=2)
    assert "QUEUECTL_HOME" in answer.err and not (tmp_path / "queue").exists()


def test_a_tilde_in_the_environment_is_your_own_directory(process, tmp_path):
    env = {"QUEUECTL_HOME": "~/queue", "HOME": str(tmp_path)}
    process("enqueue", "--id", "a", "true", env=env, cwd=tmp_path)
    assert '"a"' in (tmp_path / "queue" / "jobs.json").read_text()


def test_help_has_no_bounds_nobody_asked_for(run):
    for words in ("enqueue", "list", "edit", "logs", "worker start", "dlq list", "dlq retry"):
        out = run(*words.split(), "--help").out
        assert "<=x" not in out and "[new" not in out


@pytest.mark.parametrize("words", ["edit", "dlq retry"])
def test_what_changes_a_job_shows_no_defaults_of_new_ones(run, words):
    assert "job_timeout" in run("enqueue", "--help").out
    page = run(*words.split(), "--help").out.partition("Options:")[2]
    assert not re.search(r"\[(?!=)", page), page
