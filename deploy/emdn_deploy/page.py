"""One web page of a run: frames before and after, spectra, time, and a verdict for each frame.

It stands alone: nothing is loaded, and it stays below 10 MB for any stack, of which it shows some
frames, binned where they are large.
"""

import base64
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from emdn_deploy.dose import Intensity
from emdn_deploy.figures import Reader, bar_length, binned, contrast, log_power, readable
from emdn_deploy.readers.frames import Frames
from emdn_models.metrics import rings

_SIDE = 512  # pixels of a picture, and of the part of a frame of which the spectrum is
_ROWS = 512  # frames of the slice through time
_READ = 2**28  # pixels that are read for it, or 64 frames
_CELLS = 1000  # of the strip of verdicts
_BYTES = 7_500_000  # of pictures
_LEVELS = 5  # of the difference, per standard deviation of the noise


@dataclass(frozen=True)
class Verdicts:
    """What was found in the frames of a stack, in words for people.

    Attributes
    ----------
    headline
        Of the stack, in a line that starts with PASS, WARN or FAIL; empty if it was not judged.
    flagged
        What was found in a frame, by its number; the others are within noise.
    unjudged
        Numbers of frames that were not judged, such as blank ones.
    """

    headline: str = ""
    flagged: Mapping[int, str] = field(default_factory=dict)
    unjudged: Collection[int] = ()

    def words(self, number: int) -> str:
        """Say in words what was found in a frame."""
        if not self.headline or number in self.unjudged:
            return "not judged"
        return self.flagged.get(number, "within noise")

    def cells(self, count: int) -> str:
        """Return the worst of every few of ``count`` frames: 0, not judged 1, flagged 2."""
        state = np.full(count, 0 if self.headline else 1)
        state[list(self.unjudged)], state[list(self.flagged)] = 1, 2
        starts = np.arange(min(count, _CELLS)) * count // min(count, _CELLS)
        return "".join(map(str, np.maximum.reduceat(state, starts)))


class RunPage:
    """Takes in frames, in any order, and holds a few megabytes of them.

    Attributes
    ----------
    numbers
        Of the frames that are wanted, spread over the stack.
    """

    def __init__(self, frames: Frames, scale: Intensity) -> None:
        count, height, width = frames.shape
        self._frames, self._scale = frames, scale
        self._step = -(-max(height, width) // _SIDE)
        self.numbers = range(0, count, -(-count // min(_ROWS, max(64, _READ // height // width))))
        spread = max(2, _BYTES * self._step**2 // (2 * height * width))
        self._wanted = set(self.numbers[:: -(-len(self.numbers) // spread)])
        # The middle of a frame, of which the spectrum is.
        sides = [min(size, _SIDE) for size in (height, width)]
        starts = [(size - side) // 2 for size, side in zip((height, width), sides, strict=True)]
        self._middle = tuple(slice(a, a + side) for a, side in zip(starts, sides, strict=True))
        self._rings = rings(*sides) if min(sides) > 3 else None
        self._pictures = dict[int, dict[str, Any]]()
        self._rows = dict[int, tuple[float, float, NDArray[Any], NDArray[Any]]]()
        # Variance of a pixel of a picture: slope * (intensity - offset), or the least.
        sigma, slope = scale.sigma / self._step, scale.pixel_gain / self._step**2
        self._noise = (slope, 0.01 * sigma**2) if sigma else (0.0, scale.gain**2)

    def more(self, verdicts: Verdicts) -> list[int]:
        """Return numbers of frames that are wanted because they are flagged."""
        missing = sorted(set(verdicts.flagged) - self._wanted)
        room = len(self._pictures) * (_BYTES - self._used()) // max(1, self._used())
        missing = missing[:: max(1, -(-len(missing) // max(1, room)))]
        self._wanted.update(missing)
        return missing

    def take(self, numbers: Iterable[int], before: Reader, after: Reader) -> None:
        """Add frames; ``read(start, stop)`` gives (k, H, W)."""
        for number in numbers:
            self.add(number, *(read(number, number + 1)[0] for read in (before, after)))

    def add(self, number: int, before: NDArray[Any], after: NDArray[Any]) -> None:
        """Take in frame ``number`` (H, W) before and after, in the stack's units."""
        offset = self._scale.offset
        pair = [np.nan_to_num(one.astype(np.float64), nan=offset) for one in (before, after)]
        small, clean = (binned(one, self._step) for one in pair)
        if number in self.numbers:
            middle = len(small) // 2
            self._rows[number] = (pair[0].mean(), pair[1].mean(), small[middle], clean[middle])
        if number not in self._wanted:
            return
        low, high = (2 * one - clean.mean() for one in np.quantile(clean, (0.001, 0.999)))
        slope, least = self._noise
        noise = np.sqrt(np.maximum(slope * (clean - offset), least))
        self._pictures[number] = {
            "low": low,
            "high": high,
            "contrast": [contrast(small), contrast(clean)],
            "power": [self._power(one) for one in (*pair, pair[0] - pair[1])],
            "after": _png(clean, low, high),
            "difference": _png((small - clean) / noise, -128 / _LEVELS, 127 / _LEVELS),
        }
        if self._used() > _BYTES:
            self._wanted -= set(sorted(self._wanted)[1::2])
            self._pictures = {n: one for n, one in self._pictures.items() if n in self._wanted}

    def _power(self, frame: NDArray[Any]) -> list[float]:
        """Return log10 of the mean power on rings, electrons squared a pixel."""
        part = frame[self._middle] / self._scale.gain
        if self._rings is None:
            return []
        window = 9 / 64 * part.size  # the sum of its squares
        half = 10.0 ** np.fft.ifftshift(log_power(part))[:, : part.shape[1] // 2 + 1]
        mean = self._rings.total(half / window) / self._rings.pixels
        return _rounded(np.log10(np.maximum(mean, 1e-12)))

    def _used(self) -> int:
        return sum(len(one["after"] + one["difference"]) for one in self._pictures.values())

    def html(
        self, title: str, verdicts: Verdicts, summary: Iterable[str] = (), sections: str = ""
    ) -> str:
        """Return the page; ``summary`` are lines of plain text, ``sections`` is HTML."""
        count, _, width = self._frames.shape
        x = self._frames.axis("x")
        time = self._frames.time()
        step, units = readable(x.step or 0, x.units, width) if x.step and x.step > 0 else (0, "")
        bar, nm = bar_length(width * (step or 1)), x.step_in("nm")
        means, cleaned, *lines = zip(*(self._rows[n] for n in sorted(self._rows)), strict=True)
        electrons = (np.array(means) - self._scale.offset) / self._scale.gain
        area = self._frames.dose(1.0)
        arrived = np.cumsum(electrons) * (area or 1) * self.numbers.step
        facts = {
            "count": count,
            "cells": verdicts.cells(count),
            "time": [time.origin, time.step, time.units] if time and time.step else None,
            "bar": [bar / step / width, f"{bar:g} {units}"] if units else None,
            "noise": [self._noise[0], self._scale.offset, self._noise[1], _LEVELS],
            "frequency": _rounded(self._rings.frequency / (nm or 1)) if self._rings else [],
            "per": f"spatial frequency ({'1/nm' if nm else 'cycles/pixel'})",
            "rows": sorted(self._rows),
            "means": [_rounded(means), _rounded(cleaned)],
            "dose": _rounded(arrived) if self._scale.sigma else [],
            "slices": [_png(one, *contrast(one)) for one in map(np.stack, lines)],
            "frames": [
                {"number": number, "words": verdicts.words(number),
                 "flagged": number in verdicts.flagged, **self._pictures[number]}
                for number in sorted(self._pictures)
            ],
        }  # fmt: skip
        page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        size = f"; {self._step} x {self._step} pixels are one here" if self._step > 1 else ""
        per = "e/Å²" if area else "electrons a pixel"
        texts = {
            "TITLE": escape(title),
            "WORD": verdicts.headline.partition(":")[0].lower(),
            "HEADLINE": escape(verdicts.headline or "not judged"),
            "BINNED": size,
            "DOSE": f"{per}; {electrons.mean() * (area or 1):.4g} a frame",
            "SUMMARY": escape("\n".join(summary)),
            "SECTIONS": sections,
            "DATA": json.dumps(facts, allow_nan=False).replace("<", "\\u003c"),
        }
        return re.sub("__([A-Z]+)__", lambda found: texts[found[1]], page)


def _rounded(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _png(values: NDArray[Any], low: float, high: float) -> str:
    grey = np.clip(np.rint((values - low) / max(high - low, 1e-300) * 255), 0, 255)
    file = BytesIO()
    Image.fromarray(grey.astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
