"""From what a file holds to frames that can be denoised: references, bad pixels, gaps, scale.

Dead and hot pixels change from one acquisition to the next, so they are looked for in the frames
themselves (`bad_pixels`). Gaps and saturated areas keep their value in the output; what stands in
for them is what a network sees.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import bad_pixels, dose
from emdn_deploy.bad_pixels import Fill, Flagged, Mask, each
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.dose import Intensity, NoiseLevel, NoiseModel, sample
from emdn_deploy.readers import Choice, Frames, open_frames
from emdn_deploy.readers.frames import Axis
from emdn_models.errors import EmdnError, FormatError

Stack = NDArray[np.float32]
Read = Callable[[int, int], Stack]

_RIM = 2  # pixels around gaps and saturated areas, of which a network saw one side only
_COMPLETE = 0.98  # of the most pixels with a value, for a frame to be as good as others


@dataclass(frozen=True, eq=False)
class Answer:
    """What becomes of a stack (n, H, W): frames, each with the mean of its input.

    ``shifts``: (n,) what was added to each so that it is: mean(in) - mean(out of the net).
    ``sigma``: (n, H, W), standard deviation of the error; None where it was not asked for.
    """

    frames: Stack
    shifts: NDArray[np.float64]
    sigma: Stack | None = None


@dataclass(frozen=True)
class Part:
    """Some frames of a stack, ready for a network."""

    frames: Stack  # (k, H, W), finite, corrected
    # (k, H, W), the pixels whose value stays: gaps, saturated areas, frames without any value; and
    # arrays in which these pixels have it. None where there are none.
    preserved: Mask | None = None
    values: Stack | None = None
    saturated: int = 0  # pixels
    filled: int = 0  # pixels without a value in these frames only, single ones and areas

    @property
    def empty(self) -> NDArray[np.bool_]:
        """Return (k,), which frames have no value at all."""
        none = np.zeros(len(self.frames), bool)
        return none if self.preserved is None else np.asarray(self.preserved.all(axis=(1, 2)))

    def judged(self, bad: Mask) -> NDArray[np.bool_]:
        """Return (k,), in which frames hardly more is preserved than what is ``bad`` in all."""
        if self.preserved is None:
            return np.ones(len(self.frames), bool)
        return np.asarray((self.preserved & ~bad).mean(axis=(1, 2)) < 1 - _COMPLETE)

    def finish(self, made: Answer, *, whole: bool = False) -> Answer:
        """Put the preserved values into what a network has made of ``frames``, in place.

        The other pixels of a frame keep their mean. Where the output holds ``whole`` numbers, and
        so no NaN, what was filled in stays there, and frames without any value become 0.
        """
        if self.preserved is None or self.values is None:
            return made
        for index, (mask, values) in enumerate(zip(self.preserved, self.values, strict=True)):
            frame = made.frames[index]
            if not mask.any():
                continue  # as in a block of which no frame preserves a value
            if mask.all():
                made.shifts[index], frame[:] = 0.0, 0.0
            else:
                mean = self.frames[index].mean(where=~mask, dtype=np.float64)
                shift = mean - frame.mean(where=~mask, dtype=np.float64)
                made.shifts[index] += shift
                frame += np.float32(shift)
            np.copyto(frame, values, where=mask & np.isfinite(values) if whole else mask)
        if made.sigma is not None:
            made.sigma[self.preserved] = np.nan
        return made

    def counted(self) -> Stack:
        """Return the frames with NaN for what no sum is to count: the preserved pixels."""
        if self.preserved is None:
            return self.frames
        return np.where(self.preserved, np.float32(np.nan), self.frames)


@dataclass(frozen=True)
class Recipe:
    """What is done to every frame of a stack before it is denoised, its scale and its noise.

    Frames become (frames - dark) * gain_map. All arrays are (H, W).
    """

    dark: Stack | None
    gain_map: Stack | None
    faulty: Mask  # the pixels that are filled in from their neighbours
    flags: Flagged  # gaps and saturated areas, whose value is preserved
    bad: Mask  # all of these, and the rims of areas: the pixels that tell nothing of the noise
    fill: Fill  # fills in what is faulty, and what the network is not to see
    scale: Intensity
    noise: NoiseModel

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what the noise has that denoising does not mend, for people."""
        return self.noise.findings if self.scale.sigma else ()

    def apply(self, block: Stack) -> Part:
        """Correct frames (k, H, W), as the file holds them, in place and make them finite."""
        static = self.flags.masked | self.faulty
        lost, saturated = ~np.isfinite(block) & ~static, self.flags.saturated_in(block)
        blank = _constant(block, ~static)
        # Areas are preserved, and hidden from the network; single pixels are filled in.
        hidden = saturated | each(bad_pixels.areas, lost)
        hidden[(hidden | lost | static).all(axis=(1, 2)) | blank] = True
        empty, preserved = np.asarray(hidden.all(axis=(1, 2))), hidden | self.flags.masked
        values = block.copy() if preserved.any() else None
        if self.dark is not None:
            block -= self.dark
        if self.gain_map is not None:
            block *= self.gain_map
        if values is not None:  # a flag is no intensity, all else is corrected
            values[saturated], values[blank] = block[saturated], block[blank]
        self.fill.apply(block)
        for frame, away, none in zip(block, hidden | lost, empty, strict=True):
            if none:
                frame[:] = self.scale.offset + self.scale.gain * self.scale.scale
            elif away.any():
                bad_pixels.plan(away).apply(frame[None])
        filled = int(np.count_nonzero(lost[~empty]))
        return Part(
            block,
            None if values is None else preserved,
            values,
            int(np.count_nonzero(saturated)),
            filled,
        )


@dataclass(frozen=True)
class Prepared:
    """A stack that reads corrected."""

    frames: Frames
    recipe: Recipe

    def take(self, start: int, stop: int) -> Part:
        """Return frames ``start`` to ``stop``, corrected, and what is preserved of them."""
        return self.recipe.apply(self.frames.read(start, stop))

    def read(self, start: int, stop: int) -> Stack:
        """Return (k, H, W), finite, corrected."""
        return self.take(start, stop).frames

    def shown(self, denoised: Read) -> Read:
        """Return a reader of denoised frames that shows what was filled in where values stay."""

        def read(start: int, stop: int) -> Stack:
            part, after = self.take(start, stop), denoised(start, stop)
            shown = part.preserved
            return after if shown is None else np.where(shown, part.frames, after)

        return read

    @property
    def scale(self) -> Intensity:
        """Return the scale of the stack."""
        return self.recipe.scale


def prepare(frames: Frames, options: DenoiseOptions, recipe: Recipe | None = None) -> Prepared:
    """Correct a stack by a recipe, or find one.

    FormatError if a reference or the recipe does not fit, or no frame has a value.
    """
    if recipe is None:
        recipe = find_recipe(frames, options)
    elif recipe.bad.shape != frames.shape[1:]:
        raise FormatError(
            f"{frames.path}: is {frames.shape[1]} x {frames.shape[2]}, earlier frames were "
            f"{recipe.bad.shape[0]} x {recipe.bad.shape[1]}"
        )
    return Prepared(frames, recipe)


def find_recipe(frames: Frames, options: DenoiseOptions) -> Recipe:
    """Find gaps, saturated areas, bad pixels and the scale of a stack, from a sample read once."""
    if frames.metadata.get("photometric") == "miniswhite" and frames.dtype.kind == "u":
        raise FormatError(
            f"{frames.path}: is min-is-white, expected electrons to be bright; "
            "invert the frames and store them as min-is-black"
        )
    size, raw = frames.shape[1:], _sample(frames)
    dark, gain_map = (_reference(path, size) for path in (options.dark, options.gain_map))
    marked = _reference(options.defects, size)
    flags = bad_pixels.find_flagged(raw, frames.dtype)
    faulty = np.zeros(size, bool) if marked is None else marked != 0
    if options.keep_bad_pixels:
        flags = flags._replace(masked=flags.masked | flags.single)
    else:
        faulty |= flags.single
    hidden = flags.masked | flags.saturated
    rims = bad_pixels.widened(hidden, _RIM) if hidden.any() else hidden

    def measured(faulty: Mask, ignored: Mask) -> tuple[Recipe, list[Stack]]:
        bad = faulty | ignored | rims
        if bad.all():
            bad = faulty | flags.masked
        unknown = Intensity(1.0, 1.0, 0.0, 0.0, ""), NoiseModel(1, 0, 0, "", False, False, ())
        try:
            fill = bad_pixels.plan(faulty | flags.masked)
            recipe = Recipe(dark, gain_map, faulty, flags, bad, fill, *unknown)
            runs = [recipe.apply(run.copy()).frames for run in raw]
            level = NoiseLevel(runs, bad)
            scale = dose.estimate(level, options.gain, options.offset)
            noise = dose.noise_model(level, options.offset)
        except EmdnError as error:
            raise FormatError(f"{frames.path}: {error}") from error
        return replace(recipe, scale=scale, noise=noise), runs

    recipe, runs = measured(faulty, np.zeros(size, bool))
    if recipe.scale.sigma:
        found = bad_pixels.outliers(runs, recipe.scale.gain, recipe.scale.offset) & ~recipe.bad
        if found.any():  # those that stay as they are tell nothing of the noise either
            recipe, _ = measured(faulty if options.keep_bad_pixels else faulty | found, found)
    return recipe


def recipe_of_array(
    stack: Stack, dtype: np.dtype[Any], gain: float | None = None, offset: float | None = None
) -> Recipe:
    """Find the recipe of an array (N, H, W), of which a sample is read, as of a file.

    ``dtype``: what it was before it became float32. ``gain``, ``offset``: None to measure.
    """
    opened = Frames(
        Path("frames"), "array", stack.shape, dtype, "tyx", stack.shape, (Axis(),) * 3,
        lambda start, stop: np.array(stack[start:stop]), lambda: None,
    )  # fmt: skip
    return find_recipe(opened, DenoiseOptions(gain=gain, offset=offset))


def _sample(frames: Frames) -> list[Stack]:
    """Read the frames that are looked at, as the file holds them, in runs.

    Blank frames, and those with fewer values than others, as an acquisition may drop, are left out,
    unless all are blank. FormatError if no frame has a value.
    """
    runs = sample(frames.read, frames.shape[0], frames.shape[1:])
    shares = [np.isfinite(run).mean(axis=(1, 2)) for run in runs]
    most = max(float(share.max()) for share in shares)
    if not most:
        raise FormatError(
            f"{frames.path}: no frame has a pixel that is finite in float32, expected numbers; "
            "take other frames with --frames, or another --dataset"
        )
    full = [run[share > _COMPLETE * most] for run, share in zip(runs, shares, strict=True)]
    full = [run for run in full if len(run)]
    lit = [run[~_constant(run, np.isfinite(run))] for run in full]
    return [run for run in lit if len(run)] or full


def _constant(block: Stack, good: Mask) -> NDArray[np.bool_]:
    """Say which of (k, H, W) have one value in all good pixels, (H, W) or (k, H, W)."""
    where = np.broadcast_to(good, block.shape)
    low = block.min(axis=(1, 2), initial=np.inf, where=where)
    return np.asarray(low == block.max(axis=(1, 2), initial=-np.inf, where=where))


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
