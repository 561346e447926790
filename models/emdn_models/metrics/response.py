"""Whether intensities come out as they went in, without the truth."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from emdn_models.errors import EmdnError
from emdn_models.metrics import accept
from emdn_models.metrics.accept import Floats


@dataclass(frozen=True)
class Linearity:
    """Local means of denoised frames as a straight line of those of the raw frames.

    Attributes
    ----------
    slope, intercept
        denoised = slope * raw + intercept; 1 and 0 where no bias depends on intensity.
    slope_error
        Standard error of the slope.
    raw, denoised
        (B,) means of the blocks of each bin, from dark to bright, in intensity units.
    """

    slope: float
    intercept: float
    slope_error: float
    raw: Floats
    denoised: Floats


def linearity(
    denoised: ArrayLike,
    raw: ArrayLike,
    block: int = 16,
    bins: int = 16,
    valid: ArrayLike | None = None,
) -> Linearity:
    """Compare local mean intensities out with those in, over all frames given.

    Noise in the quantity that is regressed on flattens a line (Fuller, Measurement Error
    Models, 1987, section 1.1). Block means of raw frames have more noise than those of
    denoised ones, so blocks are binned by their denoised mean, the raw means are
    regressed on these, and the line is inverted. A filter that only blurs then has a slope near
    1, and one that halves the contrast of large structures has 0.5; regressed the other
    way, noise would lower both. What noise remains in the denoised means is
    shared with the raw ones, which nearly cancels its effect.

    Parameters
    ----------
    denoised, raw
        (H, W) or (N, H, W), in the same units.
    block
        Side of the blocks in pixels, best larger than the denoiser blurs. Pixels beyond the
        last whole block are left out.
    bins
        Bins of equal numbers of blocks; fewer if there are few blocks.
    valid
        (H, W) or (N, H, W), the pixels that count; None for all. Blocks less than half
        valid are left out.

    Raises
    ------
    EmdnError
        If the shapes differ, or fewer than 3 blocks can be had.

    Notes
    -----
    Where the denoised blocks do not differ at all, slope and intercept are NaN. Where
    the frames hold no structure as large as a block, ``slope_error`` is large: no statement.
    """
    out, given = accept.frames(denoised=denoised, raw=raw)
    good = accept.mask(valid, given.shape).astype(np.float64)
    count = _blocks(good, block)
    kept = count >= 0.5
    if kept.sum() < 3:
        raise EmdnError(
            f"raw: found {int(kept.sum())} blocks of {block} x {block} valid pixels in frames "
            f"{given.shape}, expected 3 or more; give a smaller block"
        )
    x, y = (_blocks(frames * good, block)[kept] / count[kept] for frames in (out, given))
    order = np.array_split(np.argsort(x, kind="stable"), min(bins, x.size))
    levels, means = (np.array([values[part].mean() for part in order]) for values in (x, y))
    sizes = np.array([part.size for part in order], dtype=np.float64)
    centre_x, centre_y = x.mean(), y.mean()
    spread = np.sum(sizes * (levels - centre_x) ** 2)
    if spread <= 1e-24 * x.size * max(float(np.square(x).max()), 1e-300):
        return Linearity(np.nan, np.nan, np.nan, means, levels)
    back = np.sum(sizes * (levels - centre_x) * (means - centre_y)) / spread
    scatter = np.square(y - centre_y - back * (x - centre_x)).sum() / max(1, x.size - 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = 1 / back
        error = np.sqrt(scatter / spread) / back**2
        return Linearity(
            float(slope), float(centre_x - slope * centre_y), float(error), means, levels
        )


def _blocks(frames: Floats, side: int) -> Floats:
    """Mean of each whole block, (..., H // side, W // side)."""
    height, width = (length // side for length in frames.shape[-2:])
    cut = frames[..., : height * side, : width * side]
    shape = (*frames.shape[:-2], height, side, width, side)
    return np.asarray(cut.reshape(shape).mean(axis=(-3, -1)))
