"""What a run of ``emdn-deploy denoise`` would do, and what it did."""

from dataclasses import dataclass
from pathlib import Path

from emdn_deploy.intensity import Intensity


@dataclass(frozen=True)
class Plan:
    """What a run would do (``--dry-run``).

    Attributes
    ----------
    shape
        (N, H, W).
    dtype
        Of the input's pixels.
    size_bytes
        Of the output's pixels and their standard deviations, before any compression.
    sigma
        Where the standard deviations will lie (see `Report.sigma`).
    compress
        Whether frames will be compressed.
    """

    source: Path
    output: Path
    format: str
    dataset: str
    why: str
    shape: tuple[int, int, int]
    dtype: str
    size_bytes: int
    sigma: str | None
    compress: bool = False


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes
    ----------
    frames
        In the output.
    resumed
        How many of them an earlier, interrupted run had made.
    seconds
        From the first frame read to the last written, in this run.
    ratio
        mean(output) / mean(input), both above the offset: 1, but for the rounding of integers.
    bad_pixels
        Pixels that were filled in from their neighbours, in every frame.
    precision
        Numbers that the model computed with.
    dtype
        Of the output's pixels.
    saturated
        Pixels of the output that lay outside the range of an integer ``dtype``.
    sigma
        Where the standard deviations lie: the path of a dataset in an HDF5 output, of a file
        for the others. None without ``--sigma``.
    sigma_note
        How they were made, and whether they are calibrated.
    check
        What the quick check of this run's frames says (`emdn_deploy.check.quick`); None
        where there is no noise to check against.
    standing_out
        Numbers of the frames that it names.
    net_ratio
        As ``ratio``, of what the model made, before each frame was shifted to its mean.
    largest_shift
        The largest of these shifts, in units of mean(input).
    gap_pixels
        Pixels in gaps or flagged by the detector, in every frame, which keep their value.
    saturated_input, saturated_from
        Saturated pixels of the input, of all frames, and the value from which on they are; they
        keep it.
    filled
        Pixels that were not finite in single frames, and were filled in there.
    empty
        Numbers of the frames without any value, which are left as they are.
    notes
        What the frames show that denoising does not mend.
    smallest_defect
        What ``check`` would have seen, which a pass does not say.
    """

    source: Path
    output: Path
    dataset: str
    frames: int
    resumed: int
    seconds: float
    model: str
    precision: str
    device: str
    intensity: Intensity
    ratio: float
    bad_pixels: int
    dtype: str
    saturated: int
    preview: Path | None
    movie: Path | None
    sigma: str | None
    sigma_note: str | None
    check: str | None = None
    standing_out: tuple[int, ...] = ()
    net_ratio: float = 1.0
    largest_shift: float = 0.0
    gap_pixels: int = 0
    saturated_input: int = 0
    saturated_from: float | None = None
    filled: int = 0
    empty: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    smallest_defect: str | None = None

    @property
    def frames_per_s(self) -> float:
        """Return the rate from file to file."""
        return (self.frames - self.resumed) / max(self.seconds, 1e-9)
