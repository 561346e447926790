"""Constants, the mesh and the transfer against values known from elsewhere."""

import dataclasses

import numpy as np
import pytest

from emdn_train.simulate import microscope
from emdn_train.simulate.graphene import as_structure, perfect_sheet
from emdn_train.simulate.microscope import Optics, deposit, draw_optics, sharpen, transfer
from emdn_train.simulate.structure import Structure


@pytest.mark.parametrize(
    ("voltage_kv", "picometres"), [(60, 4.866), (80, 4.176), (200, 2.508), (300, 1.969)]
)
def test_wavelengths_are_those_of_the_textbooks(voltage_kv: float, picometres: float) -> None:
    assert 100 * microscope.wavelength(voltage_kv) == pytest.approx(picometres, abs=1e-3)


def test_interaction_constant_at_100_kv() -> None:
    """Kirkland (2010), table 5.1: 0.9244e-3 rad per volt angstrom."""
    sigma = microscope.phase_per_scattering(100.0) / 47.87801
    assert sigma == pytest.approx(0.9244e-3, rel=1e-3)


def test_mesh_holds_the_structure_factor() -> None:
    side, n = 30.0, 150
    xy = np.random.default_rng(0).uniform(-15, 15, (60, 2))
    half = np.fft.rfft2(deposit(xy, side, n)).astype(np.complex64)
    sharpen(half, n)
    q = np.fft.fftfreq(n, side / n)
    rows = np.exp(-2j * np.pi * np.outer(q, xy[:, 1] + 15))
    columns = np.exp(-2j * np.pi * np.outer(xy[:, 0] + 15, q[: n // 2 + 1]))
    exact = rows @ columns
    low = np.abs(q) <= 1.0
    error = np.abs(half - exact)[low][:, low[: n // 2 + 1]]
    assert error.max() < 0.01


def test_spatial_envelope_is_the_slope_of_the_phase() -> None:
    """The polynomial gradient against a numerical one of the phase itself."""
    sharp = dataclasses.replace(
        draw_optics(np.random.default_rng(4), 80.0), focal_spread_a=0.0, convergence_mrad=0.0
    )
    q, step = np.linspace(0.2, 0.8, 13).astype(np.float32), np.float32(1e-3)
    lam = microscope.wavelength(80.0)

    def phase_step(dx: float, dy: float) -> np.ndarray:
        ahead = transfer(sharp, q + np.float32(dx), q + np.float32(dy))
        behind = transfer(sharp, q - np.float32(dx), q - np.float32(dy))
        return np.angle(ahead * np.conj(behind)) / (2 * step * lam)

    slope2 = phase_step(step, 0) ** 2 + phase_step(0, step) ** 2
    theta = 0.2e-3
    spread = dataclasses.replace(sharp, convergence_mrad=0.2)
    expected = np.exp(-((theta / 2) ** 2) * slope2)
    np.testing.assert_allclose(np.abs(transfer(spread, q, q)), expected, rtol=0.02, atol=1e-3)


def graphene(side: float) -> Structure:
    return as_structure(perfect_sheet(side, 0.0, np.zeros(2)), 0.05)


def test_margin_keeps_the_wrap_around_out_of_the_frame() -> None:
    """The same atoms in a much wider field give the same frame."""
    sheet = graphene(70.0)
    lens = Optics(defocus_a=60.0, convergence_mrad=0.1)
    frames = []
    for margin in (microscope.MARGIN_A, 20.0):
        field = microscope.make_field(96, 0.2, margin)
        frames.append(microscope.image(microscope.exit_wave(sheet, field, 80.0), field, lens))
    difference = frames[0] - frames[1]
    assert np.sqrt((difference**2).mean()) < 0.03 * frames[1].std()


def test_graphene_has_the_contrast_of_graphene() -> None:
    """About 4 % at good focus: data that every dose of the project is derived from."""
    field = microscope.make_field(128, 0.1)
    wave = microscope.exit_wave(graphene(field.side_a + 1), field, 80.0)
    best = max(
        float(microscope.image(wave, field, Optics(defocus_a=c, convergence_mrad=0.1)).std())
        for c in np.arange(-100, 101, 10.0)
    )
    assert 0.03 < best < 0.06
