"""Ready artifacts: verified files that the package ships, for machines without PyTorch."""

from __future__ import annotations

from pathlib import Path

from u2export.exporters.artifact import Artifact
from u2export.exporters.ready import READY as _READY
from u2export.exporters.ready import copied, ready

__all__ = ["READY", "pull"]

READY = tuple(_READY)


def pull(name: str = "u2netp-int8", out: str | Path = "artifacts") -> Artifact:
    """Copy a ready artifact and its record into a folder. It needs no network, no PyTorch and no photos.

    Args:
        name: one of READY; "u2netp-int8" is the published u2netp in int8 for ONNX Runtime, 320 x 320.
        out: the folder; files of the same names are replaced.

    Returns:
        The artifact in the folder. Its record holds the hash, the weights, the photos of the calibration and the
        fidelity of the masks.

    Raises:
        UserError: there is no such name, or the folder cannot be written.

    Example:
        >>> pulled = u2.pull("u2netp-int8", folder)
        >>> pulled.precision, pulled.weights.name
        ('int8', 'u2netp')
    """
    return copied(ready(name), Path(out))
