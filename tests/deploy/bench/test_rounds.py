"""What is said of rounds, on a clock that the test sets."""

from itertools import pairwise

import numpy as np
import pytest

from emdn_deploy.bench import rounds


class Clock:
    """A clock that calls move on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def call(self, *seconds: float):
        """Return a call that takes so long, the last time again and again."""
        left = list(seconds)

        def work() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return work


@pytest.mark.parametrize(("count", "p90", "p99"), [(9, 0, 0), (10, 1, 0), (99, 1, 0), (100, 1, 1)])
def test_a_percentile_needs_its_rounds(count: int, p90: bool, p99: bool) -> None:
    seconds = np.linspace(1, 2, count).tolist()
    assert (rounds.percentile(seconds, 0.9) is not None) == p90
    assert (rounds.percentile(seconds, 0.99) is not None) == p99


def test_a_percentile_is_a_quantile() -> None:
    assert rounds.percentile(list(range(101)), 0.99) == pytest.approx(99)


def test_warming_up_ends_when_calls_get_no_faster() -> None:
    clock = Clock()
    assert rounds.warm(clock.call(1.0, 0.5, 0.3, 0.1, 0.1, 0.101), 100, clock) == 6


def test_warming_up_ends_in_time_but_not_before_two_calls() -> None:
    clock = Clock()
    assert rounds.warm(clock.call(10.0, 5.0, 2.0, 1.0), 4.0, clock) == 2


def test_calls_take_turns_and_none_always_follows_the_same() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = rounds.in_turn(calls, 60)
    assert {name: len(one) for name, one in times.items()} == {"a": 60, "b": 60, "c": 60}
    each = ["".join(order[start : start + 3]) for start in range(0, 180, 3)]
    assert {"".join(sorted(one)) for one in each} == {"abc"}
    before = {(one, two) for round_ in each for one, two in pairwise(round_)}
    assert len(before) == 6, "every one follows every other"
    assert {one[0] for one in each} == set("abc")


def test_times_belong_to_their_call() -> None:
    clock = Clock()
    calls = {"slow": clock.call(3.0), "fast": clock.call(1.0)}
    times = rounds.in_turn(calls, 5, clock=clock)
    assert times == {"slow": [3.0] * 5, "fast": [1.0] * 5}


def test_rounds_end_in_time_and_are_whole() -> None:
    clock = Clock()
    calls = {"slow": clock.call(3.0), "fast": clock.call(1.0)}
    times = rounds.in_turn(calls, 100, 9.0, clock)
    assert [len(one) for one in times.values()] == [3, 3]
    assert [len(one) for one in rounds.in_turn(calls, 100, 0.0, clock).values()] == [1, 1]


def test_a_ratio_is_that_of_the_rounds() -> None:
    # A machine that slows down by half changes the times and not the ratio.
    found = rounds.ratio([2.0, 4.0, 4.2, 1.9], [1.0, 2.0, 2.0, 1.0])
    assert found.median == pytest.approx(2.0)
    assert found.low < 2.0 < found.high
    assert str(found).startswith("2.00 (1.9")
