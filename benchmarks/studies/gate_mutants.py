"""Does the gate catch faulty artifacts? The study puts faults into real exports, one at a time, and gates each export.

Every faulty file gets a record as if it were good. A child process benches it on a few photos, and the gate compares it
with the accepted state of the good files under the default policy. The effect of a fault is measured apart from that:
on other photos, against the same reference, with the limits of the policy. A fault survives if it exceeds these limits
and the gate passes it.
"""

from __future__ import annotations

import tempfile
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from PIL import Image

from u2export.benchmarks.device import environment
from u2export.benchmarks.gate.baseline import Baseline, updated
from u2export.benchmarks.gate.judging import LOSSES, judge
from u2export.benchmarks.gate.policy import DEFAULTS, Policy
from u2export.benchmarks.measuring.bench import measure
from u2export.benchmarks.measuring.plan import Plan
from u2export.benchmarks.report import Report, Settings
from u2export.benchmarks.studies.reliability.faults import Mutant, catalogue
from u2export.benchmarks.studies.study import RESULTS, Pages, Study, progress
from u2export.benchmarks.tables.markdown import table
from u2export.calibration.dataset import Calibration
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact, hashes
from u2export.exporters.exporter import Request
from u2export.exporters.onnx import Onnx
from u2export.exporters.onnx_runtime import runner_of
from u2export.exporters.open import read_artifact
from u2export.exporters.ort import Ort
from u2export.files import make_folder, write_json
from u2export.reference.fidelity import ImageFidelity, compare
from u2export.reference.image import Floats
from u2export.reference.onnx_export import Graph
from u2export.reference.onnx_file import read_onnx
from u2export.reference.onnx_session import open_session
from u2export.reference.photos import eight_bit, read_input, read_photo
from u2export.reference.source import Source
from u2export.reference.verification import verification_photos

OTHERS = 6  # photos that the gate does not see


class Proof:
    """The good artifacts, their accepted states, and other photos that show the effect of a fault."""

    def __init__(self, folder: Path, given: Path | None) -> None:
        self.folder = folder
        self.good = opened(given) if given else self._export(folder / "good")
        self.photos = {p.name: p for p in verification_photos()} | self._dark(verification_photos()[2])
        self.others = self._others()
        self.maps: dict[str, Path] = {}
        self.baselines: dict[str, Baseline] = {}
        self.inputs: dict[str, list[Floats]] = {}
        self.want: dict[str, list[Floats]] = {}
        self.was: dict[str, list[ImageFidelity]] = {}
        for origin, artifact in self.good.items():
            self._accept(origin, artifact)

    def _export(self, folder: Path) -> dict[str, Artifact]:
        source = Source.open("u2netp")
        calibration = Calibration.bundled(source.contract)
        return {
            "onnx": Onnx().export(source, folder, Request("fp32")),
            "uint8": Onnx(Graph(embed_preprocess=True)).export(source, folder, Request("fp32")),
            "int8": Ort().export(source, folder, Request("int8", calibration)),
        }

    def _dark(self, photo: Path) -> dict[str, Path]:
        """Make a photo without a bright pixel: only there, division by 255 and division by the maximum differ."""
        path = self.folder / f"dark-{photo.stem}.png"
        make_folder(self.folder)
        Image.fromarray(np.asarray(eight_bit(read_photo(photo)) // 2, np.uint8)).save(path)
        return {path.name: path}

    def _others(self) -> list[Path]:
        """Choose photos evenly from the bundled calibration set, and make one of them dark."""
        import u2export.calibration as room

        found = sorted(p for p in (Path(str(room.__path__[0])) / "images").iterdir() if not p.name.startswith("scene"))
        picked = [found[i * len(found) // (OTHERS - 1)] for i in range(OTHERS - 1)]
        return [*picked, *self._dark(picked[1]).values()]

    def _accept(self, origin: str, artifact: Artifact) -> None:
        """Accept the good artifact: its reference maps, its state, and its fidelity on the other photos."""
        self.maps[origin] = self.folder / f"{origin}.npz"
        good = self._bench(artifact, str(self.good["onnx"].path) if origin != "uint8" else "auto", self.maps[origin])
        judged = good if good.rows[0].images else self._bench(artifact, str(self.maps[origin]))
        only = tuple(row for row in judged.rows if row.digest and row.name == artifact.name)
        self.baselines[origin] = updated(replace(judged, rows=only), None, True, "good")
        contract = artifact.contract
        source = Source.open("u2netp", contract)
        self.inputs[origin] = [read_input(contract, p) for p in self.others]
        self.want[origin] = [source.predict(x)[0, 0] for x in self.inputs[origin]]
        self.was[origin] = self._effect(artifact, origin)

    def _bench(self, artifact: Artifact, reference: str, save: Path | None = None) -> Report:
        plan = Plan(
            [artifact], self.photos, settings=Settings(threads=1), arithmetics="default", reference=reference,
            latency=False, save_reference=save,
        )  # fmt: skip
        return measure(plan)

    def _effect(self, artifact: Artifact, origin: str) -> list[ImageFidelity]:
        """Return the fidelity to PyTorch on the other photos, computed in this process."""
        runner = runner_of(open_session(artifact.path, threads=1), artifact, {})
        pairs = zip(self.inputs[origin], self.want[origin], strict=True)
        return [compare(runner(x)[0, 0], want) for x, want in pairs]

    def judged(self, mutant: Mutant, number: int) -> dict[str, Any]:
        """Return what the gate says about a fault, and the effect of the fault."""
        good = self.good[mutant.origin]
        model = read_onnx(good.path)
        changed = mutant.change(model)
        path = self.folder / str(number) / good.path.name
        make_folder(path.parent)
        onnx.save(model if changed is None else changed, path)
        bad = recorded(good, path)
        return {**self._gate(bad, mutant.origin), **self._losses(bad, mutant.origin)}

    def _gate(self, bad: Artifact, origin: str) -> dict[str, Any]:
        report = self._bench(bad, str(self.maps[origin]))
        found = judge(report, self.baselines[origin])
        (judgement,) = found.judgements
        reasons = [f"{f.title}: {f.text}" for f in judgement.reasons]
        return {"outcome": found.outcome, "why": reasons[0] if judgement.verdict != "pass" else ""}

    def _losses(self, bad: Artifact, origin: str) -> dict[str, Any]:
        """Return the mean and worst losses on the other photos, and whether one exceeds the limits of the policy."""
        now, was = self._effect(bad, origin), self.was[origin]
        values: dict[str, float] = {}
        for name, loss in LOSSES.items():
            each = [loss(a, b) for a, b in zip(now, was, strict=True) if name == "mae" or not b.empty]
            values |= {f"mean {name}": float(np.mean(each)), f"worst {name}": max(each)}
        limits = {f"{part} {m}": limit for part in ("mean", "worst") for m, limit in DEFAULTS[part].items()}
        beyond = [name for name, value in values.items() if value > limits[name]]
        finite = all(i.finite for i in now)
        return {"harmful": bool(beyond) or not finite, "losses": {k: round(v, 7) for k, v in values.items()}}

    def damaged(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield what the gate, or the opening of the artifact, says about damaged files."""
        good = self.good["onnx"]
        data = good.path.read_bytes()
        path = self.folder / "cut" / good.path.name
        make_folder(path.parent)
        path.write_bytes(data[: len(data) // 2])
        yield "file cut in half", {**self._gate(recorded(good, path), "onnx"), "harmful": True, "losses": {}}
        path.write_bytes(b"")
        yield "file empty", {**self._gate(recorded(good, path), "onnx"), "harmful": True, "losses": {}}
        recorded(good, path)
        path.write_bytes(data[:-4] + b"\0\0\0\1")
        try:
            read_artifact(path)
        except UserError as error:
            yield "file changed after its record was written", {
                "outcome": "fail", "why": f"opening it: {error.problem.replace(str(path), path.name)}",
                "harmful": True, "losses": {},
            }  # fmt: skip


def opened(folder: Path) -> dict[str, Artifact]:
    """Return the good artifacts of an earlier export."""
    names = {"onnx": "onnx-fp32", "uint8": "onnx-fp32-uint8", "int8": "ort-int8"}
    return {origin: read_artifact(folder / f"u2netp-320-{name}.onnx") for origin, name in names.items()}


def recorded(good: Artifact, path: Path) -> Artifact:
    """Return the artifact at a path, and write it a record like that of the good one."""
    artifact = replace(good, path=path, files=hashes(path))
    write_json(artifact.to_json(), artifact.record)
    return artifact


def sentence(found: Mapping[str, Any]) -> str:
    """Return what became of a fault."""
    if found["outcome"] == "pass":
        return "survived" if found["harmful"] else "equivalent"
    if found["outcome"] == "inconclusive":
        return "open"
    return "caught" if found["harmful"] else "caught, harmless on the other photos"


COLUMNS = ("mean mae", "worst mae", "mean iou", "worst iou")


def markdown(results: Mapping[str, Any]) -> str:
    """Return the Markdown page."""
    counts, score = results["counts"], results["score"]
    became = ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))
    text = f"""# Mutation score of the gate

{results["faults"]} faults in real exports of u2netp. Gate: {len(results["gate_photos"])} photos, default policy.
Effect: what masks of {results["other_photos"]} other photos lose against PyTorch's, compared with the good artifact's.
{results["seconds"]:.0f} s; again with

    {results["rerun"]}

Of {score["harmful"]} faults beyond the policy's limits on the other photos {score["caught"]} fail, {score["open"]} are
inconclusive (exit code 3, which stops a CI too) and {score["survived"]} pass. All faults: {became}.

"""
    titles = ("fault", "in", "gate", "what became of it", *COLUMNS, "why")
    rows = []
    for row in results["mutants"]:
        told = [f"{row['losses'][k]:+.2g}" if row["losses"] else "–" for k in COLUMNS]
        rows.append((row["fault"], row["origin"], row["outcome"], row["became"], *told, row["why"]))
    return text + table(titles, rows, "llllrrrrl") + "\n"


def options(parser: ArgumentParser) -> None:
    """Add the options of this study."""
    parser.add_argument("--good", type=Path, help="folder of exports without a fault; made anew if left out")
    parser.add_argument("--only", default="", help="study only the faults whose names contain this text")


def run(given: Namespace, pages: Pages) -> int:
    """Judge every fault, and write both pages; return 1 if the gate passed a harmful fault."""
    start = perf_counter()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="u2export-mutants-") as scratch:
        proof = Proof(Path(scratch), given.good)
        chosen = [m for m in catalogue(read_onnx(proof.good["onnx"].path)) if given.only in m.name]
        found = chain(
            ((m.name, m.origin, proof.judged(m, i)) for i, m in enumerate(chosen)),
            ((name, "onnx", result) for name, result in proof.damaged() if given.only in name),
        )
        for name, origin, result in found:
            rows.append({"fault": name, "origin": origin, **result, "became": sentence(result)})
            progress(f"{len(rows)} {name}: {rows[-1]['became']}")
        results = {"schema": 1, "rerun": pages.command, **summary(rows, proof, perf_counter() - start)}
    pages.publish(results, markdown(results))
    return int(results["score"]["survived"] > 0)


def summary(rows: list[dict[str, Any]], proof: Proof, seconds: float) -> dict[str, Any]:
    """Return all results as plain data."""
    harmful = [row for row in rows if row["harmful"]]
    outcomes = Counter(row["outcome"] for row in harmful)
    score = {"harmful": len(harmful), "caught": outcomes["fail"], "open": outcomes["inconclusive"],
             "survived": outcomes["pass"]}  # fmt: skip
    return {
        "environment": environment(), "seconds": round(seconds, 1), "gate_photos": list(proof.photos),
        "other_photos": len(proof.others), "policy": asdict(Policy()), "faults": len(rows),
        "counts": dict(Counter(row["became"] for row in rows)), "score": score, "mutants": rows,
    }  # fmt: skip


STUDY = Study("gate_mutants", "Does the gate catch faulty artifacts?", "mutants", options, run, RESULTS / "gate")
