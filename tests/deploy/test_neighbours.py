"""Models that see several frames: each frame with its neighbours, however the work is cut."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from emdn_deploy import Denoiser, batching, denoise_file, preprocess, watch
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.dose import Intensity
from emdn_deploy.preprocess import Recipe
from emdn_deploy.readers import open_frames
from emdn_deploy.readers.frames import select
from emdn_models import pretrained
from emdn_models.errors import FormatError

WEIGHTS = np.array([1.0, 2.0, 4.0, 2.0, 1.0]) / 10
BLUR = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
SCALE = Intensity(20.0, 1.0, 0.0, 4.5, "")


@pytest.fixture(scope="module")
def stack() -> NDArray[np.float32]:
    y, x = np.mgrid[:64, :72]
    scene = 20 + 4 * np.cos(x / 1.7) * np.cos(y / 2.3)
    return np.random.default_rng(0).poisson(scene, (13, 64, 72)).astype(np.float32)


def expected(stack: NDArray[np.float32], usable: Any = None) -> NDArray[np.float64]:
    """Average each frame and its neighbours, blur, and give it its own mean."""
    numbers = batching.beside(0, len(stack), len(stack), 5, usable)
    made = np.einsum("f,nfhw->nhw", WEIGHTS, stack[numbers].astype(float) - SCALE.scale)
    made = ndimage.correlate(made, BLUR[None], mode="constant")
    return made + (stack.mean((1, 2)) - made.mean((1, 2)))[:, None, None]


@pytest.mark.parametrize("batch", [1, 4, None])
def test_an_array_is_denoised_frame_by_frame_amid_its_neighbours(
    movie_model: Path, stack: NDArray[np.float32], batch: int | None
) -> None:
    model = Denoiser(movie_model, threads=2)
    answer = model.answer(stack, SCALE, batch=batch)
    np.testing.assert_allclose(answer.frames, expected(stack), rtol=2e-6)
    part = model.answer(stack[3:10], SCALE, around=(2, 2), batch=batch)
    np.testing.assert_array_equal(part.frames, answer.frames[5:8])
    # The model knows no up and down, so that its eight answers are one.
    eight = model.answer(stack, SCALE, with_sigma=True).frames
    np.testing.assert_allclose(eight, answer.frames, rtol=2e-6)


def test_an_empty_frame_stands_beside_none(movie_model: Path, stack: NDArray[np.float32]) -> None:
    stack = stack.copy()
    stack[6] = np.nan
    made = Denoiser(movie_model).denoise(stack, gain=1, offset=0)
    assert np.isnan(made[6]).all()
    good = np.arange(13) != 6
    filled = np.where(np.isnan(stack), 20, stack)
    np.testing.assert_allclose(made[good], expected(filled, good)[good], atol=0.03)


def saved(stack: NDArray[np.float32], folder: Path) -> Path:
    path = folder / "stack.h5"
    with h5py.File(path, "w") as file:
        file["frames"] = stack
    return path


def options(model: Path | None, **more: Any) -> DenoiseOptions:
    return DenoiseOptions(
        model=model and str(model), device="cpu", threads=2, gain=1.0, offset=0.0,
        keep_bad_pixels=True, overwrite=True, **more,
    )  # fmt: skip


def read(path: Path) -> tuple[NDArray[Any], dict[str, Any]]:
    with h5py.File(path) as file:
        return file["frames"][:], dict(file["emdn"].attrs)


def test_a_file_is_denoised_as_an_array_is_whatever_the_batch_and_each_frame_is_read_once(
    movie_model: Path, stack: NDArray[np.float32], tmp_path: Path, monkeypatch: Any
) -> None:
    path, calls = saved(stack, tmp_path), list[int]()
    apply = Recipe.apply

    def counted(self: Recipe, block: Any) -> Any:
        calls.append(len(block))
        return apply(self, block)

    recipe = preprocess.find_recipe(open_frames(path), options(movie_model))
    array = Denoiser(movie_model).answer(stack, recipe.scale).frames
    monkeypatch.setattr(Recipe, "apply", counted)
    for batch in (1, 3, 13):
        calls.clear()
        report = denoise_file.run(path, options(movie_model, batch=batch), recipe=recipe)
        made, facts = read(report.output)
        np.testing.assert_array_equal(made, array)
        assert sum(calls) == 13
    assert facts["neighbours"] == "each frame with 2 on either side"
    report = denoise_file.run(path, options(movie_model, frames="3:9"), recipe=recipe)
    own = Denoiser(movie_model).answer(stack[3:9], recipe.scale).frames
    with open_frames(report.output) as some:
        np.testing.assert_array_equal(some.read(0, 6), own)


def test_an_interrupted_run_is_continued_with_the_same_neighbours(
    movie_model: Path, stack: Any, tmp_path: Path, denoise_killed: Any
) -> None:
    path = saved(stack, tmp_path)
    whole = denoise_file.run(path, options(movie_model, output=tmp_path / "whole.h5"))
    out = tmp_path / "out.h5"
    flags = ["--model", movie_model, "--device", "cpu", "--gain", 1, "--offset", 0, "--batch", 1,
             "--keep-bad-pixels"]  # fmt: skip
    denoise_killed(4, path, "-o", out, *flags)
    given = replace(options(movie_model, output=out, batch=1), overwrite=False)
    assert denoise_file.run(path, given).resumed >= 4
    np.testing.assert_array_equal(read(out)[0], read(whole.output)[0])


def test_a_growing_file_waits_for_neighbours_and_loses_no_frame(
    movie_model: Path, stack: NDArray[np.float32], tmp_path: Path
) -> None:
    live, target = tmp_path / "live.h5", tmp_path / "out.h5"
    with h5py.File(live, "w", libver="latest") as file:
        file.create_dataset("frames", data=stack[:9], maxshape=(None, 64, 72), chunks=(1, 64, 72))
        file.swmr_mode = True
        looks = []

        def append(_: float) -> None:
            looks.append(0)
            if len(looks) == 2:
                file["frames"].resize(13, axis=0)
                file["frames"][9:] = stack[9:]
                file["frames"].flush()

        given = options(movie_model, batch=3, output=target)
        found = list(watch.dataset(live, given, 2, 1, append))
    assert sum(arrival.frames for arrival in found) == 13
    begun = select(open_frames(live), "0:9")
    recipe = preprocess.find_recipe(begun, options(movie_model))
    made = Denoiser(movie_model).answer(stack, recipe.scale).frames
    with open_frames(target) as frames:
        np.testing.assert_allclose(frames.read(0, 13), made, rtol=1e-6)


def unlike(stack: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack([np.roll(np.rot90(one[:64, :64], n % 4), 9 * n) for n, one in enumerate(stack)])


@pytest.mark.parametrize(
    ("change", "model", "why"),
    [
        (lambda stack: stack, "movie", "% alike, drift 0.0 pixels a frame"),
        (lambda stack: np.stack([np.roll(one, 2 * n) for n, one in enumerate(stack)]), "movie",
         "drift 2.0 pixels a frame"),
        (unlike, "unet", "% alike, within 4 pixels"),
        (lambda stack: stack[:4], "unet", "no movie: fewer than 5 frames"),
        (lambda stack: stack[:12].reshape(2, 6, 64, 72), "unet", "no movie: frames along 2 axes"),
    ],
)  # fmt: skip
def test_a_movie_gets_the_model_for_movies_and_other_stacks_the_one_for_single_frames(
    movie_model: Path, stack: Any, tmp_path: Path, monkeypatch: Any, change: Any, model: str,
    why: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(pretrained, "movie_model", lambda precision: str(movie_model))
    report = denoise_file.run(saved(change(stack).astype(np.float32), tmp_path), options(None))
    assert report.record["model"] == model
    assert why in report.record["neighbours"]
    facts = read(report.output)[1]
    assert (facts["model"], facts["neighbours"]) == (model, report.record["neighbours"])


def test_what_is_no_movie_is_refused(
    movie_model: Path, stack: NDArray[np.float32], tmp_path: Path
) -> None:
    model = Denoiser(movie_model)
    assert model.denoise(stack[:, None]).shape == (13, 1, 64, 72)
    for frames, what in ((stack[:12].reshape(2, 6, 64, 72), "2 axes"), (stack[:1], "one frame")):
        with pytest.raises(FormatError, match="sees neighbours in time"):
            model.denoise(frames)
        with pytest.raises(FormatError, match=f"holds .*{what}"):
            denoise_file.run(saved(frames, tmp_path), options(movie_model))
