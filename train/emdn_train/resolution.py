"""What one denoised frame is worth in time: as many raw frames averaged, by three measures.

A vacancy hops in a simulated clip. One denoised frame, and k raw frames averaged in a moving
window, are asked the same: how large the squared error is, how far columns are found from
where they are, and at which frame the hop is first seen.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, inf, log

import numpy as np
import polars as pl

from emdn_deploy import Denoiser
from emdn_models import pretrained
from emdn_train.clips import Frame, Hop, hops
from emdn_train.ruler import SMOOTHINGS_NM, Ruler
from emdn_train.validate import LEVELS

_log = logging.getLogger(__name__)

ERROR, COLUMNS, HOP = MEASURES = ("squared error", "columns", "hop")
_SMOOTHED = {one: f"{COLUMNS}, {one:g} nm" for one in SMOOTHINGS_NM}
AVERAGE = "average"
# Frames on either side of the hop among which it is looked for: vacancies soon move on.
SEARCHED = 8
# Still frames on which a denoised frame's error is taken, counted back from the hop.
_STILL = (24, 20, 16)
_AROUND = 4

Denoise = Callable[[Frame], Frame]


@dataclass(frozen=True)
class ResolutionConfig:
    """What to measure.

    Attributes
    ----------
    models
        Shipped names or paths of ONNX files; None for the default.
    clips
        Hops, each in a movie of its own.
    levels
        Signal to noise per pixel.
    longest
        Largest number of frames to average, a power of two.
    size
        Side of a frame in pixels.
    threads
        Of a model, on the CPU; None takes all that the process may use.
    """

    models: tuple[str, ...] | None = None
    clips: int = 12
    levels: tuple[float, ...] = LEVELS
    longest: int = 128
    size: int = 128
    threads: int | None = None


def measure(config: ResolutionConfig) -> pl.DataFrame:
    """Simulate clips and compare the models with averages on them; see `compare`."""
    names = config.models or (pretrained.default_model(),)
    denoisers = {name: Denoiser(name, threads=config.threads).denoise for name in names}
    return compare(hops(config.clips, config.size), denoisers, config.levels, config.longest)


def compare(
    clips: Iterable[Hop],
    denoisers: Mapping[str, Denoise],
    levels: Sequence[float] = LEVELS,
    longest: int = 128,
) -> pl.DataFrame:
    """Measure one denoised frame, and 1, 2, 4, ... raw frames averaged, on the same clips.

    Parameters
    ----------
    clips
        Scenes before and after a hop.
    denoisers
        Name to a function from (N, H, W) to the same, frames in the order of time.
    levels
        Signal to noise per pixel to record at.
    longest
        Largest number of frames to average.

    Returns
    -------
    DataFrame
        A row a clip, level and method, which is ``average`` or the name of a denoiser:
        ``frames`` averaged (1 of a denoiser) and, each a mean square, ``squared error`` in
        units of the raw frame's, ``columns`` in pm^2 after each smoothing, and ``hop`` in
        frames^2.
    """
    rows = []
    for number, hop in enumerate(clips):
        for place, level in enumerate(levels):
            raw = hop.recorded(level, longest + max(_STILL) + _AROUND, 1000 * number + place)
            ruler = Ruler.of(hop, level)
            known = {"clip": number, "level": level}
            for k in (2**power for power in range(longest.bit_length())):
                rows.append(known | {"method": AVERAGE, "frames": k} | _averages(raw, k, ruler))
            for name, denoise in denoisers.items():
                rows.append(known | {"method": name, "frames": 1} | _denoised(raw, denoise, ruler))
        _log.info("clip %d measured", number + 1)
    return pl.DataFrame(rows)


def worths(rows: pl.DataFrame) -> pl.DataFrame:
    """Say how many raw frames one denoised frame is worth: a row a model and level.

    For each measure, roots of means over the clips: ``raw`` of one raw frame, ``best`` of the
    best average, ``denoised``; and ``worth``, see `worth`. Columns are taken after the
    smoothing that is best for the method, the level and the number of frames.
    """
    means = rows.group_by("method", "level", "frames", maintain_order=True).agg(
        pl.col(ERROR, HOP, *_SMOOTHED.values()).mean().sqrt()
    )
    means = means.with_columns(pl.min_horizontal(_SMOOTHED.values()).alias(COLUMNS))
    averages = means.filter(pl.col("method") == AVERAGE)
    found = []
    for own in means.filter(pl.col("method") != AVERAGE).iter_rows(named=True):
        same = averages.filter(pl.col("level") == own["level"])
        row = {"model": own["method"], "level": own["level"]}
        for name in MEASURES:
            curve = dict(zip(same["frames"], same[name], strict=True))
            row |= {
                f"{name}, raw": curve[1],
                f"{name}, best": min(curve.values()),
                f"{name}, denoised": own[name],
                f"{name}, worth": worth(curve, own[name]),
            }
        found.append(row)
    return pl.DataFrame(found)


def worth(curve: Mapping[int, float], error: float) -> float:
    """Return how many averaged frames have this error, between two numbers by a power law.

    Parameters
    ----------
    curve
        Number of frames to error.
    error
        Of the one frame.

    Returns
    -------
    At least 1, also for what is worse than the raw frame. Infinite if no average is as
    good: there are too few frames, or long windows blur what moves.
    """
    ordered = sorted(curve.items())
    if error >= ordered[0][1]:
        return float(ordered[0][0])
    for (few, above), (many, below) in pairwise(ordered):
        if below <= error < above:
            if error <= 0 or below <= 0:
                return float(many)
            return exp(log(few) + log(above / error) / log(above / below) * log(many / few))
    return inf


def table(rows: pl.DataFrame) -> pl.DataFrame:
    """Round `worths` for reading: raw frames, and what they and the denoised frame err by."""
    longest = max(rows["frames"].to_list())
    found = worths(rows)

    def frames(name: str) -> pl.Series:
        values = found[f"{name}, worth"]
        texts = ["≤ 1" if v <= 1 else f"> {longest}" if v == inf else f"{v:.2g}" for v in values]
        return pl.Series(f"{name}, worth", texts)

    return found.select(
        "model",
        "level",
        frames(ERROR),
        frames(COLUMNS),
        *(pl.col(f"{COLUMNS}, {one}").round(1).alias(f"{one}, pm") for one in ("raw", "denoised")),
        frames(HOP),
        *(
            pl.col(f"{HOP}, {one}").round(2).alias(f"{one}, frames")
            for one in ("raw", "best", "denoised")
        ),
    )


def moving_average(frames: Frame, k: int) -> Frame:
    """Average every k frames in a row of a stack (N, H, W): (N - k + 1, H, W)."""
    total = np.cumsum(np.pad(frames.astype(np.float64), ((1, 0), (0, 0), (0, 0))), 0)
    return np.asarray((total[k:] - total[:-k]) / k, np.float32)


def _averages(raw: Frame, k: int, ruler: Ruler) -> dict[str, float]:
    hop = len(raw) // 2
    # Up to three averages that share no frame; a window across the hop is for the hop alone.
    still = [raw[hop - (i + 1) * k : hop - i * k].mean(0) for i in range(3) if (i + 1) * k <= hop]
    first = hop - SEARCHED - k // 2
    windows = moving_average(raw[first : hop + SEARCHED + k // 2], k)
    # A window stands for its middle, which lies between two frames where k is even.
    late = ruler.seen_after(windows) - SEARCHED - (0.0 if k == 1 else 0.5)
    return _errors(still, late, ruler)


def _denoised(raw: Frame, denoise: Denoise, ruler: Ruler) -> dict[str, float]:
    hop, before = len(raw) // 2, max(_STILL) + _AROUND
    frames = denoise(raw[hop - before : hop + SEARCHED + _AROUND])
    seen = ruler.seen_after(frames[before - SEARCHED : before + SEARCHED])
    return _errors([frames[before - back] for back in _STILL], seen - SEARCHED, ruler)


def _errors(still: Sequence[Frame], late: float, ruler: Ruler) -> dict[str, float]:
    """Average the measures of still frames, and square by how many frames the hop is off."""
    columns = np.mean([ruler.column_errors(frame) for frame in still], 0).tolist()
    return {
        ERROR: float(np.mean([ruler.squared_error(frame) for frame in still])),
        **dict(zip(_SMOOTHED.values(), columns, strict=True)),
        HOP: float(late**2),
    }
