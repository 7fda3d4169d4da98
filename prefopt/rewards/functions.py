"""A Python function as a scorer, in the shape of TRL's reward functions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefopt.errors import DataError, InputError, PrefoptError
from prefopt.recipe.registered import Registered
from prefopt.records import Prompt, Score, conversation


class FunctionScorer:
    """Scores with a function of `prompts` and `completions`, both keyword arguments.

    `prompts` is a list of conversations, each a list of `{"role", "content"}`; `completions` a list of texts. It
    answers one finite number for each completion.

    Args:
        name: What messages call it.
        function: What is called.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self._function = function

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """One call for all completions; none where there are none.

        Raises:
            DataError: When the function does not answer one finite number for each completion.
            InputError: When it raises; the original is the cause.
        """
        if not completions:
            return []
        asked = [conversation(prompt) for prompt in prompts]
        try:
            found = self._function(prompts=asked, completions=list(completions))
        except PrefoptError:
            raise
        except Exception as error:
            raise InputError(
                f"the reward function '{self.name}' raised {type(error).__name__}: {error}",
                "it is called with prompts=[[{'role', 'content'}, …], …] and completions=[text, …]",
            ) from error
        return [Score(value) for value in self._values(found, len(completions))]

    def _values(self, found: object, count: int) -> list[float]:
        who = f"the reward function '{self.name}'"
        if isinstance(found, str | bytes | dict) or not hasattr(found, "__iter__") or not hasattr(found, "__len__"):
            raise DataError(f"{who} answered {_said(found)}, not a list with a number for each completion")
        if len(found) != count:
            raise DataError(f"{who} answered {len(found)} values for {count} completions")
        return [self._value(value, index) for index, value in enumerate(found)]

    def _value(self, found: Any, index: int) -> float:
        try:
            # Text that spells a number is no number; scalars of numpy and torch are.
            value = None if isinstance(found, str | bytes) else float(found)
        except (TypeError, ValueError, OverflowError):
            value = None
        if value is None or not math.isfinite(value):
            raise DataError(
                f"the reward function '{self.name}' answered {_said(found)} for completion {index}, and a reward is a "
                "finite number"
            )
        return value


def load_function(found: Registered, log: Callable[[str], None]) -> FunctionScorer:
    """Import a registered reward function; see `imported`.

    Raises:
        InputError: When it cannot be imported, or is none that can be called.
    """
    return FunctionScorer(found.name, imported(found, "reward function", log))


def imported(found: Registered, called: str, log: Callable[[str], None]) -> Callable[..., Any]:
    """Import a registered function.

    Args:
        found: Says where it is.
        called: What messages call it.
        log: Is told where the function is defined in another file than the one its package registers: only edits of
            the latter make a stage run again.

    Raises:
        InputError: When it cannot be imported, or is none that can be called.
    """
    where = f"the {called} '{found.name}' of {found.distribution} ({found.entry.value})"
    try:
        function = found.entry.load()
    except Exception as error:
        raise InputError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise InputError(f"{where} is {_said(function)}, and not a function")
    if inspect.iscoroutinefunction(function):
        raise InputError(f"{where} is asynchronous", "register a function that answers when it is called")
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is not None and Path(code.co_filename).resolve() != found.file.resolve():
        log(f"{where} is defined in {Path(code.co_filename).name}; what changes there makes no stage run again")
    checked: Callable[..., Any] = function
    return checked


def _said(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
