"""How an output comes about: what is recorded in it, and what continues an interrupted run."""

import contextlib
import hashlib
import json
import re
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mrcfile
import tifffile

from emdn_deploy import uncertainty
from emdn_deploy.check.quick import QuickResult, spans
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.preprocess import Prepared
from emdn_deploy.readers import Frames, is_hdf5, open_frames
from emdn_deploy.readers.hdf5 import open_file as open_hdf5
from emdn_deploy.writers import WRITERS, Provenance
from emdn_deploy.writers.hdf5 import GROUP
from emdn_models import __version__, pretrained
from emdn_models.errors import FormatError
from emdn_models.spec import frames_of

REFERENCES = ("dark", "gain_map", "defects")
Stamps = dict[str, tuple[int, int, int]]


def facts_of(
    frames: Frames,
    options: DenoiseOptions,
    denoiser: Denoiser,
    ready: Prepared,
    batch: int,
    seen: str,
) -> Provenance:
    """Say how an output comes about; ``seen`` is what the model sees of the stack."""
    info, scale = denoiser.session.info, ready.scale
    references = {
        name: str(path) for name in REFERENCES if (path := getattr(options, name)) is not None
    }
    return {
        "program": "emdn-deploy",
        "version": __version__,
        "model": info.name,
        "preset": info.preset,
        "model_frames": info.frames,
        "neighbours": seen,
        "precision": denoiser.session.precision,
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
        "bad_pixels": ready.bad_pixels,
        **({"input_notes": "; ".join(frames.notes)} if frames.notes else {}),
        **({"gap_pixels": ready.gap_pixels} if ready.gap_pixels else {}),
        **({} if (limit := ready.recipe.flags.limit) is None else {"saturated_from": limit}),
        **({"notes": "; ".join(ready.recipe.notes)} if ready.recipe.notes else {}),
        **references,
        **(_sigma_facts(denoiser) if options.sigma else {}),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _sigma_facts(denoiser: Denoiser) -> Provenance:
    """Say what the frames and their standard deviations are, with all numbers."""
    calibration = denoiser.calibration
    known: Provenance = {
        "ensemble": uncertainty.ORIENTATIONS,
        "sigma": uncertainty.note(denoiser.session.info, calibration),
    }
    if calibration is None:
        return known
    return {
        **known, "sigma_spread": calibration.spread, "sigma_noise": calibration.noise,
        "sigma_window": uncertainty.WINDOW,
    }  # fmt: skip


def checked(result: QuickResult | None) -> Provenance:
    """Say what the quick check found, for the end of a record."""
    if result is None:
        return {}
    return {"check": result.line, "check_frames": ", ".join(spans(result.failing, 1000)) or "none"}


def memory(denoiser: Denoiser) -> Provenance:
    """Say what had to give way where memory ran out, for the end of a record."""
    return {"memory": denoiser.batching.note} if denoiser.batching.note else {}


def inputs_of(frames: Frames, options: DenoiseOptions) -> list[Path]:
    """List every file that decides the pixels, but for the model."""
    paths = list(frames.files) or [frames.path]
    for name in REFERENCES:
        path: Path | None = getattr(options, name)
        if path is not None:
            with open_frames(path) as reference:
                paths += list(reference.files) or [path]
    return paths


def stamps(paths: Iterable[Path]) -> Stamps:
    """Return size, time of the last change (ns) and inode of files; of missing ones zeros."""
    found = {}
    for path in paths:
        try:
            stat = path.stat()
            found[str(path)] = stat.st_size, stat.st_mtime_ns, stat.st_ino
        except OSError:
            found[str(path)] = 0, 0, 0
    return found


def check_unchanged(before: Stamps) -> None:
    """Compare files with what they were when the run began.

    Raises FormatError if one was changed or replaced meanwhile: frames may then be of two inputs.
    """
    now = stamps(Path(name) for name in before)
    changed = [name for name in before if before[name] != now[name]]
    if changed:
        (size, *_), (size_now, *_) = before[changed[0]], now[changed[0]]
        more = f" and {len(changed) - 1} others" if len(changed) > 1 else ""
        raise FormatError(
            f"{changed[0]}{more}: was changed while it was denoised ({size} bytes, now "
            f"{size_now}, or another time); wait until nothing writes to it any more, then begin "
            "anew with --overwrite"
        )


def key_of(facts: Provenance, inputs: Stamps) -> Provenance:
    """Say what decides the pixels: a partial file is continued only if all is equal."""
    # A copy that was put back has another inode.
    known = [(name, *stamp[:2]) for name, stamp in inputs.items()]
    # How the work is cut up changes no bit of it. (On a GPU it may change the last digits; there
    # the batch follows from the memory that happens to be free, and may shrink on the way.)
    free = ("date", "threads", "batch")
    key = {name: value for name, value in facts.items() if name not in free}
    return {**key, "input_files": hashlib.sha256(repr(known).encode()).hexdigest()}


def recorded(path: Path) -> dict[str, Any]:
    """Return the record of `facts_of` that an output holds, empty where there is none.

    Of an MRC file, the name of a shipped model is all that is known. What is wrong with a file
    that cannot be read is for readers to say.
    """
    beside = path.with_name(path.name + ".json")
    if path.is_file() and is_hdf5(path):
        with open_hdf5(path) as file:
            # A frame that was denoised twice has two records; the last is of these pixels.
            groups = [name for name in file if name == GROUP or name.startswith(f"{GROUP}_")]
            last = max(groups, key=lambda name: int(name[len(GROUP) + 1 :] or 1), default=None)
            attributes = dict(file[last].attrs) if last else {}
        return {
            key: value.item() if hasattr(value, "item") else value
            for key, value in attributes.items()
        }
    text = ""
    if path.suffix.lower() in WRITERS["mrc"]:
        with contextlib.suppress(OSError, ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with mrcfile.open(path, permissive=True, header_only=True) as file:
                text = " ".join(file.get_labels())
        found = re.search(r"emdn \S+: denoised by (\S+)", text)
        name = found[1] if found else ""
        if (entry := pretrained.index()["models"].get(name)) is None:
            return {}
        return {"model": name, "model_frames": frames_of(name, entry["preset"])}
    if path.suffix.lower() in (".tif", ".tiff"):
        with (
            contextlib.suppress(OSError, tifffile.TiffFileError),
            tifffile.TiffFile(path) as tiff,
        ):
            described = tiff.imagej_metadata or next(iter(tiff.shaped_metadata or ()), {})
            text = str(described.get("Info", ""))
    elif path.suffix.lower() == ".npy" and beside.is_file():
        text = beside.read_text(encoding="utf-8")
    elif (path / "zarr.json").is_file():
        text = (path / "zarr.json").read_text(encoding="utf-8")
    else:
        return {}
    try:
        facts = json.loads(text)
    except ValueError:
        return {}
    for key in ("attributes", "emdn"):
        facts = facts.get(key, facts) if isinstance(facts, dict) else facts
    return facts if isinstance(facts, dict) and "model_sha256" in facts else {}
