"""The standard deviation of a denoised pixel, from the spread over the eight orientations.

The spread alone is too small, because the eight share most of their error. It is therefore
calibrated on simulated frames (``emdn-train calibrate``)::

    sigma^2 = spread * <s^2> + noise * v

with s^2 the variance over the orientations, averaged over 9 x 9 pixels (eight answers that
depend on each other tell little of one pixel alone), and v the variance of the counting noise
that is expected in the noisy pixel, gain * (denoised - offset). The two numbers belong to the
weights of a model and stand in the ``index.json`` beside its file.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.ensemble import ORIENTATIONS
from emdn_deploy.intensity import Intensity
from emdn_deploy.model import ModelInfo
from emdn_models import pretrained
from emdn_models.errors import ModelError

Stack = NDArray[np.float32]

WINDOW = 9
# Share of the mean: denoised pixels may come out below the offset, noise may not.
LEAST_LEVEL = 0.05


@dataclass(frozen=True)
class Calibration:
    """How the error of a model depends on spread and noise (see the module's head).

    Attributes
    ----------
    model
        For which it was measured.
    spread, noise
        Factors of the two variances.
    """

    model: str
    spread: float
    noise: float

    def sigma(self, terms: tuple[Stack, Stack]) -> Stack:
        """Turn the two variances that `terms` gives into a standard deviation, (n, H, W)."""
        spread, noise = terms
        root: Stack = np.sqrt(np.float32(self.spread) * spread + np.float32(self.noise) * noise)
        return root


def terms(mean: Stack, variance: Stack, scale: Intensity) -> tuple[Stack, Stack]:
    """Return the smoothed spread and the expected noise, both variances in squared units.

    Parameters
    ----------
    mean, variance
        (n, H, W), from `emdn_deploy.ensemble.apply`.
    """
    level = (mean - np.float32(scale.offset)) / np.float32(scale.gain * scale.scale)
    # Through scale.sigma, which is 0 where a stack shows no noise at all.
    noise = np.float32(scale.sigma**2) * np.maximum(level, np.float32(LEAST_LEVEL))
    return smooth(variance), noise


def smooth(frames: Stack, width: int = WINDOW) -> Stack:
    """Average (n, H, W) over squares of ``width`` pixels, at the edges over what there is."""
    smoothed = np.empty_like(frames)
    for frame, into in zip(frames, smoothed, strict=True):
        into[...] = _running(_running(frame, width).T, width).T
    return smoothed


def estimate(
    mean: Stack, variance: Stack, scale: Intensity, calibration: Calibration | None
) -> Stack:
    """Return sigma, (n, H, W): without a calibration the raw spread."""
    if calibration is None:
        return np.sqrt(variance)
    return calibration.sigma(terms(mean, variance, scale))


def note(info: ModelInfo, calibration: Calibration | None) -> str:
    """Say what a sigma is, for people."""
    if calibration is not None:
        return f"{ORIENTATIONS} orientations, calibrated for {calibration.model}"
    return (
        f"{ORIENTATIONS} orientations, uncalibrated for {info.name}: "
        "the raw spread, smaller than the error"
    )


def calibration_of(info: ModelInfo) -> Calibration | None:
    """Look a model's weights up in the index beside its file, then in the shipped one.

    Raises
    ------
    ModelError
        If the entry of these very weights is damaged.
    """
    beside = info.path.parent / "index.json"
    try:
        indices = [json.loads(beside.read_text(encoding="utf-8"))] if beside.is_file() else []
    except (RecursionError, ValueError):
        indices = []  # somebody else's file, of no concern here
    for index in (*indices, pretrained.index()):
        entry = _entry(index, info)
        if entry is not None:
            try:
                found = Calibration(info.name, float(entry["spread"]), float(entry["noise"]))
            except (KeyError, TypeError, ValueError) as error:
                raise ModelError(
                    f"{beside}: the calibration of {info.name} is damaged ({error!r}); "
                    "repeat emdn-train calibrate"
                ) from error
            if not min(found.spread, found.noise) >= 0:
                raise ModelError(
                    f"{beside}: the calibration of {info.name} has factors {found.spread:g} and "
                    f"{found.noise:g}, expected 0 or more; repeat emdn-train calibrate"
                )
            return found
    return None


def _entry(index: Any, info: ModelInfo) -> Mapping[str, Any] | None:
    """Return the calibration of these weights, None where the index has none."""
    models = index.get("models") if isinstance(index, dict) else None
    entry = models.get(info.name) if isinstance(models, dict) else None
    sigma = entry.get("sigma") if isinstance(entry, dict) else None
    if not isinstance(sigma, dict) or not info.text.get("weights_sha256"):
        return None
    return sigma if sigma.get("weights_sha256") == info.text["weights_sha256"] else None


def _running(frame: NDArray[Any], width: int) -> NDArray[np.float64]:
    """Average along the last axis over ``width`` pixels, fewer at both ends."""
    length = frame.shape[-1]
    sums = np.zeros((frame.shape[0], length + 1))
    np.cumsum(frame, axis=-1, out=sums[:, 1:])
    place = np.arange(length)
    start, stop = np.maximum(place - width // 2, 0), np.minimum(place + width // 2 + 1, length)
    averages: NDArray[np.float64] = np.maximum(sums[:, stop] - sums[:, start], 0) / (stop - start)
    return averages
