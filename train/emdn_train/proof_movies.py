"""Short simulated movies for `emdn_train.proof`: a drifting specimen that lacks one atom."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from emdn_train import noise
from emdn_train.simulate import hrtem, materials
from emdn_train.simulate.movie import draw_drift
from emdn_train.simulate.optics import draw_optics
from emdn_train.simulate.specimens import RECIPES
from emdn_train.simulate.structure import Structure
from emdn_train.simulate.threads import one_thread

Stack = NDArray[np.float32]

# Specimens and the element of the atom that is taken out.
CRYSTALS = {"graphene": 6, "dichalcogenide": 16}
# What no model was trained on: glyphs, and a film at pixels three times as large.
STRANGE = ("text", "amorphous carbon at 0.05 nm a pixel")

_PAD = 24  # pixels on every side, for the drift
_PIXEL_SIZE_A = (0.10, 0.20)
_SALT = 7_001  # no data set of another command has seeds of three such parts
_FOCUS_TRIES = 6
_TEXT = "The quick brown fox jumps over the lazy dog 0123456789 "


@dataclass(frozen=True, eq=False)
class Movie:
    """Frames and their truth.

    Attributes
    ----------
    raw
        (N, H, W) uint16, counts.
    clean
        (N, H, W) float32, expected counts.
    filled
        (N, H, W) float32, what the atom that is lacking would add to these; 0 where the
        specimen is no crystal.
    """

    raw: NDArray[np.uint16]
    clean: Stack
    filled: Stack


@one_thread()
def movie(specimen: str, snr: float, frames: int, size: int, seed: int) -> Movie:
    """Simulate a movie on a counting camera; nothing but the drift moves.

    Parameters
    ----------
    specimen
        Of `CRYSTALS` or `STRANGE`.
    snr
        Signal to noise per pixel: contrast x sqrt(incident electrons).
    size
        Side of a frame in pixels.
    seed
        Specimen, optics and drift follow from it, whatever the ``snr``.
    """
    names = (*CRYSTALS, *STRANGE)
    rng, counts = np.random.default_rng([seed, _SALT, names.index(specimen)]).spawn(2)
    side = size + 2 * _PAD
    picture, atom = _text(side, rng) if specimen == "text" else _image(specimen, side, rng)
    drift = draw_drift(frames, rng).clip(1 - _PAD, _PAD - 1)
    inside = slice(_PAD, _PAD + size)
    clean, filled = (
        np.stack([ndimage.shift(one, step, mode="nearest")[inside, inside] for step in drift])
        for one in (picture, atom)
    )
    electrons = (snr * float(clean.mean()) / float(clean.std())) ** 2
    generator = torch.Generator().manual_seed(int(counts.integers(2**62)))
    profile = noise.draw_profile(1, generator)
    beam = electrons * noise.profile_map(profile, (size, size), size)
    signal = beam * torch.from_numpy(clean.clip(0))[:, None]
    raw, expected = noise.record(signal, "counting", generator)
    share = noise.DETECTORS["counting"].dqe0 * beam[0].numpy()
    return Movie(
        raw[:, 0].numpy().astype(np.uint16),
        expected[:, 0].numpy(),
        (share * filled).astype(np.float32),
    )


def _image(specimen: str, side: int, rng: np.random.Generator) -> tuple[Stack, Stack]:
    """Image a specimen, and what one more atom adds; vacuum = 1."""
    crystal = specimen in CRYSTALS
    pixel_a = float(rng.uniform(*_PIXEL_SIZE_A)) if crystal else 0.5
    field = hrtem.make_field(side, pixel_a)
    voltage_kv = float(rng.choice([60.0, 80.0]))
    if crystal:
        whole = RECIPES[specimen].make(rng, field.side_a + 1.0, side * pixel_a / 2)
        structure = _without(whole, CRYSTALS[specimen], 0.25 * side * pixel_a, rng)
        sampling_a = RECIPES[specimen].sampling_a
    else:
        whole = structure = materials.amorphous_carbon(rng, field.side_a + 1.0, 10.0)
        sampling_a = 0.2
    wave = hrtem.exit_wave(structure, field, voltage_kv, sampling_a=sampling_a)
    settings = [draw_optics(rng, voltage_kv) for _ in range(_FOCUS_TRIES)]
    pictures = [hrtem.image(wave, field, optics) for optics in settings]
    best = int(np.argmax([one.std() for one in pictures]))
    if not crystal:
        return pictures[best], np.zeros_like(pictures[best])
    wave = hrtem.exit_wave(whole, field, voltage_kv, sampling_a=sampling_a)
    return pictures[best], hrtem.image(wave, field, settings[best]) - pictures[best]


def _without(
    structure: Structure, number: int, reach: float, rng: np.random.Generator
) -> Structure:
    """Take one atom out, within ``reach`` of the middle if there is any; nothing relaxes."""
    far = np.abs(structure.positions[:, :2]).max(axis=1)
    far[structure.numbers != number] = np.inf
    near = np.flatnonzero(far < reach)
    gone = int(rng.choice(near)) if len(near) else int(far.argmin())
    keep = np.arange(len(far)) != gone
    return replace(
        structure,
        positions=structure.positions[keep],
        numbers=structure.numbers[keep],
        vibration=structure.vibration[keep],
    )


def _text(side: int, rng: np.random.Generator) -> tuple[Stack, Stack]:
    """Write lines of text, bright on dark."""
    page = Image.new("L", (side, side))
    start = int(rng.integers(len(_TEXT)))
    line = (_TEXT[start:] + _TEXT * (side // len(_TEXT) + 1))[:side]
    draw = ImageDraw.Draw(page)
    for y in range(0, side, 12):
        draw.text((0, y), line[y % len(_TEXT) :], fill=255)
    glyphs = ndimage.gaussian_filter(np.asarray(page, np.float32) / 255, 0.7)
    return np.asarray(1 + 0.3 * glyphs, np.float32), np.zeros((side, side), np.float32)
