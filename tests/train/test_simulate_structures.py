"""Specimens: rings, bonds, stiffness and densities that are known from elsewhere."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy.spatial import cKDTree

from emdn_train.simulate import graphene
from emdn_train.simulate import structure as structures
from emdn_train.simulate.graphene import bicrystal
from emdn_train.simulate.specimens import RECIPES
from emdn_train.simulate.structure import BOND_A, PointDefects, Sheet

SIDE = 44.0


def made(recipe: str, seed: int, density: float, state: int = 0):
    defects = PointDefects(density, np.random.default_rng([4, state]))
    return RECIPES[recipe].make(np.random.default_rng(seed), SIDE, 12.0, defects)


def rings(sheet: Sheet, reach: float) -> Counter[int]:
    """Sizes of the rings centred within ``reach``, by walking every face of the planar net."""
    around = defaultdict(list)
    for a, b in sheet.bonds.tolist():
        around[a].append(b)
        around[b].append(a)
    for atom, ends in around.items():
        d = sheet.xy[ends] - sheet.xy[atom]
        order = np.argsort(np.arctan2(d[:, 1], d[:, 0]))
        around[atom] = [ends[k] for k in order]
    seen, sizes = set(), Counter()
    for a in around:
        for b in around[a]:
            face, edge = [], (a, b)
            while edge not in seen:
                seen.add(edge)
                face.append(edge[0])
                here, ends = edge[1], around[edge[1]]
                edge = (here, ends[ends.index(edge[0]) - 1])
            if face and np.abs(sheet.xy[face].mean(0)).max() < reach and len(face) < 30:
                sizes[len(face)] += 1
    return sizes


def lengths(sheet: Sheet) -> np.ndarray:
    return np.hypot(*(sheet.xy[sheet.bonds[:, 0]] - sheet.xy[sheet.bonds[:, 1]]).T)


@pytest.mark.parametrize(
    ("make", "rings_made", "removed", "extreme", "bond"),
    [
        (lambda *_: None, {}, 0, np.max, (0.9999 * BOND_A, 1.0001 * BOND_A)),  # a perfect sheet
        (graphene.monovacancy, {5: 1, 9: 1}, 1, np.max, (1.9, 2.1)),
        (graphene.divacancy, {5: 2, 8: 1}, 2, np.max, (1.7, 1.85)),
        (graphene.stone_wales, {5: 2, 7: 2}, 0, np.min, (1.30, 1.35)),
    ],
)
def test_point_defects_reconstruct(make, rings_made, removed, extreme, bond):
    """Density-functional bonds: V1 1.9-2.1, V2 1.7-1.8, turned Stone-Wales bond 1.32."""
    sheet = graphene.perfect_sheet(50.0, 0.3, np.array([0.2, 0.7]))
    atoms, middle = len(sheet.xy), int(np.argmin((sheet.xy**2).sum(1)))
    place = sheet.xy[middle].copy()
    make(sheet, middle, np.random.default_rng(0))
    structures.relax(sheet, place[None])
    found = rings(sheet, 20.0)
    del found[6]
    assert dict(found) == rings_made
    assert len(sheet.xy) == atoms - removed
    assert bond[0] < extreme(lengths(sheet)) < bond[1]


@pytest.mark.parametrize("seed", range(3))
def test_grain_boundary_has_no_voids(seed: int) -> None:
    sheet, boundary = bicrystal(56.0, 14.0, np.random.default_rng(seed))
    found = rings(sheet, 20.0)
    assert set(found) == {5, 6, 7}
    # Dislocations are pairs of a five- and a seven-ring; the frame may cut one.
    assert abs(found[5] - found[7]) <= 2
    inner = np.abs(sheet.xy).max(1) < 22
    assert (sheet.degree[inner] == 3).all()
    stretched = lengths(sheet)[inner[sheet.bonds].all(1)]
    assert 1.25 < stretched.min() < stretched.max() < 1.8
    assert (np.abs(boundary).max(1) < 14).any()


@pytest.mark.parametrize("recipe", RECIPES)
def test_specimens_cover_the_square_and_stay_apart(recipe):
    for seed in range(3):
        structure = made(recipe, seed, 0.05)
        assert len(structure.positions) == len(structure.numbers) == len(structure.vibration)
        assert np.isfinite(structure.positions).all()
        distance, _ = cKDTree(structure.positions).query(structure.positions, k=2)
        # random lattices know no chemistry, but no two atoms share a place either
        assert distance[:, 1].min() > (1.0 if recipe == "random lattice" else 1.2)
        # An edge can bare two corners of the square, never three.
        far = structure.positions[np.abs(structure.positions[:, :2]).min(1) > SIDE / 2 - 6]
        assert len(np.unique(np.sign(far[:, :2]), axis=0)) >= 2


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "amorphous carbon"])
def test_point_defects_are_as_common_as_asked_and_differ_between_states(recipe):
    counts = []
    for density in (0.0, 0.01, 0.04):
        names = [one for seed in range(12) for one in made(recipe, seed, density, seed).names]
        counts.append(sum(name not in ("twin", "grain boundary") for name in names))
    assert counts[0] == 0
    assert 2.5 < counts[2] / counts[1] < 6.5
    first, again, other = (made(recipe, 5, 0.02, state) for state in (0, 0, 1))
    np.testing.assert_array_equal(first.positions, again.positions)
    assert first.names != other.names or not np.array_equal(first.places, other.places)
    distance, _ = cKDTree(other.positions).query(first.positions)
    assert (distance < 0.35).mean() > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_particles_are_close_packed_metal(seed):
    structure = made("particle", seed, 0.0)
    metal = structure.positions[structure.numbers > 6]
    spacing = (4.078 if structure.numbers.max() == 79 else 3.924) / np.sqrt(2)
    distance, _ = cKDTree(metal).query(metal, k=13)
    assert distance[:, 1].min() == pytest.approx(spacing, rel=0.01)
    # the inner atoms, twinned or not, have twelve nearest neighbours
    assert (distance[:, 12] < 1.05 * spacing).mean() > 0.25
    assert metal[:, 2].max() < structure.positions[structure.numbers == 6][:, 2].min()
