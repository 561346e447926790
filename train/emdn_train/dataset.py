"""Training data: frames in the layout of em_graphene_sim, and the noisy patches drawn from them.

::

    <path>/train/graphene_img_clean.h5       images, (N, H, W, 1) float32
    <path>/train/graphene_img_noise.h5       the same shape
    <path>/train/graphene_img_metadata.parquet   one row a frame (simulated data only)
    <path>/train/graphene_img_structures.h5      atoms and defects (simulated data only)
    <path>/test/...

The original data set is taken as it is: whatever scale, no tables. Patches get fresh noise at every
step. All chance follows from the seed and the place in the run, so that a run can be continued.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import h5py
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from emdn_models.errors import FormatError
from emdn_models.nets.scaling import middle
from emdn_models.vacancies import MARGIN_NM, simulated_sites
from emdn_train import noise
from emdn_train.config import Recipe

Frames = NDArray[np.float32]
Indices = Sequence[int] | NDArray[np.int64] | slice

STEM = "graphene_img"

CACHE_BYTES = 4 << 30
"""Frames of up to this size are loaded into memory; more are read as they are needed."""

DEFECT_NM = 0.12
"""Standard deviation of the Gaussian around a point defect in which a loss may weigh more."""

ELECTRONS = (0.05, 1e5)  # least and most incident per pixel, whatever the contrast
ZOOM = (0.75, 1.35)  # range of the magnification of augmented patches
CONTRAST = (0.6, 1.5)  # range of the contrast of augmented patches, as a factor
# A CCD's noise is correlated: what a deployment takes for its gain, over what its variance and
# mean give. Measured: 0.5 to 0.9 for single frames, 1 for stacks.
CCD_GAIN = (0.5, 1.1)

# Of clips:
COUNT = 5  # frames
CHANGE = 0.4  # share in which the specimen's defects change
CUT = 0.06  # share that is cut to another specimen, and share whose dose changes
DOSE_STEP = 0.5  # standard deviation of the logarithm of a change of the dose
DRIFT = 3.0  # largest steady drift in pixels a frame
JITTER = 0.7  # largest standard deviation, in pixels, of what a frame lies off its course
RESTING = 0.3  # share without a steady drift; half as many rest altogether
TURN = 0.005  # largest turn in rad a frame


class Split:
    """One split of a data set; a context manager that holds its files open.

    Frames are of ``shape`` (H, W). ``table`` has a row a frame (structure, kind,
    contrast, snr, electrons_per_pixel, pixel_size_nm, dose_e_per_a2, detector, optics), or is None
    where the data are not simulated. A `FormatError` names a file that is missing or not in the
    layout, and noisy and clean frames that do not pair up.
    """

    def __init__(self, path: str | PathLike[str], split: Literal["train", "test"]) -> None:
        self.path = Path(path) / split
        self._clean = _open(self.path / f"{STEM}_clean.h5")
        self._noisy = _open(self.path / f"{STEM}_noise.h5")
        self.shape: tuple[int, int] = self._clean.shape[1:3]
        table = self.path / f"{STEM}_metadata.parquet"
        self.table = pl.read_parquet(table) if table.exists() else None
        rows = len(self) if self.table is None else len(self.table)
        if self._noisy.shape[:3] != self._clean.shape[:3] or rows != len(self):
            raise FormatError(
                f"{self.path}: noisy frames are {self._noisy.shape[:3]}, clean ones "
                f"{self._clean.shape[:3]} (N, H, W), and the table has {rows} rows; they must come "
                "in pairs of one shape"
            )

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._clean)

    def __enter__(self) -> Self:
        """Return the split itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the files."""
        self._clean.file.close()
        self._noisy.file.close()

    def clean(self, indices: Indices) -> Frames:
        """Read clean frames, (n, H, W) float32, in the order asked for."""
        return _read(self._clean, indices)

    def noisy(self, indices: Indices) -> Frames:
        """Read noisy frames, (n, H, W) float32, in the order asked for."""
        return _read(self._noisy, indices)

    def relative(self, indices: Indices) -> Frames:
        """Clean frames without beam and dose, (n, H, W), for fresh noise at every step.

        Simulated frames are divided by their recorded beam and dose (vacuum = 1, or mean = 1
        for STEM; a CCD's MTF stays in). Frames without a table are divided by their mean.
        """
        frames = self.clean(indices)
        if self.table is None:
            return np.asarray(frames / frames.mean((1, 2), keepdims=True), np.float32)
        rows = self.table[np.arange(len(self))[indices].tolist()]
        columns = {
            name: torch.tensor(rows[f"beam_{name}"]).float() for name in noise.Profile._fields
        }
        beam = noise.profile_map(noise.Profile(**columns), self.shape, max(self.shape))
        dqe = np.array([noise.DQE0[name] for name in rows["detector"]])
        scale = rows["electrons_per_pixel"].to_numpy() * dqe
        return np.asarray(frames / (beam[:, 0].numpy() * scale[:, None, None]), np.float32)

    def structures(self) -> list[tuple[Any, ...]]:
        """Read each frame's atoms (n, 2), their numbers, defects (d, 2) and their names.

        Places are x and y in pixels.
        """
        path = self.path / f"{STEM}_structures.h5"
        if self.table is None or "state" not in self.table.columns or not path.exists():
            raise FormatError(
                f"{self.path}: does not say where defects are; simulate a data set with "
                "emdn-train simulate, or give no weight to defects"
            )
        rows = self.table.select("structure", "state").rows()
        with h5py.File(path, "r") as file:
            groups = (file[f"{one}-{state}" if state else f"{one}"] for one, state in rows)
            keys = ("atoms", "numbers", "defects")
            return [(*(one[key][()] for key in keys), one["names"].asstr()[()]) for one in groups]

    def fingerprint(self) -> str:
        """Return a short digest: of the shape and of sixteen of the clean frames."""
        sample = np.linspace(0, len(self) - 1, min(16, len(self))).astype(np.int64)
        digest = hashlib.blake2b(repr((len(self), *self.shape)).encode(), digest_size=6)
        digest.update(self.clean(sample).tobytes())
        return digest.hexdigest()

    def __str__(self) -> str:
        """Say in a few words what it holds."""
        text = f"{len(self)} frames of {self.shape[0]} x {self.shape[1]}"
        if self.table is None:
            return text
        return f"{text}, simulated ({', '.join(sorted(self.table['kind'].unique().to_list()))})"


class CleanFrames:
    """Clean frames of one split, from which recordings are drawn; in memory unless too large.

    ``contrast`` (standard deviation over mean) and ``mean`` of each relative frame, (N,), set the
    dose; ``scanned``, (N,) bool, are those of a scanned probe; ``others``, (N,), have the number of
    a frame of the same image in another state of its defects, or its own. ``structures`` are read
    if ``defects`` are asked for.
    """

    def __init__(self, split: Split, defects: bool = False) -> None:
        self.split = split
        count, (height, width) = len(split), split.shape
        large = count * height * width * 4 > CACHE_BYTES
        self.cached = None if large else torch.empty(count, height, width)
        self.mean, deviation = torch.empty(2, count)
        for part in (slice(start, start + 64) for start in range(0, count, 64)):
            block = torch.from_numpy(split.relative(part))
            self.mean[part], deviation[part] = block.mean((1, 2)), block.std((1, 2))
            if self.cached is not None:
                self.cached[part] = block
        self.contrast = (deviation / self.mean).clamp_min(1e-3)
        self.structures = split.structures() if defects else []
        self._sites: dict[int, Tensor] = {}
        self.scanned = torch.zeros(count, dtype=torch.bool)
        self.others = torch.arange(count)
        if split.table is not None:
            self.scanned = torch.tensor((split.table["detector"] == "stem").to_list())
        if split.table is not None and "state" in split.table.columns:
            row = pl.col("row").cast(pl.Int64)
            following = row.shift(-1).fill_null(row.first()).over("structure", "image")
            others = split.table.with_row_index("row").select(following)
            self.others = torch.tensor(others["row"].to_list())

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.split)

    def relative(self, indices: Tensor) -> Tensor:
        """Give relative clean frames, (n, H, W)."""
        if self.cached is not None:
            return self.cached[indices]
        return torch.from_numpy(self.split.relative(np.asarray(indices)))

    def marks(self, indices: Tensor) -> Tensor:
        """Map where the frames' point defects and sites are, (n, 3, H, W).

        The planes are 1 at defects, falling to 0 around them; the number of the site in a pixel
        (`sites`), 0 of none; and the size of a pixel in nm.
        """
        assert self.split.table is not None
        height, width = self.split.shape
        marks = torch.zeros(len(indices), 3, height, width)
        for (near, sites, size), index in zip(marks, indices.tolist(), strict=True):
            size.fill_(self.split.table["pixel_size_nm"][index])
            spread = DEFECT_NM / float(size[0, 0])
            for x, y in self.structures[index][2]:
                across = torch.exp(-0.5 * ((torch.arange(width) - float(x)) / spread) ** 2)
                down = torch.exp(-0.5 * ((torch.arange(height) - float(y)) / spread) ** 2)
                torch.maximum(near, down[:, None] * across, out=near)
            if index not in self._sites:
                self._sites[index] = self.sites(index)
            rows, columns, numbers = self._sites[index].unbind(1)
            sites[rows, columns] = numbers.float()
        return marks

    def sites(self, index: int) -> Tensor:
        """Find a frame's sites, (n, 3): row, column and a number.

        That is the site's kind, from 1, and 10 more where it is vacant or another element is there.
        """
        assert self.split.table is not None
        atoms, numbers, defects, names = self.structures[index]
        if not len(atoms):
            return torch.zeros(0, 3, dtype=torch.long)
        size = self.split.table["pixel_size_nm"][index]
        found = simulated_sites(atoms, numbers, defects, names, size)
        changed = found.vacant | found.foreign
        places, end = np.rint(found.places), np.array(self.split.shape) - 1
        inside = ((places >= MARGIN_NM / size) & (places <= end - MARGIN_NM / size)).all(1)
        chosen = inside & (found.full | changed) & np.isfinite(found.amplitudes)
        rows = np.column_stack([places, 1 + found.kinds + 10 * changed])[chosen]
        return torch.from_numpy(rows.astype(np.int64))


class Batch(NamedTuple):
    """Frames or patches in electrons."""

    noisy: Tensor  # (N, 1, H, W), or (N, F, H, W): a frame with its neighbours
    target: Tensor  # (N, 1, H, W), expected counts of the middle frame
    scale: Tensor  # (N, 1, 1, 1), expected mean of the frame that a patch comes from
    marks: Tensor | None = None  # (N, 3, H, W), `CleanFrames.marks`, where a loss weighs defects


@dataclass(frozen=True)
class Source:
    """Draws patches of clean frames, recorded anew at every step, with noise drawn on ``device``.

    Each takes the numbers of frames ``indices``, (n,), and a ``generator`` on the CPU, the only
    source of chance, and gives a batch on the device.
    """

    frames: CleanFrames
    recipe: Recipe
    size: int  # side of a patch in pixels
    device: torch.device

    def patches(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """Cut a patch of each frame and record it at a dose of its own."""
        clean = self.frames.relative(indices)[:, None]
        if self.recipe.defects:
            clean = torch.cat([clean, self.frames.marks(indices)], 1)
        clean = crops(clean, self.size, generator, self.recipe.augmented)
        images, snr = levelled(self.recipe, clean[:, :1], generator)
        return self.record(indices, images, snr, clean[:, 1:], generator)

    def clips(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """Record a clip of five frames of each frame's specimen, (n, 5, size, size).

        Each has a drift of its own (steady, with jitter and a slow turn), one beam and one camera.
        In some the specimen's defects change at one frame, to another of its states where the data
        set has those (`emdn-train simulate --states`); a few are cut to another frame, and in some
        the dose changes once.
        """
        n = len(indices)

        def share() -> Tensor:
            return torch.rand(n, 1, generator=generator)

        later, cut = self.frames.others[indices], share()[:, 0] < CUT
        later[cut] = torch.randint(len(self.frames), (n,), generator=generator)[cut]
        changed = share() < torch.where(cut, 1.0, CHANGE)[:, None]
        event = 1 + torch.randint(COUNT - 1, (n, 1), generator=generator)
        after = changed & (torch.arange(COUNT) >= event)
        sides = torch.stack([self.frames.relative(i) for i in (indices, later)], 1)
        clean = sides[torch.arange(n)[:, None], after.long()]
        if self.recipe.defects:
            shown = torch.where(after[:, COUNT // 2], later, indices)
            clean = torch.cat([clean, self.frames.marks(shown)], 1)
        clean = moved(clean, self.size, self.recipe.augmented, generator)
        images, snr = levelled(self.recipe, clean[:, :COUNT], generator)
        dose = torch.exp(DOSE_STEP * torch.randn(n, 1, generator=generator))
        step = 1 + torch.randint(COUNT - 1, (n, 1), generator=generator)
        dose = torch.where((share() < CUT) & (torch.arange(COUNT) >= step), dose, 1.0)
        images = images * dose[..., None, None]
        return self.record(indices, images, snr, clean[:, COUNT:], generator)

    def record(
        self,
        indices: Tensor,
        clean: Tensor,
        snr: Tensor,
        marks: Tensor,
        generator: torch.Generator,
    ) -> Batch:
        """Record clean images (N, F, H, W) with fresh noise, each at its own signal to noise.

        ``snr`` (N,) is contrast x sqrt(electrons per pixel), the contrast being the whole frame's;
        ``marks`` (N, 0 or 3, H, W) go along. Some of the unscanned images (`Recipe.ccd`) are
        recorded by a CCD, with correlated noise, in units of the gain that a deployment would find.
        """
        seed = int(torch.randint(2**62, (), generator=generator))
        frames, device = self.frames, self.device
        generator = torch.Generator(device).manual_seed(seed)
        electrons = ((snr / frames.contrast[indices]) ** 2).clamp(*ELECTRONS)
        noisy = torch.empty_like(clean, device=device)
        target, scale = torch.empty_like(noisy), torch.empty(len(clean))
        scanned = frames.scanned[indices]
        smeared = torch.zeros_like(scanned)
        if self.recipe.ccd:
            share = torch.rand(len(clean), generator=generator, device=device)
            smeared = ~scanned & (share.cpu() < self.recipe.ccd)
        choices = {"stem": scanned, "ccd": smeared, "counting": ~scanned & ~smeared}
        for detector, chosen in choices.items():
            if not chosen.any():
                continue
            images, dose = clean[chosen].to(device), electrons[chosen]
            side = max(frames.split.shape)
            found, expected = noise.draw(images, dose.to(device), detector, generator, side)
            level = dose * noise.DQE0[detector] * frames.mean[indices[chosen]]
            gain = torch.ones(len(level), 1, 1, 1, device=device)
            if detector == "ccd":
                variance = (found - expected).square().mean((1, 2, 3), keepdim=True)
                share = torch.rand(gain.shape, generator=generator, device=device)
                gain = variance / level.view(-1, 1, 1, 1).to(device)
                gain = gain * CCD_GAIN[0] * (CCD_GAIN[1] / CCD_GAIN[0]) ** share
            noisy[chosen.to(device)] = found / gain
            target[chosen.to(device)] = expected / gain
            scale[chosen] = level / gain.view(-1).cpu()
        beside = marks.to(device) if self.recipe.defects else None
        return Batch(noisy, middle(target), scale.view(-1, 1, 1, 1).to(device), beside)


def moved(clean: Tensor, size: int, zoomed: float, generator: torch.Generator) -> Tensor:
    """Let clips drift: sample each frame where the specimen is by then, bicubic.

    Maps (N, F, H, W), a specimen at rest, to (N, F, size, size), not negative; beyond the frames'
    edges they are mirrored. A share ``zoomed`` is magnified, by up to ``ZOOM[1]``, and turned.
    The first ``COUNT`` of F are frames; what is beyond goes with the middle one of them, which does
    not drift: sites (`CleanFrames.marks`) stay on pixels, and are lost where it is magnified.
    """
    n, planes, height, width = clean.shape
    size = min(size, height, width)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    time = (torch.arange(COUNT) - COUNT // 2)[None, :]
    speed = DRIFT * uniform(0, 1, 1) * (uniform(0, 1, 1) >= RESTING)
    course = uniform(0, 2 * math.pi, 1)
    jitter = (JITTER * uniform(0, 1, 1))[..., None] * torch.randn(n, COUNT, 2, generator=generator)
    path = torch.stack([course.cos(), course.sin()], -1) * (speed * time)[..., None] + jitter
    path = path * (uniform(0, 1, 1, 1) >= RESTING / 2)
    path = path - path[:, COUNT // 2, None]
    special = uniform(0, 1, 1) < zoomed
    zoom = torch.where(special, uniform(1.0, ZOOM[1], 1), 1.0)
    angle = torch.where(special, uniform(0, 2 * math.pi, 1), 0.0)
    turn = angle + TURN * uniform(-1, 1, 1) * time
    free = torch.tensor([width - size, height - size]) / 2
    corner = (uniform(0, 2, 1, 2) * free).round() - free
    # Rows of pixels are y, columns x; grid_sample counts from -1 to 1 over the frame.
    cos, sin = turn.cos() / zoom, turn.sin() / zoom
    side = torch.arange(size) - (size - 1) / 2
    y, x = side[:, None], side[None, :]
    u = cos[..., None, None] * x - sin[..., None, None] * y
    v = sin[..., None, None] * x + cos[..., None, None] * y
    place = torch.stack([u, v], -1) + (corner + path)[:, :, None, None]
    grid = 2 * place / torch.tensor([width, height])
    further = grid[:, COUNT // 2, None].expand(n, planes - COUNT, *grid.shape[2:])
    images, grid = clean.flatten(0, 1)[:, None], torch.cat([grid, further], 1).flatten(0, 1)
    sampled = functional.grid_sample(images, grid, "bicubic", "reflection", align_corners=False)
    sampled = sampled.view(n, planes, size, size).clamp_min(0)
    sites = sampled[:, COUNT + 1 : COUNT + 2]
    sites.copy_(torch.where(special[..., None, None], 0.0, sites.round()))
    return sampled


def crops(frames: Tensor, size: int, generator: torch.Generator, zoomed: float = 0.0) -> Tensor:
    """Cut one square patch from each image (N, C, H, W), in one of the eight orientations.

    A share ``zoomed`` is magnified by a factor drawn from ``ZOOM``; the third channel, of sites, is
    empty then. Patches are (N, C, size, size), smaller where the frames are.
    """
    height, width = frames.shape[-2:]
    size = min(size, height, width)
    draws = torch.rand(len(frames), 3, generator=generator)
    sides = torch.full((len(frames),), size)
    if zoomed:
        zoom = log_uniform(ZOOM, len(frames), generator)
        zoom[torch.rand(len(frames), generator=generator) >= zoomed] = 1.0
        sides = (size / zoom).round().long().clamp(8, min(height, width))
    patches = []
    for frame, side, (down, right, turn) in zip(
        frames, sides.tolist(), draws.tolist(), strict=True
    ):
        top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
        orientation = int(turn * 8)
        patch = frame[:, top : top + side, left : left + side]
        if side != size:
            patch = functional.interpolate(
                patch[None], (size, size), mode="bicubic", antialias=side > size
            )[0].clamp_min(0)
            patch[2:3] = 0  # between pixels, sites are lost
        patch = patch.rot90(orientation % 4, (1, 2))
        patches.append(patch.flip(-1) if orientation >= 4 else patch)
    return torch.stack(patches)


def levelled(recipe: Recipe, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the signal to noise of images (N, F, H, W), and change the contrast of some.

    Of every other one of these also its sign. Returns images, not negative, and (N,).
    """
    count = len(clean)
    snr = log_uniform(recipe.snr, count, generator)
    if not recipe.augmented:
        return clean, snr
    factor = log_uniform(CONTRAST, count, generator)
    chosen = torch.rand(count, generator=generator) < recipe.augmented
    factor[~chosen] = 1.0
    negative = chosen & (torch.rand(count, generator=generator) < 0.5)
    mean = clean.mean((1, 2, 3), keepdim=True)
    signed = torch.where(negative, -factor, factor).view(-1, 1, 1, 1)
    return (mean + signed * (clean - mean)).clamp_min(0), snr / factor


def log_uniform(limits: tuple[float, float], count: int, generator: torch.Generator) -> Tensor:
    """Draw (count,) numbers whose logarithm is uniform between the limits."""
    low, high = limits
    return low * (high / low) ** torch.rand(count, generator=generator)


def chance(seed: int, *place: int) -> torch.Generator:
    """Return a generator that follows from the seed and a place in the run alone.

    So none is saved to continue a run, and a patch does not depend on the process that draws it.
    """
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))


def _open(path: Path) -> h5py.Dataset:
    images: Any
    try:
        images = h5py.File(path, "r").get("images")
    except OSError as error:
        images = error
    shape = getattr(images, "shape", ())
    if 0 in shape or shape[3:] != (1,) or images.dtype.kind not in "fiu":
        raise FormatError(
            f"{path}: found {images}; expected, in train/ and test/, HDF5 files whose dataset "
            "'images' has numbers of shape (N, H, W, 1), one channel last, N at least 1"
        )
    return images


def _read(images: h5py.Dataset, indices: Indices) -> Frames:
    chosen = np.arange(len(images))[indices]
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
