"""What the fault suites found, each in its smallest form."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from filelock import lock_descriptor

import queuectl
from tests.faults.effects import Fault, FaultyOs, standing_in

PROGRAM = Path(queuectl.__file__)


class Nth(FaultyOs):
    """Fails at the `number`-th effect of one kind, with that error; `on` a path that holds this."""

    def __init__(self, effect: str, number: int, what: str = "EIO", on: str = "") -> None:
        super().__init__(lock_descriptor)
        self._wanted, self._left, self._what, self._on = effect, number, what, on

    def _effect(self, name: str, real: Any, *args: Any, **more: Any) -> Any:
        if name == self._wanted and self._on in str(args[0]):
            self._left -= 1
            if not self._left:
                self._fault = Fault(len(self.trace) + 1, self._what)
        return super()._effect(name, real, *args, **more)


class Syncs(FaultyOs):
    """Writes down which file each sync was of."""

    def __init__(self) -> None:
        super().__init__(lock_descriptor)
        self.synced: list[int] = []

    def _effect(self, name: str, real: Any, *args: Any, **more: Any) -> Any:
        if name == "fsync":
            self.synced.append(os.fstat(args[0]).st_ino)
        return super()._effect(name, real, *args, **more)


def edit(path: Path, *more: dict[str, Any], **changes: Any) -> None:
    """As a person with an editor: change each record, and add some."""
    records = [{**record, **changes} for record in json.loads(path.read_text())]
    path.write_text(json.dumps([*records, *more], indent=2))


def test_a_cancel_that_fails_after_its_change_says_that_it_was_made(home, run):
    run("enqueue", "--id", "a", "true")
    with standing_in(queuectl, Nth("lock", 2)):
        answer = run("cancel", "a", code=None)
    assert answer.code == 0 or "was made" in answer.err or run("show", "a", "--json").json["state"] == "pending"


def test_a_setting_that_may_be_stored_says_so(home, run):
    run("config", "set", "max-retries", "4")
    with standing_in(queuectl, Nth("fsync", 2)):
        answer = run("config", "set", "max-retries", "5", code=3)
    assert "may have been stored" in answer.err or run("config", "get", "max-retries").out == "4\n"


ROW_FAILS = """
import errno, os
failed = []
class Os:
    def __getattr__(self, name):
        return getattr(os, name)
    def pwrite(self, fd, data, offset):
        if bytes(data).startswith(b'{"job"') and not failed:
            failed.append(1)
            raise OSError(errno.EIO, "injected")
        return os.pwrite(fd, data, offset)
queuectl.os = Os()
"""


def test_a_job_whose_row_cannot_be_written_does_not_run_twice_at_the_same_time(home, run, process):
    job = "mkdir held || { echo overlap > runs; exit 0; }; sleep 3; rmdir held"
    run("enqueue", "--id", "a", "--cwd", str(home), "--", "sh", "-c", job)
    process("worker", "start", "--drain", patch=ROW_FAILS)
    assert not (home / "runs").exists()


def test_a_store_that_loads_after_it_only_added_still_syncs(home, run):
    run("enqueue", "true")
    store = queuectl.open_store(str(home), print)
    queuectl.enqueue_job(store, dict(command="true", cwd="/"))
    store.follow()
    with standing_in(queuectl, FaultyOs(lock_descriptor)) as effects:
        store.sync()
    assert "fsync" in effects.trace


def test_a_fold_after_one_whose_directory_sync_failed_syncs_the_directory(home, run):
    run("enqueue", "true")
    store = queuectl.open_store(str(home), print)
    queuectl.enqueue_job(store, dict(command="true", cwd="/"))
    store.follow()
    looks: list[int] = []

    class Opens(FaultyOs):
        def _effect(self, name: str, real: Any, *args: Any, **more: Any) -> Any:
            if name == "open" and args[0] == str(home):
                looks.append(1)
                if len(looks) == 1:
                    raise OSError(errno.EIO, "Input/output error", args[0])
            return super()._effect(name, real, *args, **more)

    with standing_in(queuectl, Opens(lock_descriptor)):
        with pytest.raises(queuectl.StoreError):
            store.fold()
        store.fold()  # the renames may not be on the disk yet, and the new journal knows the new arrays alone
    assert len(looks) == 2


def test_a_cancel_whose_search_for_orphans_fails_says_that_it_was_made(home, run):
    run("enqueue", "--id", "runs", "true")
    store = queuectl.open_store(str(home), print)
    assert queuectl.take_turn(store, "9-dead", 0, None, True, queuectl.TagFilter()).claimed
    with standing_in(queuectl, Nth("open", 1, "EMFILE", on="9-dead")):
        answer = run("cancel", "runs", code=3)
    assert "was made" in answer.err
    assert "cancelled_at" in run("show", "runs", "--json").json


def test_a_worker_whose_directory_was_moved_away_does_not_write_beside_those_who_made_a_new_one(home, run):
    run("enqueue", "--id", "a", "true")
    store = queuectl.open_store(str(home), print)
    store.follow()
    os.rename(home / ".queuectl", home / "moved")
    run("enqueue", "--id", "b", "true")  # another lock: nothing keeps the two apart any more
    with pytest.raises(queuectl.StoreError, match="deleted or replaced"):
        queuectl.enqueue_job(store, dict(command="true", id="c", cwd="/"))


def test_a_sync_waits_for_the_one_that_another_thread_began(home, run):
    run("enqueue", "true")
    store = queuectl.open_store(str(home), print)
    queuectl.enqueue_job(store, dict(command="true", cwd="/"))
    begun, release = threading.Event(), threading.Event()

    class Slow(FaultyOs):
        def _effect(self, name: str, real: Any, *args: Any, **more: Any) -> Any:
            if name == "fsync":
                begun.set()
                assert release.wait(30)
            return super()._effect(name, real, *args, **more)

    with standing_in(queuectl, Slow(lock_descriptor)):
        threads = [threading.Thread(target=store.sync) for _ in range(2)]
        threads[0].start()
        assert begun.wait(30)
        threads[1].start()
        threads[1].join(0.2)
        early = not threads[1].is_alive()  # it would say that the change is on the disk
        release.set()
        for thread in threads:
            thread.join()
    assert not early


def test_the_name_of_a_new_home_is_synced_too(home, run):
    home.rmdir()
    with standing_in(queuectl, Syncs()) as syncs:
        run("enqueue", "true")
    assert home.parent.stat().st_ino in syncs.synced


def test_nothing_is_made_behind_a_symbolic_link_in_the_place_of_the_directory(home, run, tmp_path):
    target = tmp_path / "elsewhere"
    target.mkdir()
    (home / ".queuectl").symlink_to(target)
    run("enqueue", "true", code=3)
    assert list(target.iterdir()) == []


def test_an_array_that_is_edited_in_place_while_it_is_read_makes_no_traceback(home, run, monkeypatch):
    run("enqueue", "--id", "a", "true")
    opens = queuectl.Store._open_arrays

    def opened(store: queuectl.Store) -> None:
        edit(home / "jobs.json", {"id": "hand", "command": "true"})
        opens(store)
        edit(home / "jobs.json", {"id": "more", "command": "true"})  # an editor that writes into the same file

    monkeypatch.setattr(queuectl.Store, "_open_arrays", opened)
    assert "Try again" in run("list", code=3).err


def test_a_tail_that_cannot_be_kept_aside_leaves_no_file_at_each_try(home, run):
    run("enqueue", "--id", "a", "true")
    with open(home / ".queuectl" / "journal.jsonl", "ab") as journal:
        journal.write(b"12345678 {")
    with standing_in(queuectl, Nth("write", 1, "ENOSPC")):
        run("enqueue", "true", code=3)
    assert list(home.glob(".queuectl/aside/*")) == []


def test_a_record_that_the_disk_changed_is_a_storage_error_for_whoever_looks_for_what_waits(home, run):
    run("enqueue", "--id", "a", "true")
    run("enqueue", "--id", "b", "--priority", "1", "true")
    array = home / "jobs.json"
    times = array.stat()
    array.write_bytes(array.read_bytes().replace(b'"attempts"', b'"attempt_"'))
    os.utime(array, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "cannot be used" in run("cancel", "a", code=3).err


def running(worker: str) -> str:
    """An array that a person wrote: one job that runs in that worker."""
    job = {"id": "a", "command": "true", "state": "processing", "attempts": 1, "runs": 1, "worker": worker, "slot": 0}
    return json.dumps([job])


def test_a_job_of_a_worker_that_never_was_is_shown_and_taken_back(home, run, process):
    (home / "jobs.json").write_text(running("bob"))
    assert "its worker bob is dead" in run("show", "a").out
    process("worker", "start", "--drain")
    assert run("show", "a", "--json").json["state"] == "completed"


def test_the_name_of_a_worker_cannot_lead_to_another_file(home, run):
    text = running("../../dlq.json")
    (home / "jobs.json").write_text(text)
    answer = run("cancel", "a", code=3)
    assert "'worker' cannot be" in answer.err and (home / "jobs.json").read_text() == text
    assert (home / "dlq.json").read_text() == "[\n]\n"
