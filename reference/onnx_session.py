"""ONNX Runtime sessions: the one place that opens them and reads their profiles.

Errors of ONNX Runtime become errors of two lines here; nothing else decides whether the runtime can open a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from u2export.errors import UserError
from u2export.reference.image import Floats

if TYPE_CHECKING:
    import onnx

CPU = "CPUExecutionProvider"
# Events of ONNX Runtime's profiler while a session is made.
PHASES = {"model_loading_uri": "read", "session_initialization": "compile"}


def open_session(
    model: Path | onnx.ModelProto,
    provider: str = CPU,
    threads: int = 0,
    optimise: bool = True,
    spinning: bool = True,
    profile: str = "",
) -> Any:
    """An ONNX Runtime session of a file, or of a graph in memory.

    Args:
        model: the file (.onnx, .ort), or the graph.
        provider: the execution provider.
        threads: threads of one operator; 0 for the runtime's default.
        optimise: all graph optimisations, or none.
        spinning: whether waiting threads spin, as the runtime does by default. They starve other sessions.
        profile: beginning of the path of the profile; empty for no profile.

    Raises:
        UserError: this ONNX Runtime cannot open the model.
    """
    import onnxruntime

    options = _options()
    options.intra_op_num_threads = threads
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _opened(model, options, provider)


def open_graph(model: onnx.ModelProto, optimise: bool = True) -> Any:
    """A session of a graph in memory, on the CPU, beside other sessions: its waiting threads do not spin."""
    return open_session(model, optimise=optimise, spinning=False)


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


def _opened(model: Path | onnx.ModelProto, options: Any, provider: str, **more: Any) -> Any:
    import onnxruntime

    given = model if isinstance(model, Path) else model.SerializeToString()
    what = str(model) if isinstance(model, Path) else "the graph"
    try:
        session = onnxruntime.InferenceSession(given, options, providers=[provider], **more)
    except Exception as error:  # the runtime's own classes of errors have no common base
        raise UserError(
            f"ONNX Runtime {onnxruntime.__version__} cannot open {what}: {str(error).splitlines()[0]}",
            "export it again, for an opset that this runtime knows",
        ) from None
    _check_texts(session, what)
    return session


def _check_texts(session: Any, what: str) -> None:
    """Refuse names and metadata that are not UTF-8: the runtime opens such files, and fails when they are read."""
    try:
        _ = [(port.name, port.shape) for port in (*session.get_inputs(), *session.get_outputs())]
        _ = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError:
        raise UserError(f"{what}: names or metadata are not UTF-8", "export it again; the file is damaged") from None


def timed_session(path: Path, provider: str, threads: int) -> tuple[Any, dict[str, int]]:
    """A session, and the nanoseconds of "read" and "compile" by ONNX Runtime's own profiler.

    The profiler ends before the first inference. Where its file cannot be written whole, the times are empty.

    Raises:
        UserError: as `open_session`.
    """
    with TemporaryDirectory(prefix="u2export-") as scratch:
        session = open_session(path, provider, threads, profile=f"{scratch}/opening")
        try:
            events = _read_profile(session)
        except (OSError, ValueError):  # no profile: a full disk, say
            events = []
    took = {event["name"]: int(event["dur"]) * 1000 for event in events}
    return session, {phase: took[event] for event, phase in PHASES.items() if event in took}


def profiled(model: onnx.ModelProto, x: Floats, runs: int) -> list[Mapping[str, Any]]:
    """Events of ONNX Runtime's profiler over some runs of a graph on one network input (N, C, H, W).

    An event has a name, a category `cat` ("Node" for kernels) and a duration `dur` in microseconds.

    Raises:
        UserError: as `open_session`.
    """
    with TemporaryDirectory(prefix="u2export-") as scratch:
        session = open_session(model, profile=f"{scratch}/profile")
        for _ in range(runs):
            session.run(None, {session.get_inputs()[0].name: x})
        return _read_profile(session)


def _read_profile(session: Any) -> list[Mapping[str, Any]]:
    events: list[Mapping[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return events


def run(model: onnx.ModelProto, inputs: Iterable[Floats], names: Sequence[str]) -> Iterator[list[NDArray[Any]]]:
    """The named tensors for each photo in turn.

    Raises:
        UserError: there are no photos, or as `open_session`.
    """
    opened = open_graph(model)
    feed = opened.get_inputs()[0].name
    empty = True
    for x in inputs:
        empty = False
        yield opened.run(list(names), {feed: x})
    if empty:
        raise UserError("no photos to calibrate on", "give a folder of photos, for example calibration/")


def write_ort_format(model: onnx.ModelProto, path: Path) -> None:
    """Write ONNX Runtime's own format, optimised once and for all, to `path` (….ort).

    This is what onnxruntime.tools.convert_onnx_models_to_ort does for ARM, without the temporary files it leaves open.

    Raises:
        UserError: as `open_session`.
    """
    options = _options()
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    _opened(model, options, CPU, disabled_optimizers=["NchwcTransformer"])  # its blocked layout is for x86 alone
