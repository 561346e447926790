"""The quick check of every run of ``denoise``: four numbers a frame, nothing denoised again.

Limits do not come from the stack's own replicates here but from simulated movies, wide enough for
every shipped model, and from the other frames of the stack. What passes can still fail ``check``.
What a pass does not say is the smallest defect that would have been seen: an atom that the denoiser
fills in where there is none leaves a spot of an atom's shape in the residual.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import pi, sqrt
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize, spatial, special

SHARE = 0.01  # of sound stacks that may fail, for each reason
BOX = 16  # pixels, the side of the boxes whose mean residual is looked at
_OUTLIER = 6.0  # robust standard deviations
_FAR = 2.0  # times as far out as that a single frame fails the stack
_RATE = 0.01  # of sound frames that may stand out
_LEAST = 8  # frames that tell an outlier
_DARK = 0.01  # lowest variance, relative to the mean's

POWER = 0.9  # share of the defects of the smallest size that are found
SIDE = 256  # pixels of a frame that an atom's contrast is measured on
_FEWEST = 8  # spots that tell what an atom looks like
# Share of an atom's norm that nine in ten vacancies in simulated graphene show or exceed: their
# neighbours move, and rings about an atom do not count.
_SURE = 0.75
_MOST = 1000.0  # per cent: what is a tenth of what can be seen may be noise, and is no atom
WIDTH = 4.0  # pixels, of a spot where no atoms show

Frames = NDArray[np.float32]


class Bounds(NamedTuple):
    """What a number keeps to in sound results, between 0.1 and 1.5 in signal to noise per pixel."""

    low: float
    high: float
    tolerance: float  # deviation from the median frame that never counts
    chance: float  # by how much small frames may go beyond, in units of 1 / sqrt(pixels)
    words: str


BOUNDS = {
    "ratio": Bounds(0.97, 1.03, 0.005, 0.0, "the model's mean out / mean in"),
    "std": Bounds(0.94, 1.05, 0.01, 4 / 2**0.5, "residual / expected noise"),
    "lag": Bounds(
        -0.15, 0.08, 0.02, 4 / 2**0.5, "correlation of neighbouring pixels of the residual"
    ),
    "box": Bounds(
        -5.0, 5.0, 1.5, 0.0,
        f"largest mean residual of a {BOX} x {BOX} box, in standard deviations",
    ),
}  # fmt: skip


def allowed(count: int, rate: float) -> int:
    """Return what of ``count`` stand out at most, but for a share of chances (binomial)."""
    return int(np.argmax(special.bdtrc(np.arange(count + 1), count, rate) < SHARE))


class Atom(NamedTuple):
    """An atom's picture, taken as a Gaussian."""

    norm: float  # root of the sum of the squares of its pixels, intensity units
    width: float  # standard deviation, pixels


class Smallest(NamedTuple):
    """The smallest defect that is found in 9 cases of 10."""

    # Of an atom's contrast; None where no atoms show, or nothing is found at any size.
    percent: float | None
    run_percent: float | None  # of one that stays for a run of frames; None without runs
    words: str  # what a pass does not say, for people

    @classmethod
    def of(
        cls, norm: float, atom: Atom | None, mean: float, run: float | None = None, length: int = 0
    ) -> "Smallest":
        """Compare the norm of the faintest spot that is seen, intensity units, with an atom's.

        ``mean`` is that of the frame, above the offset; ``run`` the norm of a spot that is seen if
        it stays for ``length`` frames.
        """
        percent = 100 * norm / atom.norm if atom else _MOST
        if atom is None or percent >= _MOST:
            width = atom.width if atom else WIDTH
            height = 100 * norm / (sqrt(pi) * width) / max(abs(mean), float(np.finfo("f4").tiny))
            words = f"no atoms show; a false spot of {width:.2g} px (sigma) is noticed above "
            return cls(None, None, f"{words}{rounded(height)} % of the mean intensity")
        words = f"a filled atom is noticed above {rounded(percent)} % of an atom's contrast"
        together = None if run is None else 100 * run / atom.norm
        if together is not None and length > 1:
            words += f" in one frame, {rounded(together)} % if it stays for {length} frames"
        if percent > 100:
            words += ": single vacancies can be filled unseen at this dose"
        return cls(percent, together, words)


@dataclass(frozen=True)
class QuickResult:
    """What the four numbers say."""

    frames: tuple[int, ...]
    numbers: dict[str, NDArray[np.float64]]  # by name, (N,) each
    failing: tuple[int, ...]  # frames that stand out
    passed: bool  # whether no frame is far out, nor more stand out than in sound stacks
    line: str  # for people
    _quick: "Quick"

    @cached_property
    def smallest(self) -> Smallest | None:
        """Return the smallest defect that is seen; None where nothing was taken in.

        It takes as long as a frame.
        """
        return self._quick.smallest()


@dataclass
class Quick:
    """Takes in a stack block by block."""

    gain: float  # variance of a pixel over its mean
    offset: float  # intensity of a pixel without electrons
    bad: NDArray[np.bool_] | None = None  # (H, W), pixels that were filled in; None for none
    _rows: dict[int, tuple[float, ...]] = field(default_factory=dict)
    _pixels: int = 1
    _sample: tuple[int, Frames, float, float] | None = None
    _lock: Lock = field(default_factory=Lock)

    def add(
        self,
        start: int,
        raw: Frames,
        denoised: Frames,
        shifts: NDArray[np.float64] | None = None,
    ) -> None:
        """Measure frames (k, H, W), the first of which is number ``start``.

        ``shifts`` (k,) is what was added to each for the sake of its mean: the ratio is that
        without.
        """
        self._pixels = raw[0].size
        with self._lock:  # blocks come from several threads
            if self._sample is None or start < self._sample[0]:
                self._sample = start, *self._sampled(raw[0], denoised[0])
        added = np.zeros(len(raw)) if shifts is None else shifts
        for number, one in enumerate(zip(raw, denoised, added, strict=True), start):
            self._rows[number] = self._measure(*one)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what is known of the frames, for `restore`."""
        rows = [(number, *row) for number, row in list(self._rows.items())]
        known: dict[str, NDArray[Any]] = {
            "quick": np.array(rows, np.float64).reshape(-1, 1 + len(BOUNDS))
        }
        if self._sample is not None:
            number, part, noise, spread = self._sample
            known |= {"sample": part, "sample_facts": np.array([number, noise, spread])}
        return known

    def restore(self, state: Mapping[str, NDArray[Any]], size: int) -> None:
        """Take up frames of ``size`` pixels that an earlier run has measured."""
        self._pixels = size
        self._rows |= {int(number): tuple(row) for number, *row in state["quick"].tolist()}
        if "sample" in state:
            number, noise, spread = state["sample_facts"].tolist()
            self._sample = int(number), state["sample"], noise, spread

    def _sampled(self, raw: Frames, denoised: Frames) -> tuple[Frames, float, float]:
        """Return the middle of a frame, the noise of its pixels and the scatter of its boxes."""
        at = middle(denoised.shape)
        part = denoised[at].copy()
        usual, noise = (
            max(self.gain * (level - self.offset), 1e-6 * self.gain**2) ** 0.5
            for level in (float(part.mean()), float(np.quantile(part, POWER)))
        )
        boxes = _boxes((raw[at] - part) / np.float32(usual)) / BOX
        return part, noise, float(boxes.std()) if boxes.size > 1 else 1.0

    def _measure(self, raw: Frames, denoised: Frames, shift: float) -> tuple[float, ...]:
        unit = np.float32(self.gain)  # in electrons: float32 does not hold every unit's square
        after = (denoised - np.float32(self.offset)) / unit
        level = float(after.mean())
        given = float(raw.mean(dtype=np.float64) - self.offset) / self.gain
        least = np.float32(max(_DARK * level, 1e-30))
        scaled = (raw - denoised) / unit / np.sqrt(np.maximum(after, least))
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
        box = float(np.abs(_boxes(scaled) / BOX - mean * BOX).max(initial=0.0))
        return ratio, max(0.0, square) ** 0.5, lag, box

    def result(self) -> QuickResult:
        """Judge all frames that were taken in, in the order of their numbers."""
        order = sorted(self._rows)
        table = np.array([self._rows[number] for number in order]).reshape(-1, len(BOUNDS))
        numbers = dict(zip(BOUNDS, table.T, strict=True))
        outside = {name: self._outside(name, one) for name, one in numbers.items()}
        bad = np.any(list(outside.values()), axis=0)
        far = any(self._outside(name, one, _FAR).any() for name, one in numbers.items())
        failing = tuple(number for number, fails in zip(order, bad, strict=True) if fails)
        most = allowed(len(order), _RATE)
        passed = not far and len(failing) <= most
        word, count = "PASS" if passed else "FAIL", len(order)
        line = f"{word}: {len(failing)} of {count} frames flagged "
        if not order:
            line = "no frames"
        elif not failing:
            low, high = numbers["std"].min(), numbers["std"].max()
            line += f"(residual {low:.3f} to {high:.3f} of the expected noise)"
        else:
            causes = []
            for name in (name for name in BOUNDS if outside[name].any()):
                values = numbers[name]
                away = np.where(outside[name], np.abs(values - np.median(values)), -1)
                at = int(np.argmax(away))
                causes.append(f"{BOUNDS[name].words} {values[at]:.4g} in frame {order[at]}")
            line += f"({', '.join(spans(failing))}), up to {most} expected by chance: "
            line += "; ".join(causes)
        return QuickResult(tuple(order), numbers, failing, passed, line, self)

    def _outside(
        self, name: str, values: NDArray[np.float64], times: float = 1.0
    ) -> NDArray[np.bool_]:
        """Say which frames are ``times`` as far out as they may be."""
        own = BOUNDS[name]
        centre, half = (own.high + own.low) / 2, (own.high - own.low) / 2
        bad = ~(np.abs(values - centre) <= times * (half + own.chance / self._pixels**0.5))
        if len(values) >= _LEAST:
            away = values - np.median(values)
            spread = 1.4826 * float(np.median(np.abs(away)))
            # A box's residual cannot be too small.
            size = away if name == "box" else np.abs(away)
            bad |= size > times * (_OUTLIER * spread + own.tolerance)
        return np.asarray(bad)

    def smallest(self) -> Smallest | None:
        """Find the smallest defect that shows in the mean residual of boxes."""
        if self._sample is None:
            return None
        _, part, noise, spread = self._sample
        atom = atom_of(part)
        width = atom.width if atom else WIDTH
        # The share of a spot that is in the box with most of it, wherever its middle is.
        edges = (np.arange(8) + 0.5) / 16 * BOX
        inside = special.ndtr((BOX - edges) / width) - special.ndtr(-edges / width)
        signal = np.outer(inside, inside).ravel() * 2 * sqrt(pi) * width / BOX

        def missed(norm: float) -> float:
            # The noise expected is that of the spot as well, which so hides a part of itself.
            height = norm * noise / (sqrt(pi) * width)
            seen = norm / sqrt(1 + abs(self.gain) * height / 2 / noise**2) * signal
            chance = special.ndtr((BOUNDS["box"].high - seen) / max(spread, 0.1))
            return float(chance.mean()) - (1 - POWER)

        norm = optimize.brentq(missed, 0.0, 1e6) if missed(1e6) < 0 else 1e6
        return Smallest.of(norm * noise, atom, float(part.mean()) - self.offset)


def _boxes(scaled: Frames) -> Frames:
    """Sum (H, W) over boxes."""
    height, width = (length // BOX for length in scaled.shape)
    cut = scaled[: height * BOX, : width * BOX]
    # Rows first: adding whole rows is what a processor does fastest.
    rows = cut.reshape(height, BOX, width * BOX).sum(axis=1)
    return np.asarray(rows.reshape(height, width, BOX).sum(axis=2))


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


def atom_of(frame: Frames) -> Atom | None:
    """Measure what one atom adds to a denoised frame (H, W); None where none shows.

    Where a frame is the sum of equal pictures of scattered atoms, its variance is the square
    of a picture's norm times the atoms a pixel (Campbell, Proc. Camb. Phil. Soc. 15, 1909,
    117): so neighbours that overlap do not matter. Atoms are counted as spots, bright or dark,
    whichever give more. A spot with six neighbours is taken for two atoms, since the two
    sublattices of a honeycomb are rarely told apart; where it is one, an atom is sqrt(2) times
    stronger than said here.
    `_SURE` of the norm is returned.
    """
    part = frame[middle(frame.shape)].astype(np.float64)
    if min(part.shape) < 32:
        return None
    reach = 0.1 * min(part.shape)
    for _ in range(2):  # the second time without what varies more slowly than the lattice
        detail = part - ndimage.gaussian_filter(part, reach)
        detail = np.clip(detail, *np.quantile(detail, (0.005, 0.995)))  # a heavy atom is not usual
        slopes = sum(float(one.var()) for one in np.gradient(detail))
        if not slopes > 1e-12 * float(np.square(part).mean()):
            return None
        width = sqrt(float(detail.var()) / slopes)
        smooth = ndimage.gaussian_filter(detail, max(1.0, width / 3))
        bright, dark = (_area(field, max(1, round(width))) for field in (smooth, -smooth))
        area, spacing = min(bright[0], dark[0]), max(bright[1], dark[1])
        if not (np.isfinite(area) and spacing < min(part.shape) / 4):
            return None
        reach = 0.6 * spacing
    edge = int(reach)
    variance = float(detail[edge:-edge, edge:-edge].var())
    return Atom(_SURE * sqrt(variance * area), width)


def middle(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the middle of a frame, at most `SIDE` pixels a side."""
    return tuple(slice((n - min(n, SIDE)) // 2, (n + min(n, SIDE)) // 2) for n in shape)


def _area(field: NDArray[np.float64], edge: int) -> tuple[float, float]:
    """Return the pixels that an atom takes, and the distance of spots; infinite and 0 for none.

    ``edge`` is how far from the border spots are looked for, and what they are above, pixels.
    """
    highest = ndimage.maximum_filter(field, 2 * edge + 1) == field
    highest &= field > 0.3 * field.std()
    spots = np.argwhere(highest[edge:-edge, edge:-edge]) + edge
    if len(spots) < _FEWEST:
        return np.inf, 0.0
    tree = spatial.KDTree(spots)
    spacing = float(np.median(tree.query(spots, 2)[0][:, 1]))
    inside = ((spots >= spacing) & (spots < np.array(field.shape) - spacing)).all(axis=1)
    around = tree.query_ball_point(spots[inside], 1.35 * spacing, return_length=True)
    atoms = 2 if len(around) and np.median(around) > 6 else 1  # with itself
    return float(np.prod(np.array(field.shape) - 2 * edge)) / len(spots) / atoms, spacing


def rounded(percent: float) -> str:
    """Write a number with two digits that count."""
    return f"{float(f'{percent:.2g}'):g}"
