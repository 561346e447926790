"""Where a model's copies help and where the wrong one harms, on the fixed test split.

The class of a frame is known from the truth: its detector and its expected counts. What a
deployment would take, ``MODEL@auto``, goes by the same detector and the dose that is measured.
"""

import logging
from os import PathLike
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from emdn_deploy import Denoiser, intensity
from emdn_deploy.sampling import Reader
from emdn_models import classes, metrics, pretrained
from emdn_models.classes import Mode
from emdn_models.errors import FormatError, ModelError
from emdn_train.data import Split, open_split
from emdn_train.uncertainty import mended

log = logging.getLogger(__name__)


def measure(
    path: str | PathLike[str], model: str = "cafcn", folder: str | PathLike[str] | None = None
) -> pl.DataFrame:
    """Denoise every frame of a test split with a model and each of its copies.

    Parameters
    ----------
    path
        Data set whose ``test/`` was written by ``emdn-train testset``.
    folder
        What ``emdn-train export`` has written; None for what is shipped.

    Returns
    -------
    DataFrame
        One row a frame and model: frame, class (by the truth), routed (the class by the
        measured dose, null where none could be measured), model, gain_db (10 log10 of MSE noisy
        / MSE denoised, over the pixels that work).

    Raises
    ------
    ModelError
        If there is no such model, or it has no copy.
    FormatError
        If the split has no table of detectors.
    """
    denoisers = _open(model, Path(folder or pretrained.WEIGHTS))
    rows = []
    with open_split(path, "test") as split:
        for number, mode in enumerate(_modes(split)):
            frame = mended(split.noisy([number])[0], split.clean([number])[0])
            stack = frame.noisy[None]
            scale = intensity.estimate(_reader(stack), 1, frame.noisy.shape)
            known = classes.class_of(mode, float(frame.clean.mean()))
            taken = classes.class_of(mode, scale.scale if scale.sigma else None)
            for name, denoiser in denoisers.items():
                answer = denoiser.run(stack, scale)[0]
                gain = metrics.gain_db(frame.noisy, answer, frame.clean, frame.valid)
                rows.append(
                    {
                        "frame": number,
                        "class": known.name if known else None,
                        "routed": taken.name if taken else None,
                        "model": name,
                        "gain_db": float(gain),
                    }
                )
    log.info("%d frames measured", len(rows) // len(denoisers))
    return pl.DataFrame(rows, infer_schema_length=None)


def summary(rows: pl.DataFrame, model: str = "cafcn") -> pl.DataFrame:
    """Compare the copies with their model: a row a class of frames, and one of all.

    ``agnostic`` is the model's mean gain in dB over the noisy frame. All others are dB more
    than that: the mean, and after it the ``worst`` frame. ``auto`` takes the copy by the measured
    dose, ``right`` the frames' own copy, and ``@CLASS`` that copy where it is the wrong one.
    """
    wide = rows.pivot("model", index=["frame", "class", "routed"], values="gain_db")
    copies = [name for name in wide.columns if name.startswith(f"{model}@")]
    over = wide.select(
        "class",
        agnostic=pl.col(model),
        auto=_chosen("routed", model, copies) - pl.col(model),
        right=_chosen("class", model, copies) - pl.col(model),
        **{
            name.removeprefix(model): pl.when(f"{model}@" + pl.col("class") != name).then(
                pl.col(name) - pl.col(model)
            )
            for name in copies
        },
    )
    order = [kind for kind in classes.CLASSES if kind in set(over["class"])]
    tables = [over.filter(pl.col("class") == kind) for kind in order]
    tables.append(over.with_columns(pl.lit("all").alias("class")))
    measures = ["auto", "right", *(name.removeprefix(model) for name in copies)]
    return pl.concat(
        table.select(
            pl.col("class").first(),
            pl.len().alias("frames"),
            pl.col("agnostic").mean(),
            *(
                one
                for name in measures
                for one in (pl.col(name).mean(), pl.col(name).min().alias(f"{name}, worst"))
            ),
        )
        for table in tables
    ).with_columns(pl.selectors.float().round(2))


def _chosen(column: str, model: str, copies: list[str]) -> pl.Expr:
    """Take each frame's gain with the copy for its class, where there is one, or the model."""
    gain = pl.col(model)
    for name in copies:
        gain = pl.when(f"{model}@" + pl.col(column) == name).then(pl.col(name)).otherwise(gain)
    return gain


def _open(model: str, folder: Path) -> dict[str, Denoiser]:
    path = folder / "index.json"
    models = pretrained.read_index(path)["models"]
    names = [name for name in models if name.partition("@")[0] == model]
    if model not in names or len(names) < 2:
        raise ModelError(
            f"{path}: has {', '.join(names) or f'no {model}'}, expected {model} and copies of it; "
            f"fit them with emdn-train fit --models {model}@stem --from CHECKPOINT and export"
        )
    return {name: Denoiser(folder / models[name]["file"], threads=1) for name in names}


def _modes(split: Split) -> list[Mode]:
    if split.table is None or "detector" not in split.table.columns:
        raise FormatError(
            f"{split.path}: has no table of detectors; "
            "expected a split that emdn-train testset has written"
        )
    return ["stem" if name == "stem" else "tem" for name in split.table["detector"]]


def _reader(stack: NDArray[np.float32]) -> Reader:
    return lambda start, stop: stack[start:stop]
