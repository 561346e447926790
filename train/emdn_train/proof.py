"""What ``emdn-deploy check`` finds: faults planted in simulated movies, and honest results.

A fault is planted in one frame in eight, and in every frame. The honest results of other
movies say how often a frame or a stack is flagged for nothing.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from emdn_deploy import Denoiser
from emdn_models.errors import EmdnError
from emdn_train.faults import FAULTS, Scene, Stack
from emdn_train.judging import Judge, Model, judge_of, wrong
from emdn_train.kept import soundness
from emdn_train.proof_config import Job, ProofConfig, jobs, tried
from emdn_train.proof_movies import Movie, movie
from emdn_train.proof_rows import Saved
from emdn_train.righted import Righted
from emdn_train.simulate.threads import begin_worker

NONE = "none"
ONE, ALL = PLACES = ("one frame in 8", "every frame")
_EVERY = 8
_FIRST = 2


def measure(
    config: ProofConfig, saved: Saved, progress: Callable[[float], None] = lambda share: None
) -> pl.DataFrame:
    """Simulate, denoise, plant and check.

    Parameters
    ----------
    saved
        Takes the rows as movies are finished; what it holds is not measured again.
    progress
        Told the share of the work of this call that is done.

    Returns
    -------
    A row a frame of every result that was checked: ``label``, ``specimen``, ``snr``, ``seed``,
    ``model``, ``fault``, ``strength``, ``place``, ``result`` (number of the result), ``frame``,
    ``planted``, ``verdict``, ``evidence``, ``flagged``, ``own`` (whether for itself and not for
    its run), ``stack`` (whether the check fails the whole) and ``why``,
    ``quick``, ``quick_stack``, and ``error`` and ``noise``, the mean squared errors
    after and before, electrons squared. ``truth`` is that of `emdn_train.kept` for honest
    results.

    Raises
    ------
    EmdnError
        If a model cannot be opened or a worker dies.
    """
    done = saved.done
    work = {number: job for number, job in enumerate(jobs(config)) if number not in done}
    whole, part = sum(job.work for job in work.values()), 0
    for number, rows in _run(work, config.workers):
        saved.add(number, rows)
        part += work[number].work
        progress(part / whole)
    return saved.table()


def _run(work: dict[int, Job], workers: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Give the number and the rows of every job, as they are finished."""
    if workers == 1:
        for number, job in work.items():
            yield number, run(job)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), begin_worker)
    try:
        under_way = {pool.submit(run, job): number for number, job in work.items()}
        for future in as_completed(under_way):
            yield under_way[future], future.result()
    except BrokenProcessPool as error:
        raise EmdnError(
            "a worker died, perhaps for want of memory; give the command again with fewer "
            "workers: what is finished is kept"
        ) from error
    except BaseException:
        # What is under way would take a minute, for nothing.
        for child in active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def run(job: Job) -> list[dict[str, Any]]:
    """Do one job: rows as of `measure`, with results numbered from 0."""
    config = job.config
    made = movie(job.specimen, job.snr, config.frames, job.size, job.seed, job.righted)
    counts: NDArray[Any] = made.raw
    if job.times != 1:
        whole = float(job.times).is_integer()
        counts = (counts * job.times).astype(np.uint32 if whole else np.float32)
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory(prefix="emdn-") as folder:
        path = Path(folder) / "movie.npy"
        np.save(path, counts)
        for name in job.models:
            denoiser: Model = Denoiser(name, threads=1)
            if job.righted:
                denoiser = Righted(denoiser, made.clean[0], job.seed)
            judge = judge_of(path, denoiser, job.seed, job.gain)
            for result in _results(job, made, denoiser, judge):
                number = rows[-1]["result"] + 1 if rows else 0
                honest = result.fault == NONE
                truth = _soundness(job, denoiser, judge, made, result.frames) if honest else None
                rows += _rows(job, name, result, judge, made, number, truth)
    return rows


@dataclass(frozen=True, eq=False)
class _Result:
    """Frames to be checked, and what is wrong with which of them."""

    fault: str
    strength: str
    place: str
    planted: tuple[int, ...]
    frames: Stack


def _results(job: Job, made: Movie, denoiser: Model, judge: Judge) -> Iterator[_Result]:
    count = len(judge.raw)
    clean = _denoised(denoiser, judge, judge.raw, 1.0)
    every = tuple(range(count))
    yield _Result(NONE, "", ALL, every, clean)
    if not job.faults:
        return
    others: dict[str, Model] = {"": denoiser}

    def again(raw: Stack, model: str, gain: float) -> Stack:
        if model not in others:
            others[model] = Denoiser(model, threads=1)
        return _denoised(others[model], judge, raw, gain)

    few = tuple(range(min(_FIRST, count - 1), count, _EVERY))
    scene = Scene(judge.raw, made.filled, again, job.seed)
    for name, strength in tried(job.config):
        faulty = FAULTS[name].plant(scene, clean, strength)
        text = f"{strength} {FAULTS[name].unit}".strip()
        for place, planted in ((ONE, few), (ALL, every)):
            frames = clean.copy()
            frames[list(planted)] = faulty[list(planted)]
            yield _Result(name, text, place, planted, frames)


def _denoised(denoiser: Model, judge: Judge, raw: Stack, gain: float) -> Stack:
    scale = wrong(judge.scale, gain)
    return np.concatenate([denoiser.run(one[None], scale) for one in raw])


def _soundness(job: Job, denoiser: Model, judge: Judge, made: Movie, frames: Stack) -> str:
    times = np.float32(job.times)

    def again(drawn: Stack) -> Stack:
        return _denoised(denoiser, judge, drawn * times, 1.0) / times

    return soundness(made.clean, frames / times, again, job.seed)


def _rows(
    job: Job, model: str, result: _Result, judge: Judge, made: Movie, number: int, truth: str | None
) -> Iterator[dict[str, Any]]:
    found = judge.judge(result.frames)
    flagged = [verdict != "within noise" for verdict in found.verdicts]
    error, noise = (
        np.square(stack / np.float32(job.times) - made.clean).mean(axis=(1, 2))
        for stack in (result.frames, judge.raw)
    )
    for frame, verdict in enumerate(found.verdicts):
        yield {
            "label": job.label, "specimen": job.specimen, "snr": job.snr, "seed": job.seed,
            "faults": job.faults, "model": model, "fault": result.fault,
            "strength": result.strength, "place": result.place, "result": number, "frame": frame,
            "planted": frame in result.planted, "verdict": verdict,
            "evidence": found.evidence[frame], "flagged": flagged[frame],
            "own": bool(found.own[frame]),
            "stack": bool(found.findings), "why": "; ".join(found.findings),
            "quick": bool(found.quick[frame]), "quick_stack": not found.quick_passed,
            "error": float(error[frame]), "noise": float(noise[frame]),
            "truth": truth,
        }  # fmt: skip
