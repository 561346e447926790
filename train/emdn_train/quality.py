"""How good the exported models are: every one, beside baselines, on the fixed test split.

Frames go the way that a user's go: each is denoised alone, by onnxruntime, at a scale that is
measured and not told. Models and baselines take turns at each frame, so that a machine that
slows down slows all of them. `quality_tables` averages what is measured here.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl

from emdn_deploy import Denoiser
from emdn_models import pretrained
from emdn_train import index
from emdn_train.baselines import PEERS, gaussian, need_peers, spectrum
from emdn_train.data import Split, open_split
from emdn_train.examples import Example, Frame, defect_scores, examples, score, table_of, timed
from emdn_train.simulate.testset import VERSION
from emdn_train.source import fingerprint
from emdn_train.uncertainty import coverage

log = logging.getLogger(__name__)

PEERS_FILE = "peers.parquet"

FRAMES = 198
"""Of the fixed test split with its multislice part."""

_SITE: Any = pl.Struct({"kind": pl.String, "what": pl.String, "scores": pl.List(pl.Float64)})
_COLUMNS: dict[str, Any] = {
    "model": pl.String, "frame": pl.Int64, "part": pl.String, "level": pl.Float64,
    "gain_db": pl.Float64, "psnr": pl.Float64, "ssim": pl.Float64, "mean_ratio": pl.Float64,
    "sites": pl.List(_SITE), "ms": pl.Float64, "inside_1": pl.Float64, "inside_2": pl.Float64,
}  # fmt: skip
SCHEMA = pl.Schema(_COLUMNS)
_WITH_SIGMA = 1  # specimens of each part: eight orientations take eight times as long

Method = Callable[[Example], tuple[Frame, float | None]]
Inside = Callable[[Example], tuple[float, float]]


@dataclass(frozen=True)
class QualityConfig:
    """What to measure.

    Attributes
    ----------
    testset
        Data set whose ``test/`` was written by ``emdn-train testset``.
    models
        Shipped names, or paths of ONNX files; None for all that is shipped.
    peers
        Specimens of each part on which to measure the programs of others, anew; 0 takes what
        an earlier run has left beside the split.
    threads
        Of each model, on the CPU; None takes all that the process may use.
    """

    testset: str | PathLike[str]
    models: tuple[str, ...] | None = None
    peers: int = 0
    threads: int | None = None


def measure(config: QualityConfig) -> pl.DataFrame:
    """Denoise every frame of a test split with every model and baseline.

    Returns
    -------
    DataFrame
        One row a method and frame, columns as in ``SCHEMA``: gain_db is
        10 log10 (MSE noisy / MSE denoised), ms the time of one call, array to array, and
        ``sites`` those of `emdn_train.examples.defect_scores`; ``inside_1`` and ``inside_2``
        are the shares of pixels within one and two of the sigma of ``--sigma``, of calibrated
        models on the first specimen of each part, null elsewhere. Methods are the models by name,
        ``noisy``, ``spectrum``, ``gaussian`` (see `emdn_train.baselines`), peers on some of the
        frames, and ``clean``, the truth itself, of which only sites are scored.

    Raises
    ------
    FormatError
        If the split is not one of ``emdn-train testset``.
    ModelError
        If a model is unknown or damaged.
    MissingExtraError
        If peers are asked for and none is installed.
    """
    peers = need_peers() if config.peers else ()
    methods = _models(config) | {
        "spectrum": spectrum, "gaussian": gaussian, "noisy": lambda one: (one.noisy, None)
    }  # fmt: skip
    with open_split(config.testset, "test") as split:
        chosen = specimens(table_of(split), config.peers)
        sigmas = _sigmas(config)
        few = specimens(table_of(split), _WITH_SIGMA)
        own: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for example in examples(split):
            own += list(_answers(example, methods, sigmas if example.number in few else {}))
            own.append(_row(example, "clean", None) | defect_scores(example.crystal, example.clean))
            if example.number in chosen:
                others += list(_answers(example, {name: _peer(name) for name in peers}))
            if (example.number + 1) % 33 == 0:
                log.info("%d of %d frames measured", example.number + 1, len(split))
        rows = pl.DataFrame(own, SCHEMA).sort("model", "frame", maintain_order=True)
        path = Path(config.testset) / PEERS_FILE
        if peers:
            pl.DataFrame(others, SCHEMA).with_columns(
                pl.lit(fingerprint(split)).alias("split")
            ).write_parquet(path)
        kept = _kept(path, split)
    order = {name: at for at, name in enumerate(methods)}
    return pl.concat([rows, kept]).sort(
        pl.col("model").replace_strict(order, default=len(order)), maintain_order=True
    )


def note(rows: pl.DataFrame, config: QualityConfig) -> list[Path]:
    """Enter the gain of each model into the ``index.json`` beside its file, as ``quality``.

    That is the figure that ``emdn-deploy models`` and ``bench`` show and README tabulates.

    Parameters
    ----------
    rows
        As of `measure`. Unless they are of the whole fixed split, nothing is entered.

    Returns
    -------
    The indexes that were changed.
    """
    changed = []
    for name in names_of(config):
        info = Denoiser(name, threads=1).session.info
        path = info.path.parent / index.NAME
        own = rows.filter(pl.col("model") == name.removesuffix(".onnx"))
        if len(own) != FRAMES:
            log.info("%s: %d frames, not the fixed split of %d; %s stays as it is",
                     name, len(own), FRAMES, path)  # fmt: skip
            continue
        if index.read(path)["models"].get(info.name, {}).get("sha256") != info.sha256:
            log.warning("%s: has no entry of this file, nothing added", path)
            continue
        gains = own.group_by("level").agg(pl.col("gain_db").mean().round(2)).sort("level")
        quality = {
            "gain_db": {f"{level:g}": gain for level, gain in gains.rows()},
            "frames": FRAMES,
            "test_split": VERSION,
            "weights_sha256": info.text["weights_sha256"],
        }
        index.add(path, info.name, info.sha256, {"quality": quality})
        changed.append(path)
    return list(dict.fromkeys(changed))


def specimens(table: pl.DataFrame, count: int) -> frozenset[int]:
    """Number the frames of the first ``count`` specimens of each part, at all levels."""
    ranked = table.with_row_index("row").with_columns(
        pl.col("structure").rank("dense").over("part").alias("rank")
    )
    return frozenset(ranked.filter(pl.col("rank") <= count)["row"].to_list())


def _models(config: QualityConfig) -> dict[str, Method]:
    return {name.removesuffix(".onnx"): _model(name, config.threads) for name in names_of(config)}


def names_of(config: QualityConfig) -> tuple[str, ...]:
    """Name the models to measure: those asked for, or all that is shipped."""
    return config.models or tuple(pretrained.index()["models"])


def _model(name: str, threads: int | None) -> Method:
    denoiser = Denoiser(name, threads=threads)
    return lambda example: timed(lambda: denoiser.denoise(example.noisy[None])[0])


def _sigmas(config: QualityConfig) -> dict[str, Inside]:
    """Return what measures sigma, by the names of those models that have one."""
    found: dict[str, Inside] = {}
    for name in names_of(config):
        denoiser = Denoiser(name, threads=config.threads)
        if denoiser.calibration is not None:
            found[name.removesuffix(".onnx")] = partial(_inside, denoiser)
    return found


def _inside(denoiser: Denoiser, example: Example) -> tuple[float, float]:
    denoised, sigma = denoiser.denoise_with_sigma(example.noisy[None])
    return coverage(denoised[0], sigma[0], example.clean, example.valid)


def _peer(name: str) -> Method:
    return lambda example: timed(lambda: PEERS[name][1](example.noisy))


def _answers(
    example: Example,
    methods: dict[str, Method],
    sigmas: Mapping[str, Inside] = MappingProxyType({}),
) -> Iterator[dict[str, Any]]:
    for name, method in methods.items():
        answer, ms = method(example)
        one, two = sigmas[name](example) if name in sigmas else (None, None)
        inside = {"inside_1": one, "inside_2": two}
        yield _row(example, name, ms) | score(example, answer) | inside


def _row(example: Example, model: str, ms: float | None) -> dict[str, Any]:
    return {
        "model": model, "frame": example.number, "part": example.part, "level": example.level,
        "ms": ms,
    }  # fmt: skip


def _kept(path: Path, split: Split) -> pl.DataFrame:
    """Read what was measured of peers on this very split; nothing where there is nothing."""
    if not path.exists():
        log.info("%s: not there; measure other programs with --peers 1", path)
        return pl.DataFrame(schema=SCHEMA)
    rows = pl.read_parquet(path)
    if set(rows["split"]) != {fingerprint(split)}:
        log.warning("%s: of another split, left out; measure again with --peers 1", path)
        return pl.DataFrame(schema=SCHEMA)
    return rows.select(SCHEMA.names())
