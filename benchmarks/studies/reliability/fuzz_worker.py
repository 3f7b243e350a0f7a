"""The worker of the study `fuzz`: damages a seed, reads it, and says what happened.

`python -m u2export.benchmarks.studies.reliability.fuzz_worker SEEDS MEMORY` reads the numbers of cases from its
standard input and answers each with one line of JSON. A case depends on its number and on the seeds alone.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import random
import shutil
import struct
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from u2export.benchmarks.studies.reliability.fuzz_seeds import Seed, png_chunk
from u2export.errors import UserError
from u2export.text import one_line

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# How much of the readers' time each kind gets.
SHARES = {"photo": 10, "checkpoint": 4, "array": 2, "onnx": 2, "import": 2, "tflite": 2, "pte": 0.5, "json": 4,
          "model": 2, "text": 1, "masks": 1}  # fmt: skip
# What stands in place of a value of JSON.
VALUES: tuple[Any, ...] = (None, True, "", "x", "../../x", "\ud800", "\x1b[31m", [], {}, -1, 0, 0.5, math.nan, math.inf,
                           10**400, [[]], {"a": {}}, "9" * 5000, "a\n::error::b")  # fmt: skip
WORDS = (b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 5000, b"[" * 3000, b"{}", b"null", b'"\\ud800"', b"*a", b"&a ",
         b"\0", b"\xff\xfe", b"true", b"<<: *a", b"\x1b[31m")  # fmt: skip
OUTCOMES = ("read", "refused", "other")


def case(number: int, files: list[Seed]) -> tuple[str, str, bytes]:
    """Return the kind, the name and the bytes of a damaged file."""
    rng = random.Random(f"u2export {number}")
    there = {seed[0].split()[0] for seed in files}
    shares = {kind: share for kind, share in SHARES.items() if kind in there}
    kind = rng.choices(list(shares), list(shares.values()))[0]
    mine = [seed for seed in files if seed[0].split()[0] == kind]
    whole, name, data = rng.choice(mine)
    if rng.random() < 0.5:
        data = _inside(name, data, rng)
    if rng.random() < 0.6:
        other = rng.choice(mine)[2]
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            data = damaged(data, other, rng)
    return whole, name, data


def damaged(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return the bytes with one change; `other` gives the end of a splice."""
    if not data:
        return data
    # Headers decide more than pixels, so half of all changes lie in the first 256 bytes.
    at = rng.randrange(min(len(data), 256) if rng.random() < 0.5 else len(data))
    how = rng.randrange(8)
    if how == 0:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if how == 1:
        number = struct.pack(rng.choice("<>") + "I", rng.choice(NUMBERS))[: rng.choice((1, 2, 4))]
        return data[:at] + number + data[at + len(number) :]
    if how == 2:
        return data[:at]
    if how == 3:
        return data[:at] + data[at + rng.randrange(1, 64) :]
    if how == 4:
        return data[:at] + data[at : at + rng.randrange(1, 64)] * rng.randrange(2, 9) + data[at:]
    if how == 5:
        return data[:at] + rng.randbytes(rng.randrange(1, 32)) + data[at:]
    if how == 6:
        return data[:at] + rng.choice(WORDS) + data[at + rng.randrange(8) :]
    return data[:at] + other[rng.randrange(max(1, len(other))) :]


def _inside(name: str, data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with a change where a checksum would hide it: in a chunk of a PNG, or a member of an archive."""
    if name.endswith(".png"):
        return _png(data, rng)
    if name.endswith(".json") and rng.random() < 0.9:
        return _json(data, rng)
    if data.startswith(b"PK"):
        return _archive(data, rng)
    return damaged(data, data, rng)


def _json(data: bytes, rng: random.Random) -> bytes:
    """Return JSON in which one value is another one, is gone, or stands twice."""
    try:
        whole = json.loads(data)
    except ValueError:
        return damaged(data, data, rng)
    at, places = [whole], []
    for node in at:
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            at.append(node[key])
    if not places:
        return damaged(data, data, rng)
    for _ in range(rng.choice((1, 1, 2))):
        node, key = rng.choice(places)
        if isinstance(node, dict) and rng.random() < 0.2:
            node.pop(key, None)
        elif isinstance(node, list) and rng.random() < 0.2:
            node.append(rng.choice(places)[1])
        else:
            node[key] = rng.choice(VALUES) if rng.random() < 0.8 else str(rng.choice(places)[1])
        if not isinstance(node, dict):
            break  # the places of a list may have moved
    return json.dumps(whole).encode("utf-8", "surrogatepass")


def _png(data: bytes, rng: random.Random) -> bytes:
    chunks, at = [], 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    chosen = rng.randrange(len(chunks))
    return data[:8] + b"".join(
        png_chunk(kind, damaged(body, body, rng) if i == chosen else body) for i, (kind, body) in enumerate(chunks)
    )


def _archive(data: bytes, rng: random.Random) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        names = old.namelist()
        pickles = [n for n in names if n.endswith(".pkl")]
        chosen = rng.choice(pickles if pickles and rng.random() < 0.7 else names)
        for member in names:
            body = old.read(member)
            new.writestr(zipfile.ZipInfo(member), damaged(body, body, rng) if member == chosen else body)
    return made.getvalue()


def read(kind: str, path: Path, number: int) -> None:
    """Read a file as the product does."""
    first, _, form = kind.partition(" ")
    if first == "import":
        from u2export.benchmarks.imports.tool_files import read as read_tool

        for model in read_tool(path, form, path if number % 3 == 0 else None):
            json.dumps(model.name, ensure_ascii=False).encode("utf-8")
        return
    READERS[kind if kind in READERS else first](path, number)


def _photo(path: Path, number: int) -> None:
    from u2export.reference.photos import open_photo

    open_photo(path, 1 if number % 4 == 0 else 3)


def _array(path: Path, number: int) -> None:
    from u2export.reference.photos import read_array

    read_array(path, (0, 1, 3)[number % 3])


def _checkpoint(path: Path, number: int) -> None:
    from u2export.reference.checkpoint import read_checkpoint

    read_checkpoint(path)


def _weights(path: Path, number: int) -> None:
    from u2export.reference.onnx_files import external_data
    from u2export.reference.weights import state_dict

    external_data(path)
    state_dict(path)


def _model(path: Path, number: int) -> None:
    """Inspect a model file, and open it in its runtime."""
    from u2export.exporters import EXPORTERS
    from u2export.exporters.inspection import inspect
    from u2export.exporters.open import adopt

    inspect(path)
    artifact = adopt(path)
    with EXPORTERS[artifact.exporter].load(artifact, threads=1):
        pass


def _report(path: Path, number: int) -> None:
    """Read results, and write their tables."""
    from u2export.benchmarks.report import Report
    from u2export.benchmarks.tables import render

    render.render([Report.load(path)], ("md", "csv", "html")[number % 3])


def _baseline(path: Path, number: int) -> None:
    from u2export.benchmarks.gate.baseline import Baseline

    Baseline.load(path)


def _record(path: Path, number: int) -> None:
    from u2export.exporters.artifact import read_record

    read_record(path)


def _recipe(path: Path, number: int) -> None:
    """Read a recipe beside an empty graph, and write a calibration cache of its scales."""
    from u2export.exporters.trt.recipe import Recipe, calibration_cache

    graph = path.with_name("net.onnx")
    graph.touch()
    try:
        recipe, _ = Recipe.read(path)
        calibration_cache(recipe.scales, "8.6.2")
    finally:
        graph.unlink()


def _layers(path: Path, number: int) -> None:
    from u2export.exporters.trt.layer_table import read as read_layers

    read_layers(path)


def _keep_float(path: Path, number: int) -> None:
    from u2export.calibration.sensitivity import read_keep_float

    read_keep_float(path)


def _manifest(path: Path, number: int) -> None:
    from u2export.calibration.dataset import read_manifest

    read_manifest(path)


def _published(path: Path, number: int) -> None:
    from u2export.benchmarks.imports.published import load

    load(path)


def _policy(path: Path, number: int) -> None:
    from u2export.benchmarks.gate.policy import Policy

    Policy.load(path)


def _masks(path: Path, number: int) -> None:
    from u2export.benchmarks.gate.saved_masks import SavedMasks

    SavedMasks.load(path)


READERS: dict[str, Callable[[Path, int], None]] = {
    "photo": _photo, "array": _array, "checkpoint": _checkpoint, "onnx": _weights, "tflite": _model, "pte": _model,
    "model": _model, "json report": _report, "json baseline": _baseline, "json record": _record, "json recipe": _recipe,
    "json layers": _layers, "text layers": _layers, "json keep-float": _keep_float, "json manifest": _manifest,
    "json published": _published, "text policy": _policy, "masks": _masks,
}  # fmt: skip


def outcome(kind: str, path: Path, number: int) -> dict[str, Any]:
    """Return what became of a file: read, refused in two lines, or anything else."""
    start = perf_counter()
    WRITTEN.clear()
    try:
        read(kind, path, number)
        said, what = "read", ""
    except UserError as error:
        lines = tuple(one_line(part) for part in (error.problem, error.hint))  # as commands print them
        plain = all(lines) and "Traceback" not in "".join(lines)
        said, what = ("refused", "") if plain else ("other", f"not two plain lines: {lines!r}")
    except BaseException as error:
        at = traceback.extract_tb(error.__traceback__)[-3:]
        where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(at))
        said, what = "other", f"{type(error).__name__}: {error} ({where})"
    if WRITTEN:
        said, what = "other", f"wrote outside: {WRITTEN[0]}"
    return {"kind": kind.split()[0], "outcome": said, "what": what[:400], "seconds": perf_counter() - start}


# What reading the present case wrote, renamed, removed or started outside the folder for it, see `watch`.
WRITTEN: list[str] = []
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
           "shutil.rmtree", "shutil.move", "shutil.copyfile")  # fmt: skip
ALLOWED = ("flatc",)  # ExecuTorch reads .pte files with this program of its package
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect")


def watch(scratch: Path) -> None:
    """From now on, note in `WRITTEN` what Python code changes outside `scratch`, and processes and connections.

    Writes of machine code are not seen; files that it leaves in the working folder are.
    """
    inside = str(scratch.resolve())

    def event(name: str, given: tuple[Any, ...]) -> None:
        if name == "open":
            path, mode, flags = given
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not writes and not (isinstance(mode, str) and set(mode) & set("wax+")):
                return
            places = [path]
        elif name in CHANGES:
            places = [part for part in given[:2] if isinstance(part, (str, bytes, os.PathLike))]
        elif name in STARTS:
            if Path(str(given[0])).name not in ALLOWED:
                WRITTEN.append(f"{name} {given[:2]!r:.80}")
            return
        else:
            return
        for place in places:
            if isinstance(place, int):
                continue
            real = os.path.realpath(os.fsdecode(place))
            if real != os.devnull and not real.startswith(inside):
                WRITTEN.append(f"{name} {real}")

    sys.addaudithook(event)


def serve(folder: Path, memory: int) -> None:
    """Answer the numbers of cases on standard input, with at most `memory` bytes more than this process has now."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # some decoders print
        logging.getLogger("u2export").setLevel(logging.CRITICAL)
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        files = [(kind, name, (folder / f"{i}").read_bytes()) for i, (kind, name) in enumerate(index)]
        for whole, name, data in {seed[0]: seed for seed in files}.values():
            path = folder / f"warm-{name}"  # Python's imports count neither for memory nor for time
            path.write_bytes(data)
            outcome(whole, path, 1)
        _limit(memory)
        with tempfile.TemporaryDirectory(prefix="u2export-fuzz-") as scratch:
            place = Path(scratch, "files")
            place.mkdir()
            os.chdir(place)
            tempfile.tempdir = str(place)
            watch(place)
            for line in sys.stdin:
                kind, name, data = case(int(line), files)
                path = place / name
                path.write_bytes(data)
                found = outcome(kind, path, int(line))
                path.unlink()
                if left := sorted(place.iterdir()):
                    found = {**found, "outcome": "other", "what": f"left {left[0].name}"}
                    for other in left:
                        shutil.rmtree(other) if other.is_dir() else other.unlink()
                print(json.dumps({**found, "name": name}), file=answers, flush=True)
            os.chdir(folder)


def _limit(memory: int) -> None:
    """Bound the address space of this process, where the system can."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)
    except (ImportError, OSError, ValueError):
        return


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
