"""The pure core: settings, values, the job record and its states. Tables of cases, then properties.

Nothing here touches a file or reads the clock.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import queuectl as q

NOW = "2026-11-24T08:15:30.123Z"
LATER = "2026-11-24T09:00:00.000Z"
CONFIG = q.parse_settings({})

pure = settings(deadline=None, database=None, max_examples=60)


def job(**values: Any) -> q.Job:
    """A pending job, with these fields instead of its own."""
    base: dict[str, Any] = {
        "id": "a", "state": "pending", "seq": 1, "unique": None, "command": "true", "attempts": 0, "runs": 0,
        "max_retries": 3, "priority": 0, "timeout": 30, "created_at": NOW, "updated_at": NOW,
    }  # fmt: skip
    return q.Job(**{**base, **values})


RUNNING: dict[str, Any] = {"worker": "w1", "slot": 0, "started_at": NOW, "attempts": 1, "runs": 1}
STATES: dict[str, q.Job] = {
    "pending": job(),
    "processing": job(state="processing", **RUNNING),
    "completed": job(state="completed", attempts=1, runs=1, started_at=NOW, finished_at=NOW),
    "failed": job(state="failed", attempts=1, runs=1, started_at=NOW, run_at=LATER),
    "dead": job(state="dead", attempts=3, runs=3, started_at=NOW, finished_at=NOW),
}


@pytest.fixture
def in_zone(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`in_zone("Europe/Berlin")`: the local zone from here to the test's end."""

    def set_zone(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield set_zone
    monkeypatch.undo()
    time.tzset()


# -- Durations, exit codes, settings


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (90, 90), ("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86_400), ("1.5h", 5400), (".5m", 30),
        ("0.25", 0.25), ("2.", 2), (0, 0), ("0", 0), (0.5, 0.5), (" 5 m ", 300), ("1D", 86_400), ("10M", 600),
        ("1h30m", 5400), ("1d2h3m4s", 93_784), ("2m30s", 150), ("1H30M", 5400),
        (q.DURATION_MAX_S, q.DURATION_MAX_S), ("36500d", q.DURATION_MAX_S),
    ],
)  # fmt: skip
def test_a_duration_is_seconds_whatever_its_spelling(value, seconds):
    assert q.parse_duration(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "", " ", "s", "-1", "1w", "h", "1h30", "1h 30m", "1h-30m", "1.2.3h4m", "1h 30m x", "inf", "nan", "1,5", "0x10",
        "1 2", None, True, False, [], {}, -1, -0.001,
        math.nan, math.inf, q.DURATION_MAX_S + 1, "36501d", "9" * 400, 10**400,
    ],
    ids=lambda value: ascii(value)[:12],
)  # fmt: skip
def test_a_value_that_is_no_duration_is_refused(value):
    with pytest.raises(q.BadValue):
        q.parse_duration(value)


@pytest.mark.parametrize(
    ("given", "text", "codes"),
    [
        ("2,64-66", "2,64-66", {2, 64, 65, 66}), ([2, 5], "2,5", {2, 5}), (" 1 , 3 - 4 ", "1,3-4", {1, 3, 4}),
        ("0-255", "0-255", set(range(256))), ("  ", "", set()), ([], "", set()), ("7-7", "7-7", {7}),
    ],
)  # fmt: skip
def test_exit_codes_are_codes_and_ranges(given, text, codes):
    assert q.parse_exit_codes(given) == q.parse_exit_codes(text) == text
    assert q.exit_codes(text) == codes


@pytest.mark.parametrize(
    "given",
    ["256", "-1", "5-2", "a", "1,,2", "2,", "1-", "-", "1-2-3", "1 2", "0-999999999999", "9" * 5000]
    + [[256], [-1], [True], [None], [1.5], ["2"], 2, None, {}],
    ids=lambda given: ascii(given)[:12],
)
def test_a_value_that_is_no_exit_code_is_refused(given):
    with pytest.raises(q.BadValue, match="no_retry_on"):
        q.parse_exit_codes(given)


# A setting: values as config.json spells them with what `Config` holds, and values that are refused.
SETTING_CASES: dict[str, tuple[list[tuple[object, object]], list[object]]] = {
    "max_retries": ([(0, 0), (1000, 1000)], [-1, 1001, 1.5, "3", True, None]),
    "backoff_base": ([(0, 0), (1.5, 1.5), (1000, 1000)], [-1, 1001, "2", math.nan, math.inf, True, 10**400]),
    "backoff_max": ([("1h", 3600), (0, 0)], ["x", -1, None, True]),
    "backoff_jitter": ([(0.5, 0.5), (1, 1)], [-0.1, 1.1, "0", math.nan]),
    "job_timeout": ([("10m", 600), (0, 0)], ["soon", -1, True]),
    "no_retry_on": ([("2,64-78", "2,64-78"), ([2], "2")], ["256", 2, None]),
    "grace_period": ([("1.5s", 1.5)], ["-1s", None]),
    "worker_count": ([(1, 1), (1000, 1000)], [0, 1001, "1", True]),
    "limits": (
        [("gpu=1, net=4", {"gpu": 1, "net": 4}), ("", {}), ("gpu=0", {"gpu": 0})],
        ["gpu", "gpu=", "=1", "gpu=-1", "gpu=x", 1, {"gpu": 1}, "gpu=٣", "gpu=1234567", "a=1,a=2", "\ud800=1"],
    ),
    "runner": (
        [("sh -c", ("sh", "-c")), ("ssh 'my host'", ("ssh", "my host")), ("/bin/sh", ("/bin/sh",))],
        ["", "  ", "'", "sh 'x", 1, None, "sh\0", "bin/sh", "./sh"],
    ),
    "fsync": ([("always", "always"), ("never", "never")], ["sometimes", "", None, True, []]),
    "lock_timeout": ([(0.25, 0.25)], ["x", -1]),
    "keep_completed": ([("30d", 2_592_000), (0, 0)], ["month", -1]),
    "log_max": (
        [("100M", 100 << 20), (4096, 4096), ("4.5k", 4608), ("1GB", 1 << 30), ("1 GiB", 1 << 30)],
        ["", "x", "1.5k", 0, 4095, "1E", True, 1.5, "2048T", None, 10**400, "9" * 400],
    ),
    "keep_env": (
        [("PATH, VIRTUAL_ENV", ("PATH", "VIRTUAL_ENV")), ("", ()), (" ,_x1,", ("_x1",)), ("QUEUE", ("QUEUE",))],
        ["QUEUECTL_HOME", "PATH,QUEUECTL_", "PATH LANG", "PATH;LANG", "A=1", "1A", "$PATH", "é", 1, None, ["A"], "a\0"],
    ),
    "on_dead": ([("mail me", "mail me")], [1, None, "a\0b", "x" * 131_072]),
    "on_finish": ([("", "")], [1, None, "a\0b", "\ud800"]),
    "paused": ([(True, True)], ["true", 1, 0, None]),
}


@pytest.mark.parametrize("key", q.SETTINGS)
def test_a_setting_takes_good_values_and_refuses_bad_ones_with_its_name(key):
    good, bad = SETTING_CASES[key]
    for spelled, held in good:
        assert getattr(q.parse_settings({key: spelled}), key) == held
    for value in bad:
        with pytest.raises(q.BadValue, match=key):
            q.parse_settings({key: value})


def test_the_default_settings_are_held_parsed():
    assert q.parse_settings(q.DEFAULTS) == CONFIG
    assert q.DEFAULTS["keep_completed"] == "30d" and CONFIG.keep_completed == 30 * 86_400
    assert isinstance(CONFIG.job_timeout, int), "whole seconds stay whole in JSON"


def test_a_setting_is_known_with_dashes_and_in_capitals():
    assert (q.known_setting("max-retries"), q.known_setting("FSYNC")) == ("max_retries", "fsync")
    with pytest.raises(q.BadValue, match="nothing_like_it"):
        q.known_setting("nothing_like_it")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("max_retries", "5", 5), ("max_retries", "x", "x"), ("backoff_base", "1.5", 1.5), ("job_timeout", "10m", "10m"),
        ("job_timeout", " 30 ", 30), ("paused", "True", True), ("paused", "maybe", "maybe"), ("runner", "5", "5"),
        ("keep_completed", "0", "0"), ("log_max", "1G", "1G"), ("max_retries", "[" * 100_000, "[" * 100_000),
    ],
    ids=lambda value: str(value)[:12],
)  # fmt: skip
def test_config_set_stores_a_number_where_the_default_is_one(key, text, value):
    got = q.setting_from_text(key, text)
    assert got == value and type(got) is type(value)


# -- Instants


@pytest.mark.parametrize(
    ("zone", "given", "then"),
    [
        ("UTC", "2026-12-24T18:00", "2026-12-24T18:00:00.000Z"), ("UTC", "20261224T180000", "2026-12-24T18:00:00.000Z"),
        ("Europe/Berlin", "2026-12-24T18:00", "2026-12-24T17:00:00.000Z"),
        ("Europe/Berlin", "2026-07-24 18:00:05.5", "2026-07-24T16:00:05.500Z"),
        ("Europe/Berlin", "2026-12-24T18:00+05:30", "2026-12-24T12:30:00.000Z"),
        ("Europe/Berlin", "2026-12-24T18:00Z", "2026-12-24T18:00:00.000Z"),
        ("America/New_York", "2026-12-24", "2026-12-24T05:00:00.000Z"),
        ("UTC", "+10m", "2026-11-24T08:25:30.123Z"), ("UTC", "+1.5s", "2026-11-24T08:15:31.623Z"), ("UTC", "+0", NOW),
        ("UTC", "now", NOW),
        ("UTC", " 09:00 ", "2026-11-24T09:00:00.000Z"), ("UTC", "8:16", "2026-11-24T08:16:00.000Z"),
        ("UTC", "08:15", "2026-11-25T08:15:00.000Z"),  # it is 08:15:30 already
        ("Europe/Berlin", "09:00", "2026-11-25T08:00:00.000Z"), ("Europe/Berlin", "10:00", "2026-11-24T09:00:00.000Z"),
        ("Pacific/Auckland", "00:30", "2026-11-24T11:30:00.000Z"),  # 21:15 there
        *[("UTC", given, None) for given in (
            "+99999d", "24:00", "12:60", "12", "", "+", "+-5", "2026-13-01", "2026-02-30T00:00", "soon", "1790000000",
            1790000000, None, True, "9999-12-31T23:59:59.9999Z", "0000-01-01",
        )],
    ],
)  # fmt: skip
def test_an_instant_is_stored_in_utc(in_zone, zone, given, then):
    in_zone(zone)
    if then is None:
        with pytest.raises(q.BadValue):
            q.parse_instant(given, "run_at", NOW)
    else:
        assert q.parse_instant(given, "run_at", NOW) == then


def test_a_time_of_day_across_a_change_of_the_clocks_is_that_time_on_the_wall(in_zone):
    in_zone("Europe/Berlin")
    # The night of 2026-03-29 lacks 02:00-03:00; so 06:00 comes after 5 hours where the clock shows 6.
    assert q.parse_instant("06:00", "run_at", "2026-03-28T23:00:00.000Z") == "2026-03-29T04:00:00.000Z"
    now = "2026-10-25T01:15:00.000Z"  # 02:15, for the second time that night
    assert q.parse_instant("02:30", "run_at", now) == "2026-10-25T01:30:00.000Z"


CANONICAL = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pure
@given(st.floats(0, 4_000_000_000), st.floats(0, q.DURATION_MAX_S))
def test_instants_sort_as_texts_and_never_leave_the_calendar(seconds, wait):
    one = q.format_instant(seconds)
    two = q.add_seconds(one, wait)
    assert CANONICAL.fullmatch(one) and CANONICAL.fullmatch(two) and one <= two
    assert abs(q.instant_s(one) - seconds) <= 0.001
    assert q.parse_instant(one, "run_at", NOW) == one
    assert q.format_instant(q.instant_s(one)) == one


def test_an_instant_far_ahead_is_exact_and_stays_in_the_calendar():
    assert q.add_seconds("9999-12-31T00:00:00.000Z", q.DURATION_MAX_S) == "9999-12-31T23:59:59.000Z"
    assert q.add_seconds("6325-04-08T15:04:32.382Z", 0) == "6325-04-08T15:04:32.382Z"


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00.000Z"),
        ("2026-01-01T01:00:00+01:00", "2026-01-01T00:00:00.000Z"),
        ("2026-01-01T00:00:00.1239Z", "2026-01-01T00:00:00.124Z"),
        ("2026-01-01T00:00:00,000Z", "2026-01-01T00:00:00.000Z"),
        ("2026-01-01T000000.00000Z", "2026-01-01T00:00:00.000Z"),
    ],
)
def test_an_instant_from_a_hand_edit_gets_the_stored_form(given, stored):
    assert q.job_from_dict({**q.job_to_dict(job()), "started_at": given}).started_at == stored


# -- JSON


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "line 1"), ("", "not valid JSON"), ("[1,]", "not valid JSON"), ("{'a': 1}", "not valid JSON"),
        ('{"a": NaN}', "'a'"), ('{"b": [[-Infinity]]}', "'b'"), ('{"a": {"c": 1e400}}', "'c'"),
        ('{"a": 1, "a": 1}', "'a' twice"), ('{"x": {"b": 1, "c": 2, "b": 3}}', "'b' twice"),
        ("[" * 100_000, "nested too deeply"), ('{"a":' * 100_000, "nested too deeply"),
        ("1" * 5000, "not usable"), ('{"a": -' + "9" * 5000 + "}", "not usable"), ("1 2", "not valid JSON"),
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_json_that_is_not_quite_json_is_refused_in_words(text, word):
    with pytest.raises(q.BadValue, match=word) as caught:
        q.parse_json(text, "The job")
    assert str(caught.value).startswith("The job")


plain_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pure
@given(plain_json)
def test_any_json_value_comes_back_as_it_was(value):
    assert q.parse_json(q.encode_json(value).decode(), "The value") == value
    assert b"\n" not in q.encode_json(value) and b"\t" not in q.encode_json(value)


# -- Values of fields


@pure
@given(st.integers(0, 36**8 - 1), st.integers(0, 36**4 - 1), st.integers(0, 36**8 - 1), st.integers(0, 36**4 - 1))
def test_made_ids_are_usable_and_differ_with_time_or_number(ms, n, ms2, n2):
    id = q.make_id(ms, n)
    assert q.parse_id(id, "id") == id and re.fullmatch("[0-9a-z]{12}", id)
    assert (id == q.make_id(ms2, n2)) == ((ms, n) == (ms2, n2))
    assert (int(id[:8], 36), int(id[8:], 36)) == (ms, n)


GOOD_FIELDS: list[tuple[str, object]] = [
    *[("id", id) for id in ("a", "job1", "A.b_c-d:e", "_x", ":x", "0", "x" * 128)],
    *[("env", env) for env in ({"A": "1"}, {"A_b": "", "ü": "ß"}, {f"V{n}": "" for n in range(1000)})],
    *[("tags", tags) for tags in (["b", "a", "é:x/1"], ["x" * 64])],
    ("command", "x" * 131_071), ("cwd", "/"), ("unique", "k" * 4096), ("priority", -1_000_000), ("timeout", 0),
    ("after", ["a", {"id": "b", "any": True}]),
]  # fmt: skip
BAD_FIELDS: dict[str, list[object]] = {
    "id": ["", ".a", "-a", "a b", "a/b", "a\n", "é", 'a"b', "a\\", "x" * 129, "a\0", 1, True, ["a"], "٣"],
    "command": ["", " \n", 1, ["echo"], "a\0b", "\ud800", "x" * 131_072, "é" * 65_536],
    "unique": ["", 1, "\ud800", "x" * 4097],
    "max_retries": [-1, 1001, "3", True],
    "priority": ["high", 1.5, 1_000_001],
    "timeout": ["x", -1, True, math.nan, 10**400],
    "cwd": ["x", "", 1, "/\ud800", "/" + "x" * 4096],
    "env": [
        [], "A=1", {"": "x"}, {"A=B": "x"}, {"A": 1}, {"A": None}, {"A": "a\0"}, {"A\0": ""}, {"A": "\ud800"},
        {f"V{n}": "" for n in range(1001)}, {"A": "x" * 131_072}, {"A": ["x"]},
    ],
    "tags": [
        "gpu", [1], [""], ["a b"], ["a,b"], ["a=b"], ["x" * 65], ["a\n"], ["a\0"], ["\ud800"], ["a\x7f"],
        [f"t{n}" for n in range(33)], {"a": 1},
    ],
    "after": ["a", 1, [1], [None], [[]], [{"any": True}], [{"id": "a", "any": 1}], [{"id": "a", "some": True}]],
    "no_retry_on": ["x", 5],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), GOOD_FIELDS, ids=lambda value: str(value)[:12])
def test_a_good_field_is_taken_as_it_is(name, value):
    assert q.parse_spec({"command": "x", name: value}, NOW)[name] == value


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_a_bad_field_is_refused_with_its_name(name):
    for value in BAD_FIELDS[name]:
        with pytest.raises(q.BadValue, match=name):
            q.parse_spec({"command": "x", name: value}, NOW)
        with pytest.raises(q.BadValue, match=name):
            q.job_from_dict({**q.job_to_dict(job()), name: value})


def test_what_is_given_twice_is_kept_once():
    assert q.parse_tags(["b", "a", "b"]) == ["b", "a"]
    both = ["a", {"id": "a", "any": True}, {"id": "b", "any": True}]
    assert q.parse_after(both) == ["a", {"id": "b", "any": True}]
    assert q.parse_after(both[::-1]) == [{"id": "b", "any": True}, "a"]


def test_an_empty_list_or_object_is_no_value():
    assert [q.parse_tags([]), q.parse_env({}), q.parse_after([])] == [None, None, None]


# -- What a user may say of a new job


def test_a_field_of_a_new_job_is_kept_in_the_form_of_the_record():
    given = {"command": "x", "timeout": "10m", "run_at": "2026-12-24T18:00Z", "no_retry_on": [2, 64], "delay": None}
    kept = {"command": "x", "timeout": 600, "run_at": "2026-12-24T18:00:00.000Z", "no_retry_on": "2,64"}
    assert q.parse_spec(given, NOW) == kept
    assert q.parse_spec({"command": "x", "run_at": None, "delay": "2m"}, NOW) == {"command": "x", "delay": 120}


@pytest.mark.parametrize("state", [{"state": "pending"}, {"attempts": 0}, {"runs": 0}, {"created_at": 5}])
def test_what_a_new_job_has_anyway_may_be_said(state):
    said = {"command": "x", **state, "updated_at": "2020-01-01T00:00:00Z"}
    assert q.parse_spec(said, NOW) == {"command": "x"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state", "completed"), ("state", "Pending"), ("attempts", 1), ("attempts", "0"),
        ("runs", 1), ("seq", 1), ("worker", "w"), ("slot", 0), ("started_at", NOW), ("finished_at", NOW),
        ("cancelled_at", NOW), ("outcome", "exited"), ("exit_code", 0), ("signal", 9), ("reason", "x"),
        ("recoveries", 0), ("history", []),
    ],
)  # fmt: skip
def test_a_field_of_the_queue_cannot_be_given(name, value):
    with pytest.raises(q.BadValue, match=f"'{name}' belongs to the queue"):
        q.parse_spec({"command": "x", name: value}, NOW)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ([], "JSON object"), ("x", "JSON object"), ({}, "command"), ({"command": None}, "command"),
        ({"command": "x", "run_at": "09:00", "delay": 5}, "not both"), ({"command": "x", "delay": "soon"}, "delay"),
        ({"command": "x", "delay": 10**400}, "delay"), ({"command": "x", "run_at": "soon"}, "run_at"),
    ],
    ids=lambda given: ascii(given)[:40],
)  # fmt: skip
def test_a_bad_job_is_refused(given, word):
    with pytest.raises(q.BadValue, match=word):
        q.parse_spec(given, NOW)


def test_a_new_job_copies_the_settings_and_turns_its_delay_into_an_instant():
    config = q.parse_settings({"max_retries": 7, "job_timeout": "1m"})
    made = q.new_job(dict(command="true", id="a", seq=1, delay=60), config, NOW)
    assert made == job(max_retries=7, timeout=60, run_at="2026-11-24T08:16:30.123Z")
    said = q.new_job(dict(command="true", max_retries=0, timeout=0, priority=3), config, NOW)
    assert (said.max_retries, said.timeout, said.priority, said.run_at) == (0, 0, 3, None)
    assert q.check_job(made) is None


def test_whatever_may_be_said_of_a_new_job_stands_in_its_record():
    said: dict[str, Any] = dict(
        command="true", id="a", unique="k", max_retries=5, priority=3, timeout=7, run_at="2030-01-01T00:00:00.000Z",
        cwd="/", env={"A": "1"}, tags=["t"], needs={"gpu": 2}, held=True, after=["b"], no_retry_on="2",
    )  # fmt: skip
    assert q.NEW_JOB_FIELDS == (*said, "delay"), "a new field is said here too; a delay becomes run_at, as above"
    made = q.new_job(said, CONFIG, NOW)
    assert {name: getattr(made, name) for name in said} == said


# -- The record: JSON to record and back

texts = st.text(min_size=1, max_size=8).filter(lambda text: "\0" not in text and text.strip())
instants = st.integers(0, 4_000_000_000_000).map(lambda ms: q.format_instant(ms / 1000))
extras = st.dictionaries(
    st.text(st.characters(), min_size=1, max_size=6).filter(lambda name: name not in q.JOB_FIELDS),
    plain_json.filter(lambda value: value is not None),
    max_size=3,
)


@st.composite
def any_job(draw: st.DrawFn) -> q.Job:
    """A job that check_job passes, in any state, with any of its optional fields."""
    state = draw(st.sampled_from(q.STATES))
    max_retries = draw(st.integers(2 if state == "failed" else 0, 5))
    left = state in ("pending", "failed")  # such a job has an attempt left
    attempts = draw(st.integers(1 if state in ("processing", "failed") else 0, max(1, max_retries) - left))
    over = state in q.OVER
    some = draw(st.sets(st.sampled_from(["cwd", "env", "tags", "unique", "reason", "history", "extra", "recoveries"])))
    return job(
        id=draw(st.from_regex(r"[A-Za-z0-9_:][A-Za-z0-9._:-]{0,20}", fullmatch=True)), state=state,
        seq=draw(st.integers(0, 10**12)), command=draw(texts), max_retries=max_retries, attempts=attempts,
        runs=attempts + draw(st.integers(0, 9)), priority=draw(st.integers(-1_000_000, 1_000_000)),
        timeout=q.parse_duration(draw(st.integers(0, 9999) | st.floats(0, 9999))), created_at=draw(instants),
        updated_at=draw(instants), run_at=draw(instants) if state == "failed" else None,
        unique=draw(texts) if "unique" in some else None, cwd="/" + draw(texts) if "cwd" in some else None,
        env={"A": draw(texts)} if "env" in some else None, tags=["gpu"] if "tags" in some else None,
        worker="w" if state == "processing" else None, slot=0 if state == "processing" else None,
        started_at=draw(instants) if attempts else None, finished_at=draw(instants) if over else None,
        reason=draw(st.text(max_size=5)).replace("\0", "") if "reason" in some else None,
        recoveries=2 if "recoveries" in some else None, history=[{"run": 1}] if "history" in some else None,
        extra=(draw(extras) or None) if "extra" in some else None,
    )  # fmt: skip


@pure
@given(any_job())
def test_a_job_comes_back_from_its_line_as_it_was(one):
    line = q.encode_job(one)
    assert q.decode_job(line) == one
    assert q.encode_job(q.decode_job(line)) == line
    assert b"\n" not in line and b"\t" not in line
    assert q.head_of(line) == (one.id, one.state, one.seq)
    names = list(json.loads(line))
    own = [name for name in names if name in q.JOB_FIELDS]
    assert own == [name for name in q.JOB_FIELDS if getattr(one, name) is not None]
    assert names[len(own) :] == list(one.extra or ()), "unknown fields stand behind ours, in their own order"


def test_the_line_of_a_job_is_the_format_that_was_promised():
    line = q.encode_job(STATES["processing"]._replace(unique="k", tags=["x"], extra={"note": "ü"}))
    assert line.decode() == (
        '{"id": "a", "state": "processing", "seq": 1, "unique": "k", "command": "true", "attempts": 1, "runs": 1, '
        f'"max_retries": 3, "priority": 0, "timeout": 30, "created_at": "{NOW}", "updated_at": "{NOW}", '
        f'"tags": ["x"], "worker": "w1", "slot": 0, "started_at": "{NOW}", "note": "ü"}}'
    )


def test_the_order_of_fields_is_the_designs():
    assert q.JOB_FIELDS == tuple(
        "id state seq unique command attempts runs max_retries priority timeout created_at updated_at run_at cwd env"
        " tags needs units held after no_retry_on worker slot started_at finished_at cancelled_at outcome exit_code"
        " signal reason recoveries history".split()
    )
    assert q.FIELD_CHECKS.keys() == set(q.JOB_FIELDS)


def test_a_record_without_a_field_that_is_always_there_is_refused():
    record = q.job_to_dict(job())
    for name in record:
        with pytest.raises(q.BadValue, match=name):
            q.job_from_dict({key: value for key, value in record.items() if key != name})


RUN = {"run": 1, "attempt": 1, "started_at": NOW, "finished_at": LATER, "outcome": "exited", "exit_code": 0}
RECORD_BOUNDS: dict[str, tuple[list[object], list[object]]] = {  # good values, then bad ones
    "state": ([], ["Pending", "running", 1, []]),
    "seq": ([0, 10**12], [-1, 1.5, "1", True, 10**12 + 1]),
    "attempts": ([0], [-1, "1", True, 10**6 + 1]),
    "runs": ([10**6], [-1, 0.5, 10**6 + 1]),
    "recoveries": ([0, 10**6], [-1, "1", 10**6 + 1]),
    "slot": ([0], [-1, "0"]),
    "worker": ([], ["", 1, "x" * 129]),
    **dict.fromkeys(
        ("created_at", "updated_at", "run_at", "started_at", "finished_at", "cancelled_at"),
        ([], ["x", "", 5, {}, False, "2026-02-30T00:00:00.000Z"]),
    ),
    "needs": (
        [{"gpu": 1}, {"gpu": 999, "_n9": 2}],
        [{"gpu": 0}, {"gpu": 1000}, {"a-b": 1}, {"9": 1}, {"": 1}, {"g": "1"}, []],
    ),
    "units": ([], [{"gpu": 1}, {"gpu": ["0"]}, {"gpu": [True]}, [0]]),
    "held": ([True], [1, "true"]),
    "outcome": (["exited", "handed_back"], ["ok", 1]),
    "exit_code": ([0, 255], [-1, 256, "0"]),
    "signal": ([1, 64], [0, 65, "9"]),
    "reason": (["", "a\udcff"], [1, "a\0"]),
    "history": (
        [[], [RUN], [{**RUN, "run": 10**6, "note": [1]}], [{"run": 1, "outcome": 5}]],
        [{}, [1], "x", [RUN, None], [{}], [{**RUN, "run": "one"}], [{**RUN, "run": 10**6 + 1}]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORD_BOUNDS)
def test_a_value_in_a_record_has_bounds_and_is_refused_with_the_fields_name(name):
    good, bad = RECORD_BOUNDS[name]
    for value in good:
        assert getattr(q.job_from_dict({**q.job_to_dict(job()), name: value}), name) == value
    for value in bad:
        with pytest.raises(q.BadValue, match=name):
            q.job_from_dict({**q.job_to_dict(job()), name: value})


def test_every_field_of_a_record_has_its_bounds_tested_here():
    assert RECORD_BOUNDS.keys() | BAD_FIELDS.keys() == set(q.JOB_FIELDS)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'"x"', b"{}", b"\xff", b'{"id": "a"}'])
def test_a_line_that_is_no_job_is_refused(raw):
    with pytest.raises(q.BadValue):
        q.decode_job(raw)


# -- J1: the state decides which fields are set


@pytest.mark.parametrize(
    ("state", "wrong", "word"),
    [
        ("pending", {"worker": "w"}, "worker"), ("pending", {"finished_at": NOW}, "finished_at"),
        ("pending", {"cancelled_at": NOW}, "cancelled_at"), ("pending", {"attempts": 1}, "attempts"),
        ("processing", {"worker": None}, "worker"), ("processing", {"attempts": 0}, "attempt"),
        ("processing", {"finished_at": NOW}, "finished_at"), ("processing", {"attempts": 4, "runs": 9}, "attempts"),
        ("processing", {"runs": 0}, "runs"), ("processing", {"max_retries": 0, "attempts": 2, "runs": 2}, "attempts"),
        ("completed", {"finished_at": None}, "finished_at"), ("completed", {"worker": "w"}, "worker"),
        ("completed", {"cancelled_at": NOW}, "cancelled_at"),
        ("failed", {"attempts": 0}, "attempt"),
        ("failed", {"worker": "w"}, "worker"),
        ("failed", {"finished_at": NOW}, "finished_at"), ("failed", {"cancelled_at": NOW}, "cancelled_at"),
        ("dead", {"finished_at": None}, "finished_at"), ("dead", {"worker": "w"}, "worker"),
        ("dead", {"attempts": 4, "runs": 4}, "attempts"),
    ],
)  # fmt: skip
def test_a_field_that_does_not_fit_the_state_is_named(state, wrong, word):
    problem = q.check_job(STATES[state]._replace(**wrong))
    assert problem is not None and word in problem
    with pytest.raises(q.BadValue, match="Job 'a'"):
        q.job_from_dict(q.job_to_dict(STATES[state]._replace(**wrong)))


@pytest.mark.parametrize("state", q.STATES)
def test_a_job_in_order_passes(state):
    assert q.check_job(STATES[state]) is None
    assert q.check_job(STATES[state]._replace(cancelled_at=NOW)) is None or state not in ("processing", "dead")
    assert q.job_from_dict(STATES[state]._asdict() | {"extra": {}}).state == state, "null is the same as left out"


# -- Transitions: every state and event


def done(kind: str, code: int | None = None, signal: int | None = None) -> q.Outcome:
    return q.Outcome(kind, code, signal)  # type: ignore[arg-type]


OUTCOMES = [
    done("exited", 0), done("exited", 1), done("exited", 75), done("signalled", None, 9), done("timed_out", None, 15),
    done("not_started"), done("handed_back"),
]  # fmt: skip
EVENTS: dict[str, tuple[tuple[str, ...], Callable[[q.Job], q.Job]]] = {
    "claim": (q.WAITING, lambda one: q.claim_job(one, "w2", 3, LATER)),
    "cancel": (("pending", "failed", "processing"), lambda one: q.cancel_job(one, LATER)),
    "retry": (("failed",), lambda one: q.retry_now(one, LATER)),
    "revive": (("dead",), lambda one: q.revive_job(one, LATER)),
    "recover": (("processing",), lambda one: q.recover_job(one, False, LATER)),
    "recover after a reboot": (("processing",), lambda one: q.recover_job(one, True, LATER)),
    **{
        f"report {outcome.kind} {outcome.exit_code}": (
            ("processing",),
            lambda one, outcome=outcome: q.report_job(one, outcome, CONFIG, 0, LATER),  # type: ignore[misc]
        )
        for outcome in OUTCOMES
    },
}


def keeps_the_rules(old: q.Job, new: q.Job, event: str) -> None:
    """J1, J2 and J4 of one step."""
    assert q.check_job(new) is None
    for name in ("id", "seq", "created_at", "command", "extra"):
        assert getattr(new, name) == getattr(old, name)
    assert new.runs == old.runs + (event == "claim"), "runs count claims and never fall"
    assert new.attempts <= max(1, new.max_retries)
    assert new.attempts > old.attempts if event == "claim" else new.attempts <= old.attempts
    assert q.decode_job(q.encode_job(new)) == new


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("cancelled", [False, True])
def test_an_event_in_a_state_that_allows_it_keeps_the_rules(event, cancelled):
    states, step = EVENTS[event]
    for state in states:
        old = STATES[state]._replace(extra={"note": 1})
        if cancelled and state in ("processing", "dead"):
            old = old._replace(cancelled_at=NOW)
        before = q.encode_job(old)
        keeps_the_rules(old, step(old), event)
        assert q.encode_job(old) == before, "the old record is still true"


@given(st.lists(st.sampled_from(list(EVENTS)), max_size=25), st.integers(0, 3))
@pure
def test_any_run_of_allowed_events_keeps_the_rules(events, max_retries):
    one = job(max_retries=max_retries)
    for event in events:
        states, step = EVENTS[event]
        if one.state in states:
            new = step(one)
            keeps_the_rules(one, new, event)
            one = new


def test_a_claim_takes_a_slot_and_forgets_the_last_outcome():
    old = STATES["failed"]._replace(outcome="exited", exit_code=1, reason="exit code 1", history=[{"run": 1}])
    new = q.claim_job(old, "w2", 3, LATER)
    assert new == old._replace(
        state="processing", attempts=2, runs=2, updated_at=LATER, run_at=None, worker="w2", slot=3,
        started_at=LATER, outcome=None, exit_code=None, reason=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("outcome", "state", "attempts"),
    [
        (done("exited", 0), "completed", 1), (done("exited", 1), "failed", 1),
        (done("signalled", None, 9), "failed", 1),
        (done("timed_out", None, 15), "failed", 1), (done("not_started"), "failed", 1),
        (done("handed_back"), "pending", 0), (done("exited", 127), "failed", 1),
    ],
)  # fmt: skip
def test_an_outcome_leads_to_its_state(outcome, state, attempts):
    new = q.report_job(STATES["processing"], outcome, CONFIG, 0, LATER)
    assert (new.state, new.attempts, new.runs) == (state, attempts, 1)
    assert (new.outcome, new.exit_code, new.signal) == outcome[:3]
    assert (new.finished_at == LATER) == (state == "completed")
    entry = {"run": 1, "attempt": 1, "started_at": NOW, "finished_at": LATER, "outcome": outcome.kind}
    known = {"exit_code": outcome.exit_code, "signal": outcome.signal}
    assert new.history == [{**entry, **{name: value for name, value in known.items() if value is not None}}]


@pytest.mark.parametrize(("max_retries", "deaths_at"), [(0, 1), (1, 1), (2, 2), (3, 3)])
def test_a_job_dies_at_the_attempt_that_its_max_retries_says(max_retries, deaths_at):
    one = job(max_retries=max_retries)
    for number in itertools.count(1):
        one = q.report_job(q.claim_job(one, "w", 0, NOW), done("exited", 3), CONFIG, 0, LATER)
        assert (one.state == "dead") == (number == deaths_at)
        if one.state == "dead":
            break
    assert one.attempts == one.runs == deaths_at
    assert "exit code 3" in (one.reason or "") and one.run_at is None


def test_an_exit_code_not_to_be_retried_is_the_end_at_once():
    config = q.parse_settings({"no_retry_on": "75"})
    one = STATES["processing"]
    assert q.report_job(one, done("exited", 75), config, 0, LATER).state == "dead"
    assert q.report_job(one, done("exited", 74), config, 0, LATER).state == "failed"
    assert q.report_job(one, done("signalled", None, 75), config, 0, LATER).state == "failed"
    own = one._replace(no_retry_on="74")
    assert q.report_job(own, done("exited", 74), config, 0, LATER).state == "dead"
    assert q.report_job(own, done("exited", 75), config, 0, LATER).state == "failed"
    none = one._replace(no_retry_on="")
    assert q.report_job(none, done("exited", 75), config, 0, LATER).state == "failed"
    zero = one._replace(no_retry_on="0-255")
    assert q.report_job(zero, done("exited", 0), config, 0, LATER).state == "completed"


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_job_being_cancelled_dies_as_cancelled_whatever_its_outcome(outcome):
    one = q.cancel_job(STATES["processing"], NOW)
    assert one.state == "processing" and one.cancelled_at == NOW
    for new in (q.report_job(one, outcome, CONFIG, 0, LATER), q.recover_job(one, False, LATER)):
        assert (new.state, new.reason, new.cancelled_at, new.finished_at) == ("dead", "cancelled", NOW, LATER)
        assert q.check_job(new) is None


def test_a_waiting_job_that_is_cancelled_is_dead_at_once():
    for state in q.WAITING:
        new = q.cancel_job(STATES[state], LATER)
        assert (new.state, new.reason, new.cancelled_at, new.finished_at, new.run_at) == (
            "dead", "cancelled", LATER, LATER, None,
        )  # fmt: skip


def test_a_job_recovered_more_than_five_times_is_dead():
    one = job()
    for number in range(1, 7):
        one = q.recover_job(q.claim_job(one, "w", 0, NOW), False, LATER)
        assert one.state == ("dead" if number == 6 else "pending")
        assert (one.attempts, one.runs, one.recoveries, one.worker) == (0, number, number, None)
    assert q.check_job(one) is None


def test_reboots_never_kill_a_job():
    one = job()
    for _ in range(20):
        one = q.recover_job(q.claim_job(one, "w", 0, NOW), True, LATER)
    assert (one.state, one.attempts, one.runs, one.recoveries) == ("pending", 0, 20, None)


def test_a_revived_job_starts_anew_in_its_old_place():
    dead = STATES["dead"]._replace(seq=4, recoveries=6, reason="x", outcome="exited", exit_code=1, history=[{"run": 3}])
    new = q.revive_job(dead._replace(cancelled_at=NOW), LATER)
    assert new == job(seq=4)._replace(runs=3, updated_at=LATER, history=[{"run": 3}])


def test_an_edit_below_the_attempts_already_made_is_refused():
    one = STATES["failed"]._replace(attempts=2, runs=2)
    for number in (0, 1, 2):
        with pytest.raises(q.Refused, match="max_retries"):
            q.edit_job(one, {"max_retries": number}, LATER)
    assert q.edit_job(one, {"command": "new"}, LATER) == one._replace(command="new", updated_at=LATER)
    assert q.edit_job(one, {"max_retries": 3, "env": {"A": "1"}}, LATER).max_retries == 3
    assert q.edit_job(one._replace(env={"B": "2"}), {"env": {"A": "1"}}, LATER).env == {"B": "2", "A": "1"}


def test_an_edit_that_would_give_a_job_too_many_variables_is_refused():
    one = STATES["pending"]._replace(env={f"V{number}": "" for number in range(q.ENV_MAX)})
    assert q.edit_job(one, {"env": {"V1": "x"}}, NOW).env == {**(one.env or {}), "V1": "x"}
    with pytest.raises(q.BadValue, match="env"):
        q.edit_job(one, {"env": {"more": "x"}}, NOW)


@pytest.mark.parametrize("wait_s", [0, 3600, 9e6])
def test_a_failed_job_that_is_given_a_time_waits_for_that_however_far_it_is(wait_s):
    at = q.add_seconds(NOW, wait_s)
    new = q.edit_job(STATES["failed"], {"run_at": at}, NOW)
    assert (new.state, new.run_at, new.attempts, q.check_job(new)) == ("pending", at, 1, None)
    assert q.is_ready(new, NOW, 3600) == (wait_s == 0)


def test_a_rerun_is_a_new_job_that_says_the_same():
    asked: dict[str, Any] = {
        "unique": "k", "command": "x", "max_retries": 5, "priority": 2, "timeout": 7, "cwd": "/", "env": {"A": "1"},
        "tags": ["t"], "no_retry_on": "3", "extra": {"owner": "me"},
    }  # fmt: skip
    for state, old in STATES.items():
        new = q.rerun_job(old._replace(**asked), "new", 9, (), LATER)
        assert new == job(seq=9)._replace(id="new", created_at=LATER, updated_at=LATER, **asked), state
        assert q.check_job(new) is None


# -- Backoff


def test_the_waits_are_two_four_eight_seconds_by_default():
    assert [q.backoff_s(CONFIG, n, 0) for n in range(1, 6)] == [2, 4, 8, 16, 32]
    new = q.report_job(STATES["processing"], done("exited", 1), CONFIG, 0, "2026-01-01T00:00:00.000Z")
    assert new.run_at == "2026-01-01T00:00:02.000Z"
    again = q.report_job(q.claim_job(new, "w", 0, NOW), done("exited", 1), CONFIG, 0, "2026-01-01T00:00:00.000Z")
    assert again.run_at == "2026-01-01T00:00:04.000Z"


@pure
@given(
    base=st.integers(0, 1000) | st.floats(0, 1000),
    cap=st.integers(0, q.DURATION_MAX_S),
    jitter=st.floats(0, 1),
    attempt=st.integers(1, 10**6),
    spread=st.floats(-1, 1),
)
def test_a_backoff_stays_within_its_bounds(base, cap, jitter, attempt, spread):
    config = q.parse_settings({"backoff_base": base, "backoff_max": cap, "backoff_jitter": jitter})
    wait = q.backoff_s(config, attempt, spread)
    plain = q.backoff_s(config, attempt, 0)
    assert 0 <= wait <= cap and math.isfinite(wait)
    assert plain * (1 - jitter) * 0.999 <= wait <= max(plain * (1 + jitter) * 1.001, 0)
    if base >= 1:
        assert q.backoff_s(config, attempt + 1, 0) >= plain, "it never shrinks"


# -- Readiness


@pytest.mark.parametrize(
    ("state", "run_at", "ready"),
    [
        ("pending", None, True), ("pending", NOW, True), ("pending", LATER, False), ("failed", NOW, True),
        ("pending", "2099-01-01T00:00:00.000Z", False),  # a person's wish, however far
        ("failed", "2026-11-24T08:15:30.124Z", False),
        ("failed", "2026-11-24T09:15:30.123Z", False),  # just backoff_max
        ("failed", "2026-11-24T09:15:32.000Z", True),  # longer than any backoff: the clock was set back
        ("failed", "2099-01-01T00:00:00.000Z", True),
    ],
)  # fmt: skip
def test_a_job_is_ready_when_its_time_has_come_or_cannot_be_meant(state, run_at, ready):
    assert q.is_ready(STATES[state]._replace(run_at=run_at), NOW, 3600) is ready
