"""The image of one site of a crystal, fitted to a frame of many: linear imaging.

A thin specimen's image is nearly a sum of one picture a column (the weak-phase and the
incoherent approximation: Kirkland, Advanced Computing in Electron Microscopy, 2nd ed., ch. 3).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emdn_models.metrics.accept import Floats

REACH_NM = 0.20
_KNOT_NM = 0.04
_ORDERS = 3
_CORE_NM = 0.06
_WAVE_NM = 0.9
# Of the mean energy of a column of the design.
_STIFF = 1e-2


@dataclass(frozen=True)
class Pictures:
    """Where the picture of every site falls, as a sparse matrix by coordinates.

    Attributes
    ----------
    shape
        (H, W) of the frame.
    count
        Number of sites.
    site, pixel
        (p,) which site, and which pixel of the flattened frame.
    dy, dx
        (p,) from site to pixel, nm.
    rows, columns
        (H, m) and (W, k) orthonormal slow waves, which count as background.
    """

    shape: tuple[int, int]
    count: int
    site: NDArray[np.int64]
    pixel: NDArray[np.int64]
    dy: Floats
    dx: Floats
    rows: Floats
    columns: Floats

    def flat(self, frame: Floats) -> Floats:
        """Take the background off a frame (H, W) and return it as (H * W,)."""
        slow = self.rows @ (self.rows.T @ frame @ self.columns) @ self.columns.T
        return np.asarray((frame - slow).ravel())

    def drawn(self, weights: Floats) -> Floats:
        """Draw every site's picture (p,) into one frame, background off: (H * W,)."""
        drawn = np.bincount(self.pixel, weights, self.shape[0] * self.shape[1])
        return self.flat(drawn.astype(np.float64, copy=False).reshape(self.shape))

    def read(self, weights: Floats, flat: Floats) -> Floats:
        """Project a flat frame on every site's picture: (n,)."""
        return np.asarray(np.bincount(self.site, weights * flat[self.pixel], self.count))


def lay_out(shape: tuple[int, int], sites: Floats, pixel_size_nm: float) -> Pictures:
    """Find the pixels within reach of every site (n, 2), y and x in pixels."""
    reach = REACH_NM / pixel_size_nm
    half = int(np.ceil(reach)) + 1
    oy, ox = (o.ravel() for o in np.mgrid[-half : half + 1, -half : half + 1])
    base = np.rint(sites).astype(np.int64)
    y, x = base[:, :1] + oy, base[:, 1:] + ox
    dy, dx = y - sites[:, :1], x - sites[:, 1:]
    inside = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
    site, spot = np.nonzero(inside & (dy**2 + dx**2 < reach**2))
    return Pictures(
        shape,
        len(sites),
        site,
        y[site, spot] * shape[1] + x[site, spot],
        dy[site, spot] * pixel_size_nm,
        dx[site, spot] * pixel_size_nm,
        _waves(shape[0], pixel_size_nm),
        _waves(shape[1], pixel_size_nm),
    )


def fit_picture(
    pictures: Pictures,
    frame: Floats,
    strength: Floats,
    kinds: NDArray[np.int64],
    left_out: NDArray[np.bool_],
) -> tuple[Floats, float]:
    """Fit one picture a kind of site: rings of B-splines, turning up to threefold.

    Parameters
    ----------
    frame
        (H, W).
    strength
        (n,) how strong each site is taken to be.
    kinds
        (n,) 0, 1, ...
    left_out
        (n,) sites in whose reach nothing is fitted.

    Returns
    -------
    weights
        (p,) the picture of every site at its pixels, for strength 1.
    explained
        Share of the variance, background off, that the pictures explain.
    """
    shapes, radius = _shapes(pictures)
    flat = pictures.flat(frame)
    counts = np.ones(flat.size)
    counts[pictures.pixel[left_out[pictures.site]]] = 0
    scaled = strength[pictures.site]
    belongs = [(kinds == kind)[pictures.site] for kind in range(int(kinds.max()) + 1)]
    design = np.array([pictures.drawn(s * scaled * own) for own in belongs for s in shapes])
    normal, right = (design * counts) @ design.T, design @ (counts * flat)
    # A perfect crystal fixes a picture only up to what the lattice sums to nothing: of those
    # the narrowest is taken.
    stiffness = _STIFF * np.trace(normal) / len(normal) * (1 + (radius / 0.1) ** 4)
    c = np.linalg.solve(normal + np.diag(np.tile(stiffness, len(belongs))), right)
    left = flat - c @ design
    weights = np.zeros(len(pictures.site))
    for own, part in zip(belongs, c.reshape(len(belongs), -1), strict=True):
        weights[own] = part @ shapes[:, own]
    return weights, 1 - float(counts @ left**2) / max(float(counts @ flat**2), 1e-300)


def core(pictures: Pictures, weights: Floats, kinds: NDArray[np.int64]) -> tuple[float, float]:
    """Share of a picture's energy within 0.06 nm of the site, and the mean value there.

    Of kinds whose shares differ the least counts; the value is the mean of all.
    """
    near = np.hypot(pictures.dy, pictures.dx) < _CORE_NM
    energy = weights**2
    kind = kinds[pictures.site]
    inside, total = np.bincount(kind, energy * near), np.bincount(kind, energy)
    shares = [a / b for a, b in zip(inside, total, strict=True) if b > 0]
    return float(min(shares, default=0.0)), float(weights[near].mean())


def solve_strengths(
    pictures: Pictures,
    weights: Floats,
    frame: Floats,
    expected: Floats,
    kinds: NDArray[np.int64],
    pull: float,
) -> Floats:
    """Fit all sites' strengths at once, drawn towards what is expected of them.

    Parameters
    ----------
    expected
        (n,) strengths to start from.
    pull
        Weight of the expectation, in energies of the median picture of the kind.

    Returns
    -------
    (n,) strengths.
    """
    energy = np.bincount(pictures.site, weights**2, pictures.count)
    top = int(kinds.max()) + 1
    middle = [np.median(energy[kinds == k]) if (kinds == k).any() else 0.0 for k in range(top)]
    weight = pull * np.array(middle)[kinds]
    flat = pictures.flat(frame)
    site = pictures.site

    def normal(strength: Floats) -> Floats:
        drawn = pictures.drawn(weights * strength[site])
        return np.asarray(pictures.read(weights, drawn) + weight * strength)

    result = expected.copy()
    left = pictures.read(weights, flat) + weight * expected - normal(result)
    direction, size = left.copy(), float(left @ left)
    first = size
    # Conjugate gradients: the pull bounds the condition, some ten steps do.
    for _ in range(60):
        if size <= 1e-10 * first or size == 0:
            break
        ahead = normal(direction)
        step = size / float(direction @ ahead)
        result += step * direction
        left -= step * ahead
        before, size = size, float(left @ left)
        direction = left + size / before * direction
    return result


def _waves(length: int, pixel_size_nm: float) -> Floats:
    """Orthonormal cosines (length, m) of half-waves down to 0.9 nm."""
    orders = np.arange(min(length, max(3, int(length * pixel_size_nm / _WAVE_NM) + 1)))
    waves = np.cos(np.pi * np.outer(np.arange(length) + 0.5, orders) / length)
    return np.asarray(waves / np.sqrt((waves**2).sum(0)))


def _shapes(pictures: Pictures) -> tuple[Floats, Floats]:
    """Basis of a picture at every pixel of every site, (b, p), and its radii in nm, (b,)."""
    radius = np.hypot(pictures.dy, pictures.dx)
    turn = (pictures.dx + 1j * pictures.dy) / np.where(radius > 0, radius, 1)
    ring = radius / _KNOT_NM
    shapes, radii = [], []
    for knot in range(round(REACH_NM / _KNOT_NM) - 1):
        for order in range(_ORDERS + 1 if knot else 1):
            spline = _spline(ring - knot)
            if knot == 1:
                # Mirrored at the site, the picture is smooth there.
                spline = spline + (-1) ** order * _spline(ring + knot)
            wave = spline * turn**order
            shapes += [wave.real, wave.imag] if order else [wave.real]
            radii += [knot * _KNOT_NM] * (2 if order else 1)
    return np.array(shapes), np.array(radii)


def _spline(x: Floats) -> Floats:
    """Cubic B-spline of unit knots."""
    a = np.abs(x)
    return np.asarray(np.where(a < 1, 2 / 3 - a**2 + a**3 / 2, np.maximum(2 - a, 0) ** 3 / 6))
