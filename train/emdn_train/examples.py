"""The fixed test split frame by frame: what is denoised, and all that answers are scored by."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import polars as pl
from numpy.typing import NDArray

from emdn_models import metrics
from emdn_models.errors import EmdnError, FormatError
from emdn_models.metrics import SiteTemplate, fit_template, simulated_sites, site_occupancy
from emdn_models.metrics.vacancies import MARGIN_NM, THRESHOLD
from emdn_train.data import STEM, Split
from emdn_train.uncertainty import mended

Frame = NDArray[np.float32]
Score = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Crystal:
    """A crystal with vacancies that its clean frame shows, site by site.

    Attributes
    ----------
    template
        What a site looks like, learnt from a clean frame.
    vacant
        (n,) sites that are judged and vacant.
    pixel_size_nm
        Side of a pixel.
    """

    template: SiteTemplate
    vacant: NDArray[np.bool_]
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
        None where vacancies cannot be scored.
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
    """Yield every frame of a test split; vacancies where ``*_structures.h5`` has them."""
    rows = table_of(split).to_dicts()
    path = split.path / f"{STEM}_structures.h5"
    known: dict[int, Crystal | None] = {}
    with ExitStack() as stack:
        structures = stack.enter_context(h5py.File(path, "r")) if path.exists() else None
        for number, row in enumerate(rows):
            noisy, clean, valid = mended(split.noisy([number])[0], split.clean([number])[0])
            structure = row["structure"]
            if structure not in known:
                # The levels of one specimen share its optics: one template does for all.
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
    out / in; and where vacancies can be scored vacancies, found and false, else None.
    """
    noisy, clean = example.noisy, example.clean
    span = float(clean.max() - clean.min())
    return {
        "gain_db": float(metrics.gain_db(noisy, answer, clean, example.valid)),
        "psnr": float(metrics.psnr(answer, clean, span)),
        "ssim": float(metrics.ssim(answer, clean, span)),
        "mean_ratio": float(metrics.mean_ratio(answer, noisy)),
        **count_vacancies(example.crystal, answer),
    }


def count_vacancies(crystal: Crystal | None, frame: Frame) -> Score:
    """Count vacancies, those that a frame (H, W) still shows, and those it shows falsely."""
    if crystal is None:
        return dict.fromkeys(("vacancies", "found", "false"))
    template = crystal.template
    # Where the crystal does not show, occupancy is NaN, and nothing is found.
    empty = template.judged & (site_occupancy(frame, template) < THRESHOLD)
    counted = metrics.score_vacancies(
        template.sites[empty], template.sites[crystal.vacant], crystal.pixel_size_nm
    )
    return {"vacancies": counted.true, "found": counted.found, "false": counted.false}


def timed(function: Callable[[], Frame]) -> tuple[Frame, float]:
    """Call a function; return what it gives and the milliseconds that it took."""
    began = time.perf_counter()
    answer = function()
    return answer, 1e3 * (time.perf_counter() - began)


def _crystal(group: h5py.Group, clean: Frame, pixel_size_nm: float) -> Crystal | None:
    names = [name.decode() if isinstance(name, bytes) else name for name in group["names"][()]]
    if not any("acancy" in name or name.startswith("V") for name in names):
        return None
    try:
        sites = simulated_sites(
            group["atoms"][()], group["numbers"][()], group["defects"][()], names, pixel_size_nm
        )
        vacant = sites.amplitudes < THRESHOLD
        margin = MARGIN_NM / pixel_size_nm
        inside = (sites.places >= margin) & (sites.places <= np.array(clean.shape) - margin)
        if not (vacant & inside.all(1)).any():
            return None
        template = fit_template(
            clean, sites.places, pixel_size_nm, kinds=sites.kinds, amplitudes=sites.amplitudes
        )
    except EmdnError:  # too few atoms in the field for a picture of one
        return None
    vacant &= template.judged
    if not template.applicable or not vacant.any():
        return None
    return Crystal(template, vacant, pixel_size_nm)
