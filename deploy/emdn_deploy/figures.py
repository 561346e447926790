"""Pictures of a stack before and after: one frame with its spectra, and an animated GIF."""

from collections.abc import Callable
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from emdn_deploy.dose import Intensity
from emdn_deploy.readers.frames import Axis
from emdn_models.errors import OutputError

if TYPE_CHECKING:  # matplotlib takes half a second
    from matplotlib.axes import Axes

Frame = NDArray[np.float32]
Reader = Callable[[int, int], Frame]

# Of a movie: frames at most, pixels along a side of one, milliseconds a frame, and pixels of the
# line of text above and of the gap between.
MAX_FRAMES = 100
MIN_SIDE, MAX_SIDE = 256, 512
FRAME_MS = 80
STRIP, _GAP = 20, 4


def draw(
    path: str | PathLike[str] | BytesIO,
    before: NDArray[Any],
    after: NDArray[Any],
    scale: Intensity,
    axis: Axis,
    title: str = "",
    kind: str = "png",
) -> None:
    """Write a picture: (H, W) before and after, each in its own contrast, and their difference.

    That is in units of the noise which ``scale`` expects. Below are the power spectra of the three
    at the same limits. A scale bar is drawn where ``axis`` along x is calibrated; ``kind`` of file
    is named as Matplotlib does. Raises OutputError.
    """
    from matplotlib.figure import Figure

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
    bottom, top = np.quantile(spectra[0], (0.01, 0.9999))
    reach = "to 0.5 / pixel"
    if axis.step and axis.step > 0 and axis.units:
        step, units = readable(axis.step, axis.units, before.shape[1])
        reach = f"to {0.5 / step:.3g} / {units}"
    names = (f"power before, {reach}", "power after, same limits", "power of the difference")
    for panel, spectrum, name in zip(grid[1], spectra, names, strict=True):
        panel.imshow(spectrum, cmap="magma", vmin=bottom, vmax=max(top, bottom + 1e-6))
        panel.set_title(name, fontsize=10)
    for panel in grid.ravel():
        panel.set_axis_off()
    try:
        figure.savefig(path, dpi=100, format=kind)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error


def contrast(frame: NDArray[Any]) -> tuple[float, float]:
    """Return the limits to show a frame at, all but the outermost 0.5 % of its pixels each way."""
    low, high = np.quantile(frame, (0.005, 0.995))
    return float(low), float(max(high, low + np.finfo(np.float32).tiny))


def log_power(frame: NDArray[Any]) -> NDArray[np.float64]:
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


def scale_bar(panel: "Axes", width: int, axis: Axis) -> None:
    """Draw a bar on a picture ``width`` pixels wide, if its axis is calibrated."""
    if not axis.step or axis.step <= 0 or not axis.units:
        return
    from matplotlib.patches import Rectangle

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


def movie(
    path: Path,
    before: Reader,
    after: Reader,
    count: int,
    time: Axis | None = None,
    length: Axis | None = None,
) -> None:
    """Write an animated GIF of at most `MAX_FRAMES` frames, spread over the stack, side by side.

    ``read(start, stop)`` of both sides gives (k, H, W) in the same units; each is shown in the
    contrast of its middle frame. ``time`` and ``length`` calibrate the frames and their x axis,
    where known. Raises OutputError.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    numbers = np.unique(np.linspace(0, count - 1, min(count, MAX_FRAMES)).round().astype(int))
    middle = [read(count // 2, count // 2 + 1)[0] for read in (before, after)]
    size = np.array(middle[0].shape)
    height, width = np.ceil(size * np.clip(size.max(), MIN_SIDE, MAX_SIDE) / size.max()).astype(int)
    figure = Figure(figsize=((2 * width + _GAP) / 100, (height + STRIP) / 100), dpi=100)
    canvas: Any = FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    figure.subplots_adjust(0, 0, 1, height / (height + STRIP), _GAP / width)
    images = []
    for panel, frame in zip(panels, middle, strict=True):
        low, high = contrast(frame)
        images.append(panel.imshow(frame, cmap="gray", vmin=low, vmax=high, aspect="auto"))
        panel.set_axis_off()
    panels[1].set_title("after", fontsize=9, pad=3)
    if length is not None:
        scale_bar(panels[1], middle[0].shape[1], length)

    def picture(number: int) -> Image.Image:
        for image, read in zip(images, (before, after), strict=True):
            image.set_data(read(number, number + 1)[0])
        when = f"frame {number}"
        if time is not None and time.step and time.units:
            when = f"{number * time.step:.4g} {time.units}"
        panels[0].set_title(f"before, {when}", fontsize=9, pad=3)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., 0].copy())

    try:
        picture(int(numbers[0])).save(
            path, format="GIF", save_all=True, duration=FRAME_MS, loop=0,
            append_images=(picture(int(number)) for number in numbers[1:]),
        )  # fmt: skip
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def binned(frame: NDArray[Any], step: int) -> NDArray[Any]:
    """Average squares of ``step`` pixels of (H, W), or what there is of them."""
    height, width = (max(1, length // step) for length in frame.shape)
    cut = frame[: height * step, : width * step]
    rows, columns = min(step, cut.shape[0]), min(step, cut.shape[1])
    return np.asarray(cut.reshape(height, rows, width, columns).mean(axis=(1, 3)))
