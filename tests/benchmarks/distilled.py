"""Writes what runs of the two recipes of distillation measured into their pages, between the `measured` markers.

usage: python tests/benchmarks/distilled.py RUN_DIR …

RUN_DIR is a finished run of recipes/context_distillation.yaml or recipes/stories_best_of_n.yaml. Nothing is trained.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.fill_docs import manifest, replace_block, table  # noqa: E402 - the package beside it

PAGES = ("context_distillation", "stories_best_of_n")
TOLD = {
    "distill/prompts": "prompts",
    "distill/kept": "answers kept",
    "distill/reward": "mean reward of all answers",
    "distill/kept_reward": "of those kept",
    "violation_rate/repetition": "answers too repetitive",
    "distill/context_tokens": "tokens read less, or more",
    "distill/prompt_ratio": "tokens of the teacher's prompt for one of the student's",
    "distill/own_reward": "reward of the student, held out",
    "distill/teacher_reward": "of its teacher",
    "distill/reward_ratio": "share of the teacher's reward",
    "distill/answer_agreement": "greedy answers word for word the same",
    "eval/distill/kl": "KL from the targets' teacher, nats a token",
    "distill/own_entropy": "entropy along its own answers, nats a token",
    "distill/distinct": "share of different pairs of words",
    "distill/drift": "drift elsewhere, nats a token",
    "distill/real_nll": "loss elsewhere, nats a token",
    "distill/sampling_speedup": "time of a token, teacher's by student's",
    "distill/guard": "a guard spoke up",
}


def time_of(content: dict[str, Any]) -> str:
    minutes, seconds = divmod(round(content["cost"]["wall_seconds"]), 60)
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def of_stages(run: Path, stages: list[str]) -> str:
    """A column for every distill stage, a row for every number that one of them has."""
    found = {stage: manifest(run, stage) for stage in stages}
    distilled = [stage for stage in stages if found[stage]["kind"] == "distill"]
    told = [f"| | {' | '.join(f'`{stage}`' for stage in distilled)} |", "|---" * (len(distilled) + 1) + "|"]
    told.append(f"| time | {' | '.join(time_of(found[stage]) for stage in distilled)} |")
    for name, words in TOLD.items():
        values = [found[stage]["metrics"].get(name) for stage in distilled]
        if any(value is not None for value in values):
            cells = ["–" if value is None else f"{value:,.3f}".rstrip("0").rstrip(".") for value in values]
            told.append(f"| {words} (`{name}`) | {' | '.join(cells)} |")
    others = [f"`{stage}` {time_of(found[stage])}" for stage in stages if stage not in distilled]
    return "\n".join([*told, "", f"The other stages: {', '.join(others)}."])


def main() -> int:
    for path in sys.argv[1:]:
        run = Path(path).absolute()
        name = run_name(run)
        stages = sorted(
            (each.name for each in (run / "stages").iterdir()), key=lambda each: manifest(run, each)["created"]
        )
        page = f"docs/recipes/{name}.md"
        replace_block(page, 0, of_stages(run, stages))
        replace_block(page, 1, table(run, "eval"))
    return 0


def run_name(run: Path) -> str:
    """Of the recipe; it has to be one that has such a page."""
    lines = (run / "recipe.yaml").read_text(encoding="utf-8").splitlines()
    name = next(line.partition(":")[2].strip() for line in lines if line.startswith("name:"))
    if name not in PAGES:
        raise SystemExit(f"{run} is a run of {name}; pages are {', '.join(PAGES)}")
    return name


if __name__ == "__main__":
    sys.exit(main())
