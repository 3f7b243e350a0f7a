"""Measure artifacts: how close their masks are to the reference's, and how long they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from u2export.api.running import trust_engines
from u2export.benchmarks.gate.saved_masks import SavedMasks
from u2export.benchmarks.measuring.bench import TIERS, Judged, Plan, measure, photos_in, settings
from u2export.benchmarks.measuring.ground_truth import find_masks
from u2export.benchmarks.measuring.machine import Host
from u2export.benchmarks.report import SCENARIOS, Report, Row
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifact

__all__ = ["ARITHMETICS", "LOCAL", "SCENARIOS", "TIERS", "Report", "Row", "bench", "read_report"]

LOCAL = "local"
ARITHMETICS = ("all", "default")
Progress = Callable[[str, int, int], None]


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
    device_python: str = "python3",
    ssh_config: str | Path | None = None,
    timeout: float = 300,
    baseline_row: str = "",
    reference: str = "auto",
    limit: int = 0,
    strict: bool = False,
    trust: bool = False,
    latency: bool = True,
    resume: bool = False,
    progress: Progress = lambda stage, done, total: None,
    saved: Callable[[Report], None] = lambda report: None,
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
            numpy, Pillow and the runtime, `ssh_config` replaces ~/.ssh/config.
        timeout: seconds to wait for one answer of a runtime.
        baseline_row: the row that speed-ups are relative to; the reference, or the first row, by default.
        reference: what masks are compared with: "auto" (PyTorch if it and the weights are there, else an fp32 ONNX),
            "pytorch", a weights file, an artifact, or an .npz of `save_reference`.
        limit: use no more photos than this, evenly spread; 0 for all.
        strict: a photo that cannot be read is an error; else it is left out and named in `Report.broken`.
        trust: open TensorRT engines that other machines built, from now on.
        latency: whether to time at all.
        resume: continue the interrupted run in the `json` file.
        progress: is called with the stage, steps done, and steps in all.
        saved: is called with the report so far after each step.

    Returns:
        The report: raw samples and fidelity of each photo by row; every statistic is derived from them.

    Raises:
        UserError: an argument is wrong, no photo can be read, an artifact is damaged, or the run to resume is of
            something else. A row that fails is no error: its `reason` and `problem` say why.

    Example:
        >>> report = u2.bench([artifact], photo, reference="random-u2netp", latency=False, json=folder / "r.json")
        >>> [(row.exporter, row.reason) for row in report.rows]
        [('pytorch', ''), ('onnx', '')]
        >>> report.rows[1].fidelity.mae < 1e-4
        True
    """
    if resume and json is None:
        raise UserError("a run can be resumed only from its results", "give the file of the results", "json")
    if trust:
        trust_engines([a.path if isinstance(a, Artifact) else Path(a) for a in artifacts])
    photos = photos_in(Path(images), limit)
    plan = Plan(
        artifacts=[a if isinstance(a, Artifact) else read_artifact(Path(a)) for a in artifacts],
        photos=photos,
        masks=find_masks(Path(masks), list(photos.values())) if masks is not None else {},
        settings=settings(
            tier, samples, seconds, rounds, threads, scenario=scenario, batch=batch, streams=streams,
            sustained=sustained, cooldown=cooldown if sustained else 0,
        ),
        host=_host(device, device_python, ssh_config),
        arithmetics=arithmetics,
        reference=reference,
        baseline=baseline_row,
        timeout=timeout,
        latency=latency,
        strict=strict,
        save_reference=Path(save_reference) if save_reference is not None else None,
        all_maps=contact_sheet is not None or save_masks is not None,
    )  # fmt: skip
    target = Path(json) if json is not None else None
    earlier = Report.load(target) if resume and target and target.exists() else None

    def keep(report: Report) -> None:
        saved(report)
        if target:
            report.save(target)

    def look(report: Report, photos: Mapping[str, Path], judged: Sequence[Judged]) -> None:
        if save_masks is not None:
            SavedMasks.of(report, judged).save(Path(save_masks))
        if contact_sheet is not None:
            from u2export.benchmarks.tables.contact_sheet import draw

            draw(report, photos, judged, Path(contact_sheet), sheet_photos)

    return measure(plan, keep, progress, earlier, look)


def _host(device: str, python: str, config: str | Path | None) -> Host | None:
    """Return the machine that `device` names; None for this one."""
    if device == LOCAL:
        return None
    from u2export.benchmarks.measuring.ssh import Remote, address

    return Remote(address(device), python, Path(config) if config is not None else None)
