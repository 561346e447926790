"""Whether a check passes what is sound, names what was planted, and compares with the default."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
import tifffile
from scipy import ndimage

from emdn_deploy import Denoiser, denoise_file
from emdn_deploy.check import check, figures, residual_tests, thresholds
from emdn_deploy.check.camera import Camera
from emdn_deploy.check.heldout import FRAMES, Sample
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.dose import Intensity
from emdn_deploy.evaluate import evaluate
from emdn_models.errors import EmdnError, FormatError, ModelError

Array = np.ndarray[Any, Any]
EXAMPLES = Path(__file__).parents[3] / "deploy" / "examples"
SCALE = Intensity(68.0, 1.0, 0.0, 8.2, "")
CAMERA = Camera(1.0, 0.0, 0.0, 0.002, True)
SIGMA = 60**0.5  # of the noise of the scene, at its mean


def test_sound_frames_pass(stacks, saved, options: DenoiseOptions) -> None:
    result = check(*saved(*stacks(16)), options)
    # At 5 % a frame, more than 3 of 16 fail with a chance of 1 %.
    assert len(result.failing) <= 3, result.table["evidence"].to_list()
    assert all("that of unet (the default)" in one for one in result.findings)
    assert result.comparison.verdict in ("worse", "far worse")
    assert result.word in ("WARN", "FAIL")


def smoothed(frames: Array) -> Array:
    return ndimage.uniform_filter(frames, (0, 25, 25), mode="nearest")


def _wave(clean: Array) -> Array:
    return clean + 0.4 * SIGMA * np.cos(2 * np.pi * 0.21 * np.arange(clean.shape[2]))


FAULTS: dict[str, tuple[Callable[[Array, Array], Array], str]] = {
    "a lattice": (lambda raw, clean: _wave(clean), "structure added"),
    "too smooth": (lambda raw, clean: smoothed(clean), "over-smoothed"),
    "noise": (lambda raw, clean: 0.9 * clean + 0.1 * raw, "noise left in"),
    "brighter": (lambda raw, clean: 1.02 * clean, "intensity changed"),
    "another frame": (lambda raw, clean: clean[:, ::-1, ::-1], "structure"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault: str, stacks, saved, options: DenoiseOptions) -> None:
    raw, clean = stacks(dose=150.0)
    plant, verdict = FAULTS[fault]
    result = check(*saved(raw, plant(raw, clean)), options)
    assert not result.passed
    assert len(result.failing) == len(raw)
    named = result.table["verdict"].str.contains(verdict)
    assert named.sum() >= len(raw) - 1
    assert all(result.table["evidence"].to_list())


@pytest.mark.parametrize("sign", [1, -1])
def test_an_invented_atom_is_found_where_it_is(
    sign: int, stacks, saved, atom, options: DenoiseOptions
) -> None:
    raw, clean = stacks()
    clean[5] += sign * 1.5 * SIGMA * atom(clean.shape[1:], 30, 52, 3)
    result = check(*saved(raw, clean), options)
    row = result.table.row(5, named=True)
    assert ("structure added" if sign > 0 else "structure removed") in row["verdict"]
    assert np.hypot(row["y"] - 30, row["x"] - 52) < 3
    assert np.sign(row["z"]) == -sign
    assert result.shown[0].number == 5
    worst = figures.places(result.shown[0].residual)
    y, x = np.unravel_index(np.abs(worst).argmax(), worst.shape)
    assert (abs(y - 30 // 8), abs(x - 52 // 8)) <= (1, 1)


def test_an_atom_that_was_taken_away_is_found(stacks, saved, atom, options: DenoiseOptions) -> None:
    raw, clean = stacks()
    raw = raw + np.rint(1.5 * SIGMA * atom(clean.shape[1:], 40, 30, 3)).astype(np.uint16)
    result = check(*saved(raw, clean), options)
    assert result.table["verdict"].str.contains("structure removed").all()


def test_a_faint_atom_adds_up_over_neighbouring_frames(
    stacks, saved, atom, options: DenoiseOptions
) -> None:
    raw, clean = stacks()
    clean += 0.3 * SIGMA * atom(clean.shape[1:], 30, 52, 3)
    result = check(*saved(raw, clean), options)
    together = pl.any_horizontal(
        pl.col(f"run_blob_{scale}") > pl.col(f"run_blob_{scale}_high") for scale in (2, 4, 8)
    )
    found = result.table.filter(together)
    assert found.height == len(raw)
    row = found.row(0, named=True)
    assert np.hypot(row["run_y"] - 30, row["run_x"] - 52) < 4
    # It is in every frame and passes for noise in most of them.
    alone = pl.any_horizontal(
        pl.col(f"blob_{scale}") > pl.col(f"blob_{scale}_high") for scale in (2, 4, 8)
    )
    assert result.table.filter(alone).height < len(raw)


def test_one_frame_says_what_cannot_be_said(stacks, saved, options: DenoiseOptions) -> None:
    result = check(*saved(*stacks(1)), options)
    assert result.heldout is None
    assert result.correlations is None
    assert any(note.startswith("one frame: no squared error") for note in result.notes)
    assert "run_blob_2" not in result.thresholds.limits
    assert result.table.height == 1


def test_the_error_from_neighbours_is_the_true_one(
    stacks, scene, saved, options: DenoiseOptions
) -> None:
    raw, clean = stacks(20)
    result = check(*saved(raw, clean), options)
    assert result.heldout is not None
    true = float(np.square(clean - scene()).mean())
    assert abs(result.heldout.error.value - true) < 4 * result.heldout.error.se
    assert result.heldout.error.value == pytest.approx(true, rel=0.3)
    # What is drawn from keeps some noise, of which the blur takes the most.
    assert true < result.heldout.expected < 1.6 * true
    assert not result.heldout.moves
    assert result.correlations is not None
    low = result.correlations.frequency < 0.05
    # A denoised frame agrees better with the next raw one than a raw frame does.
    assert (result.correlations.denoised > result.correlations.raw)[low].all()


def test_files_that_emdn_wrote_bring_their_model(
    stacks, tmp_path: Path, box_model: Path, options: DenoiseOptions
) -> None:
    raw, _ = stacks(4)
    for suffix in ("h5", "tif"):
        source, target = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
        if suffix == "h5":
            with h5py.File(source, "w") as file:
                file["frames"] = raw
        else:
            tifffile.imwrite(source, raw, photometric="minisblack")
        denoise_file.run(
            source,
            DenoiseOptions(
                output=target, model=str(box_model), device="cpu", threads=1, frames="0:3"
            ),
        )
        result = check(source, target, options)
        assert result.shape[0] == 3
        assert result.model == "box"
        # The record names a model that is not shipped, and none is given.
        with pytest.raises(ModelError, match="--model"):
            check(source, target, DenoiseOptions(device="cpu", threads=1))


def test_integers_are_rounded_as_the_file_is(stacks, saved, options: DenoiseOptions) -> None:
    raw, clean = stacks()
    result = check(*saved(raw, np.rint(clean).astype(np.uint16)), options)
    assert len(result.failing) <= 1


def test_denoising_in_memory_is_the_same(stacks, saved, options: DenoiseOptions) -> None:
    raw, clean = stacks()
    source, target = saved(raw, clean)
    here, there = check(source, None, options), check(source, target, options)
    for name in ("std", "blob_2", "ratio"):
        np.testing.assert_allclose(here.table[name], there.table[name], rtol=1e-2)


def test_large_frames_are_tested_in_panels(
    scene, saved, atom, options: DenoiseOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residual_tests, "LARGEST", 64)
    raw = np.random.default_rng(1).poisson(scene(96, 128), (4, 96, 128)).astype(np.uint16)
    clean = Denoiser(options.model, threads=1).denoise(raw, gain=1, offset=0)
    clean[2] += SIGMA * atom(clean.shape[1:], 70, 100, 3)
    result = check(*saved(raw, clean), options)
    assert result.failing == [2]
    row = result.table.row(2, named=True)
    assert np.hypot(row["y"] - 70, row["x"] - 100) < 3


def test_refusals_name_the_remedy(stacks, saved, options: DenoiseOptions) -> None:
    raw, clean = stacks(3)
    with pytest.raises(FormatError, match="found 2 frames of 64 x 80, expected 3 frames"):
        check(*saved(raw, clean[:2]), options)
    with pytest.raises(EmdnError, match="nothing to check"):
        check(*saved(np.full((2, 32, 32), 7.0), np.full((2, 32, 32), 7.0)), options)
    with pytest.raises(FormatError, match="16 x 16 or more"):
        check(*saved(raw[:, :8], clean[:, :8]), options)
    clean[1, 2, 3] = np.nan
    with pytest.raises(FormatError, match="not finite"):
        check(*saved(raw, clean), options)


def test_a_little_noise_in_every_frame_is_found(stacks, saved, options: DenoiseOptions) -> None:
    raw, clean = stacks(24)
    sound = check(*saved(raw, clean), options)
    assert sound.passed, sound.findings
    result = check(*saved(raw, clean + 0.03 * (raw - clean)), options)
    assert any("24 of 24 frames stand out" in one for one in result.findings)


def _peak(work, *arguments) -> int:
    tracemalloc.start()
    try:
        work(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_longer_stack_takes_no_more(
    stacks, tmp_path: Path, options: DenoiseOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thresholds, "DRAWS", 12)
    raw, clean = stacks(4, height=96, width=96)
    peaks = []
    for count in (64, 112):  # of a shorter stack, every frame is sampled
        paths = [tmp_path / f"{count}{name}.npy" for name in ("raw", "clean")]
        for path, frames in zip(paths, (raw, clean), strict=True):
            np.save(path, np.tile(frames, (count // 4, 1, 1)).astype(np.float32))
        peaks.append((_peak(check, *paths, options), _peak(evaluate, paths[1], paths[0])))
    stack = 48 * 96 * 96 * 4
    for few, many in zip(*peaks, strict=True):
        assert many - few < stack / 2


@pytest.fixture(scope="module")
def example():
    with h5py.File(EXAMPLES / "truth.h5") as file:
        truth = file["expected"][:8, 64:160, 64:160]
    raw = np.random.default_rng(0).poisson(truth).astype(np.float32)
    return truth, raw


def found(raw, made, model=None, here=False):
    sample = Sample(raw.shape, np.ones(raw.shape[1:], bool))
    for number, (one, two) in enumerate(zip(raw, made, strict=True)):
        sample.add(number, one, two.astype(np.float32))
    return sample.compare(Denoiser(model, threads=1), SCALE, CAMERA, here=here)


def blurred(raw, sigma):
    return ndimage.gaussian_filter(raw, (0, sigma, sigma))


@pytest.mark.parametrize(
    ("made", "word"), [("truth", "PASS"), ("average", "PASS"), ("raw", "FAIL"), ("8 px", "FAIL")]
)
def test_what_is_better_than_the_default_passes_and_what_is_worse_fails(
    made: str, word: str, saved
) -> None:
    """Unlike the default's, the residual of a perfect denoiser is white, lattice and all."""
    part = np.s_[:, 64:192, 64:192]
    with h5py.File(EXAMPLES / "frames.h5") as file:
        raw = file["entry/data/frames"][part]
    with h5py.File(EXAMPLES / "truth.h5") as file:
        truth = file["expected"][part]
    others = np.random.default_rng(0).poisson(255 * truth)
    frames = {
        "truth": truth,
        "average": ((raw + others) / 256).astype(np.float32),
        "raw": raw.astype(np.float32),
        "8 px": ndimage.gaussian_filter(raw.astype(np.float32), (0, 8, 8)),
    }
    result = check(*saved(raw, frames[made]), DenoiseOptions(device="cpu", threads=1))
    assert result.word == word, result.findings
    assert len(result.failing) <= 3 if word == "PASS" else len(result.failing) == len(raw)


def test_a_bad_result_is_far_worse_and_a_good_one_is_not(example) -> None:
    truth, raw = example
    for made in (raw, blurred(raw, 8)):
        result = found(raw, made)
        assert result.verdict == "far worse"
        default = Denoiser(threads=1).run(raw, SCALE)
        true = np.square(made - truth).mean() - np.square(default - truth).mean()
        assert abs(result.worse.value - true) < 4 * result.worse.se
    assert "dB worse" in result.words
    assert found(raw, blurred(raw, 2.5)).verdict == "worse"
    assert found(raw, truth).verdict == "no worse"
    assert found(raw, Denoiser("cafcn", threads=1).run(raw, SCALE)).verdict != "far worse"


def test_the_default_is_not_compared_with_itself(example) -> None:
    _, raw = example
    assert found(raw, raw, here=True).verdict == "same"
    # But a file that says so is.
    assert found(raw, raw).verdict == "far worse"
    assert found(raw, Denoiser(threads=1).run(raw, SCALE)).worse.value == 0


def test_what_cannot_be_told_is_said(example) -> None:
    truth, raw = example
    few = found(raw[:2], raw[:2])
    assert few.verdict == "too few frames"
    assert few.words == "cannot be compared with unet, the default: too few frames"
    rng = np.random.default_rng(1)
    moved = [np.roll(one, rng.integers(-9, 10, 2), (0, 1)) for one in truth]
    jumping = rng.poisson(moved).astype(np.float32)
    result = found(jumping, blurred(jumping, 2.5))
    assert result.verdict == "moves"
    assert result.words.endswith("which cannot be told from motion")
    # That noise is left in, no motion excuses.
    assert found(jumping, jumping).verdict == "far worse"


def test_a_long_stack_costs_no_more(example) -> None:
    _, raw = example
    sample = Sample((1000, 2000, 96), np.ones((2000, 96), bool))
    wide = np.broadcast_to(raw[0, :1], (2000, 96))
    for number in range(1000):
        sample.add(number, wide, wide)
    assert len(sample._raw) == FRAMES
    assert sample._raw[0].shape == (512, 96)


def test_a_check_of_a_model_that_does_nothing_fails(example, make_model, tmp_path) -> None:
    """Judged by its own sound results alone, it passed."""
    _, raw = example
    np.save(tmp_path / "raw.npy", raw.astype(np.uint16))
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    none (float[n,1,h,w] frames, float[n,1,1,1] scale, float[n,1,1,1] offset, float[n,1,1,1] gain)
        => (float[n,1,h,w] denoised) <float tenth = {0.1}, float most = {0.9}>
    {
        mean = ReduceMean <axes = [2, 3]> (frames)
        even = Mul(mean, most)
        less = Mul(frames, tenth)
        all = Add(even, less)
        near = Mul(offset, tenth)
        none = Sub(near, near)
        far = Mul(scale, none)
        bare = Mul(gain, none)
        zero = Add(far, bare)
        denoised = Add(all, zero)
    }
    """
    model = make_model(tmp_path / "none.onnx", text, multiple="1", receptive_field="1")
    result = check(tmp_path / "raw.npy", None, DenoiseOptions(model=str(model), threads=1))
    assert result.comparison.verdict == "far worse"
    assert result.word == "FAIL"
    assert any("that of unet (the default)" in one for one in result.findings)
