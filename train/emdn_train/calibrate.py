"""Calibrate the standard deviations that ``emdn-deploy denoise --sigma`` gives.

Frames as training draws them, of specimens that neither training nor the fixed test split has,
are denoised the way that a user's are. Two factors are then fitted to the errors (see
`emdn_deploy.uncertainty`) by maximum likelihood for errors that are Gaussian with the predicted
variance: the squared errors, divided by it, average to 1.
"""

import logging
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from emdn_deploy import Denoiser, dose
from emdn_deploy.bad_pixels import plan
from emdn_deploy.dose import Intensity, NoiseLevel, sample
from emdn_deploy.uncertainty import ensemble, variances
from emdn_models.pretrained import add_facts, entries_of
from emdn_train.simulate.dataset import one_thread
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


def recordings(count: int = FRAMES, size: int = SIZE) -> Iterator[Recorded]:
    """Simulate frames to calibrate on: all kinds of specimens, at all doses of training."""
    for number in range(count):
        rng = np.random.default_rng([1, _SEED, number])
        scene = make_scene("mixed", size, _PIXEL_SIZE_NM, rng)
        shot = next(shots(scene, 1, rng))
        level = float(np.exp(rng.uniform(*np.log(SNR))))
        electrons = max((level / shot.contrast) ** 2, LEAST_ELECTRONS)
        detector = "counting" if number % CCD_EVERY else "ccd"
        exposure = expose_shot(scene, shot, electrons, detector, rng)
        yield mended(exposure.noisy, exposure.clean)


def mended(noisy: Frame, clean: Frame) -> Recorded:
    """Fill faulty pixels, known from the truth, and say which they are."""
    # Eight standard deviations, and five electrons where there are few.
    faulty = np.abs(noisy - clean) > 8 * np.sqrt(clean) + 5
    stack = noisy[None].copy()
    plan(faulty).apply(stack)
    return Recorded(stack[0], clean, ~faulty)


def coverage(denoised: Frame, sigma: Frame, clean: Frame, valid: Mask) -> tuple[float, float]:
    """Return the shares of pixels whose error is within one and within two sigma.

    Gaussian errors of exactly these standard deviations have 0.683 and 0.954. All are
    (..., H, W), in the same units; ``valid`` are the pixels that count.
    """
    error, known = np.abs(denoised - clean)[valid], sigma[valid]
    return float((error <= known).mean()), float((error <= 2 * known).mean())


def denoise(
    denoiser: Denoiser, noisy: Frame, clean: Frame, *, with_sigma: bool = False
) -> tuple[Frame, Frame | None]:
    """Denoise a frame (H, W) alone, as a deployment does, at a scale that is measured.

    A model that sees several frames gets it between others of the same scene, which rests,
    recorded by a counting camera. Returns the frame, and its sigma if asked for.
    """
    seen = denoiser.session.info.frames
    if seen == 1:
        return denoiser.denoise_with_sigma(noisy) if with_sigma else (denoiser.denoise(noisy), None)
    stack, half = resting_movie(noisy, clean, seen), seen // 2
    made = denoiser.answer(stack, scale_of(stack), around=(half, half), with_sigma=with_sigma)
    return made.frames[0], None if made.sigma is None else made.sigma[0]


def resting_movie(noisy: Frame, clean: Frame, count: int) -> Frame:
    """Record a scene again around a frame of it: (count, H, W), the frame in the middle."""
    rng = np.random.default_rng(zlib.crc32(noisy.tobytes()))
    stack = rng.poisson(clean, (count, *clean.shape)).astype(np.float32)
    stack[count // 2] = noisy
    return stack


def scale_of(stack: Frame) -> Intensity:
    """Measure scale, offset and gain of frames (n, H, W) as a deployment does."""
    runs = sample(lambda start, stop: stack[start:stop], len(stack), stack.shape[1:])
    return dose.estimate(NoiseLevel(runs))


def fit(errors: Frame, spread: Frame, noise: Frame) -> tuple[float, float]:
    """Fit squared errors by spread and noise, (n,) squares each, with factors not negative.

    The factors minimise the mean of log(v) + errors / v, the negative logarithm of a Gaussian
    likelihood with v the sum.
    """

    def loss(logarithms: NDArray[np.float64]) -> float:
        factors = np.exp(logarithms)
        total = factors[0] * spread + factors[1] * noise
        return float(np.mean(np.log(total) + errors / total, dtype=np.float64))

    start = [np.log(errors.mean() / term.mean() / 2) for term in (spread, noise)]
    limits = [(float(one) - 12, float(one) + 12) for one in start]
    # Two parameters and a smooth valley: the simplex needs no derivative and about 80 steps.
    found = optimize.minimize(loss, start, method="Nelder-Mead", bounds=limits)
    first, second = (float(f"{factor:.4g}") for factor in np.exp(found.x))
    return first, second


def calibrate_one(denoiser: Denoiser, frames: Iterable[Recorded]) -> dict[str, Any]:
    """Measure one model on frames with truth: the entry ``sigma`` of ``index.json``.

    That is the factors, the weights that they belong to, how many frames there were and which share
    of their pixels is within one and two sigma.
    """
    info, measured = denoiser.session.info, []
    for frame in frames:
        stack, half = resting_movie(frame.noisy, frame.clean, info.frames), info.frames // 2
        scale = scale_of(stack)

        def run(turned: Frame, scale: Intensity = scale, half: int = half) -> Frame:
            return denoiser.answer(turned[0], scale, around=(half, half)).frames

        denoised, variance = ensemble(run, stack[None])
        spread, noise = variances(denoised, variance, scale)
        chosen = np.zeros_like(frame.valid)
        chosen[::_STRIDE, ::_STRIDE] = frame.valid[::_STRIDE, ::_STRIDE]
        squares = np.square(denoised[0] - frame.clean), spread[0], noise[0]
        # In units of the noise at the mean, in which frames of all doses are alike.
        measured.append([one[chosen] / np.float32(scale.sigma**2) for one in squares])
    error, spread, noise = (np.concatenate(parts) for parts in zip(*measured, strict=True))
    factors = fit(error, spread, noise)
    sigma = np.sqrt(np.float32(factors[0]) * spread + np.float32(factors[1]) * noise)
    inside = coverage(np.sqrt(error), sigma, np.zeros_like(error), np.ones_like(error, bool))
    return {
        "spread": factors[0],
        "noise": factors[1],
        "frames": len(measured),
        "inside": [round(share, 4) for share in inside],
        "weights_sha256": info.text["weights_sha256"],
    }


@one_thread()
def calibrate(
    folder: Path, names: tuple[str, ...] | None = None, frames: int = FRAMES, size: int = SIZE
) -> dict[str, dict[str, Any]]:
    """Calibrate models of an exported ``folder``, all if None; write the factors."""
    models, drawn, found = entries_of(folder, names), [*recordings(frames, size)], {}
    for name, entry in models.items():
        denoiser = Denoiser(folder / entry["file"], threads=1)
        found[name] = calibrate_one(denoiser, drawn)
        add_facts(folder, name, denoiser.session.info.sha256, {"sigma": found[name]})
        log.info("%s calibrated", name)
    return found
