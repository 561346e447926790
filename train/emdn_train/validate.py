"""Validation of a net while it is being fitted: the same frames and noise for every model."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from emdn_models.nets.electrons import denormalise, middle, noise_map, normalise
from emdn_train.dataset import CleanFrames
from emdn_train.patches import Batch, Clips, record
from emdn_train.recipes import RECIPES

LEVELS = (0.12, 0.4, 1.2)
"""Signal to noise per pixel at which a model is validated."""
SEED = 41
"""Of the frames' noise, whatever a run's seed: figures of two runs on the same data compare."""


def validation(
    frames: CleanFrames, count: int = 16, side: int = 256, seen: int = 1
) -> dict[float, Batch]:
    """Draw the same recordings for every model: a batch at each of ``LEVELS``.

    ``count`` frames spread over the split, their middle ``side`` x ``side`` pixels.
    Of a net that is ``seen`` five frames they are clips.
    """
    generator = torch.Generator().manual_seed(SEED)
    total = frames.split.frames
    indices = torch.linspace(0, total - 1, min(count, total)).long()
    batches = {}
    for level in LEVELS:
        if seen > 1:
            plain = replace(RECIPES["benchmark"], snr=(level, level))
            clips = Clips(frames, plain, side, generator.device)
            batches[level] = clips.batch(indices, generator)
            continue
        clean = frames.relative(indices)
        height, width = clean.shape[-2:]
        square = min(side, height, width)
        top, left = (height - square) // 2, (width - square) // 2
        clean = clean[:, None, top : top + square, left : left + square]
        snr = torch.full((len(indices),), level)
        batches[level] = record(frames, indices, clean, snr, generator)
    return batches


def evaluate(
    net: nn.Module, batches: dict[float, Batch], device: torch.device
) -> tuple[dict[str, float], float]:
    """Measure the improvement over the noisy frame on expected counts.

    Returns
    -------
    Level to gain in dB, the mean over its frames of 10 log10(MSE noisy / MSE denoised);
    and the ratio of the means of all denoised and all noisy counts.
    """
    net.eval()
    gains = {}
    before = after = 0.0
    with torch.inference_mode():
        for level, batch in batches.items():
            gain = []
            for parts in zip(*(tensor.split(4) for tensor in batch[:3]), strict=True):
                noisy, target, scale = (part.to(device) for part in parts)
                y = net(normalise(noisy, scale), noise_map(middle(noisy), scale))
                denoised = denormalise(y, scale)
                gain.append(10 * torch.log10(_mse(middle(noisy), target) / _mse(denoised, target)))
                before += float((middle(noisy) / scale).sum())
                after += float((denoised / scale).sum())
            gains[f"{level:g}"] = float(torch.cat(gain).mean())
    return gains, after / before


def _mse(frames: Tensor, target: Tensor) -> Tensor:
    return (frames - target).square().mean((1, 2, 3))
