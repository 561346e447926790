"""Which specimens there are and how often each is drawn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from emdn_train.simulate import materials
from emdn_train.simulate.grain_boundary import bicrystal
from emdn_train.simulate.graphene import (
    LAYER_A,
    as_structure,
    cut,
    edge,
    hole,
    perfect_sheet,
    point_defects,
)
from emdn_train.simulate.structure import Defect, PointDefects, Structure, stacked

Kind = Literal["graphene", "mixed", "stem", "movie"]

DEFECTS = (5e-4, 0.05)
"""Least and most point defects per site. With one in a thousand, the best guess from a noisy
frame is that there is none, and a net learns to fill them."""


@dataclass(frozen=True)
class Recipe:
    """How one kind of specimen is made and imaged.

    Attributes
    ----------
    make
        Called with the generator, the side to cover and the reach of the frame (half its
        side), both in angstrom, and what point defects to put in.
    sampling_a
        Coarsest sampling of its exit wave, angstrom.
    slice_a
        Thickness of a slice of the exit wave's calculation, angstrom.
    """

    make: Callable[[np.random.Generator, float, float, PointDefects], Structure]
    sampling_a: float = 0.2
    slice_a: float = np.inf


def graphene(
    rng: np.random.Generator, side: float, reach: float, defects: PointDefects
) -> Structure:
    """Draw graphene of one morphology, with point defects."""
    morphology = rng.choice(
        ["sheet", "hole", "edge", "bilayer", "grain boundary"],
        p=[0.58, 0.12, 0.14, 0.1, 0.06],
    )
    cover = side + 6.0
    vibration = float(rng.uniform(0.04, 0.07))
    marks: list[Defect] = []
    if morphology == "grain boundary":
        sheet, boundary = bicrystal(cover, reach, rng)
        x, y = boundary[np.argmin((boundary**2).sum(1))]
        marks.append(Defect("grain boundary", float(x), float(y)))
    else:
        sheet = perfect_sheet(cover, rng.uniform(0, 2 * np.pi), rng.uniform(0, 1, 2))
    if morphology == "hole":
        cut(sheet, hole(sheet.xy, reach, rng))
    elif morphology == "edge":
        cut(sheet, edge(sheet.xy, reach, rng))
    faults, adatoms = point_defects(sheet, reach, defects)
    layer = as_structure(sheet, adatoms, marks + faults, vibration)
    layers = [layer]
    if morphology == "bilayer":
        twist = rng.uniform(0, 2 * np.pi)
        under = perfect_sheet(cover, twist, rng.uniform(0, 1, 2))
        layers.append(as_structure(under, [], [], vibration, LAYER_A))
    return warped(stacked(f"graphene {morphology}", layers), rng)


def warped(structure: Structure, rng: np.random.Generator) -> Structure:
    """Ripple, tilt and strain a specimen together with the places of its defects."""
    places = np.array([[defect.x, defect.y, 0.0] for defect in structure.defects]).reshape(-1, 3)
    points = rippled(np.concatenate([structure.positions, places]), rng)
    atoms = len(structure.positions)
    defects = tuple(
        Defect(defect.name, float(x), float(y))
        for defect, (x, y, _) in zip(structure.defects, points[atoms:], strict=True)
    )
    return replace(structure, positions=points[:atoms], defects=defects)


def rippled(positions: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Ripple (up to 1 angstrom rms, 15-60 angstrom long), tilt and strain a sheet.

    Ripples of that size are what Meyer et al., Nature 446, 60 (2007), found.
    """
    result = positions.copy()
    if rng.random() < 0.6:
        for wavelength in rng.uniform(15.0, 60.0, 3):
            k = 2 * np.pi / wavelength
            angle, phase = rng.uniform(0, 2 * np.pi, 2)
            along = np.array([np.cos(angle), np.sin(angle)])
            height = rng.uniform(0.0, 0.8) * np.sqrt(wavelength / 60.0)
            argument = k * (positions[:, :2] @ along) + phase
            result[:, 2] += height * np.sin(argument)
            # Bonds keep their length: the projection shrinks where the sheet is steep.
            shrink = (height * k) ** 2 / 4
            swing = shrink * (positions[:, :2] @ along + np.sin(2 * argument) / (2 * k))
            result[:, :2] -= swing[:, None] * along
    tilt = rng.normal(0, 0.05, 2)
    result[:, 2] += positions[:, :2] @ tilt
    strain = rng.normal(0, 0.004, (2, 2))
    result[:, :2] += positions[:, :2] @ ((strain + strain.T) / 2 - np.outer(tilt, tilt) / 2)
    return result


def _film(rng: np.random.Generator, side: float, reach: float, defects: PointDefects) -> Structure:
    return materials.amorphous_carbon(rng, side)


RECIPES: Mapping[str, Recipe] = {
    "graphene": Recipe(graphene),
    "dichalcogenide": Recipe(materials.dichalcogenide, sampling_a=0.15),
    "particle": Recipe(materials.particle, sampling_a=0.15, slice_a=12.0),
    "strontium titanate": Recipe(materials.strontium_titanate, sampling_a=0.16, slice_a=12.0),
    "amorphous carbon": Recipe(_film),
    "random lattice": Recipe(materials.random_lattice, sampling_a=0.16),
}

# Shares of a data set: kind of data to recipe to weight.
SHARES: Mapping[Kind, Mapping[str, float]] = {
    "graphene": {"graphene": 1.0},
    "mixed": {
        "graphene": 0.4,
        "dichalcogenide": 0.2,
        "particle": 0.12,
        "strontium titanate": 0.06,
        "amorphous carbon": 0.06,
        "random lattice": 0.16,
    },
    "stem": {"graphene": 0.5, "dichalcogenide": 0.3, "particle": 0.1, "random lattice": 0.1},
    "movie": {"graphene": 1.0},
}
