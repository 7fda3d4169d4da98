import numpy as np
import pytest

from prefopt.stats.ratings import Game, bradley_terry, bradley_terry_intervals, elo


def played(strengths: dict[str, float], count: int, seed: int = 0) -> list[Game]:
    generator = np.random.default_rng(seed)
    names = list(strengths)
    games = []
    for _ in range(count):
        a, b = generator.choice(names, size=2, replace=False)
        chance = 1 / (1 + np.exp(strengths[b] - strengths[a]))
        games.append(Game(str(a), str(b), float(generator.uniform() < chance)))
    return games


def test_two_systems_are_as_far_apart_as_their_log_odds() -> None:
    games = [Game("a", "b", 1.0)] * 3 + [Game("b", "a", 1.0)]
    assert bradley_terry(games, "b") == pytest.approx({"a": np.log(3), "b": 0.0}, abs=1e-4)
    tied = [*games, Game("a", "b", 0.5), Game("b", "a", 0.5)]
    assert bradley_terry(tied, "b")["a"] == pytest.approx(np.log(4 / 2), abs=1e-4)


def test_known_strengths_are_recovered() -> None:
    truth = {"base": 0.0, "sft": 0.5, "dpo": 1.2}
    found = bradley_terry(played(truth, 20_000), "base")
    assert found == pytest.approx(truth, abs=0.06)
    swapped = [Game(g.second, g.first, 1 - g.outcome) for g in played(truth, 20_000)]
    assert bradley_terry(swapped, "base") == pytest.approx(found, abs=1e-4)


def test_who_never_lost_has_a_finite_strength() -> None:
    assert 3 < bradley_terry([Game("a", "b", 1.0)] * 10, "b")["a"] < 50


def test_intervals_cover_the_truth() -> None:
    truth = {"a": 0.0, "b": 0.7, "c": -0.4}
    covered = 0
    for seed in range(120):
        found = bradley_terry_intervals(played(truth, 150, seed), "a", resamples=150, seed=seed)
        covered += sum(found[name].low <= truth[name] <= found[name].high for name in ("b", "c"))
        assert found["a"] == (0.0, 0.0, 0.0)
    assert 0.9 <= covered / 240 <= 0.99


def test_games_of_one_prompt_are_not_independent() -> None:
    games = played({"a": 0.0, "b": 0.5}, 60)
    repeated = [game for game in games for _ in range(5)]
    prompts = [number for number in range(60) for _ in range(5)]
    width = {}
    for name, clusters in (("clustered", prompts), ("naive", None)):
        found = bradley_terry_intervals(repeated, "a", clusters, resamples=200)["b"]
        width[name] = found.high - found.low
    assert width["clustered"] > 1.7 * width["naive"]


def test_elo_has_its_scale() -> None:
    assert elo(0.0) == 1000 and elo(np.log(10)) == pytest.approx(1400)


@pytest.mark.parametrize("games", [[], [Game("a", "a", 1.0)], [Game("a", "b", 2.0)], [Game("c", "b", 1.0)]], ids=str)
def test_what_makes_no_sense_is_refused(games: list[Game]) -> None:
    with pytest.raises(ValueError):
        bradley_terry(games, "a")
