"""Does the gate stay silent where nothing changed? The same artifacts against themselves, in fresh processes.

    python -m u2export.benchmarks.gate_false_alarms --out benchmarks/results/gate

Times: copies of one artifact benched together at tier normal, each checked against each other; pairs of one bench
share rows, so they are not independent. Masks: those copies, and real artifacts of four kinds, benched again and again
on one or two threads, checked against a baseline of their first run. Every second bench has another process busy
beside it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from time import perf_counter
from typing import Any

from u2export.benchmarks.baseline import Baseline, updated
from u2export.benchmarks.check import check
from u2export.benchmarks.gate_power import SIZE, about, against, copies, exported, load, spread, timed, told
from u2export.benchmarks.measure import Plan, measure
from u2export.benchmarks.report import Latency, Report, Settings
from u2export.calibration.dataset import Calibration
from u2export.exporters.base import Artifact, Request
from u2export.exporters.onnx import Onnx
from u2export.exporters.openvino import OpenVINO
from u2export.exporters.ort import Ort
from u2export.files import read_json, write_json, write_text
from u2export.reference.source import Source, verification_photos


def times(folder: Path, benches: int, rows: int) -> Iterator[tuple[Report, bool]]:
    """Benches of copies of one artifact, every second one with another busy process."""
    artifacts = copies(exported(folder / "good"), folder / "copies", [f"plain{i}" for i in range(rows)])
    for number in range(benches):
        busy = number % 2 == 1
        yield timed(artifacts, number, busy), busy


def artifacts_of(folder: Path) -> list[Artifact]:
    """One of each kind that this machine runs."""
    source = Source.open("u2netp")
    calibration = Calibration.bundled(source.contract)
    return [
        Onnx().export(source, folder, Request("fp32")),
        Ort().export(source, folder, Request("int8", calibration)),
        OpenVINO().export(source, folder, Request("fp32")),
        OpenVINO().export(source, folder, Request("int8", calibration)),
    ]


def masks(folder: Path, runs: int) -> Iterator[dict[str, Any]]:
    """What the gate says of each artifact's masks in each run."""
    artifacts = artifacts_of(folder / "masks")
    photos = {p.name: p for p in verification_photos()}
    maps = folder / "reference.npz"

    def bench(threads: int, reference: str, save: Path | None = None) -> Report:
        wanted = Settings(threads=threads)
        plan = Plan(artifacts, photos, settings=wanted, modes="default", reference=reference, latency=False,
                    save_reference=save)  # fmt: skip
        return measure(plan)

    baseline = updated(bench(1, "auto", maps), None, True, "")
    for number in range(runs):
        busy = number % 2 == 1
        with load(busy):
            report = bench(1 + number // 2 % 2, str(maps))
        yield from judged(report, baseline, busy)


def judged(report: Report, baseline: Baseline, busy: bool) -> Iterator[dict[str, Any]]:
    """What the gate says of the masks of each row, and the largest difference of a photo's MAE."""
    for judgement in check(report, baseline).judgements:
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


def markdown(results: Mapping[str, Any]) -> str:
    """The results for readers."""
    time, mask = results["times"], results["masks"]
    copied = time["masks"]
    rows = "".join(
        f"| {kind} | {sum(v.values())} | {v.get('fail', 0)} | {v.get('inconclusive', 0)} | {v.get('pass', 0)} |\n"
        for kind, v in time["verdicts"].items()
    )
    return f"""# False alarms of the gate

The same artifacts against themselves, in fresh processes, under the default policy, on {time["device"]["cpu"]};
{mask["seconds"] + time["seconds"]:.0f} s. Again with

    {results["rerun"]}

Masks: {mask["alarms"] + copied["alarms"]} false alarms in {mask["comparisons"] + copied["comparisons"]} comparisons.
{mask["comparisons"]} are of {", ".join(mask["artifacts"])} on one or two threads, {copied["comparisons"]} of the
copies below; every second run was beside a busy process. Largest difference of a photo's MAE:
{max(mask["largest"], copied["largest"]):.1g}.

Times: {time["alarms"]} false alarms in {time["comparisons"]} comparisons
({100 * time["alarms"] / max(1, time["comparisons"]):.2f} %), tier normal, u2netp in ONNX at {SIZE} x {SIZE} on one
thread, {time["rows"]} copies in each of {len(time["benches"])} benches, each against each other. Pairs of one bench
share rows. "busy": another process ran in bursts on the same processor.

| machine | comparisons | false alarms | inconclusive | pass |
| :-- | --: | --: | --: | --: |
{rows}"""


def timed_part(folder: Path, benches: int, rows: int) -> dict[str, Any]:
    """Results of the copies: times of each against each, masks of each against the first."""
    timings: list[dict[str, Any]] = []
    seen: list[dict[str, Any]] = []
    machine, copied, start = [], Copies(), perf_counter()
    for report, busy in times(folder, benches, rows):
        seen += copied.judged(report, busy)
        timings += [told(against(report, a, b), busy) for a, b in combinations(report.rows, 2)]
        machine.append({"busy": busy, **spread(report)})
        print(f"times: {len(timings)}, alarms: {alarms(timings)}", file=sys.stderr, flush=True)
    return {
        **about(timings, perf_counter() - start), "alarms": alarms(timings), "rows": rows, "benches": machine,
        "masks": summary(seen), "pairs": timings,
    }  # fmt: skip


def alarms(found: Sequence[Mapping[str, Any]]) -> int:
    """Comparisons that fail."""
    return sum(f["verdict"] == "fail" for f in found)


def summary(seen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Comparisons of masks: any verdict but pass counts as an alarm, the undecided too."""
    return {
        "comparisons": len(seen), "alarms": sum(s["verdict"] != "pass" for s in seen),
        "largest": max((s["mae"] for s in seen), default=0.0), "artifacts": sorted({s["artifact"] for s in seen}),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; exit code 1 where masks gave any false alarm, or times in more than one of a hundred."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for false_alarms.json and false_alarms.md")
    parser.add_argument("--part", choices=("masks", "times"), help="run this alone, keep the other's results")
    parser.add_argument("--benches", type=int, default=10)
    parser.add_argument("--rows", type=int, default=7, help="copies in a bench of times")
    parser.add_argument("--runs", type=int, default=36, help="benches of masks")
    given = parser.parse_args(arguments)
    file = given.out / "false_alarms.json"
    results: dict[str, Any] = read_json(file, "earlier results") if given.part and file.exists() else {}
    results |= {"schema": 1, "rerun": "python -m u2export.benchmarks.gate_false_alarms --out benchmarks/results/gate"}
    with tempfile.TemporaryDirectory(prefix="u2export-alarms-") as scratch:
        if given.part != "times":
            start = perf_counter()
            seen = list(masks(Path(scratch), given.runs))
            results["masks"] = {**summary(seen), "seconds": round(perf_counter() - start, 1)}
        if given.part != "masks":
            results["times"] = timed_part(Path(scratch), given.benches, given.rows)
    write_json(results, file)
    if not {"masks", "times"} <= results.keys():
        return 0
    write_text(markdown(results), given.out / "false_alarms.md")
    print(markdown(results))
    time, mask = results["times"], results["masks"]
    return int(mask["alarms"] + time["masks"]["alarms"] > 0 or time["alarms"] > 0.01 * time["comparisons"])


if __name__ == "__main__":
    sys.exit(main())
