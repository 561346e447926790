"""What honest denoisings look like: noise drawn on the model's own result, and denoised again.

A parametric bootstrap (Efron, Tibshirani, An Introduction to the Bootstrap, 1993,
section 6.5). The model's result is a little smoother than the scene, and what it removes
of that a little less. Twicing (Tukey, Exploratory Data Analysis, 1977) takes most of this
away: what the model removes of its own result is added to it before noise is drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.checking import local
from emdn_deploy.checking.camera import Camera
from emdn_deploy.checking.held import coarse, line
from emdn_deploy.checking.statistics import Measured, measure
from emdn_models.metrics import Linearity
from emdn_models.metrics.accept import Floats

Frame = NDArray[np.float32]
Run = Callable[[Frame], Frame]

PILOTS = 2  # denoisings of each base frame that say what the model removes of it


@dataclass(frozen=True)
class Honest:
    """Honest denoisings.

    Attributes
    ----------
    panels
        All of them, without ``fields``: the resamples of the first base, of the next...
    pilots
        Denoisings of what the model first makes of a base, before twicing, likewise.
    bases
        How many were resampled.
    runs
        Largest values of the average residual of ``length`` draws from one base, at
        every scale: (runs, S).
    length
        Frames of a run; 0 for no runs.
    line
        Local means out against those in; None where they are too few.
    error
        Mean squared error, intensity units squared.
    denoisings
        How many were made, pilots included.
    """

    panels: list[Measured]
    pilots: list[Measured]
    bases: int
    runs: Floats
    length: int
    line: Linearity | None
    error: float
    denoisings: int


def draw(
    bases: Sequence[tuple[Frame, NDArray[np.bool_]]],
    run: Run,
    camera: Camera,
    resamples: int,
    length: int,
    seed: int,
) -> Honest:
    """Make honest denoisings.

    Parameters
    ----------
    bases
        Raw frames (H, W) of one panel each, and which of their pixels count.
    run
        Denoises (n, H, W).
    resamples
        Honest denoisings of each base.
    length
        Frames of a run; 0 for no runs.
    """
    chance = np.random.default_rng(seed)
    panels: list[Measured] = []
    first: list[Measured] = []
    runs, errors, pairs = [], [], []
    for raw, good in bases:
        truth = run(raw[None])[0]
        drawn = [camera.draw(truth, chance) for _ in range(PILOTS)]
        pilots = [run(noisy[None])[0] for noisy in drawn]
        for noisy, clean in zip(drawn, pilots, strict=True):
            found = measure(noisy, clean, camera, good)
            first.append(replace(found, fields=found.fields[:0]))
        twice = 2 * truth - np.mean(pilots, axis=0)
        truth = np.maximum(twice, camera.offset).astype(np.float32)
        total = np.zeros(0, np.float32)
        for number in range(resamples):
            noisy = camera.draw(truth, chance)
            clean = run(noisy[None])[0]
            found = measure(noisy, clean, camera, good)
            pairs.append((coarse(clean), coarse(noisy)))
            errors.append(float(np.square(clean - truth).mean(where=good)))
            panels.append(replace(found, fields=found.fields[:0]))
            if length:
                share = local.share(found.fields)
                total = share if number % length == 0 else total + share
                if number % length == length - 1:
                    runs.append(np.abs(total).max(axis=(1, 2)) / sqrt(length))
    done = len(bases) * (1 + PILOTS + resamples)
    return Honest(
        panels,
        first,
        len(bases),
        np.asarray(runs),
        length,
        line(pairs),
        float(np.mean(errors)),
        done,
    )
