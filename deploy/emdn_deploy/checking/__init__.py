"""Whether denoised frames can be trusted: against the truth, or by the data alone.

``check(stack, denoised)`` gives a `result.CheckResult` and ``evaluate(denoised, truth)`` an
`evaluation.Evaluation`; the commands of the same names print them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emdn_deploy.checking.evaluation import evaluate
    from emdn_deploy.checking.stack import check

_PLACES = {"check": "stack", "evaluate": "evaluation"}
__all__ = ["check", "evaluate"]


def __getattr__(name: str) -> Any:
    # numpy and polars load at first use, so that --help stays quick.
    if name in _PLACES:
        import importlib

        module = importlib.import_module(f"emdn_deploy.checking.{_PLACES[name]}")
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
