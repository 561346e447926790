"""Annular dark-field STEM: scattering at the atoms, convolved with the probe.

The incoherent approximation of Kirkland (2010), section 3.3, with a signal of Z^n an atom,
n = 1.64 to 1.8 (Krivanek et al., Nature 464, 571, 2010): it agrees with multislice to
a correlation of 0.998 for single layers.
"""

import cmath
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.fft

from emdn_train.simulate.hrtem import Field, Image, Spectrum, deposit, fast_even, sharpen
from emdn_train.simulate.optics import Optics, wavelength
from emdn_train.simulate.structure import Structure

# Share of the incident electrons that one carbon atom per square angstrom sends to the
# detector, from 6e-4 for graphene (0.382 atoms per square angstrom).
_CARBON = 6e-4 / 0.382

_WIDEST_MRAD = 35.0

Elements = Mapping[int, Spectrum]


@dataclass(frozen=True)
class Scan:
    """One setting of the scanned probe.

    ``aperture_mrad`` is the semi-angle of convergence, ``source_a`` the standard deviation of
    the source's image, ``exponent`` that of the atomic number in the signal of an atom, and
    ``background`` the signal with no specimen, as a share of graphene's.
    """

    aperture_mrad: float
    source_a: float
    exponent: float
    background: float


def draw_scan(rng: np.random.Generator) -> Scan:
    """Draw one setting of an aberration-corrected 60-80 kV instrument."""
    return Scan(
        aperture_mrad=float(rng.uniform(25.0, _WIDEST_MRAD)),
        source_a=float(rng.uniform(0.25, 0.5)),
        exponent=float(rng.uniform(1.64, 1.8)),
        background=float(rng.uniform(0.05, 0.5)),
    )


def element_spectra(structure: Structure, field: Field, voltage_kv: float) -> Elements:
    """Spectra of the atoms of each element, one electron's worth an atom, for ``scanned``."""
    # Fine enough that the intensity of the widest aperture's probe does not alias.
    n = fast_even(field.side_a / min(0.22, wavelength(voltage_kv) / (4.4 * _WIDEST_MRAD * 1e-3)))
    inside = np.abs(structure.positions[:, :2]).max(1) < field.side_a / 2
    q, half = (f(n, field.side_a / n).astype(np.float32) for f in (np.fft.fftfreq, np.fft.rfftfreq))
    q2 = half[None, :] ** 2 + q[:, None] ** 2
    spectra = {}
    for number in np.unique(structure.numbers[inside]):
        chosen = inside & (structure.numbers == number)
        u = float(structure.vibration[chosen][0])
        spectrum = scipy.fft.rfft2(deposit(structure.positions[chosen, :2], field.side_a, n))
        sharpen(spectrum, n)
        # The detector sees the core only: a Gaussian of about the atom's vibration.
        spectrum *= np.exp(np.float32(-2 * math.pi**2 * (u**2 + 0.1**2)) * q2)
        spectra[int(number)] = spectrum
    return spectra


def scanned(elements: Elements, field: Field, optics: Optics, scan: Scan) -> Image:
    """Expected share of the incident electrons that is detected, (size, size) float32.

    ``elements`` are `element_spectra` for the same field and voltage.
    """
    n = next(iter(elements.values())).shape[0]
    total = np.zeros((n, n // 2 + 1), np.complex64)
    for number, spectrum in elements.items():
        total += spectrum * np.float32((number / 6) ** scan.exponent)
    q, half = (f(n, field.side_a / n).astype(np.float32) for f in (np.fft.fftfreq, np.fft.rfftfreq))
    total *= _probe_transfer(optics, scan, q)
    rows, columns = (np.exp(-2 * (math.pi * scan.source_a * k) ** 2) for k in (q, half))
    total *= rows[:, None] * columns[None, :]
    total *= np.float32(_CARBON / field.side_a**2)
    floor = np.float32(scan.background * 6e-4)
    return np.ascontiguousarray(np.maximum(field.frame(total), 0) + floor, dtype=np.float32)


def _probe_transfer(optics: Optics, scan: Scan, q: Image) -> Image:
    """Incoherent transfer of the probe's intensity, (n, n // 2 + 1), 1 at q = 0."""
    n = len(q)
    lam = np.float32(wavelength(optics.voltage_kv))
    ax, ay = lam * q[None, :], lam * q[:, None]
    a2 = ax * ax + ay * ay
    c1, c3 = -optics.defocus_a, optics.cs_um * 1e4
    a1 = cmath.rect(optics.astigmatism_a, -2 * optics.astigmatism_rad)
    chi = (c1 * a2 + (ax * ax - ay * ay) * a1.real - 2 * ax * ay * a1.imag) / 2 + c3 * a2 * a2 / 4
    inside = a2 <= (scan.aperture_mrad * 1e-3) ** 2
    wave = np.zeros((n, n), np.complex64)
    wave[inside] = np.exp(-1j * np.float32(2 * math.pi / lam) * chi[inside])
    probe = np.abs(scipy.fft.ifft2(wave, overwrite_x=True)) ** 2
    transfer = scipy.fft.rfft2(probe / probe.sum())
    return np.asarray(transfer[:, : n // 2 + 1].real, np.float32)
