"""Floating-point operations of what stages do, counted from a model's own weights and the tokens it is given.

A multiplication and an addition are two operations. Counted are the matrix products, as `torch.utils.flop_counter`
does; norms, activations, rotations, softmax, losses and the optimizer's step are not, and looking up an embedding costs
nothing. With N the parameters of all linear layers that a token passes through, one token costs

    forward                       2N + attention
    backward, full training       4N + 2 attention       (gradients of the weights and of the activations)
    backward, LoRA                2N + 2 attention       (frozen weights pass the gradient on but get none), adapters 4A
    recomputing activations       one forward more through the decoder, not through the head
    attention                     4 * width * context in every layer: 2 for the scores and 2 for the mixed values

(arXiv 2001.08361, section 2.1; arXiv 2204.02311, appendix B.) That makes the known 6N of full training, 4N of LoRA and
2N of sampling.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk")


@dataclass(frozen=True)
class FlopsModel:
    """What of a model decides the cost of a token.

    While adapters are merged or off (a reference, sampling with `merged`), count with
    `dataclasses.replace(flops, adapters=0)`.

    Attributes:
        matrices: Parameters of the decoder's linear layers that one token passes through: of experts only the active
            ones, without adapters, embeddings and head.
        head: Parameters of the language-model head, 0 without one; tied weights count here.
        adapters: Parameters of the active adapters that one token passes through; the trainable part.
        layers: Layers with attention over positions.
        width: Heads times the size of a head (query heads: keys and values that heads share are computed with as often
            as there are query heads).
    """

    matrices: int
    head: int
    adapters: int
    layers: int
    width: int

    def forward(self, tokens: float, context: float, head_tokens: float | None = None) -> float:
        """Operations of a forward pass.

        Args:
            tokens: Positions that the decoder computes, over all rows; with padding what the device does, without
                it what the data asks for.
            context: Mean number of positions that a token's attention is computed with. Dense kernels, and torch's
                counter, compute the whole square and mask it: the length T of the rows. What causality asks for, and
                kernels that skip masked blocks come near, is (T + 1) / 2.
            head_tokens: Positions that go through the head, all when None.

        Raises:
            ValueError: For negative numbers, or more positions in the head than in the decoder.
        """
        through_head = _head_tokens(tokens, context, head_tokens)
        return self._decoder(tokens, context) + 2.0 * self.head * through_head

    def backward(
        self, tokens: float, context: float, *, full: bool, recompute: bool = False, head_tokens: float | None = None
    ) -> float:
        """Operations of the backward pass of a forward pass over the same positions.

        Counted is the gradient through every matrix. With a frozen embedding autograd skips the matrices of the first
        layer that see nothing but embeddings, so that LoRA is overestimated by less than one layer's share. PyTorch
        ends the recomputation of a layer where nothing more is needed, so that recomputing is overestimated by a
        layer's last matrix. Fused attention recomputes its scores, another half of a forward's attention, not counted.

        Args:
            tokens: As in `forward`.
            context: As in `forward`.
            full: Whether all weights are trained; else the adapters on a frozen base.
            recompute: Whether the decoder's activations are recomputed (activation checkpointing).
            head_tokens: As in `forward`.

        Raises:
            ValueError: As `forward`.
        """
        through_head = _head_tokens(tokens, context, head_tokens)
        # Attention is a product of two activations, so both of its gradients are needed whatever is frozen.
        cost = 2.0 * self._attention(tokens, context) + 4.0 * self.adapters * tokens
        cost += (4.0 if full else 2.0) * (self.matrices * tokens + self.head * through_head)
        return cost + (self._decoder(tokens, context) if recompute else 0.0)

    def train(
        self, tokens: float, context: float, full: bool, recompute: bool, head_tokens: float | None = None
    ) -> float:
        """Operations of a forward and a backward pass; arguments and errors as in `forward` and `backward`."""
        backward = self.backward(tokens, context, full=full, recompute=recompute, head_tokens=head_tokens)
        return self.forward(tokens, context, head_tokens) + backward

    def sample(self, prompt_tokens: float, new_tokens: float) -> float:
        """Operations of sampling one completion with a key-value cache.

        The prompt is computed at once, as a whole square; then each new token but the last, which nothing follows, is
        computed with all positions up to itself. Only positions whose next token is drawn go through the head. The
        cost is not linear in lengths: add up rows rather than give their sum.

        Args:
            prompt_tokens: Of the row, with padding where it is computed.
            new_tokens: Drawn, with the end token; nothing is computed for 0.

        Raises:
            ValueError: For negative numbers.
        """
        _refuse_negative(prompt_tokens=prompt_tokens, new_tokens=new_tokens)
        if new_tokens == 0:
            return 0.0
        steps = max(new_tokens - 1, 0.0)
        decoding = self._decoder(steps, prompt_tokens + (steps + 1) / 2)
        return self._decoder(prompt_tokens, prompt_tokens) + decoding + 2.0 * self.head * new_tokens

    def _attention(self, tokens: float, context: float) -> float:
        return 4.0 * self.layers * self.width * tokens * context

    def _decoder(self, tokens: float, context: float) -> float:
        return 2.0 * (self.matrices + self.adapters) * tokens + self._attention(tokens, context)


def flops_model(model: PreTrainedModel | PeftModel) -> FlopsModel:
    """Read from a causal language model what its tokens cost.

    A sliding window is not known here: give it as the context where it is shorter. The virtual tokens of a soft prompt
    are tokens like others. Of layers with a recurrent state only the linear layers count. Copies under PEFT's
    `modules_to_save` count as the frozen original.

    Args:
        model: With or without adapters, of which the active ones count; also loaded in 4 bit.

    Raises:
        ValueError: When it has experts and its configuration does not say how many of how many a token passes through.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    config = base.config.get_text_config()
    sizes: Counter[tuple[bool, bool]] = Counter()
    _count(base.get_decoder(), sizes)
    head: Counter[tuple[bool, bool]] = Counter()
    if (output := base.get_output_embeddings()) is not None:
        _count(output, head)
    if any(in_experts for _, in_experts in sizes):
        active, experts = _experts(config)
    else:
        active, experts = 1, 1

    def per_token(adapter: bool) -> int:
        return sizes[adapter, False] + sizes[adapter, True] * active // experts

    return FlopsModel(
        matrices=per_token(adapter=False),
        head=head[False, False],
        adapters=per_token(adapter=True) + head[True, False],
        layers=_attention_layers(config),
        width=_attention_width(config),
    )


def _count(
    module: nn.Module, sizes: Counter[tuple[bool, bool]], *, adapter: bool = False, in_experts: bool = False
) -> None:
    """Add the sizes of a module's matrices by whether they are an adapter's and whether they are experts'.

    Shared experts, which every token passes through, are never named `experts` alone in transformers.
    """
    if isinstance(module, nn.Embedding):
        return
    if size := _own_size(module):
        sizes[adapter, in_experts] += size
    for name, child in module.named_children():
        if isinstance(module, BaseTunerLayer) and name != "base_layer":
            # The layer's `lora_A` and the like, which hold one module per adapter.
            for key, part in child.named_children():
                if key in module.active_adapters:
                    _count(part, sizes, adapter=True, in_experts=in_experts)
        elif name != "modules_to_save":
            _count(child, sizes, adapter=adapter, in_experts=in_experts or name == "experts")


def _own_size(module: nn.Module) -> int:
    if isinstance(module, nn.Linear):
        return module.in_features * module.out_features  # a weight in 4 bit is packed into fewer elements
    # Experts are stacked into tensors of three dimensions, and so are their biases into two.
    named = module.named_parameters(recurse=False)
    return sum(weight.numel() for name, weight in named if weight.ndim >= 2 and not name.endswith("bias"))


def _experts(config: Any) -> tuple[int, int]:
    """How many experts a token passes through, and how many there are."""
    active = next((count for name in _EXPERTS_PER_TOKEN if (count := getattr(config, name, None))), None)
    experts = next((count for name in _EXPERTS if (count := getattr(config, name, None))), None)
    if active is None or experts is None:
        raise ValueError(f"{type(config).__name__} does not say how many of its experts a token passes through")
    return int(active), int(experts)


def _attention_layers(config: Any) -> int:
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return int(config.num_hidden_layers)
    return sum(kind.endswith("attention") and not kind.startswith("linear") for kind in kinds)


def _attention_width(config: Any) -> int:
    heads = int(config.num_attention_heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    # Where latents are expanded (DeepSeek), heads of keys and of values differ in size, and `head_dim` is neither.
    keys = getattr(config, "qk_head_dim", None) or size
    values = getattr(config, "v_head_dim", None) or size
    return heads * (int(keys) + int(values)) // 2


def _head_tokens(tokens: float, context: float, head_tokens: float | None) -> float:
    if head_tokens is None:
        head_tokens = tokens
    _refuse_negative(tokens=tokens, context=context, head_tokens=head_tokens)
    if head_tokens > tokens:
        raise ValueError(f"{head_tokens} positions go through the head, of {tokens}")
    return head_tokens


def _refuse_negative(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number >= 0:  # NaN as well
            raise ValueError(f"{name} is {number}: it cannot be negative")
