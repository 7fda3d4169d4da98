"""A student and its teacher on one base: what both say of the same completions, each after its own prompt.

The teacher reads the rich context, the student the simple one. Shape suffixes: B rows, N completion tokens of a batch.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from prefopt.losses.distill import DistillTokens, Target, distill_tokens
from prefopt.models.lm_head import head_of
from prefopt.models.modes import evaluating
from prefopt.models.roles import POLICY, TEACHER, frozen_active, reference_active
from prefopt.models.wrapped import HoldsPeft

Who = Literal["start", "adapter", "base", "model"]
Against = Literal["teacher", "start"]


@dataclass(frozen=True)
class Teacher:
    """Whom the student learns from.

    Attributes:
        who: `start`: what the student started from; `adapter`: the frozen adapter `teacher` on the same base; `base`:
            the base itself; `model`: another model with the same vocabulary.
        model: That model, frozen and on the same device.
    """

    who: Who = "start"
    model: PreTrainedModel | None = None


class DistillPolicy(HoldsPeft):
    """The student, and on the same base its teacher and the policy it started from.

    Args:
        peft: The base with an adapter named `policy`: LoRA, or a soft prompt (PEFT prompt tuning), whose vectors come
            before every prompt of the student and of nobody else.
        teacher: Whom it learns from.
    """

    def __init__(self, peft: PeftModel, teacher: Teacher = Teacher()) -> None:
        super().__init__(peft)
        # Another model is no module of this one: it is neither trained nor saved nor synchronised.
        self._teacher = (teacher,)

    @property
    def teacher(self) -> Teacher:
        """Whom it learns from."""
        return self._teacher[0]

    @property
    def soft_prompt(self) -> bool:
        """Whether the student is vectors before the prompt of a frozen model."""
        return bool(self.peft.peft_config[POLICY].is_prompt_learning)

    def forward(
        self,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor] | None,
        soft: Tensor,
        *,
        target: Target = Target(),
        against: Against = "teacher",
    ) -> DistillTokens:
        """Losses and statistics of the N completion tokens of a batch, row by row.

        Args:
            student: `input_ids`, `attention_mask` and `completion_mask` [B, T], padded on the right.
            teacher: The same completions after the teacher's prompts, [B, T']; None where nobody is asked.
            soft: [B], bool: rows whose target is the teacher's distribution.
            target: What is compared, and how.
            against: `start` compares with what the student started from instead of the teacher.
        """
        teacher_states = None
        if teacher is not None:
            with torch.no_grad(), evaluating(self.peft), self.active(against):
                teacher_states = _completion_states(self.decoder(against), teacher)
        states = self._student_states(student)
        mask = student["completion_mask"][:, 1:].bool()
        return distill_tokens(
            states,
            student["input_ids"][:, 1:][mask],
            head_of(self.peft),
            soft=soft.unsqueeze(1).expand_as(mask)[mask],
            teacher_states=teacher_states,
            teacher_head=head_of(self.decoder(against)),
            target=target,
        )

    @torch.no_grad()
    def teacher_logps(self, teacher: dict[str, Tensor]) -> Tensor:
        """Mean log-probability of each row's completion tokens under the teacher [B], nats.

        Args:
            teacher: As in `forward`.
        """
        mask = teacher["completion_mask"][:, 1:].bool()
        model = self.decoder("teacher")
        with evaluating(self.peft), self.active("teacher"):
            states = _completion_states(model, teacher)
            targets = teacher["input_ids"][:, 1:][mask]
            tokens = distill_tokens(states, targets, head_of(model), soft=torch.zeros_like(targets, dtype=torch.bool))
        row = mask.nonzero()[:, 0]
        total = tokens.logps.new_zeros(len(mask)).index_add(0, row, tokens.logps)
        return total / mask.sum(1).clamp(min=1)

    def active(self, against: Against) -> AbstractContextManager[None]:
        """Within the block the model computes the teacher, or what the student started from; the student after it."""
        who = "start" if against == "start" else self.teacher.who
        if who == "model" or self.soft_prompt:  # vectors change nothing but what is put before a prompt
            return nullcontext()
        if who == "start":
            return reference_active(self.peft)
        return frozen_active(self.peft, TEACHER if who == "adapter" else None)

    def decoder(self, against: Against) -> PeftModel | PreTrainedModel:
        """The model that computes the teacher, or the start, inside `active`."""
        return self.teacher.model if against == "teacher" and self.teacher.model is not None else self.peft

    def _student_states(self, batch: dict[str, Tensor]) -> Tensor:
        if not self.soft_prompt:
            return _completion_states(self.peft, batch)
        base = self.peft.get_base_model()
        vectors = self.peft.get_prompt(len(batch["input_ids"]))
        embedded = base.get_input_embeddings()(batch["input_ids"])
        mask = torch.cat([batch["attention_mask"].new_ones(vectors.shape[:2]), batch["attention_mask"]], 1)
        joined = torch.cat([vectors.to(embedded.dtype), embedded], 1)
        states = base.get_decoder()(inputs_embeds=joined, attention_mask=mask, use_cache=False).last_hidden_state
        return _before_completion(states[:, vectors.shape[1] :], batch)


def _completion_states(model: PeftModel | PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    output = base.get_decoder()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return _before_completion(output.last_hidden_state, batch)


def _before_completion(states: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """States [N, H] that predict the completion tokens, from all states [B, T, H]."""
    return states[:, :-1][batch["completion_mask"][:, 1:].bool()]
