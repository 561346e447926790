"""Three measures of one frame of a clip, the same for a denoised frame and for an average."""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from emdn_models.metrics import find_columns, match
from emdn_models.metrics.matching import TOLERANCE_NM
from emdn_train.clips import Frame, Hop

# Of the disc whose mean is a site's amplitude: less than half a bond.
_RADIUS_NM = 0.05
_MARGIN_NM = 0.1
SMOOTHINGS_NM = (0.02, 0.03, 0.04)
"""Widths of the Gaussian before columns are looked for: noise wants more than a clean frame."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ruler:
    """What the frames of one clip are measured by.

    Attributes
    ----------
    expected
        (2, H, W) expected electrons before and after the hop.
    columns
        (n, 2) columns of the first, y and x in pixels.
    sign
        Whether columns are bright or dark.
    contrast
        (H, W) weights whose sum with a frame is how much more the new site is vacant than
        the old one.
    pixel_size_nm
        Side of a pixel.
    """

    expected: Frame
    columns: Floats
    sign: Literal["bright", "dark"]
    contrast: Floats
    pixel_size_nm: float

    @classmethod
    def of(cls, hop: Hop, snr: float) -> Self:
        """Learn from the truth what columns look like, and what a vacancy does to its site."""
        expected = hop.expected(snr)
        before, size = expected[0], hop.pixel_size_nm
        columns = find_columns(before, size)
        bright = find_columns(before, size, sign="bright")
        contrast = _disc(before.shape, hop.new, size) - _disc(before.shape, hop.old, size)
        low, high = (float((contrast * scene).sum()) for scene in expected)
        return cls(
            expected,
            columns,
            "bright" if np.array_equal(columns, bright) else "dark",
            contrast if high > low else -contrast,
            size,
        )

    def squared_error(self, frame: Frame) -> float:
        """Mean squared error before the hop, in units of one raw frame's."""
        before = self.expected[0].astype(np.float64)
        return float(np.square(frame - before).mean() / before.mean())

    def column_errors(self, frame: Frame) -> tuple[float, ...]:
        """Say how far found columns are from those before the hop, pm^2, a number a smoothing.

        The square of OSPA, order 2 and cut off at half a bond (Schuhmacher, Vo, Vo, IEEE TSP
        56(8), 3447, 2008), with greedy pairs: what is missed or false counts as half a bond.
        """
        size = self.pixel_size_nm
        found = []
        for smoothing in SMOOTHINGS_NM:
            places = find_columns(frame, size, sign=self.sign, smoothing_nm=smoothing)
            pairs, distance = match(places, self.columns, TOLERANCE_NM / size)
            off = _off_border(self.columns, frame.shape, size)
            true, hit = int(off.sum()), off[pairs[:, 1]]
            extra = _off_border(places, frame.shape, size)
            extra[pairs[:, 0]] = False
            most = max(true, int(hit.sum() + extra.sum()), 1)
            near = float(np.square(distance[hit] * size).sum())
            found.append(1e6 * (near + (most - int(hit.sum())) * TOLERANCE_NM**2) / most)
        return tuple(found)

    def seen_after(self, frames: Frame) -> int:
        """Say after how many frames (n, H, W) the vacancy is first seen at its new site.

        That is where the difference of the two sites' amplitudes is past the middle between
        what it is before and after the hop, by the truth; n if it is nowhere.
        """
        amplitude = np.einsum("nyx,yx->n", frames, self.contrast)
        middle = np.einsum("nyx,yx->n", self.expected, self.contrast).mean()
        seen = np.flatnonzero(amplitude > middle)
        return int(seen[0]) if len(seen) else len(frames)


def _disc(shape: tuple[int, ...], place: Floats, pixel_size_nm: float) -> Floats:
    y, x = np.indices(shape) * pixel_size_nm
    inside = np.hypot(y - place[0] * pixel_size_nm, x - place[1] * pixel_size_nm) <= _RADIUS_NM
    return np.asarray(inside / inside.sum())


def _off_border(places: Floats, shape: tuple[int, ...], pixel_size_nm: float) -> NDArray[np.bool_]:
    margin = _MARGIN_NM / pixel_size_nm
    return np.asarray(((places >= margin) & (places <= np.array(shape) - 1 - margin)).all(1))
