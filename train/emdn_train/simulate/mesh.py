"""Points on a periodic mesh, and spectra of meshes of other sizes."""

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Image = NDArray[np.float32]
Spectrum = NDArray[np.complex64]

_SPLINE = 6


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
