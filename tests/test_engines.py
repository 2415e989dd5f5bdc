"""Beyond one machine: the `runner` proved against a real Slurm and a real sshd, both started here, on the loopback.

    apt-get install slurm-wlm munge openssh-server openssh-client
    python -m pytest -m engines -rs      as root; what is missing is named and skipped

A "remote" process shares this machine with the queue, which could therefore find and end it by the mark in its
environment. So that only the engine can, whatever must end sheds that mark first (`unmarked`).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_processes import Call, is_alive, kill, processes_below

pytest_plugins = ["worker_fixtures"]
pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("nothing_left")]

SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
JOBS = 200


def need(package: str, *programs: str) -> None:
    """Skips, with the word to say to apt, where one of the programs is missing."""
    missing = [program for program in programs if not shutil.which(program, path=SYSTEM_PATH)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not found: apt-get install {package}")
    if os.geteuid() != 0:
        pytest.skip("needs root: the engine's daemons start jobs as their users")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def daemons(folder: Path, *lines: list[str]) -> Iterator[None]:
    """These programs in the foreground, each with its output in `folder`, until the block's end."""
    started = []
    try:
        for number, words in enumerate(lines):
            words[0] = shutil.which(words[0], path=SYSTEM_PATH) or words[0]
            with (folder / f"daemon-{number}.out").open("wb") as out:
                started.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=folder))
        yield
    finally:
        for one in reversed(started):
            one.terminate()
        for one in started:
            try:
                one.wait(10)
            except subprocess.TimeoutExpired:
                kill(one)
        for pid in processes_below(folder):  # what they started and did not end: Slurm's steps
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def until_it_answers(words: list[str], env: dict[str, str], want: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run(words, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)
        if done.returncode == 0 and done.stdout.strip() == want:
            return
        assert time.monotonic() < deadline, f"{words}: {done.stdout}{done.stderr}"
        time.sleep(0.1)


# -- One controller and two nodes; munge with a key and a socket of its own


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    need("slurm-wlm munge", "slurmctld", "slurmd", "srun", "sinfo", "munged")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool.n1", "spool.n2"):
        (folder / name).mkdir(mode=0o755)
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    ports = free_ports(3)
    config = folder / "slurm.conf"
    config.write_text(f"""
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
KillWait=2
NodeName=n1 NodeHostname=localhost Port={ports[1]} CPUs=4 State=UNKNOWN
NodeName=n2 NodeHostname=localhost Port={ports[2]} CPUs=4 State=UNKNOWN
PartitionName=all Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
""")
    munge = ["munged", "-F", "-f"]
    for option, name in (("key-file", "key"), ("socket", "munge.socket"), ("pid-file", "munge.pid"),
                         ("seed-file", "munge.seed"), ("log-file", "munge.log")):  # fmt: skip
        munge.append(f"--{option}={folder}/{name}")
    with daemons(folder, munge):
        until_it_answers(["sh", "-c", f"test -S {shlex.quote(str(folder))}/munge.socket"], {}, "")
        controller = ["slurmctld", "-D", "-f", str(config)]
        nodes = [["slurmd", "-D", "-f", str(config), "-N", name] for name in ("n1", "n2")]
        with daemons(folder, controller, *nodes):
            until_it_answers(["sinfo", "-h", "-o", "%D %T"], {"SLURM_CONF": str(config)}, "2 idle")
            yield config


@pytest.fixture
def slurm(cluster: Path, run: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue's commands go through srun, in the words of the README."""
    monkeypatch.setenv("SLURM_CONF", str(cluster))
    run("config", "set", "runner", "srun --quiet --ntasks=1 sh -c")


# -- An sshd with a port and keys of its own


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    need("openssh-server openssh-client", "sshd", "ssh", "ssh-keygen")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (port,) = free_ports(1)
    server = folder / "sshd_config"
    server.write_text(f"""
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/user.pub
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
MaxStartups 100
""")
    client = folder / "ssh_config"
    client.write_text(f"""
Host there
    HostName 127.0.0.1
    Port {port}
    User root
    IdentityFile {folder}/user
    UserKnownHostsFile {folder}/known_hosts
    StrictHostKeyChecking accept-new
    BatchMode yes
    LogLevel ERROR
""")
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd shuts its unprivileged half in
    with daemons(folder, ["sshd", "-D", "-e", "-f", str(server)]):
        until_it_answers(["ssh", "-F", str(client), "there", "echo ready"], {}, "ready")
        yield client


@pytest.fixture
def ssh(sshd: Path, run: Call) -> Call:
    """`ssh("-tt")`: the queue's commands go through ssh with these options."""

    def call(*options: str) -> None:
        run("config", "set", "runner", shlex.join(["ssh", *options, "-F", str(sshd), "there"]))

    call()
    return call


# -- What both must do


def unmarked(script: str) -> str:
    """A command that runs `script` without the variables by which the queue itself could find it."""
    return f"exec env -u QUEUECTL_RUN -u QUEUECTL_HOME -u QUEUECTL_WORKER sh -c {shlex.quote(script)}"


def noted(folder: Path) -> str:
    """Shell text that notes the remote pid in `folder`."""
    return f"echo $$ >> {shlex.quote(str(folder))}"


def two_hundred_jobs(folder: Path, where: str) -> list[str]:
    """150 that succeed, 30 that succeed the second time, 20 that never do; each says `where` it runs."""
    lines = []
    for number in range(JOBS):
        text = f'echo "job {number} on {where}"'
        if number % 20 in (1, 2, 3):
            flag = shlex.quote(str(folder / f"tried-{number}"))
            text += f"; [ -e {flag} ] || {{ : > {flag}; exit 75; }}"
        elif number % 20 in (4, 5):
            text += "; echo broken >&2; exit 3"
        lines.append(text)
    return lines


def check_two_hundred(process: Call, run: Call, jobs: Call, folder: Path, where: str) -> str:
    """Enqueue and drain them; every state, count of attempts, exit code and log is right. All the output."""
    ids = process("enqueue", "--file", "-", "--max-retries", "2", input="\n".join(two_hundred_jobs(folder, where)))
    process("worker", "start", "--drain", "--count", "6", code=1, timeout=400)  # 1: some died
    after, printed = jobs(), ""
    for number, id in enumerate(ids.lines):
        kind = number % 20
        state, attempts, code = ("dead", 2, 3) if kind in (4, 5) else ("completed", 2 if kind in (1, 2, 3) else 1, 0)
        job = after[id]
        assert (job["state"], job["attempts"], job["exit_code"]) == (state, attempts, code), job
        log = run("logs", id).out
        assert f"job {number} on " in log and ("broken" in log) == (state == "dead")
        printed += log
    return printed


def stopped_remotely(
    how: Any, script: str, enqueue: Call, worker: Call, written: Call, eventually: Call, tmp_path: Path
) -> None:
    """Start the script as job a, `how()` to stop it: its remote process ends."""
    note = tmp_path / "pid"
    enqueue("a", unmarked(f"{noted(note)}; {script}"), "--timeout", "0")
    worker()
    pid = int(written(note))
    assert is_alive(pid)
    how()
    eventually(lambda: not is_alive(pid), 40)


SLEEP = "exec sleep 600"
DEAF = "trap '' TERM HUP; while :; do sleep 1; done"


def test_slurm_runs_two_hundred_jobs(slurm, process, run, jobs, tmp_path, quick):
    printed = check_two_hundred(process, run, jobs, tmp_path, "$SLURMD_NODENAME as $QUEUECTL_JOB_ID")
    assert "on n1 as " in printed and "on n2 as " in printed


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> None:
    """The queue's commands go through that engine: `slurm`, or `ssh` with a terminal, whose end hangs up."""
    use = request.getfixturevalue(request.param)
    if request.param == "ssh":
        use("-tt")


@pytest.mark.parametrize(("engine", "script"), [("slurm", SLEEP), ("slurm", DEAF), ("ssh", SLEEP)], indirect=["engine"])
def test_the_remote_work_of_a_cancelled_job_ends(
    engine, script, quick, run, enqueue, worker, written, eventually, reaches, tmp_path
):
    stopped_remotely(lambda: run("cancel", "a"), script, enqueue, worker, written, eventually, tmp_path)
    assert reaches("a", "dead")["reason"] == "cancelled"


@pytest.mark.parametrize("engine", ["slurm", "ssh"], indirect=True)
def test_the_remote_work_ends_at_the_time_limit(engine, quick, enqueue, drain, written, job, eventually, tmp_path):
    note = tmp_path / "pid"
    enqueue("a", unmarked(f"{noted(note)}; {SLEEP}"), "--timeout", "2", "--max-retries", "1")
    drain(code=1)
    assert (job("a")["state"], job("a")["outcome"]) == ("dead", "timed_out")
    pid = int(written(note))
    eventually(lambda: not is_alive(pid), 40)


@pytest.mark.parametrize("engine", ["slurm", "ssh"], indirect=True)
def test_the_remote_work_of_a_worker_that_was_killed_ends(
    engine, quick, enqueue, worker, written, eventually, tmp_path, job
):
    note = tmp_path / "pid"
    enqueue("a", unmarked(f"{noted(note)}; {SLEEP}"), "--timeout", "0")
    first = worker()
    pid = int(written(note))
    kill(first)
    worker()
    written(note, lines=2)  # it runs again
    eventually(lambda: not is_alive(pid), 40)
    assert (job("a")["attempts"], job("a")["runs"], job("a")["recoveries"]) == (1, 2, 1)


def test_ssh_runs_two_hundred_jobs(ssh, process, run, jobs, tmp_path, quick):
    printed = check_two_hundred(process, run, jobs, tmp_path, "port ${SSH_CONNECTION##* }${QUEUECTL_JOB_ID:+ no}")
    assert "on port " in printed and " no" not in printed  # ssh passes no variables on


def test_ssh_with_a_terminal_passes_the_exit_code_on_and_ends_lines_as_terminals_do(
    ssh, quick, enqueue, drain, job, process
):
    ssh("-tt")
    enqueue("a", "echo one; exit 7", "--max-retries", "1")
    drain(code=1)
    assert job("a")["exit_code"] == 7
    assert process("logs", "a").out == "one\r\n"


@pytest.mark.parametrize(("options", "script"), [([], SLEEP), (["-tt"], DEAF)])
def test_ssh_leaves_remote_work_that_nothing_hangs_up(
    options, script, ssh, quick, run, enqueue, worker, written, reaches, tmp_path
):
    """What the README warns of: plain ssh hangs nothing up, and a hang-up can be ignored."""
    ssh(*options)
    note = tmp_path / "pid"
    enqueue("a", unmarked(f"cd {shlex.quote(str(tmp_path))}; {noted(note)}; {script}"), "--timeout", "0")
    worker()
    pid = int(written(note))
    run("cancel", "a")
    assert reaches("a", "dead")["reason"] == "cancelled"
    assert is_alive(pid)


def test_a_host_that_is_down_is_a_failed_attempt_with_code_255(ssh, quick, enqueue, run, drain, job):
    (port,) = free_ports(1)
    ssh("-p", str(port))
    enqueue("a", "true", "--max-retries", "2")
    drain(code=1)
    assert (job("a")["state"], job("a")["attempts"], job("a")["exit_code"]) == ("dead", 2, 255)
    assert "refused" in run("logs", "a").out
