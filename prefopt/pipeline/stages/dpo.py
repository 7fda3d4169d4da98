"""`kind: dpo`: direct preference optimisation of the policy that `init` names, against itself as reference."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from prefopt.losses.pair_statistics import DPOOptions
from prefopt.pipeline.adapters import Job, Method, Opened, Rows, open_adapter_stage, run_adapter_stage
from prefopt.pipeline.base_model import OpenBase
from prefopt.pipeline.context import Inputs, StageContext, StageResult
from prefopt.pipeline.cost import completion_share
from prefopt.pipeline.group_weights import columns_for, grouped, weighed
from prefopt.pipeline.keys import KEY_FILE
from prefopt.pipeline.loss_costs import open_sequence_unlikelihood
from prefopt.pipeline.pair_costs import priced_pairs
from prefopt.pipeline.pair_rows import PAIR_COLUMNS, pair_rows
from prefopt.recipe.schema import DPOSpec
from prefopt.store.files import read_json, sha256_json
from prefopt.store.reference_cache import ReferenceCache
from prefopt.trainers.arguments import training_arguments
from prefopt.trainers.callbacks import WarnOfDisplacement
from prefopt.trainers.dpo import DPOConfig, DPOTrainer

_REVISION = 1  # of how a reference's log-probabilities are computed


def run(spec: DPOSpec, inputs: Inputs, context: StageContext) -> StageResult:
    """Train an adapter to prefer the chosen completions."""
    return run_adapter_stage(spec, inputs, context, _method(inputs, context))


def opened(spec: DPOSpec, inputs: Inputs, context: StageContext) -> Opened:
    """The stage, ready to be trained."""
    return open_adapter_stage(spec, inputs, context, _method(inputs, context))


def _method(inputs: Inputs, context: StageContext) -> Method:
    def trainer(job: Job, tokenizer: PreTrainedTokenizerBase) -> DPOTrainer:
        args = training_arguments(
            DPOConfig,
            job.spec,
            directory=context.directory,
            seed=context.seed,
            dtype=context.recipe.model.dtype,
            include_num_input_tokens_seen="all",  # nothing is padded
            loss_type=list(job.spec.loss_type),
            loss_weights=None if job.spec.loss_weights is None else list(job.spec.loss_weights),
            **{name: getattr(job.spec, name) for name in DPOOptions._fields},
        )
        return DPOTrainer(
            job.model,
            args,
            train_dataset=job.train,
            eval_dataset=job.evaluation or None,
            processing_class=tokenizer,
            sequence_unlikelihood=open_sequence_unlikelihood(job.spec.sequence_unlikelihood, inputs, context),
            reference_cache=_reference_cache(job.spec, inputs, context),
            callbacks=[*job.callbacks, WarnOfDisplacement(context.log)],
        )

    def rows(spec: DPOSpec, inputs: Inputs, context: StageContext, base: OpenBase) -> Rows:
        columns = columns_for(spec, PAIR_COLUMNS)
        pairs = grouped(pair_rows(spec, inputs, context, base, columns), spec, inputs, context, base)
        return priced_pairs(weighed(pairs, spec), spec, inputs, context, base)

    return Method(rows, trainer, reference=True, head_share=completion_share)


def _reference_cache(spec: DPOSpec, inputs: Inputs, context: StageContext) -> ReferenceCache | None:
    """What this base with this adapter said of pairs before, whichever run asked; None where nothing says which it is.

    Numbers depend on the precision and the device as well.
    """
    key = read_json(context.directory / KEY_FILE)
    if "model" not in key:  # a check before the run, which may read stand-ins
        return None
    bases = [stage.manifest.sha256 for stage in inputs.values() if stage.kind == "pretrain"]
    start = inputs[spec.init].manifest.sha256 if spec.init is not None and spec.init in inputs else None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    identity = sha256_json([key["model"], key["versions"], sorted(bases), start, device, _REVISION])
    return ReferenceCache(context.cache / "reference" / f"{identity}.sqlite3", context.log)
