"""Chat templates by name, and the encoder that turns records into token ids with the boundaries where they belong.

What holds for every encoded row: BOS stands once, at the start, where the tokenizer or the template puts it at all; a
completion ends in EOS, its only one, unless a policy wrote it and was cut; prompt and completion are tokenised
together, so that training sees the ids that generation will see, or the completion has the ids that were sampled;
nothing a user wrote becomes a control token; completions are never cut.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import jinja2
import jinja2.sandbox

from prefopt.data.control import control_pattern, control_tokens, taken_apart
from prefopt.data.sampled import AsSampled, is_cut
from prefopt.errors import DataError
from prefopt.records import Demonstration, Message, PreferencePair, Prompt, SampledTokens, conversation

BUILT_IN: dict[str, str] = {
    # The turns of Anthropic's HH data. No space after the last marker: it belongs to the answer's first token.
    "transcript": (
        "{%- for message in messages -%}"
        "{%- if message.role == 'system' -%}{{ message.content | trim }}"
        "{%- elif message.role == 'user' -%}{{ '\\n\\nHuman: ' + message.content | trim }}"
        "{%- else -%}{{ '\\n\\nAssistant: ' + message.content | trim }}"
        "{%- if loop.last and not add_generation_prompt -%}{{ eos_token }}{%- endif -%}"
        "{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '\\n\\nAssistant:' }}{%- endif -%}"
    ),
    "chatml": (
        "{%- for message in messages -%}"
        "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' }}"
        "{%- if not loop.last or add_generation_prompt -%}{{ '\\n' }}"
        "{%- elif eos_token != '<|im_end|>' -%}{{ eos_token }}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
    ),
    # For base models that continue a text: the answer follows the prompt with nothing between.
    "plain": (
        "{%- for message in messages -%}"
        "{%- set answers = loop.last and message.role == 'assistant' and not add_generation_prompt -%}"
        "{%- if not loop.first and not answers -%}{{ '\\n' }}{%- endif -%}"
        "{{ message.content }}{%- if answers -%}{{ eos_token }}{%- endif -%}"
        "{%- endfor -%}"
    ),
}
FALLBACK = "transcript"


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    chat_template: Any
    bos_token_id: int | None
    eos_token_id: int | None
    eos_token: str | None
    all_special_tokens: Sequence[str]

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Added tokens by id, each with `content` and `special`."""
        ...

    def __call__(self, text: str | list[str], *, add_special_tokens: bool, verbose: bool) -> Mapping[str, Any]:
        """Tokenises; `input_ids` holds the ids, of each text where there are several."""
        ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: Literal[False], add_generation_prompt: bool
    ) -> str:
        """Renders a conversation."""
        ...


def ensure_chat_template(tokenizer: Tokenizer, name: str) -> str:
    """Gives the tokenizer a chat template and says which.

    Args:
        tokenizer: Its `chat_template` is set, unless it keeps its own.
        name: `auto` keeps the tokenizer's own and falls back to `transcript`; a built-in name; or a path.

    Returns:
        `tokenizer` for its own template, else the built-in name or the path.

    Raises:
        DataError: If the name is no template, or the file is no Jinja template.
    """
    if name == "auto":
        if tokenizer.chat_template:
            return "tokenizer"
        name = FALLBACK
    if name in BUILT_IN:
        tokenizer.chat_template = BUILT_IN[name]
        return name
    path = Path(name).expanduser()
    if not path.is_file():
        raise DataError(
            f"chat_template '{name}' is neither built in nor a file",
            f"one of: auto, {', '.join(BUILT_IN)}, a .jinja file",
        )
    try:
        text = path.read_text(encoding="utf-8")
        jinja2.sandbox.ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"{path}, line {error.lineno}: not a Jinja template ({error.message})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a template ({error})") from error
    tokenizer.chat_template = text
    return str(path)


class EncodedDemonstration(NamedTuple):
    """Token ids; `completion_ids` ends in EOS, or where a policy was cut."""

    prompt_ids: list[int]
    completion_ids: list[int]


class EncodedPair(NamedTuple):
    """Token ids; both completions follow the same prompt and end in EOS, or where a policy was cut."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


class Encoder:
    """Records to token ids, counting what was changed or left out.

    Args:
        tokenizer: With a chat template; see `ensure_chat_template`.
        max_length: Most tokens of prompt and completion together.
        overlong: `trim_prompt` drops the oldest turns, then cuts the prompt from the left; `drop` leaves the row out.
        as_sampled: Completions that a policy sampled are to be the tokens that it sampled; None where all are whole
            answers, tokenised and ended alike, as reward models read them.

    Attributes:
        counts: `rows`, `trimmed_prompts`, `dropped_too_long`, `refused_by_template`, `boundary_mismatch` (completions
            tokenised on their own because the joint ids do not begin with the prompt's), `neutralised` (special tokens
            in the text of users, taken apart by a space).
        refusal: What the chat template last said when it refused a conversation; empty when it refused none.
        control_tokens: Texts that are taken apart in what people wrote, longest first.

    Raises:
        DataError: If the tokenizer has no EOS token or no chat template.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_length: int,
        overlong: Literal["trim_prompt", "drop"] = "trim_prompt",
        as_sampled: AsSampled | None = None,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no EOS token, so no answer could end", "set eos_token in its config")
        if not tokenizer.chat_template:
            raise DataError("the tokenizer has no chat template", "set model.chat_template, e.g. to 'transcript'")
        self.counts: Counter[str] = Counter()
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._overlong = overlong
        self._as_sampled = as_sampled
        self._eos: int = tokenizer.eos_token_id
        self.control_tokens = control_tokens(tokenizer)
        self._control = control_pattern(self.control_tokens)
        self.refusal = ""
        self._bos = tokenizer.bos_token_id
        alone = list(tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"])
        self._adds_bos = self._bos is not None and alone[:1] == [self._bos]

    def encode_demonstration(self, demonstration: Demonstration) -> EncodedDemonstration | None:
        """Encodes a demonstration; None when it is left out."""
        return self.encode_answer(demonstration.prompt, demonstration.completion, demonstration.sampled)

    def encode_answer(
        self, prompt: Prompt, completion: str, sampled: SampledTokens | None = None
    ) -> EncodedDemonstration | None:
        """Encodes whatever a policy answered, nothing at all included; None when it is left out."""
        found = self._encode(prompt, (completion,), (sampled,))
        return None if found is None else EncodedDemonstration(found[0], found[1][0])

    def encode_pair(self, pair: PreferencePair) -> EncodedPair | None:
        """Encodes a pair; None when it is left out. The prompt is trimmed for the longer completion."""
        found = self._encode(pair.prompt, (pair.chosen, pair.rejected), (pair.sampled_chosen, pair.sampled_rejected))
        return None if found is None else EncodedPair(found[0], *found[1])

    def encode_prompt(self, prompt: Prompt, reserve: int) -> list[int] | None:
        """Encodes a prompt to be answered, leaving room for `reserve` new tokens; None when it is left out.

        Raises:
            DataError: If `reserve` leaves no room for a prompt.
        """
        room = self._max_length - reserve
        if room < self._least_room:
            raise DataError(
                f"max_length {self._max_length} leaves no room for a prompt beside {reserve} new tokens",
                "raise max_length or lower max_new_tokens",
            )
        self.counts["rows"] += 1
        try:
            messages = self._neutralise(prompt)
            return self._fit(messages, self._ids(self._render(messages, generate=True)), room)
        except jinja2.TemplateError as error:
            self._refuse(error)
            return None

    def encode_text(self, text: str | Sequence[Message]) -> list[int]:
        """Encodes a whole text or conversation, for language modelling: BOS where it is due, and EOS at the end.

        Raises:
            DataError: If the chat template refuses the conversation.
        """
        if isinstance(text, str):
            ids = self._without_bos(self._pieces(self._neutralise((Message("user", text),))[0].content))
            return [*([self._bos] if self._adds_bos and self._bos is not None else []), *ids, self._eos]
        try:
            # What a template writes after EOS, such as a line break, belongs to no turn.
            ids = self._ids(self._render(self._neutralise(text), generate=False).rstrip())
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template refuses a conversation ({error})", "set model.chat_template") from error
        return ids if ids[-1:] == [self._eos] else [*ids, self._eos]

    def check_drop_share(self, max_dropped: float) -> None:
        """Refuses to go on when too many rows were left out.

        Args:
            max_dropped: Largest share of rows, from 0 to 1, that may be left out.

        Raises:
            DataError: With the counts.
        """
        check_drop_share(self.counts, self._max_length, self.refusal, max_dropped)

    # ---- from records to ids -----------------------------------------------------------------------------------------

    @property
    def _least_room(self) -> int:
        return 1 if self._bos is None else 2

    def _encode(
        self, prompt: Prompt, completions: Sequence[str], sampled: Sequence[SampledTokens | None]
    ) -> tuple[list[int], list[list[int]]] | None:
        self.counts["rows"] += 1
        own, encoded = self._as_sampled, list[list[int]]()
        try:
            messages = self._neutralise(prompt)
            text = self._render(messages, generate=True)
            prompt_ids = self._ids(text)
            for completion, how in zip(completions, sampled, strict=True):
                ids = None if own is None else own.ids(prompt, completion, how)
                if ids is None:
                    write = self._cut_completion if own is not None and is_cut(completion, how) else self._completion
                    (answer,) = self._neutralise((Message("assistant", completion),))
                    ids = write(messages, text, prompt_ids, answer)
                encoded.append(ids)
            fitted = self._fit(messages, prompt_ids, self._max_length - max(map(len, encoded)))
        except jinja2.TemplateError as error:
            self._refuse(error)
            return None
        return None if fitted is None else (fitted, encoded)

    def _refuse(self, error: jinja2.TemplateError) -> None:
        self.refusal = str(error)
        self.counts["refused_by_template"] += 1

    def _neutralise(self, messages: Sequence[Message]) -> Prompt:
        """Takes special tokens in what people wrote apart, so that they stay text."""
        found: list[Message] = []
        for message in messages:
            text, replaced = taken_apart(message.content, self._control)
            self.counts["neutralised"] += replaced
            found.append(Message(message.role, text) if replaced else message)
        return tuple(found)

    def _render(self, messages: Sequence[Message], *, generate: bool) -> str:
        return self._tokenizer.apply_chat_template(
            conversation(messages), tokenize=False, add_generation_prompt=generate
        )

    def _pieces(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _ids(self, rendered: str) -> list[int]:
        """Ids of a rendered conversation, BOS once where the tokenizer or the template has one."""
        ids = self._pieces(rendered)
        bare = self._without_bos(ids)
        has_bos = self._adds_bos or len(bare) < len(ids)
        return [self._bos, *bare] if has_bos and self._bos is not None else bare

    def _without_bos(self, ids: list[int]) -> list[int]:
        start = 0
        while start < len(ids) and ids[start] == self._bos:
            start += 1
        return ids[start:]

    def _completion(self, messages: Prompt, prompt_text: str, prompt_ids: list[int], answer: Message) -> list[int]:
        """Ids of the answer after the prompt, EOS included and nothing after it."""
        whole_text = self._render((*messages, answer), generate=False)
        whole = self._ids(whole_text)
        if whole[: len(prompt_ids)] == prompt_ids:
            ids = whole[len(prompt_ids) :]
        else:
            self.counts["boundary_mismatch"] += 1
            if whole_text.startswith(prompt_text):
                ids = self._continuation(whole_text.removeprefix(prompt_text))
            else:  # the template writes the answered turn otherwise than the one to be answered
                ids = self._continuation(answer.content) + [self._eos] * (self._eos in whole)
        if self._eos not in ids:
            raise DataError(
                f"the chat template ends no answer with the tokenizer's EOS ({self._tokenizer.eos_token!r}), so"
                " the model would never learn to stop",
                "write {{ eos_token }} after the assistant's turn, set the tokenizer's eos_token to the token that ends"
                " a turn, or use chat_template: transcript",
            )
        return ids[: ids.index(self._eos) + 1]

    def _cut_completion(self, messages: Prompt, prompt_text: str, prompt_ids: list[int], answer: Message) -> list[int]:
        """Ids of an answer that its policy did not end, and of nothing that the template writes after it."""
        whole_text, said = self._render((*messages, answer), generate=False), answer.content.strip()
        start = whole_text.find(said, len(prompt_text)) if whole_text.startswith(prompt_text) else -1
        if start < 0:
            return self._continuation(answer.content)
        whole_text = whole_text[: start + len(said)]
        whole = self._ids(whole_text)
        if whole[: len(prompt_ids)] == prompt_ids:
            return whole[len(prompt_ids) :]
        self.counts["boundary_mismatch"] += 1
        return self._continuation(whole_text.removeprefix(prompt_text))

    def _continuation(self, text: str) -> list[int]:
        """Ids of a text as inside a longer one: SentencePiece puts a space piece before a text on its own."""
        for anchor in ("\n", ":", "a"):
            before, joint = self._pieces(anchor), self._pieces(anchor + text)
            if joint[: len(before)] == before:
                return joint[len(before) :]
        return self._pieces(text)

    def _fit(self, messages: Prompt, prompt_ids: list[int], room: int) -> list[int] | None:
        """The prompt's ids in at most `room` tokens, or None when the row is left out."""
        if len(prompt_ids) <= room:
            return prompt_ids
        if self._overlong == "drop" or room < self._least_room:
            self.counts["dropped_too_long"] += 1
            return None
        self.counts["trimmed_prompts"] += 1
        system = messages[:1] if messages[0].role == "system" else ()
        body = messages[len(system) :]
        # Only a user's turn can come first: many templates refuse a conversation that begins with an answer.
        starts = [index for index, message in enumerate(body) if index and message.role == "user"]

        def tail_ids(start: int) -> list[int]:
            return self._ids(self._render((*system, *body[start:]), generate=True))

        ids = prompt_ids
        if starts:
            fits = bisect_left(starts, True, key=lambda start: len(tail_ids(start)) <= room)
            ids = tail_ids(starts[min(fits, len(starts) - 1)])
        if len(ids) <= room:
            return ids
        bos = ids[:1] if ids[0] == self._bos else []
        return bos + ids[len(ids) - room + len(bos) :]


def check_drop_share(counts: Mapping[str, int], max_length: int, refusal: str, max_dropped: float) -> None:
    """Refuses to go on when too many rows were left out; see `Encoder.check_drop_share`.

    Args:
        counts: Those of an encoder.
        max_length: Its limit.
        refusal: What the chat template said.
        max_dropped: Largest share of rows that may be left out.

    Raises:
        DataError: With the counts.
    """
    rows, long, refused = (counts.get(name, 0) for name in ("rows", "dropped_too_long", "refused_by_template"))
    dropped = long + refused
    if rows and dropped / rows > max_dropped:
        said = f", {refused} refused by the chat template ({refusal})" if refusal else ""
        raise DataError(
            f"{dropped} of {rows} rows ({dropped / rows:.1%}, allowed {max_dropped:.1%}) cannot be used:"
            f" {long} longer than max_length {max_length}{said}",
            "raise max_length, set overlong: trim_prompt, choose another chat_template, or raise max_dropped",
        )
