"""How well `--sigma` predicts the error of a pixel: the table of results/sigma.md.

`python benchmarks/sigma.py data/testset --model unet` compares, on the fixed test split that
`emdn-train testset` makes, what `--sigma` writes with two simpler predictions: the raw standard
deviation over the eight orientations, and the root of a share of the expected noise, one share for
all frames, which is fitted to their true errors (maximum likelihood).
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from emdn_deploy import Denoiser
from emdn_deploy.uncertainty import ensemble, variances
from emdn_train.calibrate import scale_of
from emdn_train.dataset import Split
from emdn_train.quality import examples
from emdn_train.quality_report import markdown

# Variance of the logarithm of the modulus of a standard normal number.
LOG_VARIANCE = np.pi**2 / 8


def measured(denoiser: Denoiser, example):
    """Return a frame's errors, its sigma, its raw spread and the root of its expected noise.

    Each (pixels that count,), in units of the noise at the mean.
    """
    scale = scale_of(example.noisy[None])
    mean, variance = ensemble(partial(denoiser.run, scale=scale), example.noisy[None])
    terms = variances(mean, variance, scale)
    parts = np.abs(mean[0] - example.clean), denoiser.calibration.sigma(terms)[0]
    parts += variance[0] ** 0.5, terms[1][0] ** 0.5
    return [part[example.valid] / scale.sigma for part in parts]


def statistics(error, sigma) -> dict[str, float]:
    # An error of exactly 0 has no logarithm.
    error, sigma = error.astype(float), np.maximum(sigma.astype(float), 1e-4)
    a, b = np.log(sigma), np.log(np.maximum(error, 1e-4))
    return {
        "within 1": 100 * np.mean(error <= sigma), "within 2": 100 * np.mean(error <= 2 * sigma),
        "square": np.mean((error / sigma) ** 2), "a": a.mean(), "b": b.mean(),
        "aa": (a * a).mean(), "bb": (b * b).mean(), "ab": (a * b).mean(),
    }  # fmt: skip


def summary(rows: pl.DataFrame, *by: str) -> pl.DataFrame:
    """Average over frames; ``ideal`` is the correlation if errors were Gaussian of these sigma."""
    variance = pl.col("aa").mean() - pl.col("a").mean() ** 2
    error = pl.col("bb").mean() - pl.col("b").mean() ** 2
    both = pl.col("ab").mean() - pl.col("a").mean() * pl.col("b").mean()
    return rows.group_by("prediction", *by, maintain_order=True).agg(
        pl.col("within 1", "within 2").mean().round(1),
        rms=pl.col("square").mean().sqrt().round(2),
        correlation=(both / (variance * error).sqrt()).round(3),
        ideal=(variance / (variance + LOG_VARIANCE)).sqrt().round(3),
    )


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("testset", type=Path)
    ask.add_argument("--model", default="unet")
    given = ask.parse_args()
    denoiser, frames = Denoiser(given.model, threads=1), []
    with Split(given.testset, "test") as split:
        for example in examples(split):
            key = {"part": example.part, "level": example.level}
            frames.append((key, *measured(denoiser, example)))
    share = np.mean([np.mean((error / noise) ** 2) for _, error, _, _, noise in frames]) ** 0.5
    rows = [
        {"prediction": name} | key | statistics(error, known)
        for key, error, sigma, spread, noise in frames
        for name, known in (("calibrated", sigma), ("raw spread", spread),
                            ("one share of the expected noise", share * noise))
    ]  # fmt: skip
    table = pl.DataFrame(rows)
    for by in ((), ("level",), ("part",)):
        print(markdown(summary(table, *by)), end="\n\n")


if __name__ == "__main__":
    main()
