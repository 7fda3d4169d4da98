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
from safetensors.torch import save_file
from torch import Tensor, nn

from prefopt.losses.token_statistics import TokenStatistics, token_statistics
from prefopt.models.heads import ScoreHead, hang_reward, hidden_states
from prefopt.models.lm_head import head_of
from prefopt.models.modes import without_dropout
from prefopt.models.pairs import without_padding
from prefopt.models.roles import POLICY, belongs_to, reference_of, save_adapter, set_active, stack_of
from prefopt.models.shared_prefix import shared_states
from prefopt.models.wrapped import HoldsPeft

VALUE = "value"
HEAD = "value_head.safetensors"
Role = Literal["policy", "reference", "value"]


class Ask(NamedTuple):
    """What a forward pass is to say of the completions' tokens.

    Attributes:
        role: Whose pass it is. A shared value comes with the policy's, and has none of its own.
        temperature: Divides the logits.
        entropy_gradient: Whether the entropy is to be differentiated.
        value_alone: Whether a shared value leaves the policy's adapter as it is: its gradient ends at the head.
        policy_states: [n, H], the policy's states at the completions' tokens: the reference then says how far the
            policy is from it.
    """

    role: Role
    temperature: float = 1.0
    entropy_gradient: bool = False
    value_alone: bool = False
    policy_states: Tensor | None = None


class TokenOutputs(NamedTuple):
    """What a forward pass says about each completion token, before it is chosen; 0 on padding.

    Attributes:
        logps: [B, L], log-probability of the token, nats; None for the role `value`.
        entropy: [B, L], of the next-token distribution, nats; None for the role `value`.
        values: [B, L], float32; None where the pass computes none.
        divergence: [B, L], KL(policy ‖ reference) of the next-token distributions, nats, over the whole vocabulary and
            without gradient; None unless the policy's states were given.
        states: [n, H], the states that the tokens are chosen from, row by row; None for the role `value`.
    """

    logps: Tensor | None
    entropy: Tensor | None
    values: Tensor | None
    divergence: Tensor | None = None
    states: Tensor | None = None


class ActorCritic(HoldsPeft):
    """Policy and value to be trained, and the frozen reference.

    Args:
        peft: The base with an adapter named `policy`; the one that it started from, unless that is the base itself
            (see `prefopt.models.roles.policy_on`); one named `value` unless the value shares the policy's. It may have
            others, such as those of a reward model, which are not trained here.
        value_head: From the hidden state to the value.
    """

    def __init__(self, peft: PeftModel, value_head: ScoreHead) -> None:
        super().__init__(peft)
        self.value_head = value_head
        self.shared = VALUE not in peft.peft_config
        self._trained = [parameter for name, parameter in peft.named_parameters() if _is_trained(name)]
        for parameter in self.value_head.parameters():
            parameter.requires_grad_(True)
        without_dropout(peft)
        set_active(self.peft, self._adapters("policy"))
        self._keep_trained()

    def activate(self, role: Role) -> None:
        """Compute with a role's adapter from now on; everything that is trained stays trainable."""
        wanted = self._adapters(role)
        if list(self.peft.active_adapters) != wanted:
            set_active(self.peft, wanted)
            self._keep_trained()

    def _adapters(self, role: Role) -> list[str]:
        """The adapters that are active where a role computes."""
        reference = reference_of(self.peft)
        return [reference] if role == "reference" and reference else stack_of(self.peft, role)

    def _keep_trained(self) -> None:
        for parameter in self._trained:
            parameter.requires_grad_(True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, prompt_length: int, ask: Ask) -> TokenOutputs:
        """One forward pass of one role over prompts and completions.

        Args:
            input_ids: [B, P + L].
            attention_mask: [B, P + L], 0 on padding on either side.
            prompt_length: P.
            ask: What to say.
        """
        with self._computing(ask.role):
            mask = attention_mask[:, prompt_length:].bool()
            states = self._states(input_ids, attention_mask, prompt_length)
            if ask.role == "value":
                return TokenOutputs(None, None, _placed(self.values(states), mask))
            said = token_statistics(
                states,
                input_ids[:, prompt_length:][mask],
                head_of(self.peft, ask.temperature),
                reference_states=ask.policy_states,
                entropy_gradient=ask.entropy_gradient,
            )
            found = _spread(said, mask)._replace(states=states)
            if ask.role == "policy" and self.shared:
                values = self.values(states.detach() if ask.value_alone else states)
                found = found._replace(values=_placed(values, mask))
            return found

    def _states(self, input_ids: Tensor, attention_mask: Tensor, prompt_length: int) -> Tensor:
        """The states that the completions' tokens are chosen from, [n, H], row by row."""
        if self.shares_prompts:
            tokens, layout = without_padding(input_ids, attention_mask, prompt_length)
            return shared_states(self.peft, tokens, layout, layout.states)
        hidden = hidden_states(self.peft, input_ids, attention_mask)[:, prompt_length - 1 : -1]
        return hidden[attention_mask[:, prompt_length:].bool()]

    def values(self, hidden: Tensor) -> Tensor:
        """What the value's head says of states [.., H], [..]."""
        values: Tensor = self.value_head(hidden).squeeze(-1)
        return values

    @contextmanager
    def _computing(self, role: Role) -> Iterator[None]:
        """Within the block a role's adapter is active; the reference has no gradients, and the base may be it."""
        if role != "reference":
            self.activate(role)
            yield
            return
        with torch.no_grad():
            if reference_of(self.peft) is not None:
                self.activate(role)
                yield
                return
            with self.peft.disable_adapter():
                yield
            self._keep_trained()  # PEFT sets the flags of the active adapter when it comes back


def _spread(said: TokenStatistics, mask: Tensor) -> TokenOutputs:
    """Statistics [n] of tokens, each at its place in [B, L]."""
    divergence = None if said.divergence is None else _placed(said.divergence, mask)
    return TokenOutputs(_placed(said.logps, mask), _placed(said.entropy, mask), None, divergence)


def _placed(values: Tensor, mask: Tensor) -> Tensor:
    """Values [n] of tokens in [B, L], 0 on padding."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_scatter(mask, values)


def _is_trained(name: str) -> bool:
    return belongs_to(name, POLICY) or belongs_to(name, VALUE)


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


def save_value(model: ActorCritic, directory: Path, base_name: str) -> None:
    """Write the value: its head, and its adapter unless it shares the policy's.

    Args:
        model: Trained.
        directory: Where the PEFT folder's files go, and `value_head.safetensors`.
        base_name: See `prefopt.models.roles.save_adapter`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if not model.shared:
        save_adapter(model.peft, VALUE, directory, base_name)
    save_value_head(model, directory)


def save_value_head(model: ActorCritic, directory: Path) -> None:
    """Write `value_head.safetensors` alone, to a folder that exists."""
    save_file({name: each.cpu().contiguous() for name, each in model.value_head.state_dict().items()}, directory / HEAD)
