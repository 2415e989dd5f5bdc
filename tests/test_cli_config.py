"""`config show|list|get|set|unset` as a black box, and settings written by hand."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.test_packaging import DEFAULTS

# A setting, what `config set` gets, and what config.json then holds.
SETTABLE: list[tuple[str, str, Any]] = [
    ("max_retries", "0", 0), ("backoff_base", "0.01", 0.01), ("backoff_base", "1", 1), ("backoff_max", "60", 60),
    ("backoff_jitter", "0.5", 0.5), ("job_timeout", "0", 0), ("job_timeout", "1.5m", "1.5m"),
    ("no_retry_on", "2,64-78", "2,64-78"), ("grace_period", "0.5", 0.5), ("worker_count", "4", 4),
    ("limits", "gpu=1,net=4", "gpu=1,net=4"), ("limits", "", ""),
    ("runner", "srun --quiet --ntasks=1 sh -c", "srun --quiet --ntasks=1 sh -c"), ("fsync", "always", "always"),
    ("lock_timeout", "2", 2), ("keep_completed", "0", "0"), ("keep_completed", "7d", "7d"), ("log_max", "1G", "1G"),
    ("keep_env", "PATH,VIRTUAL_ENV", "PATH,VIRTUAL_ENV"),
    ("on_dead", "mail -s 'a job died' me", "mail -s 'a job died' me"),
    ("on_finish", "logger queuectl", "logger queuectl"), ("paused", "true", True), ("paused", "false", False),
]  # fmt: skip
BOTH_SPELLINGS = pytest.mark.parametrize("key", ["max-retries", "max_retries", "MAX_RETRIES"])


# ---- show, get ----


def test_config_show_holds_every_default_of_a_new_home(run):
    assert run("config", "show", "--json").json == run("config", "list", "--json").json == DEFAULTS
    lines = run("config", "show").lines
    for key in DEFAULTS:
        assert len([line for line in lines if re.match(rf"\s*{key.replace('_', '[-_]')}\b", line)]) == 1


@pytest.mark.parametrize("alias", [["list"], ["get"]])
def test_an_alias_of_config_show_prints_the_same(run, alias):
    run("config", "set", "max-retries", "5")
    assert run("config", *alias).out == run("config", "show").out


def test_config_get_prints_the_default_alone(run):
    # reading: a text stands bare, an empty one is an empty line, paused is true or false.
    for key, value in DEFAULTS.items():
        spelled = value if isinstance(value, str) else json.dumps(value)
        assert run("config", "get", key).out == f"{spelled}\n"


@BOTH_SPELLINGS
def test_config_takes_a_key_in_both_spellings(run, key):
    assert run("config", "get", key).out == "3\n"
    run("config", "set", key, "5")
    assert run("config", "show", "--json").json == {**DEFAULTS, "max_retries": 5}
    run("config", "unset", key)
    assert run("config", "show", "--json").json == DEFAULTS


# ---- set, unset ----


@pytest.mark.parametrize("key, text, value", SETTABLE)
def test_config_get_prints_what_was_set(run, home, key, text, value):
    run("config", "set", key, text)
    assert run("config", "get", key).out == f"{text}\n"
    stored = json.loads((home / "config.json").read_bytes())[key]
    assert (stored, type(stored)) == (value, type(value))


def test_every_setting_is_set_here():
    assert {key for key, _, _ in SETTABLE} == set(DEFAULTS)


def test_config_set_and_unset_keep_the_other_settings_and_the_jobs(run, jobs):
    run("enqueue", "true")
    before = jobs()
    run("config", "set", "max-retries", "5")
    run("config", "set", "backoff-base", "3")
    assert run("config", "show", "--json").json == {**DEFAULTS, "max_retries": 5, "backoff_base": 3}
    run("config", "unset", "max-retries")
    assert run("config", "get", "backoff-base").out == "3\n"
    assert jobs() == before


def test_config_set_says_what_is_now_true(run):
    result = run("config", "set", "max-retries", "5")
    assert re.search(r"max[-_]retries\b.*\b5\b", result.out + result.err)


def test_config_json_is_pretty_printed(run, home):
    run("config", "set", "max-retries", "5")
    assert re.search(r'^  "max_retries": 5,?$', (home / "config.json").read_text(), re.MULTILINE)


@pytest.mark.parametrize("key, near", [("max-retry", "max.retries"), ("worker_cuont", "worker.count")])
@pytest.mark.parametrize("command", [["get"], ["set"], ["unset"]])
def test_an_unknown_key_is_refused_with_the_nearest_name(run, command, key, near):
    arguments = [*command, key, "5"] if command == ["set"] else [*command, key]
    assert re.search(near, run("config", *arguments, code=2).err)


def test_config_unset_of_a_setting_that_was_never_set_is_no_error(run):
    # reading: what it asks for is true already.
    run("config", "unset", "max-retries", code=0)


# ---- written by hand ----


def test_a_dashed_key_written_by_hand_is_that_setting_and_can_be_set(run, home):
    run("config", "set", "max-retries", "5")
    (home / "config.json").write_text('{"max-retries": 4}')
    assert run("config", "get", "max_retries").out == "4\n"
    run("config", "set", "max-retries", "6")
    run("enqueue", "--id", "a", "true")
    assert run("show", "a", "--json").json["max_retries"] == 6


@pytest.mark.parametrize("text", ['{"max_retries": 9}', '{\n\n  "max_retries": 9\n}\n', '{"max_retries":9}\n'])
def test_a_setting_written_by_hand_is_in_force(run, home, text):
    (home / "config.json").write_text(text)
    assert run("config", "show", "--json").json == {**DEFAULTS, "max_retries": 9}


@pytest.mark.parametrize(
    "text",
    [
        # reading: a file of no bytes is a damaged one, for `{}` is how no setting is written.
        "", "not json", '{"max_retries": 5', "[]", '"text"', '{"max_retries": "many"}', '{"max_retries": -1}',
        '{"fsync": "sometimes"}', '{"paused": "perhaps"}', '{"backoff_base": NaN}', "NaN",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "arguments", [["config", "show"], ["config", "set", "max-retries", "5"], ["pause"], ["enqueue", "true"]]
)
def test_a_damaged_config_is_refused_and_never_replaced(run, home, arguments, text):
    (home / "config.json").write_text(text)
    result = run(*arguments, code=3)
    assert ("config.json" in result.err, (home / "config.json").read_text()) == (True, text)
