from __future__ import annotations

import numpy as np
import pytest

from u2export.errors import UserError

pytest.importorskip("onnx")

from toy_unet import toy

from u2export.reference.onnx_graph import GraphView, conv_nodes, opset_of


def test_makers_and_readers() -> None:
    view = GraphView(toy())
    assert view.inputs == ["image"] and view.outputs == {"mask"} and view.sides == {"image": [32, 32]}
    conv = view.maker["in_sum"]
    assert [n.name for n in view.after(conv)] == ["/in/Relu"] and [n.name for n in view.sources(conv)] == []
    assert [n.op_type for n in view.readers["in"]] == ["MaxPool", "Concat", "Add"]
    assert view.made_by("in", "Relu") and not view.made_by("image", "Relu")
    assert view.fused("in_sum") and not view.fused("in") and not view.fused("out_sum")
    assert "both" in view.data and "in.weight" not in view.data
    assert view.after(view.maker["mask"]) == [] and "mask" not in view.readers


def test_constants() -> None:
    view = GraphView(toy())
    weight = view.array("in.weight")
    assert weight is not None and weight.shape == (16, 3, 3, 3)
    np.testing.assert_array_equal(view.constant("in.weight"), weight)
    assert view.array("in") is None
    with pytest.raises(KeyError):
        view.constant("in")


def test_nodes_by_name_or_expression() -> None:
    view = GraphView(toy())
    assert [n.name for n in view.matching("/in/Conv")] == ["/in/Conv"]
    assert [n.name for n in view.matching(".*/Conv")] == [n.name for n in conv_nodes(toy())]
    view.nodes[0].name = "a.c"  # a name that, read as an expression, would match another node too
    view.nodes[1].name = "abc"
    assert [n.name for n in view.matching("a.c")] == ["a.c"]
    with pytest.raises(UserError, match="no node is named or matched by '/conv'"):
        view.matching("/conv")
    with pytest.raises(UserError, match="neither a node nor a regular expression"):
        view.matching("(")


def test_opset() -> None:
    model = toy(opset=18)
    assert opset_of(model) == 18
    del model.opset_import[:]
    assert opset_of(model) == 0
