"""The microscope: aberrations, coherence, and how they are drawn.

Phases follow Kirkland (2010), chapter 2, and Krivanek's naming: the wave at the
detector is psi(q) exp(-i chi(q)) with alpha = lambda q and
chi = 2 pi / lambda (A0/2 + A1/2 + B2/3 + A2/3 + Cs/4) alpha^n. A positive defocus is
underfocus (C1 = -defocus).
"""

import cmath
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emdn_train.simulate.scattering import wavelength


@dataclass(frozen=True)
class Optics:
    """One setting of the imaging lens; angstrom unless the name says otherwise.

    Attributes
    ----------
    focal_spread_a
        Standard deviation of the defocus.
    convergence_mrad
        1/e half-width of the Gaussian illumination.
    astigmatism_a, coma_a, trefoil_a
        Size of A1, B2 and A2; their azimuths are in rad.
    blur_a
        Standard deviation of the image's vibration.
    """

    voltage_kv: float = 80.0
    defocus_a: float = 0.0
    cs_um: float = 0.0
    focal_spread_a: float = 20.0
    convergence_mrad: float = 0.1
    astigmatism_a: float = 0.0
    astigmatism_rad: float = 0.0
    coma_a: float = 0.0
    coma_rad: float = 0.0
    trefoil_a: float = 0.0
    trefoil_rad: float = 0.0
    blur_a: float = 0.2


def transfer(
    optics: Optics, qx: NDArray[np.float32], qy: NDArray[np.float32]
) -> NDArray[np.complex64]:
    """Transfer of the exit wave, (ny, nx), at frequencies in 1/angstrom.

    The envelopes of partial coherence are those of Frank, Optik 38, 519 (1973):
    temporal exp(-(pi sigma lambda q^2)^2 / 2), spatial exp(-(theta/2)^2 |grad chi|^2)
    with the gradient taken over the angle.
    """
    lam = wavelength(optics.voltage_kv)
    ax, ay = np.float32(lam) * qx[None, :], np.float32(lam) * qy[:, None]
    a2 = ax * ax + ay * ay
    c1, c3 = -optics.defocus_a, optics.cs_um * 1e4
    # Python numbers, or numpy would compute in double precision.
    a1 = cmath.rect(optics.astigmatism_a, -2 * optics.astigmatism_rad)
    b2 = cmath.rect(optics.coma_a, -optics.coma_rad)
    t2 = cmath.rect(optics.trefoil_a, -3 * optics.trefoil_rad)
    # Re(A1 w^2), Re(B2 w) and Re(A2 w^3), w = ax + i ay, and their slopes, as polynomials
    u, v = ax * ax - ay * ay, ax * ay
    even, odd = u * a1.real - 2 * v * a1.imag, ax * b2.real - ay * b2.imag
    three = ax * (u - 2 * ay * ay) * t2.real - ay * (u + 2 * ax * ax) * t2.imag
    chi = (c1 * a2 + even) / 2 + (a2 * odd + three) / 3 + c3 * a2 * a2 / 4
    slope_x = (
        (c1 + c3 * a2 + a1.real) * ax
        - ay * a1.imag
        + (2 * ax * odd + a2 * b2.real) / 3
        + u * t2.real
        - 2 * v * t2.imag
    )
    slope_y = (
        (c1 + c3 * a2 - a1.real) * ay
        - ax * a1.imag
        + (2 * ay * odd - a2 * b2.imag) / 3
        - 2 * v * t2.real
        - u * t2.imag
    )
    k = 2 * math.pi / lam
    damping = (math.pi / lam * optics.focal_spread_a) ** 2 / 2 * (a2 * a2)
    damping += (k * optics.convergence_mrad * 1e-3 / 2) ** 2 * (slope_x**2 + slope_y**2)
    phase = np.float32(k) * chi
    amplitude = np.exp(-damping).astype(np.float32)
    result = np.empty(phase.shape, np.complex64)
    result.real = amplitude * np.cos(phase)
    result.imag = -amplitude * np.sin(phase)
    return result


def information_limit(optics: Optics, least: float = 1e-4) -> float:
    """Frequency, 1/angstrom, beyond which the focal spread lets less than ``least`` pass."""
    lam = wavelength(optics.voltage_kv)
    exponent = 2 * math.log(1 / least)
    return math.sqrt(math.sqrt(exponent) / (math.pi * lam * max(optics.focal_spread_a, 1.0)))


def draw_optics(rng: np.random.Generator, voltage_kv: float, mean_height: float = 0.0) -> Optics:
    """Draw one setting; two thirds of them near good contrast of light atoms.

    Good contrast: the spherical aberration and the defocus together turn the phase by
    about a quarter wave at the first graphene reflection, 0.47 1/angstrom.
    """
    lam = wavelength(voltage_kv)
    cs_um = rng.uniform(-20.0, 20.0)
    defocus = rng.uniform(-200.0, 200.0)
    if rng.random() < 2 / 3:
        q = 0.47
        quarter = rng.choice([-0.5, 0.5]) / (lam * q**2)
        defocus = 0.5 * cs_um * 1e4 * lam**2 * q**2 + quarter + rng.normal(0.0, 15.0)
    return Optics(
        voltage_kv=voltage_kv,
        defocus_a=float(defocus + mean_height),
        cs_um=float(cs_um),
        focal_spread_a=float(rng.uniform(10.0, 40.0)),
        convergence_mrad=float(rng.uniform(0.05, 0.4)),
        astigmatism_a=float(abs(rng.normal(0.0, 15.0))),
        astigmatism_rad=float(rng.uniform(0, np.pi)),
        coma_a=float(abs(rng.normal(0.0, 200.0))),
        coma_rad=float(rng.uniform(0, 2 * np.pi)),
        trefoil_a=float(abs(rng.normal(0.0, 300.0))),
        trefoil_rad=float(rng.uniform(0, 2 * np.pi / 3)),
        blur_a=float(rng.uniform(0.1, 0.4)),
    )
