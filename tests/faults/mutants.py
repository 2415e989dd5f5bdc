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
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROGRAM = ROOT / "queuectl.py"
MACHINE = "test_whatever_happens_in_whatever_order_the_queue_is_as_the_model_says"


class Mutant(NamedTuple):
    """A bug: texts of the program, each with what stands there instead; and the walk that finds it."""

    name: str
    changes: tuple[tuple[str, str], ...]
    script: str
    scenario: str
    only: str = ""


REPLACED = """        self._replace_arrays(marks)
        self.counts, self.n, self._unsynced = counts, n, False
"""
APPENDED = """        self.append(change_body([raw for raw, _ in puts], deleted, counts, n))
"""
REMEMBERED = """        self.counts, self.n = counts, n
        if not self.is_light:
            for raw, job in puts:
                self.put_record(raw, job)
            self.records |= dict.fromkeys(deleted, b"")
"""
BEGUN_ANEW = """        try:
            self._write_journal(marks, [encode_job(job) for job in self.processing.values()])
        except OSError as error:
            self.home.warn(
                "The arrays are written; the journal could not be begun anew: "
                f"{storage_error(error, self.journal_path)}"
            )
"""
ONE_RENAMED = """                if marks[name] != self.snapshots[name].mark:
                    os.rename(self.temporary(name), self.paths[name])
"""
INTENT = """        self.append(encode_json({"intent": marks, "counts": counts, "n": n}))
"""
IS_COMMITTED = """                if not self.snapshots["jobs"].is_same(journal.named["jobs"][-1]):
                    return  # the fold was not committed
"""
LIGHT_LOOK = """        if journal is None or not journal.is_of_this_boot:
            return False
        self._marks = journal.marks
        self.is_light = self._are_arrays_known() and self._read_last_change(journal)
"""
DESCRIPTOR = """                    fd = (
                        os.open(self.journal_path, _READ)
                        if self.journal is None
                        else os.dup(self.journal.fd)
                    )
"""
FENCED = """        if attempt.ending is not None:
            Fence(attempt.trace, attempt.kill_at, session_known=True).wait()
"""
PIECES = """    while start < end and (piece := os.pread(fd, min(size, end - start), start)):
"""
PIECES_OR_NOTHING = """    def pread(*args: int) -> bytes:
        try:
            return os.pread(*args)
        except OSError:
            return b""

""" + PIECES.replace("os.pread", "pread")

MUTANTS = (
    Mutant(
        "the new journal is renamed before the arrays",
        ((REPLACED + BEGUN_ANEW, BEGUN_ANEW + REPLACED),), "points.py", "fold", "killed",
    ),
    Mutant(
        "jobs.json is renamed before dlq.json",
        (('            for name in ("dlq", "jobs"):\n' + ONE_RENAMED,
          '            for name in ("jobs", "dlq"):\n' + ONE_RENAMED),),
        "points.py", "bulk, large", "EIO",
    ),
    Mutant(
        "the arrays are cut off and written in place",
        ((ONE_RENAMED, ONE_RENAMED.replace(
            "os.rename(self.temporary(name), self.paths[name])",
            "write_whole(os.open(self.paths[name], os.O_WRONLY | os.O_TRUNC), bytes_of(self.temporary(name)))")),),
        "points.py", "fold", "killed",
    ),
    Mutant("no intent", ((INTENT, ""),), "points.py", "fold", "killed"),
    Mutant(
        "dlq.json is renamed without its intent",
        ((INTENT, INTENT.replace('marks, "c', '{**marks, "dlq": self.snapshots["dlq"].mark}, "c')),),
        "points.py", "dlq retry", "killed",
    ),
    Mutant(
        "the intent's counts and n are not taken",
        ((IS_COMMITTED, "                return\n"),),
        "points.py", "enqueue after a large bulk died before the journal's rename",
    ),
    Mutant(
        "the intent's counts and n are taken before jobs.json is renamed",
        ((IS_COMMITTED, ""),),
        "points.py", "bulk, large", "killed",
    ),
    Mutant(
        "memory changes before the line is written",
        ((APPENDED + REMEMBERED, REMEMBERED + APPENDED),),
        "points.py", "worker that goes on after an error", "half then ENOSPC",
    ),
    Mutant(
        "what a failed write left is not cut back",
        (("                os.ftruncate(self.fd, self.end)\n", "                pass\n"),),
        "test_store.py", "test_a_write_that_fails_half_way_changes_nothing",
    ),
    Mutant(
        "a torn tail is passed over, not cut off",
        (("            os.ftruncate(journal.fd, journal.end)\n            self.home.warn(\n",
          "            self.home.warn(\n"),),
        "points.py", "torn tail", "killed",
    ),
    Mutant(
        "the rest of a short write is left out",
        (("            view = view[os.write(fd, view) :]\n", "            os.write(fd, view)\n            return\n"),),
        "points.py", "enqueue beside a live worker", "short",
    ),
    Mutant(
        "the settings are written in place",
        (('        new = f"{self.dir}/{os.path.basename(path)}.new"\n', "        new = path\n"),),
        "points.py", "config set", "killed",
    ),
    Mutant(
        "the new journal is written in place",
        (("        self.home.put_file(self.journal_path, lines)\n        try:\n",
          "        with new_file(self.journal_path) as fd:\n"
          "            for line in lines:\n                write_whole(fd, line)\n        try:\n"),),
        "points.py", "fold", "killed",
    ),
    Mutant(
        "a new journal whose name was not synced is not written again",
        (("            self.home.put_file(self.journal_path, lines)\n", ""),),
        "test_store.py", "test_a_journal_whose_name_could_not_be_synced_is_written_again",
    ),
    Mutant(
        "processing jobs are not repeated after the header",
        ((BEGUN_ANEW, BEGUN_ANEW.replace(", [encode_job(job) for job in self.processing.values()]", "")),),
        "points.py", "report and claim", "killed",
    ),
    Mutant(
        "half a look is taken for the whole",
        (("            self.forget()\n"
          "            raise storage_error(error, self.home.dir) from error\n        except Base",
          "            raise storage_error(error, self.home.dir) from error\n        except Base"),),
        "points.py", "worker that goes on after an error", "EMFILE",
    ),
    Mutant(
        "an error of a read is taken for the end of the file",
        ((PIECES, PIECES_OR_NOTHING),), "points.py", "enqueue onto a journal", "EIO",
    ),
    Mutant(
        "a light look does not look at the arrays",
        ((LIGHT_LOOK, LIGHT_LOOK.replace("self._are_arrays_known() and ", "")),),
        "test_store.py", "test_a_light_look_sees_an_edit_of_either_array",
    ),
    Mutant(
        "a light look does not look at the checksum",
        (("        body = body_of(tail[tail.rfind(b\"\\n\", 0, -1) + 1 :])\n",
          "        body = tail[tail.rfind(b\"\\n\", 0, -1) + 10 : -1]\n"),),
        "test_store.py", "test_a_torn_tail_is_passed_over_by_readers_and_set_aside_by_the_next_writer",
    ),
    Mutant(
        "a light look takes an intent for a change",
        (("        if body is None or not body.startswith(b'{\"put\"'):\n            return None\n",
          "        if body is None:\n            return None\n"),),
        "test_store.py", "test_an_enqueue_after_a_large_bulk_that_died_before_its_rename_does_not_count_its_jobs",
    ),
    Mutant(
        "a look reads on in a journal that was replaced",
        (("info.st_ino != journal.inode or not is_enough", "not is_enough"),),
        "test_store.py", "test_a_store_goes_over_to_the_copy_of_a_journal_whose_sync_failed",
    ),
    Mutant(
        "a first start is made beside a live worker",
        (("        if self.home.live_workers():  # they run", "        if False:  # they run"),),
        "test_store.py", "test_there_is_no_first_start_while_a_workers_file_is_locked",
    ),
    Mutant(
        "a search does not see that a job was deleted",
        (("re.findall(put + b\"|\" + deletion, ", "re.findall(put, "),),
        "test_store.py", "test_an_id_is_taken_only_by_a_job_that_has_it",
    ),
    Mutant(
        "a search takes what was added after its deletion for deleted",
        (("        return found[-1].removesuffix", "        return min(found).removesuffix"),),
        "test_store.py", "test_an_id_is_taken_only_by_a_job_that_has_it",
    ),
    Mutant(
        "a copied array is taken for an edit",
        (("        return (self.mark.size, self.mark.crc) == (known.size, known.crc)\n",
          "        return self.mark[:3] == known[:3]\n"),),
        "points.py", "copied home", "killed",
    ),
    Mutant(
        "what is taken from an edit is not in the journal",
        (("    if locked and raws:\n", "    if False:\n"),),
        "points.py", "hand edit that makes a job dead", "killed",
    ),
    Mutant(
        "what an edit says is put again at each look",
        ((" if raw and journal.get(id) != raw]", " if raw]"),),
        "points.py", "hand edit while no array can be written", "killed",
    ),
    Mutant(
        "an edit overrules what the journal says",
        (("            if job.id in journal:\n", "            if False:\n"),),
        "points.py", "hand edit of jobs in the journal", "killed",
    ),
    Mutant(
        "a job that the journal holds may not stand in both arrays",
        (("        for job in _edited_jobs(store, name):\n            if job.id in journal:\n",
          "        for job in _edited_jobs(store, name):\n            if job.id in places:\n"
          "                raise _unusable(store, name, 'twice')\n"
          "            places.add(job.id)\n            if job.id in journal:\n"),
         ("    taken: JobsById = {}\n    for name in edited:\n",
          "    taken: JobsById = {}\n    places: set[str] = set()\n    for name in edited:\n")),
        "test_store.py", "test_an_id_in_both_arrays_is_no_error_where_the_journal_holds_it",
    ),
    Mutant(
        "a made id is of the place in both arrays",
        (('make_id(int(saved_s * 1000), number if name == "jobs" else -number)',
          "make_id(int(saved_s * 1000), number)"),),
        "points.py", "hand edit that moves jobs between the arrays", "killed",
    ),
    Mutant(
        "a bulk with jobs that are dead at once goes straight into jobs.json",
        (("may_fold = not bulk.parents", "may_fold = True"),),
        "points.py", "bulk after others, large", "EIO",
    ),
    Mutant(
        "after a reboot the last line is believed",
        ((LIGHT_LOOK, LIGHT_LOOK.replace(" or not journal.is_of_this_boot", "")),),
        "power.py", "worker start, claim and report",
    ),
    Mutant(
        "a hole of NULs is taken for damage",
        (("                if HOLE in line:\n", "                if False:\n"),),
        "power.py", "worker start, claim and report",
    ),
    Mutant(
        "what is told is not synced",
        (("            try:\n                os.fsync(fd)\n"
          "            except OSError as error:\n                self._renew",
          "            try:\n                pass\n"
          "            except OSError as error:\n                self._renew"),),
        "power.py", "enqueue beside a live worker",
    ),
    Mutant(
        "after a look that failed nothing is synced",
        ((DESCRIPTOR, "                    if self.journal is None:\n                        return\n" + DESCRIPTOR),),
        "power.py", "enqueue with a given id",
    ),
    Mutant(
        "after a fold that failed nothing is synced",
        (("                self.fold()\n        self.sync()",
          "                self.fold()\n            return\n        self.sync()"),),
        "power.py", "enqueue in a small queue",
    ),
    Mutant(
        "the arrays are not synced",
        (("        os.fsync(fd)\n        return mark_of(", "        return mark_of("),),
        "power.py", "cancel waiting",
    ),
    Mutant(
        "the journal is not synced with the intent",
        (("            os.fsync(self.journal.fd)\n        except", "            pass\n        except"),),
        "power.py", "fold",
    ),
    Mutant(
        "the home is not synced after the renames",
        (("            committed = True\n            sync_dir(self.home.path)\n", "            committed = True\n"),),
        "power.py", "fold",
    ),
    Mutant(
        "the new journal is not synced",
        (("            os.fsync(fd)\n        os.rename(new, path)", "        os.rename(new, path)"),),
        "power.py", "fold",
    ),
    Mutant(
        "a failed fsync is tried once more on that file",
        (("                    self.home.put_file(self.journal_path, pieces(fd))\n",
          "                    os.fsync(fd)\n"),),
        "power.py", "revival whose sync fails",
    ),
    Mutant(
        "a failed fsync of the intent is tried once more on that file",
        (("            self._renew_journal(self.journal.fd, error, nullcontext())\n",
          "            os.fsync(self.journal.fd)\n"),),
        "power.py", "dlq retry",
    ),
    Mutant(
        "a fold does not look at the arrays before its renames",
        (("        if not self._are_arrays_known():\n            raise", "        if False:\n            raise"),),
        "test_store.py", "test_an_edit_that_is_saved_while_a_fold_writes_is_not_overwritten",
    ),
    Mutant(
        "the lock is left out",
        (("            while not lock_descriptor(self._lock_fd, blocking=False):\n", "            while False:\n"),),
        "test_load.py", "test_a_rush_of_enqueues_is_refused_nothing_and_loses_nothing",
    ),
    Mutant(
        "an entry that is not ready is dropped",
        (("                self._enter(raw)\n            self._enter_next",
          "            self._enter_next"),),
        "test_state_machine.py", MACHINE,
    ),
    Mutant(
        "a follower that is over stays among the followers",
        (("        if state in OVER:\n            self._remove(id)\n",
          "        if state in OVER:\n            pass\n"),),
        "test_schedule.py", "test_an_id_that_is_given_again_waits_for_none_of_the_old_jobs_parents",
    ),
    Mutant(
        "the death of a later job of a parent's name ends its followers",
        (("            if raw is not None and follower.seq > job.seq:\n", "            if raw is not None:\n"),),
        "test_state_machine.py", MACHINE,
    ),
    Mutant(
        "an entry stays although its job has changed",
        (("            if raw is not None and self._key_of(raw) == key:\n", "            if raw is not None:\n"),),
        "test_schedule.py", "test_an_edit_gives_a_job_another_place_at_once",
    ),
    Mutant(
        "what was added together is decoded one by one",
        (("@lru_cache(maxsize=1)\ndef _decode_end", "def _decode_end"),),
        "test_store.py", "test_what_was_added_together_is_decoded_once_for_the_index",
    ),
    Mutant(
        "a later job of a parent's name holds up its followers",
        (("        if state not in OVER and seq < follower.seq:\n", "        if state not in OVER:\n"),),
        "test_state_machine.py", MACHINE,
    ),
    Mutant(
        "a worker's purge takes what a waiting job names",
        (("            if is_old and not is_needed(store, job):\n", "            if is_old:\n"),),
        "test_state_machine.py", MACHINE,
    ),
    Mutant(
        "what others appended is not told to the index",
        (("        for listener in self.listeners:\n            listener.put(",
          "        for listener in ():\n            listener.put("),),
        "test_state_machine.py", MACHINE,
    ),
    Mutant(
        "the index is kept when other tags matter",
        (("if named <= order.named and not was_set:", "if not was_set:"),),
        "test_units.py", "test_a_limit_that_is_set_later_holds_up_no_job_without_its_tag",
    ),
    Mutant(
        "the index is kept when the clock was set",
        (("if named <= order.named and not was_set:", "if named <= order.named:"),),
        "test_store.py", "test_a_retry_is_due_at_once_when_the_clock_is_set_back_beyond_backoff_max",
    ),
    Mutant(
        "a cancelled run gives its units back before it is over",
        (("return job._replace(cancelled_at=now, updated_at=now)",
          "return job._replace(cancelled_at=now, updated_at=now, units=None)"),),
        "test_state_machine.py", MACHINE,
    ),
    Mutant(
        "who waited for units is overtaken for ever",
        (("                    reserved |= needs\n", "                    pass\n"),),
        "test_state_machine.py", MACHINE,
    ),
    Mutant(
        "a claim does not see the units that its report gives back",
        (("Units(config.limits, change.running())", "Units(config.limits, store.processing.values())"),),
        "points.py", "report of a job that holds cards",
    ),
    Mutant(
        "a damaged claim loses its units",
        (("            held=None, units=job.units,", "            held=None, units=None,"),),
        "test_mend.py", "test_a_damaged_claim_keeps_its_units",
    ),
    Mutant(
        "units do not count where damage took the tag that gave them",
        (("                used[name] = max(used[name], len(units))\n", ""),),
        "test_mend.py", "test_a_damaged_claim_keeps_its_units",
    ),
    Mutant(
        "a damaged line changes the units of a run that whole lines know",
        (("    if known is not None and _is_run(known, job):\n", "    if False:\n"),),
        "test_mend.py", "test_the_units_that_a_whole_line_gives_a_run_are_not_changed_by_a_damaged_one",
    ),
    Mutant(
        "a claim of units that were kept for its job wakes nobody",
        (("filter(None, (reported, claimed))", "filter(None, (reported,))"),),
        "test_units.py", "test_a_claim_wakes_others_if_units_were_kept_for_its_job",
    ),
    Mutant(
        "a unit is taken for free while it is held",
        (("if unit not in self._held[name])", "if unit >= 0)"),), "storm.py", "",
    ),
    Mutant(
        "a held job starts",
        (("        if job is not None and job.held:\n", "        if job is None and self.held:\n"),), "storm.py", "",
    ),
    Mutant("no fence", (("        if not fence.step():\n            return\n", ""),), "storm.py", ""),
    Mutant(
        "recovery by files only",
        (("names = {*named, ", "names = {"),),
        "storm.py", "",
    ),
    Mutant("dead before gone", ((FENCED, ""),), "storm.py", ""),
    Mutant(
        "the output's lock is not looked at",
        (("held = any(_is_log_held(path) for path in self.trace.logs)", "held = False"),), "storm.py", "",
    ),
    Mutant(
        "the worker keeps its copy of the log",
        (("        log.release()\n        return self._explain", "        return self._explain"),), "storm.py", "",
    ),
    Mutant(
        "every worker is taken for dead",
        (("        if lock_descriptor(fd, blocking=False):\n            with",
          "        if fd:\n            with"),), "storm.py", "",
    ),
    Mutant(
        "a hand-back uses up the attempt",
        (("return waiting._replace(attempts=job.attempts - 1)", "return waiting"),), "limits.py", "processes",
    ),
    Mutant(
        "a full disk is the job's fault",
        (('return outcome._replace(kind="handed_back", reason="the disk of its output is full")', "pass"),),
        "limits.py", "greedy job",
    ),
    Mutant(
        "jobs are claimed without room for their output",
        (("            if not has_room(self.home.logs_dir):\n", "            if False:\n"),),
        "limits.py", "full disk",
    ),
    Mutant(
        "what the umask leaves is what a folder gets",
        (("    os.chmod(path, 0o700)\n\n\ndef", "\n\ndef"),), "limits.py", "umask",
    ),
    Mutant(
        "files that were read are left open",
        (("        yield fd\n    finally:\n        os.close(fd)\n\n\ndef bytes_of",
          "        yield fd\n    finally:\n        pass\n\n\ndef bytes_of"),),
        "soak.py", "",
    ),
    Mutant(
        "a setting is renamed past the wrapper",
        (("        os.rename(new, path)\n\n    def keep_aside",
          '        __import__("posix").rename(new, path)\n\n    def keep_aside'),),
        "outside.py", "config set",
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
    if mutant.script.startswith("test_"):
        return run_test(program, mutant)
    words = [str(HERE / mutant.script), "--program", str(program)]
    if mutant.script in REAL:
        words += REAL[mutant.script] + ([mutant.scenario] if mutant.scenario else [])
    else:
        words += [] if mutant.script == "outside.py" else ["--all", "--first"]
        words += ["--scenario", mutant.scenario]
    words += ["--only", mutant.only] if mutant.only else []
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    return list(json.loads(done.stdout)["problems"]) if done.stdout else done.stderr.splitlines()[-1:]


def run_test(program: Path, mutant: Mutant) -> list[str]:
    """What pytest says of that test, in a copy of the tests beside the program."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        shutil.copytree(ROOT / "tests", Path(folder, "tests"), ignore=shutil.ignore_patterns("__pycache__", ".*"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        shutil.copy(program, folder)
        found = [str(path) for path in Path(folder, "tests").rglob(mutant.script)]
        words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *found, "-k", mutant.scenario]
        env = {**os.environ, "STATE_MACHINE_SHRINK": "0"}
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
        if done.returncode == 0:
            return []
        return [line for line in done.stdout.splitlines() if "Error" in line][:1] or [done.stdout[-120:]]


def judge(mutant: Mutant) -> tuple[str, str]:
    """The verdict, and what was found."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        program = Path(folder, "queuectl.py")
        program.write_text(changed(PROGRAM.read_text(), mutant) or "")
        found = walk(program, mutant)
    if not found:
        return "ALIVE", "nothing"
    if "NameError" in found[0]:
        return "NOT TRIED", found[0]
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
