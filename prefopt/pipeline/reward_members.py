"""The members of a reward model, trained one after another on one base, and what they say of held-out pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import transformers
from torch import Tensor
from transformers import PreTrainedModel

from prefopt.models.heads import RewardModel, new_reward_model
from prefopt.models.roles import lora_config
from prefopt.pipeline.adapters import Job, Rows, lora_of
from prefopt.pipeline.base_model import OpenBase, adapter_of
from prefopt.pipeline.context import Inputs, StageContext
from prefopt.pipeline.cost import training_cost
from prefopt.pipeline.training import train
from prefopt.recipe.schema import RewardSpec, TrackingSpec
from prefopt.trainers.arguments import training_arguments
from prefopt.trainers.reward import RewardTrainer
from prefopt.trainers.reward_config import RewardConfig

MEMBERS = "members"
# Further apart than the seeds of neighbouring runs, so that no member is another run's.
SEED_STRIDE = 100_003

# Names that a stage and RewardConfig share.
_SAME = (
    "center_rewards_coefficient",
    "head",
    "second_axis",
    "margin_scale",
    "focal_gamma",
    "length_debias",
    "group_weights",
    "group_by",
    "effective_number_beta",
)


@dataclass(frozen=True)
class Member:
    """An adapter that was trained.

    Attributes:
        folder: Of the adapter, relative to the stage's directory.
        chosen: What its heads give the chosen answers of held-out pairs, [N, heads, axes].
        rejected: The same for the rejected answers.
        origin: What a rating is where the score is 0.
        unit: How much a rating changes with a score of 1.
        cost: Of its training.
    """

    folder: str
    chosen: Tensor
    rejected: Tensor
    origin: float
    unit: float
    cost: dict[str, float]


@dataclass(frozen=True)
class Training:
    """What all members are trained with."""

    spec: RewardSpec
    inputs: Inputs
    context: StageContext
    base: OpenBase
    rows: Rows

    def member(self, number: int, weights: PreTrainedModel) -> Member | None:
        """Train a member and save it; the base is as it was afterwards.

        The first is what the stage would be without an ensemble. The others have initial weights, dropout and an order
        of rows of their own, and a folder of their own: each goes on from its own checkpoints.

        Args:
            number: From 0.
            weights: The frozen base.

        Returns:
            The member; None on ranks beside the first, which write nothing.
        """
        if number:
            each = replace(self, context=self._context(number))
            transformers.set_seed(each.context.seed)
            each.context.log(f"member {number + 1} of {self.spec.ensemble}, seed {each.context.seed}")
        else:
            each = self
        model, context = each.model(weights), each.context
        trained = train(lambda callbacks: each._named_trainer(model, callbacks), self.spec, context)
        if context.rank > 0:
            model.peft.unload()
            return None
        trained.save_weights(context.directory / "adapter")
        chosen, rejected = trained.outputs(self.rows.evaluation)
        cost = training_cost(trained, head=0.0)
        model.peft.unload()
        folder = (context.directory / "adapter").relative_to(self.context.directory).as_posix()
        return Member(folder, chosen, rejected, trained.fitted.origin, trained.fitted.unit, cost)

    def model(self, weights: PreTrainedModel) -> RewardModel:
        """The base with a new member on it."""
        init = adapter_of(self.spec.init, self.inputs)
        shape = lora_config(lora_of(self.spec, weights, self.context))
        outputs = self._heads * (2 if self.spec.second_axis else 1)
        return new_reward_model(weights, shape, init, outputs, reshape=self.spec.lora is not None)

    def trainer(self, job: Job) -> RewardTrainer:
        """The trainer of a member."""
        args = training_arguments(
            RewardConfig,
            job.spec,
            directory=self.context.directory,
            seed=self.context.seed,
            dtype=self.context.recipe.model.dtype,
            include_num_input_tokens_seen="all",  # nothing is padded
            ensemble_heads=self._heads,
            **{name: getattr(job.spec, name) for name in _SAME},
        )
        return RewardTrainer(
            job.model,
            args,
            train_dataset=job.train,
            eval_dataset=job.evaluation or None,
            processing_class=self.base.tokenizer,
            callbacks=job.callbacks,
        )

    @property
    def adapters(self) -> int:
        """Adapters that are trained."""
        return self.spec.ensemble if self.spec.ensemble_kind == "adapters" else 1

    @property
    def _heads(self) -> int:
        return self.spec.ensemble if self.spec.ensemble_kind == "heads" else 1

    def _context(self, number: int) -> StageContext:
        directory = self.context.directory / MEMBERS / str(number)
        directory.mkdir(parents=True, exist_ok=True)
        seed = (self.context.seed + number * SEED_STRIDE) % 2**32
        # The tracker shows the first member; the others log to a file of their own.
        recipe = self.context.recipe.model_copy(update={"tracking": TrackingSpec()})
        return replace(self.context, directory=directory, seed=seed, recipe=recipe)

    def _named_trainer(self, model: RewardModel, callbacks: list[Any]) -> RewardTrainer:
        trainer = self.trainer(Job(self.spec, model, self.rows.train, self.rows.evaluation, callbacks))
        trainer.base_name = self.base.location.name
        return trainer


def train_members(training: Training, weights: PreTrainedModel) -> list[Member]:
    """Train all members; progress counts the steps of all of them."""
    members = []
    for number in range(training.adapters):
        progress = partial(_progress, training.context, number, training.adapters)
        each = replace(training, context=replace(training.context, progress=progress))
        members.append(each.member(number, weights))
    return [member for member in members if member is not None]


def _progress(context: StageContext, number: int, members: int, step: int, total: int, metrics: Any) -> None:
    context.progress(number * total + step, members * total, metrics)
