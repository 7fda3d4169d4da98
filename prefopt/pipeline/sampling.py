"""Let the model of one artefact answer prompts, outside of any stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from prefopt.data.prompts import NamedPrompt
from prefopt.data.templates import Encoder, ensure_chat_template
from prefopt.errors import DataError, EnvironmentFault, InputError
from prefopt.evaluation.policy import PolicyBench
from prefopt.models.generate import SamplingOptions
from prefopt.models.loading import BaseLocation, load_base, load_tokenizer, locate_base
from prefopt.models.roles import POLICY, load_frozen
from prefopt.models.soft_prompt import SoftPrompt, read_soft_prompt
from prefopt.pipeline.artefact import ModelArtefact
from prefopt.pipeline.base_model import SOFT_PROMPT, OpenBase, policy_of, positions_of, stage_directories
from prefopt.pipeline.loading import prepare_torch
from prefopt.records import Completion


@dataclass(frozen=True)
class OpenPolicy:
    """A policy ready to answer.

    Attributes:
        name: The stage that trained it.
        base: Its base, with the stage's own tokenizer and chat template.
        bench: The model with the stage's adapter on it.
        adapter: What the bench calls it; None where the stage is the base itself.
        log: Takes what the person who asked should know.
    """

    name: str
    base: OpenBase
    bench: PolicyBench
    adapter: str | None
    log: Callable[[str], None]

    def answer(self, prompts: Sequence[NamedPrompt], samples: int, options: SamplingOptions) -> list[Completion]:
        """Several completions of each prompt, one prompt after the other.

        Args:
            prompts: To be answered.
            samples: Completions of each.
            options: How to sample.

        Raises:
            InputError: When a prompt does not fit into the model beside its completion.
            DataError: When the chat template refuses a prompt.
            EnvironmentFault: When the device has too little memory.
        """
        encoded = self._encode(prompts, options.max_new_tokens)
        repeated = [prompt for prompt in prompts for _ in range(samples)]
        total = len(repeated)

        def progress(done: int) -> None:
            if total > options.batch_size:
                self.log(f"{done} of {total} completions")

        try:
            sampled = self.bench.sample(
                self.adapter, [ids for ids in encoded for _ in range(samples)], options, progress
            )
        except torch.OutOfMemoryError as error:
            raise EnvironmentFault(
                f"{self.name} ran out of device memory", "ask for fewer completions, or lower --max-new-tokens"
            ) from error
        return [
            Completion(asked.prompt, answer.text, self.name, answer.finished, len(answer.ids))
            for asked, answer in zip(repeated, sampled, strict=True)
        ]

    def _encode(self, prompts: Sequence[NamedPrompt], reserve: int) -> list[list[int]]:
        """Prompts are refused rather than trimmed: nobody wants an answer to half a question."""
        positions, name = self.base.positions, self.base.location.name
        if reserve > positions - 2:
            raise InputError(
                f"{reserve} new tokens leave no room for a prompt in the {positions} positions of {name}",
                "lower --max-new-tokens",
            )
        encoder = Encoder(self.base.tokenizer, positions, "drop")
        encoded = []
        for asked in prompts:
            ids = encoder.encode_prompt(asked.prompt, reserve)
            if ids is None and encoder.refusal:
                raise DataError(f"{asked.where}: the chat template refuses the conversation: {encoder.refusal}")
            if ids is None:
                raise InputError(
                    f"{asked.where}: with {reserve} new tokens it is longer than the {positions} positions of {name}",
                    "shorten it, or lower --max-new-tokens",
                )
            encoded.append(ids)
        if encoder.counts["neutralised"]:
            self.log(
                f"{encoder.counts['neutralised']} control tokens in the prompts were taken apart, so they are text"
            )
        return encoded


def open_policy(artefact: ModelArtefact, *, trust_remote_code: bool, log: Callable[[str], None]) -> OpenPolicy:
    """Load base, adapter and tokenizer of an artefact onto this process's device.

    Args:
        artefact: Verified.
        trust_remote_code: The command line's half of the double opt-in.
        log: Takes one line for the person who watches.

    Raises:
        EnvironmentFault: When the base cannot be read.
        InputError: When the model has code of its own that is not trusted.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    prepare_torch()
    trust = artefact.model.trust_remote_code and trust_remote_code
    name = artefact.trained.stage
    location = locate_base(artefact.model, stage_directories(artefact.inputs))
    tokenizer, template = stage_tokenizer(artefact, location, trust)
    weights = load_base(location, artefact.model, trust_remote_code=trust)
    positions = positions_of(weights.config.get_text_config())
    folder = policy_of(name, artefact.inputs)
    # Not by the stage's name: a stage may be called what PEFT's modules are called, or have a dot in its name.
    adapter = None if folder.adapter is None else POLICY
    model = weights.eval() if folder.adapter is None else load_frozen(weights, {POLICY: folder.adapter})
    base = OpenBase(location, tokenizer, template, positions)
    if folder.soft_prompt is None:
        return OpenPolicy(name, base, PolicyBench(model, tokenizer), adapter, log)
    soft_prompts = {SOFT_PROMPT: SoftPrompt(adapter, read_soft_prompt(folder.soft_prompt))}
    return OpenPolicy(name, base, PolicyBench(model, tokenizer, soft_prompts=soft_prompts), SOFT_PROMPT, log)


def stage_tokenizer(artefact: ModelArtefact, base: BaseLocation, trust: bool) -> tuple[PreTrainedTokenizerBase, str]:
    """The tokenizer as the stage left it: it carries the chat template that the stage was trained with."""
    saved = artefact.trained.directory / ("model" if artefact.trained.kind == "pretrain" else "tokenizer")
    tokenizer = load_tokenizer(BaseLocation(str(saved), "main", base.name), trust_remote_code=trust)
    return tokenizer, ensure_chat_template(tokenizer, "auto")
