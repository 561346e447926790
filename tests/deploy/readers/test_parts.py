"""Dectris masters: several files of frames behind external links are one stack."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from emdn_deploy import Denoiser
from emdn_deploy.readers import Choice, open_frames

FRAMES = np.random.default_rng(0).poisson(20, (12, 16, 24)).astype(np.uint16)


@pytest.fixture
def master(tmp_path: Path) -> Path:
    """Parts of 5, 5 and 2 frames, compressed, as the detector writes them."""
    path = tmp_path / "run_master.h5"
    with h5py.File(path, "w") as file:
        file["entry/instrument/detector/count_time"] = 0.25
        group = file.create_group("entry/data")
        group.attrs.update({"NX_class": "NXdata", "signal": "data_000001"})
        for number, (start, stop) in enumerate([(0, 5), (5, 10), (10, 12)], start=1):
            name = f"data_{number:06}"
            with h5py.File(tmp_path / f"run_{name}.h5", "w") as part:
                data = part.create_dataset(
                    "entry/data/data", data=FRAMES[start:stop], chunks=(1, 16, 24),
                    compression="gzip",
                )  # fmt: skip
                data.attrs["image_nr_low"], data.attrs["image_nr_high"] = start + 1, stop
            group[name] = h5py.ExternalLink(f"run_{name}.h5", "/entry/data/data")
    return path


def test_the_parts_are_one_stack_in_order(reads, refuses, master):
    for choice in (Choice(), Choice(dataset="/entry/data")):
        with open_frames(master, choice) as frames:
            assert frames.dataset == "/entry/data/data_000001"
            assert frames.parts == tuple(f"/entry/data/data_{i:06}" for i in (1, 2, 3))
            assert len(frames.files) == 4
            for start, stop in [(0, 12), (3, 11), (5, 10), (4, 5), (5, 6), (11, 12)]:
                np.testing.assert_array_equal(frames.read(start, stop), FRAMES[start:stop])
    assert reads(master, FRAMES[10:], Choice("/entry/data/data_000003")).parts == ()
    refuses(master, r"axes yxt, .*the frames first", Choice(axes="yxt"))
    with h5py.File(master, "r+") as file:
        del file["entry/data"].attrs["signal"]
    reads(master, FRAMES)


def test_a_missing_part_is_named(reads, refuses, master):
    (master.parent / "run_data_000002.h5").unlink()
    refuses(master, r"leads to run_data_000002\.h5, which is miss")
    reads(master, FRAMES[10:], Choice("/entry/data/data_000003"))


@pytest.mark.parametrize("odd", [FRAMES[:2, :8], FRAMES[:2].astype(np.uint32), FRAMES[0]])
def test_parts_that_do_not_fit_are_named(refuses, master, odd):
    with h5py.File(master.parent / "run_data_000002.h5", "w") as file:
        file["entry/data/data"] = odd
    refuses(master, r"data_000002 has shape .*one size and type")


def test_the_output_has_the_whole_stack_in_one_dataset(reads, master, run, box_model):
    before = {path: path.read_bytes() for path in master.parent.iterdir()}
    denoiser = Denoiser(box_model)
    target = run(master, gain=1.0, offset=0.0, compress=True, batch=3).output
    with h5py.File(target) as file:
        assert list(file["entry/data"]) == ["data_000001"]
        assert isinstance(file["entry/data"].get("data_000001", getlink=True), h5py.HardLink)
        assert file["entry/instrument/detector/count_time"][()] == 0.25
    reads(target, denoiser.denoise(FRAMES, gain=1.0, offset=0.0))
    assert all(path.read_bytes() == content for path, content in before.items())
    some = run(master, gain=1.0, offset=0.0, frames="3:11:2").output
    reads(some, denoiser.denoise(FRAMES[3:11:2], gain=1.0, offset=0.0))
