"""The report of a check: as printed, as one line of JSON, and as one HTML file."""

import json
from collections import Counter
from html import escape
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any

from emdn_deploy.check.bootstrap import DRAWS, LEVEL, REASONS
from emdn_deploy.check.heldout import moves
from emdn_deploy.check.quick import SHARE
from emdn_deploy.check.stack import CheckResult
from emdn_deploy.check.verdict import MEANINGS, OUTSIDE
from emdn_models import __version__
from emdn_models.files import renamed

_SHOWN = 20  # flagged frames that are printed
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
    if result.thresholds.outside:
        words = f"the noise is not what the models were trained on; {words}"
    return f"{result.word}: {words}, up to {result.by_chance} expected by chance"


def checked(result: CheckResult) -> list[str]:
    """Return what ``emdn-deploy check`` prints."""
    noise, held = result.thresholds.noise, result.heldout
    count, height, width = result.shape
    what = result.denoised or f"denoised by {result.model}"
    lines = [
        f"frames     {count} of {height} x {width} from {result.source}, {what}",
        f"noise      gain {noise.gain:.4g}, offset {noise.offset:.4g} ({noise.method})",
        f"mean       out/in {result.ratio:.5f}",
    ]
    if held:
        gain, below = held.gain_db, "too small to tell"
        if isfinite(gain.value):
            below = f"{gain.value:.1f} ± {gain.se:.1g} dB"
        lines.append(
            f"error      {held.error.value:.4g} ± {held.error.se:.2g} squared, by "
            f"{held.comparisons} pairs of neighbouring frames; below the raw frames': {below}"
        )
    lines.append(
        f"thresholds parametric bootstrap by {result.model}, {DRAWS} replicates (seed "
        f"{result.seed}); false-alarm rate {LEVEL:.0%} a frame, {REASONS * SHARE:.0%} a stack"
    )
    if result.comparison.words not in (*result.findings, *result.warnings):
        lines.append(f"default    {result.comparison.words}")
    lines += [f"note       {one}" for one in result.notes]
    lines += [f"noise      {one}" for one in noise.findings]
    lines += [f"fails      {one}" for one in result.findings]
    lines += [f"warns      {one}" for one in result.warnings]
    lines += [f"verdict    {headline(result)}", f"           {result.smallest.words}"]
    flagged = result.flagged
    lines += [f"  frame {number}: {flagged[number]}" for number in list(flagged)[:_SHOWN]]
    if len(flagged) > _SHOWN:
        lines.append(f"  and {len(flagged) - _SHOWN} frames more; --table FILE has all")
    return lines


def as_json(result: CheckResult) -> str:
    """Return one line of JSON."""
    held = result.heldout
    verdicts = result.table.select("frame", "verdict", "evidence").to_dicts()
    found = {
        "passed": result.passed, "verdict": result.word,
        "source": result.source, "denoised": result.denoised, "frames": result.shape[0],
        "failing": result.failing, "model": result.model, "model_sha256": result.sha256,
        "device": result.device, "ratio": result.ratio,
        "heldout": held and {
            "error": held.error.value, "error_se": held.error.se,
            "gain_db": held.gain_db.value, "gain_db_se": held.gain_db.se,
            "expected": result.thresholds.error, "moves": moves(held), "pairs": held.comparisons,
        },
        "comparison": {
            "verdict": result.comparison.verdict, "words": result.comparison.words,
        },
        "smallest_defect": result.smallest._asdict() | {"words": result.smallest.words},
        "findings": result.findings, "warnings": result.warnings, "notes": result.notes,
        "noise": result.thresholds.noise._asdict(),
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
    """Write the report as a web page; OutputError if it cannot be written."""
    with renamed(Path(path)) as partial:
        partial.write_text(html(result), encoding="utf-8")


def html(result: CheckResult) -> str:
    """Return the report of a check with a page as the text of a web page that stands alone."""
    if result.page is None:
        raise ValueError("check with page=True to write a page")
    found = " ".join(result.flagged.values())
    said = [f"Fails: {one}." for one in result.findings]
    said += [f"Warning: {one}." for one in result.warnings]
    said += [f"What a pass does not say: {result.smallest.words}."]
    said += [f"{kind}: {words}." for kind, words in MEANINGS.items() if kind in found]
    words = f"<p>{_WORDS[result.word]}</p>"
    words += f"<ul>{''.join(f'<li>{escape(one)}</li>' for one in said)}</ul>"
    version = f"emdn {__version__}, {result.model} ({result.sha256[:12]}), {result.device}"
    lines = [*checked(result), version]
    return result.page.html(
        f"{result.source.name}, check", headline(result), "\n".join(lines), words
    )
