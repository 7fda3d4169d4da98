"""What the page on over-optimisation says: curves, their order, laws and their peaks, and what was trained on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from prefopt.recipe.load import load
from prefopt.stats.curves import best_of_n_kl
from tests.learning.overoptimisation import page
from tests.learning.overoptimisation.__main__ import RECIPE
from tests.learning.overoptimisation.page import Curve, Labelled, curves, labelled, law, predicted, read, rows, top

GROWING = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0]


def of_law(way: str, alpha: float, beta: float, distances: list[float] = GROWING) -> Curve:
    decay = [d if way == "best of n" else math.log(d) if d else 0.0 for d in distances]
    gold = [-3.0 + d * (alpha - beta * e) for d, e in zip(distances, decay, strict=True)]
    return Curve(distances, gold, [1.0 + d for d in distances])


def findings(policy: str, lift: float) -> dict[str, Any]:
    """As an evaluate stage writes them: the finished policy before its checkpoints, and those in no order."""

    def moved(name: str, step: int | None, distance: float) -> dict[str, Any]:
        gain = distance * (2.0 - distance) + lift if distance else 0.0
        return {"policy": name, "step": step, "distance": distance, "reward": gain, "proxy": distance}

    drawn = [
        {"n": n, "kl": best_of_n_kl(n), "chosen_by_proxy": {"estimate": math.log(n)}, "proxy": {"estimate": float(n)}}
        for n in (1, 2, 4)
    ]
    steps = [moved(policy, None, 1.5), moved(policy, 20, 1.2), moved("sft", None, 0.0), moved(policy, 4, 0.5)]
    return {"curves": {"best_of_n": drawn, "overoptimisation": steps}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three finished seeds."""
    for number, folder in enumerate((tmp_path, tmp_path / "seeds" / "18", tmp_path / "seeds" / "19")):
        for labels in page.LABELS:
            for stage in ("pairs", "reward", "eval"):
                artefact = folder / "stages" / f"{stage}{labels}" / "0123456789ab"
                artefact.mkdir(parents=True)
                content = {
                    "details": {"data": {"kept_train": labels - number}},
                    "metrics": {"collect/label_agreement": 0.7 + 0.01 * number},
                }
                (artefact / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
            found = findings(f"ppo{labels}", 0.1 * number)
            (artefact / "findings.json").write_text(json.dumps(found), encoding="utf-8")
    return tmp_path


def test_a_curve_goes_from_the_start_through_the_checkpoints_to_the_finished_policy(run: Path) -> None:
    found = curves(run / "stages" / "eval100" / "0123456789ab")
    assert found["ppo"].distance == [0.0, 0.5, 1.2, 1.5]
    assert found["ppo"].gains == pytest.approx([0.0, 0.75, 0.96, 0.75])
    assert found["best of n"].distance == pytest.approx([0.0, math.sqrt(best_of_n_kl(2)), math.sqrt(best_of_n_kl(4))])
    assert found["best of n"].gold == pytest.approx([0.0, math.log(2), math.log(4)])
    assert found["best of n"].proxy == [1.0, 2.0, 4.0]


def test_every_seed_is_read_and_an_unfinished_one_is_named(run: Path) -> None:
    found = read(run)
    assert list(found) == list(page.LABELS) and all(len(seeds) == 3 for seeds in found.values())
    assert [seed["ppo"].gains[-1] for seed in found[500]] == pytest.approx([0.75, 0.85, 0.95])
    assert labelled(run)[2000] == Labelled([2000, 1999, 1998], [0.7, 0.71, 0.72])
    (run / "seeds" / "18" / "stages" / "eval500" / "0123456789ab" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"18 has 0 finished artefacts of eval500"):
        read(run)


@pytest.mark.parametrize("way", page.WAYS)
def test_a_law_is_found_again_in_its_own_points(way: str) -> None:
    curve = of_law(way, 1.2, 0.4)
    fitted = law(way, curve)
    assert (fitted.alpha, fitted.beta, fitted.r_squared) == pytest.approx((1.2, 0.4, 1.0))
    assert predicted(way, fitted, 2.0) == pytest.approx(curve.gains[4])


def test_the_highest_gold_is_the_laws_and_not_that_of_a_lucky_point() -> None:
    curve = of_law("best of n", 1.2, 0.4)
    found = top("best of n", law("best of n", curve), curve)
    assert found == pytest.approx((0.9, 1.5, True))  # α² / 4β at α / 2β
    lucky = Curve(curve.distance, [*curve.gold[:3], curve.gold[3] + 0.6, *curve.gold[4:]], curve.proxy)
    assert top("best of n", law("best of n", lucky), lucky).gain < max(lucky.gains) - 0.3


@pytest.mark.parametrize(
    ("way", "alpha", "beta", "expected"),
    [
        ("best of n", 1.2, 0.1, (2.7, 3.0, False)),  # its peak is at 6, where nothing was measured
        ("best of n", 1.0, -0.5, (7.5, 3.0, False)),
        ("best of n", -0.5, 0.1, (0.0, 0.0, True)),  # lost from the start on, and its peak is before it
        ("ppo", -2.0, -0.1, (0.0, 0.0, True)),
        ("ppo", 1.0, 1.0, (1.0, 1.0, True)),
    ],
)
def test_the_highest_gold_is_among_the_distances_that_were_measured(
    way: str, alpha: float, beta: float, expected: tuple[float, float, bool]
) -> None:
    curve = of_law(way, alpha, beta)
    assert top(way, law(way, curve), curve) == pytest.approx(expected)


def test_the_table_says_what_was_trained_on_and_what_its_signs_mean(run: Path) -> None:
    lines = rows(read(run), labelled(run))
    assert len(lines) == 2 + 2 * len(page.LABELS) + 2
    header, first = (line.strip("| ").split(" | ") for line in (lines[0], lines[2]))
    cells = dict(zip(header, first, strict=True))
    assert (cells["labels"], cells["pairs trained on"], cells["optimised by"]) == ("100", "98–100", "best of n")
    assert cells["labels that gold agrees with"] == "70%–72%"
    assert cells["proxy in the end, over the start"] == "3.00 ± 0.00"
    assert cells["at √KL"].endswith("3 of 3 at the end")
    ppo = dict(zip(header, lines[3].strip("| ").split(" | "), strict=True))
    assert ppo["gold in the end, over the start"] == "0.85 ± 0.25"  # 0.1 · t(2 degrees) / √3
    assert "Student" in lines[-1] and "3 seeds" in lines[-1]


def test_the_page_gets_table_and_picture(run: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    (docs / "images").mkdir(parents=True)
    (docs / "benchmarks.md").write_text(
        f"Before.\n<!-- measured: {page.COMMAND} -->\nNot yet.\n<!-- /measured -->\nAfter.\n", encoding="utf-8"
    )
    page.write(run, docs)
    text = (docs / "benchmarks.md").read_text(encoding="utf-8")
    assert text.startswith("Before.") and text.endswith("After.\n") and "Not yet." not in text
    assert "(images/overoptimisation.png)" in text
    assert (docs / "images" / "overoptimisation.png").read_bytes().startswith(b"\x89PNG")


def test_both_ways_are_measured_on_as_many_prompts() -> None:
    stages = load(RECIPE).recipe.stages
    for labels in page.LABELS:
        stage = stages[f"eval{labels}"]
        assert stage.kind == "evaluate" and stage.best_of == 64
        assert stage.best_of_prompts == stage.max_prompts == 400
        assert {"pairs", "reward"} <= {name.rstrip("0123456789") for name in stages if name.endswith(str(labels))}
