"""Costs of saying things again."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence

from prefopt.recipe.options.costs import RepetitionCost
from prefopt.rewards.costs.length import WORD
from prefopt.rewards.costs.sample import NOTHING, Measured, RuleCost, Sample, Span, merged

_SHORT = 1024
"""Units up to which sorting is quicker than the automaton."""


class Repetition(RuleCost):
    """The share of n-grams that were there before, or of the longest span that was.

    ngrams: 1 - different / all n-grams (arXiv 2502.03373, appendix C.2); 0 for fewer units than n.
    longest: the longest run of n or more units that occurs twice, overlaps allowed, as a share of all units.
    """

    def __init__(self, spec: RepetitionCost) -> None:
        super().__init__(spec)
        self._spec = spec

    def of(self, sample: Sample) -> Measured:
        """The measurement; spans are what was there before, of `longest` its second occurrence."""
        words = [] if self._spec.unit == "tokens" else list(WORD.finditer(sample.text))
        units: Sequence[Hashable]
        units = sample.tokens(self.label) if self._spec.unit == "tokens" else [word.group() for word in words]
        size = self._spec.ngram
        grams = list(zip(*(units[start:] for start in range(size)), strict=False))
        different = len(set(grams))
        if different == len(grams):
            return NOTHING
        if self._spec.measure == "ngrams":
            value, runs = 1 - different / len(grams), _again(grams, size)
        else:
            length, end = longest_repeated(units)
            value, runs = length / len(units), ((end - length, end),)
        if self._spec.unit == "tokens":
            return Measured(value, merged([span for run in runs for span in sample.characters(*run)]))
        return Measured(value, merged([(words[start].start(), words[end - 1].end()) for start, end in runs]))


def _again(grams: Sequence[Hashable], size: int) -> tuple[Span, ...]:
    """Units that belong to an n-gram that was there before."""
    seen: set[Hashable] = set()
    remember = seen.add
    # What is new is remembered, which gives None.
    return merged([(place, place + size) for place, gram in enumerate(grams) if gram in seen or remember(gram)])


def longest_repeated(units: Sequence[Hashable]) -> tuple[int, int]:
    """The longest run of units that occurs twice, overlaps allowed: (its length, where its second occurrence ends).

    Where several are as long, it is the one that ends first.
    """
    return _by_sorting(units) if len(units) <= _SHORT else _by_automaton(units)


def _by_sorting(units: Sequence[Hashable]) -> tuple[int, int]:
    """By sorting the suffixes as strings: quadratic at worst, and quick where there are few units."""
    numbers: dict[Hashable, str] = {}
    text = "".join([numbers.setdefault(unit, chr(len(numbers))) for unit in units])
    suffixes = sorted([text[start:] for start in range(len(text))])
    best = 0
    for one, other in itertools.pairwise(suffixes):
        while len(one) > best and one[: best + 1] == other[: best + 1]:
            best += 1
    seen: set[str] = set()
    for start in range(len(text) - best + 1) if best else ():
        run = text[start : start + best]
        if run in seen:
            return best, start + best
        seen.add(run)
    return 0, 0


def _by_automaton(units: Sequence[Hashable]) -> tuple[int, int]:
    """By a suffix automaton (Blumer et al. 1985), in time linear in the number of units."""
    lengths, links = [0], [-1]
    steps: list[dict[Hashable, int]] = [{}]
    last, best, end = 0, 0, 0
    for place, unit in enumerate(units):
        new = len(lengths)
        lengths.append(lengths[last] + 1)
        links.append(0)
        steps.append({})
        state = last
        while state != -1 and unit not in steps[state]:
            steps[state][unit] = new
            state = links[state]
        if state != -1:
            links[new] = _state_for(state, steps[state][unit], unit, lengths, links, steps)
        last = new
        # The longest suffix of what was read so far that was there before is that of the suffix link.
        if lengths[links[new]] > best:
            best, end = lengths[links[new]], place + 1
    return best, end


def _state_for(
    state: int, target: int, unit: Hashable, lengths: list[int], links: list[int], steps: list[dict[Hashable, int]]
) -> int:
    """The state that the longest repeated suffix leads to; made anew where the one there is stands for more."""
    if lengths[target] == lengths[state] + 1:
        return target
    clone = len(lengths)
    lengths.append(lengths[state] + 1)
    links.append(links[target])
    steps.append(dict(steps[target]))
    while state != -1 and steps[state].get(unit) == target:
        steps[state][unit] = clone
        state = links[state]
    links[target] = clone
    return clone
