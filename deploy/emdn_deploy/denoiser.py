"""Denoise arrays: a session that stays open, and the one-call form of it."""

import logging
from dataclasses import dataclass
from os import PathLike
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emdn_deploy import ensemble, intensity, portions, room, sigma, stacks
from emdn_deploy.intensity import Intensity
from emdn_deploy.options import DenoiseOptions, Device, Precision
from emdn_deploy.room import Room
from emdn_deploy.session import open_session
from emdn_deploy.sigma import Calibration
from emdn_deploy.stacks import Stack

Means = NDArray[np.float64]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Answer:
    """What becomes of a stack (n, H, W).

    Attributes
    ----------
    frames
        (n, H, W), each with the mean of its input.
    shifts
        (n,) what was added to each so that it is: mean(in) - mean(out of the net).
    sigma
        (n, H, W), standard deviation of the error; None where it was not asked for.
    """

    frames: Stack
    shifts: NDArray[np.float64]
    sigma: Stack | None = None


class Denoiser:
    """A model held open on a device.

    Parameters
    ----------
    model
        A shipped name, the path of an ``.onnx`` file, or None for the default. Of
        ``MODEL@auto`` the model itself: an array does not say how it was recorded.
    device
        ``cuda`` never falls back; ``auto`` says what it took.
    threads
        CPU threads; None takes those that affinity mask and quota allow.
    precision
        Which variant of the model: ``fp32`` for the model itself.

    Raises
    ------
    ModelError, DeviceError
        As `emdn_deploy.session.open_session`.
    """

    def __init__(
        self,
        model: str | PathLike[str] | None = None,
        device: Device = "cpu",
        threads: int | None = None,
        precision: Precision = "fp32",
    ) -> None:
        self.session = open_session(model, device, threads, precision)
        self.room = Room(self.session.pixels_that_fit, few_shapes=self.session.device != "cpu")

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
            have one scale: denoise detectors and channels one by one.
        gain, offset
            Units per electron and reading without electrons; None to estimate.
        batch
            Frames per run; None chooses.

        Returns
        -------
        ndarray
            float32, in the shape and the units of ``frames``.

        Raises
        ------
        FormatError
            If ``frames`` are not frames of finite real numbers on one scale.
        EmdnError
            If ``gain`` or ``offset`` cannot be that of such frames.
        """
        stack, scale = self._scaled(frames, gain, offset)
        return self.run(stack, scale, batch=batch).reshape(np.shape(frames))

    def denoise_with_sigma(
        self,
        frames: ArrayLike,
        *,
        gain: float | None = None,
        offset: float | None = None,
        batch: int | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Denoise a frame or a stack in all eight orientations, at eight times the cost.

        Parameters
        ----------
        frames, gain, offset, batch
            As `denoise`.

        Returns
        -------
        ndarray, ndarray
            float32 each, in the shape and units of ``frames``: the mean of the eight, and
            the standard deviation of its error (see `emdn_deploy.sigma`). For a model
            without a calibration that is the raw spread, which is too small; a warning is
            logged.

        Raises
        ------
        FormatError, EmdnError
            As `denoise`.
        """
        stack, scale = self._scaled(frames, gain, offset)
        if self.calibration is None:
            _log.warning("sigma: %s", sigma.note(self.session.info, None))
        mean, deviation = self.run_with_sigma(stack, scale, batch=batch)
        return mean.reshape(np.shape(frames)), deviation.reshape(np.shape(frames))

    @property
    def calibration(self) -> Calibration | None:
        """Return how the model's error follows from spread and noise, None if unknown."""
        return sigma.calibration_of(self.session.info)

    def run(
        self, frames: Stack, scale: Intensity, *, batch: int | None = None, alone: bool = False
    ) -> Stack:
        """Denoise (n, H, W) with a known scale, by tiles where frames are too large.

        Each frame comes back with its own mean (see `emdn_deploy.stacks`).

        Parameters
        ----------
        batch
            Frames per run; None chooses.
        alone
            Whether to keep to one CPU thread, the caller's: for callers that run
            several stacks at the same time.
        """
        return self.answer(frames, scale, batch=batch, alone=alone).frames

    def run_with_sigma(
        self, frames: Stack, scale: Intensity, *, batch: int | None = None, alone: bool = False
    ) -> tuple[Stack, Stack]:
        """Denoise (n, H, W) in eight orientations: their mean, and its sigma; see `run`."""
        made = self.answer(frames, scale, with_sigma=True, batch=batch, alone=alone)
        assert made.sigma is not None
        return made.frames, made.sigma

    def answer(
        self,
        frames: Stack,
        scale: Intensity,
        *,
        with_sigma: bool = False,
        batch: int | None = None,
        alone: bool = False,
    ) -> Answer:
        """Do what `run`, or `run_with_sigma`, does, and say by how much means were off.

        Where ``scale`` says that there is no noise, frames come back as they are.
        """
        if not scale.sigma:
            stacks.means(frames)
            none = np.zeros(frames.shape, np.float32) if with_sigma else None
            return Answer(frames.copy(), np.zeros(len(frames)), none)
        if (unit := scale.unit) != 1:
            made = self.answer(
                frames * np.float32(1 / unit), scale.scaled(1 / unit),
                with_sigma=with_sigma, batch=batch, alone=alone,
            )  # fmt: skip
            errors = None if made.sigma is None else made.sigma * np.float32(unit)
            return Answer(made.frames * np.float32(unit), made.shifts * unit, errors)
        output, shifts = np.empty(frames.shape, np.float32), np.empty(len(frames))
        sigmas = np.empty(frames.shape, np.float32) if with_sigma else None

        def one(part: slice, alone: bool) -> None:
            wanted = stacks.means(frames[part], part.start)
            if sigmas is None:
                shifts[part] = self._run(frames[part], scale, output[part], wanted, alone=alone)
                return
            shifts[part] = 0

            def turned(stack: Stack) -> Stack:
                made = np.empty(stack.shape, np.float32)
                shift = self._run(stack, scale, made, wanted, alone=alone)
                shifts[part] += shift / ensemble.ORIENTATIONS
                return made

            output[part], variance = ensemble.apply(turned, frames[part])
            sigmas[part] = sigma.estimate(output[part], variance, scale, self.calibration)

        portions.each(self.session, self.room, frames.shape, one, batch, alone=alone)
        return Answer(output, shifts, sigmas)

    def lanes(self, count: int, size: tuple[int, ...]) -> int:
        """Choose how many of ``count`` frames of (H, W) are run side by side."""
        return portions.side_by_side(self.session, self.room, count, size)

    def batch_for(self, size: tuple[int, ...], *, alone: bool = False) -> int:
        """Choose the frames per run for frames of (H, W); see `run`."""
        return portions.together(self.session, self.room, size, alone=alone)

    def _scaled(
        self, frames: ArrayLike, gain: float | None, offset: float | None
    ) -> tuple[Stack, Intensity]:
        """Check an array and find its scale."""
        stack = stacks.as_stack(frames)
        count, height, width = stack.shape
        size = height, width

        def read(start: int, stop: int) -> Stack:
            return stack[start:stop]

        lanes = self.lanes(count, size)
        scale = intensity.estimate(read, count, size, gain, offset, lanes=lanes)
        if not scale.sigma:
            _log.warning("warning: %s", scale.note)
        return stack, scale

    def _run(
        self, frames: Stack, scale: Intensity, out: Stack, wanted: Means, *, alone: bool
    ) -> Means:
        """Denoise one batch into ``out``, and shift its frames to the means that are wanted."""
        room.denoise(self.session, self.room, frames, scale, out, alone=alone)
        return stacks.keep_means(wanted, out)


def denoise(
    frames: ArrayLike,
    model: str | PathLike[str] | None = None,
    device: Device = "cpu",
    precision: Precision = "fp32",
) -> NDArray[np.float32]:
    """Denoise frames (..., H, W) in one call; see `Denoiser` for several.

    Returns
    -------
    ndarray
        float32, in the shape and the units of ``frames``.

    Raises
    ------
    EmdnError
        As `Denoiser` and `Denoiser.denoise`.
    """
    return Denoiser(model, device, precision=precision).denoise(frames)
