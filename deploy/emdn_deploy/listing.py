"""The table of shipped models."""

import polars as pl

from emdn_models import console, pretrained
from emdn_models.errors import ModelError


def table() -> pl.DataFrame:
    """Return one row per shipped model.

    The columns are ``name`` (the default marked by ``*``), ``preset``, ``precision``,
    what ``--precision`` can ask for, ``size_mb`` of the first of them, ``parameters``,
    ``gflop_256`` (for one 256 x 256 frame), and ``dB at 0.12`` and so on: the improvement over
    the noisy frame at a signal to noise per pixel, on the fixed test split (``make quality``).
    """
    try:
        return _table()
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ModelError(
            f"{pretrained.WEIGHTS / 'index.json'}: is damaged ({error!r}); reinstall emdn"
        ) from error


def _table() -> pl.DataFrame:
    default = pretrained.default_model()
    rows = []
    for name, entry in pretrained.index()["models"].items():
        size = (pretrained.WEIGHTS / entry["file"]).stat().st_size
        gains = entry.get("quality", {}).get("gain_db", {})
        rows.append(
            {
                "name": name + (" *" if name == default else ""),
                "preset": entry["preset"],
                "precision": ", ".join(pretrained.precisions(name)),
                "size_mb": round(size / 1e6, 2),
                "parameters": entry["parameters"],
                "gflop_256": round(float(entry["gflop_256"]), 2),
                **{f"dB at {level}": round(gain, 1) for level, gain in gains.items()},
            }
        )
    return pl.DataFrame(rows, infer_schema_length=None)


def text() -> str:
    """Return the table as printed; what all models have in common stands below."""
    rows = table()
    note = ["* the default"]
    same = rows["preset"].n_unique() == 1
    if same:
        note.append(f"preset of all: {rows['preset'][0]}")
    shown = rows.drop("preset") if same else rows
    names = ["MB" if name == "size_mb" else name.replace("gflop_256", "GFLOP") for name in
             shown.columns]  # fmt: skip
    cells = [[_written(value) for value in row] for row in shown.rows()]
    note.append("GFLOP for one frame of 256 x 256; dB: gain over the noisy frame at that signal "
                "to noise a pixel")  # fmt: skip
    return "\n".join([console.table(names, cells), *note])


def _written(value: str | float | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:,}"
