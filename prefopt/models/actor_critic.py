"""Policy, reference and value on one frozen base: the model that PPO trains.

Every role is a LoRA adapter on the same base; the value has a head as well. PEFT clears `requires_grad` on every
adapter that is not active, so that a switch between a forward and its backward loses gradients without an error. Here,
a switch leaves what is trained trainable. A backward must still come before the next switch where activations are
recomputed, because they would be recomputed by the adapter that is active then.

Shape suffixes: B episodes, P prompt positions (padded on the left), L completion positions (padded on the right).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn

from prefopt.models.heads import ScoreHead, hang_reward, hidden_states
from prefopt.models.roles import POLICY, reference_of, set_active, stack_of
from prefopt.models.wrapped import HoldsPeft

VALUE = "value"
Role = Literal["policy", "reference", "value"]


class TokenOutputs(NamedTuple):
    """What a forward pass says about each completion token, before it is chosen.

    Attributes:
        logits: [B, L, V], row t predicts completion token t; None for the role `value`.
        values: [B, L], float32; None where the pass computes none.
    """

    logits: Tensor | None
    values: Tensor | None


class ActorCritic(HoldsPeft):
    """Policy and value to be trained, and the frozen reference.

    Args:
        peft: The base with an adapter named `policy`; the one that it started from, unless that is the base itself
            (see `prefopt.models.roles.policy_on`); one named `value` unless the value shares the policy's.
        value_head: From the hidden state to the value.
    """

    def __init__(self, peft: PeftModel, value_head: ScoreHead) -> None:
        super().__init__(peft)
        self.value_head = value_head
        self.shared = VALUE not in peft.peft_config
        self._trained = [parameter for name, parameter in peft.named_parameters() if _is_trained(name)]
        for parameter in self.value_head.parameters():
            parameter.requires_grad_(True)
        self._active: str | None = None
        self.activate("policy")

    def activate(self, role: Role) -> None:
        """Compute with a role's adapter from now on; everything that is trained stays trainable."""
        if role == self._active:
            return
        set_active(self.peft, self._adapters(role))
        for parameter in self._trained:
            parameter.requires_grad_(True)
        self._active = role

    def _adapters(self, role: Role) -> list[str]:
        """The adapters that are active where a role computes."""
        reference = reference_of(self.peft)
        return [reference] if role == "reference" and reference else stack_of(self.peft, role)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, prompt_length: int, role: Role) -> TokenOutputs:
        """One forward pass of one role over prompts and completions.

        Args:
            input_ids: [B, P + L].
            attention_mask: [B, P + L], 0 on padding on either side.
            prompt_length: P.
            role: Whose. A shared value comes with the policy's pass, and has none of its own.
        """
        if role == "reference":
            with self._reference():
                return TokenOutputs(self._run(input_ids, attention_mask, prompt_length)[0], None)
        if role == "value" and not self.shared:
            self.activate("value")
            hidden = hidden_states(self.peft, input_ids, attention_mask)[:, prompt_length - 1 : -1]
            return TokenOutputs(None, self._values(hidden))
        self.activate("policy")
        logits, states = self._run(input_ids, attention_mask, prompt_length)
        return TokenOutputs(logits, None if states is None else self._values(states))

    def _run(self, input_ids: Tensor, attention_mask: Tensor, prompt_length: int) -> tuple[Tensor, Tensor | None]:
        """Logits of completion tokens, and for a shared value the states that they come from.

        Through the whole model and not from its parts: some models scale or cap their logits.
        """
        completion = input_ids.shape[1] - prompt_length
        output = self.peft(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=completion + 1,
            output_hidden_states=self.shared,
        )
        hidden = output.hidden_states[-1][:, prompt_length - 1 : -1] if self.shared else None
        return output.logits[:, :-1], hidden

    def _values(self, hidden: Tensor) -> Tensor:
        values: Tensor = self.value_head(hidden.float()).squeeze(-1)
        return values

    @contextmanager
    def _reference(self) -> Iterator[None]:
        """Within the block the reference's adapter is active, or none, without gradients."""
        with torch.no_grad():
            if reference_of(self.peft) is not None:
                self.activate("reference")
                yield
                return
            with self.peft.disable_adapter():
                yield
            # PEFT sets the flags of the active adapter when it comes back.
            self._active = None
            self.activate("policy")


def _is_trained(name: str) -> bool:
    return f".{POLICY}." in name or f".{VALUE}." in name


def zero_value_head(hidden_size: int) -> ScoreHead:
    """A head that says 0 everywhere: the value of knowing nothing about a normalised reward."""
    head = ScoreHead(hidden_size, bias=True)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def actor_critic(peft: PeftModel, *, value: str, reward: Path | None = None) -> ActorCritic:
    """Hang the value on a model that has the policy.

    Args:
        peft: The base with `policy` and, where it has one, `reference`.
        value: `adapter`, one of its own, or `shared`, a head on the policy.
        reward: Artefact of a reward model that the value starts as; without it the value starts at 0. Only for a value
            with an adapter of its own. Of a head with several outputs the first counts.
    """
    hidden_size = int(peft.config.get_text_config().hidden_size)
    head = zero_value_head(hidden_size)
    if value == "adapter" and reward is not None:
        peft, score = hang_reward(peft, reward, VALUE)
        with torch.no_grad():
            head.weight.copy_(score.weight[:1])
    elif value == "adapter":
        peft.add_adapter(VALUE, peft.peft_config[POLICY])
    device = next(peft.parameters()).device
    return ActorCritic(peft, head.to(device))


def fold_normaliser(head: ScoreHead, mean: float, std: float) -> None:
    """Let a head that predicts raw scores predict (score - mean) / std.

    A critic that starts as the reward model would otherwise be wrong by the whole scale of the reward, and its first
    advantages would be noise.
    """
    with torch.no_grad():
        head.weight.div_(std)
        head.bias.sub_(mean).div_(std)
