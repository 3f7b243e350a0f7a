from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from u2export.errors import UserError
from u2export.reference.onnx_files import external_data, model_files

onnx = pytest.importorskip("onnx")


def model(names: list[str]) -> Any:
    """Sums of constants: in initialisers, in a Constant node, in a branch, and in a function."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    tensors = [onnx.numpy_helper.from_array(np.arange(300, dtype=np.float32), name) for name in names]
    value = onnx.numpy_helper.from_array(np.ones(300, np.float32), "value")
    branch = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["y"])], "branch", [],
        [helper.make_tensor_value_info("y", kind, [300])],
        [onnx.numpy_helper.from_array(np.arange(300, dtype=np.float32), "inner")],
    )  # fmt: skip
    nodes = [
        helper.make_node("Constant", [], ["c"], value=value),
        helper.make_node("If", ["flag"], ["z"], then_branch=branch, else_branch=branch),
        helper.make_node("Sum", [*names, "c", "z"], ["sum"]),
    ]
    inputs = [helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, [])]
    outputs = [helper.make_tensor_value_info("sum", kind, [300])]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, tensors))


@pytest.mark.parametrize("together", [True, False])
def test_all_files_of_a_model(tmp_path: Path, together: bool) -> None:
    made = model(["a", "b"])
    onnx.save(
        made, tmp_path / "m.onnx", save_as_external_data=True, all_tensors_to_one_file=together,
        location="m.onnx.data" if together else None, size_threshold=0, convert_attribute=True,
    )  # fmt: skip
    files = model_files(tmp_path / "m.onnx")
    assert files[0] == tmp_path / "m.onnx"
    assert set(files) == {p for p in tmp_path.iterdir() if p.is_file()}
    files[-1].unlink()
    with pytest.raises(UserError, match="is missing"):
        model_files(tmp_path / "m.onnx")


def test_a_model_of_one_file(tmp_path: Path) -> None:
    onnx.save(model(["a"]), tmp_path / "m.onnx")
    assert model_files(tmp_path / "m.onnx") == [tmp_path / "m.onnx"]


@pytest.mark.parametrize("location", ["../evil", "/etc/passwd", "a/../../b", "", "..\\evil"])
def test_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    made = model(["a"])
    tensor = made.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(UserError, match="outside its folder"):
        model_files(tmp_path / "m.onnx")


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(model(["a"]), folder / "m.onnx", save_as_external_data=True, location="data", size_threshold=0)
    (folder / "data").rename(tmp_path / "data")
    (folder / "data").symlink_to(tmp_path / "data")
    with pytest.raises(UserError, match="a link to another folder"):
        model_files(folder / "m.onnx")


@given(st.binary(max_size=300))
def test_noise_is_refused_or_names_nothing_bad(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "m.onnx"
    path.write_bytes(noise)
    try:
        assert isinstance(external_data(path), dict)
    except UserError as error:
        assert "\n" not in error.problem


@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_models_agree_with_onnx(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]]
) -> None:
    """Where the onnx package still reads a damaged file, both find the same data."""
    folder = tmp_path_factory.mktemp("damaged")
    onnx.save(model(["a", "b"]), folder / "m.onnx", save_as_external_data=True, location="d", size_threshold=0)
    data = bytearray((folder / "m.onnx").read_bytes())
    for where, value in changes:
        data[int(where * len(data))] = value
    (folder / "m.onnx").write_bytes(bytes(data))
    try:
        theirs = onnx.load(folder / "m.onnx", load_external_data=False)
    except Exception:
        return
    try:
        found = external_data(folder / "m.onnx")
    except UserError:
        return
    tensors = list(theirs.graph.initializer)
    want = {e.value for t in tensors for e in t.external_data if e.key == "location"}
    assert want <= set(found)
