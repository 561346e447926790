"""A first run of a model from elsewhere: on a small frame, with bounds on time and memory."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort

from emdn_deploy.session.complaints import first_line
from emdn_deploy.session.handles import load, options_for
from emdn_models.errors import ModelError

SIDE, SECONDS, BYTES = 64, 20.0, 2**30


def check(path: Path) -> None:
    """Denoise one frame of 64 x 64 on one CPU thread.

    Raises
    ------
    ModelError
        If onnxruntime refuses the model, it takes more than `SECONDS`, or `BYTES` besides its
        own, or what it gives is no frame of that size with finite numbers.
    """
    limits, failed = ort.RunOptions(), list[Exception]()

    def run() -> None:
        try:
            _run(path, limits)
        except Exception as error:  # onnxruntime raises bare Exceptions
            failed.append(error)

    # Nothing stops an operator in its middle: then the thread is left behind.
    thread = threading.Thread(target=run, daemon=True)
    with _less_memory(BYTES + 4 * path.stat().st_size):
        thread.start()
        thread.join(SECONDS)
    if thread.is_alive():
        limits.terminate = True
        raise ModelError(
            f"{path}: did not denoise a frame of {SIDE} x {SIDE} within {SECONDS:g} s; it is no "
            "denoiser for whole movies"
        )
    for error in failed:
        if isinstance(error, ModelError):
            raise error
        raise ModelError(
            f"{path}: fails on a frame of {SIDE} x {SIDE} ({first_line(error)}); "
            "export it again with emdn-train export"
        ) from error


def _run(path: Path, limits: ort.RunOptions) -> None:
    options = options_for("cpu", 1)
    # Constants are then computed in the run, which can be ended, and not when it is opened.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    handle = load(path, options, ["CPUExecutionProvider"])
    frame = np.random.default_rng(0).poisson(20.0, (1, 1, SIDE, SIDE)).astype(np.float32)
    one = np.ones((1, 1, 1, 1), np.float32)
    given = {"frames": frame, "scale": 20 * one, "offset": 0 * one, "gain": one}
    (made, *_) = handle.run(["denoised"], given, limits)
    if not isinstance(made, np.ndarray) or made.shape != frame.shape:
        raise ModelError(
            f"{path}: makes {getattr(made, 'shape', type(made))} of a frame {frame.shape}, "
            "expected the same shape"
        )
    if made.dtype != np.float32 or not np.isfinite(made).all():
        raise ModelError(
            f"{path}: makes {made.dtype} with {np.count_nonzero(~np.isfinite(made))} pixels that "
            "are not finite of a frame of counts; its weights are damaged"
        )


@contextlib.contextmanager
def _less_memory(more: int) -> Iterator[None]:
    """Let this process grow by ``more`` bytes at most, where the system can say so."""
    if sys.platform != "linux":
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + more
    known = [one for one in (soft, hard) if one != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([wanted, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
