"""Cameras: what each records of the electrons that meet it, and which pixels fail."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Detector:
    """How a camera records; ``noise`` has the order of things.

    Attributes
    ----------
    dqe0
        Share of incident electrons that count.
    mtf_knee, mtf_power
        MTF = 1 / (1 + (q / knee)^power), q in units of Nyquist; knee 0 means none.
        The NTF is the root of the MTF, so that DQE(q) = DQE0 MTF(q).
    gain
        Range of ADU per electron; zero means that counts are electrons.
    dark
        Range of the dark current in electrons per pixel.
    read
        Range of the read-out noise in ADU.
    jitter
        Range of the standard deviation of a line's shift along itself, in pixels.
    flicker
        Range of the relative standard deviation of a line's brightness.
    """

    dqe0: float
    mtf_knee: float = 0.0
    mtf_power: float = 2.0
    gain: tuple[float, float] = (0.0, 0.0)
    offset: tuple[float, float] = (0.0, 0.0)
    dark: tuple[float, float] = (0.0, 0.0)
    read: tuple[float, float] = (0.0, 0.0)
    jitter: tuple[float, float] = (0.0, 0.0)
    flicker: tuple[float, float] = (0.0, 0.0)

    @property
    def scanned(self) -> bool:
        """Whether lines are recorded one after the other by a probe."""
        return self.jitter[1] > 0


# The CCD's MTF is that of a Gatan US1000 at 80 kV.
DETECTORS: Mapping[str, Detector] = {
    "counting": Detector(dqe0=0.85),
    "ccd": Detector(
        dqe0=0.65,
        mtf_knee=0.275,
        mtf_power=2.11,
        gain=(7.0, 100.0),
        offset=(100.0, 300.0),
        dark=(0.1, 1.0),
        read=(3.0, 13.0),
    ),
    "stem": Detector(dqe0=1.0, jitter=(0.1, 1.0), flicker=(0.0, 0.02)),
}


def draw_defects(
    n: int,
    shape: tuple[int, int],
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    line_chance: float = 0.02,
) -> tuple[Tensor, Tensor]:
    """Draw maps of faulty pixels.

    Dead 1e-5 to 1e-3 and hot 1e-5 to 1e-4 of the pixels (log-uniform), hot ones at 2-20
    times the frame's mean, a tenth of all 2 x 2, a bad row or column in a share of
    ``line_chance`` of the frames.

    Returns
    -------
    (N, 1, H, W) bool, True where faulty, and float32, what a faulty pixel reads in units
    of the frame's mean.
    """
    r = torch.rand(n, 7, generator=generator, device=device)
    dead = (1e-5 * 100 ** r[:, 0]).view(-1, 1, 1, 1)
    hot = (1e-5 * 10 ** r[:, 1]).view(-1, 1, 1, 1)
    # A tenth of the faults cover four pixels: 1.3 pixels a fault on average.
    chance = torch.rand(n, 1, *shape, generator=generator, device=device)
    faulty = chance < (dead + hot) / 1.3
    level = torch.zeros(n, 1, *shape, device=device)
    frame, _, row, column = faulty.nonzero(as_tuple=True)
    at = chance[frame, 0, row, column] * 1.3
    kind = torch.rand(3, len(frame), generator=generator, device=device)
    value = torch.where(at < hot[frame, 0, 0, 0], 2.0 * 10 ** kind[0], torch.zeros_like(at))
    level[frame, 0, row, column] = value
    large = kind[1] < 0.1
    for down, right in ((0, 1), (1, 0), (1, 1)):
        i = (row[large] + down).clamp_max(shape[0] - 1)
        j = (column[large] + right).clamp_max(shape[1] - 1)
        faulty[frame[large], 0, i, j] = True
        level[frame[large], 0, i, j] = value[large]
    for k in (r[:, 2] < line_chance).nonzero()[:, 0].tolist():
        stuck = 0.0 if r[k, 3] < 0.5 else float(2.0 * 10 ** r[k, 4])
        axis = int(r[k, 5] < 0.5)
        line = int(r[k, 6] * shape[axis])
        faulty[k, 0].select(axis, line).fill_(True)
        level[k, 0].select(axis, line).fill_(stuck)
    return faulty, level


def apply_defects(noisy: Tensor, bad: Tensor, level: Tensor) -> Tensor:
    """Replace faulty pixels by their level times the mean of the frame's good pixels."""
    good = (~bad).to(noisy)
    mean = (noisy * good).sum((1, 2, 3), keepdim=True) / good.sum((1, 2, 3), keepdim=True)
    return torch.where(bad, (level * mean).round(), noisy)
