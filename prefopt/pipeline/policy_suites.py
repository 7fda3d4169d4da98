"""Let policies answer the same held-out prompts, and measure what they say; each policy once for a set of prompts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from prefopt.data.load import load_pairs, load_prompts
from prefopt.data.splits import position, prompt_key
from prefopt.data.templates import Encoder
from prefopt.errors import DataError, Interrupted
from prefopt.evaluation.curves import Many, Moved
from prefopt.evaluation.judged import Judged, ScoringJudge, in_both_orders
from prefopt.evaluation.policy import PairIds
from prefopt.evaluation.summary import PolicyResult
from prefopt.models.flops import flops_model
from prefopt.models.generate import Sampled
from prefopt.models.token_offsets import token_offsets
from prefopt.pipeline.base_model import OpenBase, PolicyFolder, data_of, data_policy, policy_of
from prefopt.pipeline.context import Inputs, StageContext
from prefopt.pipeline.cost import answering_cost, total
from prefopt.pipeline.keys import KEY_FILE
from prefopt.pipeline.policies import OpenPolicies, kept_adapters, open_policies, sampling_options
from prefopt.pipeline.remembered import Remembered
from prefopt.pipeline.scoring import scorer_identity
from prefopt.recipe.schema import DataSpec, EvaluateSpec
from prefopt.recipe.scorers import ScorerSpec
from prefopt.records import Prompt
from prefopt.rewards.costs.sample import Cost, Measured, Sample
from prefopt.rewards.scorers import GoldScorer, Scorer
from prefopt.store.files import read_json, sha256_file, sha256_json


@dataclass(frozen=True)
class Task:
    """Prompts repeated for every sample of theirs, and pairs, tokenised.

    Attributes:
        prompts: Of each sample.
        prompt_ids: Their tokens.
        groups: Number of each sample's prompt.
        pairs: Held-out pairs, the preferred answer first.
        details: What became of the data, for the manifest.
    """

    prompts: Sequence[Prompt]
    prompt_ids: Sequence[Sequence[int]]
    groups: Sequence[int]
    pairs: Sequence[PairIds]
    details: dict[str, object]


@dataclass(frozen=True)
class Answered:
    """The answers of one policy to the task's prompts.

    Attributes:
        samples: Completions.
        kl: From the baseline along each, nats.
        entropy: Of the next token along each, nats.
        rewards: By the stage's reward; empty without one.
        proxies: By the proxy; empty without one.
    """

    samples: list[Sampled]
    kl: list[float]
    entropy: list[float]
    rewards: list[float]
    proxies: list[float]


def prepare(spec: EvaluateSpec, base: OpenBase, inputs: Inputs, context: StageContext) -> Task:
    """Choose and tokenise the held-out prompts and pairs.

    Raises:
        DataError: When nothing is held out, or nothing fits.
    """
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
    encoder = base.encoder(spec.max_length, overlong, as_sampled=True)
    encoded = [(p, encoder.encode_prompt(p, spec.max_new_tokens)) for p in held_out]
    kept = [(p, ids) for p, ids in encoded if ids is not None]
    if not kept:
        raise DataError(
            f"stage {context.stage}: none of {len(encoded)} prompts fits into max_length", "raise max_length"
        )
    repeated = [(g, p, ids) for g, (p, ids) in enumerate(kept) for _ in range(spec.samples_per_prompt)]
    pairs = _pairs(spec, encoder, data, context)
    return Task(
        prompts=[p for _, p, _ in repeated],
        prompt_ids=[ids for _, _, ids in repeated],
        groups=[g for g, _, _ in repeated],
        pairs=pairs,
        details={
            "data": prompts.report.to_json(),
            "encoding": {"chat_template": base.template, **dict(encoder.counts)},
            **({"pairs": len(pairs)} if spec.data else {}),
        },
    )


def _pairs(spec: EvaluateSpec, encoder: Encoder, data: Mapping[str, DataSpec], context: StageContext) -> list[PairIds]:
    rows: list[PairIds] = []
    for pair in load_pairs(spec.data, data, context.recipe.seed).eval if spec.data else ():
        ids = encoder.encode_pair(pair) if pair.probability != 0.5 else None  # a tie prefers neither
        if ids is not None:
            better, worse = ids.chosen_ids, ids.rejected_ids
            rows.append(PairIds(ids.prompt_ids, *((better, worse) if pair.probability > 0.5 else (worse, better))))
    return rows


class PolicySuites:
    """Policies on one base, measured one after the other.

    Args:
        spec: The stage's options.
        inputs: Finished input stages.
        context: The stage's context.
        base: The recipe's base.
        task: What is answered.
        scorers: The stage's `reward`, `proxy` and `judge`, where it has them.
        costs: That are measured on every answer.
    """

    def __init__(  # noqa: PLR0913  (keyword-only)
        self,
        spec: EvaluateSpec,
        inputs: Inputs,
        context: StageContext,
        *,
        base: OpenBase,
        task: Task,
        scorers: Mapping[str, Scorer],
        costs: Sequence[Cost] = (),
    ) -> None:
        self._spec = spec
        self._inputs = inputs
        self._context = context
        self._task = task
        self._scorers = scorers
        self._costs_measured = tuple(costs)
        self._offsets = partial(token_offsets, base.tokenizer)
        self.baseline = spec.baseline or spec.policies[0]
        self.names = [self.baseline, *(name for name in spec.policies if name != self.baseline)]
        folders = {name: policy_of(name, inputs) for name in self.names}
        self.checkpoints = kept_adapters(self.names, inputs) if spec.checkpoints else {}
        kept = {name: PolicyFolder(checkpoint.folder) for name, checkpoint in self.checkpoints.items()}
        self._folders: dict[str, PolicyFolder] = {**folders, **kept}
        self._opened: OpenPolicies = open_policies(self._folders, context, base, spec.per_device_eval_batch_size)
        key = read_json(context.directory / KEY_FILE)
        common = [key["model"], key["versions"], key["revision"], self._base_identity(key["inputs"])]
        self._remembered = Remembered(context.cache / "evaluations", common, context.log)
        self._done = 0
        self._baseline_texts: list[str] = []
        self._costs: list[dict[str, float]] = []

    @property
    def cost(self) -> dict[str, float]:
        """Tokens sampled and operations of the policies; what was known from earlier cost nothing."""
        return total(self._costs)

    def _base_identity(self, inputs: Mapping[str, str]) -> str | None:
        return inputs.get(self._context.recipe.model.model_name_or_path)

    def answers(self, name: str) -> Answered:
        """Let a policy or a checkpoint answer, and score what it says; known answers are not sampled again."""
        if self._context.stop():
            raise Interrupted(f"stage {self._context.stage} stopped before {name} was measured")
        task = self._task
        options = sampling_options(self._spec, self._context.seed)
        identity = [
            self._identity(name),
            self._identity(self.baseline),
            sha256_json([list(ids) for ids in task.prompt_ids]),
            vars(options),
        ]
        found = self._remembered.get(f"answers of {name}", identity, lambda: self._sample(name))
        samples = [Sampled(tuple(ids), text, finished) for ids, text, finished in found["samples"]]
        texts = [sample.text for sample in samples]
        self._done += len(samples)
        if name == self.baseline:
            self._baseline_texts = texts
        scores = {role: self.scores(role, task.prompts, texts) for role in ("reward", "proxy")}
        return Answered(samples, found["kl"], found["entropy"], scores["reward"], scores["proxy"])

    def _sample(self, name: str) -> dict[str, Any]:
        task, bench, adapters = self._task, self._opened.bench, self._opened.adapters
        total = len(self._folders) * len(task.prompts)
        self._context.log(f"sampling {len(task.prompts)} completions from {name}")
        samples = bench.sample(
            adapters[name],
            task.prompt_ids,
            sampling_options(self._spec, self._context.seed),
            lambda done: self._context.progress(self._done + done, total, {}),
        )
        along = bench.along(adapters[name], adapters[self.baseline], task.prompt_ids, samples)
        forwards = 1 if name == self.baseline else 2
        self._costs.append(answering_cost(flops_model(bench.model), task.prompt_ids, samples, forwards))
        return {
            "samples": [[list(sample.ids), sample.text, sample.finished] for sample in samples],
            "kl": along.kl,
            "entropy": along.entropy,
        }

    def scores(self, role: str, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """What `reward` or `proxy` gives completions; empty where the stage has none."""
        if role not in self._scorers:
            return []
        spec: ScorerSpec = getattr(self._spec, role)
        content = [[vars_of(prompt), text] for prompt, text in zip(prompts, texts, strict=True)]
        identity = [scorer_identity(spec, self._inputs), sha256_json(content)]
        scorer = self._scorers[role]
        found: list[float] = self._remembered.get(
            f"scores by {scorer.name}", identity, lambda: [score.value for score in scorer.score(prompts, texts)]
        )
        return found

    def result(
        self,
        name: str,
        answered: Answered,
        many: Mapping[Hashable, Many],
        measured: Mapping[str, Sequence[Measured]],
    ) -> PolicyResult:
        """What the metrics of a policy are made from; `measured` is what its answers cost."""
        bench, adapters = self._opened.bench, self._opened.adapters
        wanted = name != self.baseline and bool(self._task.pairs)
        texts = [sample.text for sample in answered.samples]
        return PolicyResult(
            policy=name,
            prompts=self._task.groups,
            lengths=[len(sample.ids) for sample in answered.samples],
            finished=[sample.finished for sample in answered.samples],
            kl=answered.kl,
            entropy=answered.entropy,
            texts=texts,
            scores=answered.rewards,
            violated=[bool(found) for found in self.violations(texts)],
            costs={name: [each.value for each in found] for name, found in measured.items()},
            violations={
                cost.label: [each.value > cost.threshold for each in measured[cost.label]]
                for cost in self._costs_measured
            },
            margins=bench.preference_margins(adapters[name], adapters[self.baseline], self._task.pairs)
            if wanted
            else [],
            judged=self._judged(texts) if name != self.baseline else None,
            ceiling={group: max(answers.rewards) for group, answers in many.items()} if name == self.baseline else {},
        )

    def _judged(self, texts: Sequence[str]) -> Judged | None:
        spec = self._spec.judge
        if spec is None:
            return None
        judge = ScoringJudge(self._scorers["judge"], spec.labels, spec.noise, spec.scale, self._context.seed)
        return in_both_orders(judge, self._task.prompts, texts, self._baseline_texts)

    def violations(self, texts: Sequence[str]) -> list[list[str]]:
        """Forbidden content of completions; empty where nothing is known to be forbidden."""
        scorer = self._scorers.get("reward")
        return scorer.violations(texts) if isinstance(scorer, GoldScorer) else []

    def measured(self, answered: Answered) -> dict[str, list[Measured]]:
        """What every cost says of the answers, by its name."""
        samples = [
            Sample(
                prompt,
                said.text,
                said.ids,
                said.finished,
                offsets=lambda said=said: self._offsets(said.ids, said.text),  # type: ignore[misc]
            )
            for prompt, said in zip(self._task.prompts, answered.samples, strict=True)
        ]
        return {cost.label: cost.measure(samples) for cost in self._costs_measured}

    def many(self) -> dict[Hashable, Many]:
        """For the first prompts, many further answers of the baseline; empty where the stage asks for none."""
        spec, task = self._spec, self._task
        if spec.best_of is None or "reward" not in self._scorers:
            return {}
        first = {g: index for index, g in reversed(list(enumerate(task.groups))) if g < spec.best_of_prompts}
        rows = [(group, index) for group, index in sorted(first.items()) for _ in range(spec.best_of)]
        options = sampling_options(spec, self._context.seed + 1)
        prompt_ids = [task.prompt_ids[index] for _, index in rows]

        def sample() -> list[str]:
            self._context.log(f"sampling {spec.best_of} completions of {len(first)} prompts for the headroom")
            adapter = self._opened.adapters[self.baseline]
            samples = self._opened.bench.sample(adapter, prompt_ids, options)
            self._costs.append(answering_cost(flops_model(self._opened.bench.model), prompt_ids, samples, 0))
            return [sampled.text for sampled in samples]

        identity = [self._identity(self.baseline), sha256_json([list(ids) for ids in prompt_ids]), vars(options)]
        texts: list[str] = self._remembered.get(f"many answers of {self.baseline}", identity, sample)
        prompts = [task.prompts[index] for _, index in rows]
        rewards, proxies = self.scores("reward", prompts, texts), self.scores("proxy", prompts, texts)
        found: dict[Hashable, Many] = {}
        for start in range(0, len(rows), spec.best_of):
            part = slice(start, start + spec.best_of)
            found[rows[start][0]] = Many(rewards[part], proxies[part])
        return found

    def moved(self, name: str, answered: Answered) -> Moved:
        """How far a policy or checkpoint has gone, and what it gets."""
        checkpoint = self.checkpoints.get(name)
        return Moved(
            policy=checkpoint.policy if checkpoint else name,
            step=checkpoint.step if checkpoint else None,
            kl=_mean(answered.kl),
            reward=_mean(answered.rewards),
            proxy=_mean(answered.proxies) if answered.proxies else None,
        )

    def _identity(self, name: str) -> object:
        if name in self.checkpoints:
            return sha256_file(self.checkpoints[name].folder / "adapter_model.safetensors")
        return self._inputs[name].manifest.sha256 if name in self._inputs else None


def vars_of(prompt: Prompt) -> list[list[str]]:
    """A prompt as JSON."""
    return [[message.role, message.content] for message in prompt]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
