"""What is done to frames before and after a network: bad pixels, gaps, saturation, references."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from emdn_deploy import bad_pixels, denoise_file, preprocess
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.preprocess import Prepared
from emdn_deploy.readers import open_frames
from emdn_deploy.report import Report
from emdn_models.errors import EmdnError, FormatError

Y, X = np.mgrid[:128, :128]


@pytest.fixture
def run(tmp_path: Path, box_model: Path):
    """Denoise an array by way of files; return the report and the output."""
    model = Denoiser(box_model, threads=1)

    def denoise(frames: np.ndarray, name: str = "a", **options) -> tuple[Report, np.ndarray]:
        source, target = tmp_path / f"{name}.npy", tmp_path / f"{name}_out.npy"
        np.save(source, frames)
        made = DenoiseOptions(output=target, to="npy", model=str(box_model), **options)
        return denoise_file.run(source, made, opened={made.model: model}), np.load(target)

    return denoise


@pytest.fixture
def prepare(tmp_path: Path):
    """Prepare an array by way of a file; return it with its corrected frames."""

    def opened(frames: np.ndarray, **options) -> tuple[Prepared, np.ndarray]:
        np.save(tmp_path / "b.npy", frames)
        ready = preprocess.prepare(open_frames(tmp_path / "b.npy"), DenoiseOptions(**options))
        return ready, ready.read(0, len(frames))

    return opened


def counts(report: Report) -> tuple[int, int, int]:
    """Return pixels in gaps, single bad ones, and saturated ones of all frames."""
    record = report.record
    return record.get("gap_pixels", 0), record["bad_pixels"], report.sums.saturated


def find(frames: np.ndarray, gain: float = 1.0, offset: float = 0.0) -> np.ndarray:
    stack = np.asarray(frames, np.float32)
    return bad_pixels.outliers([stack[at : at + 3] for at in range(0, len(stack), 3)], gain, offset)


def spots(width: float, height: float) -> np.ndarray:
    at = np.random.default_rng(2).uniform(8, 120, (12, 2))
    return 1 + height * sum(np.exp(-((Y - y) ** 2 + (X - x) ** 2) / 2 / width**2) for y, x in at)


@pytest.mark.parametrize("count", [1, 16])
@pytest.mark.parametrize(
    "clean",
    [
        *(dose * (1 + 0.3 * np.cos(0.5 * X + 0.3 * Y)) for dose in (0.05, 1.0, 300.0)),
        500 * (0.1 + np.exp(-(((Y % 8) - 3.3) ** 2 + ((X % 8) - 3.8) ** 2) / 2)),  # sharp atoms
        400 * (1 + 0.8 * np.cos(2 * np.pi * X / 8)),
        # Diffraction spots of few pixels have a rim, hot pixels have none.
        *(spots(width, height) for width in (0.7, 1.5) for height in (50, 5000)),
        5 + 495 * ((X % 5 == 0) & (Y % 5 == 0)),  # too many to be the camera's
    ],
)
def test_what_the_specimen_shows_is_not_bad(clean: np.ndarray, count: int) -> None:
    frames = np.random.default_rng(0).poisson(clean, (count, 128, 128))
    assert find(frames).sum() == find(frames.swapaxes(1, 2)).sum() == 0
    if count > 1:  # a video with every frame three times
        assert find(np.repeat(frames, 3, axis=0)).sum() == 0


def test_hot_and_dead_pixels_groups_and_columns_are_found(lattice) -> None:
    frames = lattice(40.0, (24, 128, 128)) * 3.0 + 50
    hot, dead = np.zeros((2, 128, 128), bool)
    hot[[5, 40, 0, 127, 90], [7, 64, 0, 127, 30]] = hot[100:102, 40:42] = hot[2:4, 71:73] = True
    frames[:, hot] += 1500
    dead[:, 77] = dead[20, 20] = dead[30:32, 40:42] = dead[120:122, 100:102] = True
    frames[:, dead] = 50
    assert (find(frames, 3.0, 50.0) == (hot | dead)).all()


def test_what_is_bright_in_few_frames_is_not_bad(lattice) -> None:
    """A cosmic ray's faint tail in a single frame is left as well; a hot pixel is not."""
    frames = np.random.default_rng(3).poisson(10, (9, 64, 64)).astype(float)
    frames[:, 20, 20] += 300
    frames[4, 40, 40] = 60000
    frames[::3, 50, 10] = 5000
    assert np.argwhere(find(frames)).tolist() == [[20, 20]]
    frames = lattice(100.0, (1, 128, 128))
    frames[0, 30, 30] = 100 + 13 * np.sqrt(100)
    frames[0, 90, 90] = 1000
    assert np.argwhere(find(frames)).tolist() == [[90, 90]]


@pytest.mark.parametrize("shape", [(40, 50), (3, 3), (1, 9)])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_bad_pixels_become_the_mean_of_good_neighbours(shape: tuple[int, int], share) -> None:
    rng = np.random.default_rng(1)
    mask = rng.random(shape) < share
    mask.ravel()[0] = False
    frames = rng.random((3, *shape)).astype(np.float32)
    before = frames.copy()
    frames[:, mask] = np.nan
    bad_pixels.plan(mask).apply(frames)
    np.testing.assert_array_equal(frames[:, ~mask], before[:, ~mask])
    assert np.isfinite(frames).all()
    for y, x in np.argwhere(mask[1:-1, 1:-1]) + 1:
        window = np.s_[y - 1 : y + 2, x - 1 : x + 2]
        if mask[window].sum() == 1:
            expected = before[:, *window][:, ~mask[window]].mean(axis=1)
            np.testing.assert_allclose(frames[:, y, x], expected, rtol=1e-5)
    with pytest.raises(EmdnError, match="no pixel"):
        bad_pixels.plan(np.ones(shape, bool))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_what_is_neither_saturated_nor_a_gap(count: int) -> None:
    rng = np.random.default_rng(1)
    size = (count, 96, 96)
    half = np.where(np.arange(96) < 48, 0, 5)
    others = {
        "sparse": rng.poisson(0.01, size).astype("u2"),
        "counts": rng.poisson(20, size).astype("u4"),
        "vacuum": rng.poisson(half, size).astype("u2"),
        "vacuum above": rng.poisson(half[:, None], size).astype("u2"),
        "inverted": (255 - rng.poisson(0.3, size)).astype("u1"),
        "events": (255 * (rng.random(size) < 0.5)).astype("u1"),
        "dark-corrected": rng.normal(0, 2, size).round().astype("i2"),
        "constant": np.full(size, 7, "f4"),
    }
    for name, frames in others.items():
        found = bad_pixels.find_flagged([frames.astype("f4")], frames.dtype)
        every = found.masked | found.single | found.saturated
        assert not every.any(), name
        assert found.limit is None, name


GAPS = {
    "largest uint32": ("u4", 2**32 - 1),
    "-1 in int32": ("i4", -1),
    "-2 in float32": ("f4", -2),
    "NaN": ("f4", np.nan),
    "infinity": ("f4", np.inf),
    "0 between counts": ("u2", 0),
    "65535 in float32": ("f4", 65535),
    "65535 in uint32": ("u4", 65535),
}


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("kind", GAPS)
def test_a_gap_keeps_its_value_and_ruins_nothing(run, lattice, kind: str, count: int) -> None:
    dtype, value = GAPS[kind]
    clean = lattice(8.0, (count, 96, 96))
    frames = clean.astype(dtype)
    frames[:, 40:50] = value
    report, made = run(frames)
    _, expected = run(clean.astype("f4"), "clean")
    # A flag of 65535 counts as saturation.
    assert counts(report) == ((0, 0, 960 * count) if value == 65535 else (960, 0, 0))
    assert report.intensity.gain == 1.0
    np.testing.assert_array_equal(made[:, 40:50], np.float32(value))
    far = np.r_[0:30, 60:96]
    np.testing.assert_allclose(made[:, far], expected[:, far], atol=0.1)
    assert np.abs(made[:, 36:40].mean() - expected[:, 36:40].mean()) < 0.5


@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("kind", ["stop", "module", "module of floats"])
def test_an_area_without_a_count_ruins_nothing(run, kind: str, count: int) -> None:
    """A beam stop with its arm, and a module that is off: around them, what was counted stays."""
    y, x = np.mgrid[:96, :96]
    off = (y < 40) & (x < 40)
    level = np.full((96, 96), 20.0)
    if kind == "stop":
        off = (np.hypot(y - 48, x - 48) < 8) | ((np.abs(y - 48) < 2) & (x > 48))
        level = 200 * np.exp(-np.hypot(y - 48, x - 48) / 20) + 1
    frames = np.random.default_rng(0).poisson(level, (count, 96, 96)).astype("u4")
    if kind == "module of floats":
        frames = (frames * 1.7e-9).astype("f4")
    frames[:, off] = 0
    report, made = run(frames)
    near = ndimage.binary_dilation(off, iterations=4) & ~off
    assert counts(report)[0] == off.sum()
    assert not made[:, off].any()
    assert made[:, near].mean() == pytest.approx(frames[:, near].mean(), rel=0.03)


@pytest.mark.parametrize(
    "there", [np.s_[:, 3:103, :90], np.s_[:, :, :3], np.s_[:, :5], np.s_[:, 7:8, 7:8]]
)
def test_most_of_a_frame_may_be_a_gap(prepare, there) -> None:
    """Filling it takes neither minutes nor gigabytes, and a few pixels have a scale."""
    frames = np.full((4, 700, 600), np.nan, "f4")
    frames[there] = np.random.default_rng(0).poisson(9, frames[there].shape)
    ready, read = prepare(frames)
    assert np.isfinite(read).all()
    assert np.isfinite(ready.scale.gain)
    assert ready.recipe.flags.masked.sum() == np.isnan(frames[0]).sum()


def test_flags_of_several_kinds(run, lattice) -> None:
    """Pilatus: -1 in gaps, -2 for dead pixels; a cross between four modules."""
    frames = lattice(2.0, (6, 64, 64)).astype(np.int32)
    frames[:, 30:33] = frames[:, :, 30:33] = -1
    frames[:, 10, 10] = -2
    report, made = run(frames)
    assert counts(report) == (375, 1, 0)
    assert (made[:, 31] == -1).all()
    assert made[:, 10, 10].min() > 0


RNG = np.random.default_rng(0)
STILL = np.repeat(np.hypot(Y - 48, X - 48)[None, :96, :96] < 20, 8, axis=0)
MOVING = np.array([np.hypot(Y - 48, X - 20 - 8 * n)[:96, :96] < 12 for n in range(8)])
DISC, MOVED = RNG.poisson(300 + 900 * STILL), RNG.poisson(300 + 900 * MOVING)
SPOT = RNG.poisson(20 + 3e5 * np.exp(-((Y - 30.3) ** 2 + (X - 60.2) ** 2) / 3), (8, 128, 128))
# Frames, and the value from which on they are saturated.
SATURATED = {
    "uint16": (np.minimum(DISC * 80, 65535).astype("u2"), 65535),
    "12 bits, moving": (np.minimum(MOVED * 6, 4095).astype("u2"), 4095),
    "float, moving": (np.minimum(MOVED * 6, 4095).astype("f4") * np.float32(0.1), 409.5),
    "uint8": (np.minimum(DISC // 3, 255).astype("u1"), 255),
    "far above": (np.where(STILL, 65535, RNG.poisson(10, STILL.shape)).astype("u2"), 65535),
    "flag among few": (np.where(STILL, 65535, RNG.poisson(1, STILL.shape)).astype("u4"), 65535),
    "spot": (np.minimum(SPOT, 65535).astype("u2"), 65535),
}


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("kind", SATURATED)
def test_saturated_areas_keep_their_value(run, kind: str, keep: bool) -> None:
    frames, level = SATURATED[kind]
    top = frames >= np.float32(level)
    report, made = run(frames, keep_bad_pixels=keep)
    assert counts(report) == (0, 0, pytest.approx(top.sum(), rel=0.01))
    assert report.record["saturated_from"] == pytest.approx(level)
    np.testing.assert_array_equal(made[top], frames[top])
    if kind != "spot":  # what is around is as bright as before
        for before, after, one in zip(frames, made, top, strict=True):
            assert after[~one].mean() == pytest.approx(before[~one].mean(), rel=1e-3)
            assert after[~one].std() < 0.7 * before[~one].std()


@pytest.mark.parametrize("lost", [[5], [0, 1, 2, 3], list(range(0, 12, 2)), list(range(11))])
@pytest.mark.parametrize("value", [np.nan, 3])
def test_frames_without_values_and_blank_ones_pass_through(
    run, lattice, lost: list[int], value: float, caplog
) -> None:
    """A beam that is blanked every other frame tells nothing of the others' noise."""
    frames = lattice(9.0, (12, 64, 64)).astype("f4")
    _, expected = run(frames, "clean")
    frames[lost] = value
    report, made = run(frames)
    assert tuple(report.sums.empty) == tuple(lost)
    assert f"{len(lost)} frames are blank or hold no value" in caplog.text
    assert report.intensity.gain == 1
    rest = np.setdiff1d(np.arange(12), lost)
    np.testing.assert_array_equal(made[lost], np.float32(value))
    np.testing.assert_allclose(made[rest], expected[rest], atol=0.2)
    assert report.record["intensity_ratio"] == pytest.approx(1)
    _, made = run(frames, "whole", dtype="uint16")
    assert (made[lost] == np.nan_to_num(value)).all()
    assert made[rest].mean() == pytest.approx(9, rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_pixels_without_value_in_one_frame(run, lattice, caplog, dtype: str) -> None:
    """Areas stay empty where the output can be, single pixels are filled in; both are said."""
    frames = lattice(9.0, (6, 64, 64)).astype("f4")
    frames[3, 40:] = np.inf
    frames[2, 5, 5] = np.nan
    report, made = run(frames, dtype=dtype)
    assert (tuple(report.sums.empty), report.sums.filled) == ((), 24 * 64 + 1)
    assert (report.notes, report.check.flagged) == ((), {})
    assert "1537 pixels were not finite in some frames" in caplog.text
    assert ("areas stay so" in caplog.text) == (dtype == "float32")
    stay = np.zeros(frames.shape, bool)
    stay[3, 40:] = dtype == "float32"
    np.testing.assert_array_equal(np.isfinite(made), ~stay)
    assert made[3, :40].mean() == pytest.approx(frames[3, :40].mean(), rel=1e-5, abs=0.1)


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 1, 1), (3, 1, 40), (1, 40, 1)])
@pytest.mark.parametrize("value", [0, 7])
def test_blank_stacks_come_back_and_those_without_a_value_are_refused(
    run, shape: tuple[int, int, int], value: int, caplog
) -> None:
    report, made = run(np.full(shape, value, "f8"))
    np.testing.assert_array_equal(made, value)
    assert "no noise found" in caplog.text
    assert counts(report) == (0, 0, 0)
    with pytest.raises(FormatError, match="no frame has a pixel that is finite"):
        run(np.full(shape, np.nan, "f4"), "none")


def test_noise_of_rows_is_noted(run, lattice, caplog) -> None:
    flicker = 1 + 0.04 * np.random.default_rng(4).standard_normal((8, 96, 1))
    report, _ = run(lattice(100.0, (8, 96, 96)) * flicker)
    (note,) = report.notes
    assert note.startswith("rows flicker")
    assert note in caplog.text


def test_references_are_applied(prepare, lattice, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sensitivity = rng.uniform(0.7, 1.3, (64, 64))
    dark = rng.uniform(90, 110, (64, 64))
    electrons = lattice(50.0, (8, 64, 64))
    np.save(tmp_path / "dark.npy", np.stack([dark - 1, dark + 1]))
    np.save(tmp_path / "gain.npy", 1 / sensitivity)
    references = {"dark": tmp_path / "dark.npy", "gain_map": tmp_path / "gain.npy"}
    ready, read = prepare(electrons * sensitivity + dark, **references)
    np.testing.assert_allclose(read, electrons, atol=1e-3)
    assert ready.scale.gain == pytest.approx(1, abs=0.05)
    with pytest.raises(FormatError, match=r"is 64 x 64, the frames are 32 x 32"):
        prepare(lattice(5.0, (2, 32, 32)), **references)


def test_a_given_mask_is_filled_and_hot_pixels_are_kept_when_asked(
    prepare, lattice, tmp_path: Path
) -> None:
    frames = lattice(50.0, (12, 64, 64))
    frames[:, 10, 10] = 5000
    mask = np.zeros((64, 64), np.uint8)
    mask[4, 5] = 1
    np.save(tmp_path / "mask.npy", mask)
    ready, read = prepare(frames)
    assert ready.recipe.faulty.sum() == 1
    assert read[:, 10, 10].max() < 100
    sigma = ready.scale.sigma
    ready, read = prepare(frames, defects=tmp_path / "mask.npy", keep_bad_pixels=True)
    assert ready.recipe.faulty.sum() == 1
    assert ready.scale.sigma == pytest.approx(sigma, rel=1e-3)  # of which it is no part
    assert read[0, 10, 10] == 5000
    assert read[0, 4, 5] == pytest.approx((frames[0, 3:6, 4:7].sum() - frames[0, 4, 5]) / 8)
