"""The fixed test split frame by frame: what is denoised, and all that answers are scored by."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import polars as pl
from numpy.typing import NDArray

from emdn_models import metrics
from emdn_models.errors import EmdnError, FormatError
from emdn_models.metrics import Sites, simulated_sites, site_scores
from emdn_train.data import STEM, Split
from emdn_train.uncertainty import mended

Frame = NDArray[np.float32]
Score = dict[str, Any]

_SEEN = 3.0  # standard deviations of full sites in the clean frame


@dataclass(frozen=True, eq=False)
class Crystal:
    """A crystal with defects that its clean frame shows, site by site.

    Attributes
    ----------
    sites
        Where columns are, or ought to be.
    groups
        ``vacant``, ``foreign`` and ``full``, each with its (n,) sites.
    sign
        (5, n) whether a vacancy is brighter there, 1, or darker, -1, for each width of
        `emdn_models.metrics.vacancies`.
    pixel_size_nm
        Side of a pixel.
    """

    sites: Sites
    groups: Mapping[str, NDArray[np.bool_]]
    sign: NDArray[np.float64]
    pixel_size_nm: float


@dataclass(frozen=True, eq=False)
class Example:
    """One frame with its truth, in electrons.

    Attributes
    ----------
    number
        Row of the table.
    part, level
        Kind of frame, and its signal to noise per pixel.
    noisy, clean
        (H, W), faulty pixels of ``noisy`` filled.
    valid
        (H, W), pixels that work.
    crystal
        None where defects cannot be scored.
    """

    number: int
    part: str
    level: float
    noisy: Frame
    clean: Frame
    valid: NDArray[np.bool_]
    crystal: Crystal | None = None


def table_of(split: Split) -> pl.DataFrame:
    """Return the table of a test split.

    Raises
    ------
    FormatError
        If there is none, or it lacks the columns that ``emdn-train testset`` writes.
    """
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
    rows = table_of(split).to_dicts()
    path = split.path / f"{STEM}_structures.h5"
    known: dict[int, Crystal | None] = {}
    with ExitStack() as stack:
        structures = stack.enter_context(h5py.File(path, "r")) if path.exists() else None
        for number, row in enumerate(rows):
            noisy, clean, valid = mended(split.noisy([number])[0], split.clean([number])[0])
            structure = row["structure"]
            if structure not in known:
                # The levels of one specimen share its optics: they look alike in all.
                known[structure] = (
                    None
                    if structures is None
                    else _crystal(structures[str(structure)], clean, row["pixel_size_nm"])
                )
            yield Example(number, row["part"], row["level"], noisy, clean, valid, known[structure])


def score(example: Example, answer: Frame) -> Score:
    """Measure one answer (H, W) against the truth.

    Returns
    -------
    gain_db over the noisy frame on expected counts, over the pixels that work; psnr and ssim
    over all pixels, with the clean frame's largest less smallest value for range; mean_ratio,
    out / in; and sites, see `defect_scores`.
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


def defect_scores(crystal: Crystal | None, frame: Frame) -> Score:
    """Score a crystal's sites in a frame (H, W).

    Returns
    -------
    ``sites``: None without a crystal; else a row a site that is judged: its ``kind``, what it
    is (``vacant``, ``foreign``, ``full``) and its five ``scores``, positive for a vacancy.
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


def timed(function: Callable[[], Frame]) -> tuple[Frame, float]:
    """Call a function; return what it gives and the milliseconds that it took."""
    began = time.perf_counter()
    answer = function()
    return answer, 1e3 * (time.perf_counter() - began)


def _crystal(group: h5py.Group, clean: Frame, pixel_size_nm: float) -> Crystal | None:
    names = [name.decode() if isinstance(name, bytes) else name for name in group["names"][()]]
    try:
        sites = simulated_sites(
            group["atoms"][()], group["numbers"][()], group["defects"][()], names, pixel_size_nm
        )
    except EmdnError:  # no atoms in the field
        return None
    return crystal_of(sites, clean, pixel_size_nm)


def crystal_of(sites: Sites, clean: Frame, pixel_size_nm: float) -> Crystal | None:
    """Take the defects that a clean frame shows; None if there are none.

    Vacancies of a kind are taken where, at the best width, half of them stand out of the full
    sites by three of their standard deviations; foreign atoms one by one.
    """
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
    groups = {"vacant": vacant, "foreign": foreign, "full": judged & sites.full}
    return Crystal(sites, groups, sign, pixel_size_nm)
