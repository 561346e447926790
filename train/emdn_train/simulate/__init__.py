"""Simulated micrographs: specimens, microscope, and the data sets made of them."""

from emdn_train.config import SimulateConfig
from emdn_train.simulate.dataset import simulate
from emdn_train.simulate.testset import write_test_split

__all__ = ["SimulateConfig", "simulate", "write_test_split"]
