"""Files that are whole or not there, and one error where they cannot be written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emdn_models.errors import OutputError


@contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write to, and move it there once it is on disk.

    After an error the file beside it is deleted, so that a full disk has its room again.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


def unwritable(path: str | os.PathLike[str], error: OSError) -> OutputError:
    """Say of a file that it cannot be written, why, and what to do."""
    return OutputError(
        f"{os.fspath(path)}: cannot be written ({error.strerror or error}); "
        "make room, or see to the disk, and repeat the command"
    )
