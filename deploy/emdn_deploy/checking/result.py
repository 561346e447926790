"""What a check found: plain data, for tables, reports and scripts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from emdn_deploy.checking.exhibits import Exhibits
from emdn_deploy.noise_model import NoiseModel
from emdn_models.metrics import Estimate, Linearity

Floats = NDArray[np.float64]

MAPS = 256  # frames of which the map is kept

Verdict = Literal[
    "within noise",
    "over-smoothed",
    "structure removed",
    "structure added",
    "noise left in",
    "intensity changed",
    "outside training",
]


@dataclass(frozen=True)
class Limits:
    """The range that a statistic keeps to in honest denoisings; infinite where one-sided."""

    low: float
    high: float
    typical: float


@dataclass(frozen=True)
class Thresholds:
    """What honest denoisings of resampled frames show, and how it was found.

    Attributes
    ----------
    limits
        By the name of a statistic, as in the columns of `CheckResult.table`.
    level, stack_level
        Chance that an honest frame fails, all its tests together, and an honest stack, that
        were aimed at.
    safety
        Factor by which the limits lie farther from the typical value than the
        resampled frames say, since these are a little smoother than the scene.
    bases, resamples, denoisings
        Frames that were resampled, how often each, and all denoisings that this took.
    seed
        Of the noise that was drawn.
    """

    limits: Mapping[str, Limits]
    level: float
    stack_level: float
    safety: float
    bases: int
    resamples: int
    denoisings: int
    seed: int


@dataclass(frozen=True)
class Correlations:
    """Fourier ring correlation with the neighbouring raw frame, averaged over pairs.

    Never between two denoised frames: these agree on what a denoiser invents.

    Attributes
    ----------
    frequency
        (R,) cycles/pixel.
    raw, raw_se
        (R,) of raw frames with their raw neighbour, and its standard error.
    denoised, denoised_se
        (R,) of denoised frames with the raw neighbour.
    pairs
        How many pairs were averaged.
    """

    frequency: Floats
    raw: Floats
    raw_se: Floats
    denoised: Floats
    denoised_se: Floats
    pairs: int


@dataclass(frozen=True)
class Spectrum:
    """Mean power of the residual on rings, in units of the expected noise.

    Attributes
    ----------
    frequency
        (R,) cycles/pixel.
    power
        (R,) mean over the frames.
    honest
        (R,) mean over honest denoisings.
    low, high
        (R,) range of single honest denoisings.
    """

    frequency: Floats
    power: Floats
    honest: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class HeldOutFacts:
    """The squared error of the stack from neighbouring frames, without the truth.

    Attributes
    ----------
    error
        uMSE and its standard error, intensity units squared.
    gain_db
        Improvement over the raw frames, dB.
    honest
        Mean squared error of the honest denoisings from what they were drawn from.
    drift
        Half the mean square difference of frames two apart less that of neighbours, which
        motion adds; None for fewer than 3 frames.
    moves
        Whether the drift is beyond chance: the error then holds motion too.
    pairs
        Pairs of neighbours that were compared.
    """

    error: Estimate
    gain_db: Estimate
    honest: float
    drift: Estimate | None
    moves: bool
    pairs: int


@dataclass(frozen=True)
class Comparison:
    """The squared error of the stack beside that of the shipped default model.

    Attributes
    ----------
    name
        Of the default model.
    verdict
        ``no worse``, ``worse`` (by 0.4 dB or more, beyond chance), ``far worse`` (6 dB); or why it
        cannot be told: ``same`` (the frames are the default's own), ``too few frames``, ``moves``
        (frames differ by more than noise).
    worse
        The stack's error less the default's, intensity units squared.
    error
        The default's, likewise.
    frames
        Neighbouring frames that were compared.
    """

    name: str
    verdict: str
    worse: Estimate | None = None
    error: Estimate | None = None
    frames: int = 0


@dataclass(frozen=True)
class Smallest:
    """The smallest defect that is found in 9 cases of 10.

    Attributes
    ----------
    percent
        Of an atom's contrast; None where no atoms show, or nothing is found at any size.
    run_percent
        The same of a defect that stays in place for a run of frames; None without runs.
    words
        What a pass does not say, for people.
    """

    percent: float | None
    run_percent: float | None
    words: str


@dataclass(frozen=True)
class Maps:
    """Where residuals stand out, of at most `MAPS` frames: the worst ones of a longer stack.

    Attributes
    ----------
    frames
        Number of each map's frame.
    z
        (M, H // block, W // block) float32, the smoothed residual (raw - denoised) farthest
        from 0 over scales and over the pixels of a block, in standard deviations, signed.
    block
        Side of a block in pixels.
    """

    frames: tuple[int, ...]
    z: NDArray[np.float32]
    block: int


@dataclass(frozen=True)
class StackFacts:
    """What holds for the whole stack.

    Attributes
    ----------
    source, denoised
        The files; ``denoised`` is None where the frames were denoised for the check.
    shape
        (N, H, W).
    model, sha256, device
        Of the model whose honest denoisings gave the thresholds.
    ratio
        Mean out / mean in above the offset, over all frames.
    linearity
        Local means out against those in; None where the frames hold too few blocks, or
        no structure as large as one.
    by_chance
        Frames that may be flagged for themselves in an honest stack of as many.
    findings
        Why the stack fails as a whole (`emdn_deploy.checking.whole`); empty if it passes.
    warnings
        What speaks against the stack and does not fail it.
    notes
        What was assumed, and what cannot be said.
    """

    source: Path
    denoised: Path | None
    shape: tuple[int, int, int]
    model: str
    sha256: str
    device: str
    ratio: float
    linearity: Linearity | None
    by_chance: int
    findings: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class CheckResult:
    """All that a check found.

    Attributes
    ----------
    table
        One row a frame: ``frame``, ``verdict`` (of the kinds of `Verdict`, joined by
        ``; ``), ``evidence`` in words, then for every statistic its value and, as
        ``<name>_low`` and ``<name>_high``, its limits; ``y``, ``x``, ``scale_px`` and ``z`` of the
        place that stands out most, and the same of the average over a run of frames as ``run_y``
        and so on.
    heldout, correlations
        None for a single frame.
    exhibits
        Frames and slices for pictures.
    """

    table: pl.DataFrame
    facts: StackFacts
    noise: NoiseModel
    thresholds: Thresholds
    spectrum: Spectrum
    maps: Maps
    heldout: HeldOutFacts | None
    correlations: Correlations | None
    comparison: Comparison
    smallest: Smallest
    exhibits: Exhibits

    @property
    def failing(self) -> list[int]:
        """Return the numbers of the frames that are not within noise."""
        bad = self.table.filter(pl.col("verdict") != "within noise")
        return [int(number) for number in bad["frame"]]

    @property
    def outside(self) -> bool:
        """Whether the noise is not what the models were trained on."""
        return not self.noise.in_training

    @property
    def passed(self) -> bool:
        """Whether the stack shows no more than honest ones do; single frames may stand out."""
        return not self.facts.findings

    @property
    def word(self) -> str:
        """Return ``PASS``, ``WARN`` or ``FAIL``; what warns does not fail."""
        if not self.passed:
            return "FAIL"
        return "WARN" if self.facts.warnings else "PASS"
