import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefopt.models import batches
from prefopt.models.batches import PairCollator, batches_by_length, pad_rows, prompt_completion_batch
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


def test_pairs_are_chosen_rows_then_rejected_rows() -> None:
    rows = random_rows(3)
    batch = PairCollator(0)([{**row, "weight": float(i)} for i, row in enumerate(rows)])
    assert batch["input_ids"].shape[0] == 6 and batch["weight"].tolist() == [0.0, 1.0, 2.0]
    for i, row in enumerate(rows):
        for offset, key in ((0, "chosen_ids"), (3, "rejected_ids")):
            ids = batch["input_ids"][i + offset][batch["completion_mask"][i + offset].bool()]
            assert ids.tolist() == row[key]


def test_a_batch_of_different_widths_is_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        prompt_completion_batch([[1]], [[2], [3]], 0)
    assert torch.equal(pad_rows([[3]], 0), torch.tensor([[3]]))
