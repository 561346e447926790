"""HDF5 datasets that are looked at before the library reads them.

libhdf5 trusts a file: it inflates a chunk to whatever length its stream has, takes what lies
behind a chunk that came out too short for pixels, and follows a virtual dataset into itself
until the stack overflows.
"""

import itertools
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from emdn_deploy.readers import limits
from emdn_deploy.readers.scratch import filters_of
from emdn_models import hdf5
from emdn_models.errors import FormatError

MOST_OBJECTS, DEEPEST = 20_000, 100
# Sources of a virtual dataset, and virtual datasets behind one another.
_MOST_SOURCES, _MOST_VIRTUAL = 100_000, 8
# Claims up to this are read, whatever is stored.
_SMALL = 2**30
_PIECE = 2**16
_SHUFFLE, _DEFLATE, _FLETCHER = 2, 1, 3
# Filters whose stream begins with its decoded length: place and byte order of it.
_LENGTHS: dict[int, tuple[slice, Literal["big", "little"]]] = {
    32001: (slice(4, 8), "little"),
    32004: (slice(0, 8), "big"),
    32008: (slice(0, 8), "big"),
}


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
        named = (Path(name) for name, _, _ in dataset.external or ())
        raw = {place for place in named if place.is_file()}
        self.files = {Path(dataset.file.filename), *raw}
        if dataset.is_virtual:
            self.files |= _sources(path, dataset)
        else:
            self._check_claims(raw)

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

    def _check_claims(self, raw: set[Path]) -> None:
        """Compare the claimed size with the stored one, and a chunk's with memory."""
        # Large chunks that are deflated at the most are decoded in parts (scratch.py).
        whole = not set(self._filters) <= {_SHUFFLE, _DEFLATE, _FLETCHER}
        if whole and 2 * self._bytes > limits.memory():
            raise FormatError(
                f"{self._where}: has chunks {self.chunks} of {limits.human(self._bytes)}, each of "
                f"which is decoded whole, and there are {limits.human(limits.memory())} of memory; "
                "store it in smaller chunks, with h5repack for example"
            )
        claimed = math.prod(self.shape) * self.dtype.itemsize
        if claimed > _SMALL:
            stored = sum(one.stat().st_size for one in raw)
            stored = stored if self.dataset.external else self.dataset.id.get_storage_size()
            limits.check_stored(self._where, claimed, stored)
        if self._filters and self._bytes and claimed:
            self._check_chunk((0,) * len(self.shape))

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
        if stored > 2 * self._bytes + _PIECE:
            return f"takes {stored} bytes, to hold {self._bytes}"
        if used and used[-1] == _FLETCHER:
            used, stored = used[:-1], stored - 4
        exact = set(used[:-1]) <= {_SHUFFLE}
        last = used[-1] if used else _SHUFFLE
        if last == _DEFLATE:
            limits.check_stored(f"{self._where}, chunk {place}", self._bytes, stored)
            _, data = self.dataset.id.read_direct_chunk(place)
            try:
                found = limits.inflated(data[:stored], self._bytes)
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

    A source that is missing is of no concern here.
    """
    known: set[tuple[str, int]] = set()
    found: set[Path] = set()

    def opened(one: h5py.Dataset, name: str) -> Iterator[h5py.File]:
        """Yield the files that a source's name stands for, up to the first that is missing."""
        if name == ".":
            yield one.file
            return
        for place in _numbered(name):
            beside = Path(one.file.filename).parent / place
            if not beside.is_file():
                return
            found.add(beside)
            try:
                file = h5py.File(beside, "r")
            except OSError:
                return
            with file:
                yield file

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
            limits.check_stored(f"{path}: {one.name}", claimed, mapped)
        files: dict[str, set[str]] = {}
        for source in sources:
            files.setdefault(source.file_name, set()).add(source.dset_name)
        for name, datasets in files.items():
            for file in opened(one, name):
                for inside in datasets:
                    items = (file.get(own_name) for own_name in _numbered(inside))
                    for item in items:
                        if not isinstance(item, h5py.Dataset):
                            break
                        walk(item, (*above, own))

    walk(dataset, ())
    return found


def _numbered(name: str) -> Iterator[str]:
    """Yield a source's name, or where it counts (``%b``) all that it stands for."""
    count = _MOST_SOURCES if "%b" in name else 1
    for number in range(count):
        yield name.replace("%b", str(number)).replace("%%", "%")
