"""Pairs to token ids, a thousand at a time: the same ids and counts as `Encoder.encode_pair` gives one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2

from prefopt.data.pieces import Pieces, id_bytes, id_list
from prefopt.data.sampled import is_cut
from prefopt.data.skeletons import Skeletons
from prefopt.data.templates import Encoder
from prefopt.records import Message, PreferencePair, Prompt

ID_BYTES = 4


class PairIds(NamedTuple):
    """As `EncodedPair`, packed as 32-bit numbers."""

    prompt: bytes
    chosen: bytes
    rejected: bytes


class Encoded(NamedTuple):
    """What became of a pair.

    Attributes:
        ids: None where it is left out.
        counts: What it adds to `Encoder.counts` beside one row; None for nothing.
    """

    ids: PairIds | None
    counts: dict[str, int] | None


class PairEncoder(Encoder):
    """`Encoder` for many pairs: templates and tokenizer are asked once for what comes again.

    A pair that needs more than rendering and tokenising (a template that refuses it, ids that do not begin with the
    prompt's, no EOS, an answer that was cut and whose ids cannot be used) goes the way of single pairs.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pieces_of = Pieces(self._tokenizer)
        self._skeletons = Skeletons(
            self._tokenizer.chat_template, lambda messages, generate: self._render(messages, generate=generate)
        )
        self._eos_bytes = id_bytes([self._eos])
        self._bos_bytes = b"" if self._bos is None else id_bytes([self._bos])
        # Most texts have no character that a special token begins with.
        self._control_starts = tuple({token[0] for token in self.control_tokens})

    def encode_pairs(self, pairs: Sequence[PreferencePair]) -> list[Encoded]:
        """Encodes pairs in order; `counts` of this encoder count only those that were encoded one by one.

        Raises:
            DataError: As `encode_pair`.
        """
        found: list[Encoded | None] = [None] * len(pairs)
        plain: list[tuple[int, Prompt, int, list[bytes]]] = []
        texts: list[str] = []
        for index, pair in enumerate(pairs):
            sampled = self._sampled(pair)
            texts_of = () if sampled else (pair.chosen, pair.rejected)
            prompt, answers, neutralised = self._without_control(pair.prompt, texts_of)
            rendered = None if sampled is None else self._rendered(prompt, answers)
            if sampled is None or rendered is None:
                found[index] = self._alone(pair)
            else:
                plain.append((index, prompt, neutralised, sampled))
                texts += rendered
        ids = iter(map(self._with_bos, self._pieces_of.ids(texts)))
        for index, prompt, neutralised, sampled in plain:
            asked = next(ids)
            parts = PairIds(asked, *sampled) if sampled else self._parts(asked, next(ids), next(ids))
            if parts is None:
                found[index] = self._alone(pairs[index])
            else:
                found[index] = self._fitted(prompt, parts, neutralised)
        return [one for one in found if one is not None]

    def _sampled(self, pair: PreferencePair) -> list[bytes] | None:
        """The ids of both answers that a policy sampled; none of whole answers as texts; None for what needs a look."""
        own, sides = self._as_sampled, (pair.sampled_chosen, pair.sampled_rejected)
        if own is None or sides == (None, None):
            return []
        answers = [*zip((pair.chosen, pair.rejected), sides, strict=True)]
        found = [ids for text, how in answers if (ids := own.ids(pair.prompt, text, how)) is not None]
        if len(found) == 2 or not (found or any(is_cut(text, how) for text, how in answers)):
            return [*map(id_bytes, found)]
        return None

    def _without_control(self, prompt: Prompt, answers: Sequence[str]) -> tuple[Prompt, Sequence[str], int]:
        """Prompt and answers with special tokens taken apart, and how many there were."""
        starts, texts = self._control_starts, [message.content for message in prompt]
        if not any([start in text for text in (*texts, *answers) for start in starts]):
            return prompt, answers, 0
        before = self.counts["neutralised"]
        said = self._neutralise((*prompt, *(Message("assistant", answer) for answer in answers)))
        neutralised = self.counts["neutralised"] - before
        self.counts["neutralised"] = before
        return said[: len(prompt)], [message.content for message in said[len(prompt) :]], neutralised

    def _rendered(self, prompt: Prompt, answers: Sequence[str]) -> list[str] | None:
        """The prompt, and the prompt with each answer; None where the template refuses one."""
        answered = [(*prompt, Message("assistant", answer)) for answer in answers]
        try:
            return [self._text(prompt, True), *[self._text(each, False) for each in answered]]
        except jinja2.TemplateError:
            return None

    def _text(self, messages: Prompt, generate: bool) -> str:
        text = self._skeletons.render(messages, generate=generate)
        return self._render(messages, generate=generate) if text is None else text

    def _with_bos(self, ids: bytes) -> bytes:
        """As `Encoder._ids` does."""
        bos = self._bos_bytes
        if not bos:
            return ids
        bare = ids
        while bare.startswith(bos):
            bare = bare[ID_BYTES:]
        return bos + bare if self._adds_bos or len(bare) < len(ids) else bare

    def _parts(self, prompt: bytes, chosen: bytes, rejected: bytes) -> PairIds | None:
        """Prompt and completions; None where whole conversations do not begin with the prompt, or have no EOS after."""
        if not (chosen.startswith(prompt) and rejected.startswith(prompt)):
            return None
        first, second = self._until_eos(chosen[len(prompt) :]), self._until_eos(rejected[len(prompt) :])
        return None if first is None or second is None else PairIds(prompt, first, second)

    def _until_eos(self, ids: bytes) -> bytes | None:
        place = ids.find(self._eos_bytes)
        while place % ID_BYTES:  # -1 as well
            if place < 0:
                return None
            place = ids.find(self._eos_bytes, place + 1)
        return ids[: place + ID_BYTES]

    def _fitted(self, prompt: Prompt, ids: PairIds, neutralised: int) -> Encoded:
        counts = {"neutralised": neutralised} if neutralised else None
        room = self._max_length - max(len(ids.chosen), len(ids.rejected)) // ID_BYTES
        if len(ids.prompt) <= room * ID_BYTES:
            return Encoded(ids, counts)
        before = self.counts.copy()
        try:
            fitted = self._fit(prompt, id_list(ids.prompt), room)
        except jinja2.TemplateError as error:  # the prompt without its oldest turns
            self._refuse(error)
            fitted = None
        more = dict(self.counts - before)
        self.counts = before
        return Encoded(None if fitted is None else ids._replace(prompt=id_bytes(fitted)), {**more, **(counts or {})})

    def _alone(self, pair: PreferencePair) -> Encoded:
        before = self.counts.copy()
        ids = self.encode_pair(pair)
        more = dict(self.counts - before)
        self.counts = before
        more.pop("rows")
        return Encoded(None if ids is None else PairIds(*map(id_bytes, ids)), more or None)
