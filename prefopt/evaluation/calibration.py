"""Whether a reward model's margins mean what they say, before and after a temperature."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from prefopt.evaluation.findings import Finding, Findings, ScoredPair
from prefopt.evaluation.reward_accuracy import clusters
from prefopt.stats.calibration import (
    both_orders,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    pair_nll,
    pair_probabilities,
    reliability,
)

_CHANCE_DRAWS = 200
FOLDS = 10


def calibration(pairs: Sequence[ScoredPair], seed: int = 0) -> Findings:
    """`calibration_of_margins` of held-out pairs with scores; labels enter as probabilities: 0.7 came true to 70 %."""
    margins = [pair.chosen - pair.rejected for pair in pairs]
    return calibration_of_margins(margins, [pair.pair.probability for pair in pairs], clusters(pairs), seed)


def calibration_of_margins(
    margins: Sequence[float], outcomes: Sequence[float], prompts: Sequence[str], seed: int = 0
) -> Findings:
    """ECE, Brier score and likelihood of σ(margin / T) for T = 1 and for a fitted T.

    T is fitted on nine tenths of the prompts and judged on the others, ten times, so that no pair judges a temperature
    it helped to choose; the T that is reported is that of all pairs. Every pair counts in both orders.

    Args:
        margins: r(first) - r(second) of each held-out pair.
        outcomes: Probability that the first is preferred.
        prompts: The prompt of each pair, or anything that is equal for pairs of one prompt.
        seed: Of the tenths, and of the draws for the error that chance alone gives.

    Raises:
        ValueError: With fewer than two prompts.
    """
    temperatures = _cross_fitted(margins, outcomes, _folds(prompts, seed))
    scaled = [margin / t for margin, t in zip(margins, temperatures, strict=True)]
    temperature = fit_temperature(*both_orders(margins, outcomes))
    findings = Findings(metrics={"calibration/temperature": temperature})
    rows = []
    for name, values in (("before", margins), ("after", scaled)):
        m, y = both_orders(values, outcomes)
        p = pair_probabilities(m)
        ece, brier, nll = expected_calibration_error(p, y), brier_score(p, y), pair_nll(m, y)
        chance = _ece_of_chance(p, seed)
        findings.metrics |= {
            f"calibration/ece_{name}": ece,
            f"calibration/brier_{name}": brier,
            f"calibration/nll_{name}": nll,
            f"calibration/ece_chance_{name}": chance,
        }
        rows.append((name, f"{ece:.3f}", f"{chance:.3f}", f"{brier:.3f}", f"{nll:.4f}"))
        findings.curves[f"reliability_{name}"] = [b._asdict() for b in reliability(p, y)]
    findings.tables.append(
        Finding(
            f"Calibration on {len(margins)} held-out pairs; the fitted temperature is {temperature:.2f}",
            ("temperature", "ECE", "ECE by chance", "Brier score", "NLL (nats)"),
            tuple(rows),
            "ECE by chance is what as many pairs give when the probabilities are exactly right. A Brier score of 0.25 "
            "and an NLL of 0.6931 are those of always saying one half.",
        )
    )
    return findings


def _folds(prompts: Sequence[str], seed: int) -> list[int]:
    """A fold for each pair, the same for all pairs of a prompt, and as many prompts in each."""
    ranked = sorted(set(prompts), key=lambda prompt: hashlib.sha256(f"{seed}{prompt}".encode()).hexdigest())
    if len(ranked) < 2:
        raise ValueError("a temperature needs pairs of two prompts or more")
    fold = {prompt: rank % FOLDS for rank, prompt in enumerate(ranked)}
    return [fold[prompt] for prompt in prompts]


def _cross_fitted(margins: Sequence[float], outcomes: Sequence[float], folds: Sequence[int]) -> list[float]:
    """For each pair the temperature of the pairs in other folds."""
    fitted = {}
    for fold in set(folds):
        rows = [i for i, f in enumerate(folds) if f != fold]
        fitted[fold] = fit_temperature(*both_orders([margins[i] for i in rows], [outcomes[i] for i in rows]))
    return [fitted[fold] for fold in folds]


def _ece_of_chance(probabilities: Sequence[float], seed: int) -> float:
    """Mean ECE of outcomes drawn from the probabilities themselves; each pair is drawn once, for both orders."""
    forward = np.asarray(probabilities[: len(probabilities) // 2])
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(_CHANCE_DRAWS):
        drawn = (generator.uniform(size=len(forward)) < forward).astype(float)
        found.append(expected_calibration_error([*forward, *(1 - forward)], [*drawn, *(1 - drawn)]))
    return float(np.mean(found))
