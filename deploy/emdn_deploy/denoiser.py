"""Denoise arrays: a model that stays open, and the one-call form of it.

The mean of a frame of H x W pixels is known far better from the frame itself, to
1 / sqrt(electrons), than any net makes of it. So what the net lost or added, on average
over the frame, is given back to every pixel alike. A factor instead of a shift would scale
the error of a bright place over the frame.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emdn_deploy import preprocess, uncertainty
from emdn_deploy.batching import Batching, Stack, beside, blocks, ordered
from emdn_deploy.config import DenoiseOptions, Device, Precision
from emdn_deploy.dose import Intensity
from emdn_deploy.preprocess import Answer, Part, Recipe
from emdn_deploy.readers.frames import channels_last, frames_last
from emdn_deploy.session import open_session
from emdn_deploy.uncertainty import Calibration
from emdn_models.errors import FormatError

MOVIE_FRAMES = 5
"""Frames of a stack from which on it is looked at as a movie."""
DRIFT = 4
"""Largest shift between neighbours, in pixels, at which they are looked for."""
_ALIKE = 0.5
_PAIRS, _SIDE = 6, 512

_log = logging.getLogger(__name__)


class Denoiser:
    """A model that stays open on a device.

    ``model`` is a shipped name, the path of an ``.onnx`` file, or None for the default; ``device``,
    ``threads``, ``precision`` and the errors are those of `emdn_deploy.session.open_session`. It
    pickles as what it was opened with: a process that unpickles it opens the model once. A model
    that sees several frames (``unet@movie``) denoises each with its neighbours in the stack
    (`emdn_deploy.batching.beside`); it takes movies (T, H, W) only.
    """

    def __init__(
        self,
        model: str | PathLike[str] | None = None,
        device: Device = "cpu",
        threads: int | None = None,
        precision: Precision = "fp32",
    ) -> None:
        path = None if model is None else Path(model)
        name = str(path.absolute()) if path is not None and path.is_file() else model
        self.opening = name, device, threads, precision
        self.session = open_session(model, device, threads, precision)
        self.batching = Batching(self.session)

    def __reduce__(self) -> tuple[Any, ...]:
        return opened, self.opening

    @classmethod
    def of(cls, options: DenoiseOptions) -> Self:
        """Open what the flags of ``emdn-deploy denoise`` name."""
        return cls(options.model, options.device, options.threads, options.precision)

    def denoise(
        self, frames: ArrayLike, *, gain: float | None = None, offset: float | None = None
    ) -> NDArray[np.float32]:
        """Denoise frames (..., H, W) or (..., H, W, 1); return float32 in their shape and units.

        ``frames`` have any real dtype, any units linear in electrons, and one scale: denoise
        detectors and channels one by one. Bad pixels, gaps, saturated areas and NaN are treated as
        in files. A model that sees several frames takes (T, H, W). Of a dask array only a sample
        is computed now, for the scale. ``gain``, ``offset``: units per electron and reading
        without electrons; None to estimate. Raises FormatError if ``frames`` are not such, and
        EmdnError if ``gain`` or ``offset`` cannot be theirs.
        """
        return self._of_array(frames, gain, offset, with_sigma=False).frames

    def denoise_with_sigma(
        self, frames: ArrayLike, *, gain: float | None = None, offset: float | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Denoise as `denoise`, in all eight orientations, at eight times the cost.

        Returns the mean of the eight and the standard deviation of its error (see
        `emdn_deploy.uncertainty`), float32 in the shape and units of ``frames``. For a model
        without a calibration that is the raw spread, which is too small; a warning is logged.
        """
        if self.calibration is None:
            _log.warning("sigma: %s", uncertainty.note(self.session.info, None))
        made = self._of_array(frames, gain, offset, with_sigma=True)
        assert made.sigma is not None
        return made.frames, made.sigma

    @property
    def calibration(self) -> Calibration | None:
        """Return how the model's error follows from spread and noise, None if unknown."""
        return uncertainty.calibration_of(self.session.info)

    def run(self, frames: Stack, scale: Intensity) -> Stack:
        """Denoise (n, H, W) with a known scale: the frames of `answer`."""
        return self.answer(frames, scale).frames

    def answer(
        self,
        frames: Stack,
        scale: Intensity,
        *,
        around: tuple[int, int] = (0, 0),
        usable: NDArray[np.bool_] | None = None,
        with_sigma: bool = False,
        batch: int | None = None,
        alone: bool = False,
    ) -> Answer:
        """Denoise (n, H, W), finite, with a known scale; each frame keeps its mean.

        Frames come back as they are where ``scale`` says that there is no noise. For a model that
        sees several, the first and last ``around`` frames only stand beside others, and have no
        answer; (n,) ``usable`` says which frames may, None for all. ``with_sigma``: denoise in
        eight orientations, for their mean and its standard deviation. ``batch``: frames per run;
        None chooses. ``alone``: keep to one CPU thread, the caller's, as others run beside it.
        """
        first, stop = around[0], len(frames) - around[1]
        own = frames[first:stop]
        output, shifts = own.astype(np.float32), np.zeros(len(own))
        sigmas = np.zeros(own.shape, np.float32) if with_sigma else None
        if not scale.sigma:
            return Answer(output, shifts, sigmas)
        seen, size = self.session.info.frames, own.shape[1:]
        numbers = beside(first, stop, len(frames), seen, usable)
        parallel, step = self.batching.plan(len(own), size, batch)
        if alone:
            parallel, step = 1, batch or self.batching.frames_per_run(size, alone=True)
        single = alone or parallel > 1

        def one(span: tuple[int, int]) -> None:
            part = slice(*span)
            means = own[part].mean(axis=(1, 2), dtype=np.float64)
            share = 1 / uncertainty.ORIENTATIONS if with_sigma else 1.0

            def denoised(stack: Stack) -> Stack:
                made = self.batching.denoise(stack, scale, alone=single)
                added = means - made.mean(axis=(1, 2), dtype=np.float64)
                made += added.astype(np.float32)[:, None, None]
                shifts[part] += share * added
                return made

            given = own[part] if seen == 1 else frames[numbers[part]]
            if sigmas is None:
                output[part] = denoised(given)
                return
            output[part], variance = uncertainty.ensemble(denoised, given)
            sigmas[part] = uncertainty.estimate(output[part], variance, scale, self.calibration)

        list(ordered(one, blocks(0, len(own), step), parallel))
        return Answer(output, shifts, sigmas)

    def block(
        self,
        raw: Stack,
        recipe: Recipe,
        *,
        around: tuple[int, int] = (0, 0),
        with_sigma: bool = False,
        alone: bool = False,
    ) -> tuple[Answer, Part]:
        """Denoise some frames (n, H, W) of a stack whose recipe is known: gaps, bad pixels and all.

        The options are those of `answer`, which is returned with the corrected frames themselves,
        without those ``around``.
        """
        own, part = slice(around[0], len(raw) - around[1]), recipe.apply(raw.copy())
        made = self.answer(
            part.frames, recipe.scale, around=around, usable=~part.empty, with_sigma=with_sigma,
            alone=alone,
        )  # fmt: skip
        if part.preserved is not None and part.values is not None:
            part = replace(part, preserved=part.preserved[own], values=part.values[own])
        part = replace(part, frames=part.frames[own])
        return part.finish(made), part

    def _of_array(
        self, frames: ArrayLike, gain: float | None, offset: float | None, *, with_sigma: bool
    ) -> Answer:
        """Denoise an array as `emdn_deploy.denoise_file` does a file."""
        if isinstance(frames, np.ma.MaskedArray):  # what is masked has no value
            frames = np.ma.filled(frames.astype(np.float32), np.nan)
        array: Any = frames if is_dask(frames) else np.asarray(frames)
        stack = as_stack(array)
        if self.session.info.frames > 1:
            check_one_axis(array.shape, self.session.info.name)
        recipe = preprocess.recipe_of_array(stack, array.dtype, gain, offset)
        for said in recipe.notes if recipe.scale.sigma else (recipe.scale.note,):
            _log.warning("warning: %s", said)
        if is_dask(stack):
            made = self._lazily(stack, recipe, with_sigma=with_sigma)
        else:
            made, part = self.block(stack, recipe, with_sigma=with_sigma)
            stay = 0 if part.preserved is None else int(part.preserved.sum())
            if recipe.faulty.any() or stay or part.filled:
                _log.warning(
                    "warning: %d bad pixels of every frame and %d of single frames are filled in; "
                    "%d pixels in gaps, saturated areas or empty frames keep their value",
                    recipe.faulty.sum(), part.filled, stay,
                )  # fmt: skip
        errors = None if made.sigma is None else made.sigma.reshape(array.shape)
        return Answer(made.frames.reshape(array.shape), made.shifts, errors)

    def _lazily(self, stack: Any, recipe: Recipe, *, with_sigma: bool) -> Answer:
        """Denoise a dask array (N, H, W) into others, block by block, without known shifts."""
        from dask.array import overlap

        half, stack = self.session.info.frames // 2, stack.rechunk({1: -1, 2: -1})
        if half:  # most frames of a block are no neighbours of others
            least = min(4 * half, len(stack))
            stack = stack.rechunk({0: overlap.ensure_minimum_chunksize(least, stack.chunks[0])})
        last = stack.numblocks[0] - 1

        def block(raw: Stack, block_info: Any) -> NDArray[np.float32]:
            place = block_info[0]["chunk-location"][0]
            around = half if place else 0, half if place < last else 0
            # Other blocks are computed beside it, by dask's own threads.
            made, _ = self.block(raw, recipe, around=around, with_sigma=with_sigma, alone=last > 0)
            return np.stack([made.frames] if made.sigma is None else [made.frames, made.sigma])

        chunks, meta = ((1 + with_sigma,), *stack.chunks), np.zeros((0, 0, 0, 0), np.float32)
        seen = overlap.overlap(stack, {0: half}, "none")
        frames, *sigma = seen.map_blocks(block, chunks=chunks, new_axis=0, meta=meta)
        return Answer(frames, np.full(len(stack), np.nan), *sigma)


@functools.cache
def opened(
    model: str | PathLike[str] | None, device: Device, threads: int | None, precision: Precision
) -> Denoiser:
    """Open a model once in a process; see `Denoiser`."""
    return Denoiser(model, device, threads, precision)


def denoise(
    frames: ArrayLike,
    model: str | PathLike[str] | None = None,
    device: Device = "cpu",
    precision: Precision = "fp32",
) -> NDArray[np.float32]:
    """Denoise frames (..., H, W) in one call, as `Denoiser.denoise`."""
    return Denoiser(model, device, precision=precision).denoise(frames)


def as_stack(frames: ArrayLike) -> Stack:
    """Check an array (..., H, W), or (..., H, W, 1), and return it as (N, H, W) float32.

    A dask array stays one. Raises FormatError, which names the remedy, if the rank or the dtype is
    wrong, or the last axis looks like channels.
    """
    lazy = is_dask(frames)
    array: Any = frames if lazy else np.asarray(frames)
    shape = array.shape
    if array.ndim < 2 or 0 in shape or array.dtype.kind not in "buif":
        raise FormatError(
            f"frames has shape {shape} and dtype {array.dtype}, expected (..., H, W) real numbers"
        )
    if array.ndim > 2 and shape[-1] == 1 < shape[-2]:
        array = array[..., 0]
    elif channels_last(shape):
        raise FormatError(
            f"frames has shape {shape}, expected (..., H, W), and the last axis looks like "
            "channels: pass one of them, such as frames[..., 0], or "
            "numpy.moveaxis(frames, -1, 0) if it counts frames"
        )
    elif frames_last(shape):
        _log.warning(
            "warning: frames of shape %s are taken as %d of %d x %d; pass "
            "numpy.moveaxis(frames, -1, 0) if they are %d of %d x %d",
            shape, *shape, shape[2], *shape[:2],
        )  # fmt: skip
    plain = array.astype(np.float32) if lazy else np.ascontiguousarray(array, dtype=np.float32)
    stack: Stack = plain.reshape(-1, *array.shape[-2:])
    return stack


def is_dask(array: object) -> bool:
    """Say whether an array is one of dask's, without importing dask."""
    return type(array).__module__.startswith("dask.")


def check_one_axis(shape: tuple[int, ...], model: str) -> None:
    """Refuse a lone frame, and frames along several axes, for a model that sees neighbours."""
    frame = shape[-3:] if len(shape) > 2 and shape[-1] == 1 < shape[-2] else shape[-2:]
    if sum(length > 1 for length in shape[: -len(frame)]) != 1:
        raise FormatError(
            f"frames has shape {shape}, and {model} sees neighbours in time: pass (T, H, W), one "
            "channel or position at a time, or take another model"
        )


def is_movie(
    read: Callable[[int], Stack], denoise: Callable[[Stack], Stack], count: int, offset: float
) -> tuple[bool, str]:
    """Say whether neighbours help to denoise a stack, unless they clearly show something else.

    ``read`` gives a frame (H, W) by its number, ``denoise`` maps (n, H, W) to the same; ``offset``:
    the reading without electrons. A denoised frame is the template that is looked for in its noisy
    neighbour, shifted by up to `DRIFT` pixels: the correlation is an unbiased estimate of the share
    of structure that both show, with an error known from the counting noise. Also returned are the
    medians over some pairs, for people.
    """
    found = []
    for number in np.unique(np.linspace(0, count - 2, _PAIRS).astype(int)).tolist():
        pair = np.stack([_middle(read(number + step)) for step in (0, 1)])
        levels = pair.mean((1, 2), dtype=np.float64) - offset
        if not levels.all() or not pair.std((1, 2)).all():
            continue  # an empty frame
        template, after = (
            (frame - frame.mean(dtype=np.float64)) / level
            for frame, level in zip((denoise(pair[:1])[0], pair[1]), levels, strict=True)
        )
        if power := float((template**2).sum()):
            spectrum = np.fft.rfft2(after) * np.fft.rfft2(template).conj()
            shared = np.fft.irfft2(spectrum, after.shape) / power
            reach = [min(DRIFT, (side - 1) // 2) for side in shared.shape]
            near = np.roll(shared, reach, (0, 1))[: 2 * reach[0] + 1, : 2 * reach[1] + 1]
            y, x = np.unravel_index(int(near.argmax()), near.shape)
            drift = np.hypot(y - reach[0], x - reach[1])
            found.append((near.max(), after.std() / power**0.5, drift))
    if not found:
        return True, "neighbouring frames show nothing to compare"
    alike, error, drift = np.median(found, axis=0)
    error /= len(found) ** 0.5
    share = f"{100 * alike:.0f} ± {100 * error:.1f} % alike"
    if alike + 2 * error > _ALIKE:
        return True, f"neighbouring frames are {share}, drift {drift:.1f} pixels a frame"
    return False, f"neighbouring frames are only {share}, within {DRIFT} pixels"


def _middle(frame: Stack) -> Stack:
    starts = [max(0, side - _SIDE) // 2 for side in frame.shape]
    rows, columns = (slice(start, start + _SIDE) for start in starts)
    return np.ascontiguousarray(frame[rows, columns])
