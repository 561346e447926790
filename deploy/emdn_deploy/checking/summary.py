"""What is said of a stack as a whole: findings, and what cannot be told."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from emdn_deploy.checking.limits import student
from emdn_deploy.checking.result import Comparison, Correlations, HeldOutFacts
from emdn_deploy.model_info import ModelInfo
from emdn_deploy.noise_model import NoiseModel
from emdn_models.metrics import Linearity

_CLEAR = 5.0  # standard errors
_PAIRS = 8  # fewer do not tell the scatter of a correlation
_SLOPE = 0.05  # change of contrast at large scales that is not worth a finding
_TELLING = 0.2  # by which the slope of honest denoisings may be off 1
_ERROR = 1.5  # squared error, over that of honest denoisings, that is not worth one


def findings(
    error: HeldOutFacts | None,
    curves: Correlations | None,
    line: Linearity | None,
    honest: Linearity | None,
) -> tuple[str, ...]:
    """Say what is wrong with the stack beyond chance.

    Parameters
    ----------
    line, honest
        Local means out against those in, of the stack and of honest denoisings.
    """
    found = []
    if error and not error.moves and np.isfinite(error.error.se):
        least = error.error.value - _CLEAR * error.error.se
        if least > _ERROR * error.honest:
            found.append(
                f"the squared error against neighbouring frames, {error.error.value:.4g} ± "
                f"{error.error.se:.2g}, is above that of honest denoisings, {error.honest:.4g}"
            )
    if curves and curves.pairs >= _PAIRS:
        chance = np.hypot(curves.raw_se, curves.denoised_se)
        worse = curves.denoised < curves.raw - student(_CLEAR, curves.pairs - 1) * chance
        if worse.any():
            at = ", ".join(f"{one:.3f}" for one in curves.frequency[worse][:4])
            found.append(
                "denoised frames agree less with the neighbouring raw frame than raw ones do "
                f"(FRC) at {at} cycles/pixel"
            )
    if line and honest and tells(honest) and _differs(line, honest):
        found.append(
            f"local means come out {line.slope:.3f} ± {line.slope_error:.2g} times as far from "
            f"each other as they went in, those of honest denoisings {honest.slope:.3f} ± "
            f"{honest.slope_error:.2g}"
        )
    return tuple(found)


def compared(found: Comparison) -> str:
    """Say how the frames' error compares with that of the default model."""
    name = found.name
    if found.worse is None or found.error is None:
        if found.verdict == "same":
            return f"the frames are made by {name}, the default: nothing to compare with"
        return f"cannot be compared with {name}, the default: too few frames"
    worse, error = found.worse, found.error
    if not worse.value and not worse.se:
        return f"the frames are those that {name}, the default, makes"
    said = f"{abs(worse.value):.3g} ± {worse.se:.2g} {'above' if worse.value > 0 else 'below'}"
    said = f"squared error {said} that of {name} (the default) on {found.frames} frames"
    if found.verdict == "moves":
        return f"{said}, which cannot be told from motion"
    if found.verdict == "no worse":
        return f"{said}: no worse"
    decibel = 10 * np.log10(1 + worse.value / max(error.value, error.se, 1e-30))
    return f"{said}: {decibel:.2g} dB worse"


def tells(honest: Linearity | None) -> bool:
    """Say whether local means differ by structure, which honest denoisings keep, not by noise."""
    return honest is not None and abs(honest.slope - 1) < _TELLING


def _differs(line: Linearity, honest: Linearity) -> bool:
    """Say whether a slope is clearly beyond both 1 and that of honest denoisings."""
    chance = np.hypot(line.slope_error, honest.slope_error)
    low, high = min(1.0, honest.slope), max(1.0, honest.slope)
    return bool(max(low - line.slope, line.slope - high) > _SLOPE + _CLEAR * chance)


def notes(
    noise: NoiseModel,
    error: HeldOutFacts | None,
    run: int,
    facts: Mapping[str, Any],
    info: ModelInfo,
) -> tuple[str, ...]:
    """Say what was assumed and what cannot be said."""
    said = []
    if error is None:
        said.append(
            "one frame: no squared error, no FRC and no average over neighbours can be had, and "
            "the size of the noise is told from structure by assumption"
        )
    elif error.moves:
        said.append(
            "neighbouring frames differ by more than noise, as the specimen moves or they show "
            "different areas: squared error and FRC hold that, and runs of frames average over it"
        )
    elif not noise.moves:
        said.append(f"faint blobs are looked for in runs of {run} frames as well")
    if facts and facts["model_sha256"] != info.sha256:
        said.append(
            f"the frames were denoised by {facts['model']}, the thresholds are those of {info.name}"
        )
    if noise.correlated:
        said.append(
            "the noise is correlated from pixel to pixel: residuals cannot be judged, only means"
        )
    return (*said, *noise.not_identifiable)
