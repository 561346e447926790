"""Time resolution: fakes of known worth, on a drawn crystal whose vacancy hops."""

import numpy as np
import polars as pl
import pytest

from emdn_train import resolution
from emdn_train.clips import Hop, hops
from emdn_train.quality_tables import markdown
from emdn_train.resolution import COLUMNS, ERROR, HOP, compare, moving_average, table, worth, worths
from emdn_train.ruler import Ruler

PIXEL_NM = 0.02
SIZE = 64


def scene(sites: np.ndarray, vacant: int) -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE]
    frame = np.full((SIZE, SIZE), 10.0)
    for index, (sy, sx) in enumerate(sites):
        if index != vacant:
            frame += 10 * np.exp(-((x - sx) ** 2 + (y - sy) ** 2) / (2 * 2.0**2))
    return frame.astype(np.float32)


@pytest.fixture(scope="module")
def hop() -> Hop:
    """A square lattice of bright columns 0.2 nm apart, recorded at 10 to 20 electrons."""
    sites = np.stack([one.ravel() for one in np.mgrid[5:SIZE:10, 5:SIZE:10]], 1) + 0.3
    old, new = 21, 22
    before, after = scene(sites, old), scene(sites, new)
    snr = float(before.std() / before.mean() * before.mean() ** 0.5)
    return Hop(before, after, sites[old], sites[new], snr, PIXEL_NM)


def four(frames: np.ndarray) -> np.ndarray:
    return moving_average(np.pad(frames, ((2, 1), (0, 0), (0, 0)), mode="edge"), 4)


@pytest.fixture(scope="module")
def rows(hop: Hop):
    def truth(frames: np.ndarray) -> np.ndarray:
        scenes = hop.expected(0.25)
        late = resolution.SEARCHED + resolution._AROUND
        return np.concatenate([
            np.repeat(scenes[:1], len(frames) - late, 0), np.repeat(scenes[1:], late, 0)
        ])  # fmt: skip

    fakes = {
        "raw": lambda frames: frames,
        "four": four,
        "truth": truth,
        "mean": lambda frames: np.full_like(frames, frames.mean()),
    }
    return compare([hop] * 3, fakes, (0.25,), longest=16)


@pytest.fixture(scope="module")
def seen(hop: Hop):
    """Many more clips at a lower dose, of which only the hop counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ruler, "column_errors", lambda *_: (0.0,) * 3)
        return compare([hop] * 50, {"four": four}, (0.1,), longest=8)


def test_an_average_of_four_is_worth_four(rows) -> None:
    found = worths(rows).filter(model="four").row(0, named=True)
    assert found[f"{ERROR}, worth"] == pytest.approx(4, rel=0.03)
    assert found[f"{COLUMNS}, worth"] == pytest.approx(4, rel=0.4)


def test_an_average_of_four_shows_a_hop_as_four_do(seen) -> None:
    means = seen.group_by("method", "frames").agg((pl.col(HOP).mean() ** 0.5).alias("off"))
    off = {(method, k): value for method, k, value in means.iter_rows()}
    assert off["average", 1] > 1.5 * off["average", 4]  # or this says nothing
    assert off["four", 1] == pytest.approx(off["average", 4], rel=0.1)


def test_a_raw_frame_is_worth_one(rows) -> None:
    found = worths(rows).filter(model="raw").row(0, named=True)
    for name in (ERROR, COLUMNS, HOP):
        assert found[f"{name}, worth"] == pytest.approx(1, abs=0.15)
    assert found[f"{ERROR}, raw"] == pytest.approx(1, abs=0.02)


def test_no_average_is_as_good_as_the_truth(rows) -> None:
    found = worths(rows).filter(model="truth").row(0, named=True)
    assert [found[f"{name}, worth"] for name in (ERROR, COLUMNS, HOP)] == [np.inf] * 3
    assert [found[f"{name}, denoised"] for name in (ERROR, COLUMNS, HOP)] == [0, 0, 0]


def test_a_grey_frame_shows_neither_columns_nor_the_hop(rows) -> None:
    found = worths(rows).filter(model="mean").row(0, named=True)
    assert found[f"{COLUMNS}, denoised"] == pytest.approx(70)
    assert found[f"{COLUMNS}, worth"] == 1
    assert found[f"{HOP}, denoised"] == resolution.SEARCHED
    assert found[f"{ERROR}, worth"] > 3  # a mean is a good guess of counts


def test_the_table_says_what_is_out_of_range(rows) -> None:
    text = markdown(table(rows))
    lines = {line.split("|")[1].strip(): line for line in text.splitlines()}
    assert "> 16" in lines["truth"]
    assert "≤ 1" in lines["raw"]
    assert "4" in lines["four"].split("|")[3]
    assert "inf" not in text


@pytest.mark.parametrize("k", [1, 2, 4, 8, 16])
def test_without_noise_the_hop_is_seen_where_it_is(hop: Hop, k: int) -> None:
    ruler = Ruler.of(hop, 1.0)
    raw = np.repeat(ruler.expected, 40, 0)
    errors = resolution._averages(raw, k, ruler)
    # A window of an even number of frames may fall half before and half after the hop.
    assert errors[HOP] == (0 if k == 1 else 0.25)
    assert errors[ERROR] == pytest.approx(0, abs=1e-6)


def test_a_hop_that_is_shown_late_is_late(hop: Hop) -> None:
    ruler = Ruler.of(hop, 1.0)
    raw = np.repeat(ruler.expected, 40, 0)
    late = resolution._denoised(raw, lambda frames: np.roll(frames, 3, 0), ruler)
    assert late[HOP] == 9


def test_missed_and_false_columns_count_alike(hop: Hop) -> None:
    ruler = Ruler.of(hop, 1.0)
    assert ruler.sign == "bright"
    assert ruler.column_errors(ruler.expected[0])[0] == 0
    others = ruler.column_errors(ruler.expected[1])  # one missed, another false
    count = round(70**2 / others[0])
    assert others[0] == pytest.approx(70**2 / count, rel=1e-3)
    filled = ruler.expected[0] + np.maximum(ruler.expected[1] - ruler.expected[0], 0)
    assert ruler.column_errors(filled)[0] == pytest.approx(70**2 / (count + 1), rel=0.01)
    moved = np.roll(ruler.expected[0], 1, 1)
    assert ruler.column_errors(moved)[0] == pytest.approx(20**2, rel=0.15)


def test_worth_lies_between_numbers_by_a_power_law() -> None:
    curve = {1: 1.0, 2: 2**-0.5, 4: 0.5, 8: 0.6}
    assert worth(curve, 3**-0.5) == pytest.approx(3)
    assert worth(curve, 0.5) == 4
    assert worth(curve, 2.0) == 1
    assert worth(curve, 0.4) == np.inf
    assert worth({1: 1.0, 2: 0.0}, 0.0) == 2


def test_doses_scale_and_clips_are_the_same_every_time(hop: Hop) -> None:
    one = hop.recorded(2 * hop.snr, 30, seed=1)
    assert one.shape == (60, SIZE, SIZE)
    assert one[:30].mean() == pytest.approx(4 * hop.before.mean(), rel=0.01)
    assert np.abs(one[30:].mean(0) - 4 * hop.after).max() < 12
    np.testing.assert_array_equal(one, hop.recorded(2 * hop.snr, 30, seed=1))
    assert not np.array_equal(one, hop.recorded(2 * hop.snr, 30, seed=2))


def test_a_simulated_vacancy_hops_by_a_bond() -> None:
    (hop,) = hops(1, size=96)
    step = np.hypot(*(hop.new - hop.old)) * hop.pixel_size_nm
    assert step == pytest.approx(0.142, abs=0.02)
    change = np.square(hop.after - hop.before)
    y, x = np.indices(change.shape)
    middle = (hop.old + hop.new) / 2
    near = np.hypot(y - middle[0], x - middle[1]) * hop.pixel_size_nm < 0.35
    assert change[near].sum() > 0.5 * change.sum()
    assert hop.snr == pytest.approx(1)
