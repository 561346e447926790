"""The napari widget in the real napari, on a screen that nobody sees."""

import os
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emdn_deploy import Denoiser
from emdn_models import pretrained

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "deploy/emdn_deploy/napari.yaml"
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def viewer() -> Iterator[Any]:
    """Open napari, on a screen in memory where there is none."""
    napari = pytest.importorskip("napari", reason="needs the extra napari")
    pytest.importorskip("qtpy.QtWidgets", reason="needs a Qt binding, such as PyQt6")
    server = None
    if "DISPLAY" not in os.environ:
        if not (xvfb := shutil.which("Xvfb")):
            pytest.skip("needs a screen, or Xvfb")
        read, write = os.pipe()
        command = [xvfb, "-displayfd", str(write), "-screen", "0", "1200x800x24"]
        server = subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL)
        os.environ["DISPLAY"] = f":{os.read(read, 20).decode().strip()}"
    opened = napari.Viewer(show=False)
    yield opened
    opened.close()
    if server is not None:
        server.kill()
        server.wait()
        del os.environ["DISPLAY"]


@pytest.fixture(scope="module")
def widget(viewer: Any) -> Any:
    """Open the widget as napari does, from the manifest."""
    from npe2 import PluginManager, PluginManifest

    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert entry["napari.manifest"] == {"emdn": "emdn_deploy:napari.yaml"}
    manager = PluginManager.instance()
    if "emdn" not in manager:
        manager.register(PluginManifest.from_file(MANIFEST))
    return viewer.window.add_plugin_dock_widget("emdn", "Denoise frames")[1]


def wait(until: Callable[[], bool], seconds: float = 120) -> None:
    from qtpy.QtWidgets import QApplication

    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        QApplication.processEvents()


def movie(count: int) -> np.ndarray:
    y, x = np.mgrid[:64, :80]
    truth = 40 + 8 * np.cos(y / 3) * np.cos(x / 3)
    return np.random.default_rng(0).poisson(truth, (count, 64, 80)).astype(np.uint16)


def test_a_layer_becomes_a_denoised_one_at_the_same_place(viewer, widget):
    viewer.layers.clear()
    raw = movie(6)
    place = {"scale": (2.0, 0.02, 0.02), "translate": (0.0, 1.0, 2.0), "units": ("s", "nm", "nm")}
    layer = viewer.add_image(raw, name="movie", **place)
    assert widget.frames.value is layer
    assert list(widget.model.choices) == list(pretrained.index()["models"])
    assert widget.model.value == pretrained.default_model()
    for model in ("dncnn", "unet@movie"):
        widget(layer, model, "cpu")
        assert not widget.call_button.enabled
        wait(lambda: widget.call_button.enabled)
        made = viewer.layers[-1]
        assert made.name.startswith("movie denoised")
        assert made.data.dtype == np.float32
        np.testing.assert_allclose(made.data, Denoiser(model).denoise(raw), rtol=1e-4)
        for name in ("scale", "translate", "units"):
            np.testing.assert_array_equal(getattr(made, name), getattr(layer, name))
        assert made.metadata["emdn"]["model"] == model
        assert "gain 1" in made.metadata["emdn"]["intensity"]


def test_it_is_cancelled_between_blocks_and_says_what_it_cannot_denoise(viewer, widget):
    from napari.utils.notifications import notification_manager

    viewer.layers.clear()
    widget(viewer.add_image(movie(400), name="long"), "dncnn", "cpu")
    bar, cancel = widget[-2:]
    wait(lambda: bar.value > 0)
    cancel.changed.emit(True)
    wait(lambda: widget.call_button.enabled)
    widget(viewer.add_image(movie(1)[0], name="one"), "unet@movie", "cpu")
    wait(lambda: widget.call_button.enabled)
    assert "unet@movie sees neighbours in time" in notification_manager.records[-1].message
    assert [layer.name for layer in viewer.layers] == ["long", "one"]
