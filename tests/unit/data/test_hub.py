"""The Hub's answers, given by a server on this machine to a process of its own: its address is read at import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

ANSWERS = {
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "private": (401, {}),
    "missing": (404, {"X-Error-Code": "RepoNotFound"}),
    "revision": (404, {"X-Error-Code": "RevisionNotFound"}),
    "busy": (429, {}),
    "broken": (500, {}),
}
SCRIPT = """
import json, sys, time
from prefopt.data.sources import read_rows
from prefopt.errors import PrefoptError
from prefopt.recipe.schema import DataSpec
for path in sys.argv[1:]:
    start = time.monotonic()
    try:
        rows = list(read_rows(DataSpec(path=path, revision="v1"), lambda line: None))
    except PrefoptError as error:
        print(json.dumps([path, error.exit_code, str(error), time.monotonic() - start]))
    else:
        print(json.dumps([path, 0, str(len(rows)), 0]))
"""


class _Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        repo = self.path.split("/")[4]
        if repo == "dripping":  # never silent for long, so that the timeout of a read does not end it
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                for _ in range(30):
                    self.wfile.write(b" ")
                    time.sleep(1)
            return
        status, headers = ANSWERS.get(repo, (404, {}))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "2"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: object) -> None:
        """Keeps the test's output quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def ask(tmp_path, repos: list[str], **environment: str) -> dict[str, tuple[int, str, float]]:
    variables = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", **environment}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *repos], env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return {path: (code, message, seconds) for path, code, message, seconds in answers}


def test_what_the_hub_answers_names_the_repository_and_a_remedy(hub, tmp_path):
    answers = ask(tmp_path, [f"owner/{name}" for name in ANSWERS], HF_ENDPOINT=hub)
    says = {
        "gated": "is gated (accept its terms",
        "private": "was not found on the Hub, or is private (check `path`",
        "missing": "was not found on the Hub, or is private (check `path`",
        "revision": "does not exist on the Hub (check `revision`",
        "busy": "limits requests",
        "broken": "HF_HUB_OFFLINE=1 uses a cached copy",
    }
    for name, expected in says.items():
        code, message, seconds = answers[f"owner/{name}"]
        assert code == 3 and f"'owner/{name}' at revision 'v1'" in message and expected in message, message
        assert seconds < 15


@pytest.mark.slow
def test_a_hub_that_does_not_come_to_an_end_is_given_up_within_fifteen_seconds(hub, tmp_path):
    code, message, seconds = ask(tmp_path, ["owner/dripping"], HF_ENDPOINT=hub)["owner/dripping"]
    assert code == 3 and "could not be reached" in message
    assert seconds < 15


def test_a_refused_connection_is_reported_at_once(tmp_path):
    code, message, seconds = ask(tmp_path, ["owner/any"], HF_ENDPOINT="http://127.0.0.1:9")["owner/any"]
    assert code == 3 and "could not be reached for data set 'owner/any'" in message and "check the network" in message
    assert seconds < 15


def test_offline_says_so_and_asks_nobody(tmp_path):
    code, message, _ = ask(tmp_path, ["owner/any"], HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")["owner/any"]
    assert code == 3 and "not in the cache" in message and "unset HF_HUB_OFFLINE" in message


def test_what_is_no_repository_name_is_a_data_error(tmp_path):
    code, message, _ = ask(tmp_path, ["bad name!"], HF_ENDPOINT="http://127.0.0.1:9")["bad name!"]
    assert code == 2 and "'bad name!' is neither a file nor a Hub id" in message
