"""The LiteRT target: a .tflite file, run by LiteRT's own interpreter with XNNPACK."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from u2export.calibration.prepare import prepared
from u2export.errors import Unavailable
from u2export.exporters.artifact import Artifact
from u2export.exporters.exporter import Exporter, Made, Request
from u2export.exporters.int8 import ORDERING, FloatLayers, float_layers
from u2export.exporters.litert.conversion import (
    calibrated,
    converted,
    with_fp16_weights,
    with_int8,
    with_int8_weights,
)
from u2export.exporters.litert.runner import arithmetic_of, contract_of_file, open_runner, predictor_of
from u2export.exporters.litert.tflite import stamped
from u2export.exporters.onnx_runtime import to_pixels
from u2export.exporters.runtime import Runner, missing_modules, processors, versions
from u2export.reference import stamp
from u2export.reference.image import Contract, Floats

if TYPE_CHECKING:
    import torch

    from u2export.exporters.litert.deployed import Deployed
    from u2export.reference.fidelity import Fidelity
    from u2export.reference.model import U2Net
    from u2export.reference.source import Source

# Photos of a calibration; more only add outliers, which widen the ranges.
PHOTOS = 32
TOOLS = ("torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert")


@dataclass(frozen=True)
class LiteRT(Exporter):
    """A .tflite file, static in size, d0 only.

    Attributes:
        nhwc: input and output are (N, H, W, C) float32. Without it they are (N, C, H, W) float32, as in PyTorch.
        embed_preprocess: the file takes pixels, (1, H, W, C) uint8, and gives the stretched mask, (1, H, W, K)
            float32; only the resize stays outside.
    """

    name: ClassVar[str] = "litert"
    title: ClassVar[str] = "LiteRT"
    suffix: ClassVar[str] = ".tflite"
    precisions: ClassVar[Sequence[str]] = ("fp32", "fp16", "dynamic-int8", "int8")
    calibrated: ClassVar[Sequence[str]] = ("int8",)
    needs: ClassVar[Sequence[str]] = ("torch", "litert_torch", "ai_edge_quantizer", "ai_edge_litert", *ORDERING)
    extra: ClassVar[str] = "litert"
    when: ClassVar[str] = "an Android app or a Linux board runs it"
    limits: ClassVar[Mapping[str, Mapping[str, float]]] = {
        **Exporter.limits,
        "dynamic-int8": Exporter.limits["int8"],
    }

    nhwc: bool = False
    embed_preprocess: bool = False

    def export(self, source: Source, folder: Path, request: Request) -> Artifact:
        """As `Exporter.export`; a file that takes uint8 is judged by the reference of pictures of 8 bit."""
        if self.embed_preprocess:
            source = replace(source, contract=replace(source.contract, rounded=True))
        return super().export(source, folder, request)

    def filename(self, source: Source, precision: str) -> str:
        """As `Exporter.filename`; the name says how the ports differ, so that no variant overwrites another."""
        mark = "-uint8" if self.embed_preprocess else "-nhwc" if self.nhwc else ""
        return super().filename(source, precision).removesuffix(self.suffix) + mark + self.suffix

    def missing_runtime(self) -> Unavailable | None:
        """Why this machine cannot run the artifacts; the interpreter is enough, a device needs no PyTorch."""
        return missing_modules(self.title, ("ai_edge_litert",), "litert-runtime")

    def arithmetics(self, artifact: Artifact) -> Sequence[str]:
        """The one arithmetic of the file, by the types of its convolutions; fp16 weights are computed with in fp32."""
        return (arithmetic_of(artifact.path),)

    def adopts(self, path: Path) -> bool:
        """Whether a file without a record is a .tflite."""
        return path.suffix == self.suffix

    def contract_of(self, path: Path) -> Contract:
        """The contract that u2export stamped into a file; otherwise the standard one with the file's input size.

        Raises:
            UserError: the file cannot be read, or its input is not one picture.
            Unavailable: LiteRT is not installed.
        """
        if problem := self.missing_runtime():
            raise problem
        return contract_of_file(path)

    def _export(self, source: Source, path: Path, request: Request) -> Made:
        tools = versions(*TOOLS)
        module, report = prepared(source, request.precision, request.calibration, request.condition)
        network = self._deployed(module, source.contract)
        model = converted(network, source.contract, path.with_suffix(".fp32.tflite"))
        if request.precision == "fp16":
            model = with_fp16_weights(model)
        if request.precision == "dynamic-int8":
            model = with_int8_weights(model)
        floats = FloatLayers()
        if request.precision == "int8":
            model, floats = self._int8(model, network, source, path, request)
        texts = stamp.texts(source.contract, source.stamp(request.precision, tools), graph=asdict(self))
        path.write_bytes(stamped(model, stamp.prefixed(texts)))
        return Made(tools=tools, condition=report, notes=tuple(filter(None, [floats.note])), added_float=floats.added)

    def _int8(
        self, model: bytes, network: Deployed, source: Source, path: Path, request: Request
    ) -> tuple[bytes, FloatLayers]:
        """The int8 model, and the float layers that it needs to keep the budget; `path` may be used in between."""
        assert request.calibration
        request.progress("measuring ranges")
        photos = request.calibration.subset(PHOTOS)
        known = calibrated(model, network, [self.fed(photo, source.contract) for photo in photos])

        def judge(floats: Collection[str]) -> Fidelity:
            path.write_bytes(with_int8(known, floats))
            return source.compare(predictor_of(path, source.contract, processors()), request.held_back or ())

        floats = float_layers(self, network.backbone.network, source, request, judge)
        return with_int8(known, floats.names), floats

    def _deployed(self, module: torch.nn.Module, contract: Contract) -> Deployed:
        from u2export.exporters.litert.deployed import Deployed

        return Deployed(cast("U2Net", module), contract, self.nhwc, self.embed_preprocess).eval()

    def shape(self, contract: Contract) -> tuple[int, ...]:
        """The shape of the file's input."""
        number, channels, height, width = contract.shape
        return (number, height, width, channels) if self.nhwc or self.embed_preprocess else contract.shape

    def fed(self, batch: Floats, contract: Contract) -> Any:
        """What the file takes of a network input (1, C, H, W): uint8 with `embed_preprocess`, else float32."""
        if self.embed_preprocess:
            return np.ascontiguousarray(to_pixels(batch, contract))
        return np.ascontiguousarray(batch.transpose(0, 2, 3, 1)) if self.nhwc else batch

    @contextmanager
    def _load(self, artifact: Artifact, arithmetic: str, threads: int) -> Iterator[Runner]:
        yield open_runner(artifact, arithmetic, threads)
