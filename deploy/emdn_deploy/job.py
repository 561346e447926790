"""Denoise one file into another: the whole of ``emdn-deploy denoise``."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import intensity, pipeline, writers
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.intensity import Intensity
from emdn_deploy.options import DenoiseOptions
from emdn_deploy.output import Output, check_target
from emdn_deploy.readers import Choice, Frames, open_frames
from emdn_deploy.writers import Provenance
from emdn_models import __version__
from emdn_models.errors import EmdnError, FormatError

# A mean that moves by more than this is worth a warning.
RATIO_TOLERANCE = 0.01

Progress = Callable[[int, int], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes
    ----------
    seconds
        From the first frame read to the last written.
    ratio
        mean(output) / mean(input), both above the offset.
    """

    source: Path
    output: Path
    dataset: str
    frames: int
    seconds: float
    model: str
    device: str
    intensity: Intensity
    ratio: float

    @property
    def frames_per_s(self) -> float:
        """Return the rate from file to file."""
        return self.frames / max(self.seconds, 1e-9)


def run(
    source: Path, options: DenoiseOptions, progress: Progress = lambda done, count: None
) -> Report:
    """Denoise a file of frames.

    Raises
    ------
    EmdnError
        One of its kinds, naming the file and the remedy.
    """
    target = options.output or default_target(source)
    with open_frames(source, Choice(options.dataset, options.axes)) as frames:
        check_target(target, source, overwrite=options.overwrite)
        module = writers.module_for(target)
        denoiser = Denoiser(options.model, options.device, options.threads)
        scale = measure(frames, options)
        if not scale.sigma:
            _log.warning("warning: %s: %s", source, scale.note)
        batch = options.batch or denoiser.batch_for(frames.shape[1:])
        facts = provenance(frames, options, denoiser, scale, batch)
        with Output(
            target, lambda partial: writers.lay_out(module, partial, frames, facts)
        ) as output:
            began = time.perf_counter()
            ratio, pair = _stream(frames, denoiser, scale, output, batch, progress)
            seconds = time.perf_counter() - began
            output.complete({"intensity_ratio": ratio})
        if options.preview is not None:
            from emdn_deploy import preview  # matplotlib takes half a second to import

            title = f"{source.name}, frame {frames.shape[0] // 2}"
            preview.draw(options.preview, pair[0], pair[1], scale, frames.axis("x"), title)
    if abs(ratio - 1) > RATIO_TOLERANCE:
        _log.warning(
            "warning: the mean intensity changed by %.1f %%; do not use these frames for "
            "quantitative work before you know why",
            100 * (ratio - 1),
        )
    name = denoiser.session.info.name
    return Report(
        source, target, frames.dataset, frames.shape[0], seconds, name,
        denoiser.session.device, scale, ratio,
    )  # fmt: skip


def default_target(source: Path) -> Path:
    """Return ``<stem>_denoised<suffix>`` beside the input."""
    suffix = source.suffix if source.suffix.lower() in writers.WRITERS["mirror"] else ".h5"
    return source.with_name(f"{source.stem}_denoised{suffix}")


def measure(frames: Frames, options: DenoiseOptions) -> Intensity:
    """Find the affine scale of an open stack."""
    count, height, width = frames.shape
    try:
        return intensity.estimate(frames.read, count, (height, width), options.gain, options.offset)
    except FormatError:
        raise
    except EmdnError as error:
        raise FormatError(f"{frames.path}: {error}") from error


def provenance(
    frames: Frames, options: DenoiseOptions, denoiser: Denoiser, scale: Intensity, batch: int
) -> Provenance:
    """Say how the output comes about."""
    info = denoiser.session.info
    return {
        "program": "emdn-deploy",
        "version": __version__,
        "model": info.name,
        "preset": info.preset,
        "model_sha256": info.sha256,
        "weights_sha256": info.text.get("weights_sha256", ""),
        "device": denoiser.session.device,
        "threads": denoiser.session.threads,
        "batch": batch,
        "input": str(frames.path),
        "input_dataset": frames.dataset,
        "input_axes": frames.order,
        "input_dtype": str(frames.dtype),
        "scale_e_per_px": scale.scale,
        "gain": scale.gain,
        "offset": scale.offset,
        "intensity": scale.note,
        "intensity_ratio": float("nan"),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _stream(
    frames: Frames,
    denoiser: Denoiser,
    scale: Intensity,
    output: Output,
    batch: int,
    progress: Progress,
) -> tuple[float, list[NDArray[np.float32]]]:
    """Pass all frames through.

    Returns
    -------
    ratio
        mean(output) / mean(input), both above the offset.
    pair
        The middle frame (H, W) before and after.
    """
    count, height, width = frames.shape
    sums = np.zeros(2)
    pair: list[NDArray[np.float32]] = []

    def read(start: int, stop: int) -> NDArray[np.float32]:
        block = frames.read(start, stop)
        finite = np.isfinite(block).all(axis=(1, 2))
        if not finite.all():
            bad = start + int(np.flatnonzero(~finite)[0])
            raise FormatError(
                f"{frames.path}: frame {bad} has pixels that are not finite (NaN or infinity); "
                "replace them before denoising"
            )
        return block

    def write(start: int, before: NDArray[np.float32], after: NDArray[np.float32]) -> None:
        output.write(start, after)
        sums[:] += before.sum(dtype=np.float64), after.sum(dtype=np.float64)
        if start <= count // 2 < start + len(after):
            pair.extend(stack[count // 2 - start].copy() for stack in (before, after))
        progress(start + len(after), count)

    def compute(block: NDArray[np.float32]) -> NDArray[np.float32]:
        return denoiser.run(block, scale)

    pipeline.stream(read, compute, write, pipeline.blocks(0, count, batch))
    # Above the offset, the ratio keeps its meaning where the mean is near or below zero.
    dark, bright = sums / (count * height * width) - scale.offset
    return float(bright / dark) if dark else 1.0, pair
