"""Which dataset is taken from each HDF5 convention, and what is refused."""

import json
from collections.abc import Callable

import h5py
import numpy as np
import pytest

from emdn_deploy import report
from emdn_deploy.readers import Choice, open_frames

STACK = np.arange(5 * 16 * 24, dtype=np.uint16).reshape(5, 16, 24)
Axes = list[tuple[str, str]]
EMD = [("t", "[s]"), ("y", "[n_m]"), ("x", "[n_m]")]


def velox(file: h5py.File) -> None:
    group = file.create_group("Data/Image/0123abcd")
    group["Data"] = np.moveaxis(STACK, 0, 2)
    text = json.dumps({"BinaryResult": {"PixelSize": {"width": "2e-11", "height": "2e-11"},
                                        "PixelUnitX": "m"}})  # fmt: skip
    raw = np.zeros((200, 5), np.uint8)
    raw[: len(text)] = np.frombuffer(text.encode(), np.uint8)[:, None]
    group["Metadata"] = raw
    file["Thumbnail"] = np.zeros((512, 512), np.uint8)


def hyperspy(file: h5py.File) -> None:
    file.attrs["file_format"] = "HyperSpy"
    group = file.create_group("Experiments/movie")
    group["data"] = STACK
    for i, (name, scale, navigate) in enumerate(
        [("time", 0.5, True), ("y", 0.02, False), ("x", 0.02, False)]
    ):
        axis = group.create_group(f"axis-{i}")
        axis.attrs.update(
            {"name": name, "scale": scale, "offset": 0.0, "navigate": navigate, "size": 5}
        )
        axis.attrs["units"] = "s" if navigate else "nm"
    spectrum = file.create_group("Experiments/spectrum")
    spectrum["data"] = np.zeros((4, 4, 900))
    for i in range(3):
        spectrum.create_group(f"axis-{i}").attrs["navigate"] = i < 2


def nexus(file: h5py.File) -> None:
    file.attrs["default"] = "entry"
    entry = file.create_group("entry")
    entry.attrs.update({"NX_class": "NXentry", "default": "frames"})
    data = entry.create_group("frames")
    data.attrs.update({"NX_class": "NXdata", "signal": "counts"})
    data.attrs["axes"] = ["time", "y", "x"]
    data["counts"] = STACK
    data["time"] = np.arange(5) * 0.5
    data["y"], data["x"] = np.arange(16) * 0.02, np.arange(24) * 0.02
    for name, units in (("time", "s"), ("y", "nm"), ("x", "nm")):
        data[name].attrs["units"] = units
    # Larger, but not what the file points to.
    file["entry/raw"] = np.zeros((9, 64, 64), np.uint16)


def emd(
    file: h5py.File, axes: Axes = EMD, order: str = "tyx", *, first: int = 1, group: str = "data/a"
) -> None:
    """Write STACK in any axis order, one (name, units) per stored axis."""
    made = file.create_group(group)
    made.attrs["emd_group_type"] = 1 if first else "array"
    made["data"] = STACK.transpose(["tyx".index(letter) for letter in order])
    for i, (name, units) in enumerate(axes):
        vector = np.arange(made["data"].shape[i]) * 0.5
        made[f"dim{i + first}"] = vector if first else vector[:2]
        made[f"dim{i + first}"].attrs.update({"name": name, "units": units})


def emd_1(file: h5py.File) -> None:
    file.attrs["emd_group_type"] = "file"
    file.create_group("root").attrs["emd_group_type"] = "root"
    emd(file, [("t", "s"), ("y", "nm"), ("x", "nm")], first=0, group="root/movie")


def benchmark(file: h5py.File) -> None:
    file["images"] = STACK[..., None]


def plain(file: h5py.File) -> None:
    file["some/where/frames"] = STACK
    file["thumbnails"] = STACK[:, ::4, ::4]
    file["positions"] = np.zeros((400, 2))
    file["names"] = ["a", "b"]


CONVENTIONS: list[tuple[Callable[[h5py.File], None], str, str, str, float | None]] = [
    (velox, "/Data/Image/0123abcd/Data", "Velox", "m", 2e-11),
    (hyperspy, "/Experiments/movie/data", "HyperSpy", "nm", 0.02),
    (nexus, "/entry/frames/counts", "NeXus", "nm", 0.02),
    (emd, "/data/a/data", "EMD", "nm", 0.5),
    (emd_1, "/root/movie/data", "EMD", "nm", 0.5),
    (benchmark, "/images", "plain HDF5", "", None),
    (plain, "/some/where/frames", "plain HDF5", "", None),
]


@pytest.mark.parametrize(("fill", "path", "name", "units", "step"), CONVENTIONS)
def test_each_convention_leads_to_its_frames(tmp_path, reads, fill, path, name, units, step):
    with h5py.File(tmp_path / "movie.dat", "w") as opened:  # whatever its name
        fill(opened)
    frames = reads(tmp_path / "movie.dat", STACK)
    assert frames.dataset == path
    assert name in frames.format
    assert frames.axis("x").units == units
    assert frames.axis("x").step == (None if step is None else pytest.approx(step))


def test_several_stacks_are_listed(tmp_path, reads, refuses):
    file = tmp_path / "two.h5"
    with h5py.File(file, "w") as opened:
        opened["a"], opened["b/c"] = STACK, STACK + 1
    refuses(file, r"2 stacks.*/a \(5, 16, 24\) uint16; /b/c .*--dataset")
    for name in ("b/c", "/b"):
        assert reads(file, STACK + 1, Choice(name)).dataset == "/b/c"
    with h5py.File(file, "a") as opened:
        opened["large"] = np.tile(STACK, (9, 1, 1))
    frames = reads(file, np.tile(STACK, (9, 1, 1)))
    assert "of 3 stacks (plain HDF5), /large (45, 16, 24) is taken" in frames.notes[0]


@pytest.mark.parametrize("order", ["ytx", "yxt", "xyt", "utyx", "tyuxc", "yx", "cyx"])
def test_any_axis_order_reads_the_same_frames(tmp_path, reads, order):
    lengths = {"t": 3, "u": 2, "y": 9, "x": 12, "c": 1}
    stored = np.random.default_rng(0).integers(0, 99, [lengths[letter] for letter in order])
    with h5py.File(tmp_path / "a.h5", "w") as opened:
        opened["data"] = stored
    lead = [i for i, letter in enumerate(order) if letter not in "yx"]
    expected = np.transpose(stored, (*lead, order.index("y"), order.index("x"))).reshape(-1, 9, 12)
    reads(tmp_path / "a.h5", expected, Choice("data", order))


@pytest.mark.parametrize(
    ("value", "choice", "message"),
    [
        (STACK + 0j, Choice(), "complex"),
        (np.zeros((9, 16, 3), np.uint8), Choice(), "colour"),
        (np.zeros((2, 16, 16, 3), np.uint8), Choice(), "colour"),
        (np.zeros((9, 16), [("r", "u1"), ("g", "u1")]), Choice(), r"compound values \(r, g\)"),
        (STACK, Choice(axes="tyy"), "axes 'tyy' do not fit"),
        (STACK, Choice(axes="yx"), "do not fit shape"),
        (STACK, Choice(axes="cyx"), "5 channels"),
        (STACK, Choice(dataset="nothing"), "called 'nothing'; it offers /data"),
        (np.zeros((0, 16, 16)), Choice(dataset="data"), "is empty"),
        (np.arange(10), Choice(), "holds no frames"),
        (np.arange(10), Choice(dataset="data"), "two axes or more"),
    ],
)
def test_what_is_not_frames_is_refused(tmp_path, refuses, value, choice, message):
    file = tmp_path / "odd.h5"
    with h5py.File(file, "w") as opened:
        opened["data"] = value
    refuses(file, message, choice)


def test_files_that_are_no_frames_are_named(tmp_path, refuses):
    file = tmp_path / "em_denoise_model.h5"
    with h5py.File(file, "w") as opened:
        opened.attrs["format"] = "emdn-checkpoint"
        opened["unet/weight"] = np.zeros((64, 64, 30, 30))
    refuses(file, "weights of models, not frames")
    for content in (file.read_bytes()[:100_000], b"time,intensity\n1,2\n"):
        (tmp_path / "a.h5").write_bytes(content)
        refuses(tmp_path / "a.h5", "is cut short, damaged or no H5 file")


@pytest.mark.parametrize(
    ("order", "axes", "noted"),
    [
        ("xyt", [("", ""), ("", ""), ("time", "[s]")], True),  # HyperSpy's EMD writer
        ("xyt", [("x", "[n_m]"), ("y", "[n_m]"), ("frame", "")], False),
        ("yxt", [("y", ""), ("x", ""), ("", "[m_s]")], False),
        ("txy", [("t", "s"), ("X (nm)", ""), ("Y (nm)", "")], False),
        ("tyx", [("dose_series", ""), ("", "1/nm"), ("", "1/nm")], False),
        ("tyx", [("", "")] * 3, True),
    ],
)
def test_names_and_units_say_which_axis_is_time(tmp_path, reads, order, axes, noted):
    with h5py.File(tmp_path / "a.emd", "w") as file:
        emd(file, axes, order)
    frames = reads(tmp_path / "a.emd", STACK)
    assert frames.order == order
    assert bool(frames.notes) == noted
    assert not reads(tmp_path / "a.emd", STACK, Choice(axes=order.upper())).notes


def test_what_was_mirrored_by_axes_is_read_by_them(tmp_path, run):
    with h5py.File(tmp_path / "last.h5", "w") as file:
        file["a"] = np.moveaxis(STACK, 0, 2)
    with open_frames(run(tmp_path / "last.h5", axes="yxt").output) as frames:
        assert (frames.order, frames.shape) == ("yxt", STACK.shape)


def test_velox_detectors_have_names(tmp_path, reads, refuses):
    path = tmp_path / "a.emd"
    facts = {
        "Detectors": {f"Detector-{i}": {"DetectorName": n} for i, n in enumerate(("BF", "HAADF"))}
    }
    with h5py.File(path, "w") as file:
        for i in range(2):
            group = file.create_group(f"Data/Image/{i}abc")
            group["Data"] = np.moveaxis(STACK + i, 0, 2)
            text = json.dumps({"BinaryResult": {"DetectorIndex": str(i)}, **facts}).encode()
            group["Metadata"] = np.repeat(np.frombuffer(text, np.uint8)[:, None], 5, axis=1)
    refuses(path, r"1abc/Data \(HAADF\) .*--dataset BF")
    with open_frames(path, Choice(dataset="haadf")) as frames:
        assert frames.dataset == "/Data/Image/1abc/Data"
        assert frames.metadata["detector"] == "HAADF"
    reads(path, STACK, Choice(dataset="0abc"))
    refuses(path, r"called 'DF4'; it offers .*\(BF\), .*\(HAADF\)", Choice(dataset="DF4"))
    assert "--dataset BF" in list(report.describe(path, Choice()))[-1]


def test_dimension_scales_name_the_axes(tmp_path, reads):
    with h5py.File(tmp_path / "a.nc", "w") as file:
        data = file.create_dataset("frames", data=STACK.transpose(1, 2, 0))
        data.dims[0].label, data.dims[1].label = "y", "x"
        file["time"] = np.arange(5) * 0.5
        file["time"].make_scale()
        data.dims[2].attach_scale(file["time"])
    frames = reads(tmp_path / "a.nc", STACK)
    assert (frames.order, frames.axes[2].step) == ("yxt", 0.5)


def test_matlab_stores_the_last_index_first(tmp_path, reads):
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        file["movie"] = STACK.transpose(0, 2, 1)
        file["movie"].attrs["MATLAB_class"] = np.bytes_("uint16")
    reads(tmp_path / "a.mat", STACK)


def test_chunks_that_were_never_written_are_counted(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("a", (12, 16, 24), "u2", chunks=(1, 16, 24))
        data[:5] = STACK
    with open_frames(tmp_path / "a.h5") as frames:
        assert frames.notes[0].startswith("7 of 12 chunks were never written and read as 0")
