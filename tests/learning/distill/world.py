"""A small language whose contexts decide how one answers, and a model of it: what the table of targets is measured in.

A prompt is four words, with a context before it or none. An answer is the word that the context's rule makes of the
prompt's first, and then words of two styles, each word one of eight that may follow the one before. Under the policy, a
text of 20 words, the rule is another and nearly all words are of style A; under none, and under the other context, that
is so of about half of them. So the policy changes both what is said and how, and an answer has about 2.3 nats a word.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

Rows = list[dict[str, list[int]]]
WORDS = 16
GROUPS = ("c", "p", "r", "a", "b")
"""Words of contexts, prompts, rules and the two styles."""
FOLLOWERS = (8, 5, 4, 3, 3, 2, 2, 1)
"""How often each of the words that may follow one does."""
LONGEST = 12
"""Words of an answer at most; its end token comes after them."""
STEPS, BATCH = 600, 64


@dataclass(frozen=True)
class Context:
    """What stands before a prompt.

    Attributes:
        words: Its tokens.
        style: Share of words that are of style A.
        rule: Multiplies the number of the prompt's first word, modulo `WORDS`, and adds itself.
    """

    words: Sequence[int]
    style: float
    rule: int


def token(group: str, number: int) -> int:
    """Of a word; 0, 1 and 2 are padding, beginning and end."""
    return 3 + GROUPS.index(group) * WORDS + number


NONE = Context((), 0.475, 1)
POLICY = Context(tuple(token("c", 7 * n % 13) for n in range(20)), 0.95, 5)
OTHER = Context(tuple(token("c", 13 + n % 3) for n in range(4)), 0.475, 1)
STYLE_A = frozenset(token("a", number) for number in range(WORDS))
END = 2


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Of the language: one token a word."""
    words = ["<pad>", "<s>", "</s>", *(f"{group}{number}" for group in GROUPS for number in range(WORDS))]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def prompt(context: Context, asked: Sequence[int]) -> list[int]:
    """Token ids of a prompt."""
    return [1, *context.words, *asked]


def ruled(context: Context, asked: Sequence[int]) -> int:
    """The word that an answer under a context begins with."""
    first = asked[0] - token("p", 0)
    return token("r", (context.rule * first + context.rule) % WORDS)


def answer(rng: random.Random, context: Context, asked: Sequence[int]) -> list[int]:
    """Token ids of an answer, the end token included."""
    ids, number = [ruled(context, asked)], asked[1] - token("p", 0)
    for _ in range(rng.randint(8, LONGEST - 1)):
        (step,) = rng.choices(range(len(FOLLOWERS)), FOLLOWERS)
        number = (2 * number + step) % WORDS
        ids.append(token("a" if rng.random() < context.style else "b", number))
    return [*ids, END]


def questions(count: int, seed: int) -> list[list[int]]:
    """Words that are asked."""
    rng = random.Random(seed)
    return [[token("p", rng.randrange(WORDS)) for _ in range(4)] for _ in range(count)]


def real(context: Context, asked: Sequence[Sequence[int]], seed: int) -> Rows:
    """What the language itself answers: `prompt_ids`, `completion_ids`."""
    rng = random.Random(seed)
    return [{"prompt_ids": prompt(context, each), "completion_ids": answer(rng, context, each)} for each in asked]


def style(answers: Sequence[Sequence[int]]) -> float:
    """Share of words of style A, beside those of the rule and end tokens."""
    words = [each for ids in answers for each in ids[1:] if each != END]
    return sum(each in STYLE_A for each in words) / max(1, len(words))


def base(seed: int) -> PreTrainedModel:
    """A model that has learned the language under all three contexts, frozen."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer()), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=END, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, STEPS)
    rng = random.Random(seed)
    for step in range(STEPS):
        rows = [
            real(context, [each], rng.randrange(2**31))[0]
            for context, each in zip(
                rng.choices((NONE, POLICY, OTHER), k=BATCH), questions(BATCH, seed * STEPS + step), strict=True
            )
        ]
        loss = model(**language_batch(rows)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.requires_grad_(False).eval()


def language_batch(rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
    """Rows padded on the right; the answer's tokens are labels."""
    width = max(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows)
    ids, labels, mask = [], [], []
    for row in rows:
        full = [*row["prompt_ids"], *row["completion_ids"]]
        rest = width - len(full)
        ids.append([*full, *[0] * rest])
        labels.append([*[-100] * len(row["prompt_ids"]), *row["completion_ids"], *[-100] * rest])
        mask.append([1] * len(full) + [0] * rest)
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "attention_mask": torch.tensor(mask)}
