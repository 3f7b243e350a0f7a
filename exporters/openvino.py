"""OpenVINO IR, for Intel and other CPUs, Intel GPUs and NPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from u2export.calibration.prepare import prepared
from u2export.errors import Unavailable, UserError, WrongValue
from u2export.exporters import ort
from u2export.exporters.artifact import Artifact
from u2export.exporters.embedding import MARK, embedded_in_openvino, note, of_pixels
from u2export.exporters.exporter import Exporter, Made, Request
from u2export.exporters.head_rewrite import with_fast_head
from u2export.exporters.int8 import quantised
from u2export.exporters.onnx_runtime import to_pixels
from u2export.exporters.runtime import Runner, missing_modules, processors, versions
from u2export.reference import stamp
from u2export.reference.dtypes import arithmetic_name, precision_name
from u2export.reference.fidelity import compare
from u2export.reference.image import Floats
from u2export.reference.onnx_export import Graph, to_onnx

if TYPE_CHECKING:
    import onnx

    from u2export.calibration.float_fallback import Quantised
    from u2export.calibration.quant_plan import QuantSpec
    from u2export.reference.fidelity import Fidelity
    from u2export.reference.source import Source

# NNCF keeps statistics of all tensors, about 0.1 GB a photo. More photos than these gain nothing.
NNCF_PHOTOS = 32
QUANTIZERS = ("qdq", "nncf")
WITHOUT_BIAS = "/WithoutBiases"
# The ONNX graph that the IR is converted from.
GRAPH = Graph()
# Mean IoU on the held-back photos that accuracy control may lose.
MAX_DROP = 0.004
# Reduced arithmetics, by the capability that a device lists; every device has fp32.
REDUCED = {"BF16": "bf16", "FP16": "fp16"}
# What OpenVINO's precision hint calls an arithmetic. What int8 leaves in float runs in fp32.
HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}


@dataclass(frozen=True)
class OpenVINO(Exporter):
    """OpenVINO IR: fp32, fp16 weights that the CPU computes with in fp32, or int8.

    Attributes:
        quantizer: who quantises to int8: "qdq" (the Q/DQ graph that ONNX Runtime gets too) or "nncf".
        bias_correction: NNCF's bias correction: "slow" (best on the worst photo), "fast" or "none".
        accuracy_control: let NNCF put layers back to float until the masks of held-back photos agree.
        embed_preprocess: the file takes pixels, (1, H, W, C) uint8, and gives the stretched mask (see `embedding`).
    """

    name: ClassVar[str] = "openvino"
    title: ClassVar[str] = "OpenVINO"
    suffix: ClassVar[str] = ".xml"
    precisions: ClassVar[Sequence[str]] = ("fp32", "fp16", "int8")
    calibrated: ClassVar[Sequence[str]] = ("int8",)
    needs: ClassVar[Sequence[str]] = ("torch", "onnx", "onnxsim", "onnxruntime", "openvino")  # of fp32 all but ORT
    extra: ClassVar[str] = "openvino"
    when: ClassVar[str] = "Intel's CPUs, GPUs and NPUs run it"

    quantizer: str = "qdq"
    bias_correction: str = "slow"
    accuracy_control: bool = False
    embed_preprocess: bool = False

    def export(self, source: Source, folder: Path, request: Request) -> Artifact:
        """As `Exporter.export`; a file that takes uint8 is judged by the reference of pictures of 8 bit."""
        return super().export(of_pixels(source) if self.embed_preprocess else source, folder, request)

    def filename(self, source: Source, precision: str) -> str:
        """As `Exporter.filename`; the name says that the file takes uint8."""
        stem = super().filename(source, precision).removesuffix(self.suffix)
        return stem + (MARK if self.embed_preprocess else "") + self.suffix

    def check(self, request: Request, calibrated: bool) -> None:
        """As `Exporter.check`; int8's options are refused beside another precision, NNCF's options without NNCF."""
        super().check(request, calibrated)
        nncf = self.quantizer == "nncf"
        plain = replace(self, embed_preprocess=False) == OpenVINO()
        if self.quantizer not in QUANTIZERS:
            raise WrongValue(f"no quantizer named {self.quantizer!r}", f"choose one of {', '.join(QUANTIZERS)}")
        if request.precision != "int8" and not plain:
            raise WrongValue("the quantizer and its options are for int8", "choose int8")
        if not nncf and not plain:
            raise WrongValue("bias correction and accuracy control are NNCF's", "choose nncf", "quantizer")
        if nncf and (problem := missing_modules("OpenVINO int8", ("nncf",), self.extra)):
            raise problem

    def missing_runtime(self) -> Unavailable | None:
        """Why this machine cannot run the artifacts; OpenVINO is enough."""
        return missing_modules(self.title, ("openvino",), self.extra)

    def arithmetics(self, artifact: Artifact) -> Sequence[str]:
        """fp32, then the reduced arithmetics of this CPU: each is a row of its own, never a silent default.

        An int8 artifact has one arithmetic. What Q/DQ leaves in float runs in fp32, because bf16 gains nothing there.
        """
        if artifact.precision == "int8":
            return ("int8",)
        import openvino

        there = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return ("fp32", *(arithmetic for capability, arithmetic in REDUCED.items() if capability in there))

    def _export(self, source: Source, path: Path, request: Request) -> Made:
        import openvino

        tools = versions("torch", "onnx", "onnxsim", "openvino")
        module, report = prepared(source, request.precision, request.calibration, request.condition)
        graph = to_onnx(module, source.contract, GRAPH, source.stamp(request.precision, tools))
        notes: tuple[str, ...] = ()
        added: Mapping[str, Any] = {}
        if self.quantizer != "nncf":
            graph = with_fast_head(graph)  # measured to pay, in fp32 too
        if request.precision == "int8" and self.quantizer == "qdq":
            # On CPUs without VNNI twice as close to fp32 as NNCF with its overflow fix; elsewhere they are equal.
            made = quantised(self, graph, source, request, ort.int8_spec(), _opened_graph)
            graph, added, notes = made.graph, made.added, (made.note,) if made.note else ()
        if self.quantizer == "nncf":
            tools |= versions("nncf")
            model, made = self._nncf_within(graph, source, request)
            added, notes = made.added, (made.note,) if made.note else ()
        else:
            model = _converted(graph)
        if self.embed_preprocess:
            model = embedded_in_openvino(model, source.contract)
            notes = (*notes, note(source.contract))
        form = {**vars(GRAPH), "embed_preprocess": self.embed_preprocess}
        stamped = stamp.texts(source.contract, source.stamp(request.precision, tools), graph=form)
        for key, value in stamped.items():
            model.set_rt_info(value, ["u2export", key])
        openvino.save_model(model, path, compress_to_fp16=request.precision == "fp16")
        return Made((path.with_suffix(".bin"),), tools, report, notes, added)

    def _nncf_within(self, graph: onnx.ModelProto, source: Source, request: Request) -> tuple[Any, Quantised]:
        """The model that NNCF quantises, and the float layers that it needs to keep the budget.

        Accuracy control chooses float layers by itself.
        """
        from u2export.calibration.float_fallback import float_layers_within

        assert request.calibration
        made: dict[QuantSpec, Any] = {}

        def judge(spec: QuantSpec) -> Fidelity:
            made[spec] = self._by_nncf(graph, source, request, spec)
            return source.compare(_opened(made[spec]), request.held_back or ())

        spec = ort.int8_spec()
        most = 0.0 if self.accuracy_control else request.max_float
        chosen = float_layers_within(
            graph, request.calibration, spec, judge, self.budget(request), most, request.progress
        )
        return made.get(chosen.spec) or self._by_nncf(graph, source, request, chosen.spec), chosen

    def _by_nncf(self, graph: onnx.ModelProto, source: Source, request: Request, spec: QuantSpec) -> Any:
        """The model quantised by NNCF, with the preset MIXED and the float convolutions of a spec.

        Its asymmetric activations measured better on the worst photo than symmetric ones.
        """
        import nncf

        assert request.calibration
        model = _converted(graph)
        photos = request.calibration.subset(NNCF_PHOTOS)
        with _silent():
            common: dict[str, Any] = {
                "preset": nncf.QuantizationPreset.MIXED,
                "subset_size": len(photos),
                "ignored_scope": _left_out(model, graph, spec),
                "fast_bias_correction": self.bias_correction == "fast",
                "advanced_parameters": nncf.AdvancedQuantizationParameters(
                    disable_bias_correction=self.bias_correction == "none",
                    # CPUs without VNNI add products of 8-bit values in 16 bits; 7-bit weights are right everywhere.
                    overflow_fix=nncf.OverflowFix.ENABLE,
                ),
            }
            if not self.accuracy_control:
                return nncf.quantize(model, nncf.Dataset(photos), **common)
            judges = list(request.held_back or (x for x, _ in source.verification))
            return nncf.quantize_with_accuracy_control(
                model, nncf.Dataset(photos), nncf.Dataset(judges), _mean_iou(source), max_drop=MAX_DROP,
                drop_type=nncf.DropType.ABSOLUTE, **_controlled(common),
            )  # fmt: skip

    @contextmanager
    def _load(self, artifact: Artifact, arithmetic: str, threads: int) -> Iterator[Runner]:
        yield self._opened(artifact, arithmetic, threads, 1)[0]

    @contextmanager
    def streams(self, artifact: Artifact, arithmetic: str, threads: int, count: int) -> Iterator[Sequence[Runner]]:
        """As `Runtime.streams`, from one compiled model; copies would all be pinned to the same processors."""
        wanted = arithmetic_name(arithmetic) or self.arithmetics(artifact)[0]
        yield self._opened(artifact, wanted, threads or processors(), count)

    def _opened(self, artifact: Artifact, arithmetic: str, threads: int, count: int) -> list[Runner]:
        import openvino

        many = {"NUM_STREAMS": str(count)} if count > 1 else {}
        core = openvino.Core()
        try:
            start = perf_counter_ns()
            model = core.read_model(artifact.path)
            read = perf_counter_ns()
            compiled = core.compile_model(model, "CPU", {**hints(arithmetic, threads), **many})
            opening = {"read": read - start, "compile": perf_counter_ns() - read}
        except RuntimeError as error:
            last = [line for line in str(error).splitlines() if line.strip()][-1]
            raise UserError(f"OpenVINO cannot open {artifact.path}: {last}", "export it again") from None
        layers = _layer_types(compiled)
        ran = precision_name(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        meant = sum(layers.values()) - len(artifact.added_float.get("float_layers", ()))  # to run in 8 bit
        if sum(n for kind, n in layers.items() if kind in ("i8", "u8")) > meant / 2:
            ran = "int8"
        if ran != arithmetic:
            raise Unavailable(
                f"{artifact.name}: asked for {arithmetic}, OpenVINO runs {ran}", "choose another arithmetic"
            )
        info = {
            "runtime": f"OpenVINO {openvino.__version__.partition('-')[0]}",
            "device": ",".join(compiled.get_property("EXECUTION_DEVICES")),
            "arithmetic": ran,
            "convolutions": ", ".join(f"{n} {kind}" for kind, n in layers.most_common()),
            "threads": str(compiled.get_property("INFERENCE_NUM_THREADS")),
        }
        pixels = compiled.input(0).get_element_type() == openvino.Type.u8
        feed = {"prepare": partial(to_pixels, contract=artifact.contract)} if pixels else {}
        requests = [compiled.create_infer_request() for _ in range(count)]
        return [Runner(_predictor(request), info, opening=opening, **feed) for request in requests]


def hints(arithmetic: str, threads: int) -> dict[str, str]:
    """What OpenVINO is told when it compiles an artifact, so that it runs in this arithmetic with these threads."""
    return {
        # Without the hint, a CPU with AVX512-BF16 runs even an FP32 IR in bfloat16: mask MAE .008 to .013.
        "INFERENCE_PRECISION_HINT": HINTS[arithmetic],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": str(threads),
    }


def _converted(graph: onnx.ModelProto) -> Any:
    """OpenVINO's model of an ONNX graph, without the graph's stamp.

    convert_model reads the names of inputs and outputs from a file. core.read_model, which takes bytes, writes biases
    in a form that NNCF's bias correction does not see.
    """
    from tempfile import TemporaryDirectory

    import onnx
    import openvino

    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.onnx"
        bare = onnx.ModelProto()
        bare.CopyFrom(graph)
        del bare.metadata_props[:]  # the stamp is written once, when the IR is complete
        onnx.save(bare, file)
        return openvino.convert_model(file)


def _opened_graph(graph: onnx.ModelProto) -> Callable[[Floats], Floats]:
    """What OpenVINO makes of a Q/DQ graph, in the arithmetic of an int8 artifact."""
    return _opened(_converted(graph))


def _opened(model: Any) -> Callable[[Floats], Floats]:
    """A quantised model of OpenVINO, in the arithmetic of an int8 artifact."""
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": HINTS["int8"], "PERFORMANCE_HINT": "LATENCY"}
    return _predictor(openvino.Core().compile_model(model, "CPU", hints).create_infer_request())


def _left_out(model: Any, graph: onnx.ModelProto, spec: QuantSpec) -> Any:
    """The float convolutions of a spec, as the scope that NNCF leaves out; None where all are quantised.

    OpenVINO names a convolution after that of the ONNX graph, and marks that its bias stands apart.
    """
    import nncf

    from u2export.calibration.quant_plan import float_nodes
    from u2export.reference.onnx_graph import conv_nodes

    floats = float_nodes(graph, spec) & {node.name for node in conv_nodes(graph)}
    if not floats:
        return None
    names = [op.get_friendly_name() for op in model.get_ops() if op.get_type_name() == "Convolution"]
    found = [name for name in names if name.removesuffix(WITHOUT_BIAS) in floats]
    assert len(found) == len(floats), f"{len(floats)} float convolutions, {len(found)} in OpenVINO"
    return nncf.IgnoredScope(names=found)


def _predictor(request: Any) -> Callable[[Floats], Floats]:
    def predict(batch: Floats) -> Floats:
        # The runtime's tensor is a view that the next call overwrites.
        return np.array(request.infer({0: batch}, share_inputs=True)[0], np.float32)

    return predict


def _layer_types(compiled: Any) -> Counter[str]:
    """How many convolutions run in which type, in OpenVINO's words, by the runtime's own execution graph."""
    found: Counter[str] = Counter()
    for op in compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        if "layerType" in info and info["layerType"].astype(str) == "Convolution":
            found[info["runtimePrecision"].astype(str)] += 1
    return found


def _controlled(common: dict[str, Any]) -> dict[str, Any]:
    """The same parameters by the names that accuracy control takes."""
    renamed = {"advanced_parameters": "advanced_quantization_parameters"}
    return {renamed.get(key, key): value for key, value in common.items()}


def _mean_iou(source: Source) -> Callable[[Any, Iterable[Floats]], tuple[float, list[float]]]:
    """NNCF's validation function: mean IoU with the reference's masks, and the IoU of each photo."""

    def validate(compiled: Any, inputs: Iterable[Floats]) -> tuple[float, list[float]]:
        each = [compare(compiled(x)[0][0], source.predict(x)[0]).iou for x in inputs]
        return sum(each) / len(each), each

    return validate


@contextmanager
def _silent() -> Iterator[None]:
    """Hide NNCF's log and progress bars, which it prints to standard output."""
    import io
    import logging
    from contextlib import redirect_stdout

    import nncf

    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(io.StringIO()):
        yield
