"""Bad pixels: found where planted, and nothing else taken for one."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import ndimage

from emdn_deploy import correction, defects, flagged, job
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.readers import Frames, open_frames
from emdn_deploy.report import Report
from emdn_models.errors import FormatError


def find(frames: np.ndarray, gain: float = 1.0, offset: float = 0.0) -> np.ndarray:
    stack = np.asarray(frames, np.float32)
    return defects.outliers(
        lambda start, stop: stack[start:stop], len(stack), stack.shape[1:], gain, offset
    )


@pytest.mark.parametrize("dose", [0.05, 1.0, 10.0, 300.0])
@pytest.mark.parametrize("count", [1, 12, 64])
def test_a_clean_stack_has_none(lattice, dose: float, count: int) -> None:
    assert find(lattice(dose, (count, 128, 128))).sum() == 0


def test_sharp_atoms_are_not_bad(lattice) -> None:
    """Columns one pixel wide, ten times the background, at a high dose."""
    y, x = np.mgrid[:128, :128]
    peaks = np.exp(-(((y % 8) - 3.3) ** 2 + ((x % 8) - 3.8) ** 2) / 2)
    frames = np.random.default_rng(0).poisson(500 * (0.1 + peaks), (20, 128, 128))
    assert find(frames).sum() == 0


def test_hot_and_dead_pixels_are_found(lattice) -> None:
    frames = lattice(20.0, (24, 128, 128)) * 3.0 + 50
    planted = np.zeros((128, 128), bool)
    planted[[5, 40, 0, 127, 90], [7, 64, 0, 127, 30]] = True
    hot = planted.copy()
    hot[100:102, 40:42] = True
    frames[:, hot] += 900
    dead = np.zeros_like(planted)
    dead[:, 77] = True
    dead[20, 20] = True
    frames[:, dead] = 50
    found = find(frames, 3.0, 50.0)
    assert not (found & ~(hot | dead)).any()
    assert found[hot].all()
    assert found[20, 20]
    assert found[:, 77].all()


@pytest.mark.parametrize("factor", [0, 8])
def test_groups_of_two_by_two_are_found(lattice, factor: int) -> None:
    frames = lattice(40.0, (16, 128, 128))
    planted = np.zeros((128, 128), bool)
    for row, column in ((30, 40), (2, 77), (120, 100)):
        planted[row : row + 2, column : column + 2] = True
    frames[:, planted] *= factor
    assert (find(frames) == planted).all()


def test_one_frame_is_little_proof(lattice) -> None:
    """A cosmic ray's faint tail in a single frame is left; a hot pixel is not."""
    frames = lattice(100.0, (1, 128, 128))
    frames[0, 30, 30] = 100 + 13 * np.sqrt(100)
    frames[0, 90, 90] = 1000
    found = find(frames)
    assert found[90, 90]
    assert found.sum() == 1


def test_repeated_frames_have_none(lattice) -> None:
    """A video with every frame three times, and a loop of four frames."""
    frames = lattice(20.0, (20, 128, 128))
    assert find(np.repeat(frames, 3, axis=0)).sum() == 0
    assert find(np.tile(frames[:4], (15, 1, 1))).sum() == 0


def test_upright_lattice_rows_are_not_lines() -> None:
    x = np.arange(128)
    truth = 400 * (1 + 0.8 * np.cos(2 * np.pi * x / 8)) * np.ones((128, 1))
    frames = np.random.default_rng(0).poisson(truth, (16, 128, 128))
    assert find(frames).sum() == 0
    assert find(frames.swapaxes(1, 2)).sum() == 0


def test_too_many_are_the_specimen() -> None:
    frames = np.random.default_rng(0).poisson(5, (20, 64, 64)).astype(float)
    frames[:, ::5, ::5] = 500
    assert find(frames).sum() == 0


@pytest.mark.parametrize("shape", [(40, 50), (3, 3), (1, 9)])
def test_bad_pixels_become_the_mean_of_good_neighbours(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    mask = rng.random(shape) < 0.2
    mask.ravel()[0] = False
    frames = rng.random((3, *shape)).astype(np.float32)
    before = frames.copy()
    frames[:, mask] = np.nan
    defects.plan(mask).apply(frames)
    np.testing.assert_array_equal(frames[:, ~mask], before[:, ~mask])
    assert np.isfinite(frames).all()
    for y, x in np.argwhere(mask)[:20]:
        window = slice(max(0, y - 1), y + 2), slice(max(0, x - 1), x + 2)
        good = ~mask[window]
        if good.any():
            expected = before[:, *window][:, good].mean(axis=1)
            np.testing.assert_allclose(frames[:, y, x], expected, rtol=1e-5)


def test_a_wide_gap_is_filled() -> None:
    mask = np.zeros((200, 160), bool)
    mask[:, 20:120] = True
    frames = np.ones((2, 200, 160), np.float32)
    frames[:, mask] = np.nan
    defects.plan(mask).apply(frames)
    np.testing.assert_allclose(frames, 1)
    with pytest.raises(ValueError, match="no pixel"):
        defects.plan(np.ones((4, 4), bool))


def test_no_defects_change_nothing() -> None:
    frames = np.ones((1, 4, 4), np.float32)
    defects.plan(np.zeros((4, 4), bool)).apply(frames)
    np.testing.assert_array_equal(frames, 1)


@pytest.fixture
def stack(tmp_path: Path):
    """Write frames to a file and prepare them with options."""

    def prepare(frames: np.ndarray, **options) -> tuple[correction.Prepared, np.ndarray]:
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file["frames"] = frames
        with open_frames(path) as opened:
            ready = correction.prepare(opened, DenoiseOptions(**options))
            return ready, ready.read(0, len(frames))

    return prepare


GAPS = {
    "65535 in float32": ("f4", 65535),
    "65535 in uint32": ("u4", 65535),
    "largest uint32": ("u4", 2**32 - 1),
    "largest uint16": ("u2", 65535),
    "-1 in int32": ("i4", -1),
    "-2 in int32": ("i4", -2),
    "-1 in float32": ("f4", -1),
    "NaN": ("f4", np.nan),
    "infinity": ("f4", np.inf),
    "0 between counts": ("u2", 0),
}


@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("kind", GAPS)
def test_a_gap_keeps_its_value_and_ruins_nothing(run, lattice, kind: str, count: int) -> None:
    dtype, value = GAPS[kind]
    clean = lattice(8.0, (count, 96, 96))
    frames = clean.astype(dtype)
    frames[:, 40:50] = value
    report, made = run(frames)
    _, expected = run(clean.astype("f4"), "clean")
    assert (report.gap_pixels, report.bad_pixels, report.saturated_input) == (960, 0, 0)
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
    assert report.gap_pixels == off.sum()
    assert not made[:, off].any()
    assert made[:, near].mean() == pytest.approx(frames[:, near].mean(), rel=0.03)


def test_flags_of_several_kinds(run, lattice) -> None:
    """Pilatus: -1 in gaps, -2 for dead pixels; a cross between four modules."""
    frames = lattice(2.0, (6, 64, 64)).astype(np.int32)
    frames[:, 30:33] = frames[:, :, 30:33] = -1
    frames[:, 10, 10] = -2
    report, made = run(frames)
    assert (report.gap_pixels, report.bad_pixels) == (375, 1)
    assert (made[:, 31] == -1).all()
    assert made[:, 10, 10].min() > 0


def saturated(kind: str, count: int = 8) -> tuple[np.ndarray, float]:
    """Return frames, and the value from which on they are saturated."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    far = np.hypot(y - 48, x - 48)
    disc = np.array([np.hypot(y - 48, x - 20 - 8 * k) < 12 for k in range(count)])
    if "moving" not in kind:
        disc = np.repeat(far[None] < 20, count, axis=0)
    counts = rng.poisson(300 + 900 * disc)
    if kind == "uint16":
        return np.minimum(counts * 80, 65535).astype("u2"), 65535
    if kind in ("12 bits", "12 bits, moving"):
        return np.minimum(counts * 6, 4095).astype("u2"), 4095
    if kind == "float, moving":
        return np.minimum(counts * 6, 4095).astype("f4") * np.float32(0.1), np.float32(409.5)
    if kind == "uint8":
        return np.minimum(counts // 3, 255).astype("u1"), 255
    if kind == "far above":
        return np.where(disc, 65535, rng.poisson(10, disc.shape)).astype("u2"), 65535
    if kind == "spot":
        spot = 20 + 3e5 * np.exp(-((y - 30.3) ** 2 + (x - 60.2) ** 2) / 3)
        return np.minimum(rng.poisson(spot, disc.shape), 65535).astype("u2"), 65535
    assert kind == "gain-corrected"
    flat = rng.normal(1, 0.03, (96, 96)).astype("f4")
    return np.minimum(counts * 6, 4095).astype("f4") * flat, 3600


KINDS = [
    "uint16", "12 bits", "12 bits, moving", "float, moving", "uint8", "far above", "spot",
    "gain-corrected",
]  # fmt: skip


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_saturated_areas_keep_their_value(run, kind: str, keep: bool) -> None:
    frames, level = saturated(kind)
    top = frames >= level
    report, made = run(frames, keep_bad_pixels=keep)
    assert report.bad_pixels == report.gap_pixels == 0
    assert report.saturated_input == pytest.approx(top.sum(), rel=0.01)
    assert report.saturated_from == pytest.approx(level, rel=0.02)
    np.testing.assert_array_equal(made[top], frames[top])
    if kind != "spot":  # what is around is as bright as before
        for before, after, one in zip(frames, made, top, strict=True):
            assert after[~one].mean() == pytest.approx(before[~one].mean(), rel=1e-3)
            assert after[~one].std() < 0.7 * before[~one].std()


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
        blocks = [frames.astype("f4")]
        found = flagged.find(lambda blocks=blocks: iter(blocks), (96, 96), frames.dtype)
        every = found.masked | found.single | found.stuck | found.saturated
        assert not every.any(), name
        assert found.limit is None, name


def test_a_spot_is_not_a_hot_pixel() -> None:
    """Diffraction spots of few pixels have a rim, hot pixels have none."""
    y, x = np.mgrid[:96, :96]
    rng = np.random.default_rng(2)
    for width in (0.7, 1.0, 1.5):
        spots = sum(
            np.exp(-((y - a) ** 2 + (x - b) ** 2) / 2 / width**2)
            for a, b in rng.uniform(8, 88, (12, 2))
        )
        for height in (50, 5000):
            assert not find(rng.poisson(1 + height * spots, (8, 96, 96))).any()


def test_what_is_bright_in_few_frames_is_not_faulty() -> None:
    frames = np.random.default_rng(3).poisson(10, (9, 64, 64)).astype(float)
    frames[:, 20, 20] += 300
    frames[4, 40, 40] = 60000
    frames[::3, 50, 10] = 5000
    assert np.argwhere(find(frames)).tolist() == [[20, 20]]


@pytest.mark.parametrize("lost", [[5], [0], [0, 1, 2, 3], list(range(0, 12, 2)), list(range(11))])
def test_frames_without_values_pass_through(run, lattice, lost: list[int], caplog) -> None:
    frames = lattice(9.0, (12, 64, 64)).astype("f4")
    _, expected = run(frames, "clean")
    frames[lost] = np.nan
    report, made = run(frames)
    assert report.empty == tuple(lost)
    assert f"{len(lost)} frames are blank or hold no value" in caplog.text
    rest = np.setdiff1d(np.arange(12), lost)
    assert np.isnan(made[lost]).all()
    np.testing.assert_allclose(made[rest], expected[rest], atol=0.2)
    assert report.ratio == pytest.approx(1)
    report, made = run(frames, "whole", dtype="uint16")
    assert not made[lost].any()
    assert made[rest].mean() == pytest.approx(9, rel=0.05)


def test_a_frame_without_a_part_keeps_it_empty(run, lattice) -> None:
    frames = lattice(9.0, (6, 64, 64)).astype("f4")
    frames[3, 40:] = np.inf
    frames[2, 5, 5] = np.nan
    report, made = run(frames)
    assert report.empty == ()
    assert report.filled == 1
    assert report.notes == report.standing_out == ()
    assert np.isposinf(made[3, 40:]).all()
    assert np.isfinite(made[3, :40]).all()
    assert np.isfinite(made[2]).all()
    assert made[3, :40].mean() == pytest.approx(frames[3, :40].mean(), rel=1e-5)


def test_a_stack_without_any_value_is_refused(run) -> None:
    with pytest.raises(FormatError, match="no frame has a finite pixel"):
        run(np.full((5, 16, 16), np.nan, "f4"))


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 64, 64), (1, 1, 1), (3, 1, 40), (1, 40, 1)])
@pytest.mark.parametrize("value", [0, 7])
def test_blank_frames_come_back(run, shape: tuple[int, int, int], value: int, caplog) -> None:
    report, made = run(np.full(shape, value, "f8"))
    np.testing.assert_array_equal(made, value)
    assert "no noise found" in caplog.text
    assert report.gap_pixels == report.saturated_input == report.bad_pixels == 0


@pytest.mark.parametrize("every", [2, 3])
def test_blank_frames_among_others_pass_through(run, lattice, every: int, caplog) -> None:
    """A beam that is blanked every other frame tells nothing of the others' noise."""
    frames = lattice(9.0, (12, 64, 64)).astype("u2")
    _, expected = run(frames, "clean")
    frames[::every] = 3
    report, made = run(frames)
    assert report.empty == tuple(range(0, 12, every))
    assert "frames are blank" in caplog.text
    assert report.intensity.gain == 1
    np.testing.assert_array_equal(made[::every], 3)
    np.testing.assert_allclose(made[1::every], expected[1::every], atol=0.2)


def test_empty_frames_of_a_sparse_stack_are_frames(run) -> None:
    frames = np.random.default_rng(0).poisson(2e-3, (6, 32, 32)).astype("u1")
    frames[3] = 0
    report, _ = run(frames)
    assert report.empty == ()
    mean = report.intensity.offset + report.intensity.gain * report.intensity.scale
    assert mean == pytest.approx(frames.mean(), rel=1e-6)


def test_frames_on_two_scales_are_told(stack_of, lattice) -> None:
    frames = lattice(20.0, (12, 64, 64))
    told = {
        "two detectors": np.stack([frames[::2] / 4, 300 * frames[1::2]], 1).reshape(frames.shape),
        "nearly blanked": frames * np.array([0.02, 1] * 6)[:, None, None].round(2),
        "fading": np.random.default_rng(0).poisson(frames * np.linspace(1, 0.5, 12)[:, None, None]),
    }
    for name, stack in told.items():
        notes = correction.find_recipe(stack_of(stack)[0], DenoiseOptions()).notes
        assert any("one scale is taken for all" in one for one in notes) == (name != "fading"), name


@pytest.mark.parametrize(("count", "word"), [(8, "rows flicker"), (1, "rows differ")])
def test_noise_of_rows_is_told_with_its_size(run, lattice, count: int, word: str, caplog) -> None:
    rng = np.random.default_rng(4)
    clean = lattice(100.0, (count, 96, 96))
    report, _ = run(clean)
    assert report.notes == ()
    report, _ = run(clean * (1 + 0.04 * rng.standard_normal((count, 96, 1))), "rows")
    (note,) = report.notes
    assert note in caplog.text
    assert note.startswith(word)
    share = float(note.split("by ")[1].split("%")[0])
    assert share == pytest.approx(4, rel=0.25)


def test_the_sample_is_read_once(stack_of, lattice) -> None:
    opened, reads = stack_of(lattice(20.0, (40, 64, 64)).astype("f4"))
    correction.find_recipe(opened, DenoiseOptions())
    assert len(reads) == len(set(reads)) == 13


@pytest.fixture
def run(tmp_path: Path, box_model: Path):
    """Denoise an array by way of files; return the report and the output."""
    model = Denoiser(box_model, threads=1)

    def denoise(frames: np.ndarray, name: str = "a", **options) -> tuple[Report, np.ndarray]:
        source, target = tmp_path / f"{name}.npy", tmp_path / f"{name}_out.npy"
        np.save(source, frames)
        made = DenoiseOptions(output=target, to="npy", model=str(box_model), **options)
        return job.run(source, made, opened={made.model: model}), np.load(target)

    return denoise


@pytest.fixture
def stack_of(tmp_path: Path):
    """Open an array as a stack that notes which frames are read."""

    def opened(frames: np.ndarray) -> tuple[Frames, list[tuple[int, int]]]:
        np.save(tmp_path / "b.npy", frames)
        found, reads = open_frames(tmp_path / "b.npy"), []

        def read(start: int, stop: int) -> np.ndarray:
            reads.append((start, stop))
            return frames[start:stop]

        return replace(found, read_block=read), reads

    return opened


def test_references_are_applied(stack, lattice, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sensitivity = rng.uniform(0.7, 1.3, (64, 64))
    dark = rng.uniform(90, 110, (64, 64))
    electrons = lattice(50.0, (8, 64, 64))
    np.save(tmp_path / "dark.npy", np.stack([dark - 1, dark + 1]))
    np.save(tmp_path / "gain.npy", 1 / sensitivity)
    ready, read = stack(
        electrons * sensitivity + dark, dark=tmp_path / "dark.npy", gain_map=tmp_path / "gain.npy"
    )
    np.testing.assert_allclose(read, electrons, atol=1e-3)
    assert ready.scale.gain == pytest.approx(1, abs=0.05)


def test_a_given_mask_is_filled(stack, lattice, tmp_path: Path) -> None:
    frames = lattice(50.0, (4, 32, 32))
    mask = np.zeros((32, 32), np.uint8)
    mask[4, 5] = 1
    np.save(tmp_path / "mask.npy", mask)
    ready, read = stack(frames, defects=tmp_path / "mask.npy", keep_bad_pixels=True)
    assert ready.bad_pixels == 1
    around = frames[0, 3:6, 4:7].sum() - frames[0, 4, 5]
    assert read[0, 4, 5] == pytest.approx(around / 8)


def test_references_of_another_size_are_refused(stack, lattice, tmp_path: Path) -> None:
    np.save(tmp_path / "dark.npy", np.zeros((16, 16)))
    with pytest.raises(FormatError, match=r"is 16 x 16, the frames are 32 x 32"):
        stack(lattice(5.0, (2, 32, 32)), dark=tmp_path / "dark.npy")


def test_hot_pixels_are_kept_when_asked(stack, lattice) -> None:
    frames = lattice(20.0, (12, 64, 64))
    frames[:, 10, 10] = 5000
    ready, read = stack(frames)
    assert ready.bad_pixels == 1
    assert read[:, 10, 10].max() < 60
    ready, read = stack(frames, keep_bad_pixels=True)
    assert ready.bad_pixels == 0
    assert read[0, 10, 10] == 5000
