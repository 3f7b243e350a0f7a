"""What does a cluster add, and what does it lose? Efficiency, memory of the client, killed workers, cost of a chunk.

The study starts workers on this machine and connects to them over loopback. Photos are crops of the photos that it is
given. All parts run the code that `bench --no-latency --cluster` runs. Each part can run on its own, and keeps what the
other parts have written. Needs Linux.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from u2export.benchmarks.cluster.bench import ClusterBench
from u2export.benchmarks.cluster.connection import connected
from u2export.benchmarks.cluster.journal import Journal
from u2export.benchmarks.cluster.machine import CHUNK, ClusterMachine
from u2export.benchmarks.device import environment, this_device
from u2export.benchmarks.measuring.bench import measure
from u2export.benchmarks.measuring.photos import photos_in
from u2export.benchmarks.measuring.plan import Plan, Progress, settings
from u2export.benchmarks.report import Report
from u2export.benchmarks.studies.photo_sets import folders
from u2export.benchmarks.studies.reliability.cluster_page import WORKERS, page
from u2export.benchmarks.studies.study import RESULTS, Pages, Study, progress
from u2export.errors import UserError
from u2export.exporters import EXPORTERS
from u2export.exporters.exporter import Request
from u2export.exporters.open import read_artifact
from u2export.reference.image import Contract
from u2export.reference.photos import find_photos
from u2export.reference.source import Source
from u2export.reference.weights import contract_of

PARTS = ("efficiency", "client", "kills")
# The client runs this many photos, and ten times as many. What is constant falls out of the difference.
FEW = 500
# Side of the network where the time of an inference does not matter.
SMALL_INPUT = 64
WAIT = 120.0
CLIENT = """
import json, resource, sys, time
import u2export as u2
artifacts, photos, address, shared, limit = json.loads(sys.argv[1])
report = u2.bench(artifacts, photos, limit=limit, latency=False, cluster=address, shared_files=shared,
                  arithmetics="default", reference=artifacts[0])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"peak": peak, "cpu_s": time.process_time(), "photos": len(report.photos),
                  "failed": [row.problem for row in report.rows if row.reason]}))
"""


# Inputs


def make_photos(sources: Sequence[Path], count: int, size: int, folder: Path) -> int:
    """Write `count` JPEG crops of the source photos whose longer side has `size` pixels; return their bytes in all."""
    turns = -(-count // len(sources))
    total = 0
    for i, source in enumerate(sources):
        with Image.open(source) as opened:
            opened.draft("RGB", (4 * size, 4 * size))
            picture = opened.convert("RGB")
        for turn in range(turns):
            if i + turn * len(sources) >= count:
                break
            made = _crop(picture, turn, turns)
            made.thumbnail((size, size))
            path = folder / f"{i:04}-{turn:02}.jpg"
            made.save(path, quality=90)
            total += path.stat().st_size
    return total


def _crop(picture: Image.Image, turn: int, turns: int) -> Image.Image:
    """Return the crop number `turn`: windows of three quarters of the picture along its diagonal, mirrored in turns."""
    at = turn / max(1, turns - 1) / 4
    width, height = picture.size
    crop = picture.crop(
        (round(at * width), round(at * height), round((at + 0.75) * width), round((at + 0.75) * height))
    )
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if turn % 2 else crop


def make_artifact(weights: str, side: int, folder: Path) -> Path:
    """Export the network to an ONNX file with square inputs of `side` pixels and return its path."""
    source = Source.open(weights, replace(contract_of(weights) or Contract(), height=side, width=side))
    return EXPORTERS["onnx"].export(source, folder, Request("fp32")).path


@dataclass(frozen=True)
class Inputs:
    """What the parts run on."""

    photos: Path
    artifacts: tuple[Path, Path]
    small: tuple[Path, Path]
    count: int


# Runs


def bench(
    artifacts: Sequence[Path], photos: Path, address: str, shown: Progress, count: int = 0, results: Path | None = None
) -> Report:
    """Judge photos on a cluster that runs, with the files under the same paths, as the command does."""
    opened = [read_artifact(path) for path in artifacts]
    plan = Plan(
        opened, photos_in(photos, count), settings=settings("quick", threads=1), latency=False,
        arithmetics="default", reference=str(artifacts[0]),
        machine=ClusterMachine(address, True, Journal(results, False), WAIT),
    )  # fmt: skip
    report = measure(plan, progress=shown, kind=ClusterBench)
    if wrong := [row.problem for row in report.rows if row.reason]:
        raise UserError(f"a row failed: {wrong[0]}", "mend it and run the study again")
    return report


@contextmanager
def cluster(workers: int) -> Iterator[tuple[Any, str]]:
    """The context of workers on this machine: the client of Dask, and the address of their scheduler."""
    with connected(f"local:{workers}", WAIT) as client:
        yield client, str(client.scheduler.address)


def timed(workers: int, inputs: Inputs) -> dict[str, float]:
    """Return the seconds that reading and judging all photos take, on a cluster that has been used once before."""
    begun: dict[str, float] = {}
    ended: dict[str, float] = {}

    def watch(stage: str, done: int, total: int) -> None:
        kind = "reading" if stage.startswith("reading") else "judging" if stage.startswith("judging") else ""
        if kind:
            begun.setdefault(kind, time.monotonic())
            ended[kind] = time.monotonic()

    with cluster(workers) as (_, address):
        bench(inputs.artifacts, inputs.photos, address, lambda *_: None, 64)
        start = time.monotonic()
        bench(inputs.artifacts, inputs.photos, address, watch, inputs.count)
        total = time.monotonic() - start
    return {"total_s": total, "judging_s": ended["judging"] - begun["judging"]}


def efficiency(inputs: Inputs, given: Namespace) -> dict[str, Any]:
    """Return the times of one and of two workers, and their efficiency: time of one / (2 x time of two)."""
    rounds = []
    for number in range(given.rounds):
        order = (1, WORKERS) if number % 2 == 0 else (WORKERS, 1)
        found = {}
        for workers in order:
            found[workers] = timed(workers, inputs)
            progress(f"{workers} workers: {found[workers]['total_s']:.1f} s")
        rounds.append({str(workers): found[workers] for workers in (1, WORKERS)})
    return {"rounds": rounds, "photos": inputs.count, "input": given.input}


def loopback_bytes() -> int:
    """Return the bytes that the loopback device of this machine has received."""
    lines = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()
    return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("lo:"))


def client(inputs: Inputs, given: Namespace) -> dict[str, Any]:
    """Return what a client of few and of all photos needs: memory, processor time, bytes over loopback.

    The client is a process of its own. The scheduler runs in this process, whose processor time is therefore that of
    the scheduler.
    """
    runs = []
    with cluster(WORKERS) as (_, address):
        for shared in (True, False):
            for count in (FEW, inputs.count):
                words = json.dumps([[str(a) for a in inputs.small], str(inputs.photos), address, shared, count])
                cpu, moved = time.process_time(), loopback_bytes()
                command = [sys.executable, "-c", CLIENT, words]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise UserError(f"the client failed: {done.stderr.strip()[-300:]}", "run its bench by hand")
                told = json.loads(done.stdout.splitlines()[-1])
                cpu, moved = time.process_time() - cpu, loopback_bytes() - moved
                tasks = 2 * -(-count // CHUNK)  # each chunk is read once and judged once
                runs.append({**told, "shared": shared, "tasks": tasks, "scheduler_cpu_s": cpu, "bytes": moved})
                progress(
                    f"client of {count} photos, files {'shared' if shared else 'sent'}: {told['peak'] / 1e6:.0f} MB"
                )
    return {"runs": runs, "input": SMALL_INPUT}


def kills(inputs: Inputs, given: Namespace) -> dict[str, Any]:
    """Kill workers while they judge; return how many photos were lost, doubled or other than without kills."""
    with cluster(WORKERS) as (_, address):
        calm = bench(inputs.small, inputs.photos, address, lambda *_: None, inputs.count)
    killed: list[int] = []
    counted = [0]
    every = max(1, inputs.count // (given.kills + 2))
    with cluster(WORKERS) as (dask, address):

        def kill(stage: str, done: int, total: int) -> None:
            if not stage.startswith("judging"):
                return
            counted[0] = done
            if done >= every * (len(killed) + 1) and len(killed) < given.kills and (pid := _victim(dask, killed)):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                progress(f"kill {len(killed)} after {done} photos")

        hurt = bench(inputs.small, inputs.photos, address, kill, inputs.count)
    return {"kills": len(killed), "photos": inputs.count, "chunk": CHUNK, **lost_and_doubled(calm, hurt, counted[0])}


def _victim(client: Any, killed: Sequence[int]) -> int:
    """Return the process of a worker that lives and has not been killed; wait for one to start, at most a minute."""
    for _ in range(600):
        found = sorted(set(client.run(os.getpid, on_error="ignore").values()) - set(killed))
        if found:
            return int(found[len(killed) % len(found)])
        time.sleep(0.1)
    raise UserError("no worker came back after a kill", "look at the memory of this machine")


def lost_and_doubled(calm: Report, hurt: Report, counted: int) -> dict[str, int]:
    """Return what kills did to a report: photos without a result, photos counted twice, and photos that differ.

    Args:
        calm: the report of the same rows without kills.
        hurt: the report of the run with kills.
        counted: the results that the run with kills took, in photos.
    """
    pairs = list(zip(calm.rows[1:], hurt.rows[1:], strict=True))
    lost = {name for one, other in pairs for name in one.images.keys() - other.images.keys()}
    differ = {n for one, other in pairs for n in other.images if one.images.get(n) != other.images[n]}
    return {"lost": len(lost), "doubled": counted - len(hurt.photos) + len(lost), "other": len(differ - lost)}


RUNS: dict[str, Callable[[Inputs, Namespace], dict[str, Any]]] = {
    "efficiency": efficiency, "client": client, "kills": kills,
}  # fmt: skip


def options(parser: ArgumentParser) -> None:
    """Add the options of this study."""
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER", help="photos to make crops of")
    parser.add_argument("--photos", type=int, default=5000, help="photos to make, more than 500; %(default)s")
    parser.add_argument("--size", type=int, default=160, help="the longer side of these photos; %(default)s")
    parser.add_argument("--input", type=int, default=160, help="side of the network where times count; %(default)s")
    parser.add_argument("--weights", default="u2netp", help="%(default)s")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of the efficiency; %(default)s")
    parser.add_argument("--kills", type=int, default=50, help="workers to kill; %(default)s")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure; all of it")


def run(given: Namespace, pages: Pages) -> int:
    """Measure, and write both pages; 1 if a photo was lost or doubled.

    Raises:
        UserError: a folder has no photo, or a row fails.
    """
    if given.photos <= FEW:
        raise UserError(f"{given.photos} photos are too few to compare with {FEW}", f"give more than {FEW}")
    sources = find_photos(list(folders(given.sets).values()))
    device = this_device()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = folder / "photos"
        photos.mkdir()
        total = make_photos(sources, given.photos, given.size, photos)
        made = {
            "photos": given.photos, "size": given.size, "bytes": total, "sources": len(sources),
            "weights": given.weights,
        }  # fmt: skip
        head = {"made": made, "device_label": device.label}
        data = pages.resumed(head) or {**head, "command": pages.command.partition(" --parts")[0]}
        inputs = Inputs(
            photos, _two(given.weights, given.input, folder), _two(given.weights, SMALL_INPUT, folder), given.photos
        )
        for part in given.parts:
            data[part] = RUNS[part](inputs, given)
            data["tools"] = {k: v for k, v in environment().items() if k in ("onnxruntime", "numpy")} | {
                "dask": _dask()
            }
            pages.publish(data, page(data))
    found = data.get("kills", {})
    return int(any(found.get(name) for name in ("lost", "doubled", "other")))


def _two(weights: str, side: int, folder: Path) -> tuple[Path, Path]:
    """Return two files of one network; the second name makes it a row of its own."""
    first = make_artifact(weights, side, folder / f"{side}-reference")
    second = folder / f"{side}-judged"
    shutil.copytree(first.parent, second)
    return first, second / first.name


def _dask() -> str:
    from importlib.metadata import version

    return version("distributed")


STUDY = Study(
    "cluster", "What does a cluster of workers add, and what does it lose?", "cluster", options, run,
    RESULTS / "cluster",
)  # fmt: skip
