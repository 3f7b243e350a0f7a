"""Memory, streams, events and graphs of CUDA, through cuda-python or PyTorch.

Addresses and streams are integers, sizes are in bytes, times in milliseconds.
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
    """Return cuda-python's module of the CUDA runtime, by its new or old name; None without cuda-python."""
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        with suppress(ImportError):
            return importlib.import_module(name)
    return None


class CudaPython:
    """CUDA through NVIDIA's cuda-python.

    Raises:
        Unavailable: the driver refuses a call.
    """

    def __init__(self) -> None:
        self.rt = cuda_runtime()
        self._stream = self._do(self.rt.cudaStreamCreateWithFlags(self.rt.cudaStreamNonBlocking))
        self._pinned: list[int] = []

    def _do(self, answer: tuple[Any, ...]) -> Any:
        """Return the value of a call; the first entry of its answer is the status."""
        status, *values = answer
        if status != self.rt.cudaError_t.cudaSuccess:
            raise Unavailable(f"CUDA: {getattr(status, 'name', status)}", "check the driver with nvidia-smi")
        return values[0] if len(values) == 1 else values

    def alloc(self, size: int) -> int:
        """Allocate device memory, and return its address."""
        return int(self._do(self.rt.cudaMalloc(size)))

    def free(self, address: int) -> None:
        """Free device memory."""
        self._do(self.rt.cudaFree(address))

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return a host array that the device reads without a copy in between. It lives as long as the process."""
        import ctypes

        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = int(self._do(self.rt.cudaMallocHost(size)))
        self._pinned.append(address)
        return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)

    def to_device(self, address: int, host: Array) -> None:
        """Put a copy to the device into the stream."""
        kind = self.rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._do(self.rt.cudaMemcpyAsync(address, host.ctypes.data, host.nbytes, kind, self._stream))

    def to_host(self, host: Array, address: int) -> None:
        """Put a copy to the host into the stream."""
        kind = self.rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._do(self.rt.cudaMemcpyAsync(host.ctypes.data, address, host.nbytes, kind, self._stream))

    def stream(self) -> int:
        """Return the handle of the one stream that everything here uses."""
        return int(self._stream)

    def synchronise(self) -> None:
        """Wait until the stream is empty."""
        self._do(self.rt.cudaStreamSynchronize(self._stream))

    def event(self) -> Any:
        """Put an event into the stream, and return it."""
        event = self._do(self.rt.cudaEventCreate())
        self._do(self.rt.cudaEventRecord(event, self._stream))
        return event

    def milliseconds(self, start: Any, end: Any) -> float:
        """Return the time between two events, after waiting for the second one."""
        self._do(self.rt.cudaEventSynchronize(end))
        took = float(self._do(self.rt.cudaEventElapsedTime(start, end)))
        for event in (start, end):
            self._do(self.rt.cudaEventDestroy(event))
        return took

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Record what `enqueue` puts into the stream as a graph, and return the function that launches the graph."""
        mode = self.rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._do(self.rt.cudaStreamBeginCapture(self._stream, mode))
        try:
            enqueue()
        finally:
            graph = self._do(self.rt.cudaStreamEndCapture(self._stream))
        executable = self._do(self.rt.cudaGraphInstantiate(graph, 0))
        return lambda: self._do(self.rt.cudaGraphLaunch(executable, self._stream))

    def used(self) -> int:
        """Return the bytes that all processes use on the device."""
        free, total = self._do(self.rt.cudaMemGetInfo())
        return int(total) - int(free)


class CudaTorch:
    """CUDA through PyTorch, for machines without cuda-python."""

    def __init__(self) -> None:
        import torch

        self.torch: Any = torch
        self._stream = self.torch.cuda.Stream()
        self._tensors: dict[int, Any] = {}

    def alloc(self, size: int) -> int:
        """Allocate device memory, and return its address."""
        tensor = self.torch.empty(size, dtype=self.torch.uint8, device="cuda")
        self._tensors[tensor.data_ptr()] = tensor
        return int(tensor.data_ptr())

    def free(self, address: int) -> None:
        """Free device memory."""
        self._tensors.pop(address, None)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return a host array that the device reads without a copy in between."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        tensor = self.torch.empty(size, dtype=self.torch.uint8, pin_memory=True)
        array: Array = tensor.numpy().view(dtype).reshape(shape)
        return array

    def _bytes(self, host: Array) -> Any:
        return self.torch.from_numpy(host.reshape(-1).view(np.uint8))

    def to_device(self, address: int, host: Array) -> None:
        """Put a copy to the device into the stream."""
        with self.torch.cuda.stream(self._stream):
            self._tensors[address][: host.nbytes].copy_(self._bytes(host), non_blocking=True)

    def to_host(self, host: Array, address: int) -> None:
        """Put a copy to the host into the stream."""
        with self.torch.cuda.stream(self._stream):
            self._bytes(host).copy_(self._tensors[address][: host.nbytes], non_blocking=True)

    def stream(self) -> int:
        """Return the handle of the one stream that everything here uses."""
        return int(self._stream.cuda_stream)

    def synchronise(self) -> None:
        """Wait until the stream is empty."""
        self._stream.synchronize()

    def event(self) -> Any:
        """Put an event into the stream, and return it."""
        event = self.torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def milliseconds(self, start: Any, end: Any) -> float:
        """Return the time between two events, after waiting for the second one."""
        end.synchronize()
        return float(start.elapsed_time(end))

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Record what `enqueue` puts into the stream as a graph, and return the function that launches the graph."""
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            enqueue()

        def launch() -> None:
            with self.torch.cuda.stream(self._stream):
                graph.replay()

        return launch

    def used(self) -> int:
        """Return the bytes that all processes use on the device."""
        free, total = self.torch.cuda.mem_get_info()
        return int(total) - int(free)


Cuda = CudaPython | CudaTorch


def open_cuda() -> Cuda:
    """Return CUDA through cuda-python, or else through PyTorch.

    Raises:
        Unavailable: there is no CUDA device, or neither package reaches it.
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
