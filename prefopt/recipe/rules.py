"""Rules between keys: each key is fine by itself, and together they are wrong, or not what a person means."""

from __future__ import annotations

from typing import Any

from prefopt.errors import Problem
from prefopt.recipe.family import ONLINE_KINDS
from prefopt.recipe.layout import stage_specs
from prefopt.recipe.parts import Fault, Part
from prefopt.recipe.preference_rules import dpo_faults, group_faults, kto_faults
from prefopt.recipe.references import DATA_ROLES, names_in
from prefopt.recipe.sampled import online_steps, rules_of
from prefopt.recipe.schema import DataSpec
from prefopt.recipe.yaml import KeyPath, Places

_TOY_ROWS = {"corpus": "text", "demonstrations": "completions", "preferences": "pairs", "prompts": "prompts"}
_FORMAT_ROWS = {
    "text": "text",
    "messages": "completions",
    "prompt_completion": "completions",
    "preference": "pairs",
    "implicit": "pairs",
    "hh": "pairs",
    "saferlhf": "pairs",
    "unpaired": "unpaired",
}
_ANSWERED = ("completions", "pairs", "unpaired")
_PROMPTED = (*_ANSWERED, "prompts")
_ACCEPTS: dict[tuple[str, str], tuple[tuple[str, ...], str]] = {
    ("pretrain", "data"): (("text", *_ANSWERED), "pretraining learns from whole texts"),
    ("sft", "data"): (_ANSWERED, "sft learns from completions"),
    ("dpo", "data"): (("pairs",), "dpo learns from pairs"),
    ("kto", "data"): (("pairs", "unpaired"), "kto learns from pairs, or from completions with a `label`"),
    ("reward", "data"): (("pairs",), "a reward model learns from pairs"),
    ("collect", "prompts"): (_PROMPTED, "plain text has no prompts"),
    **{(kind, "prompts"): (_PROMPTED, "plain text has no prompts") for kind in ONLINE_KINDS},
    ("ppo", "demonstrations"): (_ANSWERED, "what is imitated are completions"),
    ("distill", "prompts"): (_PROMPTED, "plain text has no prompts"),
    ("distill", "demonstrations"): (_ANSWERED, "what is replayed are completions"),
    ("evaluate", "data"): (("pairs",), "preference accuracy is measured on pairs; name it in 'prompts' instead"),
    ("evaluate", "ood"): (("pairs",), "a reward's accuracy is measured on pairs"),
    ("evaluate", "prompts"): (_PROMPTED, "plain text has no prompts"),
}
_FOR_FILES = ("data_dir", "revision", "split", "format", "columns")
_PREFERENCE_RULES = {"dpo": (dpo_faults, group_faults), "kto": (kto_faults,), "sft": (group_faults,)}
_GROUPED = "a step's loss is the mean over its tokens, so tokens of short rows would weigh more: answers get shorter"


class Rules:
    """Checks of a whole recipe.

    Attributes:
        found: What is wrong.
        warnings: What works, and is likely not meant.
    """

    def __init__(self, tree: dict[str, Any], places: Places, bad: set[KeyPath]) -> None:
        self.found: list[tuple[KeyPath, Problem]] = []
        self.warnings: list[str] = []
        self._places = places
        self._data = self._parts(tree.get("data"), "data", bad)
        self._stages = self._parts(tree.get("stages"), "stages", bad)
        model = tree.get("model")
        self._base = model.get("model_name_or_path") if isinstance(model, dict) else None

    def _parts(self, mapping: object, section: str, bad: set[KeyPath]) -> dict[str, Part]:
        parts: dict[str, Part] = {}
        for name, raw in mapping.items() if isinstance(mapping, dict) else ():
            spec = DataSpec if section == "data" else stage_specs().get(str(raw.get("kind"))) if _is(raw) else None
            if spec is not None and _is(raw):
                parts[name] = Part(spec, raw, (section, name), bad)
        return parts

    def check(self) -> None:
        """Fill `found` and `warnings`."""
        for part in self._data.values():
            self._data_set(part)
        for part in self._stages.values():
            kind = part.get("kind")
            self._rows(part, kind)
            self._positions(part, kind)
            if part.has("max_new_tokens"):
                self._room(part)
            if part.has("warmup_steps"):
                self._schedule(part, kind)
            if kind in ("pretrain", "sft") and part.get("train_sampling_strategy") == "group_by_length":
                self._warn(part, "train_sampling_strategy", _GROUPED)
            for rule in (*rules_of(kind), *_PREFERENCE_RULES.get(kind, ())):
                for fault in rule(part):
                    self._say(part, fault)
        self._unused()

    def _add(self, part: Part, key: str, message: str, remedy: str = "") -> None:
        path = (*part.path, key)
        self.found.append((path, self._places.problem(path, message, remedy)))

    def _say(self, part: Part, fault: Fault) -> None:
        path = (*part.path, *fault.key.split("."))
        problem = self._places.problem(path, fault.message, fault.remedy)
        if fault.wrong:
            self.found.append((path, problem))
        else:
            self.warnings.append(str(problem))

    def _warn(self, part: Part, key: str, message: str) -> None:
        self.warnings.append(str(self._places.problem((*part.path, key), message)))

    def _data_set(self, part: Part) -> None:
        if not part.given("path"):
            return
        if part.get("path") != "toy":
            for key in ("noise", "seed"):
                if part.given(key):
                    self._add(part, key, f"'{key}' is for the toy world only", "delete it, or write `path: toy`")
            return
        for key in _FOR_FILES:
            if part.given(key):
                self._add(part, key, f"'{key}' means nothing in the toy world", "delete it")
        name = part.get("name")
        if part.given("name") and name not in _TOY_ROWS:
            self._add(part, "name", f"the toy world has no '{name}'", f"it has {', '.join(_TOY_ROWS)}")
        elif part.given("noise") and part.given("name") and name != "preferences":
            self._add(part, "noise", f"'{name}' has no labels that could be flipped", "noise is for preferences")

    def _rows(self, part: Part, kind: str) -> None:
        for (of_kind, role), (accepted, why) in _ACCEPTS.items():
            names = names_in(part.get(role)) if of_kind == kind else ()
            for name in names:
                rows = self._rows_of(name)
                if rows is not None and rows not in accepted:
                    self._add(part, role, f"'{name}' holds {_ROW_WORDS[rows]}", why)

    def _rows_of(self, name: str) -> str | None:
        data_set = self._data.get(name)
        if data_set is None:
            return None
        if data_set.get("path") == "toy":
            return _TOY_ROWS.get(data_set.get("name") or "")
        return _FORMAT_ROWS.get(data_set.get("format"))

    def _positions(self, part: Part, kind: str) -> None:
        base = part if kind == "pretrain" else self._stages.get(str(self._base))
        if base is None or base.get("kind") != "pretrain":
            return
        positions = base.get("max_position_embeddings")
        if part.given("max_length") and part.get("max_length") > positions:
            message = f"{part.get('max_length')} tokens are more than the {positions} positions of the model"
            self._add(part, "max_length", message, f"'max_position_embeddings' of '{base.path[-1]}' sets them")
        if part.has("max_new_tokens") and part.get("max_new_tokens") >= positions:
            message = f"{part.get('max_new_tokens')} new tokens leave no room for a prompt"
            self._add(part, "max_new_tokens", message, f"the model has {positions} positions")
        if kind == "pretrain":
            self._shape(part)

    def _shape(self, part: Part) -> None:
        hidden, heads = part.get("hidden_size"), part.get("num_attention_heads")
        if hidden % heads:
            self._add(
                part, "hidden_size", f"{hidden} cannot be divided among {heads} heads", _next_size(hidden, 2 * heads)
            )
        elif hidden // heads % 2:
            message = f"{hidden} gives {heads} heads of odd size, and rotary positions need an even one"
            self._add(part, "hidden_size", message, _next_size(hidden, 2 * heads))

    def _room(self, part: Part) -> None:
        longest, new = part.get("max_length"), part.get("max_new_tokens")
        if longest is not None and new >= longest:
            message = f"{new} new tokens leave no room for a prompt within max_length {longest}"
            self._add(part, "max_new_tokens", message, "raise 'max_length' or lower 'max_new_tokens'")

    def _schedule(self, part: Part, kind: str) -> None:
        steps = online_steps(part) if kind in ONLINE_KINDS else part.get("max_steps")
        warmup = part.get("warmup_steps")
        if 0 < steps < warmup:
            self._warn(part, "warmup_steps", f"{warmup:g} warm-up steps of {steps}: learning_rate is never reached")
        if warmup > 0 and part.get("lr_scheduler_type") == "constant":
            self._warn(part, "warmup_steps", "'constant' ignores it; did you mean 'constant_with_warmup'?")
        if steps > 0 and part.given("num_train_epochs"):
            self._warn(part, "num_train_epochs", f"ignored, because max_steps is {steps}")

    def _unused(self) -> None:
        roles = [(stage, role) for stage in self._stages.values() for role in DATA_ROLES if stage.has(role)]
        named = {name for stage, role in roles for name in names_in(stage.get(role))}
        for name, part in self._data.items():
            if name not in named:
                self.warnings.append(str(self._places.problem(part.path, "no stage uses this data set")))
        for name, part in self._stages.items():
            if part.get("kind") == "pretrain" and name != self._base:
                message = f"no stage uses it: `model_name_or_path: {name}` under 'model' would"
                self.warnings.append(str(self._places.problem(part.path, message)))


_ROW_WORDS = {
    "text": "text without prompts",
    "completions": "completions, no pairs",
    "pairs": "pairs",
    "unpaired": "completions marked as good or bad",
    "prompts": "prompts alone",
}


def _is(value: object) -> bool:
    return isinstance(value, dict)


def _next_size(size: int, step: int) -> str:
    below, above = size // step * step, -(-size // step) * step
    return f"{below} or {above} would do" if below else f"{above} would do"
