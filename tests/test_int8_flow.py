"""Int8 for other networks than the published small one: full size, and a checkpoint with channels of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import ANY_MASKS, PLANTED, plant, smooth, untrained

torch = pytest.importorskip("torch")
pytest.importorskip("onnxsim")
pytest.importorskip("onnxruntime")

from u2export.calibration import quant_plan  # noqa: E402
from u2export.calibration.dataset import Calibration  # noqa: E402
from u2export.exporters.artifact import Artifact  # noqa: E402
from u2export.exporters.exporter import Exporter, Request  # noqa: E402
from u2export.exporters.open import read_artifact  # noqa: E402
from u2export.exporters.openvino import OpenVINO  # noqa: E402
from u2export.exporters.ort import Ort  # noqa: E402
from u2export.reference.image import Contract, Floats  # noqa: E402
from u2export.reference.source import Source  # noqa: E402

SIDE = 64
pytestmark = pytest.mark.slow


def inputs(channels: int, count: int, seed: int) -> Floats:
    """Network inputs as smooth as photos (count, channels, SIDE, SIDE)."""
    return smooth((SIDE, SIDE), channels, count, seed, grid=(8, 8))


def saved(folder: Path, variant: str, channels: int, maps: int) -> Source:
    """A checkpoint with the trap of the published weights in it: a near-constant channel that its reader cancels."""
    model = plant(untrained(variant, channels, maps), PLANTED[0])
    torch.save(model.state_dict(), folder / "mine.pth")
    return Source.open(str(folder / "mine.pth"), Contract(SIDE, SIDE))


def share_lost(exporter: Exporter, artifact: Artifact, source: Source) -> float:
    """Mean absolute difference of d0 over how much d0 varies, every map of it, on inputs not calibrated on."""
    with exporter.load(artifact) as runner:
        pairs = [(runner(x), source.predict(x)) for x in inputs(source.contract.channels, 4, seed=1)[:, None]]
    assert all(got.shape == want.shape for got, want in pairs)
    got, want = (np.concatenate(maps) for maps in zip(*pairs, strict=True))
    return float((np.abs(got - want).mean((0, 2, 3)) / want.std((0, 2, 3))).max())


@pytest.mark.parametrize(
    ("variant", "channels", "maps"), [("u2netp", 4, 2), ("u2net", 3, 1)], ids=["other channels", "full size"]
)
def test_int8_runs_and_keeps_the_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, channels: int, maps: int
) -> None:
    if variant == "u2net":  # to round its weights for the output takes five minutes; the small network shows this
        nearest = replace(quant_plan.ONNX_RUNTIME, fit_weights=False)
        monkeypatch.setattr(quant_plan, "ONNX_RUNTIME", nearest)
    source = saved(tmp_path, variant, channels, maps)
    assert source.contract.channels == channels
    np.save(tmp_path / "calibration.npy", inputs(channels, 4, seed=2))
    photos = Calibration.open(tmp_path / "calibration.npy", source.contract)
    there = [exporter for exporter in (OpenVINO(), Ort()) if not exporter.missing()]
    # Both quantise the same graph, which takes half a minute at full size.
    for exporter in there[:1] if variant == "u2net" else there:
        artifact = exporter.export(source, tmp_path, Request("int8", photos, budget=ANY_MASKS))
        assert artifact.condition["changes"] and artifact.variant == source.variant
        # Errors of 119 untrained layers add up; maps of another network, or of channels mixed up, are 1 and more away.
        assert share_lost(exporter, read_artifact(artifact.path), source) < 0.4, exporter.name
