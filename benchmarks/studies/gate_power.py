"""Does the gate find an artifact that got 10 % slower? Real exports are slowed, timed at tier normal, and judged.

Copies of one artifact are benched together. Every second copy is slowed: after each inference its worker waits for a
tenth of the time of the inference. Each slowed copy is judged against each plain one, and the gate has to find it. Like
copies are judged against each other, and the gate has to stay silent. Pairs of one bench share rows, so they are not
independent. Rounds are longer than those of a bench of two rows, and so is the time between the turns of a pair.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import combinations, product
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any, ClassVar

import numpy as np

from u2export.benchmarks.device import environment, this_device
from u2export.benchmarks.gate.baseline import Baseline, updated
from u2export.benchmarks.gate.judging import judge
from u2export.benchmarks.gate.verdicts import Finding
from u2export.benchmarks.latency import Latency
from u2export.benchmarks.measuring import worker
from u2export.benchmarks.measuring.bench import measure
from u2export.benchmarks.measuring.plan import Plan, settings
from u2export.benchmarks.report import Report, Row
from u2export.benchmarks.studies.study import RESULTS, Pages, Study, progress
from u2export.benchmarks.tables import markdown as md
from u2export.exporters import EXPORTERS
from u2export.exporters.artifact import Artifact, hashes
from u2export.exporters.exporter import Request
from u2export.exporters.onnx import Onnx
from u2export.exporters.runtime import Runner
from u2export.files import make_folder, write_json
from u2export.reference.image import Contract, Floats
from u2export.reference.source import Source
from u2export.reference.verification import verification_photos

# At this size about 128 inferences fill the 10 s of tier normal on a slow core, so both minima of the tier count.
SIZE = 192
TIER = settings("normal", threads=1)
# The worker of these benches slows down the copies with names that begin so, by this share.
WORKER = (sys.executable, "-c", f"from {__name__} import slowed_worker; slowed_worker()")
SLOWED, SHARE = "slowed", 0.10
BUSY = """
import random, time
pace = random.Random(0)
while True:
    end = time.perf_counter() + pace.uniform(0.02, 0.5)
    while time.perf_counter() < end:
        pass
    time.sleep(pace.uniform(0.1, 2.0))
"""


@dataclass(frozen=True)
class Slowed(Onnx):
    """The ONNX exporter. Its runner waits after each inference of a file `slowed…`, for a tenth of the time."""

    name: ClassVar[str] = "onnx"

    @contextmanager
    def _load(self, artifact: Artifact, arithmetic: str, threads: int) -> Iterator[Runner]:
        with super()._load(artifact, arithmetic, threads) as runner:
            if not artifact.name.startswith(SLOWED):
                yield runner
                return
            inner = runner.predict

            def predict(batch: Any) -> Floats:
                start = perf_counter_ns()
                d0 = inner(batch)
                end = perf_counter_ns() + int(SHARE * (perf_counter_ns() - start))
                while perf_counter_ns() < end:
                    pass
                return d0

            yield replace(runner, predict=predict)


def slowed_worker() -> None:
    """Run the worker of a bench that slows artifacts down on purpose."""
    EXPORTERS["onnx"] = Slowed()
    worker.main()


def exported(folder: Path) -> Artifact:
    """Export the artifact that is copied: u2netp in ONNX, fp32."""
    return Onnx().export(Source.open("u2netp", Contract(height=SIZE, width=SIZE)), folder, Request("fp32"))


def copies(artifact: Artifact, folder: Path, names: Sequence[str]) -> list[Artifact]:
    """Copy the artifact to other names, each with a record."""
    make_folder(folder)
    made = []
    for name in names:
        path = folder / f"{name}{artifact.path.suffix}"
        shutil.copy(artifact.path, path)
        copy = replace(artifact, path=path, files=hashes(path))
        write_json(copy.to_json(), copy.record)
        made.append(copy)
    return made


@contextmanager
def load(wanted: bool) -> Iterator[None]:
    """Run another process on the same processors that is busy in bursts, if wanted."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def timed(artifacts: Sequence[Artifact], seed: int, busy: bool) -> Report:
    """Bench the artifacts at tier normal on one thread."""
    photos = {p.name: p for p in verification_photos()}
    wanted = replace(TIER, seed=seed)
    plan = Plan(
        artifacts, photos, settings=wanted, arithmetics="default", reference=str(artifacts[0].path),
        worker=WORKER,
    )  # fmt: skip
    with load(busy):
        return measure(plan)


def against(report: Report, now: Row, then: Row) -> Finding:
    """Return what the gate says about the time of one row against the time of another row of the same artifact."""
    images = now.images or then.images
    old = replace(then, name="then/a.onnx", images=images)
    new = replace(now, name="now/a.onnx", digest="f" * 64, images=images)
    baseline = updated(replace(report, rows=(old,), complete=True), None, True, "")
    found = judge(replace(report, rows=(new, old)), baseline)
    return next(f for j in found.judgements for f in j.findings if f.measure == "latency")


def told(finding: Finding, busy: bool) -> dict[str, Any]:
    """Return a finding as plain data."""
    numbers = {k: round(v, 4) for k in ("value", "low", "high") if isinstance(v := getattr(finding, k), float)}
    return {"verdict": finding.verdict, "busy": busy, **numbers}


def calmness(report: Report) -> dict[str, Any]:
    """Return how calm the machine was: the median of every row in ms, and the relative deviation of its rounds."""
    rows = [row for row in report.rows if not row.reason]
    rounds = [[float(np.median(turn)) for turn in row.latency.rounds] for row in rows]
    return {
        "p50_ms": [round(row.latency.p50, 2) for row in rows],
        "deviation_of_rounds": [round(float(np.std(r) / np.mean(r)), 4) for r in rounds],
        "samples": min(len(row.latency.ns) for row in rows),
        "not_timed": [f"{row.name}: {row.reason}: {row.problem}" for row in report.rows if row.reason],
    }


def benches(count: int, rows: int, minutes: float) -> Iterator[tuple[Report, bool]]:
    """Yield benches with this many plain and this many slowed copies, and whether another process was busy."""
    with tempfile.TemporaryDirectory(prefix="u2export-power-") as scratch:
        artifact = exported(Path(scratch) / "good")
        names = [f"{kind}{i}" for i in range(rows) for kind in ("plain", SLOWED)]
        artifacts = copies(artifact, Path(scratch) / "copies", names)
        yield from series(artifacts, count, minutes)


def series(artifacts: Sequence[Artifact], benches: int, minutes: float) -> Iterator[tuple[Report, bool]]:
    """Yield this many benches, or those that begin in time; every second bench is beside a busy process."""
    end = perf_counter() + 60 * minutes
    for number in range(benches):
        if perf_counter() > end:
            return
        busy = number % 2 == 1
        yield timed(artifacts, number, busy), busy


def pairs(report: Report) -> tuple[list[tuple[Row, Row]], list[tuple[Row, Row]]]:
    """Return all pairs of a slowed and a plain row, and all pairs of two rows of one kind."""
    timed_rows = [row for row in report.rows if not row.reason]
    slow = [row for row in timed_rows if row.name.startswith(SLOWED)]
    plain = [row for row in timed_rows if not row.name.startswith(SLOWED)]
    return list(product(slow, plain)), [*combinations(slow, 2), *combinations(plain, 2)]


def judged(report: Report, baseline: Baseline, busy: bool) -> Iterator[dict[str, Any]]:
    """Yield what the gate says about the masks of each row, and the largest difference of the MAE of a photo."""
    for judgement in judge(report, baseline).judgements:
        largest = max(abs(f.value) for f in judgement.findings if f.measure == "worst mae" and f.value is not None)
        yield {"artifact": judgement.artifact, "busy": busy, "verdict": judgement.verdict, "mae": largest}


class Copies:
    """The masks of the timed copies. Each copy is judged against the first one."""

    def __init__(self) -> None:
        self.baseline: Baseline | None = None

    def judged(self, report: Report, busy: bool) -> Iterator[dict[str, Any]]:
        """Yield the same as the function `judged`, for every row except the reference."""
        for row in report.rows:
            if row.images:
                alone = replace(report, rows=(replace(row, name="copy.onnx", latency=Latency()),))
                if self.baseline is None:
                    self.baseline = updated(alone, None, True, "")
                else:
                    yield from judged(alone, self.baseline, busy)


def alarms(found: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of comparisons that fail."""
    return sum(f["verdict"] == "fail" for f in found)


def summary(seen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum up comparisons of masks. Every verdict except pass counts as an alarm, inconclusive too."""
    return {
        "comparisons": len(seen), "alarms": sum(s["verdict"] != "pass" for s in seen),
        "largest": max((s["mae"] for s in seen), default=0.0), "artifacts": sorted({s["artifact"] for s in seen}),
    }  # fmt: skip


def by_load(comparisons: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Return counts of verdicts, on the machine as it was and beside a busy process."""
    kinds = (("as it was", False), ("busy", True))
    return {kind: dict(Counter(c["verdict"] for c in comparisons if c["busy"] is busy)) for kind, busy in kinds}


def table(counts: Mapping[str, Mapping[str, int]], titles: Sequence[str]) -> str:
    """Return these counts in Markdown. The titles are for fail, inconclusive and pass."""
    rows = [
        (kind, str(sum(v.values())), *(str(v.get(verdict, 0)) for verdict in ("fail", "inconclusive", "pass")))
        for kind, v in counts.items()
    ]
    return md.table(("machine", "comparisons", *titles), rows, "lrrrr")


def markdown(results: Mapping[str, Any]) -> str:
    """Return the Markdown page."""
    found, total = results["found"], len(results["slowed"])
    device, calm = results["device"], results["benches"]
    return f"""# Power of the latency gate

u2netp in ONNX, {SIZE} x {SIZE}, one thread, tier normal ({results["settings"]["samples"]} samples and
{results["settings"]["seconds"]:g} s at least, {results["settings"]["rounds"]} rounds); slowed by 10 % in its worker.
Default policy: fails when the lower end of the 95 % interval is above 1.03.
{results["seconds"]:.0f} s on {device["cpu"]}, {device["cores"]} core of a shared machine. Again with

    {results["rerun"]}

Found: {found} of {total} ({100 * found / total:.1f} %), in {len(calm)} benches of {len(calm[0]["p50_ms"])}
copies. Pairs of one bench share rows. "busy": beside a process of our own that ran in bursts on the same processor.

{table(results["verdicts"], ("found", "inconclusive", "missed"))}
"""


def options(parser: ArgumentParser) -> None:
    """Add the options of this study."""
    parser.add_argument("--benches", type=int, default=5, help="number of benches; %(default)s")
    parser.add_argument("--rows", type=int, default=7, help="copies of either kind in a bench; %(default)s")
    parser.add_argument("--minutes", type=float, default=60, help="begin no bench after this time; %(default)s")


def run(given: Namespace, pages: Pages) -> int:
    """Bench, judge, and write both pages after each bench; return 1 if the gate found less than 95 %."""
    start, copied, calm = perf_counter(), Copies(), []
    slowed: list[dict[str, Any]] = []
    same: list[dict[str, Any]] = []
    masks: list[dict[str, Any]] = []
    for report, busy in benches(given.benches, given.rows, given.minutes):
        different, alike = pairs(report)
        slowed += [told(against(report, now, then), busy) for now, then in different]
        same += [told(against(report, now, then), busy) for now, then in alike]
        masks += copied.judged(report, busy)
        calm.append({"busy": busy, **calmness(report)})
        progress(f"found {alarms(slowed)} of {len(slowed)}, false {alarms(same)} of {len(same)}")
        results = {
            "schema": 1, "rerun": pages.command, "device": asdict(this_device()), "environment": environment(),
            "seconds": round(perf_counter() - start, 1), "settings": asdict(TIER),
            "found": alarms(slowed), "verdicts": by_load(slowed), "benches": calm, "masks": summary(masks),
            "slowed": slowed, "same": same,
        }  # fmt: skip
        pages.publish(results, markdown(results))
    return int(alarms(slowed) < 0.95 * len(slowed))


STUDY = Study("gate_power", "Does the gate find an artifact that got 10 % slower?", "power", options, run,
              RESULTS / "gate")  # fmt: skip
