"""Models judged on the workers of a cluster, in the process of the worker: what `sensitivity` and the studies judge.

A model is a graph or an artifact in a file. A sample is a network input with the reference's d0. Both are in the folder
of the run, or the worker makes them from a photo.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from u2export.benchmarks.cluster.on_worker import (
    Data,
    check_files,
    checked,
    file_here,
    photos_here,
    reference_here,
    run_folder,
)  # fmt: skip
from u2export.benchmarks.models import ArtifactModel, GraphModel, Model, Pair, Predict, opened
from u2export.exporters.open import read_artifact
from u2export.reference.fidelity import compare, image_json
from u2export.reference.photos import read_input

# Models that a thread of a worker keeps open between tasks. A search judges one graph after the other.
MOST = 2
Key = tuple[int, str]  # thread, name of the model


class OpenModels:
    """The models that are open on this worker, those of each thread apart: not every runtime is safe for threads."""

    def __init__(self) -> None:
        self._models: OrderedDict[Key, tuple[Predict, ExitStack]] = OrderedDict()
        self._lock = threading.Lock()

    def predict(self, name: str, model: Callable[[], Model]) -> Predict:
        """Return the function of a model, which is opened unless this thread has a model of this name open."""
        key = (threading.get_ident(), name)
        with self._lock:
            if key in self._models:
                self._models.move_to_end(key)
                return self._models[key][0]
        with ExitStack() as stack:
            predict = stack.enter_context(opened(model(), threads=1))
            with self._lock:
                self._models[key] = predict, stack.pop_all()
                mine = [other for other in self._models if other[0] == key[0]]
                oldest = [self._models.pop(other)[1] for other in mine[:-MOST]]
        for one in oldest:
            one.close()
        return predict

    def close(self) -> None:
        """Close all models."""
        with self._lock:
            models, self._models = self._models, OrderedDict()
        for _, stack in models.values():
            stack.close()


MODELS = OpenModels()


def judge_model(task: Data) -> Data:
    """Compare what a model computes on samples with what the reference computed: {images}, in their order.

    Args:
        task: {run, standing, model, samples, photos, reference}. `model` is {file, arithmetic, hashes}; without an
            arithmetic, the file is a graph. `samples` are names in the folder of the run, or else `photos` are files
            with their "digest", and `reference` tells what computes their d0.
    """
    return checked(task, _judge_model)


def _judge_model(task: Data, folder: Path) -> Data:
    path = file_here(task["model"]["file"], task, folder)
    name = json.dumps([task["run"], str(path), task["model"].get("hashes"), task["model"]["arithmetic"]])
    predict = MODELS.predict(name, lambda: _model(path, task))
    images = [compare(predict(x)[0], d0[0]) for x, d0 in _pairs(task, folder)]
    return {"images": [image_json(one) for one in images]}


def _model(path: Path, task: Data) -> Model:
    told = task["model"]
    if told["arithmetic"] is None:
        return GraphModel(path)
    check_files(task["run"], path.parent, told["hashes"])
    return ArtifactModel(read_artifact(path), told["arithmetic"])


def _pairs(task: Data, folder: Path) -> Iterator[Pair]:
    home = run_folder(task, folder)
    for name in task["samples"]:
        with np.load(home / name) as sample:
            yield sample["x"], sample["d0"]
    if not task["photos"]:
        return
    reference = reference_here(task, folder)
    for photo, told in zip(photos_here(task, folder), task["photos"], strict=True):
        x = read_input(reference.contract, photo)
        yield x, reference.map_of(told["digest"], x)
