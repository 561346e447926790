"""Results as printed, as one line of JSON, and as files for scripts."""

import json
from collections import Counter
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from emdn_deploy.checking import summary
from emdn_deploy.checking.evaluation import Evaluation
from emdn_deploy.checking.kinds import KINDS
from emdn_deploy.checking.result import CheckResult, HeldOutFacts
from emdn_deploy.checking.smallest import rounded
from emdn_deploy.checking.verdict import BEYOND
from emdn_models.errors import OutputError
from emdn_models.files import renamed

_SHOWN = 20  # failing frames that are printed


FILES = (".csv", ".parquet")


def write(table: pl.DataFrame, path: Path) -> None:
    """Write a table as CSV or Parquet, by the suffix.

    Raises
    ------
    OutputError
        If the suffix is another, or the file cannot be written.
    """
    kind = path.suffix.lower()
    if kind not in FILES:
        raise OutputError(f"{path}: unknown kind of table {path.suffix!r}; give .csv or .parquet")
    with renamed(path) as partial:
        if kind == ".csv":
            table.write_csv(partial)
        else:
            table.write_parquet(partial)


def text(table: pl.DataFrame, digits: int = 4) -> str:
    """Return a table as printed."""
    with pl.Config(
        tbl_rows=-1, tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True,
        tbl_formatting="ASCII_MARKDOWN", tbl_width_chars=1000, float_precision=digits,
        fmt_str_lengths=400,
    ):  # fmt: skip
        return str(table)


def evaluated(result: Evaluation) -> list[str]:
    """Return what ``emdn-deploy evaluate`` prints."""
    ranges = result.table["data_range"]
    low, high = (f"{float(one):.6g}" for one in (ranges.min(), ranges.max()))  # type: ignore[arg-type]
    between = low if low == high else f"{low} to {high}"
    return [
        text(result.table) if result.table.height <= _SHOWN else "",
        text(result.summary),
        f"data range of PSNR and SSIM: {result.range_from}, {between}",
    ]


def conclusion(result: CheckResult) -> str:
    """Say in a line what came out: what was found in how many frames."""
    count, own = result.table.height, standing(result)
    found = [one for verdict in own["verdict"] for one in verdict.split("; ")]
    kinds = Counter(one for one in found if one != "outside training").most_common()
    several = len(kinds) > 1
    named = ", ".join(f"{number} {name}" if several else name for name, number in kinds)
    flagged = f"{own.height} of {count} frames flagged" + (f" ({named})" if named else "")
    said = "the noise is not what the models were trained on; " if result.outside else ""
    return f"{said}{flagged}, up to {result.facts.by_chance} expected by chance"


def headline(result: CheckResult) -> str:
    """Return the conclusion, after PASS, WARN or FAIL."""
    return f"{result.word}: {conclusion(result)}"


def standing(result: CheckResult) -> pl.DataFrame:
    """Return the rows of the frames in which something is found, and not in the noise alone."""
    return result.table.filter(~pl.col("verdict").is_in(["within noise", "outside training"]))


def _below(held: HeldOutFacts) -> str:
    gain = held.gain_db
    return (
        f"{gain.value:.1f} ± {gain.se:.1g} dB" if np.isfinite(gain.value) else "too small to tell"
    )


def checked(result: CheckResult, listed: bool = True) -> list[str]:
    """Return what ``emdn-deploy check`` prints; ``listed``: with what fails, and which frames."""
    facts, noise = result.facts, result.noise
    count, height, width = facts.shape
    what = facts.denoised or f"denoised by {facts.model}"
    lines = [
        f"frames     {count} of {height} x {width} from {facts.source}, {what}",
        f"noise      gain {noise.gain:.4g}, offset {noise.offset:.4g} ({noise.method})",
        f"mean       out/in {facts.ratio:.5f}",
    ]
    if facts.linearity:
        lines.append(
            f"linearity  local means out {facts.linearity.slope:.4f} ± "
            f"{facts.linearity.slope_error:.2g} of those in"
        )
    else:
        lines.append("linearity  cannot be told: local means differ by noise, or there are too few")
    if result.heldout:
        held = result.heldout
        lines.append(
            f"error      {held.error.value:.4g} ± {held.error.se:.2g} squared, against "
            f"{held.pairs} neighbouring frames: {_below(held)}"
        )
        if held.drift:
            moving = "frames differ by more than noise" if held.moves else "no motion beyond chance"
            lines.append(f"drift      {held.drift.value:.3g} ± {held.drift.se:.2g}: {moving}")
    own = result.thresholds
    lines.append(
        f"thresholds parametric bootstrap by {facts.model}, {own.bases * own.resamples} replicates "
        f"(seed {own.seed}); false-alarm rate {own.level:.0%} a frame, "
        f"{own.stack_level:.0%} a stack"
    )
    compared = summary.compared(result.comparison)
    if compared not in (*facts.findings, *facts.warnings):
        lines.append(f"default    {compared}")
    lines += [f"note       {one}" for one in facts.notes]
    lines += [f"noise      {one}" for one in noise.findings]
    if not listed:
        return lines
    lines += [f"fails      {one}" for one in facts.findings]
    lines += [f"warns      {one}" for one in facts.warnings]
    lines.append(f"verdict    {headline(result)}")
    lines.append(f"           {result.smallest.words}")
    bad = standing(result)
    for row in bad.head(_SHOWN).iter_rows(named=True):
        lines.append(f"  frame {row['frame']}: {row['verdict']} ({row['evidence']})")
    if bad.height > _SHOWN:
        lines.append(f"  and {bad.height - _SHOWN} frames more; --table FILE has all")
    return lines


def numbers(result: CheckResult) -> list[tuple[str, str, str, str]]:
    """Return every number of the stack: what it is, its value, its threshold, what it means."""
    facts, held, line = result.facts, result.heldout, result.facts.linearity
    rows = [
        (
            "frames flagged", f"{standing(result).height} of {result.table.height}",
            f"up to {facts.by_chance}", "more than chance makes of an honest stack fail it",
        ),
        (
            "smallest defect", "not known" if result.smallest.percent is None
            else f"{rounded(result.smallest.percent)} % of an atom", "none", result.smallest.words,
        ),
    ]  # fmt: skip
    if held:
        rows.append((
            "squared error", f"{held.error.value:.3g} ± {held.error.se:.2g}",
            f"1.5 x {held.honest:.3g}, at 5 s.e.",
            f"against {held.pairs} neighbouring frames; below the raw frames': {_below(held)}; the "
            "threshold is that of bootstrap replicates, where nothing moves",
        ))  # fmt: skip
        if held.drift:
            rows.append((
                "motion", f"{held.drift.value:.3g} ± {held.drift.se:.2g}", "3 s.e.",
                "by how much frames two apart differ more than neighbours; above, they move",
            ))  # fmt: skip
    if line:
        rows.append((
            "contrast at large scales", f"{line.slope:.3f} ± {line.slope_error:.2g}",
            "0.05 and 5 s.e. off replicates", "local means out against those in",
        ))  # fmt: skip
    worse = result.comparison.worse
    rows.append((
        f"error beyond that of {result.comparison.name}",
        "not known" if worse is None else f"{worse.value:.3g} ± {worse.se:.2g}",
        "0, at 3 s.e.", summary.compared(result.comparison),
    ))  # fmt: skip
    for name, limit in result.thresholds.limits.items():
        kind, values = KINDS[name], result.table[name].to_numpy()
        low, high = (kind.said(one) for one in (limit.low, limit.high))
        typical = kind.said(float(np.median(values)))
        away = np.abs(values - limit.typical) if isfinite(limit.low) else values
        worst = kind.said(float(values[away.argmax()]))
        rows.append((
            kind.words, f"median {typical}, farthest {worst}",
            f"{low} to {high}" if isfinite(limit.low) else f"at most {high}",
            f"beyond: {BEYOND['blob' if 'blob' in name else name]}",
        ))  # fmt: skip
    return rows


def as_json(result: CheckResult) -> str:
    """Return one line of JSON: all but the maps and the curves."""
    facts, held, line = result.facts, result.heldout, result.facts.linearity
    return json.dumps(
        _plain(
            {
                "passed": result.passed, "verdict": result.word,
                "source": facts.source, "denoised": facts.denoised, "frames": facts.shape[0],
                "failing": result.failing, "model": facts.model, "model_sha256": facts.sha256,
                "device": facts.device, "ratio": facts.ratio,
                "linearity": line and {"slope": line.slope, "error": line.slope_error},
                "heldout": held and {
                    "error": held.error.value, "error_se": held.error.se,
                    "gain_db": held.gain_db.value, "gain_db_se": held.gain_db.se,
                    "honest": held.honest, "moves": held.moves, "pairs": held.pairs,
                    "drift": held.drift and held.drift.value,
                },
                "comparison": asdict(result.comparison),
                "smallest_defect": asdict(result.smallest),
                "findings": facts.findings, "warnings": facts.warnings, "notes": facts.notes,
                "noise": result.noise.as_dict(),
                "limits": {
                    name: [one.low, one.high] for name, one in result.thresholds.limits.items()
                },
                "verdicts": result.table.select("frame", "verdict", "evidence").to_dicts()
                if result.failing else [],
            }
        )
    )  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
