"""The pictures of a report, each a PNG in memory: views, never data."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from emdn_deploy.check.heldout import Correlations
from emdn_deploy.check.report import headline
from emdn_deploy.check.residual_tests import BLOCK, STATISTICS, Frame, smoothed
from emdn_deploy.check.stack import CheckResult, Exhibits, Shown, Spectrum
from emdn_deploy.figures import contrast, log_power, scale_bar
from emdn_deploy.readers.calibration import step_in
from emdn_deploy.readers.frames import Axis

_DPI = 80
_USUAL = ("ratio", "std", "lag", "blob_2", "lattice_added", "match_removed")


def overview(result: CheckResult) -> bytes:
    """Draw the first exhibit with the curves of the stack: the whole check in one picture."""
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    grid = figure.subplots(2, 3)
    shown = result.exhibits.frames[0]
    _frames(grid[0], shown, result)
    _course(grid[1, 0], result.table, "std")
    if result.correlations is not None:
        _correlations(grid[1, 1], result.correlations, result.exhibits.axis)
    else:
        grid[1, 1].set_axis_off()
    _spectrum(grid[1, 2], result.spectrum, result.exhibits.axis)
    figure.suptitle(f"{result.source.name}: {headline(result)}", fontsize=11)
    return _png(figure)


def frame(shown: Shown, result: CheckResult) -> bytes:
    """Draw a frame before and after, its residual, the map of where, spectra and a profile."""
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    grid = figure.subplots(2, 3)
    _frames(grid[0], shown, result)
    _map(grid[1, 0], shown, result.thresholds.noise.correlated)
    _powers(grid[1, 1], shown, result.exhibits.axis)
    _profile(grid[1, 2], shown, result.exhibits.axis)
    return _png(figure)


def courses(result: CheckResult) -> bytes:
    """Draw statistics over the stack, what fails first, with their limits."""
    table = result.table
    failing = [name for name in STATISTICS if name in table.columns and _beyond(table, name)]
    usual = [name for name in _USUAL if name in table.columns]
    names = list(dict.fromkeys([*failing, *usual]))[:6]
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    grid = figure.subplots(2, 3)
    for panel in grid.ravel()[len(names) :]:
        panel.set_axis_off()
    for panel, name in zip(grid.ravel(), names, strict=False):
        _course(panel, table, name)
    return _png(figure)


def curves(result: CheckResult) -> bytes:
    """Draw the residual's spectrum, and FRC with the neighbouring raw frame."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _spectrum(left, result.spectrum, result.exhibits.axis)
    if result.correlations is not None:
        _correlations(right, result.correlations, result.exhibits.axis)
    else:
        right.set_axis_off()
        right.text(0.5, 0.5, "one frame: no correlation with a neighbour", ha="center")
    return _png(figure)


def slices(exhibits: Exhibits) -> bytes:
    """Draw the middle row of the frames over time, before and after."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    low, high = contrast(exhibits.before)
    step, unit = _lengths(exhibits.axis)
    for panel, rows, name in zip(
        figure.subplots(1, 2), (exhibits.before, exhibits.after), ("before", "after"), strict=True
    ):
        panel.imshow(
            rows, cmap="gray", vmin=low, vmax=high, aspect="auto", interpolation="nearest",
            extent=(0, rows.shape[1] * step, len(rows) * exhibits.step, 0),
        )  # fmt: skip
        panel.set_title(f"middle row, {name}", fontsize=10)
        panel.set_xlabel(f"x ({unit})")
        panel.set_ylabel("frame")
    return _png(figure)


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
        scale_bar(panel, picture.shape[1], result.exhibits.axis)
    row = result.table.filter(pl.col("frame") == shown.number).row(0, named=True)
    if " at row " in row["evidence"]:  # what stands out has a place
        for panel in panels:
            panel.plot(row["x"], row["y"], "o", ms=16, mfc="none", mec="tab:red", mew=1.5)


def _map(panel: Axes, shown: Shown, correlated: bool) -> None:
    panel.set_axis_off()
    panel.set_title("where, in sigma (red: denoised too dark, blue: too bright)", fontsize=9)
    if correlated:
        panel.text(0.5, 0.5, "correlated noise: places cannot be judged", ha="center")
        return
    z = places(shown.residual)
    image = panel.imshow(z, cmap="RdBu_r", vmin=-8, vmax=8, interpolation="nearest")
    figure = panel.get_figure()
    assert figure is not None
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
    step = step_in(axis, "nm")
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
        power = 10.0 ** log_power(picture)
        y, x = np.indices(power.shape)
        centre = [length // 2 for length in power.shape]
        radius = np.hypot((y - centre[0]) / power.shape[0], (x - centre[1]) / power.shape[1])
        ring = (radius * 2 * 64).astype(int).ravel()
        mean = np.bincount(ring, power.ravel())[:64] / np.maximum(np.bincount(ring)[:64], 1)
        panel.semilogy((np.arange(64) + 0.5) / 128 * unit, mean, label=name, lw=1.2)
    panel.set_title("mean power on rings", fontsize=10)
    panel.legend(fontsize=8)


def _profile(panel: Axes, shown: Shown, axis: Axis) -> None:
    middle = shown.before.shape[0] // 2
    step, unit = _lengths(axis)
    x = np.arange(shown.before.shape[1]) * step
    panel.plot(x, shown.before[middle], color="0.7", lw=0.8, label="before")
    panel.plot(x, shown.after[middle], color="tab:red", lw=1.2, label="after")
    panel.set_title(f"row {middle}", fontsize=10)
    panel.set_xlabel(f"x ({unit})")
    panel.set_ylabel("intensity")
    panel.legend(fontsize=8)


def _beyond(table: pl.DataFrame, name: str) -> bool:
    high = (table[name] > table[f"{name}_high"]).any()
    low = f"{name}_low" in table.columns and (table[name] < table[f"{name}_low"]).any()
    return bool(high or low)


def _course(panel: Axes, table: pl.DataFrame, name: str) -> None:
    values = table[name].to_numpy()
    panel.plot(table["frame"].to_numpy(), values, ".-", lw=0.8, ms=3, color="tab:blue")
    for side in ("low", "high"):
        if f"{name}_{side}" in table.columns:
            limit = table[f"{name}_{side}"].to_numpy()
            panel.plot(table["frame"].to_numpy(), limit, color="tab:red", lw=1, ls="--")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    unit = f" ({STATISTICS[name].unit})" if STATISTICS[name].unit else ""
    panel.set_title(STATISTICS[name].words + unit, fontsize=8)
    panel.set_xlabel("frame")


def _spectrum(panel: Axes, spectrum: Spectrum, axis: Axis) -> None:
    frequency = spectrum.frequency * _frequencies(panel, axis)
    panel.fill_between(
        frequency, spectrum.low, spectrum.high, color="0.85", label="expected, single frames"
    )
    panel.plot(frequency, spectrum.expected, color="0.4", lw=1, label="expected, mean")
    panel.plot(frequency, spectrum.power, color="tab:red", lw=1.2, label="these frames")
    panel.set_title("power of the residual / expected noise", fontsize=10)
    panel.legend(fontsize=8)


def _correlations(panel: Axes, found: Correlations, axis: Axis) -> None:
    frequency = found.frequency * _frequencies(panel, axis)
    for curve, error, name, colour in (
        (found.raw, found.raw_se, "raw with the next raw", "0.4"),
        (found.denoised, found.denoised_se, "denoised with the next raw", "tab:red"),
    ):
        panel.plot(frequency, curve, color=colour, lw=1.2, label=name)
        panel.fill_between(frequency, curve - error, curve + error, color=colour, alpha=0.2, lw=0)
    panel.axhline(0, color="0.8", lw=0.8)
    panel.set_title(f"Fourier ring correlation, {found.pairs} pairs", fontsize=10)
    panel.legend(fontsize=8)


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
