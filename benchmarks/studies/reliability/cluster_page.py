"""The page of the study `cluster`: what a task costs, and a calculation for many workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from u2export.benchmarks.cluster.machine import CHUNK
from u2export.benchmarks.tables.markdown import table

WORKERS = 2


@dataclass(frozen=True)
class Constants:
    """What a chunk costs, from the slope between the two runs of a client.

    Attributes:
        scheduler_s, client_s: processor time of the scheduler and of the client for a task.
        moved: bytes over all connections for a task.
    """

    scheduler_s: float
    client_s: float
    moved: float


def constants(runs: Sequence[Mapping[str, Any]]) -> Constants:
    """Return the cost of a task from a run with few photos and one with many."""
    few, many = sorted(runs, key=lambda run: int(run["tasks"]))
    tasks = many["tasks"] - few["tasks"]
    slope = {name: (many[name] - few[name]) / tasks for name in ("scheduler_cpu_s", "cpu_s", "bytes")}
    return Constants(slope["scheduler_cpu_s"], slope["cpu_s"], slope["bytes"])


@dataclass(frozen=True)
class Forecast:
    """A calculation for many workers, from measured constants.

    Attributes:
        tasks: tasks in all.
        work_s: seconds in which the workers would be done if nothing else took time.
        scheduler_s, client_s: processor time of the scheduler and of the client.
        moved: bytes in all.
        workers_at_most: workers that the busier of scheduler and client can keep at work.
    """

    tasks: int
    work_s: float
    scheduler_s: float
    client_s: float
    moved: float
    workers_at_most: float


def forecast(photos: int, workers: int, photo_s: float, cost: Constants, chunk: int = CHUNK) -> Forecast:
    """Return what many photos take on many workers with one thread each.

    Every chunk is two tasks: it is read and it is judged. The client and the scheduler each use one processor, so
    together they do as many tasks a second as the slower of the two.

    Args:
        photos, workers: how many.
        photo_s: seconds that a worker needs for a photo, with all rows.
        cost: what a task costs.
        chunk: photos of a task.
    """
    tasks = 2 * -(-photos // chunk)
    busiest = max(cost.scheduler_s, cost.client_s)
    return Forecast(
        tasks, photos * photo_s / workers, tasks * cost.scheduler_s, tasks * cost.client_s, tasks * cost.moved,
        chunk * photo_s / (2 * busiest),
    )  # fmt: skip


def page(data: Mapping[str, Any]) -> str:
    """Return the Markdown page of all parts that have run."""
    made = data["made"]
    parts = [text(data) for name, text in TEXTS.items() if name in data]
    if "client" in data and "efficiency" in data:
        parts.append(_forecasts(data))
    return f"""# Masks on a cluster

{made["photos"]:,} photos of {made["size"]} pixels ({made["bytes"] / made["photos"]:,.0f} bytes each, JPEG), crops of
{made["sources"]} photos. Two ONNX files of {made["weights"]} are judged, the first is the reference of the second.
Workers with one thread each, over loopback, on one machine that also runs the scheduler and the client:
{data["device_label"]}. {", ".join(f"{k} {v}" for k, v in data["tools"].items())}.

{"".join(parts)}Again:
```sh
{data["command"]}
```
"""


def _efficiency_text(data: Mapping[str, Any]) -> str:
    found = data["efficiency"]
    rows = []
    for number, one in enumerate(found["rounds"], 1):
        for name, key in (("whole run", "total_s"), ("judging alone", "judging_s")):
            alone, both = one["1"][key], one[str(WORKERS)][key]
            rows.append((str(number), name, f"{alone:.1f}", f"{both:.1f}", f"{100 * alone / (WORKERS * both):.1f} %"))
    titles = ("round", "", "1 worker, s", f"{WORKERS} workers, s", "efficiency")
    return f"""## Efficiency

{found["photos"]:,} photos, networks of {found["input"]} x {found["input"]}. Efficiency is the time of one worker,
divided by {WORKERS} times that of {WORKERS} workers. The whole run connects, reads all photos once, and judges them.

{table(titles, rows, "rlrrr")}

"""


def _client_text(data: Mapping[str, Any]) -> str:
    runs = data["client"]["runs"]
    rows = [
        (
            "shared" if r["shared"] else "sent", f"{r['photos']:,}", f"{r['tasks']:,}", f"{r['peak'] / 1e6:.1f}",
            f"{r['cpu_s']:.1f}", f"{r['scheduler_cpu_s']:.1f}", f"{r['bytes'] / 1e6:.1f}",
        )
        for r in runs
    ]  # fmt: skip
    titles = ("files", "photos", "tasks", "client's peak MB", "client's CPU s", "scheduler's CPU s", "MB moved")
    lines = []
    for shared in (True, False):
        few, many = (r for r in runs if r["shared"] == shared)
        cost, how = constants([few, many]), "shared" if shared else "sent"
        more = 100 * (many["peak"] / few["peak"] - 1)
        lines.append(
            f"- files {how}: the client of {many['photos']:,} photos needs {more:+.1f} % of the memory of that of "
            f"{few['photos']}. A task costs the scheduler {1e3 * cost.scheduler_s:.2f} ms and the client "
            f"{1e3 * cost.client_s:.2f} ms of processor time, and moves {cost.moved / 1e3:.1f} kB."
        )
    return f"""## Memory of the client, and the cost of a chunk

A chunk of {CHUNK} photos is two tasks: it is read, and it is judged. The costs of a task are slopes between the two
runs, so the start falls out. Bytes are those over loopback, through all connections of client, scheduler and workers.

{table(titles, rows, "lrrrrrr")}

{chr(10).join(lines)}

"""


def _kills_text(data: Mapping[str, Any]) -> str:
    found = data["kills"]
    return f"""## Killed workers

{found["kills"]} times a worker was killed with SIGKILL while {WORKERS} workers judged {found["photos"]:,} photos in
chunks of {found["chunk"]}. Photos lost: {found["lost"]}. Photos counted twice: {found["doubled"]}. Photos with another
result than without kills: {found["other"]}.

"""


def _forecasts(data: Mapping[str, Any]) -> str:
    found = data["efficiency"]
    photo_s = min(one["1"]["total_s"] for one in found["rounds"]) / found["photos"]
    rows = []
    for shared in (True, False):
        cost = constants([r for r in data["client"]["runs"] if r["shared"] == shared])
        for seconds, name in ((photo_s, "as measured here"), (0.5, "half a second")):
            f = forecast(1_000_000, 100, seconds, cost)
            rows.append(
                (
                    "shared" if shared else "sent", f"{name}: {1e3 * seconds:.0f} ms", f"{f.work_s / 60:.0f}",
                    f"{f.scheduler_s / 60:.1f}", f"{f.client_s / 60:.1f}", f"{f.moved / 1e9:.1f}",
                    f"{f.workers_at_most:.0f}",
                )
            )  # fmt: skip
    titles = (
        "files",
        "a photo takes",
        "100 workers, min",
        "scheduler, min",
        "client, min",
        "GB moved",
        "full at workers",
    )
    return f"""## A calculation: 100 workers, 1,000,000 photos

{2 * -(-1_000_000 // CHUNK):,} tasks, not run: the costs above times the number of tasks. "100 workers" is the time in
which the workers would be done. The scheduler and the client use one processor each; the busier one is full at the
number of workers in the last column, and more workers do not help.

{table(titles, rows, "llrrrrr")}

"""


TEXTS = {"efficiency": _efficiency_text, "client": _client_text, "kills": _kills_text}
