"""How good a denoised frame is: with the truth, and without it; numpy only."""

from emdn_models.metrics.atoms import find_columns
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
from emdn_models.metrics.lattice import Vacancies, find_vacancies, lattice_vectors, missing_sites
from emdn_models.metrics.matching import (
    ColumnScore,
    VacancyScore,
    match,
    score_columns,
    score_vacancies,
)
from emdn_models.metrics.residual import Moments, Residual, normalised, residual_statistics
from emdn_models.metrics.response import Linearity, linearity
from emdn_models.metrics.truth import Sites, simulated_sites
from emdn_models.metrics.unbiased import HeldOut, umse, umse_unequal, upsnr
from emdn_models.metrics.vacancies import SiteTemplate, fit_template, site_occupancy

__all__ = [
    "ONE_SEVENTH",
    "ColumnScore",
    "Estimate",
    "HeldOut",
    "Linearity",
    "Moments",
    "Null",
    "Residual",
    "RingCorrelation",
    "SiteTemplate",
    "Sites",
    "Vacancies",
    "VacancyScore",
    "against_truth",
    "dose_gain",
    "find_columns",
    "find_vacancies",
    "fit_template",
    "gain_db",
    "half_bit",
    "lattice_vectors",
    "linearity",
    "match",
    "mean_ratio",
    "missing_sites",
    "normalised",
    "null",
    "outside",
    "psnr",
    "residual_statistics",
    "ring_correlation",
    "score_columns",
    "score_vacancies",
    "sigma",
    "simulated_sites",
    "site_occupancy",
    "spectral_snr",
    "ssim",
    "statistics",
    "umse",
    "umse_unequal",
    "upsnr",
]
