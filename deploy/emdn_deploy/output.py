"""An output file that appears under its name only when it is complete.

While a run lasts there are ``NAME.partial``, the file itself, and
``NAME.partial.map``, which frames of it are done and of which run it is a part. A run
that was interrupted is continued by the same command. Compressed frames, whose sizes are
not known beforehand, wait in ``NAME.partial.frames`` until all are done.
"""

import contextlib
import importlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.sums import Sums
from emdn_deploy.writers.integers import storable
from emdn_deploy.writers.layout import Layout, Provenance
from emdn_models.errors import OutputError

# Work that a power failure may cost.
_SYNC_SECONDS = 2.0


def check_target(target: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse an output that would destroy something.

    Raises
    ------
    OutputError
        If it is the input, exists already (without ``overwrite``), or its folder
        is missing or not writable.
    """
    if target.exists() and source.exists() and target.samefile(source):
        raise OutputError(f"{target}: is the input itself; emdn never overwrites it, use -o")
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: exists already; add --overwrite, or another name with -o")
    folder = target.parent
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder; create it first")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder}: cannot be written to; choose another place with -o")


class Output:
    """Fill ``NAME.partial`` frame by frame, then rename it to ``NAME``.

    Parameters
    ----------
    module
        The writer (see `emdn_deploy.writers`).
    make
        Writes everything but the pixels to a path and returns the layout.
    key
        What decides the pixels: input, model, options. A partial file is continued
        only where it is equal.
    overwrite
        Whether a partial file of another key may be thrown away.

    Raises
    ------
    OutputError
        From any method, when the disk refuses; here, if the partial file is of
        another run.
    """

    def __init__(
        self,
        target: Path,
        module: str,
        make: Callable[[Path], Layout],
        key: Provenance,
        *,
        overwrite: bool = False,
    ) -> None:
        self.target, self.module = target, module
        self.partial = target.with_name(target.name + ".partial")
        self._map = target.with_name(target.name + ".partial.map")
        self._spool = target.with_name(target.name + ".partial.frames")
        self._make = make
        self._key = json.dumps(dict(key), sort_keys=True)
        self._synced = time.monotonic()
        self.sums = Sums()
        self.done = 0
        with self._disk():
            if not self._continued(overwrite=overwrite):
                self._discard()
                self.layout = make(self.partial)
                self._save_map()
            place = self._spool if self.layout.packing else self.partial
            self._file = place.open("r+b" if place.exists() else "w+b", buffering=0)

    def write(self, start: int, before: NDArray[np.float32], after: NDArray[np.float32]) -> None:
        """Write frames (k, H, W), the first of which is number ``start``."""
        layout = self.layout
        with self._disk():
            stored, saturated = storable(after, np.dtype(layout.dtype))
            for number, frame in enumerate(stored, start):
                turned = frame.T if layout.transposed else frame
                pixels = np.ascontiguousarray(turned, np.dtype(layout.dtype))
                left = pixels.data.cast("B")
                if layout.packing:
                    left = memoryview(layout.packing.encode(pixels))
                    layout.offsets[number + 1] = layout.offsets[number] + len(left)
                self._file.seek(int(layout.offsets[number]))
                while left:
                    left = left[self._file.write(left) :]
            self.sums.add(before, stored)
            self.sums.saturated += saturated
            self.done = start + len(after)
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                self._save_map()

    def complete(self, late: Provenance) -> None:
        """Make the file durable and give it its name."""
        with self._disk():
            self._save_map()
            if self.layout.packing:
                self.layout.packing.fill(self._packed())
            self._file.close()
            writer = importlib.import_module(f"emdn_deploy.writers.{self.module}")
            writer.finish(self.partial, late)
            with self.partial.open("r+b") as file:
                os.fsync(file.fileno())
            os.replace(self.partial, self.target)
            self._map.unlink(missing_ok=True)
            self._spool.unlink(missing_ok=True)

    def _packed(self) -> Iterator[bytes]:
        """Read the compressed frames back, one by one."""
        for start, stop in pairwise(self.layout.offsets.tolist()):
            self._file.seek(start)
            yield self._file.read(stop - start)

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
        # An interruption, or a full disk, can be mended and the run continued.
        if isinstance(error, KeyboardInterrupt | OutputError) and self.done:
            with contextlib.suppress(OSError, ValueError):
                self._save_map()
            self._file.close()
            return
        self._file.close()
        with contextlib.suppress(OSError):
            self._discard()

    def _continued(self, *, overwrite: bool) -> bool:
        """Take up a partial file of the same key, if there is one."""
        if not (self.partial.exists() and self._map.exists()):
            return False
        try:
            with np.load(self._map, allow_pickle=False) as saved:
                key, sums = str(saved["key"]), json.loads(str(saved["sums"]))
                layout = Layout(saved["offsets"], str(saved["dtype"]), bool(saved["transposed"]))
                done, packed = saved["done"], bool(saved["packed"])
        except (OSError, ValueError, KeyError):
            return False
        if key != self._key:
            if overwrite:
                return False
            differs = _difference(key, self._key)
            raise OutputError(
                f"{self.partial}: is an interrupted run with another {differs}; "
                "repeat that run's command to continue it, or add --overwrite to begin anew"
            )
        if packed:
            # An interruption while the file was filled leaves no more of it than its frames.
            layout = replace(self._make(self.partial), offsets=layout.offsets)
        self.layout, self.done = layout, int(np.argmin(done)) if not done.all() else len(done)
        self.sums = Sums(**sums)
        return True

    def _save_map(self) -> None:
        """Make the frames durable, then say that they are done."""
        if hasattr(self, "_file"):
            os.fsync(self._file.fileno())
        fresh = self._map.with_name(self._map.name + ".new")
        layout = self.layout
        with fresh.open("wb") as file:
            np.savez(
                file,
                key=self._key,
                offsets=layout.offsets,
                dtype=layout.dtype,
                transposed=layout.transposed,
                packed=layout.packing is not None,
                done=np.arange(len(layout.offsets)) < self.done,
                sums=json.dumps(asdict(self.sums)),
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self._map)
        self._synced = time.monotonic()

    def _discard(self) -> None:
        for suffix in ("", ".map", ".map.new", ".json", ".frames"):
            Path(f"{self.partial}{suffix}").unlink(missing_ok=True)

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"{self.partial}: cannot be written ({reason})") from error


def _difference(one: str, other: str) -> str:
    """Name what two keys disagree in."""
    old, new = json.loads(one), json.loads(other)
    return ", ".join(sorted(name for name in {*old, *new} if old.get(name) != new.get(name)))
