"""What an HDF5 output keeps of its input."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from emdn_deploy import Denoiser
from emdn_deploy.readers import open_frames


@pytest.fixture
def denoise(run) -> Callable[..., Path]:
    return lambda source, **options: run(source, gain=1.0, offset=0.0, **options).output


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


def test_everything_beside_the_frames_is_kept(source, denoise, box_model):
    output = denoise(source)
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
        old, new = before["entry/data/frames"].attrs, after["entry/data/frames"].attrs
        for name in ("units", "long_name", "fixed", "range", "nothing"):
            assert new.get_id(name).get_type() == old.get_id(name).get_type()
            assert np.all(new[name] == old[name])
        assert after[new["linked"]] == after["entry/data/time"]
        frames, counts = after["entry/data/frames"], before["entry/data/frames"][()]
        assert frames.dims[0].label == "time"
        assert frames.dims[2][0] == after["entry/data/x"]
        expected = Denoiser(box_model).denoise(counts, gain=1.0, offset=0.0)
        np.testing.assert_array_equal(frames[()], expected)
        facts = dict(after["emdn"].attrs)
    with open_frames(source) as before, open_frames(output) as after:
        assert after.axes == before.axes
        assert (after.dataset, after.order) == (before.dataset, before.order)
    assert (facts["model"], facts["frames"]) == ("box", "/entry/data/frames")
    assert (facts["gain"], facts["input"]) == (1.0, str(source))
    assert facts["intensity_ratio"] == pytest.approx(1, abs=1e-6)
    with h5py.File(denoise(output)) as twice:
        assert {"emdn", "emdn_2"} <= set(twice)
