"""Reader for LiteRT's `benchmark_litert_model --result_json`: statistics of one model.

Source: google-ai-edge/LiteRT, litert/python/tools/benchmark_litert_model.py, version 2.3.0.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath

from u2export.benchmarks.imports.timed_model import TimedModel, milliseconds, nanoseconds

# The file's statistics by ours.
STATISTICS = {"mean": "avg_ms", "min": "min_ms", "max": "max_ms", "p50": "median_ms", "p95": "p95_ms"}


def litert_benchmark(text: str, log: str) -> list[TimedModel]:
    """Return the one model of a file. The log adds nothing: the tool does not print its version."""
    data = json.loads(text)
    latency, asked = data["latency"], [str(name) for name in data["accelerators"]]
    stated = {ours: milliseconds(latency[theirs]) for ours, theirs in STATISTICS.items()}
    runs, warm = int(latency["num_runs"]), int(latency["num_warmup_runs"])
    device = "+".join(asked)
    # With a GPU or NPU and the CPU behind it, only this flag says whether the accelerator took everything.
    partly = device != "CPU" and not data["fully_accelerated"]
    return [
        TimedModel(
            "benchmark_litert_model",
            PurePosixPath(str(data["model"]).replace("\\", "/")).name,
            stated=stated,
            load_ns=(nanoseconds(latency["init_ms"]),),
            first_ns=nanoseconds(latency["warmup_first_ms"]) if warm else 0,
            runtime={"runtime": "LiteRT", "device": device, "threads": str(int(data["num_threads"]))},
            timed=f"one run of the model, random inputs written before; {runs} runs after {warm} to warm up",
            notes=("not every operation ran on the accelerator",) if partly else (),
        )
    ]
