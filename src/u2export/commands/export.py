"""`u2export onnx|ort|openvino|coreml|litert|executorch`: an artifact and its record; the masks are checked first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from u2export.api.exporting import CHOICES
from u2export.commands import options as o
from u2export.errors import WrongValue

PALETTES = (8, 6, 4)


@o.with_precisions("onnx")
def onnx(
    common: o.Export,
    precision: str,
    opset: Annotated[int, typer.Option(help="Version of ONNX's operator set, 13 to 18.")] = 17,
    all_outputs: Annotated[
        bool, typer.Option("--all-outputs", help="Write all seven maps, not the fused map d0 alone.")
    ] = False,
    dynamic: Annotated[str, typer.Option(help="Axes whose size stays free: any of batch,height,width.")] = "",
    embed_preprocess: Annotated[
        bool,
        typer.Option(
            "--embed-preprocess", help="The graph takes uint8 NHWC and gives the mask; only the resize stays outside."
        ),
    ] = False,
    as_json: o.AsJson = "",
) -> None:
    """Export to ONNX: simplified, checked, and compared with PyTorch on photos."""
    made = common.run(
        "onnx", precision, opset=opset, all_outputs=all_outputs, dynamic=dynamic, embed_preprocess=embed_preprocess
    )
    o.show_artifact(made, as_json)


@o.with_precisions("ort")
def ort(
    common: o.Export,
    precision: str,
    mixed: Annotated[
        bool,
        typer.Option("--mixed", help="With --int8: keep the layers in float that matter most; published u2netp only."),
    ] = False,
    keep_float: o.KeepFloat = None,
    weight_bits: Annotated[int, typer.Option(help="Retired: changes nothing.", hidden=True)] = 0,
    mobile: Annotated[
        bool, typer.Option("--mobile", help="Write ONNX Runtime's own format (.ort), for phones.")
    ] = False,
    embed_preprocess: o.EmbedPreprocess = False,
    as_json: o.AsJson = "",
) -> None:
    """Export for ONNX Runtime on CPUs and phones."""
    made = common.run(
        "ort", precision, mobile=mobile, mixed=mixed, keep_float=keep_float, weight_bits=weight_bits,
        embed_preprocess=embed_preprocess,
    )  # fmt: skip
    o.show_artifact(made, as_json)


@o.with_precisions("openvino")
def openvino(
    common: o.Export,
    precision: str,
    quantizer: Annotated[
        str,
        o.choice(
            CHOICES["openvino", "quantizer"],
            "With --int8: qdq writes the graph that ONNX Runtime gets too, nncf lets NNCF quantise.",
        ),
    ] = "qdq",
    bias_correction: Annotated[
        str,
        o.choice(
            CHOICES["openvino", "bias_correction"],
            "With nncf: undo the mean error that rounding leaves; slow helps the worst photo and takes minutes.",
        ),
    ] = "slow",
    accuracy_control: Annotated[
        bool, typer.Option("--accuracy-control", help="With nncf: put layers back to float where needed; takes long.")
    ] = False,
    embed_preprocess: o.EmbedPreprocess = False,
    as_json: o.AsJson = "",
) -> None:
    """Export to OpenVINO IR (.xml and .bin)."""
    made = common.run(
        "openvino", precision, quantizer=quantizer, bias_correction=bias_correction, accuracy_control=accuracy_control,
        embed_preprocess=embed_preprocess,
    )  # fmt: skip
    o.show_artifact(made, as_json)


@dataclass(frozen=True)
class CoreMLExport(o.Export):
    """The options of every export command; one package may take several sizes."""

    size: Annotated[
        str,
        typer.Option(
            metavar="N|HxW[,…]",
            help="Input size in pixels; commas separate sizes that the app chooses from.",
            show_default=False,
        ),
    ] = ""


@o.with_precisions("coreml", int8="8-bit weights; the arithmetic is fp16.")
def coreml(
    common: CoreMLExport,
    precision: str,
    palette: Annotated[
        int,
        typer.Option(
            metavar="8|6|4", help="Store weights as indices of so many bits into palettes.", show_default=False
        ),
    ] = 0,
    group: Annotated[
        int, typer.Option(help="Output channels that share a palette, 0 for all; needs --target ios18.")
    ] = 0,
    target: Annotated[str, o.choice(CHOICES["coreml", "target"], "Oldest system that opens the package.")] = "ios16",
    output: Annotated[
        str,
        o.choice(
            CHOICES["coreml", "output"],
            "Mask as fp16 tensor 0..1, as 8-bit grey image, or raw: d0 before the stretch.",
        ),
    ] = "tensor",
    as_json: o.AsJson = "",
) -> None:
    """Export to a Core ML package for Xcode; the saved file's masks are checked, also without a Mac."""
    if palette and precision:
        raise WrongValue(f"--palette and --{precision} exclude each other", "give one precision")
    if palette not in (0, *PALETTES):
        raise WrongValue(f"there are no palettes of {palette} bits", "give --palette 8, 6 or 4")
    chosen = f"palette{palette}" if palette else precision
    made = common.run("coreml", chosen, target=target, output=output, group=group)
    o.show_artifact(made, as_json)


@o.with_precisions("litert", fp16="fp16 weights; CPUs compute in fp32.")
def litert(
    common: o.Export,
    precision: str,
    nhwc: Annotated[bool, typer.Option("--nhwc", help="Input and output are (1, H, W, C).")] = False,
    embed_preprocess: Annotated[
        bool,
        typer.Option(
            "--embed-preprocess",
            help="The file takes uint8 (1, H, W, 3) and gives the mask; only the resize stays outside.",
        ),
    ] = False,
    as_json: o.AsJson = "",
) -> None:
    """Export to LiteRT, formerly TensorFlow Lite (.tflite), for phones and small boards."""
    o.show_artifact(common.run("litert", precision, nhwc=nhwc, embed_preprocess=embed_preprocess), as_json)


@o.with_precisions("executorch")
def executorch(common: o.Export, precision: str, as_json: o.AsJson = "") -> None:
    """Export to ExecuTorch (.pte) for the CPUs of phones, through XNNPACK."""
    o.show_artifact(common.run("executorch", precision), as_json)
