"""The check that every run of ``denoise`` can afford: four numbers a frame, no resampling.

Limits do not come from the stack's own honest denoisings here but from those of simulated
movies (``tests/deploy/checking/test_quick.py`` keeps to them), wide enough for every shipped
model, and from the other frames of the stack. What this passes can still fail ``check``.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.checking.chance import allowed

BOX = 16  # pixels, the side of the boxes whose mean residual is looked at
# Of honest denoisings, between 0.1 and 1.5 in signal to noise per pixel.
BOUNDS = {"ratio": (0.97, 1.03), "std": (0.94, 1.05), "lag": (-0.15, 0.08), "box": (0.0, 5.0)}
# Deviations from the median frame that do not count, whatever the others' scatter.
_TOLERANCE = {"ratio": 0.005, "std": 0.01, "lag": 0.02, "box": 1.5}
# Standard errors by which small frames may go beyond, in units of 1 / sqrt(pixels).
_CHANCE = {"ratio": 0.0, "std": 4 / 2**0.5, "lag": 4 / 2**0.5, "box": 0.0}
_OUTLIER = 6.0  # robust standard deviations
_FAR = 2.0  # times as far out as that a single frame fails the stack
_RATE = 0.01  # of honest frames that may stand out
_LEAST = 8  # frames that tell an outlier
_DARK = 0.01  # lowest variance, relative to the mean's
_WORDS = {
    "ratio": "the model's mean out / mean in",
    "std": "residual / expected noise",
    "lag": "correlation of neighbouring pixels of the residual",
    "box": f"largest mean residual of a {BOX} x {BOX} box, in standard deviations",
}

Frames = NDArray[np.float32]


@dataclass(frozen=True)
class QuickResult:
    """What the four numbers say.

    Attributes
    ----------
    numbers
        By name, (N,) each, of the frames in ``frames``.
    failing
        Numbers of the frames that stand out.
    passed
        Whether no frame is far out, nor more stand out than in honest stacks (see
        `emdn_deploy.checking.whole`).
    line
        One line for people.
    """

    frames: tuple[int, ...]
    numbers: dict[str, NDArray[np.float64]]
    failing: tuple[int, ...]
    passed: bool
    line: str


@dataclass
class Quick:
    """Takes in a stack block by block.

    Parameters
    ----------
    gain, offset
        Variance of a pixel over its mean, and intensity of a pixel without electrons.
    read
        Standard deviation of the read noise, intensity units.
    bad
        (H, W), pixels that were filled in; None for none.
    """

    gain: float
    offset: float
    read: float = 0.0
    bad: NDArray[np.bool_] | None = None
    _rows: dict[int, tuple[float, float, float, float]] = field(default_factory=dict)
    _pixels: int = 1

    def add(
        self,
        start: int,
        raw: Frames,
        denoised: Frames,
        shifts: NDArray[np.float64] | None = None,
    ) -> None:
        """Measure frames (k, H, W), the first of which is number ``start``.

        Parameters
        ----------
        shifts
            (k,) what was added to each for the sake of its mean: the ratio is that without.
        """
        self._pixels = raw[0].size
        added = np.zeros(len(raw)) if shifts is None else shifts
        for number, (before, after, shift) in enumerate(
            zip(raw, denoised, added, strict=True), start
        ):
            self._rows[number] = self._measure(before, after, float(shift))

    def state(self) -> NDArray[np.float64]:
        """Return what is known of each frame, (N, 5), for `restore`."""
        rows = [(number, *row) for number, row in list(self._rows.items())]
        return np.array(rows, np.float64).reshape(-1, 1 + len(BOUNDS))

    def restore(self, state: NDArray[np.float64], size: int) -> None:
        """Take up frames of ``size`` pixels that an earlier run has measured."""
        self._pixels = size
        self._rows |= {int(number): (a, b, c, d) for number, a, b, c, d in state.tolist()}

    def _measure(
        self, raw: Frames, denoised: Frames, shift: float
    ) -> tuple[float, float, float, float]:
        unit = np.float32(self.gain)  # in electrons: float32 does not hold every unit's square
        after, read = (denoised - np.float32(self.offset)) / unit, self.read / self.gain
        level = float(after.mean())
        given = float(raw.mean(dtype=np.float64) - self.offset) / self.gain
        least = max(_DARK * (level + read**2), 1e-30)
        variance = np.maximum(after + np.float32(read**2), np.float32(least))
        scaled = (raw - denoised) / unit / np.sqrt(variance)
        share = 1.0
        if self.bad is not None and self.bad.any():
            scaled[self.bad] = 0
            share = 1 - float(self.bad.mean())
        size, mean = scaled.size * share, float(scaled.sum()) / (scaled.size * share)
        flat = scaled.ravel()
        # Not by @, whose threads would take the cores from the computation.
        square = float(np.einsum("i,i->", flat, flat)) / size - mean**2
        across = [
            float(np.einsum("ij,ij->", one, two)) / (one.size * share) - mean**2
            for one, two in ((scaled[:, 1:], scaled[:, :-1]), (scaled[1:], scaled[:-1]))
            if one.size
        ]
        lag = float(np.mean(across)) / square if across and square > 0 else 0.0
        ratio = (level - shift / self.gain) / given if given else np.nan
        return ratio, max(0.0, square) ** 0.5, lag, _box(scaled, mean)

    def result(self) -> QuickResult:
        """Judge all frames that were taken in, in the order of their numbers."""
        order = sorted(self._rows)
        table = np.array([self._rows[number] for number in order]).reshape(-1, len(BOUNDS))
        numbers = dict(zip(BOUNDS, table.T, strict=True))
        outside = self._outside(numbers)
        bad = np.any(list(outside.values()), axis=0)
        far = np.any(list(self._outside(numbers, _FAR).values()))
        failing = tuple(number for number, fails in zip(order, bad, strict=True) if fails)
        passed = not far and len(failing) <= allowed(len(order), _RATE)
        line = _line(order, numbers, outside, failing, passed)
        return QuickResult(tuple(order), numbers, failing, passed, line)

    def _outside(
        self, numbers: dict[str, NDArray[np.float64]], times: float = 1.0
    ) -> dict[str, NDArray[np.bool_]]:
        return {
            name: _outside(
                values,
                BOUNDS[name],
                _CHANCE[name] / self._pixels**0.5,
                _TOLERANCE[name],
                name != "box",
                times,
            )
            for name, values in numbers.items()
        }


def _box(scaled: Frames, mean: float) -> float:
    height, width = (length // BOX for length in scaled.shape)
    if not height * width:
        return 0.0
    cut = scaled[: height * BOX, : width * BOX]
    # Rows first: adding whole rows is what a processor does fastest.
    sums = cut.reshape(height, BOX, -1).sum(axis=1).reshape(height, width, BOX).sum(axis=2)
    return float(np.abs(sums / BOX - mean * BOX).max())


def _outside(
    values: NDArray[np.float64],
    bounds: tuple[float, float],
    chance: float,
    tolerance: float,
    both: bool,
    times: float,
) -> NDArray[np.bool_]:
    """Say which are ``times`` as far out as they may be."""
    middle, half = (bounds[1] + bounds[0]) / 2, (bounds[1] - bounds[0]) / 2 + chance
    if not both:  # a size, from 0
        middle, half = 0.0, bounds[1] + chance
    bad = ~(np.abs(values - middle) <= times * half)
    if len(values) >= _LEAST:
        away = values - np.median(values)
        spread = 1.4826 * float(np.median(np.abs(away)))
        bad |= (np.abs(away) if both else away) > times * (_OUTLIER * spread + tolerance)
    return np.asarray(bad)


def _line(
    order: list[int],
    numbers: dict[str, NDArray[np.float64]],
    outside: dict[str, NDArray[np.bool_]],
    failing: tuple[int, ...],
    passed: bool,
) -> str:
    if not order:
        return "no frames"
    if not failing:
        low, high = (float(part) for part in np.quantile(numbers["std"], (0, 1)))
        return (
            f"nothing stands out in {len(order)} frames (residual {low:.3f} to {high:.3f} of the "
            "expected noise)"
        )
    causes = []
    for name, bad in outside.items():
        if bad.any():
            values = numbers[name]
            at = int(np.argmax(np.where(bad, np.abs(values - np.median(values)), -1)))
            causes.append(f"{_WORDS[name]} {values[at]:.4g} in frame {order[at]}")
    shown = ", ".join(spans(failing))
    chance = ", which can be chance" if passed else ""
    return f"{len(failing)} of {len(order)} frames stand out ({shown}){chance}: {'; '.join(causes)}"


def spans(failing: Iterable[int], most: int = 5) -> list[str]:
    """Write 3, 4, 5, 9 as 3-5 and 9, and at most so many of them."""
    found: list[list[int]] = []
    for number in failing:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    shown = [f"{a}" if a == b else f"{a}-{b}" for a, b in found[:most]]
    return [*shown, "..."] if len(found) > most else shown
