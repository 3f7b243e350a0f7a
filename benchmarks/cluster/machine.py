"""A cluster of Dask workers as the machine of a bench that measures no times."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any

from u2export.benchmarks.cluster.connection import LOCAL, check_address, connected
from u2export.benchmarks.cluster.journal import Journal
from u2export.benchmarks.cluster.on_worker import ask
from u2export.benchmarks.cluster.standing import Census, Standing, difference, most_common, standing
from u2export.benchmarks.cluster.store import Store
from u2export.benchmarks.cluster.window import Window
from u2export.benchmarks.device import Device
from u2export.benchmarks.measuring.machine import Machine
from u2export.benchmarks.measuring.rows import PlannedRow
from u2export.benchmarks.measuring.worker_process import WORKER, WorkerFailed, WorkerHandle
from u2export.errors import UserError, WrongValue
from u2export.exporters.artifact import Artifact
from u2export.reference.onnx_files import model_files
from u2export.reference.source import Source
from u2export.reference.weights import WEIGHTS, cached, file_digest

# Photos of a task. More photos cost the scheduler less, and a killed worker more.
CHUNK = 16
# Bytes of photos in a task, where they travel with it.
CHUNK_BYTES = 8 * 2**20
# Tasks of each thread at the least, so that all workers have work until the end.
TASKS_EACH = 4


class ClusterMachine(Machine):
    """The workers of a cluster. The connection exists while the context does.

    Args:
        address: see `connection.connected`.
        shared: whether the workers see artifacts and photos under the same paths as this machine. Otherwise the files
            are sent to them. The workers of `local:N` always see them.
        journal: keeps what was judged.
        timeout: seconds to wait for an answer of a runtime, and for workers.
        worker: command that starts a worker process.
        store: the address of fsspec from which the workers fetch all files; empty for none. What is missing there is
            uploaded.

    Raises, on entering the context:
        Unavailable: Dask is not installed.
        UserError: no scheduler answers, none of its workers can take part, or the store cannot be read.
    """

    def __init__(
        self, address: str, shared: bool, journal: Journal, timeout: float = 300.0, worker: Sequence[str] = WORKER,
        store: str = "",
    ) -> None:  # fmt: skip
        super().__init__(worker)
        check_address(address)
        if shared and store:
            raise WrongValue("files are either shared or fetched from a store", "leave one of them out", "store")
        self.journal = journal
        self._address, self._timeout = address, timeout
        self._shared = shared or (not store and LOCAL.fullmatch(address) is not None)
        self._store_address = store
        self._store: Store | None = None
        self._run = uuid.uuid4().hex[:12]
        self._stack = ExitStack()
        self._hashes: dict[str, dict[str, str]] = {}
        self._sent: dict[str, dict[str, Any]] = {}
        self._plugins: list[str] = []
        self._numbers = count()
        self.window: Window
        self._kind: Standing

    def __enter__(self) -> ClusterMachine:
        with ExitStack() as stack:
            self._client = stack.enter_context(connected(self._address, self._timeout))
            self.window = Window(self._client, self._address, self._timeout)
            self._kind = self._look_at_workers()
            if self._store_address:
                self._store = Store(self._store_address)
            stack.callback(self._take_all_away)
            self.put("", {})
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()
        self._stack.close()

    def _look_at_workers(self) -> Standing:
        """Return the kind of worker that takes part, and refuse all others by name."""
        found = self._client.run(standing, on_error="return")
        kinds = {worker: kind for worker, kind in found.items() if isinstance(kind, dict)}
        for worker, error in found.items():
            if worker not in kinds:
                self.window.refuse(worker, f"it has no such u2export ({type(error).__name__}: {error})")
        if not kinds:
            raise UserError(
                f"no worker at {self._address} can run u2export: {next(iter(self.census.refused.values()))}",
                "install this version of u2export and the runtimes on the workers",
            )
        wanted = most_common(kinds)
        for worker, kind in kinds.items():
            if wrong := difference(kind, wanted):
                self.window.refuse(worker, wrong)
        return wanted

    def check_like(self, device: Standing) -> None:
        """Check that the workers make the masks of a device.

        Args:
            device: what the device is, see `standing.standing`.

        Raises:
            UserError: they have other runtimes or another class of processor.
        """
        if wrong := difference(self._kind, device):
            raise UserError(
                f"the workers of the cluster are not like this machine: {wrong}",
                "start the command on a machine like the workers, or judge the masks here",
                "cluster",
            )

    @property
    def census(self) -> Census:
        """The workers that took part."""
        return self.window.census

    @property
    def kind(self) -> Standing:
        """What the workers that take part are."""
        return self._kind

    def device(self) -> Device:
        """Return the device of the workers; the first of those that take part stands for all."""
        return Device.from_json(self._kind["device"])

    def environment(self) -> dict[str, Any]:
        """Return the versions on the workers."""
        return dict(self._kind["environment"])

    def state(self) -> dict[str, Any]:
        """Return nothing: a cluster has no clocks."""
        return {}

    def pulse(self) -> dict[str, Any]:
        """Return nothing: a cluster has no clocks."""
        return {}

    # Files

    def put(self, folder: str, files: dict[str, bytes]) -> str:
        """Write files into the folder of the run on every worker, also on those that come later.

        Returns:
            What `take_away` needs.
        """
        from u2export.benchmarks.cluster.depot import Depot

        name = f"u2export-{self._run}-{next(self._numbers)}"
        self._plugins.append(name)
        self._client.register_plugin(Depot(self._run, folder, files), name=name)
        return name

    def take_away(self, name: str) -> None:
        """Remove a folder of files from the workers."""
        self._plugins.remove(name)
        if self._client.status == "running":
            with suppress(Exception):  # the scheduler or workers may be gone
                self._client.unregister_worker_plugin(name)

    def _take_all_away(self) -> None:
        """Remove the folder of the run from the workers."""
        for name in reversed(self._plugins.copy()):
            self.take_away(name)

    def _send(self, path: Path, home: Path, names: Iterable[str]) -> None:
        """Send the files of an artifact or of weights, or upload them; `path` is the one that a worker opens."""
        if str(path) in self._sent:
            return
        opens = str(path.relative_to(home))
        if self._store:
            digests = {name: file_digest(home / name) for name in names}
            self._sent[str(path)] = self._store.put_folder(home, digests, opens)
            return
        folder = str(len(self._sent))
        self.put(folder, {name: (home / name).read_bytes() for name in names})
        self._sent[str(path)] = {"sent": f"{folder}/{opens}"}

    def send_artifact(self, artifact: Artifact) -> None:
        """Send the files and the record of an artifact, unless the workers see them."""
        self._hashes[str(artifact.path)] = dict(artifact.files)
        if not self._shared:
            record = [artifact.record.name] if artifact.record.exists() else []
            self._send(artifact.path, artifact.path.parent, [*artifact.files, *record])

    def sent(self, path: str) -> dict[str, Any]:
        """Return how a task names an artifact."""
        return self._sent.get(path) or {"path": str(Path(path).absolute())}

    def row(self, planned: PlannedRow, opening: dict[str, Any]) -> dict[str, Any]:
        """Return a row as a task takes it; `opening` holds the fields of the request "open"."""
        contract, files = planned.contract, {}
        if "artifact" in opening:
            files["artifact"] = self.sent(opening.pop("artifact"))
        elif (weights := self.weights(opening["weights"])) is not None:
            opening.pop("weights")
            files["weights"] = weights
        return {
            "opening": opening, "files": files, "hashes": self.hashes(planned), "height": contract.height,
            "width": contract.width,
        }  # fmt: skip

    def reference(self, source: Source) -> dict[str, Any]:
        """Return how a task names a PyTorch reference."""
        weights = source.weights
        file = self.weights(weights.path or weights.name)
        return {"weights": weights.name, "file": file, "contract": source.contract.to_json()}

    def hashes(self, planned: PlannedRow) -> dict[str, str]:
        """Return the sha256 of the files of a row's artifact."""
        return self._hashes.get(str(planned.opening.get("artifact", "")), {})

    def weights(self, given: str) -> dict[str, Any] | None:
        """Return how a task names the weights of the PyTorch network; None where the name is enough."""
        path = cached(given) if given in WEIGHTS else Path(given)
        if not path.is_file():
            return None
        if not self._shared:
            files = model_files(path) if path.suffix.lower() == ".onnx" else [path]
            self._send(path, path.parent, [str(file.relative_to(path.parent)) for file in files])
        return self.sent(str(path))

    def files(self, paths: Sequence[Path], digests: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Return how a task names photos or masks; `digests` are their sha256 where they are known."""
        if self._store:
            return self._store.put(paths, digests)
        if self._shared:
            return [{"path": str(path.absolute())} for path in paths]
        return [{"name": path.name, "bytes": path.read_bytes()} for path in paths]

    def photos(self, paths: Sequence[Path], digests: Sequence[str]) -> list[dict[str, Any]]:
        """Return how a task names photos that must be the ones with these sha256."""
        pairs = zip(self.files(paths, digests), digests, strict=True)
        return [{**file, "digest": digest} for file, digest in pairs]

    # Tasks

    def chunk(self, photos: Sequence[Path]) -> int:
        """Return how many photos a task gets."""
        even = -(-len(photos) // (TASKS_EACH * self.window.threads))
        most = CHUNK
        if not self._shared and not self._store and photos:
            largest = max(path.stat().st_size for path in photos)
            most = min(most, max(1, CHUNK_BYTES // max(1, largest)))
        return max(1, min(most, even))

    def about(self) -> dict[str, Any]:
        """Return what every task is told."""
        command = [] if tuple(self.worker) == WORKER else list(self.worker)
        return {"run": self._run, "standing": self._kind, "command": command, "timeout": self._timeout}

    def start_worker(self, log: Path, timeout: float) -> WorkerHandle:
        """Return a worker that answers each request on any worker of the cluster."""
        return _AnyWorker(self)


class _AnyWorker(WorkerHandle):
    """Asks a new process on some worker of the cluster each time."""

    def __init__(self, machine: ClusterMachine) -> None:
        self._machine = machine

    def stream(self, do: str, wait: float = 0.0, **fields: Any) -> Iterator[dict[str, Any]]:
        """Yield the answer to a request; see `WorkerHandle.stream`."""
        artifact = fields.pop("artifact", None)
        task = {**self._machine.about(), "do": do, "fields": fields}
        task["artifact"] = self._machine.sent(artifact) if artifact else None
        result = self._machine.window.one(ask, task)
        if wrong := result.get("failed"):
            raise WorkerFailed(wrong["reason"], wrong["problem"])
        yield result["answer"]

    def kill(self) -> None:
        """Do nothing: the process has ended."""

    def end(self) -> None:
        """Do nothing: the process has ended."""
