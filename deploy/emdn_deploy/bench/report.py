"""Timings as printed, as Markdown, and as one line of JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict

import polars as pl

from emdn_deploy.bench import machine
from emdn_deploy.bench.rows import Row
from emdn_deploy.bench.run import Bench
from emdn_models import console

_CONDITIONS = ("precision", "asked", "got", "threads", "batch", "size")


def text(found: Bench) -> list[str]:
    """Return what ``emdn-deploy bench`` prints."""
    lines = [machine.line(found.machine), table(found.rows)]
    slow = [row["model"] for row in found.rows if not row["rounds"]]
    if slow:
        lines.append(f"too slow to time, estimated from 256 x 256: {', '.join(slow)}")
    if found.rate is not None:
        lines.append(_verdict(found.rows, found.rate))
    return lines


def table(rows: Sequence[Row]) -> str:
    """Lay rows out for people; what all have in common stands above them, once."""
    head, cells = _cells(rows)
    return f"{head}\n{console.table(cells.columns, cells.rows())}"


def markdown(rows: Sequence[Row]) -> tuple[str, str]:
    """Return what all rows have in common, and their table as Markdown."""
    head, cells = _cells(rows)
    lines = [cells.columns, ["---:"] * cells.width, *cells.rows()]
    return head, "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(rows: Sequence[Row]) -> tuple[str, pl.DataFrame]:
    """Return what all rows have in common, and the rest as text; what is unknown is ``-``.

    A column that no row fills is left out.
    """
    frame = pl.DataFrame(rows, infer_schema_length=None)
    frame = frame.select(one.name for one in frame if one.null_count() < len(one))
    same = [one.name for one in frame if one.name in _CONDITIONS and one.n_unique() == 1]
    head = ", ".join(f"{name} {frame[name][0]}" for name in same)
    frame = frame.drop(same)
    return head, frame.select(
        pl.when(pl.col(name).is_null())
        .then(pl.lit("-"))
        .otherwise(_written(frame, name))
        .alias(name)
        for name in frame.columns
    )


def as_json(found: Bench) -> str:
    """Return one line of JSON."""
    return json.dumps(asdict(found))


def _written(frame: pl.DataFrame, name: str) -> pl.Expr:
    column = pl.col(name)
    if frame.schema[name] == pl.Boolean:
        return pl.when(column).then(pl.lit("yes")).otherwise(pl.lit("no"))
    if frame.schema[name].is_float():
        return column.map_elements(lambda value: f"{value:.10g}", return_dtype=pl.String)
    return column.cast(pl.String)


def _verdict(rows: Sequence[Row], rate: float) -> str:
    able = ", ".join(row["model"] for row in rows if row["keeps up"])
    return f"keep up with {rate:g} frames/s of {rows[0]['size']}: {able or 'none'}"
