"""`doctor --fix` on damaged homes: no job is lost whose line is whole, what cannot be kept is named, the files as they
were lie beside. Ten jobs in all states, and each store damaged as in test_damage.py, or in a way that has a name.

    python -m pytest tests/faults/test_mend.py -rP -m slow     every byte and every length
"""

from __future__ import annotations

import json
import os
import random
import shutil

import pytest
from filelock import lock_descriptor

import queuectl as q
from tests.faults.effects import FaultyOs, standing_in
from tests.faults.points import SEED
from tests.faults.scenarios import cards, close_store, copy_home, live_worker, open_store, unfolded
from tests.faults.test_damage import FILES, WAYS, damaged

JOURNAL = ".queuectl/journal.jsonl"
SAMPLE = 80  # damaged files per store


@pytest.fixture(params=[unfolded], ids=[""])
def template(tmp_path, home, request):
    shutil.rmtree(home)
    request.param(q, str(tmp_path / "template"))
    return tmp_path / "template"


@pytest.fixture
def copy(template, home):
    copy_home(template, home)
    return home


def jobs_of(home):
    store = open_store(q, home)
    store.read()
    found = {job.id: job for job in store.jobs()}
    close_store(store)
    return found


def put(home, name, data):
    (home / name).unlink(missing_ok=True)  # it may be a hard link of the template's
    (home / name).write_bytes(data)


def lines_of(home, name=JOURNAL):
    return (home / name).read_bytes().splitlines(keepends=True)


def fix(home, run):
    """`doctor` refuses, `doctor --fix` mends; what it said."""
    before = {name: (home / name).read_bytes() for name in FILES if (home / name).exists()}
    with standing_in(q, FaultyOs(lock_descriptor)):
        found = run("doctor", code=3)
        assert before == {name: (home / name).read_bytes() for name in FILES if (home / name).exists()}
        said = run("doctor", "--fix", code=0)
        assert said.lines[: len(found.lines)] == found.lines
        run("doctor", code=0)
    kept = [path.read_bytes() for path in home.glob(".queuectl/aside/*")]
    assert all(data in kept for data in before.values()), "a file as it was is not kept"
    return said.out + said.err


def whole_ids(template, name, data):
    """The jobs that must be there after the damage: those of the lines that are whole on both sides of it."""
    ids = {job for job in jobs_of(template)}
    if name == "config.json":
        return ids
    lost = {
        line
        for line in lines_of(template, name)
        if line.rstrip(b",\n") not in {x.rstrip(b",\n") for x in data.split(b"\n")}
    }
    touched = {id for line in lost for id in ids if b'"id": "%s"' % id.encode() in line}
    return ids - touched


def mend_all(template, home, run, name, chosen):
    whole = (template / name).read_bytes()
    problems = []
    for at, way in chosen:
        copy_home(template, home)
        data = damaged(whole, at, way)
        put(home, name, data)
        with standing_in(q, FaultyOs(lock_descriptor)):
            answer = run("doctor", "--fix", code=None)
            again = run("doctor", code=None)
        there = jobs_of(home) if again.code == 0 else {}
        run_job = there.get("run")
        if name == JOURNAL and run_job and run_job.needs and run_job.state == "processing":
            assert run_job.units == {"card": [0, 1]}, f"{way} at {at}"
        lost = whole_ids(template, name, data) - there.keys()
        if answer.code or again.code or lost:
            problems.append(f"{way} at {at}: exit {answer.code}, {again.code}, lost {lost}: {answer.out} {answer.err}")
    print(f"{name}: {len(chosen)} damaged files mended, seed {SEED}")
    assert not problems, "\n".join([f"{len(problems)} problems:", *problems[:10]])


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_store_is_mended(template, home, run, name):
    every = [(at, way) for at in range((template / name).stat().st_size) for way in WAYS]
    mend_all(template, home, run, name, random.Random(f"{SEED} {name}").sample(every, SAMPLE))


@pytest.mark.parametrize("template", [cards], indirect=True)
@pytest.mark.parametrize("name", ("jobs.json", JOURNAL))
def test_a_damaged_store_of_a_queue_with_cards_is_mended(template, home, run, name):
    every = [(at, way) for at in range((template / name).stat().st_size) for way in WAYS]
    mend_all(template, home, run, name, random.Random(f"{SEED} {name}").sample(every, SAMPLE))


@pytest.mark.slow
@pytest.mark.parametrize("template", [unfolded, cards], indirect=True)
@pytest.mark.parametrize("name", FILES)
def test_every_damaged_store_is_mended(template, home, run, name):
    every = [(at, way) for at in range((template / name).stat().st_size) for way in WAYS]
    mend_all(template, home, run, name, every)


def spoiled(line):
    """The same line, one byte of its checksum wrong."""
    return bytes([line[0] ^ 1]) + line[1:]


def test_a_torn_tail_goes_aside(template, copy, run):
    put(copy, JOURNAL, (copy / JOURNAL).read_bytes() + b'0123abcd {"put": [\t{"id": "half')
    said = fix(copy, run)
    assert "unfinished" in said and "All is well" in said
    assert jobs_of(copy) == jobs_of(template)


def test_a_last_line_that_lacks_nothing_but_its_newline_is_kept(template, copy, run):
    put(copy, JOURNAL, (copy / JOURNAL).read_bytes()[:-1])
    fix(copy, run)
    assert jobs_of(copy) == jobs_of(template)


def test_a_damaged_line_in_the_middle_leaves_what_is_whole_on_both_sides(template, copy, run):
    lines = lines_of(copy)
    (at,) = [number for number, line in enumerate(lines) if b'"id": "new"' in line]
    put(copy, JOURNAL, b"".join([*lines[:at], spoiled(lines[at]), *lines[at + 1 :]]))
    assert f"line {at + 1}, is damaged" in fix(copy, run)
    before, after = jobs_of(template), jobs_of(copy)
    assert before.keys() == after.keys()
    changed = {id for id in before if before[id] != after[id]}
    assert changed == {"new"} and after["new"].command == "true" and after["new"].state == "dead"
    assert "damaged line" in (after["new"].reason or "")
    run("dlq", "retry", "new")


def test_a_doubtful_line_never_makes_a_known_job_another(template, copy, run):
    """A claim is believed (its processes may live), its command is not."""
    lines = lines_of(copy)
    claimed = q.claim_job(jobs_of(copy)["c"], "1-ab", 0, "2030-01-01T00:00:00.000Z")
    raw = q.encode_job(claimed._replace(command="rm x"))
    put(
        copy,
        JOURNAL,
        b"".join(lines) + spoiled(q.journal_line(q.change_body([raw], [], [0, 0, 0, 0, 0], 0))) + lines[-1],
    )
    fix(copy, run)
    job = jobs_of(copy)["c"]
    assert (job.state, job.worker, job.attempts) == ("processing", "1-ab", 1)
    assert job.command == jobs_of(template)["c"].command


def test_a_cancel_that_a_whole_line_holds_survives_a_doubtful_one(copy, run):
    """A fold repeats each processing job in the new journal's first line, which may be the one that is damaged."""
    lines, now = lines_of(copy), "2030-01-01T00:00:00.000Z"
    job = q.cancel_job(q.claim_job(jobs_of(copy)["c"], "1-ab", 0, now), now)
    line = q.journal_line(q.change_body([q.encode_job(job)], [], [0, 0, 0, 0, 0], 0))
    put(copy, JOURNAL, b"".join(lines) + line + spoiled(line) + lines[-1])
    fix(copy, run)
    assert jobs_of(copy)["c"] == job


def spoiled_line_behind(home, job):
    """A damaged line that puts this job, and a whole one behind it."""
    line, last = (q.journal_line(q.change_body(raws, [], [0, 0, 0, 0, 0], 0)) for raws in ([q.encode_job(job)], []))
    put(home, JOURNAL, (home / JOURNAL).read_bytes() + spoiled(line) + last)


@pytest.fixture
def claimed(copy):
    """A job that a tag and a need gave units, as its claim has it."""
    store = open_store(q, copy)
    q.set_setting(store, "limits", "card=4,t=1")
    q.enqueue_job(store, dict(command="true", id="x", needs={"card": 2}, priority=9, cwd="/"))
    store.follow()
    job = q.claim_job(store.get("x"), "1-ab", 0, "2030-01-01T00:00:00.000Z", {"card": [0, 1], "t": [0]})
    close_store(store)
    return job._replace(tags=["t"])


def test_a_damaged_claim_keeps_its_units(copy, run, claimed):
    spoiled_line_behind(copy, claimed)
    fix(copy, run)
    job = jobs_of(copy)["x"]
    assert (job.state, job.needs, job.units) == ("processing", {"card": 2}, {"card": [0, 1], "t": [0]})
    run("enqueue", "--need", "card=3", "--id", "big", "true")
    run("enqueue", "--tag", "t", "--id", "tagged", "true")
    store = open_store(q, copy)
    store.follow()
    units = q.Units(store.home.config().limits, store.processing.values())
    assert [units.used[name] for name in ("card", "t")] == [2, 1], "its tag stands in the damaged line alone"
    assert [units.lacking(store.get(id)) for id in ("big", "tagged")] == ["card", "t"]
    close_store(store)


def test_the_units_that_a_whole_line_gives_a_run_are_not_changed_by_a_damaged_one(copy, run, claimed):
    line = q.journal_line(q.change_body([q.encode_job(claimed)], [], [0, 0, 0, 0, 0], 0))
    put(copy, JOURNAL, (copy / JOURNAL).read_bytes() + line)
    spoiled_line_behind(copy, claimed._replace(units={"card": [2, 3]}))
    fix(copy, run)
    assert jobs_of(copy)["x"] == claimed


def test_a_lost_record_of_the_journal_is_named_unless_the_job_is_known_or_was_purged(copy, run):
    store = open_store(q, copy)
    for id, after in (("x1", [{"id": "c", "any": True}]), ("x2", None)):
        q.enqueue_job(store, dict(command="true", id=id, after=after, cwd="/"))
    q.cancel_jobs(store, ["c"])
    close_store(store)
    lines = [line.replace(b'"command"', b'"commend"') if b'"x' in line else line for line in lines_of(copy)]
    put(copy, JOURNAL, b"".join(lines))
    assert fix(copy, run).splitlines()[-1] == "Lost: 2 jobs (x1, x2)."


def test_wrong_counts_are_counted_anew(template, copy, run):
    put(copy, JOURNAL, (copy / JOURNAL).read_bytes() + q.journal_line(q.change_body([], [], [9, 9, 9, 9, 9], 3)))
    assert "counts" in fix(copy, run)
    assert jobs_of(copy) == jobs_of(template)


def test_lines_of_an_array_that_are_no_jobs_go_and_the_others_stay(template, copy, run):
    lines = lines_of(copy, "jobs.json")
    assert b'"id": "c"' in lines[-2]
    put(
        copy, "jobs.json", b"".join([lines[0], b"\xff\xfe rubbish\n", *lines[1:-2], b'{"id": "c", "command"\n', b"]\n"])
    )
    said = fix(copy, run)
    assert "line 2" in said and '"c\\"' in said and "rubbish" in said
    assert jobs_of(template).keys() - jobs_of(copy).keys() == {"c"}
    assert said.splitlines()[-1] == "Lost: 1 job (c)."


def test_who_comes_after_a_job_that_was_lost_does_not_run_and_nor_do_those_after_it(copy, run):
    run("enqueue", "--id", "child", "--after", "c", "true")
    run("enqueue", "--id", "grandchild", "--after", "child", "true")
    run("enqueue", "--id", "other", "--after", "fail", "true")
    data = (copy / "jobs.json").read_bytes()
    put(copy, "jobs.json", data.replace(b'"id": "c"', b'"id": "c', 1))
    assert "'child' comes after 'c', which is missing" in fix(copy, run)
    there = jobs_of(copy)
    assert [there[id].state for id in ("child", "grandchild", "other")] == ["dead", "dead", "pending"]


def test_a_missing_array_is_made_anew_and_what_is_lost_is_counted(template, copy, run):
    (copy / "jobs.json").unlink()
    said = fix(copy, run)
    assert "jobs.json' is missing" in said and "The journal counts" in said
    in_journal = b"".join(lines_of(template)).count
    number = len(jobs_of(template)) - len(jobs_of(copy))
    assert f"Lost: {number} jobs." in said
    assert jobs_of(copy).keys() == {id for id in jobs_of(template) if in_journal(b'"id": "%s"' % id.encode())}


def test_a_job_in_both_arrays_is_kept_as_it_changed_last(template, copy, run):
    dead = json.loads((copy / "dlq.json").read_text())
    revived = {**q.job_to_dict(q.revive_job(q.job_from_dict(dead[0]), "2099-01-01T00:00:00.000Z"))}
    jobs = json.loads((copy / "jobs.json").read_text())
    (copy / JOURNAL).unlink()
    put(copy, "jobs.json", json.dumps([*jobs, revived], indent=2).encode())
    assert "twice" in fix(copy, run)
    assert jobs_of(copy)[dead[0]["id"]].state == "pending"


@pytest.mark.parametrize("damage", ["header", "repeat", "all", "missing"])
def test_without_header_or_journal_the_arrays_are_kept(template, copy, run, damage):
    lines = lines_of(copy)
    if damage == "missing":
        (copy / JOURNAL).unlink()
    else:
        first = {"header": [spoiled(lines[0]), *lines[1:]], "repeat": [lines[0], spoiled(lines[1]), *lines[2:]]}
        put(copy, JOURNAL, b"".join(first.get(damage, [b"\0" * 5000])))
    said = fix(copy, run)
    stored = {job["id"] for name in ("jobs", "dlq") for job in json.loads((template / f"{name}.json").read_text())}
    if damage in ("header", "repeat"):
        assert jobs_of(copy) == jobs_of(template)
    else:
        assert jobs_of(copy).keys() == stored
        assert "Lost: what changed since the arrays were written." in said


def test_what_can_be_read_of_the_settings_is_kept(template, copy, run):
    settings = {**q.DEFAULTS, "max_retries": 7, "limits": "gpu=1", "runner": "nice sh -c"}
    text = json.dumps(settings, indent=2).replace('"backoff_base": 2,', '"backoff_base": 2x,')
    put(copy, "config.json", text.encode())
    assert "defaults now: backoff_base." in fix(copy, run)
    assert run("config", "show", "--json").json == settings


def test_settings_that_are_missing_are_the_defaults(template, copy, run):
    (copy / "config.json").unlink()
    fix(copy, run)
    assert run("config", "show", "--json").json == q.DEFAULTS


def test_a_fold_that_died_is_not_taken_back(template, copy, run):
    """The arrays are the new ones, the journal is the old one and damaged: its earlier lines are no news."""
    store = open_store(q, copy)
    q.enqueue_job(store, dict(command="true", id="x"))
    q.cancel_jobs(store, ["x"])
    q.purge_dead(store, ["x"])
    *old, purge = lines_of(copy)
    store.fold()
    marks = json.loads(lines_of(copy)[0][9:])
    intent = {"intent": {name: marks[name] for name in q.ARRAYS}, "counts": store.counts, "n": store.n}
    close_store(store)
    put(copy, JOURNAL, b"".join([*old, spoiled(purge), q.journal_line(q.encode_json(intent))]))
    fix(copy, run)
    assert jobs_of(copy) == jobs_of(template)


def test_nothing_is_mended_while_a_worker_lives(copy, run):
    store = open_store(q, copy)
    file = live_worker(q, store)
    data = (copy / JOURNAL).read_bytes() + b"rubbish\n" * 2 + lines_of(copy)[-1]
    put(copy, JOURNAL, data)
    assert "worker stop" in run("doctor", "--fix", code=3).err
    assert (copy / JOURNAL).read_bytes() == data
    file.close()
    close_store(store)


def test_a_format_of_the_future_is_left_alone(copy, run):
    header = json.loads(lines_of(copy)[0][9:])
    data = q.journal_line(q.encode_json({**header, "format": 99})) + b"".join(lines_of(copy)[1:])
    put(copy, JOURNAL, data)
    assert "format 99" in run("doctor", "--fix", code=3).out
    assert (copy / JOURNAL).read_bytes() == data


def test_a_home_that_is_well_is_left_alone(copy, run):
    marks = {name: (os.stat(copy / name).st_ino, (copy / name).read_bytes()) for name in FILES}
    run("doctor", "--fix", code=0)
    assert marks == {name: (os.stat(copy / name).st_ino, (copy / name).read_bytes()) for name in FILES}
