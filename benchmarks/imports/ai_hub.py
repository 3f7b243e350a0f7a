"""Reader for perf.yaml of Qualcomm AI Hub Models: one time for each precision, component, device and runtime.

Source: quic/ai-hub-models, `qai_hub_models/models/*/perf.yaml`. Files since the summer of 2025 begin with `precisions`
and state milliseconds. Older files begin with `models` and state microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from u2export.benchmarks.device import Device
from u2export.benchmarks.imports.text import read_yaml
from u2export.benchmarks.imports.timed_model import TimedModel, bytes_of, milliseconds

RUNTIMES = {
    "tflite": "LiteRT", "qnn_dlc": "QNN", "onnx": "ONNX Runtime QNN", "torchscript_onnx_tflite": "LiteRT",
    "torchscript_onnx_qnn": "QNN", "torchscript_qnn": "QNN", "torchscript_onnx": "ONNX Runtime QNN",
    "precompiled_qnn_onnx": "ONNX Runtime QNN",
}  # fmt: skip
# Devices of one job that a note names.
NAMED = 5


def ai_hub(text: str, log: str) -> list[TimedModel]:
    """Return every figure in a perf.yaml; `log` is not used.

    Raises:
        ValueError: the text is not YAML, is beyond a limit of `read_yaml`, or holds no figures.
        Unavailable: PyYAML is not installed.
    """
    del log
    data = read_yaml(text)
    figures = list(_older(data) if "precisions" not in data and "models" in data else _figures(data))
    if not figures:
        raise ValueError("the file holds no figures")
    devices: dict[str, list[str]] = {}
    for model, job in figures:
        if job and model.device:
            devices.setdefault(job, []).append(model.device.model)
    by_job = {job: list(dict.fromkeys(names)) for job, names in devices.items()}
    return [_shared(model, by_job.get(job, ())) for model, job in figures]


def _figures(data: Mapping[str, Any]) -> Iterator[tuple[TimedModel, str]]:
    """Yield the models of a file, each with its job."""
    for precision, values in data["precisions"].items():
        for component, metrics in values["components"].items():
            for device, runtimes in metrics["performance_metrics"].items():
                for runtime, figure in runtimes.items():
                    yield _figure(str(component), str(precision), str(device), str(runtime), figure)


def _older(data: Mapping[str, Any]) -> Iterator[tuple[TimedModel, str]]:
    """Yield the models of an older file, each with its job."""
    for component in data["models"]:
        for measured in component["performance_metrics"]:
            about = measured.get("reference_device_info", {})
            system = f"{about.get('os_name', '')} {about.get('os', '')}".strip()
            device = Device(str(about["name"]), "", "", 0, os=system, soc=str(about.get("chipset", "")))
            for runtime, figure in measured.items():
                if isinstance(figure, Mapping) and "inference_time" in figure:
                    model, job = _figure(str(component["name"]), str(figure.get("precision", "")), "", str(runtime),
                                         _renamed(figure))  # fmt: skip
                    yield replace(model, device=device), job


def _renamed(figure: Mapping[str, Any]) -> dict[str, Any]:
    """Return a figure of an older file with the names and the units of a newer one."""
    us, layers = figure["inference_time"], figure.get("layer_info") or {}
    memory = (figure.get("estimated_peak_memory_range") or {}).get("max")
    return {
        **figure,
        "inference_time_milliseconds": None if us in (None, "null") else float(us) / 1e3,
        "layer_counts": {unit: layers.get(f"layers_on_{unit}") for unit in ("npu", "gpu", "cpu")},
        "estimated_peak_memory_range_mb": {"max": None if memory in (None, "null") else float(memory) / 2**20},
    }


def _shared(model: TimedModel, devices: Sequence[str]) -> TimedModel:
    """Return the model with a note if the file lists the figure of its job under several devices.

    The file does not say this in words. The number of the job shows it.
    """
    others = [name for name in devices[: NAMED + 1] if model.device and name != model.device.model]
    if not others:
        return model
    more = len(devices) - 1 - len(others[:NAMED])
    names = ", ".join(others[:NAMED]) + (f" and {more} more" if more else "")
    return replace(model, notes=(f"one job's figure, listed for {names} too",))


def _figure(
    component: str, precision: str, device: str, runtime: str, figure: Mapping[str, Any]
) -> tuple[TimedModel, str]:
    """Return one model and its job."""
    status, ms = str(figure.get("job_status", "")), figure.get("inference_time_milliseconds")
    layers = figure.get("layer_counts", {})
    placed = ", ".join(f"{layers[unit]} layers on {unit.upper()}" for unit in ("npu", "gpu", "cpu") if layers.get(unit))
    versions = {str(name): str(version) for name, version in figure.get("tool_versions", {}).items()}
    memory_mb = figure.get("estimated_peak_memory_range_mb", {})
    ran = {"runtime": RUNTIMES.get(runtime, runtime), "arithmetic": precision,
           "device": str(figure.get("primary_compute_unit", "")), "layers": placed}  # fmt: skip
    model = TimedModel(
        "Qualcomm AI Hub",
        component,
        Device(device, "", "", 0),
        stated={"single": milliseconds(ms)} if ms is not None else {},
        memory={"peak": bytes_of(float(memory_mb["max"]) * 2**20)} if memory_mb.get("max") else {},
        runtime={name: value for name, value in ran.items() if value},
        version=", ".join(f"{name} {version}" for name, version in versions.items()),
        timed="inference on the device, as its profile job estimates it; the number of runs is not told",
        precision=precision,
        problem="" if ms is not None else f"AI Hub job {status or 'without a result'}",
    )
    return model, str(figure.get("job_id") or "")
