"""From what a file holds to frames that can be denoised: references, bad pixels, gaps, scale."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import bad_pixels, dose, noise_model
from emdn_deploy.bad_pixels import Fill, Flagged, Mask
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.dose import Intensity
from emdn_deploy.noise_level import NoiseLevel, Sample, sample_starts
from emdn_deploy.readers import Choice, Frames, open_frames
from emdn_deploy.readers.frames import WHITE, Axis
from emdn_models.errors import EmdnError, FormatError

Stack = NDArray[np.float32]
Read = Callable[[int, int], Stack]

_RIM = 2  # pixels around gaps and saturated areas, of which a network saw one side only
# Pixels that differ from most of a frame, for none to do so in another to be no chance.
_EVENTS = 30
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
    filled: int = 0  # pixels that were filled in in these frames only
    missing: int = 0  # pixels that have no value in these frames only, in areas

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
    """What is done to every frame of a stack before it is denoised, and its scale.

    Frames become (frames - dark) * gain_map. All arrays are (H, W).
    """

    dark: Stack | None
    gain_map: Stack | None
    faulty: Mask  # the pixels that are filled in from their neighbours
    flags: Flagged  # gaps and saturated areas, whose value is preserved
    bad: Mask  # all of these, and the rims of areas: the pixels that tell nothing of the noise
    fill: Fill  # fills in what is faulty, and what the network is not to see
    scale: Intensity
    blank: bool = False  # whether frames of one value are no chance, and pass as they are
    notes: tuple[str, ...] = ()  # what the frames show that denoising does not mend, for people

    def apply(self, block: Stack) -> Part:
        """Correct frames (k, H, W), as the file holds them, in place and make them finite."""
        static = self.flags.masked | self.faulty
        lost, saturated = ~np.isfinite(block) & ~static, self.flags.saturated_in(block)
        blank = _constant(block, ~static) & self.blank
        # Areas are preserved, and hidden from the network; single pixels are filled in.
        hidden = saturated.copy()
        for index in np.flatnonzero(lost.any(axis=(1, 2))):
            hidden[index] |= bad_pixels.areas(lost[index])
        hidden[(hidden | lost | static).all(axis=(1, 2)) | blank] = True
        single, preserved = lost & ~hidden, hidden | self.flags.masked
        values = block.copy() if preserved.any() else None
        if self.dark is not None:
            block -= self.dark
        if self.gain_map is not None:
            block *= self.gain_map
        if values is not None:  # a flag is no intensity, all else is corrected
            values[saturated], values[blank] = block[saturated], block[blank]
        self.fill.apply(block)
        for frame, away, gone in zip(block, hidden, single, strict=True):
            if away.all():
                frame[:] = self.scale.offset + self.scale.gain * self.scale.scale
            elif away.any():
                bad_pixels.fill_nearest(frame, away, away | gone)
            if gone.any():
                bad_pixels.plan(gone).apply(frame[None])
        area = lost & hidden & ~hidden.all(axis=(1, 2), keepdims=True)
        counts = (int(np.count_nonzero(one)) for one in (saturated, single, area))
        return Part(block, None if values is None else preserved, values, *counts)


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

    @property
    def bad_pixels(self) -> int:
        """Return how many pixels are filled in from their neighbours, in every frame."""
        return int(self.recipe.faulty.sum())

    @property
    def gap_pixels(self) -> int:
        """Return how many pixels of every frame lie in gaps, or are flagged, and preserved."""
        return int(self.recipe.flags.gaps.sum())


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
    size = frames.shape[1:]
    raw, blank = _sample(frames)
    dark, gain_map = (_reference(path, size) for path in (options.dark, options.gain_map))
    marked = _reference(options.defects, size)
    flags = bad_pixels.find_flagged(raw.runs, frames.dtype)
    faulty = np.zeros(size, bool) if marked is None else marked != 0
    if options.keep_bad_pixels:
        flags = flags._replace(masked=flags.masked | flags.single)
    else:
        faulty |= flags.single

    def measured(faulty: Mask, ignored: Mask) -> tuple[Recipe, Sample, NoiseLevel]:
        hidden = flags.masked | flags.saturated
        bad = faulty | ignored | (bad_pixels.widened(hidden, _RIM) if hidden.any() else hidden)
        if bad.all():
            bad = faulty | flags.masked
        try:
            fill = bad_pixels.plan(faulty | flags.masked)
        except ValueError as error:
            raise FormatError(f"{frames.path}: {error} in any frame that was looked at") from error
        unscaled = Intensity(1.0, 1.0, 0.0, 0.0, "")
        recipe = Recipe(dark, gain_map, faulty, flags, bad, fill, unscaled, blank)
        sample = Sample([recipe.apply(run.copy()).frames for run in raw.runs], raw.count)
        scale, level = _measure(frames, sample, options, bad)
        return replace(recipe, scale=scale), sample, level

    recipe, sample, level = measured(faulty, np.zeros(size, bool))
    if not recipe.scale.sigma:
        return recipe
    found = bad_pixels.outliers(sample.runs, recipe.scale.gain, recipe.scale.offset) & ~recipe.bad
    if found.any():  # those that stay as they are tell nothing of the noise either
        keep = options.keep_bad_pixels
        recipe, sample, level = measured(faulty if keep else faulty | found, found)
    above = abs(recipe.scale.gain * recipe.scale.scale)
    return replace(recipe, notes=tuple(noise_model.line_notes(level, above)))


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


def _measure(
    frames: Frames, sample: Sample, options: DenoiseOptions, bad: Mask
) -> tuple[Intensity, NoiseLevel]:
    white, offset = frames.metadata.get(WHITE), options.offset
    if white is not None:
        # Electrons count down from white: a gain below 0.
        sample = Sample([float(white) - run for run in sample.runs], sample.count)
        offset = None if offset is None else float(white) - offset
    level = NoiseLevel(sample, bad)
    try:
        scale = dose.estimate(level, options.gain, offset)
    except EmdnError as error:
        raise FormatError(f"{frames.path}: {error}") from error
    if white is not None:
        note = f"{scale.note}; min-is-white: electrons are taken to count down from {white}"
        offset = float(white) - scale.offset
        scale = replace(scale, gain=-scale.gain, offset=offset, note=note)
    return scale, level


def _sample(frames: Frames) -> tuple[Sample, bool]:
    """Read the frames that are looked at, as the file holds them.

    Runs with blank frames, or such with fewer values than others, as an acquisition may drop, are
    left out; where all are, the other frames are taken together. Also returned is whether blank
    ones are left out: there are others, and not sparse ones. FormatError if no frame has a value.
    """
    count, size = frames.shape[0], frames.shape[1:]
    starts, length = sample_starts(count, size)
    runs = [frames.read(start, start + length) for start in starts]
    shares = [np.isfinite(run).mean(axis=(1, 2)) for run in runs]
    most = max(float(share.max()) for share in shares)
    for blank in (True, False):
        usable = [
            (share > 0) & (share > _COMPLETE * most) & ~(blank & _constant(run, np.isfinite(run)))
            for run, share in zip(runs, shares, strict=True)
        ]
        some = np.concatenate([run[one] for run, one in zip(runs, usable, strict=True)])[:length]
        if not len(some):
            continue
        if blank and np.count_nonzero(some[0] != np.nanmedian(some[0])) < _EVENTS:
            continue
        whole = [run for run, one in zip(runs, usable, strict=True) if one.all()]
        return Sample(whole or [some], count if whole else len(some)), blank
    raise FormatError(
        f"{frames.path}: no frame has a finite pixel, expected numbers; take other frames "
        "with --frames, or another --dataset"
    )


def _constant(block: Stack, good: Mask) -> NDArray[np.bool_]:
    """Say which of (k, H, W) have one value in all good pixels, (H, W) or (k, H, W)."""
    where = True if good.all() else np.broadcast_to(good, block.shape)
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
