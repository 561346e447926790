"""Vacant and foreign sites of a crystal against full ones: how well a frame tells them apart.

The sites are known from the simulation. A site's score is the frame's Gaussian-weighted intensity
there, less that of the nearest sites of its own sublattice, in units of the spread of full sites:
what a matched filter sees (intensities at lattice sites are how defects are counted in
micrographs: Krivanek et al., Nature 464, 571, 2010). From the scores follows the receiver operating
characteristic (Fawcett, Pattern Recognit. Lett. 27, 861, 2006). A raw frame is scored in the same
way; a denoised frame below it has destroyed information.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.stats import rankdata

from emdn_models.errors import EmdnError
from emdn_models.metrics import Floats, as_frames

_WIDTHS_NM = (0.02, 0.03, 0.045, 0.065, 0.09)
_FALSE_SITES = (0.1, 1.0)
_BOND_NM = 0.142
_MERGE_NM = 0.05
MARGIN_NM = 0.25  # sites nearer to a frame's edge are not judged
FEWEST = 12  # sites of a kind
_NEIGHBOURS = 12
_VACANT = 0.6  # of a column's atoms


@dataclass(frozen=True, eq=False)
class Sites:
    """Every column of atoms of a specimen, and every place where one is missing."""

    places: Floats  # (n, 2) y and x in pixels
    kinds: NDArray[np.int64]  # (n,) 0, 1, ...: sublattices, columns of the same elements
    names: tuple[str, ...]  # of the kinds: the number of the heaviest element, as Z=42
    # (n,) share of the column's atoms that are there, 0 for an empty site; NaN where that is not
    # known: adatoms, and elements of fewer than 12 columns.
    amplitudes: Floats
    foreign: NDArray[np.bool_]  # (n,) whether another element is where the sublattice has its own

    @property
    def vacant(self) -> NDArray[np.bool_]:
        """Sites with less than 60 % of their atoms, (n,)."""
        return np.asarray(self.amplitudes < _VACANT, bool)

    @property
    def full(self) -> NDArray[np.bool_]:
        """Sites with all of their own atoms, (n,)."""
        return np.asarray((self.amplitudes == 1) & ~self.foreign, bool)


class Roc(NamedTuple):
    """How well sites are distinguished from full ones."""

    auc: float  # area under the curve, 0.5 for chance
    recall: tuple[float, float]  # share found at 0.1 and at 1 false site a frame
    sites: int  # how many there were to find


def simulated_sites(
    atoms: ArrayLike,
    numbers: ArrayLike,
    defects: ArrayLike,
    names: Sequence[str],
    pixel_size_nm: float,
) -> Sites:
    """Merge atoms into columns and add the sites that defects have emptied.

    ``atoms`` (n, 2) and ``defects`` (d, 2) are **x and y** in pixels, as in ``*_structures.h5``;
    ``numbers`` (n,) atomic numbers. Of the defects' names, ``V1...`` is one empty site of graphene,
    ``V2...`` two, ``vacancy of Z=16`` an atom of a column; ``Z=8 on Z=22`` and ``nitrogen``,
    ``boron``, ``silicon`` are another element at a site; ``... adatom`` lies on top. Others change
    no site. EmdnError if there are no atoms.
    """
    xy = np.asarray(atoms, float).reshape(-1, 2)[:, ::-1]
    faults = np.asarray(defects, float).reshape(-1, 2)[:, ::-1]
    if not len(xy):
        raise EmdnError("atoms: found none, expected some; take a specimen with atoms in the field")
    reach = _MERGE_NM / pixel_size_nm
    lost = _emptied(xy, faults, names, _BOND_NM / pixel_size_nm)
    everything = np.concatenate([xy, [place for place, _ in lost]]) if lost else xy
    element = np.concatenate([numbers, [z for _, z in lost]]).astype(np.int64)
    pairs = cKDTree(everything).query_pairs(reach, output_type="ndarray")
    links = coo_array((np.ones(len(pairs)), pairs.T), (len(everything),) * 2)
    count, group = connected_components(links, directed=False)
    size = np.bincount(group)
    places = np.stack([np.bincount(group, axis) / size for axis in everything.T], 1)
    there = np.bincount(group[: len(xy)], minlength=count)
    heaviest = np.zeros(count, np.int64)
    np.maximum.at(heaviest, group, element)
    foreign, adatom = np.zeros(count, bool), np.zeros(count, bool)
    for near, name in zip(cKDTree(places).query_ball_point(faults, reach), names, strict=True):
        if name.endswith("adatom"):
            adatom[near] = True
        elif " on Z=" in name:
            foreign[near], heaviest[near] = True, int(name.rpartition("Z=")[2])
        elif name in ("boron", "nitrogen", "silicon"):
            foreign[near], heaviest[near] = True, 6
    kinds, amplitudes = np.zeros(count, np.int64), np.full(count, np.nan)
    elements, counts = np.unique(heaviest, return_counts=True)
    common = elements[np.argsort(-counts, kind="stable")][np.sort(counts)[::-1] >= FEWEST]
    for kind, one in enumerate(common):
        own = heaviest == one
        most = max(float(np.median(size[own])), 1.0)
        kinds[own] = kind
        # More atoms than the others have: something lies on top.
        amplitudes[own] = np.where(size > most, np.nan, there / most)[own]
    amplitudes[adatom] = np.nan
    return Sites(places, kinds, tuple(f"Z={one}" for one in common), amplitudes, foreign)


def _emptied(
    xy: Floats, faults: Floats, names: Sequence[str], bond: float
) -> list[tuple[Floats, int]]:
    """Places (2,) of the atoms that defects have removed, and their numbers."""
    found = []
    for fault, name in zip(faults, names, strict=True):
        if name.startswith("vacancy of Z="):
            found.append((fault, int(name.removeprefix("vacancy of Z="))))
        elif name.startswith(("V1", "V2")):
            found.append((fault, 6))
        if name.startswith("V2"):
            # The two bonds that are left point away from the partner that is gone.
            apart = xy - fault
            away = -apart[np.argsort((apart**2).sum(1))[:2]].sum(0)
            found.append((fault + away * (bond / np.hypot(*away)), 6))
    return found


def site_scores(frame: ArrayLike, sites: Sites, pixel_size_nm: float) -> Floats:
    """Score every site of a frame (H, W) by its intensity against its neighbours'.

    Returns (5, n), a row for each width of the Gaussian weights, 0.02 to 0.09 nm (standard
    deviation): positive where a site is brighter than the 12 nearest of its sublattice, in units of
    the standard deviation of full sites (from the median absolute deviation). NaN nearer to the
    edge than 0.25 nm and for kinds of few sites.
    """
    (image,) = as_frames(frame=frame)
    margin = MARGIN_NM / pixel_size_nm
    inside = (sites.places >= margin) & (sites.places <= np.array(image.shape[-2:]) - 1 - margin)
    judged = inside.all(1) & np.isfinite(sites.amplitudes)
    scores = np.full((len(_WIDTHS_NM), len(judged)), np.nan)
    for row, width in zip(scores, _WIDTHS_NM, strict=True):
        smooth = ndimage.gaussian_filter(image, width / pixel_size_nm, mode="reflect")
        for kind in range(len(sites.names)):
            own = np.flatnonzero(judged & (sites.kinds == kind))
            if len(own) < FEWEST:
                continue
            places = sites.places[own]
            value = ndimage.map_coordinates(smooth, places.T, order=1)
            _, near = cKDTree(places).query(places, min(_NEIGHBOURS + 1, len(own)))
            apart = value - _expected(places, value, near[:, 1:])
            full = apart[sites.full[own]]
            if len(full):
                spread = 1.4826 * np.median(np.abs(full - np.median(full)))
                row[own] = apart / spread if spread > 0 else 0.0
    return scores


def _expected(places: Floats, value: Floats, near: NDArray[np.int64]) -> Floats:
    """Level of each site's neighbours (n, k): their median, their common slope taken out."""
    offset = places[near] - places[:, None]
    slope = np.linalg.pinv(offset - offset.mean(1, keepdims=True)) @ value[near][..., None]
    return np.asarray(np.median(value[near] - (offset @ slope)[..., 0], axis=1))


def roc(found: ArrayLike, full: ArrayLike, frames: int) -> Roc:
    """Compare scores (m,) of sites to be found, which are high, with those (n,) of full sites.

    Both are of as many ``frames`` together.
    """
    high, low = np.asarray(found, float), np.asarray(full, float)
    if not len(high) or not len(low):
        return Roc(np.nan, (np.nan, np.nan), len(high))
    ranks = rankdata(np.concatenate([high, low]))[: len(high)]
    auc = (ranks.sum() / len(high) - (len(high) + 1) / 2) / len(low)
    # As many full sites as are allowed lie above the threshold, at the most.
    falling = np.append(-np.sort(-low), -np.inf)
    limits = [falling[min(int(rate * frames), len(low))] for rate in _FALSE_SITES]
    few, many = (float((high > limit).mean()) for limit in limits)
    return Roc(float(auc), (few, many), len(high))
