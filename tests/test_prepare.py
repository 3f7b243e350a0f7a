"""What exports keep for the next one, conditioning reports and rounded weights: used where nothing changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import SMALL, random_source

torch = pytest.importorskip("torch")

from u2export.calibration.condition import condition  # noqa: E402
from u2export.calibration.condition_report import Criteria  # noqa: E402
from u2export.calibration.dataset import Calibration  # noqa: E402
from u2export.calibration.prepare import conditioned, known_weights  # noqa: E402
from u2export.calibration.quant_plan import ONNX_RUNTIME, TENSORRT  # noqa: E402
from u2export.reference.image import Floats  # noqa: E402
from u2export.reference.onnx_export import Graph, to_onnx  # noqa: E402

CONSTANT = "stage2d.rebnconv2d.conv_s1"


class Unread(Calibration):
    """A set that may be asked for its digest only."""

    def __iter__(self) -> Iterator[Floats]:
        raise AssertionError("the network was run again")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("U2EXPORT_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "conditioning"


@pytest.fixture
def model() -> Any:
    """Random weights with one near-constant channel."""
    model = random_source().model
    layer = model.get_submodule(CONSTANT)
    with torch.no_grad():
        layer.weight[3] *= 0.01
        layer.bias[3] = 200.0
    return model


@pytest.fixture
def photos() -> Calibration:
    return Calibration.bundled(SMALL).subset(3)


def unread(photos: Calibration) -> Calibration:
    return Unread(photos.name, photos.contract, photos.photos)


def equal(a: Any, b: Any) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[k], other[k]) for k in mine)


def test_the_second_time_gives_the_same_without_running_the_network(model: Any, photos: Calibration) -> None:
    first, report = conditioned(model, photos)
    assert report.changes and equal(first, condition(model, photos)[0])
    again, same = conditioned(model, unread(photos))
    assert same == report and equal(again, first)


def test_anything_that_changed_is_measured_anew(model: Any, photos: Calibration, home: Path) -> None:
    conditioned(model, photos)
    for other in (photos.subset(2), replace(photos, contract=replace(SMALL, resize="lanczos"))):
        with pytest.raises(AssertionError, match="run again"):
            conditioned(model, unread(other))
    with pytest.raises(AssertionError, match="run again"):
        conditioned(model, unread(photos), Criteria(gain=5))
    with torch.no_grad():
        model.get_submodule(CONSTANT).bias[0] += np.float32(1e-3)
    with pytest.raises(AssertionError, match="run again"):
        conditioned(model, unread(photos))


def test_a_damaged_or_unwritable_cache_is_none(model: Any, photos: Calibration, home: Path) -> None:
    _, report = conditioned(model, photos)
    (file,) = home.iterdir()
    for damage in ("{", "[]", '{"schema": 1, "colour": "blue"}', '{"schema": 99}'):
        file.write_text(damage)
        assert conditioned(model, photos)[1] == report
    file.unlink()
    home.rmdir()
    home.write_text("in the way")
    assert conditioned(model, photos)[1] == report


def test_rounded_weights_are_kept_for_the_same_graph_photos_and_scheme(
    model: Any, photos: Calibration, home: Path
) -> None:
    pytest.importorskip("onnx")
    graph = to_onnx(model, SMALL, Graph(), {})
    first = known_weights(graph, photos, ONNX_RUNTIME)
    again = known_weights(graph, unread(photos), ONNX_RUNTIME)
    assert first and again.keys() == first.keys()
    assert all((again[name] == first[name]).all() for name in first)
    (file,) = (home.parent / "rounding").iterdir()
    other = to_onnx(conditioned(model, photos)[0], SMALL, Graph(), {})
    for known in ((graph, photos.subset(2), ONNX_RUNTIME), (graph, photos, TENSORRT), (other, photos, ONNX_RUNTIME)):
        with pytest.raises(AssertionError, match="run again"):
            known_weights(known[0], unread(known[1]), known[2])
    assert known_weights(graph, unread(photos), replace(ONNX_RUNTIME, fit_weights=False)) == {}
    for damage in (b"", b"PK\x03\x04", file.read_bytes()[:-40]):
        file.write_bytes(damage)
        assert known_weights(graph, photos, ONNX_RUNTIME).keys() == first.keys()
