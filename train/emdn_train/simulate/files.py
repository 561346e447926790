"""Folders that belong to one data set, and what is written to them in one go."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from emdn_models.errors import OutputError
from emdn_models.files import renamed
from emdn_models.lock import locked
from emdn_train.simulate.config import SimulateConfig

SETTINGS = "simulation.json"
LOCK = "simulate.lock"


@contextmanager
def claimed(out: Path, config: SimulateConfig) -> Iterator[None]:
    """Hold a folder while this config's data set is made there.

    Raises
    ------
    OutputError
        If another process is at work there, or the folder holds anything else than this
        data set, or what a run that was killed leaves of it.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings = out / SETTINGS
    with locked(out / LOCK, out):
        if settings.exists():
            if settings.read_text(encoding="utf-8") != config.identity():
                raise OutputError(
                    f"{out}: holds a data set of other settings (see {settings}); "
                    "give the same settings to continue it, or another folder"
                )
        elif {path.name for path in out.iterdir()} - {LOCK, f"{SETTINGS}.partial"}:
            raise OutputError(f"{out}: is not empty and no simulated data set; give another folder")
        else:
            with renamed(settings) as partial:
                partial.write_text(config.identity(), encoding="utf-8")
        yield


def store(path: Path, write: Callable[[BytesIO], Any]) -> None:
    """Write a small file in one go; ``write`` gets a buffer to put its contents in."""
    buffer = BytesIO()
    write(buffer)
    with renamed(path) as partial:
        partial.write_bytes(buffer.getvalue())
