"""An output file that appears under its name only when it is complete.

While a run lasts there are ``NAME.partial``, the file itself, ``NAME.partial.map``, which
frames of it are done and of which run it is a part, and ``NAME.partial.lock``, who is at
work on it. A run that was interrupted, or failed, is continued by the same command.
Compressed frames, whose sizes are not known beforehand, wait in ``NAME.partial.frames``
until all are done. Standard deviations fill a second stack, in the same file or in
``NAME_sigma``, under the same map.
"""

import contextlib
import copy
import hashlib
import json
import logging
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import writers
from emdn_deploy.preprocess import Answer, Part
from emdn_deploy.writers import Layout, Provenance, partial_of, storable
from emdn_models.errors import EmdnError, FormatError, OutputError
from emdn_models.files import locked

# Work that a power failure may cost.
SYNC_SECONDS = 2.0
# What lies beside ``NAME.partial`` during a run; the map, which tells that it is ours, last.
_BESIDE = (".new", ".frames", ".sigma", ".map.new", ".map")

State = dict[str, NDArray[Any]]
Stamps = dict[str, tuple[int, int, int]]
_log = logging.getLogger(__name__)


@dataclass
class Sums:
    """What is summed up over the frames written so far, for the record.

    ``pixels``: such as were denoised, not those in gaps, saturated areas and empty frames.
    ``clipped``: of the output, outside the range of its type. ``shift``, ``largest``: what was
    added to frames for the sake of their means, in all and at most. ``saturated``, ``filled``,
    ``missing``: pixels of the input that are saturated, such as were filled in in single frames,
    and areas without a value in such. ``empty``: numbers of the frames without any value.
    """

    pixels: int = 0
    before: float = 0.0
    after: float = 0.0
    squares: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")
    clipped: int = 0
    shift: float = 0.0
    largest: float = 0.0
    saturated: int = 0
    filled: int = 0
    empty: list[int] = field(default_factory=list)

    def add(self, before: NDArray[np.float32], after: NDArray[Any]) -> None:
        """Count in a block (k, H, W) of input and output, but for what is NaN in the input."""
        if not (counted := np.isfinite(before)).all():
            before, after = before[counted], after[counted]
            if not after.size:
                return
        flat = after.astype(np.float64).ravel()
        self.pixels += after.size
        self.before += float(before.sum(dtype=np.float64))
        self.after += float(flat.sum())
        # Not by @, whose threads would take the cores from the computation.
        self.squares += float(np.einsum("i,i->", flat, flat))
        self.low, self.high = min(self.low, float(after.min())), max(self.high, float(after.max()))

    def add_part(self, start: int, part: Part, shifts: NDArray[np.float64]) -> None:
        """Count in what a block from frame ``start`` on preserves, and the shifts of its means."""
        self.saturated += part.saturated
        self.filled += part.filled
        self.empty += (start + np.flatnonzero(part.empty)).tolist()
        self.shift += part.frames[0].size * float(shifts.sum())
        self.largest = max(self.largest, float(np.abs(shifts).max()))

    def include(self, other: "Sums", first: int) -> None:
        """Count in the sums of other frames, the first of which is number ``first``."""
        for name in ("pixels", "before", "after", "squares", "clipped", "shift", "saturated",
                     "filled"):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.largest = max(self.largest, other.largest)
        self.empty += [first + number for number in other.empty]

    def facts(self, offset: float) -> dict[str, int | float | str]:
        """Return the statistics of the whole output, and what the means did.

        ``intensity_ratio`` is mean(out) / mean(in) of what is stored, ``net_intensity_ratio``
        that of the net, before frames were shifted to their means, and ``largest_shift`` the
        largest of these shifts, in units of mean(in).
        """
        pixels = max(1, self.pixels)
        mean, dark = self.after / pixels, self.before / pixels - offset
        more = {
            "saturated_input_pixels": self.saturated,
            "filled_in_single_frames": self.filled,
            "frames_without_values": ", ".join(map(str, self.empty)),
        }
        return {
            # Above the offset, ratios keep their meaning where the mean is near zero.
            "intensity_ratio": (mean - offset) / dark if dark else 1.0,
            "net_intensity_ratio": 1 - self.shift / pixels / dark if dark else 1.0,
            "largest_shift": self.largest / abs(dark) if dark else 0.0,
            "output_min": self.low if self.pixels else 0.0,
            "output_max": self.high if self.pixels else 0.0,
            "output_mean": mean,
            "saturated_pixels": self.clipped,
            "output_std": max(0.0, self.squares / pixels - mean * mean) ** 0.5,
            **{name: value for name, value in more.items() if value},
        }


def check_targets(targets: list[Path], inputs: Iterable[Path], *, overwrite: bool) -> None:
    """Refuse outputs that would destroy something.

    Raises OutputError if an output, or its partial file, is one of ``inputs`` (under whatever
    name) or another output, exists already (without ``overwrite``), or its folder is missing or
    not writable.
    """
    read = {_identity(path): path for path in inputs if path.exists()}
    for number, target in enumerate(targets):
        for path in (target, partial_of(target)):
            if path.exists() and (known := read.get(_identity(path))):
                same = "itself" if known.resolve() == path.resolve() else f"{known} itself"
                raise OutputError(f"{path}: is the input {same}; emdn never overwrites it, use -o")
        if target.is_dir() and any(
            target.resolve() in one.resolve().parents for one in read.values()
        ):
            raise OutputError(f"{target}: holds an input; emdn never overwrites it, use -o")
        if any(target.resolve() == other.resolve() for other in targets[:number]):
            raise OutputError(f"{target}: would be written twice; give two names")
        if target.exists() and not overwrite:
            raise OutputError(f"{target}: exists already; add --overwrite, or give another name")
        folder = target.parent
        if not folder.is_dir():
            raise OutputError(f"{folder}: no such folder; create it first")
        if not os.access(folder, os.W_OK):
            raise OutputError(f"{folder}: cannot be written to; choose another place with -o")


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _beside(file: Path, suffix: str) -> Path:
    return Path(f"{partial_of(file)}{suffix}")


@contextlib.contextmanager
def claimed(
    files: list[Path], others: list[Path], inputs: list[Path], *, overwrite: bool
) -> Iterator[None]:
    """Keep an output to this process, after `check_targets`, and tidy what a kill left of it.

    ``files``: as `emdn_deploy.writers.files_of`. ``others``: what the run writes besides, such as
    pictures. Raises OutputError: as `check_targets`; if another process is at work on it, or its
    partial file is none that emdn has left there.
    """
    check_targets([*files, *others], inputs, overwrite=True)
    lock = _beside(files[-1], ".lock")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, files[-1]))
        except OSError as error:
            raise OutputError(f"{lock}: cannot be written ({error.strerror})") from error
        saved = load_map(files[-1])
        for path in map(partial_of, files):
            if path.exists() and "key" not in saved:
                raise OutputError(
                    f"{path}: exists already, and is no run of emdn that can be continued; move it "
                    "away, or give the output another name"
                )
        if "finishing" in saved:  # a kill while files got their names
            if not partial_of(files[-1]).exists():
                discard(files[-1:])
            for file in files[:-1] if partial_of(files[-1]).exists() else ():
                if file.exists() and not partial_of(file).exists():
                    os.replace(file, partial_of(file))
        check_targets([*files, *others], inputs, overwrite=overwrite)
        yield


def load_map(target: Path) -> dict[str, Any]:
    """Return what `save_map` has saved; nothing where there is none, or it is damaged."""
    try:
        with np.load(_beside(target, ".map"), allow_pickle=False) as arrays:
            return dict(arrays)
    except (AttributeError, OSError, ValueError, EOFError, zipfile.BadZipFile):
        return {}


def save_map(target: Path, arrays: dict[str, Any]) -> None:
    """Save what of an output is done, so that a kill leaves this or the map before."""
    fresh = _beside(target, ".map.new")
    with fresh.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, _beside(target, ".map"))


@contextlib.contextmanager
def disk(partial: Path) -> Iterator[None]:
    """Say why a disk refuses a file; HDF5 says it in the middle of an error of any kind."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        found = re.search(r"error message = '([^']*)'", str(error))
        reason = getattr(error, "strerror", None) or (found.group(1) if found else str(error))
        raise OutputError(f"{partial}: cannot be written ({reason})") from error


def discard(files: list[Path]) -> None:
    """Remove what an incomplete output consists of, the map last."""
    for file in files:
        for suffix in ("", *_BESIDE):
            _remove(_beside(file, suffix))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def stamps(paths: Iterable[Path]) -> Stamps:
    """Return size, time of the last change (ns) and inode of files; of missing ones zeros."""
    found = {}
    for path in paths:
        try:
            stat = path.stat()
            found[str(path)] = stat.st_size, stat.st_mtime_ns, stat.st_ino
        except OSError:
            found[str(path)] = 0, 0, 0
    return found


def check_unchanged(before: Stamps) -> None:
    """Refuse files that are not what they were: frames may then be of two inputs (FormatError)."""
    now = stamps(map(Path, before))
    if changed := [name for name in before if before[name] != now[name]]:
        more = f" and {len(changed) - 1} others" if len(changed) > 1 else ""
        raise FormatError(
            f"{changed[0]}{more}: was changed while it was denoised ({before[changed[0]][0]} "
            f"bytes, now {now[changed[0]][0]}, or another time); wait until nothing writes to it "
            "any more, and begin anew"
        )


def key_of(facts: Provenance, inputs: Stamps) -> str:
    """Return what decides the pixels, as JSON: a partial file is continued only if all is equal."""
    # A copy that was put back has another inode.
    known = [(name, *stamp[:2]) for name, stamp in inputs.items()]
    # How the work is cut up changes no bit of it. (On a GPU it may change the last digits; there
    # the batch follows from the memory that happens to be free, and may shrink on the way.)
    key = {name: one for name, one in facts.items() if name not in ("date", "threads", "batch")}
    files = hashlib.sha256(repr(known).encode()).hexdigest()
    return json.dumps({**key, "input_files": files}, sort_keys=True)


class Filling:
    """One stack of frames on its way into a file that is laid out already.

    ``partial``: the file that was laid out. ``spool``: where compressed frames wait, whose places
    are not known before all are made.
    """

    def __init__(self, layout: Layout, partial: Path, spool: Path, sums: Sums) -> None:
        self.layout, self.sums = layout, sums
        place = spool if layout.encode else partial / layout.inside
        self.file = place.open("r+b" if place.exists() else "w+b", buffering=0)

    def write(self, start: int, before: NDArray[np.float32], after: NDArray[np.float32]) -> None:
        """Write frames (k, H, W), the first of which is number ``start``."""
        layout = self.layout
        stored, clipped = storable(after, np.dtype(layout.dtype))
        for number, frame in enumerate(stored, start):
            turned = frame.T if layout.transposed else frame
            pixels = np.ascontiguousarray(turned, np.dtype(layout.dtype))
            left = pixels.data.cast("B")
            if layout.encode:
                left = memoryview(layout.encode(pixels))
                layout.offsets[number + 1] = layout.offsets[number] + len(left)
            self.file.seek(int(layout.offsets[number]))
            while left:
                left = left[self.file.write(left) :]
        self.sums.add(before, stored)
        self.sums.clipped += clipped

    def state(self, name: str) -> dict[str, Any]:
        """Return arrays from which `Output` makes layout and sums in a later run."""
        layout = self.layout
        return {
            f"{name}_offsets": layout.offsets,
            f"{name}_dtype": layout.dtype,
            f"{name}_transposed": layout.transposed,
            f"{name}_inside": layout.inside,
            f"{name}_packed": layout.encode is not None,
            f"{name}_sums": json.dumps(asdict(self.sums)),
        }

    def complete(self) -> None:
        """Bring compressed frames to their places, and close."""
        if self.layout.fill:
            self.layout.fill(self._packed())
        self.file.close()

    def _packed(self) -> Iterator[bytes]:
        for start, stop in pairwise(self.layout.offsets.tolist()):
            self.file.seek(start)
            yield self.file.read(stop - start)


class Output:
    """Fill ``NAME.partial`` frame by frame, then rename it to ``NAME``.

    Any method raises OutputError when the disk refuses, and opening it also if the partial file
    is another run's.

    Parameters
    ----------
    files
        Those of the output, `claimed` (see `emdn_deploy.writers.files_of`); the frames are last.
    module
        The writer (see `emdn_deploy.writers`).
    make
        Writes everything but the pixels to a path and returns the layout.
    key
        Of `key_of`: a partial file is continued only where it is equal.
    beside
        The file of the standard deviations, where they have one of their own.
    state
        Gives what else a run that continues this one needs; `earlier` is what it gets.
    overwrite
        Whether a partial file of another key may be thrown away.
    """

    def __init__(
        self,
        files: list[Path],
        module: str,
        make: Callable[[Path], Layout],
        key: str,
        *,
        beside: Path | None = None,
        state: Callable[[], State] = dict,
        overwrite: bool = False,
    ) -> None:
        self.module, self.partial = module, partial_of(files[-1])
        self._files, self._beside, self._state, self._key = files, beside, state, key
        self._synced, self._took = time.monotonic(), 0.0
        self._fillings: dict[str, Filling] = {}
        self.earlier: State = {}
        self.done = 0
        with disk(self.partial):
            saved = load_map(files[-1])
            if self._continues(saved, overwrite=overwrite):
                self._take_up(saved, make)
                return
            discard(files)
            try:
                # A kill before anything is done leaves a file that says whose it is.
                save_map(files[-1], {"key": key})
                self._open(make(self.partial), {"frames": Sums(), "sigma": Sums()})
                self._save_map()
            except BaseException:
                self._drop()
                raise

    @property
    def sums(self) -> Sums:
        """Return what is summed up over the frames."""
        return self._fillings["frames"].sums

    def write(self, start: int, part: Part, made: Answer) -> None:
        """Write what became of the frames of a part, the first of which is number ``start``."""
        counted = {name: copy.deepcopy(filling.sums) for name, filling in self._fillings.items()}
        try:
            with disk(self.partial):
                self._fillings["frames"].write(start, part.counted(), made.frames)
                if made.sigma is not None:
                    self._fillings["sigma"].write(start, made.sigma, made.sigma)
            self.sums.add_part(start, part, made.shifts)
            self.done = start + len(made.frames)  # an interrupted block counts wholly or not at all
        except BaseException:
            for name, filling in self._fillings.items():
                filling.sums = counted[name]
            raise
        with disk(self.partial):
            # Of a very long stack it takes a while to save what is known: 5 % of the time.
            if time.monotonic() - self._synced > max(SYNC_SECONDS, 20 * self._took):
                self._save_map()

    def complete(self, late: Provenance, given: Stamps | None = None) -> None:
        """Make the files durable and give them their names.

        Raises FormatError if files of ``given`` are not what they were; then nothing stays.
        """
        try:
            check_unchanged(given or {})
        except FormatError:
            self.done = 0
            raise
        with disk(self.partial):
            self._save_map()
            for filling in self._fillings.values():
                filling.complete()
            self._save_map(finishing=True)
            if self._beside is not None:
                own = self._fillings["sigma"].sums.facts(0.0)
                known = {name: own[name] for name in own if name.startswith("output_")}
                writers.finish(self.module, partial_of(self._beside), known)
            writers.finish(self.module, self.partial, late)
            for file in self._files:
                for path in (partial_of(file), *partial_of(file).rglob("*")):
                    if path.is_file():
                        with path.open("r+b") as opened:
                            os.fsync(opened.fileno())
            # Where the frames are, all is there; a kill in between is mended by `claimed`.
            for file in self._files:
                if file.is_dir():  # which no rename replaces
                    _remove(_beside(file, ".new"))
                    os.replace(file, _beside(file, ".new"))
                os.replace(partial_of(file), file)
            discard(self._files)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            return
        if not self.done:
            self._drop()
            return
        # Whatever it is may be mended, and the run continued.
        with contextlib.suppress(OSError, ValueError):
            self._save_map()
        self._close()
        if not self.partial.exists():
            return
        words = (
            f"{self.done} frames are kept in {self.partial}: the same command goes on from there, "
            "--overwrite begins anew"
        )
        if not isinstance(error, EmdnError):
            _log.warning("%s", words)
        elif "--overwrite" not in str(error):
            error.args = (f"{error}; {words}",)

    def _continues(self, saved: dict[str, Any], *, overwrite: bool) -> bool:
        """Say whether there is an interrupted run of this key; OutputError if it is another's."""
        if "done" not in saved or not all(partial_of(file).exists() for file in self._files):
            return False
        if str(saved["key"]) != self._key:
            if overwrite:
                return False
            old, new = json.loads(str(saved["key"])), json.loads(self._key)
            named = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
            raise OutputError(
                f"{self.partial}: is an interrupted run with another {', '.join(named)}; "
                "repeat that run's command to continue it, or add --overwrite to begin anew"
            )
        # A kill while HDF5 adds to a file can damage it.
        whole = saved["frames_packed"] or self.module not in writers.INSIDE
        return bool(whole or "finishing" not in saved)

    def _take_up(self, saved: dict[str, Any], make: Callable[[Path], Layout]) -> None:
        names = saved["stacks"].tolist()
        layouts = {
            name: Layout(
                saved[f"{name}_offsets"], str(saved[f"{name}_dtype"]),
                bool(saved[f"{name}_transposed"]), inside=str(saved[f"{name}_inside"]),
            )
            for name in names
        }  # fmt: skip
        if saved["frames_packed"]:
            # An interruption while the file was filled leaves no more of it than its frames.
            fresh = make(self.partial)
            made = {"frames": fresh, "sigma": fresh.sigma or fresh}
            layouts = {
                name: replace(made[name], offsets=one.offsets) for name, one in layouts.items()
            }
        sums = {name: Sums(**json.loads(str(saved[f"{name}_sums"]))) for name in names}
        self._open(replace(layouts["frames"], sigma=layouts.get("sigma")), sums)
        self.done = int(saved["done"])
        self.earlier = {
            name.removeprefix("state_"): array
            for name, array in saved.items()
            if name.startswith("state_")
        }

    def _open(self, layout: Layout, sums: dict[str, Sums]) -> None:
        """Get ready to fill in what is laid out."""
        stacks = {"frames": (layout, self.partial)}
        if layout.sigma is not None:
            # In a file of its own where there is one, otherwise in that of the frames.
            stacks["sigma"] = layout.sigma, partial_of(self._beside or self._files[-1])
        for name, (one, partial) in stacks.items():
            spool = Path(f"{self.partial}.{name}")
            self._fillings[name] = Filling(one, partial, spool, sums[name])

    def _save_map(self, *, finishing: bool = False) -> None:
        """Make the frames durable, then say that they are done."""
        began = time.monotonic()
        arrays = {"key": self._key, "done": self.done, "stacks": list(self._fillings)}
        arrays |= {"finishing": True} if finishing else {}
        arrays |= {f"state_{name}": one for name, one in self._state().items()}
        for name, filling in self._fillings.items():
            if not finishing:
                os.fsync(filling.file.fileno())
            arrays |= filling.state(name)
        save_map(self._files[-1], arrays)
        self._synced = time.monotonic()
        self._took = self._synced - began

    def _drop(self) -> None:
        self._close()
        with contextlib.suppress(OSError):
            discard(self._files)

    def _close(self) -> None:
        for filling in self._fillings.values():
            filling.file.close()
