"""Metrics: scikit-image's values, known answers, and errors from frames held out."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from emdn_models import EmdnError
from emdn_models.metrics import gain_db, mean_ratio, psnr, ssim, umse, umse_difference

SIZE = 48, 64
NOISE = 3.0
WIDTH = 1.5
DRAWS = 200


@pytest.fixture
def frames():
    """Noisy and clean, (3, 41, 57), with other noise in each frame."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:41, :57]
    clean = 20 + 5 * np.cos(0.7 * x + 0.2 * y) * np.ones((3, 1, 1))
    return clean + rng.normal(size=clean.shape) * np.array([0.5, 2, 8])[:, None, None], clean


def test_psnr_and_ssim_are_those_of_scikit_image(frames):
    theirs = pytest.importorskip("skimage.metrics")
    noisy, clean = frames
    ranges = np.array([10.0, 11.0, 30.0])
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for ours, reference, more in (
        (psnr, theirs.peak_signal_noise_ratio, {}),
        (ssim, theirs.structural_similarity, options),
    ):
        expected = [reference(clear, noise, data_range=one, **more)
                    for noise, clear, one in zip(noisy, clean, ranges, strict=True)]  # fmt: skip
        np.testing.assert_allclose(ours(noisy, clean, ranges), expected, rtol=0, atol=1e-9)
        assert ours(noisy[1], clean[1], 11.0) == pytest.approx(expected[1])


def test_gains_of_known_errors_and_pixels_that_do_not_count(frames):
    noisy, clean = frames
    np.testing.assert_allclose(gain_db(clean + 2, clean - 0.5, clean), [10 * np.log10(16)] * 3)
    assert gain_db(clean[0] + 2, clean[0], clean[0]) == np.inf
    expected = gain_db(noisy[:, :20], noisy[:, :20] * 0.9, clean[:, :20])
    valid = np.zeros(clean.shape[1:], bool)
    valid[:20] = True
    spoilt = np.where(valid, noisy, 1e6)
    np.testing.assert_allclose(gain_db(spoilt, noisy * 0.9, clean, valid), expected)
    ratio = noisy[:, :20].mean(axis=(1, 2)) / clean[:, :20].mean(axis=(1, 2))
    np.testing.assert_allclose(mean_ratio(spoilt, clean, valid), ratio)
    assert umse(spoilt, noisy, valid).error == umse(noisy, noisy, valid).error
    assert psnr(clean, clean, 10)[0] == np.inf
    assert np.isnan(ssim(noisy[0, :10], clean[0, :10], 10))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: psnr(a, a[:, :30], 1), r"frame \(3, 41, 57\)"),
        (lambda a: psnr(np.where(a > 20, np.nan, a), a, 1), r"with [1-9]\d* pixels that"),
        (lambda a: gain_db(a, a, a, np.zeros((41, 57))), "valid: found 0 good pixels"),
        (lambda a: gain_db(a, a, a, np.ones((57, 41))), r"in shape \(57, 41\)"),
        (lambda a: mean_ratio(a, 0 * a), "a frame whose mean is 0"),
        (lambda a: umse(a[0], a[0]), r"expected a stack \(N, H, W\) of 2 frames"),
        (lambda a: umse_difference(*[a] * 3, apart=3), "of 4 frames or more"),
    ],
)
def test_what_is_refused(frames, call, message):
    with pytest.raises(EmdnError, match=message):
        call(frames[1])


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
def test_umse_is_unbiased_and_knows_its_error(frames, clean):
    rng = np.random.default_rng(0)
    truth = expected_error(clean)
    scores, drifts, values = [], [], []
    for _ in range(DRAWS):
        raw = clean + NOISE * rng.normal(size=(frames, *SIZE))
        found = umse(raw, blur(raw))
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


@pytest.mark.parametrize(("walk", "share"), [("steady", 1 / 3), ("jumps", 1)])
def test_motion_is_reported_and_biases_as_documented(walk, share):
    rng = np.random.default_rng(0)
    # Jumps of a shuttle: neighbouring steps are as often equal as opposite.
    steps = 0.12 * (np.ones(62) if walk == "steady" else np.resize([1, 1, -1, -1], 62))
    _, x = np.mgrid[: SIZE[0], : SIZE[1]]
    clean = 20 * np.cos(0.5 * (x - np.cumsum(steps)[:, None, None]))
    found = umse(clean + rng.normal(size=clean.shape), clean)
    assert found.moves
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
        found = umse_difference(raw, two, one)
        true = np.square(two - moving).mean() - np.square(one - moving).mean()
        if step == 0:
            scores.append((found.value - true) / found.se)
            assert found.se < umse(raw, one).error.se
        else:
            assert found.value == pytest.approx(true, abs=0.15)
    assert abs(np.mean(scores)) < 3.5 / np.sqrt(20)


def test_frames_that_a_denoiser_has_seen_bias_the_estimate_and_those_apart_do_not():
    raw = np.random.default_rng(0).normal(50, 3, (40, 96, 96))
    padded = np.concatenate([raw[-2:], raw, raw[:2]])
    denoised = np.mean([padded[k : k + 40] for k in range(5)], axis=0)
    true = np.square(denoised - 50).mean()
    near, apart = umse(raw, denoised), umse(raw, denoised, apart=3).error
    assert near.error.value < 0  # it would call five averaged frames better than perfect
    assert np.isnan(near.gain_db.value)
    assert apart.value == pytest.approx(true, abs=4 * apart.se)
    assert apart.se < 0.1 * true
    worse = umse_difference(raw, denoised, np.full_like(raw, 50), apart=3)
    assert worse.value == pytest.approx(true, abs=4 * worse.se)
