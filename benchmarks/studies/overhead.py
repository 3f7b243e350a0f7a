"""Does the harness add time to the times it measures? Its medians are compared with those of other tools, in turns.

The harness and OpenVINO's benchmark_app time an OpenVINO artifact. The harness and a bare loop around ONNX Runtime time
an ONNX artifact. Every turn is a fresh process on either side, with the same threads, and the order within a round is
random. The result is the ratio harness / other over the rounds with its interval, by the estimator of speed-ups.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

import numpy as np

from u2export.benchmarks.device import environment, this_device
from u2export.benchmarks.measuring.worker_process import WorkerProcess
from u2export.benchmarks.sensors import state
from u2export.benchmarks.statistics import time_ratio
from u2export.benchmarks.studies.study import Pages, Study, listed, progress
from u2export.benchmarks.tables.markdown import table
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifact
from u2export.exporters.runtime import processors
from u2export.reference.photos import find_photos, read_input

WARMUPS = 10
LIMIT = 0.02
LEAST_ROUNDS = 6
Turn = Callable[[Artifact, Path, int, float], float]


def harness(artifact: Artifact, photo: Path, threads: int, seconds: float) -> float:
    """Return the median ns of a turn of `u2export bench`."""
    with tempfile.TemporaryDirectory() as folder, WorkerProcess(Path(folder) / "log", 120) as child:
        child.ask("open", artifact=str(artifact.path), mode="", threads=threads)
        child.ask("warm", photo=str(photo), limit=5)
        return float(median(child.ask("time", samples=1, seconds=seconds)["ns"]))


def benchmark_app(artifact: Artifact, photo: Path, threads: int, seconds: float) -> float:
    """Return the median ns of OpenVINO's benchmark_app on its own input: synchronous, latency hint, f32.

    The tool takes a number of threads only without the hint. With the hint, both sides use all allowed processors.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = {"-m": artifact.path, "-d": "CPU", "-api": "sync", "-hint": "latency",
                 "-infer_precision": "f32", "-ip": "f32", "-op": "f32", "-t": max(1, round(seconds)),
                 "-report_type": "no_counters", "-report_folder": folder}  # fmt: skip
        tool = Path(sys.executable).with_name("benchmark_app")
        command = [str(tool), *(str(w) for pair in words.items() for w in pair), "-json_stats"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        report = Path(folder) / "benchmark_report.json"
        if done.returncode or not report.exists():
            raise UserError(
                f"benchmark_app failed: {done.stdout.strip().splitlines()[-1:]}",
                "run it by hand to see why",
            )
        results = json.loads(report.read_text())["execution_results"]
        return float(results["latency (ms)"]) * 1e6


def bare_loop(artifact: Artifact, photo: Path, threads: int, seconds: float) -> float:
    """Return the median ns of a bare clock around ONNX Runtime, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "x.npy", read_input(artifact.contract, photo))
        words = (str(artifact.path), f"{folder}/x.npy", str(threads), str(seconds))
        done = subprocess.run([sys.executable, "-c", BARE, *words], capture_output=True, text=True, check=True)
        return float(done.stdout)


BARE = f"""
import sys, time, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
output, feed = [session.get_outputs()[0].name], {{session.get_inputs()[0].name: numpy.load(sys.argv[2])}}
for _ in range({WARMUPS}):
    session.run(output, feed)
times, end = [], time.perf_counter() + float(sys.argv[4])
while time.perf_counter() < end:
    start = time.perf_counter_ns()
    session.run(output, feed)
    times.append(time.perf_counter_ns() - start)
print(sorted(times)[len(times) // 2])
"""
OTHERS: dict[str, tuple[str, Turn]] = {
    "openvino": ("benchmark_app", benchmark_app),
    "onnx": ("bare loop", bare_loop),
    "ort": ("bare loop", bare_loop),
}


def in_turns(artifacts: list[Artifact], photo: Path, rounds: int, seconds: float, threads: int) -> list[dict[str, Any]]:
    """Return the medians in ns of every round and both sides, and their ratio with its interval, for each artifact."""
    turns = [(a, side, turn) for a in artifacts for side, turn in (("harness", harness), OTHERS[a.exporter])]
    found: dict[tuple[str, str], list[float]] = {(a.name, side): [] for a, side, _ in turns}
    for number in range(rounds):
        for artifact, side, turn in random.Random(number).sample(turns, len(turns)):
            found[artifact.name, side].append(turn(artifact, photo, threads, seconds))
        progress(f"round {number + 1} of {rounds}")
    return [_pair(a.name, found[a.name, "harness"], found[a.name, OTHERS[a.exporter][0]], a) for a in artifacts]


def _pair(name: str, ours: list[float], theirs: list[float], artifact: Artifact) -> dict[str, Any]:
    ratio = time_ratio(ours, theirs)
    assert ratio
    return {
        "artifact": name, "other": OTHERS[artifact.exporter][0], "harness_ns": ours, "other_ns": theirs,
        "ratio": ratio.value, "low": ratio.low, "high": ratio.high,
    }  # fmt: skip


def page(result: Mapping[str, Any]) -> str:
    """Return the Markdown page: the result, and what a reader needs to judge and to repeat it."""
    cells = [
        (
            p["artifact"], p["other"], f"{median(p['harness_ns']) / 1e6:.2f}", f"{median(p['other_ns']) / 1e6:.2f}",
            f"{p['ratio']:.4f}", f"{p['low']:.4f}–{p['high']:.4f}", verdict(p),
        )
        for p in result["pairs"]
    ]  # fmt: skip
    titles = ("artifact", "against", "harness ms", "other ms", "ratio", "95 % interval", "within 2 %")
    tools = listed({k: v for k, v in result["environment"].items() if k in ("openvino", "onnxruntime")})
    return f"""# What the harness adds

{table(titles, cells, "llrrrrl")}

Device: {result["device_label"]}. {tools}. {result["threads"]} thread(s), {result["rounds"]} rounds of
{result["seconds"]:g} s a side. Every turn is a fresh process, and the order within a round is random. ms: median of the
medians of the rounds. ratio: harness / other, by the estimator of speed-ups (Hodges and Lehmann over the rounds, with
the exact interval of the signed-rank test).

Again:
```sh
{result["command"]}
```
"""


def verdict(pair: Mapping[str, Any]) -> str:
    """Say in words whether a ratio and its interval, `low` to `high`, lie within the limit."""
    if pair["low"] >= 1 - LIMIT and pair["high"] <= 1 + LIMIT:
        return "yes"
    return "median yes, interval no" if abs(pair["ratio"] - 1) <= LIMIT else "no"


def options(parser: ArgumentParser) -> None:
    """Add the options of this study."""
    parser.add_argument("artifacts", nargs="+", type=Path, metavar="ARTIFACT", help="OpenVINO or ONNX artifacts")
    parser.add_argument("--images", type=Path, default=Path("reference/photos"), help="a photo, or a folder with one")
    parser.add_argument("--rounds", type=int, default=11, help="number of rounds, 6 or more; %(default)s")
    parser.add_argument("--seconds", type=float, default=2, help="seconds of each turn; %(default)s")


def run(given: Namespace, pages: Pages) -> int:
    """Compare the harness with the other tools, and write both pages.

    Raises:
        UserError: there are too few rounds for an interval, or an artifact has no other tool.
    """
    if given.rounds < LEAST_ROUNDS:
        raise UserError(
            f"{given.rounds} rounds are too few for a 95 % interval", f"give --rounds {LEAST_ROUNDS} or more"
        )
    opened = [read_artifact(path) for path in given.artifacts]
    if unknown := [a.name for a in opened if a.exporter not in OTHERS]:
        raise UserError(
            f"there is no other tool to compare {', '.join(unknown)} with", f"give artifacts of {', '.join(OTHERS)}"
        )
    threads, before, started = processors(), state(), perf_counter_ns()
    pairs = in_turns(opened, find_photos([given.images])[0], given.rounds, given.seconds, threads)
    device = this_device()
    result = {
        "device": asdict(device), "device_label": device.label, "environment": environment(), "before": before,
        "after": state(), "rounds": given.rounds, "seconds": given.seconds, "threads": threads, "pairs": pairs,
        "took_s": round((perf_counter_ns() - started) / 1e9), "command": pages.command,
    }  # fmt: skip
    pages.publish(result, page(result))
    return 0


STUDY = Study("overhead", "Does the harness add time to the times it measures?", "overhead", options, run)
