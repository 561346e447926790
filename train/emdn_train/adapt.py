"""Fine-tuning of a model on one stack without clean frames; the start is saved if it is better.

Neighbouring frames are each other's target. Their noise is independent, so the mean squared
distance of a denoised frame from its raw neighbour is that from the truth and a constant, the
variance of the noise. Lehtinen et al., ICML 2018, arXiv:1803.04189.
"""

import copy
import logging
import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emdn_deploy.config import DenoiseOptions
from emdn_deploy.dose import Intensity
from emdn_deploy.preprocess import prepare
from emdn_deploy.readers import Choice, Frames, open_selected
from emdn_models import FormatError
from emdn_models.files import locked
from emdn_models.metrics import Estimate, HeldOut, umse, umse_difference
from emdn_models.nets.scaling import denormalise, noise_map, normalise
from emdn_train.checkpointing import StateFile, save_weights, write_results
from emdn_train.config import RECIPES, AdaptConfig, FitConfig
from emdn_train.dataset import CACHE_BYTES, Batch, crops
from emdn_train.fit import LOCK, begin, identity, train
from emdn_train.loss import pick_device

log = logging.getLogger(__name__)

LEAST = 6
"""Of the last frames, 15 %, on which the result is judged, at least so many."""

SIDE = 512
"""Frames are compared in their middle, up to this many pixels a side."""

Stack = NDArray[np.float64]


@dataclass(frozen=True)
class Adapted:
    """What came of it, on frames held out; unless it ``gained``, the starting weights are saved.

    Errors are uMSE in electrons squared per pixel (`emdn_models.metrics.umse`). ``fell`` is their
    difference, far better known than either. It gained if that is more than its standard error.
    """

    gained: bool
    before: HeldOut
    after: HeldOut
    fell: Estimate
    steps: int

    def __str__(self) -> str:
        """Say it in a few lines."""
        lines = [
            f"{name}  uMSE {one.error.value:.4g} +- {one.error.se:.2g} e^2/px on frames held out, "
            f"{one.gain_db.value:.2f} +- {one.gain_db.se:.2f} dB over raw"
            for name, one in (("start", self.before), ("tuned", self.after))
        ]
        lines.append(f"fell   {self.fell.value:.3g} +- {self.fell.se:.2g} e^2/px")
        outcome = "gained" if self.gained else "nothing gained: the starting weights are saved"
        return "\n".join([*lines, f"{outcome} ({self.steps} steps)"])


def adapt(config: AdaptConfig) -> Adapted:
    """Fit a model to a stack of raw frames, from weights that it has, and judge the result.

    The last 15 % of the frames, at most 32, are not trained on. The same config continues a run
    that was stopped. A stack of fewer than 12 frames, or without noise, is a `FormatError`; other
    errors are those of `emdn_train.fit.fit`.
    """
    name, out, options = config.model, Path(config.out), config.options
    device = pick_device(config.device)
    fit = FitConfig(
        data=config.stack, out=out, models=(name,), recipe="quality",
        epochs=config.epochs, batch_size=config.batch_size, lr=config.lr, patch=config.patch,
        device=config.device, seed=config.seed, start=config.start, max_minutes=config.max_minutes,
    )  # fmt: skip
    # Plain MSE: that of a noisy target is off by a constant, the logarithm of it by no constant.
    recipe = replace(RECIPES["quality"], lr=config.lr, loss="mse", augmented=0.0, ccd=0.0)
    choice = Choice(options.dataset, options.axes)
    with open_selected(config.stack, choice, options.frames) as stack:
        frames, valid, scale = electrons(stack, options)
    if len(frames) < 2 * LEAST:
        raise FormatError(
            f"{config.stack}: has {len(frames)} frames, expected {2 * LEAST} or more: neighbours "
            f"to learn from, and {LEAST} to judge by; without them use the shipped weights"
        )
    last = min(max(round(0.15 * len(frames)), LEAST), 32)
    training = frames[:-last]
    top, left = (max(0, size - SIDE) // 2 for size in valid.shape)
    middle = slice(top, top + SIDE), slice(left, left + SIDE)
    noisy, good = frames[-last:, *middle].double().numpy(), valid[middle]
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / LOCK, out):
        facts = {
            "stack": os.fspath(config.stack), "selected": options.frames, "held_out": last,
            "intensity": asdict(scale),
        }  # fmt: skip
        state = StateFile(out, identity(fit, recipe, device) | facts)
        t = begin(name, fit, recipe, device)
        start = copy.deepcopy(t.average)
        state.restore(t)
        first = denoised(start, noisy, scale.scale)
        before = umse(noisy, first, valid=good)
        if before.moves:
            log.warning("%s: moves: details that move by a pixel or more a frame are learned "
                        "blurred; align the stack or record faster", config.stack)  # fmt: skip
        draw = partial(pairs, training, scale.scale, config.patch, device)
        if not train(t, fit, recipe, draw, len(training), {}, state):
            t.average.load_state_dict(start.state_dict())
        second = denoised(t.average, noisy, scale.scale)
        after = umse(noisy, second, valid=good)
        fell = umse_difference(noisy, first, second, valid=good)
        gained = fell.value > max(fell.se, 1e-5 * before.error.value)  # more than by rounding
        if not gained:
            t.average.load_state_dict(start.state_dict())
        t.status, t.mean_ratio = "fitted", float(second[:, good].mean() / noisy[:, good].mean())
        adapted = Adapted(gained, before, after, fell, t.step)
        data = f"{len(training)} frames of {config.stack}, neighbours as each other's target"
        save_weights(out, t, fit, recipe, data, adapted=asdict(adapted) | facts)
        write_results(out, fit, [t], device)
        state.path.unlink(missing_ok=True)
    return adapted


def electrons(
    frames: Frames, options: DenoiseOptions
) -> tuple[Tensor, NDArray[np.bool_], Intensity]:
    """Correct an open stack as ``emdn-deploy denoise`` does; of a large one, the first 4 GiB.

    Returns frames (N, H, W) in electrons, which pixels are not filled from others, (H, W), and how
    units became electrons.
    """
    prepared = prepare(frames, options)
    scale, (count, height, width) = prepared.scale, frames.shape
    if not scale.sigma:
        raise FormatError(
            f"{frames.path}: {scale.note}; expected raw frames, whose noise differs from "
            "frame to frame"
        )
    if (most := CACHE_BYTES // (4 * height * width)) < count:
        log.warning("%s: the first %d of %d frames are used", frames.path, most, count)
        count = most
    read = torch.empty(count, height, width)
    for first in range(0, count, 16):
        block = prepared.read(first, min(count, first + 16))
        read[first : first + len(block)] = torch.from_numpy((block - scale.offset) / scale.gain)
    return read, ~prepared.recipe.bad, scale


def pairs(
    frames: Tensor,
    scale: float,
    patch: int,
    device: torch.device,
    indices: Tensor,
    generator: torch.Generator,
) -> Batch:
    """Cut a patch of each frame, and of the frame before or after at the same place.

    Nothing but the place and the eight orientations is drawn: what else changes a patch
    would change its noise, or part it from its target.
    """
    step = 2 * torch.randint(2, indices.shape, generator=generator) - 1
    other = indices + step
    other = torch.where((other < 0) | (other >= len(frames)), indices - step, other)
    both = torch.stack([frames[indices], frames[other]], 1)
    both = crops(both, patch, generator).to(device)
    return Batch(both[:, :1], both[:, 1:], torch.full((len(indices), 1, 1, 1), scale).to(device))


def denoised(net: nn.Module, frames: Stack, scale: float) -> Stack:
    """Denoise frames (N, H, W) in electrons, of mean ``scale``, as the exported graph does."""
    net.eval()
    device = next(net.parameters()).device
    level = torch.full((1, 1, 1, 1), scale, device=device)
    done = []
    with torch.inference_mode():
        for part in torch.from_numpy(frames).float()[:, None].split(2):
            noisy = part.to(device)
            output = net(normalise(noisy, level), noise_map(noisy, level))
            done.append(denormalise(output, level)[:, 0].double().cpu().numpy())
    return np.concatenate(done)
