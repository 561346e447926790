"""Denoised frames against the truth, frame by frame: ``emdn-deploy evaluate``."""

from contextlib import ExitStack
from os import PathLike
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from emdn_deploy.readers import Choice, Frames, open_frames
from emdn_models.errors import EmdnError, FormatError
from emdn_models.files import renamed
from emdn_models.metrics import dose_gain, gain_db, mean_ratio, psnr, ssim

_SHOWN = 20  # rows that are printed


def evaluate(
    denoised: str | PathLike[str],
    truth: str | PathLike[str],
    noisy: str | PathLike[str] | None = None,
    data_range: float | None = None,
    choice: Choice = Choice(),  # noqa: B008
) -> pl.DataFrame:
    """Compare denoised frames with the truth, one at a time.

    Parameters
    ----------
    denoised, truth, noisy
        Stacks of one shape and one unit; ``truth`` is the expected value of ``noisy``. A truth
        of one frame stands for every frame.
    data_range
        Of PSNR and SSIM, in the frames' units; None for largest minus smallest pixel of
        each frame of the truth.
    choice
        Which frames, in files that hold more than one stack.

    Returns
    -------
    DataFrame
        A row a frame: ``frame``, ``data_range``, ``psnr_db``, ``ssim`` (NaN below 11 pixels a
        side), ``mean_ratio`` and, where noisy frames were given, ``noisy_psnr_db``,
        ``noisy_ssim``, ``gain_db``, ``dose_gain``.

    Raises
    ------
    EmdnError
        If sizes or numbers of frames differ, a pixel is not finite, or a range is not above 0.
    """
    if data_range is not None and not (np.isfinite(data_range) and data_range > 0):
        raise EmdnError(f"data range is {data_range}, expected a number above 0")
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
    if peak <= 0:
        raise EmdnError(
            f"{clean.path}: found frame {at} constant, expected structure; state a data range "
            "with --range"
        )

    def likeness(one: NDArray[np.float32], name: str) -> dict[str, float]:
        # The window of SSIM is 11 pixels wide.
        similar = float(ssim(one, truth, peak)) if min(one.shape) >= 11 else float("nan")
        return {f"{name}psnr_db": float(psnr(one, truth, peak)), f"{name}ssim": similar}

    row = {"frame": number, "data_range": peak, **likeness(frame, "")}
    row["mean_ratio"] = float(mean_ratio(frame, truth))
    if before is not None:
        raw = _finite(before, number)
        row |= likeness(raw, "noisy_")
        row["gain_db"] = float(gain_db(raw, frame, truth))
        row["dose_gain"] = float(dose_gain(raw, frame, truth))
    return row


def _finite(frames: Frames, number: int) -> NDArray[np.float32]:
    frame: NDArray[np.float32] = frames.read(number, number + 1)[0]
    if not np.isfinite(frame).all():
        raise FormatError(
            f"{Path(frames.path)}: found pixels of frame {number} that are not finite, expected "
            "numbers; replace them first"
        )
    return frame


def summary(table: pl.DataFrame) -> pl.DataFrame:
    """Return of every number of `evaluate` the mean, spread over frames, and the worst frame."""
    rows = []
    for name in (one for one in table.columns if one not in ("frame", "data_range")):
        values = table[name].to_numpy()
        if np.isnan(values).all():
            continue
        at = int(np.nanargmax(np.abs(values - 1) if name == "mean_ratio" else -values))
        with np.errstate(invalid="ignore"):  # equal frames have an infinite PSNR
            spread = float(values.std(ddof=1)) if len(values) > 1 else None
        rows.append((name, float(values.mean()), spread, float(values[at]), table["frame"][at]))
    names = ["quantity", "mean", "spread", "worst", "frame"]
    return pl.DataFrame(rows, names, orient="row")


def lines(table: pl.DataFrame) -> list[str]:
    """Return what ``emdn-deploy evaluate`` prints."""
    ranges = table["data_range"].to_numpy()
    low, high = (f"{float(one):.6g}" for one in (ranges.min(), ranges.max()))
    return [
        *([_text(table)] if table.height <= _SHOWN else []),
        _text(summary(table)),
        f"data range of PSNR and SSIM: {low if low == high else f'{low} to {high}'}",
    ]


def _text(table: pl.DataFrame) -> str:
    with pl.Config(
        tbl_rows=-1, tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True,
        tbl_formatting="ASCII_MARKDOWN", tbl_width_chars=1000, float_precision=4,
        fmt_str_lengths=400,
    ):  # fmt: skip
        return str(table)


def write_table(table: pl.DataFrame, path: Path) -> None:
    """Write a table as Parquet, or as CSV, by the suffix; OutputError if it cannot be written."""
    with renamed(path) as partial:
        if path.suffix.lower() == ".parquet":
            table.write_parquet(partial)
        else:
            table.write_csv(partial)
