"""Options that several commands share, spelled once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from u2export.errors import UserError
from u2export.reference.image import Contract

Weights = Annotated[
    str,
    typer.Option(help="A name of `u2export weights list`, random-u2net(p), or a .pth .safetensors .onnx file."),
]
Out = Annotated[Path, typer.Option(help="Folder for the artifact and its record.")]
Size = Annotated[str, typer.Option(metavar="N|HxW", help="Input size of the network in pixels.")]
Resize = Annotated[str, typer.Option(help="bilinear (no anti-aliasing, as the author) or lanczos (as rembg).")]
Calib = Annotated[
    Path | None, typer.Option(help="Calibration photos: a folder, a manifest.json or an .npy file.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
Fp32 = Annotated[bool, typer.Option("--fp32", help="32-bit floating point.")]
Fp16 = Annotated[bool, typer.Option("--fp16", help="16-bit floating point.")]
Int8 = Annotated[bool, typer.Option("--int8", help="8-bit integers; needs --calib.")]
NoCondition = Annotated[
    bool, typer.Option("--no-condition", help="Leave the network as it is; masks of lower precisions suffer badly.")
]
Mixed = Annotated[
    bool,
    typer.Option("--mixed", help="Beside --int8: keep the layers in float that matter most; published u2netp only."),
]
KeepFloat = Annotated[
    Path | None,
    typer.Option(help="Beside --int8: layers to keep in float, a file of u2export sensitivity.", show_default=False),
]
Budget = Annotated[
    str, typer.Option(help="Fidelity limits in place of the default ones, such as mae=0.003,iou_worst=0.97.")
]

Trust = Annotated[
    bool, typer.Option("--trust", help="Open TensorRT engines not built on this machine, from now on; native code!")
]


def contract_of(size: str, resize: str) -> Contract:
    """The image contract for `--size` and `--resize`.

    Raises:
        UserError: not a size, or out of range.
    """
    match = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", size.strip())
    if not match:
        raise UserError(f"--size {size!r} is not a size", "give N or HxW in pixels, such as 320 or 256x384")
    height = int(match[1])
    return Contract(height=height, width=int(match[2] or height), resize=resize)


def chosen(flags: dict[str, bool], default: str) -> str:
    """The one precision whose flag was given, or the default.

    Raises:
        UserError: more than one was given.
    """
    given = [name for name, on in flags.items() if on]
    if len(given) > 1:
        raise UserError(f"--{' and --'.join(given)} exclude each other", "give one precision")
    return given[0] if given else default


def words(text: str) -> tuple[str, ...]:
    """What an option lists between commas."""
    return tuple(filter(None, (word.strip() for word in text.split(","))))


def kept(path: Path | None) -> tuple[str, ...]:
    """The layers that `--keep-float` lists; none without it.

    Raises:
        UserError: unreadable, or of another form.
    """
    if path is None:
        return ()
    from u2export.calibration.sensitivity import read_keep_float

    return read_keep_float(path)


def trust(paths: Iterable[Path]) -> None:
    """Remember the TensorRT engines among artifacts as ones this machine may open."""
    from u2export.exporters.open import read_artifact
    from u2export.exporters.trt.engine_file import ENGINE
    from u2export.exporters.trt.trust import trust as remember

    for path in paths:
        if (engine := read_artifact(path).path).suffix == ENGINE:
            remember(engine)


def shown(data: Any) -> str:
    """JSON for standard output."""
    import json

    return json.dumps(data, indent=2, ensure_ascii=False)
