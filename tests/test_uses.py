"""The README's three uses, run as they stand there, by a user who has a home directory and little else."""

from __future__ import annotations

import http.server
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PROGRAM
from real_processes import Call, readme_block

pytest_plugins = ["worker_fixtures"]
pytestmark = pytest.mark.usefixtures("nothing_left", "quick")

# What a machine of the tests need not have: a program that makes pictures smaller, and one that sends mail.
CONVERT = 'grep -q picture "$1" || { echo "$1: no picture" >&2; exit 1; }; [ "$2" = -resize ] && cut -c 1-4 "$1" > "$4"'
MAIL = '{ echo "to $3: $2"; cat; } >> "$HOME/mailbox"'


@pytest.fixture
def account(tmp_path: Path, home: Path) -> Path:
    folder = tmp_path / "me"
    (folder / "bin").mkdir(parents=True)
    queuectl = f'exec {shlex.quote(sys.executable)} {shlex.quote(str(PROGRAM))} "$@"'
    for name, text in (("queuectl", queuectl), ("convert", CONVERT), ("mail", MAIL)):
        script(folder / "tools" / name, f"#!/bin/sh\n{text}\n")
    return folder


def script(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def sh(account: Path, home: Path) -> Call:
    """`sh(block)`: those lines, typed in the home directory; what they print."""
    env = {"HOME": str(account), "QUEUECTL_HOME": str(home), "PATH": f"{account / 'tools'}:/usr/bin:/bin"}

    def call(lines: str, code: int = 0) -> str:
        done = subprocess.run(
            ["/bin/sh", "-ec", lines], cwd=account, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
        assert done.returncode == code, f"{lines}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return call


def test_pictures_become_thumbnails_and_then_an_album(sh, account, jobs):
    photos = account / "photos"
    photos.mkdir()
    for name in ("one", "two", "a long name"):
        (photos / f"{name}.jpg").write_text(f"{name} picture")
    (photos / "two.jpg").write_text("damaged")
    sh(readme_block("pictures"), code=1)  # a drain in which a job died
    assert jobs()["album"]["state"] == "dead" and not (account / "album.tar").exists()
    (photos / "two.jpg").write_text("two picture")
    sh("queuectl dlq retry --all; queuectl worker start --drain")
    assert {job["state"] for job in jobs().values()} == {"completed"}
    assert "thumbs/a long name.jpg" in sh("tar -tf album.tar") and "thumbs/two.jpg" in sh("tar -tf album.tar")


def test_a_backup_is_made_each_night_and_a_mail_says_where_it_was_not(sh, account, jobs):
    script(account / "bin/backup", readme_block("backup-script"))
    (night,) = [line for line in readme_block("crontab").splitlines() if "--unique" in line]
    night = night.partition("*   ")[2].replace("/home/me", str(account))
    sh(readme_block("backup"))
    (account / "documents").mkdir()
    (account / "documents/letter").write_text("dear")
    sh(f"{night}; {night}; queuectl worker start --drain")
    (archive,) = (account / "backups").iterdir()
    assert "documents/letter" in sh(f"tar -tzf {archive}") and len(jobs()) == 1
    shutil.rmtree(account / "documents")
    sh(f"{night}; queuectl worker start --drain", code=1)
    (dead,) = [job for job in jobs().values() if job["state"] == "dead"]
    subject, _, body = (account / "mailbox").read_text().partition("\n")
    assert subject == f"to me@example.org: {dead['id']} is dead"
    told = json.loads(body)
    assert (told["id"], told["attempts"]) == (dead["id"], 5) and "documents" in told["output"]


@pytest.fixture
def flaky_server() -> Iterator[int]:
    """The port of a server whose page comes the third time it is asked for, and where nothing else is."""
    asked: list[str] = []

    class Flaky(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            code = 404 if self.path != "/page" else 503 if asked.count("/page") <= 2 else 200
            self.send_response(code)
            self.end_headers()
            self.wfile.write(b"the page\n" if code == 200 else b"")

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_page_is_fetched_from_a_server_that_fails_twice(sh, account, jobs, flaky_server):
    if not shutil.which("curl", path="/usr/bin:/bin"):
        pytest.skip("curl is not here")
    script(account / "bin/fetch", readme_block("fetch-script"))
    sh(readme_block("fetch").replace("localhost:8000", f"127.0.0.1:{flaky_server}"))
    sh("queuectl worker start --drain --count 2", code=1)  # one is gone
    page, gone = jobs()["page"], jobs()["gone"]
    assert (page["state"], page["attempts"]) == ("completed", 3)
    assert (gone["state"], gone["attempts"], gone["exit_code"]) == ("dead", 1, 65)
    assert (account / "page.html").read_text() == "the page\n"
    assert sh("queuectl logs gone") == "HTTP 404\n"
    assert not os.path.exists(account / "gone.html")
