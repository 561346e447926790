"""Frames for training and testing, streamed from the layout of em_graphene_sim.

::

    <path>/train/graphene_img_clean.h5       images, (N, H, W, 1) float32
    <path>/train/graphene_img_noise.h5       the same shape
    <path>/train/graphene_img_metadata.parquet   one row a frame (simulated data only)
    <path>/train/graphene_img_structures.h5      atoms and defects (simulated data only)
    <path>/test/...

The original data set is taken as it is: whatever scale, no tables. Nothing is read but the
frames asked for.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal, Self

import h5py
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from emdn_models.errors import FormatError
from emdn_train.config import FrameClass
from emdn_train.noise import DETECTORS, Profile, profile_map

Frames = NDArray[np.float32]
Indices = Sequence[int] | NDArray[np.int64] | slice

STEM = "graphene_img"

CACHE_BYTES = 4 << 30
"""Frames of up to this size are loaded into memory; more are read as they are needed."""

DEFECT_NM = 0.12
"""Standard deviation of the Gaussian around a point defect in which a loss may weigh more."""


class Split:
    """One split of a data set; a context manager that holds its files open.

    It has ``frames`` frames of ``shape`` (H, W): all, or with a ``frame_class`` of ``stem`` those
    of a scanned probe, of ``tem`` the others. ``table`` has a row a frame (structure, kind,
    contrast, snr, electrons_per_pixel, pixel_size_nm, dose_e_per_a2, detector, optics), or is None
    where the data are not simulated. A `FormatError` names a file that is missing or not in the
    layout, noisy and clean frames that do not pair up, and a class that has no frame.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        split: Literal["train", "test"],
        frame_class: FrameClass | None = None,
    ) -> None:
        self.path, self.frame_class = Path(path) / split, frame_class
        self._clean = _open(self.path / f"{STEM}_clean.h5")
        self._noisy = _open(self.path / f"{STEM}_noise.h5")
        self.frames: int = self._clean.shape[0]
        self.shape: tuple[int, int] = self._clean.shape[1:3]
        table = self.path / f"{STEM}_metadata.parquet"
        self.table = pl.read_parquet(table) if table.exists() else None
        rows = self.frames if self.table is None else len(self.table)
        if self._noisy.shape[:3] != self._clean.shape[:3] or rows != self.frames:
            raise FormatError(
                f"{self.path}: noisy frames are {self._noisy.shape[:3]}, clean ones "
                f"{self._clean.shape[:3]} (N, H, W), and the table has {rows} rows; they must come "
                "in pairs of one shape"
            )
        self._rows = np.arange(self.frames)
        if frame_class is not None:
            self._rows = np.flatnonzero(self.scanned == (frame_class == "stem"))
            if self.table is None or not len(self._rows):
                raise FormatError(
                    f"{self.path}: none of its {self.frames} frames is known to be of class "
                    f"{frame_class}; simulate more, with emdn-train simulate --kind mixed"
                )
            self.frames, self.table = len(self._rows), self.table[self._rows.tolist()]

    def __len__(self) -> int:
        """Return the number of frames."""
        return self.frames

    def __enter__(self) -> Self:
        """Return the split itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the files."""
        self._clean.file.close()
        self._noisy.file.close()

    def clean(self, indices: Indices) -> Frames:
        """Read clean frames, (n, H, W) float32, in the order asked for."""
        return _read(self._clean, self._rows[indices])

    def noisy(self, indices: Indices) -> Frames:
        """Read noisy frames, (n, H, W) float32, in the order asked for."""
        return _read(self._noisy, self._rows[indices])

    def relative(self, indices: Indices) -> Frames:
        """Clean frames without beam and dose, (n, H, W), for fresh noise at every step.

        Simulated frames are divided by their recorded beam and dose (vacuum = 1, or mean = 1
        for STEM; a CCD's MTF stays in). Frames without a table are divided by their mean.
        """
        frames = self.clean(indices)
        if self.table is None:
            return np.asarray(frames / frames.mean((1, 2), keepdims=True), np.float32)
        rows = self.table[np.arange(self.frames)[indices].tolist()]
        columns = {name: torch.tensor(rows[f"beam_{name}"]).float() for name in Profile._fields}
        beam = profile_map(Profile(**columns), self.shape, max(self.shape))[:, 0].numpy()
        dqe = np.array([DETECTORS[name].dqe0 for name in rows["detector"]])
        scale = rows["electrons_per_pixel"].to_numpy() * dqe
        return np.asarray(frames / (beam * scale[:, None, None]), np.float32)

    @property
    def scanned(self) -> NDArray[np.bool_]:
        """Which frames a scanned probe recorded, (N,), by the table; none if there is none."""
        if self.table is None or "detector" not in self.table.columns:
            return np.zeros(self.frames, bool)
        return np.array(self.table["detector"] == "stem")

    def defects(self) -> list[NDArray[np.float32]]:
        """Read where the point defects of each frame are, (d, 2) x and y in pixels."""
        path = self.path / f"{STEM}_structures.h5"
        if self.table is None or not path.exists():
            raise FormatError(
                f"{self.path}: does not say where defects are ({path.name} is missing); simulate a "
                "data set with emdn-train simulate, or give no weight to defects"
            )
        scenes = self.table.select(
            pl.col("structure"),
            (pl.col("state") if "state" in self.table.columns else pl.lit(0)).alias("state"),
        ).rows()
        with h5py.File(path, "r") as file:
            known = {
                scene: np.float32(file[f"{scene[0]}-{scene[1]}" if scene[1] else f"{scene[0]}"]
                                  ["defects"][()]).reshape(-1, 2)
                for scene in set(scenes)
            }  # fmt: skip
        return [known[scene] for scene in scenes]

    def fingerprint(self) -> str:
        """Return a short digest: of the shape and of sixteen of the clean frames."""
        sample = np.linspace(0, self.frames - 1, min(16, self.frames)).astype(np.int64)
        digest = hashlib.blake2b(repr((self.frames, *self.shape)).encode(), digest_size=6)
        digest.update(self.clean(sample).tobytes())
        return digest.hexdigest()

    def __str__(self) -> str:
        """Say in a few words what it holds."""
        text = f"{self.frames} frames of {self.shape[0]} x {self.shape[1]}"
        if self.table is None:
            return text
        text += f", simulated ({', '.join(sorted(self.table['kind'].unique().to_list()))})"
        return text if self.frame_class is None else f"{text}, of class {self.frame_class} alone"


@dataclass(frozen=True)
class CleanFrames:
    """Clean frames of one split, from which recordings are drawn."""

    split: Split
    cached: Tensor | None  # all relative clean frames, (N, H, W), unless they are too many
    contrast: Tensor  # standard deviation over mean of each relative frame, (N,)
    mean: Tensor  # of each relative frame, (N,)
    scanned: Tensor  # which frames a scanned probe recorded, (N,) bool
    # Of each frame, where a loss is to weigh more, (d, 2) x and y in pixels.
    defects: list[NDArray[np.float32]] | None = None

    @classmethod
    def of(cls, split: Split, defects: bool = False) -> "CleanFrames":
        """Look through a split once for the statistics that set the dose, and for ``defects``."""
        cached = split.frames * split.shape[0] * split.shape[1] * 4 <= CACHE_BYTES
        blocks, means, deviations = [], [], []
        for start in range(0, split.frames, 64):
            block = torch.from_numpy(split.relative(slice(start, start + 64)))
            means.append(block.mean((1, 2)))
            deviations.append(block.std((1, 2)))
            if cached:
                blocks.append(block)
        mean = torch.cat(means)
        return cls(
            split,
            torch.cat(blocks) if cached else None,
            (torch.cat(deviations) / mean).clamp_min(1e-3),
            mean,
            torch.from_numpy(split.scanned),
            split.defects() if defects else None,
        )

    def relative(self, indices: Tensor) -> Tensor:
        """Give relative clean frames, (n, H, W)."""
        if self.cached is not None:
            return self.cached[indices]
        return torch.from_numpy(self.split.relative(np.asarray(indices)))

    def near_defects(self, indices: Tensor) -> Tensor:
        """Give 1 at the point defects of the frames, falling to 0 around them, (n, H, W)."""
        assert self.defects is not None
        assert self.split.table is not None
        height, width = self.split.shape
        near = torch.zeros(len(indices), height, width)
        sizes = self.split.table["pixel_size_nm"]
        for map_, index in zip(near, indices.tolist(), strict=True):
            spread = DEFECT_NM / sizes[index]
            for x, y in self.defects[index]:
                across = torch.exp(-0.5 * ((torch.arange(width) - float(x)) / spread) ** 2)
                down = torch.exp(-0.5 * ((torch.arange(height) - float(y)) / spread) ** 2)
                torch.maximum(map_, down[:, None] * across, out=map_)
        return near


def _open(path: Path) -> h5py.Dataset:
    try:
        images = h5py.File(path, "r").get("images")
    except OSError as error:
        raise FormatError(
            f"{path}: not found, or cannot be read as HDF5 ({error}); expected {STEM}_clean.h5 and "
            f"{STEM}_noise.h5 in train/ and test/"
        ) from error
    shape: tuple[int, ...] = images.shape if isinstance(images, h5py.Dataset) else ()
    frames = len(shape) == 3 and not shape[0] == shape[1] != shape[2]  # that would be (H, W, N)
    if 0 in shape or not (frames or shape[3:] == (1,)) or images.dtype.kind not in "fiu":
        raise FormatError(
            f"{path}: its dataset 'images' is {images}; expected numbers of shape (N, H, W, 1), "
            "one channel last, N at least 1"
        )
    return images


def _read(images: h5py.Dataset, chosen: NDArray[np.int64]) -> Frames:
    result = np.empty((len(chosen), *images.shape[1:3]), np.float32)
    for row, index in enumerate(chosen):
        result[row] = images[int(index)].reshape(result.shape[1:])
    finite = np.isfinite(result).all((1, 2))
    if not finite.all():
        raise FormatError(
            f"{images.file.filename}: frame {int(chosen[~finite][0])} has pixels that are not "
            "finite; mend or remove it"
        )
    return result
