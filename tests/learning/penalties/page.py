"""The section "Penalties" of docs/benchmarks.md, and its picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefopt.stats.intervals import Interval
from tests.benchmarks.against_trl.page import replace_marked, table
from tests.learning.penalties import picture, plan
from tests.learning.penalties.score import mixture

Results = Mapping[str, Mapping[str, Any]]
MARKER = "python -m tests.learning.penalties"
NOT_YET = "Not measured yet."
PICTURE = (
    "![Share of completions that violate, and share of the unconstrained gain that is kept: without a penalty, with a "
    "learned weight, and with written weights; dotted: the target of 2 %, and 95 %](images/penalties.png)"
)


def seeds_of(part: str, results: Results) -> list[Mapping[str, Any]]:
    """What was measured of a part, in the order of seeds; with that of its grid."""
    rows = [results[f"{part}/{seed}"]["measured"] for seed in _seeds(part, results)]
    grids = [results.get(f"{part}-grid/{seed}", {}).get("measured", {}) for seed in _seeds(part, results)]
    return [
        {name: {**found, **grid.get(name, {})} for name, found in row.items()}
        for row, grid in zip(rows, grids, strict=True)
    ]


def percent(values: Sequence[float]) -> str:
    """An estimate with its interval."""
    return "{:.1%} [{:.1%}, {:.1%}]".format(*values[:3])


def number(values: Sequence[float]) -> str:
    """An estimate with its interval."""
    return "{:.2f} [{:.2f}, {:.2f}]".format(*values[:3])


def policies(part: str, results: Results) -> list[str]:
    """A row for each policy and seed: violations, what it keeps of the gain, KL."""
    two = part != "a"
    kept = ["gain kept", "without the five words"] if two else ["gain kept"]
    rows: dict[str, list[list[str]]] = {}
    for seed, measured in zip(_seeds(part, results), seeds_of(part, results), strict=True):
        for name in _ordered(measured["policies"]):
            found = measured["policies"][name]
            cells = [f"`{name}`", str(seed), f"{found['completions']:,}", percent(found["violations"])]
            cells += [number(found["reward"]), _kept(found)]
            cells += [_kept(measured["without"][name])] if two else []
            rows.setdefault(name, []).append([*cells, f"{found['kl']:.2f}"])
    header = ["policy", "seed", "completions", "violations", "reward", *kept, "KL"]
    return table(header, [row for of_policy in rows.values() for row in of_policy])


def _kept(found: Mapping[str, Any]) -> str:
    return "–" if found["kept"] is None else percent(found["kept"])


def _ordered(found: Mapping[str, Any]) -> list[str]:
    """The base, free and lagrange first; then the grid from the lightest weight."""
    first = [name for name in ("base", "sft", "free", "lagrange") if name in found]
    return first + sorted(
        (name for name in found if name not in first), key=lambda name: float(name.removeprefix("weight-"))
    )


def most(results: Results) -> list[str]:
    """Part b: what no policy could pass."""
    rows = []
    for each in results["most"]["measured"]:
        free, held = each["free"], each["held"]
        rows.append(
            [f"{each['tilt']:g}", f"{free['reward']:.2f}", f"{free['kl']:.2f}", f"{held['reward']:.2f}",
             f"{held['kl']:.2f}", f"{each['kept']:.0%}",
             f"{free['effective_completions']:.0f}, {held['effective_completions']:.0f}"]
        )  # fmt: skip
    header = [
        "tilt",
        "reward",
        "KL",
        "with the target: reward",
        "KL",
        "gain kept",
        "effective completions of 1,024: without, with it",
    ]
    return table(header, rows)


def unlikelihood(results: Results) -> list[str]:
    """Part c: the base, and each training over seeds."""
    rows: list[list[str]] = []
    for seed, measured in zip(_seeds("c", results), seeds_of("c", results), strict=True):
        models = measured["models"]
        if not rows:
            rows.append(["`base`", "–", *_chances(models["base"]), "–", "–"])
        for name, before in (("imitate", models["base"]), ("unlearn", models["imitate"])):
            found = models[name]
            less, more = before["token"] / found["token"], found["nll"] / before["nll"] - 1
            rows.append([f"`{name}`", str(seed), *_chances(found), f"{less:.1f}", f"{more:+.1%}"])
    header = ["model", "seed", "flagged tokens: probability", "their first token", "whole words", "other tokens: nats"]
    return table([*header, "times less likely", "other tokens, change"], rows)


def _chances(found: Mapping[str, float]) -> list[str]:
    return [f"{found['token']:.4f}", f"{found['first']:.4f}", f"{found['word']:.5f}", f"{found['nll']:.4f}"]


def groups(results: Results) -> list[str]:
    """Part d: accuracy of each loss, of every seed."""
    rows = []
    for name in plan.LOSSES:
        for seed, measured in zip(_seeds("d", results), seeds_of("d", results), strict=True):
            common, rare = ([*measured["losses"][name][group]] for group in ("shop", "codes"))
            total, plain = (_mixed(measured, each) for each in (name, "plain"))
            rows.append([f"`{name}`", str(seed), percent(rare), percent(common), f"{total:.1%}",
                         "–" if name == "plain" else f"{100 * (total - plain):+.1f}"])  # fmt: skip
    return table(["loss", "seed", "rare group", "common group", "all, as 95 to 5", "points more"], rows)


def _mixed(measured: Mapping[str, Any], name: str) -> float:
    common, rare = (Interval(*measured["losses"][name][group]) for group in ("shop", "codes"))
    return mixture(common, rare, 1 - plan.COMMON_SHARE)


def hacked(results: Results) -> list[str]:
    """Part e: gold and proxy of every policy and seed."""
    rows = []
    for name in ("sft", *plan.HACKED):
        for seed, measured in zip(_seeds("e", results), seeds_of("e", results), strict=True):
            found = measured["policies"][name]
            kl = "–" if "kl" not in found else f"{found['kl'][0]:.1f}"
            rows.append([f"`{name}`", str(seed), number(found["gold"]), number(found["proxy"]), kl,
                         percent(found["violation_rate"]), f"{found['repetition'][0]:.1%}"])  # fmt: skip
    return table(["policy", "seed", "gold", "proxy", "KL", "tells a code", "repeated words"], rows)


def costs(results: Results) -> list[str]:
    """Rule costs beside sampling."""
    found = results["speed"]["measured"]
    rows = [
        [name, f"{1000 * found[f'{name}_seconds']:.0f} ms", f"{found[f'{name}_share']:.1%}"]
        for name in (key.removesuffix("_share") for key in found if key.endswith("_share"))
    ]
    sampled = f"{found['completions']:.0f} completions of {found['tokens']:.0f} tokens"
    return table([f"costs of {sampled}", "time", f"of the {found['sampling_seconds']:.1f} s that sampling takes"], rows)


def _seeds(part: str, results: Results) -> list[int]:
    return sorted(int(key.partition("/")[2]) for key in results if key.startswith(f"{part}/"))


TABLES: Mapping[str, tuple[str, Callable[[Results], list[str]]]] = {
    "a": ("Polite words and codes in the embedded world", lambda results: policies("a", results)),
    "b": ("Favourite words in stories", lambda results: policies("b", results)),
    "far": ("Favourite words in stories, where the KL costs little", lambda results: policies("far", results)),
    "most": ("The most that can be kept of the gain without the favourite words", most),
    "c": ("Unlikelihood in sft, on stories that nothing was trained on", unlikelihood),
    "d": ("Pairs about codes are one in twenty", groups),
    "e": ("A reward model of few labels", hacked),
    "speed": ("Costs beside sampling", costs),
}


def markdown(results: Results) -> str:
    """Every table whose part has been measured."""
    told: list[str] = []
    for part, (title, rows) in TABLES.items():
        measured = part in results or bool(_seeds(part, results))
        told += [f"*{title}*", "", *(rows(results) if measured else [NOT_YET]), ""]
    return "\n".join(told).rstrip()


def write(docs: Path, results: Results) -> None:
    """Write the section, and the picture from what is finished.

    Raises:
        ValueError: When the page has no place for it.
    """
    content, drawn = markdown(results), {part: seeds_of(part, results) for part in ("a", "b", "far")}
    if any(drawn.values()):
        content = f"{PICTURE}\n\n{content}"
        (docs / "images" / "penalties.png").write_bytes(picture.png({k: rows for k, rows in drawn.items() if rows}))
    replace_marked(docs / "benchmarks.md", MARKER, content)
