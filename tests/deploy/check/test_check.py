"""Whether a check passes what is sound, names what was planted, and compares with the default."""

import re
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from scipy import ndimage

from emdn_deploy import Denoiser, denoise_file
from emdn_deploy.check import bootstrap, check
from emdn_deploy.check.residual import Camera
from emdn_deploy.check.stack import compare, completed
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.dose import Intensity
from emdn_deploy.evaluate import evaluate
from emdn_deploy.writers import recorded
from emdn_models.errors import EmdnError, FormatError, ModelError

Array = np.ndarray[Any, Any]
EXAMPLES = Path(__file__).parents[3] / "deploy" / "examples"
SCALE = Intensity(68.0, 1.0, 0.0, 8.2, "")
CAMERA = Camera(1.0, 0.0, 0.002, True)
SIGMA = 60**0.5  # of the noise of the scene, at its mean


def test_sound_frames_pass(stacks, saved, options: DenoiseOptions, scene) -> None:
    raw, clean = stacks(20)
    result = check(*saved(raw, clean), options)
    # At 5 % a frame, more than 3 of 20 fail with a chance of 1 %.
    assert len(result.failing) <= 3, result.table["evidence"].to_list()
    assert all("that of unet (the default)" in one for one in result.findings)
    assert result.comparison.verdict in ("worse", "far worse")
    assert result.word in ("WARN", "FAIL")
    # The error from neighbours is the true one.
    assert result.heldout is not None
    true = float(np.square(clean - scene()).mean())
    assert abs(result.heldout.error.value - true) < 4 * result.heldout.error.se
    assert result.heldout.error.value == pytest.approx(true, rel=0.3)
    assert not result.heldout.moves


FAULTS: dict[str, Callable[[Array, Array], Array]] = {
    "structure added": lambda raw, clean: clean + 3 * np.cos(1.32 * np.arange(clean.shape[2])),
    "over-smoothed": lambda raw, clean: ndimage.uniform_filter(clean, (0, 25, 25)),
    "noise left in": lambda raw, clean: 0.9 * clean + 0.1 * raw,
    "intensity changed": lambda raw, clean: 1.02 * clean,
    "structure": lambda raw, clean: clean[:, ::-1, ::-1],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault: str, stacks, saved, options: DenoiseOptions) -> None:
    raw, clean = stacks(dose=150.0)
    result = check(*saved(raw, FAULTS[fault](raw, clean)), options)
    assert not result.passed
    assert result.failing == list(range(len(raw)))
    named = result.table["verdict"].str.contains(fault)
    assert named.sum() >= len(raw) - 1, result.table["verdict"].to_list()
    assert all(result.table["evidence"].to_list())


@pytest.mark.parametrize("sign", [1, -1])
def test_an_invented_atom_is_found_where_it_is(
    sign: int, stacks, saved, atom, options: DenoiseOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a panel of a large frame."""
    monkeypatch.setattr(bootstrap, "LARGEST", 64)
    raw, clean = stacks(4, height=96, width=128)
    clean[2] += sign * 1.5 * SIGMA * atom(clean.shape[1:], 70, 100, 3)
    result = check(*saved(raw, clean), options)
    assert result.failing == [2]
    kind, than = ("added", "brighter") if sign > 0 else ("removed", "darker")
    assert f"structure {kind}" in result.flagged[2]
    place = re.search(rf"{than} than raw at row (\d+), column (\d+)", result.flagged[2])
    assert np.hypot(int(place[1]) - 70, int(place[2]) - 100) < 3


def test_a_faint_atom_adds_up_over_neighbouring_frames(
    stacks, saved, atom, options: DenoiseOptions
) -> None:
    raw, clean = stacks()
    clean += 0.3 * SIGMA * atom(clean.shape[1:], 30, 52, 3)
    table = check(*saved(raw, clean), options).table
    place = re.search(r"of the run.*? at row (\d+), column (\d+)", table["evidence"][0])
    assert np.hypot(int(place[1]) - 30, int(place[2]) - 52) < 4

    def found(prefix: str) -> Array:
        names = [f"{prefix}blob_{scale}" for scale in (2, 4, 8)]
        return np.any([(table[one] > table[f"{one}_high"]).to_numpy() for one in names], axis=0)

    assert found("run_").all()
    # It is in every frame and passes for noise in some of them.
    assert found("").sum() < len(raw)


def test_one_frame_says_what_cannot_be_said(stacks, saved, options: DenoiseOptions) -> None:
    result = check(*saved(*stacks(1)), options)
    assert result.heldout is None
    assert result.notes[0].startswith("too few frames for a squared error")
    assert "run_blob_2" not in result.table.columns


def test_a_file_that_emdn_wrote_brings_its_model(
    stacks, saved, tmp_path: Path, options: DenoiseOptions
) -> None:
    [source], target = saved(stacks(4)[0]), tmp_path / "b.h5"
    denoise_file.run(source, replace(options, output=target, frames="0:3"))
    result = check(source, target, options)
    assert (result.shape[0], result.model) == (3, "box")
    # The record names a model that is not shipped, and none is given.
    with pytest.raises(ModelError, match="--model"):
        check(source, target, DenoiseOptions(device="cpu", threads=1))


def test_an_mrc_file_brings_the_name_of_its_model(stacks, saved, tmp_path: Path) -> None:
    """What has seen its neighbours is not compared with these."""
    [source], target = saved(stacks(5)[0]), tmp_path / "b.mrc"
    options = DenoiseOptions(device="cpu", threads=1)
    denoise_file.run(source, replace(options, output=target, model="unet@movie"))
    facts = recorded(target)
    assert facts == {"model": "unet@movie", "model_frames": 5}
    assert completed(options, facts).model == "unet"
    result = check(source, target, options)
    assert any(one.startswith("denoised by unet@movie") for one in result.notes)
    assert "too few frames" in result.comparison.words  # none is far enough away


def test_refusals_name_the_remedy(stacks, saved, options: DenoiseOptions) -> None:
    raw, clean = stacks(3)
    flat, spoilt = np.full((2, 32, 32), 7.0), np.where(clean == clean[1, 2, 3], np.nan, clean)
    for pair, message in (
        ((raw, clean[:2]), "found 2 frames of 64 x 80, expected 3 frames"),
        ((flat, flat), "nothing to check"),
        ((raw[:, :8], clean[:, :8]), "16 x 16 or more"),
        ((raw, spoilt), "not finite"),
        ((raw, clean - 70), "expected more than the offset"),
    ):
        with pytest.raises(EmdnError, match=message):
            check(*saved(*pair), options)
    path = saved(raw)[0].with_suffix(".tif")
    tifffile.imwrite(path, raw, photometric="miniswhite")
    with pytest.raises(FormatError, match="is min-is-white"):
        check(path, None, options)


@pytest.mark.slow
def test_a_longer_stack_takes_no_more(
    stacks, tmp_path: Path, options: DenoiseOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "DRAWS", 12)
    pair, peaks = stacks(4, height=96, width=96), []
    for count in (64, 112):  # of a shorter stack, every frame is sampled
        paths = [tmp_path / f"{count}{name}.npy" for name in ("raw", "clean")]
        for path, frames in zip(paths, pair, strict=True):
            np.save(path, np.tile(frames, (count // 4, 1, 1)).astype(np.float32))
        for work, given in ((check, (*paths, options)), (evaluate, paths)):
            tracemalloc.start()
            work(*given)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    more = np.subtract(peaks[2:], peaks[:2])
    assert (more < 48 * 96 * 96 * 4 / 2).all()


@pytest.fixture(scope="module")
def example() -> tuple[Array, Array]:
    with h5py.File(EXAMPLES / "truth.h5") as file:
        truth = file["expected"][:8, 64:160, 64:160]
    return truth, np.random.default_rng(0).poisson(truth).astype(np.float32)


@pytest.mark.parametrize("made", ["truth", "average", "noise left in"])
def test_what_is_better_than_the_default_passes(made: str, saved, example) -> None:
    """Unlike the default's, the residual of a perfect denoiser is white, lattice and all."""
    truth, raw = example
    others = np.random.default_rng(0).poisson(255 * truth)
    noisy = truth + 0.03 * (raw - truth)
    frames = {"truth": truth, "average": (raw + others) / 256, "noise left in": noisy}
    paths = saved(raw.astype(np.uint16), frames[made].astype(np.float32))
    result = check(*paths, DenoiseOptions(device="cpu", threads=1))
    if made == "noise left in":
        assert result.word == "FAIL"
        assert set(result.table["verdict"]) == {made}
    else:
        assert result.word == "PASS", result.findings
        assert len(result.failing) <= 2


def compared(raw, made, apart=1):
    good = np.ones(raw.shape[1:], bool)
    return compare(raw, np.float32(made), good, apart, Denoiser(threads=1), SCALE, CAMERA)


def blurred(raw, sigma):
    return ndimage.gaussian_filter(raw, (0, sigma, sigma))


def test_the_default_model_is_compared_with(example) -> None:
    truth, raw = example
    made = {"far worse": blurred(raw, 8), "worse": blurred(raw, 2.5), "no worse": truth}
    for verdict, frames in made.items():
        assert compared(raw, frames).verdict == verdict
    for few in (compared(raw[:2], raw[:2]), compared(raw[:6], raw[:6], apart=3)):
        assert few.words.startswith("too few frames to compare with unet")
    # Motion leaves it open, and is no excuse for noise.
    rng = np.random.default_rng(1)
    moved = [np.roll(one, rng.integers(-9, 10, 2), (0, 1)) for one in truth]
    jumping = rng.poisson(moved).astype(np.float32)
    result = compared(jumping, blurred(jumping, 2.5))
    assert result.verdict == "unknown"
    assert result.words.endswith("which cannot be told from motion")
    assert compared(jumping, jumping).verdict == "far worse"
