"""How strongly atoms scatter electrons, and how fast the electrons are.

Lengths are in angstrom, spatial frequencies q = 1/d in 1/angstrom.
"""

from collections.abc import Mapping

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
    sigma = (
        2
        * np.pi
        / (wavelength(voltage_kv) * voltage_kv * 1e3)
        * (_ELECTRON_REST_KEV + voltage_kv)
        / (2 * _ELECTRON_REST_KEV + voltage_kv)
    )
    return float(sigma * _VOLT_ANGSTROM2)
