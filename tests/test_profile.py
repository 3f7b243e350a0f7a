"""Measured times of layers: each profiler on a tiny network, trtexec's files, and the command."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from builders import stub_artifact
from conftest import Cli, two_lines
from typer.testing import CliRunner

from u2export.api.profiling import profile, profile_chart, profile_summary
from u2export.benchmarks.profiling.layer_times import LayerTime, Profile, bounded
from u2export.benchmarks.profiling.runtimes import _means, measured
from u2export.benchmarks.profiling.trtexec_profile import from_trtexec
from u2export.benchmarks.roofline import Chip, LayerWork
from u2export.cli import app
from u2export.errors import Unavailable, UserError, WrongValue
from u2export.reference.image import Contract

Tiny = Callable[[str, float], Path]
CORPUS = Path(__file__).parent / "corpus"
MACS = 32 * 48 * 3  # the tiny network: one weighted sum of three channels at each of 32 x 48 places


@pytest.fixture(scope="module")
def made(tiny: Tiny) -> Profile:
    return profile(tiny("profiled.onnx", 0.5), runs=4, threads=1, device="orin-nano")


def test_onnx_runtime_tells_every_layer_of_every_run(made: Profile) -> None:
    (conv,) = (layer for layer in made.layers if layer.work and layer.work.macs)
    assert conv.work and conv.work.macs == MACS and conv.precision == "fp32" and conv.limit
    assert all(len(layer.ns) == 4 for layer in made.layers) and len(made.total_ns) == made.runs == 4
    assert 0 < made.coverage < 1.1, "the layers of one thread do not take longer than the run"
    assert sum(map(made.share, made.layers)) == pytest.approx(1)


def test_openvino_tells_the_layers_that_ran(tiny: Tiny, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    artifact = stub_artifact(tmp_path / "tiny.xml", "openvino", Contract(32, 48))
    openvino.save_model(openvino.convert_model(tiny("profiled.onnx", 0.5)), artifact.path, compress_to_fp16=False)
    found = profile(artifact, runs=4, threads=1)
    works = [layer.work for layer in found.layers if layer.work and layer.work.macs]
    assert [work.macs for work in works] == [MACS]
    assert found.layers_ms > 0 and 0 < found.coverage < 1.5


def test_the_warm_up_is_taken_out_of_means_over_all_runs() -> None:
    assert _means({"a": 9000}, {"a": 6000}, 3) == {"a": 3000}


def test_bounds_are_those_of_the_precision_that_ran() -> None:
    work = LayerWork("c", "Conv", 1000, 300, 100)
    layers = tuple(LayerTime("c", "Conv", p, (5_000_000,), work) for p in ("fp32", "bf16", "int8", "weird"))
    chip = Chip("chip", {"int8": 8e6}, 1e6, source="https://maker")
    fp32, bf16, int8, weird = bounded(Profile("x", {}, layers), chip).layers
    assert (fp32.bound_ms, fp32.limit) == (pytest.approx(1.6), "memory")  # 400 values of 4 bytes at 1 MB/s
    assert bf16.bound_ms == pytest.approx(0.8) and int8.bound_ms == pytest.approx(0.4)
    assert math.isnan(weird.bound_ms)
    here = bounded(Profile("x", {}, layers), replace(chip, peaks={"fp32": 8e6}, source=""))
    assert [layer.limit for layer in here.layers] == ["memory", "", "", ""] and "fp32 only" in here.notes[0]
    pooling = (LayerTime("p", "MaxPool", "fp32", (5_000_000,), LayerWork("p", "MaxPool", 0, 300, 0)),)
    (unknown,) = bounded(Profile("x", {}, pooling), replace(chip, bandwidth=0.0)).layers
    slow = bounded(Profile("x", {}, layers[:1]), replace(chip, peaks={"fp32": 3e5}))
    assert slow.layers[0].bound_ms > 5 and "layers faster than their bound: 1;" in slow.notes[0]
    assert math.isnan(unknown.bound_ms)  # nothing to multiply, and no bandwidth is known: no bound of 0


def test_a_profile_of_trtexec_with_its_layers(tmp_path: Path) -> None:
    table = CORPUS / "json/layers/tensorrt8.json"
    names = [layer["Name"] for layer in json.loads(table.read_text())["Layers"]]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps([{"count": 7}, *({"name": n, "averageMs": i + 0.5} for i, n in enumerate(names))]))
    found = from_trtexec(path, table)
    assert found.runs == 7 and [layer.name for layer in found.layers] == names and math.isnan(found.coverage)
    assert found.layers[1].precision == "int8" and found.layers[1].kind == "CaskConvolution"
    assert found.slowest(1)[0].name == names[-1]
    plain = profile(CORPUS / "import/trtexec/profile.json")
    assert plain.layers_ms == pytest.approx(2.0) and plain.runs == 10
    with pytest.raises(UserError, match="describes none of the layers"):
        profile(CORPUS / "import/trtexec/profile.json", layer_info=table)


@pytest.mark.parametrize("text", ["[]", "[1]", '[{"count": 3}]', '[{"count": "x"}]', '[{"count": 1}, {"name": "a"}]'])
def test_damaged_profiles_of_trtexec(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(UserError, match=r"p\.json"):
        profile(tmp_path / "p.json")


def test_runtimes_without_a_profiler_say_what_works(tmp_path: Path) -> None:
    artifact = stub_artifact(tmp_path / "x.tflite", "litert")
    with pytest.raises(UserError, match="cannot be read from Python") as caught:
        measured(artifact, 1, 1)
    assert "onnx, ort or openvino" in caught.value.hint


def test_wrong_values(tiny: Tiny) -> None:
    path = tiny("profiled.onnx", 0.5)
    for more in ({"device": "abacus"}, {"runs": 0}, {"graph": path}):
        with pytest.raises(WrongValue):
            profile(path, **more)  # type: ignore[arg-type]


def test_the_command_writes_what_it_shows(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    path, table = tiny("profiled.onnx", 0.5), tmp_path / "layers.csv"
    done = cli("profile", path, "--runs", "2", "--threads", "1", "--csv", table, env={"COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    assert "2 runs with the profiler on" in done.stdout and "its layers take" in done.stdout
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert all(row["name"] in done.stdout for row in rows) and sum(float(r["share"]) for r in rows) == pytest.approx(1)
    data = json.loads(cli("profile", path, "--runs", "1", "--json").stdout)
    assert data["layers"][0]["ms"] >= 0 and data["coverage"] > 0
    two_lines(cli("profile", path, "--device", "abacus"), "no device 'abacus'", code=2)


def test_a_chart_that_cannot_be_drawn_is_refused_before_anything_is_measured(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, table = tiny("profiled.onnx", 0.5), tmp_path / "layers.csv"
    words = ["profile", str(path), "--csv", str(table), "--chart"]
    assert isinstance(CliRunner().invoke(app, [*words, "layers.gif"]).exception, WrongValue)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert isinstance(CliRunner().invoke(app, [*words, "layers.png"]).exception, Unavailable)
    assert not table.exists()


def test_the_shipped_int8_file_has_times_and_bounds(cli: Cli) -> None:
    """Real weights in int8 by command: most of the time is that of int8 convolutions, and each has a bound."""
    from u2export.exporters.ready import ready

    words = ("--runs", "2", "--threads", "1", "--device", "m1", "--json")
    data = json.loads(cli("profile", ready("u2netp-int8").path, *words).stdout)
    convolutions = [layer for layer in data["layers"] if layer["kind"] == "QLinearConv"]
    assert data["runtime"]["arithmetic"] == "int8" and len(convolutions) > 100
    assert all(layer["precision"] == "int8" and layer["bound_ms"] > 0 for layer in convolutions)
    assert sum(layer["ms"] for layer in convolutions) > 0.5 * sum(layer["ms"] for layer in data["layers"])


def test_the_chart_draws_any_name(made: Profile, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    odd = replace(made, name="$x$ <b>", layers=(*made.layers, LayerTime("a$_{\n", "Conv", "", (10**6,))))
    assert profile_chart(odd, tmp_path / "new" / "layers.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert profile_chart(odd, tmp_path / "layers.png").stat().st_size > 5000
    with pytest.raises(WrongValue, match="gif"):
        profile_chart(made, tmp_path / "layers.gif")
    assert any("orin" in line.lower() for line in profile_summary(made))
