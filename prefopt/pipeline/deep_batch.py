"""`prefopt check --deep` of one stage, second part: steps with the whole batch, and what they prove.

In a process of its own, after the one that made the estimate: what the small steps there left in the heap would be
measured as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefopt.errors import EnvironmentFault
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.deep_check import REPORT
from prefopt.pipeline.deep_stage import Look, Row, batch_rows, passes_per_step
from prefopt.pipeline.stand_ins import stand_ins
from prefopt.recipe.schema import DPOSpec, OnlineSpec, OptimisationSpec
from prefopt.store.files import write_json
from prefopt.trainers.memory import FirstStep, ProcessPeak

_STEPS = 2  # from the second on the optimizer has its averages


def run(spec: OptimisationSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Make steps of a training stage; writes `deep.json`."""
    complete, _ = stand_ins(inputs, context)
    measured, proofs, problems = whole_batch(Look.into(spec, complete, context))
    write_json(context.directory / REPORT, {"measured": measured, "proofs": proofs, "problems": problems})
    return StageResult(metrics={}, outputs=[REPORT])


def whole_batch(look: Look) -> tuple[int | None, dict[str, Any], list[str]]:
    """Two steps and an evaluation with the recipe's batch sizes: peak bytes, proofs, and what is wrong.

    Raises:
        EnvironmentFault: When memory runs out, whatever the estimate said.
    """
    process = ProcessPeak(look.device)
    batch, evaluation = look.spec.per_device_train_batch_size, look.spec.per_device_eval_batch_size
    if isinstance(look.spec, OnlineSpec):
        evaluation = min(evaluation, look.spec.rollout_batch_size)
    passes = min(passes_per_step(look.spec), 2)
    rows = _repeated(look.train, batch) * passes * _STEPS
    if isinstance(look.spec, DPOSpec):  # the reference looks at more rows at once than a step has
        everything = batch_rows(look.spec, len(look.train), 0, look.longest)["reference"]
        rows += _repeated(look.train, max(0, everything - len(rows)))
    held_out = look.evaluation[:evaluation]
    trainer = look.trainer(batch, evaluation, rows, held_out, steps=_STEPS, passes=passes)
    first = FirstStep(trainer.model, look.device, count=False)
    trainer.add_callback(first)
    trainer.train()
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    if trainer.micro_rows is not None:
        raise EnvironmentFault(
            f"memory runs out with {batch} rows, and {trainer.micro_rows} fit",
            "lower per_device_train_batch_size, and raise gradient_accumulation_steps to match",
        )
    trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    frozen = sum(1 for _ in trainer.model.parameters()) - len(trained)
    proofs = {
        "policy_minus_reference": trainer.opening_gap,
        "shared_minus_padded": getattr(trainer, "shared_gap", None),
        "loss": next(row["loss"] for row in trainer.state.log_history if "loss" in row),
        "trained": len(trained),
        "frozen": frozen,
    }
    problems = [f"{name} is to be trained and gets no finite gradient" for name in first.untrained]
    problems += [f"{name} is frozen and gets a gradient" for name in first.leaking]
    return process.peak(), proofs, problems


def _repeated(rows: Sequence[Row], count: int) -> list[Row]:
    """The first rows, and all of them again where there are too few."""
    return [rows[index % len(rows)] for index in range(count)]
