"""Denoise an HDF5 dataset while an acquisition appends to it (SWMR).

The output grows as the input does and can itself be followed by SWMR readers; it takes
its final name when nothing has come for a time, or when the user says so.
"""

import logging
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from emdn_deploy import correction, provenance, routing
from emdn_deploy.correction import Prepared, Recipe
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.options import DenoiseOptions
from emdn_deploy.output import check_target
from emdn_deploy.readers import Choice, Frames
from emdn_deploy.readers.hdf5 import choose, frames_of, order_in
from emdn_deploy.sums import Sums
from emdn_deploy.watch import FIRST_FRAMES, Arrival
from emdn_deploy.writers import Provenance
from emdn_deploy.writers.hdf5_frames import finish, record
from emdn_models.errors import FormatError

_log = logging.getLogger(__name__)


def dataset(
    source: Path,
    target: Path,
    options: DenoiseOptions,
    idle_s: float,
    poll_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Generator[Arrival, None, None]:
    """Denoise what is appended to a dataset until nothing comes for ``idle_s``.

    Closing the iterator completes the output with what there is.

    Raises
    ------
    EmdnError
        As `emdn_deploy.job.run`, and if the file cannot be followed.
    """
    check_target(target, source, overwrite=options.overwrite)
    denoiser = Denoiser.of(options)
    partial = target.with_name(target.name + ".partial")
    try:
        file = h5py.File(source, "r", libver="latest", swmr=True)
    except OSError as error:
        raise FormatError(
            f"{source}: cannot be followed ({error}); the acquisition must write it in SWMR mode"
        ) from error
    with file:
        choice = Choice(options.dataset, options.axes)
        chosen, why = choose(source, file, choice)
        data = chosen.dataset

        def frames_now() -> Frames:
            return frames_of(source, file, chosen, choice, why)

        if chosen.parts:
            raise FormatError(
                f"{source}: has its frames in {len(chosen.parts)} parts; watch one of them, or "
                "denoise the file when it is complete"
            )
        order = choice.axes or order_in(file, chosen)
        if order[0] in "yx" or order[1:3] != "yx":
            raise FormatError(
                f"{source}: {chosen.path} has axes {order}; a dataset that grows must be "
                "(frame, y, x)"
            )
        idle, count, recipe = 0.0, 0, None
        while recipe is None:
            data.refresh()
            grew = data.shape[0] > count
            count = data.shape[0]
            if count and (count >= FIRST_FRAMES or not grew):
                recipe = correction.find_recipe(frames_now(), options)
            elif idle > idle_s:
                raise FormatError(f"{source}: {chosen.path} stayed empty for {idle_s:g} s")
            else:
                idle = 0.0 if grew else idle + poll_s
                sleep(poll_s)
        yield from _follow(
            partial, target, frames_now, data, denoiser, recipe, options, idle_s, poll_s, sleep
        )


def _follow(
    partial: Path,
    target: Path,
    frames_now: Callable[[], Frames],
    data: Any,
    denoiser: Denoiser,
    recipe: Recipe,
    options: DenoiseOptions,
    idle_s: float,
    poll_s: float,
    sleep: Callable[[float], None],
) -> Generator[Arrival, None, None]:
    first = frames_now()
    ready = correction.prepare(first, options, recipe)
    route = routing.route(denoiser, options, first, ready.scale)
    denoiser = route.denoiser
    if route.warning:
        _log.warning("warning: %s: %s", first.path, route.warning)
    elif route.reason:
        _log.info("%s on %s (%s)", denoiser.session.info.name, first.path, route.reason)
    batch = options.batch or denoiser.batch_for(first.shape[1:])
    sums = Sums()
    with h5py.File(partial, "w", libver="latest") as output:
        grown = _create(output, first, provenance.facts_of(first, options, route, ready, batch))
        output.swmr_mode = True
        done, idle = 0, 0.0
        try:
            while idle <= idle_s:
                arrived = time.time()
                data.refresh()
                count = data.shape[0]
                ready = _reading(frames_now(), recipe)
                for start in range(done, count, batch):
                    stop = min(count, start + batch)
                    part = ready.take(start, stop)
                    made = part.finish(denoiser.answer(part.frames, recipe.scale, batch=batch))
                    before, after = part.counted(), made.frames
                    empty = (start + np.flatnonzero(part.empty)).tolist()
                    sums.add_kept(part.saturated, part.filled, empty)
                    grown.resize(stop, axis=0)
                    grown[start:stop] = after.reshape(stop - start, *grown.shape[1:])
                    grown.flush()
                    sums.add(before, after)
                    sums.add_shifts(made.shifts, before[0].size)
                    yield Arrival(first.path, target, stop - start, time.time() - arrived)
                idle = 0.0 if count > done else idle + poll_s
                done = count
                sleep(poll_s)
        finally:
            output.close()
            late = sums.facts(recipe.scale.offset) if sums.pixels else {}
            finish(partial, {**late, **provenance.memory(denoiser)})
            with partial.open("r+b") as written:
                os.fsync(written.fileno())
            os.replace(partial, target)


def _reading(frames: Frames, recipe: Recipe) -> Prepared:
    return correction.prepare(frames, DenoiseOptions(), recipe)


def _create(output: h5py.File, frames: Frames, facts: Provenance) -> h5py.Dataset:
    shape = frames.stored_shape
    made: h5py.Dataset = output.create_dataset(
        frames.dataset, shape=(0, *shape[1:]), maxshape=(None, *shape[1:]),
        chunks=(1, *shape[1:]), dtype=np.float32,
    )  # fmt: skip
    for letter, axis in zip(frames.order, frames.axes, strict=True):
        if axis.step is not None:
            made.attrs[f"step_{letter}"] = axis.step
            made.attrs[f"units_{letter}"] = axis.units
    record(output, frames.dataset, facts)
    return made
