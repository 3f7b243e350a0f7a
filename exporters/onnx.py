"""ONNX, run by ONNX Runtime: the common ancestor of the other targets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from u2export.calibration.prepare import prepared
from u2export.errors import Unavailable, UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.exporter import Exporter, Made, Request, Runner, missing_modules, versions
from u2export.reference.image import Contract, Floats
from u2export.reference.onnx_export import Graph, to_onnx

if TYPE_CHECKING:
    from u2export.reference.source import Source

TOOLS = ("torch", "onnx", "onnxsim", "onnxruntime")
# Modes by the execution provider that has to take the whole graph; the CPU, always there, is the plain precision.
PROVIDERS = {"cuda": "CUDAExecutionProvider", "rocm": "ROCMExecutionProvider"}
# Events of ONNX Runtime's profiler while a session is made.
PHASES = {"model_loading_uri": "read", "session_initialization": "compile"}


class OnnxRuntimeRunner(Exporter):
    """What every target run by ONNX Runtime shares."""

    def missing_runtime(self) -> Unavailable | None:
        """ONNX Runtime alone: a device needs neither torch nor onnx."""
        return missing_modules("ONNX Runtime", ("onnxruntime",), "ort")

    def arithmetics(self, artifact: Artifact) -> Sequence[str]:
        """The precision on the CPU, then `<precision> <provider>` for each accelerator of this machine."""
        import onnxruntime

        there = onnxruntime.get_available_providers()
        return (artifact.precision, *(f"{artifact.precision} {k}" for k, v in PROVIDERS.items() if v in there))

    @contextmanager
    def _load(self, artifact: Artifact, arithmetic: str, threads: int) -> Iterator[Runner]:
        import onnxruntime

        provider = PROVIDERS.get(arithmetic.partition(" ")[2], "CPUExecutionProvider")
        session, opening = timed_session(artifact.path, provider, threads)
        used = session.get_providers()[0]
        if used != provider:
            raise Unavailable(f"{artifact.name}: asked for {provider}, got {used}", "check the provider's libraries")
        info = {
            "runtime": f"ONNX Runtime {onnxruntime.__version__}",
            "device": onnxruntime.get_device() if provider != "CPUExecutionProvider" else "CPU",
            "provider": used,
            "arithmetic": artifact.precision,
            "threads": str(threads),
        }
        yield replace(runner_of(session, artifact.contract, info), opening=opening)


def timed_session(path: Path, provider: str, threads: int) -> tuple[Any, dict[str, int]]:
    """A session, and ns of "read" and "compile" as ONNX Runtime's own profiler tells them.

    The profiler ends before the first inference. Where its file cannot be written whole, nothing is told.
    """
    with TemporaryDirectory(prefix="u2export-") as scratch:
        session = open_session(path, provider, threads, profile=f"{scratch}/opening")
        try:
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # no profile: a full disk, say
            events = []
    took = {event["name"]: int(event["dur"]) * 1000 for event in events}
    return session, {phase: took[event] for event, phase in PHASES.items() if event in took}


def open_session(
    path: Path, provider: str = "CPUExecutionProvider", threads: int = 0, optimise: bool = True, profile: str = ""
) -> Any:
    """An ONNX Runtime session of a file, all optimisations on or all off; `profile` begins the path of a profile.

    Raises:
        UserError: the file cannot be opened by this ONNX Runtime.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(path, options, providers=[provider])
    except Exception as error:
        raise UserError(
            f"ONNX Runtime {onnxruntime.__version__} cannot open {path}: {str(error).splitlines()[0]}",
            "export it again, with an --opset this runtime knows",
        ) from None


def to_pixels(batch: Floats, contract: Contract) -> NDArray[np.uint8]:
    """The uint8 picture (N, H, W, C) that the contract turns into this network input (N, C, H, W).

    The input is pixels over their maximum m: it is the m for which all values are whole pixels.
    """
    mean, std = np.array(contract.mean, np.float32), np.array(contract.std, np.float32)
    scaled = (batch.transpose(0, 2, 3, 1) * std + mean).clip(0, 1)
    sample = scaled.reshape(-1)[:: max(1, scaled.size // 4096)]
    error = [float(np.abs(sample * m - np.rint(sample * m)).max()) for m in range(1, 256)]
    fits = [m for m, e in enumerate(error, start=1) if e < 1e-2]
    return np.asarray(np.rint(scaled * (fits[0] if fits else 255)), np.uint8)


def runner_of(session: Any, contract: Contract, info: dict[str, str]) -> Runner:
    """A runner of an ONNX Runtime session, fed with pixels where the graph takes uint8."""
    entry, output = session.get_inputs()[0], session.get_outputs()[0].name

    def predict(fed: Any) -> Floats:
        return np.asarray(session.run([output], {entry.name: fed})[0], np.float32)

    if entry.type == "tensor(uint8)":
        return Runner(predict, info, lambda batch: to_pixels(batch, contract))
    return Runner(predict, info)


@dataclass(frozen=True)
class Onnx(OnnxRuntimeRunner):
    """ONNX; `graph` says what it is to look like."""

    name: ClassVar[str] = "onnx"
    title: ClassVar[str] = "ONNX"
    suffix: ClassVar[str] = ".onnx"
    precisions: ClassVar[Sequence[str]] = ("fp32", "fp16")
    needs: ClassVar[Sequence[str]] = ("torch", "onnx", "onnxsim", "onnxruntime")
    extra: ClassVar[str] = "onnx"

    graph: Graph = Graph()  # noqa: RUF009 - frozen

    def export(self, source: Source, folder: Path, request: Request) -> Artifact:
        """As `Exporter.export`; a graph that takes uint8 is held to the reference of pictures rounded to 8 bit."""
        if self.graph.embed_preprocess:
            source = replace(source, contract=replace(source.contract, rounded=True))
        return super().export(source, folder, request)

    def filename(self, source: Source, precision: str) -> str:
        """As `Exporter.filename`; variants of the graph say so, lest one overwrite another."""
        marks = [*(["uint8"] if self.graph.embed_preprocess else []), *(["7maps"] if self.graph.all_outputs else [])]
        marks += ["dynamic"] if self.graph.dynamic else []
        stem = super().filename(source, precision).removesuffix(self.suffix)
        return "-".join((stem, *marks)) + self.suffix

    def _export(self, source: Source, path: Path, request: Request) -> Made:
        import onnx

        tools = versions(*TOOLS)
        module, report = prepared(source, request.precision, request.calibration, request.condition)
        model = to_onnx(module, source.contract, self.graph, source.stamp(request.precision, tools))
        if request.precision == "fp16":
            model = to_fp16(model)
        onnx.save(model, path)
        return Made(tools=tools, condition=report)

    def adopts(self, path: Path) -> bool:
        """Any .onnx file; whether it opens shows when it is loaded."""
        return path.suffix == ".onnx"

    def contract_of(self, path: Path) -> Contract:
        """Size and channels from the file's first input."""
        if problem := self.missing_runtime():
            raise problem
        shape = open_session(path).get_inputs()[0].shape
        if len(shape) != 4:
            raise UserError(f"{path}: its first input has shape {shape}, not (N, C, H, W)", "give a U²-Net in ONNX")
        channels, height, width = (v if isinstance(v, int) else None for v in shape[1:])
        standard = Contract()
        sized = replace(standard, height=height or standard.height, width=width or standard.width)
        return sized.with_channels(channels or standard.channels)


def to_fp16(model: Any) -> Any:
    """Weights and activations in fp16, inputs and outputs left in float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(model, keep_io_types=True)
