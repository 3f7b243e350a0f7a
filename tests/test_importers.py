from __future__ import annotations

import codecs
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from builders import stub_artifact
from conftest import Cli, two_lines
from hypothesis import given
from hypothesis import strategies as st

from u2export.benchmarks.device import Device
from u2export.benchmarks.imports.rows import Claim, reports
from u2export.benchmarks.imports.text import read_yaml
from u2export.benchmarks.imports.tool_files import FORMATS, read
from u2export.benchmarks.imports.trtexec import from_log
from u2export.benchmarks.report import Report
from u2export.benchmarks.tables.render import FORMATS as TABLES
from u2export.benchmarks.tables.render import render
from u2export.errors import UserError

DATA = Path(__file__).parent / "data"


def times(computes: list[float], copy: float = 0.0, old: bool = False, start: float = 0.0) -> str:
    """A file as sampleReporting.cpp writes it: six digits, a comma before all but the first sample."""
    lines = []
    for i, compute in enumerate(computes):
        at = start + 20 * i
        fields = {
            "startEnqMs": at, "endEnqMs": at + 0.1, "startH2dMs": at, "endH2dMs": at + copy,
            "startComputeMs": at + copy, "endComputeMs": at + copy + compute, "startD2hMs": at + copy + compute,
            "endD2hMs": at + 2 * copy + compute, "h2dMs": copy, "computeMs": compute, "d2hMs": copy,
            "latencyMs": compute + 2 * copy, **({"endToEndMs": compute + 9} if old else {}),
        }  # fmt: skip
        lines.append("{ " + ", ".join(f'"{k}" : {v:.6g}' for k, v in fields.items()) + " }")
    return "[\n  " + "\n, ".join(lines) + "\n]\n"


LOG = """&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b17] # trtexec --loadEngine=u2netp.engine --useCudaGraph
[01/02/2026-10:00:00] [I] Precision: FP32+FP16
[01/02/2026-10:00:00] [I] Warmup: 500ms over 0 queries
[01/02/2026-10:00:00] [I] CUDA Graph: Enabled
[01/02/2026-10:00:00] [I] Selected Device: Orin
"""


def one(path: Path, form: str, claim: Claim | None = None, log: str = "") -> Report:
    printed = path.with_suffix(".log")
    if log:
        printed.write_text(log)
    (made,) = reports(path, form, claim or Claim("board"), printed if log else None)
    return made


def test_trtexec_times_without_copies(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(times([5.25, 5.5, 6.0]))
    report = one(file, "trtexec", Claim(), LOG)
    (row,) = report.rows
    assert row.latency.rounds == ((5_250_000, 5_500_000, 6_000_000),) and row.provenance == "imported"
    assert row.source["timed"] == "GPU compute, no copies; CUDA graph: enabled"
    assert row.source["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (row.source["tool"], row.source["version"], row.precision) == ("trtexec", "10.3.0", "FP32+FP16")
    assert (report.device.model, row.name, report.environment) == ("Orin", "u2netp.engine", {"tensorrt": "10.3.0"})
    assert not row.images and "no fidelity: no masks were brought back" in row.notes


def test_trtexec_times_with_copies(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(times([5.0, 5.0], copy=0.5))
    (row,) = one(file, "trtexec").rows
    assert row.latency.p50 == 6.0 and "GPU compute alone: median 5 ms" in row.notes
    assert row.source["timed"].startswith("host-to-device copy") and "CUDA graph: not told" in row.source["timed"]


def test_older_trtexec_keeps_the_warm_up_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(times([50.0] * 10 + [5.0] * 40, old=True))  # 20 ms apart: the first 200 ms are ten samples
    assert one(file, "trtexec").rows[0].latency.ns == (5_000_000,) * 40
    file.write_text(times([50.0] * 10 + [5.0] * 40))
    assert len(one(file, "trtexec").rows[0].latency.ns) == 50
    file.write_text(times([5.0] * 50, old=True))
    assert len(one(file, "trtexec", log=LOG).rows[0].latency.ns) == 25  # 500 ms, as the log says
    file.write_text(times([5.0], old=True))
    with pytest.raises(UserError, match="no samples after the warm-up"):
        one(file, "trtexec")


def test_trtexec_versions() -> None:
    told = {"v8502": "8.5.2", "v8601": "8.6.1", "v100300": "10.3.0", "v101601": "10.16.1", "v110300": "11.3.0"}
    for tag, version in told.items():
        assert from_log(f"&&&& RUNNING TensorRT.trtexec [TensorRT {tag}]").version == version


def test_trtexec_profile_is_not_a_latency(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(
        '[\n  { "count" : 625 }\n, { "name" : "Conv_0 + PWN(Clip_3)", "timeMs" : 41.4, "averageMs" : 3, "percentage"'
        ' : 75 }\n, { "name" : "Conv_8", "timeMs" : 39.2, "averageMs" : 1, "medianMs" : 0.9, "percentage" : 25 }\n]\n'
    )
    (row,) = one(file, "trtexec").rows
    assert row.stated == {"mean": 4.0} and not row.latency.ns
    assert row.source["timed"] == "sum of 2 layers with the profiler on, over 625 runs: not a latency"
    assert "slowest layers: Conv_0 + PWN(Clip_3) 75 %, Conv_8 25 %" in row.notes


PERF_ROWS = "m,0.0588053,123456,98,0\nm,0.06,123456,98,1\nm,0.0610,130000,98,0\n"
PRINTED = """Setting intra_op_num_threads to 4
Session creation time cost: 0.512 s
First inference time cost: 12 ms
Total inference requests: 1000
Average inference time cost total: 5.88053 ms
Peak working set size: 123456789 bytes
Min Latency: 0.0559777 s
P50 Latency: 0.0587108 s
P90 Latency: 0.0599845 s
P999 Latency: 0.0623472 s
"""


def test_onnxruntime_perf_samples_by_run(tmp_path: Path) -> None:
    file = tmp_path / "perf.csv"
    file.write_text(PERF_ROWS + "\nMin Latency is 0.0559777sec\n")
    (row,) = one(file, "onnxruntime-perf", log=PRINTED).rows
    assert row.latency.rounds == ((58_805_300, 60_000_000), (61_000_000,)) and row.name == "m"
    assert row.memory == {"peak": 130000} and row.load_ns == (512_000_000,) and row.first_ns == 12_000_000
    assert row.runtime["threads"] == "4" and not row.stated


@pytest.mark.parametrize("style", [": 0.0587108 s", " is 0.0587108sec", " is 0.0587108 sec"])
def test_onnxruntime_perf_statistics(tmp_path: Path, style: str) -> None:
    file = tmp_path / "perf.log"
    file.write_text(PRINTED.replace(": 0.0587108 s", style))
    (row,) = one(file, "onnxruntime-perf").rows
    assert row.stated["p50"] == pytest.approx(58.7108) and row.stated["mean"] == 5.88053
    assert not row.latency.ns and row.memory == {"peak": 123456789}


KIT = {
    "format": "u2export-device/1", "device": {"model": "iPhone16,1", "os": "18.5"}, "runtime": "Core ML",
    "compute_unit": "cpuAndNeuralEngine", "thermal": "nominal", "timed": "one prediction",
    "load_ms": [210.5], "first_ms": 31, "warmup": 10, "predict_ms": [3.5, 3.25, 4],
}  # fmt: skip


def test_device_json(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(KIT))
    report = one(file, "coreml", Claim())
    (row,) = report.rows
    assert row.latency.ns == (3_500_000, 3_250_000, 4_000_000) and row.load_ns == (210_500_000,)
    assert row.runtime == {"runtime": "Core ML", "device": "cpuAndNeuralEngine", "thermal": "nominal"}
    assert (report.device.model, report.device.os) == ("iPhone16,1", "18.5")


def test_dumped_measurement_of_coremltools(tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    file.write_text(json.dumps({"statistics": {"median": 3.5}, "samples": [3.5, 3.0, 9.0]}))
    (row,) = one(file, "coreml").rows
    assert row.latency.p50 == 3.5 and row.source["tool"] == "coremltools MLModelBenchmarker"


AIHUB = """
precisions:
  float:
    components:
      U2Net-Segmentation:
        performance_metrics:
          Samsung Galaxy S25:
            tflite:
              estimated_peak_memory_range_mb: {max: 91, min: 0}
              inference_time_milliseconds: 10.85
              job_id: j1
              job_status: Passed
              layer_counts: {npu: 261, total: 261}
              primary_compute_unit: NPU
              tool_versions: {litert: 1.4.2, qairt: 2.50.0}
            onnx:
              job_id: j2
              job_status: Failed
          Snapdragon X Elite CRD:
            qnn_dlc:
              inference_time_milliseconds: 20.6
              job_status: Passed
"""


def test_aihub(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    file = tmp_path / "perf.yaml"
    file.write_text(AIHUB)
    made = reports(file, "aihub", Claim(url="https://example.org/perf.yaml"))
    assert [r.device.model for r in made] == ["Samsung Galaxy S25", "Snapdragon X Elite CRD"]
    first, failed = made[0].rows
    assert (
        first.stated == {"single": 10.85} and first.memory == {"peak": 91 * 2**20} and first.provenance == "published"
    )
    assert first.runtime["layers"] == "261 layers on NPU" and first.source["version"] == "litert 1.4.2, qairt 2.50.0"
    assert (failed.reason, failed.problem) == ("failed", "AI Hub job Failed") and not failed.stated
    assert first.name != failed.name and not any("listed for" in note for note in first.notes)
    file.write_text(
        AIHUB.replace(
            "inference_time_milliseconds: 20.6", "inference_time_milliseconds: 20.6\n              job_id: j1"
        )
    )
    first = reports(file, "aihub", Claim())[0].rows[0]
    assert "one job's figure, listed for Snapdragon X Elite CRD too" in first.notes


def test_rows_are_joined_to_the_artifact(tmp_path: Path) -> None:
    made, file = stub_artifact(tmp_path / "random-u2netp-64-ort-fp32.ort", "ort"), tmp_path / "t.json"
    file.write_text(times([5.0]))
    (row,) = one(file, "trtexec", Claim("board", artifact=made)).rows
    assert (row.name, row.weights, row.size, row.exporter) == (made.name, made.weights, made.size, "ort")
    assert row.contract == made.contract.to_json() and not any("not known" in note for note in row.notes)
    (alone,) = one(file, "trtexec").rows
    assert alone.weights.sha256 == "" and any("weights and preprocessing are not known" in n for n in alone.notes)
    file.write_text(json.dumps({**KIT, "artifact_sha256": "0" * 64}))
    with pytest.raises(UserError, match="is of another artifact"):
        one(file, "kit", Claim(artifact=made))
    file.write_text(json.dumps({**KIT, "artifact_sha256": row.digest}))
    assert one(file, "kit", Claim(artifact=made)).rows[0].digest == row.digest


def test_a_device_must_be_known(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(times([5.0]))
    with pytest.raises(UserError, match="does not say what it was measured on") as caught:
        one(file, "trtexec", Claim())
    assert caught.value.option == "device"


@pytest.mark.parametrize("name", ["benchmark_report.csv", "benchmark_report.json"])
def test_real_benchmark_app_reports(name: str, tmp_path: Path) -> None:
    """Reports that OpenVINO 2026.4's own tool wrote, run on an artifact of this project."""
    log = tmp_path / "log.txt"
    log.write_text("[ INFO ] OpenVINO:\n[ INFO ] Build ................................. 2026.4.1-22982-e213a147257\n")
    (report,) = reports(DATA / name, "benchmark_app", Claim("CPU"), log)
    (row,) = report.rows
    assert row.name == "random-u2netp-64-openvino-int8.xml" and row.runtime["device"] == "CPU"
    headline = "p90" if name.endswith("json") else "p50"
    assert set(row.stated) == {headline, "mean", "min", "max"} and not row.latency.ns
    assert row.stated["min"] < row.stated[headline] < row.stated["max"]
    assert set(row.opening_ns) == {"read", "compile"} and row.load_ns == (sum(v[0] for v in row.opening_ns.values()),)
    assert 30_000_000 < row.first_ns < 33_000_000 and row.source["version"].startswith("2026.4.1")
    assert row.source["timed"].startswith("sync inference, 1 requests at a time")


def test_a_report_of_another_model_is_not_joined(tmp_path: Path) -> None:
    made = stub_artifact(tmp_path / "random-u2netp-64-ort-fp32.ort", "ort")
    other = replace(made, path=tmp_path / "u2netp-320-openvino-fp32.xml")
    with pytest.raises(UserError, match="is of another artifact than u2netp-320-openvino-fp32"):
        reports(DATA / "benchmark_report.csv", "benchmark_app", Claim("CPU", artifact=replace(other, files={})))


def test_benchmark_app_of_cpp_and_its_errors(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    results = {"latency_median": "12.5", "percentile_boundary": "99", "latency_avg": 11, "latency_min": 10}
    file.write_text(json.dumps({"configuration_setup": {"topology": "net"}, "execution_results": results}))
    (row,) = one(file, "benchmark_app").rows
    assert row.stated == {"p99": 12.5, "mean": 11.0, "min": 10.0} and row.name == "net"
    error = 'Exception from src/core.cpp:77:\nCannot load library "plugin.so": libOpenCL.so.1: cannot open\n'
    file.write_text(json.dumps({"cmd_options": {"-m": "x.xml", "-d": "GPU"}, "execution_results": {"error": error}}))
    (row,) = one(file, "benchmark_app").rows
    assert (row.reason, row.name) == ("failed", "x.xml") and "libOpenCL.so.1: cannot open" in row.problem
    assert "\n" not in row.problem
    file.write_text(json.dumps({"report_type": "average", "avg_performance": {}}))
    with pytest.raises(UserError, match="no execution results"):
        one(file, "benchmark_app")


def test_litert_benchmark(tmp_path: Path) -> None:
    file = DATA / "benchmark_litert_model.json"  # as LiteRT 2.3.0 wrote it on this project's machine
    (row,) = one(file, "litert-benchmark").rows
    assert row.name == "q64.tflite" and row.stated["p50"] == 12.55 and row.stated["mean"] == 15.47
    assert row.load_ns == (7_660_000,) and row.first_ns == 13_770_000 and not row.latency.ns
    assert row.runtime == {"runtime": "LiteRT", "device": "CPU", "threads": "1"}
    assert not [note for note in row.notes if "accelerator" in note]
    data = json.loads(file.read_text())
    mixed = tmp_path / "gpu.json"
    mixed.write_text(json.dumps({**data, "accelerators": ["GPU", "CPU"]}))
    (row,) = one(mixed, "litert-benchmark").rows
    assert row.runtime["device"] == "GPU+CPU" and "not every operation ran on the accelerator" in row.notes
    mixed.write_text(json.dumps({**data, "latency": {}}))
    with pytest.raises(UserError, match="is missing"):
        one(mixed, "litert-benchmark")


# The lines that benchmark_model.cc and benchmark_tflite_model.cc log. Older sources begin them without "INFO: "; newer
# sources add p5, median and p95.
PRINTED_BY_LITERT = """\
INFO: STARTING!
INFO: Num threads: [4]
INFO: Graph: [/data/local/tmp/u2export/m.tflite]
INFO: Loaded model /data/local/tmp/u2export/m.tflite
INFO: Initialized session in 16.242ms.
INFO: count=2 first=304586 curr=301000 min=301000 max=304586 avg=302793 std=1793

INFO: count=50 first=249042 curr=250889 min=247067 max=254474 avg=2.49684e+05 std=2352
INFO: Inference timings in us: Init: 16242, First inference: 360262, Warmup (avg): 304586, Inference (avg): 249684
"""


def test_litert_benchmark_of_a_phone(tmp_path: Path) -> None:
    file = tmp_path / "run.txt"
    file.write_text(PRINTED_BY_LITERT)
    (row,) = one(file, "litert-benchmark").rows
    assert row.name == "m.tflite" and row.stated == {"mean": 249.684, "min": 247.067, "max": 254.474}
    assert row.load_ns == (16_242_000,) and row.first_ns == 360_262_000 and "50 runs" in row.source["timed"]
    assert row.runtime == {"runtime": "LiteRT", "device": "CPU", "threads": "4"}
    file.write_text(PRINTED_BY_LITERT.replace("INFO: ", ""))
    (older,) = one(file, "litert-benchmark").rows
    assert (older.stated, older.load_ns, older.runtime) == (row.stated, row.load_ns, row.runtime)
    newer = PRINTED_BY_LITERT.replace("std=2352", "std=2352 p5=247100 median=249500 p95=253000")
    gpu = "Explicitly applied GPU delegate, and the model graph will be partially executed by the delegate w/ 2"
    file.write_text(newer + gpu)
    (row,) = one(file, "litert-benchmark").rows
    assert row.stated["p50"] == 249.5 and row.stated["p95"] == 253 and row.runtime["device"] == "GPU+CPU"
    assert "GPU: the graph is partially executed by it" in row.notes
    for part in ("Graph", "count=", "Inference timings"):
        file.write_text(PRINTED_BY_LITERT.replace(part, "…"))
        with pytest.raises(UserError, match="not a file that litert-benchmark writes"):
            one(file, "litert-benchmark")


# The lines that executor_runner.cpp of ExecuTorch 1.5 logs.
EXECUTED = """\
I 00:00:00.000712 executorch:executor_runner.cpp:293] Model file /data/local/tmp/u2netp.pte is loaded.
I 00:00:00.000725 executorch:executor_runner.cpp:303] Using method forward
I 00:00:01.234567 executorch:executor_runner.cpp:419] Model executed successfully 10 time(s) in 1234.500000 ms.
I 00:00:01.234589 executorch:executor_runner.cpp:428] 1 outputs:
"""


def test_executorch_runner(tmp_path: Path) -> None:
    file = tmp_path / "run.log"
    file.write_text(EXECUTED)
    (row,) = one(file, "executorch").rows
    assert row.name == "u2netp.pte" and row.stated == {"mean": 123.45} and not row.latency.ns
    assert row.runtime == {"runtime": "ExecuTorch"} and "the first included" in row.source["timed"]
    file.write_text(EXECUTED + EXECUTED.replace("u2netp.pte", "other.pte"))
    assert [row.name for row in one(file, "executorch").rows] == ["u2netp.pte", "other.pte"]
    each = "".join(f"Iteration {n} of 10: {100 + n}.5 ms\n" for n in range(1, 11))
    later = f"Resetting threadpool with num threads = 4\n{EXECUTED.splitlines()[0]}\nModel loaded in 7.5 ms.\n{each}"
    file.write_text(later + EXECUTED.splitlines()[2])
    (row,) = one(file, "executorch").rows
    assert row.latency.ns[0] == 102_500_000 and len(row.latency.ns) == 9 and row.first_ns == 101_500_000
    assert row.load_ns == (7_500_000,) and row.runtime["threads"] == "4" and not row.stated
    for wrong in ("10 time(s)", "0 time(s) in 5 ms.", "5 time(s) in 0 ms."):
        file.write_text(f"Model executed successfully {wrong}")
        with pytest.raises(UserError, match="not a file that executorch writes"):
            one(file, "executorch")


def test_executorch_runner_of_this_machine() -> None:
    """What executor_runner printed when the commands of a kit ran it: the libraries are those of the wheel 1.5.1."""
    (row,) = one(DATA / "executor_runner.txt", "executorch").rows
    assert row.name == "u2netp-320-executorch-fp32.pte" and len(row.latency.ns) == 19 and not row.stated
    assert row.runtime == {"runtime": "ExecuTorch", "threads": "4"} and row.load_ns == (75_568_069,)
    assert row.first_ns > max(row.latency.ns) > 0 and row.source["timed"] == "each execution after the first"


GOOD = {
    "trtexec": times([5.0, 6.0], copy=0.1), "benchmark_app": json.dumps({"execution_results": {"latency (ms)": "5"}}),
    "onnxruntime-perf": PERF_ROWS + PRINTED, "coreml": json.dumps(KIT), "kit": json.dumps(KIT), "aihub": AIHUB,
    "litert-benchmark": (DATA / "benchmark_litert_model.json").read_text(), "executorch": EXECUTED,
}  # fmt: skip


def imports_or_says_why(path: Path, form: str) -> None:
    try:
        made = reports(path, form, Claim("board"))
    except UserError as error:
        assert error.problem and error.hint and "\n" not in error.problem
    else:
        assert made and all(render(made, table) for table in TABLES)
        for report in made:
            report.save(path.with_suffix(".out"))
            assert Report.load(path.with_suffix(".out")) == report


@given(st.sampled_from(sorted(FORMATS)), st.text(max_size=60) | st.binary(max_size=60))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, form: str, content: str | bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any"
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    imports_or_says_why(file, form)


@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_damaged_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    text = GOOD[form]
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start, min(len(text), start + 30)))
    junk = data.draw(st.sampled_from(["", "null", "-1", "1e999", '"x"', "[]", "{", "NaN", "true", ": ["]))
    file = tmp_path_factory.getbasetemp() / "damaged"
    file.write_text(text[:start] + junk + text[end:], encoding="utf-8")
    imports_or_says_why(file, form)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["format", "device", "samples", "statistics", "execution_results", "count", "computeMs", "precisions",
         "components", "performance_metrics", "predict_ms", "runtime", "model", "h2dMs", "d2hMs", "latencyMs"]
    ), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.sampled_from(sorted(FORMATS)), plain)
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, form: str, data: object) -> None:
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_text(json.dumps(data))
    imports_or_says_why(file, form)


def test_import_command(cli: Cli, tmp_path: Path) -> None:
    file, out = tmp_path / "t.json", tmp_path / "out"
    file.write_text(times([float(ms) for ms in np.linspace(5, 6, 30)]))
    log = tmp_path / "t.log"
    log.write_text(LOG)
    done = cli("import", file, "--as", "trtexec", "--log", log, "--out", out)
    assert done.stdout.strip() == str(out / "orin-t.json"), done.stderr
    shown = cli("table", out / "orin-t.json").stdout
    assert "u2netp.engine" in shown and "imported" in shown and "trtexec 10.3.0" in shown
    two_lines(cli("import", file, "--as", "trtexec", "--out", out), "does not say what it was measured on")
    two_lines(cli("import", file, "--as", "benchmark_app", "--out", out), "is not a file that benchmark_app writes")
    two_lines(cli("import", tmp_path / "none", "--as", "kit", "--out", out), "no such file")


def test_devices_keep_apart() -> None:
    one, other = (Device(name, "", "", 0) for name in ("Orin", "Nano"))
    assert one.fingerprint != other.fingerprint and replace(one) == one


SHARED_CASES = Path(os.environ.get("U2EXPORT_SHARED", "none")).parent / "cases" / "imports"
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-be-bom", "utf-32")
OLD_AIHUB = """
models:
- name: FCN-ResNet50
  performance_metrics:
  - torchscript_onnx_tflite:
      inference_time: 47453.0
      throughput: 21.07
      estimated_peak_memory_range: {min: 335872, max: 21260056}
      primary_compute_unit: NPU
      precision: fp16
      layer_info: {layers_on_npu: 88, layers_on_gpu: 0, layers_on_cpu: 0, total_layers: 88}
      job_id: j000000
      job_status: Passed
    torchscript_onnx_qnn: {inference_time: 'null', job_id: j1, job_status: Failed}
    reference_device_info: {name: Samsung Galaxy S23, os: '13', os_name: Android, chipset: Snapdragon 8 Gen 2}
    timestamp: '2025-04-01T07:15:40Z'
"""


def encoded(text: str, encoding: str) -> bytes:
    return codecs.BOM_UTF16_BE + text.encode("utf-16-be") if encoding == "utf-16-be-bom" else text.encode(encoding)


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_every_encoding_that_a_mark_announces_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    if form == "aihub":
        pytest.importorskip("yaml")
    made, log = [], tmp_path / "log.txt"
    for encoding in ENCODINGS:
        file = tmp_path / "times"
        file.write_bytes(encoded(GOOD[form].replace("\n", "\r\n"), encoding))
        log.write_bytes(encoded(LOG, encoding))
        rows = [row for report in reports(file, form, Claim("board"), log) for row in report.rows]
        made.append([replace(row, source={**row.source, "sha256": ""}) for row in rows])
    assert all(rows == made[0] for rows in made[1:]) and made[0]


def test_results_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(times([5.0, 6.0]))
    report = one(tmp_path / "t.json", "trtexec", Claim("board"))
    report.save(tmp_path / "r.json")
    (tmp_path / "r.json").write_bytes((tmp_path / "r.json").read_text(encoding="utf-8").encode("utf-16"))
    assert Report.load(tmp_path / "r.json") == report


def test_older_files_of_aihub_hold_microseconds(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    (tmp_path / "perf.yaml").write_text(OLD_AIHUB)
    report = one(tmp_path / "perf.yaml", "aihub", Claim())
    good, failed = report.rows
    assert (report.device.model, report.device.soc) == ("Samsung Galaxy S23", "Snapdragon 8 Gen 2")
    assert good.stated == {"single": 47.453} and good.memory == {"peak": 21260056} and good.precision == "fp16"
    assert good.runtime["layers"] == "88 layers on NPU" and good.runtime["runtime"] == "LiteRT"
    assert (failed.reason, failed.problem) == ("failed", "AI Hub job Failed")


def test_figures_without_a_job_share_nothing(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    (tmp_path / "perf.yaml").write_text(AIHUB.replace("job_id: j1", "x: 1").replace("job_id: j2", "x: 1"))
    rows = [row for report in reports(tmp_path / "perf.yaml", "aihub", Claim()) for row in report.rows]
    assert len(rows) == 3 and not any("listed for" in note for row in rows for note in row.notes)


BOMB = "a: &a0 {x: 1}\n" + "".join(f"k{i}: &a{i + 1} [*a{i}, *a{i}, *a{i}]\n" for i in range(30))
HEAD = "precisions: {float: {components: {c: {performance_metrics: {d: {tflite: {inference_time_milliseconds: "
HOSTILE = {
    "aliases": BOMB, "an alias in itself": "precisions: &a {float: *a}", "nested": "precisions: " + "[" * 100_000,
    "nested blocks": "\n".join(" " * i + "a:" for i in range(600)), "a long number": "precisions: " + "1:" * 200_000,
    "digits": "precisions: " + "9" * 100_000, "merged": BOMB.replace("[", "{<<: [").replace("]", "]}"),
    **{word: HEAD + word + "}}}}}}}" for word in (".nan", ".inf", "-1", "0", "9" * 500, "true", "[]")},
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_yaml_is_refused_at_once(tmp_path: Path, case: str) -> None:
    pytest.importorskip("yaml")
    (tmp_path / "perf.yaml").write_text(HOSTILE[case])
    start = perf_counter()
    with pytest.raises(UserError) as refused:
        reports(tmp_path / "perf.yaml", "aihub", Claim("board"))
    assert perf_counter() - start < 5 and len(str(refused.value)) < 400 and "\n" not in str(refused.value)


def test_a_few_aliases_are_no_bomb() -> None:
    pytest.importorskip("yaml")
    assert read_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize("ms", ["NaN", "Infinity", "-1", "0", "1e400", "9" * 5000, "null", "true", '"x"', "[" * 90000])
@pytest.mark.parametrize("form", ["trtexec", "kit", "benchmark_app"])
def test_times_that_are_none_are_refused(tmp_path: Path, form: str, ms: str) -> None:
    text = {
        "trtexec": f'[{{"startComputeMs": 0, "h2dMs": 0, "computeMs": {ms}, "d2hMs": 0, "latencyMs": {ms}}}]',
        "kit": f'{{"format": "u2export-device/1", "runtime": "r", "device": {{"model": "m"}}, "predict_ms": [{ms}]}}',
        "benchmark_app": f'{{"execution_results": {{"latency (ms)": {ms}}}}}',
    }[form]
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(UserError, match="is not a file that") as refused:
        reports(tmp_path / "t.json", form, Claim("board"))
    assert "\n" not in refused.value.problem and len(refused.value.problem) < 400


def test_half_characters_can_be_saved(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps({**KIT, "name": "\ud800x"}))
    report = one(tmp_path / "t.json", "kit")
    report.save(tmp_path / "r.json")
    assert Report.load(tmp_path / "r.json") == report and report.rows[0].name.endswith("x")


def test_reading_takes_time_in_proportion_to_the_file(tmp_path: Path) -> None:
    lines = [f"model{i}.onnx,0.0125,1048576,90,0" for i in range(20_000)]
    (tmp_path / "perf.csv").write_text("\n".join(lines))
    start = perf_counter()
    assert len(read(tmp_path / "perf.csv", "onnxruntime-perf")) == len(lines)
    assert perf_counter() - start < 10  # the square of it took minutes


def test_one_job_of_many_devices_has_a_short_note(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    devices = "".join(
        f"          d{i}: {{tflite: {{inference_time_milliseconds: 1.5, job_id: j}}}}\n" for i in range(300)
    )
    text = f"precisions:\n  float:\n    components:\n      u:\n        performance_metrics:\n{devices}"
    (tmp_path / "perf.yaml").write_text(text)
    found = read(tmp_path / "perf.yaml", "aihub")
    assert found[0].notes == ("one job's figure, listed for d1, d2, d3, d4, d5 and 294 more too",)
    assert found[-1].notes == ("one job's figure, listed for d0, d1, d2, d3, d4 and 294 more too",)


@pytest.mark.skipif(not SHARED_CASES.is_dir(), reason="needs the shared cases")
def test_shared_cases() -> None:
    pytest.importorskip("yaml")
    assert one(SHARED_CASES / "old_perf.yaml", "aihub").rows[0].stated == {"single": 47.453}
    marked, plain = (
        reports(SHARED_CASES / name, "trtexec", Claim(), SHARED_CASES / "trt.log")[0].rows[0]
        for name in ("trt10_bom.json", "trt10.json")
    )
    assert marked.latency == plain.latency and marked.latency.ns and marked.name == plain.name
    with pytest.raises(UserError, match="aliases"):
        reports(SHARED_CASES / "bomb.yaml", "aihub", Claim())


BOARD = (
    "07-14-2025 10:29:36 RAM 2147/7620MB (lfb 2x4MB) CPU [0%@729] GR3D_FREQ {load}% gpu@48.625C "
    "VDD_IN {mw}mW/4556mW VDD_CPU_GPU_CV 483mW/483mW"
)
WATTS = [(0, 4000)] * 9 + [(98, 10_000)] * 5 + [(97, 16_000)]
POWER = {
    "board": "\n".join(BOARD.format(load=load, mw=mw) for load, mw in WATTS),
    "GPU": "power.draw [W], utilization.gpu [%]\n" + "[N/A], 99 %\n35.00 W, 0 %\n" + "11.00 W, 99 %\n" * 6,
    "ANE": "*** Sampled system activity\nCombined Power (CPU + GPU + ANE): 11000 mW\n" * 5,
}  # fmt: skip


@pytest.mark.parametrize("of", POWER)
def test_a_log_of_power_gives_the_energy_of_a_picture(of: str, cli: Cli, tmp_path: Path) -> None:
    """Eleven watts for 20 ms are 0.22 J, in every form of log; idle times before the run do not count."""
    timed, log = tmp_path / "t.json", tmp_path / "power.log"
    timed.write_text(times([20.0] * 40))
    log.write_text(POWER[of])
    words = ("import", timed, "--as", "trtexec", "--device", "Board", "--out", tmp_path)
    done = cli(*words, "--power", log, "--json")
    assert done.returncode == 0, done.stderr
    (path,) = json.loads(done.stdout)["written"]
    (row,) = Report.load(Path(path)).rows
    assert row.joules == pytest.approx(0.22, rel=1e-6)
    (note,) = [note for note in row.notes if note.startswith("energy: 11 W, the mean power of ")]
    assert of in note
    text = render([Report.load(Path(path))], "md")
    assert "| J |" in text and " 0.22 |" in text and "J: energy of one picture" in text


def test_what_is_no_log_of_power(cli: Cli, tmp_path: Path) -> None:
    timed, log = tmp_path / "t.json", tmp_path / "power.log"
    timed.write_text(times([20.0] * 40))
    words = ("import", timed, "--as", "trtexec", "--device", "Board", "--power", log)
    two_lines(cli(*words), "no such file")
    idle = "\n".join([BOARD.format(load=3, mw=4000)] * 9)
    for text, says in (("", "no power"), (idle, "0 of 9"), (idle.replace("VDD_IN", "VDD_CPU_CV"), "no power")):
        log.write_text(text)
        two_lines(cli(*words), says)
    log.write_text(POWER["ANE"])
    statistics = ("import", DATA / "benchmark_report.json", "--as", "benchmark_app", "--device", "B", "--power", log)
    two_lines(cli(*statistics), "every time of one model")
