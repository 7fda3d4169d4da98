"""`kind: collect`: preference pairs from policies' own completions, sampled, judged and kept in the run's ledger."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from prefopt.data.load import load_prompts
from prefopt.data.sampled import AsSampled, sampled_column, text_key
from prefopt.data.splits import position, prompt_key
from prefopt.errors import DataError, Interrupted
from prefopt.feedback.judges import label
from prefopt.feedback.pairing import Candidate, distinct, pairs_of
from prefopt.feedback.sampling import Asked, sample_into
from prefopt.models.flops import flops_model
from prefopt.pipeline.base_model import PAIRS_FILE, OpenBase, data_of, data_policy, open_base, policy_of
from prefopt.pipeline.collect_costs import Shaped, cost_metrics, shaped_answers
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.cost import sampling_cost
from prefopt.pipeline.policies import open_policies, sampling_options
from prefopt.pipeline.scoring import open_scorer, scorer_identity
from prefopt.pipeline.training import tracked
from prefopt.recipe.schema import CollectSpec
from prefopt.records import Prompt, SampledTokens, conversation
from prefopt.store.files import write_json_lines
from prefopt.store.ledger import Ledger, StoredJudgement, StoredSample, canonical_prompt, judgement_key, key_of

QUESTION = "which answer is better?"
SCORED_AT_ONCE = 512
SAMPLES_TRACKED = 100


@dataclass(frozen=True)
class _Answer:
    """A completion with what the judge gave it."""

    policy: str
    sample: StoredSample
    reward: float
    shaped: Shaped | None = None

    def candidate(self, context: str) -> Candidate:
        """As one side of a pair of a prompt; `context` as in `SampledTokens`."""
        text = self.sample.completion
        sampled = SampledTokens(self.sample.finished, text_key(text), self.sample.ids, context)
        reward, raw = (self.reward, None) if self.shaped is None else (self.shaped.reward, self.reward)
        return Candidate(text, reward, self.policy, raw, sampled)


def run(spec: CollectSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Sample, judge and pair; writes `pairs.jsonl` and `samples.jsonl`."""
    base = open_base(inputs, context)
    asked, details = _asked(spec, inputs, context, base)
    with Ledger(context.ledger, context.stage) as ledger:
        sampled, flops = _sample(spec, inputs, context, base, asked, ledger)
        answers = _score(spec, inputs, context, asked, sampled, ledger)
        if spec.costs:
            answers = _shape(spec, inputs, context, base, asked, answers)
        rows, found = _pairs(spec, inputs, context, asked, answers, ledger)
    if not rows:
        raise DataError(
            f"stage {context.stage}: no pair in {len(asked)} prompts: {dict(found)}",
            "raise samples_per_prompt or temperature, or choose another judge",
        )
    samples = [
        _sample_row(prompt.prompt, answer) for prompt, each in zip(asked, answers, strict=True) for answer in each
    ]
    metrics = _metrics(asked, answers, rows, found)
    shaped = [answer.shaped for each in answers for answer in each if answer.shaped is not None]
    metrics |= cost_metrics(shaped, sum(_is_dropped(spec, answer) for each in answers for answer in each))
    if context.recipe.tracking.wandb is not None:
        with tracked(spec, context, resume_step=None) as tracker:
            tracker.summary(metrics)
            tracker.table("samples", samples[:SAMPLES_TRACKED])
    for name, lines in ((PAIRS_FILE, rows), ("samples.jsonl", samples)):
        write_json_lines(context.directory / name, lines)
    return StageResult(
        metrics=metrics,
        outputs=[PAIRS_FILE, "samples.jsonl"],
        details={**details, "without_a_pair": dict(found)},
        # Of all completions, also of those that an earlier attempt left in the ledger.
        cost={"tokens": float(sum(answer.sample.tokens for each in answers for answer in each)), "flops": flops},
    )


def _asked(
    spec: CollectSpec, inputs: Inputs, context: StageContext, base: OpenBase
) -> tuple[list[Asked], dict[str, object]]:
    """Prompts to answer; a limit takes of training and held-out prompts alike, so that both have pairs."""
    data = data_of(inputs, context)
    prompts = load_prompts(spec.prompts, data, context.recipe.seed)
    overlong, max_dropped = data_policy(spec.prompts, data)
    encoder = base.encoder(spec.max_length, overlong)
    seed = context.recipe.seed
    total = len(prompts.train) + len(prompts.eval)
    chosen: list[Prompt] = []
    for part in (prompts.train, prompts.eval):
        ranked = sorted(part, key=lambda prompt: position(prompt_key(prompt), seed))
        if spec.max_prompts is None or not ranked:
            chosen += ranked
            continue
        size = max(1, round(spec.max_prompts * len(ranked) / total))
        start = round(spec.prompt_offset * len(ranked) / total) % len(ranked)
        chosen += [*ranked[start:], *ranked[:start]][:size]
    encoded = [(prompt, encoder.encode_prompt(prompt, spec.max_new_tokens)) for prompt in chosen]
    encoder.check_drop_share(max_dropped)
    as_sampled = AsSampled(base.tokenizer)
    asked = [Asked(prompt, ids, as_sampled.context(prompt)) for prompt, ids in encoded if ids is not None]
    if not asked:
        raise DataError(f"stage {context.stage}: no prompt of {', '.join(spec.prompts)} can be answered")
    return asked, {
        "data": prompts.report.to_json(),
        "encoding": {"chat_template": base.template, **dict(encoder.counts)},
    }


def _sample(
    spec: CollectSpec,
    inputs: Inputs,
    context: StageContext,
    base: OpenBase,
    asked: Sequence[Asked],
    ledger: Ledger,
) -> tuple[list[list[tuple[str, StoredSample]]], float]:
    """Completions of every prompt by every policy, and the operations they take.

    The model is let go of before the judge's is loaded.
    """
    folders = {name: policy_of(name, inputs) for name in spec.policies}
    opened = open_policies(folders, context, base, spec.per_device_eval_batch_size)
    options = sampling_options(spec, context.seed)
    model = flops_model(opened.bench.model)
    each = len(asked) * spec.samples_per_prompt
    found: list[list[tuple[str, StoredSample]]] = [[] for _ in asked]
    flops = 0.0
    for number, name in enumerate(spec.policies):
        context.log(f"{each} completions of {len(asked)} prompts from {name}")

        def progress(done: int, before: int = number * each) -> None:
            context.progress(before + done, each * len(spec.policies), {})
            if context.stop():
                raise Interrupted(f"stage {context.stage} stopped; what was sampled is in the ledger")

        answers = sample_into(
            ledger,
            name,
            # The key of this stage covers what the base is.
            inputs[name].manifest.sha256 if name in inputs else context.key,
            asked,
            spec.samples_per_prompt,
            partial(opened.bench.sample, opened.adapters[name]),
            options,
            progress,
        )
        for prompt, into, samples in zip(asked, found, answers, strict=True):
            into += [(name, sample) for sample in samples]
            new = [sample.tokens for sample in samples]
            flops += sampling_cost(model, [prompt.ids] * len(samples), new)
    return found, flops


def _score(
    spec: CollectSpec,
    inputs: Inputs,
    context: StageContext,
    asked: Sequence[Asked],
    sampled: Sequence[Sequence[tuple[str, StoredSample]]],
    ledger: Ledger,
) -> list[list[_Answer]]:
    identity = scorer_identity(spec.judge, inputs)
    keys = [
        [key_of("score", canonical_prompt(prompt.prompt), sample.completion, identity) for _, sample in each]
        for prompt, each in zip(asked, sampled, strict=True)
    ]
    texts: dict[str, tuple[Prompt, str]] = {
        key: (prompt.prompt, sample.completion)
        for prompt, each, named in zip(asked, sampled, keys, strict=True)
        for (_, sample), key in zip(each, named, strict=True)
    }
    known = ledger.scores(list(texts))
    missing = [key for key in texts if key not in known]
    if missing:
        scorer = open_scorer(spec.judge, inputs, context)
        context.log(f"{scorer.name} scores {len(missing)} completions")
        for start in range(0, len(missing), SCORED_AT_ONCE):
            part = missing[start : start + SCORED_AT_ONCE]
            scores = scorer.score([texts[key][0] for key in part], [texts[key][1] for key in part])
            found = {key: (score.value, score.std) for key, score in zip(part, scores, strict=True)}
            ledger.add_scores(scorer.name, found)
            known |= {key: value for key, (value, _) in found.items()}
            if context.stop():
                raise Interrupted(f"stage {context.stage} stopped; what was judged is in the ledger")
    return [
        [_Answer(policy, sample, known[key]) for (policy, sample), key in zip(each, named, strict=True)]
        for each, named in zip(sampled, keys, strict=True)
    ]


def _shape(
    spec: CollectSpec,
    inputs: Inputs,
    context: StageContext,
    base: OpenBase,
    asked: Sequence[Asked],
    answers: Sequence[Sequence[_Answer]],
) -> list[list[_Answer]]:
    """The answers with what costs take off their rewards."""
    flat = [
        (prompt.prompt, answer.sample, answer.reward)
        for prompt, each in zip(asked, answers, strict=True)
        for answer in each
    ]
    shaped = iter(shaped_answers(spec.costs, flat, base.tokenizer, inputs, context))
    return [[replace(answer, shaped=next(shaped)) for answer in each] for each in answers]


def _is_dropped(spec: CollectSpec, answer: _Answer) -> bool:
    return spec.on_violation == "drop" and answer.shaped is not None and bool(answer.shaped.violated)


def _pairs(
    spec: CollectSpec,
    inputs: Inputs,
    context: StageContext,
    asked: Sequence[Asked],
    answers: Sequence[Sequence[_Answer]],
    ledger: Ledger,
) -> tuple[list[dict[str, object]], Counter[str]]:
    """Pairs with labels, and why prompts gave none."""
    judge = [
        *scorer_identity(spec.judge, inputs),
        spec.judge.model_dump(mode="json", include={"labels", "noise", "scale"}),
        context.seed,
    ]
    if spec.costs:  # what they take off depends on all answers of the stage
        judge.append(context.key)
    name = spec.judge.label
    rows: list[dict[str, object]] = []
    found: Counter[str] = Counter()
    fresh: dict[str, StoredJudgement] = {}
    for prompt, each in zip(asked, answers, strict=True):
        candidates = [answer.candidate(prompt.context) for answer in each if not _is_dropped(spec, answer)]
        text = canonical_prompt(prompt.prompt)
        rng = random.Random(key_of("pairs", context.seed, text))
        pairs = pairs_of(candidates, spec.pairing, spec.pairs_per_prompt, rng)
        if not pairs:
            found[_why_not(each, candidates)] += 1
        for better, worse in pairs:
            key, in_order = judgement_key(prompt.prompt, better.text, worse.text, QUESTION, judge)
            if key not in (known := ledger.judgements([key])):
                drawn = random.Random(key_of("label", key))
                gap = better.reward - worse.reward
                probability = label(gap, spec.judge.labels, spec.judge.noise, spec.judge.scale, drawn)
                known[key] = probability if in_order else 1 - probability
                first, second = sorted((better.text, worse.text))
                fresh[key] = StoredJudgement(prompt.prompt, first, second, known[key])
            stored = known[key]
            assert stored is not None  # these judges do not abstain
            probability = stored if in_order else 1 - stored
            rows.append(_pair_row(prompt.prompt, better, worse, probability, name, key))
    ledger.add_judgements(name, QUESTION, fresh)
    return rows, found


def _why_not(answers: Sequence[_Answer], candidates: Sequence[Candidate]) -> str:
    """Why a prompt gave no pair."""
    if len(distinct(candidates)) >= 2:
        return "all rewards alike"
    return "all but one violate" if len(candidates) < len(answers) else "all answers alike"


def _pair_row(
    prompt: Prompt, better: Candidate, worse: Candidate, probability: float, judge: str, key: str
) -> dict[str, object]:
    """One line of `pairs.jsonl`: chosen is what the label prefers, which may be the lower reward."""
    chosen, rejected = (better, worse) if probability >= 0.5 else (worse, better)
    shaped = {} if chosen.raw is None else {"shaped_chosen": chosen.reward, "shaped_rejected": rejected.reward}
    assert chosen.sampled is not None and rejected.sampled is not None
    return {
        "prompt": conversation(prompt),
        "chosen": chosen.text,
        "rejected": rejected.text,
        "probability": max(probability, 1 - probability),
        "id": key[:16],
        "annotator": judge,
        "policy_chosen": chosen.policy,
        "policy_rejected": rejected.policy,
        "reward_chosen": chosen.reward if chosen.raw is None else chosen.raw,
        "reward_rejected": rejected.reward if rejected.raw is None else rejected.raw,
        **shaped,
        "sampled_chosen": sampled_column(chosen.sampled),
        "sampled_rejected": sampled_column(rejected.sampled),
    }


def _sample_row(prompt: Prompt, answer: _Answer) -> dict[str, object]:
    return {
        "policy": answer.policy,
        "prompt": conversation(prompt),
        "completion": answer.sample.completion,
        "finished": answer.sample.finished,
        "tokens": answer.sample.tokens,
        "reward": answer.reward,
        **({} if answer.shaped is None else answer.shaped.to_json()),
    }


def _metrics(
    asked: Sequence[Asked],
    answers: Sequence[Sequence[_Answer]],
    rows: Sequence[Mapping[str, object]],
    found: Counter[str],
) -> dict[str, float]:
    flat = [answer for each in answers for answer in each]
    different = sum(len({answer.sample.completion for answer in each}) for each in answers)
    by = "shaped" if flat and flat[0].shaped is not None else "reward"
    agree = sum(float(str(row[f"{by}_chosen"])) > float(str(row[f"{by}_rejected"])) for row in rows)
    return {
        "collect/prompts": float(len(asked)),
        "collect/samples": float(len(flat)),
        "collect/pairs": float(len(rows)),
        "collect/reward": sum(answer.reward for answer in flat) / len(flat),
        "collect/tie_rate": found["all rewards alike"] / len(asked),
        "collect/duplicate_rate": 1 - different / len(flat),
        "collect/label_agreement": agree / len(rows),
    }
