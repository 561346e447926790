"""The contract that training and deployment share; torch-free but for ``nets``."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from emdn_models.spec import MODELS, ModelSpec, Preset

__version__ = version("emdn")

__all__ = [
    "MODELS",
    "CheckpointError",
    "DeviceError",
    "EmdnError",
    "FormatError",
    "MissingExtraError",
    "ModelError",
    "ModelSpec",
    "OutputError",
    "ParityError",
    "Preset",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in ("MODELS", "ModelSpec", "Preset"):  # a run that denoises needs none of them
        from emdn_models import spec

        return getattr(spec, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
