"""From pytest-benchmark's rounds to tables: as text, Markdown, CSV and Parquet.

Every benchmark that puts ``table`` in its ``extra_info`` becomes a row of the table of that name.
``row`` are columns. With ``frames``, how many a round denoises, come those of
`emdn_deploy.bench.speed`, of the rounds and of ``size``, ``gflop`` and ``roofline``.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from emdn_deploy import bench

# What a reader needs to know of a table that has not all columns, or that is not self-evident.
NOTES = {
    "ratios": "Times slower than the shipped model by session.run, batch 1, median of rounds in "
    "turn and quartiles. roofline: share of the GFLOP/s of a 64 -> 64 convolution in the same "
    "rounds.",
    "boundaries": "Shares of the frames/s of compute, bare session.run, the faster of one frame "
    "by all threads and one on each; median of rounds in turn and quartiles.",
    "profile": "Shares of the time of a frame's operators, medians of single ones added up. What "
    "is not a convolution is nearly all the spectra's.",
}


def collect(benchmarks: Iterable[Any]) -> dict[str, pl.DataFrame]:
    """Gather the benchmarks of a session into tables, in the order of the tests."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in benchmarks:
        info = one.extra_info
        if "table" not in info:
            continue
        row = dict(info["row"])
        if "frames" in info:
            limits = info.get("gflop"), info.get("roofline")
            row |= bench.speed(one.stats.data, info["frames"], tuple(info["size"]), *limits)
        found.setdefault(info["table"], []).append(row)
    return {
        name: pl.DataFrame(made, infer_schema_length=None).select(
            list(dict.fromkeys(key for one in made for key in one))
        )
        for name, made in found.items()
    }


def notes(name: str, absent: Mapping[str, str]) -> list[str]:
    """Say what a table's columns mean, and which peers it lacks, and why."""
    lines = [NOTES[name]] if name in NOTES else []
    if name == "ratios":
        lines += [f"Left out: {peer}, which {why}." for peer, why in absent.items()]
    return lines


def save(folder: Path, name: str, table: pl.DataFrame, head: Iterable[str]) -> str:
    """Write a table as Markdown, CSV and Parquet; return it as printed."""
    folder.mkdir(parents=True, exist_ok=True)
    conditions, names, text = bench.cells(table.to_dicts())
    lines = [names, ["---:"] * len(names), *text]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    parts = [*head, *([conditions] if conditions else []), body]
    (folder / f"{name}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    table.write_csv(folder / f"{name}.csv")
    table.write_parquet(folder / f"{name}.parquet")
    return "\n".join([*head, bench.table(table.to_dicts())])
