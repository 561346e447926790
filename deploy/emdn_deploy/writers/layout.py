"""What every writer returns: a complete file whose frames are still to be filled in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Provenance = Mapping[str, str | int | float]
"""How an output came about, by name."""


@dataclass(frozen=True)
class Layout:
    """Where the frames of an output lie.

    A writer makes the whole file first, headers and all, and says at which byte
    each frame belongs. Filling it in then needs no library: it cannot corrupt the
    structure, and a file cut short can be continued.

    Attributes
    ----------
    offsets
        (N,) int64, byte of the first pixel of each frame.
    dtype
        Of a stored pixel.
    transposed
        Whether a frame is stored as (x, y).
    finish
        Called with what is known at the end only, after the last frame.
    """

    offsets: NDArray[np.int64]
    dtype: np.dtype[np.float32] = field(default_factory=lambda: np.dtype("<f4"))
    transposed: bool = False
    finish: Callable[[Provenance], None] = lambda _: None
