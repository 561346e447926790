"""Ctrl-C and SIGTERM as a request that a loop heeds between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of ending at them.

    A signal that the process was born to ignore stays ignored, and only the main
    thread, which alone may, changes anything.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)

    earlier = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                earlier[number] = signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in earlier.items():
            # None is a handler that was not set from Python and can't be set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
