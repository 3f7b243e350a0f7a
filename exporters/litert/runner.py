"""LiteRT's interpreter on the CPU: how a .tflite file is opened, what it takes and gives, and what really runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from u2export.errors import Unavailable, UserError
from u2export.exporters.litert.tflite import CONVOLUTIONS, stamp_of
from u2export.exporters.onnx_runtime import to_pixels
from u2export.exporters.runtime import Runner
from u2export.reference.image import Contract, Floats

if TYPE_CHECKING:
    from u2export.exporters.artifact import Artifact

DELEGATE = "DELEGATE"
HINT = "export it again, or give a .tflite file of U²-Net"


def open_runner(artifact: Artifact, arithmetic: str, threads: int) -> Runner:
    """Return the runner of an artifact; inputs and outputs may be channels first or last, float32 or quantised.

    Raises:
        UserError: LiteRT cannot open the file, or its input or output is not one picture.
        Unavailable: the convolutions compute in another arithmetic.
    """
    import ai_edge_litert

    start = perf_counter_ns()
    interpreter = _interpreter(artifact.path, threads)
    read = perf_counter_ns()
    try:
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"LiteRT cannot run {artifact.path}: {_last(error)}", HINT) from None
    opening = {"read": read - start, "compile": perf_counter_ns() - read}
    nodes = interpreter._get_ops_details()
    kinds = _arithmetics(nodes)
    ran = _most(kinds)
    if ran != arithmetic:
        raise Unavailable(f"{artifact.name}: asked for {arithmetic}, LiteRT runs {ran}", "choose another arithmetic")
    done, total = _delegated(nodes)
    info = {
        "runtime": f"LiteRT {ai_edge_litert.__version__}",
        "device": "CPU",
        "provider": "XNNPACK" if done else "LiteRT kernels",
        "arithmetic": ran,
        "convolutions": ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()),
        "delegated": f"{done} of {total} operations",
        "threads": str(threads),
    }
    entry, output = _ports(interpreter, artifact.path)
    return Runner(
        _predictor(interpreter, entry, output, artifact.contract), info, _feeder(entry, artifact.contract), opening
    )


def arithmetic_of(path: Path) -> str:
    """Return what the convolutions of a file compute in: "fp32", "int8", or "dynamic-int8" (see `_arithmetics`).

    Raises:
        UserError: LiteRT cannot open the file.
    """
    return _most(_arithmetics(_interpreter(path, 1)._get_ops_details()))


def contract_of_file(path: Path) -> Contract:
    """Return the contract that is stamped into a file, or else the standard contract with the file's input size.

    Raises:
        UserError: LiteRT cannot open the file, its stamp is damaged, or its input is not one picture.
    """
    entry, _ = _ports(_interpreter(path, 1), path)
    if stamped := stamp_of(path).get("contract"):
        try:
            return Contract.from_json(stamped)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{path}: its stamped contract is damaged ({error})", HINT) from None
    shape = [int(n) for n in entry["shape"][1:]]
    channels, height, width = shape if shape[0] in (1, 3) else (shape[2], *shape[:2])
    return replace(Contract(), height=height, width=width).with_channels(channels)


def _interpreter(path: Path, threads: int) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    try:
        return Interpreter(model_path=str(path), num_threads=threads)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"LiteRT cannot open {path}: {_last(error)}", HINT) from None


def _last(error: Exception) -> str:
    return next(reversed([line.strip() for line in str(error).splitlines() if line.strip()]), "it gives no reason")


def _ports(interpreter: Any, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the details of the input and of the first output, if both are one picture."""
    entries, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if len(entries) != 1 or not outputs:
        raise UserError(f"{path}: it has {len(entries)} inputs and {len(outputs)} outputs", HINT)
    for port in (entries[0], outputs[0]):
        shape = [int(n) for n in port["shape"]]
        if len(shape) != 4 or shape[0] != 1:
            raise UserError(f"{path}: {port['name']} has shape {shape}, not that of one picture", HINT)
    return entries[0], outputs[0]


def _arithmetics(nodes: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Return how many convolutions compute in what, by the types of their operands.

    "dynamic-int8" has float activations and int8 weights: its kernels quantise the activations when they run.
    """
    found: Counter[str] = Counter()
    for node in nodes:
        if node["op_name"] in CONVOLUTIONS:
            entry, weight = (np.dtype(kind).name for kind in node["operand_types"][:2])
            integers = weight in ("int8", "int4", "uint8")
            dynamic = integers and entry == "float32"
            found["dynamic-int8" if dynamic else {"float32": "fp32", "float16": "fp16"}.get(entry, entry)] += 1
    return found


def _most(kinds: Counter[str]) -> str:
    return kinds.most_common(1)[0][0] if kinds else "fp32"


def _delegated(nodes: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Return how many operations of the file a delegate runs, and how many there are.

    The list of nodes holds the file's own, and after these one node for each part that a delegate took over. A part
    replaces everything between its inputs and its outputs.
    """
    own = [node for node in nodes if node["op_name"] != DELEGATE]
    maker = {int(name): number for number, node in enumerate(own) for name in node["outputs"]}
    taken: set[int] = set()
    for part in (node for node in nodes if node["op_name"] == DELEGATE):
        stop = {int(name) for name in part["inputs"]}
        waiting = [int(name) for name in part["outputs"]]
        while waiting:
            name = waiting.pop()
            if name not in stop and (number := maker.get(name)) is not None and number not in taken:
                taken.add(number)
                waiting += [int(n) for n in own[number]["inputs"] if n >= 0]
    return len(taken), len(own)


def _channels_last(port: Mapping[str, Any], channels: int) -> bool:
    shape = [int(n) for n in port["shape"]]
    return shape[1] != channels and shape[3] == channels


def _feeder(entry: Mapping[str, Any], contract: Contract) -> Callable[[Floats], Any]:
    """Return what turns a network input (1, C, H, W) into what the file takes."""
    last = _channels_last(entry, contract.channels)
    kind, (scale, zero) = entry["dtype"], entry["quantization"]

    def feed(batch: Floats) -> Any:
        if kind == np.uint8 and not scale:
            pixels = to_pixels(batch, contract)
            return np.ascontiguousarray(pixels if last else pixels.transpose(0, 3, 1, 2))
        fed = np.ascontiguousarray(batch.transpose(0, 2, 3, 1)) if last else batch
        if scale:
            limits = np.iinfo(kind)
            return np.clip(np.rint(fed / scale) + zero, limits.min, limits.max).astype(kind)
        return fed.astype(kind, copy=False)

    return feed


def _predictor(
    interpreter: Any, entry: Mapping[str, Any], output: Mapping[str, Any], contract: Contract
) -> Callable[[Any], Floats]:
    """Return what runs the file and gives d0 (1, K, H, W)."""
    size = (contract.height, contract.width)
    last = tuple(output["shape"][1:3]) == size and tuple(output["shape"][2:]) != size
    scale, zero = output["quantization"]

    def predict(fed: Any) -> Floats:
        interpreter.set_tensor(entry["index"], fed)
        interpreter.invoke()
        d0 = np.asarray(interpreter.get_tensor(output["index"]), np.float32)  # a copy, not the interpreter's memory
        if scale:
            d0 = (d0 - np.float32(zero)) * np.float32(scale)
        return np.ascontiguousarray(d0.transpose(0, 3, 1, 2)) if last else d0

    return predict
