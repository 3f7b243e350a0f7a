"""The whole search: export, judge, add float layers where masks miss the budget, time in rounds, choose."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from u2export.benchmarks.fitting.candidates import Candidate, candidates, targets
from u2export.benchmarks.fitting.choice import HOPELESS, ROUNDS, Fitted, Limits, Option, take, time_of
from u2export.benchmarks.fitting.trial import Stopped, Trial
from u2export.benchmarks.measuring.machine import Machine
from u2export.benchmarks.measuring.photos import photos_in
from u2export.benchmarks.measuring.plan import Plan, Progress, settings
from u2export.benchmarks.report import Report, Row
from u2export.calibration.dataset import Calibration
from u2export.errors import Unavailable, UserError, WrongValue
from u2export.exporters.artifact import Artifact
from u2export.files import make_folder, write_json
from u2export.reference.image import Contract
from u2export.reference.source import Source

if TYPE_CHECKING:
    from u2export.benchmarks.cluster.machine import ClusterMachine

REPORT, RESULT = "report.json", "fit.json"


@dataclass(frozen=True)
class FitRequest:
    """What to search, in plain values. The options of `u2export fit` equal these.

    Attributes:
        images: folder of photos that judge the masks.
        contracts: the image contract of each size to try.
        reference: the image contract of the reference that all masks are compared with.
        limits: the time and the masks to keep.
        calib: calibration photos; None for none.
        weights: by name or file.
        out: folder for the artifacts, the report and the result.
        targets: names of targets; empty for all that can be exported and run.
        max_float: share of the multiply-accumulates that may become float where int8 misses the budget, 0 to 1.
        limit: the most photos to judge on; 0 for all.
        calib_limit: the most calibration photos to read; None for all.
        tier, samples, seconds, rounds, threads: how long rows are timed, as for a bench.
        device: "local", or "ssh://user@host:port".
        device_python, ssh_config, timeout: as for a bench.
        cluster, shared_files, store: whose workers judge the masks, and how they get the files, as for a bench; empty
            for this machine alone.
    """

    images: Path
    contracts: Sequence[Contract]
    reference: Contract
    limits: Limits
    calib: Path | None = None
    weights: str = "u2netp"
    out: Path = Path("artifacts/fit")
    targets: Sequence[str] = ()
    max_float: float = 0.1
    limit: int = 32
    calib_limit: int | None = None
    tier: str = "quick"
    samples: int | None = None
    seconds: float | None = None
    rounds: int | None = None
    threads: int = 0
    device: str = "local"
    device_python: str = "python3"
    ssh_config: Path | None = None
    timeout: float = 300.0
    cluster: str = ""
    shared_files: bool = False
    store: str = ""


def fit(request: FitRequest, progress: Progress = lambda stage, done, total: None) -> Fitted:
    """Search, and write the artifacts, the report and the result into the request's folder.

    Raises:
        UserError: photos cannot be read or are in both sets, a target is unknown, too few rounds, the device or the
            cluster cannot be reached, the workers of the cluster are not like this machine, or a file cannot be
            written.
        Unavailable: a package is missing.
    """
    timing = settings(request.tier, request.samples, request.seconds, request.rounds, request.threads)
    if timing.rounds < ROUNDS:
        raise WrongValue(f"{timing.rounds} rounds prove nothing", f"give {ROUNDS} or more", "rounds")
    machine = _machine(request)
    cluster = _cluster(request) if request.cluster else None
    exporters, left_out = targets(request.targets, here=machine is None)
    source = Source.open(request.weights, request.reference)
    photos = photos_in(request.images, request.limit, arrays=source.contract.channels not in (1, 3))
    sources = [replace(source, contract=c.with_channels(source.contract.channels)) for c in request.contracts]
    wanted, more = candidates(exporters, sources, [_calibration(request, s) for s in sources])
    make_folder(request.out)
    plan = Plan([], photos, settings=timing, timeout=request.timeout, machine=machine)
    with (
        tempfile.TemporaryDirectory(prefix="u2export-fit-") as scratch,
        machine or Machine(plan.worker),
        cluster or nullcontext(),
    ):
        trial = Trial(plan, Path(scratch), _saver(request), progress, source, request.limits, cluster)
        return _Search(request, trial, progress, {**left_out, **more}).run(wanted)


def _machine(request: FitRequest) -> Machine | None:
    if request.device == "local":
        return None
    from u2export.benchmarks.measuring.ssh import SshMachine, address

    return SshMachine(address(request.device), request.device_python, request.ssh_config)


def _cluster(request: FitRequest) -> ClusterMachine:
    """Return the cluster that judges the masks.

    Raises:
        WrongValue: the device is another machine, or the address is none.
    """
    if request.device != "local":
        raise WrongValue(
            f"the workers of a cluster cannot make the masks of {request.device}",
            "run fit on the device itself, or leave out the cluster",
            "cluster",
        )
    from u2export.benchmarks.cluster.journal import Journal
    from u2export.benchmarks.cluster.machine import ClusterMachine

    return ClusterMachine(
        request.cluster, request.shared_files, Journal(None, False), request.timeout, store=request.store
    )


def _calibration(request: FitRequest, source: Source) -> Calibration | None:
    if request.calib is None:
        return None
    return Calibration.open(request.calib, source.contract, avoid=[request.images], limit=request.calib_limit)


def _saver(request: FitRequest) -> Callable[[Report], None]:
    return lambda report: report.save(request.out / REPORT)


@dataclass
class _Found:
    """A row with the artifact that it is of, and the share of its work that was put into float."""

    artifact: Artifact
    float_share: float = 0.0


@dataclass
class _Search:
    """One search.

    Attributes:
        request: what to search.
        trial: judges and times.
        progress: receives the stage, the steps done and the steps in all.
        left_out: what was not tried, with the reason; it grows.
        found: artifacts by the names of their rows.
        lost: the sizes at which fp32 already misses the mask budget.
    """

    request: FitRequest
    trial: Trial
    progress: Progress
    left_out: dict[str, str]
    found: dict[str, _Found] = field(default_factory=dict)
    lost: set[tuple[int, int]] = field(default_factory=set)

    def run(self, wanted: Sequence[Candidate]) -> Fitted:
        """Export and judge all candidates, time those within the mask budget, and choose."""
        for i, candidate in enumerate(wanted):
            self._try(candidate, i, len(wanted))
        names = [name for name in self.found if self._worth_timing(self._row(name))]
        self.trial.time(names)
        report = self.trial.finish()
        options = tuple(self._option(name, report) for name in self.found)
        taken = take(options, report, self.request.limits)
        files = (self.request.out / RESULT, self.request.out / REPORT)
        made = Fitted(self.request.limits, options, report, taken, self.left_out, self.trial.reference.name, files)
        write_json(made.to_json(), files[0])
        return made

    def _try(self, candidate: Candidate, done: int, total: int) -> None:
        """Export and judge a candidate; where its masks miss the budget, the same with float layers."""
        out, contract = self.request.out, candidate.source.contract
        size = (contract.height, contract.width)
        if size in self.lost:
            self.left_out[candidate.label] = "fp32 of this size misses the mask budget already"
            return

        def show(what: str) -> None:
            self.progress(f"{candidate.label}: {what}", done, total)

        show("exporting")
        try:
            artifact = candidate.export(out, show)
            rows = self._judge(artifact.name, artifact)
            if candidate.precision == "fp32" and rows[0].fidelity and self._broken(rows[0]):
                self.lost.add(size)
            if not candidate.may_get_float or not self.request.max_float or not self._needs_float(candidate, rows):
                return
            made = candidate.export_with_float(
                out / "with-float", self.request.limits.budget, self.request.max_float, show
            )
        except Stopped:
            raise
        except Unavailable as problem:
            self.left_out[candidate.label] = problem.problem
            return
        except UserError as error:
            self.left_out[candidate.label] = f"{error.problem} ({error.hint})"
            return
        if made is None:
            self.left_out[f"{candidate.label} with float layers"] = "no float layer helps within the allowed share"
        else:
            self._judge(f"{made.name} with float", made, made.added_float["float_share"])

    def _judge(self, name: str, artifact: Artifact, float_share: float = 0.0) -> list[Row]:
        rows = self.trial.judge(name, artifact)
        self.found.update({row.name: _Found(artifact, float_share) for row in rows})
        return rows

    def _needs_float(self, candidate: Candidate, rows: Sequence[Row]) -> bool:
        """Whether masks miss the budget on a row that is not too slow already; float layers make no row faster."""
        limits = self.request.limits
        missed = [row for row in rows if row.fidelity and self._broken(row)]
        slow = [r for r in missed if limits.max_ms and (ms := time_of(r)) and ms.value > HOPELESS * limits.max_ms]
        if missed and len(slow) == len(missed):
            self.left_out[f"{candidate.label} with float layers"] = "too slow already without them"
        return len(slow) < len(missed)

    def _row(self, name: str) -> Row:
        row = self.trial.report.row(name)
        assert row is not None
        return row

    def _worth_timing(self, row: Row) -> bool:
        return not row.reason and row.fidelity is not None and not self._broken(row)

    def _broken(self, row: Row) -> str:
        return row.fidelity.broken(self.request.limits.budget) if row.fidelity else ""

    def _option(self, name: str, report: Report) -> Option:
        row, found = self._row(name), self.found[name]
        contract = found.artifact.contract
        return Option(
            name, found.artifact.path, row.exporter, row.precision, row.runtime.get("arithmetic", row.arithmetic),
            (contract.height, contract.width), found.float_share, row.fidelity,
            self._broken(row), time_of(row),
            len(row.latency.rounds), self.trial.stopped.get(name, ""), row.problem,
        )  # fmt: skip
