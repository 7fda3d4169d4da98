import json
import re

import numpy as np
import pytest

from prefopt.evaluation.compare import Comparison, Entry, compare
from prefopt.stats.intervals import bootstrap_crossed, bootstrap_mean
from prefopt.stats.paired import holm, sign_flip_test
from prefopt.stats.power import detectable_difference, standard_error_of
from prefopt.stats.ratings import ELO_POINTS

PROMPTS = [f"prompt {number:03d}" for number in range(60)]


def entry(label, *rows, seeds=None, prompts=PROMPTS):
    numbers = seeds or range(len(rows))
    return Entry(label, {seed: dict(zip(prompts, row, strict=True)) for seed, row in zip(numbers, rows, strict=True)})


def noise(seed, *shape):
    return np.random.default_rng(seed).normal(0, 1, shape or len(PROMPTS))


def against(comparison, label):
    (found,) = (one.against for one in comparison.standings if one.label == label)
    return found


def test_the_same_scores_show_no_difference():
    scores = noise(0)
    found = compare([entry("sft", scores), entry("dpo", scores)])
    one = against(found, "dpo")
    assert one.difference == (0, 0, 0) and one.p_value == 1
    assert one.win_rate == pytest.approx((0.5, 0.5, 0.5))
    assert found.verdicts == [
        "no difference shown between dpo and sft: 0.00 [0.00, 0.00]; all their scores are the same"
    ]


def test_a_planted_difference_is_found_and_is_that_of_the_tests_it_is_made_of():
    base = noise(0)
    better = base + 0.5 + 0.3 * noise(1)
    found = compare([entry("sft", base), entry("dpo", better)])
    one = against(found, "dpo")
    assert one.difference.estimate == pytest.approx(np.mean(better - base))
    assert one.difference == pytest.approx(bootstrap_crossed([(better - base).tolist()]))
    # Over prompts alone it is the ordinary bootstrap, up to the draw.
    assert one.difference == pytest.approx(bootstrap_mean((better - base).tolist()), abs=0.01)
    assert one.p_value == one.p_holm == sign_flip_test((better - base).tolist())
    assert one.win_rate.estimate == pytest.approx(np.mean(better > base))
    error = standard_error_of(one.difference.low, one.difference.high)
    assert one.detectable == pytest.approx(detectable_difference(error)) and 0 < one.detectable < 0.2
    assert re.fullmatch(r"dpo beats sft by 0\.\d+ \[0\.\d+, 0\.\d+\]", found.verdicts[0])


def test_what_is_not_shown_says_what_could_have_been():
    base = noise(0)
    found = compare([entry("sft", base), entry("dpo", base + 0.3 * noise(1) - 0.3 * noise(1).mean())])
    one = against(found, "dpo")
    assert found.verdicts == [
        f"no difference shown between dpo and sft: 0.00 [{one.difference.low:.2f}, {one.difference.high:.2f}]; "
        f"this sample could have shown {one.detectable:.2f}"
    ]


def test_another_reference_turns_the_difference_around():
    entries = [entry("a", noise(0), noise(1)), entry("b", noise(2) + 1, noise(3) + 1)]
    one, other = against(compare(entries), "b"), against(compare(entries, reference="b"), "a")
    assert one.difference == pytest.approx([-other.difference[i] for i in (0, 2, 1)])
    assert one.win_rate == pytest.approx([1 - other.win_rate[i] for i in (0, 2, 1)])
    assert one.p_value == other.p_value and one.detectable == pytest.approx(other.detectable)
    (won,), (lost,) = compare(entries).verdicts, compare(entries, reference="b").verdicts
    assert lost == won.replace("b beats a", "a loses to b")


def test_seeds_that_vary_widen_the_interval():
    prompts = noise(0)
    calm = [prompts + 0.01 * noise(seed) for seed in range(1, 6)]
    wild = [row + shift for row, shift in zip(calm, (-1, -0.5, 0, 0.5, 1), strict=True)]
    base = [prompts] * 5
    narrow = against(compare([entry("sft", *base), entry("ppo", *calm)]), "ppo").difference
    found = compare([entry("sft", *base), entry("ppo", *wild)])
    wide = against(found, "ppo").difference
    assert wide.high - wide.low > 20 * (narrow.high - narrow.low)
    assert wide.estimate == pytest.approx(narrow.estimate)
    low, high = found.standings[1].spread
    assert high - low == pytest.approx(2, abs=0.02)
    # Over prompts alone (one row of means over seeds) the same scores would have shown next to no uncertainty.
    alone = against(compare([entry("sft", prompts), entry("ppo", np.mean(wild, axis=0))]), "ppo").difference
    assert wide.high - wide.low > 20 * (alone.high - alone.low)


def test_the_same_seeds_are_pairs_and_others_are_not():
    shifts = np.array([-2, -1, 0, 1, 2])[:, None]
    base = noise(0) + shifts  # seeds differ much, and both policies alike
    better = base + 0.5 + 0.1 * noise(1, 5, len(PROMPTS))
    pairs = against(compare([entry("sft", *base), entry("dpo", *better)]), "dpo")
    strangers = against(compare([entry("sft", *base), entry("dpo", *better, seeds=range(5, 10))]), "dpo")
    assert pairs.paired_seeds and pairs.shown
    assert not strangers.paired_seeds and not strangers.shown
    assert strangers.difference.estimate == pytest.approx(pairs.difference.estimate)
    assert strangers.p_value == pairs.p_value, "it is over prompts, of the mean over seeds"


def test_one_seed_each_with_different_numbers_is_a_bootstrap_over_prompts():
    one, other = entry("a", noise(0), seeds=[1]), entry("b", noise(1), seeds=[2])
    found = against(compare([one, other]), "b")
    assert found.difference == pytest.approx(bootstrap_mean((noise(1) - noise(0)).tolist()), abs=0.02)
    assert found.difference.estimate == pytest.approx(np.mean(noise(1) - noise(0)))


def test_unpaired_intervals_hold_the_truth_as_often_as_they_say():
    hits = 0
    for trial in range(200):
        generator = np.random.default_rng(trial)
        hard = generator.normal(size=40)
        first = hard + generator.normal(size=(8, 1)) + generator.normal(size=(8, 40))
        second = hard + 1 + generator.normal(size=(6, 1)) + generator.normal(size=(6, 40))
        entries = [entry("a", *first, prompts=PROMPTS[:40]), entry("b", *second, prompts=PROMPTS[:40])]
        low, high = against(compare(entries, resamples=400, seed=trial), "b").difference[1:]
        hits += low <= 1 <= high
    assert 0.86 <= hits / 200 <= 1


def test_p_values_are_corrected_for_how_many_are_compared():
    base = noise(0)
    entries = [entry("sft", base), *(entry(f"p{i}", base + shift + noise(i)) for i, shift in ((1, 0.2), (2, 0.4)))]
    found = compare(entries)
    one, two = against(found, "p1"), against(found, "p2")
    assert [one.p_holm, two.p_holm] == holm([one.p_value, two.p_value])
    assert max(one.p_holm, two.p_holm) > min(one.p_value, two.p_value)


def test_an_interval_above_0_is_not_enough_where_many_are_compared():
    rows = noise(3) * 0.9 + 0.29
    others = [entry(f"p{i}", np.zeros(60) + noise(10 + i) * 0.01) for i in range(30)]
    alone = compare([entry("sft", np.zeros(60)), entry("ppo", rows)])
    assert against(alone, "ppo").shown and "ppo beats sft" in alone.verdicts[0]
    found = compare([entry("sft", np.zeros(60)), entry("ppo", rows), *others], resamples=2000)
    assert against(found, "ppo").difference.low > 0
    assert re.search(r"no difference shown between ppo and sft: .*\], but p = 0\.\d+; this", found.verdicts[0])


def test_few_prompts_show_nothing_however_equal():
    found = compare([entry("a", [0, 0, 0], prompts="xyz"), entry("b", [1, 1, 1], prompts="xyz")])
    assert against(found, "b").detectable is None
    assert found.verdicts == [
        "no difference shown between b and a: 1.00 [1.00, 1.00], but p = 0.250; so few prompts show nothing"
    ]


def test_ties_are_half_a_win():
    found = compare([entry("a", [0, 0, 0, 0], prompts="wxyz"), entry("b", [1, 0, 0, -1], prompts="wxyz")])
    assert against(found, "b").win_rate.estimate == 0.5


def test_strengths_are_odds_of_winning_and_need_three():
    base = np.zeros(40)
    threes = np.where(np.arange(40) < 30, 1.0, -1.0)
    prompts = PROMPTS[:40]
    two = [entry("sft", base, prompts=prompts), entry("dpo", threes, prompts=prompts)]
    assert all(one.elo is None for one in compare(two).standings)
    found = compare([*two, entry("copy", base, prompts=prompts)])
    sft, dpo, copy = (one.elo for one in found.standings)
    assert sft == (1000, 1000, 1000)
    # Three of four against both of the others, which tie.
    assert dpo.estimate == pytest.approx(1000 + ELO_POINTS * np.log(3), abs=0.5)
    assert copy.estimate == pytest.approx(1000, abs=0.5) and dpo.low < dpo.estimate < dpo.high


def test_only_prompts_that_all_have_in_all_seeds_count():
    one = Entry("a", {1: {"x": 1.0, "y": 2.0, "z": 9.0}, 2: {"x": 1.0, "y": 2.0}})
    other = Entry("b", {1: {"x": 2.0, "y": 3.0, "w": 9.0}})
    found = compare([one, other])
    assert (found.prompts, found.left_out) == (2, 2)
    assert [standing.mean.estimate for standing in found.standings] == [1.5, 2.5]
    assert against(found, "b").difference.estimate == 1


@pytest.mark.parametrize(
    ("entries", "reference", "said"),
    [
        ([Entry("a", {1: {"x": 1.0}}), Entry("b", {1: {"y": 1.0}})], None, "none of their 2 prompts in common"),
        ([Entry("a", {1: {"x": 1.0}, 2: {"y": 1.0}}), Entry("b", {1: {"x": 1.0}})], None, "in common"),
        ([Entry("a", {1: {"x": 1.0}})], None, "at least two entries"),
        ([Entry("a", {1: {"x": 1.0}}), Entry("a", {1: {"x": 1.0}})], None, "labels of their own"),
        ([Entry("a", {1: {"x": 1.0}}), Entry("b", {})], None, "b has no scores"),
        ([Entry("a", {1: {"x": 1.0}}), Entry("b", {1: {"x": 1.0}})], "c", "'c' is none of a, b"),
        ([Entry("a", {1: {"x": 1.0}}), Entry("b", {1: {"x": float("nan")}})], None, "b has scores that are not"),
    ],
)
def test_what_cannot_be_compared_is_refused(entries, reference, said):
    with pytest.raises(ValueError, match=said):
        compare(entries, reference=reference)


def test_json_and_table_say_the_same():
    base = noise(0)
    found: Comparison = compare(
        [entry("sft", base, base + 0.2), entry("dpo", base + 1, base + 1.5), entry("ppo", base, base + 0.2)]
    )
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (document["reference"], document["prompts"], document["prompts_left_out"]) == ("sft", 60, 0)
    sft, dpo, ppo = document["entries"]
    assert sft["against"] is None and sft["verdict"] is None and list(sft["seeds"]) == ["0", "1"]
    assert dpo["against"]["difference"]["estimate"] == pytest.approx(1.15) and dpo["against"]["shown"]
    assert dpo["spread"]["high"] - dpo["spread"]["low"] == pytest.approx(0.5)
    assert ppo["against"]["same"] and ppo["against"]["detectable"] is None
    assert dpo["verdict"] == found.verdicts[0] == "dpo beats sft by 1.15 [1.00, 1.30]"
    columns, rows = found.table()
    assert columns == ["policy", "mean score", "seeds", "over seeds", "minus sft", "p (Holm)", "win rate",
                       "could have shown", "Elo"]  # fmt: skip
    assert all(len(row) == len(columns) and all(isinstance(cell, str) for cell in row) for row in rows)
    assert rows[0][4] == "–" and rows[0][8] == "1000" and rows[1][4] == "1.15 [1.00, 1.30]"
    assert rows[1][5] == "< 0.001" and rows[1][2] == "2"


def test_small_scores_are_shown_with_the_digits_they_need():
    base = noise(0) / 1000
    (said,) = compare([entry("a", base), entry("b", base + 0.0005 + noise(1) / 10_000)]).verdicts
    assert re.fullmatch(r"b beats a by 0\.000\d{3} \[0\.000\d{3}, 0\.000\d{3}\]", said)


def test_a_column_that_nobody_has_is_left_out():
    columns, _ = compare([entry("a", noise(0)), entry("b", noise(1))]).table()
    assert "over seeds" not in columns and "Elo" not in columns
