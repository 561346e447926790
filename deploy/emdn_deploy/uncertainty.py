"""The standard deviation of a denoised pixel, from the eight orientations of a frame.

A net knows no up and down, so that its answer for a turned frame, turned back, is as good
as its answer for the frame. The mean of the eight is better than any of them (self-ensemble,
Timofte, Rothe, Van Gool, CVPR 2016, section 3), and their spread says where the net is unsure.

The spread alone is too small, because the eight share most of their error. It is therefore
calibrated on simulated frames (``emdn-train calibrate``)::

    sigma^2 = spread * <s^2> + noise * v

with s^2 the variance over the orientations, averaged over 9 x 9 pixels (eight answers that
depend on each other tell little of one pixel alone), and v the variance of the counting noise
that is expected in the noisy pixel, gain * (denoised - offset). The two numbers belong to the
weights of a model and stand in the ``index.json`` beside its file.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.dose import Intensity
from emdn_deploy.session import ModelInfo
from emdn_models import pretrained

Stack = NDArray[np.float32]

ORIENTATIONS = 8
WINDOW = 9
# Share of the mean: denoised pixels may come out below the offset, noise may not.
_LEAST_LEVEL = 0.05


class Calibration(NamedTuple):
    """How a model's error depends on spread and noise: the factors of both variances."""

    spread: float
    noise: float


def ensemble(run: Callable[[Stack], Stack], frames: Stack) -> tuple[Stack, Stack]:
    """Denoise in all eight orientations, one at a time.

    ``run`` denoises (n, H, W), and (n, W, H); ``frames``: (n, H, W), or (n, F, H, W), each with its
    neighbours. Returns (n, H, W) each: the mean over the orientations and their variance, with 7
    degrees of freedom.
    """
    first = run(frames)
    total, squares = np.zeros_like(first), np.zeros_like(first)
    for orientation in range(1, ORIENTATIONS):
        down, right = (slice(None, None, -1 if orientation & bit else 1) for bit in (1, 2))
        # From 4 on height and width change places, before the flip and after it is undone.
        axes = (-1, -2) if orientation >= 4 else (-1, -1)
        turned = np.ascontiguousarray(frames.swapaxes(*axes)[..., down, right])
        # About the first estimate float32 loses nothing, however large the intensities.
        difference = run(turned)[..., down, right].swapaxes(*axes) - first
        total += difference
        squares += difference * difference
    total /= ORIENTATIONS
    squares -= ORIENTATIONS * total * total
    squares /= ORIENTATIONS - 1
    return first + total, np.maximum(squares, 0)


def variances(mean: Stack, variance: Stack, scale: Intensity) -> tuple[Stack, Stack]:
    """Return the smoothed spread and the expected noise, of (n, H, W) from `ensemble`."""
    level = (mean - np.float32(scale.offset)) / np.float32(scale.gain * scale.scale)
    # Through scale.sigma, which is 0 where a stack shows no noise at all.
    noise = np.float32(scale.sigma**2) * np.maximum(level, np.float32(_LEAST_LEVEL))
    return np.stack([_mean(_mean(one).T).T for one in variance], dtype=np.float32), noise


def _mean(frame: NDArray[np.floating]) -> NDArray[np.float64]:
    """Average (H, W) along x over `WINDOW` pixels, at the edges over what there is."""
    sums = np.pad(np.cumsum(frame, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
    place = np.arange(frame.shape[1])
    start = np.maximum(place - WINDOW // 2, 0)
    stop = np.minimum(place + WINDOW // 2 + 1, place.size)
    return np.asarray(np.maximum(sums[:, stop] - sums[:, start], 0) / (stop - start))


def estimate(
    mean: Stack, variance: Stack, scale: Intensity, calibration: Calibration | None
) -> Stack:
    """Return sigma, (n, H, W): without a calibration the raw spread."""
    if calibration is None:
        return np.sqrt(variance)
    spread, noise = variances(mean, variance, scale)
    total = np.float32(calibration.spread) * spread + np.float32(calibration.noise) * noise
    return np.asarray(np.sqrt(total))


def note(info: ModelInfo, calibration: Calibration | None) -> str:
    """Say what a sigma is, for people."""
    if calibration is not None:
        return f"{ORIENTATIONS} orientations, calibrated for {info.name}"
    return (
        f"{ORIENTATIONS} orientations, uncalibrated for {info.name}: "
        "the raw spread, smaller than the error"
    )


def calibration_of(info: ModelInfo) -> Calibration | None:
    """Look a model's weights up in the index beside its file, then in the shipped one."""
    try:
        own = json.loads((info.path.parent / "index.json").read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError):
        own = None  # none, or somebody else's file
    for index in (own, pretrained.index()):
        try:
            entry = index["models"][info.name]["sigma"]
            if entry["weights_sha256"] == info.text["weights_sha256"]:
                return Calibration(float(entry["spread"]), float(entry["noise"]))
        except (KeyError, TypeError, ValueError):
            continue
    return None
