"""Wavelengths, the margin of a frame, and the contrast of graphene."""

import numpy as np
import pytest

from emdn_train.simulate import microscope
from emdn_train.simulate.graphene import as_structure, perfect_sheet
from emdn_train.simulate.microscope import Optics
from emdn_train.simulate.structure import Structure


@pytest.mark.parametrize(
    ("voltage_kv", "picometres"), [(60, 4.866), (80, 4.176), (200, 2.508), (300, 1.969)]
)
def test_wavelengths_are_those_of_the_textbooks(voltage_kv: float, picometres: float) -> None:
    assert 100 * microscope.wavelength(voltage_kv) == pytest.approx(picometres, abs=1e-3)


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
