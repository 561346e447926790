"""One thread a process: sums in one order, and no threads that wait for each other."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold BLAS, OpenMP and torch to one thread, inside a ``with`` or as a decorator.

    Results must not depend on how sums are split. And the arrays are small: left alone,
    OpenBLAS more than doubles the processor time of a pair by spinning.
    """
    before = torch.get_num_threads()
    with threadpool_limits(limits=1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
