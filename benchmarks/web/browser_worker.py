"""A worker in the browser, as the bench sees it. Each has a Web Worker of its own in the page."""

from __future__ import annotations

import io
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from u2export.benchmarks.measuring.worker_process import WorkerFailed, WorkerHandle, answered
from u2export.benchmarks.report import LONGEST, REASONS
from u2export.benchmarks.web.channel import Channel
from u2export.benchmarks.web.identity import Identity
from u2export.benchmarks.web.ports import Ports, ports_of
from u2export.benchmarks.web.runtime_files import VERSION
from u2export.benchmarks.web.server import Content
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.reference.image import Floats
from u2export.reference.photos import open_picture
from u2export.text import one_line

SUFFIXES = (".onnx", ".ort")
# Most threads without a wish of the user: phones have few fast cores.
MOST_THREADS = 4
SOFTWARE = "simulated: WebGPU ran on a software adapter"
DTYPES = ("float32", "float16", "float64", "uint8")


class BrowserWorker(WorkerHandle):
    """A worker in the page.

    Args:
        number: the worker's number in the page.
        channel: the line to the page.
        files: what the page may fetch, by name.
        artifacts: the artifacts of the bench by path.
        page: what the page can do.
        threads: threads of WebAssembly; 0 for as many as there are processors, at most MOST_THREADS.
        timeout: seconds to wait for each answer.
    """

    def __init__(
        self, number: int, channel: Channel, files: dict[str, Content], artifacts: Mapping[str, Artifact],
        page: Identity, threads: int, timeout: float,
    ) -> None:  # fmt: skip
        self._number, self._channel, self._files, self._artifacts = number, channel, files, artifacts
        self._page, self._threads, self._timeout = page, threads, timeout
        self._artifact: Artifact
        self._ports: Ports
        self._open = False
        self._row = ""

    def stream(self, do: str, wait: float = 0.0, **fields: Any) -> Iterator[dict[str, Any]]:
        """Yield the lines of the answer; see `WorkerHandle`.

        Raises:
            WorkerFailed: the runtime in the browser fails or gives no answer in time.
            UserError: the page is lost; the bench cannot go on without it.
        """
        if do == "describe":
            yield self._describe(**fields)
        elif do == "open":
            yield self._opened(wait, **fields)
        elif do == "predict":
            for i, photo in enumerate(fields["photos"]):
                yield self._predicted(i, Path(photo))
        elif do == "warm":
            request = {**self._input(Path(fields["photo"])), "limit": fields["limit"]}
            yield self._timed("warm", wait, request, ("first_ns", "warmup_ns"))
        elif do == "time":
            yield self._timed("time", wait, fields, ("ns",))
        elif do == "memory":
            yield {"memory": {}}
        else:
            raise ValueError(do)

    # Requests

    def _describe(self, artifact: str, workshop: str = "", output: str = "") -> dict[str, Any]:
        """Tell the arithmetics in which the browser runs an artifact."""
        found = self._artifacts[artifact]
        if found.path.suffix not in SUFFIXES:
            raise WorkerFailed("unavailable", "a browser runs .onnx and .ort files")
        precision, threads = found.precision, self._most_threads()
        several = [f"{precision} wasm {threads} threads"] if threads > 1 else []
        gpu = self._page.gpu and (precision == "fp32" or (precision == "fp16" and self._page.half))
        return {"modes": [f"{precision} wasm", *several, *([f"{precision} webgpu"] if gpu else [])]}

    def _most_threads(self) -> int:
        return min(self._page.threads, self._threads or MOST_THREADS)

    def _opened(self, wait: float, artifact: str, mode: str, **options: Any) -> dict[str, Any]:
        if options.get("batch", 1) * options.get("streams", 1) > 1:
            raise WorkerFailed("refused", "a browser is measured with one picture at a time")
        self._artifact = self._artifacts[artifact]
        mode = mode or f"{self._artifact.precision} wasm"
        self._row = f"{self._artifact.name} {mode}"
        _, _, unit = mode.partition(" ")
        provider, threads = unit.split()[0], int(unit.split()[1]) if "threads" in unit else 1
        try:
            self._ports = ports_of(self._artifact)
        except UserError as error:
            raise WorkerFailed("refused", f"{error.problem} ({error.hint})") from None
        request = {"provider": provider, "threads": threads, **self._model()}
        self._open = True
        answer = self._ask("open", wait, request)
        return self._with_runtime(answer, mode, provider, threads)

    def _model(self) -> dict[str, Any]:
        """Let the page have the files of the artifact, and return the names under which it fetches them."""
        artifact, home = self._artifact, self._artifact.path.parent
        prefix = f"model-{self._number}"
        names = {}
        for i, name in enumerate(artifact.files):
            names[name] = f"{prefix}-{i}"
            self._files[names[name]] = home / name
        model = names.pop(artifact.path.name)
        return {"model": model, "more": [{"path": path, "file": file} for path, file in names.items()]}

    def _with_runtime(self, answer: dict[str, Any], mode: str, provider: str, threads: int) -> dict[str, Any]:
        """Return the answer with what really ran; threads that the browser did not give are an error."""
        got = answer.get("threads")
        if provider == "wasm" and got != threads:
            raise WorkerFailed("failed", f"asked for {threads} threads, the browser gave {got!r}")
        opening = answer.get("opening_ns")
        opening = opening if isinstance(opening, dict) else {}
        runtime = {
            "runtime": f"ONNX Runtime Web {VERSION}",
            "device": _unit(provider, threads),
            "provider": {"wasm": "WebAssembly", "webgpu": "WebGPU"}[provider],
            "arithmetic": mode,
            **({"threads": str(got)} if provider == "wasm" else {}),
        }
        notes = _notes(answer)
        if provider == "webgpu" and self._page.software:
            notes.append(SOFTWARE)
        return {
            "load_ns": _ns(answer, "load_ns"),
            "opening_ns": {k: _ns(opening, k) for k in ("import", "compile") if k in opening},
            "runtime": runtime,
            "notes": notes,
        }

    def _input(self, photo: Path) -> dict[str, Any]:
        """Let the page have the network's input of a photo, and return the fields of a request that name it."""
        contract = self._artifact.contract
        picture = open_picture(photo, contract.channels)
        fed = self._ports.feed(contract.tensor(picture.pixels))
        name = f"input-{self._number}"
        self._files[name] = (fed.astype(fed.dtype.newbyteorder("<")).tobytes(), "")
        fields: dict[str, Any] = {"input": name, "type": fed.dtype.name, "dims": list(fed.shape)}
        fields |= {"entry": self._ports.input, "output": self._ports.output}
        fields |= {"width": contract.width, "height": contract.height}
        if picture.pixels.dtype == np.uint8 and picture.pixels.shape[2] in (1, 3):
            self._files["picture"] = (
                _thumbnail(picture.pixels.astype(np.uint8), contract.width, contract.height),
                ".jpg",
            )
            fields["picture"] = "picture"
        return fields

    def _predicted(self, i: int, photo: Path) -> dict[str, Any]:
        answer = self._ask("predict", 0.0, self._input(photo))
        d0 = self._d0(answer)
        packed = b64encode(d0[0].astype("<f4").tobytes()).decode()
        return {"photo": i, "inference_ns": _ns(answer, "inference_ns"), "maps": d0.shape[1], "d0": packed}

    def _d0(self, answer: Mapping[str, Any]) -> Floats:
        """Return d0 (1, K, H, W) of an answer.

        Raises:
            WorkerFailed: the answer holds no such map.
        """
        contract = self._artifact.contract
        try:
            d0 = self._ports.maps(_values(answer))
        except UserError as error:
            raise WorkerFailed("refused", f"{error.problem} ({error.hint})") from None
        if d0.ndim != 4 or d0.shape[0] != 1 or d0.shape[2:] != (contract.height, contract.width):
            expected = f"(1, K, {contract.height}, {contract.width})"
            raise WorkerFailed("refused", f"d0 has shape {d0.shape}, expected {expected}")
        return d0

    def _timed(self, do: str, wait: float, fields: dict[str, Any], times: tuple[str, ...]) -> dict[str, Any]:
        """Ask for times. The page itself repeats a turn that it was hidden or frozen in, and its notes say so."""
        answer = self._ask(do, wait, fields)
        found = {name: _ns(answer, name) for name in times}
        return {**found, "steady": answer.get("steady") is True, "notes": _notes(answer)}

    def _ask(self, do: str, wait: float, fields: Mapping[str, Any]) -> dict[str, Any]:
        seq = self._channel.send({"worker": self._number, "row": self._row, "do": do, **fields})
        timeout = self._timeout + wait
        answer = self._channel.answer(seq, timeout)
        if answer is None:
            self.kill()
            raise WorkerFailed("timeout", f"no answer to {do!r} within {timeout:.0f} s")
        return answered(_checked(answer))

    def kill(self) -> None:
        """End the worker in the page, whatever it does."""
        if self._open:
            self._open = False
            self._channel.send({"worker": self._number, "do": "kill"})
        mine = (f"model-{self._number}-", f"input-{self._number}-")
        for name in [name for name in self._files if f"{name}-".startswith(mine)]:
            del self._files[name]

    def end(self) -> None:
        """End the worker in the page; a page holds nothing that it must close."""
        self.kill()


def _unit(provider: str, threads: int) -> str:
    """Return what computed, as a table shows it."""
    return "browser, WebGPU" if provider == "webgpu" else f"browser, WASM, {threads} thread{'s' * (threads > 1)}"


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer whose error, if it has one, has a known kind and texts of a bounded length."""
    error = answer.get("error")
    if error is None:
        return answer
    told = error if isinstance(error, dict) else {}
    kind = told.get("kind")
    problem = str(told.get("problem") or "an error in the browser")[:300]
    return {"error": {"kind": kind if kind in REASONS else "failed", "problem": problem, "hint": ""}}


def _notes(answer: Mapping[str, Any]) -> list[str]:
    """Return the remarks in an answer, of a bounded number and length."""
    notes = answer.get("notes")
    return [one_line(note[:200]) for note in notes[:5] if isinstance(note, str)] if isinstance(notes, list) else []


def _ns(answer: Mapping[str, Any], name: str) -> Any:
    """Return a time, or a list of times, of an answer.

    Raises:
        WorkerFailed: it holds something else.
    """
    value = answer.get(name)
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < LONGEST for v in values):
        raise WorkerFailed("failed", f"the page answered {name} with {str(value)[:80]}")
    return value


def _values(answer: Mapping[str, Any]) -> NDArray[Any]:
    """Return the raw output in an answer.

    Raises:
        WorkerFailed: the answer holds none.
    """
    kind, dims = answer.get("type"), answer.get("dims")
    try:
        if kind not in DTYPES or not isinstance(dims, list):
            raise ValueError(kind)
        values = np.frombuffer(b64decode(answer["d0"], validate=True), np.dtype(kind).newbyteorder("<"))
        return values.reshape([int(side) for side in dims])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise WorkerFailed("failed", "the page answered with no map") from None


def _thumbnail(pixels: NDArray[np.uint8], width: int, height: int) -> bytes:
    """Return the picture for the screen, in its own shape."""
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    image.thumbnail((width, height))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue()
