"""Columns, kinds and empty sites from the atoms and defects that the simulator lists."""

import numpy as np
import pytest

from emdn_models.errors import EmdnError
from emdn_models.metrics.truth import simulated_sites

PIXEL_NM = 0.0142
BOND = 10.0


@pytest.fixture
def sheet():
    """Graphene of bonds of 10 pixels, (n, 2) x and y."""
    i, j = (grid.ravel() for grid in np.meshgrid(np.arange(6), np.arange(6)))
    a = BOND * np.sqrt(3)
    corner = np.stack([a * (i + j / 2), a * np.sqrt(3) / 2 * j], 1)
    return np.concatenate([corner, corner + np.array([0, BOND])])


def sites(atoms, numbers=None, defects=(), names=()):
    numbers = np.full(len(atoms), 6) if numbers is None else numbers
    return simulated_sites(atoms, numbers, np.reshape(defects, (-1, 2)), names, PIXEL_NM)


def test_atoms_come_out_as_y_and_x_and_all_full(sheet):
    found = sites(sheet)
    assert set(map(tuple, found.places.round(6))) == set(map(tuple, sheet[:, ::-1].round(6)))
    assert (found.amplitudes == 1).all()
    assert (found.kinds == 0).all()


def test_single_vacancies_add_the_site_that_is_empty(sheet):
    lost = 14
    found = sites(np.delete(sheet, lost, 0), None, sheet[lost], ["V1(5-9)"])
    np.testing.assert_allclose(found.places[found.amplitudes == 0], [sheet[lost, ::-1]])
    assert len(found.columns) == len(sheet) - 1


def test_double_vacancies_add_the_partner_that_is_not_listed(sheet):
    one = 14
    partner = int(np.argsort(((sheet - sheet[one]) ** 2).sum(1))[2])
    assert np.hypot(*(sheet[one] - sheet[partner])) == pytest.approx(BOND)
    left = np.delete(sheet, [one, partner], 0)
    found = sites(left, None, sheet[one], ["V2(5-8-5)"])
    empty = found.places[found.amplitudes == 0]
    expected = sheet[[one, partner], ::-1]
    for place in expected:
        assert np.hypot(*(empty - place).T).min() < 0.05 * BOND
    assert len(empty) == 2


def test_atoms_over_one_another_are_a_column_of_which_some_may_be_missing():
    y, x = (grid.ravel() for grid in np.mgrid[0:100:20, 0:100:20])
    metal = np.stack([x, y], 1).astype(float)
    pair = metal + np.array([10.0, 5.0])
    atoms = np.concatenate([metal, pair, np.delete(pair, 7, 0)])
    numbers = np.repeat([42, 16], [25, 49])
    found = simulated_sites(atoms, numbers, pair[7:8], ["vacancy of Z=16"], PIXEL_NM)
    assert len(found.places) == 50
    half = np.flatnonzero(found.amplitudes == 0.5)
    np.testing.assert_allclose(found.places[half], pair[7:8, ::-1])
    assert (found.amplitudes == 1).sum() == 49
    assert len(set(found.kinds)) == 2
    metals = found.kinds != found.kinds[half[0]]
    assert set(map(tuple, found.places[metals])) == set(map(tuple, metal[:, ::-1]))


def test_adatoms_and_rare_elements_are_unknown(sheet):
    numbers = np.full(len(sheet) + 1, 6)
    numbers[3] = 14
    bridge = (sheet[20] + sheet[20 + 36]) / 2
    atoms = np.concatenate([sheet, bridge[None]])
    found = sites(atoms, numbers, [bridge], ["carbon adatom"])
    unknown = found.places[np.isnan(found.amplitudes)]
    expected = np.stack([sheet[3], bridge])[:, ::-1]
    assert sorted(map(tuple, unknown.round(6))) == sorted(map(tuple, expected.round(6)))


def test_lists_that_do_not_fit_are_refused(sheet):
    with pytest.raises(EmdnError, match="found 72 with 2 numbers"):
        sites(sheet, np.array([6, 6]))
    with pytest.raises(EmdnError, match="1 defects with 0 names"):
        sites(sheet, None, sheet[0], [])
