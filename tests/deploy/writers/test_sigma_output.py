"""Standard deviations in files: beside the frames, complete or absent, never taken for them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile

from emdn_deploy import Denoiser, cli, inspect, job, output, targets
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.readers import Choice, open_frames
from emdn_models.errors import OutputError

KINDS = ["h5", "hspy", "tif", "mrc", "npy"]
# HyperSpy and nexusformat warn of their own future.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def source(tmp_path: Path, lattice) -> Path:
    """A plain HDF5 file, in which nothing but the shape marks the frames."""
    path = tmp_path / "movie.h5"
    with h5py.File(path, "w") as file:
        file["set/frames"] = lattice(40.0, (8, 24, 30)).astype(np.uint16)
        file["set/frames"].attrs["units"] = "counts"
        file["set/x"] = np.arange(30) * 0.02
        file["set/x"].make_scale("x")
        file["set/frames"].dims[2].attach_scale(file["set/x"])
    return path


@pytest.fixture
def run(box_model: Path) -> Callable[..., job.Report]:
    def denoise(source: Path, **options: Any) -> job.Report:
        given = {
            "model": str(box_model), "device": "cpu", "batch": 2, "gain": 1.0, "offset": 0.0,
            "sigma": True, **options,
        }  # fmt: skip
        return job.run(source, DenoiseOptions(**given))

    return denoise


@pytest.fixture
def expected(source: Path, box_model: Path) -> tuple[np.ndarray, np.ndarray]:
    with open_frames(source) as frames:
        stack = frames.read(0, 8)
    return Denoiser(box_model).denoise_with_sigma(stack, gain=1.0, offset=0.0, batch=2)


def pixels(path: Path, dataset: str | None = None) -> np.ndarray:
    with open_frames(path, Choice(dataset)) as frames:
        return np.array(frames.read_block(0, frames.shape[0]))


def both(report: job.Report) -> tuple[np.ndarray, np.ndarray]:
    """Read frames and sigma back from where the report says that they are."""
    assert report.sigma is not None
    inside = report.sigma.startswith("/") and not Path(report.sigma).exists()
    second = pixels(report.output, report.sigma) if inside else pixels(Path(report.sigma))
    return pixels(report.output), second


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("to", KINDS)
def test_every_kind_holds_both(source: Path, run, expected, to: str, compress: bool) -> None:
    if compress and to in ("mrc", "npy"):
        with pytest.raises(OutputError, match="are not compressed"):
            run(source, to=to, compress=True)
        return
    report = run(source, to=to, compress=compress)
    for found, wanted in zip(both(report), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-5)
    assert not list(source.parent.glob("*.partial*"))
    names = {path.name for path in source.parent.iterdir()} - {"movie.h5"}
    beside = {f"movie_denoised_sigma.{to}"} if to in ("tif", "mrc", "npy") else set()
    assert {name for name in names if "json" not in name} == {f"movie_denoised.{to}"} | beside


@pytest.mark.parametrize("to", ["h5", "hspy", "tif", "mrc"])
def test_sigma_stays_float32_beside_integers(source: Path, run, expected, to: str) -> None:
    frames, sigma = both(run(source, to=to, dtype="int16"))
    assert frames.dtype.name == "int16"
    assert sigma.dtype.newbyteorder("=") == np.float32
    np.testing.assert_array_equal(frames, np.rint(expected[0]))
    np.testing.assert_allclose(sigma, expected[1], rtol=1e-6, atol=1e-5)


def test_the_mirror_calibrates_sigma_like_the_frames(source: Path, run) -> None:
    with h5py.File(run(source).output) as file:
        sigma = file["set/frames_sigma"]
        assert {name: sigma.attrs[name] for name in sigma.attrs if name != "DIMENSION_LIST"} == {
            "units": "counts", "sigma_of": "frames", "long_name": "standard deviation of frames",
        }  # fmt: skip
        assert sigma.dims[2][0] == file["set/x"]
        assert sigma.chunks == (1, 24, 30)
        assert (file["emdn"].attrs["ensemble"], file["emdn"].attrs["frames"]) == (8, "/set/frames")
        assert "uncalibrated for box" in file["emdn"].attrs["sigma"]


def test_the_sigma_of_a_stack_in_parts(tmp_path: Path, run, lattice) -> None:
    path = tmp_path / "run_master.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("entry/data")
        group.attrs.update({"NX_class": "NXdata", "signal": "data_000001"})
        for number in (1, 2):
            name = f"data_{number:06}"
            with h5py.File(tmp_path / f"run_{name}.h5", "w") as part:
                part["data"] = lattice(20.0, (3, 16, 24)).astype(np.uint16)
                part["data"].attrs["image_nr_high"] = 3 * number
            group[name] = h5py.ExternalLink(f"run_{name}.h5", "/data")
    report = run(path)
    assert report.sigma == "/entry/data/data_000001_sigma"
    with h5py.File(report.output) as file:
        assert file[report.sigma].shape == (6, 16, 24)
        assert file[report.sigma].attrs["image_nr_high"] == 6
        assert file["entry/data/data_000001_errors"] == file[report.sigma]
    with open_frames(report.output) as frames:
        assert (frames.dataset, frames.parts) == ("/entry/data/data_000001", ())


@pytest.mark.parametrize("order", ["yxt", "xyt", "txy"])
def test_any_axis_order(tmp_path: Path, run, lattice, order: str) -> None:
    frames = lattice(20.0, (3, 16, 22)).astype(np.uint16)
    path = tmp_path / "movie.h5"
    with h5py.File(path, "w") as file:
        file["a"] = np.transpose(frames, ["tyx".index(letter) for letter in order])
    straight = tmp_path / "straight.npy"
    np.save(straight, frames)
    wanted = both(run(straight, to="npy"))[1]
    target = run(path, axes=order).output
    with h5py.File(target) as file:
        sigma = np.transpose(file["a_sigma"][()], [order.index(letter) for letter in "tyx"])
    np.testing.assert_array_equal(sigma, wanted)


@pytest.mark.parametrize("to", ["h5", "hspy"])
def test_the_output_is_an_input_without_a_question(source: Path, run, to: str) -> None:
    first = run(source, to=to)
    dataset = first.sigma.removesuffix("_sigma")
    assert any(f"{dataset} (" in line for line in inspect.describe(first.output, Choice()))
    for sigma in (False, True):
        again = run(first.output, sigma=sigma, suffix=f"_again_{sigma}")
        assert again.dataset == dataset
        with h5py.File(again.output) as file:
            assert (first.sigma in file) == sigma
            assert f"{dataset}_errors" not in file or sigma
        np.testing.assert_array_equal(pixels(again.output).shape, (8, 24, 30))


def test_other_programs_open_the_hspy_file(source: Path, run, expected) -> None:
    hyperspy = pytest.importorskip("hyperspy.api")
    nexusformat = pytest.importorskip("nexusformat.nexus")
    report = run(source, to="hspy")
    assert report.sigma == "/Experiments/movie/data_sigma"
    signal = hyperspy.load(report.output)
    np.testing.assert_allclose(signal.data, expected[0], rtol=1e-6)
    data = nexusformat.nxload(str(report.output)).get_default()
    np.testing.assert_allclose(data.nxsignal.nxvalue, expected[0], rtol=1e-6)
    np.testing.assert_allclose(data.nxerrors.nxvalue, expected[1], rtol=1e-6, atol=1e-5)


def test_separate_files_say_what_they_are(source: Path, run) -> None:
    with mrcfile.open(run(source, to="mrc").sigma) as file:
        assert "standard deviation of movie_denoised.mrc" in "".join(file.get_labels())
        assert file.header.dmean == pytest.approx(file.data.mean(), rel=1e-5)
    with tifffile.TiffFile(run(source, to="tif").sigma) as file:
        facts = json.loads(file.imagej_metadata["Info"])
        assert facts["content"] == "standard deviation of movie_denoised.tif"
        assert facts["output_mean"] == pytest.approx(file.asarray().mean(), rel=1e-5)
        assert "intensity_ratio" not in facts
    facts = json.loads(Path(run(source, to="npy").sigma).with_suffix(".npy.json").read_text())
    assert (facts["emdn"]["ensemble"], facts["axes"][1]["step"]) == (8, 0.02)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("to", KINDS)
def test_an_interrupted_run_is_continued(
    source: Path, run, monkeypatch, to: str, compress: bool
) -> None:
    if compress and to in ("mrc", "npy"):
        to = "tif"
    options = {"to": to, "compress": compress}
    whole = run(source, output=source.with_name(f"whole.{to}"), **options)
    write = output.Output.write

    def failing(self: output.Output, start: int, *blocks: np.ndarray) -> None:
        if start >= 4:
            raise KeyboardInterrupt
        write(self, start, *blocks)

    monkeypatch.setattr(output.Output, "write", failing)
    target = source.with_name(f"cut.{to}")
    with pytest.raises(KeyboardInterrupt):
        run(source, output=target, **options)
    monkeypatch.undo()
    assert not target.exists()
    assert not target.with_name(f"cut_sigma.{to}").exists()
    with pytest.raises(OutputError, match="interrupted run with another ensemble, sigma"):
        run(source, output=target, sigma=False, **options)
    report = run(source, output=target, **options)
    assert report.resumed == 4
    for found, wanted in zip(both(report), both(whole), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert not list(source.parent.glob("*.partial*"))


@pytest.mark.parametrize("to", KINDS)
def test_a_failure_leaves_nothing(source: Path, run, monkeypatch, to: str) -> None:
    def failing(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(output.Output, "write", failing)
    with pytest.raises(ValueError, match="a bug"):
        run(source, to=to)
    assert list(source.parent.iterdir()) == [source]


def test_an_existing_file_of_sigma_is_refused(source: Path, run, caplog) -> None:
    report = run(source, to="tif")
    before = Path(report.sigma).read_bytes()
    report.output.unlink()
    with pytest.raises(OutputError, match=r"_sigma\.tif: exists already"):
        run(source, to="tif")
    assert not caplog.text.count("earlier run")
    run(source, to="tif", sigma=False)
    assert "movie_denoised_sigma.tif: is of an earlier run" in caplog.text
    assert Path(report.sigma).read_bytes() == before
    run(source, to="tif", overwrite=True)


def test_names_that_are_taken_are_refused_before_any_work(
    source: Path, run, box_model: Path, monkeypatch
) -> None:
    monkeypatch.setattr("emdn_deploy.correction.prepare", lambda *_: pytest.fail("too late"))
    with h5py.File(source, "r+") as file:
        file["set/frames_sigma"] = np.ones(3)
    with pytest.raises(OutputError, match="holds /set/frames_sigma already"):
        run(source)
    with pytest.raises(OutputError, match="choose --to hspy, or leave out --sigma"):
        job.plan(source, DenoiseOptions(sigma=True, model=str(box_model)))
    monkeypatch.undo()
    assert run(source, to="hspy").sigma == "/Experiments/movie/data_sigma"
    with h5py.File(run(source, sigma=False).output) as file:
        assert file["set/frames_sigma"].shape == (3,)


def test_a_selection_has_its_own_sigma(source: Path, run, expected) -> None:
    report = run(source, frames="2:8:2")
    assert report.output.suffix == ".hspy"
    np.testing.assert_allclose(both(report)[1], expected[1][2:8:2], rtol=1e-3, atol=1e-4)


def test_the_command_says_it(source: Path, box_model: Path, capsys, caplog) -> None:
    def call(*more: str) -> str:
        arguments = ["denoise", str(source), "--model", str(box_model), "--device", "cpu"]
        with pytest.raises(SystemExit) as left:
            cli.main([*arguments, "--sigma", *more])
        assert not left.value.code
        return capsys.readouterr().out

    planned = call("--dry-run")
    assert "standard deviations in /set/frames_sigma, at about eight times the time" in planned
    assert json.loads(call("--dry-run", "--json"))["size_bytes"] == 8 * 24 * 30 * 8
    said = "8 orientations, uncalibrated for box: the raw spread, smaller than the error"
    assert f"sigma      {said}; in /set/frames_sigma" in call()
    assert f"warning: {source}: sigma is {said}" in caplog.text
    facts = json.loads(call("--json", "--to", "tif"))
    assert facts["sigma"] == str(source.with_name("movie_denoised_sigma.tif"))
    assert facts["sigma_note"] == said


def test_inputs_may_not_share_a_file_of_sigma(tmp_path: Path) -> None:
    sources = [Path("a.npy"), Path("a_sigma.npy")]
    options = DenoiseOptions(to="npy", suffix="_sigma", out_dir=tmp_path)
    assert len(targets.each(sources, options)) == 2
    with pytest.raises(OutputError, match=r"would both be written to .*a_sigma_sigma\.npy"):
        targets.each(sources, replace(options, sigma=True))
