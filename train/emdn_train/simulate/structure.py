"""A specimen: atoms, what they vibrate by, and where its defects are."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Defect:
    """One defect by name, at ``x``, ``y`` in angstrom from the centre of the field."""

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Structure:
    """Atoms that cover a field and its surroundings; the field's centre is the origin.

    Attributes
    ----------
    material
        What it is, for example ``graphene`` or ``gold particle``.
    positions
        (n, 3) float64, angstrom. The beam travels towards +z.
    numbers
        (n,) atomic numbers.
    vibration
        (n,) root mean square displacement along one axis, angstrom.
    defects
        Every deliberate fault, with its place.
    crystalline
        Whether columns of atoms can be told apart.
    """

    material: str
    positions: Points
    numbers: NDArray[np.int64]
    vibration: NDArray[np.float64]
    defects: Sequence[Defect] = field(default_factory=tuple)
    crystalline: bool = True


@dataclass(frozen=True)
class PointDefects:
    """How many point defects a specimen gets, and the chance that draws them.

    With another generator, the same specimen has other defects.

    Attributes
    ----------
    density
        Expected defects per site.
    rng
        Draws their kinds and places, and nothing else of the specimen.
    """

    density: float
    rng: np.random.Generator


def rotation(angle: float) -> Points:
    """Rotate rows of points in the plane by ``angle`` in rad: ``points @ rotation(angle)``."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s], [-s, c]])


def lattice_points(cell: Points, basis: Points, side: float) -> Points:
    """Fill a square of ``side`` angstrom about the origin with a plane lattice.

    Parameters
    ----------
    cell
        (2, 2) rows are the cell vectors in angstrom.
    basis
        (m, 3) fractional in the plane, angstrom along z.
    side
        Side of the square in angstrom.

    Returns
    -------
    (n, 4) array: x, y, z in angstrom and the index of the basis atom.
    """
    corners = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]) * (side / 2)
    indices = corners @ np.linalg.inv(cell)
    low, high = np.floor(indices.min(0)) - 1, np.ceil(indices.max(0)) + 1
    i, j = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]), indexing="ij")
    origins = np.stack([i.ravel(), j.ravel()], 1)
    parts = []
    for index, atom in enumerate(basis):
        xy = (origins + atom[:2]) @ cell
        parts.append(
            np.column_stack([xy, np.full(len(xy), atom[2]), np.full(len(xy), float(index))])
        )
    points = np.concatenate(parts)
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
