"""How good a net is while it is being fitted: the same frames and noise for every model."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from emdn_models.nets.electrons import denormalise, middle, noise_map, normalise
from emdn_train.batches import Batch, Specimens, record
from emdn_train.recipes import RECIPES
from emdn_train.source import Clips

LEVELS = (0.12, 0.4, 1.2)
"""Signal to noise per pixel at which a model is validated."""
SEED = 41
"""Of the frames' noise, whatever a run's seed: figures of two runs on the same data compare."""


def validation(
    specimens: Specimens,
    levels: tuple[float, ...],
    count: int,
    side: int,
    seed: int,
    seen: int = 1,
) -> list[Batch]:
    """Draw the same recordings for every model: one batch a level of signal to noise.

    ``count`` frames spread over the split, their middle ``side`` x ``side`` pixels.
    Of a net that is ``seen`` five frames they are clips.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = []
    frames_there = specimens.split.frames
    indices = torch.linspace(0, frames_there - 1, min(count, frames_there)).long()
    for level in levels:
        if seen > 1:
            plain = replace(RECIPES["benchmark"], snr=(level, level))
            source = Clips(specimens, plain, side, torch.device("cpu"))
            batches.append(source.batch(indices, generator))
            continue
        frames = specimens.relative(indices)
        height, width = frames.shape[-2:]
        square = min(side, height, width)
        top, left = (height - square) // 2, (width - square) // 2
        clean = frames[:, None, top : top + square, left : left + square]
        snr = torch.full((len(indices),), level)
        batches.append(record(specimens, indices, clean, snr, generator, torch.device("cpu")))
    return batches


def evaluate(
    net: nn.Module, held: list[Batch], device: torch.device
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
        for level, batch in zip(LEVELS, held, strict=True):
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
