"""From a PyTorch network to the bytes of a .tflite file, and from fp32 to smaller weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from u2export.exporters.int8 import float_region
from u2export.exporters.litert.bias_correction import Errors, corrected, errors_of
from u2export.exporters.litert.runner import introduce
from u2export.exporters.litert.tflite import convolutions, sources_of
from u2export.exporters.quiet import quiet, quiet_library
from u2export.reference.image import Contract
from u2export.reference.onnx_export import INPUT

if TYPE_CHECKING:
    from u2export.exporters.litert.deployed import Deployed

# The parts of `deployed.Deployed` that compute in int8; their names are in the names of operations.
QUANTISED = "Backbone_|Sides_"
# An int8 convolution adds its bias in 32 bits, as a multiple of input scale times weight scale. This leaves 3 bits.
LARGEST_BIAS = 2.0**28


def converted(network: Deployed, contract: Contract, scratch: Path) -> bytes:
    """Return the fp32 model of a network, with the network's ports.

    Args:
        network: in evaluation mode.
        contract: says the input size.
        scratch: a file name that may be used in between; the file is removed.
    """
    import torch

    with quiet(), quiet_library():
        import litert_torch

    number, channels, height, width = contract.shape
    shape = (number, height, width, channels) if network.channels_last else contract.shape
    example = torch.zeros(shape, dtype=torch.uint8 if network.preprocessing else torch.float32)
    litert_torch.config.show_progress = False  # its console took hold of standard output when it was imported
    with quiet(), quiet_library():
        made = litert_torch.convert(network, sample_kwargs={INPUT: example})
        made.export(str(scratch))
    model = scratch.read_bytes()
    scratch.unlink()
    return model


def with_fp16_weights(model: bytes) -> bytes:
    """Return a model whose weights are stored in fp16; CPUs compute with them in fp32."""
    from ai_edge_quantizer import qtyping, quantizer

    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    made = quantizer.Quantizer(bytearray(model))
    made.update_quantization_recipe(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        algorithm_key="float_casting",
        op_config=qtyping.OpQuantizationConfig(
            weight_tensor_config=weights, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
        ),
    )
    with quiet():
        return bytes(made.quantize(None).quantized_model)


def with_int8_weights(model: bytes) -> bytes:
    """Return a model with int8 weights; the ranges of its activations are measured anew in every run."""
    from ai_edge_quantizer import quantizer, recipe

    made = quantizer.Quantizer(bytearray(model), recipe.dynamic_wi8_afp32())
    with quiet():
        return bytes(made.quantize(None).quantized_model)


@dataclass(frozen=True)
class Calibrated:
    """A network with what calibration photos say about it.

    Attributes:
        model: fp32, from `converted`.
        ranges: "min" and "max" of each tensor.
        errors: what int8 will add to each output channel, see `bias_correction`.
    """

    model: bytes
    ranges: dict[str, dict[str, Any]]
    errors: Errors


def calibrated(model: bytes, network: Deployed, inputs: Sequence[Any]) -> Calibrated:
    """Run calibration photos through a network.

    Args:
        model: from `converted`.
        network: what it was converted from.
        inputs: calibration photos, each as the model takes it.
    """
    from ai_edge_quantizer import quantizer

    introduce()
    made = quantizer.Quantizer(bytearray(model), _recipe())
    ranges: dict[str, dict[str, Any]] = {}
    with quiet():
        for photo in inputs:
            # One by one: over a list, the quantiser takes a moving average, which cuts off what few photos reach.
            for name, seen in made.calibrate({"serving_default": [{INPUT: photo}]}).items():
                known = ranges.setdefault(name, {key: np.array(value) for key, value in seen.items()})
                known["min"] = np.minimum(known["min"], seen["min"])
                known["max"] = np.maximum(known["max"], seen["max"])
    return Calibrated(model, ranges, errors_of(model, network, inputs, ranges))


def with_int8(given: Calibrated, floats: Collection[str] = ()) -> bytes:
    """Return a model whose convolutions and all between them are int8; input, output and last steps stay float32.

    Args:
        given: the network.
        floats: convolutions that stay in float, by their names in PyTorch.
    """
    from ai_edge_quantizer import qtyping, quantizer

    model = corrected(given.model, given.errors, floats)
    made = quantizer.Quantizer(bytearray(model), _recipe())
    convs = {conv.output: conv.name in floats for conv in convolutions(model)}
    for output in float_region(sources_of(model), convs, (name for name, kept in convs.items() if kept)):
        made.update_quantization_recipe(  # the quantiser names an operation after its output
            regex=f"^{re.escape(output)};",
            operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
            algorithm_key="no_quantize",
        )
    with quiet():
        return bytes(made.quantize({**given.ranges, **_wide_enough(model, given.ranges)}).quantized_model)


def _recipe() -> list[dict[str, Any]]:
    from ai_edge_quantizer import recipe

    return [{**part, "regex": QUANTISED} for part in recipe.static_wi8_ai8()]


def _wide_enough(model: bytes, ranges: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return ranges of weights for the convolutions whose biases would not fit into 32 bits.

    A channel without weights gets a scale of 0 from the quantiser, and its bias is then lost. Conditioning makes such
    channels: they are constant.
    """
    found = {}
    for conv in convolutions(model):
        seen = ranges[conv.entry]
        scale = (max(float(np.max(seen["max"])), 0) - min(float(np.min(seen["min"])), 0)) / 255
        most = np.abs(conv.weight).max((1, 2, 3))
        needed = np.abs(conv.bias) * 127 / (max(scale, 1e-12) * LARGEST_BIAS)
        if (needed > most).any():
            wide = np.maximum(most, needed).astype(np.float32).reshape(-1, 1, 1, 1)
            found[conv.kernel] = {"min": -wide, "max": wide}
    return found
