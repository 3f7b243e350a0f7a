"""Export: from weights and photos to an artifact whose masks were compared with those of PyTorch."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from u2export.errors import WrongValue
from u2export.exporters import EXPORTERS
from u2export.exporters.artifact import Artifact
from u2export.exporters.coreml.exporter import OUTPUTS, TARGETS
from u2export.exporters.exporter import Exporter, Request
from u2export.exporters.openvino import QUANTIZERS
from u2export.exporters.trt.exporter import PLACEMENTS, RESTS
from u2export.reference.fidelity import Fidelity, parse_budget
from u2export.reference.image import CONTRACTS, RESIZES, Contract
from u2export.reference.onnx_export import Graph

if TYPE_CHECKING:
    from u2export.calibration.dataset import Calibration

__all__ = [
    "CHOICES", "CONTRACTS", "ENOUGH", "HELD_BACK", "PRECISIONS", "RESIZES", "Artifact", "Contract", "Fidelity", "Size",
    "export", "read_contract",
]  # fmt: skip

# Of a calibration set with at least ENOUGH photos, HELD_BACK photos judge the result and take no part in calibration.
ENOUGH, HELD_BACK = 16, 4
# The precisions of every target, its default one first.
PRECISIONS: dict[str, Sequence[str]] = {name: exporter.precisions for name, exporter in EXPORTERS.items()}
# The values of options that take one of a few words, by target and option.
CHOICES: dict[tuple[str, str], Sequence[str]] = {
    ("openvino", "quantizer"): QUANTIZERS,
    ("openvino", "bias_correction"): ("slow", "fast", "none"),
    ("trt", "placement"): PLACEMENTS,
    ("trt", "rest"): RESTS,
    ("coreml", "target"): tuple(TARGETS),
    ("coreml", "output"): OUTPUTS,
}
Size = int | str | tuple[int, int]
Progress = Callable[[str], None]
_log = logging.getLogger(__name__)


def export(
    target: str,
    precision: str = "",
    /,
    *,
    weights: str | Path = "u2netp",
    out: str | Path = "artifacts",
    size: Size | None = None,
    resize: str = "bilinear",
    contract: str = "",
    calib: str | Path | None = None,
    limit: int | None = None,
    condition: bool = True,
    budget: Mapping[str, float] | str = "",
    max_float: float = 10,
    progress: Progress = lambda stage: None,
    **options: Any,
) -> Artifact:
    """Export a network to a target and compare the masks of the finished file with those of PyTorch.

    `u2export TARGET --PRECISION …` calls this function, so both write the same bytes.

    Args:
        target: "onnx", "ort", "openvino", "trt", "coreml", "litert" or "executorch".
        precision: one of the target's precisions, see `u2export targets`; the target's first one by default.
        weights: a name of `u2export weights list`, "random-u2netp", "random-u2net", or a .pth, .safetensors or .onnx
            file.
        out: the folder for the artifact and its record; it is created where it does not exist.
        size: the network's input in pixels: 320, (height, width), "320" or "256x384". A text may list several sizes
            for Core ML, such as "320,640". By default the size of the contract.
        resize: "bilinear" (no anti-aliasing, as the author of U²-Net does) or "lanczos" (as rembg does).
        contract: "imagenet" (320 pixels, ImageNet's mean and deviation) or "cloth" (768 pixels, mean and deviation
            0.5). By default that of the weights: "cloth" for u2net_cloth_seg, else "imagenet". Name it for weights of
            your own.
        calib: calibration photos: a folder, a manifest.json or an .npy file. `int8` and `w8a8` need them, fp16 can use
            them. Of 16 photos and more, 4 are held back and judge the result.
        limit: read no more calibration photos than this, evenly spread over their names; all by default.
        condition: whether the network is re-parametrised before its precision is lowered. The masks stay the same.
        budget: fidelity limits in place of the target's own, such as {"mae": 0.003, "iou_worst": 0.97}; the text
            "mae=0.003,iou_worst=0.97" means the same.
        max_float: int8 that misses its budget gets float layers, the output head first, then what costs the masks most
            for its work. This is the most that may become float, in percent of the multiply-accumulates; 0 for none.
            The artifact's notes and `added_float` say what became float.
        progress: is called with the name of each stage.
        options: the target's own options, named as on the command line with underscores: `opset`, `all_outputs`,
            `dynamic`, `embed_preprocess` (onnx); `mobile`, `mixed`, `keep_float`, `weight_bits`, `embed_preprocess`
            (ort); `quantizer`, `bias_correction`, `accuracy_control`, `embed_preprocess` (openvino); `placement`,
            `rest`, `keep_float`, `dynamic` (trt); `target`, `output`, `group` (coreml); `nhwc`, `embed_preprocess`
            (litert). `keep_float` is a file of `u2export sensitivity`, or names of nodes.
            `dynamic` is a text such as "batch,height", or names of axes.

    Returns:
        The artifact. Its record lies beside the file as `<name>.json`.

    Raises:
        UserError: an argument is wrong, photos are missing, the folder cannot be written, or the masks differ from
            those of PyTorch by more than the budget allows. Earlier files in `out` then stay as they were.
        Unavailable: this machine lacks a package; the error says how to install it.

    Example:
        >>> import u2export as u2
        >>> artifact = u2.export("onnx", weights="random-u2netp", size=64, out=folder)
        >>> artifact.name
        'random-u2netp-64-onnx-fp32.onnx'
        >>> artifact.fidelity["mae"] < 1e-4
        True
    """
    sizes = _sizes(size) if size else []
    exporter = _exporter(target, sizes[1:], options)
    image_contract = read_contract(sizes[0] if sizes else None, resize, contract, weights)
    precision = precision or exporter.precisions[0]
    limits = parse_budget(budget) if isinstance(budget, str) else parse_budget(_text(budget))
    if not 0 <= max_float <= 100:
        raise WrongValue(f"{max_float:g} % of the work cannot become float", "give 0 to 100 percent", "max_float")
    exporter.check(Request(precision, None, condition, limits), calib is not None)

    from u2export.reference.source import Source

    progress(f"{exporter.title} {precision}: reading {weights}")
    source = Source.open(str(weights), image_contract)
    calibration = open_calibration(Path(calib), source.contract, limit) if calib is not None else None
    held_back = None
    if calibration and precision in exporter.calibrated and len(calibration) >= ENOUGH:
        calibration, held_back = calibration.split(HELD_BACK)
    progress(f"{exporter.title} {precision}: exporting {source.weights.label} and checking its masks")
    request = Request(precision, calibration, condition, limits, held_back, max_float / 100, progress)
    return exporter.export(source, Path(out), request)


def open_calibration(path: Path, contract: Contract, limit: int | None = None) -> Calibration:
    """Open a set of calibration photos; what the user should know about the set goes to the log as warnings.

    `limit` is the most photos to read, evenly spread over their names; None for all.
    """
    from u2export.calibration.dataset import Calibration

    calibration = Calibration.open(path, contract, limit=limit)
    for warning in calibration.warnings:
        _log.warning(warning)
    return calibration


def read_contract(
    size: Size | None = None, resize: str = "bilinear", contract: str = "", weights: str | Path = ""
) -> Contract:
    """Return the image contract for one input size.

    Args:
        size: 320, (height, width), "320" or "256x384", in pixels; the size of the contract by default.
        resize: "bilinear" or "lanczos".
        contract: its name, "imagenet" or "cloth"; by default that of the weights.
        weights: by name or file, as for `export`.

    Raises:
        UserError: the size, the resize or the contract's name is not valid.

    Example:
        >>> read_contract("256x384").shape
        (1, 3, 256, 384)
    """
    from u2export.reference.weights import contract_of

    if contract and contract not in CONTRACTS:
        raise WrongValue(f"no contract named {contract!r}", f"choose one of {', '.join(CONTRACTS)}", "contract")
    known = CONTRACTS[contract] if contract else contract_of(str(weights))
    sizes = _sizes(size) if size else [(known.height, known.width)]
    if len(sizes) > 1:
        raise WrongValue(f"{size!r} is more than one size", "give N or HxW in pixels, such as 320 or 256x384")
    return replace(known, height=sizes[0][0], width=sizes[0][1], resize=resize)


def _sizes(size: Size) -> list[tuple[int, int]]:
    if isinstance(size, tuple):
        return [(int(size[0]), int(size[1]))]
    found = []
    for part in str(size).split(","):
        match = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", part.strip())
        if not match:
            raise WrongValue(f"{part!r} is not a size", "give N or HxW in pixels, such as 320 or 256x384", "size")
        found.append((int(match[1]), int(match[2] or match[1])))
    return found


def _exporter(target: str, more: Sequence[tuple[int, int]], options: Mapping[str, Any]) -> Exporter:
    """Return the exporter of a target with these options of its own."""
    if target not in EXPORTERS:
        raise WrongValue(f"no target named {target!r}", f"choose one of {', '.join(EXPORTERS)}")
    kind = type(EXPORTERS[target])
    own = {field.name for field in fields(kind)}
    if more and "sizes" not in own:
        raise WrongValue(f"{kind.title} takes one size", "give N or HxW in pixels, such as 320 or 256x384", "size")
    known = {field.name for field in fields(Graph)} if "graph" in own else own
    if unknown := sorted(options.keys() - known):
        raise WrongValue(f"{kind.title} has no option {unknown[0]!r}", f"its options are {', '.join(sorted(known))}")
    values = {name: _value(name, value) for name, value in options.items()}
    if more:
        values["sizes"] = (*values.get("sizes", ()), *more)
    return kind(**{"graph": Graph(**values)} if "graph" in own else values)


def _value(name: str, value: Any) -> Any:
    """Return an option's value as the exporter's field takes it."""
    if name == "keep_float":
        return _float_layers(value)
    if name == "dynamic" and isinstance(value, str):
        return tuple(filter(None, (word.strip() for word in value.split(","))))
    return tuple(value) if isinstance(value, list) else value


def _float_layers(value: str | Path | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of nodes to keep in float: those in a file of `u2export sensitivity`, or those given."""
    if value is None:
        return ()
    if isinstance(value, (str, Path)):
        from u2export.calibration.sensitivity import read_keep_float

        return read_keep_float(Path(value))
    return tuple(value)


def _text(budget: Mapping[str, float]) -> str:
    return ",".join(f"{name}={value!r}" for name, value in budget.items())
