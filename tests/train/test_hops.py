"""Movies in which a vacancy hops: what is there is found, and what is filled is not."""

import numpy as np
import polars as pl
import pytest

from emdn_train import hops


@pytest.fixture(scope="module")
def movie() -> hops.Movie:
    return hops.simulate(0, frames=8, size=128)


class Known:
    """Stands for a denoiser: gives the truth, or the truth of another frame."""

    def __init__(self, clean: np.ndarray, frames: list[int]) -> None:
        self.clean, self.frames = clean, frames

    def denoise(self, noisy: np.ndarray) -> np.ndarray:
        return self.clean[self.frames] * (noisy.mean() / self.clean.mean())


def test_the_vacancy_hops_once_to_a_neighbour(movie: hops.Movie) -> None:
    sites = [movie.sites[t].vacant.nonzero()[0] for t in range(8)]
    assert [len(one) for one in sites] == [1] * 8
    places = np.array([movie.sites[t].places[one[0]] for t, one in enumerate(sites)])
    rest = places - movie.drift
    steps = np.hypot(*np.diff(rest, axis=0).T)
    bond = 0.142 / movie.pixel_size_nm
    assert steps[3] == pytest.approx(bond, rel=0.25)
    assert np.delete(steps, 3).max() < 0.02
    for t in range(8):
        assert movie.places[t][int(t >= 4)] == sites[t][0]


@pytest.fixture(scope="module")
def rows(movie: hops.Movie) -> pl.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hops, "simulate", lambda seed: movie)
        late = [max(0, t - 2) for t in range(8)]
        models = {"truth": Known(movie.clean, list(range(8))), "late": Known(movie.clean, late)}
        return hops.measure(models, 1, (0.4, 3.0))


def test_the_truth_shows_the_hop_at_its_frame_and_a_late_model_later(rows: pl.DataFrame) -> None:
    table = hops.summary(rows)
    off = {(snr, name): value for snr, name, value in table.select(
        "snr", "method", "most").iter_rows()}  # fmt: skip
    assert off[3.0, "truth"] == off[3.0, "raw frame"] == 0
    assert off[3.0, "late"] == 2
    seen = {name: value for snr, name, value in table.select("snr", "method", "AUC").iter_rows()
            if snr == 3.0}  # fmt: skip
    assert seen["truth"] == seen["raw frame"] == 1
    truth = table.filter(pl.col("method") == "truth")
    assert truth["0.1 false at the hop"].to_list() == [1, 1]


def test_averages_gain_what_the_electrons_hold(rows: pl.DataFrame) -> None:
    gains = dict(
        hops.summary(rows.filter(pl.col("level") == 0.4)).select("method", "gain").iter_rows()
    )
    assert gains["raw frame"] == 0
    # Frames at the ends have two neighbours of three; linear interpolation smooths on top.
    assert 3.5 < gains["average of 3"] < 8
    assert gains["average of 5"] > gains["average of 3"]
