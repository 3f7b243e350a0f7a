"""Measure artifacts: how close their masks are to the reference's, and how long they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from u2export.benchmarks.measuring.plan import TIERS, Progress
from u2export.benchmarks.report import SCENARIOS, Report, Row
from u2export.benchmarks.run import BenchRequest
from u2export.benchmarks.run import bench as _bench
from u2export.exporters.artifact import Artifact

__all__ = [
    "ARITHMETICS", "CLUSTER", "LOCAL", "SCENARIOS", "TIERS", "Report", "Row", "bench", "read_report", "report_file",
]  # fmt: skip

LOCAL = "local"
CLUSTER = "cluster"
ARITHMETICS = ("all", "default")


def read_report(path: str | Path) -> Report:
    """Return the report in a JSON file of `bench`.

    Raises:
        UserError: the file is missing, damaged, or of a newer schema.
    """
    return Report.load(Path(path))


def bench(
    artifacts: Sequence[Artifact | str | Path],
    images: str | Path,
    *,
    masks: str | Path | None = None,
    json: str | Path | None = None,
    contact_sheet: str | Path | None = None,
    sheet_photos: int = 6,
    save_masks: str | Path | None = None,
    save_reference: str | Path | None = None,
    tier: str = "quick",
    samples: int | None = None,
    seconds: float | None = None,
    rounds: int | None = None,
    arithmetics: str = "all",
    scenario: str = "latency",
    batch: int = 1,
    streams: int = 1,
    sustained: float = 0,
    cooldown: float = 60,
    threads: int = 0,
    device: str = LOCAL,
    cluster: str = "",
    shared_files: bool = False,
    store: str = "",
    usb: bool = False,
    device_python: str = "python3",
    ssh_config: str | Path | None = None,
    timeout: float = 300,
    baseline_row: str = "",
    reference: str = "auto",
    output_name: str = "",
    limit: int = 0,
    strict: bool = False,
    trust: bool = False,
    latency: bool = True,
    resume: bool = False,
    progress: Progress = lambda stage, done, total: None,
    saved: Callable[[Report], None] = lambda report: None,
    announce: Callable[[str], None] = print,
) -> Report:
    """Measure the mask fidelity and the latency of artifacts.

    Each artifact runs in a process of its own. All rows are timed in turn, in random order.

    Args:
        artifacts: artifacts, their files, or their records.
        images: a folder of photos, or one photo; not the photos used for calibration.
        masks: a folder of ground-truth masks named like the photos; the rows then get maxF, MAE and S.
        json: the file for the report; it is written again after each step, so an interrupted run can be resumed.
        contact_sheet: a PNG of photos, masks and their differences; `sheet_photos` says how many, the worst first.
        save_masks: an .npz of all rows' masks, for `check`.
        save_reference: an .npz of the reference's maps, for a device without PyTorch.
        tier: how long each row is timed: "quick", "normal" or "official". `samples`, `seconds` and `rounds` replace
            the tier's own numbers; samples and seconds are both minima.
        arithmetics: "all" that this machine runs an artifact in, each as a row, or the "default" one.
        scenario: "latency" (one picture at a time) or "throughput" (with `batch` pictures in one inference and
            `streams` inferences at the same time).
        sustained: seconds to run each row alone afterwards, after `cooldown` seconds of rest.
        threads: threads of each runtime; 0 for all processors.
        device: "local", or "ssh://USER@HOST[:PORT]" for another machine; `device_python` is a Python there that has
            numpy, Pillow and the runtime, `ssh_config` replaces ~/.ssh/config. "web" or "web:PORT" for a browser that
            opens the page of this bench, such as that of a phone; `usb` brings the page to a phone on a cable, by
            `adb reverse`.
        cluster: have the workers of a Dask cluster judge the masks: "local:N" starts N workers here, "tcp://HOST:8786"
            or "tls://HOST:8786" is a scheduler that runs, FILE.json the file that it wrote. Needs `latency=False`. The
            report is that of a run on one machine, with `threads` 1 by default.
        shared_files: the workers see artifacts and photos under the same paths; else the files are sent to them.
        store: an address of fsspec, such as "s3://BUCKET/FOLDER". The files that are missing there are uploaded, under
            their sha256, and the workers fetch and check them. Needs fsspec's package of that protocol, such as s3fs.
        timeout: seconds to wait for one answer of a runtime.
        baseline_row: the row that speed-ups are relative to; the reference, or the first row, by default.
        reference: what masks are compared with: "auto" (PyTorch if it and the weights are there, else an fp32 ONNX),
            "pytorch", a weights file, an artifact, or an .npz of `save_reference`.
        output_name: the output that is the fused map d0, of ONNX files without a record; by default it is found by the
            graph, or else by its name.
        limit: use no more photos than this, evenly spread; 0 for all.
        strict: a photo that cannot be read is an error; else it is left out and named in `Report.broken`.
        trust: open TensorRT engines that other machines built, from now on.
        latency: whether to time at all.
        resume: continue the interrupted run in the `json` file.
        progress: is called with the stage, steps done, and steps in all.
        saved: is called with the report so far after each step.
        announce: is called with each line that tells which address to open in the browser.

    Returns:
        The report: raw samples and fidelity of each photo by row; every statistic is derived from them.

    Raises:
        UserError: an argument is wrong, no photo can be read, an artifact is damaged, or the run to resume is of
            something else. A row that fails is no error: its `reason` and `problem` say why.

    Example:
        >>> report = u2.bench([artifact], photo, latency=False, json=folder / "report.json")
        >>> [(row.exporter, row.precision, row.reason) for row in report.rows][-1]
        ('onnx', 'fp32', '')
    """
    request = BenchRequest(
        [Path(a) if isinstance(a, str) else a for a in artifacts],
        Path(images),
        masks=_path(masks),
        limit=limit,
        tier=tier,
        samples=samples,
        seconds=seconds,
        rounds=rounds,
        threads=threads,
        scenario=scenario,
        batch=batch,
        streams=streams,
        sustained=sustained,
        cooldown=cooldown,
        arithmetics=arithmetics,
        device=device,
        cluster=cluster,
        shared_files=shared_files,
        store=store,
        usb=usb,
        device_python=device_python,
        ssh_config=_path(ssh_config),
        timeout=timeout,
        reference=reference,
        output_name=output_name,
        baseline_row=baseline_row,
        latency=latency,
        strict=strict,
        trust=trust,
        json=_path(json),
        resume=resume,
        contact_sheet=_path(contact_sheet),
        sheet_photos=sheet_photos,
        save_reference=_path(save_reference),
        save_masks=_path(save_masks),
    )
    if device == CLUSTER:
        from u2export.benchmarks.cluster.rack import bench_rack

        return bench_rack(request, saved, progress)[0]
    return _bench(request, saved, progress, announce)


def report_file(json: str | Path, report: Report) -> Path:
    """Return the file of a report that `bench` with the device "cluster" wrote, from the `json` that it was given."""
    from u2export.benchmarks.cluster.rack import report_file as file_of

    return file_of(Path(json), report.device)


def _path(given: str | Path | None) -> Path | None:
    return Path(given) if given is not None else None
