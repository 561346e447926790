"""The manifest ``index.json`` beside exported models: how commands read it and add to it."""

import json
from pathlib import Path
from typing import Any

from emdn_models import pretrained
from emdn_models.errors import ModelError
from emdn_models.files import renamed

NAME = "index.json"


def chosen(path: Path, names: tuple[str, ...] | None) -> dict[str, dict[str, Any]]:
    """Return the entries of some models, of all if None.

    Raises
    ------
    ModelError
        If there is no manifest, or it lacks one of them.
    """
    models = pretrained.read_index(path)["models"]
    if missing := [name for name in names or () if name not in models]:
        raise ModelError(f"{path}: has no {', '.join(missing)}; it has {', '.join(models)}")
    return {name: models[name] for name in names or models}


def add(path: Path, name: str, sha256: str, facts: dict[str, Any]) -> None:
    """Add facts to one model's entry, in the manifest as it is now.

    Parameters
    ----------
    sha256
        Of the file that they were measured on.

    Raises
    ------
    ModelError
        If an export has come between.
    """
    index = pretrained.read_index(path)
    if index["models"][name]["sha256"] != sha256:
        raise ModelError(f"{path}: {name} was exported anew meanwhile; repeat this for it")
    index["models"][name] |= facts
    write(path, index)


def write(path: Path, index: dict[str, Any]) -> None:
    """Write a manifest, whole or not at all."""
    with renamed(path) as partial:
        partial.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
