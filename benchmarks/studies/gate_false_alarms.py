"""Does the gate stay silent if nothing changed? The same artifacts are judged against themselves, in fresh processes.

Masks: real artifacts of four kinds are benched again and again on one or two threads, every second time beside a busy
process. Each run is judged against the accepted state of the first run. Times: the like copies of `gate_power`. That
study has to run before this one.
"""

from __future__ import annotations

import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
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
from u2export.benchmarks.studies.study import RESULTS, Pages, Study
from u2export.calibration.dataset import Calibration
from u2export.exporters.artifact import Artifact
from u2export.exporters.exporter import Request
from u2export.exporters.onnx import Onnx
from u2export.exporters.openvino import OpenVINO
from u2export.exporters.ort import Ort
from u2export.files import read_json
from u2export.reference.source import Source
from u2export.reference.verification import verification_photos


def artifacts_of(folder: Path) -> list[Artifact]:
    """Export one artifact of each kind that this machine runs."""
    source = Source.open("u2netp")
    calibration = Calibration.bundled(source.contract)
    return [
        Onnx().export(source, folder, Request("fp32")),
        Ort().export(source, folder, Request("int8", calibration)),
        OpenVINO().export(source, folder, Request("fp32")),
        OpenVINO().export(source, folder, Request("int8", calibration)),
    ]


def masks(folder: Path, runs: int) -> Iterator[dict[str, Any]]:
    """Yield what the gate says about the masks of each artifact in each run."""
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
    """Return the Markdown page."""
    masks, copied, times = results["masks"], results["copies"], results["times"]
    return f"""# False alarms of the gate

The same artifacts against themselves, in fresh processes, under the default policy. Again with

    {results["power"]}
    {results["rerun"]}

Masks: {masks["alarms"] + copied["alarms"]} false alarms in {masks["comparisons"] + copied["comparisons"]} comparisons.
{masks["comparisons"]} are of {", ".join(masks["artifacts"])} on one or two threads, {copied["comparisons"]} of the
copies that were timed; every second run was beside a busy process. Largest difference of a photo's MAE:
{max(masks["largest"], copied["largest"]):.1g}.

Times: {times["alarms"]} false alarms in {times["comparisons"]} comparisons
({100 * times["alarms"] / times["comparisons"]:.2f} %): like copies in the benches of [power.md](power.md), at tier
normal. Pairs of one bench share rows.

{table(times["verdicts"], ("false alarms", "inconclusive", "pass"))}
"""


def options(parser: ArgumentParser) -> None:
    """Add the options of this study."""
    parser.add_argument("--runs", type=int, default=36, help="number of benches of masks; %(default)s")


def run(given: Namespace, pages: Pages) -> int:
    """Bench, judge, and write both pages; return 1 for any false alarm of masks, or for more than 1 % of times.

    The folder of the pages has to hold power.json.
    """
    start = perf_counter()
    power = read_json(pages.folder / "power.json", "the folder with the results of the study gate_power")
    with tempfile.TemporaryDirectory(prefix="u2export-alarms-") as scratch:
        found = summary(list(masks(Path(scratch), given.runs)))
    same = power["same"]
    results = {
        "schema": 1, "rerun": pages.command, "power": power["rerun"], "device": asdict(this_device()),
        "environment": environment(), "seconds": round(perf_counter() - start, 1),
        "masks": found, "copies": power["masks"],
        "times": {"comparisons": len(same), "alarms": alarms(same), "verdicts": by_load(same)},
    }  # fmt: skip
    pages.publish(results, markdown(results))
    too_many = alarms(same) > 0.01 * len(same)
    return int(found["alarms"] + power["masks"]["alarms"] > 0 or too_many)


STUDY = Study("gate_false_alarms", "Does the gate stay silent if nothing changed?", "false_alarms", options, run,
              RESULTS / "gate")  # fmt: skip
