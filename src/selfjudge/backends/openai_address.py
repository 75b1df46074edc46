"""Where an API is and the key that it takes; nothing heavy, so that options can be checked first.

>>> base_url("http://127.0.0.1:8000/v1/")
'http://127.0.0.1:8000/v1'
"""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from selfjudge.errors import ConfigError

URL_VARIABLE = "OPENAI_BASE_URL"
KEY_VARIABLE = "OPENAI_API_KEY"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def base_url(given: str | None) -> str:
    """The address that `/chat/completions` is put behind: `--base-url`, or the environment's. Raises ConfigError."""
    url = (given or os.environ.get(URL_VARIABLE, "")).strip().rstrip("/")
    if not url:
        raise ConfigError(f"--base-url is needed by --backend openai (or set {URL_VARIABLE}): http://HOST:PORT/v1")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        raise ConfigError(f"--base-url {url}: not an address; give http://HOST:PORT/v1 or https://HOST/v1") from None
    if "@" in parts.netloc:
        raise ConfigError("--base-url holds a user name or a password; leave it out and give the key by --api-key-env")
    if not usable:
        raise ConfigError(f"--base-url {url}: not an address; give http://HOST:PORT/v1 or https://HOST/v1")
    return url


def api_key(variable: str) -> str | None:
    """The key in the environment variable; None where the usual one is not set. Raises ConfigError, never with the key.

    A name that cannot be a variable's is not repeated: it may be the key itself.
    """
    if not _NAME.fullmatch(variable):
        raise ConfigError("--api-key-env is the name of an environment variable that holds the key, not the key itself")
    key = os.environ.get(variable, "").strip()
    if not key and variable != KEY_VARIABLE:
        raise ConfigError(f"--api-key-env {variable}: this environment variable is not set")
    if not (key.isascii() and (key.isprintable() and " " not in key)):
        raise ConfigError(f"--api-key-env {variable}: its value holds characters that no key has; set it again")
    return key or None
