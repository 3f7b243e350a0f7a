"""Reader for the files of trtexec: `--exportTimes` (every sample) and `--exportProfile` (times of layers).

Source: NVIDIA/TensorRT, samples/common/sampleReporting.cpp, versions 8 to 11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from u2export.benchmarks.device import Device
from u2export.benchmarks.imports.text import read_json
from u2export.benchmarks.imports.timed_model import UNTOLD, TimedModel, milliseconds, nanoseconds

# How long trtexec warms up unless an option says otherwise.
WARMUP_MS = 200.0


def trtexec(text: str, log: str) -> list[TimedModel]:
    """Return the model in a file of trtexec; `log` is the text that trtexec printed."""
    data = read_json(text)
    if not isinstance(data, list) or not data:
        raise ValueError("not a list of samples or layers")
    printed = from_log(log)
    return [_profile(data, printed) if "count" in data[0] else _times(data, log, printed)]


def from_log(log: str) -> TimedModel:
    """Return what trtexec printed: version, device, precision and the name of the engine."""
    version = ""
    if found := re.search(r"\[TensorRT v(\d+)\]", log):
        number = int(found[1])
        step = 10000 if number >= 100000 else 1000  # 8.6.1 is printed as 8601, and 10.3.0 as 100300
        rest = number % step
        version = f"{number // step}.{rest // 100}.{rest % 100}"
    device = re.search(r"Selected Device: (.+)", log)
    precision = re.search(r"\] Precision: (.+)", log)
    engine = re.search(r"--(?:loadEngine|saveEngine|onnx)=(\S+)", log)
    return TimedModel(
        "trtexec",
        name=Path(engine[1]).name if engine else "",
        device=Device(device[1].strip(), "", "", 0) if device else None,
        version=version,
        precision=precision[1].strip() if precision else "",
        runtime={"runtime": f"TensorRT {version}".strip()},
        environment={"tensorrt": version} if version else {},
    )


def _times(samples: Sequence[Mapping[str, Any]], log: str, printed: TimedModel) -> TimedModel:
    """Return the samples without the warm-up.

    Newer versions leave the warm-up out of the file. Older versions keep it there; these also write `endToEndMs`.
    """
    warmup = re.search(r"Warmup: ([\d.]+) ?ms", log)
    start = float(warmup[1]) if warmup else WARMUP_MS
    counted = [s for s in samples if "endToEndMs" not in s or float(s["startComputeMs"]) >= start]
    if not counted:
        raise ValueError("no samples after the warm-up")
    copies = any(float(s["h2dMs"]) > 0 or float(s["d2hMs"]) > 0 for s in counted)
    compute = float(np.median([milliseconds(s["computeMs"]) for s in counted]))
    graph = re.search(r"CUDA Graph: (\w+)", log)
    timed = "host-to-device copy, GPU compute and device-to-host copy" if copies else "GPU compute, no copies"
    return replace(
        printed,
        rounds=(tuple(nanoseconds(s["latencyMs"]) for s in counted),),
        timed=f"{timed}; CUDA graph: {graph[1].lower() if graph else UNTOLD}",
        notes=(f"GPU compute alone: median {compute:.3g} ms",) if copies else (),
    )


def _profile(data: Sequence[Mapping[str, Any]], printed: TimedModel) -> TimedModel:
    """Return the sum of all layers, which is not a latency, and the three slowest layers."""
    layers = [(str(entry["name"]), float(entry["averageMs"])) for entry in data[1:]]
    total = milliseconds(sum(ms for _, ms in layers))
    slowest = sorted(layers, key=lambda layer: -layer[1])[:3]
    shares = ", ".join(f"{name} {100 * ms / total:.0f} %" for name, ms in slowest)
    return replace(
        printed,
        stated={"mean": total},
        timed=f"sum of {len(layers)} layers with the profiler on, over {int(data[0]['count'])} runs: not a latency",
        notes=(f"slowest layers: {shares}",),
    )
