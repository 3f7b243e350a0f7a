"""From a PyTorch network to a Core ML model: tracing, conversion, and compression of weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from u2export.errors import UserError
from u2export.exporters.coreml.ports import FLAT, INPUT, OUTPUT
from u2export.reference.image import Contract

if TYPE_CHECKING:
    import torch


# Bits of an index into a palette, by precision.
PALETTES = {"palette8": 8, "palette6": 6, "palette4": 4}
# Weights with fewer elements stay as they are. A scale or a table for each would take back what is gained.
SMALL = 2048


def converted(
    module: torch.nn.Module, contract: Contract, precision: str, ios: int, output: str, sizes: Sequence[tuple[int, int]]
) -> Any:
    """Return the Core ML model of a network, an ML Program in fp32 or fp16.

    Args:
        module: the network.
        contract: its pre- and postprocessing, which become part of the model.
        precision: "fp32", or any other precision for fp16.
        ios: the oldest iOS that opens the model.
        output: "tensor", "image" or "raw", see `CoreML.output`.
        sizes: (height, width) of input sizes beside the contract's.
    """
    import coremltools as ct

    c = contract
    shape: Any = c.shape
    if sizes:
        shapes = [(1, c.channels, h, w) for h, w in dict.fromkeys(((c.height, c.width), *sizes))]
        shape = ct.EnumeratedShapes(shapes=shapes, default=c.shape)
    fp32 = precision == "fp32"
    grey, rgb = ct.colorlayout.GRAYSCALE, ct.colorlayout.RGB
    port = (
        ct.ImageType(OUTPUT, color_layout=grey)
        if output == "image"
        else ct.TensorType(OUTPUT, dtype=np.float32 if fp32 else np.float16)
    )
    return ct.convert(
        _traced(module, c, output),
        convert_to="mlprogram",
        inputs=[ct.ImageType(INPUT, shape=shape, scale=1.0, color_layout=grey if c.channels == 1 else rgb)],
        outputs=[port],
        minimum_deployment_target=ct.target[f"iOS{ios}"],
        compute_precision=ct.precision.FLOAT32 if fp32 else ct.precision.FLOAT16,
        skip_model_load=True,
    )


def _traced(module: torch.nn.Module, contract: Contract, output: str) -> torch.jit.ScriptModule:
    """Return the TorchScript from a picture (1, C, H, W), 0..255, to the output."""
    import torch

    from u2export.calibration.condition import fold_batch_norm
    from u2export.reference import model as network

    class Deployed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # The converter would fold the batch norms too, but its weights lose their names.
            self.network = fold_batch_norm(cast("network.U2Net", module))
            self.mean = torch.tensor(contract.mean).view(1, -1, 1, 1)
            self.std = torch.tensor(contract.std).view(1, -1, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # The upper bound is needed: without one, the converter writes an infinite constant in fp16.
            x = x / x.amax((1, 2, 3), keepdim=True).clamp(1.0, 255.0)
            d0: torch.Tensor = self.network((x - self.mean) / self.std)[0]
            if output == "raw":
                return d0
            low, high = d0.amin((2, 3), keepdim=True), d0.amax((2, 3), keepdim=True)
            mask = (d0 - low) / (high - low).clamp(FLAT, 1.0)
            return mask * 255.0 if output == "image" else mask

    # Traced sizes must be numbers: the converter cannot read aten::size with NumPy 2.4 and later. Several enumerated
    # sizes need factors.
    dynamic, network.upsample_to = network.upsample_to, _upsample_static
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            example = torch.zeros(contract.shape)
            traced: torch.jit.ScriptModule = torch.jit.trace(  # type: ignore[no-untyped-call]
                Deployed().eval(), example, check_trace=False
            )
            return traced
    finally:
        network.upsample_to = dynamic


def _upsample_static(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """As `upsample_to`, by whole factors where the sizes allow them, and otherwise to sizes that are numbers."""
    from torch.nn import functional as F

    (h, w), (height, width) = (tuple(int(n) for n in t.shape[2:]) for t in (x, target))
    if height % h == 0 and width % w == 0:
        return F.interpolate(x, scale_factor=(height / h, width / w), mode="bilinear", align_corners=False)
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


def compressed(model: Any, precision: str, group: int) -> Any:
    """Return a model with weights in int8 or in palettes; a model in fp32 or fp16 is returned as it is.

    Args:
        model: the float model.
        precision: the precision of the export.
        group: output channels that share a palette; 0 for one palette per weight.
    """
    import coremltools.optimize.coreml as cto

    if precision == "int8":
        op = cto.OpLinearQuantizerConfig(mode="linear", granularity="per_channel", weight_threshold=SMALL)
        with np.errstate(invalid="ignore", divide="ignore"):  # scales of weights near zero underflow in fp16
            return cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=op))
    if precision in PALETTES:
        grouping = {"granularity": "per_grouped_channel", "group_size": group} if group else {}
        op = cto.OpPalettizerConfig(mode="kmeans", nbits=PALETTES[precision], weight_threshold=SMALL, **grouping)
        return cto.palettize_weights(model, cto.OptimizationConfig(global_config=op))
    return model


def compression_notes(path: Path, precision: str) -> Iterator[str]:
    """Say how many weights of a package are compressed, and which stayed in float; coremltools logs this at most.

    Raises:
        UserError: no weight is compressed.
    """
    from u2export.exporters.coreml.package import Package

    if precision in ("fp32", "fp16"):
        return
    layers = Package(path).layers()
    kept = [layer for layer in layers if not layer.compressed]
    if len(kept) == len(layers):
        raise UserError(f"coremltools compressed no weight for {precision}", "choose another precision")
    names = ", ".join(layer.name for layer in kept[:4]) + (" …" if len(kept) > 4 else "")
    yield f"weights compressed: {len(layers) - len(kept)} of {len(layers)}" + (f"; kept: {names}" if kept else "")
