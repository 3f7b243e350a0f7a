"""The worker process of a row: it opens one artifact and answers requests.

    python -m u2export.benchmarks.measuring.worker

Native runtimes may conflict in one process, and a crash ends the process; therefore each row has a process of its own.
A request is one line of JSON on standard input, and an answer is one line of JSON (or several) on standard output.
Runtimes print on standard output too; therefore the worker answers on a duplicate of it, and points standard output
itself at standard error.

Requests, by their field "do". All paths are paths on the worker's machine.

- machine {} -> {device, environment, state}, as in `u2export.benchmarks.device` and `sensors`.
- pulse {} -> {pulse}: clocks and temperatures.
- describe {artifact, workshop, output} -> {modes, built, size}: `modes` are the arithmetics in which this machine runs
  the artifact. Where the request names a folder `workshop` and the artifact must be built on this machine, the worker
  builds it there; `built` is the path of what it built and `size` its bytes. `output` names the output that is d0, of
  a file without a record.
- open {artifact, mode, output, threads, batch, streams} or {weights, sha256, contract, threads, batch, streams}
  -> {load_ns, opening_ns, runtime, memory}: open an artifact, or the PyTorch reference, once for each stream.
- predict {photos} -> a line {photo, preprocess_ns, inference_ns, postprocess_ns, maps, d0} for each photo: `maps` is
  the number of maps (one for each class), and d0 is all maps (maps, height, width) as base64 of little-endian float32.
- warm {photo, limit} -> {first_ns, warmup_ns, steady}: run the first inference, then further inferences until their
  times are steady or `limit` seconds have passed.
- time {samples, seconds} -> {ns}: time inferences on the photo of `warm`, at least so many and at least so long. The
  answer also has {span_ns} where streams overlap or pictures come in batches, and {energy_uj} where the system counts
  energy.
- memory {} -> {memory}: bytes; "peak" is the most resident memory since the process began, "device" the present memory
  on a GPU with memory of its own.
- close {}: end. The end of the input does the same.

Any answer may have {notes}, a list of remarks for the row's note.

The answer to a request that fails is {error: {kind, problem, hint}}; kind is a reason code of
`u2export.benchmarks.report`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from math import ceil
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any, TextIO

import numpy as np

from u2export.benchmarks.device import environment, this_device
from u2export.benchmarks.sensors import device_memory, energy, pulse, spent, state
from u2export.errors import Unavailable, UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifact, target_of
from u2export.exporters.runtime import Runner, processors
from u2export.reference.classes import shown_for
from u2export.reference.image import Contract, Floats
from u2export.reference.photos import open_picture, read_input

Request = dict[str, Any]
# Times are steady when the medians of the last two windows of WINDOW inferences differ by less than this share.
WINDOW, STEADY = 5, 0.05
MOST_WARMUPS = 100


class Worker:
    """What a worker holds between requests: the open runners (one for each stream), their contract and their input."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.runners: Sequence[Runner] = ()
        self.batch = 1
        self.contract: Contract
        self.inputs: Sequence[Any]

    def answer(self, request: Request) -> Iterator[dict[str, Any]]:
        """Yield the answers to one request."""
        actions: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
            "machine": self.machine, "pulse": self.pulse, "describe": self.describe, "open": self.open,
            "predict": self.predict, "warm": self.warm, "time": self.time, "memory": self.memory,
        }  # fmt: skip
        return actions[request.pop("do")](**request)

    def machine(self) -> Iterator[dict[str, Any]]:
        """Tell what the machine is, what is installed on it, and in which state it is."""
        yield {"device": asdict(this_device()), "environment": environment(), "state": state()}

    def pulse(self) -> Iterator[dict[str, Any]]:
        """Tell the state of the machine, from the kernel's files only."""
        yield {"pulse": pulse()}

    def describe(self, artifact: str, workshop: str = "", output: str = "") -> Iterator[dict[str, Any]]:
        """Tell the arithmetics of an artifact on this machine; this may load the runtime."""
        opened = read_artifact(Path(artifact), output)
        arithmetics = _ready(opened)
        made = target_of(opened).built(opened, Path(workshop)) if workshop else None
        if made is None:
            yield {"modes": list(arithmetics)}
        else:
            yield {"modes": list(_ready(made)), "built": str(made.path), "size": made.size}

    def open(self, threads: int, batch: int = 1, streams: int = 1, **which: Any) -> Iterator[dict[str, Any]]:
        """Open an artifact, or the PyTorch reference."""
        before = resident()
        self.batch = batch
        opening: AbstractContextManager[Sequence[Runner]]
        importing = 0
        if "weights" in which:
            self.contract = Contract.from_json(which["contract"])
            start = perf_counter_ns()
            opening = _reference(which["weights"], which["sha256"], self.contract, threads, streams)
        else:
            artifact = read_artifact(
                Path(which["artifact"]), which.get("output", "")
            )  # not timed: the runtime does not hash files
            self.contract = artifact.contract
            start = perf_counter_ns()
            _ready(artifact)
            importing = perf_counter_ns() - start
            opening = target_of(artifact).streams(artifact, which["mode"], threads, streams)
        self.runners = self.stack.enter_context(opening)
        load_ns = perf_counter_ns() - start
        phases = {**({"import": importing} if importing else {}), **self.runners[0].opening}
        yield {
            "load_ns": load_ns, "opening_ns": phases, "runtime": dict(self.runners[0].info), "memory": before,
        }  # fmt: skip

    def predict(self, photos: list[str]) -> Iterator[dict[str, Any]]:
        """Predict one photo after the other, so that memory does not grow with the number of photos."""
        runner = self.runners[0]
        for i, photo in enumerate(photos):
            start = perf_counter_ns()
            picture = open_picture(Path(photo), self.contract.channels)
            x = self.contract.tensor(picture.pixels)
            ready = perf_counter_ns()
            fed = runner.prepare(x)
            begin = perf_counter_ns()
            d0 = runner.predict(fed)
            inferred = perf_counter_ns()
            self._check(d0, 1)
            if finite := bool(np.isfinite(d0).all()):
                shown_for(d0[0], picture.height, picture.width)
            end = perf_counter_ns()
            times = {"preprocess_ns": ready - start, "inference_ns": inferred - begin}
            times.update({"postprocess_ns": end - inferred} if finite else {})
            yield {"photo": i, **times, "maps": d0.shape[1], "d0": b64encode(d0[0].astype("<f4").tobytes()).decode()}

    def _check(self, d0: Floats, batch: int) -> None:
        size = (self.contract.height, self.contract.width)
        if d0.ndim != 4 or d0.shape[0] != batch or d0.shape[2:] != size:
            expected = f"({batch}, K, {size[0]}, {size[1]})"
            raise UserError(f"d0 has shape {d0.shape}, expected {expected}", "export it again")

    def warm(self, photo: str, limit: float) -> Iterator[dict[str, Any]]:
        """Run the first inference and the warm-up."""
        batch = np.repeat(read_input(self.contract, Path(photo)), self.batch, axis=0)
        # Some runtimes take another form of the network input. The worker makes it before the clock starts.
        self.inputs = [runner.prepare(batch) for runner in self.runners]
        first = self._first()
        times = [self._timed()]
        end = perf_counter_ns() + limit * 1e9
        while not (done := steady(times)) and len(times) < MOST_WARMUPS and perf_counter_ns() < end:
            times.append(self._timed())
        for stream in range(1, len(self.runners)):
            self._timed(stream)
        yield {"first_ns": first, "warmup_ns": times, "steady": done}

    def _first(self) -> int:
        """Return the ns of the first inference. A batch that the graph does not take is refused; it is not a bug."""
        start = perf_counter_ns()
        try:
            d0 = self.runners[0].predict(self.inputs[0])
        except Exception as error:
            if self.batch == 1:
                raise
            why = str(error).strip().partition("\n")[0][:150]
            hint = "export with a free batch, or use streams"
            raise UserError(f"the model takes no batch of {self.batch}: {why}", hint) from None
        first = perf_counter_ns() - start
        self._check(d0, self.batch)
        return first

    def time(self, samples: int, seconds: float) -> Iterator[dict[str, Any]]:
        """Time the steady state: one inference at a time, or one on each stream at the same time."""
        self._timed()  # not counted: the turns of the other rows have emptied the caches
        gc.collect()
        gc.disable()
        before, start = energy(), perf_counter_ns()
        if len(self.runners) == 1:
            times = self._repeat(0, samples, seconds)
        else:
            each = ceil(samples / len(self.runners))
            with ThreadPoolExecutor(len(self.runners)) as pool:
                found = [pool.submit(self._repeat, i, each, seconds) for i in range(len(self.runners))]
                times = [ns for stream in found for ns in stream.result()]
        span = perf_counter_ns() - start
        used = spent(before, energy())
        gc.enable()
        overlapping = {"span_ns": span} if self.batch * len(self.runners) > 1 else {}
        yield {"ns": times, **overlapping, **({"energy_uj": used} if used is not None else {})}

    def _repeat(self, stream: int, samples: int, seconds: float) -> list[int]:
        times: list[int] = []
        end = perf_counter_ns() + seconds * 1e9
        while len(times) < samples or perf_counter_ns() < end:
            times.append(self._timed(stream))
        return times

    def _timed(self, stream: int = 0) -> int:
        predict, fed = self.runners[stream].predict, self.inputs[stream]
        start = perf_counter_ns()
        predict(fed)
        return perf_counter_ns() - start

    def memory(self) -> Iterator[dict[str, Any]]:
        """Tell the peak memory of this process, and its memory on a GPU."""
        device = device_memory(os.getpid())
        yield {"memory": {"peak": peak(), **({"device": device} if device is not None else {})}}


def steady(times: list[int]) -> bool:
    """Tell whether times (ns) are steady: the medians of the last two windows agree."""
    if len(times) < 2 * WINDOW:
        return False
    before, now = median(times[-2 * WINDOW : -WINDOW]), median(times[-WINDOW:])
    return abs(now - before) < STEADY * before


def _ready(artifact: Artifact) -> Sequence[str]:
    """Load the runtime of an artifact, and return the arithmetics in which this machine runs the artifact.

    Raises:
        Unavailable: this machine has no such runtime.
    """
    exporter = target_of(artifact)
    if problem := exporter.missing_runtime():
        raise problem
    return exporter.arithmetics(artifact)


@contextmanager
def _reference(weights: str, sha256: str, contract: Contract, threads: int, streams: int) -> Iterator[Sequence[Runner]]:
    """Open the PyTorch network of exactly these weights, one network for all streams."""
    from u2export.reference.source import Source

    source = Source.open(weights, contract)
    if source.weights.sha256 != sha256:
        raise UserError(f"weights {weights} are not the weights of the artifacts", "name another reference")
    import torch

    torch.set_num_threads(max(1, (threads or processors()) // streams))
    about = {"runtime": f"PyTorch {torch.__version__.partition('+')[0]}", "device": "CPU", "arithmetic": "fp32"}
    yield [Runner(source.predict, {**about, "threads": str(torch.get_num_threads())})] * streams


def resident() -> int:
    """Return the bytes of this process in memory now; 0 where the system does not tell."""
    return _status("VmRSS")


def peak() -> int:
    """Return the most bytes of this process in memory so far.

    Linux gives this in /proc. Its ru_maxrss does not fit: it starts at the peak of the process that forked this one.
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
    traceback.print_exception(error)  # to standard error; the parent keeps it in a log
    return {"error": {"kind": "failed", "problem": f"{type(error).__name__}: {error}", "hint": ""}}


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answer requests until the input ends or the request "close" comes."""
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
    """Answer the requests on standard input."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
