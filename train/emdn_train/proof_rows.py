"""The rows of a proof under way: on disk after every movie, and taken up by the same command.

One file for each proof: rows of other options, weights or code are never mixed with these.
"""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

import emdn_deploy
import emdn_models
import emdn_train
from emdn_deploy.session import open_session
from emdn_models import EmdnError, __version__
from emdn_train.proof_config import ProofConfig

SCHEMA: dict[str, Any] = {
    "job": pl.Int64, "label": pl.String, "specimen": pl.String, "snr": pl.Float64,
    "seed": pl.Int64, "faults": pl.Boolean, "model": pl.String, "fault": pl.String,
    "strength": pl.String, "place": pl.String, "result": pl.Int64, "frame": pl.Int64,
    "planted": pl.Boolean, "verdict": pl.String, "evidence": pl.String, "flagged": pl.Boolean,
    "own": pl.Boolean, "stack": pl.Boolean, "why": pl.String, "quick": pl.Boolean,
    "quick_stack": pl.Boolean, "error": pl.Float64, "noise": pl.Float64, "truth": pl.String,
}  # fmt: skip


def identity(config: ProofConfig) -> dict[str, Any]:
    """Return all that the rows follow from: options, weights, and the code itself."""
    facts = asdict(config)
    del facts["workers"]
    weights = {name: open_session(name, "cpu", 1).info.sha256 for name in config.names}
    return facts | {"models": weights, "version": __version__, "code": _code()}


def _code() -> str:
    """Sum up the three packages' source."""
    digest = hashlib.sha256()
    for package in (emdn_train, emdn_deploy, emdn_models):
        folder = Path(str(package.__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


class Saved:
    """The rows of one proof, in one parquet file that is replaced whole.

    Parameters
    ----------
    folder
        Where it lies; made if missing.
    facts
        Of `identity`: the file's name ends in a digest of them.

    Raises
    ------
    EmdnError
        If the file is there and cannot be read.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
        self.path = folder / f"proof-{key}.parquet"
        folder.mkdir(parents=True, exist_ok=True)
        self._rows = pl.DataFrame(schema=SCHEMA)
        if self.path.exists():
            try:
                self._rows = pl.read_parquet(self.path)
            except (pl.exceptions.PolarsError, OSError) as error:
                raise EmdnError(
                    f"{self.path}: cannot be read ({error}), expected the rows of a proof; "
                    "delete it to begin anew"
                ) from error

    @property
    def done(self) -> set[int]:
        """Return the numbers of the jobs whose rows are here."""
        return set(self._rows["job"].unique())

    def add(self, job: int, rows: list[dict[str, Any]]) -> None:
        """Add a job's rows, on disk when this returns."""
        new = pl.DataFrame([{"job": job} | row for row in rows], schema=SCHEMA)
        self._rows = pl.concat([self._rows, new])
        partial = self.path.with_name(self.path.name + ".partial")
        with partial.open("wb") as file:
            self._rows.write_parquet(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)

    def table(self) -> pl.DataFrame:
        """Return all rows in the order of jobs, whatever order these were done in."""
        number = pl.struct("job", "result").rank("dense").cast(pl.Int64) - 1
        rows = self._rows.sort("job", "result", "frame")
        return rows.with_columns(number.alias("result")).drop("job")
