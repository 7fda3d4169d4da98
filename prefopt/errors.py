"""Every error prefopt raises on purpose, and the exit code of the process that ends with it.

::

    PrefoptError
    ├── InputError            2   the recipe or the data is invalid; nothing was started
    │   ├── RecipeError       2   a list of problems, each with file:line
    │   └── DataError         2   a data set, named with row and column
    ├── EnvironmentFault      3   disk, network, key, lock, device
    ├── TrainingDiverged      4   NaN, Inf or an explosion; never looks like convergence
    ├── IntegrityError        5   a file is not what its manifest says, or is not safe to read
    ├── GateRefused           6   a gate or a guard said no
    └── Interrupted          75   stopped on purpose or waiting for people: run the same command again

A message says what is wrong, where, what was expected, and what to do about it; `remedy` holds the last part so that
the command line can set it apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

# Characters that end a line, move a terminal's cursor, change its colours or turn text around; halves of characters.
_ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str) -> str:
    r"""Text in which a user's file may be quoted, with what would break the line written out, as in `\n`."""
    return _ACTING.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


class PrefoptError(Exception):
    """Base of all errors a user can cause or meet.

    Args:
        message: What is wrong and where, in one line.
        remedy: What the user can do about it, in one line; empty when the message says it all.
    """

    exit_code: int = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message

    def __reduce__(self) -> tuple[type[PrefoptError], tuple[object, ...]]:
        # Errors cross the process border between a stage's worker and the runner.
        return type(self), (self.message, self.remedy)


class InputError(PrefoptError):
    """The recipe or the data is invalid."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe.

    Attributes:
        where: `file:line`, or the file alone where no line is known.
        path: The dotted key, such as `stages.dpo.learning_rate`.
        message: What is wrong and what was expected.
        remedy: A suggestion such as `did you mean 'beta'?`, or empty.
    """

    where: str
    path: str
    message: str
    remedy: str = ""

    def __post_init__(self) -> None:
        for each in fields(self):  # keys and values of the file are quoted in all of them
            object.__setattr__(self, each.name, one_line(getattr(self, each.name)))

    def __str__(self) -> str:
        key = f" {self.path}:" if self.path else ""
        return f"{self.where}:{key} {self.message}" + (f" ({self.remedy})" if self.remedy else "")


class RecipeError(InputError):
    """A recipe that cannot be run, with every problem that could be found in one pass.

    Args:
        problems: At least one.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        if not problems:
            raise ValueError("RecipeError needs at least one problem")
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type[PrefoptError], tuple[object, ...]]:
        return type(self), (self.problems,)


class DataError(InputError):
    """A data set that cannot be used, named with file, row and column."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(one_line(message), one_line(remedy))  # names of columns and values are quoted in both


class EnvironmentFault(PrefoptError):
    """The machine cannot do it: disk, network, key, lock or device."""

    exit_code = 3


class TrainingDiverged(PrefoptError):
    """A loss, gradient or weight stopped being finite, or exploded."""

    exit_code = 4


class IntegrityError(PrefoptError):
    """A file differs from its manifest, or cannot be read safely."""

    exit_code = 5


class GateRefused(PrefoptError):
    """A `require:` gate or a training guard said no."""

    exit_code = 6


class Interrupted(PrefoptError):
    """Stopped by a signal after saving, or waiting for people; the same command goes on."""

    exit_code = 75


_NO_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, CUDA's, or that of torch on a CPU, which has no own type."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)
