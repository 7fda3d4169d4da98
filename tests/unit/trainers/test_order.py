from prefopt.trainers.order import TrainingOrder

LENGTHS = [(7 * row) % 31 + 1 for row in range(103)]
STEP = 8


def epoch(seed: int = 3, number: int = 0, *, by_length: bool = False) -> list[int]:
    order = TrainingOrder(LENGTHS, STEP, seed, by_length=by_length)
    order.set_epoch(number)
    return list(order)


def test_every_row_comes_once_and_every_epoch_and_seed_has_its_own_order() -> None:
    orders = [epoch(seed, number, by_length=grouped) for seed in (3, 4) for number in (0, 1) for grouped in (0, 1)]
    assert all(sorted(order) == list(range(len(LENGTHS))) for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)
    assert epoch(3, 1) == epoch(3, 1)


def test_a_step_holds_the_rows_of_a_random_order_longest_first() -> None:
    order = epoch()
    for start in range(0, len(order), STEP):
        lengths = [LENGTHS[row] for row in order[start : start + STEP]]
        assert lengths == sorted(lengths, reverse=True)
    means = [sum(LENGTHS[row] for row in order[start : start + STEP]) / STEP for start in range(0, 96, STEP)]
    assert max(means) - min(means) < 15  # steps are random samples: nothing but their passes is sorted


def test_steps_by_length_pad_little_and_come_in_no_order_of_length() -> None:
    order = epoch(by_length=True)
    steps = [[LENGTHS[row] for row in order[start : start + STEP]] for start in range(0, 96, STEP)]
    assert sum(max(step) * STEP - sum(step) for step in steps) < 0.1 * sum(map(sum, steps))
    longest = [max(step) for step in steps]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)
    assert len(order[96:]) == 7  # the step that is not full comes last
