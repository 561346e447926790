"""Short simulated movies for `emdn_train.proof`: a drifting specimen that lacks one atom."""

from dataclasses import dataclass, replace
from functools import lru_cache

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
# Without such an atom, for honest results only.
MORE = ("particle", "strontium titanate", "random lattice")
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
def movie(
    specimen: str, snr: float, frames: int, size: int, seed: int, still: bool = False
) -> Movie:
    """Simulate a movie on a counting camera; nothing but the drift moves.

    Parameters
    ----------
    specimen
        Of `CRYSTALS`, `STRANGE` or `MORE`.
    snr
        Signal to noise per pixel: contrast x sqrt(incident electrons).
    size
        Side of a frame in pixels.
    seed
        Specimen, optics and drift follow from it, whatever the ``snr``.
    still
        Leaves the drift out.
    """
    clean, filled = _scene(specimen, frames, size, seed)
    if still:
        clean, filled = (np.repeat(one[:1], frames, axis=0) for one in (clean, filled))
    electrons = (snr * float(clean.mean()) / float(clean.std())) ** 2
    counts = np.random.default_rng(_seeds(specimen, seed)).spawn(2)[1]
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


def _seeds(specimen: str, seed: int) -> list[int]:
    return [seed, _SALT, (*CRYSTALS, *STRANGE, *MORE).index(specimen)]


@lru_cache(maxsize=2)  # the same scene comes at several levels, one after the other
def _scene(specimen: str, frames: int, size: int, seed: int) -> tuple[Stack, Stack]:
    """Draw a specimen, its image and its drift: frames, and what one more atom adds to them."""
    rng = np.random.default_rng(_seeds(specimen, seed)).spawn(2)[0]
    side = size + 2 * _PAD
    picture, atom = _text(side, rng) if specimen == "text" else _image(specimen, side, rng)
    drift = draw_drift(frames, rng).clip(1 - _PAD, _PAD - 1)
    inside = slice(_PAD, _PAD + size)
    clean, filled = (
        np.stack([ndimage.shift(one, step, mode="nearest")[inside, inside] for step in drift])
        for one in (picture, atom)
    )
    clean.flags.writeable = filled.flags.writeable = False
    return clean, filled


def _image(specimen: str, side: int, rng: np.random.Generator) -> tuple[Stack, Stack]:
    """Image a specimen, and what one more atom adds; vacuum = 1."""
    recipe = RECIPES.get(specimen)
    pixel_a = float(rng.uniform(*_PIXEL_SIZE_A)) if recipe else 0.5
    field = hrtem.make_field(side, pixel_a)
    voltage_kv = float(rng.choice([60.0, 80.0]))
    if recipe:
        whole = structure = recipe.make(rng, field.side_a + 1.0, side * pixel_a / 2)
        fine = {"sampling_a": recipe.sampling_a, "slice_a": recipe.slice_a}
    else:
        whole = structure = materials.amorphous_carbon(rng, field.side_a + 1.0, 10.0)
        fine = {}
    if specimen in CRYSTALS:
        structure = _without(whole, CRYSTALS[specimen], 0.25 * side * pixel_a, rng)
    wave = hrtem.exit_wave(structure, field, voltage_kv, **fine)
    settings = [draw_optics(rng, voltage_kv) for _ in range(_FOCUS_TRIES)]
    pictures = [hrtem.image(wave, field, optics) for optics in settings]
    best = int(np.argmax([one.std() for one in pictures]))
    if specimen not in CRYSTALS:
        return pictures[best], np.zeros_like(pictures[best])
    wave = hrtem.exit_wave(whole, field, voltage_kv, **fine)
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
