"""Columns of atoms in a frame: where they are, to a fraction of a pixel.

Common practice (Nord et al., Adv. Struct. Chem. Imaging 3, 9, 2017, Atomap) is local maxima a
fixed distance apart, then a fit to each. Here a maximum counts by how far it rises over the
pass to a higher one (its persistence, Edelsbrunner, Letscher, Zomorodian, Discrete Comput.
Geom. 28, 511, 2002), so that no spacing of the crystal need be known.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from emdn_models.errors import EmdnError
from emdn_models.metrics import accept
from emdn_models.metrics.accept import Floats
from emdn_models.metrics.peaks import flattened, maxima, refined

Sign = Literal["bright", "dark", "auto"]
BOND_NM = 0.142
_CLOSEST_NM = 0.05
_BACKGROUND_NM = 0.35


def find_columns(
    frame: ArrayLike,
    pixel_size_nm: float,
    *,
    sign: Sign = "auto",
    prominence: float = 0.05,
    smoothing_nm: float = 0.02,
) -> Floats:
    """Find atom columns as extrema that stand out, refined by a paraboloid.

    Parameters
    ----------
    frame
        (H, W), clean or denoised, in any units.
    pixel_size_nm
        Side of a pixel.
    sign
        Whether columns are brighter or darker than what is between them. ``auto`` takes the
        sign whose columns are a carbon bond apart (0.142 nm within 15 %), else the one whose
        extrema are the sharper. Only these two rules: with the first reflections alone, dark
        columns of graphene and bright ones of a close-packed layer look the same.
    prominence
        Least rise over the pass to a higher column, in standard deviations (estimated by
        1.4826 times the median deviation) of the frame after its background is removed.
    smoothing_nm
        Standard deviation of the Gaussian that goes before; it also bounds how near two
        columns can be.

    Returns
    -------
    ndarray
        (n, 2) float64, y and x in pixels, of pixel centres at whole numbers.

    Raises
    ------
    EmdnError
        If the frame is not (H, W) of finite numbers, or a parameter is out of range.
    """
    image = one_frame(frame)
    accept.positive("pixel_size_nm", pixel_size_nm, ())
    accept.positive("prominence", prominence, ())
    accept.positive("smoothing_nm", smoothing_nm, ())
    flat = flattened(image, smoothing_nm / pixel_size_nm, _BACKGROUND_NM / pixel_size_nm)
    if sign not in ("bright", "dark", "auto"):
        raise EmdnError(f"sign: found {sign!r}, expected 'bright', 'dark' or 'auto'")
    # What rounding leaves of a constant frame is no contrast.
    if flat.std() <= 1e-9 * np.abs(image).max():
        return np.empty((0, 2))
    # The median: one heavy atom would lift a standard deviation over all carbon.
    least = prominence * 1.4826 * float(np.median(np.abs(flat)))
    reach = max(0.03 / pixel_size_nm, 1.5)
    found = {
        side: refined(up, maxima(up, least), reach, _CLOSEST_NM / pixel_size_nm)
        for side, up in (("bright", flat), ("dark", -flat))
        if sign in (side, "auto")
    }
    if sign == "auto":
        bonded = [s for s in found if abs(_spacing(found[s]) * pixel_size_nm / BOND_NM - 1) < 0.15]
        sharper = "bright" if (flat**3).mean() > 0 else "dark"
        return found[bonded[0] if len(bonded) == 1 else sharper]
    return found[sign]


def one_frame(frame: ArrayLike) -> Floats:
    """Return one frame (H, W) as float64, checked."""
    (image,) = accept.frames(frame=frame)
    if image.ndim != 2:
        raise EmdnError(f"frame: found shape {image.shape}, expected one frame (H, W)")
    return image


def _spacing(places: Floats) -> float:
    """Median distance to the nearest other point."""
    if len(places) < 2:
        return float("inf")
    gap = ((places[:, None] - places[None]) ** 2).sum(2)
    np.fill_diagonal(gap, np.inf)
    return float(np.sqrt(np.median(gap.min(1))))
