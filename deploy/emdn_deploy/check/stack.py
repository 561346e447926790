"""The check of a denoised stack from beginning to end."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from emdn_deploy import batching, preprocess
from emdn_deploy.check.bootstrap import Thresholds
from emdn_deploy.check.residual import Camera, Frame, Mask
from emdn_deploy.check.verdict import CheckResult, Comparison, judge_frames, judge_stack
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.dose import Intensity
from emdn_deploy.figures import RunPage
from emdn_deploy.readers import Choice, open_frames, open_selected
from emdn_deploy.readers.frames import SeveralStacks
from emdn_deploy.writers import recorded, storable
from emdn_models import pretrained
from emdn_models.errors import EmdnError, FormatError, ModelError
from emdn_models.files import renamed
from emdn_models.metrics import HeldOut, umse, umse_difference

LEAST = 16  # pixels a side
SAMPLE = (24, 512, 512)  # neighbouring frames and pixels, from the middle, that are compared
_CLEAR = 3.0  # standard errors
# Times the default's error: 0.4 dB more is not worth a word, and 6 dB more is not fit for use.
_SLIGHT, _GROSS = 1.1, 4.0
_EVEN = 0.02  # of the noise's variance by which still frames seem to differ


def check(
    source: str | PathLike[str],
    denoised: str | PathLike[str] | None = None,
    options: DenoiseOptions = DenoiseOptions(),  # noqa: B008
    seed: int = 0,
    *,
    report: Path | None = None,
) -> CheckResult:
    """Say of every frame of a denoised stack whether its residual is that of a sound one.

    ``source`` is the stack before, ``denoised`` the same frames after; None to denoise them here, a
    few at a time. What a record in ``denoised`` says of model, scale, references and selection of
    frames stands in for ``options`` that are None. ``seed`` is that of the bootstrap's noise,
    ``report`` where a web page is written. EmdnError if the two stacks do not have the same shape,
    hold no noise, or cannot be read.
    """
    with ExitStack() as opened:
        pair = _Pair(opened, Path(source), None if denoised is None else Path(denoised), options)
        frames, ready, session = pair.frames, pair.ready, pair.denoiser.session
        own = Thresholds.of(frames, ready, pair.make, seed)
        good, sums, sample = own.good, np.zeros(2), list[tuple[Frame, Frame]]()
        starts = [max(0, a - b) // 2 for a, b in zip(frames.shape, SAMPLE, strict=True)]
        middle, *part = (slice(a, a + b) for a, b in zip(starts, SAMPLE, strict=True))
        batch = options.batch or pair.denoiser.batching.frames_per_run(frames.shape[1:])

        def passing() -> Iterator[tuple[int, Frame, Frame]]:
            for span in batching.blocks(0, frames.shape[0], batch):
                for number, before, after in zip(range(*span), *pair.read(*span), strict=True):
                    if before.min() == before.max():
                        continue  # blank, or without a value: not denoised
                    sums[:] += [one.mean(where=good) - own.camera.offset for one in (after, before)]
                    if middle.start <= number < middle.stop:
                        sample.append((before[*part].copy(), after[*part].copy()))
                    yield number, before, after

        table, inner = judge_frames(passing(), own), good[*part]
        raw, made = (np.array(one) for one in zip(*sample, strict=True))
        # How far apart frames are that a denoised frame owes nothing to.
        apart = int(pair.facts.get("model_frames", 1)) // 2 + 1
        error = umse(raw, made, inner, apart) if len(raw) > apart else None
        makers = pair.denoiser, pair.scale, own.camera
        compared = compare(raw, made, inner, apart, *makers, here=pair.clean is None)
        far_worse = [compared.words] * (compared.verdict == "far worse")
        result = CheckResult(
            source=frames.path,
            denoised=pair.clean.path if pair.clean else None,
            shape=frames.shape,
            model=session.info.name,
            model_sha256=session.info.sha256,
            device=session.device,
            seed=seed,
            table=table,
            thresholds=own,
            ratio=float(sums[0] / sums[1]),
            heldout=error,
            comparison=compared,
            smallest=own.smallest(*pair.one(int(table["frame"][table.height // 2]))),
            findings=(*judge_stack(table, own), *far_worse),
            notes=_notes(own, error, pair),
        )
        if report is not None:
            unjudged = set(range(frames.shape[0])).difference(table["frame"])
            page = RunPage(frames, ready.scale, pair.one, result.flagged, unjudged)
            text = page.html(f"{frames.path.name}, check", result.headline, result.text())
            with renamed(report) as partial:
                partial.write_text(text, "utf-8")
    return result


class _Pair:
    """A stack before and after, and a denoiser that does as was done to it."""

    def __init__(
        self, opened: ExitStack, source: Path, denoised: Path | None, options: DenoiseOptions
    ) -> None:
        self.facts = facts = recorded(denoised) if denoised else {}
        self.options = options = completed(options, facts)
        choice = Choice(options.dataset, options.axes)
        self.frames = frames = opened.enter_context(open_selected(source, choice, options.frames))
        self.clean = clean = None
        if denoised:
            try:
                clean = opened.enter_context(open_frames(denoised))
            except SeveralStacks:
                again = Choice(frames.dataset, frames.order)
                clean = opened.enter_context(open_frames(denoised, again))
            if clean.shape != frames.shape:
                found, wanted = ("{} frames of {} x {}".format(*x.shape) for x in (clean, frames))
                raise FormatError(
                    f"{clean.path}: found {found}, expected {wanted} as in {frames.path}; "
                    "take the frames that were denoised with --frames"
                )
            self.clean = clean
        if min(frames.shape[1:]) < LEAST:
            raise FormatError(
                f"{frames.path}: found frames of {frames.shape[1]} x {frames.shape[2]}, "
                f"expected {LEAST} x {LEAST} or more for a check"
            )
        self.ready = ready = preprocess.prepare(frames, options)
        if not ready.scale.sigma:
            raise EmdnError(f"{frames.path}: {ready.scale.note}; there is nothing to check against")
        # Gaps and saturated areas keep their value in an output: no residual of theirs counts.
        self._shown = ready.shown(clean.read) if clean else None
        self.denoiser = Denoiser.of(options)
        if self.denoiser.session.info.frames > 1:
            raise EmdnError(
                f"{options.model}: sees several frames; give the file that it has denoised, "
                "which is judged by a model that sees one"
            )
        self.scale = ready.scale
        if {"scale_e_per_px", "gain", "offset"} <= facts.keys():
            scale, gain, offset = (float(facts[k]) for k in ("scale_e_per_px", "gain", "offset"))
            self.scale = replace(ready.scale, scale=scale, gain=gain, offset=offset)

    def make(self, frames: Frame) -> Frame:
        """Denoise (k, H, W) as the stack was denoised: model, scale, orientations, rounding."""
        wide = np.ascontiguousarray(frames, dtype=np.float32)
        made = self.denoiser.answer(wide, self.scale, with_sigma="ensemble" in self.facts).frames
        if self.clean is not None and self.clean.dtype.kind in "iu":
            made = storable(made, self.clean.dtype)[0].astype(np.float32)
        return made

    def read(self, start: int, stop: int) -> tuple[Frame, Frame]:
        """Read frames (k, H, W) before and after."""
        before = self.ready.read(start, stop)
        if self.clean is None or self._shown is None:
            return before, self.make(before)
        after = self._shown(start, stop)
        if not np.isfinite(after).all():
            raise FormatError(
                f"{self.clean.path}: frames {start} to {stop - 1} hold pixels that are not finite, "
                "expected numbers; denoise again, or leave these frames out"
            )
        return before, after

    def one(self, number: int) -> tuple[Frame, Frame]:
        """Read a frame (H, W) before and after."""
        before, after = self.read(number, number + 1)
        return before[0], after[0]


def completed(options: DenoiseOptions, facts: Mapping[str, Any]) -> DenoiseOptions:
    """Take from a record what the options leave open: model and precision, references, selection.

    ModelError if the model that it names is not the one that is shipped under this name, and none
    is given.
    """
    changes: dict[str, Any] = {}
    if facts and options.model is None:
        # The replicates are of single frames.
        name = str(facts["model"])
        changes["model"] = name.removesuffix("@movie")
        if "model_sha256" not in facts:  # of MRC, the name is all that is known
            return replace(options, **changes)
        changes["precision"] = precision = facts.get("precision", "fp32")
        shipped = pretrained.index()["models"].get(name, {})
        if precision != "fp32":
            shipped = shipped.get("variants", {}).get(precision, {})
        if shipped.get("sha256") != facts["model_sha256"]:
            raise ModelError(
                f"{name}: found no shipped model {name} with the sha256 of the record, "
                f"{str(facts['model_sha256'])[:12]}..., with which the frames were denoised; "
                "give its file, or another sound model, by --model"
            )
    selected = str(facts.get("input_frames", "all"))
    if options.frames is None and selected != "all":
        changes["frames"] = selected
    for name in ("dark", "gain_map", "defects"):
        if getattr(options, name) is None and name in facts:
            changes[name] = Path(str(facts[name]))
    return replace(options, **changes)


def compare(
    raw: Frame,
    made: Frame,
    good: Mask,
    apart: int,
    denoiser: Denoiser,
    scale: Intensity,
    camera: Camera,
    here: bool = False,
) -> Comparison:
    """Compare the squared error of frames (n, H, W) with that of the default model on the same.

    ``denoiser`` and ``scale`` make the replicates, and if ``here`` have made these frames. Errors
    are those against neighbouring frames ``apart``, so that most of the noise cancels.
    """
    name, session = pretrained.default_model(), denoiser.session
    default = session.info.sha256 == pretrained.index()["models"][name]["sha256"]
    if here and default:
        return Comparison("unknown", f"made by {name}, the default: nothing to compare with")
    if len(raw) < 1 + 2 * apart:
        return Comparison("unknown", f"too few frames to compare with {name}, the default")
    if not default:
        denoiser = Denoiser(name, session.device, session.threads)
    other = denoiser.run(raw, scale)
    worse = umse_difference(raw, made, other, good, apart)
    own = umse(raw, other, good, apart)
    noise = camera.gain * (float(other.mean(where=good)) - camera.offset)
    excess, drift = own.noise - noise, own.drift.value if own.drift else 0.0
    moving = own.moves or excess > noise * (_EVEN + 6 * camera.uncertainty)
    side = "above" if worse.value > 0 else "below"
    words = f"squared error {abs(worse.value):.3g} ± {worse.se:.2g} {side} that of {name} (the "
    words += f"default) on {len(raw)} frames"
    spare = worse.value - _CLEAR * worse.se - max(excess, drift, 0.0) * moving
    # The default's own error may lie above its estimate.
    error = max(own.error.value + 2 * own.error.se, 0.0)
    if spare > (_SLIGHT - 1) * error:
        decibel = 10 * np.log10(1 + worse.value / max(own.error.value, own.error.se, 1e-30))
        verdict = "far worse" if spare > (_GROSS - 1) * error else "worse"
        return Comparison(verdict, f"{words}: {decibel:.2g} dB worse")
    if moving:
        return Comparison("unknown", f"{words}, which cannot be told from motion")
    return Comparison("no worse", f"{words}: no worse")


def _notes(own: Thresholds, error: HeldOut | None, pair: _Pair) -> tuple[str, ...]:
    """Say what was assumed and what cannot be said."""
    said, facts, info = [], pair.facts, pair.denoiser.session.info
    if error is None:
        said.append("too few frames for a squared error, or, of one, for the size of the noise")
    elif error.moves:
        said.append(
            "neighbouring frames differ by more than noise, as the specimen moves or they show "
            "different areas: the squared error holds that, and runs of frames average over it"
        )
    named = facts.get("model_sha256", facts.get("model"))  # of MRC, the name is all that is known
    if named not in (None, info.sha256, info.name):
        said.append(f"denoised by {facts['model']}, the thresholds are those of {info.name}")
    if own.noise.correlated:
        said.append("the noise is correlated from pixel to pixel: only means can be judged")
    return tuple(said)
