"""Calibrate the standard deviations that ``emdn-deploy denoise --sigma`` gives.

Frames as training draws them, of specimens that neither training nor the fixed test split has,
are denoised the way that a user's are. Two factors are then fitted to the errors (see
`emdn_deploy.uncertainty`) by maximum likelihood for errors that are Gaussian with the predicted
variance: the squared errors, divided by it, average to 1.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from emdn_deploy import Denoiser, intensity
from emdn_deploy.bad_pixels import plan
from emdn_deploy.intensity import Intensity
from emdn_deploy.noise_level import Sample
from emdn_deploy.uncertainty import Calibration, ensemble, variances
from emdn_train import index
from emdn_train.simulate.config import one_thread
from emdn_train.simulate.scene import LEAST_ELECTRONS, expose_shot, make_scene, shots

log = logging.getLogger(__name__)

FRAMES = 64
SIZE = 256
SNR = (0.05, 3.0)
# One unscanned frame in so many is a CCD's, whose noise is correlated.
CCD_EVERY = 6
_PIXEL_SIZE_NM = (0.008, 0.025)
# Second number of the seeds; data sets use 0 to 3, the fixed test split 7.
_SEED = 11
# Neighbours have errors alike: every third pixel of a row and of a column says as much.
_STRIDE = 3

Frame = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Recorded(NamedTuple):
    """One frame with its truth: (H, W) each, in electrons; ``valid`` where no pixel failed."""

    noisy: Frame
    clean: Frame
    valid: Mask


class Answer(NamedTuple):
    """What the eight orientations of a frame give, (H, W) each, in electrons and their square.

    ``spread`` and ``noise`` are what `emdn_deploy.uncertainty.variances` gives, ``variance`` is
    the first before smoothing.
    """

    denoised: Frame
    variance: Frame
    spread: Frame
    noise: Frame
    scale: Intensity


def recordings(count: int = FRAMES, size: int = SIZE, frame_class: str = "") -> Iterator[Recorded]:
    """Simulate frames to calibrate on: all kinds of specimens, at all doses of training.

    With a ``frame_class``, ``stem`` or ``tem``, all ``count`` are of this class.
    """
    found = 0
    for number in itertools.count():
        if found == count:
            return
        rng = np.random.default_rng([1, _SEED, number])
        scene = make_scene("mixed", size, _PIXEL_SIZE_NM, rng)
        if frame_class in ("stem", "tem") and (scene.mode == "stem") != (frame_class == "stem"):
            continue
        shot = next(shots(scene, 1, rng))
        level = float(np.exp(rng.uniform(*np.log(SNR))))
        electrons = max((level / shot.contrast) ** 2, LEAST_ELECTRONS)
        detector = "counting" if number % CCD_EVERY else "ccd"
        exposure = expose_shot(scene, shot, electrons, detector, rng)
        found += 1
        yield mended(exposure.noisy, exposure.clean)


def mended(noisy: Frame, clean: Frame) -> Recorded:
    """Fill faulty pixels, known from the truth, and say which they are."""
    # Eight standard deviations, and five electrons where there are few.
    faulty = np.abs(noisy - clean) > 8 * np.sqrt(clean) + 5
    stack = noisy[None].copy()
    plan(faulty).apply(stack)
    return Recorded(stack[0], clean, ~faulty)


def answer(denoiser: Denoiser, noisy: Frame) -> Answer:
    """Denoise a frame (H, W) in eight orientations, alone, at a scale that is measured."""
    stack = noisy[None]
    scale = intensity.estimate(Sample([stack], 1))
    mean, variance = ensemble(lambda turned: denoiser.run(turned, scale), stack)
    spread, noise = variances(mean, variance, scale)
    return Answer(mean[0], variance[0], spread[0], noise[0], scale)


def coverage(denoised: Frame, sigma: Frame, clean: Frame, valid: Mask) -> tuple[float, float]:
    """Return the shares of pixels whose error is within one and within two sigma.

    Gaussian errors of exactly these standard deviations have 0.683 and 0.954.

    Parameters
    ----------
    denoised, sigma, clean
        (..., H, W) in the same units.
    valid
        (..., H, W), the pixels that count.
    """
    error, known = np.abs(denoised - clean)[valid], sigma[valid]
    return float((error <= known).mean()), float((error <= 2 * known).mean())


def fit(errors: Frame, terms: tuple[Frame, ...]) -> tuple[float, ...]:
    """Fit squared errors by a sum of terms, each with a factor of its own, not negative.

    Parameters
    ----------
    errors
        (n,) squared errors.
    terms
        (n,) each; the last is positive everywhere.

    Returns
    -------
    One factor a term: those that minimise the mean of log(v) + errors / v, the negative
    logarithm of a Gaussian likelihood with v the sum.
    """

    def loss(logarithms: NDArray[np.float64]) -> float:
        factors = np.exp(logarithms)
        total = sum(factor * term for factor, term in zip(factors, terms, strict=True))
        return float(np.mean(np.log(total) + errors / total, dtype=np.float64))

    start = [np.log(errors.mean() / term.mean() / len(terms)) for term in terms]
    limits = [(float(one) - 12, float(one) + 12) for one in start]
    # Two parameters and a smooth valley: the simplex needs no derivative and about 80 steps.
    found = optimize.minimize(loss, start, method="Nelder-Mead", bounds=limits)
    return tuple(float(f"{factor:.4g}") for factor in np.exp(found.x))


def calibrate_one(denoiser: Denoiser, frames: Iterable[Recorded]) -> dict[str, Any]:
    """Measure one model on frames with truth.

    Returns
    -------
    The entry ``sigma`` of the index: the factors, the one factor of the simplest prediction
    (``noise_only``), the weights that all of it belongs to, how many frames there were and
    which share of their pixels is within one and two sigma.
    """
    errors, spreads, noises = [], [], []
    for frame in frames:
        made = answer(denoiser, frame.noisy)
        chosen = np.zeros_like(frame.valid)
        chosen[::_STRIDE, ::_STRIDE] = frame.valid[::_STRIDE, ::_STRIDE]
        # In units of the noise at the mean, in which frames of all doses are alike.
        unit = np.float32(made.scale.sigma**2)
        errors.append(np.square(made.denoised - frame.clean)[chosen] / unit)
        spreads.append(made.spread[chosen] / unit)
        noises.append(made.noise[chosen] / unit)
    error, spread, noise = (np.concatenate(parts) for parts in (errors, spreads, noises))
    factors = fit(error, (spread, noise))
    info = denoiser.session.info
    known = Calibration(info.name, *factors).sigma((spread, noise))
    inside = coverage(np.sqrt(error), known, np.zeros_like(error), np.ones_like(error, bool))
    return {
        "spread": factors[0],
        "noise": factors[1],
        "noise_only": fit(error, (noise,))[0],
        "frames": len(errors),
        "inside": [round(share, 4) for share in inside],
        "weights_sha256": info.text["weights_sha256"],
    }


@one_thread()
def calibrate(
    folder: str | PathLike[str],
    names: tuple[str, ...] | None = None,
    frames: int = FRAMES,
    size: int = SIZE,
) -> dict[str, dict[str, Any]]:
    """Calibrate exported models, ``MODEL@CLASS`` on frames of its class; write the factors.

    Parameters
    ----------
    folder
        What ``emdn-train export`` has written.
    names
        Models of the index; None for all.

    Raises
    ------
    ModelError
        If there is no index, or it lacks a model.
    """
    path = Path(folder) / index.NAME
    models = index.chosen(path, names)
    drawn: dict[str, list[Recorded]] = {}
    found = {}
    for name in models:
        kind = name.partition("@")[2]
        if kind not in drawn:
            drawn[kind] = list(recordings(frames, size, kind))
            log.info("%d frames simulated", len(drawn[kind]))
        denoiser = Denoiser(Path(folder) / models[name]["file"], threads=1)
        found[name] = calibrate_one(denoiser, drawn[kind])
        index.add(path, name, denoiser.session.info.sha256, {"sigma": found[name]})
        log.info("%s calibrated", name)
    return found
