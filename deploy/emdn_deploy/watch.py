"""Denoise frames while an acquisition writes them: new files of a folder, in order.

The first frames give the scale and the bad pixels of the whole acquisition (a live run
cannot look ahead); each file that follows becomes one output, as soon as it is complete
and every file before it is done. What cannot be denoised is said and skipped, and tried
again when it changes.
"""

import errno
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from stat import S_ISREG

from emdn_deploy import correction, job, targets, writers
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.options import DenoiseOptions
from emdn_deploy.readers import Choice, open_frames, open_list, suffixes
from emdn_deploy.readers.folder import natural, split_pattern
from emdn_models.errors import EmdnError, FormatError, OutputError

# Frames that the scale is taken from, if there are so many before the first wait ends.
FIRST_FRAMES = 16

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """A file as it was at the last look: one that no longer changes is complete."""

    size: int
    changed_ns: int


@dataclass(frozen=True)
class Arrival:
    """One denoised piece of an acquisition.

    Attributes
    ----------
    lag_s
        From the moment the input was last written to the moment its output was there.
    """

    source: Path
    output: Path
    frames: int
    lag_s: float


def folder(
    source: Path,
    options: DenoiseOptions,
    idle_s: float,
    poll_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Generator[Arrival, None, None]:
    """Denoise each new file of a folder, or of a pattern, until none comes for ``idle_s``.

    Parameters
    ----------
    options
        ``out_dir`` is where the outputs go; None for ``<folder>_denoised`` beside it.
    poll_s
        Time between two looks.

    Raises
    ------
    FormatError
        If the folder does not exist; at the end, if files were left out.
    """
    place = source if source.is_dir() else split_pattern(source)[0]
    if not place.is_dir():
        raise FormatError(f"{place}: no such folder to watch")
    out = options.out_dir or place.with_name(place.name + options.suffix)
    out.mkdir(parents=True, exist_ok=True)
    opened = {options.model: Denoiser.of(options)}  # before any file is waited for
    watched = _Watched(source, place, out, options, opened)
    before: dict[Path, Seen] = {}
    idle = 0.0
    while idle <= idle_s:
        now = look(source, out, options.suffix)
        grew = now != before
        ready = [path for path in complete(before, now) if watched.wants(path, now[path])]
        before = now
        if watched.recipe is None and ready and (len(ready) >= FIRST_FRAMES or not grew):
            watched.find_recipe(ready, now)
        if watched.recipe is not None:
            for path in ready:
                if watched.wants(path, now[path]) and (made := watched.denoise(path, now[path])):
                    yield made
                if watched.full:
                    break
            watched.full = False
        idle = 0.0 if grew else idle + poll_s
        sleep(poll_s)
    left = [str(path) for path in now if path not in watched.done]
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise FormatError(
            f"{source}: {len(left)} of {len(now)} files were not denoised: {', '.join(left[:3])}"
            f"{more}; mend or remove them and repeat the command"
        )


@dataclass
class _Watched:
    """A folder that is watched, and what has become of its files.

    Attributes
    ----------
    done, skipped
        Files that were denoised, or could not be, as they were then.
    own
        Those of ``done`` that this run has denoised.
    full
        Whether the disk is: the next file would not fit either.
    """

    source: Path
    place: Path
    out: Path
    options: DenoiseOptions
    opened: dict[str | None, Denoiser]
    recipe: correction.Recipe | None = None
    done: dict[Path, Seen] = field(default_factory=dict)
    skipped: dict[Path, Seen] = field(default_factory=dict)
    own: set[Path] = field(default_factory=set)
    said: set[str] = field(default_factory=set)
    full: bool = False

    def wants(self, path: Path, seen: Seen) -> bool:
        """Say whether a complete file is to be denoised, for the first time or again."""
        if path in self.done and (path not in self.own or self.done[path] == seen):
            return False
        return bool(seen.size) and self.skipped.get(path) != seen

    def find_recipe(self, ready: list[Path], now: dict[Path, Seen]) -> None:
        """Take scale and bad pixels from the first files, but for those that do not fit."""
        sizes: dict[Path, tuple[int, ...]] = {}
        choice = Choice(self.options.dataset, self.options.axes)
        for path in ready[:FIRST_FRAMES]:
            try:
                with open_frames(path, choice) as frames:
                    frames.read(frames.shape[0] - 1, frames.shape[0])
                    sizes[path] = frames.shape[1:]
            except Exception as error:
                self._skip(path, now[path], error)
        if not sizes:
            return
        size, _ = Counter(sizes.values()).most_common(1)[0]
        paths = [path for path in sizes if sizes[path] == size]
        try:
            self.recipe = _first_recipe(self.source, paths, self.options)
        except Exception as error:
            for path in paths:
                self._skip(path, now[path], error)

    def denoise(self, path: Path, seen: Seen) -> Arrival | None:
        """Denoise a file; say so and return None where that is not possible."""
        own = replace(self.options, out_dir=self.out / path.parent.relative_to(self.place))
        try:
            assert own.out_dir is not None
            own.out_dir.mkdir(parents=True, exist_ok=True)
            target, module = targets.target_of(path, own)
            if path in self.own:
                _log.warning("%s: has changed since it was denoised; denoised again", path)
                own = replace(own, overwrite=True)
            elif target.exists() and not own.overwrite:
                _log.info("%s: was denoised before", path)
                self.done[path] = seen
                return None
            elif not any(file.exists() for file in writers.files_of(target, module, sigma=False)):
                own = replace(own, overwrite=True)  # what a watch with another scale began
            report = job.run(path, own, opened=self.opened, recipe=self.recipe)
        except OutputError as error:
            # Not the file's fault: there may be room, or leave to write, at the next look.
            self._say(path, error, "tried again")
            self.full = getattr(error.__cause__, "errno", 0) in (errno.ENOSPC, errno.EDQUOT)
            return None
        except Exception as error:
            self._skip(path, seen, error)
            return None
        self.done[path] = seen
        self.own.add(path)
        lag = time.time() - seen.changed_ns / 1e9
        return Arrival(path, report.output, report.frames, lag)

    def _skip(self, path: Path, seen: Seen, error: Exception) -> None:
        self.skipped[path] = seen
        self._say(path, error, "skipped, and tried again when it changes")

    def _say(self, path: Path, error: Exception, what: str) -> None:
        text = str(error) if isinstance(error, EmdnError) else f"{type(error).__name__}: {error}"
        text = text if str(path) in text else f"{path}: {text}"
        if text not in self.said:
            self.said.add(text)
            _log.warning("warning: %s; %s", text, what)


def look(source: Path, out: Path | None = None, suffix: str = "") -> dict[Path, Seen]:
    """List the files of a folder or pattern, in natural order, as they are now.

    Parameters
    ----------
    out, suffix
        Where outputs go and what their names end in: inside the folder, they are left out.
    """
    place, pattern = (source, "**/*") if source.is_dir() else split_pattern(source)
    known = suffixes()
    inside = out is not None and place.resolve() in out.resolve().parents
    among = out is not None and place.resolve() == out.resolve()
    seen = {}
    for path in sorted(place.glob(pattern), key=natural):
        if path.suffix.lower() not in known or path.name.startswith("."):
            continue
        if (inside and out in path.parents) or (among and suffix and path.stem.endswith(suffix)):
            continue
        try:
            stat = path.stat()
        except OSError:  # gone again
            continue
        if S_ISREG(stat.st_mode):
            seen[path] = Seen(stat.st_size, stat.st_mtime_ns)
    return seen


def complete(before: dict[Path, Seen], now: dict[Path, Seen]) -> list[Path]:
    """Return the files that did not change, up to the first that did: order is kept."""
    ready = []
    for path, seen in now.items():
        if before.get(path) != seen:
            break
        ready.append(path)
    return ready


def _first_recipe(source: Path, paths: list[Path], options: DenoiseOptions) -> correction.Recipe:
    with open_list(source, paths, Choice(options.dataset, options.axes)) as frames:
        recipe = correction.find_recipe(frames, options)
        note = f"{recipe.scale.note}; from the first {frames.shape[0]} frames"
    return replace(recipe, scale=replace(recipe.scale, note=note))
