"""The ExecuTorch target: a .pte program for XNNPACK, run by ExecuTorch's own runtime."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from u2export.calibration.prepare import prepared
from u2export.errors import Unavailable, UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.executorch.program import HINT, METHOD, Contents, read_contents, stamped_methods
from u2export.exporters.executorch.quantisation import quantised
from u2export.exporters.exporter import Exporter, Made, Request
from u2export.exporters.int8 import ORDERING, FloatLayers, float_layers
from u2export.exporters.quiet import quiet, quiet_library
from u2export.exporters.runtime import Runner, missing_modules, processors, versions
from u2export.reference import stamp
from u2export.reference.image import Contract, Floats

if TYPE_CHECKING:
    import torch

    from u2export.reference.fidelity import Fidelity
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
    needs: ClassVar[Sequence[str]] = ("torch", "executorch", *ORDERING)
    extra: ClassVar[str] = "executorch"
    when: ClassVar[str] = "an app takes its models from PyTorch; the smallest int8 file"

    def missing_runtime(self) -> Unavailable | None:
        """Why this machine cannot run the artifacts; only an export needs what orders float layers."""
        return missing_modules(self.title, ("torch", "executorch"), self.extra)

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
        network = cast("U2Net", module)
        lowering = _Lowering(network, source.contract, texts)
        floats = FloatLayers()
        if request.precision == "int8":
            floats = self._write_int8(lowering, network, source, path, request)
        else:
            path.write_bytes(lowering.program())
        notes = (*_notes(read_contents(path)), *filter(None, [floats.note]))
        return Made(tools=tools, condition=report, notes=notes, added_float=floats.added)

    def _write_int8(
        self, lowering: _Lowering, network: U2Net, source: Source, path: Path, request: Request
    ) -> FloatLayers:
        """Write the int8 program, and return the float layers that it needs to keep the budget.

        ExecuTorch judges pure int8. To lower a network takes long, so PyTorch judges it with float layers.
        """
        assert request.calibration
        photos, more = request.calibration.subset(PHOTOS), request.held_back or ()
        path.write_bytes(lowering.program(lowering.int8(photos, ())))

        def judge(floats: Collection[str]) -> Fidelity:
            if floats:
                return source.compare(_predictor(lowering.int8(photos, floats)), more)
            return source.compare(_opened(path, processors())[0], more)

        found = float_layers(self, network, source, request, judge)
        if found.names:
            path.write_bytes(lowering.program(lowering.int8(photos, found.names)))
        return found

    @contextmanager
    def _load(self, artifact: Artifact, arithmetic: str, threads: int) -> Iterator[Runner]:
        from executorch.extension.pybindings import portable_lib

        held = read_contents(artifact.path)
        if held.arithmetic != arithmetic:
            problem = f"{artifact.name}: asked for {arithmetic}, the program computes in {held.arithmetic}"
            raise Unavailable(problem, "choose another arithmetic")
        predict, opening = _opened(artifact.path, threads)
        info = {
            "runtime": f"ExecuTorch {versions('executorch')['executorch']}",
            "device": "CPU",
            "provider": "XNNPACK" if held.delegated else "ExecuTorch kernels",
            "arithmetic": held.arithmetic,
            "convolutions": f"{', '.join(f'{n} {kind}' for kind, n in held.kinds.most_common())} in XNNPACK",
            "delegated": f"{held.share:.1%} of the work",
            "threads": str(portable_lib._threadpool_get_thread_count()),
        }
        yield Runner(predict, info, np.ascontiguousarray, opening)


def _opened(path: Path, threads: int) -> tuple[Callable[[Floats], Floats], dict[str, int]]:
    """What runs a program, and the ns that reading and preparing it took.

    Raises:
        UserError: ExecuTorch cannot open the file.
    """
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    with quiet_library():  # it tells of files about processors, and of this call
        portable_lib._unsafe_reset_threadpool(threads)
    start = perf_counter_ns()
    try:
        program = Runtime.get().load_program(str(path))
        read = perf_counter_ns()
        held: Any = (program, program.load_method(METHOD))  # the method reads the program's memory
    except (RuntimeError, ValueError) as error:
        raise UserError(f"ExecuTorch cannot open {path}: {error}", HINT) from None

    def predict(fed: Floats) -> Floats:
        d0: torch.Tensor = held[1].execute([torch.from_numpy(fed)])[0]
        return np.array(d0.numpy(), np.float32)  # a copy: the next call writes to the same memory

    return predict, {"read": read - start, "compile": perf_counter_ns() - read}


class _Lowering:
    """A network that becomes programs.

    Args:
        network: the network; it is not changed.
        contract: its image contract, and with it the input size.
        texts: the stamp, keys without prefix.
    """

    def __init__(self, network: U2Net, contract: Contract, texts: Mapping[str, str]) -> None:
        import torch

        class D0(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, image: torch.Tensor) -> torch.Tensor:
                d0: torch.Tensor = self.network(image)[0]
                return d0

        self.module, self.texts = D0().eval(), texts
        self.example = (torch.zeros(contract.shape),)

    @cached_property
    def exported(self) -> Any:
        """The graph of the network in fp32, by `torch.export`."""
        import torch

        return torch.export.export(self.module, self.example)

    def int8(self, photos: Iterable[Floats], floats: Collection[str]) -> torch.nn.Module:
        """The module in int8, calibrated on the photos, with these convolutions of the network in float."""
        import torch

        with quiet(), torch.no_grad():
            return quantised(self.exported.module(), photos, floats)

    def program(self, module: torch.nn.Module | None = None) -> bytes:
        """The program of the int8 module; without one, that of the network in fp32."""
        import torch

        with quiet(), quiet_library():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
        with quiet(), torch.no_grad():
            exported = torch.export.export(module, self.example) if module else self.exported
            lowered = to_edge_transform_and_lower(
                exported, partitioner=[XnnpackPartitioner()], constant_methods=stamped_methods(self.texts)
            )
            return bytes(lowered.to_executorch().buffer)


def _predictor(module: torch.nn.Module) -> Callable[[Floats], Floats]:
    """PyTorch's masks of an int8 module."""
    import torch

    def predict(fed: Floats) -> Floats:
        with torch.no_grad():
            return np.asarray(module(torch.from_numpy(fed)), np.float32)

    return predict


def _notes(held: Contents) -> tuple[str, ...]:
    """What a reader must know of where the program runs; a warning in the log where XNNPACK left much."""
    done, left = sum(held.delegated.values()), sum(held.other.values())
    note = f"XNNPACK: {held.share:.1%} of the work, {done} of {done + left} operations"
    if held.share < ENOUGH:
        logging.getLogger(__name__).warning("%s; the rest runs in slow kernels: %s", note, ", ".join(held.other))
    return (note,)
