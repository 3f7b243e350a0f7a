"""What an engine computes in, held against what its recipe asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from u2export.errors import UserError
from u2export.exporters.trt.layer_table import HIDDEN


@dataclass(frozen=True)
class Comparison:
    """What was asked for against what an engine does, convolution by convolution.

    Attributes:
        wanted, got: precision by node.
            Those hidden in a layer that TensorRT does not open count neither as kept nor as changed.
        weak: in weak typing, where TensorRT may compute floating-point layers in fp32 or fp16 as is faster. Int8 it may
            not give up, since Q/DQ pairs stand for it, nor fp16 everywhere.
        islands: nodes that have to be in fp32 all the same.
    """

    wanted: Mapping[str, str]
    got: Mapping[str, str]
    weak: bool = False
    islands: Sequence[str] = ()

    @property
    def changed(self) -> dict[str, tuple[str, str]]:
        """Nodes computed in another precision than asked for: (wanted, got)."""
        return {n: (w, self.got[n]) for n, w in self.wanted.items() if self.got[n] != w and not self._free(n, w)}

    def _free(self, node: str, wanted: str) -> bool:
        if self.got[node] == HIDDEN:
            return True
        if not self.weak or node in self.islands or {wanted, self.got[node]} != {"fp16", "fp32"}:
            return False
        return "int8" in self.wanted.values() or (wanted == "fp16" and "fp16" in self.got.values())

    def to_json(self) -> dict[str, Any]:
        """Plain data: counts, and every difference."""
        return {
            "wanted": dict(Counter(self.wanted.values())),
            "got": dict(Counter(self.got.values())),
            "changed": {n: list(pair) for n, pair in self.changed.items()},
        }


def check_precisions(comparison: Comparison) -> None:
    """Refuse an engine that computes in other precisions than asked for.

    Raises:
        UserError: naming the first layer, and how many others there are.
    """
    if changed := comparison.changed:
        node, (wanted, got) = next(iter(changed.items()))
        more = f" ({len(changed)} of {len(comparison.wanted)} convolutions)" if len(changed) > 1 else ""
        seen = f"computes in {got}" if got else "is not in the layer table"
        raise UserError(
            f"the engine falls back: {node} was to compute in {wanted} and {seen}{more}",
            "it was not kept; keep that layer in float, or build with another version",
        )
