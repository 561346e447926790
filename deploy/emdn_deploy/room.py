"""How much a run of a session may hold, and less of it once memory has run out.

One number says it: the most pixels of one run. Frames share a run as long as they fit, and a
frame that does not fit by itself is cut into tiles. So when a run fails for lack of memory, runs
go one at a time first; then half of its pixels halve the frames of a run, down to one, and then
its tiles, as long as these are not mostly borders. None of it changes the result, but for the
last digits where a GPU's library chooses other kernels.
"""

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import tiling
from emdn_deploy.intensity import Intensity
from emdn_deploy.model import ModelInfo
from emdn_deploy.session import Session
from emdn_models.errors import DeviceMemoryError, ModelError

Stack = NDArray[np.float32]

_log = logging.getLogger(__name__)

# Tiles that compute so many times a frame's pixels take too long to be a way out.
_MOST_TIMES = 16
# Bytes that a run takes, a pixel, and a process besides (measured: 320 to 343, and 0.8 GB).
_PIXEL_BYTES, _PROCESS_BYTES = 350, 8e8


class Room:
    """The most pixels of one run.

    Parameters
    ----------
    measure
        Tells it, when it is first needed; None for no limit.
    few_shapes
        Whether a run holds a power of two of frames: a device that prepares itself for every
        new shape then meets few of them, however many frames are left at the end.
    """

    def __init__(self, measure: Callable[[], int | None], *, few_shapes: bool) -> None:
        self._measure, self._few_shapes = measure, few_shapes
        self._pixels: int | None = None
        self._lock = threading.Lock()
        self._turns, self._running = threading.Condition(), 0
        self.one_by_one = False
        self.note = ""

    @property
    def pixels(self) -> int:
        """Return the limit."""
        with self._lock:
            if self._pixels is None:
                found = self._measure()
                self._pixels = sys.maxsize if found is None else found
            return self._pixels

    def frames(self, size: tuple[int, ...], most: int) -> int:
        """Return how many of ``most`` frames of (H, W) are run at once, 1 or more."""
        count = max(1, min(most, self.pixels // (size[0] * size[1])))
        return 1 << (count.bit_length() - 1) if self._few_shapes else count

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
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

    def take_turns(self, failed: int) -> None:
        """Let runs go one at a time, and say so."""
        with self._lock:
            first, self.one_by_one = not self.one_by_one, True
        if first:
            self.note = "ran out of memory: one run at a time"
            _log.warning(
                "warning: memory ran out for several runs of %d pixels; one at a time", failed
            )

    def shrink(self, failed: int) -> None:
        """Allow half of the pixels of a run that failed, and say so."""
        half = failed // 2
        if half >= self.pixels:  # another lane failed first
            return
        with self._lock:
            self._pixels = half
            self.note = f"ran out of memory: at most {half} pixels a run"
        _log.warning("warning: memory ran out for %d pixels at once; trying %d", failed, half)


def denoise(
    session: Session, room: Room, frames: Stack, scale: Intensity, out: Stack, *, alone: bool
) -> None:
    """Denoise (n, H, W) into ``out``, by smaller batches and by tiles as there is room.

    Parameters
    ----------
    alone
        As of `emdn_deploy.session.Session.run`.

    Raises
    ------
    DeviceMemoryError
        If memory does not suffice for one frame and the model cannot be tiled, or not finer.
    """
    done = 0
    while done < len(frames):
        part = slice(done, done + room.frames(frames.shape[1:], len(frames) - done))
        try:
            _once(session, room, frames[part], scale, out[part], alone)
        except DeviceMemoryError:
            continue  # there is less room now
        except ModelError as error:
            if not room.note:
                raise
            raise DeviceMemoryError(f"{room.note}; {error}") from error
        done = part.stop


def _once(
    session: Session, room: Room, frames: Stack, scale: Intensity, out: Stack, alone: bool
) -> None:
    """Denoise frames in one run, or a frame by tiles."""

    def whole(tile: Stack, into: Stack | None = None) -> Stack:
        beside = alone and not room.one_by_one
        try:
            with room.turn():
                return session.run(tile, *scale.numbers, out=into, alone=alone)
        except DeviceMemoryError:
            if beside:
                room.take_turns(tile.size)
                return whole(tile, into)
            room.shrink(tile.size)
            raise

    if frames[0].size <= min(tiling.WHOLE_PIXELS, room.pixels):
        whole(frames, out)
        return
    tile, even = min(tiling.TILE_PIXELS, room.pixels), session.device != "cpu"
    if room.note and session.info.tiling_exact:
        _check_worth(frames.shape[1:], session.info, tile, even=even)
    tiling.apply(whole, frames, session.info, out, tile, even=even)


def _check_worth(size: tuple[int, ...], info: ModelInfo, tile: int, *, even: bool) -> None:
    """Give up where tiles that fit would be borders mostly.

    Raises
    ------
    ModelError
        Saying how much memory is needed.
    """
    height, width = size
    rows, columns = tiling.tiles((height, width), info, tile, even=even)
    read = [sum(one.read.stop - one.read.start for one in spans) for spans in (rows, columns)]
    times = read[0] * read[1] / (height * width)
    if times > _MOST_TIMES:
        needed = _PROCESS_BYTES + _PIXEL_BYTES * min(height * width, tiling.TILE_PIXELS)
        raise ModelError(
            f"frames of {height} x {width} need about {needed / 1e9:.1f} GB, and pieces of "
            f"{tile} pixels would take {info.name} {times:.0f} times as long; allow more memory, "
            "take fewer --threads, or a model that sees less"
        )
