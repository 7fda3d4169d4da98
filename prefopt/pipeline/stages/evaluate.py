"""`kind: evaluate`: every policy answers the same held-out prompts; scores, wins, distance, and preferences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefopt.data.load import load_pairs, load_prompts
from prefopt.data.splits import position, prompt_key
from prefopt.data.templates import Encoder
from prefopt.errors import DataError, Interrupted
from prefopt.evaluation.policy import PairIds, PolicyBench
from prefopt.evaluation.summary import PolicyResult, policy_metrics, policy_table
from prefopt.models.generate import Sampled, SamplingOptions
from prefopt.models.roles import load_frozen
from prefopt.pipeline.base_model import OpenBase, adapter_of, data_policy, load_weights, open_base
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.training import tracked
from prefopt.recipe.schema import EvaluateSpec
from prefopt.records import Prompt
from prefopt.rewards.scorers import GoldScorer
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


def run(spec: EvaluateSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Measure the policies; writes `samples.jsonl`, `metrics.json` and `table.json`."""
    base = open_base(inputs, context)
    task, details = _prepare(spec, base, context)
    baseline = spec.baseline or spec.policies[0]
    names = [baseline, *(name for name in spec.policies if name != baseline)]
    folders = {name: folder for name in names if (folder := adapter_of(name, inputs)) is not None}
    # Not the stages' names: a stage may be called what PEFT's modules are called, or have a dot in its name.
    roles = {name: f"policy{index}" if name in folders else None for index, name in enumerate(names)}
    weights = load_weights(base, context)
    adapters = {role: folders[name] for name, role in roles.items() if role is not None}
    model = load_frozen(weights, adapters) if adapters else weights.eval()
    bench = PolicyBench(model, base.tokenizer, spec.per_device_eval_batch_size)

    results: dict[str, PolicyResult] = {}
    samples: list[dict[str, object]] = []
    for name in names:
        if context.stop():
            raise Interrupted(f"stage {context.stage} stopped before {name} was measured")
        results[name], rows = _measure(name, spec, bench, task, roles, context)
        samples.extend(rows)
    metrics = {name: policy_metrics(results[name], results[baseline], "gold") for name in names}
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


def _prepare(spec: EvaluateSpec, base: OpenBase, context: StageContext) -> tuple[_Task, dict[str, object]]:
    names = spec.prompts or spec.data
    prompts = load_prompts(names, context.recipe.data, context.recipe.seed)
    # In the order of the split, not of the files: a limit then takes from every data set alike.
    seed = context.recipe.seed
    held_out = sorted(prompts.eval, key=lambda prompt: position(prompt_key(prompt), seed))[: spec.max_prompts]
    if not held_out:
        raise DataError(
            f"stage {context.stage}: no prompts of {', '.join(names)} are held out",
            "give the data an eval_fraction > 0",
        )
    overlong, _ = data_policy(names, context)
    encoder = base.encoder(spec.max_length, overlong)
    encoded = [(p, encoder.encode_prompt(p, spec.max_new_tokens)) for p in held_out]
    kept = [(p, ids) for p, ids in encoded if ids is not None]
    if not kept:
        raise DataError(
            f"stage {context.stage}: none of {len(encoded)} prompts fits into max_length", "raise max_length"
        )
    repeated = [(g, p, ids) for g, (p, ids) in enumerate(kept) for _ in range(spec.samples_per_prompt)]
    pairs, pair_details = _pairs(spec, encoder, context)
    task = _Task([p for _, p, _ in repeated], [ids for _, _, ids in repeated], [g for g, _, _ in repeated], pairs)
    details = {
        "data": prompts.report.to_json(),
        "encoding": {"chat_template": base.template, **dict(encoder.counts)},
        **pair_details,
    }
    return task, details


def _pairs(spec: EvaluateSpec, encoder: Encoder, context: StageContext) -> tuple[list[PairIds], dict[str, object]]:
    if not spec.data:
        return [], {}
    pairs = load_pairs(spec.data, context.recipe.data, context.recipe.seed).eval
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
    bench: PolicyBench,
    task: _Task,
    roles: Mapping[str, str | None],
    context: StageContext,
) -> tuple[PolicyResult, list[dict[str, object]]]:
    """Sample, score and compare one policy; `roles` maps each policy to its adapter, None where it is the base."""
    position = list(roles).index(name)
    total = len(roles) * len(task.prompts)
    baseline = next(iter(roles))
    options = SamplingOptions(
        max_new_tokens=spec.max_new_tokens,
        temperature=spec.temperature,
        top_p=spec.top_p,
        batch_size=spec.per_device_eval_batch_size,
        seed=context.seed,
    )
    context.log(f"sampling {len(task.prompts)} completions from {name}")
    samples = bench.sample(
        roles[name],
        task.prompt_ids,
        options,
        lambda done: context.progress(position * len(task.prompts) + done, total, {}),
    )
    kl = bench.kl(roles[name], roles[baseline], task.prompt_ids, samples)
    scores, violations = _gold(spec, task.prompts, samples)
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
    )
    rows: list[dict[str, object]] = [
        {
            "policy": name,
            "prompt": [{"role": message.role, "content": message.content} for message in task.prompts[i]],
            "completion": sample.text,
            "finished": sample.finished,
            "tokens": len(sample.ids),
            "gold": scores[i] if scores else None,
            "kl": kl[i],
            "violations": violations[i] if violations else [],
        }
        for i, sample in enumerate(samples)
    ]
    return result, rows


def _gold(
    spec: EvaluateSpec, prompts: Sequence[Prompt], samples: Sequence[Sampled]
) -> tuple[list[float], list[list[str]]]:
    if spec.reward != "gold":
        return [], []
    scorer = GoldScorer()
    texts = [sample.text for sample in samples]
    return [score.value for score in scorer.score(prompts, texts)], scorer.violations(texts)
