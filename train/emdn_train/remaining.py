"""How long something will yet take, said in lines that a terminal and a log file can both show."""

import time
from collections.abc import Callable

_STEP = 0.02  # of the work, between two lines


class Remaining:
    """Says now and then what share is done, and when the rest will be.

    Parameters
    ----------
    say
        Shows a line.
    clock
        Returns seconds.
    """

    def __init__(
        self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._clock = say, clock
        self._start, self._next = clock(), 0.0

    def __call__(self, share: float) -> None:
        """Take note of the share that is done, above 0 to 1."""
        if share < self._next:
            return
        self._next = min(1.0, share + _STEP)
        passed = self._clock() - self._start
        left = passed * (1 - share) / share
        self._say(f"{share:4.0%} done in {_time(passed)}, about {_time(left)} left")


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min"
