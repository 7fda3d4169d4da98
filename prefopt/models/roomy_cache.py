"""Keys and values of sampling, written in place.

Transformers' own cache concatenates: every token copies all keys and values of all layers into new memory, which on a
CPU takes longer than the products of a small model.

Shape suffixes: B rows, H heads, T positions, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer


def roomy_cache(config: PreTrainedConfig, positions: int) -> DynamicCache:
    """An empty cache whose layers have room from the start; layers that keep a window are as they were.

    Args:
        config: Of the model.
        positions: How many there are to be; more are taken too.
    """
    cache = DynamicCache(config=config)
    # Subclasses keep something else than all positions.
    cache.layers = [RoomyLayer(positions) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """One layer: what `keys` and `values` show is the beginning of larger tensors.

    Args:
        positions: T that there is room for at first.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, positions: int) -> None:
        super().__init__()
        self._room = positions
        self._kept: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add positions, [B, H, t, D] each; returns all of them, [B, H, T, D] each."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = 0 if self._kept is None else self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if self._kept is None or end > self._kept[0].shape[-2]:
            self._kept = self._with_room(key_states, value_states, start, end)
        keys, values = self._kept
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def _with_room(self, key_states: Tensor, value_states: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
        if end > self._room:
            self._room = max(end, 2 * start)
        larger = []
        for states, known in ((key_states, self.keys), (value_states, self.values)):
            memory = states.new_empty(*states.shape[:-2], self._room, states.shape[-1])
            if start:
                memory[..., :start, :] = known
            larger.append(memory)
        return larger[0], larger[1]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows, in the order given, [b]; only those are copied whose place changes."""
        if self._kept is None:
            return
        places = torch.arange(len(indices), device=indices.device)
        moved = places[indices != places]
        for memory in self._kept:
            memory[moved] = memory[indices[moved]]
        self._kept = (self._kept[0][: len(indices)], self._kept[1][: len(indices)])
        length = self.keys.shape[-2]
        self.keys, self.values = (memory[..., :length, :] for memory in self._kept)
