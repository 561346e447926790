"""Graphene with the faults that micrographs show: point defects, holes, edges, boundaries, layers.

Sheets are built flat and bonded, edited, relaxed in their plane, and only then rippled,
tilted and stacked. Reconstructed vacancies follow Banhart, Kotakoski, Krasheninnikov,
ACS Nano 5, 26 (2011): V1(5-9) with a long bond between two of the three dangling atoms,
V2(5-8-5) with two new bonds.

Grain boundaries hold no voids: the centres of the rings are a triangular lattice; two such
lattices are joined along a line, evened out, and triangulated. Every triangle is an atom, every
shared side a bond, so each atom has three bonds, and the boundary is made of five-, six- and
seven-rings (Ophus, Shekhawat, Rasool, Zettl, Phys. Rev. B 92, 205402, 2015).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay, cKDTree

from emdn_train.simulate.structure import (
    BOND_A,
    Mark,
    PointDefects,
    Points,
    Sheet,
    Structure,
    honeycomb,
    lattice_points,
    relax,
    rotation,
    stacked,
)

Chance = np.random.Generator
Line = Callable[[Points], Points]

_LATTICE_A = 2.46
_LAYER_A = 3.35
_RING_A = BOND_A * np.sqrt(3.0)
_LEAST_TRIES, _TRIES = 4, 30
_BAND_A = 12.0
_NO_ADATOMS = np.empty((0, 4))

# Bond lengths in angstrom: Krivanek et al., Nature 464, 571 (2010) for B and N in
# graphene; Si-C as in planar silicon carbide.
_SUBSTITUTES = {"boron": (5, 1.49), "nitrogen": (7, 1.41), "silicon": (14, 1.74)}
# Atomic number and height over the sheet in angstrom.
_ADATOMS = {
    "carbon adatom": (6, 1.9),
    "silicon adatom": (14, 2.1),
    "copper adatom": (29, 2.2),
    "gold adatom": (79, 2.5),
}
# How often each point defect is drawn, of all.
_POINT_DEFECTS: Mapping[str, float] = {
    "V1": 0.2,
    "V1(5-9)": 0.2,
    "V2(5-8-5)": 0.15,
    "Stone-Wales": 0.1,
    **dict.fromkeys((*_SUBSTITUTES, *_ADATOMS), 0.05),
}


def graphene(rng: Chance, side: float, reach: float, defects: PointDefects) -> Structure:
    """Draw graphene of one morphology, with point defects; see `specimens.Recipe`."""
    morphology = rng.choice(
        ["sheet", "hole", "edge", "bilayer", "grain boundary"],
        p=[0.58, 0.12, 0.14, 0.1, 0.06],
    )
    cover = side + 6.0
    vibration = float(rng.uniform(0.04, 0.07))
    marks: list[Mark] = []
    if morphology == "grain boundary":
        sheet, boundary = bicrystal(cover, reach, rng)
        marks.append(("grain boundary", boundary[np.argmin((boundary**2).sum(1))]))
    else:
        sheet = drawn_sheet(cover, rng)
    if morphology in ("hole", "edge"):
        sheet.remove((hole if morphology == "hole" else edge)(sheet.xy, reach, rng))
        # The sheet's own rim lies outside the field; trimming it does no harm.
        while (loose := sheet.degree < 2).any():
            sheet.remove(loose)
    faults, adatoms = point_defects(sheet, reach, defects)
    layers = [as_structure(sheet, vibration, marks + faults, adatoms)]
    if morphology == "bilayer":
        layers.append(as_structure(drawn_sheet(cover, rng), vibration, z=_LAYER_A))
    return warped(stacked(f"graphene {morphology}", layers), rng)


def warped(structure: Structure, rng: Chance) -> Structure:
    """Ripple (up to 1 angstrom rms, 15-60 angstrom long), tilt and strain a specimen.

    Ripples of that size are what Meyer et al., Nature 446, 60 (2007), found. The places of its
    defects go with it.
    """
    flat = np.concatenate([structure.positions, np.pad(structure.places, ((0, 0), (0, 1)))])
    points, xy = flat.copy(), flat[:, :2]
    if rng.random() < 0.6:
        for wavelength in rng.uniform(15.0, 60.0, 3):
            k = 2 * np.pi / wavelength
            angle, phase = rng.uniform(0, 2 * np.pi, 2)
            along = np.array([np.cos(angle), np.sin(angle)])
            height = rng.uniform(0.0, 0.8) * np.sqrt(wavelength / 60.0)
            argument = k * (xy @ along) + phase
            points[:, 2] += height * np.sin(argument)
            # Bonds keep their length: the projection shrinks where the sheet is steep.
            shrink = (height * k) ** 2 / 4
            swing = shrink * (xy @ along + np.sin(2 * argument) / (2 * k))
            points[:, :2] -= swing[:, None] * along
    tilt = rng.normal(0, 0.05, 2)
    points[:, 2] += xy @ tilt
    strain = rng.normal(0, 0.004, (2, 2))
    points[:, :2] += xy @ ((strain + strain.T) / 2 - np.outer(tilt, tilt) / 2)
    atoms = len(structure.positions)
    return replace(structure, positions=points[:atoms], places=points[atoms:, :2])


def drawn_sheet(side: float, rng: Chance) -> Sheet:
    """Draw how a perfect sheet lies that covers a square of ``side`` angstrom."""
    return perfect_sheet(side, rng.uniform(0, 2 * np.pi), rng.uniform(0, 1, 2))


def perfect_sheet(side: float, angle: float, offset: Points) -> Sheet:
    """Return a bonded sheet that covers a square of ``side`` angstrom."""
    basis = np.array([[0.0, 0.0, 0.0], [1 / 3, 1 / 3, 0.0]])
    basis[:, :2] += offset
    xy = lattice_points(honeycomb(_LATTICE_A, angle), basis, side)[:, :2]
    pairs = cKDTree(xy).query_pairs(1.25 * BOND_A, output_type="ndarray").astype(np.int64)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    return Sheet(xy, np.full(len(xy), 6, np.int64), pairs, np.full(len(pairs), BOND_A))


def as_structure(
    sheet: Sheet,
    vibration: float,
    marks: Sequence[Mark] = (),
    adatoms: Points = _NO_ADATOMS,
    z: float = 0.0,
) -> Structure:
    """Turn a flat sheet and its adatoms, (n, 4), into a specimen at height ``z``.

    An adatom is its atomic number, x, y, and height over the sheet.
    """
    xyz = np.column_stack([sheet.xy, np.full(len(sheet.xy), z)])
    positions = np.concatenate([xyz, adatoms[:, 1:] + [0, 0, z]])
    numbers = np.concatenate([sheet.numbers, adatoms[:, 0].astype(np.int64)])
    return Structure("graphene", positions, numbers, np.full(len(numbers), vibration)).marked(marks)


def monovacancy(sheet: Sheet, atom: int, rng: Chance) -> None:
    """Remove one atom and close the pentagon: V1(5-9)."""
    around = sheet.neighbours(atom)
    if len(around) == 3:
        del around[int(rng.integers(3))]
        sheet.bond([(around[0], around[1])], 1.95)
    sheet.remove([atom])


def divacancy(sheet: Sheet, atom: int, rng: Chance) -> None:
    """Remove two neighbours and close two pentagons: V2(5-8-5)."""
    around = sheet.neighbours(atom)
    if not around:
        return
    other = int(rng.choice(around))
    for centre, partner in ((atom, other), (other, atom)):
        ends = [a for a in sheet.neighbours(centre) if a != partner]
        if len(ends) == 2:
            sheet.bond([(ends[0], ends[1])], 1.7)
    sheet.remove([atom, other])


def stone_wales(sheet: Sheet, atom: int, rng: Chance) -> None:
    """Turn one bond by a quarter: two pentagons and two heptagons."""
    around = sheet.neighbours(atom)
    if not around:
        return
    other = int(rng.choice(around))
    mine = [a for a in around if a != other]
    theirs = [a for a in sheet.neighbours(other) if a != atom]
    if len(mine) != 2 or len(theirs) != 2:
        return
    centre = (sheet.xy[atom] + sheet.xy[other]) / 2
    turned = (sheet.xy[[atom, other]] - centre) @ rotation(np.pi / 2) + centre
    sheet.xy[[atom, other]] = turned

    def nearest(candidates: list[int], place: Points) -> int:
        return min(candidates, key=lambda a: float(((sheet.xy[a] - place) ** 2).sum()))

    # ``atom`` keeps one old neighbour and swaps the other for one across the bond.
    lost, gained = nearest(mine, turned[1]), nearest(theirs, turned[0])
    sheet.unbond(atom, lost)
    sheet.unbond(other, gained)
    sheet.bond([(other, lost), (atom, gained)], BOND_A)


_RECONSTRUCTED = {"V1(5-9)": monovacancy, "V2(5-8-5)": divacancy, "Stone-Wales": stone_wales}


def hole(xy: Points, reach: float, rng: Chance) -> NDArray[np.bool_]:
    """Mark the atoms in a rough round hole somewhere within ``reach`` of the origin."""
    centre = rng.uniform(-reach, reach, 2)
    radius = rng.uniform(3.0, max(4.0, 0.7 * reach))
    d = xy - centre
    angle = np.arctan2(d[:, 1], d[:, 0])
    rim = np.full(len(xy), radius)
    for order in range(2, 7):
        rim += radius * rng.normal(0, 0.25 / order) * np.cos(order * angle + rng.uniform(0, 6.28))
    return np.asarray(np.hypot(d[:, 0], d[:, 1]) < rim)


def edge(xy: Points, reach: float, rng: Chance) -> NDArray[np.bool_]:
    """Mark the atoms beyond a rough edge that crosses the field."""
    turned = xy @ rotation(rng.uniform(0, 2 * np.pi))
    line = np.full(len(xy), rng.uniform(-0.6, 0.6) * reach)
    for wavelength in rng.uniform(8.0, 60.0, 4):
        height = rng.normal(0, 0.05) * wavelength
        line += height * np.sin(2 * np.pi * turned[:, 0] / wavelength + rng.uniform(0, 6.28))
    return np.asarray(turned[:, 1] > line)


def point_defects(sheet: Sheet, reach: float, asked: PointDefects) -> tuple[list[Mark], Points]:
    """Put random point defects into a sheet, and relax around them.

    None is closer to another than 7 angstrom, so that crowded sheets hold fewer than asked.
    Returns the defects, and the adatoms as `as_structure` takes them.
    """
    rng = asked.rng
    names, shares = list(_POINT_DEFECTS), np.array(list(_POINT_DEFECTS.values()))
    atoms = int((np.abs(sheet.xy).max(1) < reach).sum())
    drawn = rng.choice(names, rng.poisson(asked.density * atoms), p=shares / shares.sum())
    wanted = [str(name) for name in drawn]
    marks: list[Mark] = []
    for name in (name for name in wanted if name not in _ADATOMS):
        free = (sheet.degree == 3) & (np.abs(sheet.xy).max(1) < reach)
        for _, place in marks:
            free &= ((sheet.xy - place) ** 2).sum(1) > 7.0**2
        if not free.any():
            break
        site = int(rng.choice(np.flatnonzero(free)))
        marks.append((name, sheet.xy[site].copy()))
        if name in _SUBSTITUTES:
            sheet.numbers[site], rest = _SUBSTITUTES[name]
            sheet.rest[(sheet.bonds == site).any(1)] = rest
        elif name == "V1":
            sheet.remove([site])
        else:
            _RECONSTRUCTED[name](sheet, site, rng)
    relax(sheet, np.array([place for _, place in marks]).reshape(-1, 2))
    adatoms = []
    for name in (name for name in wanted if name in _ADATOMS):
        place = _adatom_site(sheet, reach, rng)
        adatoms.append([_ADATOMS[name][0], *place, _ADATOMS[name][1]])
        marks.append((name, place))
    return marks, np.array(adatoms, float).reshape(-1, 4)


def _adatom_site(sheet: Sheet, reach: float, rng: Chance) -> Points:
    """Pick the middle of a bond, an atom, or the centre of a ring next to it."""
    near = np.flatnonzero(np.abs(sheet.xy[sheet.bonds[:, 0]]).max(1) < reach)
    if not len(near):
        return np.zeros(2)
    a, b = sheet.bonds[rng.choice(near)]
    here, along = sheet.xy[a], sheet.xy[b] - sheet.xy[a]
    choices = here + along / 2, here, here + along @ rotation(np.pi / 3)
    return np.array(choices[rng.integers(3)])


def bicrystal(side: float, reach: float, rng: Chance) -> tuple[Sheet, Points]:
    """Make a relaxed sheet of two grains that covers a square of ``side`` angstrom.

    Returns it and points along the boundary, (m, 2) angstrom, which passes within half of ``reach``
    of the origin.
    """
    direction = rng.uniform(0, 2 * np.pi)
    offset = rng.uniform(-0.5, 0.5) * reach
    bend, period, phase = rng.uniform(0, 4.0), rng.uniform(40, 120), rng.uniform(0, 2 * np.pi)
    first = rng.uniform(0, np.pi / 3)
    second = first + rng.uniform(np.pi / 30, np.pi / 3 - np.pi / 30)

    def line(along: Points) -> Points:
        return offset + bend * np.sin(2 * np.pi * along / period + phase)

    best, least = np.empty((0, 2)), np.inf
    for attempt in range(_TRIES):
        gap = rng.uniform(0.1, 0.45) * _RING_A
        parts = []
        for sign, angle in ((-1.0, first), (1.0, second)):
            basis = np.array([[*rng.uniform(0, 1, 2), 0.0]])
            grain = lattice_points(honeycomb(_RING_A, angle), basis, 1.45 * side)[:, :2]
            # In the line's own frame its normal is y; the grains lie on either side.
            parts.append(grain[sign * (grain[:, 1] - line(grain[:, 0])) > gap])
        centres = _evened(_merged(np.concatenate(parts)), line)
        strain = _strain(centres, line, side / 2)
        if not len(best) or strain < least:
            best, least = centres, strain
        if attempt >= _LEAST_TRIES and np.isfinite(least):
            break
    turn = rotation(-direction)
    sheet = _dual(best @ turn, side)
    steps = np.arange(-side, side, 4.0)
    boundary = np.stack([steps, line(steps)], 1) @ turn
    boundary = boundary[np.abs(boundary).max(1) < side / 2]
    relax(sheet, boundary, reach_a=_BAND_A, steps=60)
    return sheet, boundary


def _merged(centres: Points) -> Points:
    """Put one ring in the middle of every two that are too close."""
    pairs = cKDTree(centres).query_pairs(0.62 * _RING_A, output_type="ndarray")
    keep = np.ones(len(centres), bool)
    result = centres.copy()
    for a, b in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]:
        if keep[a] and keep[b]:
            result[a] = (centres[a] + centres[b]) / 2
            keep[b] = False
    return result[keep]


def _neighbours(points: Points) -> tuple[NDArray[np.int64], ...]:
    """Triangulate points (n, 2): how many neighbours each has, and all pairs, from and to."""
    first, after = Delaunay(points).vertex_neighbor_vertices
    degree = np.diff(first)
    return degree, np.repeat(np.arange(len(points)), degree), after


def _evened(centres: Points, line: Line) -> Points:
    """Move the rings near the line to the middle of their neighbours (Lloyd, in a band)."""
    result = centres.copy()
    distance = np.abs(centres[:, 1] - line(centres[:, 0]))
    band = np.flatnonzero(distance < 4 * _RING_A)
    inner = distance[band] < 2 * _RING_A
    points = result[band]
    for index in range(10):
        if index % 2 == 0:
            degree, owner, after = _neighbours(points)
        total = np.stack([np.bincount(owner, points[after, k], len(points)) for k in (0, 1)], 1)
        middle = total / degree[:, None]
        points[inner] += 0.7 * (middle - points)[inner]
    result[band] = points
    return result


def _strain(centres: Points, line: Line, half: float) -> float:
    """Rate the boundary: spread of its rings' spacing, infinite unless all are 5, 6 or 7."""
    distance = np.abs(centres[:, 1] - line(centres[:, 0]))
    band = distance < 6 * _RING_A
    centres, distance = centres[band], distance[band]
    degree, owner, after = _neighbours(centres)
    near = (distance < 3 * _RING_A) & ((centres**2).sum(1) < 2 * half**2)
    if (near & ((degree < 5) | (degree > 7))).any():
        return np.inf
    spacing = np.hypot(*(centres[after] - centres[owner])[near[owner]].T)
    return float(np.abs(spacing / _RING_A - 1).max())


def _dual(centres: Points, side: float) -> Sheet:
    """One atom a triangle of ring centres, one bond a shared side."""
    mesh = Delaunay(centres)
    xy = centres[mesh.simplices].mean(1)
    inside = np.abs(xy).max(1) <= side / 2
    index = np.cumsum(inside) - 1
    here = np.repeat(np.arange(len(xy)), 3)
    there = mesh.neighbors.ravel()
    once = (there > here) & inside[here] & inside[there]
    bonds = np.stack([index[here[once]], index[there[once]]], 1).astype(np.int64)
    atoms = int(inside.sum())
    return Sheet(xy[inside], np.full(atoms, 6, np.int64), bonds, np.full(len(bonds), BOND_A))
