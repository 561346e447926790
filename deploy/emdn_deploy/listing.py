"""The table of shipped models."""

import polars as pl

from emdn_models import classes, pretrained
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
    """Return the table as printed."""
    note = "* the default"
    names = pretrained.index()["models"]
    copied = dict.fromkeys(name.partition("@")[0] for name in names if "@" in name)
    for model in copied:
        note += (
            f"\n{model}@{classes.AUTO} takes the copy of {model} that fits a file's imaging mode "
            "and dose"
        )
    with pl.Config(
        tbl_rows=-1, tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True,
        tbl_formatting="ASCII_MARKDOWN", tbl_width_chars=200, thousands_separator=True,
    ):  # fmt: skip
        return f"{table()}\n{note}"
