"""What all tests share."""

import inspect
import os
import resource
import signal
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Many small tensors: a second thread costs more than it brings.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # as emdn_train does, before torch is there
    # What `make test ARGS=... VENV=...` was told is not for the makes that tests start.
    if "MAKELEVEL" in os.environ:
        told = ("ARGS", "VENV", "PYTHON", "FRAMES", "DATA", "OUT", "SPLIT", "EPOCHS")
        for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", *told):
            os.environ.pop(name, None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark as slow what compares with other programs, which only `make test-all` installs."""
    compares = cache(lambda function: "importorskip(" in inspect.getsource(function))
    for item in items:
        if compares(item.function):
            item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Fail, in CI, a test that is skipped because something is not installed."""
    report = yield
    # Processes that test side by side send each other UTF-8 only, whatever names were logged.
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    if os.environ.get("CI") and report.skipped and "could not import" in str(report.longrepr):
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """Heed SIGINT also where the shell that started the tests had it ignored."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.fixture(scope="session")
def room():
    """Give a context in which no file grows beyond a number of bytes, as on a full disk."""

    @contextmanager
    def limited(size):
        earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, earlier[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, earlier)
            signal.signal(signal.SIGXFSZ, handler)

    return limited


@pytest.fixture(scope="session")
def gratings(tmp_path_factory) -> Path:
    """Draw 32 training and 4 test frames of 64 x 64 in the layout of em_graphene_sim.

    Gratings: small enough to fit on in seconds, and no simulator involved.
    """
    root = tmp_path_factory.mktemp("gratings")
    chance = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    for split, count in (("train", 32), ("test", 4)):
        (root / split).mkdir()
        angle, period = chance.uniform(0, np.pi, count), chance.uniform(8, 16, count)
        phase = (
            2
            * np.pi
            * (np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y)
            / period[:, None, None]
        )
        clean = (40 * (1 + 0.3 * np.cos(phase))).astype(np.float32)[..., None]
        for name, images in (("clean", clean), ("noise", chance.poisson(clean).astype("f4"))):
            with h5py.File(root / split / f"graphene_img_{name}.h5", "w") as file:
                file["images"] = images
    return root
