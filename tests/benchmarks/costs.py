"""How many completions a second the rule costs measure on one core: `python tests/benchmarks/costs.py`.

Completions are 128 tokens of what assistants of the toy world say; each cost is timed alone and then all together, of
three runs the median. The project asks for 4,000 a second of all together.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Sequence

from prefopt.data.toy import world
from prefopt.recipe.options import costs
from prefopt.records import Prompt
from prefopt.rewards.costs.registry import RULES, rule_cost
from prefopt.rewards.costs.sample import Cost, Sample

COUNT, TOKENS, RUNS = 512, 128, 3
TOKEN = re.compile(r"\s?\w+|[^\w\s]")
WORDS = tuple(f"word{number}" for number in range(2000))  # a long lexicon costs what a short one does
SPECS: dict[str, costs.CostSpec] = {
    "length": costs.LengthCost(cost="length", limit=100),
    "repetition": costs.RepetitionCost(cost="repetition"),
    "longest": costs.RepetitionCost(cost="repetition", name="longest", measure="longest", ngram=8),
    "banned": costs.BannedCost(cost="banned", words=WORDS, patterns=(r"\d{4}-\d{4}",)),
    "format": costs.FormatCost(cost="format", pattern=".*[.!?]"),
    "missing_eos": costs.MissingEosCost(cost="missing_eos"),
    "ensemble_std": costs.EnsembleStdCost(cost="ensemble_std"),
    "script": costs.ScriptCost(cost="script"),
    "prompt_copy": costs.PromptCopyCost(cost="prompt_copy"),
    "refusal": costs.RefusalCost(cost="refusal"),
}


def completions(count: int = COUNT, accents: bool = False) -> list[Sample]:
    """Completions of 128 tokens; the tokens are words and signs, by number, as a tokenizer's would be.

    Args:
        count: How many.
        accents: Whether each has a letter outside of ASCII, which takes the slower way.
    """
    numbers: dict[str, int] = {}
    said = [message.content for talk in world.corpus(12 * count, seed=1) for message in talk[1::2]]
    pieces = [piece for text in said for piece in TOKEN.findall(f" {text}")]
    prompts: list[Prompt] = world.prompts(count, seed=1)
    found = []
    for place, prompt in enumerate(prompts):
        own = pieces[place * TOKENS : (place + 1) * TOKENS]
        assert len(own) == TOKENS
        text = "".join(own).strip() + (" café" if accents else "")
        found.append(Sample(prompt, text, tuple(numbers.setdefault(piece, len(numbers)) for piece in own)))
    return found


def per_second(measured: Sequence[Cost], samples: Sequence[Sample]) -> float:
    """Completions a second of all costs together, median over runs."""
    rates = []
    for _ in range(RUNS):
        start = time.process_time()  # the core's, however many others want it
        for cost in measured:
            cost.measure(samples)
        rates.append(len(samples) / (time.process_time() - start))
    return statistics.median(rates)


def main() -> None:
    """Print a table."""
    assert {spec.cost for spec in SPECS.values()} == set(RULES)
    opened = {name: rule_cost(spec) for name, spec in SPECS.items()}
    plain, accented = completions(), completions(accents=True)
    characters = sum(len(sample.text) for sample in plain) / len(plain)
    print(f"{COUNT} completions of {TOKENS} tokens, {characters:.0f} characters\n")
    print("| cost | ASCII, completions/s | with accents, completions/s |\n|---|---:|---:|")
    for name, cost in opened.items():
        print(f"| {name} | {per_second([cost], plain):,.0f} | {per_second([cost], accented):,.0f} |")
    everything = [cost for name, cost in opened.items() if name != "longest"]  # an option of one that is there
    print(f"| all | {per_second(everything, plain):,.0f} | {per_second(everything, accented):,.0f} |")


if __name__ == "__main__":
    main()
