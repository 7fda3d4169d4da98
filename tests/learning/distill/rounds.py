"""Rounds in which a model learns from its own answers, under the same context: what keeps it from collapsing.

The guards only watch here (`action: warn` of a stage), so that a run shows both what becomes of the model and in which
round they would have stopped it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from prefopt.feedback.targets import Answer, kept
from prefopt.models.generate import SamplingOptions, sample
from prefopt.models.roles import POLICY, REFERENCE, activate_trained, adapter_of, load_adapter_tensors
from prefopt.pipeline.targets import replayed
from prefopt.recipe.distill import KeepSpec
from prefopt.trainers.collapse import CollapseLimits, Look
from tests.learning.distill import students, world
from tests.learning.distill.students import HELD_OUT, NEW_TOKENS
from tests.learning.distill.world import NONE

ROUNDS = 4
PROMPTS, STEPS = 512, 60
REPLAY = 0.25
LIMITS = CollapseLimits(every=10, prompts=128, stop=False)
ALL = KeepSpec(ended=False, min_tokens=0, max_copies=None, min_logp_quantile=0.0)


@dataclass(frozen=True)
class Loop:
    """How the rounds are run.

    Attributes:
        temperature: Of the model's answers; 0 is greedy.
        keep: Which are learned.
        accumulate: Whether what earlier rounds learned is learned again, and a quarter of the rows is real data.
    """

    temperature: float
    keep: KeepSpec = ALL
    accumulate: bool = False


TOP_HALF = ALL.model_copy(update={"min_reward_quantile": 0.5})
LOOPS: Mapping[str, Loop] = {
    "argmax, replace": Loop(0.0),
    "temperature 0.7, replace": Loop(0.7),
    "temperature 0.7, accumulate and replay": Loop(0.7, accumulate=True),
    "better half, replace": Loop(1.0, TOP_HALF),
    "better half, accumulate and replay": Loop(1.0, TOP_HALF, accumulate=True),
}


def gold(ids: Sequence[int]) -> float:
    """What answers are worth where they are chosen: their share of words of style A."""
    return world.style([ids])


def loop(model: PreTrainedModel, name: str, seed: int) -> list[dict[str, Any]]:
    """A row for the start and for every round: `entropy`, `nll` of real text, `gold`, `guard` (what spoke up)."""
    how, peft = LOOPS[name], students.adapted(model, seed)
    held_out = world.questions(HELD_OUT, seed + 3000)
    watched = [{"prompt_ids": world.prompt(NONE, each), "completion_ids": [world.END]} for each in held_out]
    real = world.real(NONE, held_out, seed + 2)
    found, origin = [_row(peft, seed, Look(0.0), None)], None
    learned: list[dict[str, Any]] = []
    for number in range(ROUNDS):
        fresh = _answers(peft, how, seed * 100 + number)
        learned = [*learned, *fresh] if how.accumulate else fresh
        pool = world.real(NONE, world.questions(PROMPTS, seed + 4000), seed + 5)
        beside = replayed(pool, REPLAY if how.accumulate else 0.0, len(learned), seed, soft=False)
        _stand_on_the_last(peft, number)
        made = students.trainer(
            peft, [*learned, *beside], seed + number, held_out=watched, elsewhere=real, origin=origin, guards=LIMITS,
            max_steps=STEPS,
        )  # fmt: skip
        made.train()
        assert made.guard is not None
        origin = made.guard.origin
        found.append(_row(peft, seed + number, made.look(), made.guard.reason))
    found[0] |= {"entropy": origin.entropy if origin else 0.0, "nll": origin.nll if origin else None}
    return found


def _answers(peft: PeftModel, how: Loop, seed: int) -> list[dict[str, Any]]:
    """What the model says, as far as it is kept."""
    prompts = [world.prompt(NONE, each) for each in world.questions(PROMPTS, seed + 1000)]
    options = SamplingOptions(NEW_TOKENS, temperature=how.temperature, batch_size=256, seed=seed)
    said = sample(peft, world.tokenizer(), prompts, options)
    answers = [
        Answer(number, (), each.text, each.finished, len(each.ids), 0.0, gold(each.ids))
        for number, each in enumerate(said)
    ]
    chosen, _ = kept(answers, how.keep)
    return [
        {"prompt_ids": prompts[each.number], "completion_ids": list(said[each.number].ids), "soft": False}
        for each in chosen
    ]


def _stand_on_the_last(peft: PeftModel, number: int) -> None:
    """The student of the round before becomes the frozen reference of the one that is trained."""
    if number == 1:
        peft.add_adapter(REFERENCE, peft.peft_config[POLICY])
    if number:
        load_adapter_tensors(peft, REFERENCE, adapter_of(peft, POLICY).tensors)
        activate_trained(peft, POLICY)


def _row(peft: PeftModel, seed: int, look: Look, reason: str | None) -> dict[str, Any]:
    prompts = [world.prompt(NONE, each) for each in world.questions(HELD_OUT, seed + 3000)]
    said = sample(peft, world.tokenizer(), prompts, SamplingOptions(NEW_TOKENS, batch_size=256, seed=seed))
    return {
        "entropy": look.entropy,
        "nll": look.nll,
        "gold": sum(gold(each.ids) for each in said) / len(said),
        "guard": reason,
    }
