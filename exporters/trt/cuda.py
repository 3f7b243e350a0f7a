"""Memory, streams, events and graphs of CUDA, by cuda-python or by PyTorch.

Addresses and streams are integers, sizes bytes, times milliseconds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from u2export.errors import Unavailable
from u2export.exporters.trt.installed import devices

Array = NDArray[Any]


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
