"""The cost of a completion that has not the form it must have."""

from __future__ import annotations

import json

import regex

from prefopt.recipe.options.costs import FormatCost
from prefopt.rewards.costs.lexicon import PATTERN_SECONDS, too_slow
from prefopt.rewards.costs.sample import NOTHING, Measured, RuleCost, Sample


class Format(RuleCost):
    """1 where a completion does not match, or the share of sections or keys that it lacks.

    Args:
        spec: Options.
    """

    def __init__(self, spec: FormatCost) -> None:
        super().__init__(spec)
        self._spec = spec
        self._pattern = regex.compile(spec.pattern, regex.DOTALL) if spec.pattern is not None else None

    def of(self, sample: Sample) -> Measured:
        """The measurement; no span, as what is missing is nowhere.

        Raises:
            DataError: When the pattern takes too long.
        """
        if self._spec.sections:
            missing = self._missing_sections(sample.text)
        elif self._pattern is not None:
            missing = 0.0 if self._matches(sample.text) else 1.0
        else:
            missing = self._missing_json(sample.text)
        return Measured(missing) if missing else NOTHING

    def _matches(self, text: str) -> bool:
        assert self._pattern is not None
        try:
            return self._pattern.fullmatch(text, timeout=PATTERN_SECONDS) is not None
        except TimeoutError as error:
            raise too_slow(self._pattern, text, self.label) from error

    def _missing_sections(self, text: str) -> float:
        sections = self._spec.sections
        lines = [line.lstrip() for line in text.splitlines()]
        found = place = 0
        for section in sections:
            # Behind the last one that was found: what is out of order is missing.
            after = next((n for n in range(place, len(lines)) if lines[n].startswith(section)), None)
            if after is not None:
                found, place = found + 1, after + 1
        return 1 - found / len(sections)

    def _missing_json(self, text: str) -> float:
        try:
            value = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return 1.0
        keys = self._spec.keys
        if not keys:
            return 0.0
        return sum(key not in value for key in keys) / len(keys) if isinstance(value, dict) else 1.0


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")
