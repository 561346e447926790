"""Say what a file holds: an exported model, a checkpoint, or frames."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import h5py

from emdn_deploy import preprocess, tiling
from emdn_deploy.calibration import dose
from emdn_deploy.options import DenoiseOptions
from emdn_deploy.readers import Choice, is_pattern, open_frames
from emdn_deploy.readers.hdf5 import open_file
from emdn_deploy.readers.offers import SeveralStacks
from emdn_models import checkpoint, pretrained
from emdn_models.errors import EmdnError, FormatError


def describe(path: Path, choice: Choice) -> Iterator[str]:
    """Yield lines about a file.

    Raises
    ------
    EmdnError
        If it is none of the three kinds, or is damaged.
    """
    if not path.exists() and not is_pattern(path):
        raise FormatError(f"{path}: no such file")
    if path.suffix == ".onnx":
        return _model(path)
    if path.is_file() and h5py.is_hdf5(path) and _is_checkpoint(path):
        return _checkpoint(path)
    return _frames(path, choice)


def _is_checkpoint(path: Path) -> bool:
    with open_file(path) as file:
        return bool(file.attrs.get("format") == checkpoint.FORMAT)


def _model(path: Path) -> Iterator[str]:
    from emdn_deploy.session import open_session

    info = open_session(path, "cpu", 1).info
    yield f"{path}: an emdn model"
    yield f"  sha256  {info.sha256}"
    for key, value in info.text.items():
        yield f"  {key}  {value}"


def _checkpoint(path: Path) -> Iterator[str]:
    yield f"{path}: weights of models, written by emdn-train"
    for name, weights in checkpoint.load(path).items():
        size = sum(array.size for array in weights.state.values())
        yield f"  {name}  preset {weights.preset}, {len(weights.state)} tensors, {size:,} numbers"
        for key, value in weights.metadata.items():
            yield f"    {key}  {value}"


def _frames(path: Path, choice: Choice) -> Iterator[str]:
    try:
        opened = open_frames(path, choice)
    except SeveralStacks as several:
        yield from _several(path, several)
        return
    with opened as frames:
        count, height, width = frames.shape
        yield f"{path}: {frames.format}"
        yield _row("taken", f"{frames.dataset or 'all of it'} ({frames.why})")
        yield _row("frames", f"{count} of {height} x {width}, {frames.dtype}")
        yield _row("stored", f"{frames.stored_shape}, axes {frames.order}")
        for letter, axis in zip(frames.order, frames.axes, strict=True):
            step = "not calibrated" if axis.step is None else f"{axis.step:g} {axis.units}".strip()
            name = f" ({axis.name})" if axis.name and axis.name != letter else ""
            yield _row(f"axis {letter}", step + name)
        for key, value in frames.metadata.items():
            yield _row(key, value)
        for note in frames.notes:
            yield _row("note", note)
        try:
            ready = preprocess.prepare(frames, DenoiseOptions())
        except EmdnError as error:
            yield _row("intensity", f"{error}")
            return
        scale = ready.scale
        yield _row(
            "intensity",
            f"{scale.scale:.4g} e/px, gain {scale.gain:.4g}, offset {scale.offset:.4g} "
            f"({scale.note})",
        )
        if known_dose := dose(frames.axis("y"), frames.axis("x"), scale.scale):
            yield _row("dose", f"{known_dose:.4g} e/Å² a frame, if the gain is right")
        yield _row("bad pixels", f"{ready.bad_pixels}")
        if ready.gap_pixels:
            yield _row("gaps", f"{ready.gap_pixels} pixels flagged or without a value")
        if limit := ready.recipe.flags.limit:
            count = int(ready.recipe.flags.saturated.sum())
            yield _row("saturated", f"{count} pixels at {limit:g} or above in the frames looked at")
        for note in ready.recipe.notes:
            yield _row("note", note)
        model = pretrained.default_model()
        whole = "whole frames" if height * width <= tiling.WHOLE_PIXELS else "by tiles"
        yield _row("model", f"{model} unless --model says otherwise, {whole}")


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


def _row(name: str, value: str) -> str:
    return f"  {name:10} {value}"
