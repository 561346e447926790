"""Which specimens there are and how often each is drawn; all but graphene are made here.

There are several so that no model learns one lattice by heart.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from emdn_train.simulate.graphene import edge, graphene, hole
from emdn_train.simulate.microscope import ELEMENTS
from emdn_train.simulate.structure import (
    Mark,
    PointDefects,
    Points,
    Structure,
    honeycomb,
    lattice_points,
    rotation,
    stacked,
)

# Atoms that are closer than the first, seen along the beam, are one column. No extra atom is
# put closer to another than the second.
_COLUMN_A = 0.3
_APART_A = 1.3

Chance = np.random.Generator
Numbers = NDArray[np.int64]


class Recipe(NamedTuple):
    """How one kind of specimen is made and imaged.

    ``make`` is called with the generator, the side to cover and the reach of the frame (half its
    side), both in angstrom, and what point defects to put in.
    """

    make: Callable[[Chance, float, float, PointDefects], Structure]
    sampling_a: float = 0.2  # coarsest sampling of the exit wave
    slice_a: float = np.inf  # thickness of a slice of the exit wave's calculation


def dichalcogenide(rng: Chance, side: float, reach: float, defects: PointDefects) -> Structure:
    """One layer of 2H MoS2 or WS2 with point defects, holes and edges.

    Lattice parameters 3.16 and 3.15 angstrom, sulphur 1.56 angstrom above and below
    (Wilson and Yoffe, Adv. Phys. 18, 193, 1969).
    """
    metal, a = ((42, 3.16), (74, 3.15))[int(rng.integers(2))]
    cell = honeycomb(a, rng.uniform(0, 2 * np.pi))
    basis = np.array([[0, 0, 0], [1 / 3, 1 / 3, -1.56], [1 / 3, 1 / 3, 1.56]], float)
    basis[:, :2] += rng.uniform(0, 1, 2)
    points = lattice_points(cell, basis, side)
    points = points[_outline(points[:, :2], reach, rng, holes=0.15, edges=0.15)]
    numbers = np.where(points[:, 3] == 0, metal, 16)
    points, numbers, faults = point_defects(points[:, :3], numbers, reach, defects)
    return _structure("MoS2" if metal == 42 else "WS2", points, numbers, 0.06, faults)


def amorphous_carbon(rng: Chance, side: float, thickness: float | None = None) -> Structure:
    """A film of 0.09-0.11 atoms per cubic angstrom, no two closer than 1.35 angstrom."""
    if thickness is None:
        thickness = float(rng.uniform(8.0, 40.0))
    wanted = int(rng.uniform(0.09, 0.11) * side**2 * thickness)
    points = np.empty((0, 3))
    while len(points) < 0.98 * wanted:
        extra = rng.uniform(-0.5, 0.5, (wanted - len(points), 3)) * [side, side, thickness]
        points = np.concatenate([points, extra])
        pairs = cKDTree(points).query_pairs(1.35, output_type="ndarray")
        points = np.delete(points, pairs.max(1), 0)
    return _structure("amorphous carbon", points, np.full(len(points), 6), 0.08)


def particle(rng: Chance, side: float, reach: float, defects: PointDefects) -> Structure:
    """A gold or platinum crystal with point defects on a thin carbon film.

    Face-centred cubic (4.078 and 3.924 angstrom), cut by {111} and {100} planes, seen
    near a [110] or [100] axis or at random, sometimes twinned on (111).
    """
    metal, number, a = (("gold", 79, 4.078), ("platinum", 78, 3.924))[int(rng.integers(2))]
    radius = rng.uniform(7.0, max(8.0, min(20.0, 0.8 * reach)))
    count = int(np.ceil(2.2 * radius / a))
    i = np.arange(-count, count + 1)
    cells = np.stack(np.meshgrid(i, i, i, indexing="ij"), -1).reshape(-1, 1, 3)
    fcc = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    points = ((cells + fcc).reshape(-1, 3) + rng.uniform(0, 0.5, 3)) * a
    octahedron = np.abs(points).sum(1) / np.sqrt(3) < radius
    cube = np.abs(points).max(1) < radius * rng.uniform(0.9, 1.15)
    points = points[octahedron & cube]
    marks: list[Mark] = []
    if rng.random() < 0.3:
        axis = np.array([1.0, 1.0, 1.0]) / np.sqrt(3)
        # Half a turn about the plane's normal is the mirror twin of a centrosymmetric crystal.
        anchor = points[np.argmin((points**2).sum(1))]
        above = points @ axis > anchor @ axis + 0.1 * (a / np.sqrt(3))
        d = points[above] - anchor
        points[above] = 2 * (d @ axis)[:, None] * axis - d + anchor
        marks.append(("twin", np.zeros(2)))
    points = points @ _zone(rng).T
    if rng.random() < 0.5:
        points = points @ _small_tilt(rng, 0.06).T
    points[:, :2] = points[:, :2] @ rotation(rng.uniform(0, 2 * np.pi)).T
    points, numbers, faults = point_defects(points, np.full(len(points), number), np.inf, defects)
    film = amorphous_carbon(rng, side, float(rng.uniform(5.0, 20.0)))
    x, y = rng.uniform(-0.4, 0.4, 2) * reach
    above_film = film.positions[:, 2].min() - points[:, 2].max() - 2.0
    crystal = _structure(f"{metal} particle", points, numbers, 0.08, marks + faults)
    return stacked(crystal.material, [crystal.moved((x, y, above_film)), film])


def strontium_titanate(rng: Chance, side: float, reach: float, defects: PointDefects) -> Structure:
    """Cubic SrTiO3 along [001], 3.905 angstrom, 1-5 nm thick, with oxygen and point defects."""
    a = 3.905
    layers = int(rng.integers(3, 13))
    cell = a * rotation(rng.uniform(0, 2 * np.pi))
    basis = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    basis[:, 2] *= a
    basis[:, :2] += rng.uniform(0, 1, 2)
    kinds = np.array([38, 22, 8, 8, 8])
    points, numbers = _layered(lattice_points(cell, basis, side), kinds, layers, a)
    keep = (numbers != 8) | (rng.random(len(points)) >= rng.uniform(0, 0.03))
    keep &= _outline(points[:, :2], reach, rng, edges=0.25)
    points, numbers, faults = point_defects(points[keep], numbers[keep], reach, defects)
    points[:, :2] += points[:, 2:] * rng.normal(0, 0.004, 2)
    return _structure("SrTiO3", points, numbers, 0.08, faults)


def random_lattice(rng: Chance, side: float, reach: float, defects: PointDefects) -> Structure:
    """A crystal that does not exist: any cell of 1.8-5.5 angstrom, one to three elements."""
    a = rng.uniform(1.8, 5.5)
    b = a * rng.uniform(0.7, 1.4)
    gamma = rng.uniform(np.pi / 3, np.pi / 2)
    cell = np.array([[a, 0.0], [b * np.cos(gamma), b * np.sin(gamma)]])
    cell = cell @ rotation(rng.uniform(0, 2 * np.pi))
    area = abs(np.linalg.det(cell))
    atoms = int(rng.integers(1, 1 + min(3, max(1, int(area / 4.0)))))
    layers = int(rng.integers(1, 7))
    column = lattice_points(cell, _spaced_basis(rng, cell, atoms), side)
    kinds = rng.choice(ELEMENTS, atoms)
    points, numbers = _layered(column, kinds, layers, rng.uniform(2.5, 4.0))
    keep = _outline(points[:, :2], reach, rng, holes=0.2, edges=0.2)
    points, numbers, faults = point_defects(points[keep], numbers[keep], reach, defects)
    return _structure("random lattice", points, numbers, float(rng.uniform(0.05, 0.1)), faults)


def _layered(column: Points, kinds: Numbers, layers: int, height: float) -> tuple[Points, Numbers]:
    """Repeat a layer of `lattice_points` along the beam, centred: points (n, 3) and numbers."""
    heights = (np.arange(layers) - (layers - 1) / 2) * height
    points = np.concatenate([column[:, :3] + [0, 0, z] for z in heights])
    return points, np.tile(kinds[column[:, 3].astype(int)], layers)


def _outline(
    xy: Points, reach: float, rng: Chance, *, holes: float = 0.0, edges: float = 0.0
) -> NDArray[np.bool_]:
    """Mark the atoms that are left by a hole or an edge, each drawn as often as is said."""
    shape = rng.random()
    if shape < holes:
        return ~hole(xy, reach, rng)
    if shape < holes + edges:
        return ~edge(xy, reach, rng)
    return np.ones(len(xy), bool)


def _spaced_basis(rng: Chance, cell: Points, atoms: int) -> Points:
    """Place atoms in a cell, the best of some draws: (atoms, 3), as ``lattice_points`` wants."""
    best, widest = np.zeros((atoms, 3)), -1.0
    images = np.array([[i, j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
    for _ in range(20):
        basis = np.column_stack([rng.uniform(0, 1, (atoms, 2)), rng.uniform(0, 2.0, atoms)])
        apart = (basis[:, None, None, :2] - basis[None, :, None, :2] + images) @ cell
        height = (basis[:, None, 2] - basis[None, :, 2])[:, :, None]
        distance = np.sqrt((apart**2).sum(-1) + height**2)
        distance[distance < 1e-9] = np.inf
        if distance.min() > widest:
            best, widest = basis, float(distance.min())
    return best


def _structure(
    material: str, points: Points, numbers: Numbers, vibration: float, marks: Sequence[Mark] = ()
) -> Structure:
    every = np.full(len(points), vibration)
    crystalline = material != "amorphous carbon"
    return Structure(material, points, numbers, every, crystalline=crystalline).marked(marks)


def point_defects(
    points: Points, numbers: Numbers, reach: float, asked: PointDefects
) -> tuple[Points, Numbers, list[Mark]]:
    """Put point defects at a share of a crystal's sites: columns of atoms along the beam.

    Seven in ten are vacancies of any sublattice, half of them of the whole column; two in ten have
    another element there, half of those one of the crystal's own (an antisite); one in ten is an
    extra atom beside the column or on top of it. They lie within ``reach`` of the centre in x and
    in y. Returns the points (n, 3) and numbers that are left, extra atoms last, and the defects.
    """
    rng = asked.rng
    near = np.flatnonzero(np.abs(points[:, :2]).max(1) < reach)
    columns = cKDTree(points[:, :2]).query_ball_point(points[near, :2], _COLUMN_A)
    # A column of n atoms is met n times.
    expected = asked.density * sum(1 / len(column) for column in columns)
    own, changed = np.unique(numbers), numbers.copy()
    keep = np.ones(len(points), bool)
    extra: list[Points] = []
    marks: list[Mark] = []
    for one in rng.integers(len(near), size=rng.poisson(expected)) if len(near) else ():
        atom, choice = int(near[one]), rng.random()
        place, number = points[atom], int(numbers[atom])
        some = columns[one] if rng.random() < 0.5 else [atom]
        if not keep[some].all():
            continue
        if choice < 0.7:
            keep[some] = False
            name = f"vacancy of Z={number}"
        elif choice < 0.9:
            other = int(rng.choice(own if choice < 0.8 else ELEMENTS))
            if other == number:
                continue
            changed[some] = other
            name = f"Z={other} on Z={number}"
        else:
            angle = rng.uniform(0, 2 * np.pi)
            side = float(rng.choice([0.0, 1.6]))
            height = 0.0 if side else float(points[columns[one], 2].min() - place[2]) - 2.0
            new = place + np.array([side * np.cos(angle), side * np.sin(angle), height])
            if np.sqrt(((points - new) ** 2).sum(1).min()) < _APART_A:
                new[2] = points[:, 2].min() - 2.0
            extra.append(np.append(new, number))
            name, place = f"Z={number} adatom", new
        marks.append((name, place))
    more = np.array(extra).reshape(-1, 4)
    return (
        np.concatenate([points[keep], more[:, :3]]),
        np.concatenate([changed[keep], more[:, 3].astype(np.int64)]),
        marks,
    )


def _zone(rng: Chance) -> Points:
    """Bring a crystal axis onto the beam: half [110], a quarter [100], a quarter any."""
    choice = rng.random()
    if choice < 0.25:
        return np.eye(3)
    if choice < 0.75:
        r = np.sqrt(0.5)
        return np.array([[r, -r, 0.0], [0.0, 0.0, -1.0], [r, r, 0.0]])
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return np.asarray(q * np.sign(np.linalg.det(q)))


def _small_tilt(rng: Chance, size: float) -> Points:
    a, b = rng.normal(0, size, 2)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    return np.asarray(x @ y)


RECIPES: Mapping[str, Recipe] = {
    "graphene": Recipe(graphene),
    "dichalcogenide": Recipe(dichalcogenide, sampling_a=0.15),
    "particle": Recipe(particle, sampling_a=0.15, slice_a=12.0),
    "strontium titanate": Recipe(strontium_titanate, sampling_a=0.16, slice_a=12.0),
    "amorphous carbon": Recipe(lambda rng, side, reach, defects: amorphous_carbon(rng, side)),
    "random lattice": Recipe(random_lattice, sampling_a=0.16),
}

# Shares of a data set: kind of data to recipe to weight.
SHARES: Mapping[str, Mapping[str, float]] = {
    "graphene": {"graphene": 1.0},
    "mixed": {
        "graphene": 0.34,
        "dichalcogenide": 0.26,
        "particle": 0.1,
        "strontium titanate": 0.12,
        "amorphous carbon": 0.05,
        "random lattice": 0.13,
    },
    "stem": {"graphene": 0.5, "dichalcogenide": 0.3, "particle": 0.1, "random lattice": 0.1},
}
