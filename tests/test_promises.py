"""What the command line promises, line by line, and the tests that hold it to that.

A promise without a test, a test that is not there, an option or a setting that no promise names: each is a failure
here. Whoever adds an option adds its promise and the test of it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import queuectl

# Section -> promise -> names of tests, one or more, wherever they stand below tests/.
PROMISES: dict[str, dict[str, str]] = {
    "general": {
        "queuectl and python queuectl.py are the same program": "test_the_installed_command_is_there test_pip_install",
        "every --help opens with one sentence": (
            "test_help_begins_with_one_sentence test_the_list_of_commands_cuts_no_sentence"
        ),
        "every --help shows a real example": (
            "test_help_shows_an_example_of_that_command test_examples_in_help_are_no_usage_errors"
        ),
        "stdout carries the result and nothing else": (
            "test_bad_input_is_refused_and_changes_nothing test_the_session_of_the_readme_is_true"
        ),
        "--json prints exactly one JSON value": (
            "test_json_is_one_value_and_nothing_else test_show_json_of_several_ids_is_one_array"
        ),
        "exit code 1: refused, 2: wrong usage, and nothing changed": "test_bad_input_is_refused_and_changes_nothing",
        "exit code 3: storage": (
            "test_a_damaged_store_is_named_and_never_overwritten test_a_lock_held_too_long_is_a_store_error"
        ),
        "exit code 124: a wait that ran out of time": "test_wait_that_runs_out_of_time_is_124",
        "exit code 130 by SIGINT while waiting": "test_wait_ends_with_130_on_ctrl_c_and_leaves_the_job_alone",
        "130 and 143 by a second signal": "test_a_second_signal_hands_the_job_back_without_using_an_attempt",
        "no traceback, ever: `Error: `, what, where, what next": "test_bad_input_is_refused_and_changes_nothing",
        "an error after the change says that it was made": (
            "test_an_id_that_could_not_be_printed_is_told_in_the_error "
            "test_a_stop_that_could_not_be_told_is_told_in_the_error"
        ),
        "durations": "test_a_duration_is_seconds_whatever_its_spelling test_a_value_that_is_no_duration_is_refused",
        "instants, local unless a zone is given, stored in UTC": (
            "test_an_instant_is_stored_in_utc test_an_instant_is_local_unless_it_names_a_zone "
            "test_a_time_of_day_is_the_next_one_of_the_local_zone"
        ),
        "state names in any case": "test_list_chooses_jobs test_purge_removes_finished_jobs",
        "option names with - or _": "test_an_option_is_stored",
        "metrics, config list, config get alone": (
            "test_metrics_is_another_name test_an_alias_of_config_show_prints_the_same"
        ),
        "enqueue --run-at": "test_a_delay_counts_from_now test_an_option_is_stored",
        "dlq clear, dlq delete": "test_dlq_purge_of_all_empties_the_dlq_only",
        "worker start --detached": "test_a_detached_worker_is_ready_when_the_command_returns",
        "maxRetries, runAt, timeout_seconds and the like are refused with the right name": (
            "test_bad_input_is_refused_and_changes_nothing"
        ),
        "colour only on a terminal; NO_COLOR, FORCE_COLOR": (
            "test_there_is_no_colour_in_a_pipe test_there_is_colour_on_a_terminal "
            "test_no_color_means_no_colour_on_a_terminal test_force_color_gives_colour_in_a_pipe"
        ),
        "output to a person is cleaned of control characters": (
            "test_control_characters_never_reach_a_person test_bad_input_is_refused_and_changes_nothing "
            "test_nothing_of_a_job_drives_the_terminal"
        ),
        "a table has one job a line, its id first": (
            "test_list_has_one_line_a_job_with_its_id_first test_a_command_of_several_lines_is_one_line_of_the_table"
        ),
        "progress bars only on a terminal": "test_a_progress_bar_on_a_terminal_and_none_in_a_pipe",
        "in a pipe lines are never cut": "test_a_line_in_a_pipe_is_never_cut",
        "several ids: all or none": (
            "test_cancel_of_several_jobs_is_all_or_none test_retry_of_several_jobs_is_all_or_none "
            "test_edit_of_several_jobs_is_all_or_none test_rerun_of_several_jobs_is_all_or_none "
            "test_dlq_retry_of_several_ids_is_all_or_none test_dlq_purge_of_several_ids_is_all_or_none"
        ),
        "--home, QUEUECTL_HOME, a checkout, the user's own directory; never the current one": (
            "test_the_home_option_beats_the_environment test_a_checkout_is_its_own_home "
            "test_a_program_that_lies_alone_uses_the_users_own_directory "
            "test_the_current_directory_is_never_the_home"
        ),
        "--version": "test_bad_input_is_refused_and_changes_nothing",
    },
    "enqueue": {
        "a JSON object": (
            "test_enqueue_of_a_json_object_prints_the_given_id_alone test_the_owners_whole_example_is_accepted"
        ),
        "one word is a shell line": "test_one_word_is_a_shell_line_and_kept_as_it_is",
        "several words are kept word for word": (
            "test_several_words_reach_the_program_word_for_word test_several_words_need_no_dashes_before_them"
        ),
        "--file: one job a line, # comments, all or nothing": (
            "test_commands_and_json_objects_may_stand_in_one_file test_comments_and_empty_lines_are_no_jobs "
            "test_one_bad_line_keeps_the_whole_file_out"
        ),
        "--file - is stdin": "test_standard_input_is_read_for_a_dash",
        "--stream: accepted as lines come; a bad one is an error and exit 1 at the end": (
            "test_a_line_of_a_stream_is_accepted_before_the_next_one_comes "
            "test_a_bad_line_in_a_stream_leaves_the_others_accepted "
            "test_a_bad_line_in_a_stream_is_an_error_on_stderr"
        ),
        "prints the id alone, one a line": (
            "test_enqueue_of_one_word_prints_a_made_id_alone test_a_file_prints_the_ids_one_a_line_in_its_order"
        ),
        "--json prints the job, an array with --file": (
            "test_json_prints_the_job_as_list_shows_it test_json_prints_one_array_of_the_jobs"
        ),
        "a word that starts with { is JSON or refused": "test_bad_input_is_refused_and_changes_nothing",
        "--command gives a shell line whatever it starts with": "test_the_command_option_takes_any_text_as_it_is",
        "a file whose first line is [ or { alone is read whole": (
            "test_a_file_that_begins_with_a_bracket_alone_is_one_json_array "
            "test_a_file_that_begins_with_a_brace_alone_is_one_json_object"
        ),
        "an own option behind the words is refused without --": (
            "test_bad_input_is_refused_and_changes_nothing "
            "test_a_later_word_that_is_no_option_of_enqueue_belongs_to_the_command"
        ),
        "the JSON fields": (
            "test_a_json_field_is_stored test_a_good_field_is_taken_as_it_is "
            "test_the_json_fields_of_the_readme_are_those_that_are_accepted"
        ),
        "other fields are refused by name, unless a new job has that anyway": (
            "test_a_field_of_the_queue_cannot_be_given test_what_a_new_job_has_anyway_may_be_said "
            "test_times_given_in_json_are_ignored"
        ),
        "--id, --max-retries, --priority, --timeout, --delay, --at, --cwd, --env, --tag, --no-retry-on": (
            "test_an_option_is_stored test_a_delay_counts_from_now test_timeout_zero_means_no_limit"
        ),
        "an option beats the field of one job, and is a default for lines": (
            "test_an_option_beats_the_json_field test_an_option_holds_for_every_line "
            "test_a_field_of_a_line_beats_the_option"
        ),
        "ids, given or made; a taken one is refused": (
            "test_a_given_id_of_the_allowed_characters_is_kept test_made_ids_are_all_different "
            "test_a_taken_id_is_refused_whatever_became_of_its_job"
        ),
        "commands of at most 131,071 bytes": "test_a_command_of_the_longest_allowed_length_is_kept",
        "numbers have bounds; NaN, duplicate keys and wrong types are refused": (
            "test_bad_input_is_refused_and_changes_nothing"
        ),
        "--unique": (
            "test_a_second_job_with_a_waiting_unique_key_is_not_added test_a_unique_duplicate_says_so_in_json "
            "test_a_failed_job_that_waits_for_its_retry_keeps_its_unique_key "
            "test_a_completed_job_frees_its_unique_key"
        ),
        "--unique without a key": (
            "test_the_only_word_after_unique_is_the_command test_a_made_unique_key_meets_the_same_command "
            "test_a_made_unique_key_does_not_meet_the_same_command_elsewhere"
        ),
        "--unique=KEY and --unique -- WORDS": (
            "test_unique_before_two_dashes_takes_the_words_as_the_command test_an_empty_unique_key_is_refused"
        ),
        "cron lines": "test_from_cron_a_unique_job_is_added_once_while_it_waits",
        "--after: starts when those are completed, dies with them, comes back with them": (
            "test_the_options_are_stored_as_the_field_after test_who_needs_a_job_that_dies_dies_in_the_report "
            "test_a_job_after_a_dead_one_is_dead_at_once_and_no_error test_who_died_for_that_reason_comes_back "
            "test_who_died_for_another_reason_stays"
        ),
        "--after-any: starts when those are over": "test_a_parent_that_ends_makes_the_other_due",
        "after: unknown ids are refused, lines name earlier ones only": (
            "test_an_unknown_id_is_refused_and_nothing_added "
            "test_a_line_of_a_file_can_name_earlier_lines_and_jobs_that_are_there"
        ),
        "a job that a waiting one names is not purged": "test_a_job_that_a_waiting_one_names_is_not_purged",
        "after in JSON": "test_the_json_field_is_stored_in_one_form",
        "cwd is remembered; of the environment what --env names": (
            "test_the_directory_of_the_call_is_remembered test_nothing_of_the_environment_is_kept_unasked"
        ),
        "127 is told which PATH was searched": "test_a_job_that_ends_with_127_is_told_how_to_keep_the_callers_path",
        "--wait": (
            "test_the_id_goes_to_stderr_and_the_output_to_stdout test_output_comes_while_the_job_runs "
            "test_the_exit_code_is_the_jobs_own test_ctrl_c_leaves_the_job_in_the_queue_and_says_so "
            "test_it_is_for_one_job_and_its_output"
        ),
    },
    "views": {
        "list: --state, --tag, --match, --limit, --reverse": "test_list_chooses_jobs",
        "list: all jobs, dead ones included, in order of arrival": "test_list_holds_dead_jobs_too_in_order_of_arrival",
        "list --json, --ids": "test_list_json_prints_whole_jobs test_list_json_of_an_empty_queue_is_an_empty_array",
        "show: one job whole, its attempts": "test_show_json_holds_the_whole_job test_history_holds_each_attempt",
        "show: why it is not running": (
            "test_show_says_that_a_failed_job_waits_for_its_retry test_show_names_the_jobs_that_are_waited_for "
            "test_show_says_that_the_queue_is_paused test_show_says_that_no_worker_is_running "
            "test_a_limit_of_none_at_all_is_said_by_show_and_by_the_drain"
        ),
        "status: five counts, workers: N": (
            "test_status_counts_each_state_for_a_person test_status_without_a_worker_has_the_line_workers_0 "
            "test_status_counts_the_threads_of_all_workers"
        ),
        "status --json: jobs, workers, paused, oldest_pending_s, next_run_at, config, home": (
            "test_status_json_has_all_its_keys "
            "test_status_json_gives_the_age_of_the_oldest_pending_job_in_seconds "
            "test_status_json_gives_the_time_of_the_next_retry"
        ),
        "status --watch": (
            "test_a_frame_says_what_there_is test_it_shows_what_comes test_it_follows_the_size_of_the_terminal"
        ),
        "status --check": (
            "test_status_check_is_1_when_a_job_is_due_and_no_worker_lives test_status_check_is_0_when_no_job_is_due_yet"
        ),
        "logs: bytes as the job wrote them": "test_logs_prints_bytes_as_they_were_written",
        "logs --attempt: of several runs the newest": (
            "test_of_several_runs_with_one_attempt_number_the_newest_is_shown"
        ),
        "logs --follow ends with the job": "test_following_the_logs_of_a_running_job_ends_with_the_job",
        "logs --tail, --path": (
            "test_logs_tail_prints_the_last_lines test_logs_path_prints_the_file_that_holds_the_output"
        ),
        "wait: one job's own exit code": "test_wait_for_one_job_ends_with_its_exit_code",
        "wait for several, wait --all": (
            "test_wait_for_several_jobs_is_0_only_if_all_completed test_wait_for_all_leaves_out_what_was_over_before"
        ),
        "wait: a job purged meanwhile is 1": "test_wait_for_a_job_that_is_purged_meanwhile_is_1",
        "wait: an orphan without a worker is one warning": "test_wait_for_an_orphan_warns_once_and_goes_on_waiting",
        "wait --json, --timeout": (
            "test_wait_json_prints_one_value_that_names_each_job test_wait_that_runs_out_of_time_is_124"
        ),
        "stats: --since, --by, --json, --prometheus": (
            "test_stats_counts_what_ended test_since_leaves_out_what_ended_before "
            "test_by_tag_counts_a_job_under_each_of_its_tags test_by_command_has_a_line_a_command "
            "test_prometheus_reads_the_figures test_json_holds_no_nan"
        ),
    },
    "changes": {
        "cancel: a waiting job dies with the reason cancelled": "test_cancel_gives_the_reason_cancelled",
        "cancel: a running one is said to stop, and is dead once it is gone": (
            "test_cancel_of_a_running_job_says_that_it_is_stopping "
            "test_a_running_job_that_was_cancelled_is_in_the_dead_letter_queue_once_it_is_gone"
        ),
        "cancel: being cancelled 0, over 1": "test_cancel_refuses_a_job_that_is_over",
        "cancel runs no on_dead": "test_a_job_that_was_cancelled_while_it_ran_is_told_by_on_finish_alone",
        "retry: a failed job is due now, a dead one is revived": (
            "test_retry_makes_a_failed_job_due_now test_retry_revives_a_dead_job"
        ),
        "rerun: a new job like that one; prints the new id": "test_rerun_adds_a_job_like_that_one_whatever_its_state",
        "edit: --command, --timeout, --max-retries, --priority, --at, --env": (
            "test_edit_changes_what_it_is_told test_edit_refuses_no_more_attempts_than_were_made "
            "test_edit_refuses_a_job_that_is_over"
        ),
        "pause, resume": (
            "test_a_paused_queue_starts_nothing_and_lets_the_running_job_finish test_resume_starts_what_waited "
            "test_a_pause_survives_the_restart_of_the_workers test_status_says_that_the_queue_is_paused"
        ),
        "purge: --state, --older-than, --dry-run, --yes": (
            "test_purge_removes_finished_jobs test_purge_removes_the_logs_of_its_jobs "
            "test_a_dry_run_says_how_many_jobs_would_go"
        ),
        "purge asks on a terminal, needs --yes elsewhere": (
            "test_on_a_terminal_purge_asks_and_does_nothing_without_a_yes test_purge_without_a_terminal_needs_yes"
        ),
        "dlq list: id, attempts, outcome, last line; --match, --limit, --json": (
            "test_dlq_list_shows_attempts_and_exit_code test_dlq_list_shows_the_last_line_of_output "
            "test_dlq_list_chooses_by_text test_dlq_list_stops_at_its_limit"
        ),
        "dlq show": "test_dlq_show_names_the_job_and_its_end test_dlq_show_refuses_a_job_that_is_not_dead",
        "dlq retry: pending, attempts 0": "test_dlq_retry_brings_a_job_back_with_attempts_at_zero",
        "dlq retry --all, --match, --cancelled, --spread": (
            "test_dlq_retry_of_all_leaves_cancelled_jobs_out test_dlq_retry_of_all_that_match_leaves_the_others "
            "test_dlq_retry_of_all_takes_cancelled_jobs_too_where_it_is_told_so "
            "test_dlq_retry_spreads_the_starts_over_a_time"
        ),
        "dlq retry takes the options of edit": "test_dlq_retry_changes_the_job_on_its_way_back",
        "dlq purge: ids, --all, --older-than, --yes": (
            "test_dlq_purge_of_ids_removes_these_only test_dlq_purge_of_all_empties_the_dlq_only "
            "test_dlq_purge_of_all_that_are_older_keeps_the_younger"
        ),
    },
    "config": {
        "show, get, set, unset": (
            "test_config_show_holds_every_default_of_a_new_home test_config_get_prints_what_was_set "
            "test_config_takes_a_key_in_both_spellings"
        ),
        "keys with - or _": (
            "test_config_takes_a_key_in_both_spellings test_a_dashed_key_written_by_hand_is_that_setting_and_can_be_set"
        ),
        "unknown keys are refused with the nearest name": "test_an_unknown_key_is_refused_with_the_nearest_name",
        "values are checked before anything is written": (
            "test_bad_input_is_refused_and_changes_nothing "
            "test_a_setting_takes_good_values_and_refuses_bad_ones_with_its_name"
        ),
        "a damaged config.json is refused, never replaced": "test_a_damaged_config_is_refused_and_never_replaced",
        "the committed one holds every default": (
            "test_the_committed_stores_are_empty_and_the_settings_are_every_default"
        ),
        "max_retries": "test_a_setting_is_copied_into_a_new_job test_max_retries_of_0_and_of_1_both_mean_one_attempt",
        "backoff_base, backoff_max, backoff_jitter": (
            "test_the_waits_are_two_four_eight_seconds_by_default test_a_backoff_stays_within_its_bounds"
        ),
        "job_timeout": (
            "test_a_job_without_a_limit_of_its_own_has_the_one_of_the_settings "
            "test_a_job_over_its_time_limit_says_how_to_give_it_more_time"
        ),
        "no_retry_on": "test_an_exit_code_in_no_retry_on_of_the_settings_sends_a_job_to_the_dead_letter_queue_at_once",
        "grace_period": "test_a_job_that_ignores_sigterm_is_killed_after_the_grace_period",
        "worker_count": "test_without_count_a_worker_has_as_many_threads_as_the_settings_say",
        "limits": "test_a_limit_that_is_none_is_refused test_a_limit_of_none_at_all_is_said_by_show_and_by_the_drain",
        "runner": "test_a_new_runner_takes_effect_in_a_running_worker",
        "fsync": "test_a_setting_takes_good_values_and_refuses_bad_ones_with_its_name",
        "lock_timeout": "test_a_lock_held_too_long_is_a_store_error",
        "keep_completed": "test_a_worker_purges_what_was_completed_long_ago test_zero_keeps_everything",
        "log_max": (
            "test_the_newest_bytes_are_kept_from_a_line_on_and_the_rest_is_given_back "
            "test_fifty_megabytes_of_output_are_kept"
        ),
        "on_dead, on_finish": (
            "test_a_dead_job_runs_both_hooks_and_a_completed_one_the_second "
            "test_a_hook_gets_the_job_and_its_last_output_as_one_json_value "
            "test_a_death_without_a_worker_runs_no_hook "
            "test_the_output_of_a_hook_goes_to_the_workers_stderr_and_its_failure_is_a_warning"
        ),
        "paused": "test_pause_is_remembered test_resume_is_remembered",
        "settings take effect at once, in running workers too": (
            "test_a_new_backoff_takes_effect_in_a_running_worker "
            "test_a_changed_setting_does_not_reach_a_job_that_is_queued"
        ),
    },
    "worker": {
        "start: in the foreground until stopped": "test_worker_start_stays_in_the_foreground_until_it_is_stopped",
        "start: a line at the start and one for each finished attempt": (
            "test_a_worker_says_one_line_at_its_start test_a_worker_says_one_line_for_every_finished_attempt"
        ),
        "start --count": "test_a_worker_runs_as_many_jobs_at_once_as_count_says_and_never_more",
        "start --tag, --not-tag": (
            "test_a_worker_with_a_tag_runs_only_jobs_with_that_tag "
            "test_a_worker_with_not_tag_leaves_jobs_with_that_tag_alone"
        ),
        "start --drain": (
            "test_drain_ends_with_0_when_every_job_completed test_drain_ends_with_1_when_a_job_died_meanwhile "
            "test_drain_does_not_count_cancelled_jobs test_drain_waits_for_retries_and_for_delayed_jobs "
            "test_drain_waits_for_a_job_that_another_worker_runs "
            "test_drain_of_a_paused_queue_says_so_once_and_waits"
        ),
        "start --detach": (
            "test_a_detached_worker_is_ready_when_the_command_returns "
            "test_a_detached_worker_writes_its_log_below_the_queues_directory"
        ),
        "stop: all workers, returns when they are gone": (
            "test_worker_stop_stops_all_workers_of_the_home "
            "test_worker_stop_returns_0_only_when_the_workers_are_gone "
            "test_worker_stop_without_a_worker_is_done_already"
        ),
        "stop --now, --timeout": (
            "test_worker_stop_now_hands_the_job_back_without_using_an_attempt "
            "test_worker_stop_with_a_timeout_returns_1_when_a_worker_is_still_there"
        ),
        "list, --json": (
            "test_worker_list_json_without_a_worker_is_an_empty_array test_a_killed_worker_is_listed_no_more"
        ),
    },
    "doctor": {
        "checks every store and the journal": (
            "test_doctor_finds_nothing_wrong_after_a_drain test_doctor_names_a_damaged_file_and_leaves_it_alone"
        ),
        "--fix": "test_a_damaged_store_is_mended test_nothing_is_mended_while_a_worker_lives",
        "completion bash, zsh, fish: ids and states complete": (
            "test_a_tab_completes_ids_states_options_and_commands test_fish_completes_ids_states_options_and_commands"
        ),
        "a job that writes > /dev/stderr": "test_logs_help_warns_of_a_job_that_opens_dev_stderr",
    },
}

TESTS = Path(__file__).resolve().parent
TEXT = " ".join(promise for section in PROMISES.values() for promise in section)


@pytest.fixture(scope="module")
def there() -> set[str]:
    """The name of every test."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in TESTS.rglob("test_*.py")]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def options(command: click.Command, path: str = "") -> Iterator[tuple[str, str]]:
    """(command, option) of every option of every command."""
    for param in command.params:
        if isinstance(param, click.Option):
            yield path, param.opts[0]
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from options(child, f"{path} {name}".strip())


@pytest.mark.parametrize("section", PROMISES)
def test_every_promise_has_its_tests(section: str, there: set[str]) -> None:
    for promise, names in PROMISES[section].items():
        assert names.split(), f"no test holds the promise '{promise}'"
        assert not (missing := set(names.split()) - there), f"'{promise}' names tests that are not there: {missing}"


def test_every_option_and_every_setting_is_promised() -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", TEXT))
    assert not [(path, option) for path, option in options(queuectl.cli) if option not in named]
    assert not [name for name in queuectl.default_settings() if not re.search(rf"\b{name}\b", TEXT)]


def test_every_command_is_promised() -> None:
    for name in queuectl.cli.commands:
        assert re.search(rf"\b{name}\b", " ".join([*PROMISES, TEXT])), f"no promise of {name}"
