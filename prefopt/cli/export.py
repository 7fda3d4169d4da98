"""`prefopt export STAGE_DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_OUT_HELP = "Missing or empty folder to write; export/STAGE-KEY12 of the run by default."
_MERGE_HELP = "The adapter as part of the base's weights: a whole model, for transformers alone."
_TRUST_HELP = "Run code of the model's repository, where the recipe agrees."


def command(
    directory: Annotated[
        Path, typer.Argument(help="runs/NAME/stages/STAGE, its KEY12 folder, or runs/NAME.", metavar="STAGE_DIR")
    ],
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="NAME", help="The stage, where STAGE_DIR is runs/NAME.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help=_OUT_HELP)] = None,
    merge: Annotated[bool, typer.Option("--merge", help=_MERGE_HELP)] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=_TRUST_HELP)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Write a stage's policy or reward model with tokenizer and card, as PEFT or transformers alone open it."""
    import os
    import warnings

    from prefopt.cli.output import note, print_json, say
    from prefopt.pipeline.artefact import EXPORT_KINDS, find_artefact
    from prefopt.pipeline.loading import fix_environment

    artefact = find_artefact(directory, stage, EXPORT_KINDS)
    fix_environment(os.environ)  # before torch is imported
    # What libraries say to each other about their next versions is nothing to the person who asks.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
    from prefopt.pipeline.export import export

    trained = artefact.trained
    note(f"loading {trained.stage} ({trained.kind}, {trained.directory.name}) of {artefact.run.root}")
    done = export(artefact, out, merge=merge, trust_remote_code=trust_remote_code, log=note)
    if as_json:
        print_json({"run": str(artefact.run.root), "stage": trained.stage, "kind": trained.kind, **done.to_json()})
        return
    say(f"{done.folder}: same logits as the stage, within {done.gap:.1e} of the largest, on {done.rows} rows")
