"""When pairs of a benchmark say on which side of a budget they are: rarely wrongly, and soon where it is plain."""

from random import Random

import pytest

from tests.bench.pairs import in_pairs, is_clear


@pytest.mark.parametrize("median", [0.8, 1.2])
def test_what_is_plain_is_clear_after_a_few_pairs(median: float) -> None:
    random = Random(7)
    assert is_clear([random.gauss(median, 0.02) for _ in range(5)], 1.0)


def test_few_pairs_on_both_sides_are_not_clear() -> None:
    assert not is_clear([0.9, 0.95, 0.97, 0.98, 1.01], 1.0)
    assert not is_clear([1.0], 1.0)


def test_what_is_on_the_budget_is_rarely_called_clear() -> None:
    random = Random(7)
    wrong = sum(is_clear([random.gauss(1.0, 0.1) for _ in range(100)], 1.0) for _ in range(500))
    assert wrong < 500 * 0.09  # twenty-five of them are to be expected


def test_a_small_difference_is_clear_after_many_pairs() -> None:
    random = Random(7)
    assert is_clear([random.gauss(0.98, 0.11) for _ in range(500)], 0.95)


@pytest.mark.parametrize(("ratio", "pairs"), [(0.5, 5), (1.0, 15)])
async def test_pairs_are_taken_in_turns_until_they_are_clear(ratio: float, pairs: int) -> None:
    asked: list[str] = []

    async def measure(which: str) -> float:
        asked.append(which)
        return 1.0 if which == "one" else ratio

    assert await in_pairs(measure, "one", "other", 1.0, least=5, most=15) == [(1.0, ratio)] * pairs
    assert asked[:6] == ["one", "other", "other", "one", "one", "other"]
