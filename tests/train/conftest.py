"""A data set small enough to fit on in seconds: drawn gratings, no simulator involved."""

from pathlib import Path

import h5py
import numpy as np
import pytest


@pytest.fixture(scope="session")
def gratings(tmp_path_factory) -> Path:
    """32 training and 4 test frames of 64 x 64 in the layout of em_graphene_sim."""
    root = tmp_path_factory.mktemp("gratings")
    chance = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    for split, count in (("train", 32), ("test", 4)):
        (root / split).mkdir()
        angle, period = chance.uniform(0, np.pi, count), chance.uniform(8, 16, count)
        phase = (
            2
            * np.pi
            * (np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y)
            / period[:, None, None]
        )
        clean = (40 * (1 + 0.3 * np.cos(phase))).astype(np.float32)[..., None]
        for name, images in (("clean", clean), ("noise", chance.poisson(clean).astype("f4"))):
            with h5py.File(root / split / f"graphene_img_{name}.h5", "w") as file:
                file["images"] = images
    return root
