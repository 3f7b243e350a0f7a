"""Reader for perf.yaml of Qualcomm AI Hub Models: one time for each precision, component, device and runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from u2export.benchmarks.device import Device
from u2export.benchmarks.imports.timed_model import TimedModel, milliseconds
from u2export.errors import Unavailable
from u2export.install import how_to_install

RUNTIMES = {"tflite": "LiteRT", "qnn_dlc": "QNN", "onnx": "ONNX Runtime QNN"}


def ai_hub(text: str, log: str) -> list[TimedModel]:
    """Return every figure in a perf.yaml; `log` is not used.

    Raises:
        Unavailable: PyYAML is not installed.
    """
    del log
    try:
        import yaml
    except ImportError:
        raise Unavailable("reading YAML needs PyYAML", how_to_install("imports")) from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {str(error).splitlines()[0]}") from None
    figures = [
        (component, precision, device, runtime, figure)
        for precision, values in data["precisions"].items()
        for component, metrics in values["components"].items()
        for device, runtimes in metrics["performance_metrics"].items()
        for runtime, figure in runtimes.items()
    ]
    if not figures:
        raise ValueError("the file holds no figures")
    devices: dict[str, list[str]] = {}
    for _, _, device, _, figure in figures:
        devices.setdefault(str(figure.get("job_id", "")), []).append(str(device))
    return [_shared(_figure(*one), devices[str(one[4].get("job_id", ""))]) for one in figures]


def _shared(model: TimedModel, devices: Sequence[str]) -> TimedModel:
    """Return the model with a note if the file lists the figure of its job under several devices.

    The file does not say this in words. The number of the job shows it.
    """
    others = [name for name in dict.fromkeys(devices) if model.device and name != model.device.model]
    return replace(model, notes=(f"one job's figure, listed for {', '.join(others)} too",)) if others else model


def _figure(component: str, precision: str, device: str, runtime: str, figure: Mapping[str, Any]) -> TimedModel:
    status, ms = str(figure.get("job_status", "")), figure.get("inference_time_milliseconds")
    layers = figure.get("layer_counts", {})
    placed = ", ".join(f"{layers[unit]} layers on {unit.upper()}" for unit in ("npu", "gpu", "cpu") if layers.get(unit))
    versions = {str(name): str(version) for name, version in figure.get("tool_versions", {}).items()}
    memory_mb = figure.get("estimated_peak_memory_range_mb", {})
    ran = {"runtime": RUNTIMES.get(runtime, str(runtime)), "arithmetic": str(precision),
           "device": str(figure.get("primary_compute_unit", "")), "layers": placed}  # fmt: skip
    return TimedModel(
        "Qualcomm AI Hub",
        str(component),
        Device(str(device), "", "", 0),
        stated={"single": milliseconds(ms)} if ms is not None else {},
        memory={"peak": int(float(memory_mb["max"]) * 2**20)} if memory_mb.get("max") else {},
        runtime={name: value for name, value in ran.items() if value},
        version=", ".join(f"{name} {version}" for name, version in versions.items()),
        timed="inference on the device, as its profile job estimates it; the number of runs is not told",
        precision=str(precision),
        problem="" if ms is not None else f"AI Hub job {status or 'without a result'}",
    )
