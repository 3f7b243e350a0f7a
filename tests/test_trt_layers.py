from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from u2export.errors import UserError
from u2export.exporters.trt.layer_table import LayerTable, is_table, parse, read
from u2export.exporters.trt.precision_check import Comparison

# As TensorRT-RTX 1.7.1 logs it: a half convolution with its padding helper, an int8 one with its requantise kernel.
TEXT = """Layers:
Name: __myl_CastConc_myl0_0, LayerType: kgen, Inputs: [ { Name: image, Dimensions: [1,3,64,64], Strides: [12288,4096,64,1], StrideOrder: [3,2,1,0], Datatype: Float, Format: (Linear) Row major linear format }], Constants: [ { Name: pad, Dimensions: [1,1,64,64], Datatype: Half, Format: (NHWC) Channel major format }], Outputs: [ { Name: padded, Dimensions: [1,4,64,64], Datatype: Half, Format: (NHWC) Channel major format }], TacticName: __myl_CastConc_0x9b, StreamId: 0, Metadata: [ONNX Layer: image/Cast_half][ONNX Layer: /a/Conv][ONNX Layer: /a/Relu]
Name: /a/Conv_myl0_1, LayerType: correlation, Inputs: [ { Name: padded, Dimensions: [1,4,64,64], Datatype: Half, Format: (NHWC) Channel major format }], Constants: [ { Name: w, Dimensions: [16,4,3,3], Datatype: Half, Format: (NHWC) Channel major format }], Outputs: [ { Name: y, Dimensions: [1,16,64,64], Datatype: Half, Format: (NHWC) Channel major format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: /a/Conv][ONNX Layer: /a/Relu]
Name: __mye_wait, LayerType: wait, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 1, Metadata:
Name: /b/Conv_myl0_2, LayerType: correlation, Inputs: [ { Name: q, Dimensions: [1,16,64,64], Datatype: Int8, Format: (NHWC) Channel major format }], Constants: [], Outputs: [ { Name: z, Dimensions: [1,16,64,64], Datatype: Float, Format: (NHWC) Channel major format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: /b/Conv]
Name: __myl_MulAddRelu_myl0_3, LayerType: kgen, Inputs: [ { Name: z, Dimensions: [1,16,64,64], Datatype: Float, Format: (NHWC) Channel major format }], Constants: [], Outputs: [ { Name: out, Dimensions: [1,16,64,64], Datatype: Int8, Format: (NHWC) Channel major format }], TacticName: __myl_MulAddRelu, StreamId: 0, Metadata: [ONNX Layer: /b/Conv][ONNX Layer: /b/Relu]
"""  # noqa: E501


def tensor(name: str, shape: list[int], kind: str) -> dict[str, Any]:
    return {"Name": name, "Location": "Device", "Dimensions": shape, "Format/Datatype": kind}


VECTORS = "wide channel vectorized row major Int8 format"
JSON_8: dict[str, Any] = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to /a/Conv + /a/Relu", "LayerType": "Reformat",
            "Inputs": [tensor("image", [1, 3, 64, 64], "Row major linear FP32")],
            "Outputs": [tensor("r", [1, 3, 64, 64], f"Four {VECTORS}")],
            "ParameterType": "Reformat", "Origin": "REFORMAT", "TacticValue": "0x0", "StreamId": 0, "Metadata": "",
        },
        {
            "Name": "a.weight + QuantizeLinear_2 + /a/Conv + /a/Relu", "LayerType": "CaskConvolution",
            "Inputs": [tensor("r", [1, 3, 64, 64], f"Four {VECTORS}")],
            "Outputs": [tensor("y", [1, 16, 64, 64], f"Thirty-two {VECTORS}")],
            "ParameterType": "Convolution", "Weights": {"Type": "Int8", "Count": 432},
            "Bias": {"Type": "Float", "Count": 16},
            "Activation": "RELU", "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32",
        },
        {
            "Name": "/b/Conv", "LayerType": "CaskConvolution",
            "Inputs": [tensor("y", [-1, 16, 64, 64], "N/A due to dynamic shapes")],
            "Outputs": [tensor("mask", [-1, 1, 64, 64], "N/A due to dynamic shapes")],
            "ParameterType": "Convolution", "Weights": {"Type": "Half", "Count": 144}, "TacticName": "sm80_xmma_fprop",
        },
    ],
    "Bindings": ["image", "mask"],
}  # fmt: skip

JSON_11 = {
    "Layers": [
        {
            "Name": "/a/Conv_myl0_1", "LayerType": "correlation",
            "Inputs": [{"Name": "x", "Dimensions": [1, 16, 8, 8], "Datatype": "Half", "Format": "Channel major"}],
            "Outputs": [{"Name": "y", "Dimensions": [1, 16, 8, 8], "Datatype": "Half", "Format": "Channel major"}],
            "TacticName": "sm80_xmma_fprop", "StreamId": 0,
            "Metadata": "[ONNX Layer: /a/Conv]\u001e[ONNX Layer: /a/Relu]",
        }
    ],
    "I/O Tensors": [{"Name": "image", "IOMode": "INPUT", "DataType": "FLOAT", "Dimensions": [1, 3, 8, 8]}],
}  # fmt: skip


def test_text_table() -> None:
    table = parse(TEXT)
    assert dict(table.kinds) == {"kgen": 2, "correlation": 2, "wait": 1}
    assert table.precisions({"/a/Conv": "", "/b/Conv": "", "/c/Conv": ""}) == {
        "/a/Conv": "fp16", "/b/Conv": "int8", "/c/Conv": "",
    }  # fmt: skip
    pixels = 64 * 64
    expected = pixels * ((3 * 4 + 4 * 2) + (4 * 2 + 16 * 2) + (16 + 16 * 4) + (16 * 4 + 16))
    assert table.traffic == expected
    assert list(table.convolutions) == ["/a/Conv", "/b/Conv"]
    conv = table.convolutions["/a/Conv"]
    assert conv.nodes == ("/a/Conv", "/a/Relu") and conv.constants[0].shape == (16, 4, 3, 3)


def test_text_table_within_a_log() -> None:
    prefix = "[11/22/2026-20:59:31] [V] [TRT] "
    logged = "".join(f"{prefix}{line}\n" for line in ("Parsing", *TEXT.splitlines(), "Engine generated"))
    assert parse(logged) == parse(TEXT)


def test_json_of_8_with_merged_names_and_dynamic_shapes() -> None:
    table = parse(json.dumps(JSON_8))
    assert table.precisions({"/a/Conv": "", "/b/Conv": ""}) == {"/a/Conv": "int8", "/b/Conv": "fp16"}
    assert table.bindings == ("image", "mask")
    assert table.traffic == 64 * 64 * (3 * 4 + 3 + 3 + 16)


def test_json_of_11() -> None:
    table = parse(json.dumps(JSON_11))
    assert table.precisions({"/a/Conv": ""}) == {"/a/Conv": "fp16"} and table.bindings == ("image",)
    assert table.layers[0].nodes == ("/a/Conv", "/a/Relu")


def test_what_tensorrt_does_not_open_is_hidden_not_lost() -> None:
    node = {"Name": "{ForeignNode[/a/Conv.../z/Sigmoid]}", "LayerType": "Myelin", "Inputs": [], "Outputs": []}
    wanted = {"/a/Conv": "int8", "/b/Conv": "int8"}
    opaque = parse(json.dumps({"Layers": [node]})).precisions(wanted)
    assert set(opaque.values()) == {"hidden"} and Comparison(wanted, opaque).changed == {}
    lost = parse(json.dumps(JSON_11)).precisions({"/b/Conv": "int8"})
    assert Comparison({"/b/Conv": "int8"}, lost).changed == {"/b/Conv": ("int8", "")}


@pytest.mark.parametrize(
    ("text", "reason"),
    [("no table here", "no layer table"), ("{}", "no layer table"), ('{"Layers": []}', "empty"),
     ('{"Layers": ["conv1"]}', "names only"), ('{"Layers": [{"LayerType": "x"}]}', "another form"),
     ('{"Layers": [{"Name": "x", "Inputs": [{"Dimensions": ["a"]}]}]}', "another form"), ("{broken", "no layer table")],
)  # fmt: skip
def test_what_is_no_table(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        read(path)
    assert str(path) in caught.value.problem and caught.value.hint


@given(st.text(alphabet="Name: LayerTypeInputs[{}],\n", max_size=300))
def test_any_text_is_a_table_or_a_clean_refusal(text: str) -> None:
    try:
        assert isinstance(parse(text), LayerTable)
    except UserError as error:
        assert error.hint


def test_records_and_tables_are_told_apart(tmp_path: Path) -> None:
    table, record = tmp_path / "l.json", tmp_path / "r.json"
    table.write_text(json.dumps(JSON_8))
    record.write_text('{"schema": 1, "exporter": "trt"}')
    assert is_table(table) and not is_table(record) and not is_table(tmp_path / "gone.json")


def changed(weak: bool = False, islands: tuple[str, ...] = (), **pairs: tuple[str, str]) -> dict[str, Any]:
    wanted, got = ({n: pair[i] for n, pair in pairs.items()} for i in (0, 1))
    return Comparison(wanted, got, weak, islands).changed


def test_strong_typing_allows_no_change() -> None:
    assert changed(a=("int8", "int8"), b=("fp16", "fp16")) == {}
    for pair in (("int8", "fp16"), ("fp16", "fp32"), ("fp32", "fp16"), ("fp16", "")):
        assert changed(a=pair, b=("fp16", "fp16")) == {"a": pair}


def test_weak_typing_may_choose_between_floats_only() -> None:
    assert changed(True, a=("fp16", "fp32"), b=("fp16", "fp16")) == {}
    assert changed(True, a=("fp16", "fp32"), b=("fp16", "fp32")) == {"a": ("fp16", "fp32"), "b": ("fp16", "fp32")}
    assert changed(True, a=("fp32", "fp16"), b=("int8", "int8")) == {}
    assert changed(True, a=("int8", "fp16"), b=("int8", "int8")) == {"a": ("int8", "fp16")}
    assert changed(True, ("a",), a=("fp32", "fp16"), b=("int8", "int8")) == {"a": ("fp32", "fp16")}
    assert changed(True, a=("fp32", "fp16")) == {"a": ("fp32", "fp16")}
