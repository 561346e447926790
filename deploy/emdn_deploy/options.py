"""The flags of ``emdn-deploy denoise``; their defaults are defined here only."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class DenoiseOptions:
    """What to do with an input.

    Attributes
    ----------
    output
        None for ``<stem>_denoised`` beside the input.
    model
        A shipped name, the path of an ``.onnx`` file, or None for the default.
    batch
        Frames per run; None chooses.
    threads
        CPU threads; None takes those that the affinity mask allows.
    dataset, axes
        Which frames (see `emdn_deploy.readers.frames.Choice`).
    gain
        Intensity units per electron; None to estimate.
    offset
        Intensity without electrons; None to estimate.
    preview
        PNG of one frame before and after; None for none.
    """

    output: Path | None = None
    model: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch: int | None = None
    threads: int | None = None
    dataset: str | None = None
    axes: str | None = None
    gain: float | None = None
    offset: float | None = None
    preview: Path | None = None
    overwrite: bool = False
