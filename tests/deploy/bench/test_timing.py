"""What is said of rounds and of a live camera, on a clock that the test sets."""

from itertools import pairwise

import numpy as np
import pytest

from emdn_deploy.bench import timing


class Clock:
    """A clock that calls and sleeping move on."""

    def __init__(self) -> None:
        self.now = self.slept = 0.0
        self.done: list[int] = []

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.slept += seconds
        self.now += seconds

    def call(self, *seconds: float):
        """Return a call that takes so long, the last time again and again."""
        left = list(seconds)

        def work() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return work

    def stream(
        self, seconds: float, rate: float, frames: int, per_batch: float = 0.0, **more: int
    ) -> timing.Live:
        """Let frames arrive at an engine that takes so many seconds a frame."""
        began = self.now

        def work(numbers) -> None:
            self.now += per_batch + seconds * len(numbers)
            self.done += numbers

        found = timing.stream(work, rate, frames, **more)
        assert len(found.latencies) + found.dropped == found.frames == frames
        assert self.done == sorted(set(self.done))
        self.now = began + 1000.0
        return found


@pytest.fixture
def clock(monkeypatch) -> Clock:
    monkeypatch.setattr(timing, "time", clock := Clock())
    return clock


@pytest.mark.parametrize(("count", "p90", "p99"), [(9, 0, 0), (10, 1, 0), (99, 1, 0), (101, 1, 1)])
def test_a_percentile_needs_its_rounds(count: int, p90: bool, p99: bool) -> None:
    seconds = list(range(count))
    assert (timing.percentile(seconds, 0.9) is not None) == p90
    assert timing.percentile(seconds, 0.99) == (pytest.approx(99) if p99 else None)


@pytest.mark.parametrize(
    ("seconds", "limit_s", "calls"),
    [((1.0, 0.5, 0.3, 0.1, 0.1, 0.101), 100, 6), ((10.0, 5.0, 2.0, 1.0), 4.0, 2)],
    ids=["no faster", "no time, but two calls"],
)
def test_warming_up_ends(clock: Clock, seconds, limit_s: float, calls: int) -> None:
    assert timing.warm(clock.call(*seconds), limit_s) == calls


def test_calls_take_turns_and_none_always_follows_the_same() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = timing.in_turn(calls, 60)
    assert {name: len(one) for name, one in times.items()} == {"a": 60, "b": 60, "c": 60}
    each = ["".join(order[start : start + 3]) for start in range(0, 180, 3)]
    assert {"".join(sorted(one)) for one in each} == {"abc"}
    before = {(one, two) for round_ in each for one, two in pairwise(round_)}
    assert len(before) == 6, "every one follows every other"
    assert {one[0] for one in each} == set("abc")


@pytest.mark.parametrize(("limit_s", "rounds"), [(1000.0, 5), (9.0, 3), (0.0, 1)])
def test_times_belong_to_their_call_and_rounds_end_in_time(
    clock: Clock, limit_s: float, rounds: int
) -> None:
    calls = {"slow": clock.call(3.0), "fast": clock.call(1.0)}
    times = timing.in_turn(calls, 5, limit_s)
    assert times == {"slow": [3.0] * rounds, "fast": [1.0] * rounds}


def test_a_ratio_is_that_of_the_rounds() -> None:
    # A machine that slows down by half changes the times and not the ratio.
    assert timing.ratio([2.0, 4.0, 4.2, 1.9], [1.0, 2.0, 2.0, 1.0]) == "2.00 (1.98-2.02)"


def test_a_fast_engine_waits_and_drops_nothing(clock: Clock) -> None:
    found = clock.stream(0.02, 10, 50)
    assert found.dropped == 0
    assert found.latencies == pytest.approx([0.02] * 50)
    assert found.load == pytest.approx(0.2)
    assert found.keeps_up
    assert clock.done == list(range(50))
    assert clock.slept == pytest.approx(49 * 0.1 - 49 * 0.02)


def test_a_slow_engine_drops_what_finds_the_buffer_full(clock: Clock) -> None:
    # Four frames arrive while one is computed; two may wait.
    found = clock.stream(0.4, 10, 13, buffer=2)
    # 0 is taken at once; 1, 2 wait, 3 is lost. At 0.4 s frame 4 arrives, to a full buffer;
    # 1 is taken, 5 waits, 6, 7, 8 are lost; and so on.
    assert clock.done == [0, 1, 2, 5, 9]
    assert found.dropped == 13 - 5
    assert found.latencies == pytest.approx([0.4, 0.7, 1.0, 1.1, 1.1])
    assert not found.keeps_up


def test_a_backlog_that_the_buffer_still_holds_is_not_keeping_up(clock: Clock) -> None:
    found = clock.stream(0.101, 10, 100)
    assert found.dropped == 0
    assert found.load == pytest.approx(1.01)
    assert not found.keeps_up


def test_waiting_frames_are_taken_together(clock: Clock) -> None:
    # A second a batch, whatever is in it: one by one most frames would be lost.
    assert clock.stream(0.0, 4, 40, per_batch=1.0, batch=4).dropped == 0
    clock.done.clear()
    assert clock.stream(0.0, 4, 40, per_batch=1.0).dropped > 10


def test_frames_are_noisy_and_differ() -> None:
    found = timing.noisy(3, 60, 48)
    assert (found.shape, found.dtype) == ((3, 60, 48), np.float32)
    assert found.mean() == pytest.approx(timing.SCALE.scale, rel=0.02)
    assert (found == 0).mean() < 0.01
    noise = (found[0] - found[1]).std() / 2**0.5
    assert noise == pytest.approx(timing.SCALE.sigma, rel=0.05)


def test_peak_memory_grows_with_the_batch(box_model) -> None:
    one, many = (timing.peak_mb(str(box_model), "cpu", 1, n, (512, 512)) for n in (1, 32))
    assert one is None or many > one + 32
    assert timing.peak_mb("none", "cpu", 1, 1, (8, 8)) is None
