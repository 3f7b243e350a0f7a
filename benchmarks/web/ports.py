"""How a graph in ONNX is fed and read when the browser runs it: the host makes the input, and reads the output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from u2export.benchmarks.web.runtime_files import VERSION
from u2export.exporters.artifact import Artifact
from u2export.exporters.foreign import maps_of
from u2export.exporters.layout import read_layout
from u2export.exporters.onnx_runtime import to_pixels
from u2export.reference.image import Floats
from u2export.reference.onnx_session import open_session


@dataclass(frozen=True)
class Ports:
    """The input and the output of an artifact.

    Attributes:
        input: name of the input. output: name of the output.
        feed: makes what the graph takes of the network input (1, C, H, W) float32.
        maps: makes d0 (1, K, H, W) float32 of the raw output; raises UserError where that is no map.
    """

    input: str
    output: str
    feed: Callable[[Floats], NDArray[Any]]
    maps: Callable[[NDArray[Any]], Floats]


def ports_of(artifact: Artifact) -> Ports:
    """Return the ports of an artifact, as ONNX Runtime on this machine reads them.

    Raises:
        UserError: ONNX Runtime cannot open the file.
    """
    session = open_session(artifact.path, optimise=False)
    entry, output = session.get_inputs()[0], session.get_outputs()[0].name
    contract = artifact.contract
    if entry.type == "tensor(uint8)":
        return Ports(entry.name, output, lambda x: to_pixels(x, contract), _as_floats)
    if "output" not in artifact.options:
        return Ports(entry.name, output, lambda x: x, _as_floats)
    layout, options = read_layout(artifact.path, session), artifact.options

    def maps(values: NDArray[Any]) -> Floats:
        rows = max(1, layout.batch)
        return maps_of(_as_floats(values), artifact.path, contract, options, rows)[:1]

    return Ports(layout.name, options["output"], lambda x: layout.feed(x).values, maps)


def _as_floats(values: NDArray[Any]) -> Floats:
    return np.asarray(values, np.float32)


def page_manifest(artifact: Artifact, ports: Ports) -> dict[str, Any]:
    """Return what the page of a kit must know to feed the artifact with the inputs of the kit, and with photos."""
    contract = artifact.contract
    fed = ports.feed(np.zeros(contract.shape, np.float32))
    return {
        "entry": ports.input, "graph_output": ports.output, "input_type": fed.dtype.name, "dims": list(fed.shape),
        "mean": list(contract.mean), "std": list(contract.std), "precision": artifact.precision,
        "runtime_version": VERSION,
    }  # fmt: skip
