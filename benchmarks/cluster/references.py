"""The maps of the PyTorch reference on a worker: each is computed once in a run, and kept for the next candidate."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from u2export.reference.image import Contract, Floats
from u2export.reference.source import Source


class Reference:
    """A reference whose maps lie in a folder.

    Args:
        weights: the name or the file by which `Source.open` opens them.
        contract: the image contract as plain data.
        folder: the folder of the run on this worker.

    Raises:
        UserError, Unavailable: as `Source.open`, when the first map is computed.
    """

    def __init__(self, weights: str, contract: Mapping[str, Any], folder: Path) -> None:
        self.contract = Contract.from_json(dict(contract))
        self._weights, self._text = weights, json.dumps(contract, sort_keys=True)
        key = hashlib.sha256(f"{weights}\n{self._text}".encode()).hexdigest()[:16]
        self._folder = folder / "reference" / key

    def map_of(self, digest: str, x: Floats) -> Floats:
        """Return d0 (1, K, H, W) of a photo; `digest` is the sha256 of its file and `x` its network input."""
        path = self._folder / f"{digest}.npy"
        if path.exists():
            kept: Floats = np.load(path)
            return kept
        d0 = _source(self._weights, self._text).predict(x)
        self._folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{digest}-{threading.get_ident()}.tmp")
        with unfinished.open("wb") as file:
            np.save(file, d0)
        unfinished.replace(path)
        return d0


@lru_cache(maxsize=2)
def _source(weights: str, contract: str) -> Source:
    import torch

    source = Source.open(weights, Contract.from_json(json.loads(contract)))
    torch.set_num_threads(1)  # a worker runs one task on one thread; its neighbours use the other processors
    return source
