"""`stats`: what completed and failed, how long jobs waited and ran, for a person, a script and Prometheus."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import queuectl
from tests.storekit import BAD, HANDED_BACK, OK, Watched, claim, edit, enqueue, report

pytest_plugins = ["drained_home"]


@pytest.fixture
def store(home: Path) -> Watched:
    return Watched(home)


def run_for(store: Watched, wait_s: float, run_s: float, outcome: queuectl.Outcome = OK) -> queuectl.Job | None:
    """The next job, started after `wait_s` and ended after `run_s`."""
    clock: Any = store.home.clock
    clock.at += wait_s
    job = claim(store)
    assert job is not None
    clock.at += run_s
    return report(store, job, outcome)


def samples_of(text: str) -> dict[str, float]:
    """Every sample as `name{key="value"}`, read by Prometheus' own parser."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        assert family.type in ("gauge", "summary") and family.documentation, family.name
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            assert found.setdefault(f"{sample.name}{{{labels}}}", sample.value) == sample.value, "a sample stands twice"
    return found


def test_stats_counts_what_ended(run, drained):
    view = run("stats", "--json").json
    counts = {key: view[key] for key in ("completed", "failed_attempts", "dead", "cancelled", "success_rate")}
    assert counts == {"completed": 5, "failed_attempts": 7, "dead": 6, "cancelled": 1, "success_rate": 0.5}


def test_stats_says_the_same_to_a_person(run, drained):
    out = run("stats").out
    for line in ("completed: +5", "failed attempts: +7", "dead: +6 .1 of them cancelled.", "success rate: +50.0%"):
        assert re.search(f"^{line}$", out, re.MULTILINE), out
    assert re.search(r"^wait time( +[\d.]+ m?s){3}$", out, re.MULTILINE), out


def test_stats_of_an_empty_queue(run):
    view = run("stats", "--json").json
    assert (view["completed"], view["success_rate"], view["jobs_per_s"], view["run_s"]["p50"]) == (0, None, None, None)
    assert "success rate:    -" in run("stats").out
    assert samples_of(run("stats", "--prometheus").out)["queuectl_completed{}"] == 0


def test_metrics_is_another_name(run):
    assert run("metrics").out == run("stats").out


def test_wait_and_run_times_and_the_rate(store):
    enqueue(store, "a")
    enqueue(store, "b")
    run_for(store, 5, 10)
    run_for(store, 1, 4)
    view = queuectl.stats(store, None, None)
    assert (view["wait_s"]["p50"], view["wait_s"]["p99"], view["wait_s"]["sum"]) == (5, 16, 21)
    assert (view["run_s"]["p50"], view["run_s"]["p99"], view["run_s"]["count"]) == (4, 10, 2)
    assert view["jobs_per_s"] == round(2 / 15, 3)
    assert {bar["le"]: bar["count"] for bar in view["run_s"]["histogram"] if bar["count"]} == {10: 2}


def test_a_retry_waited_for_its_backoff_and_is_not_counted_as_waiting(store):
    enqueue(store, "a")
    run_for(store, 1, 1, BAD)
    run_for(store, 50, 1, OK)
    view = queuectl.stats(store, None, None)
    assert (view["wait_s"]["count"], view["wait_s"]["sum"], view["run_s"]["count"]) == (1, 1, 2)
    assert (view["completed"], view["failed_attempts"], view["success_rate"]) == (1, 1, 1)


def test_an_attempt_that_was_handed_back_is_neither_failed_nor_a_run_time(store):
    enqueue(store, "a")
    run_for(store, 1, 1, HANDED_BACK)
    view = queuectl.stats(store, None, None)
    assert (view["failed_attempts"], view["run_s"]["count"]) == (0, 0)


def test_failed_attempts_that_the_history_forgot_are_counted(store):
    enqueue(store, "a", max_retries=9)
    for _ in range(9):
        run_for(store, 1000, 1, BAD)
    assert queuectl.stats(store, None, None)["failed_attempts"] == 9


def test_since_leaves_out_what_ended_before(store):
    enqueue(store, "old")
    run_for(store, 0, 1)
    enqueue(store, "new", max_retries=1)
    run_for(store, 100, 1, BAD)
    view = queuectl.stats(store, 50, None)
    assert (view["completed"], view["failed_attempts"], view["dead"]) == (0, 1, 1)
    assert view["since"] == queuectl.add_seconds(store.home.now(), -50)


def test_by_tag_counts_a_job_under_each_of_its_tags(store):
    enqueue(store, tags=["gpu", "net"])
    enqueue(store, tags=["gpu"])
    enqueue(store)
    for _ in range(3):
        run_for(store, 0, 1)
    groups = {group["tag"]: group["completed"] for group in queuectl.stats(store, None, "tag")["groups"]}
    assert groups == {"gpu": 2, "net": 1, "": 1}


def test_by_command_has_a_line_a_command(run, drained):
    groups = {group["command"]: group for group in run("stats", "--by", "command", "--json").json["groups"]}
    assert groups["true"]["completed"] == 2 and groups["exit 65"]["dead"] == 1
    (line,) = [line for line in run("stats", "--by", "command").lines if line.endswith("  exit 65")]
    assert line.split()[:3] == ["0", "1", "1"]


def test_more_groups_than_there_is_room_for_are_counted_together(store, monkeypatch):
    monkeypatch.setattr(queuectl, "GROUPS_MAX", 2)
    for number in range(5):
        enqueue(store, command=f"echo {number}")
        run_for(store, 0, 1)
    groups = {group["command"]: group["completed"] for group in queuectl.stats(store, None, "command")["groups"]}
    assert groups == {"echo 0": 1, "echo 1": 1, "(others)": 3}


def test_quantiles_are_within_half_a_percent(store):
    source = random.Random(5)
    seconds = [round(source.lognormvariate(0, 3), 3) for _ in range(300)]
    for run_s in seconds:
        enqueue(store)
        run_for(store, 0, run_s)
    view, ordered = queuectl.stats(store, None, None)["run_s"], sorted(seconds)
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        exact = ordered[math.ceil(share * len(ordered)) - 1]
        assert math.isclose(view[name], exact, rel_tol=0.0051, abs_tol=0.002)
    assert sum(bar["count"] for bar in view["histogram"]) == view["count"] == 300


def test_a_history_that_a_person_mangled_is_passed_over(run, home):
    run("enqueue", "--id", "a", "true")
    odd = [{"run": 1}, {"run": 2, "started_at": "x", "finished_at": "y"}, {"run": 3, "started_at": 5, "finished_at": 6}]
    edit(home, lambda records: [{**record, "history": odd} for record in records])
    assert run("stats", "--json").json["run_s"]["count"] == 0


# ---- Prometheus ----


def test_prometheus_reads_the_figures(run, drained):
    text, view = run("stats", "--prometheus").out, run("stats", "--json").json
    samples = samples_of(text)
    assert text.endswith("\n") and samples["queuectl_jobs{state=completed}"] == 5
    for name in ("completed", "failed_attempts", "dead", "cancelled", "success_rate", "workers"):
        assert samples[f"queuectl_{name}{{}}"] == view[name]
    for name in ("wait", "run"):
        times = view[f"{name}_s"]
        assert samples[f"queuectl_{name}_seconds_sum{{}}"] == times["sum"]
        assert samples[f"queuectl_{name}_seconds{{quantile=0.95}}"] == times["p95"]
        assert samples[f"queuectl_{name}_seconds_count{{}}"] == times["count"]


EVIL = 'echo "a\\n"\n# TYPE x y\n{le="1"} ü'


def test_prometheus_reads_any_command_as_a_label(run, store):
    enqueue(store, command=EVIL)
    run_for(store, 0, 1)
    store.fold()
    families = text_string_to_metric_families(run("stats", "--by", "command", "--prometheus").out)
    (sample,) = next(family for family in families if family.name == "queuectl_completed").samples
    assert (sample.labels, sample.value) == ({"command": EVIL}, 1)


def test_json_holds_no_nan(run, drained):
    json.loads(run("stats", "--json").out, parse_constant=lambda word: pytest.fail(word))
