"""`u2export lint`: which layers of a network 8 bit or fp16 will break, before anything is exported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from u2export.commands.console import stderr
from u2export.commands.options import AsJson, Calib, shown
from u2export.errors import Unavailable, UserError
from u2export.install import how_to_install

if TYPE_CHECKING:
    import onnx

    from u2export.calibration.dataset import Calibration
    from u2export.calibration.weak_layers import Layer, Lint
    from u2export.reference.image import Contract


def lint(
    model: Annotated[
        str, typer.Argument(help="A name of `u2export weights list`, a .pth or .safetensors file, or an fp32 .onnx.")
    ],
    calib: Calib = None,
    photos: Annotated[int, typer.Option(min=1, help="Look at so many of the calibration photos, evenly spread.")] = 16,
    top: Annotated[int, typer.Option(min=1, help="Print so many layers, the worst first.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Name the layers that 8 bit or fp16 will break, the worst first; from the weights alone, or with photos."""
    with stderr().status(f"reading {model}"):
        found = _lint(model, calib, photos)
    if as_json:
        print(shown(found.to_json()))
    else:
        _show(found, top)


def _lint(model: str, calib: Path | None, photos: int) -> Lint:
    if model.endswith(".onnx"):
        from u2export.calibration.weak_layers import lint_onnx
        from u2export.exporters.open import read_artifact

        graph = _read(Path(model))
        return lint_onnx(graph, _photos(calib, read_artifact(Path(model)).contract, photos) if calib else None)
    from u2export.reference.source import Source

    source = Source.open(model)  # says so where PyTorch is not installed, before anything imports it
    from u2export.calibration.weak_layers import lint as lint_module

    return lint_module(source.model, _photos(calib, source.contract, photos) if calib else None)


def _photos(calib: Path, contract: Contract, count: int) -> Calibration:
    from u2export.calibration.dataset import Calibration

    return Calibration.open(calib, contract).subset(count)


def _read(path: Path) -> onnx.ModelProto:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise Unavailable("reading .onnx needs the onnx package", how_to_install("onnx")) from None
    try:
        return onnx.load(path)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}", "give a weights name or file, or an .onnx artifact") from None
    except (DecodeError, OSError, ValueError) as error:
        raise UserError(f"{path}: not an ONNX file ({error})", "export or download it again") from None


def _show(found: Lint, top: int) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("#", "layer", *(("dB at 8 bit",) if found.inputs else ("error at 8 bit",)), "bias", "problems"):
        table.add_column(title, justify="right" if title in ("#", "bias") or "8 bit" in title else "left")
    for layer in found.layers[:top]:
        problems = escape("; ".join(layer.problems)) or "[dim]none[/]"
        table.add_row(str(layer.index), layer.name, _worst(layer), f"{layer.bias:.4g}", problems)
    console.print(table)
    for c in found.near_constant:
        can = f"cannot be shifted, it reaches {c.obstacle}" if c.obstacle else "conditioning can shift it"
        console.print(f"near-constant: {c.producer} channel {c.channel}, {c.low:.4g} to {c.high:.4g}: {can}")
    bad = sum(bool(layer.problems) for layer in found.layers)
    dead = sum(layer.dead if layer.silent is None else layer.silent for layer in found.layers)
    based = f"on {found.inputs} photos" if found.inputs else "by the weights alone"
    console.print(f"{bad} of {len(found.layers)} layers with problems, {dead} silent channels, {based}")


def _worst(layer: Layer) -> str:
    if layer.weights_sqnr is None or layer.inputs_sqnr is None:
        return f"{layer.error8:.2g}"
    return f"{min(layer.weights_sqnr, layer.inputs_sqnr):.0f}"
