"""The shipped models, name to packaged ONNX file; and ``index.json``, which any export has.

``emdn-train export`` writes that index. It names the default model and, for each model, its file,
sha256, preset, size, training, what the fit measured on its own test frames (``validation``), and
its variants of other precisions; ``emdn-train quality`` adds the gain on the fixed test split
(``quality``), ``calibrate`` the factors of standard deviations (``sigma``).
"""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from emdn_models.errors import ModelError
from emdn_models.files import renamed

INDEX = "index.json"
WEIGHTS = Path(__file__).parent / "weights"
CHECKPOINT = WEIGHTS / "em_denoise_model.h5"


@cache
def index() -> dict[str, Any]:
    """Read the index of shipped models: ``{"default": name, "models": {name: {...}}}``."""
    return read_index(WEIGHTS / INDEX, "reinstall emdn")


def read_index(path: Path, remedy: str = "write it with emdn-train export") -> dict[str, Any]:
    """Read an ``index.json``; ModelError if there is none, or it is damaged.

    Each model, and each of its variants, needs a ``file`` in the same folder.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for entry in data["models"].values():
            for one in (entry, *entry.get("variants", {}).values()):
                if one["file"] != Path(one["file"]).name:
                    raise ValueError(f"{one['file']!r} is no file's name")
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        words = f"{type(error).__name__}: {error}"
        raise ModelError(f"{path}: cannot be read ({words}); {remedy}") from error
    return data


def write_index(path: Path, data: dict[str, Any]) -> None:
    """Write an ``index.json`` in one step."""
    with renamed(path) as partial:
        partial.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def entries_of(folder: Path, names: tuple[str, ...] | None) -> dict[str, dict[str, Any]]:
    """Return what a folder's index says of some models, of all if None."""
    models = read_index(folder / INDEX)["models"]
    if missing := [name for name in names or () if name not in models]:
        raise ModelError(
            f"{folder / INDEX}: has no {', '.join(missing)}; it has {', '.join(models)}"
        )
    return {name: models[name] for name in names or models}


def add_facts(folder: Path, name: str, sha256: str, facts: dict[str, Any]) -> None:
    """Add facts to one model's entry; ``sha256`` is that of the file they were measured on."""
    path = folder / INDEX
    found = read_index(path)
    if found["models"][name]["sha256"] != sha256:
        raise ModelError(f"{path}: {name} was exported anew meanwhile; repeat this for it")
    found["models"][name] |= facts
    write_index(path, found)


def default_model() -> str:
    """Name the model that is used when none is asked for."""
    return str(index()["default"])


def movie_model(precision: str = "fp32") -> str | None:
    """Name the model for movies, which sees neighbouring frames; None where there is none."""
    name = f"{default_model()}@movie"
    return name if name in index()["models"] and precision in precisions(name) else None


def onnx_path(name: str, precision: str = "fp32") -> Path:
    """Return the packaged ONNX file of a model, or of its variant, after comparing its sha256.

    ModelError says that no such model or variant is shipped, or that its file is damaged.
    """
    shipped = index()["models"]
    if name not in shipped:
        raise ModelError(
            f"no shipped model is called {name!r}; shipped are {', '.join(shipped)} "
            "(or give the path of an .onnx file)"
        )
    if precision not in precisions(name):
        raise ModelError(
            f"{name} has no {precision} variant; make one with emdn-train export shipped "
            f"--models {name} --precision {precision}"
        )
    entry = shipped[name] if precision == "fp32" else shipped[name]["variants"][precision]
    path = WEIGHTS / str(entry["file"])
    if not path.is_file() or sha256(path) != entry.get("sha256"):
        raise ModelError(f"{path}: missing or damaged; reinstall emdn")
    return path


def precisions(name: str) -> tuple[str, ...]:
    """Name what a shipped model can compute with: ``fp32``, then its variants."""
    return ("fp32", *index()["models"][name].get("variants", {}))


def sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
