"""Baselines of quality: filters without training, one of which knows the truth.

Non-local means (Buades, Coll, Morel, CVPR 2005) and BM3D (Dabov, Foi, Katkovnik, Egiazarian,
IEEE TIP 16(8), 2007) expect Gaussian noise of one width: counts are made so by Anscombe's
transform (Biometrika 35, 246, 1948) and brought back by its exact unbiased inverse.
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from emdn_models import metrics
from emdn_models.errors import MissingExtraError, install
from emdn_models.nets.electrons import denormalise, noise_map, normalise
from emdn_models.nets.spectral import SpectralShrinkage

SPECTRUM_PIXELS = 128
GAUSSIAN_PIXELS = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
_LEAST = 2 * np.sqrt(3 / 8)

Frame = NDArray[np.float32]
Floats = NDArray[np.float64]


def anscombe(counts: Frame) -> Floats:
    """Transform Poisson counts to numbers with noise of standard deviation 1."""
    return np.asarray(2 * np.sqrt(np.maximum(counts.astype(np.float64), 0) + 3 / 8))


def unbiased_inverse(transformed: Floats) -> Frame:
    """Return the counts whose transform has this expectation.

    The closed form of Mäkitalo and Foi, IEEE TIP 20(9), 2697, 2011: within 0.5 % for 0.05
    counts and more; 0 for what is less than no counts can give.
    """
    d = np.maximum(transformed, _LEAST)
    root = np.sqrt(1.5)
    counts = d**2 / 4 + root / 4 / d - 11 / 8 / d**2 + 5 / 8 * root / d**3 - 1 / 8
    return np.asarray(np.maximum(counts, 0), np.float32)


def gaussian(noisy: Frame, width: float) -> Frame:
    """Blur a frame (H, W) by a Gaussian of a standard deviation in pixels."""
    return np.asarray(ndimage.gaussian_filter(noisy, width))


def best_width(noisy: Frame, clean: Frame, valid: NDArray[np.bool_]) -> float:
    """Return the width of `gaussian` that is best for a frame (H, W), given the truth."""

    def gain(width: float) -> float:
        return float(metrics.gain_db(noisy, gaussian(noisy, width), clean, valid))

    return max(GAUSSIAN_PIXELS, key=gain)


def spectrum(noisy: Frame) -> Frame:
    """Shrink spectra of windows (H, W) by a fixed threshold, taking a count for an electron."""
    counts = torch.from_numpy(noisy.astype(np.float32))[None, None]
    scale = counts.mean((1, 2, 3), keepdim=True)
    with torch.inference_mode():
        x = _shrinkage()(normalise(counts, scale), noise_map(counts, scale))
        return np.asarray(denormalise(x, scale)[0, 0].numpy())


@cache
def _shrinkage() -> SpectralShrinkage:
    return SpectralShrinkage(SPECTRUM_PIXELS)


def nlm(noisy: Frame) -> Frame:
    """Average like patches of a frame of counts (H, W): scikit-image's fast form."""
    from skimage.restoration import denoise_nl_means

    found = denoise_nl_means(
        anscombe(noisy), patch_size=7, patch_distance=11, h=0.6, sigma=1.0, fast_mode=True
    )
    return unbiased_inverse(np.asarray(found, np.float64))


def bm3d(noisy: Frame) -> Frame:
    """Filter like blocks of a frame of counts (H, W) together: the authors' program."""
    from bm3d import bm3d as run

    return unbiased_inverse(np.asarray(run(anscombe(noisy), 1.0), np.float64))


PEERS: Mapping[str, tuple[str, Callable[[Frame], Frame]]] = {
    "nlm": ("skimage", nlm),
    "bm3d": ("bm3d", bm3d),
}
"""Programs of others by name: the module that each needs, and a frame to its answer."""


def need_peers() -> tuple[str, ...]:
    """Name the peers that can run here.

    Raises
    ------
    MissingExtraError
        If there is none.
    """
    found = tuple(name for name, (module, _) in PEERS.items() if find_spec(module))
    if not found:
        raise MissingExtraError(
            "neither scikit-image nor bm3d is installed; "
            f"install them with: {install('bench-peers')}"
        )
    return found
