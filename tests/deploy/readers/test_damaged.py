"""Files with random damage: read, or refused in one of our own errors, never a crash."""

import warnings
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile

from emdn_deploy.readers import READERS, open_frames
from emdn_models.errors import EmdnError

STACK = np.random.default_rng(5).integers(0, 200, (4, 16, 24)).astype(np.uint16)


@pytest.fixture
def whole(tmp_path: Path, dm_file, ser_file) -> dict[str, Path]:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("frames", data=STACK, chunks=(1, 16, 24), compression="gzip")
    with mrcfile.new(tmp_path / "a.mrc", STACK):
        pass
    tifffile.imwrite(tmp_path / "a.tif", STACK, photometric="minisblack")
    tifffile.imwrite(tmp_path / "z.tif", STACK, photometric="minisblack", compression="zlib")
    np.save(tmp_path / "a.npy", STACK)
    paths = [dm_file(tmp_path / "a.dm3", STACK), dm_file(tmp_path / "a.dm4", STACK)]
    paths += [ser_file(tmp_path / "a.ser", STACK)]
    paths += [tmp_path / name for name in ("a.h5", "a.mrc", "a.tif", "z.tif", "a.npy")]
    return {path.name: path for path in paths}


def test_every_reader_is_tried(whole: dict[str, Path]) -> None:
    tried = {path.suffix for path in whole.values()}
    assert all(tried & set(suffixes) for suffixes in READERS.values())


@pytest.mark.parametrize(
    "name", ["a.h5", "a.dm3", "a.dm4", "a.ser", "a.mrc", "a.tif", "z.tif", "a.npy"]
)
def test_damage_is_one_of_our_errors(whole: dict[str, Path], name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    content = whole[name].read_bytes()
    target = tmp_path / f"damaged{whole[name].suffix}"
    refused = []
    for trial in range(60):
        damaged = bytearray(content)
        if trial % 2:
            del damaged[int(rng.integers(1, len(content))) :]
        else:
            # Most damage to the pixels cannot be noticed; hit the headers.
            for place in rng.integers(0, min(len(content), 1500), 6):
                damaged[place] = int(rng.integers(0, 256))
        target.write_bytes(damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with open_frames(target) as frames:
                    if np.prod(frames.shape) < 1e7:
                        frames.read(0, frames.shape[0])
        except EmdnError as error:
            refused.append(str(error))
    assert len(refused) >= 15
    assert all(target.name in message for message in refused)
