"""From raw scores to shaped rewards, term by term: what is undesired is taken off, and the raw score stays as it is.

Order: the score is normalised, bounded, what a missing end costs is taken off, then every penalty, and the sum is cut
where it is to be. It is the same everywhere: PPO calls `Shaper.shape` with whole rollouts, TRL's trainers call the
shaper itself as a reward function.

Shape suffix: N completions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from prefopt.errors import DataError, InputError
from prefopt.recipe.options.costs import RESERVED
from prefopt.records import Message, Prompt, Score
from prefopt.rewards.costs.length import EnsembleStd, MissingEos
from prefopt.rewards.costs.sample import Measured, RuleCost, Sample
from prefopt.rewards.penalties import Multiplier, Penalty
from prefopt.rewards.scale import RewardScale
from prefopt.rewards.shaped import ShapedReward

T = TypeVar("T")
Share = Callable[[int, Callable[[Sequence[int]], Sequence[Any]]], list[Any]]
"""Takes a number of pieces of work and what does some of them, and gives the results of all."""
Offsets = Callable[[Sequence[int], str], Sequence[int]]
"""Takes tokens and their text, and gives the character that each token begins at."""


class Shaper:
    """Shapes rewards. It is also a reward function of TRL's trainers, as in `GRPOTrainer(reward_funcs=[shaper], …)`.

    Args:
        penalties: What is taken off; no two of one name.
        scale: How scores are normalised and bounded; by default not at all, and weights are in the score's own unit.
        score: Takes N prompts (messages) and N completions (text) and gives N numbers, or `Score`s; None where the
            penalties alone are the reward, beside TRL's other reward functions.
        total_clip: The sum of all terms is cut to ± this.
        end_token_ids: Tokens that end a completion; needed where TRL calls and an end that is missing costs.
        offsets: Where tokens are in their text, for the spans of costs that count tokens; None for no such spans.

    Attributes:
        penalties: As given.
        scale: As given.
        training: Asked at every call by TRL whether prices may move: in an evaluation they must not. By default they
            always may; `prefopt.trainers.KeepShaper`, a callback of TRL's trainers, sees to it and to checkpoints.

    Raises:
        ValueError: For two penalties of one name, or one of the name of another term; where a missing end would be paid
            twice.
    """

    __name__ = "shaped_reward"  # TRL names the columns of its log by it

    def __init__(
        self,
        penalties: Sequence[Penalty] = (),
        *,
        scale: RewardScale | None = None,
        score: Callable[[Sequence[Prompt], Sequence[str]], Sequence[float | Score]] | None = None,
        total_clip: float | None = None,
        end_token_ids: Sequence[int] = (),
        offsets: Offsets | None = None,
    ) -> None:
        self.penalties = tuple(penalties)
        self.scale = scale or RewardScale(unit=1.0)
        _check_names(self.penalties)
        if self.scale.prices_the_end and any(isinstance(penalty.cost, MissingEos) for penalty in penalties):
            raise ValueError("a missing end would be paid twice: by the scale, and by the penalty 'missing_eos'")
        self.training: Callable[[], bool] = lambda: True
        self._score = score
        self._clip = total_clip
        self._ends = frozenset(end_token_ids)
        self._offsets = offsets

    # -- shaping -------------------------------------------------------------------------------------------------------

    def shape(
        self,
        scores: Tensor,
        deviations: Tensor,
        finished: Tensor,
        samples: Sequence[Sample | None],
        share: Share | None = None,
    ) -> ShapedReward:
        """Rewards of N completions at the prices of now, which do not move.

        Args:
            scores: Raw, [N].
            deviations: Between the members of a reward ensemble, in the same unit, [N]; 0 of one model.
            finished: Whether each completion ended itself, [N], bool.
            samples: The completions; None for those that `share` has measured elsewhere.
            share: Has the costs measured on several ranks; by default all here.

        Raises:
            InputError: When disagreement is priced, and the reward is no ensemble.
        """
        base = self.scale.terms(scores, finished)
        terms = {"score": base.score, "missing_eos": base.missing_eos}
        total = base.total
        measured = self._measured(samples, deviations, self.scale.unit, share)
        weights = {penalty.label: penalty.price.weight for penalty in self.penalties}
        for name, each in measured.items():
            costs = torch.tensor([one.value for one in each], dtype=torch.float64)
            terms[name] = (costs * (-weights[name] * self.scale.price_unit)).float()
            total = total + terms[name]
        if self._clip is not None:
            cut = total.clamp(-self._clip, self._clip)
            terms["clip"], total = cut - total, cut
        windows = {p.label: p.price.level for p in self.penalties if isinstance(p.price, Multiplier)}
        levels = {name: level for name, level in windows.items() if level is not None}
        violated = self._violated(measured)
        unit = self.scale.price_unit
        return ShapedReward(scores.clone(), terms, total, measured, weights, violated, levels, unit)

    def owed(self, beginnings: Sequence[Sample]) -> list[float]:
        """What penalties would take off N texts at the prices of now, were they completions that ended themselves.

        Only of costs that are rules: what a classifier or a function says of half a text is nobody's business.
        """
        found = [0.0] * len(beginnings)
        for penalty in self.penalties:
            if isinstance(penalty.cost, RuleCost):
                price = penalty.price.weight * self.scale.price_unit
                for place, measured in enumerate(penalty.cost.measure(beginnings)):
                    found[place] += price * measured.value
        return found

    def see(self, scores: Tensor, deviations: Tensor, samples: Sequence[Sample], share: Share | None = None) -> None:
        """Take in completions of the reference before training: scores are normalised by them, and no price moves.

        The windows of learned weights begin with them.
        """
        self.scale.see(scores)
        learned = [penalty for penalty in self.penalties if isinstance(penalty.price, Multiplier)]
        if learned:
            measured = self._measured(samples, deviations, self.scale.std, share)
            for penalty in learned:
                penalty.price.see(measured[penalty.label])

    def update(self, shaped: ShapedReward, *, learning: bool = True) -> None:
        """Move the prices by the completions of a rollout, of all ranks.

        Args:
            shaped: The rollout's rewards.
            learning: Whether the policy learns from the rollout; if not, prices see it and stay.
        """
        for penalty in self.penalties:
            measured = shaped.measured[penalty.label]
            (penalty.price.update if learning else penalty.price.see)(measured)

    def _measured(
        self, samples: Sequence[Sample | None], deviations: Tensor, unit: float, share: Share | None
    ) -> dict[str, list[Measured]]:
        if not self.penalties:
            return {}
        apart = (deviations.double() / unit).tolist()
        if any(isinstance(penalty.cost, EnsembleStd) for penalty in self.penalties) and not any(apart):
            raise InputError(
                "the disagreement of an ensemble is priced, and the reward is none",
                "set `ensemble` in the reward's stage, or delete the penalty 'ensemble_std'",
            )

        def measure(indices: Sequence[int]) -> list[tuple[Measured, ...]]:
            mine = [replace(_there(samples[index]), deviation=apart[index]) for index in indices]
            return list(zip(*(penalty.cost.measure(mine) for penalty in self.penalties), strict=True))

        rows = measure(range(len(samples))) if share is None else share(len(samples), measure)
        return {penalty.label: [row[place] for row in rows] for place, penalty in enumerate(self.penalties)}

    def _violated(self, measured: Mapping[str, Sequence[Measured]]) -> dict[str, float]:
        return {
            penalty.label: sum(each.value > penalty.cost.threshold for each in measured[penalty.label])
            / max(1, len(measured[penalty.label]))
            for penalty in self.penalties
        }

    # -- as a reward function of TRL -----------------------------------------------------------------------------------

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **more: Any,
    ) -> ShapedReward:
        """Score, shape, and move the prices where `training` says so; every rank must call it.

        Args:
            prompts: N prompts of this rank, as text or messages.
            completions: N completions, as text or messages.
            completion_ids: Their tokens.
            more: What TRL adds; `log_metric` and `log_extra` are told the terms.

        Raises:
            DataError: When the scorer gives another number of scores, or none that are finite.
            InputError: When an end that is missing costs, and nothing says where completions end; when scores are
                normalised by those of the reference, and `see` had none.
        """
        if self.scale.lacks_the_reference:
            raise InputError(
                "scores are normalised by those of the reference, and none were seen",
                "let `see` have scores of the reference's own completions before training",
            )
        asked, texts = [_prompt(prompt) for prompt in prompts], [_text(completion) for completion in completions]
        samples = self._samples(asked, texts, completion_ids)
        scores = self._scores(asked, texts)
        mine = [(score.value, score.std, float(s.finished)) for score, s in zip(scores, samples, strict=True)]
        shares = _gathered(mine)
        rank = dist.get_rank() if len(shares) > 1 else 0
        start = sum(len(each) for each in shares[:rank])
        everyone = torch.tensor([row for each in shares for row in each], dtype=torch.float64).reshape(-1, 3)

        def by_rank(count: int, work: Callable[[Sequence[int]], Sequence[T]]) -> list[T]:
            own = range(start, start + len(samples))
            return [result for each in _gathered(list(work(own))) for result in each]

        placed: list[Sample | None] = [None] * len(everyone)
        placed[start : start + len(samples)] = samples
        values, training, before = everyone.float(), self.training(), self.scale.state_dict()
        shaped = self.shape(values[:, 0], values[:, 1], everyone[:, 2].bool(), placed, by_rank)
        if training:
            self.update(shaped)
        else:
            self.scale.load_state_dict(before)  # which `running` has moved
        part = shaped.part(start, start + len(samples))
        _tell(shaped, part, more)
        return part

    def _samples(
        self, prompts: Sequence[Prompt], texts: Sequence[str], tokens: Sequence[Sequence[int]] | None
    ) -> list[Sample]:
        known = tokens is not None and bool(self._ends)
        if not known and (self.scale.prices_the_end or any(isinstance(p.cost, MissingEos) for p in self.penalties)):
            raise InputError(
                "a missing end costs, and it is not known where completions end",
                "give the shaper `end_token_ids`, and the call `completion_ids`",
            )
        found = []
        for place, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            ids = None if tokens is None else tuple(tokens[place])
            finished = not known or bool(ids and ids[-1] in self._ends)
            found.append(Sample(prompt, text, ids, finished, offsets=lazy_offsets(self._offsets, ids, text)))
        return found

    def _scores(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Score]:
        if self._score is None:
            return [Score(0.0)] * len(texts)
        given = self._score(prompts, texts)
        if len(given) != len(texts):
            raise DataError(f"the reward gave {len(given)} scores for {len(texts)} completions")
        try:
            return [each if isinstance(each, Score) else Score(float(each)) for each in given]
        except (TypeError, ValueError) as error:
            raise DataError(f"the reward must give finite numbers, and gave {given!r:.200}") from error

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Prices by the name of the penalty; the scale has a state of its own."""
        return {penalty.label: penalty.price.state_dict() for penalty in self.penalties}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what was kept."""
        for penalty in self.penalties:
            penalty.price.load_state_dict(state[penalty.label])


def lazy_offsets(
    offsets: Offsets | None, token_ids: Sequence[int] | None, text: str
) -> Callable[[], Sequence[int]] | None:
    """Computes the offsets of a completion's tokens when they are first asked for, and remembers them."""
    if offsets is None or token_ids is None:
        return None
    known: list[Sequence[int]] = []

    def ask() -> Sequence[int]:
        if not known:
            known.append(offsets(token_ids, text))
        return known[0]

    return ask


def _check_names(penalties: Sequence[Penalty]) -> None:
    labels = [penalty.label for penalty in penalties]
    taken = [each.label for each in penalties if each.label in RESERVED and not isinstance(each.cost, MissingEos)]
    if taken or len(set(labels)) < len(labels):
        raise ValueError(f"penalties need names of their own, and none of {', '.join(RESERVED)}: {labels}")


def _there(sample: Sample | None) -> Sample:
    assert sample is not None  # of another rank, which measures it
    return sample


def _prompt(prompt: Any) -> Prompt:
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    return tuple(each if isinstance(each, Message) else Message(each["role"], each["content"]) for each in prompt)


def _text(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    return "\n".join(each.content if isinstance(each, Message) else str(each["content"]) for each in completion)


def _gathered(value: T) -> list[T]:
    """What every rank holds, in the order of ranks."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _tell(shaped: ShapedReward, part: ShapedReward, more: Mapping[str, Any]) -> None:
    """Tells TRL's log what the reward is made of."""
    if "log_metric" in more:
        for name, value in shaped.metrics().items():
            more["log_metric"](name, value)
    if "log_extra" in more:
        more["log_extra"]("raw_reward", part.raw.tolist())
        for name, term in part.terms.items():
            more["log_extra"](f"reward_{name}", term.tolist())
