"""A whole bench, from the names of files to the results on disk. The Python API and the command line call it.

This module stands above the rooms: it reads the artifacts and the photos, has them measured (`measuring`), saves the
masks (`gate`) and draws the contact sheet (`tables`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from u2export.benchmarks.measuring.bench import measure
from u2export.benchmarks.measuring.ground_truth import find_masks
from u2export.benchmarks.measuring.judging import Judged
from u2export.benchmarks.measuring.machine import Machine
from u2export.benchmarks.measuring.photos import photos_in
from u2export.benchmarks.measuring.plan import Plan, Progress, settings
from u2export.benchmarks.report import Report
from u2export.errors import UserError, WrongValue
from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifacts


@dataclass(frozen=True)
class BenchRequest:
    """What a bench shall measure and what it shall write, in plain values. The options of `u2export bench` equal these.

    Attributes:
        artifacts: the artifacts to measure: exported models, their .json records, or opened artifacts.
        images: folder of photos, or one photo. Calibration photos do not belong here.
        masks: folder of ground-truth masks with the stems of the photos; adds maxF, MAE and S to the rows.
        limit: the most photos to use, spread evenly over the folder; 0 for all.
        tier: "quick", "normal" or "official": how many samples, seconds and rounds each row gets (`TIERS`).
        samples: least number of samples of each row; None for the tier's own.
        seconds: least time of each row in seconds; None for the tier's own.
        rounds: number of turns that each row gets; None for the tier's own.
        threads: threads of each runtime; 0 for one on each processor.
        scenario: "latency" for one picture at a time, "throughput" for pictures in batches and streams.
        batch: pictures in one inference; more than one only for throughput.
        streams: inferences at the same time; more than one only for throughput.
        sustained: seconds that each row runs alone after the rounds; 0 for no such run.
        cooldown: seconds of rest before each sustained run.
        arithmetics: "all" for a row in each arithmetic in which the machine can run an artifact, "default" for one row.
        device: "local", "ssh://user@host:port" for another machine, or "web" or "web:port" for a browser that opens
            the page of this bench.
        cluster: the Dask scheduler whose workers judge the masks, such as "tcp://host:8786", or "local:4" for workers
            that are started here; empty for none.
        shared_files: whether the workers see the artifacts and photos under the same paths.
        store: address of fsspec, such as "s3://bucket/folder", from which the workers fetch artifacts and photos; what
            is missing there is uploaded. Empty for none.
        usb: whether the page of "web" is brought to a phone on a cable, by `adb reverse`.
        device_python: Python on the other machine, with numpy, Pillow and the runtime.
        ssh_config: configuration file of ssh in place of the user's own.
        timeout: seconds to wait for one answer of a runtime.
        reference: what the masks are compared with: "auto" (PyTorch where torch and the weights are present, or else
            an fp32 ONNX artifact), "pytorch", a weights file, an artifact, or an .npz of reference maps.
        output_name: the output that is the fused map d0, of ONNX files without a record; empty to find it.
        baseline_row: name of the row that speed-ups are relative to; empty for the reference, or else the first row.
        latency: whether the rows are timed; without it only the masks are compared.
        strict: whether a photo that cannot be read is an error; otherwise the report counts it as broken.
        trust: whether TensorRT engines that were built on another machine may be opened here, from now on. An engine
            holds native code.
        json: file to write the report to, after every step.
        resume: whether to continue the interrupted report in `json`; a missing file starts a new report.
        contact_sheet: PNG to draw of photos, masks and differences.
        sheet_photos: photos on the contact sheet, the worst ones first.
        save_reference: .npz to write the reference's maps to, for a machine without PyTorch.
        save_masks: .npz to write the masks of all rows to, for the gate.
    """

    artifacts: Sequence[Path | Artifact]
    images: Path
    masks: Path | None = None
    limit: int = 0
    tier: str = "quick"
    samples: int | None = None
    seconds: float | None = None
    rounds: int | None = None
    threads: int = 0
    scenario: str = "latency"
    batch: int = 1
    streams: int = 1
    sustained: float = 0.0
    cooldown: float = 60.0
    arithmetics: str = "all"
    device: str = "local"
    cluster: str = ""
    shared_files: bool = False
    store: str = ""
    usb: bool = False
    device_python: str = "python3"
    ssh_config: Path | None = None
    timeout: float = 300.0
    reference: str | Path = "auto"
    output_name: str = ""
    baseline_row: str = ""
    latency: bool = True
    strict: bool = False
    trust: bool = False
    json: Path | None = None
    resume: bool = False
    contact_sheet: Path | None = None
    sheet_photos: int = 6
    save_reference: Path | None = None
    save_masks: Path | None = None


def bench(
    request: BenchRequest,
    saved: Callable[[Report], None] = lambda report: None,
    progress: Progress = lambda stage, done, total: None,
    announce: Callable[[str], None] = print,
) -> Report:
    """Measure artifacts, and write the files that the request names.

    Args:
        request: what to measure and what to write.
        saved: receives the report after every step. The report that it received last is what an interruption leaves.
        progress: receives the stage, the steps done and the steps in all.
        announce: receives the lines that tell the user which address to open in the browser, for the device "web".

    Returns:
        The complete report.

    Raises:
        UserError: a file or a folder is missing or damaged, no photo can be read, the reference does not fit, an option
            has no valid value, the results to resume are of another bench, the machine cannot be reached, or a file
            cannot be written.
    """
    if request.resume and not request.json:
        raise UserError("resuming needs the results of an earlier run", "name their file", "json")
    plan = _plan(request, announce)
    earlier = Report.load(request.json) if request.resume and request.json and request.json.exists() else None

    def save(report: Report) -> None:
        saved(report)
        if request.json:
            report.save(request.json)

    def use_maps(report: Report, photos: Mapping[str, Path], judged: Sequence[Judged]) -> None:
        _write_pictures(request, report, photos, judged)

    if not request.cluster:
        return measure(plan, save, progress, earlier, use_maps)
    from u2export.benchmarks.cluster.bench import ClusterBench

    return measure(plan, save, progress, earlier, kind=ClusterBench)


def _plan(request: BenchRequest, announce: Callable[[str], None]) -> Plan:
    artifacts = read_artifacts(request.artifacts, request.output_name)
    if not artifacts:
        raise UserError("there is no artifact to measure", "name at least one exported model")
    if request.trust:
        _trust(artifacts)
    photos = photos_in(request.images, request.limit, arrays=any(a.contract.channels not in (1, 3) for a in artifacts))
    return Plan(
        artifacts,
        photos,
        masks=find_masks(request.masks, list(photos.values())) if request.masks else {},
        settings=settings(
            request.tier, request.samples, request.seconds, request.rounds,
            request.threads or int(bool(request.cluster)), scenario=request.scenario,
            batch=request.batch, streams=request.streams, sustained=request.sustained,
            cooldown=request.cooldown if request.sustained else 0,
        ),
        arithmetics=request.arithmetics,
        reference=str(request.reference),
        output_name=request.output_name,
        baseline=request.baseline_row,
        timeout=request.timeout,
        latency=request.latency,
        strict=request.strict,
        save_reference=request.save_reference,
        all_maps=bool(request.contact_sheet or request.save_masks),
        machine=_machine(request, announce),
    )  # fmt: skip


def _trust(artifacts: Sequence[Artifact]) -> None:
    from u2export.exporters.trt.engine_file import ENGINE
    from u2export.exporters.trt.trust import trust

    for artifact in artifacts:
        if artifact.path.suffix == ENGINE:
            trust(artifact.path)


def _machine(request: BenchRequest, announce: Callable[[str], None]) -> Machine | None:
    """The machine that `device` or `cluster` names; None for this machine."""
    if request.cluster:
        return _cluster(request)
    if request.store:
        raise WrongValue("a store holds files for the workers of a cluster", "add --cluster", "store")
    web = request.device.partition(":")[0] == "web"
    if request.usb and not web:
        raise WrongValue("only the page of a browser goes over USB", "add --device web", "usb")
    if request.device == "local":
        return None
    if web:
        from u2export.benchmarks.web.machine import WebMachine, port_of

        return WebMachine(announce, port_of(request.device), request.usb, request.threads)
    from u2export.benchmarks.measuring.ssh import SshMachine, address

    return SshMachine(address(request.device), request.device_python, request.ssh_config)


def _cluster(request: BenchRequest) -> Machine:
    """Return the cluster that `cluster` names.

    Raises:
        WrongValue: the request also asks for times, for another device, or for files that are made of maps.
    """
    if request.latency:
        raise WrongValue("times are never measured on a cluster, which others share", "add --no-latency")
    if request.device != "local":
        raise WrongValue(f"the cluster cannot measure on {request.device}", "leave out --device")
    of_maps = {"contact_sheet": request.contact_sheet, "save_masks": request.save_masks,
               "save_reference": request.save_reference}  # fmt: skip
    if given := next((name for name, path in of_maps.items() if path), None):
        raise WrongValue(
            "the maps stay on the workers of a cluster, so no file can be made of them", "leave it out", given
        )
    if Path(request.reference).suffix.lower() == ".npz":
        raise WrongValue("a cluster cannot use a file of maps as its reference", "name an artifact", "reference")
    from u2export.benchmarks.cluster.journal import Journal
    from u2export.benchmarks.cluster.machine import ClusterMachine

    return ClusterMachine(
        request.cluster, request.shared_files, Journal(request.json, request.resume), request.timeout,
        store=request.store,
    )  # fmt: skip


def _write_pictures(
    request: BenchRequest, report: Report, photos: Mapping[str, Path], judged: Sequence[Judged]
) -> None:
    """Write the files that are made of maps, while the maps exist."""
    if request.save_masks:
        from u2export.benchmarks.gate.saved_masks import SavedMasks

        SavedMasks.of(report, judged).save(request.save_masks)
    if request.contact_sheet:
        from u2export.benchmarks.tables.contact_sheet import draw

        draw(report, photos, judged, request.contact_sheet, request.sheet_photos)
