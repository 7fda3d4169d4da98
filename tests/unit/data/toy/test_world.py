"""The tables of the embedded world: seeded, stable under prefixes, labelled by Bradley-Terry on gold."""

import math
import random
import subprocess
import sys

import pytest

from prefopt.data.toy import world
from prefopt.data.toy.lexicon import INTENTS, KIND_OF
from prefopt.data.toy.reading import read_prompt, tokens

TABLES = {
    "corpus": world.corpus,
    "prompts": world.prompts,
    "demonstrations": world.demonstrations,
    "preferences": world.preferences,
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_rows_depend_on_seed_and_number_only(table):
    rows = table(40, 3)
    assert rows == table(40, 3)
    assert rows[:15] == table(15, 3), "row i must not depend on n"
    assert rows != table(40, 4)
    assert table(0, 3) == []


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_negative_number_of_rows_is_refused(table):
    with pytest.raises(ValueError, match="must not be negative"):
        table(-1, 3)


def test_rows_are_the_same_in_another_process():
    """String hashing is randomised per process; a row must not be."""
    program = "from prefopt.data.toy import world; print(world.preferences(5, 9, 0.2), world.corpus(5, 9))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"{world.preferences(5, 9, 0.2)} {world.corpus(5, 9)}"


def test_the_world_imports_no_torch():
    program = "import sys; import prefopt.data.toy.world; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_tables_share_no_prompt():
    compared = {pair.prompt for pair in world.preferences(400, 1)}
    shown = {row.prompt for row in world.demonstrations(400, 1)}
    asked = set(world.prompts(400, 1))
    assert len(asked) == 400
    assert not compared & shown and not compared & asked and not shown & asked


def test_every_prompt_is_read_back():
    """Each holds all facts and ends with a question whose intent `gold` finds."""
    seen = set()
    for prompt in world.prompts(400, 2):
        reading = read_prompt(prompt)
        assert prompt[-1].role == "user" and prompt[0].role == "system"
        assert set(reading.facts) - {"code"} == set(KIND_OF.values()) - {"code"}
        assert 1 <= len(reading.intents) <= 2
        seen.update(reading.intents)
    assert seen == set(INTENTS)


def test_the_vocabulary_is_small():
    words = {word for row in world.corpus(3000, 1) for message in row for word in tokens(message.content)}
    assert 180 <= len(words) <= 350


def test_conversations_alternate_and_end_with_an_answer():
    for row in world.corpus(100, 1):
        assert [message.role for message in row] == ["system"] + ["user", "assistant"] * (len(row) // 2)
        assert len(row) >= 3


def _mean_std(values):
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def test_the_base_is_mediocre_and_demonstrations_are_fair_with_room_above():
    base, _ = _mean_std([world.gold(row[:-1], row[-1].content) for row in world.corpus(2000, 1)])
    fair, std = _mean_std([world.gold(row.prompt, row.completion) for row in world.demonstrations(2000, 1)])
    assert base < fair - 0.3
    assert 0.8 < std < 1.4, "the unit of gold is the spread of fair answers"
    assert fair < 2.8 - std, "the best answer reaches 2.8"


def test_some_demonstrations_violate():
    told = [bool(world.violations(row.completion)) for row in world.demonstrations(2000, 1)]
    assert 0.06 < sum(told) / len(told) < 0.16


def test_labels_follow_bradley_terry():
    """In bins of the predicted probability, the share of wins is that probability."""
    rng = random.Random(5)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for pair in world.preferences(1500, 6):
        gap = world.gold(pair.prompt, pair.chosen) - world.gold(pair.prompt, pair.rejected)
        a, b = pair.chosen, pair.rejected
        if rng.random() < 0.5:
            a, b, gap = b, a, -gap
        expected = 1 / (1 + math.exp(-gap / world.TEMPERATURE))
        assert world.preference_probability(pair.prompt, a, b) == pytest.approx(expected, abs=1e-12)
        bins.setdefault(min(int(expected * 5), 4), []).append((expected, world.label(pair.prompt, a, b, rng)))
    assert len(bins) == 5
    for members in bins.values():
        mean = sum(expected for expected, _ in members) / len(members)
        won = sum(win for _, win in members) / len(members)
        assert won == pytest.approx(mean, abs=3.5 * math.sqrt(mean * (1 - mean) / len(members)))


def test_the_order_of_a_pair_does_not_betray_the_label():
    """`preferences` itself draws by the same law: calibrated on the gold of its rows."""
    rows = world.preferences(1500, 7, with_gold=True)
    predicted = [1 / (1 + math.exp(-abs(row.margin) / world.TEMPERATURE)) for row in rows if row.margin]
    right = [row.margin > 0 for row in rows if row.margin]
    assert sum(right) / len(right) == pytest.approx(sum(predicted) / len(predicted), abs=0.035)


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_noise_flips_that_share_of_labels_and_nothing_else(noise):
    clean, noisy = world.preferences(1000, 8), world.preferences(1000, 8, noise)
    flipped = 0
    for one, other in zip(clean, noisy, strict=True):
        assert one.prompt == other.prompt and {one.chosen, one.rejected} == {other.chosen, other.rejected}
        flipped += one.chosen != other.chosen
    assert flipped / 1000 == pytest.approx(noise, abs=3.5 * math.sqrt(noise * (1 - noise) / 1000))


def test_noise_enters_the_probability():
    pair = world.preferences(1, 3)[0]
    clean = world.preference_probability(pair.prompt, pair.chosen, pair.rejected)
    noisy = world.preference_probability(pair.prompt, pair.chosen, pair.rejected, 0.2)
    assert noisy == pytest.approx(0.2 * (1 - clean) + 0.8 * clean)
    assert world.preference_probability(pair.prompt, pair.chosen, pair.rejected, 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("noise", [-0.1, 0.51, float("nan")])
def test_a_senseless_noise_is_refused(noise):
    with pytest.raises(ValueError, match="noise must be in"):
        world.preferences(1, 1, noise)


def test_gold_is_leaked_only_when_asked():
    for pair in world.preferences(200, 1, 0.1):
        assert pair.margin is None and pair.probability == 1.0 and pair.weight == 1.0 and not pair.extra
    for row in world.demonstrations(200, 1):
        assert not row.extra and row.weight == 1.0
    for plain, pair in zip(world.preferences(50, 1), world.preferences(50, 1, with_gold=True), strict=True):
        assert (plain.prompt, plain.chosen, plain.rejected) == (pair.prompt, pair.chosen, pair.rejected)
        assert pair.margin == world.gold(pair.prompt, pair.chosen) - world.gold(pair.prompt, pair.rejected)
