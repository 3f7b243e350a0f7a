"""TensorRT: typed ONNX and a recipe on any machine, the engine where a builder is, masks judged without a GPU.

Engines fit one GPU and one version, so what travels is the graph with its precisions written into it: fp16 tensors, or
symmetric int8 Q/DQ pairs where TensorRT wants them, which 8.5 to 10 build with flags and 11 and RTX as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from u2export.calibration.prepare import prepared
from u2export.errors import Unavailable, UserError
from u2export.exporters.artifact import Artifact, hashes
from u2export.exporters.exporter import Made, Request, Runner, versions
from u2export.exporters.onnx import TOOLS, OnnxRuntimeRunner, open_session, runner_of
from u2export.exporters.trt.build import LOCAL, Built, Options, devices, installed
from u2export.exporters.trt.layer_table import HIDDEN
from u2export.exporters.trt.recipe import SUFFIX, Recipe
from u2export.files import make_folder, publish, staging, write_json
from u2export.reference.onnx_export import Graph, to_onnx
from u2export.version import __version__

if TYPE_CHECKING:
    import onnx

    from u2export.reference.source import Source

PLACEMENTS = ("producer", "conv-input")
RESTS = ("fp32", "fp16")
ENGINE, LAYERS = ".engine", ".layers.txt"
NOT_RUN = "not run on hardware"


@dataclass(frozen=True)
class TensorRT(OnnxRuntimeRunner):
    """Typed ONNX for TensorRT 8.5 and later, with the recipe to build it by; engines are opened where a GPU is.

    Attributes:
        placement: of int8's Q/DQ pairs: "producer" (least memory traffic) or "conv-input".
        keep_float: nodes to leave in floating point (int8) or in fp32 (fp16): names, or regular expressions that match
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

    placement: str = "producer"
    keep_float: tuple[str, ...] = ()
    rest: str = "fp32"
    dynamic: tuple[str, ...] = ()

    def check(self, request: Request, calibrated: bool) -> None:
        """As `Exporter.check`; options of one precision mean nothing beside another."""
        super().check(request, calibrated)
        if self.placement not in PLACEMENTS:
            raise UserError(f"no Q/DQ placement named {self.placement!r}", f"choose one of {', '.join(PLACEMENTS)}")
        if self.rest not in RESTS:
            raise UserError(f"int8 cannot leave layers in {self.rest!r}", f"choose one of {', '.join(RESTS)}")
        plain = TensorRT()
        if request.precision != "int8" and (self.placement, self.rest) != (plain.placement, plain.rest):
            raise UserError("--placement and --rest are options of int8", "add --int8")
        if request.precision == "fp32" and self.keep_float:
            raise UserError("--keep-float is an option of int8 and fp16", "add --int8 or --fp16")

    def filename(self, source: Source, precision: str) -> str:
        """As `Exporter.filename`; what differs from the default says so, lest one overwrite another."""
        stem = super().filename(source, precision).removesuffix(self.suffix)
        marks = [*([self.placement] if self.placement != "producer" else []), *(["mixed"] if self.keep_float else [])]
        marks += [*(["fp16"] if self.rest == "fp16" else []), *(["dynamic"] if self.dynamic else [])]
        return "-".join((stem, *marks)) + self.suffix

    def missing_runtime(self) -> Unavailable | None:
        """ONNX Runtime for typed ONNX, TensorRT for engines: one of them will do."""
        return None if find_spec("tensorrt") or find_spec("tensorrt_rtx") else super().missing_runtime()

    def arithmetics(self, artifact: Artifact) -> Sequence[str]:
        """An engine in its own precision, on a GPU; a typed ONNX in ONNX Runtime, for its masks and not its speed.

        Raises:
            Unavailable: an engine, and no CUDA device.
        """
        if artifact.path.suffix == ENGINE:
            if not devices():
                raise Unavailable("no CUDA device", "run the engine on the GPU it was built for")
            return (artifact.precision,)
        return (f"simulated {artifact.precision}",)

    def built(self, artifact: Artifact, folder: Path) -> Artifact | None:
        """The engine of a typed ONNX that has its recipe, where there are TensorRT and a GPU."""
        from u2export.exporters.trt.build import build, choose, load

        if artifact.path.suffix == ENGINE or not devices() or not installed():
            return None
        recipe, graph = Recipe.read(artifact.path)
        runtime = load(choose("auto", (LOCAL,), gpu=True))
        return save_engine(build(runtime, graph, recipe, Options()), artifact, recipe, Options(), folder)

    def adopts(self, path: Path) -> bool:
        """Engines; a typed ONNX without its record looks like any other."""
        return path.suffix == ENGINE

    def _export(self, source: Source, path: Path, request: Request) -> Made:
        import onnx

        from u2export.exporters.trt.typed_graph import lint, refuse

        tools = versions(*TOOLS)
        module, report = prepared(source, request.precision, request.calibration, request.condition)
        graph = Graph(dynamic=self.dynamic)
        model = to_onnx(module, source.contract, graph, source.stamp(request.precision, tools))
        model, kept = self._typed(model, request)
        refuse(lint(model, 20))
        onnx.save(model, path)
        int8 = request.precision == "int8"
        recipe = Recipe.of(
            model, path, precision=request.precision, rest=self.rest if int8 else request.precision, islands=kept,
            placement=self.placement if int8 else "",
            calibration=request.calibration.summary() if int8 and request.calibration else {},
        )  # fmt: skip
        beside = path.with_name(path.stem + SUFFIX)
        recipe.write(beside)
        notes = (f"masks judged in ONNX Runtime, {NOT_RUN}; its recipe: {beside.name}",)
        return Made(more=(beside,), tools=tools, condition=report, notes=notes)

    def _typed(self, model: onnx.ModelProto, request: Request) -> tuple[onnx.ModelProto, tuple[str, ...]]:
        """The graph in the precision asked for, and the nodes it keeps in fp32 among fp16."""
        from u2export.calibration.quant_plan import TENSORRT
        from u2export.calibration.quantize import PHOTOS, calibrated
        from u2export.exporters.trt.typed_graph import chosen_islands, islands, to_half

        if request.precision == "fp32":
            return model, ()
        if request.precision == "fp16":
            # Conditioned, the network has no such channels left: measured, islands gain nothing then.
            kept = chosen_islands(model, self.keep_float) | (set() if request.condition else islands(model))
            return to_half(model, kept), tuple(sorted(kept))
        assert request.calibration
        spec = replace(TENSORRT, placement=self.placement, keep_float=self.keep_float)
        model = calibrated(model, request.calibration.subset(PHOTOS), spec)
        return (to_half(model) if self.rest == "fp16" else model), ()

    @contextmanager
    def _load(self, artifact: Artifact, arithmetic: str, threads: int) -> Iterator[Runner]:
        if artifact.path.suffix == ENGINE:
            from u2export.exporters.trt.engine import opened

            with opened(artifact) as runner:
                yield runner
            return
        if problem := super().missing_runtime():
            raise problem
        import onnxruntime

        # Optimised, ONNX Runtime would merge Q/DQ pairs into kernels of its own, with other roundings.
        session = open_session(artifact.path, threads=threads, optimise=False)
        info = {
            "runtime": f"ONNX Runtime {onnxruntime.__version__}, in place of TensorRT",
            "device": "CPU",
            "provider": session.get_providers()[0],
            "arithmetic": arithmetic,
            "threads": str(threads),
        }
        yield runner_of(session, artifact.contract, info)


def save_engine(built: Built, source: Artifact, recipe: Recipe, options: Options, folder: Path) -> Artifact:
    """Write the engine of the typed graph `source`, its layer table and its record, and trust it on this machine."""
    from u2export.exporters.trt.engine import trust

    where = "-".join(options.targets) if options.targets != (LOCAL,) else LOCAL
    stem = f"{source.path.stem}-{built.facts['runtime']}-{where}"
    make_folder(folder)
    with staging(folder) as scratch:
        path = scratch / (stem + ENGINE)
        path.write_bytes(built.plan)
        files = [path]
        if built.layers:
            files.append(path.with_name(stem + LAYERS))
            files[-1].write_text(built.layers, encoding="utf-8")
        made = replace(
            source, exporter="trt", precision=recipe.precision, path=folder / path.name,
            files=hashes(path, *files[1:]), tools={"u2export": __version__, **_versions(built)},
            options={
                "recipe_sha256": recipe.sha256, "build": options.to_json(), **built.facts,
                "table": built.table.to_json() if built.table else {},
                "precisions": built.comparison.to_json() if built.comparison else {},
            },
            fidelity={}, notes=_notes(built, options, source),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )  # fmt: skip
        made.record.unlink(missing_ok=True)
        for file in files:
            publish(file, folder / file.name)
        write_json(made.to_json(), made.record)
    trust(made.path)
    return made


def _versions(built: Built) -> dict[str, str]:
    return {"tensorrt_rtx" if built.facts["runtime"] == "rtx" else "tensorrt": str(built.facts["version"])}


def _notes(built: Built, options: Options, source: Artifact) -> tuple[str, ...]:
    notes = []
    if options.targets != (LOCAL,):
        title = f"TensorRT-RTX {built.facts['version']} for {', '.join(options.targets)}"
        notes.append(f"built ahead of time with {title}, structure checked, {NOT_RUN}")
    if not built.comparison:
        notes.append("its layer table could not be read: precisions not confirmed")
    elif hidden := sum(got == HIDDEN for got in built.comparison.got.values()):
        notes.append(f"TensorRT does not show what {hidden} convolutions compute in: not confirmed")
    if source.fidelity:
        mae = source.fidelity["mae"]
        notes.append(f"masks of its graph in ONNX Runtime: MAE {mae:.2g}; of the engine: not measured")
    if built.facts["runtime"] == "rtx" and source.precision == "int8":
        notes.append("fp16 is advised on RTX: it requantises behind every int8 convolution, which moves more memory")
    return tuple(notes)
