"""From what a file holds to frames that can be denoised: references and bad pixels."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import defects, intensity
from emdn_deploy.intensity import Intensity
from emdn_deploy.options import DenoiseOptions
from emdn_deploy.readers import Choice, Frames, open_frames
from emdn_deploy.readers.frames import WHITE
from emdn_models.errors import EmdnError, FormatError

Stack = NDArray[np.float32]

_UNSCALED = Intensity(1.0, 1.0, 0.0, 0.0, "")


@dataclass(frozen=True)
class Recipe:
    """What is done to every frame of a stack before it is denoised, and its scale.

    Attributes
    ----------
    dark, gain_map
        (H, W), frames become (frames - dark) * gain_map; None for neither.
    bad
        (H, W), the pixels that ``fill`` replaces.
    """

    dark: NDArray[np.float32] | None
    gain_map: NDArray[np.float32] | None
    bad: defects.Mask
    fill: defects.Fill
    scale: Intensity

    def apply(self, block: Stack, path: Path, start: int) -> int:
        """Correct frames (k, H, W) in place and make them finite.

        Returns
        -------
        int
            How many pixels were not finite in some frames only.
        """
        if self.dark is not None:
            block -= self.dark
        if self.gain_map is not None:
            block *= self.gain_map
        self.fill.apply(block)
        return _fill_rest(path, block, start, self.bad)


@dataclass(frozen=True)
class Prepared:
    """A stack that reads corrected.

    Attributes
    ----------
    read
        ``read(start, stop)`` gives (k, H, W), finite, corrected.
    lost
        Of the blocks read so far, by their first frame: how many pixels were not
        finite in some frames only, and were filled in as well.
    """

    recipe: Recipe
    read: Callable[[int, int], Stack]
    lost: dict[int, int]

    @property
    def scale(self) -> Intensity:
        """Return the scale of the stack."""
        return self.recipe.scale

    @property
    def bad_pixels(self) -> int:
        """Return how many pixels are filled in, in every frame."""
        return int(self.recipe.bad.sum())


def prepare(frames: Frames, options: DenoiseOptions, recipe: Recipe | None = None) -> Prepared:
    """Correct a stack by a recipe, or find one.

    Raises
    ------
    FormatError
        If a reference or the recipe does not fit, or frames cannot be made finite.
    """
    if recipe is None:
        recipe = find_recipe(frames, options)
    elif recipe.bad.shape != frames.shape[1:]:
        raise FormatError(
            f"{frames.path}: is {frames.shape[1]} x {frames.shape[2]}, earlier frames were "
            f"{recipe.bad.shape[0]} x {recipe.bad.shape[1]}"
        )
    lost: dict[int, int] = {}
    return Prepared(recipe, _reader(frames, recipe, lost), lost)


def find_recipe(frames: Frames, options: DenoiseOptions) -> Recipe:
    """Find the bad pixels and the scale of a stack."""
    count, size = frames.shape[0], frames.shape[1:]
    dark, gain_map = (_reference(path, size) for path in (options.dark, options.gain_map))
    bad = defects.unusable(frames.read, count, size, frames.dtype)
    marked = _reference(options.defects, size)
    if marked is not None:
        bad |= marked != 0

    def with_mask() -> Recipe:
        draft = Recipe(dark, gain_map, bad, _plan(frames.path, bad), _UNSCALED)
        return replace(draft, scale=_measure(frames, _reader(frames, draft, {}), options, bad))

    recipe = with_mask()
    scale = recipe.scale
    if not options.keep_bad_pixels and scale.sigma:
        read = _reader(frames, recipe, {})
        found = defects.outliers(read, count, size, scale.gain, scale.offset)
        if found.any():
            bad = bad | found
            recipe = with_mask()
    return recipe


def _reader(frames: Frames, recipe: Recipe, lost: dict[int, int]) -> Callable[[int, int], Stack]:
    def read(start: int, stop: int) -> Stack:
        block = frames.read(start, stop)
        if filled := recipe.apply(block, frames.path, start):
            lost[start] = filled
        return block

    return read


def _plan(path: Path, mask: defects.Mask) -> defects.Fill:
    try:
        return defects.plan(mask)
    except ValueError as error:
        raise FormatError(f"{path}: {error} in any frame that was looked at") from error


def _measure(
    frames: Frames,
    read: Callable[[int, int], Stack],
    options: DenoiseOptions,
    bad: defects.Mask,
) -> Intensity:
    count, height, width = frames.shape
    white = frames.metadata.get(WHITE)
    offset = options.offset
    if white is not None:
        # Electrons count down from white: a gain below 0.
        level, upright = float(white), read
        read = lambda start, stop: level - upright(start, stop)  # noqa: E731
        offset = None if offset is None else level - offset
    try:
        found = intensity.estimate(read, count, (height, width), options.gain, offset, bad)
        if white is None:
            return found
        note = f"{found.note}; min-is-white: electrons are taken to count down from {white}"
        return replace(found, gain=-found.gain, offset=level - found.offset, note=note)
    except FormatError:
        raise
    except EmdnError as error:
        raise FormatError(f"{frames.path}: {error}") from error


def _reference(path: Path | None, size: tuple[int, ...]) -> NDArray[np.float32] | None:
    """Read a reference and average its frames."""
    if path is None:
        return None
    with open_frames(path, Choice()) as stack:
        if stack.shape[1:] != size:
            raise FormatError(
                f"{path}: is {stack.shape[1]} x {stack.shape[2]}, the frames are "
                f"{size[0]} x {size[1]}; a reference must have their size"
            )
        count = stack.shape[0]
        total = sum(stack.read(i, i + 1)[0].astype(np.float64) for i in range(count))
    reference = np.asarray(total / count, dtype=np.float32)
    if not np.isfinite(reference).all():
        raise FormatError(f"{path}: has pixels that are not finite")
    return reference


def _fill_rest(path: Path, block: Stack, start: int, mask: defects.Mask) -> int:
    """Fill, in place, what is not finite in some frames only; return how many pixels."""
    filled = 0
    for index in np.flatnonzero(~np.isfinite(block).all(axis=(1, 2))):
        frame = block[index : index + 1]
        lost = ~np.isfinite(frame[0])
        filled += int(lost.sum())
        try:
            defects.plan(mask | lost).apply(frame)
        except ValueError as error:
            raise FormatError(
                f"{path}: frame {start + index} has no finite pixels; leave it out with --frames"
            ) from error
    return filled
