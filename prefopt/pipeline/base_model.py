"""What every stage with a model opens first: tokenizer, chat template, length limit, and the frozen base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prefopt.data.sampled import AsSampled
from prefopt.data.templates import Encoder, ensure_chat_template
from prefopt.errors import InputError
from prefopt.models.loading import BaseLocation, load_base, load_config, load_tokenizer, locate_base
from prefopt.pipeline.context import Inputs, StageContext
from prefopt.recipe.references import BASE
from prefopt.recipe.schema import CollectSpec, DataSpec

DEFAULT_MAX_LENGTH = 1024
PAIRS_FILE = "pairs.jsonl"  # what a collect stage gives
ADAPTER = "adapter"
SOFT_PROMPT = "soft_prompt"  # vectors, which stand before what reads the adapter beside them, where there is one
Overlong = Literal["trim_prompt", "drop"]


@dataclass(frozen=True)
class OpenBase:
    """A base ready for a stage.

    Attributes:
        location: Where it came from.
        tokenizer: With a chat template.
        template: Name of the chat template in use, as recorded in the manifest.
        positions: Longest row that the model takes.
    """

    location: BaseLocation
    tokenizer: PreTrainedTokenizerBase
    template: str
    positions: int

    @property
    def pad_token_id(self) -> int:
        """Fills rows; padding is masked by length, so it may be any token."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id)

    def max_length(self, requested: int | None) -> int:
        """Tokens of prompt and completion together.

        Raises:
            InputError: When more is requested than the model has positions.
        """
        if requested is None:
            return min(DEFAULT_MAX_LENGTH, self.positions)
        if requested > self.positions:
            raise InputError(
                f"max_length {requested} is more than the {self.positions} positions of {self.location.name}",
                f"set max_length to {self.positions} or less",
            )
        return requested

    def encoder(self, requested: int | None, overlong: Overlong, *, as_sampled: bool = False) -> Encoder:
        """Turns records into token ids with this tokenizer and template; `as_sampled` as in `Encoder`."""
        own = AsSampled(self.tokenizer) if as_sampled else None
        return Encoder(self.tokenizer, self.max_length(requested), overlong, own)


def stage_directories(inputs: Inputs) -> dict[str, Path]:
    """Folder of every input stage by name."""
    return {name: stage.directory for name, stage in inputs.items()}


def positions_of(config: PretrainedConfig) -> int:
    """Longest row that a model takes; practically endless where its configuration says nothing."""
    return cast(int, getattr(config, "max_position_embeddings", None) or 1 << 30)


def open_base(inputs: Inputs, context: StageContext) -> OpenBase:
    """Open the recipe's base without its weights."""
    spec = context.recipe.model
    location = locate_base(spec, stage_directories(inputs))
    trust = trusts_code(context)
    tokenizer = load_tokenizer(location, trust_remote_code=trust)
    template = ensure_chat_template(tokenizer, spec.chat_template)
    config = load_config(location, trust_remote_code=trust).get_text_config()
    positions = positions_of(config)
    context.log(f"base {location.name}: chat template '{template}', {positions} positions")
    return OpenBase(location, tokenizer, template, positions)


def load_weights(base: OpenBase, context: StageContext) -> PreTrainedModel:
    """Load the frozen base onto this process's device."""
    return load_base(base.location, context.recipe.model, trust_remote_code=trusts_code(context))


def trusts_code(context: StageContext) -> bool:
    """Code of a model runs only when the recipe and the command line both say so."""
    return context.recipe.model.trust_remote_code and context.trust_remote_code


def adapter_of(stage: str | None, inputs: Inputs) -> Path | None:
    """Adapter folder of an input stage; None for no stage, for a pretrain stage, and for `base`: the base itself.

    Raises:
        InputError: For a stage that trained a soft prompt.
    """
    if stage is None or (stage == BASE and stage not in inputs) or inputs[stage].kind == "pretrain":
        return None
    if (inputs[stage].directory / SOFT_PROMPT).is_dir():
        raise InputError(
            f"stage {stage} trained a soft prompt, which is no adapter",
            "collect, evaluate and `prefopt sample` take it as a policy",
        )
    return inputs[stage].directory / ADAPTER


class PolicyFolder(NamedTuple):
    """Where what makes a policy of the base is.

    Attributes:
        adapter: None for none.
        soft_prompt: Vectors before every prompt; None for none.
    """

    adapter: Path | None
    soft_prompt: Path | None = None


def policy_of(stage: str, inputs: Inputs) -> PolicyFolder:
    """The folders of an input stage that answers; both None for a pretrain stage, and for `base`: the base itself."""
    soft_prompt = inputs[stage].directory / SOFT_PROMPT if stage in inputs else None
    if soft_prompt is None or not soft_prompt.is_dir():
        return PolicyFolder(adapter_of(stage, inputs))
    below = inputs[stage].directory / ADAPTER
    return PolicyFolder(below if below.is_dir() else None, soft_prompt)


def data_of(inputs: Inputs, context: StageContext) -> dict[str, DataSpec]:
    """The data sets that a stage can name: the recipe's, and the pairs of the collect stages that it reads.

    Whether a prompt is held out depends on the prompt, the seed and the fraction alone, so collected pairs are split
    as the prompts were. Where sets of prompts hold out different shares the largest counts: nothing less is held out.
    """
    data = dict(context.recipe.data)
    for name, stage in inputs.items():
        collect = context.recipe.stages[name]
        if isinstance(collect, CollectSpec):
            fraction = max(context.recipe.data[prompts].eval_fraction for prompts in collect.prompts)
            path = str(stage.directory / PAIRS_FILE)
            data[name] = DataSpec(path=path, format="preference", eval_fraction=fraction)
    return data


def data_policy(names: tuple[str, ...], data: Mapping[str, DataSpec]) -> tuple[Overlong, float]:
    """What to do with over-long rows, and the share that may be dropped for length: the strictest of the sets."""
    specs = [data[name] for name in names]
    overlong: Overlong = "drop" if all(spec.overlong == "drop" for spec in specs) else "trim_prompt"
    return overlong, min(spec.max_dropped for spec in specs)
