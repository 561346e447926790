"""The report of a check: as printed, as one line of JSON, and as one HTML file.

The page holds its pictures: nothing is loaded, no script runs.
"""

import base64
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from emdn_deploy.check.heldout import HeldOutError
from emdn_deploy.check.quick import SHARE
from emdn_deploy.check.residual_tests import STATISTICS
from emdn_deploy.check.smallest_defect import rounded
from emdn_deploy.check.stack import CheckResult
from emdn_deploy.check.thresholds import LEVEL, REASONS
from emdn_deploy.check.verdict import MEANINGS, PASSED
from emdn_models import __version__
from emdn_models.errors import OutputError
from emdn_models.files import renamed

_SHOWN = 20  # failing frames that are printed
_ROWS = 100  # failing frames that a page lists
_METHOD = (
    "The residual is raw minus denoised. What is expected comes from frames of this stack, once "
    "denoised, to which new noise was added (parametric bootstrap): as denoised again in the same "
    "way, and as a perfect denoiser would leave them. Sigma: standard deviations of the noise, or "
    "of what these replicates scatter by."
)
_WORDS = {
    "PASS": "Nothing was found beyond what sound results for such frames show.",
    "WARN": "Nothing was found beyond what sound results show, but:",
    "FAIL": "Do not trust these frames before you know why:",
}
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; } td, th { padding: 0.2rem 0.7rem; text-align: left;
  vertical-align: top; border-bottom: 1px solid #ddd; } td:nth-child(2) { min-width: 9rem; }
.verdict { padding: 0.6rem 1rem; border-left: 0.4rem solid; background: #f5f5f5; }
.pass { border-color: #2a7d3f; } .warn { border-color: #b26a00; } .fail { border-color: #b3261e; }
pre { background: #f5f5f5; padding: 0.8rem; overflow-x: auto; white-space: pre-wrap; }
figcaption { color: #555; font-size: 0.9rem; } figure { margin: 1rem 0; }
"""


def flagged(result: CheckResult) -> pl.DataFrame:
    """Return the rows of the frames in which something is found, and not in the noise alone."""
    return result.table.filter(~pl.col("verdict").is_in([PASSED, "outside training"]))


def headline(result: CheckResult) -> str:
    """Say in a line what came out: PASS, WARN or FAIL, and what was found in how many frames."""
    count, own = result.table.height, flagged(result)
    found = [one for verdict in own["verdict"] for one in verdict.split("; ")]
    kinds = Counter(one for one in found if one != "outside training").most_common()
    named = ", ".join(f"{number} {name}" if len(kinds) > 1 else name for name, number in kinds)
    words = f"{own.height} of {count} frames flagged" + (f" ({named})" if named else "")
    if not result.thresholds.noise.in_training:
        words = f"the noise is not what the models were trained on; {words}"
    return f"{result.word}: {words}, up to {result.by_chance} expected by chance"


def _below(held: HeldOutError) -> str:
    gain = held.gain_db
    return f"{gain.value:.1f} ± {gain.se:.1g} dB" if isfinite(gain.value) else "too small to tell"


def checked(result: CheckResult, listed: bool = True) -> list[str]:
    """Return what ``emdn-deploy check`` prints; ``listed``: with what fails, and which frames."""
    noise, drawn, held = result.thresholds.noise, result.thresholds.bootstrap, result.heldout
    count, height, width = result.shape
    what = result.denoised or f"denoised by {result.model}"
    lines = [
        f"frames     {count} of {height} x {width} from {result.source}, {what}",
        f"noise      gain {noise.gain:.4g}, offset {noise.offset:.4g} ({noise.method})",
        f"mean       out/in {result.ratio:.5f}",
    ]
    if result.linearity:
        lines.append(
            f"linearity  local means out {result.linearity.slope:.4f} ± "
            f"{result.linearity.slope_error:.2g} of those in"
        )
    else:
        lines.append("linearity  cannot be told: local means differ by noise, or there are too few")
    if held:
        lines.append(
            f"error      {held.error.value:.4g} ± {held.error.se:.2g} squared, against "
            f"{held.pairs} neighbouring frames: {_below(held)}"
        )
        if held.drift:
            moving = "frames differ by more than noise" if held.moves else "no motion beyond chance"
            lines.append(f"drift      {held.drift.value:.3g} ± {held.drift.se:.2g}: {moving}")
    lines.append(
        f"thresholds parametric bootstrap by {result.model}, {drawn.bases * drawn.replicates} "
        f"replicates (seed {drawn.seed}); false-alarm rate {LEVEL:.0%} a frame, "
        f"{REASONS * SHARE:.0%} a stack"
    )
    if result.comparison.words not in (*result.findings, *result.warnings):
        lines.append(f"default    {result.comparison.words}")
    lines += [f"note       {one}" for one in result.notes]
    lines += [f"noise      {one}" for one in noise.findings]
    if not listed:
        return lines
    lines += [f"fails      {one}" for one in result.findings]
    lines += [f"warns      {one}" for one in result.warnings]
    lines += [f"verdict    {headline(result)}", f"           {result.smallest.words}"]
    bad = flagged(result)
    for row in bad.head(_SHOWN).iter_rows(named=True):
        lines.append(f"  frame {row['frame']}: {row['verdict']} ({row['evidence']})")
    if bad.height > _SHOWN:
        lines.append(f"  and {bad.height - _SHOWN} frames more; --table FILE has all")
    return lines


def numbers(result: CheckResult) -> list[tuple[str, str, str, str]]:
    """Return every number of the stack: what it is, its value, its threshold, what it means."""
    held, line, smallest = result.heldout, result.linearity, result.smallest
    worse = result.comparison.worse
    rows = [
        (
            "frames flagged", f"{flagged(result).height} of {result.table.height}",
            f"up to {result.by_chance}", "more than chance makes of a sound stack fail it",
        ),
        (
            "smallest defect", "not known" if smallest.percent is None
            else f"{rounded(smallest.percent)} % of an atom", "none", smallest.words,
        ),
    ]  # fmt: skip
    if held:
        rows.append((
            "squared error", f"{held.error.value:.3g} ± {held.error.se:.2g}",
            f"1.5 x {held.expected:.3g}, at 5 s.e.",
            f"against {held.pairs} neighbouring frames; below the raw frames': {_below(held)}; the "
            "threshold is that of bootstrap replicates, where nothing moves",
        ))  # fmt: skip
    if held and held.drift:
        rows.append((
            "motion", f"{held.drift.value:.3g} ± {held.drift.se:.2g}", "3 s.e.",
            "by how much frames two apart differ more than neighbours; above, they move",
        ))  # fmt: skip
    if line:
        rows.append((
            "contrast at large scales", f"{line.slope:.3f} ± {line.slope_error:.2g}",
            "0.05 and 5 s.e. off replicates", "local means out against those in",
        ))  # fmt: skip
    rows.append((
        f"error beyond that of {result.comparison.name}",
        "not known" if worse is None else f"{worse.value:.3g} ± {worse.se:.2g}",
        "0, at 3 s.e.", result.comparison.words,
    ))  # fmt: skip
    for name, limit in result.thresholds.limits.items():
        own, values = STATISTICS[name], result.table[name].to_numpy()
        low, high = (own.written(one) for one in (limit.low, limit.high))
        away = np.abs(values - limit.typical) if isfinite(limit.low) else values
        worst = own.written(float(values[away.argmax()]))
        rows.append((
            own.words, f"median {own.written(float(np.median(values)))}, farthest {worst}",
            f"{low} to {high}" if isfinite(limit.low) else f"at most {high}",
            f"beyond: {own.meaning}",
        ))  # fmt: skip
    return rows


def as_json(result: CheckResult) -> str:
    """Return one line of JSON: all but the curves and pictures."""
    held, line = result.heldout, result.linearity
    verdicts = result.table.select("frame", "verdict", "evidence").to_dicts()
    found = {
        "passed": result.passed, "verdict": result.word,
        "source": result.source, "denoised": result.denoised, "frames": result.shape[0],
        "failing": result.failing, "model": result.model, "model_sha256": result.sha256,
        "device": result.device, "ratio": result.ratio,
        "linearity": line and {"slope": line.slope, "error": line.slope_error},
        "heldout": held and {
            "error": held.error.value, "error_se": held.error.se,
            "gain_db": held.gain_db.value, "gain_db_se": held.gain_db.se,
            "honest": held.expected, "moves": held.moves, "pairs": held.pairs,
            "drift": held.drift and held.drift.value,
        },
        "comparison": asdict(result.comparison),
        "smallest_defect": asdict(result.smallest),
        "findings": result.findings, "warnings": result.warnings, "notes": result.notes,
        "noise": result.thresholds.noise.as_dict(),
        "limits": {name: one[:2] for name, one in result.thresholds.limits.items()},
        "verdicts": verdicts if result.failing else [],
    }  # fmt: skip
    return json.dumps(_plain(found))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def write(path: str | PathLike[str], result: CheckResult) -> None:
    """Write the report as ``.html``, or its overview alone as ``.png``, by the suffix.

    Raises
    ------
    OutputError
        If the suffix is another, or the file cannot be written.
    """
    from emdn_deploy.check import figures  # matplotlib takes half a second

    target = Path(path)
    kind = target.suffix.lower()
    if kind not in (".html", ".png"):
        raise OutputError(f"{target}: unknown kind of report {kind!r}; give .html or .png")
    title = f"{result.source.name}: {headline(result)}"
    content = figures.overview(result, title) if kind == ".png" else html(result).encode()
    with renamed(target) as partial:
        partial.write_bytes(content)


def html(result: CheckResult) -> str:
    """Return the report as the text of a web page."""
    from emdn_deploy.check import figures

    def said(number: int) -> str:
        row = result.table.filter(pl.col("frame") == number).row(0, named=True)
        return f"{row['verdict']} ({row['evidence']})" if row["evidence"] else str(row["verdict"])

    name = escape(result.source.name)
    parts = [
        f"<h1>{result.word}: {name}</h1>",
        _verdict(result),
        _flagged(result),
        "<h2>Numbers</h2>",
        f"<p>{_METHOD}</p>",
        _table(("number", "value", "threshold", "what it says"), numbers(result)),
        "<h2>Frames</h2>",
        *(
            _figure(figures.frame(one, result), f"Frame {one.number}: {said(one.number)}.")
            for one in result.shown
        ),
        "<h2>Over the stack</h2>",
        _figure(figures.courses(result), "Dashed: the range that is expected of single frames."),
        _figure(
            figures.curves(result),
            "Left: structure that was removed lifts the curve above what is expected, noise left "
            "in lowers it. Right: what a denoised frame shares with the next raw frame, whose "
            "noise is independent; two denoised frames are never compared, since they would agree "
            "on whatever the denoiser invents. On a lattice a first crossing means nothing.",
        ),
        _figure(figures.slices(result), "One row of pixels over time. A view, not data."),
        "<h2>Details</h2>",
        f"<pre>{escape(chr(10).join(checked(result, listed=False)))}</pre>",
        f"<p>emdn {escape(__version__)}, model {escape(result.model)} "
        f"({escape(result.sha256[:12])}), {escape(result.device)}.</p>",
    ]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>emdn check: {name}</title>\n<style>{_STYLE}</style>\n"
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _verdict(result: CheckResult) -> str:
    said = f"<strong>{escape(headline(result))}</strong>. {_WORDS[result.word]}"
    if reasons := [*result.findings, *result.warnings]:
        said += f"<ul>{''.join(f'<li>{escape(one)}</li>' for one in reasons)}</ul>"
    said += f"<p>What a pass does not say: {escape(result.smallest.words)}.</p>"
    return f'<div class="verdict {result.word.lower()}">{said}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [("th", head), *(("td", row) for row in rows)]
    body = "\n".join(
        f"<tr>{''.join(f'<{tag}>{escape(str(one))}</{tag}>' for one in row)}</tr>"
        for tag, row in lines
    )
    return f"<table>\n{body}\n</table>"


def _flagged(result: CheckResult) -> str:
    bad = flagged(result)
    if not bad.height:
        return ""
    rows = bad.select("frame", "verdict", "evidence").head(_ROWS).iter_rows()
    more = bad.height - _ROWS
    rest = f"<p>and {more} frames more; --table FILE has all.</p>" if more > 0 else ""
    kinds = {kind for text in bad["verdict"] for kind in text.split("; ")}
    meanings = "".join(
        f"<li><strong>{kind}</strong>: {escape(words)}</li>"
        for kind, words in MEANINGS.items()
        if kind in kinds
    )
    table = _table(("frame", "verdict", "evidence"), rows)
    return f"<h2>Frames flagged</h2>\n<ul>{meanings}</ul>\n{table}\n{rest}"


def _figure(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
