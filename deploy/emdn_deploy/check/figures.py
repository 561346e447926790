"""The pictures of a report, each a PNG in memory: views, never data."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from emdn_deploy.check.residual_tests import BLOCK, STATISTICS, Frame, smoothed
from emdn_deploy.check.stack import CheckResult, Shown
from emdn_deploy.check.verdict import beyond
from emdn_deploy.figures import contrast, log_power, scale_bar
from emdn_deploy.readers.frames import Axis
from emdn_models.metrics.frc import rings

_USUAL = ("ratio", "std", "lag", "blob_2", "lattice_added", "match_removed")


def overview(result: CheckResult, title: str) -> bytes:
    """Draw the first frame that is shown with the curves of the stack: all in one picture."""
    figure, grid = _grid(7.6, 2, 3)
    _frames(grid[:3], result.shown[0], result)
    _course(grid[3], result, "std")
    _correlations(grid[4], result)
    spectrum(grid[5], result)
    figure.suptitle(title, fontsize=11)
    return _png(figure)


def frame(shown: Shown, result: CheckResult) -> bytes:
    """Draw a frame before and after, its residual, the map of where, spectra and a profile."""
    figure, grid = _grid(7.6, 2, 3)
    _frames(grid[:3], shown, result)
    _map(figure, grid[3], shown, result.thresholds.noise.correlated)
    _powers(grid[4], shown, result.axis)
    middle, (step, unit) = len(shown.before) // 2, _lengths(result.axis)
    x = np.arange(shown.before.shape[1]) * step
    grid[5].plot(x, shown.before[middle], color="0.7", lw=0.8, label="before")
    grid[5].plot(x, shown.after[middle], color="tab:red", lw=1.2, label="after")
    grid[5].set(xlabel=f"x ({unit})", ylabel="intensity")
    _finish(grid[5], f"row {middle}")
    return _png(figure)


def courses(result: CheckResult) -> bytes:
    """Draw statistics over the stack, what fails first, with their limits."""
    limits = result.thresholds.limits
    failing = [name for name in limits if beyond(result.table, limits, [name]).any()]
    names = list(dict.fromkeys([*failing, *_USUAL]))[:6]
    figure, grid = _grid(5.2, 2, 3)
    for panel, name in zip(grid, names, strict=True):
        _course(panel, result, name)
    return _png(figure)


def curves(result: CheckResult) -> bytes:
    """Draw the residual's spectrum, and FRC with the neighbouring raw frame."""
    figure, (left, right) = _grid(4, 1, 2)
    spectrum(left, result)
    _correlations(right, result)
    return _png(figure)


def slices(result: CheckResult) -> bytes:
    """Draw the middle row of the frames over time, before and after."""
    figure, panels = _grid(3.6, 1, 2)
    low, high = contrast(result.lines[0])
    step, unit = _lengths(result.axis)
    for panel, rows, name in zip(panels, result.lines, ("before", "after"), strict=True):
        panel.imshow(
            rows, cmap="gray", vmin=low, vmax=high, aspect="auto", interpolation="nearest",
            extent=(0, rows.shape[1] * step, len(rows) * result.step, 0),
        )  # fmt: skip
        panel.set(xlabel=f"x ({unit})", ylabel="frame")
        panel.set_title(f"middle row, {name}", fontsize=10)
    return _png(figure)


def _grid(height: float, rows: int, columns: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(13, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).ravel())


def _finish(panel: Axes, title: str) -> None:
    panel.set_title(title, fontsize=10)
    panel.legend(fontsize=8)


def _frames(panels: Sequence[Axes], shown: Shown, result: CheckResult) -> None:
    low, high = contrast(shown.before)
    for panel, picture, name, bottom, top in (
        (panels[0], shown.before, f"frame {shown.number}, before", low, high),
        (panels[1], shown.after, "after, same limits", low, high),
        (panels[2], shown.residual, "difference / expected noise, -4 to 4", -4.0, 4.0),
    ):
        panel.imshow(picture, cmap="gray", vmin=bottom, vmax=top, interpolation="nearest")
        panel.set_title(name, fontsize=10)
        panel.set_axis_off()
        scale_bar(panel, picture.shape[1], result.axis)
    row = result.table.filter(pl.col("frame") == shown.number).row(0, named=True)
    if " at row " in row["evidence"]:  # what stands out has a place
        for panel in panels:
            panel.plot(row["x"], row["y"], "o", ms=16, mfc="none", mec="tab:red", mew=1.5)


def _map(figure: Figure, panel: Axes, shown: Shown, correlated: bool) -> None:
    panel.set_axis_off()
    panel.set_title("where, in sigma (red: denoised too dark, blue: too bright)", fontsize=9)
    if correlated:
        panel.text(0.5, 0.5, "correlated noise: places cannot be judged", ha="center")
        return
    z = places(shown.residual)
    image = panel.imshow(z, cmap="RdBu_r", vmin=-8, vmax=8, interpolation="nearest")
    figure.colorbar(image, ax=panel, shrink=0.8)


def places(residual: Frame) -> Frame:
    """Return of each block of (H, W) the smoothed residual farthest from 0, over all scales."""
    fields = smoothed(residual - residual.mean())
    height, width = (length // BLOCK for length in residual.shape)
    cut = fields[:, : height * BLOCK, : width * BLOCK].reshape(-1, height, BLOCK, width, BLOCK)
    high, low = cut.max(axis=(0, 2, 4)), -cut.min(axis=(0, 2, 4))
    return np.asarray(np.where(high > low, high, -low))


def _lengths(axis: Axis) -> tuple[float, str]:
    """Return the length of a pixel and its unit: nm where the axis is calibrated."""
    step = axis.step_in("nm")
    return (step, "nm") if step and step > 0 else (1.0, "pixels")


def _frequencies(panel: Axes, axis: Axis) -> float:
    """Label an axis of spatial frequencies; return what cycles per pixel are in its unit."""
    step, unit = _lengths(axis)
    panel.set_xlabel(f"spatial frequency ({'1/nm' if unit == 'nm' else 'cycles/pixel'})")
    return 1 / step


def _powers(panel: Axes, shown: Shown, axis: Axis) -> None:
    unit = _frequencies(panel, axis)
    for picture, name in (
        (shown.before, "before"), (shown.after, "after"), (shown.before - shown.after, "difference")
    ):  # fmt: skip
        power = 10.0 ** np.fft.ifftshift(log_power(picture))
        circles = rings(*power.shape)
        mean = circles.total(power[:, : power.shape[1] // 2 + 1]) / circles.pixels
        panel.semilogy(circles.frequency * unit, mean, label=name, lw=1.2)
    _finish(panel, "mean power on rings")


def _course(panel: Axes, result: CheckResult, name: str) -> None:
    panel.plot(result.table["frame"], result.table[name], ".-", lw=0.8, ms=3, color="tab:blue")
    for bound in result.thresholds.limits[name][:2]:
        if np.isfinite(bound):
            panel.axhline(bound, color="tab:red", lw=1, ls="--")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    own = STATISTICS[name]
    panel.set_title(own.words + (f" ({own.unit})" if own.unit else ""), fontsize=8)
    panel.set_xlabel("frame")


def spectrum(panel: Axes, result: CheckResult) -> None:
    """Draw the residual's mean power on rings, and that of single replicates."""
    drawn, (rows, columns) = result.thresholds.bootstrap, result.thresholds.panels[0]
    model, perfect = (
        np.stack([one.spectrum for one in part.panels]) for part in (drawn.model, drawn.perfect)
    )
    every = np.concatenate([model, perfect])
    frequency = rings(rows.stop, columns.stop).frequency * _frequencies(panel, result.axis)
    low, high = every.min(axis=0), every.max(axis=0)
    panel.fill_between(frequency, low, high, color="0.85", label="expected, single frames")
    panel.plot(frequency, model.mean(axis=0), color="0.4", lw=1, label="expected, mean")
    panel.plot(frequency, result.power, color="tab:red", lw=1.2, label="these frames")
    _finish(panel, "power of the residual / expected noise")


def _correlations(panel: Axes, result: CheckResult) -> None:
    found = result.correlations
    if found is None:
        panel.set_axis_off()
        panel.text(0.5, 0.5, "one frame: no correlation with a neighbour", ha="center")
        return
    frequency = found.frequency * _frequencies(panel, result.axis)
    for curve, error, name, colour in (
        (found.raw, found.raw_se, "raw with the next raw", "0.4"),
        (found.denoised, found.denoised_se, "denoised with the next raw", "tab:red"),
    ):
        panel.plot(frequency, curve, color=colour, lw=1.2, label=name)
        panel.fill_between(frequency, curve - error, curve + error, color=colour, alpha=0.2, lw=0)
    panel.axhline(0, color="0.8", lw=0.8)
    _finish(panel, f"Fourier ring correlation, {found.pairs} pairs")


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()
