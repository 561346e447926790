"""Output files: complete or not there, one process at a time at work on them, no crash by HDF5."""

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py

from emdn_models.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CHECKPOINT = "emdn-checkpoint"
"""What an HDF5 file of weights says that it is (`emdn_models.checkpoint`)."""

log = logging.getLogger(__name__)


@contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write to, and move it there once it is on disk.

    After an error the file beside it is deleted, so that a full disk has its room again; what
    cannot be written raises OutputError.
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


@contextmanager
def locked(path: Path, what: str | os.PathLike[str]) -> Iterator[None]:
    """Lock the file ``path`` while this process works on the output ``what``.

    It is deleted at the end; one that a killed process leaves stops nobody, for the lock is the
    system's (flock). Where there is none, as on Windows and some network drives, a warning says so
    and the work goes on. If another process has it, OutputError says so.
    """
    file = _lock_file(path, what)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is let go of: the next one makes its own
        os.close(file)


def _lock_file(path: Path, what: str | os.PathLike[str]) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is None:
                raise OSError("this system has no flock")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except FileNotFoundError:  # its last holder has just deleted it
            pass
        except BlockingIOError:
            os.close(file)
            raise OutputError(
                f"{os.fspath(what)}: another process is at work on it; wait until that ends, "
                "or give another output"
            ) from None
        except OSError as error:
            log.warning("%s: not locked (%s); start nothing else on this output", path, error)
            return file
        os.close(file)


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
