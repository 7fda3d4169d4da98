import re

import pytest

from prefopt.tracking.metrics import METRICS, describe

AGREED = (
    "train/loss train/learning_rate train/grad_norm train/epoch train/tokens_per_second train/entropy "
    "train/token_accuracy eval/loss eval/perplexity dpo/accuracy dpo/margin dpo/chosen_reward dpo/rejected_reward "
    "dpo/chosen_logp dpo/rejected_logp dpo/chosen_shift dpo/kl gold/mean gold/ci_low gold/ci_high win_rate/mean "
    "win_rate/ci_low win_rate/ci_high kl/mean kl/ci_low kl/ci_high length/mean eos_rate violation_rate "
    "preference/accuracy preference/accuracy/ci_low"
).split()


@pytest.mark.parametrize("name", AGREED)
def test_every_agreed_name_is_described(name):
    assert describe(name).name == name


@pytest.mark.parametrize("metric", METRICS.values(), ids=str)
def test_an_entry_is_a_sentence_under_a_valid_name(metric):
    assert re.fullmatch(r"[a-z_]+(/[a-z_]+|/NAME)*", metric.name)
    assert metric.meaning[0].isupper() and metric.meaning.endswith(".") and " " in metric.meaning
    assert metric.better in ("higher", "lower", None)


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("dpo:win_rate/mean", "win_rate/mean"),
        ("my.policy-2:gold/ci_low", "gold/ci_low"),
        ("eval/dpo/accuracy", "dpo/accuracy"),
        ("eval/entropy", "train/entropy"),
        ("eval/token_accuracy", "train/token_accuracy"),
        ("penalty/banned/rate", "penalty/NAME/rate"),
        ("dpo:violation_rate/my-words_2/mean", "violation_rate/NAME/mean"),
        ("dpo:cost/length", "cost/NAME"),
        ("dpo:violation_rate/ci_low", "violation_rate/ci_low"),
    ],
)
def test_a_prefix_keeps_unit_and_direction(name, bare):
    found = describe(name)
    assert found.name == name
    assert (found.unit, found.better) == (METRICS[bare].unit, METRICS[bare].better)


def test_a_held_out_variant_says_so():
    assert describe("eval/dpo/accuracy").meaning.startswith("On held-out rows: share of pairs")


def test_an_own_entry_wins_over_the_prefix():
    assert "never trained on" in describe("eval/loss").meaning


@pytest.mark.parametrize(
    "name",
    [
        "",
        "loss",
        "train/los",
        "eval/",
        "eval/learning",
        "dpo:",
        ":",
        "dpo:train",
        "penalty/x",
        "penalty/x/y",
        "cost/mean",
        "violation_rate/a/b",
        "cost/ä",
    ],
)
def test_an_unknown_name_raises(name):
    with pytest.raises(KeyError):
        describe(name)
