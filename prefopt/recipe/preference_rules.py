"""Rules between the keys of stages on preferences: each is fine by itself, and together they are wrong."""

from __future__ import annotations

from collections.abc import Iterator

from prefopt.recipe.options.dpo import DIVERGENT, LENGTH_NORMALISED, LOSSES_OF, REFERENCE_FREE, SORTED
from prefopt.recipe.options.kto import ESTIMATES_KL
from prefopt.recipe.parts import Fault, Part

_NEEDS_SMOOTHING = "exo_pair"
_SAME_WITHOUT = ("cdpo", "robust")
_SUMMED = {"ipo": "ipo_sum", "sigmoid_norm": "sigmoid"}
"""Of losses that average over tokens, those that do not."""


def dpo_faults(part: Part) -> Iterator[Fault]:
    """What is wrong, or likely not meant, with the losses of a stage."""
    losses = part.get("loss_type")
    if losses is None:
        return
    names = (losses,) if isinstance(losses, str) else tuple(losses)
    yield from _unread(part, names)
    yield from _costs(part, names)
    weights = part.get("loss_weights")
    if weights is not None and len(weights) != len(names):
        yield Fault("loss_weights", f"{len(weights)} weights for {len(names)} losses", "one number for each loss")
    if part.get("label_smoothing") == 0:
        if _NEEDS_SMOOTHING in names:
            remedy = "set it to 0.001, as the paper does"
            yield Fault("label_smoothing", "'exo_pair' needs it above 0", remedy)
        for name in _SAME_WITHOUT:
            if name in names:
                yield Fault("loss_type", f"'{name}' without label_smoothing is the same as 'sigmoid'", wrong=False)
    for key, on in (("use_weighting", part.get("use_weighting")), ("dr_beta", part.get("dr_beta") is not None)):
        for name in sorted(SORTED & set(names)) if on else ():
            yield Fault(key, f"'{name}' sorts the batch, so its rows are no pairs to weigh", "leave one of the two out")


def group_faults(part: Part) -> Iterator[Fault]:
    """What is likely not meant with group weights."""
    if part.get("group_weights") == "none":
        for key in ("group_by", "effective_number_beta"):
            if part.changed(key):
                yield Fault(key, "without 'group_weights' all groups count by their size", wrong=False)


def _costs(part: Part, names: tuple[str, ...]) -> Iterator[Fault]:
    """What is wrong with the costs of a stage."""
    if part.given("cost_margin"):
        # `sft` beside a loss with a reference regularises it, and compares nothing.
        compares = set(names) if set(names) == {"sft"} else set(names) - {"sft"}
        for name in sorted(REFERENCE_FREE & compares):
            yield Fault("cost_margin", f"costs tilt the reference, and '{name}' has none", "leave one of the two out")
        for name in sorted(LENGTH_NORMALISED & compares):
            message = f"'{name}' compares averages over tokens, and a cost is one of the whole answer"
            yield Fault("cost_margin", message, f"write '{_SUMMED[name]}', or leave one of the two out")
        if part.get("f_divergence_type") != "reverse_kl":
            message = "what a policy pays for a cost is known for the reverse KL alone"
            yield Fault("f_divergence_type", message, "leave 'cost_margin' out, or write reverse_kl")
    listed = part.get("violations")
    for key in ("on_violation", "violation_weight"):
        if part.changed(key) and not listed:
            yield Fault(key, "nothing is said to violate", "write 'violations', a list of costs")
    if part.changed("violation_weight") and part.get("on_violation") != "downweight":
        yield Fault("violation_weight", f"`on_violation: {part.get('on_violation')}` weighs nothing", "delete it")
    for name in sorted(SORTED & set(names)) if part.get("group_weights") != "none" else ():
        yield Fault(
            "group_weights", f"'{name}' sorts the batch, so its rows can have no weight", "leave one of them out"
        )
    for name in sorted(SORTED & set(names)) if listed and part.get("on_violation") != "drop" else ():
        message = f"'{name}' sorts the batch, so its rows can have no weight and no soft label"
        yield Fault("violations", message, "write `on_violation: drop`")


def kto_faults(part: Part) -> Iterator[Fault]:
    """What is wrong with the batches of a `kto` stage."""
    if part.get("loss_type") in ESTIMATES_KL and part.get("per_device_train_batch_size") == 1:
        message = "the KL is estimated from the other rows of a pass, and there are none"
        yield Fault("per_device_train_batch_size", message, "write 2 or more, or `loss_type: apo_zero_unpaired`")


def _unread(part: Part, names: tuple[str, ...]) -> Iterator[Fault]:
    """An option that no loss reads would change nothing, silently."""
    for key, readers in LOSSES_OF.items():
        if part.changed(key) and not readers & set(names):
            remedy = f"it is for {', '.join(sorted(readers))}"
            yield Fault(key, f"{_quoted(names)} does not use {key}", remedy)
    divergence = part.get("f_divergence_type")
    if part.changed("f_alpha_divergence_coef") and divergence != "alpha_divergence":
        remedy = "add `f_divergence_type: alpha_divergence`"
        yield Fault("f_alpha_divergence_coef", f"'{divergence}' has no such number", remedy)
    deaf = sorted(set(names) - DIVERGENT - {"sft"})
    if divergence != "reverse_kl" and deaf and len(deaf) < len(names):
        yield Fault("f_divergence_type", f"{_quoted(deaf)} knows no other divergence than reverse_kl")


def _quoted(names: tuple[str, ...] | list[str]) -> str:
    return " and ".join(f"'{name}'" for name in names)
