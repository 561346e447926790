"""Quality of exported models, beside baselines, on the fixed test split: measurement and tables.

Frames go the way that a user's go: each is denoised alone, by onnxruntime, at a scale that is
measured; models that see several frames see others of the same scene beside it. Models and
baselines take turns at each frame, so that a machine that slows down slows all of them.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy import ndimage

from emdn_deploy import Denoiser
from emdn_models import metrics, pretrained
from emdn_models.errors import EmdnError, FormatError, library
from emdn_models.files import renamed
from emdn_models.nets.scaling import denormalise, noise_map, normalise
from emdn_models.nets.spectral import SpectralShrinkage
from emdn_models.vacancies import Roc, Sites, roc, simulated_sites, site_scores
from emdn_train import hops
from emdn_train.calibrate import coverage, denoise, mended
from emdn_train.config import QualityConfig
from emdn_train.dataset import STEM, Split
from emdn_train.simulate.dataset import VERSION

log = logging.getLogger(__name__)

FRAMES = 396
"""Of the fixed test split with its multislice part."""

_SITE: Any = pl.Struct({"kind": pl.String, "what": pl.String, "scores": pl.List(pl.Float64)})
_COLUMNS: dict[str, Any] = {
    "model": pl.String, "frame": pl.Int64, "part": pl.String, "level": pl.Float64,
    "gain_db": pl.Float64, "psnr": pl.Float64, "ssim": pl.Float64, "mean_ratio": pl.Float64,
    "sites": pl.List(_SITE), "ms": pl.Float64, "inside_1": pl.Float64, "inside_2": pl.Float64,
}  # fmt: skip
SCHEMA = pl.Schema(_COLUMNS)
_LEVEL = 0.4  # of which a summary gives the vacancies
_WITH_SIGMA = 1  # specimens of each part: eight orientations take eight times as long
_SEEN = 3.0  # standard deviations of full sites in the clean frame
_GAUSSIAN_PIXELS = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
_SPECTRUM_PIXELS = 128

Frame = NDArray[np.float32]
Mask = NDArray[np.bool_]
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Crystal:
    """A crystal with defects that its clean frame shows, site by site."""

    sites: Sites  # where columns are, or ought to be
    groups: Mapping[str, Mask]  # vacant, foreign and full, each with its (n,) sites
    # (5, n) whether a vacancy is brighter there, 1, or darker, -1, for each width of
    # `emdn_models.vacancies`.
    sign: NDArray[np.float64]
    pixel_size_nm: float


@dataclass(frozen=True, eq=False)
class Example:
    """One frame with its truth, (H, W) in electrons."""

    number: int  # row of the table
    part: str  # kind of frame
    level: float  # signal to noise per pixel
    noisy: Frame  # faulty pixels filled
    clean: Frame
    valid: Mask  # pixels that work
    crystal: Crystal | None = None  # None where defects cannot be scored


def measure(config: QualityConfig) -> pl.DataFrame:
    """Denoise every frame of a test split with every model and baseline.

    Returns a row a method and frame, columns as in ``SCHEMA``: ``gain_db`` is 10 log10(MSE noisy
    / MSE denoised), ``ms`` the time of one call, array to array, ``sites`` those of
    `defect_scores`, ``inside_1`` and ``inside_2`` the shares of pixels within one and two of
    ``--sigma``, of calibrated models on the first specimen of each part. Methods are the models
    by name, ``spectrum``, ``gaussian``, ``noisy``, peers on some of the frames, and ``clean``,
    the truth itself, of which only sites are scored. A split that ``emdn-train testset`` has not
    written is a `FormatError`, peers that are not installed are a `MissingExtraError`.
    """
    peers = PEERS if config.peers else {}
    for module in MODULES if config.peers else ():
        library(module, "bench-peers", "--peers")
    models = models_of(config)
    rows: list[Row] = []
    with Split(config.testset, "test") as split:
        beside = specimens(table_of(split), config.peers)
        few = specimens(table_of(split), _WITH_SIGMA)
        for one in examples(split):
            calls: dict[str, Callable[[], Frame]] = {
                name: partial(_denoised, model, one) for name, model in models.items()
            }
            calls["spectrum"] = partial(spectrum, one.noisy)
            width = best_width(one)
            calls["gaussian"] = partial(ndimage.gaussian_filter, one.noisy, width)
            if one.number in beside:
                calls |= {name: partial(run, one.noisy) for name, run in peers.items()}
            key = {"frame": one.number, "part": one.part, "level": one.level}
            for name, call in calls.items():
                began = time.perf_counter()
                answer = call()
                ms = 1e3 * (time.perf_counter() - began)
                row = key | {"model": name, "ms": ms} | score(one, answer)
                if one.number in few and name in models and models[name].calibration:
                    frame, sigma = denoise(models[name], one.noisy, one.clean, with_sigma=True)
                    assert sigma is not None
                    inside = coverage(frame, sigma, one.clean, one.valid)
                    row |= dict(zip(("inside_1", "inside_2"), inside, strict=True))
                rows.append(row)
            rows.append(key | {"model": "noisy"} | score(one, one.noisy))
            rows.append(key | {"model": "clean"} | defect_scores(one.crystal, one.clean))
            if (one.number + 1) % 33 == 0:
                log.info("%d of %d frames measured", one.number + 1, len(split))
    order = [*models, "spectrum", "gaussian", "noisy", *peers, "clean"]
    place = pl.col("model").replace_strict({name: at for at, name in enumerate(order)})
    return pl.DataFrame(rows, SCHEMA).sort(place, "frame")


def _denoised(model: Denoiser, example: Example) -> Frame:
    return denoise(model, example.noisy, example.clean)[0]


def models_of(config: QualityConfig) -> dict[str, Denoiser]:
    """Open the models that are asked for, or all that is shipped, by name or path."""
    names = config.models or tuple(pretrained.index()["models"])
    return {name.removesuffix(".onnx"): Denoiser(name, threads=config.threads) for name in names}


def note(rows: pl.DataFrame, config: QualityConfig) -> list[Path]:
    """Enter the gain of each model into the ``index.json`` beside its file, as ``quality``.

    ``emdn-deploy models`` and ``bench`` show that figure. Only rows of all of the fixed split are
    entered. Returns the files that were changed.
    """
    changed = []
    for name, model in models_of(config).items():
        info, own = model.session.info, rows.filter(model=name)
        path = info.path.parent / pretrained.INDEX
        models = pretrained.read_index(path)["models"] if path.exists() else {}
        listed = models.get(info.name, {}).get("sha256") == info.sha256
        if len(own) != FRAMES or not listed:
            why = "it has no entry of this file" if not listed else f"{len(own)} of {FRAMES} frames"
            log.info("%s: not entered into %s: %s", name, path, why)
            continue
        gains = own.group_by("level").agg(pl.col("gain_db").mean().round(2)).sort("level")
        quality = {
            "gain_db": {f"{level:g}": gain for level, gain in gains.rows()},
            "frames": FRAMES,
            "test_split": VERSION,
            "weights_sha256": info.text["weights_sha256"],
        }
        pretrained.add_facts(path.parent, info.name, info.sha256, {"quality": quality})
        changed.append(path)
    return list(dict.fromkeys(changed))


def specimens(table: pl.DataFrame, count: int) -> frozenset[int]:
    """Number the frames of the first ``count`` specimens of each part, at all levels."""
    ranks = table.select(pl.col("structure").rank("dense").over("part")).to_series()
    return frozenset(np.flatnonzero(ranks <= count).tolist())


def table_of(split: Split) -> pl.DataFrame:
    """Return the table of a test split, which needs columns that ``emdn-train testset`` writes."""
    table = pl.DataFrame() if split.table is None else split.table
    if lacking := {"part", "level", "structure", "pixel_size_nm"} - {*table.columns}:
        raise FormatError(
            f"{split.path}: its table lacks {', '.join(sorted(lacking))}; "
            "expected a split that emdn-train testset has written"
        )
    return table


def examples(split: Split) -> Iterator[Example]:
    """Yield every frame of a test split; crystals where ``*_structures.h5`` has them."""
    path = split.path / f"{STEM}_structures.h5"
    known: dict[int, Crystal | None] = {}
    with ExitStack() as stack:
        structures: Mapping[str, Any] = {}
        if path.exists():
            structures = stack.enter_context(h5py.File(path, "r"))
        for number, row in enumerate(table_of(split).to_dicts()):
            noisy, clean, valid = mended(split.noisy([number])[0], split.clean([number])[0])
            structure = row["structure"]
            if structure not in known:
                # The levels of one specimen share its optics: they look alike in all.
                group = structures.get(str(structure))
                size = row["pixel_size_nm"]
                known[structure] = None if group is None else crystal_of(group, clean, size)
            yield Example(number, row["part"], row["level"], noisy, clean, valid, known[structure])


def score(example: Example, answer: Frame) -> Row:
    """Measure one answer (H, W) against the truth.

    Gives ``gain_db`` over the noisy frame on expected counts, over the pixels that work; ``psnr``
    and ``ssim`` over all pixels, with the clean frame's largest less smallest value for range;
    ``mean_ratio``, out / in; and ``sites``, see `defect_scores`.
    """
    noisy, clean = example.noisy, example.clean
    span = float(clean.max() - clean.min())
    return {
        "gain_db": float(metrics.gain_db(noisy, answer, clean, example.valid)),
        "psnr": float(metrics.psnr(answer, clean, span)),
        "ssim": float(metrics.ssim(answer, clean, span)),
        "mean_ratio": float(metrics.mean_ratio(answer, noisy)),
        **defect_scores(example.crystal, answer),
    }


def defect_scores(crystal: Crystal | None, frame: Frame) -> Row:
    """Score a crystal's sites in a frame (H, W): ``sites``, None without a crystal.

    A row a site that is judged: its ``kind``, what it is (``vacant``, ``foreign``, ``full``) and
    its five ``scores``, positive for a vacancy.
    """
    if crystal is None:
        return {"sites": None}
    scores = crystal.sign * site_scores(frame, crystal.sites, crystal.pixel_size_nm)
    names, kinds = crystal.sites.names, crystal.sites.kinds
    return {
        "sites": [
            {"kind": names[kinds[site]], "what": what, "scores": scores[:, site].tolist()}
            for what, group in crystal.groups.items()
            for site in np.flatnonzero(group & np.isfinite(scores).all(0))
        ]
    }


def crystal_of(group: h5py.Group, clean: Frame, pixel_size_nm: float) -> Crystal | None:
    """Take a structure's defects that its clean frame shows; None if there are none.

    Vacancies of a kind are taken where, at the best width, half of them stand out of the full
    sites by three of their standard deviations; foreign atoms one by one. Full sites that stand
    out in the same way, as beside edges and other defects, are no false sites: they are left out.
    """
    names = list(group["names"].asstr()[()])
    atoms, numbers, defects = (group[key][()] for key in ("atoms", "numbers", "defects"))
    try:
        sites = simulated_sites(atoms, numbers, defects, names, pixel_size_nm)
    except EmdnError:  # no atoms in the field
        return None
    scores = site_scores(clean, sites, pixel_size_nm)
    judged: Mask = np.asarray(np.isfinite(scores).all(0), bool)
    sign, vacant = np.ones_like(scores), np.zeros_like(judged)
    for kind in range(len(sites.names)):
        own = judged & sites.vacant & (sites.kinds == kind)
        middle = np.median(scores[:, own], axis=1) if own.any() else np.zeros(len(scores))
        if np.abs(middle).max() >= _SEEN:
            vacant |= own
            sign[:, sites.kinds == kind] = np.where(middle < 0, -1.0, 1.0)[:, None]
    foreign = judged & sites.foreign & (np.abs(scores).max(0, initial=0.0) >= _SEEN)
    if not (vacant | foreign).any():
        return None
    full = judged & sites.full & ((sign * scores).max(0, initial=0.0) < _SEEN)
    groups = {"vacant": vacant, "foreign": foreign, "full": full}
    return Crystal(sites, groups, sign, pixel_size_nm)


def best_width(one: Example) -> float:
    """Return the width in pixels of the Gaussian filter that is best, given the truth."""

    def gain(width: float) -> float:
        blurred = ndimage.gaussian_filter(one.noisy, width)
        return float(metrics.gain_db(one.noisy, blurred, one.clean, one.valid))

    return max(_GAUSSIAN_PIXELS, key=gain)


def spectrum(noisy: Frame) -> Frame:
    """Shrink spectra of windows (H, W) by a fixed threshold, taking a count for an electron."""
    counts = torch.from_numpy(noisy.astype(np.float32))[None, None]
    scale = counts.mean((1, 2, 3), keepdim=True)
    with torch.inference_mode():
        shrink = SpectralShrinkage(_SPECTRUM_PIXELS)
        x = shrink(normalise(counts, scale), noise_map(counts, scale))
        return np.asarray(denormalise(x, scale)[0, 0].numpy())


def anscombe(counts: Frame) -> NDArray[np.float64]:
    """Transform Poisson counts to numbers with noise of standard deviation 1.

    Anscombe, Biometrika 35, 246, 1948.
    """
    return np.asarray(2 * np.sqrt(np.maximum(counts.astype(np.float64), 0) + 3 / 8))


def unbiased_inverse(transformed: NDArray[np.float64]) -> Frame:
    """Return the counts whose transform has this expectation.

    The closed form of Mäkitalo and Foi, IEEE TIP 20(9), 2697, 2011: within 0.5 % for 0.05
    counts and more; 0 for what is less than no counts can give.
    """
    d = np.maximum(transformed, 2 * np.sqrt(3 / 8))
    root = np.sqrt(1.5)
    counts = d**2 / 4 + root / 4 / d - 11 / 8 / d**2 + 5 / 8 * root / d**3 - 1 / 8
    return np.asarray(np.maximum(counts, 0), np.float32)


def nlm(noisy: Frame) -> Frame:
    """Average like patches of a frame of counts (H, W): Buades, Coll, Morel, CVPR 2005."""
    from skimage.restoration import denoise_nl_means

    found = denoise_nl_means(
        anscombe(noisy), patch_size=7, patch_distance=11, h=0.6, sigma=1.0, fast_mode=True
    )
    return unbiased_inverse(np.asarray(found, np.float64))


def bm3d(noisy: Frame) -> Frame:
    """Filter like blocks of a frame of counts (H, W) together, by the authors' program.

    Dabov, Foi, Katkovnik, Egiazarian, IEEE TIP 16(8), 2007.
    """
    from bm3d import bm3d as run

    return unbiased_inverse(np.asarray(run(anscombe(noisy), 1.0), np.float64))


MODULES = ("skimage", "bm3d")
PEERS: Mapping[str, Callable[[Frame], Frame]] = {"nlm": nlm, "bm3d": bm3d}
"""Programs of others. They expect Gaussian noise of one width; Anscombe's transform makes it."""


def summary(rows: pl.DataFrame) -> pl.DataFrame:
    """Average over frames: a row a method.

    Columns are the gain in dB by level, its mean, that of ``multislice``, the part that
    another simulator made, and the ``worst`` frame's; ``dose``, how many times the dose a raw
    frame would need, of the mean dB; ``AUC`` and ``recall`` of vacancies at a signal to noise of
    0.4 (`defects`); PSNR and SSIM; by how much the mean is off in the worst frame; the share of
    pixels ``within`` one and two sigma, where that was measured; the median time of a frame.
    """
    tested, gain = rows.filter(pl.col("model") != "clean"), pl.col("gain_db")
    levels = {
        f"{level:g}": gain.filter(pl.col("level") == level).mean().round(2)
        for level in _levels(rows)
    }
    table = tested.group_by("model", maintain_order=True).agg(
        **levels,
        mean=gain.mean().round(2),
        multislice=gain.filter(pl.col("part").str.starts_with("multislice")).mean().round(2),
        worst=gain.min().round(2),
        dose=(10 ** (gain.mean() / 10)).round(1),
        PSNR=pl.col("psnr").mean().round(2),
        SSIM=pl.col("ssim").mean().round(3),
        off=(100 * (pl.col("mean_ratio") - 1).abs()).max().round(2),
        one=(100 * pl.col("inside_1").mean()).round(1),
        two=(100 * pl.col("inside_2").mean()).round(1),
        ms=pl.col("ms").median().round(1),
    )
    found = defects(tested.filter(pl.col("level") == _LEVEL)).select(
        "model", AUC=f"AUC {_LEVEL:g}", recall=f"0.1 false {_LEVEL:g}"
    )
    return table.join(found, on="model", how="left", maintain_order="left").select(
        "model", *levels, "mean", "multislice", "worst", "dose", "AUC", "recall", "PSNR", "SSIM",
        pl.col("off").alias("mean off by %, worst"), pl.col("one").alias("within 1 sigma, %"),
        pl.col("two").alias("within 2 sigma, %"), pl.col("ms").alias("ms/frame"),
    )  # fmt: skip


def defects(rows: pl.DataFrame) -> pl.DataFrame:
    """Say how well vacant sites are distinguished from full ones, by level: a row a method.

    Columns are, for each level, the area under the receiver operating characteristic and the
    share found at 0.1 and at 1 false site a frame (`emdn_models.vacancies`), at the
    width that serves a method best; and how many ``sites`` there were.
    """
    table: dict[str, Row] = {}
    for (level, name), part in _sites(rows).group_by("level", "model", maintain_order=True):
        if (curve := _curve(part, "vacant")) is not None:
            table.setdefault(name, {"model": name}).update({
                f"AUC {level:g}": round(curve.auc, 3),
                f"0.1 false {level:g}": round(curve.recall[0], 2),
                f"1 false {level:g}": round(curve.recall[1], 2),
                "sites": curve.sites,
            })  # fmt: skip
    columns = [f"{name} {level:g}" for level in _levels(rows)
               for name in ("AUC", "0.1 false", "1 false")]  # fmt: skip
    schema = {"model": pl.String} | dict.fromkeys(columns, pl.Float64) | {"sites": pl.Int64}
    return pl.DataFrame(list(table.values()), schema)


def by_site(rows: pl.DataFrame) -> pl.DataFrame:
    """Give the area under the curve by sublattice, and of foreign atoms: a column a method."""
    table: dict[tuple[str, float], Row] = {}
    groups = _sites(rows).group_by("kind", "level", "model", maintain_order=True)
    for (kind, level, name), part in groups:
        for what, site in (("vacant", kind), ("foreign", f"{kind}, another element")):
            if (curve := _curve(part, what)) is not None:
                first = {"site": site, "snr": level, "sites": curve.sites}
                table.setdefault((site, level), first)[name] = round(curve.auc, 3)
    return pl.DataFrame([table[key] for key in sorted(table)], infer_schema_length=None)


def _sites(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(pl.col("sites").is_not_null()).explode("sites").unnest("sites")


def _curve(part: pl.DataFrame, what: str) -> Roc | None:
    """Return the best curve of the sites that are ``vacant``, or ``foreign``: of either sign."""
    found, full = (
        np.array(part.filter(what=one)["scores"].to_list()).reshape(-1, 5) for one in (what, "full")
    )
    if not len(found):
        return None
    if what == "foreign":
        found, full = np.abs(found), np.abs(full)
    frames = part["frame"].n_unique()
    curves = [roc(*scores, frames) for scores in zip(found.T, full.T, strict=True)]
    return max(curves, key=lambda one: (one.auc, one.recall))


def by_part(rows: pl.DataFrame) -> pl.DataFrame:
    """Average the gain in dB over frames: a row a kind of frame, a column a method."""
    answers = rows.filter(~pl.col("model").is_in(["noisy", "clean"]))
    gain = pl.col("gain_db").mean().round(1)
    means = answers.group_by("part", "model", maintain_order=True).agg(gain)
    return means.pivot("model", index="part", values="gain_db")


def _levels(rows: pl.DataFrame) -> list[float]:
    return sorted(rows["level"].unique())


def markdown(table: pl.DataFrame) -> str:
    """Lay a table out as Markdown; what is unknown is ``-``, digits as a column needs them."""
    rules = ("---:" if dtype.is_numeric() else "---" for dtype in table.dtypes)
    lines = [table.columns, rules, *zip(*(_texts(one.to_list()) for one in table), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _texts(values: Sequence[Any]) -> list[str]:
    known = [one for one in values if isinstance(one, float) and math.isfinite(one)]
    digits = max((len(f"{one:.10g}".partition(".")[2]) for one in known), default=0)
    texts = (f"{one:.{digits}f}" if isinstance(one, float) else str(one) for one in values)
    return ["-" if text in ("None", "nan", "inf", "-inf") else text for text in texts]


def report(rows: pl.DataFrame, movies: pl.DataFrame | None = None) -> str:
    """Put all that `measure` and `emdn_train.hops` measured in Markdown."""
    frames, methods = rows["frame"].n_unique(), rows["model"].n_unique()
    complete = rows.filter(pl.col("frame").n_unique().over("model") == frames)
    scored = complete.filter(pl.col("model") == "clean", pl.col("sites").is_not_null())
    parts = [
        "# Quality on the fixed test split",
        f"{frames} frames. Gains in dB of the squared error in expected counts, over the noisy "
        "frame, by signal to noise per pixel; `dose` is how many times the dose a raw frame "
        "would need, of the mean dB; `AUC` and `recall` how well vacancies are distinguished "
        "from full sites at 0.4: area under the curve, share found at 0.1 false sites a frame. "
        "`within`: of the pixels of the first specimen of each part, with `--sigma`; Gaussian "
        "errors have 68.3 and 95.4.",
        markdown(summary(complete)),
        "## Gain in dB by kind of frame",
        markdown(by_part(complete)),
    ]
    if len(scored):
        parts += [
            "## Vacancies",
            f"In {len(scored)} frames whose defects the truth shows: area under the receiver "
            "operating characteristic of vacant against full sites, and share found at 0.1 and "
            "at 1 false site a frame, by signal to noise. A full site that looks like a vacancy in "
            "the truth itself is no false site. `noisy` is a matched filter on the raw frame: a "
            "method below it has destroyed information.",
            markdown(defects(complete)),
            "Area under the curve by sublattice, of vacancies and of atoms of another element:",
            markdown(by_site(complete)),
        ]
    if complete["model"].n_unique() < methods:
        tested = rows.filter(pl.col("model") != "clean")
        same = tested.filter(pl.col("model").n_unique().over("frame") == methods - 1)
        parts += [
            f"## Beside other programs, on the {same['frame'].n_unique()} frames that they did",
            markdown(summary(same)),
            markdown(by_part(same)),
        ]
    if movies is not None:
        parts += [
            "## Movies in which a vacancy hops",
            f"{movies['movie'].n_unique()} movies a signal to noise, {movies['frame'].n_unique()} "
            "frames each, drifting by up to 1.5 pixels a frame; averages are along the true drift, "
            "which a user does not know. Gain in dB; how well the vacancy is distinguished from "
            "full sites; how many frames off its hop is found.",
            markdown(hops.summary(movies)),
        ]
    return "\n\n".join(parts) + "\n"


def save(rows: pl.DataFrame, movies: pl.DataFrame, folder: Path) -> list[Path]:
    """Write ``quality.parquet`` and ``movies.parquet``, a row a method and frame; quality.md."""
    folder.mkdir(parents=True, exist_ok=True)
    text = report(rows, movies)
    files: dict[str, Callable[[Path], Any]] = {
        "quality.parquet": rows.write_parquet,
        "movies.parquet": movies.write_parquet,
        "quality.md": lambda path: path.write_text(text, encoding="utf-8"),
    }
    for name, write in files.items():
        with renamed(folder / name) as partial:
            write(partial)
    return [folder / name for name in files]
