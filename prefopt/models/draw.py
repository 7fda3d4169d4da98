"""Drawing tokens from logits, and what is said of them on the way.

Shape suffixes: B prompts of a batch, V vocabulary entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import TopPLogitsWarper

from prefopt.models.state_probe import StateProbe
from prefopt.models.token_watch import TokenWatch


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample.

    Attributes:
        max_new_tokens: Completions are cut there and count as unfinished.
        min_new_tokens: No completion ends before it has as many; 0 lets the policy decide.
        temperature: Divides the logits; 0 is greedy.
        top_p: Share of probability kept, in (0, 1].
        batch_size: Prompts in one call.
        stop: A completion ends with the token that completes one of these strings, which its text leaves out.
        say: Whether to say how likely each token was, and how open the choice, before `min_new_tokens` and `top_p`
            forbid anything.
        probe: With `say`, says a number more of the state that each token is drawn from.
        watch: Words whose probability is added up along every completion, at the temperature of sampling.
        seed: Completions depend on it, the weights, the prompts and the batch size alone. Not used where the caller
            brings the random numbers.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 64
    stop: tuple[str, ...] = ()
    say: bool = False
    watch: tuple[TokenWatch, ...] = ()
    probe: StateProbe | None = None
    seed: int = 0


def choose_tokens(logits: Tensor, options: SamplingOptions, uniforms: Tensor | None = None) -> Tensor:
    """One token for every row of logits [B, V], as `options` say; [B].

    `top_p` keeps the smallest set of tokens whose probability reaches it (arXiv 1904.09751).

    Args:
        logits: [B, V].
        options: Temperature and `top_p`.
        uniforms: [B], float64 in [0, 1): the token is where the distribution function passes it. None draws from
            torch's random state.
    """
    if options.temperature == 0:
        return logits.argmax(-1)
    logits = logits / options.temperature
    if options.top_p < 1:
        logits = TopPLogitsWarper(options.top_p)(None, logits)
    probabilities = logits.softmax(-1)
    if uniforms is None:
        return torch.multinomial(probabilities, 1).squeeze(-1)
    # Scaled by the sum, which rounding leaves beside 1: otherwise a number next to 1 could pass the last token.
    reached = probabilities.double().cumsum(-1)
    tokens = torch.searchsorted(reached, uniforms[:, None] * reached[:, -1:], right=True).squeeze(-1)
    return tokens.clamp(max=logits.shape[-1] - 1)


class Draw:
    """Draws tokens, and says how likely they were where that is asked for.

    Args:
        options: How.
        ends: [E], tokens that are not drawn before `min_new_tokens`.
        rows: B.
        uniforms: [B, max_new_tokens], the random number of each token; None for torch's random state.

    Attributes:
        said: Of every row, (log-probability, entropy) of each of its tokens, and what the probe says.
        masses: Of every row and token, how likely the token completed a word of each watch.
    """

    def __init__(self, options: SamplingOptions, ends: Tensor, rows: int, uniforms: Tensor | None) -> None:
        self._options = options
        self._ends = ends
        self._uniforms = uniforms
        self.said: list[list[tuple[float, ...]]] = [[] for _ in range(rows)]
        self.masses: list[list[list[float]]] = [[] for _ in range(rows)]
        self._written: list[list[int]] = [[] for _ in range(rows)]

    def __call__(self, logits: Tensor, step: int, rows: Tensor) -> Tensor:
        """Tokens [b] for logits [b, V], the number of the token and the rows [b] that they belong to."""
        early = step < self._options.min_new_tokens
        allowed = logits.index_fill(1, self._ends, -torch.inf) if early else logits
        tokens = choose_tokens(allowed, self._options, None if self._uniforms is None else self._uniforms[rows, step])
        if self._options.say:
            logps = (logits / (self._options.temperature or 1.0)).log_softmax(-1)
            entropies = torch.special.entr(logps.exp()).sum(-1)  # 0 for a token that a model rules out
            chosen = logps.gather(1, tokens[:, None]).squeeze(1)
            columns = [chosen, entropies, *(self._options.probe.take() if self._options.probe else [])]
            for row, numbers in zip(rows.tolist(), torch.stack(columns, 1).tolist(), strict=True):
                self.said[row].append(tuple(numbers))
        if self._options.watch:
            self._watch(logits, tokens, rows)
        return tokens

    def _watch(self, logits: Tensor, tokens: Tensor, rows: Tensor) -> None:
        probabilities = (logits / (self._options.temperature or 1.0)).softmax(-1)
        written = [self._written[row] for row in rows.tolist()]
        masses = torch.stack([watch.masses(probabilities, written) for watch in self._options.watch], 1)
        for row, token, mass in zip(rows.tolist(), tokens.tolist(), masses.tolist(), strict=True):
            self.masses[row].append(mass)
            self._written[row].append(token)
