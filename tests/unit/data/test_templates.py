from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from prefopt.data.load import load_pairs
from prefopt.data.templates import BUILT_IN, EncodedPair, Encoder, ensure_chat_template
from prefopt.errors import DataError
from prefopt.recipe.schema import DataSpec
from prefopt.records import Demonstration, Message, PreferencePair, Prompt

WORDS = (
    "once upon a time the quick brown fox said yes and no to Human Assistant system user assistant. Hello! How are you?"
)
MODELS = ("stories260k-hf", "babyllama105-hf")


@cache
def trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 5, trainer)
    return tokenizer.to_str()


def byte_level(**special: str | None) -> PreTrainedTokenizerFast:
    """A small byte-level BPE without BOS, as GPT-2 and Qwen have it."""
    names = {"eos_token": "<|endoftext|>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(trained()), **names)


def sentence_piece(models_folder: Path, name: str) -> Any:
    return AutoTokenizer.from_pretrained(models_folder / name)


def encoder(template: str = "transcript", length: int = 256, tokenizer: Any = None, **options: Any) -> Encoder:
    tokenizer = tokenizer or byte_level()
    ensure_chat_template(tokenizer, template)
    return Encoder(tokenizer, length, **options)


def ask(*contents: str, system: str = "") -> Prompt:
    turns = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(contents))  # type: ignore[arg-type]
    return ((Message("system", system),) if system else ()) + turns


PAIR = PreferencePair(ask("How are you?", "yes", "And you?", system="Be quick."), "no, fox", "the time. once")
TEXTS = {
    "transcript": (
        "Be quick.\n\nHuman: How are you?\n\nAssistant: yes\n\nHuman: And you?\n\nAssistant:", " no, fox<|endoftext|>",
    ),
    "chatml": (
        "<|im_start|>system\nBe quick.<|im_end|>\n<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\nyes"
        "<|im_end|>\n<|im_start|>user\nAnd you?<|im_end|>\n<|im_start|>assistant\n", "no, fox<|im_end|><|endoftext|>",
    ),
    "plain": ("Be quick.\nHow are you?\nyes\nAnd you?", "no, fox<|endoftext|>"),
}  # fmt: skip


@pytest.mark.parametrize("template", BUILT_IN)
def test_what_a_built_in_template_writes(template):
    tokenizer = byte_level()
    encoded = encoder(template, tokenizer=tokenizer).encode_pair(PAIR)
    assert encoded is not None
    assert (tokenizer.decode(encoded.prompt_ids), tokenizer.decode(encoded.chosen_ids)) == TEXTS[template]


def test_chatml_ends_once_where_its_own_token_is_the_eos():
    tokenizer = byte_level(eos_token="<|im_end|>")
    encoded = encoder("chatml", tokenizer=tokenizer).encode_pair(PAIR)
    assert tokenizer.decode(encoded.chosen_ids) == "no, fox<|im_end|>"


class TestEnsureChatTemplate:
    def test_auto_keeps_the_tokenizer_s_own_and_falls_back_to_transcript(self):
        tokenizer = byte_level()
        assert ensure_chat_template(tokenizer, "auto") == "transcript"
        assert tokenizer.chat_template == BUILT_IN["transcript"]
        tokenizer.chat_template = "own {{ eos_token }}"
        assert ensure_chat_template(tokenizer, "auto") == "tokenizer"
        assert tokenizer.chat_template == "own {{ eos_token }}"
        assert ensure_chat_template(tokenizer, "plain") == "plain"

    def test_a_file(self, tmp_path):
        path = tmp_path / "mine.jinja"
        path.write_text("{{ messages[-1].content }}{{ eos_token }}")
        tokenizer = byte_level()
        assert ensure_chat_template(tokenizer, str(path)) == str(path)
        assert tokenizer.chat_template == path.read_text()

    def test_a_broken_file_and_an_unknown_name_are_errors(self, tmp_path):
        (tmp_path / "bad.jinja").write_text("a\n{% for %}")
        with pytest.raises(DataError, match=r"bad.jinja, line 2: not a Jinja template"):
            ensure_chat_template(byte_level(), str(tmp_path / "bad.jinja"))
        with pytest.raises(DataError, match=r"'vicuna' is neither built in nor a file.*auto, transcript, chatml"):
            ensure_chat_template(byte_level(), "vicuna")


def check_ids(encoded: EncodedPair, tokenizer: Any) -> None:
    """BOS once and first where there is one; each completion ends in EOS, its only one; no other control token."""
    bos, eos, unk = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id
    control = set(tokenizer.all_special_ids) - {unk}
    if bos is not None:
        assert encoded.prompt_ids[0] == bos and encoded.prompt_ids.count(bos) == 1
    assert not control & set(encoded.prompt_ids[bos is not None :])
    for completion in encoded[1:]:
        assert completion[-1] == eos and len(completion) > 1
        assert not control & set(completion[:-1])


said = (
    st.lists(
        st.sampled_from(["</s>", "<s>", "<unk>", "<|endoftext|>", "<|im_end|>", "<", "/s>", " ", "\n", "a", "é"]),
        max_size=8,
    )
    .map("".join)
    .filter(str.strip)
)


@settings(deadline=None, max_examples=60)
@given(st.lists(said, min_size=1, max_size=3), said, said)
@pytest.mark.parametrize("template", ["transcript", "plain"])
def test_nothing_that_users_write_becomes_a_control_token(template, turns, chosen, rejected):
    tokenizer = byte_level()
    if chosen == rejected:
        rejected += "."
    encoded = encoder(template, 4096, tokenizer).encode_pair(PreferencePair(ask(*turns), chosen, rejected))
    check_ids(encoded, tokenizer)


def test_special_tokens_in_text_are_taken_apart_and_counted():
    tokenizer = byte_level()
    one = encoder("chatml", tokenizer=tokenizer)
    encoded = one.encode_demonstration(Demonstration(ask("<|im_end|>\n<|im_start|>system"), "a<|endoftext|>b"))
    assert one.counts["neutralised"] == 3
    assert tokenizer.decode(encoded.completion_ids) == "a< |endoftext|>b<|im_end|><|endoftext|>"
    assert tokenizer.decode(encoded.prompt_ids).count("<|im_start|>") == 2
    assert encoded.completion_ids.count(tokenizer.eos_token_id) == 1


@pytest.mark.shared
def test_markers_of_a_template_are_taken_apart_where_they_are_no_tokens_too(shared_models):
    one = encoder("chatml", tokenizer=sentence_piece(shared_models, "stories260k-hf"))
    one.encode_prompt(ask("a<|im_start|>system"), 8)
    assert one.counts["neutralised"] == 1


class TestEnd:
    def test_a_template_without_eos_is_an_error_with_a_fix(self):
        tokenizer = byte_level()
        tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        with pytest.raises(DataError, match=r"never learn to stop.*\{\{ eos_token \}\}.*transcript") as caught:
            Encoder(tokenizer, 64).encode_pair(PAIR)
        assert caught.value.exit_code == 2

    def test_what_a_template_writes_after_eos_is_left_out(self):
        tokenizer = byte_level()
        tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}\n\n{% endfor %}"
        encoded = Encoder(tokenizer, 64).encode_demonstration(Demonstration(ask("Hi"), "yes"))
        assert tokenizer.decode(encoded.completion_ids) == "yes<|endoftext|>"

    def test_no_eos_token_and_no_template_are_errors(self):
        with pytest.raises(DataError, match="no EOS token"):
            encoder(tokenizer=byte_level(eos_token=None))
        with pytest.raises(DataError, match="no chat template"):
            Encoder(byte_level(), 64)

    @pytest.mark.parametrize("pad", [None, "<|endoftext|>"])
    def test_no_pad_token_or_the_eos_as_pad_make_no_difference(self, pad):
        assert encoder(tokenizer=byte_level(pad_token=pad)).encode_pair(PAIR) == encoder().encode_pair(PAIR)


class TestBoundary:
    def test_tokens_that_merge_over_the_boundary_fall_back_and_are_counted(self):
        tokenizer = byte_level()
        one = encoder("plain", tokenizer=tokenizer)
        encoded = one.encode_demonstration(Demonstration(ask("the qui"), "ck brown"))
        assert one.counts["boundary_mismatch"] == 1
        assert tokenizer.decode(encoded.prompt_ids + encoded.completion_ids) == "the quick brown<|endoftext|>"

    def test_a_template_that_writes_answered_turns_otherwise(self):
        tokenizer = byte_level()
        tokenizer.chat_template = (
            "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}assistant:<think>{% endif %}"
        )
        one = Encoder(tokenizer, 64)
        encoded = one.encode_demonstration(Demonstration(ask("Hi"), "yes"))
        assert tokenizer.decode(encoded.completion_ids) == "yes<|endoftext|>"
        assert one.counts["boundary_mismatch"] == 1


LONG = ask(
    *(f"question {number} of the fox?" if number % 2 == 0 else "yes" for number in range(21)), system="Be quick."
)


class TestOverlong:
    def lengths(self, prompt: Prompt = LONG) -> int:
        return len(encoder(length=10_000).encode_prompt(prompt, 0))

    def test_the_oldest_turns_go_first_and_system_and_last_question_stay(self):
        tokenizer = byte_level()
        one = encoder(length=self.lengths() - 1, tokenizer=tokenizer)
        text = tokenizer.decode(one.encode_prompt(LONG, 0))
        assert text.startswith("Be quick.\n\nHuman: question 2 of") and text.endswith(
            "question 20 of the fox?\n\nAssistant:"
        )
        assert one.counts == {"rows": 1, "trimmed_prompts": 1, "neutralised": 0}

    @pytest.mark.parametrize("length", [40, 60, 100, 150, 200])
    def test_as_many_turns_as_fit_are_kept(self, length):
        tokenizer = byte_level()
        ids = encoder(length=length, tokenizer=tokenizer).encode_prompt(LONG, 0)
        kept = tokenizer.decode(ids).count("Human:")
        more = (*LONG[:1], *LONG[len(LONG) - 2 * kept - 1 :])
        assert len(ids) <= length < self.lengths(more)

    def test_a_single_long_question_is_cut_from_the_left(self):
        tokenizer = byte_level()
        question = ask("the quick brown fox " * 50 + "said no")
        one = encoder(length=30, tokenizer=tokenizer)
        encoded = one.encode_demonstration(Demonstration(question, "yes"))
        assert len(encoded.prompt_ids) + len(encoded.completion_ids) == 30
        assert tokenizer.decode(encoded.prompt_ids).endswith("said no\n\nAssistant:")
        assert one.counts["trimmed_prompts"] == 1

    def test_completions_are_never_cut_and_the_prompt_makes_room_for_the_longer(self):
        pair = PreferencePair(LONG, "yes", "the quick brown fox " * 5)
        full = encoder(length=10_000).encode_pair(pair)
        one = encoder(length=len(full.rejected_ids) + 30)
        encoded = one.encode_pair(pair)
        assert encoded[1:] == full[1:]
        assert 0 < len(encoded.prompt_ids) <= 30

    def test_a_completion_that_fills_the_length_alone_is_dropped(self):
        pair = PreferencePair(ask("Hi"), "yes", "the quick brown fox " * 20)
        one = encoder(length=40)
        assert one.encode_pair(pair) is None
        assert one.counts["dropped_too_long"] == 1 and one.counts["trimmed_prompts"] == 0

    def test_drop_drops_and_short_rows_pass(self):
        one = encoder(length=60, overlong="drop")
        assert one.encode_prompt(LONG, 10) is None
        assert one.encode_prompt(ask("Hi"), 10) is not None
        assert (one.counts["rows"], one.counts["dropped_too_long"]) == (2, 1)

    def test_no_room_beside_the_new_tokens_is_an_error(self):
        with pytest.raises(DataError, match="max_length 64 leaves no room for a prompt beside 64 new tokens"):
            encoder(length=64).encode_prompt(ask("Hi"), 64)

    def test_twenty_thousand_turns_are_trimmed_without_trying_each(self):
        turns = ask(*("yes" for _ in range(20_001)))
        assert len(encoder(length=64).encode_prompt(turns, 0)) <= 64


class TestDropShare:
    def test_above_the_threshold_it_refuses_with_counts(self):
        one = encoder(length=40)
        for text in ["yes", "the quick brown fox " * 20, "no"]:
            one.encode_demonstration(Demonstration(ask("Hi"), text))
        one.check_drop_share(0.34)
        with pytest.raises(
            DataError, match=r"1 of 3 rows \(33.3%, allowed 5.0%\) .* 1 longer than max_length 40 "
        ) as caught:
            one.check_drop_share(0.05)
        assert caught.value.exit_code == 2

    def test_nothing_encoded_is_nothing_dropped(self):
        assert encoder().check_drop_share(0.0) is None

    def test_rows_that_the_template_refuses_are_counted_with_its_message(self):
        tokenizer = byte_level()
        tokenizer.chat_template = (
            "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
            "{{ messages[-1].content }}{{ eos_token }}"
        )
        one = Encoder(tokenizer, 64)
        assert one.encode_pair(PAIR) is None and one.encode_prompt(PAIR.prompt, 1) is None
        assert one.counts["refused_by_template"] == 2
        with pytest.raises(DataError, match=r"2 refused by the chat template \(System role not supported\)"):
            one.check_drop_share(0.5)


class TestTexts:
    def test_texts_and_conversations_end_in_eos_once(self):
        tokenizer = byte_level()
        one = encoder("chatml", tokenizer=tokenizer)
        for text in ("once upon", ask("Hi", "yes"), ask("Hi")):
            ids = one.encode_text(text)
            assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1
        assert tokenizer.decode(one.encode_text("a</s><|endoftext|>")) == "a</s>< |endoftext|><|endoftext|>"


@pytest.fixture(scope="module")
def pairs(shared_data: Path) -> list[PreferencePair]:
    spec = DataSpec(path=str(shared_data / "hh-rlhf-harmless" / "test.jsonl.gz"), max_samples=150)
    return load_pairs(("hh",), {"hh": spec}, 17).train


@pytest.mark.shared
class TestRealTokenizers:
    @pytest.mark.parametrize("template", BUILT_IN)
    @pytest.mark.parametrize("name", MODELS)
    def test_hh_rows_keep_every_promise(self, shared_models, pairs, name, template):
        tokenizer = sentence_piece(shared_models, name)
        one = encoder(template, 512, tokenizer)
        encoded = [found for pair in pairs if (found := one.encode_pair(pair)) is not None]
        assert len(encoded) > 0.75 * len(pairs)
        assert one.counts["boundary_mismatch"] <= 1
        for found in encoded:
            check_ids(found, tokenizer)
            assert len(found.prompt_ids) + max(len(found.chosen_ids), len(found.rejected_ids)) <= 512

    @pytest.mark.parametrize("text", ["</s> yes", "a<s>b", "<unk>", "x</s>"])
    @pytest.mark.parametrize("name", MODELS)
    def test_control_tokens_in_text_stay_text(self, shared_models, name, text):
        tokenizer = sentence_piece(shared_models, name)
        one = encoder("transcript", 256, tokenizer)
        check_ids(one.encode_pair(PreferencePair(ask(f"ask {text}", text, "more?"), text, f"{text} no")), tokenizer)
        assert one.counts["neutralised"] == 4
        ids = one.encode_text(text)
        assert (ids[0], ids[-1]) == (1, 2) and not {1, 2} & set(ids[1:-1])

    def test_bos_stands_once_also_where_the_template_writes_it(self, shared_models):
        tokenizer = sentence_piece(shared_models, "stories260k-hf")
        tokenizer.chat_template = "{{ bos_token }}" + BUILT_IN["plain"]
        encoded = Encoder(tokenizer, 64).encode_demonstration(Demonstration(ask("Once upon"), " a time"))
        assert encoded.prompt_ids.count(1) == 1 and encoded.prompt_ids[0] == 1

    def test_the_ids_are_those_of_the_text_written_at_once(self, shared_models):
        tokenizer = sentence_piece(shared_models, "stories260k-hf")
        encoded = encoder("plain", 64, tokenizer).encode_demonstration(
            Demonstration(ask("Once upon a time"), ", there")
        )
        whole = tokenizer("Once upon a time, there")["input_ids"]
        assert encoded.prompt_ids + encoded.completion_ids == [*whole, tokenizer.eos_token_id]

    def test_a_completion_on_its_own_gets_no_space_piece(self, shared_models):
        tokenizer = sentence_piece(shared_models, "stories260k-hf")
        one = encoder("plain", 64, tokenizer)
        encoded = one.encode_demonstration(Demonstration(ask("Once upon a ti"), "me, there"))
        assert one.counts["boundary_mismatch"] == 1
        assert tokenizer.decode(encoded.prompt_ids + encoded.completion_ids[:-1], skip_special_tokens=True) == (
            "Once upon a time, there"
        )
