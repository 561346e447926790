"""The microscope: from atoms to relative images, by HRTEM or annular dark-field STEM, in float32.

Lengths are in angstrom, spatial frequencies q = 1/d in 1/angstrom. Phases follow Kirkland
(2010), chapter 2, and Krivanek's naming: the wave at the detector is psi(q) exp(-i chi(q)) with
alpha = lambda q and chi = 2 pi / lambda (A0/2 + A1/2 + B2/3 + A2/3 + Cs/4) alpha^n. A positive
defocus is underfocus (C1 = -defocus), counted from the specimen's plane z = 0. Fields are
periodic squares; a margin of real atoms around the frame takes the wrap-around.

HRTEM takes the specimen for a phase object or few slices. STEM convolves scattering at the atoms
with the probe, the incoherent approximation of Kirkland (2010), section 3.3, with a signal of Z^n
an atom, n = 1.64 to 1.8 (Krivanek et al., Nature 464, 571, 2010): it agrees with multislice to
a correlation of 0.998 for single layers.
"""

import cmath
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emdn_train.simulate.structure import Structure

Image = NDArray[np.float32]
Spectrum = NDArray[np.complex64]
Elements = Mapping[int, Spectrum]

MARGIN_A = 10.0
_IMAGE_A = 0.22  # coarsest sampling of an image before it is interpolated to pixels
_SPLINE = 6

# Share of the incident electrons that one carbon atom per square angstrom sends to the
# detector, from 6e-4 for graphene (0.382 atoms per square angstrom).
_CARBON = 6e-4 / 0.382

_WIDEST_MRAD = 35.0

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


def wavelength(voltage_kv: float) -> float:
    """Relativistic wavelength of the electron, in angstrom."""
    return float(_HC_KEV_ANGSTROM / np.sqrt(voltage_kv * (2 * _ELECTRON_REST_KEV + voltage_kv)))


def _phase_per_scattering(voltage_kv: float) -> float:
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


def _transfer(
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
    return _turned(np.float32(-k) * chi, np.exp(-damping).astype(np.float32))


def _information_limit(optics: Optics) -> float:
    """Frequency, 1/angstrom, beyond which the focal spread lets less than 1e-4 pass."""
    lam = wavelength(optics.voltage_kv)
    exponent = 2 * math.log(1e4)
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


def _frequencies(n: int, side: float) -> tuple[Image, Image, Image]:
    """Frequencies of a half spectrum, 1/angstrom: of rows, of columns, and squared, (n, n/2+1)."""
    q, half = (f(n, side / n).astype(np.float32) for f in (np.fft.fftfreq, np.fft.rfftfreq))
    return q, half, half[None, :] ** 2 + q[:, None] ** 2


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
    wave = np.zeros((n, n), np.complex64)
    wave[0, 0] = n * n
    height = 0.0
    for number, index in enumerate(layers):
        chosen = inside & (layer == index)
        transmission = _turned(_phase(structure, chosen, field.side_a, n, voltage_kv))
        mean_height = float(z[chosen].mean())
        if number:
            wave *= _turned(np.float32(-np.pi * lam * (mean_height - height)) * q2)
            wave[q2 > (2 / 3 * q.max()) ** 2] = 0
            transmission = scipy.fft.ifft2(wave) * transmission
        wave = scipy.fft.fft2(transmission, overwrite_x=True)
        height = mean_height
    if height:
        wave *= _turned(np.float32(np.pi * lam * height) * q2)
    return np.asarray(wave / np.float32(n * n))


def image(wave: Spectrum, field: Field, optics: Optics) -> Image:
    """Relative intensity of the frame, (size, size), vacuum = 1, of an `exit_wave`."""
    n = min(fast_even(field.side_a / _IMAGE_A), wave.shape[0])
    q = np.fft.fftfreq(n, field.side_a / n).astype(np.float32)
    m = min(n, fast_even(2 * _information_limit(optics) * field.side_a))
    passing = np.fft.fftfreq(m, field.side_a / m).astype(np.float32)
    passed = resize(wave, m) * _transfer(optics, passing, passing)
    psi = scipy.fft.ifft2(resize(passed, n), norm="forward", overwrite_x=True)
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
    _, _, q2 = _frequencies(n, side)
    total = np.zeros(q2.shape, np.complex64)
    kinds = np.stack([structure.numbers, np.round(structure.vibration, 4)], 1)[chosen]
    xy = structure.positions[chosen, :2]
    for number, u in np.unique(kinds, axis=0):
        mesh = _deposit(xy[(kinds[:, 0] == number) & (kinds[:, 1] == u)], side, n)
        factor = np.zeros_like(q2)
        for a, b in zip(*_PENG[int(number)], strict=True):
            factor += np.float32(a) * np.exp(np.float32(-b / 4) * q2)
        factor *= np.exp(np.float32(-2 * (np.pi * u) ** 2) * q2)
        total += scipy.fft.rfft2(mesh) * factor
    _sharpen(total, n)
    total *= np.float32(_phase_per_scattering(voltage_kv) * (n / side) ** 2)
    return np.asarray(scipy.fft.irfft2(total, s=(n, n)), np.float32)


def _turned(phase: Image, amplitude: Image | float = 1.0) -> Spectrum:
    """Complex numbers of these phases in rad, in single precision throughout."""
    result = np.empty(phase.shape, np.complex64)
    result.real, result.imag = amplitude * np.cos(phase), amplitude * np.sin(phase)
    return result


def _deposit(xy: NDArray[np.float64], side: float, n: int) -> Image:
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


def _sharpen(spectrum: Spectrum, n: int) -> None:
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
    """Crop a full spectrum to its lowest n frequencies, or fill it with zeros up to n, a side."""
    low = np.r_[: min(n, len(spectrum)) // 2, -(min(n, len(spectrum)) // 2) : 0]
    result = np.zeros((n, n), np.complex64)
    result[np.ix_(low, low)] = spectrum[np.ix_(low, low)]
    return result


def resize_half(spectrum: Spectrum, n: int) -> Spectrum:
    """Crop or zero-pad a half spectrum to the one of an n x n image, Nyquist left out."""
    h = min(len(spectrum), n) // 2
    low = np.r_[:h, 1 - h : 0]
    result = np.zeros((n, n // 2 + 1), np.complex64)
    result[low, :h] = spectrum[low, :h]
    return result


@dataclass(frozen=True)
class Scan:
    """One setting of the scanned probe."""

    aperture_mrad: float  # semi-angle of convergence
    source_a: float  # standard deviation of the source's image
    exponent: float  # of the atomic number in the signal of an atom
    background: float  # signal with no specimen, as a share of graphene's


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
    _, _, q2 = _frequencies(n, field.side_a)
    spectra = {}
    for number in np.unique(structure.numbers[inside]):
        chosen = inside & (structure.numbers == number)
        u = float(structure.vibration[chosen][0])
        spectrum = scipy.fft.rfft2(_deposit(structure.positions[chosen, :2], field.side_a, n))
        _sharpen(spectrum, n)
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
    q, half, _ = _frequencies(n, field.side_a)
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
    spectrum = scipy.fft.rfft2(probe / probe.sum())
    return np.asarray(spectrum[:, : n // 2 + 1].real, np.float32)
