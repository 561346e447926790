"""The error from frames held out: unbiased, with a standard error that holds; and motion."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from emdn_models import EmdnError
from emdn_models.metrics import Estimate, umse, umse_difference

SIZE = 48, 64
NOISE = 3.0
WIDTH = 1.5
DRAWS = 200


def scene():
    """A lattice in one half of the frame only: most of a blur's error is there."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.where(x < 32, np.cos(0.9 * x) + np.cos(0.9 * y + 0.3 * x), 0) + 10


def blur(frames):
    return gaussian_filter(frames, (0, WIDTH, WIDTH))


def expected_error(clean):
    """Bias and variance of the blur: the squares of its kernels, edges included."""
    down, right = (gaussian_filter(np.eye(length), (WIDTH, 0)) for length in SIZE)
    variance = np.outer(np.square(down).sum(axis=1), np.square(right).sum(axis=1)).mean()
    return np.square(blur(clean[None])[0] - clean).mean() + NOISE**2 * variance


@pytest.mark.parametrize(
    ("frames", "clean"),
    [(2, np.zeros(SIZE)), (3, np.zeros(SIZE)), (10, scene()), (10, 15 * scene())],
    ids=["pair", "three", "uneven", "blur worse than noise"],
)
def test_it_is_unbiased_and_knows_its_error(frames, clean):
    rng = np.random.default_rng(0)
    truth = expected_error(clean)
    scores, drifts, values = [], [], []
    for _ in range(DRAWS):
        raw = clean + NOISE * rng.normal(size=(frames, *SIZE))
        found = umse(raw, blur(raw), block=16)
        values.append(found.error.value)
        scores.append((found.error.value - truth) / found.error.se)
        if found.drift:
            drifts.append(found.drift.value / found.drift.se)
    assert abs(np.mean(values) - truth) < 3.5 * np.std(values) / np.sqrt(DRAWS)
    assert bool(drifts) == (frames > 2)
    for one in (scores, drifts) if drifts else (scores,):
        assert abs(np.mean(one)) < 3.5 / np.sqrt(DRAWS)
        assert 0.8 < np.std(one) < 1.25
    assert found.noise == pytest.approx(NOISE**2, rel=0.1)
    assert found.comparisons == frames - 1


def test_over_smoothing_and_invention_are_caught():
    rng = np.random.default_rng(0)
    raw = 4 * scene() + NOISE * rng.normal(size=(20, *SIZE))
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    sound = umse(raw, blur(raw)).error
    for wrong in (np.full_like(raw, raw.mean()), blur(raw) + 2 * np.cos(1.7 * x + 1.1 * y)):
        found = umse(raw, wrong).error
        assert found.value > sound.value + 3 * (found.se + sound.se)


@pytest.mark.parametrize(("walk", "share"), [("steady", 1 / 3), ("jumps", 1)])
def test_motion_is_reported_and_biases_as_documented(walk, share):
    rng = np.random.default_rng(0)
    # Jumps of a shuttle: neighbouring steps are as often equal as opposite.
    steps = 0.12 * (np.ones(62) if walk == "steady" else np.resize([1, 1, -1, -1], 62))
    _, x = np.mgrid[: SIZE[0], : SIZE[1]]
    clean = 20 * np.cos(0.5 * (x - np.cumsum(steps)[:, None, None]))
    found = umse(clean + rng.normal(size=clean.shape), clean)
    assert found.drift.value > 10 * found.drift.se
    assert found.error.value == pytest.approx(
        share * found.drift.value, abs=4 * found.error.se + 0.03 * found.drift.value
    )


def test_the_difference_of_two_errors_is_nearer_than_either():
    """Steady motion cancels too: the blur's error is that of a scene that stands still."""
    rng = np.random.default_rng(0)
    scores = []
    for number in range(40):
        step = number % 2  # every other movie drifts by a pixel a frame
        moving = np.stack([np.roll(scene(), step * at, 1) for at in range(10)])
        raw = moving + NOISE * rng.normal(size=moving.shape)
        one, two = blur(raw), gaussian_filter(raw, (0, 3, 3))
        found = umse_difference(raw, two, one, block=16)
        true = np.square(two - moving)[1:-1].mean() - np.square(one - moving)[1:-1].mean()
        if step == 0:
            scores.append((found.value - true) / found.se)
            assert found.se < umse(raw, one, block=16).error.se
        else:
            assert found.value == pytest.approx(true, abs=0.15)
    assert abs(np.mean(scores)) < 3.5 / np.sqrt(20)


def test_invalid_pixels_do_not_count():
    rng = np.random.default_rng(0)
    raw = scene() + NOISE * rng.normal(size=(6, *SIZE))
    valid = rng.random(SIZE) > 0.1
    spoilt = np.where(valid, raw, 1e6)
    found = umse(spoilt, blur(raw), valid=valid)
    assert found.error.value == pytest.approx(expected_error(scene()), abs=4 * found.error.se)
    assert umse(spoilt, blur(raw), valid=np.broadcast_to(valid, raw.shape)) == found
    assert found.gain_db.value == pytest.approx(
        10 * np.log10(found.noise / found.error.value), abs=1e-9
    )
    assert np.isnan(Estimate(-1.0, 1.0).below(4.0).value)


def test_what_is_refused():
    stack = np.ones((2, 16, 16))
    with pytest.raises(EmdnError, match=r"expected a stack \(N, H, W\) of 2 frames"):
        umse(stack[0], stack[0])
    with pytest.raises(EmdnError, match="of 3 frames or more"):
        umse_difference(stack, stack, stack)
    alternating = np.zeros(stack.shape, bool)
    alternating[0, ::2] = alternating[1, 1::2] = True
    with pytest.raises(EmdnError, match="no pixel that is good in every frame"):
        umse(stack, stack, valid=alternating)


def test_frames_that_a_denoiser_has_seen_bias_the_estimate_and_those_apart_do_not():
    raw = np.random.default_rng(0).normal(50, 3, (40, 96, 96))
    padded = np.concatenate([raw[-2:], raw, raw[:2]])
    denoised = np.mean([padded[k : k + 40] for k in range(5)], axis=0)
    true = np.square(denoised - 50).mean()
    near, apart = umse(raw, denoised).error, umse(raw, denoised, apart=3).error
    assert near.value < 0  # it would call five averaged frames better than perfect
    assert apart.value == pytest.approx(true, abs=4 * apart.se)
    assert apart.se < 0.1 * true
    worse = umse_difference(raw, denoised, np.full_like(raw, 50), apart=3)
    assert worse.value == pytest.approx(true, abs=4 * worse.se)
