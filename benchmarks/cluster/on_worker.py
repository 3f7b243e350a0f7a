"""What runs on the workers of a cluster: tasks that take and return plain data.

A task names a file in one of four ways: {"path"} is a file that the worker sees, {"sent"} a file in the worker's
folder of the run, {"bytes", "name"} is the content of a file with its name, and {"store", …} a file to fetch, see
`store.Store`.
"""

from __future__ import annotations

import shutil
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from u2export.benchmarks.cluster.children import Children
from u2export.benchmarks.cluster.references import Reference
from u2export.benchmarks.cluster.standing import difference, standing
from u2export.benchmarks.cluster.store import fetch, fetch_folder
from u2export.benchmarks.measuring.ground_truth import measures, read_truth
from u2export.benchmarks.measuring.judging import refuse_other_maps
from u2export.benchmarks.measuring.photos import digest_of, why_broken
from u2export.benchmarks.measuring.results import without_folders
from u2export.benchmarks.measuring.worker_process import WorkerFailed
from u2export.errors import UserError
from u2export.reference.fidelity import compare, image_json
from u2export.reference.image import Floats
from u2export.reference.verification import sees_nothing
from u2export.reference.weights import file_digest

Data = dict[str, Any]


@cache
def children() -> Children:
    """Return the worker processes of this Dask worker."""
    return Children()


def end_processes() -> None:
    """End the worker processes that wait for their next task."""
    children().close()


def folder_in(local_directory: str, run: str) -> Path:
    """Return the folder of a run on a worker, from the worker's own folder."""
    return Path(local_directory) / f"u2export-{run}"


def whereabouts() -> tuple[str, Path]:
    """Return the address of this Dask worker and its folder for files."""
    from distributed import get_worker

    worker = get_worker()
    return worker.address, Path(worker.local_directory)


def read_photos(task: Data) -> Data:
    """Read photos as a check: {photos: [{digest} or {broken}]}, in their order.

    Args:
        task: {run, standing, photos, channels}.
    """
    return checked(task, _read_photos)


def judge_photos(task: Data) -> Data:
    """Compare the masks of rows with those of their reference: {rows: […]}, in their order.

    A row is {reason, problem} where it failed. Otherwise it is {runtime, notes, maps, seen, images, accuracy}: images
    are the fidelities of the photos, none without a reference; `seen` tells whether a mask shows an object; accuracy
    has the measures of the photos that have ground truth. Rows after a failed reference are left out.

    Args:
        task: {run, standing, command, timeout, photos, truths, rows, reference}. Photos have their "digest". Rows are
            {opening, files, hashes, width, height}: `files` are fields of the opening that are files, `hashes` the
            sha256 of the artifact's files. The first row is the reference if `reference` is true. `truths` holds a
            file or None for each photo, and nothing where no accuracy is asked for.
    """
    return checked(task, _judge_photos)


def ask(task: Data) -> Data:
    """Ask a new worker process one thing: its answer, or {error}.

    Args:
        task: {run, standing, command, timeout, do, fields, artifact}; `artifact` is a file or None.
    """
    return checked(task, _ask)


def checked(task: Data, action: Callable[[Data, Path], Data]) -> Data:
    """Do a task in a folder of its own, unless this worker is of another kind than the task wants.

    Returns:
        The answer with {worker, standing}; {refused} in place of an answer tells how the worker differs.
    """
    address, home = whereabouts()
    mine = standing()
    about: Data = {"worker": address, "standing": mine}
    if wrong := difference(mine, task["standing"]):
        return {**about, "refused": wrong}
    folder = Path(tempfile.mkdtemp(prefix="u2export-task-", dir=home))
    try:
        return {**about, **action(task, folder)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_folder(task: Data, folder: Path) -> Path:
    """Return the folder of a task's run on this worker; `folder` is that of the task."""
    return folder_in(str(folder.parent), task["run"])


def file_here(file: Mapping[str, Any], task: Data, folder: Path, own: str = "file") -> Path:
    """Return the path on this worker of a file that a task names; see the module.

    Args:
        file: how the task names it.
        task: the task, of which only the run is read.
        folder: the folder of the task.
        own: the name of the folder in it for a file that comes for this task alone.

    Raises:
        UserError: it cannot be fetched, or it is another one.
    """
    if "path" in file:
        return Path(str(file["path"]))
    if "files" in file:
        return fetch_folder(file, run_folder(task, folder))
    if "sent" in file:
        return run_folder(task, folder) / str(file["sent"])
    if "store" in file:
        return fetch(file, folder / own)
    (folder / own).mkdir(parents=True, exist_ok=True)
    path = folder / own / Path(file["name"]).name
    path.write_bytes(file["bytes"])
    return path


def _read_photos(task: Data, folder: Path) -> Data:
    found: list[Data] = []
    for i, photo in enumerate(task["photos"]):
        path = file_here(photo, task, folder, str(i))
        try:
            found.append({"digest": digest_of(path, task["channels"])})
        except UserError as error:
            found.append({"broken": why_broken(error, path)})
    return {"photos": found}


def photos_here(task: Data, folder: Path) -> list[Path]:
    """Return the paths on this worker of the photos of a task.

    Raises:
        UserError: a photo is not the one that the task means.
    """
    photos = [file_here(photo, task, folder, f"photo-{i}") for i, photo in enumerate(task["photos"])]
    for photo, told in zip(photos, task["photos"], strict=True):
        if file_digest(photo) != told["digest"]:
            raise UserError(
                f"{photo.name} is another photo on a worker than it was before",
                "give all workers the same files, and change none while the masks are judged",
            )
    return photos


def reference_here(task: Data, folder: Path) -> Reference:
    """Return the PyTorch reference of a task: {weights, file, contract}; `file` is a file or None."""
    told = task["reference"]
    weights = str(file_here(told["file"], task, folder)) if told["file"] else told["weights"]
    return Reference(weights, told["contract"], run_folder(task, folder))


def _judge_photos(task: Data, folder: Path) -> Data:
    photos = photos_here(task, folder)
    truths = [file_here(truth, task, folder, f"truth-{i}") if truth else None for i, truth in enumerate(task["truths"])]
    rows: list[Data] = []
    want: list[Floats] | None = None
    for row in task["rows"]:
        try:
            made, maps = _judged(task, row, folder, photos, truths, want)
        except WorkerFailed as failure:
            made, maps = {"reason": failure.reason, "problem": failure.problem}, []
        rows.append(made)
        if task["reference"] and len(rows) == 1:
            if "reason" in made:
                break
            want = maps
    return {"rows": rows}


def predicted(task: Data, row: Data, folder: Path, photos: Sequence[Path]) -> tuple[list[Floats], Mapping[str, Any]]:
    """Return the maps (K, height, width) of a row for each photo, and what its process answered when it was opened.

    Raises:
        WorkerFailed: the row failed; the problem names no folder of this worker.
        UserError: the artifact's files are others than those of the client.
    """
    opening = dict(row["opening"])
    for name, file in row["files"].items():
        opening[name] = str(file_here(file, task, folder))
    if "artifact" in opening:
        check_files(task["run"], Path(opening["artifact"]).parent, row["hashes"])
    try:
        with children().opened(opening, task["command"], task["timeout"], task["run"]) as child:
            answers = child.process.stream("predict", photos=[str(photo) for photo in photos])
            found = [next(answers) for _ in photos]
            return [_map(answer, row) for answer in found], child.opened
    except WorkerFailed as failure:
        raise WorkerFailed(failure.reason, without_folders(failure.problem, opening.get("artifact", ""))) from None


def _judged(
    task: Data, row: Data, folder: Path, photos: Sequence[Path], truths: Sequence[Path | None],
    want: Sequence[Floats] | None,
) -> tuple[Data, list[Floats]]:  # fmt: skip
    """Return what a row gives for the photos, and its maps (K, height, width).

    Raises:
        WorkerFailed: as `predicted`; or the maps are not those of the reference's classes.
    """
    maps, opened = predicted(task, row, folder, photos)
    if want:
        refuse_other_maps(maps[0], want[0])
    images = [image_json(compare(got, wanted)) for got, wanted in zip(maps, want or (), strict=False)]
    one = bool(truths) and len(maps[0]) == 1
    return {
        "runtime": opened["runtime"], "notes": opened.get("notes", []), "maps": len(maps[0]),
        "seen": not sees_nothing(maps), "images": images,
        "accuracy": [_measures(m, t) for m, t in zip(maps, truths, strict=True) if t] if one else [],
    }, maps  # fmt: skip


def check_files(run: str, folder: Path, hashes: Mapping[str, str]) -> None:
    """Check once in a run that the files of an artifact are those of the client.

    Raises:
        UserError: a file is missing or another one.
    """
    _check_files(run, str(folder), tuple(hashes.items()))


@lru_cache(maxsize=256)
def _check_files(run: str, folder: str, hashes: tuple[tuple[str, str], ...]) -> None:
    for name, digest in hashes:
        path = Path(folder) / name
        if not path.is_file() or file_digest(path) != digest:
            raise UserError(
                f"a worker has {'another' if path.exists() else 'no'} {name} where this machine has the artifact",
                "leave out --shared-files, or give all workers the same files",
            )


def _map(answer: Mapping[str, Any], row: Data) -> Floats:
    d0 = np.frombuffer(b64decode(answer["d0"]), "<f4")
    return d0.reshape(answer["maps"], row["height"], row["width"])


def _measures(maps: Floats, truth: Path) -> Data:
    found = measures(maps[0], read_truth(truth))
    curves = {name: b64encode(getattr(found, name).tobytes()).decode() for name in ("precision", "recall")}
    return {**curves, "mae": found.mae, "s": found.s}


def _ask(task: Data, folder: Path) -> Data:
    fields = dict(task["fields"])
    if task["artifact"]:
        fields["artifact"] = str(file_here(task["artifact"], task, folder))
    process = children().start(task["command"], task["timeout"])
    with process:
        try:
            return {"answer": process.ask(task["do"], **fields)}
        except WorkerFailed as failure:
            problem = without_folders(failure.problem, fields.get("artifact", ""))
            with suppress(OSError):
                process.kill()
            return {"failed": {"reason": failure.reason, "problem": problem}}
