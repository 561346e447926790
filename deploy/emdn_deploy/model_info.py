"""What an exported model says about itself, and which file a name stands for."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, get_args

from emdn_deploy.config import Precision
from emdn_models import pretrained
from emdn_models.errors import ModelError

SCHEMA = "1"
# Pixels that a tile may need around itself.
_LARGEST = 2**16
# Frames that a model may see at once.
_MOST_FRAMES = 15


@dataclass(frozen=True)
class ModelInfo:
    """The metadata of an exported ONNX file.

    Attributes
    ----------
    sha256
        Of the ONNX file.
    precision
        Numbers that it computes with, as it says itself.
    frames
        How many frames it sees to denoise the middle one of them, an odd number.
    multiple
        Step that height and width are padded to inside the graph.
    receptive_field
        Side, in pixels, of the largest square that an output pixel sees.
    halo
        Border, in pixels, that a tile needs on every inner side, a multiple of ``multiple``;
        None in files that do not say, for which the field decides.
    tiling_exact
        Whether halo tiles give the whole frame's result; if not, ``text`` has the node that
        sees more as ``whole_frame``.
    gflop_256
        GFLOP for one 256 x 256 frame.
    recipe, quality
        How the weights were trained and what they were measured to do.
    text
        All of it as the file has it.
    """

    path: Path
    sha256: str
    name: str
    preset: str
    precision: str
    frames: int
    multiple: int
    receptive_field: int
    halo: int | None
    tiling_exact: bool
    parameters: int
    gflop_256: float
    recipe: Mapping[str, Any]
    quality: Mapping[str, Any]
    text: Mapping[str, str]


def resolve(model: str | PathLike[str] | None, precision: Precision = "fp32") -> Path:
    """Return the ONNX file of a shipped model's name or of a path.

    Parameters
    ----------
    model
        A shipped name, the path of an ``.onnx`` file, or None for the default.
    precision
        Which variant: a shipped one's file stands in the index, that of ``NAME.onnx`` is
        ``NAME.int8.onnx`` beside it. ``fp32`` is the model, or the file, itself, and ``tf32``
        the same on a GPU that may round.

    Raises
    ------
    ModelError
        If there is no such name, file or variant.
    """
    if precision not in get_args(Precision):
        raise ModelError(
            f"no precision is called {precision!r}; there are {', '.join(get_args(Precision))}"
        )
    precision = stored(precision)
    if model is None:
        return pretrained.onnx_path(pretrained.default_model(), precision)
    text = str(model)
    if text.endswith(".onnx") or "/" in text or "\\" in text or not isinstance(model, str):
        path = Path(model)
        if not path.is_file():
            raise ModelError(f"{path}: no such ONNX file")
        return path if precision == "fp32" else _variant(path, precision)
    return pretrained.onnx_path(text, precision)


def stored(precision: Precision) -> Precision:
    """Return the variant whose file a precision needs: TF32 is a way to compute with float32."""
    return "fp32" if precision == "tf32" else precision


def _variant(path: Path, precision: Precision) -> Path:
    """Return the file of a variant: the one beside the model's, or this one itself."""
    suffix = f".{precision}.onnx"
    if path.name.endswith(suffix):
        return path
    variant = path.with_name(path.stem + suffix)
    if not variant.is_file():
        raise ModelError(f"{path}: has no {precision} variant; {variant} does not exist")
    return variant


def check_precision(info: ModelInfo, precision: Precision) -> None:
    """Refuse a file that is not what its name, or the index, says.

    Raises
    ------
    ModelError
        If a variant was asked for, and the file says that it computes with other numbers.
    """
    if stored(precision) not in ("fp32", info.precision):
        raise ModelError(f"{info.path}: says that it is {info.precision}, not {precision}")


def parse(path: Path, text: Mapping[str, str], inputs: list[str]) -> ModelInfo:
    """Read the metadata that ``emdn-train export`` writes.

    Raises
    ------
    ModelError
        If the file is not one of emdn's, or is of a newer schema.
    """
    schema = text.get("emdn_schema")
    if schema is None or inputs != ["frames", "scale", "offset", "gain"]:
        raise ModelError(
            f"{path}: is not a model exported by emdn (inputs {', '.join(inputs)}, "
            f"emdn_schema {schema}); export one with emdn-train export"
        )
    if schema != SCHEMA:
        raise ModelError(f"{path}: has emdn_schema {schema}, this emdn reads {SCHEMA}; update emdn")
    try:
        info = ModelInfo(
            path=path,
            sha256=pretrained.sha256(path),
            name=text["model"],
            preset=text["preset"],
            precision=text.get("precision", "fp32"),
            frames=int(text.get("frames", "1")),
            multiple=int(text["multiple"]),
            receptive_field=int(text["receptive_field"]),
            halo=int(text["halo"]) if "halo" in text else None,
            tiling_exact=text["tiling_exact"] == "true",
            parameters=int(text["parameters"]),
            gflop_256=float(text["gflop_256"]),
            recipe=json.loads(text["recipe"]),
            quality=json.loads(text["quality"]),
            text=dict(text),
        )
        sizes = info.multiple, info.receptive_field, info.parameters + 1, (info.halo or 0) + 1
        if min(sizes) < 1 or max(info.multiple, info.receptive_field, info.halo or 0) > _LARGEST:
            raise ValueError(f"sizes {sizes}")
        if info.frames not in range(1, _MOST_FRAMES + 1, 2):
            raise ValueError(f"{info.frames} frames, expected an odd number up to {_MOST_FRAMES}")
        if not 0 <= info.gflop_256 < math.inf:
            raise ValueError(f"{info.gflop_256} GFLOP")
        if not (isinstance(info.recipe, dict) and isinstance(info.quality, dict)):
            raise ValueError("recipe or quality that are no mapping")
        return info
    except (KeyError, OverflowError, RecursionError, ValueError) as error:
        raise ModelError(
            f"{path}: its metadata is incomplete or damaged ({str(error)[:200]!r}); "
            "export it again with emdn-train export"
        ) from error
