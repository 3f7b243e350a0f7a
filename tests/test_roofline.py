from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import random_source
from conftest import Cli, two_lines

from u2export.benchmarks.roofline import (
    RATE,
    Chip,
    LayerWork,
    Work,
    bound,
    chips,
    count,
    estimate,
    of_network,
    reached,
    this_machine,
)
from u2export.errors import UserError, WrongValue

CONV = LayerWork("c", "Conv", 1000, 300, 100)


def test_bound_is_the_slower_of_both() -> None:
    work = Work((CONV, replace(CONV, name="d")), 50)
    fast = bound(work, Chip("", {"fp32": 4e6}, 1e12), "fp32")  # 4000 operations at 4 M per second
    assert fast.compute == fast.least == pytest.approx(1.0) and not fast.derived
    narrow = bound(work, Chip("", {"fp32": 1e15}, 1e6), "fp32")  # 200 weights and 50 ends of 4 bytes at 1 MB/s
    assert narrow.memory == narrow.least == pytest.approx(1.0)
    assert narrow.layers == pytest.approx(3.2)  # 800 values of 4 bytes
    mixed = bound(work, Chip("", {"fp32": 4e6}, 1e6), "fp32")
    assert mixed.layers == pytest.approx(3.2) and mixed.layers >= mixed.least


def test_derived_peaks_never_exceed_the_advertised_one() -> None:
    orin = Chip("", {"int8": 40e12}, 1.0)
    assert orin.peak("int8") == (40e12, False) and orin.peak("fp16") == (20e12, True)
    nano = Chip("", {"fp16": 0.472e12}, 1.0)
    assert nano.peak("fp32") == (0.236e12, True) and nano.peak("int8") == (0.472e12, True)


def test_unknown_bandwidth_leaves_the_compute_bound() -> None:
    only = bound(Work((CONV,), 1), Chip("", {"int8": 1e6}), "int8")
    assert only.least == only.compute == pytest.approx(2.0) and np.isnan(only.memory) and np.isnan(only.layers)


def test_devices_tell_their_sources() -> None:
    found = chips()
    assert {"jetson-nano", "jetson-tx2", "xavier-nx", "orin-nano", "orin-nx", "agx-orin", "thor"} <= found.keys()
    for chip in found.values():
        assert chip.source.startswith("https://") and chip.peaks.keys() <= RATE.keys() and len(chip.peaks) == 1
        assert chip.read.keys() == {*chip.peaks, *(["bandwidth"] if chip.bandwidth else [])}
        assert all(where == "unconfirmed" or where.startswith("https://") for where in chip.read.values())
        assert 1e11 < next(iter(chip.peaks.values())) < 1e16 and chip.bandwidth < 1e12


def test_this_machine_does_arithmetic() -> None:
    here = this_machine(seconds=0.01, side=256, mebibytes=16)
    assert 1e8 < here.peaks["fp32"] < 1e14 and 1e8 < here.bandwidth < 1e13


def graph(tmp_path: Path, dynamic: bool = False) -> Path:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    size = "side" if dynamic else 8
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, size, size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weights = [numpy_helper.from_array(np.zeros(shape, np.float32), name)
               for name, shape in (("w", (6, 2, 3, 3)), ("b", (6,)), ("t", (6, 3, 2, 2)), ("g", (16, 5)))]  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], group=2, pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("ConvTranspose", ["r", "t"], ["u"], strides=[2, 2]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("MaxPool", ["u"], ["y"], kernel_shape=[2, 2]),
    ]
    path = tmp_path / "m.onnx"
    made = helper.make_graph(nodes, "g", [x], [y], weights)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_counting(tmp_path: Path) -> None:
    work = count(graph(tmp_path))
    conv, transposed, flat, pool = work.layers
    assert conv.macs == 4 * 4 * 6 * 2 * 9 and conv.weights == 6 * 2 * 9 + 6  # two input channels per group
    assert conv.activations == 4 * 64 + 6 * 16 and conv.intensity(4) == 2 * conv.macs / (4 * (352 + 114))
    assert transposed.macs == 6 * 16 * 3 * 4 and pool.macs == flat.macs == 0 and pool.activations == 3 * 64 + 3 * 49
    assert work.ends == 4 * 64 + 3 * 49 and work.least_bytes(2) == 2 * (work.weights + work.ends)
    with pytest.raises(UserError, match="is not fixed"):
        count(graph(tmp_path, dynamic=True))
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="not an ONNX file"):
        count(tmp_path / "x.onnx")


def test_estimates_of_one_all_and_no_devices(tmp_path: Path) -> None:
    path = graph(tmp_path)
    (only,) = estimate(path, "orin-nano", "int8", local=False).bounds
    assert only.chip.name == "Jetson Orin Nano 8GB" and only.precision == "int8" and only.least > 0
    assert len(estimate(path, "all", local=False).bounds) == len(chips())
    nothing = estimate(path, "none", local=False)
    assert nothing.bounds == nothing.reached == () and nothing.to_json()["macs"] == count(path).macs
    with pytest.raises(WrongValue, match="no device 'abacus'"):
        estimate(path, "abacus")


@pytest.mark.slow
def test_u2net_agrees_with_pytorch_and_an_independent_count(tmp_path: Path, cli: Cli) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxsim")
    import onnx
    from torch.utils.flop_counter import FlopCounterMode

    from u2export.reference.onnx_export import Graph, to_onnx

    source = random_source()
    path = tmp_path / "u2netp.onnx"
    onnx.save(to_onnx(source.model, source.contract, Graph(), {}), path)
    work = count(path)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        source.model(torch.zeros(source.contract.shape))
    assert 2 * work.macs == counter.get_total_flops()
    assert sum(layer.kind == "Conv" for layer in work.layers) == 119
    done = cli("roofline", path, "--device", "orin-nano", "--no-local", "--layers", "3", "--json", tmp_path / "r.json")
    assert done.returncode == 0 and "not results" in done.stdout, done.stderr
    data = json.loads((tmp_path / "r.json").read_text())
    (only,) = data["bounds"]
    assert only["device"] == "Jetson Orin Nano 8GB" and only["derived"] and only["least_ms"] > 0
    two_lines(cli("roofline", path, "--device", "abacus"), "no device 'abacus'", code=2)


def test_share_of_the_peak(tmp_path: Path) -> None:
    from builders import mixed_report

    from u2export.exporters.artifact import Artifact
    from u2export.reference.image import Contract

    made = mixed_report()
    network = Artifact("onnx", "fp32", "u2netp", made.rows[0].weights, Contract(), tmp_path / "m.onnx")
    rows = of_network(made, network)
    assert [row.name for row in rows] == ["u2netp-320-pytorch-fp32", "u2netp-320-openvino-fp16.xml"]
    work, here = Work((replace(CONV, macs=10**9),), 1), Chip("", {"fp32": 1e11}, 1.0)
    first, _ = reached(work, here, rows)
    assert first.rate == pytest.approx(2e9 / 0.201, rel=1e-3) and first.share == pytest.approx(first.rate / 1e11)
    with pytest.raises(UserError, match="hold no times of"):
        of_network(made, replace(network, contract=Contract(64, 64)))


def test_the_work_of_the_shipped_int8_file_is_known() -> None:
    """Its head multiplies a constant matrix by an activation."""
    from u2export.exporters.ready import ready

    work = count(ready("u2netp-int8").path)
    head = [layer for layer in work.layers if layer.kind == "MatMul"]
    assert 19.5e9 < work.macs < 20.5e9 and len(head) == 6 and all(layer.macs > 0 for layer in head)
