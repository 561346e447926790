import threading
import time
from collections.abc import Iterator

import pytest

from emdn_deploy import lanes


@pytest.mark.parametrize(
    ("threads", "count", "pixels", "expected"),
    [
        (1, 100, 256 * 256, 1),
        (2, 1, 256 * 256, 1),
        (2, 2, 256 * 256, 2),
        (64, 63, 256 * 256, 1),
        (64, 1000, 256 * 256, 64),
        # Memory: 64 frames of this size at once would take some ten gigabytes.
        (64, 1000, 1280 * 1280, 1),
    ],
)
def test_one_frame_gets_all_cores_and_a_stack_one_each(threads, count, pixels, expected) -> None:
    assert lanes.choose(threads, count, pixels) == expected


@pytest.mark.parametrize("width", [1, 2, 5])
def test_results_come_in_order(width: int) -> None:
    def work(item: int) -> int:
        time.sleep(0.004 if item % 3 == 0 else 0)
        return item * item

    assert list(lanes.ordered(work, range(40), width)) == [item * item for item in range(40)]


def test_lanes_work_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=300)  # breaks unless three are there at once
    assert list(lanes.ordered(lambda item: together.wait() >= 0 and item, range(9), 3)) == [
        *range(9)
    ]


def test_items_are_asked_for_as_they_are_needed() -> None:
    """What is begun, and so held in memory, does not grow with the stack."""
    asked, ahead = 0, []

    def items() -> Iterator[int]:
        nonlocal asked
        for item in range(100):
            asked = item + 1
            yield item

    for done, _ in enumerate(lanes.ordered(lambda item: item, items(), 3)):
        ahead.append(asked - done)
    assert max(ahead) <= 6


@pytest.mark.parametrize("width", [1, 3])
def test_an_error_ends_all(width: int) -> None:
    before, begun = threading.active_count(), []

    def work(item: int) -> int:
        begun.append(item)
        if item == 5:
            raise ValueError("the sixth")
        return item

    with pytest.raises(ValueError, match="the sixth"):
        list(lanes.ordered(work, range(1000), width))
    assert len(begun) < 20
    assert threading.active_count() == before


def test_who_stops_asking_leaves_no_threads() -> None:
    before = threading.active_count()
    results = lanes.ordered(lambda item: item, range(1000), 3)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before
