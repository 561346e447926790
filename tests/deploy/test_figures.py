"""Pictures of a stack before and after: a frame with its spectra, a movie, the page of a run."""

import base64
import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from emdn_deploy import figures
from emdn_deploy.dose import NO_NOISE, Intensity
from emdn_deploy.readers.frames import Axis, Frames

SCALE = Intensity(20.0, 1.0, 0.0, 4.5, "")


def draw(path: Path, shape: tuple[int, int], axis: Axis) -> np.ndarray:
    frame = np.random.default_rng(0).poisson(20, shape).astype(np.float32)
    figures.draw(path, frame, np.full(shape, 20, np.float32), SCALE, axis, "title")
    return matplotlib.image.imread(path)


@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (20, 200)])
def test_any_frame_can_be_drawn(tmp_path, shape):
    bare = draw(tmp_path / "p.png", shape, Axis())
    assert bare.shape[:2] == (840, 1200)
    barred = draw(tmp_path / "b.png", shape, Axis("x", "nm", 0.02))
    changed = np.abs(bare - barred).max(axis=2) > 0.1
    assert 100 < changed.sum() < 20_000  # the scale bar


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (130, figures.MAX_FRAMES)])
def test_frames_of_a_movie_are_spread_over_the_stack(tmp_path, count, shown):
    # Each frame has its number's brightness, so that none is dropped as a repetition.
    ramp = np.linspace(0, 20, 32)[None, None, :] + np.arange(count)[:, None, None] * 0.05
    stack = np.broadcast_to(ramp, (count, 24, 32)).astype(np.float32)
    sides = [lambda a, b: stack[a:b], lambda a, b: stack[a:b] * 0 + 10]
    axes = Axis("time", "s", 0.1), Axis("x", "m", 2e-11)
    figures.movie(tmp_path / "m.gif", *sides, count, *axes)
    with Image.open(tmp_path / "m.gif") as opened:
        assert opened.n_frames == shown
        assert opened.size == (2 * 256 + 4, 192 + figures.STRIP)  # 8 times as large


@pytest.mark.parametrize("shape", [(1100, 700), (1, 2000), (4, 256)])
def test_each_side_has_its_own_limits_and_large_frames_are_binned(tmp_path, shape):
    frames = np.random.default_rng(0).normal(100, 1, (2, *shape)).astype(np.float32)
    sides = [lambda a, b: frames[a:b], lambda a, b: 1e3 * frames[a:b]]
    figures.movie(tmp_path / "m.gif", *sides, 2)
    with Image.open(tmp_path / "m.gif") as opened:
        width, height = opened.size
        grey = np.asarray(opened.convert("L"))[figures.STRIP :]
    assert height <= figures.MAX_SIDE + figures.STRIP
    assert width <= 2 * figures.MAX_SIDE + 4
    half = (width - 4) // 2
    before, after = grey[:, :half], grey[:, -half:]
    assert np.abs(before.astype(int) - after).mean() < 40 > abs(before.mean() - 128)


CAMERA = Intensity(20.0, 2.0, 3.0, 2 * 20**0.5, "")
AXES = (Axis("time", "s", 0.5, 1.0), Axis("y", "nm", 0.02), Axis("x", "nm", 0.02))
HEADLINE, FLAGGED = "FAIL: 1 of 12 frames flagged", {9: "over-smoothed"}


def opened(count: int, *size: int, axes: tuple[Axis, ...] = AXES) -> Frames:
    def read(start: int, stop: int) -> np.ndarray:
        seeds = map(np.random.default_rng, range(start, stop))
        noise = [rng.standard_normal(size, np.float32) for rng in seeds]
        return 43 + np.float32(CAMERA.sigma) * np.stack(noise)

    return Frames(
        Path("movie.h5"), "test", (count, *size), np.dtype("f4"), "tyx", (count, *size), axes,
        read, lambda: None,
    )  # fmt: skip


def page_of(
    frames: Frames, after: Any = None, *, scale: Intensity = CAMERA, flagged: Any = FLAGGED
) -> str:
    made = np.full(frames.shape[1:], 43, np.float32) if after is None else after
    unjudged = {2} & {*range(frames.shape[0])}
    both = lambda n: (frames.read(n, n + 1)[0], made)  # noqa: E731
    page = figures.RunPage(frames, scale, both, flagged, unjudged)
    return page.html(frames.path.name, HEADLINE, "frames     12 <all>")


def data(text: str) -> dict[str, Any]:
    return json.loads(re.search(r'id="data">(.*?)</script>', text)[1])


def grey(picture: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(picture))), np.float64)


def test_the_page_holds_frames_verdicts_and_time() -> None:
    frames = opened(12, 40, 64)
    ramp = np.tile(np.linspace(40, 46, 64, dtype=np.float32), (40, 1))
    text = page_of(frames, ramp)
    assert f'<div class="verdict fail">{HEADLINE}</div>' in text
    assert "frames     12 &lt;all&gt;" in text
    assert not re.search(r"(src|href)=(?!\"data:)|url\(|@import|https?:|__[A-Z]+__", text)
    found = data(text)
    assert found["cells"] == [0, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0]
    shown = found["frames"]
    assert [one["number"] for one in shown] == list(range(12))
    assert shown[8]["words"] == "frame 8 of 12, 5 s: within noise"
    assert shown[9]["words"] == "frame 9 of 12, 5.5 s: over-smoothed"
    assert shown[2]["words"].endswith("not judged")
    before, after, difference = map(grey, shown[1]["pictures"])
    raw = frames.read(1, 2)[0]
    assert np.corrcoef(before.ravel(), raw.ravel())[0, 1] > 0.99
    assert np.corrcoef(after[0], ramp[0])[0, 1] > 0.99
    # Grey 0 to 255 are -4 to 4 standard deviations of the noise, whose variance is 2 * (x - 3).
    expected = (raw - ramp) / np.sqrt(2 * (ramp - 3))
    np.testing.assert_allclose(difference / 255 * 8 - 4, expected.clip(-4, 4), atol=0.02)


@pytest.mark.parametrize(
    ("count", "size", "flagged"),
    [(1200, (32, 48), 40), (16, (512, 512), 16), (2, (2100, 1500), 1), (1, (1, 1), 1)],
)
def test_the_page_is_small_for_any_stack(count: int, size: tuple[int, int], flagged: int) -> None:
    bad = dict.fromkeys(range(count - flagged, count), "noise left in")
    uneven = 100 * np.random.default_rng(0).random(size, np.float32)  # which no file compresses
    text = page_of(opened(count, *size), uneven, flagged=bad)
    assert len(text) < 10_000_000
    found = data(text)
    shown = [one["number"] for one in found["frames"]]
    assert max(np.diff([*shown, count])) <= max(1, count // 2)
    assert bad.keys() & shown
    assert bad.keys() <= {*shown} or flagged > 1
    assert len(found["cells"]) == min(count, 1000)
    assert grey(found["frames"][0]["pictures"][1]).size <= 512**2


def test_frames_without_noise_calibration_or_harmless_names_can_be_shown() -> None:
    bare = opened(3, 16, 16, axes=(Axis(), Axis(), Axis()))
    empty, name = Intensity(1.0, 1.0, 4.0, 0.0, NO_NOISE), "</script><b>__DATA__"
    page = page_of(bare, scale=empty, flagged={0: name})
    assert page.count("</script>") == 2
    assert data(page)["frames"][0]["words"] == f"frame 0 of 3: {name}"


def test_a_run_says_what_its_check_flagged(tmp_path, lattice, dimming, run) -> None:
    np.save(tmp_path / "movie.npy", lattice(40.0, (8, 64, 64)).astype(np.uint16))
    run(tmp_path / "movie.npy", model=str(dimming), report=tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert '<div class="verdict fail">FAIL: 8 of 8 frames flagged' in text
    assert data(text)["cells"] == [2] * 8
    assert re.search("the model's mean out / mean in 0.9", data(text)["frames"][3]["words"])
