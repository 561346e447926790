"""Frames that are read one by one, and of which some may be missing."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_models.errors import FormatError


class Pages:
    """Pages behind a function, indexed like an array: ``pages[a:b]`` reads b - a of them.

    Parameters
    ----------
    shape
        Stored shape as the file promises it; the last ``inner`` axes are those of a page.
    there
        How many pages the file holds; reading one beyond raises ``missing``.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        inner: int,
        page: Callable[[int], NDArray[Any]],
        there: int,
        missing: str,
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._lead = len(shape) - inner
        self._page, self._there, self._missing = page, there, missing

    def __getitem__(self, where: Any) -> NDArray[Any]:
        where = where if isinstance(where, tuple) else (where,)
        lead = self.shape[: self._lead]
        taken = np.arange(math.prod(lead)).reshape(lead)[where[: self._lead]]
        if taken.size and taken.max() >= self._there:
            raise FormatError(self._missing)
        pages = [self._page(int(number)) for number in np.atleast_1d(taken).ravel()]
        stack = np.stack(pages).reshape(*taken.shape, *self.shape[self._lead :])
        inner: NDArray[Any] = stack[(..., *where[self._lead :])]
        return inner


def cut_short(path: Path, there: int, promised: str) -> str:
    """Say that a file holds fewer frames than it promises, and what to do."""
    said = f"{path}: is cut short: {there} of {promised} frames are there; copy it again"
    return said + (f", or take these with --frames 0:{there}" if there > 0 else "")
