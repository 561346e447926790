"""The microscope: how strongly atoms scatter, aberrations, coherence, and how they are drawn.

Lengths are in angstrom, spatial frequencies q = 1/d in 1/angstrom. Phases follow Kirkland
(2010), chapter 2, and Krivanek's naming: the wave at the detector is psi(q) exp(-i chi(q)) with
alpha = lambda q and chi = 2 pi / lambda (A0/2 + A1/2 + B2/3 + A2/3 + Cs/4) alpha^n. A positive
defocus is underfocus (C1 = -defocus).
"""

import cmath
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Electron scattering factors of neutral atoms, f(s) = sum a_i exp(-b_i s^2), s = q/2,
# a in angstrom, b in angstrom^2; fitted over 0 < s < 6 1/angstrom. Peng, Ren, Dudarev,
# Whelan, Acta Cryst. A52, 257 (1996); International Tables C, table 4.3.2.3.
_PENG: Mapping[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    5: ((0.0436, 0.1898, 0.6788, 1.3273, 0.5544), (0.1207, 1.1595, 6.2474, 21.0460, 59.3619)),
    6: ((0.0489, 0.2091, 0.7537, 1.1420, 0.3555), (0.1140, 1.0825, 5.4281, 17.8811, 51.1341)),
    7: ((0.0267, 0.1328, 0.5301, 1.1020, 0.4215), (0.0541, 0.5165, 2.8207, 10.6297, 34.3764)),
    8: ((0.0365, 0.1729, 0.5805, 0.8814, 0.3121), (0.0652, 0.6184, 2.9449, 9.6298, 28.2194)),
    14: ((0.0567, 0.3365, 0.8104, 2.4960, 2.1186), (0.0582, 0.6155, 3.2522, 16.7929, 57.6767)),
    16: ((0.0915, 0.4312, 1.0847, 2.4671, 1.0852), (0.0838, 0.7788, 4.3462, 15.5846, 44.6365)),
    22: ((0.2123, 0.8960, 2.1765, 3.0436, 2.4439), (0.1399, 1.4568, 6.7534, 33.1168, 101.8238)),
    29: ((0.3501, 1.6558, 1.9582, 0.2134, 1.4109), (0.1867, 1.9917, 11.3396, 53.2619, 63.2520)),
    38: ((0.3723, 1.4598, 3.5124, 4.4612, 3.3031), (0.1480, 1.4643, 9.2320, 49.8807, 148.0937)),
    42: ((0.3069, 1.1714, 3.2293, 3.4254, 2.1224), (0.1101, 1.0222, 5.9613, 25.1965, 93.5831)),
    74: ((0.3661, 1.6191, 3.2455, 4.0856, 3.2064), (0.0761, 0.7543, 4.0952, 18.2886, 68.0967)),
    78: ((0.3083, 1.4158, 2.9662, 3.9349, 2.1709), (0.0609, 0.5993, 3.1921, 12.5285, 49.7675)),
    79: ((0.3055, 1.3945, 2.9617, 3.8990, 2.0026), (0.0596, 0.5827, 3.1035, 11.9693, 47.9106)),
}

ELEMENTS = tuple(_PENG)

# h^2 / (2 pi m e) in V angstrom^2: projected potential = 47.878 x f, Kirkland (2010), eq. C.2.
_VOLT_ANGSTROM2 = 47.87801
_ELECTRON_REST_KEV = 510.99895
_HC_KEV_ANGSTROM = 12.398420


def scattering_factor(number: int, q2: NDArray[np.float32]) -> NDArray[np.float32]:
    """Electron scattering factor in angstrom at squared frequencies ``q2`` (1/angstrom^2)."""
    result = np.zeros_like(q2)
    for a, b in zip(*_PENG[number], strict=True):
        result += np.float32(a) * np.exp(np.float32(-b / 4) * q2)
    return result


def wavelength(voltage_kv: float) -> float:
    """Relativistic wavelength of the electron, in angstrom."""
    return float(_HC_KEV_ANGSTROM / np.sqrt(voltage_kv * (2 * _ELECTRON_REST_KEV + voltage_kv)))


def phase_per_scattering(voltage_kv: float) -> float:
    """Phase shift, in rad, of a projected scattering density of 1 angstrom per angstrom^2.

    The interaction constant sigma = 2 pi (E + mc^2) / (lambda E (E + 2 mc^2))
    (Kirkland 2010, eq. 5.6) times the volts of one angstrom of scattering factor.
    """
    rest, lam = _ELECTRON_REST_KEV, wavelength(voltage_kv)
    sigma = 2 * np.pi / (lam * voltage_kv * 1e3) * (rest + voltage_kv) / (2 * rest + voltage_kv)
    return float(sigma * _VOLT_ANGSTROM2)


@dataclass(frozen=True)
class Optics:
    """One setting of the imaging lens; angstrom unless the name says otherwise."""

    voltage_kv: float = 80.0
    defocus_a: float = 0.0
    cs_um: float = 0.0
    focal_spread_a: float = 20.0  # standard deviation of the defocus
    convergence_mrad: float = 0.1  # 1/e half-width of the Gaussian illumination
    astigmatism_a: float = 0.0  # A1
    astigmatism_rad: float = 0.0
    coma_a: float = 0.0  # B2
    coma_rad: float = 0.0
    trefoil_a: float = 0.0  # A2
    trefoil_rad: float = 0.0
    blur_a: float = 0.2  # standard deviation of the image's vibration


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


def draw_optics(rng: np.random.Generator, voltage_kv: float) -> Optics:
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
        defocus_a=float(defocus),
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
