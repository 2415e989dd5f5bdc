"""The shape of queuectl.py, read from its source: its twelve sections in order, each using only those above it, one
home for each outside effect, what a reader has to carry, nothing unused; and that the lists of seeded faults fit."""

from __future__ import annotations

import ast
import functools
import io
import re
import symtable
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import vulture

from tests import mutants
from tests.faults import mutants as fault_mutants

# Each module at the top costs every command its start; what only some need is imported by the function that needs it.
TOP_IMPORTS = set(
    "__future__ array bisect click collections contextlib datetime errno filelock functools gc hashlib heapq io"
    " itertools json math os random re select signal stat sys threading time typing zlib".split()
)

# Each outside effect, and the sections that may have it.
HOMES = {
    "click open sys.stdin sys.stdout sys.stderr os.environ": {12},
    "subprocess os.waitid os.waitpid os.kill os.killpg ctypes": {9},
    "os.chdir": set(),  # the threads share one working directory
    "threading": {4, 5, 9, 10},  # 4 and 5: a file lock does not exclude the threads of one process
    "os.open": {4, 5, 9},
    "os.rename os.replace": {4, 5, 8, 9},
    "os.fsync": {4, 5},
    "os.ftruncate": {5, 9},
    "os.unlink os.mkdir": {4, 8, 9},
    "os.urandom": {4, 9, 10},
    "os.write os.mkfifo os.utime": {4},
    "os.pwrite": {4},
    "random": {7},
    "time.sleep": {4, 9, 10, 12},
    "time.time": {4, 6},  # 6: the clock of a store that is given none
    "time.monotonic": {4, 7, 9, 10, 12},  # 7: the rate that the live screen shows
    "print datetime.now secrets": set(),
}

# What a reader has to carry: tokens without comments and docstrings; lines with three of `if`, `for`, `and`, `or`;
# branches of a function on average; methods of a class; lines of a function. The goal: 46,000 tokens.
MASS_MAX = [49_998, 12, 3.84, 43, 60]
BRANCHES = (ast.If, ast.For, ast.While, ast.IfExp, ast.ExceptHandler, ast.comprehension, ast.match_case, ast.Assert)

# What vulture cannot see the use of: click, subprocess, signal; and a field taken by its place.
USED_ELSEWHERE = {"returncode", "color", "obj", "convert", "steps", "frame", "duplicate"}

PROGRAM = Path(__file__).resolve().parent.parent / "queuectl.py"
SOURCE = PROGRAM.read_text(encoding="utf-8")
BANNER = re.compile(r"^# ======== (\d+)\. (.+?) ========$", re.MULTILINE)


def sections_of(source: str) -> list[str]:
    """The text of each section; the first is what stands above all banners."""
    starts = [0, *(banner.start() for banner in BANNER.finditer(source)), len(source)]
    return [source[start:end] for start, end in zip(starts, starts[1:], strict=False)]


def globals_of(table: symtable.SymbolTable) -> Iterator[str]:
    """Every name that is read there and is no parameter or local name of a function."""
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (table.get_type() == "module" or symbol.is_global()):
            yield symbol.get_name()
    for child in table.get_children():
        yield from globals_of(child)


def downward_uses(source: str) -> list[tuple[int, str]]:
    """(section, name) for each name that a section uses and that only a later one defines."""
    tables = [symtable.symtable(text, "", "exec") for text in sections_of(source)]
    home: dict[str, int] = {}
    for number, table in enumerate(tables):
        for symbol in table.get_symbols():
            if symbol.is_assigned() or symbol.is_imported():
                home.setdefault(symbol.get_name(), number)
    uses = [(number, name) for number, table in enumerate(tables) for name in sorted(set(globals_of(table)))]
    return [(number, name) for number, name in uses if home.get(name, 0) > number]


@functools.cache
def effects_of(source: str) -> set[tuple[str, int]]:
    """(name, section) of whatever is named: `os.rename`, and `os` as well."""
    found = set()
    for number, text in enumerate(sections_of(source)[1:], 1):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute | ast.Name):
                found.add((ast.unparse(node), number))
    return found


def mass_of(source: str) -> list[float]:
    """What a reader has to carry, as in MASS_MAX."""
    nodes, docs = list(ast.walk(ast.parse(source))), set()
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            docs |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    tokens = [one for one in tokenize.generate_tokens(io.StringIO(source).readline) if one.string.strip()]
    tokens = [one for one in tokens if one.type != tokenize.COMMENT and one.start[0] not in docs]
    conditions = Counter(one.start[0] for one in tokens if one.string in ("if", "for", "and", "or"))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    inner = [node for function in functions for node in ast.walk(function)]
    branches = sum(len(node.values) - 1 for node in inner if isinstance(node, ast.BoolOp))
    branches += sum(isinstance(node, BRANCHES) for node in inner)
    bodies = [[type(part) for part in node.body] for node in nodes if isinstance(node, ast.ClassDef)]
    return [
        len(tokens),
        sum(count >= 3 for count in conditions.values()),
        1 + branches / len(functions),
        max(kinds.count(ast.FunctionDef) for kinds in bodies),
        max((node.end_lineno or 0) - node.lineno + 1 for node in functions),
    ]


def test_the_twelve_sections_stand_in_order_and_each_says_what_it_owns() -> None:
    assert [int(one[1]) for one in BANNER.finditer(SOURCE)] == list(range(1, 13))
    assert all(text.partition("\n")[2].startswith("# ") for text in sections_of(SOURCE)[1:])


def test_the_docstring_names_the_sections_and_where_a_job_goes() -> None:
    docstring, texts = ast.get_docstring(ast.parse(SOURCE)) or "", sections_of(SOURCE)
    assert re.findall(r"^ +(\d+) ([A-Z& ]+?)  ", docstring, re.MULTILINE) == BANNER.findall(SOURCE)
    named = re.findall(r"([\w.]+) (\d+)", docstring.partition("The way of a job")[2])
    words = [(word, int(number)) for name, number in named for word in name.split(".")]
    lost = [word for word, number in words if not re.search(rf"^ *(def|class) {word}\b", texts[number], re.MULTILINE)]
    assert len(named) > 20 and not lost


def test_a_section_uses_only_itself_and_the_sections_above() -> None:
    assert not downward_uses(SOURCE), "move the name up, or hand a function down"


@pytest.mark.parametrize(("effects", "homes"), HOMES.items())
def test_an_effect_has_its_home(effects: str, homes: set[int]) -> None:
    assert not [use for use in effects_of(SOURCE) if use[0] in effects.split() and use[1] not in homes]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="an f-string is several tokens from Python 3.12 on")
def test_a_reader_has_no_more_to_carry() -> None:
    assert not [(value, most) for value, most in zip(mass_of(SOURCE), MASS_MAX, strict=True) if value > most]


def test_nothing_is_imported_at_the_top_that_a_plain_enqueue_does_not_need() -> None:
    top = re.findall(r"^(?:    )?(?:import|from) (\w+)", sections_of(SOURCE)[0], re.MULTILINE)
    assert set(top) <= TOP_IMPORTS


def test_no_code_is_dead() -> None:
    looked = vulture.Vulture(ignore_decorators=["@*.command", "@*.group"])
    looked.scavenge([PROGRAM])
    assert not [item.get_report() for item in looked.get_unused_code() if item.name not in USED_ELSEWHERE]


def test_every_seeded_fault_finds_its_line_once_and_its_test() -> None:
    tests = "".join(path.read_text() for path in PROGRAM.parent.glob("tests/**/test_*.py"))
    stale = [one.name for one in mutants.MUTANTS if SOURCE.count(one.old) != 1]
    stale += [one.name for one in mutants.MUTANTS if f"def {one.test}(" not in tests]
    stale += [one.name for one in fault_mutants.MUTANTS if fault_mutants.changed(SOURCE, one) is None]
    assert not stale, "write them anew, so that each is again what its name says"


# The checkers themselves: a green run means nothing until a seeded mistake was red.
@pytest.mark.parametrize("code", ["def f(): return later", "def f(x: later): pass", "class C:\n    x = [later]"])
def test_a_use_of_a_later_section_is_seen(code: str) -> None:
    source = f"# ======== 1. A ========\n{code}\n# ======== 2. B ========\nlater = 1\n"
    assert downward_uses(source) == [(1, "later")]
    assert not downward_uses(source.replace("later = 1", "last = 1"))


def test_the_mass_of_a_few_lines() -> None:
    source = 'class C:\n    """Words."""\n\n    def f(a):  # a b\n        if a and 1 or 2:\n            return\n'
    assert mass_of(source) == [17, 1, 4, 1, 3]
