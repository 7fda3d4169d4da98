"""Texts without the values of environment variables that look like secrets, and without credentials in URLs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

REDACTED = "[redacted]"

SECRET_VARIABLE = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?(?:$|_)", re.IGNORECASE)
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s:@]*:?[^/\s@]*@")
_SHORTEST_SECRET = 8  # a shorter value would redact ordinary words


def secrets(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Secret-looking values and the names of their variables, the longest value first."""
    environ = os.environ if environ is None else environ
    found = {v: k for k, v in environ.items() if SECRET_VARIABLE.search(k) and len(v) >= _SHORTEST_SECRET}
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def without_values(text: str, environ: Mapping[str, str] | None = None) -> str:
    """The text without the values of secret-looking environment variables."""
    for value in secrets(environ):
        text = text.replace(value, REDACTED)
    return text


def redact(text: str, environ: Mapping[str, str] | None = None) -> str:
    """The text without the values of secret-looking environment variables and without credentials in URLs.

    Args:
        text: Anything that is about to be shown, kept or sent.
        environ: The environment; the process's own by default.
    """
    return _URL_CREDENTIALS.sub(f"{REDACTED}@", without_values(text, environ))


def as_variables(value: object, environ: Mapping[str, str] | None = None) -> object:
    """A tree of JSON values in which every secret is again the variable that it came from, as in `${HF_TOKEN}`."""
    if isinstance(value, str):
        for secret, name in secrets(environ).items():
            value = value.replace(secret, f"${{{name}}}")
        return value
    if isinstance(value, Mapping):
        return {key: as_variables(item, environ) for key, item in value.items()}
    return [as_variables(item, environ) for item in value] if isinstance(value, list) else value
