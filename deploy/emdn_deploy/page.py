"""One web page of a run: frames before and after, spectra, time, and a verdict for each frame.

It stands alone: nothing is loaded, and it stays below 10 MB for any stack, of which it shows some
frames, binned where they are large.
"""

import base64
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from emdn_deploy import figures
from emdn_deploy.dose import Intensity
from emdn_deploy.readers.frames import Axis, Frames

_SIDE = 512  # pixels of a picture
_ROWS = 512  # frames of the slice through time
_READ = 2**28  # pixels that are read for it, or 64 frames
_SHOWN = 64  # frames with pictures, and as many that are flagged
_CELLS = 1000  # of the strip of verdicts
_BYTES = 6_500_000  # of pictures


class RunPage:
    """Reads some frames of a stack before and after, and makes a page of them.

    Parameters
    ----------
    read
        ``read(number)`` gives a frame (H, W) before and after, in the stack's units.
    flagged
        What was found in a frame, by its number; the others are within noise.
    unjudged
        Numbers of frames that were not judged, such as blank ones.
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
        self._step = -(-max(height, width) // _SIDE)
        self._numbers = range(0, count, -(-count // min(_ROWS, max(64, _READ // height // width))))
        self._rows, self._pictures = list[Any](), dict[int, list[str]]()
        first = min(flagged, default=count // 2)
        shown = {first, *range(0, count, -(-count // _SHOWN))}
        shown |= {*sorted(flagged)[:: -(-len(flagged) // _SHOWN) or 1]}
        for number in sorted(shown.union(self._numbers)):
            # In electrons.
            pair = [(one.astype(float) - scale.offset) / scale.gain for one in read(number)]
            small = [figures.binned(one, self._step) for one in pair]
            if number in self._numbers:
                self._rows.append([*map(np.mean, pair), *(one[len(one) // 2] for one in small)])
            if number in shown:
                self._pictures[number] = self._drawn(*small)
            if number == first:
                at = tuple(slice(max(0, n - _SIDE) // 2, (n + _SIDE) // 2) for n in (height, width))
                file, electrons = BytesIO(), replace(scale, gain=1.0, offset=0.0)
                title = f"frame {number}, its middle, in electrons"
                figures.draw(file, pair[0][at], pair[1][at], electrons, frames.axis("x"), title)
                self._spectra = _text(file)
            if sum(len(one) for some in self._pictures.values() for one in some) > _BYTES:
                spare = sorted(shown - flagged.keys())  # rather than what is flagged
                shown -= {*(spare if len(spare) > 1 else sorted(shown))[1::2]}
                self._pictures = {n: one for n, one in self._pictures.items() if n in shown}

    def _drawn(self, before: NDArray[Any], after: NDArray[Any]) -> list[str]:
        """Draw a binned frame before and after, and their difference over the expected noise."""
        spread = self._scale.pixel_gain / self._scale.gain / self._step**2
        noise = np.sqrt(spread * np.maximum(after, 0.01 * self._scale.scale))
        files = []
        for values, (low, high) in (
            (before, figures.contrast(before)),
            (after, figures.contrast(after)),
            ((before - after) / noise, (-4.0, 4.0)),
        ):
            grey = np.clip(np.rint((values - low) / max(high - low, 1e-30) * 255), 0, 255)
            file = BytesIO()
            Image.fromarray(grey.astype(np.uint8)).save(file, "PNG")
            files.append(_text(file))
        return files

    def html(
        self, title: str, headline: str, summary: Iterable[str] = (), sections: str = ""
    ) -> str:
        """Return the page.

        ``headline``: of the stack, in a line that starts with PASS, WARN or FAIL; empty if it was
        not judged. ``summary``: lines of plain text. ``sections``: HTML.
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
            "SUMMARY": escape("\n".join(summary)),
            "SECTIONS": sections,
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
            low, high = figures.contrast(rows)
            ends = (0, width, when[-1] + half, when[0] - half)
            panel.imshow(rows, cmap="gray", vmin=low, vmax=high, aspect="auto", extent=ends)
            panel.set(title=f"middle row over time, {name}", ylabel=time.units, xticks=[])
            figures.scale_bar(panel, width, self._frames.axis("x"))
        file = BytesIO()
        figure.savefig(file, dpi=100)
        return _text(file)


def _text(file: BytesIO) -> str:
    return base64.b64encode(file.getvalue()).decode()
