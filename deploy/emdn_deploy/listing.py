"""The table of shipped models."""

import polars as pl

from emdn_models import classes, console, pretrained
from emdn_models.errors import ModelError


def table() -> pl.DataFrame:
    """Return one row per shipped model.

    The columns are ``name`` (the default marked by ``*``; copies stand below their model),
    ``for``, the frames that a copy is fitted to and measured on, ``preset``, ``precision``,
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
    shipped = pretrained.index()["models"]
    bases = list(dict.fromkeys(name.partition("@")[0] for name in shipped))
    # The sort is stable: a model stays before its copies.
    for name in sorted(shipped, key=lambda name: bases.index(name.partition("@")[0])):
        entry = shipped[name]
        size = (pretrained.WEIGHTS / entry["file"]).stat().st_size
        gains = entry.get("quality", {}).get("gain_db", {})
        rows.append(
            {
                "name": name + (" *" if name == default else ""),
                "for": entry.get("for", "all frames"),
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
    """Return the table as printed; what all models have in common, or only copies, stands below."""
    rows = table()
    note = ["* the default"]
    same = rows["preset"].n_unique() == 1
    if same:
        note.append(f"preset of all: {rows['preset'][0]}")
    copies = rows.filter(pl.col("name").str.contains("@"))
    note += [f"{name} is for {frames}" for name, frames in copies.select("name", "for").rows()]
    for model in dict.fromkeys(name.partition("@")[0] for name in copies["name"]):
        note.append(
            f"{model}@{classes.AUTO} takes the copy of {model} that fits a file's imaging mode "
            "and dose"
        )
    shown = rows.drop("for", *(["preset"] if same else []))
    names = ["MB" if name == "size_mb" else name.replace("gflop_256", "GFLOP") for name in
             shown.columns]  # fmt: skip
    cells = [[_written(value) for value in row] for row in shown.rows()]
    note.append("GFLOP for one frame of 256 x 256; dB: gain over the noisy frame at that signal "
                "to noise a pixel")  # fmt: skip
    return "\n".join([console.table(names, cells), *note])


def _written(value: str | float | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:,}"
