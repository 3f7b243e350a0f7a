"""What the int8 targets share: quantisation within the budget, judged as the finished file will be."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from u2export.exporters.exporter import Exporter, Request
from u2export.reference.image import Floats

if TYPE_CHECKING:
    import onnx

    from u2export.calibration.float_fallback import Quantised
    from u2export.calibration.quant_plan import QuantSpec
    from u2export.reference.source import Source

# Opens a graph as the target will run it.
Opener = Callable[["onnx.ModelProto"], Callable[[Floats], Floats]]


def in_onnx_runtime(session: Any) -> Callable[[Floats], Floats]:
    """The fused map (1, K, H, W) of a network input (1, C, H, W) in a session of a Q/DQ graph."""
    entry, output = session.get_inputs()[0].name, session.get_outputs()[0].name
    return lambda x: np.asarray(session.run([output], {entry: x})[0], np.float32)


def quantised(
    exporter: Exporter, model: onnx.ModelProto, source: Source, request: Request, spec: QuantSpec, opener: Opener
) -> Quantised:
    """Return the 8-bit graph of an export, with float layers where pure 8 bit misses the budget.

    Args:
        exporter: the target; its limits are the budget, as far as the request has none of its own.
        model: the conditioned fp32 graph.
        source: the reference that the masks are compared with.
        request: has the calibration photos and the held-back photos.
        spec: how to quantise.
        opener: opens a graph as the target will run it.

    Raises:
        UserError: as `u2export.calibration.float_fallback.quantise_within`.
    """
    from u2export.calibration.float_fallback import quantise_within
    from u2export.reference.fidelity import Fidelity

    assert request.calibration  # `Exporter.check` refuses the request otherwise

    def judge(graph: onnx.ModelProto) -> Fidelity:
        return source.compare(opener(graph), request.held_back or ())

    return quantise_within(
        model, request.calibration, spec, judge, exporter.budget(request), request.max_float, request.progress
    )
