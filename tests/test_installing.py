"""Every way of installing, walked in an empty account: the tool, its first job, its home.

python -m pytest -m installs      needs a package index, and uv and pipx in PATH (skipped where they are missing)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHECKED_OUT = ["queuectl.py", "config.json", "jobs.json", "dlq.json", "pyproject.toml", "requirements.txt", "README.md"]

# What tells pip and uv where packages come from and whom to trust; nothing else of our environment is theirs.
KEPT = ("PIP_", "UV_DEFAULT_INDEX", "UV_INDEX", "SSL_CERT", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")

Sh = Callable[..., str]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir(mode=0o700)
    for name in CHECKED_OUT:
        shutil.copy(ROOT / name, folder)
    for name in ("jobs.json", "dlq.json"):
        (folder / name).write_text("[]\n")
    return folder


@pytest.fixture
def sh(tmp_path: Path) -> Sh:
    """`sh("pip install .")`: a shell line in an account that has nothing; its stdout. It starts in an empty folder."""
    account, empty = tmp_path / "account", tmp_path / "empty"
    for folder in (account, empty):
        folder.mkdir(mode=0o700)
    tools = {str(Path(found).parent) for tool in ("uv", "pipx") if (found := shutil.which(tool))}
    path = [str(account / ".local/bin"), str(account / "venv/bin"), *tools, "/usr/bin", "/bin"]
    env = {name: value for name, value in os.environ.items() if name.upper().startswith(KEPT)}
    env |= {
        "HOME": str(account),
        "PATH": ":".join(path),
        # both tools would take whatever Python they find first, or fetch one
        "UV_PYTHON": sys.executable,
        "UV_PYTHON_DOWNLOADS": "never",
        "PIPX_DEFAULT_PYTHON": sys.executable,
    }

    def call(line: str, cwd: Path = empty, code: int = 0) -> str:
        words = ["/bin/sh", "-ec", line]
        done = subprocess.run(
            words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == code, f"{line}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout

    return call


@pytest.fixture
def venv(sh: Sh) -> None:
    """An environment of its own, first in PATH: `python` and `pip` are its."""
    sh(f"{sys.executable} -m venv ~/venv")


def as_in_readme(line: str) -> str:
    """The line, which the README gives in these words. Skips where its tool is missing."""
    assert f"| `{line}` |" in (ROOT / "README.md").read_text(encoding="utf-8")
    tool = line.split()[0]
    if tool in ("uv", "pipx") and not shutil.which(tool):
        pytest.skip(f"{tool} is not in PATH")
    return line


def walk(sh: Sh, queuectl: str, home: str, cwd: Path | None = None) -> None:
    """The first things that a newcomer does; afterwards the job lies where the README says."""
    where = {"cwd": cwd} if cwd else {}
    assert sh(f"{queuectl} --version", **where).startswith("queuectl, version ")
    assert sh(f"{queuectl} enqueue --id first 'echo hello'", **where) == "first\n"
    sh(f"{queuectl} worker start --drain", **where)
    assert sh(f"{queuectl} logs first", **where) == "hello\n"
    assert '"completed"' in sh(f"cat {home}/jobs.json", **where)


USERS_OWN = "~/.config/queuectl" if sys.platform == "linux" else "~/Library/'Application Support'/queuectl"


@pytest.mark.installs
def test_pip_install(sh, venv, checkout):
    sh(as_in_readme("pip install ."), cwd=checkout)
    walk(sh, "queuectl", USERS_OWN)
    assert sh("ls ~/venv/lib/python*/site-packages/*.json 2>/dev/null || true") == ""


@pytest.mark.installs
def test_pipx_install(sh, checkout):
    sh(as_in_readme("pipx install ."), cwd=checkout)
    walk(sh, "queuectl", USERS_OWN)


@pytest.mark.installs
def test_uv_tool_install(sh, checkout):
    sh(as_in_readme("uv tool install ."), cwd=checkout)
    walk(sh, "queuectl", USERS_OWN)


@pytest.mark.installs
def test_uv_run(sh, checkout):
    before = set(os.listdir(checkout))
    walk(sh, as_in_readme("uv run queuectl.py"), ".", cwd=checkout)
    assert set(os.listdir(checkout)) - before <= {".queuectl", "__pycache__"}


@pytest.mark.installs
def test_python_in_a_checkout(sh, venv, checkout):
    sh("pip install -q -r requirements.txt", cwd=checkout)
    walk(sh, as_in_readme("python queuectl.py"), ".", cwd=checkout)


@pytest.mark.installs
def test_the_archives_hold_what_they_should(sh, venv, checkout, tmp_path):
    """The source archive is enough to build from; the wheel made from it has the module and no store."""
    sh("pip install -q 'setuptools>=66.1' wheel", cwd=checkout)
    sh("python -c 'import setuptools.build_meta as it; it.build_sdist(\"dist\")'", cwd=checkout)
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        source = {name.partition("/")[2] for name in tar.getnames()}
    assert {"queuectl.py", "pyproject.toml", "requirements.txt", "README.md", "PKG-INFO"} <= source
    assert not [name for name in source if name.endswith(".json")]
    sh(f"pip wheel -q --no-deps {archive} -w dist", cwd=checkout)
    (wheel,) = (checkout / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as zipped:
        held = zipped.namelist()
        info = next(name for name in held if name.endswith("/METADATA"))
        metadata = zipped.read(info).decode()
        assert zipped.read("queuectl.py") == (ROOT / "queuectl.py").read_bytes()
    assert [name for name in held if ".dist-info/" not in name] == ["queuectl.py"]
    asked = {line.partition(": ")[2].replace(" ", "") for line in metadata.splitlines() if line.startswith("Requires-")}
    needed = {line.replace(" ", "") for line in (ROOT / "requirements.txt").read_text().splitlines()}
    # the order within `click<9,>=8.2` is the builder's
    assert {"".join(sorted(item)) for item in asked} == {"".join(sorted(item)) for item in needed | {">=3.11"}}


# -- What is not set up says so


def test_a_checkout_without_its_packages_says_what_to_do():
    words = [sys.executable, "-I", "-S", str(ROOT / "queuectl.py"), "list"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("Error: ") and len(done.stderr.splitlines()) == 1
    assert "pip install -r requirements.txt" in done.stderr


def test_packages_that_are_too_old_are_told_in_one_line(tmp_path):
    """Such as a distribution's Click 8.1, whose Choice cannot be told what it chooses from."""
    old = tmp_path / "old"
    old.mkdir()
    (old / "click.py").write_text("class Choice: pass\n")
    (old / "filelock.py").write_text("lock_descriptor = unlock_descriptor = None\n")
    words = [sys.executable, "-S", str(ROOT / "queuectl.py"), "list"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env={"PYTHONPATH": str(old)})
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ") and len(done.stderr.splitlines()) == 1
