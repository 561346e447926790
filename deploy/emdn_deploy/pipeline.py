"""Read, compute and write at the same time, in memory that the stack's length does not set.

::

    reader thread --(queue)--> compute, in one or several lanes --(queue)--> writer thread

Both queues hold a few blocks. The first error of any of the three stops the others
and is raised from `stream`.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from emdn_deploy.lanes import ordered

# Blocks waiting on either side of the computation.
DEPTH = 2

_B = TypeVar("_B")
_T = TypeVar("_T")


class _Stopped(Exception):
    """Another stage has failed."""


def stream(
    read: Callable[[int, int], _B],
    compute: Callable[[_B], _T],
    write: Callable[[int, _B, _T], None],
    spans: list[tuple[int, int]],
    lanes: int = 1,
    depth: int = DEPTH,
) -> None:
    """Pass blocks of frames through the three stages, in order.

    Parameters
    ----------
    read
        ``read(start, stop)`` gives a block of frames; called in one thread.
    compute
        Called in the caller's thread, or in ``lanes`` threads at the same time.
    write
        ``write(start, before, computed)``; called in one thread, in order.
    spans
        (start, stop) of each block.
    lanes
        See `emdn_deploy.lanes`.
    depth
        Blocks waiting before and after the computation, of which ``2 * lanes`` may be at work.

    Raises
    ------
    BaseException
        The first error of a stage, KeyboardInterrupt among them.
    """
    stop = threading.Event()
    errors: list[BaseException] = []
    waiting: queue.Queue[tuple[int, _B] | None] = queue.Queue(depth)
    done: queue.Queue[tuple[int, _B, _T] | None] = queue.Queue(depth)

    def reading() -> None:
        for start, end in spans:
            _put(waiting, (start, read(start, end)), stop)
        _put(waiting, None, stop)

    def writing() -> None:
        while (item := _get(done, stop)) is not None:
            write(*item)

    def arriving() -> Iterator[tuple[int, _B]]:
        while (item := _get(waiting, stop)) is not None:
            yield item

    def computed(item: tuple[int, _B]) -> tuple[int, _B, _T]:
        return *item, compute(item[1])

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except _Stopped:
            pass
        except BaseException as error:
            errors.append(error)
            stop.set()

    threads = [
        threading.Thread(target=guarded, args=(work,), name=f"emdn-{work.__name__}", daemon=True)
        for work in (reading, writing)
    ]
    for thread in threads:
        thread.start()
    try:
        with contextlib.closing(ordered(computed, arriving(), lanes)) as finished:
            for item in finished:
                _put(done, item, stop)
        _put(done, None, stop)
    except _Stopped:
        pass
    except BaseException:
        stop.set()
        raise
    finally:
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def blocks(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """Cut frames ``start`` to ``stop`` into spans of at most ``size``."""
    return [(first, min(stop, first + size)) for first in range(start, stop, size)]


def _put(target: "queue.Queue[_T]", item: _T, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            return target.put(item, timeout=0.1)
        except queue.Full:
            continue
    raise _Stopped


def _get(source: "queue.Queue[_T]", stop: threading.Event) -> _T:
    while not stop.is_set():
        try:
            return source.get(timeout=0.1)
        except queue.Empty:
            continue
    raise _Stopped
