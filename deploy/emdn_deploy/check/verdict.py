"""The verdict on frames and stack, in plain words with the evidence."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
import polars as pl

from emdn_deploy.check.bootstrap import LEVEL, Limits, Thresholds, share
from emdn_deploy.check.heldout import moves
from emdn_deploy.check.quick import allowed
from emdn_deploy.check.residual import (
    ADDED,
    CHANGED,
    NOISE,
    REMOVED,
    RUNS,
    SINGLE,
    SMOOTHED,
    STATISTICS,
    Frame,
    Mask,
    Spot,
    measure,
    spots_of,
)
from emdn_models.metrics import HeldOut

PASSED, OUTSIDE = "within noise", "outside training"
MEANINGS = {
    SMOOTHED: "the residual holds a pattern of which the denoised frame holds too little",
    REMOVED: "at one place or line the denoised frame is darker than the raw one allows",
    ADDED: "at one place or line the denoised frame is brighter than the raw one allows, or it has "
    "a lattice that the raw one does not have",
    NOISE: "less was taken away than there is noise",
    CHANGED: "the mean is not what it was",
    OUTSIDE: "the noise is not what the models were trained on: nothing is vouched for",
}
"""What a microscopist should take a verdict for, in one line each."""

_MOST = 4  # pieces of evidence that are shown
_CLEAR = 5.0  # standard errors
_ERROR = 1.5  # squared error, over that of replicates, that is not worth one


@dataclass
class Found:
    """The statistics of one frame, of each the panel's where it is farthest."""

    number: int
    values: dict[str, float] = field(default_factory=dict)
    spots: dict[str, Spot] = field(default_factory=dict)
    added: set[str] = field(default_factory=set)  # of which the denoised frame has more
    noise: set[str] = field(default_factory=set)  # bands in which both hold noise
    peak: tuple[float, float] = (0.0, 0.0)


class Judge:
    """Measures the frames of a stack and judges them, as they pass."""

    def __init__(self, thresholds: Thresholds) -> None:
        self._own = thresholds
        self._rows: list[dict[str, Any]] = []
        self._waiting: list[Found] = []  # for the run that they belong to
        self._sums: list[Frame] = []

    def add(self, number: int, raw: Frame, denoised: Frame) -> None:
        """Measure the next frame."""
        own = self._own
        panels = [measure(raw[at], denoised[at], own.camera, own.good[at]) for at in own.panels]
        found = Found(number)
        for name in SINGLE:
            low, _, typical = own.limits[name]
            each = np.array([one.values[name] for one in panels])
            at = int((np.abs(each - typical) if isfinite(low) else each).argmax())
            found.values[name] = float(each[at])
            if name in panels[at].added:
                found.added.add(name)
            if name in panels[at].spots:
                found.spots[name] = self._moved(panels[at].spots[name], at)
            elif name.startswith("match") and own.is_noise(name, panels[at].strength):
                found.noise.add(name)
            elif name == "peak":
                found.peak = panels[at].peak
        self._waiting.append(found)
        if own.length:
            parts = [share(one.fields) for one in panels]
            earlier = self._sums or [np.zeros_like(part) for part in parts]
            self._sums = [a + b for a, b in zip(earlier, parts, strict=True)]
        if len(self._waiting) >= max(1, own.length):
            self._complete()

    def _moved(self, spot: Spot, panel: int) -> Spot:
        rows, columns = self._own.panels[panel]
        return spot._replace(y=spot.y + rows.start, x=spot.x + columns.start)

    def _complete(self) -> None:
        """Judge the frames that wait, with the average residual of all of them."""
        own, run = self._own, dict[str, Spot]()
        root = np.float32(np.sqrt(len(self._waiting)))
        for at, total in enumerate(self._sums):
            for name, spot in spots_of(total / root, "run_blob").items():
                if name not in run or spot.contrast > run[name].contrast:
                    run[name] = self._moved(spot, at)
        for found in self._waiting:
            found.spots |= run
            found.values |= {name: spot.contrast for name, spot in run.items()}
            found.added |= {name for name, spot in run.items() if spot.z < 0}
            far = max((spot.contrast / own.limits[n].high, n) for n, spot in found.spots.items())
            spot, (verdict, evidence) = found.spots[far[1]], verdict_of(found, own)
            row = {"frame": found.number, "verdict": verdict, "evidence": evidence}
            row |= {"y": spot.y, "x": spot.x, "scale_px": spot.scale, "z": spot.z}
            self._rows.append(row | {name: found.values[name] for name in own.limits})
        self._waiting.clear()
        self._sums = []

    def finish(self) -> pl.DataFrame:
        """Judge the frames of a last, shorter run, and return the table of `CheckResult`."""
        if self._waiting:
            self._complete()
        limits = self._own.limits.items()
        ends = {f"{name}_low": one.low for name, one in limits if isfinite(one.low)}
        ends |= {f"{name}_high": one.high for name, one in limits}
        return pl.DataFrame(self._rows).with_columns(**{n: pl.lit(one) for n, one in ends.items()})


def verdict_of(found: Found, own: Thresholds) -> tuple[str, str]:
    """Return the verdict on a frame, its kinds joined by ``; ``, and the evidence."""
    beyond = []
    for name in own.judged:
        value, limit = found.values[name], own.limits[name]
        if not limit.holds(value):
            bound = limit.high if value > limit.high else limit.low
            reach = (value - limit.typical) / (bound - limit.typical)
            beyond.append((reach, name, value, bound))
    kinds: dict[str, str] = {}
    evidence: list[str] = []
    for _, name, value, bound in sorted(beyond, reverse=True):
        # What stands out at one scale or in one band does so in others: the farthest will do.
        group, statistic = name.rstrip("0123456789_"), STATISTICS[name]
        if group in kinds:
            continue
        kinds[group], side = statistic.above, "at most"
        if value < bound:
            kinds[group], side = statistic.below, "at least"
        elif name in found.noise:
            kinds[group] = NOISE
        elif name in found.added:
            kinds[group] = ADDED
        words = f"{statistic.words}: {statistic.written(value)}, expected {side} "
        words += statistic.written(bound)
        if spot := found.spots.get(name):
            than = "brighter" if spot.z < 0 else "darker"
            words += f", denoised {than} than raw at row {spot.y}, column {spot.x}"
        if name == "peak":
            words += ", at ({:.3f}, {:.3f}) cycles/pixel".format(*found.peak)
        evidence.append(words)
    # More residual than there should be is of the kind that something else says it is.
    structure = (SMOOTHED, REMOVED, ADDED)
    vague = [one for one in ("std", "radial") if kinds.get(one) in structure]
    clear = [kind for one, kind in kinds.items() if one not in vague and kind in structure]
    kinds |= dict.fromkeys(vague, clear[0]) if clear else {}
    verdicts = list(dict.fromkeys(kinds.values())) + ([OUTSIDE] if own.outside else [])
    # What the noise has is said of the stack, once, where a frame has more to say.
    return "; ".join(verdicts) or PASSED, "; ".join(evidence[:_MOST] or own.outside)


def judge(table: pl.DataFrame, own: Thresholds, error: HeldOut | None = None) -> tuple[str, ...]:
    """Say why a stack fails; nothing if it does not.

    Of sound frames `LEVEL` may stand out each for itself, so that of a long stack some do. A stack
    fails for more of them than that, for more runs, and for a frame or run so far out that hardly
    any sound stack has one. Each of these three has `quick.SHARE` of false alarms. It also fails
    for noise that no model has seen, and for a squared error clearly above that of replicates.
    """
    found = []
    if own.outside:
        found.append("the noise is not what the models were trained on: nothing can be vouched for")
    names, run_rate = own.judged, LEVEL * len(RUNS) / len(own.limits)
    for what, judged, rate, step in (
        ("frames stand out, each for itself", set(names) - set(RUNS), LEVEL, 1),
        ("averages over a run of frames stand out", set(names) & set(RUNS), run_rate, own.length),
    ):
        flags = beyond(table, own.limits, judged)[:: max(1, step)]
        most = allowed(len(flags), rate)
        if flags.sum() > most:
            found.append(
                f"{flags.sum()} of {len(flags)} {what}: in 99 % of sound stacks at most {most} do"
            )
    farthest = own.farthest(table.height)
    for name in names:
        far = table.filter(beyond(table, farthest, [name]))
        if far.height:
            limit, statistic = farthest[name], STATISTICS[name]
            worst = int((far[name] - limit.typical).abs().arg_max() or 0)
            value, number = far[name][worst], far["frame"][worst]
            bound = limit.high if value > limit.high else limit.low
            where = f"{'the run of ' if name in RUNS else ''}frame {number}"
            more = f" (and {far.height - 1} more)" if far.height > 1 else ""
            found.append(
                f"{statistic.words}: {statistic.written(value)} in {where}{more}; in 99 % of sound "
                f"stacks no frame is beyond {statistic.written(bound)}"
            )
    if error and not moves(error) and isfinite(error.error.se):
        value, se = error.error.value, error.error.se
        if value - _CLEAR * se > _ERROR * own.error:
            found.append(
                f"the squared error against neighbouring frames, {value:.4g} ± {se:.2g}, is above "
                f"that of replicates, {own.error:.4g}"
            )
    return tuple(found)


def beyond(table: pl.DataFrame, limits: Mapping[str, Limits], names: Iterable[str]) -> Mask:
    """Say of every frame (N,) whether any of these statistics is outside of its range."""
    out = np.zeros(table.height, bool)
    for name in names:
        values = table[name].to_numpy()
        out |= (values < limits[name].low) | (values > limits[name].high)
    return out
