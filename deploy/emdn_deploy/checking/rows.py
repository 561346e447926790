"""Every frame of a stack against the limits, as the frames pass."""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from emdn_deploy.checking import verdict
from emdn_deploy.checking.camera import Camera
from emdn_deploy.checking.limits import Reference
from emdn_deploy.checking.local import Spot, share, spots
from emdn_deploy.checking.panel import BLOCK, cut
from emdn_deploy.checking.result import MAPS, Limits, Maps
from emdn_deploy.checking.statistics import Frame, Measured, measure
from emdn_models.metrics.accept import Floats

_CHUNK = 512  # rows

Look = Callable[[Frame, Frame, Camera, NDArray[np.bool_]], Measured]


@dataclass
class _Frame:
    """One frame, until the run that it belongs to is complete."""

    number: int
    values: dict[str, float]
    signs: dict[str, float]
    spots: dict[str, Spot]
    map: Frame


@dataclass
class Rows:
    """Collects the rows of the table.

    Parameters
    ----------
    good
        (H, W), the pixels that count.
    outside
        What the noise has that the models have not seen.
    correlated
        As for `verdict.summed_up`.
    length
        Frames of a run; 0 for no runs.
    look
        `measure`, or what remembers its answers.
    """

    camera: Camera
    good: NDArray[np.bool_]
    about: Reference
    limits: Mapping[str, Limits]
    outside: tuple[str, ...]
    correlated: bool
    length: int
    look: Look = measure
    _tables: list[pl.DataFrame] = field(default_factory=list)
    _done: list[dict[str, Any]] = field(default_factory=list)
    power: list[Floats] = field(default_factory=list)
    _waiting: list[_Frame] = field(default_factory=list)
    _maps: list[tuple[float, int, Frame]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._panels = cut(*self.good.shape)
        self._sums: list[Frame] = []
        self._frames = 0
        self._means: dict[str, float] = {}

    def add(self, number: int, raw: Frame, denoised: Frame) -> None:
        """Measure the next frame."""
        found = [
            self.look(raw[at], denoised[at], self.camera, self.good[at]) for at in self._panels
        ]
        power = np.mean([one.spectrum for one in found], axis=0)
        self.power = [power + self.power[0]] if self.power else [power]
        self._frames += 1
        values, signs, places = self._worst(found)
        self._waiting.append(_Frame(number, values, signs, places, self._map(found)))
        if self.length:
            parts = [share(one.fields) for one in found]
            self._sums = (
                [a + b for a, b in zip(self._sums, parts, strict=True)] if self._sums else parts
            )
        if len(self._waiting) >= max(1, self.length):
            self._complete()

    def finish(self) -> pl.DataFrame:
        """Judge the frames of a last, shorter run, and return the table."""
        if self._waiting:
            self._complete()
        if self._done:
            self._pack()
        return pl.concat(self._tables, how="vertical_relaxed")

    def _pack(self) -> None:
        """Move rows into a table, where they take a tenth of the memory."""
        kinds: dict[str, Any] = dict.fromkeys(self.limits, pl.Float64)
        kinds |= {f"run_{name}": pl.Int64 for name in ("y", "x")}
        kinds |= {f"run_{name}": pl.Float64 for name in ("scale_px", "z")}
        self._tables.append(
            pl.DataFrame(self._done, schema_overrides=kinds, infer_schema_length=None)
        )
        self._done.clear()

    @property
    def mean_power(self) -> Floats:
        """Return the residual's mean power on rings."""
        return np.asarray(self.power[0] / self._frames)

    @property
    def means(self) -> dict[str, float]:
        """Return the mean of every statistic of a panel over all panels of all frames."""
        return {name: total / self._frames for name, total in self._means.items()}

    def maps(self) -> Maps:
        """Return the maps that were kept, in the order of their frames."""
        kept = sorted(((-number, z) for _, number, z in self._maps), key=lambda one: one[0])
        return Maps(tuple(number for number, _ in kept), np.stack([z for _, z in kept]), BLOCK)

    def _worst(
        self, found: list[Measured]
    ) -> tuple[dict[str, float], dict[str, float], dict[str, Spot]]:
        """Take of each statistic the panel that is farthest from the typical value."""
        named = [self.about.named(one) for one in found]
        for one in named:
            for name, value in one.items():
                self._means[name] = self._means.get(name, 0.0) + value / len(named)
        values, signs = {}, {}
        for name in named[0].keys() & self.limits.keys():
            limit = self.limits[name]
            far = [
                abs(one[name] - limit.typical) if np.isfinite(limit.low) else one[name]
                for one in named
            ]
            at = int(np.argmax(far))
            values[name] = named[at][name]
            for sign in (f"{name}_added", f"{name}_y", f"{name}_x"):
                if sign in found[at].simple:
                    signs[sign] = found[at].simple[sign]
            if name == "match_removed":
                signs["match_noise"] = named[at]["match_noise"]
        places = self._places([one.spots for one in found], "blob")
        return values, signs, places

    def _places(self, panels: list[tuple[Spot, ...]], prefix: str) -> dict[str, Spot]:
        places = {}
        for scales in zip(*panels, strict=True):
            at = int(np.argmax([abs(one.z) for one in scales]))
            spot, (rows, columns) = scales[at], self._panels[at]
            moved = Spot(spot.y + rows.start, spot.x + columns.start, spot.scale, spot.z)
            places[f"{prefix}_{spot.scale:g}"] = moved
        return places

    def _map(self, found: list[Measured]) -> Frame:
        if len(found) == 1:
            return found[0].map
        height, width = (max(1, length // BLOCK) for length in self.good.shape)
        whole = np.zeros((height, width), np.float32)
        for (rows, columns), one in zip(self._panels, found, strict=True):
            y, x = rows.start // BLOCK, columns.start // BLOCK
            part = whole[y : y + one.map.shape[0], x : x + one.map.shape[1]]
            part[:] = one.map[: part.shape[0], : part.shape[1]]
        return whole

    def _complete(self) -> None:
        """Judge the frames that wait, with the average residual of all of them."""
        run: dict[str, Spot] = {}
        if self.length:
            root = np.float32(np.sqrt(len(self._waiting)))
            run = self._places([spots(one / root) for one in self._sums], "run_blob")
        for frame in self._waiting:
            values = frame.values | {name: abs(spot.z) for name, spot in run.items()}
            found = verdict.findings(values, self.limits, frame.signs, frame.spots | run)
            words, evidence = verdict.summed_up(found, self.outside, self.correlated)
            row: dict[str, Any] = {"frame": frame.number, "verdict": words, "evidence": evidence}
            row |= _spot(frame.spots, self.limits, "") | _spot(run, self.limits, "run_")
            for name, limit in self.limits.items():
                row[name] = values.get(name)
                if np.isfinite(limit.low):
                    row[f"{name}_low"] = limit.low
                row[f"{name}_high"] = limit.high
            self._done.append(row)
            score = found[0].excess if found else float(np.abs(frame.map).max()) * 1e-6
            entry = (score, -frame.number, frame.map)
            if len(self._maps) < MAPS:
                heapq.heappush(self._maps, entry)
            elif entry[:2] > self._maps[0][:2]:
                heapq.heapreplace(self._maps, entry)
        self._waiting.clear()
        self._sums = []
        if len(self._done) >= _CHUNK:
            self._pack()


def _spot(places: Mapping[str, Spot], limits: Mapping[str, Limits], part: str) -> dict[str, Any]:
    if not places:
        return {f"{part}{name}": None for name in ("y", "x", "scale_px", "z")}
    name = max(places, key=lambda one: abs(places[one].z) / limits[one].high)
    spot = places[name]
    return {
        f"{part}y": spot.y, f"{part}x": spot.x, f"{part}scale_px": spot.scale, f"{part}z": spot.z,
    }  # fmt: skip
