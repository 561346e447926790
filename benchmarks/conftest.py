"""From pytest-benchmark's rounds to tables: printed, and saved in ``results/``.

Every benchmark that puts ``table`` in its ``extra_info`` becomes a row of the table of
that name; its other ``extra_info`` are the columns, and ``frames`` the frames a round.
"""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parent / "results"


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    session = getattr(config, "_benchmarksession", None)
    done = [one for one in session.benchmarks if "table" in one.extra_info] if session else []
    if not done:
        return
    import polars as pl  # every run of the tests would pay for it

    RESULTS.mkdir(exist_ok=True)
    for name in dict.fromkeys(one.extra_info["table"] for one in done):
        rows = [_row(one) for one in done if one.extra_info["table"] == name]
        table = pl.DataFrame(rows, infer_schema_length=None)
        table.write_csv(RESULTS / f"{name}.csv")
        style = {
            "tbl_rows": -1,
            "tbl_cols": -1,
            "tbl_width_chars": 200,
            "tbl_hide_column_data_types": True,
            "tbl_hide_dataframe_shape": True,
        }
        with pl.Config(tbl_formatting="MARKDOWN", **style):
            (RESULTS / f"{name}.md").write_text(f"{_machine_line()}\n\n{table}\n")
        with pl.Config(**style):
            terminalreporter.write_line("")
            terminalreporter.write_line(f"{name}: {_machine_line()}")
            terminalreporter.write_line(str(table))
    (RESULTS / "machine.json").write_text(json.dumps(machine(), indent=2) + "\n")
    terminalreporter.write_line(f"saved in {RESULTS}")


def _row(one: Any) -> dict[str, Any]:
    """Turn the rounds of one benchmark into a row; a p99 needs at least 100 of them."""
    import numpy as np

    info = {key: value for key, value in one.extra_info.items() if key != "table"}
    frames = info.pop("frames", 1)
    gflop = info.pop("gflop", None)
    rounds = np.array(one.stats.data) / frames
    p50 = float(np.median(rounds))
    row = info | {
        "frames/s": _digits(1 / p50),
        "ms/frame p50": _digits(1e3 * p50),
        "p90": _digits(1e3 * float(np.quantile(rounds, 0.9))) if len(rounds) >= 10 else None,
        "p99": _digits(1e3 * float(np.quantile(rounds, 0.99))) if len(rounds) >= 100 else None,
        "rounds": len(rounds),
    }
    if gflop is not None:
        row["GFLOP/s"] = _digits(gflop / p50)
    return row


def _digits(value: float) -> float:
    """Keep three significant digits."""
    return float(f"{value:.3g}")


def machine() -> dict[str, Any]:
    """Describe where and with what the numbers were made."""
    return {
        "processor": _processor(),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("emdn", "numpy", _onnxruntime())},
    }


def _machine_line() -> str:
    found = machine()
    runtime = _onnxruntime()
    load = f", load {found['load'][0]:.1f}" if found["load"] else ""
    return (
        f"{found['processor']}, {found['threads']} threads{load}, "
        f"{runtime} {found['versions'][runtime]}"
    )


def _onnxruntime() -> str:
    from importlib.metadata import PackageNotFoundError

    try:
        version("onnxruntime-gpu")
    except PackageNotFoundError:
        return "onnxruntime"
    return "onnxruntime-gpu"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
