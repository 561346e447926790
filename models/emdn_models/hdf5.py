"""HDF5 files written so that a full disk is one error, and not the end of the process."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from emdn_models.files import unwritable


class Written:
    """An HDF5 file that is being written.

    Attributes
    ----------
    file
        The open file.
    """

    def __init__(self, path: Path) -> None:
        self._disk = _Disk(path, "w+")
        self.file = h5py.File(self._disk, "w")

    def check(self) -> None:
        """Raise OutputError if anything could not be written so far."""
        if (error := self._disk.error) is not None:
            raise unwritable(str(self._disk.name), error) from error

    def close(self) -> None:
        """Let go of the file, all of it on disk unless `check` says otherwise."""
        try:
            self.file.close()
        except (OSError, RuntimeError):
            self.check()
            raise
        self._disk.sync()
        self._disk.close()


@contextmanager
def written(path: Path) -> Iterator[Written]:
    """Write a new HDF5 file; what there was of this name is replaced.

    Raises
    ------
    OutputError
        At the end, or by `Written.check`, if the file cannot be written.
    """
    out = Written(path)
    try:
        yield out
    finally:
        out.close()
        out.check()  # whatever the library says of a file that it cannot read again


class _Disk(io.FileIO):
    """A file that notes the first failure, and from then on only says that it grows.

    libhdf5 does not get over a failed write: the file stays open in it, every further call
    fails, and the process ends by a segmentation fault. So it never sees one.
    """

    error: OSError | None = None
    _end = 0

    def write(self, data: Any) -> int:
        left = memoryview(data)
        end = self.tell() + left.nbytes
        try:
            while left.nbytes and self.error is None:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        if self.error is not None:
            self._end = max(self._end, end)
        return memoryview(data).nbytes

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            self._end = size or 0
            return self._end

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place = super().seek(offset, whence)
        return max(place, self._end) if whence == io.SEEK_END else place

    def sync(self) -> None:
        """Put everything on the disk."""
        try:
            os.fsync(self.fileno())
        except OSError as error:
            self.error = self.error or error
