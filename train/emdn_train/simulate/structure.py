"""A specimen: its atoms and defects; and bonded sheets, which relax before they become one.

Sheets relax in their plane by a harmonic Keating field (Phys. Rev. 145, 637, 1966; for carbon
sheets Perebeinos and Tersoff, Phys. Rev. B 79, 241409, 2009) on a fixed list of bonds:
E = sum_bonds k_r (r - r0)^2 / 2 + sum_angles k_t (cos t + 1/2)^2 / 2. A bond-order potential needs
seconds a sheet in the packages at hand (ASE's Tersoff 1 s an evaluation of 264 atoms); this needs
milliseconds, and the bonds of every defect made here are known beforehand.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

Points = NDArray[np.float64]
Mark = tuple[str, Points]
"""A defect's name, and where it is: at x and y, the first two of its point, in angstrom."""

BOND_A = 2.46 / np.sqrt(3.0)

# eV/angstrom^2 and eV: chosen for the measured stiffness of graphene, 340 N/m
# (Lee et al., Science 321, 385, 2008) at a Poisson ratio of 0.17.
STRETCH = 44.4
BEND = 11.0


@dataclass(frozen=True)
class Structure:
    """Atoms that cover a field and its surroundings; the field's centre is the origin."""

    material: str  # for example ``graphene`` or ``gold particle``
    positions: Points  # (n, 3) float64, angstrom; the beam travels towards +z
    numbers: NDArray[np.int64]  # (n,) atomic numbers
    vibration: NDArray[np.float64]  # (n,) root mean square along one axis, angstrom
    names: tuple[str, ...] = ()  # of every deliberate fault
    places: Points = field(default_factory=lambda: np.empty((0, 2)))  # (d, 2) angstrom, of those
    crystalline: bool = True  # whether columns of atoms can be told apart

    def marked(self, marks: Sequence[Mark]) -> "Structure":
        """Return it with these defects."""
        places = np.array([place[:2] for _, place in marks], float).reshape(-1, 2)
        return replace(self, names=tuple(name for name, _ in marks), places=places)

    def moved(self, shift: Sequence[float]) -> "Structure":
        """Return it shifted by (x, y, z) angstrom, defects included."""
        by = np.array(shift)
        return replace(self, positions=self.positions + by, places=self.places + by[:2])


class PointDefects(NamedTuple):
    """The point defects per site that a specimen gets, and what draws their kinds and places.

    With another generator, the same specimen has other defects.
    """

    density: float
    rng: np.random.Generator


def stacked(material: str, parts: Sequence[Structure]) -> Structure:
    """Put several specimens into one field, one behind the other."""
    positions, numbers, vibration, places = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("positions", "numbers", "vibration", "places")
    )
    names = sum((part.names for part in parts), ())
    crystalline = any(part.crystalline for part in parts)
    return Structure(material, positions, numbers, vibration, names, places, crystalline)


def rotation(angle: float) -> Points:
    """Rotate rows of points in the plane by ``angle`` in rad: ``points @ rotation(angle)``."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s], [-s, c]])


def honeycomb(a: float, angle: float) -> Points:
    """Return the cell vectors, as rows, of a hexagonal plane lattice turned by ``angle``."""
    return np.array([[a, 0.0], [a / 2, a * np.sqrt(3) / 2]]) @ rotation(angle)


def lattice_points(cell: Points, basis: Points, side: float) -> Points:
    """Fill a square of ``side`` angstrom about the origin with a plane lattice.

    The rows of ``cell`` (2, 2) are its vectors in angstrom; ``basis`` (m, 3) is fractional in the
    plane, angstrom along z. Returns (n, 4): x, y, z in angstrom and the index of the basis atom.
    """
    corners = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]) * (side / 2)
    indices = corners @ np.linalg.inv(cell)
    low, high = np.floor(indices.min(0)) - 1, np.ceil(indices.max(0)) + 1
    i, j = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]), indexing="ij")
    origins = np.stack([i.ravel(), j.ravel()], 1)
    parts = []
    for index, atom in enumerate(basis):
        xy = (origins + atom[:2]) @ cell
        parts.append(np.column_stack([xy, np.full(len(xy), atom[2]), np.full(len(xy), index)]))
    points = np.concatenate(parts)
    return np.asarray(points[np.abs(points[:, :2]).max(1) <= side / 2])


@dataclass
class Sheet:
    """A bonded layer of atoms while it is being built."""

    xy: NDArray[np.float64]  # (n, 2) angstrom
    numbers: NDArray[np.int64]  # (n,) atomic numbers
    bonds: NDArray[np.int64]  # (b, 2) indices, each bond once
    rest: NDArray[np.float64]  # (b,) rest lengths in angstrom

    @property
    def degree(self) -> NDArray[np.int64]:
        """Bonds of each atom, (n,)."""
        return np.bincount(self.bonds.ravel(), minlength=len(self.xy))

    def neighbours(self, atom: int) -> list[int]:
        """Return the atoms bonded to one atom."""
        rows = self.bonds[(self.bonds == atom).any(1)]
        return [int(b if a == atom else a) for a, b in rows]

    def remove(self, gone: NDArray[np.bool_] | list[int]) -> None:
        """Drop atoms, given as a mask or by index, with their bonds."""
        left = np.ones(len(self.xy), bool)
        left[gone] = False
        index = np.cumsum(left) - 1
        both = left[self.bonds].all(1)
        self.bonds, self.rest = index[self.bonds[both]], self.rest[both]
        self.xy, self.numbers = self.xy[left], self.numbers[left]

    def bond(self, pairs: list[tuple[int, int]], rest: float) -> None:
        """Add bonds of one rest length."""
        self.bonds = np.concatenate([self.bonds, np.array(pairs, np.int64)])
        self.rest = np.concatenate([self.rest, np.full(len(pairs), rest)])

    def unbond(self, a: int, b: int) -> None:
        """Remove the bond between two atoms."""
        gone = np.isin(self.bonds, (a, b)).all(1)
        self.bonds, self.rest = self.bonds[~gone], self.rest[~gone]


def angles(bonds: NDArray[np.int64], atoms: int) -> NDArray[np.int64]:
    """List bond angles as (centre, end, end); atoms of four or more bonds are left free."""
    ends = np.concatenate([bonds, bonds[:, ::-1]])
    ends = ends[np.argsort(ends[:, 0], kind="stable")]
    degree = np.bincount(ends[:, 0], minlength=atoms)
    start = np.cumsum(degree) - degree
    triples = []
    for count, pairs in ((2, [(0, 1)]), (3, [(0, 1), (0, 2), (1, 2)])):
        centres = np.flatnonzero(degree == count)
        for first, second in pairs:
            sides = [ends[start[centres] + end, 1] for end in (first, second)]
            triples.append(np.stack([centres, *sides], 1))
    return np.concatenate(triples)


def energy(
    xy: Points, bonds: NDArray[np.int64], rest: Points, triples: NDArray[np.int64]
) -> tuple[float, Points]:
    """Energy in eV and its gradient, (n, 2) eV/angstrom."""
    vector = xy[bonds[:, 1]] - xy[bonds[:, 0]]
    length = np.sqrt((vector**2).sum(1))
    stretch = length - rest
    force = (STRETCH * stretch / length)[:, None] * vector
    u = xy[triples[:, 1]] - xy[triples[:, 0]]
    v = xy[triples[:, 2]] - xy[triples[:, 0]]
    uu, vv = (u**2).sum(1), (v**2).sum(1)
    norm = np.sqrt(uu * vv)
    cosine = (u * v).sum(1) / norm
    bend = cosine + 0.5
    slope_u = (BEND * bend)[:, None] * (v / norm[:, None] - (cosine / uu)[:, None] * u)
    slope_v = (BEND * bend)[:, None] * (u / norm[:, None] - (cosine / vv)[:, None] * v)
    index = np.concatenate([bonds[:, 1], bonds[:, 0], triples[:, 1], triples[:, 2], triples[:, 0]])
    parts = np.concatenate([force, -force, slope_u, slope_v, -slope_u - slope_v])
    gradient = np.stack([np.bincount(index, parts[:, k], minlength=len(xy)) for k in (0, 1)], 1)
    total = float(STRETCH * (stretch**2).sum() / 2 + BEND * (bend**2).sum() / 2)
    return total, gradient.astype(np.float64, copy=False)


def relax(sheet: Sheet, sites: Points, *, reach_a: float = 12.0, steps: int = 40) -> None:
    """Relax the atoms within ``reach_a`` of any of the sites (m, 2); the others hold still."""
    if not len(sites):
        return
    distance2 = ((sheet.xy[:, None] - sites[None]) ** 2).sum(2).min(1)
    near = distance2 < (reach_a + 3.5) ** 2
    inside = near[sheet.bonds].all(1)
    bonds, rest = (np.cumsum(near) - 1)[sheet.bonds[inside]], sheet.rest[inside]
    movable = (distance2 < reach_a**2)[near]
    # Atoms at the rim of the cut have lost bonds: no angle there may pull.
    triples = angles(bonds, int(near.sum()))
    triples = triples[movable[triples].any(1)]
    xy = sheet.xy[near]

    def evaluate(flat: Points) -> tuple[float, Points]:
        xy[movable] = flat.reshape(-1, 2)
        value, gradient = energy(xy, bonds, rest, triples)
        return value, gradient[movable].ravel()

    options = {"maxiter": steps, "ftol": 1e-7, "gtol": 0.02}
    start = xy[movable].ravel()
    found = scipy.optimize.minimize(evaluate, start, jac=True, method="L-BFGS-B", options=options)
    xy[movable] = found.x.reshape(-1, 2)
    sheet.xy = sheet.xy.copy()
    sheet.xy[near] = xy
