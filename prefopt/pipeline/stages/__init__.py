"""Kind of stage → the module that runs it, found by name and imported only in the stage's own process.

A stage module has `run(spec, inputs, context) -> StageResult`. Its revision is in `prefopt.pipeline.revisions`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from prefopt.errors import InputError
from prefopt.pipeline.context import StageFunction
from prefopt.pipeline.revisions import REVISIONS

SERVER = "prefopt.pipeline.server"
PRELOAD = "prefopt.pipeline.preload"


@dataclass(frozen=True)
class Registry:
    """Which module runs which kind. It holds names only, so it travels to other processes as it is.

    Attributes:
        modules: Kind → module, for kinds that are not run by `prefopt.pipeline.stages.KIND`.
        revisions: Kind → revision, where it differs from the table.
        preload: Modules that the server of stage processes imports before the first of them starts.
        uses_torch: Whether torch is seeded and made deterministic before a stage runs.
    """

    modules: Mapping[str, str] = field(default_factory=dict)
    revisions: Mapping[str, int] = field(default_factory=dict)
    preload: tuple[str, ...] = (PRELOAD,)
    uses_torch: bool = True

    def module(self, kind: str) -> str:
        """Name of the module that runs a kind.

        Raises:
            InputError: For a kind that nothing runs.
        """
        if kind in self.modules:
            return self.modules[kind]
        if kind not in REVISIONS:
            raise InputError(f"nothing runs stages of kind {kind!r}", f"kinds: {', '.join(REVISIONS)}")
        return f"{__name__}.{kind}"

    def revision(self, kind: str) -> int:
        """Revision of the code of a kind; imports nothing.

        Raises:
            InputError: For a kind that nothing runs.
        """
        if kind in self.revisions:
            return self.revisions[kind]
        self.module(kind)
        return REVISIONS.get(kind, 0)


def revision(kind: str) -> int:
    """Revision of the code of a kind; imports nothing.

    Raises:
        InputError: For a kind that nothing runs.
    """
    return Registry().revision(kind)


def stage_function(module: str) -> StageFunction:
    """Imports a stage module and returns its `run`."""
    return cast(StageFunction, importlib.import_module(module).run)
