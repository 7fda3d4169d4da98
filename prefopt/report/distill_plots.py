"""The curves of distill stages: how near the student is to its teacher, and what its guards watch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefopt.recipe.distill import CollapseGuardsSpec
from prefopt.report.curves import Curves, Mark
from prefopt.report.damage import is_real
from prefopt.report.rundata import StageData

_NEAR, _WATCHED = "How near it is to its teacher", "What its guards watch"
_GUARDS = CollapseGuardsSpec()


def _limit(stage: StageData, option: str, of_origin: str, label: str) -> Sequence[Mark]:
    """A limit that is relative to what the first round started from; none where that is not known yet."""
    guards, found = stage.options.get("guards"), stage.details.get("guards")
    share = guards.get(option, getattr(_GUARDS, option)) if isinstance(guards, Mapping) else getattr(_GUARDS, option)
    origin = found.get("origin") if isinstance(found, Mapping) else None
    value = origin.get(of_origin) if isinstance(origin, Mapping) else None
    if not isinstance(share, int | float) or not isinstance(value, int | float) or not is_real(share * value):
        return ()
    return (Mark(label, float(share * value)),)


DISTILL_CURVES = (
    Curves(
        "distill-kl",
        "Divergence from the teacher",
        "Along the targets; it should fall and level off, held out as well.",
        "nats per token",
        (("distill/kl", "training"), ("eval/distill/kl", "held out")),
        0.0,
        group=_NEAR,
    ),
    Curves(
        "distill-entropy",
        "How undecided both are",
        "Along the targets; the student should come near its teacher, and not below it.",
        "nats",
        (("distill/entropy", "student"), ("distill/teacher_entropy", "teacher")),
        group=_NEAR,
    ),
    Curves(
        "distill-own-entropy",
        "How undecided the student is along its own answers",
        "A model that learns from its own answers narrows; the guard ends that.",
        "nats",
        (("distill/own_entropy", "student"),),
        marks=lambda stage: _limit(stage, "min_entropy", "entropy", "guard: collapsing"),
        group=_WATCHED,
    ),
    Curves(
        "distill-real-nll",
        "Loss on real answers",
        "Held-out real data, in contexts where nothing is to change; it should stay where it is.",
        "nats per token",
        (("distill/real_nll", "student"),),
        marks=lambda stage: _limit(stage, "max_nll", "nll", "guard: forgets"),
        group=_WATCHED,
    ),
    Curves(
        "distill-drift",
        "What it changed elsewhere",
        "KL of the start and the student along the same real data; replay holds it down.",
        "nats per token",
        (("distill/drift", "student"),),
        0.0,
        group=_WATCHED,
    ),
)
