"""Triton model repositories: exported models, as NVIDIA's inference server loads them."""

import shutil
from pathlib import Path

import onnx
from onnx import ValueInfoProto

from emdn_models.files import renamed, unwritable

MOST_FRAMES = 8
"""Requests that the server may join to one run."""

DELAY_US = 2000
"""Microseconds that a request waits for others at most."""


def write(source: Path, repository: Path) -> Path:
    """Add ``NAME.onnx`` to a model repository, or replace it there; an ``@`` becomes a ``-``.

    A request holds ``frames`` (n, F, H, W), as they are, and ``scale``, ``offset`` and ``gain``
    (n, 1, 1, 1), as `emdn_deploy.dose` measures them. Requests of one frame size are joined.

    Returns
    -------
    Path
        Of ``NAME/config.pbtxt``; the model is ``NAME/1/model.onnx``.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    graph = onnx.load(source).graph
    folder = repository / source.stem.replace("@", "-")
    try:
        (folder / "1").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    with renamed(folder / "1" / "model.onnx") as partial:
        shutil.copyfile(source, partial)
    lines = [
        f'name: "{folder.name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {MOST_FRAMES}",
        *(f"input {{ {_tensor(one)} }}" for one in graph.input),
        *(f"output {{ {_tensor(one)} }}" for one in graph.output),
        f"dynamic_batching {{ max_queue_delay_microseconds: {DELAY_US} }}",
    ]
    with renamed(folder / "config.pbtxt") as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "config.pbtxt"


def _tensor(value: ValueInfoProto) -> str:
    """Describe a float32 tensor without its first axis, the batch; -1 is any length."""
    axes = [axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim[1:]]
    return f'name: "{value.name}" data_type: TYPE_FP32 dims: {axes}'
