"""One frame by all cores, or a frame on each: which of the two, and the second of them.

A single frame is split by onnxruntime, every operation of it over all cores (latency).
For a stack it pays to leave each frame whole: one session with one thread of its own,
run by as many Python threads as there are cores (throughput); these are the lanes.
Splitting costs a wake-up of all threads and a wait for the slowest at every one of a net's
operations. Even two cores are slower so, and it grows with the number of cores while the work
to split does not: an operation of 0.5 ms over 64 cores is 8 us. Lanes wait for
nobody; what they share is the interpreter and memory bandwidth.

Results are the same, bit for bit: no sum is taken across the cut, either way.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

# Pixels at work at the same time; the memory that nets hold grows with them. Chosen, not measured.
MOST_PIXELS = 2**23

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def choose(threads: int, count: int, pixels: int) -> int:
    """Return how many frames to run side by side: one for each thread, or 1.

    Parameters
    ----------
    threads
        CPU threads there are.
    count
        Frames that are to be denoised.
    pixels
        Of a frame, or of a tile of one that is cut up.
    """
    return threads if count >= threads and threads * pixels <= MOST_PIXELS else 1


def ordered(
    work: Callable[[_Item], _Made], items: Iterable[_Item], lanes: int
) -> Generator[_Made, None, None]:
    """Yield ``work(item)`` in the order of the items, ``lanes`` of them at a time.

    ``items`` is asked for the next one in the caller's thread, and only so far ahead that
    no lane runs dry: at most ``2 * lanes`` are begun and not yet yielded.

    Raises
    ------
    BaseException
        The error of the first item in order that failed. Those begun are waited for.
    """
    if lanes == 1:
        yield from map(work, items)
        return
    begun: deque[Future[_Made]] = deque()
    with ThreadPoolExecutor(lanes, thread_name_prefix="emdn-lane") as pool:
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) == 2 * lanes:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
