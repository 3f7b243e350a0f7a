"""The ExecuTorch target: a .pte program for XNNPACK, run by ExecuTorch's own runtime."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from u2export.calibration.prepare import prepared
from u2export.errors import Unavailable, UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.executorch.program import HINT, METHOD, Contents, read_contents, stamped_methods
from u2export.exporters.exporter import Exporter, Made, Request
from u2export.exporters.quiet import quiet
from u2export.exporters.runtime import Runner, versions
from u2export.reference import stamp
from u2export.reference.image import Contract, Floats

if TYPE_CHECKING:
    import torch

    from u2export.reference.model import U2Net
    from u2export.reference.source import Source

TOOLS = ("torch", "executorch", "torchao")
# Photos of a calibration; more only add outliers, which widen the ranges.
PHOTOS = 32
# Below this part of the work in XNNPACK, a program is much slower than it could be.
ENOUGH = 0.95


@dataclass(frozen=True)
class ExecuTorch(Exporter):
    """A .pte program for XNNPACK, static in size, d0 only; (1, C, H, W) float32 to (1, K, H, W) float32."""

    name: ClassVar[str] = "executorch"
    title: ClassVar[str] = "ExecuTorch"
    suffix: ClassVar[str] = ".pte"
    precisions: ClassVar[Sequence[str]] = ("fp32", "int8")
    calibrated: ClassVar[Sequence[str]] = ("int8",)
    needs: ClassVar[Sequence[str]] = ("torch", "executorch")
    extra: ClassVar[str] = "executorch"
    when: ClassVar[str] = "an app takes its models from PyTorch; the smallest int8 file"

    def arithmetics(self, artifact: Artifact) -> Sequence[str]:
        """The one arithmetic of the program, by the types of its convolutions."""
        return (read_contents(artifact.path).arithmetic,)

    def adopts(self, path: Path) -> bool:
        """Whether a file without a record is a .pte."""
        return path.suffix == self.suffix

    def contract_of(self, path: Path) -> Contract:
        """The contract that u2export stamped into a program; otherwise the standard one with its input size.

        Raises:
            UserError: the file cannot be read, or its input is not one picture.
            Unavailable: ExecuTorch is not installed.
        """
        if problem := self.missing_runtime():
            raise problem
        held = read_contents(path)
        if stamped := stamp.read(held.texts).get("contract"):
            return Contract.from_json(stamped)
        shape = [int(n) for n in held.inputs[0].shape] if len(held.inputs) == 1 else []
        if len(shape) != 4:
            raise UserError(f"{path}: its input is not one picture (N, C, H, W)", HINT)
        return replace(Contract(), height=shape[2], width=shape[3]).with_channels(shape[1])

    def _export(self, source: Source, path: Path, request: Request) -> Made:
        tools = versions(*TOOLS)
        module, report = prepared(source, request.precision, request.calibration, request.condition)
        texts = stamp.texts(source.contract, source.stamp(request.precision, tools), graph=asdict(self))
        photos = request.calibration.subset(PHOTOS) if request.calibration and request.precision == "int8" else ()
        path.write_bytes(program_of(cast("U2Net", module), source.contract, photos, texts))
        return Made(tools=tools, condition=report, notes=_notes(read_contents(path)))

    @contextmanager
    def _load(self, artifact: Artifact, arithmetic: str, threads: int) -> Iterator[Runner]:
        import torch
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        held = read_contents(artifact.path)
        if held.arithmetic != arithmetic:
            problem = f"{artifact.name}: asked for {arithmetic}, the program computes in {held.arithmetic}"
            raise Unavailable(problem, "choose another arithmetic")
        portable_lib._unsafe_reset_threadpool(threads)
        start = perf_counter_ns()
        try:
            program = Runtime.get().load_program(str(artifact.path))
            read = perf_counter_ns()
            method: Any = program.load_method(METHOD)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"ExecuTorch cannot open {artifact.path}: {error}", HINT) from None
        opening = {"read": read - start, "compile": perf_counter_ns() - read}

        def predict(fed: Floats) -> Floats:
            d0: torch.Tensor = method.execute([torch.from_numpy(fed)])[0]
            return np.array(d0.numpy(), np.float32)  # a copy: the next call writes to the same memory

        info = {
            "runtime": f"ExecuTorch {versions('executorch')['executorch']}",
            "device": "CPU",
            "provider": "XNNPACK" if held.delegated else "ExecuTorch kernels",
            "arithmetic": held.arithmetic,
            "convolutions": f"{len(held.layers)} {held.arithmetic} in XNNPACK",
            "delegated": f"{held.share:.1%} of the work",
            "threads": str(portable_lib._threadpool_get_thread_count()),
        }
        yield Runner(predict, info, np.ascontiguousarray, opening)


def program_of(network: U2Net, contract: Contract, photos: Sequence[Floats] | Any, texts: Any) -> bytes:
    """Return the program of a network.

    Args:
        network: the network; it is not changed.
        contract: its image contract, and with it the input size.
        photos: network inputs to calibrate int8 with; none for fp32.
        texts: the stamp, keys without prefix.
    """
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    class D0(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            d0: torch.Tensor = self.network(image)[0]
            return d0

    example = (torch.zeros(contract.shape),)
    with quiet(), torch.no_grad():
        module: torch.nn.Module = D0().eval()
        if len(photos):
            module = _quantised(module, example, photos)
        exported = torch.export.export(module, example)
        lowered = to_edge_transform_and_lower(
            exported, partitioner=[XnnpackPartitioner()], constant_methods=stamped_methods(texts)
        )
        return bytes(lowered.to_executorch().buffer)


def _quantised(module: torch.nn.Module, example: tuple[torch.Tensor, ...], photos: Any) -> torch.nn.Module:
    """The module with int8 weights per channel and int8 activations, calibrated on the photos."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    wanted = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
    observed = prepare_pt2e(torch.export.export(module, example).module(), XNNPACKQuantizer().set_global(wanted))
    for photo in photos:
        observed(torch.from_numpy(photo))
    quantised: torch.nn.Module = convert_pt2e(observed)
    return quantised


def _notes(held: Contents) -> tuple[str, ...]:
    """What a reader must know of where the program runs; a warning in the log where XNNPACK left much."""
    done, left = sum(held.delegated.values()), sum(held.other.values())
    note = f"XNNPACK: {held.share:.1%} of the work, {done} of {done + left} operations"
    if held.share < ENOUGH:
        logging.getLogger(__name__).warning("%s; the rest runs in slow kernels: %s", note, ", ".join(held.other))
    return (note,)
