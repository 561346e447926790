"""How a net is fitted: loss, learning rate, moving average, device, number format, validation."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from emdn_deploy.bench import processor
from emdn_deploy.config import Device
from emdn_models import DeviceError
from emdn_models.nets.scaling import denormalise, middle, noise_map, normalise
from emdn_models.nets.spectral import WithSpectrum
from emdn_models.vacancies import FEWEST
from emdn_train.config import RECIPES, WARM_UP, Recipe
from emdn_train.dataset import Batch, CleanFrames, Source

LEVELS = (0.12, 0.4, 1.2)
"""Signal to noise per pixel at which a model is validated."""
RANKING = 3.0  # how often `ranking` counts beside the squared error
WIDTHS_NM = (0.03, 0.045, 0.065)  # of the Gaussian weights of sites in `ranking`
AROUND_NM = 0.25  # how far around a site others are compared with it
SITES = 1000  # of a patch that are compared, at most
SEED = 41
"""Of the frames' noise, whatever a run's seed: figures of two runs on the same data compare."""


def loss(
    recipe: Recipe,
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    noise: Tensor,
    half: bool = False,
    marks: Tensor | None = None,
) -> Tensor:
    """Return the mean loss over patches, each (N, 1, H, W) in noise units, ``x`` (N, F, H, W).

    It is the net's own ``loss`` where it has one. With ``half`` the net computes in bfloat16,
    spectra and loss in float32 all the same. With ``marks`` (`CleanFrames.marks`) pixels at defects
    count ``1 + recipe.defects`` times, and `ranking` is added ``RANKING`` times.
    """

    def error(prediction: Tensor, truth: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            squared = (prediction.float() - truth).square()
            if marks is not None:
                height, width = squared.shape[2:]
                near = functional.adaptive_avg_pool2d(marks[:, :1], (height, width))
                weight = 1 + recipe.defects * near
                squared = squared * weight / weight.mean((1, 2, 3), keepdim=True)
            squared = squared.mean((1, 2, 3))
            found = (torch.log(squared + 1e-3) if recipe.loss == "log-mse" else squared).mean()
            if marks is not None and prediction.shape[2:] == marks.shape[2:]:
                found = found + RANKING * ranking(prediction.float(), truth, marks)
            return found

    if isinstance(net, WithSpectrum):
        x = net.joined(x, noise)
    own = getattr(net, "loss", None)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
        found: Tensor = error(net(x, noise), y) if own is None else own(x, y, noise, error)
    return found


def ranking(prediction: Tensor, truth: Tensor, marks: Tensor) -> Tensor:
    """Return how little defects stand out from full sites in patches (N, 1, H, W): a number.

    The squared error of a rare vacancy is small, whether it is seen or not. Here each site that a
    defect changes is compared with each full one of its kind, as `emdn_models.vacancies` scores
    them: by the Gaussian-weighted intensity, less that of the sites around. The difference, in
    spreads of full sites, goes through a logistic function: the area under the receiver operating
    characteristic, made smooth (Yan et al., ICML 2003). Of full sites the truth is taken off
    before, lest edges and strain be flattened. ``marks`` are of `CleanFrames.marks`.
    """
    total = prediction.new_zeros(())
    for pair, (_, sites, size) in zip(torch.cat([prediction, truth], 1), marks, strict=True):
        places = sites.nonzero()
        places = places[torch.randperm(len(places))[:SITES].to(places.device)]
        numbers, width = sites[places.unbind(1)], WIDTHS_NM[int(torch.randint(len(WIDTHS_NM), ()))]
        scores = _smooth(pair[:, None], width / float(size[0, 0]))[:, 0][:, *places.unbind(1)]
        found: list[Tensor] = []
        for kind in (numbers % 10).unique():
            own = numbers % 10 == kind
            full, place = numbers[own] < 10, places[own] * size[0, 0]
            if full.all() or full.sum() < FEWEST:
                continue
            apart = torch.cdist(place, place[full])
            near = torch.exp(-0.5 * (apart / AROUND_NM) ** 2) * (apart > 0)
            near = near / near.sum(1, keepdim=True).clamp_min(1e-6)
            seen, true = scores[:, own] - scores[:, own][:, full] @ near.T
            limit = 3 * 1.4826 * true[full].abs().median() + 1e-6
            usual, changed = full & (true.abs() < limit), ~full & (true.abs() > limit)
            if not changed.any() or usual.sum() < FEWEST:
                continue
            off = seen[usual] - true[usual]
            stands_out = true[changed].sign()[:, None] * (seen[changed][:, None] - off)
            found.append(functional.softplus(-1.7 * stands_out / (off.std() + 1e-6)).mean(1))
        if found:
            total = total + torch.cat(found).mean() / len(prediction)
    return total


def _smooth(x: Tensor, width: float) -> Tensor:
    """Blur (N, 1, H, W) by a Gaussian whose standard deviation is ``width`` pixels."""
    reach = math.ceil(3 * width)
    places = torch.arange(-reach, reach + 1, device=x.device)
    line = torch.softmax(-0.5 * (places / width) ** 2, 0)
    x = functional.conv2d(x, line.view(1, 1, -1, 1), padding=(reach, 0))
    return functional.conv2d(x, line.view(1, 1, 1, -1), padding=(0, reach))


def rate(recipe: Recipe, progress: float, step: int) -> float:
    """Return the share of the learning rate at a step, at a point of the run in [0, 1].

    Without a warm-up of the recipe's own it rises over the first ``WARM_UP`` steps from a
    thousandth, by an equal factor a step: a first step of 0.01 in every weight would throw away
    a start that denoises by a spectrum already.
    """
    if not recipe.warmup:
        return float(1e-3 ** max(0.0, 1 - step / WARM_UP))
    if progress < recipe.warmup:
        return (progress + 1e-3) / (recipe.warmup + 1e-3)
    along = (progress - recipe.warmup) / (1 - recipe.warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(along, 1.0)))


@torch.no_grad()
def follow(average: nn.Module, net: nn.Module, step: int, ema: float) -> None:
    """Update a moving average of a net's weights after a step, counted from 0.

    The decay grows to ``ema``, so that a short run is no slower; of 0 the average equals the net.
    """
    decay = min(ema, (1 + step) / (10 + step)) if step else 0.0
    new = net.state_dict()
    for key, mean in average.state_dict().items():
        if mean.is_floating_point():
            mean.lerp_(new[key], 1 - decay)
        else:
            mean.copy_(new[key])


def reduced(recipe: Recipe, device: torch.device, net: nn.Module) -> bool:
    """Say whether the net is computed in bfloat16: by recipes that ask for it, where it pays.

    That is on GPUs and processors with AMX (four times as fast) or AVX-512 BF16 (1.6 to 1.9 times).
    Nets with dilated convolutions stay in float32 on CPUs: of some torch 2.13 makes NaN gradients.
    """
    if device.type == "cuda":
        return recipe.mixed
    dilated = any(isinstance(one, nn.Conv2d) and max(one.dilation) > 1 for one in net.modules())
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return recipe.mixed and not dilated and fast


def pick_device(device: Device) -> torch.device:
    """Return the device to use, and never another one than was asked for by name."""
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise DeviceError(
            "--device cuda: torch finds no CUDA GPU; use --device cpu, or install a CUDA "
            "build of torch and a driver that fits it"
        )
    return torch.device("cuda" if available and device != "cpu" else "cpu")


def hardware(device: torch.device) -> str:
    """Name the hardware that is trained on, and how much of it is used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def validation(frames: CleanFrames, seen: int = 1) -> dict[float, Batch]:
    """Draw the same recordings for every model: a batch at each of ``LEVELS``.

    They are patches of 256 x 256 of up to 16 frames spread over the split, or clips for a net that
    sees several frames (``seen``).
    """
    generator = torch.Generator().manual_seed(SEED)
    indices = torch.linspace(0, len(frames) - 1, min(16, len(frames))).long()
    batches = {}
    for level in LEVELS:
        recipe = replace(RECIPES["benchmark"], snr=(level, level))
        source = Source(frames, recipe, 256, generator.device)
        batches[level] = (source.clips if seen > 1 else source.patches)(indices, generator)
    return batches


def evaluate(
    net: nn.Module, batches: dict[float, Batch], device: torch.device
) -> tuple[dict[str, float], float]:
    """Measure the improvement over the noisy frame on expected counts.

    Returns by level the gain in dB, the mean over its frames of 10 log10(MSE noisy / MSE
    denoised), and the ratio of the means of all denoised and all noisy counts.
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
