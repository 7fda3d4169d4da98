"""What rollouts and updates of PPO looked like: numbers for the log, samples for people, tokens under a microscope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prefopt.losses import ppo
from prefopt.models.generate import Sampled
from prefopt.records import conversation
from prefopt.rewards.shaped import ShapedReward
from prefopt.trainers.answers import Scores
from prefopt.trainers.explorer import Said
from prefopt.trainers.guards import Health
from prefopt.trainers.rollouts import Rollouts

NGRAM = 3
CLOSE_UPS = 8
"""Episodes of a rollout whose every token is kept."""


@dataclass(frozen=True)
class Rollout:
    """All that is known of the episodes of one rollout.

    Attributes:
        rows: Their prompts.
        samples: Their completions.
        scores: As the reward gave them.
        shaped: Their rewards, and what those are made of.
        said: What the roles say of every token.
        kl: k1 estimates, [N, L], nats.
        rewards: Of every token, [N, L], before they are whitened, if they are.
        coefficient: Price of a nat.
        paid: [N], what the KL took off the reward; 0 where it is a part of the loss.
        episodes: As the update takes them; advantages are whitened.
    """

    rows: Sequence[Mapping[str, Any]]
    samples: Sequence[Sampled]
    scores: Scores
    shaped: ShapedReward
    said: Said
    kl: Tensor
    rewards: Tensor
    coefficient: float
    paid: Tensor
    episodes: Rollouts


def repetition(ids: Sequence[int], n: int = NGRAM) -> float:
    """Share of a row's n-grams that it had before (arXiv 2502.03373, appendix C.2); 0 for a shorter row."""
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def health(rollout: Rollout, std: float, uncertainty_weight: float, judge: float | None) -> Health:
    """What the guards watch.

    Args:
        rollout: Of the policy that is watched.
        std: Of the reference's scores, in the reward's own unit; the same for all rollouts.
        uncertainty_weight: Disagreements below the score that the bound is.
        judge: The win rate that the judge gives; None where it was not asked.
    """
    mask, samples = rollout.episodes.mask, rollout.samples
    score, disagreement = float(rollout.scores.values.mean()) / std, float(rollout.scores.stds.mean()) / std
    return Health(
        kl=float(rollout.kl.sum(1).mean()),
        entropy=float(ppo.masked_mean(rollout.said.entropies, mask)),
        eos_rate=sum(sample.finished for sample in samples) / len(samples),
        length=float(mask.sum(1).float().mean()),
        repetition=sum(repetition(sample.ids) for sample in samples) / len(samples),
        score=score,
        disagreement=disagreement,
        bound=score - uncertainty_weight * disagreement if bool(rollout.scores.stds.any()) else None,
        judge=judge,
    )


def averages(rollout: Rollout, seen: Health) -> dict[str, float]:
    """Metrics of a rollout by name."""
    episodes, said, scores = rollout.episodes, rollout.said, rollout.scores.values
    finished = torch.tensor([sample.finished for sample in rollout.samples])
    found = {
        "ppo/score": float(scores.mean()),
        "ppo/reward": float((rollout.shaped.total - rollout.paid).mean()),
        "ppo/kl": seen.kl,
        "ppo/kl_coefficient": rollout.coefficient,
        "ppo/entropy": seen.entropy,
        "ppo/length": seen.length,
        "ppo/eos_rate": seen.eos_rate,
        "ppo/repetition": seen.repetition,
        "ppo/sampling_mismatch": said.mismatch,
        "ppo/explained_variance": float(ppo.explained_variance(said.values, episodes.returns, episodes.mask)),
    }
    if said.checked.any():
        found["ppo/exact_kl"] = float(said.divergence[said.checked].sum(1).mean())
    if seen.judge is not None:
        found["ppo/judge"] = seen.judge
    if bool(rollout.scores.stds.any()):
        found["ppo/disagreement"] = float(rollout.scores.stds.mean())
    # Cut completions apart: their scores are of half a text.
    for name, which in (("finished", finished), ("truncated", ~finished)):
        if bool(which.any()):
            found[f"ppo/score_{name}"] = float(scores[which].mean())
    return found | rollout.shaped.metrics()


def of_update(policy: ppo.PolicyLoss, value: ppo.ValueLoss) -> dict[str, Tensor]:
    """Metrics of a pass of the update by name, each of every token: [B, L]."""
    return {
        "ppo/policy_loss": policy.losses,
        "ppo/value_loss": value.losses,
        "ppo/ratio": policy.ratio,
        "ppo/clip_fraction": policy.clipped,
        "ppo/value_clip_fraction": value.clipped,
        "ppo/approx_kl": policy.approx_kl,
    }


def samples_of(
    rows: Sequence[Mapping[str, Any]], samples: Sequence[Sampled], shaped: ShapedReward, kl: Tensor
) -> list[dict[str, Any]]:
    """Prompt, completion, finished, tokens, reward (raw) and kl of every episode; with penalties its costs as well.

    Args:
        rows: Their prompts.
        samples: Their completions.
        shaped: Their rewards.
        kl: [N], nats.
    """
    return [
        {
            "prompt": conversation(row["prompt"]),
            "completion": sampled.text,
            "finished": sampled.finished,
            "tokens": len(sampled.ids),
            "reward": reward,
            "kl": nats,
            **shaped.costs_of(index),
        }
        for index, (row, sampled, reward, nats) in enumerate(
            zip(rows, samples, shaped.raw.tolist(), kl.tolist(), strict=True)
        )
    ]


def close_ups(rollout: Rollout, tokenizer: PreTrainedTokenizerBase, number: int) -> list[dict[str, Any]]:
    """Some episodes token by token, spread over the range of rewards from the best to the worst.

    Args:
        rollout: Of which.
        tokenizer: Writes tokens as text.
        number: Of the rollout.

    Returns:
        For each: `rollout`, `prompt`, `completion`, `finished`, `score` (raw), `terms` of the reward (with the price of
        the KL as `kl`), and `tokens`: `text`, `kl` (k1, nats), `advantage` (whitened), `value`, `entropy`, `logp`.
    """
    order = rollout.scores.values.argsort(descending=True, stable=True).tolist()
    count = min(CLOSE_UPS, len(order))
    chosen = [order[place * (len(order) - 1) // max(1, count - 1)] for place in range(count)]
    columns = {
        "kl": rollout.kl,
        "advantage": rollout.episodes.advantages,
        "value": rollout.said.values,
        "entropy": rollout.said.entropies,
        "logp": rollout.said.logps,
    }
    found = []
    for index in dict.fromkeys(chosen):
        row, sampled = rollout.rows[index], rollout.samples[index]
        numbers = zip(*(each[index, : len(sampled.ids)].tolist() for each in columns.values()), strict=True)
        tokens = [
            {"text": tokenizer.decode([token]), **dict(zip(columns, each, strict=True))}
            for token, each in zip(sampled.ids, numbers, strict=True)
        ]
        found.append(
            {
                "rollout": number,
                "prompt": conversation(row["prompt"]),
                "completion": sampled.text,
                "finished": sampled.finished,
                "score": float(rollout.scores.values[index]),
                "terms": {**rollout.shaped.to_json(index), "kl": -float(rollout.paid[index])},
                "tokens": tokens,
            }
        )
    return found
