"""Latencies that other tools measured, read from the files those tools write.

Every reader returns what the file says and nothing else; what a file does not say stays empty. Formats:

trtexec: NVIDIA/TensorRT samples/common/sampleReporting.cpp, `--exportTimes` and `--exportProfile`, versions 8 to 11.
benchmark_app: OpenVINO's Python and C++ tools, `-report_type no_counters`, CSV or (`-json_stats`) JSON.
onnxruntime-perf: microsoft/onnxruntime onnxruntime/test/perftest, its result file or what it prints with `-s`.
coreml, kit: the JSON documented in docs/tables.md, or a dumped Row of coremltools' MLModelBenchmarker.
aihub: perf.yaml of Qualcomm AI Hub Models.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from u2export.benchmarks.device import Device
from u2export.benchmarks.measuring.rows import planned_artifact
from u2export.benchmarks.report import Latency, Report, Row, Settings
from u2export.errors import Unavailable, UserError
from u2export.exporters.artifact import Artifact
from u2export.install import how_to_install
from u2export.reference.fidelity import ImageFidelity
from u2export.reference.weights import Identity

LARGEST = 256 * 2**20  # a file of raw samples; larger ones are something else
# What readers raise on files of another kind; anything else is a bug.
WRONG = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)
UNTOLD = "not told by the file"
# trtexec warms up for so long unless told otherwise.
WARMUP_MS = 200.0


@dataclass(frozen=True)
class Found:
    """One timed model in a file.

    Attributes:
        name: the model, as the file calls it. device: the same of the machine.
        rounds: samples in ns by round. stated: statistics in ms where there are no samples (see `Row.stated`).
        opening_ns, load_ns, first_ns, memory, runtime: as in `Row`.
        tool, version, timed: what measured, and what lay between start and stop.
        precision: arithmetic, as the file calls it. artifact: sha256 over the artifact's files, where the file tells.
        masks: paths of brought-back masks by picture, relative to the file.
        environment: distribution names and versions, for the report.
        problem: why there are no times.
        notes: further things worth saying.
    """

    tool: str
    name: str = ""
    device: Device | None = None
    rounds: tuple[tuple[int, ...], ...] = ()
    stated: Mapping[str, float] = field(default_factory=dict)
    opening_ns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    load_ns: tuple[int, ...] = ()
    first_ns: int = 0
    memory: Mapping[str, int] = field(default_factory=dict)
    runtime: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    timed: str = UNTOLD
    precision: str = ""
    artifact: str = ""
    masks: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    notes: tuple[str, ...] = ()


def milliseconds(value: Any) -> float:
    """A time in ms; ValueError where it is none."""
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is no time")
    number = float(value)
    if not 0 < number < 1e9:
        raise ValueError(f"{value!r:.40} is no time in ms")
    return number


def nanoseconds(value: Any) -> int:
    """A time given in ms, in whole ns."""
    return max(1, round(milliseconds(value) * 1e6))


# trtexec


def trtexec(text: str, log: str) -> list[Found]:
    """`--exportTimes` (every sample) or `--exportProfile` (layers) of trtexec; `log` is what it printed."""
    data = json.loads(text)
    if not isinstance(data, list) or not data:
        raise ValueError("not a list of samples or layers")
    told = _trtexec_log(log)
    return [_trtexec_profile(data, told) if "count" in data[0] else _trtexec_times(data, log, told)]


def _trtexec_log(log: str) -> Found:
    """Version, device and options from trtexec's own output."""
    version = ""
    if found := re.search(r"\[TensorRT v(\d+)\]", log):
        number = int(found[1])
        step = 10000 if number >= 100000 else 1000
        rest = number % step
        version = f"{number // step}.{rest // 100}.{rest % 100}"
    device = re.search(r"Selected Device: (.+)", log)
    precision = re.search(r"\] Precision: (.+)", log)
    engine = re.search(r"--(?:loadEngine|saveEngine|onnx)=(\S+)", log)
    return Found(
        "trtexec",
        name=Path(engine[1]).name if engine else "",
        device=Device(device[1].strip(), "", "", 0) if device else None,
        version=version,
        precision=precision[1].strip() if precision else "",
        runtime={"runtime": f"TensorRT {version}".strip()},
        environment={"tensorrt": version} if version else {},
    )


def _trtexec_times(data: Sequence[Mapping[str, Any]], log: str, told: Found) -> Found:
    """Warm-up is left out: newer versions do so themselves; older ones, which tell endToEndMs, do not."""
    warmup = re.search(r"Warmup: ([\d.]+) ?ms", log)
    least = float(warmup[1]) if warmup else WARMUP_MS
    kept = [s for s in data if "endToEndMs" not in s or float(s["startComputeMs"]) >= least]
    if not kept:
        raise ValueError("no samples after the warm-up")
    copies = any(float(s["h2dMs"]) > 0 or float(s["d2hMs"]) > 0 for s in kept)
    compute = float(np.median([milliseconds(s["computeMs"]) for s in kept]))
    graph = re.search(r"CUDA Graph: (\w+)", log)
    timed = "host-to-device copy, GPU compute and device-to-host copy" if copies else "GPU compute, no copies"
    return replace(
        told,
        rounds=(tuple(nanoseconds(s["latencyMs"]) for s in kept),),
        timed=f"{timed}; CUDA graph: {graph[1].lower() if graph else UNTOLD}",
        notes=(f"GPU compute alone: median {compute:.3g} ms",) if copies else (),
    )


def _trtexec_profile(data: Sequence[Mapping[str, Any]], told: Found) -> Found:
    layers = [(str(e["name"]), float(e["averageMs"])) for e in data[1:]]
    total = milliseconds(sum(ms for _, ms in layers))
    slowest = sorted(layers, key=lambda layer: -layer[1])[:3]
    shares = ", ".join(f"{name} {100 * ms / total:.0f} %" for name, ms in slowest)
    return replace(
        told,
        stated={"mean": total},
        timed=f"sum of {len(layers)} layers with the profiler on, over {int(data[0]['count'])} runs: not a latency",
        notes=(f"slowest layers: {shares}",),
    )


# OpenVINO's benchmark_app

# Both tools' keys, of the CSV and of the JSON, by what they hold.
BENCHMARK_APP = {
    "p50": ("latency (ms)", "Median latency (ms)"),
    "mean": ("avg latency", "Average latency (ms)", "latency_avg"),
    "min": ("min latency", "Min latency (ms)", "latency_min"),
    "max": ("max latency", "Max latency (ms)", "latency_max"),
}


def benchmark_app(text: str, log: str) -> list[Found]:
    """The no_counters report of OpenVINO's benchmark_app, CSV or JSON."""
    sections = json.loads(text) if text.lstrip().startswith("{") else _sections(text)
    if "execution_results" not in sections:
        raise ValueError("no execution results; give the report of -report_type no_counters")
    results = sections["execution_results"]
    options = {key.lstrip("-"): value for key, value in sections.get("cmd_options", {}).items()}
    setup = {**options, **sections.get("configuration_setup", {})}
    version = re.search(r"Build \.+ (\S+)", log)
    build = version[1] if version else ""
    runtime = {"runtime": f"OpenVINO {build}".strip(), "device": _of(setup, "target device", "target_device")}
    name = Path(_of(setup, "m", "model", "topology").replace("\\", "/")).name
    told = Found("benchmark_app", name, runtime={k: v for k, v in runtime.items() if v}, version=build)
    if error := _of(results, "error"):
        return [replace(told, problem=f"benchmark_app: {' '.join(error.split())}")]
    stated = {key: milliseconds(results[k]) for key, names in BENCHMARK_APP.items() for k in names if k in results}
    if percentile := _of(results, "percentile_boundary"):  # the C++ tool's JSON keeps one key for all percentiles
        stated[f"p{int(float(percentile))}"] = milliseconds(results["latency_median"])
    for key in results:
        if found := re.fullmatch(r"latency \((\d+) percentile\) \(ms\)", key):
            stated[f"p{found[1]}"] = milliseconds(results[key])
    if not stated:
        raise ValueError("no latency among the execution results")
    opening = {
        "read": ("read model time (ms)", "read_model_time"),
        "compile": ("compile model time (ms)", "compile_model_time"),
    }
    first = _of(results, "first inference time (ms)", "first_inference_time")
    count = _of(results, "total number of iterations", "iterations_num")
    requests = _of(setup, "number of parallel infer requests", "nireq")
    return [
        replace(
            told,
            stated=stated,
            opening_ns={k: (nanoseconds(v),) for k, names in opening.items() if (v := _of(results, *names))},
            first_ns=nanoseconds(first) if first else 0,
            timed=f"{_of(setup, 'API', 'api', 'api_type') or 'async'} inference, {requests or '?'} requests at a time, "
            f"inputs filled before, random values; {count or '?'} iterations",
        )
    ]


def _sections(text: str) -> dict[str, dict[str, str]]:
    """The CSV report as its JSON twin: headings without a semicolon, then key;value lines."""
    names = {"Command line parameters": "cmd_options", "Configuration setup": "configuration_setup",
             "Execution results": "execution_results"}  # fmt: skip
    sections: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        if line.strip() in names:
            current = sections.setdefault(names[line.strip()], {})
        elif ";" in line:
            key, _, value = line.partition(";")
            current[key] = value.strip()
    return sections


def _of(values: Mapping[str, Any], *names: str) -> str:
    """The first of these that is there, as text; empty if none."""
    return next((str(values[name]) for name in names if values.get(name) not in (None, "")), "")


# onnxruntime_perf_test

LINE = re.compile(r"^(?P<name>.*),(?P<seconds>[\d.eE+-]+),(?P<peak>\d+),(?P<cpu>-?\d+),(?P<run>\d+)$")
PERF_STATISTIC = re.compile(r"^(Min|Max|P50|P90|P95|P99) Latency(?: is|:) ?([\d.eE+-]+) ?s", re.MULTILINE)


def onnxruntime_perf(text: str, log: str) -> list[Found]:
    """The result file of onnxruntime_perf_test (every sample), or what it prints; `log` is the other one."""
    lines = [found for line in text.splitlines() if (found := LINE.match(line.strip()))]
    printed = _perf_printed(f"{text}\n{log}")
    if not lines:
        if not printed.stated:
            raise ValueError("neither samples nor latencies of onnxruntime_perf_test")
        return [printed]
    return [replace(printed, name=name, rounds=rounds, stated={}, memory={"peak": peak} if peak else printed.memory)
            for name, rounds, peak in _perf_runs(lines)]  # fmt: skip


def _perf_runs(lines: Sequence[re.Match[str]]) -> Iterator[tuple[str, tuple[tuple[int, ...], ...], int]]:
    """Samples by model and by run of the tool, which appends to its file and counts from zero each time."""
    for name in dict.fromkeys(found["name"] for found in lines):
        mine = [found for found in lines if found["name"] == name]
        rounds: list[list[int]] = []
        for found in mine:
            if found["run"] == "0" or not rounds:
                rounds.append([])
            rounds[-1].append(nanoseconds(float(found["seconds"]) * 1e3))
        yield name, tuple(map(tuple, rounds)), max(int(found["peak"]) for found in mine)


def _perf_printed(text: str) -> Found:
    stated = {name.lower(): milliseconds(float(value) * 1e3) for name, value in PERF_STATISTIC.findall(text)}
    if mean := re.search(r"Average (?:inference )?time cost(?: total)?: ?([\d.eE+-]+) ms", text):
        stated["mean"] = milliseconds(mean[1])
    load = re.search(r"Session creation time cost: ?([\d.eE+-]+) s", text)
    first = re.search(r"First inference time cost: ?([\d.]+) ms", text)
    peak = re.search(r"Peak working set size: ?(\d+)", text)
    threads = re.search(r"Setting intra_op_num_threads to (\d+)", text)
    runtime = {"runtime": "ONNX Runtime", "threads": threads[1] if threads else ""}
    return Found(
        "onnxruntime_perf_test",
        stated=stated,
        load_ns=(nanoseconds(float(load[1]) * 1e3),) if load else (),
        first_ns=nanoseconds(first[1]) if first and float(first[1]) else 0,
        memory={"peak": int(peak[1])} if peak else {},
        runtime={k: v for k, v in runtime.items() if v},
        timed="session run, inputs made before",
    )


# Core ML and kits

KIT_FORMAT = "u2export-device/1"


def device_json(text: str, log: str) -> list[Found]:
    """What the kits' programs print, or a dumped Row of coremltools' MLModelBenchmarker; `log` is unused."""
    del log
    data = json.loads(text)
    if data.keys() >= {"samples", "statistics"}:
        return [Found("coremltools MLModelBenchmarker", rounds=(_samples(data["samples"]),),
                      runtime={"runtime": "Core ML"}, timed="MLModel prediction")]  # fmt: skip
    if data.get("format") != KIT_FORMAT:
        raise ValueError(f"its format is {data.get('format')!r:.40}, not {KIT_FORMAT!r}")
    d = {str(k): str(v) for k, v in data["device"].items()}
    cores = int(d.get("cores", 0))
    device = Device(
        d.get("model", ""), d.get("cpu", ""), d.get("arch", ""), cores, os=d.get("os", ""), soc=d.get("soc", "")
    )
    version = str(data.get("runtime_version", ""))
    runtime = {"runtime": f"{data['runtime']} {version}".strip(), "device": str(data.get("compute_unit", ""))}
    more = {k: str(data[k]) for k in ("threads", "thermal", "power_mode", "battery") if data.get(k)}
    return [
        Found(
            str(data.get("tool", "u2export kit")),
            str(data.get("name", "")),
            device,
            rounds=(_samples(data["predict_ms"]),),
            load_ns=tuple(nanoseconds(v) for v in _list(data.get("load_ms", []))),
            first_ns=nanoseconds(data["first_ms"]) if data.get("first_ms") else 0,
            memory={"peak": int(data["peak_bytes"])} if data.get("peak_bytes") else {},
            runtime={k: v for k, v in {**runtime, **more}.items() if v},
            version=version,
            timed=str(data.get("timed", UNTOLD)),
            artifact=str(data.get("artifact_sha256", "")),
            masks={str(k): Path(str(v)).name for k, v in dict(data.get("masks", {})).items()},
        )
    ]


def _list(values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise ValueError(f"expected a list of times, found {values!r:.40}")
    return values


def _samples(values: Any) -> tuple[int, ...]:
    samples = tuple(nanoseconds(v) for v in _list(values))
    if not samples:
        raise ValueError("no samples")
    return samples


# Qualcomm AI Hub


def aihub(text: str, log: str) -> list[Found]:
    """perf.yaml of Qualcomm AI Hub Models: one number for each precision, component, device and runtime."""
    del log
    try:
        import yaml
    except ImportError:
        raise Unavailable("reading YAML needs PyYAML", how_to_install("imports")) from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {str(error).splitlines()[0]}") from None
    cells = [
        (component, precision, device, runtime, cell)
        for precision, values in data["precisions"].items()
        for component, metrics in values["components"].items()
        for device, runtimes in metrics["performance_metrics"].items()
        for runtime, cell in runtimes.items()
    ]
    if not cells:
        raise ValueError("no measurements")
    devices: dict[str, list[str]] = {}
    for _, _, device, _, cell in cells:
        devices.setdefault(str(cell.get("job_id", "")), []).append(str(device))
    return [_shared(_aihub_cell(*one), devices[str(one[4].get("job_id", ""))]) for one in cells]


def _shared(found: Found, devices: Sequence[str]) -> Found:
    """The file lists one job's figures under several devices, without a word; the job's number tells."""
    others = [name for name in dict.fromkeys(devices) if found.device and name != found.device.model]
    return replace(found, notes=(f"one job's figure, listed for {', '.join(others)} too",)) if others else found


AIHUB_RUNTIMES = {"tflite": "LiteRT", "qnn_dlc": "QNN", "onnx": "ONNX Runtime QNN"}


def _aihub_cell(component: str, precision: str, device: str, runtime: str, cell: Mapping[str, Any]) -> Found:
    status, ms = str(cell.get("job_status", "")), cell.get("inference_time_milliseconds")
    layers = cell.get("layer_counts", {})
    placed = ", ".join(f"{layers[unit]} layers on {unit.upper()}" for unit in ("npu", "gpu", "cpu") if layers.get(unit))
    versions = {str(k): str(v) for k, v in cell.get("tool_versions", {}).items()}
    range_mb = cell.get("estimated_peak_memory_range_mb", {})
    info = {"runtime": AIHUB_RUNTIMES.get(runtime, str(runtime)), "arithmetic": str(precision),
            "device": str(cell.get("primary_compute_unit", "")), "layers": placed}  # fmt: skip
    return Found(
        "Qualcomm AI Hub",
        str(component),
        Device(str(device), "", "", 0),
        stated={"single": milliseconds(ms)} if ms is not None else {},
        memory={"peak": int(float(range_mb["max"]) * 2**20)} if range_mb.get("max") else {},
        runtime={k: v for k, v in info.items() if v},
        version=", ".join(f"{k} {v}" for k, v in versions.items()),
        timed="inference on the device, as its profile job estimates it; the number of runs is not told",
        precision=str(precision),
        problem="" if ms is not None else f"AI Hub job {status or 'without a result'}",
    )


FORMATS: Mapping[str, Callable[[str, str], list[Found]]] = {
    "trtexec": trtexec,
    "benchmark_app": benchmark_app,
    "onnxruntime-perf": onnxruntime_perf,
    "coreml": device_json,
    "kit": device_json,
    "aihub": aihub,
}


def read(path: Path, form: str, log: Path | None = None) -> list[Found]:
    """What a tool's file says.

    Args:
        path: the file. form: one of FORMATS. log: what the tool printed, where its file does not say all.

    Raises:
        UserError: a file is missing, too large, or not what that tool writes.
        Unavailable: YAML without PyYAML.
    """
    text, printed = _text(path), _text(log) if log else ""
    try:
        return FORMATS[form](text, printed)
    except WRONG as error:
        what = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        problem = f"{path} is not a file that {form} writes: {what if isinstance(error, ValueError) else _shape(error)}"
        raise UserError(problem, "see docs/tables.md for the commands that write such files") from None


def _shape(error: Exception) -> str:
    """What other errors mean to a reader: a value is missing or of another kind."""
    return (
        f"no {error.args[0]!r:.60} where it should be" if isinstance(error, KeyError) else "other content than expected"
    )


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than {LARGEST >> 20} MiB", "give the file the tool wrote")
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise UserError(f"no such file: {path}", "give the file the tool wrote") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "give the file the tool wrote") from None


# Rows


@dataclass(frozen=True)
class Claim:
    """What the caller says about a file.

    Attributes:
        device: the machine's name, where the file does not tell. precision: the same of the arithmetic.
        artifact: what was timed. url: of where the file was published by others, empty for the caller's own runs.
    """

    device: str = ""
    precision: str = ""
    artifact: Artifact | None = None
    url: str = ""


Judge = Callable[[Found], Mapping[str, ImageFidelity]]


def reports(path: Path, form: str, claim: Claim, log: Path | None = None, judge: Judge | None = None) -> list[Report]:
    """A report for each device in a tool's file.

    Args:
        judge: fidelity by picture of the masks a file names; without it rows have none, and say so.

    Raises:
        UserError: as `read`; no device is named; the file is of another artifact.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    by_device: dict[str, list[tuple[Device, Found, Row]]] = {}
    for found in read(path, form, log):
        device = Device(claim.device, "", "", 0) if claim.device else found.device
        if device is None or not (device.model or device.cpu):
            raise UserError(f"{path} does not say what it was measured on", "name the machine with --device")
        row = _row(found, path, digest, claim, judge)
        by_device.setdefault(device.fingerprint, []).append((device, found, row))
    return [_report(group) for group in by_device.values()]


def _report(group: Sequence[tuple[Device, Found, Row]]) -> Report:
    rows, taken = [], set[str]()
    for _, found, row in group:
        name = (
            row.name if row.name not in taken else f"{row.name} ({found.runtime.get('runtime', '')} {row.arithmetic})"
        )
        taken.add(name)
        rows.append(replace(row, name=name))
    photos = dict.fromkeys(photo for row in rows for photo in row.images)
    samples = max((len(row.latency.ns) for row in rows), default=0)
    versions = {k: v for _, found, _ in group for k, v in found.environment.items()}
    settings = Settings("custom", samples, 0.0, max((len(row.latency.rounds) for row in rows), default=0))
    return Report(group[0][0], settings, versions, tuple(photos), rows=tuple(rows), complete=True)


def _row(found: Found, path: Path, digest: str, claim: Claim, judge: Judge | None) -> Row:
    base = _base(found, path, claim)
    images = judge(found) if judge and found.masks else {}
    source = {"file": path.name, "sha256": digest, "tool": found.tool, "version": found.version or UNTOLD,
              "timed": found.timed, "url": claim.url}  # fmt: skip
    blank = () if images else ("no fidelity: no masks were brought back",)
    unknown = () if claim.artifact else ("no artifact's record: weights and preprocessing are not known",)
    return replace(
        base,
        images=images,
        reference="golden" if images else "",
        latency=Latency(found.rounds),
        stated=found.stated,
        opening_ns=found.opening_ns,
        load_ns=found.load_ns or _sum(found.opening_ns),
        first_ns=found.first_ns,
        memory=found.memory,
        runtime=found.runtime,
        reason="failed" if found.problem else "",
        problem=found.problem,
        notes=(*base.notes, *found.notes, *blank, *unknown),
        provenance="published" if claim.url else "imported",
        source={k: v for k, v in source.items() if v},
    )


def _sum(parts: Mapping[str, Iterable[int]]) -> tuple[int, ...]:
    total = sum(ns for part in parts.values() for ns in part)
    return (total,) if total else ()


def _base(found: Found, path: Path, claim: Claim) -> Row:
    """The row of the artifact, or one that says that its weights are unknown."""
    if claim.artifact:
        row = planned_artifact(claim.artifact.name, claim.artifact).row
        # An engine is called otherwise than the file it was built of; files of one kind are the same or not.
        same_kind = Path(found.name).suffix == claim.artifact.path.suffix
        if (found.artifact and found.artifact != row.digest) or (same_kind and found.name != claim.artifact.name):
            what = f"{path} is of another artifact than {claim.artifact.name}"
            raise UserError(what, "give the artifact that was timed")
        return row
    precision = claim.precision or found.precision or "unknown"
    name = found.name or path.stem
    return Row(name, found.tool, precision, precision, "unknown", Identity(name, ""), {})
