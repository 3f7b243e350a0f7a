"""Which output of somebody else's ONNX file is the fused map d0, whether it holds logits, and how the file is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from u2export.errors import UserError
from u2export.exporters.layout import Fed, Layout, as_maps, read_layout
from u2export.exporters.onnx_outline import Outline, read_outline
from u2export.exporters.runtime import Assumed, Runner
from u2export.reference import stamp
from u2export.reference.classes import SLACK
from u2export.reference.image import Contract, Floats, sigmoid
from u2export.reference.weights import contract_of

# Names of d0 where the graph does not tell: the paper's, ours, the usual one, and that of the published files.
NAMES = ("d0", "mask", "output", "1959")


@dataclass(frozen=True)
class Output:
    """The output that is read, whether it holds logits (None: the graph does not tell), and how it was chosen."""

    name: str
    logits: bool | None
    why: str


def assume(path: Path, session: Any, output_name: str) -> Assumed:
    """What is assumed of a file without a record.

    Args:
        path: the file. session: an ONNX Runtime session of it.
        output_name: the output to take for d0; empty to find it.

    Raises:
        UserError: the input is no picture of floats, the file has no such output, or d0 cannot be told among several.
    """
    layout = read_layout(path, session)
    stamped = stamp.read(session.get_modelmeta().custom_metadata_map)
    if layout.dtype == "uint8" and not (layout.channels_last and "contract" in stamped):
        raise UserError(
            f"{path}: its input takes uint8, and nothing tells how it scales pixels",
            "give its record too, or a model that takes floats",
        )
    standard = Contract.from_json(stamped["contract"]) if "contract" in stamped else contract_of(str(path))
    contract = layout.contract(standard)
    outline = read_outline(path)
    output = choose(path, session.get_outputs(), (contract.height, contract.width), outline, output_name)
    logits = False if layout.dtype == "uint8" else output.logits
    if logits is None:
        logits = _gives_logits(path, session, layout, contract, output.name)
    notes = [
        _contract_note(standard, "contract" in stamped),
        *layout.notes(contract),
        *_output_notes(output, session.get_outputs(), logits),
    ]
    options = {"output": output.name, "logits": logits, "named": bool(output_name)}
    precision = outline.precision if outline else "fp32"
    return Assumed(contract, precision, options, tuple(notes))


def _contract_note(standard: Contract, stamped: bool) -> str:
    if stamped:
        return "no record: image contract read from the file"
    published = standard != Contract()  # of the published weights, which the hash of the file tells
    return (
        f"no record: {'image contract of these published weights' if published else 'default image contract assumed'}"
    )


def _output_notes(output: Output, outputs: Sequence[Any], logits: bool) -> Iterator[str]:
    if len(outputs) > 1:
        at = [o.name for o in outputs].index(output.name) + 1
        yield f"d0 is output {output.name} ({at} of {len(outputs)}), {output.why}"
    if len(next(o for o in outputs if o.name == output.name).shape) < 4:
        yield f"output {output.name} has no axis for channels: taken as one map"
    if logits:
        yield f"output {output.name} holds logits: u2export applies the sigmoid"


def choose(path: Path, outputs: Sequence[Any], size: tuple[int, int], outline: Outline | None, wanted: str) -> Output:
    """The output that is d0: the one that is wanted, the only one, or the one that the graph or a name tells.

    Args:
        path: the file.
        outputs: those of an ONNX Runtime session, with `name` and `shape`.
        size: height and width of the network input.
        outline: the graph, where it can be read.
        wanted: the name that the user gave; empty for none.

    Raises:
        UserError: there is no output of that name, none is a map of the input's size, or several may be d0.
    """
    names = [o.name for o in outputs]
    possible = [o.name for o in outputs if _may_be_map(o.shape, size)]
    if wanted and wanted not in names:
        raise UserError(f"{path}: no output is named {wanted!r}", f"choose among {', '.join(names)}", "output_name")
    if not possible:
        shapes = ", ".join(f"{o.name} {o.shape}" for o in outputs)
        raise UserError(f"{path}: no output is a map of the input's size: {shapes}", "give a U²-Net in ONNX")
    if wanted:
        return Output(wanted, outline.holds_logits(wanted) if outline else None, "as you named it")
    name, why = _found(possible, outline)
    if not name:
        raise UserError(
            f"{path}: {len(possible)} outputs may be the fused map d0, and nothing tells which: {', '.join(possible)}",
            "name it",
            "output_name",
        )
    return Output(name, outline.holds_logits(name) if outline else None, why)


def _found(possible: Sequence[str], outline: Outline | None) -> tuple[str, str]:
    """The output that is d0 among several, and what tells so; empty where nothing does."""
    if len(possible) == 1:
        return possible[0], "the only map of the input's size"
    fused = [name for name in possible if outline and outline.is_fused(name)]
    # Some files give d0 twice, before and after its sigmoid.
    ended = [name for name in fused if outline and outline.holds_logits(name) is False]
    for found in (fused, ended):
        if len(found) == 1:
            return found[0], "the map that the graph fuses of the others"
    named = [name for name in possible if name.lower() in NAMES]
    if not fused and len(named) == 1:
        return named[0], "by its name alone"
    return "", ""


def _may_be_map(shape: Sequence[Any], size: tuple[int, int]) -> bool:
    """Whether two neighbouring axes of an output have the input's height and width, or lengths that are not fixed."""
    pairs = {4: ((2, 3), (1, 2)), 3: ((1, 2),), 2: ((0, 1),)}.get(len(shape), ())
    return any(
        all(not isinstance(shape[axis], int) or shape[axis] == side for axis, side in zip(pair, size, strict=True))
        for pair in pairs
    )


def _gives_logits(path: Path, session: Any, layout: Layout, contract: Contract, output: str) -> bool:
    """Whether the values of an output on a test picture lie outside 0..1.

    Raises:
        UserError: they are neither maps nor logits, or the file does not run.
    """
    yy, xx = np.mgrid[0 : contract.height, 0 : contract.width]
    disc = (yy / contract.height - 0.5) ** 2 + (xx / contract.width - 0.5) ** 2 < 0.1
    pixels = np.repeat(np.where(disc, 220, 40).astype(np.uint8)[..., None], contract.channels, -1)
    fed = layout.feed(contract.tensor(pixels))
    values = _run(path.name, session, layout, output, fed)
    low, high = float(values.min()), float(values.max())
    if low >= -SLACK and high <= 1 + SLACK:
        return False
    if low < 0:
        return True
    raise UserError(
        f"{path}: output {output} gives {low:.3g} to {high:.3g}, neither a map in 0..1 nor logits",
        "name another output",
        "output_name",
    )


def _run(name: str, session: Any, layout: Layout, output: str, fed: Fed) -> Floats:
    try:
        return np.asarray(session.run([output], {layout.name: fed.values})[0], np.float32)
    except Exception as error:  # the runtime's own classes of errors have no common base
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        raise UserError(
            f"{name}: ONNX Runtime cannot run it on {fed.values.dtype} {fed.values.shape}: {said}",
            "export it with another input shape",
        ) from None


def runner_of_foreign(session: Any, path: Path, contract: Contract, options: Any, info: dict[str, str]) -> Runner:
    """The runner of a file without a record; `options` are those of `assume`."""
    layout, output = read_layout(path, session), options["output"]

    def predict(fed: Fed) -> Floats:
        values = _run(path.name, session, layout, output, fed)
        return maps_of(values, path, contract, options, len(fed.values))[: fed.rows]

    return Runner(predict, info, layout.feed)


def maps_of(values: Floats, path: Path, contract: Contract, options: Any, batch: int) -> Floats:
    """The maps d0 (batch, K, H, W) in the output of a file without a record; `options` are those of `assume`.

    Raises:
        UserError: the output has another shape, or its values are no maps in 0..1.
    """
    what = f"{path.name}: output {options['output']}"
    maps = as_maps(values, (contract.height, contract.width), what, batch)
    if options["logits"]:
        return sigmoid(maps)
    if maps.min() < -SLACK or maps.max() > 1 + SLACK:
        raise UserError(
            f"{what} gives {maps.min():.3g} to {maps.max():.3g}, not a map in 0..1", "name another output",
            "output_name",
        )  # fmt: skip
    return maps
