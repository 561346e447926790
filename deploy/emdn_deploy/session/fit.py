"""How many pixels a device has memory for, measured, since it depends on kernels and not on nets.

What a run takes is what cuDNN's kernels want as workspace, what the arena keeps and the widest
maps of the net, in one layout or the other. One run shows it; no estimate from the graph does.
"""

from collections.abc import Callable

# Sides of two frames: the first loads kernels and opens libraries, the second is measured.
FIRST, SECOND = 64, 512
# Of the free memory; the rest is for other programs and for kernels that want more.
SHARE = 0.5
# Bytes a pixel that any net takes: less is measured where another program has just ended.
LEAST = 64


def pixels(run: Callable[[int], object], free_bytes: Callable[[], int]) -> int:
    """Return how many pixels may be run at once.

    Parameters
    ----------
    run
        ``run(side)`` denoises one square frame.
    free_bytes
        Tells the device's free memory.
    """
    run(FIRST)
    before = free_bytes()
    run(SECOND)
    each = max((before - free_bytes()) / SECOND**2, LEAST)
    return int(SHARE * before / each)
