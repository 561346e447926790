"""What a reader returns: an open stack of frames with calibrated axes.

A reader is a module with ``open_frames(path, choice) -> Frames`` and one line in
`emdn_deploy.readers.READERS`. It opens a file, says which array in it are the frames, and gives it
to `array_frames`, which does what all formats share: axis orders, ``--axes``, checks, calibration.
The array reads what is asked for when it is indexed: a dataset of HDF5 or Zarr, `Plain` where
pixels lie in a file as they are, or `Pages`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from emdn_models.errors import EmdnError, FormatError

LIMIT = 2**29
"""Bytes of frames that are read at once where they are stored together, if over 8 frames."""

_METRES = {
    "m": 1.0, "mm": 1e-3, "µm": 1e-6, "um": 1e-6, "micron": 1e-6, "microns": 1e-6,
    "nm": 1e-9, "pm": 1e-12, "å": 1e-10, "a": 1e-10, "ang": 1e-10, "angstrom": 1e-10,
}  # fmt: skip
_LETTERS = "tuvwabdefghijk"  # of axes that are neither of the frame nor channels
_LISTED = 8  # stacks in an error, which is one line

Read = Callable[[int, int], NDArray[Any]]


@dataclass(frozen=True)
class Choice:
    """What the user said about which frames to take.

    ``dataset``: path, or number, inside a file that holds several stacks. ``axes``: one letter per
    stored axis: ``y`` and ``x`` for the frame, ``c`` for a channel axis of length one, any other
    for time or scan axes. A digit instead takes that index of the axis: ``t1yx`` is channel 1 of
    (T, C, Y, X).
    """

    dataset: str | None = None
    axes: str | None = None

    def __post_init__(self) -> None:
        if self.axes is not None:
            object.__setattr__(self, "axes", self.axes.lower())


@dataclass(frozen=True)
class Axis:
    """One stored axis, of the name that the file uses, ``""`` when it gives none.

    ``step``: distance of two neighbours in ``units``, None when uncalibrated. ``origin``:
    coordinate of the first element.
    """

    name: str = ""
    units: str = ""
    step: float | None = None
    origin: float = 0.0

    def step_in(self, units: str) -> float | None:
        """Return the step in a unit of length, None where it has none or is no length."""
        own = _METRES.get(self.units.strip().replace("μ", "µ").lower())
        if self.step is None or own is None:
            return None
        return self.step * own / _METRES[units.lower()]


@dataclass(frozen=True)
class Frames:
    """An open stack of N frames of H x W pixels, ``shape`` (N, H, W).

    ``order``: one letter per stored axis, as in `Choice.axes`; ``stored_shape``, ``axes``: their
    lengths in the file and calibration. ``read_block(start, stop)`` gives (stop - start, H, W) in
    the file's ``dtype``. ``dataset``, ``why``: path inside the file, ``""`` for formats with one
    stack a file, and why it was taken. ``metadata``: facts of the file worth showing or carrying
    over, as text. ``parts``: paths of the datasets that together are the stack, ``dataset`` first;
    empty where it is one. ``notes``: what was assumed, left out or changed, as the user must know
    it. ``numbers``: which of the file's frames these are; None for all. ``files``: every file that
    pixels come from; empty where that is ``path`` alone. ``missing``: of `cut_short`, where the
    file promises more frames than these.
    """

    path: Path
    format: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    order: str
    stored_shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    read_block: Read
    release: Callable[[], None]
    dataset: str = ""
    why: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    compressed: bool = False
    numbers: Sequence[int] | None = None
    files: tuple[Path, ...] = ()
    missing: str = ""

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return frames ``start`` to ``stop`` as writable float32 (k, H, W), in the file's units.

        Raises FormatError if the file ends early or a block cannot be decoded.
        """
        try:
            block = self.read_block(start, stop)
        except EmdnError:
            raise
        except Exception as error:  # decoders stumble over damage in ways of their own
            raise FormatError(
                f"{self.path}: frames {start} to {stop - 1} cannot be read "
                f"({type(error).__name__}: {error}); the file is damaged or still being written"
            ) from error
        return np.require(block, np.float32, ["C", "W"])

    @property
    def lead(self) -> tuple[int, ...]:
        """Lengths of the axes along which frames lie, but for those of one frame."""
        axes = zip(self.order, self.stored_shape, strict=True)
        return tuple(length for letter, length in axes if letter not in "yx" and length > 1)

    def axis(self, letter: str) -> Axis:
        """Return the calibration of the ``y`` or ``x`` axis."""
        return self.axes[self.order.index(letter)]

    def time(self) -> Axis | None:
        """Return the calibration of the axis in time; None without one."""
        return next((axis for axis in self.axes if axis.units in ("s", "ms", "µs")), None)

    def dose(self, electrons: float) -> float | None:
        """Turn electrons a pixel into electrons per square angstrom, None without a pixel size."""
        y, x = (self.axis(letter).step_in("Å") for letter in "yx")
        return electrons / (y * x) if y and x else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def array_frames(
    path: Path,
    name: str,
    array: Any,
    choice: Choice,
    *,
    order: str | None = None,
    axes: tuple[Axis, ...] = (),
    dataset: str = "",
    why: str = "the only stack in the file",
    metadata: Mapping[str, str] | None = None,
    notes: tuple[str, ...] = (),
    release: Callable[[], None] = lambda: None,
    compressed: bool = False,
    missing: str = "",
) -> Frames:
    """Make frames of an array in a file; FormatError if it is none, or ``choice`` does not fit.

    The array has ``shape``, ``dtype``, basic indexing, and ``chunks`` if it is stored in such.
    ``name``: of the format, for the user. ``order``, ``axes``: the format's own axis order, None
    where it has none, and the calibration.
    """
    if len(array.shape) < 2:
        raise FormatError(f"{path}: has shape {array.shape}, expected frames: two axes or more")
    said = choice.axes or order
    given = said or default_order(array.shape)
    _check(f"{path}: {dataset}" if dataset else str(path), array, given, guessed=not said)
    axes = axes if len(axes) == len(given) else (Axis(),) * len(given)
    left = [i for i, letter in enumerate(given) if not letter.isdigit()]
    letters, stored = "".join(given[i] for i in left), tuple(int(array.shape[i]) for i in left)
    lengths = dict(zip(letters, stored, strict=True))
    height, width = lengths.pop("y"), lengths.pop("x")
    shape = math.prod(lengths.values()), height, width
    read, slow = _together(_block_reader(array, given), array, given, shape)
    return Frames(
        path, name, shape, array.dtype, letters, stored, tuple(axes[i] for i in left), read,
        release, dataset, why, metadata or {}, notes=notes + slow, compressed=compressed,
        missing=missing,
    )  # fmt: skip


def default_order(shape: tuple[int, ...]) -> str:
    """Name the axes of an array that says nothing itself: frames first, then (y, x).

    A last axis of length one is a channel axis.
    """
    if len(shape) >= 3 and shape[-1] == 1 < shape[-2]:
        return default_order(shape[:-1]) + "c"
    return _LETTERS[: len(shape) - 2][::-1] + "yx"


def _check(where: str, array: Any, order: str, *, guessed: bool) -> None:
    """Refuse what is no stack of frames, and an order of axes that does not fit it."""
    shape, dtype = tuple(int(length) for length in array.shape), array.dtype
    if dtype.names or dtype.kind not in "buif":
        what = "compound" if dtype.names else "complex" if dtype.kind == "c" else "other"
        raise FormatError(
            f"{where}: holds {what} values ({', '.join(dtype.names or [str(dtype)])}), expected "
            "one real number per pixel: choose another dataset, or store a real image"
        )
    letters = "".join(letter for letter in order if not letter.isdigit())
    fits = len(order) == len(shape) and {"y", "x"} <= {*letters} and len({*letters}) == len(letters)
    if not fits or any(
        letter.isdigit() and int(letter) >= length
        for letter, length in zip(order, shape, strict=True)
    ):
        raise FormatError(
            f"{where}: axes {order!r} do not fit shape {shape}; give one different letter per axis "
            "with y and x among them, such as --axes tyx, or a number that is below its length"
        )
    channels = order if "c" in order and shape[order.index("c")] != 1 else ""
    if guessed and channels_last(shape):
        channels = default_order((*shape[:-1], 1))
    if channels:
        first, second, every = (channels.replace("c", one) for one in ("0", "1", free(channels)))
        raise FormatError(
            f"{where}: has {shape[channels.index('c')]} channels (colours or detectors; shape "
            f"{shape}, axes {channels}), each with an intensity scale of its own: take one with "
            f"--axes {first} or {second}, or all as frames of one scale with --axes {every}"
        )
    if guessed and frames_last(shape):
        one, two, last = shape
        raise FormatError(
            f"{where}: shape {shape} looks like {last} frames of {one} x {two}, stored last: "
            f"say so with --axes yxt, or --axes tyx for {one} frames of {two} x {last}"
        )
    if 0 in shape:
        raise FormatError(f"{where}: is empty (shape {shape})")


def channels_last(shape: tuple[int, ...]) -> bool:
    """Say whether the last axis looks like colours or channels."""
    return len(shape) >= 3 and 2 <= shape[-1] <= 4 and min(shape[-3:-1]) > 8


def frames_last(shape: tuple[int, ...]) -> bool:
    """Say whether the last of three axes, not the first, is far more likely to count frames."""
    if len(shape) != 3 or min(shape[:2]) < 8 or shape[2] < 5:
        return False
    first, second, last = shape
    return 4 * last <= min(first, second) or first == second != last


def free(order: str) -> str:
    """Return a letter for an axis of frames that an order does not have yet."""
    return next(letter for letter in _LETTERS if letter not in order)


def _block_reader(array: Any, order: str) -> Read:
    """Return ``read(start, stop) -> (k, H, W)`` for any axis order, with digits as in `Choice`."""
    lead = [i for i, letter in enumerate(order) if letter not in "yx" and not letter.isdigit()]
    lead_shape = tuple(array.shape[i] for i in lead)
    long = [i for i in lead if array.shape[i] > 1]
    fixed = [
        slice(None) if letter in "yx" else int(letter) if letter.isdigit() else 0
        for letter in order
    ]

    def one(number: int) -> NDArray[Any]:
        where = fixed.copy()
        for axis, index in zip(lead, np.unravel_index(number, lead_shape), strict=True):
            where[axis] = int(index)
        return np.asarray(array[tuple(where)])

    def read(start: int, stop: int) -> NDArray[Any]:
        if len(long) == 1:  # a single selection reads the whole block
            where = fixed.copy()
            where[long[0]] = slice(start, stop)
            before = sum(letter in "yx" for letter in order[: long[0]])
            block: NDArray[Any] = np.moveaxis(array[tuple(where)], before, 0)
        else:
            block = np.stack([one(number) for number in range(start, stop)])
        return block.swapaxes(1, 2) if order.index("x") < order.index("y") else block

    return read


def _together(
    read: Read, array: Any, order: str, shape: tuple[int, int, int]
) -> tuple[Read, tuple[str, ...]]:
    """Read, and remember, as many frames at once as are stored together, within `LIMIT`.

    To read one frame of a chunk decodes all of it, and of an array with frames last every frame is
    all of the file.
    """
    chunks = getattr(array, "chunks", None)
    depth, within, inside = 1, False, False
    for letter, length, chunk in zip(order, array.shape, chunks or array.shape, strict=True):
        if letter in "yx":
            inside |= length > 1
        elif not letter.isdigit() and (chunks or inside):
            # All along the axes that are counted while a chunk's first one stands still.
            depth *= int(length if within else chunk)
            within |= chunk > 1
    most = max(8, LIMIT // (array.dtype.itemsize * math.prod(shape[1:])))
    total, notes = shape[0], tuple[str, ...]()
    depth = min(depth, total)
    if depth > most:
        depth = most
        notes = (
            f"a frame lies all over the file (axes {order}, chunks {chunks}), which is read again "
            f"for every {depth} frames: slow; store one frame a chunk, frames first",
        )
    if depth == 1:
        return read, ()

    @lru_cache(maxsize=1)
    def part(number: int) -> NDArray[Any]:
        return read(number * depth, min(total, (number + 1) * depth))

    def remembered(start: int, stop: int) -> NDArray[Any]:
        numbers = range(start // depth, -(-stop // depth))
        return np.concatenate(
            [part(n)[max(0, start - n * depth) : stop - n * depth] for n in numbers]
        )

    return remembered, notes


class Plain:
    """An array that lies in a file as it is; ``offset``: byte of its first element.

    It is mapped anew for each block, so that memory does not grow. Raises ValueError if the file is
    too short for it.
    """

    def __init__(
        self, path: Path, offset: int, shape: tuple[int, ...], dtype: Any, *, fortran: bool = False
    ) -> None:
        self.shape, self.dtype = tuple(int(length) for length in shape), np.dtype(dtype)
        # Frames whose first axis is the fastest are stored together.
        self.chunks = self.shape if fortran else None
        self._path, self._offset, self._order = path, int(offset), "F" if fortran else "C"
        need = self._offset + self.dtype.itemsize * math.prod(self.shape)
        if (size := path.stat().st_size) < need:
            raise ValueError(f"it has {size} bytes, its header promises {need}")

    def __getitem__(self, where: Any) -> NDArray[Any]:
        order: Any = self._order
        stored = np.memmap(self._path, self.dtype, "r", self._offset, self.shape, order)
        return np.array(stored[where])


class Pages:
    """Frames that are read one by one, indexed like an array.

    The last ``inner`` axes of ``shape`` are those of a page; ``page`` reads one by its number.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        inner: int,
        page: Callable[[int], NDArray[Any]],
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._lead, self._page = len(shape) - inner, page

    def __getitem__(self, where: tuple[Any, ...]) -> NDArray[Any]:
        lead = self.shape[: self._lead]
        numbers = np.asarray(np.arange(math.prod(lead)).reshape(lead)[where[: self._lead]])
        pages = np.stack([self._page(int(number)) for number in numbers.flat])
        stack = pages.reshape(*numbers.shape, *self.shape[self._lead :])
        return np.asarray(stack[(..., *where[self._lead :])])


def number_of(value: Any) -> float | None:
    """Return a fact of a file as a finite number, None where it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def cut_short(there: int, promised: object) -> str:
    """Say that a file holds fewer frames than it promises, and what to do."""
    said = f"is cut short: {there} of {promised} frames are there; copy it again"
    return said + (f", or take these with --frames 0:{there}" if there > 0 else "")


def select(frames: Frames, text: str) -> Frames:
    """Return a stack of some frames, reading from the same file.

    ``text``: ``start:stop:step`` or a number, or a list of these by commas, counted as Python does.
    Raises FormatError if a part is neither or takes none of the frames, or one is taken twice.
    """
    chosen = np.array(_numbers(frames, text))
    steps = np.unique(np.diff(chosen))
    step = 1 if len(chosen) == 1 else int(steps[0]) if len(steps) == 1 else None

    def read_block(start: int, stop: int) -> NDArray[Any]:
        part = chosen[start:stop]
        runs = np.split(part, np.flatnonzero(np.diff(part) != 1) + 1)
        return np.concatenate([frames.read_block(int(run[0]), int(run[-1]) + 1) for run in runs])

    shape = (len(chosen), *frames.shape[1:])
    lead = [frames.axes[i] for i, letter in enumerate(frames.order) if letter not in "yxc"]
    first = Axis("frame")
    if len(lead) == 1 and lead[0].step is not None and step is not None:
        start = lead[0].origin + lead[0].step * int(chosen[0])
        first = replace(lead[0], step=lead[0].step * step, origin=start)
    return replace(
        frames,
        shape=shape,
        order="tyx",
        stored_shape=shape,
        axes=(first, frames.axis("y"), frames.axis("x")),
        read_block=read_block,
        why=f"{frames.why}, frames {text}",
        numbers=chosen.tolist(),
    )


def _numbers(frames: Frames, text: str) -> list[int]:
    count, chosen = frames.shape[0], list[int]()
    for part in text.split(","):
        try:
            ends: list[Any] = [int(one) if one.strip() else None for one in part.split(":")]
            if len(ends) == 1:
                ends.append(ends[0] + 1 or None)
            found = range(count)[slice(*ends)]
            if found.step < 1:
                raise ValueError
        except (TypeError, ValueError) as error:
            raise FormatError(
                f"{frames.path}: --frames {text!r} is no selection; give start:stop:step with a "
                "positive step, such as 0:500:2, one number, or a list such as 0:57,58:60"
            ) from error
        if not found:
            raise FormatError(f"{frames.path}: --frames {part} takes none of {count} frames")
        chosen += found
    if len(set(chosen)) < len(chosen):
        raise FormatError(
            f"{frames.path}: --frames {text} takes some frames twice, which would count as frames "
            "without noise between them; name each once"
        )
    return chosen


@dataclass(frozen=True)
class Offer:
    """One of several stacks of a file.

    ``dataset``: what ``--dataset`` calls it. ``chunks``: how it is cut into pieces, None where it
    is not. ``label``: another name for it that ``--dataset`` takes, such as the detector's.
    """

    dataset: str
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...] | None = None
    label: str = ""

    @classmethod
    def of(cls, dataset: str, array: Any, label: str = "") -> "Offer":
        """Describe an array, or anything with a shape and a dtype."""
        chunks = getattr(array, "chunks", None)
        return cls(dataset, tuple(array.shape), str(array.dtype), chunks, label)

    @property
    def name(self) -> str:
        """Return path and label."""
        return f"{self.dataset} ({self.label})" if self.label else self.dataset


class SeveralStacks(FormatError):
    """A file that holds several stacks and does not say which are the frames.

    ``kind``: what they are, in words. ``offers``: in the file's order.
    """

    def __init__(self, path: Path, kind: str, offers: list[Offer]) -> None:
        listed = "; ".join(f"{one.name} {one.shape} {one.dtype}" for one in offers[:_LISTED])
        if len(offers) > _LISTED:
            listed += f"; and {len(offers) - _LISTED} more (emdn-deploy inspect lists all)"
        super().__init__(
            f"{path}: holds {len(offers)} {kind}: {listed}; choose one with --dataset NAME, such "
            f"as --dataset {offers[0].label or offers[0].dataset}"
        )
        self.kind, self.offers = kind, offers


def choose(
    path: Path, what: str, offers: list[Offer], choice: Choice
) -> tuple[int, str, tuple[str, ...]]:
    """Return the number of the stack to take, why, and what the user must know of it.

    Taken is the one that ``--dataset`` names by its path, a group around it or its label; the only
    one with frames; the only stack beside single frames; or one that is eight times as large as all
    others. ``what`` they are, in the plural. Raises FormatError if there is none, and
    `SeveralStacks`.
    """
    if (asked := choice.dataset) is not None:
        name = f"/{asked.strip('/')}/"
        names = [f"/{one.dataset.strip('/')}/" for one in offers]
        named = [i for i, one in enumerate(names) if one == name] or [
            i
            for i, one in enumerate(names)
            if name in one or offers[i].label.lower() == asked.lower()
        ]
        if len(named) != 1:
            offered = ", ".join(one.name for one in offers[:_LISTED]) or "none"
            raise FormatError(
                f"{path}: has {len(named) or 'no'} {what} called {asked!r}; it offers {offered}"
            )
        return named[0], "asked for by --dataset", ()
    frames = [one for one in offers if len(one.shape) > 1]
    if not frames:
        raise FormatError(f"{path}: holds no frames ({len(offers)} {what}, none of two axes)")
    largest = sorted(frames, key=lambda one: math.prod(one.shape))
    stacks = [one for one in frames if math.prod(one.shape[:-2]) > 1]
    if len(offers) == 1:
        return 0, "the only one in the file", ()
    if len(frames) == 1:
        why = f"the only one of {len(offers)} {what} that holds frames"
        return offers.index(frames[0]), why, ()
    if len(stacks) == 1:
        taken, why = stacks[0], "the only stack of several frames"
    elif math.prod(largest[-1].shape) >= 8 * math.prod(largest[-2].shape):
        taken, why = largest[-1], "the only large one"
    else:
        raise SeveralStacks(path, what, offers)
    why = f"{why}; --dataset takes another"
    note = f"of {len(offers)} {what}, {taken.name} {taken.shape} is taken: {why}"
    return offers.index(taken), why, (note,)
