"""8-bit activations and weights: which operations round, from ranges that calibration photos gave."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from u2export.exporters.coreml.conversion import SMALL
from u2export.exporters.coreml.ports import INPUT, picture
from u2export.exporters.int8 import float_region

if TYPE_CHECKING:
    from u2export.calibration.dataset import Calibration
    from u2export.exporters.coreml.package import Operation


class W8A8:
    """A float model that becomes models with 8-bit activations and weights.

    Args:
        model: the float model; it is not changed.
        calibration: photos that give the ranges of the activations.
        scratch: where the float package may lie, a path that ends in .mlpackage.
    """

    def __init__(self, model: Any, calibration: Calibration, scratch: Path) -> None:
        from u2export.exporters.coreml.evaluate import Program, ranges
        from u2export.exporters.coreml.package import Package

        model.save(str(scratch))
        self.model, self.package = model, Package(scratch)
        photos = replace(calibration, contract=replace(calibration.contract, rounded=True))
        found = ranges(Program(self.package), ({INPUT: picture(x, photos.contract)} for x in photos))
        self.ranges = {name: {"rmin": low, "rmax": high} for name, (low, high) in found.items()}

    def quantised(self, floats: Collection[str]) -> Any:
        """Return the model in 8 bit.

        Args:
            floats: convolutions that stay in float, by their names in PyTorch: "stage1.rebnconv1.conv_s1".
        """
        import coremltools.optimize.coreml as cto

        kept = dict.fromkeys(self._float_operations(floats))
        op = cto.OpLinearQuantizerConfig(mode="linear")
        with _given(self.ranges):
            config = cto.OptimizationConfig(global_config=op, op_name_configs=kept)
            model = cto.linear_quantize_activations(self.model, config, [])
        # The integer path of the Neural Engine takes symmetric weights only, beside 8-bit activations.
        op = cto.OpLinearQuantizerConfig(mode="linear_symmetric", granularity="per_channel", weight_threshold=SMALL)
        return cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=op, op_name_configs=kept))

    def _float_operations(self, floats: Collection[str]) -> set[str]:
        """The operations that stay in float with these convolutions, by the names of their results."""
        wanted = {name.replace(".", "_") for name in floats}
        kept = {name for name, layer in self._convolutions.items() if layer in wanted}
        return float_region(self._sources, self._convolutions, kept) if kept else kept

    @cached_property
    def _convolutions(self) -> dict[str, str]:
        """The name of each convolution's layer, by the name of its result."""
        results = (op.name for op in self.package.operations if op.kind == "conv")
        return dict(zip(results, (layer.name for layer in self.package.layers()), strict=True))

    @cached_property
    def _sources(self) -> dict[str, list[str]]:
        """The operations that each operation reads."""
        made = {op.name for op in self.package.operations}
        return {op.name: [name for name in _read(op) if name in made] for op in self.package.operations}


def _read(op: Operation) -> Iterator[str]:
    from u2export.exporters.coreml.package import Name

    for argument in op.arguments.values():
        for each in argument if isinstance(argument, list) else [argument]:
            if isinstance(each, Name):
                yield each.name


@contextmanager
def _given(ranges: Mapping[str, Mapping[str, float]]) -> Iterator[None]:
    """Let coremltools take these ranges of activations.

    Its own calibration needs `predict`, which runs on a Mac only. Version 9.0 keeps the range of the last sample only.
    """
    from coremltools.optimize.coreml import _post_training_quantization as passes

    own = passes._get_activation_calibration_stats
    passes._get_activation_calibration_stats = lambda *_: ranges
    try:
        yield
    finally:
        passes._get_activation_calibration_stats = own
