"""Imports what most stages need, in the warm process that stage processes are forked from."""

from __future__ import annotations

from prefopt.pipeline.loading import load
from prefopt.pipeline.revisions import REVISIONS

LIBRARIES = ("torch", "transformers", "datasets", "peft", "trl")

for _module in (*LIBRARIES, *(f"prefopt.pipeline.stages.{kind}" for kind in REVISIONS)):
    load(_module)
