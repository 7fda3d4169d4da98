import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefopt.models import batches
from prefopt.models.batches import (
    PairCollator,
    batches_by_length,
    pad_rows,
    padded_pairs,
    prompt_completion_batch,
    some_pairs,
)
from tests.tiny import random_rows


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 9), st.integers(1, 50))
def test_every_row_is_in_one_batch_and_limits_hold(lengths: list[int], size: int, vocabulary: int) -> None:
    limit, batches.MAX_LOGITS = batches.MAX_LOGITS, 4000
    try:
        cut = batches_by_length(lengths, size, vocabulary)
    finally:
        batches.MAX_LOGITS = limit
    assert sorted(index for batch in cut for index in batch) == list(range(len(lengths)))
    for batch in cut:
        assert len(batch) <= size
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) * vocabulary <= 4000
    shown = [lengths[index] for batch in cut for index in batch]
    assert shown == sorted(shown)


def test_padding_is_outside_of_both_masks() -> None:
    batch = prompt_completion_batch([[5, 6], [7]], [[8, 2], [9, 9, 9, 2]], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 8, 2, 0], [7, 9, 9, 9, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]]
    assert pad_rows([[1], [1, 2]], 0, left=True).tolist() == [[0, 1], [1, 2]]


def test_every_token_of_a_pair_lands_once() -> None:
    rows = random_rows(3)
    batch = PairCollator()([{**row, "weight": float(i)} for i, row in enumerate(rows)])
    parts = [row[name] for row in rows for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
    assert batch["input_ids"].tolist() == [[token for part in parts for token in part]]
    assert batch["lengths"].flatten().tolist() == [len(part) for part in parts]
    assert batch["weight"].tolist() == [0.0, 1.0, 2.0]


def test_some_pairs_of_a_batch_are_the_batch_of_these_pairs() -> None:
    rows = [{**row, "probability": i / 10} for i, row in enumerate(random_rows(6))]
    whole, part = PairCollator()(rows), PairCollator()(rows[2:5])
    found = some_pairs(whole, 2, 5)
    assert found.keys() == part.keys() and all(torch.equal(found[name], part[name]) for name in part)


def test_padded_pairs_are_chosen_rows_then_rejected_rows() -> None:
    rows = random_rows(3)
    batch = padded_pairs(PairCollator()(rows))
    assert batch["input_ids"].shape[0] == 6
    for i, row in enumerate(rows):
        for offset, key in ((0, "chosen_ids"), (3, "rejected_ids")):
            mask, ids = batch["completion_mask"][i + offset].bool(), batch["input_ids"][i + offset]
            assert ids[mask].tolist() == row[key]
            assert ids[batch["attention_mask"][i + offset].bool()].tolist() == row["prompt_ids"] + row[key]


def test_a_batch_of_different_widths_is_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        prompt_completion_batch([[1]], [[2], [3]], 0)
    assert torch.equal(pad_rows([[3]], 0), torch.tensor([[3]]))
