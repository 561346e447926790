"""Denoise arrays: a session that stays open, and the one-call form of it."""

import functools
import logging
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emdn_deploy import neighbours, preprocess, stacks, uncertainty
from emdn_deploy.batching import Batching
from emdn_deploy.config import DenoiseOptions, Device, Precision
from emdn_deploy.dose import Intensity
from emdn_deploy.preprocess import Part, Recipe
from emdn_deploy.session import open_session
from emdn_deploy.stacks import Answer, Stack
from emdn_deploy.uncertainty import Calibration

_log = logging.getLogger(__name__)


class Denoiser:
    """A model that stays open on a device.

    ``model`` is a shipped name, the path of an ``.onnx`` file, or None for the default; ``device``,
    ``threads``, ``precision`` and the errors are those of `emdn_deploy.session.open_session`. It
    pickles as what it was opened with: a process that unpickles it opens the model once. A model
    that sees several frames (``unet@movie``) denoises each with its neighbours in the stack
    (`emdn_deploy.neighbours.beside`); it takes movies (T, H, W) only.
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
        self,
        frames: ArrayLike,
        *,
        gain: float | None = None,
        offset: float | None = None,
        batch: int | None = None,
    ) -> NDArray[np.float32]:
        """Denoise a frame or a stack.

        Parameters
        ----------
        frames
            (..., H, W) or (..., H, W, 1), any real dtype, any units linear in electrons. All
            have one scale: denoise detectors and channels one by one. Bad pixels, gaps,
            saturated areas and NaN are treated as in files. A model that sees several frames
            takes (T, H, W). Of a dask array only a sample is computed now, for the scale.
        gain, offset
            Units per electron and reading without electrons; None to estimate.
        batch
            Frames per run; None chooses.

        Returns
        -------
        ndarray
            float32, in the shape and the units of ``frames``; dask's, if they are.

        Raises
        ------
        EmdnError
            If ``frames`` are not frames of real numbers (FormatError), or ``gain`` or ``offset``
            cannot be theirs.
        """
        return self._as_a_file(frames, gain, offset, batch, with_sigma=False).frames

    def denoise_with_sigma(
        self,
        frames: ArrayLike,
        *,
        gain: float | None = None,
        offset: float | None = None,
        batch: int | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Denoise as `denoise`, in all eight orientations, at eight times the cost.

        Returns the mean of the eight and the standard deviation of its error (see
        `emdn_deploy.uncertainty`), float32 in the shape and units of ``frames``. For a model
        without a calibration that is the raw spread, which is too small; a warning is logged.
        """
        if self.calibration is None:
            _log.warning("sigma: %s", uncertainty.note(self.session.info, None))
        made = self._as_a_file(frames, gain, offset, batch, with_sigma=True)
        assert made.sigma is not None
        return made.frames, made.sigma

    @property
    def calibration(self) -> Calibration | None:
        """Return how the model's error follows from spread and noise, None if unknown."""
        return uncertainty.calibration_of(self.session.info)

    def run(
        self, frames: Stack, scale: Intensity, *, batch: int | None = None, alone: bool = False
    ) -> Stack:
        """Denoise (n, H, W) with a known scale: the frames of `answer`."""
        return self.answer(frames, scale, batch=batch, alone=alone).frames

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
        """Denoise (n, H, W) with a known scale, by tiles where frames are too large.

        Each frame comes back with its own mean (see `emdn_deploy.stacks`), and all as they are
        where ``scale`` says that there is no noise.

        Parameters
        ----------
        around
            How many of the first and of the last frames only stand beside others, for a model
            that sees several; the answer has none of them.
        usable
            (n,), which frames may stand beside others; None for all.
        with_sigma
            Whether to denoise in eight orientations: their mean, and its standard deviation.
        batch
            Frames per run; None chooses.
        alone
            Whether to keep to one CPU thread, the caller's: for callers that run
            several stacks at the same time.
        """
        first, stop = around[0], len(frames) - around[1]
        own = frames[first:stop]
        if not scale.sigma:
            stacks.means(own)
            none = np.zeros(own.shape, np.float32) if with_sigma else None
            return Answer(own.copy(), np.zeros(len(own)), none)
        output, shifts = np.empty(own.shape, np.float32), np.zeros(len(own))
        sigmas = np.empty(own.shape, np.float32) if with_sigma else None
        seen = self.session.info.frames
        numbers = neighbours.beside(first, stop, len(frames), seen, usable)

        def one(part: slice, alone: bool) -> None:
            wanted = stacks.means(own[part], part.start)
            given = own[part] if seen == 1 else frames[numbers[part]]

            def denoised(stack: Stack, into: Stack, share: float = 1) -> Stack:
                self.batching.denoise(stack, scale, into, alone=alone)
                shifts[part] += share * stacks.keep_means(wanted, into)
                return into

            if sigmas is None:
                denoised(given, output[part])
                return

            def turned(stack: Stack) -> Stack:
                into = np.empty((len(stack), *stack.shape[-2:]), np.float32)
                return denoised(stack, into, 1 / uncertainty.ORIENTATIONS)

            output[part], variance = uncertainty.ensemble(turned, given)
            sigmas[part] = uncertainty.estimate(output[part], variance, scale, self.calibration)

        self.batching.each(own.shape, one, batch, alone=alone)
        return Answer(output, shifts, sigmas)

    def block(
        self,
        raw: Stack,
        recipe: Recipe,
        *,
        around: tuple[int, int] = (0, 0),
        with_sigma: bool = False,
        batch: int | None = None,
        alone: bool = False,
    ) -> tuple[Answer, Part]:
        """Denoise some frames (n, H, W) of a stack whose recipe is known: gaps, bad pixels and all.

        The options are those of `answer`, which is returned with the corrected frames themselves,
        without those ``around``.
        """
        first, stop = around[0], len(raw) - around[1]
        parts = [
            recipe.apply(part.copy()) if len(part) else Part(part)
            for part in np.split(raw, (first, stop))
        ]
        seen = np.concatenate([part.frames for part in parts])
        empty = np.concatenate([part.empty for part in parts])
        made = self.answer(
            seen, recipe.scale, around=around, usable=~empty, with_sigma=with_sigma, batch=batch,
            alone=alone,
        )  # fmt: skip
        return parts[1].finish(made), parts[1]

    def _as_a_file(
        self,
        frames: ArrayLike,
        gain: float | None,
        offset: float | None,
        batch: int | None,
        *,
        with_sigma: bool,
    ) -> Answer:
        """Denoise an array as `emdn_deploy.denoise_file` does a file."""
        if isinstance(frames, np.ma.MaskedArray):  # what is masked has no value
            frames = np.ma.filled(frames.astype(np.float32), np.nan)
        array: Any = frames if stacks.is_dask(frames) else np.asarray(frames)
        stack = stacks.as_stack(array)
        if self.session.info.frames > 1:
            stacks.check_one_axis(array.shape, self.session.info.name)
        recipe = preprocess.recipe_of_array(stack, array.dtype, gain, offset)
        for said in recipe.notes if recipe.scale.sigma else (recipe.scale.note,):
            _log.warning("warning: %s", said)
        if stacks.is_dask(stack):
            from emdn_deploy import dask_arrays

            made = dask_arrays.denoised(self, stack, recipe, with_sigma=with_sigma, batch=batch)
        else:
            made, part = self.block(stack, recipe, with_sigma=with_sigma, batch=batch)
            stay = 0 if part.preserved is None else int(part.preserved.sum())
            if recipe.faulty.any() or stay or part.filled:
                _log.warning(
                    "warning: %d bad pixels of every frame and %d of single frames are filled in; "
                    "%d pixels in gaps, saturated areas or empty frames keep their value",
                    recipe.faulty.sum(), part.filled, stay,
                )  # fmt: skip
        errors = None if made.sigma is None else made.sigma.reshape(array.shape)
        return Answer(made.frames.reshape(array.shape), made.shifts, errors)


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
