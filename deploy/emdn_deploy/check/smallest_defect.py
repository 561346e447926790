"""The smallest defect that a check sees: what a pass does not say.

An atom that the denoiser fills in where there is none leaves a spot in the residual, of an
atom's shape. It is found if, smoothed as the check smooths, it rises above the check's limit.
"""

from dataclasses import dataclass
from math import pi, sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, spatial, special

from emdn_deploy.check.camera import Camera

if TYPE_CHECKING:
    from emdn_deploy.check.thresholds import Thresholds

POWER = 0.9  # share of the defects of the smallest size that are found
SIDE = 256  # pixels of a frame that an atom's contrast is measured on
_FEWEST = 8  # spots that tell what an atom looks like
# Share of an atom's norm that nine in ten vacancies in simulated graphene show or exceed: their
# neighbours move, and rings about an atom do not count.
_SURE = 0.75
_MOST = 1000.0  # per cent: what is a tenth of what can be seen may be noise, and is no atom
_CLIPPED = 1.1  # what a run loses by `residual_tests.share`
_WIDTH = 4.0  # pixels, of a spot where no atoms show

Frame = NDArray[np.float32]


@dataclass(frozen=True)
class Smallest:
    """The smallest defect that is found in 9 cases of 10.

    Attributes
    ----------
    percent
        Of an atom's contrast; None where no atoms show, or nothing is found at any size.
    run_percent
        The same of a defect that stays in place for a run of frames; None without runs.
    words
        What a pass does not say, for people.
    """

    percent: float | None
    run_percent: float | None
    words: str


@dataclass(frozen=True)
class Atom:
    """An atom's picture, taken as a Gaussian.

    Attributes
    ----------
    norm
        Root of the sum of the squares of its pixels, intensity units.
    width
        Standard deviation, pixels.
    """

    norm: float
    width: float


def atom_of(frame: Frame) -> Atom | None:
    """Measure what one atom adds to a denoised frame (H, W); None where none shows.

    Where a frame is the sum of equal pictures of scattered atoms, its variance is the square
    of a picture's norm times the atoms a pixel (Campbell, Proc. Camb. Phil. Soc. 15, 1909,
    117): so neighbours that overlap do not matter. Atoms are counted as spots, bright or dark,
    whichever give more. A spot with six neighbours is taken for two atoms, since the two
    sublattices of a honeycomb are rarely told apart; where it is one, an atom is sqrt(2) times
    stronger than said here.
    `_SURE` of the norm is returned.
    """
    whole = frame[middle(frame.shape)].astype(np.float64)
    if min(whole.shape) < 32:
        return None
    reach = 0.1 * min(whole.shape)
    for _ in range(2):  # the second time without what varies more slowly than the lattice
        detail = whole - ndimage.gaussian_filter(whole, reach)
        detail = np.clip(detail, *np.quantile(detail, (0.005, 0.995)))  # a heavy atom is not usual
        slopes = sum(float(one.var()) for one in np.gradient(detail))
        if not slopes > 1e-12 * float(np.square(whole).mean()):
            return None
        width = sqrt(float(detail.var()) / slopes)
        smooth = ndimage.gaussian_filter(detail, max(1.0, width / 3))
        bright, dark = (_area(field, max(1, round(width))) for field in (smooth, -smooth))
        area, spacing = min(bright[0], dark[0]), max(bright[1], dark[1])
        if not (np.isfinite(area) and spacing < min(whole.shape) / 4):
            return None
        reach = 0.6 * spacing
    edge = int(reach)
    variance = float(detail[edge:-edge, edge:-edge].var())
    return Atom(_SURE * sqrt(variance * area), width)


def middle(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the middle of a frame, at most `SIDE` pixels a side."""
    return tuple(slice((n - min(n, SIDE)) // 2, (n + min(n, SIDE)) // 2) for n in shape)


def _area(field: NDArray[np.float64], edge: int) -> tuple[float, float]:
    """Return the pixels that an atom takes, and the distance of spots; infinite and 0 for none.

    Parameters
    ----------
    edge
        How far from the border spots are looked for, and what they are above, pixels.
    """
    highest = ndimage.maximum_filter(field, 2 * edge + 1) == field
    highest &= field > 0.3 * field.std()
    spots = np.argwhere(highest[edge:-edge, edge:-edge]) + edge
    if len(spots) < _FEWEST:
        return np.inf, 0.0
    tree = spatial.KDTree(spots)
    spacing = float(np.median(tree.query(spots, 2)[0][:, 1]))
    inside = ((spots >= spacing) & (spots < np.array(field.shape) - spacing)).all(axis=1)
    around = tree.query_ball_point(spots[inside], 1.35 * spacing, return_length=True)
    atoms = 2 if len(around) and np.median(around) > 6 else 1  # with itself
    return float(np.prod(np.array(field.shape) - 2 * edge)) / len(spots) / atoms, spacing


def of_check(raw: Frame, denoised: Frame, own: "Thresholds") -> Smallest:
    """Find the smallest defect that ``check`` flags, from one frame (H, W)."""
    from emdn_deploy.check.residual_tests import SCALES, smoothed  # not for every run of denoise

    if own.noise.correlated:
        words = "a filled atom cannot be seen: in correlated noise no place is judged"
        return Smallest(None, None, words)
    side = tuple(slice(0, min(n, SIDE)) for n in raw.shape)
    noise = own.camera.noise(denoised)
    spread = smoothed(((raw - denoised) / noise)[side]).std(axis=(1, 2))
    level = float(np.quantile(noise, POWER))  # where the beam is bright, less is seen
    atom = atom_of(denoised)
    width = atom.width if atom else _WIDTH

    def norm(prefix: str) -> float:
        """Return the norm of the faintest spot, in units of the noise of a pixel."""
        power = float(special.ndtri(POWER))
        return min(
            (own.limits[f"{prefix}blob_{scale:g}"].high + power) * float(one)
            * (width**2 + scale**2) / (2 * width * scale)
            for scale, one in zip(SCALES, spread, strict=True)
        )  # fmt: skip

    length = own.bootstrap.length
    run = _CLIPPED * norm("run_") / sqrt(length) * level if length else None
    return _said(norm("") * level, run, length, atom, float(denoised.mean()) - own.camera.offset)


def of_boxes(
    denoised: Frame, camera: Camera, noise: float, limit: float, spread: float, box: int
) -> Smallest:
    """Find the smallest defect that shows in the mean residual of boxes.

    Parameters
    ----------
    denoised
        (H, W).
    noise
        Standard deviation of a pixel's noise, intensity units, where it is largest.
    limit, spread
        What a box's mean is flagged above, and its scatter, in standard deviations of white noise.
    box
        Side in pixels.
    """
    atom = atom_of(denoised)
    width = atom.width if atom else _WIDTH
    # The share of a spot that is in the box with most of it, wherever its middle is.
    edges = (np.arange(8) + 0.5) / 16 * box
    part = special.ndtr((box - edges) / width) - special.ndtr(-edges / width)
    signal = np.outer(part, part).ravel() * 2 * sqrt(pi) * width / box
    low, high = 0.0, 1e6
    for _ in range(60):
        norm = (low + high) / 2
        # The noise expected is that of the spot as well, which so hides a part of itself.
        height = norm * noise / (sqrt(pi) * width)
        seen = norm / sqrt(1 + abs(camera.gain) * height / 2 / noise**2) * signal
        missed = float(special.ndtr((limit - seen) / max(spread, 0.1)).mean())
        low, high = (low, norm) if missed < 1 - POWER else (norm, high)
    return _said(high * noise, None, 0, atom, float(denoised.mean()) - camera.offset)


def _said(norm: float, run: float | None, length: int, atom: Atom | None, mean: float) -> Smallest:
    percent = 100 * norm / atom.norm if atom else _MOST
    if atom is None or percent >= _MOST:
        width = atom.width if atom else _WIDTH
        height = 100 * norm / (sqrt(pi) * width) / max(abs(mean), float(np.finfo(np.float32).tiny))
        return Smallest(
            None, None,
            f"no atoms show; a false spot of {width:.2g} px (sigma) is noticed above "
            f"{rounded(height)} % of the mean intensity",
        )  # fmt: skip
    words = f"a filled atom is noticed above {rounded(percent)} % of an atom's contrast"
    together = None if run is None else 100 * run / atom.norm
    if together is not None and length > 1:
        words += f" in one frame, {rounded(together)} % if it stays for {length} frames"
    if percent > 100:
        words += ": single vacancies can be filled unseen at this dose"
    return Smallest(percent, together, words)


def rounded(percent: float) -> str:
    """Write a number with two digits that count."""
    return f"{float(f'{percent:.2g}'):g}"
