"""The README's crontab and its unit, used as cron and systemd use them; what a manager's stop does to jobs."""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PROGRAM
from real_processes import Call, is_alive, kill, readme_block, said

pytest_plugins = ["worker_fixtures"]
pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """A user's home directory, where queuectl is installed and nothing else is."""
    folder = tmp_path / "me"
    program = folder / ".local/bin/queuectl"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(PROGRAM))} "$@"\n')
    program.chmod(0o755)
    return folder


# -- cron


def crontab(account: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The README's crontab for that account: its variables as they stand, and its commands by their time."""
    variables, commands = {}, {}
    for line in readme_block("crontab").replace("/home/me", str(account)).splitlines():
        if entry := re.fullmatch(r"(@\w+|(?:\S+ ){4}\S+) +(.*)", line):
            assert "%" not in entry[2], "cron takes % for a line's end"
            commands[entry[1]] = entry[2]
        elif line:
            name, _, value = line.partition("=")
            variables[name] = value
    return variables, commands


@pytest.fixture
def cron(account: Path) -> Call:
    """`cron("@reboot")`: what that line prints, run as cron runs it."""
    variables, commands = crontab(account)
    own = {"HOME": str(account), "LOGNAME": "me", "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"}

    def call(when: str, command: str | None = None) -> str:
        done = subprocess.run(
            ["/bin/sh", "-c", command or commands[when]],
            env=own | variables, cwd=account, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return done.stdout + done.stderr

    return call


def test_the_crontab_of_the_readme_works(cron, account, eventually):
    backup = account / "bin/backup"
    backup.parent.mkdir()
    backup.write_text('#!/bin/sh\necho "$QUEUECTL_JOB_ID in $PWD" >> nights\n')
    backup.chmod(0o755)
    assert cron("30 2 * * *") == cron("30 2 * * *") == ""  # the second night finds the first one waiting
    assert "no worker is running" in cron("0 * * * *")
    assert cron("@reboot").startswith("Worker ")
    nights = account / "nights"
    eventually(lambda: nights.exists() and nights.read_text())
    assert re.fullmatch(rf"\S+ in {re.escape(str(account))}\n", nights.read_text())
    eventually(lambda: '"completed"' in cron("", "queuectl list --json"))
    cron("", "queuectl enqueue --id words 'echo grün 漢字'; queuectl wait words")  # though no locale is set
    assert cron("", "queuectl logs words") == "grün 漢字\n" and "grün 漢字" in cron("", "queuectl list")
    assert cron("0 * * * *") == ""
    assert sorted(path.name for path in account.iterdir()) == [".local", "bin", "nights", "queue"]
    assert "queue" in cron("", "queuectl worker stop") or not cron("", "queuectl worker list")


# -- systemd


@pytest.fixture
def unit(account: Path) -> Path:
    path = account / ".config/systemd/user/queuectl.service"
    path.parent.mkdir(parents=True)
    path.write_text(readme_block("unit"))
    return path


def test_systemd_finds_no_fault_with_the_unit_of_the_readme(unit, account):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not here")
    env = {"HOME": str(account), "PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(account)}
    words = ["systemd-analyze", "verify", "--user", str(unit)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.fixture
def service(unit: Path, account: Path, start: Call, monkeypatch: pytest.MonkeyPatch, run: Call, job: Call) -> Call:
    """`service()`: the unit's ExecStart, run as it says, in a group of its own; the queue is the unit's."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.optionxform = str  # type: ignore[assignment,method-assign]  # its keys are not lower case
    settings.read(unit)
    section = settings["Service"]
    assert (section["KillMode"], section["Restart"]) == ("mixed", "on-failure")
    name, _, value = section["Environment"].replace("%h", str(account)).partition("=")
    monkeypatch.setenv(name, value)
    words = shlex.split(section["ExecStart"].replace("%h", str(account)))
    assert words[0] == str(account / ".local/bin/queuectl")
    return lambda: start(*words[1:], start_new_session=True)


def group(leader: int) -> set[int]:
    """Every process of a service, as its control group holds them: here all that descend from the worker."""
    found, again = {leader}, True
    while again:
        again = False
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
            except OSError:
                continue
            if parent in found and int(entry.name) not in found:
                found.add(int(entry.name))
                again = True
    return found


@pytest.fixture
def long_job(run: Call, tmp_path: Path, written: Call) -> Call:
    """A job that runs on at its first start and succeeds at its second; called: its pid, once it runs."""
    note = tmp_path / "pid"
    path = shlex.quote(str(note))

    def call() -> int:
        return int(written(note))

    call.command = f"[ ! -e {path} ] || exit 0; echo $$ > {path}; exec sleep 600"  # type: ignore[attr-defined]
    return call


def stop_all(service: Any, eventually: Call) -> None:
    """TERM to the whole group."""
    for pid in group(service.pid):
        with contextlib.suppress(ProcessLookupError):  # what the others' end has ended by then
            os.kill(pid, signal.SIGTERM)


def stop_mixed(service: Any, eventually: Call) -> None:
    """TERM to the main process; when patience is over, KILL to the main process and then to its group."""
    everyone = group(service.pid)
    service.terminate()
    eventually(lambda: "Stopping" in said(service))
    for pid in (service.pid, *everyone - {service.pid}):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("stop", [stop_all, stop_mixed])
def test_a_managers_stop_costs_the_running_job_nothing(stop, service, long_job, enqueue, reaches, eventually):
    enqueue("a", long_job.command, "--timeout", "0")
    first = service()
    pid = long_job()
    stop(first, eventually)
    first.wait(30)
    eventually(lambda: not is_alive(pid))
    second = service()
    done = reaches("a", "completed")
    assert (done["attempts"], done["runs"], done.get("recoveries")) == (1, 2, None)
    kill(second)


# -- A real manager: `systemd --user`, with a control group and a runtime directory of its own

MANAGER = """
for group; do echo $$ > "$group/cgroup.procs"; done
mkdir -p /run/systemd
mount -t tmpfs none /run/systemd
mkdir /run/systemd/system       # for systemd, the sign that it is in charge; in this mount namespace only
exec "$SYSTEMD" --user --unit=basic.target
"""
SYSTEMD = "/lib/systemd/systemd"


def new_control_groups() -> list[Path]:
    """One below our own in each hierarchy that systemd uses, so that the manager meets no other process."""
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    groups = []
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        name = "" if kind == "cgroup2" else "name=systemd" if kind == "cgroup" and "name=systemd" in options else None
        if name in own:
            groups.append(Path(place + own[name]) / f"queuectl-test-{os.getpid()}")
    for group in groups:
        group.mkdir()
    return groups


@pytest.fixture
def systemctl(unit: Path, account: Path, tmp_path: Path, eventually: Call) -> Iterator[Call]:
    """`systemctl("start", "queuectl")`: what it prints."""
    missing = [program for program in ("unshare", "systemctl", SYSTEMD) if not shutil.which(program)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"{', '.join(missing)} not found: apt-get install systemd" if missing else "needs root")
    runtime = tempfile.mkdtemp(prefix="q")  # short, for its sockets' sake
    env = {"HOME": str(account), "PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": runtime, "SYSTEMD": SYSTEMD}
    groups = new_control_groups()
    with (tmp_path / "manager.log").open("wb") as log:
        words = ["unshare", "-m", "sh", "-ec", MANAGER, "sh", *map(str, groups)]
        manager = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def call(*words: str) -> str:
        done = subprocess.run(["systemctl", "--user", *words], env=env, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    try:
        eventually(lambda: call("is-active", "basic.target") == "active")
        yield call
        call("exit")
        manager.wait(30)
    finally:
        kill(manager)
        for folder in (folder for group in groups for folder in sorted(group.rglob("*/"), reverse=True)):
            with contextlib.suppress(OSError):
                folder.rmdir()
        for group in groups:
            group.rmdir()
        shutil.rmtree(runtime)


@pytest.mark.engines
def test_the_unit_under_a_running_systemd(
    systemctl, unit, account, monkeypatch, enqueue, run, job, reaches, written, eventually, tmp_path
):
    monkeypatch.setenv("QUEUECTL_HOME", str(account / "queue"))
    unit.write_text(unit.read_text().replace("TimeoutStopSec=90", "TimeoutStopSec=2"))
    systemctl("daemon-reload")
    systemctl("start", "queuectl")

    def begin(name: str) -> int:
        """A job that runs on at its first start and succeeds at its second; its pid."""
        note = tmp_path / name
        path = shlex.quote(str(note))
        enqueue(name, f"[ ! -e {path} ] || exit 0; echo $$ > {path}; sleep 600", "--timeout", "0")
        return int(written(note))

    pid = begin("stopped")
    systemctl("stop", "queuectl")  # its patience ends while the job runs
    assert not is_alive(pid)
    systemctl("start", "queuectl")
    done = reaches("stopped", "completed")
    assert (done["attempts"], done["runs"], done.get("recoveries")) == (1, 2, None)

    pid = begin("crashed")
    os.kill(int(systemctl("show", "-p", "MainPID", "--value", "queuectl")), signal.SIGKILL)
    done = reaches("crashed", "completed", seconds=60)
    assert (done["attempts"], done["runs"], done["recoveries"]) == (1, 2, 1)
    assert not is_alive(pid)

    begin("handed-back")
    run("worker", "stop", "--now")
    assert (job("handed-back")["state"], job("handed-back")["attempts"]) == ("pending", 0)
    eventually(lambda: systemctl("is-active", "queuectl") == "inactive")

    systemctl("start", "queuectl")
    pid = begin("logged-out")
    systemctl("exit")  # as at the end of the last session
    eventually(lambda: not is_alive(pid))
    assert job("logged-out")["runs"] == 1
