"""Models as they are judged without a worker process of their own: a graph of ONNX Runtime, an artifact, a function.

`sensitivity` and the studies judge models in their own process; a cluster judges the same models in its workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from u2export.exporters import EXPORTERS
from u2export.exporters.artifact import Artifact
from u2export.reference.fidelity import ImageFidelity, compare
from u2export.reference.image import Floats
from u2export.reference.onnx_session import open_session

if TYPE_CHECKING:
    import onnx

# Computes d0 (1, K, H, W) from a network input (1, C, H, W).
Predict = Callable[[Floats], Floats]
Pair = tuple[Floats, Floats]  # a network input, and the d0 that the reference computes for it


@dataclass(frozen=True)
class GraphModel:
    """A graph in memory or in a file, run by ONNX Runtime on the CPU with all optimisations."""

    graph: onnx.ModelProto | Path


@dataclass(frozen=True)
class ArtifactModel:
    """An artifact, run by its runtime; `arithmetic` is one of the runtime's, empty for the default one."""

    artifact: Artifact
    arithmetic: str = ""


Model = GraphModel | ArtifactModel | Predict


@contextmanager
def opened(model: Model, threads: int = 0) -> Iterator[Predict]:
    """The context of a function that computes as a model does; `threads` 0 is the runtime's default.

    Raises:
        UserError: the runtime cannot open the model.
        Unavailable: the runtime is not installed.
    """
    if isinstance(model, GraphModel):
        session = open_session(model.graph, threads=threads, spinning=False)
        feed = session.get_inputs()[0].name
        yield lambda x: session.run(None, {feed: x})[0]
    elif isinstance(model, ArtifactModel):
        with EXPORTERS[model.artifact.exporter].load(model.artifact, model.arithmetic, threads) as runner:
            yield runner
    else:
        yield model


def judged(model: Model, pairs: Sequence[Pair]) -> list[ImageFidelity]:
    """Return the fidelity of each photo's mask; errors as of `opened`."""
    with opened(model) as predict:
        return [compare(predict(x)[0], d0[0]) for x, d0 in pairs]
