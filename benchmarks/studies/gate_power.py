"""Does the gate find an artifact that got 10 % slower? Real exports, really slowed, timed at tier normal, checked.

    python -m u2export.benchmarks.studies.gate_power --out benchmarks/results/gate

Copies of one artifact are benched together; every second one is slowed by waiting, after each inference, for a tenth
of the time it took. Each slowed copy is checked against each plain one, which the gate has to find, and like ones
against each other, where it has to stay silent. Pairs of one bench share rows, so they are not independent, and rounds
are longer than those of a bench of two, in which less happens between two turns.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
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
from u2export.exporters import EXPORTERS
from u2export.exporters.artifact import Artifact, hashes
from u2export.exporters.exporter import Request, Runner
from u2export.exporters.onnx import Onnx
from u2export.files import make_folder, write_json, write_text
from u2export.reference.image import Contract, Floats
from u2export.reference.source import Source
from u2export.reference.verification import verification_photos

# Of this size some 128 inferences fill tier normal's 10 s on a slow core: both its minima count.
SIZE = 192
TIER = settings("normal", threads=1)
SLOWED, SHARE = "slowed", 0.10
WORKER = (sys.executable, "-m", "u2export.benchmarks.studies.gate_power", "worker")
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
    """ONNX, whose files of the name `slowed…` take a tenth longer."""

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


def exported(folder: Path) -> Artifact:
    """The artifact that is copied: u2netp in ONNX, fp32."""
    return Onnx().export(Source.open("u2netp", Contract(height=SIZE, width=SIZE)), folder, Request("fp32"))


def copies(artifact: Artifact, folder: Path, names: Sequence[str]) -> list[Artifact]:
    """The artifact under other names, each with a record."""
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
    """Another process that is busy in bursts, on the same processors."""
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
    """A bench of tier normal on one thread."""
    photos = {p.name: p for p in verification_photos()}
    wanted = replace(TIER, seed=seed)
    plan = Plan(
        artifacts, photos, settings=wanted, arithmetics="default", reference=str(artifacts[0].path),
        worker=WORKER,
    )  # fmt: skip
    with load(busy):
        return measure(plan)


def against(report: Report, now: Row, then: Row) -> Finding:
    """What the gate says of the times of one row against another's of the same artifact."""
    images = now.images or then.images
    old = replace(then, name="then/a.onnx", images=images)
    new = replace(now, name="now/a.onnx", digest="f" * 64, images=images)
    baseline = updated(replace(report, rows=(old,), complete=True), None, True, "")
    found = judge(replace(report, rows=(new, old)), baseline)
    return next(f for j in found.judgements for f in j.findings if f.measure == "latency")


def told(finding: Finding, busy: bool) -> dict[str, Any]:
    """A comparison as plain data."""
    numbers = {k: round(v, 4) for k in ("value", "low", "high") if isinstance(v := getattr(finding, k), float)}
    return {"verdict": finding.verdict, "busy": busy, **numbers}


def spread(report: Report) -> dict[str, Any]:
    """How calm the machine was: the rows' medians in ms, and the deviation of rounds' medians as a share."""
    rows = [row for row in report.rows if not row.reason]
    rounds = [[float(np.median(turn)) for turn in row.latency.rounds] for row in rows]
    return {
        "p50_ms": [round(row.latency.p50, 2) for row in rows],
        "deviation_of_rounds": [round(float(np.std(r) / np.mean(r)), 4) for r in rounds],
        "samples": min(len(row.latency.ns) for row in rows),
        "not_timed": [f"{row.name}: {row.reason}: {row.problem}" for row in report.rows if row.reason],
    }


def run(benches: int, rows: int, minutes: float) -> Iterator[tuple[Report, bool]]:
    """Benches of as many plain as slowed copies."""
    with tempfile.TemporaryDirectory(prefix="u2export-power-") as scratch:
        artifact = exported(Path(scratch) / "good")
        names = [f"{kind}{i}" for i in range(rows) for kind in ("plain", SLOWED)]
        artifacts = copies(artifact, Path(scratch) / "copies", names)
        yield from series(artifacts, benches, minutes)


def series(artifacts: Sequence[Artifact], benches: int, minutes: float) -> Iterator[tuple[Report, bool]]:
    """So many benches, or as many as begin in time; every second one with another busy process."""
    end = perf_counter() + 60 * minutes
    for number in range(benches):
        if perf_counter() > end:
            return
        busy = number % 2 == 1
        yield timed(artifacts, number, busy), busy


def pairs(report: Report) -> tuple[list[tuple[Row, Row]], list[tuple[Row, Row]]]:
    """Every slowed row with every plain one, and every two rows of one kind."""
    timed_rows = [row for row in report.rows if not row.reason]
    slow = [row for row in timed_rows if row.name.startswith(SLOWED)]
    plain = [row for row in timed_rows if not row.name.startswith(SLOWED)]
    return list(product(slow, plain)), [*combinations(slow, 2), *combinations(plain, 2)]


def judged(report: Report, baseline: Baseline, busy: bool) -> Iterator[dict[str, Any]]:
    """What the gate says of the masks of each row, and the largest difference of a photo's MAE."""
    for judgement in judge(report, baseline).judgements:
        largest = max(abs(f.value) for f in judgement.findings if f.measure == "worst mae" and f.value is not None)
        yield {"artifact": judgement.artifact, "busy": busy, "verdict": judgement.verdict, "mae": largest}


class Copies:
    """Masks of the copies that are timed, each against the first of them that was judged."""

    def __init__(self) -> None:
        self.baseline: Baseline | None = None

    def judged(self, report: Report, busy: bool) -> Iterator[dict[str, Any]]:
        """As `judged`, for every row but the reference itself."""
        for row in report.rows:
            if row.images:
                alone = replace(report, rows=(replace(row, name="copy.onnx", latency=Latency()),))
                if self.baseline is None:
                    self.baseline = updated(alone, None, True, "")
                else:
                    yield from judged(alone, self.baseline, busy)


def alarms(found: Sequence[Mapping[str, Any]]) -> int:
    """Comparisons that fail."""
    return sum(f["verdict"] == "fail" for f in found)


def summary(seen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Comparisons of masks: any verdict but pass counts as an alarm, the undecided too."""
    return {
        "comparisons": len(seen), "alarms": sum(s["verdict"] != "pass" for s in seen),
        "largest": max((s["mae"] for s in seen), default=0.0), "artifacts": sorted({s["artifact"] for s in seen}),
    }  # fmt: skip


def by_load(comparisons: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Counts of verdicts, on the machine as it was and beside a busy process."""
    kinds = (("as it was", False), ("busy", True))
    return {kind: dict(Counter(c["verdict"] for c in comparisons if c["busy"] is busy)) for kind, busy in kinds}


def table(counts: Mapping[str, Mapping[str, int]], titles: str) -> str:
    """Those counts in Markdown: fail, inconclusive, pass."""
    rows = "".join(
        f"| {kind} | {sum(v.values())} | {v.get('fail', 0)} | {v.get('inconclusive', 0)} | {v.get('pass', 0)} |\n"
        for kind, v in counts.items()
    )
    return f"| machine | comparisons | {titles} |\n| :-- | --: | --: | --: | --: |\n{rows}"


def markdown(results: Mapping[str, Any]) -> str:
    """The results for readers."""
    found, total = results["found"], len(results["slowed"])
    device, benches = results["device"], results["benches"]
    return f"""# Power of the latency gate

u2netp in ONNX, {SIZE} x {SIZE}, one thread, tier normal ({results["settings"]["samples"]} samples and
{results["settings"]["seconds"]:g} s at least, {results["settings"]["rounds"]} rounds); slowed by 10 % in its worker.
Default policy: fails when the lower end of the 95 % interval is above 1.03.
{results["seconds"]:.0f} s on {device["cpu"]}, {device["cores"]} core of a shared machine; again with

    {results["rerun"]}

Found: {found} of {total} ({100 * found / total:.1f} %), in {len(benches)} benches of {len(benches[0]["p50_ms"])}
copies. Pairs of one bench share rows. "busy": beside a process of our own that ran in bursts on the same processor.

{table(results["verdicts"], "found | inconclusive | missed")}"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; exit code 1 below 95 %."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for power.json and power.md")
    parser.add_argument("--benches", type=int, default=5)
    parser.add_argument("--rows", type=int, default=7, help="copies of either kind in a bench")
    parser.add_argument("--minutes", type=float, default=60, help="begin no bench after so many")
    given = parser.parse_args(arguments)
    start, copied, machine = perf_counter(), Copies(), []
    slowed: list[dict[str, Any]] = []
    same: list[dict[str, Any]] = []
    masks: list[dict[str, Any]] = []
    for report, busy in run(given.benches, given.rows, given.minutes):
        different, alike = pairs(report)
        slowed += [told(against(report, now, then), busy) for now, then in different]
        same += [told(against(report, now, then), busy) for now, then in alike]
        masks += copied.judged(report, busy)
        machine.append({"busy": busy, **spread(report)})
        print(f"found {alarms(slowed)} of {len(slowed)}, false {alarms(same)} of {len(same)}", file=sys.stderr)
        results = {
            "schema": 1, "rerun": "python -m u2export.benchmarks.studies.gate_power --out benchmarks/results/gate",
            "device": asdict(this_device()), "environment": environment(),
            "seconds": round(perf_counter() - start, 1), "settings": asdict(TIER),
            "found": alarms(slowed), "verdicts": by_load(slowed), "benches": machine, "masks": summary(masks),
            "slowed": slowed, "same": same,
        }  # fmt: skip
        write_json(results, given.out / "power.json")
        write_text(markdown(results), given.out / "power.md")
    return int(alarms(slowed) < 0.95 * len(slowed))


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        EXPORTERS["onnx"] = Slowed()
        worker.main()
    else:
        sys.exit(main())
