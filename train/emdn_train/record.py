"""The record that machines are compared by: the em_denoise benchmark from data to denoised frames.

Trains the net of the SciML-Bench em_denoise benchmark on whole frames at the benchmark's
defaults, exports it, and denoises ``inference/raw``. What differs from that benchmark stands
in `FOLLOWED`, and in every record.
"""

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

from emdn_deploy.bench.rows import machine
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.pipeline import usable_cpus
from emdn_models import MODELS, checkpoint
from emdn_models.errors import EmdnError
from emdn_models.files import locked, renamed
from emdn_models.nets import build
from emdn_train.config import WARM_UP, Device, FitConfig, Fitted, learning_rate
from emdn_train.data import STEM, open_split
from emdn_train.export import export_one
from emdn_train.fit import fit
from emdn_train.inference import denoised, likeness, pictures
from emdn_train.outputs import describe_data
from emdn_train.parallel import pick_device
from emdn_train.recipes import RECIPES
from emdn_train.simulate import SimulateConfig, simulate
from emdn_train.source import fingerprint

FILE_NAME = "record.json"
LOCK = "record.lock"
FORMAT = "emdn-record"
FORMAT_VERSION = 1
RECIPE = "benchmark"
FOLLOWED = {
    "defaults": "SciML-Bench's page on em_denoise: batch_size 128, epochs 2, lr 0.01; its code "
    "of 2023 (1.2.0) has 10 epochs: -b epochs 10",
    "differs": "noise drawn anew at every step; frames in units of their noise; gradients "
    f"clipped to a norm of 1; lr rises over the first {WARM_UP} steps; inference by onnxruntime, "
    "a frame at a time",
    "truth": "SciML-Bench's loader fills the truth of its inference set from the noisy files, so "
    "that its PSNR and MSE compare with these; here the truth is read from inference/truth",
    "sciml_bench": "MSE of batches of 64 in the frames' own units and 20 log10(255 / sqrt(MSE)), "
    "both averaged over the batches",
}


@dataclass(frozen=True)
class RecordConfig:
    """What to run; the defaults are the benchmark's, but for the size of the simulated data.

    Attributes
    ----------
    data
        Data set with ``train/``, ``test/`` and ``inference/raw|truth``; simulated where
        there is none.
    out
        Folder for the weights, the ONNX file and ``record.json``.
    frames
        Training pairs, if they are simulated. The benchmark's own data has 10,000.
    model, preset
        The net; ``unet`` as ``paper`` is the benchmark's.
    epochs, batch_size, lr, device, seed
        As of `emdn_train.config.FitConfig`; the device is for inference too.
    """

    data: str | PathLike[str] = "data/record"
    out: str | PathLike[str] = "outputs/record"
    frames: int = 512
    model: str = "unet"
    preset: str = "paper"
    epochs: int = 2
    batch_size: int = 128
    lr: float | None = None
    device: Device = "auto"
    seed: int = 0


def record(config: RecordConfig) -> dict[str, Any] | None:
    """Run the benchmark and write ``record.json``.

    Returns
    -------
    dict or None
        What was written; None in all but the first of several processes.

    Raises
    ------
    FormatError
        If the data set is not as `emdn_train.data` says, or lacks ``inference/``.
    EmdnError
        If data would have to be simulated by several processes at once.
    DeviceError
        If the device asked for cannot be had, before anything is made.
    OutputError
        If another process records into the folder, or it cannot be written to.
    """
    if config.device != "auto":
        pick_device(config.device)
        Denoiser(None, config.device)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    if int(os.environ.get("RANK", 0)):  # the first of several processes holds the lock for all
        return _record(config, Path(config.data), out)
    with locked(out / LOCK, out):
        return _record(config, Path(config.data), out)


def _record(config: RecordConfig, data: Path, out: Path) -> dict[str, Any] | None:
    if not (data / "train" / f"{STEM}_clean.h5").exists():
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise EmdnError(f"{data}: no data set; simulate it first, with one process")
        simulate(SimulateConfig(data, frames=config.frames, workers=usable_cpus()))
    raw, truth = (pictures(data, part) for part in ("raw", "truth"))
    with open_split(data, "train") as split:
        shape = split.shape
        described: dict[str, Any] = {
            "what": describe_data(split), "train": split.frames, "fingerprint": fingerprint(split),
            "inference": len(raw),
        }  # fmt: skip
    asked = FitConfig(
        data, out, (config.model,), config.preset, RECIPE, config.epochs, config.batch_size,
        config.lr, min(shape), config.device, config.seed,
    )  # fmt: skip
    results = fit(asked)
    if not results:
        return None
    (fitted,) = results
    own = _exported(fitted, config, out)
    denoisers = {"of this run": Denoiser(own, config.device)}
    where = denoisers["of this run"].session
    denoisers["shipped"] = Denoiser(None, where.device)
    found = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "benchmark": "em_denoise",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config.seed,
        "model": {
            "name": config.model, "preset": config.preset,
            "parameters": MODELS[config.model].presets[config.preset].parameters,
        },
        "data": described,
        "training": _training(fitted, asked, described["train"], out),
        "inference": denoised(denoisers, config.device, raw, truth, fitted.status),
        "noisy": likeness(raw, truth),
        "data_range": "largest less smallest value of each true frame",
        "followed": FOLLOWED,
        "git_revision": where.info.text.get("git_revision"),
        "machine": machine("torch", "onnx", "h5py"),
    }  # fmt: skip
    with renamed(out / FILE_NAME) as partial:
        partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def line(found: dict[str, Any]) -> str:
    """Put a record into one line."""
    model, trained, own = found["model"], found["training"], found["inference"][0]
    like = (
        "not judged"
        if own["psnr_db"] is None
        else f"PSNR {own['psnr_db']:.2f} dB (noisy {found['noisy']['psnr_db']:.2f}), "
        f"SSIM {own['ssim']:.3f} ({found['noisy']['ssim']:.3f})"
    )
    known = found["machine"]
    versions = ", ".join(f"{name} {one}" for name, one in known["versions"].items())
    return (
        f"em_denoise {model['name']} {model['preset']} ({model['parameters']:,} parameters): "
        f"training {trained['images_per_s']:.4g} images/s of {trained['patch']} x "
        f"{trained['patch']}, {trained['s_per_epoch']:.4g} s an epoch of {found['data']['train']} "
        f"({trained['epochs']} epochs, batch {trained['batch_size']}, lr {trained['lr']:g}; "
        f"{trained['status']}) on {trained['hardware']}; "
        f"inference {own['frames/s']:.4g} frames/s on {own['got']}, {like}, "
        f"{found['data']['inference']} frames; "
        f"{known['processor']}; {versions}; seed {found['seed']}"
    )


def _exported(fitted: Fitted, config: RecordConfig, out: Path) -> Path:
    """Export what was fitted; nets that diverged are as fast as others, so one as drawn."""
    if fitted.status == "diverged":
        state = {
            name: one.numpy()
            for name, one in build(config.model, config.preset).state_dict().items()
        }
        weights = checkpoint.Weights(config.preset, state, {})
    else:
        weights = checkpoint.load(out / checkpoint.FILE_NAME)[config.model]
    path = out / f"{config.model}.onnx"
    export_one(config.model, weights, path)
    return path


def _training(fitted: Fitted, asked: FitConfig, images: int, out: Path) -> dict[str, Any]:
    recipe = RECIPES[RECIPE]
    known = json.loads((out / "throughput.json").read_text(encoding="utf-8"))[fitted.name]
    return {
        "images_per_s": round(fitted.images_per_s, 3),
        "mpx_per_s": round(fitted.images_per_s * asked.patch**2 / 1e6, 3),
        # Without what is validated in between.
        "s_per_epoch": float(f"{images / fitted.images_per_s:.6g}"),
        "status": fitted.status,
        "loss": [round(row["loss"], 5) for row in fitted.history],
        "start_db": {level: round(gain, 2) for level, gain in fitted.start_db.items()},
        "gain_db": {level: round(gain, 2) for level, gain in fitted.gain_db.items()},
        "recipe": RECIPE,
        "optimizer": recipe.optimizer,
        "loss_function": recipe.loss,
        "epochs": asked.epochs,
        "batch_size": asked.batch_size,
        "lr": learning_rate(asked, recipe),
        "warm_up_steps": WARM_UP,
        "patch": asked.patch,
        "steps": fitted.history[-1]["step"] if fitted.history else 0,
        "hardware": known["hardware"],
    }
