"""Classes of frames that a model may have a copy for: an imaging mode and a band of dose.

A class-aware model is one net for all frames and copies of it that were fine-tuned on one
class each (Remez et al., arXiv:1808.06562, where a class is what a photograph shows). A copy
is called ``MODEL@CLASS``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from emdn_models.errors import ModelError
from emdn_models.spec import MODELS

Mode = Literal["stem", "tem"]


@dataclass(frozen=True)
class FrameClass:
    """One class of frames, by what a deployment can know of them.

    Attributes
    ----------
    name
        Key in ``CLASSES``.
    words
        What the frames are, for people.
    mode
        ``stem`` for a scanned probe, ``tem`` for a camera.
    electrons
        Dose: counted electrons per pixel, mean over the stack; the first number belongs to
        the class and the second does not.
    """

    name: str
    words: str
    mode: Mode
    electrons: tuple[float, float]

    def holds(self, electrons: float) -> bool:
        """Say whether a dose in counted electrons per pixel lies in the band."""
        return self.electrons[0] <= electrons < self.electrons[1]


_EVERY = float("inf")
_BANDS = (
    FrameClass("stem", "scanned probe, any dose", "stem", (0.0, _EVERY)),
    FrameClass("tem-low", "TEM, fewer than 2 e/px", "tem", (0.0, 2.0)),
    FrameClass("tem-high", "TEM, 2 e/px and more", "tem", (2.0, _EVERY)),
)

CLASSES: Mapping[str, FrameClass] = {kind.name: kind for kind in _BANDS}


def split(name: str) -> tuple[str, FrameClass | None]:
    """Split ``MODEL@CLASS``; a model that is for all frames has no class.

    Raises
    ------
    ModelError
        If there is no such model or class.
    """
    model, at, kind = name.partition("@")
    if model not in MODELS:
        raise ModelError(f"no model is called {name!r}; there are {', '.join(MODELS)}")
    if at and kind not in CLASSES:
        raise ModelError(
            f"{name}: no class of frames is called {kind!r}; there are {', '.join(CLASSES)}"
        )
    return model, CLASSES[kind] if at else None


def known(name: str) -> bool:
    """Say whether a name is a model's or that of a copy of one."""
    model, at, kind = name.partition("@")
    return model in MODELS and (not at or kind in CLASSES)


def copy_of(model: str, kind: FrameClass) -> str:
    """Name a model's copy for a class."""
    return f"{model}@{kind.name}"


def ordered(names: Iterable[str]) -> list[str]:
    """Sort names: models as in ``MODELS``, then copies, by model and as in ``CLASSES``.

    Raises
    ------
    ModelError
        If one is neither.
    """
    models, kinds = list(MODELS), list(CLASSES)

    def place(name: str) -> tuple[int, int, int]:
        model, kind = split(name)
        return (
            0 if kind is None else 1,
            models.index(model),
            kinds.index(kind.name) if kind else 0,
        )

    return sorted(names, key=place)


def class_of(mode: Mode | None, electrons: float | None) -> FrameClass | None:
    """Return the class of frames, None where what is known of them does not tell.

    Parameters
    ----------
    mode
        None where it is unknown.
    electrons
        Counted electrons per pixel, None where no dose could be measured.
    """
    fitting = [kind for kind in CLASSES.values() if kind.mode == mode]
    if electrons is not None:
        fitting = [kind for kind in fitting if kind.holds(electrons)]
    return fitting[0] if len(fitting) == 1 else None
