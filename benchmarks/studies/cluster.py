"""What does a cluster add, and what does it lose? Efficiency, memory of the client, killed workers, cost of a chunk.

The study starts workers on this machine and connects to them over loopback. Photos are crops of the photos that it is
given. All parts run the code that `bench --no-latency --cluster` runs. Each part can run on its own, and keeps what the
other parts have written. Needs Linux.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from u2export.benchmarks.cluster.bench import ClusterBench
from u2export.benchmarks.cluster.journal import Journal
from u2export.benchmarks.cluster.machine import CHUNK, ClusterMachine
from u2export.benchmarks.device import environment, this_device
from u2export.benchmarks.measuring.bench import measure
from u2export.benchmarks.measuring.photos import photos_in
from u2export.benchmarks.measuring.plan import Plan, Progress, settings
from u2export.benchmarks.report import Report
from u2export.benchmarks.studies.photo_sets import folders
from u2export.benchmarks.studies.reliability.cluster_client import WAIT, Order, clients, cluster
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

PARTS = ("efficiency", "client", "many", "kills")
# The client runs this many photos, and ten times as many. What is constant falls out of the difference.
FEW = 500
# Sides of the networks where the time of an inference does not matter, and where it shall be as short as can be.
SMALL_INPUT, LEAST_INPUT = 64, 32


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
    least: tuple[Path, Path]
    count: int


# Runs


def bench(artifacts: Sequence[Path], photos: Mapping[str, Path], address: str, shown: Progress) -> Report:
    """Judge photos on a cluster that runs, with the files under the same paths, as the command does."""
    opened = [read_artifact(path) for path in artifacts]
    plan = Plan(
        opened, photos, settings=settings("quick", threads=1), latency=False, arithmetics="default",
        reference=str(artifacts[0]), machine=ClusterMachine(address, True, Journal(None, False), WAIT),
    )  # fmt: skip
    report = measure(plan, progress=shown, kind=ClusterBench)
    if wrong := [row.problem for row in report.rows if row.reason]:
        raise UserError(f"a row failed: {wrong[0]}", "mend it and run the study again")
    return report


def timed(inputs: Inputs, address: str, photos: Mapping[str, Path]) -> dict[str, float]:
    """Return the seconds from the first photo read to the last one judged, and those of the judging alone."""
    begun: dict[str, float] = {}
    ended: dict[str, float] = {}

    def watch(stage: str, done: int, total: int) -> None:
        kind = stage.partition(" ")[0]
        begun.setdefault(kind, time.monotonic())
        ended[kind] = time.monotonic()

    start = time.monotonic()
    bench(inputs.artifacts, photos, address, watch)
    spent = {kind: ended[kind] - begun[kind] for kind in ("reading", "judging")}
    return {"total_s": time.monotonic() - start, **{f"{kind}_s": seconds for kind, seconds in spent.items()}}


def efficiency(inputs: Inputs, given: Namespace) -> dict[str, Any]:
    """Return the times of one and of two workers, block by block: the same photos one after the other on both.

    Blocks are short, so other programs of this machine disturb some of them and not the middle one.
    """
    photos = photos_in(inputs.photos, inputs.count)
    names = list(photos)
    blocks = [{name: photos[name] for name in names[i :: given.blocks]} for i in range(given.blocks)]
    found = []
    with cluster(1) as (_, alone), cluster(WORKERS) as (_, both):
        addresses = {1: alone, WORKERS: both}
        for address in addresses.values():
            bench(inputs.artifacts, dict(list(photos.items())[:64]), address, lambda *_: None)
        for number, block in enumerate(blocks):
            order = (1, WORKERS) if number % 2 == 0 else (WORKERS, 1)
            times = {workers: timed(inputs, addresses[workers], block) for workers in order}
            progress({workers: f"{one['total_s']:.1f} s" for workers, one in times.items()})
            found.append({"photos": len(block), **{str(workers): one for workers, one in times.items()}})
    return {"blocks": found, "photos": inputs.count, "input": given.input}


def client(inputs: Inputs, given: Namespace) -> dict[str, Any]:
    """Return what a client of few and of all photos needs: memory, processor time, bytes over loopback."""
    wanted = [(shared, count) for shared in (True, False) for count in (FEW, inputs.count)]
    return {**clients(_order(inputs.small, inputs.photos, wanted)), "input": SMALL_INPUT}


def many(inputs: Inputs, given: Namespace) -> dict[str, Any]:
    """Return what clients of few and of very many photos need; they are the same files again and again."""
    files = sorted(inputs.photos.iterdir())
    with tempfile.TemporaryDirectory(dir=inputs.photos.parent) as name:
        for i in range(given.many):
            os.link(files[i % len(files)], Path(name) / f"{i:07}.jpg")
        wanted = [(True, FEW), (True, given.many)]
        return {**clients(_order(inputs.least, Path(name), wanted)), "input": LEAST_INPUT}


def _order(artifacts: Sequence[Path], photos: Path, wanted: Sequence[tuple[bool, int]]) -> Order:
    return Order([str(path) for path in artifacts], str(photos), wanted, WORKERS)


def kills(inputs: Inputs, given: Namespace) -> dict[str, Any]:
    """Kill workers while they judge; return how many photos were lost, doubled or other than without kills."""
    photos = photos_in(inputs.photos, inputs.count)
    with cluster(WORKERS) as (_, address):
        calm = bench(inputs.small, photos, address, lambda *_: None)
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

        hurt = bench(inputs.small, photos, address, kill)
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
    "efficiency": efficiency, "client": client, "many": many, "kills": kills,
}  # fmt: skip


def options(parser: ArgumentParser) -> None:
    """Add the options of this study."""
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER", help="photos to make crops of")
    parser.add_argument("--photos", type=int, default=5000, help="photos to make, more than 500; %(default)s")
    parser.add_argument("--size", type=int, default=160, help="the longer side of these photos; %(default)s")
    parser.add_argument("--input", type=int, default=160, help="side of the network where times count; %(default)s")
    parser.add_argument("--weights", default="u2netp", help="%(default)s")
    parser.add_argument("--blocks", type=int, default=10, help="blocks of photos of the efficiency; %(default)s")
    parser.add_argument("--many", type=int, default=50_000, help="photos of the part many; %(default)s")
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
        data = {**(pages.resumed(head) or head), "command": pages.command.partition(" --parts")[0]}
        sides = {"times": given.input, "small": SMALL_INPUT, "least": LEAST_INPUT}
        made_of = {name: _two(given.weights, side, folder / name) for name, side in sides.items()}
        inputs = Inputs(photos, made_of["times"], made_of["small"], made_of["least"], given.photos)
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
