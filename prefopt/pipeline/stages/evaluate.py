"""`kind: evaluate`: every policy answers the same held-out prompts; scores, wins, distance, and preferences."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from prefopt.data.load import load_pairs, load_prompts
from prefopt.data.splits import position, prompt_key
from prefopt.data.templates import Encoder
from prefopt.errors import DataError, Interrupted
from prefopt.evaluation.policy import PairIds, PolicyBench
from prefopt.evaluation.summary import PolicyResult, policy_metrics, policy_table
from prefopt.models.generate import Sampled
from prefopt.pipeline.base_model import OpenBase, data_of, data_policy, open_base
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.policies import OpenPolicies, open_policies, sampling_options
from prefopt.pipeline.scoring import open_scorer
from prefopt.pipeline.training import tracked
from prefopt.recipe.schema import DataSpec, EvaluateSpec
from prefopt.records import Prompt
from prefopt.rewards.scorers import GoldScorer, Scorer
from prefopt.store.files import write_atomic, write_json

# Of the baseline and of the last policy; samples.jsonl has all.
SAMPLES_TRACKED = 50


@dataclass(frozen=True)
class _Task:
    """Prompts repeated for every sample of theirs, and pairs, tokenised."""

    prompts: Sequence[Prompt]
    prompt_ids: Sequence[Sequence[int]]
    groups: Sequence[int]
    pairs: Sequence[PairIds]
    scorer: Scorer | None


def run(spec: EvaluateSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Measure the policies; writes `samples.jsonl`, `metrics.json` and `table.json`."""
    base = open_base(inputs, context)
    task, details = _prepare(spec, base, inputs, context)
    baseline = spec.baseline or spec.policies[0]
    names = [baseline, *(name for name in spec.policies if name != baseline)]
    opened = open_policies(names, inputs, context, base, spec.per_device_eval_batch_size)

    results: dict[str, PolicyResult] = {}
    samples: list[dict[str, object]] = []
    for name in names:
        if context.stop():
            raise Interrupted(f"stage {context.stage} stopped before {name} was measured")
        results[name], rows = _measure(name, spec, opened, task, context)
        samples.extend(rows)
    score_name = "gold" if isinstance(task.scorer, GoldScorer) else "reward"
    metrics = {name: policy_metrics(results[name], results[baseline], score_name) for name in names}
    flat = {f"{name}:{key}": value for name, values in metrics.items() for key, value in values.items()}
    flat["evaluate/prompts"] = float(len(set(task.groups)))
    flat["evaluate/samples"] = float(len(task.groups))
    if context.recipe.tracking.wandb is not None:
        with tracked(spec, context, resume_step=None) as tracker:
            tracker.summary(flat)
            tracker.table("samples", samples[:SAMPLES_TRACKED] + samples[-SAMPLES_TRACKED:])
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in samples)
    write_atomic(context.directory / "samples.jsonl", lines)
    write_json(context.directory / "metrics.json", flat)
    write_json(context.directory / "table.json", policy_table(metrics, baseline))
    outputs = ["samples.jsonl", "metrics.json", "table.json"]
    return StageResult(metrics=flat, outputs=outputs, details={**details, "baseline": baseline}, cost={})


def _prepare(
    spec: EvaluateSpec, base: OpenBase, inputs: Inputs, context: StageContext
) -> tuple[_Task, dict[str, object]]:
    names = spec.prompts or spec.data
    data = data_of(inputs, context)
    prompts = load_prompts(names, data, context.recipe.seed)
    # In the order of the split, not of the files: a limit then takes from every data set alike.
    seed = context.recipe.seed
    held_out = sorted(prompts.eval, key=lambda prompt: position(prompt_key(prompt), seed))[: spec.max_prompts]
    if not held_out:
        raise DataError(
            f"stage {context.stage}: no prompts of {', '.join(names)} are held out",
            "give the data an eval_fraction > 0",
        )
    overlong, _ = data_policy(names, data)
    encoder = base.encoder(spec.max_length, overlong)
    encoded = [(p, encoder.encode_prompt(p, spec.max_new_tokens)) for p in held_out]
    kept = [(p, ids) for p, ids in encoded if ids is not None]
    if not kept:
        raise DataError(
            f"stage {context.stage}: none of {len(encoded)} prompts fits into max_length", "raise max_length"
        )
    repeated = [(g, p, ids) for g, (p, ids) in enumerate(kept) for _ in range(spec.samples_per_prompt)]
    pairs, pair_details = _pairs(spec, encoder, data, context)
    task = _Task(
        prompts=[p for _, p, _ in repeated],
        prompt_ids=[ids for _, _, ids in repeated],
        groups=[g for g, _, _ in repeated],
        pairs=pairs,
        scorer=open_scorer(spec.reward, inputs, context) if spec.reward is not None else None,
    )
    details = {
        "data": prompts.report.to_json(),
        "encoding": {"chat_template": base.template, **dict(encoder.counts)},
        **pair_details,
    }
    return task, details


def _pairs(
    spec: EvaluateSpec, encoder: Encoder, data: Mapping[str, DataSpec], context: StageContext
) -> tuple[list[PairIds], dict[str, object]]:
    if not spec.data:
        return [], {}
    pairs = load_pairs(spec.data, data, context.recipe.seed).eval
    rows: list[PairIds] = []
    for pair in pairs:
        ids = encoder.encode_pair(pair) if pair.probability != 0.5 else None  # a tie prefers neither
        if ids is not None:
            better, worse = ids.chosen_ids, ids.rejected_ids
            rows.append(PairIds(ids.prompt_ids, *((better, worse) if pair.probability > 0.5 else (worse, better))))
    return rows, {"pairs": len(rows)}


def _measure(
    name: str,
    spec: EvaluateSpec,
    opened: OpenPolicies,
    task: _Task,
    context: StageContext,
) -> tuple[PolicyResult, list[dict[str, object]]]:
    """Sample, score and compare one policy with the first of those that are open."""
    bench, roles = opened.bench, opened.adapters
    position = list(roles).index(name)
    total = len(roles) * len(task.prompts)
    baseline = next(iter(roles))
    options = sampling_options(spec, context.seed)
    scorer = task.scorer
    context.log(f"sampling {len(task.prompts)} completions from {name}")
    samples = bench.sample(
        roles[name],
        task.prompt_ids,
        options,
        lambda done: context.progress(position * len(task.prompts) + done, total, {}),
    )
    kl = bench.kl(roles[name], roles[baseline], task.prompt_ids, samples)
    scores = _rewards(scorer, task.prompts, samples)
    violations = scorer.violations([s.text for s in samples]) if isinstance(scorer, GoldScorer) else []
    margins = [] if name == baseline else bench.preference_margins(roles[name], roles[baseline], task.pairs)
    result = PolicyResult(
        policy=name,
        prompts=task.groups,
        lengths=[len(sample.ids) for sample in samples],
        finished=[sample.finished for sample in samples],
        kl=kl,
        scores=scores,
        violated=[bool(found) for found in violations],
        margins=margins,
        ceiling=_ceiling(spec, bench, task, roles[name], context) if name == baseline else {},
    )
    rows: list[dict[str, object]] = [
        {
            "policy": name,
            "prompt": [{"role": message.role, "content": message.content} for message in task.prompts[i]],
            "completion": sample.text,
            "finished": sample.finished,
            "tokens": len(sample.ids),
            "reward": scores[i] if scores else None,
            "gold": scores[i] if isinstance(scorer, GoldScorer) else None,
            "kl": kl[i],
            "violations": violations[i] if violations else [],
        }
        for i, sample in enumerate(samples)
    ]
    return result, rows


def _rewards(scorer: Scorer | None, prompts: Sequence[Prompt], samples: Sequence[Sampled]) -> list[float]:
    if scorer is None:
        return []
    return [score.value for score in scorer.score(prompts, [sample.text for sample in samples])]


def _ceiling(
    spec: EvaluateSpec,
    bench: PolicyBench,
    task: _Task,
    role: str | None,
    context: StageContext,
) -> dict[Hashable, float]:
    """For the first prompts, the reward of the best of n further answers of the baseline."""
    if spec.best_of is None or task.scorer is None:
        return {}
    first = {group: index for index, group in reversed(list(enumerate(task.groups))) if group < spec.best_of_prompts}
    rows = [(group, index) for group, index in sorted(first.items()) for _ in range(spec.best_of)]
    context.log(f"sampling {spec.best_of} completions of {len(first)} prompts for the headroom")
    options = sampling_options(spec, context.seed + 1)
    samples = bench.sample(role, [task.prompt_ids[index] for _, index in rows], options)
    rewards = _rewards(task.scorer, [task.prompts[index] for _, index in rows], samples)
    best: dict[Hashable, float] = {}
    for (group, _), reward in zip(rows, rewards, strict=True):
        best[group] = max(reward, best.get(group, reward))
    return best
