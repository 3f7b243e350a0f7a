"""The recipe of an engine: all that a build needs besides the graph.

A recipe holds precisions, scales, limits of TensorRT versions and commands for trtexec. It lies beside the typed ONNX.
`u2export trt build` and trtexec both build by it.
"""

from __future__ import annotations

import re
import shlex
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from u2export.errors import UserError, WrongValue
from u2export.files import checked, read_json, write_json, write_text
from u2export.reference.weights import file_digest

if TYPE_CHECKING:
    from onnx import ModelProto

SCHEMA = 1
SUFFIX = ".recipe.json"
FP32_MAX = 3.4e38  # what a calibration cache can hold


@dataclass(frozen=True)
class Limits:
    """What a TensorRT version takes.

    Attributes:
        opset: the newest opset that its parser knows.
        typings: "weak" where flags allow precisions, "strong" where the graph decides on them.
    """

    opset: int
    typings: tuple[str, ...]


# From the release notes and the parsers' lists of operators. A version stands for all up to the next one here.
VERSIONS = {
    "8.5": Limits(17, ("weak",)),
    "8.6": Limits(17, ("weak",)),
    "10.0": Limits(20, ("weak", "strong")),
    "11.0": Limits(20, ("strong",)),
    "rtx": Limits(20, ("strong",)),
}
NEWEST_OPSET = max(limits.opset for limits in VERSIONS.values())


@dataclass(frozen=True)
class Recipe:
    """How to build one typed ONNX.

    Attributes:
        onnx, sha256: name and hash of the graph, which lies beside the recipe.
        precision: "int8", "fp16" or "fp32".
        rest: what int8 leaves in floating point; the precision itself otherwise.
        opset: opset of the graph.
        input: name of the graph's input.
        shape: shape of the input (N, C, H, W), -1 for free axes.
        output: name of the graph's output.
        layers: precision of every convolution, by node.
        islands: nodes that must stay in fp32 among others in fp16.
        placement: where the Q/DQ pairs stand, empty where there are none.
        scales: scales of the quantised activations, by tensor: value = scale x int8.
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
        """Whether the input has free axes, so that a build needs a profile of shapes."""
        return min(self.shape) < 0

    def check_values(self) -> None:
        """Check what `checked` does not: the contents of tuples and mappings.

        Raises:
            ValueError: a side, a name, a precision or a scale is none.
        """
        sides = bool(self.shape) and all(type(side) is int for side in self.shape)
        texts = [*self.islands, *self.layers, *self.layers.values()]
        scales = all(isinstance(s, (int, float)) and 0 < s < FP32_MAX for s in self.scales.values())
        if not (sides and scales and 0 < len(self.onnx) < 200 and all(isinstance(text, str) for text in texts)):
            raise ValueError("a side, the name of a layer, a precision or a scale is none")

    def builds_with(self, version: str) -> str:
        """Return why a version of `VERSIONS` does not build the graph; empty if it does."""
        limits = VERSIONS[version]
        if self.opset > limits.opset:
            return f"opset {self.opset}, its parser knows {limits.opset}; export with the rest in fp32"
        return ""

    def commands(self) -> dict[str, str]:
        """Return a trtexec command for each generation of TensorRT that builds the graph."""
        stem = Path(self.onnx).stem
        onnx, layers, engine = map(shlex.quote, (self.onnx, f"{stem}.layers.json", f"{stem}.engine"))
        flags = {
            "8.5 to 10, weak typing": " ".join(self._weak_flags()),
            "10, strong typing": "--stronglyTyped",
            "11": "",
        }
        ends = f"--profilingVerbosity=detailed --exportLayerInfo={layers} --saveEngine={engine}"
        lines = {k: " ".join(f"trtexec --onnx={onnx} {v} {ends}".split()) for k, v in flags.items()}
        return {k: v for k, v in lines.items() if not (self.builds_with("8.5") and k.startswith("8.5"))}

    def _weak_flags(self) -> Sequence[str]:
        """Return the flags for weak typing.

        Int8 allows fp16 too: on a Jetson, the layers that int8 leaves in float would be slow in fp32.
        """
        flags = {"fp32": (), "fp16": ("--fp16",), "int8": ("--int8", "--fp16")}[self.precision]
        if not self.islands:
            return flags
        kept = ",".join(f"{node}:fp32" for node in self.islands)
        return (*flags, "--precisionConstraints=obey", f"--layerPrecisions={kept}")

    def to_json(self) -> dict[str, Any]:
        """Return plain data, with limits and commands for people who build without u2export."""
        data = asdict(self)
        limits = {
            name: {"opset": v.opset, "typing": list(v.typings), "refused": self.builds_with(name)}
            for name, v in VERSIONS.items()
        }
        return {"schema": data.pop("schema"), **data, "tensorrt": limits, "trtexec": self.commands()}

    def write(self, path: Path) -> None:
        """Write the recipe to a file.

        Raises:
            UserError: the file cannot be written.
        """
        write_json(self.to_json(), path)

    @classmethod
    def of(cls, model: ModelProto, path: Path, **more: Any) -> Recipe:
        """Return the recipe of a typed graph.

        Args:
            model: the typed graph.
            path: the file that it was written to.
            more: the fields that the graph does not tell: precision, rest, islands, placement, calibration.
        """
        from u2export.exporters.trt.typed_graph import precisions, scales
        from u2export.reference.onnx_graph import opset_of

        entry = model.graph.input[0]
        dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in entry.type.tensor_type.shape.dim)
        return cls(
            onnx=path.name, sha256=file_digest(path), opset=opset_of(model), input=entry.name, shape=dims,
            output=model.graph.output[0].name, layers=precisions(model), scales=scales(model), **more,
        )  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> tuple[Recipe, Path]:
        """Return a recipe and the path of the graph beside it.

        Args:
            path: the recipe, the graph, or the graph's record.

        Raises:
            UserError: the recipe or the graph is missing, the recipe has another schema or is damaged, or the graph is
                not the one that the recipe describes.
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
            recipe = checked(cls(**{**data, "shape": tuple(data["shape"]), "islands": tuple(data["islands"])}))
            recipe.check_values()
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(f"{path}: damaged recipe ({error})", hint) from None
        graph = path.parent / Path(recipe.onnx).name
        if not graph.is_file():
            raise UserError(f"{graph} is missing", "keep the typed ONNX beside its recipe")
        if file_digest(graph) != recipe.sha256:
            raise UserError(f"{graph} is not the file its recipe describes", "export it again")
        return recipe, graph


def calibration_cache(scales: Mapping[str, float], version: str) -> str:
    """Return the text of a calibration cache, for implicit INT8 of TensorRT up to 10.

    Implicit INT8 is the only int8 on DLA up to TensorRT 10.7. The header of a cache holds the version without dots.
    Each line holds a tensor and its scale, as big-endian fp32 in hexadecimal. TensorRT reads no cache of another
    version.

    Args:
        scales: scales of the activations, by tensor.
        version: TensorRT's version, such as "8.6.2".

    Raises:
        UserError: there are no scales, the version has no implicit INT8, or it is no version.
    """
    if not (parts := re.match(r"(\d+)\.(\d+)\.(\d+)", version)):
        raise WrongValue(f"{version!r} is not a version of TensorRT", "give three numbers, such as 8.6.2")
    major, minor, patch = map(int, parts.groups())
    if major > 10 or not scales:
        why = f"TensorRT {version} has no implicit INT8" if scales else "the recipe has no scales"
        raise UserError(f"no calibration cache: {why}", "build from the Q/DQ graph, or export in int8")
    number = major * (10_000 if major >= 10 else 1000) + minor * 100 + patch
    lines = [f"TRT-{number}-EntropyCalibration2"]
    lines += [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items()]
    return "\n".join(lines) + "\n"


def write_calibration_cache(recipe: Recipe, version: str, path: Path) -> None:
    """Write the calibration cache of a recipe to a file.

    Raises:
        UserError: as `calibration_cache`, or the file cannot be written.
    """
    write_text(calibration_cache(recipe.scales, version), path)
