"""Reader for the JSON of kits (docs/tables.md describes it), and for a dumped result of MLModelBenchmarker.

Source: coremltools, `coremltools.models.ml_program.experimental.perf_utils.MLModelBenchmarker`.
"""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path
from typing import Any

from u2export.benchmarks.device import Device
from u2export.benchmarks.imports.text import read_json
from u2export.benchmarks.imports.timed_model import UNTOLD, TimedModel, bytes_of, nanoseconds

KIT_FORMAT = "u2export-device/1"


def device_json(text: str, log: str) -> list[TimedModel]:
    """Return the model in the JSON of a kit or of MLModelBenchmarker; `log` is not used."""
    del log
    data = read_json(text)
    if data.keys() >= {"samples", "statistics"}:
        return [TimedModel("coremltools MLModelBenchmarker", rounds=(_samples(data["samples"]),),
                           runtime={"runtime": "Core ML"}, timed="MLModel prediction")]  # fmt: skip
    if data.get("format") != KIT_FORMAT:
        raise ValueError(f"its format is {data.get('format')!r:.40}, not {KIT_FORMAT!r}")
    version = str(data.get("runtime_version", ""))
    runtime = {"runtime": f"{data['runtime']} {version}".strip(), "device": str(data.get("compute_unit", ""))}
    runtime |= {name: str(data[name]) for name in ("threads", "thermal", "power_mode", "battery") if data.get(name)}
    return [
        TimedModel(
            str(data.get("tool", "u2export kit")),
            str(data.get("name", "")),
            _device({str(name): str(value) for name, value in data["device"].items()}),
            rounds=(_samples(data["predict_ms"]),),
            load_ns=tuple(nanoseconds(ms) for ms in _list(data.get("load_ms", []))),
            first_ns=nanoseconds(data["first_ms"]) if data.get("first_ms") else 0,
            memory={"peak": bytes_of(data["peak_bytes"])} if data.get("peak_bytes") else {},
            runtime={name: value for name, value in runtime.items() if value},
            version=version,
            timed=str(data.get("timed", UNTOLD)),
            artifact=str(data.get("artifact_sha256", "")),
            # The name alone: a mask lies beside the file of results and nowhere else.
            masks={str(name): Path(str(path)).name for name, path in dict(data.get("masks", {})).items()},
            maps={str(name): b64decode(packed, validate=True) for name, packed in dict(data.get("maps", {})).items()},
            environment={"browser": str(data["browser"])[:400]} if data.get("browser") else {},
            notes=tuple(str(note)[:200] for note in _list(data.get("notes", []))[:10]),
        )
    ]


def _device(told: dict[str, str]) -> Device:
    return Device(
        told.get("model", ""),
        told.get("cpu", ""),
        told.get("arch", ""),
        int(told.get("cores", 0)),
        os=told.get("os", ""),
        soc=told.get("soc", ""),
    )


def _list(values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise ValueError(f"expected a list of times, found {values!r:.40}")
    return values


def _samples(values: Any) -> tuple[int, ...]:
    samples = tuple(nanoseconds(ms) for ms in _list(values))
    if not samples:
        raise ValueError("no samples")
    return samples
