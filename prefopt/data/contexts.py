"""Edits of a conversation that is to be answered: what a teacher reads, what its student reads, or a whole data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prefopt.data.formats import Item
from prefopt.errors import DataError
from prefopt.recipe.distill import SLOT, ContextEdit
from prefopt.records import Message, Prompt


def edited(prompt: Prompt, edits: Sequence[ContextEdit]) -> Prompt:
    """A prompt after edits, in their order.

    A system turn that is not there counts as empty: text can be put there, and what is dropped or left empty is gone.
    `prepend` and `append` put a blank line between the two texts.

    Args:
        prompt: Ends with the user's turn that is to be answered.
        edits: Of the system turn, of that turn, or of the turns between.

    Raises:
        DataError: When nothing is left of the turn that is to be answered.
    """
    for edit in edits:
        prompt = _one(prompt, edit)
    if not prompt[-1].content.strip():
        raise DataError("the edits of the context leave nothing of the turn that is to be answered")
    return prompt


def in_context(item: Item, edits: Sequence[ContextEdit]) -> Item:
    """What a row of a data set holds, with its prompt edited.

    Args:
        item: Also a conversation, whose last turn may be an answer.
        edits: Of the data set.

    Raises:
        DataError: For a text without a prompt.
    """
    if not edits:
        return item
    if isinstance(item, str):
        raise DataError("a text without a prompt has no context that could be edited", "delete 'context'")
    if not isinstance(item, tuple):
        return replace(item, prompt=edited(item.prompt, edits))
    asked = len(item) - (len(item) > 1 and item[-1].role == "assistant")
    return (*edited(item[:asked], edits), *item[asked:])


def _one(prompt: Prompt, edit: ContextEdit) -> Prompt:
    system, history, last = _parts(prompt)
    if edit.role == "history":
        return (*_turn(system), last)
    if edit.role == "system":
        return (*_turn(_changed(system, edit)), *history, last)
    return (*_turn(system), *history, Message(last.role, _changed(last.content, edit)))


def _parts(prompt: Prompt) -> tuple[str, Prompt, Message]:
    """Text of the system turn, the turns between, and the turn that is to be answered."""
    system = prompt[0].content if prompt[0].role == "system" else ""
    return system, prompt[int(prompt[0].role == "system") : -1], prompt[-1]


def _turn(system: str) -> Prompt:
    return (Message("system", system),) if system.strip() else ()


def _changed(content: str, edit: ContextEdit) -> str:
    text = edit.text or ""
    if edit.do == "prepend":
        return f"{text}\n\n{content}" if content else text
    if edit.do == "append":
        return f"{content}\n\n{text}" if content else text
    if edit.do == "template":
        return text.replace(SLOT, content)
    if edit.do == "shorten":
        return " ".join(content.split()[: edit.words])
    return text  # 'replace'; 'drop' has none
