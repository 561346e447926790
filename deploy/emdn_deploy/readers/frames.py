"""What a reader returns: an open stack of frames with calibrated axes.

A reader is a module with ``open_frames(path, choice) -> Frames`` and one line in
`emdn_deploy.readers.READERS`. It opens a file, says which array in it are the frames, and returns
`array_frames`, which does what all formats share: axis orders, ``--axes``, checks and calibration.
The array reads what is asked for when it is indexed: a dataset of HDF5 or Zarr,
`emdn_deploy.readers.npy.Plain` where pixels lie in a file as they are, or `Pages`.
"""

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from emdn_models.errors import EmdnError, FormatError

WHITE = "white"
"""In `Frames.metadata`: the number of white, from which a min-is-white file counts down."""

INSTRUMENT = "Acquisition_instrument"
"""Begins the names in `Frames.metadata` that HyperSpy has for facts of the microscope."""

_METRES = {
    "m": 1.0, "mm": 1e-3, "µm": 1e-6, "um": 1e-6, "micron": 1e-6, "microns": 1e-6,
    "nm": 1e-9, "pm": 1e-12, "å": 1e-10, "a": 1e-10, "ang": 1e-10, "angstrom": 1e-10,
}  # fmt: skip
_LETTERS = "tuvwabdefghijk"  # of axes that are neither of the frame nor channels
_DIGITS = "0123456789"
_LISTED = 8  # in an error, which is one line


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
    """An open stack of N frames of H x W pixels.

    Attributes
    ----------
    shape
        (N, H, W).
    dtype
        Data type in the file.
    order
        One letter per stored axis, as in `Choice.axes`.
    stored_shape, axes
        Lengths in the file and calibration, one per letter of ``order``.
    read_block
        ``read_block(start, stop)`` gives (stop - start, H, W) in the file's dtype.
    dataset, why
        Path inside the file, ``""`` for formats with one stack per file, and why it was taken.
    metadata
        Facts of the file worth showing or carrying over, as text.
    parts
        Paths of the datasets that together are the stack, the first of which is
        ``dataset``; empty where it is one.
    notes
        What was assumed, left out or changed on reading, as the user must know it.
    numbers
        Which of the file's frames these are; None for all.
    files
        Every file that pixels come from; empty where that is ``path`` alone.
    missing
        Of `cut_short`, where the file promises more frames than these.
    """

    path: Path
    format: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    order: str
    stored_shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    read_block: Callable[[int, int], NDArray[Any]]
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
        return np.require(block, np.float32, ["C", "W"])  # a mapped file is read-only

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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

    The array has ``shape``, ``dtype`` and basic indexing. ``name``: of the format, for the user.
    ``order``, ``axes``: the format's own axis order, None where it has none, and the calibration.
    """
    where = f"{path}: {dataset}" if dataset else str(path)
    shape: tuple[int, ...] = tuple(array.shape)
    _check_dtype(where, array.dtype)
    if len(shape) < 2:
        raise FormatError(f"{where}: has shape {shape}, expected two axes or more")
    given = choice.axes or order or default_order(shape)
    axes = axes if len(axes) == len(shape) else (Axis(),) * len(shape)
    letters = given
    if len(given) == len(shape) and any(letter in _DIGITS for letter in given):
        for letter, length in zip(given, shape, strict=True):
            if letter in _DIGITS and int(letter) >= length:
                raise FormatError(
                    f"{where}: --axes {given} takes index {letter} of an axis of {length} "
                    f"(shape {shape}), counted from 0"
                )
        left = [i for i, letter in enumerate(given) if letter not in _DIGITS]
        axes, shape = tuple(axes[i] for i in left), tuple(shape[i] for i in left)
        letters = "".join(given[i] for i in left)
    _check_order(where, shape, letters, said=choice.axes is not None or order is not None)
    lengths = dict(zip(letters, shape, strict=True))
    height, width = lengths.pop("y"), lengths.pop("x")
    return Frames(
        path=path,
        format=name,
        shape=(math.prod(lengths.values()), height, width),
        dtype=array.dtype,
        order=letters,
        stored_shape=shape,
        axes=axes,
        read_block=_block_reader(array, given),
        release=release,
        dataset=dataset,
        why=why,
        metadata=metadata or {},
        notes=notes,
        compressed=compressed,
        missing=missing,
    )


def _block_reader(array: Any, order: str) -> Callable[[int, int], NDArray[Any]]:
    """Return ``read(start, stop) -> (k, H, W)`` for any axis order, with digits as in `Choice`."""
    lead = [i for i, letter in enumerate(order) if letter not in "yx" + _DIGITS]
    lead_shape = tuple(array.shape[i] for i in lead)
    long = [i for i in lead if array.shape[i] > 1]
    fixed = [
        slice(None) if letter in "yx" else int(letter) if letter in _DIGITS else 0
        for letter in order
    ]

    def one(number: int) -> NDArray[Any]:
        where = fixed.copy()
        for axis, index in zip(lead, np.unravel_index(number, lead_shape), strict=True):
            where[axis] = int(index)
        frame: NDArray[Any] = array[tuple(where)]
        return frame

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

    def __getitem__(self, where: Any) -> NDArray[Any]:
        where = where if isinstance(where, tuple) else (where,)
        lead = self.shape[: self._lead]
        picked = [range(length)[one] for length, one in zip(lead, where, strict=False)]
        ranges = [range(one, one + 1) if isinstance(one, int) else one for one in picked]
        steps = [math.prod(lead[i + 1 :]) for i in range(len(lead))]
        places = itertools.product(*ranges)
        pages = [self._page(sum(map(operator.mul, steps, place))) for place in places]
        shape = [len(one) for one in picked if isinstance(one, range)]
        stack = np.stack(pages).reshape(*shape, *self.shape[self._lead :])
        inner: NDArray[Any] = stack[(..., *where[self._lead :])]
        return inner


def cut_short(there: int, promised: object) -> str:
    """Say that a file holds fewer frames than it promises, and what to do."""
    said = f"is cut short: {there} of {promised} frames are there; copy it again"
    return said + (f", or take these with --frames 0:{there}" if there > 0 else "")


def _check_dtype(where: str, dtype: np.dtype[Any]) -> None:
    """Refuse complex, compound (RGB), text and object data."""
    if dtype.names or dtype.kind not in "buif":
        what = "compound" if dtype.names else "complex" if dtype.kind == "c" else "other"
        raise FormatError(
            f"{where}: holds {what} values ({', '.join(dtype.names or [str(dtype)])}), expected "
            "one real number per pixel: choose another dataset, or store a real image"
        )


def default_order(shape: tuple[int, ...]) -> str:
    """Name the axes of an array that says nothing itself: frames last, then (y, x).

    A last axis of length one is a channel axis.
    """
    if len(shape) >= 3 and shape[-1] == 1 < shape[-2]:
        return default_order(shape[:-1]) + "c"
    return _LETTERS[: len(shape) - 2][::-1] + "yx"


def _check_order(where: str, shape: tuple[int, ...], order: str, *, said: bool) -> None:
    """Refuse an axis order that does not fit a shape, and channels.

    ``said``: whether the user or the file gave the order; if not, a last axis of 2 to 4 is taken
    for colours or channels.
    """
    fits = len(order) == len(shape) and order.count("y") == 1 and order.count("x") == 1
    if not fits or len(set(order)) != len(order):
        raise FormatError(
            f"{where}: axes {order!r} do not fit shape {shape}; "
            "give one different letter per axis, with y and x among them, such as --axes tyx"
        )
    if "c" in order and shape[order.index("c")] != 1:
        raise FormatError(
            f"{where}: the channel axis of shape {shape}, axes {order}, has "
            f"{shape[order.index('c')]} channels (colours or detectors), each with an intensity "
            f"scale of its own: take one with --axes {order.replace('c', '0')} or "
            f"{order.replace('c', '1')}, or all as frames of one scale with "
            f"--axes {order.replace('c', _free_letter(order))}"
        )
    if not said and channels_last(shape):
        channels = default_order((*shape[:-1], 1))
        raise FormatError(
            f"{where}: shape {shape} looks like colour pictures or channels last: take one channel "
            f"with --axes {channels.replace('c', '0')}, all as frames of one scale with "
            f"--axes {channels.replace('c', _free_letter(channels))}, or say that frames are "
            f"{shape[-1]} pixels wide with --axes {order}"
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


def _free_letter(order: str) -> str:
    return next(letter for letter in _LETTERS if letter not in order)


def check_guess(where: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return notes on `default_order` for a file that says nothing of its axes.

    Raises FormatError if the frames are far more likely last.
    """
    if len(shape) != 3 or shape[2] < 5:
        return ()  # channels, if the last axis is short: see `_check_order`
    first, second, last = shape
    if frames_last(shape):
        raise FormatError(
            f"{where}: shape {shape} looks like {last} frames of {first} x {second}, stored last: "
            f"say so with --axes yxt, or --axes tyx for {first} frames of {second} x {last}"
        )
    if last < min(first, second):
        return (
            f"shape {shape} is taken as {first} frames of {second} x {last}; if it is {last} "
            f"frames of {first} x {second}, say --axes yxt",
        )
    return ()


def parse_selection(text: str, count: int) -> list[int]:
    """Number the frames of a list, by commas, of ``start:stop:step`` or single numbers.

    They are counted as Python does. Raises FormatError if a part is neither, takes none of
    ``count`` frames, or one is taken twice.
    """
    chosen = list[int]()
    for part in text.split(","):
        words = part.split(":")
        try:
            numbers = [int(word) if word.strip() else None for word in words]
            some = slice(*numbers)
            if len(numbers) == 1 and (first := numbers[0]) is not None:
                some = slice(first, first + 1 if first != -1 else None)
            if numbers == [None] or (some.step or 1) < 1:
                raise ValueError
            found = range(count)[some]
        except (TypeError, ValueError) as error:
            raise FormatError(
                f"--frames {text!r} is no selection; give start:stop:step with a positive step, "
                "such as 0:500:2, one number, or a list such as 0:57,58:60"
            ) from error
        if not found:
            raise FormatError(f"--frames {part} takes none of {count} frames")
        chosen += found
    if len(set(chosen)) < len(chosen):
        raise FormatError(
            f"--frames {text} takes some frames twice, which would count as frames without noise "
            "between them; name each once"
        )
    return chosen


def select(frames: Frames, text: str) -> Frames:
    """Return a stack of the selected frames, reading from the same file; see `parse_selection`."""
    try:
        chosen = np.asarray(parse_selection(text, frames.shape[0]))
    except FormatError as error:
        raise FormatError(f"{frames.path}: {error}") from error
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


def odd_axis(read: Callable[[int], NDArray[Any]], lead: Sequence[int]) -> tuple[int, float] | None:
    """Find a short axis, beside another one, along which frames have scales of their own.

    ``read`` gives a frame (H, W) by its number; ``lead`` are the lengths of all axes but those of
    the frame. Compared is the variance of the noise over the mean. Returned are the axis, and by
    which factor it differs, if by more than 4: detectors or channels must not be mixed.
    """
    numbers = np.arange(math.prod(lead)).reshape(lead)
    for axis, length in enumerate(lead):
        if not 2 <= length <= 8 or length == numbers.size:  # longer: a scan or a time
            continue
        found = [_noise_over_mean(read, np.take(numbers, i, axis)) for i in range(length)]
        known = [one for one in found if 0 < one < math.inf]
        if known and max(known) > 4 * min(known):
            return axis, max(known) / min(known)
    return None


def _noise_over_mean(read: Callable[[int], NDArray[Any]], numbers: NDArray[np.int64]) -> float:
    """Return the variance of the noise over the mean, as the median of three pairs of frames."""
    values = []
    for place in np.linspace(0, numbers.size - 2, 3).round().astype(int):
        first, second = (read(int(one)).astype(np.float64) for one in numbers.ravel()[place:][:2])
        level = (first.mean() + second.mean()) / 2
        with np.errstate(invalid="ignore"):
            # What changes slowly in a frame is not in its mixed second difference, what stays is
            # not in the difference of two frames: structure is in either, noise in both.
            mixed = np.diff(np.diff(first, axis=0), axis=1) / 2
            noise = ((first - second) ** 2).mean() / 2
            noise = min(noise, (mixed**2).mean() if mixed.size else np.inf)
        values.append(noise / level if level > 0 else np.nan)
    return float(np.median(values))


def check_one_scale(frames: Frames) -> None:
    """Refuse a stack whose frames are of detectors or channels on scales of their own.

    Raises FormatError, naming the axis and the remedy.
    """
    lead = [i for i, letter in enumerate(frames.order) if letter not in "yx"]
    lengths = [frames.stored_shape[i] for i in lead]
    odd = odd_axis(lambda number: frames.read(number, number + 1)[0], lengths)
    if odd is None:
        return
    axis, order = lead[odd[0]], frames.order
    one, other = (f"{order[:axis]}{i}{order[axis + 1 :]}" for i in (0, 1))
    raise FormatError(
        f"{frames.path}: the {lengths[odd[0]]} along axis {axis} of {frames.stored_shape} look "
        f"like detectors or channels (their noise differs by a factor of {odd[1]:.2g} in scale): "
        f"take one with --axes {one} or {other}, or all at one scale with --axes {order}"
    )


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

    ``kind``: what they are, in words. ``offers``: in the file's order. ``more``: what else can be
    done, after the list.
    """

    def __init__(self, path: Path, kind: str, offers: list[Offer], more: str = "") -> None:
        what = "NUMBER" if offers[0].dataset.isdigit() else "PATH"
        listed = "; ".join(f"{one.name} {one.shape} {one.dtype}" for one in offers[:_LISTED])
        if len(offers) > _LISTED:
            listed += f"; and {len(offers) - _LISTED} more (emdn-deploy inspect lists all)"
        if any(one.label for one in offers):
            what += " or the name in brackets"
        super().__init__(
            f"{path}: holds {len(offers)} {kind}: {listed}; choose one with --dataset {what}{more}"
        )
        self.kind, self.offers = kind, offers


def only_stack(offers: list[Offer]) -> tuple[int | None, str]:
    """Return which of several is the only one of more than a single frame, and why, in words."""
    stacks = [one for one in offers if len(one.shape) > 2 and math.prod(one.shape[:-2]) > 1]
    single = [one for one in offers if one not in stacks]
    if len(stacks) != 1 or any(len(one.shape) > 3 for one in stacks):
        return None, ""
    listed = ", ".join(f"{one.dataset} {one.shape}" for one in single)
    return offers.index(stacks[0]), f"the only stack {stacks[0].shape}; single frames: {listed}"


def choose(
    path: Path, what: str, offers: list[Offer], choice: Choice, more: str = ""
) -> tuple[int, str, tuple[str, ...]]:
    """Return the number of the stack to take, why, and what the user must know of it.

    Taken is the one that ``--dataset`` numbers; the only one with frames; the only stack beside
    single frames; or one that is eight times as large as all others. ``what`` they are, in the
    plural. Raises FormatError if there is none with that number, and `SeveralStacks`.
    """
    if (asked := choice.dataset) is not None:
        if not asked.isdigit() or int(asked) >= len(offers):
            raise FormatError(f"{path}: has {what} 0 to {len(offers) - 1}, and no {asked!r}")
        return int(asked), "asked for by --dataset", ()
    frames = [one for one in offers if len(one.shape) > 1]
    if len(frames) == 1:
        why = f"the only one of {len(offers)} {what} that holds frames"
        return offers.index(frames[0]), "the only one in the file" if len(offers) == 1 else why, ()
    if not frames:
        raise FormatError(f"{path}: holds no frames (none of {len(offers)} {what})")
    index, why = only_stack(frames)
    if index is None:
        sizes = [math.prod(one.shape) for one in frames]
        index, why = int(np.argmax(sizes)), "the only large one in the file"
        if sorted(sizes)[-1] < 8 * sorted(sizes)[-2]:
            raise SeveralStacks(path, what, offers, more)
    number, why = offers.index(frames[index]), f"{why}; --dataset NUMBER takes another"
    return number, why, (f"of {len(offers)} {what}, number {number} is taken: {why}",)


def beam(scanning: str = "TEM", **known: float | str | None) -> dict[str, str]:
    """Return metadata under the names that HyperSpy has for them.

    ``scanning``: the instrument: ``TEM`` or ``SEM``. Known may be ``volts``, ``camera_length`` in
    mm, ``magnification``, ``exposure`` in s and ``acquisition_mode``, ``TEM`` or ``STEM``.
    """
    volts = known.pop("volts", None)
    known["beam_energy"] = volts / 1000 if isinstance(volts, float) else None
    known["Camera.exposure"] = known.pop("exposure", None)
    return {
        f"{INSTRUMENT}.{scanning}.{name}": value if isinstance(value, str) else f"{value:.10g}"
        for name, value in known.items()
        if value
    }
