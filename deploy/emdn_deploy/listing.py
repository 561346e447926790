"""The table of shipped models."""

import polars as pl

from emdn_models import pretrained


def table() -> pl.DataFrame:
    """Return one row per shipped model.

    The columns are ``name`` (the default marked by ``*``), ``preset``,
    ``size_mb``, ``parameters``, ``gflop_256`` (for one 256 x 256 frame), and what
    was measured of its quality.
    """
    default = pretrained.default_model()
    rows = []
    for name, entry in pretrained.index()["models"].items():
        size = (pretrained.WEIGHTS / entry["file"]).stat().st_size
        quality = {
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in entry.get("quality", {}).items()
            if isinstance(value, int | float | str)
        }
        rows.append(
            {
                "name": name + (" *" if name == default else ""),
                "preset": entry["preset"],
                "size_mb": round(size / 1e6, 2),
                "parameters": entry["parameters"],
                "gflop_256": round(float(entry["gflop_256"]), 2),
                **quality,
            }
        )
    return pl.DataFrame(rows)


def text() -> str:
    """Return the table as printed."""
    with pl.Config(
        tbl_rows=-1, tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True,
        tbl_formatting="ASCII_MARKDOWN", tbl_width_chars=200, thousands_separator=True,
    ):  # fmt: skip
        return f"{table()}\n* the default"
