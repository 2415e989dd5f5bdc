"""Being an ordinary user: root passes over modes and limits, so what must meet them runs as somebody else.

A copy of the program and of these suites, its two packages beside it, in a folder that belongs to that user.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65_534


class Person(NamedTuple):
    """Somebody without any right but to a folder: `words` stand before what that user runs, with Python first."""

    folder: Path
    words: tuple[str, ...]
    env: dict[str, str]
    python: str

    def run(self, *words: str, own_mounts: bool = False, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run Python with these words, the last resort of which is a name space in which the user may mount."""
        before = [*self.words, *(("unshare", "-rUm") if own_mounts else ())]
        return subprocess.run(
            [*before, self.python, *words], env=self.env, cwd=self.folder, capture_output=True, text=True,
            timeout=timeout, stdin=subprocess.DEVNULL,
        )  # fmt: skip


def _python_of(words: tuple[str, ...], env: dict[str, str]) -> str | None:
    """An interpreter that this user can start: ours may lie in a directory that is closed to others."""
    ask = "import sys, os, click, filelock; assert sys.version_info >= (3, 11)"
    ask += "; os.execv(sys.executable, [sys.executable, '-V'])"  # started by itself too, without what setpriv may hold
    for path in (sys.executable, shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")):
        if path and subprocess.run([*words, path, "-c", ask], env=env, capture_output=True, cwd="/").returncode == 0:
            return path
    return None


@contextmanager
def ordinary(program: Path = ROOT / "queuectl.py", suites: Path = ROOT / "tests" / "faults") -> Iterator[Person | None]:
    """An ordinary user with a copy of all this; None where this machine has no way to be one."""
    folder = Path(tempfile.mkdtemp(prefix="ordinary-"))
    try:
        folder.chmod(0o755)
        shutil.copytree(suites, folder / "tests" / "faults", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(program, folder / "queuectl.py")
        import click
        import filelock

        for package in (click, filelock):
            assert package.__file__
            shutil.copytree(Path(package.__file__).parent, folder / "lib" / package.__name__)
        words: tuple[str, ...] = ()
        if os.geteuid() == 0:
            words = ("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--")
            for path in (folder, *folder.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        kept = {key: os.environ[key] for key in ("PATH", "LANG", "FAULTS_SEED") if key in os.environ}
        env = {**kept, "HOME": str(folder), "TMPDIR": str(folder), "PYTHONPATH": str(folder / "lib")}
        python = _python_of(words, env) if not words or shutil.which("setpriv") else None
        yield Person(folder, words, env, python) if python else None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
