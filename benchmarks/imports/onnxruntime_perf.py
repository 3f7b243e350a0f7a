"""Reader for onnxruntime_perf_test: its file of results (every sample), or the text that it prints with `-s`.

Source: microsoft/onnxruntime, onnxruntime/test/perftest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from u2export.benchmarks.imports.timed_model import TimedModel, bytes_of, milliseconds, nanoseconds

SAMPLE = re.compile(r"^(?P<name>.*),(?P<seconds>[\d.eE+-]+),(?P<peak>\d+),(?P<cpu>-?\d+),(?P<run>\d+)$")
STATISTIC = re.compile(r"^(Min|Max|P50|P90|P95|P99) Latency(?: is|:) ?([\d.eE+-]+) ?s", re.MULTILINE)


def onnxruntime_perf(text: str, log: str) -> list[TimedModel]:
    """Return the models in the file of results or in the printed text; `log` is the other one of the two."""
    samples = [found for line in text.splitlines() if (found := SAMPLE.match(line.strip()))]
    printed = _printed(f"{text}\n{log}")
    if not samples:
        if not printed.stated:
            raise ValueError("neither samples nor latencies of onnxruntime_perf_test")
        return [printed]
    return [replace(printed, name=name, rounds=rounds, stated={}, memory={"peak": peak} if peak else printed.memory)
            for name, rounds, peak in _by_model(samples)]  # fmt: skip


def _by_model(samples: Sequence[re.Match[str]]) -> Iterator[tuple[str, tuple[tuple[int, ...], ...], int]]:
    """Yield each model with its samples in ns by run, and its peak memory in bytes.

    The tool appends to its file. In every run it counts the samples from 0.
    """
    by_name: dict[str, list[re.Match[str]]] = {}
    for sample in samples:
        by_name.setdefault(sample["name"], []).append(sample)
    for name, mine in by_name.items():
        rounds: list[list[int]] = []
        for sample in mine:
            if sample["run"] == "0" or not rounds:
                rounds.append([])
            rounds[-1].append(nanoseconds(float(sample["seconds"]) * 1e3))
        yield name, tuple(map(tuple, rounds)), max(bytes_of(sample["peak"]) for sample in mine)


def _printed(text: str) -> TimedModel:
    """Return what the tool printed: statistics, load time, first inference, memory and threads."""
    stated = {name.lower(): milliseconds(float(value) * 1e3) for name, value in STATISTIC.findall(text)}
    if mean := re.search(r"Average (?:inference )?time cost(?: total)?: ?([\d.eE+-]+) ms", text):
        stated["mean"] = milliseconds(mean[1])
    load = re.search(r"Session creation time cost: ?([\d.eE+-]+) s", text)
    first = re.search(r"First inference time cost: ?([\d.]+) ms", text)
    peak = re.search(r"Peak working set size: ?(\d+)", text)
    threads = re.search(r"Setting intra_op_num_threads to (\d+)", text)
    runtime = {"runtime": "ONNX Runtime", "threads": threads[1] if threads else ""}
    return TimedModel(
        "onnxruntime_perf_test",
        stated=stated,
        load_ns=(nanoseconds(float(load[1]) * 1e3),) if load else (),
        first_ns=nanoseconds(first[1]) if first and float(first[1]) else 0,
        memory={"peak": bytes_of(peak[1])} if peak else {},
        runtime={name: value for name, value in runtime.items() if value},
        timed="session run, inputs made before",
    )
