"""A row of a table of timings: which model ran where and on what, and how fast."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from emdn_deploy.bench.rounds import percentile
from emdn_deploy.config import Device
from emdn_deploy.session import Session
from emdn_models import pretrained

Row = dict[str, Any]


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
    """Return the mean gain in dB on the fixed test split, of which the index has each level.

    None for weights that are not shipped.
    """
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
    """Turn rounds into columns.

    Parameters
    ----------
    seconds
        Of each round.
    frames
        That a round denoises; times are given for one of them.
    gflop
        Of a frame.
    roofline
        GFLOP/s of the machine, for the share of it that was reached.

    Returns
    -------
    dict
        ``frames/s`` and what follows from it are of the median round; ``p90`` and ``p99``,
        in milliseconds a frame, are None where the rounds are too few to say them.
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
