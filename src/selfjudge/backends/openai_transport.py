"""Requests to an OpenAI-compatible server, sent again where that helps.

    transport = Transport("http://127.0.0.1:8000/v1", key=None, sleep=time.sleep)
    answer = transport.post({"model": "tiny", "messages": [...], "max_tokens": 1})

Sent again after a growing, random wait (or as long as the server says): overload and failures of the server (429, 500,
502, 503, 504), connections that fail or are cut, answers that are no answers. Everything else is the caller's to mend.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, cast

import httpx

from selfjudge.backends.openai_answers import Answer, is_answer
from selfjudge.errors import StepError

RETRIED = frozenset({429, 500, 502, 503, 504})
ATTEMPTS = 8
FIRST_ATTEMPTS = 3
"""Attempts at connecting to a server that has not been reached yet: its address may be wrong."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds between attempts: the first, doubled after each, and the longest."""
PATIENCE = 600.0
"""Seconds that an answer may take, and the longest wait that a server may ask for."""
CONNECT_SECONDS = 20.0
MESSAGE_CHARACTERS = 300


class Refused(Exception):
    """The server does not take the request; `status` is its HTTP status, the text its own message in one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Failure(NamedTuple):
    """An attempt that may be made again; `wait` in seconds where the server says how long."""

    problem: str
    wait: float | None = None
    reached: bool = True


class Transport:
    """Posts to one server, from any thread."""

    def __init__(
        self,
        base_url: str,
        key: str | None,
        sleep: Callable[[float], object],
        jitter: Callable[[], float] | None = None,
    ) -> None:
        """`jitter` gives numbers from 0 to 1: waits are between half and all of what they could be."""
        self.base_url = base_url
        self.retries = 0
        self._key = key
        self._sleep = sleep
        self._jitter = jitter or random.random
        self._reached = False
        self._lock = threading.Lock()
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(PATIENCE, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None),
        )

    def post(self, payload: Answer) -> Answer:
        """The server's answer. Raises Refused, or StepError when it has failed too often."""
        attempt = 1
        while isinstance(outcome := self._attempt(payload), Failure):
            self._give_up_after(attempt, outcome)
            with self._lock:
                self.retries += 1
            self._sleep(self._wait(attempt) if outcome.wait is None else outcome.wait)
            attempt += 1
        return outcome

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _attempt(self, payload: Answer) -> Answer | Failure:
        try:
            response = self._client.post(f"{self.base_url}/chat/completions", json=payload)
        except httpx.TransportError as error:
            reached = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            return Failure(self._line(str(error) or type(error).__name__), reached=reached)
        except httpx.DecodingError as error:
            return Failure(self._line(f"an answer that cannot be read ({error})"))
        self._reached = True
        if response.status_code in RETRIED:
            return Failure(f"HTTP {response.status_code}: {self._message(response)}", _retry_after(response))
        if response.status_code != 200:
            raise Refused(response.status_code, self._message(response))
        answer = _parsed(response.text if self._key is None else response.text.replace(self._key, "[key]"))
        return cast(Answer, answer) if is_answer(answer) else Failure(f"no answer but {self._message(response)!r}")

    def _give_up_after(self, attempt: int, failure: Failure) -> None:
        unreached = not self._reached and not failure.reached
        if failure.wait is not None and failure.wait > PATIENCE:
            end = f"asks to wait {failure.wait:.0f} seconds ({failure.problem})"
        elif attempt >= (FIRST_ATTEMPTS if unreached else ATTEMPTS):
            what = "cannot be reached" if not failure.reached else "fails"
            end = f"{what} ({failure.problem}), {attempt} attempts"
        else:
            return
        raise StepError(f"{self.base_url}: {end}; what it has answered is kept, the same command goes on from here")

    def _wait(self, attempt: int) -> float:
        return min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT) * (0.5 + 0.5 * self._jitter())

    def _message(self, response: httpx.Response) -> str:
        """What the server says, in one line; its error message where the body has one."""
        return self._line(_said(_parsed(response.text)) or response.text or response.reason_phrase or "no message")

    def _line(self, text: str) -> str:
        shown = " ".join((text if self._key is None else text.replace(self._key, "[key]")).split())
        return shown if len(shown) <= MESSAGE_CHARACTERS else shown[:MESSAGE_CHARACTERS] + "..."


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _said(body: Any) -> str:
    """The message in an error body: {"error": {"message"}}, {"error"}, {"message"} or {"detail"}; empty without."""
    if isinstance(body, list) and body:
        return _said(body[0])
    if not isinstance(body, dict):
        return ""
    fields = cast(dict[str, Any], body)
    found = fields.get("error") or fields.get("message") or fields.get("detail") or ""
    return _said(cast(Any, found)) if isinstance(found, dict) else str(found)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, from a number or a date; None without the header or where it is neither."""
    value = response.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))  # in this order 0 for "nan"
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=timezone.utc)
    return max(0.0, (until - datetime.now(timezone.utc)).total_seconds())
