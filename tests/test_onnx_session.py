from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from u2export.errors import UserError
from u2export.exporters.inspection import inspect
from u2export.reference.onnx_file import check_onnx, read_onnx
from u2export.reference.onnx_session import open_graph, open_session, profiled, run, timed_session, write_ort_format

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

X = np.ones((1, 3, 32, 48), np.float32)


def test_a_file_a_graph_and_the_runtimes_own_format_agree(tiny: Callable[[str, float], Path], tmp_path: Path) -> None:
    path = tiny("first.onnx", 1.0)
    write_ort_format(read_onnx(path), tmp_path / "first.ort")
    sessions = [open_session(path), open_session(path, threads=1, optimise=False), open_graph(read_onnx(path))]
    want, *others = (s.run(None, {"image": X})[0] for s in (*sessions, open_session(tmp_path / "first.ort")))
    for got in others:
        np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("name", [b"image", b"mask"])
def test_names_that_are_not_utf8_are_refused(tiny: Callable[[str, float], Path], tmp_path: Path, name: bytes) -> None:
    """Found by the study `fuzz`: ONNX Runtime opens such a file, and fails when somebody asks for the name."""
    path = tmp_path / "first.ort"
    write_ort_format(read_onnx(tiny("first.onnx", 1.0)), path)
    data = path.read_bytes()
    assert name in data
    path.write_bytes(data.replace(name, b"\xff" + name[1:]))
    with pytest.raises(UserError, match=r"first\.ort: .* not UTF-8"):
        open_session(path)
    with pytest.raises(UserError, match=r"first\.ort: .* not UTF-8"):
        inspect(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not an ONNX file"),
        (b"noise", "not an ONNX file"),
        (b"\x08\x07", r"damaged ONNX file \(it holds no graph"),
    ],
)
def test_what_is_no_onnx_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=problem):
        read_onnx(path)
    with pytest.raises(UserError, match=r"ONNX Runtime .* cannot open"):
        open_session(path)
    with pytest.raises(UserError, match="no such file"):
        read_onnx(tmp_path / "none.onnx")
    with pytest.raises(UserError, match="not an ONNX file"):
        read_onnx(tmp_path)


def test_weights_that_lie_in_another_file(tiny: Callable[[str, float], Path], tmp_path: Path) -> None:
    path, model = tmp_path / "apart.onnx", read_onnx(tiny("first.onnx", 1.0))
    weight = model.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, path, save_as_external_data=True, location="apart.bin", size_threshold=0)
    assert read_onnx(path).graph.initializer[0].raw_data
    (tmp_path / "apart.bin").unlink()
    with pytest.raises(UserError, match=r"external data apart\.bin is missing"):
        read_onnx(path)


def test_an_invalid_graph_is_named(tiny: Callable[[str, float], Path]) -> None:
    model = read_onnx(tiny("first.onnx", 1.0), shapes=True)
    assert [v.name for v in model.graph.value_info] == ["sum"]
    check_onnx(model, "it", "", full=True)
    model.graph.node[0].op_type = "Convolve"
    with pytest.raises(UserError, match="it is not valid ONNX: No Op registered for Convolve"):
        check_onnx(model, "it", "")


def test_profiles(tiny: Callable[[str, float], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny("first.onnx", 1.0)
    events = profiled(read_onnx(path), X, runs=3)
    kernels = [e for e in events if e.get("cat") == "Node" and str(e["name"]).endswith("_kernel_time")]
    assert len(kernels) >= 3 and all(e["dur"] >= 0 for e in kernels)

    def unreadable(text: str) -> None:
        raise json.JSONDecodeError("cut short", text, 0)

    monkeypatch.setattr("u2export.reference.onnx_session.json.loads", unreadable)
    session, opening = timed_session(path, "CPUExecutionProvider", 1)
    assert opening == {} and session.run(None, {"image": X})


def test_tensors_inside(tiny: Callable[[str, float], Path]) -> None:
    model = read_onnx(tiny("first.onnx", 1.0))
    found = [values[0].item(0) for values in run(model, [X, 2 * X], ["mask"])]
    assert found == pytest.approx([1 / (1 + np.exp(-1.25)), 1 / (1 + np.exp(-2.5))])
    with pytest.raises(UserError, match="no photos"):
        list(run(model, [], ["mask"]))


def test_onnx_runtime_writes_no_telemetry(tmp_path: Path) -> None:
    code = "import u2export, onnxruntime; print(onnxruntime.__version__)"
    env = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    env |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, timeout=120)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
