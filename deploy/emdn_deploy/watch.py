"""Denoise frames while an acquisition writes them: new files of a folder, in order.

The first frames give the scale and the bad pixels of the whole acquisition (a live run
cannot look ahead); each file that follows becomes one output, as soon as it is complete
and every file before it is done.
"""

import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path

from emdn_deploy import correction, job, targets
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.options import DenoiseOptions
from emdn_deploy.readers import Choice, open_list, suffixes
from emdn_deploy.readers.folder import natural, split_pattern
from emdn_models.errors import FormatError

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
    EmdnError
        As `emdn_deploy.job.run`, and if the folder does not exist.
    """
    place = source if source.is_dir() else split_pattern(source)[0]
    if not place.is_dir():
        raise FormatError(f"{place}: no such folder to watch")
    out = options.out_dir or place.with_name(place.name + options.suffix)
    out.mkdir(parents=True, exist_ok=True)
    denoiser = Denoiser.of(options)
    recipe: correction.Recipe | None = None
    before: dict[Path, Seen] = {}
    done: set[Path] = set()
    idle = 0.0
    while idle <= idle_s:
        now = look(source)
        ready = [path for path in complete(before, now) if path not in done]
        grew = now != before
        before = now
        if recipe is None and ready and (len(ready) >= FIRST_FRAMES or not grew):
            recipe = _first_recipe(source, ready[:FIRST_FRAMES], options)
        if recipe is not None:
            for path in ready:
                relative = path.parent.relative_to(place)
                (out / relative).mkdir(parents=True, exist_ok=True)
                own = replace(options, out_dir=out / relative)
                target, _ = targets.target_of(path, own)
                done.add(path)
                if target.exists() and not options.overwrite:
                    _log.info("%s: was denoised before", path)
                    continue
                report = job.run(path, own, denoiser=denoiser, recipe=recipe)
                lag = time.time() - path.stat().st_mtime
                yield Arrival(path, report.output, report.frames, lag)
        idle = 0.0 if grew else idle + poll_s
        sleep(poll_s)


def look(source: Path) -> dict[Path, Seen]:
    """List the files of a folder or pattern, in natural order, as they are now."""
    place, pattern = (source, "**/*") if source.is_dir() else split_pattern(source)
    known = suffixes()
    paths = [
        path
        for path in place.glob(pattern)
        if path.suffix.lower() in known and not path.name.startswith(".") and path.is_file()
    ]
    seen = {}
    for path in sorted(paths, key=natural):
        stat = path.stat()
        seen[path] = Seen(stat.st_size, stat.st_mtime_ns)
    return seen


def complete(before: dict[Path, Seen], now: dict[Path, Seen]) -> list[Path]:
    """Return the files that did not change, up to the first that did: order is kept."""
    ready = []
    for path, seen in now.items():
        if before.get(path) != seen or not seen.size:
            break
        ready.append(path)
    return ready


def _first_recipe(source: Path, paths: list[Path], options: DenoiseOptions) -> correction.Recipe:
    with open_list(source, paths, Choice(options.dataset, options.axes)) as frames:
        recipe = correction.find_recipe(frames, options)
        note = f"{recipe.scale.note}; from the first {frames.shape[0]} frames"
    return replace(recipe, scale=replace(recipe.scale, note=note))
