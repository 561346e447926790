"""Denoised frames against the truth, frame by frame: ``emdn-deploy evaluate``."""

from contextlib import ExitStack
from os import PathLike
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from emdn_deploy.config import text_table
from emdn_deploy.readers import Choice, Frames, open_frames
from emdn_models.errors import EmdnError, FormatError
from emdn_models.files import renamed
from emdn_models.metrics import gain_db, mean_ratio, psnr, ssim


def evaluate(
    denoised: str | PathLike[str],
    truth: str | PathLike[str],
    noisy: str | PathLike[str] | None = None,
    data_range: float | None = None,
    choice: Choice = Choice(),  # noqa: B008
) -> pl.DataFrame:
    """Compare denoised frames with the truth, one at a time, stacks of one shape and one unit.

    ``truth`` is the expected value of ``noisy``; one frame of it stands for every frame.
    ``data_range`` is that of PSNR and SSIM, in the frames' units; None for largest minus smallest
    pixel of each frame of the truth. ``choice`` says which frames, in files of several stacks.

    Returns a row a frame: ``frame``, ``data_range``, ``psnr_db``, ``ssim`` (NaN below 11 pixels a
    side), ``mean_ratio`` and, where noisy frames were given, ``noisy_psnr_db``, ``noisy_ssim``,
    ``gain_db``, ``dose_gain`` (the factor that ``gain_db`` is in dB). EmdnError if sizes or numbers
    of frames differ, a pixel is not finite, or a range is not above 0.
    """
    with ExitStack() as opened:
        clean, found = (opened.enter_context(open_frames(one, choice)) for one in (truth, denoised))
        before = opened.enter_context(open_frames(noisy, choice)) if noisy is not None else None
        for other in filter(None, (clean, before)):
            counts = (found.shape[0], 1) if other is clean else (found.shape[0],)
            if other.shape[1:] != found.shape[1:] or other.shape[0] not in counts:
                has, wanted = ("{} frames of {} x {}".format(*one.shape) for one in (other, found))
                raise FormatError(
                    f"{other.path}: found {has}, expected {wanted} as in {found.path}; compare "
                    "stacks of the same frames"
                )
        rows = [_row(number, clean, found, before, data_range) for number in range(found.shape[0])]
    return pl.DataFrame(rows)


def _row(
    number: int, clean: Frames, found: Frames, before: Frames | None, data_range: float | None
) -> dict[str, float]:
    at = number if clean.shape[0] > 1 else 0
    truth, frame = _finite(clean, at), _finite(found, number)
    peak = float(np.ptp(truth)) if data_range is None else data_range
    if not (np.isfinite(peak) and peak > 0):
        raise EmdnError(
            f"{clean.path}: found a data range of {peak:g} for frame {at}, expected a number above "
            "0; state one with --range"
        )

    def likeness(one: NDArray[np.float32], name: str) -> dict[str, float]:
        metrics = {"psnr_db": psnr, "ssim": ssim}
        return {f"{name}{key}": float(of(one, truth, peak)) for key, of in metrics.items()}

    row = {"frame": number, "data_range": peak, **likeness(frame, "")}
    row["mean_ratio"] = float(mean_ratio(frame, truth))
    if before is not None:
        raw = _finite(before, number)
        gain = float(gain_db(raw, frame, truth))
        row |= likeness(raw, "noisy_") | {"gain_db": gain, "dose_gain": 10 ** (gain / 10)}
    return row


def _finite(frames: Frames, number: int) -> NDArray[np.float32]:
    frame: NDArray[np.float32] = frames.read(number, number + 1)[0]
    if not np.isfinite(frame).all():
        raise FormatError(
            f"{frames.path}: found pixels of frame {number} that are not finite, expected "
            "numbers; replace them first"
        )
    return frame


def text(table: pl.DataFrame) -> str:
    """Say of every number the mean, the spread over frames, and the worst frame."""
    rows = []
    for name in table.columns[2:]:
        values = table[name].to_numpy()
        if np.isnan(values).all():
            continue
        at = int(np.nanargmax(np.abs(values - 1) if name == "mean_ratio" else -values))
        with np.errstate(invalid="ignore"):  # equal frames have an infinite PSNR
            spread = float(values.std(ddof=1)) if len(values) > 1 else np.nan
        numbers = (f"{one:.4f}" for one in (values.mean(), spread, values[at]))
        rows.append([name, *numbers, str(table["frame"][at])])
    ranges = dict.fromkeys(f"{one:.6g}" for one in table["data_range"].sort()[[0, -1]])
    drawn = text_table(["quantity", "mean", "spread", "worst", "frame"], rows)
    return f"{drawn}\ndata range of PSNR and SSIM: {' to '.join(ranges)}"


def write_table(table: pl.DataFrame, path: Path) -> None:
    """Write a table as Parquet, or as CSV, by the suffix; OutputError if it cannot be written."""
    with renamed(path) as partial:
        if path.suffix.lower() == ".parquet":
            table.write_parquet(partial)
        else:
            table.write_csv(partial)
