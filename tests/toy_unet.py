"""A U-shaped network of four convolutions in ONNX, with what TensorRT's rules are about: enough to test them on."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, shape_inference

SIDE, WIDTH = 32, 16
SHAPE = (1, 3, SIDE, SIDE)
CONVS = ("/in/Conv", "/down/Conv", "/up/Conv", "/out/Conv")


def photos(count: int = 2) -> list[Any]:
    """Network inputs."""
    return [np.random.default_rng(i).normal(size=SHAPE).astype(np.float32) for i in range(count)]


def toy(batch: int | str = 1, opset: int = 17) -> Any:
    """in -> pool -> down -> resize, concatenated with in -> up, plus in -> out, sigmoid; `batch` may be a free axis."""
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {"sizes": np.array([1, WIDTH, SIDE, SIDE], np.int64), "twice": np.float32([1, 1, 2, 2])}
    nodes = []

    def conv(name: str, source: str, inputs: int, outputs: int = WIDTH) -> str:
        constants[f"{name}.weight"] = rng.normal(0, 0.1, (outputs, inputs, 3, 3)).astype(np.float32)
        constants[f"{name}.bias"] = rng.normal(0, 0.1, outputs).astype(np.float32)
        names = [source, f"{name}.weight", f"{name}.bias"]
        nodes.append(helper.make_node("Conv", names, [f"{name}_sum"], f"/{name}/Conv", pads=[1, 1, 1, 1]))
        return f"{name}_sum"

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], f"/{output}/{op}", **attributes))
        return output

    top = node("Relu", [conv("in", "image", 3)], "in")
    pooled = node("MaxPool", [top], "pool", kernel_shape=[2, 2], strides=[2, 2])
    down = node("Relu", [conv("down", pooled, WIDTH)], "down")
    to = ["", "", "sizes"] if batch == 1 else ["", "twice"]
    wide = node("Resize", [down, *to], "wide", mode="linear", coordinate_transformation_mode="pytorch_half_pixel")
    up = node("Relu", [conv("up", node("Concat", [wide, top], "both", axis=1), 2 * WIDTH)], "up")
    node("Sigmoid", [conv("out", node("Add", [up, top], "sum"), WIDTH, 1)], "mask")
    used = {name for n in nodes for name in n.input}
    entry = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, *SHAPE[1:]])
    end = helper.make_tensor_value_info("mask", TensorProto.FLOAT, [batch, 1, SIDE, SIDE])
    stored = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items() if n in used]
    graph = helper.make_graph(nodes, "toy", [entry], [end], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    checker.check_model(model, full_check=True)
    return shape_inference.infer_shapes(model)
