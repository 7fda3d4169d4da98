"""`kind: reward`: a reward model, trained on preference pairs and measured on those that are held out."""

from __future__ import annotations

from collections.abc import Sequence

from prefopt.errors import DataError
from prefopt.models.heads import scale_saved_head
from prefopt.models.reward_artefact import DESCRIPTION, RewardArtefact, write_artefact
from prefopt.models.roles import REWARD
from prefopt.pipeline.adapters import Opened
from prefopt.pipeline.base_model import load_weights, open_base
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.cost import total
from prefopt.pipeline.group_weights import columns_for, grouped
from prefopt.pipeline.pair_rows import REWARD_COLUMNS, pair_rows
from prefopt.pipeline.reward_members import Member, Training, train_members
from prefopt.pipeline.reward_scores import HeldOut, measure
from prefopt.pipeline.training import final_metrics
from prefopt.recipe.schema import RewardSpec


def run(spec: RewardSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Train adapters and heads; writes `adapter/`, `tokenizer/`, `reward.json`, `scores.jsonl` and `table.json`.

    The adapters of an ensemble's other members are in `members/`.
    """
    training = _training(spec, inputs, context)
    rows = training.rows
    if spec.calibrate and not rows.evaluation:
        raise DataError(
            f"stage {context.stage}: 'calibrate' needs held-out pairs, and {', '.join(spec.data)} have none",
            "give the data an eval_fraction > 0",
        )
    members = train_members(training, load_weights(training.base, context))
    if context.rank > 0:
        return StageResult({}, [])
    training.base.tokenizer.save_pretrained(context.directory / "tokenizer")
    held_out = HeldOut.of(members, rows.evaluation)
    metrics = final_metrics(context)
    if spec.calibrate:
        metrics |= held_out.calibration(context.seed)
    held_out = _finish(spec, members, held_out, metrics.get("calibration/temperature"), context)
    metrics |= measure(held_out, context.stage, context.directory, regression=spec.head == "regression")
    folders = [member.folder for member in members]
    outputs = [*folders, "tokenizer", DESCRIPTION, "scores.jsonl", "table.json"]
    cost = total([member.cost for member in members])
    return StageResult(metrics=metrics, outputs=outputs, details=rows.details, cost=cost)


def opened(spec: RewardSpec, inputs: Inputs, context: StageContext) -> Opened:
    """The stage, ready to train its first member; the others need as much."""
    training = _training(spec, inputs, context)
    base = training.base
    return Opened(
        base.tokenizer,
        base.location.name,
        training.rows,
        lambda: training.model(load_weights(base, context)),
        training.trainer,
    )


def _training(spec: RewardSpec, inputs: Inputs, context: StageContext) -> Training:
    base = open_base(inputs, context)
    rows = pair_rows(spec, inputs, context, base, columns_for(spec, REWARD_COLUMNS))
    rows = grouped(rows, spec, inputs, context, base)
    return Training(spec, inputs, context, base, rows)


def _finish(
    spec: RewardSpec,
    members: Sequence[Member],
    held_out: HeldOut,
    temperature: float | None,
    context: StageContext,
) -> HeldOut:
    """Give the saved heads the unit that scores are to have, and say so in `reward.json`; the scores in that unit.

    Heads are linear: what divides a score divides their weights, so whoever opens the adapter has the unit too.
    """
    axes = (REWARD, spec.second_axis) if spec.second_axis else (REWARD,)
    unit, origin = members[0].unit, members[0].origin
    factor = unit / (temperature or 1.0)
    if factor != 1.0:
        for member in members:
            heads = member.chosen.shape[1]
            scale_saved_head(context.directory / member.folder, [factor, *[1.0] * (len(axes) - 1)] * heads)
    held_out = held_out.rescaled(factor, origin)
    folders = tuple(member.folder for member in members)
    write_artefact(context.directory, RewardArtefact(folders, axes, temperature, origin, held_out.offsets()))
    return held_out
