"""What u2export tells about a model file of any kind: inputs, outputs, operations, convolutions as stored, metadata.

The readers that fill this in are in `exporters.inspection`, and beside the formats that need much code of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from u2export.reference.dtypes import FLOATS


@dataclass(frozen=True)
class Port:
    """An input or output.

    Attributes:
        name: as the file declares it.
        kind: what it holds: "float32", "picture, rgb, 8 bit".
        shape: as the file declares it; a dimension may be a name.
    """

    name: str
    kind: str
    shape: tuple[str, ...]


@dataclass(frozen=True)
class StoredConvolution:
    """A convolution as the file stores it.

    Attributes:
        name: the PyTorch module's name, as far as the format keeps it.
        shape: shape of the weight: outputs, inputs, height, width.
        weight: how the weight is stored, such as "float16", "int8 per channel", "palette of 8 bits".
        activation: what the convolution reads: a floating-point type, or "int8" behind quantisation.
        bytes: size of the stored weight with its scales or palettes, without the bias.
    """

    name: str
    shape: tuple[int, ...]
    weight: str
    activation: str
    bytes: int

    @property
    def compressed(self) -> bool:
        """Whether the weight is stored in anything but floating point."""
        return self.weight not in FLOATS


@dataclass(frozen=True)
class ModelFile:
    """What is inside one model file.

    Attributes:
        kind: the format and its version.
        bytes: size on disk, all files.
        inputs, outputs: the input and output contract.
        operations: how many operations of each kind there are, without constants.
        layers: the convolutions, in order of execution.
        metadata: what u2export stamped into the file, by key without prefix, and the format's own entries, as texts.
        stamp: what u2export stamped into the file, as values (see `u2export.reference.stamp`).
    """

    kind: str
    bytes: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operations: Mapping[str, int]
    layers: tuple[StoredConvolution, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    stamp: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> Counter[str]:
        """How many convolutions are stored in each way."""
        return Counter(layer.weight for layer in self.layers)

    @property
    def activations(self) -> Counter[str]:
        """How many convolutions read each type."""
        return Counter(layer.activation for layer in self.layers)

    @property
    def kept(self) -> tuple[StoredConvolution, ...]:
        """The float layers that a compressor skipped; empty where no convolution is compressed."""
        kept = tuple(layer for layer in self.layers if not layer.compressed)
        return kept if len(kept) < len(self.layers) else ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            **asdict(self),
            "weights": dict(self.weights),
            "activations": dict(self.activations),
            "kept": [layer.name for layer in self.kept],
        }
