"""Denoise dask's arrays: block by block, when and where they are computed."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.preprocess import Answer, Recipe, Stack

if TYPE_CHECKING:
    from emdn_deploy.denoiser import Denoiser

_FRAMES = 16  # of a block, if blocks are so short that most of it would be neighbours of others


def denoised(model: "Denoiser", stack: Any, recipe: Recipe, *, with_sigma: bool) -> Answer:
    """Denoise a dask array (N, H, W) into others, with the neighbours of each block.

    Blocks along y and x are joined. The shifts of the answer, not known before it is computed, are
    NaN.
    """
    from dask.array import overlap

    half = model.session.info.frames // 2
    stack = stack.rechunk({1: -1, 2: -1})
    if half and min(stack.chunks[0]) < 4 * half:
        stack = stack.rechunk({0: _FRAMES})
        # The last block may be too short to be the neighbour of another.
        stack = stack.rechunk({0: overlap.ensure_minimum_chunksize(half, stack.chunks[0])})
    last = stack.numblocks[0] - 1

    def block(raw: Stack, block_info: Any) -> NDArray[np.float32]:
        place = block_info[0]["chunk-location"][0]
        around = half if place else 0, half if place < last else 0
        # Other blocks are computed beside it, by dask's own threads.
        made, _ = model.block(raw, recipe, around=around, with_sigma=with_sigma, alone=last > 0)
        return np.stack([made.frames] if made.sigma is None else [made.frames, made.sigma])

    chunks = ((1 + with_sigma,), *stack.chunks)
    seen = overlap.overlap(stack, {0: half}, "none")
    meta = np.zeros((0, 0, 0, 0), np.float32)
    frames, *sigma = seen.map_blocks(block, chunks=chunks, new_axis=0, meta=meta)
    return Answer(frames, np.full(len(stack), np.nan), *sigma)
