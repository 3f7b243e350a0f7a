"""Does the gate stay silent where nothing changed? The same artifacts against themselves, in fresh processes.

    python -m u2export.benchmarks.studies.gate_false_alarms --out benchmarks/results/gate

Masks: real artifacts of four kinds, benched again and again on one or two threads, every second time beside a busy
process, checked against a baseline of their first run. Times: the like copies of
`u2export.benchmarks.studies.gate_power`, which has to have run before.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from u2export.benchmarks.device import environment, this_device
from u2export.benchmarks.gate.baseline import updated
from u2export.benchmarks.measuring.bench import measure
from u2export.benchmarks.measuring.plan import Plan
from u2export.benchmarks.report import Report, Settings
from u2export.benchmarks.studies.gate_power import alarms, by_load, judged, load, summary, table
from u2export.calibration.dataset import Calibration
from u2export.exporters.artifact import Artifact
from u2export.exporters.exporter import Request
from u2export.exporters.onnx import Onnx
from u2export.exporters.openvino import OpenVINO
from u2export.exporters.ort import Ort
from u2export.files import read_json, write_json, write_text
from u2export.reference.source import Source
from u2export.reference.verification import verification_photos


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
        plan = Plan(artifacts, photos, settings=wanted, arithmetics="default", reference=reference, latency=False,
                    save_reference=save)  # fmt: skip
        return measure(plan)

    baseline = updated(bench(1, "auto", maps), None, True, "")
    for number in range(runs):
        busy = number % 2 == 1
        with load(busy):
            report = bench(1 + number // 2 % 2, str(maps))
        yield from judged(report, baseline, busy)


def markdown(results: Mapping[str, Any]) -> str:
    """The results for readers."""
    masks, copied, times = results["masks"], results["copies"], results["times"]
    return f"""# False alarms of the gate

The same artifacts against themselves, in fresh processes, under the default policy. Again with

    python -m u2export.benchmarks.studies.gate_power --out benchmarks/results/gate
    {results["rerun"]}

Masks: {masks["alarms"] + copied["alarms"]} false alarms in {masks["comparisons"] + copied["comparisons"]} comparisons.
{masks["comparisons"]} are of {", ".join(masks["artifacts"])} on one or two threads, {copied["comparisons"]} of the
copies that were timed; every second run was beside a busy process. Largest difference of a photo's MAE:
{max(masks["largest"], copied["largest"]):.1g}.

Times: {times["alarms"]} false alarms in {times["comparisons"]} comparisons
({100 * times["alarms"] / times["comparisons"]:.2f} %): like copies in the benches of [power.md](power.md), at tier
normal. Pairs of one bench share rows.

{table(times["verdicts"], "false alarms | inconclusive | pass")}"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; exit code 1 where masks gave any false alarm, or times in more than one of a hundred."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder with power.json; for false_alarms.json and .md")
    parser.add_argument("--runs", type=int, default=36, help="benches of masks")
    given = parser.parse_args(arguments)
    start = perf_counter()
    with tempfile.TemporaryDirectory(prefix="u2export-alarms-") as scratch:
        found = summary(list(masks(Path(scratch), given.runs)))
    power = read_json(given.out / "power.json", "results of u2export.benchmarks.studies.gate_power")
    same = power["same"]
    results = {
        "schema": 1, "rerun": "python -m u2export.benchmarks.studies.gate_false_alarms --out benchmarks/results/gate",
        "device": asdict(this_device()), "environment": environment(), "seconds": round(perf_counter() - start, 1),
        "masks": found, "copies": power["masks"],
        "times": {"comparisons": len(same), "alarms": alarms(same), "verdicts": by_load(same)},
    }  # fmt: skip
    write_json(results, given.out / "false_alarms.json")
    write_text(markdown(results), given.out / "false_alarms.md")
    print(markdown(results))
    too_many = alarms(same) > 0.01 * len(same)
    return int(found["alarms"] + power["masks"]["alarms"] > 0 or too_many)


if __name__ == "__main__":
    sys.exit(main())
