"""Output files: complete or not there, with one process at a time at work on them."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from emdn_models.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

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

    The file names its owner and is deleted at the end. One that a killed process leaves stops
    nobody: the lock is the system's (flock), not the file. Where there is none, as on Windows and
    some network drives, a warning says so and the work goes on. If another process holds it,
    OutputError says which, on what machine, since when.
    """
    file = _lock_file(path, what)
    owner = f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%F %T},"
    try:
        with suppress(OSError):  # a full disk: others are not told who holds it
            os.truncate(file, 0)
            os.write(file, owner.encode())
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
            holder = os.read(file, 1000).decode(errors="replace") or "another process"
            os.close(file)
            raise OutputError(
                f"{os.fspath(what)}: {holder} is at work on it; wait until that ends, "
                "or give another output"
            ) from None
        except OSError as error:
            log.warning("%s: not locked (%s); start nothing else on this output", path, error)
            return file
        os.close(file)
