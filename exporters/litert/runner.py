"""LiteRT's interpreter on the CPU: how a .tflite file is opened, what it takes and gives, and what really runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from u2export.errors import Unavailable, UserError
from u2export.exporters.litert.tflite import CONVOLUTIONS, one_operation, stamp_of
from u2export.exporters.onnx_runtime import to_pixels
from u2export.exporters.quiet import quiet_library
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
    _allocate(interpreter, artifact.path)
    opening = {"read": read - start, "compile": perf_counter_ns() - read}
    nodes = interpreter._get_ops_details()
    ran = _arithmetic(interpreter)
    kinds = Counter(kind for kind, _ in _convolutions(interpreter))
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


def predictor_of(path: Path, contract: Contract, threads: int) -> Callable[[Floats], Floats]:
    """Return what computes d0 (1, K, H, W) of a network input (1, C, H, W) with a file of this project.

    Raises:
        UserError: as `open_runner`.
    """
    interpreter = _interpreter(path, threads)
    _allocate(interpreter, path)
    entry, output = _ports(interpreter, path)
    feed, predict = _feeder(entry, contract), _predictor(interpreter, entry, output, contract)
    return lambda batch: predict(feed(batch))


def arithmetic_of(path: Path) -> str:
    """Return what the convolutions of a file compute in: "fp32", "int8", or "dynamic-int8" (see `_convolutions`).

    Raises:
        UserError: LiteRT cannot open the file.
    """
    return _arithmetic(_interpreter(path, 1))


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


@cache
def introduce() -> None:
    """Let LiteRT say that it uses XNNPACK where nobody reads it: it says so once a process, on standard error.

    A model of one operation is enough for that, so the errors about files are never hidden.
    """
    from ai_edge_litert.interpreter import Interpreter

    with quiet_library():
        Interpreter(model_content=one_operation(), num_threads=1).allocate_tensors()


def _interpreter(path: Path, threads: int) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    introduce()
    try:
        return Interpreter(model_path=str(path), num_threads=threads)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"LiteRT cannot open {path}: {_last(error)}", HINT) from None


def _allocate(interpreter: Any, path: Path) -> None:
    try:
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"LiteRT cannot run {path}: {_last(error)}", HINT) from None


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


def _convolutions(interpreter: Any) -> Iterator[tuple[str, int]]:
    """Yield what each convolution computes in, by the types of its operands, and its multiply-accumulates.

    "dynamic-int8" has float activations and int8 weights: its kernels quantise the activations when they run.
    """
    for node in interpreter._get_ops_details():
        if node["op_name"] in CONVOLUTIONS:
            entry, weight = (np.dtype(kind).name for kind in node["operand_types"][:2])
            kind = {"float32": "fp32", "float16": "fp16"}.get(entry, entry)
            dynamic = weight in ("int8", "int4", "uint8") and entry == "float32"
            made, kernel = (
                interpreter._get_tensor_details(int(number), 0)["shape"]
                for number in (node["outputs"][0], node["inputs"][1])
            )
            yield "dynamic-int8" if dynamic else kind, int(np.prod(made)) * int(np.prod(kernel[1:]))


def _arithmetic(interpreter: Any) -> str:
    """What most of the multiply-accumulates are computed in."""
    work: Counter[str] = Counter()
    for kind, count in _convolutions(interpreter):
        work[kind] += count
    return work.most_common(1)[0][0] if work else "fp32"


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
