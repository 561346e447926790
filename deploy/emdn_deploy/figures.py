"""Pictures of a stack before and after: a frame with spectra, an animated GIF, and a web page.

The page stands alone: nothing is loaded, and it stays below 10 MB for any stack, of which it shows
some frames, binned where they are large.
"""

import base64
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from html import escape
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from emdn_deploy.dose import Intensity
from emdn_deploy.readers.frames import Axis, Frames

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
# Of the page: frames of the slice through time and pixels read for it, frames with pictures, bytes
# of these, and cells of the strip of verdicts.
_ROWS, _READ, _SHOWN, _BYTES, _CELLS = 512, 2**28, 64, 6_500_000, 1000


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
    is named as Matplotlib does.
    """
    from matplotlib.figure import Figure

    noise = np.sqrt(np.maximum((after - scale.offset) / scale.gain, 1)) * abs(scale.gain)
    reach = "to 0.5 / pixel"
    if known := readable(axis, before.shape[1]):
        reach = f"to {0.5 / known[0]:.3g} / {known[1]}"
    low, high = np.quantile(log_power(before), (0.01, 0.9999))
    limits = low, max(high, low + 1e-6)
    panels = [
        (before, contrast(before), "before, {:.4g} to {:.4g}"),
        (after, contrast(after), "after, {:.4g} to {:.4g}"),
        ((before - after) / noise, (-4, 4), "(before - after) / expected noise, {} to {}"),
        (log_power(before), limits, f"power before, {reach}"),
        (log_power(after), limits, "power after, same limits"),
        (log_power(before - after), limits, "power of the difference"),
    ]
    figure = Figure(figsize=(12, 8.4), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(2, 3).ravel()
    for number, (panel, (frame, (bottom, top), name)) in enumerate(zip(grid, panels, strict=True)):
        colours, how = ("gray", "nearest") if number < 3 else ("magma", None)
        panel.imshow(frame, cmap=colours, vmin=bottom, vmax=top, interpolation=how)
        panel.set_title(name.format(bottom, top), fontsize=10)
        panel.set_axis_off()
        if number < 3:
            scale_bar(panel, frame.shape[1], axis)
    figure.savefig(path, dpi=100, format=kind)


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


def bar_of(width: int, axis: Axis) -> tuple[float, str] | None:
    """Return pixels and words of a bar for a picture ``width`` wide, None without calibration."""
    if not (known := readable(axis, width)):
        return None
    step, units = known
    length = bar_length(width * step)
    return length / step, f"{length:g} {units}"


def scale_bar(panel: "Axes", width: int, axis: Axis) -> None:
    """Draw a bar on a picture ``width`` pixels wide, if its axis is calibrated."""
    if bar := bar_of(width, axis):
        (pixels, words), left, place = bar, 0.05 * width, panel.get_xaxis_transform()
        ends = left, left + pixels
        panel.plot(ends, (0.07, 0.07), "w", lw=4, solid_capstyle="butt", transform=place)
        look = {"facecolor": "black", "alpha": 0.5, "pad": 1, "edgecolor": "none"}
        panel.text(left, 0.1, words, color="white", fontsize=9, bbox=look, transform=place)


def readable(axis: Axis, width: int) -> tuple[float, str] | None:
    """Return step and units, of metres those that make the bar a small number, if there are any."""
    if not axis.step or axis.step <= 0 or not axis.units:
        return None
    metres = ((1e12, "pm"), (1e9, "nm"), (1e6, "µm"), (1e3, "mm"))
    for factor, name in metres if axis.units == "m" else ():
        if bar_length(width * axis.step * factor) < 500:
            return axis.step * factor, name
    return axis.step, axis.units


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
    where known.
    """
    numbers = np.unique(np.linspace(0, count - 1, min(count, MAX_FRAMES)).round().astype(int))
    sides = [(read, *contrast(read(count // 2, count // 2 + 1)[0])) for read in (before, after)]
    shape = np.array(before(0, 1)[0].shape)
    height, width = (
        int(one) for one in np.ceil(shape * np.clip(shape.max(), MIN_SIDE, MAX_SIDE) / shape.max())
    )
    bar = bar_of(int(shape[1]), length or Axis())

    def picture(number: int) -> Image.Image:
        sheet = Image.new("L", (2 * width + _GAP, height + STRIP), 255)
        pen, when = ImageDraw.Draw(sheet), f"frame {number}"
        if time is not None and time.step and time.units:
            when = f"{number * time.step:.4g} {time.units}"
        places = (0, f"before, {when}"), (width + _GAP, "after")
        for (left, name), (read, low, high) in zip(places, sides, strict=True):
            grey = _grey(read(number, number + 1)[0], low, high)
            sheet.paste(grey.resize((width, height), Image.Resampling.BOX), (left, STRIP))
            pen.text((left + 4, 4), name, 0)
        if bar:
            pixels, words = bar
            start, top = width + _GAP + 0.05 * width, STRIP + 0.92 * height
            end = start + pixels * width / shape[1]
            pen.rectangle((start, top, end, top + max(2, 0.02 * height)), 255, 0)
            pen.text((start, top - 3), words, 255, anchor="lb", stroke_width=1, stroke_fill=0)
        return sheet

    picture(int(numbers[0])).save(
        path, format="GIF", save_all=True, duration=FRAME_MS, loop=0,
        append_images=(picture(int(number)) for number in numbers[1:]),
    )  # fmt: skip


def _grey(frame: NDArray[Any], low: float, high: float) -> Image.Image:
    """Draw (H, W) from ``low``, black, to ``high``, white."""
    grey = np.clip(np.rint((frame - low) / max(high - low, 1e-30) * 255), 0, 255)
    return Image.fromarray(grey.astype(np.uint8))


class RunPage:
    """Reads some frames of a stack before and after, and makes a page of them.

    ``read(number)`` gives a frame (H, W) before and after, in the stack's units. ``flagged``: what
    was found in a frame, by its number; the others are within noise. ``unjudged``: numbers of
    frames that were not judged, such as blank ones.
    """

    def __init__(
        self,
        frames: Frames,
        scale: Intensity,
        read: Callable[[int], tuple[NDArray[Any], NDArray[Any]]],
        flagged: Mapping[int, str],
        unjudged: Collection[int] = (),
    ) -> None:
        count, height, width = frames.shape
        self._frames, self._scale = frames, scale
        self._flagged, self._unjudged = flagged, set(unjudged)
        self._step = -(-max(height, width) // MAX_SIDE)
        self._numbers = range(0, count, -(-count // min(_ROWS, max(64, _READ // height // width))))
        self._rows, self._pictures = list[Any](), dict[int, list[str]]()
        # Three pictures a frame, of a byte a pixel in four letters for three.
        most = int(np.clip(_BYTES * self._step**2 // (4 * height * width), 4, _SHOWN)) // 2
        first = min(flagged, default=count // 2)
        shown = {first, *range(0, count, -(-count // most))}
        shown |= {*sorted(flagged)[:: -(-len(flagged) // most) or 1]}
        for number in sorted(shown.union(self._numbers)):
            # In electrons.
            pair = [(one.astype(float) - scale.offset) / scale.gain for one in read(number)]
            small = [_binned(one, self._step) for one in pair]
            if number in self._numbers:
                self._rows.append([*map(np.mean, pair), *(one[len(one) // 2] for one in small)])
            if number in shown:
                self._pictures[number] = self._drawn(*small)
            if number == first:
                at = tuple(slice(max(0, n - MAX_SIDE) // 2, (n + MAX_SIDE) // 2)
                           for n in (height, width))  # fmt: skip
                known = replace(scale, gain=1.0, offset=0.0), frames.axis("x")
                title = f"frame {number}, its middle, in electrons"
                self._spectra = _text(draw, *(one[at] for one in pair), *known, title)

    def _drawn(self, before: NDArray[Any], after: NDArray[Any]) -> list[str]:
        """Draw a binned frame before and after, and their difference over the expected noise."""
        spread = self._scale.pixel_gain / self._scale.gain / self._step**2
        noise = np.sqrt(spread * np.maximum(after, 0.01 * self._scale.scale))
        pictures = [_grey(one, *contrast(one)) for one in (before, after)]
        pictures.append(_grey((before - after) / noise, -4.0, 4.0))
        return [_text(picture.save, "PNG") for picture in pictures]

    def html(self, title: str, headline: str, summary: str = "") -> str:
        """Return the page.

        ``headline``: of the stack, in a line that starts with PASS, WARN or FAIL; empty if it was
        not judged. ``summary``: plain text.
        """
        count = self._frames.shape[0]
        cells = np.zeros(min(count, _CELLS), int)
        for state, numbers in ((1, self._unjudged), (2, self._flagged)):
            cells[[number * len(cells) // count for number in numbers]] = state
        facts = {
            "count": count,
            "cells": cells.tolist(),
            "frames": [
                {"number": number, "words": self._words(number), "pictures": pictures,
                 "flagged": number in self._flagged}
                for number, pictures in self._pictures.items()
            ],
        }  # fmt: skip
        size = f"; {self._step} x {self._step} pixels are one here" if self._step > 1 else ""
        texts = {
            "TITLE": escape(title),
            "WORD": headline.partition(":")[0].lower(),
            "HEADLINE": escape(headline or "not judged"),
            "SIZE": size,
            "SPECTRA": self._spectra,
            "TIME": self._drawn_time(),
            "SUMMARY": escape(summary),
            "DATA": json.dumps(facts).replace("<", "\\u003c"),
        }
        page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        return re.sub("__([A-Z]+)__", lambda found: texts[found[1]], page)

    def _words(self, number: int) -> str:
        """Say of a frame when it was taken and what was found in it."""
        found = "not judged" if number in self._unjudged else "within noise"
        words = f"frame {number} of {self._frames.shape[0]}"
        if time := self._frames.time():
            words += f", {time.origin + number * (time.step or 0):.4g} {time.units}"
        return f"{words}: {self._flagged.get(number, found)}"

    def _drawn_time(self) -> str:
        """Draw means and dose over time, and the middle row."""
        from matplotlib.figure import Figure  # takes half a second

        before, after, *slices = (np.array(one) for one in zip(*self._rows, strict=True))
        time, width = self._frames.time() or Axis(units="frame", step=1.0), self._frames.shape[2]
        step = time.step or 1.0
        when, half = time.origin + step * np.array(self._numbers), step * self._numbers.step / 2
        area = self._frames.dose(1.0)
        dose = before * (area or 1)
        figure = Figure(figsize=(12, 7), layout="constrained")
        (means, arrived), images = figure.subplots(2, 2)
        means.plot(when, before, color="0.6", lw=3)  # seen where the other one covers it
        means.plot(when, after, color="tab:red", lw=1)
        means.set(title="mean, electrons a pixel: before (grey), after (red)", xlabel=time.units)
        name = f"dose so far, {'e/Å²' if area else 'electrons a pixel'}"
        arrived.plot(when, np.cumsum(dose) * self._numbers.step)
        arrived.set(title=f"{name}; {dose.mean():.4g} a frame", xlabel=time.units)
        for panel, rows, name in zip(images, slices, ("before", "after"), strict=True):
            low, high = contrast(rows)
            ends = (0, width, when[-1] + half, when[0] - half)
            panel.imshow(rows, cmap="gray", vmin=low, vmax=high, aspect="auto", extent=ends)
            panel.set(title=f"middle row over time, {name}", ylabel=time.units, xticks=[])
            scale_bar(panel, width, self._frames.axis("x"))
        return _text(figure.savefig, dpi=100)


def _text(save: Callable[..., object], *given: Any, **options: Any) -> str:
    """Return as text what ``save`` writes to a file."""
    save(file := BytesIO(), *given, **options)
    return base64.b64encode(file.getvalue()).decode()


def _binned(frame: NDArray[Any], step: int) -> NDArray[Any]:
    """Average squares of ``step`` pixels of (H, W), or what there is of them."""
    height, width = (max(1, length // step) for length in frame.shape)
    cut = frame[: height * step, : width * step]
    rows, columns = min(step, cut.shape[0]), min(step, cut.shape[1])
    return np.asarray(cut.reshape(height, rows, width, columns).mean(axis=(1, 3)))
