from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt.errors import Problem, RecipeError
from prefopt.recipe.load import load

GOOD = """\
#!/usr/bin/env -S prefopt run
# The whole chain in the embedded world.
name: quickstart
model:
  model_name_or_path: base
  lora: {lora_r: 8, lora_alpha: 16}
data:
  corpus: {path: toy, name: corpus, max_samples: 200}
  demos: {path: toy, name: demonstrations, max_samples: 200}
  prefs: {path: toy, name: preferences, max_samples: 200, noise: 0.1}
stages:
  eval: {kind: evaluate, policies: [base, sft, dpo], baseline: sft, data: prefs, prompts: prefs, reward: gold}
  dpo: {kind: dpo, init: sft, data: prefs, beta: 0.1, learning_rate: 1e-4, max_steps: 1e1}
  sft: {kind: sft, data: [demos], num_train_epochs: 1, max_length: 128}
  base: {kind: pretrain, data: corpus}
"""
CHAIN = """\
name: chain
model: {model_name_or_path: base}
data:
  corpus: {path: toy, name: corpus}
  demos: {path: toy, name: demonstrations}
  asked: {path: toy, name: prompts}
stages:
  base: {kind: pretrain, data: corpus}
  sft: {kind: sft, data: demos}
  pairs: {kind: collect, policies: [sft], prompts: asked, judge: gold, max_prompts: 100}
  rm: {kind: reward, init: sft, data: [pairs]}
  dpo: {kind: dpo, init: sft, data: pairs}
  policy: {kind: ppo, init: sft, prompts: asked, reward: rm}
  eval: {kind: evaluate, policies: [sft, dpo, policy], baseline: sft, prompts: asked, data: pairs, reward: gold}
"""
ROUNDS = CHAIN + "rounds: {count: 3, stages: [pairs, rm, policy], carry: {sft: policy}}\n"


@pytest.fixture
def chain() -> str:
    return CHAIN


@pytest.fixture
def rounds() -> str:
    """The chain, iterated three times."""
    return ROUNDS


@pytest.fixture
def good() -> str:
    return GOOD


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def writer(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return writer


@pytest.fixture
def problems(write: Callable[[str], Path]) -> Callable[..., dict[str, Problem]]:
    """The problems of a text by key, with `LINE` for the line alone."""

    def judge(text: str, *overrides: str) -> dict[str, Problem]:
        with pytest.raises(RecipeError) as caught:
            load(write(text), overrides)
        return {problem.path: problem for problem in caught.value.problems}

    return judge
