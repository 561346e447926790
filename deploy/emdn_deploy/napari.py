"""The napari widget: it denoises the frames of an image layer into a new one of the same scale."""

from collections.abc import Generator
from typing import Any, get_args

import numpy as np
from magicgui.widgets import ComboBox, Container, Label, ProgressBar, PushButton, create_widget
from napari.layers import Image
from napari.qt.threading import create_worker
from napari.viewer import Viewer
from numpy.typing import NDArray

from emdn_deploy import preprocess, stacks
from emdn_deploy.batching import blocks
from emdn_deploy.config import Device
from emdn_deploy.denoiser import opened
from emdn_deploy.report import intensity_words
from emdn_models import pretrained
from emdn_models.errors import EmdnError

Work = Generator[tuple[int, int], None, tuple[NDArray[np.float32] | None, str]]

# What a layer says of where its pixels are, and in which units.
_PLACE = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")


class DenoiseWidget(Container):
    """Takes a layer, a model and a device; its button starts, and stops after the block at hand."""

    def __init__(self, viewer: Viewer) -> None:
        self._viewer, self._worker = viewer, None
        models = list(pretrained.index()["models"])
        self.layer = create_widget(annotation=Image, label="frames")
        self.model = ComboBox(choices=models, value=pretrained.default_model(), label="model")
        self.device = ComboBox(choices=get_args(Device), label="device")
        self.button = PushButton(text="Denoise")
        self.bar = ProgressBar(label="frames done", value=0)
        self.words = Label(value="")
        self.words.native.setWordWrap(True)
        parts = [self.layer, self.model, self.device, self.button, self.bar, self.words]
        super().__init__(widgets=parts)
        self.button.changed.connect(self._start_or_cancel)

    def _start_or_cancel(self) -> None:
        layer = self.layer.value
        if self._worker is not None or layer is None:
            self.words.value = "no image layer" if layer is None else "stops after this block"
            if self._worker is not None:
                self._worker.quit()
            return
        data = layer.data[0] if layer.multiscale else layer.data
        name, model = f"{layer.name} denoised", self.model.value
        place = {key: getattr(layer, key) for key in _PLACE}

        def add(made: tuple[NDArray[np.float32] | None, str]) -> None:
            frames, self.words.value = made
            record = {"emdn": {"model": model, "intensity": made[1]}}
            if frames is not None:
                self._viewer.add_image(frames, name=name, metadata=record, **place)

        self._worker = worker = create_worker(denoised, data, model, self.device.value)
        worker.yielded.connect(self._show)
        worker.returned.connect(add)
        worker.aborted.connect(lambda: setattr(self.words, "value", "cancelled"))
        worker.finished.connect(self._end)
        self.button.text, self.words.value = "Cancel", ""
        worker.start()

    def _show(self, done: tuple[int, int]) -> None:
        self.bar.max, self.bar.value = done[1], done[0]

    def _end(self) -> None:
        self._worker, self.button.text, self.bar.value = None, "Denoise", 0


def denoised(data: Any, model: str, device: Device) -> Work:
    """Denoise an array (..., H, W) block by block; yield how many frames are done, and of how many.

    Returns the frames, float32 in the shape and units of ``data``, and their intensity in words; or
    None, and why they cannot be denoised.
    """
    try:
        denoiser = opened(model, device, None, "fp32")
        stack, seen = stacks.as_stack(data), denoiser.session.info.frames
        if seen > 1:
            stacks.check_one_axis(data.shape, model)
        recipe = preprocess.recipe_of_array(stack, data.dtype)
        count, output = len(stack), np.empty(stack.shape, np.float32)
        for start, stop in blocks(0, count, denoiser.batching.frames_per_run(stack.shape[1:])):
            yield start, count
            first, last = max(0, start - seen // 2), min(count, stop + seen // 2)
            around = start - first, last - stop
            raw = np.asarray(stack[first:last])
            output[start:stop] = denoiser.block(raw, recipe, around=around)[0].frames
    except EmdnError as error:
        return None, str(error)
    return output.reshape(data.shape), intensity_words(recipe.scale)
