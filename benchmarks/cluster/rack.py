"""Times on the machines of a cluster: one exclusive task a machine, and a report for each kind of device.

A machine takes part if one of its Dask workers has the resource `u2export-bench` and a single thread, so that no other
task runs there meanwhile. The task is the bench that the command runs on this machine.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

from u2export.benchmarks.cluster.connection import LOCAL, check_address, connected
from u2export.benchmarks.cluster.on_rack import bench_here, who
from u2export.benchmarks.device import Device
from u2export.benchmarks.measuring.ground_truth import find_masks
from u2export.benchmarks.measuring.photos import photos_in
from u2export.benchmarks.measuring.plan import Progress
from u2export.benchmarks.report import Report
from u2export.benchmarks.run import BenchRequest
from u2export.errors import UserError, WrongValue
from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifact, read_artifacts
from u2export.files import write_json
from u2export.version import __version__

log = logging.getLogger(__name__)
RESOURCE = "u2export-bench"
START = f"dask worker ADDRESS --nthreads 1 --resources {RESOURCE}=1"
# Seconds between two looks at the workers.
LOOK = 2.0
# Fields of a request that name files or machines of the client, or that make no sense on a worker.
ELSEWHERE = (
    "artifacts", "images", "masks", "limit", "reference", "device", "cluster", "shared_files", "store", "usb",
    "device_python", "ssh_config", "json", "resume", "contact_sheet", "save_reference", "save_masks",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A worker that times, and the device that it runs on."""

    worker: str
    device: Device


def bench_rack(request: BenchRequest, saved: Callable[[Report], None], progress: Progress) -> list[Report]:
    """Bench the artifacts on one machine of each kind that the cluster has, and return their reports.

    Args:
        request: what to measure; its `cluster` names the scheduler, and `json` gives the names of the files: that of a
            device has its fingerprint before the ending.
        saved: receives each report when its machine has ended.
        progress: receives the stage, the machines that have ended, and the machines in all.

    Raises:
        UserError: no scheduler answers, no worker has the resource, or no machine could measure.
    """
    _check(request)
    with connected(request.cluster, request.timeout) as client:
        places = _places(client, request.cluster)
        progress("measuring on machines", 0, len(places))
        reports = []
        with _files(client, request) as task:
            for number, report in enumerate(_reports(client, places, task), 1):
                progress("measuring on machines", number, len(places))
                if report is not None:
                    if request.json:
                        report.save(report_file(request.json, report.device))
                    saved(report)
                    reports.append(report)
    if not reports:
        raise UserError("no machine could measure", "the warnings above say why")
    return reports


def _check(request: BenchRequest) -> None:
    """Check that the request asks for nothing that workers cannot do.

    Raises:
        WrongValue: it has no cluster, or asks for files that are made of maps, or for a run to be continued.
    """
    if not request.cluster:
        raise WrongValue("the device cluster needs the address of a scheduler", "add --cluster tcp://HOST:8786")
    check_address(request.cluster)
    if LOCAL.fullmatch(request.cluster):
        raise WrongValue("workers that are started here share this machine", "leave out --device and --cluster")
    if request.store:
        raise WrongValue("the files of a bench on machines of a cluster are sent to them", "leave it out", "store")
    unfit = {"contact_sheet": request.contact_sheet, "save_masks": request.save_masks,
             "save_reference": request.save_reference, "resume": request.resume}  # fmt: skip
    if given := next((name for name, value in unfit.items() if value), None):
        raise WrongValue("the machines of a cluster send back reports alone", "leave it out", given)


def report_file(json: Path, device: Device) -> Path:
    """Return the file of a device's report: results.json becomes results.<fingerprint>.json."""
    return json.with_name(f"{json.stem}.{device.fingerprint}{json.suffix}")


def _places(client: Any, address: str) -> list[Place]:
    """Return one worker of each kind of device, in the order of their addresses; others are named with a reason."""
    told = client.run(who, on_error="return")
    places: dict[str, Place] = {}
    hosts: set[str] = set()
    having = 0
    for worker, one in sorted(told.items()):
        if not isinstance(one, dict):
            log.warning("worker %s takes no part: it has no such u2export (%s: %s)", worker, type(one).__name__, one)
            continue
        if not one["resources"].get(RESOURCE):
            continue
        having += 1
        device = Device.from_json(one["device"])
        if why := _unfit(one, device, hosts, places):
            log.warning("worker %s takes no part: %s", worker, why)
            continue
        hosts.add(one["host"])
        places[device.fingerprint] = Place(worker, device)
    if not places:
        what = "can measure" if having else f"has the resource {RESOURCE}"
        raise UserError(f"no worker at {address} {what}", f"start one on each machine: {START}")
    return list(places.values())


def _unfit(one: Mapping[str, Any], device: Device, hosts: set[str], places: Mapping[str, Place]) -> str:
    if one["u2export"] != __version__:
        return f"u2export {one['u2export']} in place of {__version__}"
    if one["threads"] != 1:
        return f"it has {one['threads']} threads, so other tasks could run beside the measurement; give --nthreads 1"
    if one["host"] in hosts:
        return "another worker measures on this machine"
    if device.fingerprint in places:
        return f"{places[device.fingerprint].worker} is the same kind of device"
    return ""


@contextmanager
def _files(client: Any, request: BenchRequest) -> Iterator[dict[str, Any]]:
    """Send artifacts, photos and masks to the workers, and yield the task that names them."""
    from u2export.benchmarks.cluster.depot import Depot

    run = uuid.uuid4().hex[:12]
    artifacts = read_artifacts(request.artifacts, request.output_name)
    if not artifacts:
        raise UserError("there is no artifact to measure", "name at least one exported model")
    photos = photos_in(request.images, request.limit, arrays=any(a.contract.channels not in (1, 3) for a in artifacts))
    masks = find_masks(request.masks, list(photos.values())) if request.masks else {}
    sent: dict[str, bytes] = {}
    names = [_artifact(sent, f"artifacts/{i}", artifact) for i, artifact in enumerate(artifacts)]
    known = {artifact.path: name for artifact, name in zip(artifacts, names, strict=True)}
    sent |= {f"photos/{name}": path.read_bytes() for name, path in photos.items()}
    sent |= {f"masks/{Path(photo.name).stem}{mask.suffix}": mask.read_bytes() for photo, mask in masks.items()}
    options = {name: value for name, value in vars(request).items() if name not in ELSEWHERE}
    task = {"run": run, "artifacts": names, "masks": bool(masks), "options": options,
            "reference": _reference(sent, str(request.reference), known)}  # fmt: skip
    name = f"u2export-{run}"
    client.register_plugin(Depot(run, "files", sent), name=name)
    try:
        yield task
    finally:
        with suppress(Exception):  # the scheduler or workers may be gone
            client.unregister_worker_plugin(name)


def _artifact(sent: dict[str, bytes], folder: str, artifact: Artifact) -> str:
    """Add the files of an artifact to those that are sent, and return the name of the file that a worker opens."""
    record = [artifact.record.name] if artifact.record.exists() else []
    home = artifact.path.parent
    sent.update({f"{folder}/{name}": (home / name).read_bytes() for name in [*artifact.files, *record]})
    return f"{folder}/{artifact.path.name}"


def _reference(sent: dict[str, bytes], reference: str, known: Mapping[Path, str]) -> dict[str, str]:
    """Return how a task names the reference; a file of the client is sent, unless it is one of the artifacts."""
    path = Path(reference)
    if not path.is_file():
        return {"given": reference}
    if path in known:
        return {"sent": known[path]}
    if path.suffix.lower() in (".npz", ".pth", ".safetensors"):
        sent[f"reference/{path.name}"] = path.read_bytes()
        return {"sent": f"reference/{path.name}"}
    return {"sent": _artifact(sent, "reference", read_artifact(path))}


def _reports(client: Any, places: list[Place], task: Mapping[str, Any]) -> Iterator[Report | None]:
    """Yield the report of each machine as it ends; None for a machine that failed, with a warning that says why."""
    waiting = {
        client.submit(
            bench_here, dict(task), workers=[place.worker], allow_other_workers=False, resources={RESOURCE: 1},
            pure=False, retries=0,
        ): place
        for place in places
    }  # fmt: skip
    done: SimpleQueue[Any] = SimpleQueue()
    for future in waiting:
        future.add_done_callback(done.put)
    try:
        while waiting:
            try:
                ended = [done.get(timeout=LOOK)]
            except Empty:
                there = set(client.nthreads())
                ended = [future for future, place in waiting.items() if place.worker not in there]
            for future in ended:
                if future in waiting:
                    yield _ended(future, waiting.pop(future))
    finally:
        client.cancel(list(waiting), force=True)


def _ended(future: Any, place: Place) -> Report | None:
    if future.status == "finished":
        with TemporaryDirectory() as folder:  # what a worker sends is checked like a file that someone gives
            write_json(future.result(), Path(folder) / "report.json")
            report = Report.load(Path(folder) / "report.json")
        about = {"worker": {"resource": RESOURCE}}
        return replace(report, environment={**report.environment, "cluster": about})
    error = future.exception() if future.status == "error" else None
    why = error.problem if isinstance(error, UserError) else f"{type(error).__name__}" if error else "it has gone"
    log.warning("worker %s (%s) has no report: %s", place.worker, place.device.label, why)
    return None
