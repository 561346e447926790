"""What a file may claim: it is compared with memory and with the bytes that are there."""

import os
import zlib
from pathlib import Path

from emdn_models.errors import FormatError

# Bytes of memory that a pixel of one frame takes while it is denoised.
PIXEL_BYTES = 16
# The most that deflate expands what it reads.
DEFLATE = 1032
_PIECE = 2**20


def memory() -> int:
    """Return the bytes of memory that this process may have."""
    found = [2**40]
    try:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        import resource  # not on Windows

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        found += [limit] if limit != resource.RLIM_INFINITY else []
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (AttributeError, ImportError, OSError, ValueError):
        pass
    return min(found)


def check_frame(where: str, height: int, width: int) -> None:
    """Refuse frames of which not even one fits into memory, with a FormatError."""
    need, there = PIXEL_BYTES * height * width, memory()
    if need > there:
        raise FormatError(
            f"{where}: claims frames of {height} x {width} pixels; one needs {human(need)} of "
            f"memory, and there are {human(there)}: is the file damaged? If not, cut its frames"
        )


def check_stored(where: str, claimed: int, stored: int, ratio: float = DEFLATE) -> None:
    """Refuse data that claim more bytes than what is stored can hold, with a FormatError.

    ``ratio``: the most that a stored byte may stand for.
    """
    if claimed > ratio * stored:
        raise FormatError(
            f"{where}: claims {human(claimed)} of frames, and the file holds {human(stored)} of "
            "them; it is damaged, or was never filled: copy it again, or only the frames in it"
        )


def inflated(data: bytes, most: int) -> int:
    """Count the bytes in a zlib stream, up to a little over ``most``; none are kept."""
    stream, count = zlib.decompressobj(), 0
    while data and count <= most and not stream.eof:
        count += len(stream.decompress(data, _PIECE))
        data = stream.unconsumed_tail
    return count


def human(size: float) -> str:
    """Return a number of bytes in words."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size = size / 1000
    return f"{size:.3g} TB"
