"""How a stack is cut, into batches of frames and tiles of a frame, and streamed through threads.

A single frame is split by onnxruntime, every operation of it over all CPU cores. Of a stack each
core takes whole frames, by a session with one thread of its own: splitting costs a wake-up of all
threads and a wait for the slowest at every operation, which grows with the number of cores while
the work to split does not. Results are the same, bit for bit: no sum is taken across the cut.

Frames too large for one run are cut into tiles. The halo of a tile is what the model sees beyond
its cells of ``multiple`` pixels, rounded up to such, and tiles begin on multiples, so that every
pixel sees what it sees in the whole frame. Halos are cropped, never blended.

Where a run fails for lack of memory, runs have half of its pixels from then on: fewer frames, down
to one, and then tiles. None of it changes the result, but for the last digits where a GPU's library
chooses other kernels.
"""

import contextlib
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.dose import Intensity
from emdn_deploy.session import ModelInfo, Session
from emdn_models.errors import DeviceMemoryError, ModelError

Stack = NDArray[np.float32]
Run = Callable[[Stack], Stack]
_B = TypeVar("_B")
_T = TypeVar("_T")

_log = logging.getLogger(__name__)

# The largest frame that is denoised at once, and the largest tile of one that is not.
TILE_PIXELS = 2048 * 2048
# Pixels of one run: batching gains little on a CPU and costs memory. With one thread it
# gains nothing, but for frames so small that the call itself takes a share of the time.
_BATCH_PIXELS, _ALONE_PIXELS = 2**19, 2**16
# On a GPU a batch fills the multiprocessors: some millions of pixels, in however many frames.
_DEVICE_PIXELS, _DEVICE_FRAMES = 2**22, 64
# Of all runs at the same time; the memory that nets hold grows with them. Chosen, not measured.
_PARALLEL_PIXELS = 2**23
# Blocks that wait between reading, computing and writing.
_DEPTH = 2


def stream(
    read: Callable[[int, int], _B],
    compute: Callable[[_B], _T],
    write: Callable[[int, _B, _T], None],
    spans: list[tuple[int, int]],
    parallel: int = 1,
) -> None:
    """Read, compute and write blocks of frames at the same time; few of them are in memory.

    ``read(start, stop)`` and ``write(start, block, computed)`` are called in one thread each, in
    the order of ``spans``; ``compute(block)`` in ``parallel`` threads. The first error of any of
    the three stops the others.
    """
    closing, ahead = contextlib.closing, _DEPTH + 1
    with (
        closing(_threaded(lambda span: (span[0], read(*span)), spans, 1, ahead)) as arrived,
        closing(ordered(lambda block: (*block, compute(block[1])), arrived, parallel)) as made,
        closing(_threaded(lambda block: write(*block), made, 1, ahead)) as written,
    ):
        deque(written, maxlen=0)


def blocks(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """Cut frames ``start`` to ``stop`` into spans of at most ``size``."""
    return [(first, min(stop, first + size)) for first in range(start, stop, size)]


def ordered(
    work: Callable[[_B], _T], items: Iterable[_B], parallel: int
) -> Generator[_T, None, None]:
    """Yield ``work(item)`` in the order of the items, ``parallel`` of them at a time.

    ``items`` is asked for the next one in the caller's thread, and only so far ahead that
    no thread runs dry: at most ``2 * parallel`` are begun and not yet yielded. Raises the error of
    the first item in order that failed; those begun are waited for.
    """
    if parallel == 1:
        yield from map(work, items)
    else:
        yield from _threaded(work, items, parallel, 2 * parallel)


def _threaded(
    work: Callable[[_B], _T], items: Iterable[_B], threads: int, ahead: int
) -> Generator[_T, None, None]:
    begun: deque[Future[_T]] = deque()
    failed: list[BaseException] = []

    def guarded(item: _B) -> _T:
        """Begin nothing after a failure: a block that was not written is followed by none."""
        if failed:
            raise failed[0]
        try:
            return work(item)
        except BaseException as error:
            failed.append(error)
            raise

    with ThreadPoolExecutor(threads, thread_name_prefix="emdn") as pool:
        try:
            for item in items:
                begun.append(pool.submit(guarded, item))
                if len(begun) == ahead:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()


class Batching:
    """How many frames a run has, and how many runs go at the same time.

    Attributes
    ----------
    pixels
        The most of one run.
    note
        What had to give way where memory ran out; empty where nothing had to.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._changing = threading.Lock()
        self.pixels = sys.maxsize
        self.note = ""

    def parallel_runs(self, count: int, size: tuple[int, ...]) -> int:
        """Choose how many runs go at the same time for ``count`` frames of (H, W)."""
        if self._session.device != "cpu":  # one is copied while the other is computed
            return 2 if count > self.frames_per_run(size) else 1
        threads, pixels = self._session.threads, min(size[0] * size[1], TILE_PIXELS)
        return threads if count >= threads and threads * pixels <= _PARALLEL_PIXELS else 1

    def plan(self, count: int, size: tuple[int, ...], batch: int | None) -> tuple[int, int]:
        """Choose how many runs of a stack go at the same time, and the frames of each.

        ``batch``: frames a run, if they are asked for.
        """
        parallel = self.parallel_runs(count, size)
        return parallel, batch or self.frames_per_run(size, alone=parallel > 1)

    def frames_per_run(self, size: tuple[int, ...], *, alone: bool = False) -> int:
        """Choose how many frames of (H, W) share a run.

        ``alone``: whether the run has one CPU thread, and others are beside it.
        """
        pixels = size[0] * size[1]
        if self._session.device != "cpu":
            return self._that_fit(size, max(1, min(_DEVICE_FRAMES, _DEVICE_PIXELS // pixels)))
        return int(np.clip((_ALONE_PIXELS if alone else _BATCH_PIXELS) // pixels, 1, 8))

    def each(
        self,
        shape: tuple[int, ...],
        work: Callable[[slice, bool], None],
        batch: int | None,
        *,
        alone: bool,
    ) -> None:
        """Call ``work`` for parts of a stack (n, H, W), several at once where that is faster.

        ``work`` takes a part, and whether it is to keep to one CPU thread; ``batch`` are the frames
        of a part, None chooses; ``alone``: whether the caller itself is one of several.
        """
        count, size = shape[0], shape[1:]
        parallel = 1 if alone else self.parallel_runs(count, size)
        alone = alone or parallel > 1
        step = batch or self.frames_per_run(size, alone=alone)
        parts = [slice(*block) for block in blocks(0, count, step)]
        deque(ordered(lambda part: work(part, alone), parts, parallel), maxlen=0)

    def denoise(self, frames: Stack, scale: Intensity, out: Stack, *, alone: bool) -> None:
        """Denoise into ``out``, (n, H, W), by smaller batches and by tiles as memory allows.

        ``frames`` and ``alone`` are as of `emdn_deploy.session.Session.run`. Raises
        DeviceMemoryError if memory does not suffice for one frame and the model cannot be tiled,
        or not finer.
        """

        def run(tile: Stack, into: Stack | None = None) -> Stack:
            try:
                return self._session.run(tile, *scale.numbers, out=into, alone=alone)
            except DeviceMemoryError:
                self._shrink(len(tile) * tile.shape[-2] * tile.shape[-1])
                raise

        done, size = 0, out.shape[1:]
        while done < len(frames):
            part = slice(done, done + self._that_fit(size, len(frames) - done))
            most = min(TILE_PIXELS, self.pixels)
            try:
                if size[0] * size[1] <= most:
                    run(frames[part], out[part])
                else:
                    by_tiles(run, frames[part], self._session.info, out[part], most)
            except DeviceMemoryError:
                continue  # fewer pixels are allowed now
            except ModelError as error:
                if not self.note:
                    raise
                raise DeviceMemoryError(
                    f"{self.note}; {error}, allow more memory, or take fewer --threads"
                ) from error
            done = part.stop

    def _that_fit(self, size: tuple[int, ...], most: int) -> int:
        """Return how many of ``most`` frames of (H, W) are run at once, 1 or more.

        A device prepares itself for every new shape: by powers of two it meets few of them,
        however many frames are left at the end.
        """
        count = max(1, min(most, self.pixels // (size[0] * size[1])))
        return count if self._session.device == "cpu" else 1 << (count.bit_length() - 1)

    def _shrink(self, failed: int) -> None:
        """Allow half of the pixels of a run that failed, and say so."""
        half = failed // 2
        with self._changing:
            if half >= self.pixels:  # another run failed first
                return
            self.pixels = half
            self.note = f"ran out of memory: at most {half} pixels a run"
        _log.warning("warning: memory ran out for %d pixels at once; trying %d", failed, half)


@dataclass(frozen=True)
class Tile:
    """One tile along one axis: pixels ``keep`` of the frame come from pixels ``read``."""

    read: slice
    keep: slice

    @property
    def inner(self) -> slice:
        """Return where the kept pixels lie in the tile."""
        return slice(self.keep.start - self.read.start, self.keep.stop - self.read.start)


def by_tiles(run: Run, frames: Stack, info: ModelInfo, out: Stack, most: int) -> None:
    """Denoise (n, H, W), or (n, F, H, W), by tiles of at most ``most`` pixels into ``out``.

    Raises ModelError if the model's tiles are not exact, or the halo leaves nothing of a tile.
    """
    height, width = frames.shape[-2:]
    if not info.tiling_exact:
        node = info.text.get("whole_frame")
        raise ModelError(
            f"frames of {height} x {width} need tiles, and {info.name} ({info.preset}) does not "
            f"give the same result by tiles{f': {node}' if node else ''}; use another model"
        )
    rows, columns = tiles((height, width), info, most)
    for row in rows:
        for column in columns:
            for index in range(len(frames)):
                # A contiguous copy: the crop of a frame is not, and a session wants one.
                tile = np.ascontiguousarray(frames[index : index + 1, ..., row.read, column.read])
                out[index, row.keep, column.keep] = run(tile)[0, row.inner, column.inner]


def halo(info: ModelInfo) -> int:
    """Return the border, in pixels, that a tile needs on every inner side.

    Where the file does not say it, it follows from the field: that is centred on a pixel's cell
    of ``multiple`` pixels, not on itself, so it reaches up to half a cell further to one side.
    """
    if info.halo is not None:
        return info.halo
    radius = (info.receptive_field + 1) // 2 + info.multiple // 2
    return -(-radius // info.multiple) * info.multiple


def tiles(size: tuple[int, int], info: ModelInfo, most: int) -> tuple[list[Tile], list[Tile]]:
    """Cut a frame of (H, W) into rows and columns of tiles of at most ``most`` pixels."""
    height, width = size
    side = int(most**0.5)
    limits = side, side
    if height <= side:
        limits = height, most // height
    elif width <= side:
        limits = most // width, width
    return _along(height, limits[0], info), _along(width, limits[1], info)


def _along(length: int, limit: int, info: ModelInfo) -> list[Tile]:
    if limit >= length:
        return [Tile(slice(0, length), slice(0, length))]
    border = halo(info)
    core = (limit - 2 * border) // info.multiple * info.multiple
    if core < 1:
        raise ModelError(
            f"{info.name} sees {info.receptive_field} pixels at once: tiles of {limit} pixels "
            f"have nothing left inside their borders of {border}; use another model"
        )
    # Tiles of one size, not a row of large ones and a sliver.
    count = -(-length // core)
    core = -(-length // (count * info.multiple)) * info.multiple
    return [
        Tile(slice(max(0, start - border), min(length, start + core + border)), slice(start, stop))
        for start, stop in blocks(0, length, core)
    ]
