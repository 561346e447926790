"""How good the exported models are: every one, and two baselines, on the fixed test split.

Frames go the way that a user's go: each is denoised alone, by onnxruntime, at a scale that is
measured and not told. Errors are taken on expected counts, over the pixels that work.
"""

import logging
import time
from collections.abc import Iterator
from os import PathLike

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import ndimage

from emdn_deploy import Denoiser
from emdn_deploy.defects import plan
from emdn_train.data import Split, open_split

log = logging.getLogger(__name__)

GAUSSIAN_PIXELS = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)

Frame = NDArray[np.float32]


def measure(path: str | PathLike[str], models: tuple[str, ...]) -> pl.DataFrame:
    """Denoise every frame of a test split with every model.

    Parameters
    ----------
    path
        Data set whose ``test/`` was written by ``emdn-train testset``.
    models
        Shipped names, or paths of ONNX files.

    Returns
    -------
    DataFrame
        One row a model and frame: model, part, level, gain_db (10 log10 of MSE noisy /
        MSE denoised), mean_ratio, ms. The model ``gaussian`` is the filter whose width
        is best for each frame, given the truth.
    """
    rows = []
    with open_split(path, "test") as split:
        table = split.table
        assert table is not None
        for name in models:
            denoiser = Denoiser(name)
            for number, noisy, clean, valid in _frames(split):
                began = time.perf_counter()
                denoised = denoiser.denoise(noisy[None])[0]
                ms = 1e3 * (time.perf_counter() - began)
                rows.append(_row(table, number, denoiser.session.info.name) | {
                    "gain_db": _gain(noisy, denoised, clean, valid),
                    "mean_ratio": float(denoised.mean() / noisy.mean()),
                    "ms": ms,
                })  # fmt: skip
            log.info("%s measured", name)
        for number, noisy, clean, valid in _frames(split):
            blurred = (ndimage.gaussian_filter(noisy, width) for width in GAUSSIAN_PIXELS)
            best = max(_gain(noisy, one, clean, valid) for one in blurred)
            rows.append(
                _row(table, number, "gaussian") | {"gain_db": best, "mean_ratio": 1.0, "ms": None}
            )
    return pl.DataFrame(rows, infer_schema_length=None)


def summary(rows: pl.DataFrame) -> pl.DataFrame:
    """Average over frames: a row a model, its gain in dB by level and by origin.

    ``multislice`` is the part that another simulator made, ``worst`` the lowest frame.
    """
    multislice = pl.col("part").str.starts_with("multislice")
    gain = pl.col("gain_db")
    levels = sorted(rows["level"].unique())
    return (
        rows.group_by("model", maintain_order=True)
        .agg(
            *(gain.filter(pl.col("level") == level).mean().alias(f"{level:g}") for level in levels),
            gain.mean().alias("mean"),
            gain.filter(multislice).mean().alias("multislice"),
            gain.min().alias("worst"),
            ((pl.col("mean_ratio") - 1).abs().max() * 100).alias("mean off by %, worst"),
            pl.col("ms").median().alias("ms/frame"),
        )
        .with_columns(pl.selectors.float().round(2))
    )


def by_part(rows: pl.DataFrame) -> pl.DataFrame:
    """Average over frames and levels: a row a kind of frame, a column a model."""
    wide = rows.pivot("model", index="part", values="gain_db", aggregate_function="mean")
    return wide.with_columns(pl.selectors.float().round(1))


def _row(table: pl.DataFrame, number: int, model: str) -> dict[str, object]:
    known = table.row(number, named=True)
    return {"model": model, "part": known["part"], "level": known["level"]}


def _frames(split: Split) -> Iterator[tuple[int, Frame, Frame, NDArray[np.bool_]]]:
    """Yield number, noisy frame with faulty pixels filled, clean frame, and working pixels."""
    for number in range(len(split)):
        clean, noisy = split.clean([number])[0], split.noisy([number])
        # Eight standard deviations, and five electrons where there are few.
        faulty = np.abs(noisy[0] - clean) > 8 * np.sqrt(clean) + 5
        plan(faulty).apply(noisy)
        yield number, noisy[0], clean, ~faulty


def _gain(noisy: Frame, denoised: Frame, clean: Frame, valid: NDArray[np.bool_]) -> float:
    before, after = (np.square((one - clean)[valid]).mean() for one in (noisy, denoised))
    return float(10 * np.log10(before / after))
