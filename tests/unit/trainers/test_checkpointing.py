"""`activation_checkpointing`: the same gradients from fewer kept activations, for every trainer of adapters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import TrainerCallback

from tests.tiny import VOCABULARY, tiny_llama
from tests.unit.trainers.four import METHODS, build, difference

WIDTH, TOKENS = 32, 96


class Gradients(TrainerCallback):
    """The gradients of the first step, before they are clipped or used."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        named = self.model.named_parameters()
        self.found = {name: value.grad.clone() for name, value in named if value.grad is not None}
        control.should_training_stop = True


def first_gradients(method: str, directory, recompute: bool) -> dict[str, Tensor]:
    trainer = build(method, directory, recompute=recompute, max_grad_norm=1e9)
    gradients = Gradients(trainer.model)
    trainer.add_callback(gradients)
    trainer.train()
    return gradients.found


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_kept_activations(tmp_path, method):
    kept = first_gradients(method, tmp_path / "kept", recompute=False)
    recomputed = first_gradients(method, tmp_path / "recomputed", recompute=True)
    assert difference(recomputed, kept) < 1e-6
    assert sum(float(value.norm()) for value in kept.values()) > 0.01


def kept_bytes(method: str, directory, recompute: bool) -> int:
    """Bytes that the forward pass of the first step keeps for its backward: of every storage once, without weights."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(6, VOCABULARY, (8, TOKENS), generator=generator).tolist()
    rows = [{"prompt_ids": [1, *row[:64]], "chosen_ids": [*row[64:], 2], "rejected_ids": [*row[:31], 2]} for row in ids]
    base = tiny_llama(layers=8)
    more = {"max_new_tokens": 60, "rollout_batch_size": 8, "total_episodes": 8, "num_mini_batches": 1}
    trainer = build(method, directory, base, rows, recompute=recompute, **(more if method == "ppo" else {}))
    weights = {value.untyped_storage().data_ptr() for value in trainer.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    class FirstStep(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs) -> None:
            self.hooks = saved_tensors_hooks(pack, lambda tensor: tensor)
            self.hooks.__enter__()

        def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
            self.hooks.__exit__()
            control.should_training_stop = True

    trainer.add_callback(FirstStep())
    trainer.train()
    return sum(kept.values())


@pytest.mark.parametrize("method", METHODS)
def test_less_than_half_is_kept_in_a_deep_model(tmp_path, method):
    kept = kept_bytes(method, tmp_path / "kept", recompute=False)
    recomputed = kept_bytes(method, tmp_path / "recomputed", recompute=True)
    assert 0 < recomputed < 0.5 * kept
