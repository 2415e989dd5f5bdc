"""`enqueue --each` as a black box: places in a template, quoted for `sh`, and what is refused."""

from __future__ import annotations

import json
import random
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import queuectl as q

Jobs = Callable[[], dict[str, dict[str, Any]]]

# Texts that a shell treats in a way of its own where they stand unquoted.
NASTY = [
    "", " ", "a b", "it's", '"', "'", "a\nb", "\n", "$HOME", "$(echo x)", "`echo x`", "\\", "a\\", "-n", "--", "-rf",
    "*", "?", "[a-z]*", "~", "#x", "x#", ";", "&", "|", "(", ")", "<", ">", "{}", "{#}", "{a,b}", "!", "é 日本 🎉",
    "\t", "\x01", "';echo x;'", "\"$(echo x)\"", "$", "${x}", "%s", "2", "=", "a\r",
]  # fmt: skip


def commands(jobs: Jobs) -> list[str]:
    return [job["command"] for job in jobs().values()]


def printed_by(command: str, shell: str = "sh") -> str:
    done = subprocess.run([shell, "-c", command], capture_output=True, check=True, cwd="/", timeout=30)
    return done.stdout.decode()


@pytest.fixture
def listed(tmp_path: Path) -> Callable[[bytes], str]:
    """`listed(b"one\\ntwo\\n")`: the path of a file that holds this."""

    def write(content: bytes) -> str:
        (tmp_path / "arguments").write_bytes(content)
        return str(tmp_path / "arguments")

    return write


# ---- arguments and places ----


def test_each_argument_makes_a_job_and_the_ids_are_printed_in_order(run, jobs):
    ids = run("enqueue", "--each", "convert {} {/.}.png", "--", "in/a b.jpg", "in/c.jpg").lines
    assert ids == list(jobs())
    assert [shlex.split(command) for command in commands(jobs)] == [
        ["convert", "in/a b.jpg", "a b.png"], ["convert", "in/c.jpg", "c.png"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "argument, filled",
    [
        ("a.jpg", ["a.jpg", "a.jpg", "a", "a"]), ("/srv/x y/a.tar.gz", ["a.tar.gz", "/srv/x y/a.tar", "a.tar"]),
        ("a", ["a", "a", "a"]), ("v1.2/file", ["file", "v1.2/file", "file"]), ("", ["", "", ""]),
        (".bashrc", [".bashrc", ".bashrc", ".bashrc"]), ("dir/.x.y", [".x.y", "dir/.x", ".x"]),
        # reading: as basename(1), so that `*/` gives the names of directories.
        ("photos/", ["photos", "photos/", "photos"]), ("a/b.d//", ["b.d", "a/b.d//", "b"]),
        ("https://x.org/a.html", ["a.html", "https://x.org/a", "a"]), ("ü/é.ñ", ["é.ñ", "ü/é", "é"]),
        ("a.", ["a.", "a", "a"]), ("-v.txt", ["-v.txt", "-v", "-v"]),
    ],
)  # fmt: skip
def test_the_places_of_a_template(run, jobs, argument, filled):
    run("enqueue", "--each", "echo {} {/} {.} {/.} {#} {#}{}x", "--", argument)
    assert shlex.split(commands(jobs)[0]) == ["echo", argument, *filled[-3:], "1", f"1{argument}x"]


def test_an_argument_is_one_word_whatever_it_holds(run, jobs):
    run("enqueue", "--each", "printf '<%s>' {} x{}y {#}", "--", *NASTY)
    for number, (argument, command) in enumerate(zip(NASTY, commands(jobs), strict=True), 1):
        assert printed_by(command) == f"<{argument}><x{argument}y><{number}>"


def test_a_plain_argument_is_kept_as_it_is(run, jobs):
    run("enqueue", "--each", "convert {} {/.}.png", "in/a-1.jpg")
    assert commands(jobs) == ["convert in/a-1.jpg a-1.png"]


def test_a_number_before_a_redirection_is_no_file_descriptor(run, jobs, tmp_path):
    run("enqueue", "--cwd", "/", "--each", f"cd {tmp_path}; echo {{#}}>out; echo {{}}>>out; cat<out", "7")
    assert printed_by(*commands(jobs)) == "1\n7\n"


def test_the_jobs_run(run, process):
    process("enqueue", "--each", "echo {#}: {}", "--", "a  b", "$HOME", "it's\nso")
    process("worker", "start", "--drain")
    assert [run("logs", id).out for id in run("list", "--ids").lines] == ["1: a  b\n", "2: $HOME\n", "3: it's\nso\n"]


def test_what_looks_like_json_or_a_comment_is_an_argument(run, jobs):
    run("enqueue", "--each", "printf %s {}", '{"command":"true"}', "-p", "#x", "[", "-")
    assert [printed_by(command) for command in commands(jobs)] == ['{"command":"true"}', "-p", "#x", "[", "-"]


# ---- from a file ----


@pytest.mark.parametrize(
    "content, arguments",
    [
        (b"one\ntwo words\n", ["one", "two words"]), (b"one\ntwo", ["one", "two"]),
        (b"# no comment\n\n  \n a \n", ["# no comment", "", "  ", " a "]), (b"", []), (b"\n", [""]),
        (b"\n\n", ["", ""]),        (b"[\n{\n", ["[", "{"]), (b'{"command":"true"}\n', ['{"command":"true"}']),
        ("a\u2028b\x0c\x0b\u0085\n".encode(), ["a\u2028b\x0c\x0b\u0085"]), (b"\xef\xbb\xbfone\n", ["one"]),
        (b"one\n\xef\xbb\xbftwo\n", ["one", "\ufefftwo"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_every_line_of_a_file_is_an_argument(run, jobs, listed, content, arguments, source):
    where = listed(content) if source == "file" else "-"
    ids = run("enqueue", "--each", "printf %s {}", "--file", where, input=content if source == "stdin" else None).lines
    assert ids == list(jobs())
    assert [shlex.split(command)[2] for command in commands(jobs)] == arguments


def test_a_hundred_thousand_arguments_are_one_change(run, listed):
    run("enqueue", "--each", "echo {} {#}", "--file", listed(b"".join(b"file %d.txt\n" % n for n in range(100_000))))
    assert run("status", "--json").json["jobs"]["pending"] == 100_000
    (last,) = run("list", "--json", "--reverse", "--limit", "1").json
    assert last["command"] == "echo 'file 99999.txt' 100000"


def test_one_bad_line_adds_nothing_and_is_named(run, listed):
    answer = run("enqueue", "--each", "echo {}", "--file", listed(b"good\nbad\0one\ngood\n"), code=2)
    assert 'Argument 2, "bad\\u0000one"' in answer.err and "NUL" in answer.err
    assert run("enqueue", "--each", "echo {}", "--file", listed(b"good\n\xff\n"), code=2).err.startswith(
        "Error: Argument 2"
    )
    assert run("list", "--ids").out == ""


def test_a_command_that_becomes_too_long_names_the_argument(run, listed):
    fits = 131_071 - len("echo ")
    run("enqueue", "--each", "echo {}", "--file", listed(b"a" * fits))
    answer = run("enqueue", "--each", "echo {}", "--file", listed(b"short\n" + b"a" * (fits + 1)), code=2)
    assert 'Argument 2, "aaaa' in answer.err and "131071" in answer.err and len(answer.err) < 1000


# ---- options ----


def test_options_hold_for_every_job(run, jobs):
    run("enqueue", "--id", "first", "true")
    options = ["--priority", "5", "--tag", "t", "--env", "A=1", "--cwd", "/", "--after", "first", "--delay", "1h"]
    answer = run("enqueue", "--json", *options, "--each", "echo {}", "--", "a", "b").json
    assert answer == list(jobs().values())[1:] and len(answer) == 2
    expected = {"priority": 5, "tags": ["t"], "env": {"A": "1"}, "cwd": "/", "after": ["first"]}
    assert all({key: one[key] for key in expected} == expected and "run_at" in one for one in answer)


def test_unique_without_a_key_adds_each_command_once(run, jobs):
    words = ["enqueue", "--unique", "--each", "echo {}", "--"]
    first, second = run(*words, "a", "b").lines
    assert run(*words, "b", "c", "c").lines == [second, *list(jobs())[2:], *list(jobs())[2:]]
    assert commands(jobs) == ["echo a", "echo b", "echo c"]


def test_an_option_after_the_arguments_is_refused_unless_they_stand_after_dashes(run, jobs):
    assert "'--tag'" in run("enqueue", "--each", "echo {}", "a", "--tag", "t", code=2).err
    assert "'--tag'" in run("enqueue", "--each", "echo {}", "{a", "--tag", "t", code=2).err
    run("enqueue", "--each", "echo {}", "--", "a", "--tag")
    assert commands(jobs) == ["echo a", "echo --tag"]


# ---- what is refused ----


@pytest.mark.parametrize(
    "words, says",
    [
        (["--id", "a", "x"], "--id"), (["--unique=k", "x"], "--unique=KEY"), (["--unique", "k", "x"], "--unique=KEY"),
        (["--unique", "x"], "--unique=KEY"), (["--wait", "x"], "--wait"), (["--stream"], "--stream"),
        (["--command", "true"], "--command"), (["--command", "true", "x"], "--command"),
        (["--stream", "x"], "--stream"), ([], "argument"), (["--"], "argument"), (["--file", "-", "x"], "--file"),
        (["--id", "", "x"], "--id"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_each_is_a_usage_error(run, words, says):
    assert says in run("enqueue", "--each", "echo {}", *words, input=b"a\n", code=2).err
    assert run("list", "--ids").out == ""


@pytest.mark.parametrize("template", ["", "echo ", "echo { }", "echo {a}", "echo '{'}", "{/./}", "{..}"])
def test_a_template_without_a_place_is_refused(run, template):
    answer = run("enqueue", "--each", template, "--", "a", code=2)
    assert "no place" in answer.err and "{}" in answer.err and run("list", "--ids").out == ""


@pytest.mark.parametrize(
    "template",
    [
        'echo "@"', "echo '@'", "echo '@", 'echo "@', "echo 'a'@'@'", 'echo "a \\" @"', 'sh -c "echo \'@\'"',
        "sh -c 'echo \"@\"'", "echo \\@", "echo \\\\\\@", "echo `echo @`", "echo $@", "echo $x@", "echo $(( @ + 1 ))",
        'echo "$(echo @)"', 'echo "$(echo "@")"', 'echo "${x:-"@"}"', "cat <<E\n@\nE", "cat <<-'E'\n@\nE\n",
        "echo $'@'", "echo a # it's @\necho b", "# @", "echo $'it\\'s @'", "echo @ '@'", "echo a#'@'",
    ],
)  # fmt: skip
def test_a_place_inside_quotes_is_refused(run, template):
    answer = run("enqueue", "--each", template.replace("@", "{}"), "--", "a", code=2)
    assert "inside quotes" in answer.err and run("list", "--ids").out == ""


@pytest.mark.parametrize("place", ["{}", "{/}", "{.}", "{/.}", "{#}"])
def test_every_place_inside_quotes_is_refused(run, place):
    for template in (f'echo "{place}"', f"echo {{}} \\{place}", f"echo ${place}", f"# {place}"):
        assert "inside quotes" in run("enqueue", "--each", template, "--", "a", code=2).err


@pytest.mark.parametrize(
    "template",
    [
        "printf %s '' @", 'printf %s "it\'s" @', "printf %s 'say \"' @", 'printf "%s" @', "printf '%s' \\\" @ \\'",
        'printf %s "$HOME" @', 'printf %s "${HOME}/x" @', 'printf %s "$(echo x)" @',
        "x=$(printf %s @); printf %s \"$x\"",
        "printf %s `echo x` @", "printf %s $((1 << 2)) @", "printf %s @ # it's", "# it's\nprintf %s @",
        "printf %s a#'b'@", 'printf %s "$" @', "printf %s \\$@",
        'printf %s "\\$(" @', "x=@; printf %s \"$x\"", "printf %s ${HOME}@ a$#@",
        "printf %s ${x:-@}", 'printf %s "a"@"b"', "cat - 2>&1 </dev/null; printf %s @",
        "case @ in x) ;; *) printf %s @ ;; esac", "for i in @ @; do printf %s \"$i\"; done", "(printf %s @)",
    ],
)  # fmt: skip
def test_a_place_outside_quotes_is_one_word_whatever_stands_around_it(run, jobs, template):
    run("enqueue", "--each", template.replace("@", "{}"), "--", "PLAIN", *NASTY)
    plain, *others = map(printed_by, commands(jobs))
    assert "PLAIN" in plain
    # `$(...)` takes line ends from the end of an output, and a pattern of `case` is not taken by every text.
    for argument, printed in zip(NASTY, others, strict=True):
        if "$(printf" not in template or not argument.endswith("\n"):
            assert printed == plain.replace("PLAIN", argument), argument


PIECES = [
    "{}", "{}", "{}", " ", " ", "a", "'", '"', "\\", "`", "$", "$x", "${x}", "$(", ")", "$((", "))", "#", "\n", "<",
    ">", "<<", "{", "}", "${x:-", "printf %s ", ";", "echo ", "1",
]  # fmt: skip


def test_no_accepted_template_lets_an_argument_out(tmp_path):
    """Random templates: whatever is accepted, an argument cannot run a command of its own."""
    dice, tried = random.Random(7), 0
    (tmp_path / "empty").touch()
    out = '\'";touch OUT;`touch OUT`$(touch OUT)\ntouch OUT\n";touch OUT #'
    while tried < 150:
        template = "".join(dice.choices(PIECES, k=dice.randint(2, 14)))
        try:
            (fields,) = q.commands_of_each(template, [out])
        except q.BadValue:
            continue
        tried += 1
        for shell in filter(shutil.which, ("sh", "bash")):
            subprocess.run([shell, "-c", fields["command"]], capture_output=True, cwd=tmp_path, timeout=30, input=b"")
            assert not (tmp_path / "OUT").exists(), (shell, template)


def test_help_shows_the_places(run):
    text = " ".join(run("enqueue", "--help").out.split())
    assert all(place in text for place in ("--each TEMPLATE", "{}", "{/}", "{.}", "{/.}", "{#}"))


def test_a_wrong_name_of_the_option_is_told_the_right_one(run):
    assert "--each" in run("enqueue", "--eech", "echo {}", "a", code=2).err
    assert "There is no field 'each'" in run("enqueue", json.dumps({"command": "true", "each": "{}"}), code=2).err
