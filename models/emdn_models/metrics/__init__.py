"""How good a denoised frame is: with the truth, and without it; numpy and scipy only."""

from emdn_models.metrics.heldout import Estimate, HeldOut, umse, umse_difference
from emdn_models.metrics.image import dose_gain, gain_db, mean_ratio, psnr, rings, ssim
from emdn_models.metrics.vacancies import Roc, Sites, roc, simulated_sites, site_scores

__all__ = [
    "Estimate",
    "HeldOut",
    "Roc",
    "Sites",
    "dose_gain",
    "gain_db",
    "mean_ratio",
    "psnr",
    "rings",
    "roc",
    "simulated_sites",
    "site_scores",
    "ssim",
    "umse",
    "umse_difference",
]
