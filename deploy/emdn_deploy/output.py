"""An output file that appears under its name only when it is complete.

While a run lasts there are ``NAME.partial``, the file itself, ``NAME.partial.map``, which says what
of it is done and of which run it is a part, and ``NAME.partial.lock``, who is at work on it. Frames
that are to be compressed wait in ``NAME.partial.frames`` until all are done. A run that was
interrupted, or failed, is continued by the same command. Standard deviations are a second stack, in
the same file or in ``NAME_sigma``, under the same map.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import writers
from emdn_deploy.preprocess import Answer, Part
from emdn_deploy.writers import Layout, Provenance, partial_of, storable
from emdn_models.errors import EmdnError, FormatError, OutputError
from emdn_models.files import locked, unwritable

# Work that a power failure may cost.
SYNC_SECONDS = 2.0
# What lies beside ``NAME.partial`` during a run; the map, which tells that it is ours, last.
_BESIDE = (".new", ".frames", ".sigma", ".map.new", ".map")

State = dict[str, NDArray[Any]]
Stamps = dict[str, tuple[int, int, int]]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sums:
    """What is summed up over some frames, for the record.

    ``pixels``: denoised ones. ``clipped``: of these, outside the range of the output's type.
    ``shift``, ``largest``: what was added to frames for the sake of their means, in all and at
    most. ``saturated``, ``filled``: pixels of the input that are saturated, or have no value in
    single frames. ``empty``: frames without any value.
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

    @classmethod
    def of(cls, before: NDArray[np.float32], after: NDArray[Any]) -> Self:
        """Sum up a block (k, H, W) of input and output, but for what is NaN in the input."""
        if not (counted := np.isfinite(before)).all():
            before, after = before[counted], after[counted]
            if not after.size:
                return cls()
        flat = after.astype(np.float64).ravel()
        return cls(
            after.size, float(before.sum(dtype=np.float64)), float(flat.sum()),
            # Not by @, whose threads would take the cores from the computation.
            float(np.einsum("i,i->", flat, flat)), float(after.min()), float(after.max()),
        )  # fmt: skip

    def __add__(self, other: "Sums") -> "Sums":
        names = [one.name for one in fields(self)]
        both = Sums(*(getattr(self, name) + getattr(other, name) for name in names))
        low, high = min(self.low, other.low), max(self.high, other.high)
        return replace(both, low=low, high=high, largest=max(self.largest, other.largest))

    def facts(self, offset: float) -> dict[str, int | float | str]:
        """Return the statistics of the whole output, and what the means did.

        ``intensity_ratio`` is mean(out) / mean(in) of what is stored, ``net_intensity_ratio``
        that of the net, before frames were shifted to their means; ``largest_shift`` is in units
        of mean(in).
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
    """Refuse outputs that would destroy something, or cannot be written.

    OutputError if an output, or its partial file, is one of ``inputs`` under whatever name, holds
    one, is another output, or exists already, or if its folder is missing or not writable.
    """
    read = {(stat.st_dev, stat.st_ino): path for path in inputs if (stat := _stat(path))}
    for number, target in enumerate(targets):
        for path in (target, partial_of(target)):
            stat, inside = _stat(path), read.values() if path.is_dir() else ()
            same = stat and (stat.st_dev, stat.st_ino) in read
            if same or any(path.resolve() in one.resolve().parents for one in inside):
                raise OutputError(
                    f"{path}: is the input itself, or holds one; emdn never overwrites it, use -o"
                )
        if any(target.resolve() == other.resolve() for other in targets[:number]):
            raise OutputError(f"{target}: would be written twice; give two names")
        if target.exists() and not overwrite:
            raise OutputError(f"{target}: exists already; add --overwrite, or give another name")
        if not os.access(target.parent, os.W_OK):
            what = "cannot be written to" if target.parent.is_dir() else "no such folder"
            raise OutputError(f"{target.parent}: {what}; create it, or choose another with -o")


def _stat(path: Path) -> os.stat_result | None:
    with contextlib.suppress(OSError):
        return path.stat()
    return None


def _beside(file: Path, suffix: str) -> Path:
    return Path(f"{partial_of(file)}{suffix}")


@contextlib.contextmanager
def claimed(
    files: list[Path], others: list[Path], inputs: list[Path], *, overwrite: bool
) -> Iterator[None]:
    """Lock an output for this process, after `check_targets`.

    ``files``: as `emdn_deploy.writers.files_of`; ``others``: such as pictures. OutputError also if
    another process is at work on it, or its partial file is none that emdn has left there.
    """
    check_targets([*files, *others], inputs, overwrite=True)
    with contextlib.ExitStack() as stack:
        lock = _beside(files[-1], ".lock")
        with disk(lock):
            stack.enter_context(locked(lock, files[-1]))
        # Now that no other run can make it.
        check_targets([*files, *others], inputs, overwrite=overwrite)
        for path in map(partial_of, files):
            if path.exists() and not _load_map(files[-1])[0]:
                raise OutputError(
                    f"{path}: exists already, and is no run of emdn that can be continued; move it "
                    "away, or give the output another name"
                )
        yield


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """Say why a disk refuses a file."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def _load_map(target: Path) -> tuple[dict[str, Any], State]:
    """Return what `_save_map` has saved; nothing where there is none, or it is damaged."""
    try:
        with np.load(_beside(target, ".map"), allow_pickle=False) as arrays:
            state = dict(arrays)
        return json.loads(str(state.pop("facts"))), state
    except (AttributeError, KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile):
        return {}, {}


def _save_map(target: Path, facts: dict[str, Any], state: State) -> None:
    """Save what of an output is done, so that a kill leaves this or the map before."""
    fresh = _beside(target, ".map.new")
    with fresh.open("wb") as file:
        np.savez(file, allow_pickle=False, facts=np.array(json.dumps(facts)), **state)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, _beside(target, ".map"))


def _discard(files: list[Path]) -> None:
    """Remove what an incomplete output consists of, the map last."""
    for file in files:
        for path in (_beside(file, suffix) for suffix in ("", *_BESIDE)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def stamps(paths: Iterable[Path]) -> Stamps:
    """Return size, time of the last change (ns) and inode of files; of missing ones zeros."""
    found = {path: _stat(path) for path in paths}
    return {
        str(path): (stat.st_size, stat.st_mtime_ns, stat.st_ino) if stat else (0, 0, 0)
        for path, stat in found.items()
    }


def key_of(facts: Provenance, inputs: Stamps) -> str:
    """Return what decides the pixels, as JSON: a partial file is continued only if all is equal."""
    # A copy that was put back has another inode.
    known = [(name, *stamp[:2]) for name, stamp in inputs.items()]
    # How the work is cut up changes no bit of it. (On a GPU it may change the last digits; there
    # the batch follows from the memory that happens to be free, and may shrink on the way.)
    key = {name: one for name, one in facts.items() if name not in ("date", "threads", "batch")}
    files = hashlib.sha256(repr(known).encode()).hexdigest()
    return json.dumps({**key, "input_files": files}, sort_keys=True)


class Output:
    """Fill ``NAME.partial`` frame by frame, then rename it to ``NAME``.

    Any method raises OutputError when the disk refuses; opening it also if the partial file has
    another ``key`` (see `key_of`), unless ``overwrite``. ``files``: those of the output, the frames
    last, `claimed`. ``module``: its format. ``make`` writes all but the pixels to a path.
    ``beside``: the file of the standard deviations, where they have their own. ``state`` gives what
    else a run that continues this one needs; `earlier` is what it gets.
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
        self._synced = time.monotonic()
        self._stacks: dict[str, tuple[Layout, FileIO]] = {}
        self._finishing = self._complete = False
        self.sums, self._sigma_sums = Sums(), Sums()
        self.done = 0
        with disk(self.partial):
            saved, self.earlier = self._saved(overwrite=overwrite)
            if saved:
                self.done = saved["done"]
                self.sums, self._sigma_sums = (Sums(**one) for one in saved["sums"])
                # Of frames that wait beside it, an interruption leaves no more.
                plain = [Layout(*one) for one in saved["layouts"]]
                self._open(*(plain or [make(self.partial)]))
                return
            _discard(files)
            try:
                # A kill before anything is done leaves a file that says whose it is.
                _save_map(files[-1], {"key": key}, {})
                self._open(make(self.partial))
                self._save_map()
            except BaseException:
                self._drop()
                raise

    def _saved(self, *, overwrite: bool) -> tuple[dict[str, Any], State]:
        """Return the map of an interrupted run of this key; OutputError if it is another's."""
        saved, state = _load_map(self._files[-1])
        there = "done" in saved and all(partial_of(file).exists() for file in self._files)
        if not there or (overwrite and saved["key"] != self._key):
            return {}, {}
        if saved["key"] != self._key:
            old, new = json.loads(saved["key"]), json.loads(self._key)
            named = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
            raise OutputError(
                f"{self.partial}: is an interrupted run with another {', '.join(named)}; "
                "repeat that run's command to continue it, or add --overwrite to begin anew"
            )
        # A kill while HDF5 adds to a file can damage it.
        damaged = saved["finishing"] and saved["layouts"] and self.module in writers.INSIDE
        return ({}, {}) if damaged else (saved, state)

    def _open(self, frames: Layout, sigma: Layout | None = None) -> None:
        """Get ready to fill in what is laid out."""
        layouts = filter(None, (frames, sigma or frames.sigma))
        files = self.partial, partial_of(self._beside or self._files[-1])
        for name, layout, file in zip(("frames", "sigma"), layouts, files, strict=False):
            place = Path(f"{self.partial}.{name}") if layout.fill else file / layout.inside
            self._stacks[name] = layout, FileIO(place, "r+" if place.exists() else "w+")

    def write(self, start: int, part: Part, made: Answer) -> None:
        """Write what became of the frames of a part, the first of which is number ``start``."""
        with disk(self.partial):
            stored, clipped = self._put("frames", start, made.frames)
            if made.sigma is not None:
                self._put("sigma", start, made.sigma)
                self._sigma_sums += Sums.of(made.sigma, made.sigma)
        self.sums += replace(
            Sums.of(part.counted(), stored),
            clipped=clipped,
            shift=part.frames[0].size * float(made.shifts.sum()),
            largest=float(np.abs(made.shifts).max()),
            saturated=part.saturated,
            filled=part.filled,
            empty=(start + np.flatnonzero(part.empty)).tolist(),
        )
        self.done = start + len(made.frames)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            with disk(self.partial):
                self._save_map()

    def _put(self, name: str, start: int, frames: NDArray[np.float32]) -> tuple[NDArray[Any], int]:
        layout, file = self._stacks[name]
        stored, clipped = storable(frames, np.dtype(layout.dtype))
        pixels = np.ascontiguousarray(stored, layout.dtype)
        file.seek(layout.start + start * pixels[0].nbytes)
        left = pixels.reshape(-1).view(np.uint8).data
        while left:
            left = left[file.write(left) :]
        return stored, clipped

    def complete(self, late: Provenance, given: Stamps | None = None) -> None:
        """Make the files durable and give them their names.

        Raises FormatError if files of ``given`` are not what they were; then nothing stays.
        """
        now = stamps(map(Path, given or {}))
        if changed := [name for name, stamp in (given or {}).items() if stamp != now[name]]:
            self.done = 0
            raise FormatError(
                f"{changed[0]}: was changed while it was denoised ({len(changed)} of {len(now)} "
                "files were); wait until nothing writes to it any more, and begin anew"
            )
        with disk(self.partial):
            self._save_map()
            for layout, waiting in self._stacks.values():
                if layout.fill:
                    waiting.seek(0)
                    layout.fill(partial(np.fromfile, waiting, layout.dtype))
            self._finishing = True
            self._save_map()
            if self._beside is not None:
                own = self._sigma_sums.facts(0.0)
                known = {name: own[name] for name in own if name.startswith("output_")}
                writers.finish(self.module, partial_of(self._beside), known)
            writers.finish(self.module, self.partial, late)
            for file in self._files:
                for path in (partial_of(file), *partial_of(file).rglob("*")):
                    if path.is_file():
                        with path.open("r+b") as opened:
                            os.fsync(opened.fileno())
            self._close()
            # Where the frames are, all is there.
            for file in self._files:
                if file.is_dir():  # which no rename replaces
                    os.replace(file, _beside(file, ".new"))
                os.replace(partial_of(file), file)
            self._complete = True
            _discard(self._files)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or self._complete:
            return
        if not self.done:
            self._drop()
            return
        # Whatever it is may be mended, and the run continued.
        with contextlib.suppress(OSError, ValueError):
            self._save_map()
        self._close()
        words = (
            f"{self.done} frames are kept in {self.partial}: the same command goes on from there"
        )
        if self.partial.exists() and isinstance(error, EmdnError):
            error.args = (f"{error}; {words}",)
        elif self.partial.exists():
            _log.warning("%s", words)

    def _save_map(self) -> None:
        """Make the frames durable, then say that they are done."""
        for _, file in self._stacks.values():
            os.fsync(file.fileno())
        layouts = [layout for layout, _ in self._stacks.values()]
        facts = {
            "key": self._key, "done": self.done, "finishing": self._finishing,
            "layouts": [(one.dtype, one.start, one.inside) for one in layouts if not one.fill],
            "sums": [asdict(self.sums), asdict(self._sigma_sums)],
        }  # fmt: skip
        _save_map(self._files[-1], facts, self._state())
        self._synced = time.monotonic()

    def _drop(self) -> None:
        self._close()
        with contextlib.suppress(OSError):
            _discard(self._files)

    def _close(self) -> None:
        for _, file in self._stacks.values():
            file.close()
