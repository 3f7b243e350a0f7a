from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import PLANTED, plant, smooth, untrained
from hypothesis import given, settings
from hypothesis import strategies as st

from u2export.calibration.dataset import Calibration
from u2export.errors import UserError
from u2export.reference.image import Contract, Floats

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxsim")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from u2export.calibration.channel_routes import from_module, from_onnx  # noqa: E402
from u2export.calibration.condition import (  # noqa: E402
    condition,
    fold_batch_norm,
    rewrite,
    shift_below,
)
from u2export.calibration.condition_report import Change, ConditionReport, Criteria  # noqa: E402
from u2export.calibration.probes import module_probe  # noqa: E402
from u2export.reference import weights  # noqa: E402
from u2export.reference.onnx_export import Graph, to_onnx  # noqa: E402
from u2export.reference.verification import verification_inputs  # noqa: E402

POOLED, ADDED = "stage2.rebnconv1", "stage2.rebnconvin"


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def unusual(size: tuple[int, int], channels: int = 3) -> dict[str, Any]:
    """Inputs no calibration photo is like."""
    g = torch.Generator().manual_seed(1)
    shape = (1, channels, *size)
    return {
        "black": torch.full(shape, -2.1),
        "white": torch.full(shape, 2.6),
        "noise": torch.rand(shape, generator=g) * 4.7 - 2.1,
        "3 randn": 3 * torch.randn(shape, generator=g),
        "50 randn": 50 * torch.randn(shape, generator=g),
        "checkers": 40 * ((torch.arange(size[0])[:, None] + torch.arange(size[1])) % 2).expand(shape).float() - 20,
    }


def furthest(a: Sequence[Any], b: Sequence[Any]) -> float:
    return max(float((x.double() - y.double()).abs().max()) for x, y in zip(a, b, strict=True))


def written(model: Any, conv: str, x: Any) -> Floats:
    values: Floats = module_probe(model, [conv])(x.numpy())[conv]
    return values


@pytest.mark.parametrize(
    ("variant", "inputs", "outputs"),
    [("u2netp", 3, 1), ("u2netp", 1, 4), ("u2netp", 4, 1), pytest.param("u2net", 3, 1, marks=pytest.mark.slow)],
)
def test_same_maps_from_any_input(variant: str, inputs: int, outputs: int) -> None:
    model = untrained(variant, inputs, outputs)
    for unit in PLANTED:
        plant(model, unit)
    photos = [smooth((64, 96), inputs, seed=n) for n in range(2)]
    made, report = condition(model, photos)
    assert {(c.producer, c.channel) for c in report.changes} >= {(f"{unit}.conv_s1", 3) for unit in PLANTED}
    exact = copy.deepcopy(model).double()
    conditioned, again = condition(exact, photos)
    assert [(c.producer, c.channel, c.shift) for c in again.changes] == [
        (c.producer, c.channel, c.shift) for c in report.changes
    ]
    broken = False
    for size in ((64, 96), (75, 53)):
        for name, x in unusual(size, inputs).items():
            want = exact(x.double())
            assert furthest(conditioned(x.double()), want) < 1e-9, (size, name)
            # In fp32 both are off, by amounts of one order: random weights on inputs far outside their range.
            error, before = furthest(made(x), want), furthest(model(x), want)
            assert error < max(1e-4, 4 * before), (size, name)
            broken |= any(guarded(made, model, c.producer, x) for c in report.changes)
    assert broken  # or nothing has been shown about the guards


def guarded(made: Any, model: Any, producer: str, x: Any) -> bool:
    """Whether the first guard, relu(mu - y), which follows the producer's own channels, does anything."""
    first = len(model.get_submodule(producer).weight)
    return bool((written(made, producer, x)[:, first] > 0).any())


def test_guards_rest_on_inputs_like_the_calibration_set() -> None:
    model = plant(untrained(), PLANTED[0])
    inputs = [smooth((64, 96), seed=n) for n in range(4)]
    made, report = condition(model, inputs)
    (change,) = (c for c in report.changes if c.producer.startswith(PLANTED[0]))
    for x in inputs:
        y = np.maximum(written(made, change.producer, torch.from_numpy(x)), 0)
        assert (y[:, -3:-1] == 0).all()
        assert (y[:, -1] == change.constant).all()
        assert y[:, 3].min() > 0 and y[:, 3].max() <= y.max()
    assert change.low - change.margin == change.shift and change.bias_after < change.bias_before / 2


def test_removing_a_guard_would_be_noticed() -> None:
    model = plant(untrained(), PLANTED[0])
    made, report = condition(model, [smooth((64, 96))])
    (change,) = (c for c in report.changes if c.producer.startswith(PLANTED[0]))
    x = unusual((64, 96))["50 randn"]
    want = made(x)
    conv = made.get_submodule(change.producer)
    conv.weight[-3], conv.bias[-3] = 0, 0
    assert furthest(made(x), want) > 1e-3


@pytest.mark.parametrize(("unit", "reason"), [(POOLED, "max pool"), (ADDED, "add")])
def test_what_a_shift_cannot_pass_is_left_alone(unit: str, reason: str) -> None:
    model = plant(untrained(), unit)
    made, report = condition(model, [smooth((64, 96))], Criteria(sqnr=60))
    assert f"{unit}.conv_s1" not in {c.producer for c in report.changes}
    (refused,) = (r for r in report.refused if r.producer == f"{unit}.conv_s1")
    assert refused.channel == 3 and reason in refused.reason
    same = made.get_submodule(f"{unit}.conv_s1").weight
    assert same.shape == model.get_submodule(f"{unit}.conv_s1").weight.shape


def test_nothing_to_do() -> None:
    model = untrained()
    made, report = condition(model, [smooth((64, 96))])
    assert report.changes == () and report.inputs == 1 and len(report.digest) == 64
    folded = fold_batch_norm(model)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), folded.parameters(), strict=True))


def test_fold_batch_norm() -> None:
    model = untrained()
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norm(model)
    x = torch.from_numpy(smooth((64, 96)))
    assert furthest(copy.deepcopy(folded).double()(x.double()), copy.deepcopy(model).double()(x.double())) < 1e-5
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert not folded.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_report_survives_json_and_is_the_same_on_the_same_inputs() -> None:
    model = plant(untrained(), PLANTED[0])
    inputs = [smooth((64, 96), seed=n) for n in range(2)]
    _, report = condition(model, inputs)
    assert ConditionReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert condition(model, inputs)[1] == report
    assert condition(model, inputs[::-1])[1].digest != report.digest


def test_reports_that_do_not_fit_are_refused() -> None:
    model = plant(untrained(), PLANTED[0])
    _, report = condition(model, [smooth((64, 96))])
    data = report.to_json()
    with pytest.raises(UserError, match="schema"):
        ConditionReport.from_json({**data, "schema": 99})
    with pytest.raises(UserError, match="damaged"):
        ConditionReport.from_json({**data, "changes": [{"channel": 1}]})
    for wrong in ({"producer": "stage9.rebnconv1.conv_s1"}, {"channel": 99}, {"readers": ()}):
        bad = replace(report, changes=(replace(report.changes[0], **wrong),))  # type: ignore[arg-type]
        with pytest.raises(UserError, match="does not fit"):
            condition(model, bad)


def test_no_inputs() -> None:
    with pytest.raises(UserError, match="no calibration inputs"):
        condition(untrained(), [])


def run(model: Any, x: Any) -> list[Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(y) for y in session.run(None, {"image": x.numpy()})]


@pytest.mark.parametrize(
    ("opset", "dynamic", "size"),
    [(13, (), (75, 101)), (17, (), (64, 96)), (18, ("height", "width"), (64, 96)), (17, ("batch",), (64, 96))],
)
def test_onnx_and_module_give_the_same(opset: int, dynamic: tuple[str, ...], size: tuple[int, int]) -> None:
    model = plant(plant(untrained(), PLANTED[0]), PLANTED[1])
    made, report = condition(model, [smooth(size, seed=n) for n in range(2)])
    assert report.changes
    exported = to_onnx(made, Contract(*size), Graph(opset, all_outputs=True, dynamic=dynamic), {})
    mine, other = from_module(made), from_onnx(exported)
    for a, b in zip(mine.convs.values(), other.convs.values(), strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)
        np.testing.assert_array_equal(a.bias, b.bias)
        assert a.border == b.border
    places = [{name: i for i, name in enumerate(network.convs)} for network in (mine, other)]
    routes = [
        [
            (at[r.producer], r.blocked, [(at[reader.conv], reader.offset) for reader in r.readers])
            for r in found.routes()
        ]
        for found, at in zip((mine, other), places, strict=True)
    ]
    assert [(p, bool(blocked), sorted(readers)) for p, blocked, readers in routes[0]] == [
        (p, bool(blocked), sorted(readers)) for p, blocked, readers in routes[1]
    ]
    x = unusual(size)["3 randn"]
    assert furthest(run(exported, x), made(x)) < 1e-3  # two runtimes on random weights
    if "height" in dynamic:
        x = unusual((53, 75))["noise"]
        assert furthest(run(exported, x), made(x)) < 1e-3


def test_onnx_that_is_not_fp32_is_refused() -> None:
    graph = to_onnx(fold_batch_norm(untrained()), Contract(64, 64), Graph(), {})
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            half = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
            tensor.CopyFrom(half)
    with pytest.raises(UserError, match="float32"):
        from_onnx(graph)


def test_traces() -> None:
    made, _ = condition(plant(untrained(), PLANTED[0]), [smooth((64, 96))])
    x = unusual((64, 96))["noise"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(made, x, check_trace=False)
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer)
    buffer.seek(0)
    assert furthest(torch.jit.load(buffer)(x), made(x)) < 1e-6


class Small(nn.Module):
    """A producer whose channels go two ways to two readers, with everything between that a shift may pass."""

    def __init__(self, kernel: int, dilation: int, padded: bool) -> None:
        super().__init__()
        pad = dilation * (kernel - 1) // 2 if padded else 0
        self.first, self.relu = nn.Conv2d(2, 3, 3, padding=1), nn.ReLU()
        self.second = nn.Conv2d(5, 3, kernel, padding=pad, dilation=dilation)
        self.third, self.lead = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x: Any) -> Any:
        """(N, 2, H, W) to (N, 2, H', W') and (N, 3, H'', W'')."""
        y = self.relu(self.first(x))
        wide = F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
        both = torch.cat((F.interpolate(self.lead(x), scale_factor=2.0), wide), 1)
        return self.third(y), self.second(both)


@settings(max_examples=40)
@given(
    kernel=st.sampled_from([1, 3, 5]),
    dilation=st.integers(1, 3),
    padded=st.booleans(),
    channels=st.sets(st.integers(0, 2), min_size=1),
    shift=st.floats(0.01, 300),
    scale=st.sampled_from([0.5, 1.0, 16.0]),
    level=st.floats(-10, 300),
    seed=st.integers(0, 1000),
)
def test_any_shift_of_any_channel_is_exact(
    kernel: int, dilation: int, padded: bool, channels: set[int], shift: float, scale: float, level: float, seed: int
) -> None:
    torch.manual_seed(seed)
    plain = Small(kernel, dilation, padded).double()
    plain.first.bias += level
    network = from_module(plain)
    routes = network.routes()
    assert [(r.producer, len(r.readers), r.blocked) for r in routes] == [("first", 2, "")]
    bordered = padded and kernel > 1
    chosen = [
        Change("first", 0, c, shift, scale, 4.0 if bordered else 0.0, 0, 0, 0, 0, ("third", "second"))
        for c in sorted(channels)
    ]
    rewrite(network, routes, chosen)
    made = copy.deepcopy(plain)
    for conv in network.convs.values():
        module = made.get_submodule(conv.name)
        module.weight, module.bias = (
            nn.Parameter(torch.from_numpy(conv.weight)),
            nn.Parameter(torch.from_numpy(conv.bias)),
        )
    x = 5 * torch.randn(1, 2, 9, 8, dtype=torch.float64)
    assert furthest(made(x), plain(x)) < 1e-9


class Odd(Small):
    """`Small` with what must stop a shift."""

    def __init__(self, what: str) -> None:
        super().__init__(3, 1, True)
        self.what = what

    def forward(self, x: Any) -> Any:
        """Depends on `what`."""
        y = self.relu(self.first(x))
        if self.what == "a slice":
            return self.third(y), y[:, 1:]
        if self.what == "unknown width":
            return self.second(torch.cat((x, y), 1))
        if self.what == "twice":
            return self.third(y), self.third(self.relu(y))
        return self.third(y), torch.sigmoid(y)


@pytest.mark.parametrize("what", ["a slice", "unknown width", "twice", "a function"])
def test_what_is_not_understood_stops_a_shift(what: str) -> None:
    (route,) = (r for r in from_module(Odd(what)).routes() if r.producer == "first")
    assert route.blocked


@given(low=st.floats(1e-3, 1e4), spread=st.floats(0, 1e3), margin=st.floats(0, 1))
def test_shift_keeps_its_distance_and_has_few_digits(low: float, spread: float, margin: float) -> None:
    shift = shift_below(low, low + spread, margin)
    assert 0 <= shift <= low - margin * spread or shift == 0
    if shift and spread > low / 1000:
        assert float(np.float16(shift)) == pytest.approx(shift, rel=1e-3)


# --- the published weights ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(u2netp: Path) -> Any:
    return weights.load("u2netp")[1]


@pytest.fixture(scope="module")
def conditioned(published: Any) -> tuple[Any, ConditionReport]:
    with torch.no_grad():
        return condition(published, Calibration.bundled(Contract(160, 160)).subset(8))


def test_finds_the_two_channels_of_u2netp(conditioned: tuple[Any, ConditionReport]) -> None:
    _, report = conditioned
    assert {(c.producer, c.index, c.channel) for c in report.changes} == {
        ("stage2d.rebnconv2d.conv_s1", 96, 14),
        ("stage1d.rebnconv3d.conv_s1", 109, 12),
    }
    first, second = report.changes
    assert 220 < first.shift < first.low < first.high < 230 and 45 < second.shift < second.low < second.high < 60
    assert first.bias_before == pytest.approx(1361.25, abs=0.1) and first.bias_after < 120
    assert second.bias_after < second.bias_before


@pytest.mark.parametrize("size", [(64, 96), (160, 160), (107, 111)])
def test_u2netp_is_the_same_and_nearer_to_exact(
    size: tuple[int, int], published: Any, conditioned: tuple[Any, ConditionReport]
) -> None:
    check_published(size, published, conditioned[0])


@pytest.mark.slow
def test_u2netp_is_the_same_at_full_size(published: Any, conditioned: tuple[Any, ConditionReport]) -> None:
    # The two inputs that are furthest from photos; all of them run at the smaller sizes.
    check_published((320, 320), published, conditioned[0], {"noise", "50 randn", "photo"})


def check_published(size: tuple[int, int], published: Any, made: Any, names: Collection[str] = ()) -> None:
    exact = copy.deepcopy(published).double()
    inputs = {**unusual(size), "photo": torch.from_numpy(next(iter(verification_inputs(Contract(*size)))))}
    for name, x in ((n, x) for n, x in inputs.items() if not names or n in names):
        want, got, plain = exact(x.double()), made(x), published(x)
        error, before = furthest(got, want), furthest(plain, want)
        # In fp32 the published network itself is off by 1e-4 and more, through the cancellation; both are measured from
        # fp64. On 50 randn at 321x333 it is 1.6e-4, conditioned 1.1e-4.
        assert error < max(1e-4, before), (name, error, before)
        assert furthest(got, plain) < 1e-4 + before, name
        if name == "photo":
            assert error < before / 3


def test_fp16_and_int8_weights_survive(published: Any, conditioned: tuple[Any, ConditionReport]) -> None:
    photos = [torch.from_numpy(x) for x in verification_inputs(Contract(160, 160))][:3]
    plain, made = fold_batch_norm(published), conditioned[0]
    for rounded, factor in ((half, 4), (eight_bits, 8)):
        before, after = (
            np.mean([float((rounded(m)(x)[0] - plain(x)[0]).abs().mean()) for x in photos]) for m in (plain, made)
        )
        assert after < before / factor, (rounded.__name__, before, after)


def half(model: Any) -> Any:
    """Weights and every convolution's output rounded to fp16."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.copy_(module.weight.half())
            module.bias.copy_(module.bias.half())  # type: ignore[union-attr]
            module.register_forward_hook(lambda _module, _inputs, y: y.half().float())
    return model


def eight_bits(model: Any) -> Any:
    """Weights rounded to 8 bit, symmetric, per output channel."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            step = module.weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12) / 127
            module.weight.copy_((module.weight / step).round() * step)
    return model
