"""Denoised frames against the truth, frame by frame: ``emdn-deploy evaluate``."""

from contextlib import ExitStack
from dataclasses import dataclass
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
# Smaller is worse for all but the ratio, of which the one farthest from 1 is.
_LEAST = ("psnr_db", "ssim", "noisy_psnr_db", "noisy_ssim", "gain_db", "dose_gain")


@dataclass(frozen=True)
class Evaluation:
    """Denoised frames against the truth.

    ``table`` has one row a frame: ``frame``, ``data_range``, ``psnr_db``, ``ssim``, ``mean_ratio``
    and, where noisy frames were given, ``noisy_psnr_db``, ``noisy_ssim``, ``gain_db``,
    ``dose_gain``. ``summary`` has ``quantity``, ``mean``, ``spread`` (standard deviation over
    frames), ``worst`` and the ``frame`` that is worst.
    """

    table: pl.DataFrame
    summary: pl.DataFrame
    range_from: str  # where the data range comes from, in words


def evaluate(
    denoised: str | PathLike[str],
    truth: str | PathLike[str],
    noisy: str | PathLike[str] | None = None,
    data_range: float | None = None,
    choice: Choice = Choice(),  # noqa: B008
) -> Evaluation:
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

    Raises
    ------
    FormatError
        If sizes or numbers of frames differ, or a pixel is not finite.
    EmdnError
        If the data range is not above 0, or a frame of the truth is constant and no data
        range is given.
    """
    if data_range is not None and not (np.isfinite(data_range) and data_range > 0):
        raise EmdnError(f"data range is {data_range}, expected a number above 0")
    with ExitStack() as opened:
        clean = opened.enter_context(open_frames(truth, choice))
        found = opened.enter_context(open_frames(denoised, choice))
        before = opened.enter_context(open_frames(noisy, choice)) if noisy is not None else None
        _refuse(clean, found, before)
        rows = [_row(number, clean, found, before, data_range) for number in range(found.shape[0])]
    table = pl.DataFrame(rows)
    range_from = "as given" if data_range is not None else "that of each frame of the truth"
    return Evaluation(table, _summary(table), range_from)


def _refuse(clean: Frames, found: Frames, before: Frames | None) -> None:
    for other in (clean, before):
        if other is None:
            continue
        single = other is clean and clean.shape[0] == 1
        if other.shape[1:] != found.shape[1:] or not (single or other.shape[0] == found.shape[0]):
            told, wanted = ("{} frames of {} x {}".format(*one.shape) for one in (other, found))
            raise FormatError(
                f"{other.path}: found {told}, expected {wanted} as in {found.path}; compare "
                "stacks of the same frames"
            )


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
    row = {"frame": number, "data_range": peak, **_likeness(frame, truth, peak)}
    row["mean_ratio"] = float(mean_ratio(frame, truth))
    if before is not None:
        raw = _finite(before, number)
        row |= {f"noisy_{name}": one for name, one in _likeness(raw, truth, peak).items()}
        row["gain_db"] = float(gain_db(raw, frame, truth))
        row["dose_gain"] = float(dose_gain(raw, frame, truth))
    return row


def _likeness(
    frame: NDArray[np.float32], truth: NDArray[np.float32], peak: float
) -> dict[str, float]:
    # The window of SSIM is 11 pixels wide.
    similar = float(ssim(frame, truth, peak)) if min(frame.shape) >= 11 else float("nan")
    return {"psnr_db": float(psnr(frame, truth, peak)), "ssim": similar}


def _finite(frames: Frames, number: int) -> NDArray[np.float32]:
    frame: NDArray[np.float32] = frames.read(number, number + 1)[0]
    if not np.isfinite(frame).all():
        raise FormatError(
            f"{Path(frames.path)}: found pixels of frame {number} that are not finite, expected "
            "numbers; replace them first"
        )
    return frame


def _summary(table: pl.DataFrame) -> pl.DataFrame:
    rows = []
    for name in (one for one in (*_LEAST, "mean_ratio") if one in table.columns):
        values = table[name].to_numpy()
        badness = -values if name in _LEAST else np.abs(values - 1)
        if np.isnan(values).all():
            continue
        at = int(np.nanargmax(badness))
        with np.errstate(invalid="ignore"):  # equal frames have an infinite PSNR
            spread = float(values.std(ddof=1)) if len(values) > 1 else None
        rows.append(
            (name, float(values.mean()), spread, float(values[at]), int(table["frame"][at]))
        )
    schema = {"quantity": pl.String, "mean": pl.Float64, "spread": pl.Float64, "worst": pl.Float64}
    return pl.DataFrame(rows, {**schema, "frame": pl.Int64}, orient="row")


def lines(result: Evaluation) -> list[str]:
    """Return what ``emdn-deploy evaluate`` prints."""
    ranges = result.table["data_range"].to_numpy()
    low, high = (f"{float(one):.6g}" for one in (ranges.min(), ranges.max()))
    between = low if low == high else f"{low} to {high}"
    return [
        *([_text(result.table)] if result.table.height <= _SHOWN else []),
        _text(result.summary),
        f"data range of PSNR and SSIM: {result.range_from}, {between}",
    ]


def _text(table: pl.DataFrame) -> str:
    with pl.Config(
        tbl_rows=-1, tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True,
        tbl_formatting="ASCII_MARKDOWN", tbl_width_chars=1000, float_precision=4,
        fmt_str_lengths=400,
    ):  # fmt: skip
        return str(table)


def write_table(table: pl.DataFrame, path: Path) -> None:
    """Write a table as Parquet, or as CSV, by the suffix.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    with renamed(path) as partial:
        if path.suffix.lower() == ".parquet":
            table.write_parquet(partial)
        else:
            table.write_csv(partial)
