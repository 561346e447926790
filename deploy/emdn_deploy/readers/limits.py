"""What a file may claim: it is compared with memory and with the bytes that are there."""

import os
import stat
import struct
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


def check_regular(path: Path) -> None:
    """Refuse a pipe, a socket or a device, from which no frames can be read twice.

    Raises
    ------
    FormatError
        Naming what it is.
    """
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise FormatError(f"{path}: is {kind}, expected a file; copy its content into one first")


def check_frame(where: str, height: int, width: int) -> None:
    """Refuse frames of which not even one fits into memory.

    Raises
    ------
    FormatError
        Saying what is needed and what there is.
    """
    need, there = PIXEL_BYTES * height * width, memory()
    if need > there:
        raise FormatError(
            f"{where}: claims frames of {height} x {width} pixels; one needs {size(need)} of "
            f"memory, and there are {size(there)}: is the file damaged? If not, cut its frames"
        )


def check_stored(where: str, claimed: int, stored: int, ratio: float = DEFLATE) -> None:
    """Refuse data that claim more bytes than what is stored can hold.

    Parameters
    ----------
    ratio
        The most that a stored byte may stand for.

    Raises
    ------
    FormatError
        Naming both sizes.
    """
    if claimed > ratio * stored:
        raise FormatError(
            f"{where}: claims {size(claimed)} of frames, and the file holds {size(stored)} of "
            "them; it is damaged, or was never filled: copy it again, or only the frames in it"
        )


def inflated(data: bytes, most: int) -> int:
    """Count the bytes in a zlib stream, up to a little over ``most``; none are kept."""
    stream, count = zlib.decompressobj(), 0
    while data and count <= most and not stream.eof:
        count += len(stream.decompress(data, _PIECE))
        data = stream.unconsumed_tail
    return count


def check_mrc(path: Path) -> None:
    """Refuse an extended header that is longer than the file: mrcfile would make room for it."""
    with path.open("rb") as file:
        head = file.read(1024)
    left = path.stat().st_size - 1024
    lengths = [struct.unpack_from(order, head, 92)[0] for order in ("<i", ">i")] if left > 0 else []
    if lengths and not any(0 <= one <= left for one in lengths):
        raise FormatError(
            f"{path}: cannot be read as MRC (its extended header claims {lengths[0]} bytes, "
            f"the file has {left} after its header)"
        )


def check_ser(path: Path) -> None:
    """Refuse counts that are larger than the file: ncempy would make room for them.

    Raises
    ------
    FormatError
        Naming the count.
    """
    total = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(34)
        if len(head) < 34:
            raise FormatError(f"{path}: is a truncated SER file ({total} bytes)")
        version, count = struct.unpack_from("<h12xi", head, 4)
        wide = version == 0x220
        file.seek(30 if wide else 26)
        (dimensions,) = struct.unpack("<i", file.read(4))
        # Each frame has its place and its tag's place in the offset arrays.
        counts = {"frames": count * (16 if wide else 8), "dimensions": 32 * dimensions}
        for _ in range(min(dimensions, total // 32)):
            file.seek(24, os.SEEK_CUR)
            for kind in ("description", "units"):
                (length,) = struct.unpack("<i", file.read(4).ljust(4, b"\0"))
                counts[kind] = length if length < 0 else max(counts.get(kind, 0), length)
                if not 0 <= length <= total:
                    break
                file.seek(length, os.SEEK_CUR)
    for kind, need in counts.items():
        if not 0 <= need <= total:
            raise FormatError(
                f"{path}: is a damaged SER file (its {kind} would take {need} bytes of {total})"
            )


def size(count: int) -> str:
    """Write a number of bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count = count / 1000  # type: ignore[assignment]
    return f"{count:.3g} TB"
