"""One forward pass over pairs that share their prompt (`prefopt.models.pairs`), on any decoder that takes positions.

Attention is replaced by a function that knows where pairs begin. It is registered with transformers under a name of its
own, and does what "sdpa" does wherever it is given no layout, so sampling and padded batches are what they were.

On a CPU each pair, or part of a long one, is a call of `scaled_dot_product_attention`; on CUDA the row is one call of
flex attention. Sliding windows are masks over the distance of positions, layer by layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prefopt.models.pairs import PairLayout

NAME = "shared_prefix"
_PICKING = "prefopt_picking"  # where the last layer's attention finds the block that follows it
_LAYER_TYPES = {"full_attention", "sliding_attention"}


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    pair_layout: PairLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention within pairs.

    Args:
        module: The attention layer.
        query: [1, heads, N, head size].
        key: [1, key heads, N, head size].
        value: As `key`.
        attention_mask: Not used where there is a layout.
        pair_layout: Where the pairs are.
        kwargs: `scaling`, `dropout`, `sliding_window` and what else the layer gives.

    Returns:
        [1, N, heads, head size], and None for the weights.
    """
    picking = vars(module).get(_PICKING)
    if picking is not None:  # the block that follows this layer, also where activations are recomputed
        picking.wanted = None if pair_layout is None else pair_layout.wanted
    if pair_layout is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return plain
    window = kwargs.pop("sliding_window", None)
    if query.is_cuda:
        return _by_flex(module, (query, key, value), pair_layout, window, kwargs)

    def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        output, _ = sdpa_attention_forward(module, queries, keys, values, mask, **kwargs)
        return cast(Tensor, output)

    outputs: list[Tensor] = []
    # Split once: a slice of its own for each block would be a tensor of the whole row in the backward pass.
    blocks = pair_layout.blocks
    sizes = [size for block in blocks for size in block.parts]
    pieces = zip(*(torch.split(each, sizes, 2) for each in (query, key, value)), strict=True)
    for block in blocks:
        parts = [next(pieces) for _ in block.parts]
        if block.is_split:
            outputs += _by_parts(parts, pair_layout, window, attend)
        else:
            (queries, keys, values), *_ = parts
            outputs.append(attend(queries, keys, values, pair_layout.block_mask(block, window, query.dtype)))
    return torch.cat(outputs, 1), None


def _by_parts(
    parts: Sequence[tuple[Tensor, ...]], layout: PairLayout, window: int | None, attend: Any
) -> Iterator[Tensor]:
    """Prompt, chosen and rejected completion of one pair, each with no more keys than it may see."""
    (query, key, value), *completions = parts
    prompt = query.shape[2]
    if prompt:
        mask = None if window is None else layout.part_mask(prompt, 0, window, query.dtype)
        yield attend(query, key, value, mask)
    for queries, keys, values in completions:
        if not queries.shape[2]:
            continue
        mask = layout.part_mask(queries.shape[2], prompt, window, query.dtype)
        yield attend(queries, torch.cat([key, keys], 2), torch.cat([value, values], 2), mask)


def _by_flex(
    module: nn.Module, inputs: tuple[Tensor, ...], layout: PairLayout, window: int | None, kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    fill = layout.padded_tokens - layout.tokens
    padded = (nn.functional.pad(each, (0, 0, 0, fill)) for each in inputs)
    output, _ = flex_attention_forward(module, *padded, layout.flex_mask(window), **kwargs)
    return output[:, : layout.tokens], None


AttentionInterface.register(NAME, shared_prefix_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def why_not_shared(model: PeftModel | PreTrainedModel) -> str | None:
    """Why the pairs of a model cannot share their prompts; None where they can."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    config = base.config.get_text_config()
    implementation = config._attn_implementation
    if getattr(base, "_is_stateful", False):
        return "its state runs through the whole row"
    if implementation not in ("sdpa", NAME) or not base._supports_sdpa:
        return f"its attention is '{implementation}', and this needs 'sdpa'"
    others = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if others:
        return f"it has layers of the type {', '.join(sorted(others))}"
    decoder = base.get_decoder()
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        return "it takes no positions"
    if getattr(config, "attn_logit_softcapping", None):
        return "it caps attention scores"
    return None


class _Picking:
    """Stands in for the last layer's feed-forward block: computes the positions alone whose states are wanted.

    Nothing comes after it that other positions could tell; theirs stay without it.
    """

    def __init__(self, module: nn.Module) -> None:
        self._plain = module.forward
        self.wanted: Tensor | None = None

    def __call__(self, states: Tensor) -> Tensor:
        if self.wanted is None:
            return cast(Tensor, self._plain(states))
        output: Tensor = self._plain(states[:, self.wanted])
        return output.new_zeros(*states.shape[:2], output.shape[2]).index_copy(1, self.wanted, output)


@contextmanager
def _picking(base: PreTrainedModel) -> Iterator[None]:
    """Within the block the last layer picks, where its feed-forward block is a plain one; experts count their rows."""
    layers = getattr(base.get_decoder(), "layers", None)
    block, attention = (getattr(layers[-1], name, None) if layers else None for name in ("mlp", "self_attn"))
    if not isinstance(attention, nn.Module) or not hasattr(block, "down_proj") or "forward" in vars(block):
        yield
        return
    assert isinstance(block, nn.Module)
    block.forward = picking = _Picking(block)
    vars(attention)[_PICKING] = picking
    try:
        yield
    finally:
        del block.forward, vars(attention)[_PICKING]


def takes_layouts(model: PeftModel | PreTrainedModel) -> bool:
    """Whether a model is inside `sharing_prompts`."""
    return bool(model.config.get_text_config()._attn_implementation == NAME)


@contextmanager
def sharing_prompts(model: PeftModel | PreTrainedModel) -> Iterator[None]:
    """Within the block the model's attention takes layouts of pairs.

    Forward and backward pass belong into the same block: recomputed activations ask for the same layers again.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    before = base.config.get_text_config()._attn_implementation
    base.set_attn_implementation(NAME)
    try:
        with _picking(base):
            yield
    finally:
        base.set_attn_implementation(before)


def shared_states(model: PeftModel | PreTrainedModel, input_ids: Tensor, layout: PairLayout, wanted: Tensor) -> Tensor:
    """Last hidden states of the decoder at some positions, [n, H].

    Args:
        model: Inside `sharing_prompts`; the adapters that are active apply.
        input_ids: [1, N].
        layout: Of the batch.
        wanted: [n], positions; some may come more than once.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layout.wanted = torch.unique(wanted)
    # Any mask of four dimensions is taken as it is, where none would be built for the row as a whole.
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device)
    output = base.get_decoder()(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=layout.position_ids,
        use_cache=False,
        pair_layout=layout,
    )
    return cast(Tensor, output.last_hidden_state[0, wanted])
