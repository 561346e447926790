"""A run in words for people, and as one JSON line for programs."""

import json
from dataclasses import asdict

import numpy as np

from emdn_deploy.outcome import Plan, Report
from emdn_deploy.writers import human


def lines(report: Report) -> list[str]:
    """Return what is printed after a run."""
    scale = report.intensity
    resumed = f", {report.resumed} of them by an earlier run" if report.resumed else ""
    model = report.model + ("" if report.precision == "fp32" else f" in {report.precision}")
    alone = report.neighbours in ("", "each frame by itself")
    seen = "" if alone else f", {report.neighbours}"
    text = [
        f"frames     {report.frames} from {report.source} {report.dataset}".rstrip() + resumed,
        f"speed      {report.frames_per_s:.1f} frames/s, file to file",
        f"model      {model} on {report.device}{seen}",
        f"intensity  {scale.scale:.4g} e/px, gain {scale.gain:.4g}, offset {scale.offset:.4g} "
        f"({scale.note})",
        f"mean       out/in {report.ratio:.5f} (network alone {report.net_ratio:.5f}, worst frame "
        f"{100 * report.largest_shift:.2g} % off, corrected)",
    ]
    if report.check:
        text.append(f"check      {report.check}")
    if report.smallest_defect:
        text.append(f"           {report.smallest_defect}")
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
