"""The napari widget: it denoises the frames of an image layer into a new one of the same scale."""

from collections.abc import Generator
from typing import Any

import numpy as np
from magicgui import magicgui
from magicgui.widgets import FunctionGui, ProgressBar, PushButton
from napari.layers import Image
from napari.qt.threading import FunctionWorker, create_worker
from napari.types import LayerDataTuple
from napari.utils.notifications import show_error

from emdn_deploy import preprocess
from emdn_deploy.batching import blocks
from emdn_deploy.config import Device
from emdn_deploy.denoiser import as_stack, check_one_axis, opened
from emdn_deploy.report import intensity_words
from emdn_models import pretrained

# What a layer says of where its pixels are, and in which units.
_PLACE = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")


def denoise_widget() -> FunctionGui[Any]:
    """Return the widget: layer, model and device; *Cancel* stops after the block at hand."""
    models = list(pretrained.index()["models"])
    bar, cancel = ProgressBar(label="done"), PushButton(text="Cancel", enabled=False)

    def start(
        frames: Image, model: str = pretrained.default_model(), device: Device = "auto"
    ) -> FunctionWorker[LayerDataTuple]:
        worker = create_worker(denoised, frames, model, device, _ignore_errors=True)
        worker.yielded.connect(lambda percent: setattr(bar, "value", percent))
        worker.errored.connect(lambda error: show_error(str(error)))
        worker.finished.connect(lambda: running(False))
        cancel.changed.disconnect()
        cancel.changed.connect(worker.quit)
        running(True)
        worker.start()
        return worker

    def running(now: bool) -> None:
        widget.call_button.enabled, cancel.enabled, bar.value = not now, now, 0

    widget = magicgui(start, call_button="Denoise", model={"choices": models})
    widget.extend([bar, cancel])
    return widget


def denoised(layer: Image, model: str, device: Device) -> Generator[int, None, LayerDataTuple]:
    """Denoise a layer (..., H, W) block by block, yield the percentage done, and return a new one.

    Its pixels are float32 in the same units.
    """
    data = layer.data[0] if layer.multiscale else layer.data
    denoiser, stack = opened(model, device, None, "fp32"), as_stack(data)
    if half := denoiser.session.info.frames // 2:
        check_one_axis(data.shape, model)
    recipe = preprocess.recipe_of_array(stack, data.dtype)
    count, made = len(stack), np.empty(stack.shape, np.float32)
    for start, stop in blocks(0, count, denoiser.batching.frames_per_run(stack.shape[1:])):
        yield 100 * start // count
        first, last = max(0, start - half), min(count, stop + half)
        raw, around = np.asarray(stack[first:last]), (start - first, last - stop)
        made[start:stop] = denoiser.block(raw, recipe, around=around)[0].frames
    record = {"emdn": {"model": model, "intensity": intensity_words(recipe.scale)}}
    place = {key: getattr(layer, key) for key in _PLACE}
    facts = {"name": f"{layer.name} denoised", "metadata": record, **place}
    return LayerDataTuple((made.reshape(data.shape), facts, "image"))
