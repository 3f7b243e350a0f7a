from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from u2export.errors import UserError  # noqa: E402
from u2export.reference.model import VARIANTS, U2Net, Variant, Width, conv_names, recognise  # noqa: E402


def shapes(model: U2Net) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


@pytest.mark.parametrize(("variant", "parameters"), [("u2net", 44_009_869), ("u2netp", 1_131_181)])
def test_parameters_and_names_are_the_published_ones(variant: str, parameters: int) -> None:
    with torch.device("meta"):
        model = U2Net(variant)
    assert sum(p.numel() for p in model.parameters()) == parameters
    names = list(model.state_dict())
    assert len(names) == 798
    assert "stage1.rebnconvin.conv_s1.weight" in names and names[-1] == "outconv.bias"
    assert {"side6.bias", "stage5d.rebnconv1d.bn_s1.running_var", "stage1d.rebnconv6d.conv_s1.bias"} <= set(names)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (53, 37), (1, 1), (33, 96), (2, 65)])
def test_any_height_and_width(height: int, width: int) -> None:
    model = U2Net("u2netp").eval()
    with torch.no_grad():
        maps = model(torch.rand(2, 3, height, width))
    assert len(maps) == 7
    assert all(m.shape == (2, 1, height, width) for m in maps)
    assert all(float(m.min()) >= 0 and float(m.max()) <= 1 for m in maps)


def test_any_channels() -> None:
    model = U2Net("u2netp", in_channels=4, out_channels=5).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 4, 32, 32))[0].shape == (1, 5, 32, 32)


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("channels", [(3, 1), (4, 1), (3, 4), (1, 2)])
def test_recognised_from_shapes_alone(variant: str, channels: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = U2Net(variant, *channels)
    assert recognise(shapes(model)) == (VARIANTS[variant], *channels)


def test_other_widths_are_recognised_too() -> None:
    halved = Variant("half", tuple(Width(w.middle // 2, w.out // 2) for w in VARIANTS["u2net"].widths))
    with torch.device("meta"):
        found, _, _ = recognise(shapes(U2Net(halved)))
    assert found.name == "u2net-custom" and found.widths == halved.widths


def test_a_wrong_shape_is_named_with_both_shapes() -> None:
    with torch.device("meta"):
        wrong = shapes(U2Net("u2netp"))
    wrong["stage3.rebnconv2.conv_s1.weight"] = (16, 16, 5, 5)
    with pytest.raises(UserError, match=r"stage3\.rebnconv2\.conv_s1\.weight.*\(16, 16, 3, 3\).*\(16, 16, 5, 5\)"):
        recognise(wrong)


def test_missing_and_foreign_tensors() -> None:
    with torch.device("meta"):
        state = shapes(U2Net("u2netp"))
    lost = {name: s for name, s in state.items() if name != "stage2.rebnconv3.bn_s1.weight"}
    with pytest.raises(UserError, match=r"stage2\.rebnconv3\.bn_s1\.weight.*no such tensor"):
        recognise(lost)
    with pytest.raises(UserError, match="extra"):
        recognise({**state, "extra": (1,)})
    with pytest.raises(UserError, match="not a U²-Net checkpoint"):
        recognise({"conv1.weight": (64, 3, 7, 7)})


def test_unknown_variant() -> None:
    with pytest.raises(UserError, match="u2nett"):
        U2Net("u2nett")


def test_execution_order() -> None:
    names = conv_names(U2Net("u2netp"))
    assert len(names) == 119
    assert names[0] == "stage1.rebnconvin.conv_s1"
    assert names[96:98] == ["stage2d.rebnconv2d.conv_s1", "stage2d.rebnconv1d.conv_s1"]
    assert names[-1] == "outconv"
