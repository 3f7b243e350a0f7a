from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from u2export.errors import UserError

torch = pytest.importorskip("torch")
pytest.importorskip("coremltools")

from torch.nn import functional as F  # noqa: E402

from u2export.exporters.coreml.evaluate import ARITHMETICS, Program, half, ranges  # noqa: E402
from u2export.exporters.coreml.package import COMPRESSED, Name, Package, _unpack, quiet  # noqa: E402

with quiet():
    import coremltools as ct
    import coremltools.optimize.coreml as cto

# All that a U²-Net is made of, once, on an odd size so that pooling and resizing are not whole factors.
SHAPE = (1, 3, 19, 26)


class Tiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.b = torch.nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.c = torch.nn.Conv2d(32, 16, 3, padding=1)
        self.d = torch.nn.Conv2d(16, 1, 1)

    def forward(self, x: Any) -> Any:
        x = x / x.amax((1, 2, 3), keepdim=True).clamp(1.0, 255.0)
        a = F.relu(self.a((x - 0.5) / 0.25))
        b = F.relu(self.b(F.max_pool2d(a, 2, stride=2, ceil_mode=True)))
        up = F.interpolate(b, size=SHAPE[2:], mode="bilinear", align_corners=False)
        c = F.relu(self.c(torch.cat((up, a), 1))) + a
        d = torch.sigmoid(self.d(c))
        low, high = d.amin((2, 3), keepdim=True), d.amax((2, 3), keepdim=True)
        return (d - low) / (high - low).clamp(1e-3, 1.0)


def sample(seed: int = 0, peak: float = 255.0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0, peak, SHAPE).round().astype(np.float32)


def converted(module: Any, target: str = "iOS16", precision: str = "FLOAT16", shape: Any = SHAPE) -> Any:
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(module.eval(), torch.from_numpy(sample()), check_trace=False)
        return ct.convert(
            traced,
            inputs=[ct.TensorType("x", shape=shape, dtype=np.float32)],
            outputs=[ct.TensorType("y", dtype=np.float32)],
            minimum_deployment_target=ct.target[target],
            compute_precision=ct.precision[precision],
            skip_model_load=True,
        )


def saved(model: Any, folder: Path) -> Package:
    path = folder / "model.mlpackage"
    with quiet():
        model.save(str(path))
    return Package(path)


def run(package: Package, x: NDArray[np.float32], arithmetic: str) -> NDArray[np.float32]:
    return Program(package, arithmetic).run({"x": x})["y"]


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return Tiny().eval()


@pytest.fixture(scope="module")
def fp16(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return saved(converted(tiny), tmp_path_factory.mktemp("fp16"))


@pytest.fixture(scope="module")
def w8a8(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """8-bit activations with measured ranges, and symmetric 8-bit weights."""
    from coremltools.optimize.coreml import _post_training_quantization as passes

    folder = tmp_path_factory.mktemp("w8a8")
    model = converted(tiny, "iOS17")
    found = ranges(Program(saved(model, folder)), [{"x": sample(i)} for i in range(3)])
    with pytest.MonkeyPatch.context() as patch, quiet():
        statistics = {name: {"rmin": low, "rmax": high} for name, (low, high) in found.items()}
        patch.setattr(passes, "_get_activation_calibration_stats", lambda *_: statistics)
        op = cto.OpLinearQuantizerConfig(mode="linear")
        model = cto.linear_quantize_activations(model, cto.OptimizationConfig(global_config=op), [])
        op = cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
        model = cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=op))
    return saved(model, folder)


# Against PyTorch


def test_fp32_is_pytorch_bit_for_bit(tmp_path: Path) -> None:
    class Plain(Tiny):
        """Without the division by a constant, which the converter makes a multiplication."""

        def forward(self, x: Any) -> Any:
            a = F.relu(self.a(x))
            b = F.relu(self.b(F.max_pool2d(a, 2, stride=2, ceil_mode=True)))
            up = F.interpolate(b, size=SHAPE[2:], mode="bilinear", align_corners=False)
            return torch.sigmoid(self.d(F.relu(self.c(torch.cat((up, a), 1))) + a))

    plain = Plain().eval()
    x = sample() / 255
    with torch.no_grad():
        expected = plain(torch.from_numpy(x)).numpy()
    assert np.array_equal(run(saved(converted(plain, precision="FLOAT32"), tmp_path), x, "fp32"), expected)


def test_fp16_rounds_and_accumulating_rounds_more(tiny: Tiny, fp16: Package) -> None:
    x = sample()
    with torch.no_grad():
        expected = tiny(torch.from_numpy(x)).numpy()
    errors = {a: float(np.abs(run(fp16, x, a) - expected).mean()) for a in ARITHMETICS}
    assert 0 < errors["fp32"] < errors["fp16"] < errors["fp16-accumulate"] < 0.02, errors


def test_accumulation_is_a_chain_of_fused_multiply_adds(tmp_path: Path) -> None:
    class One(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.conv = torch.nn.Conv2d(3, 2, 3, padding=2, dilation=2)

        def forward(self, x: Any) -> Any:
            return self.conv(x)

    one = One()
    x = (sample() / 255).astype(np.float16).astype(np.float32)
    got = run(saved(converted(one), tmp_path), x, "fp16-accumulate")
    weight, bias = (p.detach().numpy().astype(np.float16) for p in (one.conv.weight, one.conv.bias))
    padded = np.pad(x[0], ((0, 0), (2, 2), (2, 2)))
    total = np.zeros((2, *SHAPE[2:]), np.float16)
    for row in range(3):
        for column in range(3):
            for c in range(3):
                tap = padded[c, 2 * row :, 2 * column :][: SHAPE[2], : SHAPE[3]]
                product = weight[:, c, row, column, None, None].astype(np.float32) * tap
                total = (total.astype(np.float32) + product).astype(np.float16)
    expected = (total.astype(np.float32) + bias[:, None, None]).astype(np.float16)
    assert np.array_equal(got[0], expected.astype(np.float32))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_half_is_ieee(values: list[float]) -> None:
    x = np.array(values, np.float32)
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).astype(np.float32)
    assert np.array_equal(half(torch.from_numpy(x)).numpy(), expected)


# Against coremltools' own decompression

SMALL = {"weight_threshold": 0}
COMPRESSIONS: dict[str, tuple[str, Any]] = {
    "int8-ios16": ("iOS16", lambda: cto.OpLinearQuantizerConfig(mode="linear", **SMALL)),
    "int8-symmetric-ios16": ("iOS16", lambda: cto.OpLinearQuantizerConfig(mode="linear_symmetric", **SMALL)),
    "int8-per-tensor-ios16": ("iOS16", lambda: cto.OpLinearQuantizerConfig(granularity="per_tensor", **SMALL)),
    "int8-ios18": ("iOS18", lambda: cto.OpLinearQuantizerConfig(mode="linear", **SMALL)),
    "int4-blocks-ios18": (
        "iOS18",
        lambda: cto.OpLinearQuantizerConfig(dtype="int4", granularity="per_block", block_size=8, **SMALL),
    ),
    "uint4-ios18": ("iOS18", lambda: cto.OpLinearQuantizerConfig(mode="linear", dtype="uint4", **SMALL)),
    **{
        f"palette{bits}-{target}": (target, lambda bits=bits: cto.OpPalettizerConfig(nbits=bits, **SMALL))
        for bits in (8, 6, 4)
        for target in ("iOS16", "iOS18")
    },
    "palette6-groups-ios18": (
        "iOS18",
        lambda: cto.OpPalettizerConfig(nbits=6, granularity="per_grouped_channel", group_size=4, **SMALL),
    ),
}


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_decompression_agrees_with_coremltools(name: str, tiny: Tiny, tmp_path: Path) -> None:
    from coremltools.converters.mil.frontend.milproto import load

    target, config = COMPRESSIONS[name]
    compress = cto.palettize_weights if name.startswith("palette") else cto.linear_quantize_weights
    with quiet():
        model = compress(converted(tiny, target), cto.OptimizationConfig(global_config=config()))
    package = saved(model, tmp_path)
    program = Program(package, "fp16")
    weights = package.path / "Data" / "com.apple.CoreML" / "weights"
    loaded = load.load(package.spec, package.spec.specificationVersion, str(weights))
    oracle = {
        op.outputs[0].name: op.materialized_val_inference()
        for op in loaded.functions["main"].operations
        if op.op_type in COMPRESSED
    }
    assert set(program.compressed) == set(oracle)
    assert len(oracle) >= 2
    for weight, expected in oracle.items():
        # Both round a product of fp16 numbers to fp16, but not from the same intermediate precision.
        np.testing.assert_allclose(program.weight(weight).astype(np.float32), expected, rtol=2e-3, atol=1e-6)
    with torch.no_grad():
        truth = tiny(torch.from_numpy(sample())).numpy()
    error = np.abs(run(package, sample(), "fp16") - truth).mean()
    assert error < (0.2 if "4" in name else 0.05)


@given(st.sampled_from([1, 2, 3, 4, 6]), st.lists(st.integers(0, 63), min_size=1, max_size=40))
def test_unpacking_undoes_packing(bits: int, values: list[int]) -> None:
    codes = [v % (1 << bits) for v in values]
    whole = sum(code << i * bits for i, code in enumerate(codes))
    data = whole.to_bytes(-(-len(codes) * bits // 8), "little")
    assert _unpack(data, bits, [len(codes)]).tolist() == codes


def test_four_bit_integers_have_a_sign() -> None:
    assert _unpack(bytes([0x8F, 0x70]), 4, [4], signed=True).tolist() == [-1, -8, 0, 7]


# Against ONNX Runtime, by an independent lowering


def lowered(package: Package, rounded: bool) -> bytes:
    """The same program in ONNX; with `rounded`, every fp16 value goes through Cast to fp16 and back."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    program = Program(package, "fp32")  # for its decompressed weights only
    nodes: list[Any] = []
    constants: dict[str, Any] = {}

    def constant(value: Any, dtype: Any = np.float32) -> str:
        name = f"constant{len(constants)}"
        constants[name] = numpy_helper.from_array(np.asarray(value, dtype), name)
        return name

    def operand(argument: Any) -> str:
        if not isinstance(argument, Name):
            return constant(argument.value)
        return constant(program.weight(argument.name)) if argument.name in program.compressed else argument.name

    def emit(kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))

    same = {"relu": "Relu", "sigmoid": "Sigmoid", "add": "Add", "sub": "Sub", "mul": "Mul", "real_div": "Div"}
    codes: dict[str, Any] = {}  # 8-bit type of the tensors between quantize and dequantize
    for op in package.operations:
        a, raw = op.arguments, f"{op.name}_raw"
        value = {k: v.value for k, v in a.items() if hasattr(v, "value")}
        if op.kind in COMPRESSED:
            continue
        if op.kind in same:
            emit(same[op.kind], [operand(a[k]) for k in ("x", "y") if k in a], raw)
        elif op.kind == "cast":
            emit("Identity", [operand(a["x"])], raw)
        elif op.kind == "clip":
            emit("Clip", [operand(a["x"]), operand(a["alpha"]), operand(a["beta"])], raw)
        elif op.kind == "concat":
            emit("Concat", [operand(v) for v in a["values"]], raw, axis=int(value["axis"]))
        elif op.kind in ("reduce_max", "reduce_min"):
            axes = constant(value["axes"], np.int64)
            emit("ReduceMax" if op.kind == "reduce_max" else "ReduceMin", [operand(a["x"]), axes], raw)
        elif op.kind == "max_pool":
            sizes = {"kernel_shape": value["kernel_sizes"].tolist(), "strides": value["strides"].tolist()}
            emit("MaxPool", [operand(a["x"])], raw, ceil_mode=1, **sizes)
        elif op.kind == "upsample_bilinear":
            sizes = constant(op.type.shape, np.int64)
            emit("Resize", [operand(a["x"]), "", "", sizes], raw, mode="linear")
        elif op.kind == "conv":
            top, bottom, left, right = value["pad"].tolist() if value["pad_type"] == "custom" else (0, 0, 0, 0)
            inputs = [operand(a[k]) for k in ("x", "weight", "bias")]
            emit("Conv", inputs, raw, pads=[top, left, bottom, right], dilations=value["dilations"].tolist())
        elif op.kind in ("quantize", "dequantize"):
            signed = codes.get(a["input"].name) if op.kind == "dequantize" else value["output_dtype"] == "int8"
            zero = constant(value.get("zero_point", 0), np.int8 if signed else np.uint8)
            if op.kind == "quantize":
                codes[op.name] = signed
                emit("QuantizeLinear", [operand(a["input"]), constant(value["scale"]), zero], op.name)
                continue
            emit("DequantizeLinear", [a["input"].name, constant(value["scale"]), zero], raw)
        else:
            raise AssertionError(op.kind)
        if rounded and op.type.scalar == "FLOAT16":
            emit("Cast", [raw], f"{raw}16", to=onnx.TensorProto.FLOAT16)
            emit("Cast", [f"{raw}16"], op.name, to=onnx.TensorProto.FLOAT)
        else:
            emit("Identity", [raw], op.name)
    ports = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "lowered", ports[:1], ports[1:], list(constants.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def in_onnx_runtime(package: Package, x: NDArray[np.float32], rounded: bool) -> NDArray[np.float32]:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(lowered(package, rounded), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x})[0])


def test_agrees_with_onnx_runtime(fp16: Package) -> None:
    for seed in (0, 1):
        x = sample(seed)
        assert np.abs(run(fp16, x, "fp32") - in_onnx_runtime(fp16, x, rounded=False)).max() < 1e-5
        # A sum in another order may round to the neighbouring fp16 number, here and there.
        difference = np.abs(run(fp16, x, "fp16") - in_onnx_runtime(fp16, x, rounded=True))
        assert difference.max() < 4e-3
        assert difference.mean() < 2e-4


def test_eight_bit_activations_agree_with_onnx_runtime(tiny: Tiny, w8a8: Package) -> None:
    counts = w8a8.counts()
    assert counts["quantize"] >= 4
    assert counts["dequantize"] >= 4
    assert all(layer.activation == "int8" for layer in w8a8.layers()), w8a8.layers()
    x = sample(1)
    with torch.no_grad():
        truth = tiny(torch.from_numpy(x)).numpy()
    got, other = run(w8a8, x, "fp32"), in_onnx_runtime(w8a8, x, rounded=False)
    assert np.abs(got - other).mean() < 2e-3  # a code on the edge may fall to either side
    assert 1e-4 < np.abs(got - truth).mean() < 0.05


# Ranges


def test_ranges_are_of_all_samples_not_of_the_last(fp16: Package) -> None:
    program = Program(fp16)
    found = ranges(program, [{"x": sample(0)}, {"x": sample(1, peak=3.0)}])
    alone = ranges(program, [{"x": sample(1, peak=3.0)}])
    assert found["x"] == (0.0, 255.0)
    assert alone["x"][1] == 3.0
    assert set(found) == {"x", *(op.name for op in fp16.operations)}
    assert all(found[k][0] <= alone[k][0] and found[k][1] >= alone[k][1] for k in alone)


# What is refused


def test_unknown_operations_are_named(tmp_path: Path) -> None:
    class Strange(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.tanh(torch.exp(x))

    with pytest.raises(UserError, match="exp, tanh"):
        Program(saved(converted(Strange()), tmp_path))


def test_other_input_shapes_are_refused(fp16: Package) -> None:
    with pytest.raises(UserError, match=r"takes x of shape \(1, 3, 19, 26\), got \(1, 3, 19, 27\)"):
        Program(fp16).run({"x": np.zeros((1, 3, 19, 27), np.float32)})
    with pytest.raises(UserError, match="got nothing"):
        Program(fp16).run({})


def test_unknown_arithmetic_is_refused(fp16: Package) -> None:
    with pytest.raises(UserError, match="no arithmetic named 'int3'"):
        Program(fp16, "int3")


@pytest.fixture
def copy(fp16: Package, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(fp16.path, tmp_path / "copy.mlpackage"))


def test_a_declared_shape_that_is_not_computed_is_an_error(copy: Path) -> None:
    package = Package(copy)
    conv = next(op for op in package.block.operations if op.type == "conv")
    conv.outputs[0].type.tensorType.dimensions[1].constant.size = 17
    model = copy / "Data" / "com.apple.CoreML" / "model.mlmodel"
    model.chmod(0o644)
    model.write_bytes(package.spec.SerializeToString())
    with pytest.raises(UserError, match=r"\(conv\) is declared \(1, 17, 19, 26\), computed was \(1, 16, 19, 26\)"):
        run(Package(copy), sample(), "fp16")


def test_a_cut_weight_file_is_refused(copy: Path) -> None:
    weights = copy / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"weight\.bin ends before .*, or is damaged"):
        Program(Package(copy))


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"rootModelIdentifier": "x", "itemInfoEntries": {}})])
def test_a_damaged_manifest_is_refused(copy: Path, text: str) -> None:
    (copy / "Manifest.json").write_text(text)
    with pytest.raises(UserError, match="not a Core ML package"):
        Package(copy)


def test_a_damaged_program_is_refused(copy: Path) -> None:
    model = copy / "Data" / "com.apple.CoreML" / "model.mlmodel"
    model.chmod(0o644)
    model.write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="not a Core ML package"):
        Package(copy)


def test_no_package_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a Core ML package"):
        Package(tmp_path / "none.mlpackage")
