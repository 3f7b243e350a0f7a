"""The mask fidelity of Core ML packages without Core ML: exported, read back from disk, and executed on photos.

Everything in the pages is marked simulated: nothing has run on Apple hardware.
"""

from __future__ import annotations

import platform
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import TYPE_CHECKING, Any, cast

from u2export.benchmarks.models import ArtifactModel
from u2export.benchmarks.studies import photo_sets
from u2export.benchmarks.studies.photo_sets import Judge, Sets, head, judging, opened, references, summarise
from u2export.benchmarks.studies.study import RESULTS, Pages, Study, now, progress
from u2export.benchmarks.tables.markdown import table
from u2export.calibration.prepare import prepared
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.coreml.exporter import CoreML
from u2export.exporters.exporter import Request
from u2export.exporters.runtime import versions
from u2export.reference.fidelity import compare
from u2export.reference.image import Contract, Floats
from u2export.reference.source import Source

if TYPE_CHECKING:
    from u2export.reference.model import U2Net

SCHEMA = 1
ALL: Mapping[str, float] = {"mae": 1.0, "mae_worst": 1.0}  # variants beyond the budget are shown too


@dataclass(frozen=True)
class Variant:
    """One package to measure."""

    precision: str
    exporter: CoreML = CoreML()  # noqa: RUF009 - frozen
    condition: bool = True

    @property
    def label(self) -> str:
        """The name of the variant in the table."""
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


def cpu_ratio(source: Source, artifact: Artifact, arithmetic: str, x: Floats, rounds: int = 3) -> float:
    """Return the CPU time of the evaluation over that of PyTorch: in turns, on one thread, without the first turn."""
    spent = {"torch": 0.0, "mil": 0.0}
    with CoreML().load(artifact, arithmetic, threads=1) as runner:  # this limits PyTorch too
        for turn in range(rounds + 1):
            for name, predict in (("torch", source.predict), ("mil", runner)):
                start = process_time()
                predict(x)
                spent[name] += process_time() - start if turn else 0.0
    return spent["mil"] / spent["torch"]


def rows(
    source: Source, artifact: Artifact, variant: Variant, sets: Sets, few: int, judge: Judge
) -> Iterator[dict[str, Any]]:
    """Yield a row for each arithmetic and each set of photos. Only the first arithmetic gets more than `few` photos."""
    arithmetics = CoreML().arithmetics(artifact)
    for arithmetic in arithmetics:
        ratio = cpu_ratio(source, artifact, arithmetic, next(iter(sets.values()))[0][0])
        for name, photos in sets.items():
            chosen = photos if arithmetic == arithmetics[0] else judge.some(photos, few)
            images = judge.judged(ArtifactModel(artifact, arithmetic), chosen)
            progress(f"{variant.label}, {arithmetic}, {name}")
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
    """Yield the cost of pictures of 8 bits, without any conversion: PyTorch on rounded against exact resized photos."""
    for name, photos in sets.items():
        pairs = zip(references(source, photos), rounded[name], strict=True)
        images = [compare(got[0], exact[0]) for (_, exact), (_, got) in pairs]
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


HEAD = """# Core ML, simulated
Not run on hardware. Packages were saved, read back from disk and executed with PyTorch on a CPU, against the PyTorch
reference in fp32 fed the same pictures of 8 bits. Arithmetics: "fp16" rounds every fp16 tensor, "fp16 accumulate" also
every partial sum of a convolution, one product at a time (the most pessimistic order; hardware lies between), "fp32"
shows what the stored weights alone cost; these two on fewer photos. MAE and IoU are of masks stretched to 0..1;
photos in which the reference sees no object are counted apart, by d0 before stretching. CPU time is that of the
evaluation over that of PyTorch, in turns on one thread.
"""


def page(found: Sequence[Mapping[str, Any]], command: str) -> str:
    """Return the Markdown page."""
    titles = ("package", "MB", "arithmetic", "photos", "MAE mean / worst", "IoU mean / worst", "boundary F",
              "raw d0 MAE", "no object: photos, raw d0 MAE", "CPU time")  # fmt: skip
    cells = []
    for r in found:
        empty = r["empty"]
        apart = f"{empty['photos']}, {empty['raw_mae_worst']:.1g}" if empty["photos"] else "none"
        size = f"{r['bytes'] / 1e6:.2f}" if r["bytes"] else ""
        cells.append((
            r["variant"], size, r["arithmetic"], f"{r['photos']} {r['set']}",
            f"{r['mae']:.5f} / {r['mae_worst']:.5f}", f"{r['iou']:.4f} / {r['iou_worst']:.4f}",
            f"{r['boundary_f']:.4f}", f"{r['raw_mae']:.5f}", apart, f"{r['cpu_ratio']:.2f} x",
        ))  # fmt: skip
    return f"{HEAD}\nMade by `{command}`\n\n{table(titles, cells, 'lrllrrrrrr')}\n"


def options(parser: ArgumentParser) -> None:
    """Add the options of this study."""
    photo_sets.options(parser, photos=24)
    parser.add_argument("--calib-photos", type=int, default=16, help="number of calibration photos; %(default)s")
    parser.add_argument("--few", type=int, default=6, help="photos of each set for the other arithmetics; %(default)s")
    parser.add_argument("--variants", default="", help="labels, separated by semicolons; all variants by default")


def run(given: Namespace, pages: Pages) -> int:
    """Export every variant and measure it; write both pages after each variant."""
    source = Source.open(given.weights, Contract())
    calibration, photos = opened(given, source, given.calib_photos)
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "simulated",
        "rerun": pages.command,
        "machine": platform.machine(),
        "tools": versions("u2export", "torch", "coremltools", "numpy", "scikit-learn"),
        **head(source, calibration, photos),
        "created": now(),
    }
    on_8_bits = replace(source, contract=replace(source.contract, rounded=True))
    # The conditioned network is the same for all variants, see `calibration.condition`.
    conditioned = replace(source, model=cast("U2Net", prepared(source, "fp16", calibration)[0]))
    with judging(given) as judge:
        sets = {name: judge.pairs(on_8_bits, found) for name, found in photos.items()}
        data["rows"] = list(rounding(source, photos, sets))
        for variant in chosen(given.variants):
            start = conditioned if variant.condition else source
            with TemporaryDirectory() as scratch:
                request = Request(variant.precision, calibration, condition=False, budget=ALL)
                artifact = variant.exporter.export(start, Path(scratch), request)
                data["rows"] += rows(source, artifact, variant, sets, given.few, judge)
            data |= judge.about()
            pages.publish(data, page(data["rows"], pages.command))
    return 0


def chosen(labels: str) -> list[Variant]:
    """Return the variants with these labels; all variants if there is no label.

    Raises:
        UserError: there is no such label.
    """
    wanted = [label.strip() for label in labels.split(";") if label.strip()]
    known = {v.label: v for v in VARIANTS}
    if lost := [label for label in wanted if label not in known]:
        raise UserError(f"there is no variant {lost[0]!r}", f"choose from {'; '.join(known)}")
    return [known[label] for label in wanted or known]


STUDY = Study("coreml_fidelity", "The mask fidelity of Core ML packages, executed without Core ML.", "coreml", options,
              run, RESULTS / "simulated")  # fmt: skip
