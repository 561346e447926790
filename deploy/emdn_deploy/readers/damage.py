"""What damaged files claim, compared with memory and with the bytes that are there.

Of HDF5 this is looked at before the library reads it: libhdf5 trusts a file. It inflates a chunk
to whatever length its stream has, takes what lies behind a chunk that came out too short for
pixels, and follows a virtual dataset into itself until the stack overflows.
"""

import itertools
import math
import os
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from emdn_models import hdf5
from emdn_models.errors import FormatError

# Bytes of memory that a pixel of one frame takes while it is denoised.
PIXEL_BYTES = 16
# The most that deflate expands what it reads.
DEFLATE = 1032
MOST_OBJECTS, DEEPEST = 20_000, 100
# Sources of a virtual dataset, and virtual datasets behind one another.
_MOST_SOURCES, _MOST_VIRTUAL = 100_000, 8
# Claims up to this are read, whatever is stored.
_SMALL = 2**30
_PIECE = 2**20
_SHUFFLE, _DEFLATE, _FLETCHER = 2, 1, 3
# Filters whose stream begins with its decoded length: place and byte order of it.
_LENGTHS: dict[int, tuple[slice, Literal["big", "little"]]] = {
    32001: (slice(4, 8), "little"),
    32004: (slice(0, 8), "big"),
    32008: (slice(0, 8), "big"),
}


def memory() -> int:
    """Return the bytes of memory that this process may have."""
    found = [2**40]
    with suppress(AttributeError, ImportError, OSError, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        import resource  # not on Windows

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        found += [limit] if limit != resource.RLIM_INFINITY else []
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
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


def filters_of(array: Any) -> list[int]:
    """List the HDF5 filters of a dataset, or of the first of joined ones, by number."""
    first = getattr(array, "datasets", [array])[0]
    if not isinstance(first, h5py.Dataset):
        return []
    settings = first.id.get_create_plist()
    return [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]


def check_tree(path: Path, file: h5py.File) -> None:
    """Refuse a tree that takes minutes to walk, or more stack than there is.

    Raises FormatError if it has too many groups and datasets, groups too deep in one another, or
    attributes on which libhdf5 crashes.
    """
    count = itertools.count(1)

    def check(name: bytes) -> str | None:
        if name.count(b"/") >= DEEPEST:
            return f"groups inside one another, more than {DEEPEST} deep"
        if next(count) > MOST_OBJECTS:
            return f"more than {MOST_OBJECTS} groups and datasets"
        hdf5.check_attributes(h5py.h5o.open(file.id, name))
        return None

    try:
        hdf5.check_heaps(path)
        hdf5.check_attributes(file.id)
        found = h5py.h5o.visit(file.id, check)
    except ValueError as error:
        raise FormatError(f"{path}: is damaged: {error}; copy it again") from error
    if found:
        raise FormatError(f"{path}: has {found}; copy the frames into an HDF5 file of their own")


class Guarded:
    """A dataset, indexed like one; its chunks are measured before they are decoded.

    ``files`` are those that its pixels come from, behind links and virtual datasets too.

    Raises
    ------
    FormatError
        If it claims more than memory, or what is stored, can hold; on reading, if a chunk does
        not decode to what it should.
    """

    def __init__(self, path: Path, dataset: h5py.Dataset) -> None:
        self.dataset = dataset
        self.dtype: np.dtype[Any] = dataset.dtype
        self.chunks: tuple[int, ...] | None = dataset.chunks
        self._where = f"{path}: {dataset.name}"
        self._seen: set[tuple[int, ...]] = set()
        self._filters = filters_of(dataset)
        self._bytes = math.prod(self.chunks or ()) * self.dtype.itemsize
        # HDF5 takes the names of raw files from the working folder.
        raw = {Path(name) for name, _, _ in dataset.external or () if Path(name).is_file()}
        self.files = {Path(dataset.file.filename), *raw}
        if dataset.is_virtual:
            self.files |= _sources(path, dataset)
            return
        if self._filters and 3 * self._bytes > memory():
            raise FormatError(
                f"{self._where}: has chunks {self.chunks} of {human(self._bytes)}, each of "
                f"which is decoded whole, and there are {human(memory())} of memory; "
                "store it in smaller chunks, with h5repack for example"
            )
        claimed = math.prod(self.shape) * self.dtype.itemsize
        if claimed > _SMALL:
            stored = sum(one.stat().st_size for one in raw)
            stored = stored if dataset.external else dataset.id.get_storage_size()
            check_stored(self._where, claimed, stored)
        if self._filters and self._bytes and claimed:
            self._check_chunk((0,) * len(self.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape, which may grow."""
        shape: tuple[int, ...] = self.dataset.shape
        return shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: Any) -> NDArray[Any]:
        if self._filters and self.chunks:
            for place in self._touched(where if isinstance(where, tuple) else (where,)):
                self._check_chunk(place)
        data: NDArray[Any] = self.dataset[where]
        return data

    def _touched(self, where: tuple[Any, ...]) -> Iterator[tuple[int, ...]]:
        """Yield the first elements of the chunks that a selection needs."""
        assert self.chunks is not None
        axes = []
        for axis, (length, chunk) in enumerate(zip(self.shape, self.chunks, strict=True)):
            one = where[axis] if axis < len(where) else slice(None)
            if not isinstance(one, slice):
                one = slice(int(one), int(one) + 1)
            start, stop, _ = one.indices(length)
            axes.append(range(start // chunk * chunk, stop, chunk))
        return itertools.product(*axes)

    def _check_chunk(self, place: tuple[int, ...]) -> None:
        """Compare what a stored chunk decodes to with what it should, once."""
        if place in self._seen:
            return
        info = self.dataset.id.get_chunk_info_by_coord(place)
        if info.byte_offset is not None:
            used = [one for i, one in enumerate(self._filters) if not info.filter_mask >> i & 1]
            if wrong := self._wrong(place, used, info.size):
                raise FormatError(f"{self._where}: chunk {place} {wrong}; the file is damaged")
        self._seen.add(place)

    def _wrong(self, place: tuple[int, ...], used: list[int], stored: int) -> str:
        """Say what is wrong with a chunk of ``stored`` bytes, empty if nothing is."""
        if stored > 2 * self._bytes + 2**16:
            return f"takes {stored} bytes, to hold {self._bytes}"
        if used and used[-1] == _FLETCHER:
            used, stored = used[:-1], stored - 4
        exact = set(used[:-1]) <= {_SHUFFLE}
        last = used[-1] if used else _SHUFFLE
        if last == _DEFLATE:
            check_stored(f"{self._where}, chunk {place}", self._bytes, stored)
            _, data = self.dataset.id.read_direct_chunk(place)
            try:
                found = inflated(data[:stored], self._bytes)
            except zlib.error as error:
                return f"cannot be inflated ({error})"
        elif last in _LENGTHS:
            part, order = _LENGTHS[last]
            _, data = self.dataset.id.read_direct_chunk(place)
            found = int.from_bytes(data[part], order)
        elif last == _SHUFFLE:
            found = stored
        else:
            return ""
        if found == self._bytes or (found < self._bytes and not exact):
            return ""
        more = "or more " if found > self._bytes else ""
        return f"decodes to {found} bytes {more}instead of {self._bytes}"


def read(dataset: h5py.Dataset, where: Any) -> NDArray[Any]:
    """Read a part of a dataset that is not the frames, a megabyte at most.

    Raises FormatError: as `Guarded`. Raises ValueError if it is larger.
    """
    if (dataset.shape or (0,))[0] > 2**20:
        raise ValueError(f"{dataset.name} has shape {dataset.shape}")
    return Guarded(Path(dataset.file.filename), dataset)[where]


def _sources(path: Path, dataset: h5py.Dataset) -> set[Path]:
    """List the files behind a virtual dataset; refuse one that leads back to itself.

    A source that is missing is of no concern here: HDF5 reads fill values for it.
    """
    known: set[tuple[str, int]] = set()
    found: set[Path] = set()

    def walk(one: h5py.Dataset, above: tuple[tuple[str, int], ...]) -> None:
        own = os.path.realpath(one.file.filename), int(h5py.h5o.get_info(one.id).addr)
        if own in above or len(above) > _MOST_VIRTUAL:
            raise FormatError(
                f"{path}: the virtual dataset {dataset.name} leads back to itself; it holds "
                "no frames: write it again with the right sources"
            )
        if own in known:
            return
        known.add(own)
        found.add(Path(one.file.filename))
        if not one.is_virtual:
            found.update(Guarded(path, one).files)
            return
        if one.id.get_create_plist().get_virtual_count() > _MOST_SOURCES:
            raise FormatError(f"{path}: {one.name} has more than {_MOST_SOURCES} sources")
        sources = one.virtual_sources()
        claimed = math.prod(one.shape)
        if claimed * one.dtype.itemsize > _SMALL:
            mapped = sum(source.src_space.get_select_npoints() for source in sources)
            check_stored(f"{path}: {one.name}", claimed, mapped)
        files: dict[str, set[str]] = defaultdict(set)
        for source in sources:
            files[source.file_name].add(source.dset_name)
        for name, datasets in files.items():
            beside = Path(one.file.filename).parent / name
            if name != "." and not beside.is_file():
                continue
            with suppress(OSError), ExitStack() as stack:
                file = one.file
                if name != ".":
                    found.add(beside)
                    file = stack.enter_context(h5py.File(beside, "r"))
                for inside in map(file.get, datasets):
                    if isinstance(inside, h5py.Dataset):
                        walk(inside, (*above, own))

    walk(dataset, ())
    return found
