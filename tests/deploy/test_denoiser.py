"""Arrays: units, shapes and means are kept, and what is no stack is refused."""

from pathlib import Path

import numpy as np
import pytest

from emdn_deploy import Denoiser, denoise, denoise_file
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.dose import Intensity
from emdn_models.errors import FormatError


def test_units_come_back_and_the_dtype_does_not_matter(box_model: Path, lattice) -> None:
    electrons = lattice(20.0)
    model = Denoiser(box_model)
    counts = model.denoise(electrons, gain=1.0, offset=0.0)
    for dtype in ("<u2", ">u2", ">f4", "f2", "u1", "i8"):
        made = model.denoise(electrons.astype(dtype), gain=1.0, offset=0.0)
        np.testing.assert_array_equal(made, counts)
    camera = model.denoise(3.5 * electrons + 70, gain=3.5, offset=70.0)
    np.testing.assert_allclose(camera, 3.5 * counts + 70, rtol=1e-5)
    # A measured gain must lead to the same frames as the true one.
    guessed = model.denoise(3.5 * electrons + 70)
    assert np.abs(guessed - camera).max() < 0.02 * camera.std()


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_any_unit_gives_the_same_frames(box_model: Path, lattice, factor: float) -> None:
    frames, model = lattice(20.0, (3, 40, 33)), Denoiser(box_model)
    for known in (None, 1.5):
        given = None if known is None else known * factor
        expected = model.denoise_with_sigma(frames, gain=known)
        made = model.denoise_with_sigma(frames * factor, gain=given)
        for one, other in zip(expected, made, strict=True):
            np.testing.assert_allclose(other / np.float64(factor), one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_every_frame_keeps_its_mean(dimming: Path, lattice, threads: int) -> None:
    """The beam fades, and the model is wrong: what comes back is as bright as what went in."""
    fading = np.linspace(1, 0.5, 6)[:, None, None]
    frames = (fading * lattice(20.0, (6, 40, 33)) + 100).astype(np.float32)
    model = Denoiser(dimming, threads=threads)
    scale = Intensity(20.0, 1.0, 100.0, 4.5, "")
    made = model.answer(frames, scale)
    means = frames.mean(axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(made.frames.mean(axis=(1, 2), dtype=np.float64), means, rtol=1e-7)
    assert (made.shifts > 0.4).all()  # a tenth of the brightest frame is 2
    # A shift and no factor: differences between pixels are the model's own.
    alone = model.session.run(frames, scale.scale, scale.offset, scale.gain)
    np.testing.assert_allclose(
        made.frames - alone, made.shifts[:, None, None] + 0 * frames, atol=1e-4
    )
    for again in (model.denoise(frames), model.denoise_with_sigma(frames)[0]):
        np.testing.assert_allclose(again.mean(axis=(1, 2), dtype=np.float64), means, rtol=1e-7)


@pytest.mark.parametrize(("threads", "batch"), [(1, 3), (2, None), (2, 1), (8, None)])
def test_neither_batch_nor_threads_matter(box_model: Path, lattice, threads, batch) -> None:
    frames, scale = lattice(5.0, (7, 40, 33)).astype(np.float32), Intensity(5, 1, 0, 2.2, "")
    expected = Denoiser(box_model, threads=1).answer(frames, scale, batch=7)
    made = Denoiser(box_model, threads=threads).answer(frames, scale, batch=batch)
    np.testing.assert_array_equal(made.frames, expected.frames)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros(4), r"shape \(4,\) and dtype"),
        (np.zeros((2, 16, 16, 3)), r"looks like channels: pass one .*frames\[\.\.\., 0\]"),
        (np.zeros((16, 16, 2)), r"numpy\.moveaxis\(frames, -1, 0\) if it counts frames"),
        (np.zeros((0, 4, 4)), r"shape \(0, 4, 4\)"),
        (np.zeros((2, 4, 4), complex), r"complex128, expected \(\.\.\., H, W\) real"),
        (np.full((2, 4, 4), np.nan), "no frame has a pixel that is finite"),
    ],
)
def test_what_cannot_be_denoised_names_the_remedy(box_model: Path, frames, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        denoise(frames, model=box_model)


@pytest.mark.parametrize("shape", [(33, 40), (6, 33, 40), (1, 2, 3, 33, 40), (6, 33, 40, 1)])
def test_frames_of_any_leading_axes_keep_their_shape(box_model: Path, lattice, shape) -> None:
    frames = lattice(20.0, (6, 33, 40))[: int(np.prod(shape)) // (33 * 40)]
    model = Denoiser(box_model)
    expected = model.denoise(frames)
    np.testing.assert_array_equal(model.denoise(frames.reshape(shape)), expected.reshape(shape))
    mean, sigma = model.denoise_with_sigma(frames.reshape(shape))
    assert mean.shape == sigma.shape == shape
    assert denoise(frames.reshape(shape), model=box_model).shape == shape


def test_frames_that_look_last_are_named(box_model: Path, caplog) -> None:
    frames = np.random.default_rng(0).poisson(9, (48, 48, 10))
    assert Denoiser(box_model).denoise(frames).shape == (48, 48, 10)
    assert "taken as 48 of 48 x 10; pass numpy.moveaxis(frames, -1, 0)" in caplog.text


@pytest.mark.parametrize("kind", ["gap", "NaN gap", "NaN frame", "blank frame", "hot", "pixels"])
def test_an_array_gives_what_its_file_gives(
    box_model: Path, lattice, tmp_path: Path, kind: str, caplog
) -> None:
    frames = lattice(20.0, (6, 64, 64)).astype(np.float32)
    change = {
        "gap": (np.s_[:, 30:36], 65535), "NaN gap": (np.s_[:, 30:36], np.nan),
        "NaN frame": (2, np.nan), "blank frame": (2, 0), "hot": (np.s_[:, 20, 20], 5000),
        "pixels": (np.s_[3, 20, ::9], np.inf),
    }  # fmt: skip
    at, value = change[kind]
    frames[at] = value
    before = frames.copy()
    np.save(tmp_path / "a.npy", frames)
    denoise_file.run(tmp_path / "a.npy", DenoiseOptions(model=str(box_model), sigma=True))
    expected = [np.load(tmp_path / f"a_denoised{part}.npy") for part in ("", "_sigma")]
    caplog.clear()
    made = Denoiser(box_model).denoise_with_sigma(frames)
    np.testing.assert_array_equal(frames, before)
    for one, other in zip(made, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert "keep their value" in caplog.text


def test_masked_pixels_have_no_value(box_model, lattice) -> None:
    frames = lattice(20.0, (3, 64, 64)).astype(np.float32)
    masked = np.ma.array(frames, mask=False)
    masked[1, 20:30, 20:30] = np.ma.masked
    frames[1, 20:30, 20:30] = np.nan
    np.testing.assert_array_equal(denoise(masked, box_model), denoise(frames, box_model))
