"""The shape of queuectl.py: its nine sections in order, none using what stands below it, one home for each
outside effect; functions that fit a screen, none that only wraps another, nothing unused, no parameter carried
through a row of functions that have no use for it; and the lists of seeded faults, which go stale as it changes.

What is checked is read from the syntax tree, so nothing here runs the program. The tables at the top are
the whole rule; a change of the rule is a change of a table.
"""

from __future__ import annotations

import ast
import collections
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import vulture

from tests import mutants
from tests.faults import mutants as fault_mutants

SECTIONS = [
    "VOCABULARY & ERRORS",
    "CONFIGURATION",
    "JOBS",
    "STORE",
    "OPERATIONS",
    "EXECUTION",
    "WORKER",
    "PRESENTATION",
    "COMMANDS",
]

# What the top of the file may import. Each costs every command its start, the plain enqueue most of all;
# whatever only some commands need is imported by the function that needs it.
TOP_IMPORTS = set(
    "__future__ array bisect click collections contextlib datetime errno filelock functools gc hashlib heapq"
    " inspect itertools json math os random re secrets select signal stat sys threading time typing zlib".split()
)

# Effect -> the sections where it may appear. A whole module stands for everything in it.
HOMES = {
    "click": {9},
    "subprocess": {6},
    "os.posix_spawn": {6},
    "os.posix_spawnp": {6},
    "os.waitid": {6},
    "threading": {4, 6, 7},  # 4: the mutex beside the file lock, which does not exclude threads
    "os.open": {4, 6},
    "os.write": {4, 6},
    "os.rename": {4, 6},
    "os.replace": {4, 6},
    "os.unlink": {4, 6},
    "os.fsync": {4, 6},
    "os.ftruncate": {4, 6},
    "os.mkdir": {4, 6},
    "os.mkfifo": {4, 6},
    "open": {4, 6, 9},
    "time.sleep": {4, 6, 7, 9},
    "print": {9},
    # Sections 1, 2, 3 and 8 are values in, values out.
    "random": {4, 5, 6, 7},
    "secrets": {4, 5, 6, 7},
    "time": {4, 5, 6, 7, 9},
    "datetime.now": {4, 9},
}

# Modules whose names are written out at each call: `os.rename(...)` can be found, and replaced by a test.
SPELLED_OUT = {
    "click",
    "fcntl",
    "os",
    "random",
    "secrets",
    "select",
    "signal",
    "subprocess",
    "threading",
    "time",
}

# Each exception has its reason here; one that is no longer needed is an error too.
LINES_MAX = 70
LONGER = {"enqueue_bulk": "rewritten with the claim order and the bulk"}
# What vulture cannot see the use of.
USED_ELSEWHERE = {
    "inode": "a field that is compared with all others, as a tuple",
    "returncode": "tells subprocess that the process is waited for elsewhere",
    "color": "read by click",
    "news": "goes with the store",
    "last_dead": "goes with the store",
    "ids_like": "goes with the store",
    "group_class": "read by click.Group",
    "convert": "called by click",
    "steps": "the parameter of a function that stands in for a progress bar's",
}
CARRIERS_MAX = 2
CARRIED = {
    "now": "the clock is read once, under the lock, and that one value goes everywhere",
    "judge": "what doctor makes of a record, given to the store so that it need not know; the steps of one repair",
}

PROGRAM = Path(__file__).resolve().parent.parent / "queuectl.py"
BANNER = re.compile(r"^# ======== (\d)\. (.+?) ========$", re.MULTILINE)
Functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
Comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@functools.cache
def sections_of(source: str) -> dict[int, list[ast.stmt]]:
    """Section number -> its top-level statements; 0 is what stands above the first banner."""
    starts = [source.count("\n", 0, banner.start()) + 1 for banner in BANNER.finditer(source)]
    parts: dict[int, list[ast.stmt]] = {number: [] for number in range(len(starts) + 1)}
    for statement in ast.parse(source).body:
        parts[sum(start < statement.lineno for start in starts)].append(statement)
    return parts


def names_bound(node: ast.AST) -> Iterator[str]:
    """Every name that `node` itself binds; what functions, classes and comprehensions bind is theirs."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield node.name
            return
        case ast.Lambda() | ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            return
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
            yield name
        case ast.alias():
            yield (node.asname or node.name).split(".")[0]
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name
        case ast.MatchMapping(rest=str(name)):
            yield name
    for child in ast.iter_child_nodes(node):
        yield from names_bound(child)


def global_uses(node: ast.AST, hidden: frozenset[str] = frozenset()) -> Iterator[tuple[str, int]]:
    """(name, line) of each name read in `node` that is not one of the enclosing functions' own.

    Annotations count: whoever reads a signature must not have to read further down either.
    """
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in hidden:
        yield node.id, node.lineno
    inside: list[ast.AST] = []
    own: set[str] = set()
    if isinstance(node, Functions):  # defaults, decorators and annotations are read outside of it
        inside = [*node.body] if isinstance(node.body, list) else [node.body]
        own = {name for part in [node.args, *inside] for name in names_bound(part)}
        own -= {name for part in inside for sub in ast.walk(part) if isinstance(sub, ast.Global) for name in sub.names}
    elif isinstance(node, Comprehensions):
        inside = [*ast.iter_child_nodes(node)]
        own = {name for part in node.generators for name in names_bound(part)}
    for child in ast.iter_child_nodes(node):
        yield from global_uses(child, hidden | own if child in inside else hidden)


def downward_uses(source: str) -> list[str]:
    """Each use of a name that is defined only in a later section."""
    parts = sections_of(source)
    home: dict[str, int] = {}
    for number, statements in parts.items():
        for statement in statements:
            for name in names_bound(statement):
                home.setdefault(name, number)
    return [
        f"line {line}: section {number} uses '{name}' of section {home[name]}"
        for number, statements in parts.items()
        for statement in statements
        for name, line in global_uses(statement)
        if home.get(name, 0) > number
    ]


@functools.cache
def effects_of(source: str) -> list[tuple[str, int, int]]:
    """(name, section, line) of everything named or imported below the first banner: what may be an effect."""
    found = []
    for number, statements in sections_of(source).items():
        for node in (node for statement in statements if number for node in ast.walk(statement)):
            match node:
                case ast.Attribute(value=ast.Name(id=owner), attr=attr):
                    names = [f"{owner}.{attr}"]
                case ast.Name(id=name):
                    names = [name]
                case ast.Import(names=aliases):
                    names = [alias.name.split(".")[0] for alias in aliases]
                case ast.ImportFrom(module=module):
                    names = [(module or "").split(".")[0]]
                case _:
                    continue
            found += [(name, number, node.lineno) for name in names]
    return found


def effects_outside(source: str, effect: str, allowed: set[int]) -> list[str]:
    """Each place outside the `allowed` sections where `effect` is named or imported."""
    return [
        f"line {line}: section {number} uses '{effect}'"
        for name, number, line in effects_of(source)
        if name == effect and number not in allowed
    ]


def top_level_imports(source: str) -> Iterator[tuple[str, int]]:
    """(module, line) of each import that runs when the file is loaded."""

    def search(node: ast.AST) -> Iterator[tuple[str, int]]:
        if isinstance(node, (*Functions, ast.ClassDef)):
            return
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return  # read by the type checker alone: costs nothing
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0], node.lineno
        for child in ast.iter_child_nodes(node):
            yield from search(child)

    return search(ast.parse(source))


class Function(NamedTuple):
    """One function or method of the program: `owner` is its class."""

    name: str
    owner: str | None
    node: ast.FunctionDef | ast.AsyncFunctionDef

    def parameters(self) -> list[str]:
        """In the order of a call, without a method's own object."""
        every = self.node.args
        names = [one.arg for one in (*every.posonlyargs, *every.args, *every.kwonlyargs)]
        return names[self.owner is not None and names[:1] in (["self"], ["cls"]) :]


@functools.cache
def functions_of(source: str) -> list[Function]:
    def search(node: ast.AST, owner: str | None) -> Iterator[Function]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield Function(child.name, owner, child)
                yield from search(child, None)
            else:
                yield from search(child, child.name if isinstance(child, ast.ClassDef) else owner)

    return list(search(ast.parse(source), None))


def length(function: Function) -> int:
    return (function.node.end_lineno or 0) - function.node.lineno + 1


def mere_wrappers(source: str) -> list[str]:
    """Each function that is used once and does nothing but call another with exactly its own parameters."""
    uses = collections.Counter(
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load)
    )
    found = []
    for function in functions_of(source):
        has_docstring = ast.get_docstring(function.node) is not None
        match function.node.body[has_docstring:]:
            case [ast.Return(value=ast.Call() as call) | ast.Expr(value=ast.Call() as call)]:
                given = [ast.unparse(part) for part in (*call.args, *(word.value for word in call.keywords))]
                if given == function.parameters() and uses[function.name] == 1 and not function.node.decorator_list:
                    found.append(f"line {function.node.lineno}: '{function.name}' only calls {ast.unparse(call)}")
    return found


def callee_of(call: ast.Call, caller: Function, source: str) -> Function | None:
    """The function that is called, where its name leaves no doubt."""
    match call.func:
        case ast.Name(id=name):
            found = [one for one in functions_of(source) if one.name == name and one.owner is None]
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            found = [one for one in functions_of(source) if (one.name, one.owner) == (name, caller.owner)]
        case ast.Attribute(value=ast.Name() | ast.Attribute(), attr=name):  # not of super(): that one is elsewhere
            found = [one for one in functions_of(source) if one.name == name and one.owner is not None]
        case _:
            return None
    return found[0] if len(found) == 1 else None


def handed_on(function: Function, name: str, source: str) -> tuple[Function, str] | None:
    """Whom a parameter goes to and as what, where the function does nothing else with it."""
    found = None
    for node in (node for statement in function.node.body for node in ast.walk(statement)):
        if isinstance(node, ast.Name) and node.id == name:
            if found:
                return None  # used twice
            found = node
    for call in (node for statement in function.node.body for node in ast.walk(statement)):
        if not found or not isinstance(call, ast.Call) or not (callee := callee_of(call, function, source)):
            continue
        if found in call.args and not any(isinstance(part, ast.Starred) for part in call.args):
            named = callee.parameters()[call.args.index(found) :]
            return (callee, named[0]) if named else None
        for word in call.keywords:
            if word.value is found and word.arg:
                return callee, word.arg
    return None


def carried(source: str) -> list[tuple[str, list[str]]]:
    """Each parameter that goes through more than CARRIERS_MAX functions which only hand it on, and these."""
    found = []
    for function in functions_of(source):
        for name in function.parameters():
            at, as_name, carriers = function, name, [function.name]
            while (step := handed_on(at, as_name, source)) and step[0].name not in carriers:
                at, as_name = step
                carriers.append(at.name)
            if len(carriers) - 1 > CARRIERS_MAX:
                found.append((name, carriers))
    return found


@pytest.fixture(scope="module")
def source() -> str:
    return PROGRAM.read_text(encoding="utf-8")


def test_the_nine_sections_stand_in_order(source: str) -> None:
    expected = [(str(number), name) for number, name in enumerate(SECTIONS, 1)]
    assert BANNER.findall(source) == expected, "each banner is one line: # ======== N. NAME ========"


def test_every_section_banner_is_followed_by_what_the_section_owns(source: str) -> None:
    bare = [banner[2] for banner in BANNER.finditer(source) if not source[banner.end() :].lstrip("\n").startswith("#")]
    assert not bare, f"no comment under the banner of {bare}: say what the section owns, and its invariants"


def test_the_docstring_on_top_lists_the_sections(source: str) -> None:
    docstring = " ".join((ast.get_docstring(ast.parse(source)) or "").upper().split())
    missing = [name for name in SECTIONS if name not in docstring]
    assert not missing, f"the docstring of queuectl.py is the map of the file; it does not name {missing}"


def test_the_way_of_a_job_names_what_stands_in_those_sections(source: str) -> None:
    way = (ast.get_docstring(ast.parse(source)) or "").partition("The way of a job")[2]
    named = re.findall(r"([\w.]+) (\d)", way)
    there = {
        number: {
            node.name for part in parts for node in ast.walk(part) if isinstance(node, (*Functions[:2], ast.ClassDef))
        }
        for number, parts in sections_of(source).items()
    }
    lost = [name for name, number in named if not there[int(number)].issuperset(name.split("."))]
    assert len(named) > 20 and not lost, f"the docstring of queuectl.py sends a newcomer to what is not there: {lost}"


def test_a_section_uses_only_itself_and_the_sections_above(source: str) -> None:
    found = downward_uses(source)
    assert not found, "move the name up, or hand a function down:\n" + "\n".join(found)


@pytest.mark.parametrize("effect", HOMES)
def test_an_effect_has_its_home(source: str, effect: str) -> None:
    found = effects_outside(source, effect, HOMES[effect])
    assert not found, f"'{effect}' belongs in section {sorted(HOMES[effect])} only:\n" + "\n".join(found)


def test_nothing_is_imported_at_the_top_that_a_plain_enqueue_does_not_need(source: str) -> None:
    found = [f"line {line}: {module}" for module, line in top_level_imports(source) if module not in TOP_IMPORTS]
    assert not found, "import it in the function that needs it, or add it to TOP_IMPORTS:\n" + "\n".join(found)


def test_effects_are_called_through_their_module(source: str) -> None:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in SPELLED_OUT:
            found.append(f"line {node.lineno}: from {node.module} import ...")
        if isinstance(node, ast.Import):
            found += [
                f"line {node.lineno}: import {alias.name} as {alias.asname}"
                for alias in node.names
                if alias.name in SPELLED_OUT and alias.asname not in (None, alias.name)
            ]
    assert not found, "write `import os` and `os.rename(...)`, so that every effect can be found:\n" + "\n".join(found)


def test_no_function_is_longer_than_a_screen(source: str) -> None:
    long = {one.name: length(one) for one in functions_of(source) if length(one) > LINES_MAX}
    assert long.keys() == LONGER.keys(), f"{long}: split decision and effect; LONGER has what cannot be, and why"


def test_no_function_only_wraps_another(source: str) -> None:
    found = mere_wrappers(source)
    assert not found, "call the inner one:\n" + "\n".join(found)


def test_no_code_is_dead() -> None:
    looked = vulture.Vulture(ignore_decorators=["@*.command", "@*.group"])
    looked.scavenge([PROGRAM])
    unused = {item.name: item.get_report() for item in looked.get_unused_code()}
    found = [report for name, report in unused.items() if name not in USED_ELSEWHERE]
    assert not found, "used by nothing, or by tests alone:\n" + "\n".join(found)
    assert unused.keys() == USED_ELSEWHERE.keys(), "USED_ELSEWHERE names what is gone or in use"


def test_no_parameter_is_carried_through_functions_that_do_not_use_it(source: str) -> None:
    found = carried(source)
    assert {name for name, _ in found} <= CARRIED.keys(), f"give it to whoever uses it: {found}"
    assert {name for name, _ in found} == CARRIED.keys(), "CARRIED names what is carried no more"


def test_every_seeded_fault_finds_its_line_once_and_its_test(source: str) -> None:
    stale = [mutant.name for mutant in mutants.MUTANTS if source.count(mutant.old) != 1]
    stale += [mutant.name for mutant in fault_mutants.MUTANTS if fault_mutants.changed(source, mutant) is None]
    for mutant in mutants.MUTANTS:
        path, _, name = mutant.test.partition("::")
        if name and f"def {name}(" not in (PROGRAM.parent / "tests" / path).read_text():
            stale.append(f"{mutant.name}: there is no {mutant.test}")
    assert not stale, "write them anew, so that each is again what its name says:\n" + "\n".join(stale)


# The checks themselves, on sources of a few lines: a green run means nothing until a seeded fault was red.

TWO_SECTIONS = "import os\n# ======== 1. A ========\n{above}\n# ======== 2. B ========\nlater = 1\ndef other(): pass\n"


@pytest.mark.parametrize(
    "above",
    [
        "def f(): return later",
        "def f(x: later): pass",
        "def f(x=later): pass",
        "@other\ndef f(): pass",
        "class C:\n    x = later",
        "class C:\n    def m(self): return [other(y) for y in self]",
        "def f():\n    def g(): later = 2\n    return later",
        "def f():\n    global later\n    later = 2\n    return later",
        "x = lambda: later",
        "def f(later=later): return later",
        "if os:\n    x = later",
        "x = [later for y in ()]\ny = {later: 1 for later in ()}",
    ],
)
def test_a_use_of_a_later_section_is_seen(above: str) -> None:
    assert downward_uses(TWO_SECTIONS.format(above=above))


@pytest.mark.parametrize(
    "above",
    [
        "def f(later): return later",
        "def f():\n    later = 2\n    return later",
        "def f():\n    for later in (): print(later)",
        "def f():\n    def other(): pass\n    return other()",
        "def f(later):\n    def g(): return later\n    return g",
        "def f(x): return x.later",
        "def f(): return dict(later=1)",
        "def f(): return g()\ndef g(): return os",
        "x = lambda later: later",
        "x = {later: 1 for later in ()}",
        "def f():\n    try: pass\n    except OSError as later: return later",
    ],
)
def test_a_name_of_its_own_is_no_use_of_a_later_section(above: str) -> None:
    assert not downward_uses(TWO_SECTIONS.format(above=above))


@pytest.mark.parametrize(
    ("effect", "code"),
    [
        ("os.rename", "def f(): os.rename('a', 'b')"),
        ("os.rename", "move = os.rename"),
        ("open", "def f(): return open('a')"),
        ("subprocess", "def f():\n    import subprocess"),
        ("subprocess", "def f():\n    from subprocess import run"),
        ("click", "@click.command()\ndef f(): pass"),
        ("time", "def f(): return time.time()"),
    ],
)
def test_an_effect_away_from_home_is_seen(effect: str, code: str) -> None:
    source = TWO_SECTIONS.format(above=code)
    assert effects_outside(source, effect, {2})
    assert not effects_outside(source, effect, {1})


def test_a_function_is_as_long_as_its_lines() -> None:
    one, two = functions_of("@x\ndef f():\n    def g():\n        pass\n    return g\n")
    assert (length(one), length(two)) == (4, 2)


@pytest.mark.parametrize(
    ("code", "is_one"),
    [
        ("def f(a, b): return g(a, b)", True),
        ("def f(a, *, b):\n    'What it is for.'\n    g(a, b=b)", True),
        ("class C:\n    def f(self, a): return self.g(a)", True),
        ("def f(a, b): return g(b, a)", False),
        ("def f(a): return g(a, 1)", False),
        ("def f(a): return g(a)\nf(2)", False),
        ("@x\ndef f(a): return g(a)", False),
    ],
)
def test_a_mere_wrapper_is_seen(code: str, is_one: bool) -> None:
    assert bool(mere_wrappers(f"{code}\nf(1)")) == is_one


@pytest.mark.parametrize(
    ("last", "is_carried"),
    [
        ("def c(x): return d(y=x)", True),
        ("def c(x): return d(x) + 1", True),
        ("def c(x): return d(x + 1)", False),
        ("def c(x): return d(x, x)", False),
        ("def c(x):\n    if x: return d(x)", False),
        ("def c(x): return print(x)", False),
    ],
)
def test_a_parameter_that_is_carried_is_seen(last: str, is_carried: bool) -> None:
    found = carried(f"class C:\n    def a(self, x): return self.b(x)\n    def b(self, x): c(x)\n{last}\ndef d(y): pass")
    assert found == ([("x", ["a", "b", "c", "d"])] if is_carried else [])
