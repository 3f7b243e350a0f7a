"""Does the harness add anything? Its medians against the makers' own tools, in turns.

    python -m u2export.benchmarks.studies.overhead ARTIFACTS --out benchmarks/results/DEVICE

An OpenVINO artifact is timed by the harness and by OpenVINO's benchmark_app, an ONNX artifact by the harness and by a
bare loop around ONNX Runtime. Every turn is a fresh process on either side, with the same threads, and the order within
a round is random. The result is the median over rounds of harness / other, with a bootstrap interval.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Annotated, Any

import numpy as np
import typer

from u2export.benchmarks.device import environment, this_device
from u2export.benchmarks.latency import Latency, speedup
from u2export.benchmarks.measuring.worker_process import WorkerProcess
from u2export.benchmarks.sensors import state
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.exporter import processors
from u2export.exporters.open import read_artifact
from u2export.files import write_json, write_text
from u2export.reference.image import find_photos

MODULE = "u2export.benchmarks.studies.overhead"
WARMUPS = 10
LIMIT = 0.02
Turn = Callable[[Artifact, Path, int, float], float]


def harness(artifact: Artifact, photo: Path, threads: int, seconds: float) -> float:
    """Median ns of a turn as `u2export bench` takes it."""
    with tempfile.TemporaryDirectory() as folder, WorkerProcess(Path(folder) / "log", 120) as child:
        child.ask("open", artifact=str(artifact.path), mode="", threads=threads)
        child.ask("warm", photo=str(photo), limit=5)
        return float(median(child.ask("time", samples=1, seconds=seconds)["ns"]))


def benchmark_app(artifact: Artifact, photo: Path, threads: int, seconds: float) -> float:
    """Median ns of OpenVINO's benchmark_app on input of its own making: synchronous, latency hint, f32.

    It takes a number of threads only without the hint; with it, both sides use all processors they may.
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
            raise UserError(f"benchmark_app failed: {done.stdout.strip().splitlines()[-1:]}", "run it by hand")
        results = json.loads(report.read_text())["execution_results"]
        return float(results["latency (ms)"]) * 1e6


def bare_loop(artifact: Artifact, photo: Path, threads: int, seconds: float) -> float:
    """Median ns of nothing but a clock around ONNX Runtime, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "x.npy", artifact.contract.read(photo))
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


def compare(artifacts: list[Artifact], photo: Path, rounds: int, seconds: float, threads: int) -> list[dict[str, Any]]:
    """Medians in ns by round of both sides for each artifact, and their ratio with its 95 % interval."""
    turns = [(a, side, turn) for a in artifacts for side, turn in (("harness", harness), OTHERS[a.exporter])]
    found: dict[tuple[str, str], list[float]] = {(a.name, side): [] for a, side, _ in turns}
    for number in range(rounds):
        for artifact, side, turn in random.Random(number).sample(turns, len(turns)):
            found[artifact.name, side].append(turn(artifact, photo, threads, seconds))
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return [_pair(a.name, found[a.name, "harness"], found[a.name, OTHERS[a.exporter][0]], a) for a in artifacts]


def _pair(name: str, ours: list[float], theirs: list[float], artifact: Artifact) -> dict[str, Any]:
    one, other = (Latency(tuple((round(ns),) for ns in side)) for side in (ours, theirs))
    ratio = speedup(other, one)
    assert ratio
    return {
        "artifact": name, "other": OTHERS[artifact.exporter][0], "harness_ns": ours, "other_ns": theirs,
        "ratio": ratio.value, "low": ratio.low, "high": ratio.high,
    }  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    """The result as a table, with what a reader needs to judge and repeat it."""
    rows = [
        f"| {p['artifact']} | {p['other']} | {median(p['harness_ns']) / 1e6:.2f} | {median(p['other_ns']) / 1e6:.2f} "
        f"| {p['ratio']:.4f} | {p['low']:.4f}–{p['high']:.4f} | {_verdict(p)} |"
        for p in result["pairs"]
    ]
    tools = ", ".join(f"{k} {v}" for k, v in result["environment"].items() if k in ("openvino", "onnxruntime"))
    return "\n".join(
        [
            "# What the harness adds",
            "",
            "| artifact | against | harness ms | other ms | ratio | 95 % interval | within 2 % |",
            "| :-- | :-- | --: | --: | --: | --: | :-- |",
            *rows,
            "",
            f"Device: {result['device_label']}. {tools}. {result['threads']} thread(s), {result['rounds']} rounds of",
            f"{result['seconds']:g} s a side, every turn a fresh process, in random order in a round. ms: median of",
            "the rounds' medians. ratio: median over rounds of harness / other, interval by bootstrap over rounds.",
            "",
            "Again:",
            "```sh",
            result["command"],
            "```",
            "",
        ]
    )


def _verdict(pair: dict[str, Any]) -> str:
    if pair["low"] >= 1 - LIMIT and pair["high"] <= 1 + LIMIT:
        return "yes"
    return "median yes, interval no" if abs(pair["ratio"] - 1) <= LIMIT else "no"


def main(
    artifacts: list[Path],
    out: Annotated[Path, typer.Option(help="Folder for overhead.json and overhead.md.")],
    images: Annotated[Path, typer.Option(help="A photo, or a folder with one.")] = Path("reference/photos"),
    rounds: Annotated[int, typer.Option(min=5)] = 11,
    seconds: Annotated[float, typer.Option(min=1)] = 2,
) -> None:
    """Compare the harness with OpenVINO's benchmark_app and with a bare loop around ONNX Runtime."""
    opened = [read_artifact(path) for path in artifacts]
    if unknown := [a.name for a in opened if a.exporter not in OTHERS]:
        raise UserError(f"nothing to compare {', '.join(unknown)} with", f"give artifacts of {', '.join(OTHERS)}")
    threads = processors()
    before = state()
    started = perf_counter_ns()
    pairs = compare(opened, find_photos([images])[0], rounds, seconds, threads)
    device = this_device()
    options = f"--rounds {rounds} --seconds {seconds:g}"
    result = {
        "device": asdict(device), "device_label": device.label, "environment": environment(), "before": before,
        "after": state(), "rounds": rounds, "seconds": seconds, "threads": threads, "pairs": pairs,
        "took_s": round((perf_counter_ns() - started) / 1e9),
        "command": f"python -m {MODULE} {' '.join(a.name for a in opened)} --out DEVICE {options}",
    }  # fmt: skip
    write_json(result, out / "overhead.json")
    write_text(markdown(result), out / "overhead.md")
    print(markdown(result))


if __name__ == "__main__":
    typer.run(main)
