"""The cache of sampling against transformers' own: the same keys and values, whatever is added and whoever leaves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicSlidingWindowLayer

from prefopt.models.roomy_cache import RoomyLayer, roomy_cache

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
CONFIG = LlamaConfig(**SIZES)


def added(cache: DynamicCache, rows: int, length: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, 2, rows, 1, length, 4, generator=generator)
    return [cache.update(states[layer, 0], states[layer, 1], layer) for layer in range(2)]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.lists(st.tuples(st.integers(1, 5), st.randoms()), min_size=1, max_size=8))
def test_the_same_as_transformers_cache(room: int, steps: list) -> None:
    ours, theirs, rows = roomy_cache(CONFIG, room), DynamicCache(config=CONFIG), 6
    assert ours.get_seq_length() == theirs.get_seq_length() == 0
    for seed, (length, luck) in enumerate(steps):
        for got, expected in zip(added(ours, rows, length, seed), added(theirs, rows, length, seed), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(1, 0) == theirs.get_mask_sizes(1, 0)
        stay = torch.tensor(luck.sample(range(rows), luck.randint(1, rows)))
        ours.batch_select_indices(stay)
        theirs.batch_select_indices(stay)
        rows = len(stay)


def test_nothing_is_copied_while_there_is_room() -> None:
    cache = roomy_cache(CONFIG, 8)
    places = {layer[0].data_ptr() for length in (5, 1, 2) for layer in added(cache, 3, length, 0)}
    assert len(places) == 2
    assert added(cache, 3, 1, 0)[0][0].data_ptr() not in places


def test_layers_that_keep_a_window_are_left_as_they_were() -> None:
    layers = roomy_cache(MistralConfig(**SIZES, sliding_window=4), 8).layers
    assert [type(layer) for layer in layers] == [DynamicSlidingWindowLayer] * 2
    assert [type(layer) for layer in roomy_cache(CONFIG, 8).layers] == [RoomyLayer] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_type_is_that_of_the_model(dtype: torch.dtype) -> None:
    keys, values = roomy_cache(CONFIG, 4).update(torch.ones(1, 1, 2, 4, dtype=dtype), torch.ones(1, 1, 2, 4), 0)
    assert keys.dtype == dtype and values.dtype == torch.float32
