"""A bicrystal of graphene by the dual lattice, so that its boundary holds no voids.

The centres of the rings are a triangular lattice. Two such lattices are joined along a
line, evened out, and triangulated: every triangle is an atom, every shared side a bond,
so each atom has three bonds, and the boundary is made of five-, six- and seven-rings
(Ophus, Shekhawat, Rasool, Zettl, Phys. Rev. B 92, 205402, 2015).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay, cKDTree

from emdn_train.simulate.relax import BOND_A, Sheet, relax
from emdn_train.simulate.structure import lattice_points, rotation

Line = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_RING_A = BOND_A * np.sqrt(3.0)
_LEAST_TRIES, _TRIES = 4, 30
_BAND_A = 12.0


def bicrystal(
    side: float, reach: float, rng: np.random.Generator
) -> tuple[Sheet, NDArray[np.float64]]:
    """Make a relaxed sheet of two grains.

    Parameters
    ----------
    side
        Side of the square to cover, angstrom.
    reach
        The boundary passes within half this distance of the origin.

    Returns
    -------
    The sheet, and points along the boundary, (m, 2) angstrom.
    """
    direction = rng.uniform(0, 2 * np.pi)
    offset = rng.uniform(-0.5, 0.5) * reach
    bend, period, phase = rng.uniform(0, 4.0), rng.uniform(40, 120), rng.uniform(0, 2 * np.pi)
    first = rng.uniform(0, np.pi / 3)
    second = first + rng.uniform(np.pi / 30, np.pi / 3 - np.pi / 30)

    def line(along: NDArray[np.float64]) -> NDArray[np.float64]:
        return offset + bend * np.sin(2 * np.pi * along / period + phase)

    best, least = None, np.inf
    turn = rotation(-direction)
    for attempt in range(_TRIES):
        gap = rng.uniform(0.1, 0.45) * _RING_A
        parts = []
        for sign, angle in ((-1.0, first), (1.0, second)):
            grain = _rings(1.45 * side, angle, rng)
            # In the line's own frame its normal is y; the grains lie on either side.
            parts.append(grain[sign * (grain[:, 1] - line(grain[:, 0])) > gap])
        centres = _evened(_merged(np.concatenate(parts)), line)
        strain = _strain(centres, line, side / 2)
        if best is None or strain < least:
            best, least = centres, strain
        if attempt >= _LEAST_TRIES and np.isfinite(least):
            break
    assert best is not None
    sheet = _dual(best @ turn, side)
    steps = np.arange(-side, side, 4.0)
    boundary = np.stack([steps, line(steps)], 1) @ turn
    boundary = boundary[np.abs(boundary).max(1) < side / 2]
    relax(sheet, boundary, reach_a=_BAND_A, steps=60)
    return sheet, boundary


def _rings(side: float, angle: float, rng: np.random.Generator) -> NDArray[np.float64]:
    a = _RING_A
    cell = np.array([[a, 0.0], [a / 2, a * np.sqrt(3) / 2]]) @ rotation(angle)
    basis = np.array([[*rng.uniform(0, 1, 2), 0.0]])
    return lattice_points(cell, basis, side)[:, :2]


def _merged(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Put one ring in the middle of every two that are too close."""
    pairs = cKDTree(centres).query_pairs(0.62 * _RING_A, output_type="ndarray")
    keep = np.ones(len(centres), bool)
    result = centres.copy()
    for a, b in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]:
        if keep[a] and keep[b]:
            result[a] = (centres[a] + centres[b]) / 2
            keep[b] = False
    return result[keep]


def _evened(centres: NDArray[np.float64], line: Line, rounds: int = 10) -> NDArray[np.float64]:
    """Move the rings near the line to the middle of their neighbours (Lloyd, in a band)."""
    result = centres.copy()
    distance = np.abs(centres[:, 1] - line(centres[:, 0]))
    band = np.flatnonzero(distance < 4 * _RING_A)
    inner = distance[band] < 2 * _RING_A
    points = result[band]
    for index in range(rounds):
        if index % 2 == 0:
            first, after = Delaunay(points).vertex_neighbor_vertices
            degree = np.diff(first)
            owner = np.repeat(np.arange(len(points)), degree)
        total = np.stack([np.bincount(owner, points[after, k], len(points)) for k in (0, 1)], 1)
        middle = total / degree[:, None]
        points[inner] += 0.7 * (middle - points)[inner]
    result[band] = points
    return result


def _strain(centres: NDArray[np.float64], line: Line, half: float) -> float:
    """Rate the boundary: spread of its rings' spacing, infinite unless all are 5, 6 or 7."""
    distance = np.abs(centres[:, 1] - line(centres[:, 0]))
    band = distance < 6 * _RING_A
    centres, distance = centres[band], distance[band]
    first, after = Delaunay(centres).vertex_neighbor_vertices
    degree = np.diff(first)
    near = (distance < 3 * _RING_A) & ((centres**2).sum(1) < 2 * half**2)
    if (near & ((degree < 5) | (degree > 7))).any():
        return np.inf
    owner = np.repeat(np.arange(len(centres)), degree)
    spacing = np.hypot(*(centres[after] - centres[owner])[near[owner]].T)
    return float(np.abs(spacing / _RING_A - 1).max())


def _dual(centres: NDArray[np.float64], side: float) -> Sheet:
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
