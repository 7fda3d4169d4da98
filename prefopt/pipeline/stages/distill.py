"""`kind: distill`: the student learns to answer under a simple context as its teacher does under a rich one."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from prefopt.errors import DataError
from prefopt.evaluation.distilled import beside_teacher
from prefopt.evaluation.text import distinct
from prefopt.feedback.targets import Answer, kept
from prefopt.models.distill_policy import DistillPolicy
from prefopt.models.flops import flops_model
from prefopt.models.generate import Sampled, SamplingOptions
from prefopt.models.roles import POLICY, save_adapter
from prefopt.models.soft_prompt import sample_from
from prefopt.pipeline.adapters import Job, Opened, Rows, demonstration_rows
from prefopt.pipeline.base_model import ADAPTER, SOFT_PROMPT, OpenBase, adapter_of, open_base
from prefopt.pipeline.context import Inputs, StageContext, StageInput, StageResult
from prefopt.pipeline.cost import distill_cost, sampling_cost
from prefopt.pipeline.targets import (
    GUARDS_FILE,
    TARGETS_FILE,
    Answers,
    Question,
    Questions,
    made_up,
    questions,
    replayed,
    target_row,
)
from prefopt.pipeline.teachers import open_student, teacher_identity
from prefopt.pipeline.training import final_metrics, train
from prefopt.recipe.schema import DistillSpec
from prefopt.records import Message, Prompt, conversation
from prefopt.store.files import read_json, sha256_json, write_json, write_json_lines
from prefopt.store.ledger import Ledger
from prefopt.tracking.jsonl import read_jsonl
from prefopt.trainers.arguments import training_arguments
from prefopt.trainers.checkpoints import CheckpointedTrainer
from prefopt.trainers.collapse import CollapseLimits, Look
from prefopt.trainers.distill import DistillTrainer
from prefopt.trainers.distill_config import DistillConfig
from prefopt.trainers.ranks import from_first

_FINDINGS = "findings.json"
_TIMED = 64  # held-out prompts that both answer greedily


@dataclass(frozen=True)
class _Setting:
    """What a stage has before its teacher answers.

    Attributes:
        spec: Its options.
        inputs: Finished input stages.
        context: Its context.
        base: The recipe's base.
        asked: The prompts, as teacher and student read them.
        real: Data that is replayed; None for none.
    """

    spec: DistillSpec
    inputs: Inputs
    context: StageContext
    base: OpenBase
    asked: Questions
    real: Rows | None

    @property
    def start(self) -> StageInput | None:
        """The distill stage that the student starts from: the round before; None where it starts elsewhere."""
        found = self.inputs.get(self.spec.init) if self.spec.init is not None else None
        return found if found is not None and found.kind == "distill" else None


@dataclass(frozen=True)
class _Learned:
    """What a stage learns from.

    Attributes:
        rows: To train and to evaluate on.
        lines: Of `targets.jsonl`.
        metrics: What became of the teacher's answers.
        sampled: Operations that they took.
        answers: The teacher's to held-out prompts.
    """

    rows: Rows
    lines: list[dict[str, Any]]
    metrics: dict[str, float]
    sampled: float
    answers: list[Answer]


def run(spec: DistillSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Let the teacher answer, and train on it.

    Writes the adapter or the soft prompt, `tokenizer/`, `targets.jsonl`, `guards.json` and `findings.json`.
    """
    setting = _read(spec, inputs, context)
    base = setting.base
    policy = open_student(spec, inputs, context, base)
    learned = from_first(lambda: _learned(setting, policy))
    origin = Look.from_json(read_json(setting.start.directory / GUARDS_FILE)) if setting.start else None
    stage = _opened(setting, learned.rows, lambda: policy, origin)
    trained = train(lambda callbacks: cast(DistillTrainer, stage.build(spec, policy, callbacks)), spec, context)
    if context.rank > 0:
        return StageResult({}, [])
    weights = _saved(setting, policy, stage.name)
    base.tokenizer.save_pretrained(context.directory / "tokenizer")
    write_json_lines(context.directory / TARGETS_FILE, learned.lines)
    assert trained.guard is not None
    write_json(context.directory / GUARDS_FILE, trained.guard.origin.to_json())
    if trained.guard.reason:
        context.log(f"a guard spoke up: {trained.guard.reason}")
    metrics = {
        **final_metrics(context),
        **learned.metrics,
        **_compared(setting, policy, learned.answers),
        "distill/guard": float(trained.guard.reason is not None),
    }
    write_json(context.directory / _FINDINGS, {"tables": [asdict(beside_teacher(metrics))], "curves": {}})
    guards = {"ended_by": trained.guard.reason, "origin": trained.guard.origin.to_json()}
    return StageResult(
        metrics=metrics,
        outputs=[*weights, "tokenizer", TARGETS_FILE, GUARDS_FILE, _FINDINGS],
        details={**learned.rows.details, "guards": guards},
        cost=distill_cost(trained, sampled=learned.sampled),
    )


def _saved(setting: _Setting, policy: DistillPolicy, base_name: str) -> list[str]:
    """Write the adapter; or the soft prompt, and beside it the adapter of what it stands before."""
    directory = setting.context.directory
    if not policy.soft_prompt:
        save_adapter(policy.peft, POLICY, directory / ADAPTER, base_name)
        return [ADAPTER]
    save_adapter(policy.peft, POLICY, directory / SOFT_PROMPT, base_name)
    below = adapter_of(setting.spec.init, setting.inputs)
    if below is None:
        return [SOFT_PROMPT]
    shutil.copytree(below, directory / ADAPTER, dirs_exist_ok=True)
    return [SOFT_PROMPT, ADAPTER]


def opened(spec: DistillSpec, inputs: Inputs, context: StageContext) -> Opened:
    """The stage, ready to be trained, with made-up answers: for a check before anything is sampled."""
    setting = _read(spec, inputs, context)
    train_rows, held_out = (
        made_up(part, spec, setting.base.tokenizer, context.seed)
        for part in (setting.asked.train, setting.asked.held_out)
    )
    rows = Rows(train_rows, held_out, setting.asked.details)
    stage = _opened(setting, rows, lambda: open_student(spec, inputs, context, setting.base), None)
    few = spec.guards.model_copy(update={"min_entropy": None, "max_nll": None, "prompts": 1})

    def trainer(job: Job) -> CheckpointedTrainer:
        return stage.trainer(replace(job, spec=job.spec.model_copy(update={"guards": few})))

    return replace(stage, trainer=trainer)


def _opened(setting: _Setting, rows: Rows, load: Callable[[], DistillPolicy], origin: Look | None) -> Opened:
    base, real = setting.base, setting.real

    def trainer(job: Job) -> DistillTrainer:
        return DistillTrainer(
            job.model.peft,
            _arguments(job.spec, base, setting.context),
            train_dataset=job.train,
            eval_dataset=job.evaluation or None,
            real_dataset=() if real is None else real.evaluation,
            teacher=job.model.teacher,
            origin=origin,
            processing_class=base.tokenizer,
            callbacks=job.callbacks,
        )

    return Opened(base.tokenizer, base.location.name, rows, load, trainer)


def _arguments(spec: DistillSpec, base: OpenBase, context: StageContext) -> DistillConfig:
    on_policy = spec.target == "on_policy"
    guards = spec.guards
    return training_arguments(
        DistillConfig,
        spec,
        directory=context.directory,
        seed=context.seed,
        dtype=context.recipe.model.dtype,
        include_num_input_tokens_seen="no",  # the trainer counts them itself
        divergence="reverse" if on_policy else "forward",
        top_k=spec.top_k,
        on_policy=on_policy,
        max_new_tokens=spec.max_new_tokens,
        temperature=spec.temperature,
        max_length=base.max_length(spec.max_length),
        guards=CollapseLimits(
            guards.min_entropy, guards.max_nll, guards.every, guards.prompts, stop=guards.action == "stop"
        ),
    )


# -- what is learned ---------------------------------------------------------------------------------------------------


def _read(spec: DistillSpec, inputs: Inputs, context: StageContext) -> _Setting:
    """The prompts, and the real data."""
    base = open_base(inputs, context)
    asked = questions(spec, inputs, context, base)
    real = None
    if spec.demonstrations:
        real = demonstration_rows(spec.demonstrations, spec.max_length, inputs, context, base)
    return _Setting(spec, inputs, context, base, asked, real)


def _learned(setting: _Setting, policy: DistillPolicy) -> _Learned:
    """Let the teacher answer, filter, add what earlier rounds and real people said."""
    spec, inputs, context, asked = setting.spec, setting.inputs, setting.context, setting.asked
    on_policy = spec.target == "on_policy"
    answers = Answers(spec, inputs, context, setting.base, policy, teacher_identity(spec, inputs, context))
    with Ledger(context.ledger, context.stage) as ledger:
        said = [] if on_policy else answers.of(asked.train, ledger, spec.samples_per_prompt, filtered=True)
        held_out = answers.of(asked.held_out, ledger, 1, filtered=False)
    chosen, reasons = kept(said, spec.keep, spec.best_per_prompt)
    lines = [_line(asked.train[answer.number], answer) for answer in chosen]
    known = {sha256_json(line) for line in lines}
    lines += [line for line in _earlier(setting) if sha256_json(line) not in known]
    if on_policy:
        rows: list[dict[str, Any]] = [
            {"prompt_ids": list(each.student_ids), "teacher_prompt_ids": list(each.teacher_ids)} for each in asked.train
        ]
    else:
        rows, missing = _rows(setting, lines, soft=spec.target == "soft")
        reasons["too long, or other tokens"] += missing
    if not rows:
        raise DataError(
            f"stage {context.stage}: none of {len(said)} answers is learned from: {dict(+reasons)}",
            "see `keep` in docs/algorithms/distill.md; max_new_tokens may be too few for an answer to end",
        )
    real = () if setting.real is None else setting.real.train
    mixed = [*rows, *replayed(real, spec.replay_share, len(rows), context.seed, soft=spec.replay_target == "soft")]
    compared = [_line(asked.held_out[answer.number], answer) for answer in held_out if answer.completion.strip()]
    evaluation, _ = _rows(setting, compared, soft=spec.target in ("soft", "on_policy"))
    details = {
        **asked.details,
        "left_out": dict(+reasons),
        "replay": None if setting.real is None else setting.real.details,
    }
    flops = flops_model(policy.peft)
    sampled = sum(
        sampling_cost(flops, [part[answer.number].teacher_ids], [answer.tokens])
        for part, each in ((asked.train, said), (asked.held_out, held_out))
        for answer in each
    )
    metrics = _of_answers(asked, said, chosen, rows, mixed)
    for label in (cost.label for cost in spec.keep.costs if said):
        metrics[f"violation_rate/{label}"] = sum(label in answer.violated for answer in said) / len(said)
    return _Learned(Rows(mixed, evaluation, details), lines, metrics, sampled, held_out)


def _rows(setting: _Setting, lines: Sequence[dict[str, Any]], *, soft: bool) -> tuple[list[dict[str, Any]], int]:
    """Tokens of lines of `targets.jsonl`, and how many have none."""
    encoder = setting.base.encoder(setting.spec.max_length, "drop")
    found = [
        target_row(
            encoder, _messages(line["teacher_prompt"]), _messages(line["prompt"]), line["completion"],
            finished=line["finished"], soft=soft,
        )
        for line in lines
    ]  # fmt: skip
    rows = [row for row in found if row is not None]
    return rows, len(found) - len(rows)


def _line(question: Question, answer: Answer) -> dict[str, Any]:
    """One line of `targets.jsonl`."""
    return {
        "prompt": conversation(question.student),
        "teacher_prompt": conversation(question.teacher),
        "completion": answer.completion,
        "finished": answer.finished,
        "mean_logp": answer.mean_logp,
        "reward": answer.reward,
    }


def _earlier(setting: _Setting) -> list[dict[str, Any]]:
    """What the stage of `init` learned from, which has what the stages before it did (arXiv 2404.01413)."""
    if not setting.spec.accumulate or setting.start is None:
        return []
    return list(read_jsonl(setting.start.directory / TARGETS_FILE))


def _messages(turns: Sequence[dict[str, Any]]) -> Prompt:
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


# -- numbers -----------------------------------------------------------------------------------------------------------


def _of_answers(
    asked: Questions, said: Sequence[Answer], chosen: Sequence[Answer], rows: Sequence[Any], mixed: Sequence[Any]
) -> dict[str, float]:
    """What became of the teacher's answers, and how long the prompts are."""
    teacher, student = (
        sum(len(getattr(each, name)) for each in asked.train) for name in ("teacher_ids", "student_ids")
    )
    found = {
        "distill/prompts": float(len(asked.train)),
        "distill/targets": float(len(rows)),
        "distill/replay_share": (len(mixed) - len(rows)) / len(mixed),
        "distill/prompt_ratio": teacher / student,
        "distill/context_tokens": (teacher - student) / len(asked.train),
    }
    if said:
        found["distill/kept"] = len(chosen) / len(said)
    for name, answers in (("reward", said), ("kept_reward", chosen)):
        rewards = [answer.reward for answer in answers if answer.reward is not None]
        if rewards:
            found[f"distill/{name}"] = sum(rewards) / len(rewards)
    return found


def _compared(setting: _Setting, policy: DistillPolicy, answers: Sequence[Answer]) -> dict[str, float]:
    """How the student answers held-out prompts, beside its teacher."""
    spec, base, asked = setting.spec, setting.base, setting.asked.held_out
    if not asked:
        return {}
    first = asked[:_TIMED]
    greedy = SamplingOptions(spec.max_new_tokens, temperature=0.0, batch_size=spec.per_device_eval_batch_size)
    teacher, teachers_time = _timed(policy, base, [each.teacher_ids for each in first], greedy, teacher=True)
    student, students_time = _timed(policy, base, [each.student_ids for each in first], greedy, teacher=False)
    sampled = replace(greedy, temperature=spec.temperature, seed=setting.context.seed)
    own = sample_from(policy, base.tokenizer, [each.student_ids for each in asked], sampled, None, None)
    same = sum(one.text == other.text for one, other in zip(teacher, student, strict=True))
    return {
        "distill/answer_agreement": same / len(first),
        "distill/sampling_speedup": teachers_time / students_time,
        "distill/distinct": distinct([each.text for each in own], 2),
        "distill/teacher_distinct": distinct([answer.completion for answer in answers], 2),
        **_rewarded(setting, policy, answers, [each.text for each in own]),
    }


def _rewarded(
    setting: _Setting, policy: DistillPolicy, answers: Sequence[Answer], own: Sequence[str]
) -> dict[str, float]:
    """What the reward says of the student's answers to held-out prompts, beside its teacher's."""
    if setting.spec.reward is None:
        return {}
    spec, inputs, context = setting.spec, setting.inputs, setting.context
    judge = Answers(spec, inputs, context, setting.base, policy, teacher_identity(spec, inputs, context))
    with Ledger(context.ledger, context.stage) as ledger:
        judged = judge.rewards([each.prompt for each in setting.asked.held_out], own, ledger)
    students, teachers = (
        statistics.fmean(value for value in values if value is not None)
        for values in (judged, [answer.reward for answer in answers])
    )
    ratio = {"distill/reward_ratio": students / teachers} if teachers > 0 else {}
    return {"distill/own_reward": students, "distill/teacher_reward": teachers, **ratio}


def _timed(
    policy: DistillPolicy,
    base: OpenBase,
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions,
    *,
    teacher: bool,
) -> tuple[list[Sampled], float]:
    """Answers, and the wall time of one of their tokens in seconds."""
    start = time.perf_counter()
    found = sample_from(policy, base.tokenizer, prompts, options, None, "teacher" if teacher else None)
    return found, (time.perf_counter() - start) / max(1, sum(len(each.ids) for each in found))
