"""The shipped models: name to packaged ONNX file, checked against the index.

``weights/index.json`` is written by ``emdn-train export``. It names the default
model and, for each model, its file, sha256, preset, size, training, what the fit
measured on its own test frames (``validation``), and its variants of other precisions;
``emdn-train quality`` adds the gain on the fixed test split (``quality``).
"""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from emdn_models.errors import ModelError

WEIGHTS = Path(__file__).parent / "weights"
CHECKPOINT = WEIGHTS / "em_denoise_model.h5"


@cache
def index() -> dict[str, Any]:
    """Read the index of shipped models: ``{"default": name, "models": {name: {...}}}``."""
    data: dict[str, Any] = json.loads((WEIGHTS / "index.json").read_text(encoding="utf-8"))
    return data


def default_model() -> str:
    """Name the model that is used when none is asked for."""
    return str(index()["default"])


def onnx_path(name: str, precision: str = "fp32") -> Path:
    """Return the packaged ONNX file of a model after comparing its sha256.

    Parameters
    ----------
    precision
        ``fp32`` for the model itself, else which of its variants.

    Raises
    ------
    ModelError
        If no such model or variant is shipped, or its file is missing or damaged.
    """
    shipped = index()["models"]
    if name not in shipped:
        raise ModelError(
            f"no shipped model is called {name!r}; shipped are {', '.join(shipped)} "
            "(or give the path of an .onnx file)"
        )
    entry = shipped[name]
    if precision != "fp32":
        if precision not in precisions(name):
            others = [other for other in shipped if precision in precisions(other)]
            raise ModelError(
                f"{name} has no {precision} variant; "
                + (f"those that have one: {', '.join(others)}" if others else "no model has one")
            )
        entry = entry["variants"][precision]
    path = WEIGHTS / str(entry["file"])
    if not path.is_file() or sha256(path) != entry["sha256"]:
        raise ModelError(f"{path}: missing or damaged; reinstall emdn")
    return path


def precisions(name: str) -> tuple[str, ...]:
    """Name what a shipped model can compute with: ``fp32``, then its variants."""
    return ("fp32", *index()["models"][name].get("variants", {}))


def sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
