"""The report of a check: as printed, as one line of JSON, as a picture, and as one HTML file."""

import base64
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from io import BytesIO
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emdn_deploy.check.bootstrap import LEVEL, REASONS
from emdn_deploy.check.heldout import HeldOutError
from emdn_deploy.check.quick import SHARE, rounded
from emdn_deploy.check.residual import STATISTICS
from emdn_deploy.check.stack import CheckResult
from emdn_deploy.check.verdict import MEANINGS, OUTSIDE, beyond
from emdn_models import __version__
from emdn_models.errors import OutputError
from emdn_models.files import renamed
from emdn_models.metrics import rings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = 20  # flagged frames that are printed
_METHOD = (
    "The residual is raw minus denoised. What is expected comes from frames of this stack, once "
    "denoised, to which new noise was added (parametric bootstrap): as denoised again in the same "
    "way, and as a perfect denoiser would leave them. Sigma: standard deviations of the noise, or "
    "of what these replicates scatter by. Of bands and scales the farthest is listed."
)
_CAPTION = (
    "The frame that stands out most. Dashed: the range expected of single frames. Power: structure "
    "that was removed lifts the curve above what is expected, noise left in lowers it. "
    "Correlation: what a denoised frame shares with the next raw frame, whose noise is "
    "independent; two denoised frames are never compared, since they agree on whatever the "
    "denoiser invents."
)
_WORDS = {
    "PASS": "Nothing was found beyond what sound results for such frames show.",
    "WARN": "Nothing was found beyond what sound results show, but:",
    "FAIL": "Do not trust these frames before you know why:",
}


def headline(result: CheckResult) -> str:
    """Say in a line what came out: PASS, WARN or FAIL, and what was found in how many frames."""
    count, flagged = result.table.height, result.flagged
    verdicts = result.table.filter(result.table["frame"].is_in(list(flagged)))["verdict"]
    found = [one for verdict in verdicts for one in verdict.split("; ")]
    kinds = Counter(one for one in found if one != OUTSIDE).most_common()
    named = ", ".join(f"{number} {name}" if len(kinds) > 1 else name for name, number in kinds)
    words = f"{len(flagged)} of {count} frames flagged" + (f" ({named})" if named else "")
    if not result.thresholds.noise.in_training:
        words = f"the noise is not what the models were trained on; {words}"
    return f"{result.word}: {words}, up to {result.by_chance} expected by chance"


def _below(held: HeldOutError) -> str:
    gain = held.gain_db
    return f"{gain.value:.1f} ± {gain.se:.1g} dB" if isfinite(gain.value) else "too small to tell"


def checked(result: CheckResult, listed: bool = True) -> list[str]:
    """Return what ``emdn-deploy check`` prints; ``listed``: with what fails, and which frames."""
    noise, held = result.thresholds.noise, result.heldout
    count, height, width = result.shape
    what = result.denoised or f"denoised by {result.model}"
    lines = [
        f"frames     {count} of {height} x {width} from {result.source}, {what}",
        f"noise      gain {noise.gain:.4g}, offset {noise.offset:.4g} ({noise.method})",
        f"mean       out/in {result.ratio:.5f}",
    ]
    if held:
        lines.append(
            f"error      {held.error.value:.4g} ± {held.error.se:.2g} squared, against "
            f"{held.pairs} neighbouring frames: {_below(held)}"
        )
    if held and held.drift:
        moving = "frames differ by more than noise" if held.moves else "no motion beyond chance"
        lines.append(f"drift      {held.drift.value:.3g} ± {held.drift.se:.2g}: {moving}")
    lines.append(
        f"thresholds parametric bootstrap by {result.model}, "
        f"{len(result.thresholds.model.values)} replicates (seed {result.thresholds.seed}); "
        f"false-alarm rate {LEVEL:.0%} a frame, {REASONS * SHARE:.0%} a stack"
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
    flagged = result.flagged
    lines += [f"  frame {number}: {flagged[number]}" for number in list(flagged)[:_SHOWN]]
    if len(flagged) > _SHOWN:
        lines.append(f"  and {len(flagged) - _SHOWN} frames more; --table FILE has all")
    return lines


def numbers(result: CheckResult) -> list[tuple[str, str, str, str]]:
    """Return every number of the stack: what it is, its value, its threshold, what it means."""
    held, smallest, worse = result.heldout, result.smallest, result.comparison.worse
    known = f"{rounded(smallest.percent)} % of an atom" if smallest.percent else "not known"
    rows = [
        (
            "frames flagged", f"{len(result.flagged)} of {result.table.height}",
            f"up to {result.by_chance}", "more than chance makes of a sound stack fail it",
        ),
        ("smallest defect", known, "none", smallest.words),
        (
            f"error beyond that of {result.comparison.name}",
            f"{worse.value:.3g} ± {worse.se:.2g}" if worse else "not known",
            "0, at 3 s.e.", result.comparison.words,
        ),
    ]  # fmt: skip
    if held:
        rows.append((
            "squared error", f"{held.error.value:.3g} ± {held.error.se:.2g}",
            f"1.5 x {held.expected:.3g}, at 5 s.e.",
            f"against {held.pairs} neighbouring frames; below the raw frames': {_below(held)}; the "
            "threshold is that of bootstrap replicates, where nothing moves",
        ))  # fmt: skip
    farthest: dict[str, tuple[float, tuple[str, str, str, str]]] = {}
    for name, (low, high, typical) in result.thresholds.limits.items():
        own, values = STATISTICS[name], result.table[name].to_numpy()
        away = (values - typical) / np.where(values > typical, high - typical, typical - low)
        worst, median = float(values[away.argmax()]), float(np.median(values))
        row = (
            own.words, f"median {own.written(median)}, farthest {own.written(worst)}",
            f"{own.written(low)} to {own.written(high)}" if isfinite(low)
            else f"at most {own.written(high)}",
            f"above: {own.above}" + (f"; below: {own.below}" if own.below else ""),
        )  # fmt: skip
        group = name.rstrip("0123456789_")
        farthest[group] = max(farthest.get(group, (-np.inf, row)), (float(away.max()), row))
    return rows + [row for _, row in farthest.values()]


def as_json(result: CheckResult) -> str:
    """Return one line of JSON: all but the curves and pictures."""
    held, noise = result.heldout, result.thresholds.noise
    verdicts = result.table.select("frame", "verdict", "evidence").to_dicts()
    found = {
        "passed": result.passed, "verdict": result.word,
        "source": result.source, "denoised": result.denoised, "frames": result.shape[0],
        "failing": result.failing, "model": result.model, "model_sha256": result.sha256,
        "device": result.device, "ratio": result.ratio,
        "heldout": held and {
            "error": held.error.value, "error_se": held.error.se,
            "gain_db": held.gain_db.value, "gain_db_se": held.gain_db.se,
            "expected": held.expected, "moves": held.moves, "pairs": held.pairs,
            "drift": held.drift and held.drift.value,
        },
        "comparison": asdict(result.comparison),
        "smallest_defect": result.smallest._asdict(),
        "findings": result.findings, "warnings": result.warnings, "notes": result.notes,
        "noise": noise.as_dict(),
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
    """Write the report as ``.html``, or its picture alone as ``.png``, by the suffix.

    Raises
    ------
    OutputError
        If the suffix is another, or the file cannot be written.
    """
    target = Path(path)
    kind = target.suffix.lower()
    if kind not in (".html", ".png"):
        raise OutputError(f"{target}: unknown kind of report {kind!r}; give .html or .png")
    content = picture(result) if kind == ".png" else html(result).encode()
    with renamed(target) as partial:
        partial.write_bytes(content)


def html(result: CheckResult) -> str:
    """Return the report of a check with a page as the text of a web page that stands alone."""
    from emdn_deploy.page import Verdicts

    if result.page is None:
        raise ValueError("check with page=True to write a page")
    judged = result.table["frame"].to_list()
    unjudged = set(range(result.shape[0])).difference(judged)
    verdicts = Verdicts(headline(result), result.flagged, unjudged)
    found = " ".join(result.flagged.values())
    said = [f"Fails: {one}." for one in result.findings]
    said += [f"Warning: {one}." for one in result.warnings]
    said += [f"What a pass does not say: {result.smallest.words}."]
    said += [f"{kind}: {words}." for kind, words in MEANINGS.items() if kind in found]
    data = base64.b64encode(picture(result)).decode()
    parts = [
        f"<p>{_WORDS[result.word]}</p>",
        f"<ul>{''.join(f'<li>{escape(one)}</li>' for one in said)}</ul>",
        f'<figure><img alt="{_CAPTION}" src="data:image/png;base64,{data}">'
        f"<figcaption>{_CAPTION}</figcaption></figure>",
        f"<h2>Numbers</h2>\n<p>{_METHOD}</p>",
        _table(("number", "value", "threshold", "what it says"), numbers(result)),
    ]
    version = f"emdn {__version__}, {result.model} ({result.sha256[:12]}), {result.device}"
    return result.page.html(
        f"{result.source.name}, check", verdicts, [*checked(result), version], "\n".join(parts)
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [("th", head), *(("td", row) for row in rows)]
    body = "\n".join(
        f"<tr>{''.join(f'<{tag}>{escape(str(one))}</{tag}>' for one in row)}</tr>"
        for tag, row in lines
    )
    return f"<table>\n{body}\n</table>"


def picture(result: CheckResult) -> bytes:
    """Draw a frame before and after, a statistic over the stack, spectra and correlations: PNG."""
    from matplotlib.figure import Figure  # takes half a second

    figure = Figure(figsize=(13, 7.6), layout="constrained")
    grid = list(figure.subplots(2, 3).ravel())
    figure.suptitle(f"{result.source.name}: {headline(result)}", fontsize=11)
    _frames(grid[:3], result)
    limits = result.thresholds.limits
    failing = {name: beyond(result.table, limits, [name]).sum() for name in limits}
    name = max(failing, key=lambda one: (failing[one], one == "std"))
    grid[3].plot(result.table["frame"], result.table[name], ".-", lw=0.8, ms=3)
    for bound in filter(isfinite, limits[name][:2]):
        grid[3].axhline(bound, color="tab:red", lw=1, ls="--")
    unit = STATISTICS[name].unit
    grid[3].set_title(STATISTICS[name].words + (f" ({unit})" if unit else ""), fontsize=10)
    grid[3].set_xlabel("frame")
    step = result.axis.step_in("nm")
    step, unit = (step, "1/nm") if step and step > 0 else (1.0, "cycles/pixel")
    for panel, draw in zip(grid[4:], (_spectrum, _correlations), strict=True):
        panel.set_xlabel(f"spatial frequency ({unit})")
        draw(panel, result, step)
        if result.correlations or draw is _spectrum:
            panel.legend(fontsize=8)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()


def _frames(panels: Sequence["Axes"], result: CheckResult) -> None:
    from emdn_deploy.figures import contrast, scale_bar

    shown, (low, high) = result.shown, contrast(result.shown.before)
    row = result.table.filter(result.table["frame"] == shown.number).row(0, named=True)
    for panel, frame, name, bottom, top in (
        (panels[0], shown.before, f"frame {shown.number}, before", low, high),
        (panels[1], shown.after, "after, same limits", low, high),
        (panels[2], shown.residual, "difference / expected noise, -4 to 4", -4.0, 4.0),
    ):
        panel.imshow(frame, cmap="gray", vmin=bottom, vmax=top, interpolation="nearest")
        panel.set_title(name, fontsize=10)
        panel.set_axis_off()
        scale_bar(panel, frame.shape[1], result.axis)
        if " at row " in row["evidence"]:  # what stands out has a place
            panel.plot(row["x"], row["y"], "o", ms=16, mfc="none", mec="tab:red", mew=1.5)


def _spectrum(panel: "Axes", result: CheckResult, step: float) -> None:
    own, (rows, columns) = result.thresholds, result.thresholds.panels[0]
    frequency = rings(rows.stop, columns.stop).frequency / step
    every = np.array([*own.model.spectra, *own.perfect.spectra])
    low, high = every.min(axis=0), every.max(axis=0)
    panel.fill_between(frequency, low, high, color="0.85", label="expected, single frames")
    panel.plot(frequency, np.mean(own.model.spectra, axis=0), "0.4", lw=1, label="expected, mean")
    panel.plot(frequency, result.power, color="tab:red", lw=1.2, label="these frames")
    panel.set_title("power of the residual / expected noise", fontsize=10)


def _correlations(panel: "Axes", result: CheckResult, step: float) -> None:
    found = result.correlations
    if found is None:
        panel.set_axis_off()
        panel.text(0.5, 0.5, "one frame: no correlation with a neighbour", ha="center")
        return
    for curve, error, name, colour in (
        (found.raw, found.raw_se, "raw with the next raw", "0.4"),
        (found.denoised, found.denoised_se, "denoised with the next raw", "tab:red"),
    ):
        x = found.frequency / step
        panel.plot(x, curve, color=colour, lw=1.2, label=name)
        panel.fill_between(x, curve - error, curve + error, color=colour, alpha=0.2, lw=0)
    panel.axhline(0, color="0.8", lw=0.8)
    panel.set_title(f"Fourier ring correlation, {found.pairs} pairs", fontsize=10)
