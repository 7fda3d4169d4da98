"""`kind: evaluate`: policies that answer the same held-out prompts, compared; or a reward model, examined."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from prefopt.evaluation.curves import Many, best_of_n, overoptimisation
from prefopt.evaluation.findings import Findings
from prefopt.evaluation.summary import PolicyResult, policy_metrics, policy_table
from prefopt.pipeline.base_model import data_of, open_base
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.costs import open_cost
from prefopt.pipeline.policy_suites import Answered, PolicySuites, Task, prepare
from prefopt.pipeline.reward_suites import examine_reward
from prefopt.pipeline.scoring import open_scorer
from prefopt.pipeline.training import tracked
from prefopt.recipe.options.suites import POLICY_SUITES, REWARD_SUITES
from prefopt.recipe.schema import EvaluateSpec
from prefopt.records import conversation
from prefopt.rewards.costs.sample import Measured, costs_to_json
from prefopt.rewards.scorers import GoldScorer, Scorer
from prefopt.store.files import write_json, write_json_lines

# Of the baseline and of the last policy; samples.jsonl has all.
SAMPLES_TRACKED = 50


@dataclass
class _Measured:
    """What the stage has to tell."""

    findings: Findings = field(default_factory=Findings)
    table: dict[str, object] | None = None
    samples: list[dict[str, object]] = field(default_factory=list)
    details: dict[str, object] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)


def suites_of(spec: EvaluateSpec) -> tuple[str, ...]:
    """The suites of a stage: those it names, or all that its other keys allow."""
    if spec.suites:
        return spec.suites
    return POLICY_SUITES if spec.policies else REWARD_SUITES


def run(spec: EvaluateSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Measure; writes `metrics.json`, `findings.json`, `table.json`, and `samples.jsonl` where policies answered."""
    named = {"reward": spec.reward, "proxy": spec.proxy, "judge": spec.judge}
    scorers = {role: open_scorer(scorer, inputs, context) for role, scorer in named.items() if scorer is not None}
    measured = _Measured()
    suites = suites_of(spec)
    if spec.policies and set(suites) & set(POLICY_SUITES):
        _policies(spec, inputs, context, scorers, measured)
    of_reward = [suite for suite in suites if suite in REWARD_SUITES]
    if of_reward:
        measured.findings.add(examine_reward(spec, scorers["reward"], of_reward, data_of(inputs, context), context))
    return _written(spec, context, measured)


def _policies(
    spec: EvaluateSpec, inputs: Inputs, context: StageContext, scorers: Mapping[str, Scorer], measured: _Measured
) -> None:
    base = open_base(inputs, context)
    task = prepare(spec, base, inputs, context)
    costs = [open_cost(cost, inputs, context) for cost in spec.costs]
    suite = PolicySuites(spec, inputs, context, base=base, task=task, scorers=scorers, costs=costs)
    wanted, score_name = suites_of(spec), "gold" if isinstance(scorers.get("reward"), GoldScorer) else "reward"
    many: dict[Hashable, Many] = {}
    results: dict[str, PolicyResult] = {}
    moved = []
    for name in (*suite.names, *suite.checkpoints):
        answered = suite.answers(name)
        if answered.rewards:
            moved.append(suite.moved(name, answered))
        if name in suite.checkpoints:
            continue
        many = many or suite.many()
        costs_of = suite.measured(answered)
        results[name] = suite.result(name, answered, many, costs_of)
        rows = _rows(name, task, answered, suite.violations([s.text for s in answered.samples]), scorers)
        measured.samples += _with_costs(rows, costs_of)
    metrics = {name: policy_metrics(results[name], results[suite.baseline], score_name, wanted) for name in suite.names}
    measured.table = policy_table(metrics, suite.baseline)
    findings = measured.findings
    findings.metrics |= {f"{name}:{key}": value for name, values in metrics.items() for key, value in values.items()}
    findings.metrics["evaluate/prompts"] = float(len(set(task.groups)))
    findings.metrics["evaluate/samples"] = float(len(task.groups))
    if many and "best_of_n" in wanted:
        findings.add(best_of_n(many, score_name))
    if len(moved) > 1 and "overoptimisation" in wanted:
        findings.add(overoptimisation(moved, suite.baseline, score_name))
    measured.details |= {**task.details, "baseline": suite.baseline}
    measured.cost = suite.cost


def _rows(
    name: str, task: Task, answered: Answered, violations: Sequence[Sequence[str]], scorers: Mapping[str, Scorer]
) -> list[dict[str, object]]:
    """Lines of `samples.jsonl`."""
    gold = isinstance(scorers.get("reward"), GoldScorer)
    return [
        {
            "policy": name,
            "prompt": conversation(task.prompts[i]),
            "completion": sample.text,
            "finished": sample.finished,
            "tokens": len(sample.ids),
            "reward": answered.rewards[i] if answered.rewards else None,
            "gold": answered.rewards[i] if gold else None,
            **({"proxy": answered.proxies[i]} if answered.proxies else {}),
            "kl": answered.kl[i],
            "violations": list(violations[i]) if violations else [],
        }
        for i, sample in enumerate(answered.samples)
    ]


def _with_costs(rows: Sequence[dict[str, object]], costs: Mapping[str, Sequence[Measured]]) -> list[dict[str, object]]:
    """Lines of `samples.jsonl` with what each completion costs, and which characters of it cost that."""
    if not costs:
        return list(rows)
    return [
        {**row, **costs_to_json({name: each[place] for name, each in costs.items()})} for place, row in enumerate(rows)
    ]


def _written(spec: EvaluateSpec, context: StageContext, measured: _Measured) -> StageResult:
    findings, samples = measured.findings, measured.samples
    if context.recipe.tracking.wandb is not None:
        with tracked(spec, context, resume_step=None) as tracker:
            tracker.summary(findings.metrics)
            if samples:
                tracker.table("samples", samples[:SAMPLES_TRACKED] + samples[-SAMPLES_TRACKED:])
    first = findings.tables[0] if findings.tables else None
    table = measured.table or {"columns": first.columns if first else [], "rows": first.rows if first else []}
    write_json(context.directory / "metrics.json", findings.metrics)
    write_json(context.directory / "table.json", table)
    document = {"tables": [asdict(found) for found in findings.tables], "curves": findings.curves}
    write_json(context.directory / "findings.json", document)
    outputs = ["metrics.json", "table.json", "findings.json"]
    if samples:
        write_json_lines(context.directory / "samples.jsonl", samples)
        outputs.append("samples.jsonl")
    return StageResult(metrics=findings.metrics, outputs=outputs, details=measured.details, cost=measured.cost)
