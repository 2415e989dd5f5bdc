"""Faults of a few lines, seeded into a copy of queuectl.py: the test that each names must turn red.

    python tests/mutants.py            all of them, two at a time
    python tests/mutants.py WORD...    those whose name has one of these words

A green run of the tests is evidence only as far as this list goes. A fault is its name, the test that must see it, and
the lines that change, as in a diff; the old ones must stand in the program exactly once. The faults of the store are in
tests/faults/mutants.py. Exit code 0 only if all are killed.
"""

from __future__ import annotations

import concurrent.futures
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
HANG_S = 120

FAULTS = r"""
backoff is one power short: test_the_waits_are_two_four_eight_seconds_by_default
-        wait = float(config.backoff_base) ** attempt
+        wait = float(config.backoff_base) ** (attempt - 1)

a hand-back costs an attempt: test_a_second_signal_hands_the_job_back_without_using_an_attempt
-    return waiting._replace(attempts=job.attempts - 1)
+    return waiting

no_retry_on is not looked at: test_an_exit_code_not_to_be_retried_is_the_end_at_once
-    if code in exit_codes(final_codes):
+    if code in exit_codes(""):

an argument of --each is not quoted: test_an_argument_is_one_word_whatever_it_holds
-        command = "".join(shlex.quote(texts[part]) if part in texts else part for part in parts)
+        command = "".join(texts.get(part, part) for part in parts)

a comment may have a place: test_a_place_inside_quotes_is_refused
-    | (?<![^\s;&|()]) \# [^\n]*  # a comment: a line end in the argument would end it
+    | (?!)

keep_env beats the job's own variables: test_a_variable_of_an_option_or_in_json_wins_over_keep_env
-        values["env"] = parse_env({**kept, **(values.get("env") or {})}, "env with keep_env")
+        values["env"] = parse_env({**(values.get("env") or {}), **kept}, "env with keep_env")

a cancelled job completes: test_a_job_being_cancelled_dies_as_cancelled_whatever_its_outcome
-    if job.cancelled_at is not None or outcome.kind == "handed_back":
+    if outcome.kind == "handed_back":

a cancelled job is dead before it is gone: test_an_event_in_a_state_that_allows_it_keeps_the_rules
-    if job.state == "processing":
-        return job._replace(cancelled_at=now, updated_at=now)
-    return let_die(job, "cancelled", now)._replace(cancelled_at=now)
+    return let_die(job, "cancelled", now)._replace(cancelled_at=now)

a job is recovered for ever: test_a_job_recovered_more_than_five_times_is_dead
-        recoveries += 1
+        recoveries = 1

a retry waits however far the clock went back: test_a_job_is_ready_when_its_time_has_come_or_cannot_be_meant
-    return job.state == "failed" and job.run_at > add_seconds(now, backoff_max_s + 1)
+    return False

a revived job goes on with its attempts: test_dlq_retry_brings_jobs_back_with_attempts_at_zero
-        state="pending", attempts=0, updated_at=now, run_at=None, started_at=None, finished_at=None,
+        state="pending", updated_at=now, run_at=None, started_at=None, finished_at=None,

an edit below the attempts made is accepted: test_an_edit_below_the_attempts_already_made_is_refused
-    most = max(1, job.max_retries) - (job.state in WAITING)  # one that waits has an attempt left
+    most = max(1, job.max_retries)

a place in the order has no bound: test_a_hand_edit_beyond_its_bounds_is_refused
-    "seq": _whole(0, SEQ_MAX),
+    "seq": _whole(0, SEQ_MAX * 1000),

a key of a JSON object may stand there twice: test_json_that_is_not_quite_json_is_refused_in_words
-            if name in out:
+            if not name:

an argument is read in the locale: test_arguments_are_utf_8_whatever_the_locale
-    if was_closed or sys.getfilesystemencoding() != "utf-8":
+    if was_closed:

a home that anyone can write is used: test_a_home_that_anyone_can_write_is_refused
-        if info.st_mode & stat.S_IWOTH:
+        if info.st_mode & stat.S_ISVTX:

nobody wakes when the next time has come: test_a_delayed_job_starts_when_its_time_has_come_and_not_before
-            self._due_at = time.monotonic() + wait_s
+            self._due_at = inf + wait_s

nobody wakes for what became ready without a word: test_a_delayed_job_starts_when_its_time_has_come_and_not_before
-        if oldest:
-            self._call_slots()
-        elif next_run_at:
+        if oldest:
+            pass
+        elif next_run_at:

a priority means nothing: test_one_thread_runs_higher_priority_first_and_then_in_order_of_arrival
-        priority = int(raw[at : raw.index(b",", at)])
+        priority = 0

of two lanes the later job goes first: test_one_thread_runs_higher_priority_first_and_then_in_order_of_arrival
-            for job in sorted(tops, key=lambda job: job.seq):
+            for job in sorted(tops, key=lambda job: -job.seq):

a limit is one too high: test_a_limit_counts_the_report_of_the_same_turn
-            if self.used[name] + count > self.limits.get(name, 0):
+            if self.used[name] + count > self.limits.get(name, 0) + 1:

a unit is given twice: test_two_jobs_never_hold_the_same_unit
-                self._held[name].update(units)
+                self._held[name]

a small job overtakes for ever: test_a_job_that_needs_all_cards_is_not_starved_by_jobs_that_need_one
-                    reserved |= needs
+                    reserved = needs - needs

a held job is claimed: test_a_held_job_starts_when_it_is_released_and_keeps_its_place
-        if job is not None and job.held:
+        if job is not None and job.held and job.run_at:

a worker takes tags that it was told to leave: test_a_worker_takes_jobs_by_their_tags
-        return own.isdisjoint(self.not_tags)
+        return True

a paused queue starts jobs: test_a_paused_queue_starts_nothing_and_lets_the_running_job_finish
-        may_claim = claim and not config.paused
+        may_claim = claim

a job starts beside the hook of the last one: test_no_job_starts_in_the_slot_while_its_hook_runs
-        if may_claim and not hooks:
+        if may_claim:

a late report is believed: test_a_report_of_an_earlier_run_is_not_believed
-    same = (job.worker, job.runs, job.seq) == (run.worker, run.runs, run.seq)
+    same = (job.worker, job.seq) == (run.worker, run.seq)

a job that others wait for is purged: test_a_job_that_a_waiting_one_names_is_not_purged
-            (purged.kept if is_kept else purged.gone).append(job)
+            purged.gone.append(job)

who takes any end dies too: test_the_line_that_ends_a_job_ends_who_needs_it
-            if new.state in WAITING and parent.id in needed_by(new):
+            if new.state in WAITING:

a death stops at the next of kin: test_the_line_that_ends_a_job_ends_who_needs_it
-                to_do.append(job)
+                pass

a chain dies by recursion: test_a_chain_longer_than_the_stack_dies_in_one_line_and_comes_back_in_one
-                to_do.append(job)
+                end_followers(change, change.job(job.id))

two lines with one key are two jobs: test_two_lines_with_one_unique_key_are_one_job
-            self._holders[job.unique] = job
+            pass

a cancelled job runs on_dead: test_a_job_that_was_cancelled_while_it_ran_is_told_by_on_finish_alone
-    if job.state == "dead" and job.cancelled_at is None:
+    if job.state == "dead":

a hook runs before its report is on the disk: test_a_hook_runs_only_when_the_report_is_on_the_disk
-                self.store.sync()
-                outcome = self._run_hook(slot, job, name, command)
+                outcome = self._run_hook(slot, job, name, command)

nothing ends the hook of a dead worker: test_whoever_clears_a_dead_worker_away_ends_its_hook_first
-    hooks = [_orphan_in(store, info, row, (), None) for row in info.rows if row.get("hook")]
+    hooks: list[Orphan] = []

a time limit never strikes: test_a_job_over_its_time_limit_gets_sigterm_first
-            elif attempt.deadline <= now_s:
+            elif attempt.deadline <= 0:

no SIGKILL follows: test_a_job_that_ignores_sigterm_is_killed_after_the_grace_period
-                if attempt.ending is not None and attempt.deadline <= now_s:
+                if attempt.ending is not None and attempt.deadline <= 0:

an ended attempt is over with its leader: test_a_job_is_not_over_before_the_last_process_that_holds_its_output_is_gone
-        if attempt.ending is not None:
-            Fence(attempt.trace, attempt.kill_at, session_known=True).wait()
+        if attempt.ending is not None and attempt.deadline < 0:
+            Fence(attempt.trace, attempt.kill_at, session_known=True).wait()

the session of an ended attempt is not known: test_a_process_of_the_session_that_outlives_its_leader_is_ended_with_it
-            Fence(attempt.trace, attempt.kill_at, session_known=True).wait()
+            Fence(attempt.trace, attempt.kill_at).wait()

a signal goes to a pid that was reaped: test_an_attempt_that_was_reaped_is_signalled_no_more
-                    attempt.deadline = inf  # its pid may be another's by now (X1)
+                    pass

nobody is fenced: test_a_process_that_its_output_alone_betrays_holds_its_job_up_while_it_lives
-        if not fence.step():
-            return
+        pass

a run is not known by its session: test_the_processes_of_a_killed_workers_job_are_ended_before_it_runs_again
-        if is_in_session and self._session_known:
-            return True
+        pass

a run is not known by its environment: test_the_processes_of_a_killed_workers_job_are_ended_before_it_runs_again
-        if mark in _read_proc(pid, "environ").split(b"\0"):
-            return True
+        pass

a run is not known by its output: test_a_process_that_its_output_alone_betrays_holds_its_job_up_while_it_lives
-        self.is_held = any(_is_log_held(path) for path in self.trace.logs)
+        self.is_held = False

a session is ours for ever: test_a_session_whose_number_is_anothers_by_now_is_left_alone
-            self._session_known = abs(status.start_s - (self.trace.start_s or 0)) < 2
+            self._session_known |= abs(status.start_s - (self.trace.start_s or 0)) < 2

the run of a live worker is recovered: test_a_worker_that_is_only_stopped_is_not_recovered
-        if lock_fd is None:
-            return
-        try:
-            orphans
+        try:
+            orphans

one orphan that fails holds up the others: test_an_orphan_that_cannot_be_given_back_holds_up_no_other
-        except (QueueError, OSError) as error:
-            failed = error
-    if failed
+        except LookupError as error:
+            failed = error
+    if failed

a worker that is killed while it stops is held against its jobs: test_a_managers_stop_costs_the_running_job_nothing
-        self.file.write_header(stopping=True)
+        self.file.write_header()

a death by our own stop counts: test_a_signal_that_ends_a_job_together_with_its_workers_stop_is_not_a_failed_attempt
-            if time.monotonic() - self._stopped_at < TICK_S:
+            if time.monotonic() - self._stopped_at < 0:

a run shows what is there under its name: test_a_job_never_shows_what_another_job_of_its_id_wrote
-        remove_log(log_path(self.home.logs_dir, job.id, job.runs))
+        pass

a reader shows a run that never was: test_a_job_never_shows_what_another_job_of_its_id_wrote
-    if run > job.runs:
-        return os.devnull, False
+    pass

a finder leaves what stands under the name of a silent run: test_recovery_gives_a_run_its_own_output_alone
-        if not has_begun:
-            remove_log(log)
+        pass

the output of a job that is gone stays: test_an_idle_worker_removes_the_output_of_jobs_that_are_gone
-            if id not in there:
+            if id == name:

outputs are swept without the lock: test_an_idle_worker_removes_the_output_of_jobs_that_are_gone
-            with self.store.transaction(most_s=PATIENCE_S):
-                folder
+            if self.store.read() or True:
+                folder

an output is not cut at the end of its run: test_an_output_that_was_never_trimmed_while_it_ran_is_trimmed_at_its_end
-        trim_log(fd, most)
-        os.close(fd)
+        os.close(fd)

a reader shows the hole: test_a_log_is_read_on_while_it_is_trimmed
-            if data_at > start:
+            if data_at < 0:

old jobs go right after the clock was set: test_nothing_is_purged_within_the_hour_after_the_clock_was_set
-        if not (is_trusted and keep_s):
+        if not keep_s:

a closed home shows a traceback at a Tab: test_a_queue_that_cannot_be_read_completes_nothing_and_says_nothing
-    except (QueueError, OSError):
-        return []
+    except LookupError:
+        return []

control characters reach a person: test_nothing_of_a_job_reaches_the_terminal_raw
-    _print_message("\n".join(map(clean, text.split("\n"))))
+    _print_message(text, True)

a doubtful job runs by itself: test_a_damaged_line_in_the_middle_leaves_what_is_whole_on_both_sides
-    return known or let_die(job, f"it stood in a damaged line of the journal; {hint}", now)
+    return known or job

a home is mended under a worker: test_nothing_is_mended_while_a_worker_lives
-        if home.live_workers():
-            raise StoreError(
-                "A worker is running
+        if not home.path:
+            raise StoreError(
+                "A worker is running
"""


class Mutant(NamedTuple):
    """A fault; `old` and `new` are whole lines, of which the first may be indented otherwise and the last may go on."""

    name: str
    test: str
    old: str
    new: str


def parsed(block: str) -> Mutant:
    head, *lines = block.splitlines()
    name, _, test = head.rpartition(": ")
    old, new = ("\n".join(line[1:] for line in lines if line[0] == sign) for sign in "-+")
    indent = len(old) - len(old.lstrip())
    return Mutant(name, test, old[indent:], new[indent:])


MUTANTS = [parsed(block) for block in FAULTS.strip("\n").split("\n\n")]


def file_of(test: str) -> str:
    """`test_jobs.py::test_x` from the name of a test."""
    found = [path for path in (ROOT / "tests").glob("**/test_*.py") if re.search(rf"def {test}\(", path.read_text())]
    assert found, f"there is no {test}"
    return f"{found[0].relative_to(ROOT / 'tests')}::{test}"


def run_tests(source: str, tests: list[str]) -> subprocess.CompletedProcess[str]:
    """Run these tests in a copy of the checkout that has this program."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = Path(folder)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, tree)
        shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__", "bench"))
        (tree / "queuectl.py").write_text(source)
        # A test that is marked to fail proves nothing by changing its mind.
        words = ["-q", "-x", "-p", "no:cacheprovider", "--tb=short", "-m", "not xfail and not slow and not bench"]
        paths = [str(tree / "tests" / file_of(test)) for test in tests]
        command = [sys.executable, "-m", "pytest", *words, *paths]
        return subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=HANG_S * len(tests))


def judge(mutant: Mutant) -> str:
    """`killed`, or what came instead."""
    source = (ROOT / "queuectl.py").read_text()
    try:
        done = run_tests(source.replace(mutant.old, mutant.new), [mutant.test])
    except subprocess.TimeoutExpired:
        return "killed: its test hangs"
    if done.returncode == 1 and "NameError" not in done.stdout:
        return "killed"
    return "SURVIVED" if done.returncode == 0 else f"NOT TRIED: {done.stdout[-500:]}{done.stderr[-500:]}"


def main() -> int:
    words = sys.argv[1:]
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    source = (ROOT / "queuectl.py").read_text()
    if stale := [mutant.name for mutant in chosen if source.count(mutant.old) != 1]:
        print("The old lines of these must stand in queuectl.py once:", *stale, sep="\n    ")
        return 1
    done = run_tests(source, sorted({mutant.test for mutant in chosen}))
    if done.returncode != 0:
        print(f"The tests must be green before a fault is seeded:\n{done.stdout}{done.stderr}")
        return 1
    survived = 0
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for mutant, verdict in zip(chosen, pool.map(judge, chosen), strict=True):
            print(f"{mutant.name}: {verdict}", flush=True)
            survived += not verdict.startswith("killed")
    print(f"{len(chosen) - survived} of {len(chosen)} killed.")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
