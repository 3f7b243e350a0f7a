"""The child process of a bench: opens one artifact and answers requests, one JSON object a line each way.

    python -m u2export.benchmarks.worker

Native runtimes clash in one process and may take it down with them, hence a process for each row. Replies go to a
duplicate of the first standard output, which is then pointed at standard error: runtimes print where they like.

Requests, by their "do"; a path is of this machine:

- describe {artifact}: modes the artifact can run in here -> {modes}
- open {artifact, mode, threads} or {weights, sha256, contract, threads}: open an artifact, or the PyTorch reference
  -> {load_ns, runtime, memory}
- predict {photos, maps}: d0 of every photo into row i of the .npy file `maps` (photos, height, width), float32
  -> a line {photo, preprocess_ns, inference_ns, postprocess_ns} for each
- warm {photo, limit}: first inference, then more until times are steady or `limit` seconds are over
  -> {first_ns, warmup_ns, steady}
- time {samples, seconds}: at least both, on the photo of `warm` -> {ns}
- memory {} -> {memory}: bytes resident at most since the process began
- close {}, or the end of the input

A failure is answered with {error: {kind, problem, hint}}, kind one of the reason codes of `u2export.benchmarks.report`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any, TextIO

import numpy as np

from u2export.errors import Unavailable, UserError
from u2export.exporters import EXPORTERS
from u2export.exporters.base import Artifact, Runner, processors
from u2export.reference.image import Contract, Floats, mask_for, read_photo

Request = dict[str, Any]
# Steady: the medians of the last two windows of so many runs differ by less than this share.
WINDOW, STEADY = 5, 0.05
MOST_WARMUPS = 100


class Worker:
    """State between requests: the open runner, its contract, and the input that is timed."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.runner: Runner
        self.contract: Contract
        self.input: Floats

    def answer(self, request: Request) -> Iterator[dict[str, Any]]:
        """The replies to one request."""
        actions: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
            "describe": self.describe, "open": self.open, "predict": self.predict,
            "warm": self.warm, "time": self.time, "memory": self.memory,
        }  # fmt: skip
        return actions[request.pop("do")](**request)

    def describe(self, artifact: str) -> Iterator[dict[str, Any]]:
        """The modes of an artifact; asking may already load the runtime."""
        opened = Artifact.open(Path(artifact))
        exporter = EXPORTERS[opened.exporter]
        if problem := exporter.missing_runtime():
            raise problem
        yield {"modes": list(exporter.modes(opened))}

    def open(self, threads: int, **which: Any) -> Iterator[dict[str, Any]]:
        """Open an artifact or the reference."""
        before = resident()
        start = perf_counter_ns()
        self.contract, opening = _opening(which, threads)
        self.runner = self.stack.enter_context(opening)
        load_ns = perf_counter_ns() - start
        yield {"load_ns": load_ns, "runtime": dict(self.runner.info), "memory": before}

    def predict(self, photos: list[str], maps: str) -> Iterator[dict[str, Any]]:
        """One photo at a time, so that memory does not grow with the folder."""
        for i, photo in enumerate(photos):
            start = perf_counter_ns()
            pixels = read_photo(Path(photo), self.contract.channels)
            x = self.contract.tensor(pixels)
            ready = perf_counter_ns()
            d0 = self.runner(x)
            inferred = perf_counter_ns()
            self._check(d0)
            if finite := bool(np.isfinite(d0).all()):
                mask_for(d0[0, 0], *pixels.shape[:2])
            end = perf_counter_ns()
            np.load(maps, mmap_mode="r+")[i] = d0[0, 0]  # opened anew, so that its pages are let go
            times = {"preprocess_ns": ready - start, "inference_ns": inferred - ready}
            yield {"photo": i, **times, **({"postprocess_ns": end - inferred} if finite else {})}

    def _check(self, d0: Floats) -> None:
        size = (self.contract.height, self.contract.width)
        if d0.ndim != 4 or d0.shape[0] != 1 or d0.shape[2:] != size:
            raise UserError(f"d0 has shape {d0.shape}, expected (1, K, {size[0]}, {size[1]})", "export it again")

    def warm(self, photo: str, limit: float) -> Iterator[dict[str, Any]]:
        """First inference and warm-up."""
        self.input = self.contract.read(Path(photo))
        first, times = self._timed(), [self._timed()]
        end = perf_counter_ns() + limit * 1e9
        while not (done := steady(times)) and len(times) < MOST_WARMUPS and perf_counter_ns() < end:
            times.append(self._timed())
        yield {"first_ns": first, "warmup_ns": times, "steady": done}

    def time(self, samples: int, seconds: float) -> Iterator[dict[str, Any]]:
        """Steady state, single stream."""
        self.runner(self.input)  # untimed: the other rows' turns have emptied the caches
        times: list[int] = []
        gc.collect()
        gc.disable()
        end = perf_counter_ns() + seconds * 1e9
        while len(times) < samples or perf_counter_ns() < end:
            times.append(self._timed())
        gc.enable()
        yield {"ns": times}

    def _timed(self) -> int:
        start = perf_counter_ns()
        self.runner(self.input)
        return perf_counter_ns() - start

    def memory(self) -> Iterator[dict[str, Any]]:
        """Peak of this process."""
        yield {"memory": peak()}


def steady(times: list[int]) -> bool:
    """Whether the medians of the last two windows agree."""
    if len(times) < 2 * WINDOW:
        return False
    before, now = median(times[-2 * WINDOW : -WINDOW]), median(times[-WINDOW:])
    return abs(now - before) < STEADY * before


def _opening(which: Request, threads: int) -> tuple[Contract, AbstractContextManager[Runner]]:
    if "weights" in which:
        contract = Contract.from_json(which["contract"])
        return contract, _reference(which["weights"], which["sha256"], contract, threads)
    artifact = Artifact.open(Path(which["artifact"]))
    return artifact.contract, EXPORTERS[artifact.exporter].load(artifact, which["mode"], threads)


@contextmanager
def _reference(weights: str, sha256: str, contract: Contract, threads: int) -> Iterator[Runner]:
    """The PyTorch network of exactly these weights."""
    from u2export.reference.source import Source

    source = Source.open(weights, contract)
    if source.weights.sha256 != sha256:
        raise UserError(f"weights {weights} are not the ones the artifacts were made from", "give --reference another")
    import torch

    torch.set_num_threads(threads or processors())
    about = {"runtime": f"PyTorch {torch.__version__.partition('+')[0]}", "device": "CPU", "arithmetic": "fp32"}
    yield Runner(source.predict, {**about, "threads": str(torch.get_num_threads())})


def resident() -> int:
    """Bytes of this process in memory now; 0 where the system does not tell."""
    return _status("VmRSS")


def peak() -> int:
    """Most bytes of this process in memory so far.

    On Linux from /proc: ru_maxrss there starts at the peak of the process that forked this one.
    """
    if found := _status("VmHWM"):
        return found
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _status(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), 0)


def _failure(error: Exception) -> dict[str, Any]:
    if isinstance(error, UserError):
        kind = "unavailable" if isinstance(error, Unavailable) else "refused"
        return {"error": {"kind": kind, "problem": error.problem, "hint": error.hint}}
    traceback.print_exception(error)  # to standard error, which the parent keeps
    return {"error": {"kind": "failed", "problem": f"{type(error).__name__}: {error}", "hint": ""}}


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answer until the input ends or "close" comes."""
    with ExitStack() as stack:
        worker = Worker(stack)
        for line in requests:
            request = json.loads(line)
            if request["do"] == "close":
                return
            try:
                for reply in worker.answer(request):
                    print(json.dumps(reply), file=replies, flush=True)
            except Exception as error:
                print(json.dumps(_failure(error)), file=replies, flush=True)


def main() -> None:
    """Serve the process's standard streams."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
