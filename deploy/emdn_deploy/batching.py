"""How a stack is cut: batches of frames, tiles of a frame, neighbours beside each; and threads.

A single frame is split by onnxruntime, every operation of it over all CPU cores. Of a stack each
core takes frames of its own, by a session with one thread: splitting costs a wake-up of all
threads and a wait for the slowest at every operation, which grows with the number of cores while
the work to split does not. Results are the same, bit for bit: no sum is taken across the cut.

Frames too large for one run are cut into tiles. The halo of a tile is what the model sees beyond
its cells of ``multiple`` pixels, rounded up to such, and tiles begin on multiples, so that every
pixel sees what it sees in the uncut frame. Halos are cropped, never blended.

Where a run fails for lack of memory, runs have half of its pixels from then on: fewer frames, down
to one, and then tiles. None of it changes the result, but for the last digits where a GPU's library
chooses other kernels.
"""

import contextlib
import logging
import sys
import threading
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.dose import Intensity
from emdn_deploy.preprocess import Part
from emdn_deploy.session import ModelInfo, Session
from emdn_models.errors import DeviceMemoryError, ModelError

Stack = NDArray[np.float32]
Span = tuple[int, int]
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
    spans: list[Span],
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


def blocks(start: int, stop: int, size: int) -> list[Span]:
    """Cut frames ``start`` to ``stop`` into spans of at most ``size``."""
    return [(first, min(stop, first + size)) for first in range(start, stop, size)]


def ordered(
    work: Callable[[_B], _T], items: Iterable[_B], parallel: int
) -> Generator[_T, None, None]:
    """Yield ``work(item)`` in the order of the items, ``parallel`` of them at a time.

    At most ``2 * parallel`` are begun and not yet yielded. Raises the error of the first item in
    order that failed; those begun are waited for.
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

    ``pixels``: the most of one run. ``note``: what had to give way where memory ran out; empty
    where nothing had to.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._changing = threading.Lock()
        self.pixels = sys.maxsize
        self.note = ""

    def plan(self, count: int, size: tuple[int, ...], batch: int | None) -> tuple[int, int]:
        """Choose how many runs of ``count`` frames (H, W) go at the same time, and their frames.

        ``batch``: frames a run, if they are asked for.
        """
        if self._session.device != "cpu":  # one is copied while the other is computed
            step = batch or self.frames_per_run(size)
            return 2 if count > step else 1, step
        threads, pixels = self._session.threads, min(size[0] * size[1], TILE_PIXELS)
        parallel = threads if count >= threads and threads * pixels <= _PARALLEL_PIXELS else 1
        return parallel, batch or self.frames_per_run(size, alone=parallel > 1)

    def frames_per_run(self, size: tuple[int, ...], *, alone: bool = False) -> int:
        """Choose how many frames (H, W) share a run; ``alone``: with one CPU thread."""
        pixels = size[0] * size[1]
        if self._session.device != "cpu":
            return max(1, min(_DEVICE_FRAMES, min(_DEVICE_PIXELS, self.pixels) // pixels))
        return int(np.clip((_ALONE_PIXELS if alone else _BATCH_PIXELS) // pixels, 1, 8))

    def denoise(self, frames: Stack, scale: Intensity, *, alone: bool) -> Stack:
        """Denoise (n, H, W), or (n, F, H, W), by smaller batches and tiles as memory allows.

        ``alone`` is that of `emdn_deploy.session.Session.run`. Raises DeviceMemoryError if memory
        does not suffice for one frame and the model cannot be tiled, or not finer.
        """

        def run(part: Stack) -> Stack:
            try:
                return self._session.run(part, scale.scale, scale.offset, scale.gain, alone=alone)
            except DeviceMemoryError:
                self._shrink(len(part) * part.shape[-2] * part.shape[-1])
                raise

        pixels, done = frames.shape[-2] * frames.shape[-1], 0
        out = np.empty((len(frames), *frames.shape[-2:]), np.float32)
        while done < len(frames):
            most = min(TILE_PIXELS, self.pixels)
            part = slice(done, min(len(frames), done + max(1, self.pixels // pixels)))
            try:
                if pixels <= most:
                    out[part] = run(frames[part])
                else:
                    out[part] = by_tiles(run, frames[part], self._session.info, most)
            except DeviceMemoryError:
                continue  # fewer pixels are allowed now
            except ModelError as error:
                if not self.note:
                    raise
                raise DeviceMemoryError(
                    f"{self.note}; {error}, allow more memory, or take fewer --threads"
                ) from error
            done = part.stop
        return out

    def _shrink(self, failed: int) -> None:
        """Allow half of the pixels of a run that failed, and say so."""
        half = failed // 2
        with self._changing:
            if half >= self.pixels:  # another run failed first
                return
            self.pixels = half
            self.note = f"ran out of memory: at most {half} pixels a run"
        _log.warning("warning: memory ran out for %d pixels at once; trying %d", failed, half)


def by_tiles(run: Callable[[Stack], Stack], frames: Stack, info: ModelInfo, most: int) -> Stack:
    """Denoise (n, H, W), or (n, F, H, W), by tiles of at most ``most`` pixels; return (n, H, W).

    Raises ModelError if the model's tiles are not exact, or the halo leaves nothing of a tile.
    """
    height, width = frames.shape[-2:]
    if not info.tiling_exact:
        node = info.text.get("whole_frame")
        raise ModelError(
            f"frames of {height} x {width} need tiles, and {info.name} ({info.preset}) does not "
            f"give the same result by tiles{f': {node}' if node else ''}; use another model"
        )
    side = int(most**0.5)
    limits = side, side
    if height <= side:
        limits = height, most // height
    elif width <= side:
        limits = most // width, width
    out = np.empty((len(frames), height, width), np.float32)
    axes = _cuts(height, limits[0], info), _cuts(width, limits[1], info)
    for (rows, to_y, of_y), (columns, to_x, of_x) in product(*axes):
        for index, frame in enumerate(frames):
            out[index, to_y, to_x] = run(frame[None, ..., rows, columns])[0, of_y, of_x]
    return out


def _cuts(length: int, limit: int, info: ModelInfo) -> list[tuple[slice, slice, slice]]:
    """Cut an axis into tiles: what each reads, what it gives, and where that lies in the tile."""
    if limit >= length:
        return [(slice(length),) * 3]
    core = (limit - 2 * info.halo) // info.multiple * info.multiple
    if core < 1:
        raise ModelError(
            f"{info.name} sees {info.receptive_field} pixels at once: tiles of {limit} pixels "
            f"have nothing left inside their borders of {info.halo}; use another model"
        )
    # Tiles of one size, not a row of large ones and a sliver.
    count = -(-length // core)
    core = -(-length // (count * info.multiple)) * info.multiple
    cuts = []
    for start, stop in blocks(0, length, core):
        first, last = max(0, start - info.halo), min(length, start + core + info.halo)
        cuts.append((slice(first, last), slice(start, stop), slice(start - first, stop - first)))
    return cuts


def beside(
    first: int, stop: int, count: int, frames: int, usable: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Number the ``frames`` that a model sees for each of the frames ``first`` to ``stop``.

    Where there is no neighbour, at the ends of the stack of ``count`` frames, or it is not
    ``usable`` (count,), the one on the other side stands in for it, or else the nearest usable one
    that the model would see, or else the frame itself. So what other blocks of the stack hold
    changes nothing. Returns (stop - first, frames), each frame itself in the middle.
    """
    half = frames // 2
    steps = sorted(range(-half, half + 1), key=abs)[1:]

    def neighbour(frame: int, step: int) -> int:
        for number in (frame + step, frame - step, *(frame + other for other in steps)):
            if 0 <= number < count and (usable is None or usable[number]):
                return number
        return frame

    return np.array([
        [neighbour(frame, step) if step else frame for step in range(-half, half + 1)]
        for frame in range(first, stop)
    ]).reshape(-1, frames)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A part of a stack, ``around`` frames before and after which only help to denoise it.

    ``frames`` are all of these (k, H, W), and ``usable`` (k,) says which may stand beside others.
    """

    start: int
    part: Part
    frames: Stack
    around: tuple[int, int]
    usable: NDArray[np.bool_]


def reader(
    take: Callable[[int, int], Part], spans: list[Span], half: int, count: int
) -> Callable[[int, int], Block]:
    """Return a reader of ``spans`` of ``count`` frames, each with ``half`` before and after it.

    At the ends of the stack there are fewer. ``take(start, stop)`` gives corrected frames; each is
    read once, as the spans follow each other and a few are remembered.
    """
    first, last = (spans[0][0], spans[-1][1]) if spans else (0, 0)
    beyond = (max(0, first - half), first), (last, min(count, last + half))
    pieces = [span for span in (beyond[0], *spans, beyond[1]) if span[0] < span[1]]
    starts = [start for start, _ in pieces]
    part = lru_cache(maxsize=2 * half + 1)(take)

    def read(start: int, stop: int) -> Block:
        own, low, high = part(start, stop), max(0, start - half), min(count, stop + half)
        near = pieces[bisect_right(starts, low) - 1 : bisect_left(starts, high)]
        parts, some = [part(*span) for span in near], slice(low - near[0][0], high - near[0][0])
        frames, empty = (
            np.concatenate([getattr(one, name) for one in parts])[some]
            for name in ("frames", "empty")
        )
        return Block(start, own, frames, (start - low, high - stop), ~empty)

    return read
