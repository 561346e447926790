"""What models from elsewhere say of themselves, and that a bad one is one line."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from emdn_deploy.session import open_session
from emdn_models import pretrained
from emdn_models.errors import ModelError


def refused(path: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        open_session(path, "cpu", 1)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < len(str(path)) + 400


@pytest.mark.parametrize("name", pretrained.index()["models"])
def test_shipped_models_read_as_onnx_reads_them(name: str) -> None:
    known = onnx.load(pretrained.onnx_path(name)).metadata_props
    assert open_session(name, "cpu", 1).info.text == {one.key: one.value for one in known}


@pytest.mark.parametrize(("changes", "match"), [
    ({"emdn_schema": None}, "not a model exported by emdn"),
    ({"emdn_schema": "2"}, "has emdn_schema 2, this emdn reads 1"),
    *(({name: text}, "incomplete or damaged") for name, text in (
        ("recipe", "{"), ("multiple", "0"), ("multiple", None), ("halo", "-2"), ("frames", "2"),
        ("receptive_field", "x"),
    )),
])  # fmt: skip
def test_metadata_that_no_export_writes(
    make_model: Callable[..., Path], tmp_path: Path, changes: dict[str, str | None], match: str
) -> None:
    refused(make_model(tmp_path / "model.onnx", **changes), match)


@pytest.mark.parametrize("content", [b"", b"no ONNX", None])
def test_files_that_are_no_models(box_model: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(box_model.read_bytes()[:400] if content is None else content)
    refused(path, "onnxruntime cannot load it|not a model exported by emdn")
