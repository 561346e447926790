"""What came of the variants: a table, a row each."""

from collections.abc import Sequence

import polars as pl

from emdn_train.variants import Result


def table(results: Sequence[Result]) -> pl.DataFrame:
    """Lay out results.

    Columns are the loss of gain in dB at each level of signal to noise, its mean, by how much
    the mean intensity is off in per cent, ``times as fast`` (median and quartiles over the rounds,
    on one thread), how many of the ``convolutions`` compute with other numbers, and what is said.
    """
    levels = sorted({level for one in results if one.verdict for level in one.verdict.loss_db})
    return pl.DataFrame([_row(result, levels) for result in results])


def _row(result: Result, levels: Sequence[float]) -> dict[str, str]:
    found = result.verdict
    losses = {} if found is None else found.loss_db
    return {
        "model": result.name,
        "precision": result.precision,
        **{f"{level:g}": f"{losses[level]:z.3f}" if level in losses else "-" for level in levels},
        "mean": "-" if found is None else f"{found.mean_loss_db:z.3f}",
        "mean off by %": "-" if found is None else f"{100 * found.mean_shift:z.3f}",
        "times as fast": "-" if result.speed is None else str(result.speed),
        "convolutions": "{} of {}".format(*result.convolutions),
        "": f"refused: {result.refusal}" if result.refusal else "accepted",
    }
