"""Vacancies against occupied sites: sites from simulated atoms, scores, and the curve."""

import numpy as np
import pytest
from scipy import ndimage

from emdn_models.vacancies import roc, simulated_sites, site_scores

PIXEL_NM = 0.02
SIZE = 160


def lattice(step: float = 14.0) -> np.ndarray:
    """Places (n, 2), x and y in pixels, of a square lattice."""
    axis = np.arange(-step, SIZE + step, step)
    return np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2) + 0.3


def drawn(places: np.ndarray) -> np.ndarray:
    """Bright blobs of 3 pixels on a sloping background."""
    y, x = np.mgrid[:SIZE, :SIZE]
    return 5 + 0.02 * x + sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / 18) for px, py in places)


def test_vacancies_score_below_full_sites_by_what_the_noise_is():
    places = lattice()
    inside = np.flatnonzero((np.abs(places - SIZE / 2) < SIZE / 2 - 25).all(1))
    gone = inside[[3, 17, 31, 40, 55]]
    atoms, names = np.delete(places, gone, 0), ["vacancy of Z=14"] * 5
    sites = simulated_sites(atoms, np.full(len(atoms), 14), places[gone], names, PIXEL_NM)
    assert sites.vacant.sum() == 5
    noise = np.random.default_rng(0).normal(0, 1, (SIZE, SIZE))
    frame = drawn(atoms) + noise
    scores = site_scores(frame, sites, PIXEL_NM)
    np.testing.assert_allclose(  # whatever the unit and the level
        site_scores(1e6 * frame - 3, sites, PIXEL_NM), scores, rtol=1e-6, atol=1e-6
    )
    judged = np.isfinite(scores).all(0)
    assert judged[sites.vacant].all()
    assert 20 < judged.sum() < len(judged)
    # A site's value at a width of w pixels: 1 / (1 + w^2 / 9) less, with this noise.
    for row, width in zip(scores[2:], (0.045, 0.065, 0.09), strict=True):
        w = width / PIXEL_NM
        contrast = 1 / (1 + w**2 / 9)
        spread = ndimage.gaussian_filter(noise, w).std()
        assert row[sites.vacant].mean() == pytest.approx(-contrast / spread, rel=0.35)
        assert abs(row[judged & sites.full].mean()) < 0.3


def test_the_curve_of_known_scores():
    full = np.arange(100.0)
    perfect = roc([200.0, 300.0], full, 10)
    assert perfect == (1.0, (1.0, 1.0), 2)
    # Two of four lie above all but one full site, one among them, one below.
    some = roc([150.0, 98.5, 49.5, -1.0], full, 10)
    assert some.auc == pytest.approx((1 + 0.99 + 0.5 + 0) / 4)
    assert some.recall == (0.5, 0.5)
    assert roc([98.5], full, 1).recall == (0.0, 1.0)
    assert np.isnan(roc([], full, 1).auc)


def test_dichalcogenide_columns_and_their_sublattices():
    metal = lattice(16.0)
    sulphur = metal + 8.0
    atoms = np.concatenate([metal, sulphur, sulphur])
    numbers = np.repeat([42, 16], [len(metal), 2 * len(metal)])
    one, both = len(metal) + 20, len(metal) + 40
    keep = np.ones(len(atoms), bool)
    keep[[one, both, both + len(metal)]] = False
    swapped = 30
    numbers[swapped] = 16
    sites = simulated_sites(
        atoms[keep], numbers[keep], atoms[[one, both, swapped]],
        ["vacancy of Z=16", "vacancy of Z=16", "Z=16 on Z=42"], PIXEL_NM,
    )  # fmt: skip
    assert sorted(sites.names) == ["Z=16", "Z=42"]
    at = {
        name: int(np.argmin(np.abs(sites.places[:, ::-1] - atoms[place]).sum(1)))
        for name, place in {"one": one, "both": both, "swapped": swapped}.items()
    }
    assert sites.amplitudes[at["one"]] == 0.5
    assert sites.amplitudes[at["both"]] == 0
    assert sites.foreign.nonzero()[0].tolist() == [at["swapped"]]
    assert sites.names[sites.kinds[at["swapped"]]] == "Z=42"
    assert sites.vacant.sum() == 2
    assert not sites.full[list(at.values())].any()


def test_a_divacancy_empties_two_sites_and_an_adatom_hides_one():
    bond = 0.142 / PIXEL_NM
    i, j = (one.ravel() for one in np.mgrid[-9:10, -9:10])
    cell = np.stack([bond * 3**0.5 * (i + j / 2), bond * 1.5 * j], 1) + SIZE / 2
    sheet = np.concatenate([cell, cell + np.array([0, bond])])
    first = int(np.argmin(np.abs(sheet - SIZE / 2).sum(1)))
    second = int(np.argsort(((sheet - sheet[first]) ** 2).sum(1))[1])
    other = int(np.argmin(np.abs(sheet - [SIZE / 2 + 40, SIZE / 2]).sum(1)))
    atoms = np.vstack([np.delete(sheet, [first, second], 0), sheet[other]])
    numbers = np.full(len(atoms), 6)
    numbers[-1] = 14
    sites = simulated_sites(
        atoms, numbers, sheet[[first, other]], ["V2(5-8-5)", "silicon adatom"], PIXEL_NM
    )
    empty = sites.places[sites.vacant][:, ::-1]
    assert len(empty) == 2
    for place in sheet[[first, second]]:
        assert np.hypot(*(empty - place).T).min() < 0.5
    hidden = np.isnan(sites.amplitudes)
    assert np.hypot(*(sites.places[hidden][:, ::-1] - sheet[other]).T).min() < 0.5
