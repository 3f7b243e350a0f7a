"""The precisions an engine computes in, compared with those its recipe asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from u2export.errors import UserError
from u2export.exporters.trt.layer_table import HIDDEN, LayerTable
from u2export.exporters.trt.recipe import Recipe


@dataclass(frozen=True)
class Comparison:
    """The precisions asked for and those found, convolution by convolution.

    TensorRT does not show what is inside some layers. Convolutions hidden there count neither as kept nor as changed.

    Attributes:
        wanted, got: precision by ONNX node.
        weak: whether the engine was built in weak typing. TensorRT may then compute a floating-point layer in fp32 or
            in fp16, as is faster. TensorRT may not give up int8, because Q/DQ pairs ask for it, and may not give up
            fp16 in all layers.
        islands: nodes that must be in fp32 even in weak typing.
    """

    wanted: Mapping[str, str]
    got: Mapping[str, str]
    weak: bool = False
    islands: Sequence[str] = ()

    @property
    def changed(self) -> dict[str, tuple[str, str]]:
        """Nodes that compute in another precision than asked for: (wanted, got)."""
        return {
            node: (wanted, self.got[node])
            for node, wanted in self.wanted.items()
            if self.got[node] != wanted and not self._is_free(node, wanted)
        }

    def _is_free(self, node: str, wanted: str) -> bool:
        """Whether TensorRT may compute a node in the precision it chose."""
        if self.got[node] == HIDDEN:
            return True
        if not self.weak or node in self.islands or {wanted, self.got[node]} != {"fp16", "fp32"}:
            return False
        return "int8" in self.wanted.values() or (wanted == "fp16" and "fp16" in self.got.values())

    def to_json(self) -> dict[str, Any]:
        """Return plain data: counts by precision, and every difference."""
        return {
            "wanted": dict(Counter(self.wanted.values())),
            "got": dict(Counter(self.got.values())),
            "changed": {node: list(pair) for node, pair in self.changed.items()},
        }


def check_table(recipe: Recipe, table: LayerTable, weak: bool = False) -> Comparison:
    """Compare the layer table of an engine with the recipe the engine was built from.

    Args:
        recipe: the recipe. table: the engine's layer table. weak: whether the engine was built in weak typing.

    Raises:
        UserError: a convolution computes in another precision than asked for. The error names the first one, and says
            how many there are.
    """
    comparison = Comparison(recipe.layers, table.precisions(recipe.layers), weak, recipe.islands)
    if changed := comparison.changed:
        node, (wanted, got) = next(iter(changed.items()))
        more = f" ({len(changed)} of {len(comparison.wanted)} convolutions)" if len(changed) > 1 else ""
        found = f"computes in {got}" if got else "is not in the layer table"
        raise UserError(
            f"the engine falls back: {node} {found}, the recipe asks for {wanted}{more}",
            "keep that layer in float, or build with another version",
        )
    return comparison
