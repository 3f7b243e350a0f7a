from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Cli, two_lines

from u2export.reference.image import Contract

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxsim")

from u2export.calibration.condition import condition, fold_batch_norm  # noqa: E402
from u2export.calibration.dataset import Calibration  # noqa: E402
from u2export.calibration.weak_layers import LayerDamage, rounded, weak_layers, weak_layers_of_graph  # noqa: E402
from u2export.reference import weights  # noqa: E402
from u2export.reference.onnx_export import Graph, to_onnx  # noqa: E402

SMALL = Contract(96, 96)
WORST = "stage2d.rebnconv1d.conv_s1"


@pytest.fixture(scope="module")
def published(u2netp: Path) -> Any:
    return weights.load("u2netp")[1]


@pytest.fixture(scope="module")
def photos() -> list[Any]:
    return list(Calibration.bundled(SMALL).subset(4))


def by_name(found: Any) -> dict[str, LayerDamage]:
    return {layer.name: layer for layer in found.layers}


def test_weights_alone_name_the_layer_that_breaks_u2netp(published: Any) -> None:
    found = weak_layers(published)
    assert len(found.layers) == 119 and found.inputs == 0 and not found.near_constant
    first, second = found.layers[:2]
    assert (first.name, first.index) == (WORST, 97) and first.bias == pytest.approx(1361.25, abs=0.1)
    assert first.error8 > 10 * second.error8 and second.name == "stage1d.rebnconv2d.conv_s1"
    assert any("bias" in problem for problem in first.problems)
    assert sum(bool(layer.problems) for layer in found.layers) < 6


def test_onnx_says_the_same(u2netp: Path, published: Any) -> None:
    a, b = weak_layers(published), weak_layers_of_graph(onnx.load(u2netp))
    assert [layer.index for layer in a.layers[:10]] == [layer.index for layer in b.layers[:10]]
    assert a.layers[0].error8 == pytest.approx(b.layers[0].error8, rel=1e-4)


def test_photos_show_the_same_layer_and_its_channel(published: Any, photos: list[Any]) -> None:
    found = weak_layers(published, photos)
    assert found.inputs == len(photos) and found.layers[0].name == WORST
    worst = found.layers[0]
    assert worst.weights_sqnr is not None and worst.weights_sqnr < 0
    channel = found.near_constant[0]
    assert (channel.producer, channel.channel, channel.obstacle) == ("stage2d.rebnconv2d.conv_s1", 14, "")
    graph = weak_layers_of_graph(to_onnx(fold_batch_norm(published), SMALL, Graph(), {}), photos)
    assert [layer.index for layer in graph.layers[:5]] == [layer.index for layer in found.layers[:5]]


def test_conditioning_cures_the_weak_layers(published: Any, photos: list[Any]) -> None:
    made, _ = condition(published, photos)
    before, after = by_name(weak_layers(published, photos))[WORST], by_name(weak_layers(made, photos))[WORST]
    assert before.weights_sqnr is not None and after.weights_sqnr is not None
    assert after.weights_sqnr > before.weights_sqnr + 15
    assert after.bias < before.bias / 10 and after.error16 < before.error16 / 10


def test_predicted_error_is_the_one_measured(published: Any, photos: list[Any]) -> None:
    """On every layer whose map is 24 pixels or more; on smaller ones many taps read padding, which is not modelled."""
    found, model = by_name(weak_layers(published, photos)), fold_batch_norm(published)
    noise: dict[str, list[Any]] = {}
    signal: dict[str, list[Any]] = {}

    def hook(name: str) -> Any:
        def measure(conv: Any, read: Any, written: Any) -> None:
            if written.shape[2] >= 24:
                weight = torch.from_numpy(rounded(conv.weight.double().numpy())).float()
                noisy = torch.nn.functional.conv2d(read[0], weight, conv.bias, 1, conv.padding, conv.dilation)
                noise.setdefault(name, []).append((noisy - written).double().numpy())
                signal.setdefault(name, []).append(written.double().numpy().copy())

        return measure

    with torch.no_grad():
        for name in found:
            model.get_submodule(name).register_forward_hook(hook(name))
        for x in photos:
            model(torch.from_numpy(x))
    assert len(noise) > 30
    off = {}
    for name in noise:
        y, e = np.concatenate(signal[name]), np.concatenate(noise[name])
        live = y.max((0, 2, 3)) > 0
        measured = 10 * np.log10(y[:, live].var((0, 2, 3)).sum() / (e[:, live] ** 2).mean((0, 2, 3)).sum())
        predicted = found[name].weights_sqnr
        assert predicted is not None
        off[name] = predicted - measured
    assert max(map(abs, off.values())) < 3, sorted(off.items(), key=lambda item: abs(item[1]))[-5:]
    assert np.sqrt(np.mean(np.square(list(off.values())))) < 1.5


def test_fp16_and_dead_channels_are_counted() -> None:
    model = fold_batch_norm(weights.load("random-u2netp")[1])
    name = "stage3.rebnconv2.conv_s1"
    assert not by_name(weak_layers(model))[name].problems
    conv = model.get_submodule(name)
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] = 1e5
        conv.weight[1], conv.bias[1] = 0, -1
        conv.weight[2] = 1e-6
    layer = by_name(weak_layers(model))[name]
    assert (layer.overflow, layer.dead) == (1, 1) and layer.subnormal >= 1 / 16
    assert any("overflow" in problem for problem in layer.problems)


def test_command(cli: Cli, u2netp: Path, tmp_path: Path) -> None:
    result = cli("lint", "u2netp", "--top", "2")
    assert result.returncode == 0, result.stderr
    assert " 97 " in result.stdout and "1361" in result.stdout
    result = cli("lint", u2netp, "--json")
    data = json.loads(result.stdout)
    assert data["layers"][0]["index"] == 97 and data["layers"][0]["problems"] and len(data["layers"]) == 119
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    two_lines(cli("lint", broken), "not an ONNX file")
    two_lines(cli("lint", tmp_path / "none.onnx"), "no such file")
    two_lines(cli("lint", "nothing"), "no weights")
