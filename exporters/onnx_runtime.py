"""What all targets share whose artifacts ONNX Runtime runs: providers, arithmetics, and the runner of a session."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from u2export.errors import Unavailable
from u2export.exporters.foreign import assume, runner_of_foreign
from u2export.exporters.runtime import Assumed, Runner, Runtime, missing_modules
from u2export.reference.image import Contract, Floats
from u2export.reference.onnx_session import CPU, open_session, timed_session

if TYPE_CHECKING:
    from u2export.exporters.artifact import Artifact

# What an export with ONNX needs, and what its record names the versions of.
TOOLS = ("torch", "onnx", "onnxsim", "onnxruntime")
# Accelerators by the execution provider that has to take the whole graph. The CPU, always there, has no word.
PROVIDERS = {"cuda": "CUDAExecutionProvider", "rocm": "ROCMExecutionProvider"}


class OnnxRuntime(Runtime):
    """Opens artifacts in ONNX Runtime, on the CPU or on an accelerator that takes the whole graph."""

    def missing_runtime(self) -> Unavailable | None:
        """Why this machine cannot run the artifacts; ONNX Runtime is enough, a device needs neither torch nor onnx."""
        return missing_modules("ONNX Runtime", ("onnxruntime",), "ort")

    def arithmetics(self, artifact: Artifact) -> Sequence[str]:
        """The precision on the CPU, then `<precision> <accelerator>` for each accelerator of this machine."""
        import onnxruntime

        there = onnxruntime.get_available_providers()
        return (artifact.precision, *(f"{artifact.precision} {k}" for k, v in PROVIDERS.items() if v in there))

    def assume(self, path: Path, output_name: str = "") -> Assumed:
        """As `Runtime.assume`: what the session's input and outputs tell, and the graph.

        Raises:
            UserError: ONNX Runtime cannot open the file, its input is no picture of floats, or d0 cannot be told among
                its outputs.
            Unavailable: ONNX Runtime is not installed.
        """
        if problem := self.missing_runtime():
            raise problem
        return assume(path, open_session(path, optimise=False), output_name)

    @contextmanager
    def _load(self, artifact: Artifact, arithmetic: str, threads: int) -> Iterator[Runner]:
        import onnxruntime

        provider = PROVIDERS.get(arithmetic.partition(" ")[2], CPU)
        session, opening = timed_session(artifact.path, provider, threads)
        used = session.get_providers()[0]
        if used != provider:
            raise Unavailable(f"{artifact.name}: asked for {provider}, got {used}", "check the provider's libraries")
        info = {
            "runtime": f"ONNX Runtime {onnxruntime.__version__}",
            "device": onnxruntime.get_device() if provider != CPU else "CPU",
            "provider": used,
            "arithmetic": artifact.precision,
            "threads": str(threads),
        }
        runner = runner_of(session, artifact, info)
        yield replace(runner, opening=opening)


def runner_of(session: Any, artifact: Artifact, info: dict[str, str]) -> Runner:
    """The runner of an ONNX Runtime session; a graph that takes uint8 is fed with pixels."""
    entry, output = session.get_inputs()[0], session.get_outputs()[0].name
    if entry.type != "tensor(uint8)" and "output" in artifact.options:
        return runner_of_foreign(session, artifact.path, artifact.contract, artifact.options, info)

    def predict(fed: Any) -> Floats:
        return np.asarray(session.run([output], {entry.name: fed})[0], np.float32)

    if entry.type == "tensor(uint8)":
        return Runner(predict, info, lambda batch: to_pixels(batch, artifact.contract))
    return Runner(predict, info)


def to_pixels(batch: Floats, contract: Contract) -> NDArray[np.uint8]:
    """The uint8 picture (N, H, W, C) that the contract turns into this network input (N, C, H, W).

    The input holds pixels divided by their maximum m. The maximum is found as the m that makes all values whole.
    """
    mean, std = np.array(contract.mean, np.float32), np.array(contract.std, np.float32)
    scaled = (batch.transpose(0, 2, 3, 1) * std + mean).clip(0, 1)
    sample = scaled.reshape(-1)[:: max(1, scaled.size // 4096)]
    error = [float(np.abs(sample * m - np.rint(sample * m)).max()) for m in range(1, 256)]
    fits = [m for m, e in enumerate(error, start=1) if e < 1e-2]
    return np.asarray(np.rint(scaled * (fits[0] if fits else 255)), np.uint8)
