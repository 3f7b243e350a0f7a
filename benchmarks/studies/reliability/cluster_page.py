"""The page of the study `cluster`: what a task costs, and a calculation for many workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from u2export.benchmarks.cluster.machine import CHUNK
from u2export.benchmarks.tables.markdown import table

WORKERS = 2
# Seconds that a photo may take a worker, for the calculation: a small network, and a large one or many rows.
SUPPOSED = (0.1, 1.0)
ROWS = 2  # the reference, and a row that is compared with it


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
    if "client" in data:
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


def efficiencies(blocks: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Return the efficiency in each block: the time of one worker over `WORKERS` times that of `WORKERS` workers."""
    return [block["1"][key] / (WORKERS * block[str(WORKERS)][key]) for block in blocks]


def _efficiency_text(data: Mapping[str, Any]) -> str:
    found = data["efficiency"]
    rows = []
    for name, key in (("whole run", "total_s"), ("reading alone", "reading_s"), ("judging alone", "judging_s")):
        each = efficiencies(found["blocks"], key)
        alone, both = (sum(block[w][key] for block in found["blocks"]) for w in ("1", str(WORKERS)))
        rows.append((
            name, f"{alone:.1f}", f"{both:.1f}", f"{100 * median(each):.1f} %",
            f"{100 * min(each):.1f}–{100 * max(each):.1f} %", f"{100 * alone / (WORKERS * both):.1f} %",
        ))  # fmt: skip
    titles = ("", "1 worker, s", f"{WORKERS} workers, s", "efficiency, middle block", "all blocks", "of the sums")
    blocks = f"{len(found['blocks'])} blocks of {found['blocks'][0]['photos']:,}"
    return f"""## Efficiency

{found["photos"]:,} photos in {blocks}, networks of {found["input"]} x {found["input"]}. Efficiency
is the time of one worker, divided by {WORKERS} times that of {WORKERS} workers, on the same photos one after the other.
A whole run looks at the artifacts, reads all photos once, and judges them. Other programs of the machine take time from
two workers and not from one, so the middle block says more than the sums.

{table(titles, rows, "lrrrrr")}

"""


def _client_rows(runs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            "shared" if r["shared"] else "sent", f"{r['photos']:,}", f"{r['tasks']:,}", f"{r['peak'] / 1e6:.1f}",
            f"{r['cpu_s']:.1f}", f"{r['scheduler_cpu_s']:.1f}", f"{r['bytes'] / 1e6:.1f}",
        )
        for r in runs
    ]  # fmt: skip
    titles = ("files", "photos", "tasks", "client's peak MB", "client's CPU s", "scheduler's CPU s", "MB moved")
    return table(titles, rows, "lrrrrrr")


def _client_text(data: Mapping[str, Any]) -> str:
    runs = data["client"]["runs"]
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
    alone = "which nothing else uses" if data["client"]["alone"] else "which other programs use too"
    return f"""## Memory of the client, and the cost of a chunk

A chunk of {CHUNK} photos is two tasks: it is read, and it is judged. The costs of a task are slopes between the two
runs, so the start falls out. Bytes are those over loopback, {alone}: all connections of client, scheduler and workers.

{_client_rows(runs)}

{chr(10).join(lines)}

"""


def _many_text(data: Mapping[str, Any]) -> str:
    runs = data["many"]["runs"]
    few, most = runs[0], runs[-1]
    each = (most["peak"] - few["peak"]) / (most["photos"] - few["photos"])
    return f"""## Very many photos

The same files under {most["photos"]:,} names. What grows is the list of photos and the report: their names, sha256 and
figures, {each:,.0f} bytes a photo for {ROWS} rows. Photos, maps and tasks do not add up.

{_client_rows(runs)}

"""


def _kills_text(data: Mapping[str, Any]) -> str:
    found = data["kills"]
    return f"""## Killed workers

{found["kills"]} times a worker was killed with SIGKILL while {WORKERS} workers judged {found["photos"]:,} photos in
chunks of {found["chunk"]}. Photos lost: {found["lost"]}. Photos counted twice: {found["doubled"]}. Photos with another
result than without kills: {found["other"]}.

"""


def _forecasts(data: Mapping[str, Any]) -> str:
    times = {f"{1e3 * seconds:.0f} ms": seconds for seconds in SUPPOSED}
    if "efficiency" in data:
        measured = median(block["1"]["total_s"] / block["photos"] for block in data["efficiency"]["blocks"])
        times = {f"{1e3 * measured:.0f} ms, as measured here": measured, **times}
    rows = []
    for shared in (True, False):
        cost = constants([r for r in data["client"]["runs"] if r["shared"] == shared])
        for name, seconds in times.items():
            f = forecast(1_000_000, 100, seconds, cost)
            rows.append((
                "shared" if shared else "sent", name, f"{f.work_s / 60:.0f}", f"{f.scheduler_s / 60:.1f}",
                f"{f.client_s / 60:.1f}", f"{f.moved / 1e9:.1f}", f"{f.workers_at_most:.0f}",
            ))  # fmt: skip
    titles = (
        "files", "a photo takes", "100 workers, min", "scheduler, min", "client, min", "GB moved", "full at workers",
    )  # fmt: skip
    tasks = f"{2 * -(-1_000_000 // CHUNK):,} tasks, not run"
    return f"""## A calculation: 100 workers, 1,000,000 photos

{tasks}: the costs above times the number of tasks. A photo with all its rows takes a worker the time
in the second column. "100 workers" is the time in which the workers would be done. The scheduler and the client use one
processor each; the busier one is full at the number of workers in the last column, and more workers do not help.

{table(titles, rows, "llrrrrr")}

"""


TEXTS = {"efficiency": _efficiency_text, "client": _client_text, "many": _many_text, "kills": _kills_text}
