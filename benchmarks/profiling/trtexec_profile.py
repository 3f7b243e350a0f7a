"""Profiles that trtexec wrote on a device: `--exportProfile`, and beside it `--exportLayerInfo`.

Source: NVIDIA/TensorRT, samples/common/sampleReporting.cpp, versions 8 to 11.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from u2export.benchmarks.imports.text import read_json, read_text
from u2export.benchmarks.imports.timed_model import milliseconds
from u2export.benchmarks.profiling.layer_times import LayerTime, Profile
from u2export.benchmarks.roofline import LayerWork, count
from u2export.errors import UserError
from u2export.exporters.trt.layer_table import EngineLayer, read

HINT = "give the file that trtexec --exportProfile=FILE wrote"


def is_profile(path: Path) -> bool:
    """Tell whether a file looks like a profile of trtexec: JSON whose first value is a list."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def from_trtexec(path: Path, layer_info: Path | None = None, graph: Path | None = None) -> Profile:
    """Return the times in a profile of trtexec.

    Args:
        path: what `--exportProfile` wrote.
        layer_info: what `--exportLayerInfo` wrote for the same engine: kinds, precisions and nodes of layers.
        graph: the ONNX file that the engine was built from; with `layer_info`, layers get their work.

    Raises:
        UserError: a file is missing or is not what trtexec writes, or the layers are of another engine.
    """
    runs, times = _times(path)
    table = {layer.name: layer for layer in read(layer_info).layers} if layer_info else {}
    known = [name for name, _ in times if name in table]
    if table and not known:
        raise UserError(f"{layer_info} describes none of the layers in {path}", "give both files of one run of trtexec")
    works = {layer.name: layer for layer in count(graph).layers} if graph else {}
    layers = tuple(_layer(name, ms, table.get(name), works) for name, ms in times)
    notes = ["times are averages over the runs, and the profiler slows TensorRT down: their sum is no latency"]
    if table and len(known) < len(times):
        notes.append(f"{len(times) - len(known)} of {len(times)} layers are not in {layer_info and layer_info.name}")
    return Profile(path.name, {"runtime": "TensorRT", "by": "trtexec"}, layers, (), runs, notes=tuple(notes))


def _times(path: Path) -> tuple[int, list[tuple[str, float]]]:
    """Return the number of runs, and the name and the average time in ms of each layer."""
    try:
        data = read_json(read_text(path))
        runs = int(data[0]["count"])
        times = [(str(entry["name"]), milliseconds(entry["averageMs"])) for entry in data[1:]]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is not a profile of trtexec ({type(error).__name__}: {error})", HINT) from None
    if not times or runs < 1:
        raise UserError(f"{path} holds no layers", HINT)
    return runs, times


def _layer(name: str, ms: float, engine: EngineLayer | None, works: Mapping[str, LayerWork]) -> LayerTime:
    ns = (round(ms * 1e6),)
    if engine is None:
        return LayerTime(name, "", "", ns)
    parts = [works[node] for node in engine.nodes if node in works] if not engine.is_helper else []
    return LayerTime(name, engine.kind, engine.precision, ns, _joined(name, engine, parts))


def _joined(name: str, engine: EngineLayer, parts: list[LayerWork]) -> LayerWork | None:
    """Return the work of the nodes that a layer computes; the layer moves only its own inputs and outputs."""
    if not parts:
        return None
    values = sum(_values(t) for t in (*engine.inputs, *engine.outputs)) or sum(p.activations for p in parts)
    return LayerWork(name, engine.kind, sum(p.macs for p in parts), values, sum(p.weights for p in parts))


def _values(tensor: Any) -> int:
    count = 1
    for side in tensor.shape:
        count *= max(0, side)
    return count
