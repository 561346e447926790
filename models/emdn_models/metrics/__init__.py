"""How good a denoised frame is: with the truth, and without it; numpy and scipy only."""

from emdn_models.metrics.blockwise import Estimate
from emdn_models.metrics.frc import (
    ONE_SEVENTH,
    RingCorrelation,
    against_truth,
    half_bit,
    ring_correlation,
    sigma,
    spectral_snr,
)
from emdn_models.metrics.honest import Null, null, outside, statistics
from emdn_models.metrics.image import dose_gain, gain_db, mean_ratio, psnr, ssim
from emdn_models.metrics.residual import Moments, Residual, normalised, residual_statistics
from emdn_models.metrics.response import Linearity, linearity
from emdn_models.metrics.unbiased import HeldOut, umse, umse_difference, umse_unequal, upsnr
from emdn_models.metrics.vacancies import Roc, Sites, roc, simulated_sites, site_scores

__all__ = [
    "ONE_SEVENTH",
    "Estimate",
    "HeldOut",
    "Linearity",
    "Moments",
    "Null",
    "Residual",
    "RingCorrelation",
    "Roc",
    "Sites",
    "against_truth",
    "dose_gain",
    "gain_db",
    "half_bit",
    "linearity",
    "mean_ratio",
    "normalised",
    "null",
    "outside",
    "psnr",
    "residual_statistics",
    "ring_correlation",
    "roc",
    "sigma",
    "simulated_sites",
    "site_scores",
    "spectral_snr",
    "ssim",
    "statistics",
    "umse",
    "umse_difference",
    "umse_unequal",
    "upsnr",
]
