"""Simulated micrographs: specimens, microscope, and the data sets made of them."""

from pathlib import Path

from emdn_train.config import SimulateConfig
from emdn_train.simulate.dataset import simulate_frames, write_test_split
from emdn_train.simulate.movie import simulate_movie

__all__ = ["SimulateConfig", "simulate", "write_test_split"]


def simulate(config: SimulateConfig) -> Path:
    """Make what a config asks for, a movie or a data set, and return its folder."""
    return (simulate_movie if config.kind == "movie" else simulate_frames)(config)
