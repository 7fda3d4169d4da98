"""Curves of reward against distance: best of n, and policies as they move away from their reference."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.evaluation.findings import Finding, Findings, number
from prefopt.stats.curves import Law, best_of_n_kl, best_of_n_mean, fit_best_of_n_law, fit_rl_law
from prefopt.stats.intervals import Interval, bootstrap_mean


@dataclass(frozen=True)
class Many:
    """Many answers of the baseline to one prompt.

    Attributes:
        rewards: Of each answer, by what the stage measures with.
        proxies: By the reward that policies were trained on; empty where none is named.
    """

    rewards: Sequence[float]
    proxies: Sequence[float] = ()


def best_of_n(answers: Mapping[Hashable, Many], score_name: str) -> Findings:
    """Reward of the best of n answers for n = 1, 2, 4, …, with the law that it follows (arXiv 2210.10760).

    Chosen by the reward itself it is the most that choosing can give; chosen by a proxy it shows what the proxy is
    worth, and past its peak that the proxy is over-optimised. The curve also says what the proxy itself thinks of them.

    Args:
        answers: By prompt; as many for each.
        score_name: What the reward is called.
    """
    most = min(len(many.rewards) for many in answers.values())
    sizes = [2**power for power in range(int(math.log2(most)) + 1)]
    findings = Findings()
    points: list[dict[str, Any]] = []
    for n in sizes:
        point: dict[str, Any] = {"n": n, "kl": best_of_n_kl(n)}
        point["chosen_by_reward"] = _over_prompts([best_of_n_mean(m.rewards, m.rewards, n) for m in answers.values()])
        if all(m.proxies for m in answers.values()):
            values = [best_of_n_mean(m.proxies, m.rewards, n) for m in answers.values()]
            point["chosen_by_proxy"] = _over_prompts(values)
            point["proxy"] = _over_prompts([best_of_n_mean(m.proxies, m.proxies, n) for m in answers.values()])
        points.append(point)
    findings.curves["best_of_n"] = points
    for chosen in ("chosen_by_reward", "chosen_by_proxy"):
        if chosen in points[0] and len(points) >= 3:
            law = _law(points, chosen)
            findings.metrics |= _law_metrics(f"best_of_n/{chosen}", law)
            findings.curves[f"best_of_n_law_{chosen}"] = law._asdict()
    findings.tables.append(_best_of_n_table(points, score_name))
    return findings


def _over_prompts(values: Sequence[float]) -> dict[str, float]:
    return bootstrap_mean(values)._asdict()


def _law(points: Sequence[Mapping[str, Any]], chosen: str) -> Law:
    start = points[0][chosen]["estimate"]
    distances = [math.sqrt(point["kl"]) for point in points]
    return fit_best_of_n_law(distances, [point[chosen]["estimate"] - start for point in points])


def _law_metrics(name: str, law: Law) -> dict[str, float]:
    return {f"{name}/alpha": law.alpha, f"{name}/beta": law.beta, f"{name}/r_squared": law.r_squared}


def _best_of_n_table(points: Sequence[Mapping[str, Any]], score_name: str) -> Finding:
    with_proxy = "chosen_by_proxy" in points[0]
    columns = (
        "n",
        "KL (nats)",
        f"{score_name}, chosen by itself",
        *([f"{score_name}, chosen by the proxy"] * with_proxy),
    )
    rows = []
    for point in points:
        cells = [f"{point['n']}", f"{point['kl']:.2f}", number(Interval(**point["chosen_by_reward"]))]
        rows.append((*cells, *([number(Interval(**point["chosen_by_proxy"]))] if with_proxy else [])))
    return Finding(
        "Best of n answers of the baseline",
        columns,
        tuple(rows),
        "The gap between the columns is what the proxy gives away. KL is ln n - (n - 1) / n, an upper bound where "
        "answers repeat.",
    )


@dataclass(frozen=True)
class Moved:
    """A policy, or a checkpoint of one, with its distance from the baseline.

    Attributes:
        policy: The stage.
        step: Optimiser steps that the checkpoint had; None for the finished policy.
        kl: Mean KL from the baseline, nats.
        reward: Mean reward.
        proxy: Mean of the reward that it was trained on; None where none is named.
    """

    policy: str
    step: int | None
    kl: float
    reward: float
    proxy: float | None = None


def overoptimisation(points: Sequence[Moved], baseline: str, score_name: str) -> Findings:
    """Reward against the root of the KL divergence, with the law of reinforcement learning where points suffice.

    A reward that falls while the proxy rises is over-optimised (arXiv 2210.10760).

    Args:
        points: The baseline, policies, and checkpoints of theirs.
        baseline: Its name.
        score_name: What the reward is called.
    """
    start = next(point for point in points if point.policy == baseline and point.step is None)
    findings = Findings()
    rows, curve = [], []
    for point in points:
        distance = math.sqrt(max(0.0, point.kl))
        curve.append({**vars(point), "distance": distance})
        where = "end" if point.step is None else f"step {point.step}"
        proxy = "–" if point.proxy is None else f"{point.proxy:.3f}"
        rows.append((point.policy, where, f"{point.kl:.2f}", f"{distance:.2f}", f"{point.reward:.3f}", proxy))
    findings.curves["overoptimisation"] = curve
    for policy in dict.fromkeys(point.policy for point in points if point.policy != baseline):
        moved = [point for point in points if point.policy == policy and point.kl > 0]
        if len({point.kl for point in moved}) >= 3:
            law = fit_rl_law([math.sqrt(p.kl) for p in moved], [p.reward - start.reward for p in moved])
            findings.metrics |= {f"{policy}:{name}": v for name, v in _law_metrics("overoptimisation", law).items()}
            findings.curves[f"overoptimisation_law_{policy}"] = law._asdict()
    findings.tables.append(
        Finding(
            "Reward against distance from the baseline",
            ("policy", "at", "KL (nats)", "√KL", score_name, "proxy"),
            tuple(rows),
            "A proxy that still rises where the reward falls is over-optimised: stop earlier, or pull harder.",
        )
    )
    return findings
