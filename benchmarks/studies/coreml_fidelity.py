"""Mask fidelity of Core ML packages without Core ML: exported, then executed from the saved file, on photos.

    python -m u2export.benchmarks.studies.coreml_fidelity --calib CALIBRATION_FOLDER SET=FOLDER ...

Writes `coreml.json` and `coreml.md`. Everything in them is marked simulated: nothing has run on Apple hardware.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import TYPE_CHECKING, Any, cast

from u2export.benchmarks.studies.photo_sets import Pair, Sets, folders, judged, photos_in, references
from u2export.calibration.dataset import Calibration
from u2export.calibration.prepare import prepared
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.coreml.exporter import CoreML
from u2export.exporters.exporter import Request, versions
from u2export.files import write_json, write_text
from u2export.reference.fidelity import Fidelity, ImageFidelity, compare
from u2export.reference.image import Contract, Floats
from u2export.reference.source import Source
from u2export.reference.spread import evenly_spread

if TYPE_CHECKING:
    from u2export.reference.model import U2Net

SCHEMA = 1
ALL: Mapping[str, float] = {"mae": 1.0, "mae_worst": 1.0}  # what misses its budget is measured too, and shown


@dataclass(frozen=True)
class Variant:
    """One package to measure."""

    precision: str
    exporter: CoreML = CoreML()  # noqa: RUF009 - frozen
    condition: bool = True

    @property
    def label(self) -> str:
        """What the table calls it."""
        e = self.exporter
        marks = [*([f"groups of {e.group}"] if e.group else []), *([f"{e.output} out"] if e.output != "tensor" else [])]
        marks += [] if self.condition else ["not conditioned"]
        return ", ".join([self.precision, *marks])


VARIANTS = (
    Variant("fp32"),
    Variant("fp16"),
    Variant("fp16", CoreML(output="image")),
    Variant("fp16", condition=False),
    Variant("int8"),
    Variant("int8", condition=False),
    Variant("palette8"),
    Variant("palette6"),
    Variant("palette6", CoreML("ios18", group=8)),
    Variant("palette4"),
    Variant("w8a8", CoreML("ios17")),
)


def measure(artifact: Artifact, arithmetic: str, photos: Sequence[Pair]) -> list[ImageFidelity]:
    """Fidelity per photo."""
    with CoreML().load(artifact, arithmetic) as runner:
        return judged(runner, photos)


def cpu_ratio(source: Source, artifact: Artifact, arithmetic: str, x: Floats, rounds: int = 3) -> float:
    """CPU time of the evaluation over that of PyTorch, in turns on one thread, the first turn left out."""
    spent = {"torch": 0.0, "mil": 0.0}
    with CoreML().load(artifact, arithmetic, threads=1) as runner:  # holds for PyTorch as well
        for turn in range(rounds + 1):
            for name, predict in (("torch", source.predict), ("mil", runner)):
                start = process_time()
                predict(x)
                spent[name] += process_time() - start if turn else 0.0
    return spent["mil"] / spent["torch"]


def summarise(images: Sequence[ImageFidelity]) -> dict[str, Any]:
    """Statistics of the photos in which the reference sees an object, and of the others apart."""
    shown, empty = [i for i in images if not i.empty], [i for i in images if i.empty]
    apart = {"photos": len(empty), "raw_mae_worst": max((i.raw_mae for i in empty), default=0.0)}
    return {**Fidelity(tuple(shown)).to_json(), "empty": apart}


def rows(source: Source, artifact: Artifact, variant: Variant, sets: Sets, few: int) -> Iterator[dict[str, Any]]:
    """One row for each arithmetic and set of photos; arithmetics other than the one meant get `few` photos."""
    arithmetics = CoreML().arithmetics(artifact)
    for arithmetic in arithmetics:
        ratio = cpu_ratio(source, artifact, arithmetic, next(iter(sets.values()))[0][0])
        for name, photos in sets.items():
            chosen = photos if arithmetic == arithmetics[0] else evenly_spread(photos, few)
            images = measure(artifact, arithmetic, chosen)
            print(f"{variant.label}, {arithmetic}, {name}", file=sys.stderr)
            yield {
                "variant": variant.label,
                "target": artifact.options["target"],
                "bytes": artifact.size,
                "arithmetic": arithmetic,
                "set": name,
                "cpu_ratio": ratio,
                **summarise(images),
                "notes": list(artifact.notes),
            }


def rounding(source: Source, sets: Mapping[str, Sequence[Path]], rounded: Sets) -> Iterator[dict[str, Any]]:
    """What a picture of 8 bits costs before any conversion: PyTorch on rounded against unrounded resized photos."""
    for name, photos in sets.items():
        pairs = zip(references(source, photos), rounded[name], strict=True)
        images = [compare(got[0, 0], exact[0, 0]) for (_, exact), (_, got) in pairs]
        yield {
            "variant": "PyTorch on 8-bit pictures",
            "target": "",
            "bytes": 0,
            "arithmetic": "fp32",
            "set": name,
            "cpu_ratio": 1.0,
            **summarise(images),
            "notes": [],
        }


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    head = (
        "| package | MB | arithmetic | photos | MAE mean / worst | IoU mean / worst | boundary F | raw d0 MAE "
        "| no object: photos, raw d0 MAE | CPU time |\n|---|--:|---|---|--:|--:|--:|--:|--:|--:|\n"
    )
    lines = []
    for r in found:
        empty = r["empty"]
        apart = f"{empty['photos']}, {empty['raw_mae_worst']:.1g}" if empty["photos"] else "none"
        size = f"{r['bytes'] / 1e6:.2f}" if r["bytes"] else ""
        lines.append(
            f"| {r['variant']} | {size} | {r['arithmetic']} | {r['photos']} {r['set']} "
            f"| {r['mae']:.5f} / {r['mae_worst']:.5f} | {r['iou']:.4f} / {r['iou_worst']:.4f} "
            f"| {r['boundary_f']:.4f} | {r['raw_mae']:.5f} | {apart} | {r['cpu_ratio']:.2f} x |\n"
        )
    return head + "".join(lines)


HEAD = """# Core ML, simulated
Not run on hardware. Packages were saved, read back from disk and executed with PyTorch on a CPU, against the PyTorch
reference in fp32 fed the same pictures of 8 bits. Arithmetics: "fp16" rounds every fp16 tensor, "fp16 accumulate" also
every partial sum of a convolution, one product at a time (the most pessimistic order; hardware lies between), "fp32"
shows what the stored weights alone cost; these two on fewer photos. MAE and IoU are of masks stretched to 0..1;
photos in which the reference sees no object are counted apart, by d0 before stretching. CPU time is that of the
evaluation over that of PyTorch, in turns on one thread.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Export every variant, measure it, and write both files; the files are rewritten after each variant."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER", help="photos to measure on")
    parser.add_argument("--calib", type=Path, required=True, help="photos to calibrate on, others than those")
    parser.add_argument("--calib-photos", type=int, default=16)
    parser.add_argument("--photos", type=int, default=24, help="of each set, evenly spread")
    parser.add_argument("--few", type=int, default=6, help="of these, for arithmetics other than the one meant")
    parser.add_argument("--weights", default="u2netp")
    parser.add_argument("--variants", default="", help="labels, separated by semicolons; all by default")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/simulated"))
    given = parser.parse_args(argv)
    source = Source.open(given.weights, Contract())
    named = folders(given.sets)
    calibration = Calibration.open(given.calib, source.contract, avoid=list(named.values()), limit=given.calib_photos)
    photos = photos_in(named, given.photos)
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "simulated",
        "weights": {"name": source.weights.name, "sha256": source.weights.sha256},
        "contract": source.contract.to_json(),
        "machine": platform.machine(),
        "tools": versions("u2export", "torch", "coremltools", "numpy", "scikit-learn"),
        "calibration": calibration.summary(),
        "photos": {name: [p.name for p in found] for name, found in photos.items()},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    rounded = replace(source, contract=replace(source.contract, rounded=True))
    sets = {name: list(references(rounded, found)) for name, found in photos.items()}
    data["rows"] = list(rounding(source, photos, sets))
    # Once for all variants; the network is the same, see `condition`.
    conditioned = replace(source, model=cast("U2Net", prepared(source, "fp16", calibration)[0]))
    for variant in chosen(given.variants):
        start = conditioned if variant.condition else source
        with TemporaryDirectory() as scratch:
            request = Request(variant.precision, calibration, condition=False, budget=ALL)
            artifact = variant.exporter.export(start, Path(scratch), request)
            data["rows"] += rows(source, artifact, variant, sets, given.few)
        write_json(data, given.out / "coreml.json")
        write_text(f"{HEAD}\n{table(data['rows'])}", given.out / "coreml.md")


def chosen(labels: str) -> list[Variant]:
    """The variants of those labels, all for none.

    Raises:
        UserError: no such label.
    """
    wanted = [label.strip() for label in labels.split(";") if label.strip()]
    known = {v.label: v for v in VARIANTS}
    if lost := [label for label in wanted if label not in known]:
        raise UserError(f"no variant {lost[0]!r}", f"choose among {'; '.join(known)}")
    return [known[label] for label in wanted or known]


if __name__ == "__main__":
    main()
