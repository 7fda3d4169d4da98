"""prefopt: from a base language model and human preferences to an aligned LoRA adapter, with evidence.

The package is lazy: importing it imports neither torch nor pydantic, so that the shell stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefopt.api import run as run
    from prefopt.recipe.schema import Recipe as Recipe

__version__ = "0.1.0"
__all__ = ["Recipe", "__version__", "run"]


def __getattr__(name: str) -> Any:
    if name == "Recipe":
        from prefopt.recipe.schema import Recipe

        return Recipe
    if name == "run":
        from prefopt.api import run

        return run
    raise AttributeError(f"module 'prefopt' has no attribute {name!r}")
