"""The commands ``inspect`` and ``models``: what a file holds, and which models are shipped."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from emdn_deploy import preprocess
from emdn_deploy.batching import TILE_PIXELS
from emdn_deploy.config import DenoiseOptions, text_table
from emdn_deploy.denoiser import MOVIE_FRAMES
from emdn_deploy.readers import Choice, Frames, is_pattern, open_frames
from emdn_deploy.readers.frames import SeveralStacks
from emdn_deploy.report import intensity_words
from emdn_models import pretrained
from emdn_models.errors import EmdnError, FormatError


def describe(path: Path, choice: Choice) -> Iterator[str]:
    """Yield lines about a file: an exported model, or frames; EmdnError if it is neither."""
    if not path.exists() and not is_pattern(path):
        raise FormatError(f"{path}: no such file")
    if path.suffix == ".onnx":
        return _model(path)
    return _frames(path, choice)


def _model(path: Path) -> Iterator[str]:
    from emdn_deploy.session import open_session

    info = open_session(path, "cpu", 1).info
    yield f"{path}: an emdn model"
    for key, value in {"sha256": info.sha256, **info.text}.items():
        yield f"  {key}  {value}"


def _frames(path: Path, choice: Choice) -> Iterator[str]:
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
    if movie and max(frames.stored_shape[:-2], default=1) == count >= MOVIE_FRAMES:
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


def models() -> str:
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
