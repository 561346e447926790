"""Faults of denoised frames, planted where the honest result is known.

Each is a small function of what a scene is made of, the honest frames and a strength.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Stack = NDArray[np.float32]
Strength = float | str

PERIOD = 7.3  # pixels, of the lattice that is added
_WIDE = 32.0  # pixels


@dataclass(frozen=True, eq=False)
class Scene:
    """What faults are made from, all of the same frames.

    Attributes
    ----------
    raw
        (n, H, W) the frames before, in electrons.
    filled
        (n, H, W) expected electrons that an atom would add where the specimen lacks one.
    again
        ``again(raw, model, gain)`` denoises (n, H, W) by another model, or, for an empty
        name, by the same; taking a pixel's unit for ``gain`` electrons of the true one.
    seed
        Of what is drawn.
    """

    raw: Stack
    filled: Stack
    again: Callable[[Stack, str, float], Stack]
    seed: int


Plant = Callable[[Scene, Stack, Strength], Stack]


@dataclass(frozen=True)
class Fault:
    """A fault and how strong it is tried.

    Attributes
    ----------
    plant
        Takes the scene, honest frames (n, H, W) and a strength, and gives faulty frames.
    strengths
        From hopeless to clear, or by name; empty for names of other models.
    unit
        What the strength counts.
    """

    plant: Plant
    strengths: tuple[Strength, ...]
    unit: str = ""


def blur(scene: Scene, denoised: Stack, strength: Strength) -> Stack:
    """Smooth with a Gaussian of ``strength`` pixels."""
    return _gaussian(denoised, float(strength))


def filter_only(scene: Scene, denoised: Stack, strength: Strength) -> Stack:
    """Put a Gaussian filter of ``strength`` pixels in the model's place."""
    return _gaussian(scene.raw, float(strength))


def fill_vacancy(scene: Scene, denoised: Stack, strength: Strength) -> Stack:
    """Show an atom, ``strength`` times as strong as a real one, where there is none."""
    return _single(denoised + np.float32(strength) * scene.filled)


def add_lattice(scene: Scene, denoised: Stack, strength: Strength) -> Stack:
    """Add a hexagonal lattice of `PERIOD` pixels, ``strength`` times the contrast."""
    chance = np.random.default_rng(scene.seed)
    angles = chance.uniform(0, np.pi) + np.arange(3) * np.pi / 3
    phases = chance.uniform(0, 2 * np.pi, 3)
    y, x = np.mgrid[: denoised.shape[1], : denoised.shape[2]]
    waves = [
        np.cos(2 * np.pi * (np.sin(a) * y + np.cos(a) * x) / PERIOD + phase)
        for a, phase in zip(angles, phases, strict=True)
    ]
    # Three cosines have a variance of 3 / 2.
    pattern = np.sum(waves, axis=0) / np.sqrt(1.5)
    # The beam's profile is no contrast of the specimen.
    detail = denoised - _gaussian(denoised, _WIDE)
    contrast = detail.std(axis=(1, 2), keepdims=True)
    return _single(denoised + float(strength) * contrast * pattern)


def scale(scene: Scene, denoised: Stack, strength: Strength) -> Stack:
    """Multiply all intensities."""
    return _single(denoised * np.float32(strength))


def shift(scene: Scene, denoised: Stack, strength: Strength) -> Stack:
    """Add ``strength`` times the mean to all intensities."""
    mean = denoised.mean(axis=(1, 2), keepdims=True)
    return _single(denoised + np.float32(strength) * mean)


def add_stripes(scene: Scene, denoised: Stack, strength: Strength) -> Stack:
    """Add a random number to every column, ``strength`` times the noise of a mean pixel."""
    chance = np.random.default_rng(scene.seed)
    pattern = chance.standard_normal(denoised.shape[2])
    noise = np.sqrt(scene.raw.mean(axis=(1, 2), keepdims=True))
    return _single(denoised + float(strength) * noise * pattern)


def leave_noise(scene: Scene, denoised: Stack, strength: Strength) -> Stack:
    """Leave a share of what was removed."""
    return _single(denoised + np.float32(strength) * (scene.raw - denoised))


def other_model(scene: Scene, denoised: Stack, strength: Strength) -> Stack:
    """Denoise by another model than is said."""
    return scene.again(scene.raw, str(strength), 1.0)


def wrong_gain(scene: Scene, denoised: Stack, strength: Strength) -> Stack:
    """Denoise with ``strength`` times the gain."""
    return scene.again(scene.raw, "", float(strength))


FAULTS: Mapping[str, Fault] = {
    "blur": Fault(blur, (0.5, 1.0, 2.0, 4.0), "px"),
    "Gaussian filter, no model": Fault(filter_only, (1.0, 2.0, 4.0, 8.0), "px"),
    "another model": Fault(other_model, ()),
    "filled vacancy": Fault(fill_vacancy, (0.25, 0.5, 1.0), "atoms"),
    "added lattice": Fault(add_lattice, (0.03, 0.1, 0.3, 1.0), "x contrast"),
    "scaled": Fault(scale, (1.002, 1.01, 1.05), "x"),
    "offset": Fault(shift, (0.002, 0.01, 0.05), "x mean"),
    "column stripes": Fault(add_stripes, (0.03, 0.1, 0.2, 0.5), "x noise"),
    "noise left in": Fault(leave_noise, (0.01, 0.03, 0.1, 0.3), "of it"),
    "wrong gain, not in the record": Fault(wrong_gain, (0.5, 0.8, 1.25, 2.0), "x"),
}


def _gaussian(stack: Stack, sigma: float) -> Stack:
    return _single(ndimage.gaussian_filter(stack, (0, sigma, sigma), mode="reflect"))


def _single(stack: NDArray[np.floating]) -> Stack:
    return np.asarray(stack, dtype=np.float32)
