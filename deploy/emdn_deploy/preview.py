"""A picture of one frame before and after, all at the same display limits."""

from os import PathLike
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from emdn_deploy.intensity import Intensity
from emdn_deploy.readers.frames import Axis
from emdn_models.errors import OutputError

Frame = NDArray[np.float32]


def draw(
    path: str | PathLike[str],
    before: Frame,
    after: Frame,
    scale: Intensity,
    axis: Axis,
    title: str = "",
) -> None:
    """Write a PNG: before, after, their difference, and the three power spectra.

    Parameters
    ----------
    before, after
        (H, W), same units.
    scale
        Of the stack; the difference is drawn in units of the expected noise.
    axis
        Calibration along x; a scale bar is drawn where it has a step.

    Raises
    ------
    OutputError
        If the picture cannot be written.
    """
    low, high = np.quantile(before, (0.005, 0.995))
    high = max(high, low + np.finfo(np.float32).tiny)
    noise = np.sqrt(np.maximum((after - scale.offset) / scale.gain, 1)) * abs(scale.gain)
    residual = (before - after) / noise
    figure = Figure(figsize=(12, 8.4), layout="constrained")
    grid = figure.subplots(2, 3)
    figure.suptitle(title, fontsize=11)
    pictures = [(before, "before", low, high), (after, "after", low, high), (residual, "", -4, 4)]
    for panel, (frame, name, bottom, top) in zip(grid[0], pictures, strict=True):
        panel.imshow(frame, cmap="gray", vmin=bottom, vmax=top, interpolation="nearest")
        panel.set_title(name or "difference / expected noise, -4 to 4", fontsize=10)
        scale_bar(panel, frame.shape[1], axis)
    spectra = [log_power(frame) for frame in (before, after, before - after)]
    bottom, top = np.quantile(spectra[0], (0.01, 0.9999))
    names = ("power before", "power after, same limits", "power of the difference")
    for panel, spectrum, name in zip(grid[1], spectra, names, strict=True):
        panel.imshow(spectrum, cmap="magma", vmin=bottom, vmax=max(top, bottom + 1e-6))
        panel.set_title(name, fontsize=10)
    for panel in grid.ravel():
        panel.set_axis_off()
    try:
        figure.savefig(path, dpi=100)
    except OSError as error:
        raise OutputError(f"{Path(path)}: cannot be written ({error.strerror})") from error


def log_power(frame: Frame) -> NDArray[np.float64]:
    """Return log10 of the power spectrum of (H, W), zero frequency in the middle."""
    window = np.outer(np.hanning(frame.shape[0]), np.hanning(frame.shape[1]))
    if not window.any():
        window = np.ones(frame.shape)
    power = np.abs(np.fft.fftshift(np.fft.fft2((frame - frame.mean()) * window))) ** 2
    return np.asarray(np.log10(power + 1e-12), dtype=np.float64)


def bar_length(extent: float) -> float:
    """Choose 1, 2 or 5 times a power of ten, at most 30 % of ``extent``."""
    power = 10.0 ** np.floor(np.log10(0.3 * extent))
    return float(max(step * power for step in (1, 2, 5) if step * power <= 0.3 * extent))


def scale_bar(panel: Axes, width: int, axis: Axis) -> None:
    """Draw a bar on a picture ``width`` pixels wide, if its axis is calibrated."""
    if not axis.step or axis.step <= 0 or not axis.units:
        return
    step, units = _readable(axis.step, axis.units, width)
    length = bar_length(width * step)
    pixels = length / step
    height = panel.get_ylim()[0]
    left, top = 0.05 * width, 0.93 * height
    panel.add_patch(Rectangle((left, top), pixels, 0.012 * height, color="white", ec="black"))
    panel.text(
        left + pixels / 2, top - 0.015 * height, f"{length:g} {units}", color="white",
        ha="center", va="bottom", fontsize=9,
        bbox={"facecolor": "black", "alpha": 0.5, "pad": 1, "edgecolor": "none"},
    )  # fmt: skip


def _readable(step: float, units: str, width: int) -> tuple[float, str]:
    """Turn metres into a unit that makes the bar a small number."""
    if units != "m":
        return step, units
    for factor, name in ((1e12, "pm"), (1e9, "nm"), (1e6, "µm"), (1e3, "mm")):
        if bar_length(width * step * factor) < 500:
            return step * factor, name
    return step, units
