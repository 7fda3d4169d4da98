"""The same numbers as TRL's own code, where TRL has the loss: float64, 1e-9."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt.losses.dpo import dpo_loss
from prefopt.losses.logprobs import completion_sums
from prefopt.losses.pair_statistics import CompletionStatistics, DPOOptions, PairStatistics

trainer = pytest.importorskip("trl.trainer.dpo_trainer")
cpo = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
orpo = pytest.importorskip("trl.experimental.orpo.orpo_trainer")

PAIRS, WIDTH, VOCABULARY = 6, 14, 23
OPTIONS = DPOOptions(beta=0.3, label_smoothing=0.1, discopop_tau=0.4, f_alpha_divergence_coef=0.6)
LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
DIVERGENT = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")


class Batch:
    """Random logits of a policy and of a reference on random rows, all chosen ones before all rejected ones."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.tokens = torch.randint(0, VOCABULARY, (2 * PAIRS, WIDTH), generator=generator)
        starts = torch.randint(1, 5, (PAIRS,), generator=generator).repeat(2)
        ends = torch.randint(6, WIDTH + 1, (2 * PAIRS,), generator=generator)
        place = torch.arange(WIDTH)
        self.mask = ((place >= starts[:, None]) & (place < ends[:, None])).long()
        shape = (2 * PAIRS, WIDTH, VOCABULARY)
        self.logits, self.reference = (torch.randn(shape, generator=generator).double() for _ in range(2))
        self.logits.requires_grad_()

    def sums(self, logits: Tensor) -> Any:
        head = torch.minimum(*self.mask.sum(-1).chunk(2)).repeat(2)
        return completion_sums(logits, self.tokens, self.mask, head_length=head, alignment=True)

    def statistics(self) -> PairStatistics:
        policy, reference = self.sums(self.logits), self.sums(self.reference)
        columns = (
            policy.logps, self.mask.sum(-1).double(), reference.logps, policy.tail_logps, reference.tail_logps, None,
            policy.alignment,
        )  # fmt: skip
        halves = [(None, None) if column is None else column.chunk(2) for column in columns]
        return PairStatistics(*(CompletionStatistics(*side) for side in zip(*halves, strict=True)))

    def by_trl(self, loss_types: list[str], options: DPOOptions, loss_weights: list[float] | None = None) -> Tensor:
        """The loss as `DPOTrainer` computes it from what its model returns."""
        labels = torch.where(self.mask[:, 1:].bool(), self.tokens[:, 1:], 0).unsqueeze(-1)
        inside = self.mask[:, 1:].bool()

        def model(**_: Any) -> Any:
            logps = self.logits[:, :-1].log_softmax(-1)
            return SimpleNamespace(
                log_probs=torch.where(inside, logps.gather(-1, labels).squeeze(-1), 0.0),
                log_sum_sq_probs=(2 * logps).logsumexp(-1).detach(),
                entropy=torch.zeros_like(inside, dtype=torch.double),
                mean_logits=torch.zeros_like(inside, dtype=torch.double),
                is_top1=inside,
            )

        reference = self.sums(self.reference)
        kept = reference.logps - (0 if options.ld_alpha is None else (1 - options.ld_alpha) * reference.tail_logps)
        accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
        self_ = SimpleNamespace(
            model=SimpleNamespace(training=True), accelerator=accelerator, aux_loss_enabled=False,
            ld_alpha=options.ld_alpha, precompute_ref_logps=True, f_divergence_type=options.f_divergence_type,
            f_alpha_divergence_coef=options.f_alpha_divergence_coef, loss_types=loss_types,
            loss_weights=loss_weights or [1.0] * len(loss_types), beta=options.beta,
            label_smoothing=options.label_smoothing, args=SimpleNamespace(discopop_tau=options.discopop_tau),
            use_weighting=options.use_weighting, _metrics=defaultdict(lambda: defaultdict(list)),
            _total_train_tokens=0, _tp_size=1,
        )  # fmt: skip
        chosen, rejected = kept.chunk(2)
        inputs = {
            "input_ids": self.tokens, "attention_mask": torch.ones_like(self.tokens), "completion_mask": self.mask,
            "ref_chosen_logps": chosen, "ref_rejected_logps": rejected,
        }  # fmt: skip
        return trainer.DPOTrainer._compute_loss(self_, model, inputs, return_outputs=False)

    def compare(self, loss_types: list[str], options: DPOOptions, loss_weights: list[float] | None = None) -> float:
        """Fails where prefopt's loss or gradient is not TRL's; the largest part of the gradient."""
        ours = dpo_loss(self.statistics(), loss_types, options, loss_weights=loss_weights).losses.mean()
        theirs = self.by_trl(loss_types, options, loss_weights)
        near = 1e-7 if "exo_pair" in loss_types else 1e-9  # there TRL takes logarithms of ε in float32
        torch.testing.assert_close(ours, theirs, atol=near, rtol=near)
        gradients = [torch.autograd.grad(loss, self.logits)[0] for loss in (ours, theirs)]
        torch.testing.assert_close(gradients[0], gradients[1], atol=near, rtol=near)
        return float(gradients[0].abs().max())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("ld_alpha", [None, 0.3])
def test_every_loss_of_trl(name: str, ld_alpha: float | None) -> None:
    assert Batch().compare([name], OPTIONS._replace(ld_alpha=ld_alpha)) > 1e-4


# TRL's alpha divergence knows no float64; its closed form is tested in test_dpo.py.
@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence"])
@pytest.mark.parametrize("name", DIVERGENT)
def test_every_divergence_of_trl(name: str, divergence: str) -> None:
    assert Batch().compare([name], OPTIONS._replace(f_divergence_type=divergence)) > 1e-4


# Of sft TRL weighs the batch's mean, prefopt each row's part of it. TRL's hinge cannot be differentiated when weighted.
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("aot", "aot_unpaired", "sft", "hinge")])
def test_weighting_by_likelihood(name: str) -> None:
    assert Batch().compare([name], OPTIONS._replace(use_weighting=True)) > 1e-4


def test_mixtures() -> None:
    assert Batch().compare(["sigmoid", "bco_pair", "sft"], OPTIONS, [0.8, 0.2, 1.0]) > 1e-4


def test_without_its_end_the_loss_is_another() -> None:
    """The negative control: the comparison would see a completion without its end-of-sequence token."""
    batch = Batch()
    theirs = batch.by_trl(["sigmoid"], OPTIONS)
    last = batch.mask.cumsum(-1).argmax(-1, keepdim=True)
    batch.mask = batch.mask.scatter(1, last, 0)
    ours = dpo_loss(batch.statistics(), "sigmoid", OPTIONS).losses.mean()
    assert (ours - theirs).abs().item() > 1e-3


@pytest.mark.parametrize("name", ["simpo", "cpo"])
def test_losses_of_trls_cpo_trainer(name: str) -> None:
    pair = Batch().statistics()
    sides = [(s.logps / s.length if name == "simpo" else s.logps) for s in (pair.chosen, pair.rejected)]
    self_ = SimpleNamespace(
        alpha=0.0, accelerator=SimpleNamespace(device="cpu"), loss_type={"cpo": "sigmoid"}.get(name, name), beta=2.0,
        simpo_gamma=0.7, label_smoothing=0.0,
    )  # fmt: skip
    theirs, _, _ = cpo.CPOTrainer.cpo_loss(self_, *sides)
    ours = dpo_loss(pair, name, DPOOptions(2.0, simpo_gamma=0.7, cpo_alpha=0.0)).losses
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_the_odds_ratio_of_trls_orpo_trainer() -> None:
    pair = Batch().statistics()
    sides = [s.logps / s.length for s in (pair.chosen, pair.rejected)]
    self_ = SimpleNamespace(beta=0.2, accelerator=SimpleNamespace(device="cpu"))
    theirs = orpo.ORPOTrainer.odds_ratio_loss(self_, *sides)[0]
    ours = dpo_loss(pair, "orpo", DPOOptions(orpo_lambda=0.2)).losses
    torch.testing.assert_close(ours, (-sides[0] - theirs), atol=1e-5, rtol=1e-5)  # TRL's is in float32
