"""A smooth scene, which a small blur denoises honestly, and faults to plant in the result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emdn_deploy import Denoiser
from emdn_deploy.config import DenoiseOptions

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="session")
def scene() -> Callable[..., Array]:
    """Make expected electrons (H, W): waves that are long against the blur of `box_model`.

    Towards the edges, beyond which the model sees the mean, they fade out.
    """

    def make(height: int = 64, width: int = 80, dose: float = 60.0) -> Array:
        y, x = np.mgrid[:height, :width]
        waves = np.cos(2 * np.pi * (0.02 * y + 0.015 * x)) + np.cos(2 * np.pi * (0.025 * x))
        fade = np.outer(*(np.sin(np.pi * np.arange(side) / (side - 1)) for side in (height, width)))
        return dose * (1 + 0.05 * waves * fade)

    return make


@pytest.fixture(scope="session")
def options(box_model: Path) -> DenoiseOptions:
    return DenoiseOptions(model=str(box_model), device="cpu", threads=1)


@pytest.fixture(scope="session")
def stacks(scene, box_model: Path) -> Callable[..., tuple[Array, Array]]:
    """Make a stack of counts and the same denoised."""
    model = Denoiser(box_model, threads=1)

    def make(frames: int = 8, seed: int = 0, **size: Any) -> tuple[Array, Array]:
        rng = np.random.default_rng(seed)
        raw = rng.poisson(scene(**size), (frames, *scene(**size).shape)).astype(np.uint16)
        return raw, model.denoise(raw, gain=1, offset=0)

    return make


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., list[Path]]:
    """Write arrays as ``.npy`` and return their paths."""

    def save(*arrays: Array) -> list[Path]:
        paths = [tmp_path / f"stack{number}.npy" for number in range(len(arrays))]
        for path, array in zip(paths, arrays, strict=True):
            np.save(path, array)
        return paths

    return save


@pytest.fixture(scope="session")
def atom() -> Callable[..., Array]:
    """Draw a Gaussian of height 1."""

    def draw(shape: tuple[int, ...], y: float, x: float, sigma: float) -> Array:
        down, right = np.mgrid[: shape[0], : shape[1]]
        return np.exp(-((down - y) ** 2 + (right - x) ** 2) / (2 * sigma**2))

    return draw
