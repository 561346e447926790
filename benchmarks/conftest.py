"""What benchmarks share: the models that are timed, noisy frames, tables at the end of a run.

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
    "turn and quartiles. roofline: share of the GFLOP/s of a 64 -> 64 convolution in the same "
    "rounds.",
    "boundaries": "Shares of the frames/s of compute, bare session.run, the faster of one frame "
    "by all threads and one on each; median of rounds in turn and quartiles.",
}


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    session = getattr(config, "_benchmarksession", None)
    found = {} if session is None else collect(session.benchmarks)
    if not found:
        return
    from benchmarks import peers  # torch: every run of the tests would pay for it
    from emdn_deploy import bench

    head = ["By `make bench`, with the shipped weights."]
    head.append(bench.machine_line(bench.machine("torch", "openvino")))
    for name, table in found.items():
        lines = [*head, NOTES[name]] if name in NOTES else list(head)
        if name == "ratios":
            lines += [f"Left out: {peer}, which {why}." for peer, why in peers.absent().items()]
        terminalreporter.write_line(f"\n{name}\n{save(RESULTS, name, table, lines)}")
    terminalreporter.write_line(f"saved in {RESULTS}")


def collect(benchmarks: Iterable[Any]) -> dict[str, pl.DataFrame]:
    """Gather the benchmarks of a session into tables, in the order of the tests."""
    from emdn_deploy import bench

    found: dict[str, list[dict[str, Any]]] = {}
    for one in benchmarks:
        info = one.extra_info
        if "table" not in info:
            continue
        row = dict(info["row"])
        if "frames" in info:
            row |= bench.speed(one.stats.data, info["frames"], info["size"], info["gflop"])
        found.setdefault(info["table"], []).append(row)
    return {
        name: pl.DataFrame(made, infer_schema_length=None).select(
            list(dict.fromkeys(key for one in made for key in one))
        )
        for name, made in found.items()
    }


def save(folder: Path, name: str, table: pl.DataFrame, head: Iterable[str]) -> str:
    """Write a table as Markdown and CSV; return it as printed."""
    from emdn_deploy import bench

    folder.mkdir(parents=True, exist_ok=True)
    conditions, names, text = bench.cells(table.to_dicts())
    lines = [names, ["---:"] * len(names), *text]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    parts = [*head, *([conditions] if conditions else []), body]
    (folder / f"{name}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    table.write_csv(folder / f"{name}.csv")
    return "\n".join([*head, bench.table(table.to_dicts())])


@pytest.fixture(scope="session")
def ring():
    """Noisy frames, (16, 256, 256) float32."""
    from emdn_deploy.bench import noisy

    return noisy(16, 256, 256)
