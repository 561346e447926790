"""Noise and cameras: beam, counting statistics and faulty pixels of a recorded image.

Of a relative image I (vacuum or mean = 1), N0 incident electrons a pixel and the beam's profile B,
a counting detector records Poisson(DQE0 N0 B I). A CCD first loses signal to noise by MTF/NTF, then
counts, smears counts by its NTF, and adds gain, dark current and read-out noise (Vulovic et al., J.
Struct. Biol. 183, 19, 2013, eq. 20). A scanned probe (``stem``) has no beam profile and no pixels
that fail; its lines jitter and flicker, and the target is the image of a steady scan.

Everything is in electrons, (N, 1, H, W), on the device of the clean images and the generator.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

BAD_LINES = 0.02
"""Share of the frames with a row or column that is dead or hot."""

_FLOOR = 0.05
_PAD = 12


DQE0: Mapping[str, float] = {"counting": 0.85, "ccd": 0.65, "stem": 1.0}
"""Share of the incident electrons that count, by detector."""

KNEE, POWER = 0.275, 2.11
"""MTF = 1 / (1 + (q / KNEE)^POWER) of the CCD, q in units of Nyquist: a Gatan US1000 at 80 kV. The
NTF is the root of the MTF, so that DQE(q) = DQE0 MTF(q)."""


class Profile(NamedTuple):
    """An elliptical Gaussian beam, lengths in fields, one row a frame: (N,) each.

    B = (0.05 + 0.95 exp(-(u^2/width_u^2 + v^2/width_v^2)/2)) / mean over the field.
    """

    x: Tensor
    y: Tensor
    width_u: Tensor
    width_v: Tensor
    angle: Tensor
    mean: Tensor


def draw(
    clean: Tensor, electrons: Tensor, detector: str, generator: torch.Generator, field: int
) -> tuple[Tensor, Tensor]:
    """Record each clean image once: noisy frames and their expectation, in electrons.

    ``clean`` is (N, 1, H, W) float32 relative intensity, vacuum or mean = 1, or (N, F, H, W), F
    frames under one beam, by one camera; ``electrons`` (N,) are incident per pixel, mean over the
    field; ``field`` is the side in pixels of the frame that the images are patches of, for the
    beam's gradient. The expectation is the recorded signal after DQE and MTF, before counting.
    """
    n, _, h, w = clean.shape
    if detector == "stem":
        return scan(clean, electrons, generator)
    side = max(h, w, field)
    corner = torch.rand(n, 2, generator=generator, device=clean.device)
    corner = torch.stack([corner[:, 0] * (side - h), corner[:, 1] * (side - w)], 1)
    drawn = draw_profile(n, generator, device=clean.device)
    beam = profile_map(drawn, (h, w), side, corner.round())
    return record(electrons.to(clean).view(-1, 1, 1, 1) * beam * clean, detector, generator)


def scan(clean: Tensor, electrons: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Count a scan whose lines jitter and flicker: noisy frames and the steady expectation.

    A line's shift along itself has a deviation of 0.1 to 1 pixel, its brightness of up to 2 %.
    """
    n, count, h, w = clean.shape
    target = DQE0["stem"] * electrons.to(clean).view(-1, 1, 1, 1) * clean
    r = torch.rand(2, n, 1, 1, 1, generator=generator, device=clean.device)
    line = torch.randn(2, n, count, h, 1, generator=generator, device=clean.device)
    shift = line[0] * (10.0 ** r[0] * 0.1)
    bright = 1 + line[1] * (0.02 * r[1])
    padded = functional.pad(target, (_PAD, _PAD, 0, 0), mode="reflect")
    q = torch.fft.rfftfreq(padded.shape[-1], device=clean.device)
    ramp = torch.polar(torch.ones_like(shift * q), -2 * torch.pi * shift * q)
    moved = torch.fft.irfft(torch.fft.rfft(padded) * ramp, n=padded.shape[-1])
    rate = (moved[..., _PAD : _PAD + w] * bright).clamp_min(0)
    return torch.poisson(rate, generator=generator), target


def draw_profile(n: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Profile:
    """Draw beams: widths 0.35-3 fields (log-uniform), centres within 0.4 of the middle."""
    r = torch.rand(n, 5, generator=generator, device=device)
    width = 0.35 * (3.0 / 0.35) ** r[:, 2]
    ratio = 0.7 + 0.6 * r[:, 3]
    drawn = Profile(
        x=0.8 * (r[:, 0] - 0.5),
        y=0.8 * (r[:, 1] - 0.5),
        width_u=width,
        width_v=(width * ratio).clamp(0.35, 3.0),
        angle=torch.pi * r[:, 4],
        mean=torch.ones(n, device=device),
    )
    field = profile_map(drawn, (64, 64), 64, torch.zeros(n, 2, device=device))
    return drawn._replace(mean=field.mean((1, 2, 3)))


def profile_map(
    profile: Profile, shape: tuple[int, int], field: int, corner: Tensor | None = None
) -> Tensor:
    """Beam over patches whose first pixel is at ``corner`` (N, 2: row, column) of the field."""
    device = profile.x.device
    if corner is None:
        corner = torch.zeros(len(profile.x), 2, device=device)
    row = torch.arange(shape[0], device=device) + 0.5
    column = torch.arange(shape[1], device=device) + 0.5
    y = ((row + corner[:, :1]) / field - 0.5 - profile.y[:, None])[:, :, None]
    x = ((column + corner[:, 1:]) / field - 0.5 - profile.x[:, None])[:, None, :]
    c, s = profile.angle.cos()[:, None, None], profile.angle.sin()[:, None, None]
    u = (c * x + s * y) / profile.width_u[:, None, None]
    v = (c * y - s * x) / profile.width_v[:, None, None]
    beam = _FLOOR + (1 - _FLOOR) * torch.exp(-(u * u + v * v) / 2)
    return (beam / profile.mean[:, None, None])[:, None]


def record(signal: Tensor, detector: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Count incident electrons ``signal``: noisy frames and their expectation, in electrons."""
    dqe0 = DQE0[detector]
    if detector != "ccd":
        return torch.poisson(dqe0 * signal, generator=generator), dqe0 * signal
    padded = functional.pad(signal, (_PAD,) * 4, mode="reflect")
    qy = 2 * torch.fft.fftfreq(padded.shape[-2], device=signal.device)[:, None]
    qx = 2 * torch.fft.rfftfreq(padded.shape[-1], device=signal.device)[None, :]
    mtf = torch.reciprocal(1 + ((qx * qx + qy * qy).sqrt() / KNEE) ** POWER)
    spectrum = torch.fft.rfft2(padded)
    root = mtf.sqrt()
    counted = dqe0 * torch.fft.irfft2(spectrum * root, s=padded.shape[-2:])
    target = dqe0 * torch.fft.irfft2(spectrum * mtf, s=padded.shape[-2:])
    events = torch.poisson(counted.clamp_min(0), generator=generator)
    smeared = torch.fft.irfft2(torch.fft.rfft2(events) * root, s=padded.shape[-2:])
    inner = (..., slice(_PAD, -_PAD), slice(_PAD, -_PAD))
    target, smeared = target[inner].clamp_min(0), smeared[inner]
    n, device = len(signal), signal.device
    r = torch.rand(4, n, 1, 1, 1, generator=generator, device=device)
    gain = (100.0 / 7.0) ** r[0] * 7.0  # ADU per electron
    offset = 100.0 + 200.0 * r[1]  # ADU
    dark = 10.0 ** r[2] * 0.1  # electrons per pixel
    read = 3.0 + 10.0 * r[3]  # ADU
    # Dark current is counted, its mean is subtracted as every camera's dark frame does.
    thermal = torch.poisson(dark.expand_as(target), generator=generator) - dark
    noise = torch.randn(target.shape, generator=generator, device=device) * read
    adu = (gain * (smeared + thermal) + offset + noise).round()
    return (adu - offset) / gain, target


def draw_defects(
    n: int, shape: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw maps of faulty pixels: (N, 1, H, W) bool, and what they read in units of the mean.

    Dead 1e-5 to 1e-3 and hot 1e-5 to 1e-4 of the pixels (log-uniform), hot ones at 2-20
    times the frame's mean, a tenth of all 2 x 2, a bad row or column in a share of
    ``BAD_LINES`` of the frames.
    """
    r = torch.rand(n, 7, generator=generator)
    dead = (1e-5 * 100 ** r[:, 0]).view(-1, 1, 1, 1)
    hot = (1e-5 * 10 ** r[:, 1]).view(-1, 1, 1, 1)
    # A tenth of the faults cover four pixels: 1.3 pixels a fault on average.
    chance = torch.rand(n, 1, *shape, generator=generator)
    faulty = chance < (dead + hot) / 1.3
    level = torch.zeros(n, 1, *shape)
    frame, _, row, column = faulty.nonzero(as_tuple=True)
    kind = torch.rand(3, len(frame), generator=generator)
    value = 2.0 * 10 ** kind[0] * (1.3 * chance[frame, 0, row, column] < hot[frame, 0, 0, 0])
    level[frame, 0, row, column] = value
    large = kind[1] < 0.1
    for down, right in ((0, 1), (1, 0), (1, 1)):
        i = (row[large] + down).clamp_max(shape[0] - 1)
        j = (column[large] + right).clamp_max(shape[1] - 1)
        faulty[frame[large], 0, i, j] = True
        level[frame[large], 0, i, j] = value[large]
    for k in (r[:, 2] < BAD_LINES).nonzero()[:, 0].tolist():
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
