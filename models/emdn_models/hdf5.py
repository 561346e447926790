"""Damage in an HDF5 file on which libhdf5 crashes or never ends, found before it reads on."""

import os
from pathlib import Path

import h5py

# Heaps lie near a file's start or its end; what is between them in a large file are data.
_LOOKED_AT = 2**23
# Bytes of an attribute; most files cannot have more than 65,536.
_LARGEST = 2**24


def check_heaps(path: str | os.PathLike[str]) -> None:
    """Refuse heaps of texts with an object that has no end, in which libhdf5 goes round for ever.

    Raises
    ------
    ValueError
        Saying where.
    """
    with Path(path).open("rb") as file:
        total = file.seek(0, os.SEEK_END)
        starts = {0, max(0, total - _LOOKED_AT)}
        for start in starts:
            file.seek(start)
            data = file.read(_LOOKED_AT)
            place = data.find(b"GCOL\1\0\0\0")
            while place >= 0:
                _check_heap(data, place, start + place)
                place = data.find(b"GCOL\1\0\0\0", place + 8)


def _check_heap(data: bytes, start: int, place: int) -> None:
    # Global heap collection, of the HDF5 file format, III.E, with lengths of 8 bytes.
    end = start + int.from_bytes(data[start + 8 : start + 16], "little")
    at = start + 16
    while at + 16 <= min(end, len(data)):
        number = int.from_bytes(data[at : at + 2], "little")
        size = int.from_bytes(data[at + 8 : at + 16], "little")
        step = 16 + -(-size // 8) * 8 if number else size
        if step == 0:
            raise ValueError(f"the heap at byte {place} has an object of no size")
        at += step


def check_attributes(item: h5py.h5g.GroupID | h5py.h5d.DatasetID | h5py.h5t.TypeID) -> None:
    """Refuse attributes that claim megabytes, or a type of no kind, on which libhdf5 crashes.

    Raises
    ------
    ValueError
        Naming the attribute.
    """
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
