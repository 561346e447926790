"""A specimen: atoms, what they vibrate by, and where its defects are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Defect:
    """One defect by name, at ``x``, ``y`` in angstrom from the centre of the field."""

    name: str
    x: float
    y: float

    @classmethod
    def at(cls, name: str, place: Points) -> "Defect":
        """Put a defect at x and y, the first two of ``place``."""
        return cls(name, float(place[0]), float(place[1]))


@dataclass(frozen=True)
class Structure:
    """Atoms that cover a field and its surroundings; the field's centre is the origin."""

    material: str  # for example ``graphene`` or ``gold particle``
    positions: Points  # (n, 3) float64, angstrom; the beam travels towards +z
    numbers: NDArray[np.int64]  # (n,) atomic numbers
    vibration: NDArray[np.float64]  # (n,) root mean square along one axis, angstrom
    defects: Sequence[Defect] = ()  # every deliberate fault
    crystalline: bool = True  # whether columns of atoms can be told apart

    @property
    def places(self) -> Points:
        """Where the defects are, (d, 2) angstrom."""
        return np.array([[defect.x, defect.y] for defect in self.defects]).reshape(-1, 2)


@dataclass(frozen=True)
class PointDefects:
    """The point defects per site that a specimen gets, and what draws their kinds and places.

    With another generator, the same specimen has other defects.
    """

    density: float
    rng: np.random.Generator


def rotation(angle: float) -> Points:
    """Rotate rows of points in the plane by ``angle`` in rad: ``points @ rotation(angle)``."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s], [-s, c]])


def honeycomb(a: float, angle: float) -> Points:
    """Return the cell vectors, as rows, of a hexagonal plane lattice turned by ``angle``."""
    return np.array([[a, 0.0], [a / 2, a * np.sqrt(3) / 2]]) @ rotation(angle)


def lattice_points(cell: Points, basis: Points, side: float) -> Points:
    """Fill a square of ``side`` angstrom about the origin with a plane lattice.

    Parameters
    ----------
    cell
        (2, 2) rows are the cell vectors in angstrom.
    basis
        (m, 3) fractional in the plane, angstrom along z.

    Returns
    -------
    (n, 4) array: x, y, z in angstrom and the index of the basis atom.
    """
    corners = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]) * (side / 2)
    indices = corners @ np.linalg.inv(cell)
    low, high = np.floor(indices.min(0)) - 1, np.ceil(indices.max(0)) + 1
    i, j = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]), indexing="ij")
    origins = np.stack([i.ravel(), j.ravel()], 1)
    count = np.ones(len(origins))
    points = np.concatenate([
        np.column_stack([(origins + atom[:2]) @ cell, atom[2] * count, index * count])
        for index, atom in enumerate(basis)
    ])  # fmt: skip
    inside = np.abs(points[:, :2]).max(1) <= side / 2
    return np.asarray(points[inside])


def stacked(material: str, parts: Sequence[Structure]) -> Structure:
    """Put several specimens into one field, one behind the other."""
    return Structure(
        material=material,
        positions=np.concatenate([part.positions for part in parts]),
        numbers=np.concatenate([part.numbers for part in parts]),
        vibration=np.concatenate([part.vibration for part in parts]),
        defects=tuple(defect for part in parts for defect in part.defects),
        crystalline=any(part.crystalline for part in parts),
    )


def moved(structure: Structure, shift: Sequence[float]) -> Structure:
    """Return the specimen shifted by (x, y, z) angstrom, defects included."""
    dx, dy, dz = shift
    return replace(
        structure,
        positions=structure.positions + np.array([dx, dy, dz]),
        defects=tuple(Defect(d.name, d.x + dx, d.y + dy) for d in structure.defects),
    )
