"""Maxima of a frame: background off, basins by steepest ascent, passes, and sub-pixel places."""

import numpy as np
from numpy.typing import NDArray

from emdn_models.metrics.accept import Floats


def flattened(frame: Floats, smoothing: float, background: float) -> Floats:
    """Smooth a frame and take off its background, a parabola about every pixel.

    Local regression (Cleveland, JASA 74, 829, 1979) on each axis in turn: it has no bias at
    the border, as a local mean has.

    Parameters
    ----------
    frame
        (H, W).
    smoothing, background
        Standard deviations of the two Gaussians, pixels.

    Returns
    -------
    (H, W), of mean about 0.
    """
    smooth = gaussian(frame, smoothing)
    rows, columns = (_trend(length, background) for length in frame.shape)
    return np.asarray(smooth - rows @ smooth @ columns.T)


def gaussian(frame: Floats, sigma: float) -> Floats:
    """Gaussian mean of a frame (H, W), over what lies inside it."""
    for axis in (0, 1):
        length = frame.shape[axis]
        apart = np.subtract.outer(np.arange(length), np.arange(length))
        weights = np.exp(-0.5 * (apart / sigma) ** 2)
        weights /= weights.sum(1, keepdims=True)
        frame = weights @ frame if axis == 0 else frame @ weights.T
    return frame


def _trend(length: int, sigma: float) -> Floats:
    """Matrix that fits a parabola about every sample and takes its value there."""
    # Counted in sigma: the fit's matrices stay well conditioned.
    apart = np.subtract.outer(np.arange(length), np.arange(length)) / sigma
    weights = np.exp(-0.5 * apart**2)
    powers = np.stack([np.ones_like(apart), apart, apart**2])
    normal = np.einsum("pij,qij,ij->ipq", powers, powers, weights)
    first = np.linalg.pinv(normal, hermitian=True)[:, 0]
    return np.asarray(np.einsum("ip,pij->ij", first, powers) * weights)


def maxima(field: Floats, least: float) -> NDArray[np.int64]:
    """Find the maxima that rise at least ``least`` over the pass to any higher one.

    Parameters
    ----------
    field
        (H, W).

    Returns
    -------
    (n, 2) pixels, y and x, the highest first. Maxima on the outermost pixels are left out:
    their top may lie outside.
    """
    height, width = field.shape
    flat = field.ravel()
    # Ties go to the later pixel, so that a plateau is one maximum.
    rank = np.empty(flat.size, np.int64)
    rank[np.argsort(flat, kind="stable")] = np.arange(flat.size)
    grid = np.pad(rank.reshape(height, width), 1, constant_values=-1)
    index = np.pad(np.arange(flat.size).reshape(height, width), 1, constant_values=-1)
    windows = [
        (slice(1 + dy, 1 + dy + height), slice(1 + dx, 1 + dx + width))
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]
    best = np.argmax([grid[window] for window in windows], 0).ravel()
    choices = np.array([index[window].ravel() for window in windows])
    upwards = choices[best, np.arange(flat.size)]
    while not np.array_equal(upwards, upwards[upwards]):
        upwards = upwards[upwards]
    basin = upwards.reshape(height, width)
    prominent = _prominent(basin, rank.reshape(height, width), flat, least)
    y, x = np.divmod(prominent, width)
    inside = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    return np.asarray(np.stack([y, x], 1)[inside])


def _prominent(
    basin: NDArray[np.int64], rank: NDArray[np.int64], flat: Floats, least: float
) -> NDArray[np.int64]:
    """Merge basins over their passes, the highest pass first, and list who rises enough."""
    ends, passes = [], []
    height, width = basin.shape
    value = flat.reshape(height, width)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = (slice(0, height - dy), slice(max(0, -dx), width - max(0, dx)))
        there = (slice(dy, height), slice(max(0, dx), width + min(0, dx)))
        apart = basin[here] != basin[there]
        ends.append(np.stack([basin[here][apart], basin[there][apart]], 1))
        passes.append(np.minimum(value[here], value[there])[apart])
    edge, level = np.concatenate(ends), np.concatenate(passes)
    root = {int(top): int(top) for top in np.unique(basin)}

    def find(top: int) -> int:
        while root[top] != top:
            root[top] = root[root[top]]
            top = root[top]
        return top

    ranks = rank.ravel()
    rise = {}
    for k in np.argsort(-level, kind="stable"):
        a, b = find(int(edge[k, 0])), find(int(edge[k, 1]))
        if a != b:
            lower, upper = (a, b) if ranks[a] < ranks[b] else (b, a)
            rise[lower] = flat[lower] - level[k]
            root[lower] = upper
    highest = int(np.argmax(ranks))
    rise[highest] = flat[highest] - flat.min()
    kept = np.array([top for top, over in rise.items() if over >= least], np.int64)
    return kept[np.argsort(-flat[kept], kind="stable")]


def refined(field: Floats, pixels: NDArray[np.int64], reach: float, closest: float) -> Floats:
    """Fit a paraboloid about each pixel and return the tops, (n, 2).

    Parameters
    ----------
    field
        (H, W).
    pixels
        (n, 2), the highest first.
    reach
        Radius of the fit, pixels.
    closest
        Of tops nearer to each other than this the highest stays.
    """
    if not len(pixels):
        return np.empty((0, 2))
    half = int(np.ceil(reach))
    # Beyond the frame there is nothing to fit: such pixels get no weight.
    values = np.pad(field, half, constant_values=np.nan)
    dy, dx = (o.ravel() for o in np.mgrid[-half : half + 1, -half : half + 1])
    tops = pixels.astype(np.float64)
    for _ in range(3):
        base = np.clip(np.rint(tops).astype(np.int64), 0, np.array(field.shape) - 1)
        off = tops - base
        heights = values[base[:, :1] + half + dy, base[:, 1:] + half + dx]
        v, u = dy - off[:, :1], dx - off[:, 1:]
        weight = np.clip(1.5 * (1 - (v * v + u * u) / reach**2), 0, 1)
        weight[np.isnan(heights)] = 0
        design = np.stack([np.ones_like(v), v, u, v * v, u * u, v * u], 2)
        normal = np.einsum("np,npi,npj->nij", weight, design, design)
        right = np.einsum("np,npi,np->ni", weight, design, np.nan_to_num(heights))
        c = np.einsum("nij,nj->ni", np.linalg.pinv(normal, hermitian=True), right)
        bend = 4 * c[:, 3] * c[:, 4] - c[:, 5] ** 2
        hill = (bend > 0) & (c[:, 3] < 0)
        bend[~hill] = 1
        step = np.stack(
            [
                (c[:, 5] * c[:, 2] - 2 * c[:, 4] * c[:, 1]) / bend,
                (c[:, 5] * c[:, 1] - 2 * c[:, 3] * c[:, 2]) / bend,
            ],
            1,
        )
        step[~hill] = 0
        # A fit that leads away from its maximum is a fit to something else.
        stray = np.abs(tops + step - pixels).max(1) > max(reach, 1.5)
        tops = np.where(stray[:, None], tops, tops + step)
    kept: list[int] = []
    gap = ((tops[:, None] - tops[None]) ** 2).sum(2) < closest**2
    for k in range(len(tops)):
        if not gap[k, kept].any():
            kept.append(k)
    return np.asarray(tops[kept])
