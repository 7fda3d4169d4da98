"""What TRL's trainers of policies need to become trainers of this package, whatever their algorithm.

TRL trains the adapter `default` and compares it with a frozen copy, `ref`. Here the policy keeps its own name, so that
its artefacts and checkpoints are those of every other stage; and where it has another shape than what it started from,
both `policy` and `ref` stand on that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from prefopt.models.lm_head import require_plain_head
from prefopt.models.modes import without_dropout
from prefopt.models.roles import (
    COPY,
    POLICY,
    activate_trained,
    adapter_of,
    load_adapter_tensors,
    set_active,
    stack_of,
)
from prefopt.trainers.averages import Averages
from prefopt.trainers.checkpoints import CheckpointedTrainer
from prefopt.trainers.opening import require_same_start
from prefopt.trainers.ranks import gathered

_TRLS_NAME = "default"


@contextmanager
def adopting(model: PeftModel) -> Iterator[None]:
    """Within the block, in which a trainer of TRL is built, TRL finds the policy; afterwards its frozen copy is there.

    Raises:
        InputError: When the policy changes the language-model head, which TRL reads without its adapter.
    """
    require_plain_head(
        model, "an adapter on the language-model head would not be trained: TRL reads the head's own weights"
    )
    without_dropout(model)
    model.peft_config[_TRLS_NAME] = model.peft_config[POLICY]
    try:
        yield
    finally:
        del model.peft_config[_TRLS_NAME]
    if COPY not in model.peft_config:  # TRL makes none where nothing is paid for leaving the reference
        model.add_adapter(COPY, model.peft_config[POLICY])
    load_adapter_tensors(model, COPY, adapter_of(model, POLICY).tensors)
    activate_trained(model, POLICY)


class AdoptedTrainer(CheckpointedTrainer):
    """A trainer of TRL with this package's roles, checkpoints, passes and metrics; mixed in before TRL's own.

    A batch is prepared once, before it is cut: what `_prepare_inputs` adds belongs to the whole pass.
    """

    _averages: dict[str, Averages]
    _pass: dict[str, Any]

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One forward and backward pass over a batch, or several over its parts."""
        model.train()  # TRL counts what it sees in another mode as evaluation
        self._pass = self._prepare_inputs(inputs)
        return super().training_step(model, self._pass, num_items_in_batch)

    def parts_add_up(self, num_items_in_batch: Tensor | int | None) -> bool:
        """Whether the losses of a pass's parts sum to its own: `compute_loss` knows which share of it they are."""
        return self.rows_add_up

    @contextmanager
    def reference(self) -> Iterator[PeftModel]:
        """Within the block the model computes the reference; without gradients, and the policy is active after it."""
        model = self.adapted_model()
        assert model is not None
        set_active(model, stack_of(model, COPY))
        try:
            with torch.no_grad():
                yield model
        finally:
            activate_trained(model, POLICY)

    def require_policy_equals_reference(self, apart: Tensor) -> None:
        """Refuse to train where the policy is not its reference before the first step.

        Args:
            apart: Distances of log-probabilities of tokens, nats, any shape.
        """
        gap = self.opening_gap = max(gathered(float(apart.abs().max())))
        require_same_start(gap, exact=self.exact)

    # -- metrics -------------------------------------------------------------------------------------------------------

    @property
    def mode(self) -> str:
        """Whether `train` or `eval` is what TRL counts now."""
        return "train" if self.model.training else "eval"

    def measured(self) -> dict[str, float]:
        """What TRL measured in the last pass, over all ranks; it is forgotten, as TRL would average over passes."""
        found = {name: values[-1] for name, values in self._metrics[self.mode].items() if values}
        self._metrics[self.mode].clear()
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages since the last log, under the names of `prefopt.tracking.metrics`."""
        mode, prefix = ("eval", "eval_") if any(name.startswith("eval_") for name in logs) else ("train", "")
        logs.update({prefix + name: value for name, value in self.averages(mode).items()})
        self._metrics[mode].clear()
        super().log(logs, start_time)

    def averages(self, mode: str) -> dict[str, float]:
        """By name, since they were last asked for; every rank must ask."""
        return self._averages[mode].take(self.sum_over_ranks)

    def counted(self) -> Mapping[str, Tensor]:
        """What the averages are made of."""
        return self._averages["train"].snapshot()

    def recount(self, counted: Any) -> None:
        """Forget what a pass that failed had counted."""
        self._averages["train"].go_back(counted)
        self._metrics["train"].clear()
