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

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import h5py
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from emdn_models.errors import FormatError
from emdn_train.noise import DETECTORS, Profile, profile_map

Frames = NDArray[np.float32]
FrameClass = Literal["stem", "tem"]

STEM = "graphene_img"


class Split:
    """One split of a data set; a context manager that holds its files open.

    Attributes
    ----------
    path
        The split's folder.
    frame_class
        What is left out of the frames: ``stem`` has those of a scanned probe, ``tem`` the
        others, None all. Numbers of frames count those that are left.
    frames
        Number of frames.
    shape
        (H, W) of every frame.
    table
        One row a frame, or None where the data set has no table. Columns of simulated
        data: structure, kind, contrast, snr, electrons_per_pixel, pixel_size_nm,
        dose_e_per_a2, detector and every optic.
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
        if self._noisy.shape[:3] != self._clean.shape[:3]:
            raise FormatError(
                f"{self.path}: {STEM}_noise.h5 holds {_text(self._noisy)} and "
                f"{STEM}_clean.h5 {_text(self._clean)} (N, H, W); noisy and clean frames "
                "must come in pairs of one shape"
            )
        table = self.path / f"{STEM}_metadata.parquet"
        self.table = pl.read_parquet(table) if table.exists() else None
        if self.table is not None and len(self.table) != self.frames:
            raise FormatError(
                f"{table}: has {len(self.table)} rows for {self.frames} frames; "
                "simulate the data set again"
            )
        self._rows = np.arange(self.frames)
        if frame_class is not None:
            self._rows = self._of(frame_class)
            self.frames = len(self._rows)
            self.table = None if self.table is None else self.table[self._rows.tolist()]

    def __len__(self) -> int:
        """Return the number of frames."""
        return self.frames

    def __enter__(self) -> Self:
        """Return the split itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._clean.file.close()
        self._noisy.file.close()

    def clean(self, indices: Sequence[int] | NDArray[np.int64] | slice) -> Frames:
        """Read clean frames, (n, H, W) float32, in the order asked for."""
        return _read(self._clean, self._rows[self._list(indices)])

    def noisy(self, indices: Sequence[int] | NDArray[np.int64] | slice) -> Frames:
        """Read noisy frames, (n, H, W) float32, in the order asked for."""
        return _read(self._noisy, self._rows[self._list(indices)])

    def relative(self, indices: Sequence[int] | NDArray[np.int64] | slice) -> Frames:
        """Clean frames without beam and dose, (n, H, W), for fresh noise at every step.

        Simulated frames are divided by their recorded beam and dose (vacuum = 1, or mean = 1
        for STEM; a CCD's MTF stays in). Frames without a table are divided by their mean.
        """
        chosen = self._list(indices)
        frames = self.clean(chosen)
        if self.table is None:
            return np.asarray(frames / frames.mean((1, 2), keepdims=True), np.float32)
        rows = self.table[chosen.tolist()]
        columns = {name: torch.tensor(rows[f"beam_{name}"]).float() for name in Profile._fields}
        beam = profile_map(Profile(**columns), self.shape, max(self.shape))[:, 0].numpy()
        dqe = np.array([DETECTORS[name].dqe0 for name in rows["detector"]])
        scale = rows["electrons_per_pixel"].to_numpy() * dqe
        return np.asarray(frames / (beam * scale[:, None, None]), np.float32)

    def _of(self, frame_class: FrameClass) -> NDArray[np.int64]:
        """Return the numbers of the frames of a class, by the table's detectors."""
        if self.table is None or "detector" not in self.table.columns:
            raise FormatError(
                f"{self.path}: has no table of detectors ({STEM}_metadata.parquet), which says "
                f"the frames of class {frame_class}; simulate a data set with emdn-train simulate"
            )
        scanned = (self.table["detector"] == "stem").to_numpy()
        rows = np.flatnonzero(scanned == (frame_class == "stem"))
        if not len(rows):
            raise FormatError(
                f"{self.path}: none of its {self.frames} frames is of class {frame_class}; "
                "simulate more, with emdn-train simulate --kind mixed"
            )
        return rows

    def _list(self, indices: Sequence[int] | NDArray[np.int64] | slice) -> NDArray[np.int64]:
        chosen = np.arange(self.frames)[indices]
        return np.atleast_1d(chosen)


def open_split(
    path: str | PathLike[str],
    split: Literal["train", "test"],
    frame_class: FrameClass | None = None,
) -> Split:
    """Open ``train`` or ``test`` of a data set, or the frames of one class in it.

    Raises
    ------
    FormatError
        If a file is missing, is no HDF5, lacks ``images``, or its axes are not
        (N, H, W, 1) or (N, H, W); if noisy and clean frames do not pair up; or if no frame
        is known to be of the class.
    """
    return Split(path, split, frame_class)


def _open(path: Path) -> h5py.Dataset:
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError as error:
        raise FormatError(
            f"{path}: not found; expected {STEM}_clean.h5 and {STEM}_noise.h5 in train/ and test/"
        ) from error
    except OSError as error:
        raise FormatError(f"{path}: cannot be read as HDF5 ({error})") from error
    images = file.get("images")
    if not isinstance(images, h5py.Dataset):
        found = ", ".join(file) or "nothing"
        raise FormatError(f"{path}: no dataset 'images'; found {found}")
    shape = images.shape
    if images.dtype.kind not in "fiu":
        raise FormatError(f"{path}: images are {images.dtype}; expected float32")
    if len(shape) == 4 and shape[1] == 1 and shape[3] != 1:
        raise FormatError(
            f"{path}: images are {shape}, which looks like (N, 1, H, W); "
            "expected (N, H, W, 1): move axis 1 to the end"
        )
    if len(shape) == 4 and shape[0] == 1 and shape[1] > 1 and shape[3] != 1:
        raise FormatError(
            f"{path}: images are {shape}, which looks like (1, H, W, N); "
            "expected (N, H, W, 1): swap the first and the last axis"
        )
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 1):
        raise FormatError(f"{path}: images are {shape}; expected (N, H, W, 1)")
    if min(shape) == 0:
        raise FormatError(f"{path}: images are {shape}: no frames")
    if len(shape) == 3 and shape[1] != shape[2] and shape[0] == shape[1]:
        raise FormatError(
            f"{path}: images are {shape}, which looks like (H, W, N); "
            "expected (N, H, W, 1): move the last axis to the front"
        )
    return images


def _read(images: h5py.Dataset, chosen: NDArray[np.int64]) -> Frames:
    result = np.empty((len(chosen), *images.shape[1:3]), np.float32)
    for row, index in enumerate(chosen):
        frame = images[int(index)]
        result[row] = frame.reshape(result.shape[1:])
    finite = np.isfinite(result).all((1, 2))
    if not finite.all():
        raise FormatError(
            f"{images.file.filename}: frame {int(chosen[~finite][0])} has pixels that are not "
            "finite; mend or remove it"
        )
    return result


def _text(images: h5py.Dataset) -> str:
    return str(tuple(images.shape[:3]))
