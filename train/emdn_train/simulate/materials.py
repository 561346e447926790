"""Specimens other than graphene, so that no model learns one lattice by heart."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from emdn_train.simulate.graphene import edge, hole
from emdn_train.simulate.scattering import ELEMENTS
from emdn_train.simulate.structure import (
    Defect,
    Structure,
    lattice_points,
    moved,
    rotation,
    stacked,
)

Mask = NDArray[np.bool_]


def dichalcogenide(rng: np.random.Generator, side: float, reach: float) -> Structure:
    """One layer of 2H MoS2 or WS2 with sulphur and metal vacancies, holes and edges.

    Lattice parameters 3.16 and 3.15 angstrom, sulphur 1.56 angstrom above and below
    (Wilson and Yoffe, Adv. Phys. 18, 193, 1969).
    """
    metal, a = ((42, 3.16), (74, 3.15))[int(rng.integers(2))]
    cell = np.array([[a, 0.0], [a / 2, a * np.sqrt(3) / 2]]) @ rotation(rng.uniform(0, 2 * np.pi))
    basis = np.array([[0, 0, 0], [1 / 3, 1 / 3, -1.56], [1 / 3, 1 / 3, 1.56]], float)
    basis[:, :2] += rng.uniform(0, 1, 2)
    points = lattice_points(cell, basis, side)
    numbers = np.where(points[:, 3] == 0, metal, 16)
    keep, defects = _vacancies(points[:, :3], numbers, reach, rng, {16: 3.0, metal: 0.7})
    shape = rng.random()
    if shape < 0.15:
        keep &= ~hole(points[:, :2], reach, rng)
    elif shape < 0.3:
        keep &= ~edge(points[:, :2], reach, rng)
    return _structure(
        "MoS2" if metal == 42 else "WS2", points[keep, :3], numbers[keep], 0.06, defects
    )


def amorphous_carbon(
    rng: np.random.Generator, side: float, thickness: float | None = None
) -> Structure:
    """A film of 0.09-0.11 atoms per cubic angstrom, no two closer than 1.35 angstrom."""
    if thickness is None:
        thickness = float(rng.uniform(8.0, 40.0))
    wanted = int(rng.uniform(0.09, 0.11) * side**2 * thickness)
    points = np.empty((0, 3))
    while len(points) < 0.98 * wanted:
        extra = rng.uniform(-0.5, 0.5, (wanted - len(points), 3)) * [side, side, thickness]
        points = np.concatenate([points, extra])
        pairs = cKDTree(points).query_pairs(1.35, output_type="ndarray")
        keep = np.ones(len(points), bool)
        keep[pairs.max(1)] = False
        points = points[keep]
    return _structure("amorphous carbon", points, np.full(len(points), 6), 0.08, [], False)


def particle(rng: np.random.Generator, side: float, reach: float) -> Structure:
    """A gold or platinum crystal on a thin carbon film.

    Face-centred cubic (4.078 and 3.924 angstrom), cut by {111} and {100} planes, seen
    near a [110] or [100] axis or at random, sometimes twinned on (111).
    """
    number, a = ((79, 4.078), (78, 3.924))[int(rng.integers(2))]
    radius = rng.uniform(7.0, max(8.0, min(20.0, 0.8 * reach)))
    count = int(np.ceil(2.2 * radius / a))
    i = np.arange(-count, count + 1)
    cells = np.stack(np.meshgrid(i, i, i, indexing="ij"), -1).reshape(-1, 1, 3)
    fcc = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    points = ((cells + fcc).reshape(-1, 3) + rng.uniform(0, 0.5, 3)) * a
    octahedron = np.abs(points).sum(1) / np.sqrt(3) < radius
    cube = np.abs(points).max(1) < radius * rng.uniform(0.9, 1.15)
    points = points[octahedron & cube]
    defects: list[Defect] = []
    if rng.random() < 0.3:
        axis = np.array([1.0, 1.0, 1.0]) / np.sqrt(3)
        spacing = a / np.sqrt(3)
        height = points @ axis
        # Half a turn about the plane's normal is the mirror twin of a centrosymmetric crystal.
        anchor = points[np.argmin((points**2).sum(1))]
        above = height > anchor @ axis + 0.1 * spacing
        d = points[above] - anchor
        points[above] = 2 * (d @ axis)[:, None] * axis - d + anchor
        defects.append(Defect("twin", 0.0, 0.0))
    points = points @ _zone(rng).T
    if rng.random() < 0.5:
        points = points @ _small_tilt(rng, 0.06).T
    points = points @ _about_z(rng.uniform(0, 2 * np.pi)).T
    film = amorphous_carbon(rng, side, float(rng.uniform(5.0, 20.0)))
    bottom = film.positions[:, 2].min()
    crystal = _structure(
        ("gold" if number == 79 else "platinum") + " particle",
        points,
        np.full(len(points), number),
        0.08,
        defects,
    )
    place = rng.uniform(-0.4, 0.4, 2) * reach
    crystal = moved(crystal, (place[0], place[1], bottom - points[:, 2].max() - 2.0))
    return stacked(crystal.material, [crystal, film])


def strontium_titanate(rng: np.random.Generator, side: float, reach: float) -> Structure:
    """Cubic SrTiO3 along [001], 3.905 angstrom, 1-5 nm thick, with oxygen vacancies."""
    a = 3.905
    layers = int(rng.integers(3, 13))
    turn = rng.uniform(0, 2 * np.pi)
    cell = a * rotation(turn)
    basis = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    basis[:, 2] *= a
    basis[:, :2] += rng.uniform(0, 1, 2)
    column = lattice_points(cell, basis, side)
    heights = (np.arange(layers) - (layers - 1) / 2) * a
    points = np.concatenate([column[:, :3] + [0, 0, z] for z in heights])
    numbers = np.tile(np.array([38, 22, 8, 8, 8])[column[:, 3].astype(int)], layers)
    keep = np.ones(len(points), bool)
    keep[(numbers == 8) & (rng.random(len(points)) < rng.uniform(0, 0.03))] = False
    if rng.random() < 0.25:
        keep &= ~edge(points[:, :2], reach, rng)
    tilt = rng.normal(0, 0.004, 2)
    points[:, :2] += points[:, 2:] * tilt
    return _structure("SrTiO3", points[keep], numbers[keep], 0.08, [])


def random_lattice(rng: np.random.Generator, side: float, reach: float) -> Structure:
    """A crystal that does not exist: any cell of 1.8-5.5 angstrom, one to three elements."""
    a = rng.uniform(1.8, 5.5)
    b = a * rng.uniform(0.7, 1.4)
    gamma = rng.uniform(np.pi / 3, np.pi / 2)
    cell = np.array([[a, 0.0], [b * np.cos(gamma), b * np.sin(gamma)]])
    cell = cell @ rotation(rng.uniform(0, 2 * np.pi))
    area = abs(np.linalg.det(cell))
    atoms = int(rng.integers(1, 1 + min(3, max(1, int(area / 4.0)))))
    layers = int(rng.integers(1, 7))
    basis = _spaced_basis(rng, cell, atoms)
    column = lattice_points(cell, basis, side)
    kinds = rng.choice(ELEMENTS, atoms)
    heights = (np.arange(layers) - (layers - 1) / 2) * rng.uniform(2.5, 4.0)
    points = np.concatenate([column[:, :3] + [0, 0, z] for z in heights])
    numbers = np.tile(kinds[column[:, 3].astype(int)], layers)
    keep, defects = _vacancies(points, numbers, reach, rng, {int(k): 2.0 for k in set(kinds)})
    shape = rng.random()
    if shape < 0.2:
        keep &= ~hole(points[:, :2], reach, rng)
    elif shape < 0.4:
        keep &= ~edge(points[:, :2], reach, rng)
    vibration = float(rng.uniform(0.05, 0.1))
    return _structure("random lattice", points[keep], numbers[keep], vibration, defects)


def _spaced_basis(
    rng: np.random.Generator, cell: NDArray[np.float64], atoms: int
) -> NDArray[np.float64]:
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
    material: str,
    points: NDArray[np.float64],
    numbers: NDArray[np.int64],
    vibration: float,
    defects: list[Defect],
    crystalline: bool = True,
) -> Structure:
    return Structure(
        material,
        np.asarray(points, np.float64),
        numbers.astype(np.int64),
        np.full(len(points), vibration),
        tuple(defects),
        crystalline,
    )


def _vacancies(
    points: NDArray[np.float64],
    numbers: NDArray[np.int64],
    reach: float,
    rng: np.random.Generator,
    rates: dict[int, float],
) -> tuple[Mask, list[Defect]]:
    """Choose single atoms within reach to take out, a Poisson number of each element."""
    keep = np.ones(len(points), bool)
    defects = []
    for number, rate in rates.items():
        choices = np.flatnonzero((numbers == number) & (np.abs(points[:, :2]).max(1) < reach))
        count = min(int(rng.poisson(rate)), len(choices))
        for atom in rng.choice(choices, count, replace=False) if count else ():
            keep[atom] = False
            x, y = points[atom, :2]
            defects.append(Defect(f"vacancy of Z={number}", float(x), float(y)))
    return keep, defects


def _zone(rng: np.random.Generator) -> NDArray[np.float64]:
    """Bring a crystal axis onto the beam: half [110], a quarter [100], a quarter any."""
    choice = rng.random()
    if choice < 0.25:
        return np.eye(3)
    if choice < 0.75:
        r = np.sqrt(0.5)
        return np.array([[r, -r, 0.0], [0.0, 0.0, -1.0], [r, r, 0.0]])
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return np.asarray(q * np.sign(np.linalg.det(q)))


def _about_z(angle: float) -> NDArray[np.float64]:
    result = np.eye(3)
    result[:2, :2] = rotation(angle)
    return result


def _small_tilt(rng: np.random.Generator, size: float) -> NDArray[np.float64]:
    a, b = rng.normal(0, size, 2)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    return np.asarray(x @ y)
