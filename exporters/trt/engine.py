"""An engine on the GPU it was built for: named tensors, one stream, a CUDA graph, times by CUDA events.

Written against the interfaces that TensorRT 8.5 to 11 and RTX share (see the snapshots in the tests). Not run on
hardware: no machine of this project has a GPU. Memory and streams come from cuda-python, or from PyTorch with CUDA.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from u2export.errors import Unavailable, UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.runtime import Runner
from u2export.exporters.trt.build_log import Log
from u2export.exporters.trt.cuda import Array, Cuda, open_cuda
from u2export.exporters.trt.installed import devices, installed, load, strong_only
from u2export.exporters.trt.trust import check_trust
from u2export.reference.image import Floats

WARMUP = 10
# Not `tensorrt.nptype`, which with 8.5 fails on numpy 1.24 and later.
NUMPY = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "BOOL": np.bool_,
}


@dataclass
class Port:
    """One input or output: its name, where it lies on the device, and the host's copy."""

    name: str
    address: int
    host: Array


@dataclass
class Timing:
    """Milliseconds of one run by CUDA events: copy in, computation, copy out."""

    copy_in: list[float] = field(default_factory=list)
    compute: list[float] = field(default_factory=list)
    copy_out: list[float] = field(default_factory=list)


class Engine:
    """A deserialised engine with its buffers for one input shape, its launches captured in a CUDA graph if it can."""

    def __init__(self, trt: Any, cuda: Cuda, plan: bytes, shape: tuple[int, ...], stack: ExitStack) -> None:
        self.trt, self.cuda, self.timing = trt, cuda, Timing()
        before = cuda.used()
        log = Log(trt)
        self.runtime = trt.Runtime(log.logger)
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            reason = log.errors[0].splitlines()[0] if log.errors else "no reason given"
            raise UserError(
                f"TensorRT {trt.__version__} cannot open the engine: {reason}",
                "engines fit one version and one kind of GPU; build it here with u2export trt build RECIPE",
            )
        self.context = self._context()
        if self.context is None:
            raise UserError("TensorRT cannot make an execution context", "free some GPU memory")
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        modes = {n: self.engine.get_tensor_mode(n) for n in names}
        (entry,) = [n for n in names if modes[n] == trt.TensorIOMode.INPUT]
        if not self.context.set_input_shape(entry, shape):
            raise UserError(f"the engine takes no input of shape {shape}", "give a shape within its profile")
        if lost := self.context.infer_shapes():
            raise UserError(f"the engine lacks the shape of {lost[0]}", "build it again")
        self.ports = {name: self._port(name) for name in names}
        for port in self.ports.values():
            stack.callback(cuda.free, port.address)
        self.input = self.ports[entry]
        self.output = self.ports[next(n for n in names if n != entry)]
        self._launch = self._enqueue
        for _ in range(2):  # what is allocated on first use must not be captured
            self._enqueue()
        cuda.synchronise()
        self.graph = self._captured()
        self.memory = cuda.used() - before

    def _context(self) -> Any:
        """RTX captures graphs itself when told to; its own streams need not be capturable then."""
        if not hasattr(self.trt, "CudaGraphStrategy"):
            return self.engine.create_execution_context()
        config = self.engine.create_runtime_config()
        config.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return self.engine.create_execution_context(config)

    def _port(self, name: str) -> Port:
        shape = tuple(self.context.get_tensor_shape(name))
        dtype = NUMPY[self.engine.get_tensor_dtype(name).name]
        host = self.cuda.pinned(shape, dtype)
        host[...] = 0
        address = self.cuda.alloc(max(1, host.nbytes))
        if not self.context.set_tensor_address(name, address):
            raise UserError(f"TensorRT refuses the memory for {name}", "build the engine again")
        return Port(name, address, host)

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self.cuda.stream()):
            raise UserError("TensorRT failed to start the engine", "see its messages with -v")

    def _captured(self) -> bool:
        """Whether launches go through a CUDA graph: one call in place of hundreds of kernels."""
        if hasattr(self.trt, "CudaGraphStrategy"):
            return True
        self._launch = self.cuda.capture(self._enqueue)
        return True

    def __call__(self, batch: Floats) -> Floats:
        """Copy in, compute, copy out; each timed by events."""
        if batch.shape != self.input.host.shape:
            raise UserError(f"the engine takes {self.input.host.shape}, not {batch.shape}", "build it for that shape")
        self.input.host[...] = batch
        marks = [self.cuda.event()]
        self.cuda.to_device(self.input.address, self.input.host)
        marks += [self.cuda.event(), self.cuda.event()]
        self._launch()
        marks += [self.cuda.event(), self.cuda.event()]
        self.cuda.to_host(self.output.host, self.output.address)
        marks.append(self.cuda.event())
        self.cuda.synchronise()
        parts = (self.timing.copy_in, self.timing.compute, self.timing.copy_out)
        for times, start in zip(parts, (0, 2, 4), strict=True):
            times.append(self.cuda.milliseconds(marks[start], marks[start + 1]))
        return np.array(self.output.host, np.float32)


@contextmanager
def opened(artifact: Artifact) -> Iterator[Runner]:
    """An engine as a runner; `info` tells GPU, version, whether a CUDA graph is used, copies, memory, clocks.

    Raises:
        Unavailable: no CUDA device, no TensorRT, or nothing to reach CUDA with.
        UserError: the engine is foreign, or TensorRT cannot open it.
    """
    cuda = open_cuda()
    check_trust(artifact.path)
    built_with = str(artifact.options.get("runtime", ""))
    runtime = built_with or next(iter(installed()), "tensorrt")
    if runtime not in installed():
        raise Unavailable(f"the engine needs {runtime}, which is not installed", "see u2export targets")
    trt = load(runtime)
    with ExitStack() as stack:
        engine = Engine(trt, cuda, artifact.path.read_bytes(), artifact.contract.shape, stack)
        for _ in range(WARMUP):
            engine(np.zeros(artifact.contract.shape, np.float32))
        engine.timing = Timing()
        yield Runner(engine, _Info(engine, artifact, trt))


class _Info(Mapping[str, str]):
    """What a runner ran on; copies and kernel times are those up to the moment it is read."""

    def __init__(self, engine: Engine, artifact: Artifact, trt: Any) -> None:
        self.engine = engine
        self.fixed = {
            "runtime": f"TensorRT{'-RTX' if hasattr(trt, 'ComputeCapability') else ''} {trt.__version__}",
            "device": devices()[0],
            "provider": "CUDA graph" if engine.graph else "CUDA stream",
            "arithmetic": artifact.precision,
            "typing": "strong" if strong_only(trt) else str(artifact.options.get("typing", "")),
            "memory": f"{engine.memory / 1e6:.0f} MB on the device",
            **clocks(),
        }

    def _all(self) -> dict[str, str]:
        timing = vars(self.engine.timing)
        medians = {k: f"{float(np.median(v)):.3f} ms" for k, v in timing.items() if v}
        return {**self.fixed, **medians}

    def __getitem__(self, key: str) -> str:
        return self._all()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def clocks() -> dict[str, str]:
    """Clocks and power mode of the GPU, as far as nvidia-smi or a Jetson's nvpmodel tell."""
    import subprocess

    commands = {
        "clocks": ("nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.limit,pstate", "--format=csv,noheader"),
        "power_mode": ("nvpmodel", "-q"),
    }
    found = {}
    for name, command in commands.items():
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        found[name] = " ".join(done.stdout.split())
    return found


def layer_table(path: Path) -> str:
    """The layer table of an engine without one beside it, from TensorRT on a GPU, as JSON.

    Raises:
        Unavailable, UserError: as `opened`.
    """
    open_cuda()
    check_trust(path)
    trt = load(next(iter(installed()), "tensorrt"))
    engine = trt.Runtime(Log(trt).logger).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise UserError(f"TensorRT {trt.__version__} cannot open {path}", "use the version it was built with")
    text = str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
    json.loads(text)
    return text
