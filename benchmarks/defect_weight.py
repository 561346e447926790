"""What the weight of the loss near point defects does to gain and to vacancies.

`python -m benchmarks.defect_weight OUT data/training data/testset --weights 0 8 40 --minutes 12`
fits the shipped `unet` further with each weight, at 3e-4, and measures the results and the shipped
weights on the fixed test split. The table goes to ``benchmarks/results/defect_weight.md``; fits
that are in OUT are used, however long they took: the table says by how many patches.
"""

import argparse
from pathlib import Path

import polars as pl

from emdn_models import checkpoint
from emdn_train.config import FitConfig, QualityConfig
from emdn_train.export import export
from emdn_train.fit import fit
from emdn_train.quality import measure
from emdn_train.quality_report import defects, markdown, summary

RESULTS = Path(__file__).parent / "results"


def fitted(out: Path, data: Path, weight: float, minutes: float) -> tuple[str, int]:
    """Return the exported model of one weight, fitted unless it is there, and its patches."""
    name = f"weight {weight:g}"
    if not (out / name / checkpoint.FILE_NAME).exists():
        fit(
            FitConfig(
                data=data, out=out / name, models=("unet",), recipe="quality", start="shipped",
                epochs=10**5, max_minutes=minutes, batch_size=8, patch=256, lr=3e-4,
                defect_weight=weight, seed=11, device="cpu",
            )
        )  # fmt: skip
    onnx = out / f"{name}.onnx"
    export(out / name / checkpoint.FILE_NAME, out / "onnx")
    (out / "onnx" / "unet.onnx").replace(onnx)
    recipe = checkpoint.load(out / name / checkpoint.FILE_NAME)["unet"].metadata["recipe"]
    return str(onnx), recipe["steps"] * recipe["batch_size"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("testset", type=Path)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 8.0, 40.0])
    parser.add_argument("--minutes", type=float, default=12.0)
    asked = parser.parse_args()
    fits = dict(fitted(asked.out, asked.data, one, asked.minutes) for one in asked.weights)
    rows = measure(QualityConfig(testset=asked.testset, models=("unet", *fits)))
    rows = rows.with_columns(pl.col("model").str.split("/").list.last())
    patches = {"unet": 0} | {Path(file).stem: count for file, count in fits.items()}
    gains = summary(rows).select(
        "model",
        pl.col("model").replace_strict(patches, default=None).alias("patches"),
        "mean", "multislice", "worst",
    )  # fmt: skip
    table = gains.join(defects(rows), on="model", how="left", maintain_order="left")
    text = (
        f"`python -m benchmarks.defect_weight {asked.out} {asked.data} {asked.testset} --weights "
        f"{' '.join(f'{one:g}' for one in asked.weights)} --minutes {asked.minutes:g}`: `unet` is "
        "the shipped net, the others are it, fitted further.\n\n"
    )
    print(markdown(table))
    (RESULTS / "defect_weight.md").write_text(text + markdown(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
