"""Gain against time: the shipped nets beside U-Nets with other spectral windows and more frames.

`python -m benchmarks.frontier OUT data/training data/testset --minutes 6` fits each variant of
`unet` from random weights, with the shipped spectral estimate as far as the variant has it, for
the same time of one core each, and measures all on the fixed test split. Fits that are in OUT are
used. The table goes to ``benchmarks/results/frontier.md``, the picture beside it.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import torch

from emdn_deploy import Denoiser, bench
from emdn_models import checkpoint, pretrained
from emdn_models.nets import build
from emdn_models.spec import MODELS, Preset
from emdn_train import dataset, hops
from emdn_train.config import FitConfig, QualityConfig
from emdn_train.export import export
from emdn_train.fit import fit
from emdn_train.quality import markdown, measure, summary

RESULTS = Path(__file__).parent / "results"
ROUNDS = 40
SHIPPED = MODELS["unet"].presets["shipped"]
VARIANTS: dict[str, dict[str, Any]] = {
    "128 and 64": {},
    "128": {"windows": (128,)},
    "64": {"windows": (64,)},
    "none": {"windows": ()},
    **{f"{frames} frames": {"frames": frames} for frames in (3, 5, 7, 9)},
}


def start_of(preset: Preset, name: str) -> checkpoint.Weights:
    """Draw a net, and give it the shipped estimate of each window that it has."""
    torch.manual_seed(1)
    known = checkpoint.load(pretrained.CHECKPOINT)["unet"]
    state = {key: tensor.numpy() for key, tensor in build("unet", name).state_dict().items()}
    for place, window in enumerate(preset.windows):
        old = f"shrinkages.{SHIPPED.windows.index(window)}."
        for key in [key for key in known.state if key.startswith(old)]:
            state[key.replace(old, f"shrinkages.{place}.")] = known.state[key]
    return checkpoint.Weights(name, state, {"recipe": {"net": "drawn at random"}})


def fitted(out: Path, data: Path, name: str, minutes: float) -> tuple[str, int]:
    """Return the exported model of a variant, fitted unless it is there, and its patches."""
    preset = MODELS["unet"].presets[name]
    folder, saved = out / name, "unet@movie" if preset.frames > 1 else "unet"
    if not (folder / checkpoint.FILE_NAME).exists():
        dataset.COUNT = preset.frames
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save(folder / "start.h5", {saved: start_of(preset, name)})
        fit(
            FitConfig(
                data=data, out=folder, models=("unet",), preset=name, recipe="quality",
                start=folder / "start.h5", epochs=10**5, max_minutes=minutes, batch_size=8,
                patch=256, lr=1e-3, defect_weight=30, seed=51, device="cpu",
            )
        )  # fmt: skip
    onnx = out / f"{name}.onnx"
    if not onnx.exists():
        export(folder / checkpoint.FILE_NAME, out / "onnx")
        (out / "onnx" / f"{saved}.onnx").replace(onnx)
    recipe = checkpoint.load(folder / checkpoint.FILE_NAME)[saved].metadata["recipe"]
    return str(onnx), recipe["steps"] * recipe["batch_size"]


def times(models: Sequence[str]) -> dict[str, float]:
    """Time models on a frame in turn: by name, the median of the ratios to `unet`."""
    calls: dict[str, Callable[[], object]] = {}
    for model in models:
        one = Denoiser(model)
        seen = one.session.info.frames
        run = partial(one.answer, bench.noisy(seen, 256, 256), bench.SCALE)
        calls[Path(model).stem] = partial(run, around=(seen // 2, seen // 2))
    for call in calls.values():
        bench.warm(call, 0.2)
    found = bench.in_turn(calls, ROUNDS)
    ours = np.array(found["unet"])
    return {name: round(float(np.median(one / ours)), 2) for name, one in found.items()}


def draw(table: pl.DataFrame, path: Path) -> None:
    """Draw gain against time: a point a net."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    points = table.select("model", "mean", "time / unet").sort("time / unet").rows()
    for place, (name, gain, time) in enumerate(points):
        axes.plot(time, gain, "o", color="C1" if name in VARIANTS else "C0")
        at = (0, 9 if place % 2 else -15)
        axes.annotate(name, (time, gain), at, textcoords="offset points", fontsize=8, ha="center")
    axes.set(
        xlabel="time of a frame, unet = 1", ylabel="mean gain (dB)",
        title="blue: shipped; orange: variants of unet, fitted for some minutes",
    )  # fmt: skip
    axes.margins(0.1)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("testset", type=Path)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="fit these, measure nothing")
    asked = parser.parse_args()
    presets: Any = MODELS["unet"].presets
    for name, change in VARIANTS.items():
        presets[name] = replace(SHIPPED, **change)
    names = asked.only or VARIANTS
    fits = {name: fitted(asked.out, asked.data, name, asked.minutes) for name in names}
    if asked.only:
        return
    files = tuple(file for file, _ in fits.values())
    shipped = tuple(pretrained.index()["models"])
    if not (known := asked.out / "rows.parquet").exists():
        rows = measure(QualityConfig(testset=asked.testset, models=(*shipped, *files)))
        rows.with_columns(pl.col("model").str.split("/").list.last()).write_parquet(known)
    rows = pl.read_parquet(known)
    patches = {name: count for name, (_, count) in fits.items()}
    took = times((*shipped, *files))
    table = summary(rows).select(
        "model",
        pl.col("model").replace_strict(patches, default=None).alias("patches"),
        "0.12", "0.4", "1.2", "mean", "multislice", "AUC", "recall",
        pl.col("model").replace_strict(took, default=None).alias("time / unet"),
    )  # fmt: skip
    text = (
        "`python -m benchmarks.frontier outputs/frontier data/training data/testset --minutes "
        f"{asked.minutes:g}`: the first models are the shipped ones. The others are `unet` with "
        "other spectral windows, or with both windows and more frames, each fitted for so many "
        "minutes of one core from random weights. Compare those with one another, not with the "
        "shipped nets. Times are medians of the ratios to `unet`, in turn.\n\n"
    )
    several = {name: Denoiser(fits[name][0]) for name in fits if name.endswith("frames")}
    movies = hops.summary(hops.measure({"unet": Denoiser("unet"), **several}))
    moving = "\n\n## Movies in which a vacancy hops and the specimen drifts\n\n" + markdown(movies)
    print(markdown(table) + moving)
    (RESULTS / "frontier.md").write_text(text + markdown(table) + moving + "\n", encoding="utf-8")
    nets = ~pl.col("model").is_in(["noisy", "gaussian", "spectrum"])
    draw(table.filter(nets), RESULTS / "frontier.png")


if __name__ == "__main__":
    main()
