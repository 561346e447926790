"""Where the training loop takes its batches from: patches or clips with fresh noise.

All chance follows from the seed and the place in the run, so that a run can be continued.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import polars as pl
import torch
from torch import Tensor
from torch.nn import functional

from emdn_models.nets.scaling import middle, noise_map, normalise
from emdn_models.nets.spectral import WithSpectrum
from emdn_train import noise
from emdn_train.config import Recipe
from emdn_train.dataset import CleanFrames

ELECTRONS = (0.05, 1e5)  # least and most incident per pixel, whatever the contrast
ZOOM = (0.75, 1.35)  # range of the magnification of augmented patches
CONTRAST = (0.6, 1.5)  # range of the contrast of augmented patches, as a factor
# A CCD's noise is correlated: what a deployment takes for its gain, over what its variance and
# mean give. Measured: 0.5 to 0.9 for single frames, 1 for stacks.
CCD_GAIN = (0.5, 1.1)

# Of clips:
CHANGE = 0.4  # share in which the specimen's defects change
CUT = 0.06  # share that is cut to another specimen, and share whose dose changes
DOSE_STEP = 0.5  # standard deviation of the logarithm of a change of the dose
DRIFT = 3.0  # largest steady drift in pixels a frame
JITTER = 0.7  # largest standard deviation, in pixels, of what a frame lies off its course
RESTING = 0.3  # share without a steady drift; half as many rest altogether
TURN = 0.005  # largest turn in rad a frame


class Batch(NamedTuple):
    """Frames or patches in electrons."""

    noisy: Tensor  # (N, 1, H, W), or (N, F, H, W): a frame with its neighbours
    target: Tensor  # (N, 1, H, W), expected counts of the middle frame
    scale: Tensor  # (N, 1, 1, 1), expected mean of the frame that a patch comes from
    # (N, windows, H, W), spectral estimates of the middle frame in noise units
    # (`emdn_models.nets.spectral`), where they are known.
    spectra: Tensor | None = None
    # (N, 1, H, W), 1 at point defects, falling to 0 around them, where a loss weighs them.
    defects: Tensor | None = None


class Source:
    """What the loop asks of its data: numbered frames, and a patch of each that it names."""

    def __len__(self) -> int:
        """Return the number of frames; an epoch takes one patch of each."""
        raise NotImplementedError

    def order(self, seed: int, epoch: int) -> Tensor:
        """Return the numbers of all frames in the order of one epoch, (frames,)."""
        return torch.randperm(len(self), generator=chance(seed, epoch))

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """Draw a patch of each of the frames ``indices``, (n,), on the device of the training.

        The ``generator``, on the CPU, is the only source of chance.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Simulated(Source):
    """Clean frames, recorded anew at every step, with noise drawn on ``device``."""

    frames: CleanFrames
    recipe: Recipe  # range of signal to noise, augmentation and detectors
    patch: int  # side of a patch in pixels
    device: torch.device

    def __len__(self) -> int:
        """Return the number of frames."""
        return self.frames.split.frames

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """Cut a patch of each frame and record it at a dose of its own; see `Source`."""
        frames = self.frames.relative(indices)[:, None]
        if self.recipe.defects:
            frames = torch.cat([frames, self.frames.near_defects(indices)[:, None]], 1)
        clean = crops(frames, self.patch, generator, self.recipe.augmented)
        clean, defects = clean[:, :1], clean[:, 1:]
        batch = self._recorded(indices, *self._levelled(clean, generator), generator)
        return batch._replace(defects=defects.to(self.device) if self.recipe.defects else None)

    def _levelled(self, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw the signal to noise of each image, and for some another contrast."""
        snr = log_uniform(self.recipe.snr, len(clean), generator)
        if self.recipe.augmented:
            clean, contrast = stretch(clean, self.recipe.augmented, generator)
            snr = snr / contrast
        return clean, snr

    def _recorded(
        self, indices: Tensor, clean: Tensor, snr: Tensor, generator: torch.Generator
    ) -> Batch:
        seed = int(torch.randint(2**62, (), generator=generator))
        own = torch.Generator(self.device).manual_seed(seed)
        return record(self.frames, indices, clean, snr, own, self.recipe.ccd)


class Clips(Simulated):
    """Clips of five frames of specimens that drift, recorded anew at every step.

    Each clip has a drift of its own (steady, with jitter and a slow turn), one beam and one camera.
    In some the specimen's defects change at one frame, to another of its states where the data set
    has those (`emdn-train simulate --states`); a few are cut to another frame, and in some the
    dose changes once.
    """

    count = 5

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """Record a clip of each frame's specimen: (n, 5, p, p); see `Source`."""
        count, n = self.count, len(indices)

        def share() -> Tensor:
            return torch.rand(n, 1, generator=generator)

        later, cut = self._others[indices], share()[:, 0] < CUT
        later[cut] = torch.randint(len(self), (n,), generator=generator)[cut]
        changed = share() < torch.where(cut, 1.0, CHANGE)[:, None]
        event = 1 + torch.randint(count - 1, (n, 1), generator=generator)
        after = changed & (torch.arange(count) >= event)
        sides = torch.stack([self.frames.relative(i) for i in (indices, later)], 1)
        clean = sides[torch.arange(n)[:, None], after.long()]
        if self.recipe.defects:
            shown = torch.where(after[:, count // 2], later, indices)
            clean = torch.cat([clean, self.frames.near_defects(shown)[:, None]], 1)
        clean = moved(clean, self.patch, self.recipe.augmented, generator, count)
        clean, defects = clean[:, :count], clean[:, count:]
        clean, snr = self._levelled(clean, generator)
        dose = torch.exp(DOSE_STEP * torch.randn(n, 1, generator=generator))
        step = 1 + torch.randint(count - 1, (n, 1), generator=generator)
        dose = torch.where((share() < CUT) & (torch.arange(count) >= step), dose, 1.0)
        batch = self._recorded(indices, clean * dose[..., None, None], snr, generator)
        return batch._replace(
            target=middle(batch.target),
            defects=defects.to(self.device) if self.recipe.defects else None,
        )

    @cached_property
    def _others(self) -> Tensor:
        """Return for each frame the number of one of the same image in another state, or itself."""
        table = self.frames.split.table
        if table is None or "state" not in table.columns:
            return torch.arange(len(self))
        row = pl.col("row")
        following = table.with_row_index("row").select(
            row.shift(-1).fill_null(row.first()).over("structure", "image").cast(pl.Int64)
        )
        return torch.tensor(following["row"].to_list())


class Reused(Source):
    """Recordings that are used ``times`` times in other orientations, with their spectra.

    The spectral estimate costs as much as a step of the net. As long as it is not fitted, it
    can be calculated once: it commutes with flips and quarter turns. ``block`` of them are in
    memory.
    """

    def __init__(self, source: Source, net: WithSpectrum, times: int = 4, block: int = 256) -> None:
        self.source, self.net, self.times, self.block = source, net, times, block
        self._round = 0, 0
        self._recordings: dict[tuple[int, int, int], Batch] = {}

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.source)

    def order(self, seed: int, epoch: int) -> Tensor:
        """Go through one block of frames after the other, through each ``times`` times."""
        number, part = divmod(epoch, self.times)
        self._round = seed, number
        blocks = self.source.order(seed, number).split(self.block)
        passes = [
            block[torch.randperm(len(block), generator=chance(seed, number, place, again))]
            for place, block in enumerate(blocks)
            for again in range(self.times)
        ]
        return torch.cat(passes)[part * len(self) : (part + 1) * len(self)]

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """Turn and flip recordings of the frames; see `Source`."""
        keys = [(*self._round, int(index)) for index in indices]
        turned: list[Batch] = []
        for key, turn in zip(
            keys, torch.randint(8, indices.shape, generator=generator), strict=True
        ):
            if key not in self._recordings:
                if len(self._recordings) >= self.block + len(keys):
                    self._recordings.pop(next(iter(self._recordings)))
                self._recordings[key] = self._recorded(key)
            turned.append(oriented(self._recordings[key], int(turn)))
        return Batch._make(
            None if parts[0] is None else torch.cat(parts) for parts in zip(*turned, strict=True)
        )

    @torch.no_grad()
    def _recorded(self, key: tuple[int, int, int]) -> Batch:
        batch = self.source.batch(torch.tensor([key[-1]]), chance(*key))
        frame = middle(batch.noisy)
        x, sigma = normalise(frame, batch.scale), noise_map(frame, batch.scale)
        return batch._replace(spectra=self.net.spectra(x, sigma))


def oriented(batch: Batch, turn: int) -> Batch:
    """Return images in one of the eight orientations, 0 as they are."""
    parts = [None if part is None else part.rot90(turn % 4, (2, 3)) for part in batch]
    return Batch._make(part.flip(3) if part is not None and turn >= 4 else part for part in parts)


def moved(
    clean: Tensor, size: int, zoomed: float, generator: torch.Generator, count: int | None = None
) -> Tensor:
    """Let clips drift: sample each frame where the specimen is by then, bicubic.

    Maps (N, F, H, W), a specimen at rest, to (N, F, size, size), not negative; beyond the frames'
    edges they are mirrored. A share ``zoomed`` is magnified, by up to ``ZOOM[1]``, and turned.
    The first ``count`` of F are frames; what is beyond goes with the middle one of them.
    """
    n, planes, height, width = clean.shape
    count = planes if count is None else count
    size = min(size, height, width)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    time = (torch.arange(count) - count // 2)[None, :]
    speed = DRIFT * uniform(0, 1, 1) * (uniform(0, 1, 1) >= RESTING)
    course = uniform(0, 2 * math.pi, 1)
    jitter = (JITTER * uniform(0, 1, 1))[..., None] * torch.randn(n, count, 2, generator=generator)
    path = torch.stack([course.cos(), course.sin()], -1) * (speed * time)[..., None] + jitter
    path = path * (uniform(0, 1, 1, 1) >= RESTING / 2)
    special = uniform(0, 1, 1) < zoomed
    zoom = torch.where(special, uniform(1.0, ZOOM[1], 1), 1.0)
    angle = torch.where(special, uniform(0, 2 * math.pi, 1), 0.0)
    turn = angle + TURN * uniform(-1, 1, 1) * time
    free = torch.tensor([width - size, height - size]) / 2
    corner = (uniform(-1, 1, 1, 2) * free).round()
    # Rows of pixels are y, columns x; grid_sample counts from -1 to 1 over the frame.
    cos, sin = turn.cos() / zoom, turn.sin() / zoom
    side = torch.arange(size) - (size - 1) / 2
    y, x = side[:, None], side[None, :]
    u = cos[..., None, None] * x - sin[..., None, None] * y
    v = sin[..., None, None] * x + cos[..., None, None] * y
    place = torch.stack([u, v], -1) + (corner + path)[:, :, None, None]
    grid = 2 * place / torch.tensor([width, height])
    further = grid[:, count // 2, None].expand(n, planes - count, *grid.shape[2:])
    grid = torch.cat([grid, further], 1)
    sampled = functional.grid_sample(
        clean.flatten(0, 1)[:, None],
        grid.flatten(0, 1),
        mode="bicubic",
        padding_mode="reflection",
        align_corners=False,
    )
    return sampled.view(n, planes, size, size).clamp_min(0)


def crops(frames: Tensor, size: int, generator: torch.Generator, zoomed: float = 0.0) -> Tensor:
    """Cut one square patch from each image (N, C, H, W), in one of the eight orientations.

    A share ``zoomed`` is magnified by a factor drawn from ``ZOOM``. Patches are (N, C, size,
    size), smaller where the frames are.
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
        patch = patch.rot90(orientation % 4, (1, 2))
        patches.append(patch.flip(-1) if orientation >= 4 else patch)
    return torch.stack(patches)


def stretch(clean: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Change the contrast of a share of the patches, of every other one also its sign.

    Maps (N, F, H, W) relative images to such, not negative, and (N,) factors of contrast.
    """
    count = len(clean)
    factor = log_uniform(CONTRAST, count, generator)
    chosen = torch.rand(count, generator=generator) < share
    factor[~chosen] = 1.0
    negative = chosen & (torch.rand(count, generator=generator) < 0.5)
    mean = clean.mean((1, 2, 3), keepdim=True)
    signed = torch.where(negative, -factor, factor).view(-1, 1, 1, 1)
    return (mean + signed * (clean - mean)).clamp_min(0), factor


def record(
    frames: CleanFrames,
    indices: Tensor,
    clean: Tensor,
    snr: Tensor,
    generator: torch.Generator,
    ccd: float = 0.0,
) -> Batch:
    """Record clean images (N, F, H, W) with fresh noise, each at its own signal to noise per pixel.

    ``indices`` (N,) are the frames that they come from, ``snr`` (N,) contrast x sqrt(electrons per
    pixel), the contrast being the whole frame's. The ``generator`` lives on the device of the
    result. A share ``ccd`` of the unscanned images is recorded by a CCD, with correlated noise,
    in units of the gain that a deployment would find (`CCD_GAIN`).
    """
    device = generator.device
    electrons = ((snr / frames.contrast[indices]) ** 2).clamp(*ELECTRONS)
    noisy = torch.empty_like(clean, device=device)
    target = torch.empty_like(noisy)
    scale = torch.empty(len(clean))
    scanned = frames.scanned[indices]
    smeared = torch.zeros_like(scanned)
    if ccd:
        share = torch.rand(len(clean), generator=generator, device=device)
        smeared = ~scanned & (share.cpu() < ccd)
    choices = {"stem": scanned, "ccd": smeared, "counting": ~scanned & ~smeared}
    for detector, chosen in choices.items():
        if not chosen.any():
            continue
        found, expected = noise.draw(
            clean[chosen].to(device), electrons[chosen].to(device), detector, generator,
            max(frames.split.shape),
        )  # fmt: skip
        level = electrons[chosen] * noise.DETECTORS[detector].dqe0 * frames.mean[indices[chosen]]
        gain = torch.ones(len(level), 1, 1, 1, device=device)
        if detector == "ccd":
            variance = (found - expected).square().mean((1, 2, 3), keepdim=True)
            share = torch.rand(gain.shape, generator=generator, device=device)
            gain = variance / level.view(-1, 1, 1, 1).to(device)
            gain = gain * CCD_GAIN[0] * (CCD_GAIN[1] / CCD_GAIN[0]) ** share
        noisy[chosen.to(device)] = found / gain
        target[chosen.to(device)] = expected / gain
        scale[chosen] = level / gain.view(-1).cpu()
    return Batch(noisy, target, scale.view(-1, 1, 1, 1).to(device))


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
