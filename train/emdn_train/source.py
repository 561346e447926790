"""Where the training loop takes its batches from, and the chance they are drawn with."""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from emdn_models.nets.electrons import middle, noise_map, normalise
from emdn_models.nets.spectral import WithSpectrum
from emdn_train.batches import ZOOM, Batch, Specimens, crops, log_uniform, record, stretch
from emdn_train.data import Split
from emdn_train.recipes import Recipe

CHANGE = 0.4
"""Share of the clips in which the specimen's defects change."""
CUT = 0.06
"""Share of the clips that are cut to another specimen, and share whose dose changes."""
DOSE_STEP = 0.5
"""Standard deviation of the logarithm of a change of the dose."""
DRIFT = 3.0
"""Largest steady drift in pixels a frame."""
JITTER = 0.7
"""Largest standard deviation, in pixels, of what a frame lies off its course."""
RESTING = 0.3
"""Share of the clips without a steady drift; half as many rest altogether."""
TURN = 0.005
"""Largest turn in rad a frame."""


class Source(Protocol):
    """All that the loop asks of its data."""

    def __len__(self) -> int:
        """Return the number of frames; an epoch takes one patch of each."""

    def order(self, seed: int, epoch: int) -> Tensor:
        """Return the numbers of all frames in the order of one epoch, (frames,)."""

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """Draw a patch of each frame, on the device of the training.

        Parameters
        ----------
        indices
            (n,) numbers of frames.
        generator
            The only source of chance, on the CPU: the same state gives the same batch.
        """


@dataclass(frozen=True)
class Simulated:
    """Clean frames, recorded anew at every step.

    Attributes
    ----------
    specimens
        The frames.
    recipe
        Range of signal to noise, augmentation and detectors.
    patch
        Side of a patch in pixels.
    device
        Where the noise is drawn.
    """

    specimens: Specimens
    recipe: Recipe
    patch: int
    device: torch.device

    def __len__(self) -> int:
        """Return the number of frames."""
        return self.specimens.split.frames

    def order(self, seed: int, epoch: int) -> Tensor:
        """Shuffle the frames; see `Source`."""
        return shuffled(len(self), seed, epoch)

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """Cut a patch of each frame and record it at a dose of its own; see `Source`."""
        recipe = self.recipe
        frames = self.specimens.relative(indices)
        clean = crops(frames, self.patch, generator, recipe.augmented)
        snr = log_uniform(recipe.snr, len(indices), generator)
        if recipe.augmented:
            clean, contrast = stretch(clean, recipe.augmented, generator)
            snr = snr / contrast
        seed = int(torch.randint(2**62, (), generator=generator))
        noise = torch.Generator(self.device).manual_seed(seed)
        return record(self.specimens, indices, clean, snr, noise, self.device, recipe.ccd)


class Clips(Simulated):
    """Clips of five frames of specimens that drift, recorded anew at every step.

    Each clip has a drift of its own (steady, to 3 pixels a frame, with jitter and a slow turn),
    one beam and one camera. In some the specimen's defects change at one frame, to another of
    its states where the data set has those (`emdn-train simulate --states`); a few are cut to
    another frame, and in some the dose changes once.
    """

    frames = 5

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """Record a clip of each frame's specimen: (n, 5, p, p); see `Source`."""
        recipe, count, n = self.recipe, self.frames, len(indices)

        def share() -> Tensor:
            return torch.rand(n, 1, generator=generator)

        later, cut = self._others[indices], share()[:, 0] < CUT
        later[cut] = torch.randint(len(self), (n,), generator=generator)[cut]
        changed = share() < torch.where(cut, 1.0, CHANGE)[:, None]
        event = 1 + torch.randint(count - 1, (n, 1), generator=generator)
        after = changed & (torch.arange(count) >= event)
        sides = torch.stack([self.specimens.relative(i) for i in (indices, later)], 1)
        clean = sides[torch.arange(n)[:, None], after.long()]
        clean = moved(clean, self.patch, recipe.augmented, generator)
        snr = log_uniform(recipe.snr, n, generator)
        if recipe.augmented:
            clean, contrast = stretch(clean, recipe.augmented, generator)
            snr = snr / contrast
        dose = torch.exp(DOSE_STEP * torch.randn(n, 1, generator=generator))
        step = 1 + torch.randint(count - 1, (n, 1), generator=generator)
        dose = torch.where((share() < CUT) & (torch.arange(count) >= step), dose, 1.0)
        clean = clean * dose[..., None, None]
        seed = int(torch.randint(2**62, (), generator=generator))
        noise = torch.Generator(self.device).manual_seed(seed)
        batch = record(self.specimens, indices, clean, snr, noise, self.device, recipe.ccd)
        return batch._replace(target=middle(batch.target))

    @cached_property
    def _others(self) -> Tensor:
        """Return for each frame the number of one of the same image in another state, or itself."""
        own = torch.arange(len(self))
        table = self.specimens.split.table
        if table is None or "state" not in table.columns:
            return own
        places = table.select("structure", "image").hash_rows().to_numpy()
        _, group = np.unique(places, return_inverse=True)
        order = np.lexsort((np.arange(len(group)), group))
        first = np.r_[True, np.diff(group[order]) > 0]
        # The next of the group, and of the last one the first.
        starts = np.flatnonzero(first)
        following = np.r_[order[1:], order[:1]]
        ends = np.r_[starts[1:] - 1, len(order) - 1]
        following[ends] = order[starts]
        own[torch.from_numpy(order)] = torch.from_numpy(following)
        return own


class Reused:
    """Recordings that are used several times in other orientations, with their spectra.

    The spectral estimate costs as much as a step of the net. As long as it is not fitted, it
    can be calculated once: it commutes with flips and quarter turns.

    Parameters
    ----------
    source
        Where recordings come from.
    net
        Whose estimate it is.
    times
        How often a recording is used.
    block
        How many recordings are kept at a time.
    """

    def __init__(self, source: Source, net: WithSpectrum, times: int = 4, block: int = 256) -> None:
        self.source, self.net, self.times, self.block = source, net, times, block
        self._round = 0, 0
        self._kept: dict[tuple[int, int, int], Batch] = {}

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
        for key in keys:
            if key not in self._kept:
                if len(self._kept) >= self.block + len(keys):
                    self._kept.pop(next(iter(self._kept)))
                self._kept[key] = self._recorded(key)
        turned = []
        for key, turn in zip(
            keys, torch.randint(8, (len(keys),), generator=generator), strict=True
        ):
            parts = [
                part.rot90(int(turn) % 4, (2, 3)) for part in self._kept[key] if part is not None
            ]
            turned.append([part.flip(3) if turn >= 4 else part for part in parts])
        return Batch(*(torch.cat(parts) for parts in zip(*turned, strict=True)))

    @torch.no_grad()
    def _recorded(self, key: tuple[int, int, int]) -> Batch:
        batch = self.source.batch(torch.tensor([key[-1]]), chance(*key))
        frame = middle(batch.noisy)
        x, noise = normalise(frame, batch.scale), noise_map(frame, batch.scale)
        return batch._replace(spectra=self.net.spectra(x, noise))


def moved(clean: Tensor, size: int, zoomed: float, generator: torch.Generator) -> Tensor:
    """Let clips drift: sample each frame where the specimen is by then, bicubic.

    Parameters
    ----------
    clean
        (N, F, H, W) frames of a specimen at rest.
    size
        Side of the patches; beyond the frames' edges they are mirrored.
    zoomed
        Share of the clips that are magnified, by up to ``ZOOM[1]``, and turned by any angle.

    Returns
    -------
    (N, F, size, size), not negative.
    """
    n, count, height, width = clean.shape
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
    room = torch.tensor([width - size, height - size]) / 2
    corner = (uniform(-1, 1, 1, 2) * room).round()
    # Rows of pixels are y, columns x; grid_sample counts from -1 to 1 over the frame.
    cos, sin = turn.cos() / zoom, turn.sin() / zoom
    side = torch.arange(size) - (size - 1) / 2
    y, x = side[:, None], side[None, :]
    u = cos[..., None, None] * x - sin[..., None, None] * y
    v = sin[..., None, None] * x + cos[..., None, None] * y
    place = torch.stack([u, v], -1) + (corner + path)[:, :, None, None]
    grid = 2 * place / torch.tensor([width, height])
    sampled = functional.grid_sample(
        clean.flatten(0, 1)[:, None],
        grid.flatten(0, 1),
        mode="bicubic",
        padding_mode="reflection",
        align_corners=False,
    )
    return sampled.view(n, count, size, size).clamp_min(0)


def chance(seed: int, *place: int) -> torch.Generator:
    """Return a generator that follows from the seed and a place in the run alone.

    No generator then needs to be kept to continue a run, and what a patch looks like
    does not depend on the process that draws it.
    """
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))


def shuffled(frames: int, seed: int, epoch: int) -> Tensor:
    """Return the numbers of all frames in the order of one epoch, (frames,)."""
    return torch.randperm(frames, generator=chance(seed, epoch))


def fingerprint(split: Split) -> str:
    """Return a short digest of a split: its shape and sixteen of its clean frames."""
    height, width = split.shape
    sample = np.linspace(0, split.frames - 1, min(16, split.frames)).astype(np.int64)
    digest = hashlib.blake2b(repr((split.frames, height, width)).encode(), digest_size=6)
    digest.update(split.clean(sample).tobytes())
    return digest.hexdigest()
