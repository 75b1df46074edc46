"""A chat API on 127.0.0.1 for tests, as good or as bad as its `behave` says; it keeps every request that it got.

with serving(lambda request: labels({"Yes": 0.7, "No": 0.2})) as server:
    backend = OpenAIBackend("tiny", BackendOptions(base_url=server.url, ...))
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """`body` is JSON unless it is text; `cut` closes the connection in the middle of it."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


Behaviour = Callable[[dict[str, Any]], Reply]


def labels(probabilities: Mapping[str, float], sampled: str | None = None) -> Reply:
    """An answer that lists these tokens."""
    listed = [{"token": token, "logprob": math.log(p) if p else -9999.0} for token, p in probabilities.items()]
    first = {"token": sampled or listed[0]["token"], "logprob": listed[0]["logprob"], "top_logprobs": listed}
    message = {"role": "assistant", "content": first["token"]}
    choice = {"index": 0, "message": message, "finish_reason": "length", "logprobs": {"content": [first]}}
    return Reply({"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 1}})


def text(content: Any, finish_reason: str = "stop") -> Reply:
    """An answer that is a text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    return Reply({"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5}})


def error(status: int, message: str, **headers: str) -> Reply:
    """An error in the words of the API."""
    return Reply(
        {"error": {"message": message, "type": "x"}}, status, {k.replace("_", "-"): v for k, v in headers.items()}
    )


class Server:
    """`requests` are the bodies in their order, `keys` the Authorization headers."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(body)
                server.keys.append(self.headers.get("Authorization"))
                assert self.path == "/v1/chat/completions"
                self._send(server.behave(body))

            def _send(self, reply: Reply) -> None:
                content = (reply.body if isinstance(reply.body, str) else json.dumps(reply.body)).encode()
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if reply.cut else content)
                self.close_connection = reply.cut

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing on stderr."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@contextmanager
def serving(behave: Behaviour) -> Iterator[Server]:
    server = Server(behave)
    try:
        yield server
    finally:
        server.close()


def in_turn(*replies: Reply) -> Behaviour:
    """These replies one after the other, the last one ever after."""
    remaining = list(replies)
    lock = threading.Lock()

    def behave(_: dict[str, Any]) -> Reply:
        with lock:
            return remaining.pop(0) if len(remaining) > 1 else remaining[0]

    return behave
