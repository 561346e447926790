"""Threads: read, compute and write a stack at the same time, and how many CPUs there are for it.

::

    reader thread --(queue)--> compute, in one or several threads --(queue)--> writer thread

Both queues hold a few blocks, so that memory does not grow with the stack. The first error of any
of the three stops the others and is raised from `stream`.

The CPUs that a process may use are not those of the machine. Slurm, ``taskset`` and
``docker --cpuset-cpus`` set an affinity mask; ``docker --cpus`` and Kubernetes limits set a quota
of processor time instead, which the mask does not show: 64 threads under a quota of two CPUs run
for 3 ms of every 100 and then wait, all of them.
"""

import contextlib
import math
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TypeVar

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
    parallel: int = 1,
    depth: int = DEPTH,
) -> None:
    """Pass blocks of frames through the three stages, in order.

    Parameters
    ----------
    read
        ``read(start, stop)`` gives a block of frames; called in one thread.
    compute
        Called in the caller's thread, or in ``parallel`` threads at the same time.
    write
        ``write(start, before, computed)``; called in one thread, in order.
    spans
        (start, stop) of each block.
    parallel
        Blocks that are computed at the same time.
    depth
        Blocks waiting before and after the computation, of which ``2 * parallel`` may be at work.

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
        with contextlib.closing(ordered(computed, arriving(), parallel)) as finished:
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


def ordered(
    work: Callable[[_B], _T], items: Iterable[_B], parallel: int
) -> Generator[_T, None, None]:
    """Yield ``work(item)`` in the order of the items, ``parallel`` of them at a time.

    ``items`` is asked for the next one in the caller's thread, and only so far ahead that
    no thread runs dry: at most ``2 * parallel`` are begun and not yet yielded.

    Raises
    ------
    BaseException
        The error of the first item in order that failed. Those begun are waited for.
    """
    if parallel == 1:
        yield from map(work, items)
        return
    begun: deque[Future[_T]] = deque()
    with ThreadPoolExecutor(parallel, thread_name_prefix="emdn-compute") as pool:
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) == 2 * parallel:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()


def usable_cpus() -> int:
    """Return how many threads may compute: the affinity mask's CPUs, or a quota if that is less.

    A share of a CPU counts as one: a thread too many waits a little, one too few leaves
    what was granted unused.
    """
    masked = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = _quota()
    return max(1, min(masked or 1, math.ceil(limit) if limit is not None else masked or 1))


def _quota(root: Path = Path("/")) -> float | None:
    """Return the CPUs that the control groups of this process grant, None for no limit.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are.
    """
    limits = [limit for folder in _groups(root) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def _groups(root: Path) -> Iterator[Path]:
    """List the folders of this process's control groups, with all that they lie in."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 has one tree and names no controllers, version 1 one for each.
        tree = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        inside = PurePosixPath(path.lstrip("/"))
        # In a container the tree may begin at its own group, whatever the path says.
        for group in (inside, *inside.parents):
            yield tree / group


def _limit(folder: Path) -> float | None:
    """Read a group's limit in CPUs, of version 2 or else of version 1."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = [word for name in names for word in (folder / name).read_text().split()]
            granted, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):  # "max" is no number and no limit
            continue
        if granted > 0 and period > 0:
            return granted / period
    return None


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
