"""Each shipped model through the deployment's own door."""

import numpy as np
import pytest

from emdn_deploy import Denoiser, batching
from emdn_models import pretrained

SHIPPED = list(pretrained.index()["models"])


@pytest.mark.parametrize("name", SHIPPED)
def test_sizes_and_units_come_back(name: str, lattice) -> None:
    model = Denoiser(name, threads=1)
    least = min(2, model.session.info.frames)  # neighbours, or none
    for shape in ((least, 1, 1), (2, 7, 50), (least, 65, 33)):
        frames = 3.0 * lattice(30.0, shape) + 20
        output = model.denoise(frames, gain=3.0, offset=20.0)
        assert output.shape == shape
        assert np.isfinite(output).all()


@pytest.mark.parametrize("name", SHIPPED)
def test_tiles_equal_the_whole_frame(name: str) -> None:
    session = Denoiser(name, threads=1).session
    info = session.info
    assert info.tiling_exact
    width, limit = 40, 2 * info.halo + 64
    size = 1, info.frames, limit + 37, width
    frames = np.random.default_rng(0).poisson(20, size).astype(np.float32)
    runs = []

    def run(tile: np.ndarray) -> np.ndarray:
        runs.append(tile.shape)
        return session.run(tile, 20.0, 0.0, 1.0)

    tiled = batching.by_tiles(run, frames, info, limit * width)
    assert len(runs) > 1
    np.testing.assert_array_equal(tiled, session.run(frames, 20.0, 0.0, 1.0))


@pytest.mark.parametrize("name", SHIPPED)
def test_threads_and_batch_do_not_matter(name: str) -> None:
    """What is run side by side, or continued on another machine, has the same bits."""
    session = Denoiser(name, threads=3).session
    size = 3, session.info.frames, 65, 40
    frames = np.random.default_rng(0).poisson(20, size).astype(np.float32)
    together = session.run(frames, 20.0, 0.0, 1.0)
    for number, frame in enumerate(frames):
        alone = session.run(frame[None], 20.0, 0.0, 1.0, alone=True)
        np.testing.assert_array_equal(alone[0], together[number])
