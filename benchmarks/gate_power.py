"""Does the gate find an artifact that got 10 % slower? Real exports, really slowed, timed at tier normal, checked.

    python -m u2export.benchmarks.gate_power --out benchmarks/results/gate

Copies of one artifact are benched together; every second one is slowed by waiting, after each inference, for a tenth
of the time it took. Each slowed copy is checked against each other one: pairs of one bench share rows, so they are
not independent, and rounds are longer than those of a bench of two.
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
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any, ClassVar

import numpy as np

from u2export.benchmarks import worker
from u2export.benchmarks.baseline import updated
from u2export.benchmarks.check import Finding, check
from u2export.benchmarks.device import environment, this_device
from u2export.benchmarks.measure import Plan, measure, settings
from u2export.benchmarks.report import Measurement, Report
from u2export.exporters import EXPORTERS
from u2export.exporters.base import Artifact, Request, Runner, hashes
from u2export.exporters.onnx import Onnx
from u2export.files import make_folder, write_json, write_text
from u2export.reference.image import Contract, Floats
from u2export.reference.source import Source, verification_photos

# An inference of this size takes about as long as tier normal wants 128 samples in 10 s: both minima count.
SIZE = 256
SLOWED, SHARE = "slowed", 0.10
WORKER = (sys.executable, "-m", "u2export.benchmarks.gate_power", "worker")
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
    def _load(self, artifact: Artifact, mode: str, threads: int) -> Iterator[Runner]:
        with super()._load(artifact, mode, threads) as runner:
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
    wanted = replace(settings("normal", threads=1), seed=seed)
    plan = Plan(
        artifacts, photos, settings=wanted, modes="default", reference=str(artifacts[0].path),
        worker=WORKER,
    )  # fmt: skip
    with load(busy):
        return measure(plan)


def against(report: Report, now: Measurement, then: Measurement) -> Finding:
    """What the gate says of the times of one row against another's of the same artifact."""
    images = now.images or then.images
    old = replace(then, name="then/a.onnx", images=images)
    new = replace(now, name="now/a.onnx", digest="f" * 64, images=images)
    baseline = updated(replace(report, rows=(old,), complete=True), None, True, "")
    found = check(replace(report, rows=(new, old)), baseline)
    return next(f for j in found.judgements for f in j.findings if f.measure == "latency")


def told(finding: Finding, busy: bool) -> dict[str, Any]:
    """A comparison as plain data."""
    numbers = {k: round(v, 4) for k in ("value", "low", "high") if isinstance(v := getattr(finding, k), float)}
    return {"verdict": finding.verdict, "busy": busy, **numbers}


def spread(report: Report) -> dict[str, Any]:
    """How calm the machine was: the rows' medians in ms, and the deviation of rounds' medians as a share."""
    rounds = [[float(np.median(turn)) for turn in row.latency.rounds] for row in report.rows]
    return {
        "p50_ms": [round(row.latency.p50, 2) for row in report.rows],
        "deviation_of_rounds": [round(float(np.std(r) / np.mean(r)), 4) for r in rounds],
        "samples": min(len(row.latency.ns) for row in report.rows),
    }


def run(benches: int, rows: int) -> Iterator[tuple[Report, bool]]:
    """Benches of as many plain as slowed copies, every second one with another busy process."""
    with tempfile.TemporaryDirectory(prefix="u2export-power-") as scratch:
        artifact = exported(Path(scratch) / "good")
        names = [f"{kind}{i}" for i in range(rows) for kind in ("plain", SLOWED)]
        artifacts = copies(artifact, Path(scratch) / "copies", names)
        for number in range(benches):
            busy = number % 2 == 1
            yield timed(artifacts, number, busy), busy


def pairs(report: Report) -> Iterator[tuple[Measurement, Measurement]]:
    """Every slowed row with every plain one."""
    slow = [row for row in report.rows if row.name.startswith(SLOWED)]
    plain = [row for row in report.rows if not row.name.startswith(SLOWED)]
    yield from ((now, then) for now in slow for then in plain)


def about(comparisons: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    """Counts of verdicts, idle and busy, and what a reader must know."""
    counts = {
        kind: dict(Counter(c["verdict"] for c in comparisons if c["busy"] is busy))
        for kind, busy in (("idle", False), ("busy", True))
    }
    return {
        "schema": 1, "device": asdict(this_device()), "environment": environment(), "seconds": round(seconds, 1),
        "settings": asdict(settings("normal", threads=1)), "comparisons": len(comparisons), "verdicts": counts,
    }  # fmt: skip


def markdown(results: Mapping[str, Any]) -> str:
    """The results for readers."""
    found, total = results["found"], results["comparisons"]
    rows = "".join(
        f"| {kind} | {sum(v.values())} | {v.get('fail', 0)} | {v.get('inconclusive', 0)} | {v.get('pass', 0)} |\n"
        for kind, v in results["verdicts"].items()
    )
    return f"""# Power of the latency gate

u2netp in ONNX, {SIZE} x {SIZE}, one thread, tier normal; slowed by 10 % in its worker. Default policy: fails when the
lower end of the 95 % interval is above 1.03. {results["seconds"]:.0f} s on {results["device"]["cpu"]}; again with

    {results["rerun"]}

Found: {found} of {total} ({100 * found / total:.1f} %). Pairs of one bench share rows. "busy": another process ran in
bursts on the same processor.

| machine | comparisons | found | inconclusive | missed |
| :-- | --: | --: | --: | --: |
{rows}"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; exit code 1 below 95 %."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for power.json and power.md")
    parser.add_argument("--benches", type=int, default=6)
    parser.add_argument("--rows", type=int, default=4, help="copies of either kind in a bench")
    given = parser.parse_args(arguments)
    start, comparisons, machine = perf_counter(), [], []
    for report, busy in run(given.benches, given.rows):
        comparisons += [told(against(report, now, then), busy) for now, then in pairs(report)]
        machine.append({"busy": busy, **spread(report)})
        print(Counter(c["verdict"] for c in comparisons), file=sys.stderr, flush=True)
    results = {
        **about(comparisons, perf_counter() - start), "found": sum(c["verdict"] == "fail" for c in comparisons),
        "rerun": "python -m u2export.benchmarks.gate_power --out benchmarks/results/gate", "benches": machine,
        "pairs": comparisons,
    }  # fmt: skip
    write_json(results, given.out / "power.json")
    write_text(markdown(results), given.out / "power.md")
    print(markdown(results))
    return int(results["found"] < 0.95 * len(comparisons))


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        EXPORTERS["onnx"] = Slowed()
        worker.main()
    else:
        sys.exit(main())
