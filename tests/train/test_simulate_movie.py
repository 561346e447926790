"""Movies: what moves, what holds still, and that the truth is the truth."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from emdn_train.simulate import SimulateConfig, simulate


@pytest.fixture(scope="module", params=[0, 1], ids=["vacancy", "adatom"])
def movie(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(
        SimulateConfig(
            tmp_path_factory.mktemp("movie") / "out",
            frames=24,
            kind="movie",
            size=128,
            dose_e_per_a2=(8000.0, 8000.0),
            pixel_size_nm=(0.012, 0.012),
            seed=request.param,
        )
    )


def test_counts_carry_their_calibration_and_not_the_truth(movie: Path) -> None:
    with h5py.File(movie / "movie.h5") as file:
        data = file[file.attrs["default"]][file["entry"].attrs["default"]]
        assert data.attrs["NX_class"] == "NXdata"
        frames = data[data.attrs["signal"]]
        assert frames.dtype == np.uint16
        assert frames.shape == (24, 128, 128)
        assert list(data.attrs["axes"]) == ["time", "y", "x"]
        units = [data[name].attrs["units"] for name in data.attrs["axes"]]
        assert units == ["s", "nm", "nm"]
        assert data["x"][1] - data["x"][0] == pytest.approx(0.012)
        assert data.attrs["dose_e_per_a2"] == pytest.approx(8000)


def test_noise_is_counting_noise_about_the_truth(movie: Path) -> None:
    with h5py.File(movie / "movie.h5") as file, h5py.File(movie / "movie_truth.h5") as truth:
        valid = truth["valid"][()]
        expected = truth["expected"][()][:, valid]
        residual = (file["entry/data/frames"][()][:, valid] - expected) / np.sqrt(expected)
        # 8000 e/A^2 on 0.12 A pixels, most of which are counted
        assert truth.attrs["electrons_per_pixel"] == pytest.approx(8000 * 0.12**2)
    assert residual.mean() == pytest.approx(0, abs=0.01)
    assert residual.std() == pytest.approx(1, abs=0.01)


def test_faulty_pixels_hold_still(movie: Path) -> None:
    with h5py.File(movie / "movie.h5") as file, h5py.File(movie / "movie_truth.h5") as truth:
        bad = ~truth["valid"][()]
        frames = file["entry/data/frames"][()]
    assert bad.any()
    assert (frames[:, bad].std(0) < 0.05 * frames.mean()).all()


def test_defect_hops_by_one_bond_and_the_rest_drifts(movie: Path) -> None:
    with h5py.File(movie / "movie_truth.h5") as truth:
        steps = np.diff(truth["defect"][()] - truth["drift"][()], axis=0)
        drift = truth["drift"][()]
    hops = np.hypot(*steps.T) * 0.12
    assert (drift[0] == 0).all()
    assert np.abs(np.diff(drift, axis=0)).max() < 1.0
    assert np.abs(drift[-1]).max() > 0.1
    still = hops < 0.01
    assert 0.4 < still.mean() < 1.0
    np.testing.assert_allclose(hops[~still], 1.42, atol=0.06)


def test_truth_shows_the_defect_where_it_says(movie: Path) -> None:
    """Away from the defect the lattice goes on; at it the image differs from frame to frame."""
    with h5py.File(movie / "movie_truth.h5") as truth:
        expected = truth["expected"][()]
        places = truth["defect"][()]
        drift = truth["drift"][()]
        name = truth["defect"].attrs["name"]
    moved = np.hypot(*(places - drift - (places - drift)[0]).T)
    other = int(np.argmax(moved))
    assert moved[other] > 5
    q = np.fft.fftfreq(128)
    dx, dy = drift[other]
    back = np.exp(2j * np.pi * (q[:, None] * dy + q[None] * dx))
    aligned = np.fft.ifft2(np.fft.fft2(expected[other]) * back).real
    difference = np.abs(aligned - expected[0])
    y, x = np.mgrid[:128, :128]
    near = np.zeros((128, 128), bool)
    for place in (places[0], places[other] - drift[other]):
        near |= np.hypot(x - place[0], y - place[1]) < 12
    inner = (np.abs(x - 63.5) < 45) & (np.abs(y - 63.5) < 45)
    assert name in ("V1(5-9)", "silicon adatom")
    assert difference[near].mean() > 2 * difference[inner & ~near].mean()
