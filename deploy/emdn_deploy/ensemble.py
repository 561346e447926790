"""Denoise in the eight orientations of a frame: their mean, and how far they differ.

A net knows no up and down, so that its answer for a turned frame, turned back, is as good
as its answer for the frame. The mean of the eight is better than any of them (self-ensemble,
Timofte, Rothe, Van Gool, CVPR 2016, section 3), and their spread says where the net is unsure.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Stack = NDArray[np.float32]

ORIENTATIONS = 8


def turn(frames: Stack, orientation: int) -> Stack:
    """Turn (n, H, W) into an orientation, 0 to 7; from 4 on height and width change places."""
    turned = frames.transpose(0, 2, 1) if orientation >= 4 else frames
    turned = turned[:, ::-1] if orientation & 1 else turned
    turned = turned[:, :, ::-1] if orientation & 2 else turned
    return np.ascontiguousarray(turned)


def back(frames: Stack, orientation: int) -> Stack:
    """Undo `turn`."""
    turned = frames[:, :, ::-1] if orientation & 2 else frames
    turned = turned[:, ::-1] if orientation & 1 else turned
    return turned.transpose(0, 2, 1) if orientation >= 4 else turned


def apply(run: Callable[[Stack], Stack], frames: Stack) -> tuple[Stack, Stack]:
    """Run a denoiser on all orientations, one at a time.

    Parameters
    ----------
    run
        Denoises (n, H, W), and (n, W, H).

    Returns
    -------
    ndarray, ndarray
        (n, H, W) each: the mean over the orientations and their variance, with 7 degrees of
        freedom, in the frames' units and their square.
    """
    first = run(frames)
    total, squares = np.zeros_like(first), np.zeros_like(first)
    for orientation in range(1, ORIENTATIONS):
        # About the first estimate float32 loses nothing, however large the intensities.
        difference = back(run(turn(frames, orientation)), orientation) - first
        total += difference
        squares += difference * difference
    total /= ORIENTATIONS
    squares -= ORIENTATIONS * total * total
    squares /= ORIENTATIONS - 1
    return first + total, np.maximum(squares, 0)
