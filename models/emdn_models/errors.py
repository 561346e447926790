"""What can go wrong, as one tree under `EmdnError`.

A message names the file, what was found, what was expected and what to do.
"""

import importlib
from typing import Any


class EmdnError(Exception):
    """Any error that emdn raises on purpose; its text is meant for the user."""


class FormatError(EmdnError):
    """A file of frames that cannot be read as asked."""


class CheckpointError(EmdnError):
    """A checkpoint, em_denoise_model.h5, that cannot be read."""


class ModelError(EmdnError):
    """A model that is unknown, damaged or not made by emdn."""


class DeviceError(EmdnError):
    """A device that was asked for by name and is not available."""


class DeviceMemoryError(DeviceError):
    """A device whose memory does not suffice for what it was given at once."""


class OutputError(EmdnError):
    """An output that exists already or cannot be written."""


class ParityError(EmdnError):
    """An exported graph that differs from its net, or a net that differs from its paper."""


class MissingExtraError(EmdnError):
    """A part of emdn that needs an extra which is not installed."""


def install(extra: str) -> str:
    """Return the command that installs an extra: emdn is on no package index."""
    return f'pip install ".[{extra}]" in the folder of emdn\'s checkout'


def library(name: str, extra: str, what: object) -> Any:
    """Import a library that an extra brings; MissingExtraError says that ``what`` needs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"{what}: needs {name}; {install(extra)}") from error
