"""Vacancies planted in lattices: found where they are, gone when they are filled."""

import numpy as np
import pytest

from emdn_models.errors import EmdnError
from emdn_models.metrics.lattice import find_vacancies, lattice_vectors, missing_sites
from emdn_models.metrics.matching import VacancyScore, score_vacancies, to_border
from emdn_models.metrics.vacancies import THRESHOLD, fit_template, site_occupancy

PIXEL_NM = 0.02
SHAPE = (90, 120)
BOND = 0.142 / PIXEL_NM


@pytest.fixture(scope="module")
def sites():
    """Sites of graphene over the frame and a little beyond, (n, 2) y and x."""
    a, angle = 0.246 / PIXEL_NM, 0.2
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    cell = a * np.array([[1, 0], [0.5, np.sqrt(3) / 2]]) @ turn
    i, j = np.meshgrid(np.arange(-25, 26), np.arange(-25, 26))
    corners = np.stack([i.ravel(), j.ravel()], 1) @ cell + 3.3
    both = np.concatenate([corners, corners + (cell[0] + cell[1]) / 3])
    return both[((both > -12) & (both < np.array(SHAPE) + 11)).all(1)]


@pytest.fixture(scope="module")
def inside(sites):
    """Which of them a frame's own structure would list."""
    return to_border(sites, SHAPE) > 0


def drawn(sites, amplitudes, contrast=1.0, width_nm=0.05, ring=0.0):
    """Sum of site images on a level of 20: Gaussians, with an opposite ring where asked."""
    y, x = np.arange(SHAPE[0])[:, None], np.arange(SHAPE[1])[:, None]
    total = np.full(SHAPE, 20.0)
    for height, width in ((1 + ring, width_nm), (-ring, 1.6 * width_nm)):
        sigma = width / PIXEL_NM
        rows = np.exp(-0.5 * ((y - sites[:, 0]) / sigma) ** 2)
        columns = np.exp(-0.5 * ((x - sites[:, 1]) / sigma) ** 2)
        total += contrast * height * ((rows * amplitudes) @ columns.T)
    return total


def planted(sites, count, seed=0):
    """Amplitudes, 0 at ``count`` sites well inside and well apart."""
    chance = np.random.default_rng(seed)
    good = np.flatnonzero(to_border(sites, SHAPE) > 0.4 / PIXEL_NM)
    chosen = []
    while len(chosen) < count:
        one = int(chance.choice(good))
        if all(np.hypot(*(sites[one] - sites[k])) > 4 * BOND for k in chosen):
            chosen.append(one)
    amplitudes = np.ones(len(sites))
    amplitudes[chosen] = 0
    return amplitudes


def found(frame, template):
    return template.sites[template.judged & (site_occupancy(frame, template) < THRESHOLD)]


@pytest.mark.parametrize("contrast", [3.0, -3.0])
@pytest.mark.parametrize("ring", [0.0, 0.4])
@pytest.mark.parametrize("told", [True, False])
def test_planted_vacancies_are_found_and_nothing_else(sites, inside, contrast, ring, told):
    amplitudes = planted(sites, 4)
    frame = drawn(sites, amplitudes, contrast, ring=ring)
    known = amplitudes[inside]
    template = fit_template(frame, sites[inside], PIXEL_NM, amplitudes=known if told else None)
    assert template.applicable, template.why_not
    assert template.sign == ("bright" if contrast > 0 else "dark")
    occupancy = site_occupancy(frame, template)[template.judged]
    there = known[template.judged]
    # A lattice leaves the width of a site's image half open, and with it the zero.
    assert np.abs(occupancy[there == 0]).max() < 0.4
    assert np.abs(occupancy[there == 1] - 1).max() < 0.15
    true = sites[amplitudes == 0]
    assert score_vacancies(found(frame, template), true, PIXEL_NM) == VacancyScore(4, 4, 0)


def test_a_vacancy_that_a_denoiser_fills_is_missed_and_one_it_makes_is_false(sites, inside):
    amplitudes = planted(sites, 3)
    template = fit_template(drawn(sites, amplitudes, 3.0), sites[inside], PIXEL_NM)
    gone = np.flatnonzero(amplitudes == 0)
    made = np.flatnonzero(planted(sites, 1, seed=5) == 0)
    altered = amplitudes.copy()
    altered[gone[0]], altered[made] = 1.0, 0.0
    result = score_vacancies(found(drawn(sites, altered, 3.0), template), sites[gone], PIXEL_NM)
    assert result == VacancyScore(true=3, found=2, false=1)
    assert result.recall == pytest.approx(2 / 3)


def test_half_filled_sites_read_half_way_between(sites, inside):
    amplitudes = planted(sites, 4)
    empty = drawn(sites, amplitudes, 3.0)
    template = fit_template(empty, sites[inside], PIXEL_NM)
    vacant = (amplitudes == 0)[inside]
    half = drawn(sites, np.where(amplitudes == 0, 0.5, 1.0), 3.0)
    lowest = site_occupancy(empty, template)[vacant]
    np.testing.assert_allclose(site_occupancy(half, template)[vacant], (lowest + 1) / 2, atol=0.02)


def test_units_and_level_of_the_denoised_frame_do_not_matter(sites, inside):
    frame = drawn(sites, planted(sites, 2), 3.0)
    template = fit_template(frame, sites[inside], PIXEL_NM)
    expected = site_occupancy(frame, template)
    for other in (0.01 * frame, 250 * frame + 1e4):
        np.testing.assert_allclose(site_occupancy(other, template), expected, atol=1e-6)


def test_a_bright_beam_in_one_corner_changes_little(sites, inside):
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] / 100
    amplitudes = planted(sites, 4)
    frame = drawn(sites, amplitudes, 3.0) * np.exp(-1.2 * (y**2 + x**2))
    template = fit_template(frame, sites[inside], PIXEL_NM)
    assert template.gain.max() > 1.8 * template.gain.min()
    true = sites[amplitudes == 0]
    assert score_vacancies(found(frame, template), true, PIXEL_NM) == VacancyScore(4, 4, 0)


def test_noise_a_third_as_high_as_an_atom_hides_and_makes_no_vacancy(sites, inside):
    amplitudes = planted(sites, 4)
    clean = drawn(sites, amplitudes, 3.0)
    template = fit_template(clean, sites[inside], PIXEL_NM)
    noisy = clean + np.random.default_rng(3).normal(size=SHAPE)
    result = score_vacancies(found(noisy, template), sites[amplitudes == 0], PIXEL_NM)
    assert result == VacancyScore(4, 4, 0)


@pytest.mark.parametrize("strength", [6.0, 80.0])
def test_a_heavy_atom_spoils_only_what_is_next_to_it(sites, inside, strength):
    amplitudes = planted(sites, 3)
    one, *vacant = np.flatnonzero(amplitudes == 0)
    amplitudes[one] = strength
    known = np.where(amplitudes > 1, np.nan, 1.0)[inside]
    frame = drawn(sites, amplitudes, 3.0)
    template = fit_template(frame, sites[inside], PIXEL_NM, amplitudes=known)
    near = np.hypot(*(template.sites - sites[one]).T) * PIXEL_NM < 0.25
    assert near.sum() > 8
    assert not template.judged[near].any()
    assert template.applicable, template.why_not
    plain = fit_template(drawn(sites, np.minimum(amplitudes, 1), 3.0), sites[inside], PIXEL_NM)
    assert template.explained > 0.9 * plain.explained
    far = template.judged & (known == 1) & (amplitudes[inside] == 1)
    assert np.abs(site_occupancy(frame, template)[far] - 1).max() < 0.3
    assert score_vacancies(found(frame, template), sites[vacant], PIXEL_NM) == VacancyScore(2, 2, 0)


def test_two_kinds_are_each_measured_against_their_own(sites, inside):
    kinds = (np.random.default_rng(1).random(len(sites)) < 0.25).astype(int)
    strength = np.where(kinds == 1, 0.45, 1.0)
    amplitudes = planted(sites, 4, seed=2)
    amplitudes[np.argmin(np.hypot(*(sites - [45, 60]).T) - 99 * (amplitudes * kinds == 1))] = 0
    assert len(set(kinds[amplitudes == 0])) == 2
    frame = drawn(sites, amplitudes * strength, 3.0)
    two = fit_template(
        frame, sites[inside], PIXEL_NM, kinds=kinds[inside], amplitudes=amplitudes[inside]
    )
    result = score_vacancies(found(frame, two), sites[amplitudes == 0], PIXEL_NM)
    assert result == VacancyScore(5, 5, 0)
    assert len(found(frame, fit_template(frame, sites[inside], PIXEL_NM))) > 5
    # A denoiser that weakens all of one kind has emptied none of them.
    weakened = drawn(sites, amplitudes * np.where(kinds == 1, 0.22, 1.0), 3.0)
    assert score_vacancies(found(weakened, two), sites[amplitudes == 0], PIXEL_NM).false == 0
    # Untold, the faint kind's picture lies beside its sites.
    untold = fit_template(frame, sites[inside], PIXEL_NM, kinds=kinds[inside])
    assert "at the site" in untold.why_not


def test_a_vacancy_brighter_than_an_atom_makes_a_frame_not_applicable(sites, inside):
    amplitudes = planted(sites, 1)
    frame = drawn(sites, np.where(amplitudes == 0, 2.2, 1.0), 3.0)
    template = fit_template(frame, sites[inside], PIXEL_NM, amplitudes=amplitudes[inside])
    assert "no atom" in template.why_not


def test_frames_without_such_a_lattice_are_not_applicable(sites, inside):
    chance = np.random.default_rng(0)
    film = drawn(chance.uniform(0, 120, (600, 2)), np.ones(600), 3.0)
    assert "explain" in fit_template(film, sites[inside], PIXEL_NM).why_not
    holes = sites[inside] + [0.5 * BOND, 0.5 * BOND]
    beside = fit_template(drawn(sites, np.ones(len(sites)), 3.0), holes, PIXEL_NM)
    assert not beside.applicable
    flat = fit_template(np.full(SHAPE, 3.0), sites[inside], PIXEL_NM)
    assert not flat.applicable


def test_a_denoiser_that_returns_the_mean_shows_no_site(sites, inside):
    template = fit_template(drawn(sites, np.ones(len(sites)), 3.0), sites[inside], PIXEL_NM)
    assert np.isnan(site_occupancy(np.full(SHAPE, 20.0), template)).all()
    inverted = 40 - drawn(sites, np.ones(len(sites)), 3.0)
    assert np.isnan(site_occupancy(inverted, template)).all()


def test_lattice_vectors_are_those_of_the_cell(sites):
    a = 0.246 / PIXEL_NM
    chance = np.random.default_rng(0)
    basis = lattice_vectors(sites + chance.normal(0, 0.2, sites.shape))
    np.testing.assert_allclose(np.hypot(*basis.T), a, rtol=0.01)
    assert abs(np.linalg.det(basis)) == pytest.approx(a * a * np.sqrt(3) / 2, rel=0.02)
    assert lattice_vectors(chance.uniform(0, 120, (300, 2))) is None


def test_missing_sites_are_the_gaps_and_not_the_outside(sites, inside):
    amplitudes = planted(sites, 5)
    # Strain bends the rows by two pixels: the midpoints follow.
    bent = sites + 2 * np.sin(sites[:, ::-1] / 60)
    missing = missing_sites(bent[inside & (amplitudes == 1)])
    result = score_vacancies(missing, bent[amplitudes == 0], PIXEL_NM, tolerance_nm=0.02)
    assert result == VacancyScore(5, 5, 0)
    hole = np.hypot(*(sites - [45, 60]).T) > 4 * BOND
    left = missing_sites(sites[inside & hole])
    assert all(np.hypot(*(place - [45, 60])) < 4 * BOND for place in left)


def test_a_notch_in_the_border_is_no_missing_site():
    square = np.stack(np.mgrid[:8, :9], -1).reshape(-1, 2) * 7.0
    notched = np.delete(square, [4], 0)
    assert len(missing_sites(notched)) == 0
    holed = np.delete(square, [30], 0)
    np.testing.assert_allclose(missing_sites(holed), square[30:31], atol=1e-9)


@pytest.mark.parametrize("contrast", [3.0, -3.0])
def test_vacancies_are_found_in_a_frame_of_which_nothing_is_known(sites, contrast):
    amplitudes = planted(sites, 5)
    amplitudes[np.flatnonzero(amplitudes == 0)[0]] = 3.0
    true = sites[amplitudes == 0]
    result = find_vacancies(drawn(sites, amplitudes, contrast), PIXEL_NM)
    assert result.why_not == ""
    assert score_vacancies(result.places, true, PIXEL_NM) == VacancyScore(4, 4, 0)
    filled = find_vacancies(drawn(sites, np.ones(len(sites)), contrast), PIXEL_NM)
    assert len(filled.columns) > len(result.columns)
    assert len(filled.places) == 0
    assert filled.why_not == ""


def test_without_a_lattice_the_answer_says_so():
    frame = np.random.default_rng(0).normal(size=(60, 80))
    result = find_vacancies(frame, PIXEL_NM, sign="bright")
    assert "no lattice" in result.why_not
    assert len(result.places) == 0
    with pytest.raises(EmdnError, match="found no lattice in 3"):
        missing_sites([[1.0, 2.0], [3.0, 4.0], [9.0, 1.0]])


def test_what_does_not_fit_is_refused(sites, inside):
    frame = np.ones(SHAPE)
    with pytest.raises(EmdnError, match="sites: found 2"):
        fit_template(frame, sites[:2], PIXEL_NM)
    with pytest.raises(EmdnError, match="kinds"):
        fit_template(frame, sites, PIXEL_NM, kinds=np.zeros(len(sites)))
    with pytest.raises(EmdnError, match="amplitudes"):
        fit_template(frame, sites, PIXEL_NM, amplitudes=[1.0])
    template = fit_template(drawn(sites, np.ones(len(sites))), sites[inside], PIXEL_NM)
    with pytest.raises(EmdnError, match="frame: found shape"):
        site_occupancy(np.ones((50, 50)), template)
