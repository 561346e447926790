"""Noise that is not white between the axes of its spectrum: blur and interference.

White noise has the same power at every frequency. Differences of neighbouring frames
hold no fixed structure; what the specimen's motion and a scan's jitter leave in them lies
within `INSIDE` cycles a pixel along x, so blur is looked for further out, where only the
camera (or what has resampled the frames) can have made the power uneven.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from emdn_deploy.noise.spectra import (
    INSIDE,
    MEDIAN,
    Array,
    Spectra,
    cells,
    frequencies,
    medians,
    off_axes,
)

# White noise alone passes these in less than 1 % of stacks, with those of
# `emdn_deploy.noise.findings` together.
BLUR_F = 12.0
PEAK_CHANCE = 3e-4  # that noise alone makes a peak
LEAST_CORRELATION = 0.02  # what is weaker does not matter
_CORNER = 0.4  # in single frames the image's tail is told from noise further out only


@dataclass(frozen=True)
class Blur:
    """The autocorrelation at neighbouring pixels that fits the outer spectrum.

    Attributes
    ----------
    x, y
        Correlation of neighbours along x and y.
    error
        Their standard error, the larger.
    f
        Variance explained by it against that left, Fisher's F with 3 and many degrees.
    """

    x: float
    y: float
    error: float
    f: float

    @property
    def clear(self) -> bool:
        """Whether it is beyond chance, and strong enough to matter."""
        return self.f > BLUR_F and max(abs(self.x), abs(self.y)) > LEAST_CORRELATION


def blur(power: Array, shape: tuple[int, int], single: bool) -> Blur:
    """Fit a(1 + 2x cos 2 pi qx + 2y cos 2 pi qy + 4d cos cos) to the outer spectrum."""
    qy, qx = frequencies(shape)
    where = off_axes(shape) & (qx >= INSIDE)
    if single:
        where &= np.hypot(qy, qx) >= _CORNER
    cell = cells(shape)
    found = medians(power, cell, where)
    counts = np.bincount(cell[where])
    cx, cy = np.cos(2 * np.pi * qx), np.cos(2 * np.pi * qy)
    terms = [np.ones_like(power), *(np.broadcast_to(t, power.shape) for t in (cx, cy, cx * cy))]
    flat = [np.bincount(cell[where], weights=term[where]) for term in terms]
    labels = np.array(sorted(found))
    design = np.stack([total[labels] / counts[labels] for total in flat], axis=1)
    weight = np.sqrt(counts[labels])
    values = np.array([found[label] for label in labels])
    a, b = design * weight[:, None], values * weight
    covariance = np.linalg.pinv(a.T @ a)
    fit = covariance @ a.T @ b
    left = float(((b - a @ fit) ** 2).sum()) / max(1, len(labels) - 4)
    level = float((b * weight).sum() / (weight**2).sum())
    total = float(((b - weight * level) ** 2).sum()) - left * (len(labels) - 4)
    if left <= 0 or fit[0] <= 0:
        return Blur(0.0, 0.0, 0.0, 0.0)
    errors = np.sqrt(left * np.diag(covariance)) / fit[0] / 2
    error = float(max(errors[1], errors[2]))
    return Blur(float(fit[1] / fit[0] / 2), float(fit[2] / fit[0] / 2), error, total / 3 / left)


@dataclass(frozen=True)
class Peak:
    """A frequency in cycles per pixel, along y and x, and the amplitude of the wave."""

    y: float
    x: float
    amplitude: float


def peaks(spectra: Spectra) -> tuple[Peak, ...]:
    """Find waves that come with another phase in every frame.

    Only from `INSIDE` outwards, and where other peaks lie within, as those of a lattice
    that moves, only such as the average of the frames does not hold.
    """
    power, shape, rank = spectra.power, spectra.shape, spectra.rank
    qy, qx = frequencies(shape)
    expected = _levels(power, shape, rank) / (1 - 1 / (9 * rank)) ** 3
    expected[expected <= 0] = np.inf
    ratio = power / expected
    for row in {0, shape[0] // 2} if shape[0] % 2 == 0 else {0}:
        for column in {0, shape[1] // 2} if shape[1] % 2 == 0 else {0}:
            ratio[row, column] /= 2  # of one degree of freedom, not two
    z = (np.cbrt(ratio) - 1 + 1 / (9 * rank)) * 3 * np.sqrt(rank)
    high = z > NormalDist().inv_cdf(1 - PEAK_CHANCE / z.size)
    radius = np.hypot(qy, qx)
    inside = high & (radius < INSIDE) & off_axes(shape)
    outside = high & (radius >= INSIDE)
    if inside.any():
        if spectra.rank < 3:
            return ()
        outside &= np.abs(spectra.cross) < 0.5 * spectra.single
    found: list[Peak] = []
    for index in np.argsort(np.where(outside, ratio, 0), axis=None)[::-1][:64]:
        row, column = (int(i) for i in np.unravel_index(index, ratio.shape))
        if not outside[row, column]:
            break
        # A frequency between two of the grid's shares its power among them.
        around = np.ix_(
            np.arange(row - 1, row + 2) % shape[0],
            np.arange(max(0, column - 1), min(column + 2, power.shape[1])),
        )
        excess = float((power - expected)[around].clip(0).sum()) / (shape[0] * shape[1])
        one = Peak(float(qy[row, 0]), float(qx[0, column]), 2 * excess**0.5)
        if not any(_near(one, other, shape) for other in found):
            found.append(one)
    return tuple(found)


def _near(one: Peak, other: Peak, shape: tuple[int, int]) -> bool:
    signs = (1, -1) if min(one.x, other.x) * shape[1] < 4 else (1,)
    return any(
        abs((one.y - s * other.y + 0.5) % 1 - 0.5) * shape[0] < 4
        and abs(one.x - s * other.x) * shape[1] < 4
        for s in signs
    )


def _levels(power: Array, shape: tuple[int, int], rank: float) -> Array:
    """Return the power around every frequency, along the axes for those near one.

    Medians, raised by two standard errors: a low one would make peaks of its neighbours.
    """
    qy, qx = frequencies(shape)
    cell = cells(shape)
    middle = medians(power, cell, np.ones_like(cell, bool))
    labels, number = np.unique(cell, return_counts=True)
    safe = {
        int(label): middle[int(label)] * (1 + 2 / np.sqrt(count * rank * MEDIAN))
        for label, count in zip(labels, number, strict=True)
        if int(label) in middle
    }
    level: Array = np.vectorize(lambda label: safe.get(label, np.inf), otypes=[float])(cell)
    far_x, far_y = qx[0] >= INSIDE, np.abs(qy[:, 0]) >= INSIDE
    # Jitter raises whole columns, flicker the axis.
    rise = 1 + 2 / np.sqrt(np.array([far_x.sum(), far_y.sum() / 2]) * rank * MEDIAN)
    rows = np.median(power[:, far_x], axis=1) * rise[0]
    columns = np.median(power[far_y], axis=0) * rise[1]
    level = np.maximum(level, np.maximum(rows[:, None], columns[None, :]))
    return level
