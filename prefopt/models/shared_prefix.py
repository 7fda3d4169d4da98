"""One forward pass over pairs that share their prompt (`prefopt.models.pairs`), on any decoder that takes positions.

Attention is replaced by a function that knows where pairs begin. It is registered with transformers under a name of its
own, and does what "sdpa" does wherever it is given no layout, so sampling and padded batches are what they were.

On a CPU each block of pairs is a call of `scaled_dot_product_attention`; on CUDA the row is one call of flex attention.
Sliding windows are masks over the distance of positions, layer by layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prefopt.models.pairs import Block, PairLayout

NAME = "shared_prefix"
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
    if pair_layout is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return plain
    window = kwargs.pop("sliding_window", None)
    if query.is_cuda:
        return _by_flex(module, (query, key, value), pair_layout, window, kwargs)

    def attend(queries: slice, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        output, _ = sdpa_attention_forward(module, query[:, :, queries], keys, values, mask, **kwargs)
        return cast(Tensor, output)

    outputs: list[Tensor] = []
    for block in pair_layout.blocks:
        if block.is_split:
            outputs += _by_parts(block, key, value, pair_layout, window, attend)
        else:
            whole = slice(block.start, block.end)
            mask = pair_layout.block_mask(block, window, query.dtype)
            outputs.append(attend(whole, key[:, :, whole], value[:, :, whole], mask))
    return torch.cat(outputs, 1), None


def _by_parts(
    block: Block, key: Tensor, value: Tensor, layout: PairLayout, window: int | None, attend: Any
) -> Iterator[Tensor]:
    """Prompt, chosen and rejected completion of one pair, each with no more keys than it may see."""
    prompt, chosen, rejected = block.lengths[0]
    begin, middle, end = block.start + prompt, block.start + prompt + chosen, block.end
    head = slice(block.start, begin)
    if prompt:
        mask = None if window is None else layout.part_mask(prompt, 0, window, key.dtype)
        yield attend(head, key[:, :, head], value[:, :, head], mask)
    both = slice(block.start, middle)
    mask = layout.part_mask(chosen, prompt, window, key.dtype)
    yield attend(slice(begin, middle), key[:, :, both], value[:, :, both], mask)
    tail = slice(middle, end)
    keys, values = (torch.cat([each[:, :, head], each[:, :, tail]], 2) for each in (key, value))
    yield attend(tail, keys, values, layout.part_mask(rejected, prompt, window, key.dtype))


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


@contextmanager
def sharing_prompts(model: PeftModel | PreTrainedModel) -> Iterator[None]:
    """Within the block the model's attention takes layouts of pairs.

    Forward and backward pass belong into the same block: recomputed activations ask for the same attention again.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    before = base.config.get_text_config()._attn_implementation
    base.set_attn_implementation(NAME)
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def shared_states(model: PeftModel | PreTrainedModel, input_ids: Tensor, layout: PairLayout) -> Tensor:
    """Last hidden states of the decoder, [N, H].

    Args:
        model: Inside `sharing_prompts`; the adapters that are active apply.
        input_ids: [1, N].
        layout: Of the batch.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    # Any mask of four dimensions is taken as it is, where none would be built for the row as a whole.
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device)
    output = base.get_decoder()(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=layout.position_ids,
        use_cache=False,
        pair_layout=layout,
    )
    return cast(Tensor, output.last_hidden_state[0])
