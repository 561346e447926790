"""Denoise stacks of frames with onnxruntime; no torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emdn_deploy.denoiser import Denoiser, denoise

__all__ = ["Denoiser", "denoise"]


def __getattr__(name: str) -> Any:
    # numpy and onnxruntime load at first use, so that --help stays quick.
    if name in __all__:
        from emdn_deploy import denoiser

        return getattr(denoiser, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
