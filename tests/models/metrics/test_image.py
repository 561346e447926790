"""PSNR, SSIM and gains: scikit-image's values, known answers, and what is refused."""

import numpy as np
import pytest

from emdn_models import EmdnError
from emdn_models.metrics import dose_gain, gain_db, mean_ratio, psnr, ssim


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


def test_a_frame_is_measured_alone_as_in_a_stack(frames):
    noisy, clean = frames
    for metric in (psnr, ssim):
        assert metric(noisy[1], clean[1], 10) == pytest.approx(metric(noisy, clean, 10)[1])
        assert metric(clean, clean, 10)[0] == (np.inf if metric is psnr else pytest.approx(1))


def test_gains_of_known_errors(frames):
    _, clean = frames
    np.testing.assert_allclose(dose_gain(clean + 2, clean - 0.5, clean), [16] * 3)
    np.testing.assert_allclose(gain_db(clean + 2, clean - 0.5, clean), [10 * np.log10(16)] * 3)
    assert gain_db(clean[0] + 2, clean[0], clean[0]) == np.inf


def test_invalid_pixels_do_not_count(frames):
    noisy, clean = frames
    expected = gain_db(noisy[:, :20], noisy[:, :20] * 0.9, clean[:, :20])
    valid = np.zeros(clean.shape[1:], bool)
    valid[:20] = True
    spoilt = np.where(valid, noisy, 1e6)
    np.testing.assert_allclose(gain_db(spoilt, noisy * 0.9, clean, valid), expected)
    np.testing.assert_allclose(mean_ratio(1.5 * spoilt, spoilt, valid), [1.5] * 3)
    ratio = noisy[:, :20].mean(axis=(1, 2)) / clean[:, :20].mean(axis=(1, 2))
    np.testing.assert_allclose(mean_ratio(spoilt, clean, valid), ratio)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: psnr(a, a[:, :30], 1), r"frame \(3, 41, 57\)"),
        (lambda a: psnr(a, a, 0), "data_range: found 0, expected finite"),
        (lambda a: psnr(a, a, np.ones(2)), "data_range: found array"),
        (lambda a: psnr(np.where(a > 20, np.nan, a), a, 1), r"with [1-9]\d* pixels that"),
        (lambda a: ssim(a[:, :10], a[:, :10], 1), "expected at least 11 x 11"),
        (lambda a: gain_db(a, a, a, np.zeros((41, 57))), "a frame without a good pixel"),
        (lambda a: gain_db(a, a, a, np.ones((57, 41))), r"valid: found shape \(57, 41\)"),
        (lambda a: mean_ratio(a, 0 * a), "a frame whose mean is 0"),
    ],
)
def test_what_is_refused(frames, call, message):
    with pytest.raises(EmdnError, match=message):
        call(frames[1])
