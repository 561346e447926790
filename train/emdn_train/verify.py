"""Checks of an exported file: it computes what its net does, and by tiles what it does whole."""

import copy
import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from emdn_deploy import batching
from emdn_deploy.session import Session, open_session
from emdn_models import ModelError, ParityError
from emdn_train.onnx_graph import Graph

log = logging.getLogger(__name__)

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
            shape = count, session.info.frames, height, width
            frames = (_scene(chance, shape, scale) * gain + offset).astype("f4")
            column = [torch.full((count, 1, 1, 1), value) for value in (scale, offset, gain)]
            with torch.no_grad():
                tensor = torch.from_numpy(frames)
                expected = reference(tensor, *column)[:, 0].numpy()
                truth = exact(tensor.double(), *(c.double() for c in column))[:, 0].numpy()
            found = session.run(frames, scale, offset, gain)
            # A frame of a few pixels, or a constant one, has next to no range of its own.
            extent = extent or max(float(np.ptp(expected)), gain * scale**0.5)
            worst = max(worst, float(np.abs(found - expected).max()) / extent)
            worst_float = max(worst_float, float(np.abs(expected - truth).max()) / extent)
    if not worst <= TOLERANCE:
        raise ParityError(
            f"{path.name}: onnxruntime differs from torch by {worst:.1e} of the output's range, "
            f"more than {TOLERANCE:.0e}; nothing was written"
        )
    return worst, worst_float


def check_field(path: Path) -> None:
    """Check that no pixel sees further than its file says, and that tiles equal the whole frame.

    What the file says comes from the model's Preset. A file that says that it needs whole frames
    is taken at its word.

    Raises
    ------
    ModelError
        If one is not so; the message names what to declare in spec.py.
    """
    session = open_session(path, "cpu", 1)
    info = session.info
    if not info.tiling_exact:
        log.warning("%s: not for tiles: %s", info.name, info.text.get("whole_frame"))
        return
    preset = f"its Preset {info.preset!r} in emdn_models/spec.py"
    border, side = reach(session)
    if side > info.receptive_field:
        raise ModelError(
            f"{info.name}: an output pixel sees {side} pixels or more, and {info.receptive_field} "
            f"are declared; correct receptive_field of {preset}, or give it whole_frame"
        )
    if border > (halo := batching.halo(info)):
        raise ModelError(
            f"{info.name}: a tile needs a border of {border} pixels, and has {halo}; "
            f"give {preset} halo={border}"
        )
    if difference := tiled(session):
        raise ModelError(
            f"{info.name}: a frame in tiles differs from the whole frame by {difference:.1e}; "
            f"correct multiple and halo of {preset}, or give it whole_frame"
        )


def reach(session: Session) -> tuple[int, int]:
    """Measure how far the output pixels of a model see, by changing all pixels beyond a line.

    Returns
    -------
    Border, in pixels, that a tile needs: as many whole cells of ``multiple`` pixels as a pixel
    sees beyond its own cell. And the side of the largest square that a pixel sees, or a little
    less: the lines are a quarter of a cell apart.
    """
    step = session.info.multiple
    middle = 2 * (batching.halo(session.info) + step)
    border = side = 0
    for axis in (0, 1):
        frames, other = _frames(session, 2 * middle, axis)
        expected = _run(session, frames, axis)
        # How far back and ahead each pixel of a cell sees.
        sees = np.zeros((2, step), int)
        for line in range(middle, middle + step, max(1, step // 4)):
            changed = np.concatenate([frames[..., :line], other[..., line:]], -1)
            places = np.flatnonzero((_run(session, changed, axis) != expected).any((0, 1)))
            places = places[places < line]
            np.maximum.at(sees[1], places % step, line - places)
            changed = np.concatenate([other[..., :line], frames[..., line:]], -1)
            places = np.flatnonzero((_run(session, changed, axis) != expected).any((0, 1)))
            places = places[places >= line]
            np.maximum.at(sees[0], places % step, places - line + 1)
        own = np.arange(step)
        beyond = max((sees[0] - own).max(), (sees[1] - own[::-1]).max())
        border = max(border, -(-int(beyond) // step) * step)
        side = max(side, int(sees.sum(0).max()) + 1)
    return border, side


def tiled(session: Session) -> float:
    """Return by how much a frame in three tiles differs from the whole one, along either axis."""
    info, worst = session.info, 0.0
    border = batching.halo(info)
    # An odd number of cells, lest tiles begin on multiples that are not declared.
    core = info.multiple * (-(-max(border, 16) // info.multiple) | 1)
    for axis in (0, 1):
        frames, _ = _frames(session, 3 * core - info.multiple // 2 - 1, axis)
        frames = np.ascontiguousarray(frames.swapaxes(-1, -2) if axis == 0 else frames)
        pixels = min(frames.shape[-2:]) * (core + 2 * border)
        out = np.empty((len(frames), *frames.shape[-2:]), np.float32)
        batching.by_tiles(lambda tile: session.run(tile, 20.0, 0.0, 1.0), frames, info, out, pixels)
        worst = max(worst, float(np.abs(session.run(frames, 20.0, 0.0, 1.0) - out).max()))
    return worst


def _frames(session: Session, length: int, seed: int) -> NDArray[np.float32]:
    """Draw two inputs, (2, 1, F, H, length), of other doses; H is as short as is no multiple."""
    size = 1, session.info.frames, max(session.info.multiple, 16) - 3, length
    chance = np.random.default_rng(seed)
    return np.stack([chance.poisson(dose, size) for dose in (20, 60)]).astype(np.float32)


def _run(session: Session, frames: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Denoise frames whose long axis is to be rows (0) or columns (1)."""
    if axis == 1:
        return session.run(frames, 20.0, 0.0, 1.0)
    turned = np.ascontiguousarray(frames.swapaxes(-1, -2))
    return session.run(turned, 20.0, 0.0, 1.0).swapaxes(-1, -2)


def _scene(
    chance: np.random.Generator, shape: tuple[int, ...], scale: float
) -> NDArray[np.float64]:
    """Count electrons of a lattice under a sloping beam: what a camera would give."""
    y, x = np.mgrid[: shape[-2], : shape[-1]]
    lattice = 1 + 0.3 * np.cos(x / 2.3) * np.cos(y / 2.9 + x / 4)
    beam = 0.5 + np.linspace(0, 1, shape[-1])
    return chance.poisson(scale * lattice * beam, shape).astype(float)
