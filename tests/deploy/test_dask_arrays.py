"""Lazy arrays, and a program that has them: dask, HyperSpy."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from emdn_deploy import Denoiser, denoise

da = pytest.importorskip("dask.array")
README = Path(__file__).parents[2] / "deploy" / "README.md"


@pytest.fixture
def movie(lattice):
    """Make counts (23, 40, 44) with dropped frames and a hot pixel."""
    frames = lattice(20.0, (23, 40, 44)).astype("u2")
    frames[3:5], frames[17], frames[:, 5, 6] = 0, 0, 999
    return frames


@pytest.fixture(params=["one frame", "five frames"])
def model(request, box_model, movie_model):
    return Denoiser(box_model if request.param == "one frame" else movie_model)


@pytest.mark.parametrize("chunks", [(5, 20, 44), (1, 40, 44), (22, 40, 40)])
def test_blocks_do_not_matter(movie, model, chunks) -> None:
    lazy = model.denoise(da.from_array(movie, chunks=chunks))
    assert isinstance(lazy, da.Array)
    assert (lazy.shape, lazy.dtype) == (movie.shape, np.float32)
    np.testing.assert_array_equal(lazy.compute(), model.denoise(movie))
    np.testing.assert_array_equal(lazy[7:9].compute(), model.denoise(movie)[7:9])


def test_sigma_and_scans(movie, box_model) -> None:
    scan, model = movie[:20].reshape(4, 5, 40, 44), Denoiser(box_model)
    lazy = model.denoise_with_sigma(da.from_array(scan, chunks=(2, 5, 40, 44)), gain=1, offset=0)
    for one, other in zip(lazy, model.denoise_with_sigma(scan, gain=1, offset=0), strict=True):
        np.testing.assert_array_equal(one.compute(), other)
    made = denoise(da.from_array(scan[0], chunks=(2, 40, 44)), model=box_model)
    np.testing.assert_array_equal(made.compute(), denoise(scan[0], model=box_model))


def test_only_a_sample_is_computed_at_first(movie, box_model) -> None:
    seen = set()

    def noting(block, block_info):
        seen.add(block_info[0]["chunk-location"][0])
        return block

    lazy = da.from_array(np.tile(movie, (20, 1, 1)), chunks=(1, 40, 44))
    denoise(lazy.map_blocks(noting, meta=np.zeros((0, 0, 0), movie.dtype)), model=box_model)
    assert len(seen) < 100


def test_a_denoiser_pickles(movie, box_model, monkeypatch) -> None:
    monkeypatch.chdir(box_model.parent)
    model = Denoiser(box_model.name, threads=1)
    monkeypatch.chdir("/")
    copy = pickle.loads(pickle.dumps(model))
    assert copy.session.threads == 1
    assert pickle.loads(pickle.dumps(model)) is copy  # opened once in a process
    np.testing.assert_array_equal(copy.denoise(movie), model.denoise(movie))


@pytest.mark.slow
def test_hyperspy_as_in_the_readme(lattice, tmp_path, monkeypatch) -> None:
    hs = pytest.importorskip("hyperspy.api")
    frames = lattice(20.0, (9, 40, 44)).astype("u2")
    signal = hs.signals.Signal2D(frames)
    signal.metadata.General.title = "a movie"
    signal.axes_manager[1].scale, signal.axes_manager[1].units = 0.02, "nm"
    monkeypatch.chdir(tmp_path)
    signal.save("movie.hspy", chunks=(2, 40, 44))
    (code,) = re.findall(r"^```py\n(.*?)^```$", README.read_text(), re.M | re.S)
    exec(code, {})
    clean = hs.load("clean.hspy")
    np.testing.assert_array_equal(clean.data, denoise(frames))
    assert clean.metadata.General.title == "a movie"
    assert clean.axes_manager[1].scale == 0.02
    assert clean.axes_manager[1].units == "nm"
