"""What a distill stage learns from: the prompts under both contexts, the teacher's answers, and real data beside them.

What the teacher says is kept in the run's ledger by its artefact, what it read, and how it was sampled: another student
of the same answers, or a restart, samples nothing.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prefopt.data.contexts import edited
from prefopt.data.load import load_prompts
from prefopt.data.splits import position, prompt_key
from prefopt.data.templates import Encoder
from prefopt.errors import DataError, Interrupted
from prefopt.feedback.sampling import Asked, sample_into
from prefopt.feedback.targets import Answer
from prefopt.models.batches import batches_by_length, prompt_completion_batch
from prefopt.models.distill_policy import DistillPolicy
from prefopt.models.generate import Sampled, SamplingOptions, beam_search
from prefopt.models.soft_prompt import sample_from
from prefopt.pipeline.base_model import OpenBase, data_of, data_policy
from prefopt.pipeline.collect_costs import answered
from prefopt.pipeline.context import Inputs, StageContext
from prefopt.pipeline.costs import open_cost
from prefopt.pipeline.scoring import open_scorer, scorer_identity
from prefopt.recipe.schema import DistillSpec
from prefopt.records import Prompt
from prefopt.store.ledger import Ledger, StoredSample, canonical_prompt, key_of

TARGETS_FILE = "targets.jsonl"
GUARDS_FILE = "guards.json"
SCORED_AT_ONCE = 512


@dataclass(frozen=True)
class Question:
    """A prompt of the data, as teacher and student read it.

    Attributes:
        prompt: As the data has it.
        teacher: What the teacher reads.
        student: What the student reads.
        teacher_ids: Tokens of the former.
        student_ids: Tokens of the latter.
    """

    prompt: Prompt
    teacher: Prompt
    student: Prompt
    teacher_ids: Sequence[int]
    student_ids: Sequence[int]


@dataclass(frozen=True)
class Questions:
    """Prompts that are trained on, and held-out ones.

    Attributes:
        train: In the order of the data.
        held_out: At most `eval_prompts`.
        details: What became of every row, for the manifest.
    """

    train: list[Question]
    held_out: list[Question]
    details: dict[str, Any]


def questions(spec: DistillSpec, inputs: Inputs, context: StageContext, base: OpenBase) -> Questions:
    """Read the prompts of a stage, edit and tokenise them.

    Raises:
        DataError: When there are none, or too many cannot be used.
    """
    data = data_of(inputs, context)
    loaded = load_prompts(spec.prompts, data, context.recipe.seed)
    overlong, max_dropped = data_policy(spec.prompts, data)
    encoder = base.encoder(spec.max_length, overlong)
    parts = []
    for prompts, most in ((loaded.train, spec.max_prompts), (loaded.eval, spec.eval_prompts)):
        ranked = sorted(prompts, key=lambda prompt: position(prompt_key(prompt), context.recipe.seed))
        found = (_question(prompt, spec, encoder) for prompt in ranked[:most])
        parts.append([question for question in found if question is not None])
    encoder.check_drop_share(max_dropped)
    if not parts[0]:
        raise DataError(f"stage {context.stage}: no prompts to learn from in {', '.join(spec.prompts)}")
    details = {"data": loaded.report.to_json(), "encoding": {"chat_template": base.template, **dict(encoder.counts)}}
    return Questions(parts[0], parts[1], details)


def _question(prompt: Prompt, spec: DistillSpec, encoder: Encoder) -> Question | None:
    teacher, student = (edited(prompt, edits) for edits in (spec.teacher_context, spec.student_context))
    read = [encoder.encode_prompt(each, spec.max_new_tokens) for each in (teacher, student)]
    if read[0] is None or read[1] is None:
        return None
    return Question(prompt, teacher, student, read[0], read[1])


class Answers:
    """Asks the teacher of a stage, what a reward says of its answers, and how likely they are to it.

    Args:
        spec: The stage's options.
        inputs: Finished input stages.
        context: The stage's context.
        base: The recipe's base.
        policy: Student and teacher.
        identity: Of the teacher.
    """

    def __init__(
        self,
        spec: DistillSpec,
        inputs: Inputs,
        context: StageContext,
        base: OpenBase,
        policy: DistillPolicy,
        identity: str,
    ) -> None:
        self._spec = spec
        self._inputs = inputs
        self._context = context
        self._base = base
        self._policy = policy
        self._identity = key_of(identity, "beams", spec.num_beams)

    def of(self, asked: Sequence[Question], ledger: Ledger, samples: int, *, filtered: bool) -> list[Answer]:
        """Answers to questions, one question after the other.

        Args:
            asked: Questions.
            ledger: Has what was sampled and judged before, and takes the rest.
            samples: Answers to each.
            filtered: Whether costs are measured.

        Raises:
            Interrupted: When the process was asked to stop; what was done is in the ledger.
        """
        context, total = self._context, len(asked) * samples
        context.log(f"{total} answers of the teacher to {len(asked)} prompts")

        def progress(done: int) -> None:
            context.progress(done, total, {})
            if context.stop():
                raise Interrupted(f"stage {context.stage} stopped; what was sampled is in the ledger")

        options = self.options(self._spec.target)
        teacher = self._spec.teacher or self._spec.init or "base"
        found = sample_into(
            ledger, teacher, self._identity, [Asked(each.teacher, each.teacher_ids) for each in asked], samples,
            self._sampler, options, progress,
        )  # fmt: skip
        flat = [(number, sample) for number, each in enumerate(found) for sample in each]
        logps = self._logps(asked, flat, ledger)
        prompts = [asked[number].prompt for number, _ in flat]
        rewards = self.rewards(prompts, [each.completion for _, each in flat], ledger)
        violated = self._violated(asked, flat) if filtered else [()] * len(flat)
        return [
            Answer(number, asked[number].prompt, each.completion, each.finished, each.tokens, logp, reward, costs)
            for (number, each), logp, reward, costs in zip(flat, logps, rewards, violated, strict=True)
        ]

    def options(self, target: str) -> SamplingOptions:
        """How the teacher answers for a target."""
        return SamplingOptions(
            max_new_tokens=self._spec.max_new_tokens,
            temperature=0.0 if target == "argmax" else self._spec.temperature,
            batch_size=self._spec.per_device_eval_batch_size,
            seed=self._context.seed,
        )

    def _sampler(self, prompts: Sequence[Sequence[int]], options: SamplingOptions) -> list[Sampled]:
        tokenizer: PreTrainedTokenizerBase = self._base.tokenizer
        if self._spec.num_beams == 1:
            return sample_from(self._policy, tokenizer, prompts, options, None, "teacher")
        with self._policy.active("teacher"):
            return beam_search(self._policy.decoder("teacher"), tokenizer, prompts, options, self._spec.num_beams)

    def _logps(
        self, asked: Sequence[Question], flat: Sequence[tuple[int, StoredSample]], ledger: Ledger
    ) -> list[float]:
        """Mean log-probability of every answer, from the ledger where it is."""
        keys = [
            key_of("mean logp", self._identity, canonical_prompt(asked[number].teacher), each.completion, each.finished)
            for number, each in flat
        ]
        known = ledger.scores(keys)
        encoder = self._base.encoder(None, "trim_prompt")
        wanted = {key: place for place, key in enumerate(keys) if key not in known}
        rows = []
        for key, place in wanted.items():
            number, sample = flat[place]
            ids = encoder.encode_answer(asked[number].teacher, sample.completion)
            completion = [] if ids is None else ids.completion_ids if sample.finished else ids.completion_ids[:-1]
            rows.append((key, list(asked[number].teacher_ids), completion))
        empty = [key for key, _, completion in rows if not completion]
        fresh = dict.fromkeys(empty, 0.0) | self._computed([row for row in rows if row[2]])
        ledger.add_scores("teacher", {key: (value, 0.0) for key, value in fresh.items()})
        known |= fresh
        return [known[key] for key in keys]

    def _computed(self, rows: Sequence[tuple[str, list[int], list[int]]]) -> dict[str, float]:
        vocabulary = int(self._policy.config.get_text_config().vocab_size)
        lengths = [len(prompt) + len(completion) for _, prompt, completion in rows]
        device = next(self._policy.parameters()).device
        found: dict[str, float] = {}
        for indices in batches_by_length(lengths, self._spec.per_device_eval_batch_size, vocabulary):
            prompts, completions = ([rows[index][part] for index in indices] for part in (1, 2))
            batch = prompt_completion_batch(prompts, completions, self._base.pad_token_id)  # type: ignore[arg-type]
            said: Tensor = self._policy.teacher_logps({name: each.to(device) for name, each in batch.items()})
            found |= {rows[index][0]: value for index, value in zip(indices, said.tolist(), strict=True)}
        return found

    def rewards(self, prompts: Sequence[Prompt], completions: Sequence[str], ledger: Ledger) -> Sequence[float | None]:
        """What the reward says of answers; None for each where the stage has none. Collect stages know the same keys.

        Args:
            prompts: As the data has them.
            completions: One for each.
            ledger: Has what was judged before, and takes the rest.
        """
        spec = self._spec.reward
        if spec is None:
            return [None] * len(completions)
        identity = scorer_identity(spec, self._inputs)
        keys = [
            key_of("score", canonical_prompt(prompt), completion, identity)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        known = ledger.scores(keys)
        missing = {key: place for place, key in enumerate(keys) if key not in known}
        if missing:
            scorer = open_scorer(spec, self._inputs, self._context)
            places = list(missing.values())
            for start in range(0, len(places), SCORED_AT_ONCE):
                part = places[start : start + SCORED_AT_ONCE]
                scores = scorer.score([prompts[place] for place in part], [completions[place] for place in part])
                fresh = {keys[place]: (score.value, score.std) for place, score in zip(part, scores, strict=True)}
                ledger.add_scores(scorer.name, fresh)
                known |= {key: value for key, (value, _) in fresh.items()}
        return [known[key] for key in keys]

    def _violated(self, asked: Sequence[Question], flat: Sequence[tuple[int, StoredSample]]) -> list[tuple[str, ...]]:
        """Names of the costs that every answer violates, as an answer to the data's own prompt."""
        costs = [open_cost(spec, self._inputs, self._context) for spec in self._spec.keep.costs]
        samples = [answered(asked[number].prompt, each, self._base.tokenizer) for number, each in flat if costs]
        measured = [(cost, cost.measure(samples)) for cost in costs]
        return [
            tuple(cost.label for cost, found in measured if found[place].value > cost.threshold)
            for place in range(len(flat))
        ]


def target_row(
    encoder: Encoder, teacher: Prompt, student: Prompt, completion: str, *, finished: bool, soft: bool
) -> dict[str, Any] | None:
    """Tokens of an answer after both prompts; None where it does not fit, or would be other tokens after the other."""
    read = [encoder.encode_answer(prompt, completion) for prompt in (student, teacher)]
    if read[0] is None or read[1] is None or read[0].completion_ids != read[1].completion_ids:
        return None
    ids = read[0].completion_ids if finished else read[0].completion_ids[:-1]
    if not ids:
        return None
    return {
        "prompt_ids": read[0].prompt_ids, "teacher_prompt_ids": read[1].prompt_ids, "completion_ids": ids, "soft": soft,
    }  # fmt: skip


def replayed(rows: Sequence[Mapping[str, Any]], share: float, beside: int, seed: int, *, soft: bool) -> list[Any]:
    """Real rows in such a number that they are a share of all; each as often as the others, but for one.

    Args:
        rows: With `prompt_ids` and `completion_ids`.
        share: Of all rows, below 1.
        beside: How many other rows there are.
        seed: Of the choice.
        soft: Whether the target is the teacher's distribution, along the real answer.

    Raises:
        DataError: When there are none.
    """
    count = -(-int(1e9 * share * beside) // int(1e9 * (1 - share))) if share else 0
    if not count:
        return []
    if not rows:
        raise DataError("there is no real data to replay", "check `demonstrations`, or write `replay_share: 0`")
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    return [{**rows[order[place % len(rows)]], "replay": True, "soft": soft} for place in range(count)]


def made_up(
    asked: Sequence[Question], spec: DistillSpec, tokenizer: PreTrainedTokenizerBase, seed: int
) -> list[dict[str, Any]]:
    """Rows of random answers of the greatest length, for a check before anything is sampled."""
    special = set(tokenizer.all_special_ids)
    words = [token for token in range(len(tokenizer)) if token not in special]
    rng = random.Random(seed)
    return [
        {
            "prompt_ids": list(each.student_ids),
            "teacher_prompt_ids": list(each.teacher_ids),
            "completion_ids": [*rng.choices(words, k=spec.max_new_tokens - 1), tokenizer.eos_token_id],
            "soft": spec.target in ("soft", "on_policy"),
        }
        for each in asked
    ]
