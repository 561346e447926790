"""Fine-tuning of a model on one stack without clean frames; the start is saved if it is better.

Neighbouring frames are each other's target. Their noise is independent, so the mean squared
distance of a denoised frame from its raw neighbour is that from the truth and a constant, the
variance of the noise. Lehtinen et al., ICML 2018, arXiv:1803.04189.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emdn_deploy.config import DenoiseOptions
from emdn_deploy.dose import Intensity
from emdn_deploy.preprocess import prepare
from emdn_deploy.readers import Choice, Frames, open_selected
from emdn_models import FormatError, ModelError, checkpoint
from emdn_models.files import locked
from emdn_models.metrics import Estimate, HeldOut, umse, umse_difference
from emdn_models.nets import build
from emdn_models.nets.scaling import denormalise, noise_map, normalise
from emdn_models.spec import frames_of
from emdn_train import results
from emdn_train.checkpointing import FILE_NAME, StateFile, signals_noted, start_from
from emdn_train.config import RECIPES, AdaptConfig, FitConfig, converted
from emdn_train.dataset import CACHE_BYTES
from emdn_train.export import weights_sha256
from emdn_train.fit import LOCK, begin, identity, train
from emdn_train.loss import pick_device
from emdn_train.patches import Batch, Source, crops
from emdn_train.results import Fitted

log = logging.getLogger(__name__)

HELD_OUT = (0.15, 6, 32)
"""Share of the frames, the last ones, that the result is judged on; least and most of them."""

MOTION = 0.005
"""What motion may add to the difference of neighbours, as a share of the noise's variance:
a tenth of the error that is left by a denoiser of 13 dB."""

SIDE = 512
"""Frames are compared in their middle, up to this many pixels a side."""

_AS_TIME_ALLOWS = 100_000  # epochs
_ROUNDING = 1e-5  # of an error in float32
_READ = 16  # frames at a time

Stack = NDArray[np.float64]


@dataclass(frozen=True)
class Movie:
    """A stack as a deployment sees it: corrected, and in electrons."""

    path: Path
    shape: tuple[int, int, int]  # (N, H, W)
    scale: Intensity  # how its units became electrons
    valid: NDArray[np.bool_]  # (H, W), the pixels that were not filled from others
    read: Callable[[Tensor], Tensor]  # numbers of frames (n,) to electrons (n, H, W)
    digest: str  # of its shape and sixteen of its frames in electrons

    @classmethod
    def of(cls, frames: Frames, options: DenoiseOptions) -> "Movie":
        """Correct an open stack as ``emdn-deploy denoise`` does, in memory if it fits."""
        prepared = prepare(frames, options)
        scale, count = prepared.scale, frames.shape[0]
        if not scale.sigma:
            raise FormatError(
                f"{frames.path}: {scale.note}; expected raw frames, whose noise differs from "
                "frame to frame"
            )

        def electrons(start: int, stop: int) -> Tensor:
            return torch.from_numpy((prepared.read(start, stop) - scale.offset) / scale.gain)

        cached: Tensor | None = None
        if np.prod(frames.shape) * 4 <= CACHE_BYTES:
            starts = range(0, count, _READ)
            cached = torch.cat([electrons(start, min(count, start + _READ)) for start in starts])

        def read(indices: Tensor) -> Tensor:
            if cached is not None:
                return cached[indices]
            return torch.cat([electrons(index, index + 1) for index in indices.tolist()])

        digest = hashlib.blake2b(repr(frames.shape).encode(), digest_size=6)
        for number in np.linspace(0, count - 1, min(16, count)).astype(int).tolist():
            digest.update(read(torch.tensor([number])).numpy().tobytes())
        valid = ~prepared.recipe.bad
        return cls(frames.path, frames.shape, scale, valid, read, digest.hexdigest())

    def middle(self, frames: range) -> tuple[Stack, NDArray[np.bool_]]:
        """Read the middle of frames, (n, h, w) electrons, and which pixels count, (h, w)."""
        corners = [(side - min(side, SIDE)) // 2 for side in self.shape[1:]]
        rows, columns = (slice(corner, corner + SIDE) for corner in corners)
        raw = self.read(torch.arange(frames.start, frames.stop))
        return raw[:, rows, columns].double().numpy(), self.valid[rows, columns]


@dataclass(frozen=True)
class Neighbours(Source):
    """Pairs of neighbours, of the first ``frames`` of a movie; no later one is read.

    Nothing but the place and the eight orientations is drawn: what else changes a patch
    would change its noise, or part it from its target.
    """

    movie: Movie
    frames: int
    patch: int  # side in pixels
    device: torch.device

    def __len__(self) -> int:
        """Return the number of frames that are trained on."""
        return self.frames

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """Cut a patch of each frame, and of the frame before or after at the same place."""
        step = 2 * torch.randint(2, indices.shape, generator=generator) - 1
        other = indices + step
        other = torch.where((other < 0) | (other >= self.frames), indices - step, other)
        twin = torch.Generator()
        twin.set_state(generator.get_state())
        noisy = crops(self.movie.read(indices)[:, None], self.patch, generator)
        target = crops(self.movie.read(other)[:, None], self.patch, twin)
        scale = torch.full((len(indices), 1, 1, 1), self.movie.scale.scale)
        return Batch(noisy.to(self.device), target.to(self.device), scale.to(self.device))


@dataclass(frozen=True)
class Verdict:
    """Two nets on the frames held out, in electrons squared per pixel."""

    before: HeldOut  # uMSE (`emdn_models.metrics.umse`)
    after: HeldOut
    fell: Estimate  # the difference, far better known than either
    mean_ratio: float  # of the denoised frames to the raw ones, after

    @property
    def better(self) -> bool:
        """Whether the error has fallen by more than the standard error of that, and rounding."""
        return self.fell.value > max(self.fell.se, _ROUNDING * self.before.error.value)


@dataclass(frozen=True)
class Adapted:
    """What came of it; unless it ``gained``, the starting weights are saved."""

    outcome: Literal["gained", "nothing gained", "diverged"]
    verdict: Verdict | None  # None if it diverged
    steps: int
    path: Path  # of the checkpoint

    def __str__(self) -> str:
        """Say it in a few lines."""
        lines = []
        if (found := self.verdict) is not None:
            for name, one in (("start", found.before), ("tuned", found.after)):
                lines.append(
                    f"{name}  uMSE {one.error.value:.4g} +- {one.error.se:.2g} e^2/px on frames "
                    f"held out, {one.gain_db.value:.2f} +- {one.gain_db.se:.2f} dB over raw"
                )
            lines.append(f"fell   {found.fell.value:.3g} +- {found.fell.se:.2g} e^2/px")
        start = "" if self.outcome == "gained" else ": the starting weights are saved"
        return "\n".join([*lines, f"{self.outcome}{start} ({self.steps} steps)"])


def adapt(config: AdaptConfig) -> Adapted:
    """Fit a model to a stack of raw frames, from weights that it has, and judge the result.

    The last frames (`HELD_OUT`) are not trained on. If on these the error of the tuned net
    is not less than the start's by more than the standard error of the difference, the
    checkpoint holds the start. A run that was stopped is continued by the same config. A stack of
    fewer than 12 frames, or without noise, is a `FormatError`; other errors are those of
    `emdn_train.fit.fit`.
    """
    if frames_of(config.model, config.preset) > 1:
        raise ModelError(
            f"preset {config.preset!r} sees the neighbours that it would be fitted to; adapt one "
            "that sees a frame by itself, such as shipped"
        )
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / LOCK, out):
        return _adapt(config, out)


def _adapt(config: AdaptConfig, out: Path) -> Adapted:
    options = config.options
    fit = converted(
        FitConfig, config, data=config.stack, models=(config.model,), recipe="quality",
        epochs=config.epochs or _AS_TIME_ALLOWS,
    )  # fmt: skip
    # Plain MSE: that of a noisy target is off by a constant, the logarithm of it by no constant.
    recipe = replace(
        RECIPES["quality"], lr=config.lr, loss="mse", augmented=0.0, ccd=0.0, defects=0.0
    )
    device = pick_device(config.device)
    choice = Choice(options.dataset, options.axes)
    with open_selected(config.stack, choice, options.frames) as stack:
        training, held_out = parts(stack.shape[0], stack.path)
        movie = Movie.of(stack, options)
        warn_of_motion(movie, training[:32])
        start = build(config.model, config.preset)
        start_from(start, config.model, fit)
        digest = weights_sha256({key: one.numpy() for key, one in start.state_dict().items()})
        start.to(device)
        run = identity(fit, recipe, device) | {"frames": movie.digest, "start": digest}
        state = StateFile(out / FILE_NAME, run)
        t = begin(config.model, fit, recipe, device, state)
        source = Neighbours(movie, len(training), config.patch, device)
        with signals_noted() as signals:
            finite = train(t, fit, recipe, source, {}, device, state, signals)
        verdict = compare(movie, held_out, start, t.average.module) if finite else None
    outcome: Literal["gained", "nothing gained", "diverged"] = "diverged"
    if verdict is not None:
        outcome = "gained" if verdict.better else "nothing gained"
    if outcome != "gained":
        log.warning("%s: %s: the starting weights are saved", config.model, outcome)
        t.average.module.load_state_dict(start.state_dict())
    ratio = verdict.mean_ratio if verdict else 1.0
    result = Fitted(config.model, "fitted", t.history, {}, ratio, t.seen / t.trained)
    data = f"{len(training)} frames of {movie.path}, neighbours as each other's target"
    weights = results.weights(result, t, fit, recipe, data, device)
    weights.metadata["recipe"]["adapted"] = {
        "outcome": outcome,
        "stack": {
            "path": os.fspath(movie.path), "shape": movie.shape, "digest": movie.digest,
            "selected": options.frames, "held_out": len(held_out),
            "intensity": asdict(movie.scale), "start": os.fspath(config.start),
            "start_sha256": digest,
        },
        "held_out": None if verdict is None else asdict(verdict),
    }  # fmt: skip
    path = out / checkpoint.FILE_NAME
    checkpoint.save(path, {**results.existing(out), config.model: weights})
    results.write_results(out, fit, [result], device)
    state.remove()
    return Adapted(outcome, verdict, t.step, path)


def parts(count: int, path: Path) -> tuple[range, range]:
    """Return the frames to train on, and those to judge by, which are the last."""
    share, least, most = HELD_OUT
    if count < 2 * least:
        raise FormatError(
            f"{path}: has {count} frames, expected {2 * least} or more: neighbours to learn "
            f"from, and {least} to judge by; without them use the shipped weights"
        )
    last = min(max(round(share * count), least), most)
    return range(count - last), range(count - last, count)


def warn_of_motion(movie: Movie, frames: range) -> None:
    """Say so if neighbouring frames differ by motion as well as by noise."""
    raw, valid = movie.middle(frames)
    drift = umse(raw, raw, valid=valid).drift
    if drift is None or not drift.value > 3 * drift.se:
        return
    # Steady motion: neighbours differ by a third of it (`emdn_models.metrics.umse`).
    share = drift.value / 3 / movie.scale.scale
    if share >= MOTION:
        log.warning(
            "%s: moves: between neighbours by %.2g %% of the noise's variance; details that move "
            "by a pixel or more a frame are learned blurred, align the stack or record faster",
            movie.path, 100 * share,
        )  # fmt: skip


def compare(movie: Movie, frames: range, before: nn.Module, after: nn.Module) -> Verdict:
    """Measure two nets on frames of a movie that neither was fitted to."""
    noisy, valid = movie.middle(frames)
    first, second = (denoised(net, noisy, movie.scale.scale) for net in (before, after))
    return Verdict(
        umse(noisy, first, valid=valid),
        umse(noisy, second, valid=valid),
        umse_difference(noisy, first, second, valid=valid),
        float(second[:, valid].mean() / noisy[:, valid].mean()),
    )


def denoised(net: nn.Module, frames: Stack, scale: float) -> Stack:
    """Denoise frames (N, H, W) in electrons, of mean ``scale``, as the exported graph does."""
    net.eval()
    device = next(net.parameters()).device
    level = torch.full((1, 1, 1, 1), scale, device=device)
    done = []
    with torch.inference_mode():
        for part in torch.from_numpy(frames).float()[:, None].split(2):
            noisy = part.to(device)
            output = net(normalise(noisy, level), noise_map(noisy, level))
            done.append(denormalise(output, level)[:, 0].double().cpu().numpy())
    return np.concatenate(done)
