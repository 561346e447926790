"""The pictures in a data set's ``inference/``, denoised: how fast and how well."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.bench import rows
from emdn_deploy.bench.timing import in_turn, stack_rate, warm
from emdn_deploy.config import Device
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.intensity import Intensity, estimate
from emdn_deploy.readers import Choice, open_frames
from emdn_models import metrics
from emdn_models.errors import FormatError

Frames = NDArray[np.float32]
LIKENESS = ("psnr_db", "ssim", "sciml_bench")


def pictures(data: Path, part: str) -> Frames:
    """Read ``raw`` or ``truth`` of a data set's ``inference/`` as one stack, (N, H, W).

    Raises
    ------
    FormatError
        If there is no such folder, or no pictures in it.
    """
    folder = data / "inference" / part
    if not folder.is_dir():
        raise FormatError(f"{folder}: not found; expected pictures to denoise, and their truth")
    with open_frames(folder, Choice()) as frames:
        return frames.read(0, frames.shape[0])


def _scale(frame: Frames) -> Intensity:
    return estimate(lambda start, stop: frame[None][start:stop], 1, frame.shape)


def denoised(
    denoisers: dict[str, Denoiser], asked: Device, raw: Frames, truth: Frames, status: str
) -> list[dict[str, Any]]:
    """Denoise frame by frame, each at its own scale, the models in turn.

    Parameters
    ----------
    denoisers
        By where their weights come from; those "of this run" are not judged if the training's
        ``status`` is ``diverged``.
    raw, truth
        (N, H, W).

    Returns
    -------
    list
        A row a model: `emdn_deploy.bench.rows.about` and ``speed``, ``stack frames/s``,
        and those of `likeness`.
    """
    scales = [_scale(frame) for frame in raw]
    size = (raw.shape[1], raw.shape[2])
    numbers = dict.fromkeys(denoisers, 0)
    answers = {name: np.empty_like(raw) for name in denoisers}

    def one_more(name: str) -> None:
        at = numbers[name] % len(raw)
        answers[name][at] = denoisers[name].run(raw[at : at + 1], scales[at])[0]
        numbers[name] += 1

    calls = {name: lambda name=name: one_more(name) for name in denoisers}
    for call in calls.values():
        warm(call)
    seconds = in_turn(calls, max(100, len(raw)))
    made = []
    for weights, one in denoisers.items():
        session = one.session
        drawn = weights == "of this run" and status == "diverged"
        made.append(
            rows.about(session, asked, 1, size)
            | {"preset": session.info.preset, "weights": "as drawn" if drawn else weights}
            | rows.speed(seconds[weights], 1, size, rows.gflop_of(session, size))
            | {
                "stack frames/s": rows.digits(
                    stack_rate(one, raw, float(np.median(seconds[weights])), 3.0)
                )
            }
            | (dict.fromkeys(LIKENESS) if drawn else likeness(answers[weights], truth))
        )
    return made


def likeness(frames: Frames, truth: Frames) -> dict[str, Any]:
    """Return PSNR in dB and SSIM, means over frames (N, H, W), at each true frame's range.

    ``sciml_bench`` has MSE and PSNR as SciML-Bench computes them: of batches of 64 frames in
    their own units, the range taken for 255, averaged over the batches.
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
