"""The verdict: frames and stack against the thresholds, in plain words with the evidence."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from emdn_deploy.check.heldout import Correlations, HeldOutError
from emdn_deploy.check.quick import allowed
from emdn_deploy.check.residual_tests import (
    STATISTICS,
    Floats,
    Frame,
    Mask,
    Spot,
    measure,
    share,
    spots_of,
)
from emdn_deploy.check.thresholds import Limits, Thresholds, named, student
from emdn_deploy.model_file import ModelInfo
from emdn_models.metrics import Linearity

MEANINGS = {
    "over-smoothed": "the residual holds a pattern of which the denoised frame holds too little",
    "structure removed": "at one place or line the denoised frame is darker than the raw one "
    "allows",
    "structure added": "at one place or line the denoised frame is brighter than the raw one "
    "allows, or it has a lattice that the raw one does not have",
    "noise left in": "less was taken away than there is noise",
    "intensity changed": "the mean is not what it was",
    "outside training": "the noise is not what the models were trained on: nothing is vouched for",
}
"""What a microscopist should take a verdict for, in one line each."""

PASSED = "within noise"
_STRUCTURE = ("over-smoothed", "structure removed", "structure added")
_MOST = 4  # pieces of evidence that are shown
_CHUNK = 512  # rows

_CLEAR = 5.0  # standard errors
_PAIRS = 8  # fewer do not tell the scatter of a correlation
_SLOPE = 0.05  # change of contrast at large scales that is not worth a finding
_TELLING = 0.2  # by which the slope of replicates may be off 1
_ERROR = 1.5  # squared error, over that of replicates, that is not worth one


class Finding(NamedTuple):
    """A statistic beyond its limits."""

    test: str  # its name, without the scale of blobs
    verdict: str
    excess: float
    words: str


def findings(
    values: Mapping[str, float],
    limits: Mapping[str, Limits],
    signs: Mapping[str, float],
    spots: Mapping[str, Spot],
) -> list[Finding]:
    """Return what lies outside of its limits, the farthest first.

    Parameters
    ----------
    values
        Statistics by name.
    signs
        ``columns_added``, ``rows_added``, ``peak_added``, ``peak_y``, ``peak_x`` and
        ``match_removed_noise``.
    spots
        The places of ``blob_2`` and so on.
    """
    beyond = []
    for name, value in values.items():
        limit = limits[name]
        if not limit.holds(value):
            bound = limit.high if value > limit.high else limit.low
            # Where replicates do not scatter at all, whatever is beyond is far out.
            reach = bound - limit.typical
            excess = (value - limit.typical) / reach if reach else inf
            beyond.append((excess, name, value, bound))
    beyond.sort(reverse=True)
    # A blob is one thing at every scale: the scale that shows it best says what it is.
    places = [spots[name] for _, name, *_ in beyond if name in spots]

    def verdict_of(name: str, above: bool) -> str:
        if not above:
            return STATISTICS[name].below
        if signs.get(f"{name}_noise"):
            return "noise left in"
        added = places[0].z < 0 if name in spots else signs.get(f"{name}_added")
        return "structure added" if added else STATISTICS[name].above

    def words_of(name: str, value: float, bound: float) -> str:
        own, side = STATISTICS[name], "at most" if value > bound else "at least"
        text = f"{own.words}: {own.written(value)}, expected {side} {own.written(bound)}"
        if name in spots:
            spot = spots[name]
            than = "brighter" if spot.z < 0 else "darker"
            return f"{text}, denoised {than} than raw at row {spot.y}, column {spot.x}"
        if name == "peak":
            return f"{text}, at ({signs['peak_y']:.3f}, {signs['peak_x']:.3f}) cycles/pixel"
        return text

    # More residual than there should be is of the kind that something else says it is.
    vague = {name for _, name, value, bound in beyond if value > bound and STATISTICS[name].excess}
    verdicts = {name: verdict_of(name, value > bound) for _, name, value, bound in beyond}
    clear = [verdict for name, verdict in verdicts.items() if name not in vague]
    cause = next((one for one in clear if one in _STRUCTURE), None)
    return [
        Finding(
            name.split("blob_")[0] + "blob" if name in spots else name,
            cause if cause and name in vague else verdicts[name],
            excess, words_of(name, value, bound),
        )
        for excess, name, value, bound in beyond
    ]  # fmt: skip


def summed_up(
    found: Sequence[Finding], outside: Sequence[str], correlated: bool
) -> tuple[str, str]:
    """Return the verdict, its kinds joined by ``; ``, and the evidence.

    Parameters
    ----------
    outside
        What the noise has that the models have not seen; empty for nothing.
    correlated
        Whether the noise is correlated from pixel to pixel: residuals are then not what
        the tests expect, and only the intensities are judged.
    """
    if correlated:
        found = [one for one in found if one.verdict == "intensity changed"]
    verdicts = list(dict.fromkeys(one.verdict for one in found))
    if outside:
        verdicts.append("outside training")
    # What stands out at one scale does so at others: the one that shows it best will do.
    best: dict[str, str] = {}
    for one in found:
        best.setdefault(one.test, one.words)
    # What the noise has is said of the stack, once, where a frame has more to say.
    evidence = list(best.values())[:_MOST] or list(outside)
    return "; ".join(verdicts) or PASSED, "; ".join(evidence)


class _Frame(NamedTuple):
    """One frame, until the run that it belongs to is complete."""

    number: int
    values: dict[str, float]
    signs: dict[str, float]
    spots: dict[str, Spot]


@dataclass
class Rows:
    """Collects the table of frames, as they pass."""

    thresholds: Thresholds
    _tables: list[pl.DataFrame] = field(default_factory=list)
    _done: list[dict[str, Any]] = field(default_factory=list)
    _waiting: list[_Frame] = field(default_factory=list)
    _sums: list[Frame] = field(default_factory=list)
    _power: list[Floats] = field(default_factory=list)
    _frames: int = 0

    def add(self, number: int, raw: Frame, denoised: Frame) -> None:
        """Measure the next frame."""
        limits, panels = self.thresholds.limits, self.thresholds.panels
        camera, good = self.thresholds.camera, self.thresholds.good
        found = [measure(raw[at], denoised[at], camera, good[at]) for at in panels]
        power = np.mean([one.spectrum for one in found], axis=0)
        self._power = [power + sum(self._power)]
        self._frames += 1
        each = [named(one, self.thresholds.references) for one in found]
        values: dict[str, float] = {}
        signs: dict[str, float] = {}
        for name in each[0].keys() & limits.keys():
            # Of each statistic the panel counts that is farthest from the typical value.
            limit, of_panels = limits[name], np.array([one[name] for one in each])
            away = np.abs(of_panels - limit.typical) if np.isfinite(limit.low) else of_panels
            at = int(away.argmax())
            values[name] = each[at][name]
            also = found[at].simple | {"match_removed_noise": each[at]["match_noise"]}
            signs |= {sign: also[sign] for sign in also if sign.startswith(f"{name}_")}
        spots = self._places([one.spots for one in found], "blob")
        self._waiting.append(_Frame(number, values, signs, spots))
        length = self.thresholds.bootstrap.length
        if length:
            parts = [share(one.fields) for one in found]
            earlier = self._sums or [np.zeros_like(part) for part in parts]
            self._sums = [a + b for a, b in zip(earlier, parts, strict=True)]
        if len(self._waiting) >= max(1, length):
            self._complete()

    def finish(self) -> pl.DataFrame:
        """Judge the frames of a last, shorter run, and return the table."""
        if self._waiting:
            self._complete()
        self._pack()
        columns: list[pl.Expr] = []
        for name, limit in self.thresholds.limits.items():
            low = [pl.lit(limit.low).alias(f"{name}_low")] if np.isfinite(limit.low) else []
            columns += [pl.col(name), *low, pl.lit(limit.high).alias(f"{name}_high")]
        table = pl.concat(self._tables)
        others = [pl.col(name) for name in table.columns if name not in self.thresholds.limits]
        return table.select(*others, *columns)

    def _pack(self) -> None:
        """Move rows into a table, where they take a tenth of the memory."""
        place = {"y": pl.Int64, "x": pl.Int64, "scale_px": pl.Float64, "z": pl.Float64}
        kinds: dict[str, Any] = {"frame": pl.Int64, "verdict": pl.String, "evidence": pl.String}
        kinds |= place | {f"run_{name}": kind for name, kind in place.items()}
        kinds |= dict.fromkeys(self.thresholds.limits, pl.Float64)
        self._tables.append(pl.DataFrame(self._done, schema=kinds))
        self._done.clear()

    @property
    def mean_power(self) -> Floats:
        """Return the residual's mean power on rings."""
        return np.asarray(self._power[0] / self._frames)

    def _places(self, panels: list[tuple[Spot, ...]], prefix: str) -> dict[str, Spot]:
        places = {}
        for scales in zip(*panels, strict=True):
            at = int(np.argmax([one.contrast for one in scales]))
            spot, (rows, columns) = scales[at], self.thresholds.panels[at]
            places[f"{prefix}_{spot.scale:g}"] = Spot(
                spot.y + rows.start, spot.x + columns.start, spot.scale, spot.z, spot.contrast
            )
        return places

    def _complete(self) -> None:
        """Judge the frames that wait, with the average residual of all of them."""
        own = self.thresholds
        run: dict[str, Spot] = {}
        if self._sums:
            root = np.float32(np.sqrt(len(self._waiting)))
            run = self._places([spots_of(one / root) for one in self._sums], "run_blob")
        for frame in self._waiting:
            values = frame.values | {name: spot.contrast for name, spot in run.items()}
            found = findings(values, own.limits, frame.signs, frame.spots | run)
            verdict, evidence = summed_up(found, own.outside, own.noise.correlated)
            row: dict[str, Any] = {"frame": frame.number, "verdict": verdict, "evidence": evidence}
            row |= values
            for part, places in (("", frame.spots), ("run_", run)):
                if places:
                    name = max(places, key=lambda one: places[one].contrast / own.limits[one].high)
                    spot = places[name]
                    row |= {f"{part}y": spot.y, f"{part}x": spot.x}
                    row |= {f"{part}scale_px": spot.scale, f"{part}z": spot.z}
            self._done.append(row)
        self._waiting.clear()
        self._sums = []
        if len(self._done) >= _CHUNK:
            self._pack()


def judge(table: pl.DataFrame, own: Thresholds) -> tuple[str, ...]:
    """Say why the residuals of a stack fail it; nothing if they do not.

    Of sound frames `thresholds.LEVEL` may stand out each for itself, so that of a long stack some
    do. A stack fails for more of them than that, for more runs, and for a frame or run so far out
    that hardly any sound stack has one. Each of these three has `quick.SHARE` of false alarms.
    """
    found = []
    if own.outside:
        found.append("the noise is not what the models were trained on: nothing can be vouched for")
    names = ["ratio"] if own.noise.correlated else list(own.limits)
    together = [name for name in names if name.startswith("run_")]
    alone = [name for name in names if name not in together]
    length = max(1, own.bootstrap.length)
    for what, judged, rate, flags in (
        ("frames stand out, each for itself", alone, own.rate, beyond(table, own.limits, alone)),
        ("averages over a run of frames stand out", together, own.run_rate,
         beyond(table, own.limits, together)[::length]),
    ):  # fmt: skip
        most = allowed(len(flags), rate)
        if judged and flags.sum() > most:
            found.append(
                f"{flags.sum()} of {len(flags)} {what}: in 99 % of sound stacks at most {most} do"
            )
    farthest = own.farthest(table.height)
    for name in names:
        limit, statistic = farthest[name], STATISTICS[name]
        far = table.filter(beyond(table, farthest, [name]))
        if not far.height:
            continue
        worst = int((far[name] - limit.typical).abs().arg_max() or 0)
        value, number = far[name][worst], far["frame"][worst]
        bound = limit.high if value > limit.high else limit.low
        where = f"the run of frame {number}" if name in together else f"frame {number}"
        more = f" (and {far.height - 1} more)" if far.height > 1 else ""
        found.append(
            f"{statistic.words}: {statistic.written(value)} in {where}{more}; in 99 % of sound "
            f"stacks no frame is beyond {statistic.written(bound)}"
        )
    return tuple(found)


def beyond(table: pl.DataFrame, limits: Mapping[str, Limits], names: Iterable[str]) -> Mask:
    """Say of every frame (N,) whether any of these statistics is outside of its range."""
    out = np.zeros(table.height, bool)
    for name in names:
        values = table[name].to_numpy()
        out |= (values < limits[name].low) | (values > limits[name].high)
    return out


def judge_neighbours(
    error: HeldOutError | None,
    curves: Correlations | None,
    line: Linearity | None,
    expected: Linearity | None,
) -> tuple[str, ...]:
    """Say what neighbouring frames and local means show to be wrong with a stack, beyond chance.

    Parameters
    ----------
    line, expected
        Local means out against those in, of the stack and of the bootstrap's replicates.
    """
    found = []
    if error and not error.moves and np.isfinite(error.error.se):
        least = error.error.value - _CLEAR * error.error.se
        if least > _ERROR * error.expected:
            found.append(
                f"the squared error against neighbouring frames, {error.error.value:.4g} ± "
                f"{error.error.se:.2g}, is above that of replicates, {error.expected:.4g}"
            )
    if curves and curves.pairs >= _PAIRS:
        chance = np.hypot(curves.raw_se, curves.denoised_se)
        worse = curves.denoised < curves.raw - student(_CLEAR, curves.pairs - 1) * chance
        if worse.any():
            at = ", ".join(f"{one:.3f}" for one in curves.frequency[worse][:4])
            found.append(
                "denoised frames agree less with the neighbouring raw frame than raw ones do "
                f"(FRC) at {at} cycles/pixel"
            )
    if line and expected and tells(expected):
        chance = np.hypot(line.slope_error, expected.slope_error)
        low, high = min(1.0, expected.slope), max(1.0, expected.slope)
        # Clearly beyond both 1 and the slope of replicates.
        if max(low - line.slope, line.slope - high) > _SLOPE + _CLEAR * chance:
            found.append(
                f"local means come out {line.slope:.3f} ± {line.slope_error:.2g} times as far from "
                f"each other as they went in, those of replicates {expected.slope:.3f} ± "
                f"{expected.slope_error:.2g}"
            )
    return tuple(found)


def tells(expected: Linearity | None) -> bool:
    """Say whether local means differ by structure, which replicates keep, and not by noise."""
    return expected is not None and abs(expected.slope - 1) < _TELLING


def notes(
    own: Thresholds, error: HeldOutError | None, facts: Mapping[str, Any], info: ModelInfo
) -> tuple[str, ...]:
    """Say what was assumed and what cannot be said.

    Parameters
    ----------
    facts
        The record of the denoised file.
    info
        Of the model that made the replicates.
    """
    noise, said = own.noise, []
    if error is None:
        said.append(
            "one frame: no squared error, no FRC and no average over neighbours can be had, and "
            "the size of the noise is told from structure by assumption"
        )
    elif error.moves:
        said.append(
            "neighbouring frames differ by more than noise, as the specimen moves or they show "
            "different areas: squared error and FRC hold that, and runs of frames average over it"
        )
    elif not noise.moves:
        said.append(f"faint blobs are looked for in runs of {own.bootstrap.length} frames as well")
    if facts and facts["model_sha256"] != info.sha256:
        said.append(
            f"the frames were denoised by {facts['model']}, the thresholds are those of {info.name}"
        )
    if noise.correlated:
        said.append(
            "the noise is correlated from pixel to pixel: residuals cannot be judged, only means"
        )
    return (*said, *noise.not_identifiable)
