"""What an HDF5 output keeps of its input."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from emdn_deploy import Denoiser, job
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.readers import open_frames


def denoise(source: Path, model: Path, **options) -> Path:
    report = job.run(
        source, DenoiseOptions(model=str(model), device="cpu", gain=1.0, offset=0.0, **options)
    )
    return report.output


@pytest.fixture
def source(tmp_path: Path, lattice) -> Path:
    """A NeXus file with everything that gets lost on the way elsewhere."""
    path = tmp_path / "movie.nxs"
    with h5py.File(tmp_path / "beside.h5", "w") as file:
        file["dark"] = np.zeros((4, 4))
    with h5py.File(path, "w") as file:
        file.attrs["default"] = "entry"
        entry = file.create_group("entry")
        entry.attrs.update({"NX_class": "NXentry", "default": "data"})
        data = entry.create_group("data")
        data.attrs.update({"NX_class": "NXdata", "signal": "frames"})
        data.attrs["axes"] = ["time", "y", "x"]
        frames = data.create_dataset(
            "frames", data=lattice(20.0, (6, 30, 44)).astype(np.uint16),
            chunks=(2, 30, 44), compression="gzip",
        )  # fmt: skip
        frames.attrs["units"] = "counts"
        frames.attrs["long_name"] = "Intensität"
        frames.attrs["range"] = np.array([0, 65535], np.uint32)
        frames.attrs["fixed"] = np.bytes_("abc")
        frames.attrs["nothing"] = h5py.Empty("f4")
        data["time"] = np.arange(6) * 0.1
        data["x"] = np.arange(44) * 0.02
        data["x"].attrs["units"] = "nm"
        data["x"].make_scale("x")
        frames.dims[2].attach_scale(data["x"])
        frames.dims[0].label = "time"
        frames.attrs["linked"] = data["time"].ref
        entry["same"] = frames
        entry["alias"] = h5py.SoftLink("/entry/data/frames")
        entry["dangling"] = h5py.SoftLink("/nowhere")
        entry["dark"] = h5py.ExternalLink("beside.h5", "/dark")
        entry["note"] = "taken on a Tuesday"
    return path


def test_the_tree_is_kept(source: Path, box_model: Path) -> None:
    output = denoise(source, box_model)
    assert output == source.with_name("movie_denoised.nxs")
    with h5py.File(source) as before, h5py.File(output) as after:
        names: list[str] = []
        before.visit(names.append)
        assert all(name in after for name in names)
        assert set(after) == {"entry", "emdn"}
        assert dict(after.attrs) == dict(before.attrs)
        assert after["entry/note"][()] == b"taken on a Tuesday"
        assert list(after["entry"]) == list(before["entry"])
        for name in ("alias", "dangling", "dark"):
            old, new = (file["entry"].get(name, getlink=True) for file in (before, after))
            assert type(old) is type(new)
            assert old.path == new.path
        assert after["entry/dark"].shape == (4, 4)
        assert after["entry/same"] == after["entry/data/frames"]


def test_attributes_keep_their_type(source: Path, box_model: Path) -> None:
    with h5py.File(source) as before, h5py.File(denoise(source, box_model)) as after:
        old, new = before["entry/data/frames"].attrs, after["entry/data/frames"].attrs
        for name in ("units", "long_name", "fixed", "range", "nothing"):
            assert new.get_id(name).get_type() == old.get_id(name).get_type()
            assert np.all(new[name] == old[name])
        assert after[new["linked"]] == after["entry/data/time"]
        frames = after["entry/data/frames"]
        assert frames.dims[0].label == "time"
        assert frames.dims[2][0] == after["entry/data/x"]


def test_frames_are_float32_one_a_chunk(source: Path, box_model: Path) -> None:
    with h5py.File(source) as before, h5py.File(denoise(source, box_model)) as after:
        frames = after["entry/data/frames"]
        assert frames.dtype == np.float32
        assert frames.chunks == (1, 30, 44)
        expected = Denoiser(box_model).denoise(
            before["entry/data/frames"][()], gain=1.0, offset=0.0
        )
        np.testing.assert_array_equal(frames[()], expected)


def test_the_calibration_reads_back(source: Path, box_model: Path) -> None:
    with open_frames(source) as before, open_frames(denoise(source, box_model)) as after:
        assert after.axes == before.axes
        assert after.dataset == before.dataset
        assert after.order == before.order


def test_provenance_is_recorded(source: Path, box_model: Path) -> None:
    with h5py.File(denoise(source, box_model)) as file:
        facts = dict(file["emdn"].attrs)
    assert facts["model"] == "box"
    assert len(facts["model_sha256"]) == 64
    assert facts["device"] == "cpu"
    assert facts["frames"] == "/entry/data/frames"
    assert (facts["gain"], facts["offset"]) == (1.0, 0.0)
    with h5py.File(source) as file:
        mean = file["entry/data/frames"][()].mean()
    assert facts["scale_e_per_px"] == pytest.approx(mean, rel=1e-6)
    assert facts["intensity"] == "offset given, gain given"
    assert facts["intensity_ratio"] == pytest.approx(1, abs=1e-6)
    assert facts["net_intensity_ratio"] == pytest.approx(1, abs=0.01)
    assert 0 < facts["largest_shift"] < 0.02
    assert facts["frame_mean"].startswith("kept")
    assert facts["input"] == str(source)


def test_a_second_pass_keeps_the_first_record(source: Path, box_model: Path) -> None:
    twice = denoise(denoise(source, box_model), box_model)
    with h5py.File(twice) as file:
        assert {"emdn", "emdn_2"} <= set(file)


@pytest.mark.parametrize("order", ["yxt", "xyt", "utyx", "tyxc", "yx", "tyx"])
def test_any_axis_order_is_kept(tmp_path: Path, box_model: Path, lattice, order: str) -> None:
    stored = lattice(20.0, (1, 1, 1))
    lengths = {"t": 3, "u": 2, "y": 30, "x": 44, "c": 1}
    shape = tuple(lengths[letter] for letter in order)
    stored = np.random.default_rng(0).poisson(20, shape).astype(np.uint8)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["data"] = stored
    output = denoise(path, box_model, axes=order, dataset="/data", batch=2)
    with h5py.File(output) as file:
        assert file["data"].shape == shape
    choice = job.Choice("/data", order)
    with open_frames(path, choice) as before, open_frames(output, choice) as after:
        count = before.shape[0]
        expected = Denoiser(box_model).denoise(before.read(0, count), gain=1.0, offset=0.0)
        np.testing.assert_array_equal(after.read(0, count), expected)


def test_frames_behind_an_external_link_come_inside(
    tmp_path: Path, box_model: Path, lattice
) -> None:
    with h5py.File(tmp_path / "data_000001.h5", "w") as file:
        file["entry/data/data"] = lattice(20.0, (3, 24, 24)).astype(np.uint16)
    with h5py.File(tmp_path / "master.h5", "w") as file:
        group = file.create_group("entry/data")
        group.attrs.update({"NX_class": "NXdata", "signal": "data_000001"})
        group["data_000001"] = h5py.ExternalLink("data_000001.h5", "/entry/data/data")
    output = denoise(tmp_path / "master.h5", box_model)
    with h5py.File(output) as file:
        link = file["entry/data"].get("data_000001", getlink=True)
        assert isinstance(link, h5py.HardLink)
        assert file["entry/data/data_000001"].dtype == np.float32
