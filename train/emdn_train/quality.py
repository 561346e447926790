"""Quality of the exported models: every one, beside baselines, on the fixed test split.

Frames go the way that a user's go: each is denoised alone, by onnxruntime, at a scale that is
measured; models that see several frames see others of the same scene beside it. Models and
baselines take turns at each frame, so that a machine that slows down slows all of them.
`quality_report` averages what is measured here.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
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
from emdn_models.errors import EmdnError, FormatError, MissingExtraError, install
from emdn_models.metrics import Sites, simulated_sites, site_scores
from emdn_models.nets.scaling import denormalise, noise_map, normalise
from emdn_models.nets.spectral import SpectralShrinkage
from emdn_train.calibrate import coverage, denoise, mended
from emdn_train.config import QualityConfig
from emdn_train.dataset import STEM, Split
from emdn_train.simulate.dataset import VERSION

log = logging.getLogger(__name__)

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
_SEEN = 3.0  # standard deviations of full sites in the clean frame

GAUSSIAN_PIXELS = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
_SPECTRUM_PIXELS = 128

Frame = NDArray[np.float32]
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Crystal:
    """A crystal with defects that its clean frame shows, site by site."""

    sites: Sites  # where columns are, or ought to be
    groups: Mapping[str, NDArray[np.bool_]]  # vacant, foreign and full, each with its (n,) sites
    # (5, n) whether a vacancy is brighter there, 1, or darker, -1, for each width of
    # `emdn_models.metrics.vacancies`.
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
    valid: NDArray[np.bool_]  # pixels that work
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
    peers = need_peers() if config.peers else {}
    models = models_of(config)
    rows: list[Row] = []
    with Split(config.testset, "test") as split:
        beside = specimens(table_of(split), config.peers)
        few = specimens(table_of(split), _WITH_SIGMA)
        for one in examples(split):
            calls: dict[str, Callable[[], Frame]] = {
                name: partial(_denoised, model, one) for name, model in models.items()
            }
            width = best_width(one.noisy, one.clean, one.valid)
            calls["spectrum"] = partial(spectrum, one.noisy)
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
                    shares = coverage(frame, sigma, one.clean, one.valid)
                    row |= {"inside_1": shares[0], "inside_2": shares[1]}
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

    That is the figure that ``emdn-deploy models`` and ``bench`` show and README tabulates. Only
    rows of all of the fixed split are entered. Returns the files that were changed.
    """
    changed = []
    for name, model in models_of(config).items():
        info = model.session.info
        path = info.path.parent / pretrained.INDEX
        own = rows.filter(pl.col("model") == name)
        if len(own) != FRAMES:
            log.info("%s: %d frames, not the fixed split of %d; %s stays as it is",
                     name, len(own), FRAMES, path)  # fmt: skip
            continue
        models = pretrained.read_index(path)["models"] if path.exists() else {}
        if models.get(info.name, {}).get("sha256") != info.sha256:
            log.warning("%s: has no entry of this file, nothing added", path)
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
    ranked = table.with_row_index("row").with_columns(
        pl.col("structure").rank("dense").over("part").alias("rank")
    )
    return frozenset(ranked.filter(pl.col("rank") <= count)["row"].to_list())


def table_of(split: Split) -> pl.DataFrame:
    """Return the table of a test split, which needs columns that ``emdn-train testset`` writes."""
    needed = {"part", "level", "structure", "pixel_size_nm"}
    columns = set() if split.table is None else set(split.table.columns)
    if split.table is None or needed - columns:
        raise FormatError(
            f"{split.path}: its table lacks {', '.join(sorted(needed - columns))}; "
            "expected a split that emdn-train testset has written"
        )
    return split.table


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
    judged: NDArray[np.bool_] = np.asarray(np.isfinite(scores).all(0), bool)
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


def best_width(noisy: Frame, clean: Frame, valid: NDArray[np.bool_]) -> float:
    """Return the width in pixels of the Gaussian filter that is best, given the truth."""
    blurred = {width: ndimage.gaussian_filter(noisy, width) for width in GAUSSIAN_PIXELS}
    gains = {at: float(metrics.gain_db(noisy, one, clean, valid)) for at, one in blurred.items()}
    return max(gains, key=gains.__getitem__)


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


PEERS: Mapping[str, Callable[[Frame], Frame]] = {"skimage": nlm, "bm3d": bm3d}
"""Programs of others, by the module that each needs: a frame to its answer.

They expect Gaussian noise of one width; counts are made so by Anscombe's transform.
"""


def need_peers() -> Mapping[str, Callable[[Frame], Frame]]:
    """Return the peers that can run here, by name, or say how to get one."""
    found = {run.__name__: run for module, run in PEERS.items() if find_spec(module)}
    if not found:
        raise MissingExtraError(
            "neither scikit-image nor bm3d is installed; "
            f"install them with: {install('bench-peers')}"
        )
    return found
