"""What can be said of a distill stage before anything runs."""

from __future__ import annotations

import pytest

from prefopt.recipe.bundled import bundled_recipes
from prefopt.recipe.keys import spec_for_key
from prefopt.recipe.load import load
from prefopt.recipe.references import needs
from prefopt.recipe.schema import DistillSpec

RECIPE = """\
name: taught
model: {model_name_or_path: base}
data:
  texts: {path: toy, name: corpus}
  demos: {path: toy, name: demonstrations}
  asked: {path: toy, name: prompts}
stages:
  base: {kind: pretrain, data: texts}
  sft: {kind: sft, data: demos}
  other: {kind: sft, data: demos, max_steps: 3}
  student: {kind: distill, init: sft, prompts: asked, demonstrations: demos MORE}
"""
CONTEXT = ", teacher_context: [{do: prepend, text: be kind}]"


def recipe(more: str) -> str:
    return RECIPE.replace(" MORE", more)


def test_a_context_or_a_teacher_or_chosen_answers_are_something_to_learn(write):
    chosen = ", target: sample, samples_per_prompt: 4, best_per_prompt: 1, reward: gold"
    taught = (", student_context: [{do: drop}]", ", teacher: other", ", teacher: base")
    for more in (CONTEXT, *taught, chosen, ", target: argmax"):
        assert load(write(recipe(more))).warnings == ()
    spec = load(write(recipe(", teacher: other"))).recipe
    assert needs(spec, "student") == {"model": ("base",), "init": ("sft",), "teacher": ("other",)}


@pytest.mark.parametrize(
    ("more", "key", "words"),
    [
        ("", "target", "nothing is learned"),
        (", target: on_policy", "target", "nothing is learned"),
        (", teacher: sft", "target", "nothing is learned"),
        (
            f"{CONTEXT}, samples_per_prompt: 2, best_per_prompt: 2, reward: gold, target: sample",
            "best_per_prompt",
            "all of them",
        ),
        (
            f"{CONTEXT}, samples_per_prompt: 4, best_per_prompt: 1, reward: gold",
            "best_per_prompt",
            "whole distribution",
        ),
        (f"{CONTEXT}, target: sample, samples_per_prompt: 4, best_per_prompt: 1", "best_per_prompt", "has none"),
        (f"{CONTEXT}, target: sample, keep: {{min_reward_quantile: 0.5}}", "keep.min_reward_quantile", "has none"),
        (f"{CONTEXT}, target: argmax, samples_per_prompt: 2", "samples_per_prompt", "is one"),
        (f"{CONTEXT}, num_beams: 4", "num_beams", "target: argmax"),
        (f"{CONTEXT}, target: sample, top_k: 4", "top_k", "no distribution"),
        (f"{CONTEXT}, target: on_policy, samples_per_prompt: 2", "samples_per_prompt", "the student answers"),
        (f"{CONTEXT}, target: on_policy, keep: {{min_tokens: 2}}", "keep", "nothing is chosen"),
        (f"{CONTEXT}, keep: {{costs: [{{cost: ensemble_std}}]}}", "keep.costs", "where a reward is trained on"),
        (f"{CONTEXT}, keep: {{costs: [{{cost: lenght, limit: 3}}]}}", "keep.costs[0]", "did you mean 'length'"),
        (f"{CONTEXT}, keep: {{costs: [{{cost: plugin, function: no}}]}}", "keep.costs[0].function", "registers"),
        (f"{CONTEXT}, keep: {{costs: [{{cost: banned, lexicon: no.txt}}]}}", "keep.costs[0].lexicon", "there is no"),
        (f"{CONTEXT}, soft_prompt: {{num_virtual_tokens: 4}}, lora: {{lora_r: 2}}", "lora", "no adapter"),
        (f"{CONTEXT}, soft_prompt: {{prompt_tuning_init_text: ''}}", "soft_prompt.prompt_tuning_init_text", ""),
        (", teacher: student", "teacher", "names itself"),
        (", teacher: nobody", "teacher", "there is no stage 'nobody'"),
        (", teacher_context: [{do: prepend}]", "teacher_context[0]", "needs a 'text'"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(problems, more, key, words):
    found = problems(recipe(more))
    said = str(found[f"stages.student.{key}"])
    assert words in said and "\n" not in said and len(found) == 1


def test_a_student_of_its_own_answers_alone_is_refused(problems, write):
    text = recipe(CONTEXT).replace(", demonstrations: demos", "")
    assert "replay_share: 0" in str(problems(text)["stages.student.demonstrations"])
    load(write(text.replace("prompts: asked", "prompts: asked, replay_share: 0")))


def test_rounds_carry_the_student_and_its_teacher(write):
    text = recipe(", target: sample, reward: gold, keep: {min_reward_quantile: 0.5}")
    text += "rounds: {count: 3, stages: [student], carry: {sft: student}}\n"
    stages = load(write(text)).recipe.stages
    assert [stages[f"student@{n}"].init for n in (1, 2, 3)] == ["sft", "student@1", "student@2"]
    text = text.replace("target: sample", "teacher: sft, target: sample")
    assert load(write(text)).recipe.stages["student@2"].teacher == "student@1"


def test_another_model_is_known_by_what_is_in_it(problems, tmp_path):
    more = f", teacher_model_name_or_path: {tmp_path / 'none'}"
    assert "there is no" in str(problems(recipe(more))["stages.student.teacher_model_name_or_path"])
    found = problems(recipe(f", teacher: other, teacher_model_name_or_path: {tmp_path}"))
    assert "stages.student.teacher_model_name_or_path" in found, "a folder without config.json is no model"


def test_contexts_decide_the_key():
    common = {"kind": "distill", "prompts": "asked", "demonstrations": "demos"}
    one, other = (
        DistillSpec.model_validate({**common, "teacher_context": [{"do": "prepend", "text": text}]}) for text in "ab"
    )
    assert spec_for_key(one) != spec_for_key(other)
    assert spec_for_key(one)["teacher_context"] == [{"do": "prepend", "role": "system", "text": "a", "words": None}]


def test_a_bundled_recipe_reads_a_long_text_once():
    path = next(each.path for each in bundled_recipes() if each.path.stem == "context_distillation")
    stages = load(path).recipe.stages
    (learned,), (taught,) = stages["obedient"].student_context, stages["student"].teacher_context
    assert learned == taught and len(taught.text.split()) > 50 and not stages["student"].student_context


def test_costs_of_kept_answers_find_their_files_and_are_in_the_key(write, tmp_path):
    (tmp_path / "banned.txt").write_text("word\n")
    listed = "[{cost: banned, lexicon: banned.txt}, {cost: missing_eos}]"
    loaded = load(write(recipe(f"{CONTEXT}, target: sample, keep: {{costs: {listed}}}")))
    keep = loaded.recipe.stages["student"].keep
    assert keep.costs[0].lexicon == str(tmp_path / "banned.txt") and loaded.warnings == ()
    assert "costs" in spec_for_key(keep) and "costs" not in spec_for_key(type(keep)()), "older keys stay"
    (warning,) = load(write(recipe(f"{CONTEXT}, keep: {{costs: {listed}}}"))).warnings
    assert "learns the kept answers alone" in warning


def test_a_soft_prompt_answers_and_is_no_start_and_no_teacher(write, problems):
    text = recipe(f"{CONTEXT}, soft_prompt: {{num_virtual_tokens: 4}}")
    text += "  eval: {kind: evaluate, policies: [sft, student], prompts: asked, reward: gold}\n"
    spec = load(write(text)).recipe.stages["student"]
    assert spec.soft_prompt.num_virtual_tokens == 4 and "soft_prompt" in spec_for_key(spec)
    assert "soft_prompt" not in spec_for_key(spec.model_copy(update={"soft_prompt": None})), "older keys stay"
    wrong = "  next: {kind: distill, teacher: student, prompts: asked, replay_share: 0}\n"
    for key, more in (("teacher", wrong), ("init", "  next: {kind: sft, init: student, data: demos}\n")):
        (found,) = problems(text + more).values()
        assert f"next.{key}" in str(found) and "trains a soft prompt" in str(found)
