"""How much a run of a session may hold, and less of it once memory has run out.

One number says it: the most pixels of one run. Frames share a run as long as they fit, and a
frame that does not fit by itself is cut into tiles. So when a run fails for lack of memory,
half of its pixels halve first the frames of a run, down to one, and then its tiles. Neither
changes the result, but for the last digits where a GPU's library chooses other kernels.
"""

import logging
import sys
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import tiling
from emdn_deploy.intensity import Intensity
from emdn_deploy.session import Session
from emdn_models.errors import DeviceMemoryError, ModelError

Stack = NDArray[np.float32]

_log = logging.getLogger(__name__)


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
        try:
            return session.run(tile, *scale.numbers, out=into, alone=alone)
        except DeviceMemoryError:
            room.shrink(tile.size)
            raise

    if frames[0].size <= min(tiling.WHOLE_PIXELS, room.pixels):
        whole(frames, out)
        return
    tile = min(tiling.TILE_PIXELS, room.pixels)
    tiling.apply(whole, frames, session.info, out, tile, even=session.device != "cpu")
