"""Simulated micrographs: specimens, microscope, and the data sets made of them."""

from emdn_train.simulate.config import SimulateConfig
from emdn_train.simulate.dataset import simulate

__all__ = ["SimulateConfig", "simulate"]
