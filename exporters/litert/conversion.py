"""From a PyTorch network to the bytes of a .tflite file, and from fp32 to smaller weights."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, cast

from u2export.reference.image import Contract
from u2export.reference.onnx_export import INPUT, OUTPUT

if TYPE_CHECKING:
    import torch

    from u2export.reference.model import U2Net


def converted(module: torch.nn.Module, contract: Contract, scratch: Path) -> bytes:
    """Return the fp32 model of a network: image (N, C, H, W) float32 to mask (N, K, H, W) float32.

    Args:
        module: the network; its forward gives seven maps, d0 first.
        contract: pre- and postprocessing, and with it the input size.
        scratch: a file name that may be used in between; the file is removed.
    """
    import litert_torch
    import torch

    from u2export.calibration.condition import fold_batch_norm

    class Deployed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # The converter folds batch norms too; without them it has a third less to do.
            self.network = fold_batch_norm(cast("U2Net", module))

        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return {OUTPUT: self.network(image)[0]}

    litert_torch.config.show_progress = False  # its console took hold of standard output when it was imported
    with _silent():
        made = litert_torch.convert(Deployed().eval(), sample_kwargs={INPUT: torch.zeros(contract.shape)})
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
    with _silent():
        return bytes(made.quantize(None).quantized_model)


def with_int8_weights(model: bytes) -> bytes:
    """Return a model with int8 weights; the ranges of its activations are measured anew in every run."""
    from ai_edge_quantizer import quantizer, recipe

    made = quantizer.Quantizer(bytearray(model), recipe.dynamic_wi8_afp32())
    with _silent():
        return bytes(made.quantize(None).quantized_model)


@contextmanager
def _silent() -> Iterator[None]:
    """Hide what the converter and the quantiser print: sizes on standard output, progress bars, warnings."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
