"""What training and deployment share: networks, weights, metrics; torch only in ``nets``."""

from importlib.metadata import version

from emdn_models.errors import (
    CheckpointError,
    DeviceError,
    EmdnError,
    FormatError,
    MissingExtraError,
    ModelError,
    OutputError,
    ParityError,
)
from emdn_models.spec import MODELS

__version__ = version("emdn")

__all__ = [
    "MODELS",
    "CheckpointError",
    "DeviceError",
    "EmdnError",
    "FormatError",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "ParityError",
    "__version__",
]
