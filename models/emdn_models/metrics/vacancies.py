"""Vacant sites of a crystal whose sites are known, and how many of them a frame still shows.

Intensities at lattice sites against their neighbours' are how vacancies are counted in
micrographs (Krivanek et al., Nature 464, 571, 2010). Here the amplitudes of all sites are
fitted together, so that neighbours which overlap are told apart, and the picture of a site is
the frame's own, so that it may be bright or dark and need not be round.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emdn_models.errors import EmdnError
from emdn_models.metrics import accept
from emdn_models.metrics.accept import Floats
from emdn_models.metrics.atoms import one_frame
from emdn_models.metrics.matching import points, to_border
from emdn_models.metrics.template import (
    Pictures,
    core,
    fit_picture,
    lay_out,
    solve_strengths,
)

THRESHOLD = 0.6
MARGIN_NM = 0.25
_PULL = 0.05
_NEIGHBOURS = 12
# Beyond these a frame is not the sum of compact pictures, and a vacancy does not look like a
# missing atom. Chosen on simulated training frames, by which vacancies come out below 1.
LEAST_EXPLAINED = 0.7
LEAST_CORE = 0.7
# Sites of one kind among several are further apart, which settles their picture better.
LEAST_CORE_OF_KINDS = 0.4
MOST_SPREAD = 0.12
MOST_ODD = 0.02
MOST_WILD = 0.001
_FEWEST_ODD = 5
HEAVY = 1.6


@dataclass(frozen=True, eq=False)
class SiteTemplate:
    """What a site of this crystal looks like in this frame, and whether that is of use.

    Attributes
    ----------
    sites
        (n, 2), y and x in pixels.
    kinds
        (n,) 0, 1, ...: sites of one kind look alike.
    pictures, weights
        Pixels of every site and its picture there.
    gain
        (n,) slowly varying strength of the sites, 1 in the median.
    judged
        (n,) sites far enough from the border, and from sites of unknown amplitude.
    near
        (n, k) each site's nearest others of its kind.
    sign
        ``bright`` or ``dark``.
    explained
        Share of the variance that sites of equal amplitude explain.
    core
        Share of the picture's energy within 0.06 nm of the site, of the kind that has least.
    spread
        Of the judged sites' amplitudes, 1.4826 times the median deviation.
    odd
        Share of the judged full sites whose amplitude is more than 0.4 off 1.
    wild
        Share of the judged sites, vacant ones too, whose amplitude is above 1.6.
    """

    sites: Floats
    kinds: NDArray[np.int64]
    pictures: Pictures
    weights: Floats
    gain: Floats
    judged: NDArray[np.bool_]
    near: NDArray[np.int64]
    sign: str
    explained: float
    core: float
    spread: float
    odd: float
    wild: float

    @property
    def applicable(self) -> bool:
        """Whether vacancies mean anything in this frame; ``why_not`` says what is against it."""
        return self.why_not == ""

    @property
    def why_not(self) -> str:
        """What speaks against counting vacancies here, or nothing."""
        odd = max(MOST_ODD, _FEWEST_ODD / max(int(self.judged.sum()), 1))
        core = LEAST_CORE_OF_KINDS if self.kinds.any() else LEAST_CORE
        if not self.judged.any():
            return f"no site is {MARGIN_NM} nm from the border"
        for fits, text in (
            (self.explained >= LEAST_EXPLAINED, f"sites explain {self.explained:.2f} of the frame"),
            (self.core >= core, f"{self.core:.2f} of a site's picture is at the site"),
            (self.spread <= MOST_SPREAD, f"amplitudes differ by {self.spread:.2f}"),
            (self.odd <= odd, f"{self.odd:.3f} of the amplitudes are odd"),
            # A vacancy brighter than an atom is not where the frame shows it.
            (
                self.wild <= MOST_WILD,
                f"{self.wild:.4f} of the amplitudes are no atom's",
            ),
        ):
            if not fits:
                return text
        return ""


def fit_template(
    frame: ArrayLike,
    sites: ArrayLike,
    pixel_size_nm: float,
    *,
    kinds: ArrayLike | None = None,
    amplitudes: ArrayLike | None = None,
) -> SiteTemplate:
    """Learn the picture of a site from a frame, at best one without noise.

    Parameters
    ----------
    frame
        (H, W).
    sites
        (n, 2), y and x in pixels: every site of the lattice, vacant ones too.
    kinds
        (n,) whole numbers from 0; None makes all sites alike.
    amplitudes
        (n,) what is known of each: 1 is a full column, 0 a vacancy, NaN unknown (a heavy
        atom). None takes all as full, as one must of a frame without a known truth.

    Raises
    ------
    EmdnError
        If the frame is not (H, W), there are fewer than 8 sites, or arrays do not fit.
    """
    image, places = _clipped(one_frame(frame)), points("sites", sites)
    accept.positive("pixel_size_nm", pixel_size_nm, ())
    count = len(places)
    if count < 8:
        raise EmdnError(f"sites: found {count}, expected at least 8 to learn a picture from")
    kind = np.zeros(count, np.int64) if kinds is None else np.asarray(kinds)
    known = np.ones(count) if amplitudes is None else np.asarray(amplitudes, np.float64)
    if kind.shape != (count,) or kind.dtype.kind not in "iu" or kind.min() < 0:
        raise EmdnError(f"kinds: found shape {kind.shape}, expected {count} whole numbers from 0")
    if known.shape != (count,):
        raise EmdnError(f"amplitudes: found shape {known.shape}, expected ({count},)")
    pictures = lay_out((image.shape[0], image.shape[1]), places, pixel_size_nm)
    near = _nearest(places, kind)
    unknown = np.isnan(known)
    assumed = np.where(unknown, 1.0, known)
    regular = ~unknown & (assumed > 0.5)
    gain = np.ones(count)
    weights, explained = fit_picture(pictures, image, assumed, kind, unknown)
    strength = solve_strengths(pictures, weights, image, assumed, kind, _PULL)
    gain = _typical(np.where(regular, strength / np.where(regular, assumed, 1), np.nan), near)
    middle = float(np.median(gain))
    gain = np.clip(gain / middle, 0.2, 5.0) if middle > 0 else np.ones(count)
    weights, explained = fit_picture(pictures, image, gain * assumed, kind, unknown)
    share, value = core(pictures, weights, kind)
    margin = MARGIN_NM / pixel_size_nm
    judged = to_border(places, pictures.shape) >= margin
    if unknown.any():
        apart = ((places[:, None] - places[None, unknown]) ** 2).sum(2).min(1)
        judged &= apart >= margin**2
    draft = SiteTemplate(
        places, kind, pictures, weights, gain, judged, near,
        "bright" if value > 0 else "dark", explained, share, np.inf, 1.0, 1.0,
    )  # fmt: skip
    occupancy = site_occupancy(image, draft)
    values, every = occupancy[judged & (assumed > 0.9)], occupancy[judged]
    if not len(values) or not np.isfinite(every).all():
        return draft
    return replace(
        draft,
        spread=1.4826 * float(np.median(np.abs(values - np.median(values)))),
        odd=float((np.abs(values - 1) > 0.4).mean()),
        wild=float((every > HEAVY).mean()),
    )


def site_occupancy(frame: ArrayLike, template: SiteTemplate) -> Floats:
    """Estimate every site's amplitude against its neighbours': 0 is vacant, 1 is as they are.

    Parameters
    ----------
    frame
        (H, W): the frame of the template, or another of the same scene, for instance
        denoised, in any units of the same sign.

    Returns
    -------
    ndarray
        (n,) float64; NaN where the crystal around a site does not show.

    Raises
    ------
    EmdnError
        If the frame's shape is not that of the template.
    """
    image, pictures, weights = _clipped(one_frame(frame)), template.pictures, template.weights
    if image.shape != pictures.shape:
        raise EmdnError(f"frame: found shape {image.shape}, expected {pictures.shape}")
    whole = pictures.drawn(weights * template.gain[pictures.site])
    level = float(whole @ pictures.flat(image)) / max(float(whole @ whole), 1e-300)
    if level <= 0:
        return np.full(pictures.count, np.nan)
    strength = solve_strengths(
        pictures, weights, image, level * template.gain, template.kinds, _PULL
    )
    typical = _typical(strength, template.near)
    shown = typical > 0.1 * level * template.gain
    return np.where(shown, strength / np.where(shown, typical, 1), np.nan)


def _clipped(frame: Floats) -> Floats:
    """Cut a frame off well outside its middle 96 percent.

    A gold atom in a dark-field frame outshines carbon eighty times: its halo, and what the
    background's waves make of it, would be all that is fitted.
    """
    low, high = np.percentile(frame, [2, 98])
    spare = (high - low) / 2
    return np.clip(frame, low - spare, high + spare)


def _nearest(places: Floats, kinds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of every site's nearest others, of its own kind where there are some."""
    gap = ((places[:, None] - places[None]) ** 2).sum(2)
    gap += 1e12 * (kinds[:, None] != kinds[None])
    np.fill_diagonal(gap, np.inf)
    return np.argsort(gap, 1)[:, : min(_NEIGHBOURS, len(places) - 1)]


def _typical(strength: Floats, near: NDArray[np.int64]) -> Floats:
    """Median of the neighbours, those unknown left out; the median of all where none is known."""
    around = strength[near]
    lost = np.isnan(around).all(1)
    around[lost] = np.nanmedian(strength) if not np.isnan(strength).all() else 1.0
    return np.asarray(np.nanmedian(around, 1))
