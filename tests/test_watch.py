"""`status --watch`: what a frame holds, what it follows, and how it leaves the terminal."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import re
import signal
import struct
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from real_processes import Call, Terminal, started_with

import queuectl as q
from tests.storekit import BAD, OK, Watched, claim, enqueue, report

pytest_plugins = ["worker_fixtures"]

NOW = "2027-01-15T08:00:10.000Z"
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


# -- a frame


def job(name: str, state: q.State, seconds: int, **more: Any) -> q.Job:
    """A job whose last change was that many seconds before NOW."""
    at = q.add_seconds(NOW, -seconds)
    plain = q.new_job({"command": f"command of {name}", "id": name}, q.parse_settings({}), at)
    return plain._replace(state=state, started_at=at, updated_at=at, **more)


def view(running: int = 0, failed: int = 0, **more: Any) -> dict[str, Any]:
    dead = {"outcome": "exited", "exit_code": 3, "finished_at": q.add_seconds(NOW, -30)}
    plain = {
        "jobs": dict(zip(q.STATES, (12345, running, 1_000_000, 0, failed), strict=True)), "home": "/srv/queue",
        "workers": [], "paused": False, "oldest_pending_s": 90, "next_run_at": None, "held": 0, "rates": [0, 5, 10],
        "running": [job(f"run{number}", "processing", 75) for number in range(running)],
        "failed": [job(f"bad{number}", "dead", 30, **dead) for number in range(failed)],
    }  # fmt: skip
    return {**plain, **more}


def frame(shown: dict[str, Any], columns: int = 80, rows: int = 24, **outputs: str) -> list[str]:
    failed = [q.dead_row(job, outputs.get(job.id, ""), NOW) for job in shown["failed"]]
    return [click.unstyle(line) for line in q.watch_frame(shown, failed, columns, rows, NOW)]


@pytest.mark.parametrize("running, failed", [(0, 0), (1, 0), (0, 1), (3, 2), (40, 40)])
def test_a_frame_fits_any_terminal(running, failed):
    shown = view(running, failed, rates=[3.0] * 500, paused=True)
    for columns, rows in itertools.product(range(1, 130, 5), range(1, 60)):
        lines = frame(shown, columns, rows)
        assert len(lines) <= rows and max(map(len, lines)) <= columns, (columns, rows)


def test_a_frame_says_what_there_is():
    lines = frame(view(1, 1), 100, bad0="the disk is not mounted")
    assert [line.split()[:2] for line in lines[1:6]] == [
        ["pending", "12,345"],
        ["processing", "1"],
        ["completed", "1,000,000"],
        ["failed", "0"],
        ["dead", "1"],
    ]
    assert "throughput  5.0 jobs/s  ▁▅█" in lines
    assert "workers: 0   oldest waiting job: 90 s" in lines
    assert re.search(r"^run0 +processing +0/3 +75 s ago  command of run0$", "\n".join(lines), re.MULTILINE)
    assert "bad0                 0  exit code 3               30 s ago  the disk is not mounted" in lines


def test_the_highest_rate_has_the_highest_bar_whatever_it_is():
    """7 * rate / rate is above 7 for one rate in ten: seen in a terminal, where it ended the screen."""
    dice = random.Random(1)
    for rate in [1.2092781970116109, *(dice.uniform(0, 9) for _ in range(300))]:
        assert any(line.endswith("▁█") for line in frame(view(rates=[0, rate])))


def test_the_longest_bar_is_as_wide_as_there_is_room_and_none_is_lost():
    lines = frame(view(1, 0), 80)
    assert len(lines[3]) == 79 and lines[3].endswith("██")
    assert lines[2].endswith("  █"), "one job of a million is seen"
    assert "█" not in lines[4] + lines[5]


def test_both_lists_get_room():
    lines = frame(view(40, q.FAILURES_SHOWN), rows=24)
    assert len(lines) == 24
    assert lines.index("running") - lines.index("last failures") == 7
    assert len(frame(view(40, 0), rows=24)) == 24


def test_trouble_and_pause_are_said():
    worker = {
        "name": "1-a",
        "dead": False,
        "pid": 1,
        "threads": 1,
        "running": [],
        "tags": [],
        "not_tags": [],
        "silent_s": 0.0,
        "stopping": False,
        "overload": None,
    }
    lines = frame(view(paused=True, workers=[{**worker, "trouble": "no space"}]), 120)
    assert "THE QUEUE IS PAUSED" in lines[1]
    assert any("TROUBLE: no space" in line for line in lines)


def test_nothing_of_a_job_drives_the_terminal():
    evil = job("a", "processing", 1)._replace(command="\x1b[2J\x9b1m\nsecond")
    shown = view(running=1)
    lines = q.watch_frame({**shown, "running": [evil]}, [], 80, 24, NOW)
    assert not any(re.search(r"[\x00-\x1a\x1c-\x1f\x7f-\x9f]", line) for line in lines)
    assert not any("\x1b[2J" in line for line in lines)


# -- following


@pytest.fixture
def store(home: Path) -> Watched:
    return Watched(home)


@pytest.fixture
def views(home: Path) -> Iterator[dict[str, Any]]:
    return q.watch_queue(Watched(home))


def test_a_watch_follows_claims_ends_and_failures(store, views):
    assert next(views)["jobs"]["pending"] == 0, "a home that is not there yet"
    enqueue(store, "a", max_retries=1)
    enqueue(store, "b")
    first, second = claim(store), claim(store)
    assert first is not None and second is not None
    assert [job.id for job in next(views)["running"]] == ["a", "b"]
    report(store, first, BAD)
    store.fold()
    report(store, second, OK)
    seen = next(views)
    assert (seen["running"], [job.id for job in seen["failed"]]) == ([], ["a"])
    assert seen["jobs"]["completed"] == 1 and seen["rates"][-1] > 0
    assert next(views)["rates"][-1] == 0


def test_failures_from_before_are_shown_and_cancelled_jobs_are_none(store, home):
    for name in ("a", "b", "c"):
        enqueue(store, name, max_retries=1)
    q.cancel_jobs(store, ["c"])
    for _ in range(2):
        ended = claim(store)
        assert ended is not None
        report(store, ended, BAD)
    store.fold()
    assert {job.id for job in next(q.watch_queue(Watched(home)))["failed"]} == {"a", "b"}


def test_only_the_last_failures_are_shown(store, home):
    names = [f"job{number}" for number in range(q.FAILURES_SHOWN + 2)]
    for name in names:
        enqueue(store, name, max_retries=1)
        ended = claim(store)
        assert ended is not None
        report(store, ended, BAD)
        store.fold()
    assert {job.id for job in next(q.watch_queue(Watched(home)))["failed"]} == set(names[2:])


# -- on a terminal


@pytest.fixture
def watching(terminal: Call, run: Call, eventually: Call, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """The live screen, seen."""
    monkeypatch.setenv("TERM", "xterm")
    run("enqueue", "--id", "waiting", "true")
    shell = terminal("status", "--watch", "0.1")
    eventually(lambda: "pending" in shell.screen())
    yield shell


def resize(shell: Terminal, rows: int, columns: int) -> None:
    fcntl.ioctl(shell.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def frames_of(shell: Terminal) -> list[str]:
    """Every frame that was drawn whole."""
    return shell.screen().split("\x1b[H")[1:-1] or [""]


def ends(shell: Terminal, eventually: Call) -> int:
    eventually(shell.ended)
    shown = shell.screen()
    assert (shown.count(ENTER), shown.count(LEAVE)) == (1, 1), "the other screen is left as often as entered"
    assert shown.rstrip().endswith(LEAVE), "what comes after is seen by the shell"
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor is back"
    assert shown.count("\x1b[?7l") == shown.count("\x1b[?7h") == 1, "lines wrap again"
    assert (
        int(termios.tcgetattr(shell.master)[3]) & termios.ICANON
        and int(termios.tcgetattr(shell.master)[3]) & termios.ECHO
    )
    return int(shell.child.returncode)


@pytest.mark.parametrize(
    "keys, code", [(b"q", 0), (b"xQ\n", 0), (b"\x1b", 0), (b"\x1b[A", None), (b"\x1b[Aq", 0), (b"\x03", 130)]
)
def test_a_key_ends_it_and_the_terminal_is_as_before(watching, eventually, keys, code):
    watching.type(keys)
    if code is None:  # an arrow key: it goes on
        count = len(frames_of(watching))
        eventually(lambda: len(frames_of(watching)) > count + 9)
        os.kill(watching.child.pid, signal.SIGTERM)
    assert ends(watching, eventually) == (143 if code is None else code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_it_and_the_terminal_is_as_before(watching, eventually, number):
    os.kill(watching.child.pid, number)
    assert ends(watching, eventually) == 128 + number


def test_an_error_ends_it_and_the_terminal_is_as_before(watching, home, eventually):
    (home / "config.json").write_text("damaged")
    eventually(watching.ended)
    after = watching.screen().partition(LEAVE)[2]
    assert watching.child.returncode == 3 and "Error:" in after and "Traceback" not in after


def test_a_hang_up_ends_it(watching, eventually):
    watching.hang_up()
    assert eventually(lambda: watching.child.poll() is not None)


def test_it_follows_the_size_of_the_terminal(watching, eventually):
    resize(watching, 10, 30)

    def width() -> int:
        last = click.unstyle(frames_of(watching)[-1])
        return max(map(len, last.splitlines()), default=0)

    eventually(lambda: width() <= 30)
    resize(watching, 30, 100)
    eventually(lambda: width() > 60)
    watching.type(b"q")
    ends(watching, eventually)


def test_it_shows_what_comes(watching, run, eventually):
    run("enqueue", "true")
    eventually(lambda: re.search(r"pending\s+2 ", click.unstyle(watching.screen())))
    watching.type(b"q")
    ends(watching, eventually)


def test_ctrl_z_leaves_it_as_it_is(watching, eventually):
    watching.type(b"\x1a")
    count = len(frames_of(watching))
    eventually(lambda: len(frames_of(watching)) > count + 3)
    watching.type(b"q")
    assert ends(watching, eventually) == 0


# -- elsewhere


def test_in_a_pipe_it_is_a_line_each_time(run, start, eventually):
    run("enqueue", "true")
    with started_with(signal.SIG_DFL, signal.SIGINT):  # ignored where the tests run in a script's background
        child = start("status", "--watch", "0.1")
    lines = eventually(lambda: (found := child.log.read_text().splitlines())[2:] and found)
    assert re.fullmatch(r"\S+Z  1 pending, 0 processing, 0 completed, 0 failed, 0 dead(, [\d.]+ jobs/s)?", lines[0]), (
        lines[0]
    )
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 130
