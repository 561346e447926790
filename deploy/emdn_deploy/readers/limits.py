"""What a file may claim: it is compared with memory and with the bytes that are there."""

import math
import os
import re
import stat
import struct
import zlib
from pathlib import Path
from typing import Any

from emdn_models.errors import FormatError

# Bytes of memory that a pixel of one frame takes while it is denoised.
PIXEL_BYTES = 16
# The most that deflate expands what it reads, and that TIFF's other compressions do, by number.
DEFLATE = 1032
_EXPANDS = {5: 4096, 8: DEFLATE, 32946: DEFLATE, 32773: 128}
# Pages that a text may claim, and bytes that a stream may grow to without a look.
MOST_PAGES = 10**7
_HARMLESS = 2**26
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


def check_pages(path: Path, file: Any) -> None:
    """Refuse a TIFF whose list of pages has no end, or whose OME text claims millions of them.

    tifffile follows some circles for ever, and makes room for every page that the text claims.

    Parameters
    ----------
    file
        A `tifffile.TiffFile`.

    Raises
    ------
    FormatError
        Naming the page, or the number.
    """
    form, place, pages = file.tiff, int(file.pages[0].offset), dict[int, int]()
    with path.open("rb") as opened:

        def number(at: int, kind: str, length: int) -> int:
            opened.seek(at)
            return int(struct.unpack(kind, opened.read(length).ljust(length, b"\0"))[0])

        while 0 < place < file.filehandle.size:  # 0 is the end; what lies outside is cut off
            if place in pages:
                raise FormatError(
                    f"{path}: its pages form a circle, the last leads back to number "
                    f"{pages[place]}; it is a damaged TIFF file: copy it again"
                )
            pages[place] = len(pages)
            tags = number(place, form.tagnoformat, form.tagnosize)
            after = place + form.tagnosize + tags * form.tagsize
            place = number(after, form.offsetformat, form.offsetsize)
    for text in re.findall(r"<[^<>]*Pixels [^>]*>", file.ome_metadata or "") if file.is_ome else []:
        claimed = math.prod(int(one) for one in re.findall(r'Size[TCZ]="(\d{1,18})"', text))
        if claimed > max(MOST_PAGES, len(pages)):
            raise FormatError(
                f"{path}: its OME text claims {claimed} frames, and it has {len(pages)} pages; "
                "it is damaged: copy it again"
            )


def check_page(path: Path, page: Any) -> None:
    """Refuse a TIFF page that claims more than it holds, or inflates to more than it claims.

    Parameters
    ----------
    page
        A `tifffile.TiffPage` or a frame of a series.

    Raises
    ------
    FormatError
        Naming both sizes.
    """
    key = page.keyframe
    code, counts = int(key.compression), page.databytecounts
    if code not in _EXPANDS:
        return
    limit, itemsize = _EXPANDS[code], key.dtype.itemsize
    check_stored(f"{path}: page {page.index}", key.size * itemsize, sum(counts), limit)
    most = 2 * math.prod(key.chunks) * itemsize + _PIECE
    for start, count in zip(page.dataoffsets, counts, strict=True):
        if limit != DEFLATE or limit * count <= max(most, _HARMLESS):
            continue
        with path.open("rb") as opened:
            opened.seek(start)
            try:
                found = inflated(opened.read(count), most)
            except zlib.error as error:
                raise FormatError(f"{path}: page {page.index} is damaged ({error})") from error
        if found > most:
            raise FormatError(
                f"{path}: page {page.index} inflates to more than {size(most)}, expected "
                f"{size(math.prod(key.chunks) * itemsize)}; it is a damaged TIFF file"
            )


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
