"""Seeded bugs that the fault suites must find: each is a small change of a copy of queuectl.py.

    python tests/faults/mutants.py                all of them; exit 1 if one is not found
    python tests/faults/mutants.py intent WORD    those with one of these words in their name

A suite counts only if it turns red for these. The same walks must be green on the program as it is. Two run at a time,
and each ends at its first problem. A bug whose old text is not in the program once is named, and nothing is run.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
PROGRAM = HERE.parents[1] / "queuectl.py"


class Mutant(NamedTuple):
    """A bug: texts of the program, each with what stands there instead; and the walk that finds it."""

    name: str
    changes: tuple[tuple[str, str], ...]
    script: str
    scenario: str
    only: str = ""


ARRAYS_RENAMED = """        for name in written:  # 4
            os.rename(self._temporary(name), self._paths[name])
"""
JOURNAL_RENAMED = """        os.rename(self._temporary("journal"), self.journal_path)
"""
APPENDED = """        self._append(b"".join(map(_line, bodies)))
        self.totals = totals
"""
NEW_JOURNAL = """        self._write_journal(marks, repeat, [])  # 5
"""
REAPED = """            status = self._reap(slot, attempt, 0)
"""
FENCED_AND_REAPED = f"""            if attempt.ending is not None:
                Fence(attempt.trace, attempt.kill_at).wait()
{REAPED}"""
SETTINGS_READ = """        return _read_all(fd)
    finally:
        os.close(fd)


def _sync_dir"""

PREAD_OR_NOTHING = """def _pread_or_nothing(fd: int, size: int, at: int) -> bytes:
    try:
        return os.pread(fd, size, at)
    except OSError:
        return b""


def _read_all(fd: int) -> bytes:
"""

MUTANTS = (
    Mutant(
        "the new journal is renamed before the arrays",
        ((ARRAYS_RENAMED, ""), (NEW_JOURNAL, NEW_JOURNAL + ARRAYS_RENAMED)),
        "points.py",
        "fold",
        "killed",
    ),
    Mutant("no intent", (("if written:  # 2", "if False:"),), "points.py", "fold", "killed"),
    Mutant(
        "the arrays are not synced",
        (("            os.fsync(fd)\n            return _fingerprint(", "            return _fingerprint("),),
        "power.py",
        "fold",
    ),
    Mutant(
        "memory changes before the line is written",
        ((APPENDED, "".join(reversed(APPENDED.splitlines(keepends=True)))),),
        "points.py",
        "worker that goes on after an error",
        "half then ENOSPC",
    ),
    Mutant(
        "the settings are written in place",
        (('_new_file(temporary)', '_new_file(temporary := self._paths["config"])'),),
        "points.py",
        "config set",
        "killed",
    ),
    Mutant(
        "a torn tail is passed over, not cut off",
        (("            self._set_tail_aside()\n", "            pass\n"),),
        "points.py",
        "torn tail",
        "killed",
    ),
    Mutant(
        "what is told is not synced",
        (("                os.fsync(fd)\n                return\n", "                return\n"),),
        "power.py",
        "enqueue beside a live worker",
    ),
    Mutant(
        "the home is not synced after the renames",
        (("        _sync_dir(self.home)  # always: an earlier fold may have renamed them and stopped there\n", ""),),
        "power.py",
        "fold",
    ),
    Mutant(
        "the new journal is written in place",
        (('_new_file(self._temporary("journal"))', "_new_file(self.journal_path)"), (JOURNAL_RENAMED, "")),
        "points.py",
        "fold",
        "killed",
    ),
    Mutant(
        "a bulk's first lines do not say that more follows",
        (('tail = {"more": True} if batch else self.totals.as_json()', "tail = self.totals.as_json()"),),
        "points.py",
        "bulk in many lines beside a live worker",
        "killed",
    ),
    Mutant(
        "the rest of a short write is left out",
        (("                write_whole(self._fd, data[done:])\n", "                pass\n"),),
        "points.py",
        "enqueue beside a live worker",
        "short",
    ),
    Mutant(
        "the arrays are cut off and written in place",
        ((ARRAYS_RENAMED, ARRAYS_RENAMED.replace(
            "os.rename(self._temporary(name), self._paths[name])",
            "_copy(os.open(self._temporary(name), os.O_RDONLY), 0, 1 << 30, _create(self._paths[name]))")),),
        "points.py",
        "fold",
        "killed",
    ),
    Mutant(
        "processing jobs are not repeated after the header",
        (("_change_body(repeat, (), totals), *bodies)", "_change_body((), (), totals), *bodies)"),),
        "points.py",
        "enqueue beside a live worker",
        "killed",
    ),
    Mutant(
        "half a load is taken for the whole",
        (("            self._reset()  # half a state must never be taken for the whole\n", "            pass\n"),),
        "points.py",
        "worker that goes on after an error",
        "EMFILE",
    ),
    Mutant(
        "what is taken from an edit is not in the journal",
        (("        if locked and self._fd is not None:\n            self._append(b",
          "        if False:\n            self._append(b"),),
        "points.py",
        "hand edit that makes a job dead",
        "killed",
    ),
    Mutant(
        "an edit that the journal holds is taken once more",
        (
            (
                "            if any(map(mark.fits, self._taken[name])):\n",
                "            if False:\n",
            ),
        ),
        "points.py",
        "hand edit",
        "killed",
    ),
    Mutant(
        "what a first start takes is not in its journal",
        (("self._taken_bodies(taken) if edited else [])", "[])"),),
        "points.py",
        "first start on restored files",
        "killed",
    ),
    Mutant(
        "a hole of NULs is taken for damage",
        (("                if HOLE in line:\n", "                if False:\n"),),
        "power.py",
        "worker start, claim and report",
    ),
    Mutant("no fence", ((" if orphan.fence.step()]", "]"),), "storm.py", ""),
    Mutant(
        "recovery by files only",
        (("{*named, *store.worker_names()} - held", "{*store.worker_names()} - held"),),
        "storm.py",
        "",
    ),
    Mutant("dead before gone", ((FENCED_AND_REAPED, REAPED),), "storm.py", ""),
    Mutant(
        "the output's lock is not looked at",
        (("held = any(_is_log_held(path) for path in self.trace.logs)", "held = False"),),
        "storm.py",
        "",
    ),
    Mutant(
        "the worker keeps its copy of the log",
        (("        attempt.job_id = job.id\n        log.release()\n", "        attempt.job_id = job.id\n"),),
        "storm.py",
        "",
    ),
    Mutant(
        "every worker is taken for dead",
        (("        if lock_descriptor(fd, blocking=False):\n            return fd\n", "        return fd\n"),),
        "storm.py",
        "",
    ),
    Mutant(
        "a hand-back uses up the attempt",
        (
            (
                "        attempts=job.attempts - 1\n    )\n\n\ndef _end_run",
                "        attempts=job.attempts\n    )\n\n\ndef _end_run",
            ),
        ),
        "limits.py",
        "processes",
    ),
    Mutant(
        "a full disk is the job's fault",
        (('return outcome._replace(kind="handed_back", reason="the disk of its output is full")', "pass"),),
        "limits.py",
        "greedy job",
    ),
    Mutant(
        "jobs are claimed without room for their output",
        (("raise HostFault(f\"no space is left for output under '{self.store.logs_dir}'\")", "pass"),),
        "limits.py",
        "full disk",
    ),
    Mutant(
        "the settings are left open",
        ((SETTINGS_READ, SETTINGS_READ.replace("os.close(fd)", "pass")),),
        "soak.py",
        "",
    ),
    Mutant(
        "what the umask leaves is what a folder gets",
        (("    os.chmod(path, 0o700)\n\n\ndef", "\n\ndef"),),
        "limits.py",
        "umask",
    ),
    Mutant(
        "after a fold that failed nothing is synced",
        (("                self.fold()\n        if self._dirty", "                self.fold()\n            return\n"
          "        if self._dirty"),),
        "power.py",
        "enqueue in a small queue",
    ),
    Mutant(
        "after a reboot the last line is believed",
        (('        if self._header.get("boot") != boot_id():\n            return False\n', ""),),
        "power.py",
        "worker start, claim and report",
    ),
    Mutant(
        "a setting is renamed past the wrapper",
        (('        os.rename(temporary, self._paths["config"])\n',
          '        __import__("posix").rename(temporary, self._paths["config"])\n'),),
        "outside.py",
        "config set",
    ),
    Mutant(
        "an error of a read is taken for the end of the file",
        (("    while chunk := os.pread(fd, CHUNK_BYTES, offset + len(rest)):\n",
          "    while chunk := _pread_or_nothing(fd, CHUNK_BYTES, offset + len(rest)):\n"),
         ("def _read_all(fd: int) -> bytes:\n", PREAD_OR_NOTHING)),
        "points.py",
        "enqueue onto a journal",
        "EIO",
    ),
    Mutant(
        "a new array is not synced",
        (("            os.fsync(fd)\n            return _fingerprint(", "            return _fingerprint("),),
        "power.py",
        "cancel waiting",
    ),
    Mutant(
        "the journal is not synced with the intent",
        (("                os.fsync(self._fd or 0)\n", ""),),
        "power.py",
        "fold",
    ),
    Mutant(
        "the new journal is not synced",
        (("                write_whole(fd, _line(body))\n            os.fsync(fd)\n",
          "                write_whole(fd, _line(body))\n"),),
        "power.py",
        "fold",
    ),
    Mutant(
        "dlq.json is renamed without its intent",
        (('            as_json = {name: mark._asdict() for name, mark in marks.items()}\n',
          '            as_json = {"jobs": marks["jobs"]._asdict()}\n'),),
        "points.py",
        "dlq retry",
        "killed",
    ),
)  # fmt: skip


# Suites that take no scenario: what they are told instead of `--all --first --scenario`.
REAL = {"storm.py": ["--first"], "soak.py": ["--seconds", "45"], "limits.py": []}


def changed(source: str, mutant: Mutant) -> str | None:
    """The program with that bug; None where a text of it does not stand there once."""
    for old, new in mutant.changes:
        if source.count(old) != 1:
            return None
        source = source.replace(old, new)
    return source


def walk(program: Path, mutant: Mutant) -> list[str]:
    """What the walk finds first; a walk that does not even begin found something too."""
    words = [str(HERE / mutant.script), "--program", str(program)]
    if mutant.script in REAL:
        words += REAL[mutant.script] + ([mutant.scenario] if mutant.scenario else [])
    else:
        words += [] if mutant.script == "outside.py" else ["--all", "--first"]
        words += ["--scenario", mutant.scenario]
    words += ["--only", mutant.only] if mutant.only else []
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    return list(json.loads(done.stdout)["problems"]) if done.stdout else done.stderr.splitlines()[-1:]


def judge(mutant: Mutant) -> tuple[str, str]:
    """The verdict, and what was found."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        program = Path(folder, "queuectl.py")
        program.write_text(changed(PROGRAM.read_text(), mutant) or "")
        found = walk(program, mutant)
    if not found:
        return "ALIVE", "nothing"
    return "killed", found[0]


def main() -> int:
    chosen = [mutant for mutant in MUTANTS if not sys.argv[1:] or any(word in mutant.name for word in sys.argv[1:])]
    source = PROGRAM.read_text()
    if stale := [mutant.name for mutant in chosen if changed(source, mutant) is None]:
        print("DOES NOT MATCH: the old text of these does not stand in queuectl.py once; rewrite it:")
        print(*(f"    {name}" for name in stale), sep="\n")
        return 1
    walks = {mutant[2:]: mutant for mutant in chosen}  # script, scenario and faults
    killed = 0
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        seen = pool.map(functools.partial(walk, PROGRAM), walks.values())
        if red := {key: found[0] for key, found in zip(walks, seen, strict=True) if found}:
            print("RED AS IT IS: these walks must be green before a bug is seeded:")
            print(*(f"    {key}: {text[:160]}" for key, text in red.items()), sep="\n")
            return 1
        for mutant, (verdict, found) in zip(chosen, pool.map(judge, chosen), strict=True):
            killed += verdict == "killed"
            print(f"{verdict}: {mutant.name} ({mutant.script}, '{mutant.scenario}'): {found[:120]}", flush=True)
    print(f"{killed} of {len(chosen)} killed.")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
