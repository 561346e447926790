"""Minimal DM and SER files, byte by byte: no library writes these formats."""

import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from emdn_deploy.readers import Choice, Frames, open_frames
from emdn_models.errors import FormatError


def write_ser(path: Path, frames: np.ndarray[Any, Any], step_m: float = 2e-11) -> Path:
    """Write (N, H, W) as a TIA series, bottom row first as TIA does."""
    codes = {"uint8": 1, "uint16": 2, "uint32": 3, "int16": 5, "int32": 6, "float32": 7}
    count, height, width = frames.shape
    dimension = struct.pack("<iddi", count, 0.0, 1.0, 0) + struct.pack("<i", 0) * 2
    head_size = 2 * 3 + 4 * 4 + 8 + 4  # series version 0x0220: 64-bit offsets
    offsets_at = head_size + len(dimension)
    data_at = offsets_at + 2 * 8 * count
    elements, offsets = b"", []
    for frame in frames:
        offsets.append(data_at + len(elements))
        for _ in "xy":
            elements += struct.pack("<ddi", 0.0, step_m, 0)
        elements += struct.pack("<hii", codes[frame.dtype.name], width, height)
        elements += np.ascontiguousarray(np.flipud(frame), frame.dtype.newbyteorder("<")).tobytes()
    tags_at = data_at + len(elements)
    head = struct.pack("<hhhiiii", 0x4949, 0x0197, 0x0220, 0x4122, 0x4152, count, count)
    head += struct.pack("<qi", offsets_at, 1)
    tag_offsets = [tags_at + 12 * i for i in range(count)]
    tags = b"".join(struct.pack("<hhi", 0x4152, 0, i) + b"\0" * 4 for i in range(count))
    body = struct.pack(f"<{2 * count}q", *offsets, *tag_offsets)
    path.write_bytes(head + dimension + body + elements + tags)
    return path


class _Dm:
    """The tag tree of DM3 (32-bit sizes) or DM4 (64-bit)."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.size = ">q" if version == 4 else ">i"

    def group(self, items: list[bytes]) -> bytes:
        return b"\1\0" + struct.pack(self.size, len(items)) + b"".join(items)

    def _label(self, kind: int, name: str, content: bytes) -> bytes:
        head = struct.pack(">bh", kind, len(name)) + name.encode()
        length = struct.pack(">q", len(content)) if self.version == 4 else b""
        return head + length + content

    def sub(self, name: str, items: list[bytes]) -> bytes:
        return self._label(20, name, self.group(items))

    def _data(self, name: str, info: list[int], content: bytes) -> bytes:
        numbers = b"".join(struct.pack(self.size, number) for number in [len(info), *info])
        return self._label(21, name, b"%%%%" + numbers + content)

    def integer(self, name: str, value: int) -> bytes:
        return self._data(name, [5], struct.pack("<I", value))

    def real(self, name: str, value: float) -> bytes:
        return self._data(name, [6], struct.pack("<f", value))

    def text(self, name: str, value: str) -> bytes:
        return self._data(name, [20, 4, len(value)], value.encode("utf-16-le"))

    def array(self, name: str, values: np.ndarray[Any, Any]) -> bytes:
        codes = {"uint16": 4, "int16": 2, "int32": 3, "uint32": 5, "float32": 6, "uint8": 10}
        return self._data(name, [20, codes[values.dtype.name], values.size], values.tobytes())


def write_dm(
    path: Path,
    frames: np.ndarray[Any, Any],
    step_nm: float = 0.02,
    kind: str = "Image",
    more: tuple[np.ndarray[Any, Any], ...] = (),
    tags: Mapping[str, float | str] = MappingProxyType({}),
) -> Path:
    """Write (H, W) or (N, H, W) as DM3 or DM4, by the suffix.

    ``more`` images go in front of the frames where they are of int32 (RGB, as of a thumbnail).
    """
    dm = _Dm(int(path.suffix[-1]))
    images = [_image(dm, frames, step_nm, kind, tags)]
    for other in more:
        colours = other.dtype == np.int32
        made = _image(dm, other, 1.0, "", {}, 23 if colours else None)
        images = [made, *images] if colours else [*images, made]
    tree = dm.group([dm.sub("ImageList", images)])
    length = struct.pack(dm.size, len(tree))
    path.write_bytes(
        struct.pack(">i", dm.version) + length + struct.pack(">i", 1) + tree + b"\0" * 8
    )
    return path


def _image(
    dm: _Dm, frames: np.ndarray[Any, Any], step_nm: float, kind: str, tags: Mapping[str, Any],
    coded: int | None = None,
) -> bytes:  # fmt: skip
    types = {"int16": 1, "float32": 2, "uint8": 6, "int32": 7, "uint16": 10, "uint32": 11}
    steps = [(step_nm, "nm"), (step_nm, "nm"), (0.1, "s")][: frames.ndim]
    dimensions = [
        dm.sub("", [dm.real("Origin", 0.0), dm.real("Scale", step), dm.text("Units", units)])
        for step, units in steps
    ]
    data = [
        dm.sub("Calibrations", [dm.sub("Dimension", dimensions)]),
        dm.array("Data", frames.ravel()),
        dm.integer("DataType", coded or types[frames.dtype.name]),
        dm.sub("Dimensions", [dm.integer("", size) for size in frames.shape[::-1]]),
        dm.integer("PixelDepth", frames.dtype.itemsize),
    ]
    groups: dict[str, list[bytes]] = {"Meta Data": [dm.text("Format", kind)]}
    for name, value in tags.items():
        group, _, leaf = name.partition(".")
        made = dm.text(leaf, value) if isinstance(value, str) else dm.real(leaf, value)
        groups.setdefault(group, []).append(made)
    own = dm.sub("ImageTags", [dm.sub(name, items) for name, items in groups.items()])
    return dm.sub("", [dm.sub("ImageData", data), own])


ser_file = pytest.fixture(lambda: write_ser, name="ser_file")
dm_file = pytest.fixture(lambda: write_dm, name="dm_file")


def open_and_compare(
    path: Path,
    frames: np.ndarray[Any, Any],
    choice: Choice = Choice(),  # noqa: B008
) -> Frames:
    """Compare all frames of a file, and the last one by itself, and return what was opened."""
    expected = frames[None] if frames.ndim == 2 else frames
    with open_frames(path, choice) as opened:
        assert opened.shape == expected.shape
        assert opened.why
        count = len(expected)
        np.testing.assert_array_equal(opened.read(0, count), expected.astype(np.float32))
        np.testing.assert_array_equal(opened.read(count - 1, count), expected[-1:])
    return opened


def open_and_fail(path: Path, match: str, choice: Choice = Choice()) -> None:  # noqa: B008
    """Open a file and read it, which must be one line of error that names it."""
    with pytest.raises(FormatError, match=match) as caught, open_frames(path, choice) as opened:
        opened.read(0, opened.shape[0])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


reads = pytest.fixture(lambda: open_and_compare, name="reads")
refuses = pytest.fixture(lambda: open_and_fail, name="refuses")
