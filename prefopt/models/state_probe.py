"""Numbers read off the states that tokens are drawn from, while a model samples: no pass of their own is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from torch import Tensor, nn


class StateProbe:
    """Listens at the head of a language model.

    Args:
        say: Takes states [b, H], and gives a number for each, [b].
    """

    def __init__(self, say: Callable[[Tensor], Tensor]) -> None:
        self._say = say
        self._heard: Tensor | None = None

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        """Within the block the states of the last position are heard whenever the model calls its head.

        Args:
            model: A causal language model.
        """
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        hook = base.get_output_embeddings().register_forward_pre_hook(self._hear)
        try:
            yield
        finally:
            hook.remove()

    def _hear(self, head: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self._heard = arguments[0][:, -1]

    def take(self) -> list[Tensor]:
        """What is said of the states of the last pass, [b]; nothing where the model has not called its head."""
        heard, self._heard = self._heard, None
        return [] if heard is None else [self._say(heard).float()]
