"""What benchmarks share: noisy frames, and tables at the end of a run.

A benchmark with ``table`` and ``row`` in its ``extra_info`` becomes a row of the table of that
name. With ``frames``, how many a round denoises, it gets the columns of `emdn_deploy.bench.speed`
from the rounds, ``size`` and ``gflop``.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

RESULTS = Path(__file__).parent / "results"
NOTES = {
    "ratios": "Times slower than the shipped model by session.run, batch 1, median of rounds in "
    "turn and quartiles. matmul: relative to the GFLOP/s of a product of matrices in the same "
    "rounds.",
    "inference": "single-stream and offline: session.run, of one frame and of 16; array: "
    "Denoiser.denoise; file: emdn-deploy denoise, but for opening the model.",
}


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    session = getattr(config, "_benchmarksession", None)
    for name, table in ({} if session is None else collect(session.benchmarks)).items():
        terminalreporter.write_line(f"\n{save(RESULTS, name, table)}")


def collect(benchmarks: Iterable[Any]) -> dict[str, pl.DataFrame]:
    """Gather the benchmarks of a session into tables, in the order of the tests."""
    from emdn_deploy import bench

    found: dict[str, list[dict[str, Any]]] = {}
    for one in benchmarks:
        info = one.extra_info
        if "table" in info:
            row = dict(info["row"])
            if "frames" in info:
                row |= bench.speed(one.stats.data, info["frames"], info["size"], info["gflop"])
            found.setdefault(info["table"], []).append(row)
    # By name: a row may lack columns that others have.
    return {name: pl.concat(map(pl.DataFrame, rows), how="diagonal_relaxed")
            for name, rows in found.items()}  # fmt: skip


def save(folder: Path, name: str, table: pl.DataFrame) -> str:
    """Write a table as Markdown, below what it is of, and as CSV; return the Markdown."""
    from emdn_deploy import bench

    folder.mkdir(parents=True, exist_ok=True)
    machine = bench.machine_line(bench.machine("torch", "openvino"))
    parts = ["By `make bench`, with the shipped weights.", machine]
    names, text = bench.cells(table.to_dicts())
    lines = [names, ["---:"] * len(names), *text]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    parts += [NOTES[name], body] if name in NOTES else [body]
    made = "\n\n".join([f"# {name}", *parts])
    (folder / f"{name}.md").write_text(made + "\n", encoding="utf-8")
    table.write_csv(folder / f"{name}.csv")
    return made


@pytest.fixture(scope="session")
def ring():
    """Noisy frames, (16, 256, 256) float32."""
    from emdn_deploy.bench import noisy

    return noisy(16, 256, 256)
