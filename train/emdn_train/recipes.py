"""How a net is fitted: learning rate, optimiser, moving average, number format and loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from emdn_models.nets.spectral import WithSpectrum

WARM_UP = 100
"""Steps over which the learning rate rises, where the recipe does not say."""


@dataclass(frozen=True)
class Recipe:
    """Everything that is not the size of the run."""

    lr: float
    optimizer: Literal["adam", "adamw"]  # adamw with a weight decay of 1e-4
    # MSE over the batch, or the mean over patches of log(MSE + 1e-3): proportional to the mean
    # improvement in dB, so that no bright or dim frame dominates.
    loss: Literal["mse", "log-mse"]
    warmup: float  # share of the run over which the learning rate rises
    cosine: bool  # whether it then falls to nearly zero along a half cosine
    ema: float  # decay of the exponential moving average of the weights; 0 for none
    clip: float  # largest norm of the gradient; 0 for any
    snr: tuple[float, float]  # range of the signal to noise per pixel, drawn log-uniformly
    augmented: float = 0.0  # share of patches that are magnified, and whose contrast is changed
    ccd: float = 0.0  # share of the unscanned patches that a CCD records
    # How much more a pixel at a point defect counts: averaging the lattice over its cells
    # lowers the error most, and fills what interrupts it (`benchmarks/results/defects.md`).
    defects: float = 0.0
    mixed: bool = False  # whether the net computes in bfloat16 where that is faster (`reduced`)


RECIPES: dict[str, Recipe] = {
    # Clipping is not the benchmark's: at 0.01 one bright frame would throw Adam off for good.
    "benchmark": Recipe(0.01, "adam", "mse", 0.0, False, 0.0, 1.0, (0.05, 3.0)),
    "quality": Recipe(
        2e-3, "adamw", "log-mse", 0.03, True, 0.999, 1.0, (0.05, 3.0), 0.3, 0.12, mixed=True
    ),
}


def rate(recipe: Recipe, progress: float, step: int) -> float:
    """Return the share of the learning rate at a step, at a point of the run in [0, 1].

    Without a warm-up of the recipe's own it rises over the first ``WARM_UP`` steps from a
    thousandth, by an equal factor a step: a first step of 0.01 in every weight would throw away
    a start that denoises by a spectrum already.
    """
    if not recipe.warmup and step < WARM_UP:
        return float(1e-3 ** (1 - step / WARM_UP))
    if progress < recipe.warmup:
        return (progress + 1e-3) / (recipe.warmup + 1e-3)
    if not recipe.cosine:
        return 1.0
    along = (progress - recipe.warmup) / (1 - recipe.warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(along, 1.0)))


def optimizer(recipe: Recipe, net: nn.Module) -> torch.optim.Optimizer:
    """Return the recipe's optimiser for a net's weights."""
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=1e-4, fused=True)
    return torch.optim.Adam(net.parameters(), lr=recipe.lr, fused=True)


def moving_average(recipe: Recipe, net: nn.Module) -> AveragedModel:
    """Return a copy of a net that follows its weights, and without a decay equals them.

    The decay grows from 0.1, so that a short run is no slower.
    """

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], number: Tensor | int) -> None:
        grown = (1 + float(number)) / (10 + float(number))
        decay = min(recipe.ema, grown) if recipe.ema else 0.0
        for mean, new in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(new, 1 - decay)
            else:
                mean.copy_(new)

    return AveragedModel(net, multi_avg_fn=update, use_buffers=True)


def reduced(recipe: Recipe, device: torch.device, net: nn.Module) -> bool:
    """Say whether the net is computed in bfloat16: by recipes that ask for it, where it pays.

    That is on GPUs and on processors that multiply bfloat16: with AMX about four times as
    fast as float32, with AVX-512 1.6 to 1.9 times (convolutions of 32 to 128 channels). Nets with
    dilated convolutions stay in float32 on CPUs: of some, with few channels, torch 2.13 makes
    gradients that are NaN.
    """
    if device.type == "cuda":
        return recipe.mixed
    dilated = any(isinstance(one, nn.Conv2d) and max(one.dilation) > 1 for one in net.modules())
    return recipe.mixed and not dilated and _multiplies_bfloat16()


def _multiplies_bfloat16() -> bool:
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def memory_format(recipe: Recipe, device: torch.device) -> torch.memory_format:
    """Return how a net's weights lie: channels last on CPUs, and on GPUs for bfloat16."""
    if device.type == "cpu" or recipe.mixed:
        return torch.channels_last
    return torch.contiguous_format


def loss(
    recipe: Recipe,
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    noise: Tensor,
    half: bool = False,
    spectra: Tensor | None = None,
    defects: Tensor | None = None,
) -> Tensor:
    """Return the mean loss over patches, each (N, 1, H, W) in noise units, ``x`` (N, F, H, W).

    It is the net's own ``loss`` where it has one. With ``half`` the net computes in bfloat16, and
    spectra and loss in float32 all the same. ``spectra`` are the windows' estimates, where they
    are known. ``defects`` is 1 at point defects and falls to 0 around them: pixels there count
    ``1 + recipe.defects`` times.
    """

    def error(prediction: Tensor, truth: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            squared = (prediction.float() - truth).square()
            if defects is not None:
                weight = 1 + recipe.defects * functional.adaptive_avg_pool2d(
                    defects, (squared.shape[2], squared.shape[3])
                )
                squared = squared * weight / weight.mean((1, 2, 3), keepdim=True)
            squared = squared.mean((1, 2, 3))
            return (torch.log(squared + 1e-3) if recipe.loss == "log-mse" else squared).mean()

    if isinstance(net, WithSpectrum):
        x = net.joined(x, noise, spectra)
    own = getattr(net, "loss", None)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
        found: Tensor = error(net(x, noise), y) if own is None else own(x, y, noise, error)
    return found
