"""The live scenario with an engine and a clock of the test's own: drops are counted right."""

import pytest

from emdn_deploy.bench.live import Live, stream


class Engine:
    """Takes so many seconds a frame; sleeping and working move the same clock."""

    def __init__(self, seconds: float, per_batch: float = 0.0) -> None:
        self.now = 0.0
        self.seconds, self.per_batch = seconds, per_batch
        self.done: list[int] = []
        self.slept = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.slept += seconds
        self.now += seconds

    def work(self, numbers) -> None:
        self.now += self.per_batch + self.seconds * len(numbers)
        self.done += numbers

    def run(self, rate: float, frames: int, **settings: int) -> Live:
        return stream(self.work, rate, frames, clock=self.clock, sleep=self.sleep, **settings)


def test_a_fast_engine_waits_and_drops_nothing() -> None:
    engine = Engine(0.02)
    found = engine.run(10, 50)
    assert (found.frames, found.dropped) == (50, 0)
    assert found.latencies == pytest.approx([0.02] * 50)
    assert found.load == pytest.approx(0.2)
    assert found.keeps_up
    assert engine.done == list(range(50))
    assert engine.slept == pytest.approx(49 * 0.1 - 49 * 0.02)


def test_a_slow_engine_drops_what_finds_the_buffer_full() -> None:
    # Four frames arrive while one is computed; two may wait.
    engine = Engine(0.4)
    found = engine.run(10, 13, buffer=2)
    # 0 is taken at once; 1, 2 wait, 3 is lost. At 0.4 s frame 4 arrives, to a full buffer;
    # 1 is taken, 5 waits, 6, 7, 8 are lost; and so on.
    assert engine.done == [0, 1, 2, 5, 9]
    assert found.dropped == 13 - 5
    assert found.latencies == pytest.approx([0.4, 0.7, 1.0, 1.1, 1.1])
    assert not found.keeps_up


def test_every_frame_is_done_or_dropped() -> None:
    for seconds in (0.05, 0.099, 0.101, 0.15, 1.0):
        engine = Engine(seconds)
        found = engine.run(10, 100)
        assert len(found.latencies) + found.dropped == found.frames == 100
        assert engine.done == sorted(set(engine.done))


def test_a_backlog_that_the_buffer_still_holds_is_not_keeping_up() -> None:
    found = Engine(0.101).run(10, 100)
    assert found.dropped == 0
    assert found.load == pytest.approx(1.01)
    assert not found.keeps_up


def test_waiting_frames_are_taken_together() -> None:
    # A second a batch, whatever is in it: one by one most frames would be lost.
    engine = Engine(0.0, per_batch=1.0)
    found = engine.run(4, 40, batch=4)
    assert found.dropped == 0
    assert Engine(0.0, per_batch=1.0).run(4, 40).dropped > 10
    assert engine.done == list(range(40))
