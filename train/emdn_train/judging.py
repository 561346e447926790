"""Many results for one stack against the same honest denoisings, as ``emdn-deploy check`` would.

Those take longest, and do not depend on the result that is judged.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from emdn_deploy import correction
from emdn_deploy.checking import whole
from emdn_deploy.checking.grounds import Grounds, grounds_of
from emdn_deploy.checking.held import Held, correlation
from emdn_deploy.checking.panel import cut
from emdn_deploy.checking.quick import Quick
from emdn_deploy.checking.statistics import Measured, measure
from emdn_deploy.intensity import Intensity
from emdn_deploy.options import DenoiseOptions
from emdn_deploy.readers import open_frames
from emdn_models.metrics import RingCorrelation

Stack = NDArray[np.float32]
Answer = TypeVar("Answer")


class Model(Protocol):
    """What denoises frames."""

    def run(self, frames: Stack, scale: Intensity) -> Stack:
        """Denoise (n, H, W) at a scale."""


@dataclass(frozen=True)
class Judged:
    """What is said of one result.

    Attributes
    ----------
    verdicts, evidence
        One a frame.
    findings
        Of the whole stack.
    own
        (N,) whether a frame is flagged for itself, and not for the run of frames it is in.
    quick
        (N,) whether the quick check lets a frame stand out.
    quick_passed
        Whether it passes the stack.
    """

    verdicts: tuple[str, ...]
    evidence: tuple[str, ...]
    findings: tuple[str, ...]
    own: NDArray[np.bool_]
    quick: NDArray[np.bool_]
    quick_passed: bool


class Remembered(Generic[Answer]):
    """A function of two frames that remembers its last answers, by the frames' content.

    Two results for one stack have most of their frames in common.

    Parameters
    ----------
    function
        Of two frames (H, W), and of what is the same at each call.
    most
        Answers that are kept.
    """

    def __init__(self, function: Callable[..., Answer], most: int) -> None:
        self._function, self._most = function, most
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()

    def __call__(self, first: Stack, second: Stack, *same: Any) -> Answer:
        """Return the function's answer."""
        key = blake2b(first.tobytes() + second.tobytes(), digest_size=16).digest()
        if key not in self._answers:
            self._answers[key] = self._function(first, second, *same)
            if len(self._answers) > self._most:
                self._answers.popitem(last=False)
        self._answers.move_to_end(key)
        return self._answers[key]


@dataclass(frozen=True, eq=False)
class Judge:
    """A stack, the scale it is denoised with, and what its results are judged by.

    Attributes
    ----------
    raw
        (N, H, W), corrected as ``denoise`` corrects it.
    """

    raw: Stack
    scale: Intensity
    grounds: Grounds
    _look: Remembered[Measured] = field(init=False)
    _correlate: Remembered[RingCorrelation] = field(init=False)

    def __post_init__(self) -> None:
        # Of the honest result and of the one before: what the next shares frames with.
        panels = len(cut(*self.raw.shape[1:]))
        most = 2 * panels * len(self.raw)
        object.__setattr__(self, "_look", Remembered(measure, most))
        object.__setattr__(self, "_correlate", Remembered(correlation, 3 * len(self.raw)))

    def judge(self, denoised: Stack) -> Judged:
        """Judge frames (N, H, W) in the units of the stack."""
        rows, good = self.grounds.rows(self._look), self.grounds.good
        held = Held(self.raw.shape, good, self._correlate)
        for number, (before, after) in enumerate(zip(self.raw, denoised, strict=True)):
            rows.add(number, before, after)
            held.add(number, before, after)
        table = rows.finish()
        found = self.grounds.judge(rows, table, held)
        quick = Quick(self.scale.pixel_gain, self.scale.offset, bad=~good)
        quick.add(0, self.raw, denoised)
        seen = quick.result()
        standing = np.isin(np.arange(len(denoised)), seen.failing)
        alone = [name for name in self.grounds.ranges if not name.startswith("run_")]
        own = whole.beyond(table, self.grounds.ranges, alone)
        return Judged(
            tuple(table["verdict"]), tuple(table["evidence"]), found, own, standing, seen.passed
        )


def judge_of(path: Path, denoiser: Model, seed: int = 0, gain: float = 1.0) -> Judge:
    """Make honest denoisings of a stack.

    Parameters
    ----------
    path
        The stack before.
    seed
        Of the noise of the honest denoisings.
    gain
        Factor by which the gain in the result's record is wrong.
    """
    with open_frames(path) as frames:
        ready = correction.prepare(frames, DenoiseOptions())
        scale = wrong(ready.scale, gain)

        def run(block: Stack) -> Stack:
            return denoiser.run(np.ascontiguousarray(block, np.float32), scale)

        grounds = grounds_of(frames, ready, run, seed)
        return Judge(ready.read(0, frames.shape[0]), scale, grounds)


def wrong(scale: Intensity, gain: float) -> Intensity:
    """Return the scale of one who takes the gain to be ``gain`` times what it is."""
    sigma = scale.sigma * float(np.sqrt(gain))
    return replace(scale, scale=scale.scale / gain, gain=scale.gain * gain, sigma=sigma)
