"""A reward server on this machine that does what a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server answers; `wait` holds it back until the event is set, and `cut` ends it in the middle."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait: threading.Event | None = None
    cut: bool = False


@dataclass
class Server:
    """Answers with `replies`, one after the other, and then with the scores of `score`."""

    url: str
    score: Callable[[str], float]
    key: str = "scores"
    replies: list[Reply] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def reply(self, body: bytes) -> Reply:
        if self.replies:
            return self.replies.pop(0)
        scores = [self.score(text) for text in json.loads(body)["completions"]]
        return Reply(body=json.dumps({self.key: scores}).encode())


@contextmanager
def reward_server(score: Callable[[str], float] = len) -> Iterator[Server]:
    """A server that scores each completion by its text."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.asked.append({"path": self.path, **json.loads(body)})
            state.headers.append(dict(self.headers.items()))
            reply = state.reply(body)
            if reply.wait is not None:
                reply.wait.wait(30)
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body) + reply.cut))
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, format: str, *args: object) -> None:
            """Silent: the tests read what was asked."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state = Server(f"http://127.0.0.1:{http.server_port}/score", score)
        thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield state
        finally:
            http.shutdown()
            thread.join()
