"""From atoms to a high-resolution TEM image: phase object or few slices, in float32.

The specimen's plane z = 0 is the plane that the defocus counts from. Fields are
periodic squares; a margin of real atoms around the frame takes the wrap-around.
"""

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emdn_train.simulate.mesh import (
    Image,
    Spectrum,
    deposit,
    fast_even,
    padded,
    resize,
    resize_half,
    sharpen,
)
from emdn_train.simulate.optics import Optics, information_limit, transfer
from emdn_train.simulate.scattering import phase_per_scattering, scattering_factor, wavelength
from emdn_train.simulate.structure import Structure

MARGIN_A = 10.0


@dataclass(frozen=True)
class Field:
    """The frame and the periodic square around it.

    Attributes
    ----------
    size
        Side of the frame in pixels.
    pixel_a
        Side of a pixel in angstrom.
    total
        Side of the periodic square in pixels, an FFT-friendly even number.
    """

    size: int
    pixel_a: float
    total: int

    @property
    def side_a(self) -> float:
        """Side of the periodic square in angstrom."""
        return self.total * self.pixel_a


def make_field(size: int, pixel_a: float, margin_a: float = MARGIN_A) -> Field:
    """Surround a frame by at least ``margin_a`` angstrom on every side."""
    return Field(size, pixel_a, fast_even(size + 2 * margin_a / pixel_a))


def exit_wave(
    structure: Structure,
    field: Field,
    voltage_kv: float,
    *,
    sampling_a: float = 0.2,
    slice_a: float = np.inf,
) -> Spectrum:
    """Spectrum of the exit wave, referred to z = 0; the incident wave is 1.

    Parameters
    ----------
    structure
        Must cover the field's periodic square; atoms beyond it are left out.
    sampling_a
        Coarsest sampling of the wave, angstrom.
    slice_a
        Thickness of a slice, angstrom; infinite for one phase object
        (Kirkland 2010, chapters 5 and 6).

    Returns
    -------
    (n, n) complex64 in FFT order, normalised so that its sum over q is the wave at the origin.
    """
    n = fast_even(field.side_a / sampling_a)
    q = np.fft.fftfreq(n, field.side_a / n).astype(np.float32)
    q2 = q[None, :] ** 2 + q[:, None] ** 2
    lam = wavelength(voltage_kv)
    inside = np.abs(structure.positions[:, :2]).max(1) < field.side_a / 2
    z = structure.positions[:, 2]
    layer = np.zeros(len(z), np.int64)
    if np.isfinite(slice_a) and inside.any():
        layer = ((z - z[inside].min()) / slice_a).astype(np.int64)
    layers = np.unique(layer[inside])
    wave: Spectrum | None = None
    height = 0.0
    for index in layers:
        chosen = inside & (layer == index)
        phase = _phase(structure, chosen, field.side_a, n, voltage_kv)
        transmission = np.empty((n, n), np.complex64)
        transmission.real, transmission.imag = np.cos(phase), np.sin(phase)
        mean_height = float(z[chosen].mean())
        if wave is None:
            wave = scipy.fft.fft2(transmission, overwrite_x=True)
        else:
            wave *= _propagator(q2, lam, mean_height - height)
            if len(layers) > 1:
                wave[q2 > (2 / 3 * q.max()) ** 2] = 0
            wave = scipy.fft.fft2(scipy.fft.ifft2(wave) * transmission, overwrite_x=True)
        height = mean_height
    if wave is None:
        wave = np.zeros((n, n), np.complex64)
        wave[0, 0] = n * n
    if height:
        wave *= _propagator(q2, lam, -height)
    return np.asarray(wave / np.float32(n * n))


def image(
    wave: Spectrum,
    field: Field,
    optics: Optics,
    *,
    sampling_a: float = 0.22,
) -> Image:
    """Relative intensity of the frame, (size, size), vacuum = 1.

    Parameters
    ----------
    wave
        Result of ``exit_wave`` at the optics' voltage.
    sampling_a
        Coarsest sampling of the image before it is interpolated to pixels.
    """
    n = min(fast_even(field.side_a / sampling_a), wave.shape[0])
    q = np.fft.fftfreq(n, field.side_a / n).astype(np.float32)
    m = min(n, fast_even(2 * information_limit(optics) * field.side_a))
    passing = np.fft.fftfreq(m, field.side_a / m).astype(np.float32)
    passed = resize(wave, m) * transfer(optics, passing, passing)
    psi = scipy.fft.ifft2(padded(passed, n), norm="forward", overwrite_x=True)
    intensity = psi.real**2 + psi.imag**2
    spectrum = scipy.fft.rfft2(intensity, norm="forward")
    damping = np.exp(-2 * (np.pi * optics.blur_a * q) ** 2)
    spectrum *= damping[:, None] * damping[None, : n // 2 + 1]
    full = scipy.fft.irfft2(
        resize_half(spectrum, field.total), s=(field.total, field.total), norm="forward"
    )
    start = (field.total - field.size) // 2
    frame = full[start : start + field.size, start : start + field.size]
    return np.ascontiguousarray(np.maximum(frame, 0), dtype=np.float32)


def to_pixels(xy: NDArray[np.float64], field: Field) -> NDArray[np.float32]:
    """Turn (n, 2) angstrom into (x, y) pixels of the frame; pixel centres are integers."""
    start = (field.total - field.size) // 2
    return np.asarray(xy / field.pixel_a + field.total / 2 - start, np.float32)


def _phase(
    structure: Structure, chosen: NDArray[np.bool_], side: float, n: int, voltage_kv: float
) -> Image:
    """Phase shift of the chosen atoms, (n, n), rad, with Debye-Waller factors."""
    q = np.fft.fftfreq(n, side / n).astype(np.float32)
    half = np.fft.rfftfreq(n, side / n).astype(np.float32)
    q2 = half[None, :] ** 2 + q[:, None] ** 2
    total = np.zeros(q2.shape, np.complex64)
    kinds = np.stack([structure.numbers, np.round(structure.vibration, 4)], 1)[chosen]
    xy = structure.positions[chosen, :2]
    for number, u in np.unique(kinds, axis=0):
        mesh = deposit(xy[(kinds[:, 0] == number) & (kinds[:, 1] == u)], side, n)
        factor = scattering_factor(int(number), q2)
        factor *= np.exp(np.float32(-2 * (np.pi * u) ** 2) * q2)
        total += scipy.fft.rfft2(mesh) * factor
    sharpen(total, n)
    total *= np.float32(phase_per_scattering(voltage_kv) * (n / side) ** 2)
    return np.asarray(scipy.fft.irfft2(total, s=(n, n)), np.float32)


def _propagator(q2: Image, lam: float, distance: float) -> Spectrum:
    phase = np.float32(np.pi * lam * distance) * q2
    result = np.empty(q2.shape, np.complex64)
    result.real, result.imag = np.cos(phase), -np.sin(phase)
    return result
