"""Vacant sites where no structure is known: the lattice is told by the columns themselves.

A site is missing where columns lie opposite each other, one lattice vector away on either
side, and none lies between. The midpoint follows strain, drift and scan distortion, which one
lattice fitted to the whole frame does not.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from emdn_models.errors import EmdnError
from emdn_models.metrics import accept
from emdn_models.metrics.accept import Floats
from emdn_models.metrics.atoms import Sign, find_columns, one_frame
from emdn_models.metrics.matching import close_pairs, points
from emdn_models.metrics.vacancies import HEAVY, THRESHOLD, fit_template, site_occupancy

_REACH = 4.0
_TOLERANCE = 0.25
# Columns of two sublattices repeat each other's neighbours for half the columns at most.
_SHARE = 0.7
_FEWEST = 12


@dataclass(frozen=True, eq=False)
class Vacancies:
    """What `find_vacancies` has found.

    Attributes
    ----------
    places
        (n, 2) y and x of vacancies, pixels.
    columns
        (m, 2) the columns found.
    why_not
        Why the frame does not lend itself to this; empty if it does. ``places`` is empty then.
    """

    places: Floats
    columns: Floats
    why_not: str


def lattice_vectors(columns: ArrayLike) -> Floats | None:
    """Find the two shortest vectors by which nearly every column repeats.

    Parameters
    ----------
    columns
        (n, 2) in any unit; one crystal, of one column or more a cell.

    Returns
    -------
    ndarray or None
        (2, 2), a row a vector, between 60 and 120 degrees apart where the lattice allows;
        None where there are fewer than 12 columns or no lattice.

    Raises
    ------
    EmdnError
        If the array is not one of points.
    """
    places = points("columns", columns)
    spacing = _spacing(places)
    if spacing is None:
        return None
    first, second, length = close_pairs(places, places, _REACH * spacing)
    vectors = (places[second] - places[first])[length > 0]
    near = _TOLERANCE * spacing
    found: list[Floats] = []
    for vector in _densest(vectors, near, round(0.15 * len(places))):
        if np.hypot(*vector) > 0.5 * spacing and _share(places, vector, near) >= _SHARE:
            found.append(vector)
    found.sort(key=lambda v: float(v @ v))
    for vector in found[1:]:
        a = found[0]
        sine = abs(a[0] * vector[1] - a[1] * vector[0]) / np.hypot(*a) / np.hypot(*vector)
        if sine > 0.4:
            return np.array([a, vector if a @ vector >= 0 else -vector])
    return None


def missing_sites(columns: ArrayLike, vectors: ArrayLike | None = None) -> Floats:
    """List places where the lattice of the columns lacks one.

    Parameters
    ----------
    columns
        (n, 2) in any unit.
    vectors
        (2, 2) of the lattice; None finds them.

    Returns
    -------
    ndarray
        (m, 2): empty places midway between at least two pairs of columns. None lies outside
        the crystal or at its border, where no column is opposite.

    Raises
    ------
    EmdnError
        If an array has the wrong shape, or no lattice is found.
    """
    places = points("columns", columns)
    basis = lattice_vectors(places) if vectors is None else points("vectors", vectors)
    if basis is None or len(basis) != 2:
        raise EmdnError(
            f"columns: found no lattice in {len(places)} of them, expected one crystal; "
            "give vectors, (2, 2), or another part of the frame"
        )
    spacing = _spacing(places)
    if spacing is None:
        return np.empty((0, 2))
    near = _TOLERANCE * min(spacing, float(np.hypot(*basis.T).min()))
    middles = []
    for vector in (basis[0], basis[1], basis[0] - basis[1]):
        here, there, _ = close_pairs(places + 2 * vector, places, 2 * near)
        middles.append((places[here] + places[there]) / 2)
    centre = np.concatenate(middles)
    pair = np.repeat(np.arange(3), [len(m) for m in middles])
    taken = np.zeros(len(centre), bool)
    taken[close_pairs(centre, places, 2 * near)[0]] = True
    centre, pair = centre[~taken], pair[~taken]
    result, free = [], np.ones(len(centre), bool)
    for k in range(len(centre)):
        close = free & (np.hypot(*(centre - centre[k]).T) <= 2 * near)
        if free[k] and len(np.unique(pair[close])) >= 2:
            result.append(centre[close].mean(0))
            free[close] = False
    return np.array(result).reshape(-1, 2)


def find_vacancies(frame: ArrayLike, pixel_size_nm: float, *, sign: Sign = "auto") -> Vacancies:
    """Find vacancies in a frame of one crystal of which nothing is known.

    Columns are found, missing sites inferred, and each confirmed by its amplitude: it must be
    below 0.6 of its neighbours'. A column that a denoiser has put in counts as a column, and a
    vacancy whose relaxed edge still peaks near the empty site is missed, as often happens in
    HRTEM: use `site_occupancy` wherever the sites are known, and this to look, not to count.

    Parameters
    ----------
    frame
        (H, W), clean or denoised.
    pixel_size_nm
        Side of a pixel.
    sign
        As for `find_columns`: give it where it is known.

    Raises
    ------
    EmdnError
        If the frame is not (H, W) of finite numbers.
    """
    image = one_frame(frame)
    accept.positive("pixel_size_nm", pixel_size_nm, ())
    columns = find_columns(image, pixel_size_nm, sign=sign)
    nothing = np.empty((0, 2))
    vectors = lattice_vectors(columns)
    if vectors is None:
        return Vacancies(nothing, columns, f"no lattice in {len(columns)} columns")
    missing = missing_sites(columns, vectors)
    known = np.concatenate([np.ones(len(columns)), np.zeros(len(missing))])
    sites = np.concatenate([columns, missing])
    template = fit_template(image, sites, pixel_size_nm, amplitudes=known)
    heavy = site_occupancy(image, template) > HEAVY
    if heavy.any() and not heavy.all():
        # A heavy atom would draw the picture to itself, and hides what is next to it.
        known[heavy] = np.nan
        template = fit_template(image, sites, pixel_size_nm, amplitudes=known)
    if not template.applicable:
        return Vacancies(nothing, columns, template.why_not)
    occupancy = site_occupancy(image, template)
    vacant = (known == 0) & template.judged & (occupancy < THRESHOLD)
    return Vacancies(template.sites[vacant], columns, "")


def _spacing(places: Floats) -> float | None:
    """Median distance to the nearest other column."""
    if len(places) < _FEWEST:
        return None
    gap = ((places[:, None] - places[None]) ** 2).sum(2)
    np.fill_diagonal(gap, np.inf)
    return float(np.sqrt(np.median(gap.min(1))))


def _densest(vectors: Floats, near: float, least: int) -> list[Floats]:
    """Centres of the clusters of vectors, each once, by mean shift from cells of ``least``."""
    half = vectors[(vectors[:, 0] > 0) | ((vectors[:, 0] == 0) & (vectors[:, 1] > 0))]
    cells, counts = np.unique(np.rint(half / near), axis=0, return_counts=True)
    centres: list[Floats] = []
    order = np.argsort(-counts, kind="stable")
    for cell in cells[order[counts[order] >= least]]:
        centre = cell * near
        for _ in range(5):
            close = np.hypot(*(vectors - centre).T) < near
            if not close.any():
                break
            centre = vectors[close].mean(0)
        if all(min(np.hypot(*(centre - c)), np.hypot(*(centre + c))) > near for c in centres):
            centres.append(centre)
    return centres


def _share(places: Floats, vector: Floats, near: float) -> float:
    """Share of the columns that repeat by a vector, of those for which it ends inside."""
    ends = places + vector
    inside = ((ends >= places.min(0)) & (ends <= places.max(0))).all(1)
    if inside.sum() < _FEWEST / 2:
        return 0.0
    hit = np.zeros(len(ends), bool)
    hit[close_pairs(ends, places, near)[0]] = True
    return float(hit[inside].mean())
