"""Places found against places that are there: pairs, one to one, and what they say."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emdn_models.errors import EmdnError
from emdn_models.metrics import accept
from emdn_models.metrics.accept import Floats

TOLERANCE_NM = 0.07


@dataclass(frozen=True)
class ColumnScore:
    """Columns found against columns that are there.

    Attributes
    ----------
    recall
        Share of the true columns that are found; NaN if there are none.
    precision
        Share of the found columns that are true; NaN if there are none.
    rms_pm
        Root mean square distance of the matched pairs, picometres; NaN without pairs.
    centred_rms_pm
        The same after taking out the pairs' mean displacement, which a tilted beam gives
        to an image as a whole.
    matched
        Number of pairs.
    """

    recall: float
    precision: float
    rms_pm: float
    centred_rms_pm: float
    matched: int


@dataclass(frozen=True)
class VacancyScore:
    """Vacancies found against those that are there: true ones, found of them, and false."""

    true: int
    found: int
    false: int

    @property
    def recall(self) -> float:
        """Share of the true vacancies that are found; NaN if there are none."""
        return self.found / self.true if self.true else float("nan")


def match(found: ArrayLike, true: ArrayLike, tolerance: float) -> tuple[NDArray[np.int64], Floats]:
    """Pair two sets of points one to one, the nearest pairs first.

    Parameters
    ----------
    found, true
        (n, 2) and (m, 2), in the same units.
    tolerance
        Largest distance of a pair.

    Returns
    -------
    pairs
        (p, 2) int64, indices into ``found`` and ``true``, by growing distance.
    distance
        (p,) float64.

    Raises
    ------
    EmdnError
        If an array is not one of points, or the tolerance is not positive.
    """
    a, b = points("found", found), points("true", true)
    accept.positive("tolerance", tolerance, ())
    first, second, distance = close_pairs(a, b, tolerance)
    pairs, kept = [], []
    free_a, free_b = np.ones(len(a), bool), np.ones(len(b), bool)
    for k in np.argsort(distance, kind="stable"):
        i, j = first[k], second[k]
        if free_a[i] and free_b[j]:
            free_a[i] = free_b[j] = False
            pairs.append((i, j))
            kept.append(distance[k])
    return np.array(pairs, np.int64).reshape(-1, 2), np.array(kept, np.float64)


def close_pairs(
    a: Floats, b: Floats, reach: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """List every pair of a point of ``a`` and one of ``b`` at most ``reach`` apart.

    Returns
    -------
    Index into ``a``, index into ``b`` and distance, (p,) each.
    """
    nothing = np.empty(0, np.int64)
    if not len(a) or not len(b):
        return nothing, nothing, np.empty(0)
    low = np.minimum(a.min(0), b.min(0))
    cell_a = np.floor((a - low) / reach).astype(np.int64) + 1
    cell_b = np.floor((b - low) / reach).astype(np.int64) + 1
    width = int(max(cell_a[:, 1].max(), cell_b[:, 1].max())) + 2
    key_b = cell_b @ [width, 1]
    order = np.argsort(key_b, kind="stable")
    ordered = key_b[order]
    parts = []
    for step in (-1, 0, 1):
        # The three cells of a row are neighbours in the ordering: one range.
        key = cell_a @ [width, 1] + step * width
        start = np.searchsorted(ordered, key - 1, "left")
        count = np.searchsorted(ordered, key + 1, "right") - start
        i = np.repeat(np.arange(len(a)), count)
        offset = np.arange(len(i)) - np.repeat(np.cumsum(count) - count, count)
        parts.append((i, order[np.repeat(start, count) + offset]))
    i = np.concatenate([part[0] for part in parts])
    j = np.concatenate([part[1] for part in parts])
    distance = np.hypot(*(a[i] - b[j]).T)
    near = distance <= reach
    return i[near], j[near], distance[near]


def score_columns(
    found: ArrayLike,
    true: ArrayLike,
    pixel_size_nm: float,
    *,
    tolerance_nm: float = TOLERANCE_NM,
    shape: tuple[int, int] | None = None,
    margin_nm: float = 0.1,
) -> ColumnScore:
    """Match columns with the true ones and count.

    Under aberrations the image of a column need not peak where the column is: the columns
    found in the noise-free frame are then the fairer ``true``. Give both where there are both.

    Parameters
    ----------
    found, true
        (n, 2) and (m, 2), y and x in pixels.
    tolerance_nm
        Largest distance of a pair; half a carbon bond by default.
    shape
        (H, W) of the frame. Columns nearer to its border than ``margin_nm`` take part in
        matching and are not counted; None counts all.

    Raises
    ------
    EmdnError
        If an array is not one of points, or a length is not positive.
    """
    a, b = points("found", found), points("true", true)
    accept.positive("pixel_size_nm", pixel_size_nm, ())
    pairs, _ = match(a, b, tolerance_nm / pixel_size_nm)
    margin = margin_nm / pixel_size_nm
    inside_a, inside_b = (
        np.ones(len(p), bool) if shape is None else to_border(p, shape) >= margin for p in (a, b)
    )
    hit_a, hit_b = np.zeros(len(a), bool), np.zeros(len(b), bool)
    hit_a[pairs[:, 0]] = hit_b[pairs[:, 1]] = True
    counted = pairs[inside_b[pairs[:, 1]]]
    d = 1e3 * pixel_size_nm * (a[counted[:, 0]] - b[counted[:, 1]])
    some = len(d) > 0
    return ColumnScore(
        recall=float(hit_b[inside_b].mean()) if inside_b.any() else float("nan"),
        precision=float(hit_a[inside_a].mean()) if inside_a.any() else float("nan"),
        rms_pm=float(np.sqrt((d**2).sum(1).mean())) if some else float("nan"),
        centred_rms_pm=float(np.sqrt(((d - d.mean(0)) ** 2).sum(1).mean()))
        if some
        else float("nan"),
        matched=len(d),
    )


def score_vacancies(
    found: ArrayLike,
    true: ArrayLike,
    pixel_size_nm: float,
    *,
    tolerance_nm: float = TOLERANCE_NM,
) -> VacancyScore:
    """Match the places (n, 2) of vacancies found with the true ones (m, 2), in pixels, one to one.

    Leave out of both what is not ``judged``.
    """
    a, b = points("found", found), points("true", true)
    accept.positive("pixel_size_nm", pixel_size_nm, ())
    pairs, _ = match(a, b, tolerance_nm / pixel_size_nm)
    return VacancyScore(len(b), len(pairs), len(a) - len(pairs))


def to_border(places: Floats, shape: tuple[int, int]) -> Floats:
    """Distance of points (n, 2) to the border of the frame, pixels; negative outside it."""
    return np.asarray(np.minimum(places + 0.5, np.array(shape) - 0.5 - places).min(1))


def points(name: str, given: ArrayLike) -> Floats:
    """Return points as (n, 2) float64, checked; an empty list is no points."""
    array = np.asarray(given, np.float64)
    if array.size == 0:
        return np.empty((0, 2))
    if array.ndim != 2 or array.shape[1] != 2 or not np.isfinite(array).all():
        raise EmdnError(f"{name}: found shape {array.shape}, expected finite points (n, 2) as y, x")
    return array
