"""How a stack is cut into runs: how many frames at once, and how many runs side by side."""

from collections.abc import Callable

import numpy as np

from emdn_deploy import lanes, tiling
from emdn_deploy.room import Room
from emdn_deploy.session import Session

# Pixels of one session.run: batching gains little on a CPU and costs memory. In a lane it
# gains nothing, but for frames so small that the call itself takes a share of the time.
_BATCH_PIXELS, _LANE_PIXELS = 2**19, 2**16
# On a GPU it fills the multiprocessors, which some millions of pixels do, of how many frames ever.
_DEVICE_PIXELS, _DEVICE_FRAMES = 2**22, 64


def side_by_side(session: Session, room: Room, count: int, size: tuple[int, ...]) -> int:
    """Choose how many of ``count`` frames of (H, W) are run at the same time."""
    if session.device != "cpu":  # one is copied while the other is computed
        return 2 if count > together(session, room, size) else 1
    return lanes.choose(session.threads, count, tiling.most_pixels(size))


def together(session: Session, room: Room, size: tuple[int, ...], *, alone: bool = False) -> int:
    """Choose how many frames of (H, W) share a run.

    Parameters
    ----------
    alone
        Whether the run has one CPU thread, and others are beside it.
    """
    pixels = size[0] * size[1]
    if session.device != "cpu":
        return room.frames(size, max(1, min(_DEVICE_FRAMES, _DEVICE_PIXELS // pixels)))
    most = _LANE_PIXELS if alone else _BATCH_PIXELS
    return int(np.clip(most // pixels, 1, 8))


def each(
    session: Session,
    room: Room,
    shape: tuple[int, ...],
    one: Callable[[slice, bool], None],
    batch: int | None,
    *,
    alone: bool,
) -> None:
    """Call ``one`` for parts of a stack (n, H, W), side by side where that is faster.

    Parameters
    ----------
    one
        Takes a part, and whether it is to keep to one CPU thread.
    batch
        Frames per part; None chooses.
    alone
        Whether the caller itself is one of several, and wants no threads beside its own.
    """
    count, size = shape[0], shape[1:]
    wide = 1 if alone else side_by_side(session, room, count, size)
    alone = alone or wide > 1
    step = batch or together(session, room, size, alone=alone)
    parts = [slice(start, start + step) for start in range(0, count, step)]
    for _ in lanes.ordered(lambda part: one(part, alone), parts, wide):
        pass
