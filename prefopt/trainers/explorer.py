"""Asks every role of PPO about every token of its episodes; ranks share the work, and all of them get all of it.

Shape suffixes: N episodes, L completion positions (padded on the right).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prefopt.errors import InputError
from prefopt.models.actor_critic import ActorCritic, Ask
from prefopt.models.generate import Sampled, beginning
from prefopt.models.lm_head import head_is_adapted
from prefopt.models.modes import evaluating
from prefopt.models.state_probe import StateProbe
from prefopt.rewards.costs.sample import Sample
from prefopt.rewards.penalties import Penalty
from prefopt.rewards.shaper import Shaper
from prefopt.trainers.answers import SCORING, Answerer, RewardFunction, scores_of
from prefopt.trainers.ppo_config import PPOConfig
from prefopt.trainers.ranks import shared_out
from prefopt.trainers.rollouts import Rollouts

SAME = 1e-4
"""How far a token's log-probability may be from that of the training forward, in nats, to be taken for it."""
APART = 0.5
"""Mean distance, in nats, at which sampling and training cannot be the same model."""
SAID_OF_SAMPLES = ("logps", "entropies", "probed")
"""What the policy says of tokens while it is sampled."""
CHECKED = 8
"""Every so manieth episode is looked at twice."""


class Said(NamedTuple):
    """What the roles say of every token, [N, L] each, float32, on the CPU, 0 on padding.

    Attributes:
        logps: Of the policy, nats.
        reference_logps: Nats.
        values: Before each token.
        entropies: Of the policy's distribution, nats.
        divergence: KL(policy ‖ reference) over the whole vocabulary, nats; 0 where it was not computed.
        checked: [N], whether `divergence` was computed: of no episode where adapters change the language-model head.
        mismatch: Largest distance between log-probabilities of sampling and of training, nats.
    """

    logps: Tensor
    reference_logps: Tensor
    values: Tensor
    entropies: Tensor
    divergence: Tensor
    checked: Tensor
    mismatch: float


class Explorer(Answerer):
    """Samples and looks.

    Args:
        model: All roles.
        tokenizer: Of the policy.
        args: Options.
        accelerator: Of the trainer.
        reward: Takes N prompts and N completions and gives N numbers, or scores.
        penalties: See `prefopt.trainers.answers.Answerer`.
    """

    _args: PPOConfig

    def __init__(
        self,
        model: ActorCritic,
        tokenizer: PreTrainedTokenizerBase,
        args: PPOConfig,
        accelerator: Accelerator,
        reward: RewardFunction,
        *,
        penalties: Sequence[Penalty] = (),
    ) -> None:
        super().__init__(model.peft, tokenizer, args, accelerator, reward, penalties=penalties)
        self._model = model
        if model.shared:  # its head reads the states that tokens are drawn from
            self._probe = StateProbe(model.values)

    def activate(self) -> None:
        """Compute with the policy from now on."""
        self._model.activate("policy")

    def potentials(self, rows: Sequence[Mapping[str, Any]], samples: Sequence[Sampled]) -> Tensor:
        """What the reward says of the text before each token, raw, [N, L]; 0 after a completion's end.

        `score_prefixes` beginnings of the longest completion are scored, and as much of shorter ones, evenly spaced by
        tokens; between two the score is taken to be that of the first.
        """

        def score(asked: Sequence[tuple[int, int]], texts: Sequence[str]) -> list[float]:
            return [
                each.value for each in scores_of(self._reward, [rows[index]["prompt"] for index, _ in asked], texts)
            ]

        return self._along(samples, score)

    def owed(self, shaper: Shaper, rows: Sequence[Mapping[str, Any]], samples: Sequence[Sampled]) -> Tensor:
        """What penalties take off the text before each token, [N, L], of the beginnings that `potentials` scores."""

        def measure(asked: Sequence[tuple[int, int]], texts: Sequence[str]) -> list[float]:
            return shaper.owed(
                [
                    Sample(rows[index]["prompt"], text, samples[index].ids[:place])
                    for (index, place), text in zip(asked, texts, strict=True)
                ]
            )

        return self._along(samples, measure)

    def _along(
        self, samples: Sequence[Sampled], say: Callable[[Sequence[tuple[int, int]], Sequence[str]], Sequence[float]]
    ) -> Tensor:
        """What is said of beginnings: pairs of a completion's number and a number of its tokens, and their texts."""
        step = -(-self._args.max_new_tokens // self._args.score_prefixes)

        def told(indices: Sequence[int]) -> list[list[float]]:
            places = [range(0, len(samples[index].ids), step) for index in indices]
            asked = [(index, place) for index, each in zip(indices, places, strict=True) for place in each]
            texts = [beginning(self._tokenizer, samples[index], place) for index, place in asked]
            with self.stopwatch.timing(SCORING):
                found = iter(say(asked, texts))
            return [[value for _ in each for value in [next(found)] * step] for each in places]

        known = shared_out(len(samples), told)
        return _padded([each[: len(sample.ids)] for each, sample in zip(known, samples, strict=True)])

    # -- looking -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def look(self, rollouts: Rollouts, samples: Sequence[Sampled]) -> Said:
        """What policy, reference and value say of every token.

        What was said while sampling is taken for the policy's own where it is what the training forward says, as some
        of the episodes show; otherwise all of the policy's is computed again.
        """
        sampled, entropies, probed = (_padded([getattr(s, name) for s in samples]) for name in SAID_OF_SAMPLES)
        checked = torch.arange(len(rollouts)) % CHECKED == 0
        compares = not head_is_adapted(self._model.peft)
        found = torch.zeros(5, *rollouts.mask.shape)
        found += self._batches(rollouts, checked.nonzero().flatten(), policy=True, divergence=compares)
        mask = rollouts.mask * checked[:, None]
        mismatch = self._mismatch(found[0], sampled, mask)
        reuse = self._args.reuse_sampling_logps and mismatch < SAME
        if self._model.shared:
            reuse = reuse and probed.shape == mask.shape and _same(found[2], probed, mask)
        found += self._batches(rollouts, (~checked).nonzero().flatten(), policy=not reuse, divergence=False)
        if reuse:
            ours = (~checked)[:, None]
            taken = {0: sampled, 3: entropies} | ({2: probed} if self._model.shared else {})
            for row, said in taken.items():
                found[row] = torch.where(ours, said, found[row])
        logps, reference_logps, values, entropy, divergence = found.unbind()
        return Said(logps, reference_logps, values, entropy, divergence, checked & compares, mismatch)

    def _mismatch(self, logps: Tensor, sampled: Tensor, mask: Tensor) -> float:
        apart = (logps - sampled).abs() * mask
        if float(apart.sum() / mask.sum().clamp(min=1)) > APART:
            raise InputError(
                f"sampling and training differ by {float(apart.sum() / mask.sum()):.2g} nats per token on average",
                "the model's own head does something to its logits that prefopt does not know",
            )
        return float(apart.max())

    def _batches(self, rollouts: Rollouts, indices: Tensor, *, policy: bool, divergence: bool) -> Tensor:
        """Log-probabilities of policy and reference, values, entropy, divergence: [5, N, L]; other episodes are 0."""
        found = torch.zeros(5, *rollouts.mask.shape)
        by_length = indices[rollouts.attention_mask[indices].sum(1).argsort(stable=True)]
        batches = torch.split(by_length, self._args.per_device_eval_batch_size) if len(indices) else ()
        for mine in batches[self._args.process_index :: self._args.world_size]:
            batch = rollouts.select(mine).to(self._args.device)
            found[:, mine, : batch.mask.shape[1]] = self._ask(batch, policy=policy, divergence=divergence)
        # Zero where another rank has looked.
        total: Tensor = self._accelerator.reduce(found.to(self._args.device), reduction="sum")
        return total.cpu()

    def _ask(self, batch: Rollouts, *, policy: bool, divergence: bool) -> Tensor:
        inputs = (batch.input_ids, batch.attention_mask, batch.prompt_length)
        nothing = torch.zeros_like(batch.logps)
        logps = entropy = values = states = None
        with self._accelerator.autocast(), evaluating(self._model):
            if policy:
                logps, entropy, values, _, states = self._model(*inputs, Ask("policy", self._args.temperature))
            of_reference = Ask("reference", self._args.temperature, policy_states=states if divergence else None)
            reference = self._model(*inputs, of_reference)
            if not self._model.shared:
                values = self._model(*inputs, Ask("value")).values
        said = (logps, reference.logps, values, entropy, reference.divergence)
        mask = batch.mask
        return torch.stack([nothing if each is None else each.float() * mask for each in said]).cpu()


def _same(values: Tensor, probed: Tensor, mask: Tensor) -> bool:
    """Whether two say the same values, [N, L], where the mask is 1."""
    apart = (values - probed).abs() * mask
    return bool(apart.max() <= SAME * (values * mask).abs().max().clamp(min=1.0))


def _padded(rows: Sequence[Sequence[float]]) -> Tensor:
    """[N, L], 0 after each row's end."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
