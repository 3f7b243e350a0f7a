"""An engine on the GPU it was built for: named tensors, one stream, a CUDA graph, times by CUDA events.

Written against the interfaces that TensorRT 8.5 to 11 and RTX share (see the snapshots in the tests). Not run on
hardware: no machine of this project has a GPU. Memory and streams come from cuda-python, or from PyTorch with CUDA.

Engines are native code. Only those this machine has built, or was told to trust, are opened.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from u2export.errors import Unavailable, UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.exporter import Runner
from u2export.exporters.trt.build import Log, devices, installed, load, strong_only
from u2export.files import read_json, write_json
from u2export.reference.image import Floats
from u2export.reference.weights import file_digest, home

Array = NDArray[Any]
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


# --- trust ------------------------------------------------------------------------------------------------------


def _register() -> Path:
    return home() / "trusted_engines.json"


def _trusted() -> dict[str, str]:
    path = _register()
    found = read_json(path, "the register of engines") if path.exists() else {}
    return found if isinstance(found, dict) else {}


def trust(engine: Path) -> None:
    """Let this machine open an engine from now on: it is remembered by its hash, in u2export's cache folder."""
    write_json({**_trusted(), file_digest(engine): engine.name}, _register())


def check_trust(engine: Path) -> None:
    """Refuse an engine this machine neither built nor was told to trust.

    Raises:
        UserError: it is foreign.
    """
    if file_digest(engine) not in _trusted():
        raise UserError(
            f"{engine} was not built on this machine, and engines are native code",
            "build it here with u2export trt build RECIPE, or add --trust if you know where it comes from",
        )


# --- CUDA: addresses and streams are integers, sizes bytes, times milliseconds ------------------------------------


def cuda_runtime() -> Any:
    """cuda-python's module of the CUDA runtime, by its new or its old name; None where it is not installed."""
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        with suppress(ImportError):
            return importlib.import_module(name)
    return None


class CudaPython:
    """CUDA through NVIDIA's cuda-python."""

    def __init__(self) -> None:
        self.rt = cuda_runtime()
        self._stream = self._do(self.rt.cudaStreamCreateWithFlags(self.rt.cudaStreamNonBlocking))
        self._pinned: list[int] = []

    def _do(self, answer: tuple[Any, ...]) -> Any:
        """The value of a call, whose first entry is its status."""
        status, *values = answer
        if status != self.rt.cudaError_t.cudaSuccess:
            raise Unavailable(f"CUDA: {getattr(status, 'name', status)}", "check the driver with nvidia-smi")
        return values[0] if len(values) == 1 else values

    def alloc(self, size: int) -> int:
        """Device memory."""
        return int(self._do(self.rt.cudaMalloc(size)))

    def free(self, address: int) -> None:
        """Give it back."""
        self._do(self.rt.cudaFree(address))

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A host array that the device can read without a copy in between; lives as long as the process."""
        import ctypes

        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = int(self._do(self.rt.cudaMallocHost(size)))
        self._pinned.append(address)
        return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)

    def to_device(self, address: int, host: Array) -> None:
        """Copy, in the stream."""
        kind = self.rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._do(self.rt.cudaMemcpyAsync(address, host.ctypes.data, host.nbytes, kind, self._stream))

    def to_host(self, host: Array, address: int) -> None:
        """Copy, in the stream."""
        kind = self.rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._do(self.rt.cudaMemcpyAsync(host.ctypes.data, address, host.nbytes, kind, self._stream))

    def stream(self) -> int:
        """The one stream of this runner."""
        return int(self._stream)

    def synchronise(self) -> None:
        """Wait for the stream."""
        self._do(self.rt.cudaStreamSynchronize(self._stream))

    def event(self) -> Any:
        """A mark in the stream."""
        event = self._do(self.rt.cudaEventCreate())
        self._do(self.rt.cudaEventRecord(event, self._stream))
        return event

    def milliseconds(self, start: Any, end: Any) -> float:
        """Between two marks."""
        self._do(self.rt.cudaEventSynchronize(end))
        took = float(self._do(self.rt.cudaEventElapsedTime(start, end)))
        for event in (start, end):
            self._do(self.rt.cudaEventDestroy(event))
        return took

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """What `enqueue` puts into the stream, as a graph; the result launches it."""
        mode = self.rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._do(self.rt.cudaStreamBeginCapture(self._stream, mode))
        try:
            enqueue()
        finally:
            graph = self._do(self.rt.cudaStreamEndCapture(self._stream))
        executable = self._do(self.rt.cudaGraphInstantiate(graph, 0))
        return lambda: self._do(self.rt.cudaGraphLaunch(executable, self._stream))

    def used(self) -> int:
        """Bytes in use on the device, by all processes."""
        free, total = self._do(self.rt.cudaMemGetInfo())
        return int(total) - int(free)


class CudaTorch:
    """CUDA through PyTorch, where cuda-python is not installed."""

    def __init__(self) -> None:
        import torch

        self.torch: Any = torch
        self._stream = self.torch.cuda.Stream()
        self._kept: dict[int, Any] = {}

    def alloc(self, size: int) -> int:
        """Device memory."""
        tensor = self.torch.empty(size, dtype=self.torch.uint8, device="cuda")
        self._kept[tensor.data_ptr()] = tensor
        return int(tensor.data_ptr())

    def free(self, address: int) -> None:
        """Give it back."""
        self._kept.pop(address, None)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A host array that the device can read without a copy in between."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        tensor = self.torch.empty(size, dtype=self.torch.uint8, pin_memory=True)
        array: Array = tensor.numpy().view(dtype).reshape(shape)
        return array

    def _bytes(self, host: Array) -> Any:
        return self.torch.from_numpy(host.reshape(-1).view(np.uint8))

    def to_device(self, address: int, host: Array) -> None:
        """Copy, in the stream."""
        with self.torch.cuda.stream(self._stream):
            self._kept[address][: host.nbytes].copy_(self._bytes(host), non_blocking=True)

    def to_host(self, host: Array, address: int) -> None:
        """Copy, in the stream."""
        with self.torch.cuda.stream(self._stream):
            self._bytes(host).copy_(self._kept[address][: host.nbytes], non_blocking=True)

    def stream(self) -> int:
        """The one stream of this runner."""
        return int(self._stream.cuda_stream)

    def synchronise(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()

    def event(self) -> Any:
        """A mark in the stream."""
        event = self.torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def milliseconds(self, start: Any, end: Any) -> float:
        """Between two marks."""
        end.synchronize()
        return float(start.elapsed_time(end))

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """What `enqueue` puts into the stream, as a graph; the result launches it."""
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            enqueue()

        def launch() -> None:
            with self.torch.cuda.stream(self._stream):
                graph.replay()

        return launch

    def used(self) -> int:
        """Bytes in use on the device, by all processes."""
        free, total = self.torch.cuda.mem_get_info()
        return int(total) - int(free)


Cuda = CudaPython | CudaTorch


def open_cuda() -> Cuda:
    """CUDA by cuda-python, else by PyTorch.

    Raises:
        Unavailable: no CUDA device, or neither of them.
    """
    if not devices():
        raise Unavailable("no CUDA device", "run the engine on the GPU it was built for")
    if cuda_runtime():
        return CudaPython()
    if find_spec("torch"):
        import torch

        if torch.cuda.is_available():
            return CudaTorch()
    raise Unavailable("engines need cuda-python or PyTorch with CUDA", "pip install cuda-python")


# --- the engine -------------------------------------------------------------------------------------------------


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
