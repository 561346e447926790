"""Reports, in words and JSON: what a run would do or did, what a file holds, what is shipped."""

import json
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emdn_deploy import preprocess, uncertainty
from emdn_deploy.batching import TILE_PIXELS
from emdn_deploy.check.quick import QuickResult, spans
from emdn_deploy.config import DenoiseOptions, text_table
from emdn_deploy.denoiser import MOVIE_FRAMES, Denoiser
from emdn_deploy.dose import Intensity
from emdn_deploy.output import Sums
from emdn_deploy.preprocess import Prepared
from emdn_deploy.readers import Choice, Frames, is_pattern, open_frames
from emdn_deploy.readers.frames import SeveralStacks
from emdn_deploy.session import open_session
from emdn_deploy.writers import Provenance, human
from emdn_models import __version__, pretrained
from emdn_models.errors import EmdnError, FormatError

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
        and f"{len(sums.empty)} frames are blank or hold no value; they stay as they are"
        f"{', NaN as 0' * integers} ({', '.join(spans(tuple(sums.empty)))})",
        "note": "; ".join(report.notes),
        "changed": changed,
    }
    return {name: words for name, words in rows.items() if words}


def summary(report: Report) -> str:
    """Return what is printed after a run."""
    known, sums = report.record, report.sums
    integers = np.dtype(known["output_dtype"]).kind != "f"
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
        f"keep it{', but for NaN, in whose place integers hold filled values' * integers}",
        "saturated": sums.saturated
        and f"{sums.saturated / max(1, report.frames):.6g} pixels a frame, at "
        f"{known['saturated_from']:g} or above, keep their value",
        **findings(report),
        "clipped": integers
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


def describe(path: Path, choice: Choice) -> Iterator[str]:
    """Yield lines about a file: an exported model, or frames; EmdnError if it is neither."""
    if not path.exists() and not is_pattern(path):
        raise FormatError(f"{path}: no such file")
    if path.suffix == ".onnx":
        info = open_session(path, "cpu", 1).info
        yield f"{path}: an emdn model"
        for key, fact in {"sha256": info.sha256, **info.text}.items():
            yield f"  {key}  {fact}"
        return
    try:
        opened = open_frames(path, choice, cut=True)
    except SeveralStacks as several:
        yield from _several(path, several)
        return
    with opened as frames:
        yield f"{path}: {frames.format}"
        for name, value in (*_stored(frames), *_measured(frames)):
            yield f"  {name:10} {value}"


def _stored(frames: Frames) -> Iterator[tuple[str, object]]:
    """Yield what the file says of its frames."""
    count, height, width = frames.shape
    yield "taken", f"{frames.dataset or 'all of it'} ({frames.why})"
    yield "frames", f"{count} of {height} x {width}, {frames.dtype}"
    yield "stored", f"{frames.stored_shape}, axes {frames.order}"
    for letter, axis in zip(frames.order, frames.axes, strict=True):
        step = "not calibrated" if axis.step is None else f"{axis.step:g} {axis.units}".strip()
        name = f" ({axis.name})" if axis.name and axis.name != letter else ""
        yield f"axis {letter}", step + name
    yield from frames.metadata.items()
    for note in filter(None, (*frames.notes, frames.missing)):
        yield "note", note


def _measured(frames: Frames) -> Iterator[tuple[str, object]]:
    """Yield what a sample of the frames shows, and by which model they would be denoised."""
    try:
        ready = preprocess.prepare(frames, DenoiseOptions())
    except EmdnError as error:
        yield "intensity", error
        return
    yield "intensity", intensity_words(ready.scale)
    if dose := frames.dose(ready.scale.scale):
        yield "dose", f"{dose:.4g} e/Å² a frame, if the gain is right"
    flags = ready.recipe.flags
    yield "bad pixels", int(ready.recipe.faulty.sum())
    if gaps := int(flags.masked.sum()):
        yield "gaps", f"{gaps} pixels flagged or without a value"
    if flags.limit:
        saturated = int(flags.saturated.sum())
        yield "saturated", f"{saturated} pixels at {flags.limit:g} or above in the frames looked at"
    for note in ready.recipe.notes:
        yield "note", note
    count, height, width = frames.shape
    size = "uncut frames" if height * width <= TILE_PIXELS else "by tiles"
    model, movie = pretrained.default_model(), pretrained.movie_model()
    if movie and len(frames.lead) == 1 and count >= MOVIE_FRAMES:
        model = f"{movie} if frames show one scene, else {model},"
    yield "model", f"{model} unless --model says otherwise, {size}"


def _several(path: Path, several: SeveralStacks) -> Iterator[str]:
    """List what a file offers that does not say which of it are the frames."""
    yield f"{path}: {len(several.offers)} {several.kind}, none of which is marked as the frames"
    width = max(len(one.name) for one in several.offers)
    for one in several.offers:
        chunks = "" if one.chunks is None else f"  chunks {one.chunks}"
        yield f"  {one.name:{width}}  {one.shape}  {one.dtype}{chunks}"
    first = several.offers[0]
    words = ["emdn-deploy", "denoise", str(path), "--dataset", first.label or first.dataset]
    yield f"  choose    {shlex.join(words)}"


def shipped_models() -> str:
    """Return the table of shipped models: size, cost, and gain on the fixed test split."""
    rows = []
    for name, entry in pretrained.index()["models"].items():
        row = {
            "name": name + (" *" if name == pretrained.default_model() else ""),
            "precision": ", ".join(pretrained.precisions(name)),
            "MB": f"{(pretrained.WEIGHTS / entry['file']).stat().st_size / 1e6:.2f}",
            "parameters": f"{entry['parameters']:,}",
            "GFLOP": f"{float(entry['gflop_256']):.2f}",
        }
        gains = entry.get("quality", {}).get("gain_db", {})
        rows.append(row | {f"dB {level}": f"{gain:.1f}" for level, gain in gains.items()})
    names = list(dict.fromkeys(name for row in rows for name in row))
    return "\n".join([
        text_table(names, [[row.get(name, "-") for name in names] for row in rows]),
        "* the default; NAME@movie sees five frames, its dB are of a scene at rest",
        "GFLOP for one frame of 256 x 256; dB: gain at that signal to noise a pixel",
    ])  # fmt: skip
