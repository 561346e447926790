"""Graphene with the faults that micrographs show.

Sheets are built flat and bonded, edited, relaxed in their plane, and only then rippled,
tilted and stacked. Reconstructed vacancies follow Banhart, Kotakoski, Krasheninnikov,
ACS Nano 5, 26 (2011): V1(5-9) with a long bond between two of the three dangling atoms,
V2(5-8-5) with two new bonds.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from emdn_train.simulate.relax import BOND_A, Sheet, relax
from emdn_train.simulate.structure import Defect, PointDefects, Structure, lattice_points, rotation

LATTICE_A = 2.46
LAYER_A = 3.35

# Bond lengths in angstrom: Krivanek et al., Nature 464, 571 (2010) for B and N in
# graphene; Si-C as in planar silicon carbide.
_SUBSTITUTES: Mapping[int, tuple[str, float]] = {
    5: ("boron", 1.49),
    7: ("nitrogen", 1.41),
    14: ("silicon", 1.74),
}
# Height over the sheet in angstrom.
_ADATOMS: Mapping[int, tuple[str, float]] = {
    6: ("carbon adatom", 1.9),
    14: ("silicon adatom", 2.1),
    29: ("copper adatom", 2.2),
    79: ("gold adatom", 2.5),
}
# How often each point defect is drawn, of all.
_POINT_DEFECTS: Mapping[str, float] = {
    "V1": 0.2,
    "V1(5-9)": 0.2,
    "V2(5-8-5)": 0.15,
    "Stone-Wales": 0.1,
    **{name: 0.05 for name, _ in _SUBSTITUTES.values()},
    **{name: 0.05 for name, _ in _ADATOMS.values()},
}


def perfect_sheet(side: float, angle: float, offset: NDArray[np.float64]) -> Sheet:
    """Return a bonded sheet that covers a square of ``side`` angstrom."""
    a = LATTICE_A
    cell = np.array([[a, 0.0], [a / 2, a * np.sqrt(3) / 2]]) @ rotation(angle)
    basis = np.array([[0.0, 0.0, 0.0], [1 / 3, 1 / 3, 0.0]])
    basis[:, :2] += offset
    return bonded(lattice_points(cell, basis, side)[:, :2])


def bonded(xy: NDArray[np.float64], reach: float = 1.25) -> Sheet:
    """Bond every pair of carbon atoms closer than ``reach`` bond lengths."""
    pairs = cKDTree(xy).query_pairs(reach * BOND_A, output_type="ndarray").astype(np.int64)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    return Sheet(xy, np.full(len(xy), 6, np.int64), pairs, np.full(len(pairs), BOND_A))


def monovacancy(sheet: Sheet, atom: int, rng: np.random.Generator) -> None:
    """Remove one atom and close the pentagon: V1(5-9)."""
    around = sheet.neighbours(atom)
    if len(around) == 3:
        lone = int(rng.integers(3))
        pair = [a for k, a in enumerate(around) if k != lone]
        sheet.bond([(pair[0], pair[1])], 1.95)
    _remove(sheet, [atom])


def divacancy(sheet: Sheet, atom: int, rng: np.random.Generator) -> None:
    """Remove two neighbours and close two pentagons: V2(5-8-5)."""
    around = sheet.neighbours(atom)
    if not around:
        return
    other = int(rng.choice(around))
    for centre, partner in ((atom, other), (other, atom)):
        ends = [a for a in sheet.neighbours(centre) if a != partner]
        if len(ends) == 2:
            sheet.bond([(ends[0], ends[1])], 1.7)
    _remove(sheet, [atom, other])


def stone_wales(sheet: Sheet, atom: int, rng: np.random.Generator) -> None:
    """Turn one bond by a quarter: two pentagons and two heptagons."""
    around = sheet.neighbours(atom)
    if not around:
        return
    other = int(rng.choice(around))
    mine = [a for a in sheet.neighbours(atom) if a != other]
    theirs = [a for a in sheet.neighbours(other) if a != atom]
    if len(mine) != 2 or len(theirs) != 2:
        return
    centre = (sheet.xy[atom] + sheet.xy[other]) / 2
    turned = (sheet.xy[[atom, other]] - centre) @ rotation(np.pi / 2) + centre
    sheet.xy[[atom, other]] = turned

    def nearest(candidates: list[int], place: NDArray[np.float64]) -> int:
        return min(candidates, key=lambda a: float(((sheet.xy[a] - place) ** 2).sum()))

    # ``atom`` keeps one old neighbour and swaps the other for one across the bond.
    lost, gained = nearest(mine, turned[1]), nearest(theirs, turned[0])
    sheet.unbond(atom, lost)
    sheet.unbond(other, gained)
    sheet.bond([(other, lost), (atom, gained)], BOND_A)


def substitute(sheet: Sheet, atom: int, number: int) -> None:
    """Replace one carbon atom by another element."""
    sheet.numbers[atom] = number
    own = (sheet.bonds == atom).any(1)
    sheet.rest[own] = _SUBSTITUTES[number][1]


def _substituted(number: int, sheet: Sheet, atom: int, rng: np.random.Generator) -> None:
    substitute(sheet, atom, number)


def _remove(sheet: Sheet, atoms: list[int]) -> None:
    mask = np.ones(len(sheet.xy), bool)
    mask[atoms] = False
    sheet.keep(mask)


def cut(sheet: Sheet, inside: NDArray[np.bool_]) -> None:
    """Remove the atoms ``inside`` a hole, then every atom left with one bond or none."""
    sheet.keep(~inside)
    while True:
        degree = np.bincount(sheet.bonds.ravel(), minlength=len(sheet.xy))
        # The sheet's own rim lies outside the field; trimming it does no harm.
        loose = degree < 2
        if not loose.any():
            return
        sheet.keep(~loose)


def hole(xy: NDArray[np.float64], reach: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Mark the atoms in a rough round hole somewhere within ``reach`` of the origin."""
    centre = rng.uniform(-reach, reach, 2)
    radius = rng.uniform(3.0, max(4.0, 0.7 * reach))
    d = xy - centre
    angle = np.arctan2(d[:, 1], d[:, 0])
    rim = np.full(len(xy), radius)
    for order in range(2, 7):
        rim += radius * rng.normal(0, 0.25 / order) * np.cos(order * angle + rng.uniform(0, 6.28))
    return np.asarray(np.hypot(d[:, 0], d[:, 1]) < rim)


def edge(xy: NDArray[np.float64], reach: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Mark the atoms beyond a rough edge that crosses the field."""
    turned = xy @ rotation(rng.uniform(0, 2 * np.pi))
    line = np.full(len(xy), rng.uniform(-0.6, 0.6) * reach)
    for wavelength in rng.uniform(8.0, 60.0, 4):
        line += (
            rng.normal(0, 0.05)
            * wavelength
            * np.sin(2 * np.pi * turned[:, 0] / wavelength + rng.uniform(0, 6.28))
        )
    return np.asarray(turned[:, 1] > line)


def point_defects(
    sheet: Sheet, reach: float, asked: PointDefects
) -> tuple[list[Defect], list[tuple[int, float, float, float]]]:
    """Put random point defects into a sheet, well apart, and relax around them.

    None is closer to another than 7 angstrom, so that crowded sheets hold fewer than asked.

    Returns
    -------
    The defects, and the adatoms as (atomic number, x, y, height).
    """
    rng = asked.rng
    actions: dict[str, Callable[[Sheet, int, np.random.Generator], None]] = {
        "V1": lambda sheet, atom, _: _remove(sheet, [atom]),
        "V1(5-9)": monovacancy,
        "V2(5-8-5)": divacancy,
        "Stone-Wales": stone_wales,
    }
    for number, (name, _) in _SUBSTITUTES.items():
        actions[name] = partial(_substituted, number)
    heights = {name: (number, height) for number, (name, height) in _ADATOMS.items()}
    names, shares = list(_POINT_DEFECTS), np.array(list(_POINT_DEFECTS.values()))
    atoms = int((np.abs(sheet.xy).max(1) < reach).sum())
    wanted = rng.choice(names, rng.poisson(asked.density * atoms), p=shares / shares.sum())
    defects: list[Defect] = []
    sites: list[NDArray[np.float64]] = []
    for name in wanted[[name in actions for name in wanted]]:
        site = _free_site(sheet, reach, sites, rng)
        if site is None:
            break
        place = sheet.xy[site].copy()
        actions[name](sheet, site, rng)
        sites.append(place)
        defects.append(Defect(str(name), float(place[0]), float(place[1])))
    relax(sheet, np.array(sites).reshape(-1, 2))
    adatoms: list[tuple[int, float, float, float]] = []
    for name in wanted[[name in heights for name in wanted]]:
        number, height = heights[name]
        place = _adatom_site(sheet, reach, rng)
        adatoms.append((number, float(place[0]), float(place[1]), height))
        defects.append(Defect(str(name), float(place[0]), float(place[1])))
    return defects, adatoms


def _free_site(
    sheet: Sheet, reach: float, taken: list[NDArray[np.float64]], rng: np.random.Generator
) -> int | None:
    """Pick an atom of three bonds within reach, at least 7 angstrom from those taken."""
    degree = np.bincount(sheet.bonds.ravel(), minlength=len(sheet.xy))
    good = (degree == 3) & (np.abs(sheet.xy).max(1) < reach)
    for place in taken:
        good &= ((sheet.xy - place) ** 2).sum(1) > 7.0**2
    choices = np.flatnonzero(good)
    return int(rng.choice(choices)) if len(choices) else None


def _adatom_site(sheet: Sheet, reach: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Pick the middle of a bond, an atom, or the centre of a ring next to it."""
    near = np.flatnonzero(np.abs(sheet.xy[sheet.bonds[:, 0]]).max(1) < reach)
    if not len(near):
        return np.zeros(2)
    a, b = sheet.bonds[rng.choice(near)]
    here, along = sheet.xy[a], sheet.xy[b] - sheet.xy[a]
    choice = rng.integers(3)
    if choice == 0:
        return np.asarray(here + along / 2)
    if choice == 1:
        return np.asarray(here)
    return np.asarray(here + along @ rotation(np.pi / 3))


def as_structure(
    sheet: Sheet,
    adatoms: list[tuple[int, float, float, float]],
    defects: list[Defect],
    vibration: float,
    z: float = 0.0,
) -> Structure:
    """Turn a flat sheet and its adatoms into a specimen at height ``z``."""
    extra = np.array(adatoms, float).reshape(-1, 4)
    xyz = np.column_stack([sheet.xy, np.full(len(sheet.xy), z)])
    return Structure(
        material="graphene",
        positions=np.concatenate([xyz, extra[:, 1:] + [0, 0, z]]),
        numbers=np.concatenate([sheet.numbers, extra[:, 0].astype(np.int64)]),
        vibration=np.full(len(xyz) + len(extra), vibration),
        defects=tuple(defects),
    )
