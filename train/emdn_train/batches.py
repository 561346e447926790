"""Training and validation batches: clean patches, with fresh noise at every step."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from emdn_train import noise
from emdn_train.data import Split

CACHE_BYTES = 4 << 30
"""A split of up to this size is kept in memory; a larger one is read as it is needed."""

ELECTRONS = (0.05, 1e5)
"""Least and most incident electrons per pixel that are drawn, whatever the contrast."""

ZOOM = (0.75, 1.35)
"""Range of the magnification of augmented patches."""

CONTRAST = (0.6, 1.5)
"""Range of the contrast of augmented patches, as a factor."""

CCD_GAIN = (0.5, 1.1)
"""A CCD's noise is correlated: what a deployment takes for its gain, over what its variance
and mean give. Measured: 0.5 to 0.9 for single frames, 1 for stacks."""


class Batch(NamedTuple):
    """Frames or patches in electrons.

    Attributes
    ----------
    noisy
        (N, 1, H, W), or (N, F, H, W): a frame amid its neighbours.
    target
        (N, 1, H, W), expected counts of the middle frame.
    scale
        (N, 1, 1, 1), expected mean of the frame that a patch comes from.
    spectra
        (N, windows, H, W), spectral estimates of the middle frame in noise units
        (`emdn_models.nets.spectral`), where they are known.
    """

    noisy: Tensor
    target: Tensor
    scale: Tensor
    spectra: Tensor | None = None


@dataclass(frozen=True)
class Specimens:
    """Clean frames of one split, from which recordings are drawn.

    Attributes
    ----------
    split
        Open data set.
    cached
        All relative clean frames, (N, H, W), or None where they are too many.
    contrast, mean
        Standard deviation over mean, and mean, of each relative frame, (N,).
    scanned
        Which frames were recorded by a scanned probe, (N,) bool.
    """

    split: Split
    cached: Tensor | None
    contrast: Tensor
    mean: Tensor
    scanned: Tensor

    @classmethod
    def of(cls, split: Split) -> "Specimens":
        """Look through a split once for the statistics that set the dose."""
        keep = split.frames * split.shape[0] * split.shape[1] * 4 <= CACHE_BYTES
        kept, means, deviations = [], [], []
        for start in range(0, split.frames, 64):
            block = torch.from_numpy(split.relative(slice(start, start + 64)))
            means.append(block.mean((1, 2)))
            deviations.append(block.std((1, 2)))
            if keep:
                kept.append(block)
        mean = torch.cat(means)
        scanned = torch.zeros(split.frames, dtype=torch.bool)
        if split.table is not None:
            scanned = torch.from_numpy((split.table["detector"] == "stem").to_numpy().copy())
        return cls(
            split,
            torch.cat(kept) if keep else None,
            (torch.cat(deviations) / mean).clamp_min(1e-3),
            mean,
            scanned,
        )

    def relative(self, indices: Tensor) -> Tensor:
        """Give relative clean frames, (n, H, W)."""
        if self.cached is not None:
            return self.cached[indices]
        return torch.from_numpy(self.split.relative(np.asarray(indices)))


def crops(frames: Tensor, size: int, generator: torch.Generator, zoomed: float = 0.0) -> Tensor:
    """Cut one square patch from each frame, in one of the eight orientations.

    Parameters
    ----------
    frames
        (N, H, W).
    zoomed
        Share of the patches that are magnified by a factor drawn from ``ZOOM``.

    Returns
    -------
    (N, 1, size, size); smaller where the frames are.
    """
    height, width = frames.shape[-2:]
    size = min(size, height, width)
    draws = torch.rand(len(frames), 3, generator=generator)
    sides = torch.full((len(frames),), size)
    if zoomed:
        zoom = log_uniform(ZOOM, len(frames), generator)
        zoom[torch.rand(len(frames), generator=generator) >= zoomed] = 1.0
        sides = (size / zoom).round().long().clamp(8, min(height, width))
    patches = []
    for frame, side, (down, right, turn) in zip(
        frames, sides.tolist(), draws.tolist(), strict=True
    ):
        top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
        orientation = int(turn * 8)
        patch = frame[top : top + side, left : left + side]
        if side != size:
            patch = functional.interpolate(
                patch[None, None], (size, size), mode="bicubic", antialias=side > size
            )[0, 0].clamp_min(0)
        patch = patch.rot90(orientation % 4)
        patches.append(patch.flip(-1) if orientation >= 4 else patch)
    return torch.stack(patches)[:, None]


def stretch(clean: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Change the contrast of a share of the patches, of every other one also its sign.

    Parameters
    ----------
    clean
        (N, 1, H, W) relative images.

    Returns
    -------
    (N, 1, H, W), not negative, and the (N,) factors of contrast, positive.
    """
    count = len(clean)
    factor = log_uniform(CONTRAST, count, generator)
    chosen = torch.rand(count, generator=generator) < share
    factor[~chosen] = 1.0
    negative = chosen & (torch.rand(count, generator=generator) < 0.5)
    mean = clean.mean((1, 2, 3), keepdim=True)
    signed = torch.where(negative, -factor, factor).view(-1, 1, 1, 1)
    return (mean + signed * (clean - mean)).clamp_min(0), factor


def record(
    specimens: Specimens,
    indices: Tensor,
    clean: Tensor,
    snr: Tensor,
    generator: torch.Generator,
    device: torch.device,
    ccd: float = 0.0,
) -> Batch:
    """Record clean images with fresh noise, each at its own signal to noise per pixel.

    Parameters
    ----------
    indices
        (N,), the frame that each image comes from.
    clean
        (N, F, H, W) relative images; the ``target`` has F frames too.
    snr
        (N,) contrast x sqrt(electrons per pixel), the contrast being the whole frame's.
    generator
        Source of chance on ``device``.
    ccd
        Share of the unscanned images that a CCD records, with its correlated noise.
        These are in units of the gain that a deployment would find (`CCD_GAIN`).
    """
    electrons = ((snr / specimens.contrast[indices]) ** 2).clamp(*ELECTRONS)
    noisy = torch.empty_like(clean, device=device)
    target = torch.empty_like(noisy)
    scale = torch.empty(len(clean))
    scanned = specimens.scanned[indices]
    smeared = torch.zeros_like(scanned)
    if ccd:
        drawn = torch.rand(len(clean), generator=generator, device=device)
        smeared = ~scanned & (drawn.cpu() < ccd)
    for detector, chosen in (
        ("stem", scanned),
        ("ccd", smeared),
        ("counting", ~scanned & ~smeared),
    ):
        if not chosen.any():
            continue
        frames = noise.draw(
            clean[chosen].to(device),
            electrons[chosen].to(device),
            detector,
            generator,
            field=max(specimens.split.shape),
            defects=False,
        )
        dqe = noise.DETECTORS[detector].dqe0
        level = electrons[chosen] * dqe * specimens.mean[indices[chosen]]
        gain = torch.ones(len(level), 1, 1, 1, device=device)
        if detector == "ccd":
            variance = (frames.noisy - frames.target).square().mean((1, 2, 3), keepdim=True)
            share = torch.rand(gain.shape, generator=generator, device=device)
            gain = variance / level.view(-1, 1, 1, 1).to(device)
            gain = gain * CCD_GAIN[0] * (CCD_GAIN[1] / CCD_GAIN[0]) ** share
        noisy[chosen.to(device)] = frames.noisy / gain
        target[chosen.to(device)] = frames.target / gain
        scale[chosen] = level / gain.view(-1).cpu()
    return Batch(noisy, target, scale.view(-1, 1, 1, 1).to(device))


def log_uniform(limits: tuple[float, float], count: int, generator: torch.Generator) -> Tensor:
    """Draw (count,) numbers whose logarithm is uniform between the limits."""
    low, high = limits
    return low * (high / low) ** torch.rand(count, generator=generator)
