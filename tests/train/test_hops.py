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
    table = {(row["snr"], row["method"]): row for row in hops.summary(rows).to_dicts()}
    assert table[3.0, "truth"]["most"] == table[3.0, "raw frame"]["most"] == 0
    assert table[3.0, "late"]["most"] == 2
    assert table[3.0, "truth"]["AUC"] == table[3.0, "raw frame"]["AUC"] == 1
    assert table[0.4, "truth"]["0.1 false at the hop"] == 1
    # Frames at the ends have two neighbours of three; linear interpolation smooths on top.
    gains = [table[0.4, name]["gain"] for name in ("raw frame", "average of 3", "average of 5")]
    assert gains[0] == 0
    assert 3.5 < gains[1] < 8
    assert gains[1] < gains[2]
