"""Costs in losses, groups and labels: what a recipe may write, and that keys of those who write nothing stay."""

from __future__ import annotations

import pytest

from prefopt.recipe.keys import spec_for_key
from prefopt.recipe.load import load
from prefopt.recipe.schema import CollectSpec, DPOSpec, RewardSpec, SFTSpec

LENGTH = "[{cost: length, limit: 3}]"


def with_keys(chain: str, stage: str, keys: str) -> str:
    """The chain with more keys in a stage."""
    line = next(line for line in chain.splitlines() if line.startswith(f"  {stage}: "))
    return chain.replace(line, f"{line[:-1]}, {keys}}}")


def test_what_is_written_is_read_with_its_weight(write, chain, tmp_path) -> None:
    (tmp_path / "banned.txt").write_text("word\n")
    cost = "{cost: banned, lexicon: banned.txt, weight: 0.5}"
    text = with_keys(chain, "dpo", f"cost_margin: [{cost}], unlikelihood: [{cost}], violations: {LENGTH}")
    spec = load(write(with_keys(text, "sft", f"unlikelihood: [{cost}]"))).recipe.stages["dpo"]
    assert spec.cost_margin == spec.unlikelihood and spec.unlikelihood[0].weight == 0.5
    assert spec.unlikelihood[0].lexicon == str(tmp_path / "banned.txt")
    assert set(spec_for_key(spec)) >= {"cost_margin", "unlikelihood", "violations"}


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_costs_of_own_answers_are_read_with_their_files(write, chain, tmp_path, stage: str) -> None:
    (tmp_path / "banned.txt").write_text("word\n")
    cost = "{cost: banned, lexicon: banned.txt, weight: 0.5}"
    text = with_keys(chain, stage, f"sequence_unlikelihood: {{costs: [{cost}, {{cost: repetition}}], every: 3}}")
    what = load(write(text)).recipe.stages[stage].sequence_unlikelihood
    assert (what.every, what.max_new_tokens) == (3, 100) and [cost.weight for cost in what.costs] == [0.5, 1.0]
    assert what.costs[0].lexicon == str(tmp_path / "banned.txt")


@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.parametrize(
    ("keys", "place", "message"),
    [
        ("{costs: [{cost: format, syntax: json}]}", ".costs", "says of no token"),
        ("{costs: [{cost: classifier, pretrained: a/b}]}", ".costs", "says of no token"),
        ("{costs: [{cost: missing_eos}]}", ".costs[0]", "there is no cost 'missing_eos'"),
        ("{costs: [{cost: banned, lexicon: ./nowhere.txt}]}", ".costs[0].lexicon", "nowhere.txt"),
        ("{costs: [{cost: plugin, function: nobody}]}", ".costs[0].function", "nobody"),
        ("{costs: []}", ".costs", "nothing is flagged"),
        ("{costs: 3}", ".costs", "must be a list"),
        (f"{{costs: {LENGTH}, every: 0}}", ".every", "1"),
        (f"{{costs: {LENGTH}, max_new_tokens: 0}}", ".max_new_tokens", "1"),
        ("{every: 2}", ".costs", "missing"),
        (f"{{costs: {LENGTH}, weight: 2}}", ".weight", "no such key"),
    ],
)
def test_what_means_nothing_of_own_answers_is_said(problems, chain, stage: str, keys: str, place: str, message: str):
    found = problems(with_keys(chain, stage, f"sequence_unlikelihood: {keys}"))
    assert list(found) == [f"stages.{stage}.sequence_unlikelihood{place}"]
    assert message in found[f"stages.{stage}.sequence_unlikelihood{place}"].message


@pytest.mark.parametrize(
    ("spec", "absent"),
    [
        (
            SFTSpec(kind="sft", data=("x",)),
            {"unlikelihood", "sequence_unlikelihood", "focal_gamma", "group_weights", "group_by", "group_costs",
             "effective_number_beta"},
        ),
        (
            DPOSpec(kind="dpo", data=("x",)),
            {"unlikelihood", "sequence_unlikelihood", "cost_margin", "violations", "on_violation", "violation_weight",
             "focal_gamma", "group_weights", "group_by", "group_costs", "effective_number_beta"},
        ),
        (RewardSpec(kind="reward", data=("x",)), {"group_costs"}),
        (CollectSpec(kind="collect", policies=("a",), prompts=("p",), judge="gold"), {"costs", "on_violation"}),
    ],
)  # fmt: skip
def test_options_that_came_later_are_in_no_key_that_does_not_use_them(spec, absent) -> None:
    assert absent <= type(spec).model_fields.keys() and not absent & spec_for_key(spec).keys()


@pytest.mark.parametrize(
    ("stage", "keys", "place", "message"),
    [
        ("sft", "unlikelihood: [{cost: format, syntax: json}]", "unlikelihood", "says of no token"),
        ("sft", "unlikelihood: [{cost: missing_eos}]", "unlikelihood[0]", "there is no cost 'missing_eos'"),
        ("sft", "unlikelihood: 3", "unlikelihood", "must be a list"),
        ("sft", "unlikelihood: [{cost: length, limit: 3, weight: -1}]", "unlikelihood[0].weight", ""),
        (
            "dpo",
            f"violations: {LENGTH}, violation_weight: 0.1, on_violation: drop",
            "violation_weight",
            "weighs nothing",
        ),
        ("dpo", "on_violation: drop", "on_violation", "nothing is said to violate"),
        ("dpo", "violations: [{cost: missing_eos}]", "violations", "where a policy samples"),
        ("dpo", f"loss_type: simpo, cost_margin: {LENGTH}", "cost_margin", "'simpo' has none"),
        ("dpo", f"loss_type: sft, cost_margin: {LENGTH}", "cost_margin", "'sft' has none"),
        ("dpo", f"loss_type: ipo, cost_margin: {LENGTH}", "cost_margin", "averages over tokens"),
        ("dpo", f"f_divergence_type: forward_kl, cost_margin: {LENGTH}", "f_divergence_type", "reverse KL alone"),
        ("dpo", f"loss_type: aot, label_smoothing: 0.1, violations: {LENGTH}", "violations", "sorts the batch"),
        ("dpo", "loss_type: aot, label_smoothing: 0.1, group_weights: inverse", "group_weights", "sorts the batch"),
        ("dpo", "loss_type: ipo, focal_gamma: 2.0", "focal_gamma", "does not use focal_gamma"),
        ("pairs", "on_violation: drop", "on_violation", "nothing is said to violate"),
    ],
)
def test_what_means_nothing_is_said(problems, chain, stage: str, keys: str, place: str, message: str) -> None:
    found = problems(with_keys(chain, stage, keys))
    assert list(found) == [f"stages.{stage}.{place}"]
    assert message in found[f"stages.{stage}.{place}"].message


def test_groups_without_weights_are_warned_of(write, chain) -> None:
    (warning,) = load(write(with_keys(chain, "dpo", "group_by: longer"))).warnings
    assert "without 'group_weights'" in warning
