"""Costs that somebody else measures: a classifier, and functions of installed packages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from prefopt.errors import DataError, InputError, PrefoptError
from prefopt.recipe.options.costs import ClassifierCost, PluginCost
from prefopt.records import conversation
from prefopt.rewards.costs.sample import Measured, Sample, Span, merged
from prefopt.rewards.scorers import Scorer


class Classifier:
    """What a classifier is too sure of: max(0, p - h) / (1 - h), with p = σ(its logit) and h the hinge.

    Args:
        spec: Options.
        scorer: Gives logits.
    """

    def __init__(self, spec: ClassifierCost, scorer: Scorer) -> None:
        self.label = spec.label
        self.threshold = spec.threshold
        self._hinge = spec.hinge
        self._scorer = scorer

    def measure(self, samples: Sequence[Sample]) -> list[Measured]:
        """N measurements; `expected` is p, which is a rate as far as the classifier is calibrated."""
        scores = self._scorer.score([sample.prompt for sample in samples], [sample.text for sample in samples])
        return [self._of(0.5 * (1 + math.tanh(score.value / 2))) for score in scores]

    def _of(self, probability: float) -> Measured:
        return Measured(max(0.0, probability - self._hinge) / (1 - self._hinge), (), probability)


class Plugin:
    """A function of `prompts` and `completions`, both keyword arguments, as reward functions are.

    It answers for every completion a number of 0 or more, or such a number and the spans that caused it:
    `(0.5, [(3, 8)])`.

    Args:
        spec: Options.
        function: What is called.
    """

    def __init__(self, spec: PluginCost, function: Callable[..., Any]) -> None:
        self.label = spec.label
        self.threshold = spec.threshold
        self._name = spec.function
        self._function = function

    def measure(self, samples: Sequence[Sample]) -> list[Measured]:
        """N measurements, from one call; none where there are no samples.

        Raises:
            DataError: When the function does not answer so.
            InputError: When it raises; the original is the cause.
        """
        if not samples:
            return []
        prompts = [conversation(sample.prompt) for sample in samples]
        try:
            found = list(self._function(prompts=prompts, completions=[sample.text for sample in samples]))
        except PrefoptError:
            raise
        except Exception as error:
            raise InputError(f"the cost '{self._name}' raised {type(error).__name__}: {error}") from error
        if len(found) != len(samples):
            raise DataError(f"the cost '{self._name}' answered {len(found)} values for {len(samples)} completions")
        return [self._measured(value, sample.text) for value, sample in zip(found, samples, strict=True)]

    def _measured(self, answer: Any, text: str) -> Measured:
        try:
            value, spans = answer if isinstance(answer, tuple) else (answer, ())
            number = float(value)
            if isinstance(value, str | bytes) or not 0 <= number < math.inf:
                raise ValueError
            return Measured(number, merged([_span(span, len(text)) for span in spans]))
        except (TypeError, ValueError, OverflowError):
            raise DataError(
                f"the cost '{self._name}' answered {answer!r:.60}, and a cost is a finite number of 0 or more, or that "
                "and spans of the completion"
            ) from None


def _span(span: Any, length: int) -> Span:
    start, end = (int(place) for place in span)
    if not 0 <= start <= end <= length:
        raise ValueError
    return start, end
