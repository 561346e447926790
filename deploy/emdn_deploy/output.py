"""An output file that appears under its name only when it is complete."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.writers.layout import Layout, Provenance
from emdn_models.errors import OutputError


def check_target(target: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse an output that would destroy something.

    Raises
    ------
    OutputError
        If it is the input, exists already (without ``overwrite``), or its folder
        is missing or not writable.
    """
    if target.exists() and source.exists() and target.samefile(source):
        raise OutputError(f"{target}: is the input itself; emdn never overwrites it, use -o")
    if target.is_dir():
        raise OutputError(f"{target}: is a folder; give the name of a file with -o")
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: exists already; add --overwrite, or another name with -o")
    folder = target.parent
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder; create it first")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder}: cannot be written to; choose another place with -o")


class Output:
    """Fill ``NAME.partial`` frame by frame, then rename it to ``NAME``.

    Parameters
    ----------
    make
        Writes everything but the pixels to a path and returns the layout.

    Raises
    ------
    OutputError
        From any method, when the disk refuses.
    """

    def __init__(self, target: Path, make: Callable[[Path], Layout]) -> None:
        self.target = target
        self.partial = target.with_name(target.name + ".partial")
        with self._disk():
            self.partial.unlink(missing_ok=True)
            self.layout = make(self.partial)
            self._file = self.partial.open("r+b", buffering=0)

    def write(self, start: int, frames: NDArray[np.float32]) -> None:
        """Write frames (k, H, W), the first of which is number ``start``."""
        layout = self.layout
        with self._disk():
            for number, frame in enumerate(frames, start):
                turned = frame.T if layout.transposed else frame
                pixels = np.ascontiguousarray(turned, layout.dtype).data.cast("B")
                self._file.seek(int(layout.offsets[number]))
                while pixels:
                    pixels = pixels[self._file.write(pixels) :]

    def complete(self, late: Provenance) -> None:
        """Make the file durable and give it its name."""
        with self._disk():
            os.fsync(self._file.fileno())
            self._file.close()
            self.layout.finish(late)
            with self.partial.open("r+b") as file:
                os.fsync(file.fileno())
            os.replace(self.partial, self.target)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if error is not None:
            self.partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"{self.partial}: cannot be written ({reason})") from error
