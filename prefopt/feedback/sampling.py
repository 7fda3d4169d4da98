"""Sample completions into the ledger, in chunks, each of which is sampled once however often the stage is restarted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefopt.models.generate import Sampled, SamplingOptions
from prefopt.records import Prompt
from prefopt.store.ledger import Ledger, StoredSample, canonical_prompt, key_of

Sampler = Callable[[Sequence[Sequence[int]], SamplingOptions], Sequence[Sampled]]
_BATCHES = 4  # batches of a chunk: what a kill may cost


@dataclass(frozen=True)
class Asked:
    """A prompt to be answered.

    Attributes:
        prompt: Its messages.
        ids: Its tokens.
        context: Of the tokens that are sampled, as `prefopt.records.SampledTokens` has it.
    """

    prompt: Prompt
    ids: Sequence[int]
    context: str = ""


def sample_into(  # noqa: PLR0913  (one call, each argument of another kind)
    ledger: Ledger,
    policy: str,
    identity: str,
    asked: Sequence[Asked],
    samples: int,
    sampler: Sampler,
    options: SamplingOptions,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[StoredSample]]:
    """Several completions of every prompt, from the ledger where they are and else from the policy.

    Args:
        ledger: Takes them.
        policy: Name of the stage that answers.
        identity: Hash of its artefact.
        asked: Prompts.
        samples: Completions of each.
        sampler: Answers token ids.
        options: How to sample; every chunk has a seed of its own that follows from theirs.
        progress: Called with the number of completions done; may raise to stop.

    Returns:
        For every prompt its completions, in the order of `asked`.
    """
    settings = {**dataclasses.asdict(options), "samples": samples}
    # Prompts of like length together: a batch is as long as its longest prompt.
    order = sorted(range(len(asked)), key=lambda index: (len(asked[index].ids), index))
    rows = [(index, number) for index in order for number in range(samples)]
    keys = {
        (index, number): key_of("sample", identity, canonical_prompt(asked[index].prompt), settings, number)
        for index, number in rows
    }
    stored = ledger.samples(list(keys.values()))
    size = options.batch_size * _BATCHES
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        if not all(keys[row] in stored for row in chunk):
            seed = int(key_of(options.seed, identity, [keys[row] for row in chunk])[:15], 16)
            answers = sampler([asked[index].ids for index, _ in chunk], dataclasses.replace(options, seed=seed))
            fresh = {
                keys[row]: (
                    asked[row[0]].prompt,
                    # A stop string is cut from the text, and its tokens may have more in them: then the text counts.
                    StoredSample(answer.text, answer.finished, len(answer.ids), () if options.stop else answer.ids),
                )
                for row, answer in zip(chunk, answers, strict=True)
            }
            ledger.add_samples(policy, fresh)
            # What an earlier attempt left of this chunk stays.
            stored |= ledger.samples(list(fresh))
        progress(start + len(chunk))
    return [[stored[keys[index, number]] for number in range(samples)] for index in range(len(asked))]
