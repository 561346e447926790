"""How far predicted standard deviations can be trusted, on the fixed test split.

Three predictions of the error of the same frames, each the mean over eight orientations:
``calibrated``, what ``--sigma`` writes; ``spread``, the raw standard deviation over the
orientations; ``noise only``, the square root of a constant share of the expected noise.
"""

import logging
from collections.abc import Iterator
from os import PathLike
from typing import Any

import numpy as np
import polars as pl

from emdn_deploy import Denoiser
from emdn_models import pretrained
from emdn_models.errors import ModelError
from emdn_train.data import open_split
from emdn_train.uncertainty import Answer, Frame, Recorded, answer, coverage, mended

log = logging.getLogger(__name__)

# Variance of the logarithm of the modulus of a standard normal number.
_LOG_VARIANCE = np.pi**2 / 8


def measure(path: str | PathLike[str], models: tuple[str, ...]) -> pl.DataFrame:
    """Compare predictions with errors on every frame of a test split.

    Parameters
    ----------
    path
        Data set whose ``test/`` was written by ``emdn-train testset``.
    models
        Shipped and calibrated.

    Returns
    -------
    DataFrame
        One row a model, prediction and frame: model, prediction, part, level, the shares of
        pixels ``inside_1`` and ``inside_2`` sigma, ``ratio_squared`` (mean of squared error /
        sigma^2), and ``a, b, aa, bb, ab``, the means of a = log(sigma), b = log(error) and their
        products, both in units of the frame's noise.

    Raises
    ------
    ModelError
        If a model is not calibrated.
    """
    rows = []
    with open_split(path, "test") as split:
        table = split.table
        assert table is not None
        for name in models:
            denoiser = Denoiser(name, threads=1)
            if denoiser.calibration is None:
                raise ModelError(f"{name}: is not calibrated; run emdn-train calibrate first")
            for number in range(len(split)):
                frame = mended(split.noisy([number])[0], split.clean([number])[0])
                made = answer(denoiser, frame.noisy)
                known = table.row(number, named=True)
                for prediction, sigma in _predictions(denoiser, made):
                    rows.append(
                        {"model": name, "prediction": prediction}
                        | {key: known[key] for key in ("part", "level")}
                        | _statistics(frame, made, sigma)
                    )
            log.info("%s measured", name)
    return pl.DataFrame(rows, infer_schema_length=None)


def summary(rows: pl.DataFrame, by: str | None = None) -> pl.DataFrame:
    """Average over frames: a row a model and prediction, or also one for each value of ``by``.

    ``inside 1`` and ``inside 2`` are in per cent, ideally 68.3 and 95.4 where errors are
    Gaussian; ``rms`` is the root of the mean of squared error / sigma^2, ideally 1. ``correlation``
    is that of log sigma with log error over all pixels, and ``ideal`` what it would be if errors
    were Gaussian with these very sigma.
    """
    keys = ["model", "prediction", *([by] if by else [])]
    variance = pl.col("aa").mean() - pl.col("a").mean() ** 2
    error = pl.col("bb").mean() - pl.col("b").mean() ** 2
    both = pl.col("ab").mean() - pl.col("a").mean() * pl.col("b").mean()
    return (
        rows.group_by(keys, maintain_order=True)
        .agg(
            (100 * pl.col("inside_1").mean()).round(1).alias("inside 1"),
            (100 * pl.col("inside_2").mean()).round(1).alias("inside 2"),
            pl.col("ratio_squared").mean().sqrt().round(2).alias("rms"),
            (both / (variance * error).sqrt()).round(3).alias("correlation"),
            (variance / (variance + _LOG_VARIANCE)).sqrt().round(3).alias("ideal"),
        )
        .sort(keys[:1], maintain_order=True)
    )


def _predictions(denoiser: Denoiser, made: Answer) -> Iterator[tuple[str, Frame]]:
    calibration = denoiser.calibration
    assert calibration is not None
    yield "calibrated", calibration.sigma((made.spread, made.noise))
    yield "spread", np.sqrt(made.variance)
    index = pretrained.read_index(denoiser.session.info.path.parent / "index.json")
    share = index["models"][denoiser.session.info.name]["sigma"]["noise_only"]
    yield "noise only", np.sqrt(np.float32(share) * made.noise)


def _statistics(frame: Recorded, made: Answer, sigma: Frame) -> dict[str, Any]:
    valid, unit = frame.valid, made.scale.sigma
    error = np.abs(made.denoised - frame.clean)[valid].astype(np.float64) / unit
    known = np.maximum(sigma[valid].astype(np.float64) / unit, 1e-4)
    # An error of exactly 0 has no logarithm.
    a, b = np.log(known), np.log(np.maximum(error, 1e-4))
    inside = coverage(made.denoised, sigma, frame.clean, valid)
    return {
        "inside_1": inside[0], "inside_2": inside[1],
        "ratio_squared": float(np.mean((error / known) ** 2)),
        "a": float(a.mean()), "b": float(b.mean()), "aa": float((a * a).mean()),
        "bb": float((b * b).mean()), "ab": float((a * b).mean()),
    }  # fmt: skip
