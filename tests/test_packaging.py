"""What is committed and shipped: metadata that agree with each other, empty stores, default settings."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Every setting and its default, in the order of the README's table. Written out here and not read from the
# program: a default that changes by accident must disagree with something.
DEFAULTS = {
    "max_retries": 3, "backoff_base": 2, "backoff_max": 3600, "backoff_jitter": 0, "job_timeout": 30, "no_retry_on": "",
    "grace_period": 5, "worker_count": 1, "limits": "", "runner": "sh -c", "fsync": "normal", "lock_timeout": 10,
    "keep_completed": "30d", "log_max": "100M", "keep_env": "", "on_dead": "", "on_finish": "",
    "paused": False,
}  # fmt: skip

TOP_LEVEL = set(
    "queuectl.py config.json jobs.json dlq.json tests README.md ARCHITECTURE.md requirements.txt .gitignore"
    " pyproject.toml .ci".split()
)


def requirements(path: Path) -> list[str]:
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def script_metadata(source: str) -> dict[str, Any]:
    """The inline metadata of a script, by the expression that their specification gives."""
    pattern = r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
    blocks = [found for found in re.finditer(pattern, source) if found["type"] == "script"]
    assert len(blocks) == 1, f"queuectl.py has {len(blocks)} blocks '# /// script'; tools want exactly one"
    lines = blocks[0]["content"].splitlines(keepends=True)
    return tomllib.loads("".join(line[2:] if line.startswith("# ") else line[1:] for line in lines))


def committed(*arguments: str) -> str:
    """What git says of the last commit: the work tree's own stores may hold somebody's jobs."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so there is no commit to look at")
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"git {' '.join(arguments)}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source() -> str:
    return (ROOT / "queuectl.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_script_and_package_ask_for_the_same_python_and_packages(source, project):
    script = script_metadata(source)
    assert script["dependencies"] == requirements(ROOT / "requirements.txt")
    assert script["requires-python"] == project["project"]["requires-python"] == ">=3.11"
    assert "dependencies" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}


def test_click_and_filelock_and_nothing_else_with_bounds_on_both_sides():
    found = requirements(ROOT / "requirements.txt")
    assert [re.split(r"[^\w-]", line)[0] for line in found] == ["click", "filelock"]
    unbounded = [line for line in found if ">=" not in line or "<" not in line]
    assert not unbounded, f"{unbounded} would take any version, also one that breaks us"


def test_what_the_tests_need_is_pinned():
    found = requirements(ROOT / "tests" / "requirements.txt")
    assert found[0] == "-r ../requirements.txt"
    loose = [line for line in found[1:] if "==" not in line]
    assert not loose, f"{loose}: a new version would turn an old commit red"


def test_the_version_can_be_read_without_importing(source):
    values = [
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__version__"]
    ]
    assert len(values) == 1 and isinstance(values[0], ast.Constant), "write it once: __version__ = '...'"
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?((a|b|rc|\.dev)\d+)?", str(values[0].value))


def test_the_installed_command_is_there(source, project):
    assert project["project"]["scripts"] == {"queuectl": "queuectl:main"}
    functions = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    assert "main" in functions


def test_only_the_module_is_shipped(project):
    # A store beside the installed module would make site-packages the home of every user of that Python.
    settings = project["tool"]["setuptools"]
    assert settings["py-modules"] == ["queuectl"]
    assert settings["packages"] == []
    assert settings["include-package-data"] is False
    assert not {"package-data", "data-files"} & set(settings)


def test_the_committed_stores_are_empty_and_the_settings_are_every_default():
    assert [committed("show", f"HEAD:{name}") for name in ("jobs.json", "dlq.json")] == ["[\n]\n", "[\n]\n"]
    # As text, for False == 0 and 2 == 2.0; and the order is the table's.
    assert json.dumps(json.loads(committed("show", "HEAD:config.json"))) == json.dumps(DEFAULTS)


def test_the_top_level_holds_nothing_more():
    extra = set(committed("ls-tree", "--name-only", "HEAD").split()) - TOP_LEVEL
    assert not extra, f"{sorted(extra)}: the top level is fixed; put it below tests/ or .ci/"


def test_no_two_test_files_share_a_name():
    # tests/ are no packages, so pytest collects only the first of two; each by itself would still pass.
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), f"twice: {sorted({name for name in names if names.count(name) > 1})}"
