"""From the atoms of a simulated specimen to what its frame can show: columns and sites."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emdn_models.errors import EmdnError
from emdn_models.metrics import accept
from emdn_models.metrics.accept import Floats
from emdn_models.metrics.atoms import BOND_NM
from emdn_models.metrics.matching import close_pairs, points

_MERGE_NM = 0.05
_FEWEST = 12


@dataclass(frozen=True, eq=False)
class Sites:
    """Every column of a specimen, and every place where one is missing.

    Attributes
    ----------
    places
        (n, 2) y and x in pixels.
    kinds
        (n,) 0, 1, ...: columns of the same elements.
    amplitudes
        (n,) share of the column's atoms that are there, 0 for a vacancy; NaN where it is not
        to be told: adatoms, sites under them, and elements of fewer than 12 columns.
    """

    places: Floats
    kinds: NDArray[np.int64]
    amplitudes: Floats

    @property
    def columns(self) -> Floats:
        """Places where there is a column, (m, 2)."""
        return np.asarray(self.places[self.amplitudes != 0])


def simulated_sites(
    atoms: ArrayLike,
    numbers: ArrayLike,
    defects: ArrayLike,
    names: Sequence[str],
    pixel_size_nm: float,
) -> Sites:
    """Merge atoms into columns and add the sites that defects have emptied.

    Parameters
    ----------
    atoms
        (n, 2) **x and y** in pixels, as in ``*_structures.h5``.
    numbers
        (n,) atomic numbers.
    defects
        (d, 2) x and y.
    names
        Of the defects: ``V1(5-9)`` is one empty site, ``V2(5-8-5)`` two, ``vacancy of Z=16``
        one atom of a column; others empty none.

    Raises
    ------
    EmdnError
        If there are no atoms or the arrays do not fit one another.
    """
    xy, number = points("atoms", atoms)[:, ::-1], np.asarray(numbers).astype(np.int64)
    faults = points("defects", defects)[:, ::-1]
    accept.positive("pixel_size_nm", pixel_size_nm, ())
    if not len(xy) or number.shape != (len(xy),) or len(faults) != len(names):
        raise EmdnError(
            f"atoms: found {len(xy)} with {number.size} numbers and {len(faults)} defects with "
            f"{len(names)} names, expected as many of each, and some atoms"
        )
    lost, losses = _emptied(xy, faults, names, pixel_size_nm)
    everything = np.concatenate([xy, lost])
    group = _groups(everything, _MERGE_NM / pixel_size_nm)
    size = np.bincount(group)
    places = np.stack([np.bincount(group, axis) / size for axis in everything.T], 1)
    there = np.bincount(group[: len(xy)], minlength=len(size))
    element = np.concatenate([number, losses])
    heaviest = np.zeros(len(size), np.int64)
    np.maximum.at(heaviest, group, np.concatenate([number, losses]))
    kinds, amplitude = np.zeros(len(size), np.int64), np.full(len(size), np.nan)
    elements, counts = np.unique(heaviest, return_counts=True)
    common = elements[np.argsort(-counts, kind="stable")][np.sort(counts)[::-1] >= _FEWEST]
    for kind, element in enumerate(common):
        own = heaviest == element
        full = max(float(np.median(size[own])), 1.0)
        kinds[own] = kind
        # More atoms than the others have: something lies on top.
        amplitude[own] = np.where(size > full, np.nan, there / full)[own]
    for fault, name in zip(faults, names, strict=True):
        if name.endswith("adatom"):
            reach = _MERGE_NM / pixel_size_nm
            amplitude[np.hypot(*(places - fault).T) < reach] = np.nan
    return Sites(places, kinds, amplitude)


def _emptied(
    xy: Floats, faults: Floats, names: Sequence[str], pixel_size_nm: float
) -> tuple[Floats, NDArray[np.int64]]:
    """Places (m, 2) of the atoms that defects have removed, and their numbers (m,)."""
    places: list[Floats] = []
    lost: list[int] = []
    for fault, name in zip(faults, names, strict=True):
        if name.startswith("vacancy of Z="):
            places.append(fault)
            lost.append(int(name.removeprefix("vacancy of Z=")))
        elif name.startswith(("V1", "V2")):
            places.append(fault)
            lost.append(6)
        if name.startswith("V2"):
            # The two bonds that are left point away from the partner that is gone.
            apart = xy - fault
            ends = np.argsort((apart**2).sum(1))[:2]
            away = -apart[ends].sum(0)
            places.append(fault + away * (BOND_NM / pixel_size_nm / np.hypot(*away)))
            lost.append(6)
    return np.array(places).reshape(-1, 2), np.array(lost, np.int64)


def _groups(places: Floats, reach: float) -> NDArray[np.int64]:
    """Number the clusters of points linked by steps of at most ``reach``: (n,)."""
    first, second, _ = close_pairs(places, places, reach)
    group = np.arange(len(places))
    while True:
        linked = group.copy()
        np.minimum.at(linked, first, group[second])
        if np.array_equal(linked, group):
            return np.unique(group, return_inverse=True)[1].astype(np.int64)
        group = linked
