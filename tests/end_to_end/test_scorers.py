"""Rewards from outside as a user writes them: a package, a server and a model judge, pay and measure in one recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.small import environment, folder, prefopt, states
from tests.installed import BREVITY, install
from tests.reward_server import reward_server
from tests.tiny import save_tiny_base
from tests.unit.rewards.test_pretrained import decoder

pytestmark = pytest.mark.slow

RECIPE = """\
name: outside
model: {{model_name_or_path: ./base, dtype: float32, lora: {{lora_r: 4, lora_alpha: 8}}}}
data:
  pairs: {{path: toy, name: preferences, max_samples: 24, eval_fraction: 0.4}}
stages:
  pairs: {{kind: collect, policies: base, prompts: pairs, samples_per_prompt: 2,
          judge: {{url: '{url}', token_env: REWARD_TOKEN, labels: sign}}, max_prompts: 6, max_new_tokens: 6}}
  ppo:
    kind: ppo
    prompts: pairs
    reward: {{weighted: [{{function: brevity, weight: 0.5}}, {{url: '{url}', token_env: REWARD_TOKEN}}]}}
    total_episodes: 8
    rollout_batch_size: 4
    per_device_train_batch_size: 4
    num_ppo_epochs: 1
    max_new_tokens: 6
  eval: {{kind: evaluate, policies: [base, ppo], prompts: pairs, max_prompts: 4, max_new_tokens: 6,
         reward: {{pretrained: ./rm, batch_size: 2}}, proxy: {{function: brevity}}}}
"""
TOKEN = "a-token-that-nobody-may-see"


def worth(text: str) -> float:
    """A reward that hardly ever ties: whether pairs are found must not hang on which letters a random model writes."""
    return float(sum(map(ord, text)) % 97)


def test_a_recipe_with_rewards_from_outside(tmp_path: Path) -> None:
    save_tiny_base(tmp_path / "base")
    decoder(tmp_path / "rm", positions=1024)
    package = install(tmp_path / "site", {"brevity": BREVITY})
    env = environment(REWARD_TOKEN=TOKEN)
    env["PYTHONPATH"] += f":{tmp_path / 'site'}"
    out = tmp_path / "run"
    with reward_server(worth) as server:
        (tmp_path / "recipe.yaml").write_text(RECIPE.format(url=server.url))
        line = ("run", str(tmp_path / "recipe.yaml"), "--out", str(out))
        first = prefopt(*line, env=env)
        assert first.returncode == 0, first.stderr
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {TOKEN}"}
        asked = len(server.asked)
        assert prefopt(*line, env=env).returncode == 0 and len(server.asked) == asked
        pairs, policy, evaluation = (folder(out, stage) for stage in ("pairs", "ppo", "eval"))
        assert pairs is not None and policy is not None and evaluation is not None
        for row in map(json.loads, (pairs / "pairs.jsonl").read_text().splitlines()):
            assert row["reward_chosen"] == worth(row["chosen"]) > row["reward_rejected"]
            assert row["annotator"] == server.url.removeprefix("http://")
        for row in map(json.loads, (policy / "samples.jsonl").read_text().splitlines()):
            text = row["completion"]
            assert row["reward"] == pytest.approx(worth(text) - 0.5 * len(text), abs=1e-5)
        metrics = json.loads((evaluation / "metrics.json").read_text())
        assert "ppo:win_rate/mean" in metrics and "base:reward/mean" in metrics

        # Another reward is another stage; what it plays no part in is left alone.
        (package / "brevity.py").write_text(BREVITY.replace("-float", "-2.0 * float"))
        again = prefopt(*line, env=env)
        assert again.returncode == 0, again.stderr
        assert folder(out, "pairs") == pairs and folder(out, "ppo") != policy and folder(out, "eval") != evaluation
        assert states(again) == {"pairs": "skipped", "ppo": "done", "eval": "done"}
    kept = [path for path in (tmp_path).rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert kept == []
    gone = prefopt("check", str(tmp_path / "recipe.yaml"), env=environment())
    assert gone.returncode == 2 and "no installed package registers a reward function 'brevity'" in gone.stderr
