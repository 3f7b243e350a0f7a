"""The worker of the study `fuzz`: damages a seed, reads it, and says what happened.

`python -m u2export.benchmarks.studies.reliability.fuzz_worker SEEDS MEMORY` reads the numbers of cases from its
standard input and answers each with one line of JSON. A case depends on its number and on the seeds alone.
"""

from __future__ import annotations

import io
import json
import logging
import os
import random
import struct
import sys
import tempfile
import traceback
import zipfile
from pathlib import Path
from time import perf_counter
from typing import Any

from u2export.benchmarks.studies.reliability.fuzz_seeds import Seed, png_chunk
from u2export.errors import UserError

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# How much of the readers' time each kind gets.
SHARES = {"photo": 10, "checkpoint": 4, "array": 2, "onnx": 2, "import": 2, "tflite": 2, "pte": 2}
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
    if data.startswith(b"PK"):
        return _archive(data, rng)
    return damaged(data, data, rng)


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
        chosen = rng.choice([n for n in names if n.endswith(".pkl")] if rng.random() < 0.7 else names)
        for member in names:
            body = old.read(member)
            new.writestr(zipfile.ZipInfo(member), damaged(body, body, rng) if member == chosen else body)
    return made.getvalue()


def read(kind: str, path: Path, number: int) -> None:
    """Read a file as the product does."""
    if kind == "photo":
        from u2export.reference.photos import open_photo

        open_photo(path, 1 if number % 4 == 0 else 3)
    elif kind == "array":
        from u2export.reference.photos import read_array

        read_array(path, (0, 1, 3)[number % 3])
    elif kind == "checkpoint":
        from u2export.reference.checkpoint import read_checkpoint

        read_checkpoint(path)
    elif kind == "onnx":
        from u2export.reference.onnx_files import external_data
        from u2export.reference.weights import state_dict

        external_data(path)
        state_dict(path)
    elif kind in ("tflite", "pte"):
        _open(path)
    else:
        from u2export.benchmarks.imports.tool_files import read as read_tool

        for model in read_tool(path, kind.split()[1], path if number % 3 == 0 else None):
            json.dumps(model.name, ensure_ascii=False).encode("utf-8")


def _open(path: Path) -> None:
    """Inspect a model file of a phone, and open it in its runtime."""
    from u2export.exporters import EXPORTERS
    from u2export.exporters.inspection import inspect
    from u2export.exporters.open import adopt

    inspect(path)
    artifact = adopt(path)
    with EXPORTERS[artifact.exporter].load(artifact, threads=1):
        pass


def outcome(kind: str, path: Path, number: int) -> dict[str, Any]:
    """Return what became of a file: read, refused in two lines, or anything else."""
    start = perf_counter()
    try:
        read(kind, path, number)
        said, what = "read", ""
    except UserError as error:
        lines = (error.problem, error.hint)
        plain = all(line and line.isprintable() for line in (part.replace("\ufffd", "?") for part in lines))
        said, what = ("refused", "") if plain else ("other", f"not two plain lines: {lines!r}")
    except BaseException as error:
        at = traceback.extract_tb(error.__traceback__)[-3:]
        where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(at))
        said, what = "other", f"{type(error).__name__}: {error} ({where})"
    return {"kind": kind.split()[0], "outcome": said, "what": what[:400], "seconds": perf_counter() - start}


def serve(folder: Path, memory: int) -> None:
    """Answer the numbers of cases on standard input, with at most `memory` bytes more than this process has now."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # some decoders print
        logging.getLogger("u2export").setLevel(logging.CRITICAL)
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        files = [(kind, name, (folder / f"{i}").read_bytes()) for i, (kind, name) in enumerate(index)]
        for kind in ("checkpoint", "onnx", "photo", "tflite", "pte"):  # imports count neither for memory nor for time
            whole, name, data = next((seed for seed in files if seed[0] == kind), ("", "", b""))
            if not whole:
                continue
            path = folder / f"warm-{name}"
            path.write_bytes(data)
            outcome(whole, path, 1)
        _limit(memory)
        with tempfile.TemporaryDirectory(prefix="u2export-fuzz-") as scratch:
            for line in sys.stdin:
                kind, name, data = case(int(line), files)
                path = Path(scratch) / name
                path.write_bytes(data)
                print(json.dumps({**outcome(kind, path, int(line)), "name": name}), file=answers, flush=True)
                path.unlink()


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
