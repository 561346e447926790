"""What a run would do and what it did, in words for people and as JSON for programs."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from emdn_deploy.dose import Intensity
from emdn_deploy.readers.damage import human


@dataclass(frozen=True)
class Plan:
    """What a run would do (``--dry-run``).

    ``shape`` is (N, H, W), ``dtype`` the input's, ``size_bytes`` that of the output's pixels and
    their standard deviations before any compression; ``sigma`` as of `Report`.
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
    resumed
        How many of the frames an earlier, interrupted run had made.
    seconds
        From the first frame read to the last written, in this run.
    ratio, net_ratio
        mean(output) / mean(input), both above the offset: 1, but for the rounding of integers;
        and that of what the model made, before each frame was shifted to its mean.
    largest_shift
        The largest of these shifts, in units of mean(input).
    bad_pixels, gap_pixels
        Filled in from their neighbours in every frame; flagged or without a value, and kept.
    dtype, saturated
        Of the output's pixels, and how many lay outside the range of an integer one.
    sigma, sigma_note
        Where the standard deviations lie, a dataset or a file, and whether they are calibrated.
    neighbours
        What the model saw of the stack to denoise a frame, and why.
    check, standing_out
        What `emdn_deploy.check.quick` says, None where there is no noise; the frames that it
        names.
    saturated_input, saturated_from
        Saturated pixels of the input, of all frames, and the value from which on they are; they
        keep it.
    filled, missing, empty
        Pixels that were not finite in single frames, and were filled in there; such as lie in
        areas, which have no value; and the numbers of the frames without any value, which are left
        as they are.
    notes
        What the frames show that denoising does not mend.
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
    missing: int = 0
    empty: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    neighbours: str = ""
    page: Path | None = None

    @property
    def frames_per_s(self) -> float:
        """Return the rate from file to file."""
        return (self.frames - self.resumed) / max(self.seconds, 1e-9)


def intensity_words(scale: Intensity) -> str:
    """Say the intensity of a stack in a line."""
    return (
        f"{scale.scale:.4g} e/px, gain {scale.gain:.4g}, offset {scale.offset:.4g} ({scale.note})"
    )


def lines(report: Report) -> list[str]:
    """Return what is printed after a run."""
    resumed = f", {report.resumed} of them by an earlier run" if report.resumed else ""
    model = report.model + ("" if report.precision == "fp32" else f" in {report.precision}")
    alone = report.neighbours in ("", "each frame by itself")
    seen = "" if alone else f", {report.neighbours}"
    text = [
        f"frames     {report.frames} from {report.source} {report.dataset}".rstrip() + resumed,
        f"speed      {report.frames_per_s:.1f} frames/s, file to file",
        f"model      {model} on {report.device}{seen}",
        f"intensity  {intensity_words(report.intensity)}",
        f"mean       out/in {report.ratio:.5f} (network alone {report.net_ratio:.5f}, worst frame "
        f"{100 * report.largest_shift:.2g} % off, corrected)",
    ]
    if report.check:
        text.append(f"check      {report.check}")
    if report.bad_pixels:
        text.append(f"bad        {report.bad_pixels} pixels filled from their neighbours")
    if report.gap_pixels:
        text.append(
            f"gaps       {report.gap_pixels} pixels of every frame are flagged or without a value, "
            "and keep it"
        )
    if report.saturated_input:
        each = report.saturated_input / max(1, report.frames)
        text.append(
            f"saturated  {each:.6g} pixels a frame, at {report.saturated_from:g} or above, keep "
            "their value"
        )
    if report.empty:
        text.append(
            f"empty      {len(report.empty)} frames are blank or hold no value, left as they are"
        )
    text += [f"note       {note}" for note in report.notes]
    if np.dtype(report.dtype).kind != "f":
        text.append(f"saturated  {report.saturated} pixels outside the range of {report.dtype}")
    if report.sigma:
        text.append(f"sigma      {report.sigma_note}; in {report.sigma}")
    text.append(f"output     {report.output}")
    if report.preview:
        text.append(f"preview    {report.preview}")
    if report.movie:
        text.append(f"movie      {report.movie}")
    if report.page:
        text.append(f"report     {report.page}")
    return text


def planned(plan: Plan) -> list[str]:
    """Return what is printed by a dry run."""
    count, height, width = plan.shape
    what = f"{plan.format} {plan.dataset}".rstrip()
    text = [
        f"{plan.source} -> {plan.output}",
        f"  {count} frames of {height} x {width}, {plan.dtype}, {what} ({plan.why})",
        f"  {human(plan.size_bytes)} to write{', before compression' * plan.compress}",
    ]
    if plan.sigma:
        text.append(f"  standard deviations in {plan.sigma}, at about eight times the time")
    return text


def as_json(result: Report | Plan) -> str:
    """Return one line of JSON."""
    facts = asdict(result)
    if isinstance(result, Report):
        facts["frames_per_s"] = result.frames_per_s
    return json.dumps(facts, default=str)
