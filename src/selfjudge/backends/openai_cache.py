"""Answers of an API, kept on disk: what was asked once is never asked, and paid for, again.

    cache = Cache(cache_file(None))
    key = digest([url, payload])
    cache.put(key, answer)

A file of sqlite3 with one row per question: the digest of address and request, and the answer. Every answer is safe
from a kill when `put` returns. Questions are not in it, nor is the API key; several processes may share a file.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from selfjudge.errors import ConfigError

Answer = dict[str, Any]
PATIENCE = 60.0
"""Seconds to wait for another process that writes."""


def cache_file(given: str | None) -> Path:
    """`--api-cache`, or selfjudge/api.sqlite3 in the user's cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    if given is not None:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfjudge" / "api.sqlite3"


def digest(asked: Any) -> str:
    """SHA-256 of a JSON value, in hexadecimal; the order of the keys of an object does not count."""
    return sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Cache:
    """Digest -> answer, from any thread. Raises ConfigError for a file that cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("CREATE TABLE IF NOT EXISTS answers (digest TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from None

    def get(self, key: str) -> Answer | None:
        """The answer, None where there is none yet."""
        rows = self._execute("SELECT answer FROM answers WHERE digest = ?", (key,))
        return cast(Answer, json.loads(rows[0][0])) if rows else None

    def put(self, key: str, answer: Answer) -> None:
        """Keeps an answer, in place of an earlier one."""
        self._execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._file.close()

    def _execute(self, statement: str, values: tuple[str, ...]) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._file.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"--api-cache {self.path}: cannot be used as a cache ({error}); give another file, or delete it"
        )
