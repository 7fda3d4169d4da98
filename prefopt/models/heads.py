"""Scores from a language model: the hidden state of a row's last token through a linear head.

On disk a reward model is a PEFT folder of the task SEQ_CLS, with the head as `score` among its saved modules: other
programs open it with `AutoPeftModelForSequenceClassification`. In memory the same weights hang on the causal language
model that every other role shares, and the head stands beside it.

Shape suffixes: B rows, T positions, H hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefopt.errors import IntegrityError
from prefopt.models.batches import padded_pairs
from prefopt.models.flatten import CONFIG_FILE, WEIGHTS_FILE
from prefopt.models.pairs import PairLayout, without_padding
from prefopt.models.roles import REWARD, adapter_on, belongs_to, left_as_found, save_adapter, set_active
from prefopt.models.shared_prefix import shared_states, takes_layouts
from prefopt.models.wrapped import HoldsPeft

HEAD_KEY = "base_model.model.score.weight"


class ScoreHead(nn.Linear):
    """Hidden state to one number, or several, in float32 whatever the base computes in.

    New weights are drawn from N(0, 1 / (H + 1)) (arXiv 2009.01325; arXiv 2403.17031, detail 11).
    """

    def __init__(self, hidden_size: int, outputs: int = 1, *, bias: bool = False) -> None:
        super().__init__(hidden_size, outputs, bias=bias, dtype=torch.float32)

    def forward(self, states: Tensor) -> Tensor:
        """[.., H] to [.., outputs], outside of autocast, in which a linear layer computes in half precision."""
        with torch.autocast(states.device.type, enabled=False):
            return super().forward(states.float())

    def reset_parameters(self) -> None:
        """Draw new weights."""
        nn.init.normal_(self.weight, std=(self.in_features + 1) ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def new_head(model: PeftModel | PreTrainedModel, outputs: int = 1) -> ScoreHead:
    """A new head for a model, on its device."""
    hidden_size = int(model.config.get_text_config().hidden_size)
    return ScoreHead(hidden_size, outputs).to(next(model.parameters()).device)


def hidden_states(model: PeftModel | PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Last hidden states of the decoder, without the language-model head.

    Positions count real tokens, so it makes no difference on which side a row is padded.

    Args:
        model: A causal language model; the adapters that are active apply.
        input_ids: [B, T].
        attention_mask: [B, T], 0 on padding.

    Returns:
        [B, T, H].
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
    output = base.get_decoder()(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False
    )
    return cast(Tensor, output.last_hidden_state)


def last_token(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The states of each row's last real token, found by the mask and never by a token's id: [B, T, H] to [B, H].

    A padding token may be the end token as well.
    """
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = (attention_mask * positions).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def _last_states(model: PeftModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The states of each row's last token, [B, H], without computing padding where the model can do without."""
    if takes_layouts(model):
        tokens, layout = without_padding(input_ids, attention_mask, input_ids.shape[1])
        return shared_states(model, tokens, layout, layout.last[: len(input_ids)])
    return last_token(hidden_states(model, input_ids, attention_mask), attention_mask)


class RewardModel(HoldsPeft):
    """A base with an adapter and a head: scores of whole rows.

    Args:
        peft: The base with the adapter that is to be used, active.
        head: From the last token's state to the score, or to several.
    """

    def __init__(self, peft: PeftModel, head: ScoreHead) -> None:
        super().__init__(peft)
        self.score = head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Scores, float32: [B] of rows, or [2B] of pairs, all chosen first; [.., R] of a head with R > 1 outputs.

        Args:
            input_ids: [B, T], padded on either side; or [1, N] of `prefopt.models.batches.PairCollator`.
            attention_mask: [B, T], 0 on padding.
            lengths: [B, 3] of pairs, which take the place of `attention_mask`.
        """
        if lengths is not None and self.shares_prompts:
            layout = PairLayout(lengths, input_ids.device)
            last = shared_states(self.peft, input_ids, layout, layout.last)
        else:
            if lengths is not None:
                batch = padded_pairs({"input_ids": input_ids, "lengths": lengths})
                input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
            assert attention_mask is not None
            last = last_token(hidden_states(self.peft, input_ids, attention_mask), attention_mask)
        scores: Tensor = self.score(last).squeeze(-1)
        return scores


class RewardEnsemble(HoldsPeft):
    """Frozen reward models that are adapters on one base: every row passes through each of them.

    The base may have other roles' adapters, which are not active any more afterwards: see
    `prefopt.models.roles.left_as_found`.

    Args:
        peft: The base with the adapters.
        heads: The head of each, by the adapter's name, in the order of the scores.
    """

    def __init__(self, peft: PeftModel, heads: Mapping[str, ScoreHead]) -> None:
        super().__init__(peft)
        self.adapters = tuple(heads)
        self.heads = nn.ModuleList(heads.values())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores of rows [B, T]: [B, R], the outputs of all heads side by side."""
        self.heads.to(input_ids.device)  # a trainer may have moved the base since
        scores = []
        for adapter, head in zip(self.adapters, self.heads, strict=True):
            if list(self.peft.active_adapters) != [adapter]:
                set_active(self.peft, [adapter])
            scores.append(head(_last_states(self.peft, input_ids, attention_mask)))
        return torch.cat(scores, dim=1)


def new_reward_model(
    base: PreTrainedModel, lora: LoraConfig, init: Path | None, outputs: int = 1, *, reshape: bool = False
) -> RewardModel:
    """A reward model to be trained.

    Args:
        base: The frozen base.
        lora: Shape of a new adapter.
        init: Adapter folder to start from, such as that of an sft stage.
        outputs: Numbers that the head gives.
        reshape: Whether the adapter has the shape `lora` also with `init`, whose shape is kept otherwise.
    """
    return RewardModel(adapter_on(base, lora, init, REWARD, reshape=reshape), new_head(base, outputs))


def save_reward(
    peft: PeftModel, adapter: str, head: ScoreHead, directory: Path, base_name: str, *, complete: bool = True
) -> None:
    """Write an adapter and its head as one SEQ_CLS folder.

    Args:
        peft: The model that has the adapter.
        adapter: Its name on the model.
        head: Without bias.
        directory: Where the folder's files go.
        base_name: See `prefopt.models.roles.save_adapter`.
        complete: See there, too.
    """
    save_adapter(peft, adapter, directory, base_name, complete=complete)
    weights = load_file(directory / WEIGHTS_FILE)
    weights[HEAD_KEY] = head.weight.detach().cpu().contiguous()
    save_file(weights, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    config |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def scale_saved_head(directory: Path, factors: Sequence[float]) -> None:
    """Multiply the outputs of a saved head, so that whoever opens the folder gets scores in another unit.

    Args:
        directory: Written by `save_reward`.
        factors: One for each output.
    """
    weights = load_file(directory / WEIGHTS_FILE)
    head = weights[HEAD_KEY]
    weights[HEAD_KEY] = head * torch.tensor(factors, dtype=head.dtype).unsqueeze(1)
    save_file(weights, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def read_reward(directory: Path) -> tuple[LoraConfig, dict[str, Tensor], Tensor]:
    """What a folder of `save_reward` holds: the adapter's shape, its weights, and the head's.

    Raises:
        IntegrityError: When there is no head in it.
    """
    config = LoraConfig.from_pretrained(str(directory))
    weights = load_peft_weights(str(directory), device="cpu")
    head = weights.pop(HEAD_KEY, None)
    if head is None:
        raise IntegrityError(f"{directory}: there is no {HEAD_KEY}, so this is no reward model")
    config.task_type, config.modules_to_save = "CAUSAL_LM", None
    config.base_model_name_or_path = None  # PEFT warns where the folder was renamed since
    return config, weights, head


def hang_reward(base: PreTrainedModel | PeftModel, folder: Path, name: str) -> tuple[PeftModel, ScoreHead]:
    """Put a saved reward model on a causal language model, frozen, beside whatever adapters are there.

    Args:
        base: The frozen base, or the base with other adapters, which stay active as they were.
        folder: Written by `save_reward`.
        name: Of the adapter on the model.

    Returns:
        The model with the adapter, and the head on its device.

    Raises:
        IntegrityError: When the folder does not hold exactly such a model.
    """
    config, weights, head_weight = read_reward(folder)
    if isinstance(base, PeftModel):
        peft = base
        with left_as_found(peft):
            peft.add_adapter(name, config)
    else:
        peft = get_peft_model(base, config, adapter_name=name)
    load_reward_weights(peft, name, weights, folder)
    for key, parameter in peft.named_parameters():
        if belongs_to(key, name):
            parameter.requires_grad_(False)
    head = ScoreHead(head_weight.shape[1], head_weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(head_weight)
    head.requires_grad_(False)
    return peft, head.to(next(peft.parameters()).device)


def load_reward_weights(peft: PeftModel, adapter: str, weights: dict[str, Tensor], folder: Path) -> None:
    """Put the adapter's tensors of `read_reward` into an adapter that the model already has.

    Raises:
        IntegrityError: When they are not exactly this adapter's.
    """
    result = set_peft_model_state_dict(peft, weights, adapter_name=adapter)
    missing = [key for key in result.missing_keys if belongs_to(key, adapter)]
    if missing or result.unexpected_keys:
        raise IntegrityError(
            f"{folder}: does not hold the adapter {adapter!r}: {len(missing)} tensors missing, "
            f"{len(result.unexpected_keys)} unknown"
        )
