"""What damaged files claim, compared with memory and with the bytes that are there.

HDF5 is looked at before the library reads it: libhdf5 makes room for whatever a file claims, and
follows a virtual dataset into itself until the stack overflows.
"""

import itertools
import math
import os
from collections import defaultdict
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import h5py
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


def check_stored(where: str, claimed: int, stored: int) -> None:
    """Refuse data that claim more bytes than what is stored can hold, with a FormatError."""
    if claimed > DEFLATE * stored:
        raise FormatError(
            f"{where}: claims {human(claimed)} of frames, and the file holds {human(stored)} of "
            "them; it is damaged, or was never filled: copy it again, or only the frames in it"
        )


def human(size: float) -> str:
    """Return a number of bytes in words."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size = size / 1000
    return f"{size:.3g} TB"


def filters_of(array: Any) -> list[int]:
    """List the HDF5 filters of a dataset, or of the first of joined ones, by number.

    Chunks of Zarr are read as if they had one: never in part.
    """
    first = getattr(array, "datasets", [array])[0]
    if not isinstance(first, h5py.Dataset):
        return [0] if hasattr(array, "compressors") else []
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


def check_claims(path: Path, dataset: h5py.Dataset) -> set[Path]:
    """Compare what a dataset claims with what is stored and with memory.

    Returns the files that its pixels come from, behind links and virtual datasets too. Raises
    FormatError if neither can hold it.
    """
    if dataset.is_virtual:
        return _sources(path, dataset)
    where, itemsize = f"{path}: {dataset.name}", dataset.dtype.itemsize
    chunk = math.prod(dataset.chunks or ()) * itemsize
    if filters_of(dataset) and 3 * chunk > memory():
        raise FormatError(
            f"{where}: has chunks {dataset.chunks} of {human(chunk)}, each of which is decoded "
            f"whole, and there are {human(memory())} of memory; store it in smaller chunks, with "
            "h5repack for example"
        )
    # HDF5 takes the names of raw files from the working folder.
    raw = {Path(name) for name, _, _ in dataset.external or () if Path(name).is_file()}
    if (claimed := math.prod(dataset.shape) * itemsize) > _SMALL:
        stored = sum(one.stat().st_size for one in raw)
        check_stored(where, claimed, stored if raw else dataset.id.get_storage_size())
    return {Path(dataset.file.filename), *raw}


def read(dataset: h5py.Dataset, where: Any) -> NDArray[Any]:
    """Read a part of a dataset that is not the frames; ValueError if it is longer than 2**20."""
    if (dataset.shape or (0,))[0] > 2**20:
        raise ValueError(f"{dataset.name} has shape {dataset.shape}")
    check_claims(Path(dataset.file.filename), dataset)
    data: NDArray[Any] = dataset[where]
    return data


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
            found.update(check_claims(path, one))
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
