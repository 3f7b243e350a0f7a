"""Models judged on a cluster: the graphs of `sensitivity`, and the graphs and artifacts of the studies.

The fidelity of each photo is the one that this machine computes, where its processor is of the workers' class.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from u2export.benchmarks.cluster.journal import Journal
from u2export.benchmarks.cluster.machine import CHUNK, ClusterMachine
from u2export.benchmarks.cluster.on_models import judge_model
from u2export.benchmarks.cluster.standing import standing
from u2export.benchmarks.models import ArtifactModel, GraphModel, Pair
from u2export.benchmarks.report import image_from_json
from u2export.reference.fidelity import Fidelity, ImageFidelity
from u2export.reference.image import digest
from u2export.reference.weights import file_digest

if TYPE_CHECKING:
    import onnx

    from u2export.reference.source import Source

Data = dict[str, Any]


@dataclass(frozen=True)
class _Sent:
    """A model on the workers: how a task names it, and what takes it away again; empty if it stays."""

    model: Data
    plugin: str = ""


@dataclass(frozen=True)
class Samples:
    """What models are judged on: names of samples on the workers, or photos and their reference."""

    names: Sequence[str] = ()
    photos: Sequence[tuple[Path, str]] = ()
    reference: Data | None = None

    def __len__(self) -> int:
        return len(self.names) + len(self.photos)


class ClusterModels:
    """Judges models on the workers of a cluster.

    Args:
        machine: the cluster, whose context exists.
    """

    def __init__(self, machine: ClusterMachine) -> None:
        self._machine = machine
        self._numbers = count()
        self._stored: set[str] = set()
        self._last: dict[str, str] = {}

    def graphs(self, makers: Sequence[Callable[[], onnx.ModelProto]], pairs: Sequence[Pair]) -> Iterator[Fidelity]:
        """Yield the fidelity of each graph, in their order. Graphs are made one by one, as the workers need them.

        Raises:
            UserError: a worker cannot run a graph, or the cluster is lost; see `Window`.
        """
        samples = self._samples(pairs)
        senders = [partial(self._made_graph, make) for make in makers]
        for images in self._judged(senders, samples):
            yield Fidelity(tuple(images))

    def judged(self, model: GraphModel | ArtifactModel, samples: Samples) -> list[ImageFidelity]:
        """Return the fidelity of each sample's mask; errors as of `graphs`."""
        return next(self._judged([partial(self._model, model)], samples))

    def photos(self, source: Source, photos: Sequence[Path]) -> Samples:
        """Return photos as samples. The workers compute the maps of the reference, each once."""
        told = self._machine.reference(source)
        return Samples(photos=[(path, file_digest(path)) for path in photos], reference=told)

    def census(self) -> Data:
        """Return the workers that took part, as plain data."""
        return self._machine.census.to_json()

    def _judged(self, senders: Sequence[Callable[[], _Sent]], samples: Samples) -> Iterator[list[ImageFidelity]]:
        """Yield the fidelity of each sample for each model, in the order of the models."""
        most = self._most(len(senders), samples)
        sent: dict[int, _Sent] = {}
        found: dict[int, dict[int, list[ImageFidelity]]] = {}
        chunks = range(0, len(samples), most)

        def tasks() -> Iterator[tuple[tuple[int, int], Data]]:
            for number, send in enumerate(senders):
                sent[number] = send()
                for start in chunks:
                    yield (number, start), self._task(sent[number].model, samples, start, most)

        following = 0
        for (number, start), result in self._machine.window.results(judge_model, tasks()):
            self._last[self._place(samples, start)] = result["worker"]
            found.setdefault(number, {})[start] = [image_from_json(image) for image in result["images"]]
            if len(found[number]) == len(chunks) and (plugin := sent.pop(number).plugin):
                self._machine.take_away(plugin)
            while len(found.get(following, ())) == len(chunks):
                done = found.pop(following)
                yield [image for start in chunks for image in done[start]]
                following += 1

    def _most(self, models: int, samples: Samples) -> int:
        """Return the number of samples of a task: every thread has work, and opens as few models as possible."""
        if samples.photos:
            return self._machine.chunk([path for path, _ in samples.photos])
        return max(1, min(CHUNK, -(-len(samples) * models // self._machine.window.threads)))

    def _task(self, model: Data, samples: Samples, start: int, most: int) -> Data:
        some = samples.photos[start : start + most]
        photos = self._machine.photos([path for path, _ in some], [digest for _, digest in some])
        return {
            **self._machine.about(), "model": model, "samples": list(samples.names[start : start + most]),
            "photos": photos, "reference": samples.reference, "near": self._last.get(self._place(samples, start), ""),
        }  # fmt: skip

    @staticmethod
    def _place(samples: Samples, start: int) -> str:
        """Return the name of a task's photos; the worker that had them holds the maps of their reference."""
        return samples.photos[start][1] if samples.photos else ""

    def _samples(self, pairs: Sequence[Pair]) -> Samples:
        """Send samples to the workers unless they are there."""
        names, files = [], {}
        for x, d0 in pairs:
            name = f"{digest(x)[:32]}{digest(d0)[:32]}.npz"
            names.append(f"samples/{name}")
            if name not in self._stored:
                packed = io.BytesIO()
                np.savez(packed, x=x, d0=d0)
                files[name] = packed.getvalue()
        if files:
            self._machine.put("samples", files)
            self._stored |= files.keys()
        return Samples(names)

    def _made_graph(self, make: Callable[[], onnx.ModelProto]) -> _Sent:
        return self._graph(make())

    def _graph(self, graph: onnx.ModelProto) -> _Sent:
        folder = f"graphs/{next(self._numbers)}"
        plugin = self._machine.put(folder, {"graph.onnx": graph.SerializeToString()})
        return _Sent({"file": {"sent": f"{folder}/graph.onnx"}, "arithmetic": None}, plugin)

    def _model(self, model: GraphModel | ArtifactModel) -> _Sent:
        if isinstance(model, GraphModel):
            assert not isinstance(model.graph, Path)
            return self._graph(model.graph)
        artifact = model.artifact
        self._machine.send_artifact(artifact)
        file = self._machine.sent(str(artifact.path))
        return _Sent({"file": file, "arithmetic": model.arithmetic, "hashes": dict(artifact.files)})


@contextmanager
def cluster_models(address: str, like_here: bool = False, timeout: float = 300.0) -> Iterator[ClusterModels]:
    """The context of a cluster that judges models; its files are sent to it.

    Args:
        address: see `u2export.benchmarks.cluster.connection.connected`.
        like_here: whether the workers must have the runtimes of this machine, and its class of processor.
        timeout: seconds to wait for workers.

    Raises:
        WrongValue: the address has a wrong form.
        Unavailable: Dask is not installed.
        UserError: no scheduler answers, or none of its workers can take part.
    """
    with ClusterMachine(address, False, Journal(None, False), timeout) as machine:
        if like_here:
            machine.check_like(standing())
        yield ClusterModels(machine)
