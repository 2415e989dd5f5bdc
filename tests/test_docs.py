"""Help, README and ARCHITECTURE.md say what the program is: none names what is not there, none leaves out what is."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from real_processes import readme_block

import queuectl

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
SOURCE = (ROOT / "queuectl.py").read_text(encoding="utf-8")

# In the README's session this stands for what differs from run to run: times, pids, directories. At least one
# character, never a line's end.
WILDCARD = "..."

# The README's first screen: whoever reads no further has seen these lines.
FIRST_LINES = 40

# A README that one reads to the end, an ARCHITECTURE.md of about two pages.
README_LINES_MAX = 300
ARCHITECTURE_LINES_MAX = 150


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below this one, with its words."""
    yield path, command
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from walk(child, (*path, name))


COMMANDS = [pytest.param(path, command, id=" ".join(path) or "queuectl") for path, command in walk(queuectl.cli)]


def options_of(command: click.Command) -> list[str]:
    """Every spelling of every option, `--help` apart."""
    params = [param for param in command.params if isinstance(param, click.Option)]
    return [spelling for param in params for spelling in (*param.opts, *param.secondary_opts)]


def help_of(command: click.Command) -> str:
    """A command's help as its docstring has it."""
    return inspect.cleandoc(command.help or "")


def examples_of(command: click.Command) -> list[str]:
    """The command lines under "Example:" in a command's help."""
    _, _, rest = help_of(command).partition("\nExample")
    return [line.strip() for line in rest.splitlines() if line.strip().startswith("queuectl ")]


def section(text: str, title: str) -> str:
    """What stands under that heading of the second level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"README.md has no section '{title}'"
    return found[1]


def command_rows() -> dict[tuple[str, ...], str]:
    """The README's table of commands: the words of each command, and its row."""
    rows = re.findall(r"^\| (`[^|]*) \| .+ \|$", section(README, "Commands"), re.MULTILINE)
    usages = [usage for cell in rows for usage in re.findall(r"`([^`]+)`", cell)]
    paths = [tuple(re.findall(r"^[a-z ]+[a-z]", usage)[0].split()) for usage in usages]
    assert len(paths) == len(set(paths)), "a command has two rows"
    return dict(zip(paths, usages, strict=True))


def headings(text: str) -> set[str]:
    """What a link within the document may name."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


# -- Help


@pytest.mark.parametrize(("path", "command"), COMMANDS)
def test_help_begins_with_one_sentence(path, command):
    first, _, rest = help_of(command).partition("\n")
    assert re.fullmatch(r"[A-Z][^.]*\.", first), f"not one sentence with a full stop: {first!r}"
    assert not rest or rest.startswith("\n"), f"the first sentence does not end with its line: {first!r}"


@pytest.mark.parametrize(("path", "command"), [case for case in COMMANDS if isinstance(case.values[1], click.Group)])
def test_the_list_of_commands_cuts_no_sentence(path, command, run):
    cut = [line for line in run(*path, "--help").out.split("Commands:")[1].splitlines() if line.endswith("...")]
    assert not cut, f"too long for the list: {cut}"


@pytest.mark.parametrize(("path", "command"), COMMANDS)
def test_help_shows_an_example_of_that_command(path, command, run):
    examples = examples_of(command)
    assert examples, "no Example block"
    assert re.search(r"\n\n  Examples?:\n    queuectl ", run(*path, "--help").out), "it is no block of its own"
    for example in examples:
        assert shlex.split(example)[1:][: len(path)] == list(path), f"an example of something else: {example}"


def parsed(line: str) -> None:
    """Let Click parse a command line as the program does, options and values included, and not run it."""
    words = shlex.split(line)[1:]
    context = queuectl.cli.make_context("queuectl", list(words))
    called: click.Command | None = queuectl.cli
    while isinstance(called, click.Group) and words:
        name = words.pop(0)
        called = called.get_command(context, name)
        assert called is not None, f"no such command in: {line}"
        context = called.make_context(name, list(words), parent=context)
        context.close()


@pytest.mark.parametrize(("path", "command"), COMMANDS)
def test_examples_in_help_are_no_usage_errors(path, command, home):
    for example in examples_of(command):
        parsed(example)
        assert not list(home.iterdir()), f"parsing alone has made something in the home: {example}"


def test_every_option_and_every_setting_has_a_test():
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    options = {option for _, command in walk(queuectl.cli) for option in options_of(command)}
    settings = {key.replace("_", "-") for key in queuectl.DEFAULTS}
    untried = [name for name in options | settings if name not in tests.replace("_", "-")]
    assert not untried, f"write a test of {untried}"


# -- README


def test_the_first_lines_of_the_readme_hold_set_up_and_session():
    start = "\n".join(README.splitlines()[:FIRST_LINES])
    for mark in ("<!-- /run-command -->", "<!-- /test-command -->", "<!-- session -->"):
        assert mark in start, f"{mark} comes later than line {FIRST_LINES}"
    assert 5 <= len([line for line in readme_block("session").splitlines() if line.startswith("$ ")]) <= 6
    assert start.count("```") == 6, "the session's end comes later"


def test_the_table_of_the_readme_has_each_command_once_and_no_other():
    there = {path for path, command in walk(queuectl.cli) if not isinstance(command, click.Group)}
    assert set(command_rows()) == there


@pytest.mark.parametrize(("path", "command"), COMMANDS)
def test_help_says_what_each_option_means(path, command):
    silent = [param.name for param in command.params if isinstance(param, click.Option) and not param.help]
    assert not silent, f"no help for {silent}: the README leaves options to --help"


@pytest.mark.parametrize("title", ["How it works", "Commands", "Recipes", "Settings and files", "Promises and limits"])
def test_the_readme_names_no_option_that_is_not_there(title):
    known = {option for _, command in walk(queuectl.cli) for option in (*options_of(command), "--help")}
    spans = re.findall(r"`([^`\n]+)`", section(README, title))
    foreign = ("srun", "systemctl", "systemd", "journalctl", "docker", "loginctl")
    ours = [span for span in spans if not span.startswith(foreign) and "srun" not in span]
    named = {option for span in ours for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)}
    assert named <= known, f"not (yet) options of the program: {sorted(named - known)}"


def test_the_readme_names_no_command_that_is_not_there():
    for path in re.findall(r"`queuectl ([a-z]+(?: [a-z]+)?)", README):
        command: click.Command = queuectl.cli
        for word in path.split():
            if isinstance(command, click.Group):
                found = command.get_command(click.Context(command), word)
                assert found is not None, f"'queuectl {path}' is no command"
                command = found


def test_what_the_readme_tells_to_type_is_no_usage_error(home, monkeypatch):
    (home / "commands").touch()  # a file of jobs that it names
    monkeypatch.chdir(home)
    lines = re.findall(r"`(queuectl [^`]+)`", README)
    assert len(lines) >= 30
    for line in lines:
        parsed(line)


def test_the_configuration_table_is_the_programs():
    rows = re.findall(
        r"^\| `(\w+)` \| `([^`]*)` \| ([^|]+) \| (.+) \|$", section(README, "Settings and files"), re.MULTILINE
    )
    table = {key: default for key, default, _, _ in rows}
    assert table == {key: queuectl.say_value(value) or '""' for key, value in queuectl.DEFAULTS.items()}
    assert list(table) == list(queuectl.DEFAULTS), "the order differs"
    assert len(rows) == len(table), "a key stands there twice"


def test_the_json_fields_of_the_readme_are_those_that_are_accepted(run):
    (item,) = re.findall(r"^- \*\*Fields of a job in JSON:\*\* (.*?)\. ", README, re.MULTILINE)
    fields = set(re.findall(r"`(\w+)`", item))
    refusal = run("enqueue", '{"no_such_field": 1}', code=2).err
    accepted = re.search(r"The fields are: ([\w, ]+)\.", refusal)
    assert accepted and fields == set(accepted[1].split(", "))


def test_the_exit_codes_of_the_readme_are_the_programs():
    cells = re.findall(r"^\| ([\d, ]+) \|", section(README, "Promises and limits"), re.MULTILINE)
    codes = {int(code) for cell in cells for code in cell.split(", ")}
    named = {queuectl.EXIT_REFUSED, queuectl.EXIT_USAGE, queuectl.EXIT_STORAGE, queuectl.EXIT_TIMEOUT}
    assert codes == {0, 130, 143} | named


def test_both_documents_are_short_enough_to_be_read():
    assert len(README.splitlines()) <= README_LINES_MAX
    assert len(ARCHITECTURE.splitlines()) <= ARCHITECTURE_LINES_MAX


def test_the_links_of_the_readme_lead_somewhere():
    assert set(re.findall(r"\]\(#([^)]*)\)", README)) <= headings(README)


def test_the_suites_that_the_readme_names_for_its_promises_exist():
    named = set(re.findall(r"`((?:faults/)?test_\w+\.py)`", section(README, "Promises and limits")))
    assert len(named) >= 10
    assert not [name for name in named if not (ROOT / "tests" / name).exists()]


def session_steps() -> list[tuple[str, str]]:
    """(command line, output as it stands in the README) of the session."""
    steps = re.split(r"^\$ ", readme_block("session"), flags=re.MULTILINE)
    assert steps[0] == "", "the session does not begin with a command"
    return [(line, output) for line, _, output in (step.partition("\n") for step in steps[1:])]


def fits(pattern: str, output: str) -> bool:
    """Whether the output is the one written down, where WILDCARD stands for any text within a line."""
    return re.fullmatch("[^\n]+?".join(map(re.escape, pattern.split(WILDCARD))), output) is not None


def test_the_wildcard_stands_for_some_text_of_one_line():
    assert fits("Worker ... started\n", "Worker 1-ab started\n")
    assert fits("in ....\n", "in 0.2 s.\n")
    assert not fits("a ... b\n", "a \n b\n")
    assert not fits("... ago\n", " ago\n")


# Slow: the session's own retry waits its two seconds.
def test_the_session_of_the_readme_is_true(process, home, tmp_path):
    for line, expected in session_steps():
        words = shlex.split(line)
        assert words[0] == "queuectl"
        result = process(*words[1:], code=None, cwd=tmp_path)
        assert not (result.out and result.err), f"{line}: a terminal would mix stdout and stderr"
        output = result.out + result.err
        assert fits(expected, output), f"$ {line}\nREADME:\n{expected}\nnow:\n{output}"
        assert result.code in (0, 1), f"{line}: exit {result.code}"


# What a reader must find in each picture, as the program prints it today.
IN_PICTURES = {
    "session.svg": {"completed", "failed", "processing", "outcome", "last output", "Job pack is pending again."},
    "status-watch.svg": {*queuectl.STATES, "throughput", "running", "last failures"},
}
PICTURE_BYTES_MAX = 60_000


def texts_in(picture: Path) -> list[xml.etree.ElementTree.Element]:
    """The texts of an SVG: each is a piece of a terminal's line."""
    return list(xml.etree.ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text"))


def check_picture(picture: Path) -> None:
    """A picture shows what it must, none of its text is cut, and it loads fast."""
    shown = "\n".join(node.text or "" for node in texts_in(picture))
    assert not [words for words in IN_PICTURES[picture.name] if words not in shown]
    width = float(xml.etree.ElementTree.parse(picture).getroot().attrib["width"])
    ends = [float(node.attrib["x"]) + float(node.attrib["textLength"]) for node in texts_in(picture)]
    assert max(ends) < width
    assert picture.stat().st_size < PICTURE_BYTES_MAX


def test_the_pictures_of_the_readme_show_the_program():
    assert set(re.findall(r"!\[.{40,}\]\(tests/(.*)\)", README)) == set(IN_PICTURES), "without it, or without a text"
    for name in IN_PICTURES:
        check_picture(ROOT / "tests" / name)


def test_what_is_typed_in_the_picture_of_a_session_is_no_usage_error(home):
    lines = [node.text or "" for node in texts_in(ROOT / "tests/session.svg") if node.attrib["class"] == "c1"]
    assert len(lines) >= 8
    for line in lines:
        parsed(line)


@pytest.mark.slow
def test_the_pictures_can_be_recorded_again(tmp_path):
    subprocess.run([sys.executable, str(ROOT / "tests/picture.py"), str(tmp_path)], check=True, timeout=200)
    for name in IN_PICTURES:
        check_picture(tmp_path / name)


# -- ARCHITECTURE.md


def names_in_source() -> set[str]:
    """Every name that queuectl.py defines, `Class.name` too, and every single word that is a text in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # states, settings, fields, commands
        if isinstance(node, ast.ClassDef):
            for child in ast.walk(node):
                if isinstance(child, ast.FunctionDef):
                    names.add(f"{node.name}.{child.name}")
                elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
                    names.add(f"{node.name}.{child.target.id}")
    return names


def test_every_name_in_architecture_md_exists():
    known = names_in_source()
    spans = set(re.findall(r"`([^`\n]+)`", ARCHITECTURE))
    files = {span for span in spans if re.search(r"\.(py|json|jsonl|md|txt|toml)$|/$", span)}
    names = {span.removesuffix("()") for span in spans - files}
    names = {name for name in names if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name)}
    assert len(names) > 50, "ARCHITECTURE.md names hardly anything in backticks"
    missing = {name for name in names - known if not is_module(name)}
    assert not missing, f"not in queuectl.py: {sorted(missing)}"


def is_module(name: str) -> bool:
    """Whether it is a module that queuectl.py imports, or something that such a module has."""
    module, _, attribute = name.partition(".")
    if not re.search(rf"^\s*import {re.escape(module)}\b", SOURCE, re.MULTILINE):
        return False
    return not attribute or hasattr(importlib.import_module(module), attribute)


def test_every_file_that_the_documents_name_in_the_checkout_exists():
    paths = set(re.findall(r"(?:tests/[\w/]+\.py|\.ci/\w+|[A-Z]{4,}\.md)", README + ARCHITECTURE))
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_the_code_map_has_the_sections_of_the_file_in_their_order():
    sections = re.findall(r"^# ======== (\d+)\. (.+) ========$", SOURCE, re.MULTILINE)
    assert re.findall(r"^(\d+)\. ([A-Z& ]+):", ARCHITECTURE, re.MULTILINE) == sections


def test_architecture_md_has_one_sentence_a_line():
    prose = [line for line in ARCHITECTURE.splitlines() if line and not line.startswith(("#", "-", "*"))]
    two = [line for line in prose if re.search(r"[a-z`)]\. [A-Z`]", re.sub(r"^\d+\. ", "", line))]
    assert not two, f"two sentences in: {two[0]}"
