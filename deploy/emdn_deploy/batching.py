"""How a stack is cut into runs of a model, and into smaller ones once memory has run out.

A single frame is split by onnxruntime, every operation of it over all CPU cores. Of a stack each
core takes whole frames, by a session with one thread of its own: splitting costs a wake-up of all
threads and a wait for the slowest at every operation, which grows with the number of cores while
the work to split does not. Results are the same, bit for bit: no sum is taken across the cut.

Where a run fails for lack of memory, runs go one at a time first; then half of its pixels halve
its frames, down to one, and then its tiles, as long as these are not mostly borders. None of it
changes the result, but for the last digits where a GPU's library chooses other kernels.
"""

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import tiling
from emdn_deploy.dose import Intensity
from emdn_deploy.pipeline import ordered
from emdn_deploy.session import Session
from emdn_models.errors import DeviceMemoryError, ModelError

Stack = NDArray[np.float32]

_log = logging.getLogger(__name__)

# Pixels of one run: batching gains little on a CPU and costs memory. With one thread it
# gains nothing, but for frames so small that the call itself takes a share of the time.
_BATCH_PIXELS, _ALONE_PIXELS = 2**19, 2**16
# On a GPU a batch fills the multiprocessors: some millions of pixels, in however many frames.
_DEVICE_PIXELS, _DEVICE_FRAMES = 2**22, 64
# Of all runs at the same time; the memory that nets hold grows with them. Chosen, not measured.
_PARALLEL_PIXELS = 2**23
# Tiles that compute so many times a frame's pixels take too long to be a way out.
_MOST_TIMES = 16
# Bytes that a run takes, a pixel, and a process besides (measured: 320 to 343, and 0.8 GB).
_PIXEL_BYTES, _PROCESS_BYTES = 350, 8e8


class Batching:
    """How many frames a run has, and how many runs go at the same time.

    Attributes
    ----------
    pixels
        The most of one run.
    one_by_one
        Whether memory has run out for several runs at the same time.
    note
        What had to give way; empty where nothing had to.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._turns, self._running = threading.Condition(), 0
        self.pixels = sys.maxsize
        self.one_by_one = False
        self.note = ""

    def parallel_runs(self, count: int, size: tuple[int, ...]) -> int:
        """Choose how many runs go at the same time for ``count`` frames of (H, W)."""
        if self._session.device != "cpu":  # one is copied while the other is computed
            return 2 if count > self.frames_per_run(size) else 1
        threads = self._session.threads
        enough = count >= threads and threads * tiling.most_pixels(size) <= _PARALLEL_PIXELS
        return threads if enough else 1

    def frames_per_run(self, size: tuple[int, ...], *, alone: bool = False) -> int:
        """Choose how many frames of (H, W) share a run.

        Parameters
        ----------
        alone
            Whether the run has one CPU thread, and others are beside it.
        """
        pixels = size[0] * size[1]
        if self._session.device != "cpu":
            return self._that_fit(size, max(1, min(_DEVICE_FRAMES, _DEVICE_PIXELS // pixels)))
        most = _ALONE_PIXELS if alone else _BATCH_PIXELS
        return int(np.clip(most // pixels, 1, 8))

    def each(
        self,
        shape: tuple[int, ...],
        work: Callable[[slice, bool], None],
        batch: int | None,
        *,
        alone: bool,
    ) -> None:
        """Call ``work`` for parts of a stack (n, H, W), several at once where that is faster.

        Parameters
        ----------
        work
            Takes a part, and whether it is to keep to one CPU thread.
        batch
            Frames per part; None chooses.
        alone
            Whether the caller itself is one of several, and wants no threads beside its own.
        """
        count, size = shape[0], shape[1:]
        parallel = 1 if alone else self.parallel_runs(count, size)
        alone = alone or parallel > 1
        step = batch or self.frames_per_run(size, alone=alone)
        parts = [slice(start, start + step) for start in range(0, count, step)]
        for _ in ordered(lambda part: work(part, alone), parts, parallel):
            pass

    def denoise(self, frames: Stack, scale: Intensity, out: Stack, *, alone: bool) -> None:
        """Denoise into ``out``, (n, H, W), by smaller batches and by tiles as memory allows.

        Parameters
        ----------
        frames
            As of `emdn_deploy.session.Session.run`: (n, H, W) or (n, F, H, W).
        alone
            As of `emdn_deploy.session.Session.run`.

        Raises
        ------
        DeviceMemoryError
            If memory does not suffice for one frame and the model cannot be tiled, or not finer.
        """
        done = 0
        while done < len(frames):
            part = slice(done, done + self._that_fit(out.shape[1:], len(frames) - done))
            try:
                self._denoise_part(frames[part], scale, out[part], alone)
            except DeviceMemoryError:
                continue  # fewer pixels are allowed now
            except ModelError as error:
                if not self.note:
                    raise
                raise DeviceMemoryError(f"{self.note}; {error}") from error
            done = part.stop

    def _denoise_part(self, frames: Stack, scale: Intensity, out: Stack, alone: bool) -> None:
        """Denoise frames in one run, or a frame by tiles."""

        def run(tile: Stack, into: Stack | None = None) -> Stack:
            beside = alone and not self.one_by_one
            try:
                with self._turn():
                    return self._session.run(tile, *scale.numbers, out=into, alone=alone)
            except DeviceMemoryError:
                if beside:
                    self._take_turns(_pixels(tile))
                    return run(tile, into)
                self._shrink(_pixels(tile))
                raise

        if out[0].size <= min(tiling.WHOLE_PIXELS, self.pixels):
            run(frames, out)
            return
        info, even = self._session.info, self._session.device != "cpu"
        tile = min(tiling.TILE_PIXELS, self.pixels)
        if self.note and info.tiling_exact:
            height, width = out.shape[1:]
            times = tiling.times((height, width), info, tile, even=even)
            if times > _MOST_TIMES:
                needed = _PROCESS_BYTES + _PIXEL_BYTES * min(height * width, tiling.TILE_PIXELS)
                raise ModelError(
                    f"frames of {height} x {width} need about {needed / 1e9:.1f} GB, and pieces of "
                    f"{tile} pixels would take {info.name} {times:.0f} times as long; allow more "
                    "memory, take fewer --threads, or a model that sees less"
                )
        tiling.apply(run, frames, info, out, tile, even=even)

    def _that_fit(self, size: tuple[int, ...], most: int) -> int:
        """Return how many of ``most`` frames of (H, W) are run at once, 1 or more.

        A device prepares itself for every new shape: by powers of two it meets few of them,
        however many frames are left at the end.
        """
        count = max(1, min(most, self.pixels // (size[0] * size[1])))
        return count if self._session.device == "cpu" else 1 << (count.bit_length() - 1)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait, once memory has run out for several runs at the same time, until no other runs."""
        with self._turns:
            while self.one_by_one and self._running:
                self._turns.wait()
            self._running += 1
        try:
            yield
        finally:
            with self._turns:
                self._running -= 1
                self._turns.notify_all()

    def _take_turns(self, failed: int) -> None:
        """Let runs go one at a time, and say so."""
        with self._lock:
            first, self.one_by_one = not self.one_by_one, True
        if first:
            self.note = "ran out of memory: one run at a time"
            _log.warning(
                "warning: memory ran out for several runs of %d pixels; one at a time", failed
            )

    def _shrink(self, failed: int) -> None:
        """Allow half of the pixels of a run that failed, and say so."""
        half = failed // 2
        with self._lock:
            if half >= self.pixels:  # another run failed first
                return
            self.pixels = half
            self.note = f"ran out of memory: at most {half} pixels a run"
        _log.warning("warning: memory ran out for %d pixels at once; trying %d", failed, half)


def _pixels(frames: Stack) -> int:
    """Return the pixels that a run of (n, H, W), or (n, F, H, W), computes."""
    return len(frames) * int(np.prod(frames.shape[-2:]))
