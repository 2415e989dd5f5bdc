"""Resources with units (`--need`, `limits`), and held jobs: over workers, kills, edits and changed limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from real_processes import said

import queuectl as q
from tests.storekit import HANDED_BACK, OK, Clock, Watched, bulk, claim, claim_turn, edit, enqueue, listing, report

pytest_plugins = ["worker_fixtures"]
pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(home: Path, clock: Clock) -> Watched:
    store = Watched(home, clock)
    store.follow()
    q.set_setting(store, "limits", "gpu=4,net=1")
    return store


def units_of(store: q.Store) -> list[int]:
    """The cards that running jobs hold; each is there once."""
    held = [unit for job in store.processing.values() for unit in (job.units or {}).get("gpu", [])]
    assert len(held) == len(set(held)), held
    return sorted(held)


def names(jobs: Any) -> list[str]:
    return [job.id for job in jobs if job is not None]


def test_a_job_gets_the_lowest_free_units_and_gives_them_back(store):
    enqueue(store, "a", needs={"gpu": 2})
    enqueue(store, "b", needs={"gpu": 1, "net": 1})
    enqueue(store, "c", needs={"gpu": 2})
    a, b = claim(store), claim(store)
    assert a is not None and b is not None
    assert (a.units, b.units) == ({"gpu": [0, 1]}, {"gpu": [2], "net": [0]})
    assert claim(store) is None, "one card is free, and c needs two"
    assert (
        q.why_waiting(store, listing(store)["c"], []) == "no worker is running; start one with: queuectl worker start"
    )
    assert q.hindrance(store, listing(store)["c"]) == ("needs", "gpu")
    report(store, a, OK)
    assert listing(store)["a"].units is None
    c = claim(store)
    assert c is not None and c.units == {"gpu": [0, 1]} and units_of(store) == [0, 1, 2]


@pytest.mark.parametrize("end", ["reported", "handed back", "recovered", "cancelled"])
def test_two_jobs_never_hold_the_same_unit(store, end):
    for number in range(12):
        enqueue(store, f"j{number}", needs={"gpu": 1 + number % 3})
    running: list[q.Job] = []
    for turn in range(60):
        while (job := claim(store)) is not None:
            running.append(job)
        units_of(store)
        if not running:
            break
        gone = running.pop(turn % len(running))
        if end == "recovered" and turn % 2:
            q.recover(store, gone, True)
        elif end == "cancelled" and turn % 2:
            q.cancel_jobs(store, [gone.id])
            report(store, gone, HANDED_BACK)
        else:
            report(store, gone, HANDED_BACK if end == "handed back" and turn < 10 else OK)
    assert {job.state for job in listing(store).values()} <= set(q.OVER) and units_of(store) == []


def test_a_limited_tag_counts_as_one_unit_and_a_need_of_that_name_wins(store):
    enqueue(store, "tagged", tags=["gpu", "other"])
    enqueue(store, "both", tags=["gpu"], needs={"gpu": 3})
    tagged, both = claim(store), claim(store)
    assert tagged is not None and tagged.units == {"gpu": [0]}
    assert both is not None and both.units == {"gpu": [1, 2, 3]}


def test_a_job_that_was_claimed_before_its_tag_had_a_limit_counts(store):
    enqueue(store, "a", tags=["cpu"])
    assert (claim(store) or 0).units is None  # type: ignore[union-attr]
    q.set_setting(store, "limits", "cpu=2")
    for name in ("b", "c"):
        enqueue(store, name, tags=["cpu"])
    b = claim(store)
    assert b is not None and b.units == {"cpu": [0]}
    assert claim(store) is None


def test_a_limit_that_is_set_later_holds_up_no_job_without_its_tag(store):
    for name, tags in (("a", ["cpu"]), ("b", ["cpu"]), ("c", None)):
        enqueue(store, name, tags=tags)
    assert names([claim(store)]) == ["a"]
    q.set_setting(store, "limits", "cpu=1")
    assert names([claim(store), claim(store)]) == ["c"]


def test_a_lowered_limit_takes_nothing_away_and_who_needs_more_waits(store):
    for number in range(3):
        enqueue(store, f"j{number}", needs={"gpu": 2 if number < 2 else 4})
    first, second = claim(store), claim(store)
    assert first is not None and second is not None
    q.set_setting(store, "limits", "gpu=2")
    report(store, first, OK)
    enqueue(store, "small", needs={"gpu": 1})
    assert units_of(store) == [2, 3] and claim(store) is None, "two are in use, and the limit is two"
    report(store, second, OK)
    small = claim(store)
    assert small is not None and (small.id, small.units) == ("small", {"gpu": [0]}), (
        "j2 cannot start, and holds up nobody"
    )
    q.set_setting(store, "limits", "")
    report(store, small, OK)
    assert claim(store) is None


@pytest.mark.parametrize("needs, limits", [({"gpu": 5}, "gpu=4"), ({"card": 1}, "gpu=4"), ({"gpu": 1}, "")])
def test_more_than_there_are_is_refused_at_enqueue_and_rerun(store, run, needs, limits):
    given = [f"--need={name}={count}" for name, count in needs.items()]
    run("config", "set", "limits", "gpu=9,card=1")
    old = run("enqueue", *given, "true").out.strip()
    run("config", "set", "limits", limits)
    name = next(iter(needs))
    for args in (["enqueue", *given, "true"], ["rerun", old]):
        said = run(*args, code=1).err
        assert f"of '{name}'" in said and "config set limits" in said
        assert limits in said.partition("config set")[2] or name in limits, "the other limits stay"
    line = json.dumps({"command": "true", "needs": needs})
    assert run("enqueue", "--file", "-", code=1, input=f"true\n{line}\n").err.startswith("Error: In line 2: ")
    assert run("list", "--ids").out == f"{old}\n"


@pytest.mark.parametrize("need", ["gpu=0", "gpu=1000", "gpu=x", "gpu=", "a-b", "", "=1", "9a=1"])
def test_a_bad_need_is_refused(run, home, need):
    run("config", "set", "limits", "gpu=4")
    said = run("enqueue", "--need", need, "true", code=2).err
    assert "need" in said and run("list").out == ""


def test_a_job_that_needs_all_cards_is_not_starved_by_jobs_that_need_one(store, clock):
    enqueue(store, "one", needs={"gpu": 1})
    running = claim(store)
    enqueue(store, "all", needs={"gpu": 4})
    enqueue(store, "free")
    for number in range(20):
        enqueue(store, f"s{number}", needs={"gpu": 1})
    assert running is not None and names([claim(store), claim(store)]) == ["free", "s0"], "at first it is overtaken"
    clock.at += 599
    second = claim(store)
    assert second is not None and second.id == "s1"
    clock.at += 2
    assert claim(store) is None
    enqueue(store, "elsewhere", needs={"net": 1})
    enqueue(store, "urgent", needs={"gpu": 1}, priority=1)
    assert names([claim(store), claim(store)]) == ["urgent", "elsewhere"], "one before it, and one that needs no card"
    assert claim(store) is None
    for job in list(store.processing.values()):
        report(store, job, OK)
    assert names([claim(store), claim(store)]) == ["all"], "nothing overtook it"


def test_a_worker_that_may_not_start_the_waiting_job_is_not_held_up_by_it(store, clock):
    enqueue(store, "one", needs={"gpu": 1})
    assert claim(store) is not None
    enqueue(store, "all", needs={"gpu": 4}, tags=["big"])
    enqueue(store, "small", needs={"gpu": 1})
    clock.at += 601
    turn = q.take_turn(store, "w2", 0, None, True, q.TagFilter(not_tags=["big"]))
    assert names([turn.claimed]) == ["small"]


def test_a_claim_wakes_others_if_units_were_kept_for_its_job(store, clock):
    enqueue(store, "one", tags=["net"])
    one = claim(store)
    enqueue(store, "both", tags=["gpu", "net"])
    enqueue(store, "small", needs={"gpu": 1})
    clock.at += 601
    assert one is not None and claim(store) is None
    report(store, one, OK)
    turn = claim_turn(store)
    assert names([turn.claimed]) == ["both"] and turn.frees
    assert names([claim(store)]) == ["small"]


def test_ten_minutes_count_from_the_time_that_a_job_waited_for(store, clock):
    enqueue(store, "one", needs={"gpu": 1})
    assert claim(store) is not None
    enqueue(store, "all", needs={"gpu": 4}, delay=1000)
    enqueue(store, "small", needs={"gpu": 1})
    enqueue(store, "small2", needs={"gpu": 1})
    clock.at += 1500
    assert names([claim(store)]) == ["small"]
    clock.at += 101
    assert claim(store) is None


def test_a_hand_edit_takes_no_unit_from_a_running_job(store, home):
    enqueue(store, "a", needs={"gpu": 2})
    enqueue(store, "b", needs={"gpu": 2})
    assert claim(store) is not None
    store.fold()

    def change(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for record in records:
            record.pop("units", None)
        return records

    edit(home, change)
    b = claim(store)
    assert b is not None and b.units == {"gpu": [2, 3]} and units_of(store) == [0, 1, 2, 3]


def test_the_units_survive_a_fold_and_are_seen_by_another_process(store, home, clock):
    enqueue(store, "a", needs={"gpu": 3})
    bulk(store, *["true"] * 3, needs={"gpu": 1})
    assert claim(store) is not None
    store.fold()
    other = Watched(home, clock)
    job = claim(other, "w2")
    assert job is not None and job.units == {"gpu": [3]} and claim(other, "w2") is None


@pytest.fixture
def cards(run: Any) -> None:
    run("config", "set", "limits", "gpu=2")


def test_a_job_finds_its_units_in_its_environment(run, cards):
    ids = [run("enqueue", *need, "echo [$QUEUECTL_UNITS_gpu]").out.strip() for need in ([], ["--need=gpu=2"])]
    run("worker", "start", "--drain")
    assert [run("logs", id).out for id in ids] == ["[]\n", "[0,1]\n"]


def test_cards_are_never_shared_by_workers_that_are_killed(run, start, cards, tmp_path, eventually):
    """As a user sees it: each job locks a file per card, and fails if another job has it."""
    script = tmp_path / "job.sh"
    script.write_text(
        "for card in $(echo $QUEUECTL_UNITS_gpu | tr , ' '); do\n"
        f"  mkdir {tmp_path}/card$card || {{ echo conflict >> {tmp_path}/conflicts; exit 1; }}\n"
        "done\n"
        f"trap 'for card in $(echo $QUEUECTL_UNITS_gpu | tr , \" \"); do rmdir {tmp_path}/card$card; done' EXIT\n"
        "sleep 0.05\n"
    )
    lines = [json.dumps({"command": f"sh {script}", "needs": {"gpu": 1 + number % 2}}) for number in range(24)]
    run("enqueue", "--file", "-", input="\n".join(lines))
    workers = [start("worker", "start", "--count", "2", "--drain") for _ in range(3)]
    eventually(lambda: run("status", "--json").json["jobs"]["completed"] > 4)
    # Its jobs end with it, and their traps give the cards back: what is left is exactly what runs.
    workers[0].terminate()
    assert run("wait", "--all", "--timeout", "60").code == 0
    assert not (tmp_path / "conflicts").exists()
    jobs = run("list", "--json").json
    assert {job["state"] for job in jobs} == {"completed"} and not any("units" in job for job in jobs)


def test_a_held_job_starts_when_it_is_released_and_keeps_its_place(store):
    for name in ("a", "b", "c"):
        enqueue(store, name)
    q.edit_jobs(store, ["a"], {"held": True})
    b = claim(store)
    assert b is not None and b.id == "b" and q.hindrance(store, listing(store)["a"]) == ("held", "")
    q.edit_jobs(store, ["a"], {"held": None})
    a = claim(store)
    assert a is not None and (a.id, a.seq, a.held) == ("a", 1, None)


@pytest.mark.parametrize("folded", [False, True])
def test_a_failed_job_a_delayed_one_and_a_follower_can_be_held(home, store, clock, folded):
    enqueue(store, "parent")
    enqueue(store, "delayed", delay=5)
    enqueue(store, "follower", after=["parent"])
    enqueue(store, "new", held=True)
    enqueue(store, "other", env={"held": "true"})
    q.edit_jobs(store, ["delayed", "follower"], {"held": True})
    if folded:
        store.fold()
    store = Watched(home, clock)
    parent = claim(store)
    assert parent is not None
    report(store, parent, OK)
    clock.at += 10
    assert names([claim(store), claim(store)]) == ["other"]
    assert q.what_waits(store) == (None, None, 3) and q.drain_state(store, q.TagFilter(tags=["x"])) == "over"
    q.edit_jobs(store, ["delayed", "follower", "new"], {"held": None})
    assert names(claim(store) for _ in range(3)) == ["delayed", "follower", "new"]


@pytest.mark.parametrize("change", ["cancel", "rerun", "retry", "edit"])
def test_what_people_do_to_a_held_job(store, change):
    enqueue(store, "a", held=True, delay=60)
    if change == "cancel":
        q.cancel_jobs(store, ["a"])
        assert listing(store)["a"].held is None and q.what_waits(store).held == 0
        q.revive_jobs(store, ["a"])
    elif change == "rerun":
        assert q.rerun_jobs(store, ["a"])[0].held is None, "a person asks for it now"
    else:
        q.retry_jobs(store, ["a"]) if change == "retry" else q.edit_jobs(store, ["a"], {"priority": 5})
        assert claim(store) is None and listing(store)["a"].held, "it is not released by this"
        return
    assert claim(store) is not None


def test_hold_and_release_refuse_what_does_not_wait(run):
    done = run("enqueue", "true").out.strip()
    run("worker", "start", "--drain")
    job = run("enqueue", "--hold", "true").out.strip()
    for verb in ("hold", "release"):
        assert "is completed" in run(verb, done, code=1).err
        assert "is completed" in run(verb, job, done, code=1).err
    assert run("show", job, "--json").json["held"] is True, "all of them or none"
    for verb in ("hold", "hold", "release", "release"):
        assert job in run(verb, job).out
    assert "held" not in run("show", job, "--json").json


def test_a_drain_a_wait_and_a_check_pass_over_held_jobs_and_what_comes_after_them(run):
    held = run("enqueue", "--hold", "true").out.strip()
    after = run("enqueue", "--after", held, "true").out.strip()
    last = run("enqueue", "--after-any", after, "true").out.strip()
    checked = run("status", "--check")
    assert "1 held job" in checked.err and "\nheld: 1\n" in checked.out
    free = run("enqueue", "true").out.strip()
    run("status", "--check", code=1)
    assert "3 jobs" in run("worker", "start", "--drain").err
    assert [run("show", id, "--json").json["state"] for id in (free, held, after, last)] == [
        "completed",
        *["pending"] * 3,
    ]
    waited = run("wait", "--all")
    assert "3 jobs" in waited.err
    assert run("status", "--json").json["held"] == run("stats", "--json").json["held"] == 1
    assert "\nqueuectl_held 1\n" in run("stats", "--prometheus").out and "held:            1\n" in run("stats").out
    assert "held" in run("list").out.splitlines()[0] and "held; release it" in run("show", held).out
    run("release", held)
    run("worker", "start", "--drain")
    assert {job["state"] for job in run("list", "--json").json} == {"completed"}


def test_a_person_releases_a_job_in_the_file(store, home):
    enqueue(store, "a", held=True)
    store.fold()
    edit(home, lambda records: [{**record, "held": False} for record in records])
    assert names([claim(store)]) == ["a"]


@pytest.mark.parametrize("given", ["--need=gpu=2", "--tag=gpu"])
def test_a_drain_says_that_it_waits_for_units(run, start, eventually, given):
    run("config", "set", "limits", "gpu=2")
    run("enqueue", given, "true")
    run("config", "set", "limits", "gpu=0")
    drain = start("worker", "start", "--drain")
    eventually(lambda: "waits for jobs that wait for units" in said(drain))
    run("config", "set", "limits", "gpu=2")
    assert drain.wait(30) == 0


def test_a_worker_starts_a_job_as_soon_as_it_is_released(run, enqueue, worker, reaches):
    enqueue("a", "true", "--hold")
    worker()
    run("release", "a")
    reaches("a", "completed")
