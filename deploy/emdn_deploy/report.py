"""What a run would do and what it did: the record in its output, words for people, and JSON."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emdn_deploy import uncertainty
from emdn_deploy.check.quick import QuickResult, spans
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.dose import Intensity
from emdn_deploy.output import Sums
from emdn_deploy.preprocess import Prepared
from emdn_deploy.writers import Provenance, human
from emdn_models import __version__

MOST_CHANGE = 1  # per cent of the mean, from which on its change is worth a warning
REFERENCES = ("dark", "gain_map", "defects")
PICTURES = {"preview": (".png", ".gif", ".jpg", ".jpeg", ".pdf", ".svg", ".tif", ".tiff"),
            "movie": (".gif",), "report": (".html",)}  # fmt: skip
"""Options for what is drawn of a run, and the kinds of file that each takes."""


@dataclass(frozen=True)
class Report:
    """What a run did.

    ``resumed``: how many of the frames an earlier, interrupted run had made. ``seconds``: from the
    first frame read to the last written, in this run. ``record``: how the output came about, as it
    stands in the output. ``sigma``: where the standard deviations lie, a dataset or a file.
    ``check``: what the quick check of every run says, None where there is no noise.
    """

    source: Path
    output: Path
    frames: int
    resumed: int
    seconds: float
    intensity: Intensity
    record: dict[str, Any]
    sums: Sums
    sigma: str | None
    check: QuickResult | None
    notes: tuple[str, ...]
    pictures: dict[str, Path]

    @property
    def frames_per_s(self) -> float:
        """Return the rate from file to file."""
        return (self.frames - self.resumed) / max(self.seconds, 1e-9)


def facts_of(
    ready: Prepared, options: DenoiseOptions, denoiser: Denoiser, batch: int, seen: str
) -> Provenance:
    """Say how an output comes about; ``seen`` is what the model sees of the stack."""
    frames, scale, info = ready.frames, ready.scale, denoiser.session.info
    optional: dict[str, Any] = {
        "input_notes": "; ".join(frames.notes),
        "gap_pixels": int(ready.recipe.flags.masked.sum()),
        "saturated_from": ready.recipe.flags.limit,
        "notes": "; ".join(ready.recipe.notes),
        **{name: path and str(path) for name in REFERENCES if (path := getattr(options, name))},
    }
    if options.sigma:
        known = denoiser.calibration
        optional |= {
            "ensemble": uncertainty.ORIENTATIONS,
            "sigma": uncertainty.note(info, known),
            "sigma_spread": known and known.spread,
            "sigma_noise": known and known.noise,
            "sigma_window": known and uncertainty.WINDOW,
        }
    return {
        "program": "emdn-deploy",
        "version": __version__,
        "model": info.name,
        "preset": info.preset,
        "model_frames": info.frames,
        "neighbours": seen,
        "precision": info.precision,
        "model_sha256": info.sha256,
        "weights_sha256": info.text.get("weights_sha256", ""),
        "device": denoiser.session.device,
        "threads": denoiser.session.threads,
        "batch": batch,
        "input": str(frames.path),
        "input_dataset": frames.dataset,
        "input_axes": options.axes or frames.order,
        "input_dtype": str(frames.dtype),
        "input_frames": options.frames or "all",
        "output_dtype": options.dtype,
        "output_compression": "zlib" if options.compress else "none",
        "scale_e_per_px": scale.scale,
        "gain": scale.gain,
        "offset": scale.offset,
        "intensity": scale.note,
        "frame_mean": "kept: each denoised frame was shifted to the mean of its input",
        "bad_pixels": int(ready.recipe.faulty.sum()),
        **{name: one for name, one in optional.items() if one},
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def late_facts(
    sums: Sums, offset: float, checked: QuickResult | None, denoiser: Denoiser
) -> Provenance:
    """Say what is known at the end only: statistics, the quick check, and lack of memory."""
    found = sums.facts(offset)
    if checked is not None:
        flagged = ", ".join(spans(checked.flagged, 1000)) or "none"
        found |= {"check": checked.line, "check_frames": flagged}
    return found | ({"memory": denoiser.batching.note} if denoiser.batching.note else {})


def intensity_words(scale: Intensity) -> str:
    """Say the intensity of a stack in a line."""
    return (
        f"{scale.scale:.4g} e/px, gain {scale.gain:.4g}, offset {scale.offset:.4g} ({scale.note})"
    )


def findings(report: Report) -> dict[str, str]:
    """Say what makes a result less than it seems, by the name of its row in the summary."""
    known, sums = report.record, report.sums
    integers = np.dtype(known["output_dtype"]).kind != "f"
    ratio, net = (100 * (known[f"{name}intensity_ratio"] - 1) for name in ("", "net_"))
    changed = ""
    if abs(ratio) > MOST_CHANGE:
        changed = (
            f"the mean intensity changed by {ratio:.1f} %; do not use these frames for "
            "quantitative work before you know why"
        )
    elif abs(net) > MOST_CHANGE:
        changed = (
            f"the model changed the mean intensity by {net:.1f} %; frames were shifted back, but "
            "it may not fit them: see emdn-deploy check"
        )
    rows = {
        "filled": sums.filled
        and f"{sums.filled} pixels were not finite in some frames; filled from neighbours"
        f"{'' if integers else ' (areas stay so)'}",
        "empty": sums.empty
        and f"{len(sums.empty)} frames are blank or hold no value, and are left as they are "
        f"{'NaN as 0 ' * integers}({', '.join(spans(tuple(sums.empty)))})",
        "note": "; ".join(report.notes),
        "changed": changed,
    }
    return {name: words for name, words in rows.items() if words}


def summary(report: Report) -> str:
    """Return what is printed after a run."""
    known, sums = report.record, report.sums
    resumed = f", {report.resumed} of them by an earlier run" if report.resumed else ""
    model = known["model"] + ("" if known["precision"] == "fp32" else f" in {known['precision']}")
    seen = known["neighbours"]
    seen = "" if seen == "each frame by itself" else f", {seen}"
    source = f"{report.source} {known['input_dataset']}".rstrip()
    rows = {
        "frames": f"{report.frames} from {source}{resumed}",
        "speed": f"{report.frames_per_s:.1f} frames/s, file to file",
        "model": f"{model} on {known['device']}{seen}",
        "intensity": intensity_words(report.intensity),
        "mean": f"out/in {known['intensity_ratio']:.5f} (network alone "
        f"{known['net_intensity_ratio']:.5f}, worst frame {100 * known['largest_shift']:.2g} % "
        "off, corrected)",
        "check": known.get("check"),
        "bad": known["bad_pixels"] and f"{known['bad_pixels']} pixels filled from their neighbours",
        "gaps": "gap_pixels" in known
        and f"{known['gap_pixels']} pixels of every frame are flagged or without a value, and "
        "keep it",
        "saturated": sums.saturated
        and f"{sums.saturated / max(1, report.frames):.6g} pixels a frame, at "
        f"{known['saturated_from']:g} or above, keep their value",
        **findings(report),
        "clipped": np.dtype(known["output_dtype"]).kind != "f"
        and f"{sums.clipped} pixels outside the range of {known['output_dtype']}",
        "sigma": report.sigma and f"{known['sigma']}; in {report.sigma}",
        "output": report.output,
        **report.pictures,
    }
    return "\n".join(f"{name:10} {words}" for name, words in rows.items() if words)


def planned(plan: dict[str, Any]) -> str:
    """Return what is printed by a dry run, of what `emdn_deploy.denoise_file.plan` says."""
    count, height, width = plan["shape"]
    what = f"{plan['format']} {plan['dataset']}".rstrip()
    text = [
        f"{plan['source']} -> {plan['output']}",
        f"  {count} frames of {height} x {width}, {plan['dtype']}, {what} ({plan['why']})",
        f"  {human(plan['size_bytes'])} to write{', before compression' * plan['compress']}",
    ]
    if plan["sigma"]:
        text.append(f"  standard deviations in {plan['sigma']}, at about eight times the time")
    return "\n".join(text)


def as_json(result: Report | dict[str, Any]) -> str:
    """Return one line of JSON; of a run it is the record of the output, and what else is known."""
    if isinstance(result, dict):
        return json.dumps(result, default=str)
    record = {**result.record, "intensity": asdict(result.intensity)}
    known = {name: getattr(result, name) for name in
             ("source", "output", "frames", "resumed", "seconds", "frames_per_s")}  # fmt: skip
    if result.sigma:
        known["sigma_in"] = result.sigma
    flagged = list(result.check.flagged) if result.check else []
    return json.dumps({**record, **known, "flagged": flagged, **result.pictures}, default=str)
