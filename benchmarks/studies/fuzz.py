"""Do damaged files end in success or in an error of two lines? Photos, arrays, checkpoints, ONNX and tools' files.

Each case is a seed file with random changes (`fuzz_worker.case`). A worker process reads it as the product does, under
a limit of memory and of time. A traceback, an error that is not two plain lines, a crash and a hang are findings. The
limit of memory needs Linux.
"""

from __future__ import annotations

import json
import math
import select
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

from u2export.benchmarks.studies.reliability.fuzz_seeds import Seed, corpus, seeds
from u2export.benchmarks.studies.reliability.fuzz_worker import OUTCOMES, SHARES
from u2export.benchmarks.studies.study import RESULTS, Pages, Study, listed, machine, progress
from u2export.exporters.runtime import versions

MODULE = "u2export.benchmarks.studies.reliability.fuzz_worker"
STARTING = 300.0  # seconds that a worker may take until its first answer
READ_WITH = ("pillow", "numpy", "torch", "safetensors", "onnx", "onnxruntime", "ai-edge-litert", "executorch")
SHOWN = 50  # findings of the page


class Worker:
    """A process that reads cases; a new one takes its place after a crash or a hang."""

    def __init__(self, folder: Path, memory: int, seconds: float) -> None:
        self.folder, self.memory, self.seconds = folder, memory, seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def outcome(self, number: int) -> dict[str, Any]:
        """Return what became of a case; a crash or a hang of the process is an outcome too."""
        fresh = self._process is None
        process = self._process = self._process or self._started()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(f"{number}\n".encode())
            process.stdin.flush()
            ready = select.select([process.stdout], [], [], STARTING if fresh else self.seconds)[0]
            line = process.stdout.readline() if ready else None
        except BrokenPipeError:
            line = b""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self._end()
        what = f"no answer within {self.seconds:g} s" if line is None else f"the process ended with {code}"
        return {"kind": "?", "outcome": "other", "what": what, "seconds": self.seconds, "name": "?"}

    def _started(self) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", MODULE, str(self.folder), str(self.memory)]
        return subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )

    def _end(self) -> int | None:
        if self._process is None:
            return None
        process, self._process = self._process, None
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()
        return process.returncode


def fuzz(
    first: int, count: int, memory: int, seconds: float, minutes: float = math.inf, files: Sequence[Seed] = ()
) -> dict[str, Any]:
    """Read `count` damaged files, from the case `first` on.

    Args:
        first, count: which cases.
        memory: bytes that reading one case may take.
        seconds: how long reading one case may take.
        minutes: how long all cases may take; the rest of them is left out.
        files: the intact files; those of `seeds` by default.

    Returns:
        "kinds": counts of each outcome by kind; "findings": the cases that are neither read nor refused;
        "slowest": the seconds of the slowest case.
    """
    counts: Counter[tuple[str, str]] = Counter()
    findings: list[dict[str, Any]] = []
    slowest, end = 0.0, monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="u2export-seeds-") as scratch:
        folder = Path(scratch)
        files = files or seeds()
        for i, (_, _, data) in enumerate(files):
            (folder / str(i)).write_bytes(data)
        (folder / "index.json").write_text(json.dumps([seed[:2] for seed in files]), encoding="utf-8")
        with Worker(folder, memory, seconds) as worker:
            for number in range(first, first + count):
                if monotonic() > end:
                    break
                found = worker.outcome(number)
                counts[found["kind"], found["outcome"]] += 1
                slowest = max(slowest, found["seconds"])
                if found["outcome"] == "other":
                    findings.append({"case": number, **{key: found[key] for key in ("kind", "name", "what")}})
                    progress(findings[-1])
                if (number - first + 1) % 1000 == 0:
                    progress(f"{number - first + 1} cases, {len(findings)} findings")
    kinds = {kind: {what: counts[kind, what] for what in OUTCOMES} for kind in (*SHARES, "?")}
    return {
        "seeds": len(files),
        "kinds": {kind: row for kind, row in kinds.items() if any(row.values())},
        "findings": findings,
        "slowest": round(slowest, 2),
    }


def page(data: Mapping[str, Any]) -> str:
    """Return the Markdown page."""
    kinds = data["kinds"]
    total = {what: sum(row[what] for row in kinds.values()) for what in OUTCOMES}
    lines = [f"| {kind} | {sum(row.values()):,} | {row['read']:,} | {row['refused']:,} | {row['other']:,} |"
             for kind, row in [*kinds.items(), ("all", total)]]  # fmt: skip
    found = "\n".join(f"- case {f['case']} ({f['name']}): `{f['what']}`" for f in data["findings"][:SHOWN])
    return (
        f"""# Damaged files

{sum(total.values()):,} damaged files were read as the product reads them. Each is one of {data["seeds"]} intact files
of `tests/corpus` with random changes, also to values of JSON and inside the checksums of PNG and of archives. A worker
process reads each file with at most {data["memory_gib"]:g} GiB of memory and in at most {data["seconds"]:g} s.
Tracebacks, crashes, hangs, and changes outside the folder of the file are "anything else". Again with

    {data["rerun"]}

| kind | files | read | refused in two lines | anything else |
|---|---|---|---|---|
{chr(10).join(lines)}

The slowest file took {data["slowest"]:g} s. Read with {listed(data["tools"])} on {data["machine"]["label"]}.

{found}
""".rstrip()
        + "\n"
    )


def options(parser: ArgumentParser) -> None:
    """Add the options of this study."""
    parser.add_argument("--corpus", type=Path, default=Path("tests/corpus"), help="intact files; %(default)s")
    parser.add_argument("--count", type=int, default=20_000, help="number of damaged files; %(default)s")
    parser.add_argument("--first", type=int, default=0, help="number of the first case; %(default)s")
    parser.add_argument("--minutes", type=float, default=math.inf, help="for all files, at most; no limit by default")
    parser.add_argument("--memory", type=float, default=4.0, help="GiB for one file; %(default)s")
    parser.add_argument("--seconds", type=float, default=20.0, help="time for one file; %(default)s")


def run(given: Namespace, pages: Pages) -> int:
    """Read the damaged files, and write both pages; return 1 if anything was neither read nor refused.

    The intact files are those of `--corpus`; where there is no such folder, files that are made now.
    """
    files = corpus(given.corpus) if given.corpus.is_dir() else seeds()
    found = fuzz(given.first, given.count, int(given.memory * 2**30), given.seconds, given.minutes, files)
    data = {
        "schema": 1, "rerun": pages.command, "tools": versions(*READ_WITH),
        "machine": machine(), "memory_gib": given.memory, "seconds": given.seconds, **found,
    }  # fmt: skip
    pages.publish(data, page(data))
    return int(bool(found["findings"]))


STUDY = Study("fuzz", "Do damaged files end in success or in an error of two lines?", "fuzz", options, run,
              RESULTS / "reliability")  # fmt: skip
