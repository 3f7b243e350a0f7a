"""The TensorRT target: typed ONNX and a recipe on any machine, an engine on machines that can build one.

An engine fits one GPU and one version, so the graph travels with its precisions written into it: fp16 tensors, or
symmetric int8 Q/DQ pairs where TensorRT wants them. TensorRT 8.5 to 10 build the graph with flags, 11 and RTX as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from u2export.calibration.prepare import prepared
from u2export.errors import Unavailable, WrongValue
from u2export.exporters.artifact import Artifact
from u2export.exporters.exporter import Exporter, Made, Request
from u2export.exporters.int8 import in_onnx_runtime, quantised
from u2export.exporters.onnx_runtime import TOOLS, OnnxRuntime, runner_of
from u2export.exporters.runtime import Assumed, Runner, Runtime, versions
from u2export.exporters.trt.build import build
from u2export.exporters.trt.engine_file import ENGINE, NOT_RUN, save_engine
from u2export.exporters.trt.graph_rules import broken_rules, refuse
from u2export.exporters.trt.installed import choose_builder, devices, installed, load
from u2export.exporters.trt.options import Options
from u2export.exporters.trt.recipe import NEWEST_OPSET, SUFFIX, Recipe
from u2export.reference.image import Floats
from u2export.reference.onnx_export import Graph, to_onnx
from u2export.reference.onnx_session import open_session

if TYPE_CHECKING:
    import onnx

    from u2export.calibration.float_fallback import Quantised
    from u2export.reference.source import Source

PLACEMENTS = ("producer", "conv-input")
RESTS = ("fp32", "fp16")


@dataclass(frozen=True)
class TensorRT(OnnxRuntime, Exporter):
    """Typed ONNX for TensorRT 8.5 and later, with the recipe that engines are built by. Engines open on a GPU.

    Attributes:
        placement: where int8's Q/DQ pairs stand: "producer" (least memory traffic) or "conv-input".
        keep_float: nodes that stay in floating point (int8) or in fp32 (fp16): names, or regular expressions that match
            whole names.
        rest: what int8 leaves in floating point: "fp32" builds with every version, in weak typing next to fp16;
            "fp16" takes TensorRT 10 or later.
        dynamic: free axes of the input: any of "batch", "height", "width".
    """

    name: ClassVar[str] = "trt"
    title: ClassVar[str] = "TensorRT"
    suffix: ClassVar[str] = ".onnx"
    precisions: ClassVar[Sequence[str]] = ("fp16", "fp32", "int8")
    calibrated: ClassVar[Sequence[str]] = ("int8",)
    needs: ClassVar[Sequence[str]] = ("torch", "onnx", "onnxsim", "onnxruntime")
    extra: ClassVar[str] = "onnx"
    when: ClassVar[str] = "NVIDIA's GPUs and Jetson run it"
    builds: ClassVar[bool] = True
    simulation: ClassVar[str] = "ONNX Runtime computes the masks of the typed ONNX"

    placement: str = "producer"
    keep_float: tuple[str, ...] = ()
    rest: str = "fp32"
    dynamic: tuple[str, ...] = ()

    def check(self, request: Request, calibrated: bool) -> None:
        """As `Exporter.check`; also refuse options that mean nothing for the precision.

        Raises:
            UserError, Unavailable: as `Exporter.check`; UserError for an option of another precision, too.
        """
        super().check(request, calibrated)
        if self.placement not in PLACEMENTS:
            raise WrongValue(f"no Q/DQ placement named {self.placement!r}", f"choose one of {', '.join(PLACEMENTS)}")
        if self.rest not in RESTS:
            raise WrongValue(f"int8 cannot leave layers in {self.rest!r}", f"choose one of {', '.join(RESTS)}")
        plain = TensorRT()
        if request.precision != "int8" and (self.placement, self.rest) != (plain.placement, plain.rest):
            raise WrongValue("the placement and the rest are for int8", "choose int8")
        if request.precision == "fp32" and self.keep_float:
            raise WrongValue("float layers are kept in int8 and fp16 only", "choose int8 or fp16")

    def filename(self, source: Source, precision: str) -> str:
        """As `Exporter.filename`; the name says which options differ, so that no variant overwrites another."""
        stem = super().filename(source, precision).removesuffix(self.suffix)
        marks = [*([self.placement] if self.placement != "producer" else []), *(["mixed"] if self.keep_float else [])]
        marks += [*(["fp16"] if self.rest == "fp16" else []), *(["dynamic"] if self.dynamic else [])]
        return "-".join((stem, *marks)) + self.suffix

    def missing_runtime(self) -> Unavailable | None:
        """Why this machine can run neither typed ONNX (in ONNX Runtime) nor engines (in TensorRT); None if it can."""
        return None if find_spec("tensorrt") or find_spec("tensorrt_rtx") else super().missing_runtime()

    def missing_builder(self) -> Unavailable | None:
        """Why this machine can build no engine at all; None if it can build some, such as RTX engines without a GPU."""
        here = installed()
        if "rtx" in here or (here and devices()):
            return None
        if here:
            return Unavailable(
                "tensorrt builds for the GPU of this machine, and there is none",
                "build there, or install tensorrt_rtx, which builds for named GPUs without one",
            )
        return Unavailable(
            "neither tensorrt nor tensorrt_rtx is installed here",
            "copy the recipe and its .onnx to the device, and build there",
        )

    def missing_hardware(self) -> Unavailable | None:
        """Why this machine cannot run engines; None if it can."""
        if not devices():
            return Unavailable("no CUDA device", "run the engine on the GPU it was built for")
        return None if installed() else self.missing_builder()

    def arithmetics(self, artifact: Artifact) -> Sequence[str]:
        """The arithmetic of an engine is its precision, on a GPU. ONNX Runtime simulates typed ONNX for its masks.

        Raises:
            Unavailable: the artifact is an engine, and there is no CUDA device.
        """
        if artifact.path.suffix == ENGINE:
            if not devices():
                raise Unavailable("no CUDA device", "run the engine on the GPU it was built for")
            return (artifact.precision,)
        return (f"simulated {artifact.precision}",)

    def built(self, artifact: Artifact, folder: Path) -> Artifact | None:
        """Build the engine of a typed ONNX that has its recipe, where there are TensorRT and a GPU.

        Raises:
            UserError, Unavailable: as `pipeline.build_engine`.
        """
        if artifact.path.suffix == ENGINE or not devices() or not installed():
            return None
        recipe, graph = Recipe.read(artifact.path)
        built = build(load(choose_builder()), graph, recipe, Options())
        return save_engine(built, artifact, recipe, Options(), folder)

    def adopts(self, path: Path) -> bool:
        """Whether a file without a record is an engine; a typed ONNX without a record looks like any other ONNX."""
        return path.suffix == ENGINE

    def assume(self, path: Path, output_name: str = "") -> Assumed:
        """As `Runtime.assume`: ONNX Runtime cannot read an engine, so that the default contract is assumed.

        Raises:
            UserError: an output is named.
        """
        return Runtime.assume(self, path, output_name)

    def _export(self, source: Source, path: Path, request: Request) -> Made:
        import onnx

        tools = versions(*TOOLS)
        module, report = prepared(source, request.precision, request.calibration, request.condition)
        graph = Graph(dynamic=self.dynamic)
        model = to_onnx(module, source.contract, graph, source.stamp(request.precision, tools))
        model, islands, made = self._typed(model, source, request)
        refuse(broken_rules(model, NEWEST_OPSET))
        onnx.save(model, path)
        int8 = request.precision == "int8"
        recipe = Recipe.of(
            model, path, precision=request.precision, rest=self.rest if int8 else request.precision, islands=islands,
            placement=self.placement if int8 else "",
            calibration=request.calibration.summary() if int8 and request.calibration else {},
        )  # fmt: skip
        beside = path.with_name(path.stem + SUFFIX)
        recipe.write(beside)
        notes = [f"masks judged in ONNX Runtime, {NOT_RUN}; its recipe: {beside.name}"]
        notes += [made.note] if made and made.note else []
        added = made.added if made else {}
        return Made(more=(beside,), tools=tools, condition=report, notes=tuple(notes), added_float=added)

    def _typed(
        self, model: onnx.ModelProto, source: Source, request: Request
    ) -> tuple[onnx.ModelProto, tuple[str, ...], Quantised | None]:
        """Return the graph in the request's precision, the nodes that stay in fp32 among fp16, and facts of int8."""
        from u2export.calibration.quant_plan import TENSORRT
        from u2export.exporters.trt.typed_graph import chosen_islands, islands, to_half

        if request.precision == "fp32":
            return model, (), None
        if request.precision == "fp16":
            # A conditioned network has no large constant channels left; islands gain nothing there, as measured.
            kept = chosen_islands(model, self.keep_float) | (set() if request.condition else islands(model))
            return to_half(model, kept), tuple(sorted(kept)), None
        spec = replace(TENSORRT, placement=self.placement, keep_float=self.keep_float)

        def typed(graph: onnx.ModelProto) -> onnx.ModelProto:
            return to_half(graph) if self.rest == "fp16" else graph

        def opened(graph: onnx.ModelProto) -> Callable[[Floats], Floats]:
            return in_onnx_runtime(open_session(typed(graph), optimise=False, spinning=False))

        made = quantised(self, model, source, request, spec, opened)
        return typed(made.graph), (), made

    @contextmanager
    def _load(self, artifact: Artifact, arithmetic: str, threads: int) -> Iterator[Runner]:
        if artifact.path.suffix == ENGINE:
            from u2export.exporters.trt.engine import open_engine

            with open_engine(artifact) as runner:
                yield runner
            return
        if problem := super().missing_runtime():
            raise problem
        import onnxruntime

        # ONNX Runtime's optimisations would merge Q/DQ pairs into kernels of its own, with other roundings.
        session = open_session(artifact.path, threads=threads, optimise=False)
        info = {
            "runtime": f"ONNX Runtime {onnxruntime.__version__}, in place of TensorRT",
            "device": "CPU",
            "provider": session.get_providers()[0],
            "arithmetic": arithmetic,
            "threads": str(threads),
        }
        yield runner_of(session, artifact, info)
