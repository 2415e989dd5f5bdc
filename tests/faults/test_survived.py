"""What must be survived, row by row, each with the tests that would turn red without it. Checked: that those are there.

F1  the next command opens the home, before or after each transaction  F5  no job stays processing without a worker
F2  a command that failed changed nothing                              F6  what is not the job's fault costs no attempt
F3  memory never runs ahead of the file                                F7  completed means that status 0 was read
F4  a job with a live run is not started, purged or revived            F8  no traceback; what is not understood is kept
F9  a job's output is its own: it never shows what another job of that id wrote
"""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

PROVED_BY = """
F1: test_a_fault_leaves_the_state_before_or_after test_a_power_loss_leaves_what_was_told
F2: test_a_fault_leaves_the_state_before_or_after test_a_write_that_fails_half_way_changes_nothing
    test_ctrl_c_at_any_effect_of_a_change_tells_whether_it_is_stored
F3: test_whatever_happens_in_whatever_order_the_queue_is_as_the_model_says
    test_a_write_that_fails_half_way_changes_nothing
F4: test_nothing_is_lost_stuck_doubled_or_overlapping_in_a_storm
    test_a_worker_killed_between_fork_and_exec_of_a_job_does_not_let_it_run_twice_at_a_time
    test_a_cancelled_job_stays_processing_while_it_tidies_up_and_is_dead_even_if_it_exits_with_0
F5: test_a_killed_workers_job_is_back_soon_while_another_worker_lives
    test_jobs_are_recovered_also_when_the_dead_workers_file_is_missing
    test_a_copied_home_recovers_its_own_copy_of_a_running_job
F6: test_a_limit_costs_no_attempt_and_loses_nothing
    test_a_runner_that_does_not_exist_costs_no_attempt_and_status_says_why
F7: test_exit_codes_are_really_read_when_the_worker_was_started_with_sigchld_ignored
F8: test_a_damaged_file_is_answered_and_kept test_a_lock_held_too_long_is_a_store_error_for_processes_and_threads
F9: test_a_job_never_shows_what_another_job_of_its_id_wrote test_recovery_gives_a_run_its_own_output_alone
crash inside a fold: test_a_fold_that_stops_at_any_effect_is_done_whole_or_not_at_all
    test_a_fault_leaves_the_state_before_or_after
short write, full disk, I/O error on append: test_a_write_that_fails_half_way_changes_nothing
    test_a_torn_tail_is_passed_over_by_readers_and_set_aside_by_the_next_writer
fold fails: test_a_failed_fold_does_not_fail_the_command
fsync fails: test_a_journal_whose_sync_failed_is_copied_to_a_fresh_file_and_never_synced_again
    test_a_journal_that_can_be_neither_synced_nor_copied_ends_the_changes_of_a_process
power loss: test_a_power_loss_leaves_what_was_told
    test_a_sync_waits_for_the_one_that_another_thread_began
bytes changed in the journal: test_a_changed_byte_in_the_journal_is_noticed
    test_a_light_look_after_a_reboot_sees_a_hole_before_the_last_line
bytes changed in an array: test_a_damaged_file_is_answered_and_kept
    test_doctor_sees_a_byte_that_the_disk_changed_in_an_array
hand edit, restored backup: test_an_edit_under_a_running_store_is_taken_at_its_next_look
    test_a_job_of_the_journal_stays_as_the_journal_has_it_and_a_running_job_always_is
    test_an_edit_that_is_saved_while_a_fold_writes_is_not_overwritten
    test_a_hand_edit_beyond_its_bounds_is_refused
store missing beside a journal: test_a_store_missing_beside_a_journal_is_never_taken_for_empty
the directory deleted or moved under a worker: test_an_append_to_a_deleted_queue_is_refused
    test_a_journal_that_was_deleted_or_cut_ends_the_changes_of_a_process
    test_a_worker_whose_directory_was_moved_away_does_not_write_beside_those_who_made_a_new_one
the logs deleted under a worker: test_the_folder_of_the_output_is_made_again_by_the_worker_itself
a locale that cannot write the command: test_arguments_are_utf_8_whatever_the_locale
    test_a_job_gets_the_bytes_that_were_enqueued_whatever_the_locale_of_its_worker
    test_a_job_in_json_is_utf_8_whatever_the_locale
standard streams non-blocking, slow, closed, full:
    test_what_comes_late_through_a_non_blocking_stdin_is_accepted_whole
    test_a_result_larger_than_a_non_blocking_pipe_is_printed_whole
Ctrl+C at any moment: test_ctrl_c_during_the_imports_prints_no_traceback
    test_ctrl_c_at_any_effect_of_a_change_tells_whether_it_is_stored
a FIFO or link in the place of a file of ours: test_a_pipe_in_the_place_of_a_file_does_not_hang_a_command
    test_a_pipe_in_the_place_of_the_workers_log_is_refused_and_never_waited_for
    test_a_link_at_a_file_of_the_queue_is_refused_and_not_followed
    test_the_folder_of_the_logs_as_a_link_to_anything_else_is_refused
a purge that dies before it removed the output: test_a_job_never_shows_what_another_job_of_its_id_wrote
    test_an_idle_worker_removes_the_output_of_jobs_that_are_gone
no /proc, or an empty one: test_without_proc_the_group_is_ended_and_the_job_comes_back
config damaged under a worker: test_a_worker_goes_on_with_the_last_good_settings_and_warns_once
read-only home: test_a_home_that_may_only_be_read_is_read test_a_change_to_a_home_that_may_only_be_read_is_refused
worker killed: test_the_processes_of_a_killed_workers_job_are_ended_before_it_runs_again
    test_daemons_of_finished_jobs_live_on_when_their_worker_is_killed_and_recovered
worker stopped: test_a_worker_that_is_only_stopped_is_not_recovered
exception in a thread: test_a_job_whose_row_cannot_be_written_does_not_run_twice_at_the_same_time
TERM to the whole service, HUP, stderr gone:
    test_a_signal_that_ends_a_job_together_with_its_workers_stop_is_not_a_failed_attempt
    test_hanging_up_stops_the_worker_and_lets_the_running_job_finish test_a_worker_goes_on_when_nobody_reads_its_stderr
signals ignored at the start: test_a_job_starts_with_default_signals_when_its_worker_was_started_with_some_ignored
job leaves its session or environment: test_the_processes_of_a_killed_workers_job_are_ended_before_it_runs_again
    test_a_job_is_not_over_before_the_last_process_that_holds_its_output_is_gone
    test_a_job_that_ignores_sigterm_is_handed_back_too
a process of the run that the finder may not end:
    test_a_process_of_another_user_in_a_killed_workers_run_is_named_until_it_ends
    test_a_worker_inside_a_killed_workers_job_is_ended_by_another_worker
disk filled by a job: test_a_limit_costs_no_attempt_and_loses_nothing
clock steps: test_the_clock_jumps_and_nothing_is_lost_or_stuck
    test_a_retry_beyond_any_backoff_is_due_after_the_clock_was_set_back
unknown format, another user's home: test_a_format_of_the_future_is_left_alone
    test_a_home_of_another_user_is_refused_for_root_too
"""


def test_each_promise_has_its_tests():
    there = re.findall(r"def (test_\w+)", "".join(path.read_text() for path in TESTS.rglob("test_*.py")))
    assert not (missing := set(re.findall(r"test_\w+", PROVED_BY)) - set(there)), missing
