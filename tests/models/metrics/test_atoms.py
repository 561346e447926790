"""Columns found in lattices whose columns are known."""

import numpy as np
import pytest

from emdn_models.errors import EmdnError
from emdn_models.metrics.atoms import find_columns
from emdn_models.metrics.matching import match, score_columns, to_border

PIXEL_NM = 0.016
SHAPE = (72, 104)


def honeycomb(shape, pixel_size_nm=PIXEL_NM, angle=0.3, shift=(0.0, 0.0), beyond=14.0):
    """Sites of graphene that cover a frame and its surroundings, (n, 2) y and x in pixels."""
    a = 0.246 / pixel_size_nm
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    cell = a * np.array([[1, 0], [0.5, np.sqrt(3) / 2]]) @ turn
    i, j = np.meshgrid(np.arange(-25, 26), np.arange(-25, 26))
    corners = np.stack([i.ravel(), j.ravel()], 1) @ cell
    sites = np.concatenate([corners, corners + (cell[0] + cell[1]) / 3]) + shift
    inside = (sites > -beyond) & (sites < np.array(shape) - 1 + beyond)
    return sites[inside.all(1)] + 0.0


def drawn(sites, shape=SHAPE, width_nm=0.045, pixel_size_nm=PIXEL_NM, heights=1.0):
    """A Gaussian for each site, on a level of 10."""
    y, x = np.arange(shape[0])[:, None], np.arange(shape[1])[:, None]
    sigma = width_nm / pixel_size_nm
    rows = np.exp(-0.5 * ((y - sites[:, 0]) / sigma) ** 2)
    columns = np.exp(-0.5 * ((x - sites[:, 1]) / sigma) ** 2)
    return 10 + (rows * heights) @ columns.T


def seen(sites, shape=SHAPE, margin=1.0):
    return sites[((sites >= margin) & (sites <= np.array(shape) - 1 - margin)).all(1)]


def score(found, sites, shape=SHAPE):
    return score_columns(found, seen(sites, shape, 0), PIXEL_NM, shape=shape)


@pytest.mark.parametrize("sign", ["bright", "dark"])
@pytest.mark.parametrize("given", [True, False])
def test_every_column_is_found_to_a_picometre(sign, given):
    sites = honeycomb(SHAPE)
    frame = drawn(sites, heights=1.0 if sign == "bright" else -1.0)
    result = score(find_columns(frame, PIXEL_NM, sign=sign if given else "auto"), sites)
    assert result.matched > 50
    assert result.recall == 1
    assert result.precision == 1
    assert result.rms_pm < 1


def test_a_sloping_and_bent_background_is_no_column_and_moves_none():
    sites = honeycomb(SHAPE)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] / 50
    result = score(
        find_columns(drawn(sites) + 2 * y + x - 0.8 * x * y, PIXEL_NM, sign="bright"), sites
    )
    assert (result.recall, result.precision) == (1, 1)
    assert result.rms_pm < 4


def test_a_beam_as_wide_as_the_frame_loses_few_columns():
    sites = honeycomb(SHAPE)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    beam = 20 * np.exp(-((y - 36) ** 2 + (x - 52) ** 2) / (2 * 60**2))
    result = score(find_columns(drawn(sites) + beam, PIXEL_NM, sign="bright"), sites)
    assert result.recall > 0.9
    assert result.precision == 1
    assert result.rms_pm < 15


def test_columns_follow_a_shift_of_part_of_a_pixel():
    shift = np.array([0.37, -0.21])
    one = find_columns(drawn(honeycomb(SHAPE)), PIXEL_NM, sign="bright")
    other = find_columns(drawn(honeycomb(SHAPE, shift=shift)), PIXEL_NM, sign="bright")
    pairs, _ = match(one + shift, other, 1.0)
    assert len(pairs) > 60
    # Nearer to the border smoothing has nothing beyond it to weigh against.
    inside = to_border(one[pairs[:, 0]], SHAPE) > 0.1 / PIXEL_NM
    moved = (other[pairs[:, 1]] - one[pairs[:, 0]])[inside]
    assert np.abs(moved - shift).max() < 0.05


def test_turning_and_scaling_the_frame_changes_nothing_else():
    frame = drawn(honeycomb(SHAPE))
    plain = find_columns(frame, PIXEL_NM, sign="bright")
    turned = find_columns(frame.T, PIXEL_NM, sign="bright")[:, ::-1]
    scaled = find_columns(1e-3 * frame - 7, PIXEL_NM, sign="bright")
    dark = find_columns(-frame, PIXEL_NM, sign="dark")
    for other in (turned, scaled, dark):
        pairs, distance = match(plain, other, 0.5)
        assert len(pairs) == len(plain) == len(other)
        assert distance.max() < 1e-6


@pytest.mark.parametrize("pixel_size_nm", [0.008, 0.025])
def test_pixels_of_other_sizes(pixel_size_nm):
    sites = honeycomb((96, 96), pixel_size_nm, beyond=40)
    frame = drawn(sites, (96, 96), 0.04, pixel_size_nm)
    found = find_columns(frame, pixel_size_nm, sign="bright")
    result = score_columns(found, seen(sites, (96, 96), 0), pixel_size_nm, shape=(96, 96))
    assert (result.recall, result.precision) == (1, 1)
    assert result.rms_pm < 1.5


def test_noise_costs_accuracy_not_columns():
    sites = honeycomb(SHAPE)
    clean = drawn(sites)
    rms = []
    for noise in (0.03, 0.1):
        noisy = clean + noise * np.random.default_rng(1).normal(size=SHAPE)
        result = score(
            find_columns(noisy, PIXEL_NM, sign="bright", prominence=0.3, smoothing_nm=0.03), sites
        )
        assert result.recall > 0.99
        assert result.precision > 0.99
        rms.append(result.rms_pm)
    assert rms[0] < rms[1] < 15


def test_prominence_decides_what_is_a_column():
    y, x = np.mgrid[10:72:16, 10:104:16].reshape(2, -1)
    strong = np.stack([y, x], 1).astype(float)
    sites = np.append(strong, [[34.0, 50.0]], 0)
    frame = drawn(sites, heights=np.append(np.ones(len(strong)), 0.1))
    low = find_columns(frame, PIXEL_NM, sign="bright", prominence=0.02)
    assert np.hypot(*(low - sites[-1]).T).min() < 0.3
    assert len(low) == len(sites)
    assert len(find_columns(frame, PIXEL_NM, sign="bright", prominence=1.0)) == len(strong)


def test_a_plateau_is_one_column_and_the_border_none():
    frame = np.zeros((40, 40))
    frame[18:22, 18:22] = 1.0
    frame[0, 5] = frame[39, 30] = 5.0
    found = find_columns(frame, PIXEL_NM, sign="bright", smoothing_nm=0.001, prominence=1e-9)
    central = found[np.hypot(*(found - 19.5).T) < 4]
    assert len(central) == 1
    assert np.abs(central - 19.5).max() < 0.6
    assert not ((found < 1) | (found > 38)).any()


def test_nothing_is_found_in_a_constant_frame():
    assert find_columns(np.full((32, 48), 3.7), PIXEL_NM).shape == (0, 2)


def test_matching_is_one_to_one_and_takes_the_nearest_first():
    found = [[0.0, 0.0], [0.0, 1.0], [9.0, 9.0]]
    true = [[0.0, 0.8], [0.0, 2.4], [50.0, 50.0]]
    pairs, distance = match(found, true, 2.0)
    assert pairs.tolist() == [[1, 0]]
    np.testing.assert_allclose(distance, [0.2])
    pairs, _ = match(found, true, 3.0)
    assert pairs.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("seed", range(3))
def test_the_grid_gives_the_pairs_that_all_distances_give(seed):
    chance = np.random.default_rng(seed)
    a, b = chance.uniform(-3, 20, (60, 2)), chance.uniform(0, 25, (50, 2))
    gap = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1))
    expected = []
    for k in np.argsort(gap, axis=None):
        i, j = divmod(int(k), len(b))
        if gap[i, j] <= 2.5 and all(i != p and j != q for p, q in expected):
            expected.append((i, j))
    assert match(a, b, 2.5)[0].tolist() == [list(pair) for pair in expected]


def test_scores_count_what_is_inside_and_give_picometres():
    true = np.array([[20.0, 20.0], [20.0, 40.0], [40.0, 20.0], [1.0, 1.0]])
    found = np.array([[20.5, 20.0], [20.5, 40.0], [30.0, 30.0], [70.5, 1.0]])
    result = score_columns(found, true, 0.02, shape=(72, 72))
    assert result.matched == 2
    assert result.recall == pytest.approx(2 / 3)
    assert result.precision == pytest.approx(2 / 3)
    assert result.rms_pm == pytest.approx(10.0)
    assert result.centred_rms_pm == pytest.approx(0.0, abs=1e-9)
    assert score_columns(found, true, 0.02).recall == pytest.approx(2 / 4)
    none = score_columns([], true, 0.02)
    assert none.recall == 0
    assert np.isnan(none.precision)


def test_what_is_no_frame_or_no_point_is_refused():
    with pytest.raises(EmdnError, match=r"frame: found shape \(2, 8, 8\)"):
        find_columns(np.zeros((2, 8, 8)), PIXEL_NM)
    with pytest.raises(EmdnError, match="not finite"):
        find_columns(np.full((8, 8), np.nan), PIXEL_NM)
    with pytest.raises(EmdnError, match="sign: found 'white'"):
        find_columns(np.eye(8), PIXEL_NM, sign="white")
    with pytest.raises(EmdnError, match="pixel_size_nm"):
        find_columns(np.eye(8), 0)
    with pytest.raises(EmdnError, match="true: found shape"):
        match([[1.0, 2.0]], [1.0, 2.0, 3.0], 1.0)
