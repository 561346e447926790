"""A small real model in the ONNX contract, and simulated stacks."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, parser

from emdn_deploy import cli, denoise_file, output, report
from emdn_deploy.config import DenoiseOptions
from emdn_models import pretrained

BOX = """
<ir_version: 8, opset_import: ["" : 17]>
box (float[n,1,h,w] frames, float[n,1,1,1] scale, float[n,1,1,1] offset, float[n,1,1,1] gain)
    => (float[n,1,h,w] denoised)
<float[1,1,3,3] k = {0.0625, 0.125, 0.0625, 0.125, 0.25, 0.125, 0.0625, 0.125, 0.0625},
 int64[1] two = {2}, int64[2] zeros2 = {0, 0}, int64[2] front = {0, 0}, int64[2] hw = {2, 3},
 float[4] up = {1.0, 1.0, 2.0, 2.0}, float half = {0.5}>
{
    dark = Sub(frames, offset)
    e = Div(dark, gain)
    root = Sqrt(scale)
    centred = Sub(e, scale)
    x = Div(centred, root)
    size = Shape <start = 2, end = 4> (frames)
    rest = Mod(size, two)
    more = Sub(two, rest)
    tail = Mod(more, two)
    pads = Concat <axis = 0> (zeros2, zeros2, zeros2, tail)
    padded = Pad <mode = "edge"> (x, pads)
    a = Conv <pads = [1, 1, 1, 1]> (padded, k)
    b = Conv <pads = [1, 1, 1, 1]> (a, k)
    c = Conv <pads = [1, 1, 1, 1]> (b, k)
    pooled = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (c)
    wide = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric",
        nearest_mode = "floor"> (pooled, , up)
    both = Add(c, wide)
    mixed = Mul(both, half)
    cut = Slice(mixed, front, size, hw)
    scaled = Mul(cut, root)
    out = Add(scaled, scale)
    charged = Mul(out, gain)
    denoised = Add(charged, offset)
}
"""

FIVE = np.multiply.outer([1, 2, 4, 2, 1], [[1, 2, 1], [2, 4, 2], [1, 2, 1]])
MOVIE = f"""
<ir_version: 8, opset_import: ["" : 17]>
movie (float[n,5,h,w] frames, float[n,1,1,1] scale, float[n,1,1,1] offset, float[n,1,1,1] gain)
    => (float[n,1,h,w] denoised)
<float[1,5,3,3] k = {{{", ".join(str(w / 160) for w in FIVE.ravel())}}}>
{{
    dark = Sub(frames, offset)
    e = Div(dark, gain)
    centred = Sub(e, scale)
    x = Conv <pads = [1, 1, 1, 1]> (centred, k)
    out = Add(x, scale)
    charged = Mul(out, gain)
    denoised = Add(charged, offset)
}}
"""

METADATA = {
    "emdn_schema": "1",
    "model": "box",
    "preset": "test",
    "weights_sha256": "0" * 64,
    "multiple": "2",
    "receptive_field": "8",
    "tiling_exact": "true",
    "parameters": "9",
    "gflop_256": "0.0035",
    "recipe": json.dumps({"data": "none"}),
    "quality": json.dumps({"psnr_db": 20.0}),
    "emdn_version": "0",
    "licence": "MIT",
}


def save_model(path: Path, text: str = BOX, **changes: str | None) -> Path:
    """Save the blur with some of its metadata changed, or left out (None)."""
    model = parser.parse_model(text)
    metadata = {key: value for key, value in {**METADATA, **changes}.items() if value is not None}
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """Give tests `save_model`."""
    return save_model


@pytest.fixture(scope="session")
def box_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weighted box blur with padding to even sizes: receptive field 8, multiple 2."""
    return save_model(tmp_path_factory.mktemp("model") / "box.onnx")


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two shipped models, one of which has a variant: the same blur, under its name."""
    folder = tmp_path / "weights"
    folder.mkdir()

    def entry(path: Path) -> dict[str, Any]:
        return {"file": path.name, "sha256": pretrained.sha256(path)}

    models = {
        name: {**entry(save_model(folder / f"{name}.onnx", model=name)), "preset": "test",
               "parameters": 1_234_567, "gflop_256": 1.23456}
        for name in ("unet", "dncnn")
    }  # fmt: skip
    variant = save_model(folder / "unet.int8.onnx", model="unet", precision="int8")
    models["unet"] |= {"variants": {"int8": entry(variant)}, "quality": {"gain_db": {"0.4": 15.25}}}
    (folder / "index.json").write_text(json.dumps({"default": "unet", "models": models}))
    monkeypatch.setattr(pretrained, "WEIGHTS", folder)
    pretrained.index.cache_clear()
    yield folder
    pretrained.index.cache_clear()


@pytest.fixture(scope="session")
def movie_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A blur of each frame and two neighbours on either side."""
    facts = {"model": "movie", "frames": "5", "multiple": "1", "receptive_field": "3"}
    return save_model(tmp_path_factory.mktemp("model") / "movie.onnx", MOVIE, **facts)


@pytest.fixture(scope="session")
def dimming(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the blur a model that takes a tenth of the intensity away."""
    text = BOX.replace("half = {0.5}", "half = {0.45}, float part = {0.9}")
    text = text.replace(
        "out = Add(scaled, scale)", "less = Mul(scale, part)\n    out = Add(scaled, less)"
    )
    return save_model(tmp_path_factory.mktemp("model") / "dimming.onnx", text, model="dimming")


@pytest.fixture
def lattice() -> Callable[..., np.ndarray[Any, Any]]:
    """Make electrons (N, H, W): a hexagonal lattice with counting noise."""

    def make(
        dose: float, shape: tuple[int, int, int] = (12, 128, 128), seed: int = 0, drift: float = 0.0
    ) -> np.ndarray[Any, Any]:
        rng = np.random.default_rng(seed)
        frame, y, x = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
        y = y + drift * frame
        waves = sum(
            np.cos(2 * np.pi / 9 * (np.cos(angle) * y + np.sin(angle) * x))
            for angle in np.deg2rad((10, 70, 130))
        )
        truth = dose * (1 + 0.12 * waves + 0.3 * (x / shape[2] - 0.5))
        return rng.poisson(np.maximum(truth, 0)).astype(np.float64)

    return make


KILLED = """
import os, signal, sys
from emdn_deploy import cli, output
write = output.Output.write
def once(self, *arguments):
    write(self, *arguments)
    if self.done >= int(sys.argv[1]):
        self._save_map()
        os.kill(os.getpid(), signal.SIGKILL)
output.Output.write = once
cli.main(sys.argv[2:])
"""


@pytest.fixture
def denoise_killed() -> Callable[..., None]:
    """Run ``emdn-deploy denoise`` in a process that is killed after so many frames."""

    def run(frames: int, *arguments: object) -> None:
        command = [sys.executable, "-c", KILLED, str(frames), "denoise", *map(str, arguments)]
        assert subprocess.run(command, check=False).returncode == -9

    return run


@pytest.fixture
def call() -> Callable[..., int]:
    """Run ``emdn-deploy`` in this process and return its exit status."""

    def run(*arguments: object) -> int:
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        return int(left.value.code or 0)

    return run


@pytest.fixture
def run(box_model: Path) -> Callable[..., report.Report]:
    """Denoise a file with the blur on the CPU."""

    def denoise(source: Path, **options: Any) -> report.Report:
        given = {"model": str(box_model), "device": "cpu", **options}
        return denoise_file.run(source, DenoiseOptions(**given))

    return denoise


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, BaseException], None]:
    """Make the writer raise when it comes to a frame, until ``monkeypatch.undo``."""
    write = output.Output.write

    def arm(frame: int, error: BaseException) -> None:
        def failing(self: output.Output, start: int, *blocks: np.ndarray[Any, Any]) -> None:
            if start >= frame:
                raise error
            write(self, start, *blocks)

        monkeypatch.setattr(output.Output, "write", failing)

    return arm


@pytest.fixture
def interrupted(run, stop_at, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Denoise a file by two frames at a time until an error, after four, ends it."""

    def denoise(source: Path, error: BaseException | None = None, **options: Any) -> None:
        error = error or KeyboardInterrupt()
        stop_at(4, error)
        with pytest.raises(type(error)):
            run(source, **{"batch": 2, **options})
        monkeypatch.undo()

    return denoise
