"""An engine on disk: the engine itself, its layer table and its record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from u2export.exporters.artifact import Artifact, hashes
from u2export.exporters.trt.build import Built
from u2export.exporters.trt.installed import LOCAL, MODULES
from u2export.exporters.trt.layer_table import HIDDEN
from u2export.exporters.trt.options import Options
from u2export.exporters.trt.recipe import Recipe
from u2export.exporters.trt.trust import trust
from u2export.files import make_folder, publish, staging, write_json
from u2export.version import __version__

ENGINE, LAYERS = ".engine", ".layers.txt"
NOT_RUN = "not run on hardware"


def save_engine(built: Built, source: Artifact, recipe: Recipe, options: Options, folder: Path) -> Artifact:
    """Write an engine with its layer table and its record, and trust the engine on this machine.

    Args:
        built: the engine.
        source: the typed ONNX it was built from.
        recipe: the recipe it was built by.
        options: how it was built.
        folder: where the files go.

    Raises:
        UserError: the folder cannot be written.
    """
    stem = f"{source.path.stem}-{built.facts['runtime']}-{'-'.join(options.targets)}"
    make_folder(folder)
    with staging(folder) as scratch:
        path = scratch / (stem + ENGINE)
        path.write_bytes(built.plan)
        files = [path]
        if built.layers:
            files.append(path.with_name(stem + LAYERS))
            files[-1].write_text(built.layers, encoding="utf-8")
        made = replace(
            source, exporter="trt", precision=recipe.precision, path=folder / path.name,
            files=hashes(path, *files[1:]),
            tools={"u2export": __version__, MODULES[built.facts["runtime"]]: str(built.facts["version"])},
            options={
                "recipe_sha256": recipe.sha256, "build": options.to_json(), **built.facts,
                "table": built.table.to_json() if built.table else {},
                "precisions": built.comparison.to_json() if built.comparison else {},
            },
            fidelity={}, notes=tuple(_notes(built, options, source)),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )  # fmt: skip
        made.record.unlink(missing_ok=True)
        for file in files:
            publish(file, folder / file.name)
        write_json(made.to_json(), made.record)
    trust(made.path)
    return made


def _notes(built: Built, options: Options, source: Artifact) -> Iterator[str]:
    """What a reader of a table must know about an engine."""
    if options.targets != (LOCAL,):
        title = f"TensorRT-RTX {built.facts['version']} for {', '.join(options.targets)}"
        yield f"built ahead of time with {title}, structure checked, {NOT_RUN}"
    if not built.comparison:
        yield "its layer table could not be read: precisions not confirmed"
    elif hidden := sum(got == HIDDEN for got in built.comparison.got.values()):
        yield f"TensorRT does not show what {hidden} convolutions compute in: not confirmed"
    if source.fidelity:
        mae = source.fidelity["mae"]
        yield f"masks of its graph in ONNX Runtime: MAE {mae:.2g}; masks of the engine: not measured"
    if built.facts["runtime"] == "rtx" and source.precision == "int8":
        yield "fp16 is advised on RTX: RTX requantises behind every int8 convolution, which moves more memory"
