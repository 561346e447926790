"""Whether denoised frames can be trusted, by the data alone.

``check(stack, denoised)`` gives a `verdict.CheckResult`; the command of the same name prints it.
Against the truth: `emdn_deploy.evaluate`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emdn_deploy.check.stack import check

__all__ = ["check"]


def __getattr__(name: str) -> Any:
    # numpy and polars load at first use, so that --help stays quick.
    if name == "check":
        from emdn_deploy.check.stack import check

        return check
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
