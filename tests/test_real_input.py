"""Real work: compress and checksum the interpreter's own library, and lose a worker on the way."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest
from real_processes import kill

pytest_plugins = ["worker_fixtures"]
pytestmark = [
    pytest.mark.usefixtures("nothing_left", "quick"),
    pytest.mark.skipif(not (shutil.which("gzip") and shutil.which("sha256sum")), reason="gzip and sha256sum"),
]


def library_files() -> list[Path]:
    """The files of the standard library, in an order that every run has."""
    # reading: the library as it ships. Compiled caches are written while programs run, which would change
    # the input under the test; what was installed beside the library is not the library.
    beside = {"__pycache__", "site-packages", "dist-packages"}
    files = (path for path in Path(sysconfig.get_path("stdlib")).rglob("*") if not beside & set(path.parts))
    return sorted(path for path in files if path.is_file() and not path.is_symlink())


def checksum_commands(files: Sequence[Path], out: Path) -> list[str]:
    """For each file the shell line that leaves its checksum in `out`, in a file named by its place."""
    return [
        f"gzip -nc {shlex.quote(str(path))} | sha256sum > {shlex.quote(str(out / str(number)))}"
        for number, path in enumerate(files)
    ]


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


# Slow: real files, compressed once by the workers and once by xargs.
@pytest.mark.parametrize("most", [60, pytest.param(None, marks=pytest.mark.slow)])
def test_every_file_of_the_library_is_checksummed_though_a_worker_is_killed_on_the_way(
    most, run, process, worker, eventually, gate, jobs, tmp_path
):
    every = library_files()
    files = every[:: max(1, len(every) // most)][:most] if most else every
    assert len(files) > 50
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()

    lines = checksum_commands(files, ours)
    # The last four wait, so that there is work in hand whenever the worker is killed.
    lines[-4:] = [f"{gate.wait}; {line}" for line in lines[-4:]]
    run("pause")
    printed = process("enqueue", "--file", "-", input="\n".join(lines) + "\n").lines
    killed, left = worker("--count", "2"), worker("--count", "2", "--drain")
    run("resume")
    eventually(lambda: len(list(ours.iterdir())) > len(files) // 4, 120)
    kill(killed)
    gate.open()
    assert left.wait(600) == 0

    subprocess.run(
        ["xargs", "-0", "-P", "2", "-n", "1", "sh", "-c"],
        input="\0".join(checksum_commands(files, theirs)).encode(),
        check=True,
    )
    assert checksums(ours) == checksums(theirs)
    done = jobs()
    assert list(done) == printed and len(set(printed)) == len(files)  # none missing, none twice
    assert {(job["state"], job["attempts"]) for job in done.values()} == {("completed", 1)}
    # What ran again did so only because its worker was killed.
    recovered = [job for job in done.values() if job["runs"] > 1]
    assert [(job["runs"], job["recoveries"]) for job in recovered] == [(2, 1)] * len(recovered)
    assert 1 <= len(recovered) <= 2
