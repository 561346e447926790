"""Whether an exported file computes what its net does."""

import copy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from emdn_deploy.session import open_session
from emdn_models import ParityError
from emdn_train.graph import Graph

TOLERANCE = 1e-5
"""Largest difference from torch that is let through, as a share of the output's range."""

_SIZES = ((1, 256, 256), (3, 97, 131), (2, 64, 48), (1, 5, 3))


def compare(net: nn.Module, path: Path) -> tuple[float, float]:
    """Hold an exported file against its net over sizes, batches, doses and units.

    Returns
    -------
    Largest difference from torch, and torch's own between float32 and float64, both
    as shares of the output's range.

    Raises
    ------
    ParityError
        If the first exceeds ``TOLERANCE``.
    """
    session = open_session(path, "cpu")
    reference, exact = Graph(net).eval(), Graph(copy.deepcopy(net).double()).eval()
    worst = worst_float = 0.0
    chance = np.random.default_rng(0)
    for scale, offset, gain in ((0.5, 0.0, 1.0), (40.0, 0.0, 1.0), (9.0, 120.0, 28.0)):
        extent = 0.0
        for count, height, width in _SIZES:
            frames = (_scene(chance, count, height, width, scale) * gain + offset).astype("f4")
            column = [torch.full((count, 1, 1, 1), value) for value in (scale, offset, gain)]
            with torch.no_grad():
                tensor = torch.from_numpy(frames)[:, None]
                expected = reference(tensor, *column)[:, 0].numpy()
                truth = exact(tensor.double(), *(c.double() for c in column))[:, 0].numpy()
            found = session.run(frames, scale, offset, gain)
            # A frame of a few pixels has next to no range of its own.
            extent = extent or float(np.ptp(expected))
            worst = max(worst, float(np.abs(found - expected).max()) / extent)
            worst_float = max(worst_float, float(np.abs(expected - truth).max()) / extent)
    if not worst <= TOLERANCE:
        raise ParityError(
            f"{path.name}: onnxruntime differs from torch by {worst:.1e} of the output's range, "
            f"more than {TOLERANCE:.0e}; nothing was written"
        )
    return worst, worst_float


def _scene(
    chance: np.random.Generator, count: int, height: int, width: int, scale: float
) -> NDArray[np.float64]:
    """Count electrons of a lattice under a sloping beam: what a camera would give."""
    y, x = np.mgrid[:height, :width]
    lattice = 1 + 0.3 * np.cos(x / 2.3) * np.cos(y / 2.9 + x / 4)
    beam = 0.5 + np.linspace(0, 1, width)
    return chance.poisson(scale * lattice * beam, (count, height, width)).astype(float)
