"""The parametric bootstrap: noise drawn on the model's own result, and denoised again.

Efron, Tibshirani, An Introduction to the Bootstrap, 1993, section 6.5. The model's result is a
little smoother than the scene, and what it removes of that a little less. Twicing (Tukey,
Exploratory Data Analysis, 1977) takes most of this away: what the model removes of its own
result is added to it before noise is drawn.

The scene of a replicate is known, and so is what a perfect denoiser would leave as residual: the
noise that was drawn. A result may be as good as the model's, or better, up to perfect.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from emdn_deploy.check.camera import Camera
from emdn_deploy.check.heldout import coarse, line
from emdn_deploy.check.residual_tests import Floats, Frame, Mask, Measured, measure, share, spots_of
from emdn_models.metrics import Linearity

PILOTS = 2  # denoisings of each base frame that say what the model removes of it


@dataclass
class Population:
    """Replicates as one denoiser leaves them.

    Attributes
    ----------
    panels
        All of them, without ``fields``: the replicates of the first base, of the next...
    pilots
        The same of what the model first makes of a base, before twicing.
    runs
        Contrast of the largest spots in the average residual of a run from one base, (S,) each.
    """

    panels: list[Measured] = field(default_factory=list)
    pilots: list[Measured] = field(default_factory=list)
    runs: list[Floats] = field(default_factory=list)


@dataclass(frozen=True)
class Bootstrap:
    """Replicates of a stack.

    Attributes
    ----------
    model, perfect
        As the model leaves them, and as a perfect denoiser would.
    bases, replicates
        Frames that noise was drawn on, and how often on each.
    length
        Frames of a run; 0 for no runs.
    line
        Local means out against those in; None where they are too few.
    error
        Mean squared error of the model, intensity units squared.
    seed
        Of the noise.
    """

    model: Population
    perfect: Population
    bases: int
    replicates: int
    length: int
    line: Linearity | None
    error: float
    seed: int


def draw(
    bases: Sequence[tuple[Frame, Mask]],
    denoise: Callable[[Frame], Frame],
    camera: Camera,
    replicates: int,
    length: int,
    seed: int,
) -> Bootstrap:
    """Draw replicates and measure them.

    Parameters
    ----------
    bases
        Raw frames (H, W) of one panel each, and which of their pixels count.
    denoise
        Denoises (n, H, W).
    replicates
        Of each base.
    length
        Frames of a run; 0 for no runs.
    """
    chance = np.random.default_rng(seed)
    model, perfect = Population(), Population()
    errors: list[float] = []
    pairs: list[tuple[Frame, Frame]] = []
    root = np.float32(max(1, length) ** 0.5)
    for raw, good in bases:
        truth = denoise(raw[None])[0]
        drawn = [camera.draw(truth, chance) for _ in range(PILOTS)]
        made = [denoise(noisy[None])[0] for noisy in drawn]
        for noisy, clean in zip(drawn, made, strict=True):
            model.pilots.append(_light(measure(noisy, clean, camera, good)))
        truth = np.maximum(2 * truth - np.mean(made, axis=0), camera.offset).astype(np.float32)
        sums = [np.zeros(0, np.float32)] * 2
        for number in range(replicates):
            noisy = camera.draw(truth, chance)
            clean = denoise(noisy[None])[0]
            pairs.append((coarse(clean), coarse(noisy)))
            errors.append(float(np.square(clean - truth).mean(where=good)))
            for at, (population, result) in enumerate(((model, clean), (perfect, truth))):
                found = measure(noisy, result, camera, good)
                population.panels.append(_light(found))
                if not length:
                    continue
                sums[at] = share(found.fields) + (sums[at] if number % length else 0)
                if number % length == length - 1:
                    population.runs.append(
                        np.array([one.contrast for one in spots_of(sums[at] / root)])
                    )
    error = float(np.mean(errors))
    return Bootstrap(model, perfect, len(bases), replicates, length, line(pairs), error, seed)


def _light(found: Measured) -> Measured:
    return replace(found, fields=found.fields[:0])
