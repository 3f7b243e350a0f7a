"""An engine on the GPU it was built for: named tensors, one stream, a CUDA graph, times by CUDA events.

The code uses only what TensorRT 8.5 to 11 and RTX share; the snapshots in the tests prove this. The code has not run on
hardware, because no machine of this project has a GPU.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from u2export.errors import Unavailable, UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.runtime import Runner
from u2export.exporters.trt.build import inspected
from u2export.exporters.trt.build_log import BuildLog
from u2export.exporters.trt.cuda import Array, Cuda, open_cuda
from u2export.exporters.trt.installed import devices, installed, load, strong_only, title
from u2export.exporters.trt.trust import check_trust
from u2export.reference.dtypes import stored_name
from u2export.reference.image import Floats

WARMUP = 10


@dataclass(frozen=True)
class Binding:
    """One input or output of an engine.

    Attributes:
        name: the tensor's name.
        address: where the tensor lies on the device.
        host: the host's copy.
    """

    name: str
    address: int
    host: Array


@dataclass
class Timing:
    """Milliseconds of every run by CUDA events: copy in, computation, copy out."""

    copy_in: list[float] = field(default_factory=list)
    compute: list[float] = field(default_factory=list)
    copy_out: list[float] = field(default_factory=list)


class EngineRunner:
    """A deserialised engine with buffers for one input shape. A CUDA graph launches it: one call, not hundreds.

    Args:
        trt: module of TensorRT.
        cuda: how to reach CUDA.
        plan: the serialised engine.
        shape: the input's shape (N, C, H, W).
        stack: closing it frees the buffers.

    Attributes:
        timing: times of the runs so far.
        memory: bytes of device memory that the engine and its buffers take.

    Raises:
        UserError: TensorRT cannot open the engine, or the engine takes no input of this shape.
    """

    def __init__(self, trt: Any, cuda: Cuda, plan: bytes, shape: tuple[int, ...], stack: ExitStack) -> None:
        self.trt, self.cuda, self.timing = trt, cuda, Timing()
        used = cuda.used()
        self.runtime, self.engine = _deserialised(trt, plan)
        self.context = self._execution_context()
        inputs, outputs = self._names()
        self._set_shape(inputs[0], shape)
        self.input, *_ = self._allocated(inputs, stack)
        self.output, *_ = self._allocated(outputs, stack)
        self._launch = self._captured()
        self.memory = cuda.used() - used

    def _execution_context(self) -> Any:
        """Return a context; RTX captures CUDA graphs itself, because its streams need not be capturable."""
        if hasattr(self.trt, "CudaGraphStrategy"):
            config = self.engine.create_runtime_config()
            config.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self.engine.create_execution_context(config)
        else:
            context = self.engine.create_execution_context()
        if context is None:
            raise UserError("TensorRT cannot make an execution context", "free some GPU memory")
        return context

    def _names(self) -> tuple[list[str], list[str]]:
        """Return the names of the engine's inputs and outputs."""
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        inputs = [name for name in names if self.engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT]
        if len(inputs) != 1:
            raise UserError(f"the engine has {len(inputs)} inputs, not 1", "give an engine that u2export built")
        return inputs, [name for name in names if name not in inputs]

    def _set_shape(self, entry: str, shape: tuple[int, ...]) -> None:
        if not self.context.set_input_shape(entry, shape):
            raise UserError(f"the engine takes no input of shape {shape}", "give a shape within its profile")
        if unknown := self.context.infer_shapes():
            raise UserError(f"the engine does not know the shape of {unknown[0]}", "build it again")

    def _allocated(self, names: list[str], stack: ExitStack) -> list[Binding]:
        """Return the bindings of tensors, zeroed on the host, with device memory that the stack frees."""
        found = []
        for name in names:
            # `tensorrt.nptype` of 8.5 fails on numpy 1.24 and later.
            dtype = np.dtype(stored_name(self.engine.get_tensor_dtype(name).name))
            host = self.cuda.pinned(tuple(self.context.get_tensor_shape(name)), dtype)
            host[...] = 0
            address = self.cuda.alloc(max(1, host.nbytes))
            stack.callback(self.cuda.free, address)
            if not self.context.set_tensor_address(name, address):
                raise UserError(f"TensorRT refuses the memory for {name}", "build the engine again")
            found.append(Binding(name, address, host))
        return found

    def _captured(self) -> Callable[[], None]:
        """Return the function that launches the engine through a CUDA graph."""
        for _ in range(2):  # a graph must not contain what TensorRT allocates on first use
            self._enqueue()
        self.cuda.synchronise()
        if hasattr(self.trt, "CudaGraphStrategy"):
            return self._enqueue
        return self.cuda.capture(self._enqueue)

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self.cuda.stream()):
            raise UserError("TensorRT failed to start the engine", "see its messages with -v")

    def __call__(self, batch: Floats) -> Floats:
        """Return d0 (N, K, H, W) of a network input (N, C, H, W); events time the copies and the computation.

        Raises:
            UserError: the engine takes another shape.
        """
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


def _deserialised(trt: Any, plan: bytes) -> tuple[Any, Any]:
    """Return the runtime and the engine of a plan."""
    log = BuildLog(trt)
    runtime = trt.Runtime(log.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise UserError(
            f"{title(trt)} cannot open the engine: {log.first_error}",
            "an engine fits one version and one kind of GPU; build it here with u2export trt build RECIPE",
        )
    return runtime, engine


@contextmanager
def open_engine(artifact: Artifact) -> Iterator[Runner]:
    """Open an engine as a runner.

    The runner's `info` tells GPU, version, memory and clocks, and the median times of copies and computation.

    Raises:
        Unavailable: there is no CUDA device, the engine's TensorRT is not installed, or nothing here reaches CUDA.
        UserError: the engine is foreign, or TensorRT cannot open it.
    """
    cuda = open_cuda()
    check_trust(artifact.path)
    built_with = str(artifact.options.get("runtime", ""))
    name = built_with or next(iter(installed()), "tensorrt")
    if name not in installed():
        raise Unavailable(f"the engine needs {name}, which is not installed", "see u2export targets")
    trt = load(name)
    with ExitStack() as stack:
        runner = EngineRunner(trt, cuda, artifact.path.read_bytes(), artifact.contract.shape, stack)
        for _ in range(WARMUP):
            runner(np.zeros(artifact.contract.shape, np.float32))
        runner.timing = Timing()
        yield Runner(runner, _Info(runner, artifact))


class _Info(Mapping[str, str]):
    """What a runner ran on. Each reading takes the times of the runs so far."""

    def __init__(self, runner: EngineRunner, artifact: Artifact) -> None:
        self.runner = runner
        self.fixed = {
            "runtime": title(runner.trt),
            "device": devices()[0],
            "provider": "CUDA graph",
            "arithmetic": artifact.precision,
            "typing": "strong" if strong_only(runner.trt) else str(artifact.options.get("typing", "")),
            "memory": f"{runner.memory / 1e6:.0f} MB on the device",
            **clocks(),
        }

    def _all(self) -> dict[str, str]:
        timing = vars(self.runner.timing)
        medians = {k: f"{float(np.median(v)):.3f} ms" for k, v in timing.items() if v}
        return {**self.fixed, **medians}

    def __getitem__(self, key: str) -> str:
        return self._all()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def clocks() -> dict[str, str]:
    """Return clocks and power mode of the GPU, as far as nvidia-smi or a Jetson's nvpmodel tell them."""
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
    """Return the layer table of an engine as JSON, from TensorRT on a GPU; for engines without a table beside them.

    Raises:
        Unavailable, UserError: as `open_engine`.
    """
    open_cuda()
    check_trust(path)
    trt = load(next(iter(installed()), "tensorrt"))
    text = inspected(trt, BuildLog(trt), path.read_bytes())
    if not text:
        raise UserError(f"{title(trt)} cannot open {path}", "use the version it was built with")
    return text
