"""What the camera makes of a clean image: beam, counting statistics, faulty pixels.

In this order, for relative images I (vacuum or mean = 1) and N0 incident electrons a pixel:

1. lambda = N0 B I, with B the profile of the beam, of mean 1 over the field.
2. A counting detector records Poisson(DQE0 lambda). A CCD first loses signal to noise by
   MTF/NTF, then counts, then smears counts by its NTF, and adds gain, dark current and
   read-out noise (Vulovic et al., J. Struct. Biol. 183, 19, 2013, eq. 20).
3. Dead, hot and whole lines of bad pixels.

Everything is in electrons, (N, 1, H, W), on the device of the clean images; random numbers
come from the one generator given, which must live on that device. A scanned probe (``stem``)
has no beam profile and no pixels that fail; its lines jitter and flicker instead, and the
target is the image of a steady scan.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from emdn_train.detectors import DETECTORS, Detector, apply_defects, draw_defects

__all__ = [
    "DETECTORS",
    "Profile",
    "Recording",
    "apply_defects",
    "draw",
    "draw_defects",
    "draw_profile",
    "profile_map",
    "record",
    "scan",
]

_FLOOR = 0.05
_PAD = 12


class Recording(NamedTuple):
    """Frames in electrons, (N, 1, H, W) each.

    ``target`` is the expected recorded signal (after DQE and MTF, before Poisson) and
    ``valid`` is True where no pixel is faulty.
    """

    noisy: Tensor
    target: Tensor
    valid: Tensor


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
    clean: Tensor,
    electrons: Tensor,
    detector: str,
    generator: torch.Generator,
    *,
    field: int | None = None,
    profile: bool = True,
    defects: bool = True,
) -> Recording:
    """Draw one recording of each clean image.

    Parameters
    ----------
    clean
        (N, 1, H, W) float32 relative intensity, vacuum or mean = 1; or (N, F, H, W), F frames
        under one beam, by one camera.
    electrons
        (N,) incident electrons per pixel, mean over the field.
    detector
        Key of ``DETECTORS``.
    field
        Side, in pixels, of the frame that the images are patches of, for the beam's
        gradient; the larger side of the image if None.
    profile, defects
        Whether the beam has a profile and the camera faulty pixels.
    """
    n, _, h, w = clean.shape
    if DETECTORS[detector].scanned:
        noisy, target = scan(clean, electrons, detector, generator)
        return Recording(noisy, target, torch.ones_like(noisy, dtype=torch.bool))
    side = max(h, w, field or 0)
    beam = clean.new_ones(n, 1, 1, 1)
    if profile:
        corner = torch.rand(n, 2, generator=generator, device=clean.device)
        corner = torch.stack([corner[:, 0] * (side - h), corner[:, 1] * (side - w)], 1)
        drawn = draw_profile(n, generator, device=clean.device)
        beam = profile_map(drawn, (h, w), side, corner.round())
    signal = electrons.to(clean).view(-1, 1, 1, 1) * beam * clean
    noisy, target = record(signal, detector, generator)
    valid = torch.ones_like(noisy, dtype=torch.bool)
    if defects:
        # A patch shows a bad line of its frame only as often as it lies on it.
        chance = 0.02 * max(h, w) / side
        bad, level = draw_defects(n, (h, w), generator, clean.device, line_chance=chance)
        noisy = apply_defects(noisy, bad, level)
        valid = ~bad
    return Recording(noisy, target, valid)


def scan(
    clean: Tensor, electrons: Tensor, detector: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Count a scan whose lines jitter and flicker: noisy frames and the steady expectation."""
    probe = DETECTORS[detector]
    n, count, h, w = clean.shape
    target = probe.dqe0 * electrons.to(clean).view(-1, 1, 1, 1) * clean
    r = torch.rand(2, n, 1, 1, 1, generator=generator, device=clean.device)
    line = torch.randn(2, n, count, h, 1, generator=generator, device=clean.device)
    shift = line[0] * _log_uniform(probe.jitter, r[0])
    bright = 1 + line[1] * (probe.flicker[0] + (probe.flicker[1] - probe.flicker[0]) * r[1])
    padded = torch.nn.functional.pad(target, (_PAD, _PAD, 0, 0), mode="reflect")
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
    whole = profile_map(drawn, (64, 64), 64, torch.zeros(n, 2, device=device))
    return drawn._replace(mean=whole.mean((1, 2, 3)))


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
    camera = DETECTORS[detector]
    if not camera.mtf_knee:
        target = camera.dqe0 * signal
        return torch.poisson(target, generator=generator), target
    padded = torch.nn.functional.pad(signal, (_PAD,) * 4, mode="reflect")
    mtf = _mtf(camera, padded.shape[-2], padded.shape[-1], signal.device)
    spectrum = torch.fft.rfft2(padded)
    root = mtf.sqrt()
    counted = camera.dqe0 * torch.fft.irfft2(spectrum * root, s=padded.shape[-2:])
    target = camera.dqe0 * torch.fft.irfft2(spectrum * mtf, s=padded.shape[-2:])
    events = torch.poisson(counted.clamp_min(0), generator=generator)
    smeared = torch.fft.irfft2(torch.fft.rfft2(events) * root, s=padded.shape[-2:])
    inner = (..., slice(_PAD, -_PAD), slice(_PAD, -_PAD))
    target, smeared = target[inner].clamp_min(0), smeared[inner]
    n, device = len(signal), signal.device
    r = torch.rand(4, n, 1, 1, 1, generator=generator, device=device)
    gain = _log_uniform(camera.gain, r[0])
    offset = camera.offset[0] + (camera.offset[1] - camera.offset[0]) * r[1]
    dark = _log_uniform(camera.dark, r[2])
    read = camera.read[0] + (camera.read[1] - camera.read[0]) * r[3]
    # Dark current is counted, its mean is subtracted as every camera's dark frame does.
    thermal = torch.poisson(dark.expand_as(target), generator=generator) - dark
    noise = torch.randn(target.shape, generator=generator, device=device) * read
    adu = (gain * (smeared + thermal) + offset + noise).round()
    return (adu - offset) / gain, target


def _log_uniform(limits: tuple[float, float], r: Tensor) -> Tensor:
    ratio = limits[1] / limits[0]
    return torch.pow(ratio, r) * limits[0]


def _mtf(camera: Detector, h: int, w: int, device: torch.device) -> Tensor:
    qy = 2 * torch.fft.fftfreq(h, device=device)[:, None]
    qx = 2 * torch.fft.rfftfreq(w, device=device)[None, :]
    q = (qx * qx + qy * qy).sqrt() / camera.mtf_knee
    return torch.reciprocal(1 + q**camera.mtf_power)
