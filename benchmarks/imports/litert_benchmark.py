"""Readers for LiteRT's two benchmark tools: statistics of one model.

`benchmark_litert_model --result_json` is the Python tool for boards; the source is google-ai-edge/LiteRT,
litert/python/tools/benchmark_litert_model.py, version 2.3.0. `benchmark_model` is the program for phones, which prints
text; the source is tensorflow/lite/tools/benchmark, benchmark_model.cc and benchmark_tflite_model.cc.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath

from u2export.benchmarks.imports.timed_model import TimedModel, milliseconds, nanoseconds

# Statistics by our names, as the Python tool and as the program calls them.
STATISTICS = {"mean": "avg_ms", "min": "min_ms", "max": "max_ms", "p50": "median_ms", "p95": "p95_ms"}
PRINTED = {"mean": "avg", "min": "min", "max": "max", "p50": "median", "p95": "p95"}
NUMBER = r"([\d.]+(?:e[+-]?\d+)?)"
SUMMARY = re.compile(
    rf"Inference timings in us: Init: {NUMBER}, First inference: {NUMBER}, .*Inference \(avg\): {NUMBER}"
)
RUNS = re.compile(r"^.*count=(\d+) .*\bmin=.*$", re.MULTILINE)
GRAPH = re.compile(r"Graph: \[(.*)\]")
THREADS = re.compile(r"Num threads: \[(\d+)\]")
DELEGATE = re.compile(r"(?:licitly applied|Though) (\w+) delegate.*(completely|partially|will not be)")


def litert_benchmark(text: str, log: str) -> list[TimedModel]:
    """Return the one model of a JSON file, or of the text that the program for phones printed."""
    if text.lstrip().startswith("{"):
        return [_of_json(text)]
    return [_of_text(text if SUMMARY.search(text) else log)]


def _of_json(text: str) -> TimedModel:
    data = json.loads(text)
    latency, asked = data["latency"], [str(name) for name in data["accelerators"]]
    stated = {ours: milliseconds(latency[theirs]) for ours, theirs in STATISTICS.items()}
    runs, warm = int(latency["num_runs"]), int(latency["num_warmup_runs"])
    device = "+".join(asked)
    # With a GPU or NPU and the CPU behind it, only this flag says whether the accelerator took everything.
    partly = device != "CPU" and not data["fully_accelerated"]
    return TimedModel(
        "benchmark_litert_model",
        _name(str(data["model"])),
        stated=stated,
        load_ns=(nanoseconds(latency["init_ms"]),),
        first_ns=nanoseconds(latency["warmup_first_ms"]) if warm else 0,
        runtime={"runtime": "LiteRT", "device": device, "threads": str(int(data["num_threads"]))},
        timed=f"one run of the model, random inputs written before; {runs} runs after {warm} to warm up",
        notes=("not every operation ran on the accelerator",) if partly else (),
    )


def _of_text(text: str) -> TimedModel:
    """The model in the text. Times are in microseconds; the last line of statistics is of the runs after warming up."""
    summary, graph, threads = SUMMARY.search(text), GRAPH.search(text), THREADS.search(text)
    runs = list(RUNS.finditer(text))
    if not summary or not graph or not runs:
        raise ValueError("neither JSON nor lines 'Graph: […]', 'count=…' and 'Inference timings in us: …'")
    told = dict(re.findall(rf"(\w+)={NUMBER}", runs[-1][0]))
    stated = {ours: _ms(told[theirs]) for ours, theirs in PRINTED.items() if theirs in told}
    delegates = {name: how for name, how in DELEGATE.findall(text) if name != "XNNPACK"}
    part = "; ".join(f"{name}: the graph is {how} executed by it" for name, how in delegates.items())
    return TimedModel(
        "benchmark_model",
        _name(graph[1]),
        stated={**stated, "mean": _ms(summary[3])},
        load_ns=(nanoseconds(_ms(summary[1])),),
        first_ns=nanoseconds(_ms(summary[2])),
        runtime={"runtime": "LiteRT", "device": "+".join([*delegates, "CPU"]),
                 **({"threads": threads[1]} if threads else {})},
        timed=f"one run of the model; {runs[-1][1]} runs after the warm-up",
        notes=(part,) if part else (),
    )  # fmt: skip


def _ms(microseconds: str) -> float:
    return milliseconds(float(microseconds) / 1000)


def _name(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).name
