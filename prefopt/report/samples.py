"""Which completions to show, and side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefopt.report.damage import is_real
from prefopt.report.evaluation import baseline_of
from prefopt.report.format import LabelledSpan, Segment, fixed, segments, turns
from prefopt.report.rundata import StageData, reward_of

SHOWN = 12
_MOST_SPANS = 512


@dataclass(frozen=True)
class Answer:
    """What one policy said; `costs` are names with amounts, of those that are not 0."""

    policy: str
    text: list[Segment]
    reward: float | None
    judged: str
    tokens: int | None
    finished: bool
    violations: list[list[Segment]]
    costs: list[tuple[list[Segment], str]]


@dataclass(frozen=True)
class Sample:
    """One prompt with every policy's answer."""

    prompt: list[tuple[str, list[Segment]]]
    answers: list[Answer]


@dataclass(frozen=True)
class Samples:
    """The chosen prompts and the rule they were chosen by."""

    stage: str
    rule: str
    items: list[Sample]


Answers = dict[str, Mapping[str, Any]]


def samples_of(stage: StageData, count: int = SHOWN) -> Samples | None:
    """The prompts of a stage to show: evaluate's, or what collect or the last rollout of ppo sampled.

    With a reward they are evenly spaced from the largest loss to the largest gain against the baseline, so that the
    worst, the middle and the best are all seen; without one they are evenly spaced in the order of the file.

    Args:
        stage: A stage with samples.
        count: Prompts to show.
    """
    prompts = _by_prompt(stage)
    if not prompts:
        return None
    baseline = baseline_of(stage)
    names = list(dict.fromkeys(name for answers in prompts.values() for name in answers))
    names.sort(key=lambda name: name != baseline)
    rule = "in the order they were asked"
    ordered = list(prompts.items())
    challenger = next((name for name in reversed(names) if name != baseline), None)
    if challenger is not None:
        gains = {key: _gain(answers, challenger, baseline) for key, answers in prompts.items()}
        if any(gain is not None for gain in gains.values()):
            ordered = [item for item in ordered if gains[item[0]] is not None]
            ordered.sort(key=lambda item: (gains[item[0]], item[0]))
            rule = f"from the largest loss to the largest gain of {challenger} over {baseline} in reward"
    chosen = _spaced(len(ordered), count)
    everything = len(chosen) == len(prompts)
    share = f"all {len(prompts)} prompts" if everything else f"{len(chosen)} of {len(prompts)} prompts, evenly spaced"
    return Samples(stage.name, f"{share} {rule}", [_sample(*ordered[i], names) for i in chosen])


def _by_prompt(stage: StageData) -> dict[str, Answers]:
    prompts: dict[str, Answers] = {}
    for row in stage.samples:
        key = json.dumps(row.get("prompt"), sort_keys=True)
        # The first of several samples of one prompt stands for the policy.
        prompts.setdefault(key, {}).setdefault(str(row.get("policy", "")), row)
    return prompts


def _reward(row: Mapping[str, Any] | None) -> float | None:
    return None if row is None else reward_of(row)


def _gain(answers: Answers, challenger: str, baseline: str) -> float | None:
    ours, theirs = _reward(answers.get(challenger)), _reward(answers.get(baseline))
    return None if ours is None or theirs is None else ours - theirs


def _spaced(length: int, count: int) -> list[int]:
    if length <= count:
        return list(range(length))
    if count == 1:
        return [0]
    return [round(i * (length - 1) / (count - 1)) for i in range(count)]


def _sample(key: str, answers: Answers, names: list[str]) -> Sample:
    return Sample(turns(json.loads(key)), [_answer(name, answers[name]) for name in names if name in answers])


def _answer(policy: str, row: Mapping[str, Any]) -> Answer:
    listed = row.get("violations")
    violations = [str(item) for item in listed] if isinstance(listed, list) else []
    tokens = row.get("tokens")
    return Answer(
        policy=policy,
        text=segments(str(row.get("completion", "")), violations, _spans(row.get("spans"))),
        reward=_reward(row),
        judged="gold" if isinstance(row.get("gold"), int | float) else "reward",
        tokens=tokens if isinstance(tokens, int) else None,
        finished=bool(row.get("finished", True)),
        violations=[segments(item) for item in violations],
        costs=_costs(row.get("costs")),
    )


def _spans(listed: object) -> list[LabelledSpan]:
    """Spans with the name of their cost; what is damaged is left out."""
    found = []
    for name, spans in listed.items() if isinstance(listed, Mapping) else ():
        for span in spans if isinstance(spans, list) else ():
            if isinstance(span, list) and len(span) == 2 and all(type(place) is int for place in span):
                found.append((span[0], span[1], str(name)))
    return found[:_MOST_SPANS]


def _costs(listed: object) -> list[tuple[list[Segment], str]]:
    found = listed.items() if isinstance(listed, Mapping) else ()
    return [(segments(str(name)), fixed(float(value), 2)) for name, value in found if is_real(value) and value]
