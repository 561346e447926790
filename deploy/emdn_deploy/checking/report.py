"""A check as one HTML file with its pictures inside: nothing is loaded, no script runs."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from os import PathLike
from pathlib import Path

import polars as pl

from emdn_deploy.checking import pictures, tables, verdict
from emdn_deploy.checking.result import CheckResult
from emdn_models import __version__
from emdn_models.errors import OutputError
from emdn_models.files import renamed

_ROWS = 100  # failing frames that are listed
_HONEST = (
    "The residual is raw minus denoised. Honest ones come from frames of this stack, once "
    "denoised, to which new noise was added, and which were denoised again in the same way. "
    "Sigma: standard deviations of the noise, or of what honest ones scatter by."
)
_WORDS = {
    "PASS": "Nothing was found beyond what honest denoisings of such frames show.",
    "WARN": "Nothing was found beyond what honest denoisings show, but:",
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


def write(path: str | PathLike[str], result: CheckResult) -> None:
    """Write the report as ``.html``, or its overview alone as ``.png``, by the suffix.

    Raises
    ------
    OutputError
        If the suffix is another, or the file cannot be written.
    """
    target = Path(path)
    kind = target.suffix.lower()
    if kind not in (".html", ".png"):
        raise OutputError(f"{target}: unknown kind of report {kind!r}; give .html or .png")
    content = pictures.overview(result) if kind == ".png" else html(result).encode()
    with renamed(target) as partial:
        partial.write_bytes(content)


def html(result: CheckResult) -> str:
    """Return the report as the text of a web page."""
    facts = result.facts
    parts = [
        f"<h1>{result.word}: {escape(facts.source.name)}</h1>",
        _verdict(result),
        _failing(result),
        "<h2>Numbers</h2>",
        f"<p>{_HONEST}</p>",
        _table(("number", "value", "threshold", "what it says"), tables.numbers(result)),
        "<h2>Frames</h2>",
        *(
            _figure(
                pictures.frame(shown, result),
                f"Frame {shown.number}: {_said(result, shown.number)}.",
            )
            for shown in result.exhibits.frames
        ),
        "<h2>Over the stack</h2>",
        _figure(
            pictures.courses(result),
            "Dashed: the range that honest denoisings of resampled frames keep to.",
        ),
        _figure(
            pictures.curves(result),
            "Left: structure that was removed lifts the curve above the honest ones, noise left "
            "in lowers it. Right: what a denoised frame shares with the next raw frame, whose "
            "noise is independent; two denoised frames are never compared, since they would agree "
            "on whatever the denoiser invents. On a lattice a first crossing means nothing.",
        ),
        _figure(pictures.slices(result.exhibits), "One row of pixels over time. A view, not data."),
        "<h2>Details</h2>",
        f"<pre>{escape(chr(10).join(tables.checked(result, listed=False)))}</pre>",
        f"<p>emdn {escape(__version__)}, model {escape(facts.model)} "
        f"({escape(facts.sha256[:12])}), {escape(facts.device)}.</p>",
    ]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>emdn check: {escape(facts.source.name)}</title>\n<style>{_STYLE}</style>\n"
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _verdict(result: CheckResult) -> str:
    facts = result.facts
    said = f"<strong>{escape(tables.headline(result))}</strong>. {_WORDS[result.word]}"
    reasons = [*facts.findings, *facts.warnings]
    if reasons:
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


def _failing(result: CheckResult) -> str:
    bad = tables.standing(result)
    if not bad.height:
        return ""
    rows = bad.select("frame", "verdict", "evidence").head(_ROWS).iter_rows()
    more = bad.height - _ROWS
    rest = f"<p>and {more} frames more; --table FILE has all.</p>" if more > 0 else ""
    kinds = {kind for text in bad["verdict"] for kind in text.split("; ")}
    meanings = "".join(
        f"<li><strong>{kind}</strong>: {escape(words)}</li>"
        for kind, words in verdict.MEANINGS.items()
        if kind in kinds
    )
    return (
        f"<h2>Frames flagged</h2>\n<ul>{meanings}</ul>\n"
        f"{_table(('frame', 'verdict', 'evidence'), rows)}\n{rest}"
    )


def _said(result: CheckResult, number: int) -> str:
    row = result.table.filter(pl.col("frame") == number).row(0, named=True)
    return f"{row['verdict']} ({row['evidence']})" if row["evidence"] else str(row["verdict"])


def _figure(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
