"""HDF5 files, written to disks that may be full, and checked for damage that crashes libhdf5.

The library ends the process after a failed write, crashes on some damage and goes round for
ever on other.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py

from emdn_models.files import renamed, unwritable

CHECKPOINT = "emdn-checkpoint"
"""What a file of weights says that it is (`emdn_models.checkpoint`)."""

# Heaps lie near a file's start or its end; what is between them in a large file are data.
_LOOKED_AT = 2**23
_LARGEST = 2**24  # bytes of an attribute; most files cannot have more than 65,536


class Written(NamedTuple):
    """An HDF5 file that is being written."""

    file: h5py.File
    disk: "_Disk"

    def check(self) -> None:
        """Raise OutputError if anything could not be written so far."""
        if (error := self.disk.error) is not None:
            raise unwritable(self.disk.target, error) from error


@contextmanager
def written(path: Path) -> Iterator[Written]:
    """Write a new HDF5 file beside ``path``, and move it there once it is on disk.

    If it cannot be written, `Written.check` and the end raise OutputError; what was there stays.
    """
    with renamed(path) as partial, opened(partial, "w", path) as out:
        yield out


@contextmanager
def opened(path: Path, mode: str, target: Path | None = None) -> Iterator[Written]:
    """Open an HDF5 file to write to it, new (``w``) or to change it (``r+``), as `written` does.

    OutputError names ``target``.
    """
    disk = _Disk(path, f"{mode[0]}+")
    disk.target = target or path
    out = Written(h5py.File(disk, mode), disk)
    try:
        yield out
    finally:
        try:
            out.file.close()
        except (OSError, RuntimeError):
            out.check()
            raise
        disk.sync()
        disk.close()
        out.check()  # whatever the library says of a file that it cannot read again


class _Disk(io.FileIO):
    """A file that notes the first failure, and from then on only says that it grows.

    libhdf5 does not get over a failed write: the file stays open in it, every further call
    fails, and the process ends by a segmentation fault. So it never sees one.
    """

    target: Path
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
        try:
            os.fsync(self.fileno())
        except OSError as error:
            self.error = self.error or error


def check_heaps(path: str | os.PathLike[str]) -> None:
    """Raise ValueError of heaps of texts in which libhdf5 would go round for ever.

    An object there has no end. Of the HDF5 file format, III.E, with lengths of 8 bytes.
    """
    with Path(path).open("rb") as file:
        total = file.seek(0, os.SEEK_END)
        for start in {0, max(0, total - _LOOKED_AT)}:
            file.seek(start)
            data = file.read(_LOOKED_AT)
            place = -1
            while (place := data.find(b"GCOL\1\0\0\0", place + 1)) >= 0:
                at = place + 16
                end = place + int.from_bytes(data[place + 8 : at], "little")
                while at + 16 <= min(end, len(data)):
                    number = int.from_bytes(data[at : at + 2], "little")
                    size = int.from_bytes(data[at + 8 : at + 16], "little")
                    step = 16 + -(-size // 8) * 8 if number else size
                    if step == 0:
                        raise ValueError(f"the heap at byte {start + place} has an empty object")
                    at += step


def check_attributes(item: h5py.h5g.GroupID | h5py.h5d.DatasetID | h5py.h5t.TypeID) -> None:
    """Raise ValueError of attributes that claim megabytes, or of a type that crashes libhdf5."""
    for number in range(h5py.h5a.get_num_attrs(item)):
        attribute = h5py.h5a.open(item, index=number)
        kind = attribute.get_type()
        claimed = attribute.get_space().get_simple_extent_npoints() * kind.get_size()
        if claimed > _LARGEST:
            raise ValueError(f"the attribute {attribute.name!r} claims {claimed} bytes")
        while isinstance(kind, h5py.h5t.TypeVlenID | h5py.h5t.TypeArrayID):
            # Bits 0 to 3 of a sequence are 0, of a text 1, which h5py has another type for.
            if isinstance(kind, h5py.h5t.TypeVlenID) and kind.encode()[3] & 15:
                raise ValueError(f"the attribute {attribute.name!r} has a type of no kind")
            kind = kind.get_super()
