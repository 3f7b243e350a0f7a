"""Where the time of an artifact goes: measured times of its layers, beside the least time that a device needs."""

from __future__ import annotations

from pathlib import Path

from u2export.benchmarks.profiling.layer_times import LayerTime, Profile, bounded
from u2export.benchmarks.profiling.runtimes import measured
from u2export.benchmarks.profiling.shown import chart, check_chart, layer_table, summary
from u2export.benchmarks.profiling.trtexec_profile import from_trtexec, is_profile
from u2export.benchmarks.roofline import chips, this_machine
from u2export.errors import WrongValue
from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifact

__all__ = ["LayerTime", "Profile", "check_chart", "profile", "profile_chart", "profile_summary", "profile_table"]

HERE = "here"
# For the terminal, as rich renders it; lines of text; and a picture.
profile_table, profile_summary, profile_chart = layer_table, summary, chart


def profile(
    artifact: Artifact | str | Path,
    *,
    runs: int = 20,
    threads: int = 0,
    device: str = "",
    layer_info: str | Path | None = None,
    graph: str | Path | None = None,
) -> Profile:
    """Measure the time of each layer of an artifact on this machine, or read the profile that trtexec wrote.

    ONNX Runtime's profiler and OpenVINO's performance counters measure; the profiler is on in every run, so the times
    are no latency. `Profile.coverage` is the share of the run that the layers take.

    Args:
        artifact: an artifact of onnx, ort or openvino, its file or its record; or the JSON file of
            `trtexec --exportProfile`.
        runs: how many runs count, after three that warm up.
        threads: threads of the runtime; 0 for all processors.
        device: adds the roofline's bound of each layer: the id of a device in devices.json, or "here" for this
            machine, whose peak is measured in about 2 s. An estimate, never a result.
        layer_info: the file of `trtexec --exportLayerInfo`: kinds and precisions.
        graph: the ONNX file that the engine was built from; with `layer_info` it gives the work of layers.

    Raises:
        UserError: the artifact cannot be opened, its runtime has no profiler that Python can read, there is no such
            device, or a file of trtexec is damaged.
        Unavailable: the runtime is not installed.

    Example:
        >>> made = profile(artifact, runs=2, threads=1)
        >>> made.runs, len(made.layers) > 50
        (2, True)
    """
    known = chips()
    if device not in ("", HERE, *known):
        raise WrongValue(f"no device {device!r}", f"choose among {HERE}, {', '.join(known)}", "device")
    if runs < 1:
        raise WrongValue(f"{runs} runs measure nothing", "give a number from 1", "runs")
    if not isinstance(artifact, Artifact) and is_profile(Path(artifact)):
        made = from_trtexec(Path(artifact), _path(layer_info), _path(graph))
    elif layer_info is not None or graph is not None:
        raise WrongValue("layer_info and graph belong to a profile of trtexec", "leave them out")
    else:
        made = measured(artifact if isinstance(artifact, Artifact) else read_artifact(Path(artifact)), runs, threads)
    return bounded(made, this_machine() if device == HERE else known[device]) if device else made


def _path(given: str | Path | None) -> Path | None:
    return Path(given) if given is not None else None
