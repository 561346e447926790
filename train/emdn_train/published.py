"""Nets with their authors' weights on their authors' images, beside the published PSNR.

The test of the papers: 8-bit grey images, Gaussian noise added and not clipped, the
denoised image clipped and rounded to 8 bits, PSNR for a range of 255, averaged over
the images. The authors restart MATLAB's generator for each image; numpy's, restarted at
the same seed, takes its place here.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import nn

from emdn_models import MODELS, FormatError, ParityError
from emdn_train.config import Device
from emdn_train.parallel import pick_device
from emdn_train.published_weights import load

log = logging.getLogger(__name__)

TOLERANCE_DB = 0.05

PUBLISHED: dict[tuple[str, int, str], dict[float, float]] = {
    ("dncnn", 17, "BSD68"): {15: 31.73, 25: 29.23, 50: 26.23},
    ("dncnn", 17, "Set12"): {15: 32.859, 25: 30.436, 50: 27.178},
    ("dncnn", 20, "BSD68"): {15: 31.61, 25: 29.16, 50: 26.23},
    ("dncnn", 20, "Set12"): {15: 32.680, 25: 30.362, 50: 27.206},
    ("ffdnet", 15, "BSD68"): {15: 31.63, 25: 29.19, 35: 27.73, 50: 26.29, 75: 24.79},
    ("ffdnet", 15, "Set12"): {15: 32.75, 25: 30.43, 50: 27.32},
}
"""Mean PSNR in dB by noise level, for model, layers and images.

DnCNN: IEEE TIP 26(7), 2017, tables II and III, 17 layers for one noise level (DnCNN-S),
20 for all (DnCNN-B). FFDNet: IEEE TIP 27(9), 2018, tables II and III.
"""

SETS = {"BSD68": ("BSD68", 68), "Set68": ("BSD68", 68), "Set12": ("Set12", 12)}
"""Folder of images to the set's name and number of images."""

SUFFIXES = {".png", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class PublishedConfig:
    """What to compare.

    Attributes
    ----------
    weights
        A .mat or .pth file of the authors.
    images
        Folder of 8-bit grey images, or one of them. A folder called Set12, BSD68 or
        Set68 that is complete is compared with the paper.
    model
        Net that the weights belong to.
    sigma
        Standard deviation of the noise, of 255.
    seed
        Start of the noise, the same for each image.
    device
        Where to denoise.
    """

    weights: Path
    images: Path
    model: str = "dncnn"
    sigma: float = 25.0
    seed: int = 0
    device: Device = "auto"


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes
    ----------
    title
        Model, layers, images and noise.
    images
        One row an image: image, pixels, PSNR in dB of the noisy image, of the denoised
        one in 8 bits, and of the denoised one as the net gives it.
    mean_db
        Mean of the PSNR in 8 bits.
    published_db
        The paper's mean, None if it gives none.
    """

    title: str
    images: pl.DataFrame
    mean_db: float
    published_db: float | None


def compare(config: PublishedConfig) -> Comparison:
    """Denoise every image and compare the mean PSNR with the paper's.

    Raises
    ------
    FormatError
        If there are no images or one is not 8-bit grey.
    CheckpointError, ModelError
        If the weights cannot be read or are not the model's.
    """
    device = pick_device(config.device)
    net = load(config.model, config.weights).to(device)
    paths = _image_paths(config.images)
    rows = []
    for path in paths:
        clean = _grey(path)
        noisy, denoised = denoise(net, clean, config.sigma, config.seed, device)
        rows.append({
            "image": path.name,
            "pixels": f"{clean.shape[0]} x {clean.shape[1]}",
            "noisy dB": psnr(noisy, clean),
            "denoised dB": psnr(np.clip(np.rint(denoised), 0, 255), clean),
            "not rounded dB": psnr(denoised, clean),
        })  # fmt: skip
        log.info("%s  %.2f dB", path.name, rows[-1]["denoised dB"])
    images = pl.DataFrame(rows)
    mean = float(images["denoised dB"].to_numpy().mean())
    name, count = SETS.get(config.images.resolve().name, ("", 0))
    layers = sum(isinstance(module, nn.Conv2d) for module in net.modules())
    figures = PUBLISHED.get((config.model, layers, name), {}) if len(paths) == count else {}
    title = (
        f"{MODELS[config.model].title} of {layers} layers, {config.images} ({len(paths)}), "
        f"sigma {config.sigma:g}, seed {config.seed}"
    )
    images = images.with_columns(pl.selectors.float().round(3))
    return Comparison(title, images, mean, figures.get(config.sigma))


def verdict(found: Comparison) -> str:
    """Put the result in one line.

    Raises
    ------
    ParityError
        If the paper gives a figure and this one is more than 0.05 dB away.
    """
    text = f"{found.title}: mean {found.mean_db:.3f} dB"
    if found.published_db is None:
        return f"{text}; no published figure is known for this"
    difference = found.mean_db - found.published_db
    text += f", published {found.published_db:.2f} dB, difference {difference:+.3f} dB"
    if abs(difference) > TOLERANCE_DB:
        raise ParityError(
            f"{text}: more than {TOLERANCE_DB} dB; check that the weights belong to this model and "
            "noise level and that the images are the original ones"
        )
    return text


def denoise(
    net: nn.Module, clean: NDArray[np.uint8], sigma: float, seed: int, device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Add noise to an image of 0-255 and remove it.

    Returns
    -------
    tuple
        The noisy and the denoised image, (H, W) in the units of the image, not clipped.
    """
    noise = np.random.default_rng(seed).standard_normal(clean.shape)
    noisy = ((clean + sigma * noise) / 255).astype(np.float32)
    x = torch.from_numpy(noisy)[None, None].to(device)
    with torch.inference_mode():
        y = net(x, torch.full_like(x, sigma / 255))
    return 255 * noisy, 255 * y[0, 0].cpu().numpy()


def psnr(image: NDArray[np.float32], clean: NDArray[np.uint8]) -> float:
    """Return 10 log10(255^2 / mean squared difference) in dB."""
    squared = np.square(image.astype(np.float64) - clean).mean()
    return float(10 * np.log10(255**2 / squared))


def _image_paths(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FormatError(f"{folder}: no images; expected {', '.join(sorted(SUFFIXES))} files")
    return paths


def _grey(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            if image.mode != "L":
                raise FormatError(f"{path}: pixels of kind {image.mode}; expected 8-bit grey (L)")
            return np.asarray(image)
    except UnidentifiedImageError as error:
        raise FormatError(f"{path} is not an image that Pillow reads") from error
