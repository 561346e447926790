"""One clean image and a dose: what the camera hands over, and how that came about."""

from typing import Any, NamedTuple

import numpy as np
import torch

from emdn_train import noise
from emdn_train.simulate.config import SimulateConfig
from emdn_train.simulate.mesh import Image

LEAST_ELECTRONS = 0.05

# A beam without a profile, as of a scanned probe.
_EVEN = noise.Profile(*(torch.tensor([v]) for v in (0.0, 0.0, 1e6, 1e6, 0.0, 1.0)))


class Exposure(NamedTuple):
    """Expected and recorded electrons, (H, W) float32 each, and columns of the table."""

    clean: Image
    noisy: Image
    row: dict[str, Any]


def draw_electrons(
    config: SimulateConfig,
    contrast: float,
    share: float,
    pixel_a: float,
    rng: np.random.Generator,
) -> float:
    """Draw the mean electrons per pixel that meet the detector, at least 0.05.

    Parameters
    ----------
    contrast
        Standard deviation of the clean image over its mean.
    share
        Electrons that reach the detector, of those that meet the specimen.
    """
    if config.dose_e_per_a2 is None:
        electrons = (_log_uniform(rng, config.snr) / contrast) ** 2
    else:
        electrons = _log_uniform(rng, config.dose_e_per_a2) * pixel_a**2 * share
    return max(electrons, LEAST_ELECTRONS)


def expose(clean: Image, electrons: float, detector: str, seed: int) -> Exposure:
    """Record a relative image once.

    Parameters
    ----------
    clean
        (H, W), vacuum or mean = 1.
    electrons
        Mean electrons per pixel that meet the detector.
    """
    generator = torch.Generator().manual_seed(seed)
    image = torch.from_numpy(clean)[None, None]
    mean = torch.tensor([electrons])
    shape = (clean.shape[0], clean.shape[1])
    beam, valid = _EVEN, torch.ones_like(image, dtype=torch.bool)
    if noise.DETECTORS[detector].scanned:
        noisy, target = noise.scan(image, mean, detector, generator)
    else:
        beam = noise.draw_profile(1, generator)
        signal = mean * noise.profile_map(beam, shape, max(shape)) * image
        noisy, target = noise.record(signal, detector, generator)
        bad, level = noise.draw_defects(1, shape, generator)
        noisy, valid = noise.apply_defects(noisy, bad, level), ~bad
    row = {
        "detector": detector,
        "electrons_per_pixel": electrons,
        "recorded_per_pixel": float(target.mean()),
        "noise_seed": seed,
        "bad_pixels": int((~valid).sum()),
        **{f"beam_{name}": float(value) for name, value in beam._asdict().items()},
    }
    return Exposure(target[0, 0].numpy(), noisy[0, 0].numpy(), row)


def _log_uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(np.log(limits[0]), np.log(limits[1]))))
