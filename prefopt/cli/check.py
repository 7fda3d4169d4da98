"""`prefopt check RECIPE`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefopt.errors import InputError

if TYPE_CHECKING:
    from prefopt.pipeline.deep_check import Finding
    from prefopt.recipe.load import LoadedRecipe

_UNITS = {"": 1, "K": 10**3, "KI": 2**10, "M": 10**6, "MI": 2**20, "G": 10**9, "GI": 2**30}


def command(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, as in stages.dpo.beta=0.2.")
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also load the model and a batch of every training stage: memory and tokens.")
    ] = False,
    fit: Annotated[bool, typer.Option("--fit", help="With --deep: find the largest batches that fit.")] = False,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="With --deep: what a stage may use, as in 8GiB.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="With --deep: the run whose finished stages are used, else runs/NAME."
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code of the model's repository, where the recipe agrees.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> int:
    """Judge a recipe without running it: what would run, in order, or every problem in one list."""
    from prefopt.cli.output import named, note, print_error, print_json, print_table
    from prefopt.evaluation.gates import check_names
    from prefopt.recipe.load import load
    from prefopt.recipe.references import graph, needs, order

    if not deep and (fit or memory is not None or out is not None or trust_remote_code):
        raise InputError("--fit, --memory, --out and --trust-remote-code belong to --deep", "add --deep")
    size = None if memory is None else parse_size(memory)
    loaded = load(recipe, overrides or ())
    judged = loaded.recipe
    check_names(loaded)
    stages = order(graph(judged))
    document: dict[str, Any] = {
        "recipe": str(recipe),
        "name": judged.name,
        "stages": [{"stage": name, "kind": judged.stages[name].kind, "needs": needs(judged, name)} for name in stages],
        "warnings": list(loaded.warnings),
    }
    if not as_json:
        rows = [(name, judged.stages[name].kind, named(needs(judged, name)) or None) for name in stages]
        title = f"{judged.name}: {len(rows)} stage{'s' if len(rows) > 1 else ''}, in this order"
        print_table(("stage", "kind", "needs"), rows, title=title)
        for warning in loaded.warnings:
            note(f"warning: {warning}")
    findings = _deep(loaded, out, fit, size, trust_remote_code) if deep else []
    if as_json:
        print_json({**document, **({"deep": [finding.to_json() for finding in findings]} if deep else {})})
    elif deep:
        from prefopt.cli.deep import show

        show(findings)
    errors = [finding.error for finding in findings if finding.error is not None]
    for error in errors:
        print_error(error)
    return errors[0].exit_code if errors else 0


def _deep(
    loaded: LoadedRecipe, out: Path | None, fit: bool, memory: int | None, trust_remote_code: bool
) -> list[Finding]:
    from prefopt.cli.output import note
    from prefopt.pipeline.deep_check import DeepOptions, deep_check

    return deep_check(loaded, DeepOptions(out, fit, memory, trust_remote_code), note)


def parse_size(text: str) -> int:
    """Bytes of a size such as `8GiB`, `500 MB` or `8e9`.

    Raises:
        InputError: When it is none, or 0.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmg]i?)?b?\s*", text, re.IGNORECASE)
    try:
        size = int(float(match[1]) * _UNITS[(match[2] or "").upper()]) if match else 0
    except ValueError:
        size = 0
    if size <= 0:
        raise InputError(f"--memory: {text!r} is no size", "write it as in --memory 8GiB")
    return size
