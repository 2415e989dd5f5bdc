"""`on_dead` and `on_finish`: what is run when a job is over, when not, and never twice."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from real_processes import Call, is_alive, kill, said

import queuectl as q
from tests.storekit import idle_worker

pytest_plugins = ["worker_fixtures"]
pytestmark = pytest.mark.usefixtures("nothing_left", "quick")

HOOKS = ("on_dead", "on_finish")


@pytest.fixture
def told(run: Call, tmp_path: Path) -> Call:
    """`told()`: what the hooks were told so far, as (hook, id, the JSON)."""
    for name in HOOKS:
        run("config", "set", name, f'printf "%s " {name} >> {tmp_path}/told; cat >> {tmp_path}/told')

    def read() -> list[tuple[str, str, Any]]:
        text = (tmp_path / "told").read_text() if (tmp_path / "told").exists() else ""
        pairs = [line.split(" ", 1) for line in text.split("\n")[:-1]]  # the last one is still being written
        return [(name, json.loads(text)["id"], json.loads(text)) for name, text in pairs]

    return read


def which(told: Call) -> list[tuple[str, str]]:
    return [(name, id) for name, id, _ in told()]


def test_a_dead_job_runs_both_hooks_and_a_completed_one_the_second(enqueue, drain, told):
    enqueue("bad", "exit 3", "--max-retries", "2")
    enqueue("good", "true")
    drain(code=1)
    assert sorted(which(told)) == [("on_dead", "bad"), ("on_finish", "bad"), ("on_finish", "good")]


def test_a_hook_gets_the_job_and_its_last_output_as_one_json_value(enqueue, drain, told, job):
    enqueue("a", "for i in $(seq 100); do echo line $i; done; exit 3", "--max-retries", "1")
    drain(code=1)
    text = told()[0][2]
    output = text.pop("output")
    assert text == job("a") and text["exit_code"] == 3
    assert output.splitlines() == [f"line {number}" for number in range(81, 101)]


def test_a_hook_gets_no_more_of_a_long_line_than_its_end(enqueue, drain, told):
    enqueue("a", "head -c 3000000 /dev/zero | tr '\\0' x; echo end; exit 3", "--max-retries", "1")
    drain(code=1)
    output = told()[0][2]["output"]
    assert len(output) == q.HOOK_BYTES and output.endswith("xxend\n")


def test_a_hook_has_the_variables_of_the_job_and_none_of_its_own(run, enqueue, drain, tmp_path, home):
    run("config", "set", "on_finish", f"env > {tmp_path}/env; pwd > {tmp_path}/pwd")
    enqueue("a", "true", "--env", "MINE=1")
    drain()
    variables = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    assert "MINE" not in variables
    expected = {"HOME": str(home), "JOB_ID": "a", "ATTEMPT": "1", "SLOT": "0", "STATE": "completed"}
    assert {name: variables[f"QUEUECTL_{name}"] for name in expected} == expected
    assert (tmp_path / "pwd").read_text() == f"{home}\n"


def test_a_job_that_was_cancelled_while_it_ran_is_told_by_on_finish_alone(
    worker, enqueue, run, reaches, eventually, told
):
    worker()
    enqueue("a", "sleep 60")
    reaches("a", "processing")
    run("cancel", "a")
    eventually(lambda: which(told))
    run("worker", "stop")
    assert which(told) == [("on_finish", "a")]


def test_a_death_without_a_worker_runs_no_hook(worker, enqueue, run, told):
    run("pause")
    worker()
    enqueue("a", "true")
    run("cancel", "a")
    run("worker", "stop")
    assert not told()


def test_the_output_of_a_hook_goes_to_the_workers_stderr_and_its_failure_is_a_warning(run, enqueue, drain, job):
    run("config", "set", "on_finish", "echo to stdout; echo to stderr >&2; exit 9")
    enqueue("a", "true")
    result = drain()
    assert {"to stdout", "to stderr"} <= set(result.err.splitlines()) and not result.out
    assert "Warning: on_finish of job a failed: exit code 9" in result.err
    assert job("a")["state"] == "completed"


def test_no_job_starts_in_the_slot_while_its_hook_runs(worker, run, enqueue, reaches, gate, eventually, tmp_path, job):
    run("config", "set", "on_finish", f": > {tmp_path}/begun; {gate.wait}")
    enqueue("a", "true")
    enqueue("b", "true")  # there before the slot could report the first
    worker()
    eventually((tmp_path / "begun").exists)
    assert (job("a")["state"], job("b")["state"]) == ("completed", "pending")
    run("config", "set", "on_finish", "")
    gate.open()
    reaches("b", "completed")


def test_a_stopping_worker_lets_its_hook_finish(worker, run, enqueue, gate, eventually, tmp_path):
    child = worker()
    run("config", "set", "on_finish", f": > {tmp_path}/begun; {gate.wait}; echo told >&2")
    enqueue("a", "true")
    eventually((tmp_path / "begun").exists)
    child.send_signal(signal.SIGTERM)
    eventually(lambda: "Stopping" in said(child))
    assert child.poll() is None
    gate.open()
    eventually(lambda: child.poll() is not None)
    assert child.returncode == 0 and "told\n" in said(child) and "Warning" not in said(child)


def test_a_second_stop_ends_the_hook(worker, run, enqueue, written, eventually, tmp_path, job):
    child = worker(patch="queuectl.HOOK_S = 600.0")  # the stop ends the hook, not its time limit
    run("config", "set", "on_finish", f"echo $$ > {tmp_path}/pid; exec sleep 600")
    enqueue("a", "true")
    pid = int(written(tmp_path / "pid"))
    run("worker", "stop", "--now")
    eventually(lambda: child.poll() is not None)
    assert not is_alive(pid) and "Warning: on_finish of job a failed" in said(child)
    assert job("a")["state"] == "completed"


def test_a_hook_whose_worker_was_killed_is_not_run_again(worker, run, enqueue, eventually, drain, gate, tmp_path):
    child = worker()
    run("config", "set", "on_finish", f"echo begun >> {tmp_path}/told; {gate.wait}")
    enqueue("a", "true")
    eventually((tmp_path / "told").exists)
    kill(child)
    gate.open()
    drain()
    assert (tmp_path / "told").read_text() == "begun\n"


STUBBORN = "(trap '' TERM HUP; exec sleep 600) & echo $! >> {note}; trap '' TERM HUP; wait; sleep 600"


def test_whoever_clears_a_dead_worker_away_ends_its_hook_first(
    worker, run, enqueue, written, eventually, tmp_path, home, job
):
    child = worker(
        "--count", "2", patch="queuectl.HOOK_S = 600.0"
    )  # the other worker ends the hook, not its time limit
    run("config", "set", "on_finish", STUBBORN.format(note=tmp_path / "pid"))
    enqueue("a", "true")
    pid = int(written(tmp_path / "pid"))
    kill(child)
    assert is_alive(pid) and job("a")["state"] == "completed"
    (dead,) = {path.stem for path in (home / ".queuectl" / "workers").iterdir()}
    run("config", "set", "on_finish", "")
    worker()
    eventually(lambda: not (home / ".queuectl" / "workers" / dead).exists())
    assert not is_alive(pid)


def test_fencing_a_run_leaves_the_hook_of_another_run_alone(
    worker, run, enqueue, written, reaches, gate, eventually, tmp_path
):
    worker("--count", "2")
    run("config", "set", "on_dead", f"echo $$ > {tmp_path}/hook; {gate.wait}; echo told >> {tmp_path}/told")
    enqueue("a", f"test $QUEUECTL_WORKER || exit 1; test -e {tmp_path}/hook || exit 1; sleep 60", "--max-retries", "1")
    written(tmp_path / "hook")
    run("dlq", "retry", "a")
    reaches("a", "processing")
    run("cancel", "a")
    reaches("a", "dead")
    gate.open()
    eventually((tmp_path / "told").exists)


def test_a_hook_that_runs_too_long_is_ended_with_all_that_it_started(run, enqueue, process, tmp_path):
    run("config", "set", "on_finish", STUBBORN.format(note=tmp_path / "pid"))
    enqueue("a", "true")
    done = process("worker", "start", "--drain", patch="queuectl.HOOK_S = 2.0")
    assert "Warning: on_finish of job a failed: " in done.err
    assert not is_alive(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("fails", [False, True])
def test_a_hook_runs_only_when_the_report_is_on_the_disk(home, tmp_path, monkeypatch, fails):
    slot = idle_worker(q.open_store(str(home), print))
    done: list[str] = []

    def sync() -> None:
        done.append("synced" + " before" * (not (tmp_path / "told").exists()))
        if fails:
            raise q.StoreError("The disk did not confirm it.")

    monkeypatch.setattr(slot.store, "sync", sync)
    job = q.enqueue_job(slot.store, dict(command="true", id="a", cwd="/"))[0]
    slot._run_hooks(0, job, {"on_finish": f"echo > {tmp_path}/told"})
    assert done == ["synced before"] and (tmp_path / "told").exists() == (not fails)
    assert any("on_finish of job a failed" in slot._unsaid.get() for _ in range(slot._unsaid.qsize())) == fails
