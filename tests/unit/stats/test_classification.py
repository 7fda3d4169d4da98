import pytest

from prefopt.stats.classification import auroc, confusion, explained_variance


def test_a_table_by_hand() -> None:
    predicted = [True, True, True, False, False, False, False]
    actual = [True, True, False, True, False, False, False]
    found = confusion(predicted, actual)
    assert found == (2, 1, 1, 3)
    assert found.precision == found.recall == found.f1 == pytest.approx(2 / 3)
    assert found.accuracy == pytest.approx(5 / 7)


def test_nothing_said_or_nothing_there_is_0() -> None:
    assert confusion([False], [True])[:3] == (0, 0, 1)
    for found in (confusion([False], [True]), confusion([False], [False])):
        assert found.precision == found.recall == found.f1 == 0.0


def test_auroc_counts_pairs_in_order_and_ties_half() -> None:
    assert auroc([1.0, 2.0, 3.0, 4.0], [False, False, True, True]) == 1.0
    assert auroc([4.0, 1.0], [False, True]) == 0.0
    # Positives 2 and 3 against negatives 1, 2 and 3: 1 + .5 + 0 and 1 + 1 + .5 of 6.
    assert auroc([2.0, 3.0, 1.0, 2.0, 3.0], [True, True, False, False, False]) == pytest.approx(4 / 6)


def test_explained_variance_known_answers() -> None:
    truth = [1.0, 2.0, 3.0]
    assert explained_variance(truth, truth) == 1.0
    assert explained_variance([5.0] * 3, truth) == 0.0
    assert explained_variance([3.0, 2.0, 1.0], truth) == pytest.approx(-3.0)
    assert explained_variance([2.0, 3.0, 4.0], truth) == 1.0  # a constant offset is no variance
    assert explained_variance([1.0, 2.0], [4.0, 4.0]) == 0.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: confusion([], []),
        lambda: confusion([True], [True, False]),
        lambda: auroc([1.0, 2.0], [True, True]),
        lambda: auroc([float("nan"), 1.0], [True, False]),
        lambda: explained_variance([], []),
        lambda: explained_variance([1.0], [1.0, 2.0]),
    ],
)
def test_what_makes_no_sense_is_refused(call) -> None:
    with pytest.raises(ValueError):
        call()
