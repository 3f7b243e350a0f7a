from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from u2export.errors import UserError
from u2export.reference import weights

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from u2export.reference.model import U2Net  # noqa: E402
from u2export.reference.onnx_weights import read_onnx_weights, verify  # noqa: E402


@pytest.fixture(scope="module")
def network() -> U2Net:
    """Random weights whose batch norms do something: the folded and the unfolded network differ widely."""
    model = weights.load("random-u2netp")[1]
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
                module.bias.copy_(0.2 * torch.randn(module.bias.shape, generator=generator))
    return model.eval()


def export(network: Any, path: Path, size: int = 64, **options: Any) -> Any:
    x = torch.zeros(1, 3, size, size)
    options = {"dynamo": False, "opset_version": 17, "input_names": ["x"], **options}
    # torch.onnx.export puts the mode of the outermost module back on all of its modules: a wrapper in training mode
    # would leave the shared network in training mode.
    torch.onnx.export(network.eval(), (x,), str(path), **options)
    return onnx.load(path)


def rebuilt(path: Path) -> U2Net:
    made = weights.build(read_onnx_weights(path, onnx.load(path)))
    verify(path, ort.InferenceSession(path), made)
    return made


class Logits(torch.nn.Module):
    """The network without its sigmoids, d0 last."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Any) -> Any:
        return tuple(torch.logit(y, 1e-6) for y in reversed(self.network(x)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["folded", "apart", "unfolded constants", "dynamo"])
def test_batch_norms_are_read_wherever_they_stand(tmp_path: Path, network: U2Net, how: str) -> None:
    path = tmp_path / "w.onnx"
    if how == "folded":
        export(network, path)
    elif how == "apart":
        export(network, path, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False)
        assert any(n.op_type == "BatchNormalization" for n in onnx.load(path).graph.node)
    elif how == "unfolded constants":
        export(network, path, do_constant_folding=False, keep_initializers_as_inputs=True)
    else:
        pytest.importorskip("onnxscript")
        export(network, path, dynamo=True, optimize=False, external_data=False, opset_version=18)
    made = rebuilt(path)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert (made(x)[0] - network(x)[0]).abs().max() < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_logits_and_d0_at_any_place_are_recognised(tmp_path: Path, network: U2Net) -> None:
    export(Logits(network), tmp_path / "logits.onnx")
    rebuilt(tmp_path / "logits.onnx")


@pytest.mark.filterwarnings("ignore")
def test_training_mode_is_refused(tmp_path: Path, network: U2Net) -> None:
    model = export(network, tmp_path / "w.onnx", training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False)
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            kept = [a for a in node.attribute if a.name != "training_mode"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("training_mode", 1)])
    with pytest.raises(UserError, match="training mode"):
        read_onnx_weights(tmp_path / "w.onnx", model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", ["a bias", "an activation", "a swap", "no d0"])
def test_a_graph_that_computes_something_else_is_refused(tmp_path: Path, network: U2Net, fault: str) -> None:
    path = tmp_path / "w.onnx"
    model = export(network, path)
    nodes = model.graph.node
    if fault == "a bias":  # outside the convolutions, where a reader of weights does not look
        at = next(i for i, n in enumerate(nodes) if n.op_type == "Relu")
        name = nodes[at].output[0]
        nodes[at].output[0] = "before"
        shift = onnx.helper.make_tensor("shift", onnx.TensorProto.FLOAT, (1,), [0.5])
        model.graph.initializer.append(shift)
        nodes.insert(at + 1, onnx.helper.make_node("Add", ["before", "shift"], [name]))
    elif fault == "an activation":
        next(n for n in nodes if n.op_type == "Relu").op_type = "Sigmoid"
    elif fault == "a swap":
        relus = [n for n in nodes if n.op_type == "MaxPool"]
        relus[0].attribute.extend([])
        concat = [n for n in nodes if n.op_type == "Concat"][-1]
        concat.input[0], concat.input[1] = concat.input[1], concat.input[0]
    else:
        del model.graph.output[0]
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"gives other maps: output \d differs by|d0 is not among"):
        rebuilt(path)
