"""How well a pretrained model of the embedded world copies facts from its prompt.

usage: python tests/benchmarks/copying.py MODEL_DIR

MODEL_DIR is `model/` of a pretrain stage. Prints the share of facts in the assistant turns of unseen conversations
whose first token is the model's first guess, given everything before it. 4 % of the facts are not those of the prompt,
so a perfect copier reaches 0.96.
"""

from __future__ import annotations

import re
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from prefopt.data.toy import world
from prefopt.data.toy.lexicon import KIND_OF
from prefopt.records import Message

CONVERSATIONS, SEED = 200, 1_000_003  # no recipe uses this seed
FACT = re.compile(r"\b(?:" + "|".join(value for value, kind in KIND_OF.items() if kind != "code") + r")\b")
ANSWER = re.compile(r"<\|assistant\|>(.*?)<\|end\|>")


@torch.no_grad()
def copied(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, conversation: tuple[Message, ...]) -> list[bool]:
    """Whether each fact of the assistant's turns was the model's first guess."""
    turns = [{"role": message.role, "content": message.content} for message in conversation]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    facts = [found.start() for answer in ANSWER.finditer(text) for found in FACT.finditer(text, *answer.span(1))]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    guesses = model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
    places = [next(i for i, (start, end) in enumerate(spans) if start <= fact < end) for fact in facts]
    return [guesses[place - 1] == ids[place] for place in places]


def main() -> int:
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
    hits = [hit for c in world.corpus(CONVERSATIONS, SEED) for hit in copied(model, tokenizer, c)]
    print(f"{sum(hits) / len(hits):.2f} of {len(hits)} facts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
