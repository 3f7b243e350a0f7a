"""How artifacts of a target are opened and run on this machine.

This half of a target is all that a device needs: it imports no torch, and runs where nothing can be exported. The other
half, `exporters.exporter.Exporter`, writes the artifacts.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from u2export.errors import Unavailable, UserError
from u2export.exporters.artifact import Artifact
from u2export.install import how_to_install
from u2export.reference.dtypes import arithmetic_name
from u2export.reference.image import Contract, Floats


def _as_it_is(batch: Floats) -> Any:
    return batch


@dataclass(frozen=True)
class Runner:
    """An open artifact.

    Attributes:
        predict: makes the fused map d0, (N, K, H, W) float32, of what `prepare` returned. This is what gets timed.
        info: what really ran, read back from the runtime: device, provider, arithmetic, threads …
        prepare: makes what the artifact takes of the network input (N, C, H, W) float32.
        opening: ns of "read" and "compile" while the artifact was opened, as far as the runtime tells them apart.
    """

    predict: Callable[[Any], Floats]
    info: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Floats], Any] = _as_it_is
    opening: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, batch: Floats) -> Floats:
        """The fused map d0 (N, K, H, W) of a network input (N, C, H, W), untimed."""
        return self.predict(self.prepare(batch))


@dataclass(frozen=True)
class Assumed:
    """What is assumed of a file without a record.

    Attributes:
        contract: the image contract.
        precision: what is stored in the file, as far as it tells.
        options: what the target's runner needs to know.
        notes: what was assumed, in words.
    """

    contract: Contract
    precision: str = "fp32"
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ("no record: default image contract assumed",)


class Runtime(ABC):
    """Opens the artifacts of one target.

    A target writes `_load`; callers use `load` and `streams`, which check the machine and the arithmetic first.

    Class attributes:
        title: what people call the target.
    """

    title: ClassVar[str]

    @abstractmethod
    def _load(self, artifact: Artifact, arithmetic: str, threads: int) -> AbstractContextManager[Runner]:
        """Open the artifact on this machine; `arithmetic` is one of `arithmetics(artifact)`."""

    @abstractmethod
    def missing_runtime(self) -> Unavailable | None:
        """Why this machine cannot run the target's artifacts; None if it can."""

    def adopts(self, path: Path) -> bool:
        """Whether the target opens this file when no record lies beside it."""
        return False

    def contract_of(self, path: Path) -> Contract:
        """The image contract to assume for a file without a record."""
        return Contract()

    def assume(self, path: Path, output_name: str = "") -> Assumed:
        """What to assume of a file without a record, whose output of this name is d0; empty to find the output.

        Raises:
            UserError: the file is damaged or is no U²-Net, or its output cannot be chosen.
            Unavailable: the runtime that opens it is not installed.
        """
        if output_name:
            raise UserError(f"{path}: only an ONNX file has outputs to choose from", "leave it out", "output_name")
        return Assumed(self.contract_of(path))

    def arithmetics(self, artifact: Artifact) -> Sequence[str]:
        """The arithmetics in which this machine can run the artifact, the one that its precision means first."""
        return (artifact.precision,)

    def built(self, artifact: Artifact, folder: Path) -> Artifact | None:
        """What this machine makes of an artifact in `folder` before it can run it; None if it runs the artifact itself.

        Raises:
            UserError: it cannot be made.
        """
        return None

    def load(self, artifact: Artifact, arithmetic: str = "", threads: int = 0) -> AbstractContextManager[Runner]:
        """The context of a runner: the artifact is open on this machine inside of it.

        Args:
            artifact: what to open.
            arithmetic: one of `arithmetics(artifact)`, also by an older name ("f32"); the first one by default.
            threads: processors to use where the runtime can be told; 0 for all that this process may use.

        Raises:
            Unavailable: this machine cannot run the artifact.
            UserError: the artifact cannot run in this arithmetic here, or its files are damaged.
        """
        if problem := self.missing_runtime():
            raise problem
        arithmetics = self.arithmetics(artifact)
        wanted = arithmetic if arithmetic in arithmetics else arithmetic_name(arithmetic)
        if wanted and wanted not in arithmetics:
            raise UserError(
                f"{artifact.name} cannot run as {arithmetic} here", f"choose one of {', '.join(arithmetics)}"
            )
        return self._load(artifact, wanted or arithmetics[0], threads or processors())

    @contextmanager
    def streams(self, artifact: Artifact, arithmetic: str, threads: int, count: int) -> Iterator[Sequence[Runner]]:
        """The context of `count` runners that are used at the same time, each with its share of the threads.

        Raises:
            Unavailable, UserError: as `load`.
        """
        share = max(1, (threads or processors()) // count)
        with ExitStack() as stack:
            yield [stack.enter_context(self.load(artifact, arithmetic, share)) for _ in range(count)]


def missing_modules(title: str, needs: Sequence[str], extra: str) -> Unavailable | None:
    """The error that names the modules of `needs` that are not installed; None if all are."""
    lost = [module for module in needs if find_spec(module) is None]
    if not lost:
        return None
    return Unavailable(f"{title} is not available here: {', '.join(lost)} not installed", how_to_install(extra, lost))


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(*modules: str) -> dict[str, str]:
    """Installed versions of distributions; those that are not installed are left out."""
    from importlib.metadata import distributions

    installed = {d.metadata["Name"].lower(): d.version for d in distributions() if d.metadata["Name"]}
    return {name: installed[name] for name in modules if name in installed}
