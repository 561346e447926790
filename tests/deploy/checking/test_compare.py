"""A model that is worse than the shipped default is named, beyond chance and not for motion."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import ndimage

from emdn_deploy import Denoiser
from emdn_deploy.checking import check
from emdn_deploy.checking.camera import Camera
from emdn_deploy.checking.compare import FRAMES, Sample
from emdn_deploy.checking.summary import compared
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.intensity import Intensity

EXAMPLES = Path(__file__).parents[3] / "deploy" / "examples"
SCALE = Intensity(68.0, 1.0, 0.0, 8.2, "")
CAMERA = Camera(1.0, 0.0, 0.0, 0.002, True)


@pytest.fixture(scope="module")
def frames():
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


def test_a_bad_result_is_far_worse_and_a_good_one_is_not(frames) -> None:
    truth, raw = frames
    for made in (raw, blurred(raw, 8)):
        result = found(raw, made)
        assert result.verdict == "far worse"
        default = Denoiser(threads=1).run(raw, SCALE)
        true = np.square(made - truth).mean() - np.square(default - truth).mean()
        assert abs(result.worse.value - true) < 4 * result.worse.se
    assert "dB worse" in compared(result)
    assert found(raw, blurred(raw, 2.5)).verdict == "worse"
    assert found(raw, truth).verdict == "no worse"
    assert found(raw, Denoiser("cafcn", threads=1).run(raw, SCALE)).verdict != "far worse"


def test_the_default_is_not_compared_with_itself(frames) -> None:
    _, raw = frames
    assert found(raw, raw, here=True).verdict == "same"
    # But a file that says so is.
    assert found(raw, raw).verdict == "far worse"
    assert found(raw, Denoiser(threads=1).run(raw, SCALE)).worse.value == 0


def test_what_cannot_be_told_is_said(frames) -> None:
    truth, raw = frames
    few = found(raw[:2], raw[:2])
    assert few.verdict == "too few frames"
    assert compared(few) == "cannot be compared with unet, the default: too few frames"
    rng = np.random.default_rng(1)
    moved = [np.roll(one, rng.integers(-9, 10, 2), (0, 1)) for one in truth]
    jumping = rng.poisson(moved).astype(np.float32)
    result = found(jumping, blurred(jumping, 2.5))
    assert result.verdict == "moves"
    assert compared(result).endswith("which cannot be told from motion")
    # That noise is left in, no motion excuses.
    assert found(jumping, jumping).verdict == "far worse"


def test_a_long_stack_costs_no_more(frames) -> None:
    _, raw = frames
    sample = Sample((1000, 2000, 96), np.ones((2000, 96), bool))
    wide = np.broadcast_to(raw[0, :1], (2000, 96))
    for number in range(1000):
        sample.add(number, wide, wide)
    assert len(sample._raw) == FRAMES
    assert sample._raw[0].shape == (512, 96)


def test_a_check_of_a_model_that_does_nothing_fails(frames, make_model, tmp_path) -> None:
    """Judged by its own honest results alone, it passed."""
    _, raw = frames
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
    assert any("that of unet (the default)" in one for one in result.facts.findings)
