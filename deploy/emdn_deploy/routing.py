"""Which copy of a model fits the frames of a file, and whether the one that was asked for does.

``MODEL@auto`` takes the copy for the frames' class (`emdn_models.classes`): the imaging mode is
what the file says, the dose what is measured. A copy is worse than its model on frames of
another class, so where anything is unknown the model itself is taken.
"""

from collections.abc import Container
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from emdn_deploy.denoiser import Denoiser
from emdn_deploy.intensity import Intensity
from emdn_deploy.model_info import resolve, stored
from emdn_deploy.options import DenoiseOptions, Device, Precision
from emdn_deploy.readers import Frames
from emdn_deploy.readers.mode import mode_of
from emdn_models import classes, pretrained
from emdn_models.classes import Mode


@dataclass(frozen=True)
class Route:
    """The model that a stack is denoised with.

    Attributes
    ----------
    denoiser
        The model, open.
    reason
        Why it was taken, where there was something to choose; else empty.
    warning
        What speaks against a copy that was asked for; else empty.
    """

    denoiser: Denoiser
    reason: str = ""
    warning: str = ""


def route(denoiser: Denoiser, options: DenoiseOptions, frames: Frames, scale: Intensity) -> Route:
    """Choose the copy for a stack, if ``options`` leave it open, or compare the one chosen.

    Parameters
    ----------
    denoiser
        What ``options.model`` opens: for ``MODEL@auto`` the model itself.
    scale
        Of the stack; its mean electrons per pixel are the dose.
    """
    mode = mode_of(frames.metadata)
    electrons = scale.scale if scale.sigma else None
    model = classes.automatic(options.model)
    if model is None:
        return Route(denoiser, warning=contradiction(denoiser.session.info.name, mode, electrons))
    shipped = pretrained.index()["models"]
    variant = stored(options.precision)
    there = [name for name in shipped if variant in pretrained.precisions(name)]
    name, why = choose(model, mode, electrons, there, variant)
    if name != denoiser.session.info.name:
        path = resolve(name, options.precision)
        denoiser = _opened(path, options.device, options.threads, options.precision)
    return Route(denoiser, f"{options.model}: {why}")


def choose(
    model: str,
    mode: Mode | None,
    electrons: float | None,
    there: Container[str],
    precision: Precision = "fp32",
) -> tuple[str, str]:
    """Name the copy for frames, or the model itself, and say why.

    Parameters
    ----------
    mode, electrons
        As `emdn_models.classes.class_of`.
    there
        Names of the copies that can be had in this precision.
    """
    if mode is None:
        return model, f"{_dose(electrons)}; the file does not say STEM or TEM, so {model} itself"
    found = f"the file says {mode.upper()}, {_dose(electrons)}"
    kind = classes.class_of(mode, electrons)
    if kind is None:
        return model, f"{found}, so {model} itself"
    name = classes.copy_of(model, kind)
    if name not in there:
        also = "" if precision == "fp32" else f" in {precision}"
        return model, f"{found}; there is no {name}{also}, so {model} itself"
    return name, found


def contradiction(name: str, mode: Mode | None, electrons: float | None) -> str:
    """Say how a copy's class contradicts what is known of the frames; empty if it does not."""
    if not classes.known(name):
        return ""
    model, kind = classes.split(name)
    if kind is None:
        return ""
    against = []
    if mode is not None and mode != kind.mode:
        against.append(f"the file says {mode.upper()}")
    if electrons is not None and not kind.holds(electrons):
        against.append(_dose(electrons))
    if not against:
        return ""
    return (
        f"{name} is for {kind.words}, but {' and '.join(against)}; "
        f"the wrong copy does harm: use {model}@{classes.AUTO} or {model}"
    )


def _dose(electrons: float | None) -> str:
    return "no dose could be measured" if electrons is None else f"{electrons:.3g} e/px measured"


@lru_cache(maxsize=len(classes.CLASSES))
def _opened(path: Path, device: Device, threads: int | None, precision: Precision) -> Denoiser:
    """Open a copy once for all inputs of a run that are of its class."""
    return Denoiser(path, device, threads, precision)
