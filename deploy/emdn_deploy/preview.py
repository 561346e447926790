"""A picture of one frame before and after, their difference, and the power spectra of the three."""

from os import PathLike
from pathlib import Path
from typing import Any

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
    kind: str = "png",
) -> None:
    """Write a picture: before and after, each in its own contrast, and their difference.

    Below are the power spectra of the three at the same limits, cut to the frequencies that hold
    signal.

    Parameters
    ----------
    before, after
        (H, W), same units.
    scale
        Of the stack; the difference is drawn in units of the expected noise.
    axis
        Calibration along x; a scale bar is drawn where it has a step.
    kind
        Of file, as Matplotlib names it.

    Raises
    ------
    OutputError
        If the picture cannot be written.
    """
    noise = np.sqrt(np.maximum((after - scale.offset) / scale.gain, 1)) * abs(scale.gain)
    residual = (before - after) / noise
    figure = Figure(figsize=(12, 8.4), layout="constrained")
    grid = figure.subplots(2, 3)
    figure.suptitle(title, fontsize=11)
    pictures = [
        (before, "before, {:.4g} to {:.4g}", *contrast(before)),
        (after, "after, {:.4g} to {:.4g}", *contrast(after)),
        (residual, "(before - after) / expected noise, {} to {}", -4, 4),
    ]
    for panel, (frame, name, bottom, top) in zip(grid[0], pictures, strict=True):
        panel.imshow(frame, cmap="gray", vmin=bottom, vmax=top, interpolation="nearest")
        panel.set_title(name.format(bottom, top), fontsize=10)
        scale_bar(panel, frame.shape[1], axis)
    spectra = [log_power(frame) for frame in (before, after, before - after)]
    shown = signal_reach(spectra[1], float(np.median(spectra[0])))
    spectra = [_middle(spectrum, shown) for spectrum in spectra]
    bottom, top = np.quantile(spectra[0], (0.01, 0.9999))
    reach = f"to {0.5 * shown:.2g} / pixel"
    if axis.step and axis.step > 0 and axis.units:
        step, units = readable(axis.step, axis.units, before.shape[1])
        reach = f"to {0.5 * shown / step:.3g} / {units}"
    names = (f"power before, {reach}", "power after, same limits", "power of the difference")
    for panel, spectrum, name in zip(grid[1], spectra, names, strict=True):
        panel.imshow(spectrum, cmap="magma", vmin=bottom, vmax=max(top, bottom + 1e-6))
        panel.set_title(name, fontsize=10)
    for panel in grid.ravel():
        panel.set_axis_off()
    try:
        figure.savefig(path, dpi=100, format=kind)
    except OSError as error:
        raise OutputError(f"{Path(path)}: cannot be written ({error.strerror})") from error


def contrast(frame: NDArray[Any]) -> tuple[float, float]:
    """Return the limits to show a frame at, all but the outermost 0.5 % of its pixels each way."""
    low, high = np.quantile(frame, (0.005, 0.995))
    return float(low), float(max(high, low + np.finfo(np.float32).tiny))


def signal_reach(spectrum: NDArray[np.float64], floor: float) -> float:
    """Return up to which share of the Nyquist frequency a spectrum holds signal, 0.25 at least.

    Parameters
    ----------
    spectrum
        `log_power` of the denoised frame.
    floor
        Typical log power of the noise; what is ten times above it is signal.
    """
    rows, columns = (
        np.abs(np.arange(size) - size // 2) / max(1, size / 2) for size in spectrum.shape
    )
    reach = np.maximum(rows[:, None], columns[None, :])[spectrum > floor + 1]
    return float(np.clip(1.25 * reach.max(initial=0.0), 0.25, 1.0))


def _middle(spectrum: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Cut the lowest frequencies out of a spectrum."""
    cut = []
    for size in spectrum.shape:
        half = max(1, round(share * size / 2))
        cut.append(slice(max(0, size // 2 - half), size // 2 + half + 1))
    return spectrum[tuple(cut)]


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
    step, units = readable(axis.step, axis.units, width)
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


def readable(step: float, units: str, width: int) -> tuple[float, str]:
    """Turn metres into a unit that makes the bar a small number."""
    if units != "m":
        return step, units
    for factor, name in ((1e12, "pm"), (1e9, "nm"), (1e6, "µm"), (1e3, "mm")):
        if bar_length(width * step * factor) < 500:
            return step * factor, name
    return step, units
