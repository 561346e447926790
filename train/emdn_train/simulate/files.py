"""Folders that belong to one data set, and files that are whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emdn_models.errors import OutputError
from emdn_train.simulate.config import SimulateConfig

SETTINGS = "simulation.json"


def claim(out: Path, config: SimulateConfig) -> None:
    """Mark the folder as this config's, or refuse one that is another's."""
    settings = out / SETTINGS
    if settings.exists():
        if settings.read_text(encoding="utf-8") != config.identity():
            raise OutputError(
                f"{out}: holds a data set of other settings (see {settings}); "
                "give the same settings to continue it, or another folder"
            )
    elif out.exists() and any(out.iterdir()):
        raise OutputError(f"{out}: is not empty and no simulated data set; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    with renamed(settings) as partial:
        partial.write_text(config.identity(), encoding="utf-8")


@contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write to, and move it there once it is on disk."""
    partial = path.with_name(path.name + ".partial")
    yield partial
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
