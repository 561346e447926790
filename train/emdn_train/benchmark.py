"""Benchmark by which machines are compared: em_denoise from data to denoised frames.

Trains the net of the SciML-Bench em_denoise benchmark on frames of full size at the benchmark's
defaults, exports it, and denoises ``inference/raw``. What differs from that benchmark stands
in `FOLLOWED`, and in every record.
"""

import itertools
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import bench
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.readers import Choice, open_frames
from emdn_deploy.session import usable_cpus
from emdn_models import MODELS, ModelError, checkpoint, metrics
from emdn_models.errors import FormatError
from emdn_models.files import renamed
from emdn_train.calibrate import scale_of
from emdn_train.config import RECIPES, WARM_UP, BenchmarkConfig, FitConfig
from emdn_train.dataset import STEM, Split
from emdn_train.export import export_one
from emdn_train.fit import fit
from emdn_train.loss import hardware, pick_device
from emdn_train.simulate import SimulateConfig, simulate

Frames = NDArray[np.float32]

FILE_NAME = "record.json"
NAME, PRESET = "unet", "paper"  # the net of the SciML-Bench benchmark
FOLLOWED = {
    "defaults": "SciML-Bench's page on em_denoise: batch_size 128, epochs 2, lr 0.01",
    "differs": "noise drawn anew at every step; frames in units of their noise; gradients "
    f"clipped to a norm of 1; lr rises over the first {WARM_UP} steps; inference by onnxruntime, "
    "a frame at a time",
    "truth": "SciML-Bench's loader fills the truth of its inference set from the noisy files, so "
    "that its PSNR and MSE compare with these; here the truth is read from inference/truth",
    "sciml_bench": "MSE of batches of 64 in the frames' own units and 20 log10(255 / sqrt(MSE)), "
    "both averaged over the batches",
}


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Run the benchmark and return what is in ``record.json``.

    A `FormatError` says what the data set lacks, a `DeviceError` that the device cannot be had,
    before anything is made; a `ModelError`, that the net diverged; an `OutputError`, that another
    process records into the folder.
    """
    device = pick_device(config.device)
    if config.device != "auto":
        Denoiser(None, config.device)
    data, out = config.data, config.out
    out.mkdir(parents=True, exist_ok=True)
    if not (data / "train" / f"{STEM}_clean.h5").exists():
        simulate(SimulateConfig(data, frames=config.frames, workers=usable_cpus()))
    raw, truth = (pictures(data, part) for part in ("raw", "truth"))
    with Split(data, "train") as split:
        patch, images = min(split.shape), len(split)
        described = {"what": str(split), "train": images, "fingerprint": split.fingerprint()}
    asked = FitConfig(
        data=data, out=out, models=(NAME,), preset=PRESET, patch=patch,
        epochs=config.epochs, batch_size=config.batch_size, lr=config.lr, device=config.device,
        seed=config.seed,
    )  # fmt: skip
    (fitted,) = fit(asked)
    if fitted.status == "diverged":
        raise ModelError(f"{out}: the net diverged, no record; give a smaller -b lr=...")
    onnx, weights = out / f"{NAME}.onnx", checkpoint.load(out / checkpoint.FILE_NAME)
    export_one(NAME, weights[NAME], onnx)
    denoiser = Denoiser(onnx, config.device)
    recipe = asdict(RECIPES[asked.recipe])
    found = {
        "format": "emdn-record", "format_version": 3, "benchmark": "em_denoise",
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "seed": config.seed,
        "model": {
            "name": NAME, "preset": PRESET, "parameters": MODELS[NAME].presets[PRESET].parameters
        },
        "data": described | {"inference": len(raw)},
        "training": {
            "images_per_s": round(fitted.images_per_s, 3),
            # Without what is validated in between.
            "s_per_epoch": float(f"{images / fitted.images_per_s:.6g}"),
            "status": fitted.status, "loss": [round(row["loss"], 5) for row in fitted.history],
            "start_db": fitted.start_db, "gain_db": fitted.gain_db, "steps": fitted.step,
            "recipe": recipe | {"lr": recipe["lr"] if config.lr is None else config.lr},
            "epochs": config.epochs, "batch_size": config.batch_size, "patch": patch,
            "hardware": hardware(device),
        },
        "inference": _inference(denoiser, config, raw, truth),
        "noisy": likeness(raw, truth),
        "data_range": "largest less smallest value of each true frame",
        "followed": FOLLOWED,
        "machine": bench.machine("torch", "onnx", "h5py"),
    }  # fmt: skip
    with renamed(out / FILE_NAME) as partial:
        partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def line(found: dict[str, Any]) -> str:
    """Put a record into one line."""
    model, data, trained, own = (found[key] for key in ("model", "data", "training", "inference"))
    noisy, side = found["noisy"], trained["patch"]
    return (
        f"em_denoise {model['name']} {model['preset']} ({model['parameters']:,} parameters): "
        f"training {trained['images_per_s']:.4g} images/s of {side} x {side}, "
        f"{trained['s_per_epoch']:.4g} s an epoch of {data['train']} ({trained['epochs']} epochs, "
        f"batch {trained['batch_size']}, lr {trained['recipe']['lr']:g}; {trained['status']}) on "
        f"{trained['hardware']}; "
        f"inference {own['frames/s']:.4g} frames/s on {own['got']}, "
        f"PSNR {own['psnr_db']:.2f} dB (noisy {noisy['psnr_db']:.2f}), SSIM {own['ssim']:.3f} "
        f"({noisy['ssim']:.3f}), {data['inference']} frames; {found['machine']['processor']}; "
        f"seed {found['seed']}"
    )


def pictures(data: Path, part: str) -> Frames:
    """Read ``raw`` or ``truth`` of a data set's ``inference/`` as one stack, (N, H, W)."""
    folder = data / "inference" / part
    if not folder.is_dir():
        raise FormatError(f"{folder}: not found; expected pictures to denoise, and their truth")
    with open_frames(folder, Choice()) as frames:
        return frames.read(0, frames.shape[0])


def _inference(
    denoiser: Denoiser, config: BenchmarkConfig, raw: Frames, truth: Frames
) -> dict[str, Any]:
    """Denoise (N, H, W) frame by frame, each at its own scale."""
    scales, denoised = [scale_of(frame[None]) for frame in raw], np.empty_like(raw)
    turns, session = itertools.cycle(range(len(raw))), denoiser.session
    size = (raw.shape[1], raw.shape[2])

    def one_more() -> None:
        at = next(turns)
        denoised[at] = denoiser.run(raw[at : at + 1], scales[at])[0]

    bench.warm(one_more)
    times = bench.in_turn({"": one_more}, max(100, len(raw)))[""]
    rate = bench.stack_rate(denoiser, raw, float(np.median(times)), 3.0)
    return (
        {"model": session.info.name, "batch": 1}
        | bench.about(session, config.device, size)
        | bench.speed(times, 1, size, bench.gflop_of(session, size))
        | {"stack frames/s": bench.digits(rate)}
        | likeness(denoised, truth)
    )


def likeness(frames: Frames, truth: Frames) -> dict[str, Any]:
    """Return PSNR in dB and SSIM, means over frames (N, H, W), at each true frame's range.

    ``sciml_bench`` has MSE and PSNR as SciML-Bench computes them; see `FOLLOWED`.
    """
    span = np.ptp(truth, axis=(1, 2))
    errors = [
        float(np.square(frames[at : at + 64] - truth[at : at + 64], dtype=np.float64).mean())
        for at in range(0, len(frames), 64)
    ]
    psnr = np.mean([20 * np.log10(255 / np.sqrt(error)) for error in errors])
    return {
        "psnr_db": round(float(metrics.psnr(frames, truth, span).mean()), 3),
        "ssim": round(float(metrics.ssim(frames, truth, span).mean()), 4),
        "sciml_bench": {"mse": float(f"{np.mean(errors):.6g}"), "psnr_db": round(float(psnr), 3)},
    }
