"""One pass over the rows gives what `load_pairs` and `Encoder` give one by one: ids, order, counts and errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from prefopt.data import prepare
from prefopt.data.load import load_pairs
from prefopt.data.pair_encoder import PairEncoder
from prefopt.data.prepare import PAIR_IDS, prepare_pairs
from prefopt.data.templates import BUILT_IN, Encoder, ensure_chat_template
from prefopt.data.token_rows import Columns, TokenRows
from prefopt.errors import DataError, PrefoptError
from prefopt.recipe.schema import DataSpec
from tests.unit.data.test_templates import byte_level

COLUMNS = Columns(
    PAIR_IDS,
    ("weight", "probability", "margin", "score_chosen", "score_rejected"),
    ("source", "annotator"),
    ("axes",),
)
Sets = dict[str, DataSpec]


def one_by_one(names: tuple[str, ...], data: Sets, encoder: Encoder) -> tuple[list[dict[str, Any]], ...]:
    loaded = load_pairs(names, data, 17)
    rows = []
    for records in (loaded.train, loaded.eval):
        encoded = [(pair, encoder.encode_pair(pair)) for pair in records]
        further = (*COLUMNS.numbers, *COLUMNS.texts, *COLUMNS.documents)
        rows.append(
            [ids._asdict() | {n: getattr(pair, n) for n in further} for pair, ids in encoded if ids is not None]
        )
    return (*rows, [loaded.report.to_json(), dict(encoder.counts)])


def at_once(names: tuple[str, ...], data: Sets, encoder: PairEncoder, folder: Path) -> tuple[list[Any], ...]:
    found = prepare_pairs(names, data, 17, encoder, folder, COLUMNS)
    sets = (list(TokenRows.of_set(folder, name)) for name in ("train", "eval"))
    return (*sets, [found.data, found.counts])


def check(
    names: tuple[str, ...], data: Sets, folder: Path, tokenizer: Any = None, *limits: Any
) -> tuple[list[Any], ...]:
    tokenizer = tokenizer or templated("transcript")
    expected = one_by_one(names, data, Encoder(tokenizer, *limits or (256,)))
    found = at_once(names, data, PairEncoder(tokenizer, *limits or (256,)), folder)
    assert found == expected
    # What is counted is what the manifest says, so JSON must not see a difference either.
    assert json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)
    assert not (folder / "scratch").exists()
    return found


def templated(template: str, tokenizer: Any = None) -> Any:
    tokenizer = tokenizer or byte_level()
    ensure_chat_template(tokenizer, template)
    return tokenizer


def pair(number: int, chosen: str = "yes", rejected: str = "no", **more: object) -> dict[str, object]:
    return {"prompt": f"Question {number}?", "chosen": chosen, "rejected": rejected, **more}


@pytest.mark.shared
@pytest.mark.parametrize("name", ["", "stories260k-hf", "babyllama105-hf"])
@pytest.mark.parametrize(
    ("template", "limits"), [*((name, (512,)) for name in BUILT_IN), ("transcript", (300, "drop"))]
)
def test_hh(shared_data: Path, shared_models: Path, tmp_path: Path, name: str, template: str, limits: tuple[Any, ...]):
    tokenizer = AutoTokenizer.from_pretrained(shared_models / name) if name else byte_level()
    data = {"hh": DataSpec(path=str(shared_data / "hh-rlhf-harmless" / "test.jsonl.gz"), max_samples=700)}
    train, held_out, (account, counts) = check(("hh",), data, tmp_path, templated(template, tokenizer), *limits)
    assert len(train) > 100 and len(held_out) > 10 and counts["rows"] == account["kept_train"] + account["kept_eval"]
    assert counts["trimmed_prompts" if limits == (512,) else "dropped_too_long"] > 20


@pytest.mark.shared
def test_all_of_hh_beside_sets_that_share_its_prompts(shared_data: Path, tmp_path: Path):
    path = str(shared_data / "hh-rlhf-harmless" / "test.jsonl.gz")
    data = {
        "all": DataSpec(path=path, eval_fraction=0.2),
        "first": DataSpec(path=path, max_samples=500, eval_fraction=0, weight=0.5),
        "toy": DataSpec(path="toy", max_samples=300, eval_fraction=0.3),
        "demonstrations": DataSpec(path="toy", name="demonstrations", max_samples=50, eval_fraction=0.5),
    }
    _, _, (account, _) = check(("toy", "all", "first"), data, tmp_path / "three")
    assert account["dropped"]["exact_duplicate"] > 490
    _, held_out, (account, _) = check(("first",), data, tmp_path / "one")
    assert held_out == [] and account["dropped"]["prompt_held_out_by_another_data_set"] > 50


def test_the_toy_world(tmp_path):
    train, held_out, _ = check(("toy",), {"toy": DataSpec(path="toy", max_samples=1500, noise=0.2)}, tmp_path)
    assert len(train) > 1000 and len(held_out) > 50


def test_labels_ratings_annotators_and_contradictions(jsonl, tmp_path):
    rows = [pair(number, weight=0.5, probability=0.9, score_chosen=7, score_rejected=3.5) for number in range(60)]
    rows += [
        pair(1, "No", "yes ", id="swapped"),
        pair(2, annotator="x"),
        pair(2, annotator="y"),
        pair(2, annotator="y "),
    ]
    rows += [pair(3, "A", "B", probability=0.2), pair(3, "a", "b", annotator="z"), pair(3, "b", "a", probability=0.5)]
    rows += [
        pair(4, "é", "e\u0301"),
        pair(5, "x", "z", axes={"safe": 0.25}, margin=-1),
        pair(6, "x", "y", source="web"),
    ]
    rows += [pair(7, "Yes", "yes"), pair(8, "same", "same"), pair(9, " ")]
    train, _, (account, _) = check(("a",), {"a": DataSpec(path=jsonl(*rows), weight=3, eval_fraction=0)}, tmp_path)
    assert account["contradictory_ids"] == [["a/2", "swapped"], ["a/65", "a/66"]] and account["contradictions"] == 2
    assert account["dropped"] == {"chosen_equals_rejected": 1, "empty_completion": 1, "exact_duplicate": 1}
    assert train[0]["weight"] == 1.5 and train[0]["margin"] == 3.5 and train[60]["margin"] is None


def test_more_contradictions_than_are_listed(jsonl, tmp_path):
    rows = [pair(n, *sides, annotator=a) for n in range(20) for sides, a in ((("A", "B"), "x"), (("B", "A"), "y"))] * 2
    rows += [pair(n, "A", "B", annotator="z") for n in range(20)]
    _, _, (account, _) = check(("a",), {"a": DataSpec(path=jsonl(*rows), eval_fraction=0.4)}, tmp_path)
    assert account["contradictions"] == 40 and len(account["contradictory_ids"]) == 20


def test_special_tokens_in_user_text_are_taken_apart(jsonl, tmp_path):
    texts = ["<|endoftext|>", "a <|im_end|> b", "plain", "a < b", "x<|im_start|><|endoftext|>"]
    rows = [pair(n, text, f"other {text}") | {"prompt": f"{n} {text}"} for n, text in enumerate(texts)]
    tokenizer = templated("chatml")
    train, _, (_, counts) = check(("a",), {"a": DataSpec(path=jsonl(*rows), eval_fraction=0)}, tmp_path, tokenizer)
    assert counts["neutralised"] == 3 * 4
    eos = tokenizer.eos_token_id
    for row in train:
        assert eos not in row["prompt_ids"]
        assert all(row[name].count(eos) == 1 and row[name][-1] == eos for name in ("chosen_ids", "rejected_ids"))


def test_rows_that_are_counted_belong_to_a_set(jsonl, tmp_path):
    """A duplicate, or a prompt that another set holds out, is encoded before that is known, and not counted."""
    long = "the quick brown fox " * 40
    rows = [pair(n, "yes </s> <|endoftext|>", long if n % 3 else "no") for n in range(40)] * 2
    asked = ({"prompt": f"Question {n}?", "completion": "x"} for n in range(40))
    data = {
        "a": DataSpec(path=jsonl(*rows), eval_fraction=0),
        "b": DataSpec(path=jsonl(*asked, name="b.jsonl"), eval_fraction=0.4),
    }
    _, _, (account, counts) = check(("a",), data, tmp_path, None, 64)
    assert account["dropped"]["exact_duplicate"] == 40 and account["dropped"]["prompt_held_out_by_another_data_set"] > 5
    assert counts["rows"] == account["kept_train"] < 40 and counts["dropped_too_long"] > 10


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ messages[-1].content }}{{ eos_token }}",
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:<think>{% endif %}",
        "{% for m in messages %}{% if m.content|length > 12 %}{{ m.content|upper }}{% else %}{{ m.content }}{% endif %}"
        "{% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}",
        "{% for m in messages %}{{ m.content }} {% endfor %}"
        "{% if not add_generation_prompt %}{{ eos_token }}\n{% endif %}",
    ],
    ids=["refuses", "writes answers otherwise", "looks at contents", "ends in a space"],
)
def test_templates_that_need_to_be_asked(jsonl, tmp_path, template):
    turns = [{"role": "system", "content": "Be quick."}, {"role": "user", "content": "Hi"}]
    texts = ("yes", "once upon a time", " no", "1 2  3 ")
    rows = [
        {"prompt": turns[n % 2 :], "chosen": [{"role": "assistant", "content": f"{text} {n}"}],
         "rejected": [{"role": "assistant", "content": text}]}
        for n, text in enumerate(texts * 4)
    ]  # fmt: skip
    tokenizer = byte_level()
    tokenizer.chat_template = template
    check(("a",), {"a": DataSpec(path=jsonl(*rows), eval_fraction=0.5)}, tmp_path, tokenizer, 64)


def test_conversations_are_trimmed_turn_by_turn(jsonl, tmp_path):
    def turns(count: int) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[n % 2], "content": f"the quick fox {n}"} for n in range(count)]

    answers = {side: [{"role": "assistant", "content": f"{side} it is"}] for side in ("chosen", "rejected")}
    rows = [{"prompt": turns(count), **answers} for count in (1, 3, 5, 9, 15, 21, 31)]
    for number, limits in enumerate([(100,), (40,), (100, "drop")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        _, _, (_, counts) = check(("a",), {"a": DataSpec(path=jsonl(*rows))}, folder, None, *limits)
        assert counts["trimmed_prompts" if len(limits) == 1 else "dropped_too_long"] >= 3


lines = st.fixed_dictionaries(
    {
        "prompt": st.sampled_from(["Hi", "hi ", "Why?", "<|endoftext|>", "tell me more of the fox"]),
        "chosen": st.sampled_from(["yes", "YES ", "no", "the fox  is quick", "é"]),
        "rejected": st.sampled_from(["yes", "no", " ", "fox " * 30]),
    },
    optional={
        "annotator": st.sampled_from(["x", "y"]),
        "probability": st.sampled_from([0.0, 0.5, 0.7, 1.0]),
        "id": st.sampled_from(["a", "b", 3]),
    },
)


@settings(max_examples=60, deadline=None)
@given(first=st.lists(lines, min_size=1, max_size=25), second=st.lists(lines, min_size=1, max_size=8), data=st.data())
def test_any_rows(tmp_path_factory, first, second, data):
    folder = tmp_path_factory.mktemp("rows")
    sets = {}
    for name, rows in (("first", first), ("second", second)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        fraction = data.draw(st.sampled_from([0.0, 0.3, 0.9]))
        sets[name] = DataSpec(path=str(folder / f"{name}.jsonl"), eval_fraction=fraction)
    names = data.draw(st.sampled_from([("first",), ("first", "second"), ("second", "first")]))
    limits = data.draw(st.sampled_from([(64,), (12, "trim_prompt"), (24, "drop")]))
    (folder / "out").mkdir()
    try:
        load_pairs(names, sets, 17)
    except DataError as error:
        with pytest.raises(DataError) as caught:
            at_once(names, sets, PairEncoder(templated("transcript"), *limits), folder / "out")
        assert str(caught.value) == str(error)
    else:
        check(names, sets, folder / "out", None, *limits)


@pytest.mark.parametrize("at_once_rows", [1, 3])
def test_how_many_are_encoded_at_once_changes_nothing(jsonl, tmp_path, monkeypatch, at_once_rows):
    monkeypatch.setattr(prepare, "_AT_ONCE", at_once_rows)
    monkeypatch.setattr(prepare, "_BLOCK", 2)
    rows = [pair(n % 5, f"yes {n % 7}") for n in range(20)]
    check(("a",), {"a": DataSpec(path=jsonl(*rows), eval_fraction=0.4)}, tmp_path)


@pytest.mark.parametrize(
    "rows",
    [
        [pair(1), pair(2, chosen=None)],
        [pair(1), {"prompt": "x", "chosen": "y"}],
        [pair(1), pair(2, "a\0b")],
        [pair(1), pair(2, "a\ud800b")],
        [pair(1), pair(2, probability=2)],
        [pair(1), pair(2, axes={"safe": "x"})],
        [pair(1), {**pair(2), "prompt": [{"role": "user", "content": "x"}]}],
        [pair(1), {**pair(2), "prompt": [{"role": "cook", "content": "x"}]}],
        [pair(1, "x", "x")],
        [{"text": "x"}],
        [],
    ],
)
def test_errors_are_the_same_with_file_and_line(jsonl, tmp_path, rows):
    data = {"mine": DataSpec(path=jsonl(*rows))}
    messages = []
    for prepared in (
        lambda: load_pairs(("mine",), data, 17),
        lambda: at_once(("mine",), data, PairEncoder(templated("plain"), 64), tmp_path / "out"),
    ):
        with pytest.raises(PrefoptError) as caught:
            prepared()
        messages.append((type(caught.value), str(caught.value)))
    assert messages[0] == messages[1]


def test_an_unknown_name_and_a_template_without_eos(jsonl, tmp_path):
    with pytest.raises(DataError, match=r"no data set 'b' in the recipe"):
        at_once(("b",), {"a": DataSpec(path="toy")}, PairEncoder(templated("plain"), 64), tmp_path / "a")
    tokenizer = byte_level()
    tokenizer.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(DataError, match="ends no answer with the tokenizer's EOS"):
        at_once(("a",), {"a": DataSpec(path=jsonl(pair(1)))}, PairEncoder(tokenizer, 64), tmp_path / "b")


_PEAK = """
import json, sys
from pathlib import Path
from prefopt.data.prepare import PAIR_IDS, prepare_pairs
from prefopt.data.pair_encoder import PairEncoder
from prefopt.data.token_rows import Columns
from prefopt.recipe.schema import DataSpec
from tests.unit.data.test_prepare import templated
from tests.benchmarks.data import peak_bytes

before = peak_bytes()
for name in sys.argv[2:]:
    data = {"a": DataSpec(path=name)}
    (folder := Path(sys.argv[1]) / Path(name).stem).mkdir()
    prepare_pairs(("a",), data, 17, PairEncoder(templated("transcript"), 1024), folder, Columns(PAIR_IDS))
    print(peak_bytes() - before)
"""


@pytest.mark.slow
def test_memory_grows_by_digests_and_not_by_texts(tmp_path):
    """Twenty thousand pairs are 20 MB of text and 5 million tokens; of each a few dozen bytes may stay."""
    paths = []
    for count in (4000, 24_000):
        paths.append(tmp_path / f"{count}.jsonl")
        with paths[-1].open("w") as file:
            for number in range(count):
                # No new words: those that are remembered are bounded, but need a while to be as many.
                prompt = {"prompt": " ".join(str(number))}
                file.write(json.dumps(pair(0, "the quick fox " * 40, "said no " * 40) | prompt) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(tmp_path), *map(str, paths)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    small, large = map(int, done.stdout.split())
    assert large - small < 20_000 * 150 + 2 * 1024**2, "the second is what an allocator may keep for itself"
