"""A server that scores, behind one POST: what it answers, and how long it is waited for."""

from __future__ import annotations

import email.utils
import ipaddress
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException, IncompleteRead
from typing import Any
from urllib.parse import urlsplit

from prefopt.errors import DataError, EnvironmentFault
from prefopt.records import Prompt, Score, conversation

TRIES = 5
LONGEST_PAUSE = 120.0  # seconds, whatever a server asks for
SHOWN = 200
_LONGEST_ANSWER = 1 << 24
_BUSY = 429


class _UnavailableError(Exception):
    """Worth another try, perhaps after so many seconds."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves redirects alone: urllib would turn the POST into a GET, and send the token to the other host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Says that there is nowhere else to go."""
        return


class RemoteScorer:
    """Scores by HTTP: POST `{"prompts": [[{"role", "content"}, …], …], "completions": […]}` as JSON.

    The answer is `{"scores": […]}` or, as OpenRLHF's reward servers have it, `{"rewards": […]}`: one finite number for
    each completion. Connection errors, timeouts, 429 and 5xx are tried again, `TRIES` times in all, after pauses that
    double, or as long as `Retry-After` says. Proxies of the environment are used, except for this machine.

    Args:
        url: http or https.
        name: What messages call it.
        timeout: Seconds of one try.
        batch_size: Completions of a request.
        token_env: Environment variable whose value is sent as `Authorization: Bearer`; it is never shown or kept.
        pause: Seconds before the second try.

    Raises:
        EnvironmentFault: When the variable is not set, or holds what no header can.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        timeout: float = 60.0,
        batch_size: int = 64,
        token_env: str | None = None,
        pause: float = 1.0,
    ) -> None:
        self.name = name
        self._url = url
        self._timeout = timeout
        self._batch_size = batch_size
        self._token = _token(token_env) if token_env is not None else None
        self._pause = pause
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if _is_here(urlsplit(url).hostname or ""):
            handlers.append(urllib.request.ProxyHandler({}))
        self._open: Callable[..., Any] = urllib.request.build_opener(*handlers).open

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Scores in the order of the completions, `batch_size` of them in a request.

        Raises:
            EnvironmentFault: When the server cannot be reached or is at fault, after all tries.
            DataError: When it refuses the request, or answers something else.
        """
        values: list[float] = []
        for start in range(0, len(completions), self._batch_size):
            part = slice(start, start + self._batch_size)
            asked = [conversation(prompt) for prompt in prompts[part]]
            body = json.dumps({"prompts": asked, "completions": list(completions[part])}).encode()
            values += self._scores(self._answer(body), len(asked))
        return [Score(value) for value in values]

    def _answer(self, body: bytes) -> bytes:
        pause = self._pause
        for tried in range(1, TRIES + 1):
            try:
                return self._post(body)
            except _UnavailableError as error:
                if tried == TRIES:
                    raise EnvironmentFault(
                        f"{self.name} gave no scores in {TRIES} tries: {self._without_token(str(error))}",
                        "is the reward server running, and fast enough for 'timeout' and 'batch_size'?",
                    ) from error
                time.sleep(min(pause if error.after is None else max(error.after, 0.0), LONGEST_PAUSE))
                pause *= 2
        raise AssertionError("the last try returns or raises")

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "prefopt"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
        try:
            with self._open(request, timeout=self._timeout) as response:
                answer: bytes = response.read(_LONGEST_ANSWER + 1)
                if response.length and len(answer) <= _LONGEST_ANSWER:  # `read` of a number says nothing of it
                    raise IncompleteRead(answer, response.length)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            late = isinstance(reason, TimeoutError)
            said = (
                "the answer breaks off" if isinstance(reason, IncompleteRead) else str(reason) or type(reason).__name__
            )
            raise _UnavailableError(f"no answer within {self._timeout:g} seconds" if late else said) from error
        if len(answer) > _LONGEST_ANSWER:
            raise self._malformed(answer, f"more than {_LONGEST_ANSWER} bytes")
        return answer

    def _refused(self, error: urllib.error.HTTPError) -> None:
        """Raises what an answer other than 200 means."""
        if error.code == _BUSY or error.code >= 500:
            raise _UnavailableError(f"HTTP {error.code} {error.reason}", _retry_after(error.headers.get("Retry-After")))
        if 300 <= error.code < 400:
            raise DataError(
                f"{self.name} answered HTTP {error.code}: it is at {error.headers.get('Location')}",
                "write that address as 'url'",
            )
        try:
            text = error.read(_LONGEST_ANSWER)
        except (OSError, HTTPException):
            text = b""
        raise DataError(f"{self.name} refused the request with HTTP {error.code} {error.reason}: {self._shown(text)}")

    def _scores(self, answer: bytes, count: int) -> list[float]:
        try:
            document = json.loads(answer)
        except ValueError as error:
            raise self._malformed(answer, "no JSON") from error
        keys = [key for key in ("scores", "rewards") if isinstance(document, dict) and key in document]
        if not keys or not isinstance(document[keys[0]], list):
            raise self._malformed(answer, 'no {"scores": […]}')
        found = document[keys[0]]
        if len(found) != count:
            raise self._malformed(answer, f"{len(found)} scores for {count} completions")
        for value in found:
            if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
                raise self._malformed(answer, f"{json.dumps(value)[:40]}, which is no finite number")
        return [float(value) for value in found]

    def _malformed(self, answer: bytes, what: str) -> DataError:
        return DataError(
            f"{self.name} answered {what}: {self._shown(answer)}", 'a reward server answers {"scores": [number, …]}'
        )

    def _shown(self, answer: bytes) -> str:
        return self._without_token(answer.decode("utf-8", "replace"))[:SHOWN]

    def _without_token(self, text: str) -> str:
        return text.replace(self._token, "[redacted]") if self._token else text


def _token(variable: str) -> str:
    token = os.environ.get(variable, "").strip()
    if not token:
        raise EnvironmentFault(
            f"the environment variable {variable}, which 'token_env' names, is not set", f"export {variable}=…"
        )
    if not (token.isascii() and token.isprintable()):
        raise EnvironmentFault(f"what is in {variable} is no token: it has characters that no HTTP header can have")
    return token


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False


def _retry_after(value: str | None) -> float | None:
    """Seconds that a server asks for, as a number or a date; None where it asks for none."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return seconds if math.isfinite(seconds) else None
