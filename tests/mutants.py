"""One-line faults, seeded into a copy of queuectl.py: the test that each names must turn red.

    python tests/mutants.py            all of them, two at a time
    python tests/mutants.py NAME...    those whose name holds one of these words

A green run of the tests is evidence only as far as this list goes. To add one: the line as it stands (once in the
file), the line instead, the test that must see it. Before anything is seeded, each line must stand in the program once
and the named tests must be green. Exit code 0 only if all are killed.
"""

from __future__ import annotations

import concurrent.futures
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
JOBS, STORE = "test_jobs.py::", "test_store.py::"
AFTER, SCHEDULE = "test_cli_after.py::", "test_schedule.py::"
STORMS, SECURITY = "test_storms.py::", "faults/test_security.py::"
STATS, MEND, WATCH = "test_cli_stats.py::", "faults/test_mend.py::", "test_watch.py::"
FOUND, RECOVERY = "faults/test_found.py::", "test_recovery.py::"
HANG_S = 120


class Mutant(NamedTuple):
    name: str
    old: str
    new: str
    test: str


MUTANTS = [
    Mutant(
        "what stands in another object is taken for a job's own fields",
        "line.endswith(end):",
        'line.rstrip(b"},").endswith(end.rstrip(b"},")):',
        "test_store.py::test_an_unknown_field_that_holds_a_plain_job_makes_none_of_its_own",
    ),
    Mutant(
        "a job is taken for plain by how the record before it ends, less its fields",
        """end = b"".join(line.partition(b', "attempts": ')[1:]) or b"\\0\"""",
        'end = b"},"',
        "test_store.py::test_claims_go_by_priority_then_by_arrival",
    ),
    Mutant(
        "a line that begins with a brace behind a space is taken for a command",
        'any(line.lstrip().startswith("{") for line in lines)',
        'any(line.startswith("{") for line in lines)',
        "test_store.py::test_a_bulk_takes_the_jobs_that_its_lines_would_make_one_by_one",
    ),
    Mutant(
        "lines of a bulk are numbered from the block they stand in",
        "        first, count = count + 1, count + 1 + block.count",
        "        first, count = 1, count + 1 + block.count",
        "test_store.py::test_a_bulk_takes_the_jobs_that_its_lines_would_make_one_by_one",
    ),
    Mutant(
        "a job that others hold is passed over with the one before it",
        '                                here, end = None, b"\\0"\n',
        "                                here = None\n",
        STORE + "test_jobs_added_together_that_come_after_one_are_all_freed_by_it",
    ),
    Mutant(
        "each record of the array is decoded for the index",
        "                    if not line.endswith(end):\n",
        "                    if True:\n",
        STORE + "test_what_was_added_together_is_decoded_once_for_the_index",
    ),
    Mutant(
        "the index looks again at each job that waits for long",
        "if entry[0] > far and entry[2] in late else None",
        "if entry[0] > far else None",
        STORE + "test_what_was_added_together_is_decoded_once_for_the_index",
    ),
    Mutant(
        "a held retry waits however far the clock went back",
        "                                    late.add(job.id)\n",
        "                                    pass\n",
        STORE + "test_a_retry_that_came_after_another_is_due_after_the_clock_was_set_back",
    ),
    Mutant(
        "ids made in a row begin anew with the last two digits",
        "        head, low = make_id(ms, first)[:-2], first % 1296\n",
        "        head, low = make_id(ms, first)[:-2], 0\n",
        "test_jobs.py::test_ids_made_in_a_row_are_those_made_one_by_one",
    ),
    Mutant(
        "a bulk tells a made id for one that was given",
        "others += [(n - 1, id, n)] if",
        "others += [(n, id, n)] if",
        STORE + "test_a_bulk_tells_the_id_of_each_line_made_given_or_there_before",
    ),
    Mutant(
        "a bulk leaves out the id of a job that was there before",
        "                others.append((n, holder, n))\n",
        "                others.append((n, holder, n + 1))\n",
        STORE + "test_a_bulk_tells_the_id_of_each_line_made_given_or_there_before",
    ),
    Mutant(
        "the index remembers an old record",
        "        if offset not in self._seen:\n            if len",
        "        if not self._seen:\n            if len",
        STORE + "test_claims_go_by_priority_then_by_arrival",
    ),
    Mutant(
        "a worker that is killed while it stops is held against its jobs",
        "        self.file.write_header(stopping=True)\n",
        "        self.file.write_header()\n",
        "test_services.py::test_a_managers_stop_costs_the_running_job_nothing",
    ),
    Mutant(
        "recovery stops at the first that fails",
        "        except (QueueError, OSError) as error:\n            failed = error\n",
        "        except (QueueError, OSError):\n            raise\n",
        STORMS + "test_an_orphan_that_cannot_be_given_back_holds_up_no_other",
    ),
    Mutant(
        "a session is ours for ever",
        "            self._session_known = abs(",
        "            self._session_known = self._session_known or abs(",
        STORMS + "test_a_session_whose_number_is_anothers_by_now_is_left_alone",
    ),
    Mutant(
        "late attempts are looked through while others begin",
        "            for attempt in list(self.running.values()):  # a slot",
        "            for attempt in self.running.values():  # a slot",
        STORMS + "test_an_attempt_that_begins_while_others_are_ended_does_not_disturb_the_main_thread",
    ),
    Mutant(
        "a temporary file that stands there is written to",
        "        os.unlink(path)\n    fd = os.open(path, _NEW, 0o600)\n",
        "        pass\n    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)\n",
        SECURITY + "test_links_at_the_temporary_names_are_removed_and_not_followed",
    ),
    Mutant(
        "what was typed reaches the terminal raw",
        "            error.message = clean(error.message)",
        "            error.message = error.message",
        SECURITY + "test_nothing_of_a_job_reaches_the_terminal_raw",
    ),
    Mutant(
        "memory changes before the append",
        '        self._append(b"".join(map(_line, bodies)))\n        self.totals = totals\n',
        '        self.totals = totals\n        self._append(b"".join(map(_line, bodies)))\n',
        STORE + "test_a_write_that_fails_changes_nothing",
    ),
    Mutant(
        "apply before append",
        '        self._append(b"".join(map(_line, bodies)))\n        self.totals = totals\n',
        "        for job, raw in puts:\n            self._put(raw, job)\n"
        '        self._append(b"".join(map(_line, bodies)))\n        self.totals = totals\n',
        STORE + "test_a_write_that_fails_changes_nothing",
    ),
    Mutant(
        "no cut-back",
        "                os.ftruncate(self._fd, self._offset)\n            raise\n",
        "                pass\n            raise\n",
        STORE + "test_a_write_that_fails_changes_nothing",
    ),
    Mutant(
        "a bulk that fails leaves its lines",
        "                    os.ftruncate(self._fd, before)\n",
        "                    pass\n",
        STORE + "test_what_makes_a_bulk_stop_half_way_leaves_no_trace",
    ),
    Mutant(
        "a bulk that fails leaves its counts in memory",
        "                self._offset, self.totals = before, totals\n",
        "                self._offset = before\n",
        STORE + "test_a_bulk_that_cannot_be_written_leaves_the_totals_as_they_were",
    ),
    Mutant(
        "the offset runs ahead of a failed write",
        "        self._offset += len(data)\n        self._dirty = True\n",
        "        self._dirty = True\n",
        STORE + "test_a_failed_fold_does_not_fail_the_command",
    ),
    Mutant(
        "a short write is believed",
        "            if (done := os.write(self._fd, data)) < len(data):\n",
        "            if (done := os.write(self._fd, data)) < 0:\n",
        STORE + "test_a_write_that_fails_changes_nothing",
    ),
    Mutant(
        "an edit below the attempts made is accepted",
        "max(1, max_retries) <= job.attempts:",
        "max(1, max_retries) < job.attempts:",
        JOBS + "test_an_edit_below_the_attempts_already_made_is_refused",
    ),
    Mutant(
        "a retry that was put off is due",
        '    elif job.state == "failed" and changes.get("run_at", "") > ',
        '    elif job.state == "dead" and changes.get("run_at", "") > ',
        JOBS + "test_a_retry_that_is_put_off_beyond_any_backoff_waits_all_the_same",
    ),
    Mutant(
        "a rerun keeps its number of runs",
        "id=id, seq=seq, runs=0, created_at=now,",
        "id=id, seq=seq, created_at=now,",
        JOBS + "test_a_rerun_is_a_new_job_that_says_the_same",
    ),
    Mutant(
        "a running job is edited",
        "            if job.state not in WAITING:\n                hint",
        "            if job.state in OVER:\n                hint",
        STORE + "test_a_running_job_is_not_edited",
    ),
    Mutant(
        "enqueue --wait follows one attempt",
        "max(1, job.runs), math.inf)",
        "max(1, job.runs), 1)",
        "test_cli_wait.py::test_the_output_of_every_attempt_is_shown",
    ),
    Mutant(
        "enqueue --wait forgets the exit code",
        "    return _exit_as({job.id: job}, single=True)\n",
        "    return 0\n",
        "test_cli_wait.py::test_the_exit_code_is_the_jobs_own",
    ),
    Mutant(
        "a hook runs before its report is on the disk",
        "                self._sync()\n                outcome = self._run_hook",
        "                outcome = self._run_hook",
        "test_hooks.py::test_a_hook_runs_only_when_the_report_is_on_the_disk",
    ),
    Mutant(
        "a cancelled job runs on_dead",
        '    if job.state == "dead" and job.cancelled_at is None:\n',
        '    if job.state == "dead":\n',
        "test_hooks.py::test_a_job_that_was_cancelled_while_it_ran_is_told_by_on_finish_alone",
    ),
    Mutant(
        "a hook is run beside the next job",
        "claim and not hooks and not config.paused",
        "claim and not config.paused",
        "test_hooks.py::test_no_job_starts_in_the_slot_while_its_hook_runs",
    ),
    Mutant(
        "nothing ends the hook of a dead worker",
        ' for row in info.rows if "hook" in row]',
        " for row in ()]",
        "test_hooks.py::test_whoever_clears_a_dead_worker_away_ends_its_hook_first",
    ),
    Mutant(
        "a sync does not wait for the one that is under way",
        "        with self._syncing:\n",
        "        if True:\n",
        "faults/test_found.py::test_a_sync_waits_for_the_one_that_another_thread_began",
    ),
    Mutant(
        "a purge does not wait after the clock was set",
        "        is_true = mark.boot_id == boot and abs(mark.offset_s - offset_s) <= TICK_S\n",
        "        is_true = mark.boot_id == boot\n",
        "test_keep_completed.py",
    ),
    Mutant(
        "a purge believes the array and not the journal",
        '                    if state == "completed" and id not in self.overlay:\n',
        '                    if state == "completed":\n',
        "test_keep_completed.py::test_what_changed_since_the_last_fold_is_not_taken_for_what_the_array_says",
    ),
    Mutant(
        "a purge goes by when a job was accepted",
        'found += [job] if (job.finished_at or "") <= instant else []',
        "found += [job]",
        "test_keep_completed.py::test_a_job_is_as_old_as_its_end",
    ),
    Mutant(
        "a reader does not ask where the data begins",
        "            if data_at > start:\n",
        "            if False:\n",
        "test_log_max.py::test_a_log_is_read_on_while_it_is_trimmed",
    ),
    Mutant(
        "a log is not trimmed at the end of its run",
        "        trim_log(fd, most)\n        os.close(fd)\n",
        "        os.close(fd)\n",
        "test_log_max.py::test_an_output_that_was_never_trimmed_while_it_ran_is_trimmed_at_its_end",
    ),
    Mutant(
        "the runs of a history may be anything",
        '_HISTORY_CHECKS[key](entry[key], f"{name}.{key}")',
        "pass",
        JOBS + "test_a_value_in_a_record_has_bounds_and_is_refused_with_the_fields_name",
    ),
    Mutant(
        "a place in the order has no bound",
        '"seq": _whole(0, SEQ_MAX),',
        '"seq": _whole(0, SEQ_MAX * 1000),',
        "test_cli_errors.py::test_a_hand_edit_beyond_its_bounds_is_refused",
    ),
    Mutant(
        "runs are not raised",
        'state="processing", attempts=job.attempts + 1, runs=job.runs + 1,',
        'state="processing", attempts=job.attempts + 1, runs=max(job.runs, 1),',
        JOBS + "test_an_event_in_a_state_that_allows_it_keeps_the_rules",
    ),
    Mutant(
        "after a step of the clock nobody asks whom nothing holds",
        "        self._look_up_unknown()  # whom nothing holds, that is among these\n",
        "",
        STORE + "test_a_retry_that_came_after_another_is_due_after_the_clock_was_set_back",
    ),
    Mutant(
        "a bar may be higher than the highest",
        "math.ceil(7 * (rate / most))",
        "math.ceil(7 * rate / most)",
        "test_watch.py::test_the_highest_rate_has_the_highest_bar_whatever_it_is",
    ),
    Mutant(
        "backoff is off by one",
        "        wait = float(config.backoff_base) ** attempt\n",
        "        wait = float(config.backoff_base) ** (attempt - 1)\n",
        JOBS + "test_the_waits_are_two_four_eight_seconds_by_default",
    ),
    Mutant(
        "a cancelled job completes",
        '    if job.cancelled_at is not None or outcome.kind == "handed_back":\n',
        '    if outcome.kind == "handed_back":\n',
        JOBS + "test_a_job_being_cancelled_dies_as_cancelled_whatever_its_outcome",
    ),
    Mutant(
        "a waiting retry beyond backoff_max is believed",
        '    return job.state == "failed" and job.run_at > add_seconds(now, backoff_max_s + 1)\n',
        "    return False\n",
        JOBS + "test_a_job_is_ready_when_its_time_has_come_or_cannot_be_meant",
    ),
    Mutant(
        "counts are not changed on delete",
        "                counts[STATES.index(old.state)] -= 1\n",
        "                counts[STATES.index(old.state)] -= new is not None\n",
        STORE + "test_a_write_that_fails_changes_nothing",
    ),
    Mutant(
        "a fold forgets the overlay's deletes",
        "for id, line in pairs if id not in gone]\n",
        "for id, line in pairs]\n",
        STORE + "test_an_empty_array_is_an_empty_array",
    ),
    Mutant(
        "a fold puts revived jobs last",
        "            lines = [raw for _, raw in sorted([*kept, *mine[done:end]])]\n",
        "            lines = [raw for _, raw in [*kept, *mine[done:end]]]\n",
        STORE + "test_dead_and_revived_jobs_keep_their_place",
    ),
    Mutant(
        "an array is taken away before the new one stands",
        "        for name in written:  # 4\n            os.rename(self._temporary(name), self._paths[name])\n",
        "        for name in written:  # 4\n            os.unlink(self._paths[name])\n"
        "            os.rename(self._temporary(name), self._paths[name])\n",
        STORE + "test_a_fold_that_stops_at_any_effect_loses_nothing",
    ),
    Mutant(
        "a fold writes no intent",
        '            self._append(_line(encode_json({"intent": as_json})))\n',
        "            pass\n",
        STORE + "test_any_mix_of_old_and_new_arrays_is_the_same_state",
    ),
    Mutant(
        "an intent is not read",
        "                        self._known[name].append(Fingerprint(**mark))\n                else:\n",
        "                        Fingerprint(**mark)\n                else:\n",
        STORE + "test_any_mix_of_old_and_new_arrays_is_the_same_state",
    ),
    Mutant(
        "the running jobs are not repeated",
        "_change_body(repeat, (), totals), *bodies):\n",
        "_change_body([], (), totals), *bodies):\n",
        STORE + "test_an_edit_never_unclaims_a_running_job",
    ),
    Mutant(
        "a stale follower",
        "        same = (info.st_dev, info.st_ino) == self._journal_id and self._writable\n",
        "        same = self._journal_id is not None and self._writable\n",
        STORE + "test_a_follower_notices_a_new_journal_beside_the_same_arrays",
    ),
    Mutant(
        "a follower does not read on",
        "        elif info.st_size > self._offset and self._loaded:\n            self._replay(locked=True)\n",
        "        elif info.st_size > self._offset and self._loaded:\n            self._offset = info.st_size\n",
        STORE + "test_a_follower_sees_what_others_append_and_survives_their_folds",
    ),
    Mutant(
        "a torn tail is applied",
        "            body = _check_line(line) if whole else None\n            if body is None and bad < 0:\n",
        "            body = _check_line(line)\n            if body is None and bad < 0:\n",
        STORE + "test_a_journal_cut_anywhere_is_the_state_before_or_after",
    ),
    Mutant(
        "a torn tail is not set aside",
        '        path = self._aside("journal-tail", self.journal_path, self._offset)\n',
        '        path = self._aside("journal-tail", os.devnull, 0)\n',
        STORE + "test_a_hole_that_never_reached_the_disk_is_an_unfinished_tail",
    ),
    Mutant(
        "unfinished bulk lines are applied",
        '                    if batch[-1][1].get("more"):\n                        continue\n',
        "",
        STORE + "test_the_lines_of_a_bulk_are_nothing_without_their_last",
    ),
    Mutant(
        "a damaged line in the middle is passed over",
        "            if bad >= 0:\n                raise self._damaged(",
        "            if bad < -1:\n                raise self._damaged(",
        STORE + "test_a_changed_byte_in_the_journal_is_noticed_and_its_line_named",
    ),
    Mutant(
        "the hints are not updated",
        "            oldest, next_run_at = self.waiting().hints(change.now, change.changes.keys() | again)\n",
        "            pass\n",
        STORE + "test_the_next_time_is_the_earliest_that_still_holds",
    ),
    Mutant(
        "a delay is no hint",
        "                    next_run_at = min(next_run_at or new.run_at, new.run_at)\n",
        "                    next_run_at = next_run_at or new.run_at\n",
        STORE + "test_the_next_time_is_the_earliest_that_still_holds",
    ),
    Mutant(
        "claims go by arrival alone",
        "            if best is not None and rank[0] > best[0]:\n",
        "            if False:\n",
        STORE + "test_claims_go_by_priority_then_by_arrival",
    ),
    Mutant(
        "a revived job loses its place",
        'state="pending", attempts=0, updated_at=now, run_at=None,',
        'state="pending", attempts=0, updated_at=now, seq=1 << 40, run_at=None,',
        JOBS + "test_an_event_in_a_state_that_allows_it_keeps_the_rules",
    ),
    Mutant(
        "a revived job is not offered again",
        "            if state in WAITING:\n                index.add(raw, id, seq)\n            if index",
        "            if state in WAITING and not (job and job.runs > job.attempts):\n"
        "                index.add(raw, id, seq)\n            if index",
        STORE + "test_a_unique_key_is_held_by_an_active_job_alone",
    ),
    Mutant(
        "a retry is claimed before its time",
        "        while self._timed and self._timed[0][0] <= now:\n",
        "        while self._timed:\n",
        STORE + "test_a_due_retry_is_claimed_in_its_place_and_not_before",
    ),
    Mutant(
        "a unique key is ignored when its job failed",
        '    return head_of(raw)[1] in (*WAITING, "processing") and _decode(raw).unique == key\n',
        '    return head_of(raw)[1] in ("pending", "processing") and decode_job(raw).unique == key\n',
        STORE + "test_a_unique_key_is_held_by_an_active_job_alone",
    ),
    Mutant(
        "a unique key is believed unread",
        "and _decode(raw).unique == key\n",
        "and True\n",
        STORE + "test_a_unique_key_is_held_by_an_active_job_alone",
    ),
    Mutant(
        "what came after the search is not looked at",
        "        if found.journal != self._journal_id:\n            return self._look(ids, keys)\n",
        "        return found\n",
        STORE + "test_an_id_taken_between_the_search_and_the_lock_is_refused",
    ),
    Mutant(
        "an edit un-claims a running job",
        "                if job.id not in journal:\n",
        "                if True:\n",
        STORE + "test_an_edit_never_unclaims_a_running_job",
    ),
    Mutant(
        "an id in both arrays is taken",
        "                if (id := head_of(raw)[0]) in seen and id not in journal:\n",
        "                if (id := head_of(raw)[0]) in ():\n",
        STORE + "test_an_id_in_an_edited_array_and_in_the_other_is_refused",
    ),
    Mutant(
        "unknown fields are dropped",
        "    return {**out, **job.extra} if job.extra else out\n",
        "    return out\n",
        STORE + "test_unknown_fields_survive_every_rewrite",
    ),
    Mutant(
        "threads are not kept apart",
        "        if not self._mutex.acquire(timeout=limit_s):\n",
        "        self._mutex = threading.Lock()\n        if not self._mutex.acquire(timeout=limit_s):\n",
        STORE + "test_a_thread_waits_for_another_of_its_own_store",
    ),
    Mutant(
        "no lock at all",
        "            while not lock_descriptor(fd, blocking=False):\n",
        "            while False:\n",
        STORE + "test_a_lock_held_too_long_is_a_store_error",
    ),
    Mutant(
        "a missing store is an empty one",
        "            except FileNotFoundError:\n                if there:\n",
        "            except FileNotFoundError:\n                if not there and False:\n",
        STORE + "test_a_store_missing_beside_a_journal_is_never_taken_for_empty",
    ),
    Mutant(
        "a refused cancel has cancelled the first",
        'raise _refusal(job, f"is {job.state} already and cannot be cancelled")',
        'store._commit(change)\n                raise _refusal(job, f"is {job.state} already and cannot be cancelled")',
        STORE + "test_a_refused_operation_changes_nothing",
    ),
    Mutant(
        "modes follow the umask",
        "        os.fchmod(fd, 0o600)\n        yield fd\n",
        "        yield fd\n",
        "test_cli_files.py::test_what_a_command_creates_is_for_the_owner_only",
    ),
    Mutant(
        "an id twice in the edited arrays is taken",
        "                if job.id in seen:\n",
        "                if job.id in ():\n",
        STORE + "test_an_edit_that_cannot_be_used_is_refused_and_left_alone",
    ),
    Mutant(
        "recovery does not follow first",
        "    with store.transaction():  # the worker is dead now: what it still wrote is its last word\n",
        "    if True:\n",
        STORE + "test_recovery_knows_what_a_dead_worker_wrote_last",
    ),
    Mutant(
        "half a load is taken for the whole",
        "            self._reset()  # half a state must never be taken for the whole\n",
        "            pass\n",
        STORE + "test_an_array_that_could_not_be_opened_once_is_not_forgotten",
    ),
    Mutant(
        "what is taken from an edit is not in the journal",
        "        if locked and self._fd is not None:\n            self._append(b",
        "        if False:\n            self._append(b",
        STORE + "test_a_crash_while_an_edit_is_taken_loses_no_job",
    ),
    Mutant(
        "what a first start takes is not in its journal",
        "self._taken_bodies(taken) if edited else [])",
        "[])",
        STORE + "test_a_first_start_on_files_of_a_backup_loses_nothing_at_any_rename",
    ),
    Mutant(
        "an edit that the journal holds is taken once more",
        "            if any(map(mark.fits, self._taken[name])):\n",
        "            if False:\n",
        STORE + "test_a_crash_while_an_edit_is_taken_does_not_take_it_twice",
    ),
    Mutant(
        "a stale entry of a heap is believed",
        "            if found is not None and not self._is_ready_at(found, rank):\n",
        "            if False:\n",
        STORE + "test_a_job_that_another_worker_failed_waits_for_its_backoff",
    ),
    Mutant(
        "a stale wait is believed",
        "            if raw is not None and (self._is_held(id) or trust_job(raw).run_at != run_at):\n",
        "            if raw is not None and self._is_held(id):\n",
        STORE + "test_the_next_time_is_the_earliest_that_still_holds",
    ),
    Mutant(
        "a stale wait of a job that is held again is believed",
        "if raw is not None and (self._is_held(id) or trust_job(raw).run_at != run_at):",
        "if raw is not None and trust_job(raw).run_at != run_at:",
        SCHEDULE + "test_what_a_dead_job_let_go_waits_again_when_it_is_revived",
    ),
    Mutant(
        "a hole of NULs is taken for damage",
        "                if HOLE in line:\n",
        "                if False:\n",
        STORE + "test_a_hole_that_never_reached_the_disk_is_an_unfinished_tail",
    ),
    Mutant(
        "a single NUL is taken for a hole",
        "                if HOLE in line:\n",
        '                if b"\\0" in line:\n',
        STORE + "test_a_single_nul_in_the_journal_is_damage_and_not_a_hole",
    ),
    Mutant(
        "after a sync and a fold that failed nothing is left to sync",
        "            self._dirty = True\n            raise StoreError(\n",
        "            raise StoreError(\n",
        STORE + "test_what_neither_sync_nor_fold_could_keep_is_not_forgotten",
    ),
    Mutant(
        "a journal is synced again after a sync that failed",
        "            if not self.is_suspect:\n                os.fsync(fd)\n",
        "            if True:\n                os.fsync(fd)\n",
        STORE + "test_what_neither_sync_nor_fold_could_keep_is_not_forgotten",
    ),
    Mutant(
        "a fold syncs a journal again whose sync failed",
        "            if not self.is_suspect:\n                self.is_suspect = True\n                os.fsync",
        "            if True:\n                self.is_suspect = True\n                os.fsync",
        STORE + "test_a_journal_whose_sync_failed_is_never_synced_again",
    ),
    Mutant(
        "a failed sync of the intent is forgotten",
        "                self.is_suspect = True\n                os.fsync(self._fd or 0)\n",
        "                os.fsync(self._fd or 0)\n",
        STORE + "test_a_failed_sync_of_the_intent_is_remembered",
    ),
    Mutant(
        "jobs are claimed while the journal is suspect",
        " and not config.paused and not store.is_suspect\n",
        " and not config.paused\n",
        STORE + "test_nothing_is_claimed_until_what_could_not_be_synced_is_written_anew",
    ),
    Mutant(
        "an array edited during the fold is overwritten",
        "        if not self._arrays_known():  # 3\n",
        "        if False:  # 3\n",
        STORE + "test_a_second_edit_while_the_first_is_taken_is_not_overwritten",
    ),
    Mutant(
        "quantiles are off by one",
        "times[math.ceil(share * total) - 1]",
        "times[math.ceil(share * total) - 2]",
        STATS + "test_wait_and_run_times_and_the_rate",
    ),
    Mutant(
        "times are kept to two digits",
        'float(f"{max(0.0, seconds):.2e}")',
        'float(f"{max(0.0, seconds):.1e}")',
        STATS + "test_quantiles_are_within_half_a_percent",
    ),
    Mutant(
        "every attempt counts as the first",
        '        if entry.get("run") == 1:\n',
        "        if True:\n",
        STATS + "test_a_retry_waited_for_its_backoff_and_is_not_counted_as_waiting",
    ),
    Mutant(
        "cancelled jobs count as failures",
        ' - counts["cancelled"]\n',
        "\n",
        STATS + "test_stats_counts_what_ended",
    ),
    Mutant(
        "buckets are not cumulative",
        '                below += bar["count"]\n',
        '                below = bar["count"]\n',
        STATS + "test_prometheus_reads_the_figures",
    ),
    Mutant(
        "a label is not escaped",
        "    return f'{key}=\"{escaped}\"'\n",
        "    return f'{key}=\"{text}\"'\n",
        STATS + "test_prometheus_reads_any_command_as_a_label",
    ),
    Mutant(
        "a doubtful job runs by itself",
        "    return known or _let_die(job,",
        "    return known or job or _let_die(job,",
        MEND + "test_a_damaged_line_in_the_middle_leaves_what_is_whole_on_both_sides",
    ),
    Mutant(
        "records of a damaged line are dropped",
        "        new = judge(job, decode_job(known) if known else None)\n",
        "        new = None\n",
        MEND + "test_a_damaged_line_in_the_middle_leaves_what_is_whole_on_both_sides",
    ),
    Mutant(
        "mended beside a live worker",
        "            if self.live_workers(first=True):\n                raise StoreError",
        "            if False:\n                raise StoreError",
        MEND + "test_nothing_is_mended_while_a_worker_lives",
    ),
    Mutant(
        "mended without copies",
        "            copies = [self._aside(os.path.basename(path), path, 0) for path in there]\n",
        "            copies = list(there)\n            make_dir(os.path.join(self.dir, 'aside'))\n",
        MEND + "test_wrong_counts_are_counted_anew",
    ),
    Mutant(
        "the older of two records is kept",
        "decode_job(known).updated_at <= job.updated_at",
        "decode_job(known).updated_at > job.updated_at",
        MEND + "test_a_job_in_both_arrays_is_kept_as_it_changed_last",
    ),
    Mutant(
        "an unreadable setting takes the others with it",
        "            kept |= setting\n",
        "            kept = setting\n",
        MEND + "test_what_can_be_read_of_the_settings_is_kept",
    ),
    Mutant(
        "after a bad object the rest of the array is skipped",
        "            end = next_one.end() if next_one else len(text)\n",
        "            end = len(text)\n",
        MEND + "test_lines_of_an_array_that_are_no_jobs_go_and_the_others_stay",
    ),
    Mutant(
        "a frame's line is not cut",
        "    lines = [cut(line, columns) for line in _watch_head(view, columns, now)]\n",
        "    lines = list(_watch_head(view, columns, now))\n",
        WATCH + "test_a_frame_fits_any_terminal",
    ),
    Mutant(
        "small bars are lost",
        '"█" * math.ceil(max(',
        '"█" * round(max(',
        WATCH + "test_the_longest_bar_is_as_wide_as_there_is_room_and_none_is_lost",
    ),
    Mutant(
        "the terminal keeps its mode",
        "            termios.tcsetattr(0, termios.TCSADRAIN, self._mode)\n",
        "            pass\n",
        WATCH + "test_a_key_ends_it_and_the_terminal_is_as_before",
    ),
    Mutant(
        "the terminal stays on the other screen",
        "        self._write(self.LEAVE)\n",
        "        pass\n",
        WATCH + "test_a_signal_ends_it_and_the_terminal_is_as_before",
    ),
    Mutant(
        "a new size is not seen",
        "    return None if number in (signal.SIGTSTP, signal.SIGWINCH) else 128 + number\n",
        "    return None if number in (signal.SIGTSTP,) else 128 + number\n",
        WATCH + "test_it_follows_the_size_of_the_terminal",
    ),
    Mutant(
        "wide characters count as narrow",
        'return 2 if unicodedata.east_asian_width(part) in "WF" else 1',
        "return 1",
        "test_cli_view.py::test_on_a_terminal_no_line_is_wider_than_it_is_wide_characters_too",
    ),
    Mutant(
        "a table is not aligned",
        'yield cut(f"{id:<{id_width}}  {text}", width)',
        'yield cut(f"{id:<12}  {text}", width)',
        "test_cli_view.py::test_columns_are_aligned_whatever_the_ids",
    ),
    Mutant(
        "progress bars in a pipe",
        "    if not sys.stderr.isatty():\n        yield lambda steps: None\n        return\n",
        "",
        "test_cli_view.py::test_a_progress_bar_on_a_terminal_and_none_in_a_pipe",
    ),
    Mutant(
        "no bar beside a drain",
        "        _tell(text, erase, cut(bar.format_progress_line(), width))\n",
        "        _tell(text, erase)\n",
        "test_cli_view.py::test_a_progress_bar_on_a_terminal_and_none_in_a_pipe",
    ),
    Mutant(
        "a damaged queue is a traceback at a Tab",
        "    except (QueueError, OSError):\n        return []\n",
        "    except LookupError:\n        return []\n",
        "test_completion.py::test_a_queue_that_cannot_be_read_completes_nothing_and_says_nothing",
    ),
    Mutant(
        "a job that dies leaves who needs it",
        "            self.end_children(new.id, new.seq)\n",
        "            pass\n",
        SCHEDULE + "test_the_line_that_ends_a_job_ends_who_needs_it",
    ),
    Mutant(
        "a death stops at the next of kin",
        "                    dead.append((child.id, child.seq))\n",
        "                    pass\n",
        SCHEDULE + "test_the_line_that_ends_a_job_ends_who_needs_it",
    ),
    Mutant(
        "who takes any end dies too",
        "there.state in WAITING and parent in needed_by(there):\n",
        "there.state in WAITING and parent in parents_of(there):\n",
        SCHEDULE + "test_the_line_that_ends_a_job_ends_who_needs_it",
    ),
    Mutant(
        "who is freed is not due",
        "        if ended and change.has_after() and not self.waiting().parents.keys().isdisjoint(ended):\n",
        "        if ended and self.waiting().parents is None:\n",
        AFTER + "test_a_parent_that_ends_makes_the_other_due",
    ),
    Mutant(
        "who waits for a revived job is still due",
        "                again |= {job.id for job in self.waiting().children(id, old.seq)}\n",
        "                pass\n",
        AFTER + "test_a_parent_that_ends_makes_the_other_due",
    ),
    Mutant(
        "a new job that is held is due",
        "            change.held.add(id)\n",
        "            pass\n",
        AFTER + "test_a_job_that_waits_for_another_is_not_due",
    ),
    Mutant(
        "a purge takes who is named",
        "            (out.kept if waiting.is_named(job) else out.gone).append(job)\n",
        "            out.gone.append(job)\n",
        AFTER + "test_a_job_that_a_waiting_one_names_is_not_purged",
    ),
    Mutant(
        "a revival brings back who still needs a dead job",
        "        if job is not None and is_meant and stays.isdisjoint(needed):\n",
        "        if job is not None and is_meant:\n",
        AFTER + "test_who_died_for_another_reason_stays",
    ),
    Mutant(
        "a limit is one too high",
        "if sum(tag in tags for tags in tags_of_jobs) >= limit\n",
        "if sum(tag in tags for tags in tags_of_jobs) > limit\n",
        SCHEDULE + "test_a_limit_counts_the_report_of_the_same_turn",
    ),
    Mutant(
        "a limit still counts what was just reported",
        "{**self.store.processing, **{id: new for id, (_, new) in self.changes.items()}}",
        "{**self.store.processing}",
        SCHEDULE + "test_a_limit_counts_the_report_of_the_same_turn",
    ),
    Mutant(
        "what a report allows is not claimed with it",
        "        if change is not None and self.parents:\n",
        "        if change is None and self.parents:\n",
        SCHEDULE + "test_who_is_freed_by_a_report_is_claimed_in_the_same_line",
    ),
    Mutant(
        "nobody hears of what a report allows",
        "        return _first(change, TagFilter(), config) is not None\n",
        "        return False\n",
        SCHEDULE + "test_a_report_says_that_it_left_something_for_others",
    ),
    Mutant(
        "a later job of that name is waited for",
        "            if seq is not None and seq < held.seq:\n",
        "            if seq is not None:\n",
        SCHEDULE + "test_a_later_job_of_that_name_is_another",
    ),
    Mutant(
        "followers must search for whom a new job names",
        "                change.put(there, there)  # so",
        "                pass  # so",
        SCHEDULE + "test_an_enqueue_after_a_job_of_the_arrays_puts_that_job_too_and_loads_nothing",
    ),
    Mutant(
        "other limits are seen at the next fold only",
        "        if index is None or index.limited != limited.keys():\n",
        "        if index is None:\n",
        SCHEDULE + "test_a_limit_that_is_set_or_raised_later_holds_from_then_on",
    ),
    Mutant(
        "an edit leaves who needs a dead job waiting",
        "        self._end_by_edit(format_instant(",
        "        str(format_instant(",
        AFTER + "test_a_hand_written_job_after_a_dead_one_is_dead",
    ),
    Mutant(
        "a bulk's dead jobs are folded into jobs.json",
        "                if not totals.n - before.n == totals.counts[0] - before.counts[0] == batched:\n",
        "                if not totals.n - before.n == batched:\n",
        AFTER + "test_a_file_after_a_dead_job_is_dead_as_a_whole",
    ),
    Mutant(
        "a drain ends before what a live worker allows",
        "        if ends[job.id] and only.takes(job):\n",
        "        if ends[job.id] and not only:\n",
        SCHEDULE + "test_a_drain_goes_on_while_a_live_worker_takes_what_is_waited_for",
    ),
    Mutant(
        "a journal that was deleted is begun anew",
        '                self._rebuild_journal("deleted")\n',
        "                self._load(locked=True)\n",
        FOUND + "test_a_journal_that_was_deleted_under_a_worker_is_written_anew_from_memory",
    ),
    Mutant(
        "a sync does not wait for another thread's",
        "        with self._syncing:\n            self._sync()\n",
        "        self._sync()\n",
        FOUND + "test_a_sync_waits_for_the_one_that_another_thread_began",
    ),
    Mutant(
        "after a reboot the last line is believed",
        '        if self._header.get("boot") != boot_id():\n            return False\n',
        "",
        FOUND + "test_what_is_accepted_after_a_power_loss_does_not_stand_behind_a_hole",
    ),
    Mutant(
        "a line whose checksum is wrong is passed over",
        "            if bad >= 0:\n                raise self._damaged(",
        "            if False:\n                raise self._damaged(",
        "faults/test_damage.py::test_a_damaged_file_is_answered_and_kept",
    ),
    Mutant(
        "a failed job waits however far the clock went back",
        "        far = add_seconds(now, backoff_max_s + 1)\n",
        "        far = add_seconds(now, 9e9)\n",
        "faults/test_clock.py",
    ),
    Mutant(
        "no fence",
        "        if not fences[trace.mark].step():\n            return\n",
        "",
        RECOVERY + "test_a_job_whose_process_left_session_and_environment_does_not_run_again_while_it_lives",
    ),
    Mutant(
        "dead before gone",
        '    if job.state == "processing":\n        return job._replace(cancelled_at=now, updated_at=now)\n',
        "",
        JOBS + "test_an_event_in_a_state_that_allows_it_keeps_the_rules",
    ),
    Mutant(
        "who comes after a lost job runs",
        "        problems += self._end_lost()\n",
        "        pass\n",
        MEND + "test_who_comes_after_a_job_that_was_lost_does_not_run_and_nor_do_those_after_it",
    ),
]


def judge(mutant: Mutant) -> str:
    """`killed`, or what came instead."""
    source = (ROOT / "queuectl.py").read_text()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = copy_tree(Path(folder), source.replace(mutant.old, mutant.new))
        try:
            done = run_tests(tree, [mutant.test], HANG_S)
        except subprocess.TimeoutExpired:
            return f"killed: {mutant.test} hangs"
    if done.returncode == 1:
        return f"killed by {mutant.test}"
    return "SURVIVED" if done.returncode == 0 else f"NOT TRIED: {done.stdout[-500:]}{done.stderr[-500:]}"


def copy_tree(tree: Path, source: str) -> Path:
    """What the tests need, away from the checkout: pytest puts the copy's own root in the path."""
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__", "bench"))
    (tree / "queuectl.py").write_text(source)
    return tree


def run_tests(tree: Path, names: list[str], limit_s: float | None = None) -> subprocess.CompletedProcess[str]:
    # A test that is marked to fail proves nothing by changing its mind.
    words = ["-q", "-x", "-p", "no:cacheprovider", "--tb=no", "-m", "not xfail and not slow and not bench"]
    tests = [str(tree / "tests" / name) for name in names]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *words, *tests], cwd=tree, capture_output=True, text=True, timeout=limit_s
    )


def main() -> int:
    words = sys.argv[1:]
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    source = (ROOT / "queuectl.py").read_text()
    if stale := [mutant for mutant in chosen if source.count(mutant.old) != 1]:
        print("DOES NOT MATCH: the old text of these must stand in queuectl.py once; rewrite it:")
        print(*(f"    {mutant.name}: {source.count(mutant.old)} times" for mutant in stale), sep="\n")
        return 1
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        done = run_tests(copy_tree(Path(folder), source), sorted({mutant.test for mutant in chosen}))
        if done.returncode != 0:
            print(f"The tests must be there and green before a fault is seeded:\n{done.stdout}{done.stderr}")
            return 1
    killed = 0
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for mutant, verdict in zip(chosen, pool.map(judge, chosen), strict=True):
            print(f"{mutant.name}: {verdict}", flush=True)
            killed += verdict.startswith("killed")
    print(f"{killed} of {len(chosen)} killed.")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
