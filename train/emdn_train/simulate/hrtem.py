"""From atoms to a high-resolution TEM image: phase object or few slices, in float32.

The specimen's plane z = 0 is the plane that the defocus counts from. Fields are
periodic squares; a margin of real atoms around the frame takes the wrap-around.
"""

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emdn_train.simulate.optics import (
    Optics,
    information_limit,
    phase_per_scattering,
    scattering_factor,
    transfer,
    wavelength,
)
from emdn_train.simulate.structure import Structure

Image = NDArray[np.float32]
Spectrum = NDArray[np.complex64]

MARGIN_A = 10.0
_IMAGE_A = 0.22  # coarsest sampling of an image before it is interpolated to pixels
_SPLINE = 6


@dataclass(frozen=True)
class Field:
    """The frame, ``size`` pixels of ``pixel_a`` angstrom, in a periodic square of ``total``."""

    size: int
    pixel_a: float
    total: int

    @property
    def side_a(self) -> float:
        """Side of the periodic square in angstrom."""
        return self.total * self.pixel_a

    def frame(self, half: Spectrum) -> Image:
        """Interpolate the half spectrum of the square to pixels and cut the frame out."""
        shape = (self.total, self.total)
        full = scipy.fft.irfft2(resize_half(half, self.total), s=shape, norm="forward")
        start = (self.total - self.size) // 2
        return np.asarray(full[start : start + self.size, start : start + self.size])


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

    (n, n) complex64 in FFT order, normalised so that its sum over q is the wave at the origin.
    The structure must cover the field's periodic square. ``sampling_a`` is the coarsest sampling
    of the wave; ``slice_a`` the thickness of a slice, infinite for one phase object (Kirkland
    2010, chapters 5 and 6).
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


def image(wave: Spectrum, field: Field, optics: Optics) -> Image:
    """Relative intensity of the frame, (size, size), vacuum = 1, of an `exit_wave`."""
    n = min(fast_even(field.side_a / _IMAGE_A), wave.shape[0])
    q = np.fft.fftfreq(n, field.side_a / n).astype(np.float32)
    m = min(n, fast_even(2 * information_limit(optics) * field.side_a))
    passing = np.fft.fftfreq(m, field.side_a / m).astype(np.float32)
    passed = resize(wave, m) * transfer(optics, passing, passing)
    psi = scipy.fft.ifft2(padded(passed, n), norm="forward", overwrite_x=True)
    intensity = psi.real**2 + psi.imag**2
    spectrum = scipy.fft.rfft2(intensity, norm="forward")
    damping = np.exp(-2 * (np.pi * optics.blur_a * q) ** 2)
    spectrum *= damping[:, None] * damping[None, : n // 2 + 1]
    return np.ascontiguousarray(np.maximum(field.frame(spectrum), 0), dtype=np.float32)


def to_pixels(xy: NDArray[np.float64], field: Field) -> NDArray[np.float32]:
    """Turn (n, 2) angstrom into (x, y) pixels of the frame; pixel centres are integers."""
    start = (field.total - field.size) // 2
    return np.asarray(xy / field.pixel_a + field.total / 2 - start, np.float32)


def seen(structure: Structure, field: Field) -> tuple[Image, NDArray[np.bool_]]:
    """Return the atoms in the frame, (x, y) in pixels, and which of all atoms they are."""
    places = to_pixels(structure.positions[:, :2], field)
    inside = (np.abs(places - (field.size - 1) / 2) <= field.size / 2).all(1)
    return places[inside], inside


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


def deposit(xy: NDArray[np.float64], side: float, n: int) -> Image:
    """Spread points over an n x n mesh by quintic B-splines (particle mesh).

    Essmann et al., J. Chem. Phys. 103, 8577 (1995). The origin of ``xy``, (m, 2) angstrom
    in a square of ``side``, falls on node (n/2, n/2).
    """
    position = (xy / side + 0.5) * n
    first = np.floor(position).astype(np.int64) - _SPLINE // 2 + 1
    weights = np.stack([_spline(position[:, k] - np.floor(position[:, k])) for k in (0, 1)])
    steps = np.arange(_SPLINE)
    columns = (first[:, :1] + steps) % n
    rows = (first[:, 1:] + steps) % n
    flat = rows[:, :, None] * n + columns[:, None, :]
    values = weights[1][:, :, None] * weights[0][:, None, :]
    mesh = np.bincount(flat.ravel(), values.ravel(), minlength=n * n)
    return mesh.reshape(n, n).astype(np.float32)


def sharpen(spectrum: Spectrum, n: int) -> None:
    """Divide the splines' transfer out of a mesh's half spectrum, in place."""
    spread = np.sinc(np.fft.fftfreq(n)).astype(np.float32) ** _SPLINE
    spectrum /= spread[:, None] * spread[None, : n // 2 + 1]


def _spline(fraction: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of the six nearest nodes, (n, 6), by the Cox-de Boor recursion."""
    values = np.zeros((_SPLINE, len(fraction)))
    values[0] = 1.0
    for order in range(2, _SPLINE + 1):
        for k in range(order - 1, -1, -1):
            x = fraction + k
            left = values[k - 1] if k else 0.0
            values[k] = (x * values[k] + (order - x) * left) / (order - 1)
    return values[::-1].T


def fast_even(least: float) -> int:
    """Return the next even number that an FFT likes."""
    return 2 * int(scipy.fft.next_fast_len(int(np.ceil(least / 2)), real=True))


def resize(spectrum: Spectrum, n: int) -> Spectrum:
    """Keep the lowest n frequencies of a full spectrum (n at most its side)."""
    h = n // 2
    rows = np.concatenate([spectrum[:h], spectrum[-h:]])
    return np.concatenate([rows[:, :h], rows[:, -h:]], axis=1)


def padded(spectrum: Spectrum, n: int) -> Spectrum:
    """Fill a full spectrum with zeros up to n frequencies a side (n at least its own)."""
    h = spectrum.shape[0] // 2
    result = np.zeros((n, n), np.complex64)
    for rows in (slice(None, h), slice(-h, None)):
        for columns in (slice(None, h), slice(-h, None)):
            result[rows, columns] = spectrum[rows, columns]
    return result


def resize_half(spectrum: Spectrum, n: int) -> Spectrum:
    """Crop or zero-pad a half spectrum to the one of an n x n image, Nyquist left out."""
    m = spectrum.shape[0]
    h = min(m, n) // 2
    result = np.zeros((n, n // 2 + 1), np.complex64)
    result[:h, :h] = spectrum[:h, :h]
    result[-h + 1 :, :h] = spectrum[-h + 1 :, :h]
    return result
