"""One line of a recipe switches between ppo, grpo and rloo: what others of the three have is set aside, and said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prefopt.errors import RecipeError
from prefopt.recipe.bundled import bundled_recipes
from prefopt.recipe.family import LIKE_METRICS, ONLINE_KINDS, SAME_KEYS, SAME_METRICS
from prefopt.recipe.keys import spec_for_key
from prefopt.recipe.layout import stage_specs
from prefopt.recipe.load import LoadedRecipe, load
from prefopt.tracking.metrics import METRICS

POLICY = "policy: {kind: ppo, init: sft, prompts: asked, reward: rm"
# The stages of the design's example recipe that this version has, with a judge of this version.
EXAMPLE = """\
name: hh-harmless
model: {model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct, lora: {lora_r: 16, lora_alpha: 32}}
data:
  hh: {path: Anthropic/hh-rlhf, data_dir: harmless-base}
stages:
  sft: {kind: sft, data: [hh], learning_rate: 2e-4, num_train_epochs: 1}
  first: {kind: reward, init: sft, data: [hh]}
  pairs: {kind: collect, policies: [sft], prompts: hh, samples_per_prompt: 4, judge: first}
  reward: {kind: reward, init: sft, data: [hh, pairs], ensemble: 4, calibrate: true}
  policy:
    kind: ppo                      # or grpo, rloo (same reward block)
    init: sft
    prompts: hh
    kl: {coefficient: 0.05, estimator: k1, apply: reward, adaptive_target: 6.0, horizon: 2000, stop_above: 30.0}
    reward:
      model: reward
      normalise: reference
      penalties:
        - {cost: length, limit: 128, weight: 0.5}
        - {cost: repetition, ngram: 3, weight: 1.0}
        - {cost: banned, words: [damn], target_rate: 0.01}
        - {cost: ensemble_std, weight: 0.5}
  eval: {kind: evaluate, policies: [sft, policy], reward: reward, data: [hh], suites: [reward_accuracy, win_rate]}
rounds: {count: 3, stages: [pairs, reward, policy], carry: {sft: policy}}
"""


def switched(text: str, kind: str) -> str:
    assert "kind: ppo" in text
    return re.sub(r"kind: ppo\b", f"kind: {kind}", text)


def with_keys(chain: str, kind: str, more: str = "") -> str:
    return chain.replace(POLICY, switched(POLICY, kind) + more)


def policy_key(loaded: LoadedRecipe) -> dict[str, object]:
    return spec_for_key(loaded.recipe.stages["policy"])


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Every bundled recipe with a ppo stage, and the example; what their variables name is there."""
    for folder in ("stories260k-hf", "hh-rlhf-harmless", "vader-sentiment"):
        (tmp_path / folder).mkdir()
    (tmp_path / "stories260k-hf" / "config.json").write_text("{}")
    (tmp_path / "hh-rlhf-harmless" / "test.jsonl.gz").write_bytes(b"")
    (tmp_path / "vader-sentiment" / "vader_lexicon.txt").write_text("good\t1.9\n")
    for name in ("PREFOPT_DATA", "PREFOPT_MODELS"):
        monkeypatch.setenv(name, str(tmp_path))
    found = {"example": EXAMPLE}
    for recipe in bundled_recipes():
        text = recipe.path.read_text(encoding="utf-8")
        if "kind: ppo" in text:
            found[recipe.name] = text
        for beside in recipe.path.parent.glob("*.jsonl"):
            (tmp_path / beside.name).write_bytes(beside.read_bytes())
    assert len(found) >= 6
    return found


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_every_recipe_with_ppo_is_one_of_another_kind_by_one_word(texts, write, kind):
    for name, text in texts.items():
        before = load(write(text)).written.stages
        loaded = load(write(switched(text, kind)))
        stages = [stage for stage, spec in before.items() if spec.kind == "ppo"]
        assert {loaded.written.stages[stage].kind for stage in stages} == {kind}, name
        assert len(loaded.warnings) == len(stages), loaded.warnings
        for stage in stages:
            (warning,) = (each for each in loaded.warnings if f" stages.{stage}.kind: " in each)
            assert "set aside" in warning and "\n" not in warning
            was, now = before[stage], loaded.written.stages[stage]
            assert now.kl.coefficient == was.kl.coefficient and now.reward == was.reward
            if "num_ppo_epochs" in was.model_fields_set:
                assert now.num_iterations == was.num_ppo_epochs


def test_the_warning_names_every_key_and_where_it_stands(texts, write):
    (warning,) = load(write(switched(texts["example"], "grpo"))).warnings
    where, said = warning.split(" stages.policy.kind: ")
    line = 1 + texts["example"].splitlines().index(
        "    kind: ppo                      # or grpo, rloo (same reward block)"
    )
    assert where.endswith(f"recipe.yaml:{line}:")
    assert said == (
        "'grpo' does not use 'kl.estimator', 'kl.apply', 'kl.adaptive_target', 'kl.horizon' and 'kl.stop_above', "
        "so they are set aside"
    )


@pytest.mark.parametrize("kind", ONLINE_KINDS)
def test_every_key_of_a_sibling_is_set_aside_and_leaves_the_stage_as_it_is_without(write, chain, kind):
    usual = load(write(with_keys(chain, kind)))
    own = stage_specs()[kind].model_fields
    theirs = {key for other in ONLINE_KINDS for key in stage_specs()[other].model_fields} - set(own) - set(SAME_KEYS)
    assert len(theirs) >= 3
    for key in sorted(theirs):
        loaded = load(write(with_keys(chain, kind, f", {key}: {{any: [thing]}}")))
        assert policy_key(loaded) == policy_key(usual) and loaded.recipe == usual.recipe
        assert any(f"'{kind}' does not use '{key}', so it is set aside" in warning for warning in loaded.warnings)


@pytest.mark.parametrize(
    ("kind", "written", "same"),
    [
        ("grpo", "kl: {coefficient: 0.1, apply: reward, estimator: k1}", "kl: {coefficient: 0.1}"),
        ("rloo", "kl: {apply: loss, estimator: k3, stop_above: 9}", "kl: {apply: reward, estimator: k1}"),
        ("grpo", "kl: {estimator: k2}", "kl: {estimator: k3}"),
        ("grpo", "num_ppo_epochs: 3", "num_iterations: 3"),
        ("rloo", "num_ppo_epochs: 3, num_iterations: 2", "num_iterations: 2"),
        ("ppo", "num_iterations: 3", "num_ppo_epochs: 3"),
        ("ppo", "loss_type: dapo, scale_rewards: none, normalize_advantages: true", ""),
    ],
)
def test_a_switched_stage_is_the_one_that_is_written_for_its_kind(write, chain, kind, written, same):
    loaded = load(write(with_keys(chain, kind, f", {written}")))
    meant = load(write(with_keys(chain, kind, f", {same}" if same else "")))
    assert meant.warnings == () and len(loaded.warnings) == 1
    assert policy_key(loaded) == policy_key(meant) and loaded.recipe == meant.recipe


def test_ppo_takes_what_grpo_and_rloo_write_of_their_kl(write, chain):
    for kl in ("{apply: loss, estimator: k3}", "{apply: reward, estimator: k1}"):
        loaded = load(write(with_keys(chain, "ppo", f", kl: {kl}")))
        assert loaded.warnings == () and "kl" in loaded.recipe.stages["policy"].model_fields_set


def test_overrides_switch_and_are_set_aside_alike(write, chain):
    text = with_keys(chain, "ppo", ", num_ppo_epochs: 3, value: shared, kl: {stop_above: 9}")
    loaded = load(write(text), ["stages.policy.kind=grpo", "stages.policy.lam=0.9", "stages.policy.num_ppo_epochs=2"])
    spec = loaded.recipe.stages["policy"]
    assert spec.kind == "grpo" and spec.num_iterations == 2
    (warning,) = loaded.warnings
    assert warning.startswith("--set stages.policy.kind=grpo")
    assert all(f"'{key}'" in warning for key in ("value", "kl.stop_above", "lam"))
    loaded = load(write(text), ["stages.policy.kind=rloo", "stages.policy.num_iterations=4"])
    assert loaded.recipe.stages["policy"].num_iterations == 4
    assert "'num_ppo_epochs'" in loaded.warnings[0] and "is read as" not in loaded.warnings[0]


def test_a_wrong_value_of_another_name_is_shown_where_it_was_written(write, chain, problems):
    found = problems(with_keys(chain, "grpo"), "stages.policy.num_ppo_epochs=0")
    assert str(found["stages.policy.num_iterations"]).startswith("--set stages.policy.num_ppo_epochs=0")


def test_what_is_set_aside_needs_nothing(write, chain):
    """No file, no stage, no order: a judge that was ppo's is not asked for its word list."""
    text = with_keys(chain, "grpo", ", judge: {lexicon: ./gone.txt}, guards: {keep: judge}")
    assert "'judge' and 'guards'" in load(write(text)).warnings[0]
    with pytest.raises(RecipeError, match=r"gone\.txt"):
        load(write(text.replace("kind: grpo", "kind: ppo")))


def test_a_stage_of_another_family_keeps_its_errors(chain, problems):
    found = problems(chain.replace("data: pairs}", "data: pairs, vf_coef: 0.1, num_ppo_epochs: 2}", 1))
    assert "no such key" in str(found["stages.dpo.vf_coef"]) and "no such key" in str(
        found["stages.dpo.num_ppo_epochs"]
    )


def test_a_gate_on_what_all_measure_moves_along(write, chain):
    gate = ', require: {"ppo/kl": {max: 9}, "grpo/score": {min: 0}}'
    loaded = load(write(with_keys(chain, "rloo", gate)))
    require = loaded.recipe.stages["policy"].require
    assert list(require) == ["rloo/kl", "rloo/score"] and require["rloo/kl"].max == 9
    assert "the gate on 'ppo/kl' is read as one on 'rloo/kl'" in loaded.warnings[0]
    assert load(write(with_keys(chain, "rloo", ', require: {"rloo/kl": {max: 9}}'))).warnings == ()


@pytest.mark.parametrize(
    ("kind", "metric", "remedy"),
    [
        ("grpo", "ppo/explained_variance", "delete it, or write `kind: ppo`"),
        ("ppo", "grpo/tie_rate", "delete it, or write `kind: grpo`"),
        ("grpo", "ppo/reward", "write 'grpo/reward' with bounds of its own, as it is not quite the same"),
    ],
)
def test_a_gate_on_what_it_does_not_measure_is_refused_with_what_to_write(chain, problems, kind, metric, remedy):
    found = problems(with_keys(chain, kind, f', require: {{"{metric}": {{max: 1}}}}'))
    (problem,) = found.values()
    assert f"a stage of kind '{kind}' measures no '{metric}'" in str(problem) and remedy in str(problem)


def test_two_gates_on_one_metric_are_refused(chain, problems):
    found = problems(with_keys(chain, "grpo", ', require: {"ppo/kl": {max: 1}, "grpo/kl": {max: 2}}'))
    assert "'grpo/kl' has a gate as well: delete one" in str(*found.values())


def test_the_names_of_the_family_are_names_of_metrics():
    assert {f"{kind}/{name}" for kind in ONLINE_KINDS for name in SAME_METRICS | LIKE_METRICS} <= METRICS.keys()


@pytest.mark.parametrize("kind", ["ppo", "grpo", "rloo", "collect"])
def test_the_length_of_completions_is_told_where_they_are_sampled(problems, good, kind):
    found = problems(good + f"  online: {{kind: {kind}, max_completion_length: 256}}\n")
    assert found["stages.online.max_completion_length"].remedy == "prefopt calls it 'max_new_tokens'"
