"""An output file that appears under its name only when it is complete.

While a run lasts there are ``NAME.partial``, the file itself, and
``NAME.partial.map``, which frames of it are done and of which run it is a part. A run
that was interrupted is continued by the same command. Compressed frames, whose sizes are
not known beforehand, wait in ``NAME.partial.frames`` until all are done. Standard
deviations fill a second stack, in the same file or in ``NAME_sigma``, under the same map.
"""

import contextlib
import importlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from emdn_deploy.filling import Filling, Saved, partial_of
from emdn_deploy.sums import Sums
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
    beside
        The file of the standard deviations, where they have one of their own.
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
        beside: Path | None = None,
        overwrite: bool = False,
    ) -> None:
        self.module = module
        # Renamed in this order: where the frames are, all is there.
        self._targets = [target] if beside is None else [beside, target]
        self.partial = partial_of(target)
        self._map = target.with_name(target.name + ".partial.map")
        self._make = make
        self._key = json.dumps(dict(key), sort_keys=True)
        self._synced = time.monotonic()
        self._fillings: dict[str, Filling] = {}
        self.done = 0
        with self._disk():
            if not self._continued(overwrite=overwrite):
                self._discard()
                self._open(make(self.partial), {"frames": Sums(), "sigma": Sums()})
                try:
                    self._save_map()
                except OSError:
                    self._close()
                    raise

    @property
    def sums(self) -> Sums:
        """Return what is summed up over the frames."""
        return self._fillings["frames"].sums

    def write(
        self,
        start: int,
        before: NDArray[np.float32],
        after: NDArray[np.float32],
        sigma: NDArray[np.float32] | None = None,
    ) -> None:
        """Write frames (k, H, W), the first of which is number ``start``, and their sigma."""
        with self._disk():
            self._fillings["frames"].write(start, before, after)
            if sigma is not None:
                self._fillings["sigma"].write(start, sigma, sigma)
            self.done = start + len(after)
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                self._save_map()

    def complete(self, late: Provenance) -> None:
        """Make the file durable and give it its name."""
        writer = importlib.import_module(f"emdn_deploy.writers.{self.module}")
        with self._disk():
            self._save_map()
            for filling in self._fillings.values():
                filling.complete()
            facts = [late]
            if len(self._targets) > 1:
                own = self._fillings["sigma"].sums.facts(0.0)
                facts.insert(0, {name: own[name] for name in own if name.startswith("output_")})
            for target, known in zip(self._targets, facts, strict=True):
                writer.finish(partial_of(target), known)
                with partial_of(target).open("r+b") as file:
                    os.fsync(file.fileno())
            for target in self._targets:
                os.replace(partial_of(target), target)
            self._map.unlink(missing_ok=True)
            for filling in self._fillings.values():
                filling.spool.unlink(missing_ok=True)

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
            self._close()
            return
        self._close()
        with contextlib.suppress(OSError):
            self._discard()

    def _continued(self, *, overwrite: bool) -> bool:
        """Take up a partial file of the same key, if there is one."""
        there = [partial_of(target).exists() for target in self._targets]
        if not (all(there) and self._map.exists()):
            return False
        try:
            with np.load(self._map, allow_pickle=False) as arrays:
                key, done = str(arrays["key"]), arrays["done"]
                saved = {name: Saved.of(arrays, name) for name in arrays["stacks"].tolist()}
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
        layouts = {name: one.layout for name, one in saved.items()}
        if saved["frames"].packed:
            # An interruption while the file was filled leaves no more of it than its frames.
            fresh = self._make(self.partial)
            made = {"frames": fresh, "sigma": fresh.sigma or fresh}
            layouts = {
                name: replace(made[name], offsets=one.offsets) for name, one in layouts.items()
            }
        layout = replace(layouts["frames"], sigma=layouts.get("sigma"))
        self._open(layout, {name: one.sums for name, one in saved.items()})
        self.done = int(np.argmin(done)) if not done.all() else len(done)
        return True

    def _open(self, layout: Layout, sums: dict[str, Sums]) -> None:
        """Get ready to fill in what is laid out."""
        stacks = {"frames": (layout, self.partial)}
        if layout.sigma is not None:
            # In a file of its own where there is one, otherwise in that of the frames.
            stacks["sigma"] = layout.sigma, partial_of(self._targets[0])
        for name, (one, partial) in stacks.items():
            spool = self.partial.with_name(f"{self.partial.name}.{name}")
            self._fillings[name] = Filling(one, partial, spool, sums[name])

    def _save_map(self) -> None:
        """Make the frames durable, then say that they are done."""
        arrays: dict[str, Any] = {"key": self._key, "stacks": list(self._fillings)}
        for name, filling in self._fillings.items():
            filling.sync()
            arrays |= filling.state(name)
        offsets = self._fillings["frames"].layout.offsets
        fresh = self._map.with_name(self._map.name + ".new")
        with fresh.open("wb") as file:
            np.savez(file, done=np.arange(len(offsets)) < self.done, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self._map)
        self._synced = time.monotonic()

    def _close(self) -> None:
        for filling in self._fillings.values():
            filling.file.close()

    def _discard(self) -> None:
        for target in self._targets:
            for suffix in ("", ".map", ".map.new", ".json", ".frames", ".sigma"):
                Path(f"{partial_of(target)}{suffix}").unlink(missing_ok=True)

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
