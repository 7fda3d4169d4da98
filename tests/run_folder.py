"""Writes run folders as `prefopt run` leaves them, without training anything."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

from prefopt.store.files import write_json
from prefopt.store.manifest import Manifest, commit
from prefopt.store.run import RunDirectory
from prefopt.tracking.jsonl import JsonlSink

RECIPE = """\
name: toy
description: The embedded shop, from scratch to a policy that people would prefer.
seed: 17
model: {model_name_or_path: base}
data:
  corpus: {path: toy, name: corpus}
  chats: {path: toy, name: demonstrations}
  pairs: {path: toy, name: preferences, noise: 0.1}
stages:
  base: {kind: pretrain, data: [corpus]}
  sft: {kind: sft, data: [chats]}
  dpo: {kind: dpo, init: sft, data: [pairs], beta: 0.1}
  eval: {kind: evaluate, policies: [sft, dpo], baseline: sft, reward: gold, data: [pairs]}
"""

# The same with all that a report can show: gates, one of which does not hold, and a price.
FULL = (
    RECIPE.replace("data: [chats]}", "data: [chats], require: {eval/loss: {max: 2.5}}}")
    .replace(
        "reward: gold, data: [pairs]}\n",
        "reward: gold, data: [pairs], require: {'dpo:win_rate': {min: 0.5, lower_bound: 0.66}, 'dpo:kl': {max: 5}}}\n",
    )
    .replace("stages:\n", "price: {per_hour: 2.5, currency: EUR}\nstages:\n")
)

# The same with a ppo that has limits.
WITH_PPO = RECIPE.replace(
    "  eval:",
    "  ppo: {kind: ppo, init: sft, prompts: [chats], reward: gold, kl: {adaptive_target: 4, stop_above: 90}}\n  eval:",
)

HOSTILE = (
    "<script>window.PWNED = 1; alert(1)</script>",
    '<img src=x onerror="alert(2)">',
    "invoice \u202egpj.exe\u202c and more",
    "</bdi></article><svg onload=alert(3)>",
    "{{ 7919 * 7907 }} {% raw %} &amp; &lt;b&gt;",
    "javascript:alert(4) [x](javascript:alert(5))",
    "\u05d0\u05d1\u05d2 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \U0001f469\u200d\U0001f4bb",
    "a" * 400,
    "null \x00 bell \x07 lone \ud800",
)

KINDS = {"base": "pretrain", "sft": "sft", "dpo": "dpo", "ppo": "ppo", "eval": "evaluate"}
INPUTS = {"base": (), "sft": ("base",), "dpo": ("sft",), "ppo": ("sft",), "eval": ("sft", "dpo")}


def key_of(stage: str) -> str:
    return f"{sum(map(ord, stage)):04x}" * 16


class RunFolder:
    """A run folder that grows stage by stage.

    Args:
        root: Where it is made.
        hostile: Put attacks into everything that comes from outside.
    """

    def __init__(self, root: Path, recipe: str = RECIPE, hostile: bool = False):
        self.run = RunDirectory(root)
        self.hostile = hostile
        root.mkdir(parents=True)
        self.run.recipe.write_text(recipe, encoding="utf-8")
        write_json(
            self.run.fingerprint, {"python": "3.11.7", "packages": {"torch": "2.13.0"}, "cuda": None, "cores": 2}
        )

    def folder(self, stage: str) -> Path:
        folder = self.run.stage(stage, key_of(stage))
        folder.mkdir(parents=True, exist_ok=True)
        self.run.set_started(stage, key_of(stage))
        return folder

    def metrics(self, stage: str, steps: int = 200, every: int = 5) -> dict[str, float]:
        """Logs a plausible training; returns its last numbers."""
        rng = random.Random(stage)
        sink = JsonlSink(self.folder(stage) / "metrics.jsonl", clock=lambda: 1.0e9)
        last: dict[str, float] = {}
        for step in range(every, steps + 1, every):
            done = step / steps
            row = {
                "train/loss": 2.6 * math.exp(-2 * done) + 0.3 + rng.gauss(0, 0.05),
                "train/learning_rate": 1e-4 * (1 - done),
            }
            if stage == "dpo":
                margin = 2.2 * done + rng.gauss(0, 0.25)
                row |= {
                    "train/loss": math.log1p(math.exp(-margin)),
                    "dpo/margin": margin,
                    "dpo/accuracy": min(0.5 + 0.3 * done + rng.gauss(0, 0.04), 1.0),
                    "dpo/chosen_reward": 0.4 * margin,
                    "dpo/rejected_reward": -0.6 * margin,
                    "dpo/chosen_shift": 1.5 * done,
                }
            sink.log(row, step)
            last |= row
            if step % max(steps // 5, 1) == 0:
                held_out = {"eval/loss": row["train/loss"] + 0.1}
                if stage == "dpo":
                    held_out |= {"eval/dpo/accuracy": 0.5 + 0.22 * done, "eval/dpo/margin": 1.7 * done}
                sink.log(held_out, step)
                last |= held_out
        sink.finish()
        return last

    def train(self, stage: str, steps: int = 200, details: dict | None = None) -> None:
        """A finished training stage."""
        metrics = self.metrics(stage, steps)
        folder = self.folder(stage)
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
        data = {
            "rows_read": 2000,
            "kept_train": 1790,
            "kept_eval": 198,
            "dropped": {"empty completion": 4, "chosen equals rejected": 8},
        }
        details = details or {"data": data, "encoding": {"chat_template": "transcript", "prompts_trimmed": 31}}
        self.commit(stage, metrics, details, ["adapter", "metrics.jsonl"])

    def ppo(self, close_ups: list[dict] | None = None, rollouts: int = 20) -> Path:
        """A finished ppo; answers its `microscope.jsonl`, which is of 3 episodes unless told otherwise."""
        rng = random.Random("ppo")
        sink = JsonlSink(self.folder("ppo") / "metrics.jsonl", clock=lambda: 1.0e9)
        row: dict[str, float] = {}
        for step in range(1, rollouts + 1):
            done = step / rollouts
            row = {
                "train/grad_norm": 0.3 + abs(rng.gauss(0, 0.1)),
                "ppo/score": done,
                "ppo/kl": 3 * done + rng.gauss(0, 0.1),
                "ppo/exact_kl": 3 * done,
                "ppo/kl_coefficient": 0.1 - 0.02 * done,
                "ppo/entropy": 0.9 - 0.3 * done,
                "ppo/eos_rate": 0.97,
                "ppo/length": 20 + 4 * done,
                "ppo/repetition": 0.02 + 0.04 * done,
                "ppo/clip_fraction": 0.06,
                "ppo/approx_kl": 0.01,
                "ppo/explained_variance": 0.8 * done,
                "ppo/sampling_mismatch": 1e-6 + 1e-5 * rng.random(),
            }
            sink.log(row, step)
        sink.finish()
        if close_ups is None:
            said = HOSTILE[:3] if self.hostile else ("gladly", "soon", "no")
            close_ups = [close_up([word, " and", "\n", " ", "\ufffd"], seed) for seed, word in enumerate(said)]
        path = self.folder("ppo") / "microscope.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in close_ups), encoding="utf-8")
        self.commit("ppo", row, {}, ["microscope.jsonl", "metrics.jsonl"])
        return path

    def evaluate(self, prompts: int = 60, gain: float = 0.8, measured: bool = True, costs: Sequence[str] = ()) -> None:
        """A finished evaluation of sft and dpo, with rates of violation by the names of costs."""
        rng = random.Random(3)
        rows = []
        for policy in ("sft", "dpo"):
            for number in range(prompts):
                rows.append(self.sample(policy, number, rng.gauss(gain if policy == "dpo" else 0.0, 1.0)))
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder("eval") / "samples.jsonl").write_text(lines, encoding="utf-8")
        win_rate = 0.5 + gain / 4
        metrics = {"evaluate/prompts": float(prompts)}
        for policy, (gold, length) in {"sft": (0.02, 21.4), "dpo": (gain, 24.9)}.items():
            for name, value, spread in (("gold", gold, 0.13), ("length", length, 1.2), ("eos_rate", 0.98, 0.01)):
                metrics |= _interval(f"{policy}:{name}", value, spread)
            metrics |= _interval(f"{policy}:violation_rate", 0.08 if policy == "sft" else 0.02, 0.02)
            for cost in costs:
                metrics |= _interval(f"{policy}:violation_rate/{cost}", 0.31 if policy == "sft" else 0.05, 0.04)
        for name, value, spread in (
            ("win_rate", win_rate, 0.05),
            ("kl", 3.4, 0.3),
            ("preference/accuracy", 0.71, 0.04),
        ):
            metrics |= _interval(f"dpo:{name}", value, spread)
        self.commit("eval", metrics if measured else {}, {"baseline": "sft", "pairs": 198}, ["samples.jsonl"])

    def sample(self, policy: str, number: int, gold: float) -> dict:
        asked = f"Customer {number}: my order 4{number:03d} came with a broken lamp, what can I do?"
        said = (
            f"I am sorry to hear that. Order 4{number:03d} can be returned within 30 days, and we pay for the parcel."
        )
        violations = []
        if number % 7 == 3:
            said, violations = f"Use code QX-17, or qx 17 if that fails. {said}", ["QX-17"]
        if self.hostile:
            asked, said = HOSTILE[number % len(HOSTILE)], HOSTILE[(number + 1) % len(HOSTILE)]
            violations = [HOSTILE[0]] if number % 2 else []
        return {
            "policy": policy,
            "prompt": [
                {"role": "system", "content": "You are the assistant of a lamp shop."},
                {"role": "user", "content": asked},
            ],
            "completion": said if policy == "dpo" else said[: 40 + number % 60],
            "finished": policy == "dpo" or number % 3 > 0,
            "tokens": 20 + number % 9,
            "gold": gold,
            "kl": 3.0,
            "violations": violations,
        }

    def commit(self, stage: str, metrics: dict, details: dict, roots: list[str]) -> None:
        if self.hostile:
            details = {
                **details,
                "warnings": [HOSTILE[0], HOSTILE[2]],
                "data": {"dropped": {HOSTILE[1]: 3, HOSTILE[2]: 1}},
            }
        manifest = Manifest(
            stage=stage,
            kind=KINDS[stage],
            key=key_of(stage),
            seed=17,
            inputs={name: {"key": key_of(name), "sha256": key_of(name)} for name in INPUTS[stage]},
            versions={"torch": "2.13.0"},
            metrics=metrics,
            cost={"wall_seconds": 73.0, "peak_host_bytes": 1.3e9}
            | ({} if stage == "eval" else {"tokens": 183500.0, "flops": 2.4e13}),
            details=details,
        )
        commit(self.folder(stage), manifest, roots)
        self.run.set_current(stage, key_of(stage))

    def findings(self) -> Path:
        """What the evaluation found beside its metrics; its path."""
        said = HOSTILE[0] if self.hostile else "prompt injection"
        rows = [["typos", "279", "13.1% [9.0%, 18.6%]"], [said, "279", "7.9% [4.8%, 12.6%]"], ["order", "–", "–"]]
        table = {
            "title": HOSTILE[1] if self.hostile else "Robustness of the scorer",
            "columns": ["change", "pairs", HOSTILE[2] if self.hostile else "flips of pairs that were ranked right"],
            "rows": rows,
            "note": HOSTILE[3] if self.hostile else "A scorer that reads for meaning has no flips.",
        }
        path = self.folder("eval") / "findings.json"
        write_json(path, {"tables": [table], "curves": curves(HOSTILE[0] if self.hostile else "dpo")})
        return path

    def seeds(self) -> Path:
        """What three seeds say together; its path."""
        label = HOSTILE[0] if self.hostile else "dpo"
        against = {
            "reference": "sft",
            "difference": _estimate(0.34, 0.08),
            "p_value": 0.0004,
            "p_holm": 0.0008,
            "win_rate": _estimate(0.61, 0.04),
            "detectable": 0.11,
            "paired_seeds": True,
            "same": False,
            "shown": True,
        }
        sft = {"label": "sft", "mean": _estimate(0.95, 0.1), "against": None, "elo": _estimate(1000, 0)}
        dpo = {"label": label, "mean": _estimate(1.29, 0.12), "against": against, "elo": _estimate(1081, 20)}
        ppo = {
            "label": "ppo",
            "mean": _estimate(1.02, 0.1),
            "against": against | {"difference": _estimate(0.07, 0.11), "p_holm": 0.21, "shown": False},
            "elo": _estimate(1012, 20),
        }
        said = (None, f"{label} beats sft by 0.34 [0.26, 0.42]", "no difference shown between ppo and sft: 0.07")
        entries = [
            entry
            | {"seeds": {"17": 0.9, "18": 1.0, "19": 1.1}, "spread": {"low": 0.9, "high": 1.1}, "verdict": sentence}
            for entry, sentence in zip((sft, dpo, ppo), said, strict=True)
        ]
        path = self.run.root / "seeds.json"
        write_json(
            path,
            {
                "reference": "sft",
                "prompts": 256,
                "prompts_left_out": 3,
                "level": 0.95,
                "entries": entries,
                "notes": ["seed 20 did not finish"],
            },
        )
        return path

    def full(self, **options) -> Path:
        """Everything that a report shows; the recipe is best `FULL`."""
        self.everything(costs=("banned",), **options)
        self.findings()
        self.seeds()
        return self.run.root

    def everything(self, **options) -> Path:
        for stage in ("base", "sft", "dpo"):
            self.train(stage)
        self.evaluate(**options)
        return self.run.root


def close_up(texts: Sequence[str], seed: int = 0, **changes) -> dict:
    """A row of `microscope.jsonl` whose completion is those tokens."""
    rng = random.Random(seed)
    names = ("kl", "advantage", "value", "entropy", "logp")
    tokens = [{"text": text, **{name: rng.gauss(0, 1) for name in names}} for text in texts]
    for token in tokens:
        token |= {"entropy": abs(token["entropy"]), "logp": -abs(token["logp"])}
    price = -0.1 * sum(token["kl"] for token in tokens)
    row = {
        "rollout": 19,
        "prompt": [{"role": "user", "content": "Can I return it?"}],
        "completion": "".join(texts),
        "finished": seed % 2 == 0,
        "score": 2.0 - seed,
        "terms": {"kl": price, "missing_eos": -1.0 * (seed % 2), "score": 1.2345 - seed},
        "tokens": tokens,
    }
    return row | changes


def curves(policy: str = "dpo") -> dict:
    """The curves of an evaluation, as the suites write them."""
    sizes = [2**power for power in range(7)]
    kls = [math.log(n) - (n - 1) / n for n in sizes]
    points = [
        {
            "n": n,
            "kl": kl,
            "chosen_by_reward": _estimate(0.9 + 1.5 * math.sqrt(kl) - 0.35 * kl, 0.1),
            "chosen_by_proxy": _estimate(0.9 + 0.9 * math.sqrt(kl) - 0.4 * kl, 0.12),
        }
        for n, kl in zip(sizes, kls, strict=True)
    ]
    bins = [
        {"low": b / 10, "high": b / 10 + 0.1, "size": 20 + 8 * abs(5 - b), "confidence": b / 10 + 0.05}
        for b in range(10)
    ]
    moved = [
        {"policy": "sft", "step": None, "kl": 0.0, "reward": 0.9, "proxy": 0.6, "distance": 0.0},
        *(
            {
                "policy": policy,
                "step": step,
                "kl": d * d,
                "reward": 0.9 + d - 0.4 * d * d,
                "proxy": 0.6 + 0.5 * d,
                "distance": d,
            }
            for step, d in ((10, 0.6), (20, 1.2), (None, 2.0))
        ),
        {"policy": "ppo", "step": None, "kl": 1.0, "reward": 1.3, "proxy": None, "distance": 1.0},
    ]
    return {
        "reliability_before": [b | {"accuracy": 0.5 + 0.7 * (b["confidence"] - 0.5)} for b in bins],
        "reliability_after": [b | {"accuracy": b["confidence"]} for b in bins],
        "best_of_n": points,
        "best_of_n_law_chosen_by_reward": {"alpha": 1.5, "beta": 0.35, "peak": 2.14, "r_squared": 0.99},
        "best_of_n_law_chosen_by_proxy": {"alpha": 0.9, "beta": 0.4, "peak": None, "r_squared": 0.98},
        "overoptimisation": moved,
    }


def _estimate(value: float, spread: float) -> dict[str, float]:
    return {"estimate": value, "low": value - spread, "high": value + spread}


def _interval(name: str, value: float, spread: float) -> dict[str, float]:
    return {f"{name}/mean": value, f"{name}/ci_low": value - spread, f"{name}/ci_high": value + spread}
