"""What runs on the workers of a cluster for `fit`: masks that are compared at the size of the photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from u2export.benchmarks.cluster.on_worker import Data, checked, photos_here, predicted, reference_here
from u2export.benchmarks.fitting.full_size import compare_at, compared_at
from u2export.benchmarks.measuring.worker_process import WorkerFailed
from u2export.reference.fidelity import image_json
from u2export.reference.photos import read_picture
from u2export.reference.verification import sees_nothing


def judge_full_size(task: Data) -> Data:
    """Compare the masks of one row with those of a reference, at the size of the photos: {rows}, a list of one.

    Args:
        task: {run, standing, command, timeout, photos, row, reference}; a row and a result are those of `judge_photos`.
            The result's `seen` is that of the reference.
    """
    return checked(task, _judge_full_size)


def _judge_full_size(task: Data, folder: Path) -> Data:
    photos = photos_here(task, folder)
    try:
        maps, opened = predicted(task, task["row"], folder, photos)
    except WorkerFailed as failure:
        return {"rows": [{"reason": failure.reason, "problem": failure.problem}]}
    reference = reference_here(task, folder)
    images: list[Any] = []
    seen = False
    for photo, told, found in zip(photos, task["photos"], maps, strict=True):
        picture = read_picture(photo, reference.contract.channels)
        want = reference.map_of(told["digest"], reference.contract.tensor(picture))[0]
        seen |= not sees_nothing([want])
        images.append(image_json(compare_at(compared_at(picture), found, want)))
    return {"rows": [{
        "runtime": opened["runtime"], "notes": opened.get("notes", []), "maps": len(maps[0]), "seen": seen,
        "images": images, "accuracy": [],
    }]}  # fmt: skip
