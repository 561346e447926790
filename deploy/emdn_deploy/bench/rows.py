"""Tables of timings: the machine, a row of what ran and how fast, and how rows are laid out."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from emdn_deploy.bench.timing import percentile
from emdn_deploy.config import Device
from emdn_deploy.session import Session, usable_cpus
from emdn_models import console, pretrained

Row = dict[str, Any]

_CONDITIONS = ("precision", "asked", "got", "threads", "batch", "size")


def processor() -> str:
    """Name the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine(*more: str) -> dict[str, Any]:
    """Describe the machine: processor, CPUs that may be used, load, system, versions.

    Versions are those of emdn, Python, numpy, onnxruntime and ``more`` that are installed.
    """
    versions = {}
    for name in ("emdn", "numpy", "onnxruntime-gpu", "onnxruntime", *more):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "cpus": usable_cpus(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def machine_line(found: dict[str, Any]) -> str:
    """Put `machine` into one line."""
    load = "" if found["load"] is None else f", load {found['load']:.1f}"
    listed = ", ".join(f"{name} {one}" for name, one in found["versions"].items())
    return f"{found['processor']}, {found['cpus']} CPUs{load}, {listed}"


def about(session: Session, asked: Device, batch: int, size: tuple[int, int]) -> Row:
    """Say what ran: model, precision, device asked for and got, threads, batch and size."""
    return {
        "model": session.info.name,
        "precision": session.precision,
        "asked": asked,
        "got": session.device,
        "threads": session.threads,
        "batch": batch,
        "size": f"{size[0]} x {size[1]}",
    }


def gflop_of(session: Session, size: tuple[int, int]) -> float:
    """Return the GFLOP of a frame (H, W), counted on the net as its paper has it."""
    return session.info.gflop_256 * size[0] * size[1] / 256**2


def gain_db(session: Session) -> float | None:
    """Return the mean gain in dB on the fixed test split; None for weights that are not shipped."""
    quality = pretrained.index()["models"].get(session.info.name, {}).get("quality", {})
    if quality.get("weights_sha256") != session.info.text.get("weights_sha256"):
        return None
    gains = quality.get("gain_db", {})
    return round(sum(gains.values()) / len(gains), 1) if gains else None


def speed(
    seconds: Sequence[float],
    frames: int,
    size: tuple[int, int],
    gflop: float | None = None,
    roofline: float | None = None,
) -> Row:
    """Turn the seconds of rounds, of so many ``frames`` each, into columns.

    With the ``gflop`` of a frame and the machine's ``roofline`` in GFLOP/s, what was reached of
    them. ``frames/s`` and what follows from it are of the median round; ``p90`` and ``p99``, in
    milliseconds a frame, are None where the rounds are too few to say them.
    """
    each = np.asarray(seconds) / frames
    median = float(np.median(each))
    row: Row = {
        "frames/s": digits(1 / median),
        "Mpx/s": digits(size[0] * size[1] / median / 1e6),
        "ms p50": digits(1e3 * median),
        "p90": milliseconds(percentile(each.tolist(), 0.9)),
        "p99": milliseconds(percentile(each.tolist(), 0.99)),
        "rounds": len(each),
    }
    if gflop is not None:
        row["GFLOP/s"] = digits(gflop / median)
        if roofline is not None:
            row["roofline"] = round(gflop / median / roofline, 2)
    return row


def milliseconds(seconds: float | None) -> float | None:
    """Return milliseconds to three digits; None stays None."""
    return None if seconds is None else digits(1e3 * seconds)


def digits(value: float) -> float:
    """Keep three significant digits."""
    return float(f"{value:.3g}")


def table(rows: Sequence[Row]) -> str:
    """Lay rows out for people; what all have in common stands above them, once."""
    head, names, text = cells(rows)
    return f"{head}\n{console.table(names, text)}"


def cells(rows: Sequence[Row]) -> tuple[str, list[str], list[list[str]]]:
    """Return what all rows have in common, the names of the other columns, and their text.

    What is unknown is ``-``; a column that no row fills is left out.
    """
    every = dict.fromkeys(name for row in rows for name in row)
    names = [name for name in every if any(row.get(name) is not None for row in rows)]
    same = [name for name in names if name in _CONDITIONS]
    same = [name for name in same if len({row.get(name) for row in rows}) == 1]
    head = ", ".join(f"{name} {rows[0][name]}" for name in same)
    names = [name for name in names if name not in same]
    return head, names, [[_text(row.get(name)) for name in names] for row in rows]


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.10g}" if isinstance(value, float) else str(value)
