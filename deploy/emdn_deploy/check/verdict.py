"""The verdict on frames and stack: decided, and said in words and in JSON."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from emdn_deploy.check.bootstrap import DRAWS, LEVEL, Limits, Thresholds
from emdn_deploy.check.quick import SHARE, allowed
from emdn_deploy.check.residual import (
    ADDED,
    NOISE,
    REMOVED,
    RUNS,
    SMOOTHED,
    STATISTICS,
    Frame,
    Readings,
    in_runs,
)
from emdn_models.metrics import HeldOut

PASSED, OUTSIDE = "within noise", "outside training"
_REASONS = 3  # that residuals can fail a stack for, see `judge_stack`
_MOST = 4  # pieces of evidence that are shown
_SHOWN = 20  # flagged frames that are printed


class Comparison(NamedTuple):
    """The squared error of the stack beside that of the shipped default model.

    The verdict is ``no worse``, ``worse`` (by 0.4 dB or more, beyond chance), ``far worse`` (6 dB),
    or ``unknown``.
    """

    verdict: str
    words: str


@dataclass(frozen=True)
class CheckResult:
    """All that a check found.

    ``table`` has one row a frame: ``frame``, ``verdict`` (`residual.REMOVED` and so on, joined by
    ``; ``, or ``within noise``), ``evidence`` in words, then for every statistic its value and, as
    ``<name>_low`` and ``<name>_high``, its limits.
    """

    source: Path
    denoised: Path | None  # None where the frames were denoised for the check
    shape: tuple[int, int, int]  # (N, H, W)
    model: str  # whose replicates gave the thresholds
    model_sha256: str
    device: str
    seed: int  # of the noise that was drawn
    table: pl.DataFrame
    thresholds: Thresholds
    ratio: float  # mean out / mean in above the offset, over all frames
    heldout: HeldOut | None  # None for too few frames
    comparison: Comparison
    smallest: dict[str, float] | None  # see `bootstrap.Thresholds.smallest`
    findings: tuple[str, ...]  # why the stack fails as a whole; empty if it passes
    notes: tuple[str, ...]  # what was assumed, and what cannot be said

    @property
    def failing(self) -> list[int]:
        """Return the numbers of the frames that are not within noise."""
        return self.table.filter(pl.col("verdict") != PASSED)["frame"].to_list()

    @property
    def flagged(self) -> dict[int, str]:
        """Return, by frame, what was found in it, and not in the noise alone, with evidence."""
        bad = self.table.filter(~pl.col("verdict").is_in([PASSED, OUTSIDE]))
        rows = bad.select("frame", "verdict", "evidence").rows()
        return {number: f"{verdict} ({evidence})" for number, verdict, evidence in rows}

    @property
    def passed(self) -> bool:
        """Whether the stack shows no more than sound ones do; single frames may stand out."""
        return not self.findings

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what speaks against the stack and does not fail it."""
        return (self.comparison.words,) if self.comparison.verdict == "worse" else ()

    @property
    def word(self) -> str:
        """Return ``PASS``, ``WARN`` or ``FAIL``; what warns does not fail."""
        return ("WARN" if self.warnings else "PASS") if self.passed else "FAIL"

    @property
    def headline(self) -> str:
        """Say in a line what came out, and what was found in how many frames."""
        flagged = self.table.filter(~pl.col("verdict").is_in([PASSED, OUTSIDE]))["verdict"]
        kinds = Counter(one for words in flagged for one in words.split("; ") if one != OUTSIDE)
        named = ", ".join(f"{number} {name}" for name, number in kinds.most_common())
        words = f"{len(flagged)} of {self.table.height} frames flagged" + f" ({named})" * any(kinds)
        if self.thresholds.noise.findings:
            words = f"the noise is not what the models were trained on; {words}"
        most = allowed(self.table.height, LEVEL)
        return f"{self.word}: {words}, up to {most} expected by chance"

    @property
    def unseen(self) -> str:
        """Say what a pass does not."""
        if self.smallest is None:
            return "a false atom cannot be seen: in correlated noise no place is judged"
        words = (
            "a filled vacancy, or other false spot of {width_px:.2g} px, is noticed above "
            "{percent:.0f} % of the contrast of atoms"
        )
        if "run_percent" in self.smallest:
            words += " in one frame, {run_percent:.0f} % if it stays for {length} frames"
        if self.smallest["percent"] > 100:
            words += ": single vacancies can be filled unseen at this dose"
        return words.format(**self.smallest, length=self.thresholds.model.length)

    def text(self) -> str:
        """Return what ``emdn-deploy check`` prints."""
        noise, error = self.thresholds.noise, self.heldout
        count, height, width = self.shape
        lines = [
            f"frames     {count} of {height} x {width} from {self.source}, "
            f"{self.denoised or f'denoised by {self.model}'}",
            f"noise      gain {noise.gain:.4g}, offset {noise.offset:.4g} ({noise.method})",
            f"mean       out/in {self.ratio:.5f}",
        ]
        if error:
            own, gain = error.error, error.gain_db
            words = f"error      {own.value:.4g} ± {own.se:.2g} squared, by {error.comparisons} "
            words += "pairs of neighbouring frames"
            if isfinite(gain.value):
                words += f"; {gain.value:.1f} ± {gain.se:.1g} dB below the raw frames'"
            lines.append(words)
        lines.append(
            f"thresholds parametric bootstrap by {self.model}, {DRAWS} replicates (seed "
            f"{self.seed}); false-alarm rate {LEVEL:.0%} a frame, {_REASONS * SHARE:.0%} a stack"
        )
        if self.comparison.words not in (*self.findings, *self.warnings):
            lines.append(f"default    {self.comparison.words}")
        for name, said in (
            ("note", self.notes), ("noise", noise.findings), ("fails", self.findings),
            ("warns", self.warnings), ("verdict", [self.headline]), ("", [self.unseen]),
        ):  # fmt: skip
            lines += [f"{name:10} {one}" for one in said]
        flagged = list(self.flagged.items())
        lines += [f"  frame {number}: {words}" for number, words in flagged[:_SHOWN]]
        if len(flagged) > _SHOWN:
            lines.append(f"  and {len(flagged) - _SHOWN} frames more; --table FILE has all")
        return "\n".join(lines)

    def json(self) -> str:
        """Return one line of JSON."""
        names = (
            "passed", "source", "denoised", "failing", "model", "model_sha256", "device", "ratio",
            "findings", "warnings", "notes", "flagged", "smallest", "unseen",
        )  # fmt: skip
        found = {name: getattr(self, name) for name in names}
        found |= {"verdict": self.word, "frames": self.shape[0]}
        found["heldout"] = self.heldout and asdict(self.heldout)
        found["comparison"] = self.comparison._asdict()
        found["noise"] = self.thresholds.noise._asdict()
        text = json.dumps(found, default=str)
        # JSON has no NaN.
        return json.dumps(json.loads(text, parse_constant=lambda _: None))


def judge_frames(frames: Iterable[tuple[int, Frame, Frame]], own: Thresholds) -> pl.DataFrame:
    """Judge frames, number, raw and denoised (H, W), and return the table of `CheckResult`."""
    rows, limits = [], own.limits
    for number, panels in in_runs(frames, own.panels, own.camera, own.good, own.model.length):
        readings = {}
        for name, limit in limits.items():
            at = int(limit.reach([one[name].value for one in panels]).argmax())
            readings[name] = reading = panels[at][name]
            if "blob" in name:
                (y, x), (down, right) = reading.place, own.panels[at]
                readings[name] = reading._replace(place=(y + down.start, x + right.start))
        verdict, evidence = verdict_of(readings, own)
        row = {"frame": number, "verdict": verdict, "evidence": evidence}
        rows.append(row | {name: readings[name].value for name in limits})
    ends = {f"{name}_low": one.low for name, one in limits.items() if isfinite(one.low)}
    ends |= {f"{name}_high": one.high for name, one in limits.items()}
    return pl.DataFrame(rows).with_columns(**{name: pl.lit(one) for name, one in ends.items()})


def said(name: str, value: float, limit: Limits) -> str:
    """Say what a statistic is and what it was expected to be."""
    side, bound = ("most", limit.high) if value > limit.typical else ("least", limit.low)
    return f"{STATISTICS[name].words}: {value:.4g}, expected at {side} {bound:.4g}"


def verdict_of(readings: Readings, own: Thresholds) -> tuple[str, str]:
    """Return the verdict on a frame, its kinds joined by ``; ``, and the evidence."""
    reach = {name: float(own.limits[name].reach(readings[name].value)) for name in own.names}
    kinds, evidence = dict[str, str](), list[str]()
    for name in sorted(reach, key=reach.__getitem__, reverse=True):
        # What stands out at one scale or in one band does so in others: the farthest will do.
        group, reading, limit = name.rstrip("0123456789_"), readings[name], own.limits[name]
        if reach[name] <= 1 or group in kinds:
            continue
        kinds[group] = STATISTICS[name].above
        if reading.value < limit.typical:
            kinds[group] = STATISTICS[name].below
        elif group == "match" and own.is_noise(name, reading):
            kinds[group] = NOISE
        elif reading.more:
            kinds[group] = ADDED
        words = said(name, reading.value, limit)
        if "blob" in name:
            than = "brighter" if reading.more else "darker"
            words += ", denoised {} than raw at row {}, column {}".format(than, *reading.place)
        if name == "peak":
            words += ", at ({:.3f}, {:.3f}) cycles/pixel".format(*reading.place)
        evidence.append(words)
    # More residual than there should be is of the kind that something else says it is.
    structure = (SMOOTHED, REMOVED, ADDED)
    vague = [one for one in ("std", "radial") if kinds.get(one) in structure]
    clear = [kind for one, kind in kinds.items() if one not in vague and kind in structure]
    kinds |= dict.fromkeys(vague, clear[0]) if clear else {}
    verdicts = list(dict.fromkeys(kinds.values())) + ([OUTSIDE] if own.noise.findings else [])
    # What the noise has is said of the stack, once, where a frame has more to say.
    return "; ".join(verdicts) or PASSED, "; ".join(evidence[:_MOST] or own.noise.findings)


def judge_stack(table: pl.DataFrame, own: Thresholds) -> tuple[str, ...]:
    """Say why a stack fails; nothing if it does not.

    Of sound frames `LEVEL` may stand out each for itself, so that of a long stack some do. A stack
    fails for more of them than that, for more runs, and for a frame or run so far out that hardly
    any sound stack has one. Each of these three has `quick.SHARE` of false alarms. It also fails
    for noise that no model has seen.
    """
    found = []
    if own.noise.findings:
        found.append("the noise is not what the models were trained on: nothing can be vouched for")
    reach = {name: own.limits[name].reach(table[name].to_numpy()) for name in own.names}
    run_rate = LEVEL * len(RUNS) / len(own.limits)
    for what, of_runs, rate, step in (
        ("frames stand out, each for itself", False, LEVEL, 1),
        ("averages over a run of frames stand out", True, run_rate, max(1, own.model.length)),
    ):
        part = [one[::step] for name, one in reach.items() if (name in RUNS) is of_runs]
        count, most = len(table[::step]), allowed(len(table[::step]), rate)
        if (flags := (np.max(part, axis=0, initial=0) > 1).sum()) > most:
            found.append(f"{flags} of {count} {what}: in 99 % of sound stacks at most {most} do")
    for name, limit in own.within(SHARE / table.height).items():
        if name in reach and (far := limit.reach(table[name].to_numpy())).max() > 1:
            worst, others = int(far.argmax()), int((far > 1).sum()) - 1
            where = f"{'the run of ' if name in RUNS else ''}frame {table['frame'][worst]}"
            more = f" (and {others} more)" if others else ""
            words = said(name, table[name][worst], limit)
            found.append(f"{words} in all frames of 99 % of sound stacks: {where}{more}")
    return tuple(found)
