"""What all tests share."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Many small tensors: a second thread costs more than it brings.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Fail, in CI, a test that is skipped because something is not installed."""
    report = yield
    if os.environ.get("CI") and report.skipped and "could not import" in str(report.longrepr):
        report.outcome = "failed"
    return report
