"""Frames too large for one run: tiles with a halo, bit for bit the whole frame.

The halo is what the model sees beyond its cells of ``multiple`` pixels, rounded up to such,
and tiles begin on multiples, so that every kept pixel sees exactly what it sees in the whole
frame. Halos are cropped, never blended.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.model_info import ModelInfo
from emdn_models.errors import ModelError

# The largest frame that is denoised whole, and the largest tile of one that is not.
WHOLE_PIXELS = 2048 * 2048
TILE_PIXELS = 1280 * 1280

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Span:
    """One tile along one axis: pixels ``keep`` of the frame come from pixels ``read``."""

    read: slice
    keep: slice

    @property
    def inner(self) -> slice:
        """Return where the kept pixels lie in the tile."""
        return slice(self.keep.start - self.read.start, self.keep.stop - self.read.start)


def apply(
    run: Run,
    frames: NDArray[np.float32],
    info: ModelInfo,
    out: NDArray[np.float32],
    tile_pixels: int = TILE_PIXELS,
    *,
    even: bool = False,
) -> None:
    """Denoise (n, H, W), or (n, F, H, W), by tiles into ``out``; `emdn_deploy.batching` says when.

    Parameters
    ----------
    even
        Whether tiles at the edges are as large as the others; see `tiles`.

    Raises
    ------
    ModelError
        If the model's tiles are not exact, or the halo leaves nothing of a tile.
    """
    height, width = frames.shape[-2:]
    if not info.tiling_exact:
        node = info.text.get("whole_frame")
        raise ModelError(
            f"frames of {height} x {width} need tiles, and {info.name} ({info.preset}) does not "
            f"give the same result by tiles{f': {node}' if node else ''}; use another model"
        )
    rows, columns = tiles((height, width), info, tile_pixels, even=even)
    for row in rows:
        for column in columns:
            for index in range(len(frames)):
                # A contiguous copy: the crop of a frame is not, and a session wants one.
                tile = np.ascontiguousarray(frames[index : index + 1, ..., row.read, column.read])
                out[index, row.keep, column.keep] = run(tile)[0, row.inner, column.inner]


def times(size: tuple[int, int], info: ModelInfo, tile_pixels: int, *, even: bool) -> float:
    """Return how many times the pixels of a frame of (H, W) are computed by tiles."""
    rows, columns = tiles(size, info, tile_pixels, even=even)
    high, wide = (
        sum(int(one.read.stop) - int(one.read.start) for one in spans) for spans in (rows, columns)
    )
    return high * wide / (size[0] * size[1])


def most_pixels(size: tuple[int, ...]) -> int:
    """Return the pixels of the largest run that frames of (H, W) need."""
    pixels = size[0] * size[1]
    return pixels if pixels <= WHOLE_PIXELS else TILE_PIXELS


def halo(info: ModelInfo) -> int:
    """Return the border, in pixels, that a tile needs on every inner side.

    Where the file does not say it, it follows from the field: that is centred on a pixel's cell
    of ``multiple`` pixels, not on itself, so it reaches up to half a cell further to one side.
    """
    if info.halo is not None:
        return info.halo
    radius = (info.receptive_field + 1) // 2 + info.multiple // 2
    return -(-radius // info.multiple) * info.multiple


def tiles(
    size: tuple[int, int], info: ModelInfo, max_pixels: int = TILE_PIXELS, *, even: bool = False
) -> tuple[list[Span], list[Span]]:
    """Cut a frame of (H, W) into row and column spans of at most ``max_pixels`` together.

    Tiles at the edges need no halo there and are smaller. With ``even``, they read as much as
    the others, to within the size multiple: more to compute, but hardly a shape more.
    """
    side = int(np.sqrt(max_pixels))
    if size[0] <= side:
        limits = size[0], max_pixels // size[0]
    elif size[1] <= side:
        limits = max_pixels // size[1], size[1]
    else:
        limits = side, side
    return _spans(size[0], limits[0], info, even), _spans(size[1], limits[1], info, even)


def _spans(length: int, limit: int, info: ModelInfo, even: bool) -> list[Span]:
    if limit >= length:
        return [Span(slice(0, length), slice(0, length))]
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
        Span(
            _read(start, core, border, length, info, even), slice(start, min(length, start + core))
        )
        for start in range(0, length, core)
    ]


def _read(start: int, core: int, border: int, length: int, info: ModelInfo, even: bool) -> slice:
    """Return what a tile that keeps ``core`` pixels from ``start`` on has to see."""
    first, last = max(0, start - border), start + core + border
    if even:
        last = max(last, core + 2 * border)
        first = max(0, first - max(0, last - length) // info.multiple * info.multiple)
    return slice(first, min(length, last))
