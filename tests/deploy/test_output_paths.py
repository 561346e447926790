"""Names of outputs, and runs over several inputs."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from emdn_deploy import writers
from emdn_deploy.config import DenoiseOptions
from emdn_models.errors import OutputError


@pytest.fixture
def hdf5(tmp_path: Path, lattice) -> Path:
    path = tmp_path / "movie.nxs"
    with h5py.File(path, "w") as file:
        file["frames"] = lattice(20.0, (4, 24, 24)).astype(np.uint16)
    return path


@pytest.mark.parametrize(
    ("name", "options", "expected", "module"),
    [
        ("run.1", {}, "run.1_denoised.hspy", "hdf5"),
        ("movie.nxs", {}, "movie_denoised.nxs", "mirror"),
        ("movie.nxs", {"to": "tif"}, "movie_denoised.tif", "tiff"),
        ("movie.nxs", {"to": "hspy"}, "movie_denoised.hspy", "hdf5"),
        ("movie.nxs", {"to": "h5"}, "movie_denoised.h5", "mirror"),
        ("movie.nxs", {"frames": "0:2"}, "movie_denoised.hspy", "hdf5"),
        ("movie.dm4", {}, "movie_denoised.hspy", "hdf5"),
        ("a.b.tif", {}, "a.b_denoised.tif", "tiff"),
        ("a.ome.TIFF", {}, "a_denoised.TIFF", "tiff"),
        ("a.btf", {}, "a_denoised.tif", "tiff"),
        ("a.st", {}, "a_denoised.mrc", "mrc"),
        ("a.b.npy", {}, "a.b_denoised.npy", "npy"),
        ("run/*.tif", {}, "run_denoised.hspy", "hdf5"),
        ("movie.ser", {"to": "mrc", "out_dir": Path("out")}, "out/movie_denoised.mrc", "mrc"),
    ],
)
def test_outputs_lie_beside_their_inputs(hdf5, name, options, expected, module):
    (hdf5.parent / "run.1").mkdir()
    target, writer = writers.target_of(hdf5.parent / name, DenoiseOptions(**options))
    folder = Path() if "out_dir" in options else hdf5.parent
    assert (target, writer) == (folder / expected, module)


def test_a_name_that_contradicts_the_format_is_refused(hdf5):
    options = DenoiseOptions(output=hdf5.parent / "out.tif", to="mrc")
    with pytest.raises(OutputError, match=r"out\.tif: is no name for --to mrc"):
        writers.target_of(hdf5, options)


@pytest.mark.parametrize("second", ["a.btf", "a_denoised.tif"])
def test_no_output_is_another_one_or_an_input(tmp_path, second):
    """`denoise a.tif a_denoised.tif --overwrite` would denoise the first into the second."""
    sources = [tmp_path / "a.tif", tmp_path / second]
    with pytest.raises(
        OutputError, match=r"a_denoised.tif: is the input itself, another input, or"
    ):
        writers.targets_of(sources, DenoiseOptions(overwrite=True))


def test_several_inputs_and_one_that_fails(tmp_path, hdf5, box_model, lattice, call, capsys):
    np.save(tmp_path / "b.npy", lattice(20.0, (3, 24, 24)))
    out = tmp_path / "out"
    out.mkdir()
    status = call(
        "denoise", tmp_path / "b.npy", tmp_path / "none.h5", hdf5, "--model", box_model,
        "--device", "cpu", "--out-dir", out, "--json",
    )  # fmt: skip
    printed = capsys.readouterr()
    assert status == 1
    assert "1 of 3 inputs failed" in printed.err.splitlines()[-1]
    assert "none.h5: no such file" in printed.err
    facts = [json.loads(line) for line in printed.out.splitlines()]
    assert [fact["frames"] for fact in facts] == [3, 4]
    assert facts[1]["output"] == str(out / "movie_denoised.nxs")


def test_wrong_usage_and_a_dry_run(hdf5, call, capsys):
    assert call("denoise", hdf5, hdf5, "-o", "a.h5") == 2
    assert "single input" in capsys.readouterr().err
    assert call("denoise", hdf5, "--dry-run", "--frames", "1:3") == 0
    printed = capsys.readouterr().out
    assert f"{hdf5} -> {hdf5.parent / 'movie_denoised.hspy'}" in printed
    assert "2 frames of 24 x 24, uint16, plain HDF5 /frames" in printed
    assert list(hdf5.parent.iterdir()) == [hdf5]
