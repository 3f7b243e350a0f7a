"""What an engine is built from besides the graph: precisions, scales, limits by TensorRT version, commands.

The recipe lies beside the typed ONNX and needs nothing but that file; `u2export trt build` and trtexec both go by it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from u2export.errors import UserError
from u2export.files import read_json, write_json, write_text
from u2export.reference.weights import file_digest

if TYPE_CHECKING:
    from onnx import ModelProto

SCHEMA = 1
SUFFIX = ".recipe.json"


@dataclass(frozen=True)
class Limits:
    """What a TensorRT version takes: the newest opset its parser knows, and how precisions may be told."""

    opset: int
    typings: tuple[str, ...]


# From the release notes and the parsers' lists of operators; a version stands for those up to the next one here.
VERSIONS = {
    "8.5": Limits(17, ("weak",)),
    "8.6": Limits(17, ("weak",)),
    "10.0": Limits(20, ("weak", "strong")),
    "11.0": Limits(20, ("strong",)),
    "rtx": Limits(20, ("strong",)),
}


@dataclass(frozen=True)
class Recipe:
    """How to build one typed ONNX.

    Attributes:
        onnx, sha256: name and hash of the graph, which lies beside the recipe.
        precision: "int8", "fp16" or "fp32"; rest: what int8 leaves in floating point.
        opset: of the graph.
        input, shape: name and shape of its input, -1 for free axes. output: its output's name.
        layers: precision of every convolution, by node.
        islands: nodes that are to stay in fp32 among others in fp16.
        placement: of Q/DQ pairs, empty where there are none.
        scales: of the quantised activations, by tensor: value = scale x int8.
        calibration: digest and size of the calibration set, empty where none was used.
    """

    onnx: str
    sha256: str
    precision: str
    rest: str
    opset: int
    input: str
    shape: tuple[int, ...]
    output: str
    layers: Mapping[str, str]
    islands: tuple[str, ...] = ()
    placement: str = ""
    scales: Mapping[str, float] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def dynamic(self) -> bool:
        """Whether the input has free axes, so that building takes a profile."""
        return min(self.shape) < 0

    def builds_with(self, version: str) -> str:
        """Why a version of `VERSIONS` does not build the graph; empty if it does."""
        limits = VERSIONS[version]
        if self.opset > limits.opset:
            return f"opset {self.opset}, its parser knows {limits.opset}; export with --rest fp32"
        return ""

    def commands(self) -> dict[str, str]:
        """trtexec's words for each generation that builds the graph."""
        stem = Path(self.onnx).stem
        flags = {
            "8.5 to 10, weak typing": " ".join(self._weak_flags()),
            "10, strong typing": "--stronglyTyped",
            "11": "",
        }
        ends = f"--profilingVerbosity=detailed --exportLayerInfo={stem}.layers.json --saveEngine={stem}.engine"
        lines = {k: " ".join(f"trtexec --onnx={self.onnx} {v} {ends}".split()) for k, v in flags.items()}
        return {k: v for k, v in lines.items() if not (self.builds_with("8.5") and k.startswith("8.5"))}

    def _weak_flags(self) -> Sequence[str]:
        """fp16 is allowed beside int8: on a Jetson what is left in floating point would be slow in fp32."""
        flags = {"fp32": (), "fp16": ("--fp16",), "int8": ("--int8", "--fp16")}[self.precision]
        if not self.islands:
            return flags
        kept = ",".join(f"{node}:fp32" for node in self.islands)
        return (*flags, "--precisionConstraints=obey", f"--layerPrecisions={kept}")

    def to_json(self) -> dict[str, Any]:
        """Plain data, with what follows from it for whoever builds without u2export."""
        data = asdict(self)
        limits = {
            name: {"opset": v.opset, "typing": list(v.typings), "refused": self.builds_with(name)}
            for name, v in VERSIONS.items()
        }
        return {"schema": data.pop("schema"), **data, "tensorrt": limits, "trtexec": self.commands()}

    def write(self, path: Path) -> None:
        """Write the recipe."""
        write_json(self.to_json(), path)

    @classmethod
    def of(cls, model: ModelProto, path: Path, **more: Any) -> Recipe:
        """The recipe of a typed graph that has been written to `path`."""
        from u2export.exporters.trt.typed_graph import opset_of, precisions, scales

        entry = model.graph.input[0]
        dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in entry.type.tensor_type.shape.dim)
        return cls(
            onnx=path.name, sha256=file_digest(path), opset=opset_of(model), input=entry.name, shape=dims,
            output=model.graph.output[0].name, layers=precisions(model), scales=scales(model), **more,
        )  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> tuple[Recipe, Path]:
        """A recipe and the graph beside it; also found by the name of the graph or of its record.

        Raises:
            UserError: missing, of another schema, damaged, or the graph is not the one it describes.
        """
        name = path.name.removesuffix(".json").removesuffix(".recipe").removesuffix(".onnx")
        path = path.with_name(name + SUFFIX)
        hint = "give the .recipe.json that u2export trt wrote"
        data = read_json(path, "the .recipe.json that u2export trt wrote")
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise UserError(f"{path} is not a recipe of schema {SCHEMA}", hint)
        for derived in ("tensorrt", "trtexec"):
            data.pop(derived, None)
        try:
            recipe = cls(**{**data, "shape": tuple(data["shape"]), "islands": tuple(data["islands"])})
        except (TypeError, KeyError) as error:
            raise UserError(f"{path}: damaged recipe ({error})", hint) from None
        graph = path.parent / Path(recipe.onnx).name
        if not graph.is_file():
            raise UserError(f"{graph} is missing", "keep the typed ONNX beside its recipe")
        if file_digest(graph) != recipe.sha256:
            raise UserError(f"{graph} is not the file its recipe describes", "export it again")
        return recipe, graph


def calibration_cache(scales: Mapping[str, float], version: str) -> str:
    """A calibration cache with these scales, for implicit INT8 of TensorRT up to 10 (on DLA the only kind up to 10.7).

    The header carries the version without dots, each line a tensor and its scale as big-endian fp32 in hex. TensorRT
    reads no cache of another version.

    Raises:
        UserError: there are no scales, or the version has no implicit INT8.
    """
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    if major > 10 or not scales:
        why = f"TensorRT {version} has no implicit INT8" if scales else "the recipe has no scales"
        raise UserError(f"no calibration cache: {why}", "build from the Q/DQ graph, or export with --int8")
    number = major * (10_000 if major >= 10 else 1000) + minor * 100 + patch
    lines = [f"TRT-{number}-EntropyCalibration2"]
    lines += [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items()]
    return "\n".join(lines) + "\n"


def write_calibration_cache(recipe: Recipe, version: str, path: Path) -> None:
    """Write `calibration_cache` of a recipe."""
    write_text(calibration_cache(recipe.scales, version), path)
