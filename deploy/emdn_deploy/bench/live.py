"""Frames that arrive at a rate, whether or not the last one is done: latencies and drops."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Frames that may wait for the computation; one that comes when so many do is lost.
BUFFER = 8


@dataclass(frozen=True)
class Live:
    """What became of the frames.

    Attributes
    ----------
    rate
        Frames a second.
    frames, dropped
        That arrived; that found the buffer full.
    latencies
        Seconds from the arrival of a frame to its result, of those that were not dropped.
    load
        Share of the time that the computation needs: above 1 the backlog grows, even where
        the buffer has held it so far.
    """

    rate: float
    frames: int
    dropped: int
    latencies: list[float]
    load: float

    @property
    def keeps_up(self) -> bool:
        """Say whether this could go on for ever."""
        return not self.dropped and self.load < 1


def stream(
    work: Callable[[Sequence[int]], object],
    rate: float,
    frames: int,
    batch: int = 1,
    buffer: int = BUFFER,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Live:
    """Let frames arrive and denoise them as they come, several at once where several wait.

    Parameters
    ----------
    work
        Denoises the frames of these numbers, 1 to ``batch`` of them.
    rate
        Frames a second; frame k arrives k / rate after the start.
    frames
        How many arrive.
    """
    waiting: deque[int] = deque()
    latencies: list[float] = []
    arrived = dropped = 0
    busy = 0.0
    began = clock()
    while arrived < frames or waiting:
        now = clock()
        # Nothing leaves the buffer during a computation, so that it can be filled afterwards.
        while arrived < frames and began + arrived / rate <= now:
            if len(waiting) < buffer:
                waiting.append(arrived)
            else:
                dropped += 1
            arrived += 1
        if not waiting:
            if arrived < frames:
                sleep(max(0.0, began + arrived / rate - clock()))
            continue
        taken = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
        start = clock()
        work(taken)
        done = clock()
        busy += done - start
        latencies += [done - (began + number / rate) for number in taken]
    return Live(rate, frames, dropped, latencies, busy * rate / len(latencies))
